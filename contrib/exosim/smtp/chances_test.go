package smtp

import (
	"strings"
	"testing"

	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
)

// TestChances: a trouble that strikes always, and which of its messages were taken.
func TestChances(t *testing.T) {
	const header = "From: erp@contoso.com" + visitor.MessageID
	for _, tc := range []struct {
		name    string
		chances Chances
		at      string // the line that is answered otherwise; "" is the banner
		want    string
		taken   int
	}{
		{"banner", Chances{Greeting: 1}, "", "421 4.3.2 *", 0},
		{"MAIL", Chances{Mail: 1}, "MAIL", "421 4.3.2 *", 0},
		{"in DATA", Chances{InData: 1}, ".", "EOF", 0},
		{"at the dot", Chances{AtDot: 1}, ".", "EOF", 0},
		{"leaves", Chances{Leave: 1}, ".", "421 4.3.2 *", 0},
		{"busy", Chances{Busy: 1}, ".", "451 4.7.0 *", 0},
		{"concurrent", Chances{Concurrent: 1}, ".", "432 4.3.2 *", 0},
		{"quota", Chances{Quota: 1}, ".", "554 5.2.0 *SubmissionQuotaExceeded*", 0},
		{"taken", Chances{AfterTaken: 1}, ".", "EOF", 1},
	} {
		s := startTest(t, nil)
		if tc.at == "" {
			setFaults(t, s, Faults{Chances: tc.chances})
			if got := dial(t, s).Read(); !visitor.Like(got, tc.want) {
				t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
			}
			continue
		}
		k := login(t, s, "erp@contoso.com")
		setFaults(t, s, Faults{Chances: tc.chances})
		var got string
		if tc.at == "MAIL" {
			got = k.Say("MAIL FROM:<erp@contoso.com>")
		} else {
			got = k.Send("erp@contoso.com", header, 1)
		}
		if !visitor.Like(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
		if over := strings.HasPrefix(got, "421"); over && k.Read() != "EOF" {
			t.Errorf("%s: the connection stays after 421", tc.name)
		}
		if n := s.Usage("erp@contoso.com").Accepted; n != tc.taken {
			t.Errorf("%s: %d taken, want %d", tc.name, n, tc.taken)
		}
	}
}
