package exosim

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// Faults are troubles that can be switched on while the simulator runs.
type Faults struct {
	RefuseConnect  bool // 421 instead of a banner
	DropInData     int  // close that many of the next connections after DATA, before anything is accepted
	DropAfterData  int  // accept that many of the next messages, and close without telling
	Busy           int  // answer that many of the next messages with 451
	EntraDown      bool // close connections without an answer
	EntraStatus    int  // answer token requests with that HTTP status and an HTML page
	EntraRetry     int  // Retry-After in seconds, with EntraStatus
	EntraDelay     time.Duration
	EntraTruncated bool // cut the JSON of a good answer in half
}

// Server is a running simulator.
type Server struct {
	cfg   Config
	tls   *tls.Config
	ca    []byte
	keys  *rsa.PrivateKey // signs access tokens
	smtp  net.Listener
	entra net.Listener
	admin net.Listener
	https []*http.Server
	wg    sync.WaitGroup

	mu        sync.Mutex // guards what follows
	faults    Faults
	mailboxes map[string]*mailbox // by lower-case address
	apps      map[string]*App
	usedJTI   map[string]bool
	revoked   time.Time // tokens issued before are dead
	messages  []*Message
	conns     map[net.Conn]struct{}
	requests  map[string]int // token requests by result
	serial    uint64
	closed    bool
}

// mailbox is a mailbox with what it did.
type mailbox struct {
	Mailbox
	sessions, inData       int // now
	maxSessions, maxInData int
	dots, verdicts         []time.Time // of accepted messages
	sent                   []sent
	refused                map[string]int // by code
}

type sent struct {
	at time.Time
	n  int
}

// Start starts a simulator.
func Start(c Config) (*Server, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	s := &Server{cfg: c, mailboxes: map[string]*mailbox{}, apps: map[string]*App{}, usedJTI: map[string]bool{},
		conns: map[net.Conn]struct{}{}, requests: map[string]int{}}
	for _, m := range c.Mailboxes {
		s.mailboxes[strings.ToLower(m.Address)] = &mailbox{Mailbox: m, refused: map[string]int{}}
	}
	for i := range c.Apps {
		s.apps[c.Apps[i].ClientID] = &c.Apps[i]
	}
	if err := s.certificates(); err != nil {
		return nil, fmt.Errorf("exosim: %w", err)
	}
	if err := s.listen(); err != nil {
		s.Close()
		return nil, fmt.Errorf("exosim: %w", err)
	}
	return s, nil
}

func (s *Server) listen() (err error) {
	if s.smtp, err = net.Listen("tcp", s.cfg.Submission); err != nil {
		return err
	}
	s.wg.Go(s.serveSMTP)
	if s.entra, err = net.Listen("tcp", s.cfg.Entra); err != nil {
		return err
	}
	s.serveHTTP(tls.NewListener(s.entra, s.tls), http.HandlerFunc(s.serveEntra))
	if s.cfg.Admin == "" {
		return nil
	}
	if s.admin, err = net.Listen("tcp", s.cfg.Admin); err != nil {
		return err
	}
	s.serveHTTP(s.admin, s.adminHandler())
	return nil
}

func (s *Server) serveHTTP(ln net.Listener, h http.Handler) {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	s.https = append(s.https, srv)
	s.wg.Go(func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			log.Printf("exosim: %v", err)
		}
	})
}

// Close stops the simulator and waits for its connections.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	if s.smtp != nil {
		s.smtp.Close()
	}
	for _, h := range s.https {
		h.Close()
	}
	s.wg.Wait()
}

// SubmissionAddr returns host:port of the submission service.
func (s *Server) SubmissionAddr() string { return s.smtp.Addr().String() }

// Authority returns the base URL of the token service.
func (s *Server) Authority() string {
	_, port, _ := net.SplitHostPort(s.entra.Addr().String())
	return "https://localhost:" + port
}

// TokenURL returns the token endpoint of the tenant.
func (s *Server) TokenURL() string { return s.Authority() + "/" + s.cfg.Tenant + "/oauth2/v2.0/token" }

// AdminAddr returns host:port of the admin service, "" without.
func (s *Server) AdminAddr() string {
	if s.admin == nil {
		return ""
	}
	return s.admin.Addr().String()
}

// CA returns the certificate of the simulator's authority, PEM.
func (s *Server) CA() []byte { return s.ca }

// SetFaults switches troubles on and off.
func (s *Server) SetFaults(f Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = f
}

// SetMailbox changes a mailbox while the simulator runs.
func (s *Server) SetMailbox(address string, change func(*Mailbox)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.mailboxes[strings.ToLower(address)]; m != nil {
		change(&m.Mailbox)
	}
}

// RevokeTokens makes all tokens issued so far worthless.
func (s *Server) RevokeTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revoked = time.Now()
}

// certificates makes an authority and a certificate for the names that clients know.
func (s *Server) certificates() error {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	ca := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "exosim authority"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano() + 1), Subject: pkix.Name{CommonName: "outlook.com"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0), DNSNames: []string{"smtp.office365.com", "outlook.office365.com", "localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		return err
	}
	if s.keys, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		return err
	}
	s.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
	s.tls = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	if s.cfg.CAFile != "" {
		return os.WriteFile(s.cfg.CAFile, s.ca, 0o644)
	}
	return nil
}
