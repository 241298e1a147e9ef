package visitor

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// WantRefusal compares an answer with a code, or with the error if it has none.
func WantRefusal(t testing.TB, name string, status int, m map[string]any, oauth string, code int) {
	t.Helper()
	want := 400
	if oauth == "invalid_client" {
		want = 401
	}
	codes, _ := m["error_codes"].([]any)
	if status != want || m["error"] != oauth || (code != 0) != (len(codes) == 1) || code != 0 && codes[0] != float64(code) {
		t.Errorf("%s: status %d, %v, want %d %s %d", name, status, m, want, oauth, code)
	}
	if d, _ := m["error_description"].(string); code != 0 && !strings.HasPrefix(d, fmt.Sprintf("AADSTS%d: ", code)) || !strings.Contains(d, "\r\nTrace ID: ") || strings.Contains(d, "{") {
		t.Errorf("%s: description %q", name, d)
	}
}

const Verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk" // RFC 7636, appendix B

// Challenge is that of RFC 7636, appendix B, for the verifier.
const Challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"

func AuthorizeQuery(more ...string) url.Values {
	return With(Values("client_id", App5, "response_type", "code", "redirect_uri", "http://localhost:40123/", "response_mode", "query",
		"scope", SignInScope, "state", "s t&te", "code_challenge", Challenge, "code_challenge_method", "S256"), more...)
}

// Open asks for the page as a browser does, and returns where it is sent.
func Open(t testing.TB, s Host, tenant string, v url.Values) (status int, target *url.URL) {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CA())
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}, Timeout: 10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	defer c.CloseIdleConnections()
	res, err := c.Get(s.Authority() + "/" + tenant + "/oauth2/v2.0/authorize?" + v.Encode())
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	target, err = url.Parse(res.Header.Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, target
}

// NewCode signs somebody in with a browser.
func NewCode(t testing.TB, s Host, more ...string) string {
	t.Helper()
	status, to := Open(t, s, "contoso.onmicrosoft.com", AuthorizeQuery(more...))
	if status != 302 || to.Query().Get("code") == "" {
		t.Fatalf("status %d to %v", status, to)
	}
	return to.Query().Get("code")
}

func CodeForm(code string, more ...string) url.Values {
	return With(Values("grant_type", "authorization_code", "client_id", App5, "code", code, "redirect_uri", "http://localhost:40123/", "code_verifier", Verifier), more...)
}

// Certificate makes a key, and a certificate in a file.
func Certificate(t testing.TB) (key *rsa.PrivateKey, file string, der []byte) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "app"}, NotBefore: time.Now(), NotAfter: time.Now().Add(48 * time.Hour)}
	if der, err = x509.CreateCertificate(rand.Reader, c, c, key.Public(), key); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "app.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return key, file, der
}

const (
	Subject = "system:serviceaccount:mail:relay"
	Issuer  = "https://oidc.contoso.com/"
)

func FederatedForm(token string, more ...string) url.Values {
	return With(Values("grant_type", "client_credentials", "client_id", App1, "scope", "https://outlook.office365.com/.default",
		"client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion", token), more...)
}
