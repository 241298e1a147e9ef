package ledger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/sendas/sendas/policy/limit"
)

// Bolt is a Store in a file (bbolt), for one process. A lease is on the disk before Take returns
// it; what has become of it follows within settleDelay, or sooner with the next lease: a crash in
// between leaves the lease out in the file, which gives the mailbox less, never more.
//
// Leases that were out when the process ended are Outstanding afterwards: somebody has to settle
// them, or they expire after BoltOptions.MaxSession and count as submitted, with [MaxDelivery]
// recipients.
//
// All mailboxes are kept in memory too, so only writing touches the file. One goroutine writes; it
// takes along all that has changed since its last commit, so that many leases share one fsync.
type Bolt struct {
	db   *bbolt.DB
	boot func() (id string, up time.Duration)
	kick chan struct{} // wakes the writer
	stop chan struct{} // ends it
	gone chan struct{} // closed when it has ended

	mu       sync.Mutex // guards what follows
	book     book
	next     *commit
	accounts map[string]bool // changed since the last commit, or to be deleted
	groups   map[string]bool
	armed    bool // a lazy commit is due
	closed   bool
}

var _ Survivor = (*Bolt)(nil)

// commit is one transaction of the writer.
type commit struct {
	done chan struct{} // closed when err is final
	err  error
}

func newCommit() *commit { return &commit{done: make(chan struct{})} }

// BoltOptions is what can be chosen of a [Bolt]. The zero value is good.
type BoltOptions struct {
	MaxSession  time.Duration // when a lease that nobody settles is taken back; 0: the constant MaxSession
	LockTimeout time.Duration // how long to wait for another process to leave the file; 0: 5 s
	Log         *slog.Logger  // told when a damaged file is put aside; nil: nobody

	boot   func() (id string, up time.Duration) // instead of bootClock, in tests
	noSync bool                                 // without fsync, for benchmarks
	now    func() time.Time                     // instead of time.Now, in tests
}

// settleDelay is how long a verdict may wait for the disk.
const settleDelay = 100 * time.Millisecond

// The file: format versioned, one key for each mailbox.
const boltFormat = "sendas-ledger 1"

var (
	bucketMeta     = []byte("meta")
	bucketAccounts = []byte("accounts")
	bucketGroups   = []byte("groups")
	keyFormat      = []byte("format")
	keyStamp       = []byte("stamp")
)

// ErrClosed is the answer of a ledger that has been closed.
var ErrClosed = errors.New("the ledger is closed")

// OpenBolt opens the ledger in the file, and makes it when there is none. The folder must exist.
//
// A file that is not such a ledger, is of a later version, or is in use is refused, with an error
// that says what to do. One that is such a ledger but damaged is moved to NAME.corrupt-TIME and a
// new one begun, in which every mailbox counts as having used up all its windows at that moment:
// the record of what was sent is lost, so its message window (1 minute) and its recipient window
// (24 h) have to pass first. Who knows better deletes the file, with the service stopped.
func OpenBolt(path string, o BoltOptions) (*Bolt, error) {
	o = o.withDefaults()
	b := newBolt(o)
	err := b.open(path, o)
	if errors.As(err, new(*damage)) {
		err = b.replace(path, o, err)
	}
	if err != nil {
		return nil, err
	}
	go b.write()
	return b, nil
}

func (o BoltOptions) withDefaults() BoltOptions {
	if o.LockTimeout <= 0 {
		o.LockTimeout = 5 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.boot == nil {
		o.boot = bootClock
	}
	if o.now == nil {
		o.now = time.Now
	}
	return o
}

func newBolt(o BoltOptions) *Bolt {
	return &Bolt{boot: o.boot, kick: make(chan struct{}, 1), stop: make(chan struct{}), gone: make(chan struct{}),
		book: newBook(o.MaxSession), next: newCommit(), accounts: make(map[string]bool), groups: make(map[string]bool)}
}

// bootID is the name of this boot, "" where the system does not tell.
var bootID = sync.OnceValue(func() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
})

// bootClock returns the name of this boot and the time since, suspension included.
func bootClock() (id string, up time.Duration) {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return "", 0
	}
	return bootID(), time.Duration(ts.Nano())
}

// elapsed returns how long ago the stamp was set. The wall clock may have been set since: within
// the same boot no more time has passed than the machine has been up, and never less than none.
func (s stamp) elapsed(now time.Time, boot func() (string, time.Duration)) limit.Instant {
	d := max(0, now.UnixMicro()-s.wall)
	if id, up := boot(); id != "" && id == s.boot {
		d = min(d, max(0, up.Microseconds()-s.up))
	}
	return limit.Instant(d)
}

// Take implements [Store]. The lease is on the disk when it returns without error.
func (b *Bolt) Take(ctx context.Context, mailbox string, l limit.Allowance, now time.Time) (Answer, error) {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return Answer{}, ErrClosed
	}
	b.pruneLocked(now)
	ans := b.book.take(mailbox, l, now)
	if ans.Lease == 0 {
		b.mu.Unlock()
		return ans, nil
	}
	b.touchLocked(mailbox, groupName(l))
	c := b.next
	b.mu.Unlock()
	b.wake()
	if err := c.wait(ctx); err != nil {
		b.undo(mailbox, l, ans.Lease)
		return Answer{}, fmt.Errorf("the lease could not be written to the ledger: %w", err)
	}
	return ans, nil
}

// wait waits for a commit.
func (c *commit) wait(ctx context.Context) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// undo forgets a lease that was not handed out. Should it have reached the disk, the next commit
// takes it away.
func (b *Bolt) undo(mailbox string, l limit.Allowance, lease uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.book.account(mailbox).undo(b.book.group(l), lease)
	b.touchLocked(mailbox, groupName(l))
	b.laterLocked()
}

// touchLocked notes that an account and its group have changed.
func (b *Bolt) touchLocked(mailbox, group string) {
	b.accounts[mailbox] = true
	if group != "" {
		b.groups[group] = true
	}
}

// pruneLocked forgets mailboxes that say nothing any more.
func (b *Bolt) pruneLocked(now time.Time) {
	mailboxes, groups := b.book.forget(now)
	for _, m := range mailboxes {
		b.accounts[m] = true
	}
	for _, g := range groups {
		b.groups[g] = true
	}
}

// Settle implements [Store]. An outcome within what the lease has held is written a little later;
// one that uses more is on the disk when Settle returns, or the error says that it is not.
func (b *Bolt) Settle(ctx context.Context, mailbox string, lease uint64, o Outcome, now time.Time) error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return ErrClosed
	}
	group, known, more := b.book.settle(mailbox, lease, o, now)
	if known {
		b.touchLocked(mailbox, group)
	}
	if !more && !o.Concurrency {
		b.laterLocked()
		b.mu.Unlock()
		return nil
	}
	return b.unlockAndFlush(ctx)
}

// Pause implements [Store]. The pause is on the disk when it returns without error.
func (b *Bolt) Pause(ctx context.Context, mailbox string, p Pause, now time.Time) error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return ErrClosed
	}
	b.book.pause(mailbox, p, now)
	b.accounts[mailbox] = true
	return b.unlockAndFlush(ctx)
}

// unlockAndFlush unlocks mu, and waits for a commit of all that has changed.
func (b *Bolt) unlockAndFlush(ctx context.Context) error {
	c := b.next
	b.mu.Unlock()
	b.wake()
	if err := c.wait(ctx); err != nil {
		return fmt.Errorf("the ledger could not be written: %w", err)
	}
	return nil
}

// Usage implements [Store]. It never fails.
func (b *Bolt) Usage(_ context.Context, mailbox string, l limit.Allowance, now time.Time) (Usage, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.book.usage(mailbox, l, now), nil
}

// Outstanding implements [Survivor]: all leases that are out. Call it before the first Take.
func (b *Bolt) Outstanding() []Outstanding {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []Outstanding
	for mailbox, a := range b.book.accounts {
		for id, h := range a.open {
			list = append(list, Outstanding{mailbox, id, h.recipients})
		}
	}
	return list
}

// Adopt implements [Survivor]; the file has all that is to be known of the lease.
func (b *Bolt) Adopt(string, uint64, limit.Allowance) {}

// laterLocked sees to it that there will be a commit. The caller holds mu.
func (b *Bolt) laterLocked() {
	if !b.armed {
		b.armed = true
		time.AfterFunc(settleDelay, b.wake)
	}
}

func (b *Bolt) wake() {
	select {
	case b.kick <- struct{}{}:
	default:
	}
}

// Close writes what is still to be written and gives the file back.
func (b *Bolt) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	b.mu.Unlock()
	close(b.stop)
	<-b.gone
	return errors.Join(b.commit(), b.db.Close())
}

// write is the goroutine that commits.
func (b *Bolt) write() {
	defer close(b.gone)
	for {
		select {
		case <-b.kick:
			_ = b.commit() // told to those who wait for it; what was not written is tried again with the next
		case <-b.stop:
			return
		}
	}
}

// change is a key of a commit; no value: delete.
type change struct{ bucket, key, value []byte }

// commit writes all that has changed.
func (b *Bolt) commit() error {
	b.mu.Lock()
	c, list := b.next, b.changesLocked()
	accounts, groups := b.accounts, b.groups
	b.next, b.accounts, b.groups, b.armed = newCommit(), make(map[string]bool), make(map[string]bool), false
	b.mu.Unlock()
	if len(list) > 1 { // more than the stamp
		c.err = b.db.Update(func(tx *bbolt.Tx) error { return apply(tx, list) })
	}
	if c.err != nil {
		b.again(accounts, groups)
	}
	close(c.done)
	return c.err
}

// again marks what could not be written.
func (b *Bolt) again(accounts, groups map[string]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for m := range accounts {
		b.accounts[m] = true
	}
	for g := range groups {
		b.groups[g] = true
	}
}

// changesLocked encodes what has changed. The caller holds mu.
func (b *Bolt) changesLocked() []change {
	id, up := b.boot()
	s := stamp{ledger: b.book.Now, wall: b.book.Last.UnixMicro(), boot: id, up: up.Microseconds(), lost: b.book.lost, serial: b.book.serial}
	list := []change{{bucketMeta, keyStamp, s.encode()}}
	for m := range b.accounts {
		ch := change{bucketAccounts, []byte(m), nil}
		if a := b.book.accounts[m]; a != nil {
			ch.value = a.encode()
		}
		list = append(list, ch)
	}
	for g := range b.groups {
		ch := change{bucketGroups, []byte(g), nil}
		if y := b.book.groups[g]; y != nil {
			ch.value = y.record()
		}
		list = append(list, ch)
	}
	return list
}

func apply(tx *bbolt.Tx, list []change) error {
	for _, ch := range list {
		bk := tx.Bucket(ch.bucket)
		var err error
		if ch.value == nil {
			err = bk.Delete(ch.key)
		} else {
			err = bk.Put(ch.key, ch.value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
