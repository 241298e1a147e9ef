// Package postfix knows what Postfix needs for a configuration of sendas. It reads an instance by
// postconf(1) ([Read]), judges what it finds ([Setup.Check]), and shows, writes or takes back the
// settings ([Job]). Everything is tried on a copy first, the former files are kept, and what others
// wrote stays.
package postfix

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/postfix/cf"
	"github.com/sendas/sendas/internal/serve"
)

// A entry is one entry of master.cf.
type entry struct {
	name, kind string // "smtp", "unix"
	chroot     string // "y", "n" or "-"
	program    string // "smtp"
	args       []string
	overrides  map[string]string // what -o says
}

// Key is how postconf(1) names the service: "smtp/unix".
func (s *entry) Key() string { return s.name + "/" + s.kind }

// verbose reports whether -v stands among its arguments.
func (s *entry) verbose() bool {
	return slices.ContainsFunc(s.args, func(a string) bool { return strings.HasPrefix(a, "-v") && strings.Trim(a, "-v") == "" })
}

// A Setup is what postconf(1) says of an instance, and what the configuration wants of it.
type Setup struct {
	Main     map[string]string // every parameter, with $names replaced
	raw      map[string]string // as it is written, or the default
	services []entry
	unused   []string        // names in main.cf or master.cf that mean nothing: misspelt, most likely
	tables   []string        // kinds of look-up tables
	sasl     []string        // kinds of SASL for clients
	explicit map[string]bool // what main.cf itself sets
	led      bool            // sendas led all mail to Microsoft, though main.cf says so no more
	Config   *config.Site
	inst     cf.Instance // as commands name it

	postmap func(args ...string) (string, error) // on the instance that was read

	Transports []*entry // those that ask sendas for the credential, and carry mail to Microsoft
	inheriting []*entry // those that ask because main.cf says so to all of them, and carry other mail
	shared     bool     // main.cf says so
}

// Read asks postconf(1) about the instance in a folder; "" is Postfix's default. c is what it is
// judged by.
func Read(ctx context.Context, run Runner, folder string, c *config.Site) (*Setup, error) {
	p := &Setup{Config: c, explicit: make(map[string]bool), inst: cf.Instance{Run: run, Dir: folder, Named: folder != ""}}
	var where []string
	if folder != "" {
		where = []string{"-c", folder}
	}
	p.postmap = func(args ...string) (string, error) {
		out, said, err := run(ctx, "postmap", slices.Concat(where, args)...)
		if err != nil && said == "" { // postmap -q of what is not there
			return "", errNotThere
		}
		return out, err
	}
	for _, ask := range []struct {
		flags []string
		read  func(string)
	}{
		{nil, func(s string) { p.raw = cf.Parameters(s) }}, {[]string{"-x"}, func(s string) { p.Main = cf.Parameters(s) }}, {[]string{"-M", "-x"}, p.readServices}, {[]string{"-P", "-x"}, p.readOverrides},
		{[]string{"-n"}, func(s string) {
			for name := range cf.Parameters(s) {
				p.explicit[name] = true
			}
		}},
		{[]string{"-m"}, func(s string) { p.tables = strings.Fields(s) }}, {[]string{"-A"}, func(s string) { p.sasl = strings.Fields(s) }},
	} {
		out, said, err := run(ctx, "postconf", slices.Concat(where, ask.flags)...)
		if err != nil {
			return nil, err
		}
		ask.read(out)
		p.readUnused(said)
	}
	p.inst.Dir = cmp.Or(folder, p.Main["config_directory"])
	p.findTransports()
	return p, nil
}

// errNotThere: a table was asked for a key that it does not have.
var errNotThere = errors.New("it is not there")

// ask looks a key up as a program of Postfix's does; an error is a table that cannot be asked here.
func (p *Setup) ask(table, key string) (value string, found bool, err error) {
	table = strings.TrimPrefix(table, "proxy:") // root asks the table itself
	if value, static := strings.CutPrefix(table, "static:"); static {
		return value, true, nil
	}
	if list, ok := cf.InlineEntries(table); ok {
		i := slices.IndexFunc(list, func(e cf.Setting) bool { return strings.EqualFold(e.Name, key) })
		if i < 0 {
			return "", false, nil
		}
		return list[i].Value, true, nil
	}
	out, err := p.postmap("-q", key, table)
	if errors.Is(err, errNotThere) {
		return "", false, nil
	}
	return strings.TrimSpace(out), err == nil, err
}

// readServices reads lines of "name type private unpriv chroot wakeup maxproc command + args".
func (p *Setup) readServices(out string) {
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 8 || strings.HasPrefix(f[0], "#") {
			continue
		}
		p.services = append(p.services, entry{name: f[0], kind: f[1], chroot: f[4], program: f[7], args: f[8:], overrides: make(map[string]string)})
	}
}

// readOverrides reads lines of "name/type/parameter = value".
func (p *Setup) readOverrides(out string) {
	for line := range strings.Lines(out) {
		where, value, _ := strings.Cut(line, "=")
		parts := strings.SplitN(strings.TrimSpace(where), "/", 3)
		if len(parts) < 3 {
			continue
		}
		if s := p.service(parts[0], parts[1]); s != nil {
			s.overrides[parts[2]] = strings.TrimSpace(value)
		}
	}
}

var unusedForm = regexp.MustCompile(`unused parameter: ([A-Za-z0-9_]+)`)

// readUnused reads postconf's warnings; the values in them stay there.
func (p *Setup) readUnused(said string) {
	for _, m := range unusedForm.FindAllStringSubmatch(said, -1) {
		if !slices.Contains(p.unused, m[1]) {
			p.unused = append(p.unused, m[1])
		}
	}
}

// loopback reports whether no device can reach a port.
func (s *entry) loopback() bool {
	host := s.name
	if i := strings.LastIndexByte(host, ':'); s.kind == "inet" && i >= 0 {
		host = strings.Trim(host[:i], "[]")
	}
	addr, err := netip.ParseAddr(host)
	return s.kind == "unix" || host == "localhost" || err == nil && addr.IsLoopback()
}

// Items returns the items of a list in main.cf; what stands in braces is one.
func (p *Setup) Items(name string) []string { return cf.Split(p.Main[name]) }

// Explicit returns the parameters that main.cf itself sets, sorted.
func (p *Setup) Explicit() []string { return slices.Sorted(maps.Keys(p.explicit)) }

func (p *Setup) service(name, kind string) *entry {
	for i := range p.services {
		if s := &p.services[i]; s.name == name && (kind == "" || s.kind == kind) {
			return s
		}
	}
	return nil
}

// running returns the services that run a program, such as "smtp".
func (p *Setup) running(program string) []*entry {
	var list []*entry
	for i := range p.services {
		if p.services[i].program == program {
			list = append(list, &p.services[i])
		}
	}
	return list
}

// Value returns a parameter as a service sees it; nil is main.cf alone. What -o says of one
// parameter holds for those too that take their value from it.
func (p *Setup) Value(s *entry, name string) string {
	if s == nil {
		return p.Main[name]
	}
	for at, hops := name, 0; hops < 10; hops++ {
		if v, ok := s.overrides[at]; ok {
			return v
		}
		m := cf.OtherName.FindStringSubmatch(p.raw[at])
		if m == nil {
			break
		}
		at = m[1]
	}
	return p.Main[name]
}

// submits reports whether mail is to leave by submission at all.
func (p *Setup) submits() bool { return p.Config.Policy == nil || len(p.Config.Mailboxes) > 0 }

// findTransports finds the transports that ask sendas for a credential. Where main.cf tells it to all
// of them, those that carry no mail to Microsoft have inherited what is not meant for them.
func (p *Setup) findTransports() {
	asks := func(s *entry) bool { return p.asksFor(p.Value(s, "smtp_sasl_password_maps"), "lease") }
	p.Transports, p.inheriting, p.shared = nil, nil, asks(nil)
	carriers := append(p.carriers(), p.submission())
	for _, s := range p.running("smtp") {
		_, own := s.overrides["smtp_sasl_password_maps"]
		switch {
		case !asks(s):
		case own || slices.Contains(carriers, s.name):
			p.Transports = append(p.Transports, s)
		default:
			p.inheriting = append(p.inheriting, s)
		}
	}
	order := func(s *entry) int { // that of submission speaks for all, and those of accounts come last
		return slices.Index(p.asking(), s.name)
	}
	slices.SortStableFunc(p.Transports, func(a, b *entry) int { return cmp.Compare(max(0, order(a)), max(0, order(b))) })
}

// Submission returns the transport by which mail leaves for Microsoft's submission server, nil where
// none asks for a credential.
func (p *Setup) Submission() *entry {
	if list := p.queues(); len(list) > 0 {
		return list[0]
	}
	return nil
}

// asksFor reports whether a list of tables has sendas' map of that name, wherever its socket is.
func (p *Setup) asksFor(tables, name string) bool {
	return slices.ContainsFunc(cf.Split(tables), func(t string) bool {
		return strings.HasPrefix(t, "socketmap:") && strings.HasSuffix(t, ":"+name)
	})
}

// socketmap returns how the map of that name is written: relative to the queue directory, so that
// it works chrooted and not.
func (p *Setup) socketmap(name string) string {
	return "socketmap:" + p.relative(p.Config.Token.Listen).String() + ":" + name
}

// relative turns unix:/var/spool/postfix/sendas/milter into unix:sendas/milter.
func (p *Setup) relative(socket serve.Address) serve.Address {
	return socket.RelativeTo(p.queue())
}

func (p *Setup) queue() string { return p.Main["queue_directory"] }

// sameSocket reports whether Postfix and the configuration name the same socket.
func (p *Setup) sameSocket(ref string, listen serve.Address) bool {
	return serve.FromPostfix(ref, p.queue()).Same(listen)
}

// chrooted reports whether a service sees nothing but the queue directory. "-" is the default,
// which was y before 3.0.
func (p *Setup) chrooted(s *entry) bool {
	level := p.Main["compatibility_level"]
	return s.chroot == "y" || s.chroot == "-" && (level == "" || level == "0")
}

// Jail returns the folder that is the root of a service's world, "" where it sees the host's.
func (p *Setup) Jail(s *entry) string {
	if !p.chrooted(s) {
		return ""
	}
	return p.queue()
}

// Command writes a command of Postfix's for the instance that was read.
func (p *Setup) Command(name string) string { return p.inst.Command(name) }

// knows reports whether this version of Postfix has a parameter of that name. One that only stands
// in main.cf is called unused.
func (p *Setup) knows(name string) bool {
	_, known := p.raw[name]
	return known && !slices.Contains(p.unused, name)
}

// Cure is set for main.cf.
func (p *Setup) Cure(name, value string) string { return p.set(nil, name, value) }

// set returns the command that gives a parameter its value, in main.cf or for a service.
func (p *Setup) set(s *entry, name, value string) string {
	return p.setAll(s, []cf.Setting{{Name: name, Value: value}})
}

// setAll is set for several parameters at one time.
func (p *Setup) setAll(s *entry, list []cf.Setting) string {
	return p.edit(s, list) + " && " + p.inst.Command("postfix") + " reload"
}

// edit is the command alone, without a reload. postconf(1) glues what it adds to a last line without
// an end, so such a file gets one first.
func (p *Setup) edit(s *entry, list []cf.Setting) string {
	var b strings.Builder
	file, flag := cf.Main, "-e"
	if s != nil {
		file, flag = cf.Master, "-P"
	}
	if p.inst.Endless(file) {
		fmt.Fprintf(&b, "echo >>%s && ", filepath.Join(p.inst.Dir, file))
	}
	fmt.Fprintf(&b, "%s %s", p.inst.Command("postconf"), flag)
	for _, v := range list {
		if s == nil {
			fmt.Fprintf(&b, " '%s = %s'", v.Name, v.Value)
		} else {
			fmt.Fprintf(&b, " '%s/%s=%s'", s.Key(), v.Name, cf.Unspaced(v.Value))
		}
	}
	return b.String()
}

// enable is the command that writes all settings.
func (p *Setup) enable() string {
	command := "sendas postfix enable"
	if p.Config.Observes() {
		command += " --observe"
	}
	if p.inst.Named {
		command += " --postfix-config " + p.inst.Dir
	}
	return command
}
