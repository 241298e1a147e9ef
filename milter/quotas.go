package milter

import (
	"strings"
	"sync/atomic"
	"time"

	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/limit"
)

// OnLimit says what becomes of a message that is over a limit of its client or its identity.
type OnLimit string

// The values of on_limit.
const (
	DeferOver  = OnLimit(policy.Defer)  // 451: the client tries again
	RejectOver = OnLimit(policy.Reject) // 550
	HoldOver   = OnLimit(policy.Hold)   // accepted, and kept in Postfix's hold queue until somebody releases it (postsuper -H)
)

// A ClientLimit is what a client may submit.
type ClientLimit struct {
	Quota   limit.Quota
	OnLimit OnLimit
}

// An IdentityLimit is what may be submitted as one address, whoever sends as it.
type IdentityLimit struct {
	Address string // or "*@domain": every address of the domain is counted on its own
	Quota   limit.Quota
	OnLimit OnLimit
}

// Quotas counts what clients submit, and what is sent as an identity; Server and PolicyServer share one. A client that floods
// harms only itself: Microsoft's own limits are the token service's business, and nobody is refused for them. It is safe for
// concurrent use, and a nil one limits nothing.
type Quotas struct {
	counters *limit.Admission
	rules    atomic.Pointer[quotaRules]
}

// quotaRules are the limits of one configuration. They never change; a message keeps those that it began with, and what it holds is
// counted under them.
type quotaRules struct {
	clients map[string]ClientLimit // by name
	list    []IdentityLimit
	first   map[string]int // by policy.Address.Key: the first of list
	domains map[string]int // by domain: the first pattern of list that names all of it
	early   bool           // some client has a limit that refuses
}

// NewQuotas puts the counters to use.
func NewQuotas(a *limit.Admission) *Quotas { return &Quotas{counters: a} }

// Use puts limits into force: those of clients by name, and those of identities, of which the first that matches wins. What was counted
// stays.
func (q *Quotas) Use(clients map[string]ClientLimit, identities ...IdentityLimit) {
	r := &quotaRules{clients: clients, list: identities, first: make(map[string]int, len(identities)), domains: make(map[string]int)}
	for _, l := range clients {
		r.early = r.early || l.OnLimit != HoldOver
	}
	for i, l := range identities {
		p, err := policy.ParsePattern(l.Address)
		if err != nil {
			continue // the configuration is checked: nobody can send as such an address
		}
		if d := p.Domain(); d != "" {
			enter(r.domains, d, i)
		} else if key := p.Key(); key != "" {
			enter(r.first, key, i)
		}
	}
	q.rules.Store(r)
}

// enter keeps the first number of a name.
func enter(m map[string]int, name string, i int) {
	if _, taken := m[name]; !taken {
		m[name] = i
	}
}

// inForce returns the limits for a message that begins now, nil where there are none.
func (q *Quotas) inForce() *quotaRules {
	if q == nil {
		return nil
	}
	return q.rules.Load()
}

// early tells whether some limit can refuse a message before its end. The identity is known only then, and what is held is never refused.
func (q *Quotas) early() bool {
	r := q.inForce()
	return r != nil && r.early
}

// of returns the limits of a client.
func (q *Quotas) of(client string) (ClientLimit, bool) { return q.inForce().client(client) }

// Identity returns the limits of an address, for people: those that the milter holds it to.
func (q *Quotas) Identity(a policy.Address) (IdentityLimit, bool) { return q.inForce().identity(a) }

// identities returns the limits of identities in force, in their order.
func (q *Quotas) identities() []IdentityLimit {
	if r := q.inForce(); r != nil {
		return r.list
	}
	return nil
}

// used returns what was counted under a key, of all limits that it has met.
func (q *Quotas) used(key string, now time.Time) []limit.Used { return q.counters.Usage(key, now) }

func (r *quotaRules) client(name string) (ClientLimit, bool) {
	if r == nil {
		return ClientLimit{}, false
	}
	l, ok := r.clients[name]
	return l, ok
}

// identity finds the first entry that names the address, in the same time however many there are.
func (r *quotaRules) identity(a policy.Address) (IdentityLimit, bool) {
	if r == nil || len(r.list) == 0 || a.IsZero() {
		return IdentityLimit{}, false
	}
	key := a.Key()
	i, ok := r.first[key]
	if j, wide := r.domains[key[strings.LastIndexByte(key, '@')+1:]]; wide && (!ok || j < i) {
		i, ok = j, true
	}
	if !ok {
		return IdentityLimit{}, false
	}
	return r.list[i], true
}

// An overrun tells that a message is over a limit; nil is that it is not.
type overrun struct {
	*limit.Refusal
	on     OnLimit
	reason policy.ReasonCode
}

// A booking is what one message holds of its limits, from MAIL to its end. The zero value holds nothing. One goroutine uses it at a time.
type booking struct {
	q        *Quotas
	rules    *quotaRules
	client   string // whose places are held; "" for none
	of       ClientLimit
	places   *limit.Reservation // the client's
	identity *limit.Reservation
	asIs     IdentityLimit // of identity
}

// begin makes room for a booking under the limits in force.
func (q *Quotas) begin() booking { return booking{q: q, rules: q.inForce()} }

// mail asks for the place of one message of a client: at MAIL, or where the client was not known before, at the end.
func (b *booking) mail(client string, now time.Time) *overrun {
	l, ok := b.rules.client(client)
	if !ok {
		return nil
	}
	places, no := b.q.counters.Begin(client, l.Quota, now)
	if no != nil {
		return &overrun{no, l.OnLimit, policy.ReasonClientLimit}
	}
	b.client, b.of, b.places = client, l, places
	return nil
}

// recipients asks for places for n more recipients. What is refused leaves the booking as it was.
func (b *booking) recipients(n int, now time.Time) *overrun {
	if no := b.places.Recipients(n, now); no != nil {
		return &overrun{no, b.of.OnLimit, policy.ReasonClientLimit}
	}
	return nil
}

// refuses tells whether the limits of a client can refuse its message before the end.
func (b *booking) refuses(client string) bool {
	l, ok := b.rules.client(client)
	return ok && l.OnLimit != HoldOver
}

// end asks for all that a message needs, of its client and of its identity, less what it holds already. What is over a limit that refuses is
// told rather than what is only held.
func (b *booking) end(client string, identity policy.Address, rcpts int, now time.Time) *overrun {
	var over *overrun
	if b.client != client { // not known before, or by another one's certificate
		b.places.Abort()
		b.client, b.places = "", nil
		if over = b.mail(client, now); over == nil {
			over = b.recipients(rcpts, now)
		}
		if over != nil && over.on != HoldOver {
			return over
		}
	}
	if l, ok := b.rules.identity(identity); ok {
		key := limit.IdentityKey(identity.Key())
		places, no := b.q.counters.Begin(key, l.Quota, now)
		b.identity, b.asIs = places, l
		if no == nil {
			no = places.Recipients(rcpts, now)
		}
		if no != nil && (over == nil || l.OnLimit != HoldOver) {
			over = &overrun{no, l.OnLimit, policy.ReasonIdentityLimit}
		}
	}
	return over
}

// commit counts the message for its client and its identity, or for none of them. It refuses what others have taken the place of meanwhile.
func (b *booking) commit(now time.Time) *overrun {
	if b.places == nil && b.identity == nil {
		return nil
	}
	no := b.q.counters.Commit(now, b.places, b.identity)
	switch {
	case no == nil:
		return nil
	case b.identity != nil && no.Key != b.client:
		return &overrun{no, b.asIs.OnLimit, policy.ReasonIdentityLimit}
	}
	return &overrun{no, b.of.OnLimit, policy.ReasonClientLimit}
}

// abort gives all places back. It may come at any time, and more than once.
func (b *booking) abort() {
	b.places.Abort()
	b.identity.Abort()
	*b = booking{}
}

// foresee tells at RCPT whether one more recipient would be over a limit; what is held is no matter for RCPT. It passes over the messages
// that are under way: the milter may have reserved the place of the very message that is asked about.
func (q *Quotas) foresee(client string, now time.Time) *policy.Reply {
	l, ok := q.of(client)
	if !ok || l.OnLimit == HoldOver {
		return nil
	}
	if no := q.counters.Peek(client, l.Quota, 1, now); no != nil {
		return (&overrun{no, l.OnLimit, policy.ReasonClientLimit}).reply(now)
	}
	return nil
}

// reply words the refusal: 4.7.1 or 5.7.1, a matter of policy (RFC 3463, section 3.8).
func (o *overrun) reply(now time.Time) *policy.Reply {
	r := &policy.Reply{Code: 451, Enhanced: "4.7.1", Text: limit.Describe(o.Refusal, now)}
	if o.on == RejectOver {
		r.Code, r.Enhanced = 550, "5.7.1"
	}
	return r
}

// action says what becomes of the message.
func (o *overrun) action() policy.Action {
	if o.on == RejectOver || o.on == HoldOver {
		return policy.Action(o.on)
	}
	return policy.Defer
}
