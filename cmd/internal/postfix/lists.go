package postfix

import (
	"slices"
	"strings"

	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/postfix/cf"
	"github.com/sendas/sendas/cmd/internal/postfix/senders"
	"github.com/sendas/sendas/policy"
)

// milterItem is how a list of milters names that of sendas: with an action of its own where others
// count on another one, for which "accept" may be right, and with a protocol of its own where main.cf
// or a port has an older one for others.
func (p *Setup) milterItem() string {
	item := p.relative(p.Config.Milter.Listen).String()
	options := ""
	if p.oldProtocol() {
		options += ", protocol=6"
	}
	if p.keepsAction() {
		options += ", default_action=tempfail"
	}
	if options == "" {
		return item
	}
	return "{ " + item + options + " }"
}

// keepsAction reports whether milter_default_action has to stay as it is, for the sake of other
// milters, be it that of one port.
func (p *Setup) keepsAction() bool {
	if slices.ContainsFunc(p.running("smtpd"), func(v *entry) bool {
		action, own := v.overrides["milter_default_action"]
		return own && !keepsMail(action)
	}) {
		return true
	}
	others := slices.ContainsFunc(slices.Concat(cf.Split(p.Main["smtpd_milters"]), cf.Split(p.Main["non_smtpd_milters"])), func(item string) bool {
		place, _ := p.milterPlace(item)
		return place < 0
	})
	return others && p.Main["milter_default_action"] != "tempfail"
}

// mergeMilter puts the milter of sendas first. What a value such as $smtpd_milters stands for has
// it already when that list was extended.
func mergeMilter(p *Setup, raw, want string) (value, added string) {
	list := cf.Split(raw)
	if slices.ContainsFunc(list, func(item string) bool {
		m := cf.OtherName.FindStringSubmatch(item)
		return m != nil && m[1] == "smtpd_milters"
	}) {
		return raw, ""
	}
	if place, _ := p.milterPlace(raw); place >= 0 { // with an action that lets mail pass
		list = slices.Delete(list, place, place+1)
	}
	return strings.Join(slices.Concat([]string{want}, list), ", "), want
}

// mergeFirst puts an item before the others.
func mergeFirst(_ *Setup, raw, want string) (value, added string) {
	return strings.Join(slices.Concat([]string{want}, cf.Split(raw)), ", "), want
}

// mergeLast puts what a list lacks behind what it has.
func mergeLast(_ *Setup, raw, want string) (value, added string) {
	list := cf.Split(raw)
	more := missing(list, want)
	return strings.Join(append(list, more...), ", "), strings.Join(more, ", ")
}

// missing returns the items of want that a list lacks.
func missing(list []string, want string) []string {
	return slices.DeleteFunc(cf.Split(want), func(item string) bool { return slices.Contains(list, item) })
}

// mergePolicy puts the question to the policy service as late as it is still asked: before the
// first thing that permits. What refuses before that goes on refusing. The service permits nothing,
// so the list lets nobody in who was kept out.
func mergePolicy(p *Setup, raw, want string) (value, added string) {
	list := cf.Split(raw)
	at := len(list)
	for i, item := range list {
		if m := cf.OtherName.FindStringSubmatch(item); m != nil { // a name for a part of the list
			item = p.Main[m[1]]
		}
		if slices.ContainsFunc(cf.Split(item), givesPermission) {
			at = i
			break
		}
	}
	if asked, _ := p.policyPlace(raw); asked > at { // so late that nobody asks
		list = slices.Delete(list, asked, asked+2)
	}
	return cf.JoinRestrictions(slices.Insert(list, at, cf.Split(want)...)), want
}

// givesPermission reports whether a restriction ends the list by a permission.
func givesPermission(item string) bool { return item == "permit" || strings.HasPrefix(item, "permit_") }

// offersPolicy reports whether there is a policy service to ask.
func offersPolicy(p *Setup) bool { return p.Config.Milter.PolicyListen != "" }

// ownTable is the table of the recipients that a direct route reaches, "" where there is none. It
// stands in main.cf: Postfix looks into transport_maps at RCPT already, and a table of the token
// service would have devices, of which few try again, turned away with 451 while that service is
// down.
func (p *Setup) ownTable() string {
	if p.Config.Policy == nil {
		return ""
	}
	var list []string
	for _, d := range p.Config.Policy.Domains() {
		if r := p.Config.Policy.RouteTo("postmaster@" + d); r != nil {
			list = append(list, "{"+d+" = "+r.Destination()+"}")
		}
	}
	return senders.Inline(list)
}

// judgeOwnTable accepts the token service's map, and a table with every domain.
func judgeOwnTable(value string, p *Setup) finding.Status {
	return okIf(p.asksFor(value, "route") || hasEntries(value, p.ownTable()))
}

// hasEntries reports whether the tables in a value have each entry of a table of ours.
func hasEntries(value, table string) bool {
	entries := cf.Split(strings.TrimSuffix(strings.TrimPrefix(table, "inline:{"), "}"))
	value = cf.OneSpaced(value)
	return len(entries) > 0 && !slices.ContainsFunc(entries, func(e string) bool { return !strings.Contains(value, cf.OneSpaced(e)) })
}

// senderTables are the tables that say which senders leave by submission, and in which queue.
func (p *Setup) senderTables() senders.Tables {
	return senders.Tables{Config: p.Config, Transport: p.submission(), All: p.leadsAll(), Regexp: senders.HasInlineRegexp(p.Main["mail_version"], p.tables)}
}

// senderTable is the first of them, "" where nothing has to be said.
func (p *Setup) senderTable() string {
	if !p.submits() || p.Config.Policy == nil {
		return ""
	}
	return p.senderTables().Named()
}

// senders are all of them, "" where nothing has to be said.
func (p *Setup) senders() string {
	table := p.senderTable()
	if table == "" {
		return ""
	}
	if spread := p.senderTables().Spread(); spread != "" {
		table += ", " + spread
	}
	return table
}

// isSpread reports whether the tables in a value spread the senders of patterns as ours do.
func (p *Setup) isSpread(value string) bool {
	return strings.Contains(cf.OneSpaced(value), cf.OneSpaced(p.senderTables().Spread()))
}

// hasSenderTable reports whether main.cf has a table of senders of ours, be it an old one.
func (p *Setup) hasSenderTable() bool {
	return p.Config.Policy != nil && slices.ContainsFunc(cf.Split(p.Main["sender_dependent_default_transport_maps"]), func(t string) bool {
		return !p.asksFor(t, "transport") && p.isSenderTable(t)
	})
}

func judgeSenderTable(value string, p *Setup) finding.Status {
	if !p.accountsLed(value) {
		return finding.Fail // their mail would be shown to the server of submission, which takes none of it
	}
	return okIf(p.senderTable() == "" || p.asksFor(value, "transport") || hasEntries(value, p.senderTable()) && p.isSpread(value))
}

// routeSettings are the -o of a transport for a connector or a direct route: Postfix's own smtp, which
// knows no mailbox, and which main.cf cannot weaken.
func (p *Setup) routeSettings(r *policy.Route) []cf.Setting {
	list := []cf.Setting{{Name: "smtp_sasl_auth_enable", Value: "no"}, {Name: "smtp_sasl_password_maps"}, {Name: "smtp_reply_filter"}}
	for i := range settings {
		if row := &settings[i]; row.everyWay {
			list = append(list, cf.Setting{Name: row.name, Value: p.fill(row.want)})
		}
	}
	for _, c := range p.Config.Routes {
		if c.Name == r.Name && c.CertificateFile != "" {
			files := c.CertificateFile
			if c.KeyFile != "" { // Postfix wants the key first (smtp_tls_chain_files of postconf(5))
				files = c.KeyFile + "," + files
			}
			list = append(list, cf.Setting{Name: "smtp_tls_chain_files", Value: files})
		}
	}
	return list
}
