package queue

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sendas/sendas/policy/limit"
)

func TestCeiling(t *testing.T) {
	const day = 24 * time.Hour
	days := Ceiling{Limits: limit.Microsoft(), Wait: 3 * day} // 43,200 messages and 10,000 recipients a day
	hour := Ceiling{Limits: limit.Microsoft(), Wait: time.Hour}
	for _, tc := range []struct {
		name       string
		c          Ceiling
		b          Backlog
		recipients int
		want       string // of DescribeOverflow; "" is taken
	}{
		{"no ceiling", Ceiling{}, Backlog{Messages: 1e9, Recipients: 1e9}, 1e9, ""},
		{"idle", days, Backlog{0, 0, 43200, 10000}, 50, ""},
		{"nothing left today, but tomorrow", days, Backlog{0, 0, 0, 0}, 500, ""},
		{"the last that fits", days, Backlog{5000, 29999, 43200, 10000}, 1, ""},
		{"one more", days, Backlog{5000, 30000, 43200, 10000}, 1,
			"mailbox <scan@contoso.com> would have 30001 recipients waiting, and only 30000 can leave in time; it takes more in 9 s"},
		{"half of today is gone", days, Backlog{5000, 25000, 43200, 5000}, 500,
			"mailbox <scan@contoso.com> would have 25500 recipients waiting, and only 25000 can leave in time; it takes more in 72 min"},
		{"messages", days, Backlog{129600, 129600, 43200, 10000}, 1,
			"mailbox <scan@contoso.com> would have 129601 messages waiting, and only 129600 can leave in time; it takes more in 2 s"},
		{"an hour: messages", hour, Backlog{1799, 0, 43200, 10000}, 1, ""},
		{"an hour: too many messages", hour, Backlog{1830, 0, 43200, 10000}, 1,
			"mailbox <scan@contoso.com> would have 1831 messages waiting, and only 1800 can leave in time; it takes more in 62 s"},
		{"an hour: all recipients of a day", hour, Backlog{0, 0, 43200, 10000}, 10000, ""},
		{"an hour: little left", hour, Backlog{0, 0, 43200, 40}, 50,
			"mailbox <scan@contoso.com> would have 50 recipients waiting, and only 40 can leave in time; it takes more in 87 s"},
		{"more than ever fits", hour, Backlog{0, 0, 43200, 10000}, 10001,
			"mailbox <scan@contoso.com> would have 10001 recipients waiting, and only 10000 can leave in time"},
		{"counts that do not match", days, Backlog{-5, -7, -1, -1}, 20000, ""},
		{"no limit", Ceiling{Wait: day, Limits: limit.HighVolume()}, Backlog{Messages: 1e9, Recipients: 1e9}, 50, ""},
		{"no limit of messages", Ceiling{Wait: day, Limits: limit.Allowance{Recipients: limit.Rate{N: 10, Per: day}}}, Backlog{Messages: 1e9, RecipientsLeft: 10}, 11,
			"mailbox <scan@contoso.com> would have 11 recipients waiting, and only 10 can leave in time"},
	} {
		got := ""
		if o := tc.c.Take(tc.b, tc.recipients); o != nil {
			got = DescribeOverflow("scan@contoso.com", o)
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

// Whoever is refused is not taken with more waiting, with less room, or with a shorter wait.
func TestCeilingIsMonotone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		number := func(name string) int { return rapid.IntRange(-10, 50_000).Draw(t, name) }
		c := Ceiling{
			Limits: limit.Allowance{Messages: limit.Rate{N: rapid.IntRange(1, 100).Draw(t, "m"), Per: time.Minute}, Recipients: limit.Rate{N: rapid.IntRange(1, 20000).Draw(t, "r"), Per: 24 * time.Hour}},
			Wait:   time.Duration(rapid.Int64Range(1, int64(100*time.Hour)).Draw(t, "wait")),
		}
		b := Backlog{number("messages"), number("recipients"), number("messages left"), number("recipients left")}
		n := rapid.IntRange(0, 1000).Draw(t, "n")
		o := c.Take(b, n)
		if o == nil {
			return
		}
		if o.Waiting <= o.Room || o.Retry < 0 {
			t.Fatalf("refused for %+v", o)
		}
		worse, shorter := b, c
		worse.Messages, worse.Recipients = b.Messages+number("more")+10, b.Recipients+10
		worse.MessagesLeft -= 3
		shorter.Wait /= 2
		for _, o := range []*Overflow{c.Take(worse, n), c.Take(b, n+1)} {
			if o == nil {
				t.Fatal("taken when more is waiting")
			}
		}
		if shorter.Wait > 0 && shorter.Take(b, n) == nil {
			t.Fatal("taken when it must leave earlier")
		}
	})
}
