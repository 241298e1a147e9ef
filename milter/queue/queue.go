package queue

import (
	"bufio"
	"context"
	"hash/maphash"
	"log/slog"
	"math"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/address"
	"github.com/sendas/sendas/policy/limit"
)

const (
	// Interval is how often Postfix's queue is read unless Rules say otherwise. What is accepted in
	// between is added.
	Interval = 10 * time.Second
	// readTime is how long the reading may take: showq(8) opens every file of the queue.
	readTime = 5 * time.Minute
	// restFactor is how many times longer than a reading nothing is read after it, so that a large
	// queue does not keep the disk from delivering; maxRest is the most.
	restFactor = 9
	maxRest    = 10 * time.Minute
	// overlap is how long a message may need from our answer to its place in the queue. For as
	// long it is counted though the queue does not name it, also when it has left already.
	overlap = 2 * time.Second
	// maxQueueIDs bounds the memory of a reading, to some 20 MB. What the queue names beyond it is
	// counted each time.
	maxQueueIDs = 500_000
)

// A Watch watches what waits in Postfix's queue: for people and programs as a [Picture], always, and
// for each mailbox, where there is a [Ceiling], to say when no more is to be taken. Decisions never
// wait for a reading, and while there is none, everything is taken: our failure must not refuse
// mail. Messages that are decided on at one moment do not see each other, so a ceiling may be passed
// by as many as come in at once. A nil Watch takes everything. It is safe for concurrent use.
type Watch struct {
	log     *slog.Logger
	rules   atomic.Pointer[Rules]
	changed chan struct{}
	picture atomic.Pointer[Picture] // of the last attempt; nil before the first

	mu     sync.Mutex          // guards what follows
	view   map[string]*Backlog // by mailbox; nil: not known, or no ceiling
	since  map[string]*Backlog // likewise: the sum of recent
	recent []taken             // accepted since the view began, in their order
	left   map[string]int      // of Rules.Left

	// What follows is Look's, of which there is one at a time.
	before *stalls           // of the last reading that succeeded
	gone   map[Way]time.Time // when a message that was found put off had last left that way
}

// taken is a message that was accepted.
type taken struct {
	at    time.Time
	id    string // its queue id; "" where the MTA does not tell
	key   string
	rcpts int
}

// Rules are what the Watch needs of one configuration.
type Rules struct {
	Socket string                     // of showq(8)
	Every  time.Duration              // how often it is asked; 0: Interval
	Wait   time.Duration              // limit.Ceiling.Wait; 0: no ceiling
	Limits map[string]limit.Allowance // by policy.Mailbox.Name
	Policy *policy.Rules              // says whose mailbox a sender's mail leaves through
	// Explain names the class of what another server answered, such as "451 4.3.2 try later". It has
	// few answers, none of them a stranger's text. nil: all are of one class.
	Explain func(reply string) string
	// Notes is told of each message that a reading of the queue finds, in whichever of Postfix's queues;
	// Begin comes before the first, End after the last where the reading was whole. nil: nobody is.
	Notes Notes
	// Left tells how many recipients mailboxes can still have in 24 h, by policy.Mailbox.Name; one
	// that is missing is not known. It is asked when the queue is read, and must return when ctx
	// ends. nil: nothing is known.
	Left func(ctx context.Context) map[string]int
	// Proof tells what is known of mail that leaves. It is asked when something was put off for a
	// reason that is in the way of all mail, and must return when ctx ends. nil: nothing is known.
	Proof func(ctx context.Context) Proof
}

// Notes take notes of readings of the queue. All calls come from one goroutine.
type Notes interface {
	Begin(now time.Time)
	// Queued gets what showq(8) tells: the reason is "" where the message was not deferred yet.
	Queued(id, reason string, size int64)
	End()
}

// New makes a Watch, and registers its series. It reads nothing before Use.
func New(log *slog.Logger, reg prometheus.Registerer) *Watch {
	q := &Watch{log: log, changed: make(chan struct{}, 1), since: make(map[string]*Backlog), gone: make(map[Way]time.Time)}
	reg.MustRegister(q)
	return q
}

// Use puts a configuration into force.
func (q *Watch) Use(r Rules) {
	q.rules.Store(&r)
	select {
	case q.changed <- struct{}{}:
	default: // Run has not looked yet
	}
}

// Run reads the queue from time to time until ctx ends.
func (q *Watch) Run(ctx context.Context) {
	for {
		select {
		case <-q.changed: // before this reading, which knows of it
		default:
		}
		began := time.Now()
		q.Look(ctx)
		t := time.NewTimer(restAfter(time.Since(began), q.rules.Load()))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		case <-q.changed:
			t.Stop()
		}
	}
}

// restAfter returns how long nothing is read after a reading that took so long.
func restAfter(took time.Duration, r *Rules) time.Duration {
	every := Interval
	if r != nil && r.Every > 0 {
		every = r.Every
	}
	return max(every, min(maxRest, restFactor*took))
}

// Look reads the queue once. Only one may at a time.
func (q *Watch) Look(ctx context.Context) {
	r := q.rules.Load()
	if r == nil {
		return
	}
	began := time.Now()
	v, err := r.read(ctx, q.before)
	var left map[string]int
	if r.Wait > 0 {
		left = r.stillLeft(ctx)
	}
	if ctx.Err() != nil {
		return
	}
	q.set(v, left, began)
	next := &Picture{Time: began, Err: err}
	if err == nil {
		next = v.picture
		next.Stalls, next.Free = q.stand(ctx, r, v, began), roomAt(r.Socket)
	}
	if was := q.picture.Swap(next); (err != nil) != (was != nil && was.Err != nil) {
		q.tell(r, err)
	}
}

// tell says that the queue can be read no longer, or again.
func (q *Watch) tell(r *Rules, err error) {
	without, again := "what waits in it is not known", "the queue can be read again"
	if r.Wait > 0 {
		without, again = without+", and mail passes without a ceiling", again+": the ceiling is in force"
	}
	if err == nil {
		q.log.Info(again, "socket", r.Socket)
		return
	}
	q.log.Warn("the queue cannot be read: "+without, "socket", r.Socket, "error", err, "hint", causeOf(err).hint())
}

// unreadableHint is what to do where the queue cannot be read.
const unreadableHint = `the user of the milter must be in the group postdrop ("usermod -aG postdrop sendas", then restart it), and milter.queue_socket be that of Postfix's showq service`

// set puts a view into force, nil for none, and forgets what it contains.
func (q *Watch) set(v *reading, left map[string]int, began time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.left, q.view = left, nil
	if v != nil {
		q.view = v.backlogs
	}
	q.recent = slices.DeleteFunc(q.recent, func(m taken) bool {
		return q.view == nil || m.at.Before(began.Add(-overlap)) || v.named.has(m.id)
	})
	clear(q.since)
	for _, m := range q.recent {
		add(q.since, m.key, m.rcpts)
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

// A reading is what one reading of the queue found.
type reading struct {
	picture  *Picture
	backlogs map[string]*Backlog // by Rules.queue; nil without a ceiling
	named    *idSet
	before   *stalls // of the reading before; nil for the first
	stalls   *stalls
}

// read reads Postfix's queue. Mail of a sender that leaves by a connector too is counted for the
// mailbox that may send as it: the queue does not tell.
//
// showq(8) lists one queue after the other (active, incoming, deferred; Postfix, src/showq/showq.c)
// while qmgr(8) moves messages between them. One that is deferred meanwhile is named twice, and
// counted once. One that moves the other way, from deferred to active as a queue run begins, may
// not be named at all, and looks like one that has left. It is missed until the next reading, so
// that the ceiling may be passed by what comes in until then: too few in view takes mail, too many
// would refuse it.
func (r *Rules) read(ctx context.Context, before *stalls) (*reading, error) {
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	v := &reading{picture: newPicture(time.Now()), named: newIDSet(), before: before, stalls: newStalls()}
	if r.Wait > 0 {
		v.backlogs = make(map[string]*Backlog)
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", r.Socket)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if r.Notes != nil {
		r.Notes.Begin(time.Now())
	}
	if err := read(bufio.NewReaderSize(c, maxQueueName), func(m queued) { r.note(v, m) }); err != nil {
		return nil, err
	}
	if r.Notes != nil {
		r.Notes.End()
	}
	return v, nil
}

// note counts a message.
func (r *Rules) note(v *reading, m queued) {
	if r.Notes != nil {
		r.Notes.Queued(m.id, m.reason, m.size)
	}
	if !leaving[m.queue] {
		v.picture.Queues.add(m.queue, &m)
		return
	}
	if !v.named.add(m.id) {
		return
	}
	v.picture.Queues.add(m.queue, &m)
	way := r.way(m.sender)
	if m.reason != "" {
		reason := r.reason(m.reason)
		v.picture.Deferred.add(reason, &m)
		v.stalls.note(&m, way, reason, v.before, v.picture.Time)
	}
	v.picture.Ways.add(way, &m)
	if v.backlogs == nil {
		return
	}
	if a, err := address.Parse(m.sender); err == nil {
		if key, _ := r.queue(a); key != "" {
			add(v.backlogs, key, m.rcpts)
		}
	}
}

// way returns by which way mail of a sender leaves.
func (r *Rules) way(sender string) Way {
	if a, err := address.Parse(sender); err == nil {
		if m, _ := r.Policy.MailboxFor(a); m != nil {
			return Way{Mailbox: m.Name, Route: r.Policy.RouteFrom(sender).Name}
		}
	}
	if route := r.Policy.RouteFrom(sender); route != nil {
		return Way{Route: route.Name}
	}
	return Way{}
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
