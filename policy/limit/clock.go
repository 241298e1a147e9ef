package limit

import "time"

// instant is ledger time: microseconds since 1970 by a clock that never goes back; see clock.
type instant int64

// micros returns a duration in units of instant, rounded up: a wait must not end early.
func micros(d time.Duration) instant { return instant((d + time.Microsecond - 1) / time.Microsecond) }

func (i instant) duration() time.Duration { return time.Duration(i) * time.Microsecond }

// clock turns the times that callers tell into ledger time. It never goes back: neither when the wall clock is set, nor when callers
// overtake each other, nor when a new process reads what an old one has saved under a clock that was ahead. Then time goes on
// from the latest, so that nothing leaves a window too soon.
type clock struct {
	now  instant
	rest time.Duration // parts of a microsecond that have gone by since then; without them ledger time would lag ever more
	last time.Time     // what the caller said then
}

// jitter is how far a wall clock may seem to go back without having been set: calls from several
// goroutines do not arrive in the order in which they looked at the clock.
const jitter = time.Second

// read returns the ledger time for the caller's time.
func (c *clock) read(now time.Time) instant {
	if c.last.IsZero() {
		c.startAt(now.UnixNano())
		c.last = now
		return c.now
	}
	d := now.Sub(c.last) // monotonic where both readings are
	switch {
	case d > 0:
		c.set(c.latest() + int64(d))
		c.last = now
	case d < -jitter && !(monotonic(now) && monotonic(c.last)):
		c.last = now // set back: time goes on from here
	}
	return c.now
}

// nanos is read in nanoseconds, in which an [Admission] counts.
func (c *clock) nanos(now time.Time) int64 { c.read(now); return c.latest() }

// latest is the time that was read last, in nanoseconds.
func (c *clock) latest() int64 { return int64(c.now.duration() + c.rest) }

func (c *clock) set(nanos int64) {
	c.now, c.rest = instant(nanos/int64(time.Microsecond)), time.Duration(nanos)%time.Microsecond
}

// startAt sees to it that time goes on from that many nanoseconds at least.
func (c *clock) startAt(nanos int64) { c.set(max(c.latest(), nanos)) }

// wall returns what callers call that time, in nanoseconds.
func (c *clock) wall(nanos int64) time.Time { return c.last.Add(time.Duration(nanos - c.latest())) }

// monotonic tells whether t has a monotonic reading, which no one can set.
func monotonic(t time.Time) bool { return t != t.Round(0) }
