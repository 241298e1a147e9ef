// Package suggest makes from the record of messages a configuration to begin with: which clients
// there are, as whom they send, and through how many mailboxes that would leave.
//
// Nothing it writes lets anybody in who was not seen. Networks: an address stands for itself; a
// prefix takes the place of its addresses where more than half of them were seen as the same client
// and none as another one, and none is wider than an IPv4 /24; of IPv6, whose hosts change their
// addresses, three addresses of a /64 are the /64. This host is 127.0.0.0/8 and ::1. A login is a
// client, and so is the name in a certificate. Senders: a client may ask for those addresses of the
// tenant's domains that it was seen with, the twenty most frequent; all else leaves as its from.
//
// What comes out is read by package config and tried on each message by package policy before anybody
// sees it.
package suggest

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/internal/record"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/address"
)

// A Walk calls f with each message of the record, oldest first. It is walked more than once. The
// message is f's only until it returns.
type Walk func(f func(*record.Message) error) error

// Options say for what to make a suggestion.
type Options struct {
	File    string   // sendas.yaml as it is now
	Present []byte   // its content
	Domains []string // of the tenant; none: those of the file, else the likeliest
	// Wait is how long the last message of a peak may wait for its mailbox, before another mailbox is
	// suggested.
	Wait time.Duration
}

// A Suggestion is a configuration to begin with.
type Suggestion struct {
	Text     string // the whole file
	Replaced []string
	Messages int // that were looked at
	Unplaced int // of peers that cannot be told: without address and login
	Devices  int
	Clients  int
	Boxes    int
}

// ErrNothing is that no message was recorded.
var ErrNothing = errors.New("no message was recorded in that time")

// ErrNoDomain is that no sender is of a domain that a tenant can have.
var ErrNoDomain = errors.New("no message had a sender of a domain that a tenant can have")

// ErrNoCredential is that mailboxes need a credential, and the file, which does not observe, has none.
var ErrNoCredential = errors.New("the file has no credential for mailboxes, and does not observe")

// Make makes a suggestion. The configuration may observe or not.
func Make(walk Walk, o Options) (*Suggestion, error) {
	site, err := config.Parse(o.File, o.Present, config.SkipFiles)
	if err != nil {
		return nil, err
	}
	s := newSeen()
	if err := walk(s.add); err != nil {
		return nil, err
	}
	if s.messages == 0 {
		return nil, ErrNothing
	}
	d, err := s.domains(site, o.Domains)
	if err != nil {
		return nil, err
	}
	p := newPlan(s, d, site)
	if p.credential == "" && !site.Observes() {
		return nil, ErrNoCredential
	}
	if len(p.clients) == 0 {
		return nil, ErrNothing
	}
	rules, err := p.rules(o)
	if err != nil {
		return nil, err
	}
	if err := walk(func(m *record.Message) error { p.weigh(rules, m); return nil }); err != nil {
		return nil, err
	}
	p.pools(o.Wait)
	text, replaced := p.whole(o.Present)
	if _, err := config.Parse(o.File, []byte(text), config.SkipFiles); err != nil {
		return nil, fmt.Errorf("what was made of the record is no configuration: %w", err)
	}
	return &Suggestion{Text: text, Replaced: replaced, Messages: s.messages, Unplaced: s.unplaced, Devices: len(s.peers), Clients: len(p.clients), Boxes: len(p.boxes)}, nil
}

// counts reports whether a message is of interest: what Postfix delivers itself and what ends here
// does not leave.
func counts(m *record.Message) bool {
	return m.Action != string(policy.Pass) && m.Action != record.Discarded
}

// A who is a peer by what it is recognised by: its login, else the name in its certificate, else its
// address.
type who struct {
	login, subject string
	addr           netip.Addr
}

// whoOf returns who a message is of; ok is false where that cannot be told.
func whoOf(m *record.Message) (w who, ok bool) {
	switch {
	case usable(m.Login) && m.Login != "*": // which means any login
		w.login = m.Login
	case usable(m.Subject) && policy.SubjectFault(m.Subject) == "":
		w.subject = strings.ToLower(m.Subject)
	case m.Addr.IsValid():
		w.addr = m.Addr.Unmap().WithZone("")
	default:
		return who{}, false
	}
	return w, true
}

// usable reports whether a text is whole: longer ones were cut when they were recorded.
func usable(s string) bool { return s != "" && len(s) < record.MaxText-len("…") }

// A peer is what was seen of one who.
type peer struct {
	who
	messages int
	senders  map[string]*sender // by key
	names    map[string]int     // in DNS
	helos    map[string]int
	last     time.Time
}

// A sender is an address that was asked for.
type sender struct {
	text     string
	addr     address.Spec // zero where it cannot be a sender of the tenant's
	messages int
}

// maxSenders is how many senders of a peer are kept apart: those of a program that makes one up for
// each message are not worth more.
const maxSenders = 2000

// seen is what the record says.
type seen struct {
	messages    int
	unplaced    int
	first, last time.Time
	peers       map[who]*peer
	rcpts       map[string]int // recipients by domain
}

func newSeen() *seen { return &seen{peers: make(map[who]*peer), rcpts: make(map[string]int)} }

// add takes a message.
func (s *seen) add(m *record.Message) error {
	if !counts(m) {
		return nil
	}
	s.messages++
	if s.first.IsZero() {
		s.first = m.Time
	}
	s.last = m.Time
	for _, r := range m.Recipients {
		if i := strings.LastIndexByte(r, '@'); i >= 0 {
			s.rcpts[address.ASCIIDomain(r[i+1:])]++
		}
	}
	w, ok := whoOf(m)
	if !ok {
		s.unplaced++
		return nil
	}
	p := s.peers[w]
	if p == nil {
		p = &peer{who: w, senders: make(map[string]*sender), names: make(map[string]int), helos: make(map[string]int)}
		s.peers[w] = p
	}
	p.messages++
	p.last = m.Time
	note(p.names, m.PTR)
	note(p.helos, m.HELO)
	p.asked(cmp.Or(m.From, m.Sender))
	return nil
}

// note counts a name, of which a peer has few.
func note(names map[string]int, name string) {
	if _, known := names[name]; name != "" && (known || len(names) < 20) {
		names[name]++
	}
}

// asked notes a sender.
func (p *peer) asked(text string) {
	x := sender{text: text}
	key := text
	if a, err := address.ParseOwn(text); err == nil && !meansMore(a) {
		x.addr, key = a, a.Key()
	}
	have := p.senders[key]
	if have == nil {
		if len(p.senders) >= maxSenders {
			key, x = "", sender{text: "others"}
		}
		if have = p.senders[key]; have == nil {
			have = &x
			p.senders[key] = have
		}
	}
	have.messages++
}

// meansMore reports whether an address, written into the configuration, would stand for others: as a
// pattern, or as a template of from.
func meansMore(a address.Spec) bool { return strings.ContainsAny(a.Local, "*{}") }

// sorted returns senders, the most frequent first.
func sorted(m map[string]*sender) []*sender {
	list := make([]*sender, 0, len(m))
	for _, x := range m {
		list = append(list, x)
	}
	slices.SortFunc(list, func(a, b *sender) int { return cmp.Or(b.messages-a.messages, cmp.Compare(a.text, b.text)) })
	return list
}

// domains are those that a tenant has, or may have.
type domains struct {
	list    []string // the first is the main one
	guessed bool
	others  []string // that a person may know to be the tenant's too, with how many messages
}

func (d *domains) own(a address.Spec) bool {
	return !a.IsZero() && slices.Contains(d.list, address.ASCIIDomain(a.Domain))
}

// domains returns the tenant's: those that are told, else those of the configuration, else the one
// with most messages of those that get mail as well, else of all.
func (s *seen) domains(site *config.Site, told []string) (*domains, error) {
	d := &domains{}
	for _, name := range told {
		d.list = append(d.list, address.ASCIIDomain(name))
	}
	if len(d.list) == 0 && site.Policy != nil {
		d.list = site.Policy.Domains()
	}
	sent := make(map[string]int)
	for _, p := range s.peers {
		for _, x := range p.senders {
			if name := address.ASCIIDomain(x.addr.Domain); !x.addr.IsZero() && possible(name) {
				sent[name] += x.messages
			}
		}
	}
	names := make([]string, 0, len(sent))
	for name := range sent {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(sent[b]-sent[a], cmp.Compare(a, b)) })
	if len(d.list) == 0 {
		if len(names) == 0 {
			return nil, ErrNoDomain
		}
		main := names[0]
		for _, name := range names {
			if s.rcpts[name] > 0 {
				main = name
				break
			}
		}
		d.list, d.guessed = []string{main}, true
	}
	slices.SortStableFunc(d.list, func(a, b string) int { return sent[b] - sent[a] })
	for _, name := range names {
		if !slices.Contains(d.list, name) && len(d.others) < 10 {
			d.others = append(d.others, fmt.Sprintf("%s (%s)", name, plural(sent[name], "message")))
		}
	}
	return d, nil
}

// nobodys are the ends of names that no tenant has: special ones (RFC 6761, RFC 6762 and what is
// used like them), and those of Microsoft's for tenants, from which few may be reached.
var nobodys = []string{"local", "localdomain", "localhost", "lan", "internal", "intranet", "private", "home", "corp", "invalid", "test", "arpa", "onion", "onmicrosoft.com"}

// free are providers of mailboxes for everybody.
var free = []string{"gmail.com", "googlemail.com", "outlook.com", "hotmail.com", "live.com", "msn.com", "yahoo.com", "icloud.com", "me.com", "aol.com", "gmx.de", "gmx.net", "gmx.com", "web.de", "t-online.de", "mail.com", "proton.me"}

// possible reports whether a tenant can have a domain.
func possible(name string) bool {
	return address.ValidDomain(name) && !slices.Contains(free, name) && !slices.ContainsFunc(nobodys, func(end string) bool {
		return name == end || strings.HasSuffix(name, "."+end)
	})
}
