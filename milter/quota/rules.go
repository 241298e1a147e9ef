package quota

import (
	"strings"
	"sync/atomic"
	"time"

	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/address"
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
	Rates   Rates
	OnLimit OnLimit
}

// An IdentityLimit is what may be submitted as one address, whoever sends as it.
type IdentityLimit struct {
	Address string // or "*@domain": every address of the domain is counted on its own
	Rates   Rates
	OnLimit OnLimit
}

// Desk counts what clients submit, and what is sent as an identity; Server and PolicyServer share
// one. A client that floods harms only itself: Microsoft's own limits are the token service's
// business, and nobody is refused for them. It is safe for concurrent use, and a nil one limits
// nothing.
type Desk struct {
	counters *Counts
	current  atomic.Pointer[rules]
}

// rules are the limits of one configuration. They never change; a message keeps those that it began
// with, and what it holds is counted under them.
type rules struct {
	clients map[string]ClientLimit // by name
	list    []IdentityLimit
	first   map[string]int // by policy.Address.Key: the first of list
	domains map[string]int // by domain: the first pattern of list that names all of it
	early   bool           // some client has a limit that refuses
}

// NewDesk puts the counters to use.
func NewDesk(a *Counts) *Desk { return &Desk{counters: a} }

// Use puts limits into force: those of clients by name, and those of identities, of which the first
// that matches wins. What was counted stays.
func (q *Desk) Use(clients map[string]ClientLimit, identities ...IdentityLimit) {
	r := &rules{clients: clients, list: identities, first: make(map[string]int, len(identities)), domains: make(map[string]int)}
	for _, l := range clients {
		r.early = r.early || l.OnLimit != HoldOver
	}
	for i, l := range identities {
		p, err := address.ParsePattern(l.Address)
		if err != nil {
			continue // the configuration is checked: nobody can send as such an address
		}
		if d := p.Domain(); d != "" {
			enter(r.domains, d, i)
		} else if key := p.Key(); key != "" {
			enter(r.first, key, i)
		}
	}
	q.current.Store(r)
}

// enter keeps the first number of a name.
func enter(m map[string]int, name string, i int) {
	if _, taken := m[name]; !taken {
		m[name] = i
	}
}

// inForce returns the limits for a message that begins now, nil where there are none.
func (q *Desk) inForce() *rules {
	if q == nil {
		return nil
	}
	return q.current.Load()
}

// Early reports whether some limit can refuse a message before its end. The identity is known only
// then, and what is held is never refused.
func (q *Desk) Early() bool {
	r := q.inForce()
	return r != nil && r.early
}

// Of returns the limits of a client.
func (q *Desk) Of(client string) (ClientLimit, bool) { return q.inForce().client(client) }

// Identity returns the limits of an address, for people: those that the milter holds it to.
func (q *Desk) Identity(a address.Spec) (IdentityLimit, bool) { return q.inForce().identity(a) }

// Identities returns the limits of identities in force, in their order.
func (q *Desk) Identities() []IdentityLimit {
	if r := q.inForce(); r != nil {
		return r.list
	}
	return nil
}

// Used returns what was counted under a key, of all limits that it has met.
func (q *Desk) Used(key string, now time.Time) []Used { return q.counters.Usage(key, now) }

func (r *rules) client(name string) (ClientLimit, bool) {
	if r == nil {
		return ClientLimit{}, false
	}
	l, ok := r.clients[name]
	return l, ok
}

// identity finds the first entry that names the address, in the same time however many there are.
func (r *rules) identity(a address.Spec) (IdentityLimit, bool) {
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
type Overrun struct {
	*Refusal
	On     OnLimit
	Reason policy.ReasonCode
}

// A booking is what one message holds of its limits, from MAIL to its end. The zero value holds
// nothing. One goroutine uses it at a time.
type Booking struct {
	q        *Desk
	rules    *rules
	Client   string // whose places are held; "" for none
	of       ClientLimit
	Places   *Reservation // the client's
	identity *Reservation
	asIs     IdentityLimit // of identity
}

// Begin makes room for a booking under the limits in force.
func (q *Desk) Begin() Booking { return Booking{q: q, rules: q.inForce()} }

// Mail asks for the place of one message of a client: at MAIL, or where the client was not known
// before, at the end.
func (b *Booking) Mail(client string, now time.Time) *Overrun {
	l, ok := b.rules.client(client)
	if !ok {
		return nil
	}
	places, no := b.q.counters.Begin(client, l.Rates, now)
	if no != nil {
		return &Overrun{no, l.OnLimit, policy.ReasonClientLimit}
	}
	b.Client, b.of, b.Places = client, l, places
	return nil
}

// Recipients asks for places for n more recipients. What is refused leaves the booking as it was.
func (b *Booking) Recipients(n int, now time.Time) *Overrun {
	if no := b.Places.Recipients(n, now); no != nil {
		return &Overrun{no, b.of.OnLimit, policy.ReasonClientLimit}
	}
	return nil
}

// Refuses reports whether the limits of a client can refuse its message before the end.
func (b *Booking) Refuses(client string) bool {
	l, ok := b.rules.client(client)
	return ok && l.OnLimit != HoldOver
}

// End asks for all that a message needs, of its client and of its identity, less what it holds
// already. What is over a limit that refuses is told rather than what is only held.
func (b *Booking) End(client string, identity address.Spec, rcpts int, now time.Time) *Overrun {
	var over *Overrun
	if b.Client != client { // not known before, or by another one's certificate
		b.Places.Abort()
		b.Client, b.Places = "", nil
		if over = b.Mail(client, now); over == nil {
			over = b.Recipients(rcpts, now)
		}
		if over != nil && over.On != HoldOver {
			return over
		}
	}
	if l, ok := b.rules.identity(identity); ok {
		key := IdentityKey(identity.Key())
		places, no := b.q.counters.Begin(key, l.Rates, now)
		b.identity, b.asIs = places, l
		if no == nil {
			no = places.Recipients(rcpts, now)
		}
		if no != nil && (over == nil || l.OnLimit != HoldOver) {
			over = &Overrun{no, l.OnLimit, policy.ReasonIdentityLimit}
		}
	}
	return over
}

// Commit counts the message for its client and its identity, or for none of them. It refuses what
// others have taken the place of meanwhile.
func (b *Booking) Commit(now time.Time) *Overrun {
	if b.Places == nil && b.identity == nil {
		return nil
	}
	no := b.q.counters.Commit(now, b.Places, b.identity)
	switch {
	case no == nil:
		return nil
	case b.identity != nil && no.Key != b.Client:
		return &Overrun{no, b.asIs.OnLimit, policy.ReasonIdentityLimit}
	}
	return &Overrun{no, b.of.OnLimit, policy.ReasonClientLimit}
}

// Abort gives all places back. It may come at any time, and more than once.
func (b *Booking) Abort() {
	b.Places.Abort()
	b.identity.Abort()
	*b = Booking{}
}

// Foresee tells at RCPT whether one more recipient would be over a limit; what is held is no matter
// for RCPT. It passes over the messages that are under way: the milter may have reserved the place
// of the very message that is asked about.
func (q *Desk) Foresee(client string, now time.Time) *policy.Reply {
	l, ok := q.Of(client)
	if !ok || l.OnLimit == HoldOver {
		return nil
	}
	if no := q.counters.Peek(client, l.Rates, 1, now); no != nil {
		return (&Overrun{no, l.OnLimit, policy.ReasonClientLimit}).Reply(now)
	}
	return nil
}

// Reply words the refusal: 4.7.1 or 5.7.1, a matter of policy (RFC 3463, section 3.8).
func (o *Overrun) Reply(now time.Time) *policy.Reply {
	r := &policy.Reply{Code: 451, Enhanced: "4.7.1", Text: Describe(o.Refusal, now)}
	if o.On == RejectOver {
		r.Code, r.Enhanced = 550, "5.7.1"
	}
	return r
}

// Action says what becomes of the message.
func (o *Overrun) Action() policy.Action {
	if o.On == RejectOver || o.On == HoldOver {
		return policy.Action(o.On)
	}
	return policy.Defer
}
