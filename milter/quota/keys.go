package quota

import "fmt"

const (
	// maxKeys is how many keys are kept at most, in some 210 MB. Where each address of a domain is
	// an identity, strangers choose the keys: beyond it one is forgotten for each new one, which
	// lets that one submit more, but keeps no mail from anyone.
	maxKeys = 500_000
	// sweepStep is how many keys each new message looks at, to find those that are idle.
	sweepStep = 2
	// evictStep bounds the search for keys without messages under way.
	evictStep = 8
)

// shapeOfLocked returns the shape of a quota. There are as many as the configuration has different
// quotas, so they are kept for ever.
func (a *Counts) shapeOfLocked(q *Rates) *shape {
	name := fmt.Sprint(q.Messages, q.Recipients)
	s := a.shapes[name]
	if s == nil {
		s = newShape(q.rates())
		a.shapes[name] = s
	}
	return s
}

// enterLocked makes a meter known.
func (a *Counts) enterLocked(m *meter) {
	a.evictLocked()
	m.index = int32(len(a.all))
	a.all = append(a.all, m)
	a.meters[m.key] = m
}

// evictLocked forgets keys until there is room for one more, whatever they have counted. Those with
// messages under way stay; they are few, so what a search finds none for, the next one makes up
// for.
func (a *Counts) evictLocked() {
	for range evictStep {
		if len(a.all) < a.most {
			return
		}
		if m := a.nextLocked(); m.oldest == nil {
			a.removeLocked(m)
		} else {
			a.hand++
		}
	}
}

// sweepLocked looks at the next n keys and forgets those that are idle.
func (a *Counts) sweepLocked(n int, now int64) {
	for range min(n, len(a.all)) {
		if m := a.nextLocked(); m.idle(now) {
			a.removeLocked(m)
		} else {
			a.hand++
		}
	}
}

// nextLocked returns the meter that the hand points to.
func (a *Counts) nextLocked() *meter {
	if a.hand >= len(a.all) {
		a.hand = 0
	}
	return a.all[a.hand]
}

// removeLocked forgets a meter; the last takes its place.
func (a *Counts) removeLocked(m *meter) {
	end := len(a.all) - 1
	a.all[m.index] = a.all[end]
	a.all[m.index].index = m.index
	a.all[end] = nil
	a.all = a.all[:end]
	delete(a.meters, m.key)
	if a.store != nil {
		a.gone[m.key] = struct{}{}
	}
}
