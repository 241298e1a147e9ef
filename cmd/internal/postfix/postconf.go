// Package postfix knows what Postfix needs for a configuration of sendas. It reads an instance by
// postconf(1) ([Read]), judges what it finds ([Setup.Check]), and shows, writes or takes back the
// settings ([Job]). Everything is tried on a copy first, the former files are kept, and what others
// wrote stays.
package postfix

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/sendas/sendas/cmd/internal/config"
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

// key is how postconf(1) names the service: "smtp/unix".
func (s *entry) key() string { return s.name + "/" + s.kind }

// verbose reports whether -v stands among its arguments.
func (s *entry) verbose() bool {
	return slices.ContainsFunc(s.args, func(a string) bool { return strings.HasPrefix(a, "-v") && strings.Trim(a, "-v") == "" })
}

// A Setup is what postconf(1) says of an instance, and what the configuration wants of it.
type Setup struct {
	Main     map[string]string // every parameter, with $names replaced
	raw      map[string]string // as it is written, or the default
	services []entry
	unused   []string // names in main.cf or master.cf that mean nothing: misspelt, most likely
	tables   []string // kinds of look-up tables
	sasl     []string // kinds of SASL for clients
	Config   *config.Site
	command  string // "postconf", with the folder of the instance

	Transports []*entry // those that ask sendas for the credential
	own        bool     // only by settings of their own, and not by main.cf
}

// Read asks postconf(1) about the instance in a folder; "" is Postfix's default. c is what it is
// judged by.
func Read(ctx context.Context, run Runner, folder string, c *config.Site) (*Setup, error) {
	p := &Setup{Config: c, command: "postconf"}
	var where []string
	if folder != "" {
		where = []string{"-c", folder}
		p.command += " -c " + folder
	}
	for _, ask := range []struct {
		flags []string
		read  func(string)
	}{
		{nil, func(s string) { p.raw = readParameters(s) }}, {[]string{"-x"}, func(s string) { p.Main = readParameters(s) }}, {[]string{"-M", "-x"}, p.readServices}, {[]string{"-P", "-x"}, p.readOverrides},
		{[]string{"-m"}, func(s string) { p.tables = strings.Fields(s) }}, {[]string{"-A"}, func(s string) { p.sasl = strings.Fields(s) }},
	} {
		out, said, err := run(ctx, "postconf", slices.Concat(where, ask.flags)...)
		if err != nil {
			return nil, err
		}
		ask.read(out)
		p.readUnused(said)
	}
	p.findTransports()
	return p, nil
}

// readParameters reads lines of "name = value".
func readParameters(out string) map[string]string {
	m := make(map[string]string)
	for line := range strings.Lines(out) {
		if name, value, ok := strings.Cut(line, "="); ok {
			m[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	return m
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

// otherName is a value that is nothing but another parameter's, as many defaults are.
var otherName = regexp.MustCompile(`^\$[({]?([A-Za-z0-9_]+)[)}]?$`)

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
		m := otherName.FindStringSubmatch(p.raw[at])
		if m == nil {
			break
		}
		at = m[1]
	}
	return p.Main[name]
}

// submits reports whether mail is to leave by submission at all.
func (p *Setup) submits() bool { return p.Config.Policy == nil || len(p.Config.Mailboxes) > 0 }

// findTransports finds out which of the two shapes the site has: settings in main.cf, or in a
// transport of their own.
func (p *Setup) findTransports() {
	asks := func(s *entry) bool { return p.asksFor(p.Value(s, "smtp_sasl_password_maps"), "lease") }
	p.own = !asks(nil)
	for _, s := range p.running("smtp") {
		if asks(s) {
			p.Transports = append(p.Transports, s)
		}
	}
}

// asksFor reports whether a list of tables has sendas' map of that name, wherever its socket is.
func (p *Setup) asksFor(tables, name string) bool {
	return slices.ContainsFunc(splitList(tables), func(t string) bool {
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

// splitList divides a value at commas and blanks, and keeps what stands in braces together.
func splitList(value string) []string {
	var list []string
	depth, begin := 0, -1
	for i, r := range value + " " {
		switch {
		case r == '{':
			depth++
		case r == '}':
			depth--
		}
		separates := depth <= 0 && strings.ContainsRune(", \t\n", r)
		switch {
		case separates && begin >= 0:
			list, begin = append(list, value[begin:i]), -1
		case !separates && begin < 0:
			begin = i
		}
	}
	if begin >= 0 { // a brace without its partner
		list = append(list, value[begin:])
	}
	return list
}

// bracedList divides "{ unix:sendas/milter, default_action=accept }" into its parts; a value
// without braces is one part.
func bracedList(item string) []string {
	if inner, ok := strings.CutPrefix(item, "{"); ok {
		return splitList(strings.TrimSuffix(inner, "}"))
	}
	return []string{item}
}

var secretTables = regexp.MustCompile(`\b(static|inline|pipemap|randmap|unionmap):.*`)

// shownValue is a value as it may be seen: tables that stand in main.cf itself may hold passwords.
func shownValue(v string) string {
	if v == "" {
		return "(empty)"
	}
	return secretTables.ReplaceAllString(v, "$1:REDACTED")
}

// knows reports whether this version of Postfix has a parameter of that name. One that only stands
// in main.cf is called unused.
func (p *Setup) knows(name string) bool {
	_, known := p.raw[name]
	return known && !slices.Contains(p.unused, name)
}

// set returns the command that gives a parameter its value, in main.cf or for a service.
func (p *Setup) set(s *entry, name, value string) string {
	return p.setAll(s, []namedValue{{name, value}})
}

// setAll is set for several parameters at one time.
func (p *Setup) setAll(s *entry, list []namedValue) string {
	var b strings.Builder
	b.WriteString(p.command)
	if s == nil {
		b.WriteString(" -e")
	} else {
		b.WriteString(" -P")
	}
	for _, v := range list {
		if s == nil {
			fmt.Fprintf(&b, " '%s = %s'", v.Name, v.Value)
		} else { // postconf -P takes no blanks
			fmt.Fprintf(&b, " '%s/%s=%s'", s.key(), v.Name, strings.ReplaceAll(v.Value, ", ", ","))
		}
	}
	return b.String() + " && postfix" + strings.TrimPrefix(p.command, "postconf") + " reload"
}
