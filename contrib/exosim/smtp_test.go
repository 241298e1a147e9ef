package exosim

import (
	"bufio"
	"bytes"
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

const secret1 = "s~1/+ &=" // of app1: what secrets are made of, and worse

func testConfig() Config {
	return Config{
		Apps: []App{
			{ClientID: app1, ObjectID: "o1", Secret: secret1, Mailboxes: []string{"erp@contoso.com", "scan@contoso.com", "gone@contoso.com"}},
			{ClientID: app2, ObjectID: "o2", Secret: "s2", Roles: []string{"SMTP.SendAsApp"}, Mailboxes: []string{"erp@contoso.com"}},
			{ClientID: app3, ObjectID: "o3", Secret: "s3", Roles: []string{"Mail.Send"}, Mailboxes: []string{"erp@contoso.com"}},
			{ClientID: app4, ObjectID: "o4", ExchangeID: "app-registration-id", Secret: "s4", Mailboxes: []string{"erp@contoso.com"}},
		},
		Mailboxes: []Mailbox{
			{Address: "erp@contoso.com", Aliases: []string{"sap@contoso.com"}, SendAs: []string{"billing@contoso.com"}},
			{Address: "scan@contoso.com"}, {Address: "hr@contoso.com"},
		},
	}
}

func startTest(t testing.TB, change func(*Config)) *Server {
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
	t testing.TB
	s *Server
	c net.Conn
	r *bufio.Reader
}

func dial(t testing.TB, s *Server) *client {
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
	k.want("STARTTLS", "220 2.0.0 SMTP server ready")
	k.handshake()
}

func (k *client) handshake() {
	k.t.Helper()
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

// greet comes as far as the second EHLO.
func greet(t testing.TB, s *Server) *client {
	t.Helper()
	k := dial(t, s)
	k.startTLS()
	k.say("EHLO relay.example.com")
	return k
}

// login signs in as a mailbox.
func login(t testing.TB, s *Server, user string) *client {
	t.Helper()
	k := greet(t, s)
	if got := k.say("AUTH XOAUTH2 " + xoauth2(user, s.Issue(app1, audience, time.Hour))); got != "235 2.7.0 Authentication successful" {
		t.Fatalf("AUTH as %s: %s", user, got)
	}
	return k
}

// begin sends the envelope and DATA.
func (k *client) begin(sender string, rcpts int) {
	k.t.Helper()
	k.want("MAIL FROM:<"+sender+"> SIZE=100", "250 2.1.0 Sender OK")
	for i := range rcpts {
		k.want(fmt.Sprintf("RCPT TO:<r%d@fabrikam.com>", i), "250 2.1.5 Recipient OK")
	}
	k.want("DATA", "354 Start mail input; end with <CRLF>.<CRLF>")
}

// send sends a message and returns the verdict.
func (k *client) send(sender, header string, rcpts int) string {
	k.t.Helper()
	k.begin(sender, rcpts)
	return k.say(strings.ReplaceAll(header, "\n", "\r\n") + "\r\n\r\nbody\r\n.")
}

// want says a line and ends the test unless the reply is like the pattern.
func (k *client) want(line, pattern string) {
	k.t.Helper()
	if got := k.say(line); !like(got, pattern) {
		k.t.Fatalf("%.60s: got %q, want %q", line, got, pattern)
	}
}

// like compares with a pattern in which * is anything and ? a hex digit.
func like(got, pattern string) bool {
	re := strings.NewReplacer(`\*`, ".*", `\?`, "[0-9A-F]").Replace(regexp.QuoteMeta(pattern))
	return regexp.MustCompile("^" + re + "$").MatchString(got)
}

const (
	plainEHLO = "250-*.outlook.office365.com Hello [127.0.0.1]|250-SIZE 157286400|250-PIPELINING|250-DSN|250-ENHANCEDSTATUSCODES|250-STARTTLS|250-8BITMIME|250-BINARYMIME|250-CHUNKING|250 SMTPUTF8"
	tlsEHLO   = "250-*.outlook.office365.com Hello [127.0.0.1]|250-SIZE 157286400|250-PIPELINING|250-DSN|250-ENHANCEDSTATUSCODES|250-AUTH LOGIN XOAUTH2|250-8BITMIME|250-BINARYMIME|250-CHUNKING|250 SMTPUTF8"
)

// step is a line of the client and what it is answered.
type step struct{ line, want string }

func (k *client) dialogue(steps []step) {
	k.t.Helper()
	for _, s := range steps {
		if got := k.say(s.line); !like(got, s.want) {
			k.t.Errorf("%.60s: got %q, want %q", s.line, got, s.want)
		}
	}
}

const where = "[LO4P302CA0005.GBRP302.PROD.OUTLOOK.COM ????-??-??T??:??:??.???Z 08DE????????????]"

func TestBanner(t *testing.T) {
	got := dial(t, startTest(t, nil)).read()
	want := `^220 LO4P302CA0005\.outlook\.office365\.com Microsoft ESMTP MAIL Service ready at \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d \+0000 \[[0-9A-F]{16}\]$`
	if !regexp.MustCompile(want).MatchString(got) {
		t.Errorf("banner: %s", got)
	}
}

func TestBeforeTLS(t *testing.T) {
	k := dial(t, startTest(t, nil))
	k.read()
	k.dialogue([]step{
		{"STARTTLS", "503 5.5.2 Send hello first"},
		{"MAIL FROM:<a@b.c>", "503 5.5.2 Send hello first"},
		{"EHLO", "501 5.5.4 Invalid arguments"},
		{"ehlo relay.example.com", plainEHLO},
		{"AUTH XOAUTH2 x", "504 5.7.4 Unrecognized authentication type"},
		{"MAIL FROM:<a@b.c>", "451 5.7.3 STARTTLS is required to send mail"},
		{"RCPT TO:<a@b.c>", "503 5.5.2 Need mail command"},
		{"DATA", "503 5.5.2 Need mail command"},
		{"HELP", "502 5.3.3 Command not implemented"},
		{"VRFY erp", "502 5.3.3 Command not implemented"},
		{"EXPN all", "502 5.3.3 Command not implemented"},
		{"NOOP", "250 2.0.0 OK"},
		{"xyz", "500 5.3.3 Unrecognized command 'xyz' " + where},
		{"\xff\x01", "500 5.3.3 Unrecognized command '*' " + where},
		{"", "500 5.3.3 Unrecognized command '' " + where},
		{"HELO relay", "250 LO4P302CA0005.outlook.office365.com Hello [127.0.0.1]"},
		{"QUIT", "221 2.0.0 Service closing transmission channel"},
	})
	if got := k.read(); got != "EOF" {
		t.Errorf("after QUIT: %s", got)
	}
}

func TestAfterTLS(t *testing.T) {
	s := startTest(t, nil)
	k := dial(t, s)
	k.startTLS()
	k.dialogue([]step{
		{"MAIL FROM:<a@b.c>", "503 5.5.2 Send hello first"},
		{"AUTH XOAUTH2 x", "503 5.5.2 Send hello first"},
		{"EHLO relay.example.com", tlsEHLO},
		{"STARTTLS", "503 5.5.2 *"},
		{"MAIL FROM:<a@b.c>", "530 5.7.57 Client not authenticated to send mail. " + where},
		{"AUTH PLAIN AGEAYg==", "504 5.7.4 Unrecognized authentication type"},
		{"AUTH", "504 5.7.4 Unrecognized authentication type"},
		{"auth xoauth2", "334 "},
		{xoauth2("erp@contoso.com", s.Issue(app1, audience, time.Hour)), "235 2.7.0 Authentication successful"},
		{"AUTH XOAUTH2 x", "503 5.5.1 Already authenticated"},
	})
}

func TestEnvelope(t *testing.T) {
	s := startTest(t, func(c *Config) { c.MaxMessageRcpts, c.MaxSize = 2, 1000 })
	k := login(t, s, "erp@contoso.com")
	k.dialogue([]step{
		{"RCPT TO:<a@b.c>", "503 5.5.2 Need mail command"},
		{"MAIL FROM:<erp@contoso.com> SIZE=1001", "552 5.3.4 Message size exceeds fixed maximum message size"},
		{"MAIL FROM:<erp@contoso.com> SIZE=-1", "501 5.5.4 Invalid arguments"},
		{"MAIL FROM:<erp@contoso.com> COLOUR=red", "501 5.5.4 Invalid arguments"},
		{"MAIL FROM:erp@contoso.com", "501 5.5.4 Invalid arguments"},
		{"MAIL FROM:<erp>", "501 5.5.4 Invalid arguments"},
		{"MAIL FROM:<erp@contoso.com", "501 5.5.4 Invalid arguments"},
		{"MAIL", "501 5.5.4 Invalid arguments"},
		{`MAIL FROM:<"a>\"b"@contoso.com> SIZE=1000 BODY=8BITMIME RET=HDRS ENVID=x AUTH=<>`, "250 2.1.0 Sender OK"},
		{"MAIL FROM:<erp@contoso.com>", "503 5.5.2 Sender already specified"},
		{"DATA", "503 5.5.2 Need rcpt command"},
		{"RCPT TO:<>", "501 5.5.4 Invalid arguments"},
		{"RCPT TO:<someone@example.net> NOTIFY=NEVER ORCPT=rfc822;a@b.c", "250 2.1.5 Recipient OK"},
		{"RCPT TO:<nobody@nowhere.example>", "250 2.1.5 Recipient OK"},
		{"RCPT TO:<third@example.net>", "452 4.5.3 Too many recipients"},
		{"DATA now", "501 5.5.4 Invalid arguments"},
		{"RSET", "250 2.0.0 Resetting"},
		{"DATA", "503 5.5.2 Need mail command"},
		{"MAIL FROM:<erp@contoso.com>", "250 2.1.0 Sender OK"},
		{"EHLO relay.example.com", strings.Replace(tlsEHLO, "157286400", "1000", 1)},
		{"RCPT TO:<a@b.c>", "503 5.5.2 Need mail command"}, // EHLO begins anew
	})
	k.begin("erp@contoso.com", 1)
	k.want("From: erp@contoso.com\r\n\r\n"+strings.Repeat("x", 1000)+"\r\n.", "552 5.3.4 Message size exceeds fixed maximum message size")
	if got := k.send("erp@contoso.com", "From: erp@contoso.com", 1); !strings.HasPrefix(got, "250 2.0.0 OK ") {
		t.Errorf("after one that was too large: %s", got)
	}
}

// TestLongLines: 12288 bytes of base64 pass (RFC 4954, section 4), more do not.
func TestLongLines(t *testing.T) {
	k := greet(t, startTest(t, nil))
	k.want("AUTH XOAUTH2 "+xoauth2("erp@contoso.com", strings.Repeat("x", 9216-36)), "535 5.7.3 Authentication unsuccessful "+where)
	k.want("AUTH XOAUTH2", "334 ")
	k.want(xoauth2("erp@contoso.com", strings.Repeat("x", 9216-36)), "535 5.7.3 Authentication unsuccessful "+where)
	k.want("NOOP "+strings.Repeat("x", 13000), "500 5.3.3 Line too long")
}

// TestPipelinedSTARTTLS: what comes with STARTTLS before TLS is not heard after it.
func TestPipelinedSTARTTLS(t *testing.T) {
	k := dial(t, startTest(t, nil))
	k.read()
	k.say("EHLO relay.example.com")
	k.want("STARTTLS\r\nEHLO injected.example", "220 2.0.0 SMTP server ready")
	k.handshake()
	k.want("MAIL FROM:<a@b.c>", "503 5.5.2 Send hello first")
}

func TestPipelining(t *testing.T) {
	k := login(t, startTest(t, nil), "erp@contoso.com")
	got := []string{k.say("MAIL FROM:<erp@contoso.com>\r\nRCPT TO:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nDATA")}
	for range 3 {
		got = append(got, k.read())
	}
	want := "250 2.1.0 Sender OK|250 2.1.5 Recipient OK|250 2.1.5 Recipient OK|354 Start mail input; end with <CRLF>.<CRLF>"
	if strings.Join(got, "|") != want {
		t.Errorf("got %q", got)
	}
}

// TestContent: the message arrives byte for byte, and only CR LF . CR LF ends it.
func TestContent(t *testing.T) {
	const header = "From: erp@contoso.com\r\n\r\n"
	for _, tc := range []struct{ name, sent, want string }{
		{"plain", "a\r\n", "a\r\n"},
		{"doubled dots", "..\r\n...a\r\na.\r\n", ".\r\n..a\r\na.\r\n"},
		{"dot after a bare LF", "a\n.\r\nb\r\n", "a\n.\r\nb\r\n"},
		{"dot before a bare LF", "a\r\n.\nb\r\n", "a\r\n\nb\r\n"},
		{"dot after a bare CR", "a\r.\r\nb\r\n", "a\r.\r\nb\r\n"},
		{"8 bit and NUL", "\xfc\x00\r\n", "\xfc\x00\r\n"},
		{"line as long as the buffer", strings.Repeat("x", maxLine-1) + "\r\n.." + "\r\n", strings.Repeat("x", maxLine-1) + "\r\n.\r\n"},
		{"line much longer", strings.Repeat("x", 3*maxLine) + "\r\n", strings.Repeat("x", 3*maxLine) + "\r\n"},
	} {
		s := startTest(t, nil)
		k := login(t, s, "erp@contoso.com")
		k.begin("erp@contoso.com", 1)
		k.want(header+tc.sent+".", "250 2.0.0 OK *")
		if got := string(s.Messages()[0].Data); got != header+tc.want {
			t.Errorf("%s: got %q", tc.name, got)
		}
	}
}

func FuzzBody(f *testing.F) {
	f.Add([]byte("a\r\n.b\r\n"))
	f.Add([]byte("\n.\r\n\r.\r\n"))
	f.Add([]byte(".\r\n."))
	f.Fuzz(func(t *testing.T, message []byte) {
		message = append(message, "\r\n"...)
		stuffed := bytes.ReplaceAll(append([]byte("\r\n"), message...), []byte("\r\n."), []byte("\r\n.."))[2:]
		near, far := net.Pipe()
		defer near.Close()
		go func() {
			far.Write(append(stuffed, ".\r\nQUIT\r\n"...))
			far.Close()
		}()
		k := &conn{s: &Server{cfg: Config{Idle: time.Minute, MaxSize: 1 << 30}}, c: near, r: bufio.NewReaderSize(near, 16)}
		got, _, err := k.body()
		if err != nil || !bytes.Equal(got, message) {
			t.Errorf("sent %q, got %q, %v", message, got, err)
		}
	})
}

func TestChunking(t *testing.T) {
	const first, second = "From: erp@contoso.com\r\n", "\r\n.\r\nbody"
	s := startTest(t, func(c *Config) { c.MaxSize = 100 })
	k := login(t, s, "erp@contoso.com")
	k.dialogue([]step{
		{"BDAT 4\r\nabc", "503 5.5.2 Need mail command"}, // the fourth byte is CR ...
	})
	k.read() // ... and the empty line after it a command
	for _, tc := range []struct{ second, want string }{
		{second, "250 2.0.0 OK *"},
		{strings.Repeat("x", 100), "552 5.3.4 Message size exceeds fixed maximum message size"},
	} {
		k.want("MAIL FROM:<erp@contoso.com> BODY=BINARYMIME", "250 2.1.0 Sender OK")
		k.want("RCPT TO:<a@b.c>", "250 2.1.5 Recipient OK")
		fmt.Fprintf(k.c, "BDAT %d\r\n%s", len(first), first)
		if got := k.read(); got != fmt.Sprintf("250 2.0.0 %d bytes received", len(first)) {
			t.Errorf("first chunk: %s", got)
		}
		k.want("DATA", "503 5.5.2 DATA after BDAT")
		fmt.Fprintf(k.c, "BDAT %d LAST\r\n%s", len(tc.second), tc.second)
		if got := k.read(); !like(got, tc.want) {
			t.Errorf("last chunk: %s, want %s", got, tc.want)
		}
	}
	if all := s.Messages(); len(all) != 1 || string(all[0].Data) != first+second {
		t.Errorf("captured %+v", all)
	}
	if u := s.Usage("erp@contoso.com"); u.MaxInData != 1 {
		t.Errorf("%d messages at a time, want 1", u.MaxInData)
	}
	k.want("BDAT x", "501 5.5.4 Invalid arguments")
	if got := k.read(); got != "EOF" {
		t.Errorf("after a chunk of unknown length: %s", got)
	}
}

func TestIdle(t *testing.T) {
	k := dial(t, startTest(t, func(c *Config) { c.Idle = 20 * time.Millisecond }))
	k.read()
	if got := k.read(); !like(got, "421 4.4.1 Connection timed out "+where) {
		t.Errorf("got %s", got)
	}
	if got := k.read(); got != "EOF" {
		t.Errorf("then %s", got)
	}
}

// TestCloseInterrupts: Close does not wait for delays.
func TestCloseInterrupts(t *testing.T) {
	s := startTest(t, func(c *Config) { c.VerdictMin, c.TarPit = time.Hour, time.Hour })
	k := login(t, s, "erp@contoso.com")
	k.begin("erp@contoso.com", 1)
	io.WriteString(k.c, "From: erp@contoso.com\r\n\r\n.\r\n")
	pit := dial(t, s)
	pit.read()
	io.WriteString(pit.c, "xyz\r\n")
	s.Close()
	if a, b := k.read(), pit.read(); a != "EOF" || b != "EOF" {
		t.Errorf("got %q and %q", a, b)
	}
}
