package postfix

import (
	"os"
	"slices"
	"strings"

	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/postfix/cf"
	"github.com/sendas/sendas/cmd/internal/postfix/senders"
	"github.com/sendas/sendas/policy"
)

// wayOf returns where a value of the form transport:nexthop leads (default_transport of
// postconf(5)); without a next-hop, relayhost says it. "" is the recipient's own domain.
func (p *Setup) wayOf(value string) (transport, hop string) {
	transport, hop, _ = strings.Cut(value, ":")
	if hop = strings.TrimSpace(hop); hop == "" {
		hop = p.Main["relayhost"]
	}
	return strings.TrimSpace(transport), hop
}

// toMicrosoft reports whether a next-hop is the submission host, however its port and brackets are
// written; several hops are tried in turn.
func (p *Setup) toMicrosoft(hop string) bool {
	want, _, _ := strings.Cut(p.Config.Tenant.Endpoints.Submission, ":")
	hops := cf.Split(hop)
	return len(hops) > 0 && !slices.ContainsFunc(hops, func(h string) bool {
		if inner, bracketed := strings.CutPrefix(h, "["); bracketed {
			h, _, _ = strings.Cut(inner, "]")
		} else {
			h, _, _ = strings.Cut(h, ":")
		}
		return !strings.EqualFold(h, want)
	})
}

// closed reports whether a transport leads nowhere: it refuses, keeps, throws away or delivers here.
func (p *Setup) closed(transport string) bool {
	program := transport
	if s := p.service(transport, "unix"); s != nil {
		program = s.program
	}
	return slices.Contains([]string{"error", "discard", "local", "virtual"}, program)
}

// submissionWay is transport and next-hop of submission.
func (p *Setup) submissionWay() string {
	return p.submission() + ":" + nextHop(p.Config.Tenant.Endpoints.Submission)
}

// otherMail names a setting of the administrator's that sends mail elsewhere, so that the senders of
// mailboxes alone are led to Microsoft; "" where all mail is to go there. Postfix's defaults count
// for nothing: some of them once had values. A transport that leads nowhere is no other mail.
func (p *Setup) otherMail() string {
	named := func(name string) string { return name + " = " + cf.ShownParameter(name, p.Main[name]) }
	transport, hop := p.wayOf(p.Main["default_transport"])
	switch {
	case p.led || p.toMicrosoft(hop) || p.closed(transport):
		return ""
	case hop != "" && hop == p.Main["relayhost"]:
		return named("relayhost")
	case hop != "" || transport != "smtp" || p.explicit["default_transport"]:
		return named("default_transport")
	}
	for _, name := range []string{"transport_maps", "sender_dependent_relayhost_maps", "sender_dependent_default_transport_maps", "relay_domains"} {
		value := p.Main[name]
		ours := name == "transport_maps" && p.onlySendas(value) || name == "sender_dependent_default_transport_maps" && p.onlySenders(value)
		if p.explicit[name] && value != "" && !ours {
			return named(name)
		}
	}
	return ""
}

// leadsAll reports whether all mail is to leave by submission, but for what tables lead elsewhere.
func (p *Setup) leadsAll() bool { return p.submits() && p.otherMail() == "" }

// onlySenders reports whether each table of senders is one of ours, be it an old one.
func (p *Setup) onlySenders(tables string) bool {
	return !slices.ContainsFunc(cf.Split(tables), func(t string) bool { return !p.isSenderTable(t) })
}

// isSenderTable reports whether a table of senders is one that sendas has written, or asks it.
func (p *Setup) isSenderTable(table string) bool {
	if p.asksFor(table, "transport") || senders.IsSpread(table) {
		return true
	}
	list, ok := cf.InlineEntries(table)
	return ok && len(list) > 0 && !slices.ContainsFunc(list, func(e cf.Setting) bool {
		transport, hop, _ := strings.Cut(e.Value, ":")
		return !p.isAccountWay(e.Value) && (!p.toMicrosoft(hop) || transport != p.submission() && transport != "smtp")
	})
}

// carriers are the transports to which main.cf leads mail for Microsoft's submission server. They
// are looked for in the tables that stand in main.cf itself; others lead where their owner wants.
func (p *Setup) carriers() []string {
	var list []string
	add := func(value string) {
		if transport, hop := p.wayOf(value); p.toMicrosoft(hop) && transport != "" && !slices.Contains(list, transport) {
			list = append(list, transport)
		}
	}
	add(p.Main["default_transport"])
	if p.Main["relay_domains"] != "" {
		add(p.Main["relay_transport"])
	}
	for _, name := range []string{"sender_dependent_default_transport_maps", "transport_maps"} {
		for _, table := range cf.Split(p.Main[name]) {
			entries, _ := cf.InlineEntries(table)
			for _, e := range entries {
				if name != "transport_maps" || !strings.HasSuffix(e.Value, ":") { // there the domain is the next-hop
					add(e.Value)
				}
			}
		}
	}
	if p.asksFor(p.Main["sender_dependent_default_transport_maps"], "transport") {
		add(p.submissionWay())
	}
	return list
}

// entries reads a table: one of patterns or networks from its file, others by postmap(1). ok is false
// for one that cannot be listed, such as that of a directory.
func (p *Setup) entries(table string) (list []cf.Setting, ok bool) {
	table = strings.TrimPrefix(table, "proxy:") // root reads the table itself
	if list, ok := cf.InlineEntries(table); ok {
		return list, true
	}
	kind, file, _ := strings.Cut(table, ":")
	var text string
	var err error
	if slices.Contains([]string{"cidr", "pcre", "regexp"}, kind) {
		var data []byte
		data, err = os.ReadFile(file)
		text = string(data)
	} else {
		text, err = p.postmap("-s", table)
	}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 1 && !strings.HasPrefix(f[0], "#") {
			list = append(list, cf.Setting{Name: f[0], Value: strings.Join(f[1:], " ")})
		}
	}
	return list, err == nil
}

// judgeDefault accepts a way to the submission host by a transport that asks sendas.
func judgeDefault(value string, p *Setup) finding.Status {
	transport, hop := p.wayOf(value)
	return okIf(p.toMicrosoft(hop) && strings.Contains(value, ":") && transport == p.submission())
}

// relaysToMicrosoft reports whether mail of relay_domains goes where relayhost says, to Microsoft,
// by a transport that knows no mailbox; or nowhere.
func relaysToMicrosoft(p *Setup) bool {
	transport, hop := p.wayOf(p.Main["relay_transport"])
	if !p.leadsAll() || p.Main["relay_domains"] == "" || transport == p.submission() {
		return false
	}
	return p.toMicrosoft(hop) || p.closed(transport)
}

// judgeBare finds entries of transport_maps that name a host and no transport (transport(5)): the
// transport is then that of the sender or the default, so that of sendas, which would show a token
// to that host, or find that its certificate is not its own.
func judgeBare(value string, p *Setup) finding.Status {
	for _, table := range cf.Split(value) {
		list, _ := p.entries(table)
		if slices.ContainsFunc(list, func(e cf.Setting) bool {
			host, bare := strings.CutPrefix(e.Value, ":")
			return bare && host != "" && !p.toMicrosoft(host)
		}) {
			return ""
		}
	}
	return okIf(true)
}

// stranger is a recipient that no table means.
const stranger = "someone@recipient.invalid"

// judgeAll finds an entry of transport_maps, "*" or a pattern, that leads every recipient by another
// transport than that of submission (transport(5)).
func judgeAll(value string, p *Setup) finding.Status {
	for _, table := range cf.Split(value) {
		if p.asksFor(table, "route") {
			continue
		}
		for _, key := range []string{stranger, "*"} {
			way, found, err := p.ask(table, key)
			if transport, _, _ := strings.Cut(way, ":"); err == nil && found && transport != "" && transport != p.submission() {
				return ""
			}
		}
	}
	return finding.OK
}

// judgeRelayhosts accepts tables of relayhosts that all lead to Microsoft: submission does the same.
func judgeRelayhosts(value string, p *Setup) finding.Status {
	for _, table := range cf.Split(value) {
		list, ok := p.entries(table)
		if !ok || slices.ContainsFunc(list, func(e cf.Setting) bool { return !p.toMicrosoft(e.Value) }) {
			return ""
		}
	}
	return okIf(true)
}

// hasRoute reports whether a transport is that of a route.
func (p *Setup) hasRoute(transport string) bool {
	return p.Config.Policy != nil && slices.ContainsFunc(p.Config.Policy.Routes(), func(r *policy.Route) bool { return r.Transport == transport })
}
