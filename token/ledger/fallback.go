package ledger

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"sync"
	"time"

	"github.com/sendas/sendas/policy/limit"
)

// Shared is the ledger of one of several hosts: the shared store while that is there, and else this
// host's own share of the limits on a ledger of its own. All hosts together never pass a limit,
// whoever of them can reach the store.
//
// How that holds. Every host tells the store that it is there. For a host that has been silent for
// longer than Silence, the store keeps back that host's share of the messages. The host itself
// gives no leases for Silence, one more window and a second (71 s for 30/m), and then at most its
// share: (Messages − Connections) ÷ hosts, because as many messages as there are connections may
// still have been under way. A day is too long to wait, so of the recipient limits the store always
// keeps back Reserve percent, and each host may use its part of that on its own in any window. When
// the store is back, the host first books there what it has given and what became of it, and only
// then asks for leases again.
//
// A share of less than one message, or of fewer recipients than one delivery has, is none: then
// Take fails until the store is back. That is so for two hosts at 500 recipients a day, where each
// would have 25.
//
// When the store has lost its data, each host books anew what it has sent, and the store gives
// leases when all have done so. When it has another master, each tells that one what it may lack.
//
// What can be passed is only the number of simultaneous connections: for as long as a session lasts
// that another host began before the store went away, and by more hosts than there are connections.
// Microsoft defers the surplus (432 4.3.2).
type Shared struct {
	primary *Redis
	hosts   int
	local   Store
	o       SharedOptions
	stop    chan struct{}
	gone    chan struct{}
	close   sync.Once

	mu     sync.Mutex // guards what follows
	shared bool       // the store is in use
	told   bool       // the log has said whether it is
	member bool       // this process has been a member
	lost   time.Time  // when the store can have seen this host last
	epoch  string
	clock  limit.Clock
	leases map[uint64]lease
	diary  diary     // of this host, all of the windows: to be booked anew when the store has lost its data
	unkept bool      // the log has said that the diary cannot be written
	more   bool      // the log has said that there are more hosts than configured
	owed   *Memory   // by this host, without the store, as in the diary
	owedAs string    // the name under which it is told
	late   []verdict // of leases of the store, while it is away
	pauses map[string]Pause
	prune  int
}

// lease is one that this host has given.
type lease struct {
	own     uint64 // of the local ledger; 0: the store's
	mailbox string
	given   limit.Instant
}

// verdict is one that the store is still to be told.
type verdict struct {
	mailbox string
	lease   uint64
	outcome Outcome
}

// trace is what this host has done as one mailbox.
type trace struct {
	account
	group tally
}

// SharedOptions is what can be chosen of a [Shared]. The zero value is good.
type SharedOptions struct {
	Host    string        // names this host among those that share, and stays the same over restarts; "": the host name
	Reserve int           // percent of the recipient limits that is kept for times without the store; 0: 10
	Silence time.Duration // after which a host is taken for absent; 0: 10 s. The same on all hosts.
	Probe   time.Duration // how often an absent store is tried; 0: 1 s
	// Diary is a file of its own for what this host sends, so that it can tell it anew after a
	// restart too, should the store lose its data; nil: memory. The caller closes it, after Shared.
	Diary *Bolt
	Log   *slog.Logger // one line for each change; nil: none
	// OnChange is told, one call at a time, whether the shared store is in use: for a gauge. It is
	// called at the start, too.
	OnChange func(shared bool)

	now func() time.Time // instead of time.Now, in tests
}

// beatsPerSilence is how often a host tells that it is there, so that one lost packet does no harm.
const beatsPerSilence = 4

// NewShared puts the shared store, which hosts many hosts use, and this host's own ledger together.
// It tries to join; when the store is away it goes on trying until Close. The caller closes primary
// and local, after it.
func NewShared(primary *Redis, hosts int, local Store, o SharedOptions) (*Shared, error) {
	s, err := newShared(primary, hosts, local, o)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.o.Silence)
	defer cancel()
	s.o.OnChange(false)
	s.tend(ctx)
	go s.run()
	return s, nil
}

// newShared is NewShared without anybody who looks after it.
func newShared(primary *Redis, hosts int, local Store, o SharedOptions) (*Shared, error) {
	if hosts < 1 {
		return nil, fmt.Errorf("%d hosts cannot share a ledger; count this one too", hosts)
	}
	o = o.withDefaults()
	if o.Host == "" {
		return nil, errors.New("this host has no name among those that share the ledger; set one")
	}
	primary.host, primary.hosts, primary.silence, primary.reserve = o.Host, hosts, o.Silence, o.Reserve
	s := &Shared{primary: primary, hosts: hosts, local: local, o: o, stop: make(chan struct{}), gone: make(chan struct{}),
		lost: o.now(), leases: make(map[uint64]lease), diary: o.Diary, owed: NewMemory(), owedAs: rand.Text(),
		pauses: make(map[string]Pause), prune: minPrune}
	if o.Diary == nil {
		s.diary = NewMemory()
	}
	s.epoch, primary.known = s.diary.epoch(), s.diary.hosts()
	primary.epoch = s.epoch // so that a server without data is known for one that has lost it
	return s, nil
}

func (o SharedOptions) withDefaults() SharedOptions {
	if o.Host == "" {
		o.Host, _ = os.Hostname() // refused when there is none
	}
	if o.Reserve <= 0 || o.Reserve > 100 {
		o.Reserve = 10
	}
	if o.Silence <= 0 {
		o.Silence = 10 * time.Second
	}
	if o.Probe <= 0 {
		o.Probe = time.Second
	}
	if o.now == nil {
		o.now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.OnChange == nil {
		o.OnChange = func(bool) {}
	}
	return o
}

// Close ends the watch over the store.
func (s *Shared) Close() error {
	s.close.Do(func() { close(s.stop) })
	<-s.gone
	return nil
}

// run tells the store that this host is there, or tries whether the store is back.
func (s *Shared) run() {
	defer close(s.gone)
	t := time.NewTicker(min(s.o.Probe, s.o.Silence/beatsPerSilence))
	defer t.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-t.C:
		}
		ctx, cancel := context.WithTimeout(context.Background(), s.o.Silence)
		s.tend(ctx)
		cancel()
	}
}

// tend looks after membership. The store is asked without the lock, so that one that hangs holds up
// nobody.
func (s *Shared) tend(ctx context.Context) {
	shared := s.InUse()
	var err error
	if shared {
		err = s.primary.beat(ctx)
	} else {
		err = s.primary.ping(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.told && shared == (err == nil) {
		s.countLocked()
		return
	}
	if err == nil || errors.Is(err, errRejoin) {
		s.rejoinLocked(ctx)
	} else {
		s.awayLocked(err)
	}
}

// countLocked notes how many hosts there are, and says once when there are more than it was told.
func (s *Shared) countLocked() {
	n := s.primary.count()
	if err := s.diary.setHosts(n); err != nil {
		s.keptLocked(err)
	}
	if more := n > s.hosts; s.more != more {
		if s.more = more; more {
			s.o.Log.Warn("more hosts share the ledger than token.hosts says: each has less of the limits on its own, as if that said so", "hosts", n, "token.hosts", s.hosts,
				"hint", "count this one too; a host that was renamed is counted for an hour")
		}
	}
}

// awayLocked notes that the store does not answer. It may have heard the last request, so silence
// begins now.
func (s *Shared) awayLocked(err error) {
	s.lost = s.o.now()
	if !s.shared && s.told {
		return
	}
	was := s.shared
	s.shared, s.told = false, true
	s.o.Log.Error("the shared ledger is away: this host goes on with its share of the limits", "hosts", s.hosts, "error", err,
		"hint", "no mail leaves for the first minute or so: what the other hosts have just sent is not known")
	if was {
		s.o.OnChange(false)
	}
}

// rejoinLocked books what the store does not know, and becomes a member again. The caller holds mu,
// so that nothing is given in the meantime.
func (s *Shared) rejoinLocked(ctx context.Context) {
	if err := s.catchUpLocked(ctx); err != nil {
		s.awayLocked(err)
		return
	}
	back := !s.shared
	s.shared, s.member, s.told, s.epoch = true, true, true, s.primary.dataEpoch()
	s.owed, s.owedAs, s.late, s.pauses = NewMemory(), rand.Text(), nil, make(map[string]Pause)
	s.keptLocked(s.diary.setEpoch(s.epoch))
	if back {
		s.o.Log.Info("the shared ledger is in use")
		s.o.OnChange(true)
	}
}

// keptLocked says that the diary cannot be written, and when it can again: once each. The store has
// the same, so mail goes on.
func (s *Shared) keptLocked(err error) {
	if bad := err != nil; s.unkept == bad {
		return
	}
	s.unkept = err != nil
	if err == nil {
		s.o.Log.Info("the diary of what this host sends is kept again")
		return
	}
	s.o.Log.Error("the diary of what this host sends cannot be kept; should the shared ledger lose its data and this service be restarted, limits may be crossed",
		"error", err)
}

func (s *Shared) catchUpLocked(ctx context.Context) error {
	if err := s.primary.beat(ctx); err != nil && !errors.Is(err, errRejoin) {
		return err
	}
	forgotten := s.epoch != "" && s.epoch != s.primary.dataEpoch()
	again := forgotten
	if !forgotten {
		exact, err := s.tellLocked(ctx)
		if err != nil {
			return err
		}
		again = !exact || len(s.owed.book.accounts) > 0
	}
	if err := s.bookAllLocked(ctx, forgotten); err != nil {
		return err
	}
	for _, v := range s.late {
		if err := s.primary.Settle(ctx, v.mailbox, v.lease, v.outcome, s.o.now()); err != nil {
			return err
		}
	}
	for mailbox, p := range s.pauses {
		if err := s.primary.Pause(ctx, mailbox, p, s.o.now()); err != nil {
			return err
		}
	}
	if err := s.primary.join(ctx, s.member || forgotten); err != nil {
		return err
	}
	s.primary.begin(again)
	return nil
}

// tellLocked tells a new master what this host has done since the moment up to which that one knows
// all. A process that has not been there all that time tells what its diary has, which is rather
// more, and reports that it was not exact.
func (s *Shared) tellLocked(ctx context.Context) (exact bool, err error) {
	list, exact, gap, term := s.primary.behind()
	for _, d := range list {
		if err := s.primary.tell(ctx, d); err != nil {
			return false, err
		}
	}
	if exact || s.epoch == "" {
		return exact, nil
	}
	traces, now := s.diary.traces(s.o.now())
	for _, x := range traces {
		x.lately(now, gap)
		if x.nothing() {
			continue
		}
		if err := s.primary.book(ctx, term, x.mailbox, x.trace, now); err != nil {
			return false, err
		}
	}
	s.owed, s.owedAs = NewMemory(), rand.Text() // the diary has it too
	return false, nil
}

// bookAllLocked tells the store what it does not know: what it has forgotten, which includes the
// rest, or what was sent without it. Where that breaks off, all of it is told again under the same
// name, be it by the next process: the store takes it for the same, with what has come since.
func (s *Shared) bookAllLocked(ctx context.Context, forgotten bool) error {
	from, name := diary(s.owed), s.owedAs
	if forgotten {
		from, name = s.diary, toldDiary
	}
	list, now := from.traces(s.o.now())
	for _, x := range list {
		if err := s.primary.book(ctx, name, x.mailbox, x.trace, now); err != nil {
			return err
		}
	}
	if !forgotten {
		return nil
	}
	s.o.Log.Warn("the shared ledger had lost its data: what this host has sent was booked anew; no mail leaves until all hosts have done so",
		"hosts", s.hosts, "hint", "every host that shares it has to run; if there are fewer now, lower token.hosts")
	return nil
}

// toldDiary is the name under which a host tells its diary. It does that once to the same data, which
// have a name of their own (epoch).
const toldDiary = "diary"

// book tells the store what this host has done as a mailbox. Told again under the same name, it
// replaces what was told before.
func (r *Redis) book(ctx context.Context, name, mailbox string, tr *trace, now limit.Instant) error {
	tr.forget(terms{Allowance: tr.limits, session: r.session}, now)
	tr.group.forget(tr.limits.GroupRecipients.Per, r.session, now)
	group := groupName(tr.limits)
	q := redisRequest{Op: "book", Name: name, Limits: r.limits(tr.limits), Open: make(map[string][3]limit.Instant), Done: ages(tr.done, now),
		Sent: tr.tally.ages(now), GroupSent: tr.group.ages(now)}
	for id, h := range tr.open {
		q.Open[idText(id)] = [3]limit.Instant{now - h.given, limit.Instant(h.recipients), limit.Instant(tr.group.open[id].recipients)}
		r.remember(id, group)
	}
	_, err := r.run(ctx, mailbox, group, q)
	return err
}

func ages(times []limit.Instant, now limit.Instant) []limit.Instant {
	out := make([]limit.Instant, len(times))
	for i, t := range times {
		out[i] = now - t
	}
	return out
}

// ages returns the buckets with the age of their end, which is below zero while they are filling.
func (y *tally) ages(now limit.Instant) [][2]limit.Instant {
	out := make([][2]limit.Instant, len(y.sent))
	for i, b := range y.sent {
		out[i] = [2]limit.Instant{now - b.end, limit.Instant(b.n)}
	}
	return out
}

// spare returns how many recipients each host may use in a window without the store: its part of
// the reserve.
func spare(l limit.Allowance, r limit.Rate, hosts, reserve int) int {
	if hosts < 1 {
		return 0
	}
	n := r.N * reserve / 100 / hosts
	if n < roomOf(l, r) {
		return 0 // less than one delivery
	}
	return n
}

// share returns what this host may do without the store.
func (s *Shared) share(l limit.Allowance) (limit.Allowance, error) {
	under, hosts := min(l.Connections, l.Messages.N), s.primary.count()
	out := l
	out.Messages.N = (l.Messages.N - under) / hosts
	out.Connections = max(1, l.Connections/hosts) // of more hosts than connections each has one: Microsoft defers the surplus
	out.Recipients.N = spare(l, l.Recipients, hosts, s.o.Reserve)
	if l.Grouped() {
		out.GroupRecipients.N = spare(l, l.GroupRecipients, hosts, s.o.Reserve)
	}
	for _, x := range []struct {
		what string
		n    int
		of   int
	}{
		{"messages", out.Messages.N, l.Messages.N},
		{"recipients", out.Recipients.N, l.Recipients.N},
		{"recipients of the group", out.GroupRecipients.N, l.GroupRecipients.N},
	} {
		if x.n < 1 && x.of > 0 { // else it has no limit
			return limit.Allowance{}, fmt.Errorf("the shared ledger is away, and %d %s are too few to be shared by %d hosts without it", x.of, x.what, hosts)
		}
	}
	return out, nil
}

// Take implements [Store].
func (s *Shared) Take(ctx context.Context, mailbox string, l limit.Allowance, now time.Time) (Answer, error) {
	ans, err := s.take(ctx, mailbox, l, now)
	if ans.Lease != 0 {
		werr := s.diary.written(context.WithoutCancel(ctx))
		s.mu.Lock()
		defer s.mu.Unlock()
		s.keptLocked(werr)
	}
	return ans, err
}

func (s *Shared) take(ctx context.Context, mailbox string, l limit.Allowance, now time.Time) (Answer, error) {
	if !s.InUse() {
		return s.alone(ctx, mailbox, l, now)
	}
	ans, err := s.primary.Take(ctx, mailbox, l, now)
	switch {
	case err == nil:
		s.granted(mailbox, l, ans, lease{mailbox: mailbox}, now)
		return ans, nil
	case ctx.Err() != nil:
		return Answer{}, err // the caller's time is up, not the store's
	}
	return s.failed(ctx, mailbox, l, err, now)
}

// failed deals with an answer that did not come.
func (s *Shared) failed(ctx context.Context, mailbox string, l limit.Allowance, err error, now time.Time) (Answer, error) {
	s.mu.Lock()
	if errors.Is(err, errRejoin) {
		s.rejoinLocked(context.WithoutCancel(ctx))
	} else {
		s.awayLocked(err)
	}
	shared := s.shared
	s.mu.Unlock()
	if shared {
		return Answer{Wait: time.Millisecond, Cause: CauseMessages, Reason: "the shared ledger has just come back"}, nil
	}
	return s.alone(ctx, mailbox, l, now)
}

// alone gives a lease out of this host's share.
func (s *Shared) alone(ctx context.Context, mailbox string, l limit.Allowance, now time.Time) (Answer, error) {
	part, err := s.share(l)
	if err != nil {
		return Answer{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shared { // it has come back
		return Answer{Wait: time.Millisecond, Cause: CauseMessages, Reason: "the shared ledger has just come back"}, nil
	}
	if w := s.o.Silence + l.Messages.Per + limit.Jitter - s.o.now().Sub(s.lost); w > 0 && !l.Messages.Unlimited() {
		return Answer{Wait: w, Cause: CauseMessages, Reason: "the shared ledger is away, and what the other hosts have just sent is not known"}, nil
	}
	ans, err := s.local.Take(ctx, mailbox, part, now)
	if err != nil || ans.Lease == 0 {
		return ans, err
	}
	x := lease{own: ans.Lease, mailbox: mailbox}
	ans.Lease = newID()
	s.noteLocked(mailbox, l, ans, x, now)
	s.owed.noteLease(mailbox, l, ans, now)
	return ans, nil
}

func (s *Shared) granted(mailbox string, l limit.Allowance, ans Answer, x lease, now time.Time) {
	if ans.Lease == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteLocked(mailbox, l, ans, x, now)
}

// noteLocked remembers a lease of this host. The caller holds mu.
func (s *Shared) noteLocked(mailbox string, l limit.Allowance, ans Answer, x lease, now time.Time) {
	x.given = s.clock.Read(now)
	s.leases[ans.Lease] = x
	s.diary.noteLease(mailbox, l, ans, now)
	if len(s.leases) >= s.prune {
		s.forgetLocked(x.given)
	}
}

// forgetLocked drops what no window reaches back to. What is owed goes when it is booked.
func (s *Shared) forgetLocked(now limit.Instant) {
	for id, x := range s.leases {
		if now-x.given >= 2*limit.Micros(MaxSession) {
			delete(s.leases, id)
		}
	}
	s.prune = max(minPrune, 2*len(s.leases))
}

// Settle implements [Store]. While the store is away, what became of its leases is kept until it is
// back.
func (s *Shared) Settle(ctx context.Context, mailbox string, id uint64, o Outcome, now time.Time) error {
	s.mu.Lock()
	x, known := s.leases[id]
	if o.Open {
		shared := s.shared
		s.mu.Unlock()
		return s.settleOpen(ctx, verdict{mailbox, id, o}, x, shared, now)
	}
	delete(s.leases, id)
	s.diary.noteOutcome(mailbox, id, o, now)
	owed := s.owed.noteOutcome(mailbox, id, o, now)
	shared := s.shared
	if !shared && known && !owed { // the store has it, as its own or booked
		s.late = append(s.late, verdict{mailbox, id, o})
	}
	s.mu.Unlock()
	var err error
	if x.own != 0 {
		err = s.local.Settle(ctx, mailbox, x.own, o, now)
	}
	if shared {
		err = errors.Join(err, s.settleShared(ctx, verdict{mailbox, id, o}, now))
	}
	return err
}

// settleOpen gives a connection back. What stands in for the store while it is away forgets that:
// the lease is still out, and what is told of it anew keeps its connection.
func (s *Shared) settleOpen(ctx context.Context, v verdict, x lease, shared bool, now time.Time) error {
	if x.own != 0 {
		return s.local.Settle(ctx, v.mailbox, x.own, v.outcome, now)
	}
	if !shared {
		return nil
	}
	return s.primary.Settle(ctx, v.mailbox, v.lease, v.outcome, now)
}

// settleShared tells the store, which has leases of this host's own among its own since this host
// came back.
func (s *Shared) settleShared(ctx context.Context, v verdict, now time.Time) error {
	// What has happened has happened: the end of the caller's time is no reason not to book it. The
	// store's own time-out bounds this.
	err := s.primary.Settle(context.WithoutCancel(ctx), v.mailbox, v.lease, v.outcome, now)
	if err == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.late = append(s.late, v)
	s.awayLocked(err)
	return nil // it will be booked when the store is back
}

// Outstanding implements [Survivor]. Of this host's own share nothing outlives the process: see
// [NewShared].
func (s *Shared) Outstanding() []Outstanding { return nil }

// Adopt implements [Survivor]. The lease is taken for one of the store's; of this host's own share
// the store knows nothing, and keeps back more for it.
func (s *Shared) Adopt(mailbox string, id uint64, l limit.Allowance) {
	s.primary.Adopt(mailbox, id, l)
	s.granted(mailbox, l, Answer{Lease: id}, lease{mailbox: mailbox}, s.o.now())
}

// Pause implements [Store]. It holds here whether the store is away or not, and for all hosts when
// it is back.
func (s *Shared) Pause(ctx context.Context, mailbox string, p Pause, now time.Time) error {
	err := s.local.Pause(ctx, mailbox, p, now)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shared {
		cause := s.primary.Pause(context.WithoutCancel(ctx), mailbox, p, now)
		if cause == nil {
			return err
		}
		s.awayLocked(cause)
	}
	// What is over need not be told, and with a pattern strangers choose the mailboxes.
	maps.DeleteFunc(s.pauses, func(_ string, p Pause) bool { return !p.Until.IsZero() && p.Until.Before(now) })
	s.pauses[mailbox] = p
	return err
}

// Usage implements [Store]. While the store is away it tells what this host has done without it.
func (s *Shared) Usage(ctx context.Context, mailbox string, l limit.Allowance, now time.Time) (Usage, error) {
	s.mu.Lock()
	shared := s.shared
	s.mu.Unlock()
	if shared {
		return s.primary.Usage(ctx, mailbox, l, now)
	}
	if part, err := s.share(l); err == nil {
		l = part
	}
	return s.local.Usage(ctx, mailbox, l, now)
}

// InUse reports whether the shared store is in use, for metrics.
func (s *Shared) InUse() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shared
}
