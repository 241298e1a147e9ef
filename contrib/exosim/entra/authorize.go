package entra

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
)

// SignIn is how the sign-in page behaves that a browser is sent to. There is
// nothing to type: whoever opens it is signed in and consents.
type SignIn struct {
	// User is who signs in, whatever login_hint says: people have several
	// accounts. "" is the user of login_hint, or the first one.
	User string `yaml:"user" json:"user"`
	// RequireLoginHint answers login_required without a login_hint.
	RequireLoginHint bool `yaml:"require_login_hint" json:"require_login_hint"`
	// CodeLife is how long an authorization code lives.
	CodeLife time.Duration `yaml:"code_life" json:"-"` // 10m
}

// SetSignIn changes the sign-in page while the simulator runs.
func (l *Login) SetSignIn(change func(*SignIn)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.page)
}

// SignInPage returns how the sign-in page behaves at present.
func (l *Login) SignInPage() SignIn {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.page
}

// authCode is an authorization code that was given out.
type authCode struct {
	session   *session
	redirect  string
	challenge string
	expires   time.Time
	used      bool
}

// serveAuthorize is the page that the browser opens. It answers with a redirect,
// an error too, but for requests whose redirect_uri cannot be trusted.
func (l *Login) serveAuthorize(w http.ResponseWriter, r *http.Request) {
	q := newQuery(r)
	q.grant, q.form = GrantAuthorize, r.URL.Query()
	q.clientID = q.form.Get("client_id")
	if r.Method != http.MethodGet {
		l.serveErrorPage(w, q, refuse("invalid_request", 900561, "The endpoint only accepts GET requests. Received a %s request.", r.Method))
		return
	}
	if refused := l.checkClient(q); refused != nil {
		l.serveErrorPage(w, q, refused)
		return
	}
	code, refused := l.authorize(q)
	l.redirect(w, q, code, refused)
}

// checkClient is what must be right before a redirect_uri is trusted.
func (l *Login) checkClient(q *tokenQuery) *refusal {
	if refused := l.checkUserTenant(q); refused != nil {
		return refused
	}
	app, refused := l.app(q)
	if refused != nil {
		return refused
	}
	if !slices.ContainsFunc(app.RedirectURIs, func(uri string) bool { return sameRedirect(uri, q.form.Get("redirect_uri")) }) {
		return l.refuseFor(q, 50011)
	}
	return nil
}

// sameRedirect compares a registered redirect URI with that of a request. On
// loopback the port does not matter (RFC 8252, section 7.3).
// https://learn.microsoft.com/entra/identity-platform/reply-url#localhost-exceptions
func sameRedirect(registered, asked string) bool {
	a, err := url.Parse(registered)
	b, err2 := url.Parse(asked)
	if err != nil || err2 != nil || b.Fragment != "" || b.User != nil {
		return false
	}
	if a.Scheme == "http" && (a.Hostname() == "localhost" || a.Hostname() == "127.0.0.1") && a.Hostname() == b.Hostname() {
		a.Host, b.Host = a.Hostname(), b.Hostname()
	}
	return a.Scheme == b.Scheme && a.Host == b.Host && urlPath(a) == urlPath(b) && a.RawQuery == b.RawQuery
}

func urlPath(u *url.URL) string {
	if u.Path == "" {
		return "/"
	}
	return u.Path
}

// serveErrorPage says it to the person at the browser.
func (l *Login) serveErrorPage(w http.ResponseWriter, q *tokenQuery, refused *refusal) {
	l.noteRequest(q.clientID, q.grant, refused.name())
	servePage(w, http.StatusBadRequest, "Sign in to your account: "+refused.name())
}

// redirect sends the browser back to the app.
func (l *Login) redirect(w http.ResponseWriter, q *tokenQuery, code string, refused *refusal) {
	target, err := url.Parse(q.form.Get("redirect_uri"))
	if err != nil {
		panic(err) // sameRedirect could read it
	}
	v := target.Query()
	if q.form.Has("state") {
		v.Set("state", q.form.Get("state"))
	}
	if refused != nil {
		l.noteRequest(q.clientID, q.grant, refused.name())
		b := refused.body(l.dir.Now())
		v.Set("error", b.Error)
		if refused.page != "" {
			v.Set("error", refused.page)
		}
		if refused.code == 65004 { // the user said no, and no policy
			v.Set("error_subcode", "cancel")
		}
		v.Set("error_description", b.Description)
		v.Set("error_uri", b.URI)
	} else {
		l.noteRequest(q.clientID, q.grant, "ok")
		v.Set("code", code)
		v.Set("session_state", directory.NewGUID())
	}
	target.Path, target.RawQuery = urlPath(target), v.Encode()
	w.Header().Set("Location", target.String())
	w.WriteHeader(http.StatusFound)
}

// authorize checks the request, signs the user in, and gives a code.
func (l *Login) authorize(q *tokenQuery) (string, *refusal) {
	if refused := l.checkAuthorize(q); refused != nil {
		return "", refused
	}
	sc, refused := l.parseScopes(q, q.form.Get("scope"), 70011)
	if refused != nil {
		return "", refused
	}
	if refused := l.refused(q.grant, q); refused != nil {
		return "", refused
	}
	page := l.SignInPage()
	n, refused := l.signIn(q, l.whoSignsIn(page, q.form.Get("login_hint")), sc)
	if refused != nil {
		return "", refused
	}
	code := opaque("1.", 640)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetOld()
	l.codes[code] = &authCode{session: n, redirect: q.form.Get("redirect_uri"), challenge: q.form.Get("code_challenge"), expires: time.Now().Add(page.CodeLife)}
	return code, nil
}

// checkAuthorize wants what RFC 9700, section 2.1.1 wants, and no less: Entra
// itself would let a client do without PKCE.
func (l *Login) checkAuthorize(q *tokenQuery) *refusal {
	switch f := q.form; {
	case f.Get("response_type") != "code":
		return refuse("unsupported_response_type", 700051, "response_type '%s' is not enabled for the application.", f.Get("response_type"))
	case f.Has("response_mode") && f.Get("response_mode") != "query":
		return refuse("invalid_request", 0, "response_mode '%s' is not known to the simulator.", f.Get("response_mode"))
	case !f.Has("code_challenge"):
		return l.refuseFor(q, 9002325)
	case f.Get("code_challenge_method") != "S256":
		return l.refuseFor(q, 50149)
	case len(f.Get("code_challenge")) != base64.RawURLEncoding.EncodedLen(sha256.Size):
		return l.refuseFor(q, 501491)
	case l.SignInPage().RequireLoginHint && f.Get("login_hint") == "":
		return l.refuseFor(q, 50058)
	}
	return nil
}

func (l *Login) whoSignsIn(page SignIn, hint string) string {
	switch {
	case page.User != "":
		return page.User
	case hint != "":
		return hint
	}
	if users := l.dir.Users(); len(users) > 0 {
		return users[0].UPN
	}
	return ""
}

// redeemCode is the authorization_code grant.
func (l *Login) redeemCode(q *tokenQuery) (map[string]any, *refusal) {
	app, refused := l.app(q)
	if refused != nil {
		return nil, refused
	}
	proof, refused := l.proveForUser(app, q)
	if refused != nil {
		return nil, refused
	}
	l.mu.Lock()
	c := l.codes[q.form.Get("code")]
	l.mu.Unlock()
	if refused := l.checkCode(q, c); refused != nil {
		return nil, refused
	}
	sc, refused := l.narrow(q, c.session.scopes)
	if refused != nil {
		return nil, refused
	}
	if refused := l.checkSession(q, c.session); refused != nil {
		return nil, refused
	}
	if !l.use(c) {
		return nil, l.refuseFor(q, 54005)
	}
	return l.userAnswer(q, app, c.session, sc, proof), nil
}

// use takes a code; it reports false if somebody had it before.
func (l *Login) use(c *authCode) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := !c.used
	c.used = true
	return first
}

func (l *Login) checkCode(q *tokenQuery, c *authCode) *refusal {
	if c == nil || c.session.clientID != q.clientID {
		return l.refuseFor(q, 70000)
	}
	l.mu.Lock()
	used := c.used
	l.mu.Unlock()
	switch redirect := q.form.Get("redirect_uri"); {
	case used:
		return l.refuseFor(q, 54005)
	case !time.Now().Before(c.expires):
		return l.refuseFor(q, 70008)
	case redirect != c.redirect:
		return l.refuseFor(q, 500112, "{registered}", c.redirect)
	case !verifies(q.form.Get("code_verifier"), c.challenge):
		return l.refuseFor(q, 501481)
	}
	return nil
}

// verifies is RFC 7636, section 4.6, with the lengths of section 4.1.
func verifies(verifier, challenge string) bool {
	if len(verifier) < 43 || len(verifier) > 128 || strings.Trim(verifier, unreserved) != "" {
		return false
	}
	sum := sha256.Sum256([]byte(verifier))
	return subtle.ConstantTimeCompare([]byte(base64.RawURLEncoding.EncodeToString(sum[:])), []byte(challenge)) == 1
}

const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
