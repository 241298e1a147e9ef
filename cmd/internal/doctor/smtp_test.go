package doctor

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/mail"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/cmd/internal/dns/dnstest"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/finding/findingtest"
	"github.com/sendas/sendas/token/entra"
)

// A testCA makes certificates for servers.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newTestCA(t *testing.T) *testCA {
	t.Helper()
	ca := &testCA{}
	ca.cert = &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	c := ca.issue(t, ca.cert)
	ca.cert, ca.key = c.Leaf, c.PrivateKey.(*ecdsa.PrivateKey)
	return ca
}

// issue signs a certificate; the authority's own, as long as there is none.
func (ca *testCA) issue(t *testing.T, template *x509.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer := ca.key
	if signer == nil {
		signer = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// server issues a certificate for a name that ends at that moment.
func (ca *testCA) server(t *testing.T, name string, end time.Time) tls.Certificate {
	return ca.issue(t, &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: end})
}

func (ca *testCA) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
}

func (ca *testCA) file(t *testing.T) string {
	return configtest.WriteFile(t, filepath.Join(t.TempDir(), "ca.pem"), string(ca.pem()), 0o644)
}

// A scriptedServer answers as Exchange Online does, but for what a test replaces: the reply to a
// command, by its first word, and within TLS by "TLS " and the word. DOT is the verdict, RESPONSE
// what follows the 334 of AUTH. "hangup" ends the connection, "plain" is garbage in place of TLS.
type scriptedServer struct {
	replies map[string]string
	tls     *tls.Config

	mu    sync.Mutex // guards lines, and replies while clients are there
	lines []string   // what clients said
}

var usualReplies = map[string]string{
	"BANNER":   "220 LO4P302CA0005.outlook.office365.com Microsoft ESMTP MAIL Service ready at Thu, 10 Oct 2024 22:49:55 +0000 [08DCE8B62813AB2B]",
	"EHLO":     "250-LO4P302CA0005.outlook.office365.com Hello [203.0.113.7]\r\n250-SIZE 157286400\r\n250-PIPELINING\r\n250-STARTTLS\r\n250 SMTPUTF8",
	"STARTTLS": "220 2.0.0 SMTP server ready",
	"TLS EHLO": "250-LO4P302CA0005.outlook.office365.com Hello [203.0.113.7]\r\n250-SIZE 157286400\r\n250-PIPELINING\r\n250-AUTH LOGIN XOAUTH2\r\n250 SMTPUTF8",
	"AUTH":     "334 ", "RESPONSE": "235 2.7.0 Authentication successful", "MAIL": "250 2.1.0 Sender OK", "RCPT": "250 2.1.5 Recipient OK", "RSET": "250 2.0.0 Resetting",
	"DATA": "354 Start mail input; end with <CRLF>.<CRLF>", "DOT": "250 2.0.0 OK <x@contoso.com> [Hostname=SYBP282MB2635.AUSP282.PROD.OUTLOOK.COM]", "QUIT": "221 2.0.0 Service closing transmission channel",
}

func (s *scriptedServer) reply(keys ...string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range []map[string]string{s.replies, usualReplies} {
		for _, k := range keys {
			if r, ok := m[k]; ok {
				return r
			}
		}
	}
	return "500 5.3.3 Unrecognized command 'xyz' [host 2024-03-01T09:55:18.157Z 08DC]"
}

// dial is the dialler of a world in which the server is the only host.
func (s *scriptedServer) dial(context.Context, string, string) (net.Conn, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		return nil, err
	}
	server, err := ln.Accept()
	if err != nil {
		return nil, err
	}
	go s.serve(server)
	return client, nil
}

func (s *scriptedServer) serve(c net.Conn) {
	defer c.Close()
	text, within := textproto.NewConn(c), ""
	fmt.Fprintf(c, "%s\r\n", s.reply("BANNER"))
	response := false
	for {
		line, err := text.ReadLine()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.lines = append(s.lines, line)
		s.mu.Unlock()
		word, _, _ := strings.Cut(line, " ")
		if response {
			word = "RESPONSE"
		}
		answer := s.reply(within+word, word)
		if answer == "hangup" {
			return
		}
		fmt.Fprintf(c, "%s\r\n", answer)
		response = strings.HasPrefix(answer, "334")
		switch {
		case word == "STARTTLS" && strings.HasPrefix(answer, "220") && s.tls == nil:
			fmt.Fprint(c, "this is no TLS\r\n")
		case word == "STARTTLS" && strings.HasPrefix(answer, "220"):
			c = tls.Server(c, s.tls)
			text, within = textproto.NewConn(c), "TLS "
		case strings.HasPrefix(answer, "354"):
			if _, err := text.ReadDotBytes(); err != nil {
				return
			}
			fmt.Fprintf(c, "%s\r\n", s.reply("DOT"))
		case word == "QUIT":
			return
		}
	}
}

// said returns what clients said.
func (s *scriptedServer) said() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.lines...)
}

// theToken is what no report may show; nothing is wrong in it.
var theToken = tokenOf(`{"aud":"https://outlook.office365.com","appid":"5f2c0d3e-0000-4000-8000-000000000001","oid":"0b1ec700-0000-4000-8000-000000000002","idtyp":"app","roles":["SMTP.SendAsApp"]}`)

// tokenOf makes a token of claims; nobody has signed it.
func tokenOf(claims string) string {
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(`{"typ":"JWT","alg":"RS256"}`)) + "." + enc([]byte(claims)) + "." + enc([]byte("signature"))
}

// smtpDoctor is a doctor who has a token and goes to the mailboxes at once.
func smtpDoctor(t *testing.T, caFile string, w *world, q Options) (*Walk, *bytes.Buffer) {
	t.Helper()
	c, err := config.Load(configtest.WriteFile(t, filepath.Join(t.TempDir(), "sendas.yaml"), configtest.SmallConfig, 0o644), config.SkipFiles)
	if err != nil {
		t.Fatal(err)
	}
	c.Tenant.Endpoints.CAFile = caFile
	w.resolver = dnstest.Fake{Records: map[string][]string{"IP smtp.office365.com": {"203.0.113.25"}}, Asked: map[string]int{}}
	var out bytes.Buffer
	q.Stdout = &out
	d := New(&q, w)
	d.config = c
	d.tokens["relay-app"] = &entra.Token{Access: entra.Secret(theToken), Expires: time.Now().Add(time.Hour)}
	d.Hide(theToken)
	return d, &out
}

// talk has the doctor look at one mailbox, scan@contoso.com, which may send as office@ too.
func (s *scriptedServer) talk(t *testing.T) (*Walk, string) {
	t.Helper()
	ca := newTestCA(t)
	if s.tls == nil && s.replies["STARTTLS"] != "plain" {
		s.tls = &tls.Config{Certificates: []tls.Certificate{ca.server(t, "smtp.office365.com", time.Now().Add(time.Hour))}}
	}
	w := emptyWorld()
	w.dial = s.dial
	d, out := smtpDoctor(t, ca.file(t), w, Options{})
	d.checkMailboxes(t.Context(), []patient{{user: "scan@contoso.com", label: "scan@contoso.com", credential: "relay-app", identities: []string{"scan@contoso.com", "office@contoso.com"}}})
	findingtest.WantWhole(t, &d.Report)
	if text := out.String() + fmt.Sprint(d.Checks); strings.Contains(text, theToken) || strings.Contains(text, bearerOf("scan@contoso.com")) {
		t.Errorf("the report shows the token:\n%s", text)
	}
	return d, out.String()
}

// bearerOf is the answer to AUTH XOAUTH2 with theToken.
func bearerOf(user string) string {
	return base64.StdEncoding.EncodeToString([]byte("user=" + user + "\x01auth=Bearer " + theToken + "\x01\x01"))
}

func TestDoctorTalk(t *testing.T) {
	s := &scriptedServer{}
	d, _ := s.talk(t)
	for id, words := range map[string]string{
		"submission.dns": "203.0.113.25", "submission.tcp": "587", "submission.banner": "Microsoft ESMTP MAIL Service", "submission.ehlo": "STARTTLS", "submission.tls": "issued by test authority",
		"submission.auth_offer": "AUTH LOGIN XOAUTH2, SIZE 157286400", "mailbox.scan@contoso.com.auth": "takes the token", "mailbox.scan@contoso.com.mail_from": "2 of 2",
	} {
		d.wantCheck(t, id, finding.OK, words)
	}
	want := []string{"EHLO relay.contoso.com", "STARTTLS", "EHLO relay.contoso.com", "AUTH XOAUTH2", bearerOf("scan@contoso.com"),
		"MAIL FROM:<scan@contoso.com>", "RCPT TO:<scan@contoso.com>", "RSET", "MAIL FROM:<office@contoso.com>", "RCPT TO:<scan@contoso.com>", "RSET", "QUIT"}
	if got := strings.Join(s.said(), "\n"); got != strings.Join(want, "\n") {
		t.Errorf("the doctor said\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// What the payload of XOAUTH2 looks like is Microsoft's own example.
func TestXOAUTH2Vector(t *testing.T) {
	const want = "dXNlcj10ZXN0QGNvbnRvc28ub25taWNyb3NvZnQuY29tAWF1dGg9QmVhcmVyIEV3QkFBbDNCQUFVRkZwVUFvN0ozVmUwYmpMQldaV0NjbFJDM0VvQUEBAQ=="
	s := &scriptedServer{}
	w := emptyWorld()
	w.dial = s.dial
	d, _ := smtpDoctor(t, "", w, Options{})
	k := &smtpTalk{d: d, host: "smtp.office365.com", port: "587"}
	if _, err := k.connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer k.end()
	if _, err := k.greeting(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := k.authenticate("test@contoso.onmicrosoft.com", "EwBAAl3BAAUFFpUAo7J3Ve0bjLBWZWCclRC3EoAA"); err != nil {
		t.Fatal(err)
	}
	if said := s.said(); said[len(said)-1] != want {
		t.Errorf("the answer to AUTH is %q, want %q", said[len(said)-1], want)
	}
}

// Each row replaces one reply of the server.
func TestDoctorReplies(t *testing.T) {
	const id = "mailbox.scan@contoso.com."
	for _, tc := range []struct {
		key, reply string
		id         string
		words      string
		passes     bool
	}{
		{"BANNER", "421 4.3.2 Service not available", "submission.banner", "has trouble", true},
		{"BANNER", "554 5.9.9 no", "submission.banner", "no explanation here", false},
		{"BANNER", "* OK IMAP4 ready", "submission.banner", "not speak SMTP", false},
		{"EHLO", "250-mx Hello\r\n250-SIZE 1\r\n250-XXXXXXXA\r\n250 8BITMIME", "submission.ehlo", "inspect esmtp", false},
		{"EHLO", "502 5.3.3 Command not implemented", "submission.ehlo", "502 5.3.3", false},
		{"EHLO", "hangup", "submission.ehlo", "ended the connection", true},
		{"STARTTLS", "454 4.7.0 TLS not available", "submission.tls", "454 4.7.0", true},
		{"TLS EHLO", "250-mx Hello\r\n250 AUTH LOGIN PLAIN", "submission.auth_offer", "XOAUTH2 is not among: LOGIN PLAIN", false},
		{"TLS EHLO", "250 mx Hello", "submission.auth_offer", "XOAUTH2 is not among", false},
		{"AUTH", "504 5.7.4 Unrecognized authentication type", id + "auth", "not offered", false},
		{"RESPONSE", "535 5.7.3 Authentication unsuccessful [AM0PR06CA0126.eurprd06.prod.outlook.com 2024-02-14T14:50:26.590Z 08DC2D372B4C3DED]", id + "auth", "FullAccess on scan@contoso.com", false},
		{"RESPONSE", "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. Visit https://aka.ms/smtp_auth_disabled for more information. [host]", id + "auth",
			`"Set-CASMailbox scan@contoso.com -SmtpClientAuthenticationDisabled $false"`, false},
		{"RESPONSE", "535-5.7.139 Authentication unsuccessful,\r\n535 5.7.139 SmtpClientAuthentication is disabled for the Tenant.", id + "auth", "whole tenant", false},
		{"RESPONSE", "501 5.5.127 Invalid XOAUTH2 auth data - Token will expire soon error", id + "auth", "10 minutes", true},
		{"RESPONSE", "421 4.3.2 Service not available", id + "auth", "has trouble", true},
		{"RESPONSE", "500 5.3.3 Unrecognized command '" + theToken + "'", id + "auth", "REDACTED", false},
		{"RESPONSE", "500 5.3.3 Unrecognized command '" + bearerOf("scan@contoso.com")[:80] + "'", id + "auth", "REDACTED", false},
		{"RESPONSE", "hangup", id + "auth", "ended the connection", true},
		{"MAIL", "530 5.7.57 Client not authenticated to send mail. [host]", id + "mail_from.2", "no credential", false},
		{"MAIL", "501 5.5.4 Invalid arguments", id + "mail_from.1", "malformed", false},
		{"RSET", "451 4.7.0 Temporary server error. Please try again later. PRX2", id + "rset", "has trouble", true},
		{"RCPT", "550 5.1.10 Recipient not found", id + "mail_from.1", "no such recipient", false},
	} {
		s := &scriptedServer{replies: map[string]string{tc.key: tc.reply}}
		d, _ := s.talk(t)
		d.wantCheck(t, tc.id, finding.Fail, tc.words)
		if c := d.find(t, tc.id); c.Passes != tc.passes {
			t.Errorf("%s %q passes by itself: %v, want %v", tc.key, tc.reply, c.Passes, tc.passes)
		}
	}
}

// A server that answers AUTH with an error in JSON gets the empty line that it waits for.
func TestDoctorChallenge(t *testing.T) {
	s := &scriptedServer{replies: map[string]string{"RESPONSE": "334 eyJzdGF0dXMiOiI0MDEifQ=="}}
	ca := newTestCA(t)
	s.tls = &tls.Config{Certificates: []tls.Certificate{ca.server(t, "smtp.office365.com", time.Now().Add(time.Hour))}}
	w := emptyWorld()
	w.dial = s.dial
	d, _ := smtpDoctor(t, ca.file(t), w, Options{})
	d.checkMailboxes(t.Context(), []patient{{user: "scan@contoso.com", label: "scan@contoso.com", credential: "relay-app"}})
	said := s.said()
	if len(said) < 6 || said[5] != "" {
		t.Errorf("the doctor said %q, want an empty line after the answer", said)
	}
	d.wantCheck(t, "mailbox.scan@contoso.com.auth", finding.Fail)
}

func TestDoctorTLS(t *testing.T) {
	ca, stranger := newTestCA(t), newTestCA(t)
	hour := time.Now().Add(time.Hour)
	for _, tc := range []struct {
		name string
		conf *tls.Config
		want string
	}{
		{"good", &tls.Config{Certificates: []tls.Certificate{ca.server(t, "smtp.office365.com", hour)}}, ""},
		{"TLS 1.2", &tls.Config{Certificates: []tls.Certificate{ca.server(t, "smtp.office365.com", hour)}, MaxVersion: tls.VersionTLS12}, ""},
		{"old TLS", &tls.Config{Certificates: []tls.Certificate{ca.server(t, "smtp.office365.com", hour)}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, "no TLS 1.2"},
		{"other name", &tls.Config{Certificates: []tls.Certificate{ca.server(t, "mx.contoso.com", hour)}}, "somebody else than smtp.office365.com"},
		{"stranger", &tls.Config{Certificates: []tls.Certificate{stranger.server(t, "smtp.office365.com", hour)}}, "nobody whom this machine trusts"},
		{"expired", &tls.Config{Certificates: []tls.Certificate{ca.server(t, "smtp.office365.com", time.Now().Add(-time.Minute))}}, "not valid now"},
		{"no TLS", nil, "does not speak TLS"},
	} {
		s := &scriptedServer{tls: tc.conf}
		w := emptyWorld()
		w.dial = s.dial
		d, _ := smtpDoctor(t, ca.file(t), w, Options{})
		d.checkMailboxes(t.Context(), []patient{{user: "scan@contoso.com", label: "scan@contoso.com", credential: "relay-app"}})
		findingtest.WantWhole(t, &d.Report)
		if tc.want == "" {
			d.wantCheck(t, "submission.tls", finding.OK)
			d.wantCheck(t, "mailbox.scan@contoso.com.auth", finding.OK)
			continue
		}
		d.wantCheck(t, "submission.tls", finding.Fail, tc.want)
		for _, line := range s.said() {
			if strings.HasPrefix(line, "AUTH") {
				t.Errorf("%s: AUTH was tried", tc.name)
			}
		}
	}
}

type timeoutError struct{}

func (timeoutError) Error() string   { return "i/o timeout" }
func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return true }

func TestDoctorNetwork(t *testing.T) {
	for _, tc := range []struct {
		err    error
		want   string
		passes bool
	}{
		{os.NewSyscallError("connect", syscall.ECONNREFUSED), "refuses", false},
		{os.NewSyscallError("connect", syscall.ENETUNREACH), "no route", false},
		{os.NewSyscallError("connect", syscall.EHOSTUNREACH), "no route", false},
		{timeoutError{}, "drops port 587", false},
		{context.DeadlineExceeded, "drops port 587", false},
		{errors.New("strange"), "drops port 587", false},
	} {
		w := emptyWorld()
		w.dial = func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: tc.err}
		}
		d, _ := smtpDoctor(t, "", w, Options{})
		d.checkMailboxes(t.Context(), []patient{{user: "scan@contoso.com", label: "scan@contoso.com", credential: "relay-app"}})
		findingtest.WantWhole(t, &d.Report)
		d.wantCheck(t, "submission.tcp", finding.Fail, tc.want, "smtp.office365.com")
		if c := d.find(t, "submission.tcp"); c.Passes != tc.passes {
			t.Errorf("%v passes by itself: %v, want %v", tc.err, c.Passes, tc.passes)
		}
	}
}

func TestDoctorNames(t *testing.T) {
	for _, tc := range []struct {
		answer, want string
		passes       bool
	}{{"servfail", "DNS did not answer", true}, {"timeout", "DNS did not answer", true}, {"", "does not know the server", false}} {
		w := emptyWorld()
		d, _ := smtpDoctor(t, "", w, Options{})
		w.resolver = dnstest.Fake{Records: map[string][]string{"IP smtp.office365.com": {tc.answer}}, Asked: map[string]int{}}
		if tc.answer == "" {
			w.resolver = dnstest.Fake{Asked: map[string]int{}}
		}
		d.checkMailboxes(t.Context(), []patient{{user: "scan@contoso.com", label: "scan@contoso.com", credential: "relay-app"}})
		d.wantCheck(t, "submission.dns", finding.Fail, tc.want)
		if c := d.find(t, "submission.dns"); c.Passes != tc.passes {
			t.Errorf("%q passes by itself: %v, want %v", tc.answer, c.Passes, tc.passes)
		}
	}
}

// A patientConn notes how long the doctor is ready to wait for each line.
type patientConn struct {
	net.Conn
	deadline time.Time
	shortest *time.Duration
}

func (c *patientConn) SetDeadline(at time.Time) error {
	c.deadline = at
	return c.Conn.SetDeadline(at)
}

func (c *patientConn) Read(b []byte) (int, error) {
	*c.shortest = min(*c.shortest, time.Until(c.deadline))
	return c.Conn.Read(b)
}

// Microsoft holds refusals back for 5 s and more; so no wait is shorter than 30 s, and none is
// without end.
func TestDoctorIsPatient(t *testing.T) {
	s, ca := &scriptedServer{}, newTestCA(t)
	s.tls = &tls.Config{Certificates: []tls.Certificate{ca.server(t, "smtp.office365.com", time.Now().Add(time.Hour))}}
	shortest := time.Hour
	w := emptyWorld()
	w.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := s.dial(ctx, network, addr)
		return &patientConn{Conn: c, shortest: &shortest}, err
	}
	d, _ := smtpDoctor(t, ca.file(t), w, Options{})
	d.checkMailboxes(t.Context(), []patient{{user: "scan@contoso.com", label: "scan@contoso.com", credential: "relay-app", identities: []string{"scan@contoso.com"}}})
	d.wantCheck(t, "mailbox.scan@contoso.com.mail_from", finding.OK)
	if shortest < 30*time.Second || shortest == time.Hour {
		t.Errorf("the shortest wait is %s, want 30 s at least", shortest)
	}
}

// A silentConn lets every read end at its deadline.
type silentConn struct{ net.Conn }

func (silentConn) Read([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }

func TestDoctorSilentServer(t *testing.T) {
	w := emptyWorld()
	w.dial = func(context.Context, string, string) (net.Conn, error) {
		c, _ := net.Pipe()
		return silentConn{c}, nil
	}
	d, _ := smtpDoctor(t, "", w, Options{})
	d.checkMailboxes(t.Context(), []patient{{user: "scan@contoso.com", label: "scan@contoso.com", credential: "relay-app"}})
	d.wantCheck(t, "submission.banner", finding.Fail, "does not answer")
}

// A server that never stops talking is left.
func TestDoctorEndlessServer(t *testing.T) {
	s := &scriptedServer{replies: map[string]string{"BANNER": strings.Repeat("220-x", maxSession)}}
	d, _ := s.talk(t)
	d.wantCheck(t, "submission.banner", finding.Fail)
}

func TestDoctorSkipsPatterns(t *testing.T) {
	w := emptyWorld()
	d, _ := smtpDoctor(t, "", w, Options{})
	d.checkMailboxes(t.Context(), []patient{{label: "*@contoso.com", credential: "relay-app"}})
	d.wantCheck(t, "mailbox.*@contoso.com.auth", finding.Skip, "sendas doctor user@contoso.com")
}

// Without a token the way is walked all the same, once.
func TestDoctorWithoutToken(t *testing.T) {
	s, ca := &scriptedServer{}, newTestCA(t)
	s.tls = &tls.Config{Certificates: []tls.Certificate{ca.server(t, "smtp.office365.com", time.Now().Add(time.Hour))}}
	w := emptyWorld()
	w.dial = s.dial
	d, _ := smtpDoctor(t, ca.file(t), w, Options{})
	clear(d.tokens)
	d.checkMailboxes(t.Context(), []patient{{user: "scan@contoso.com", label: "scan@contoso.com", credential: "relay-app"}, {user: "erp@contoso.com", label: "erp@contoso.com", credential: "relay-app"}})
	findingtest.WantWhole(t, &d.Report)
	d.wantCheck(t, "submission.auth_offer", finding.OK)
	d.wantCheck(t, "mailbox.scan@contoso.com.auth", finding.Skip, "no token")
	d.wantCheck(t, "mailbox.erp@contoso.com.auth", finding.Skip, "no token")
	if n := strings.Count(strings.Join(s.said(), "\n"), "STARTTLS"); n != 1 {
		t.Errorf("%d sessions, want 1", n)
	}
}

func TestDoctorMessage(t *testing.T) {
	now := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	m, err := mail.ReadMessage(strings.NewReader(testMessage("scan@contoso.com", "me@contoso.com", "<id@contoso.com>", now)))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"From": "scan@contoso.com", "To": "me@contoso.com", "Subject": "sendas doctor", "Auto-Submitted": "auto-generated",
		"Message-Id": "<id@contoso.com>", "Date": "Sat, 21 Nov 2026 10:00:00 +0000", "Mime-Version": "1.0"} {
		if got := m.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

func TestWireAddress(t *testing.T) {
	for in, want := range map[string]string{"scan@contoso.com": "scan@contoso.com", "büro@münchen.de": "büro@xn--mnchen-3ya.de", "x": "x"} {
		if got := wireAddress(in); got != want {
			t.Errorf("wireAddress(%q) = %q, want %q", in, got, want)
		}
	}
}
