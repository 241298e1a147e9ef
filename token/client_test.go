package token

import (
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
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
	c, err := NewHTTPClient(caFile)
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
		{writeFile(t, "ca.pem", "hello", 0o644), "has no certificate in PEM format"},
		{"/nonexistent/ca.pem", "does not exist"},
	} {
		_, err := NewHTTPClient(tc.path)
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
