package exosim

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
	"github.com/sendas/sendas/contrib/exosim/smtp"
)

// Where clients of the MX endpoint come from: anywhere, and connector "site".
const (
	stranger = "127.0.0.1"
	atSite   = "127.0.0.5"
)

const relayDenied = "550 5.7.64 TenantAttribution; Relay Access Denied SMTP [*.prod.protection.outlook.com ????-??-??T??:??:??.???Z 08DE????????????]"

// startMX starts a simulator with an MX endpoint and three connectors.
func startMX(t testing.TB, change func(*Config)) *Server {
	t.Helper()
	return startTest(t, func(c *Config) {
		c.MX, c.Domains = "127.0.0.1:0", []string{"contoso.com", "Contoso.de"}
		c.Connectors = []smtp.Connector{
			{Name: "site", SenderIPs: []string{"127.0.0.5", "127.0.1.0/24"}},
			{Name: "relay", CertificateName: "Relay.contoso.com"},
			{Name: "branches", CertificateName: "*.branch.contoso.com"},
		}
		if change != nil {
			change(c)
		}
	})
}

func dialMX(t testing.TB, s *Server, source string) *visitor.Client {
	t.Helper()
	return visitor.Dial(t, s.MXAddr(), source, s.CA())
}

// origin is whose session it is.
type origin struct{ connector, certificate string }

// clientCert asks the simulator for a certificate.
func clientCert(t *testing.T, s *Server, name string) *tls.Certificate {
	t.Helper()
	cert, key, err := s.ClientCertificate(name)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return &pair
}

// TestAttribution: whose a session is, and what it may do then.
func TestAttribution(t *testing.T) {
	s := startMX(t, nil)
	for _, tc := range []struct {
		name, source, cert string // cert "" is no TLS, "-" is TLS without
		connector, known   string // what the message says
	}{
		{"anybody", stranger, "", "", ""},
		{"anybody with TLS", stranger, "-", "", ""},
		{"address", atSite, "", "site", ""},
		{"address with TLS", atSite, "-", "site", ""},
		{"address in a network", "127.0.1.200", "", "site", ""},
		{"next to the network", "127.0.2.1", "", "", ""},
		{"certificate", stranger, "relay.contoso.com", "relay", "relay.contoso.com"},
		{"certificate before address", atSite, "relay.contoso.com", "relay", "relay.contoso.com"},
		{"certificate below a domain", stranger, "Mail.Branch.contoso.com", "branches", "Mail.Branch.contoso.com"},
		{"certificate for a domain", stranger, "*.branch.contoso.com", "branches", "*.branch.contoso.com"},
		{"certificate of the domain itself", stranger, "branch.contoso.com", "", "branch.contoso.com"},
		{"certificate for more than the name", stranger, "*.contoso.com", "", "*.contoso.com"},
		{"another certificate", stranger, "other.contoso.com", "", "other.contoso.com"},
		{"another certificate from the site", atSite, "other.contoso.com", "site", "other.contoso.com"},
	} {
		s.Forget()
		k := dialMX(t, s, tc.source)
		overTLS := ""
		switch tc.cert {
		case "":
			k.Read()
			k.Say("EHLO relay.example.com")
		case "-":
			overTLS = tls.VersionName(k.SecureMX(nil, nil).Version)
		default:
			overTLS = tls.VersionName(k.SecureMX(clientCert(t, s, tc.cert), nil).Version)
		}
		want := relayDenied
		if tc.connector != "" {
			want = visitor.RcptOK
		}
		if got := k.Envelope("anything@contoso.com", "someone@example.net"); !visitor.Like(got, want) {
			t.Errorf("%s: to others: %s, want %s", tc.name, got, want)
		}
		k.Say("RSET")
		if got := k.Deliver("anything@contoso.com", "nobody@CONTOSO.DE", "From: anything@contoso.de"+visitor.MessageID); !visitor.Like(got, visitor.Queued) {
			t.Errorf("%s: to the organisation: %s", tc.name, got)
		}
		m := s.Messages()[0]
		if m.Endpoint != "mx" || m.Connector != tc.connector || m.Certificate != tc.known || m.Mailbox != "" || m.TLS != overTLS {
			t.Errorf("%s: %s, connector %q, certificate %q, mailbox %q, %q", tc.name, m.Endpoint, m.Connector, m.Certificate, m.Mailbox, m.TLS)
		}
	}
}

// TestResumedSession: the certificate of the first session counts in the next,
// though it is not sent again.
func TestResumedSession(t *testing.T) {
	s := startMX(t, nil)
	cert, cache := clientCert(t, s, "relay.contoso.com"), tls.NewLRUClientSessionCache(1)
	for i, resumed := range []bool{false, true} {
		k := dialMX(t, s, stranger)
		if got := k.SecureMX(cert, cache).DidResume; got != resumed {
			t.Errorf("session %d: resumed %v, want %v", i, got, resumed)
		}
		if got := k.Envelope("erp@contoso.com", "someone@example.net"); got != visitor.RcptOK {
			t.Errorf("session %d: %s", i, got)
		}
	}
}

// TestClientCertificates: who vouches for a certificate, and what it may look like.
func TestClientCertificates(t *testing.T) {
	ours, foreign := newTestAuthority(t), newTestAuthority(t)
	file := filepath.Join(t.TempDir(), "clients.pem")
	write(t, file, string(ours.pem()))
	s := startMX(t, func(c *Config) { c.ClientCAFile = file })
	below := ours.sub(t)
	for _, tc := range []struct {
		name   string
		from   *authority
		change func(*x509.Certificate)
		chain  []*authority
		want   string // Message.Certificate; "-" is no connector
	}{
		{"from the simulator's authority", s.ca, nil, nil, "relay.contoso.com"},
		{"from the file", ours, nil, nil, "relay.contoso.com"},
		{"with the certificate between", below, nil, []*authority{below}, "relay.contoso.com"},
		{"without the certificate between", below, nil, nil, "-"},
		{"from elsewhere", foreign, nil, nil, "-"},
		{"expired", ours, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, nil, "-"},
		{"common name only", ours, func(c *x509.Certificate) { c.DNSNames = nil }, nil, "relay.contoso.com"},
		{"DNS names only", ours, func(c *x509.Certificate) {
			c.Subject.CommonName, c.DNSNames = "", []string{"x.contoso.com", "RELAY.contoso.com"}
		}, nil, "RELAY.contoso.com"},
		{"for servers", ours, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, nil, "relay.contoso.com"},
		{"no names", ours, func(c *x509.Certificate) { c.Subject.CommonName, c.DNSNames = "", nil }, nil, "-"},
	} {
		leaf := template("relay.contoso.com")
		leaf.DNSNames = []string{"relay.contoso.com"}
		if tc.change != nil {
			tc.change(leaf)
		}
		k := dialMX(t, s, stranger)
		k.SecureMX(tc.from.pair(t, leaf, tc.chain...), nil)
		s.Forget()
		if got := k.Deliver("a@contoso.com", "erp@contoso.com", "From: a@contoso.com"+visitor.MessageID); !visitor.Like(got, visitor.Queued) {
			t.Errorf("%s: %s", tc.name, got)
		}
		want := origin{"relay", tc.want}
		if tc.want == "-" {
			want = origin{}
		}
		if m := s.Messages()[0]; (origin{m.Connector, m.Certificate}) != want {
			t.Errorf("%s: connector %q, certificate %q, want %q", tc.name, m.Connector, m.Certificate, want)
		}
	}
}

func newTestAuthority(t *testing.T) *authority {
	t.Helper()
	a, err := newAuthority()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// sub makes an authority that this one vouches for.
func (a *authority) sub(t *testing.T) *authority {
	t.Helper()
	tmpl := template("between")
	tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage = true, true, x509.KeyUsageCertSign
	der, key := a.mustIssue(t, tmpl)
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func (a *authority) mustIssue(t *testing.T, tmpl *x509.Certificate) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	der, key, err := a.issue(tmpl)
	if err != nil {
		t.Fatal(err)
	}
	return der, key
}

func (a *authority) pair(t *testing.T, leaf *x509.Certificate, chain ...*authority) *tls.Certificate {
	t.Helper()
	der, key := a.mustIssue(t, leaf)
	pair := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	for _, c := range chain {
		pair.Certificate = append(pair.Certificate, c.cert.Raw)
	}
	return pair
}

func TestNoMX(t *testing.T) {
	if got := startTest(t, nil).MXAddr(); got != "" {
		t.Errorf("MXAddr is %q", got)
	}
}

func TestClientCertificateFails(t *testing.T) {
	s := startMX(t, nil)
	for _, name := range []string{"", "büro.contoso.com"} {
		if cert, key, err := s.ClientCertificate(name); err == nil || cert != nil || key != nil {
			t.Errorf("%q: %s, %v", name, cert, err)
		}
	}
}

// TestClientCertificate is what a relay needs: it may be shown by a client, the
// authority vouches for it, and the key is its own.
func TestClientCertificate(t *testing.T) {
	s := startMX(t, nil)
	certPEM, keyPEM, err := s.ClientCertificate("relay.contoso.com")
	if err != nil {
		t.Fatal(err)
	}
	if block, rest := pem.Decode(keyPEM); block == nil || block.Type != "PRIVATE KEY" || len(rest) > 0 {
		t.Error("the key is not PKCS #8")
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CA())
	_, err = pair.Leaf.Verify(x509.VerifyOptions{DNSName: "relay.contoso.com", Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil || pair.Leaf.Subject.CommonName != "relay.contoso.com" {
		t.Errorf("%v, common name %q", err, pair.Leaf.Subject.CommonName)
	}
}

func TestAdminShowsAttribution(t *testing.T) {
	s := startMX(t, func(c *Config) { c.Admin = "127.0.0.1:0" })
	login(t, s, "erp@contoso.com").Send("erp@contoso.com", "From: erp@contoso.com"+visitor.MessageID, 1)
	k := dialMX(t, s, stranger)
	k.SecureMX(clientCert(t, s, "relay.contoso.com"), nil)
	k.Deliver("a@contoso.com", "a@example.net", "From: a@contoso.com"+visitor.MessageID)
	_, b := admin(t, s, "GET", "/messages", "")
	var list []map[string]any
	if err := json.Unmarshal([]byte(b), &list); err != nil || len(list) != 2 {
		t.Fatalf("%v in %s", err, b)
	}
	for i, want := range []string{"submission,erp@contoso.com,,", "mx,,relay,relay.contoso.com"} {
		m := list[i]
		if got := fmt.Sprintf("%v,%v,%v,%v", m["endpoint"], m["mailbox"], m["connector"], m["certificate"]); got != want {
			t.Errorf("message %d: %s, want %s", i, got, want)
		}
	}
}

// TestUntrustedIsLogged: who wonders why a certificate does not count reads it
// in the log.
func TestUntrustedIsLogged(t *testing.T) {
	var log visitor.Log
	s := startMX(t, func(c *Config) { c.Log = log.Logger() })
	k := dialMX(t, s, stranger)
	k.SecureMX(newTestAuthority(t).pair(t, template("relay.contoso.com")), nil)
	if got := log.String(); !strings.Contains(got, `msg="client certificate not trusted"`) || !strings.Contains(got, "unknown authority") {
		t.Errorf("log: %s", got)
	}
}

// TestLoadMX: the keys of the file, and a file name that begins at its folder.
func TestLoadMX(t *testing.T) {
	file := filepath.Join(t.TempDir(), "exosim.yaml")
	write(t, file, `
domains: [contoso.com]
mx: 127.0.0.1:0
connectors:
  - {name: site, sender_ips: [10.1.0.0/16, 203.0.113.7]}
  - {name: relay, certificate_name: relay.contoso.com}
client_ca_file: clients.pem
reject_direct_send: true
known_recipients: [info@contoso.com]
`)
	c, err := LoadConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	if c.MX != "127.0.0.1:0" || len(c.Connectors) != 2 || c.Connectors[0].Name != "site" || !slices.Equal(c.Connectors[0].SenderIPs, []string{"10.1.0.0/16", "203.0.113.7"}) ||
		c.Connectors[1].CertificateName != "relay.contoso.com" || c.ClientCAFile != filepath.Join(filepath.Dir(file), "clients.pem") || !c.RejectDirectSend || !slices.Equal(c.KnownRecipients, []string{"info@contoso.com"}) {
		t.Errorf("got %+v", c)
	}
	if _, err := Start(c); err == nil || !strings.Contains(err.Error(), "client_ca_file: open "+c.ClientCAFile) {
		t.Errorf("without the file: %v", err)
	}
	if err := os.WriteFile(c.ClientCAFile, newTestAuthority(t).pem(), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}
