package lab

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"

	"github.com/emersion/go-sasl"
)

// Mail is one message as a client says it on the wire, mistakes included:
// nothing is checked, encoded or completed.
type Mail struct {
	Source  string      // the address of this machine that it comes from; "" is the system's choice
	XClient XClient     // who the client pretends to be
	TLS     *tls.Config // STARTTLS with this; nil is without
	Auth    sasl.Client // AUTH with this, after STARTTLS; nil is without, and it is good for one session
	Helo    string      // said with EHLO; "" means client.lab.example
	From    string      // stands between the brackets of MAIL FROM; "" is the null sender
	To      []string    // one RCPT each, between brackets too
	// Data is header and body. Leading dots are doubled; apart from that it
	// goes out byte for byte. When it does not end in CRLF, the CRLF that
	// the final dot needs is added.
	Data []byte
}

// XClient is who the client pretends to be, by Postfix's XCLIENT command. The
// zero value pretends nothing; "" leaves one attribute as it is.
// PostfixConfig allows it from 127.0.0.1.
type XClient struct {
	Addr  string // 10.2.0.9, or fd00:2::9
	Name  string // mfp3.local; [UNAVAILABLE] where the address has no name
	Helo  string // overrides what the server remembers of EHLO
	Login string // SASL login name
}

// A Stage is the command that a reply answers.
type Stage string

// The stages, in order.
const (
	StageConnect Stage = "CONNECT" // the banner
	StageHelo    Stage = "EHLO"    // also the one after XCLIENT
	StageTLS     Stage = "STARTTLS"
	StageAuth    Stage = "AUTH" // also its challenges
	StageXClient Stage = "XCLIENT"
	StageMail    Stage = "MAIL"
	StageRcpt    Stage = "RCPT"
	StageData    Stage = "DATA"
	StageEnd     Stage = "END" // the verdict on the message
)

// Reply is one reply of the server.
type Reply struct {
	Stage    Stage
	Code     int    // 250
	Enhanced string // 2.1.5 of RFC 3463; "" if there is none
	Text     string // what follows; lines are joined by "\n"
}

// String is the reply as it reads in one line: "RCPT: 550 5.7.1 no".
func (r Reply) String() string {
	return string(r.Stage) + ": " + r.Line()
}

// Line is the reply as it came, its lines joined: "550 5.7.1 no".
func (r Reply) Line() string {
	s := strconv.Itoa(r.Code)
	for _, part := range []string{r.Enhanced, strings.ReplaceAll(r.Text, "\n", " / ")} {
		if part != "" {
			s += " " + part
		}
	}
	return s
}

// Result is how a session went.
type Result struct {
	Replies []Reply // all but that to QUIT, in order
}

// Accepted reports whether the server took the message for at least one
// recipient; see Refused for the others.
func (r Result) Accepted() bool {
	last := r.Verdict()
	return last.Stage == StageEnd && last.Code/100 == 2
}

// Verdict is the last reply, the one that decided: the reply to the message,
// or the refusal that kept it from being sent.
func (r Result) Verdict() Reply {
	if len(r.Replies) == 0 {
		return Reply{}
	}
	return r.Replies[len(r.Replies)-1]
}

// Refused lists all replies with 4xx and 5xx: of single recipients, too.
func (r Result) Refused() []Reply {
	var refused []Reply
	for _, reply := range r.Replies {
		if reply.Code >= 400 {
			refused = append(refused, reply)
		}
	}
	return refused
}

var queuedAs = regexp.MustCompile(`\bqueued as ([0-9A-Za-z]+)`)

// QueueID is the id under which Postfix has queued the message, or "".
func (r Result) QueueID() string {
	if m := queuedAs.FindStringSubmatch(r.Verdict().Text); m != nil && r.Accepted() {
		return m[1]
	}
	return ""
}

// Limits of what a server may say, in bytes and lines.
const (
	maxReplyLine  = 4096
	maxReplyLines = 200
)

// Send sends a message to the SMTP server at addr (host:port). A
// refusal at any stage is a result. An error means that the session broke
// down: no connection, not SMTP, or ctx ended; the replies until then come
// with it. Only ctx limits the time.
func Send(ctx context.Context, addr string, m Mail) (Result, error) {
	var d net.Dialer
	if m.Source != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(m.Source)}
	}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return Result{}, err
	}
	defer conn.Close()
	// Closing is the one way to interrupt a read that hangs.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	s := session{conn: conn, r: bufio.NewReaderSize(conn, maxReplyLine)}
	err = s.run(m)
	if err != nil {
		err = fmt.Errorf("SMTP session with %s: %w", addr, cmp.Or(ctx.Err(), err))
	}
	return s.result, err
}

// session is one connection of the client.
type session struct {
	conn   net.Conn
	r      *bufio.Reader
	result Result
}

// errRefused ends a session after a refusal. It never leaves this file.
var errRefused = errors.New("refused")

func (s *session) run(m Mail) error {
	for _, step := range []func(Mail) error{s.greet, s.envelope, s.data} {
		if err := step(m); err == errRefused {
			break
		} else if err != nil {
			return err
		}
	}
	// The message is decided on, so nobody waits for the answer.
	io.WriteString(s.conn, "QUIT\r\n")
	return nil
}

// greet says hello, and again as the one that we pretend to be.
func (s *session) greet(m Mail) error {
	ehlo := "EHLO " + cmp.Or(m.Helo, "client.lab.example")
	if err := s.want(StageConnect, 2); err != nil {
		return err
	}
	if err := s.command(StageHelo, ehlo, 2); err != nil {
		return err
	}
	if m.TLS != nil {
		if err := s.startTLS(m.TLS, ehlo); err != nil {
			return err
		}
	}
	if m.Auth != nil {
		if err := s.auth(m.Auth); err != nil {
			return err
		}
	}
	if m.XClient == (XClient{}) {
		return nil
	}
	// The server answers with a new banner and has forgotten the EHLO.
	if err := s.command(StageXClient, m.XClient.command(), 2); err != nil {
		return err
	}
	return s.command(StageHelo, ehlo, 2)
}

func (s *session) startTLS(c *tls.Config, ehlo string) error {
	if err := s.command(StageTLS, "STARTTLS", 2); err != nil {
		return err
	}
	t := tls.Client(s.conn, c)
	if err := t.Handshake(); err != nil {
		return err
	}
	s.conn, s.r = t, bufio.NewReaderSize(t, maxReplyLine)
	return s.command(StageHelo, ehlo, 2)
}

// maxChallenges bounds what a server may ask in one AUTH.
const maxChallenges = 10

// auth signs in (RFC 4954, section 4), with the initial response in the command.
func (s *session) auth(c sasl.Client) error {
	mechanism, response, err := c.Start()
	if err != nil {
		return err
	}
	line := "AUTH " + mechanism
	if response != nil {
		line += " " + cmp.Or(base64.StdEncoding.EncodeToString(response), "=")
	}
	for range maxChallenges {
		err := s.command(StageAuth, line, 3)
		last := s.result.Verdict()
		switch {
		case err == errRefused && last.Code/100 == 2:
			return nil
		case err != nil:
			return err
		}
		challenge, err := base64.StdEncoding.DecodeString(last.Text)
		if err == nil {
			response, err = c.Next(challenge)
		}
		if err != nil {
			return fmt.Errorf("answering the challenge of AUTH: %w", err)
		}
		line = base64.StdEncoding.EncodeToString(response)
	}
	return fmt.Errorf("AUTH has more than %d challenges", maxChallenges)
}

// envelope names sender and recipients. One accepted recipient is enough.
func (s *session) envelope(m Mail) error {
	if err := s.command(StageMail, "MAIL FROM:<"+m.From+">", 2); err != nil {
		return err
	}
	accepted := 0
	for _, to := range m.To {
		switch err := s.command(StageRcpt, "RCPT TO:<"+to+">", 2); err {
		case nil:
			accepted++
		case errRefused:
		default:
			return err
		}
	}
	if accepted == 0 && len(m.To) > 0 {
		return errRefused
	}
	return nil
}

func (s *session) data(m Mail) error {
	if err := s.command(StageData, "DATA", 3); err != nil {
		return err
	}
	if _, err := s.conn.Write(stuff(m.Data)); err != nil {
		return err
	}
	return s.want(StageEnd, 2)
}

// stuff doubles dots at line starts (RFC 5321 section 4.5.2) and adds the dot
// that ends the message. Lines end at LF: that is how Postfix reads them.
func stuff(data []byte) []byte {
	var b bytes.Buffer
	for line := range bytes.Lines(data) {
		if line[0] == '.' {
			b.WriteByte('.')
		}
		b.Write(line)
	}
	if len(data) > 0 && !bytes.HasSuffix(data, []byte("\r\n")) {
		b.WriteString("\r\n")
	}
	b.WriteString(".\r\n")
	return b.Bytes()
}

// command sends one line and reads the reply to it.
func (s *session) command(stage Stage, line string, class int) error {
	if _, err := io.WriteString(s.conn, line+"\r\n"); err != nil {
		return err
	}
	return s.want(stage, class)
}

// want reads a reply, and returns errRefused if it is not of that class (2 for
// 2xx).
func (s *session) want(stage Stage, class int) error {
	reply, err := s.readReply()
	if err != nil {
		return fmt.Errorf("reading the reply to %s: %w", stage, err)
	}
	reply.Stage = stage
	s.result.Replies = append(s.result.Replies, reply)
	if reply.Code/100 != class {
		return errRefused
	}
	return nil
}

// replyLine takes a line apart (RFC 5321 section 4.2, RFC 2034 section 4).
var replyLine = regexp.MustCompile(`^([2-5][0-9][0-9])(?:([- ])(?:([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |$))?(.*))?$`)

// readReply reads a reply of one or more lines. The last one gives the codes.
func (s *session) readReply() (Reply, error) {
	var r Reply
	var text []string
	for range maxReplyLines {
		line, err := s.r.ReadSlice('\n')
		if err != nil {
			return r, err // bufio.ErrBufferFull: longer than maxReplyLine
		}
		f := replyLine.FindStringSubmatch(strings.TrimRight(string(line), "\r\n"))
		if f == nil {
			return r, fmt.Errorf("%.80q is no SMTP reply", line)
		}
		r.Code, _ = strconv.Atoi(f[1])
		r.Enhanced = f[3]
		text = append(text, f[4])
		if f[2] != "-" {
			r.Text = strings.Join(text, "\n")
			return r, nil
		}
	}
	return r, fmt.Errorf("the reply has more than %d lines", maxReplyLines)
}

// command is the XCLIENT command (Postfix's XCLIENT_README).
func (x XClient) command() string {
	addr := x.Addr
	if strings.Contains(addr, ":") {
		addr = "IPV6:" + addr
	}
	b := "XCLIENT"
	for _, a := range [][2]string{{"ADDR", addr}, {"NAME", x.Name}, {"HELO", x.Helo}, {"LOGIN", x.Login}} {
		if a[1] != "" {
			b += " " + a[0] + "=" + xtext(a[1])
		}
	}
	return b
}

// xtext encodes an attribute's value (RFC 3461 section 4).
func xtext(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f || c == '+' || c == '=' {
			fmt.Fprintf(&b, "+%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
