package queue

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"log/slog"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/address"
	"github.com/sendas/sendas/policy/limit"
)

const (
	// interval is how often Postfix's queue is read. What is accepted in between is added.
	interval = 30 * time.Second
	// readTime is how long the reading may take: showq(8) opens every file of the queue.
	readTime = 2 * time.Minute
	// overlap is how long a message may need from our answer to its place in the queue. For as
	// long it is counted though the queue does not name it, also when it has left already.
	overlap = 2 * time.Second
	// maxQueueIDs bounds the memory of a reading, to some 20 MB. What the queue names beyond it is
	// counted each time.
	maxQueueIDs = 500_000
)

// A Watch watches what waits in Postfix's queue for each mailbox, and says when no more is to be
// taken: see [Ceiling]. It reads only while there is a ceiling. Decisions never wait for a reading,
// and while there is none, everything is taken: our failure must not refuse mail. Messages that are
// decided on at one moment do not see each other, so a ceiling may be passed by as many as come in
// at once. A nil Watch takes everything. It is safe for concurrent use.
type Watch struct {
	log     *slog.Logger
	up      *prometheus.GaugeVec // without labels; none where there is no ceiling
	waiting *prometheus.GaugeVec
	rules   atomic.Pointer[Rules]
	changed chan struct{}

	mu     sync.Mutex          // guards what follows
	view   map[string]*Backlog // by mailbox; nil: not known
	since  map[string]*Backlog // likewise: the sum of recent
	recent []taken             // accepted since the view began, in their order
	failed bool                // the last reading
	left   map[string]int      // of Rules.Left
}

// taken is a message that was accepted.
type taken struct {
	at    time.Time
	id    string // its queue id; "" where the MTA does not tell
	key   string
	rcpts int
}

// Rules are the ceiling of one configuration.
type Rules struct {
	Socket string                     // of showq(8)
	Wait   time.Duration              // limit.Ceiling.Wait; 0: no ceiling
	Limits map[string]limit.Allowance // by policy.Mailbox.Name
	Policy *policy.Rules              // says whose mailbox a sender's mail leaves through
	// Left tells how many recipients mailboxes can still have in 24 h, by policy.Mailbox.Name; one
	// that is missing is not known. It is asked when the queue is read, and must return when ctx
	// ends. nil: nothing is known.
	Left func(ctx context.Context) map[string]int
}

// New makes a Watch and registers its series. It has no ceiling before Use.
func New(log *slog.Logger, reg prometheus.Registerer) *Watch {
	q := &Watch{log: log, changed: make(chan struct{}, 1), since: make(map[string]*Backlog),
		up: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sendas_queue_view_up", Help: "1 while Postfix's queue can be read for milter.queue_ceiling, else 0; not there without a ceiling.",
		}, nil),
		waiting: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sendas_queue_waiting", Help: "What waits in Postfix's queue, where there is a milter.queue_ceiling.",
		}, []string{"mailbox", "kind" /* messages, recipients */}),
	}
	reg.MustRegister(q.up, q.waiting)
	return q
}

// Use puts a ceiling into force.
func (q *Watch) Use(r Rules) {
	q.rules.Store(&r)
	select {
	case q.changed <- struct{}{}:
	default: // Run has not looked yet
	}
}

// Run reads the queue from time to time until ctx ends.
func (q *Watch) Run(ctx context.Context) {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-q.changed: // before this reading, which knows of it
		default:
		}
		q.Look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-q.changed:
		}
	}
}

// Look reads the queue once, where there is a ceiling.
func (q *Watch) Look(ctx context.Context) {
	r := q.rules.Load()
	if r == nil || r.Wait <= 0 {
		q.set(nil, nil, time.Time{})
		q.up.Reset()
		q.waiting.Reset()
		return
	}
	began := time.Now()
	view, named, err := r.read(ctx)
	left := r.stillLeft(ctx)
	if ctx.Err() != nil {
		return
	}
	q.mu.Lock()
	q.left = left
	q.mu.Unlock()
	if before := q.set(view, named, began); (err != nil) != before {
		if err != nil {
			q.log.Warn("the queue cannot be read: mail passes without a ceiling", "socket", r.Socket, "error", err,
				"hint", "the user of the milter must be in the group postdrop, and milter.queue_socket be that of Postfix's showq service")
		} else {
			q.log.Info("the queue can be read again: the ceiling is in force", "socket", r.Socket)
		}
	}
	q.show(r, view)
}

// set puts a view into force, nil for none, and forgets what it contains. It reports whether there
// was none before.
func (q *Watch) set(view map[string]*Backlog, named *idSet, began time.Time) (failed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	failed, q.failed = q.failed, view == nil && !began.IsZero()
	q.view = view
	q.recent = slices.DeleteFunc(q.recent, func(m taken) bool {
		return view == nil || m.at.Before(began.Add(-overlap)) || named.has(m.id)
	})
	clear(q.since)
	for _, m := range q.recent {
		add(q.since, m.key, m.rcpts)
	}
	return failed
}

// show shows what waits, by mailbox of the configuration.
func (q *Watch) show(r *Rules, view map[string]*Backlog) {
	if view == nil {
		q.up.WithLabelValues().Set(0)
		q.waiting.Reset()
		return
	}
	q.up.WithLabelValues().Set(1)
	sum := make(map[string]Backlog, len(r.Limits))
	for key, b := range view {
		first, _, _ := strings.Cut(key, " ") // of a pool
		a, err := address.Parse(first)
		if err != nil {
			continue
		}
		if m, _ := r.Policy.MailboxFor(a); m != nil {
			s := sum[m.Name]
			s.Messages, s.Recipients = s.Messages+b.Messages, s.Recipients+b.Recipients
			sum[m.Name] = s
		}
	}
	for _, m := range r.Policy.Mailboxes() {
		q.waiting.WithLabelValues(m.Name, string(limit.KindMessages)).Set(float64(sum[m.Name].Messages))
		q.waiting.WithLabelValues(m.Name, string(limit.KindRecipients)).Set(float64(sum[m.Name].Recipients))
	}
}

// Overflow says with what a message is refused whose mailbox has too much waiting, nil where it is
// not.
func (q *Watch) Overflow(d *policy.Decision, rcpts int) *policy.Reply {
	r, key, limits := q.of(d)
	if r == nil {
		return nil
	}
	q.mu.Lock()
	if q.view == nil {
		q.mu.Unlock()
		return nil
	}
	b := Backlog{MessagesLeft: math.MaxInt32, RecipientsLeft: q.leftForLocked(r, d)}
	for _, have := range []*Backlog{q.view[key], q.since[key]} {
		if have != nil {
			b.Messages, b.Recipients = b.Messages+have.Messages, b.Recipients+have.Recipients
		}
	}
	q.mu.Unlock()
	o := Ceiling{Limits: limits, Wait: r.Wait}.Take(b, rcpts)
	if o == nil {
		return nil
	}
	// "Mail system full" (RFC 3463, section 3.4): it is the relay that takes no more for now.
	return &policy.Reply{Code: 451, Enhanced: "4.3.1", Text: DescribeOverflow(d.User.String(), o)}
}

// leftForLocked returns how many recipients the mailboxes of a message can still have in 24 h, in
// sum. Where the token service has not told, that is no bound, and the ceiling is too high by a
// day's allowance at most. q.mu is held.
func (q *Watch) leftForLocked(r *Rules, d *policy.Decision) int {
	list, _ := r.Policy.MailboxesFor(d.Identity)
	sum := 0
	for _, m := range list {
		n, known := q.left[m.Name]
		if !known {
			return math.MaxInt32
		}
		sum += n
	}
	return sum
}

// stillLeft asks what is left of the day, if there is somebody to ask.
func (r *Rules) stillLeft(ctx context.Context) map[string]int {
	if r.Left == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	return r.Left(ctx)
}

// Accepted counts a message that goes into the queue.
func (q *Watch) Accepted(d *policy.Decision, id string, rcpts int, now time.Time) {
	r, key, _ := q.of(d)
	if r == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.recent = append(q.recent, taken{now, id, key, rcpts})
	add(q.since, key, rcpts)
}

// of returns the ceiling that a message is held against, nil where there is none, and whose queue
// it goes into.
func (q *Watch) of(d *policy.Decision) (*Rules, string, limit.Allowance) {
	if q == nil || d.Mailbox == nil {
		return nil, "", limit.Allowance{}
	}
	r := q.rules.Load()
	if r == nil || r.Wait <= 0 {
		return nil, "", limit.Allowance{}
	}
	key, l := r.queue(d.Identity)
	if key == "" { // a message that began before a reload
		r = nil
	}
	return r, key, l
}

// queue names the queue that mail of a sender waits in, "" where it leaves through no mailbox: who
// authenticates, or all that are in the sender's pool. With it come the limits, in sum.
func (r *Rules) queue(sender address.Spec) (string, limit.Allowance) {
	list, user := r.Policy.MailboxesFor(sender)
	if len(list) == 0 {
		return "", limit.Allowance{}
	}
	key, sum := user.Key(), r.Limits[list[0].Name]
	for _, m := range list[1:] {
		key += " " + m.Address.Key()
		l := r.Limits[m.Name]
		if l.Messages.Per == sum.Messages.Per {
			sum.Messages.N += l.Messages.N
		}
		if l.Recipients.Per == sum.Recipients.Per {
			sum.Recipients.N += l.Recipients.N
		}
	}
	return key, sum
}

func add(m map[string]*Backlog, key string, rcpts int) {
	b := m[key]
	if b == nil {
		b = &Backlog{}
		m[key] = b
	}
	b.Messages++
	b.Recipients += rcpts
}

// read reads Postfix's queue, and returns the ids of what it has counted. Mail of a sender that
// leaves by a connector too is counted for the mailbox that may send as it: the queue does not
// tell.
//
// showq(8) lists one queue after the other (active, incoming, deferred; Postfix, src/showq/showq.c)
// while qmgr(8) moves messages between them. One that is deferred meanwhile is named twice, and
// counted once. One that moves the other way, from deferred to active as a queue run begins, may
// not be named at all, and looks like one that has left. It is missed until the next reading, so
// that the ceiling may be passed by what comes in until then: too few in view takes mail, too many
// would refuse it.
func (r *Rules) read(ctx context.Context) (map[string]*Backlog, *idSet, error) {
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", r.Socket)
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	view, named := make(map[string]*Backlog), newIDSet()
	err = read(bufio.NewReaderSize(c, maxQueueName), func(m queued) {
		if !leaving[m.queue] {
			return
		}
		a, err := address.Parse(m.sender)
		if err != nil {
			return
		}
		if key, _ := r.queue(a); key != "" && named.add(m.id) {
			add(view, key, m.rcpts)
		}
	})
	if err != nil {
		return nil, nil, err
	}
	return view, named, nil
}

// idSet is a set of queue ids, of which hashes are kept. A message keeps its id in whatever
// queue it is, as a short id is made of its file's inode. That Postfix gives a short id again, to a
// message that comes in as another leaves, takes the same microsecond of a second: then one is
// missed until the next reading. nil is empty.
type idSet struct {
	seed   maphash.Seed
	hashes map[uint64]struct{}
	most   int
}

func newIDSet() *idSet {
	return &idSet{seed: maphash.MakeSeed(), hashes: make(map[uint64]struct{}), most: maxQueueIDs}
}

// add reports whether the id is new, as far as is known.
func (s *idSet) add(id string) bool {
	if s.has(id) {
		return false
	}
	if id != "" && len(s.hashes) < s.most {
		s.hashes[maphash.String(s.seed, id)] = struct{}{}
	}
	return true
}

func (s *idSet) has(id string) bool {
	if s == nil || id == "" {
		return false
	}
	_, ok := s.hashes[maphash.String(s.seed, id)]
	return ok
}

// leaving are the queues whose mail leaves by itself; what is held does not, and what is in
// maildrop has not been decided on.
var leaving = map[string]bool{"incoming": true, "active": true, "deferred": true}

// maxQueueName bounds what is kept of a name or value; showq(8) also tells reasons, which may be
// long.
const maxQueueName = 4096

// queued is a message as showq(8) tells it.
type queued struct {
	queue, id, sender string
	rcpts             int
}

// read reads what showq(8) says of the queue: lists of attributes, each a name and a value that end
// in NUL, and each list ends in one more NUL, as the whole does (Postfix, src/showq/showq.c and
// src/util/attr_print0.c). A message is one list with an attribute "recipient" for each. Since 3.6
// a list that names the protocol comes first.
func read(r *bufio.Reader, fn func(queued)) error {
	for lists := 0; ; lists++ {
		var m queued
		attributes := 0
		for ; ; attributes++ {
			name, err := readWord(r)
			if err != nil {
				return err
			}
			if name == "" {
				break
			}
			value, err := readWord(r)
			if err != nil {
				return err
			}
			switch name {
			case "queue_name":
				m.queue = value
			case "queue_id":
				m.id = value
			case "sender":
				m.sender = value
			case "recipient":
				m.rcpts++
			case "protocol":
				if value != "mail_queue_list_protocol" {
					return fmt.Errorf("it speaks another protocol: %.40q", value)
				}
			}
		}
		switch {
		case attributes == 0:
			return nil
		case m.queue != "":
			fn(m)
		case lists > 0:
			return errors.New("it speaks another protocol: a message has no queue_name")
		}
	}
}

// readWord reads up to the next NUL, and returns at most the reader's buffer of it.
func readWord(r *bufio.Reader) (string, error) {
	b, err := r.ReadSlice(0)
	if err == nil {
		return string(b[:len(b)-1]), nil
	}
	word := string(b)
	for errors.Is(err, bufio.ErrBufferFull) {
		_, err = r.ReadSlice(0)
	}
	if err == io.EOF {
		err = errors.New("the list of the queue breaks off")
	}
	return word, err
}
