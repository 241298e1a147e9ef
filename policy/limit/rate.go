package limit

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// A Rate is how much may happen in any period of a given length: a sliding window, not one
// that starts at the full minute. Of an [Allowance], 0 in a period is no limit.
type Rate struct {
	N   int
	Per time.Duration
}

// ParseRate reads "30/m", "500/h", "10000/d", or a period of its own as in "30/6s".
func ParseRate(s string) (Rate, error) {
	wrong := fmt.Errorf("%q is not a rate; write 30/m", s)
	count, per, ok := strings.Cut(s, "/")
	if !ok {
		return Rate{}, wrong
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 1 || n > 1_000_000_000 {
		return Rate{}, wrong
	}
	switch per {
	case "m":
		return Rate{n, time.Minute}, nil
	case "h":
		return Rate{n, time.Hour}, nil
	case "d":
		return Rate{n, 24 * time.Hour}, nil
	}
	d, err := time.ParseDuration(per)
	if err != nil || d < 100*time.Millisecond || d > 31*24*time.Hour {
		return Rate{}, wrong
	}
	return Rate{n, d}, nil
}

// Unlimited reports whether the rate is none of an [Allowance].
func (r Rate) Unlimited() bool { return r.N == 0 }

// String returns the rate in the form that ParseRate reads.
func (r Rate) String() string {
	switch r.Per {
	case time.Minute:
		return strconv.Itoa(r.N) + "/m"
	case time.Hour:
		return strconv.Itoa(r.N) + "/h"
	case 24 * time.Hour:
		return strconv.Itoa(r.N) + "/d"
	}
	return strconv.Itoa(r.N) + "/" + r.Per.String()
}

// Allowance is what one mailbox may do. The period of Messages is also how long the mailbox rests
// where it has to, so it has one where the number is not limited.
type Allowance struct {
	Messages    Rate // accepted messages
	Recipients  Rate // recipients of accepted messages, each time anew
	Connections int  // leases out at one time

	// Group names mailboxes that share GroupRecipients, as those of a tenant do; "" where there is
	// no such limit. All mailboxes of a group must give the same rate.
	Group           string
	GroupRecipients Rate // Outcome.GroupRecipients of all mailboxes of the group

	// Unseen is how many recipients a delivery counts whose replies nobody saw: as many as one can
	// have. 0 is as many as a lease holds room for in any case.
	Unseen int

	// Ahead is how long before its place in the message window begins a lease may be given: who asks
	// promises that the message begins no sooner than it is told. 0 where nobody would keep it.
	Ahead time.Duration
}

// Grouped reports whether a limit for the whole group is in force.
func (l Allowance) Grouped() bool { return l.Group != "" && l.GroupRecipients.N > 0 }

// Microsoft returns the limits of Exchange Online for one mailbox ("Exchange Online
// limits", and "Improvements in SMTP client submission").
func Microsoft() Allowance {
	return Allowance{
		Messages:    Rate{30, time.Minute},
		Recipients:  Rate{10_000, 24 * time.Hour},
		Connections: 3,
	}
}

// HighVolume returns what an account of High Volume Email may do: Microsoft counts neither its messages
// nor its recipients, and names no number of connections ("Manage high volume emails for Microsoft
// 365"). As many as Postfix has for one destination (default_destination_concurrency_limit) are ours.
func HighVolume() Allowance {
	return Allowance{Messages: Rate{Per: time.Minute}, Recipients: Rate{Per: 24 * time.Hour}, Connections: 20}
}

// TERRL returns the tenant external recipient rate limit of Exchange Online: how many recipients
// outside of the tenant all its mailboxes may send to in 24 hours, given the number of email
// licences that are no trial: 500 × licences^0.7 + 9,500 (message centre post MC1023294). A tenant
// without such licences is a trial tenant and has 5,000.
func TERRL(licences int) Rate {
	if licences < 1 {
		return Rate{5_000, 24 * time.Hour}
	}
	return Rate{int(math.Round(500*math.Pow(float64(licences), 0.7) + 9_500)), 24 * time.Hour}
}

// MOERA returns the limit for senders at onmicrosoft.com domains: recipients outside of the tenant,
// in 24 hours, for all such senders of the tenant.
func MOERA() Rate { return Rate{100, 24 * time.Hour} }
