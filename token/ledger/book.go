package ledger

import (
	"github.com/sendas/sendas/policy/limit"
)

import "time"

// book is the accounts of all mailboxes, in memory. Its owner guards it.
type book struct {
	limit.Clock
	accounts map[string]*account
	groups   map[string]*tally
	session  limit.Instant
	lost     limit.Instant // see terms
	serial   uint64        // of the last lease; never used twice, or a late observer could settle a lease that is not his
	prune    int           // when so many accounts are known, those that say nothing are forgotten
}

// minPrune is how many accounts are kept without a look at what they say.
const minPrune = 1000

func newBook(session time.Duration) book {
	if session <= 0 {
		session = MaxSession
	}
	return book{accounts: make(map[string]*account), groups: make(map[string]*tally), session: limit.Micros(session), prune: minPrune}
}

func (b *book) account(mailbox string) *account {
	a := b.accounts[mailbox]
	if a == nil {
		a = newAccount()
		b.accounts[mailbox] = a
	}
	return a
}

// group returns the tally that the limits name, or nil.
func (b *book) group(l limit.Allowance) *tally {
	if !l.Grouped() {
		return nil
	}
	g := b.groups[l.Group]
	if g == nil {
		t := newTally()
		g = &t
		b.groups[l.Group] = g
	}
	return g
}

func (b *book) terms(l limit.Allowance) terms {
	return terms{Allowance: l, session: b.session, lost: b.lost}
}

func (b *book) take(mailbox string, l limit.Allowance, now time.Time) Answer {
	b.serial++
	return b.account(mailbox).take(b.terms(l), b.group(l), b.serial, b.Read(now))
}

// settle returns the name of the group that the lease was of, whether there was such a lease, and
// whether more was booked than it had held.
func (b *book) settle(mailbox string, lease uint64, o Outcome, now time.Time) (group string, known, more bool) {
	t := b.Read(now)
	a := b.accounts[mailbox]
	if a == nil {
		return "", false, false
	}
	_, known = a.open[lease]
	group, g := b.groupOf(a, lease)
	return group, known, a.settle(g, lease, o, t)
}

// groupOf returns the tally that holds room for the lease, with its name, or nil. The mailbox may
// have had its last lease under another one.
func (b *book) groupOf(a *account, lease uint64) (string, *tally) {
	last := groupName(a.limits)
	if g := b.groups[last]; g != nil {
		if _, ok := g.open[lease]; ok {
			return last, g
		}
	}
	for name, g := range b.groups {
		if _, ok := g.open[lease]; ok {
			return name, g
		}
	}
	return "", nil
}

func (b *book) pause(mailbox string, p Pause, now time.Time) {
	t := b.Read(now)
	if p.Until.IsZero() || !p.Until.After(now) {
		if a := b.accounts[mailbox]; a != nil {
			a.pause(0, "", "")
		}
		return
	}
	b.account(mailbox).pause(t+limit.Micros(p.Until.Sub(now)), p.Class, p.Reason)
}

// usage looks without leaving a trace: the mailbox may be one that is asked about and never used.
func (b *book) usage(mailbox string, l limit.Allowance, now time.Time) Usage {
	t := b.Read(now)
	a := b.accounts[mailbox]
	if a == nil {
		a = newAccount()
	}
	at := func(i limit.Instant) time.Time { return now.Add((i - t).Duration()) }
	return a.usage(b.terms(l), b.groups[groupName(l)], t, at)
}

func groupName(l limit.Allowance) string {
	if l.Grouped() {
		return l.Group
	}
	return ""
}

// forget drops the accounts that say no more than a new one would, and tells which: where each
// sender of a domain is a mailbox of its own, strangers could fill the memory with them. Each is
// looked at once per doubling.
func (b *book) forget(now time.Time) (mailboxes, groups []string) {
	if len(b.accounts) < b.prune {
		return nil, nil
	}
	t := b.Read(now)
	used := make(map[string]bool)
	for name, a := range b.accounts {
		a.forget(b.terms(a.limits), t)
		if a.idle(t) {
			delete(b.accounts, name)
			mailboxes = append(mailboxes, name)
			continue
		}
		used[a.limits.Group] = true
	}
	for name, g := range b.groups {
		if g.forget(g.per, b.session, t); !used[name] && g.empty() {
			delete(b.groups, name)
			groups = append(groups, name)
		}
	}
	b.prune = max(minPrune, 2*len(b.accounts))
	return mailboxes, groups
}
