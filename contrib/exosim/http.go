package exosim

import (
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

// httpEndpoint is an HTTP server that can go away and come back at the same
// address.
type httpEndpoint struct {
	tls     *tls.Config // nil for plain HTTP
	handler http.Handler

	mu    sync.Mutex // guards what follows
	addr  string     // to listen on; the real port after the first open
	srv   *http.Server
	done  chan struct{} // closed when srv has ended
	ended bool
}

// open listens, unless it does already or has ended.
func (e *httpEndpoint) open() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.srv != nil || e.ended {
		return nil
	}
	ln, err := net.Listen("tcp", e.addr)
	if err != nil {
		return err
	}
	e.addr = ln.Addr().String()
	if e.tls != nil {
		ln = tls.NewListener(ln, e.tls)
	}
	srv, done := &http.Server{Handler: e.handler, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}, make(chan struct{})
	e.srv, e.done = srv, done
	go func() {
		defer close(done)
		// Anything but ErrServerClosed would be a listener that broke; clients
		// see that for themselves.
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			srv.Close()
		}
	}()
	return nil
}

// close ends all connections and refuses new ones until open.
func (e *httpEndpoint) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.srv == nil {
		return
	}
	e.srv.Close()
	<-e.done
	e.srv = nil
}

// end closes for good.
func (e *httpEndpoint) end() {
	e.mu.Lock()
	e.ended = true
	e.mu.Unlock()
	e.close()
}

func (e *httpEndpoint) address() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.addr
}

// url returns the base URL. Loopback is called localhost, since clients may
// insist on a name.
func (e *httpEndpoint) url() string {
	host, port, _ := net.SplitHostPort(e.address())
	if ip := net.ParseIP(host); ip != nil && (ip.IsLoopback() || ip.IsUnspecified()) {
		host = "localhost"
	}
	if e.tls == nil {
		return "http://" + net.JoinHostPort(host, port)
	}
	return "https://" + net.JoinHostPort(host, port)
}
