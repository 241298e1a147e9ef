package entra

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
)

func TestTokenRefusals(t *testing.T) {
	s := startTest(t, func(c *siteConfig) {
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
		{"wrong secret", visitor.TokenPath, visitor.Form("client_secret", "other"), 401, "invalid_client", 7000215, "Invalid client secret provided."},
		{"app without secret", visitor.TokenPath, visitor.Form("client_id", app3), 401, "invalid_client", 7000215, "Invalid client secret provided."},
		{"expired secret", visitor.TokenPath, visitor.Form("client_id", app2, "client_secret", "s2"), 401, "invalid_client", 7000222, "The provided client secret keys for app"},
		{"wrong, though expired", visitor.TokenPath, visitor.Form("client_id", app2), 401, "invalid_client", 7000215, "Invalid client secret provided."},
		{"no secret", visitor.TokenPath, visitor.Form("client_secret", ""), 401, "invalid_client", 7000218, "The request body must contain the following parameter: 'client_assertion' or 'client_secret'."},
		{"assertion of no type", visitor.TokenPath, visitor.Form("client_secret", "", "client_assertion", "x"), 401, "invalid_client", 7000218, "The request body must contain"},
		{"unknown app", visitor.TokenPath, visitor.Form("client_id", "99999999-0000-4000-8000-000000000009"), 400, "unauthorized_client", 700016, "Application with identifier '99999999-"},
		{"no app", visitor.TokenPath, visitor.Form("client_id", ""), 400, "unauthorized_client", 700016, "Application with identifier ''"},
		{"unknown tenant", "/fabrikam.onmicrosoft.com/oauth2/v2.0/token", visitor.Form(), 400, "invalid_request", 90002, "Tenant 'fabrikam.onmicrosoft.com' not found."},
		{"common", "/common/oauth2/v2.0/token", visitor.Form(), 400, "invalid_request", 9001023, "The grant type is not supported"},
		{"organizations", "/organizations/oauth2/v2.0/token", visitor.Form(), 400, "invalid_request", 50059, "No tenant-identifying information"},
		{"delegated scope", visitor.TokenPath, visitor.Form("scope", "https://outlook.office365.com/SMTP.Send"), 400, "invalid_scope", 70011, "The provided request must include a 'scope'"},
		{"two scopes", visitor.TokenPath, visitor.Form("scope", "https://outlook.office365.com/.default https://graph.microsoft.com/.default"), 400, "invalid_scope", 70011, "The provided request"},
		{"no scope", visitor.TokenPath, visitor.Form("scope", ""), 400, "invalid_request", 900144, "The request body must contain the following parameter: 'scope'."},
		{"unknown resource", visitor.TokenPath, visitor.Form("scope", "https://smtp.office365.com/.default"), 400, "invalid_resource", 500011, "The resource principal named https://smtp.office365.com was not found"},
		{"another grant", visitor.TokenPath, visitor.Form("grant_type", "password"), 400, "unsupported_grant_type", 70003, "The app requested an unsupported grant type 'password'."},
	} {
		status, m := visitor.Post(t, s, tc.path, tc.form)
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
	s := startTest(t, func(c *siteConfig) { c.TokenLife, c.Domains = time.Hour, []string{"contoso.com"} })
	for _, path := range []string{visitor.TokenPath, "/contoso.com/oauth2/v2.0/token", "/" + strings.ToUpper(id) + "/oauth2/v2.0/token"} {
		status, m := visitor.Post(t, s, path, visitor.Form())
		if status != 200 || len(m) != 4 || m["token_type"] != "Bearer" || m["expires_in"] != 3599.0 || m["ext_expires_in"] != 3599.0 {
			t.Errorf("%s: status %d, %v", path, status, m)
		}
	}
	token := func(app, scope string) jwt.MapClaims {
		_, m := visitor.Post(t, s, visitor.TokenPath, visitor.Form("client_id", app, "client_secret", map[string]string{app1: secret1, app2: "s2"}[app], "scope", scope))
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
	_, m := visitor.Post(t, s, visitor.TokenPath, visitor.Form())
	if life, _ := m["expires_in"].(float64); life < 3599 || life > 5399 {
		t.Errorf("expires_in %v, want 60 to 90 minutes", m["expires_in"])
	}
	if why := s.opens("erp@contoso.com", m["access_token"].(string)); why != "" {
		t.Errorf("the token opens no mailbox: %s", why)
	}
}

// TestBasic: the secret form-encoded in HTTP Basic (RFC 6749, section 2.3.1).
func TestBasic(t *testing.T) {
	s := startTest(t, nil)
	for _, tc := range []struct {
		secret string
		status int
	}{{url.QueryEscape(secret1), 200}, {"other", 401}} {
		res, b, err := visitor.Ask(t, s, visitor.TokenPath, visitor.Form("client_id", "", "client_secret", ""), url.UserPassword(app1, tc.secret))
		if err != nil || res.StatusCode != tc.status {
			t.Errorf("%q: %v, %s, want %d", tc.secret, err, b, tc.status)
		}
	}
}

// TestSecretRotation: SetApp changes the secret at run time.
func TestSecretRotation(t *testing.T) {
	s := startTest(t, nil)
	s.SetApp(app1, func(a *directory.App) { a.Secret = "new" })
	if status, _ := visitor.Post(t, s, visitor.TokenPath, visitor.Form()); status != 401 {
		t.Errorf("old secret: status %d", status)
	}
	if status, _ := visitor.Post(t, s, visitor.TokenPath, visitor.Form("client_secret", "new")); status != 200 {
		t.Errorf("new secret: status %d", status)
	}
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
	key, file, der := visitor.Certificate(t)
	other, _, _ := visitor.Certificate(t)
	s := startTest(t, func(c *siteConfig) { c.Apps[0].Secret, c.Apps[0].CertificateFile = "", file })
	now := time.Now()
	// claims returns good ones, with members replaced; nil takes one away.
	claims := func(more ...any) jwt.MapClaims {
		c := jwt.MapClaims{"aud": s.TokenURL(), "iss": app1, "sub": app1, "jti": directory.NewGUID(), "nbf": now.Unix(), "iat": now.Unix(), "exp": now.Add(10 * time.Minute).Unix()}
		for i := 0; i < len(more); i += 2 {
			if c[more[i].(string)] = more[i+1]; more[i+1] == nil {
				delete(c, more[i].(string))
			}
		}
		return c
	}
	byTenantID := strings.Replace(s.TokenURL(), "contoso.onmicrosoft.com", s.ID(), 1)
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
		status, m := visitor.Post(t, s, visitor.TokenPath, visitor.Form("client_secret", "", "client_assertion_type", assertionType, "client_assertion", signed))
		codes, _ := m["error_codes"].([]any)
		if tc.code == 0 && status != 200 || tc.code != 0 && (status != 401 || m["error"] != "invalid_client" || len(codes) != 1 || codes[0] != tc.code) {
			t.Errorf("%s: status %d, %v, want code %v", tc.name, status, m, tc.code)
		}
	}
	if _, m := visitor.Post(t, s, visitor.TokenPath, visitor.Form("client_secret", "", "client_assertion_type", assertionType, "client_assertion", "x.y")); !strings.Contains(fmt.Sprint(m), "AADSTS50012") {
		t.Errorf("no JWT: %v", m)
	}
}

func TestEntraFaults(t *testing.T) {
	s := startTest(t, func(c *siteConfig) { c.TokenLife = time.Hour })
	for _, tc := range []struct {
		name   string
		faults Faults
		status int // 0 is no answer
		retry  string
		body   string // its beginning
	}{
		{"down", Faults{Down: true}, 0, "", ""},
		{"throttled", Faults{Status: 429, Retry: 7}, 429, "7", "<!DOCTYPE html>"},
		{"trouble", Faults{Status: 503}, 503, "", "<!DOCTYPE html>"},
		{"HTML", Faults{Status: 200}, 200, "", "<!DOCTYPE html>"},
		{"truncated", Faults{Truncated: true}, 200, "", `{"access_token":"`},
		{"expiry as text", Faults{StringExpiry: true}, 200, "", `{"access_token":"`},
	} {
		setFaults(t, s, tc.faults)
		res, b, err := visitor.Ask(t, s, visitor.TokenPath, visitor.Form(), nil)
		if tc.status == 0 {
			if err == nil || errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s: %v, want a connection that ends", tc.name, err)
			}
			continue
		}
		if err != nil || res.StatusCode != tc.status || res.Header.Get("Retry-After") != tc.retry || !strings.HasPrefix(string(b), tc.body) {
			t.Errorf("%s: %v, %+v, %.60s", tc.name, err, res, b)
		}
		if got := json.Valid(b); got != tc.faults.StringExpiry {
			t.Errorf("%s: JSON is valid: %v", tc.name, got)
		}
		if tc.faults.StringExpiry && !strings.Contains(string(b), `"expires_in":"3599"`) {
			t.Errorf("%s: %.60s", tc.name, b)
		}
	}
	if n := s.TokenRequests(); n["fault"] != 4 || n["ok"] != 2 {
		t.Errorf("counted %v", n)
	}
}

func TestEntraSlow(t *testing.T) {
	const slow = 30 * time.Millisecond
	s := startTest(t, nil)
	setFaults(t, s, Faults{Delay: slow})
	begin := time.Now()
	if status, _ := visitor.Post(t, s, visitor.TokenPath, visitor.Form()); status != 200 || time.Since(begin) < slow {
		t.Errorf("status %d after %v", status, time.Since(begin))
	}
}
