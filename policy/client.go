package policy

import (
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// OnUnauthorized says what becomes of a message whose sender is not authorised.
type OnUnauthorized string

// The values of a client's on_unauthorized.
const (
	Rewrite OnUnauthorized = "rewrite" // send it as the client's from
	Refuse  OnUnauthorized = "reject"  // refuse it
)

// A Client is a device or application that sends to Postfix. Every condition it lists must
// hold: one of the networks, and one of the logins.
type Client struct {
	Name           string
	Networks       []netip.Prefix
	Logins         []string  // SASL logins at Postfix; "*" is any login
	Senders        []Pattern // what it may ask for; empty: every identity of its route
	From           Address   // the identity for senders that are not authorised; may be zero
	OnUnauthorized OnUnauthorized
}

// maySend tells whether the client may ask for the address at all.
func (c *Client) maySend(a Address) bool {
	return len(c.Senders) == 0 || slices.ContainsFunc(c.Senders, func(p Pattern) bool { return p.Match(a) })
}

// A Peer is what Postfix knows of the one who speaks to it.
type Peer struct {
	Addr  netip.Addr // the zero value where Postfix gave none
	Login string     // the SASL login, "" without
}

// String names the peer in a sentence.
func (p Peer) String() string {
	login := "login " + quote(clip(p.Login))
	switch {
	case p.Addr.IsValid() && p.Login != "":
		return p.Addr.String() + " (" + login + ")"
	case p.Addr.IsValid():
		return p.Addr.String()
	case p.Login != "":
		return login
	}
	return "a peer without address or login"
}

const noClient = int(^uint(0) >> 1)

// clientIndex finds the first client of the list that a peer matches, in time that does
// not depend on the number of clients.
//
// Clients with networks alone are in byNetwork: under each prefix stands the
// lowest index among the clients of that prefix and of all that cover it, so that one
// longest-prefix match answers "first in the list". Clients with logins are found by
// login, and only those few are compared one by one.
type clientIndex struct {
	list      []Client
	byNetwork bart.Table[int]
	byLogin   map[string][]int // ascending
	anyLogin  []int            // ascending: clients with login "*"
}

func newClientIndex(list []Client) *clientIndex {
	x := &clientIndex{list: list, byLogin: make(map[string][]int)}
	first := make(map[netip.Prefix]int)
	for i := range list {
		c := &list[i]
		for _, l := range c.Logins {
			if l == "*" {
				x.anyLogin = append(x.anyLogin, i)
				continue
			}
			x.byLogin[l] = append(x.byLogin[l], i)
		}
		if len(c.Logins) > 0 {
			continue
		}
		for _, p := range c.Networks {
			p = p.Masked()
			if have, ok := first[p]; !ok || i < have {
				first[p] = i
				x.byNetwork.Insert(p, i)
			}
		}
	}
	// A narrower network stands for the wider ones around it too.
	lowest := make(map[netip.Prefix]int, len(first))
	for p, i := range first {
		for _, j := range x.byNetwork.Supernets(p) {
			i = min(i, j)
		}
		lowest[p] = i
	}
	for p, i := range lowest {
		x.byNetwork.Insert(p, i)
	}
	return x
}

// find returns the client, or nil.
func (x *clientIndex) find(p Peer) *Client {
	best := noClient
	addr := p.Addr.Unmap().WithZone("")
	if addr.IsValid() {
		if i, ok := x.byNetwork.Lookup(addr); ok {
			best = i
		}
	}
	if p.Login != "" {
		best = x.firstOf(x.byLogin[p.Login], addr, best)
		best = x.firstOf(x.anyLogin, addr, best)
	}
	if best == noClient {
		return nil
	}
	return &x.list[best]
}

// firstOf returns the lowest index below best whose networks, if it has any, hold addr.
func (x *clientIndex) firstOf(candidates []int, addr netip.Addr, best int) int {
	for _, i := range candidates {
		if i >= best {
			return best
		}
		nets := x.list[i].Networks
		if len(nets) == 0 || slices.ContainsFunc(nets, func(n netip.Prefix) bool { return n.Contains(addr) }) {
			return i
		}
	}
	return best
}
