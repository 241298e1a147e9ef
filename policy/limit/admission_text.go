package limit

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/sendas/sendas/internal/plaintext"
)

// identityPrefix tells the keys of identities from those of clients.
const identityPrefix = "identity:"

// IdentityKey returns the key under which an identity is counted. Addresses that are the same must be written the
// same way.
func IdentityKey(address string) string { return identityPrefix + address }

// maxShownName is how many bytes of a name or an address that is too long an SMTP reply shows.
const maxShownName = 80

// Describe says in one sentence, for an SMTP reply, what stands in the way and until when. It is printable ASCII
// and no longer than 250 bytes, whatever the key is.
func Describe(r *Refusal, now time.Time) string {
	s := keyText(r.Key) + " may send " + rateText(r.Kind, r.Rate)
	if r.Opens.IsZero() {
		return s + ", and this message alone has more"
	}
	return s + "; it opens again in " + waitText(r.Opens.Sub(now))
}

// keyText names a client or an identity.
func keyText(key string) string {
	if address, ok := strings.CutPrefix(key, identityPrefix); ok {
		return "identity <" + shownName.Line(address) + ">"
	}
	return `client "` + shownName.Line(key) + `"`
}

// rateText words a rate: "20 messages a minute", "to 500 recipients a day", "30 messages in 6 s".
func rateText(k Kind, r Rate) string {
	s := amount(r.N, k) + " " + periodText(r.Per)
	if k == KindRecipients {
		return "to " + s
	}
	return s
}

// amount words a number: "1 message", "20 messages".
func amount(n int, k Kind) string {
	if n == 1 {
		return "1 " + strings.TrimSuffix(string(k), "s")
	}
	return fmt.Sprintf("%d %s", n, k)
}

func periodText(d time.Duration) string {
	switch d {
	case time.Minute:
		return "a minute"
	case time.Hour:
		return "an hour"
	case 24 * time.Hour:
		return "a day"
	}
	return "in " + exactPeriod(d)
}

// exactPeriod words a period of the configuration: "90 s", "10 min", "0.1 s".
func exactPeriod(d time.Duration) string {
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{24 * time.Hour, " days"}, {time.Hour, " h"}, {time.Minute, " min"}, {time.Second, " s"}} {
		if d >= u.unit && d%u.unit == 0 {
			return strconv.FormatInt(int64(d/u.unit), 10) + u.name
		}
	}
	return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) + " s"
}

// waitText words a wait in the largest unit of which it has two, rounded up: one who waits that long does not come too soon.
func waitText(d time.Duration) string {
	up := func(unit time.Duration) int64 { return int64((max(d, 1) + unit - 1) / unit) }
	switch {
	case d <= 2*time.Minute:
		return fmt.Sprintf("%d s", up(time.Second))
	case d <= 2*time.Hour:
		return fmt.Sprintf("%d min", up(time.Minute))
	case d <= 48*time.Hour:
		return fmt.Sprintf("%d h", up(time.Hour))
	}
	return fmt.Sprintf("%d days", up(24*time.Hour))
}

// shownName is how a name stands in a reply: printable ASCII, without the quotes that we put around it, and short.
var shownName = plaintext.Style{Exact: true, ASCII: true, Not: `"<>`, Bad: '?', Bytewise: true, MaxBytes: maxShownName + len("..."), Cut: "..."}
