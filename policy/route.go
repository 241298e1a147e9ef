package policy

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/sendas/sendas/policy/address"
)

// A RouteType is one of the four ways in which mail reaches Microsoft 365.
type RouteType string

// The ways out.
const (
	// Submission is smtp.office365.com:587, authenticated as a mailbox, which may send as
	// itself, its aliases and its Send As addresses.
	Submission RouteType = "submission"
	// Connector is the MX endpoint on port 25 with an inbound connector of the tenant, which knows
	// the relay by its address or certificate: any sender of a verified domain, any recipient.
	Connector RouteType = "connector"
	// Direct is the MX endpoint on port 25 without more: any sender of a verified domain, to
	// recipients of the tenant's own domains alone.
	Direct RouteType = "direct"
	// HVE is High Volume Email: port 587 of a host of its own, authenticated as an account that may
	// send as itself alone, to recipients of the tenant's own domains. What does not fit leaves by
	// submission.
	HVE RouteType = "hve"
)

// SubmissionRoute is the name of the route that is always there and the default.
const SubmissionRoute = "submission"

// A Route is how mail leaves. It never changes.
type Route struct {
	Name      string
	Type      RouteType
	Transport string // of Postfix's master.cf
	NextHop   string // "[host]:port"
	// RefuseExternal is for direct routes: whether recipients outside the tenant are refused. Else
	// they leave by submission, while the own ones of the same message leave directly. For those of
	// High Volume Email it is for all that the route does not take; else the whole message leaves by
	// submission.
	RefuseExternal bool
	Account        address.Spec // of High Volume Email; else zero

	account *Mailbox // the same
}

// Destination is the transport and next-hop as FILTER and transport_maps take it.
func (r *Route) Destination() string { return r.Transport + ":" + r.NextHop }

// RouteSettings describes a route; see [Route].
type RouteSettings struct {
	Name      string
	Type      string
	Endpoint  string // host or host:port; without port it is 25 for connector and direct, 587 for hve
	Transport string // default: "sendas" for submission, else "sendas-" and the name
	External  string // submission (default) or reject; for direct and hve
	Account   string // of hve
}

// defaultTransport is what delivers by submission: a transport of our own, so that no setting that
// Microsoft needs touches other mail, and none for other mail touches Microsoft's.
const defaultTransport = "sendas"

// otherTransports are those by which Postfix delivers other mail.
var otherTransports = []string{"smtp", "relay", "lmtp", "local", "virtual", "error", "retry", "discard"}

// addRoutes makes the routes, that of submission first.
func (b *builder) addRoutes(s Settings) {
	b.p.routes = append(b.p.routes, &Route{Name: SubmissionRoute, Type: Submission, Transport: defaultTransport,
		NextHop: nextHop(s.Submission)})
	named := map[string]bool{}
	for i, r := range s.Routes {
		path := fmt.Sprintf("routes[%d]", i)
		if named[r.Name] && r.Name != "" {
			b.fail(path+".name", "two routes are called %q; a client names its way out by it", r.Name)
			continue
		}
		named[r.Name] = true
		if r.Name == SubmissionRoute {
			b.changeSubmission(path, r)
			continue
		}
		b.p.routes = append(b.p.routes, b.route(path, r))
	}
}

// changeSubmission takes the one thing that can be said of the route that is always there.
func (b *builder) changeSubmission(path string, s RouteSettings) {
	if s.Type != "" && s.Type != string(Submission) {
		b.fail(path+".type", "the route called submission is always there and of that type; give this one another name")
	}
	if s.Endpoint != "" {
		b.fail(path+".endpoint", "where submission goes stands under tenant.endpoints.submission; remove it here")
	}
	if s.External != "" {
		b.fail(path+".external", "submission takes every recipient; remove this line")
	}
	if s.Account != "" {
		b.fail(path+".account", "submission signs in as mailboxes, which stand under mailboxes:; remove this line")
	}
	if slices.Contains(otherTransports, s.Transport) {
		b.fail(path+".transport", "other mail leaves by %s, which must know no mailbox; remove this line, and type: sendas postfix enable", s.Transport)
	}
	if s.Transport != "" {
		b.transport(path, s.Transport)
		b.p.routes[0].Transport = s.Transport
	}
}

func (b *builder) route(path string, s RouteSettings) *Route {
	r := &Route{Name: s.Name, Type: RouteType(s.Type), Transport: s.Transport}
	if !plainName(s.Name) || strings.ContainsAny(s.Name, "._") {
		b.fail(path+".name", "%q is not a name; write letters, digits and - (it stands in master.cf)", address.Clip(s.Name))
	}
	switch r.Type {
	case Connector, Direct, HVE:
	case Submission:
		b.fail(path+".type", "submission is always there under that name; remove this route, or name it submission")
	case "":
		b.fail(path+".type", "the type is missing; write connector, direct or hve")
	default:
		b.fail(path+".type", "%q is not a type of route; write connector, direct or hve", address.Clip(s.Type))
	}
	if r.Transport == "" {
		r.Transport = "sendas-" + s.Name
	} else {
		b.transport(path, s.Transport)
	}
	if r.Type == HVE {
		r.NextHop = b.accountHost(path+".endpoint", s.Endpoint)
		b.account(path+".account", s.Account, r)
	} else {
		r.NextHop = b.endpoint(path+".endpoint", s.Endpoint)
		if s.Account != "" {
			b.fail(path+".account", "only a route of type hve signs in as an account; remove this line")
		}
	}
	switch s.External {
	case "", string(Submission):
	case string(Reject):
		r.RefuseExternal = true
	default:
		b.fail(path+".external", "%q is not a choice; write submission or reject", address.Clip(s.External))
	}
	if s.External != "" && r.Type == Connector {
		b.fail(path+".external", "a connector takes every recipient; remove this line")
	}
	return r
}

func (b *builder) transport(path, s string) {
	if !plainName(s) || strings.ContainsRune(s, '.') {
		b.fail(path+".transport", "%q is not a service of master.cf; write letters, digits, - and _", address.Clip(s))
	}
}

// hostPort divides a host and its port, which is usual where none is written. n is 0 for what is no port.
func hostPort(s, usual string) (host, port string, n uint64, isIP bool) {
	host, port = s, usual
	if h, p, err := net.SplitHostPort(s); err == nil {
		host, port = h, p
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		n = 0
	}
	_, err = netip.ParseAddr(host)
	return host, port, n, err == nil
}

// endpoint reads the MX endpoint of a tenant, and returns it as a next-hop without MX look-up.
func (b *builder) endpoint(path, s string) string {
	const example = "contoso-com.mail.protection.outlook.com"
	host, port, n, isIP := hostPort(s, "25")
	switch {
	case s == "":
		b.fail(path, "the endpoint is missing; write the tenant's MX host, such as %s", example)
	case isIP:
		b.fail(path, "Microsoft's addresses change; write the tenant's MX host, such as %s", example)
	case !address.ValidDomain(address.ASCIIDomain(host)) || n == 0:
		b.fail(path, "%q is not a host; write the tenant's MX host, such as %s", address.Clip(s), example)
	case n == 587 || n == 465:
		b.fail(path, "the MX endpoint listens on port 25; port %d is for submission, which is always there", n)
	}
	return "[" + host + "]:" + port
}

// nextHop writes host:port as Postfix wants it for a host whose MX is not to be looked up.
func nextHop(hostPort string) string {
	h, p, err := net.SplitHostPort(hostPort)
	if err != nil {
		return "[" + hostPort + "]"
	}
	return "[" + h + "]:" + p
}

// Route returns the route of that name, or nil; "" is submission.
func (p *Rules) Route(name string) *Route {
	if name == "" {
		name = SubmissionRoute
	}
	for _, r := range p.routes {
		if r.Name == name {
			return r
		}
	}
	return nil
}

// Routes returns all routes, that of submission first. The slice is not to be changed.
func (p *Rules) Routes() []*Route { return p.routes }

// own reports whether a recipient belongs to the tenant: direct send reaches nobody else.
func (p *Rules) own(rcpt string) bool {
	a, err := address.Parse(rcpt)
	return err == nil && a.Valid() && p.domains[address.ASCIIDomain(a.Domain)]
}

// RouteTo answers transport_maps: the direct route for a recipient of the tenant, nil for any
// other, whom Postfix then sends the default way. Clients of other routes are kept out of it by the
// FILTER of [Rules.Foresee].
func (p *Rules) RouteTo(rcpt string) *Route {
	if p.direct != nil && p.own(rcpt) {
		return p.direct
	}
	return nil
}

// RouteFrom answers sender_dependent_default_transport_maps: its route for an account of High Volume
// Email, submission for a sender that a mailbox may send as, the first connector for any other of a
// verified domain, nil for strangers and the null sender.
func (p *Rules) RouteFrom(sender string) *Route {
	a, err := address.Parse(sender)
	if err != nil || a.IsZero() {
		return nil
	}
	if r := p.accountRoute(a); r != nil {
		return r
	}
	if _, ok := p.byMailbox(a); ok {
		return p.routes[0]
	}
	if !p.verifiedSender(a) {
		return nil
	}
	for _, r := range p.routes {
		if r.Type == Connector {
			return r
		}
	}
	return nil
}
