package quota

import (
	"fmt"
	"sync"
	"time"

	"github.com/sendas/sendas/policy/limit"
)

// Rates are how much one client, or one identity, may submit: all the rates hold at once. The
// zero value allows everything. Rates are those that [ParseRate] can read.
type Rates struct {
	Messages   []limit.Rate // accepted messages
	Recipients []limit.Rate // recipients of accepted messages, each time anew
}

// maxRates keeps the memory for one key bounded.
const maxRates = 4

// Check tells what is senseless about a quota. The error is a sentence for the administrator.
func (q Rates) Check() error {
	for _, list := range [][]limit.Rate{q.Messages, q.Recipients} {
		if len(list) > maxRates {
			return fmt.Errorf("%d rates are more than anyone can oversee; keep %d", len(list), maxRates)
		}
		for i, a := range list {
			for _, b := range list[:i] {
				if err := contradiction(a, b); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// contradiction tells why two rates of one kind do not go together.
func contradiction(a, b limit.Rate) error {
	switch {
	case a.Per == b.Per:
		return fmt.Errorf("%s and %s are for the same period; keep the one you mean", b, a)
	case a.Per > b.Per && a.N <= b.N:
		return fmt.Errorf("%s is never reached beside %s; remove it or swap the counts", b, a)
	case a.Per < b.Per && a.N >= b.N:
		return fmt.Errorf("%s is never reached beside %s; remove it or swap the counts", a, b)
	}
	return nil
}

// ReservationLife is how long a [Reservation] holds its places after it was last asked for more.
// Between two commands Postfix waits 300 s (smtpd_timeout); a message that takes longer to come in
// loses its places, and [Counts.Commit] asks for them again.
const ReservationLife = 15 * time.Minute

// Counts counts what clients and identities submit and says whether one may submit more. In any
// period of a rate's length at most that many are committed; a place may stay taken up to a twelfth
// of the period longer than it must (see [slots]), so that the memory for a key does not depend on
// what it sends.
//
// A key is the name of a client, or the result of [IdentityKey]. Each decision takes the same time,
// however many keys there are, and idle keys are forgotten. Counts needs no goroutine of its own
// unless it has a store. All methods are safe for concurrent use.
//
// Pass the time as time.Now returned it: with its monotonic reading, setting the clock changes
// nothing.
type Counts struct {
	store  Store         // nil for none
	shared *sharedCounts // nil for none; in place of a store
	report func(error)

	mu     sync.Mutex // guards what follows, the meters and the reservations; methods in ...Locked need it held
	clock  limit.Clock
	meters map[string]*meter
	all    []*meter // the same, in any order, for the hand that looks for idle ones
	hand   int
	most   int // keys
	shapes map[string]*shape
	dirty  []*meter            // to be saved
	gone   map[string]struct{} // to be removed from the store
}

// New makes a Counts that forgets when the process ends.
func New() *Counts {
	return &Counts{meters: make(map[string]*meter), most: maxKeys, shapes: make(map[string]*shape), gone: make(map[string]struct{})}
}

// A Refusal tells which limit stands in the way, and until when.
type Refusal struct {
	Key  string
	Kind limit.Kind
	Rate limit.Rate // of the limit that opens last, if there are several
	// Opens is when so much more will be taken, if nobody else comes first and what is under way is
	// accepted now. It is zero if the limit is lower than what one message asks for at once.
	Opens time.Time
}

// A Reservation holds the places of one message from MAIL until its end. It ends with
// [Counts.Commit] or [Reservation.Abort]; if forgotten, it expires after [ReservationLife]. The nil
// Reservation is valid and holds nothing.
type Reservation struct {
	of         *Counts
	key        string
	quota      Rates
	recipients int
	done       bool
	in         *meter // where the places are held; nil if they are not
	touched    int64
	prev, next *Reservation
}

// Begin reserves the place of one message: MAIL. It checks the rates of messages alone. Refused, it
// returns a nil Reservation.
func (a *Counts) Begin(key string, q Rates, now time.Time) (*Reservation, *Refusal) {
	if len(q.Messages)+len(q.Recipients) == 0 {
		return nil, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.clock.Nanos(now)
	a.sweepLocked(sweepStep, at)
	r := &Reservation{of: a, key: key, quota: q}
	m := a.meters[key]
	switch {
	case m == nil:
		m = newMeter(key, a.shapeOfLocked(&q))
		a.enterLocked(m)
	case !m.shape.is(&q):
		m.reshape(a.shapeOfLocked(&q))
	}
	if no := a.reserveLocked(r, m, 0, at); no != nil {
		return nil, no
	}
	return r, nil
}

// Recipients reserves places for n more recipients, all or none: 1 at RCPT. A refusal leaves the
// reservation as it was, so the message can go on with the recipients that it has.
func (r *Reservation) Recipients(n int, now time.Time) *Refusal {
	if r == nil || n <= 0 {
		return nil
	}
	r.of.mu.Lock()
	defer r.of.mu.Unlock()
	if r.done {
		return nil
	}
	at := r.of.clock.Nanos(now)
	return r.of.reserveLocked(r, r.of.homeLocked(r, at), n, at)
}

// Commit counts a message at its end: all its reservations, of its client and its identity, or
// none. It refuses only if one has expired and meanwhile others took its place; then all are
// aborted. Reservations that have ended are passed over.
func (a *Counts) Commit(now time.Time, list ...*Reservation) *Refusal {
	if a.shared != nil {
		return a.commitShared(now, list)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.clock.Nanos(now)
	live, no := a.renewLocked(list, at)
	if no != nil {
		return no
	}
	for _, r := range live {
		m := r.in
		r.endLocked()
		m.book(r.recipients, at)
		a.touchLocked(m)
	}
	return nil
}

// renewLocked returns the reservations that have not ended, all of them held, or says why one of
// those that had expired cannot be held again; then all are aborted.
func (a *Counts) renewLocked(list []*Reservation, at int64) (live []*Reservation, no *Refusal) {
	for _, r := range list {
		if r == nil || r.done {
			continue
		}
		if no := a.reserveLocked(r, a.homeLocked(r, at), 0, at); no != nil {
			abortAllLocked(list)
			return nil, no
		}
		live = append(live, r)
	}
	return live, nil
}

// Abort gives all places back. After Commit, or a second time, it does nothing.
func (r *Reservation) Abort() {
	if r == nil {
		return
	}
	r.of.mu.Lock()
	defer r.of.mu.Unlock()
	r.endLocked()
}

// abortAllLocked ends reservations of one Counts, whose lock is held.
func abortAllLocked(list []*Reservation) {
	for _, r := range list {
		if r != nil {
			r.endLocked()
		}
	}
}

// endLocked gives back what the reservation holds, for good.
func (r *Reservation) endLocked() {
	if r.in != nil {
		r.in.release(r)
	}
	r.done = true
}

// Peek reports whether a message with so many recipients would be taken now if nothing else were
// under way: the very message that is asked about may hold its places already. It reserves nothing.
func (a *Counts) Peek(key string, q Rates, recipients int, now time.Time) *Refusal {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.clock.Nanos(now)
	m := meter{key: key, shape: &shape{}}
	if known := a.meters[key]; known != nil {
		m = *known
		m.messages, m.recipients = 0, 0
	}
	if !m.shape.is(&q) {
		m.reshape(newShape(q.rates()))
	}
	return a.refusalLocked(&m, 1, recipients, at)
}

// Used is how much of one limit is used.
type Used struct {
	Kind     limit.Kind
	Rate     limit.Rate
	Counted  int // in the period that ends now, rounded up as [Counts] does
	Reserved int // for messages under way
}

// Usage tells what a key has used of each limit that it last had, for people and metrics. A key
// that is not known has used nothing and has no limits.
func (a *Counts) Usage(key string, now time.Time) []Used {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.clock.Nanos(now)
	m := a.meters[key]
	if m == nil {
		return nil
	}
	m.expire(at)
	list := make([]Used, len(m.windows))
	for i, r := range m.shape.rates {
		list[i] = Used{r.kind, r.Rate, int(m.windows[i].used(r.Per, at)), int(m.held(r.kind))}
	}
	return list
}

// Keys returns how many keys are known.
func (a *Counts) Keys() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.all)
}

// homeLocked returns the meter where the reservation is held, or has to be held again after it
// expired.
func (a *Counts) homeLocked(r *Reservation, now int64) *meter {
	if r.in != nil {
		r.in.expire(now)
	}
	if r.in != nil {
		return r.in
	}
	m := a.meters[r.key]
	if m == nil {
		m = newMeter(r.key, a.shapeOfLocked(&r.quota))
		a.enterLocked(m)
	}
	return m
}

// reserveLocked asks for n more recipients, and for all that the reservation has had before if it
// is not held.
func (a *Counts) reserveLocked(r *Reservation, m *meter, n int, now int64) *Refusal {
	m.expire(now)
	messages, recipients := 0, n
	if r.in == nil {
		messages, recipients = 1, r.recipients+n
	}
	if no := a.refusalLocked(m, messages, recipients, now); no != nil {
		return no
	}
	if r.in != nil {
		m.release(r)
	}
	r.recipients += n
	r.touched = now
	m.hold(r)
	return nil
}

// refusalLocked says what stands in the way of so many more.
func (a *Counts) refusalLocked(m *meter, messages, recipients int, now int64) *Refusal {
	if i, opens := m.obstacle(messages, recipients, now); i >= 0 {
		return a.refusedLocked(m.key, m.shape.rates[i], opens)
	}
	if a.shared == nil || a.shared.up || m.mine == nil {
		return nil
	}
	shares := m.shape.shares(a.shared.hosts)
	if i, opens := inTheWay(shares, m.mine.windows, messages, recipients, m.messages, m.recipients, now); i >= 0 {
		return a.refusedLocked(m.key, shares[i], opens)
	}
	return nil
}

func (a *Counts) refusedLocked(key string, r kindRate, opens int64) *Refusal {
	no := &Refusal{Key: key, Kind: r.kind, Rate: r.Rate}
	if opens != neverOpens {
		no.Opens = a.clock.Wall(opens)
	}
	return no
}
