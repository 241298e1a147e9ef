package milter

import (
	"cmp"
	"sync"
	"time"

	"github.com/sendas/sendas/internal/record"
	"github.com/sendas/sendas/milter/queue"
	"github.com/sendas/sendas/milter/quota"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/address"
	"github.com/sendas/sendas/policy/limit"
)

// RecentMinutes is how far back [Recent] looks.
const RecentMinutes = 15

// actions are all that can become of a message; each is a key of the counts, also where nothing was
// counted.
var actions = policy.Actions()

// A Tally counts decisions for [Status]; Server and PolicyServer share one. The zero value is
// ready, a nil one counts nothing. It is safe for concurrent use.
type Tally struct {
	mu      sync.Mutex // guards what follows
	mode    policy.Mode
	clients map[string]*clientTally
	minutes [RecentMinutes]minuteTally // the decisions of minute m of Unix time are at m modulo the length

	refusals map[refusalKey]*Refusal // see refused
}

// clientTally is what became of one client's mail since the start.
type clientTally struct {
	messages map[policy.Action]uint64
	refused  uint64 // recipients, by the policy service
	last     time.Time
}

// minuteTally is what was decided in one minute.
type minuteTally struct {
	minute  int64 // of Unix time
	actions map[policy.Action]uint64
	reasons map[policy.ReasonCode]uint64
}

// use begins anew where the mode changes: what would have been and what was are not added up.
func (t *Tally) use(mode policy.Mode) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mode != mode {
		t.mode, t.clients, t.minutes, t.refusals = mode, nil, [RecentMinutes]minuteTally{}, nil
	}
}

// inForce returns the mode that was put to use.
func (t *Tally) inForce() policy.Mode {
	if t == nil {
		return policy.Enforce
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return cmp.Or(t.mode, policy.Enforce)
}

// message counts a decision on a message. The client is "" for an unknown peer.
func (t *Tally) message(client string, a policy.Action, reason policy.ReasonCode, now time.Time) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.ofLocked(client)
	c.messages[a]++
	c.last = now
	m := t.minuteLocked(now)
	m.actions[a]++
	m.reasons[reason]++
}

// recipient counts a recipient that the policy service refused.
func (t *Tally) recipient(client string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ofLocked(client).refused++
}

// ofLocked returns the counts of a client; t.mu is held. Names come from the configuration, so
// there are few.
func (t *Tally) ofLocked(client string) *clientTally {
	c := t.clients[client]
	if c == nil {
		if t.clients == nil {
			t.clients = make(map[string]*clientTally)
		}
		c = &clientTally{messages: make(map[policy.Action]uint64)}
		t.clients[client] = c
	}
	return c
}

// minuteLocked returns the counts of the minute of now; t.mu is held.
func (t *Tally) minuteLocked(now time.Time) *minuteTally {
	n := now.Unix() / 60
	m := &t.minutes[n%RecentMinutes]
	if m.minute != n || m.actions == nil {
		*m = minuteTally{minute: n, actions: make(map[policy.Action]uint64), reasons: make(map[policy.ReasonCode]uint64)}
	}
	return m
}

// StatusInput is what the composition of the program knows and the milter does not.
type StatusInput struct {
	Version string    // of the program
	Started time.Time // zero when not known
	Clients []string  // names, in the order of the configuration
	Queue   *queue.Status
	Record  *record.Status
}

// Status is what the milter shows of itself. Its JSON keys are stable: later versions add to them
// only. Moments are in UTC; null is "never" or "not known". It holds no secret. Addresses of
// strangers, and what they asked for, are in Refused alone.
type Status struct {
	Version    string           `json:"version"`
	Time       time.Time        `json:"time"` // of this answer
	Started    *time.Time       `json:"started"`
	Mode       policy.Mode      `json:"mode"`       // with observe, all counts are of what would have become of mail; it passed untouched
	Clients    []ClientStatus   `json:"clients"`    // in the order of the configuration
	Unknown    Counts           `json:"unknown"`    // of peers that are no client
	Identities []IdentityStatus `json:"identities"` // those with limits of their own
	Recent     Recent           `json:"recent"`
	Refused    []Refusal        `json:"refused"`          // in the last 24 hours, the last first
	Queue      *queue.Status    `json:"queue"`            // Postfix's; null before it was first read
	Record     *record.Status   `json:"record,omitempty"` // of the milter's half; missing where there is no keeper
}

// Counts are what became of mail since the start.
type Counts struct {
	Messages    map[policy.Action]uint64 `json:"messages"`           // by action: accept, reject, defer, hold
	Refused     uint64                   `json:"refused_recipients"` // at RCPT, before there was a message
	LastMessage *time.Time               `json:"last_message"`
}

// Became returns how many came to an action, as people count: a recipient that was refused is a
// rejection too.
func (c *Counts) Became(a policy.Action) uint64 {
	n := c.Messages[a]
	if a == policy.Reject {
		n += c.Refused
	}
	return n
}

// ClientStatus is the state of one client.
type ClientStatus struct {
	Client string `json:"client"`
	Counts
	OnLimit string        `json:"on_limit"` // defer, reject or hold; "" without limits
	Over    bool          `json:"over"`     // of some limit nothing is left
	Limits  []LimitStatus `json:"limits"`
}

// IdentityStatus is the state of one identity of the configuration that has limits.
type IdentityStatus struct {
	Identity string        `json:"identity"`
	OnLimit  string        `json:"on_limit"` // defer, reject or hold
	Over     bool          `json:"over"`
	Limits   []LimitStatus `json:"limits"`
}

// LimitStatus is what was used of one limit in its window.
type LimitStatus struct {
	Kind     limit.Kind `json:"kind"` // messages or recipients
	Used     int        `json:"used"` // messages under way included
	Left     int        `json:"left"`
	Limit    int        `json:"limit"`
	Window   float64    `json:"window_seconds"`
	UnderWay int        `json:"under_way"` // reserved for messages whose end has not come
}

// Recent is what was decided lately, in whole minutes.
type Recent struct {
	Minutes int                          `json:"minutes"` // how far back it looks
	Actions map[policy.Action]uint64     `json:"actions"`
	Reasons map[policy.ReasonCode]uint64 `json:"reasons"` // those that occurred
}

// Status describes the milter at this moment. The tally and the quotas may be nil.
func (t *Tally) Status(in StatusInput, q *quota.Desk) *Status {
	now := time.Now()
	s := &Status{Version: in.Version, Time: *moment(now), Started: moment(in.Started), Mode: t.inForce(), Clients: make([]ClientStatus, 0, len(in.Clients)),
		Identities: identitiesOf(q, now), Unknown: t.counts(""), Recent: t.recent(now), Refused: t.refusedLately(now), Queue: in.Queue, Record: in.Record}
	for _, name := range in.Clients {
		c := ClientStatus{Client: name, Counts: t.counts(name), Limits: []LimitStatus{}}
		if l, ok := q.Of(name); ok {
			c.OnLimit = string(l.OnLimit)
			c.Limits, c.Over = usageOf(q, name, l.Rates, now)
		}
		s.Clients = append(s.Clients, c)
	}
	return s
}

// counts returns a copy of what was counted for a client.
func (t *Tally) counts(client string) Counts {
	c := Counts{Messages: make(map[policy.Action]uint64, len(actions))}
	for _, a := range actions {
		c.Messages[a] = 0
	}
	if t == nil {
		return c
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	have := t.clients[client]
	if have == nil {
		return c
	}
	for a, n := range have.messages {
		c.Messages[a] = n
	}
	c.Refused, c.LastMessage = have.refused, moment(have.last)
	return c
}

// recent adds the last minutes up.
func (t *Tally) recent(now time.Time) Recent {
	r := Recent{Minutes: RecentMinutes, Actions: make(map[policy.Action]uint64, len(actions)), Reasons: make(map[policy.ReasonCode]uint64)}
	for _, a := range actions {
		r.Actions[a] = 0
	}
	if t == nil {
		return r
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.minutes {
		m := &t.minutes[i]
		if now.Unix()/60-m.minute >= RecentMinutes {
			continue
		}
		for a, n := range m.actions {
			r.Actions[a] += n
		}
		for c, n := range m.reasons {
			r.Reasons[c] += n
		}
	}
	return r
}

// identitiesOf tells of the addresses that have limits. What a pattern stands for is left out:
// strangers choose those addresses.
func identitiesOf(q *quota.Desk, now time.Time) []IdentityStatus {
	list := []IdentityStatus{}
	for _, l := range q.Identities() {
		p, err := address.ParsePattern(l.Address)
		if err != nil || p.Key() == "" {
			continue
		}
		x := IdentityStatus{Identity: l.Address, OnLimit: string(l.OnLimit)}
		x.Limits, x.Over = usageOf(q, quota.IdentityKey(p.Key()), l.Rates, now)
		list = append(list, x)
	}
	return list
}

// usageOf tells what a key has used of the limits in force, and whether nothing is left of one.
// Limits that the key has not met yet are unused.
func usageOf(q *quota.Desk, key string, quota quota.Rates, now time.Time) (list []LimitStatus, over bool) {
	used := q.Used(key, now)
	add := func(k limit.Kind, rates []limit.Rate) {
		for _, r := range rates {
			s := LimitStatus{Kind: k, Limit: r.N, Window: r.Per.Seconds()}
			for _, u := range used {
				if u.Kind == k && u.Rate.Per == r.Per {
					s.Used, s.UnderWay = u.Counted+u.Reserved, u.Reserved
				}
			}
			s.Left = max(0, s.Limit-s.Used)
			over = over || s.Left == 0
			list = append(list, s)
		}
	}
	add(limit.KindMessages, quota.Messages)
	add(limit.KindRecipients, quota.Recipients)
	return list, over
}

// moment makes null of a time that never was, and drops what nobody reads: the monotonic clock and
// parts of a second.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.Round(0).UTC().Truncate(time.Second)
	return &t
}
