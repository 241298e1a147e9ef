//go:build mta

package lab

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim"
	"github.com/sendas/sendas/contrib/exosim/smtp"
)

// Other mail servers come from Debian's packages, unpacked in a folder: they conflict with Postfix.
// Users and names that they want are there for them alone (libnss-wrapper).

// otherMTA is such a server.
type otherMTA struct {
	dir string // of this server; root is below it
	env []string
}

// mtaOwner is the user that the tests know Exim by; every Debian has it.
const mtaOwner = "mail"

// unpack gets packages and unpacks them.
func unpack(ctx context.Context, t *testing.T, packages ...string) *otherMTA {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("another mail server changes its user, so this test has to be run by root")
	}
	dir, err := MakeDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &otherMTA{dir: dir}
	get := func() ([]byte, error) {
		cmd := exec.CommandContext(ctx, "apt-get", append([]string{"download", "-qq"}, packages...)...)
		cmd.Dir = dir
		return cmd.CombinedOutput()
	}
	said, err := get()
	if err != nil { // the lists are older than the mirror
		if out, err := exec.CommandContext(ctx, "apt-get", "update", "-qq").CombinedOutput(); err != nil {
			t.Fatalf("Debian's packages cannot be had here, which this test needs: apt-get update: %v\n%s\n%s", err, out, said)
		}
		if said, err = get(); err != nil {
			t.Fatalf("Debian's packages %q cannot be had here, which this test needs: %v\n%s", packages, err, said)
		}
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*.deb"))
	for _, f := range files {
		if out, err := exec.CommandContext(ctx, "dpkg", "-x", f, m.path("root")).CombinedOutput(); err != nil {
			t.Fatalf("unpacking %s: %v\n%s", f, err, out)
		}
	}
	m.pretend(t)
	return m
}

func (m *otherMTA) path(parts ...string) string {
	return filepath.Join(append([]string{m.dir}, parts...)...)
}

// pretend gives the server the users and names that it wants.
func (m *otherMTA) pretend(t *testing.T) {
	t.Helper()
	u, err := user.Lookup(mtaOwner)
	if err != nil {
		t.Fatal(err)
	}
	passwd, _ := os.ReadFile("/etc/passwd")
	group, _ := os.ReadFile("/etc/group")
	for _, name := range []string{"Debian-exim", "smmsp", "smmta"} {
		passwd = fmt.Appendf(passwd, "%s:x:%s:%s::/nonexistent:/bin/false\n", name, u.Uid, u.Gid)
		group = fmt.Appendf(group, "%s:x:%s:\n", name, u.Gid)
	}
	m.write(t, "passwd", string(passwd))
	m.write(t, "group", string(group))
	m.write(t, "hosts", "127.0.0.1 smtp.office365.com\n127.0.0.1 localhost\n")
	// With the bits for another user or group, a program would not find its libraries.
	for _, program := range []string{"usr/sbin/exim4", "usr/libexec/sendmail/sendmail"} {
		if err := os.Chmod(m.path("root", program), 0o755); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	m.env = []string{"PATH=" + commandPath, "LD_LIBRARY_PATH=" + m.path("root/usr/lib/x86_64-linux-gnu") + ":" + m.path("root/lib/x86_64-linux-gnu") + ":" +
		m.path("root/usr/lib/aarch64-linux-gnu") + ":" + m.path("root/lib/aarch64-linux-gnu"),
		"NSS_WRAPPER_PASSWD=" + m.path("passwd"), "NSS_WRAPPER_GROUP=" + m.path("group"), "NSS_WRAPPER_HOSTS=" + m.path("hosts")}
	found, _ := filepath.Glob(m.path("root/usr/lib/*/libnss_wrapper.so"))
	if len(found) != 1 {
		t.Fatalf("the package libnss-wrapper has no libnss_wrapper.so: %q", found)
	}
	m.env = append(m.env, "LD_PRELOAD="+found[0])
}

func (m *otherMTA) write(t *testing.T, name, text string) string {
	t.Helper()
	file := m.path(name)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// folder makes one that the server's user may write in.
func (m *otherMTA) folder(t *testing.T, name string) string {
	t.Helper()
	u, _ := user.Lookup(mtaOwner)
	var uid, gid int
	fmt.Sscan(u.Uid, &uid)
	fmt.Sscan(u.Gid, &gid)
	if err := makeDir(m.path(name), 0o755, uid, gid); err != nil {
		t.Fatal(err)
	}
	return m.path(name)
}

// run runs a program of the packages to its end.
func (m *otherMTA) run(ctx context.Context, stdin string, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, m.path("root", program), args...)
	said := &bytes.Buffer{}
	cmd.Env, cmd.Stdin, cmd.Stderr = m.env, strings.NewReader(stdin), said
	out, err := cmd.Output()
	if err != nil {
		out = append(out, said.Bytes()...)
	}
	return string(out), err
}

// exampleOf returns what stands in a document between ```kind and ```.
func exampleOf(t *testing.T, file, kind string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../..", file))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "```"+kind+"\n")
	part, _, end := strings.Cut(rest, "```")
	if !ok || !end {
		t.Fatalf("%s has no block %s", file, kind)
	}
	return part
}

const mtaRecipe = "docs/recipes/other-mta.md"

// eximConf is Exim's configuration around the blocks of the recipe.
func (s *Site) eximConf(t *testing.T, m *otherMTA) string {
	t.Helper()
	_, port, _ := net.SplitHostPort(s.Exosim.SubmissionAddr())
	recipe := func(kind string) string {
		return strings.NewReplacer("/var/spool/postfix/sendas/credentials", filepath.Join(s.Postfix.SocketDir(), "credentials"),
			"/etc/ssl/certs/ca-certificates.crt", filepath.Join(s.Dir, "ca.pem"), "port = 587", "port = "+port, "  no_more\n", "  no_more\n  self = send\n").Replace(exampleOf(t, mtaRecipe, kind))
	}
	return m.write(t, "exim.conf", fmt.Sprintf(`exim_path = %s
spool_directory = %s
log_file_path = %s/%%slog
pid_file_path = %s/pid
exim_user = %s
exim_group = %s
keep_environment = ^LD_ : ^NSS_WRAPPER
primary_hostname = exim.lab.example
never_users =
host_lookup =
domainlist local_domains = @
begin routers
%s
begin transports
%s
begin retry
%s
begin authenticators
%s`, m.path("root/usr/sbin/exim4"), m.folder(t, "spool"), m.folder(t, "log"), m.path("spool"), mtaOwner, mtaOwner,
		recipe("exim-router"), recipe("exim-transport"), strings.Replace(recipe("exim-retry"), ",1m", ",2s", 1), recipe("exim-authenticator")))
}

// TestExim: Exim takes the same leases over the same socket, one for each message, and nothing leaves
// without: not for a sender that no mailbox has, not while the service is down, not for a peer that
// it does not know, and not faster than the limit.
func TestExim(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second, YAML: func(y string) string {
		return strings.ReplaceAll(strings.Replace(y, "  state_dir: state\n", "  state_dir: state\n  peers: [postfix, "+mtaOwner+"]\n  recipients_unseen: 1\n", 1), "LIMITS", "{messages: 4/6s}")
	}, Exosim: func(c *exosim.Config) { c.Messages = 4 }})
	m := unpack(ctx, t, "exim4-daemon-light", "libidn12", "libnss-wrapper")
	conf := s.eximConf(t, m)
	exim := func(stdin string, args ...string) string {
		t.Helper()
		out, err := m.run(ctx, stdin, "usr/sbin/exim4", append([]string{"-C", conf}, args...)...)
		if err != nil {
			t.Fatalf("exim4 %q: %v\n%s", args, err, out)
		}
		return out
	}
	if said := exim("", "-bV"); !strings.Contains(said, "Exim version 4.9") {
		t.Fatalf("this is no Exim 4.96 or newer:\n%s", said)
	}
	// What Exim would start in the background runs in processes of its own here: it gives its rights away
	// when it starts itself again with another configuration than Debian's.
	var running sync.WaitGroup
	t.Cleanup(running.Wait)
	send := func(from, id string) {
		running.Go(func() {
			mail := "From: " + from + "\nTo: someone@fabrikam.com\nSubject: Exim\nMessage-ID: <" + id + "@exim.lab.example>\n\nbody\n"
			if out, err := m.run(ctx, mail, "usr/sbin/exim4", "-C", conf, "-odf", "-oi", "-f", from, "someone@fabrikam.com"); err != nil {
				t.Errorf("exim4 as %s: %v\n%s", from, err, out)
			}
		})
	}
	log := func() string {
		b, _ := os.ReadFile(m.path("log", "mainlog"))
		p, _ := os.ReadFile(m.path("log", "paniclog"))
		return string(b) + string(p)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("Exim:\n%s", last(log()))
		}
	})
	waitLog := func(words string, times int) {
		t.Helper()
		err := poll(ctx, func() (bool, error) {
			if strings.Count(log(), words) >= times {
				return true, nil
			}
			// One refused sign-in makes Exim leave the host alone until the retry time, whoever sends.
			_, err := m.run(ctx, "", "usr/sbin/exim4", "-C", conf, "-qff")
			return false, err
		})
		if err != nil {
			t.Fatalf("Exim's log has not %d times %q: %v", times, words, err)
		}
	}
	for i, from := range []string{"erp@contoso.com", "billing@contoso.com", "scan@contoso.com"} {
		send(from, fmt.Sprintf("exim-%d", i))
		if err := s.WaitMessages(ctx, i+1); err != nil {
			t.Fatal(err)
		}
		if got := s.Exosim.Messages()[i]; got.Sender != from || got.Endpoint != smtp.EndpointSubmission || !strings.HasPrefix(got.TLS, "TLS 1.") {
			t.Errorf("%s left by %s as %s of %s, %s", from, got.Endpoint, got.Sender, got.Mailbox, got.TLS)
		}
	}

	// Nobody may send as the sender: no lease, so no AUTH, and the mail waits.
	send("ceo@contoso.com", "exim-nobody")
	waitLog("authentication attempt(s) failed", 1)
	// The service is down.
	if err := s.Token.Stop(); err != nil {
		t.Fatal(err)
	}
	send("scan@contoso.com", "exim-down")
	waitLog("authentication attempt(s) failed", 2)
	if n := len(s.Exosim.Messages()); n != 3 {
		t.Errorf("%d messages reached Exchange Online, want the 3 that had a lease", n)
	}
	if refused := s.Exosim.AuthRefused(); len(refused) > 0 {
		t.Errorf("without a lease somebody has tried to sign in: %v", refused)
	}
	if err := s.Token.Start(ctx); err != nil {
		t.Fatal(err)
	}
	running.Wait() // it removes no message that is being tried
	exim("", "-Mrm", messageOf(t, log(), "exim-nobody"))
	exim("", "-qff")
	if err := s.WaitMessages(ctx, 4); err != nil {
		t.Fatal(err)
	}

	// A backlog: ten messages of one mailbox, of which four may leave in six seconds.
	for i := range 10 {
		send("scan@contoso.com", fmt.Sprintf("exim-backlog-%d", i))
	}
	err := poll(ctx, func() (bool, error) {
		if s.Accepted() >= 14 {
			return true, nil
		}
		_, err := m.run(ctx, "", "usr/sbin/exim4", "-C", conf, "-qff") // what was told "not now"
		return false, err
	})
	if err != nil {
		t.Fatalf("%d of 14 messages reached Exchange Online: %v", s.Accepted(), err)
	}
	if u := s.Exosim.Usage("scan@contoso.com"); u.WorstByDot > 4 || u.WorstByVerdict > 4 || u.MaxSessions > 3 {
		t.Errorf("the mailbox sent %+v, and may send 4 in 6 s by 3 connections", u)
	}

	// Exim's user is not among the peers.
	text, err := os.ReadFile(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.Config, bytes.Replace(text, []byte("peers: [postfix, "+mtaOwner+"]"), []byte("peers: [postfix]"), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	if said, err := s.Token.Reload(ctx); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	before := strings.Count(log(), "authentication attempt(s) failed")
	send("erp@contoso.com", "exim-stranger")
	waitLog("authentication attempt(s) failed", before+1)
	if n := s.Accepted(); n != 14 {
		t.Errorf("%d messages were accepted, want 14: a stranger got a lease", n)
	}
	running.Wait()
	if strings.Contains(log(), "eyJ") {
		t.Error("a token stands in Exim's log")
	}
}

// messageOf finds Exim's id of a message.
func messageOf(t *testing.T, log, id string) string {
	t.Helper()
	found := regexp.MustCompile(`(\S{6}-\S{6,11}-\S{2,4}) <= .* id=` + id + "@").FindStringSubmatch(log)
	if found == nil {
		t.Fatalf("Exim's log has no message %s", id)
	}
	return found[1]
}

// sendmailMC is Sendmail's configuration around the block of the recipe: it hands all mail to the MX
// endpoint, where a test sees what came of it.
const sendmailMC = `OSTYPE(` + "`linux'" + `)
define(` + "`confDOMAIN_NAME', `sendmail.lab.example'" + `)
define(` + "`QUEUE_DIR', `QUEUE'" + `)
define(` + "`confPID_FILE', `QUEUE/pid'" + `)
define(` + "`STATUS_FILE', `QUEUE/statistics'" + `)
define(` + "`ALIAS_FILE', `'" + `)
define(` + "`confSERVICE_SWITCH_FILE', `SWITCH'" + `)
define(` + "`confHOSTS_FILE', `HOSTS'" + `)
define(` + "`confDONT_BLAME_SENDMAIL', `GroupWritableDirPathSafe,DontWarnForwardFileInUnsafeDirPath'" + `)
define(` + "`confTO_IDENT', `0'" + `)
define(` + "`confDELIVERY_MODE', `background'" + `)
define(` + "`SMART_HOST', `esmtp:[127.0.0.1]'" + `)
define(` + "`ESMTP_MAILER_ARGS', `TCP $h MXPORT'" + `)
FEATURE(` + "`no_default_msa'" + `)
FEATURE(` + "`nocanonify'" + `)
FEATURE(` + "`accept_unresolvable_domains'" + `)
FEATURE(` + "`accept_unqualified_senders'" + `)
FEATURE(` + "`promiscuous_relay'" + `)
DAEMON_OPTIONS(` + "`Port=SMTPPORT, Addr=127.0.0.1, Name=MTA'" + `)
MILTER
MAILER(` + "`smtp'" + `)
`

// TestSendmail: the milter serves Sendmail as it serves Postfix: who the client is, what leaves as
// whom, by index where a field stands twice, who is refused and how.
func TestSendmail(t *testing.T) {
	ports, err := freePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second, YAML: func(y string) string {
		y = strings.Replace(y, "unix:SOCKETS/milter", "inet:"+ports[0], 1)
		return strings.Replace(y, "clients:\n", `clients:
  - {name: floor, networks: [127.0.2.0/24], from: scan@contoso.com, limits: {recipients: 2/h}}
  - {name: strict, networks: [127.0.3.0/24], on_unauthorized: reject}
`, 1)
	}})
	m := unpack(ctx, t, "sendmail-bin", "sendmail-cf", "libwrap0", "m4", "libsigsegv2", "libnss-wrapper")
	s.startSendmail(ctx, t, m, ports)

	send := func(source, from string, to []string, header ...string) Result {
		t.Helper()
		res, err := Send(ctx, ports[1], Mail{Source: source, From: from, To: to, Data: message(append(header, storyDate)...)})
		if err != nil {
			t.Fatalf("%s: %v", from, err)
		}
		return res
	}
	const in = "boss@contoso.com"
	n := 0
	arrives := func(what string, res Result, sender string, has map[string]string) {
		t.Helper()
		if !res.Accepted() {
			t.Fatalf("%s: answered %s", what, res.Verdict())
		}
		n++
		if err := s.WaitMessages(ctx, n); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		got := s.Exosim.Messages()[n-1]
		if got.Sender != sender || got.Endpoint != smtp.EndpointMX {
			t.Errorf("%s: left by %s as %q, want %q", what, got.Endpoint, got.Sender, sender)
		}
		for name, want := range has {
			if value := strings.Join(got.Header(name), " | "); value != want {
				t.Errorf("%s: %s is %q, want %q", what, name, value, want)
			}
		}
	}
	arrives("a device", send("127.0.1.9", "root@mfp3.local", []string{in}, "From: Floor 3 <root@mfp3.local>", "Message-ID: <sendmail-1@x>"), "monitor@contoso.com",
		map[string]string{"From": "Floor 3 <monitor@contoso.com>", "X-Original-From": "Floor 3 <root@mfp3.local>", "X-Untouched": "two  blanks\tand a tab"})
	arrives("two of a field", send("127.0.1.9", "root@mfp3.local", []string{in}, "From: a@mfp3.local", "Sender: x@y.local", "From: b@mfp3.local", "Reply-To: one@fabrikam.com", "Reply-To: two@fabrikam.com", "Sender: z@y.local", "Message-ID: <sendmail-2@x>"),
		"monitor@contoso.com", map[string]string{"From": "monitor@contoso.com", "Sender": "", "Reply-To": "one@fabrikam.com, two@fabrikam.com"})
	arrives("its own sender", send("127.0.1.9", "monitor@contoso.com", []string{in}, "From: Icinga <monitor@contoso.com>", "Message-ID: <sendmail-3@x>"), "monitor@contoso.com",
		map[string]string{"From": "Icinga <monitor@contoso.com>", "X-Original-From": ""})
	arrives("the null sender", send("127.0.1.9", "", []string{in}, "From: MAILER-DAEMON@mfp3.local", "Message-ID: <sendmail-4@x>"), "monitor@CONTOSO.COM",
		map[string]string{"From": "monitor@contoso.com", "Auto-Submitted": "auto-replied"})

	// Recipients over the limit are refused one by one; the others get the message.
	res := send("127.0.2.9", "mfp@floor.local", []string{in, "desk@contoso.com", "three@contoso.com"}, "From: mfp@floor.local", "Message-ID: <sendmail-5@x>")
	if refused := res.Refused(); len(refused) != 1 || refused[0].Stage != StageRcpt || refused[0].Code != 451 || !strings.Contains(refused[0].Text, `client "floor"`) {
		t.Errorf("the third recipient: %v, want it refused for the limit", refused)
	}
	arrives("over the limit", res, "scan@contoso.com", nil)
	if got := slices.Sorted(slices.Values(s.Exosim.Messages()[n-1].Recipients)); !slices.Equal(got, []string{in, "desk@contoso.com"}) {
		t.Errorf("the message left to %q", got)
	}
	for _, tc := range []struct{ source, from, want string }{
		{"127.0.3.9", "ceo@contoso.com", "550 5.7.1 <ceo@contoso.com>: no mailbox of this relay may send as this address"},
	} {
		if got := send(tc.source, tc.from, []string{in}, "From: "+tc.from, "Message-ID: <sendmail-6@x>").Verdict(); !strings.HasPrefix(got.Line(), tc.want) {
			t.Errorf("from %s: %s, want %s", tc.source, got, tc.want)
		}
	}
	log := s.Milter.Log()
	if strings.Contains(log, "offers less of the milter protocol") {
		t.Errorf("Sendmail offers less than is needed:\n%s", last(log))
	}
	for _, client := range []string{"client=this-host addr=127.0.1.9", "client=floor addr=127.0.2.9", "client=strict addr=127.0.3.9"} {
		if !strings.Contains(log, client) || strings.Contains(log, `qid="" `) {
			t.Errorf("the milter's log has no %q:\n%s", client, last(log))
		}
	}

	// Without the milter nothing is taken.
	if err := s.Milter.Stop(); err != nil {
		t.Fatal(err)
	}
	if got := send("127.0.1.9", "root@mfp3.local", []string{in}, "From: root@mfp3.local", "Message-ID: <sendmail-7@x>").Verdict(); got.Code/100 != 4 {
		t.Errorf("without the milter: %s, want to come again", got)
	}
}

// startSendmail makes sendmail.cf and runs the daemon for the test.
func (s *Site) startSendmail(ctx context.Context, t *testing.T, m *otherMTA, ports []string) {
	t.Helper()
	queue := m.path("queue")
	if err := os.Mkdir(queue, 0o700); err != nil {
		t.Fatal(err)
	}
	_, mx, _ := net.SplitHostPort(s.Exosim.MXAddr())
	_, listen, _ := net.SplitHostPort(ports[1])
	host, port, _ := net.SplitHostPort(ports[0])
	filter := strings.NewReplacer("inet:8891@127.0.0.1", "inet:"+port+"@"+host).Replace(exampleOf(t, mtaRecipe, "sendmail.mc"))
	mc := strings.NewReplacer("QUEUE_DIR", "QUEUE_DIR", "QUEUE", queue, "SWITCH", m.write(t, "switch", "hosts files\naliases files\n"), "HOSTS", m.path("hosts"),
		"MXPORT", mx, "SMTPPORT", listen, "MILTER\n", filter).Replace(sendmailMC)
	folder := m.path("root/usr/share/sendmail/cf") + "/"
	cf, err := m.run(ctx, mc, "usr/bin/m4", "-D_CF_DIR_="+folder, folder+"m4/cf.m4", "-")
	if err != nil {
		t.Fatalf("m4: %v\n%s", err, cf)
	}
	file := m.write(t, "sendmail.cf", cf)
	program := m.path("root/usr/libexec/sendmail/sendmail")
	out := &bytes.Buffer{}
	cmd := exec.Command(program, "-bD", "-C", file, "-X", m.path("transcript"))
	cmd.Env, cmd.Stdout, cmd.Stderr = m.env, out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(m.path("transcript"))
			t.Logf("Sendmail:\n%s\n%s", out, last(string(b)))
		}
	})
	err = poll(ctx, func() (bool, error) {
		c, err := net.Dial("tcp", ports[1])
		if err == nil {
			c.Close()
		}
		return err == nil, nil
	})
	if err != nil {
		t.Fatalf("Sendmail does not listen: %v\n%s", err, out)
	}
}
