package limit

import "time"

// admissionClock turns the times that callers pass into nanoseconds since 1970 that never go back: neither when the clock
// is set, nor when callers overtake each other, nor when a new process reads what an old one has saved under a clock that
// was ahead. Then time goes on from the latest, so that nothing leaves a window too soon.
type admissionClock struct {
	last   time.Time // the latest time passed
	latest int64     // what it stands for
}

// admissionJitter is how far callers are expected to overtake each other.
const admissionJitter = time.Second

func (c *admissionClock) read(now time.Time) int64 {
	if c.last.IsZero() {
		c.last, c.latest = now, max(now.UnixNano(), c.latest)
		return c.latest
	}
	d := now.Sub(c.last) // by the monotonic readings where both have one: then no one can have set the clock
	steady := now.Round(0) != now && c.last.Round(0) != c.last
	switch {
	case d > 0:
		c.latest += int64(d)
		c.last = now
	case d < -admissionJitter && !steady:
		c.last = now // set back
	}
	return c.latest
}

// wall returns what callers call that time.
func (c *admissionClock) wall(t int64) time.Time { return c.last.Add(time.Duration(t - c.latest)) }
