package lab

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
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

// TestOwnBounce: the bounce that Postfix makes of a refused message leaves as the identity of this
// host, to whom the message left as.
func TestOwnBounce(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second})
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
