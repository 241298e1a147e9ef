package suggest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sendas/sendas/internal/plaintext"
	"github.com/sendas/sendas/policy/address"
	"github.com/sendas/sendas/policy/limit"
)

// sectionKey is a line that begins a section of sendas.yaml.
var sectionKey = regexp.MustCompile(`^([a-z_]+):`)

// whole returns the file with the plan in the place of the sections that it has already.
func (p *plan) whole(present []byte) (text string, replaced []string) {
	ours := []string{"notices", "mailboxes", "clients"}
	if p.writesTenant() {
		ours = append(ours, "tenant")
	}
	var rest strings.Builder
	kept, comments := true, ""
	for line := range strings.Lines(strings.TrimPrefix(string(present), "\ufeff")) {
		m := sectionKey.FindStringSubmatch(line)
		margin := line[0] != ' ' && line[0] != '-'
		switch {
		case m != nil:
			if kept = !slices.Contains(ours, m[1]); !kept {
				replaced = append(replaced, m[1])
			}
		case strings.TrimSpace(line) == "" || line[0] == '#': // it belongs to what follows
			comments += line
			continue
		case margin: // not a section that is known: somebody's flow of braces, or "---"
			kept = true
		}
		if kept {
			rest.WriteString(comments + line)
		}
		comments = ""
	}
	if kept {
		rest.WriteString(comments)
	}
	body := strings.Trim(rest.String(), "\n")
	if body != "" {
		body += "\n\n"
	}
	return body + p.sections(), replaced
}

// writesTenant reports whether the file does not say yet which domains the tenant has.
func (p *plan) writesTenant() bool {
	return len(p.site.Tenant.Domains) == 0 && p.site.Tenant.PermissionsFile == ""
}

// sections writes the plan.
func (p *plan) sections() string {
	w := &writer{}
	w.comment("", "From here on made by \"sendas suggest\", of %s from %s to %s, by %s. What a comment asks, a person has to decide; then type \"sendas check\".",
		plural(p.seen.messages, "message"), p.seen.first.UTC().Format(time.DateOnly), p.seen.last.UTC().Format(time.DateOnly), plural(len(p.seen.peers), "device or login", "devices and logins"))
	if p.seen.unplaced > 0 {
		w.comment("", "%s came from nobody knows whom, without an address or a login: they are not in it.", plural(p.seen.unplaced, "message"))
	}
	if p.refused > 0 {
		w.comment("", "%s would be refused by it.", plural(p.refused, "message"))
	}
	p.tenant(w)
	w.line("")
	w.comment("", "As whom Postfix's own bounces and notices leave.")
	w.line("notices: %s", scalar(p.notices().String()))
	w.line("")
	w.line("mailboxes:")
	for _, b := range p.boxes {
		p.box(w, b)
	}
	w.line("")
	w.comment("", "The first that matches wins; nobody else may send.")
	w.line("clients:")
	for _, c := range p.clients {
		p.client(w, c)
	}
	return w.String()
}

// notices is the mailbox for what this host says itself: the one that nobody's own is, else the
// first.
func (p *plan) notices() address.Spec {
	for _, b := range p.boxes {
		if b.made {
			return b.addr
		}
	}
	return p.boxes[0].addr
}

func (p *plan) tenant(w *writer) {
	if !p.writesTenant() {
		return
	}
	w.line("")
	w.line("tenant:")
	if id := p.site.Tenant.ID; id != "" {
		w.line("  id: %s", scalar(id))
	} else {
		w.comment("  ", "Decide: the tenant's id, a GUID or one of its domains.")
		w.line("  #id: contoso.onmicrosoft.com")
	}
	if p.domains.guessed {
		w.comment("  ", "Decide: is this a verified domain of the tenant? It is the one with most senders of those that get mail as well. Name them with --domain, once for each.")
	}
	if len(p.domains.others) > 0 {
		w.comment("  ", "Senders were also of %s.", strings.Join(p.domains.others, ", "))
	}
	w.line("  domains: [%s]", strings.Join(p.domains.list, ", "))
}

// box writes a mailbox, and the others that it needs.
func (p *plan) box(w *writer, b *box) {
	const in = "  "
	most := limit.Microsoft()
	slices.Sort(b.clients)
	who := "Nobody sends through it yet."
	if len(b.clients) > 0 {
		who = "For " + strings.Join(b.clients, ", ") + "."
	}
	w.comment(in, "%s %s; the busiest minute had %d (%s), the busiest day %s.", who, plural(b.load.messages, "message"), b.load.minute.most, moment(b.load.minute.at), plural(b.load.day.most, "recipient"))
	for _, line := range b.verdict(most) {
		w.comment(in, "%s", line)
	}
	if b.made {
		w.comment(in, "Decide: nobody was seen with this address; make the mailbox, or write another one that devices without a sender of their own may use.")
	} else if len(b.sendAs) > 0 {
		w.comment(in, "Decide: it needs Send As on the addresses under send_as; an address that is a mailbox of its own may be one here as well.")
	}
	others := make([]address.Spec, 0, b.pool-1)
	for n := 2; len(others) < b.pool-1; n++ {
		a := address.Spec{Local: b.addr.Local + "-" + strconv.Itoa(n), Domain: b.addr.Domain}
		if !p.known(a) {
			others = append(others, a)
		}
	}
	p.writeBox(w, b.addr, b.sendAs, b.pool > 1)
	for _, a := range others {
		w.comment(in, "Decide: make this mailbox, with Send As on the addresses of the one above.")
		p.writeBox(w, a, append([]address.Spec{b.addr}, b.sendAs...), true)
	}
}

// verdict says what Microsoft's limits make of the load.
func (b *box) verdict(most limit.Allowance) (list []string) {
	at := b.load.needs(0)
	switch wait := b.load.waits(b.pool); {
	case b.load.needs(time.Duration(1<<62)) == 0:
		list = append(list, fmt.Sprintf("Decide: %d mailboxes are not enough for %d recipients in a day; see High Volume Email and connectors (docs/routes.md).", mostBoxes, b.load.day.most))
	case b.pool > 1 && wait > 0:
		list = append(list, fmt.Sprintf("It needs %d mailboxes: one may send %d messages a minute, to %d recipients a day. The last of them waits %s.", b.pool, most.Messages.N, most.Recipients.N, wait.Round(time.Second)))
	case b.pool > 1:
		list = append(list, fmt.Sprintf("It needs %d mailboxes: one may send %d messages a minute, to %d recipients a day.", b.pool, most.Messages.N, most.Recipients.N))
	case wait > 0 && at > 1:
		list = append(list, fmt.Sprintf("One may send %d messages a minute: the last of them waits %s. For none to wait it needs %d mailboxes.", most.Messages.N, wait.Round(time.Second), at))
	case wait > 0:
		list = append(list, fmt.Sprintf("One may send %d messages a minute: the last of them waits %s.", most.Messages.N, wait.Round(time.Second)))
	}
	return list
}

// waits returns how long the last message of a peak waits before so many mailboxes.
func (l *load) waits(boxes int) time.Duration {
	if boxes < 1 || boxes > len(l.queues) {
		return 0
	}
	return l.queues[boxes-1].wait
}

func (p *plan) writeBox(w *writer, a address.Spec, sendAs []address.Spec, pool bool) {
	w.line("  - address: %s", scalar(a.String()))
	if p.credential != "" {
		w.line("    credential: %s", p.credential)
	} else {
		w.comment("    ", "Decide: credential:, a name from credentials:, before mode: observe can go.")
	}
	if len(sendAs) > 0 {
		w.list("    ", "send_as", texts(sendAs))
	}
	if pool {
		w.line("    pool: true")
	}
}

// client writes a client.
func (p *plan) client(w *writer, c *client) {
	const in = "    "
	w.comment("  ", "%s, %s; the busiest minute had %d, the busiest day %s.", c.described(), plural(c.messages, "message"), c.load.minute.most, plural(c.load.day.most, "recipient"))
	if list := c.elsewhere(); list != "" {
		w.comment("  ", "Not as senders of their own leave: %s.", list)
	}
	if len(c.own) == 0 {
		w.comment("  ", "Decide: no sender of theirs is the tenant's, so all of it leaves as %s.", c.from)
	}
	w.line("  - name: %s", scalar(c.name))
	switch {
	case len(c.logins) > 0:
		w.list(in, "logins", c.logins)
	case len(c.subjects) > 0:
		w.list(in, "cert_subjects", c.subjects)
	case c.peers[0].addr.IsLoopback():
		w.line(`    networks: [127.0.0.0/8, "::1"]`)
	default:
		p.networks(w, c)
	}
	if len(c.own) > 0 {
		var list []string
		for _, x := range c.own {
			list = append(list, x.addr.String())
		}
		w.list(in, "senders", list)
	} else {
		w.list(in, "senders", []string{c.from.String()})
	}
	w.line("    from: %s", scalar(c.from.String()))
	w.line("    #limits: {messages: %d/m, recipients: %d/d}  # twice its peaks", 2*max(1, c.load.minute.most), 2*max(1, c.load.day.most))
}

// networks writes where a client is.
func (p *plan) networks(w *writer, c *client) {
	if len(c.networks) > 8 {
		if block, ok := p.around(c); ok {
			w.comment("    ", "Decide: all of them are in %s, and nobody else was seen there; where the whole of it is theirs, write that alone.", block)
		}
	}
	w.line("    networks:")
	for _, n := range c.networks {
		text := n.Prefix.String()
		if n.IsSingleIP() {
			text = n.Addr().String()
		}
		line := "      - " + scalar(text)
		switch left := n.Addr().BitLen() - n.Bits(); {
		case left > 30:
			line += fmt.Sprintf("  # %d addresses of it were seen", n.seen)
		case left > 0:
			line += fmt.Sprintf("  # %d of its %d addresses were seen", n.seen, 1<<left)
		}
		w.line("%s", line)
	}
}

// described says who the client is.
func (c *client) described() string {
	names := make(map[string]int)
	for _, x := range c.peers {
		for _, list := range []map[string]int{x.names, x.helos} {
			if len(list) > 0 {
				name := ""
				for n, k := range list {
					if n == "unknown" {
						continue
					}
					if name == "" || k > list[name] || k == list[name] && n < name {
						name = n
					}
				}
				if name != "" {
					names[name]++
					break
				}
			}
		}
	}
	what := plural(len(c.peers), "device", "devices")
	if c.logins != nil || c.subjects != nil {
		what = "1 login"
		if c.subjects != nil {
			what = "1 certificate"
		}
	}
	var list []string
	for name := range names {
		list = append(list, shown.Line(name))
	}
	slices.Sort(list)
	if len(list) > 3 {
		list = append(list[:3], "…")
	}
	if len(list) == 0 {
		return what
	}
	return what + " (" + strings.Join(list, ", ") + ")"
}

// elsewhere says which senders are not kept.
func (c *client) elsewhere() string {
	var list []string
	for i, x := range c.unowned {
		if i == 5 {
			list = append(list, plural(len(c.unowned)-i, "other"))
			break
		}
		text := cmp.Or(shown.Line(x.text), "no sender")
		list = append(list, fmt.Sprintf("%s (%d)", text, x.messages))
	}
	return strings.Join(list, ", ")
}

// shown is how strangers' text stands in a comment.
var shown = plaintext.Style{MaxRunes: 80, Cut: "…"}

func moment(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format("2006-01-02 15:04")
}

func texts(list []address.Spec) []string {
	out := make([]string, len(list))
	for i, a := range list {
		out[i] = a.String()
	}
	return out
}

// plural counts things: "1 message", "2 messages", or with a word of its own.
func plural(n int, words ...string) string {
	switch {
	case n == 1:
		return "1 " + words[0]
	case len(words) > 1:
		return fmt.Sprintf("%d %s", n, words[1])
	}
	return fmt.Sprintf("%d %ss", n, words[0])
}

// A writer writes YAML.
type writer struct{ strings.Builder }

func (w *writer) line(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }

// width is how long a line of a comment is.
const width = 100

// comment writes a sentence, on as many lines as it needs.
func (w *writer) comment(in, format string, args ...any) {
	line := in + "#"
	for word := range strings.FieldsSeq(fmt.Sprintf(format, args...)) {
		if len(line)+1+len(word) > width && line != in+"#" {
			w.line("%s", line)
			line = in + "#"
		}
		line += " " + word
	}
	w.line("%s", line)
}

// list writes a list of texts, on one line where it fits.
func (w *writer) list(in, key string, list []string) {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = scalar(s)
	}
	if line := in + key + ": [" + strings.Join(quoted, ", ") + "]"; len(line) <= width {
		w.line("%s", line)
		return
	}
	w.line("%s%s:", in, key)
	for _, s := range quoted {
		w.line("%s  - %s", in, s)
	}
}

// plainScalar is a text that needs no quotes in YAML, whatever stands around it.
var plainScalar = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@/+-]*$`)

// scalar writes a text as YAML: as it is, or in the quotes of JSON, which YAML takes.
func scalar(s string) string {
	if plainScalar.MatchString(s) && !strings.EqualFold(s, "null") {
		return s
	}
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		panic(err) // a text
	}
	return strings.TrimSuffix(b.String(), "\n")
}
