package limit

import (
	"testing"
	"time"
)

// A time without monotonic reading stands for a clock of which nothing but the wall is known.
func TestClockWithoutMonotonicReading(t *testing.T) {
	for _, tc := range []struct {
		name  string
		walls []time.Duration
		want  time.Duration
	}{
		{"goes on", []time.Duration{0, time.Second, 2 * time.Second}, 2 * time.Second},
		{"calls out of order do not add up", []time.Duration{0, 100, 50, 100, 50, 100}, 0},
		{"out of order by much of a second", []time.Duration{0, time.Second, 500 * time.Millisecond, time.Second}, time.Second},
		{"set back stands still", []time.Duration{0, time.Hour, 0}, time.Hour},
		{"set back and goes on", []time.Duration{0, time.Hour, 0, time.Minute}, time.Hour + time.Minute},
		{"parts of a microsecond are not lost", []time.Duration{0, 700, 1400, 2100, 2800}, 2 * time.Microsecond},
	} {
		var c Clock
		first := c.Read(epoch)
		for _, w := range tc.walls {
			c.Read(epoch.Add(w))
		}
		if got := (c.Now - first).Duration(); got != tc.want {
			t.Errorf("%s: %v went by, want %v", tc.name, got, tc.want)
		}
	}
}

// Counts of clients go in nanoseconds by the same clock.
func TestClockInNanoseconds(t *testing.T) {
	for _, tc := range []struct {
		name  string
		saved int64 // by an earlier process
		want  int64 // what start is then
	}{
		{"a new one", 0, epoch.UnixNano()},
		{"saved before", epoch.Add(-time.Hour).UnixNano(), epoch.UnixNano()},
		{"saved under a clock that was ahead", epoch.Add(time.Hour).UnixNano(), epoch.Add(time.Hour).UnixNano()},
		{"saved with parts of a microsecond", epoch.Add(time.Hour + 1).UnixNano(), epoch.Add(time.Hour + 1).UnixNano()},
	} {
		var c Clock
		c.StartAt(tc.saved)
		if got := c.Nanos(epoch); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
		if got, want := c.Wall(tc.want+int64(time.Minute)), epoch.Add(time.Minute); !got.Equal(want) {
			t.Errorf("%s: in a minute callers call it %v, want %v", tc.name, got, want)
		}
	}
}

// With a monotonic reading the wall does not matter. Time.Add moves both, so the second moment is
// made of the first one's monotonic reading.
func TestClockWithMonotonicReading(t *testing.T) {
	var c Clock
	now := time.Now()
	first := c.Read(now)
	for _, d := range []time.Duration{time.Second, -time.Hour, 2 * time.Second} {
		c.Read(now.Add(d))
	}
	if got := (c.Now - first).Duration(); got != 2*time.Second {
		t.Errorf("%v went by, want 2s: a late call is no clock that was set back", got)
	}
}

// epoch is when the tests begin.
var epoch = time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
