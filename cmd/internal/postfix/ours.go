package postfix

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/postfix/cf"
	"github.com/sendas/sendas/internal/serve"
	"github.com/sendas/sendas/policy"
)

// ourSocket is what every reference to a socket of sendas has in common, wherever its queue directory
// is.
var ourSocket = regexp.MustCompile(`\bunix:(?:/\S*/)?sendas/(?:milter|policy|credentials)\b`)

// names reports whether a reference leads to a socket of sendas.
func (p *Setup) names(ref string, listen serve.Address) bool {
	return p.sameSocket(ref, listen) || ourSocket.MatchString(ref)
}

// ours finds the settings of sendas without the state file that remembers them: by its sockets, by
// the name of its transport, and by the values that it writes beside them. Each has the value that is
// to stay, or none.
func (p *Setup) ours(v *cf.Values) (list []*cf.Change, unknown []cf.Gap) {
	f := &finder{Setup: p, v: v}
	f.inMain()
	f.former()
	f.inMaster()
	if len(f.list) == 0 {
		return nil, nil
	}
	f.beside()
	return f.list, f.unknown
}

// A finder collects what is of sendas.
type finder struct {
	*Setup
	v       *cf.Values
	list    []*cf.Change
	unknown []cf.Gap
}

// take notes a setting that goes; rest is what stays of it, nil for nothing.
func (f *finder) take(service, name string, rest *string) {
	c := &cf.Change{Service: service, Name: name, Was: rest}
	c.Now, _ = f.v.Get(c)
	f.list = append(f.list, c)
}

// say notes what cannot be known.
func (f *finder) say(name, sentence string) {
	f.unknown = append(f.unknown, cf.Gap{Name: name, Says: sentence})
}

// takeItems takes items out of a list of main.cf's.
func (f *finder) takeItems(name string, ours func(string) bool) {
	list := cf.Split(f.v.Main[name])
	rest := slices.DeleteFunc(slices.Clone(list), ours)
	switch value := strings.Join(rest, ", "); {
	case len(rest) == len(list):
	case value == "":
		f.take("", name, nil)
	default:
		f.take("", name, &value)
	}
}

// inMain finds what names sendas in main.cf.
func (f *finder) inMain() {
	for _, name := range []string{"smtpd_milters", "non_smtpd_milters"} {
		f.takeItems(name, func(item string) bool {
			parts := cf.Braced(item)
			return len(parts) > 0 && f.names(parts[0], f.Config.Milter.Listen)
		})
	}
	f.takePolicy()
	f.takeItems("sender_dependent_default_transport_maps", func(t string) bool {
		list, inline := cf.InlineEntries(t)
		return f.asksFor(t, "transport") || inline && len(list) > 0 && !slices.ContainsFunc(list, func(e cf.Setting) bool {
			return !strings.HasPrefix(e.Value, f.submission()+":") && !f.isAccountWay(e.Value)
		})
	})
	f.takeItems("transport_maps", func(t string) bool {
		list, inline := cf.InlineEntries(t)
		return f.asksFor(t, "route") || inline && len(list) > 0 && !slices.ContainsFunc(list, func(e cf.Setting) bool {
			transport, _, _ := strings.Cut(e.Value, ":")
			return !strings.HasPrefix(transport, "sendas-") && !f.hasRoute(transport)
		})
	})
	for _, name := range []string{"default_transport", "relay_transport"} {
		if value, ok := f.v.Main[name]; ok && strings.HasPrefix(value, f.submission()+":") {
			f.take("", name, nil)
		}
	}
	for _, transport := range f.asking() {
		for i := range settings {
			if name := transport + settings[i].name; settings[i].place == inQueue && f.v.Main[name] != "" {
				f.take("", name, nil)
			}
		}
	}
}

// takePolicy takes the question to the policy service out of the restrictions.
func (f *finder) takePolicy() {
	const name = "smtpd_recipient_restrictions"
	list := cf.Split(f.v.Main[name])
	for i := 0; i+1 < len(list); i++ {
		if parts := cf.Braced(list[i+1]); list[i] != "check_policy_service" || len(parts) == 0 || !f.names(parts[0], f.Config.Milter.PolicyListen) {
			continue
		}
		rest := cf.JoinRestrictions(slices.Delete(list, i, i+2))
		if rest == "" {
			f.take("", name, nil)
		} else {
			f.take("", name, &rest)
		}
		return
	}
}

// former finds the settings of submission in main.cf, where former versions and docs had them.
func (f *finder) former() {
	if !f.asksFor(f.v.Main["smtp_sasl_password_maps"], "lease") {
		return
	}
	f.takeItems("sender_dependent_default_transport_maps", f.isSenderTable)
	for i := range settings {
		r := &settings[i]
		name := r.name
		if r.place == inQueue {
			name = "smtp" + name
		}
		value, set := f.v.Main[name]
		mine := r.place == inTransport && strings.HasPrefix(name, "smtp_") || r.place == inQueue
		known := slices.ContainsFunc(f.list, func(c *cf.Change) bool { return c.Name == name })
		if set && mine && !known && r.why != "" && (cf.Same(value, f.fill(r.want)) || ourSocket.MatchString(value)) {
			f.take("", name, nil)
		}
	}
	if f.v.Main["smtp_tls_security_level"] == "secure" {
		f.say("smtp_tls_security_level", "main.cf: smtp_tls_security_level, secure for Microsoft, is taken out; if other mail had one of its own, type: "+f.inst.Command("postconf")+" -e 'smtp_tls_security_level = may'")
	}
	if f.toMicrosoft(f.v.Main["relayhost"]) {
		f.say("relayhost", "main.cf: relayhost stays "+f.v.Main["relayhost"]+", which takes nothing without AUTH; what it was before is not known")
	}
}

// inMaster finds the transports that sendas has made, and what it has put into those of others.
func (f *finder) inMaster() {
	known := make(map[string]bool)
	for i := range settings {
		known[settings[i].name] = known[settings[i].name] || settings[i].place == inTransport
	}
	only := func(s *entry, more ...string) bool {
		for name := range s.overrides {
			if !known[name] && !slices.Contains(more, name) {
				return false
			}
		}
		return len(s.overrides) > 0
	}
	for _, transport := range f.asking() {
		s := f.service(transport, "unix")
		switch {
		case s == nil || !f.asksFor(s.overrides["smtp_sasl_password_maps"], "lease"):
		case only(s):
			f.take(s.Key(), "", nil)
		default:
			f.takeOverrides(s, known)
		}
	}
	if f.Config.Policy == nil {
		return
	}
	for _, r := range f.Config.Policy.Routes()[1:] {
		if s := f.service(r.Transport, "unix"); s != nil && s.overrides["smtp_sasl_auth_enable"] == "no" && only(s, "smtp_tls_chain_files") {
			f.take(s.Key(), "", nil)
		}
		if pickup := f.service("pickup", "unix"); r.Type == policy.Connector && pickup != nil && pickup.overrides["content_filter"] == r.Destination() {
			f.take(pickup.Key(), "content_filter", nil)
		}
	}
}

// takeOverrides takes out of an administrator's own entry what is as sendas writes it.
func (f *finder) takeOverrides(s *entry, known map[string]bool) {
	for i := range settings {
		r := &settings[i]
		value, set := s.overrides[r.name]
		if set && known[r.name] && r.place == inTransport && strings.ReplaceAll(value, ", ", ",") == strings.ReplaceAll(f.fill(r.want), ", ", ",") {
			f.take(s.Key(), r.name, nil)
		}
	}
	f.say("", fmt.Sprintf("master.cf: the entry %s stays, without what sendas had put into it; what stood there before is not known", s.Key()))
}

// beside finds what sendas writes into main.cf besides, where it names nothing of ours.
func (f *finder) beside() {
	for _, name := range []string{"internal_mail_filter_classes", "milter_default_action", "local_header_rewrite_clients", "resolve_numeric_domain", "tls_required_enable"} {
		if value, set := f.v.Main[name]; set && cf.Same(value, settingNamed(name).want) {
			f.take("", name, nil)
			f.say(name, "main.cf: "+cf.Assignment(name, value)+" is taken out; whether it stood there before sendas is not known")
		}
	}
	if hop, set := f.v.Main["relayhost"]; set && hop == "" && slices.ContainsFunc(f.list, func(c *cf.Change) bool { return c.Name == "default_transport" }) {
		f.say("relayhost", "main.cf: relayhost stays empty, so mail leaves directly; what it was before is not known")
	}
}

// takeOurs takes all of that out of a stage.
func takeOurs(ctx context.Context, s *cf.Stage, c *config.Site) (list []*cf.Change, unknown []cf.Gap, err error) {
	p, err := setup(ctx, s, c)
	if err != nil {
		return nil, nil, err
	}
	v, err := s.Values(ctx)
	if err != nil {
		return nil, nil, err
	}
	list, unknown = p.ours(v)
	for _, c := range list {
		value := ""
		if c.Was != nil {
			value = *c.Was
		}
		if err := s.Apply(ctx, c, value, c.Was != nil); err != nil {
			return nil, nil, err
		}
	}
	return list, unknown, nil
}
