package ledger

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"github.com/sendas/sendas/policy/limit"
)

// A diary is where a host that shares a ledger notes what it sends itself: to tell it to the store
// anew, should that lose its data. It decides nothing. [Bolt] keeps it over restarts.
type diary interface {
	noteLease(mailbox string, l limit.Allowance, ans Answer, now time.Time)
	// noteOutcome reports whether the lease was noted and had none before.
	noteOutcome(mailbox string, id uint64, o Outcome, now time.Time) bool
	// written waits until what was noted would outlive the process.
	written(ctx context.Context) error
	// traces returns all that was noted, as it is at the returned moment of the diary's own time.
	traces(now time.Time) ([]told, limit.Instant)
	// epoch names the store's data that all of it was told to; "" when there was none yet.
	epoch() string
	setEpoch(epoch string) error
	// hosts is how many hosts there were, as the store has last been told; 0: not known.
	hosts() int
	setHosts(n int) error
}

var (
	_ diary = (*Memory)(nil)
	_ diary = (*Bolt)(nil)
)

// apart gives a mailbox a group of its own, since all mailboxes of a group have one tally in a
// book, and each is told apart to the store.
func apart(mailbox string, l limit.Allowance) limit.Allowance {
	if l.Grouped() {
		l.Group += "\x00" + mailbox
	}
	return l
}

// noteLease enters a lease that another ledger has given.
func (b *book) noteLease(mailbox string, l limit.Allowance, ans Answer, now time.Time) {
	t := b.Read(now)
	a := b.account(mailbox)
	a.limits = l
	a.forget(terms{Allowance: l, session: b.session}, t)
	begin := t + limit.Micros(ans.Begin)
	a.open[ans.Lease], a.last = hold{begin, roomOf(l, l.Recipients)}, max(a.last, begin)
	if g := b.group(l); g != nil {
		g.forget(l.GroupRecipients.Per, b.session, t)
		g.open[ans.Lease] = hold{begin, roomOf(l, l.GroupRecipients)}
	}
}

// told is what has to be told to the store of one mailbox, and of one group at most.
type told struct {
	mailbox string
	*trace
}

// traces copies what the book has: of each mailbox itself, then of each group in which it has sent.
func (b *book) traces(now time.Time) ([]told, limit.Instant) {
	t := b.Read(now)
	list := make([]told, 0, len(b.accounts)+len(b.groups))
	for mailbox, a := range b.accounts {
		tr := &trace{account: *a, group: newTally()}
		tr.tally, tr.done, tr.free = a.tally.copy(), slices.Clone(a.done), nil
		tr.limits.Group, tr.limits.GroupRecipients = "", limit.Rate{}
		list = append(list, told{mailbox, tr})
	}
	for key, g := range b.groups {
		name, mailbox, _ := strings.Cut(key, "\x00")
		a := b.accounts[mailbox]
		if a == nil {
			continue // it went with the last that it had sent
		}
		tr := &trace{account: *newAccount(), group: g.copy()}
		tr.limits = a.limits
		tr.limits.Group, tr.limits.GroupRecipients = name, limit.Rate{N: max(1, a.limits.GroupRecipients.N), Per: g.per}
		for id := range g.open {
			tr.open[id] = a.open[id]
		}
		list = append(list, told{mailbox, tr})
	}
	return list, t
}

func (y *tally) copy() tally {
	return tally{open: maps.Clone(y.open), sent: slices.Clone(y.sent), per: y.per}
}

func (m *Memory) noteLease(mailbox string, l limit.Allowance, ans Answer, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.book.forget(now)
	m.book.noteLease(mailbox, apart(mailbox, l), ans, now)
}

func (m *Memory) noteOutcome(mailbox string, id uint64, o Outcome, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, known, _ := m.book.settle(mailbox, id, o, now)
	return known
}

func (m *Memory) traces(now time.Time) ([]told, limit.Instant) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.book.traces(now)
}

func (m *Memory) written(context.Context) error { return nil }
func (m *Memory) epoch() string                 { return m.told }
func (m *Memory) setEpoch(epoch string) error   { m.told = epoch; return nil }
func (m *Memory) hosts() int                    { return 0 } // it goes with the process
func (m *Memory) setHosts(int) error            { return nil }

func (b *Bolt) noteLease(mailbox string, l limit.Allowance, ans Answer, now time.Time) {
	l = apart(mailbox, l)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pruneLocked(now)
	b.book.noteLease(mailbox, l, ans, now)
	b.touchLocked(mailbox, groupName(l))
	b.laterLocked()
}

func (b *Bolt) noteOutcome(mailbox string, id uint64, o Outcome, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	group, known, _ := b.book.settle(mailbox, id, o, now)
	if known {
		b.touchLocked(mailbox, group)
		b.laterLocked()
	}
	return known
}

func (b *Bolt) traces(now time.Time) ([]told, limit.Instant) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.book.traces(now)
}

func (b *Bolt) written(ctx context.Context) error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return ErrClosed
	}
	if len(b.accounts) == 0 {
		b.mu.Unlock()
		return nil // somebody else's commit has taken it along
	}
	return b.unlockAndFlush(ctx)
}

// These are in bucketMeta.
var keyEpoch, keyHosts = []byte("epoch"), []byte("hosts")

// meta reads what is there, "" where the file is closed.
func (b *Bolt) meta(key []byte) (value string) {
	err := b.db.View(func(tx *bbolt.Tx) error { value = string(tx.Bucket(bucketMeta).Get(key)); return nil })
	if err != nil {
		return ""
	}
	return value
}

func (b *Bolt) setMeta(key []byte, value string) error {
	if b.meta(key) == value {
		return nil
	}
	err := b.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(key, []byte(value)) })
	if err != nil {
		return errors.Join(errors.New("the diary cannot be written"), err)
	}
	return nil
}

func (b *Bolt) epoch() string               { return b.meta(keyEpoch) }
func (b *Bolt) setEpoch(epoch string) error { return b.setMeta(keyEpoch, epoch) }
func (b *Bolt) setHosts(n int) error        { return b.setMeta(keyHosts, strconv.Itoa(n)) }
func (b *Bolt) hosts() int {
	n, _ := strconv.Atoi(b.meta(keyHosts))
	return n
}
