package policy

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"

	"github.com/sendas/sendas/policy/address"
)

// A Client is a device or application that sends to Postfix. Every kind of condition it lists must
// hold: one of the networks, one of the logins, one of the certificates' subjects, one of the
// fingerprints.
type Client struct {
	Name           string
	Networks       []netip.Prefix
	Logins         []string          // SASL logins at Postfix; "*" is any login
	Subjects       []string          // common names of client certificates that Postfix trusts; lower case
	Fingerprints   []string          // of client certificates or their public keys; as [fingerprint] writes them
	Senders        []address.Pattern // what it may ask for; empty: every identity of its route
	From           address.Spec      // the identity for senders that are not authorised, without its template; may be zero
	OnUnauthorized OnUnauthorized
	Route          *Route

	from        fallback
	displayName string       // template; "" keeps the name
	replyTo     address.Spec // zero: the original sender
	noReplyTo   bool
	own         bool // this host itself, which may ask for nothing: see [OwnClient]
}

// maySend reports whether the client may ask for the address at all.
func (c *Client) maySend(a address.Spec) bool {
	return len(c.Senders) == 0 || slices.ContainsFunc(c.Senders, func(p address.Pattern) bool { return p.Match(a) })
}

// A Peer is what Postfix knows of the one who speaks to it.
type Peer struct {
	Addr    netip.Addr // the zero value where Postfix gave none
	Login   string     // the SASL login, "" without
	Subject string     // common name of the client certificate, "" unless Postfix trusts the certificate
	// Fingerprint and KeyFingerprint are those of the client certificate, trusted or not.
	Fingerprint, KeyFingerprint string
	// NoFingerprint tells that there may be a certificate whose fingerprint nobody told us.
	NoFingerprint bool
	// Port is that of the peer's connection, 0 where there is none: Postfix itself and sendmail(1)
	// hand mail to cleanup(8) without SMTP.
	Port uint16
}

// String names the peer in a sentence.
func (p Peer) String() string {
	var list []string
	if p.Login != "" {
		list = append(list, "login "+address.Quote(address.Clip(p.Login)))
	}
	if p.Subject != "" {
		list = append(list, "certificate "+address.Quote(address.Clip(p.Subject)))
	}
	if p.Fingerprint != "" {
		list = append(list, "fingerprint "+address.Clip(p.Fingerprint))
	}
	more := strings.Join(list, ", ")
	switch {
	case !p.Addr.IsValid() && more == "":
		return "a peer without address or login"
	case !p.Addr.IsValid():
		return more
	case more != "":
		return p.Addr.String() + " (" + more + ")"
	}
	return p.Addr.String()
}

// fingerprint returns a fingerprint in the form in which they are compared, and "" for what is
// none: SHA-1, SHA-256, SHA-384 or SHA-512 in hexadecimal, with or without colons. MD5 is none: two
// certificates can be made to have the same.
func fingerprint(s string) string {
	if s == "" {
		return ""
	}
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(s), ":", ""))
	if err != nil || !slices.Contains([]int{20, 32, 48, 64}, len(b)) {
		return ""
	}
	return string(b)
}

// A Shadow is a client that no peer can be: others that come before it in the list match first.
type Shadow struct {
	Client int    // index in the configuration
	By     int    // of one of those others
	What   string // "networks", "logins", "names of certificates" or "fingerprints"
}

// Shadowed returns the clients that can never match, in their order. It looks at what single clients
// before them take away, not at what several networks make up together.
func (p *Rules) Shadowed() (list []Shadow) {
	var networks bart.Table[int]
	logins, subjects, fingerprints := make(map[string]int), make(map[string]int), make(map[string]int)
	for i := range p.clients.list {
		c := &p.clients.list[i]
		if by, what := shadowOf(c, &networks, logins, subjects, fingerprints); what != "" {
			list = append(list, Shadow{i, by, what})
		}
		// A client takes away what it matches by one thing alone.
		switch n, l, s, f := len(c.Networks), len(c.Logins), len(c.Subjects), len(c.Fingerprints); {
		case n > 0 && l+s+f == 0:
			for _, x := range c.Networks {
				networks.Insert(x.Masked(), i)
			}
		case l > 0 && n+s+f == 0:
			take(logins, c.Logins, i)
		case s > 0 && n+l+f == 0:
			take(subjects, c.Subjects, i)
		case f > 0 && n+l+s == 0:
			take(fingerprints, c.Fingerprints, i)
		}
	}
	return list
}

func take(taken map[string]int, keys []string, i int) {
	for _, k := range keys {
		if _, ok := taken[k]; !ok {
			taken[k] = i
		}
	}
}

// shadowOf finds what of a client's conditions can never hold; what is "" where all can.
func shadowOf(c *Client, networks *bart.Table[int], logins, subjects, fingerprints map[string]int) (by int, what string) {
	covered := len(c.Networks) > 0
	for _, x := range c.Networks {
		at, ok := networks.LookupPrefix(x.Masked())
		covered, by = covered && ok, at
	}
	if covered {
		return by, "networks"
	}
	if at, ok := logins["*"]; ok && len(c.Logins) > 0 {
		return at, "logins"
	}
	for _, x := range []struct {
		what  string
		keys  []string
		taken map[string]int
	}{{"logins", c.Logins, logins}, {"names of certificates", c.Subjects, subjects}, {"fingerprints", c.Fingerprints, fingerprints}} {
		all := len(x.keys) > 0
		for _, k := range x.keys {
			at, ok := x.taken[k]
			all, by = all && ok, at
		}
		if all {
			return by, x.what
		}
	}
	return 0, ""
}

const noClient = int(^uint(0) >> 1)

// clientIndex finds the first client of the list that a peer matches, in time that does
// not depend on the number of clients.
//
// Clients with networks alone are in byNetwork: under each prefix stands the
// lowest index among the clients of that prefix and of all that cover it, so that one
// longest-prefix match answers "first in the list". Clients with logins are found by
// login, the others with certificates by these, and only those few are compared one by one.
type clientIndex struct {
	list          []Client
	byNetwork     bart.Table[int]
	byLogin       map[string][]int // ascending
	anyLogin      []int            // ascending: clients with login "*"
	bySubject     map[string][]int // ascending; so is the next
	byFingerprint map[string][]int
	fingerprints  bool // some client wants one
}

func newClientIndex(list []Client) *clientIndex {
	x := &clientIndex{list: list, byLogin: make(map[string][]int), bySubject: make(map[string][]int), byFingerprint: make(map[string][]int)}
	first := make(map[netip.Prefix]int)
	for i := range list {
		c := &list[i]
		x.fingerprints = x.fingerprints || len(c.Fingerprints) > 0
		switch {
		case len(c.Logins) > 0:
			x.addLogins(c.Logins, i)
		case len(c.Fingerprints) > 0:
			enter(x.byFingerprint, c.Fingerprints, i)
		case len(c.Subjects) > 0:
			enter(x.bySubject, c.Subjects, i)
		default:
			for _, p := range c.Networks {
				p = p.Masked()
				if have, ok := first[p]; !ok || i < have {
					first[p] = i
					x.byNetwork.Insert(p, i)
				}
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

func (x *clientIndex) addLogins(logins []string, i int) {
	for _, l := range logins {
		if l == "*" {
			x.anyLogin = append(x.anyLogin, i)
			continue
		}
		x.byLogin[l] = append(x.byLogin[l], i)
	}
}

func enter(index map[string][]int, keys []string, i int) {
	for _, k := range keys {
		index[k] = append(index[k], i)
	}
}

// find returns the client, or nil.
func (x *clientIndex) find(p Peer) *Client {
	best := noClient
	// In the form in which clients list them, once for all that is compared below.
	p.Subject, p.Fingerprint, p.KeyFingerprint = strings.ToLower(p.Subject), fingerprint(p.Fingerprint), fingerprint(p.KeyFingerprint)
	addr := p.Addr.Unmap().WithZone("")
	if addr.IsValid() {
		if i, ok := x.byNetwork.Lookup(addr); ok {
			best = i
		}
	}
	p.Addr = addr
	if p.Login != "" {
		best = x.firstOf(x.byLogin[p.Login], &p, best)
		best = x.firstOf(x.anyLogin, &p, best)
	}
	if p.Subject != "" {
		best = x.firstOf(x.bySubject[p.Subject], &p, best)
	}
	for _, f := range []string{p.Fingerprint, p.KeyFingerprint} {
		if f != "" {
			best = x.firstOf(x.byFingerprint[f], &p, best)
		}
	}
	if best == noClient {
		return nil
	}
	return &x.list[best]
}

// firstOf returns the lowest index below best whose client the peer is.
func (x *clientIndex) firstOf(candidates []int, p *Peer, best int) int {
	for _, i := range candidates {
		if i >= best {
			return best
		}
		if x.list[i].is(p) {
			return i
		}
	}
	return best
}

// is reports whether the peer, as find has prepared it, meets every kind of condition that the
// client lists.
func (c *Client) is(p *Peer) bool {
	has := func(list []string, values ...string) bool {
		return len(list) == 0 || slices.ContainsFunc(values, func(v string) bool { return v != "" && slices.Contains(list, v) })
	}
	network := len(c.Networks) == 0 || slices.ContainsFunc(c.Networks, func(n netip.Prefix) bool { return n.Contains(p.Addr) })
	login := has(c.Logins, p.Login) || p.Login != "" && slices.Contains(c.Logins, "*")
	return network && login && has(c.Subjects, p.Subject) && has(c.Fingerprints, p.Fingerprint, p.KeyFingerprint)
}
