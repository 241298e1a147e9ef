package smtp

import (
	"slices"
	"sort"
	"time"
)

// window counts what happened in sliding periods, exactly. A period is half
// open, (t-length, t]: a limit of 30 a minute allows the next message just one
// minute after the first of 30. The zero value needs a length.
type window struct {
	length time.Duration
	times  []time.Time // ascending
	sums   []int       // sums[i] is the weight of times[0] to times[i]
	worst  int         // the most weight in any period so far
}

// add notes weight n at t. Times may come in any order.
func (w *window) add(t time.Time, n int) {
	i := w.after(t)
	before := 0
	if i > 0 {
		before = w.sums[i-1]
	}
	w.times = slices.Insert(w.times, i, t)
	w.sums = slices.Insert(w.sums, i, before)
	for j := i; j < len(w.sums); j++ {
		w.sums[j] += n
	}
	// Only periods that end less than a length later have it inside, and the
	// worst of them ends with an event.
	for j := i; j < len(w.times) && w.times[j].Sub(t) < w.length; j++ {
		w.worst = max(w.worst, w.at(w.times[j]))
	}
}

// at returns the weight in the period that ends at t.
func (w *window) at(t time.Time) int {
	return w.until(t) - w.until(t.Add(-w.length))
}

// free returns the earliest time, not before now, at which a weight of one
// keeps the period's weight within limit. All weights must be one.
func (w *window) free(now time.Time, limit int) time.Time {
	if w.at(now) < limit {
		return now
	}
	return w.times[w.after(now)-limit].Add(w.length)
}

// until returns the weight up to t, t included.
func (w *window) until(t time.Time) int {
	if i := w.after(t); i > 0 {
		return w.sums[i-1]
	}
	return 0
}

// after returns the index of the first time after t.
func (w *window) after(t time.Time) int {
	return sort.Search(len(w.times), func(i int) bool { return w.times[i].After(t) })
}
