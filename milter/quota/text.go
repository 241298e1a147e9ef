package quota

import (
	"strconv"
	"strings"
	"time"

	"github.com/sendas/sendas/policy/limit"
)

// identityPrefix tells the keys of identities from those of clients.
const identityPrefix = "identity:"

// IdentityKey returns the key under which an identity is counted. Addresses that are the same must
// be written the same way.
func IdentityKey(address string) string { return identityPrefix + address }

// Describe says in one sentence, for an SMTP reply, what stands in the way and until when. It is
// printable ASCII and no longer than 250 bytes, whatever the key is.
func Describe(r *Refusal, now time.Time) string {
	s := keyText(r.Key) + " may send " + rateText(r.Kind, r.Rate)
	if r.Opens.IsZero() {
		return s + ", and this message alone has more"
	}
	return s + "; it opens again in " + limit.WaitText(r.Opens.Sub(now))
}

// keyText names a client or an identity.
func keyText(key string) string {
	if address, ok := strings.CutPrefix(key, identityPrefix); ok {
		return "identity <" + limit.ShownName.Line(address) + ">"
	}
	return `client "` + limit.ShownName.Line(key) + `"`
}

// rateText words a rate: "20 messages a minute", "to 500 recipients a day", "30 messages in 6 s".
func rateText(k limit.Kind, r limit.Rate) string {
	s := limit.Amount(r.N, k) + " " + periodText(r.Per)
	if k == limit.KindRecipients {
		return "to " + s
	}
	return s
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
