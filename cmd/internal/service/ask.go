package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// maxAnswer is the size in bytes above which an answer is no status: some 500 a mailbox.
const maxAnswer = 256 << 20

// askTime bounds a question to a service, which takes half of that at most for its answer.
const askTime = 10 * time.Second

// NewLocalClient makes a client for the services on this host. It never goes by a proxy.
func NewLocalClient() *http.Client {
	return &http.Client{Timeout: askTime, Transport: &http.Transport{DisableKeepAlives: true}}
}

// Fetch fetches a page of a service. The error follows "it".
func Fetch(ctx context.Context, client *http.Client, addr, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+Dialable(addr)+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*net.OpError](err); ok {
			err = e.Err // the rest repeats the address
		}
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, &StatusError{path, res.StatusCode}
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("its answer broke off: %w", err)
	}
	return body, nil
}

// A StatusError is an answer that is none.
type StatusError struct {
	Path string // that was asked for
	Code int    // HTTP's status
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("answers %s with HTTP status %d", e.Path, e.Code)
}

// Dialable makes of an address to listen on one to connect to: where a service listens on all
// addresses, it is asked on this machine.
func Dialable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if a, err := netip.ParseAddr(host); host == "" || err == nil && a.IsUnspecified() {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}
