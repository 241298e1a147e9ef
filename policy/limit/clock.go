package limit

import "time"

// Instant is ledger time: microseconds since 1970 by a clock that never goes back; see clock.
type Instant int64

// Micros returns a duration in units of instant, rounded up: a wait must not end early.
func Micros(d time.Duration) Instant { return Instant((d + time.Microsecond - 1) / time.Microsecond) }

func (i Instant) Duration() time.Duration { return time.Duration(i) * time.Microsecond }

// Clock turns the times that callers tell into ledger time. It never goes back: neither when the
// wall clock is set, nor when callers overtake each other, nor when a new process reads what an old
// one has saved under a clock that was ahead. Then time goes on from the latest, so that nothing
// leaves a window too soon.
type Clock struct {
	Now  Instant
	rest time.Duration // parts of a microsecond that have gone by since then; without them ledger time would lag ever more
	Last time.Time     // what the caller said then
}

// Jitter is how far a wall clock may seem to go back without having been set: calls from several
// goroutines do not arrive in the order in which they looked at the clock.
const Jitter = time.Second

// Read returns the ledger time for the caller's time.
func (c *Clock) Read(now time.Time) Instant {
	if c.Last.IsZero() {
		c.StartAt(now.UnixNano())
		c.Last = now
		return c.Now
	}
	d := now.Sub(c.Last) // monotonic where both readings are
	switch {
	case d > 0:
		c.set(c.Latest() + int64(d))
		c.Last = now
	case d < -Jitter && !(monotonic(now) && monotonic(c.Last)):
		c.Last = now // set back: time goes on from here
	}
	return c.Now
}

// Nanos is read in nanoseconds, in which what clients submit is counted.
func (c *Clock) Nanos(now time.Time) int64 { c.Read(now); return c.Latest() }

// Latest is the time that was read last, in nanoseconds.
func (c *Clock) Latest() int64 { return int64(c.Now.Duration() + c.rest) }

func (c *Clock) set(nanos int64) {
	c.Now, c.rest = Instant(nanos/int64(time.Microsecond)), time.Duration(nanos)%time.Microsecond
}

// StartAt sees to it that time goes on from that many nanoseconds at least.
func (c *Clock) StartAt(nanos int64) { c.set(max(c.Latest(), nanos)) }

// Wall returns what callers call that time, in nanoseconds.
func (c *Clock) Wall(nanos int64) time.Time { return c.Last.Add(time.Duration(nanos - c.Latest())) }

// monotonic reports whether t has a monotonic reading, which no one can set.
func monotonic(t time.Time) bool { return t != t.Round(0) }
