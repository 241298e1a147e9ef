package exosim

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// entraHandler answers as login.microsoftonline.com. A flow with another page,
// such as the device code, adds its route here and its grant below, and stands
// in a file of its own.
func (s *Server) entraHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/{tenant}/oauth2/v2.0/token", s.serveToken)
	return s.troubled(mux)
}

// A grant decides on one token request. It returns the members of the JSON
// answer.
type grant func(*Server, *tokenQuery) (map[string]any, *refusal)

// grants are the flows by grant_type.
var grants = map[string]grant{
	"client_credentials": (*Server).clientCredentials,
}

// tokenQuery is a token request, read and with a known tenant.
type tokenQuery struct {
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
		if f.EntraDown {
			s.noteRequest("", "fault")
			panic(http.ErrAbortHandler) // hangs up without a word
		}
		if f.EntraStatus == 0 {
			h.ServeHTTP(w, r)
			return
		}
		s.noteRequest("", "fault")
		if f.EntraRetry > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(f.EntraRetry))
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(f.EntraStatus)
		fmt.Fprintf(w, "<!DOCTYPE html><html><head><title>%d %s</title></head><body>Service trouble</body></html>", f.EntraStatus, http.StatusText(f.EntraStatus))
	})
}

func (s *Server) serveToken(w http.ResponseWriter, r *http.Request) {
	q, refused := s.readQuery(w, r)
	var answer map[string]any
	if refused == nil {
		answer, refused = grants[q.form.Get("grant_type")](s, q)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store, no-cache")
	if refused != nil {
		s.noteRequest(q.clientID, "AADSTS"+strconv.Itoa(refused.code))
		w.WriteHeader(refused.status)
		json.NewEncoder(w).Encode(refused.body(time.Now()))
		return
	}
	s.noteRequest(q.clientID, "ok")
	f := s.Faults()
	if f.EntraStringExpiry {
		answer["expires_in"] = fmt.Sprint(answer["expires_in"])
	}
	b, err := json.Marshal(answer)
	if err != nil {
		panic(err) // texts and numbers of our own
	}
	if f.EntraTruncated {
		b = b[:len(b)/2]
	}
	w.Write(b)
}

// readQuery reads what all grants have in common. The query is never nil.
func (s *Server) readQuery(w http.ResponseWriter, r *http.Request) (*tokenQuery, *refusal) {
	q := &tokenQuery{tenant: r.PathValue("tenant"), base: "https://" + r.Host}
	if r.TLS == nil {
		q.base = "http://" + r.Host
	}
	if r.Method != http.MethodPost {
		return q, refuse("invalid_request", 900561, "The endpoint only accepts POST requests. Received a %s request.", r.Method)
	}
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	if err := r.ParseForm(); err != nil {
		return q, refuse("invalid_request", 900144, "The request body must contain the following parameter: 'grant_type'.")
	}
	q.form = r.PostForm
	q.clientID, q.secret = q.form.Get("client_id"), q.form.Get("client_secret")
	if id, secret, ok := r.BasicAuth(); ok {
		// RFC 6749, section 2.3.1: both are form-encoded first.
		q.clientID, q.secret = unescape(id), unescape(secret)
	}
	if _, known := grants[q.form.Get("grant_type")]; !known {
		return q, refuse("unsupported_grant_type", 70003, "The app requested an unsupported grant type '%s'.", q.form.Get("grant_type"))
	}
	return q, s.checkTenant(q)
}

func unescape(s string) string {
	if u, err := url.QueryUnescape(s); err == nil {
		return u
	}
	return s
}

func (s *Server) checkTenant(q *tokenQuery) *refusal {
	switch strings.ToLower(q.tenant) {
	case "common", "consumers":
		return refuse("invalid_request", 9001023, "The grant type is not supported over the /common or /consumers endpoints. Please use the /organizations or tenant-specific endpoint.")
	case "organizations":
		return refuse("invalid_request", 50059, "No tenant-identifying information found in either the request or implied by any provided credentials.")
	}
	names := append([]string{s.cfg.Tenant, s.cfg.TenantID}, s.cfg.Domains...)
	if !slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, q.tenant) }) {
		return refuse("invalid_request", 90002, "Tenant '%s' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud. "+
			"Check with your subscription administrator, this may happen if there are no active subscriptions for the tenant.", q.tenant)
	}
	return nil
}

// refusal is an error answer of Entra.
type refusal struct {
	status int
	oauth  string // "invalid_client"
	code   int    // AADSTS
	text   string
}

func refuse(oauth string, code int, format string, args ...any) *refusal {
	r := &refusal{http.StatusBadRequest, oauth, code, fmt.Sprintf(format, args...)}
	if oauth == "invalid_client" {
		r.status = http.StatusUnauthorized
	}
	return r
}

// errorBody is the JSON of a refusal, as Entra writes it.
type errorBody struct {
	Error         string `json:"error"`
	Description   string `json:"error_description"`
	Codes         []int  `json:"error_codes"`
	Timestamp     string `json:"timestamp"`
	TraceID       string `json:"trace_id"`
	CorrelationID string `json:"correlation_id"`
	URI           string `json:"error_uri"`
}

func (r *refusal) body(now time.Time) errorBody {
	b := errorBody{
		Error: r.oauth, Codes: []int{r.code}, Timestamp: now.UTC().Format("2006-01-02 15:04:05Z"), TraceID: newGUID(), CorrelationID: newGUID(),
		URI: fmt.Sprintf("https://login.microsoftonline.com/error?code=%d", r.code),
	}
	b.Description = fmt.Sprintf("AADSTS%d: %s\r\nTrace ID: %s\r\nCorrelation ID: %s\r\nTimestamp: %s", r.code, r.text, b.TraceID, b.CorrelationID, b.Timestamp)
	return b
}

func newGUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80 // RFC 9562, version 4
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// tokenRequest is what token requests are counted by.
type tokenRequest struct{ app, result string }

// noteRequest counts; made-up client ids share a line, so that counting needs
// no more memory than there are apps.
func (s *Server) noteRequest(clientID, result string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.apps[clientID] == nil {
		clientID = "unknown"
	}
	s.requests[tokenRequest{clientID, result}]++
}

// TokenRequests returns how many token requests ended how: "ok",
// "AADSTS7000215", "fault".
func (s *Server) TokenRequests() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]int{}
	for r, n := range s.requests {
		all[r.result] += n
	}
	return all
}

// TokenRequestsByApp is TokenRequests by client id; "unknown" is for those of no
// app, faults among them.
func (s *Server) TokenRequestsByApp() map[string]map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]map[string]int{}
	for r, n := range s.requests {
		if all[r.app] == nil {
			all[r.app] = map[string]int{}
		}
		all[r.app][r.result] = n
	}
	return all
}
