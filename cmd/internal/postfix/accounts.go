package postfix

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/postfix/cf"
	"github.com/sendas/sendas/policy"
)

// A route of High Volume Email has a transport of one shape with that of submission: it asks for the
// credential of its account, and shows it to nobody but Microsoft. The envelope sender leads mail
// there, so the account stands in the table of senders.

// accountRoutes returns the routes of High Volume Email.
func (p *Setup) accountRoutes() []*policy.Route {
	if p.Config.Policy == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(p.Config.Policy.Routes()), func(r *policy.Route) bool { return r.Type != policy.HVE })
}

// asking returns the transports that ask sendas for credentials, that of submission first.
func (p *Setup) asking() []string {
	list := []string{p.submission()}
	for _, r := range p.accountRoutes() {
		list = append(list, r.Transport)
	}
	return list
}

// accountRoute returns the route of High Volume Email that has a transport, nil where none has.
func (p *Setup) accountRoute(transport string) *policy.Route {
	list := p.accountRoutes()
	if i := slices.IndexFunc(list, func(r *policy.Route) bool { return r.Transport == transport }); i >= 0 {
		return list[i]
	}
	return nil
}

// Way returns a transport that asks for a credential, "" being that of submission; nil where it does
// not, and where there is no Postfix.
func (p *Setup) Way(transport string) *entry {
	switch {
	case p == nil:
		return nil
	case transport == "":
		return p.Submission()
	}
	if i := slices.IndexFunc(p.Transports, func(v *entry) bool { return v.name == transport }); i >= 0 {
		return p.Transports[i]
	}
	return nil
}

// isAccountWay reports whether a value of a table of senders leads to a route of High Volume Email, be
// it one that the configuration has no longer.
func (p *Setup) isAccountWay(value string) bool {
	transport, hop, _ := strings.Cut(value, ":")
	return p.accountRoute(transport) != nil || strings.HasPrefix(transport, "sendas-") && config.IsHighVolumeHost(strings.Trim(strings.TrimSuffix(hop, ":587"), "[]"))
}

// accountsLed reports whether tables of senders lead each account to its route.
func (p *Setup) accountsLed(tables string) bool {
	var want []string
	for _, e := range p.senderTables().Accounts() {
		want = append(want, cf.OneSpaced(e))
	}
	have := cf.OneSpaced(tables)
	return p.asksFor(tables, "transport") || !slices.ContainsFunc(want, func(e string) bool { return !strings.Contains(have, e) })
}

// connections is how many messages may be under way by a transport of High Volume Email, as its route
// says.
func (p *Setup) connections(r *policy.Route) string {
	for i := range p.Config.Routes {
		if c := &p.Config.Routes[i]; c.Name == r.Name {
			return strconv.Itoa(c.Limits.Connections)
		}
	}
	return ""
}

// queueRow is a row for the queue of another transport than that of submission.
func (p *Setup) queueRow(r *settingRow, route *policy.Route) *settingRow {
	own := *r
	own.id = cmp.Or(r.id, route.Transport+r.name)
	if r.want == "{connections}" {
		own.want, own.why = p.connections(route), "as many connections at one time as the account of the route "+route.Name+" has"
		own.judge, own.means = anyCount, "fewer messages, or more, are under way than the account has connections: more of them only wait"
	}
	return &own
}

// anyCount accepts every number from 1 on.
func anyCount(v string, _ *Setup) finding.Status {
	n, err := strconv.Atoi(v)
	return okIf(err == nil && n > 0)
}

// checkAccountRoute looks at the transport of a route of High Volume Email; what its settings say,
// checkSettings does.
func (p *Setup) checkAccountRoute(s finding.Section, id, what string, v *entry) {
	if !p.asksFor(p.Value(v, "smtp_sasl_password_maps"), "lease") {
		s.Fail(id, what, "does not ask sendas", Advices["no-credential"].With("transport", v.name, "enable", p.enable()))
		return
	}
	s.Ok(id, what, "stands in master.cf, and asks sendas for the credential of its account")
}
