package ledger

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sendas/sendas/policy/limit"
)

// subject is an account that names its leases itself, counting from one.
type subject struct {
	*account
	id uint64
}

func newSubject() *subject { return &subject{account: newAccount()} }

func at(t time.Time) limit.Instant { return limit.Instant(t.UnixMicro()) }

func (s *subject) give(l limit.Allowance, now time.Time) Answer {
	ans := s.take(terms{Allowance: l, session: limit.Micros(MaxSession)}, nil, s.id+1, at(now))
	if ans.Lease != 0 {
		s.id++
	}
	return ans
}

func (s *subject) end(id uint64, o Outcome, now time.Time) { s.settle(nil, id, o, at(now)) }

var start = time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)

// delivery is one message of a simulated backlog.
type delivery struct{ lease, begin, verdict time.Time }

// pace is what the deliveries of a simulated backlog are like. What is drawn is drawn in the order of
// the leases.
type pace struct {
	verdict   func() time.Duration // from the beginning of the message
	handshake func() time.Duration // from the lease until the message could begin; nil: none
	fails     func() bool          // the session ends then, without a message; nil: none does
	between   time.Duration        // two sessions of one connection
}

// backlog plays smtp(8) with endless work until the end: it takes a lease whenever it can get one, and
// settles it after its verdict. A message begins when it can, but not before its place.
func backlog(a *subject, l limit.Allowance, length time.Duration, p pace) []delivery {
	type flight struct {
		lease uint64
		at    time.Time
		fails bool
	}
	var (
		all    []delivery
		flying []flight
	)
	for now := start; now.Before(start.Add(length)); {
		ans := a.give(l, now)
		if ans.Lease != 0 {
			ready := now.Add(p.between)
			if p.handshake != nil {
				ready = ready.Add(p.handshake())
			}
			begin := now.Add(ans.Begin)
			if begin.Before(ready) {
				begin = ready
			}
			end, fails := begin.Add(p.verdict()), p.fails != nil && p.fails()
			if fails {
				end = ready
			} else {
				all = append(all, delivery{now, begin, end})
			}
			flying = append(flying, flight{ans.Lease, end, fails})
			slices.SortFunc(flying, func(x, y flight) int { return x.at.Compare(y.at) })
			continue
		}
		next := now.Add(ans.Wait)
		if len(flying) > 0 && !flying[0].at.After(next) {
			f := flying[0]
			flying = flying[1:]
			if f.at.After(now) {
				now = f.at
			}
			o := Outcome{Submitted: true, Recipients: 1}
			if f.fails {
				o = Outcome{}
			}
			a.end(f.lease, o, now)
			continue
		}
		now = next
	}
	return all
}

// worst returns the most messages in any period of that length, if each is counted at the
// time that when returns.
func worst(all []delivery, per time.Duration, when func(delivery) time.Time) int {
	times := make([]time.Time, len(all))
	for i, d := range all {
		times[i] = when(d)
	}
	slices.SortFunc(times, time.Time.Compare)
	most := 0
	for i, j := 0, 0; i < len(times); i++ {
		for times[i].Sub(times[j]) >= per {
			j++
		}
		most = max(most, i-j+1)
	}
	return most
}

func TestNeverOverTheLimitAnywhereBetweenBeginningAndVerdict(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := limit.Allowance{
			Messages:    limit.Rate{N: rapid.IntRange(1, 40).Draw(t, "n"), Per: time.Duration(rapid.IntRange(1, 90).Draw(t, "per")) * time.Second},
			Recipients:  limit.Rate{N: 1_000_000, Per: 24 * time.Hour},
			Connections: rapid.IntRange(1, 5).Draw(t, "connections"),
			Ahead:       time.Duration(rapid.IntRange(0, 20).Draw(t, "ahead")) * time.Second,
		}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		upTo := func(label string) func() time.Duration {
			slowest := time.Duration(rapid.IntRange(1, 5000).Draw(t, label)) * time.Millisecond
			return func() time.Duration { return time.Duration(rng.Int64N(int64(slowest))).Truncate(time.Microsecond) }
		}
		failing := rapid.SampledFrom([]float64{0, 0.1, 0.7}).Draw(t, "failing")
		all := backlog(newSubject(), l, 10*l.Messages.Per, pace{verdict: upTo("verdict"), handshake: upTo("handshake"),
			fails: func() bool { return rng.Float64() < failing }})
		for name, when := range map[string]func(delivery) time.Time{
			"beginning": func(d delivery) time.Time { return d.begin },
			"verdict":   func(d delivery) time.Time { return d.verdict },
			"between": func(d delivery) time.Time {
				return d.begin.Add(time.Duration(rng.Int64N(int64(d.verdict.Sub(d.begin)) + 1)))
			},
		} {
			if got := worst(all, l.Messages.Per, when); got > l.Messages.N {
				t.Fatalf("%d messages within %v counted at %s, limit %v", got, l.Messages.Per, name, l.Messages)
			}
		}
	})
}

// TestBacklogUsesTheAllowance: what a backlog uses of the allowance, and of the most that the rule
// allows, which is Per ÷ (Per + the time from a message's beginning to its verdict).
func TestBacklogUsesTheAllowance(t *testing.T) {
	const ms = time.Millisecond
	for _, tc := range []struct {
		name              string
		quickest, slowest time.Duration // verdicts
		handshake         time.Duration // and up to half as much again
		ahead             time.Duration
		failing           float64
		want, ofBound     float64       // shares after the first minute
		longest           time.Duration // wait between leases after the first minute
	}{
		{"quick verdicts", 50 * ms, 150 * ms, 0, 0, 0, 0.997, 0.999, 13 * time.Second},
		{"ordinary verdicts", 500 * ms, 2000 * ms, 0, 0, 0, 0.978, 0.998, 13 * time.Second},
		{"slower ones", 500 * ms, 3000 * ms, 0, 0, 0, 0.969, 0.998, 13 * time.Second}, // 0.9715 is all that there is
		{"and a second to DATA, with its place taken", 500 * ms, 3000 * ms, time.Second, 0, 0, 0.95, 0.975, 13 * time.Second},
		{"slower ones, ahead", 500 * ms, 3000 * ms, 0, 20 * time.Second, 0, 0.971, 0.999, 17 * time.Second},
		{"and a second to DATA", 500 * ms, 3000 * ms, time.Second, 20 * time.Second, 0, 0.97, 0.998, 17 * time.Second},
		{"and two seconds to DATA", 500 * ms, 3000 * ms, 2 * time.Second, 20 * time.Second, 0, 0.97, 0.998, 17 * time.Second},
		{"and every tenth session without a message", 500 * ms, 3000 * ms, 2 * time.Second, 20 * time.Second, 0.1, 0.96, 0.99, 17 * time.Second},
	} {
		rng := rand.New(rand.NewPCG(1, 2))
		draw := func(from, to time.Duration) time.Duration { return from + time.Duration(rng.Int64N(int64(to-from)+1)) }
		l := limit.Microsoft()
		l.Ahead = tc.ahead
		const hours = 5
		all := backlog(newSubject(), l, hours*time.Hour, pace{
			verdict:   func() time.Duration { return draw(tc.quickest, tc.slowest) },
			handshake: func() time.Duration { return draw(tc.handshake, tc.handshake*3/2) },
			fails:     func() bool { return rng.Float64() < tc.failing },
			between:   50 * ms,
		})
		n, longest, uncertain := 0, time.Duration(0), time.Duration(0)
		for i, d := range all {
			if d.begin.Sub(start) < time.Minute {
				continue
			}
			n++
			longest = max(longest, d.lease.Sub(all[i-1].lease))
			uncertain += d.verdict.Sub(d.begin)
		}
		share := float64(n) / (30 * (hours*60 - 1))
		bound := float64(time.Minute) / float64(time.Minute+uncertain/time.Duration(n))
		t.Logf("%s: %.4f of the allowance, %.4f of the bound, longest wait %v", tc.name, share, share/bound, longest)
		if share < tc.want || share/bound < tc.ofBound {
			t.Errorf("%s: %.4f of the allowance and %.4f of the bound used, want %.3f and %.3f", tc.name, share, share/bound, tc.want, tc.ofBound)
		}
		if longest > tc.longest {
			t.Errorf("%s: longest wait between two leases is %v, want at most %v", tc.name, longest, tc.longest)
		}
	}
}

func TestFirstTenLeaveAtOnce(t *testing.T) {
	a, l := newSubject(), limit.Microsoft()
	l.Connections = 100
	for i := range 10 {
		if ans := a.give(l, start); ans.Lease == 0 {
			t.Fatalf("message %d of an idle mailbox waits %v for %s", i+1, ans.Wait, ans.Cause)
		}
	}
	if ans := a.give(l, start); ans.Lease != 0 || ans.Cause != CauseMessages {
		t.Errorf("message 11 at once: %+v, want a wait for messages", ans)
	}
}

func TestLimits(t *testing.T) {
	l := limit.Microsoft()
	for _, tc := range []struct {
		name  string
		setup func(a *subject)
		now   time.Duration
		want  Answer
	}{
		{"idle", func(*subject) {}, 0, Answer{Lease: 1}},
		{"three leases out", func(a *subject) { take(a, l, 3) }, 0, Answer{Wait: pollWait, Cause: CauseConnections}},
		{"a lease came back", func(a *subject) { take(a, l, 3); a.end(2, Outcome{}, start) }, 0, Answer{Lease: 4}},
		{"not submitted does not count", func(a *subject) { sendAt(a, l, 9, 0); take(a, l, 1); a.end(10, Outcome{}, start) }, 0, Answer{Lease: 11}},
		{"full window", func(a *subject) { sendAt(a, l, 30, 0) }, 59 * time.Second, Answer{Wait: time.Second, Cause: CauseMessages}},
		{"window over", func(a *subject) { sendAt(a, l, 30, 0) }, 60 * time.Second, Answer{Lease: 31}},
		{"recipients used", func(a *subject) { sendTo(a, l, 9_951) }, time.Hour, Answer{Wait: 23*time.Hour + 15*time.Minute, Cause: CauseRecipients}},
		{"room for one delivery", func(a *subject) { sendTo(a, l, 9_950) }, time.Hour, Answer{Lease: 2}},
		{"recipients a day later", func(a *subject) { sendTo(a, l, 10_000) }, 24*time.Hour + 15*time.Minute, Answer{Lease: 2}},
	} {
		a := newSubject()
		tc.setup(a)
		if got := a.give(l, start.Add(tc.now)); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

// TestAhead: which places leases get before they begin. Of 30 messages, the verdicts of 28 came at 0
// s, of one at 3 s, and of one at 7 s.
func TestAhead(t *testing.T) {
	const s = time.Second
	plain, l := limit.Microsoft(), limit.Microsoft()
	l.Ahead = 20 * s
	full := func() *subject {
		a := newSubject()
		for i, n := range []int{28, 1, 1} {
			sendAt(a, plain, n, []time.Duration{0, 3 * s, 7 * s}[i])
		}
		return a
	}
	take := func(at ...time.Duration) func(a *subject) {
		return func(a *subject) {
			for _, d := range at {
				a.give(l, start.Add(d))
			}
		}
	}
	for _, tc := range []struct {
		name  string
		setup func(a *subject)
		now   time.Duration
		ahead time.Duration
		want  Answer
	}{
		{"too early", nil, 39 * s, 20 * s, Answer{Wait: s, Cause: CauseMessages}},
		{"in time", nil, 40 * s, 20 * s, Answer{Lease: 31, Begin: 20 * s}},
		{"who cannot wait has to", nil, 40 * s, 0, Answer{Wait: 20 * s, Cause: CauseMessages}},
		{"who can wait for a while", nil, 40 * s, 5 * s, Answer{Wait: 15 * s, Cause: CauseMessages}},
		{"the place is there", nil, 60 * s, 20 * s, Answer{Lease: 31}},
		{"the third of those whose places begin at once", take(50*s, 50*s), 50 * s, 20 * s, Answer{Lease: 33, Begin: 10 * s}},
		{"connections are limited all the same", take(50*s, 50*s, 50*s), 50 * s, 20 * s, Answer{Wait: pollWait, Cause: CauseConnections}},
		{"a verdict that nobody knows is no place", func(a *subject) { // all but one of the places are those of messages under way
			a.done, l.Connections = a.done[:1], 100
			for range 29 {
				a.id++
				a.open[a.id] = hold{at(start.Add(50 * s)), 1}
			}
			a.give(l, start.Add(50*s))
		}, 50 * s, 20 * s, Answer{Wait: pollWait, Cause: CauseMessages}},
		{"a pause has no end that is certain", func(a *subject) { a.pause(at(start.Add(55*s)), PauseOther, "tired") }, 50 * s, 20 * s, Answer{Wait: 5 * s, Cause: CausePaused, Reason: "tired"}},
	} {
		a := full()
		if tc.setup != nil {
			tc.setup(a)
		}
		l := l
		l.Ahead = tc.ahead
		if got := a.give(l, start.Add(tc.now)); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

// TestAheadInOrder: with many places to come, each lease gets the next one; one that ends without a
// message leaves its place to the next lease, and its turn.
func TestAheadInOrder(t *testing.T) {
	const s = time.Second
	l := limit.Microsoft()
	l.Connections, l.Ahead = 100, 20*s
	a := newSubject()
	for i := range 30 {
		sendAt(a, l, 1, time.Duration(i)*s)
	}
	now := start.Add(55 * s)
	for i, want := range []time.Duration{5 * s, 6 * s, 7 * s, 8 * s} {
		if got := a.give(l, now); got.Begin != want || got.Lease == 0 {
			t.Fatalf("lease %d: %+v, want its place after %v", i+1, got, want)
		}
	}
	if u := a.usage(terms{Allowance: l, session: limit.Micros(MaxSession)}, nil, at(now), ledgerTime); u.Messages != 30 || u.Leases != 4 {
		t.Errorf("30 were sent, and 4 wait for their place: %+v", u)
	}
	a.end(a.id, Outcome{}, now)
	if got := a.give(l, now); got.Begin != 8*s {
		t.Errorf("after the last one's end: %+v, want its place after 8s", got)
	}
	for range 30 { // sessions that end without a message put off nobody
		a.end(a.id, Outcome{}, now)
		if got := a.give(l, now); got.Begin != 8*s {
			t.Fatalf("after a session without a message: %+v, want the place after 8s", got)
		}
	}

	b := newSubject()
	sendAt(b, l, 12, 0)
	b.give(l, start)
	first := b.give(l, start)
	for range 30 { // nor where places are free, and only spread
		b.end(b.id, Outcome{}, start)
		if got := b.give(l, start); got.Begin != first.Begin || got.Begin == 0 {
			t.Fatalf("after a session without a message: %+v, want a place after %v", got, first.Begin)
		}
	}
}

// TestWithoutLimits: an account of High Volume Email has connections alone, remembers nothing, rests
// as others do, and counts from the moment on when somebody sets a limit.
func TestWithoutLimits(t *testing.T) {
	a, l := newSubject(), limit.HighVolume()
	for i := range 5000 {
		ans := a.give(l, start.Add(time.Duration(i)*time.Millisecond))
		if ans.Lease == 0 {
			t.Fatalf("message %d: %+v, want a lease", i, ans)
		}
		a.end(ans.Lease, Outcome{Submitted: true, Recipients: 50}, start.Add(time.Duration(i)*time.Millisecond))
	}
	now := start.Add(5 * time.Second)
	if len(a.done)+len(a.sent) > 0 {
		t.Errorf("%d verdicts and %d buckets are kept of what nobody limits", len(a.done), len(a.sent))
	}
	take(a, l, l.Connections)
	if ans := a.give(l, start); ans.Cause != CauseConnections {
		t.Errorf("one more than its connections: %+v", ans)
	}
	a.end(a.id, Outcome{Concurrency: true}, now)
	if got := a.withheld(l.Messages.Per, at(now)); got != 1 {
		t.Errorf("%d connections are withheld after a 432, want 1", got)
	}
	for id := range a.open {
		a.end(id, Outcome{}, now)
	}
	a.pause(at(now.Add(time.Minute)), PauseBlocked, "blocked")
	if ans := a.give(l, now); ans.Cause != CausePaused {
		t.Errorf("paused: %+v", ans)
	}
	l.Messages.N = 1
	later := now.Add(2 * time.Minute)
	for i, want := range []Cause{"", CauseMessages} {
		ans := a.give(l, later)
		if ans.Cause != want {
			t.Errorf("message %d under a new limit of 1: %+v, want %q", i, ans, want)
		}
		a.end(ans.Lease, Outcome{Submitted: true, Recipients: 1}, later)
	}
}

func take(a *subject, l limit.Allowance, n int) {
	for range n {
		a.give(l, start)
	}
}

// sendAt books n messages at a time, past all spreading.
func sendAt(a *subject, l limit.Allowance, n int, after time.Duration) {
	for range n {
		a.id++
		a.limits, a.open[a.id] = l, hold{at(start), MaxDelivery}
		a.end(a.id, Outcome{Submitted: true, Recipients: 1}, start.Add(after))
	}
}

func sendTo(a *subject, l limit.Allowance, recipients int) {
	ans := a.give(l, start)
	a.end(ans.Lease, Outcome{Submitted: true, Recipients: recipients}, start)
}

func TestConnectionsShrinkAndComeBack(t *testing.T) {
	l := limit.Microsoft()
	for _, tc := range []struct {
		name    string
		refused []time.Duration // when a 432 came
		now     time.Duration
		want    int
	}{
		{"never refused", nil, 0, 3},
		{"once", []time.Duration{0}, 0, 2},
		{"twice", []time.Duration{0, time.Second}, time.Second, 1},
		{"never below one", []time.Duration{0, 0, 0, 0, 0}, 0, 1},
		{"just before a period is over", []time.Duration{0, 0}, time.Minute - 1000, 1},
		{"one comes back", []time.Duration{0, 0}, time.Minute, 2},
		{"the other a period later", []time.Duration{0, 0}, 2 * time.Minute, 3},
		{"refused again", []time.Duration{0, 0, 90 * time.Second}, 2 * time.Minute, 1},
	} {
		a := newSubject()
		for _, at := range tc.refused {
			a.id++
			a.limits, a.open[a.id] = l, hold{}
			a.end(a.id, Outcome{Concurrency: true}, start.Add(at))
		}
		u := a.usage(terms{Allowance: l, session: limit.Micros(MaxSession)}, nil, at(start.Add(tc.now)), ledgerTime)
		if got := u.Connections(l); got != tc.want {
			t.Errorf("%s: %d connections in force, want %d", tc.name, got, tc.want)
		}
		got := 0
		for a.give(l, start.Add(tc.now)).Lease != 0 {
			got++
		}
		if got != tc.want {
			t.Errorf("%s: %d leases at one time, want %d", tc.name, got, tc.want)
		}
	}
}

func ledgerTime(i limit.Instant) time.Time { return time.UnixMicro(int64(i)).UTC() }

func TestLeaseThatNobodySettlesExpires(t *testing.T) {
	a, l := newSubject(), limit.Microsoft()
	a.give(l, start)
	for _, tc := range []struct {
		now  time.Duration
		want Usage
	}{
		{MaxSession - time.Microsecond, Usage{Messages: 1, Leases: 1}},
		{MaxSession, Usage{Messages: 1, Recipients: MaxDelivery}},
		{MaxSession + time.Minute, Usage{Recipients: MaxDelivery}},
		{MaxSession + 24*time.Hour + 15*time.Minute, Usage{}},
	} {
		got := a.usage(terms{Allowance: l, session: limit.Micros(MaxSession)}, nil, at(start.Add(tc.now)), ledgerTime)
		if got != tc.want {
			t.Errorf("after %v: %+v, want %+v", tc.now, got, tc.want)
		}
	}
}
