package lab

import (
	"fmt"
	"regexp"
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
// has nothing to do with it does not wait. Exchange Online takes half a second to DATA, for which
// Postfix waits here without pipelining; a message that comes to DATA too early waits there.
func TestPool(t *testing.T) {
	const n, minute = 100, 20 * time.Second
	c := poolSite(minute)
	exchange, relay := c.Exosim, c.Postfix
	c.Exosim = func(x *exosim.Config) {
		exchange(x)
		x.AuthTime, x.RcptTime = 350*time.Millisecond, 150*time.Millisecond
	}
	c.Postfix = func(s *Site, main map[string]string) []string {
		main["smtp_discard_ehlo_keywords"] = "pipelining"
		return relay(s, main)
	}
	s, ctx := startSite(t, c)
	if err := s.Burst(ctx, n); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitMessages(ctx, n); err != nil {
		t.Fatal(err)
	}
	var first, last time.Time
	through, all := map[string]int{}, map[string][]*smtp.Message{}
	for _, m := range s.Exosim.Messages() {
		if !m.Accepted() || m.Sender != "billing@contoso.com" || strings.Join(m.Header("From"), "") != "Billing <billing@contoso.com>" {
			t.Errorf("%s left as %s: %s", m.Mailbox, m.Sender, m.Reply)
		}
		through[m.Mailbox]++
		all[m.Mailbox] = append(all[m.Mailbox], m)
		if first.IsZero() || m.Dot.Before(first) {
			first = m.Dot
		}
		if m.Verdict.After(last) {
			last = m.Verdict
		}
	}
	for _, a := range poolMailboxes {
		u := s.Exosim.Usage(a)
		if w := WorstWindows(all[a], minute); w.Anyhow > 30 || u.MaxInData > 3 || len(u.Refused) > 0 {
			t.Errorf("%s: %+v messages in a window, %d at a time, refused %v", a, w, u.MaxInData, u.Refused)
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
	figures, err := get(ctx, s.MetricsURLs()[1])
	if err != nil {
		t.Fatal(err)
	}
	if waited := regexp.MustCompile(`(?m)^sendas_message_wait_seconds_count (\d\d+)$`).FindStringSubmatch(figures); waited == nil {
		t.Error("fewer than ten messages waited at DATA")
	} else {
		t.Logf("%s of them waited at DATA", waited[1])
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
