package smtp

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

var epoch = time.Unix(1_800_000_000, 0)

// TestWindow compares with counting one by one; times come in any order.
func TestWindow(t *testing.T) {
	type event struct {
		at     time.Time
		weight int
	}
	rapid.Check(t, func(t *rapid.T) {
		w := window{length: time.Duration(rapid.IntRange(1, 50).Draw(t, "length"))}
		var all []event
		count := func(end time.Time) (n int) {
			for _, e := range all {
				if !e.at.After(end) && e.at.After(end.Add(-w.length)) {
					n += e.weight
				}
			}
			return n
		}
		for range rapid.IntRange(0, 60).Draw(t, "events") {
			e := event{epoch.Add(time.Duration(rapid.IntRange(0, 200).Draw(t, "at"))), rapid.IntRange(1, 5).Draw(t, "weight")}
			all = append(all, e)
			w.add(e.at, e.weight)
			worst := 0
			for end := range 260 {
				worst = max(worst, count(epoch.Add(time.Duration(end))))
			}
			if w.worst != worst {
				t.Fatalf("worst %d, want %d", w.worst, worst)
			}
		}
		end := epoch.Add(time.Duration(rapid.IntRange(-10, 260).Draw(t, "end")))
		if got := w.at(end); got != count(end) {
			t.Fatalf("at %v: %d, want %d", end.Sub(epoch), got, count(end))
		}
	})
}

// TestWindowFree: who takes each place as soon as it is free uses the limit up
// and never passes it.
func TestWindowFree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 5).Draw(t, "limit")
		w := window{length: time.Duration(rapid.IntRange(1, 50).Draw(t, "length"))}
		now := epoch
		for range 40 {
			now = now.Add(time.Duration(rapid.IntRange(0, 20).Draw(t, "pause")))
			free := w.free(now, limit)
			if free.After(now) && w.at(free.Add(-1)) < limit {
				t.Fatalf("free at %v, but a place was there before", free.Sub(epoch))
			}
			now = free
			w.add(now, 1)
		}
		if w.worst > limit {
			t.Fatalf("worst %d of %d", w.worst, limit)
		}
	})
}

// TestWindowEdge: the period is half open.
func TestWindowEdge(t *testing.T) {
	w := window{length: time.Minute}
	w.add(epoch, 1)
	w.add(epoch.Add(time.Minute), 1)
	if w.worst != 1 {
		t.Errorf("two messages just a minute apart: worst %d, want 1", w.worst)
	}
	w.add(epoch.Add(time.Minute-1), 1)
	if w.worst != 2 {
		t.Errorf("a nanosecond less: worst %d, want 2", w.worst)
	}
}
