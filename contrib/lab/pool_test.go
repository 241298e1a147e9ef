package lab

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim"
	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/smtp"
)

// poolMailboxes may send as billing@contoso.com, each of them.
var poolMailboxes = []string{"erp1@contoso.com", "erp2@contoso.com", "erp3@contoso.com"}

// poolSite is a site with a pool of three.
func poolSite(minute time.Duration) SiteConfig {
	return SiteConfig{
		Minute: minute,
		Exosim: func(c *exosim.Config) {
			c.EnforceRate = smtp.RateReject
			c.Mailboxes[0].SendAs = []string{"hr@contoso.com"}
			for _, a := range poolMailboxes {
				c.Mailboxes = append(c.Mailboxes, directory.Mailbox{Address: a, SendAs: []string{"billing@contoso.com"}})
				c.Apps[0].Mailboxes = append(c.Apps[0].Mailboxes, a)
			}
		},
		YAML: func(y string) string {
			y = strings.Replace(y, "[billing@contoso.com, hr@contoso.com]", "[hr@contoso.com]", 1)
			members := ""
			for _, a := range poolMailboxes {
				members += "  - {address: " + a + ", credential: relay-app, send_as: [billing@contoso.com], pool: true, limits: LIMITS}\n"
			}
			return strings.Replace(y, "clients:\n", members+"clients:\n", 1)
		},
		Postfix: func(_ *Site, main map[string]string) []string {
			main["sendas_destination_concurrency_limit"] = "9"
			main["sender_dependent_default_transport_maps"] = "socketmap:unix:sendas/credentials:transport"
			return nil
		},
	}
}

// TestPool: the backlog of one address leaves through three mailboxes at three times the pace of
// one, within the limits of each, every message once and under its name. The mail of a mailbox that
// has nothing to do with it does not wait.
func TestPool(t *testing.T) {
	const n, minute = 100, 20 * time.Second
	s, ctx := startSite(t, poolSite(minute))
	if err := s.Burst(ctx, n); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitMessages(ctx, n); err != nil {
		t.Fatal(err)
	}
	var first, last time.Time
	through := map[string]int{}
	for _, m := range s.Exosim.Messages() {
		if !m.Accepted() || m.Sender != "billing@contoso.com" || strings.Join(m.Header("From"), "") != "Billing <billing@contoso.com>" {
			t.Errorf("%s left as %s: %s", m.Mailbox, m.Sender, m.Reply)
		}
		through[m.Mailbox]++
		if first.IsZero() || m.Dot.Before(first) {
			first = m.Dot
		}
		if m.Verdict.After(last) {
			last = m.Verdict
		}
	}
	for _, a := range poolMailboxes {
		u := s.Exosim.Usage(a)
		if u.WorstByDot > 30 || u.WorstByVerdict > 30 || u.MaxInData > 3 || len(u.Refused) > 0 {
			t.Errorf("%s: %d messages in a window by end of DATA, %d by verdict, %d at a time, refused %v", a, u.WorstByDot, u.WorstByVerdict, u.MaxInData, u.Refused)
		}
		if through[a] < n/5 {
			t.Errorf("%s sent %d of %d messages: %v", a, through[a], n, through)
		}
	}
	// One mailbox sends 30 at once and then 30 a minute: the 91st after three of them. Three send
	// the 91st after one.
	took := last.Sub(first)
	t.Logf("%d messages in %v, %v", n, took.Round(time.Millisecond), through)
	if took > 2*minute {
		t.Errorf("%d messages took %v, want less than two minutes of %v", n, took, minute)
	}
	if log, _ := s.Postfix.Log(); strings.Contains(log, "status=deferred") {
		t.Error("messages were deferred")
	}
	for _, want := range []string{"mailbox=erp1@contoso.com sender=billing@contoso.com", "mailbox=erp3@contoso.com sender=billing@contoso.com"} {
		if !strings.Contains(s.Token.Log(), want) {
			t.Errorf("the log does not say %q", want)
		}
	}
	if !strings.Contains(s.Milter.Log(), `mailbox="erp1@contoso.com (one of 3)"`) {
		t.Error("the milter's log does not say that there is a pool")
	}
}

// TestPoolMember: where one mailbox of a pool is switched off, the others have its mail.
func TestPoolMember(t *testing.T) {
	const n = 12
	s, ctx := startSite(t, poolSite(6*time.Second))
	s.Exosim.SetMailbox(poolMailboxes[0], func(m *directory.Mailbox) { m.SMTPAuthDisabled = true })
	for i := range n {
		if res, err := Send(ctx, s.Postfix.SMTPAddr(), burstMail(i)); err != nil || !res.Accepted() {
			t.Fatalf("%v, %v", res.Verdict(), err)
		}
	}
	if err := s.WaitMessages(ctx, n); err != nil {
		t.Fatal(err)
	}
	through := map[string]int{}
	for _, m := range s.Exosim.Messages() {
		through[m.Mailbox]++
	}
	if got := fmt.Sprint(through[poolMailboxes[0]], through[poolMailboxes[1]]+through[poolMailboxes[2]]); got != "0 12" {
		t.Errorf("sent through %v, want nothing through the one whose SMTP AUTH is off", through)
	}
}
