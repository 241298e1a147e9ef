package quota

import (
	"math"
	"time"

	"github.com/sendas/sendas/policy/limit"
)

// slotsPerPeriod bounds how inexact a sliding window of a [Counts] is: see [slots].
const slotsPerPeriod = 12

// slots counts what has happened in the last period, in stretches of a twelfth of it.
//
// The error is to the safe side and bounded. What is counted leaves the window no sooner than a
// whole period after it happened, and at most a twelfth of the period (5 s of a minute, two hours
// of a day) later: a stretch leaves as a whole, a period after the last that was counted in it. So
// what comes at once or far apart leaves on time; its moment is kept to a 3072nd of the period,
// rounded up. It takes 80 bytes.
type slots struct {
	newest int64                      // number of the stretch that count[0] is of, from 1970 on
	count  [slotsPerPeriod + 1]uint32 // the newest first
	last   [slotsPerPeriod + 1]uint8  // where in its stretch the last was counted, in 256ths, rounded down
}

// slotWidth is the length of a stretch, rounded up so that the period has no more than
// slotsPerPeriod of them.
func slotWidth(per time.Duration) int64 {
	return max(1, (int64(per)+slotsPerPeriod-1)/slotsPerPeriod)
}

// add counts n at the time now, in nanoseconds since 1970, which must not be before the one of the
// last call.
func (s *slots) add(per time.Duration, n int, now int64) {
	width := slotWidth(per)
	number := now / width
	if k := number - s.newest; k > 0 {
		s.shift(k)
		s.newest = number
	}
	s.count[0] = uint32(min(int64(s.count[0])+int64(n), math.MaxUint32))
	s.last[0] = uint8((now - number*width) * 256 / width)
}

// shift makes room for the k newest stretches.
func (s *slots) shift(k int64) {
	if k > slotsPerPeriod {
		s.count, s.last = [slotsPerPeriod + 1]uint32{}, [slotsPerPeriod + 1]uint8{}
		return
	}
	copy(s.count[k:], s.count[:])
	copy(s.last[k:], s.last[:])
	clear(s.count[:k])
	clear(s.last[:k])
}

// leaves returns when stretch i has left the window.
func (s *slots) leaves(i int, per time.Duration) int64 {
	width := slotWidth(per)
	within := ((int64(s.last[i])+1)*width + 255) / 256
	return (s.newest-int64(i))*width + within + int64(per)
}

// used returns how much is in the window.
func (s *slots) used(per time.Duration, now int64) int64 {
	var n int64
	for i, c := range s.count {
		if c > 0 && s.leaves(i, per) > now {
			n += int64(c)
		}
	}
	return n
}

// opens returns when the window, with that much more in it, has room for need; now if it has room
// already, neverOpens where even an empty one has not. What is held leaves a period from now, if it
// is counted now.
func (s *slots) opens(r limit.Rate, held, need, now int64) int64 {
	if need > int64(r.N) {
		return neverOpens
	}
	total := s.used(r.Per, now) + held
	if total+need <= int64(r.N) {
		return now
	}
	for i := len(s.count) - 1; i >= 0; i-- {
		leaves := s.leaves(i, r.Per)
		if s.count[i] == 0 || leaves <= now {
			continue
		}
		if total -= int64(s.count[i]); total+need <= int64(r.N) {
			return leaves
		}
	}
	return now + int64(r.Per)
}

// neverOpens is a time that does not come.
const neverOpens = math.MaxInt64
