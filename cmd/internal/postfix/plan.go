package postfix

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/postfix/cf"
	"github.com/sendas/sendas/policy"
)

// What main.cf leads to Microsoft.
const (
	leadsEverything = "everything" // all mail, but for what tables lead elsewhere
	leadsSenders    = "senders"    // that of the mailboxes' senders; other mail leaves as it always has
)

// A change is one setting of ours, as the plan has it.
type change struct {
	cf.Change
	why      string
	good     bool // already: it is shown, not written
	chroot   string
	settings []shownSetting // of an entry
}

// A shownSetting is one -o of an entry, and why.
type shownSetting struct {
	cf.Setting
	why string
}

// A plan is all that Postfix needs for a configuration.
type plan struct {
	leads   string
	reason  string // for that
	changes []*change
}

// sentence tells a person what leaves by submission, and why.
func (plan *plan) sentence() string {
	switch plan.leads {
	case leadsNothing:
		return "mail leaves as before: " + plan.reason
	case leadsSenders:
		return "the mailboxes' senders leave by Microsoft: " + plan.reason
	}
	return "all mail leaves by Microsoft: " + plan.reason
}

// makePlan says what to write. p and v are Postfix as it would be without sendas.
func (p *Setup) makePlan(v *cf.Values) *plan {
	plan := &plan{leads: leadsEverything, reason: "this host sends everything there"}
	if others := p.otherMail(); others != "" && p.submits() {
		plan.leads, plan.reason = leadsSenders, "this host has other mail too: "+others
	}
	if p.Config.Observes() {
		plan.leads, plan.reason = leadsNothing, "sendas only observes, and mail goes on without it where it is away"
	}
	add := func(c *change) {
		if c != nil {
			plan.changes = append(plan.changes, c)
		}
	}
	rows := p.rows()
	for i := range rows {
		add(p.planMain(v, &rows[i], p.submission()))
	}
	if p.Config.Observes() {
		return plan
	}
	for _, route := range p.accountRoutes() {
		for i := range settings {
			if r := &settings[i]; r.place == inQueue {
				add(p.planMain(v, p.queueRow(r, route), route.Transport))
			}
		}
	}
	plan.changes = append(plan.changes, p.planMaster(v)...)
	return plan
}

// offered reports whether "sendas postfix" has to do with a row here.
func (r *settingRow) offered(p *Setup) bool {
	offer := r.offer
	if offer == nil {
		offer = r.when
	}
	out := r.place == inTransport || r.place == inQueue
	return r.why != "" && (offer == nil || offer(p)) && (!out || p.submits())
}

// good reports whether a value needs no change.
func (r *settingRow) good(p *Setup, value string) bool {
	return value == p.fill(r.want) && !r.strict || r.judge != nil && r.judge(value, p) == finding.OK
}

// planMain says what main.cf needs of a row, for the queue of a transport where it is one of those; nil
// is nothing.
func (p *Setup) planMain(v *cf.Values, r *settingRow, transport string) *change {
	if !r.offered(p) || r.place == inTransport {
		return nil
	}
	c := &change{Change: cf.Change{Name: r.name, Now: p.fill(r.want)}, why: r.why}
	value := p.Main[r.name]
	if r.place == inQueue {
		c.Name = transport + r.name
		var known bool
		if value, known = p.Main[c.Name]; !known {
			value = p.Main["default"+r.name]
		}
	}
	raw, set := v.Main[c.Name]
	c.good = r.good(p, value)
	switch {
	case r.write != writeAlways && c.good:
		return nil
	case c.good && set:
		c.Now = raw
	case set && raw != "" && r.merge != nil:
		c.Now, c.Added = r.merge(p, raw, c.Now)
		c.good = c.Added == "" // another list brings it
	default:
		c.good = false
	}
	if set {
		c.Was = &raw
	}
	return c
}

// planMaster says what master.cf needs: a transport for submission, and one for each other route.
func (p *Setup) planMaster(v *cf.Values) []*change {
	var list []*change
	if p.submits() {
		if s := p.service(p.submission(), "unix"); s != nil {
			list = append(list, p.planOverrides(v, s)...)
		} else {
			list = append(list, p.newEntry(p.submission(), "the way to Microsoft's submission server", p.submissionSettings()))
		}
	}
	if p.Config.Policy == nil {
		return list
	}
	for _, r := range p.accountRoutes() {
		if s := p.service(r.Transport, "unix"); s != nil {
			list = append(list, p.planOverrides(v, s)...)
		} else {
			list = append(list, p.newEntry(r.Transport, fmt.Sprintf("the route %s: %s, signed in to as %s alone", r.Name, r.NextHop, r.Account), p.submissionSettings()))
		}
	}
	for _, r := range p.Config.Policy.Routes()[1:] {
		if r.Type == policy.HVE {
			continue
		}
		if p.service(r.Transport, "unix") == nil && !slices.ContainsFunc(list, func(c *change) bool { return c.Service == r.Transport+"/unix" }) {
			var settings []shownSetting
			for _, s := range p.routeSettings(r) {
				settings = append(settings, shownSetting{s, ""})
			}
			list = append(list, p.newEntry(r.Transport, fmt.Sprintf("the route %s: the %s knows no mailbox, and must never be offered a token", r.Name, r.NextHop), settings))
		}
	}
	return append(list, p.planPickup(v)...)
}

// submissionSettings are the -o of the transport of submission: all that it depends on, whatever
// main.cf says now or later.
func (p *Setup) submissionSettings() []shownSetting {
	var list []shownSetting
	for i := range settings {
		if r := &settings[i]; r.place == inTransport && r.offered(p) {
			list = append(list, shownSetting{cf.Setting{Name: r.name, Value: p.fill(r.want)}, r.why})
		}
	}
	return list
}

// planOverrides mends a transport that is there, and keeps what is good in it.
func (p *Setup) planOverrides(v *cf.Values, s *entry) []*change {
	p.Transports = []*entry{s}
	var list []*change
	for i := range settings {
		r := &settings[i]
		_, said := s.overrides[r.name]
		if r.place != inTransport || !r.offered(p) || said && r.good(p, p.Value(s, r.name)) {
			continue
		}
		c := &change{Change: cf.Change{Service: s.Key(), Name: r.name, Now: cf.Unspaced(p.fill(r.want))}, why: r.why}
		if was, ok := v.Overrides[s.Key()][r.name]; ok {
			c.Was = &was
		}
		list = append(list, c)
	}
	return list
}

// planPickup sends mail of programs on this host by the connector that its client has: such mail
// passes no policy service, which would say so.
func (p *Setup) planPickup(v *cf.Values) []*change {
	client := p.Config.Policy.OwnMail()
	if client == nil || client.Route.Type != policy.Connector || p.service("pickup", "unix") == nil {
		return nil
	}
	c := &change{Change: cf.Change{Service: "pickup/unix", Name: "content_filter", Now: client.Route.Destination()},
		why: "mail of programs on this host passes no policy service, which would choose the route " + client.Route.Name}
	if was, ok := v.Overrides[c.Service][c.Name]; ok {
		c.Was, c.good = &was, was == c.Now
	}
	return []*change{c}
}

// newEntry is a transport that is a copy of smtp, chrooted as that one is.
func (p *Setup) newEntry(name, why string, settings []shownSetting) *change {
	chroot := "-"
	if s := p.service("smtp", "unix"); s != nil {
		chroot = s.chroot
	}
	var list []cf.Setting
	for _, s := range settings {
		list = append(list, s.Setting)
	}
	return &change{Change: cf.Change{Service: name + "/unix", Now: cf.Entry(name, chroot, list)}, why: why, chroot: chroot, settings: settings}
}

// text writes the lines of one file, each with its reason on a line before it.
func (plan *plan) text(file string) string {
	var b strings.Builder
	for _, c := range plan.changes {
		switch {
		case c.File() != file:
		case c.Service == "":
			fmt.Fprintf(&b, "# %s\n%s\n", c.why, cf.Assignment(c.Name, c.Now))
		case c.Name == "":
			fmt.Fprintf(&b, "# %s\n%s", c.why, c.entry())
		default: // one parameter of an entry that is there: a command, and so a comment here
			fmt.Fprintf(&b, "# %s:\n# postconf -P '%s/%s=%s'\n", c.why, c.Service, c.Name, c.Now)
		}
	}
	return b.String()
}

// entry writes an entry of master.cf on several lines.
func (c *change) entry() string {
	name, _, _ := strings.Cut(c.Service, "/")
	var b strings.Builder
	fmt.Fprintf(&b, "%-10s unix  -       -       %s       -       -       smtp\n", name, c.chroot)
	for _, s := range c.settings {
		if s.why != "" {
			fmt.Fprintf(&b, "    # %s\n", s.why)
		}
		if strings.ContainsAny(s.Value, " \t") {
			fmt.Fprintf(&b, "    -o { %s = %s }\n", s.Name, s.Value)
		} else {
			fmt.Fprintf(&b, "    -o %s=%s\n", s.Name, s.Value)
		}
	}
	return b.String()
}
