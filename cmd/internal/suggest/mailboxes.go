package suggest

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/internal/record"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/address"
	"github.com/sendas/sendas/policy/limit"
)

// A plan is a suggestion in the making.
type plan struct {
	seen       *seen
	domains    *domains
	site       *config.Site
	credential string // of all mailboxes; "" where none is known yet
	clients    []*client
	boxes      []*box
	refused    int // messages that would be

	byName    map[string]*client
	byAddress map[string]*box // by address key
}

// A box is a mailbox to begin with: its address and those that it has to have Send As on.
type box struct {
	addr    address.Spec
	sendAs  []address.Spec
	clients []string // that send through it
	made    bool     // nobody was seen with its address
	load    load
	pool    int // how many mailboxes it needs
}

func newPlan(s *seen, d *domains, site *config.Site) *plan {
	p := &plan{seen: s, domains: d, site: site}
	if names := slices.Sorted(maps.Keys(site.Credentials)); len(names) > 0 {
		p.credential = names[0]
		for _, name := range names { // one user's is no other mailbox's
			if c := site.Credentials[name]; !c.Delegated() {
				p.credential = name
				break
			}
		}
	}
	p.groups()
	p.assign()
	return p
}

// assign gives each sender to one client, that which uses it most; those of one client are one
// mailbox, whose address is the most frequent. A client without a sender of the tenant's has a
// mailbox that somebody has to make.
func (p *plan) assign() {
	most := make(map[string]*client)
	used := func(c *client, key string) int {
		for _, x := range c.own {
			if x.addr.Key() == key {
				return x.messages
			}
		}
		return 0
	}
	for _, c := range p.clients {
		for _, x := range c.own {
			key := x.addr.Key()
			if have := most[key]; have == nil || used(c, key) > used(have, key) {
				most[key] = c
			}
		}
	}
	var rest *box
	for _, c := range p.clients {
		var b *box
		for _, x := range c.own {
			switch {
			case most[x.addr.Key()] != c:
			case b == nil:
				b = &box{addr: x.addr, pool: 1}
			default:
				b.sendAs = append(b.sendAs, x.addr)
			}
		}
		if b != nil {
			p.boxes = append(p.boxes, b)
		}
		if len(c.own) > 0 {
			c.from = c.own[0].addr
		}
	}
	for _, c := range p.clients {
		if !c.from.IsZero() {
			continue
		}
		if rest == nil {
			rest = p.spare("relay")
		}
		c.from = rest.addr
	}
}

// spare returns a mailbox with an address that nobody was seen with, or the one whose address that
// is.
func (p *plan) spare(local string) *box {
	a := address.Spec{Local: local, Domain: p.domains.list[0]}
	for _, b := range p.boxes {
		if b.addr.Same(a) {
			return b
		}
	}
	b := &box{addr: a, made: !p.known(a), pool: 1}
	if b.made {
		p.boxes = append(p.boxes, b)
	}
	return b
}

// known reports whether an address is one of a mailbox.
func (p *plan) known(a address.Spec) bool {
	return slices.ContainsFunc(p.boxes, func(b *box) bool {
		return b.addr.Same(a) || slices.ContainsFunc(b.sendAs, a.Same)
	})
}

// rules reads the plan as it would be read, by packages config and policy.
func (p *plan) rules(o Options) (*policy.Rules, error) {
	text, _ := p.whole(o.Present)
	c, err := config.Parse(o.File, []byte(text), config.SkipFiles)
	if err != nil {
		return nil, fmt.Errorf("what was made of the record is no configuration: %w", err)
	}
	p.byName, p.byAddress = make(map[string]*client, len(p.clients)), make(map[string]*box, len(p.boxes))
	for _, c := range p.clients {
		p.byName[c.name] = c
	}
	for _, b := range p.boxes {
		p.byAddress[b.addr.Key()] = b
	}
	return c.Policy, nil
}

// request is a message as it would come to the milter.
func request(m *record.Message) *policy.Request {
	r := &policy.Request{Sender: m.Sender, QueueID: m.Queue, Now: m.Time,
		Peer: policy.Peer{Addr: m.Addr.Unmap(), Login: m.Login, Subject: m.Subject}}
	for _, to := range m.Recipients {
		r.AddRecipient(to, policy.Place{})
	}
	if m.From != "" {
		r.AddField("From", m.From)
	}
	return r
}

// weigh tries a message on the plan, and counts it for the client and the mailbox that it would leave
// through.
func (p *plan) weigh(rules *policy.Rules, m *record.Message) {
	if _, placed := whoOf(m); !placed || !counts(m) {
		return
	}
	d := rules.Decide(request(m))
	if d.Action != policy.Accept {
		p.refused++
		return
	}
	n := max(1, m.Count)
	if c := p.byName[d.Client.Name]; c != nil {
		c.load.add(m.Time, n, 0)
	}
	if b := p.byAddress[d.User.Key()]; b != nil {
		b.load.add(m.Time, n, mostBoxes)
		if !slices.Contains(b.clients, d.Client.Name) {
			b.clients = append(b.clients, d.Client.Name)
		}
	}
}

// mostBoxes is how many mailboxes one may become: beyond it another way out is better.
const mostBoxes = 8

// A load is what was sent in the busiest minute and day, and how long the last message of a peak
// would have waited, with one mailbox, with two, and so on.
type load struct {
	messages int
	minute   peak
	day      peak
	queues   []line
}

// A peak is the most of something in any window of a length.
type peak struct {
	recent []amount // in the window
	sum    int
	most   int
	at     time.Time // of the end of the window with the most
}

type amount struct {
	at time.Time
	n  int
}

// add counts n at a time, which is no earlier than those before, in windows of that length. Times
// are taken together that lie within a step of it.
func (p *peak) add(at time.Time, n int, window time.Duration) {
	step := window / 1440
	if last := len(p.recent) - 1; last >= 0 && at.Sub(p.recent[last].at) < step {
		p.recent[last].n += n
	} else {
		p.recent = append(p.recent, amount{at, n})
	}
	p.sum += n
	gone := 0
	for gone < len(p.recent)-1 && at.Sub(p.recent[gone].at) >= window {
		p.sum -= p.recent[gone].n
		gone++
	}
	p.recent = p.recent[gone:]
	if p.sum > p.most {
		p.most, p.at = p.sum, at
	}
}

// A line is the queue before some mailboxes.
type line struct {
	leaves []time.Time // of the last that left, as many as may in a minute
	next   int         // the oldest of them
	wait   time.Duration
}

// add lets a message leave as soon as it may.
func (l *line) add(at time.Time, most int, per time.Duration) {
	leave := at
	if len(l.leaves) < most {
		l.leaves = append(l.leaves, leave)
	} else {
		if may := l.leaves[l.next].Add(per); may.After(leave) {
			leave = may
		}
		l.leaves[l.next] = leave
		l.next = (l.next + 1) % most
	}
	l.wait = max(l.wait, leave.Sub(at))
}

// add counts a message, and lets it wait before each number of mailboxes up to boxes.
func (l *load) add(at time.Time, rcpts, boxes int) {
	m := limit.Microsoft()
	l.messages++
	l.minute.add(at, 1, m.Messages.Per)
	l.day.add(at, rcpts, m.Recipients.Per)
	if l.queues == nil && boxes > 0 {
		l.queues = make([]line, boxes)
	}
	for i := range l.queues {
		l.queues[i].add(at, (i+1)*m.Messages.N, m.Messages.Per)
	}
}

// needs returns how many mailboxes it takes for nobody to wait longer than that, 0 where more than
// mostBoxes.
func (l *load) needs(wait time.Duration) int {
	most := limit.Microsoft().Recipients.N
	for i := range l.queues {
		if l.queues[i].wait <= wait && l.day.most <= (i+1)*most {
			return i + 1
		}
	}
	if len(l.queues) == 0 {
		return 1
	}
	return 0
}

// pools settles how many mailboxes each has to be.
func (p *plan) pools(wait time.Duration) {
	for _, b := range p.boxes {
		b.pool = cmp.Or(b.load.needs(wait), mostBoxes)
	}
}
