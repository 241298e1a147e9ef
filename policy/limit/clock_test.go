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
		var c clock
		first := c.read(start)
		for _, w := range tc.walls {
			c.read(start.Add(w))
		}
		if got := (c.now - first).duration(); got != tc.want {
			t.Errorf("%s: %v went by, want %v", tc.name, got, tc.want)
		}
	}
}

// An Admission counts in nanoseconds by the same clock.
func TestClockInNanoseconds(t *testing.T) {
	for _, tc := range []struct {
		name  string
		saved int64 // by an earlier process
		want  int64 // what start is then
	}{
		{"a new one", 0, start.UnixNano()},
		{"saved before", start.Add(-time.Hour).UnixNano(), start.UnixNano()},
		{"saved under a clock that was ahead", start.Add(time.Hour).UnixNano(), start.Add(time.Hour).UnixNano()},
		{"saved with parts of a microsecond", start.Add(time.Hour + 1).UnixNano(), start.Add(time.Hour + 1).UnixNano()},
	} {
		var c clock
		c.startAt(tc.saved)
		if got := c.nanos(start); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
		if got, want := c.wall(tc.want+int64(time.Minute)), start.Add(time.Minute); !got.Equal(want) {
			t.Errorf("%s: in a minute callers call it %v, want %v", tc.name, got, want)
		}
	}
}

// With a monotonic reading the wall does not matter. Time.Add moves both, so the second moment is made
// of the first one's monotonic reading.
func TestClockWithMonotonicReading(t *testing.T) {
	var c clock
	now := time.Now()
	first := c.read(now)
	for _, d := range []time.Duration{time.Second, -time.Hour, 2 * time.Second} {
		c.read(now.Add(d))
	}
	if got := (c.now - first).duration(); got != 2*time.Second {
		t.Errorf("%v went by, want 2s: a late call is no clock that was set back", got)
	}
}

func TestElapsedOverARestart(t *testing.T) {
	s := stamp{wall: start.UnixMicro(), boot: "a", up: time.Hour.Microseconds()}
	for _, tc := range []struct {
		name string
		wall time.Duration
		boot string
		up   time.Duration
		want time.Duration
	}{
		{"same boot", time.Minute, "a", time.Hour + time.Minute, time.Minute},
		{"set forward meanwhile", 48 * time.Hour, "a", time.Hour + time.Minute, time.Minute},
		{"set back meanwhile", -48 * time.Hour, "a", time.Hour + time.Minute, 0},
		{"another boot", 10 * time.Minute, "b", time.Minute, 10 * time.Minute},
		{"another boot with a wrong clock", -10 * time.Minute, "b", time.Minute, 0},
		{"boots unknown", time.Minute, "", 0, time.Minute},
	} {
		got := s.elapsed(start.Add(tc.wall), func() (string, time.Duration) { return tc.boot, tc.up }).duration()
		if got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}
