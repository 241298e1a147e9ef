package token

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
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

// NewHTTPClient returns the client for requests to the token endpoint: every
// phase has a deadline (30 s overall), TLS is 1.2 or newer, the proxy comes from
// HTTPS_PROXY and NO_PROXY, answers end at 1 MiB, and no redirect is followed.
// caFile, unless empty, names PEM certificates that are trusted beside the
// system's; an error about it is a *FileError.
func NewHTTPClient(caFile string) (*http.Client, error) {
	roots, err := trustAnchors(caFile)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  20 * time.Second,
		IdleConnTimeout:        time.Minute, // the next request is most of an hour away
		MaxIdleConns:           4,
		MaxResponseHeaderBytes: 64 << 10,
		ForceAttemptHTTP2:      true,
	}
	return &http.Client{Transport: limitAnswers{t}, Timeout: requestTimeout, CheckRedirect: noRedirect}, nil
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
	pem, _, err := readFile(caFile)
	if err != nil {
		return nil, err
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("loading the system's CA certificates: %w", err)
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, &FileError{Path: caFile, Problem: "has no certificate in PEM format (-----BEGIN CERTIFICATE-----)"}
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
