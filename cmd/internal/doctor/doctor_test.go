package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/cmd/internal/dns/dnstest"
	"github.com/sendas/sendas/cmd/internal/doctor/stops"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/finding/findingtest"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/token/entra"
)

// emptyWorld is a machine without Postfix, on a network where nobody answers.
func emptyWorld() *world {
	return &world{
		run: func(context.Context, string, ...string) (string, string, error) { return "", "", exec.ErrNotFound },
		dial: func(_ context.Context, network, addr string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
		},
		dialFrom: func(_ context.Context, _ netip.Addr, addr string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
		},
		interfaces: func() ([]net.Addr, error) { return nil, nil },
		resolver:   dnstest.Fake{Asked: map[string]int{}}, client: (*config.Site).Client, source: (*config.Site).Source, now: time.Now,
		hostname: func() (string, error) { return "relay.contoso.com", nil }, etc: "/nowhere",
		account: func(name string) (uint32, []uint32, error) { return 0, nil, user.UnknownUserError(name) },
	}
}

// diagnose runs a doctor and returns it with what it printed and the exit code.
func diagnose(t *testing.T, config string, q Options, w *world) (d *Walk, stdout string, code int) {
	t.Helper()
	var out, said bytes.Buffer
	q.File, q.Stdout, q.Verbose = config, &out, true
	d = New(&q, w)
	code = exit.OK
	if err := d.Run(t.Context()); err != nil {
		code = exit.Tell(&said, err)
	}
	findingtest.WantWhole(t, &d.Report)
	return d, out.String(), code
}

// Nothing is there, and the doctor says so of each thing, to the end.
func TestDoctorGoesOn(t *testing.T) {
	dir := t.TempDir()
	config := configtest.WriteFile(t, filepath.Join(dir, "sendas.yaml"), configtest.SmallConfig, 0o644)
	w := emptyWorld()
	w.saslDirs = []string{filepath.Join(dir, "nothing")}
	d, out, code := diagnose(t, config, Options{}, w)
	if code != exit.Failed {
		t.Errorf("exit code %d, want %d", code, exit.Failed)
	}
	d.wantCheck(t, "config.problem.1", finding.Skip, "relay-app", "looked at below")
	d.wantCheck(t, "postfix.present", finding.Fail, "is not here", "--postfix-config")
	d.wantCheck(t, "sasl.folder", finding.Fail, "nothing")
	d.wantCheck(t, "sockets.milter", finding.Fail, "connection refused", "systemctl restart sendas-milter")
	d.wantCheck(t, "sockets.policy", finding.Skip, "as said above")
	d.wantCheck(t, "sockets.credentials", finding.Fail, "sendas-token")
	d.wantCheck(t, "sockets.http.milter.healthz", finding.Skip, "as said above")
	d.wantCheck(t, "credential.relay-app.secret", finding.Fail, "does not exist")
	d.wantCheck(t, "credential.relay-app.token", finding.Skip, "as said above")
	d.wantCheck(t, "submission.dns", finding.Fail, "getent hosts smtp.office365.com")
	d.wantCheck(t, "mailbox.scan@contoso.com.auth", finding.Skip, "blocked")
	d.wantCheck(t, "mailbox.erp@contoso.com.auth", finding.Skip, "blocked")
	d.wantCheck(t, "dns.spf", finding.Skip, "submission")
	for _, want := range []string{"\nFAIL  Postfix postconf: is not here\n  means: ", "\n  do: ", "\nskip  DNS SPF: ", "\nverdict: something is wrong; "} {
		if !strings.Contains(out, want) {
			t.Errorf("there is no %q in\n%s", want, out)
		}
	}
}

// A configuration that nobody can use leaves Postfix and the sockets to look at.
func TestDoctorWithoutConfig(t *testing.T) {
	dir := t.TempDir()
	for _, tc := range []struct{ name, content, want string }{
		{"absent", "", "does not exist"}, {"wrong", "tenant: [", "is not YAML"}, {"unknown", strings.Replace(configtest.SmallConfig, "domains", "domain", 1), "domains"},
	} {
		config := filepath.Join(dir, tc.name)
		if tc.content != "" {
			configtest.WriteFile(t, config, tc.content, 0o644)
		}
		d, _, code := diagnose(t, config, Options{Mailbox: "scan@contoso.com"}, emptyWorld())
		if code != exit.Failed {
			t.Errorf("%s: exit code %d, want %d", tc.name, code, exit.Failed)
		}
		d.wantCheck(t, "config.problem.1", finding.Fail, tc.want)
		for _, id := range []string{"config.usable", "sockets.all", "store.kind", "credential.all", "mailbox.all", "dns.spf"} {
			d.wantCheck(t, id, finding.Skip)
		}
		for _, c := range d.Checks { // Postfix and the plugin are not here either
			if c.Status != finding.OK && c.Status != finding.Skip && !slices.Contains([]string{"postfix.present", "sasl.folder"}, c.ID) && c.Group != "config" {
				t.Errorf("%s: a consequence is a finding: %+v", tc.name, c)
			}
		}
	}
}

func TestDoctorUsage(t *testing.T) {
	dir := t.TempDir()
	configtest.WriteFile(t, filepath.Join(dir, "relay-app.secret"), "s3cr3t\n", 0o600)
	config := configtest.WriteFile(t, filepath.Join(dir, "sendas.yaml"), configtest.SmallConfig, 0o644)
	for _, tc := range []struct {
		mailbox, sendTo string
		want            string
	}{
		{"nobody@contoso.com", "", "no mailbox may send as nobody@contoso.com"},
		{"scan", "", `"scan" is no address`},
		{"scan@contoso.com", "me", `--send-to: "me" is no address`},
		{"scan@contoso.com", "me@contoso.com>\r\nRCPT TO:<x@y.z", "is no address"},
		{"", "me@contoso.com", "name the mailbox"},
	} {
		var out bytes.Buffer
		d := New(&Options{File: config, Stdout: &out, Mailbox: tc.mailbox, SendTo: tc.sendTo}, emptyWorld())
		err := d.Run(t.Context())
		var e *exit.Error
		if !errors.As(err, &e) || e.Code != exit.Usage || !strings.Contains(e.Error(), tc.want) || e.Hint == "" {
			t.Errorf("doctor %q --send-to %q: %v, want %q with a hint and exit code %d", tc.mailbox, tc.sendTo, err, tc.want, exit.Usage)
		}
	}
}

func TestDoctorPatients(t *testing.T) {
	dir := t.TempDir()
	file := configtest.WriteFile(t, filepath.Join(dir, "sendas.yaml"), strings.Replace(configtest.SmallConfig, "clients:", "  - {address: '*@contoso.com', credential: relay-app}\nclients:", 1), 0o644)
	for _, tc := range []struct{ mailbox, want string }{
		{"", "scan@contoso.com:[scan@contoso.com office@contoso.com] erp@contoso.com:[erp@contoso.com] :[]"},
		{"SCAN@contoso.com", "scan@contoso.com:[scan@contoso.com office@contoso.com]"},
		{"office@contoso.com", "scan@contoso.com:[scan@contoso.com office@contoso.com]"},
		{"axel@contoso.com", "axel@contoso.com:[axel@contoso.com]"},
	} {
		c, err := config.Load(file, config.SkipFiles)
		if err != nil {
			t.Fatal(err)
		}
		d := New(&Options{Mailbox: tc.mailbox}, emptyWorld())
		d.config = c
		list, err := d.patients()
		var got []string
		for _, p := range list {
			got = append(got, fmt.Sprintf("%s:%v", p.user, p.identities))
		}
		if strings.Join(got, " ") != tc.want || err != nil {
			t.Errorf("patients of %q: %v, %v, want %s", tc.mailbox, got, err, tc.want)
		}
	}
}

func TestDoctorVerdict(t *testing.T) {
	good, warned := finding.Check{Status: finding.OK}, finding.Check{Status: finding.Warn}
	failed, passing := finding.Check{Status: finding.Fail}, finding.Check{Status: finding.Fail, Passes: true}
	for _, tc := range []struct {
		checks  []finding.Check
		verdict string
		code    int
	}{
		{nil, verdictGood, exit.OK},
		{[]finding.Check{good, warned, {Status: finding.Skip}}, verdictGood, exit.OK},
		{[]finding.Check{good, passing}, verdictTemporary, exit.TempFail},
		{[]finding.Check{passing, failed, passing}, verdictFailed, exit.Failed},
		{[]finding.Check{failed, passing}, verdictFailed, exit.Failed},
	} {
		var out, said bytes.Buffer
		d := New(&Options{Stdout: &out, Json: true}, emptyWorld())
		d.Checks = tc.checks
		code := exit.OK
		if err := d.conclude(); err != nil {
			code = exit.Tell(&said, err)
		}
		var got struct{ Verdict string }
		if err := json.Unmarshal(out.Bytes(), &got); err != nil || got.Verdict != tc.verdict || code != tc.code {
			t.Errorf("%v: verdict %q, exit code %d (%v), want %q, %d", tc.checks, got.Verdict, code, err, tc.verdict, tc.code)
		}
	}
}

// Failures come first, warnings after them; the rest is counted.
func TestDoctorShowsWhatIsBad(t *testing.T) {
	var out bytes.Buffer
	d := New(&Options{Stdout: &out}, emptyWorld())
	s, a := d.Section("x", "X"), finding.Advice{Means: "m", Do: "d"}
	s.Ok("a", "a", "good")
	s.Warn("b", "b", "so so", a)
	s.Skip("c", "c", "unknown")
	s.Fail("d", "d", "bad", a)
	d.conclude()
	want := "FAIL  X d: bad\n  means: m\n  do: d\nwarn  X b: so so\n  means: m\n  do: d\n\nverdict: something is wrong; 4 checks, 1 failed, 1 with a warning, 1 not looked at (--verbose says why)\n"
	if out.String() != want {
		t.Errorf("printed %q, want %q", out.String(), want)
	}
}

// The keys of the JSON are a promise.
func TestDoctorJSON(t *testing.T) {
	_, out, _ := diagnose(t, filepath.Join(t.TempDir(), "none"), Options{Json: true}, emptyWorld())
	var got struct {
		Checks  []map[string]string
		Verdict string
	}
	d := json.NewDecoder(strings.NewReader(out))
	d.DisallowUnknownFields()
	if err := d.Decode(&got); err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	for _, c := range got.Checks {
		keys := []string{"do", "found", "group", "id", "means", "status", "what"}
		for k := range c {
			if !slices.Contains(keys, k) || len(c) != len(keys) {
				t.Fatalf("check %v, want the keys %v", c, keys)
			}
		}
		if !slices.Contains([]string{"ok", "warn", "fail", "skip"}, c["status"]) {
			t.Errorf("status %q of %s", c["status"], c["id"])
		}
	}
	if got.Verdict != "failed" || len(got.Checks) < 5 {
		t.Errorf("verdict %q, %d checks", got.Verdict, len(got.Checks))
	}
}

func TestDoctorStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out bytes.Buffer
	d := New(&Options{File: filepath.Join(t.TempDir(), "none"), Stdout: &out}, emptyWorld())
	var e *exit.Error
	if err := d.Run(ctx); !errors.As(err, &e) || e.Code != exit.TempFail {
		t.Errorf("an interrupted doctor returns %v, want exit code %d", err, exit.TempFail)
	}
	if strings.Contains(out.String(), "postconf") || strings.Contains(out.String(), "verdict") {
		t.Errorf("an interrupted doctor went on:\n%s", out.String())
	}
}

// What comes from outside is one line, and secrets are not in it.
func TestDoctorPresents(t *testing.T) {
	var out bytes.Buffer
	d := New(&Options{Stdout: &out, Verbose: true}, emptyWorld())
	d.Hide("", "eyJ0.secret", "eyJ0.secret")
	d.Section("postfix", "Postfix").Fail("x", "it\x1b[31m", "says\neyJ0.secret\r\nand\tmore", finding.Advice{Means: "means eyJ0.secret", Do: "do"})
	if want := "FAIL  Postfix it?[31m: says REDACTED and more\n  means: means REDACTED\n  do: do\n"; out.String() != want {
		t.Errorf("printed %q, want %q", out.String(), want)
	}
}

func TestDoctorSPF(t *testing.T) {
	const good = "v=spf1 ip4:203.0.113.7 include:spf.protection.outlook.com -all"
	for _, tc := range []struct {
		spf    string
		status finding.Status
		code   int
	}{{good, finding.OK, exit.OK}, {"v=spf1 -all", finding.Fail, exit.Failed}, {"servfail", finding.Fail, exit.TempFail}} {
		records := map[string][]string{
			"TXT contoso.com": {tc.spf}, "MX contoso.com": {"contoso-com.mail.protection.outlook.com"},
			"TXT spf.protection.outlook.com": {"v=spf1 ip4:40.92.0.0/15 -all"}, "IP contoso-com.mail.protection.outlook.com": {"52.101.73.4"},
		}
		file := configtest.WriteFile(t, filepath.Join(t.TempDir(), "sendas.yaml"), configtest.SmallConfig+configtest.RoutesConfig, 0o644)
		c, err := config.Load(file, config.SkipFiles)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		w := emptyWorld()
		w.resolver = dnstest.Fake{Records: records, Asked: map[string]int{}}
		d := New(&Options{Stdout: &out}, w)
		d.config = c
		d.checkSPF(t.Context())
		d.wantCheck(t, "dns.spf", tc.status)
		if tc.status != finding.OK {
			d.wantCheck(t, "dns.spf", tc.status, "sendas check --dns")
		}
		code := exit.OK
		if err := d.conclude(); err != nil {
			code = exit.Tell(&out, err)
		}
		if code != tc.code {
			t.Errorf("SPF %q: exit code %d, want %d", tc.spf, code, tc.code)
		}
	}
}

// fakeSource is a token.Source.
type fakeSource func() (*entra.Token, error)

func (f fakeSource) Token(context.Context) (*entra.Token, error) { return f() }

// find returns the check of that id.
func (d *Walk) find(t *testing.T, id string) finding.Check {
	t.Helper()
	return findingtest.Find(t, &d.Report, id)
}

// Want compares a check's status, and looks for words in what it says.
func (d *Walk) wantCheck(t *testing.T, id string, status finding.Status, words ...string) {
	t.Helper()
	findingtest.Want(t, &d.Report, id, status, words...)
}

func TestAdvices(t *testing.T) {
	all := map[string]finding.Advice{"wrong": configAdvice.wrong, "later": configAdvice.later, "spf": spfAdvice.wrong, "silent": spfAdvice.silent}
	for name, table := range map[string]map[string]finding.Advice{"sasl": saslAdvice, "socket": socketAdvice, "token": tokenAdvice, "smtp": smtpAdvice, "store": storeAdvice, "unseen": unseenAdvice, "eyes": eyesAdvice, "waiting": waitingAdvice, "size": stops.SizeAdvices, "entrance": entranceAdvice, "follow": followAdvice, "refused": refusedAdvice, "mailbox": mailboxAdvice, "table": stops.Advices} {
		for key, a := range table {
			all[name+" "+key] = a
		}
	}
	for i, f := range tlsFaults {
		all[fmt.Sprint("tls ", i)] = f.Advice
	}
	findingtest.WantVoice(t, all)
}
