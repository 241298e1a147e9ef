package entra

import (
	"context"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode"

	"golang.org/x/oauth2"
)

const (
	testClientID = "5f2c0d3e-0000-4000-8000-000000000001"
	testScope    = "https://outlook.office365.com/.default"
	testPath     = "/contoso.onmicrosoft.com/oauth2/v2.0/token"
	hardSecret   = `jXo8Q~x+y/z&a%20b=c;d"e'f<g>\h?i#`
	goodAnswer   = `{"token_type":"Bearer","expires_in":3599,"ext_expires_in":3599,"access_token":"eyJ0eXAiOiJKV1Qi.e30.c2ln"}`
)

// testNow is what the clock says when a test's credentials ask.
var testNow = time.Date(2026, 11, 21, 4, 0, 0, 0, time.UTC)

// testEntra starts a token endpoint and returns credentials that ask it.
func testEntra(t *testing.T, h http.HandlerFunc) *ClientCredentials {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", testNow.Format(http.TimeFormat))
		h(w, r)
	}))
	t.Cleanup(srv.Close)
	return &ClientCredentials{
		Credential: "relay-app",
		TokenURL:   srv.URL + testPath,
		ClientID:   testClientID,
		Scope:      testScope,
		SecretFile: writeFile(t, "secret", hardSecret+"\n", 0o600),
		Client:     testClient(t),
		now:        func() time.Time { return testNow },
	}
}

func testClient(t *testing.T) *http.Client {
	t.Helper()
	c, err := NewHTTPClient(HTTPOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// answer makes a handler that always says the same.
func answer(status int, contentType, body string, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

func TestSecretRequest(t *testing.T) {
	var got string
	c := testEntra(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = fmt.Sprintf("%s %s\n%s\nAuthorization: %s\n%s", r.Method, r.URL, r.Header.Get("Content-Type"), r.Header.Get("Authorization"), body)
		answer(200, "application/json; charset=utf-8", goodAnswer)(w, r)
	})
	tok, err := c.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := "POST " + testPath + "\napplication/x-www-form-urlencoded\nAuthorization: \n" +
		"client_id=" + testClientID +
		"&client_secret=jXo8Q~x%2By%2Fz%26a%2520b%3Dc%3Bd%22e%27f%3Cg%3E%5Ch%3Fi%23" +
		"&grant_type=client_credentials&scope=https%3A%2F%2Foutlook.office365.com%2F.default"
	if got != want {
		t.Errorf("request:\n%s\nwant:\n%s", got, want)
	}
	if string(tok.Access) != "eyJ0eXAiOiJKV1Qi.e30.c2ln" || !tok.Expires.Equal(testNow.Add(3599*time.Second)) || !tok.RefreshAt.IsZero() {
		t.Errorf("token = %q, %v, %v, want it with its end 3599 s after the request and no RefreshAt", string(tok.Access), tok.Expires, tok.RefreshAt)
	}
}

func TestCertificateRequest(t *testing.T) {
	var form url.Values
	c := testEntra(t, func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		form = r.PostForm
		answer(200, "application/json", goodAnswer)(w, r)
	})
	cert := certPEM(t, firstKey(), testNow.Add(-time.Hour), testNow.Add(time.Hour))
	c.SecretFile, c.CertificateFile, c.KeyFile = "", writeFile(t, "c.pem", cert, 0o644), writeFile(t, "k.pem", pkcs8(t, firstKey()), 0o600)
	if _, err := c.Token(t.Context()); err != nil {
		t.Fatal(err)
	}
	claims := parseAssertion(t, form.Get("client_assertion"), cert, testNow)
	if claims["aud"] != c.TokenURL || claims["iss"] != testClientID {
		t.Errorf("assertion claims = %v, want aud %s and iss %s", claims, c.TokenURL, testClientID)
	}
	for k, want := range map[string]string{
		"grant_type": "client_credentials", "client_id": testClientID, "scope": testScope, "client_secret": "",
		"client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
	} {
		if got := form.Get(k); got != want {
			t.Errorf("form %s = %q, want %q", k, got, want)
		}
	}
	if len(form) != 5 || form.Has("client_secret") {
		t.Errorf("form = %d fields, want the five of certificate credentials", len(form))
	}
}

func TestFilesAreReadForEveryRequest(t *testing.T) {
	var secret string
	c := testEntra(t, func(w http.ResponseWriter, r *http.Request) {
		secret = r.PostFormValue("client_secret")
		answer(200, "application/json", goodAnswer)(w, r)
	})
	for _, want := range []string{"first", "second"} {
		if err := os.WriteFile(c.SecretFile, []byte(want+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Token(t.Context()); err != nil || secret != want {
			t.Errorf("secret sent = %q (%v), want %q", secret, err, want)
		}
	}
	if err := os.Remove(c.SecretFile); err != nil {
		t.Fatal(err)
	}
	_, err := c.Token(t.Context())
	want := fmt.Sprintf("preparing the client credentials of \"relay-app\": file %q does not exist: create it, or correct its name in the configuration", c.SecretFile)
	if err == nil || err.Error() != want {
		t.Errorf("without the file: %v\nwant: %s", err, want)
	}
	if _, ok := errors.AsType[*FileError](err); !ok {
		t.Errorf("without the file: %T, want a *FileError inside", err)
	}
}

// A certificate that is replaced counts from the next request on, and so does its end.
func TestCertificateIsReadForEveryRequest(t *testing.T) {
	var assertion string
	c := testEntra(t, func(w http.ResponseWriter, r *http.Request) {
		assertion = r.PostFormValue("client_assertion")
		answer(200, "application/json", goodAnswer)(w, r)
	})
	c.CertificateFile = filepath.Join(t.TempDir(), "app.pem")
	for _, key := range []*rsa.PrivateKey{firstKey(), secondKey()} {
		cert := certPEM(t, key, testNow.Add(-time.Hour), testNow.Add(time.Hour))
		if err := os.WriteFile(c.CertificateFile, []byte(cert+pkcs8(t, key)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Token(t.Context()); err != nil {
			t.Fatal(err)
		}
		parseAssertion(t, assertion, cert, testNow)
	}
	c.now = func() time.Time { return testNow.Add(2 * time.Hour) }
	if _, err := c.Token(t.Context()); err == nil || !strings.Contains(err.Error(), "has a certificate that expired on") {
		t.Errorf("when the certificate has ended: %v, want that it has", err)
	}
}

func TestFederatedRequest(t *testing.T) {
	var form url.Values
	c := testEntra(t, func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		form = r.PostForm
		answer(200, "application/json", goodAnswer)(w, r)
	})
	c.SecretFile, c.FederatedTokenFile = "", filepath.Join(t.TempDir(), "azure-identity-token")
	// Renewed about hourly: every request must carry the newest.
	for _, exp := range []string{`,"exp":1795233900`, `,"exp":1795237500`} {
		if err := os.WriteFile(c.FederatedTokenFile, []byte(federatedToken(exp)), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Token(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := url.Values{
			"grant_type": {"client_credentials"}, "client_id": {testClientID}, "scope": {testScope}, "client_assertion": {federatedToken(exp)},
			"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
		}
		if !reflect.DeepEqual(form, want) {
			t.Errorf("form = %v, want %v", form, want)
		}
	}
	c.now = func() time.Time { return testNow.Add(2 * time.Hour) }
	_, err := c.Token(t.Context())
	want := fmt.Sprintf("preparing the client credentials of \"relay-app\": file %q is stale, its token expired on 2026-11-21 05:05 UTC", c.FederatedTokenFile)
	if _, ok := errors.AsType[*FileError](err); !ok || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("with a stale file: %v\nwant a *FileError: %s", err, want)
	}
}

// The same code asks for something else when the proof is another issuer's token.
func TestFederatedRefusals(t *testing.T) {
	for _, tc := range []struct {
		text, hint string
		code       int
	}{
		{"AADSTS700024: Client assertion is not within its valid time range.", "outside its valid time; see that whoever writes the file renews it", 700024},
		{"AADSTS700027: The certificate with identifier used to sign the client assertion is not registered on application.", "publish its keys", 700027},
		{"AADSTS70021: No matching federated identity record found for presented assertion. Assertion Issuer: 'https://kubernetes.default.svc.cluster.local'.", "Federated credentials", 70021},
		{"AADSTS700212: No matching federated identity record found for presented assertion audience 'api://x'.", "api://AzureADTokenExchange", 700212},
		{"AADSTS700213: No matching federated identity record found for presented assertion subject 'system:serviceaccount:x:y'.", "upper and lower case", 700213},
	} {
		c := testEntra(t, answer(401, "application/json", fmt.Sprintf(`{"error":"invalid_client","error_description":%q,"error_codes":[%d]}`, tc.text, tc.code)))
		c.SecretFile, c.FederatedTokenFile = "", writeFile(t, "token", federatedToken(""), 0o644)
		_, err := c.Token(t.Context())
		e, ok := errors.AsType[*RefusedError](err)
		if !ok || !e.Federated || !strings.Contains(e.Hint(), tc.hint) || strings.Contains(e.Hint(), "upload the certificate") || e.Temporary() {
			t.Errorf("%d: %v\nhint: %s\nwant %q in it", tc.code, err, e.Hint(), tc.hint)
		}
	}
}

func TestClockSkew(t *testing.T) {
	const refusal = `{"error":"invalid_client","error_description":"AADSTS700024: Client assertion is not within its valid time range.","error_codes":[700024]}`
	for _, tc := range []struct {
		date string
		want time.Duration // how far we are ahead
		hint string
	}{
		{"Sat, 21 Nov 2026 04:00:00 GMT", 0, ""},
		{"Sat, 21 Nov 2026 04:01:30 GMT", -90 * time.Second, ""}, // nothing to speak of
		{"Sat, 21 Nov 2026 04:07:00 GMT", -7 * time.Minute, "this machine's clock is 7m0s behind Microsoft's"},
		{"Sat, 21 Nov 2026 02:59:59 GMT", time.Hour, "this machine's clock is 1h0m0s ahead of Microsoft's"},
		{"", 0, ""},
	} {
		c := testEntra(t, answer(200, "application/json", goodAnswer, "Date", tc.date))
		if tok, err := c.Token(t.Context()); err != nil || tok.Skew != tc.want || !tok.Expires.Equal(testNow.Add(3599*time.Second)) {
			t.Errorf("Date: %s: token %+v, %v, want Skew %v and the end by our clock", tc.date, tok, err, tc.want)
		}
		_, err := testEntra(t, answer(401, "application/json", refusal, "Date", tc.date)).Token(t.Context())
		e, ok := errors.AsType[*RefusedError](err)
		if !ok || e.Skew != tc.want || !strings.HasSuffix(e.Hint(), tc.hint) || strings.Contains(e.Hint(), "Microsoft's") != (tc.hint != "") {
			t.Errorf("Date: %s: %v\nhint: %s\nwant Skew %v and %q at the end", tc.date, err, e.Hint(), tc.want, tc.hint)
		}
	}
}

func TestAnswers(t *testing.T) {
	at := func(d time.Duration) time.Time { return testNow.Add(d) }
	for _, tc := range []struct {
		body               string
		expires, refreshAt time.Time
	}{
		{`{"token_type":"Bearer","expires_in":"3599","access_token":"a"}`, at(3599 * time.Second), time.Time{}},
		{`{"token_type":"bearer","expires_in":86400,"refresh_in":43200,"access_token":"a"}`, at(24 * time.Hour), at(12 * time.Hour)},
		{`{"token_type":"Bearer","expires_in":86400,"refresh_in":"43200","access_token":"a"}`, at(24 * time.Hour), at(12 * time.Hour)},
		{`{"token_type":"Bearer","expires_in":3600,"refresh_in":0,"access_token":"a"}`, at(time.Hour), time.Time{}},
		{`{"token_type":"Bearer","expires_in":3600,"refresh_in":-5,"access_token":"a"}`, at(time.Hour), time.Time{}},
		{`{"token_type":"Bearer","expires_in":3600,"refresh_in":3600,"access_token":"a"}`, at(time.Hour), time.Time{}}, // no use
		{`{"token_type":"Bearer","expires_in":3600,"refresh_in":"soon","access_token":"a"}`, at(time.Hour), time.Time{}},
		{`{"token_type":"Bearer","expires_in":3600,"refresh_in":"NaN","access_token":"a"}`, at(time.Hour), time.Time{}},
		{`{"expires_in":3600,"access_token":"a"}`, at(time.Hour), time.Time{}},
		{`{"expires_in":99999999999999,"access_token":"a"}`, at(maxLife), time.Time{}},
	} {
		tok, err := testEntra(t, answer(200, "application/json", tc.body)).Token(t.Context())
		if err != nil || !tok.Expires.Equal(tc.expires) || !tok.RefreshAt.Equal(tc.refreshAt) {
			t.Errorf("answer %s: %+v, %v, want expires %v, refresh at %v", tc.body, tok, err, tc.expires, tc.refreshAt)
		}
	}
}

func TestUnusableAnswers(t *testing.T) {
	const said = `asking for a token of "relay-app": 127.0.0.1`
	big := goodAnswer[:len(goodAnswer)-1] + `,"x":"` + strings.Repeat("x", 1<<20) + `"}`
	for _, tc := range []struct {
		name string
		h    http.HandlerFunc
		want string
		wait time.Duration
	}{
		{"HTML 200", answer(200, "text/html", "<html>hello"), "answered with something that is not the JSON of a token", 0},
		{"truncated", answer(200, "application/json", goodAnswer[:40]), "answered with an answer that is cut off", 0},
		{"empty", answer(200, "application/json", ""), "answered with an answer that is cut off", 0},
		{"broken off", answer(200, "application/json", goodAnswer, "Content-Length", "900"), "answered with an answer that broke off: unexpected EOF", 0},
		{"too long", answer(200, "application/json", big), "answered with an answer that broke off: the answer is longer than 1 MiB", 0},
		{"plain text", answer(200, "text/plain", "it works"), "answered with an answer without a token", 0},
		{"no token", answer(200, "application/json", `{"expires_in":3599}`), "answered with an answer without a token", 0},
		{"no life", answer(200, "application/json", `{"access_token":"a"}`), "answered with a token without its life (expires_in)", 0},
		{"no life left", answer(200, "application/json", `{"access_token":"a","expires_in":0}`), "answered with a token without its life (expires_in)", 0},
		{"negative life", answer(200, "application/json", `{"access_token":"a","expires_in":-1}`), "answered with a token without its life (expires_in)", 0},
		{"odd type", answer(200, "application/json", `{"access_token":"a","expires_in":9,"token_type":"mac"}`), "answered with a token that is not a bearer token", 0},
		{"line end in token", answer(200, "application/json", `{"access_token":"a\nOK x","expires_in":3599}`), "answered with a token with bytes that no token has", 0},
		{"502", answer(502, "text/html", "<html><head><title>Bad\r\n Gateway</title>"), `answered with HTTP 502 and a web page titled "Bad Gateway"`, 0},
		{"503", answer(503, "application/json", "{}", "Retry-After", "120"), "answered with HTTP 503 and no OAuth answer in it", 2 * time.Minute},
		{"503 date", answer(503, "", "", "Retry-After", testNow.Add(time.Minute).Format(http.TimeFormat)), "answered with HTTP 503 and nothing in it", time.Minute},
		{"429", answer(429, "text/plain", "slow", "Retry-After", "-7"), "answered with HTTP 429 and no OAuth answer in it", 0},
		{"403 of a proxy", answer(403, "text/html", "<TITLE lang=en>Zscaler &amp; you\x1b[31m</TITLE>"), `answered with HTTP 403 and a web page titled "Zscaler & you[31m"`, 0},
		{"redirect", answer(307, "text/html", "x", "Location", "https://portal.example.net/login?x=1"), `answered with HTTP 307 and a redirect to "portal.example.net", which is not followed`, 0},
		{"odd error", answer(400, "application/json", `{"error":{"code":"x"}}`), "answered with HTTP 400 and no OAuth answer in it", 0},
	} {
		_, err := testEntra(t, tc.h).Token(t.Context())
		e, ok := errors.AsType[*UnreachableError](err)
		if !ok || !e.Temporary() || !strings.HasPrefix(err.Error(), said) || !strings.HasSuffix(err.Error(), tc.want) {
			t.Errorf("%s: %v\nwant an *UnreachableError: %s… %s", tc.name, err, said, tc.want)
			continue
		}
		if e.RetryAfter != tc.wait {
			t.Errorf("%s: RetryAfter = %v, want %v", tc.name, e.RetryAfter, tc.wait)
		}
		if e.Hint() == "" || strings.Contains(e.Hint(), "{") {
			t.Errorf("%s: hint %q", tc.name, e.Hint())
		}
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	var followed atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed.Add(1) }))
	defer other.Close()
	c := testEntra(t, answer(307, "text/plain", "", "Location", other.URL))
	c.Client = &http.Client{} // which would follow
	if _, err := c.Token(t.Context()); err == nil || followed.Load() != 0 {
		t.Errorf("after a redirect: error %v, %d requests elsewhere, want an error and none", err, followed.Load())
	}
}

func TestNetworkErrors(t *testing.T) {
	closed := httptest.NewServer(nil)
	closed.Close()
	tlsServer := httptest.NewUnstartedServer(answer(200, "application/json", goodAnswer))
	tlsServer.Config.ErrorLog = log.New(io.Discard, "", 0) // the handshake fails on purpose
	tlsServer.StartTLS()
	defer tlsServer.Close()
	hangUp := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) }))
	defer hangUp.Close()
	for _, tc := range []struct{ name, url, want, hint string }{
		{"refused", closed.URL, "gave no answer: dial tcp 127.0.0.1:", "firewall"},
		{"unknown CA", tlsServer.URL, "x509: certificate signed by unknown authority", "tenant.endpoints.ca_file"},
		{"hung up", hangUp.URL, "gave no answer: EOF", "sendas doctor"},
	} {
		c := testEntra(t, nil)
		c.TokenURL = tc.url + testPath
		_, err := c.Token(t.Context())
		e, ok := errors.AsType[*UnreachableError](err)
		if !ok || !strings.Contains(err.Error(), tc.want) || !strings.Contains(e.Hint(), tc.hint) {
			t.Errorf("%s: %v\nhint: %s\nwant %q and in the hint %q", tc.name, err, e.Hint(), tc.want, tc.hint)
		}
		if strings.Contains(err.Error(), testPath) || strings.Contains(err.Error(), "jXo8") {
			t.Errorf("%s: %v, want neither URL nor secret in it", tc.name, err)
		}
	}
}

// TestSlow: a server that takes the connection and does not answer is slow; one that nothing reaches
// is behind a firewall.
func TestSlow(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	slow := func(http.ResponseWriter, *http.Request) { <-release }
	for _, tc := range []struct {
		name   string
		change func(*http.Transport, *http.Client)
		want   string
	}{
		{"no header", func(tr *http.Transport, _ *http.Client) { tr.ResponseHeaderTimeout = 50 * time.Millisecond }, "is slow for the moment"},
		{"no answer at all", func(_ *http.Transport, c *http.Client) { c.Timeout = 200 * time.Millisecond }, "is slow for the moment"},
		{"no connection", func(tr *http.Transport, _ *http.Client) {
			tr.DialContext = (&net.Dialer{Timeout: time.Nanosecond}).DialContext
		}, "port 443 of 127.0.0.1"},
	} {
		c := testEntra(t, slow)
		tr := &http.Transport{}
		c.Client = &http.Client{Transport: tr}
		tc.change(tr, c.Client)
		_, err := c.Token(t.Context())
		tr.CloseIdleConnections()
		if e, ok := errors.AsType[*UnreachableError](err); !ok || !strings.Contains(e.Hint(), tc.want) || strings.Contains(e.Hint(), "port 443") != (tc.name == "no connection") {
			t.Errorf("%s: %v, want a hint with %q", tc.name, err, tc.want)
		}
	}
}

func TestUnreachableHints(t *testing.T) {
	for _, tc := range []struct {
		err    error
		status int
		want   string
	}{
		{x509.UnknownAuthorityError{}, 0, "ca-certificates"},
		{&tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: x509.Expired}}, 0, "timedatectl"},
		{&tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: &x509.Certificate{}, Host: "h"}}, 0, "somebody else answers for h.example"},
		{&net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host"}}, 0, "getent hosts h.example"},
		{context.DeadlineExceeded, 0, "h.example, or a proxy before it, is slow"},
		{&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, 0, "h.example, or a proxy before it, is slow"},
		{&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, 0, "port 443 of h.example"},
		{&net.OpError{Op: "dial", Err: errors.New("connection refused")}, 0, "firewall"},
		{nil, 407, "HTTPS_PROXY"},
		{nil, 404, `"sendas check"`},
		{nil, 429, "fewer requests"},
		{nil, 502, "out of order"},
		{nil, 403, "proxy or a portal"},
		{nil, 200, "proxy or a portal"},
		{io.ErrUnexpectedEOF, 0, `"sendas doctor"`},
	} {
		e := &UnreachableError{Host: "h.example", Status: tc.status, Err: tc.err}
		if got := e.Hint(); !strings.Contains(got, tc.want) {
			t.Errorf("hint for %T, HTTP %d = %q, want %q in it", tc.err, tc.status, got, tc.want)
		}
	}
}

func TestTokenHonoursContext(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	c := testEntra(t, func(http.ResponseWriter, *http.Request) { <-release })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Token(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Token with a context that ended = %v, want context.Canceled inside", err)
	}
}

// An error page or a description may repeat what was sent: in no form may the
// secret or the assertion come through, whatever the answer looks like.
func TestNoErrorShowsTheSecret(t *testing.T) {
	bodies := []struct {
		status int
		kind   string
		body   func(sent string) string
	}{
		{400, "application/json", func(s string) string {
			return fmt.Sprintf(`{"error":"invalid_client","error_description":%q,"trace_id":%q,"suberror":%q,"error_codes":[7000215]}`, "AADSTS7000215: you sent "+s, s, s)
		}},
		{400, "application/json", func(s string) string { return fmt.Sprintf(`{"error":%q}`, s) }},
		{400, "text/html", func(s string) string { return "<title>" + s + "</title>" + s }},
		{400, "text/plain", func(s string) string { return "error=" + url.QueryEscape(s) }},
		{200, "text/html", func(s string) string { return s }},
		{200, "application/json", func(s string) string { return fmt.Sprintf(`{"expires_in":%q}`, s) }},
		{200, "application/json", func(s string) string { return fmt.Sprintf(`{"error":%q}`, s) }},
		{302, "text/plain", func(s string) string { return s }},
	}
	for _, proof := range []string{"secret", "certificate", "federated"} {
		for i, b := range bodies {
			var sent []string
			c := testEntra(t, func(w http.ResponseWriter, r *http.Request) {
				raw, _ := io.ReadAll(r.Body)
				form, _ := url.ParseQuery(string(raw))
				proof := form.Get("client_secret") + form.Get("client_assertion")
				sent = []string{proof, url.QueryEscape(proof), url.PathEscape(proof)}
				text := proof + " " + string(raw) + " " + url.PathEscape(proof)
				answer(b.status, b.kind, b.body(text), "Location", "https://"+url.PathEscape(proof)+".example/")(w, r)
			})
			switch proof {
			case "federated":
				c.FederatedTokenFile = writeFile(t, "token", federatedToken(""), 0o644)
			case "certificate":
				c.CertificateFile = writeFile(t, "c.pem", certPEM(t, firstKey(), testNow.Add(-time.Hour), testNow.Add(time.Hour))+pkcs8(t, firstKey()), 0o600)
			}
			_, err := c.Token(t.Context())
			if err == nil || len(sent) == 0 || sent[0] == "" {
				t.Fatalf("body %d: error %v after sending %d bytes, want an error", i, err, len(sent))
			}
			for _, text := range everything(err) {
				for _, s := range sent {
					// A part of it would be bad enough.
					if strings.Contains(text, s[:12]) || strings.Contains(text, s[len(s)-9:]) {
						t.Errorf("body %d, %s: %q shows what was sent", i, proof, text)
					}
				}
			}
		}
	}
}

// everything is all that an error can show.
func everything(err error) []string {
	texts := []string{err.Error(), fmt.Sprintf("%+v", err), fmt.Sprintf("%#v", err)}
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		texts = append(texts, h.Hint())
	}
	if e, ok := errors.AsType[*RefusedError](err); ok {
		texts = append(texts, e.Code(), fmt.Sprintf("%+v", *e))
	}
	if e, ok := errors.AsType[*UnreachableError](err); ok {
		texts = append(texts, fmt.Sprintf("%+v", *e))
	}
	return texts
}

func TestCredentialsPrintNoSecret(t *testing.T) {
	c := testEntra(t, answer(200, "application/json", goodAnswer))
	tok, err := c.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprintf("%+v", c), fmt.Sprintf("%#v", *c), fmt.Sprintf("%+v", tok), fmt.Sprintf("%#v", *tok)} {
		if strings.Contains(s, "jXo8") || strings.Contains(s, "eyJ0") {
			t.Errorf("%s shows a secret", s)
		}
	}
}

// fixedAnswer answers every request with the same bytes, without a socket.
type fixedAnswer struct {
	status            int
	kind, retry, body string
}

func (f fixedAnswer) RoundTrip(r *http.Request) (*http.Response, error) {
	h := http.Header{"Content-Type": {f.kind}, "Retry-After": {f.retry}}
	return &http.Response{StatusCode: f.status, Header: h, Body: io.NopCloser(strings.NewReader(f.body)), Request: r}, nil
}

// FuzzAnswer feeds the token endpoint's answer: what comes out is a usable token,
// or an error that fits on a line and hides the secret.
func FuzzAnswer(f *testing.F) {
	secret := filepath.Join(f.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(hardSecret), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, status uint16, kind, retry, body string) {
		c := ClientCredentials{
			Credential: "relay-app", TokenURL: "https://login.microsoftonline.com/t/oauth2/v2.0/token", ClientID: testClientID, Scope: testScope,
			SecretFile: secret, Client: &http.Client{Transport: limitAnswers{fixedAnswer{int(status), kind, retry, body}}},
			now: func() time.Time { return testNow },
		}
		tok, err := c.Token(t.Context())
		if err == nil {
			checkToken(t, tok)
			return
		}
		checkError(t, err)
	})
}

func checkToken(t *testing.T, tok *Token) {
	t.Helper()
	s := string(tok.Access)
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
		t.Errorf("token %q is not visible ASCII", s)
	}
	if !tok.Expires.After(testNow) || tok.Expires.After(testNow.Add(28*time.Hour)) {
		t.Errorf("token expires at %v, want within 28 h of %v", tok.Expires, testNow)
	}
	if !tok.RefreshAt.IsZero() && (!tok.RefreshAt.After(testNow) || tok.RefreshAt.After(tok.Expires)) {
		t.Errorf("token is due at %v, want between %v and %v", tok.RefreshAt, testNow, tok.Expires)
	}
}

func checkError(t *testing.T, err error) {
	t.Helper()
	if len([]rune(err.Error())) > 1000 {
		t.Errorf("error of %d characters", len(err.Error()))
	}
	for _, text := range everything(err) {
		if strings.Contains(text, hardSecret) {
			t.Errorf("%q shows the secret", text)
		}
	}
	if strings.ContainsFunc(err.Error(), unicode.IsControl) {
		t.Errorf("%q has control characters", err)
	}
	refused, isRefused := errors.AsType[*RefusedError](err)
	unreachable, isUnreachable := errors.AsType[*UnreachableError](err)
	if isRefused == isUnreachable {
		t.Errorf("%T is neither or both of the two kinds", err)
	}
	if isRefused && (refused.RetryAfter < 0 || refused.Code() == "" || refused.Hint() == "") {
		t.Errorf("refused: %+v", refused)
	}
	if isUnreachable && (unreachable.RetryAfter < 0 || unreachable.Hint() == "") {
		t.Errorf("unreachable: %+v", unreachable)
	}
	if _, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
		t.Errorf("%v wraps the whole answer", err)
	}
}
