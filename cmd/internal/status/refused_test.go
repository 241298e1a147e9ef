package status

import (
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/token/lease"
	"github.com/sendas/sendas/token/lease/replies"
)

// TestRefusedWords: who is denied, whose mail waits and what was refused at which stage stands in the
// text and on the page, with the command that mends it; what is over or long ago does not.
func TestRefusedWords(t *testing.T) {
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) *time.Time { x := now.Add(d); return &x }
	refused := func(class replies.Class, code string, stage lease.Stage, ago time.Duration) *lease.Verdict {
		return &lease.Verdict{Class: class, Code: code, Stage: stage, Meaning: "it means; do this", Time: *at(-ago)}
	}
	const bad = "refused 5 min ago at rcpt, recipient (501): it means; do this"
	for _, tc := range []struct {
		name string
		m    lease.MailboxStatus
		all  *lease.Verdict // before any sign-in
		want string
	}{
		{"denied", lease.MailboxStatus{Denied: []lease.Denial{{Sender: "hr@contoso.com", Count: 1, Last: *at(-5 * time.Minute)}}}, nil,
			"may not send as hr@contoso.com, says Exchange Online: 1 message returned, the last 5 min ago"},
		{"held", lease.MailboxStatus{Denied: []lease.Denial{{Sender: "hr@contoso.com", Count: 7, Last: *at(-5 * time.Minute), Held: true, NextTry: at(55 * time.Minute)}}}, nil,
			"may not send as hr@contoso.com, says Exchange Online: denied 7 times, the last 5 min ago; its mail waits in the queue and is tried again by one message in 55 min"},
		{"held, and to be tried", lease.MailboxStatus{Denied: []lease.Denial{{Sender: "hr@contoso.com", Count: 7, Last: *at(-5 * time.Minute), Held: true}}}, nil,
			"its mail waits in the queue and is tried again with the next message"},
		{"a recipient", lease.MailboxStatus{LastRefusal: refused(replies.Recipient, "501", lease.StageRCPT, 5*time.Minute), LastVerdict: &lease.Verdict{Class: replies.Accepted, Code: "250", Time: now}}, nil, bad},
		{"a recipient, long ago", lease.MailboxStatus{LastRefusal: refused(replies.Recipient, "501", lease.StageRCPT, 25*time.Hour)}, nil, ""},
		{"the last verdict itself", lease.MailboxStatus{LastRefusal: refused(replies.Recipient, "501", lease.StageRCPT, time.Minute), LastVerdict: refused(replies.Recipient, "501", "", time.Minute)}, nil,
			"recipient: it means; do this"},
		{"before any sign-in", lease.MailboxStatus{}, refused(replies.Busy, "454", lease.StageSTARTTLS, time.Minute), "before any sign-in: refused 60 s ago at starttls, service (454): it means; do this"},
	} {
		tc.m.Mailbox, tc.m.Credential = "erp@contoso.com", "relay-app"
		s := &lease.Status{Time: now, Mailboxes: []lease.MailboxStatus{tc.m}, Unsigned: tc.all}
		v := &view{time: now, tokenAt: "a", token: &tokenReport{Status: s}}
		page := v.pageOf(true)
		notes := append(v.judged().lines(), page.Unsigned)
		for _, n := range page.Mailboxes.Open[0].Notes {
			notes = append(notes, n.Text)
		}
		for what, text := range map[string]string{"text": v.text(), "page": strings.Join(notes, "\n")} {
			if tc.want == "" && strings.Contains(text, "refused") {
				t.Errorf("%s: the %s says %s", tc.name, what, text)
			}
			if n := strings.Count(text, tc.want); tc.want != "" && n != 1 {
				t.Errorf("%s: the %s has %d times %q in\n%s", tc.name, what, n, tc.want, text)
			}
		}
	}
}
