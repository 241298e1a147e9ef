package exosim

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// Server is a running simulator.
type Server struct {
	cfg   Config
	tls   *tls.Config
	mxTLS *tls.Config // asks for a client certificate
	ca    *authority
	key   *rsa.PrivateKey // signs access tokens
	smtp  net.Listener
	mx    net.Listener // nil without
	entra *httpEndpoint
	admin *httpEndpoint // nil without
	imds  *httpEndpoint // nil without
	stop  context.Context
	halt  context.CancelFunc
	wg    sync.WaitGroup

	clientRoots    *x509.CertPool         // who vouches for client certificates
	federatedKey   func() *rsa.PrivateKey // signs for the other issuer; made when first wanted
	identityHeader string                 // what App Service wants to see

	mu          sync.Mutex // guards what follows
	faults      Faults
	mailboxes   map[string]*mailbox // by lower-case address
	apps        map[string]*App     // by client id
	certs       map[string][]*x509.Certificate
	usedJTI     map[string]time.Time // client assertions seen, until they expire
	tokens      map[string]liveToken // live access tokens by id
	messages    []*Message
	serial      int // of the last message
	accepted    int
	kept        chan struct{} // closed when the next message has its verdict
	requests    map[tokenRequest]int
	authRefused map[string]int
	conns       map[net.Conn]struct{}
	random      *mathrand.Rand

	users         map[string]*userState   // by lower-case UPN
	devices       map[string]*deviceCode  // by device code
	deviceSerial  int                     // of the last one
	codes         map[string]*authCode    // by authorization code
	refreshTokens map[string]refreshToken // by themselves
	refusing      map[string]Refusing     // by grant
	arcKeys       map[string]string       // contents by file name
}

// Start starts a simulator. It listens when Start returns. The error names the
// field of c that is wrong, or the address that cannot be had.
func Start(c Config) (*Server, error) {
	if err := c.complete(); err != nil {
		return nil, fmt.Errorf("exosim: %w", err)
	}
	s := &Server{
		cfg: c, mailboxes: map[string]*mailbox{}, apps: map[string]*App{}, certs: map[string][]*x509.Certificate{},
		usedJTI: map[string]time.Time{}, tokens: map[string]liveToken{}, kept: make(chan struct{}), requests: map[tokenRequest]int{},
		authRefused: map[string]int{}, conns: map[net.Conn]struct{}{}, random: newRandom(c.Seed),
		users: map[string]*userState{}, devices: map[string]*deviceCode{}, codes: map[string]*authCode{}, refreshTokens: map[string]refreshToken{},
		refusing: map[string]Refusing{}, arcKeys: map[string]string{}, identityHeader: newGUID(),
		federatedKey: sync.OnceValue(newRSAKey),
	}
	s.stop, s.halt = context.WithCancel(context.Background())
	if err := s.prepare(); err != nil {
		s.Close()
		return nil, fmt.Errorf("exosim: %w", err)
	}
	return s, nil
}

func newRandom(seed uint64) *mathrand.Rand {
	if seed == 0 {
		seed = mathrand.Uint64()
	}
	return mathrand.New(mathrand.NewPCG(seed, 0))
}

func newRSAKey() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return key
}

func (s *Server) prepare() (err error) {
	if err := s.adopt(); err != nil {
		return err
	}
	s.key = newRSAKey()
	if s.tls, s.ca, err = certificates(s.cfg.CAFile, s.cfg.CAKeyFile); err != nil {
		return err
	}
	if s.clientRoots, err = s.ca.clientRoots(s.cfg.ClientCAFile); err != nil {
		return fmt.Errorf("client_ca_file: %w", err)
	}
	// Any certificate passes the handshake, as at the real service, which names
	// no authorities either: one that nobody vouches for is worth nothing, but
	// TLS goes on.
	s.mxTLS = s.tls.Clone()
	s.mxTLS.ClientAuth = tls.RequestClientCert
	return s.listen()
}

// adopt makes of the configuration what can change while the simulator runs.
func (s *Server) adopt() (err error) {
	for _, m := range s.cfg.Mailboxes {
		s.mailboxes[strings.ToLower(m.Address)] = newMailbox(m, &s.cfg)
	}
	for _, u := range s.cfg.Users {
		s.users[strings.ToLower(u.UPN)] = &userState{User: u}
	}
	for grant, code := range s.cfg.Refuse {
		if code != "" {
			s.refusing[grant] = Refusing{Code: code}
		}
	}
	for i := range s.cfg.Apps {
		a := &s.cfg.Apps[i]
		s.apps[a.ClientID] = a
		if s.certs[a.ClientID], err = readCertificates(a.CertificateFile); err != nil {
			return fmt.Errorf("apps[%d].certificate_file: %w", i, err)
		}
	}
	for i := range s.cfg.ManagedIdentities {
		a := &s.cfg.ManagedIdentities[i].App
		s.apps[a.ClientID] = a
	}
	return nil
}

func (s *Server) listen() (err error) {
	if s.smtp, err = net.Listen("tcp", s.cfg.Submission); err != nil {
		return err
	}
	s.wg.Go(func() { s.serveSMTP(s.smtp, submission{s}) })
	if s.cfg.MX != "" {
		if s.mx, err = net.Listen("tcp", s.cfg.MX); err != nil {
			return err
		}
		s.wg.Go(func() { s.serveSMTP(s.mx, mx{s}) })
	}
	overTLS := s.tls
	if s.cfg.EntraPlain {
		overTLS = nil
	}
	s.entra = &httpEndpoint{addr: s.cfg.Entra, tls: overTLS, handler: s.entraHandler()}
	if err := s.entra.open(); err != nil {
		return err
	}
	if err := s.listenIdentity(); err != nil {
		return err
	}
	if s.cfg.Admin == "" {
		return nil
	}
	s.admin = &httpEndpoint{addr: s.cfg.Admin, handler: s.adminHandler()}
	return s.admin.open()
}

// listenIdentity opens the managed identity endpoints, if there are to be any.
func (s *Server) listenIdentity() error {
	if s.cfg.IMDS == "" {
		return nil
	}
	if s.cfg.ArcKeys != "" {
		if err := os.MkdirAll(s.cfg.ArcKeys, 0o750); err != nil {
			return fmt.Errorf("arc_keys: %w", err)
		}
	}
	s.imds = &httpEndpoint{addr: s.cfg.IMDS, handler: s.identityHandler()}
	return s.imds.open()
}

// Close stops the simulator and waits until its SMTP sessions have ended. It may
// be called again.
func (s *Server) Close() {
	s.mu.Lock()
	s.halt()
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	for _, ln := range []net.Listener{s.smtp, s.mx} {
		if ln != nil {
			ln.Close()
		}
	}
	for _, e := range []*httpEndpoint{s.entra, s.admin, s.imds} {
		if e != nil {
			e.end()
		}
	}
	s.removeArcKeys()
	s.wg.Wait()
}

// sleep waits, and reports false if the simulator stops before.
func (s *Server) sleep(d time.Duration) bool {
	if d <= 0 {
		return s.stop.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.stop.Done():
		return false
	}
}

// track remembers an open connection, so that Close can end it; false if
// the simulator has stopped.
func (s *Server) track(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop.Err() != nil {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *Server) untrack(c net.Conn) {
	c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// newSession returns the id that banner and errors show: 16 hex digits that begin
// with 08D, as they have for years.
func (s *Server) newSession() string {
	var b [8]byte
	rand.Read(b[:])
	return fmt.Sprintf("08DE%012X", binary.BigEndian.Uint64(b[:])>>16)
}

// SubmissionAddr returns host:port of the submission service, an IP address; the
// certificate is for smtp.office365.com and localhost as well.
func (s *Server) SubmissionAddr() string { return s.smtp.Addr().String() }

// MXAddr returns host:port of the MX endpoint, an IP address, "" without; the
// certificate is for all names below mail.protection.outlook.com as well.
func (s *Server) MXAddr() string {
	if s.mx == nil {
		return ""
	}
	return s.mx.Addr().String()
}

// Authority returns the base URL of the token service.
func (s *Server) Authority() string { return s.entra.url() }

// TokenURL returns the token endpoint of the tenant.
func (s *Server) TokenURL() string { return s.Authority() + "/" + s.cfg.Tenant + "/oauth2/v2.0/token" }

// AdminAddr returns host:port of the admin service, "" without.
func (s *Server) AdminAddr() string {
	if s.admin == nil {
		return ""
	}
	return s.admin.address()
}

// CA returns the certificate of the simulator's authority, PEM.
func (s *Server) CA() []byte { return s.ca.pem() }

// CAFile returns Config.CAFile.
func (s *Server) CAFile() string { return s.cfg.CAFile }

// SetMailbox changes a mailbox while the simulator runs; its address stays. It
// does nothing for one that does not exist. change must not call the Server.
func (s *Server) SetMailbox(address string, change func(*Mailbox)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.mailboxes[strings.ToLower(address)]
	if b == nil {
		return
	}
	m := b.Mailbox
	m.Aliases, m.SendAs = slices.Clone(m.Aliases), slices.Clone(m.SendAs)
	change(&m)
	m.Address = b.Address
	b.Mailbox = m
}

// SetApp changes an app while the simulator runs, a new secret for instance;
// client id and certificates stay. It does nothing for one that does not exist.
// change must not call the Server.
func (s *Server) SetApp(clientID string, change func(*App)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.apps[clientID]
	if a == nil {
		return
	}
	changed := *a
	change(&changed)
	changed.ClientID = clientID
	s.apps[clientID] = &changed // a request may be reading the old one
}

// SetRejectDirectSend switches Config.RejectDirectSend.
func (s *Server) SetRejectDirectSend(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cfg.RejectDirectSend = on
}

// SetSMTPAuthDisabled switches SMTP AUTH off for the tenant, or on again.
func (s *Server) SetSMTPAuthDisabled(off bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cfg.SMTPAuthDisabled = off
}
