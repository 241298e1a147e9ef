package queue

import (
	"cmp"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/policy/limit"
)

// A Picture is what waits in Postfix's queue, as one reading found it. It does not change.
type Picture struct {
	Time time.Time // when the reading began
	Err  error     // why the queue could not be read; then nothing else is known
	// Queues is by Postfix's names: incoming, active, deferred, hold, maildrop and, where it tells of
	// them, others.
	Queues Counts[string]
	// Ways and Deferred have what leaves by itself: not what is held or in maildrop. Of a message
	// that has been deferred before, the reason stays until it leaves, also while it is tried again.
	Ways     Counts[Way]
	Deferred Counts[Reason]
	Stalls   []Stall // most first
	Free     int64   // bytes on the disk of the queue that Postfix may use; -1: not known
}

// A Way is how mail leaves: through a mailbox, or by a route without one. The zero value is for mail
// of which the sender tells neither: Postfix's own, and what leaves directly.
type Way struct{ Mailbox, Route string } // as the configuration names them

// A Count is what waits in one place.
type Count struct {
	Messages, Recipients int
	Oldest               time.Time // when the oldest came in; zero where nothing waits
}

// Counts are counts by place; what is not there is zero.
type Counts[K comparable] map[K]*Count

// known are the queues that are there though nothing is in them.
var known = []string{"incoming", "active", "deferred", "hold", "maildrop"}

func newPicture(now time.Time) *Picture {
	p := &Picture{Time: now, Queues: make(Counts[string]), Ways: make(Counts[Way]), Deferred: make(Counts[Reason])}
	for _, name := range known {
		p.Queues[name] = &Count{}
	}
	return p
}

// maxPlaces bounds the places of a Counts. There are as many as the configuration has mailboxes and
// routes, and Postfix queues; it is for a showq(8) that is none.
const maxPlaces = 100_000

func (c Counts[K]) add(k K, m *queued) {
	n := c[k]
	if n == nil {
		if len(c) == maxPlaces {
			return
		}
		n = &Count{}
		c[k] = n
	}
	n.Messages++
	n.Recipients += m.rcpts
	if !m.arrived.IsZero() && (n.Oldest.IsZero() || m.arrived.Before(n.Oldest)) {
		n.Oldest = m.arrived
	}
}

// Status is a Picture for people and programs. Its JSON keys are stable. Moments are in UTC; null is
// "none" or, where readable is false, "not known".
type Status struct {
	Readable bool          `json:"readable"`
	Error    string        `json:"error"` // why it is not
	Cause    Cause         `json:"cause,omitempty"`
	Hint     string        `json:"hint"` // what to do then
	ReadAt   time.Time     `json:"read_at"`
	Free     *int64        `json:"free_bytes"` // on the disk of the queue
	Messages *int          `json:"messages"`   // what leaves by itself: incoming, active and deferred
	Oldest   *time.Time    `json:"oldest"`     // of these
	Queues   []PlaceStatus `json:"queues"`     // each of Postfix's queues
	Waiting  []PlaceStatus `json:"waiting"`    // by mailbox or route, most first; those with mail alone
	Deferred []PlaceStatus `json:"deferred"`   // by reason, most first; likewise
	Stalls   []PlaceStatus `json:"stalls"`     // by mailbox or route and reason: where nothing leaves; see Stall
}

// PlaceStatus is what waits in one place; the first names that are not "" say in which.
type PlaceStatus struct {
	Queue      string     `json:"queue,omitempty"`
	Mailbox    string     `json:"mailbox,omitempty"`
	Route      string     `json:"route,omitempty"`
	Reason     Reason     `json:"reason,omitempty"`
	Messages   int        `json:"messages"`
	Recipients int        `json:"recipients"`
	Oldest     *time.Time `json:"oldest"`
}

// Status describes the queue; nil before it was first read, and of a nil Watch.
func (q *Watch) Status() *Status {
	if q == nil {
		return nil
	}
	p := q.picture.Load()
	if p == nil {
		return nil
	}
	s := &Status{Readable: p.Err == nil, ReadAt: p.Time.UTC().Truncate(time.Second)}
	if p.Err != nil {
		s.Cause = causeOf(p.Err)
		s.Error, s.Hint = p.Err.Error(), s.Cause.hint()
		return s
	}
	if p.Free >= 0 {
		s.Free = &p.Free
	}
	all := &Count{}
	for name, n := range p.Queues {
		x := n.status()
		x.Queue = name
		s.Queues = append(s.Queues, x)
		if leaving[name] {
			all.merge(n)
		}
	}
	for w, n := range p.Ways {
		x := n.status()
		x.Mailbox, x.Route = w.Mailbox, w.Route
		s.Waiting = append(s.Waiting, x)
	}
	for r, n := range p.Deferred {
		x := n.status()
		x.Reason = r
		s.Deferred = append(s.Deferred, x)
	}
	for i := range p.Stalls {
		n := &p.Stalls[i]
		x := n.status()
		x.Mailbox, x.Route, x.Reason = n.Mailbox, n.Route, n.Reason
		s.Stalls = append(s.Stalls, x)
	}
	for _, list := range [][]PlaceStatus{s.Queues, s.Waiting, s.Deferred} {
		slices.SortFunc(list, mostFirst)
	}
	total := all.status()
	s.Messages, s.Oldest = &total.Messages, total.Oldest
	return s
}

func mostFirst(a, b PlaceStatus) int {
	return cmp.Or(cmp.Compare(b.Messages, a.Messages), cmp.Compare(a.Queue+a.Mailbox+string(a.Reason), b.Queue+b.Mailbox+string(b.Reason)), cmp.Compare(a.Route, b.Route))
}

func (n *Count) merge(more *Count) {
	n.Messages, n.Recipients = n.Messages+more.Messages, n.Recipients+more.Recipients
	if n.Oldest.IsZero() || !more.Oldest.IsZero() && more.Oldest.Before(n.Oldest) {
		n.Oldest = more.Oldest
	}
}

func (n *Count) status() PlaceStatus {
	s := PlaceStatus{Messages: n.Messages, Recipients: n.Recipients}
	if !n.Oldest.IsZero() {
		at := n.Oldest.UTC()
		s.Oldest = &at
	}
	return s
}

// The series of the queue. Where it cannot be read there is none but the first: what is not known is
// not 0.
var (
	readable       = prometheus.NewDesc("sendas_queue_readable", "1 if Postfix's queue could be read at the last attempt, else 0.", nil, nil)
	messagesIn     = prometheus.NewDesc("sendas_queue_messages", "Messages in each of Postfix's queues.", []string{"queue"}, nil)
	oldestIn       = prometheus.NewDesc("sendas_queue_oldest_timestamp_seconds", "When the oldest message in the queue came in, where there is one.", []string{"queue"}, nil)
	waiting        = prometheus.NewDesc("sendas_queue_waiting", "What waits in Postfix's queue for a mailbox or a route, where something waits.", []string{"mailbox", "route", "kind"}, nil)
	waitingOldest  = prometheus.NewDesc("sendas_queue_waiting_oldest_timestamp_seconds", "When the oldest message that waits for a mailbox or a route came in.", []string{"mailbox", "route"}, nil)
	running        = prometheus.NewDesc("sendas_postfix_running", "1 if Postfix answered at the last attempt to read its queue, 0 if nobody listens there.", nil, nil)
	free           = prometheus.NewDesc("sendas_queue_disk_free_bytes", "Room on the disk of Postfix's queue.", nil, nil)
	stalled        = prometheus.NewDesc("sendas_queue_stalled_messages", "Messages that were put off for what is in the way of all mail of a mailbox or a route, where none is known to have left since.", []string{"mailbox", "route", "reason"}, nil)
	deferredReason = prometheus.NewDesc("sendas_queue_deferred_messages", "Messages in Postfix's queue that were deferred before, by reason.", []string{"reason"}, nil)
)

// Describe implements [prometheus.Collector].
func (q *Watch) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{readable, messagesIn, oldestIn, waiting, waitingOldest, running, free, stalled, deferredReason} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (q *Watch) Collect(ch chan<- prometheus.Metric) {
	p := q.picture.Load()
	if p == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	when := func(d *prometheus.Desc, at time.Time, labels ...string) {
		if !at.IsZero() {
			gauge(d, float64(at.Unix()), labels...)
		}
	}
	if p.Err != nil {
		gauge(readable, 0)
		if causeOf(p.Err) == CauseStopped {
			gauge(running, 0)
		}
		return
	}
	gauge(readable, 1)
	gauge(running, 1)
	if p.Free >= 0 {
		gauge(free, float64(p.Free))
	}
	for _, name := range known {
		n := p.Queues[name]
		gauge(messagesIn, float64(n.Messages), name)
		when(oldestIn, n.Oldest, name)
	}
	for w, n := range p.Ways {
		gauge(waiting, float64(n.Messages), w.Mailbox, w.Route, string(limit.KindMessages))
		gauge(waiting, float64(n.Recipients), w.Mailbox, w.Route, string(limit.KindRecipients))
		when(waitingOldest, n.Oldest, w.Mailbox, w.Route)
	}
	for r, n := range p.Deferred {
		gauge(deferredReason, float64(n.Messages), string(r))
	}
	for _, n := range p.Stalls {
		gauge(stalled, float64(n.Messages), n.Mailbox, n.Route, string(n.Reason))
	}
}
