package milter

import (
	"bufio"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/milter/quota"
	"github.com/sendas/sendas/policy/address"
	"github.com/sendas/sendas/policy/limit"
)

// TestClientLimits: a client over its limit is deferred, refused or held; others are not touched,
// and what is refused counts for nothing.
func TestClientLimits(t *testing.T) {
	day := func(n int) []limit.Rate { return []limit.Rate{{N: n, Per: 24 * time.Hour}} }
	for _, tc := range []struct {
		name  string
		limit quota.ClientLimit
		want  string // the third message's outcome
		log   string
	}{
		{"defer", quota.ClientLimit{Rates: quota.Rates{Messages: day(2)}, OnLimit: quota.DeferOver}, `451 4.7.1 client "printers" may send 2 messages `, "action=defer"},
		{"reject", quota.ClientLimit{Rates: quota.Rates{Messages: day(2)}, OnLimit: quota.RejectOver}, `550 5.7.1 client "printers" may send 2 messages `, "action=reject"},
		{"recipients", quota.ClientLimit{Rates: quota.Rates{Recipients: day(2)}, OnLimit: quota.RejectOver}, `550 5.7.1 client "printers" may send `, "recipients refused"},
		{"hold", quota.ClientLimit{Rates: quota.Rates{Messages: day(2)}, OnLimit: quota.HoldOver}, `held: client "printers" may send 2 messages `, "action=hold"},
		{"more than enough", quota.ClientLimit{Rates: quota.Rates{Messages: day(3)}, OnLimit: quota.RejectOver}, "", "action=accept"},
	} {
		q := quota.NewDesk(quota.New())
		q.Use(map[string]quota.ClientLimit{"printers": tc.limit})
		s := startWith(t, q)
		got := ""
		for range 3 {
			c, _ := s.dial("10.2.0.9", "")
			got = s.send(c, "<hr@contoso.com>", "From: hr@contoso.com", id, date)
			c.Close()
		}
		if !strings.HasPrefix(got, tc.want) || tc.want == "" && got != "" {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
		waitFor(t, tc.name+": a log line with "+tc.log, func() bool {
			lines := strings.Split(strings.TrimSpace(s.log.String()), "\n")
			last := lines[len(lines)-1]
			return strings.Contains(last, tc.log) && strings.Contains(last, "client-limit") == (tc.want != "")
		})
		c, _ := s.dial("192.0.2.1", "nagios")
		if got := s.send(c, "<hr@contoso.com>", "From: hr@contoso.com", id, date); got != "" {
			t.Errorf("%s: another client: %q", tc.name, got)
		}
		c.Close()
		s.ln.Close()
	}
}

// TestLimitAtRcpt: the policy service says the same before the message comes, and counts nothing
// itself.
func TestLimitAtRcpt(t *testing.T) {
	s, _ := newPolicyServer(t)
	counters := quota.New()
	s.Quotas = quota.NewDesk(counters)
	q, err := readQuery(bufio.NewReader(strings.NewReader(request)))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		on   quota.OnLimit
		want string
	}{
		{quota.DeferOver, `451 4.7.1 client "printers" may send 1 message`},
		{quota.RejectOver, `550 5.7.1 client "printers" may send 1 message`},
		{quota.HoldOver, "FILTER "},
	} {
		s.Quotas.Use(map[string]quota.ClientLimit{"printers": {Rates: quota.Rates{Messages: []limit.Rate{{N: 1, Per: time.Hour}}}, OnLimit: tc.on}})
		for range 3 {
			if counters.Keys() == 0 {
				if got := s.answer(q); !strings.HasPrefix(got, "FILTER ") {
					t.Errorf("%s, nothing sent yet: %q", tc.on, got)
				}
			}
		}
		if counters.Keys() == 0 {
			b := s.Quotas.Begin()
			if over := b.End("printers", address.Spec{}, 1, time.Now()); over != nil || b.Commit(time.Now()) != nil {
				t.Fatalf("%s: the first message: %v", tc.on, over)
			}
		}
		if got := s.answer(q); !strings.HasPrefix(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.on, got, tc.want)
		}
	}
}
