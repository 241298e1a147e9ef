package policy

import (
	"fmt"
	"strconv"

	"github.com/sendas/sendas/policy/address"
)

// High Volume Email is Microsoft's way for bulk inside of the organisation: a host, an account and a
// permission of its own, no limit per minute or day, but recipients of the tenant alone, no more than
// 50 and 10 MB a message, and envelope sender and From have to be the account. So the account alone
// leads a message there, as its envelope sender does (see [Rules.RouteFrom]), and what does not fit
// leaves by submission as any other client's mail.

// Unmeasured is the size of a message whose bytes nobody has counted.
const Unmeasured = -1

const (
	hveRcpts = 50
	// hveBytes is 10 MB in the smaller of its readings, less what a relay adds: its Received fields,
	// and what [Rules.Decide] changes.
	hveBytes = 10_000_000 - 16<<10
)

// accountRoute returns the route whose account the address is, or nil.
func (p *Rules) accountRoute(a address.Spec) *Route {
	if len(p.accounts) == 0 {
		return nil
	}
	return p.accounts[a.Key()]
}

// signsIn returns who authenticates for mail that leaves as the address: an account of High Volume
// Email as itself, else a mailbox that may send as it.
func (p *Rules) signsIn(a address.Spec) identity {
	if r := p.accountRoute(a); r != nil {
		return r.identity()
	}
	id, _ := p.byMailbox(a)
	return id
}

// identity is the only one that the route lets us use.
func (r *Route) identity() identity {
	return identity{owned: owned{addr: r.Account, mailbox: r.account}}
}

// byAccount finds out whether a message leaves by the client's route of High Volume Email, and says
// why where it does not. The reply is for a route with RefuseExternal.
func (p *Rules) byAccount(r *Request, h *header, d *Decision) (*Reply, Reason) {
	route := d.Route
	d.Route = p.routes[0]
	why := p.unfit(r, h, d.Client)
	switch {
	case why.Code == "":
		d.Route = route
		return nil, why
	case !route.RefuseExternal || why.Code == ReasonHVESender:
		d.Reasons = append(d.Reasons, why)
		return nil, Reason{}
	case why.Code == ReasonHVEOutside:
		return d.refuseOutside(why.Subject, route)
	case why.Code == ReasonHVEMany:
		return &Reply{Code: 550, Enhanced: "5.5.3", Text: "the message has " + why.Subject + " recipients, and route " + strconv.Quote(route.Name) +
			" takes " + strconv.Itoa(hveRcpts) + "; send it in parts"}, why
	}
	return &Reply{Code: 552, Enhanced: "5.3.4", Text: "the message has " + why.Subject + " bytes, and route " + strconv.Quote(route.Name) + " takes 10 MB; make it smaller"}, why
}

// unfit says why a message does not leave by its client's account; the zero Reason is that it does.
// What this host says itself, and what has the null sender, may cause no bounce, and Microsoft says
// nothing of it for such accounts. Where an alias leads, or may lead, a message outside, that would be
// found out after it was accepted.
func (p *Rules) unfit(r *Request, h *header, c *Client) Reason {
	name := c.Route.Name
	switch {
	case h.null:
		return Reason{ReasonHVESender, "the null sender", name}
	case speaksItself(r.Peer, r.Sender):
		return Reason{ReasonHVESender, "what this host says itself", name}
	case c.OnUnauthorized == Refuse && !(h.asked.Same(c.Route.Account) && c.maySend(h.asked)):
		return Reason{ReasonHVESender, "<" + h.asked.String() + ">", name}
	}
	leaving := 0
	for i, to := range r.Rcpts {
		at := r.place(i)
		switch {
		case at.Verdict == Elsewhere:
			continue
		case at.Verdict != Ours, at.By != "", !p.own(to):
			return Reason{ReasonHVEOutside, shownRcpt(to), name}
		}
		leaving++
	}
	switch {
	case leaving > hveRcpts:
		return Reason{ReasonHVEMany, strconv.Itoa(leaving), name}
	case r.Size == Unmeasured:
		return Reason{ReasonHVELarge, "uncounted", name}
	case r.Size > hveBytes:
		return Reason{ReasonHVELarge, strconv.Itoa(r.Size), name}
	}
	return Reason{}
}

// asAccount returns the identity of a message that leaves by High Volume Email.
func (d *Decision) asAccount() identity {
	d.because(ReasonAccount, d.Route.Account.String(), d.Route.Name)
	return d.Route.identity()
}

// Measures reports whether the size of a message can make a difference: some client has a route of
// High Volume Email.
func (p *Rules) Measures() bool { return p.measures }

// Weighs reports whether the rest of a message of which so many bytes have come can still make a
// difference: whether its client has such a route, and it is not too large yet.
func (p *Rules) Weighs(peer Peer, sender string, size int) bool {
	c := p.FindClient(peer, sender)
	return c != nil && c.Route.Type == HVE && size <= hveBytes
}

// account reads the account of a route. It sends as itself, and nobody else as it: each sender has
// one way out.
func (b *builder) account(path, text string, r *Route) {
	if text == "" {
		b.fail(path, "the account is missing; write the address of the High Volume Email account, such as notices@contoso.com")
		return
	}
	a, err := b.verified(text)
	if _, pattern := address.CutPattern(text); pattern {
		err = fmt.Errorf("%s is no account; write the address of one, such as notices@contoso.com", address.Clip(text))
	}
	if err != nil {
		b.fail(path, "%v", err)
		return
	}
	key := a.Key()
	if other := b.p.accounts[key]; other != nil {
		b.fail(path, "<%s> is the account of route %q too; remove one", a, other.Name)
		return
	}
	if was, claimed := b.claims[key]; claimed && was.first.mailbox != permitted {
		b.fail(path, "<%s> is claimed at %s too; an account of High Volume Email sends as itself alone, and nobody else as it", a, was.first)
		return
	}
	delete(b.p.identities, key) // whoever has a permission for it in Exchange Online
	r.Account, r.account = a, &Mailbox{Name: a.String(), Address: a}
	b.p.accounts[key] = r
}

// accountHost reads the submission host of High Volume Email, and returns it as a next-hop.
func (b *builder) accountHost(path, s string) string {
	const example = "smtp.hve.mx.microsoft:587"
	host, port, n, isIP := hostPort(s, "587")
	switch {
	case s == "":
		b.fail(path, "Microsoft names no host of High Volume Email for this cloud; write it, in the form of %s", example)
	case isIP:
		b.fail(path, "Microsoft wants a name, never an address; write %s", example)
	case n == 465:
		b.fail(path, "Microsoft has no implicit TLS (port 465); write %s", example)
	case !address.ValidDomain(address.ASCIIDomain(host)) || n == 0:
		b.fail(path, "%q is not a host with its port; write %s", address.Clip(s), example)
	}
	return "[" + host + "]:" + port
}

// oneWay makes sure that mail of accounts comes to its route: a direct route takes all mail for own
// recipients, whoever sends it, and no FILTER can keep that out of it which is decided on at the end
// of the message.
func (b *builder) oneWay(clients []Client) {
	for i := range clients {
		c := &clients[i]
		if c.Route.Type != HVE {
			continue
		}
		b.p.measures = true
		if b.p.direct != nil {
			b.fail("clients["+strconv.Itoa(i)+"].route", "a client has the direct route %q, and Postfix then leads all mail for own recipients there, also what is to leave by %q; "+
				"let all clients use one of the two", b.p.direct.Name, c.Route.Name)
		}
	}
}
