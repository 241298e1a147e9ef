package smtp

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
)

type directoryConfig = directory.Config

// siteConfig is what a test may change.
type siteConfig struct {
	directoryConfig
	Config
	MX  string // address to listen on; none
	HVE string // likewise
}

// site is an Exchange Online that listens, with a directory, and tokens that are names for what
// Entra would have written into them.
type site struct {
	*directory.Tenant
	*Exchange
	submission, mx, hve net.Listener
	pem                 []byte

	mu     sync.Mutex // guards tokens
	tokens map[string]*directory.Claims
}

const app1 = visitor.App1

func startTest(t testing.TB, change func(*siteConfig)) *site {
	t.Helper()
	c := siteConfig{directoryConfig: visitor.Contoso()}
	if change != nil {
		change(&c)
	}
	if err := c.directoryConfig.Complete(); err != nil {
		t.Fatal(err)
	}
	if err := c.Config.Complete(c.Contains); err != nil {
		t.Fatal(err)
	}
	s := &site{Tenant: directory.New(c.directoryConfig), tokens: map[string]*directory.Claims{}}
	var pair tls.Certificate
	pair, s.pem = selfSigned(t)
	roots := x509.NewCertPool()
	s.Exchange = New(c.Config, s.Tenant, s.verify, Security{&tls.Config{Certificates: []tls.Certificate{pair}}, roots}, mathrand.New(mathrand.NewPCG(1, 2)))
	t.Cleanup(s.Close)
	s.submission = s.listen(t, "127.0.0.1:0", s.ServeSubmission)
	if c.MX != "" {
		s.mx = s.listen(t, c.MX, s.ServeMX)
	}
	if c.HVE != "" {
		s.hve = s.listen(t, c.HVE, s.ServeHighVolume)
	}
	return s
}

func (s *site) listen(t testing.TB, addr string, serve func(net.Listener)) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go serve(ln)
	return ln
}

// selfSigned is a certificate for the names of both endpoints.
func selfSigned(t testing.TB) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"smtp.office365.com", "*.mail.protection.outlook.com"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// Close ends it before the test does.
func (s *site) Close() { s.Stop() }

// Issue makes a token of an app.
func (s *site) Issue(app, audience string, life time.Duration) string {
	c := &directory.Claims{AppID: app, TenantID: s.ID(), Audience: audience, Expires: time.Now().Add(life)}
	if a := s.App(app); a != nil {
		c.ObjectID, c.Roles = a.ObjectID, a.Roles
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := fmt.Sprintf("token%d", len(s.tokens))
	s.tokens[name] = c
	return name
}

func (s *site) verify(token string) (*directory.Claims, directory.Denial) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.tokens[token]; c != nil {
		return c, ""
	}
	return nil, "token is not one of ours"
}

func setFaults(t *testing.T, s *site, f Faults) {
	t.Helper()
	if err := f.Check(); err != nil {
		t.Fatal(err)
	}
	s.SetFaults(f)
}

func dial(t testing.TB, s *site) *visitor.Client {
	t.Helper()
	return visitor.Dial(t, s.submission.Addr().String(), "", s.pem)
}

func dialMX(t testing.TB, s *site, source string) *visitor.Client {
	t.Helper()
	return visitor.Dial(t, s.mx.Addr().String(), source, s.pem)
}

// greet comes as far as the second EHLO.
func greet(t testing.TB, s *site) *visitor.Client {
	t.Helper()
	k := dial(t, s)
	k.StartTLS()
	k.Say("EHLO relay.example.com")
	return k
}

// login signs in as a mailbox.
func login(t testing.TB, s *site, user string) *visitor.Client {
	t.Helper()
	k := greet(t, s)
	if got := k.Say(visitor.XOAUTH2(user, s.Issue(app1, directory.Exchange, time.Hour))); got != visitor.AuthOK {
		t.Fatalf("AUTH as %s: %s", user, got)
	}
	return k
}

// parallel returns how many messages of a mailbox are under way.
func (x *Exchange) parallel(address string) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.boxes[address].inData
}
