package quota

import (
	"slices"

	"github.com/sendas/sendas/policy/limit"
)

// meter is what a [Counts] knows of one key. Its mutex guards it. It is kept small, for there may
// be very many: 88 bytes, and 80 for each rate.
type meter struct {
	key     string
	shape   *shape
	windows []slots // one for each of shape.rates
	// oldest is the first of a ring of reservations, in the order in which they expire; nil if
	// there are none.
	oldest               *Reservation
	messages, recipients uint32 // reserved
	booked               int64  // time of the last message
	index                int32  // in Counts.all
	dirty                bool   // it is in Counts.dirty
	mine                 *mine  // nil unless hosts share the counts
}

// shape is what the meters of one quota have in common.
type shape struct {
	rates   []kindRate
	lasting int64 // after that, nothing that was booked is in any window
}

func newShape(rates []kindRate) *shape {
	s := &shape{rates: rates}
	for _, r := range rates {
		s.lasting = max(s.lasting, int64(r.Per)+slotWidth(r.Per))
	}
	return s
}

type kindRate struct {
	kind limit.Kind
	limit.Rate
}

// is reports whether the shape is that of the quota. It runs for every message, so it allocates
// nothing.
func (s *shape) is(q *Rates) bool {
	n := len(q.Messages)
	if len(s.rates) != n+len(q.Recipients) {
		return false
	}
	for i, r := range s.rates {
		if i < n && (r.kind != limit.KindMessages || r.Rate != q.Messages[i]) ||
			i >= n && (r.kind != limit.KindRecipients || r.Rate != q.Recipients[i-n]) {
			return false
		}
	}
	return true
}

// rates returns the rates of both kinds, the messages' first.
func (q *Rates) rates() []kindRate {
	list := make([]kindRate, 0, len(q.Messages)+len(q.Recipients))
	for _, r := range q.Messages {
		list = append(list, kindRate{limit.KindMessages, r})
	}
	for _, r := range q.Recipients {
		list = append(list, kindRate{limit.KindRecipients, r})
	}
	return list
}

func newMeter(key string, s *shape) *meter {
	return &meter{key: key, shape: s, windows: make([]slots, len(s.rates))}
}

// reshape puts another quota into force. A window goes on if the new quota has a rate of its
// period; a new period begins empty, since nobody knows what it held.
func (m *meter) reshape(s *shape) {
	old := m.shape
	m.windows, m.shape = old.reshape(s, m.windows), s
	if m.mine == nil {
		return
	}
	m.mine.windows = old.reshape(s, m.mine.windows)
	if m.mine.owed != nil {
		m.mine.owed = old.reshape(s, m.mine.owed)
	}
}

// reshape brings windows into the order of another shape.
func (s *shape) reshape(to *shape, have []slots) []slots {
	windows := make([]slots, len(to.rates))
	for i, r := range to.rates {
		same := func(o kindRate) bool { return o.kind == r.kind && o.Per == r.Per }
		if j := slices.IndexFunc(s.rates, same); j >= 0 {
			windows[i] = have[j]
		}
	}
	return windows
}

// held returns how much of a kind is reserved.
func (m *meter) held(k limit.Kind) int64 {
	if k == limit.KindMessages {
		return int64(m.messages)
	}
	return int64(m.recipients)
}

// obstacle returns the rate that has no room for so many more, that which opens last if there are
// several, and when it opens.
func (m *meter) obstacle(messages, recipients int, now int64) (at int, opens int64) {
	return inTheWay(m.shape.rates, m.windows, messages, recipients, m.messages, m.recipients, now)
}

// inTheWay is the same for any windows, and so many places that are taken beside them.
func inTheWay(rates []kindRate, windows []slots, messages, recipients int, heldMessages, heldRecipients uint32, now int64) (at int, opens int64) {
	at = -1
	for i, r := range rates {
		need, held := messages, heldMessages
		if r.kind == limit.KindRecipients {
			need, held = recipients, heldRecipients
		}
		if need <= 0 {
			continue
		}
		if o := windows[i].opens(r.Rate, int64(held), int64(need), now); o > now && (at < 0 || o > opens) {
			at, opens = i, o
		}
	}
	return at, opens
}

// book counts a message.
func (m *meter) book(recipients int, now int64) {
	count(m.shape, m.windows, recipients, now)
	m.booked = now
}

// count counts a message in windows.
func count(s *shape, windows []slots, recipients int, now int64) {
	for i, r := range s.rates {
		if r.kind == limit.KindMessages {
			windows[i].add(r.Per, 1, now)
		} else if recipients > 0 {
			windows[i].add(r.Per, recipients, now)
		}
	}
}

// hold counts a reservation, as the one that expires last.
func (m *meter) hold(r *Reservation) {
	r.in = m
	m.messages++
	m.recipients += uint32(r.recipients)
	m.link(r)
}

// release takes a reservation back.
func (m *meter) release(r *Reservation) {
	m.unlink(r)
	m.messages--
	m.recipients -= uint32(r.recipients)
	r.in = nil
}

func (m *meter) link(r *Reservation) {
	if m.oldest == nil {
		m.oldest, r.prev, r.next = r, r, r
		return
	}
	first := m.oldest
	r.prev, r.next = first.prev, first
	first.prev.next, first.prev = r, r
}

func (m *meter) unlink(r *Reservation) {
	if m.oldest == r {
		m.oldest = r.next
	}
	if r.next == r {
		m.oldest = nil
	}
	r.prev.next, r.next.prev = r.next, r.prev
	r.prev, r.next = nil, nil
}

// expire takes back the reservations that nobody has asked about for too long.
func (m *meter) expire(now int64) {
	for m.oldest != nil && now-m.oldest.touched >= int64(ReservationLife) {
		m.release(m.oldest)
	}
}

// idle reports whether the meter says no more than a new one would. It looks at no window: those of
// other keys than the one decided on are far away in memory, and this runs for every message.
func (m *meter) idle(now int64) bool {
	m.expire(now)
	return m.oldest == nil && now-m.booked >= m.shape.lasting
}
