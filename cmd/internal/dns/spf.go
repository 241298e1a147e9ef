package dns

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// An spfRecord is the terms of a record (RFC 7208, section 4.6.1). Modifiers come last, and all
// in front of them, whatever the record's order: it means the same.
type spfRecord struct {
	mechanisms []string // without all
	all        string   // "-all", or empty
	modifiers  []string
	late       bool // mechanisms stood behind all
}

// parseSPF divides a record into terms. It does not check them.
func parseSPF(text string) spfRecord {
	var r spfRecord
	for _, t := range strings.Split(text, " ")[1:] { // behind "v=spf1"
		switch _, name, _, _ := splitTerm(t); {
		case t == "":
		case modifierForm.MatchString(t):
			r.modifiers = append(r.modifiers, t)
		case name != "all":
			r.late = r.late || r.all != ""
			r.mechanisms = append(r.mechanisms, t)
		case r.all == "":
			r.all = t
		}
	}
	return r
}

// with adds the terms of another record that the domain has. A redirect becomes an include,
// since it would hold for one of them only; of two ends the softer one stays.
func (r spfRecord) with(o spfRecord) spfRecord {
	for _, p := range []*spfRecord{&r, &o} {
		if to := p.modifier("redirect"); to != "" && p.all == "" {
			p.mechanisms = append(p.mechanisms, "include:"+to)
		}
		p.modifiers = slices.DeleteFunc(p.modifiers, func(m string) bool { return isModifier(m, "redirect") })
	}
	for _, m := range o.mechanisms {
		if !slices.Contains(r.mechanisms, m) {
			r.mechanisms = append(r.mechanisms, m)
		}
	}
	for _, m := range o.modifiers {
		if name, _, _ := strings.Cut(m, "="); r.modifier(name) == "" {
			r.modifiers = append(r.modifiers, m)
		}
	}
	if r.all == "" || spfQualifier(o.all) == '~' {
		r.all = o.all
	}
	r.late = r.late || o.late
	return r
}

// String returns the record as DNS has it.
func (r spfRecord) String() string {
	terms := append([]string{"v=spf1"}, r.mechanisms...)
	if r.all != "" {
		terms = append(terms, r.all)
	}
	return strings.Join(append(terms, r.modifiers...), " ")
}

// modifier returns the value of the modifier, or nothing.
func (r spfRecord) modifier(name string) string {
	for _, m := range r.modifiers {
		if isModifier(m, name) {
			return m[len(name)+1:]
		}
	}
	return ""
}

// dropRepeated keeps the first of the modifiers of that name and returns how many it dropped.
func (r *spfRecord) dropRepeated(name string) int {
	seen := false
	before := len(r.modifiers)
	r.modifiers = slices.DeleteFunc(r.modifiers, func(m string) bool {
		again := seen && isModifier(m, name)
		seen = seen || isModifier(m, name)
		return again
	})
	return before - len(r.modifiers)
}

// modifierForm is RFC 7208, section 4.6.1: an "=" before any ":" or "/".
var modifierForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]*=`)

func isModifier(term, name string) bool {
	return len(term) > len(name) && term[len(name)] == '=' && strings.EqualFold(term[:len(name)], name)
}

// mechanismForm has the name, the domain or address, and the two prefix lengths of a mechanism.
var mechanismForm = regexp.MustCompile(`^[-+~?]?([A-Za-z0-9]+)(?::([^/]*))?(?:/(\d{1,3}))?(?://(\d{1,3}))?$`)

// splitTerm takes a mechanism apart. The name is in lower case; a prefix length that is not
// there is -1. What is no mechanism has no name.
func splitTerm(t string) (qualifier byte, name, value string, bits [2]int) {
	bits = [2]int{-1, -1}
	m := mechanismForm.FindStringSubmatch(t)
	if m == nil {
		return '+', "", "", bits
	}
	for i := range bits {
		if n, err := strconv.Atoi(m[3+i]); err == nil {
			bits[i] = n
		}
	}
	return spfQualifier(t), strings.ToLower(m[1]), m[2], bits
}

// spfQualifier returns the qualifier of a mechanism: pass is the default.
func spfQualifier(t string) byte {
	if t != "" && strings.IndexByte("-~?", t[0]) >= 0 {
		return t[0]
	}
	return '+'
}

// isSPF is RFC 7208, section 4.5.
func isSPF(text string) bool {
	const version = "v=spf1"
	return len(text) >= len(version) && strings.EqualFold(text[:len(version)], version) &&
		(len(text) == len(version) || text[len(version)] == ' ')
}

// spfRecords returns the SPF records among the TXT records of a name.
func spfRecords(ctx context.Context, r Resolver, name string) ([]string, error) {
	list, err := r.LookupTXT(ctx, name)
	var records []string
	for _, text := range list {
		if isSPF(text) {
			records = append(records, text)
		}
	}
	return records, err
}

// An spfWalk is what can be learnt from a record without an address at hand: every term is
// visited, as receivers do for an address that matches none.
type spfWalk struct {
	r        Resolver
	lookups  int            // RFC 7208, section 4.6.4
	voids    []string       // terms that led to nothing
	includes []string       // names in lower case whose senders pass
	networks []netip.Prefix // that terms name or lead to
	open     []string       // terms that lead to a record with +all
	mute     []string       // terms that lead to a record which leaves strangers open
	costs    []string       // top-level terms with their look-ups, the dearest first
}

// walk visits the record as that of the domain. DNS has answered all its questions before, in
// dropBroken.
func (c *check) walk(ctx context.Context, domain string, rec spfRecord) *spfWalk {
	w := &spfWalk{r: spfDraft{c.r, domain, rec.String()}}
	costs := make(map[string]int)
	for _, m := range rec.mechanisms {
		before := w.lookups
		w.mechanism(ctx, domain, m, true)
		if n := w.lookups - before; n > 0 {
			costs[m] = n
			w.costs = append(w.costs, m)
		}
	}
	w.redirect(ctx, rec, true)
	slices.SortStableFunc(w.costs, func(a, b string) int { return costs[b] - costs[a] })
	for i, m := range w.costs {
		w.costs[i] = fmt.Sprintf("%2d  %s", costs[m], m)
	}
	return w
}

// record visits all terms. pass reports whether those who pass here pass in the end.
func (w *spfWalk) record(ctx context.Context, domain string, rec spfRecord, pass bool) {
	for _, m := range rec.mechanisms {
		w.mechanism(ctx, domain, m, pass)
	}
	w.redirect(ctx, rec, pass)
}

// redirect follows the modifier, which counts only where there is no all (RFC 7208, section 6.1).
func (w *spfWalk) redirect(ctx context.Context, rec spfRecord, pass bool) {
	to := rec.modifier("redirect")
	if to == "" || rec.all != "" {
		return
	}
	target, ok := w.follow(ctx, "redirect="+to, to, pass)
	if ok && target.modifier("redirect") == "" && (target.all == "" || spfQualifier(target.all) == '?') {
		w.mute = append(w.mute, "redirect="+to)
	}
}

// follow visits the record of another name.
func (w *spfWalk) follow(ctx context.Context, term, name string, pass bool) (spfRecord, bool) {
	if !w.count() || strings.Contains(name, "%") {
		return spfRecord{}, false // a macro leads elsewhere for each message
	}
	records, err := spfRecords(ctx, w.r, name)
	if w.void(term, err); len(records) != 1 {
		return spfRecord{}, false
	}
	rec := parseSPF(records[0])
	if pass && rec.all != "" && spfQualifier(rec.all) == '+' {
		w.open = append(w.open, term)
	}
	w.record(ctx, name, rec, pass)
	return rec, true
}

// count counts a look-up, and ends walks that lead round in a circle.
func (w *spfWalk) count() bool {
	w.lookups++
	return w.lookups <= maxSPFWalk
}

func (w *spfWalk) void(term string, err error) {
	if isNotFound(err) && !slices.Contains(w.voids, term) {
		w.voids = append(w.voids, term)
	}
}

// mechanism visits a term of the domain's record.
func (w *spfWalk) mechanism(ctx context.Context, domain, term string, pass bool) {
	qualifier, name, value, bits := splitTerm(term)
	if value == "" {
		value = domain
	}
	switch name {
	case "ip4", "ip6":
		if a, err := netip.ParseAddr(value); err == nil {
			w.network(a, bits[0])
		}
	case "include":
		pass = pass && qualifier == '+'
		if pass {
			w.includes = append(w.includes, strings.ToLower(strings.TrimSuffix(value, ".")))
		}
		w.follow(ctx, term, value, pass)
	case "a", "exists":
		if w.count() && !strings.Contains(value, "%") {
			w.void(term, w.addresses(ctx, value, bits))
		}
	case "mx":
		if w.count() && !strings.Contains(value, "%") {
			list, err := w.r.LookupMX(ctx, value)
			w.void(term, err)
			for _, m := range list {
				w.addresses(ctx, m.Host, bits)
			}
		}
	case "ptr":
		w.count()
	}
}

// addresses notes the networks around the addresses of a host.
func (w *spfWalk) addresses(ctx context.Context, host string, bits [2]int) error {
	list, err := w.r.LookupIPAddr(ctx, host)
	for _, ip := range list {
		a, ok := netip.AddrFromSlice(ip.IP)
		switch a = a.Unmap(); {
		case !ok:
		case a.Is4():
			w.network(a, bits[0])
		default:
			w.network(a, bits[1])
		}
	}
	return err
}

// network notes the network of that prefix length around the address; -1 is the address alone.
func (w *spfWalk) network(a netip.Addr, bits int) {
	if bits < 0 {
		bits = a.BitLen()
	}
	if n, err := a.Prefix(bits); err == nil {
		w.networks = append(w.networks, n)
	}
}
