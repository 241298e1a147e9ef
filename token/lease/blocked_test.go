package lease

import (
	"strings"
	"testing"

	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/lease/replies"
	"github.com/sendas/sendas/token/lease/repliestest"
	"github.com/sendas/sendas/token/ledger"
)

// TestBlockedMailbox: wherever Microsoft says that it takes nothing of the mailbox, the message
// waits, the mailbox rests, and log and status say who has to do what.
func TestBlockedMailbox(t *testing.T) {
	const (
		restricted = "550 5.1.8 Access denied, bad outbound sender AS(42004)"
		tenant     = "550 5.7.705 Access denied, tenant has exceeded threshold"
	)
	for _, tc := range []struct {
		name    string
		replies []string
		last    string // what Postfix is told
		hint    string
	}{
		{"at the end of DATA", []string{authOK, mailOK, rcptOK, dataOK, restricted}, "450 4.1.8 Access denied, bad outbound sender AS(42004)", "Restricted entities"},
		{"at MAIL", []string{authOK, tenant}, "450 4.7.705 Access denied, tenant has exceeded threshold", "Microsoft's support"},
		{"at RCPT", []string{authOK, mailOK, restricted}, "450 4.1.8 Access denied, bad outbound sender AS(42004)", "Restricted entities"},
		{"at each of several RCPT", []string{authOK, mailOK, tenant, tenant, tenant}, "450 4.7.705 Access denied, tenant has exceeded threshold", "Microsoft's support"},
		{"lines of a longer reply", []string{authOK, mailOK, rcptOK, dataOK, "550-5.1.8 Access denied", restricted},
			"450 4.1.8 Access denied, bad outbound sender AS(42004)", "Restricted entities"},
		{"in other words", []string{authOK, mailOK, rcptOK, dataOK, repliestest.OutboundSpam + "RefuseQuota, ShowTierUpgrade."},
			"454 4.2.0 " + strings.TrimPrefix(repliestest.OutboundSpam, "554 5.2.0 ") + "RefuseQuota, ShowTierUpgrade.", "Restricted entities"},
	} {
		d := newDesk(limit.Microsoft().Messages)
		if r := d.Lease(t.Context(), process(1), "billing@contoso.com"); r.Status != OK {
			t.Fatalf("%s: look-up answered %v", tc.name, r)
		}
		if got := d.play(t, process(1), tc.replies...); got != (Result{OK, tc.last}) {
			t.Errorf("%s: answered %q, want %q", tc.name, got, tc.last)
		}
		if u := d.usage(t); u.PauseClass != ledger.PauseBlocked || u.PausedUntil.IsZero() {
			t.Errorf("%s: usage %+v, want a pause of the class %s", tc.name, u, ledger.PauseBlocked)
		}
		if n := strings.Count(d.log.String(), "mailbox paused"); n != 1 || !strings.Contains(d.log.String(), tc.hint) {
			t.Errorf("%s: %d pauses in the log, want one with %q:\n%s", tc.name, n, tc.hint, d.log)
		}
		m := d.Status(t.Context(), StatusInput{Mailboxes: []MailboxInput{{Label: "erp@contoso.com", Limits: d.limits}}}).Mailboxes[0]
		if v := m.LastVerdict; v == nil || v.Class != replies.Blocked || !strings.Contains(v.Meaning, tc.hint) || m.PauseClass != ledger.PauseBlocked {
			t.Errorf("%s: status %+v, verdict %+v, want %q", tc.name, m, v, tc.hint)
		}
		d.play(t, process(1), banner) // the session ends
		r := d.Lease(t.Context(), process(1), "billing@contoso.com")
		if r.Status != Temp || !strings.Contains(r.Value, "it rests for 15m0s, ") || len(r.Value) > maxReason {
			t.Errorf("%s: the next look-up: %v %q", tc.name, r.Status, r.Value)
		}
	}
}
