// Package dns looks at what the world sees of the verified domains and the endpoints of routes: SPF
// (RFC 7208) and MX. It proposes the records to publish, and changes nothing.
package dns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"blitiri.com.ar/go/spf"
	"golang.org/x/net/idna"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/internal/plaintext"
)

// A Plan is what the configuration expects of DNS.
type Plan struct {
	Domains []string // verified domains
	Cloud   string   // key of clouds
	Routes  []Route
}

// A Route is a way out on which this relay itself is the sender that receivers see.
type Route struct {
	Name      string
	Type      string   // connector or direct
	Endpoint  string   // host
	Addresses []string // public addresses or networks from which this relay reaches it; may be empty
}

// PlanOf returns what DNS has to say for the configuration to work.
func PlanOf(c *config.Site) Plan {
	p := Plan{Domains: c.Policy.Domains(), Cloud: c.Tenant.Cloud}
	for _, r := range c.Routes {
		if r.Type == "" || r.HighVolume() { // the one that is always there, and one where Microsoft's servers are seen
			continue
		}
		host, _, err := net.SplitHostPort(r.Endpoint)
		if err != nil {
			host = r.Endpoint
		}
		p.Routes = append(p.Routes, Route{Name: r.Name, Type: r.Type, Endpoint: host, Addresses: r.Addresses})
	}
	return p
}

// Time bounds all questions to DNS together.
const Time = 2 * time.Minute

// A resolver asks DNS. *net.Resolver is one; the errors are *net.DNSError. Names end in a dot,
// so that no search domain is tried.
type Resolver interface {
	LookupTXT(ctx context.Context, name string) ([]string, error)
	LookupMX(ctx context.Context, name string) ([]*net.MX, error)
	LookupIPAddr(ctx context.Context, host string) ([]net.IPAddr, error)
	LookupAddr(ctx context.Context, addr string) ([]string, error) // for the mechanism ptr
}

// clouds is how Microsoft's clouds appear in DNS: the SPF record of their outgoing servers,
// and what the names of their incoming ones end in. The first suffix is the usual one.
var clouds = map[string]struct {
	include string
	mx      []string
}{
	"global":   {"spf.protection.outlook.com", []string{".mail.protection.outlook.com", ".mx.microsoft"}},
	"gcc-high": {"spf.protection.office365.us", []string{".mail.protection.office365.us"}},
	"dod":      {"spf.protection.office365.us", []string{".mail.protection.office365.us"}},
	"china":    {"spf.protection.partner.outlook.cn", []string{".mail.protection.partner.outlook.cn"}},
}

// Limits of RFC 7208, section 4.6.4, and how far we look beyond them.
const (
	maxSPFLookups = 10
	maxSPFVoids   = 2
	maxSPFWalk    = 100
)

// Check compares DNS with the plan and writes to w, for people, what is there and what to
// publish. ok is false when something must be changed, in DNS or (a route without addresses)
// in the configuration. err is set when DNS did not answer some question: what depends on it is
// neither good nor wrong then. It asks one question at a time.
func Check(ctx context.Context, w io.Writer, r Resolver, plan Plan) (ok bool, err error) {
	cloud, known := clouds[plan.Cloud]
	if !known {
		return false, fmt.Errorf("no cloud is called %q", plan.Cloud)
	}
	c := &check{r: newCache(r), include: cloud.include, mxSuffixes: cloud.mx, ok: true}
	c.readAddresses(plan.Routes)
	for _, d := range plan.Domains {
		c.domain(ctx, d)
		if err := c.flush(ctx, w); err != nil {
			return false, err
		}
	}
	for _, route := range plan.Routes {
		c.route(ctx, route)
		if err := c.flush(ctx, w); err != nil {
			return false, err
		}
	}
	if len(c.unanswered) > 0 {
		return c.ok, exit.Errorf(exit.TempFail, "try again; /etc/resolv.conf says which server was asked",
			"DNS gave no answer about %s", strings.Join(c.unanswered, ", "))
	}
	return c.ok, nil
}

// check is one run of Check.
type check struct {
	r          *cache
	include    string
	mxSuffixes []string
	addresses  []netip.Prefix // of this relay, from all routes
	unlisted   []string       // routes without addresses

	out        bytes.Buffer // the block in work
	ok         bool
	faults     int      // in the block
	unanswered []string // what DNS was asked in vain
}

// flush writes the block that is complete.
func (c *check) flush(ctx context.Context, w io.Writer) error {
	if err := ctx.Err(); err != nil {
		return err // a cut-off look-up is no finding
	}
	c.faults = 0
	c.out.WriteByte('\n')
	_, err := c.out.WriteTo(w)
	return err
}

func (c *check) say(format string, args ...any) {
	fmt.Fprintf(&c.out, "  %s\n", shownText.Line(fmt.Sprintf(format, args...)))
}

// record writes an SPF record on a line of its own, so that it can be copied.
func (c *check) record(text string) {
	fmt.Fprintf(&c.out, "    %s\n", shownText.Line(text))
}

func (c *check) wrong(format string, args ...any) {
	c.ok = false
	c.faults++
	c.say("must be changed: "+format, args...)
}

func (c *check) note(format string, args ...any) { c.say("note: "+format, args...) }

// unknown says that DNS did not answer.
func (c *check) unknown(what string, err error) {
	c.unanswered = append(c.unanswered, what)
	c.say("not known: %s: %s", what, Failure(err))
}

// shownText is how text from DNS stands on a terminal. Blanks stay as many as there are, so that a
// record can be copied.
var shownText = plaintext.Style{Exact: true, Bad: '?'}

// Failure tells the ways apart in which DNS fails.
func Failure(err error) string {
	e, ok := errors.AsType[*net.DNSError](err)
	switch {
	case !ok:
		return err.Error()
	case e.IsNotFound:
		return "DNS has no such name or record"
	case e.IsTimeout:
		return "DNS did not answer in time"
	case e.IsTemporary:
		return "the DNS server could not find out (SERVFAIL: often a broken DNSSEC signature or an unreachable name server of the domain)"
	}
	return "the DNS server could not be asked: " + e.Err
}

func isNotFound(err error) bool {
	e, ok := errors.AsType[*net.DNSError](err)
	return ok && e.IsNotFound
}

// sharedSpace is RFC 6598: addresses behind a provider's NAT, which no receiver sees.
var sharedSpace = netip.MustParsePrefix("100.64.0.0/10")

// readAddresses collects the addresses of this relay. What is wrong with them is said in the
// block of the route.
func (c *check) readAddresses(routes []Route) {
	for _, r := range routes {
		if len(r.Addresses) == 0 {
			c.unlisted = append(c.unlisted, r.Name)
		}
		for _, text := range r.Addresses {
			if n, err := publicNetwork(text); err == nil && !slices.Contains(c.addresses, n) {
				c.addresses = append(c.addresses, n)
			}
		}
	}
}

// publicNetwork reads an address or a network that receivers of mail can see.
func publicNetwork(text string) (netip.Prefix, error) {
	n, err := netip.ParsePrefix(text)
	if err != nil {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return n, fmt.Errorf("%q is not an address; write 203.0.113.7, 2001:db8::7 or a network such as 203.0.113.0/28", text)
		}
		a = a.Unmap()
		n = netip.PrefixFrom(a, a.BitLen())
	}
	n = n.Masked()
	if a := n.Addr(); a.IsPrivate() || a.IsLoopback() || a.IsUnspecified() || a.IsLinkLocalUnicast() || a.IsMulticast() || sharedSpace.Contains(a) {
		return n, fmt.Errorf("%s is seen inside the site only; write the public address from which the mail arrives at Microsoft", text)
	}
	return n, nil
}

// spfNetwork writes a network as a mechanism (RFC 7208, section 5.6).
func spfNetwork(n netip.Prefix) string {
	name := "ip4:"
	if n.Addr().Is6() {
		name = "ip6:"
	}
	if n.IsSingleIP() {
		return name + n.Addr().String()
	}
	return name + n.String()
}

// domain writes the block of one verified domain.
func (c *check) domain(ctx context.Context, name string) {
	fmt.Fprintf(&c.out, "%s\n", shownText.Line(name))
	if strings.HasSuffix(strings.ToLower(name), ".onmicrosoft.com") {
		c.say("good: its DNS belongs to Microsoft, there is nothing to publish")
		return
	}
	ascii, err := idna.Lookup.ToASCII(name)
	if err != nil {
		ascii = name
	}
	c.say("SPF, where nothing else sends mail of this domain:")
	c.record(c.wanted())
	if len(c.unlisted) > 0 {
		c.say("ADDRESS stands for the public address of this relay; see the routes below")
	}
	records, err := spfRecords(ctx, c.r, ascii)
	switch {
	case err != nil && !isNotFound(err):
		c.unknown("the TXT records of "+name, err)
	case len(records) > 0:
		c.review(ctx, ascii, records)
	case err != nil && !c.exists(ctx, ascii):
		c.wrong("DNS has neither TXT nor MX nor address records of this name; mend tenant.domains, or set the domain up in DNS first")
		return
	default:
		c.wrong("DNS has no SPF record; publish the line above as a TXT record of %s", ascii)
	}
	c.mx(ctx, ascii)
}

// wanted is the record of a domain whose mail leaves through this relay and Microsoft only.
func (c *check) wanted() string {
	r := spfRecord{all: "-all"}
	for _, n := range c.addresses {
		r.mechanisms = append(r.mechanisms, spfNetwork(n))
	}
	if len(c.unlisted) > 0 {
		r.mechanisms = append(r.mechanisms, "ip4:ADDRESS")
	}
	r.mechanisms = append(r.mechanisms, "include:"+c.include)
	return r.String()
}

func (c *check) exists(ctx context.Context, name string) bool {
	_, mx := c.r.LookupMX(ctx, name)
	_, ip := c.r.LookupIPAddr(ctx, name)
	return !isNotFound(mx) || !isNotFound(ip)
}

// review says what is wrong with the records, and how the one record should read.
func (c *check) review(ctx context.Context, name string, records []string) {
	c.say("SPF in DNS now:")
	for _, text := range records {
		c.record(text)
	}
	rec := c.merge(records)
	unanswered := len(c.unanswered)
	rec = c.dropBroken(ctx, name, rec)
	if len(c.unanswered) > unanswered {
		return // what is missing may stand in what did not answer
	}
	rec = c.closeEnd(rec)
	rec = c.addMissing(ctx, name, rec)
	repairable := c.faults
	c.budget(ctx, name, rec)
	switch {
	case repairable > 0:
		c.propose(rec)
	case c.faults == 0:
		c.say("good: what leaves through this relay passes")
	}
}

// propose writes the line to publish.
func (c *check) propose(rec spfRecord) {
	c.say("publish this line instead, as the only SPF record:")
	c.record(rec.String())
	if n := len(rec.String()); n > 255 { // RFC 7208, section 3.3
		c.note("the line has %d characters, and a string in a TXT record holds 255; where your DNS does not split it by itself, write it as several strings in one record", n)
	}
}

// merge reads the records into one, and says what is wrong with how they are put together.
func (c *check) merge(records []string) spfRecord {
	rec := parseSPF(records[0])
	if len(records) > 1 {
		c.wrong("there are %d SPF records, which receivers treat as an error (RFC 7208, section 3.2)", len(records))
	}
	for _, text := range records[1:] {
		rec = rec.with(parseSPF(text))
	}
	if rec.late {
		c.wrong("terms stand behind %q, where no receiver looks", rec.all)
	}
	for _, name := range []string{"redirect", "exp"} {
		if n := rec.dropRepeated(name); n > 0 {
			c.wrong("%s= may stand there once (RFC 7208, section 6); the first is kept", name)
		}
	}
	return rec
}

// dropBroken leaves out terms on which receivers give up (permerror, RFC 7208, section 2.6.7).
// Each term is judged alone, for an address that matches none.
func (c *check) dropBroken(ctx context.Context, name string, rec spfRecord) spfRecord {
	broken := func(term string) bool {
		result, err := c.evaluate(ctx, name, "v=spf1 "+term, netip.AddrFrom4([4]byte{240, 0, 0, 1}))
		_, dns := errors.AsType[*net.DNSError](err)
		switch {
		case result == spf.TempError, result == spf.PermError && dns && !isNotFound(err):
			c.unknown(fmt.Sprintf("%q in the SPF record of %s", term, name), err)
		case result != spf.PermError:
		case strings.EqualFold(strings.TrimLeft(term, "+"), "include:"+c.include):
			c.unknown(fmt.Sprintf("the SPF record of %s, which Microsoft keeps", c.include), errors.New("this DNS server does not have it"))
		default:
			c.wrong("%q %s; receivers treat that as an error, and the line below leaves it out", term, spfFault(err))
			return true
		}
		return false
	}
	rec.mechanisms = slices.DeleteFunc(rec.mechanisms, broken)
	rec.modifiers = slices.DeleteFunc(rec.modifiers, func(m string) bool {
		idle := rec.all != "" && isModifier(m, "redirect") // RFC 7208, section 6.1
		return !idle && broken(m)
	})
	return rec
}

// spfFaults are sentences for what the evaluation refuses; they follow the term.
var spfFaults = []struct {
	err  error
	text string
}{
	{spf.ErrUnknownField, "is not a term of SPF"},
	{spf.ErrInvalidIP, "has no valid address"},
	{spf.ErrInvalidMask, "has no valid network or prefix length"},
	{spf.ErrInvalidMacro, "has a wrong macro"},
	{spf.ErrInvalidDomain, "names no domain"},
	{spf.ErrNoResult, "leads to a name that has no SPF record"},
	{spf.ErrMultipleRecords, "leads to a name that has several SPF records"},
	{spf.ErrTooManyMXRecords, "leads to more than 10 MX records"},
	{spf.ErrLookupLimitReached, "leads round in a circle"},
	{spf.ErrVoidLookupLimitReached, "leads round in a circle"},
}

func spfFault(err error) string {
	for _, f := range spfFaults {
		if errors.Is(err, f.err) {
			return f.text
		}
	}
	return fmt.Sprintf("cannot be evaluated (%v)", err)
}

// evaluate tells what receivers would make of mail from the address if text were the SPF record
// of the domain. The limits on look-ups are left to budget, which can say more about them.
func (c *check) evaluate(ctx context.Context, domain, text string, a netip.Addr) (spf.Result, error) {
	return spf.CheckHostWithSender(a.AsSlice(), domain, "postmaster@"+domain, spf.WithContext(ctx),
		spf.WithResolver(spfDraft{c.r, domain, text}),
		spf.OverrideLookupLimit(maxSPFWalk), spf.OverrideVoidLookupLimit(maxSPFWalk))
}

// closeEnd makes the record say something about strangers. It says it softly, because a record
// that did not may have hidden senders that nobody listed.
func (c *check) closeEnd(rec spfRecord) spfRecord {
	const careful = `; "~all" is the careful end, "-all" the right one when DMARC reports show no further senders`
	switch {
	case rec.all == "" && rec.modifier("redirect") == "":
		c.wrong("the record ends without all, and so says nothing about strangers" + careful)
	case spfQualifier(rec.all) == '+' && rec.all != "":
		c.wrong("%q lets everybody send as this domain"+careful, rec.all)
	case spfQualifier(rec.all) == '?':
		c.wrong("%q says nothing about strangers"+careful, rec.all)
	default:
		return rec
	}
	rec.all = "~all"
	return rec
}

// addMissing adds what makes this relay's mail pass: in front, where no other term can refuse
// it first.
func (c *check) addMissing(ctx context.Context, name string, rec spfRecord) spfRecord {
	var missing []string
	w := c.walk(ctx, name, rec)
	for _, n := range c.addresses {
		if !c.passes(ctx, name, rec, w.networks, n) {
			c.wrong("%s is missing: mail that this relay delivers itself comes from there", spfNetwork(n))
			missing = append(missing, spfNetwork(n))
		}
	}
	switch {
	case slices.Contains(w.includes, c.include):
	case c.flattened(ctx, name, rec):
		c.note("Microsoft's networks stand there one by one; Microsoft changes them, include:%s would follow", c.include)
	default:
		c.wrong("include:%s is missing: mail that this relay submits leaves from Microsoft's servers", c.include)
		missing = append(missing, "include:"+c.include)
	}
	rec.mechanisms = append(missing, rec.mechanisms...)
	return rec
}

// passes reports whether all addresses of the network pass. The result can change only where
// some term's network begins or ends, so the network is divided there and one address of
// each part is asked for.
func (c *check) passes(ctx context.Context, name string, rec spfRecord, edges []netip.Prefix, n netip.Prefix) bool {
	if ctx.Err() != nil {
		return false
	}
	inside := slices.DeleteFunc(slices.Clone(edges), func(e netip.Prefix) bool {
		return e.Bits() <= n.Bits() || !n.Contains(e.Addr())
	})
	if len(inside) == 0 {
		result, _ := c.evaluate(ctx, name, rec.String(), n.Addr())
		return result == spf.Pass
	}
	low, high := halves(n)
	return c.passes(ctx, name, rec, inside, low) && c.passes(ctx, name, rec, inside, high)
}

// halves divides a network of more than one address.
func halves(n netip.Prefix) (low, high netip.Prefix) {
	b := n.Addr().AsSlice()
	b[n.Bits()/8] |= 0x80 >> (n.Bits() % 8)
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(n.Addr(), n.Bits()+1), netip.PrefixFrom(a, n.Bits()+1)
}

// flattened reports whether Microsoft's networks pass although its include is not there: some
// services replace includes by what stands behind them.
func (c *check) flattened(ctx context.Context, name string, rec spfRecord) bool {
	microsoft := c.walk(ctx, "", spfRecord{mechanisms: []string{"include:" + c.include}})
	edges := c.walk(ctx, name, rec).networks
	for _, n := range microsoft.networks {
		if !c.passes(ctx, name, rec, edges, n) {
			return false
		}
	}
	return len(microsoft.networks) > 0
}

// budget says what is wrong with the record in ways that no line could mend by itself.
func (c *check) budget(ctx context.Context, name string, rec spfRecord) {
	w := c.walk(ctx, name, rec)
	for _, term := range w.open {
		c.wrong("%q lets everybody send, because the record that it leads to does; ask its owner, or leave it out", term)
	}
	for _, term := range w.mute {
		c.wrong("%q leads to a record that says nothing about strangers; it should end in -all or ~all", term)
	}
	if w.lookups > maxSPFLookups {
		c.wrong("SPF needs %d DNS look-ups, and receivers give up after %d (RFC 7208, section 4.6.4); leave out or replace some of these:",
			w.lookups, maxSPFLookups)
		for _, t := range w.costs {
			c.record(t)
		}
	}
	voids := strings.Join(w.voids, ", ")
	switch {
	case len(w.voids) > maxSPFVoids:
		c.wrong("%d terms lead to nothing in DNS, and receivers give up after %d (RFC 7208, section 4.6.4): %s", len(w.voids), maxSPFVoids, voids)
	case len(w.voids) > 0:
		c.note("leads to nothing in DNS, and can go: %s", voids)
	}
}

// mx looks where mail for the domain goes: only a warning, because a gateway may stand in front.
func (c *check) mx(ctx context.Context, name string) {
	list, err := c.r.LookupMX(ctx, name)
	if err != nil && len(list) == 0 {
		c.note("MX of %s: %s", name, Failure(err))
		return
	}
	var hosts []string
	for _, m := range list {
		host := strings.ToLower(strings.TrimSuffix(m.Host, "."))
		if slices.ContainsFunc(c.mxSuffixes, func(s string) bool { return strings.HasSuffix(host, s) }) {
			c.say("good: its MX is Microsoft's, %s", host)
			return
		}
		hosts = append(hosts, host)
	}
	c.note("its MX is %q, not Microsoft's (…%s); right where another gateway takes its mail first", strings.Join(hosts, ", "), c.mxSuffixes[0])
}

// route writes the block of a route.
func (c *check) route(ctx context.Context, r Route) {
	fmt.Fprintf(&c.out, "%s\n", shownText.Line(fmt.Sprintf("route %q (%s)", r.Name, r.Type)))
	if len(r.Addresses) == 0 {
		c.wrong("its addresses are unknown; write addresses: [203.0.113.7] at the route, with the public addresses from which this relay reaches %s, so that SPF can be checked", r.Endpoint)
	}
	for _, text := range r.Addresses {
		if _, err := publicNetwork(text); err != nil {
			c.wrong("%v", err)
		}
	}
	if _, err := netip.ParseAddr(r.Endpoint); err == nil {
		return
	}
	list, err := c.r.LookupIPAddr(ctx, r.Endpoint)
	switch {
	case isNotFound(err) || err == nil && len(list) == 0:
		c.wrong("DNS has no address of %s; the name stands in the Microsoft 365 admin centre as the MX record of the domain", r.Endpoint)
	case err != nil:
		c.unknown("the addresses of "+r.Endpoint, err)
	case c.faults == 0:
		c.say("good: %s is in DNS", r.Endpoint)
	}
}

// A cache asks each question once.
type cache struct {
	r    Resolver
	txt  map[string]answer[[]string]
	mx   map[string]answer[[]*net.MX]
	ip   map[string]answer[[]net.IPAddr]
	addr map[string]answer[[]string]
}

type answer[T any] struct {
	list T
	err  error
}

func newCache(r Resolver) *cache {
	return &cache{r, make(map[string]answer[[]string]), make(map[string]answer[[]*net.MX]),
		make(map[string]answer[[]net.IPAddr]), make(map[string]answer[[]string])}
}

// LookupTXT implements resolver.
func (c *cache) LookupTXT(ctx context.Context, name string) ([]string, error) {
	return askOnce(ctx, c.txt, rooted(name), c.r.LookupTXT)
}

// LookupMX implements resolver.
func (c *cache) LookupMX(ctx context.Context, name string) ([]*net.MX, error) {
	return askOnce(ctx, c.mx, rooted(name), c.r.LookupMX)
}

// LookupIPAddr implements resolver.
func (c *cache) LookupIPAddr(ctx context.Context, host string) ([]net.IPAddr, error) {
	return askOnce(ctx, c.ip, rooted(host), c.r.LookupIPAddr)
}

// LookupAddr implements resolver.
func (c *cache) LookupAddr(ctx context.Context, addr string) ([]string, error) {
	return askOnce(ctx, c.addr, addr, c.r.LookupAddr)
}

func askOnce[T any](ctx context.Context, known map[string]answer[T], name string, ask func(context.Context, string) (T, error)) (T, error) {
	if a, ok := known[name]; ok {
		return a.list, a.err
	}
	var a answer[T]
	if name == "." { // no mail has to do with the root
		a.err = &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	} else {
		a.list, a.err = ask(ctx, name)
	}
	known[name] = a
	return a.list, a.err
}

// rooted keeps the system's search domains out: contoso.com is never contoso.com.lan.
func rooted(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) + "." }

// An spfDraft is DNS as if the domain's only TXT record were text.
type spfDraft struct {
	*cache
	domain, text string
}

// LookupTXT implements resolver.
func (d spfDraft) LookupTXT(ctx context.Context, name string) ([]string, error) {
	if rooted(name) == rooted(d.domain) {
		return []string{d.text}, nil
	}
	return d.cache.LookupTXT(ctx, name)
}
