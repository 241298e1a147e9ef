package lab

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/sendas/sendas/contrib/exosim/smtp"
)

// A host is Postfix as it is on one kind of real hosts: testdata/shapes/NAME.txtar. What stands before its
// files says what it stands for, and then, a line each:
//
//	mail CLIENT FROM TO STATION…   a message, and where Postfix's log has to say that it was sent
//	                               to; microsoft=ADDRESS is Exchange Online, which sees that sender
//	says TEXT                      what enable says
//	note TEXT                      what enable has a note about; of all others there must be none
//	type                           what enable says to do is typed first, as an administrator would
//	yaml LINE                      a line for the part milter: of sendas.yaml
//	file HOW                       how the two files lie there: bom, crlf, endless, symlink, bound
//	network NET                    is one of the printers' too, or of this host
//	often                          it is tried by "make test", too
//	local                          nobody but this host is a client
//	way TEXT                       what is in the way of enable, until FILE.mended takes the place of FILE
//	cert FILE                      a certificate with its key
//	warn ID                        a check of the doctor's that warns here, and rightly so
//
// A CLIENT is one of shapeClients, or sendmail, or another one and a port: user:587.
type host struct {
	name, about      string
	mails            []shapeMail
	says, notes, how []string
	warns, certs     []string
	ways             []string
	networks         []string
	yaml             string
	typed, v6, alone bool
	often            bool
	files            []txtar.File
}

type shapeMail struct {
	line             string
	client, from, to string
	stations         []string
}

// shapeClients are who writes to a shape's host.
var shapeClients = map[string]XClient{
	"printer": printer, "sap": sap, "world": world, "stranger": stranger,
	"v6": {Addr: "2001:db8:2::9", Name: "mfp6.local"}, "user": {}, "program": {},
}

// readHost reads a shape.
func readHost(t *testing.T, file string) *host {
	t.Helper()
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := &host{name: strings.TrimSuffix(filepath.Base(file), ".txtar"), files: a.Files}
	for line := range strings.Lines(string(a.Comment)) {
		line = strings.TrimSpace(line)
		word, rest, more := strings.Cut(line, " ")
		if more && (word == "type" || word == "local" || word == "often" || word == "file" && strings.Contains(rest, " ")) {
			word = "" // of a sentence
		}
		switch word {
		case "mail":
			f := strings.Fields(rest)
			if len(f) < 4 {
				t.Fatalf("%s: %q", file, line)
			}
			s.mails = append(s.mails, shapeMail{line, f[0], strings.Trim(f[1], "<>"), f[2], f[3:]})
		case "says":
			s.says = append(s.says, rest)
		case "note":
			s.notes = append(s.notes, rest)
		case "type":
			s.typed = true
		case "yaml":
			s.yaml += "  " + rest + "\n"
		case "file":
			s.how = append(s.how, rest)
		case "network":
			s.networks = append(s.networks, rest)
		case "local":
			s.alone = true
		case "often":
			s.often = true
		case "warn":
			s.warns = append(s.warns, rest)
		case "way":
			s.ways = append(s.ways, rest)
		case "cert":
			s.certs = append(s.certs, rest)
		default:
			s.about += line + "\n"
		}
	}
	if s.about == "" || len(s.mails) < 2 {
		t.Fatalf("%s says nothing of itself, or has less than two messages", file)
	}
	for _, f := range s.files {
		s.v6 = s.v6 || strings.Contains(string(f.Data), "\ninet_protocols = ipv6\n")
	}
	return s
}

// A bed is where one shape after the other lies: a queue with the sockets of a token service that runs
// all the time, a simulated Exchange Online, and the stand-ins.
type bed struct {
	*Site
	folder      string            // the folder of what is elsewhere than in Postfix's own
	ports       map[string]string // as the shape has it → here
	yaml        string            // sendas.yaml
	certificate []byte            // and its key
	stand       *standIns
	begun       time.Time // before all services
}

// makeBed makes one.
func makeBed(ctx context.Context, t *testing.T) *bed {
	t.Helper()
	program, err := program()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := MakeDir()
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{begun: time.Now().Add(-time.Hour), Site: &Site{Dir: dir, Secret: "s3cr3t~in/the+lab-" + filepath.Base(dir)}, folder: filepath.Join(dir, "h"), ports: make(map[string]string)}
	t.Cleanup(func() {
		if err := b.Stop(); err != nil {
			t.Errorf("stopping: %v", err)
		}
	})
	c := SiteConfig{Sendas: filepath.Join(program, "sendas"), PluginDir: program, Minute: time.Second}
	if err := b.startExosim(c); err != nil {
		t.Fatal(err)
	}
	b.Postfix = &Postfix{cfg: PostfixConfig{Dir: filepath.Join(dir, "p"), Hostname: defaultHostname, SASLPluginDir: program, SocketUID: milterUser, SocketGID: tokenUser,
		Hosts: map[string]string{"smtp.office365.com": "127.0.0.1"}}}
	for _, name := range neighbours {
		b.Postfix.cfg.Hosts[name] = "127.0.0.1"
	}
	if err := errors.Join(b.Postfix.prepare(), os.Chmod(b.Postfix.SocketDir(), 0o775), os.MkdirAll(b.folder, 0o755), os.Mkdir(filepath.Join(dir, "c"), 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := b.writeConfig(c); err != nil {
		t.Fatal(err)
	}
	yaml, err := os.ReadFile(b.Config)
	if err != nil {
		t.Fatal(err)
	}
	b.yaml = string(yaml)
	_, both, err := MakeCertificate(filepath.Join(dir, "c"))
	if err != nil {
		t.Fatal(err)
	}
	if b.certificate, err = os.ReadFile(both); err != nil {
		t.Fatal(err)
	}
	if i := bytes.Index(b.certificate, []byte("-----BEGIN PRIVATE")); i > 0 { // Postfix wants the key first
		b.certificate = slices.Concat(b.certificate[i:], b.certificate[:i])
	}
	// Else the token service could put another secret there.
	if err := errors.Join(os.Chown(filepath.Join(dir, "relay-app.secret"), 0, tokenUser), os.Chmod(filepath.Join(dir, "relay-app.secret"), 0o640)); err != nil {
		t.Fatal(err)
	}
	groups, err := queueReaders()
	if err != nil {
		t.Fatal(err)
	}
	b.Milter = b.service(c.Sendas, "milter", milterUser, b.milterHTTP)
	b.Milter.groups = groups
	b.Token = b.service(c.Sendas, "token", tokenUser, b.tokenHTTP)
	if err := b.Token.Start(ctx); err != nil {
		t.Fatal(err)
	}
	b.stand = startStandIns(ctx, t, b)
	b.alsoAt6(t)
	return b
}

// alsoAt6 is Exchange Online for a host without IPv4.
func (b *bed) alsoAt6(t *testing.T) {
	t.Helper()
	addr := b.Exosim.SubmissionAddr()
	l, err := net.Listen("tcp", strings.Replace(addr, "127.0.0.1", "[::1]", 1))
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go each(func(_ *standIns, c net.Conn) {
		to, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		defer to.Close()
		go io.Copy(to, c)
		io.Copy(c, to)
	})(nil, l)
}

// port is where on this host a shape's port is.
func (b *bed) port(t *testing.T, name string) string {
	t.Helper()
	if b.ports[name] == "" {
		list, err := freePorts(1)
		if err != nil {
			t.Fatal(err)
		}
		_, b.ports[name], _ = net.SplitHostPort(list[0])
	}
	return "127.0.0.1:" + b.ports[name]
}

// What of a shape's files is elsewhere here: folders, ports, names of services, and the tables that
// this Postfix was not built with.
var (
	folders   = regexp.MustCompile(`(^|[\s:=,({"])(/(?:etc|opt|var|srv|home)/)`)
	exchange  = regexp.MustCompile(`(smtp\.office365\.com\]?:)(587|submission)\b`)
	portAfter = regexp.MustCompile(`([\]:])(24|25|26|465|587|588|2003|7777|9900|10001|10023|10024|10025|10026|10027|10028|10031|11332|12340|12768|8891)\b`)
	outward   = regexp.MustCompile(`\[(?:inner\.lan|mail\.fabrikam\.com|backup\.lan|elsewhere\.example\.com)\]:\d+`)
	inetEntry = regexp.MustCompile(`(?m)^(?:(\S+):)?(\w+)(\s+inet\s)`)
	dataBase  = regexp.MustCompile(`\b(?:mysql|pgsql|ldap|sqlite):(\S+?)([,\s]|$)`)
)

var servicePorts = map[string]string{"smtp": "25", "submission": "587", "smtps": "465", "submissions": "465"}

// settle writes a shape's text as it has to be here.
func (b *bed) settle(t *testing.T, text string) string {
	text = folders.ReplaceAllStringFunc(text, func(s string) string {
		f := folders.FindStringSubmatch(s)
		return f[1] + b.folder + f[2]
	})
	text = strings.NewReplacer(b.folder+"/etc/postfix", b.Postfix.ConfigDir(), b.folder+"/var/spool/postfix", b.Postfix.QueueDir(), b.folder+"/var/lib/postfix", b.Postfix.dataDir(),
		b.folder+"/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/certs/ca-certificates.crt").Replace(text)
	_, submission, _ := net.SplitHostPort(b.Exosim.SubmissionAddr())
	text = exchange.ReplaceAllString(text, "${1}"+submission)
	text = outward.ReplaceAllStringFunc(text, func(s string) string {
		host, _, _ := strings.Cut(s, "]:")
		_, sink, _ := strings.Cut(b.port(t, "25 out"), ":")
		return host + "]:" + sink
	})
	text = portAfter.ReplaceAllStringFunc(text, func(s string) string {
		_, port, _ := strings.Cut(b.port(t, s[1:]), ":")
		return s[:1] + port
	})
	text = dataBase.ReplaceAllStringFunc(text, func(s string) string {
		f := dataBase.FindStringSubmatch(s)
		return "socketmap:inet:" + b.port(t, "3306") + ":" + filepath.Base(f[1]) + f[2]
	})
	for kind, other := range map[string]string{"lmdb": "btree", "pcre": "regexp"} {
		text = regexp.MustCompile(`\b`+kind+`:`).ReplaceAllString(text, other+":")
	}
	return text
}

// service writes an entry of master.cf for a port here.
func (b *bed) masterPorts(t *testing.T, text string) string {
	return inetEntry.ReplaceAllStringFunc(text, func(s string) string {
		f := inetEntry.FindStringSubmatch(s)
		host, name := f[1], cmp.Or(servicePorts[f[2]], f[2])
		if slices.Contains(slices.Collect(maps.Values(b.ports)), name) { // settled already
			return s
		}
		_, port, _ := strings.Cut(b.port(t, name), ":")
		if host != "" {
			host += ":"
		}
		return host + port + f[3]
	})
}

// lay writes a shape's files.
func (b *bed) lay(ctx context.Context, t *testing.T, s *host) {
	t.Helper()
	etc := b.Postfix.ConfigDir()
	must(t, os.RemoveAll(etc), os.RemoveAll(b.folder), os.MkdirAll(etc, 0o755), os.MkdirAll(b.folder, 0o755), os.RemoveAll(b.Postfix.logFile()), os.RemoveAll(filepath.Join(b.Dir, "postfix-state")))
	tables := make(map[string]map[string]string)
	var all string
	for _, name := range s.certs {
		path := b.settle(t, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b.certificate, 0o600))
	}
	for _, f := range withMaster(t, s.files) {
		text := b.settle(t, string(f.Data))
		path := b.settle(t, f.Name)
		switch f.Name {
		case "/etc/postfix/main.cf":
			text = b.hostLines(t) + text
		case "/etc/postfix/master.cf":
			text = b.masterPorts(t, text)
		}
		all += text
		if strings.Contains(f.Name, "sql/") || strings.Contains(f.Name, "mysql-") || strings.Contains(f.Name, "ldap") {
			entries := make(map[string]string)
			for line := range strings.Lines(text) {
				key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
				entries[key] = strings.TrimSpace(value)
			}
			tables[filepath.Base(f.Name)] = entries
		}
		must(t, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b.form(s, filepath.Base(path), text), 0o644))
	}
	for _, f := range s.files { // everybody has his mail there
		for _, name := range mailFolder.FindAllString(string(f.Data), -1) {
			must(t, os.MkdirAll(b.folder+name, 0o777), os.Chmod(b.folder+name, 0o777))
		}
	}
	for _, name := range []string{"main.cf", "master.cf"} {
		b.place(ctx, t, s, filepath.Join(etc, name))
	}
	b.stand.clear(tables)
	past := time.Now().Add(-time.Minute)
	must(t, os.Chtimes(filepath.Join(etc, "main.cf"), past, past))
	if strings.Contains(all, "\nmeta_directory = "+etc) {
		for _, name := range []string{"postfix-files", "dynamicmaps.cf"} {
			data, err := os.ReadFile(filepath.Join("/etc/postfix", name))
			must(t, err, os.WriteFile(filepath.Join(etc, name), data, 0o644))
		}
	}
	b.compile(ctx, t, all)
	hosts := "127.0.0.1"
	if s.v6 {
		hosts = "::1"
	}
	resolver, err := os.ReadFile("/etc/resolv.conf") // as smtp(8) has it in its queue
	must(t, err)
	var names strings.Builder
	names.WriteString("127.0.0.1 localhost\n")
	for _, name := range append(slices.Clone(neighbours), "smtp.office365.com") {
		fmt.Fprintf(&names, "%s %s\n", hosts, name)
	}
	yaml := strings.Replace(b.yaml, "milter:\n", "milter:\n"+s.yaml, 1)
	if s.alone {
		begin, end := strings.Index(yaml, "  - name: sap\n"), strings.Index(yaml, "  - name: this-host\n")
		yaml = yaml[:begin] + yaml[end:]
	}
	for _, net := range s.networks {
		beside := "10.2.0.0/16"
		if strings.HasPrefix(net, "::1") {
			beside = "127.0.0.0/8"
		}
		yaml = strings.Replace(yaml, "["+beside, "['"+net+"', "+beside, 1)
	}
	must(t, os.WriteFile(filepath.Join(b.Postfix.QueueDir(), "etc/resolv.conf"), resolver, 0o644), os.WriteFile(filepath.Join(b.Postfix.QueueDir(), "etc/hosts"), []byte(names.String()), 0o644), os.WriteFile(b.Config, []byte(yaml), 0o644),
		os.Chtimes(b.Config, b.begun, b.begun)) // nothing in it that the token service would have to load
}

// withMaster puts the package's master.cf to a shape's files, where it has none of its own: with more
// entries, which may stand for one of those.
func withMaster(t *testing.T, files []txtar.File) []txtar.File {
	t.Helper()
	const master = "/etc/postfix/master.cf"
	data, err := os.ReadFile("testdata/shapes/master.cf")
	must(t, err)
	list := slices.Clone(files)
	at := slices.IndexFunc(list, func(f txtar.File) bool { return f.Name == master+".more" })
	switch {
	case at >= 0:
		for line := range strings.Lines(string(list[at].Data)) {
			if f := strings.Fields(line); len(f) > 7 && strings.TrimLeft(line, " \t#") == line {
				data = regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(f[0])+`\s+`+f[1]+`\s.*\n(?:[ \t].*\n)*`).ReplaceAll(data, nil)
			}
		}
		list[at] = txtar.File{Name: master, Data: append(data, list[at].Data...)}
	case !slices.ContainsFunc(list, func(f txtar.File) bool { return f.Name == master }):
		list = append(list, txtar.File{Name: master, Data: data})
	}
	return list
}

var mailFolder = regexp.MustCompile(`/var/(?:mail|vmail|spool/mail)\b|/home/vmail\b|/srv/vmail\b`)

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// hostLines are what a shape's main.cf needs here.
func (b *bed) hostLines(t *testing.T) string {
	p := b.Postfix
	_, sink, _ := strings.Cut(b.port(t, "25 out"), ":")
	return fmt.Sprintf(`readme_directory = no
queue_directory = %s
data_directory = %s
maillog_file = %s
maillog_file_prefixes = %s
import_environment = MAIL_CONFIG MAIL_DEBUG MAIL_LOGTAG TZ LANG=C POSTLOG_SERVICE POSTLOG_HOSTNAME { SASL_PATH = %s }
smtpd_authorized_xclient_hosts = 127.0.0.1 [::1]
smtp_host_lookup = native
lmtp_host_lookup = native
smtp_tcp_port = %s
`, p.QueueDir(), p.dataDir(), p.logFile(), p.cfg.Dir, p.cfg.SASLPluginDir, sink)
}

// form is how a file lies there.
func (b *bed) form(s *host, name, text string) []byte {
	if name != "main.cf" && name != "master.cf" {
		return []byte(text)
	}
	for _, how := range s.how {
		switch how {
		case "bom":
			if name == "master.cf" {
				continue
			}
			text = "\ufeff" + text
		case "crlf":
			text = strings.ReplaceAll(text, "\n", "\r\n")
		case "endless":
			text = strings.TrimRight(text, "\n")
		}
	}
	return []byte(text)
}

// place puts a file that is written to where a shape has it.
func (b *bed) place(ctx context.Context, t *testing.T, s *host, path string) {
	t.Helper()
	run := func(command ...string) {
		t.Helper()
		if out, err := exec.CommandContext(context.WithoutCancel(ctx), command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", command, err, out)
		}
	}
	for _, how := range s.how {
		kept := filepath.Join(b.folder, "srv/config", filepath.Base(path))
		switch how {
		case "symlink":
			must(t, os.MkdirAll(filepath.Dir(kept), 0o755), os.Rename(path, kept), os.Symlink(kept, path))
		case "bound":
			must(t, os.MkdirAll(filepath.Dir(kept), 0o755), os.Rename(path, kept), os.WriteFile(path, nil, 0o644))
			run("mount", "--bind", kept, path)
			t.Cleanup(func() { run("umount", path) })
		}
	}
}

var compiled = regexp.MustCompile(`\b(hash|btree):(/[^\s,;)}]+)`)

// compile makes data bases of the tables that the files name.
func (b *bed) compile(ctx context.Context, t *testing.T, all string) {
	t.Helper()
	var maps, aliases []string
	all = strings.ReplaceAll(all, "$config_directory", b.Postfix.ConfigDir())
	for _, m := range compiled.FindAllStringSubmatch(all, -1) {
		if info, err := os.Stat(m[2]); err != nil || !info.Mode().IsRegular() {
			continue
		}
		if strings.Contains(filepath.Base(m[2]), "aliases") {
			aliases = append(aliases, m[0])
		} else {
			maps = append(maps, m[0])
		}
	}
	for name, list := range map[string][]string{"postmap": maps, "postalias": aliases} {
		slices.Sort(list)
		if list = slices.Compact(list); len(list) > 0 {
			_, err := b.Postfix.command(ctx, nil, name, append([]string{"-c", b.Postfix.ConfigDir()}, list...)...)
			must(t, err)
		}
	}
}

// files returns main.cf and master.cf, as they are reached by their names.
func (b *bed) files(t *testing.T) [2]string {
	t.Helper()
	var list [2]string
	for i, name := range []string{"main.cf", "master.cf"} {
		data, err := os.ReadFile(filepath.Join(b.Postfix.ConfigDir(), name))
		must(t, err)
		list[i] = string(data)
	}
	return list
}

// postfix types "sendas postfix" and returns what it said, stderr too.
func (b *bed) postfix(ctx context.Context, t *testing.T, args ...string) string {
	t.Helper()
	said, err := b.typePostfix(ctx, t, args...)
	if err != nil {
		t.Fatalf("sendas postfix %q: %v\n%s", args, err, said)
	}
	return said
}

// enable makes the host an exit of the tenant, and compares what is said with what has to be.
func (b *bed) enable(ctx context.Context, t *testing.T, s *host) {
	t.Helper()
	said := b.postfix(ctx, t, "enable")
	for _, want := range s.says {
		if !strings.Contains(said, b.settle(t, want)) {
			t.Errorf("enable said\n%swithout %q", said, want)
		}
	}
	left := slices.Clone(s.notes)
	for line := range strings.Lines(said) {
		// The milter is started afterwards, so that it need not notice what it is told.
		if !strings.Contains(line, "sendas: note:") && !strings.Contains(line, "in the way") || strings.Contains(line, "note: socket unix:") {
			continue
		}
		i := slices.IndexFunc(left, func(n string) bool { return strings.Contains(line, b.settle(t, n)) })
		if i < 0 {
			t.Errorf("enable said\n%s", said)
			break
		}
		left = slices.Delete(left, i, i+1)
	}
	if len(left) > 0 {
		t.Errorf("enable said\n%swithout a note of %q", said, left)
	}
}

// mend has enable refuse a shape, and then does what it says, which no command does.
func (b *bed) mend(ctx context.Context, t *testing.T, s *host) {
	t.Helper()
	if len(s.ways) == 0 {
		return
	}
	said, err := b.typePostfix(ctx, t, "enable")
	for _, want := range s.ways {
		if err == nil || !strings.Contains(said, "in the way: "+want) {
			t.Fatalf("enable: %v\n%swithout %q", err, said, want)
		}
	}
	list := slices.Clone(s.files)
	for _, f := range s.files {
		if name, is := strings.CutSuffix(f.Name, ".mended"); is {
			i := slices.IndexFunc(list, func(f txtar.File) bool { return f.Name == name })
			list[i].Data = f.Data
		}
	}
	mended := *s
	mended.files = list
	b.lay(ctx, t, &mended)
}

// typeAll types what enable says to do, as long as it says something that was not typed yet.
func (b *bed) typeAll(ctx context.Context, t *testing.T) {
	t.Helper()
	typed := make(map[string]bool)
	for more := true; more; {
		said, _ := b.typePostfix(ctx, t, "enable", "--dry-run")
		more = false
		for line := range strings.Lines(said) {
			_, do, is := strings.Cut(line, "  do: ")
			do = strings.TrimSpace(do)
			do, _, _ = strings.Cut(do, " && postfix ") // it does not run yet
			if !is || typed[do] || !strings.Contains(do, "postconf ") {
				continue
			}
			typed[do], more = true, true
			out, err := exec.CommandContext(ctx, "sh", "-c", do[strings.Index(do, "postconf "):]).CombinedOutput()
			if err != nil {
				t.Fatalf("%s: %v\n%s", do, err, out)
			}
		}
	}
	if len(typed) == 0 {
		t.Error("there was nothing to type")
	}
}

// A delivery is what Postfix's log says of one recipient.
type delivery struct{ to, relay, status, line string }

var (
	queuedLine    = regexp.MustCompile(`: ([0-9A-Za-z]+): message-id=(\S+)`)
	deliveredLine = regexp.MustCompile(`: ([0-9A-Za-z]+): to=<(.*?)>, .*?relay=(\S+?), .*status=(\w+)`)
)

// deliveries returns what the log says of messages with that Message-ID.
func deliveries(log, id string) (list []delivery) {
	queue := make(map[string]bool)
	for line := range strings.Lines(log) {
		if m := queuedLine.FindStringSubmatch(line); m != nil && m[2] == "<"+id+">" {
			queue[m[1]] = true
		}
		if m := deliveredLine.FindStringSubmatch(line); m != nil && queue[m[1]] {
			list = append(list, delivery{m[2], m[3], m[4], line})
		}
	}
	return list
}

// send sends one of a shape's messages, and returns its Message-ID, "" where it was refused.
func (b *bed) send(ctx context.Context, t *testing.T, s *host, m shapeMail) string {
	t.Helper()
	id := fmt.Sprintf("shape-%d@device.example", messageNumber.Add(1))
	from := cmp.Or(m.from, "MAILER-DAEMON@mail.example.com")
	data := message("From: "+from, "To: "+m.to, "Message-ID: <"+id+">", storyDate)
	name, port, _ := strings.Cut(m.client, ":")
	if name == "program" {
		must(t, b.Postfix.SendmailInject(ctx, m.from, []string{m.to}, bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n"))))
		return id
	}
	client, known := shapeClients[name]
	if !known {
		t.Fatalf("%s: nobody knows %s", m.line, name)
	}
	addr := b.port(t, cmp.Or(port, "25"))
	if s.v6 {
		addr = strings.Replace(addr, "127.0.0.1", "[::1]", 1)
	}
	mail := Mail{XClient: client, From: m.from, To: []string{m.to}, Data: data}
	if name == "user" {
		mail.TLS, mail.Auth = &tls.Config{InsecureSkipVerify: true}, sasl.NewPlainClient("", "nagios", "nagios")
	}
	res, err := Send(ctx, addr, mail)
	refused := strings.HasPrefix(m.stations[0], "refused=")
	switch {
	case err != nil:
		t.Fatalf("%s: %v\n%v", m.line, err, res.Verdict())
	case refused && !res.Accepted():
		if code := strings.TrimPrefix(m.stations[0], "refused="); !strings.HasPrefix(res.Verdict().Line(), code) {
			t.Errorf("%s: %s", m.line, res.Verdict())
		}
		return ""
	case !res.Accepted() || refused:
		t.Fatalf("%s: %s", m.line, res.Verdict())
	}
	return id
}

// flow sends all of a shape's mail, and waits until the log says that each message is where it has to
// be, and nowhere else.
func (b *bed) flow(ctx context.Context, t *testing.T, s *host) {
	t.Helper()
	ids := make([]string, len(s.mails))
	for i, m := range s.mails {
		ids[i] = b.send(ctx, t, s, m)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for i, m := range s.mails {
		if ids[i] == "" {
			continue
		}
		var came []delivery
		err := poll(ctx, func() (bool, error) {
			log, err := b.Postfix.Log()
			came = deliveries(log, ids[i])
			return len(came) >= len(m.stations), err
		})
		if err != nil {
			t.Fatalf("%s: %v; the log has %+v", m.line, err, came)
		}
		b.compare(t, m, ids[i], came)
	}
}

// compare compares where a message went with where it had to go.
func (b *bed) compare(t *testing.T, m shapeMail, id string, came []delivery) {
	t.Helper()
	left := slices.Clone(came)
	for _, want := range m.stations {
		where, sender, _ := strings.Cut(want, "=")
		i := slices.IndexFunc(left, func(d delivery) bool {
			return d.status == "sent" && strings.Contains(b.unsettle(d.relay), b.relay(where))
		})
		if i < 0 {
			t.Errorf("%s: it did not come to %s:", m.line, want)
			break
		}
		left = slices.Delete(left, i, i+1)
		if where != "microsoft" {
			continue
		}
		if n := slices.IndexFunc(b.Exosim.Messages(), func(m *smtp.Message) bool {
			return m.Accepted() && m.Sender == sender && slices.Contains(m.Header("Message-ID"), "<"+id+">")
		}); n < 0 {
			t.Errorf("%s: Exchange Online has not seen it as %s", m.line, sender)
		}
	}
	if t.Failed() || len(left) > 0 {
		for _, d := range came {
			t.Errorf("%s: %s", m.line, d.line)
		}
	}
	for _, got := range b.stand.has(id) { // of what is none of sendas' business, nothing changes
		if !slices.Contains(m.stations, "changed") && !bytes.Contains(got.Data, []byte("From: "+cmp.Or(m.from, "MAILER-DAEMON@mail.example.com")+"\r\n")) {
			t.Errorf("%s: it came as\n%s", m.line, got.Data)
		}
	}
}

// relay is what the log calls a station.
func (b *bed) relay(station string) string {
	if station == "microsoft" {
		return "smtp.office365.com["
	}
	return station
}

// unsettle writes the ports of a relay as the shape has them.
func (b *bed) unsettle(relay string) string {
	for name, port := range b.ports {
		relay = strings.Replace(relay, "]:"+port, "]:"+name, 1)
	}
	return relay
}

// among is a command on a host with the neighbours: for whoever looks past the queue directory, names
// mean what they mean in it.
func (b *bed) among(command ...string) []string {
	const script = `mount --bind "$0" /etc/hosts && exec "$@"`
	return append([]string{"unshare", "-m", "sh", "-c", script, filepath.Join(b.Postfix.QueueDir(), "etc/hosts")}, command...)
}

// start starts Postfix there.
func (b *bed) start(ctx context.Context) error {
	p := b.Postfix
	p.mu.Lock()
	defer p.mu.Unlock()
	args := b.among("postfix", "-c", p.ConfigDir(), "start")
	err := os.WriteFile(filepath.Join(p.QueueDir(), "quick-start"), nil, 0o644)
	if err == nil {
		_, err = p.command(ctx, nil, args[0], args[1:]...)
	}
	if err == nil {
		p.pgid, err = p.masterPID()
	}
	return err
}

// doctor has the doctor look at the host: nothing fails, and it warns of nothing but what the shape has
// a note about.
func (b *bed) doctor(ctx context.Context, t *testing.T, s *host) {
	t.Helper()
	dir, err := program()
	must(t, err)
	args := b.among(filepath.Join(dir, "sendas"), "doctor", "--json", "--config", b.Config, "--postfix-config", b.Postfix.ConfigDir())
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, runErr := cmd.Output()
	var report struct {
		Checks []struct{ ID, Status, What, Found, Means, Do string }
	}
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatalf("doctor: %v, %v\n%s\n%s", err, runErr, out, &stderr)
	}
	left := slices.Clone(s.warns)
	for _, c := range report.Checks {
		for name, port := range b.ports {
			c.ID = strings.Replace(c.ID, "."+port+".", "."+name+".", 1)
		}
		if i := slices.Index(left, c.ID); i >= 0 && c.Status == "warn" {
			left = slices.Delete(left, i, i+1)
			continue
		}
		if c.Status == "fail" || c.Status == "warn" {
			t.Errorf("doctor: %s %s: %s: %s\n  means: %s\n  do: %s", c.Status, c.ID, c.What, c.Found, c.Means, c.Do)
		}
	}
	if len(left) > 0 {
		t.Errorf("the doctor does not warn of %q", left)
	}
}

// try makes the host of a shape an exit of the tenant and back again.
func (b *bed) try(ctx context.Context, t *testing.T, s *host) {
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := b.Postfix.Log()
			t.Logf("Postfix:\n%s\nmilter:\n%s", last(log), last(b.Milter.Log()))
		}
		if err := errors.Join(b.Postfix.Stop(), b.Milter.Kill()); err != nil {
			t.Error(err)
		}
		if t.Failed() { // the next one begins anew
			b.Postfix.command(context.WithoutCancel(ctx), nil, "postsuper", "-c", b.Postfix.ConfigDir(), "-d", "ALL")
		}
	})
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	b.lay(ctx, t, s)
	b.mend(ctx, t, s)
	if s.typed {
		b.typeAll(ctx, t)
	}
	before := b.files(t)
	b.enable(ctx, t, s)
	must(t, b.start(ctx))
	must(t, b.Milter.Start(ctx)) // after Postfix, whose queue it looks at first of all
	b.flow(ctx, t, s)
	b.doctor(ctx, t, s)
	must(t, b.Postfix.Stop(), b.Milter.Kill())
	if said := b.postfix(ctx, t, "disable"); strings.Count(said, "byte for byte") != 2 {
		t.Errorf("disable said\n%s", said)
	}
	if after := b.files(t); after != before {
		t.Errorf("main.cf and master.cf are not what they were:\n%s\n%s", after[0], after[1])
	}
}

var allShapes = flag.Bool("shapes", false, "try all shapes of hosts, not a dozen")

// TestShapes: on each kind of host, "sendas postfix enable" leads to Microsoft what is to leave there,
// all other mail goes its ways as before, the doctor has nothing to say against it, and disable brings
// back every byte.
func TestShapes(t *testing.T) {
	list, err := filepath.Glob("testdata/shapes/*.txtar")
	if err != nil || len(list) == 0 {
		t.Fatal("no shapes", err)
	}
	todo := make(chan *host, len(list))
	for _, file := range list {
		if s := readHost(t, file); s.often || *allShapes {
			todo <- s
		}
	}
	close(todo)
	for i := range 3 {
		t.Run(fmt.Sprint(i+1), func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
			defer cancel()
			b := makeBed(ctx, t)
			for s := range todo {
				t.Run(s.name, func(t *testing.T) { b.try(ctx, t, s) })
			}
			checkPromises(t, b.Site)
		})
	}
}
