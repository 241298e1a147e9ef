package exosim

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	plainMX = "250-*.mail.protection.outlook.com Hello [127.0.0.1]|250-SIZE 157286400|250-PIPELINING|250-DSN|250-ENHANCEDSTATUSCODES|250-STARTTLS|250-8BITMIME|250-BINARYMIME|250-CHUNKING|250 SMTPUTF8"
	tlsMX   = "250-*.mail.protection.outlook.com Hello [127.0.0.1]|250-SIZE 157286400|250-PIPELINING|250-DSN|250-ENHANCEDSTATUSCODES|250-8BITMIME|250-BINARYMIME|250-CHUNKING|250 SMTPUTF8"

	atMX         = " [*.prod.protection.outlook.com ????-??-??T??:??:??.???Z 08DE????????????]"
	rcptOK       = "250 2.1.5 Recipient OK"
	queued       = "250 2.6.0 <1@device> [InternalId=*, Hostname=*.PROD.OUTLOOK.COM] * bytes in 0.1??, * KB/sec Queued mail for delivery"
	relayDenied  = "550 5.7.64 TenantAttribution; Relay Access Denied SMTP" + atMX
	noDirectSend = "550 5.7.68 TenantInboundAttribution; Direct Send not allowed for this organization from unauthorized sources" + atMX
	noSuchRcpt   = "550 5.4.1 Recipient address rejected: Access denied" + atMX
	unregistered = "550 5.7.750 Service unavailable. Client blocked from sending from unregistered domains" + atMX
	badFromMX    = "550 5.7.512 Access denied, message must be RFC 5322 section 3.6.2 compliant and include a valid From address" + atMX
	manyFromMX   = "550 5.1.20 Multiple From addresses are not allowed without Sender address" + atMX
	busyMX       = "451 4.7.500 Server busy. Please try again later from [127.0.0.1]. (S77719)" + atMX
)

// Where clients of the MX endpoint come from: anywhere, and connector "site".
const (
	stranger = "127.0.0.1"
	atSite   = "127.0.0.5"
)

// startMX starts a simulator with an MX endpoint and three connectors.
func startMX(t testing.TB, change func(*Config)) *Server {
	t.Helper()
	return startTest(t, func(c *Config) {
		c.MX, c.Domains = "127.0.0.1:0", []string{"contoso.com", "Contoso.de"}
		c.Connectors = []Connector{
			{Name: "site", SenderIPs: []string{"127.0.0.5", "127.0.1.0/24"}},
			{Name: "relay", CertificateName: "Relay.contoso.com"},
			{Name: "branches", CertificateName: "*.branch.contoso.com"},
		}
		if change != nil {
			change(c)
		}
	})
}

// dialMX connects from a loopback address, as Postfix does with smtp_bind_address.
func dialMX(t testing.TB, s *Server, source string) *client {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	c, err := d.DialContext(t.Context(), "tcp", s.MXAddr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	return &client{t, s, c, bufio.NewReader(c)}
}

// secureMX comes as far as the second EHLO, with a client certificate unless it
// is nil.
func (k *client) secureMX(cert *tls.Certificate, cache tls.ClientSessionCache) tls.ConnectionState {
	k.t.Helper()
	k.read()
	k.say("EHLO relay.example.com")
	k.want("STARTTLS", "220 2.0.0 SMTP server ready")
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(k.s.CA())
	conf := &tls.Config{RootCAs: pool, ServerName: "contoso-com.mail.protection.outlook.com", ClientSessionCache: cache}
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	c := tls.Client(k.c, conf)
	if err := c.Handshake(); err != nil {
		k.t.Fatal(err)
	}
	k.c, k.r = c, bufio.NewReader(c)
	k.say("EHLO relay.example.com")
	return c.ConnectionState()
}

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

// envelope sends MAIL and RCPT, and returns what the recipient was answered.
func (k *client) envelope(sender, rcpt string) string {
	k.t.Helper()
	k.want("MAIL FROM:<"+sender+">", "250 2.1.0 Sender OK")
	return k.say("RCPT TO:<" + rcpt + ">")
}

// deliver sends a message, whose recipient must be taken, and returns the verdict.
func (k *client) deliver(sender, rcpt, header string) string {
	k.t.Helper()
	if got := k.envelope(sender, rcpt); got != rcptOK {
		k.t.Fatalf("RCPT TO:<%s>: %s", rcpt, got)
	}
	k.want("DATA", "354 Start mail input; end with <CRLF>.<CRLF>")
	return k.say(strings.ReplaceAll(header, "\n", "\r\n") + "\r\n\r\nbody\r\n.")
}

func TestMXDialogue(t *testing.T) {
	s := startMX(t, nil)
	k := dialMX(t, s, stranger)
	if got := k.read(); !like(got, "220 *.mail.protection.outlook.com Microsoft ESMTP MAIL Service ready at * +0000 [08DE????????????]") {
		t.Errorf("banner: %s", got)
	}
	k.dialogue([]step{
		{"AUTH LOGIN", "503 5.5.2 Send hello first"},
		{"EHLO relay.example.com", plainMX},
		{"AUTH LOGIN", "504 5.7.4 Unrecognized authentication type"},
		{"MAIL FROM:<root@fabrikam.com> SIZE=157286401", "552 5.3.4 Message size exceeds fixed maximum message size"},
		{"MAIL FROM:<root@fabrikam.com>", "250 2.1.0 Sender OK"},
		{"RCPT TO:<someone@example.net>", relayDenied},
		{"DATA", "503 5.5.2 Need rcpt command"},
		{"RCPT TO:<erp@contoso.com>", rcptOK},
		{"RCPT TO:<erp@sub.contoso.com>", relayDenied},
		{"RSET", "250 2.0.0 Resetting"},
		{"MAIL FROM:<>", "250 2.1.0 Sender OK"},
		{"xyz", "500 5.3.3 Unrecognized command 'xyz'" + atMX},
		{"HELO relay.example.com", "250 *.mail.protection.outlook.com Hello [127.0.0.1]"},
		{"STARTTLS", "220 2.0.0 SMTP server ready"},
	})
	k.handshake()
	k.dialogue([]step{
		{"MAIL FROM:<>", "503 5.5.2 Send hello first"},
		{"EHLO relay.example.com", tlsMX},
		{"AUTH XOAUTH2 " + xoauth2("erp@contoso.com", s.Issue(app1, audience, time.Hour)), "504 5.7.4 Unrecognized authentication type"},
		{"STARTTLS", "503 5.5.2 *"},
		{"MAIL FROM:<>", "250 2.1.0 Sender OK"},
		{"QUIT", "221 2.0.0 Service closing transmission channel"},
	})
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
			k.read()
			k.say("EHLO relay.example.com")
		case "-":
			overTLS = tls.VersionName(k.secureMX(nil, nil).Version)
		default:
			overTLS = tls.VersionName(k.secureMX(clientCert(t, s, tc.cert), nil).Version)
		}
		want := relayDenied
		if tc.connector != "" {
			want = rcptOK
		}
		if got := k.envelope("anything@contoso.com", "someone@example.net"); !like(got, want) {
			t.Errorf("%s: to others: %s, want %s", tc.name, got, want)
		}
		k.say("RSET")
		if got := k.deliver("anything@contoso.com", "nobody@CONTOSO.DE", "From: anything@contoso.de"+id); !like(got, queued) {
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
		if got := k.secureMX(cert, cache).DidResume; got != resumed {
			t.Errorf("session %d: resumed %v, want %v", i, got, resumed)
		}
		if got := k.envelope("erp@contoso.com", "someone@example.net"); got != rcptOK {
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
		k.secureMX(tc.from.pair(t, leaf, tc.chain...), nil)
		s.Forget()
		if got := k.deliver("a@contoso.com", "erp@contoso.com", "From: a@contoso.com"+id); !like(got, queued) {
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

func TestMXVerdicts(t *testing.T) {
	const own = "From: Scanner <scan3@contoso.com>"
	for _, tc := range []struct {
		name, source   string
		faults         Faults
		sender, header string
		want           string
	}{
		{"direct send", stranger, Faults{}, "scan3@contoso.com", own + id, queued},
		{"anybody's mail", stranger, Faults{}, "a@fabrikam.com", "From: b@example.net" + id, queued},
		{"direct send of a bounce", stranger, Faults{}, "", "From: MAILER-DAEMON@relay.local" + id, queued},
		{"connector", atSite, Faults{}, "scan3@contoso.com", own + id, queued},
		{"connector, other cases", atSite, Faults{}, "scan3@CONTOSO.com", "From: x@contoso.DE" + id, queued},
		{"connector, bounce", atSite, Faults{}, "", own + id, queued},
		{"connector, two of its own", atSite, Faults{}, "a@contoso.com", "From: a@contoso.com, b@contoso.de\nSender: a@contoso.com" + id, queued},
		{"connector, Sender of another", atSite, Faults{}, "a@contoso.com", "From: a@contoso.com\nSender: root@fabrikam.com" + id, queued},
		{"Message-ID of the service", stranger, Faults{}, "", own, "250 2.6.0 <*@*.prod.outlook.com> [InternalId=*, Hostname=*] *"},

		{"connector, envelope of another domain", atSite, Faults{}, "root@fabrikam.com", own + id, unregistered},
		{"connector, envelope of a subdomain", atSite, Faults{}, "root@mfp.contoso.com", own + id, unregistered},
		{"connector, envelope that only ends alike", atSite, Faults{}, "root@xcontoso.com", own + id, unregistered},
		{"connector, From of another domain", atSite, Faults{}, "scan3@contoso.com", "From: root@fabrikam.com" + id, unregistered},
		{"connector, second From of another domain", atSite, Faults{}, "a@contoso.com", "From: a@contoso.com, b@fabrikam.com\nSender: a@contoso.com" + id, unregistered},
		{"connector, bounce of another domain", atSite, Faults{}, "", "From: MAILER-DAEMON@relay.local" + id, unregistered},

		{"no From", stranger, Faults{}, "scan3@contoso.com", "Subject: x" + id, badFromMX},
		{"no From by connector", atSite, Faults{}, "scan3@contoso.com", "Subject: x" + id, badFromMX},
		{"From without domain", stranger, Faults{}, "scan3@contoso.com", "From: root" + id, badFromMX},
		{"two without Sender", stranger, Faults{}, "scan3@contoso.com", "From: a@contoso.com, b@contoso.com" + id, manyFromMX},
		{"two From fields", atSite, Faults{}, "scan3@contoso.com", own + "\n" + own + id, manyFromMX},

		{"busy", stranger, Faults{Busy: 1}, "scan3@contoso.com", own + id, busyMX},
		{"busy before all else", stranger, Faults{Busy: 1}, "scan3@contoso.com", "Subject: x" + id, busyMX},
		{"drop in DATA", stranger, Faults{DropInData: 1}, "scan3@contoso.com", own + id, "EOF"},
		{"drop before it is accepted", stranger, Faults{DropBeforeAccept: 1}, "scan3@contoso.com", own + id, "EOF"},
		{"drop after it was accepted", stranger, Faults{DropAfterData: 1}, "scan3@contoso.com", own + id, "EOF"},
		{"mailbox troubles", stranger, Faults{Concurrent: 1, ConcurrentShare: 1, MailboxFull: true, NoLogon: true, QuotaAfter: 1}, "erp@contoso.com", "From: erp@contoso.com" + id, queued},
	} {
		s := startMX(t, nil)
		setFaults(t, s, tc.faults)
		k := dialMX(t, s, tc.source)
		k.read()
		k.say("EHLO relay.example.com")
		if got := k.deliver(tc.sender, "erp@contoso.com", tc.header); !like(got, tc.want) {
			t.Errorf("%s: got %s, want %s", tc.name, got, tc.want)
		}
		if u := s.Usage("erp@contoso.com"); u.Accepted+u.Recipients+len(u.Refused) > 0 {
			t.Errorf("%s: counted for a mailbox: %+v", tc.name, u)
		}
		checkMXCapture(t, s, tc.name, tc.faults, tc.want)
	}
}

// checkMXCapture looks at what is known of the only message of a test.
func checkMXCapture(t *testing.T, s *Server, name string, f Faults, want string) {
	t.Helper()
	all := s.Messages()
	if f.DropInData > 0 {
		if len(all) != 0 {
			t.Errorf("%s: captured %+v", name, all[0])
		}
		return
	}
	if len(all) != 1 {
		t.Fatalf("%s: captured %d messages", name, len(all))
	}
	m := all[0]
	dropped := f.DropBeforeAccept+f.DropAfterData > 0
	taken := f.DropAfterData > 0 || want[0] == '2'
	if m.ID != 1 || m.Accepted() != taken || m.Dropped != dropped || m.Verdict.Before(m.Dot) || !slices.Equal(m.Recipients, []string{"erp@contoso.com"}) || m.TLS != "" {
		t.Errorf("%s: captured %+v", name, m)
	}
	if f.DropBeforeAccept > 0 && m.Reply != "" {
		t.Errorf("%s: reply %q", name, m.Reply)
	}
}

// TestQueuedReply: each figure of the reply is right.
func TestQueuedReply(t *testing.T) {
	s := startMX(t, nil)
	seen := map[int64]bool{}
	for range 3 {
		k := dialMX(t, s, stranger)
		k.read()
		k.say("EHLO relay.example.com")
		got := k.deliver("a@contoso.com", "erp@contoso.com", "From: a@contoso.com"+id)
		var (
			number      int64
			host        string
			size        int
			took, speed float64
		)
		_, err := fmt.Sscanf(got, "250 2.6.0 <1@device> [InternalId=%d, Hostname=%s %d bytes in %f, %f KB/sec Queued mail for delivery", &number, &host, &size, &took, &speed)
		if err != nil {
			t.Fatalf("%v in %s", err, got)
		}
		const sent = len("From: a@contoso.com\r\nMessage-ID: <1@device>\r\n\r\nbody\r\n")
		if seen[number] || number <= 0 || size != sent || took < 0.1 || took >= 0.2 || speed < float64(sent)/1024/0.2-0.001 || speed > float64(sent)/1024/0.1+0.001 {
			t.Errorf("got %s", got)
		}
		seen[number] = true
	}
}

// TestRejectDirectSend: only envelope senders of the organisation that come by no
// connector are refused, and only at the organisation's recipients.
func TestRejectDirectSend(t *testing.T) {
	s := startMX(t, func(c *Config) { c.RejectDirectSend, c.KnownRecipients = true, []string{"info@contoso.com"} })
	for _, tc := range []struct {
		name, source, sender, rcpt string
		want                       string
	}{
		{"own sender", stranger, "scan@contoso.com", "erp@contoso.com", noDirectSend},
		{"own sender in capitals", stranger, "scan@CONTOSO.DE", "erp@contoso.com", noDirectSend},
		{"own sender, unknown recipient", stranger, "scan@contoso.com", "nobody@contoso.com", noDirectSend},
		{"own sender, foreign recipient", stranger, "scan@contoso.com", "a@example.net", relayDenied},
		{"subdomain", stranger, "scan@mfp.contoso.com", "erp@contoso.com", rcptOK},
		{"foreign sender", stranger, "a@fabrikam.com", "erp@contoso.com", rcptOK},
		{"null sender", stranger, "", "erp@contoso.com", rcptOK},
		{"connector", atSite, "scan@contoso.com", "erp@contoso.com", rcptOK},
	} {
		k := dialMX(t, s, tc.source)
		k.read()
		k.say("EHLO relay.example.com")
		if got := k.envelope(tc.sender, tc.rcpt); !like(got, tc.want) {
			t.Errorf("%s: got %s, want %s", tc.name, got, tc.want)
		}
	}
	k := dialMX(t, s, stranger)
	k.read()
	k.say("EHLO relay.example.com")
	for _, tc := range []struct {
		on   bool
		want string
	}{{false, rcptOK}, {true, noDirectSend}} {
		s.SetRejectDirectSend(tc.on)
		k.say("RSET")
		if got := k.envelope("scan@contoso.com", "erp@contoso.com"); !like(got, tc.want) {
			t.Errorf("switched to %v: %s, want %s", tc.on, got, tc.want)
		}
	}
}

func TestKnownRecipients(t *testing.T) {
	s := startMX(t, func(c *Config) { c.KnownRecipients = []string{"info@contoso.com"} })
	s.SetMailbox("hr@contoso.com", func(m *Mailbox) { m.Aliases = []string{"jobs@contoso.com"} })
	for _, tc := range []struct{ source, rcpt, want string }{
		{stranger, "INFO@contoso.com", rcptOK},
		{stranger, "ERP@contoso.com", rcptOK},
		{stranger, "sap@contoso.com", rcptOK},  // an alias
		{stranger, "jobs@contoso.com", rcptOK}, // a new one
		{stranger, "nobody@contoso.com", noSuchRcpt},
		{stranger, "info@contoso.de", noSuchRcpt},
		{stranger, "nobody@example.net", relayDenied},
		{atSite, "nobody@contoso.com", rcptOK},
	} {
		k := dialMX(t, s, tc.source)
		k.read()
		k.say("EHLO relay.example.com")
		if got := k.envelope("a@contoso.com", tc.rcpt); !like(got, tc.want) {
			t.Errorf("%s from %s: got %s, want %s", tc.rcpt, tc.source, got, tc.want)
		}
	}
}

// TestMXKnowsNoLimits: what a mailbox may not at the submission service, it may
// at the MX endpoint; and its counters there stay what they were.
func TestMXKnowsNoLimits(t *testing.T) {
	s := startMX(t, func(c *Config) { c.Messages, c.Recipients, c.Connections, c.EnforceRate = 1, 1, 1, RateReject })
	var k [3]*client
	for i := range k {
		k[i] = dialMX(t, s, atSite)
		k[i].read()
		k[i].say("EHLO relay.example.com")
		k[i].begin("erp@contoso.com", 2)
	}
	for i := range k {
		k[i].want("From: erp@contoso.com\r\nMessage-ID: <1@device>\r\n\r\n.", queued)
	}
	if err := s.WaitAccepted(t.Context(), len(k)); err != nil {
		t.Error(err)
	}
	if got := login(t, s, "erp@contoso.com").send("erp@contoso.com", "From: erp@contoso.com"+id, 1); got != accepted {
		t.Errorf("submission after that: %s", got)
	}
	if u := s.Usage("erp@contoso.com"); u.Accepted != 1 || u.MaxInData != 1 || u.MaxSessions != 1 {
		t.Errorf("usage %+v", u)
	}
}

// TestMXCloseInterrupts: Close does not wait for the delay of a verdict, and the
// message then has none.
func TestMXCloseInterrupts(t *testing.T) {
	s := startMX(t, func(c *Config) { c.VerdictMin = time.Hour })
	setFaults(t, s, Faults{Busy: 1})
	k := dialMX(t, s, stranger)
	k.read()
	k.say("EHLO relay.example.com")
	k.envelope("a@contoso.com", "erp@contoso.com")
	k.say("DATA")
	io.WriteString(k.c, "From: a@contoso.com\r\n\r\n.\r\n")
	for s.Faults().Busy > 0 { // until the verdict is due
		time.Sleep(time.Millisecond)
	}
	s.Close()
	if got := k.read(); got != "EOF" {
		t.Errorf("got %s", got)
	}
	if all := s.Messages(); len(all) != 1 || !all[0].Dropped || all[0].Reply != "" {
		t.Errorf("captured %+v", all)
	}
}

func TestMXRefusesConnect(t *testing.T) {
	s := startMX(t, nil)
	setFaults(t, s, Faults{RefuseConnect: true})
	k := dialMX(t, s, stranger)
	if got := k.read() + "|" + k.read(); got != "421 4.3.2 Service not available|EOF" {
		t.Errorf("got %s", got)
	}
}

// TestSubmissionAsksForNoCertificate: it would be of no use there, and the
// message says at which endpoint it came.
func TestSubmissionAsksForNoCertificate(t *testing.T) {
	s := startMX(t, nil)
	k := login(t, s, "erp@contoso.com")
	k.send("erp@contoso.com", "From: erp@contoso.com"+id, 1)
	if m := s.Messages()[0]; m.Endpoint != "submission" || m.Connector != "" || m.Certificate != "" {
		t.Errorf("captured %+v", m)
	}
	if s.tls.ClientAuth != tls.NoClientCert {
		t.Error("the submission service asks for a certificate")
	}
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
	login(t, s, "erp@contoso.com").send("erp@contoso.com", "From: erp@contoso.com"+id, 1)
	k := dialMX(t, s, stranger)
	k.secureMX(clientCert(t, s, "relay.contoso.com"), nil)
	k.deliver("a@contoso.com", "a@example.net", "From: a@contoso.com"+id)
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
	var log lockedBuffer
	s := startMX(t, func(c *Config) { c.Log = testLog(&log) })
	k := dialMX(t, s, stranger)
	k.secureMX(newTestAuthority(t).pair(t, template("relay.contoso.com")), nil)
	if got := log.String(); !strings.Contains(got, `msg="client certificate not trusted"`) || !strings.Contains(got, "unknown authority") {
		t.Errorf("log: %s", got)
	}
}

func TestConnectorMatches(t *testing.T) {
	for _, tc := range []struct {
		connector Connector
		value     string // an address or a name
		want      bool
	}{
		{Connector{SenderIPs: []string{"203.0.113.7"}}, "203.0.113.7", true},
		{Connector{SenderIPs: []string{"203.0.113.7"}}, "203.0.113.8", false},
		{Connector{SenderIPs: []string{"192.0.2.1", "10.1.0.0/16"}}, "10.1.255.255", true},
		{Connector{SenderIPs: []string{"10.1.0.0/16"}}, "10.2.0.0", false},
		{Connector{SenderIPs: []string{"::ffff:203.0.113.7"}}, "203.0.113.7", true},
		{Connector{SenderIPs: []string{"2001:db8::/64"}}, "2001:db8::25", true},
		{Connector{SenderIPs: []string{"2001:db8::25"}}, "2001:db8::26", false},
		{Connector{CertificateName: "relay.contoso.com"}, "RELAY.contoso.com", true},
		{Connector{CertificateName: "relay.contoso.com"}, "x.relay.contoso.com", false},
		{Connector{CertificateName: "relay.contoso.com"}, "relay.contoso.com.example.net", false},
		{Connector{CertificateName: "*.contoso.com"}, "relay.contoso.com", true},
		{Connector{CertificateName: "*.contoso.com"}, "a.relay.CONTOSO.com", true},
		{Connector{CertificateName: "*.contoso.com"}, "contoso.com", false},
		{Connector{CertificateName: "*.contoso.com"}, "xcontoso.com", false},
		{Connector{CertificateName: "*.contoso.com"}, ".contoso.com", false},
		{Connector{SenderIPs: []string{"203.0.113.7"}}, "relay.contoso.com", false},
	} {
		c := tc.connector
		if err := c.complete(); err != nil {
			t.Fatal(err)
		}
		a, _ := netip.ParseAddr(tc.value)
		if got := c.hasName(tc.value) || c.hasAddress(a); got != tc.want {
			t.Errorf("%q in %q and %v: %v, want %v", tc.value, c.CertificateName, c.SenderIPs, got, tc.want)
		}
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
