package entra

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
)

// Handler answers as login.microsoftonline.com. A flow with another page
// adds its route here and its grant below, and stands in a file of its own.
func (l *Login) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/{tenant}/oauth2/v2.0/token", l.serveToken)
	mux.HandleFunc("/{tenant}/oauth2/v2.0/devicecode", l.serveDeviceCode)
	mux.HandleFunc("/{tenant}/oauth2/v2.0/authorize", l.serveAuthorize)
	mux.HandleFunc("POST /v1.0/applications/{object}/addKey", l.serveGraph(l.addKey))
	mux.HandleFunc("POST /v1.0/applications/{object}/removeKey", l.serveGraph(l.removeKey))
	return l.troubled(mux)
}

// A grant decides on one token request. It returns the members of the JSON
// answer.
type grant func(*Login, *tokenQuery) (map[string]any, *refusal)

// grants are the flows by grant_type.
var grants = map[string]grant{
	GrantClientCredentials: (*Login).clientCredentials,
	deviceCodeType:         (*Login).redeemDeviceCode,
	GrantAuthorizationCode: (*Login).redeemCode,
	GrantRefreshToken:      (*Login).refresh,
}

// tokenQuery is a request to Entra, read.
type tokenQuery struct {
	grant    string // one of the Grant constants, "" if it is none
	tenant   string // as in the URL
	base     string // the URL before the tenant, as the client wrote it
	form     url.Values
	clientID string // from the form or from HTTP Basic
	secret   string
}

// troubled puts the faults before a handler.
func (l *Login) troubled(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f := l.Faults()
		if f.Delay > 0 {
			t := time.NewTimer(f.Delay)
			defer t.Stop()
			select {
			case <-t.C:
			case <-r.Context().Done():
			case <-l.stop.Done():
			}
		}
		down, status := l.fails()
		if down {
			l.noteRequest("", "", "fault")
			panic(http.ErrAbortHandler) // hangs up without a word
		}
		w.Header().Set("Date", l.dir.Now().UTC().Format(http.TimeFormat))
		if status == 0 {
			h.ServeHTTP(w, r)
			return
		}
		l.noteRequest("", "", "fault")
		if f.Retry > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(f.Retry))
		}
		servePage(w, status, http.StatusText(status))
	})
}

// fails reports whether this request fails before anybody looks at it, and
// uses up one of Faults.Times.
func (l *Login) fails() (down bool, status int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	down, status = l.faults.Down, l.faults.Status
	if (down || status != 0) && countDown(&l.faults.Times) && l.faults.Times == 0 {
		l.faults.Down, l.faults.Status = false, 0
	}
	return down, status
}

// servePage answers with a page for people.
func servePage(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<!DOCTYPE html><html><head><title>%d %s</title></head><body>Service trouble</body></html>", status, text)
}

func (l *Login) serveToken(w http.ResponseWriter, r *http.Request) {
	q, refused := l.readForm(w, r)
	if refused == nil {
		refused = l.readGrant(q)
	}
	if refused == nil {
		refused = l.refused(q.grant, q)
	}
	var answer map[string]any
	if refused == nil {
		answer, refused = grants[q.form.Get("grant_type")](l, q)
	}
	if answer != nil {
		l.troubleAnswer(answer)
	}
	l.serveJSON(w, q, answer, refused)
}

// troubleAnswer puts the faults that concern the members of an answer into it.
func (l *Login) troubleAnswer(answer map[string]any) {
	f := l.Faults()
	if f.RefreshIn > 0 {
		answer["refresh_in"] = f.RefreshIn
	}
	if f.StringExpiry {
		answer["expires_in"] = fmt.Sprint(answer["expires_in"])
	}
}

// serveJSON answers with one or the other, and counts.
func (l *Login) serveJSON(w http.ResponseWriter, q *tokenQuery, answer map[string]any, refused *refusal) {
	f := l.Faults()
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	if f.ContentType != "" {
		w.Header().Set("Content-Type", f.ContentType)
	}
	w.Header().Set("Cache-Control", "no-store, no-cache")
	if refused != nil {
		l.noteRequest(q.clientID, q.grant, refused.name())
		w.WriteHeader(refused.status)
		json.NewEncoder(w).Encode(refused.body(l.dir.Now()))
		return
	}
	l.noteRequest(q.clientID, q.grant, "ok")
	b, err := json.Marshal(answer)
	if err != nil {
		panic(err) // texts and numbers of our own
	}
	if f.Truncated {
		b = b[:len(b)/2]
	}
	w.Write(b)
}

// readForm reads what all POST requests have in common. The query is never nil.
func (l *Login) readForm(w http.ResponseWriter, r *http.Request) (*tokenQuery, *refusal) {
	q := newQuery(r)
	if r.Method != http.MethodPost {
		return q, refuse("invalid_request", 900561, "The endpoint only accepts POST requests. Received a %s request.", r.Method)
	}
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	if err := r.ParseForm(); err != nil {
		return q, l.refuseFor(q, 900144, "{parameter}", "grant_type")
	}
	q.form = r.PostForm
	q.clientID, q.secret = q.form.Get("client_id"), q.form.Get("client_secret")
	if id, secret, ok := r.BasicAuth(); ok {
		// RFC 6749, section 2.3.1: both are form-encoded first.
		q.clientID, q.secret = unescape(id), unescape(secret)
	}
	return q, nil
}

// newQuery returns what the URL says.
func newQuery(r *http.Request) *tokenQuery {
	q := &tokenQuery{tenant: r.PathValue("tenant"), base: "https://" + r.Host}
	if r.TLS == nil {
		q.base = "http://" + r.Host
	}
	return q
}

// readGrant reads which flow a token request is of, and checks the tenant, for
// which the flows differ.
func (l *Login) readGrant(q *tokenQuery) *refusal {
	kind := q.form.Get("grant_type")
	if _, known := grants[kind]; !known {
		return refuse("unsupported_grant_type", 70003, "The app requested an unsupported grant type '%s'.", kind)
	}
	switch kind {
	case GrantClientCredentials:
		q.grant = kind
		return l.checkAppTenant(q)
	case deviceCodeType:
		kind = GrantDeviceCode
	}
	q.grant = kind
	return l.checkUserTenant(q)
}

func unescape(s string) string {
	if u, err := url.QueryUnescape(s); err == nil {
		return u
	}
	return s
}

// checkAppTenant is for apps on their own behalf, which need a tenant.
func (l *Login) checkAppTenant(q *tokenQuery) *refusal {
	switch strings.ToLower(q.tenant) {
	case "common", "consumers":
		return refuse("invalid_request", 9001023, "The grant type is not supported over the /common or /consumers endpoints. Please use the /organizations or tenant-specific endpoint.")
	case "organizations":
		return refuse("invalid_request", 50059, "No tenant-identifying information found in either the request or implied by any provided credentials.")
	}
	return l.checkTenant(q)
}

// checkUserTenant is for flows with a user, whose tenant Entra finds by itself
// if the app is for several.
func (l *Login) checkUserTenant(q *tokenQuery) *refusal {
	if !slices.Contains([]string{"common", "organizations", "consumers"}, strings.ToLower(q.tenant)) {
		return l.checkTenant(q)
	}
	app, refused := l.app(q)
	if refused != nil {
		return refused
	}
	if !app.MultiTenant {
		return l.refuseFor(q, 50194)
	}
	return nil
}

func (l *Login) checkTenant(q *tokenQuery) *refusal {
	if !l.dir.IsCalled(q.tenant) {
		return l.refuseFor(q, 90002)
	}
	return nil
}

// app returns the app that a request is of.
func (l *Login) app(q *tokenQuery) (*directory.App, *refusal) {
	app := l.dir.App(q.clientID)
	if app == nil {
		return nil, l.refuseFor(q, 700016)
	}
	return app, nil
}

// tokenRequest is what requests are counted by.
type tokenRequest struct{ app, grant, result string }

// noteRequest counts; made-up client ids share a line, so that counting needs
// no more memory than there are apps.
func (l *Login) noteRequest(clientID, grant, result string) {
	if l.dir.App(clientID) == nil {
		clientID = "unknown"
	}
	if grant == "" {
		grant = "unknown"
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests[tokenRequest{clientID, grant, result}]++
}

// atTokenEndpoint reports whether a request went there, and to no other page.
func (r tokenRequest) atTokenEndpoint() bool {
	return r.grant != GrantDeviceStart && r.grant != GrantAuthorize && r.grant != GrantManagedIdentity
}

// TokenRequests returns how many token requests ended how: "ok",
// "AADSTS7000215", "fault".
func (l *Login) TokenRequests() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := map[string]int{}
	for r, n := range l.requests {
		if r.atTokenEndpoint() {
			all[r.result] += n
		}
	}
	return all
}

// TokenRequestsByApp is TokenRequests by client id; "unknown" is for those of no
// app, faults among them.
func (l *Login) TokenRequestsByApp() map[string]map[string]int {
	return l.countRequests(func(r tokenRequest) (string, bool) { return r.app, r.atTokenEndpoint() })
}

// TokenRequestsByGrant returns how many requests of each grant ended how. The
// grants are the Grant constants, the pages beside the token endpoint among
// them; "unknown" is for requests of no grant, and for those that a fault hit
// before anybody read them.
func (l *Login) TokenRequestsByGrant() map[string]map[string]int {
	return l.countRequests(func(r tokenRequest) (string, bool) { return r.grant, true })
}

func (l *Login) countRequests(key func(tokenRequest) (string, bool)) map[string]map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := map[string]map[string]int{}
	for r, n := range l.requests {
		k, counts := key(r)
		if !counts {
			continue
		}
		if all[k] == nil {
			all[k] = map[string]int{}
		}
		all[k][r.result] += n
	}
	return all
}

// ForgetRequests starts the counts of requests anew.
func (l *Login) ForgetRequests() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.requests)
}
