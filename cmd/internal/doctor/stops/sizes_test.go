package stops

import (
	"context"
	"testing"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/finding/findingtest"
	"github.com/sendas/sendas/cmd/internal/postfix"
)

func TestSizes(t *testing.T) {
	for _, tc := range []struct {
		main string
		id   string
		want finding.Status
		do   string
	}{
		{"message_size_limit = 10240000", "message_size_limit.low", finding.Warn, `-e "message_size_limit = 36700160" && `},
		{"message_size_limit = 36700159\nmailbox_size_limit = 36700159", "message_size_limit.low", finding.Warn, `"message_size_limit = 36700160" "mailbox_size_limit = 36700160" && `},
		{"message_size_limit = 36700160\nmailbox_size_limit = 51200000", "message_size_limit.low", finding.OK, ""},
		{"message_size_limit = 36700160\nmailbox_size_limit = 36700159\nvirtual_mailbox_limit = 1", "message_size_limit.low", finding.OK, ""}, // nothing is delivered here
		{"message_size_limit = 0", "message_size_limit.low", finding.OK, ""},                                                                  // too high is another finding
		{"mydestination = relay.lan\nmessage_size_limit = 36700160\nmailbox_size_limit = 36700159", "mailbox_size_limit", finding.Warn, `-e "mailbox_size_limit = 0"`},
		{"virtual_mailbox_domains = contoso.net\nmessage_size_limit = 0\nvirtual_mailbox_limit = 51200000", "virtual_mailbox_limit", finding.Warn, "virtual(8)"},
	} {
		r := &finding.Report{}
		p, err := postfix.Read(t.Context(), func(_ context.Context, _ string, args ...string) (string, string, error) {
			if len(args) > 0 && args[0] != "-x" {
				return "", "", nil
			}
			return tc.main + "\n", "", nil
		}, "", config.Default())
		if err != nil {
			t.Fatal(err)
		}
		checkSizes(r.Section("postfix", "Postfix"), p)
		findingtest.WantWhole(t, r)
		findingtest.Want(t, r, "postfix."+tc.id, tc.want, tc.do)
		n := 0
		for _, c := range r.Checks {
			if c.Status == finding.Warn {
				n++
			}
		}
		if want := map[bool]int{true: 0, false: 1}[tc.want == finding.OK]; n != want {
			t.Errorf("%q: %d warnings, want %d: %+v", tc.main, n, want, r.Checks)
		}
	}
}
