package ledger

import (
	"cmp"
	"context"
	"time"

	"github.com/sendas/sendas/policy/limit"
)

// A Store says when a mailbox may submit a message, and remembers what it has sent. It is the one
// small interface under which stores can differ: in memory ([Memory]), in a file ([Bolt]), shared
// by several hosts ([Redis], [Shared]). All methods are safe for concurrent use.
//
// The time that a method is told should come from [time.Now]: its monotonic reading is what makes a
// ledger proof against a wall clock that is set while the process runs.
type Store interface {
	// Take asks for a lease: the right to submit one message as the mailbox now, or as soon as its
	// place in the window begins, where that is certain to be within l.Ahead. An Answer without
	// lease says when it is worth asking again. A lease must be settled; one that is not counts as
	// submitted, with MaxDelivery recipients, at the end of the longest session (MaxSession). An
	// error means that the store cannot tell; then nothing may be sent.
	Take(ctx context.Context, mailbox string, l limit.Allowance, now time.Time) (Answer, error)

	// Settle ends a lease and books what became of it. Settling a lease that is not out is no
	// error: two observers may see the same session end.
	Settle(ctx context.Context, mailbox string, lease uint64, o Outcome, now time.Time) error

	// Pause gives the mailbox no lease before p.Until; it replaces a pause in force. Leases that
	// are out stay good.
	Pause(ctx context.Context, mailbox string, p Pause, now time.Time) error

	// Usage tells what the mailbox has used, for people and metrics.
	Usage(ctx context.Context, mailbox string, l limit.Allowance, now time.Time) (Usage, error)
}

// A Survivor is a Store that outlives the process. What the process knew of the leases it has given
// is lost when it is killed, and a lease that nobody settles occupies a connection of its mailbox
// until MaxSession.
type Survivor interface {
	Store
	// Outstanding returns the leases that an earlier process was given and nobody has settled, as
	// far as the ledger can tell them from those of others.
	Outstanding() []Outstanding
	// Adopt announces that this process will settle a lease that an earlier one was given.
	Adopt(mailbox string, lease uint64, l limit.Allowance)
}

// Outstanding is a lease that an earlier process was given.
type Outstanding struct {
	Mailbox    string
	Lease      uint64
	Recipients int // for so many it holds room; 0: not known
}

// A Cause names the limit that stands in the way.
type Cause string

// The causes of a wait.
const (
	CauseMessages    Cause = "messages"
	CauseRecipients  Cause = "recipients"
	CauseConnections Cause = "connections"
	CausePaused      Cause = "paused"
	CauseGroup       Cause = "group" // the recipients of all the mailboxes of Allowance.Group
)

// An Answer is the ledger's answer to Take.
type Answer struct {
	Lease  uint64        // not 0 when granted
	Begin  time.Duration // of a lease: its place begins so long from now, and no message may before
	Wait   time.Duration // else: ask again after that long, or as soon as a lease of the mailbox is settled
	Cause  Cause         // what stands in the way
	Reason string        // in words, where the cause alone does not tell: why paused
}

// An Outcome is what became of a lease.
type Outcome struct {
	// Submitted: Microsoft may have counted a message, so we count it too.
	Submitted bool
	// Recipients that Microsoft has accepted; it counts each of them (rolling 24 h).
	Recipients int
	// GroupRecipients are those of them that count for Allowance.Group, such as the ones outside of
	// the tenant.
	GroupRecipients int
	// Concurrency: Microsoft refused because of too many connections at one time (432 4.3.2). The
	// mailbox's connections shrink by one, never below one, and come back one by one, each after a
	// Messages.Per without another refusal.
	Concurrency bool
	// Open: the session may still go on, and Microsoft may count a message yet. Only the connection
	// comes back; the lease stays out, and is settled later. The rest of the outcome does not
	// matter.
	Open bool
}

// A Pause says until when a mailbox rests, and why.
type Pause struct {
	Until  time.Time // the zero time ends a pause
	Class  PauseClass
	Reason string // for people: the words for a class change with versions
}

// A PauseClass says why a mailbox rests to programs: it is stored beside the words, and a label
// value of metrics.
type PauseClass string

// The classes of pauses. A store keeps whatever class it is given.
const (
	PauseQuota     PauseClass = "quota"        // the day's recipients are used up, says Microsoft
	PauseFull      PauseClass = "mailbox-full" // with copies in Sent Items, most likely
	PauseBlocked   PauseClass = "blocked"      // by Microsoft, as a source of spam, until an administrator lifts it
	PauseThrottled PauseClass = "throttled"    // too much of what it sent was refused
	// PauseDenied is that of a sender, under a name of its own: the mailbox has no permission to
	// send as it.
	PauseDenied PauseClass = "send-as-denied"
	PauseOther  PauseClass = "other" // and where the store has none: versions before this one kept the words alone
)

// known returns the class, or PauseOther for none.
func (c PauseClass) known() PauseClass { return cmp.Or(c, PauseOther) }

// Usage is what a mailbox has used of its limits. That of a mailbox that has done nothing is the
// zero value.
type Usage struct {
	Messages        int // in the window, leases out included whose place has begun
	Recipients      int // in the window, rounded up to whole buckets
	Leases          int // out now
	GroupRecipients int // of all mailboxes of the group, as Recipients

	// Shrunk is how many of Allowance.Connections are withheld after a 432; see Connections.
	Shrunk int
	// Next is when the next place begins, as far as is known now; zero means at once, or as soon as
	// a lease that is out comes back.
	Next time.Time

	PausedUntil time.Time  // zero: not paused
	PauseClass  PauseClass // "": not paused
	PauseReason string
}

// Connections returns the concurrency in force: how many leases may be out at one time now.
func (u Usage) Connections(l limit.Allowance) int { return max(1, l.Connections-u.Shrunk) }

// MaxDelivery is how many recipients one delivery is expected to have at most: Postfix's
// default_destination_recipient_limit. A lease is only given when there is room for that many. A
// delivery with more can pass a recipient limit by the surplus; it is booked in full.
const MaxDelivery = 50

// MaxAhead is how long before its place begins a lease is given at most, whatever Allowance.Ahead
// says.
const MaxAhead = 20 * time.Second

// MaxSession is when a lease that nobody has settled is taken back, unless the store is told
// otherwise. Postfix waits at most smtp_data_done_timeout (600 s) for a verdict.
const MaxSession = 15 * time.Minute
