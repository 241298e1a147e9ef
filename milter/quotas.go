package milter

import (
	"sync/atomic"
	"time"

	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/limit"
)

// OnLimit says what becomes of a message that is over its client's limits.
type OnLimit string

// The values of a client's on_limit.
const (
	DeferOver  OnLimit = "defer"  // 451: the client tries again
	RejectOver OnLimit = "reject" // 550
	HoldOver   OnLimit = "hold"   // accepted, and kept in Postfix's hold queue until somebody releases it (postsuper -H)
)

// A ClientLimit is what a client may submit.
type ClientLimit struct {
	Quota   limit.Quota
	OnLimit OnLimit
}

// Quotas counts what clients submit; Server and PolicyServer share one. A client that floods harms only itself:
// Microsoft's own limits are the token service's business, and nobody is refused for them. It is safe for concurrent
// use, and a nil one limits nothing.
type Quotas struct {
	counters *limit.Admission
	rules    atomic.Pointer[map[string]ClientLimit] // by client name
}

// NewQuotas puts the counters to use.
func NewQuotas(a *limit.Admission) *Quotas { return &Quotas{counters: a} }

// Use puts limits into force, by client name. What was counted stays.
func (q *Quotas) Use(rules map[string]ClientLimit) { q.rules.Store(&rules) }

// of returns the limits of a client.
func (q *Quotas) of(client string) (ClientLimit, bool) {
	if q == nil || q.rules.Load() == nil {
		return ClientLimit{}, false
	}
	l, ok := (*q.rules.Load())[client]
	return l, ok
}

// reserve asks for a message with so many recipients. What is reserved must be committed or aborted.
func (q *Quotas) reserve(client string, rcpts int, now time.Time) (*limit.Reservation, *limit.Refusal, OnLimit) {
	l, ok := q.of(client)
	if !ok {
		return nil, nil, ""
	}
	r, no := q.counters.Begin(client, l.Quota, now)
	if no == nil {
		no = r.Recipients(rcpts, now)
	}
	if no != nil {
		r.Abort()
		return nil, no, l.OnLimit
	}
	return r, nil, l.OnLimit
}

// commit counts the message that was reserved.
func (q *Quotas) commit(r *limit.Reservation, now time.Time) *limit.Refusal {
	if r == nil {
		return nil
	}
	return q.counters.Commit(now, r)
}

// foresee tells at RCPT whether one more recipient would be over a limit; what is held is no matter for RCPT.
func (q *Quotas) foresee(client string, now time.Time) *policy.Reply {
	l, ok := q.of(client)
	if !ok || l.OnLimit == HoldOver {
		return nil
	}
	if no := q.counters.Peek(client, l.Quota, 1, now); no != nil {
		return overLimit(no, l.OnLimit, now)
	}
	return nil
}

// overLimit words the refusal: 4.7.1 or 5.7.1, a matter of policy (RFC 3463, section 3.8).
func overLimit(no *limit.Refusal, on OnLimit, now time.Time) *policy.Reply {
	r := &policy.Reply{Code: 451, Enhanced: "4.7.1", Text: limit.Describe(no, now)}
	if on == RejectOver {
		r.Code, r.Enhanced = 550, "5.7.1"
	}
	return r
}
