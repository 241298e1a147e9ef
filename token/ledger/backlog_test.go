package ledger

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/policy/limit/redistest"
)

// Every store uses what is allowed: the first ten at once, and then at least 97 % of the allowance,
// with verdicts after a second.
func TestEveryStoreUsesTheAllowance(t *testing.T) {
	var now time.Time // of the simulation
	memory := NewMemory()
	bolt := openBolt(t, filepath.Join(t.TempDir(), "ledger.db"), BoltOptions{noSync: true, now: func() time.Time { return start }})
	shared := openRedis(t, limit.Redis{URL: redistest.Start(t).URL()})
	shared.server = func() limit.Instant { return at(now) }
	shared.mono = func() time.Duration { return now.Sub(start) }
	for _, x := range []Store{memory, bolt, shared} {
		name := fmt.Sprintf("%T", x)
		now = start
		const minutes = 20
		sent, atOnce := simulate(t, x, &now, minutes)
		if atOnce != 10 {
			t.Errorf("%s: %d messages at once, want 10", name, atOnce)
		}
		if share := float64(sent) / (30 * (minutes - 1)); share < 0.97 || share > 1 {
			t.Errorf("%s: %.3f of the allowance after the first minute, want 0.97 to 1", name, share)
		}
	}
}

// simulate sends a backlog, and returns how many leases came after the first minute, and how many
// without any wait.
func simulate(t *testing.T, x Store, now *time.Time, minutes int) (sent, atOnce int) {
	t.Helper()
	l := limit.Microsoft()
	l.Connections = 10
	type flight struct {
		id uint64
		at time.Time
	}
	var flying []flight
	end := start.Add(time.Duration(minutes) * time.Minute)
	for now.Before(end) {
		a, err := x.Take(t.Context(), "erp@contoso.com", l, *now)
		if err != nil {
			t.Fatal(err)
		}
		if a.Lease != 0 {
			flying = append(flying, flight{a.Lease, now.Add(time.Second)})
			if now.Sub(start) >= time.Minute {
				sent++
			} else if now.Equal(start) {
				atOnce++
			}
			continue
		}
		next := now.Add(a.Wait)
		if len(flying) > 0 && !flying[0].at.After(next) {
			*now = flying[0].at
			if err := x.Settle(t.Context(), "erp@contoso.com", flying[0].id, Outcome{Submitted: true, Recipients: 1}, *now); err != nil {
				t.Fatal(err)
			}
			flying = flying[1:]
			continue
		}
		*now = next
	}
	return sent, atOnce
}
