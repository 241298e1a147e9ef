package policy

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/sendas/sendas/policy/address"
)

// What a host says itself are Postfix's bounces, which have the null sender, and its notices to the
// postmaster, which come from double-bounce@ the host (postconf(5): double_bounce_sender). After a
// 250 the sender has to hear of a failure (RFC 5321, section 6.1), so such mail has a client and an
// identity on every site, whoever else may send.

// OwnClient is the name of the client for what this host says itself, where no client of the
// settings takes it. With its blank no client of the settings can have it.
const OwnClient = "this host"

// loopback are the addresses under which Postfix hands over what it says itself: cleanup(8) has no
// peer then, and names the first of these families that inet_protocols has.
var loopback = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// notices is who this host is when it speaks itself.
type notices struct {
	identity address.Spec
	client   *Client // one of the settings, or the built-in one
	builtIn  bool
	stated   bool // the settings name the identity; else it was found
}

// speaksItself reports whether mail is of this host itself. That it comes from loopback is no
// proof, so nobody gets more by it than to send as the identity for notices.
func speaksItself(p Peer, sender string) bool {
	if !p.Addr.IsLoopback() || p.Login != "" || p.Subject != "" || p.Fingerprint != "" || p.KeyFingerprint != "" {
		return false
	}
	if isNull(sender) {
		return true
	}
	local, _, ok := strings.Cut(trimAngles(sender), "@")
	return ok && strings.EqualFold(local, "double-bounce")
}

// notice returns the identity of what this host says itself, where what it asks for is none (ok is
// false) or leads astray, and the client has none of its own or the settings say another one. For
// all other mail it returns what was found.
func (p *Rules) notice(r *Request, d *Decision, id identity, ok bool) (identity, bool) {
	c := d.Client
	switch {
	case !speaksItself(r.Peer, r.Sender), ok && !p.astray(r, d, id):
		return id, ok
	case !ok && !p.notices.stated && c.OnUnauthorized == Rewrite && !c.own:
		if own, _ := p.onRoute(d.Route, c.From, d.External != nil); !p.astray(r, d, own) {
			return id, ok
		}
	}
	n, can := p.onRoute(d.Route, p.notices.identity, d.External != nil)
	if !can {
		return id, ok
	}
	d.because(ReasonNotices, n.addr.String(), "")
	return n, true
}

// astray reports whether Postfix leads a message of its own another way than its identity needs. No
// FILTER brings it to a connector: where there are mailboxes it goes by submission, which wants one
// that may send as the identity.
func (p *Rules) astray(r *Request, d *Decision, id identity) bool {
	return d.Route.Type == Connector && r.Peer.Port == 0 && len(p.mailboxes) > 0 && id.mailbox == nil
}

// OwnMail returns the client of programs on this host, such as cron, nil where their mail is
// refused. What Postfix says itself never is. (With IPv6 alone, Postfix calls such a program ::1.)
func (p *Rules) OwnMail() *Client { return p.clients.find(Peer{Addr: loopback[0]}) }

// addNotices settles who this host is when it speaks itself: what the settings name, else the from
// of the client that takes this host's mail, else the only mailbox. Where there are mailboxes, one of
// them has to be able to send as it; see [Rules.astray].
func (b *builder) addNotices(s Settings) {
	const path = "notices"
	n := &b.p.notices
	for _, a := range loopback {
		if n.client == nil {
			n.client = b.p.clients.find(Peer{Addr: a})
		}
	}
	switch {
	case s.Notices != "":
		a, err := b.verified(s.Notices)
		if err != nil {
			b.fail(path, "%v", err)
			return
		}
		n.identity, n.stated = a, true
	case n.client != nil && !n.client.From.IsZero() && b.submits(n.client.From):
		n.identity = n.client.From
	case len(b.p.mailboxes) == 1 && !b.p.mailboxes[0].Pattern():
		n.identity = b.p.mailboxes[0].Address
	case b.p.Observes():
		return // such mail has no client then
	default:
		b.fail(path, "Postfix's own bounces and notices need a sender, and %s; write \"notices: %s\" or another address that may be one, "+
			"or from: at the client with networks: [127.0.0.0/8, \"::1\"]", b.noMailbox(), b.likelyNotices(s))
		return
	}
	if n.client == nil {
		n.client, n.builtIn = &Client{Name: OwnClient, From: n.identity, OnUnauthorized: Rewrite, Route: b.noticesRoute(n.identity), own: true}, true
	}
	if r := n.client.Route; r == nil || !b.takes(r, n.identity) || !b.submits(n.identity) {
		b.fail(path, "no mailbox may send as <%s>; list it under send_as of the mailbox that has the permission", n.identity)
	}
}

// submits reports whether a mailbox may send as the address, or there is none.
func (b *builder) submits(a address.Spec) bool {
	_, ok := b.p.byMailbox(a)
	return ok || len(b.p.mailboxes) == 0
}

// noMailbox says why no mailbox stands for this host.
func (b *builder) noMailbox() string {
	switch len(b.p.mailboxes) {
	case 0:
		return "there is no mailbox"
	case 1:
		return fmt.Sprintf("%s is no single mailbox", b.p.mailboxes[0].Name)
	}
	return fmt.Sprintf("there are %d mailboxes", len(b.p.mailboxes))
}

// likelyNotices returns an address that may stand behind notices.
func (b *builder) likelyNotices(s Settings) string {
	for _, m := range b.p.mailboxes {
		if !m.Pattern() {
			return m.Name
		}
	}
	for i := range b.p.clients.list {
		if c := &b.p.clients.list[i]; !c.From.IsZero() && b.submits(c.From) && b.noticesRoute(c.From) != nil {
			return c.From.String()
		}
	}
	if len(b.p.mailboxes) > 0 { // patterns
		return "postmaster" + strings.TrimPrefix(b.p.mailboxes[0].Name, "*")
	}
	return "postmaster@" + b.p.Domains()[0]
}

// noticesRoute returns the way out of what this host says itself. Such mail passes no policy
// service, so it is the way that Postfix's tables choose by the sender; see [Rules.RouteFrom].
func (b *builder) noticesRoute(a address.Spec) *Route {
	for _, r := range b.p.routes {
		if r.Type != Direct && b.takes(r, a) {
			return r
		}
	}
	for _, r := range b.p.routes {
		if b.takes(r, a) {
			return r
		}
	}
	return nil
}

func (b *builder) takes(r *Route, a address.Spec) bool {
	_, ok := b.onRoute(r, a)
	return ok
}
