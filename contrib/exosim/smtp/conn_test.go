package smtp

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
)

const (
	plainEHLO = "250-*.outlook.office365.com Hello [127.0.0.1]|250-SIZE 157286400|250-PIPELINING|250-DSN|250-ENHANCEDSTATUSCODES|250-STARTTLS|250-8BITMIME|250-BINARYMIME|250-CHUNKING|250 SMTPUTF8"
	tlsEHLO   = "250-*.outlook.office365.com Hello [127.0.0.1]|250-SIZE 157286400|250-PIPELINING|250-DSN|250-ENHANCEDSTATUSCODES|250-AUTH LOGIN XOAUTH2|250-8BITMIME|250-BINARYMIME|250-CHUNKING|250 SMTPUTF8"
)

func TestBanner(t *testing.T) {
	got := dial(t, startTest(t, nil)).Read()
	want := `^220 LO4P302CA0005\.outlook\.office365\.com Microsoft ESMTP MAIL Service ready at \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d \+0000 \[[0-9A-F]{16}\]$`
	if !regexp.MustCompile(want).MatchString(got) {
		t.Errorf("banner: %s", got)
	}
}

func TestBeforeTLS(t *testing.T) {
	k := dial(t, startTest(t, nil))
	k.Read()
	k.Dialogue([]visitor.Step{
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
		{"xyz", "500 5.3.3 Unrecognized command 'xyz' " + visitor.Frontend},
		{"\xff\x01", "500 5.3.3 Unrecognized command '*' " + visitor.Frontend},
		{"", "500 5.3.3 Unrecognized command '' " + visitor.Frontend},
		{"HELO relay", "250 LO4P302CA0005.outlook.office365.com Hello [127.0.0.1]"},
		{"QUIT", "221 2.0.0 Service closing transmission channel"},
	})
	if got := k.Read(); got != "EOF" {
		t.Errorf("after QUIT: %s", got)
	}
}

func TestAfterTLS(t *testing.T) {
	s := startTest(t, nil)
	k := dial(t, s)
	k.StartTLS()
	k.Dialogue([]visitor.Step{
		{"MAIL FROM:<a@b.c>", "503 5.5.2 Send hello first"},
		{"AUTH XOAUTH2 x", "503 5.5.2 Send hello first"},
		{"EHLO relay.example.com", tlsEHLO},
		{"STARTTLS", "503 5.5.2 *"},
		{"MAIL FROM:<a@b.c>", "530 5.7.57 Client not authenticated to send mail. " + visitor.Frontend},
		{"AUTH PLAIN AGEAYg==", "504 5.7.4 Unrecognized authentication type"},
		{"AUTH", "504 5.7.4 Unrecognized authentication type"},
		{"auth xoauth2", "334 "},
		{visitor.Response("erp@contoso.com", s.Issue(app1, directory.Exchange, time.Hour)), "235 2.7.0 Authentication successful"},
		{"AUTH XOAUTH2 x", "503 5.5.1 Already authenticated"},
	})
}

func TestEnvelope(t *testing.T) {
	s := startTest(t, func(c *siteConfig) { c.MaxMessageRcpts, c.MaxSize = 2, 1000 })
	k := login(t, s, "erp@contoso.com")
	k.Dialogue([]visitor.Step{
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
	k.Begin("erp@contoso.com", 1)
	k.Want("From: erp@contoso.com\r\n\r\n"+strings.Repeat("x", 1000)+"\r\n.", "552 5.3.4 Message size exceeds fixed maximum message size")
	if got := k.Send("erp@contoso.com", "From: erp@contoso.com", 1); !strings.HasPrefix(got, "250 2.0.0 OK ") {
		t.Errorf("after one that was too large: %s", got)
	}
}

// TestLongLines: 12288 bytes of base64 pass (RFC 4954, section 4), more do not.
func TestLongLines(t *testing.T) {
	k := greet(t, startTest(t, nil))
	k.Want(visitor.XOAUTH2("erp@contoso.com", strings.Repeat("x", 9216-36)), "535 5.7.3 Authentication unsuccessful "+visitor.Frontend)
	k.Want("AUTH XOAUTH2", "334 ")
	k.Want(visitor.Response("erp@contoso.com", strings.Repeat("x", 9216-36)), "535 5.7.3 Authentication unsuccessful "+visitor.Frontend)
	k.Want("NOOP "+strings.Repeat("x", 13000), "500 5.3.3 Line too long")
}

// TestPipelinedSTARTTLS: what comes with STARTTLS before TLS is not heard after it.
func TestPipelinedSTARTTLS(t *testing.T) {
	k := dial(t, startTest(t, nil))
	k.Read()
	k.Say("EHLO relay.example.com")
	k.Want("STARTTLS\r\nEHLO injected.example", "220 2.0.0 SMTP server ready")
	k.Handshake()
	k.Want("MAIL FROM:<a@b.c>", "503 5.5.2 Send hello first")
}

func TestPipelining(t *testing.T) {
	k := login(t, startTest(t, nil), "erp@contoso.com")
	got := []string{k.Say("MAIL FROM:<erp@contoso.com>\r\nRCPT TO:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nDATA")}
	for range 3 {
		got = append(got, k.Read())
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
		k.Begin("erp@contoso.com", 1)
		k.Want(header+tc.sent+".", "250 2.0.0 OK *")
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
		k := &conn{x: &Exchange{cfg: Config{Idle: time.Minute}}, at: endpoint{maxSize: 1 << 30}, c: near, r: bufio.NewReaderSize(near, 16)}
		got, _, err := k.body()
		if err != nil || !bytes.Equal(got, message) {
			t.Errorf("sent %q, got %q, %v", message, got, err)
		}
	})
}

func TestChunking(t *testing.T) {
	const first, second = "From: erp@contoso.com\r\n", "\r\n.\r\nbody"
	s := startTest(t, func(c *siteConfig) { c.MaxSize = 100 })
	k := login(t, s, "erp@contoso.com")
	k.Dialogue([]visitor.Step{
		{"BDAT 4\r\nabc", "503 5.5.2 Need mail command"}, // the fourth byte is CR ...
	})
	k.Read() // ... and the empty line after it a command
	for _, tc := range []struct{ second, want string }{
		{second, "250 2.0.0 OK *"},
		{strings.Repeat("x", 100), "552 5.3.4 Message size exceeds fixed maximum message size"},
	} {
		k.Want("MAIL FROM:<erp@contoso.com> BODY=BINARYMIME", "250 2.1.0 Sender OK")
		k.Want("RCPT TO:<a@b.c>", "250 2.1.5 Recipient OK")
		fmt.Fprintf(k.Conn, "BDAT %d\r\n%s", len(first), first)
		if got := k.Read(); got != fmt.Sprintf("250 2.0.0 %d bytes received", len(first)) {
			t.Errorf("first chunk: %s", got)
		}
		k.Want("DATA", "503 5.5.2 DATA after BDAT")
		fmt.Fprintf(k.Conn, "BDAT %d LAST\r\n%s", len(tc.second), tc.second)
		if got := k.Read(); !visitor.Like(got, tc.want) {
			t.Errorf("last chunk: %s, want %s", got, tc.want)
		}
	}
	if all := s.Messages(); len(all) != 1 || string(all[0].Data) != first+second {
		t.Errorf("captured %+v", all)
	}
	if u := s.Usage("erp@contoso.com"); u.MaxInData != 1 {
		t.Errorf("%d messages at a time, want 1", u.MaxInData)
	}
	k.Want("BDAT x", "501 5.5.4 Invalid arguments")
	if got := k.Read(); got != "EOF" {
		t.Errorf("after a chunk of unknown length: %s", got)
	}
}

func TestIdle(t *testing.T) {
	k := dial(t, startTest(t, func(c *siteConfig) { c.Idle = 20 * time.Millisecond }))
	k.Read()
	if got := k.Read(); !visitor.Like(got, "421 4.4.1 Connection timed out "+visitor.Frontend) {
		t.Errorf("got %s", got)
	}
	if got := k.Read(); got != "EOF" {
		t.Errorf("then %s", got)
	}
}

// TestCloseInterrupts: Close does not wait for delays.
func TestCloseInterrupts(t *testing.T) {
	s := startTest(t, func(c *siteConfig) { c.VerdictMin, c.TarPit = time.Hour, time.Hour })
	k := login(t, s, "erp@contoso.com")
	k.Begin("erp@contoso.com", 1)
	io.WriteString(k.Conn, "From: erp@contoso.com\r\n\r\n.\r\n")
	pit := dial(t, s)
	pit.Read()
	io.WriteString(pit.Conn, "xyz\r\n")
	s.Close()
	if a, b := k.Read(), pit.Read(); a != "EOF" || b != "EOF" {
		t.Errorf("got %q and %q", a, b)
	}
}
