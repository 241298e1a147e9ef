package record

import (
	"hash/maphash"
	"strings"
	"time"
)

const (
	// settle is how long a message may need from the decision to its place in the queue.
	settle = 5 * time.Second
	// maxQueued bounds the memory of a reading of the queue, to some 30 MB. With more in it, no message
	// is taken to have left.
	maxQueued = 500_000
	// maxDeferrals is how many deferrals of one message are kept: Postfix tries for five days, at most
	// every 300 s at first.
	maxDeferrals = 100
)

// A Queue notes what readings of Postfix's queue find: which messages have left it, and why those
// that have not were deferred. Begin, Queued for each message, and End make one reading; one that
// breaks off has no End, and counts for nothing. It is for one goroutine; a nil Queue notes nothing.
type Queue struct {
	k        *Keeper
	seed     maphash.Seed
	told     map[uint64]uint64 // by queue id, what its reason was at the last reading; hashes
	next     map[uint64]uint64 // the same of this one
	began    time.Time
	deferred []deferred
}

// deferred is a message that Postfix has a new reason for.
type deferred struct {
	queue, text string
	size        int64
}

// Queue returns what notes the readings of the queue; of a nil Keeper, nil.
func (k *Keeper) Queue() *Queue {
	if k == nil {
		return nil
	}
	return &Queue{k: k, seed: maphash.MakeSeed()}
}

// Begin begins a reading.
func (q *Queue) Begin(now time.Time) {
	if q == nil {
		return
	}
	q.began, q.next, q.deferred = now, make(map[uint64]uint64, len(q.told)), nil
}

// Queued notes a message in the queue: its id, its size in bytes, and why it was deferred, "" where it
// was not.
func (q *Queue) Queued(id, reason string, size int64) {
	if q == nil || q.next == nil || len(q.next) >= maxQueued {
		return
	}
	key, why := maphash.String(q.seed, id), uint64(0)
	if reason != "" {
		why = maphash.String(q.seed, reason)
	}
	if was, known := q.next[key]; known && why == 0 { // named twice, as it moves
		why = was
	}
	q.next[key] = why
	if why != 0 && why != q.told[key] && q.weight() < maxHeld/2 {
		q.deferred = append(q.deferred, deferred{strings.Clone(id), line(reason), size})
	}
}

func (q *Queue) weight() int64 { return int64(len(q.deferred)) * (MaxText/2 + 64) }

// End ends a reading that was whole.
func (q *Queue) End() {
	if q == nil || q.next == nil {
		return
	}
	r := &reading{began: q.began, seed: q.seed, deferred: q.deferred, bytes: q.weight()}
	if len(q.next) < maxQueued {
		r.named = q.next
	}
	if q.k.keep(r) {
		q.told = q.next
	}
	q.next, q.deferred = nil, nil
}

// reading is what one reading of the queue found. It does not change.
type reading struct {
	began    time.Time
	seed     maphash.Seed
	named    map[uint64]uint64 // by the hash of each queue id; nil: there were too many
	deferred []deferred
	bytes    int64
}

func (r *reading) weight() int64 { return r.bytes + 16*int64(len(r.named)) }

func (r *reading) write(t *transaction) error {
	for i := range r.deferred {
		if err := t.defers(&r.deferred[i], r.began); err != nil {
			return err
		}
	}
	if r.named == nil {
		return nil
	}
	return t.left(r)
}

// defers notes a reason, unless it is the last one: a new process sees all as new.
func (t *transaction) defers(d *deferred, at time.Time) error {
	var id, size int64
	known, err := t.get("SELECT id, size FROM message WHERE queue = ? AND queue <> '' AND waits ORDER BY id DESC LIMIT 1", []any{d.queue}, &id, &size)
	if !known || err != nil {
		return err
	}
	if size == 0 && d.size > 0 {
		if _, err := t.exec("UPDATE message SET size = ? WHERE id = ?", d.size, id); err != nil {
			return err
		}
	}
	var last string
	if _, err := t.get("SELECT text FROM deferral WHERE message = ? ORDER BY time DESC LIMIT 1", []any{id}, &last); err != nil || last == d.text {
		return err
	}
	var n int
	if _, err := t.get("SELECT count(*) FROM deferral WHERE message = ?", []any{id}, &n); err != nil || n >= maxDeferrals {
		return err
	}
	_, err = t.exec("INSERT OR REPLACE INTO deferral VALUES (?, ?, ?)", id, millis(at), d.text)
	return err
}

// left notes which messages have left the queue. One that moves within the queue while it is read may
// not be named; so it takes two readings that do not name it, and the first of them says when.
func (t *transaction) left(r *reading) error {
	missing := make(map[int64]time.Time)
	type waiting struct {
		id, at int64
		queue  string
	}
	for after := int64(0); ; {
		var list []waiting
		err := t.each("SELECT id, time, queue FROM message WHERE waits AND id > ? ORDER BY id LIMIT ?", []any{after, chunk}, func(s scanner) error {
			var w waiting
			err := s.Scan(&w.id, &w.at, &w.queue)
			list = append(list, w)
			return err
		})
		if err != nil {
			return err
		}
		for _, w := range list {
			after = w.id
			if _, named := r.named[maphash.String(r.seed, w.queue)]; named || w.at > millis(r.began.Add(-settle)) {
				continue
			}
			first, again := t.w.missing[w.id]
			if !again {
				missing[w.id] = r.began
				continue
			}
			if _, err := t.exec("UPDATE message SET waits = false, left_at = ? WHERE id = ?", millis(first), w.id); err != nil {
				return err
			}
		}
		if len(list) < chunk {
			t.w.missing = missing // of a transaction that fails as well: then they are missed at two more readings
			return nil
		}
	}
}
