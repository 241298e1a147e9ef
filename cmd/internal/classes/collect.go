package classes

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/sendas/sendas/cmd/internal/postfix"
	"github.com/sendas/sendas/cmd/internal/postfix/senders"
	"github.com/sendas/sendas/internal/safefile"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/address"
)

// Collect reads which recipients Postfix delivers itself. run is for postmap(1) and postalias(1),
// which list tables. What cannot be listed is in Opaque, and is no
// error. It wants to be root: others cannot read all tables.
func Collect(ctx context.Context, run postfix.Runner, p *postfix.Setup) *policy.ClassData {
	folder := p.Main["config_directory"]
	k := &collector{ctx: ctx, run: run, folder: folder, p: p, data: &policy.ClassData{
		Version: policy.ClassVersion, Folder: folder, Origin: origin(p.Main["myorigin"]), Delimiter: p.Main["recipient_delimiter"],
		LocalWay: p.Main["local_transport"], MailboxWay: p.Main["virtual_transport"], RelayWay: p.Main["relay_transport"],
		Ways: map[string]string{}, Aliases: map[string][]string{}, LocalAliases: map[string][]string{}, Opaque: []policy.OpaqueTable{},
	}}
	d := k.data
	if _, hop, _ := strings.Cut(d.RelayWay, ":"); hop == "" && p.Main["relayhost"] != "" {
		d.RelayWay = strings.TrimSuffix(d.RelayWay, ":") + ":" + p.Main["relayhost"]
	}
	d.Local, d.Alias = k.domains("mydestination"), k.domains("virtual_alias_domains")
	d.Mailbox, d.Relay = k.domains("virtual_mailbox_domains"), k.withBelow(k.domains("relay_domains"), "relay_domains")
	k.ways()
	k.defaults()
	for _, name := range []string{"canonical_maps", "recipient_canonical_maps", "virtual_alias_maps"} {
		k.each(name, policy.DoubtAlias, func(key, value string) { d.Aliases[ascii(key)] = append(d.Aliases[ascii(key)], targets(value)...) })
	}
	k.copies()
	k.local()
	d.Receives = receives(d, p)
	return d
}

// origin reads myorigin, which may name a file, as it does on Debian (/etc/mailname).
func origin(value string) string {
	if !strings.HasPrefix(value, "/") {
		return domain(value)
	}
	text, err := os.ReadFile(value)
	if items := fileItems(string(text)); err == nil && len(items) > 0 {
		return domain(items[0])
	}
	return ""
}

// receives reports whether a host takes mail of others: whether it has more than its own names, which
// Postfix has by default.
func receives(data *policy.ClassData, p *postfix.Setup) bool {
	names := []string{domain(p.Main["myhostname"]), domain("localhost." + p.Main["mydomain"]), "localhost", "localhost.localdomain"}
	return len(data.Alias)+len(data.Mailbox)+len(data.Relay)+len(away(data)) > 0 ||
		slices.ContainsFunc(data.Local, func(d string) bool { return !slices.Contains(names, d) })
}

// collector collects. It belongs to one goroutine.
type collector struct {
	ctx    context.Context
	run    postfix.Runner
	folder string
	p      *postfix.Setup
	data   *policy.ClassData
}

func (k *collector) opaque(doubt policy.Doubt, setting, table string) {
	kind, name, _ := strings.Cut(table, ":") // one that stands in main.cf may hold what not all may read
	if strings.HasPrefix(name, "{") {
		table = kind + ":…"
	}
	k.data.Opaque = append(k.data.Opaque, policy.OpaqueTable{Doubt: doubt, Setting: setting, Table: table})
}

// domains reads a list of domains: names, files and tables with names, "!" for exceptions.
func (k *collector) domains(setting string) []string {
	list := []string{} // not null in the file
	k.names(setting, k.p.Items(setting), func(name string) {
		if !strings.Contains(name, "@") && !slices.Contains(list, name) { // virtual_alias_maps has addresses as well
			list = append(list, name)
		}
	}, 0)
	slices.Sort(list)
	return list
}

// maxNesting bounds files that name files.
const maxNesting = 10

func (k *collector) names(setting string, items []string, add func(string), depth int) {
	but := make(map[string]bool) // an exception that comes later is none
	for _, item := range items {
		switch {
		case strings.HasPrefix(item, "!"):
			if strings.ContainsAny(item, "/:") {
				k.opaque(policy.DoubtClass, setting, item)
			}
			but[domain(item[1:])] = true
		case strings.HasPrefix(item, "/"):
			text, err := os.ReadFile(item)
			if err != nil || depth == maxNesting {
				k.opaque(policy.DoubtClass, setting, item)
				continue
			}
			k.names(setting, fileItems(string(text)), func(n string) { addUnless(but, n, add) }, depth+1)
		case isTable(item):
			if entries, ok := k.list("postmap", item); !ok {
				k.opaque(policy.DoubtClass, setting, item)
			} else {
				for _, e := range entries {
					addUnless(but, domain(e[0]), add)
				}
			}
		default:
			addUnless(but, domain(item), add)
		}
	}
}

func addUnless(but map[string]bool, name string, add func(string)) {
	if !but[name] {
		add(name)
	}
}

// fileItems reads a file of a match list: items between blanks and commas, comments from # on.
func fileItems(text string) []string {
	var list []string
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		list = append(list, strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(", \t\r\n", r) })...)
	}
	return list
}

// isTable tells type:name from a domain.
func isTable(item string) bool {
	kind, _, ok := strings.Cut(item, ":")
	return ok && kind != "" && !strings.ContainsAny(kind, ".[]/")
}

// domain returns a domain as it is compared.
func domain(s string) string {
	if rest, below := strings.CutPrefix(s, "."); below {
		return "." + address.ASCIIDomain(rest)
	}
	return address.ASCIIDomain(s)
}

// ascii returns a key with its domain as it is compared: of an address, or a domain itself.
func ascii(key string) string {
	if address.IsASCII(key) {
		return key
	}
	if local, d, ok := strings.Cut(key, "@"); ok {
		return local + "@" + domain(d)
	}
	return domain(key)
}

// withBelow adds the domains below, where the setting means those too.
func (k *collector) withBelow(list []string, setting string) []string {
	if !slices.Contains(k.p.Items("parent_domain_matches_subdomains"), setting) {
		return list
	}
	for _, d := range list {
		if !strings.HasPrefix(d, ".") {
			list = append(list, "."+d)
		}
	}
	return list
}

// each calls f for each entry of the tables of a setting, in lower case; the first of a key counts.
func (k *collector) each(setting string, doubt policy.Doubt, f func(key, value string)) {
	seen := make(map[string]bool)
	for _, table := range k.p.Items(setting) {
		entries, ok := k.list("postmap", table)
		if !ok {
			k.opaque(doubt, setting, table)
		}
		for _, e := range entries {
			if !seen[e[0]] {
				f(e[0], e[1])
			}
			seen[e[0]] = true
		}
	}
}

// ours reports whether a table is one of the token service's: it says nothing but ways of sendas.
func ours(table, name string) bool {
	return strings.HasPrefix(table, "socketmap:") && strings.HasSuffix(table, ":"+name)
}

// ways reads transport_maps.
func (k *collector) ways() {
	for _, table := range k.p.Items("transport_maps") {
		if ours(table, "route") {
			continue
		}
		entries, ok := k.list("postmap", table)
		if !ok {
			k.opaque(policy.DoubtWay, "transport_maps", table)
		}
		for _, e := range entries {
			if _, taken := k.data.Ways[ascii(e[0])]; !taken {
				k.data.Ways[ascii(e[0])] = e[1]
			}
		}
	}
}

// defaults finds the transports of mail that no class and no entry of transport_maps leads away.
func (k *collector) defaults() {
	list := []string{}
	add := func(way string) {
		if t, _, _ := strings.Cut(way, ":"); t != "" && t != "DUNNO" && !slices.Contains(list, t) {
			list = append(list, t)
		}
	}
	add(k.p.Main["default_transport"])
	const setting = "sender_dependent_default_transport_maps"
	for _, table := range k.p.Items(setting) {
		if ours(table, "transport") || senders.IsSpread(table) {
			continue
		}
		entries, ok := k.list("postmap", table)
		if !ok {
			k.opaque(policy.DoubtDefault, setting, table)
		}
		for _, e := range entries {
			add(e[1])
		}
	}
	slices.Sort(list)
	k.data.Defaults = list
}

// copies finds who gets copies of mail to others.
func (k *collector) copies() {
	list := []string{}
	add := func(value string) {
		for _, a := range targets(value) {
			if !slices.Contains(list, a) {
				list = append(list, a)
			}
		}
	}
	add(k.p.Main["always_bcc"])
	for _, name := range []string{"recipient_bcc_maps", "sender_bcc_maps"} {
		k.each(name, policy.DoubtAlias, func(_, value string) { add(value) })
	}
	slices.Sort(list)
	k.data.Copies = list
}

// local reads what local(8) does with a recipient.
func (k *collector) local() {
	if name, _, _ := strings.Cut(k.data.LocalWay, ":"); name != "local" || len(k.data.Local) == 0 {
		return
	}
	aliases := make(map[string][]string)
	for _, table := range k.p.Items("alias_maps") {
		if strings.HasPrefix(table, "nis:") && !hasNIS() {
			continue // stands in Postfix's default
		}
		entries, ok := k.list("postalias", table)
		if !ok {
			k.opaque(policy.DoubtLocal, "alias_maps", table)
		}
		for _, e := range entries {
			if _, taken := aliases[e[0]]; !taken {
				aliases[e[0]] = k.localTargets(e[1], 0)
			}
		}
	}
	k.forwards(aliases)
	k.data.LocalAliases = aliases
	if to := k.p.Main["luser_relay"]; strings.Contains(to, "@") {
		k.opaque(policy.DoubtLocal, "luser_relay", to)
	}
}

// hasNIS reports whether this host is in a NIS domain.
func hasNIS() bool {
	name, err := os.ReadFile("/proc/sys/kernel/domainname")
	return err == nil && strings.Trim(string(name), "\x00\n") != "(none)" && strings.TrimSpace(string(name)) != ""
}

// localTargets returns what of a value of aliases(5) is an address: programs and files are this
// host's. A list in a file is part of it.
func (k *collector) localTargets(value string, depth int) []string {
	list := []string{}
	for _, item := range splitAddresses(value) {
		bare := strings.Trim(item, `"`)
		file, included := strings.CutPrefix(item, ":include:")
		switch {
		case included:
			text, err := os.ReadFile(file)
			if err != nil || depth == maxNesting {
				k.opaque(policy.DoubtLocal, "alias_maps", item)
				continue
			}
			for line := range strings.Lines(string(text)) {
				line, _, _ = strings.Cut(line, "#")
				list = append(list, k.localTargets(line, depth+1)...)
			}
		case bare == "" || strings.HasPrefix(bare, "|") || strings.HasPrefix(bare, "/"):
		default:
			list = append(list, strings.TrimPrefix(item, `\`))
		}
	}
	return list
}

// forwards adds what the .forward files of users say, in forward_path's default place.
func (k *collector) forwards(aliases map[string][]string) {
	path := k.p.Main["forward_path"]
	if path == "" {
		return
	}
	if !strings.Contains(path, "$home/.forward") && !strings.Contains(path, "${home}/.forward") {
		k.opaque(policy.DoubtLocal, "forward_path", path)
		return
	}
	out, _, err := k.run(k.ctx, "getent", "passwd")
	if err != nil {
		k.opaque(policy.DoubtLocal, "forward_path", "getent passwd")
		return
	}
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 6 || !filepath.IsAbs(f[5]) {
			continue
		}
		user := strings.ToLower(f[0])
		text, there := readForward(filepath.Join(f[5], ".forward"), f[2])
		if _, aliased := aliases[user]; !there || aliased { // aliases(5) come first
			continue
		}
		list := []string{}
		for line := range strings.Lines(text) {
			line, _, _ = strings.Cut(line, "#")
			for _, a := range splitAddresses(line) {
				if s, err := address.Parse(strings.TrimPrefix(a, `\`)); err == nil && !strings.ContainsAny(a[:1], `|/":`) {
					list = append(list, s.String())
				} else if strings.HasPrefix(a, ":include:") {
					k.opaque(policy.DoubtLocal, "forward_path", a)
				}
			}
		}
		aliases[user] = list
	}
}

// readForward reads a user's .forward as local(8) would. We are root and the user chooses what
// stands there, so nothing is followed, and nothing is read that is not his.
func readForward(path, uid string) (text string, there bool) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || strconv.Itoa(safefile.OwnerOf(info).UID) != uid {
		return "", false
	}
	data, err := io.ReadAll(io.LimitReader(f, 1<<16))
	return string(data), err == nil
}

// listable are the kinds of tables that postmap -s can list.
var listable = []string{"hash", "btree", "lmdb", "dbm", "sdbm", "texthash", "inline"}

// list returns the entries of a table, its keys in lower case. tool is postmap or postalias.
func (k *collector) list(tool, table string) (entries [][2]string, ok bool) {
	table = strings.TrimPrefix(table, "proxy:") // the same table, opened by another process
	kind, name, _ := strings.Cut(table, ":")
	if kind == "cdb" && tool == "postmap" { // it cannot be listed, but what it was made of can
		kind, table = "texthash", "texthash:"+name
	}
	if !slices.Contains(listable, kind) {
		return nil, false
	}
	out, _, err := k.run(k.ctx, tool, "-c", k.folder, "-s", table)
	if err != nil {
		return nil, false
	}
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(line, "\t")
		if tool == "postalias" {
			key = strings.TrimSuffix(key, ":")
		}
		if key = strings.ToLower(key); key != "@" && key != "yp_last_modified" && key != "yp_master_name" { // postalias' own
			entries = append(entries, [2]string{key, strings.TrimSpace(value)})
		}
	}
	return entries, true
}

// targets returns the addresses of a value of virtual(5).
func targets(value string) []string {
	list := []string{}
	for _, a := range splitAddresses(value) {
		list = append(list, strings.Trim(a, "<>"))
	}
	return list
}

// splitAddresses divides a value at commas and blanks that stand in no quotes.
func splitAddresses(value string) []string {
	var list []string
	begin, quoted, escaped := -1, false, false
	for i, r := range value + " " {
		separates := !quoted && !escaped && strings.ContainsRune(", \t\r\n", r)
		switch {
		case separates && begin >= 0:
			list, begin = append(list, value[begin:i]), -1
		case !separates && begin < 0:
			begin = i
		}
		quoted = quoted != (r == '"' && !escaped)
		escaped = r == '\\' && !escaped
	}
	if begin >= 0 && begin < len(value) { // a quote without its partner
		list = append(list, value[begin:])
	}
	return list
}
