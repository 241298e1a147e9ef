package limit

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var start = time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)

// delivery is one message of a simulated backlog: lease and verdict.
type delivery struct{ lease, verdict time.Time }

// backlog plays smtp(8) with endless work until the end: it takes a lease whenever it can get one, and
// settles it after the time that verdict returns.
func backlog(a *account, l Limits, length time.Duration, verdict func() time.Duration) []delivery {
	type flight struct {
		lease uint64
		at    time.Time
	}
	var (
		all    []delivery
		flying []flight
	)
	for now := start; now.Before(start.Add(length)); {
		ans := a.take(l, now)
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
			a.settle(f.lease, Outcome{Submitted: true, Recipients: 1}, l.Recipients.Per, now)
			continue
		}
		now = next
	}
	return all
}

// worst returns the most messages in any period of that length, if each is counted at the
// time that at returns.
func worst(all []delivery, per time.Duration, at func(delivery) time.Time) int {
	times := make([]time.Time, len(all))
	for i, d := range all {
		times[i] = at(d)
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
		l := Limits{
			Messages:    Rate{rapid.IntRange(1, 40).Draw(t, "n"), time.Duration(rapid.IntRange(1, 90).Draw(t, "per")) * time.Second},
			Recipients:  Rate{1_000_000, 24 * time.Hour},
			Connections: rapid.IntRange(1, 5).Draw(t, "connections"),
		}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		slowest := time.Duration(rapid.IntRange(1, 5000).Draw(t, "slowest")) * time.Millisecond
		all := backlog(newAccount(), l, 10*l.Messages.Per, func() time.Duration { return time.Duration(rng.Int64N(int64(slowest))) })
		for name, at := range map[string]func(delivery) time.Time{
			"lease":   func(d delivery) time.Time { return d.lease },
			"verdict": func(d delivery) time.Time { return d.verdict },
			"between": func(d delivery) time.Time {
				return d.lease.Add(time.Duration(rng.Int64N(int64(d.verdict.Sub(d.lease)) + 1)))
			},
		} {
			if got := worst(all, l.Messages.Per, at); got > l.Messages.N {
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
		{"quick verdicts", 50 * time.Millisecond, 150 * time.Millisecond, 0.99, 7 * time.Second},
		{"ordinary verdicts", 500 * time.Millisecond, 2 * time.Second, 0.97, 9 * time.Second},
	} {
		rng := rand.New(rand.NewPCG(1, 2))
		l := Microsoft()
		const hours = 1
		all := backlog(newAccount(), l, hours*time.Hour, func() time.Duration {
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
	a, l := newAccount(), Microsoft()
	l.Connections = 100
	for i := range 10 {
		if ans := a.take(l, start); ans.Lease == 0 {
			t.Fatalf("message %d of an idle mailbox waits %v for %s", i+1, ans.Wait, ans.Cause)
		}
	}
	if ans := a.take(l, start); ans.Lease != 0 || ans.Cause != CauseMessages {
		t.Errorf("message 11 at once: %+v, want a wait for messages", ans)
	}
}

func TestLimits(t *testing.T) {
	l := Microsoft()
	for _, tc := range []struct {
		name  string
		setup func(a *account)
		now   time.Duration
		want  Answer
	}{
		{"idle", func(*account) {}, 0, Answer{Lease: 1}},
		{"three leases out", func(a *account) { take(a, l, 3) }, 0, Answer{Wait: pollWait, Cause: CauseConnections}},
		{"a lease came back", func(a *account) { take(a, l, 3); a.settle(2, Outcome{}, 0, start) }, 0, Answer{Lease: 4}},
		{"not submitted does not count", func(a *account) { sendAt(a, l, 9, 0); take(a, l, 1); a.settle(10, Outcome{}, 0, start) }, 0, Answer{Lease: 11}},
		{"full window", func(a *account) { sendAt(a, l, 30, 0) }, 59 * time.Second, Answer{Wait: time.Second, Cause: CauseMessages}},
		{"window over", func(a *account) { sendAt(a, l, 30, 0) }, 60 * time.Second, Answer{Lease: 31}},
		{"recipients used", func(a *account) { book(a, l, 9_951) }, time.Hour, Answer{Wait: 23*time.Hour + 15*time.Minute, Cause: CauseRecipients}},
		{"room for one delivery", func(a *account) { book(a, l, 9_950) }, time.Hour, Answer{Lease: 2}},
		{"recipients a day later", func(a *account) { book(a, l, 10_000) }, 24*time.Hour + 15*time.Minute, Answer{Lease: 2}},
	} {
		a := newAccount()
		tc.setup(a)
		if got := a.take(l, start.Add(tc.now)); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

func take(a *account, l Limits, n int) {
	for range n {
		a.take(l, start)
	}
}

// sendAt books n messages at a time, past all spreading.
func sendAt(a *account, l Limits, n int, at time.Duration) {
	for range n {
		a.serial++
		a.open[a.serial] = start
		a.settle(a.serial, Outcome{Submitted: true, Recipients: 1}, l.Recipients.Per, start.Add(at))
	}
}

func book(a *account, l Limits, recipients int) {
	ans := a.take(l, start)
	a.settle(ans.Lease, Outcome{Submitted: true, Recipients: recipients}, l.Recipients.Per, start)
}
