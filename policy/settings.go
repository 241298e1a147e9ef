package policy

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

// Settings is what Rules are made of, as the configuration has it.
type Settings struct {
	Domains          []string     // verified (accepted) domains of the tenant
	AllowOnMicrosoft bool         // *.onmicrosoft.com too: 100 external recipients a day for the whole tenant
	Submission       string       // host:port
	Permissions      *Permissions // what Exchange Online says of domains, aliases and Send As; may be nil
	Mailboxes        []MailboxSettings
	Routes           []RouteSettings
	Clients          []ClientSettings
	Notices          string   // the identity of what this host says itself; "" where it follows from the clients or mailboxes
	Received         Received // what becomes of mail that Postfix delivers elsewhere; "" is pass
	Mode             Mode     // "" is Enforce; with Observe, domains, mailboxes, clients and notices may be missing
}

// MailboxSettings describes a mailbox: who we authenticate as, and which identities
// that opens.
type MailboxSettings struct {
	Address       string // or "*@domain": each sender authenticates as itself
	Aliases       []string
	SendAs        []string
	PlusAddresses bool // Exchange Online takes local+tag@domain as sender too
	Pool          bool // other mailboxes with Pool may list the same SendAs addresses, and its own under theirs
}

// ClientSettings describes a client; see [Client].
type ClientSettings struct {
	Name           string
	Networks       []string
	Logins         []string
	Subjects       []string
	Fingerprints   []string
	Senders        []string
	From           string // may be a template: scan+{local}@contoso.com
	DisplayName    string // template: "{name} via {client}"
	ReplyTo        string // original, none or an address
	OnUnauthorized string
	Route          string
}

// A FieldError is one thing that is wrong with the settings.
type FieldError struct {
	Path string // "clients[2].from": the place in the configuration
	Text string // what is wrong, and what to write instead
}

func (e FieldError) Error() string { return e.Path + ": " + e.Text }

// Rules are the settings, checked. They never change, and are safe for concurrent use.
type Rules struct {
	domains    map[string]bool
	mailboxes  []*Mailbox
	identities map[string]owned    // by address key
	patterns   map[string]*Mailbox // by domain: mailboxes "*@domain"
	plus       bool                // some mailbox has plus addresses
	routes     []*Route
	direct     *Route            // the first direct route that a client uses, or nil
	accounts   map[string]*Route // of High Volume Email, by address key
	measures   bool              // some client has such a route
	clients    *clientIndex
	notices    notices
	told       bool // some client's way out is told to Postfix at RCPT
	received   Received
	mode       Mode
}

// A Mode says what decisions are for.
type Mode string

// The values of milter.mode.
const (
	Enforce Mode = "enforce" // messages are changed, refused or held as decided
	Observe Mode = "observe" // messages pass as they are: sendas looks at who sends what as whom, on a host whose mail leaves without it
)

// New checks the settings and makes Rules of them. It returns all errors it
// finds, each with its place.
func New(s Settings) (*Rules, []FieldError) {
	n := s.addresses()
	b := builder{p: &Rules{
		domains:    make(map[string]bool, len(s.Domains)),
		mailboxes:  make([]*Mailbox, 0, len(s.Mailboxes)),
		identities: make(map[string]owned, n),
		patterns:   make(map[string]*Mailbox),
		accounts:   make(map[string]*Route),
		received:   s.Received,
		mode:       cmp.Or(s.Mode, Enforce),
	}, claims: make(map[string]claimed, n), allowOnMicrosoft: s.AllowOnMicrosoft}
	b.addDomains(s)
	for i := range s.Mailboxes {
		b.addMailbox(i, &s.Mailboxes[i])
	}
	b.addPermissions(s.Permissions)
	b.addRoutes(s)
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
	if b.addNotices(s); len(b.errs) > 0 {
		return nil, b.errs
	}
	if i := slices.IndexFunc(clients, func(c Client) bool { return c.Route.Type == Direct }); i >= 0 {
		b.p.direct = clients[i].Route
	}
	b.oneWay(clients)
	if len(b.errs) > 0 {
		return nil, b.errs
	}
	b.p.told = slices.ContainsFunc(clients, func(c Client) bool { return b.p.filter(&c) != "" })
	return b.p, nil
}

// addresses returns how many addresses the mailboxes list.
func (s *Settings) addresses() int {
	n := len(s.Mailboxes)
	for i := range s.Mailboxes {
		n += len(s.Mailboxes[i].Aliases) + len(s.Mailboxes[i].SendAs)
	}
	return n
}

// builder collects the parts of Rules and what is wrong with them.
type builder struct {
	p                *Rules
	claims           map[string]claimed // by address key
	allowOnMicrosoft bool
	errs             []FieldError
}

func (b *builder) fail(path, format string, args ...any) {
	b.errs = append(b.errs, FieldError{Path: path, Text: fmt.Sprintf(format, args...)})
}

func (b *builder) addDomains(s Settings) {
	for i, d := range s.Domains {
		path := fmt.Sprintf("tenant.domains[%d]", i)
		key := address.ASCIIDomain(d)
		switch {
		case !address.ValidDomain(key):
			b.fail(path, "%q is not a domain; write a name such as contoso.com", d)
		case address.OnMicrosoft(key) && !b.allowOnMicrosoft:
			b.fail(path, "Microsoft lets a whole tenant send to only 100 external recipients a day from *.onmicrosoft.com; "+
				"use a domain of your own, or write allow_onmicrosoft: true under tenant")
		default:
			b.p.domains[key] = true
		}
	}
	if s.Permissions != nil {
		for _, d := range s.Permissions.Domains {
			// Every tenant has its onmicrosoft.com domain among the accepted ones; that nobody
			// asked for it here is no error.
			if key := address.ASCIIDomain(d); address.ValidDomain(key) && (!address.OnMicrosoft(key) || b.allowOnMicrosoft) {
				b.p.domains[key] = true
			}
		}
	}
	if len(b.p.domains) == 0 && len(b.errs) == 0 && !b.p.Observes() {
		b.fail("tenant.domains", "no verified domain is listed; write the domains from which mail may leave, such as [contoso.com]")
	}
}

func (b *builder) addMailbox(i int, s *MailboxSettings) {
	m := &Mailbox{plus: s.PlusAddresses, pool: s.Pool}
	b.p.plus = b.p.plus || m.plus
	b.p.mailboxes = append(b.p.mailboxes, m)
	if domain, ok := address.CutPattern(s.Address); ok {
		b.addPattern(fmt.Sprintf("mailboxes[%d]", i), domain, s, m)
		return
	}
	m.Name = s.Address
	if a, ok := b.identity(claim{claimOwn, i, 0}, s.Address, m); ok {
		m.Address = a
		if name := a.String(); name != m.Name { // else one text is enough
			m.Name = name
		}
	}
	for j, t := range s.Aliases {
		b.identity(claim{claimAlias, i, j}, t, m)
	}
	for j, t := range s.SendAs {
		b.identity(claim{claimSendAs, i, j}, t, m)
	}
}

// addPattern enters a mailbox "*@domain".
func (b *builder) addPattern(path, domain string, s *MailboxSettings, m *Mailbox) {
	key := address.ASCIIDomain(domain)
	m.Name = address.WholeDomain(key).String()
	switch {
	case !b.p.domains[key]:
		b.fail(path+".address", "%s is not a verified domain; add it to tenant.domains if the tenant has it", address.Clip(domain))
	case b.p.patterns[key] != nil:
		b.fail(path+".address", "%s is listed twice; remove one", m.Name)
	case len(s.Aliases)+len(s.SendAs) > 0:
		b.fail(path+".address", "each sender of %s authenticates as itself; remove aliases and send_as, or write one address", m.Name)
	case m.pool:
		b.fail(path+".pool", "each sender of %s authenticates as itself, so there is nothing to share; remove this line", m.Name)
	case m.plus:
		b.fail(path+".plus_addresses", "each sender of %s authenticates as itself, and no mailbox has a plus address of its own; remove this line", m.Name)
	default:
		b.p.patterns[key] = m
	}
}

// claimKind is why a mailbox may send as an address. An alias belongs to one mailbox; on an address
// of its own others can have Send As.
type claimKind int

const (
	claimAlias claimKind = iota
	claimOwn
	claimSendAs
)

// A claim is where a mailbox lists an address.
type claim struct {
	kind           claimKind
	mailbox, entry int // indices; mailbox is permitted where Exchange Online says so
}

// permitted takes the place of the mailbox in a claim that Exchange Online's permissions make.
const permitted = -1

// claimed is what an address is claimed as.
type claimed struct {
	first claim
	kind  claimKind // the lowest of all claims: that it is somebody's own has to be known, since it cannot be a second one's
}

// String returns the place in the configuration.
func (c claim) String() string {
	switch c.kind {
	case claimAlias:
		return fmt.Sprintf("mailboxes[%d].aliases[%d]", c.mailbox, c.entry)
	case claimSendAs:
		return fmt.Sprintf("mailboxes[%d].send_as[%d]", c.mailbox, c.entry)
	}
	return fmt.Sprintf("mailboxes[%d].address", c.mailbox)
}

// identity checks that an address may be an identity and enters it for the mailbox.
func (b *builder) identity(c claim, text string, m *Mailbox) (address.Spec, bool) {
	a, err := b.verified(text)
	if err != nil {
		b.fail(c.String(), "%v", err)
		return address.Spec{}, false
	}
	key := a.Key()
	if key == text { // nearly always: then one text is enough
		key = text
	}
	have, ok := b.p.identities[key]
	if !ok {
		b.p.identities[key], b.claims[key] = owned{addr: a, mailbox: m}, claimed{c, c.kind}
		return a, true
	}
	switch was := b.claims[key]; {
	case have.has(m):
		b.fail(c.String(), "<%s> is listed twice for this mailbox; remove one", a)
	case c.kind == claimAlias || was.kind == claimAlias || c.kind == claimOwn && was.kind == claimOwn:
		b.fail(c.String(), "<%s> is claimed at %s too; an address can leave through one mailbox only", a, was.first)
	case !m.pool || !have.mailbox.pool:
		b.fail(c.String(), "<%s> is claimed at %s too; an address can leave through one mailbox only, unless all that list it have pool: true", a, was.first)
	default:
		have.others = append(slices.Clip(have.others), m)
		b.p.identities[key], b.claims[key] = have, claimed{was.first, min(was.kind, c.kind)}
		return a, true
	}
	return address.Spec{}, false
}

// addPermissions enters the aliases and Send As addresses that Exchange Online reports for the
// listed mailboxes. What the configuration says wins; of several mailboxes that may send as one
// address, the first does, so that a permission given in Exchange Online never makes a
// configuration wrong that was right. Those with Pool share what they have Send As on.
func (b *builder) addPermissions(s *Permissions) {
	if s == nil {
		return
	}
	for _, m := range b.p.mailboxes {
		if m.Pattern() {
			continue
		}
		g := s.Mailboxes[m.Address.Key()]
		for _, a := range g.Aliases {
			b.permit(a, m, claimAlias)
		}
		for _, a := range g.SendAs {
			b.permit(a, m, claimSendAs)
		}
	}
}

// permit enters an address that Exchange Online lets the mailbox send as.
func (b *builder) permit(a address.Spec, m *Mailbox, kind claimKind) {
	key := a.Key()
	have, taken := b.p.identities[key]
	was := b.claims[key]
	switch {
	case !b.p.domains[address.ASCIIDomain(a.Domain)]:
	case !taken:
		b.p.identities[key], b.claims[key] = owned{addr: a, mailbox: m}, claimed{claim{kind: kind, mailbox: permitted}, kind}
	case was.first.mailbox == permitted && was.kind == claimSendAs && kind == claimSendAs && have.mailbox.pool && m.pool:
		have.others = append(slices.Clip(have.others), m)
		b.p.identities[key] = have
	}
}

// verified reads an address that must lie in a verified domain. The error says what to write
// instead.
func (b *builder) verified(text string) (address.Spec, error) {
	a, err := address.ParseOwn(text)
	if err != nil {
		return address.Spec{}, err
	}
	if d := address.ASCIIDomain(a.Domain); !b.p.domains[d] {
		return address.Spec{}, fmt.Errorf("<%s> is not in a verified domain; add %s to tenant.domains if the tenant has it", a, d)
	}
	return a, nil
}

func (b *builder) client(path string, s ClientSettings) Client {
	c := Client{Name: s.Name, Logins: s.Logins, OnUnauthorized: OnUnauthorized(s.OnUnauthorized)}
	if !plainName(s.Name) {
		b.fail(path+".name", "%q is not a name; write letters, digits, - . and _ (it stands in logs and metrics)", s.Name)
	}
	if len(s.Networks)+len(s.Logins)+len(s.Subjects)+len(s.Fingerprints) == 0 {
		b.fail(path, "client %q matches nobody; write networks:, logins:, cert_subjects: or cert_fingerprints:", s.Name)
	}
	b.conditions(path, s, &c)
	for i, t := range s.Senders {
		q, err := address.ParsePattern(t)
		if err != nil {
			b.fail(fmt.Sprintf("%s.senders[%d]", path, i), "%v", err)
			continue
		}
		c.Senders = append(c.Senders, q)
	}
	if c.Route = b.p.Route(s.Route); c.Route == nil {
		b.fail(path+".route", "there is no route %q under routes:", address.Clip(s.Route))
	} else if c.Route.Type == HVE && len(b.p.mailboxes) == 0 && !b.p.Observes() {
		b.fail(path+".route", "what route %q does not take leaves by submission, which needs a mailbox; list one under mailboxes: "+
			"(a relay that has an account of High Volume Email alone lists that as its mailbox, and its host at tenant.endpoints.submission)", s.Route)
	} else if c.Route.Type == Submission && len(b.p.mailboxes) == 0 && !b.p.Observes() {
		b.fail(path+".route", "mail of client %q leaves by submission, which needs a mailbox; list one under mailboxes:, or write route: with a connector", s.Name)
	}
	b.fallback(path, s, &c)
	return c
}

// conditions reads by what the client is recognised.
func (b *builder) conditions(path string, s ClientSettings, c *Client) {
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
	for i, t := range s.Subjects {
		if why := SubjectFault(t); why != "" {
			b.fail(fmt.Sprintf("%s.cert_subjects[%d]", path, i), "%s", why)
		}
		c.Subjects = append(c.Subjects, strings.ToLower(t))
	}
	for i, t := range s.Fingerprints {
		f := fingerprint(t)
		if f == "" {
			b.fail(fmt.Sprintf("%s.cert_fingerprints[%d]", path, i), "%q is not a fingerprint; write SHA-256 in hexadecimal, "+
				"as Postfix logs it with smtpd_tls_fingerprint_digest = sha256", address.Clip(t))
		}
		c.Fingerprints = append(c.Fingerprints, f)
	}
}

var (
	// attributeForm is how a certificate's subject, or a name beside it, is written as a whole:
	// "CN=sap01, O=Contoso", "/C=DE/CN=sap01", "DNS:sap01".
	attributeForm = regexp.MustCompile(`(?i)^\s*/?\s*(CN|commonName|OU|O|C|L|ST|DC|DNS|URI|IP Address|email|emailAddress|serialNumber|subject)\s*[=:]`)
	commonName    = regexp.MustCompile(`(?i)(?:^|[,/+=:]\s*)(?:CN|commonName)\s*=\s*([^,/+=]+)`)
)

// SubjectFault says why no client can have such a common name, as Postfix tells it ({cert_subject},
// ccert_subject): by the attribute's value alone.
func SubjectFault(s string) string {
	const write = "write the common name (CN) of the certificate's subject alone"
	switch {
	case s == "":
		return "an empty name matches nobody; write the common name (CN) of the certificate's subject"
	case fingerprint(s) != "":
		return "this is a fingerprint; write it under cert_fingerprints:"
	case attributeForm.MatchString(s):
		if m := commonName.FindStringSubmatch(s); m != nil {
			return fmt.Sprintf("%q is more than the common name, which alone is compared; write %s", address.Clip(s), address.Clip(strings.TrimSpace(m[1])))
		}
		return fmt.Sprintf("%q is not a common name, which alone is compared; %s", address.Clip(s), write)
	case s != strings.TrimSpace(s):
		return fmt.Sprintf("%q has blanks around it, which no common name has; %s", address.Clip(s), write)
	}
	return ""
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

// FindClient returns the client that the peer is, or nil. The envelope sender of its message makes
// a difference for what this host says itself: see [OwnClient].
func (p *Rules) FindClient(peer Peer, sender string) *Client {
	if c := p.clients.find(peer); c != nil {
		return c
	}
	if speaksItself(peer, sender) {
		return p.notices.client
	}
	return nil
}

// ClientNames returns the names of the clients in the order of the settings, and behind them
// [OwnClient] where there is one.
func (p *Rules) ClientNames() []string {
	names := make([]string, len(p.clients.list), len(p.clients.list)+1)
	for i := range p.clients.list {
		names[i] = p.clients.list[i].Name
	}
	if p.notices.builtIn {
		names = append(names, OwnClient)
	}
	return names
}

// Verified reports whether a host name is a verified domain or lies below one; it may begin with
// "*.".
func (p *Rules) Verified(name string) bool {
	d := address.ASCIIDomain(strings.TrimPrefix(name, "*."))
	for ok := d != ""; ok; _, d, ok = strings.Cut(d, ".") {
		if p.domains[d] {
			return true
		}
	}
	return false
}

// Mode says what decisions are for.
func (p *Rules) Mode() Mode { return p.mode }

// Observes reports whether a decision is only noted, and nothing of a message is changed or refused.
func (p *Rules) Observes() bool { return p != nil && p.mode == Observe }

// Domains returns the verified domains, sorted.
func (p *Rules) Domains() []string { return slices.Sorted(maps.Keys(p.domains)) }

// TellsWay reports whether Postfix is told the way out at RCPT for the mail of some client; see
// [Forecast.Filter].
func (p *Rules) TellsWay() bool { return p.told }

// UsesFingerprints reports whether some client is recognised by the fingerprint of its certificate.
func (p *Rules) UsesFingerprints() bool { return p.clients.fingerprints }
