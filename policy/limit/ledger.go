package limit

import (
	"context"
	"time"
)

// A Ledger says when a mailbox may submit a message, and remembers what it has sent. It
// is the one small interface under which stores can differ: in memory, in a file, or
// shared by several hosts. All methods are safe for concurrent use.
type Ledger interface {
	// Take asks for a lease: the right to submit one message as the mailbox now. An
	// Answer without lease says when it is worth asking again. A lease must be
	// settled, or it counts against the mailbox for ever. An error means that the store
	// cannot tell; then nothing may be sent.
	Take(ctx context.Context, mailbox string, l Limits, now time.Time) (Answer, error)

	// Settle ends a lease and books what became of it. Settling a lease that is not out is no
	// error: two observers may see the same session end.
	Settle(ctx context.Context, mailbox string, lease uint64, o Outcome, now time.Time) error

	// Usage tells what the mailbox has used, for people and metrics.
	Usage(ctx context.Context, mailbox string, l Limits, now time.Time) (Usage, error)
}

// A Cause names the limit that stands in the way.
type Cause string

// The causes of a wait.
const (
	CauseMessages    Cause = "messages"
	CauseRecipients  Cause = "recipients"
	CauseConnections Cause = "connections"
)

// An Answer is the ledger's answer to Take.
type Answer struct {
	Lease uint64        // not 0 when granted
	Wait  time.Duration // else: ask again after that long, or as soon as a lease of the mailbox is settled
	Cause Cause         // what stands in the way
}

// An Outcome is what became of a lease.
type Outcome struct {
	// Submitted: Microsoft may have counted a message, so we count it too.
	Submitted bool
	// Recipients that Microsoft has accepted; it counts each of them (rolling 24 h).
	Recipients int
}

// Usage is what a mailbox has used of its limits.
type Usage struct {
	Messages   int // in the window, leases out included
	Recipients int // in the window, rounded up to whole buckets
	Leases     int // out now
}

// MaxDelivery is how many recipients one delivery is expected to have at most: Postfix's
// default_destination_recipient_limit. A lease is only given when there is room for that many.
const MaxDelivery = 50
