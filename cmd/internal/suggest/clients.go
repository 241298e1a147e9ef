package suggest

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/sendas/sendas/policy/address"
)

// A client is some peers that are one entry of clients:.
type client struct {
	name     string
	peers    []*peer
	networks []network
	logins   []string
	subjects []string
	messages int

	own     []*sender // of the tenant's domains, the most frequent first, and listed
	unowned []*sender // all others, likewise
	from    address.Spec
	load    load
}

// A network is an entry of networks:, and how many of its addresses were seen.
type network struct {
	netip.Prefix
	seen int
}

// groups makes clients of the peers: each login and each certificate is one, this host is one, and
// of the others those that have one kind of name, within one IPv4 /16 or IPv6 /48; where there are no
// names, those that send as the same addresses; where there are none of these either, a /24 or /64.
func (p *plan) groups() {
	byKey := make(map[string]*client)
	for _, x := range p.peersInOrder() {
		key := p.groupOf(x)
		c := byKey[key]
		if c == nil {
			c = &client{}
			byKey[key] = c
			p.clients = append(p.clients, c)
		}
		c.peers = append(c.peers, x)
		c.messages += x.messages
	}
	for _, c := range p.clients {
		c.senders(p.domains)
	}
	rank := func(c *client) int { // those that prove who they are come before those that are somewhere
		switch {
		case c.peers[0].login != "":
			return 0
		case c.peers[0].subject != "":
			return 1
		case c.peers[0].addr.IsLoopback():
			return 2
		}
		return 3
	}
	slices.SortStableFunc(p.clients, func(a, b *client) int { return cmp.Or(rank(a)-rank(b), b.messages-a.messages) })
	p.conditions()
	taken := make(map[string]bool)
	for _, c := range p.clients {
		c.name = unique(taken, c.called())
	}
}

// peersInOrder returns the peers in an order that depends on nothing but them.
func (p *plan) peersInOrder() []*peer {
	return slices.SortedFunc(maps.Values(p.seen.peers), func(a, b *peer) int {
		return cmp.Or(cmp.Compare(a.login, b.login), cmp.Compare(a.subject, b.subject), a.addr.Compare(b.addr))
	})
}

// groupOf returns what the peers of one client have in common.
func (p *plan) groupOf(x *peer) string {
	switch {
	case x.login != "":
		return "login " + x.login
	case x.subject != "":
		return "certificate " + x.subject
	case x.addr.IsLoopback():
		return "this host"
	}
	wide, narrow := 16, 24
	if x.addr.Is6() {
		wide, narrow = 48, 64
	}
	place, _ := x.addr.Prefix(wide)
	if kind := x.kind(); kind != "" {
		return "kind " + kind + " " + place.String()
	}
	var keys []string
	for _, s := range x.senders {
		if p.domains.own(s.addr) {
			keys = append(keys, s.addr.Key())
		}
	}
	if len(keys) > 0 && len(keys) <= maxListed {
		slices.Sort(keys)
		return "senders " + strings.Join(keys, " ") + " " + place.String()
	}
	place, _ = x.addr.Prefix(narrow)
	return "place " + place.String()
}

// senders adds up what the peers have asked for.
func (c *client) senders(d *domains) {
	own, others := make(map[string]*sender), make(map[string]*sender)
	for _, p := range c.peers {
		for key, x := range p.senders {
			to := others
			if d.own(x.addr) {
				to = own
			}
			if to[key] == nil {
				to[key] = &sender{text: x.text, addr: x.addr}
			}
			to[key].messages += x.messages
		}
	}
	c.own, c.unowned = sorted(own), sorted(others)
	if len(c.own) > maxListed {
		c.unowned = append(c.unowned, c.own[maxListed:]...)
		c.own = c.own[:maxListed]
	}
}

// maxListed is how many senders of a client are listed. Who has more sends for people, whose
// addresses are not a device's.
const maxListed = 20

// conditions settles by what each client is recognised.
func (p *plan) conditions() {
	var all []netip.Addr
	of := make(map[netip.Addr]*client)
	for _, c := range p.clients {
		for _, x := range c.peers {
			switch {
			case x.login != "":
				c.logins = append(c.logins, x.login)
			case x.subject != "":
				c.subjects = append(c.subjects, x.subject)
			case !x.addr.IsLoopback():
				all = append(all, x.addr)
				of[x.addr] = c
			case len(c.networks) == 0:
				c.networks = loopback
			}
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	for begin := 0; begin < len(all); {
		block := widest(all[begin])
		end := begin
		for end < len(all) && block.Contains(all[end]) {
			end++
		}
		cover(block, all[begin:end], of)
		begin = end
	}
}

// loopback is this host.
var loopback = []network{{Prefix: netip.MustParsePrefix("127.0.0.0/8")}, {Prefix: netip.MustParsePrefix("::1/128")}}

// seen6 is how many addresses of an IPv6 /64 stand for the /64.
const seen6 = 3

// widest returns the widest network that an address may be in.
func widest(a netip.Addr) netip.Prefix {
	bits := 24
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return p
}

// cover gives the clients of some addresses their networks: the prefix, if it is one client's and
// enough of it was seen, else those of its halves.
func cover(block netip.Prefix, addrs []netip.Addr, of map[netip.Addr]*client) {
	if len(addrs) == 0 {
		return
	}
	c := of[addrs[0]]
	alone := !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return of[a] != c })
	left := block.Addr().BitLen() - block.Bits()
	enough := left < 63 && 2*len(addrs) > 1<<left
	if block.Addr().Is6() && block.Bits() == 64 {
		enough = len(addrs) >= seen6
	}
	if alone && enough {
		c.networks = append(c.networks, network{block, len(addrs)})
		return
	}
	if block.Addr().Is6() { // halves of a /64 say nothing
		for _, a := range addrs {
			of[a].networks = append(of[a].networks, network{netip.PrefixFrom(a, a.BitLen()), 1})
		}
		return
	}
	low := netip.PrefixFrom(block.Addr(), block.Bits()+1)
	n, _ := slices.BinarySearchFunc(addrs, low, func(a netip.Addr, p netip.Prefix) int {
		if p.Contains(a) {
			return -1
		}
		return 1
	})
	cover(low, addrs[:n], of)
	if n < len(addrs) {
		high, _ := addrs[n].Prefix(block.Bits() + 1)
		cover(high, addrs[n:], of)
	}
}

// around returns the narrowest network with all addresses of a client, if it is no wider than an
// IPv4 /16 or IPv6 /48 and no other client was seen in it: what a person may write in its place.
func (p *plan) around(c *client) (netip.Prefix, bool) {
	first, last := c.networks[0].Addr(), c.networks[0].Addr()
	for _, n := range c.networks {
		if n.Addr().Is4() != first.Is4() {
			return netip.Prefix{}, false
		}
		first, last = minAddr(first, n.Addr()), maxAddr(last, n.Addr())
	}
	least := 16
	if first.Is6() {
		least = 48
	}
	for bits := first.BitLen() - 1; bits >= least; bits-- {
		block, _ := first.Prefix(bits)
		if !block.Contains(last) {
			continue
		}
		for _, other := range p.clients {
			if other != c && slices.ContainsFunc(other.networks, func(n network) bool { return block.Overlaps(n.Prefix) }) {
				return netip.Prefix{}, false
			}
		}
		return block, true
	}
	return netip.Prefix{}, false
}

func minAddr(a, b netip.Addr) netip.Addr {
	if b.Less(a) {
		return b
	}
	return a
}

func maxAddr(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return b
	}
	return a
}

// meaningless are first labels that say nothing of what a host is.
var meaningless = []string{"localhost", "unknown", "smtp", "mail", "relay", "host", "none", "test", "ip", "dhcp", "client", "local", "pc", "user", "static", "dyn", "dynamic", "ptr"}

// hostLabel is the first label of a name.
var hostLabel = regexp.MustCompile(`^[a-z][a-z0-9-]{1,39}$`)

// kind returns what kind of host a peer calls itself, or DNS calls it: "mfp" of mfp3.contoso.com and
// mfp-04; "" where no name says so.
func (x *peer) kind() string {
	for _, names := range []map[string]int{x.names, x.helos} {
		best := ""
		for name, n := range names {
			if kindOf(name, x.addr) != "" && (best == "" || n > names[best] || n == names[best] && name < best) {
				best = name
			}
		}
		if best != "" {
			return kindOf(best, x.addr)
		}
	}
	return ""
}

// kindOf takes the number, or serial number, from a name. One made of the address says nothing.
func kindOf(name string, addr netip.Addr) string {
	label, _, _ := strings.Cut(strings.ToLower(name), ".")
	if !hostLabel.MatchString(label) || addr.Is4() && strings.Contains(strings.ToLower(name), strings.ReplaceAll(addr.String(), ".", "-")) {
		return ""
	}
	kind := label
	if i := strings.IndexAny(label, "0123456789"); i >= 0 {
		kind = strings.TrimRight(label[:i], "-")
	}
	if len(kind) < 2 {
		kind = label
	}
	if slices.Contains(meaningless, kind) {
		return ""
	}
	return strings.TrimRight(kind, "-")
}

// called returns a name for the client, which need not be the only one of that name.
func (c *client) called() string {
	x := c.peers[0]
	switch {
	case x.login != "":
		local, _, _ := strings.Cut(x.login, "@")
		return "login-" + plainName(local)
	case x.subject != "":
		return "cert-" + plainName(x.subject)
	case x.addr.IsLoopback():
		return "this-host"
	}
	if kind := x.kind(); kind != "" {
		return kind
	}
	if len(c.peers) == 1 {
		return "host-" + plainName(x.addr.String())
	}
	block := widest(x.addr)
	return "net-" + plainName(strings.TrimSuffix(strings.TrimSuffix(block.Addr().String(), ".0"), "::"))
}

// plainName makes of a text what may stand in a name of clients:.
func plainName(s string) string {
	s = strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '.' || r == '_' {
			return r
		}
		return '-'
	}, s)
	return s[:min(len(s), 40)]
}

// unique makes a name the only one.
func unique(taken map[string]bool, name string) string {
	only := name
	for n := 2; taken[only]; n++ {
		only = fmt.Sprintf("%s-%d", name, n)
	}
	taken[only] = true
	return only
}
