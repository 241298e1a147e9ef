package entra

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

const (
	// deviceGrant is the grant_type of RFC 8628 section 3.4.
	deviceGrant = "urn:ietf:params:oauth:grant-type:device_code"

	// offlineAccess is the scope without which there is no refresh token: at the sign-in, and none
	// that is new at a refresh.
	offlineAccess = "offline_access"

	// deviceLife is how long a code is good where Microsoft does not say: its own
	// usual time. Whatever it says, nobody waits longer than maxDeviceLife.
	deviceLife    = 15 * time.Minute
	maxDeviceLife = time.Hour

	// pollInterval is what RFC 8628 section 3.2 has clients wait between two
	// questions where the server does not say; section 3.5 adds as much for each
	// slow_down.
	pollInterval = 5 * time.Second
	minPoll      = time.Second
	maxPoll      = time.Minute

	// browserTime is how long a browser has to come back.
	browserTime = 15 * time.Minute

	// RedirectURI is what the registration of an app must have for SignIn.Browser. Entra ignores
	// the port in it.
	// https://learn.microsoft.com/entra/identity-platform/reply-url#localhost-exceptions
	RedirectURI = "http://localhost"
)

// SignIn lets a user sign in, who thereby allows an app to act on their behalf. It
// is safe for concurrent use as long as its fields do not change.
//
// An app without SecretFile and CertificateFile is a public client.
type SignIn struct {
	Credential string   // its name in the configuration, for messages
	Authority  string   // "https://login.microsoftonline.com"
	Tenant     string   // GUID or domain
	ClientID   string   // of the app registration
	Scopes     []string // "https://outlook.office.com/SMTP.Send"; offline_access is added

	// User is whom the browser offers to sign in, if it is set. Who really signed
	// in stands in the access token.
	User string

	SecretFile      string // a client secret, or
	CertificateFile string // a certificate, PEM,
	KeyFile         string // and its key, unless that is in CertificateFile too

	Pairs func() []KeyPair // see ClientCredentials.Pairs

	// Client sends the requests: see NewHTTPClient. Nil means a plain one with
	// a deadline. No redirect is followed.
	Client *http.Client

	patience time.Duration // for tests; zero means browserTime
}

// Grant is what a sign-in brings.
type Grant struct {
	Token   *Token
	Refresh Secret
}

// DevicePrompt is what the user must be told. All texts are one line and bounded.
type DevicePrompt struct {
	URL     string    // to open on any device
	Code    string    // to enter there
	Message string    // both, in Microsoft's words; may be empty
	Expires time.Time // of the code
}

// SignInError tells that a sign-in came to nothing although nobody refused it.
// Signing in again may succeed.
type SignInError struct {
	Credential string
	Problem    string // "the code was not used within 15m0s"
	Act        string // what to do, for Hint
}

func (e *SignInError) Error() string {
	return fmt.Sprintf("signing in for %q: %s", e.Credential, e.Problem)
}

// Hint says what to do.
func (e *SignInError) Hint() string { return e.Act }

// again is a SignInError after which one simply starts again.
func (s *SignIn) again(format string, args ...any) error {
	return &SignInError{s.Credential, fmt.Sprintf(format, args...), fmt.Sprintf("start again with \"sendas login %s\"", s.Credential)}
}

// DeviceCode signs a user in who has a browser anywhere (RFC 8628). It calls show
// once, and returns when the user has signed in or declined, when the code has
// expired, or when ctx has ended. The error is a *FileError, a *RefusedError, an
// *UnreachableError, a *SignInError, or has ctx's inside.
func (s *SignIn) DeviceCode(ctx context.Context, show func(DevicePrompt)) (*Grant, error) {
	r := s.redemption()
	if err := r.check(time.Now()); err != nil {
		return nil, err // before anybody types a code
	}
	d, err := s.askForCode(ctx)
	if err != nil {
		return nil, s.orInterrupted(ctx, err)
	}
	show(d.prompt)
	g, err := s.poll(ctx, r, d)
	if err != nil {
		return nil, s.orInterrupted(ctx, err)
	}
	return s.complete(g)
}

// orInterrupted returns err, or the end of ctx which is behind it.
func (s *SignIn) orInterrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("signing in for %q: %w", s.Credential, context.Cause(ctx))
	}
	return err
}

// complete refuses a sign-in that would end with its first access token.
func (s *SignIn) complete(g *Grant) (*Grant, error) {
	if g.Refresh == "" {
		return nil, &SignInError{s.Credential, "Microsoft gave an access token and no refresh token",
			`let an administrator consent to the delegated permission offline_access of the app registration, then ` + strings.ReplaceAll(signIn, "{credential}", s.Credential)}
	}
	return g, nil
}

func (s *SignIn) scopes() string { return offlineScopes(s.Scopes...) }

// offlineScopes is the scope of a request that shall bring a refresh token.
func offlineScopes(list ...string) string {
	if !slices.Contains(list, offlineAccess) {
		list = append(slices.Clone(list), offlineAccess)
	}
	return strings.Join(list, " ")
}

func (s *SignIn) endpoint(name string) string {
	return s.Authority + "/" + s.Tenant + "/oauth2/v2.0/" + name
}

func (s *SignIn) redemption() *redemption {
	return &redemption{
		credential: s.Credential, what: "sign-in", tokenURL: s.endpoint("token"), clientID: s.ClientID, scope: s.scopes(),
		secretFile: s.SecretFile, certificateFile: s.CertificateFile, keyFile: s.KeyFile, certificates: s.Pairs, client: s.Client,
	}
}

// request describes a request as far as it takes to understand the answer.
func (s *SignIn) request(endpoint string) *tokenRequest {
	return &tokenRequest{credential: s.Credential, what: "sign-in", clientID: s.ClientID, tokenURL: s.endpoint(endpoint), now: time.Now(), delegated: true}
}

// deviceCode is an answer of the device authorization endpoint.
type deviceCode struct {
	prompt   DevicePrompt
	code     Secret // whoever has it gets the token once the user has signed in
	life     time.Duration
	interval time.Duration
}

// askForCode asks for a device code (RFC 8628 section 3.1). x/oauth2's DeviceAuth is
// not used: as of v0.37.0 it does not heed its context, panics where the answer is
// the JSON word null, wants expires_in as a number, and drops Entra's message.
func (s *SignIn) askForCode(ctx context.Context) (*deviceCode, error) {
	q := s.request("devicecode")
	form := url.Values{"client_id": {s.ClientID}, "scope": {s.scopes()}}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, q.tokenURL, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, fmt.Errorf("signing in for %q: the address of Microsoft's endpoint is wrong: %w", s.Credential, err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Accept", "application/json")
	client, seen := watch(s.Client, false)
	resp, err := client.Do(r)
	q.skew = seen.skew(q.now, time.Now())
	if err != nil {
		return nil, q.explain(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(&limitedBody{ReadCloser: resp.Body, left: maxAnswer})
	if err != nil {
		return nil, q.unusable("an answer that broke off: " + q.clean(err.Error()))
	}
	answer := &oauth2.RetrieveError{Response: resp, Body: body}
	if resp.StatusCode/100 != 2 || q.refused(answer) != nil {
		return nil, q.explain(answer)
	}
	return q.deviceCode(body)
}

// deviceCode reads the answer of RFC 8628 section 3.2.
func (q *tokenRequest) deviceCode(body []byte) (*deviceCode, error) {
	var a struct {
		DeviceCode string `json:"device_code"`
		UserCode   string `json:"user_code"`
		URL        string `json:"verification_uri"`
		Message    string `json:"message"`
		ExpiresIn  any    `json:"expires_in"`
		Interval   any    `json:"interval"`
	}
	if json.Unmarshal(body, &a) != nil {
		return nil, q.unusable("something that is not the JSON of a device code")
	}
	d := &deviceCode{
		prompt: DevicePrompt{URL: OneLine(a.URL, MaxText), Code: OneLine(a.UserCode, 60), Message: OneLine(a.Message, MaxText)},
		code:   Secret(a.DeviceCode),
		life:   secondsOr(a.ExpiresIn, deviceLife), interval: secondsOr(a.Interval, pollInterval),
	}
	if d.code == "" || d.prompt.Code == "" || d.prompt.URL == "" {
		return nil, q.unusable("an answer without a device code")
	}
	d.life, d.interval = min(d.life, maxDeviceLife), max(minPoll, min(d.interval, maxPoll))
	d.prompt.Expires = q.now.Add(d.life)
	return d, nil
}

// secondsOr reads a duration that must be positive.
func secondsOr(v any, otherwise time.Duration) time.Duration {
	if d, ok := jsonSeconds(v); ok && d > 0 {
		return d
	}
	return otherwise
}

// poll asks until the user has signed in (RFC 8628 section 3.5); the last time is
// when the code expires. x/oauth2's DeviceAccessToken is not used: it ends at the
// first network failure, sends the same client assertion for 15 minutes, of which
// it lives ten, and panics where the interval is negative.
func (s *SignIn) poll(ctx context.Context, r *redemption, d *deviceCode) (*Grant, error) {
	wait, failures := d.interval, 0
	for {
		if err := pause(ctx, min(wait, time.Until(d.prompt.Expires))); err != nil {
			return nil, err
		}
		g, err := r.redeem(ctx, url.Values{"grant_type": {deviceGrant}, "device_code": {string(d.code)}})
		if err == nil || ctx.Err() != nil {
			return g, err
		}
		refused, _ := errors.AsType[*RefusedError](err)
		switch {
		case refused != nil && refused.OAuth == "authorization_pending":
			failures = 0
		case refused != nil && refused.OAuth == "slow_down":
			d.interval, failures = d.interval+pollInterval, 0
		case passes(err):
			failures++
		default:
			return nil, err
		}
		if !time.Now().Before(d.prompt.Expires) {
			if failures > 0 {
				return nil, err
			}
			return nil, s.again("the code was not used within %v", d.life)
		}
		wait = max(min(d.interval<<min(failures, 5), max(d.interval, maxPoll)), retryAfterOf(err))
	}
}

// passes reports whether asking again with the same code can help.
func passes(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

// retryAfterOf is how long the other side asks to be left alone.
func retryAfterOf(err error) time.Duration {
	_, d := ResultOf(err)
	return d
}

// pause waits; the error is that of ctx.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// redemption exchanges what a user's sign-in brought for a token, as a public client
// or as an app that proves itself.
type redemption struct {
	credential, what          string // "sign-in"
	tokenURL, clientID, scope string

	secretFile, certificateFile, keyFile string
	certificates                         func() []KeyPair // see ClientCredentials.Pairs

	client *http.Client
}

// redeem makes one request to the token endpoint; grant holds its grant_type and
// what belongs to that. A refresh token that comes with the answer is in the
// Grant; with grant_type=refresh_token and none in the answer it is the old one.
func (r *redemption) redeem(ctx context.Context, grant url.Values) (*Grant, error) {
	return eachPair(r.app().pairs(), func(pair KeyPair) (*Grant, error) { return r.redeemBy(ctx, pair, grant) })
}

func (r *redemption) redeemBy(ctx context.Context, pair KeyPair, grant url.Values) (*Grant, error) {
	started := time.Now()
	p, err := r.proof(pair, started)
	if err != nil {
		return nil, err
	}
	params := p.params()
	if params == nil {
		params = make(url.Values)
	}
	for k, v := range grant {
		params[k] = v
		if k != "grant_type" && k != "redirect_uri" {
			p.others = append(p.others, Secret(v[0]))
		}
	}
	// Of x/oauth2's flows only this one lets all parameters be given; it is in
	// its contract that the grant type may be another one.
	conf := clientcredentials.Config{
		ClientID: r.clientID, ClientSecret: string(p.secret), TokenURL: r.tokenURL, Scopes: []string{r.scope},
		EndpointParams: params, AuthStyle: oauth2.AuthStyleInParams,
	}
	q := tokenRequest{credential: r.credential, what: r.what, clientID: r.clientID, tokenURL: r.tokenURL, proof: p, now: started, delegated: true}
	client, seen := watch(r.client, false)
	t, err := conf.Token(context.WithValue(ctx, oauth2.HTTPClient, client))
	q.skew = seen.skew(started, time.Now())
	if err != nil {
		return nil, q.explain(err)
	}
	return q.acceptGrant(t)
}

// app is the app on its own behalf, which shows who it is in the same way.
func (r *redemption) app() *ClientCredentials {
	return &ClientCredentials{TokenURL: r.tokenURL, ClientID: r.clientID, SecretFile: r.secretFile, CertificateFile: r.certificateFile, KeyFile: r.keyFile, Pairs: r.certificates}
}

// check reports whether there is a proof to begin with.
func (r *redemption) check(now time.Time) error {
	_, err := eachPair(r.app().pairs(), func(p KeyPair) (appProof, error) { return r.proof(p, now) })
	return err
}

// proof is empty for a public client.
func (r *redemption) proof(pair KeyPair, now time.Time) (appProof, error) {
	if r.secretFile == "" && pair.CertificateFile == "" {
		return appProof{}, nil
	}
	p, err := r.app().proof(pair, now)
	if err != nil {
		return appProof{}, fmt.Errorf("preparing the %s of %q: %w", r.what, r.credential, err)
	}
	return p, nil
}

// acceptGrant checks a token that came as an answer, and its refresh token if it has one.
func (q *tokenRequest) acceptGrant(t *oauth2.Token) (*Grant, error) {
	token, err := q.accept(t)
	if err != nil {
		return nil, err
	}
	if strings.ContainsFunc(t.RefreshToken, notInSecret) || len(t.RefreshToken) > maxGrant/2 {
		return nil, q.unusable("a refresh token with bytes that no such token has")
	}
	return &Grant{Token: token, Refresh: Secret(t.RefreshToken)}, nil
}

// Browser signs a user in with a browser on this machine, or with one whose requests to localhost
// reach it (RFC 8252 section 7.3, with PKCE). It calls open once with the address to open, which
// may go there itself, and returns when the browser has come back, after 15 minutes without that,
// or when ctx has ended. The errors are those of DeviceCode.
//
// The app registration needs RedirectURI.
func (s *SignIn) Browser(ctx context.Context, open func(url string)) (*Grant, error) {
	r := s.redemption()
	if err := r.check(time.Now()); err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, &SignInError{s.Credential, fmt.Sprintf("nothing can listen on 127.0.0.1: %v", err),
			fmt.Sprintf("sign in without a browser on this machine: \"sendas login %s\"", s.Credential)}
	}
	b := &browserVisit{
		ctx: ctx, s: s, r: r, state: rand.Text(), verifier: oauth2.GenerateVerifier(), done: make(chan struct{}),
		redirect: fmt.Sprintf("%s:%d", RedirectURI, ln.Addr().(*net.TCPAddr).Port),
	}
	srv := &http.Server{
		Handler: b, ReadTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10,
		ErrorLog: log.New(io.Discard, "", 0), // the terminal is for the sign-in
	}
	go srv.Serve(ln) // ends with the server
	defer endServer(srv)
	open(b.address())
	g, err := b.wait()
	if err != nil {
		return nil, s.orInterrupted(ctx, err)
	}
	return s.complete(g)
}

// endServer lets the browser read its last page.
func endServer(srv *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if srv.Shutdown(ctx) != nil {
		srv.Close()
	}
}

// browserVisit is one sign-in by browser. It serves the page to which Microsoft
// sends the browser back.
type browserVisit struct {
	ctx      context.Context // of the sign-in: a browser may close its connection early
	s        *SignIn
	r        *redemption
	redirect string
	state    string
	verifier string

	mu    sync.Mutex // guards what follows
	taken bool       // the browser is back
	grant *Grant     // once done is closed, as is err
	err   error
	done  chan struct{}
}

// address is where the sign-in begins. Without prompt=select_account Microsoft would
// take whoever is signed in to that browser already, mostly an administrator.
func (b *browserVisit) address() string {
	conf := oauth2.Config{
		ClientID: b.s.ClientID, RedirectURL: b.redirect, Scopes: []string{b.s.scopes()},
		Endpoint: oauth2.Endpoint{AuthURL: b.s.endpoint("authorize")},
	}
	opts := []oauth2.AuthCodeOption{
		oauth2.S256ChallengeOption(b.verifier),
		oauth2.SetAuthURLParam("response_mode", "query"),
		oauth2.SetAuthURLParam("prompt", "select_account"),
	}
	if b.s.User != "" {
		opts = append(opts, oauth2.SetAuthURLParam("login_hint", b.s.User))
	}
	return conf.AuthCodeURL(b.state, opts...)
}

func (b *browserVisit) wait() (*Grant, error) {
	patience := browserTime
	if b.s.patience > 0 {
		patience = b.s.patience
	}
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	select {
	case <-b.done:
		return b.grant, b.err
	case <-ctx.Done():
		return nil, &SignInError{b.s.Credential, fmt.Sprintf("the browser did not come back within %v", patience), fmt.Sprintf("start again with \"sendas login %s\"; "+
			"if the browser showed AADSTS50011, give the app registration the redirect URI %s first (Authentication > Mobile and desktop applications)", b.s.Credential, RedirectURI)}
	}
}

// ServeHTTP answers the browser.
func (b *browserVisit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet || r.URL.Path != "/" {
		http.NotFound(w, r) // such as /favicon.ico
		return
	}
	// Any page in any browser here can send a request; only the answer to our
	// question knows its state (RFC 6749 section 10.12). Others end nothing.
	v := r.URL.Query()
	if subtle.ConstantTimeCompare([]byte(v.Get("state")), []byte(b.state)) != 1 {
		showPage(w, http.StatusBadRequest, "This page belongs to no sign-in that is under way",
			"Open the address that sendas shows in the terminal, and sign in there.")
		return
	}
	if !b.take() {
		showPage(w, http.StatusConflict, "This sign-in has been answered already", "Go back to the terminal to see what came of it.")
		return
	}
	grant, err := b.finish(v)
	if err != nil {
		showPage(w, http.StatusOK, "The sign-in did not succeed", err.Error()+".", "Go back to the terminal: it says what to do.")
	} else {
		showPage(w, http.StatusOK, "Microsoft has confirmed the sign-in", "You can close this page. Go back to the terminal: it says what came of it.")
	}
	b.grant, b.err = grant, err
	close(b.done)
}

// take is true for the first caller.
func (b *browserVisit) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	first := !b.taken
	b.taken = true
	return first
}

// finish redeems the code that the browser brought, or explains the error (RFC 6749
// sections 4.1.2 and 4.1.3).
func (b *browserVisit) finish(v url.Values) (*Grant, error) {
	if v.Get("error") != "" {
		return nil, b.refused(v)
	}
	if v.Get("code") == "" {
		return nil, b.s.again("the browser came back with neither a code nor an error")
	}
	return b.r.redeem(b.ctx, url.Values{
		"grant_type": {"authorization_code"}, "code": {v.Get("code")}, "redirect_uri": {b.redirect}, "code_verifier": {b.verifier},
	})
}

// refused reads the error in a redirect. Its parameters are the fields of the JSON
// error, but that cancelling has a word of its own at Entra: without it,
// access_denied also means that a policy blocks the sign-in.
func (b *browserVisit) refused(v url.Values) error {
	fields := map[string]any{"error": v.Get("error"), "error_description": v.Get("error_description")}
	if v.Get("error_subcode") == "cancel" {
		fields["error"] = "authorization_declined"
	}
	body, err := json.Marshal(fields)
	if err != nil {
		return err // cannot be: they are strings
	}
	q := b.s.request("authorize")
	if refused := q.refused(&oauth2.RetrieveError{Body: body, Response: &http.Response{StatusCode: http.StatusBadRequest}}); refused != nil {
		return refused
	}
	return b.s.again("the browser came back with an error that has no name")
}

// page is what the browser shows; it loads nothing.
var page = template.Must(template.New("").Parse(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>sendas: {{.Title}}</title>
<style>body{font:1.1em/1.5 sans-serif;max-width:34em;margin:4em auto;padding:0 1em}h1{font-size:1.3em}</style></head>
<body><h1>{{.Title}}</h1>{{range .Text}}
<p>{{.}}</p>{{end}}
</body></html>
`))

// showPage writes the page. The address of the page has the code in it: nobody may learn
// it from a cache or a Referer.
func showPage(w http.ResponseWriter, status int, title string, text ...string) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Connection", "close")
	w.WriteHeader(status)
	page.Execute(w, struct {
		Title string
		Text  []string
	}{title, text}) // an error means that the browser has gone
}
