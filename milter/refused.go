package milter

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/internal/plaintext"
	"github.com/sendas/sendas/policy"
)

const (
	// refusalsKept is how many refusals are remembered, and refusalTime for how long. Strangers can
	// make as many as they like: the oldest goes.
	refusalsKept = 200
	refusalTime  = 24 * time.Hour
)

// A Refusal is what one peer was refused lately, for one reason: turned away for good, or asked to
// come again.
type Refusal struct {
	Addr   string            `json:"addr"`   // of the peer; "" where Postfix gave none
	Login  string            `json:"login"`  // "" without
	Client string            `json:"client"` // "" for a peer that is no client
	Action policy.Action     `json:"action"` // reject or defer
	Reason policy.ReasonCode `json:"reason"`
	Asked  string            `json:"asked"`  // the sender that was wanted, of the last one; it is a stranger's text
	Answer string            `json:"answer"` // what the peer was told
	Count  uint64            `json:"count"`
	First  time.Time         `json:"first"`
	Last   time.Time         `json:"last"`
}

type refusalKey struct {
	addr, login, client string
	action              policy.Action
	reason              policy.ReasonCode
}

// shownRefused is how a stranger's text is kept, which goes onto a page; answers are our own, and
// quote it.
var (
	shownRefused = plaintext.Style{MaxRunes: 100, Cut: "…"}
	shownAnswer  = plaintext.Style{MaxRunes: 300, Cut: "…"}
)

// refused remembers that a peer was refused.
func (t *Tally) refused(p policy.Peer, client, asked string, a policy.Action, reason policy.ReasonCode, answer string, now time.Time) {
	if t == nil || a != policy.Reject && a != policy.Defer {
		return
	}
	k := refusalKey{login: shownRefused.Line(p.Login), client: client, action: a, reason: reason}
	if p.Addr != (netip.Addr{}) {
		k.addr = p.Addr.Unmap().String()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.refusals[k]
	if r == nil {
		if t.refusals == nil {
			t.refusals = make(map[refusalKey]*Refusal)
		}
		t.makeRoomLocked(now)
		r = &Refusal{Addr: k.addr, Login: k.login, Client: client, Action: a, Reason: reason, First: *moment(now)}
		t.refusals[k] = r
	}
	r.Asked, r.Answer, r.Last = strings.Trim(shownRefused.Line(asked), "<>"), shownAnswer.Line(answer), *moment(now)
	r.Count++
}

// makeRoomLocked forgets what was long ago and, where there is no place, what was longest ago; t.mu
// is held.
func (t *Tally) makeRoomLocked(now time.Time) {
	var oldest refusalKey
	for k, r := range t.refusals {
		if now.Sub(r.Last) >= refusalTime {
			delete(t.refusals, k)
		} else if o := t.refusals[oldest]; o == nil || r.Last.Before(o.Last) {
			oldest = k
		}
	}
	if len(t.refusals) >= refusalsKept {
		delete(t.refusals, oldest)
	}
}

// refusedLately returns what was refused lately, the last first.
func (t *Tally) refusedLately(now time.Time) []Refusal {
	list := []Refusal{}
	if t == nil {
		return list
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.refusals {
		if now.Sub(r.Last) < refusalTime {
			list = append(list, *r)
		}
	}
	slices.SortFunc(list, func(a, b Refusal) int {
		return cmp.Or(b.Last.Compare(a.Last), cmp.Compare(b.Count, a.Count), cmp.Compare(a.Addr, b.Addr), cmp.Compare(a.Client, b.Client), cmp.Compare(a.Login, b.Login),
			cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Action, b.Action))
	})
	return list
}
