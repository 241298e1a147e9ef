package exosim

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"pgregory.net/rapid"
)

// post sends a token request and returns status and JSON.
func post(t *testing.T, s *Server, path string, form url.Values) (int, map[string]any) {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CA())
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}, Timeout: 10 * time.Second}
	defer c.CloseIdleConnections()
	res, err := c.PostForm(s.Authority()+path, form)
	if err != nil {
		return 0, nil
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	var m map[string]any
	json.Unmarshal(b, &m)
	return res.StatusCode, m
}

func form(id, secret string, more ...string) url.Values {
	v := url.Values{"grant_type": {"client_credentials"}, "client_id": {id}, "scope": {"https://outlook.office365.com/.default"}}
	if secret != "" {
		v.Set("client_secret", secret)
	}
	for i := 0; i < len(more); i += 2 {
		v.Set(more[i], more[i+1])
	}
	return v
}

const tokenPath = "/contoso.onmicrosoft.com/oauth2/v2.0/token"

func TestTokenEndpoint(t *testing.T) {
	s := startTest(t, func(c *Config) { c.Apps[1].SecretExpires = time.Now().Add(-time.Hour) })
	for _, tc := range []struct {
		name, path string
		form       url.Values
		status     int
		oauth      string
		code       float64
	}{
		{"good", tokenPath, form(app1, "s1"), 200, "", 0},
		{"wrong secret", tokenPath, form(app1, "s2"), 401, "invalid_client", 7000215},
		{"expired secret", tokenPath, form(app2, "s2"), 401, "invalid_client", 7000222},
		{"no secret", tokenPath, form(app1, ""), 401, "invalid_client", 7000218},
		{"unknown app", tokenPath, form("99999999-0000-4000-8000-000000000009", "s1"), 400, "unauthorized_client", 700016},
		{"unknown tenant", "/fabrikam.onmicrosoft.com/oauth2/v2.0/token", form(app1, "s1"), 400, "invalid_request", 90002},
		{"wrong scope", tokenPath, form(app1, "s1", "scope", "https://outlook.office365.com/SMTP.Send"), 400, "invalid_scope", 70011},
		{"unknown resource", tokenPath, form(app1, "s1", "scope", "https://nowhere.example/.default"), 400, "invalid_resource", 500011},
		{"another grant", tokenPath, form(app1, "s1", "grant_type", "password"), 400, "unsupported_grant_type", 70003},
	} {
		status, m := post(t, s, tc.path, tc.form)
		if status != tc.status {
			t.Errorf("%s: status %d, want %d: %v", tc.name, status, tc.status, m)
			continue
		}
		if tc.oauth == "" {
			if m["token_type"] != "Bearer" || m["expires_in"] != 3600.0 || len(m["access_token"].(string)) < 1500 || m["refresh_token"] != nil {
				t.Errorf("%s: %v", tc.name, m)
			}
			continue
		}
		codes, _ := m["error_codes"].([]any)
		if m["error"] != tc.oauth || len(codes) != 1 || codes[0] != tc.code {
			t.Errorf("%s: %v, want %s %v", tc.name, m, tc.oauth, tc.code)
		}
		if d, _ := m["error_description"].(string); !regexp.MustCompile(`^AADSTS\d+: .+ Trace ID: [0-9a-f-]{36} Correlation ID: [0-9a-f-]{36} Timestamp: \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ$`).MatchString(d) {
			t.Errorf("%s: description %q", tc.name, d)
		}
	}
	if n := s.TokenRequests(); n["ok"] != 1 || n["AADSTS7000215"] != 1 {
		t.Errorf("counted %v", n)
	}
}

// certificate makes a key, and a certificate in a file.
func certificate(t *testing.T) (*rsa.PrivateKey, string, []byte) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "app"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "app.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	return key, file, sum[:]
}

func TestAssertions(t *testing.T) {
	key, file, sum := certificate(t)
	other, _, _ := certificate(t)
	s := startTest(t, func(c *Config) { c.Apps[0].Secret, c.Apps[0].CertificateFile = "", file })
	now := time.Now()
	good := func() jwt.MapClaims {
		return jwt.MapClaims{"aud": s.TokenURL(), "iss": app1, "sub": app1, "jti": newGUID(), "nbf": now.Unix(), "iat": now.Unix(), "exp": now.Add(10 * time.Minute).Unix()}
	}
	url64 := base64.RawURLEncoding.EncodeToString(sum)
	used := good()
	for _, tc := range []struct {
		name   string
		method jwt.SigningMethod
		key    *rsa.PrivateKey
		x5t    string
		claims jwt.MapClaims
		code   float64 // 0 is a token
	}{
		{"PS256", jwt.SigningMethodPS256, key, url64, used, 0},
		{"used again", jwt.SigningMethodPS256, key, url64, used, 50013},
		{"RS256", jwt.SigningMethodRS256, key, url64, good(), 0},
		{"thumbprint in padded base64", jwt.SigningMethodPS256, key, base64.StdEncoding.EncodeToString(sum), good(), 0},
		{"another key", jwt.SigningMethodPS256, other, url64, good(), 700027},
		{"another certificate", jwt.SigningMethodPS256, key, "x", good(), 700027},
		{"expired", jwt.SigningMethodPS256, key, url64, with(good(), "exp", now.Add(-time.Minute).Unix()), 700024},
		{"not yet valid", jwt.SigningMethodPS256, key, url64, with(good(), "nbf", now.Add(time.Minute).Unix()), 700024},
		{"another audience", jwt.SigningMethodPS256, key, url64, with(good(), "aud", "https://login.microsoftonline.com"), 50013},
		{"another subject", jwt.SigningMethodPS256, key, url64, with(good(), "sub", app2), 50013},
		{"no id", jwt.SigningMethodPS256, key, url64, with(good(), "jti", ""), 50013},
	} {
		tok := jwt.NewWithClaims(tc.method, tc.claims)
		tok.Header["x5t#S256"] = tc.x5t
		signed, err := tok.SignedString(tc.key)
		if err != nil {
			t.Fatal(err)
		}
		status, m := post(t, s, tokenPath, form(app1, "", "client_assertion_type", assertType, "client_assertion", signed))
		codes, _ := m["error_codes"].([]any)
		if tc.code == 0 && status != 200 || tc.code != 0 && (len(codes) != 1 || codes[0] != tc.code) {
			t.Errorf("%s: status %d, %v, want code %v", tc.name, status, m, tc.code)
		}
	}
}

func with(c jwt.MapClaims, key string, v any) jwt.MapClaims {
	c[key] = v
	return c
}

func TestEntraFaults(t *testing.T) {
	s := startTest(t, nil)
	for _, tc := range []struct {
		name   string
		faults Faults
		status int
	}{
		{"down", Faults{EntraDown: true}, 0}, {"throttled", Faults{EntraStatus: 429, EntraRetry: 7}, 429}, {"trouble", Faults{EntraStatus: 503}, 503}, {"truncated", Faults{EntraTruncated: true}, 200},
	} {
		s.SetFaults(tc.faults)
		status, m := post(t, s, tokenPath, form(app1, "s1"))
		if status != tc.status || m != nil {
			t.Errorf("%s: status %d, %v, want %d and no JSON", tc.name, status, m, tc.status)
		}
	}
}

// TestWorst compares with a count of every window that ends with a message.
func TestWorst(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		begin := time.Unix(1_700_000_000, 0)
		var times []time.Time
		for _, ms := range rapid.SliceOf(rapid.IntRange(0, 5000)).Draw(t, "ms") {
			times = append(times, begin.Add(time.Duration(ms)*time.Millisecond))
		}
		want := 0
		for _, end := range times {
			want = max(want, within(times, time.Second, end))
		}
		if got := worst(slices.Clone(times), time.Second); got != want {
			t.Fatalf("worst %d, want %d of %v", got, want, times)
		}
	})
}

// TestProgram runs exosim as a program: it says where it listens, lists what it saw, and ends when asked.
func TestProgram(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "exosim")
	if out, err := exec.Command("go", "build", "-o", bin, "./cmd/exosim").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	config := filepath.Join(dir, "exosim.yaml")
	os.WriteFile(config, []byte("admin: 127.0.0.1:0\nca_file: "+dir+"/ca.pem\nmailboxes: [{address: erp@contoso.com}]\n"), 0o600)
	cmd := exec.Command(bin, "--config", config)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(stdout).ReadBytes('\n')
	var at map[string]string
	if err := json.Unmarshal(line, &at); err != nil || at["submission"] == "" || !strings.HasPrefix(at["authority"], "https://localhost:") {
		t.Errorf("addresses %s: %v", line, err)
	}
	for path, want := range map[string]string{"/messages": "[]\n", "/tokens": "{}\n"} {
		res, err := http.Get("http://" + at["admin"] + path)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if string(b) != want && string(b) != "null\n" {
			t.Errorf("%s: %s", path, b)
		}
	}
	res, err := http.Get("http://" + at["admin"] + "/mailboxes")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if !bytes.Contains(b, []byte(`"erp@contoso.com":{"accepted":0`)) {
		t.Errorf("/mailboxes: %s", b)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	os.WriteFile(config, []byte("mailbxes: []\n"), 0o600)
	if err := exec.Command(bin, "--config", config).Run(); err == nil || err.(*exec.ExitError).ExitCode() != 78 {
		t.Errorf("an unknown key: %v, want exit code 78", err)
	}
}
