package queue

import (
	"cmp"
	"context"
	"errors"
	"hash/maphash"
	"slices"
	"syscall"
	"time"
)

// A Stall is mail that waits for what is in the way of all mail of its way: a port that is closed, a
// name that cannot be looked up, a plugin that is missing. Nothing is known to have left that way
// since the newest of it was put off.
type Stall struct {
	Way
	Reason Reason
	Count
	Seen time.Time // when the newest of it was found to be put off
}

// barriers are the reasons that are in the way of all mail. What another server said about one
// message is none.
var barriers = map[Reason]bool{
	ReasonConnect: true, ReasonDNS: true, ReasonLost: true, ReasonTLS: true, ReasonSignIn: true, ReasonPlugin: true, ReasonLookup: true, ReasonTransport: true,
}

// Proof is what others know of mail that leaves. The zero value knows nothing.
type Proof struct {
	Accepted map[string]time.Time // when Microsoft last took a message, by policy.Mailbox.Name
	Answered map[string]time.Time // when Microsoft last said what becomes of one, likewise
	Resting  map[string]bool      // mailboxes whose mail is put off on purpose
	Since    time.Time            // when the token service began to answer; zero where it does not
}

const (
	// aloneTime is for how long after its start the token service is not blamed for what Postfix put
	// off while it was away.
	aloneTime = time.Minute
	// lookupTime is how long nothing leaves of a mailbox for which look-ups are put off, before that
	// is a stall: where more comes in than may leave, they are put off while mail leaves.
	lookupTime = 2 * time.Minute
	// returnTime is the age from which a message may be gone because Postfix has given it back
	// (maximal_queue_lifetime is five days), which proves nothing.
	returnTime = 4 * 24 * time.Hour
)

type stallKey struct {
	way    Way
	reason Reason
}

// stalls are what one reading found put off for a barrier, and which messages those were.
type stalls struct {
	by     map[stallKey]*Stall
	ids    []uint64 // hashes, sorted when the reading has ended
	count  map[Way]int
	again  map[Way]int // how many of count the reading before had found too
	oldest map[Way]time.Time
}

// idSeed makes the hashes of all readings alike.
var idSeed = maphash.MakeSeed()

func newStalls() *stalls {
	return &stalls{by: make(map[stallKey]*Stall), count: make(map[Way]int), again: make(map[Way]int), oldest: make(map[Way]time.Time)}
}

// has reports whether a message was found; nil has none.
func (s *stalls) has(id uint64) bool {
	if s == nil {
		return false
	}
	_, found := slices.BinarySearch(s.ids, id)
	return found
}

// note counts a message. Mail that leaves neither through a mailbox nor by a route of ours is none
// of Microsoft's.
func (s *stalls) note(m *queued, way Way, reason Reason, before *stalls, began time.Time) {
	if !barriers[reason] || way == (Way{}) || len(s.ids) == maxQueueIDs {
		return
	}
	id, key := maphash.String(idSeed, m.id), stallKey{way, reason}
	x := s.by[key]
	if x == nil {
		x = &Stall{Way: way, Reason: reason}
		s.by[key] = x
	}
	x.Messages, x.Recipients = x.Messages+1, x.Recipients+m.rcpts
	if !m.arrived.IsZero() && (x.Oldest.IsZero() || m.arrived.Before(x.Oldest)) {
		x.Oldest = m.arrived
	}
	s.ids = append(s.ids, id)
	s.count[way]++
	if o := s.oldest[way]; o.IsZero() || x.Oldest.Before(o) {
		s.oldest[way] = x.Oldest
	}
	switch old := before.of(key); {
	case before == nil: // when it was put off is not known
		x.Seen = later(x.Seen, m.arrived)
	case !before.has(id):
		x.Seen = later(x.Seen, began)
	case old != nil:
		s.again[way]++
		x.Seen = later(x.Seen, old.Seen)
	default: // it was put off again, for another reason
		s.again[way]++
		x.Seen = later(x.Seen, began)
	}
}

func (s *stalls) of(key stallKey) *Stall {
	if s == nil {
		return nil
	}
	return s.by[key]
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// left returns the ways that some of the messages found before have left by since, and not because
// they were too old.
func (s *stalls) left(before *stalls, began time.Time) (ways []Way) {
	if before == nil {
		return nil
	}
	for way, n := range before.count {
		if s.again[way] < n && began.Sub(before.oldest[way]) < returnTime {
			ways = append(ways, way)
		}
	}
	return ways
}

// judge returns what stands still, most first.
func (s *stalls) judge(left map[Way]time.Time, p Proof, now time.Time) (list []Stall) {
	for key, x := range s.by {
		sent := later(p.Accepted[key.way.Mailbox], left[key.way])
		moves := sent.After(x.Seen)
		switch key.reason {
		case ReasonSignIn, ReasonTransport: // an answer of Microsoft to another message proves nothing
		case ReasonLookup:
			moves = moves || p.Resting[key.way.Mailbox] || now.Sub(sent) < lookupTime || !p.Since.IsZero() && x.Seen.Before(p.Since.Add(aloneTime))
		default: // whatever the answer was, the way is free
			moves = moves || p.Answered[key.way.Mailbox].After(x.Seen)
		}
		if !moves {
			list = append(list, *x)
		}
	}
	slices.SortFunc(list, func(a, b Stall) int {
		return cmp.Or(cmp.Compare(b.Messages, a.Messages), cmp.Compare(a.Mailbox, b.Mailbox), cmp.Compare(a.Route, b.Route), cmp.Compare(a.Reason, b.Reason))
	})
	return list
}

// stand finds out what stands still, and remembers the reading for the next one.
func (q *Watch) stand(ctx context.Context, r *Rules, v *reading, began time.Time) []Stall {
	slices.Sort(v.stalls.ids)
	for _, way := range v.stalls.left(q.before, began) {
		q.gone[way] = began
	}
	q.before = v.stalls
	var p Proof
	if len(v.stalls.by) > 0 && r.Proof != nil {
		p = r.Proof(ctx)
	}
	return v.stalls.judge(q.gone, p, began)
}

// roomAt returns how many bytes are free where a path leads, for those who are not root; -1 where
// that cannot be told.
func roomAt(path string) int64 {
	var s syscall.Statfs_t
	if err := syscall.Statfs(path, &s); err != nil {
		return -1
	}
	return int64(s.Bavail) * s.Bsize
}

// Cause is why the queue cannot be read.
type Cause string

// The causes.
const (
	CauseStopped    Cause = "stopped"    // nobody listens: Postfix is not running
	CausePermission Cause = "permission" // the milter's user may not
	CauseOther      Cause = "other"
)

func causeOf(err error) Cause {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return CauseStopped
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return CausePermission
	}
	return CauseOther
}

// hint is what to do about a cause.
func (c Cause) hint() string {
	if c == CauseStopped {
		return `Postfix is not running: "systemctl status postfix", then start it`
	}
	return unreadableHint
}
