package policy

import (
	"slices"
	"strings"

	"github.com/sendas/sendas/policy/address"
)

// A Mailbox is who we authenticate as at Exchange Online.
type Mailbox struct {
	// Name is the address, or the pattern "*@contoso.com": then each sender of the domain
	// authenticates as itself. It is what logs and metrics call the mailbox.
	Name string
	// Spec is zero for a pattern.
	Address address.Spec

	plus bool // local+tag@domain is a sender too
	pool bool // other mailboxes may share an address with it
}

// Pattern reports whether each sender of a domain is a mailbox of its own.
func (m *Mailbox) Pattern() bool { return m.Address.IsZero() }

// owned is an address and who may send as it. A site has many: what a look-up alone knows stands in
// identity.
type owned struct {
	addr    address.Spec // as the configuration writes it
	mailbox *Mailbox     // nil: not by submission
	others  []*Mailbox   // of a pool: those that may send as the address besides mailbox
}

// An identity is an address that some route lets us use.
type identity struct {
	owned
	as address.Spec // who authenticates, where the mailbox is a pattern
}

// byMailbox finds the mailbox that may send as the address. Nothing but its own route may send as an
// account of High Volume Email.
func (p *Rules) byMailbox(a address.Spec) (identity, bool) {
	if p.accountRoute(a) != nil {
		return identity{}, false
	}
	if o, ok := p.identities[a.Key()]; ok {
		return identity{owned: o}, true
	}
	if base, _, ok := strings.Cut(a.Local, "+"); ok && p.plus && sendable(a) {
		if o, ok := p.identities[(address.Spec{Local: base, Domain: a.Domain}).Key()]; ok && o.withPlus() {
			o.addr = a
			return identity{owned: o}, true
		}
	}
	if m := p.patterns[address.ASCIIDomain(a.Domain)]; m != nil && sendable(a) {
		return identity{owned: owned{addr: a, mailbox: m}, as: address.Spec{Local: strings.ToLower(a.Local), Domain: address.ASCIIDomain(a.Domain)}}, true
	}
	return identity{}, false
}

// onRoute finds out whether the route lets us use the address. For a direct route, external says
// whether some recipients leave by submission, which then has to allow it too. For one of High Volume
// Email it is submission that is asked, for what the route does not take.
func (p *Rules) onRoute(r *Route, a address.Spec, external bool) (identity, bool) {
	if id, ok := p.byMailbox(a); ok || r.Type == Submission || r.Type == HVE || external {
		return id, ok
	}
	if !p.verifiedSender(a) || p.accountRoute(a) != nil {
		return identity{}, false
	}
	return identity{owned: owned{addr: a}}, true
}

// verifiedSender reports whether the tenant's MX endpoint knows the address as one of ours.
func (p *Rules) verifiedSender(a address.Spec) bool {
	return sendable(a) && p.domains[address.ASCIIDomain(a.Domain)]
}

// sendable reports whether an address that nobody wrote into the configuration may be a sender:
// nothing that needs quotes, so that no two programs can read it differently.
func sendable(a address.Spec) bool { return a.Valid() && address.IsDotAtom(a.Local) }

// withPlus leaves those mailboxes of an identity that may send as its plus addresses too, and
// reports whether there are any.
func (o *owned) withPlus() bool {
	if len(o.others) == 0 {
		return o.mailbox.plus
	}
	all := slices.DeleteFunc(o.mailboxes(), func(m *Mailbox) bool { return !m.plus })
	if len(all) == 0 {
		return false
	}
	o.mailbox, o.others = all[0], all[1:]
	return true
}

// has reports whether the mailbox is one of those that may send as the identity.
func (o *owned) has(m *Mailbox) bool { return o.mailbox == m || slices.Contains(o.others, m) }

// mailboxes returns who may send as the identity: several in a pool, none where no mailbox is
// needed. The slice is the caller's.
func (o *owned) mailboxes() []*Mailbox {
	if o.mailbox == nil {
		return nil
	}
	return append([]*Mailbox{o.mailbox}, o.others...)
}

// MailboxesFor returns the mailboxes that may send as the address, in the order of the settings,
// and who authenticates for the first of them. More than one are a pool: each message leaves
// through the one that can send soonest, and authenticates as that. There are none where nobody
// may. An account of High Volume Email is its own mailbox. The slice is the caller's.
func (p *Rules) MailboxesFor(a address.Spec) ([]*Mailbox, address.Spec) {
	id := p.signsIn(a)
	return id.mailboxes(), id.user()
}

// Listed returns the words of the settings by which some mailbox may send as the address, "" where
// none may: the address in one form, "scan+*@contoso.com" for a plus address, "*@contoso.com" for a
// pattern. Strangers choose addresses; there are no more answers than the settings have lines,
// twice.
func (p *Rules) Listed(a address.Spec) string {
	if r := p.accountRoute(a); r != nil {
		return r.Account.String()
	}
	if o, ok := p.identities[a.Key()]; ok {
		return o.addr.String()
	}
	id, ok := p.byMailbox(a)
	if !ok || !id.as.IsZero() {
		return id.pattern()
	}
	base, _, _ := strings.Cut(strings.ToLower(a.Local), "+")
	return address.Spec{Local: base + "+*", Domain: address.ASCIIDomain(a.Domain)}.String()
}

// pattern returns the pattern by which the address is an identity, "" where it is none by one.
func (id *identity) pattern() string {
	if id.mailbox == nil {
		return ""
	}
	return id.mailbox.Name
}

// A Pool is an address that several mailboxes may send as.
type Pool struct {
	Address   address.Spec
	Mailboxes []*Mailbox // in the order of the settings
}

// Pools returns all pools, in the order of their addresses.
func (p *Rules) Pools() []Pool {
	var list []Pool
	for _, id := range p.identities {
		if len(id.others) > 0 {
			list = append(list, Pool{id.addr, id.mailboxes()})
		}
	}
	slices.SortFunc(list, func(a, b Pool) int { return strings.Compare(a.Address.Key(), b.Address.Key()) })
	return list
}

// External reports whether a recipient is outside of the tenant, for Microsoft's limits on external
// recipients: not in a verified domain, for all that this configuration knows. A domain below a
// verified one counts as outside. However odd the local part is, the domain alone decides.
func (p *Rules) External(rcpt string) bool {
	return !p.domains[address.ASCIIDomain(rcpt[strings.LastIndexByte(rcpt, '@')+1:])]
}

// MailboxFor returns the mailbox that may send as the address and who authenticates for it, or nil.
// Of a pool it is the first one; see MailboxesFor.
func (p *Rules) MailboxFor(a address.Spec) (*Mailbox, address.Spec) {
	id := p.signsIn(a)
	return id.mailbox, id.user()
}

// user returns who authenticates, zero where nobody does.
func (id *identity) user() address.Spec {
	if id.mailbox != nil && !id.mailbox.Pattern() {
		return id.mailbox.Address
	}
	return id.as
}

// Mailboxes returns all mailboxes in the order of the settings. The slice is not to be changed.
func (p *Rules) Mailboxes() []*Mailbox { return p.mailboxes }
