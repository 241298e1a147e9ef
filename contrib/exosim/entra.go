package exosim

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// entraHandler answers as login.microsoftonline.com. A flow with another page
// adds its route here and its grant below, and stands in a file of its own.
func (s *Server) entraHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/{tenant}/oauth2/v2.0/token", s.serveToken)
	mux.HandleFunc("/{tenant}/oauth2/v2.0/devicecode", s.serveDeviceCode)
	mux.HandleFunc("/{tenant}/oauth2/v2.0/authorize", s.serveAuthorize)
	return s.troubled(mux)
}

// A grant decides on one token request. It returns the members of the JSON
// answer.
type grant func(*Server, *tokenQuery) (map[string]any, *refusal)

// grants are the flows by grant_type.
var grants = map[string]grant{
	GrantClientCredentials: (*Server).clientCredentials,
	deviceCodeType:         (*Server).redeemDeviceCode,
	GrantAuthorizationCode: (*Server).redeemCode,
	GrantRefreshToken:      (*Server).refresh,
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
func (s *Server) troubled(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f := s.Faults()
		if f.EntraDelay > 0 {
			t := time.NewTimer(f.EntraDelay)
			defer t.Stop()
			select {
			case <-t.C:
			case <-r.Context().Done():
			case <-s.stop.Done():
			}
		}
		down, status := s.entraFails()
		if down {
			s.noteRequest("", "", "fault")
			panic(http.ErrAbortHandler) // hangs up without a word
		}
		w.Header().Set("Date", s.now().UTC().Format(http.TimeFormat))
		if status == 0 {
			h.ServeHTTP(w, r)
			return
		}
		s.noteRequest("", "", "fault")
		if f.EntraRetry > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(f.EntraRetry))
		}
		servePage(w, status, http.StatusText(status))
	})
}

// entraFails tells whether this request fails before anybody looks at it, and
// uses up one of Faults.EntraTimes.
func (s *Server) entraFails() (down bool, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	down, status = s.faults.EntraDown, s.faults.EntraStatus
	if (down || status != 0) && countDown(&s.faults.EntraTimes) && s.faults.EntraTimes == 0 {
		s.faults.EntraDown, s.faults.EntraStatus = false, 0
	}
	return down, status
}

// servePage answers with a page for people.
func servePage(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<!DOCTYPE html><html><head><title>%d %s</title></head><body>Service trouble</body></html>", status, text)
}

func (s *Server) serveToken(w http.ResponseWriter, r *http.Request) {
	q, refused := s.readForm(w, r)
	if refused == nil {
		refused = s.readGrant(q)
	}
	if refused == nil {
		refused = s.refused(q.grant, q)
	}
	var answer map[string]any
	if refused == nil {
		answer, refused = grants[q.form.Get("grant_type")](s, q)
	}
	if answer != nil {
		s.troubleAnswer(answer)
	}
	s.serveJSON(w, q, answer, refused)
}

// troubleAnswer puts the faults that concern the members of an answer into it.
func (s *Server) troubleAnswer(answer map[string]any) {
	f := s.Faults()
	if f.EntraRefreshIn > 0 {
		answer["refresh_in"] = f.EntraRefreshIn
	}
	if f.EntraStringExpiry {
		answer["expires_in"] = fmt.Sprint(answer["expires_in"])
	}
}

// serveJSON answers with one or the other, and counts.
func (s *Server) serveJSON(w http.ResponseWriter, q *tokenQuery, answer map[string]any, refused *refusal) {
	f := s.Faults()
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	if f.EntraContentType != "" {
		w.Header().Set("Content-Type", f.EntraContentType)
	}
	w.Header().Set("Cache-Control", "no-store, no-cache")
	if refused != nil {
		s.noteRequest(q.clientID, q.grant, refused.name())
		w.WriteHeader(refused.status)
		json.NewEncoder(w).Encode(refused.body(s.now()))
		return
	}
	s.noteRequest(q.clientID, q.grant, "ok")
	b, err := json.Marshal(answer)
	if err != nil {
		panic(err) // texts and numbers of our own
	}
	if f.EntraTruncated {
		b = b[:len(b)/2]
	}
	w.Write(b)
}

// readForm reads what all POST requests have in common. The query is never nil.
func (s *Server) readForm(w http.ResponseWriter, r *http.Request) (*tokenQuery, *refusal) {
	q := newQuery(r)
	if r.Method != http.MethodPost {
		return q, refuse("invalid_request", 900561, "The endpoint only accepts POST requests. Received a %s request.", r.Method)
	}
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	if err := r.ParseForm(); err != nil {
		return q, s.refuseFor(q, 900144, "{parameter}", "grant_type")
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
func (s *Server) readGrant(q *tokenQuery) *refusal {
	kind := q.form.Get("grant_type")
	if _, known := grants[kind]; !known {
		return refuse("unsupported_grant_type", 70003, "The app requested an unsupported grant type '%s'.", kind)
	}
	switch kind {
	case GrantClientCredentials:
		q.grant = kind
		return s.checkAppTenant(q)
	case deviceCodeType:
		kind = GrantDeviceCode
	}
	q.grant = kind
	return s.checkUserTenant(q)
}

func unescape(s string) string {
	if u, err := url.QueryUnescape(s); err == nil {
		return u
	}
	return s
}

// checkAppTenant is for apps on their own behalf, which need a tenant.
func (s *Server) checkAppTenant(q *tokenQuery) *refusal {
	switch strings.ToLower(q.tenant) {
	case "common", "consumers":
		return refuse("invalid_request", 9001023, "The grant type is not supported over the /common or /consumers endpoints. Please use the /organizations or tenant-specific endpoint.")
	case "organizations":
		return refuse("invalid_request", 50059, "No tenant-identifying information found in either the request or implied by any provided credentials.")
	}
	return s.checkTenant(q)
}

// checkUserTenant is for flows with a user, whose tenant Entra finds by itself
// if the app is for several.
func (s *Server) checkUserTenant(q *tokenQuery) *refusal {
	if !slices.Contains([]string{"common", "organizations", "consumers"}, strings.ToLower(q.tenant)) {
		return s.checkTenant(q)
	}
	app, refused := s.app(q)
	if refused != nil {
		return refused
	}
	if !app.MultiTenant {
		return s.refuseFor(q, 50194)
	}
	return nil
}

func (s *Server) checkTenant(q *tokenQuery) *refusal {
	names := append([]string{s.cfg.Tenant, s.cfg.TenantID}, s.cfg.Domains...)
	if !slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, q.tenant) }) {
		return s.refuseFor(q, 90002)
	}
	return nil
}

// app returns the app that a request is of.
func (s *Server) app(q *tokenQuery) (*App, *refusal) {
	s.mu.Lock()
	app := s.apps[q.clientID]
	s.mu.Unlock()
	if app == nil {
		return nil, s.refuseFor(q, 700016)
	}
	return app, nil
}

// now is what Microsoft's clocks show; see Faults.EntraSkew.
func (s *Server) now() time.Time { return time.Now().Add(s.Faults().EntraSkew) }

// tokenRequest is what requests are counted by.
type tokenRequest struct{ app, grant, result string }

// noteRequest counts; made-up client ids share a line, so that counting needs
// no more memory than there are apps.
func (s *Server) noteRequest(clientID, grant, result string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.apps[clientID] == nil {
		clientID = "unknown"
	}
	if grant == "" {
		grant = "unknown"
	}
	s.requests[tokenRequest{clientID, grant, result}]++
}

// atTokenEndpoint tells whether a request went there, and to no other page.
func (r tokenRequest) atTokenEndpoint() bool {
	return r.grant != GrantDeviceStart && r.grant != GrantAuthorize && r.grant != GrantManagedIdentity
}

// TokenRequests returns how many token requests ended how: "ok",
// "AADSTS7000215", "fault".
func (s *Server) TokenRequests() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]int{}
	for r, n := range s.requests {
		if r.atTokenEndpoint() {
			all[r.result] += n
		}
	}
	return all
}

// TokenRequestsByApp is TokenRequests by client id; "unknown" is for those of no
// app, faults among them.
func (s *Server) TokenRequestsByApp() map[string]map[string]int {
	return s.countRequests(func(r tokenRequest) (string, bool) { return r.app, r.atTokenEndpoint() })
}

// TokenRequestsByGrant returns how many requests of each grant ended how. The
// grants are the Grant constants, the pages beside the token endpoint among
// them; "unknown" is for requests of no grant, and for those that a fault hit
// before anybody read them.
func (s *Server) TokenRequestsByGrant() map[string]map[string]int {
	return s.countRequests(func(r tokenRequest) (string, bool) { return r.grant, true })
}

func (s *Server) countRequests(key func(tokenRequest) (string, bool)) map[string]map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]map[string]int{}
	for r, n := range s.requests {
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
