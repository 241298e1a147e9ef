package policy

import (
	"cmp"
	"slices"
	"strings"

	"github.com/sendas/sendas/policy/address"
)

// Sendas decides on mail that leaves by its ways. What Postfix delivers elsewhere passes untouched,
// whoever sends it: recipients of the class local, virtual or relay (ADDRESS_CLASS_README), and
// those that an entry of transport_maps leads away, whatever the sender. All else is ours, also
// where Postfix would send it another way for a sender that nobody may use. In doubt it is ours.

// ClassData is what Postfix's settings say of the recipients that it delivers itself. "sendas
// postfix enable" writes it down, and its JSON keys are stable. Domains are in lower case; one that
// begins with a dot stands for all below it. Ways are transport:nexthop, either part may be empty.
type ClassData struct {
	Version int    `json:"version"`          // [ClassVersion]
	Folder  string `json:"config_directory"` // of the Postfix that it is about

	Receives  bool     `json:"receives"`  // mail of others, and not for its own names alone
	Origin    string   `json:"origin"`    // myorigin: the domain of addresses without one
	Delimiter string   `json:"delimiter"` // recipient_delimiter
	Local     []string `json:"local"`     // domains of mydestination
	Alias     []string `json:"alias"`     // virtual_alias_domains
	Mailbox   []string `json:"mailbox"`   // virtual_mailbox_domains
	Relay     []string `json:"relay"`     // relay_domains

	LocalWay   string `json:"local_way"` // local_transport
	MailboxWay string `json:"mailbox_way"`
	RelayWay   string `json:"relay_way"` // with relayhost, where relay_transport has no nexthop

	Ways     map[string]string `json:"ways"`     // transport_maps
	Defaults []string          `json:"defaults"` // the transports of all other mail, for whatever sender

	Aliases      map[string][]string `json:"aliases"`       // virtual_alias_maps and canonical tables
	LocalAliases map[string][]string `json:"local_aliases"` // alias_maps and .forward files: what of them is an address
	Copies       []string            `json:"copies"`        // who gets copies of all or of some mail (always_bcc, recipient_bcc_maps, …)

	Opaque []OpaqueTable `json:"opaque"` // what could not be listed
}

// ClassVersion is the form of ClassData.
const ClassVersion = 1

// An OpaqueTable is a table that nobody can list: SQL, LDAP, patterns, or one that could not be
// read.
type OpaqueTable struct {
	Doubt   Doubt  `json:"doubt"`
	Setting string `json:"setting"` // "virtual_alias_maps"
	Table   string `json:"table"`   // "mysql:/etc/postfix/aliases.cf"
}

// A Doubt is what is not known where a table cannot be listed.
type Doubt string

// The doubts.
const (
	DoubtClass   Doubt = "class"   // which domains are Postfix's own
	DoubtWay     Doubt = "way"     // what transport_maps leads away
	DoubtAlias   Doubt = "alias"   // who else gets mail for a recipient
	DoubtLocal   Doubt = "local"   // the same, for recipients of the class local
	DoubtDefault Doubt = "default" // by which transports other mail leaves
)

// Received says what becomes of mail that Postfix delivers elsewhere.
type Received string

// The values of milter.received.
const (
	PassReceived   Received = "pass"           // it passes untouched, whoever sends it
	TrustReceived  Received = "trust"          // the same; and tables that cannot be listed are trusted to lead nobody's mail outside
	RefuseReceived          = Received(Reject) // it passes untouched, and only clients may send it
)

// Classes are ClassData made ready for use. They never change, and are safe for concurrent use.
type Classes struct {
	data     *ClassData
	class    map[string]string // by domain: the way; "" for alias domains
	defaults map[string]bool
	doubts   map[Doubt]string // the setting
}

// NewClasses makes data ready. It keeps the data.
func NewClasses(data *ClassData) *Classes {
	c := &Classes{data: data, class: make(map[string]string), defaults: make(map[string]bool), doubts: make(map[Doubt]string)}
	for _, l := range []struct {
		domains []string
		way     string
	}{ // the order of trivial-rewrite(8)
		{data.Local, cmp.Or(data.LocalWay, "local:")}, {data.Alias, ""}, {data.Mailbox, cmp.Or(data.MailboxWay, "virtual:")}, {data.Relay, cmp.Or(data.RelayWay, "relay:")},
	} {
		for _, d := range l.domains {
			if _, taken := c.class[d]; !taken {
				c.class[d] = l.way
			}
		}
	}
	for _, t := range data.Defaults {
		c.defaults[t] = true
	}
	for _, o := range data.Opaque {
		if c.doubts[o.Doubt] == "" {
			c.doubts[o.Doubt] = o.Setting
		}
	}
	return c
}

// A Hint is what Postfix itself says at RCPT, by the macros {rcpt_mailer}, {rcpt_host} and
// {rcpt_addr}. It follows the sender as asked, comes before virtual aliases, and there is none for
// mail of sendmail(1), for bounces, and in the policy delegation protocol.
type Hint struct{ Mailer, Host, Addr string }

// A Verdict says whose business a recipient is.
type Verdict uint8

// The verdicts.
const (
	Ours      Verdict = iota // it leaves by a way of sendas
	Elsewhere                // Postfix delivers it, and nobody else
	Doubtful                 // it cannot be told, so it counts as ours
)

// A Place is what becomes of one recipient.
type Place struct {
	Verdict Verdict
	// By is the transport that delivers elsewhere; the setting that leaves a doubt; or the address
	// outside that an alias leads to, "" where there is no alias.
	By string
	// Unheard tells that it is ours by what was collected alone, on a host that receives mail: a
	// domain may be newer than that, and Postfix would have said so.
	Unheard bool
}

// Place says what becomes of a recipient as the envelope names it. Without classes, or with the
// zero Hint, it says what can be told all the same.
func (p *Rules) Place(c *Classes, rcpt string, h Hint) Place {
	if c == nil {
		return Place{}
	}
	a, err := address.Parse(cmp.Or(h.Addr, rcpt))
	switch {
	case err != nil || a.IsZero():
		return Place{Verdict: Doubtful, By: "no address"}
	case h.Addr == "" && strings.ContainsAny(a.Local, "%!@"): // Postfix may read another address out of it
		return Place{Verdict: Doubtful, By: "allow_percent_hack"}
	}
	w := walk{p: p, Classes: c, hint: h, trust: p.received == TrustReceived}
	at := w.follow(w.complete(a))
	at.Unheard = at.Verdict == Ours && at.By == "" && h.Mailer == "" && c.data.Receives
	if len(c.data.Copies) == 0 || at.Verdict != Elsewhere {
		return at
	}
	if copies := w.all(c.data.Copies, address.Spec{}, w.follow); copies.Verdict != Elsewhere {
		return copies
	}
	return at
}

// leads reports whether a transport and next-hop are a way of sendas: a transport of its own, or
// one that goes where a route of it goes.
func (p *Rules) leads(transport, hop string) bool {
	return slices.ContainsFunc(p.routes, func(r *Route) bool {
		return r.Transport == transport || hasHop(hop, r.NextHop)
	})
}

// hasHop reports whether a next-hop, which may be a list, names the host of another one. Ports do
// not count: one may be written as a name, and zeros in front give one server several queues.
func hasHop(list, of string) bool {
	for hop := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' }) {
		if strings.EqualFold(hopHost(hop), hopHost(of)) {
			return true
		}
	}
	return false
}

// hopHost returns the host of a next-hop: [host]:port, host:port, either without the port.
func hopHost(hop string) string {
	if inner, bracket := strings.CutPrefix(hop, "["); bracket {
		host, _, _ := strings.Cut(inner, "]")
		return host
	}
	host, _, _ := strings.Cut(hop, ":")
	return host
}

// walk follows one recipient through the aliases to those who get its mail.
type walk struct {
	*Classes
	p     *Rules
	hint  Hint // of the recipient itself: not of those that an alias leads to
	trust bool
	left  bool // it has left the recipient itself

	under []string         // what is being followed: an alias of itself ends there
	done  map[string]Place // what was followed
}

// maxWalk bounds the aliases of one recipient; virtual_alias_recursion_limit and
// virtual_alias_expansion_limit are 1000.
const maxWalk = 1000

// complete gives an address the domain that Postfix gives it.
func (w *walk) complete(a address.Spec) address.Spec {
	if a.Domain == "" {
		a.Domain = w.data.Origin
	}
	return a
}

// follow says what becomes of an address by the tables that hold for all classes.
func (w *walk) follow(a address.Spec) Place {
	targets, known := w.aliases(a)
	if known {
		if at, again := w.expand(a.Key(), targets, a, w.follow); !again {
			return at
		}
	}
	at := w.deliver(a)
	if setting := w.doubts[DoubtAlias]; at.Verdict == Elsewhere && setting != "" && !known && !w.trust {
		return Place{Verdict: Doubtful, By: setting}
	}
	return at
}

// expand follows the targets of an alias, once. again reports that the alias is its own target.
func (w *walk) expand(key string, targets []string, a address.Spec, next func(address.Spec) Place) (at Place, again bool) {
	if at, ok := w.done[key]; ok {
		return at, false
	}
	switch {
	case slices.Contains(w.under, key):
		return Place{}, true
	case len(w.under)+len(w.done) > maxWalk:
		return Place{Verdict: Doubtful, By: "virtual_alias_recursion_limit"}, false
	}
	w.under = append(w.under, key)
	at = w.all(targets, a, next)
	w.under = w.under[:len(w.under)-1]
	if w.done == nil {
		w.done = make(map[string]Place)
	}
	w.done[key] = at
	return at, false
}

// all says what becomes of mail for several targets: one that is ours decides, then one in doubt.
func (w *walk) all(targets []string, from address.Spec, next func(address.Spec) Place) Place {
	was, left := w.hint, w.left
	at := Place{Verdict: Doubtful, By: "an alias without a target"}
	for i, to := range targets {
		x := Place{Verdict: Doubtful, By: "an alias to what is no address"}
		if a, ok := w.target(to, from); ok {
			if !a.Same(from) {
				w.hint, w.left = Hint{}, true
			}
			x = next(a)
			w.hint, w.left = was, left
		}
		if x.Verdict == Ours {
			return x
		}
		if i == 0 || x.Verdict == Doubtful {
			at = x
		}
	}
	return at
}

// target reads one target of an alias; @domain is the same local part there.
func (w *walk) target(to string, from address.Spec) (address.Spec, bool) {
	if domain, whole := strings.CutPrefix(to, "@"); whole {
		return address.Spec{Local: from.Local, Domain: domain}, domain != ""
	}
	a, err := address.Parse(to)
	return w.complete(a), err == nil && !a.IsZero()
}

// aliases looks an address up as virtual(5) and canonical(5) say: the whole address, its local part
// where the domain is one of this host, the domain; an extension counts, then not.
func (w *walk) aliases(a address.Spec) (targets []string, known bool) {
	domain := address.ASCIIDomain(a.Domain)
	locals := w.spellings(a.Local)
	for _, l := range locals {
		if targets, known = w.data.Aliases[l+"@"+domain]; known {
			return targets, true
		}
	}
	if domain == w.data.Origin || slices.Contains(w.data.Local, domain) {
		for _, l := range locals {
			if targets, known = w.data.Aliases[l]; known {
				return targets, true
			}
		}
	}
	targets, known = w.data.Aliases["@"+domain]
	return targets, known
}

// spellings returns a local part in lower case, and without its extension.
func (w *walk) spellings(local string) []string {
	local = strings.ToLower(local)
	list := []string{local}
	if i := strings.IndexAny(local, w.data.Delimiter); i > 0 && w.data.Delimiter != "" {
		list = append(list, local[:i])
	}
	return list
}

// deliver says by which transport mail for an address is delivered, aliases left aside.
func (w *walk) deliver(a address.Spec) Place {
	domain := address.ASCIIDomain(a.Domain)
	class, own := w.classOf(domain)
	transport, hop, led := w.way(a, domain)
	switch {
	case w.hint.Mailer != "" && w.p.leads(w.hint.Mailer, w.hint.Host):
		return w.outside(a)
	case !led && !own:
		return w.other(a)
	case !led && class == "": // of an alias domain, and without an alias: Postfix refuses it, or the alias is new
		return Place{Verdict: Doubtful, By: "virtual_alias_maps"}
	case !led:
		transport, hop, _ = strings.Cut(class, ":")
	}
	switch {
	case w.p.leads(transport, hop):
		return w.outside(a)
	case w.hint.Mailer != transport && w.defaults[w.hint.Mailer]: // a setting has changed since
		return w.outside(a)
	case w.doubts[DoubtWay] != "" && w.hint.Mailer == "":
		return Place{Verdict: Doubtful, By: w.doubts[DoubtWay]}
	case transport == "local":
		return w.local(a)
	}
	return Place{Verdict: Elsewhere, By: transport}
}

// other says what becomes of an address that is of no class of its own, as far as the data tells.
func (w *walk) other(a address.Spec) Place {
	h, doubt := w.hint, cmp.Or(w.doubts[DoubtClass], w.doubts[DoubtWay])
	switch {
	case h.Mailer == "" && doubt != "":
		return Place{Verdict: Doubtful, By: doubt}
	case h.Mailer == "", w.defaults[h.Mailer]:
		return w.outside(a)
	case w.isClassWay(h, a.Domain): // be it "error", so that nobody has mail but by an alias
	case w.doubts[DoubtDefault] != "", h.Mailer == "error", h.Mailer == "retry":
		return w.outside(a)
	}
	if h.Mailer == "local" {
		return w.local(a)
	}
	return Place{Verdict: Elsewhere, By: h.Mailer}
}

// isClassWay reports whether Postfix says the way of local or virtual mailboxes, to the next-hop: their
// domain may stand in a table that cannot be listed, and no table of senders leads there.
func (w *walk) isClassWay(h Hint, domain string) bool {
	return slices.ContainsFunc([]string{cmp.Or(w.data.LocalWay, "local:"), cmp.Or(w.data.MailboxWay, "virtual:")}, func(way string) bool {
		transport, hop, _ := strings.Cut(way, ":")
		return h.Mailer == transport && strings.EqualFold(h.Host, cmp.Or(hop, domain))
	})
}

// outside is the place of what leaves by a way of ours.
func (w *walk) outside(a address.Spec) Place {
	if w.left {
		return Place{Verdict: Ours, By: a.String()}
	}
	return Place{}
}

// classOf returns the way of a domain's class.
func (w *walk) classOf(domain string) (way string, own bool) {
	if way, own = w.class[domain]; own {
		return way, true
	}
	for rest := domain; ; {
		i := strings.IndexByte(rest, '.')
		if i < 0 {
			return "", false
		}
		rest = rest[i+1:]
		if way, own = w.class["."+rest]; own {
			return way, true
		}
	}
}

// way looks an address up in transport_maps, as transport(5) says. led is false where no entry
// names a transport: one that only names a next-hop changes nothing of whose mail it is.
func (w *walk) way(a address.Spec, domain string) (transport, hop string, led bool) {
	for _, l := range w.spellings(a.Local) {
		if v, ok := w.data.Ways[l+"@"+domain]; ok {
			return cutWay(v)
		}
	}
	if v, ok := w.data.Ways[domain]; ok {
		return cutWay(v)
	}
	for rest := domain; ; {
		i := strings.IndexByte(rest, '.')
		if i < 0 {
			break
		}
		rest = rest[i+1:]
		if v, ok := w.data.Ways["."+rest]; ok {
			return cutWay(v)
		}
	}
	if v, ok := w.data.Ways["*"]; ok {
		return cutWay(v)
	}
	return "", "", false
}

func cutWay(v string) (transport, hop string, led bool) {
	transport, hop, _ = strings.Cut(v, ":")
	return transport, hop, transport != ""
}

// local says what becomes of mail that local(8) delivers: its aliases(5) and the .forward files of
// users may lead outside, as new mail of the same sender that no milter sees.
func (w *walk) local(a address.Spec) Place {
	for _, l := range w.spellings(a.Local) {
		targets, known := w.data.LocalAliases[l]
		if !known {
			continue
		}
		if len(targets) > 0 { // else it is a program, or a file
			if at, again := w.expand(l+"@", targets, a, w.ofLocal); !again { // no address has that key
				return at
			}
		}
		return Place{Verdict: Elsewhere, By: "local"}
	}
	if setting := w.doubts[DoubtLocal]; setting != "" && !w.trust {
		return Place{Verdict: Doubtful, By: setting}
	}
	return Place{Verdict: Elsewhere, By: "local"}
}

// ofLocal says what becomes of the target of a local alias: a name of this host goes to local(8)
// again, and to no other table before.
func (w *walk) ofLocal(a address.Spec) Place {
	if slices.Contains(w.data.Local, address.ASCIIDomain(a.Domain)) {
		return w.local(a)
	}
	return w.follow(a)
}

// passes reports whether all of a message is delivered elsewhere, so that it passes untouched. What
// there is to say of its recipients becomes a reason.
func (p *Rules) passes(r *Request, d *Decision) bool {
	if r.rcpts.left > 0 { // of those that were not kept nobody knows
		return false
	}
	elsewhere, notable := -1, -1 // the first of each kind; of what is ours, one of which there is something to say
	for i := range r.Rcpts {
		switch at := r.place(i); {
		case at.Verdict == Elsewhere && elsewhere < 0:
			elsewhere = i
		case at.Verdict != Elsewhere && (notable < 0 || r.place(notable).By == ""):
			notable = i
		}
	}
	switch {
	case elsewhere < 0 && notable < 0:
		return false
	case notable < 0:
		return p.pass(r, elsewhere, d)
	}
	if elsewhere >= 0 {
		d.because(ReasonMixed, shownRcpt(r.Rcpts[elsewhere]), r.place(elsewhere).By)
	}
	switch at := r.place(notable); {
	case at.Verdict == Doubtful:
		d.because(ReasonDoubt, shownRcpt(r.Rcpts[notable]), at.By)
	case at.By != "":
		d.because(ReasonAlias, shownRcpt(r.Rcpts[notable]), at.By)
	}
	return false
}

// pass decides on what is delivered elsewhere. A site may want that only clients send it.
func (p *Rules) pass(r *Request, one int, d *Decision) bool {
	by := Reason{Code: ReasonElsewhere, Subject: shownRcpt(r.Rcpts[one]), Object: r.place(one).By}
	if p.received == RefuseReceived {
		if c, _ := p.Admit(r.Peer, r.Sender); c == nil {
			d.Reasons = append(d.Reasons, by)
			return false
		}
	}
	d.Action, d.Reasons = Pass, append(d.Reasons, by)
	d.Asked, _ = address.Parse(r.Sender)
	return true
}

// place returns the place of a recipient; of one that nobody has asked about it is ours. Where
// Postfix was told the way out, it leads all of the message there, also recipients of its own.
func (r *Request) place(i int) Place {
	if i >= len(r.Places) || r.Routed && r.Places[i].Verdict == Elsewhere {
		return Place{}
	}
	return r.Places[i]
}

// Leaving returns how many of the recipients are not delivered elsewhere.
func (r *Request) Leaving() int {
	n := len(r.Rcpts)
	for i := range r.Rcpts {
		if r.place(i).Verdict == Elsewhere {
			n--
		}
	}
	return n
}

func shownRcpt(rcpt string) string { return address.Clip(trimAngles(rcpt)) }
