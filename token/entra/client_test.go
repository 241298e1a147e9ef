package entra

import (
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// testTLS starts a TLS server and returns it with its CA file.
func testTLS(t *testing.T, version uint16, h http.HandlerFunc) (srv *httptest.Server, caFile string) {
	t.Helper()
	srv = httptest.NewUnstartedServer(h)
	srv.TLS = &tls.Config{MaxVersion: version}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes fail on purpose
	srv.StartTLS()
	t.Cleanup(srv.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	return srv, writeFile(t, "ca.pem", string(ca), 0o644)
}

func get(t *testing.T, caFile, url string) (string, error) {
	t.Helper()
	return getWith(t, HTTPOptions{CAFile: caFile}, url)
}

func TestExtraCA(t *testing.T) {
	srv, ca := testTLS(t, tls.VersionTLS12, answer(200, "text/plain", "hello"))
	if got, err := get(t, ca, srv.URL); err != nil || got != "hello" {
		t.Errorf("with ca_file: %q, %v, want hello", got, err)
	}
	if _, err := get(t, "", srv.URL); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("without ca_file: %v, want unknown authority", err)
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	srv, ca := testTLS(t, tls.VersionTLS11, answer(200, "text/plain", "hello"))
	srv.TLS.MinVersion = tls.VersionTLS10
	if _, err := get(t, ca, srv.URL); err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("TLS 1.1: %v, want a refusal of the protocol version", err)
	}
}

func TestBadCAFile(t *testing.T) {
	for _, tc := range []struct{ path, want string }{
		{writeFile(t, "ca.pem", "hello", 0o644), "is not in PEM format"},
		{"/nonexistent/ca.pem", "does not exist"},
	} {
		_, err := NewHTTPClient(HTTPOptions{CAFile: tc.path})
		if _, ok := errors.AsType[*FileError](err); !ok || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("NewHTTPClient(%q): %v, want a *FileError with %q", tc.path, err, tc.want)
		}
	}
}

func TestClientStaysWhereItIs(t *testing.T) {
	srv := httptest.NewServer(answer(302, "text/plain", "moved", "Location", "http://127.0.0.1:1/"))
	defer srv.Close()
	if got, err := get(t, "", srv.URL); err != nil || got != "moved" {
		t.Errorf("a redirect gives %q, %v, want its own body", got, err)
	}
}

func TestAnswerLimit(t *testing.T) {
	for _, tc := range []struct {
		size int
		err  error
	}{{maxAnswer - 1, nil}, {maxAnswer, nil}, {maxAnswer + 1, errAnswerTooLong}, {5 << 20, errAnswerTooLong}} {
		srv := httptest.NewServer(answer(200, "text/plain", strings.Repeat("x", tc.size)))
		got, err := get(t, "", srv.URL)
		srv.Close()
		if err != tc.err || len(got) != min(tc.size, maxAnswer) {
			t.Errorf("an answer of %d bytes: read %d, %v, want %v", tc.size, len(got), err, tc.err)
		}
	}
}

// Every phase must have a deadline: one hung call would stop all mail.
func TestClientDeadlines(t *testing.T) {
	c := testClient(t)
	tr := c.Transport.(limitAnswers).next.(*http.Transport)
	if c.Timeout != requestTimeout || tr.TLSHandshakeTimeout == 0 || tr.ResponseHeaderTimeout == 0 || tr.IdleConnTimeout == 0 || tr.DialContext == nil {
		t.Errorf("client %+v with transport %+v, want a deadline for every phase", c, tr)
	}
	if tr.Proxy == nil || tr.MaxResponseHeaderBytes == 0 || tr.TLSClientConfig.MinVersion != tls.VersionTLS12 {
		t.Error("want proxies from the environment, bounded headers and TLS 1.2")
	}
}

// testProxy is an HTTP proxy that writes down who was asked for, with which name and
// password, and connects to target whatever was asked.
func testProxy(t *testing.T, target string) (address string, asked func() string) {
	t.Helper()
	lines := make(chan string, 10)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		lines <- fmt.Sprintf("%s %s %s", r.Method, r.RequestURI, r.Header.Get("Proxy-Authorization"))
		if r.Method != http.MethodConnect {
			answer(200, "text/plain", "by proxy")(w, r)
			return
		}
		tunnel(w, target)
	}))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://"), func() string {
		select {
		case line := <-lines:
			return line
		default:
			return "nothing"
		}
	}
}

// tunnel answers CONNECT: 407 where there is no target.
func tunnel(w http.ResponseWriter, target string) {
	if target == "" {
		w.WriteHeader(http.StatusProxyAuthRequired)
		return
	}
	up, err := net.Dial("tcp", target)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer up.Close()
	down, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer down.Close()
	io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n")
	go func() { io.Copy(up, down); up.Close() }()
	io.Copy(down, up)
}

// noProxyAround keeps the test's own environment out of it.
func noProxyAround(t *testing.T) {
	t.Helper()
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "REQUEST_METHOD"} {
		t.Setenv(name, "")
		t.Setenv(strings.ToLower(name), "")
	}
}

func TestProxy(t *testing.T) {
	srv, ca := testTLS(t, 0, answer(200, "text/plain", "hello"))
	address, asked := testProxy(t, srv.Listener.Addr().String())
	const login = "Basic cmVsYXk6aHVudGVyMg==" // relay:hunter2
	for _, tc := range []struct {
		name, configured, env, noProxy, url, got, asked string
	}{
		{"configured", "http://" + address, "", "", "https://example.com/", "hello", "CONNECT example.com:443 "},
		{"configured, plain", "http://" + address, "", "", "http://example.com/x", "by proxy", "GET http://example.com/x "},
		{"with a password", "http://relay:hunter2@" + address, "", "", "https://example.com/", "hello", "CONNECT example.com:443 " + login},
		{"configured outweighs the environment", "http://" + address, "http://192.0.2.1:1", "example.com", "https://example.com/", "hello", "CONNECT example.com:443 "},
		{"this machine", "http://" + address, "", "", srv.URL, "hello", "nothing"},
		{"environment", "", "http://" + address, "", "https://example.com/", "hello", "CONNECT example.com:443 "},
		{"environment without scheme", "", address, "", "https://example.com/", "hello", "CONNECT example.com:443 "},
		{"this machine, environment", "", "http://" + address, "", srv.URL, "hello", "nothing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noProxyAround(t)
			t.Setenv("HTTPS_PROXY", tc.env)
			t.Setenv("NO_PROXY", tc.noProxy)
			got, err := getWith(t, HTTPOptions{CAFile: ca, Proxy: tc.configured}, tc.url)
			if line := asked(); err != nil || got != tc.got || line != tc.asked {
				t.Errorf("GET %s = %q, %v; the proxy was asked for %q; want %q and %q", tc.url, got, err, line, tc.got, tc.asked)
			}
		})
	}
}

func getWith(t *testing.T, o HTTPOptions, url string) (string, error) {
	t.Helper()
	c, err := NewHTTPClient(o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseIdleConnections()
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// A request that is not to be made, only to be routed.
func TestWhatNeedsNoProxy(t *testing.T) {
	noProxyAround(t)
	t.Setenv("NO_PROXY", "login.microsoftonline.us,.internal.example")
	for _, tc := range []struct {
		configured, url string
		proxied         bool
	}{
		{"http://proxy.example:3128", "https://login.microsoftonline.com/", true},
		{"http://proxy.example:3128", "https://login.microsoftonline.us/", true},
		{"http://proxy.example:3128", "http://169.254.169.254/metadata/identity/oauth2/token", false},
		{"http://proxy.example:3128", "http://[fe80::1]/", false},
		{"http://proxy.example:3128", "http://127.0.0.1:40342/metadata/identity/oauth2/token", false},
		{"http://proxy.example:3128", "http://localhost:42356/msi/token", false},
		{"http://proxy.example:3128", "http://[::1]/", false},
		{"", "https://login.microsoftonline.com/", true},
		{"", "https://login.microsoftonline.us/", false},
		{"", "https://a.internal.example/", false},
		{"", "http://169.254.169.254/metadata/identity/oauth2/token", false},
	} {
		t.Setenv("HTTPS_PROXY", "http://proxy.example:3128")
		t.Setenv("HTTP_PROXY", "http://proxy.example:3128")
		c, err := NewHTTPClient(HTTPOptions{Proxy: tc.configured})
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest(http.MethodGet, tc.url, nil)
		u, err := c.Transport.(limitAnswers).next.(*http.Transport).Proxy(r)
		if err != nil || (u != nil) != tc.proxied {
			t.Errorf("proxy %q for %s = %v, %v, want one: %v", tc.configured, tc.url, u, err, tc.proxied)
		}
	}
}

func TestBadProxy(t *testing.T) {
	for _, tc := range []struct{ configured, https, http, want string }{
		{"relay:hunter2@proxy.example:3128", "", "", "tenant.endpoints.proxy is not the address of a proxy"},
		{"socks5://relay:hunter2@proxy.example", "", "", "tenant.endpoints.proxy is not"},
		{"http://relay:hunter2@", "", "", "tenant.endpoints.proxy is not"},
		{"http://relay:hunter2%zz@proxy.example", "", "", "tenant.endpoints.proxy is not"},
		{"", "ftp://relay:hunter2@proxy.example", "", "HTTPS_PROXY is not the address of a proxy"},
		{"", "http://relay:hunter2@proxy.example:port", "", "HTTPS_PROXY is not"},
		{"", "", "://hunter2", "HTTP_PROXY is not"},
	} {
		t.Run(tc.configured+tc.https+tc.http, func(t *testing.T) {
			noProxyAround(t)
			t.Setenv("HTTPS_PROXY", tc.https)
			t.Setenv("HTTP_PROXY", tc.http)
			_, err := NewHTTPClient(HTTPOptions{Proxy: tc.configured})
			pe, ok := errors.AsType[*ProxyError](err)
			if !ok || !strings.HasPrefix(err.Error(), tc.want) || strings.Contains(fmt.Sprintf("%+v", pe), "hunter2") {
				t.Errorf("NewHTTPClient: %v, want a *ProxyError with %q and without the password", err, tc.want)
			}
		})
	}
}

// What a proxy does wrong must be told from what Microsoft does, and its password not
// at all.
func TestProxyErrors(t *testing.T) {
	noProxyAround(t)
	wantsLogin, _ := testProxy(t, "")
	noTarget, _ := testProxy(t, closedPort(t))
	for _, tc := range []struct{ name, address, want, hint string }{
		{"wants a password", wantsLogin, "the proxy answered CONNECT with HTTP 407", "name and password"},
		{"does not let through", noTarget, "the proxy answered CONNECT with HTTP 502", "CONNECT to port 443"},
		{"does not answer", closedPort(t), "gave no answer: proxyconnect tcp: dial tcp 127.0.0.1:", "tenant.endpoints.proxy"},
	} {
		client, err := NewHTTPClient(HTTPOptions{Proxy: "http://relay:hunter2@" + tc.address})
		if err != nil {
			t.Fatal(err)
		}
		c := testEntra(t, nil)
		c.TokenURL, c.Client = "https://login.example.com"+testPath, client
		_, err = c.Token(t.Context())
		e, ok := errors.AsType[*UnreachableError](err)
		if !ok || !strings.Contains(err.Error(), tc.want) || !strings.Contains(e.Hint(), tc.hint) {
			t.Errorf("%s: %v\nhint: %s\nwant %q and in the hint %q", tc.name, err, e.Hint(), tc.want, tc.hint)
		}
		for _, text := range everything(err) {
			if strings.Contains(text, "hunter2") || strings.Contains(text, "cmVsYXk6aHVudGVyMg") {
				t.Errorf("%s: %q shows the password", tc.name, text)
			}
		}
	}
}

// closedPort is an address of this machine at which nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func TestSkew(t *testing.T) {
	asked := time.Date(2026, 11, 21, 4, 0, 0, 500_000_000, time.UTC)
	came := asked.Add(3 * time.Second)
	for _, tc := range []struct {
		date string
		want time.Duration
	}{
		{"Sat, 21 Nov 2026 04:00:00 GMT", 0}, // the header has no fractions
		{"Sat, 21 Nov 2026 04:00:02 GMT", 0},
		{"Sat, 21 Nov 2026 04:00:03 GMT", 0},
		{"Sat, 21 Nov 2026 04:07:03 GMT", -7*time.Minute + 500*time.Millisecond},
		{"Sat, 21 Nov 2026 03:52:59 GMT", 7*time.Minute + 500*time.Millisecond},
		{"Sun, 22 Nov 2026 04:00:03 GMT", -24*time.Hour + 500*time.Millisecond},
		{"", 0},
		{"yesterday", 0},
	} {
		w := &witness{answer: &http.Response{Header: http.Header{"Date": {tc.date}}}}
		if got := w.skew(asked, came); got != tc.want {
			t.Errorf("skew by Date: %s = %v, want %v", tc.date, got, tc.want)
		}
	}
	if got := (&witness{}).skew(asked, came); got != 0 {
		t.Errorf("skew without an answer = %v, want 0", got)
	}
}

// A witness hands on what it reads, whole or broken off.
func TestWitnessKeepsTheBody(t *testing.T) {
	for _, tc := range []struct {
		name, body, length string
		broken             bool
	}{
		{"whole", "hello", "5", false},
		{"broken off", "hello", "50", true},
		{"too long", strings.Repeat("x", maxAnswer+1), fmt.Sprint(maxAnswer + 1), true},
	} {
		srv := httptest.NewServer(answer(200, "text/plain", tc.body, "Content-Length", tc.length))
		client, seen := watch(srv.Client(), true)
		resp, err := client.Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		srv.Close()
		want := tc.body[:min(len(tc.body), maxAnswer)]
		if string(got) != want || string(seen.body) != want || (err != nil) != tc.broken || err != seen.bodyErr {
			t.Errorf("%s: read %d bytes, %v; kept %d, %v; want %d and an error: %v", tc.name, len(got), err, len(seen.body), seen.bodyErr, len(want), tc.broken)
		}
	}
}
