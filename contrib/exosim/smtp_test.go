package exosim

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"
)

const (
	app1 = "11111111-0000-4000-8000-000000000001" // App RBAC: no roles
	app2 = "22222222-0000-4000-8000-000000000002" // classic, with SMTP.SendAsApp
	app3 = "33333333-0000-4000-8000-000000000003" // classic with another role
	app4 = "44444444-0000-4000-8000-000000000004" // New-ServicePrincipal with the wrong object id
)

func testConfig() Config {
	return Config{
		Apps: []App{
			{ClientID: app1, ObjectID: "o1", Secret: "s1", Mailboxes: []string{"erp@contoso.com", "scan@contoso.com", "gone@contoso.com"}},
			{ClientID: app2, ObjectID: "o2", Secret: "s2", Roles: []string{"SMTP.SendAsApp"}, Mailboxes: []string{"erp@contoso.com"}},
			{ClientID: app3, ObjectID: "o3", Secret: "s3", Roles: []string{"Mail.Send"}, Mailboxes: []string{"erp@contoso.com"}},
			{ClientID: app4, ObjectID: "o4", ExchangeID: "app-registration-id", Secret: "s4", Mailboxes: []string{"erp@contoso.com"}},
		},
		Mailboxes: []Mailbox{
			{Address: "erp@contoso.com", Aliases: []string{"sap@contoso.com"}, SendAs: []string{"billing@contoso.com"}},
			{Address: "scan@contoso.com"},
		},
	}
}

func startTest(t *testing.T, change func(*Config)) *Server {
	t.Helper()
	c := testConfig()
	if change != nil {
		change(&c)
	}
	s, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// client speaks raw lines.
type client struct {
	t *testing.T
	s *Server
	c net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, s *Server) *client {
	t.Helper()
	c, err := net.Dial("tcp", s.SubmissionAddr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	return &client{t, s, c, bufio.NewReader(c)}
}

// read returns a reply, its lines joined by "|"; "EOF" when the connection has ended.
func (k *client) read() string {
	k.t.Helper()
	var lines []string
	for {
		l, err := k.r.ReadString('\n')
		if err != nil {
			return "EOF"
		}
		if !strings.HasSuffix(l, "\r\n") {
			k.t.Errorf("line %q does not end with CR LF", l)
		}
		l = strings.TrimSuffix(l, "\r\n")
		lines = append(lines, l)
		if len(l) < 4 || l[3] != '-' {
			return strings.Join(lines, "|")
		}
	}
}

func (k *client) say(line string) string {
	k.t.Helper()
	io.WriteString(k.c, line+"\r\n")
	return k.read()
}

func (k *client) startTLS() {
	k.t.Helper()
	k.read()
	k.say("EHLO relay.example.com")
	if got := k.say("STARTTLS"); got != "220 2.0.0 SMTP server ready" {
		k.t.Fatalf("STARTTLS: %s", got)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(k.s.CA())
	c := tls.Client(k.c, &tls.Config{RootCAs: pool, ServerName: "smtp.office365.com"})
	if err := c.Handshake(); err != nil {
		k.t.Fatal(err)
	}
	k.c, k.r = c, bufio.NewReader(c)
}

func xoauth2(user, token string) string {
	return base64.StdEncoding.EncodeToString([]byte("user=" + user + "\x01auth=Bearer " + token + "\x01\x01"))
}

// login signs in as a mailbox.
func login(t *testing.T, s *Server, user string) *client {
	t.Helper()
	k := dial(t, s)
	k.startTLS()
	k.say("EHLO relay.example.com")
	if got := k.say("AUTH XOAUTH2 " + xoauth2(user, s.Issue(app1, audience, time.Hour))); got != "235 2.7.0 Authentication successful" {
		t.Fatalf("AUTH as %s: %s", user, got)
	}
	return k
}

// send sends a message and returns the verdict.
func (k *client) send(sender, header string, rcpts int) string {
	k.t.Helper()
	for _, step := range []struct{ line, want string }{{"MAIL FROM:<" + sender + "> SIZE=100", "250 2.1.0 Sender OK"}} {
		if got := k.say(step.line); got != step.want {
			k.t.Fatalf("%s: %s", step.line, got)
		}
	}
	for i := range rcpts {
		if got := k.say(fmt.Sprintf("RCPT TO:<r%d@fabrikam.com>", i)); got != "250 2.1.5 Recipient OK" {
			k.t.Fatalf("RCPT: %s", got)
		}
	}
	if got := k.say("DATA"); got != "354 Start mail input; end with <CRLF>.<CRLF>" {
		k.t.Fatalf("DATA: %s", got)
	}
	return k.say(strings.ReplaceAll(header, "\n", "\r\n") + "\r\n\r\nbody\r\n.")
}

// like compares with a pattern in which * is anything.
func like(got, pattern string) bool {
	re := strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, ".*")
	return regexp.MustCompile("^" + re + "$").MatchString(got)
}

const (
	plainEHLO = "250-*.outlook.office365.com Hello [127.0.0.1]|250-SIZE 157286400|250-PIPELINING|250-DSN|250-ENHANCEDSTATUSCODES|250-STARTTLS|250-8BITMIME|250-BINARYMIME|250-CHUNKING|250 SMTPUTF8"
	tlsEHLO   = "250-*.outlook.office365.com Hello [127.0.0.1]|250-SIZE 157286400|250-PIPELINING|250-DSN|250-ENHANCEDSTATUSCODES|250-AUTH LOGIN XOAUTH2|250-8BITMIME|250-BINARYMIME|250-CHUNKING|250 SMTPUTF8"
)

func TestDialogue(t *testing.T) {
	s := startTest(t, nil)
	k := dial(t, s)
	if got := k.read(); !regexp.MustCompile(`^220 \S+\.outlook\.office365\.com Microsoft ESMTP MAIL Service ready at \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d \+0000 \[[0-9A-F]{16}\]$`).MatchString(got) {
		t.Errorf("banner: %s", got)
	}
	for _, step := range []struct{ line, want string }{
		{"EHLO relay.example.com", plainEHLO},
		{"AUTH XOAUTH2 x", "504 5.7.4 Unrecognized authentication type"},
		{"MAIL FROM:<a@b.c>", "451 5.7.3 STARTTLS is required to send mail"},
		{"HELP", "502 5.3.3 Command not implemented"},
		{"xyz", "500 5.3.3 Unrecognized command 'XYZ' [*]"},
		{"HELO relay", "250 *.outlook.office365.com Hello [127.0.0.1]"},
		{"QUIT", "221 2.0.0 Service closing transmission channel"},
	} {
		if got := k.say(step.line); !like(got, step.want) {
			t.Errorf("%s: %s, want %s", step.line, got, step.want)
		}
	}
	k = dial(t, s)
	k.startTLS()
	for _, step := range []struct{ line, want string }{
		{"MAIL FROM:<a@b.c>", "503 5.5.2 Send hello first"},
		{"AUTH XOAUTH2 x", "503 5.5.2 Send hello first"},
		{"EHLO relay.example.com", tlsEHLO},
		{"MAIL FROM:<a@b.c>", "530 5.7.57 Client not authenticated to send mail. [*]"},
		{"AUTH PLAIN AGEAYg==", "504 5.7.4 Unrecognized authentication type"},
		{"AUTH XOAUTH2 !!!", "501 5.5.4 Invalid arguments"},
		{"AUTH LOGIN", "334 VXNlcm5hbWU6"},
		{"dQ==", "334 UGFzc3dvcmQ6"},
		{"cA==", "535 5.7.139 Authentication unsuccessful, basic authentication is disabled. [*]"},
		{"MAIL FROM:<a@b.c>", "530 5.7.57 Client not authenticated to send mail. Error: 535 5.7.139 Authentication unsuccessful, basic authentication is disabled. [*]"},
		{"auth xoauth2", "334 "},
		{xoauth2("erp@contoso.com", s.Issue(app1, audience, time.Hour)), "235 2.7.0 Authentication successful"},
		{"AUTH XOAUTH2 x", "503 5.5.1 Already authenticated"},
		{"RCPT TO:<a@b.c>", "503 5.5.2 Need mail command"},
		{"MAIL FROM:<erp@contoso.com> SIZE=157286401", "552 5.3.4 Message size exceeds fixed maximum message size"},
		{"MAIL FROM:erp@contoso.com", "501 5.5.4 Invalid arguments"},
		{"MAIL FROM:<erp@contoso.com>", "250 2.1.0 Sender OK"},
		{"DATA", "503 5.5.2 Need rcpt command"},
		{"RCPT TO:<someone@example.net>", "250 2.1.5 Recipient OK"},
		{"RSET", "250 2.0.0 Resetting"},
		{"QUIT", "221 2.0.0 Service closing transmission channel"},
	} {
		if got := k.say(step.line); !like(got, step.want) {
			t.Errorf("%s: %s, want %s", step.line, got, step.want)
		}
	}
}

func TestAuth(t *testing.T) {
	const failed = "535 5.7.3 Authentication unsuccessful [*]"
	for _, tc := range []struct {
		name   string
		change func(*Config)
		user   string
		token  func(s *Server) string
		want   string
	}{
		{"App RBAC, in scope", nil, "erp@contoso.com", func(s *Server) string { return s.Issue(app1, audience, time.Hour) }, "235 2.7.0 Authentication successful"},
		{"App RBAC, out of scope", func(c *Config) { c.Apps[0].Mailboxes = nil }, "erp@contoso.com", func(s *Server) string { return s.Issue(app1, audience, time.Hour) }, failed},
		{"classic", nil, "erp@contoso.com", func(s *Server) string { return s.Issue(app2, audience, time.Hour) }, "235 2.7.0 Authentication successful"},
		{"classic, no FullAccess", nil, "scan@contoso.com", func(s *Server) string { return s.Issue(app2, audience, time.Hour) }, failed},
		{"classic, another role", nil, "erp@contoso.com", func(s *Server) string { return s.Issue(app3, audience, time.Hour) }, failed},
		{"wrong object id", nil, "erp@contoso.com", func(s *Server) string { return s.Issue(app4, audience, time.Hour) }, failed},
		{"audience Graph", nil, "erp@contoso.com", func(s *Server) string { return s.Issue(app1, "https://graph.microsoft.com", time.Hour) }, failed},
		{"expired", nil, "erp@contoso.com", func(s *Server) string { return s.Issue(app1, audience, -time.Second) }, failed},
		{"unknown app", nil, "erp@contoso.com", func(s *Server) string { return s.Issue("nobody", audience, time.Hour) }, failed},
		{"no such mailbox", nil, "gone@contoso.com", func(s *Server) string { return s.Issue(app1, audience, time.Hour) }, failed},
		{"garbled", nil, "erp@contoso.com", func(s *Server) string { return s.Issue(app1, audience, time.Hour) + "x" }, failed},
		{"of another issuer", nil, "erp@contoso.com", func(*Server) string { return "EwBAAl3BAAUFFpUAo7J3Ve0bjLBWZWCclRC3EoAA" }, failed},
		{"revoked", nil, "erp@contoso.com", func(s *Server) string {
			tok := s.Issue(app1, audience, time.Hour)
			time.Sleep(1100 * time.Millisecond) // tokens carry seconds
			s.RevokeTokens()
			return tok
		}, failed},
		{"tenant switch", func(c *Config) { c.SMTPAuthDisabled = true }, "erp@contoso.com", func(s *Server) string { return s.Issue(app1, audience, time.Hour) },
			"535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled for more information. [*]"},
		{"mailbox switch", func(c *Config) { c.Mailboxes[0].SMTPAuthDisabled = true }, "erp@contoso.com", func(s *Server) string { return s.Issue(app1, audience, time.Hour) },
			"535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. Visit https://aka.ms/smtp_auth_disabled for more information. [*]"},
	} {
		s := startTest(t, tc.change)
		k := dial(t, s)
		k.startTLS()
		k.say("EHLO relay.example.com")
		if got := k.say("AUTH XOAUTH2 " + xoauth2(tc.user, tc.token(s))); !like(got, tc.want) {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

// TestXOAUTH2Vector is Microsoft's own example.
func TestXOAUTH2Vector(t *testing.T) {
	user, token, err := parseXOAUTH2("dXNlcj10ZXN0QGNvbnRvc28ub25taWNyb3NvZnQuY29tAWF1dGg9QmVhcmVyIEV3QkFBbDNCQUFVRkZwVUFvN0ozVmUwYmpMQldaV0NjbFJDM0VvQUEBAQ==")
	if err != nil || user != "test@contoso.onmicrosoft.com" || token != "EwBAAl3BAAUFFpUAo7J3Ve0bjLBWZWCclRC3EoAA" {
		t.Errorf("user %q, token %q, %v", user, token, err)
	}
}

func FuzzXOAUTH2(f *testing.F) {
	f.Add("user=a\x01auth=Bearer b\x01\x01")
	f.Add("user=\x01auth=Bearer \x01\x01")
	f.Add("n,a=x,\x01auth=Bearer b\x01\x01")
	f.Fuzz(func(t *testing.T, payload string) {
		user, token, err := parseXOAUTH2(base64.StdEncoding.EncodeToString([]byte(payload)))
		if err == nil && payload != "user="+user+"\x01auth=Bearer "+token+"\x01\x01" {
			t.Errorf("%q read as user %q, token %q", payload, user, token)
		}
	})
}

const id = "\nMessage-ID: <1@device>"

func TestVerdicts(t *testing.T) {
	denied := func(as string) string {
		return "554 5.2.252 SendAsDenied; erp@contoso.com not allowed to send as " + as + "; STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; " +
			"Failed to process message due to a permanent exception with message [BeginDiagnosticData]Cannot submit message. *[EndDiagnosticData] [Hostname=*]"
	}
	const noFrom = "550 5.7.512 Access denied, message must be RFC 5322 section 3.6.2 compliant and include a valid From address*"
	for _, tc := range []struct {
		name           string
		change         func(*Config)
		sender, header string
		want           string
	}{
		{"itself", nil, "erp@contoso.com", "From: ERP <erp@contoso.com>" + id, "250 2.0.0 OK <1@device> [Hostname=*.PROD.OUTLOOK.COM]"},
		{"alias", nil, "SAP@contoso.com", "From: sap@contoso.com" + id, "250 2.0.0 OK <1@device> [Hostname=*]"},
		{"Send As", nil, "billing@contoso.com", "From: billing@contoso.com" + id, "250 2.0.0 OK <1@device> [Hostname=*]"},
		{"Message-ID of the service", nil, "erp@contoso.com", "From: erp@contoso.com", "250 2.0.0 OK <*@*.prod.outlook.com> [Hostname=*]"},
		{"From of another", nil, "erp@contoso.com", "From: ceo@contoso.com" + id, denied("ceo@contoso.com")},
		{"envelope of another", nil, "ceo@contoso.com", "From: erp@contoso.com" + id, denied("ceo@contoso.com")},
		{"null sender", nil, "", "From: erp@contoso.com" + id, denied("")},
		{"Sender of another", nil, "erp@contoso.com", "From: erp@contoso.com\nSender: ceo@contoso.com" + id, denied("ceo@contoso.com")},
		{"one of two", nil, "erp@contoso.com", "From: erp@contoso.com, ceo@contoso.com\nSender: erp@contoso.com" + id, denied("ceo@contoso.com")},
		{"two without Sender", nil, "erp@contoso.com", "From: erp@contoso.com, sap@contoso.com" + id, "550 5.1.20 Multiple From addresses are not allowed without Sender address*"},
		{"no From", nil, "erp@contoso.com", "Subject: x" + id, noFrom},
		{"two From fields", nil, "erp@contoso.com", "From: erp@contoso.com\nFrom: erp@contoso.com" + id, noFrom},
		{"unquoted @", nil, "erp@contoso.com", "From: erp@floor 3 <erp@contoso.com>" + id, noFrom},
		{"raw 8-bit", nil, "erp@contoso.com", "From: B\xfcro <erp@contoso.com>" + id, noFrom},
		{"mailbox full", func(c *Config) { c.Mailboxes[0].Full = true }, "erp@contoso.com", "From: erp@contoso.com",
			"554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded*"},
		{"not replicated", func(c *Config) { c.Mailboxes[0].NoLogon = true }, "erp@contoso.com", "From: erp@contoso.com",
			"430 4.2.0 STOREDRV; mailbox logon failure; STOREDRV.Submission.Exception:ConnectionFailedTransientException.MapiExceptionLogonFailed;*"},
		{"quota", func(c *Config) { c.Recipients = 1 }, "erp@contoso.com", "From: erp@contoso.com",
			"554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed to process message due to a permanent exception with message The message can't be submitted because the sender's submission quota was exceeded.*"},
	} {
		s := startTest(t, tc.change)
		if got := login(t, s, "erp@contoso.com").send(tc.sender, tc.header, 2); !like(got, tc.want) {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
		if m := s.Messages(); len(m) != 1 || m[0].Mailbox != "erp@contoso.com" || len(m[0].Recipients) != 2 || !strings.HasSuffix(string(m[0].Data), "\r\n\r\nbody\r\n") {
			t.Errorf("%s: captured %+v", tc.name, m)
		}
	}
}

func TestConcurrency(t *testing.T) {
	s := startTest(t, func(c *Config) { c.VerdictMin = 300 * time.Millisecond })
	replies := make(chan string)
	for range 4 {
		k := login(t, s, "erp@contoso.com")
		k.say("MAIL FROM:<erp@contoso.com>")
		k.say("RCPT TO:<a@fabrikam.com>")
		k.say("DATA")
		go func() { replies <- k.say("From: erp@contoso.com\r\n\r\n.") }()
	}
	refused := 0
	for range 4 {
		if got := <-replies; like(got, "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information. [Hostname=*]") {
			refused++
		} else if got[0] != '2' {
			t.Errorf("reply %s", got)
		}
	}
	if u := s.Usage("erp@contoso.com"); refused != 1 || u.MaxInData != 4 || u.MaxSessions != 4 || u.Refused["432"] != 1 {
		t.Errorf("%d refused, usage %+v, want one of four", refused, u)
	}
}

func TestRateIsCounted(t *testing.T) {
	for _, enforce := range []bool{false, true} {
		s := startTest(t, func(c *Config) { c.Messages, c.Window, c.EnforceRate = 3, time.Hour, enforce })
		k := login(t, s, "erp@contoso.com")
		last := ""
		for range 4 {
			last = k.send("erp@contoso.com", "From: erp@contoso.com", 1)
		}
		u := s.Usage("erp@contoso.com")
		if enforce && (u.WorstByDot != 3 || !strings.HasPrefix(last, "451 4.7.0 Temporary server error. Please try again later. PRX2")) {
			t.Errorf("enforced: %+v, %s", u, last)
		}
		if !enforce && (u.WorstByDot != 4 || u.WorstByVerdict != 4 || u.Recipients != 4) {
			t.Errorf("counted: %+v, want 4", u)
		}
	}
}

func TestFaults(t *testing.T) {
	s := startTest(t, nil)
	s.SetFaults(Faults{DropInData: 1})
	k := login(t, s, "erp@contoso.com")
	k.say("MAIL FROM:<erp@contoso.com>")
	k.say("RCPT TO:<a@fabrikam.com>")
	if k.say("DATA"); k.say("From: erp@contoso.com\r\n\r\n.") != "EOF" || len(s.Messages()) != 0 {
		t.Errorf("dropped in DATA: %d messages", len(s.Messages()))
	}
	s.SetFaults(Faults{DropAfterData: 1})
	if got := login(t, s, "erp@contoso.com").send("erp@contoso.com", "From: erp@contoso.com", 1); got != "EOF" || len(s.Messages()) != 1 || !s.Messages()[0].Accepted() {
		t.Errorf("dropped after DATA: %s, %d messages", got, len(s.Messages()))
	}
	s.SetFaults(Faults{Busy: 1})
	if got := login(t, s, "erp@contoso.com").send("erp@contoso.com", "From: erp@contoso.com", 1); !like(got, "451 4.7.0 *") {
		t.Errorf("busy: %s", got)
	}
	s.SetFaults(Faults{RefuseConnect: true})
	if got := dial(t, s).read(); got != "421 4.3.2 Service not available" {
		t.Errorf("refused connection: %s", got)
	}
}

// TestChallenge is Google's way of refusing, which a client should survive.
func TestChallenge(t *testing.T) {
	s := startTest(t, func(c *Config) { c.Challenge = true })
	k := dial(t, s)
	k.startTLS()
	k.say("EHLO relay.example.com")
	if got := k.say("AUTH XOAUTH2 " + xoauth2("erp@contoso.com", "x")); !strings.HasPrefix(got, "334 ey") {
		t.Errorf("challenge: %s", got)
	}
	if got := k.say(""); !like(got, "535 5.7.3 Authentication unsuccessful [*]") {
		t.Errorf("after the challenge: %s", got)
	}
}
