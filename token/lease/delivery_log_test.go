package lease

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/policy/limit"
)

// TestOneLineADelivery: every lease that was given has exactly one line in the log, with the same
// keys, whatever became of it.
func TestOneLineADelivery(t *testing.T) {
	keys := regexp.MustCompile(`level=(\w+) msg=delivery pid=-7 mailbox=erp@contoso.com sender=billing@contoso.com recipients=(\d+) class=([a-z-]+) reply=("[^"]*"|\S+) waited=\S+ took=\S+`)
	for _, tc := range []struct {
		name    string
		replies []string
		want    string // level, recipients and class
	}{
		{"accepted", []string{authOK, mailOK, rcptOK, rcptOK, dataOK, accepted}, "INFO 2 accepted"},
		{"returned", []string{authOK, mailOK, rcptOK, dataOK, denied}, "WARN 1 send-as-denied"},
		{"AUTH refused", []string{auth535}, "WARN 0 auth-refused"},
		{"too many", []string{authOK, mailOK, rcptOK, dataOK, tooMany}, "WARN 1 concurrency"},
		{"no recipient taken", []string{authOK, mailOK, "550 5.1.10 Recipient not found"}, "WARN 0 recipient"},
		{"no recipient is an address", []string{authOK, mailOK, "501 5.1.3 Invalid address", "501 5.1.3 Invalid address"}, "WARN 0 recipient"},
		{"DATA refused", []string{authOK, mailOK, rcptOK, "550 5.1.10 Recipient not found", "451 4.7.0 Temporary server error. PRX4"}, "WARN 1 service"},
		{"one recipient refused", []string{authOK, mailOK, rcptOK, "501 5.1.3 Invalid address", dataOK, accepted}, "INFO 1 accepted"},
		{"one recipient refused, and the connection broke", []string{authOK, mailOK, rcptOK, "501 5.1.3 Invalid address", dataOK}, "WARN 1 unseen"},
		{"the connection broke before the message", []string{authOK}, "INFO 0 unseen"},
		{"the connection broke after the message", []string{authOK, mailOK, rcptOK, dataOK}, "WARN 1 unseen"},
	} {
		d := newDesk(limit.Rate{N: 30, Per: time.Minute})
		d.Lease(t.Context(), process(7), "billing@contoso.com")
		d.play(t, process(7), append(tc.replies, banner, banner)...) // two more sessions of the process, that ask for nothing
		var lines []string
		for line := range strings.Lines(d.log.String()) {
			if strings.Contains(line, "msg=delivery") {
				lines = append(lines, line)
			}
		}
		if len(lines) != 1 {
			t.Errorf("%s: %d lines: %q", tc.name, len(lines), lines)
			continue
		}
		m := keys.FindStringSubmatch(lines[0])
		if m == nil || m[1]+" "+m[2]+" "+m[3] != tc.want {
			t.Errorf("%s: %s", tc.name, lines[0])
		}
	}
}
