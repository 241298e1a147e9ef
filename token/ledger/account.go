package ledger

import (
	"maps"
	"slices"
	"time"

	"github.com/sendas/sendas/policy/limit"
)

// account is what the ledger knows of one mailbox. It is pure: it is told the time.
//
// The invariant: in any period of length Messages.Per, Microsoft counts at most Messages.N
// messages. When Microsoft counts a message is not known exactly, only that it
// lies between its beginning (DATA) and the verdict. So a message holds its place in the window
// until its verdict is Per old: a later message gets the place only when even
// the latest moment at which the earlier one can have been counted has left the window.
// The price is the time between beginning and verdict, once per window and place.
//
// A lease can be given before its place begins, as long as somebody keeps the message back until
// then (Allowance.Ahead): what comes before the message, such as AUTH, needs no place. When the
// place begins is certain by then, since it is a verdict's that is known already: the n-th lease
// that has no place yet gets that of the n-th oldest verdict. Whichever of those leases ends without
// a message, the others keep the time that they were told, which is late enough.
//
// Within that, messages are spread (see gap), so that a backlog does not leave in a rush
// followed by a standstill during which look-ups wait with open connections.
//
// redis.lua is the same in Lua: change both.
type account struct {
	tally
	free   map[uint64]bool // leases out that keep no connection any more: see Outcome.Open
	done   []limit.Instant // verdicts of the last window, ascending
	last   limit.Instant   // when the place of the last lease begins
	limits limit.Allowance // of the last Take: Settle is not told

	shrunk   int           // connections taken away by 432s, as of shrunkAt
	shrunkAt limit.Instant // the last 432

	until  limit.Instant // paused
	class  PauseClass
	reason string
}

// tally counts recipients: those booked, and those that leases out may still bring.
type tally struct {
	open map[uint64]hold // leases out, by id
	sent []bucket        // recipients of the last window, ascending
	per  time.Duration   // the window
}

// hold is what a lease keeps occupied until it is settled.
type hold struct {
	given      limit.Instant // from then on it has a place in the message window: see Answer.Begin
	recipients int
}

// bucket counts recipients of one stretch of time.
type bucket struct {
	end limit.Instant
	n   int
}

// terms are the conditions under which a store deals with an account.
type terms struct {
	limit.Allowance
	session limit.Instant // when an open lease is taken back
	// lost is the latest moment at which a message can have been counted of which the store
	// has lost the record; 0: none. All windows that reach back to it are taken for used up.
	lost limit.Instant
}

// bucketsPerWindow makes the recipient count inexact by at most a 96th of the window (15
// minutes of a day), always to the safe side: a bucket leaves the window as a whole.
const bucketsPerWindow = 96

// pollWait is how long to wait when only the end of a lease can help, in case nobody tells.
const pollWait = time.Second

const pollMicros = limit.Instant(pollWait / time.Microsecond)

func newAccount() *account { return &account{tally: newTally()} }

func newTally() tally { return tally{open: make(map[uint64]hold)} }

// obstacle is one limit that stands in the way of a lease.
type obstacle struct {
	wait  limit.Instant // 0: none
	cause Cause
	poll  bool // the wait is a guess: only the end of a lease can help
	ahead bool // at the end of the wait, a place is certain
}

// take gives the lease id or says what stands in the way and for how long. g is the tally of the
// group, or nil.
func (a *account) take(t terms, g *tally, id uint64, now limit.Instant) Answer {
	a.limits = t.Allowance
	begin := now
	for _, o := range a.obstacles(t, g, now) {
		wait := o.wait
		if o.ahead {
			wait -= limit.Micros(min(t.Ahead, MaxAhead))
		}
		if wait <= 0 {
			begin += max(0, o.wait)
			continue
		}
		ans := Answer{Wait: wait.Duration(), Cause: o.cause}
		if o.cause == CausePaused {
			ans.Reason = a.reason
		}
		return ans
	}
	a.open[id] = hold{begin, roomOf(t.Allowance, t.Recipients)}
	a.last = max(a.last, begin)
	if g != nil {
		g.open[id] = hold{begin, roomOf(t.Allowance, t.GroupRecipients)}
	}
	return Answer{Lease: id, Begin: (begin - now).Duration()}
}

// undo takes a lease back that was never handed out.
func (a *account) undo(g *tally, id uint64) {
	delete(a.open, id)
	delete(a.free, id)
	if g != nil {
		delete(g.open, id)
	}
}

// obstacles brings the account up to date, and returns what stands in the way, in the order in
// which it is told.
func (a *account) obstacles(t terms, g *tally, now limit.Instant) [5]obstacle {
	a.forget(t, now)
	list := [5]obstacle{
		{wait: max(0, a.until-now), cause: CausePaused},
		{cause: CauseConnections},
		a.messages(t, now),
		a.recipients(t, t.Recipients, now),
	}
	if a.connections() >= max(1, t.Connections-a.withheld(t.Messages.Per, now)) {
		list[1].wait, list[1].poll = pollMicros, true
	}
	list[3].cause = CauseRecipients
	if g != nil {
		g.forget(t.GroupRecipients.Per, t.session, now)
		list[4] = g.recipients(t, t.GroupRecipients, now)
		list[4].cause = CauseGroup
	}
	return list
}

// begun returns how many leases that are out have a place.
func (a *account) begun(now limit.Instant) int {
	n := 0
	for _, h := range a.open {
		if h.given <= now {
			n++
		}
	}
	return n
}

// connections returns how many connections the leases keep that are out.
func (a *account) connections() int { return len(a.open) - len(a.free) }

// forget drops what has left the windows, and ends the leases that nobody has settled.
func (a *account) forget(t terms, now limit.Instant) {
	for _, end := range a.tally.forget(t.Recipients.Per, t.session, now) {
		a.verdict(end)
	}
	maps.DeleteFunc(a.free, func(id uint64, _ bool) bool { _, out := a.open[id]; return !out })
	i := 0
	for i < len(a.done) && now-a.done[i] >= limit.Micros(t.Messages.Per) {
		i++
	}
	a.done = slices.Delete(a.done, 0, i)
	if a.until <= now {
		a.pause(0, "", "")
	}
}

// forget books the leases that have expired, and returns when they did; then it drops the buckets
// that have left the window.
func (y *tally) forget(per time.Duration, session, now limit.Instant) []limit.Instant {
	y.per = per
	var expired []limit.Instant
	for id, h := range y.open {
		if now-h.given >= session {
			delete(y.open, id)
			y.book(h.recipients, per, h.given+session)
			expired = append(expired, h.given+session)
		}
	}
	i := 0
	for i < len(y.sent) && now-y.sent[i].end >= limit.Micros(per) {
		i++
	}
	y.sent = slices.Delete(y.sent, 0, i)
	return expired
}

// messages returns how long the message limit asks to wait.
func (a *account) messages(t terms, now limit.Instant) obstacle {
	if t.Messages.Unlimited() {
		return obstacle{cause: CauseMessages}
	}
	per := limit.Micros(t.Messages.Per)
	if t.lost != 0 && now < t.lost+per {
		return obstacle{wait: t.lost + per - now, cause: CauseMessages}
	}
	used := len(a.done) + len(a.open)
	over := used - t.Messages.N
	switch {
	case over >= len(a.done): // all places are held by leases that are still out
		return obstacle{wait: pollMicros, cause: CauseMessages, poll: true}
	case over >= 0:
		return obstacle{wait: a.done[over] + per - now, cause: CauseMessages, ahead: true}
	}
	return obstacle{wait: max(0, a.last+a.gap(t.Messages, used)-now), cause: CauseMessages, ahead: true}
}

// gap returns the least time between the beginnings of two messages. A mailbox that has used less than a third of its
// window sends at once. After that the places that are left are spread until the first one comes
// free again, but not evenly: each moment for which a free place waits for its turn is lost. So
// they are handed out as if there were some more, a seventh of the window. With verdicts of 0.5 to
// 3 s, a backlog then uses 97.1 % of the allowance, and 97.2 % without any gap: there is no more to
// have than Per ÷ (Per + lease to verdict). The price is that leases gather: two of them can be 12
// s apart, which is far from the time that a look-up can wait.
func (a *account) gap(r limit.Rate, used int) limit.Instant {
	if used < max(1, r.N/3) {
		return 0
	}
	first := a.last // no verdict yet: one that comes will be later
	if len(a.done) > 0 {
		first = a.done[0]
	}
	left := r.N - used + r.N/7
	return max(0, (first+limit.Micros(r.Per)-a.last)/limit.Instant(left))
}

// room returns how many recipients a lease holds as a rule.
func room(r limit.Rate) int { return min(MaxDelivery, r.N) }

// roomOf returns how many recipients a lease holds: one whole delivery, be it one of which nothing
// will be seen.
func roomOf(l limit.Allowance, r limit.Rate) int { return min(max(room(r), l.Unseen), r.N) }

// recipients returns how long the recipient limit asks to wait: there must be room for one whole
// delivery besides those under way.
func (y *tally) recipients(t terms, r limit.Rate, now limit.Instant) obstacle {
	if r.Unlimited() {
		return obstacle{}
	}
	per := limit.Micros(r.Per)
	if t.lost != 0 && now < t.lost+per {
		return obstacle{wait: t.lost + per - now}
	}
	used, need := y.booked(), roomOf(t.Allowance, r)
	for _, h := range y.open {
		used += h.recipients
	}
	if used+need <= r.N {
		return obstacle{}
	}
	for _, b := range y.sent {
		if used -= b.n; used+need <= r.N {
			return obstacle{wait: b.end + per - now}
		}
	}
	return obstacle{wait: pollMicros, poll: true}
}

// booked returns the recipients of the window.
func (y *tally) booked() int {
	n := 0
	for _, b := range y.sent {
		n += b.n
	}
	return n
}

// book adds recipients at a time. What is older than the last bucket goes into that one: it leaves
// later.
func (y *tally) book(n int, per time.Duration, at limit.Instant) {
	if n <= 0 {
		return
	}
	if last := len(y.sent) - 1; last >= 0 && at <= y.sent[last].end {
		y.sent[last].n += n
		return
	}
	y.sent = append(y.sent, bucket{end: at + limit.Micros(per)/bucketsPerWindow, n: n})
}

// verdict notes that a message was counted at that time at the latest. Where messages are not limited
// nobody asks, and as many as an account of High Volume Email sends would make every record long.
func (a *account) verdict(at limit.Instant) {
	if a.limits.Messages.Unlimited() {
		return
	}
	i := len(a.done)
	for i > 0 && a.done[i-1] > at {
		i--
	}
	a.done = slices.Insert(a.done, i, at)
}

// settle books the end of a lease. It reports whether more was booked than the lease had held.
func (a *account) settle(g *tally, id uint64, o Outcome, now limit.Instant) (more bool) {
	h, ok := a.open[id]
	if !ok {
		return false
	}
	if o.Open {
		if a.free == nil {
			a.free = make(map[uint64]bool)
		}
		a.free[id] = true
		return false
	}
	delete(a.open, id)
	delete(a.free, id)
	if o.Concurrency {
		a.shrink(now)
	}
	held := hold{}
	if g != nil {
		held = g.open[id]
		delete(g.open, id)
	}
	if !o.Submitted {
		a.vacate(h, now)
		return false
	}
	a.verdict(now)
	recipients := o.Recipients
	if a.limits.Recipients.Unlimited() {
		recipients = 0
	}
	a.book(recipients, a.limits.Recipients.Per, now)
	if g != nil {
		g.book(o.GroupRecipients, g.per, now)
	}
	return recipients > h.recipients || g != nil && o.GroupRecipients > held.recipients
}

// vacate gives back the turn of a lease that has ended before its place began: else those without a
// message would put off the next one by more and more.
func (a *account) vacate(h hold, now limit.Instant) {
	if h.given <= now {
		return
	}
	a.last = now
	for _, h := range a.open {
		a.last = max(a.last, h.given)
	}
}

// withheld returns how many connections are taken away now: one comes back per period since the
// last 432.
func (a *account) withheld(per time.Duration, now limit.Instant) int {
	if a.shrunk == 0 || per <= 0 {
		return 0
	}
	return int(max(0, limit.Instant(a.shrunk)-(now-a.shrunkAt)/limit.Micros(per)))
}

func (a *account) shrink(now limit.Instant) {
	n := a.withheld(a.limits.Messages.Per, now) + 1
	a.shrunk, a.shrunkAt = max(0, min(n, a.limits.Connections-1)), now
}

// pause notes until when the mailbox rests, and why; 0 ends a pause.
func (a *account) pause(until limit.Instant, class PauseClass, reason string) {
	if until == 0 {
		class, reason = "", ""
	}
	a.until, a.class, a.reason = until, class, reason
}

// idle reports whether the account says no more than a new one would.
func (a *account) idle(now limit.Instant) bool {
	return a.empty() && len(a.done) == 0 && a.until <= now && now-a.last >= limit.Micros(a.limits.Messages.Per) &&
		a.withheld(a.limits.Messages.Per, now) == 0
}

func (y *tally) empty() bool { return len(y.open)+len(y.sent) == 0 }

// usage tells what is used. at turns ledger time into the caller's.
func (a *account) usage(t terms, g *tally, now limit.Instant, at func(limit.Instant) time.Time) Usage {
	next := limit.Instant(0)
	for _, o := range a.obstacles(t, g, now) {
		if !o.poll {
			next = max(next, o.wait)
		}
	}
	u := Usage{
		Messages:   len(a.done) + a.begun(now),
		Recipients: a.booked(),
		Leases:     a.connections(),
		Shrunk:     min(a.withheld(t.Messages.Per, now), max(0, t.Connections-1)),
	}
	if next > 0 {
		u.Next = at(now + next)
	}
	if a.until > now {
		u.PausedUntil, u.PauseClass, u.PauseReason = at(a.until), a.class.known(), a.reason
	}
	if g != nil {
		u.GroupRecipients = g.booked()
	}
	return u
}
