package record

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"modernc.org/sqlite"
	sqlitelib "modernc.org/sqlite/lib"
)

const (
	// maxEntries and maxHeld, in bytes, bound what waits to be written: a few minutes of the busiest
	// relay, or a burst of as many messages.
	maxEntries = 16_384
	maxHeld    = 16 << 20
	// gather is how long entries are collected for one transaction, and maxBatch how many.
	gather   = 500 * time.Millisecond
	maxBatch = 500
	// rest is how many times longer than a transaction nothing is written after it, so that a burst of
	// mail has the processor: a record is written when there is time for it. Where more than half of
	// the room is taken, there is no rest.
	rest = 15
	// retryAfter is how long nothing is tried after the disk has failed.
	retryAfter = 10 * time.Second
	// hangs is how long a transaction may take until the disk is said to hang.
	hangs = 30 * time.Second
	// tidyEvery is how often is deleted what is too old or too much.
	tidyEvery = time.Minute
	// tidyAtOnce is how many times chunk is deleted then, so that what comes is not kept waiting: twice
	// what the milter of a busy relay takes in a minute.
	tidyAtOnce = 20
	// spare is how many bytes the record leaves free on its disk.
	spare = 64 << 20
	// closeTime is how long Close waits for what is not written yet.
	closeTime = 5 * time.Second
)

// A Keeper writes one half of the record. Its methods but Run and Close may be called by anybody at
// any time, and never wait. A nil Keeper keeps nothing.
type Keeper struct {
	path string
	half Half
	log  *slog.Logger

	settings atomic.Pointer[Settings]
	work     chan item
	held     atomic.Int64 // bytes of what is in work, or being written
	lost     atomic.Uint64
	writing  atomic.Int64 // since when a transaction goes on, in ns of Unix time; 0: none does
	changed  chan struct{}
	stop     chan struct{}
	stopped  chan struct{}
	once     sync.Once

	w         writer        // of the goroutine that runs
	open      bool          // w.db
	retry     time.Duration // retryAfter, but in tests
	spareRoom int64         // spare, but in tests
	closeTime time.Duration // closeTime, but in tests

	mu    sync.Mutex // guards what follows
	state state
}

// state is what Status tells.
type state struct {
	err    error // why nothing can be written; nil: it can, or nobody has tried
	since  time.Time
	lost   uint64 // when err came up
	rows   int64
	oldest time.Time
	bytes  int64
}

// NewKeeper makes the keeper of a half, with its file, and registers its series. It opens nothing
// before Run, and fails at nothing: a record that cannot be kept must not keep mail from leaving.
func NewKeeper(half Half, path string, set Settings, log *slog.Logger, reg prometheus.Registerer) *Keeper {
	k := &Keeper{path: path, half: half, log: log, work: make(chan item, maxEntries), changed: make(chan struct{}, 1), stop: make(chan struct{}),
		stopped: make(chan struct{}), retry: retryAfter, spareRoom: spare, closeTime: closeTime}
	k.settings.Store(&set)
	reg.MustRegister(k)
	return k
}

// Use puts settings into force.
func (k *Keeper) Use(set Settings) {
	if k == nil {
		return
	}
	k.settings.Store(&set)
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// Message keeps a message. The caller does not change it any more; its list of recipients is copied.
func (k *Keeper) Message(m *Message) {
	if k == nil || !k.settings.Load().On {
		return
	}
	m.Count = max(m.Count, len(m.Recipients))
	m.Recipients = slices.Clone(m.Recipients[:min(len(m.Recipients), maxRecipients)])
	k.keep(m)
}

// Attempt keeps an attempt. The caller does not change it any more.
func (k *Keeper) Attempt(a *Attempt) {
	if k != nil {
		k.keep(a)
	}
}

// On reports whether anything is kept, for those who would have work with it.
func (k *Keeper) On() bool { return k != nil && k.settings.Load().On }

// keep hands an entry over, and reports whether there was room for it.
func (k *Keeper) keep(e entry) bool {
	if !k.settings.Load().On {
		return false
	}
	n := e.weight()
	if k.held.Add(n) <= maxHeld {
		select {
		case k.work <- item{e, n}:
			return true
		default:
		}
	}
	k.held.Add(-n)
	if _, ok := e.(*reading); !ok { // the next one tells the same
		k.lost.Add(1)
	}
	return false
}

// Run writes until Close.
func (k *Keeper) Run() {
	defer close(k.stopped)
	defer k.shut()
	tidy := time.NewTicker(tidyEvery)
	defer tidy.Stop()
	k.tidy()
	for {
		select {
		case e := <-k.work:
			k.writeAll(k.batch(e))
		case <-k.changed:
			k.tidy()
		case <-tidy.C:
			k.tidy()
		case <-k.stop:
			k.last()
			return
		}
	}
}

// last writes what came before the end.
func (k *Keeper) last() {
	for {
		select {
		case e := <-k.work:
			if list := k.more([]item{e}); k.write(list) != nil {
				k.forget(list)
				return
			}
		default:
			return
		}
	}
}

// batch gathers entries for a transaction.
func (k *Keeper) batch(first item) []item {
	list := []item{first}
	t := time.NewTimer(gather)
	defer t.Stop()
	for len(list) < maxBatch {
		select {
		case e := <-k.work:
			list = append(list, e)
		case <-t.C:
			return list
		case <-k.stop:
			return k.more(list)
		}
	}
	return list
}

// more adds what is there to a batch.
func (k *Keeper) more(list []item) []item {
	for len(list) < maxBatch {
		select {
		case e := <-k.work:
			list = append(list, e)
		default:
			return list
		}
	}
	return list
}

// writeAll writes a batch, however often it takes; meanwhile what comes waits, and is lost beyond its
// room.
func (k *Keeper) writeAll(list []item) {
	for {
		began := time.Now()
		err := k.write(list)
		if err == nil {
			k.sleep(k.pause(time.Since(began)))
			return
		}
		if !passes(err) || !k.sleep(k.retry) {
			k.forget(list)
			return
		}
	}
}

// pause is how long nothing is written after a transaction that took so long.
func (k *Keeper) pause(took time.Duration) time.Duration {
	if len(k.work) > maxEntries/2 || k.held.Load() > maxHeld/2 {
		return 0
	}
	return min(rest*took, time.Second)
}

// sleep reports false when Close was called.
func (k *Keeper) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-k.stop:
		return false
	}
}

// forget counts a batch as lost.
func (k *Keeper) forget(list []item) {
	k.lost.Add(uint64(len(list)))
	k.release(list)
}

func (k *Keeper) release(list []item) {
	for _, x := range list {
		k.held.Add(-x.bytes)
	}
}

// passes reports whether an error is of the disk or the file, and not of what was to be written.
func passes(err error) bool {
	s, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return true
	}
	switch s.Code() & 0xff {
	case sqlitelib.SQLITE_ERROR, sqlitelib.SQLITE_CONSTRAINT, sqlitelib.SQLITE_MISMATCH, sqlitelib.SQLITE_TOOBIG, sqlitelib.SQLITE_RANGE, sqlitelib.SQLITE_MISUSE:
		return false
	}
	return true
}

// write writes a batch once.
func (k *Keeper) write(list []item) error {
	err := k.do(func(ctx context.Context) error { return k.w.write(ctx, list, *k.settings.Load()) })
	if err == nil {
		k.release(list)
	}
	return err
}

// tidy deletes what is too old or too much, and looks at the file.
func (k *Keeper) tidy() {
	set := *k.settings.Load()
	if !set.On {
		if _, err := os.Stat(k.path); err != nil {
			k.note(nil) // there is nothing, and nothing to begin
			return
		}
	}
	for range tidyAtOnce {
		more := false
		err := k.do(func(ctx context.Context) (err error) {
			more, err = k.w.retain(ctx, set, time.Now())
			return err
		})
		if err != nil {
			return
		}
		if !more {
			break
		}
	}
	if k.do(func(ctx context.Context) error { return k.w.shrink(ctx) }) == nil {
		k.look()
	}
}

// look reads what Status tells of the file.
func (k *Keeper) look() {
	var rows, oldest sql.NullInt64
	var bytes int64
	err := k.do(func(ctx context.Context) (err error) {
		table := k.half.table()
		err = k.w.db.QueryRowContext(ctx, "SELECT (SELECT max(id) FROM "+table+") - (SELECT min(id) FROM "+table+") + 1, (SELECT min(time) FROM "+table+")").Scan(&rows, &oldest)
		if err == nil {
			bytes, err = k.w.used(ctx)
		}
		return err
	})
	if err != nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.state.rows, k.state.oldest, k.state.bytes = rows.Int64, moment(oldest.Int64), bytes
}

// do runs something with the file, opens it where it is not open, and notes whether that went well.
func (k *Keeper) do(f func(context.Context) error) error {
	ctx := context.Background() // a transaction that hangs cannot be ended; Close does not wait for it
	k.writing.Store(time.Now().UnixNano())
	err := k.opened(ctx)
	if err == nil {
		err = f(ctx)
	}
	k.writing.Store(0)
	if err != nil {
		k.shut()
		k.note(err)
	} else {
		k.note(k.w.room())
	}
	if d, ok := errors.AsType[*DamagedError](err); ok {
		if moved := moveAway(k.path); moved == nil {
			k.log.Error("the record was damaged and begins anew", "file", k.path, "damaged", k.path+".damaged", "error", d.cause)
		}
	}
	return err
}

func (k *Keeper) opened(ctx context.Context) error {
	if k.open {
		return nil
	}
	db, err := create(ctx, k.path, k.half)
	if err != nil {
		return err
	}
	k.w = writer{half: k.half, db: db, path: k.path, spare: k.spareRoom, missing: make(map[int64]time.Time)}
	k.open = true
	return nil
}

func (k *Keeper) shut() {
	if k.open {
		k.open = false
		k.w.db.Close() // what it could say was said by the last transaction
	}
}

// note tells when nothing can be kept, and when something can again: once each.
func (k *Keeper) note(err error) {
	lost := k.lost.Load()
	k.mu.Lock()
	was := k.state.err
	k.state.err = err
	if (err != nil) != (was != nil) {
		k.state.since = time.Now()
	}
	before := k.state.lost
	k.state.lost = lost
	k.mu.Unlock()
	switch {
	case err != nil && was == nil:
		k.log.Error("the record cannot be written; mail goes on without it", "file", k.path, "error", err, "hint", k.hint())
	case err == nil && was != nil:
		k.log.Info("the record is written again", "file", k.path, "lost", lost-before)
	case err == nil && lost > before:
		k.log.Warn("mail came faster than it could be recorded", "file", k.path, "lost", lost-before)
	}
}

// hint says what to do about a record that cannot be written.
func (k *Keeper) hint() string {
	return `"df -h" and "ls -l" show the disk and the file; docs/alerts.md, SendasRecordBroken, says what to type`
}

// Close lets what is waiting be written, but waits no longer for it than a few seconds. Nothing is
// kept afterwards.
func (k *Keeper) Close() {
	if k == nil {
		return
	}
	k.once.Do(func() { close(k.stop) })
	select {
	case <-k.stopped:
	case <-time.After(k.closeTime):
		k.log.Warn("the disk does not answer; the last of the record is not written", "file", k.path, "lost", len(k.work))
	}
}
