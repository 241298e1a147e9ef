package entra

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
)

const (
	// requestTimeout bounds one token request from dialling to its last byte.
	requestTimeout = 30 * time.Second

	// maxAnswer bounds the body of an answer, in bytes; tokens have 2 to 4 kB.
	// x/oauth2 reads one byte more at most and would cut the rest off silently.
	maxAnswer = 1<<20 - 1
)

// errAnswerTooLong is what reading an answer over maxAnswer ends with.
var errAnswerTooLong = errors.New("the answer is longer than 1 MiB")

// HTTPOptions say how requests reach Microsoft; the zero value is the usual way.
type HTTPOptions struct {
	// CAFile names PEM certificates that are trusted beside the system's.
	CAFile string

	// Proxy is the URL of an HTTP proxy, http:// or https://, for all requests
	// but those to this machine itself. It may hold a name and a password: do not
	// log it. Empty means HTTPS_PROXY, HTTP_PROXY and NO_PROXY of the environment
	// as they are now.
	Proxy string
}

// ProxyError tells that the address of a proxy cannot be used. It does not show
// the address, which may hold a password.
type ProxyError struct {
	Setting string // where it stands: "tenant.endpoints.proxy" or "HTTPS_PROXY"
	Problem string // "is not the address of a proxy", follows the setting
	Act     string // what to write instead
}

func (e *ProxyError) Error() string { return e.Setting + " " + e.Problem + ": " + e.Act }

// NewHTTPClient returns the client for requests to the token endpoint: every
// phase has a deadline (30 s overall), TLS is 1.2 or newer, answers end at 1 MiB,
// and no redirect is followed. The error is a *FileError about CAFile, a
// *ProxyError, or tells that the system has no CA certificates.
func NewHTTPClient(o HTTPOptions) (*http.Client, error) {
	roots, err := trustAnchors(o.CAFile)
	if err != nil {
		return nil, err
	}
	proxy, err := proxyFor(o.Proxy)
	if err != nil {
		return nil, err
	}
	return clientVia(roots, proxy), nil
}

// clientVia returns a client that trusts roots and asks through what proxy chooses; nil
// means the system's anchors, and directly.
func clientVia(roots *x509.CertPool, proxy func(*http.Request) (*url.URL, error)) *http.Client {
	t := &http.Transport{
		Proxy:                  proxy,
		OnProxyConnectResponse: checkConnect,
		DialContext:            (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  20 * time.Second,
		IdleConnTimeout:        time.Minute, // the next request is most of an hour away
		MaxIdleConns:           4,
		MaxResponseHeaderBytes: 64 << 10,
		ForceAttemptHTTP2:      true,
	}
	return &http.Client{Transport: limitAnswers{t}, Timeout: requestTimeout, CheckRedirect: noRedirect}
}

// proxyFor returns what chooses the proxy of a request. What is on this machine or
// its link is never asked through one: loopback, and the addresses at which a cloud
// answers its own machines (169.254.169.254 must not be reachable by proxy).
func proxyFor(configured string) (func(*http.Request) (*url.URL, error), error) {
	settings := httpproxy.FromEnvironment()
	if configured != "" {
		settings = &httpproxy.Config{HTTPProxy: configured, HTTPSProxy: configured}
		if !isProxy(configured, "http", "https") {
			return nil, notProxy("tenant.endpoints.proxy")
		}
	}
	// httpproxy takes a wrong address for none: requests would then go out directly,
	// and fail without a word about the proxy.
	for _, v := range []struct{ name, address string }{{"HTTPS_PROXY", settings.HTTPSProxy}, {"HTTP_PROXY", settings.HTTPProxy}} {
		address := v.address
		if address != "" && !strings.Contains(address, "://") {
			address = "http://" + address // as is usual in the environment
		}
		if address != "" && !isProxy(address, "http", "https", "socks5", "socks5h") {
			return nil, notProxy(v.name)
		}
	}
	choose := settings.ProxyFunc()
	return func(r *http.Request) (*url.URL, error) {
		if ip, err := netip.ParseAddr(r.URL.Hostname()); err == nil && ip.IsLinkLocalUnicast() {
			return nil, nil
		}
		return choose(r.URL)
	}, nil
}

func isProxy(address string, schemes ...string) bool {
	u, err := url.Parse(address)
	return err == nil && u.Hostname() != "" && slices.Contains(schemes, u.Scheme)
}

func notProxy(setting string) *ProxyError {
	return &ProxyError{Setting: setting, Problem: "is not the address of a proxy", Act: "write one such as http://proxy.contoso.com:3128"}
}

// connectError is a proxy's refusal to connect us; it keeps the status, which net/http
// tells in text alone.
type connectError struct{ status int }

func (e *connectError) Error() string {
	return fmt.Sprintf("the proxy answered CONNECT with HTTP %d", e.status)
}

func checkConnect(_ context.Context, _ *url.URL, _ *http.Request, r *http.Response) error {
	if r.StatusCode != http.StatusOK {
		return &connectError{r.StatusCode}
	}
	return nil
}

// noRedirect refuses redirects: the body of a token request is a secret and goes to
// the configured endpoint or nowhere (RFC 6749 section 10.3 in spirit; 307 and
// 308 would send it again).
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// trustAnchors returns the system's trust anchors and those of caFile; nil means the
// system's alone.
func trustAnchors(caFile string) (*x509.CertPool, error) {
	if caFile == "" {
		return nil, nil
	}
	pem, _, err := ours.readFile(caFile)
	if err != nil {
		return nil, err
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("loading the system's CA certificates: %w", err)
	}
	if !roots.AppendCertsFromPEM(bytes.TrimPrefix(pem, byteOrderMark)) {
		return nil, NotPEM(caFile, pem, "certificate")
	}
	return roots, nil
}

// limitAnswers bounds the bodies of answers, after decompression.
type limitAnswers struct{ next http.RoundTripper }

func (l limitAnswers) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := l.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = &limitedBody{ReadCloser: resp.Body, left: maxAnswer}
	return resp, nil
}

// CloseIdleConnections lets http.Client reach through to the transport.
func (l limitAnswers) CloseIdleConnections() {
	(&http.Client{Transport: l.next}).CloseIdleConnections()
}

// limitedBody ends with an error, not with io.EOF, so that nobody takes a
// shortened answer for a whole one.
type limitedBody struct {
	io.ReadCloser
	left int64
}

func (b *limitedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, b.end()
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	return n, err
}

// end tells an answer of just the allowed length from a longer one.
func (b *limitedBody) end() error {
	var one [1]byte
	n, err := io.ReadFull(b.ReadCloser, one[:])
	if n > 0 {
		return errAnswerTooLong
	}
	return err
}

// witness remembers the last answer to one call of a Source: what the libraries
// between us and the wire do not hand on. It serves one goroutine.
type witness struct {
	next     http.RoundTripper
	keepBody bool

	requests int
	asked    *http.Request  // the last; nil before the first
	answer   *http.Response // to it; nil when none came; its Body is not for us
	body     []byte         // the answer's, with keepBody
	bodyErr  error          // why it is not whole
}

// watch returns a client that asks like c, but follows no redirect and passes by a
// witness. A nil c is a plain client with a deadline.
func watch(c *http.Client, keepBody bool) (*http.Client, *witness) {
	own := http.Client{Timeout: requestTimeout}
	if c != nil {
		own = *c
	}
	w := &witness{next: own.Transport, keepBody: keepBody}
	if w.next == nil {
		w.next = http.DefaultTransport
	}
	own.Transport, own.CheckRedirect = w, noRedirect
	return &own, w
}

func (w *witness) RoundTrip(r *http.Request) (*http.Response, error) {
	w.requests++
	w.asked, w.answer, w.body, w.bodyErr = r, nil, nil, nil
	resp, err := w.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	w.answer = resp
	if w.keepBody {
		w.keep(resp)
	}
	return resp, nil
}

// keep reads the body now, and lets it be read once more.
func (w *witness) keep(resp *http.Response) {
	limited := &limitedBody{ReadCloser: resp.Body, left: maxAnswer}
	w.body, w.bodyErr = io.ReadAll(limited)
	limited.Close()
	handed := w.body
	if string(bytes.TrimSpace(handed)) == "null" {
		// MSAL for Go 1.10.1 dereferences a nil pointer when the whole answer is null.
		handed = []byte("{}")
	}
	again := io.Reader(bytes.NewReader(handed))
	if w.bodyErr != nil {
		again = io.MultiReader(again, brokenOff{w.bodyErr})
	}
	resp.Body = io.NopCloser(again)
}

// brokenOff is the end of a body that was not read to its own.
type brokenOff struct{ err error }

func (b brokenOff) Read([]byte) (int, error) { return 0, b.err }

// CloseIdleConnections lets http.Client reach through to the transport.
func (w *witness) CloseIdleConnections() {
	(&http.Client{Transport: w.next}).CloseIdleConnections()
}

// skew is how far our clock is ahead of the last answer's Date header (RFC 9110
// section 6.6.1), beyond the time that the request took; negative: behind. Zero when
// there is no such header. asked and came are by our clock.
func (w *witness) skew(asked, came time.Time) time.Duration {
	if w.answer == nil {
		return 0
	}
	at, err := http.ParseTime(w.answer.Header.Get("Date"))
	end := at.Add(time.Second) // the header has whole seconds
	switch {
	case err != nil:
		return 0
	case asked.After(end):
		return asked.Sub(end)
	case came.Before(at):
		return came.Sub(at)
	}
	return 0
}
