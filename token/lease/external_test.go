package lease

import (
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/policy/limit"
)

// TestExternal: which recipients count as external, by the keys of smtp_generic_maps and the
// replies.
func TestExternal(t *testing.T) {
	const (
		own     = "boss@contoso.com "
		outside = "someone@fabrikam.com "
		sender  = "erp@contoso.com "
		refused = "550 5.1.10 Recipient not found"
	)
	for _, tc := range []struct {
		name    string
		keys    string // of the map, in their order
		replies string // to RCPT: y, n
		want    int
	}{
		{"inside", sender + own, "y", 0},
		{"outside", sender + outside, "y", 1},
		{"both", sender + own + outside + own + outside, "yyyy", 2},
		{"those refused do not count", sender + own + outside + own + outside, "ynyy", 1},
		{"a refused own one", sender + own + outside + own + outside, "nyny", 2},
		{"the map is not configured", "", "yyn", 2},
		{"the sender alone", sender, "y", 1},
		{"another map answered for a recipient", sender + own + own, "yyy", 3},
		{"another map answered for the sender", own + own, "yy", 2},
		{"a question too many", sender + own + own, "y", 1},
		{"forms of addresses", sender + "@contoso.com " + own + "@contoso.com ", "y", 1},
	} {
		d := newDesk(limit.Rate{N: 30, Per: time.Minute})
		d.limits.Group, d.limits.GroupRecipients = GroupExternal, limit.TERRL(10)
		m := &Mailbox{Address: "erp@contoso.com", Label: "erp@contoso.com", Limits: d.limits, Tokens: d.tokens}
		d.Use(fakeDirectory{"erp@contoso.com": m})
		recipient := d.Maps()["recipient"]
		ask := func(key string) {
			if got := recipient(t.Context(), process(1), key); got != (Result{Status: NotFound}) {
				t.Errorf("%s: %q is answered %v", tc.name, key, got)
			}
		}
		ask("before@contoso.com") // of no session
		d.Lease(t.Context(), process(1), "erp@contoso.com")
		d.play(t, process(1), authOK)
		for _, k := range strings.Fields(tc.keys) {
			ask(k)
		}
		d.play(t, process(1), mailOK)
		accepts := 0
		for _, r := range tc.replies {
			if r == 'y' {
				accepts++
				d.play(t, process(1), rcptOK)
			} else {
				d.play(t, process(1), refused)
			}
		}
		d.play(t, process(1), dataOK)
		ask("header@fabrikam.com") // now the header is rewritten
		d.play(t, process(1), accepted)
		if u := d.usage(t); u.GroupRecipients != tc.want || u.Recipients != accepts {
			t.Errorf("%s: %d of %d recipients are external, want %d of %d", tc.name, u.GroupRecipients, u.Recipients, tc.want, accepts)
		}
	}
}

// TestGroups: one mailbox with senders of two kinds, each of which has a limit that all mailboxes
// share. What the lease was given for counts, whatever the mailbox got next.
func TestGroups(t *testing.T) {
	d := newDesk(limit.Rate{N: 30, Per: time.Minute})
	of := func(address, group string, n int) *Mailbox {
		l := d.limits
		l.Group, l.GroupRecipients = group, limit.Rate{N: n, Per: 24 * time.Hour}
		return &Mailbox{Address: address, Label: address, Limits: l, Tokens: d.tokens}
	}
	d.Use(fakeDirectory{
		"erp@contoso.com":             of("erp@contoso.com", GroupExternal, 120),
		"erp@contoso.onmicrosoft.com": of("erp@contoso.com", GroupOnMicrosoft, 100),
		"hr@contoso.com":              of("hr@contoso.com", GroupExternal, 120),
	})
	d.Lease(t.Context(), process(1), "erp@contoso.com")
	d.Lease(t.Context(), process(2), "erp@contoso.onmicrosoft.com")
	d.play(t, process(1), authOK, mailOK, rcptOK, rcptOK, dataOK, accepted)
	d.play(t, process(2), authOK, mailOK, rcptOK, dataOK, accepted)
	in := StatusInput{Groups: []GroupInput{{GroupExternal, limit.Rate{N: 120, Per: 24 * time.Hour}}, {GroupOnMicrosoft, limit.MOERA()}}}
	s := d.Status(t.Context(), in)
	if len(s.Groups) != 2 || s.Groups[0].Recipients.Used != 2 || s.Groups[0].Recipients.Left != 118 || s.Groups[1].Recipients.Used != 1 {
		t.Errorf("groups %+v, want 2 and 1 recipients used", s.Groups)
	}
	for i, tc := range []struct{ sender, want string }{
		{"erp@contoso.com", ""},
		{"hr@contoso.com", ""}, // leases out: 100 of the 118 that are left
		{"erp@contoso.onmicrosoft.com", ""},
	} {
		if r := d.Lease(t.Context(), process(int32(3+i)), tc.sender); r.Status != OK {
			t.Errorf("%s: %q", tc.sender, r.Value)
		}
	}
	d.play(t, process(5), authOK, mailOK)
	for range 49 {
		d.play(t, process(5), rcptOK)
	}
	d.play(t, process(5), dataOK, accepted)
	if r := d.Lease(t.Context(), process(6), "erp@contoso.onmicrosoft.com"); r.Status != OK { // 50 used, room for 50
		t.Errorf("%q", r.Value)
	}
	d.play(t, process(6), authOK, mailOK, rcptOK, dataOK, accepted)
	want := "mailbox erp@contoso.com cannot send now: fewer than 50 of the onmicrosoft.com senders' 100/d external recipients are left"
	if r := d.Lease(t.Context(), process(7), "erp@contoso.onmicrosoft.com"); r.Value != want {
		t.Errorf("%q, want %q", r.Value, want)
	}
}
