package quota

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sendas/sendas/milter/queue"
	"github.com/sendas/sendas/policy/limit"
)

func TestDescribe(t *testing.T) {
	for _, tc := range []struct {
		key  string
		kind limit.Kind
		rate string
		wait time.Duration
		want string
	}{
		{"printers", limit.KindMessages, "20/m", 12 * time.Second, `client "printers" may send 20 messages a minute; it opens again in 12 s`},
		{"printers", limit.KindMessages, "1/h", 11*time.Second + 1, `client "printers" may send 1 message an hour; it opens again in 12 s`},
		{"printers", limit.KindRecipients, "500/d", 2*time.Minute + 1, `client "printers" may send to 500 recipients a day; it opens again in 3 min`},
		{"sap", limit.KindRecipients, "1/30m", 2 * time.Minute, `client "sap" may send to 1 recipient in 30 min; it opens again in 120 s`},
		{"sap", limit.KindMessages, "30/6s", -time.Second, `client "sap" may send 30 messages in 6 s; it opens again in 1 s`},
		{"sap", limit.KindMessages, "3/100ms", time.Nanosecond, `client "sap" may send 3 messages in 0.1 s; it opens again in 1 s`},
		{"sap", limit.KindMessages, "3/90s", 2*time.Hour + time.Second, `client "sap" may send 3 messages in 90 s; it opens again in 3 h`},
		{"sap", limit.KindMessages, "3/60m", time.Second, `client "sap" may send 3 messages an hour; it opens again in 1 s`},
		{"sap", limit.KindMessages, "3/168h", 49 * time.Hour, `client "sap" may send 3 messages in 7 days; it opens again in 3 days`},
		{IdentityKey("scan@contoso.com"), limit.KindMessages, "20/m", time.Second, `identity <scan@contoso.com> may send 20 messages a minute; it opens again in 1 s`},
		{"K\u00fcche \"3\"\r\n", limit.KindMessages, "2/m", time.Second, `client "K??che ?3???" may send 2 messages a minute; it opens again in 1 s`},
	} {
		r := &Refusal{Key: tc.key, Kind: tc.kind, Rate: mustRates(t, tc.rate)[0], Opens: dawn.Add(tc.wait)}
		if got := Describe(r, dawn); got != tc.want {
			t.Errorf("Describe(%q, %s, %v) =\n%s, want\n%s", tc.key, tc.rate, tc.wait, got, tc.want)
		}
	}
	r := &Refusal{Key: "printers", Kind: limit.KindRecipients, Rate: limit.Rate{N: 500, Per: 24 * time.Hour}}
	if got, want := Describe(r, dawn), `client "printers" may send to 500 recipients a day, and this message alone has more`; got != want {
		t.Errorf("Describe = %s, want %s", got, want)
	}
}

func TestDescriptionsAreShortPrintableASCII(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := string(rapid.SliceOfN(rapid.Byte(), 0, 1000).Draw(t, "name"))
		n := rapid.IntRange(1, 1_000_000_000).Draw(t, "n")
		d := time.Duration(rapid.Int64Range(1, int64(longestPeriod)).Draw(t, "d"))
		kind := rapid.SampledFrom([]limit.Kind{limit.KindMessages, limit.KindRecipients}).Draw(t, "kind")
		for _, got := range []string{
			Describe(&Refusal{Key: name, Kind: kind, Rate: limit.Rate{N: n, Per: d}, Opens: dawn.Add(d)}, dawn),
			Describe(&Refusal{Key: IdentityKey(name), Kind: kind, Rate: limit.Rate{N: n, Per: d}}, dawn),
			queue.DescribeOverflow(name, &queue.Overflow{Kind: kind, Waiting: n, Room: n, Retry: d}),
		} {
			if len(got) > 250 || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Fatalf("%d bytes: %q", len(got), got)
			}
		}
	})
}
