package token

import (
	"hash/fnv"
	"strings"

	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/address"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/lease"
)

// A directory is the [Directory] of one configuration.
type directory struct {
	*Queues
	policy *policy.Rules
	byName map[string]*lease.Mailbox // by policy.Mailbox.Name
	groups bool                      // there are limits that mailboxes have together
}

// NewDirectory makes the directory of a configuration. tokens returns who gives the tokens of a
// credential; it is asked at once, for each mailbox.
func NewDirectory(s *Setup, tokens func(credential string) lease.Tokens) lease.Directory {
	d := &directory{Queues: NewQueues(s.Policy, s.Mailboxes), policy: s.Policy, byName: make(map[string]*lease.Mailbox, len(s.Mailboxes)), groups: len(s.Groups) > 0}
	for _, m := range s.signIn() {
		d.byName[m.Address] = &lease.Mailbox{Address: m.Address, Label: m.Address, Limits: m.Limits, Tokens: tokens(m.Credential), MinLife: m.MinLife}
	}
	return d
}

// Mailboxes implements [Directory].
func (d *directory) Mailboxes(sender string) []*lease.Mailbox {
	a, err := address.Parse(sender)
	if err != nil {
		return nil
	}
	mailboxes, user := d.policy.MailboxesFor(a)
	list := make([]*lease.Mailbox, len(mailboxes))
	onMicrosoft := a.OnMicrosoft() && d.groups
	for i, m := range mailboxes {
		list[i] = d.byName[m.Name]
		if !m.Pattern() && !onMicrosoft {
			continue
		}
		own := *list[i]
		if m.Pattern() {
			own.Address = user.String()
		}
		if onMicrosoft {
			own.Limits.Group, own.Limits.GroupRecipients = lease.GroupOnMicrosoft, limit.MOERA()
		}
		list[i] = &own
	}
	return list
}

// Listed implements [Directory].
func (d *directory) Listed(sender string) string {
	a, err := address.Parse(sender)
	if err != nil {
		return ""
	}
	return d.policy.Listed(a)
}

// External implements [Directory].
func (d *directory) External(rcpt string) bool { return d.policy.External(rcpt) }

// RouteTo implements [Directory].
func (d *directory) RouteTo(rcpt string) string { return destination(d.policy.RouteTo(rcpt)) }

func destination(r *policy.Route) string {
	if r == nil {
		return ""
	}
	return r.Destination()
}

// Queues spreads mail over queues in Postfix, each of which is served in turn: no mailbox holds up
// another, no pool those who may use one of its mailboxes alone, and a sender with a backlog the
// others of its mailbox no more than a queue of its own does. It does not change.
type Queues struct {
	policy    *policy.Rules
	mailboxes map[string]mailboxQueues // by the name of the mailbox
	total     int                      // of all mailboxes together
	places    map[string]int           // by key of a sender: its place among those of its mailbox
	pools     map[string]int           // by poolKey: those after the queues of all mailboxes
}

const (
	// queuesPerHop is how many ways to write one next-hop are used.
	queuesPerHop = 100
	// queuesPerMailbox bounds the look-ups that wait for a lease of one mailbox, each with a
	// connection to Microsoft open: three of each queue, so that with 30 messages a minute none
	// waits much longer than 24 s.
	queuesPerMailbox = 4
	// patternQueues is how many queues the senders of a pattern share.
	patternQueues = 1000
)

// NewQueues numbers the queues of the mailboxes, of which it reads Address and Senders alone.
func NewQueues(p *policy.Rules, mailboxes []Mailbox) *Queues {
	q := &Queues{policy: p, mailboxes: make(map[string]mailboxQueues, len(mailboxes)), places: make(map[string]int), pools: make(map[string]int)}
	for _, pool := range p.Pools() {
		key := poolKey(pool.Mailboxes)
		if _, known := q.pools[key]; !known { // a pool may have several addresses
			q.pools[key] = len(q.pools)
		}
	}
	for i := range mailboxes {
		m := &mailboxes[i]
		n := 0
		for _, s := range m.Senders {
			a, err := address.Parse(s)
			if owners, _ := p.MailboxesFor(a); err != nil || len(owners) != 1 { // those of a pool wait elsewhere
				continue
			}
			q.places[a.Key()] = n
			n++
		}
		own := mailboxQueues{q.total, max(1, min(n, queuesPerMailbox))}
		q.mailboxes[m.Address], q.total = own, q.total+own.n
	}
	return q
}

// mailboxQueues are the numbers of the queues that the senders of a mailbox share.
type mailboxQueues struct{ first, n int }

// poolKey names a pool by its members.
func poolKey(mailboxes []*policy.Mailbox) string {
	names := make([]string, len(mailboxes))
	for i, m := range mailboxes {
		names[i] = m.Name
	}
	return strings.Join(names, " ")
}

// RouteFrom returns transport and next-hop of the way out for an envelope sender, in the queue of
// its own; "" where Postfix's own settings decide.
func (q *Queues) RouteFrom(sender string) string {
	r := q.policy.RouteFrom(sender)
	if r == nil || r.Type != policy.Submission {
		return destination(r)
	}
	a, _ := address.Parse(sender) // the policy could, too
	mailboxes, user := q.policy.MailboxesFor(a)
	i := q.of(mailboxes[0].Name, a)
	switch {
	case len(mailboxes) > 1:
		i = q.total + q.pools[poolKey(mailboxes)]
	case mailboxes[0].Pattern():
		i = q.total + len(q.pools) + hash(user.Key())%patternQueues
	}
	return r.Transport + ":" + queueHop(r.NextHop, i)
}

// PatternHop writes the next-hop for the senders of a pattern, such as "*@contoso.com", where one
// entry of a table has to do for all of them.
func (q *Queues) PatternHop(pattern, nextHop string) string {
	return queueHop(nextHop, q.mailboxes[pattern].first)
}

// SpreadHop writes the next-hop of the i-th of the queues over which a table spreads the senders of
// patterns. They come behind all others. None is a list: Postfix would try its second entry after
// a refused AUTH, and show what came of that.
func (q *Queues) SpreadHop(nextHop string, i int) string {
	return zerosHop(nextHop, min(q.total+len(q.pools), queuesPerHop)+i)
}

// of returns the number of a sender's queue among those of its mailbox.
func (q *Queues) of(mailbox string, sender address.Spec) int {
	place, listed := q.places[sender.Key()]
	if !listed { // an address with a tag, or from tenant.permissions_file
		place = hash(sender.Key())
	}
	own := q.mailboxes[mailbox]
	return own.first + place%own.n
}

func hash(s string) int {
	h := fnv.New32a()
	h.Write([]byte(s))
	return int(h.Sum32())
}

// queueHop writes a next-hop for the i-th queue. Postfix's queue manager keeps queue, concurrency
// and back-off by transport and next-hop *as written*, so that one mailbox's backlog would hold up
// the mail of all others to the same host. Leading zeros make another name of the same port, and
// where these do not suffice, a list of two does (transport(5), since Postfix 3.5), whose second
// entry is the same host once more. So no mailbox needs an entry in master.cf.
func queueHop(nextHop string, i int) string {
	if i < queuesPerHop {
		return zerosHop(nextHop, i)
	}
	return zerosHop(nextHop, i%queuesPerHop) + ", " + zerosHop(nextHop, i/queuesPerHop-1)
}

// zerosHop writes a next-hop with zeros before its port.
func zerosHop(nextHop string, zeros int) string {
	colon := strings.LastIndexByte(nextHop, ':')
	return nextHop[:colon+1] + strings.Repeat("0", zeros) + nextHop[colon+1:]
}
