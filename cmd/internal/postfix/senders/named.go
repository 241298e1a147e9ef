// Package senders writes which senders leave by submission, and in which queue of Postfix, as tables
// that stand in main.cf itself: smtpd(8) looks into them at RCPT, so no service may be needed for it.
package senders

import (
	"regexp"
	"slices"
	"strings"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/address"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token"
)

// Tables are the values of sender_dependent_default_transport_maps of one Postfix. The policy of
// Config is made.
type Tables struct {
	Config    *config.Site
	Transport string // of submission, in master.cf
	All       bool   // all mail leaves by submission, so that one sender needs no table
	Regexp    bool   // a table of regular expressions can stand in main.cf: Postfix 3.7 and newer
}

// Inline is a table in main.cf with such entries, "" where there are none.
func Inline(entries []string) string {
	if len(entries) == 0 {
		return ""
	}
	return "inline:{ " + strings.Join(entries, ", ") + " }"
}

// plainAddress is what can be a key in main.cf: nothing that Postfix would read as syntax.
var plainAddress = regexp.MustCompile(`^[A-Za-z0-9._+/-]+@[A-Za-z0-9.-]+$`)

// MaxNamed is how many addresses a table in main.cf may have before it is no longer readable.
// Mail of others leaves by submission too, but shares one queue.
const MaxNamed = 500

// Named is the table that says which senders leave by submission, "" where nothing has to be said. It does what
// the map "transport" of the token service does, but needs no service: smtpd(8) resolves each
// recipient at RCPT together with the sender, and would answer devices with 451 while the token
// service is down. So the queue absorbs that.
func (t Tables) Named() string {
	c := t.Config
	several := slices.ContainsFunc(c.Mailboxes, func(m config.Mailbox) bool { return m.Pattern() })
	if t.All && !several && len(c.Mailboxes) < 2 && len(Addresses(c)) < 2 {
		return Inline(t.Accounts())
	}
	d := token.NewQueues(c.Policy, members(c))
	var list []string
	for _, a := range Addresses(c) {
		to := d.RouteFrom(a)
		if _, hop, ok := strings.Cut(to, ":"); ok && plainAddress.MatchString(a) {
			list = append(list, "{"+strings.ToLower(a)+" = "+t.Transport+":"+hop+"}")
		}
	}
	if len(list) > MaxNamed {
		list = nil
	}
	return Inline(slices.Concat(t.Accounts(), list, t.domains(d)))
}

// Accounts are the entries for accounts of High Volume Email, each of which has a transport of its own.
func (t Tables) Accounts() []string {
	var list []string
	for _, r := range t.Config.Policy.Routes() {
		if a := strings.ToLower(r.Account.String()); r.Type == policy.HVE && plainAddress.MatchString(a) {
			list = append(list, "{"+a+" = "+r.Destination()+"}")
		}
	}
	return list
}

// domains are the entries for whole domains: those of which each address is a mailbox, and,
// where other mail leaves another way, all that are verified: what the milter lets out is an address
// of one of them, and must not leave that way because the table is older than the configuration.
func (t Tables) domains(d *token.Queues) []string {
	var list []string
	for _, domain := range t.Config.Policy.Domains() {
		r := t.Config.Policy.Routes()[0]
		all := address.WholeDomain(domain).String()
		pattern := slices.ContainsFunc(t.Config.Mailboxes, func(m config.Mailbox) bool { return m.Address == all })
		if !pattern && t.All {
			continue
		}
		hop := r.NextHop
		if pattern {
			hop = d.PatternHop(all, hop)
		}
		list = append(list, "{@"+domain+" = "+t.Transport+":"+hop+"}")
	}
	return list
}

// members is who shares the queues in Postfix.
func members(c *config.Site) []token.Mailbox {
	list := make([]token.Mailbox, len(c.Mailboxes))
	for i := range c.Mailboxes {
		list[i] = token.Mailbox{Address: c.Mailboxes[i].Address, Senders: c.Mailboxes[i].Senders()}
	}
	return list
}

// Addresses returns the addresses that mailboxes may send as, as far as the configuration itself
// names them.
func Addresses(c *config.Site) []string {
	var list []string
	known := make(map[string]bool) // an address of a pool stands at several mailboxes
	for i := range c.Mailboxes {
		for _, a := range c.Mailboxes[i].Senders() {
			if _, pattern := address.CutPattern(a); pattern {
				continue
			}
			if key := strings.ToLower(a); !known[key] {
				known[key] = true
				list = append(list, a)
			}
		}
	}
	return list
}

// Connections is how many messages of one queue may be under way: Microsoft's 3, for each mailbox
// of the largest pool.
func Connections(c *config.Site) int {
	most := 1
	if c.Policy != nil {
		for _, pool := range c.Policy.Pools() {
			most = max(most, len(pool.Mailboxes))
		}
	}
	return limit.Microsoft().Connections * most
}
