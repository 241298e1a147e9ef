package queue

import (
	"fmt"
	"math"
	"time"

	"github.com/sendas/sendas/policy/limit"
)

// A Ceiling protects Postfix's queue: no more mail is taken for a mailbox than can leave before it
// would be too old. It is not for pacing, since the queue absorbs what has to wait and the lease
// paces; it is for the client that submits for days more than Microsoft takes, whose mail would
// fill the disk and bounce at last. The zero value takes everything.
type Ceiling struct {
	// Limits are the mailbox's own. Connections does not matter here.
	Limits limit.Allowance
	// Wait is how long the message that is taken last may have to wait; well below Postfix's
	// maximal_queue_lifetime (5 days), since mail is tried again with pauses. 0 is no ceiling.
	Wait time.Duration
}

// A Backlog is what waits for one mailbox and what can leave. All are plain numbers that somebody
// has counted: negative ones, as of two counts that were not taken at the same moment, are taken
// for 0.
type Backlog struct {
	Messages, Recipients         int // accepted, not delivered
	MessagesLeft, RecipientsLeft int // can still leave within the next 24 h
}

// An Overflow tells why a Ceiling takes no more.
type Overflow struct {
	Kind    limit.Kind
	Waiting int           // with the message in question
	Room    int           // can leave in time
	Retry   time.Duration // after that it fits, if nothing else comes; 0 if it never does
}

// Take says whether a message with so many recipients can be taken; nil is yes. It is pure.
func (c Ceiling) Take(b Backlog, recipients int) *Overflow {
	if c.Wait <= 0 {
		return nil
	}
	if o := c.take(limit.KindMessages, c.Limits.Messages, b.Messages, 1, b.MessagesLeft); o != nil {
		return o
	}
	return c.take(limit.KindRecipients, c.Limits.Recipients, b.Recipients, recipients, b.RecipientsLeft)
}

func (c Ceiling) take(k limit.Kind, r limit.Rate, waiting, more, left int) *Overflow {
	if r.Unlimited() {
		return nil
	}
	waiting = max(0, waiting) + max(0, more)
	room := c.room(r, max(0, left))
	if waiting <= room {
		return nil
	}
	o := &Overflow{Kind: k, Waiting: waiting, Room: room}
	if r.Per > 0 && more <= c.room(r, math.MaxInt32) {
		o.Retry = max(time.Second, timeFor(waiting-room, r))
	}
	return o
}

// room returns how many can leave within Wait: of the first 24 h no more than is left of them, of
// the others all that the rate gives.
func (c Ceiling) room(r limit.Rate, left int) int {
	const day = 24 * time.Hour
	if r.N <= 0 || r.Per <= 0 {
		return 0
	}
	perDay := max(r.N, inTime(r, min(c.Wait, day))) // a whole period's worth can leave at once
	return min(left, perDay) + inTime(r, max(0, c.Wait-day))
}

// inTime returns how many a rate lets out in that time, evenly.
func inTime(r limit.Rate, d time.Duration) int {
	return int(min(float64(r.N)*float64(d)/float64(r.Per), math.MaxInt32))
}

// timeFor returns how long a rate needs for n, evenly.
func timeFor(n int, r limit.Rate) time.Duration {
	return time.Duration(min(float64(n)*float64(r.Per)/float64(r.N), math.MaxInt64/2))
}

// DescribeOverflow says in one sentence, for an SMTP reply, why a mailbox takes no more. It is
// printable ASCII and no longer than 250 bytes.
func DescribeOverflow(mailbox string, o *Overflow) string {
	s := fmt.Sprintf("mailbox <%s> would have %s waiting, and only %d can leave in time", limit.ShownName.Line(mailbox), limit.Amount(o.Waiting, o.Kind), o.Room)
	if o.Retry == 0 {
		return s
	}
	return s + "; it takes more in " + limit.WaitText(o.Retry)
}
