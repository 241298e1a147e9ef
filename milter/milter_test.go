package milter

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	protocol "github.com/d--j/go-milter"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sendas/sendas/internal/logtest"
	"github.com/sendas/sendas/milter/quota"
	"github.com/sendas/sendas/policy"
)

// site is a running milter.
type site struct {
	*Server
	t    testing.TB
	ln   net.Listener
	path string
	log  *logtest.Buffer

	sessions *Sessions
}

func start(t testing.TB) *site { t.Helper(); return startWith(t, nil) }

// startWith starts a milter with limits, nil for none.
func startWith(t testing.TB, q *quota.Desk, with ...func(*Server)) *site {
	t.Helper()
	s := &site{t: t, path: filepath.Join(t.TempDir(), "milter"), log: &logtest.Buffer{}}
	s.sessions = &Sessions{}
	s.Server = &Server{Sessions: s.sessions, Log: slog.New(slog.NewTextHandler(s.log, nil)), Metrics: NewMetrics(prometheus.NewRegistry()), Quotas: q, Tally: new(Tally)}
	s.Use(rules(t, "scan@contoso.com"))
	for _, f := range with {
		f(s.Server)
	}
	ln, err := net.Listen("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	s.ln = ln
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		ln.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

func rules(t testing.TB, from string) *policy.Rules {
	t.Helper()
	p, errs := policy.New(policy.Settings{
		Domains:   []string{"contoso.com"},
		Mailboxes: []policy.MailboxSettings{{Address: "scan@contoso.com", SendAs: []string{"hr@contoso.com"}}},
		Clients: []policy.ClientSettings{
			{Name: "printers", Networks: []string{"10.2.0.0/16"}, From: from},
			{Name: "monitoring", Logins: []string{"nagios"}, OnUnauthorized: "reject"},
		},
	})
	if errs != nil {
		t.Fatal(errs)
	}
	return p
}

// dial begins an SMTP session of a client, as smtpd(8) tells it to a milter.
func (s *site) dial(addr, login string) (*protocol.ClientSession, *protocol.MacroBag) {
	s.t.Helper()
	macros := protocol.NewMacroBag()
	macros.Set(protocol.MacroClientAddr, addr)
	macros.Set(protocol.MacroAuthAuthen, login)
	macros.Set(protocol.MacroQueueId, "4cQXyz")
	c, err := protocol.NewClient("unix", s.path).Session(macros)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	family := protocol.FamilyInet
	if strings.Contains(addr, ":") {
		family = protocol.FamilyInet6
	}
	if _, err := c.Conn("mfp3.local", family, 4711, strings.TrimPrefix(addr, "IPv6:")); err != nil {
		s.t.Fatal(err)
	}
	if _, err := c.Helo("mfp3"); err != nil {
		s.t.Fatal(err)
	}
	return c, macros
}

// send plays one message and returns the reply, or what Postfix is told to change.
func (s *site) send(c *protocol.ClientSession, sender string, header ...string) string {
	s.t.Helper()
	act, err := c.Mail(sender, "")
	if err != nil {
		s.t.Fatal(err)
	}
	if act.StopProcessing() {
		if err := c.Abort(nil); err != nil { // the library wants it
			s.t.Fatal(err)
		}
		return act.SMTPReply
	}
	steps := []func() (*protocol.Action, error){
		func() (*protocol.Action, error) { return c.Rcpt("<someone@example.net>", "") },
		c.DataStart,
	}
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		steps = append(steps, func() (*protocol.Action, error) { return c.HeaderField(name, value, nil) })
	}
	steps = append(steps, c.HeaderEnd, func() (*protocol.Action, error) { return c.BodyChunk([]byte("body\r\n")) })
	for i, step := range steps {
		act, err := step()
		if err == nil && i == 0 && act.StopProcessing() { // the only recipient
			if err := c.Abort(nil); err != nil {
				s.t.Fatal(err)
			}
			return act.SMTPReply
		}
		if err != nil || act.Type != protocol.ActionContinue && act.Type != protocol.ActionSkip {
			s.t.Fatalf("step %d: %+v, %v", i, act, err)
		}
	}
	changes, act, err := c.End()
	if err != nil {
		s.t.Fatal(err)
	}
	if act.StopProcessing() {
		return act.SMTPReply
	}
	var list []string
	for _, m := range changes {
		switch m.Type {
		case protocol.ActionChangeFrom:
			list = append(list, "sender "+m.From)
		case protocol.ActionChangeHeader:
			list = append(list, fmt.Sprintf("%s[%d]: %s", m.HeaderName, m.HeaderIndex, m.HeaderValue))
		case protocol.ActionAddHeader:
			list = append(list, fmt.Sprintf("+%s: %s", m.HeaderName, m.HeaderValue))
		case protocol.ActionDelRcpt:
			list = append(list, "-"+m.Rcpt)
		case protocol.ActionAddRcpt:
			list = append(list, "+"+m.Rcpt+" "+m.RcptArgs)
		case protocol.ActionQuarantine:
			list = append(list, "held: "+m.Reason)
		default:
			list = append(list, fmt.Sprintf("unexpected %+v", m))
		}
	}
	return strings.Join(list, "\n")
}

// begin plays a message up to its header.
func (s *site) begin(c *protocol.ClientSession, sender string) {
	s.t.Helper()
	for _, step := range []func() (*protocol.Action, error){
		func() (*protocol.Action, error) { return c.Mail(sender, "") },
		func() (*protocol.Action, error) { return c.Rcpt("<someone@example.net>", "") },
		c.DataStart,
	} {
		if act, err := step(); err != nil || act.Type != protocol.ActionContinue {
			s.t.Fatalf("beginning a message: %+v, %v", act, err)
		}
	}
}

const (
	id   = "Message-ID: <1@x>"
	date = "Date: Sat, 21 Nov 2026 08:00:00 +0000"
)

func TestTransactions(t *testing.T) {
	s := start(t)
	for _, tc := range []struct {
		name, addr, login, sender, from string
		want                            string
	}{
		{"nothing to change", "10.2.0.9", "", "<hr@contoso.com>", "HR <hr@contoso.com>", ""},
		{"rewritten", "10.2.0.9", "", "<root@mfp3>", "Mfp 3 <root@mfp3>",
			"sender <scan@contoso.com>\nFrom[1]: Mfp 3 <scan@contoso.com>\n+X-Original-From: Mfp 3 <root@mfp3>"},
		{"null sender", "10.2.0.9", "", "<>", "scan@contoso.com",
			"sender <scan@CONTOSO.COM>\n+Auto-Submitted: auto-replied\n+X-Auto-Response-Suppress: All"},
		{"unknown client", "192.0.2.1", "", "<hr@contoso.com>", "hr@contoso.com",
			"550 5.7.1 192.0.2.1 is not a known client of this relay; ask its administrator to add it to clients: in sendas.yaml"},
		{"IPv6 client", "IPv6:2001:db8::1", "", "<hr@contoso.com>", "hr@contoso.com",
			"550 5.7.1 2001:db8::1 is not a known client of this relay; ask its administrator to add it to clients: in sendas.yaml"},
		{"login", "192.0.2.1", "nagios", "<hr@contoso.com>", "hr@contoso.com", ""},
		{"login, not authorised", "192.0.2.1", "nagios", "<a@contoso.com>", "a@contoso.com",
			`550 5.7.1 <a@contoso.com>: no mailbox of this relay may send as this address; ask its administrator to list it under send_as: of the mailbox that has the permission (client "monitoring")`},
		{"a percent sign is no format", "10.2.0.9", "", "<hr@contoso.com>", "100% <hr@contoso.com>", ""},
	} {
		c, _ := s.dial(tc.addr, tc.login)
		if got := s.send(c, tc.sender, "From: "+tc.from, id, date); got != tc.want {
			t.Errorf("%s:\n got  %q\n want %q", tc.name, got, tc.want)
		}
		c.Close()
	}
	lines := strings.Split(strings.TrimSpace(s.log.String()), "\n")
	if len(lines) != 8 {
		t.Errorf("%d log lines for 8 messages:\n%s", len(lines), s.log)
	}
	if !strings.Contains(lines[1], `qid=4cQXyz client=printers addr=10.2.0.9 login="" asked=root@mfp3 identity=scan@contoso.com mailbox=scan@contoso.com route=submission recipients=1 action=accept rewritten=true reason=client-from`) {
		t.Errorf("log line: %s", lines[1])
	}
	if n := testutil.ToFloat64(s.Metrics.messages.WithLabelValues("printers", "accept", "client-from")); n != 1 {
		t.Errorf("sendas_messages_total is %v, want 1", n)
	}
}

// TestSeveralMessages sends several messages in one session: each is decided on its own, a refused
// and an aborted one among them, and who the client is stays known.
func TestSeveralMessages(t *testing.T) {
	s := start(t)
	c, _ := s.dial("10.2.0.9", "")
	if got := s.send(c, "<hr@contoso.com>", "From: a@b.example", id, date); !strings.HasPrefix(got, "sender <scan@contoso.com>") {
		t.Errorf("first: %q", got)
	}
	s.begin(c, "<x@y.example>")
	if _, err := c.HeaderField("From", "evil@y.example", nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Abort(nil); err != nil {
		t.Fatal(err)
	}
	if got := s.send(c, "<hr@contoso.com>", "From: hr@contoso.com", id, date); got != "" {
		t.Errorf("after an aborted message: %q", got)
	}
}

// TestPieces: Postfix sends many packets in one write, and the kernel may cut them anywhere.
func TestPieces(t *testing.T) {
	s := start(t)
	packet := func(code byte, data string) string {
		return string(binary.BigEndian.AppendUint32(nil, uint32(1+len(data)))) + string(code) + data
	}
	negotiation := packet('O', "\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff")
	message := packet('D', "M{client_addr}\x0010.2.0.9\x00") + packet('M', "<root@mfp3>\x00") + packet('R', "<someone@example.net>\x00") +
		packet('L', "From\x00Mfp 3 <root@mfp3>\x00") + packet('L', "Message-ID\x00<1@x>\x00") +
		packet('L', "Date\x00Sat, 21 Nov 2026 08:00:00 +0000\x00") + packet('E', "") + packet('A', "")
	want := packet('e', "<scan@contoso.com>\x00") + packet('m', "\x00\x00\x00\x01From\x00Mfp 3 <scan@contoso.com>\x00") +
		packet('h', "X-Original-From\x00Mfp 3 <root@mfp3>\x00") + packet('a', "")
	for _, size := range []int{1, 3, 4, 5, 7, 64, 1 << 20} {
		c, err := net.Dial("unix", s.path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := io.WriteString(c, negotiation); err != nil {
			t.Fatal(err)
		}
		head := make([]byte, 4)
		if _, err := io.ReadFull(c, head); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(head))); err != nil {
			t.Fatal(err)
		}
		for round := range 3 { // in one session
			for rest := message; rest != ""; rest = rest[min(size, len(rest)):] {
				if _, err := io.WriteString(c, rest[:min(size, len(rest))]); err != nil {
					t.Fatal(err)
				}
			}
			got := make([]byte, len(want))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
				t.Errorf("message %d in pieces of %d bytes:\n got  %q, %v\n want %q", round, size, got, err, want)
			}
		}
	}
}

// TestReloadInTheMiddle: a message is decided by the rules it began with. Nothing is answered
// before its end, so only the transaction itself knows when it has begun.
func TestReloadInTheMiddle(t *testing.T) {
	s := &Server{}
	s.Use(rules(t, "scan@contoso.com"))
	trx := &transaction{s: s}
	before := s.policy.Load()
	if _, err := trx.MailFrom("<x@y.example>", "", nil); err != nil {
		t.Fatal(err)
	}
	s.Use(rules(t, "hr@contoso.com"))
	if trx.policy != before {
		t.Error("a message under way changed its rules")
	}
	if _, err := trx.MailFrom("<x@y.example>", "", nil); err != nil || trx.policy == before {
		t.Errorf("the next message has the old rules, %v", err)
	}
}

// TestShutdownFinishesWhatBegan: a session that has begun ends with the same milter.
func TestShutdownFinishesWhatBegan(t *testing.T) {
	s := start(t)
	c, _ := s.dial("10.2.0.9", "")
	s.begin(c, "<hr@contoso.com>")
	s.ln.Close()
	stopped := make(chan error, 1)
	go func() { stopped <- s.Shutdown(t.Context()) }()
	c.HeaderField("From", "hr@contoso.com", nil)
	c.HeaderEnd()
	c.BodyChunk([]byte("body"))
	if _, act, err := c.End(); err != nil || act.Type != protocol.ActionAccept {
		t.Errorf("the message under way: %+v, %v", act, err)
	}
	select {
	case err := <-stopped:
		t.Errorf("Shutdown returned %v before the session was over", err)
	default:
	}
	c.Close()
	if err := <-stopped; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

func TestShutdownEndsInTime(t *testing.T) {
	s := start(t)
	c, _ := s.dial("10.2.0.9", "")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); err == nil {
		t.Error("Shutdown said nothing about the session that was cut")
	}
	if _, err := c.Mail("<a@b.example>", ""); err == nil {
		t.Error("the session lives on")
	}
}
