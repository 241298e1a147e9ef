package visitor

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

	"github.com/sendas/sendas/internal/xoauth2"
)

// The texts that tests of several packages look for.
const (
	AuthOK     = "235 2.7.0 Authentication successful"
	AuthFailed = "535 5.7.3 Authentication unsuccessful " + Frontend
	Frontend   = "[LO4P302CA0005.GBRP302.PROD.OUTLOOK.COM ????-??-??T??:??:??.???Z 08DE????????????]"
	RcptOK     = "250 2.1.5 Recipient OK"
	MessageID  = "\nMessage-ID: <1@device>" // to stand behind another field
	Accepted   = "250 2.0.0 OK <1@device> [Hostname=SYBP282MB2635.AUSP282.PROD.OUTLOOK.COM]"
	Queued     = "250 2.6.0 <1@device> [InternalId=*, Hostname=*.PROD.OUTLOOK.COM] * bytes in 0.1??, * KB/sec Queued mail for delivery"
	Full       = "554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded [Hostname=*]"
)

// Client speaks raw lines of SMTP.
type Client struct {
	Conn  net.Conn
	t     testing.TB
	roots []byte // PEM
	r     *bufio.Reader
}

// Dial connects from a loopback address, as Postfix does with smtp_bind_address; "" is any. The
// authority is whom TLS trusts, PEM.
func Dial(t testing.TB, addr, source string, authority []byte) *Client {
	t.Helper()
	var d net.Dialer
	if source != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(source)}
	}
	c, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	return &Client{Conn: c, t: t, roots: authority, r: bufio.NewReader(c)}
}

// Read returns a reply, its lines joined by "|"; "EOF" when the connection has ended.
func (k *Client) Read() string {
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

// Say sends a line and returns the reply.
func (k *Client) Say(line string) string {
	k.t.Helper()
	io.WriteString(k.Conn, line+"\r\n")
	return k.Read()
}

// StartTLS comes from the banner to a connection within TLS.
func (k *Client) StartTLS() {
	k.t.Helper()
	k.Read()
	k.Say("EHLO relay.example.com")
	k.Want("STARTTLS", "220 2.0.0 SMTP server ready")
	k.Handshake()
}

// Handshake is TLS after STARTTLS was answered.
func (k *Client) Handshake() {
	k.t.Helper()
	k.handshake(&tls.Config{ServerName: "smtp.office365.com"})
}

func (k *Client) handshake(conf *tls.Config) *tls.Conn {
	k.t.Helper()
	conf.RootCAs = x509.NewCertPool()
	conf.RootCAs.AppendCertsFromPEM(k.roots)
	c := tls.Client(k.Conn, conf)
	if err := c.Handshake(); err != nil {
		k.t.Fatal(err)
	}
	k.Conn, k.r = c, bufio.NewReader(c)
	return c
}

// SecureMX comes as far as the second EHLO at the MX endpoint, with a client certificate unless it
// is nil.
func (k *Client) SecureMX(cert *tls.Certificate, cache tls.ClientSessionCache) tls.ConnectionState {
	k.t.Helper()
	k.Read()
	k.Say("EHLO relay.example.com")
	k.Want("STARTTLS", "220 2.0.0 SMTP server ready")
	conf := &tls.Config{ServerName: "contoso-com.mail.protection.outlook.com", ClientSessionCache: cache}
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	c := k.handshake(conf)
	k.Say("EHLO relay.example.com")
	return c.ConnectionState()
}

// XOAUTH2 is the line that shows a token for a mailbox.
func XOAUTH2(user, token string) string { return "AUTH XOAUTH2 " + Response(user, token) }

// Response is what XOAUTH2 shows, for a line of its own.
func Response(user, token string) string {
	_, initial, _ := xoauth2.NewClient(user, token).Start() // it cannot fail
	return base64.StdEncoding.EncodeToString(initial)
}

// Begin sends the envelope and DATA.
func (k *Client) Begin(sender string, rcpts int) {
	k.t.Helper()
	k.Want("MAIL FROM:<"+sender+"> SIZE=100", "250 2.1.0 Sender OK")
	for i := range rcpts {
		k.Want(fmt.Sprintf("RCPT TO:<r%d@fabrikam.com>", i), RcptOK)
	}
	k.Want("DATA", "354 Start mail input; end with <CRLF>.<CRLF>")
}

// Send sends a message and returns the verdict.
func (k *Client) Send(sender, header string, rcpts int) string {
	k.t.Helper()
	k.Begin(sender, rcpts)
	return k.content(header)
}

// Envelope sends MAIL and RCPT, and returns what the recipient was answered.
func (k *Client) Envelope(sender, rcpt string) string {
	k.t.Helper()
	k.Want("MAIL FROM:<"+sender+">", "250 2.1.0 Sender OK")
	return k.Say("RCPT TO:<" + rcpt + ">")
}

// Deliver sends a message, whose recipient must be taken, and returns the verdict.
func (k *Client) Deliver(sender, rcpt, header string) string {
	k.t.Helper()
	if got := k.Envelope(sender, rcpt); got != RcptOK {
		k.t.Fatalf("RCPT TO:<%s>: %s", rcpt, got)
	}
	k.Want("DATA", "354 Start mail input; end with <CRLF>.<CRLF>")
	return k.content(header)
}

func (k *Client) content(header string) string {
	k.t.Helper()
	return k.Say(strings.ReplaceAll(header, "\n", "\r\n") + "\r\n\r\nbody\r\n.")
}

// Want says a line and ends the test unless the reply is like the pattern.
func (k *Client) Want(line, pattern string) {
	k.t.Helper()
	if got := k.Say(line); !Like(got, pattern) {
		k.t.Fatalf("%.60s: got %q, want %q", line, got, pattern)
	}
}

// Like compares with a pattern in which * is anything and ? a hex digit.
func Like(got, pattern string) bool {
	re := strings.NewReplacer(`\*`, ".*", `\?`, "[0-9A-F]").Replace(regexp.QuoteMeta(pattern))
	return regexp.MustCompile("^" + re + "$").MatchString(got)
}

// Step is a line of the client and what it is answered.
type Step [2]string

// Dialogue says lines one after the other.
func (k *Client) Dialogue(steps []Step) {
	k.t.Helper()
	for _, s := range steps {
		if got := k.Say(s[0]); !Like(got, s[1]) {
			k.t.Errorf("%.60s: got %q, want %q", s[0], got, s[1])
		}
	}
}
