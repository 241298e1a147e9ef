package ledger

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"time"

	"github.com/sendas/sendas/policy/limit"
)

// A record is an account or a tally as bytes: a checksum, then numbers as varints, lists with their
// length before them. Times are told as the distance to the one before, which keeps a busy mailbox
// under 700 bytes.

// encoder appends to a record.
type encoder struct {
	b    []byte
	base int64 // of the next time
}

func (e *encoder) int(n int64)          { e.b = binary.AppendVarint(e.b, n) }
func (e *encoder) time(t limit.Instant) { e.int(int64(t) - e.base); e.base = int64(t) }
func (e *encoder) text(s string)        { e.int(int64(len(s))); e.b = append(e.b, s...) }
func (e *encoder) rate(r limit.Rate)    { e.int(int64(r.N)); e.int(int64(r.Per)) }
func (e *encoder) seal() []byte {
	binary.BigEndian.PutUint32(e.b, crc32.ChecksumIEEE(e.b[4:]))
	return e.b
}

func newEncoder() *encoder { return &encoder{b: make([]byte, 4, 256)} }

// errRecord says that a record is not what was written.
var errRecord = errors.New("a record is damaged")

// decoder takes from a record; after the first error it gives zeros.
type decoder struct {
	b    []byte
	base int64
	err  error
}

func newDecoder(b []byte) *decoder {
	if len(b) < 4 || binary.BigEndian.Uint32(b) != crc32.ChecksumIEEE(b[4:]) {
		return &decoder{err: errRecord}
	}
	return &decoder{b: b[4:]}
}

func (d *decoder) int() int64 {
	n, size := binary.Varint(d.b)
	if size <= 0 {
		d.err, d.b = errRecord, nil
		return 0
	}
	d.b = d.b[size:]
	return n
}

// count returns the length of a list, which cannot be more than the bytes that are left.
func (d *decoder) count() int {
	n := d.int()
	if n < 0 || n > int64(len(d.b)) {
		d.err, d.b = errRecord, nil
		return 0
	}
	return int(n)
}

func (d *decoder) time() limit.Instant { d.base += d.int(); return limit.Instant(d.base) }
func (d *decoder) rate() limit.Rate {
	n := d.int()
	return limit.Rate{N: int(n), Per: time.Duration(d.int())}
}
func (d *decoder) text() string {
	n := d.count()
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

func (y *tally) encode(e *encoder) {
	e.int(int64(len(y.open)))
	for id, h := range y.open {
		e.int(int64(id))
		e.time(h.given)
		e.int(int64(h.recipients))
	}
	e.int(int64(len(y.sent)))
	for _, b := range y.sent {
		e.time(b.end)
		e.int(int64(b.n))
	}
	e.int(int64(y.per))
}

func (d *decoder) tally() tally {
	y := newTally()
	for range d.count() {
		id := uint64(d.int())
		given := d.time()
		y.open[id] = hold{given, int(d.int())}
	}
	for range d.count() {
		end := d.time()
		y.sent = append(y.sent, bucket{end, int(d.int())})
	}
	y.per = time.Duration(d.int())
	return y
}

func (a *account) encode() []byte {
	e := newEncoder()
	a.tally.encode(e)
	e.int(int64(len(a.done)))
	for _, t := range a.done {
		e.time(t)
	}
	e.time(a.last)
	e.rate(a.limits.Messages)
	e.rate(a.limits.Recipients)
	e.int(int64(a.limits.Connections))
	e.text(a.limits.Group)
	e.rate(a.limits.GroupRecipients)
	e.int(int64(a.shrunk))
	e.time(a.shrunkAt)
	e.time(a.until)
	e.text(a.reason)
	e.text(string(a.class))
	if len(a.free) > 0 {
		e.int(int64(len(a.free)))
		for id := range a.free {
			e.int(int64(id))
		}
	}
	return e.seal()
}

func decodeAccount(b []byte) (*account, error) {
	d := newDecoder(b)
	a := &account{tally: d.tally()}
	for range d.count() {
		a.done = append(a.done, d.time())
	}
	a.last = d.time()
	a.limits.Messages = d.rate()
	a.limits.Recipients = d.rate()
	a.limits.Connections = int(d.int())
	a.limits.Group = d.text()
	a.limits.GroupRecipients = d.rate()
	a.shrunk = int(d.int())
	a.shrunkAt = d.time()
	a.until = d.time()
	a.reason = d.text()
	if len(d.b) > 0 { // a record without class is of an earlier version
		a.class = PauseClass(d.text())
	}
	if len(d.b) > 0 { // some leases keep no connection
		for range d.count() {
			if a.free == nil {
				a.free = make(map[uint64]bool)
			}
			a.free[uint64(d.int())] = true
		}
	}
	return a, d.err
}

func (y *tally) record() []byte {
	e := newEncoder()
	y.encode(e)
	return e.seal()
}

func decodeTally(b []byte) (*tally, error) {
	d := newDecoder(b)
	y := d.tally()
	return &y, d.err
}

// stamp is the store's clock at a commit, so that the next process can go on from there.
type stamp struct {
	ledger limit.Instant // time of the ledger
	wall   int64         // the wall clock then, in microseconds
	boot   string        // the boot of the machine
	up     int64         // time since that boot, suspension included, in microseconds
	lost   limit.Instant
	serial uint64
}

func (s stamp) encode() []byte {
	e := newEncoder()
	e.time(s.ledger)
	e.int(s.wall)
	e.text(s.boot)
	e.int(s.up)
	e.int(int64(s.lost))
	e.int(int64(s.serial))
	return e.seal()
}

func decodeStamp(b []byte) (stamp, error) {
	d := newDecoder(b)
	s := stamp{ledger: d.time()}
	s.wall = d.int()
	s.boot = d.text()
	s.up = d.int()
	s.lost = limit.Instant(d.int())
	s.serial = uint64(d.int())
	return s, d.err
}
