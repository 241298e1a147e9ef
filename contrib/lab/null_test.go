package lab

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestNullSenderRecipients: mail with the null sender reaches the recipients that other mail
// reaches, each once, however Postfix stores them.
func TestNullSenderRecipients(t *testing.T) {
	for _, setting := range []string{"yes", "no"} {
		t.Run("enable_original_recipient="+setting, func(t *testing.T) {
			s, ctx := startSite(t, SiteConfig{Minute: 500 * time.Millisecond, Postfix: func(_ *Site, main map[string]string) []string {
				main["enable_original_recipient"] = setting
				main["virtual_alias_maps"] = "inline:{ {root@web1.fabrikam.com = it@fabrikam.com}, {all@fabrikam.com = it@fabrikam.com hr@fabrikam.com} }"
				return nil
			}})
			n := 0
			for _, tc := range []struct{ name, rcpts, want string }{
				{"one", "a@fabrikam.com", "a@fabrikam.com"},
				{"an alias", "root@web1.fabrikam.com", "it@fabrikam.com"},
				{"an alias and another", "root@web1.fabrikam.com b@fabrikam.com", "b@fabrikam.com it@fabrikam.com"},
				{"an alias of several", "all@fabrikam.com", "hr@fabrikam.com it@fabrikam.com"},
				{"a source route", "@gw.lan:night@fabrikam.com", "night@fabrikam.com"},
				{"letter cases", "Ops@fabrikam.com ops@fabrikam.com ops@Fabrikam.COM", "Ops@fabrikam.com"},
				{"the same twice", "a@fabrikam.com a@fabrikam.com", "a@fabrikam.com"},
			} {
				for _, from := range []string{"", "scan@contoso.com"} {
					m := Mail{XClient: printer, From: from, To: strings.Fields(tc.rcpts),
						Data: message("From: scan@contoso.com", fmt.Sprintf(storyID, fmt.Sprintf("rcpt-%s-%d", setting, n)), storyDate)}
					if res, err := Send(ctx, s.Postfix.SMTPAddr(), m); err != nil || !res.Accepted() {
						t.Fatalf("%s from <%s>: %v, %v", tc.name, from, res.Verdict(), err)
					}
					n++
					if err := s.WaitMessages(ctx, n); err != nil {
						t.Fatalf("%s from <%s>: %v", tc.name, from, err)
					}
					got := slices.Sorted(slices.Values(s.Exosim.Messages()[n-1].Recipients))
					if strings.Join(got, " ") != tc.want {
						t.Errorf("%s from <%s>: recipients %q, want %q", tc.name, from, got, tc.want)
					}
				}
			}
			s.settle(ctx, t, n)
		})
	}
}
