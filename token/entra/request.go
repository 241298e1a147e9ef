package entra

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

// maxLife bounds what an answer may claim as a token's life: the longest that
// Entra gives, to sessions with continuous access evaluation.
const maxLife = 28 * time.Hour

// jwtBearer is the client_assertion_type of RFC 7523 section 2.2.
const jwtBearer = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// ClientCredentials is a Source that asks Entra for a token as an app (RFC 6749
// section 4.4), which proves itself by a client secret, a certificate or another
// issuer's token. It is safe for concurrent use as long as its fields do not
// change.
//
// The files are read for every request, so that an administrator or an agent can
// replace them while the service runs. Their names may stand for credentials of
// systemd: see ResolveFile.
type ClientCredentials struct {
	Credential string // its name in the configuration, for messages
	TokenURL   string // {authority}/{tenant}/oauth2/v2.0/token
	ClientID   string
	Scope      string // "https://outlook.office365.com/.default"

	// Just one of the three proofs; of several the last one here counts.
	SecretFile         string // a client secret, or
	CertificateFile    string // a certificate, PEM,
	KeyFile            string // and its key, unless that is in CertificateFile too, or
	FederatedTokenFile string // a JWT of an issuer that the app registration trusts

	// Pairs, where it is not nil, says for each request which certificates the app can prove itself
	// by, the best first, and CertificateFile is not looked at. Another one is tried where a file
	// cannot be used, or Entra does not know the certificate: it takes a new one for registered only
	// after some minutes.
	Pairs func() []KeyPair

	// Client sends the requests: see NewHTTPClient. Nil means a plain one with
	// a deadline. No redirect is followed, whatever it says.
	Client *http.Client

	now func() time.Time // for tests; nil means time.Now
}

// Token asks Entra for a new token; see Source for the errors.
func (c *ClientCredentials) Token(ctx context.Context) (*Token, error) {
	return eachPair(c.pairs(), func(pair KeyPair) (*Token, error) { return c.token(ctx, pair) })
}

func (c *ClientCredentials) pairs() []KeyPair {
	if c.Pairs != nil {
		return c.Pairs()
	}
	return []KeyPair{{c.CertificateFile, c.KeyFile}}
}

// certificateUnknown is the code for a certificate that is not, or not yet, registered for the app.
const certificateUnknown = 700027

// eachPair asks by one pair after the other, until the answer is not about the certificate. Where it
// is at each, the error is that of the first, which is the best.
func eachPair[T any](pairs []KeyPair, ask func(KeyPair) (T, error)) (answer T, err error) {
	for i, p := range pairs {
		got, e := ask(p)
		file, unusable := errors.AsType[*FileError](e)
		unusable = unusable && (file.Path == p.CertificateFile || file.Path == p.KeyFile)
		refused, unknown := errors.AsType[*RefusedError](e)
		unknown = unknown && slices.Contains(refused.Codes, certificateUnknown)
		if !unusable && !unknown {
			return got, e
		}
		if i == 0 {
			err = e
		}
	}
	return answer, err
}

func (c *ClientCredentials) token(ctx context.Context, pair KeyPair) (*Token, error) {
	started := c.clock()
	p, err := c.proof(pair, started)
	if err != nil {
		return nil, fmt.Errorf("preparing the client credentials of %q: %w", c.Credential, err)
	}
	// x/oauth2 serves: it encodes the form, keeps the error answer with its
	// headers and takes expires_in as a string. It has no word for an
	// assertion, which therefore travels as an extra parameter.
	conf := clientcredentials.Config{
		ClientID:       c.ClientID,
		ClientSecret:   string(p.secret),
		TokenURL:       c.TokenURL,
		Scopes:         []string{c.Scope},
		EndpointParams: p.params(),
		AuthStyle:      oauth2.AuthStyleInParams, // no probing: a failed probe is a second request
	}
	q := tokenRequest{credential: c.Credential, what: "client credentials", clientID: c.ClientID, tokenURL: c.TokenURL, proof: p, now: started}
	client, seen := watch(c.Client, false)
	t, err := conf.Token(context.WithValue(ctx, oauth2.HTTPClient, client))
	q.skew = seen.skew(started, c.clock())
	if err != nil {
		return nil, q.explain(err)
	}
	return q.accept(t)
}

func (c *ClientCredentials) clock() time.Time {
	if c.now != nil {
		return c.now()
	}
	return time.Now()
}

// appProof is what shows that we are the app: a secret or an assertion, ours or another
// issuer's.
type appProof struct {
	file      string // where it came from, for hints
	federated bool   // the assertion is another issuer's
	secret    Secret
	assertion Secret
	others    []Secret // what else of the request must not be seen: a user's refresh token or code
}

// proof shows who we are; the pair counts where it is by a certificate.
func (c *ClientCredentials) proof(pair KeyPair, now time.Time) (appProof, error) {
	switch {
	case c.FederatedTokenFile != "":
		a, _, err := readFederated(c.FederatedTokenFile, now)
		return appProof{file: c.FederatedTokenFile, federated: true, assertion: a}, err
	case pair.CertificateFile == "":
		s, err := readSecret(c.SecretFile)
		return appProof{file: c.SecretFile, secret: s}, err
	}
	id, err := pair.Read(now)
	if err != nil {
		return appProof{}, err
	}
	a, err := id.assertion(c.TokenURL, c.ClientID, now)
	return appProof{file: pair.CertificateFile, assertion: a}, err
}

func (p appProof) params() url.Values {
	if p.assertion == "" {
		return nil
	}
	return url.Values{"client_assertion_type": {jwtBearer}, "client_assertion": {string(p.assertion)}}
}

// hide replaces the secret or assertion in a text from outside: a proxy's error
// page may well repeat the request.
func (p appProof) hide(s string) string {
	for _, hidden := range append([]Secret{p.secret, p.assertion}, p.others...) {
		if secret := string(hidden); secret != "" {
			s = strings.NewReplacer(secret, Redacted, url.QueryEscape(secret), Redacted, url.PathEscape(secret), Redacted).Replace(s)
		}
	}
	return s
}

// tokenRequest is one request to the token endpoint, as far as it takes to
// understand the answer.
type tokenRequest struct {
	credential string
	what       string // "client credentials"
	clientID   string
	tokenURL   string
	proof      appProof
	now        time.Time // when it was asked
	delegated  bool      // see RefusedError.Delegated

	skew     time.Duration // see Token.Skew; known once there is an answer
	platform string        // see RefusedError.Platform
}

// accept checks a token that came as an answer.
func (q *tokenRequest) accept(t *oauth2.Token) (*Token, error) {
	life, ok := jsonSeconds(t.Extra("expires_in"))
	switch {
	case !strings.EqualFold(t.Type(), "Bearer"):
		return nil, q.unusable("a token that is not a bearer token")
	case !ok || life <= 0:
		return nil, q.unusable("a token without its life (expires_in)")
	case strings.ContainsFunc(t.AccessToken, notInSecret):
		// It goes into a line of text; RFC 6750 section 2.1 allows less still.
		return nil, q.unusable("a token with bytes that no token has")
	}
	start := q.now.Round(0)
	token := &Token{Access: Secret(t.AccessToken), Expires: start.Add(min(life, maxLife)), Skew: q.skew}
	if d, ok := jsonSeconds(t.Extra("refresh_in")); ok && d > 0 && d < life {
		token.RefreshAt = start.Add(min(d, maxLife))
	}
	return token, nil
}

// unusable is an answer that says it succeeded and has no token for us.
func (q *tokenRequest) unusable(problem string) error {
	return &UnreachableError{Credential: q.credential, Platform: q.platform, Host: q.host(), Status: http.StatusOK, Problem: "answered with " + problem}
}

// explain turns an error of x/oauth2 into one of ours.
func (q *tokenRequest) explain(err error) error {
	if re, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
		if refused := q.refused(re); refused != nil {
			return refused
		}
		return q.notMicrosoft(re)
	}
	if ue, ok := errors.AsType[*url.Error](err); ok {
		return q.noAnswer(ue)
	}
	return q.unusable(q.whyNoToken(err.Error()))
}

// noAnswer tells that a request brought no answer.
func (q *tokenRequest) noAnswer(ue *url.Error) *UnreachableError {
	// Its own text repeats the URL.
	cause, text := ue.Err, ue.Err.Error()
	if q.proof.hide(text) != text {
		cause = nil // it quotes a header that repeats the secret: show it to nobody
	}
	return &UnreachableError{Credential: q.credential, Platform: q.platform, Host: q.host(), Err: cause, Problem: "gave no answer: " + q.clean(text)}
}

// whyNoToken says what is wrong with an answer whose status promised a token.
// x/oauth2 tells it in text alone, and its text can quote the answer in a form
// in which a repeated secret is not found; so only the first words are used.
func (q *tokenRequest) whyNoToken(text string) string {
	if cause, ok := strings.CutPrefix(text, "oauth2: cannot fetch token: "); ok {
		return "an answer that broke off: " + q.clean(cause)
	}
	switch {
	case strings.HasSuffix(text, "unexpected end of JSON input"):
		return "an answer that is cut off"
	case strings.HasPrefix(text, "oauth2: cannot parse json"):
		return "something that is not the JSON of a token"
	}
	return "an answer without a token"
}

// refused reads an OAuth error; nil means that the body has none.
func (q *tokenRequest) refused(re *oauth2.RetrieveError) error {
	var m map[string]any
	d := json.NewDecoder(strings.NewReader(string(re.Body)))
	d.UseNumber()
	if d.Decode(&m) != nil {
		return nil
	}
	oauthError := q.word(m["error"])
	if oauthError == "" {
		return nil
	}
	text, _ := m["error_description"].(string)
	text = q.proof.hide(text)
	return &RefusedError{
		Credential:    q.credential,
		What:          q.what,
		ClientID:      q.clientID,
		File:          q.proof.file,
		Status:        re.Response.StatusCode,
		OAuth:         oauthError,
		Suberror:      q.word(m["suberror"]),
		Codes:         aadstsCodes(m["error_codes"], text),
		Description:   q.clean(essence(text)),
		TraceID:       cmp.Or(guid(q.word(m["trace_id"])), guidAfter(text, "Trace ID:")),
		CorrelationID: cmp.Or(guid(q.word(m["correlation_id"])), guidAfter(text, "Correlation ID:")),
		RetryAfter:    retryAfter(re.Response.Header.Get("Retry-After"), q.now),
		Skew:          q.skew,
		Delegated:     q.delegated,
		Federated:     q.proof.federated,
		Platform:      q.platform,
	}
}

// notMicrosoft tells about an answer that is no OAuth error: a proxy's, a
// captive portal's, or Microsoft's own when it is overloaded.
func (q *tokenRequest) notMicrosoft(re *oauth2.RetrieveError) error {
	r := re.Response
	what := "no OAuth answer in it"
	if title := q.clean(htmlTitle(re.Body)); title != "" {
		what = fmt.Sprintf("a web page titled %q", title)
	} else if len(re.Body) == 0 {
		what = "nothing in it"
	}
	if to, err := r.Location(); err == nil && r.StatusCode/100 == 3 {
		what = fmt.Sprintf("a redirect to %q, which is not followed", q.clean(to.Host))
	}
	return &UnreachableError{
		Credential: q.credential,
		Platform:   q.platform,
		Host:       q.host(),
		Status:     r.StatusCode,
		Problem:    fmt.Sprintf("answered with HTTP %d and %s", r.StatusCode, what),
		RetryAfter: retryAfter(r.Header.Get("Retry-After"), q.now),
	}
}

// host is whom we asked, as a person would name it.
func (q *tokenRequest) host() string {
	u, err := url.Parse(q.tokenURL)
	if err != nil || u.Host == "" {
		return "the token endpoint"
	}
	return u.Host
}

// clean makes a text from outside fit for a log line.
func (q *tokenRequest) clean(s string) string { return OneLine(q.proof.hide(s), MaxText) }

// word takes an identifier such as "invalid_client" from an answer.
func (q *tokenRequest) word(v any) string {
	s, _ := v.(string)
	return OneLine(q.proof.hide(s), 60)
}

// jsonSeconds reads a duration that JSON gives as a number or, as managed identity
// and v1 endpoints do, as a string.
func jsonSeconds(v any) (time.Duration, bool) {
	var f float64
	switch v := v.(type) {
	case float64:
		f = v
	case int64:
		f = float64(v)
	case string:
		var err error
		if f, err = strconv.ParseFloat(strings.TrimSpace(v), 64); err != nil {
			return 0, false
		}
	default:
		return 0, false
	}
	if math.IsNaN(f) {
		return 0, false
	}
	// Bounded before it is multiplied: a time.Duration ends at 292 years.
	f = max(-maxLife.Seconds(), min(f, maxLife.Seconds()))
	return time.Duration(f * float64(time.Second)), true
}

// retryAfter reads a Retry-After header (RFC 9110 section 10.2.3): seconds or a
// date. Zero means that there is none to obey.
func retryAfter(h string, now time.Time) time.Duration {
	if d, ok := jsonSeconds(h); ok {
		return max(d, 0)
	}
	if at, err := http.ParseTime(h); err == nil {
		return min(max(at.Sub(now), 0), maxLife)
	}
	return 0
}
