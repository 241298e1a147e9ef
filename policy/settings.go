package policy

import (
	"fmt"
	"net/netip"
	"strings"
)

// Settings is what a Policy is made of, as the configuration has it.
type Settings struct {
	Domains          []string // verified (accepted) domains of the tenant
	AllowOnMicrosoft bool     // *.onmicrosoft.com too: 100 external recipients a day for the whole tenant
	Mailboxes        []MailboxSettings
	Clients          []ClientSettings
}

// MailboxSettings describes a mailbox: who we authenticate as, and which identities
// that opens.
type MailboxSettings struct {
	Address string
	Aliases []string
	SendAs  []string
}

// ClientSettings describes a client; see [Client].
type ClientSettings struct {
	Name           string
	Networks       []string
	Logins         []string
	Senders        []string
	From           string
	OnUnauthorized string
}

// A FieldError is one thing that is wrong with the settings.
type FieldError struct {
	Path string // "clients[2].from": the place in the configuration
	Text string // what is wrong, and what to write instead
}

func (e FieldError) Error() string { return e.Path + ": " + e.Text }

// A Mailbox is who we authenticate as at Exchange Online.
type Mailbox struct {
	Address Address
}

// A Policy is the checked rules. It never changes, and is safe for concurrent use.
type Policy struct {
	domains    map[string]bool
	mailboxes  []*Mailbox
	identities map[string]identity // by address key
	clients    *clientIndex
}

// An identity is an address that some mailbox lets us use.
type identity struct {
	addr    Address // as the configuration writes it
	mailbox *Mailbox
	path    string // where it was claimed, for the error of a second claim
}

// New checks the settings and makes the Policy. It returns all errors it
// finds, each with its place.
func New(s Settings) (*Policy, []FieldError) {
	b := builder{p: &Policy{
		domains:    make(map[string]bool, len(s.Domains)),
		identities: make(map[string]identity, len(s.Mailboxes)*2),
	}, allowOnMicrosoft: s.AllowOnMicrosoft}
	b.addDomains(s.Domains)
	for i, m := range s.Mailboxes {
		b.addMailbox(fmt.Sprintf("mailboxes[%d]", i), m)
	}
	clients := make([]Client, 0, len(s.Clients))
	names := make(map[string]bool, len(s.Clients))
	for i, c := range s.Clients {
		path := fmt.Sprintf("clients[%d]", i)
		if names[c.Name] && c.Name != "" {
			b.fail(path+".name", "two clients are called %q; a name stands for one client in logs and metrics", c.Name)
		}
		names[c.Name] = true
		clients = append(clients, b.client(path, c))
	}
	if len(b.errs) > 0 {
		return nil, b.errs
	}
	b.p.clients = newClientIndex(clients)
	return b.p, nil
}

// builder collects the parts of a Policy and what is wrong with them.
type builder struct {
	p                *Policy
	allowOnMicrosoft bool
	errs             []FieldError
}

func (b *builder) fail(path, format string, args ...any) {
	b.errs = append(b.errs, FieldError{Path: path, Text: fmt.Sprintf(format, args...)})
}

func (b *builder) addDomains(list []string) {
	if len(list) == 0 {
		b.fail("tenant.domains", "no verified domain is listed; write the domains from which mail may leave, such as [contoso.com]")
	}
	for i, d := range list {
		path := fmt.Sprintf("tenant.domains[%d]", i)
		key := asciiDomain(d)
		switch {
		case !validDomain(key):
			b.fail(path, "%q is not a domain; write a name such as contoso.com", d)
		case onMicrosoft(key) && !b.allowOnMicrosoft:
			b.fail(path, "Microsoft lets a whole tenant send to only 100 external recipients a day from *.onmicrosoft.com; "+
				"use a domain of your own, or write allow_onmicrosoft: true under tenant")
		default:
			b.p.domains[key] = true
		}
	}
}

func onMicrosoft(domain string) bool {
	return domain == "onmicrosoft.com" || strings.HasSuffix(domain, ".onmicrosoft.com")
}

func (b *builder) addMailbox(path string, s MailboxSettings) {
	m := &Mailbox{}
	b.p.mailboxes = append(b.p.mailboxes, m)
	if a, ok := b.identity(path+".address", s.Address, m); ok {
		m.Address = a
	}
	for i, t := range s.Aliases {
		b.identity(fmt.Sprintf("%s.aliases[%d]", path, i), t, m)
	}
	for i, t := range s.SendAs {
		b.identity(fmt.Sprintf("%s.send_as[%d]", path, i), t, m)
	}
}

// identity checks that an address may be an identity and enters it for the mailbox.
func (b *builder) identity(path, text string, m *Mailbox) (Address, bool) {
	a, ok := b.verified(path, text)
	if !ok {
		return Address{}, false
	}
	if have, ok := b.p.identities[a.Key()]; ok {
		if have.mailbox == m {
			b.fail(path, "<%s> is listed twice for this mailbox; remove one", a)
		} else {
			b.fail(path, "<%s> is claimed at %s too; an address can leave through one mailbox only", a, have.path)
		}
		return Address{}, false
	}
	b.p.identities[a.Key()] = identity{addr: a, mailbox: m, path: path}
	return a, true
}

// verified reads an address that must lie in a verified domain.
func (b *builder) verified(path, text string) (Address, bool) {
	a, err := parseConfigAddress(text)
	if err != nil {
		b.fail(path, "%v", err)
		return Address{}, false
	}
	if d := asciiDomain(a.Domain); !b.p.domains[d] {
		b.fail(path, "<%s> is not in a verified domain; add %s to tenant.domains if the tenant has it", a, d)
		return Address{}, false
	}
	return a, true
}

func (b *builder) client(path string, s ClientSettings) Client {
	c := Client{Name: s.Name, Logins: s.Logins, OnUnauthorized: OnUnauthorized(s.OnUnauthorized)}
	if !plainName(s.Name) {
		b.fail(path+".name", "%q is not a name; write letters, digits, - . and _ (it stands in logs and metrics)", s.Name)
	}
	if len(s.Networks) == 0 && len(s.Logins) == 0 {
		b.fail(path, "client %q matches nobody; write networks: or logins:", s.Name)
	}
	for i, t := range s.Networks {
		if n, ok := b.network(fmt.Sprintf("%s.networks[%d]", path, i), t); ok {
			c.Networks = append(c.Networks, n)
		}
	}
	for i, l := range s.Logins {
		if l == "" {
			b.fail(fmt.Sprintf("%s.logins[%d]", path, i), `an empty login matches nobody; write the SASL login, or "*" for any`)
		}
	}
	for i, t := range s.Senders {
		q, err := ParsePattern(t)
		if err != nil {
			b.fail(fmt.Sprintf("%s.senders[%d]", path, i), "%v", err)
			continue
		}
		c.Senders = append(c.Senders, q)
	}
	b.fallback(path, s, &c)
	return c
}

// fallback settles what happens to senders that are not authorised.
func (b *builder) fallback(path string, s ClientSettings, c *Client) {
	if s.From != "" {
		if a, ok := b.verified(path+".from", s.From); ok {
			if _, ok := b.p.identities[a.Key()]; !ok {
				b.fail(path+".from", "no mailbox may send as <%s>; list it under send_as of the mailbox that has the permission", a)
			}
			c.From = a
		}
	}
	switch c.OnUnauthorized {
	case "":
		c.OnUnauthorized = Refuse
		if s.From != "" {
			c.OnUnauthorized = Rewrite
		}
	case Rewrite:
		if s.From == "" {
			b.fail(path+".on_unauthorized", "rewrite needs an identity to rewrite to; write from: with an address of a mailbox")
		}
	case Refuse:
	default:
		b.fail(path+".on_unauthorized", "%q is not an action; write rewrite or reject", s.OnUnauthorized)
	}
}

// network reads a network or a single address. Bits behind the prefix length are an error:
// 10.2.0.9/16 is as likely meant as 10.2.0.9 as it is 10.2.0.0/16.
func (b *builder) network(path, text string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	n, err := netip.ParsePrefix(text)
	if err != nil {
		b.fail(path, "%q is not a network; write 10.2.0.0/16, fd00:2::/64 or an address", text)
		return netip.Prefix{}, false
	}
	if n != n.Masked() {
		b.fail(path, "%q has bits behind its prefix length; write %s for the network or %s for the one address", text, n.Masked(), n.Addr())
		return netip.Prefix{}, false
	}
	return n, true
}

func plainName(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_') {
			return false
		}
	}
	return true
}

// MailboxFor returns the mailbox that may send as the address, or nil.
func (p *Policy) MailboxFor(a Address) *Mailbox {
	return p.identities[a.Key()].mailbox
}

// Mailboxes returns all mailboxes in the order of the settings. The slice is not to be changed.
func (p *Policy) Mailboxes() []*Mailbox { return p.mailboxes }

// FindClient returns the client that the peer is, or nil.
func (p *Policy) FindClient(peer Peer) *Client { return p.clients.find(peer) }

// ClientNames returns the names of the clients in the order of the settings.
func (p *Policy) ClientNames() []string {
	names := make([]string, len(p.clients.list))
	for i := range p.clients.list {
		names[i] = p.clients.list[i].Name
	}
	return names
}
