package policy

import "strings"

// A Mailbox is who we authenticate as at Exchange Online.
type Mailbox struct {
	// Name is the address, or the pattern "*@contoso.com": then each sender of the domain
	// authenticates as itself. It is what logs and metrics call the mailbox.
	Name string
	// Address is zero for a pattern.
	Address Address

	plus bool // local+tag@domain is a sender too
}

// Pattern tells whether each sender of a domain is a mailbox of its own.
func (m *Mailbox) Pattern() bool { return m.Address.IsZero() }

// An identity is an address that some route lets us use.
type identity struct {
	addr    Address  // as the configuration writes it
	mailbox *Mailbox // nil: not by submission
	as      Address  // who authenticates, where the mailbox is a pattern
	path    string   // where it was claimed, for the error of a second claim
}

// byMailbox finds the mailbox that may send as the address.
func (p *Policy) byMailbox(a Address) (identity, bool) {
	if id, ok := p.identities[a.Key()]; ok {
		return id, true
	}
	if base, _, ok := strings.Cut(a.Local, "+"); ok && p.plus && sendable(a) {
		if id, ok := p.identities[(Address{Local: base, Domain: a.Domain}).Key()]; ok && id.mailbox.plus {
			id.addr = a
			return id, true
		}
	}
	if m := p.patterns[asciiDomain(a.Domain)]; m != nil && sendable(a) {
		return identity{addr: a, mailbox: m, as: Address{Local: strings.ToLower(a.Local), Domain: asciiDomain(a.Domain)}}, true
	}
	return identity{}, false
}

// onRoute finds out whether the route lets us use the address. For a direct route, external says whether
// some recipients leave by submission, which then has to allow it too.
func (p *Policy) onRoute(r *Route, a Address, external bool) (identity, bool) {
	if id, ok := p.byMailbox(a); ok || r.Type == Submission || external {
		return id, ok
	}
	if !p.verifiedSender(a) {
		return identity{}, false
	}
	return identity{addr: a}, true
}

// verifiedSender tells whether the tenant's MX endpoint knows the address as one of ours.
func (p *Policy) verifiedSender(a Address) bool {
	return sendable(a) && p.domains[asciiDomain(a.Domain)]
}

// sendable tells whether an address that nobody wrote into the configuration may be a sender: nothing
// that needs quotes, so that no two programs can read it differently.
func sendable(a Address) bool { return a.Valid() && isDotAtom(a.Local) }

// MailboxFor returns the mailbox that may send as the address and who authenticates for it, or nil.
func (p *Policy) MailboxFor(a Address) (*Mailbox, Address) {
	id, _ := p.byMailbox(a)
	return id.mailbox, id.user()
}

// user returns who authenticates, zero where nobody does.
func (id *identity) user() Address {
	if id.mailbox != nil && !id.mailbox.Pattern() {
		return id.mailbox.Address
	}
	return id.as
}

// Mailboxes returns all mailboxes in the order of the settings. The slice is not to be changed.
func (p *Policy) Mailboxes() []*Mailbox { return p.mailboxes }
