package policy

import (
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/sendas/sendas/policy/address"
)

// A fallback is a client's from: the identity for senders that are not authorised.
type fallback struct {
	base address.Spec // what holds where nothing can be put in
	tail string       // "+{local}"; "" without template
}

// The placeholders of from and display_name.
const (
	phLocal  = "{local}"  // the local part of the address that was asked for
	phClient = "{client}" // the client's name
	phName   = "{name}"   // the display name of the sender, or its local part
	phDomain = "{domain}" // the domain of the address that was asked for
)

// maxTag is how long the local part of a sender may be to be put into another one.
const maxTag = 40

// at returns the fallback for the address that was asked for. What could be read in two ways, or
// be no address at all, is left out.
func (f *fallback) at(asked address.Spec) address.Spec {
	if f.tail == "" {
		return f.base
	}
	tag := strings.ToLower(asked.Local)
	if tag == "" || len(tag) > maxTag || strings.Trim(tag, "abcdefghijklmnopqrstuvwxyz0123456789._-") != "" {
		return f.base
	}
	a := address.Spec{Local: f.base.Local + strings.ReplaceAll(f.tail, phLocal, tag), Domain: f.base.Domain}
	if !sendable(a) {
		return f.base
	}
	return a
}

// fallback settles what happens to senders that are not authorised.
func (b *builder) fallback(path string, s ClientSettings, c *Client) {
	if s.From != "" {
		c.from = b.from(path+".from", strings.ReplaceAll(s.From, phClient, s.Name), c.Route)
		c.From = c.from.base
	}
	toAccount := c.Route != nil && c.Route.Type == HVE // which is an identity to rewrite to
	switch c.OnUnauthorized {
	case "":
		c.OnUnauthorized = Refuse
		if s.From != "" || toAccount {
			c.OnUnauthorized = Rewrite
		}
	case Rewrite:
		if s.From == "" && !toAccount {
			b.fail(path+".on_unauthorized", "rewrite needs an identity to rewrite to; write from: with an address of a mailbox")
		}
	case Refuse:
	default:
		b.fail(path+".on_unauthorized", "%q is not an action; write rewrite or reject", s.OnUnauthorized)
	}
	b.displayName(path+".display_name", s.DisplayName)
	c.displayName = strings.ReplaceAll(s.DisplayName, phClient, s.Name)
	switch s.ReplyTo {
	case "", "original":
	case "none":
		c.noReplyTo = true
	default:
		a, err := address.ParseOwn(s.ReplyTo)
		if err != nil {
			b.fail(path+".reply_to", "%q is not a choice; write original, none or an address", address.Clip(s.ReplyTo))
		}
		c.replyTo = a
	}
}

// from reads a client's from, a template perhaps, and makes sure that all it can become is
// authorised.
func (b *builder) from(path, text string, r *Route) fallback {
	text, tail, ok := cutTemplate(text)
	if !ok {
		b.fail(path, "%q cannot be a sender; a template is an address with +{local} at the end of its local part, as in scan+{local}@contoso.com", address.Clip(text))
		return fallback{}
	}
	a, err := b.verified(text)
	if err != nil {
		b.fail(path, "%v", err)
		return fallback{}
	}
	if r == nil {
		return fallback{}
	}
	id, ok := b.onRoute(r, a)
	if account := b.p.accountRoute(a); account != nil {
		b.fail(path, "<%s> is the account of route %q, as which that route sends anyway; write the mailbox as which everything else is to leave, or remove this line", a, account.Name)
		return fallback{}
	}
	if !ok {
		b.fail(path, "no mailbox may send as <%s>; list it under send_as of the mailbox that has the permission", a)
		return fallback{}
	}
	f := fallback{base: id.addr, tail: tail}
	if tail == "" {
		return f
	}
	probe := address.Spec{Local: a.Local + strings.ReplaceAll(tail, phLocal, "x"), Domain: a.Domain}
	if !b.takes(r, probe) {
		b.fail(path, "no mailbox may send as <%s>; write plus_addresses: true at the mailbox if Exchange Online takes them as sender, or %s alone", probe, a)
	}
	return f
}

// onRoute finds out whether the route takes the address as a sender, whoever the recipients are that
// it does not refuse.
func (b *builder) onRoute(r *Route, a address.Spec) (identity, bool) {
	return b.p.onRoute(r, a, r.Type == Direct && !r.RefuseExternal)
}

// cutTemplate takes the template out of "scan+{local}@contoso.com": "scan@contoso.com" and
// "+{local}".
func cutTemplate(text string) (base, tail string, ok bool) {
	if !strings.ContainsAny(text, "{}") {
		return text, "", true
	}
	local, domain, _ := strings.Cut(text, "@")
	head, rest, found := strings.Cut(local, phLocal)
	if !found || rest != "" || strings.ContainsAny(head+domain, "{}") || len(head) < 2 {
		return text, "", false
	}
	sep := head[len(head)-1:]
	if !strings.Contains("+-._", sep) {
		return text, "", false
	}
	return head[:len(head)-1] + "@" + domain, sep + phLocal, true
}

// displayName checks a template of a display name.
func (b *builder) displayName(path, s string) {
	if strings.Map(address.Printable, s) != s || utf8.RuneCountInString(s) > address.MaxName {
		b.fail(path, "this cannot be a display name; write at most %d printable characters", address.MaxName)
		return
	}
	rest := s
	for _, p := range []string{phLocal, phClient, phName, phDomain} {
		rest = strings.ReplaceAll(rest, p, "")
	}
	if strings.ContainsAny(rest, "{}") {
		b.fail(path, "%q has a placeholder that does not exist; there are {name}, {local}, {domain} and {client}", address.Clip(s))
	}
}

// rename applies the client's template to the display name of a message that is rewritten.
func (c *Client) rename(name string, asked address.Spec) string {
	if c.displayName == "" {
		return name
	}
	if name == "" {
		name = asked.Local
	}
	// One pass, so that what a stranger puts in is not looked through for placeholders.
	name = strings.NewReplacer(phName, name, phLocal, asked.Local, phDomain, asked.Domain).Replace(c.displayName)
	return strings.Join(slices.DeleteFunc(strings.Split(name, " "), func(w string) bool { return w == "" }), " ")
}
