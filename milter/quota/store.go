package quota

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/sendas/sendas/policy/limit"
)

// A Store keeps what a [Counts] has counted, so that a restart does not forget it. One process has
// it at a time. Its methods are not called concurrently.
type Store interface {
	// Load calls fn for every key that is saved. The record is valid during the call only.
	Load(ctx context.Context, fn func(key string, record []byte)) error

	// Save keeps the records of some keys, all or none of them; a nil record removes the key.
	Save(ctx context.Context, records map[string][]byte) error
}

const (
	// saveInterval is how much a crash can lose. An admission is no promise to Microsoft, as the
	// ledger's is, so nobody waits for the disk.
	saveInterval = time.Second
	// saveBatch is how many keys are saved at once: their encoding holds up other decisions.
	saveBatch = 1000
	// lastSaveTime is how long the last save may take.
	lastSaveTime = 5 * time.Second
)

// Open makes a Counts that begins with what the store has saved; [Counts.Run] saves it. A nil store
// is none.
//
// report is told of what goes wrong later: nobody has to be refused for it. It hears of a record
// that cannot be read, which is forgotten, of a failing save, once, and with nil when saving works
// again. It may be nil.
func Open(ctx context.Context, store Store, report func(error)) (*Counts, error) {
	a := New()
	a.store, a.report = store, report
	if report == nil {
		a.report = func(error) {}
	}
	if store == nil {
		return a, nil
	}
	err := store.Load(ctx, func(key string, record []byte) {
		m, err := decodeMeter(key, record)
		if err != nil {
			a.report(fmt.Errorf("forgetting the admission count of %q: %w", key, err))
			a.gone[key] = struct{}{}
			return
		}
		m.shape = a.internLocked(m.shape)
		a.clock.StartAt(m.booked)
		a.enterLocked(m)
	})
	if err != nil {
		return nil, fmt.Errorf("loading admission counts: %w", err)
	}
	return a, nil
}

// Run saves every second what has changed, or looks whether the shared store is there, and looks
// for idle keys where no mail comes in to do so, until ctx ends. Then it saves a last time and
// returns the error of that. It must run where there is a store, once.
func (a *Counts) Run(ctx context.Context) error {
	if a.shared != nil {
		return a.runShared(ctx)
	}
	tick := time.NewTicker(saveInterval)
	defer tick.Stop()
	var before error
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastSaveTime)
			defer cancel()
			return a.save(last)
		case <-tick.C:
		}
		a.tidy(time.Now())
		err := a.save(ctx)
		if ctx.Err() == nil && (err == nil) != (before == nil) {
			a.report(err)
			before = err
		}
	}
}

// tidy looks at the next keys.
func (a *Counts) tidy(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sweepLocked(saveBatch, a.clock.Nanos(now))
}

// save writes what has changed. What cannot be written is tried again the next time.
func (a *Counts) save(ctx context.Context) error {
	if a.store == nil {
		return nil
	}
	for {
		batch, more := a.changes()
		if len(batch) == 0 {
			return nil
		}
		if err := a.store.Save(ctx, batch); err != nil {
			a.restore(batch)
			return fmt.Errorf("saving admission counts: %w", err)
		}
		if !more {
			return nil
		}
	}
}

// changes takes the next keys to save, and reports whether there are more. Removed ones come first,
// so that one that came back is written after it is removed.
func (a *Counts) changes() (batch map[string][]byte, more bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	batch = make(map[string][]byte)
	for key := range a.gone {
		if len(batch) >= saveBatch {
			return batch, true
		}
		batch[key] = nil
		delete(a.gone, key)
	}
	for len(a.dirty) > 0 && len(batch) < saveBatch {
		end := len(a.dirty) - 1
		m := a.dirty[end]
		a.dirty[end] = nil
		a.dirty = a.dirty[:end]
		m.dirty = false
		if a.meters[m.key] == m {
			batch[m.key] = encodeMeter(m)
		}
	}
	return batch, len(a.dirty) > 0
}

// restore notes the keys of a batch that could not be saved.
func (a *Counts) restore(batch map[string][]byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for key := range batch {
		if m := a.meters[key]; m != nil {
			a.touchLocked(m)
		} else {
			a.gone[key] = struct{}{}
		}
	}
}

// touchLocked notes that a meter has to be saved.
func (a *Counts) touchLocked(m *meter) {
	if a.store != nil && !m.dirty {
		m.dirty = true
		a.dirty = append(a.dirty, m)
	}
}

// internLocked returns the shape of the same rates that others have already.
func (a *Counts) internLocked(s *shape) *shape {
	var q Rates
	for _, r := range s.rates {
		if r.kind == limit.KindMessages {
			q.Messages = append(q.Messages, r.Rate)
		} else {
			q.Recipients = append(q.Recipients, r.Rate)
		}
	}
	return a.shapeOfLocked(&q)
}

// meterVersion changes with the form of a record and with slotsPerPeriod. Records of another
// version are forgotten.
const meterVersion = 1

// encodeMeter writes the counts of a meter: version, time of the last message, number of rates; for
// each rate its kind, count and period, the newest stretch, and the stretches. Reservations are not
// saved: their messages end with the process.
func encodeMeter(m *meter) []byte {
	b := binary.AppendUvarint([]byte{meterVersion}, uint64(m.booked))
	b = append(b, byte(len(m.windows)))
	for i, r := range m.shape.rates {
		w := &m.windows[i]
		b = append(b, r.kind[0])
		b = binary.AppendUvarint(b, uint64(r.N))
		b = binary.AppendUvarint(b, uint64(r.Per))
		b = binary.AppendUvarint(b, uint64(w.newest))
		for j, n := range w.count {
			if b = binary.AppendUvarint(b, uint64(n)); n > 0 {
				b = append(b, w.last[j])
			}
		}
	}
	return b
}

var errMeterRecord = errors.New("the record is damaged")

// decodeMeter reads what encodeMeter has written.
func decodeMeter(key string, b []byte) (*meter, error) {
	d := meterReader{b: b}
	if v := d.byte(); d.err == nil && v != meterVersion {
		return nil, fmt.Errorf("the record is of version %d, not %d", v, meterVersion)
	}
	booked := d.number()
	n := int(d.byte())
	if d.err != nil || n > 2*maxRates {
		return nil, errMeterRecord
	}
	m := newMeter(key, &shape{rates: make([]kindRate, n)})
	m.booked = booked
	for i := range n {
		m.shape.rates[i] = d.rate()
		m.windows[i] = d.slots()
		if d.err == nil && m.windows[i].newest > booked/slotWidth(m.shape.rates[i].Per) {
			d.err = errMeterRecord // it would hold its places until then
		}
	}
	if d.err != nil || len(d.b) > 0 {
		return nil, errMeterRecord
	}
	return m, nil
}

// meterReader reads a record; after an error it returns zeros.
type meterReader struct {
	b   []byte
	err error
}

func (d *meterReader) byte() byte {
	if d.err != nil || len(d.b) == 0 {
		d.err = errMeterRecord
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

func (d *meterReader) number() int64 {
	v, n := binary.Uvarint(d.b)
	if d.err != nil || n <= 0 || int64(v) < 0 {
		d.err = errMeterRecord
		return 0
	}
	d.b = d.b[n:]
	return int64(v)
}

func (d *meterReader) rate() kindRate {
	k := limit.KindMessages
	switch d.byte() {
	case limit.KindMessages[0]:
	case limit.KindRecipients[0]:
		k = limit.KindRecipients
	default:
		d.err = errMeterRecord
	}
	r := limit.Rate{N: int(d.number()), Per: time.Duration(d.number())}
	if r.Per <= 0 || r.Per > longestPeriod {
		d.err = errMeterRecord
	}
	return kindRate{k, r}
}

// longestPeriod is that of ParseRate.
const longestPeriod = 31 * 24 * time.Hour

func (d *meterReader) slots() slots {
	s := slots{newest: d.number()}
	for i := range s.count {
		n := d.number()
		if int64(uint32(n)) != n {
			d.err = errMeterRecord
		}
		if s.count[i] = uint32(n); n > 0 {
			s.last[i] = d.byte()
		}
	}
	return s
}
