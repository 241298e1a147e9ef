package limit

import "time"

// instant is ledger time: microseconds since 1970 by a clock that never goes back; see clock.
type instant int64

// micros returns a duration in units of instant, rounded up: a wait must not end early.
func micros(d time.Duration) instant { return instant((d + time.Microsecond - 1) / time.Microsecond) }

func (i instant) duration() time.Duration { return time.Duration(i) * time.Microsecond }

// clock turns the times that callers tell into ledger time.
type clock struct {
	now  instant
	last time.Time // what the caller said then
}

// jitter is how far a wall clock may seem to go back without having been set: calls from several
// goroutines do not arrive in the order in which they looked at the clock.
const jitter = time.Second

// read returns the ledger time for the caller's time.
func (c *clock) read(now time.Time) instant {
	if c.last.IsZero() {
		c.now, c.last = max(c.now, instant(now.UnixMicro())), now
		return c.now
	}
	d := now.Sub(c.last) // monotonic where both readings are
	switch {
	case d > 0:
		c.now += instant(d / time.Microsecond)
		// What the rounding cut off stays due, or ledger time would lag ever more.
		c.last = now.Add(-(d % time.Microsecond))
	case d < -jitter && !(monotonic(now) && monotonic(c.last)):
		c.last = now // set back: time goes on from here
	}
	return c.now
}

// monotonic tells whether t has a monotonic reading, which no one can set.
func monotonic(t time.Time) bool { return t != t.Round(0) }
