//go:build packagetest

package proof

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"math/big"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// newerSuite is a Debian whose Postfix (3.10) obeys the header TLS-Required (RFC 8689).
const newerSuite = "trixie"

// lowers is the header by which a message asks for delivery without proof, and without TLS.
const lowers = "TLS-Required: no\r\n"

// TestTLSRequired: on a Debian whose Postfix obeys the header, no message gets a token, or the mail
// of a connector, to a server that has not proved whose it is. First it is shown that without our
// settings it would.
func TestTLSRequired(t *testing.T) {
	d := booted(t, newerSuite, func(*debian) {})
	if d == nil {
		return
	}
	t.Logf("Postfix %s", d.sh("postconf -dh mail_version"))
	s := newSite(t, d)
	s.setUpPostfix()
	d.sh("dpkg -i " + debPath(newVersion))
	s.configure()
	s.sh(startBoth)
	want(t, "what enable says", d.sh("sendas postfix enable"), "main.cf: tls_required_enable = no (was not set)\n")
	want(t, "what enable says the second time", d.sh("sendas postfix enable"), "nothing to change")
	d.sh("postconf -e smtp_tls_loglevel=1; postfix reload") // so that the log says who has proved what
	s.arrives()
	for _, tc := range lowered {
		for _, server := range []string{"without TLS", "self-signed"} {
			t.Run(tc.name+", "+server, func(t *testing.T) {
				in := *s
				in.debian = &debian{t: t, root: s.root, leader: s.leader}
				in.lower(tc, server)
			})
		}
	}
	s.upgradeIsNoticed()
}

// What the settings were, and what they are.
const (
	obeys     = "tls_required_enable=yes"
	firmly    = "tls_required_enable=no"
	once      = "sendas/unix/smtp_sasl_security_options=noanonymous sendas/unix/smtp_sasl_tls_security_options=noanonymous 'sendas/unix/smtp_sasl_tls_verified_security_options=$smtp_sasl_tls_security_options' "
	hidden    = "sendas/unix/smtp_sasl_security_options=noanonymous,noplaintext sendas/unix/smtp_sasl_tls_security_options=noanonymous,noplaintext sendas/unix/smtp_sasl_tls_verified_security_options=noanonymous "
	nobody    = "sendas/unix/smtp_tls_policy_maps="
	byTable   = "'sendas/unix/smtp_tls_policy_maps=inline:{{smtp.office365.com=may},{[smtp.office365.com]:PORT=may}}'"
	sendas    = "sendas"
	connector = "connector"
)

// A lowering is a way to lower the security of a transport, and what stands against it.
type lowering struct {
	name      string
	transport string
	main, own string // settings of main.cf, and of the transport sendas
	heard     string // what the server gets: "token", "mail" or ""
}

var lowered = []lowering{
	{"a header, as it was", sendas, obeys, once + nobody, "token"},
	{"a header, and Postfix obeys", sendas, obeys, hidden + nobody, ""},
	{"a header, and Postfix does not", sendas, firmly, once + nobody, ""},
	{"a header", sendas, firmly, hidden + nobody, ""},
	{"a table, as it was", sendas, firmly, once + byTable, "token"},
	{"a table", sendas, firmly, hidden + byTable, ""},
	{"a table of main.cf's", sendas, firmly + " 'smtp_tls_policy_maps=inline:{ {smtp.office365.com = may} }'", once + nobody, ""},
	{"a header at a connector, as it was", connector, obeys, hidden + nobody, "mail"},
	{"a header at a connector", connector, firmly, hidden + nobody, ""},
}

// lower sends a message with the header where somebody else answers for Microsoft, and looks what
// that one gets.
func (s *site) lower(tc lowering, server string) {
	s.t.Helper()
	f := startForger(s.t, server == "self-signed")
	s.sh("postconf -X smtp_tls_policy_maps; postconf -e 'default_transport=" + tc.transport + ":[smtp.office365.com]:" + f.port + "' " + tc.main + `
		postconf -P ` + strings.ReplaceAll(tc.own, "PORT", f.port) + `
		postconf -M connector/unix='connector unix - - y - - smtp -o smtp_tls_security_level=secure -o smtp_tls_CAfile=/etc/ssl/certs/ca-certificates.crt'
		postfix reload`)
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	said := s.sendOne(ctx, lowers).Verdict().Text
	id := said[strings.LastIndex(said, " ")+1:]
	outcome := s.waitLog(id + `: to=<a@fabrikam\.com>.* status=.*`)
	s.sh("postsuper -d ALL")
	if got := f.got(); got != tc.heard || got == "" && !kept.MatchString(outcome) {
		s.t.Errorf("the server got %q, want %q: %s", got, tc.heard, outcome)
	} else {
		s.t.Logf("the server got %q: %s", got, outcome)
	}
}

// kept is why a message stays that somebody else was not to get.
var kept = regexp.MustCompile(`TLS is required, but was not offered|Server certificate not verified|no mechanism available`)

// arrives sends a message with the header to Exchange Online: it is there, without the header, and
// by a connection with proof.
func (s *site) arrives() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	s.sendOne(ctx, lowers)
	s.wait(1)
	if f := s.exosim.Messages()[0].Header("TLS-Required"); len(f) > 0 {
		s.t.Errorf("TLS-Required %q has left", f)
	}
	s.waitLog(`Verified TLS connection established to smtp\.office365\.com`)
}

// upgradeIsNoticed takes away what a Postfix of Debian 12 did not have yet: the doctor fails, and
// says what mends it.
func (s *site) upgradeIsNoticed() {
	s.t.Helper()
	s.sh("postconf -X tls_required_enable")
	cure := s.doctorsCure()
	s.sh(cure)
	if said, _ := s.try("sendas doctor"); strings.Contains(said, cure) {
		s.t.Errorf("the doctor is not content with %s:\n%s", cure, said)
	}
}

// doctorsCure is what the doctor says to type where Postfix obeys the header.
func (s *site) doctorsCure() string {
	s.t.Helper()
	said, err := s.try("sendas doctor")
	if err == nil {
		s.t.Error("the doctor finds nothing where Postfix obeys the header")
	}
	cure := regexp.MustCompile(`postconf -e 'tls_required_enable = no' && postfix reload`).FindString(said)
	if cure == "" {
		s.t.Fatalf("the doctor does not say what to type:\n%s", said)
	}
	return cure
}

// waitLog waits for a line in the journal and returns what matches.
func (s *site) waitLog(form string) string {
	s.t.Helper()
	re, found := regexp.MustCompile(form), ""
	eventually(s.t, form, func() bool {
		log, _ := s.try("journalctl --boot --no-pager --output=short")
		found = re.FindString(log)
		return found != ""
	})
	return found
}

// A forger answers in the place of Microsoft's server and asks for a token.
type forger struct {
	port string
	cert *tls.Config // nil without TLS

	mu    sync.Mutex
	heard strings.Builder
}

func startForger(t *testing.T, withTLS bool) *forger {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &forger{}
	_, f.port, _ = net.SplitHostPort(l.Addr().String())
	if withTLS {
		f.cert = selfSigned(t, "smtp.office365.com")
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go f.serve(conn)
		}
	}()
	return f
}

// got says what the forger was given.
func (f *forger) got() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	begin := base64.StdEncoding.EncodeToString([]byte("user=erp@contoso.com\x01auth=Bearer "))
	switch heard := f.heard.String(); {
	case strings.Contains(heard, begin[:40]): // whole groups of three bytes
		return "token"
	case strings.Contains(heard, "\r\nhello\r\n"):
		return "mail"
	}
	return ""
}

// serve talks as a server does that wants everything.
func (f *forger) serve(conn net.Conn) {
	defer func() { conn.Close() }()
	conn.SetDeadline(time.Now().Add(patience))
	secure := false
	r := bufio.NewReader(conn)
	say := func(text string) { fmt.Fprint(conn, text+"\r\n") }
	say("220 smtp.office365.com")
	for {
		line, err := r.ReadString('\n')
		f.mu.Lock()
		f.heard.WriteString(line)
		f.mu.Unlock()
		if err != nil {
			return
		}
		switch verb := strings.ToUpper(strings.TrimSpace(line[:min(4, len(line))])); {
		case verb == "EHLO" && f.cert != nil && !secure:
			say("250-smtp.office365.com\r\n250-STARTTLS\r\n250 AUTH XOAUTH2")
		case verb == "EHLO":
			say("250-smtp.office365.com\r\n250 AUTH XOAUTH2")
		case verb == "STAR":
			say("220 go on")
			over := tls.Server(conn, f.cert)
			conn, r, secure = over, bufio.NewReader(over), true
		case verb == "AUTH":
			say("334 ")
		case verb == "MAIL", verb == "RCPT", line == ".\r\n":
			say("250 2.0.0 OK")
		case verb == "DATA":
			say("354 go on")
		case verb == "QUIT":
			say("221 2.0.0 bye")
			return
		case !strings.Contains(line, " ") && len(line) > 60: // a token
			say("235 2.7.0 Authentication successful")
		}
	}
}

// selfSigned makes a certificate that nobody trusts.
func selfSigned(t *testing.T, name string) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}
