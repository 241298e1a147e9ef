package postfix

import (
	"cmp"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/postfix/cf"
	"github.com/sendas/sendas/cmd/internal/postfix/senders"
)

// checkEntrance looks at what stands between a client of sendas.yaml and the milter: whether it can
// connect and may relay, and what refuses it before sendas is asked.
func (p *Setup) checkEntrance(s finding.Section) {
	var outside []string
	for _, c := range p.Config.Clients {
		for _, n := range c.Networks {
			if net, ok := parsePrefix(n); ok && !net.Addr().IsLoopback() {
				outside = append(outside, n)
			}
		}
	}
	p.checkInterfaces(s, outside)
	p.checkNetworks(s)
	if len(outside) > 0 {
		p.checkEarly(s)
		p.checkProxies(s)
	}
}

// checkProxies finds ports whose mail a filter sees before the queue (SMTPD_PROXY_README): Postfix shows
// the milter what a client sends nowhere but where the filter gives it back, as mail of this host. Only
// a filter that says XCLIENT there leaves the client what it is.
func (p *Setup) checkProxies(s finding.Section) {
	const name = "smtpd_proxy_filter"
	var list, open, back []*entry
	handsOn := false
	for _, v := range p.running("smtpd") {
		switch {
		case v.loopback():
			handsOn = handsOn || v.overrides["smtpd_authorized_xclient_hosts"] != ""
			back = append(back, v)
		case p.Value(v, name) != "":
			list = append(list, v)
		case p.meetsSendas(v):
			open = append(open, v)
		}
	}
	for _, v := range list {
		id, what, value := v.name+"."+name, name+" of "+v.Key(), p.Value(v, name)
		after := []cf.Setting{{Name: name}, {Name: "content_filter", Value: "smtp:" + bracketed(value)}}
		set := p.setAll(v, after)
		if len(back) == 1 {
			set = p.edit(v, after) + " && " + p.setAll(back[0], append([]cf.Setting{{Name: "content_filter"}}, pastSendas...))
		}
		a := Advices["before-queue"].With("set", set)
		switch {
		case handsOn:
			s.Ok(id, what, "%s, which says XCLIENT", cf.Shown(value))
		case len(open) > 0:
			s.Warn(id, what, cf.Shown(value)+"; the port "+open[0].name+" has none", a)
		default:
			s.Fail(id, what, cf.Shown(value), a)
		}
	}
}

// bracketed writes the host of a filter as a transport wants it: [host]:port.
func bracketed(value string) string {
	value = strings.TrimPrefix(value, "inet:")
	host, port, named := cutLast(value, ":")
	switch {
	case strings.HasPrefix(value, "["):
		return value
	case !named:
		return "[127.0.0.1]:" + value
	}
	return "[" + cmp.Or(host, "127.0.0.1") + "]:" + port
}

// parsePrefix reads a network, or an address alone.
func parsePrefix(text string) (netip.Prefix, bool) {
	text = strings.NewReplacer("[", "", "]", "").Replace(text)
	if net, err := netip.ParsePrefix(text); err == nil {
		return net.Masked(), true
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(addr, addr.BitLen()), true
}

// loopbackOf is the address by which programs of this host come, of the same family.
func loopbackOf(addr netip.Addr) netip.Prefix {
	if addr.Is4() {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 32)
	}
	return netip.PrefixFrom(netip.IPv6Loopback(), 128)
}

// checkInterfaces looks whether devices can connect at all.
func (p *Setup) checkInterfaces(s finding.Section, outside []string) {
	value := p.Main["inet_interfaces"]
	local := !slices.ContainsFunc(cf.Split(value), func(i string) bool {
		addr, err := netip.ParseAddr(strings.Trim(i, "[]"))
		return i != "loopback-only" && i != "localhost" && (err != nil || !addr.IsLoopback())
	})
	open := slices.ContainsFunc(p.services, func(v entry) bool { // a port with an address of its own
		host, _, named := cutLast(v.name, ":")
		return v.kind == "inet" && named && host != "" && !v.loopback()
	})
	if len(outside) == 0 || value == "" || !local || open {
		s.Ok("inet_interfaces", "inet_interfaces", "%s", cf.Shown(value))
		return
	}
	s.Warn("inet_interfaces", "inet_interfaces", value, Advices["nobody"].With("networks", strings.Join(outside, " "),
		"set", p.edit(nil, []cf.Setting{{Name: "inet_interfaces", Value: "all"}}), "restart", p.inst.Command("postfix")+" stop; "+p.inst.Command("postfix")+" start"))
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// checkNetworks looks whether clients that are known by their network alone may relay. Tables and
// files of mynetworks are somebody's own; what stands in them is not looked at.
func (p *Setup) checkNetworks(s finding.Section) {
	var covered []netip.Prefix
	value := p.Main["mynetworks"]
	for _, item := range cf.Split(value) {
		net, ok := parsePrefix(item)
		if !ok {
			s.Skip("mynetworks", "mynetworks", "has an entry that is no network, so it is not compared with the clients")
			return
		}
		covered = append(covered, net)
	}
	var missing []string
	for _, c := range p.Config.Clients {
		if len(c.Logins)+len(c.Subjects)+len(c.Fingerprints) > 0 {
			continue // may relay by what they prove
		}
		for _, n := range c.Networks {
			net, ok := parsePrefix(n)
			if ok && net.Addr().IsLoopback() { // programs connect from the first address alone, which is Postfix's default, too
				net = loopbackOf(net.Addr())
			}
			if ok && !slices.ContainsFunc(covered, func(c netip.Prefix) bool { return c.Bits() <= net.Bits() && c.Contains(net.Addr()) }) {
				missing = append(missing, net.String())
			}
		}
	}
	if len(missing) == 0 || value == "" {
		s.Ok("mynetworks", "mynetworks", "%s", cf.Shown(value))
		return
	}
	for i, n := range missing {
		if addr, bits, _ := strings.Cut(n, "/"); strings.Contains(addr, ":") { // as Postfix writes IPv6
			missing[i] = "[" + addr + "]/" + bits
		}
	}
	s.Warn("mynetworks", "mynetworks", value, Advices["relays-not"].With("networks", strings.Join(missing, " "),
		"set", p.set(nil, "mynetworks", strings.Join(append(cf.Split(value), missing...), " "))))
}

// earlyLists are the restrictions that smtpd(8) asks before the milter hears of the message.
var earlyLists = []string{"smtpd_client_restrictions", "smtpd_helo_restrictions", "smtpd_sender_restrictions", "smtpd_recipient_restrictions"}

// tooStrict are the restrictions that devices do not meet: they greet with a bare name, and send from
// names that no DNS knows, which sendas would mend (SMTPD_ACCESS_README).
var tooStrict = []string{"reject_non_fqdn_helo_hostname", "reject_non_fqdn_hostname", "reject_invalid_helo_hostname", "reject_invalid_hostname", "reject_unknown_helo_hostname",
	"reject_unknown_hostname", "reject_non_fqdn_sender", "reject_unknown_sender_domain", "reject_unknown_client_hostname", "reject_unknown_client", "reject_unknown_reverse_client_hostname",
	"reject_unverified_sender"}

// checkEarly finds what refuses devices before sendas can mend what they write.
func (p *Setup) checkEarly(s finding.Section) {
	for _, name := range earlyLists {
		services := append([]*entry{nil}, p.running("smtpd")...)
		for _, v := range services {
			if v != nil {
				if _, own := v.overrides[name]; !own || v.loopback() || p.isWayBack(v) {
					continue
				}
			}
			p.checkEarlyList(s, name, v)
		}
	}
	if p.Main["strict_rfc821_envelopes"] == "yes" {
		s.Warn("strict_rfc821_envelopes", "strict_rfc821_envelopes", "yes", Advices["early-refusal"].With("item", "strict_rfc821_envelopes", "set", p.set(nil, "strict_rfc821_envelopes", "no")))
	}
}

func (p *Setup) checkEarlyList(s finding.Section, name string, v *entry) {
	list := cf.Split(p.Value(v, name))
	permit := slices.Index(list, "permit_mynetworks")
	strict := slices.IndexFunc(list, func(item string) bool { return slices.Contains(tooStrict, item) })
	id, what := name+".early", name
	if v != nil {
		id, what = v.name+"."+id, name+" of "+v.Key()
	}
	if strict < 0 || permit >= 0 && permit < strict {
		return
	}
	rest := slices.DeleteFunc(slices.Clone(list), func(item string) bool { return item == "permit_mynetworks" })
	first := []string{"permit_mynetworks"}
	if asked, _ := p.policyPlace(cf.JoinRestrictions(rest)); asked >= 0 && name == "smtpd_recipient_restrictions" { // it is asked of everybody
		first = slices.Concat(rest[asked:asked+2], first)
		rest = slices.Delete(rest, asked, asked+2)
	}
	s.Warn(id, what, list[strict]+" stands before permit_mynetworks", Advices["early-refusal"].With("item", list[strict], "set", p.set(v, name, cf.JoinRestrictions(slices.Concat(first, rest)))))
}

// hereLists are the classes of addresses in which Postfix ends mail itself (ADDRESS_CLASS_README).
var hereLists = []string{"mydestination", "virtual_mailbox_domains", "virtual_alias_domains"}

// checkHere finds domains of the tenant whose mail never reaches Microsoft.
func (p *Setup) checkHere(s finding.Section) {
	if p.Config.Policy == nil {
		return
	}
	found := false
	for _, domain := range p.Config.Policy.Domains() {
		for _, name := range hereLists {
			where, rest, is := p.listed(name, domain)
			if !is {
				continue
			}
			found = true
			a := Advices["here"].With("domain", domain, "do", "take "+domain+" out of "+where)
			if where == "" {
				a = Advices["here"].With("domain", domain, "do", p.set(nil, name, rest))
			}
			s.Fail("here."+domain, name, domain+" is a domain of the tenant", a)
			break
		}
	}
	if !found {
		s.Ok("here", "mydestination", "no domain of the tenant ends on this host")
	}
}

// listed reports whether a list of domains has one, as Postfix reads it: names, files, tables. where
// is the file or table; "" is the list itself, which without the domain is rest.
func (p *Setup) listed(name, domain string) (where, rest string, is bool) {
	raw := cf.Split(p.raw[name])
	for i, item := range raw {
		value := item
		if strings.Contains(item, "$") {
			value = p.expand(item)
		}
		for _, v := range cf.Split(value) {
			switch {
			case strings.EqualFold(v, domain):
				return "", strings.Join(slices.Delete(slices.Clone(raw), i, i+1), ", "), true
			case strings.HasPrefix(v, "/"):
				data, _ := os.ReadFile(v)
				if slices.ContainsFunc(strings.Fields(string(data)), func(w string) bool { return strings.EqualFold(w, domain) }) {
					return v, "", true
				}
			case strings.Contains(v, ":"):
				if _, found, err := p.ask(v, domain); err == nil && found {
					return cf.Shown(v), "", true
				}
			}
		}
	}
	return "", "", false
}

// expand replaces the $names in an item of a list.
func (p *Setup) expand(item string) string {
	return os.Expand(item, func(name string) string { return p.Main[strings.Trim(name, "()")] })
}

// judgeCanonical asks a table of canonical addresses for the senders of mailboxes: what it changes,
// cleanup(8) changes in the envelope after the milter has decided.
func judgeCanonical(value string, p *Setup) finding.Status {
	list, all := senders.Addresses(p.Config), !hasPatterns(p)
	if len(list) > maxAsked {
		list, all = list[:maxAsked], false
	}
	for _, table := range cf.Split(value) {
		for _, sender := range list {
			local, domain, _ := strings.Cut(sender, "@")
			keys := []string{sender, "@" + domain}
			if strings.EqualFold(domain, p.Main["myorigin"]) { // canonical(5)
				keys = append(keys, local)
			}
			for _, key := range keys {
				to, found, err := p.ask(table, key)
				if all = all && err == nil; found && err == nil && !strings.EqualFold(to, sender) {
					return finding.Fail
				}
			}
		}
	}
	return okIf(value == "" || all)
}

// hasPatterns reports whether some mailbox stands for addresses that nobody lists.
func hasPatterns(p *Setup) bool {
	return slices.ContainsFunc(p.Config.Mailboxes, func(m config.Mailbox) bool { return m.Pattern() })
}

// maxAsked bounds how many addresses a table is asked for: each is a process.
const maxAsked = 20

// judgeMasquerade finds senders whose domain Postfix shortens.
func judgeMasquerade(value string, p *Setup) finding.Status {
	list := senders.Addresses(p.Config)
	for _, m := range p.Config.Mailboxes {
		list = append(list, m.Address) // a pattern, too
	}
	for _, domain := range cf.Split(value) {
		if slices.ContainsFunc(list, func(sender string) bool {
			return strings.HasSuffix(strings.ToLower(sender), "."+strings.ToLower(domain))
		}) {
			return finding.Fail
		}
	}
	return finding.OK
}

// judgeProtocol accepts an older protocol where both lists say another one for sendas.
func judgeProtocol(value string, p *Setup) finding.Status {
	own := func(name string) bool {
		_, options := p.milterPlace(p.Main[name])
		return milterOption(options, "protocol") == "6"
	}
	return okIf(value == "" || own("smtpd_milters") && (own("non_smtpd_milters") || strings.Contains(p.raw["non_smtpd_milters"], "smtpd_milters")))
}

// milterOption returns what an item of a list of milters says of itself: name=value, or
// { name = value }.
func milterOption(options []string, name string) string {
	for _, o := range options {
		if n, value, ok := strings.Cut(strings.Trim(o, "{ }"), "="); ok && strings.TrimSpace(n) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// oldProtocol reports whether somebody, for another milter, has Postfix speak a protocol in which
// sendas cannot change what it must.
func (p *Setup) oldProtocol() bool {
	old := func(v string) bool { return v != "" && v != "6" }
	return old(p.Main["milter_protocol"]) || slices.ContainsFunc(p.running("smtpd"), func(v *entry) bool { return old(v.overrides["milter_protocol"]) })
}

// judgeMilterMaps finds networks whose mail passes no milter, or another one (smtpd_milter_maps of
// postconf(5)).
func judgeMilterMaps(value string, p *Setup) finding.Status {
	for _, table := range cf.Split(value) {
		list, ok := p.entries(table)
		if !ok {
			return finding.Warn
		}
		if slices.ContainsFunc(list, func(e cf.Setting) bool {
			net, isNet := parsePrefix(e.Name)
			place, _ := p.milterPlace(e.Value)
			return place < 0 && !(isNet && net.Addr().IsLoopback())
		}) {
			return ""
		}
	}
	return finding.OK
}
