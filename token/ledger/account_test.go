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

// delivery is one message of a simulated backlog: lease and verdict.
type delivery struct{ lease, verdict time.Time }

// backlog plays smtp(8) with endless work until the end: it takes a lease whenever it can get one,
// and settles it after the time that verdict returns.
func backlog(a *subject, l limit.Allowance, length time.Duration, verdict func() time.Duration) []delivery {
	type flight struct {
		lease uint64
		at    time.Time
	}
	var (
		all    []delivery
		flying []flight
	)
	for now := start; now.Before(start.Add(length)); {
		ans := a.give(l, now)
		if ans.Lease != 0 {
			end := now.Add(verdict())
			all = append(all, delivery{now, end})
			flying = append(flying, flight{ans.Lease, end})
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
			a.end(f.lease, Outcome{Submitted: true, Recipients: 1}, now)
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

func TestNeverOverTheLimitAnywhereBetweenLeaseAndVerdict(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := limit.Allowance{
			Messages:    limit.Rate{N: rapid.IntRange(1, 40).Draw(t, "n"), Per: time.Duration(rapid.IntRange(1, 90).Draw(t, "per")) * time.Second},
			Recipients:  limit.Rate{N: 1_000_000, Per: 24 * time.Hour},
			Connections: rapid.IntRange(1, 5).Draw(t, "connections"),
		}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		slowest := time.Duration(rapid.IntRange(1, 5000).Draw(t, "slowest")) * time.Millisecond
		all := backlog(newSubject(), l, 10*l.Messages.Per, func() time.Duration { return time.Duration(rng.Int64N(int64(slowest))).Truncate(time.Microsecond) })
		for name, when := range map[string]func(delivery) time.Time{
			"lease":   func(d delivery) time.Time { return d.lease },
			"verdict": func(d delivery) time.Time { return d.verdict },
			"between": func(d delivery) time.Time {
				return d.lease.Add(time.Duration(rng.Int64N(int64(d.verdict.Sub(d.lease)) + 1)))
			},
		} {
			if got := worst(all, l.Messages.Per, when); got > l.Messages.N {
				t.Fatalf("%d messages within %v counted at %s, limit %v", got, l.Messages.Per, name, l.Messages)
			}
		}
	})
}

func TestBacklogUsesTheAllowance(t *testing.T) {
	for _, tc := range []struct {
		name              string
		quickest, slowest time.Duration
		want              float64       // share of the allowance after the first minute
		longest           time.Duration // wait between leases after the first minute
	}{
		{"quick verdicts", 50 * time.Millisecond, 150 * time.Millisecond, 0.99, 12 * time.Second},
		{"ordinary verdicts", 500 * time.Millisecond, 2 * time.Second, 0.978, 12 * time.Second},
		{"slower ones", 500 * time.Millisecond, 3 * time.Second, 0.97, 12 * time.Second}, // 0.9717 is all that there is
	} {
		rng := rand.New(rand.NewPCG(1, 2))
		l := limit.Microsoft()
		const hours = 1
		all := backlog(newSubject(), l, hours*time.Hour, func() time.Duration {
			return tc.quickest + time.Duration(rng.Int64N(int64(tc.slowest-tc.quickest)))
		})
		n, longest := 0, time.Duration(0)
		for i, d := range all {
			if d.lease.Sub(start) < time.Minute {
				continue
			}
			n++
			longest = max(longest, d.lease.Sub(all[i-1].lease))
		}
		share := float64(n) / (30 * (hours*60 - 1))
		t.Logf("%s: %.4f of the allowance, longest wait %v", tc.name, share, longest)
		if share < tc.want {
			t.Errorf("%s: %.4f of the allowance used, want %.2f", tc.name, share, tc.want)
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
