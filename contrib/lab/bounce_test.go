package lab

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim"
)

// settle waits until the queue is empty and exosim has given so many verdicts.
func (s *Site) settle(ctx context.Context, t *testing.T, verdicts int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute) // a loop never ends
	defer cancel()
	err := poll(ctx, func() (bool, error) { return len(s.Exosim.Messages()) >= verdicts, nil })
	if err != nil {
		t.Fatalf("%d verdicts, want %d: %v", len(s.Exosim.Messages()), verdicts, err)
	}
	if q, err := s.Postfix.WaitQueue(ctx, func(q []QueueEntry) bool { return len(q) == 0 }); err != nil {
		t.Fatalf("the queue holds %+v: %v", q, err)
	}
	if n := len(s.Exosim.Messages()); n != verdicts {
		t.Errorf("%d messages reached Exchange Online, want %d", n, verdicts)
	}
}

// TestNullSender: what comes with the null sender leaves as the client's identity, marked as made
// by a machine.
func TestNullSender(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second})
	for i, tc := range []struct {
		name, header string
		marked       string
	}{
		{"a device's report", "From: MAILER-DAEMON@mfp3.local", "auto-replied"},
		{"marked already", "From: MAILER-DAEMON@mfp3.local\nAuto-Submitted: auto-generated", "auto-generated"},
		{"no From", "To: a@b.example", "auto-replied"},
	} {
		m := Mail{XClient: printer, From: "", To: []string{"someone@fabrikam.com", "other@fabrikam.com"},
			Data: message(tc.header, fmt.Sprintf(storyID, fmt.Sprintf("null-%d", i)), storyDate)}
		if res, err := Send(ctx, s.Postfix.SMTPAddr(), m); err != nil || !res.Accepted() {
			t.Fatalf("%s: %v, %v", tc.name, res.Verdict(), err)
		}
		if err := s.WaitMessages(ctx, i+1); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		got := s.Exosim.Messages()[i]
		if got.Sender != "scan@CONTOSO.COM" || got.Header("Auto-Submitted")[0] != tc.marked || len(got.Header("Reply-To")) != 0 {
			t.Errorf("%s: left as %s:\n%s", tc.name, got.Sender, got.Data)
		}
		if len(got.Recipients) != 2 {
			t.Errorf("%s: recipients %v, want both, each once", tc.name, got.Recipients)
		}
	}
}

// withoutOwnClient is a site with no client for mail of this host.
func withoutOwnClient(y string) string {
	const client = "  - name: this-host\n    networks: [127.0.0.0/8]\n    from: monitor@contoso.com\n"
	return strings.Replace(y, client, "notices: monitor@contoso.com\n", 1)
}

// TestOwnBounce: the bounce that Postfix makes of a refused message leaves as the identity of this
// host, to whom the message left as, and so do notices to the postmaster. Neither needs a client.
// Mail of a program on this host does, and returns to it with the reason, once.
func TestOwnBounce(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second, YAML: withoutOwnClient, Exosim: func(c *exosim.Config) { c.ThrottleAfter = 7 }, Postfix: func(_ *Site, main map[string]string) []string {
		main["notify_classes"], main["error_notice_recipient"] = "policy", "it@contoso.com"
		return nil
	}})
	s.SetMailbox(func(m *mailboxSettings) { m.SendAs = nil })
	if res, err := Send(ctx, s.Postfix.SMTPAddr(), burstMail(1)); err != nil || !res.Accepted() {
		t.Fatalf("%v, %v", res.Verdict(), err)
	}
	s.settle(ctx, t, 2)
	if t.Failed() {
		t.FailNow()
	}
	denied.Store(s, 1)
	all := s.Exosim.Messages()
	if all[0].Accepted() || !strings.Contains(all[0].Reply, "SendAsDenied") {
		t.Errorf("the message: %s", all[0].Reply)
	}
	b := all[1]
	if !b.Accepted() || b.Sender != "monitor@CONTOSO.COM" || len(b.Recipients) != 1 || b.Recipients[0] != "billing@contoso.com" {
		t.Errorf("the bounce left as %s to %v: %s", b.Sender, b.Recipients, b.Reply)
	}
	if got := b.Header("Auto-Submitted"); len(got) != 1 || got[0] != "auto-replied" {
		t.Errorf("the bounce's Auto-Submitted is %q", got)
	}
	if !bytes.Contains(b.Data, []byte("SendAsDenied")) {
		t.Errorf("the bounce does not say what Microsoft said:\n%s", b.Data)
	}

	m := Mail{XClient: XClient{Addr: "203.0.113.9", Name: "[UNAVAILABLE]"}, From: "x@hall.lan", To: []string{"someone@fabrikam.com"}}
	if res, err := Send(ctx, s.Postfix.SMTPAddr(), m); err != nil || res.Accepted() {
		t.Fatalf("a stranger: %v, %v", res.Verdict(), err)
	}
	s.settle(ctx, t, 3)
	if n := s.Exosim.Messages()[2]; !n.Accepted() || n.Sender != "monitor@contoso.com" || n.Recipients[0] != "it@contoso.com" || !bytes.Contains(n.Data, []byte("Subject: Postfix SMTP server: errors from unknown[203.0.113.9]")) {
		t.Errorf("the notice left as %s to %v: %s\n%s", n.Sender, n.Recipients, n.Reply, n.Data)
	}

	cron := []byte("From: root (Cron Daemon)\nTo: someone@fabrikam.com\nSubject: cron\n\nout\n")
	if err := s.Postfix.SendmailInject(ctx, "root@relay.lab.example", []string{"someone@fabrikam.com"}, cron); err != nil {
		t.Fatal(err)
	}
	s.settle(ctx, t, 4)
	if n := s.Exosim.Messages()[3]; !n.Accepted() || n.Sender != "monitor@CONTOSO.COM" || n.Recipients[0] != "root@relay.lab.example" ||
		!strings.Contains(strings.Join(strings.Fields(string(n.Data)), " "), `for mail of programs on this host its administrator has to add a client with networks: [127.0.0.0/8, "::1"]`) {
		t.Errorf("mail of a program returns as %s to %v: %s\n%s", n.Sender, n.Recipients, n.Reply, n.Data)
	}

	// A report to an address that looks like that of a bounce is somebody else's where a content
	// filter gives it back by SMTP.
	m = Mail{From: "", To: []string{"scan@CONTOSO.COM"},
		Data: message("From: MAILER-DAEMON@fabrikam.com", "Content-Type: multipart/report; report-type=delivery-status; boundary=x", fmt.Sprintf(storyID, "report"), storyDate)}
	if res, err := Send(ctx, s.Postfix.SMTPAddr(), m); err != nil || !res.Accepted() {
		t.Fatalf("a filter's report: %v, %v", res.Verdict(), err)
	}
	s.settle(ctx, t, 5)
	if n := s.Exosim.Messages()[4]; n.Sender != "monitor@CONTOSO.COM" || n.Recipients[0] != "scan@CONTOSO.COM" {
		t.Errorf("a filter's report left as %s to %v", n.Sender, n.Recipients)
	}
	if got := strings.Count(s.Milter.Log(), `client="this host"`); got != 4 {
		t.Errorf("%d lines of the milter's log name this host, want 4", got)
	}
	heldSender(ctx, t, s)
}

// heldSender goes on with what was denied once: a device that does not stop gets some more messages
// back; then they wait, so that Microsoft does not throttle the mailbox, whose other mail goes on.
// When Send As is granted, the administrator says so, and all leave.
func heldSender(ctx context.Context, t *testing.T, s *Site) {
	t.Helper()
	const returned, held = 5, 4 // of them one is done
	verdicts, accepted := len(s.Exosim.Messages()), s.Accepted()
	send := func(m Mail) {
		t.Helper()
		if res, err := Send(ctx, s.Postfix.SMTPAddr(), m); err != nil || !res.Accepted() {
			t.Fatalf("%v, %v", res.Verdict(), err)
		}
	}
	denied.Store(s, returned)
	for i := 1; i < returned; i++ {
		send(burstMail(1 + i))
		s.settle(ctx, t, verdicts+2*i) // each with its bounce
	}
	for i := range held {
		send(burstMail(10 + i))
	}
	command := "sendas retry erp@contoso.com billing@contoso.com"
	if err := poll(ctx, func() (bool, error) {
		log, err := s.Postfix.Log()
		return strings.Count(log, "type: "+command) >= held, err
	}); err != nil {
		t.Fatalf("Postfix's log does not name the command: %v", err)
	}
	own := burstMail(20)
	own.From, own.Data = "erp@contoso.com", message("From: <erp@contoso.com>", fmt.Sprintf(storyID, "own"), storyDate)
	send(own)
	if err := s.WaitMessages(ctx, accepted+returned); err != nil {
		t.Fatal(err)
	}
	all := s.Exosim.Messages()
	if m := all[len(all)-1]; len(all) != verdicts+2*(returned-1)+1 || m.Sender != "erp@contoso.com" || !m.Accepted() {
		t.Errorf("%d messages reached Exchange Online, the last of %s: %s", len(all), m.Sender, m.Reply)
	}
	s.SetMailbox(func(m *mailboxSettings) { m.SendAs = []string{"billing@contoso.com"} })
	out, err := exec.CommandContext(ctx, s.Token.binary, "retry", "erp@contoso.com", "billing@contoso.com", "--config", s.Config).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "one message of billing@contoso.com tries again as erp@contoso.com") {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	if err := s.WaitMessages(ctx, accepted+returned+held); err != nil {
		t.Fatal(err)
	}
	s.settle(ctx, t, verdicts+2*(returned-1)+1+held)
}

// TestNoBounceLoop: a bounce that is refused as well, for good, is the end of it. Since it leaves
// with a sender that can be answered, nothing else would stop Postfix from bouncing the bounce of
// the bounce.
func TestNoBounceLoop(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second, YAML: func(y string) string {
		return strings.Replace(y, "from: monitor@contoso.com", "from: hr@contoso.com", 1) // bounces leave through the same mailbox
	}})
	s.SetMailbox(func(m *mailboxSettings) { m.SendAs = nil })
	if res, err := Send(ctx, s.Postfix.SMTPAddr(), burstMail(1)); err != nil || !res.Accepted() {
		t.Fatalf("%v, %v", res.Verdict(), err)
	}
	s.settle(ctx, t, 2)
	denied.Store(s, 2)
	for _, m := range s.Exosim.Messages() {
		if m.Accepted() {
			t.Errorf("%s was accepted", m.Sender)
		}
	}
}
