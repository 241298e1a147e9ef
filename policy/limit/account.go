package limit

import (
	"slices"
	"time"
)

// account is what the ledger knows of one mailbox. It is pure: it is told the time.
//
// The invariant: in any period of length Messages.Per, Microsoft counts at most Messages.N
// messages. When Microsoft counts a message is not known exactly, only that it
// lies between the lease and the verdict. So a message holds its place in the window from
// its lease until its verdict is Per old: a later message gets the place only when even
// the latest moment at which the earlier one can have been counted has left the window.
// The price is the time between lease and verdict, once per window and place.
//
// Within that, messages are spread (see gap), so that a backlog does not leave in a rush
// followed by a standstill during which look-ups wait with open connections.
type account struct {
	open   map[uint64]time.Time // leases out, by id: when they were given
	done   []time.Time          // verdicts of the last window, ascending
	last   time.Time            // when the last lease was given
	sent   []bucket             // recipients of the last window, ascending
	serial uint64
}

// bucket counts recipients of one stretch of time.
type bucket struct {
	end time.Time
	n   int
}

// bucketsPerWindow makes the recipient count inexact by at most a 96th of the window (15
// minutes of a day), always to the safe side: a bucket leaves the window as a whole.
const bucketsPerWindow = 96

// pollWait is how long to wait when only the end of a lease can help, in case nobody tells.
const pollWait = time.Second

func newAccount() *account { return &account{open: make(map[uint64]time.Time)} }

// take gives a lease or says what stands in the way and for how long.
func (a *account) take(l Limits, now time.Time) Answer {
	a.forget(l, now)
	if len(a.open) >= l.Connections {
		return Answer{Wait: pollWait, Cause: CauseConnections}
	}
	if w := a.messageWait(l.Messages, now); w > 0 {
		return Answer{Wait: w, Cause: CauseMessages}
	}
	if w := a.recipientWait(l.Recipients, now); w > 0 {
		return Answer{Wait: w, Cause: CauseRecipients}
	}
	a.serial++
	a.open[a.serial] = now
	a.last = now
	return Answer{Lease: a.serial}
}

// forget drops what has left the windows.
func (a *account) forget(l Limits, now time.Time) {
	old := func(t time.Time, per time.Duration) bool { return now.Sub(t) >= per }
	i := 0
	for i < len(a.done) && old(a.done[i], l.Messages.Per) {
		i++
	}
	a.done = slices.Delete(a.done, 0, i)
	i = 0
	for i < len(a.sent) && old(a.sent[i].end, l.Recipients.Per) {
		i++
	}
	a.sent = slices.Delete(a.sent, 0, i)
}

// messageWait returns how long the message limit asks to wait.
func (a *account) messageWait(r Rate, now time.Time) time.Duration {
	used := len(a.done) + len(a.open)
	if over := used - r.N; over >= 0 {
		if over >= len(a.done) {
			return pollWait // all places are held by leases that are still out
		}
		return a.done[over].Add(r.Per).Sub(now)
	}
	return a.last.Add(a.gap(r, used)).Sub(now)
}

// gap returns the least time between two leases. A mailbox that has used less than a
// third of its window sends at once. After that it keeps a little under the even
// distance, so that it can catch up after a slow verdict; and as long as much of the
// window is left, the rest is spread until the first place comes free again.
func (a *account) gap(r Rate, used int) time.Duration {
	if used < max(1, r.N/3) {
		return 0
	}
	even := r.Per / time.Duration(r.N) * 9 / 10
	left := r.N - used
	if left < 3 || len(a.done) == 0 {
		return even
	}
	return max(even, a.done[0].Add(r.Per).Sub(a.last)/time.Duration(left))
}

// recipientWait returns how long the recipient limit asks to wait: there must be room for one whole
// delivery besides those under way.
func (a *account) recipientWait(r Rate, now time.Time) time.Duration {
	need := min(MaxDelivery, r.N)
	used := a.recipients() + need*len(a.open)
	if used+need <= r.N {
		return 0
	}
	for _, b := range a.sent {
		if used -= b.n; used+need <= r.N {
			return b.end.Add(r.Per).Sub(now)
		}
	}
	return pollWait
}

func (a *account) recipients() int {
	n := 0
	for _, b := range a.sent {
		n += b.n
	}
	return n
}

// settle books the end of a lease.
func (a *account) settle(lease uint64, o Outcome, per time.Duration, now time.Time) {
	if _, ok := a.open[lease]; !ok {
		return
	}
	delete(a.open, lease)
	if !o.Submitted {
		return
	}
	i := len(a.done) // time may have been set back
	for i > 0 && a.done[i-1].After(now) {
		i--
	}
	a.done = slices.Insert(a.done, i, now)
	if o.Recipients <= 0 {
		return
	}
	width := per / bucketsPerWindow
	if n := len(a.sent); n > 0 && !now.After(a.sent[n-1].end) {
		a.sent[n-1].n += o.Recipients
		return
	}
	a.sent = append(a.sent, bucket{end: now.Add(width), n: o.Recipients})
}

func (a *account) usage(l Limits, now time.Time) Usage {
	a.forget(l, now)
	return Usage{Messages: len(a.done) + len(a.open), Recipients: a.recipients(), Leases: len(a.open)}
}
