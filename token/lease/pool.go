package lease

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/ledger"
)

// A lookup is one look-up that waits for a lease of its mailbox, or of any mailbox of a pool. It
// stands in the line of each of them at once, in the place that its coming gives it, asks the
// ledger where it is the first, and leaves all lines with the first lease that it gets. So it never
// holds a lease of one mailbox while it waits for another, nobody overtakes it in any line, and no
// mailbox stands idle for its sake: where the mailbox cannot send in time, the next in line may
// ask.
type lookup struct {
	number  uint64        // in the order of coming
	wake    chan struct{} // something has changed for it
	choices []*choice     // never changes
	ahead   time.Duration // a lease may come so long before its message may begin
}

// choice is one mailbox of a lookup. What another goroutine may see is guarded by Lessor.mu.
type choice struct {
	m    *Mailbox
	line *line // nil: it does not stand in the mailbox's line

	token    *entra.Token
	fetching bool  // a goroutine waits for the token
	err      error // why it cannot be this mailbox

	answer ledger.Answer // the ledger's last one
	asked  bool
	opens  time.Time // when there is one, by that answer
	again  time.Time // when to ask again
	seen   uint64    // line.back before the ledger was asked
	late   bool      // the answer was: not in time
}

// line is the look-ups that wait for one mailbox, in the order of their coming. Lessor.mu guards
// it.
type line struct {
	label   string // of the mailbox, in metrics and status
	lookups []*place
	back    uint64 // leases that have come back: an answer from before the last one may be out of date
}

// place is a lookup's place in a line.
type place struct {
	*lookup
	*choice
}

// firstLocked returns the place whose turn it is, or nil: the first one but for those who have been
// told that they wait in vain.
func (n *line) firstLocked() *place {
	for _, p := range n.lookups {
		if !p.hopelessLocked() {
			return p
		}
	}
	return nil
}

// hopelessLocked reports whether the ledger's last answer leaves nothing to wait for.
func (c *choice) hopelessLocked() bool { return c.late && c.seen == c.line.back }

// placeLocked reports whether all that is missing is a place in the minute, by the ledger's last
// answer.
func (c *choice) placeLocked() bool {
	return c.asked && c.answer.Cause == ledger.CauseMessages && c.line != nil && c.seen == c.line.back
}

// dueLocked reports whether it is worth asking the ledger.
func (c *choice) dueLocked(now time.Time) bool {
	return !c.asked || c.seen != c.line.back || !now.Before(c.again)
}

// wakeFirstLocked tells the first of a line that it is, or that a lease has come back. l.mu is
// held.
func (n *line) wakeFirstLocked() {
	if p := n.firstLocked(); p != nil {
		p.nudge()
	}
}

func (w *lookup) nudge() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// grant waits for the turn and for the ledger, and returns a session with a lease and a token of
// one of the mailboxes. With an error it returns the mailbox that the error is about.
func (l *Lessor) grant(ctx context.Context, mailboxes []*Mailbox, ahead time.Duration) (*session, *Mailbox, error) {
	w := l.arrive(mailboxes)
	w.ahead = ahead
	defer l.leave(w)
	for {
		l.lookForTokens(ctx, w)
		c, wait := l.next(w)
		switch {
		case l.stopping():
			return nil, mailboxes[0], errDraining
		case c != nil:
			if s := l.ask(ctx, w, c); s != nil {
				return s, nil, nil
			}
		case wait < 0:
			m, err := l.why(w, false)
			return nil, m, err
		case !w.wait(ctx, wait, l.draining):
			m, err := l.why(w, true)
			return nil, m, err
		}
	}
}

// arrive makes a lookup. It takes its places when there are tokens.
func (l *Lessor) arrive(mailboxes []*Mailbox) *lookup {
	w := &lookup{wake: make(chan struct{}, 1), choices: make([]*choice, len(mailboxes))}
	for i, m := range mailboxes {
		w.choices[i] = &choice{m: m}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.arrived++
	w.number = l.arrived
	if len(mailboxes) > 1 { // only those of pools are kept, or strangers could fill the memory
		for _, m := range mailboxes {
			l.served[m.Address] += 0
		}
	}
	return w
}

// leave gives up all places of a lookup.
func (l *Lessor) leave(w *lookup) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range w.choices {
		l.stepOutLocked(w, c)
	}
}

// stepInLocked takes the lookup's place in the line of a mailbox. l.mu is held.
func (l *Lessor) stepInLocked(w *lookup, c *choice) {
	if c.line != nil {
		return
	}
	n := l.lines[c.m.Address]
	if n == nil {
		n = &line{label: c.m.Label}
		l.lines[c.m.Address] = n
	}
	i, _ := slices.BinarySearchFunc(n.lookups, w.number, func(p *place, number uint64) int { return int(p.number) - int(number) })
	n.lookups = slices.Insert(n.lookups, i, &place{w, c})
	c.line = n
	l.metrics.waiting.WithLabelValues(n.label).Inc()
}

// stepOutLocked leaves the line of a mailbox. An empty line is forgotten: with a pattern there may
// be very many. l.mu is held.
func (l *Lessor) stepOutLocked(w *lookup, c *choice) {
	n := c.line
	if n == nil {
		return
	}
	c.line = nil
	n.lookups = slices.DeleteFunc(n.lookups, func(p *place) bool { return p.lookup == w })
	l.metrics.waiting.WithLabelValues(n.label).Dec()
	if len(n.lookups) == 0 && l.lines[c.m.Address] == n {
		delete(l.lines, c.m.Address)
	}
	n.wakeFirstLocked()
}

// ended is a context that has ended: with it, a Source answers from memory or not at all.
var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// lookForTokens finds out which mailboxes have a token. The others are not waited for in line:
// while a token is fetched the lookup has no place, and without one there is no use in it.
func (l *Lessor) lookForTokens(ctx context.Context, w *lookup) {
	for _, c := range w.choices {
		if l.failed(c) {
			continue
		}
		t, err := c.m.Tokens.Token(ended)
		if err == nil {
			err = cmp.Or(l.resting(c.m, t), c.m.tooOld(t))
		} else if !errors.Is(err, context.Canceled) {
			err = fmt.Errorf("no token for mailbox %s: %w", c.m.Address, err)
		}
		l.mu.Lock()
		switch {
		case err == nil:
			c.token = t
			l.stepInLocked(w, c)
		case errors.Is(err, context.Canceled):
			l.stepOutLocked(w, c)
			l.fetchLocked(ctx, w, c)
		default:
			c.err = err
			l.stepOutLocked(w, c)
		}
		l.mu.Unlock()
	}
}

// failed reports whether it cannot be this mailbox; whoever fetches a token may have found that out.
func (l *Lessor) failed(c *choice) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return c.err != nil
}

// tooOld says so where the submission host would refuse the token.
func (m *Mailbox) tooOld(t *entra.Token) error {
	left := time.Until(t.Expires)
	if left >= m.MinLife {
		return nil
	}
	return fmt.Errorf("the token for mailbox %s ends in %v and no new one could be got; the submission host takes none with less than %v",
		m.Address, left.Round(time.Second), m.MinLife)
}

// fetchLocked waits for a token beside the lookup, which another mailbox may serve meanwhile. l.mu
// is held.
func (l *Lessor) fetchLocked(ctx context.Context, w *lookup, c *choice) {
	if c.fetching {
		return
	}
	c.fetching = true
	go func() {
		_, err := c.m.Tokens.Token(ctx)
		l.mu.Lock()
		c.fetching = false
		if err != nil && c.err == nil && ctx.Err() == nil {
			c.err = fmt.Errorf("no token for mailbox %s: %w", c.m.Address, err)
		}
		l.mu.Unlock()
		w.nudge()
	}()
}

// next returns the mailbox to ask about now; of several, the one that has served nobody for
// longest, and where none can send now, the one whose place in the minute begins first. Else it returns how long to wait for the next one, or -1 when there is nothing to wait
// for.
func (l *Lessor) next(w *lookup) (best *choice, wait time.Duration) {
	now := time.Now()
	wait = -1
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range w.choices {
		switch {
		case c.err != nil || c.line != nil && c.hopelessLocked():
		case c.line == nil || c.line.firstLocked().lookup != w: // somebody will wake us
			wait = sooner(wait, maxWait)
		case !c.dueLocked(now):
			wait = sooner(wait, c.again.Sub(now))
		case best == nil || l.ratherLocked(c, best):
			best = c
		}
	}
	return best, wait
}

// ratherLocked reports whether c is to be asked about before d.
func (l *Lessor) ratherLocked(c, d *choice) bool {
	switch x, y := c.placeLocked(), d.placeLocked(); {
	case x != y:
		return y
	case x && !c.opens.Equal(d.opens):
		return c.opens.Before(d.opens)
	}
	return l.served[c.m.Address] < l.served[d.m.Address]
}

// sooner returns the lesser of two times to wait, the first of which may be none.
func sooner(d, e time.Duration) time.Duration {
	if d < 0 {
		return e
	}
	return min(d, e)
}

// ask asks the ledger for a lease of the mailbox.
func (l *Lessor) ask(ctx context.Context, w *lookup, c *choice) *session {
	l.mu.Lock()
	seen, limits := c.line.back, c.m.Limits
	if len(w.choices) == 1 || c.placeLocked() { // else another one may be able to send at once
		limits.Ahead = w.ahead
	}
	l.mu.Unlock()
	now := time.Now()
	a, err := l.ledger.Take(ctx, c.m.Address, limits, now)
	l.mu.Lock()
	defer l.mu.Unlock()
	if ctx.Err() == nil {
		l.unwritten = err
	}
	if err != nil {
		l.metrics.ledgerFailed(ctx, opTake)
		c.err = fmt.Errorf("the ledger cannot tell what mailbox %s has sent: %w", c.m.Address, err)
		l.stepOutLocked(w, c)
		return nil
	}
	if a.Lease != 0 {
		if _, ok := l.served[c.m.Address]; ok {
			l.served[c.m.Address] = w.number
		}
		return &session{mailbox: c.m.Address, label: c.m.Label, made: c.m.made(), lease: a.Lease, due: time.Now().Add(a.Begin), limits: c.m.Limits,
			tokens: c.m.Tokens, access: c.token.Access, cause: c.answer.Cause}
	}
	c.asked, c.answer, c.seen, c.again, c.late = true, a, seen, now.Add(a.Wait), false
	if c.opens = c.again; a.Cause == ledger.CauseMessages {
		c.opens = c.again.Add(limits.Ahead)
		c.again = c.opens.Add(-w.ahead)
	}
	if end, ok := ctx.Deadline(); ok && a.Cause != ledger.CauseConnections && c.again.After(end) {
		c.late = true // known now, so do not hold the connection, nor the line
		c.line.wakeFirstLocked()
	}
	return nil
}

// wait returns false when ctx has ended.
func (w *lookup) wait(ctx context.Context, d time.Duration, draining <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-w.wake:
	case <-draining:
	case <-ctx.Done():
		return false
	}
	return true
}

// why words why there is no lease: that the time is over, or that nothing is left to wait for. Of
// several mailboxes it names the one that opens soonest; one that has no token comes last.
func (l *Lessor) why(w *lookup, timeOver bool) (*Mailbox, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	best := slices.MinFunc(w.choices, func(a, b *choice) int {
		if a.err != nil || b.err != nil || !a.asked || !b.asked {
			return rank(a) - rank(b)
		}
		return a.opens.Compare(b.opens)
	})
	m, err := best.m, best.err
	switch {
	case err != nil:
	case best.asked:
		wait := tooLong(m, best.answer)
		if len(w.choices) == 1 {
			return m, &notNow{wait, best.answer.Cause, best.opens}
		}
		in := max(0, time.Until(best.opens)).Round(time.Second)
		err = fmt.Errorf("none of %d mailboxes can send now; soonest, in %v, %s", len(w.choices), in, wait.inList())
		return m, &notNow{err, best.answer.Cause, best.opens}
	case best.line == nil && timeOver:
		err = fmt.Errorf("no token for mailbox %s: none came in time", m.Address)
	default:
		err = fmt.Errorf("mailbox %s cannot send now: other look-ups for it have waited longer", m.Address)
	}
	if len(w.choices) == 1 {
		return m, err
	}
	return m, fmt.Errorf("none of %d mailboxes can send now; %w", len(w.choices), err)
}

// rank orders what is known of mailboxes: when they open, that others are before us, that they
// cannot be used.
func rank(c *choice) int {
	switch {
	case c.err != nil:
		return 2
	case !c.asked:
		return 1
	}
	return 0
}

// member returns how the mailbox of that address may be used by a sender, or nil where the
// configuration no longer says so.
func (l *Lessor) member(sender, address string) *Mailbox {
	for _, m := range (*l.dir.Load()).Mailboxes(sender) {
		if strings.EqualFold(m.Address, address) {
			return m
		}
	}
	return nil
}
