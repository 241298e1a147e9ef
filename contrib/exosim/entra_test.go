package exosim

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// ask sends a token request; basic, if not nil, goes as HTTP Basic.
func ask(t testing.TB, s *Server, path string, form url.Values, basic *url.Userinfo) (*http.Response, []byte, error) {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CA())
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}, Timeout: 10 * time.Second}
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.Authority()+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if basic != nil {
		secret, _ := basic.Password()
		req.SetBasicAuth(basic.Username(), secret)
	}
	res, err := c.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res, b, err
}

// post sends a token request and returns status and JSON.
func post(t testing.TB, s *Server, path string, form url.Values) (int, map[string]any) {
	t.Helper()
	res, b, err := ask(t, s, path, form, nil)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatalf("%v in %q", err, b)
	}
	return res.StatusCode, m
}

// form returns a good request, with members replaced; "" takes one away.
func form(more ...string) url.Values {
	v := url.Values{"grant_type": {"client_credentials"}, "client_id": {app1}, "client_secret": {secret1}, "scope": {"https://outlook.office365.com/.default"}}
	for i := 0; i < len(more); i += 2 {
		if v.Set(more[i], more[i+1]); more[i+1] == "" {
			v.Del(more[i])
		}
	}
	return v
}

const tokenPath = "/contoso.onmicrosoft.com/oauth2/v2.0/token"

func TestTokenRefusals(t *testing.T) {
	s := startTest(t, func(c *Config) {
		c.Apps[1].SecretExpires = time.Now().Add(-time.Hour)
		c.Apps[2].Secret = ""
	})
	for _, tc := range []struct {
		name, path string
		form       url.Values
		status     int
		oauth      string
		code       int
		text       string
	}{
		{"wrong secret", tokenPath, form("client_secret", "other"), 401, "invalid_client", 7000215, "Invalid client secret provided."},
		{"app without secret", tokenPath, form("client_id", app3), 401, "invalid_client", 7000215, "Invalid client secret provided."},
		{"expired secret", tokenPath, form("client_id", app2, "client_secret", "s2"), 401, "invalid_client", 7000222, "The provided client secret keys for app"},
		{"wrong, though expired", tokenPath, form("client_id", app2), 401, "invalid_client", 7000215, "Invalid client secret provided."},
		{"no secret", tokenPath, form("client_secret", ""), 401, "invalid_client", 7000218, "The request body must contain the following parameter: 'client_assertion' or 'client_secret'."},
		{"assertion of no type", tokenPath, form("client_secret", "", "client_assertion", "x"), 401, "invalid_client", 7000218, "The request body must contain"},
		{"unknown app", tokenPath, form("client_id", "99999999-0000-4000-8000-000000000009"), 400, "unauthorized_client", 700016, "Application with identifier '99999999-"},
		{"no app", tokenPath, form("client_id", ""), 400, "unauthorized_client", 700016, "Application with identifier ''"},
		{"unknown tenant", "/fabrikam.onmicrosoft.com/oauth2/v2.0/token", form(), 400, "invalid_request", 90002, "Tenant 'fabrikam.onmicrosoft.com' not found."},
		{"common", "/common/oauth2/v2.0/token", form(), 400, "invalid_request", 9001023, "The grant type is not supported"},
		{"organizations", "/organizations/oauth2/v2.0/token", form(), 400, "invalid_request", 50059, "No tenant-identifying information"},
		{"delegated scope", tokenPath, form("scope", "https://outlook.office365.com/SMTP.Send"), 400, "invalid_scope", 70011, "The provided request must include a 'scope'"},
		{"two scopes", tokenPath, form("scope", "https://outlook.office365.com/.default https://graph.microsoft.com/.default"), 400, "invalid_scope", 70011, "The provided request"},
		{"no scope", tokenPath, form("scope", ""), 400, "invalid_request", 900144, "The request body must contain the following parameter: 'scope'."},
		{"unknown resource", tokenPath, form("scope", "https://smtp.office365.com/.default"), 400, "invalid_resource", 500011, "The resource principal named https://smtp.office365.com was not found"},
		{"another grant", tokenPath, form("grant_type", "password"), 400, "unsupported_grant_type", 70003, "The app requested an unsupported grant type 'password'."},
	} {
		status, m := post(t, s, tc.path, tc.form)
		if codes, _ := m["error_codes"].([]any); status != tc.status || m["error"] != tc.oauth || len(codes) != 1 || codes[0] != float64(tc.code) {
			t.Errorf("%s: status %d, %v, want %d %s %d", tc.name, status, m, tc.status, tc.oauth, tc.code)
		}
		checkErrorBody(t, tc.name, m, tc.code, tc.text)
	}
	if n := s.TokenRequestsByApp(); n[app1]["AADSTS7000215"] != 1 || n[app2]["AADSTS7000222"] != 1 || n["unknown"]["AADSTS700016"] != 2 || s.TokenRequests()["AADSTS7000215"] != 3 {
		t.Errorf("counted %v", n)
	}
}

// checkErrorBody compares with the form that Entra's errors have.
func checkErrorBody(t *testing.T, name string, m map[string]any, code int, text string) {
	t.Helper()
	const guid = `[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`
	const at = `\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ`
	for member, want := range map[string]string{
		"error_description": fmt.Sprintf(`AADSTS%d: %s.*\r\nTrace ID: %s\r\nCorrelation ID: %s\r\nTimestamp: %s`, code, regexp.QuoteMeta(text), guid, guid, at),
		"timestamp":         at, "trace_id": guid, "correlation_id": guid,
		"error_uri": fmt.Sprintf(`https://login\.microsoftonline\.com/error\?code=%d`, code),
	} {
		if got, _ := m[member].(string); !regexp.MustCompile("^" + want + "$").MatchString(got) {
			t.Errorf("%s: %s is %q", name, member, got)
		}
	}
	d, _ := m["error_description"].(string)
	if !strings.Contains(d, fmt.Sprint(m["trace_id"])) || !strings.Contains(d, fmt.Sprint(m["correlation_id"])) {
		t.Errorf("%s: ids differ in %v", name, m)
	}
	if len(m) != 7 {
		t.Errorf("%s: %d members", name, len(m))
	}
}

func TestTokens(t *testing.T) {
	const id = "9a1f7d52-3c4e-4b6a-8d20-6f5e4c3b2a10"
	s := startTest(t, func(c *Config) { c.TokenLife, c.Domains = time.Hour, []string{"contoso.com"} })
	for _, path := range []string{tokenPath, "/contoso.com/oauth2/v2.0/token", "/" + strings.ToUpper(id) + "/oauth2/v2.0/token"} {
		status, m := post(t, s, path, form())
		if status != 200 || len(m) != 4 || m["token_type"] != "Bearer" || m["expires_in"] != 3599.0 || m["ext_expires_in"] != 3599.0 {
			t.Errorf("%s: status %d, %v", path, status, m)
		}
	}
	token := func(app, scope string) jwt.MapClaims {
		_, m := post(t, s, tokenPath, form("client_id", app, "client_secret", map[string]string{app1: secret1, app2: "s2"}[app], "scope", scope))
		text, _ := m["access_token"].(string)
		if len(text) < 1500 || len(text) > 2500 {
			t.Errorf("token of %d bytes", len(text))
		}
		var c jwt.MapClaims
		if _, err := jwt.ParseWithClaims(text, &c, func(*jwt.Token) (any, error) { return s.key.Public(), nil }); err != nil {
			t.Error(err)
		}
		return c
	}
	now := time.Now().Unix()
	rbac := token(app1, "https://outlook.office365.com/.default")
	for k, want := range map[string]any{"aud": "https://outlook.office365.com", "tid": id, "appid": app1, "oid": "o1", "appidacr": "1", "ver": "1.0", "roles": nil, "iss": "https://sts.windows.net/" + id + "/"} {
		if rbac[k] != want {
			t.Errorf("claim %s is %v, want %v", k, rbac[k], want)
		}
	}
	if exp, _ := rbac["exp"].(float64); int64(exp) < now+3590 || int64(exp) > now+3610 {
		t.Errorf("exp is %v, now is %d", rbac["exp"], now)
	}
	if roles := fmt.Sprint(token(app2, "https://outlook.office365.com/.default")["roles"]); roles != "[SMTP.SendAsApp]" {
		t.Errorf("classic: roles %s", roles)
	}
	if graph := token(app2, "https://graph.microsoft.com/.default"); graph["aud"] != "https://graph.microsoft.com" || graph["roles"] != nil {
		t.Errorf("Graph: %v", graph)
	}
	if got := s.TokenRequestsByApp()[app1]; !maps.Equal(got, map[string]int{"ok": 4}) {
		t.Errorf("counted %v", got)
	}
}

// TestTokenIsGood: a token of the endpoint opens the mailbox.
func TestTokenIsGood(t *testing.T) {
	s := startTest(t, nil)
	_, m := post(t, s, tokenPath, form())
	if life, _ := m["expires_in"].(float64); life < 3599 || life > 5399 {
		t.Errorf("expires_in %v, want 60 to 90 minutes", m["expires_in"])
	}
	greet(t, s).want("AUTH XOAUTH2 "+xoauth2("erp@contoso.com", m["access_token"].(string)), authOK)
}

// TestBasic: the secret form-encoded in HTTP Basic (RFC 6749, section 2.3.1).
func TestBasic(t *testing.T) {
	s := startTest(t, nil)
	for _, tc := range []struct {
		secret string
		status int
	}{{url.QueryEscape(secret1), 200}, {"other", 401}} {
		res, b, err := ask(t, s, tokenPath, form("client_id", "", "client_secret", ""), url.UserPassword(app1, tc.secret))
		if err != nil || res.StatusCode != tc.status {
			t.Errorf("%q: %v, %s, want %d", tc.secret, err, b, tc.status)
		}
	}
}

func TestPlainHTTP(t *testing.T) {
	s := startTest(t, func(c *Config) { c.EntraPlain = true })
	if !strings.HasPrefix(s.TokenURL(), "http://localhost:") {
		t.Errorf("token URL %s", s.TokenURL())
	}
	if status, m := post(t, s, tokenPath, form()); status != 200 {
		t.Errorf("status %d, %v", status, m)
	}
	res, err := http.Get(s.TokenURL())
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); res.StatusCode != 400 || !strings.Contains(string(b), "AADSTS900561") {
		t.Errorf("GET: %s", b)
	}
}

// TestSecretRotation: SetApp changes the secret at run time.
func TestSecretRotation(t *testing.T) {
	s := startTest(t, nil)
	s.SetApp(app1, func(a *App) { a.Secret = "new" })
	if status, _ := post(t, s, tokenPath, form()); status != 401 {
		t.Errorf("old secret: status %d", status)
	}
	if status, _ := post(t, s, tokenPath, form("client_secret", "new")); status != 200 {
		t.Errorf("new secret: status %d", status)
	}
}

// certificate makes a key, and a certificate in a file.
func certificate(t *testing.T) (key *rsa.PrivateKey, file string, der []byte) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "app"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	if der, err = x509.CreateCertificate(rand.Reader, c, c, key.Public(), key); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "app.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return key, file, der
}

// thumbprint is the x5t#S256 of a certificate file.
func thumbprint(t *testing.T, file string) string {
	t.Helper()
	list, err := readCertificates(file)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(list[0].Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func TestAssertions(t *testing.T) {
	key, file, der := certificate(t)
	other, _, _ := certificate(t)
	s := startTest(t, func(c *Config) { c.Apps[0].Secret, c.Apps[0].CertificateFile = "", file })
	now := time.Now()
	// claims returns good ones, with members replaced; nil takes one away.
	claims := func(more ...any) jwt.MapClaims {
		c := jwt.MapClaims{"aud": s.TokenURL(), "iss": app1, "sub": app1, "jti": newGUID(), "nbf": now.Unix(), "iat": now.Unix(), "exp": now.Add(10 * time.Minute).Unix()}
		for i := 0; i < len(more); i += 2 {
			if c[more[i].(string)] = more[i+1]; more[i+1] == nil {
				delete(c, more[i].(string))
			}
		}
		return c
	}
	byTenantID := strings.Replace(s.TokenURL(), "contoso.onmicrosoft.com", s.cfg.TenantID, 1)
	sum, old, used := sha256.Sum256(der), sha1.Sum(der), claims()
	url64, std64 := base64.RawURLEncoding.EncodeToString(sum[:]), base64.StdEncoding.EncodeToString(sum[:])
	ps256, rs256 := jwt.SigningMethodPS256, jwt.SigningMethodRS256
	for _, tc := range []struct {
		name   string
		method jwt.SigningMethod
		key    any
		header string
		x5t    string
		claims jwt.MapClaims
		code   float64 // 0 is a token
	}{
		{"PS256", ps256, key, "x5t#S256", url64, used, 0},
		{"used again", ps256, key, "x5t#S256", url64, used, 50013},
		{"RS256", rs256, key, "x5t#S256", url64, claims(), 0},
		{"thumbprint in padded base64", ps256, key, "x5t#S256", std64, claims(), 0},
		{"SHA-1 with RS256", rs256, key, "x5t", base64.RawURLEncoding.EncodeToString(old[:]), claims(), 0},
		{"SHA-1 with PS256", ps256, key, "x5t", base64.RawURLEncoding.EncodeToString(old[:]), claims(), 700027},
		{"tenant id in aud", ps256, key, "x5t#S256", url64, claims("aud", byTenantID), 0},
		{"another key", ps256, other, "x5t#S256", url64, claims(), 700027},
		{"another certificate", ps256, key, "x5t#S256", std64[1:], claims(), 700027},
		{"no thumbprint", ps256, key, "kid", url64, claims(), 700027},
		{"PS512", jwt.SigningMethodPS512, key, "x5t#S256", url64, claims(), 700027},
		{"HMAC with what is public", jwt.SigningMethodHS256, der, "x5t#S256", url64, claims(), 700027},
		{"unsigned", jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, "x5t#S256", url64, claims(), 700027},
		{"expired", ps256, key, "x5t#S256", url64, claims("exp", now.Add(-time.Minute).Unix()), 700024},
		{"not yet valid", ps256, key, "x5t#S256", url64, claims("nbf", now.Add(time.Minute).Unix()), 700024},
		{"without end", ps256, key, "x5t#S256", url64, claims("exp", nil), 50013},
		{"without begin", ps256, key, "x5t#S256", url64, claims("nbf", nil), 50013},
		{"another audience", ps256, key, "x5t#S256", url64, claims("aud", "https://login.microsoftonline.com"), 50013},
		{"no audience", ps256, key, "x5t#S256", url64, claims("aud", nil), 50013},
		{"another subject", ps256, key, "x5t#S256", url64, claims("sub", app2), 700021},
		{"another issuer", ps256, key, "x5t#S256", url64, claims("iss", app2), 700021},
		{"no id", ps256, key, "x5t#S256", url64, claims("jti", nil), 50013},
	} {
		tok := jwt.NewWithClaims(tc.method, tc.claims)
		tok.Header[tc.header] = tc.x5t
		signed, err := tok.SignedString(tc.key)
		if err != nil {
			t.Fatal(err)
		}
		status, m := post(t, s, tokenPath, form("client_secret", "", "client_assertion_type", assertionType, "client_assertion", signed))
		codes, _ := m["error_codes"].([]any)
		if tc.code == 0 && status != 200 || tc.code != 0 && (status != 401 || m["error"] != "invalid_client" || len(codes) != 1 || codes[0] != tc.code) {
			t.Errorf("%s: status %d, %v, want code %v", tc.name, status, m, tc.code)
		}
	}
	if _, m := post(t, s, tokenPath, form("client_secret", "", "client_assertion_type", assertionType, "client_assertion", "x.y")); !strings.Contains(fmt.Sprint(m), "AADSTS50012") {
		t.Errorf("no JWT: %v", m)
	}
}

func TestEntraFaults(t *testing.T) {
	s := startTest(t, func(c *Config) { c.TokenLife = time.Hour })
	for _, tc := range []struct {
		name   string
		faults Faults
		status int // 0 is no answer
		retry  string
		body   string // its beginning
	}{
		{"down", Faults{EntraDown: true}, 0, "", ""},
		{"throttled", Faults{EntraStatus: 429, EntraRetry: 7}, 429, "7", "<!DOCTYPE html>"},
		{"trouble", Faults{EntraStatus: 503}, 503, "", "<!DOCTYPE html>"},
		{"HTML", Faults{EntraStatus: 200}, 200, "", "<!DOCTYPE html>"},
		{"truncated", Faults{EntraTruncated: true}, 200, "", `{"access_token":"`},
		{"expiry as text", Faults{EntraStringExpiry: true}, 200, "", `{"access_token":"`},
	} {
		setFaults(t, s, tc.faults)
		res, b, err := ask(t, s, tokenPath, form(), nil)
		if tc.status == 0 {
			if err == nil || errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s: %v, want a connection that ends", tc.name, err)
			}
			continue
		}
		if err != nil || res.StatusCode != tc.status || res.Header.Get("Retry-After") != tc.retry || !strings.HasPrefix(string(b), tc.body) {
			t.Errorf("%s: %v, %+v, %.60s", tc.name, err, res, b)
		}
		if got := json.Valid(b); got != tc.faults.EntraStringExpiry {
			t.Errorf("%s: JSON is valid: %v", tc.name, got)
		}
		if tc.faults.EntraStringExpiry && !strings.Contains(string(b), `"expires_in":"3599"`) {
			t.Errorf("%s: %.60s", tc.name, b)
		}
	}
	if n := s.TokenRequests(); n["fault"] != 4 || n["ok"] != 2 {
		t.Errorf("counted %v", n)
	}
}

// TestEntraRefuses: the port is closed, and the same one comes back.
func TestEntraRefuses(t *testing.T) {
	s := startTest(t, nil)
	before := s.Authority()
	for range 2 { // twice off is off
		setFaults(t, s, Faults{EntraRefuse: true})
	}
	if _, _, err := ask(t, s, tokenPath, form(), nil); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("off: %v", err)
	}
	setFaults(t, s, Faults{})
	if status, _ := post(t, s, tokenPath, form()); status != 200 || s.Authority() != before {
		t.Errorf("on again: status %d at %s, was at %s", status, s.Authority(), before)
	}
}

func TestEntraSlow(t *testing.T) {
	const slow = 30 * time.Millisecond
	s := startTest(t, nil)
	setFaults(t, s, Faults{EntraDelay: slow})
	begin := time.Now()
	if status, _ := post(t, s, tokenPath, form()); status != 200 || time.Since(begin) < slow {
		t.Errorf("status %d after %v", status, time.Since(begin))
	}
}
