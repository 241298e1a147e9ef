// Package smtp is the simulated Exchange Online as mail reaches it: the submission service, and
// the MX endpoint with its connectors. It keeps every message with its verdict, counts for each
// mailbox what it sent, and enforces Microsoft's limits in Microsoft's words. Who exists and who
// may do what it asks of the directory; what an access token says, of whoever signs them.
//
// The SMTP server is written by hand. go-smtp, up to v0.26.0, has these texts in its code, out of
// a back end's reach: the banner, the order of the EHLO lines, the replies to a good MAIL, RCPT,
// AUTH, STARTTLS, RSET and QUIT, 501 for a cancelled AUTH, 502 where Exchange says 503 5.5.2, and
// it hangs up after four errors. A relay's reply filter reads just these texts. The mechanisms of
// AUTH are those of go-sasl, whose servers know no texts.
//
// One goroutine serves each connection and owns its state; what they share is in [Exchange] under
// one mutex.
package smtp

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
)

// Security is what the endpoints need for TLS.
type Security struct {
	TLS *tls.Config // the certificate that clients see
	// ClientRoots vouch for the certificates of clients at the MX endpoint.
	ClientRoots *x509.CertPool
}

// A Verifier reads an access token, and says why it is no good: not signed by Entra, expired,
// revoked. Whom it is good for is not its business. Many connections call it at the same time.
type Verifier func(token string) (*directory.Claims, directory.Denial)

// Exchange is a running Exchange Online. Its methods are safe for concurrent use.
type Exchange struct {
	cfg         Config
	dir         *directory.Tenant
	verify      Verifier
	tls         *tls.Config
	mxTLS       *tls.Config    // asks for a client certificate
	clientRoots *x509.CertPool // who vouches for client certificates
	stop        context.Context
	halt        context.CancelFunc
	wg          sync.WaitGroup

	mu          sync.Mutex // guards what follows
	faults      Faults
	boxes       map[string]*box // by lower-case address
	messages    []*Message
	serial      int // of the last message
	accepted    int
	kept        chan struct{} // closed when the next message has its verdict
	authRefused map[directory.Denial]int
	conns       map[net.Conn]struct{}
	random      *mathrand.Rand
}

// New makes an Exchange Online of a configuration that [Config.Complete] has found good. It does
// nothing until one of the Serve methods is called. The random numbers are its own from then on.
func New(c Config, dir *directory.Tenant, verify Verifier, sec Security, random *mathrand.Rand) *Exchange {
	x := &Exchange{
		cfg: c, dir: dir, verify: verify, tls: sec.TLS, clientRoots: sec.ClientRoots, random: random,
		boxes: map[string]*box{}, kept: make(chan struct{}), authRefused: map[directory.Denial]int{}, conns: map[net.Conn]struct{}{},
	}
	// Any certificate passes the handshake, as at the real service, which names
	// no authorities either: one that nobody vouches for is worth nothing, but
	// TLS goes on.
	x.mxTLS = x.tls.Clone()
	x.mxTLS.ClientAuth = tls.RequestClientCert
	x.stop, x.halt = context.WithCancel(context.Background())
	for _, m := range dir.Mailboxes() {
		x.boxes[strings.ToLower(m.Address)] = newBox(m.Address, &x.cfg)
	}
	for _, a := range dir.Accounts() {
		x.boxes[strings.ToLower(a.Address)] = newBox(a.Address, &x.cfg)
	}
	return x
}

// ServeSubmission serves the submission service until the listener is closed.
func (x *Exchange) ServeSubmission(ln net.Listener) { x.serve(ln, submission{x}) }

// ServeHighVolume serves High Volume Email until the listener is closed.
func (x *Exchange) ServeHighVolume(ln net.Listener) { x.serve(ln, highVolume{x}) }

// ServeMX serves the MX endpoint until the listener is closed.
func (x *Exchange) ServeMX(ln net.Listener) { x.serve(ln, mx{x}) }

// Stop ends all sessions, begins none any more, and waits until they have ended. Listeners are the
// caller's to close. It may be called again.
func (x *Exchange) Stop() {
	x.mu.Lock()
	x.halt()
	for c := range x.conns {
		c.Close()
	}
	x.mu.Unlock()
	x.wg.Wait()
}

// serve accepts connections for a service until the listener is closed.
func (x *Exchange) serve(ln net.Listener, svc service) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		if !x.begin(c, svc) {
			c.Close()
			return
		}
	}
}

// begin starts the session of a connection; false if the simulator has stopped. Both under the
// lock, so that Stop waits for a session that it does not see.
func (x *Exchange) begin(c net.Conn, svc service) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.stop.Err() != nil {
		return false
	}
	x.conns[c] = struct{}{}
	x.wg.Go(func() {
		defer x.untrack(c)
		k := newConn(x, svc, c)
		k.serve()
		k.signOff()
	})
	return true
}

func (x *Exchange) untrack(c net.Conn) {
	c.Close()
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.conns, c)
}

// sleep waits, and reports false if the simulator stops before.
func (x *Exchange) sleep(d time.Duration) bool {
	if d <= 0 {
		return x.stop.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-x.stop.Done():
		return false
	}
}

// newSession returns the id that banner and errors show: 16 hex digits that begin
// with 08D, as they have for years.
func newSession() string {
	var b [8]byte
	rand.Read(b[:])
	return fmt.Sprintf("08DE%012X", binary.BigEndian.Uint64(b[:])>>16)
}
