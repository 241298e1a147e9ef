package suggest

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/internal/record"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/address"
)

// Refusals are who would be refused by the configuration as it is now, with the lines that would let
// them in.
type Refusals struct {
	Text     string // entries of clients: to be put at its end, and comments
	Messages int
	Strangers,
	Known int // clients of either kind: entries, and those that are there already
}

// Refused looks at the messages that were refused, or would have been where sendas only observed. What
// the configuration takes by now is left out.
func Refused(walk Walk, o Options) (*Refusals, error) {
	site, err := config.Parse(o.File, o.Present, config.SkipFiles)
	if err != nil {
		return nil, err
	}
	r := &refusing{site: site, strangers: newSeen(), known: make(map[refusal]*refusedMail)}
	if err := walk(r.add); err != nil {
		return nil, err
	}
	p := &plan{seen: r.strangers, domains: &domains{list: site.Policy.Domains()}, site: site}
	p.groups()
	w := &writer{}
	taken := make(map[string]bool)
	for _, c := range site.Clients {
		taken[c.Name] = true
	}
	for _, c := range p.clients {
		c.name = unique(taken, c.name)
		r.stranger(w, p, c)
	}
	list := r.inOrder()
	for _, x := range list {
		r.client(w, x)
	}
	return &Refusals{Text: w.String(), Messages: r.messages, Strangers: len(p.clients), Known: len(list)}, nil
}

// refusing collects what is refused.
type refusing struct {
	site      *config.Site
	messages  int
	strangers *seen
	known     map[refusal]*refusedMail
}

// A refusal is why mail of a client is refused.
type refusal struct {
	client string
	asked  string
	reason policy.ReasonCode // the step that failed
}

// refusedMail is how much.
type refusedMail struct {
	refusal
	messages int
	last     time.Time
}

// maxRefusals is how many senders of clients are kept apart.
const maxRefusals = 1000

// add takes a message.
func (r *refusing) add(m *record.Message) error {
	if m.Action != string(policy.Reject) {
		return nil
	}
	d := r.site.Policy.Decide(request(m))
	if d.Action != policy.Reject {
		return nil
	}
	r.messages++
	if d.Client == nil {
		return r.strangers.add(m)
	}
	why := d.Reasons[len(d.Reasons)-1].Code
	if why == policy.ReasonRejected && len(d.Reasons) > 1 {
		why = d.Reasons[len(d.Reasons)-2].Code
	}
	key := refusal{d.Client.Name, cmp.Or(m.From, m.Sender), why}
	x := r.known[key]
	if x == nil {
		if len(r.known) >= maxRefusals {
			return nil
		}
		x = &refusedMail{refusal: key}
		r.known[key] = x
	}
	x.messages++
	x.last = m.Time
	return nil
}

// inOrder returns what clients are refused, the most first.
func (r *refusing) inOrder() []*refusedMail {
	list := make([]*refusedMail, 0, len(r.known))
	for _, x := range r.known {
		list = append(list, x)
	}
	slices.SortFunc(list, func(a, b *refusedMail) int {
		return cmp.Or(b.messages-a.messages, cmp.Compare(a.client, b.client), cmp.Compare(a.asked, b.asked))
	})
	return list
}

// stranger writes the line that would let in who is no client.
func (r *refusing) stranger(w *writer, p *plan, c *client) {
	last := c.peers[0].last
	for _, x := range c.peers {
		if x.last.After(last) {
			last = x.last
		}
	}
	asked := &client{unowned: append(slices.Clone(c.own), c.unowned...)}
	w.comment("  ", "%s: %s refused, the last %s; asked for %s.", c.described(), plural(c.messages, "message"), moment(last), asked.elsewhere())
	var may []string
	from := address.Spec{}
	for _, x := range c.own {
		if m, _ := r.site.Policy.MailboxFor(x.addr); m != nil || len(r.site.Mailboxes) == 0 {
			may = append(may, x.addr.String())
			if from.IsZero() {
				from = x.addr
			}
		}
	}
	if from.IsZero() {
		if from = r.anyone(); from.IsZero() {
			w.comment("  ", "Decide: list a mailbox first; then from: can name it.")
			return
		}
		may = []string{from.String()}
		w.comment("  ", "Decide: no mailbox may send as that, so it leaves as %s.", from)
	}
	parts := []string{"name: " + scalar(c.name)}
	switch {
	case len(c.logins) > 0:
		parts = append(parts, "logins: "+flow(c.logins))
	case len(c.subjects) > 0:
		parts = append(parts, "cert_subjects: "+flow(c.subjects))
	default:
		var list []string
		for _, n := range c.networks {
			if n.IsSingleIP() {
				list = append(list, n.Addr().String())
			} else {
				list = append(list, n.Prefix.String())
			}
		}
		parts = append(parts, "networks: "+flow(list))
	}
	parts = append(parts, "senders: "+flow(may), "from: "+scalar(from.String()))
	if len(r.site.Mailboxes) == 0 && len(r.site.Routes) > 0 {
		parts = append(parts, "route: "+scalar(r.site.Routes[0].Name))
	}
	w.line("  - {%s}", strings.Join(parts, ", "))
}

// flow writes a list on one line.
func flow(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = scalar(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// anyone returns an address that may be a sender: that for notices, else the first mailbox's.
func (r *refusing) anyone() address.Spec {
	for _, text := range append([]string{r.site.Notices}, addresses(r.site)...) {
		if a, err := address.ParseOwn(text); err == nil && a.Local != "*" {
			return a
		}
	}
	return address.Spec{}
}

func addresses(c *config.Site) []string {
	var list []string
	for _, m := range c.Mailboxes {
		list = append(list, m.Address)
	}
	return list
}

// client writes, as a comment, what would let in a sender of a client that is there.
func (r *refusing) client(w *writer, x *refusedMail) {
	at := slices.IndexFunc(r.site.Clients, func(c config.Client) bool { return c.Name == x.client })
	w.comment("  ", "Client %s: %s as %s refused, the last %s (%s). What would let it in:", x.client, plural(x.messages, "message"), cmp.Or(shown.Line(x.asked), "nobody"), moment(x.last), x.reason)
	a, err := address.ParseOwn(x.asked)
	own := err == nil && !meansMore(a) && slices.Contains(r.site.Policy.Domains(), address.ASCIIDomain(a.Domain))
	mailbox := r.anyone()
	if own && !mailbox.IsZero() {
		var parts []string
		if x.reason == policy.ReasonMayNotAsk && at >= 0 {
			parts = append(parts, "clients: "+x.client+": senders: "+flow(append(slices.Clone(r.site.Clients[at].Senders), a.String())))
		}
		if m, _ := r.site.Policy.MailboxFor(a); m == nil && (len(parts) > 0 || x.reason == policy.ReasonUnauthorized) {
			parts = append(parts, "mailboxes: "+mailbox.String()+": send_as: add "+a.String()+" (it needs Send As in Exchange Online)")
		}
		if len(parts) > 0 {
			w.line("  #   %s", strings.Join(parts, ", and "))
		}
	}
	switch {
	case !slices.Contains([]policy.ReasonCode{policy.ReasonMayNotAsk, policy.ReasonUnauthorized, policy.ReasonNotAsked, policy.ReasonNotVerified}, x.reason):
		w.line("  #   nothing in sendas.yaml: %s", cmp.Or(x.reason.Brief(), string(x.reason)))
	case mailbox.IsZero():
		w.line("  #   clients: %s: from: an address that may be a sender, and on_unauthorized: rewrite", x.client)
	default:
		w.line("  #   clients: %s: from: %s, on_unauthorized: rewrite (it leaves as that address)", x.client, mailbox)
	}
}
