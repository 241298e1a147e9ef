package exosim

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	audience   = "https://outlook.office365.com"
	assertType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
)

// refusal is an error answer of Entra.
type refusal struct {
	status int
	oauth  string // "invalid_client"
	code   int    // AADSTS
	text   string
}

func (r *refusal) Error() string { return fmt.Sprintf("AADSTS%d: %s", r.code, r.text) }

func refuse(oauth string, code int, format string, args ...any) *refusal {
	r := &refusal{http.StatusBadRequest, oauth, code, fmt.Sprintf(format, args...)}
	if oauth == "invalid_client" {
		r.status = http.StatusUnauthorized
	}
	return r
}

// serveEntra answers POST /{tenant}/oauth2/v2.0/token.
func (s *Server) serveEntra(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	f := s.faults
	s.mu.Unlock()
	select {
	case <-time.After(f.EntraDelay):
	case <-r.Context().Done():
		return
	}
	if f.EntraDown {
		panic(http.ErrAbortHandler)
	}
	if f.EntraStatus != 0 {
		if f.EntraRetry > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(f.EntraRetry))
		}
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(f.EntraStatus)
		fmt.Fprint(w, "<html><head><title>Service trouble</title></head></html>")
		s.count("fault")
		return
	}
	answer, refused := s.token(r)
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store, no-cache")
	if refused != nil {
		s.count("AADSTS" + strconv.Itoa(refused.code))
		w.WriteHeader(refused.status)
		json.NewEncoder(w).Encode(refused.json())
		return
	}
	s.count("ok")
	b, _ := json.Marshal(answer)
	if f.EntraTruncated {
		b = b[:len(b)/2]
	}
	w.Write(b)
}

func (s *Server) count(result string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests[result]++
}

// TokenRequests returns how many token requests ended how: "ok", "AADSTS7000215", "fault".
func (s *Server) TokenRequests() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := map[string]int{}
	for k, n := range s.requests {
		m[k] = n
	}
	return m
}

// json returns the error answer as Entra writes it.
func (r *refusal) json() map[string]any {
	trace, correlation, at := newGUID(), newGUID(), time.Now().UTC().Format("2006-01-02 15:04:05Z")
	return map[string]any{
		"error":             r.oauth,
		"error_description": fmt.Sprintf("AADSTS%d: %s Trace ID: %s Correlation ID: %s Timestamp: %s", r.code, r.text, trace, correlation, at),
		"error_codes":       []int{r.code},
		"timestamp":         at,
		"trace_id":          trace,
		"correlation_id":    correlation,
		"error_uri":         fmt.Sprintf("https://login.microsoftonline.com/error?code=%d", r.code),
	}
}

func newGUID() string {
	var b [16]byte
	rand.Read(b[:])
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// token decides on one request.
func (s *Server) token(r *http.Request) (map[string]any, *refusal) {
	tenant, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if r.Method != http.MethodPost || rest != "oauth2/v2.0/token" {
		return nil, refuse("invalid_request", 900561, "The endpoint only accepts POST requests.")
	}
	if !strings.EqualFold(tenant, s.cfg.Tenant) {
		return nil, refuse("invalid_request", 90002, "Tenant '%s' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud.", tenant)
	}
	r.Body = http.MaxBytesReader(nil, r.Body, 64<<10)
	if err := r.ParseForm(); err != nil {
		return nil, refuse("invalid_request", 900144, "The request body must contain the following parameter: 'grant_type'.")
	}
	grant := grants[r.PostForm.Get("grant_type")]
	if grant == nil {
		return nil, refuse("unsupported_grant_type", 70003, "The app requested an unsupported grant type '%s'.", r.PostForm.Get("grant_type"))
	}
	return grant(s, r)
}

// grants are the flows; each stands in a function of its own.
var grants = map[string]func(*Server, *http.Request) (map[string]any, *refusal){
	"client_credentials": (*Server).clientCredentials,
}

// clientCredentials is the flow of an app on its own behalf.
func (s *Server) clientCredentials(r *http.Request) (map[string]any, *refusal) {
	id, secret, basic := r.BasicAuth()
	if !basic {
		id, secret = r.PostForm.Get("client_id"), r.PostForm.Get("client_secret")
	}
	s.mu.Lock()
	app := s.apps[id]
	s.mu.Unlock()
	if app == nil {
		return nil, refuse("unauthorized_client", 700016, "Application with identifier '%s' was not found in the directory '%s'.", id, s.cfg.Tenant)
	}
	if refused := s.prove(app, secret, r); refused != nil {
		return nil, refused
	}
	if scope := r.PostForm.Get("scope"); scope != audience+"/.default" {
		if strings.HasSuffix(scope, "/.default") {
			return nil, refuse("invalid_resource", 500011, "The resource principal named %s was not found in the tenant.", strings.TrimSuffix(scope, "/.default"))
		}
		return nil, refuse("invalid_scope", 70011, "The provided request must include a 'scope' input parameter. The provided value for the input parameter 'scope' is not valid.")
	}
	return map[string]any{
		"token_type": "Bearer", "expires_in": int(s.cfg.TokenLife.Seconds()), "ext_expires_in": int(s.cfg.TokenLife.Seconds()),
		"access_token": s.Issue(app.ClientID, audience, s.cfg.TokenLife),
	}, nil
}

// prove checks the app's secret or its signed assertion.
func (s *Server) prove(app *App, secret string, r *http.Request) *refusal {
	switch {
	case r.PostForm.Get("client_assertion_type") == assertType:
		return s.checkAssertion(app, r.PostForm.Get("client_assertion"))
	case secret == "":
		return refuse("invalid_client", 7000218, "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.")
	case app.Secret == "" || subtle.ConstantTimeCompare([]byte(secret), []byte(app.Secret)) != 1:
		return refuse("invalid_client", 7000215, "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app '%s'.", app.ClientID)
	case !app.SecretExpires.IsZero() && time.Now().After(app.SecretExpires):
		return refuse("invalid_client", 7000222, "The provided client secret keys for app '%s' are expired.", app.ClientID)
	}
	return nil
}

// checkAssertion verifies a client assertion (RFC 7523, and Microsoft's "certificate credentials").
func (s *Server) checkAssertion(app *App, assertion string) *refusal {
	badSignature := refuse("invalid_client", 700027, "The certificate with identifier used to sign the client assertion is not registered on application.")
	key, thumbprint, err := readCertificate(app.CertificateFile)
	if err != nil {
		return badSignature
	}
	claims := jwt.RegisteredClaims{}
	_, err = jwt.NewParser(jwt.WithValidMethods([]string{"PS256", "RS256"}), jwt.WithExpirationRequired(), jwt.WithLeeway(5*time.Second)).
		ParseWithClaims(assertion, &claims, func(t *jwt.Token) (any, error) {
			x5t, _ := t.Header["x5t#S256"].(string)
			if x5t != base64.RawURLEncoding.EncodeToString(thumbprint) && x5t != base64.StdEncoding.EncodeToString(thumbprint) {
				return nil, errors.New("another certificate")
			}
			return key, nil
		})
	switch {
	case errors.Is(err, jwt.ErrTokenExpired) || errors.Is(err, jwt.ErrTokenNotValidYet):
		return refuse("invalid_client", 700024, "Client assertion is not within its valid time range.")
	case errors.Is(err, jwt.ErrTokenSignatureInvalid) || errors.Is(err, jwt.ErrTokenUnverifiable):
		return badSignature
	case err != nil:
		return refuse("invalid_client", 50012, "Client assertion is invalid.")
	case claims.Issuer != app.ClientID || claims.Subject != app.ClientID || !slices.Contains(claims.Audience, s.TokenURL()) || claims.ID == "":
		return refuse("invalid_client", 50013, "Client assertion failed validation.")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.usedJTI[claims.ID] {
		return refuse("invalid_client", 50013, "Client assertion was used before.")
	}
	s.usedJTI[claims.ID] = true
	return nil
}

func readCertificate(file string) (*rsa.PublicKey, []byte, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, err
		}
		key, ok := c.PublicKey.(*rsa.PublicKey)
		if !ok {
			return nil, nil, errors.New("no RSA key")
		}
		sum := sha256.Sum256(block.Bytes)
		return key, sum[:], nil
	}
	return nil, nil, errors.New("no certificate")
}

// accessClaims are those of a v1 token for Exchange.
type accessClaims struct {
	jwt.RegisteredClaims
	AppID    string   `json:"appid"`
	ObjectID string   `json:"oid"`
	TenantID string   `json:"tid"`
	Roles    []string `json:"roles,omitempty"`
	Version  string   `json:"ver"`
	Padding  string   `json:"xms_ftd"` // real tokens have 1.5 to 2.5 kB
}

// Issue makes an access token for an app, as the token endpoint does; a test can ask for one
// that the endpoint would not give.
func (s *Server) Issue(clientID, aud string, life time.Duration) string {
	s.mu.Lock()
	app := s.apps[clientID]
	s.mu.Unlock()
	now := time.Now()
	c := accessClaims{RegisteredClaims: jwt.RegisteredClaims{
		Audience: jwt.ClaimStrings{aud}, Issuer: "https://sts.windows.net/" + s.cfg.Tenant + "/", ID: newGUID(),
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(life)),
	}, AppID: clientID, TenantID: s.cfg.Tenant, Version: "1.0", Padding: strings.Repeat("x", 900)}
	if app != nil {
		c.ObjectID, c.Roles = app.ObjectID, app.Roles
	}
	t, err := jwt.NewWithClaims(jwt.SigningMethodRS256, c).SignedString(s.keys)
	if err != nil {
		panic(err) // a key of our own, made at the start
	}
	return t
}

// authenticate is what Exchange checks at AUTH. refusal is "" on success.
func (s *Server) authenticate(user, token, where string) (b *mailbox, refusal string) {
	failed := "535 5.7.3 Authentication unsuccessful " + where
	var c accessClaims
	_, err := jwt.NewParser(jwt.WithValidMethods([]string{"RS256"}), jwt.WithExpirationRequired()).
		ParseWithClaims(token, &c, func(*jwt.Token) (any, error) { return s.keys.Public(), nil })
	s.mu.Lock()
	defer s.mu.Unlock()
	app := s.apps[c.AppID]
	b = s.mailboxes[strings.ToLower(user)]
	switch {
	case err != nil || app == nil || b == nil,
		!slices.Contains(c.Audience, audience) && !slices.Contains(c.Audience, "https://outlook.office.com"),
		c.IssuedAt.Before(s.revoked.Truncate(time.Second)),
		c.ObjectID != app.ExchangeID, // New-ServicePrincipal was given another object id
		len(c.Roles) > 0 && !slices.Contains(c.Roles, "SMTP.SendAsApp"),
		!slices.ContainsFunc(app.Mailboxes, func(m string) bool { return strings.EqualFold(m, user) }):
		return nil, failed
	case s.cfg.SMTPAuthDisabled:
		return nil, "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled for more information. " + where
	case b.SMTPAuthDisabled:
		return nil, "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. Visit https://aka.ms/smtp_auth_disabled for more information. " + where
	}
	return b, ""
}
