package postfix

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/finding/findingtest"
	"github.com/sendas/sendas/cmd/internal/postfix/cf"
	"github.com/sendas/sendas/cmd/internal/postfix/postfixtest"
	"github.com/sendas/sendas/cmd/internal/postfix/senders"
)

// shown is what "sendas postfix show FILE" prints for a configuration on the ordinary instance, whose
// main.cf has something besides. Sockets and trust anchors are where they are on Debian.
func shown(t *testing.T, yaml, has, file string) string {
	t.Helper()
	j, before := testJob(t)
	configtest.WriteFile(t, filepath.Join(j.inst.Dir, cf.Main), string(before[cf.Main])+has, 0o644)
	_, sockets, _ := strings.Cut(postfixtest.YAML, "milter: ")
	configtest.WriteFile(t, j.File, yaml+"milter: "+sockets, 0o644)
	if err := j.Show(t.Context(), []string{file}); err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(j.Stdout.(*bytes.Buffer).String(), TrustBundle(), trustBundles[0])
	row := settingNamed("tls_required_enable") // the documents say in words what a newer Postfix needs besides
	return strings.Replace(text, "# "+row.why+"\n"+cf.Assignment(row.name, row.want)+"\n", "", 1)
}

// The snippets of docs/postfix.md are what show prints.
func TestPostfixDocument(t *testing.T) {
	const doc = "docs/postfix.md"
	yaml := postfixtest.Document(t, doc, "This page shows what comes of this configuration:\n\n```yaml\n")
	const other = "relayhost = [mail.fabrikam.com]\n"
	for _, tc := range []struct{ block, has, file string }{
		{"```main.cf\n", "", cf.Main}, {"```own.main.cf\n", other, cf.Main}, {"```master.cf\n", "", cf.Master}, {"```master.cf\n", other, cf.Master},
	} {
		if got, want := shown(t, yaml, tc.has, tc.file), postfixtest.Document(t, doc, tc.block); got != want {
			t.Errorf("%s%s has another text than show, which says\n%s", doc, tc.block, got)
		}
	}
}

// What docs/by-hand.md has is what show prints: of main.cf the names and values, of master.cf all but
// the reasons.
func TestPostfixByHand(t *testing.T) {
	yaml := postfixtest.Document(t, "README.md", "`/etc/sendas/sendas.yaml`:\n\n```yaml\n")
	entry := regexp.MustCompile(`(?m)^ *#.*\n`).ReplaceAllString(shown(t, yaml, "", cf.Master), "")
	if want := postfixtest.OwnEntry(t); entry != want {
		t.Errorf("docs/by-hand.md has the transport\n%sshow prints\n%s", want, entry)
	}
	got := cf.ReadMain(shown(t, yaml, "", cf.Main))
	for name, want := range cf.ReadMain(postfixtest.MainCF(t)) {
		if got[name] != want {
			t.Errorf("docs/by-hand.md has %s = %s, show prints %q", name, want, got[name])
		}
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("docs/by-hand.md lacks what show prints: %q", got)
	}
}

// upgraded makes of this host's Postfix one that knows tls_required_enable, as 3.10 does.
func upgraded(run Runner) Runner {
	const name = "tls_required_enable"
	return func(ctx context.Context, program string, args ...string) (string, string, error) {
		out, said, err := run(ctx, program, args...)
		if i := slices.Index(args, "-c"); program == "postconf" && err == nil && i >= 0 {
			said = strings.ReplaceAll(said, "unused parameter: "+name, "")
			if rest := strings.Join(slices.Delete(slices.Clone(args), i, i+2), " "); rest == "" || rest == "-x" {
				data, _ := os.ReadFile(filepath.Join(args[i+1], cf.Main))
				out += name + " = " + cmp.Or(cf.ReadMain(string(data))[name], "yes") + "\n"
			}
		}
		return out, said, err
	}
}

// A host enabled sendas before Postfix was upgraded to one that a header can talk out of TLS: the
// doctor fails, what it says to type mends that, and so does the next enable. What the older one
// does not know is never written, and disable takes it back.
func TestPostfixUpgraded(t *testing.T) {
	j, before := testJob(t)
	const setting = "tls_required_enable = no\n"
	has := func() bool {
		files, err := j.inst.Read()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(files[cf.Main]), setting)
	}
	do := func(name string, f func(context.Context) error, want bool) {
		t.Helper()
		if err := f(t.Context()); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, j.Stderr)
		}
		if has() != want {
			t.Errorf("%s: main.cf has tls_required_enable: %v, want %v", name, !want, want)
		}
	}
	if readSetup(t, j).knows("tls_required_enable") {
		t.Log("this host's own Postfix knows the parameter; what an older one does is not seen here")
	} else {
		do("enable", j.Enable, false)
	}
	j.Run = upgraded(j.Run)
	j.inst.Run = j.Run
	d := doctorOf(t, j)
	if !has() {
		d.wantCheck(t, "postfix.tls_required_enable", finding.Fail, "TLS-Required: no", "-e 'tls_required_enable = no'")
		typeCure(t, d, "postfix.tls_required_enable")
	}
	doctorOf(t, j).wantCheck(t, "postfix.tls_required_enable", finding.OK)
	do("enable after the upgrade", j.Enable, true)
	files, _ := j.inst.Read()
	do("enable once more", j.Enable, true)
	if again, _ := j.inst.Read(); !again.Equal(files) {
		t.Error("enabling once more has changed something")
	}
	doctorOf(t, j).wantCheck(t, "postfix.tls_required_enable", finding.OK)
	do("disable", j.Disable, true) // what was typed by hand is the administrator's
	do("forget", func(context.Context) error { return cf.Replace(filepath.Join(j.inst.Dir, cf.Main), before[cf.Main]) }, false)
	do("enable a new host", j.Enable, true)
	do("disable it", j.Disable, false)
	if after, _ := j.inst.Read(); !after.Equal(before) {
		t.Error("main.cf and master.cf are not what they were")
	}
}

// The former shape, with its state or without, is migrated by enable: nothing of Microsoft's is left
// in main.cf, and disable gives back what there was before, or says what it does not know.
func TestPostfixMigrates(t *testing.T) {
	for _, remembered := range []bool{true, false} {
		t.Run(fmt.Sprint("remembered=", remembered), func(t *testing.T) {
			t.Parallel()
			j, before := testJob(t)
			former := cf.Files{cf.Main: []byte(string(before[cf.Main]) + formerShape(t) + "sender_dependent_default_transport_maps = inline:{ {scan@contoso.com = smtp:[smtp.office365.com]:587} }\n"), cf.Master: before[cf.Master]}
			if err := j.inst.Install(before, former); err != nil {
				t.Fatal(err)
			}
			if remembered {
				if err := cf.Save(j.path, &cf.State{Version: cf.Version, Dir: j.inst.Dir, Leads: "main", Before: before, After: former}); err != nil {
					t.Fatal(err)
				}
			}
			if err := j.Enable(t.Context()); err != nil {
				t.Fatalf("%v\n%s", err, j.Stderr)
			}
			now, err := j.inst.Read()
			if err != nil {
				t.Fatal(err)
			}
			main := cf.ReadMain(string(now[cf.Main]))
			for _, s := range ownSettings(t) {
				if value, set := main[s.Name]; set && strings.HasPrefix(s.Name, "smtp_") && cf.ReadMain(string(before[cf.Main]))[s.Name] != value {
					t.Errorf("main.cf still has %s = %s", s.Name, value)
				}
			}
			if main["default_transport"] != "sendas:[smtp.office365.com]:587" || main["relayhost"] != "" || strings.Contains(string(now[cf.Main]), "= smtp:[") {
				t.Errorf("main.cf is now\n%s", now[cf.Main])
			}
			d := doctorOf(t, j)
			d.wantGood(t)
			if err := j.Disable(t.Context()); err != nil {
				t.Fatal(err)
			}
			after, err := j.inst.Read()
			if err != nil {
				t.Fatal(err)
			}
			if remembered && !after.Equal(before) {
				t.Error("main.cf and master.cf are not what they were")
			}
			if said := j.Stderr.(*bytes.Buffer).String(); !remembered && !strings.Contains(said, "relayhost stays [smtp.office365.com]:587") {
				t.Errorf("disable does not say what it cannot know:\n%s", said)
			}
			for name, value := range cf.ReadMain(string(after[cf.Main])) {
				if strings.Contains(name+value, "sendas") && name != "queue_directory" {
					t.Errorf("main.cf still has %s = %s", name, value)
				}
			}
			if strings.Contains(string(after[cf.Master]), "sendas") {
				t.Errorf("master.cf is now\n%s", after[cf.Master])
			}
		})
	}
}

// readSetup is what postconf says of a job's instance.
func readSetup(t *testing.T, j *Job) *Setup {
	t.Helper()
	c, err := config.Load(j.File, config.SkipFiles)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Read(t.Context(), j.Run, j.inst.Dir, c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// doctorOf has the doctor look at the settings of a job's instance.
func doctorOf(t *testing.T, j *Job) *look {
	t.Helper()
	d := &look{}
	readSetup(t, j).checkSettings(d.Section("postfix", "Postfix"))
	findingtest.WantWhole(t, &d.Report)
	return d
}

// typeCure types the command of postconf that a check says to type.
func typeCure(t *testing.T, d *look, id string) {
	t.Helper()
	i := slices.IndexFunc(d.Checks, func(c finding.Check) bool { return c.ID == id })
	typeCommand(t, d.Checks[i].Do)
}

// typeCommand types a command of postconf that somebody is told to type. No Postfix runs here that
// could be reloaded.
func typeCommand(t *testing.T, do string) {
	t.Helper()
	command, _, _ := strings.Cut(do, " && postfix ")
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", command).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
}

// Each command that enable prints is typed on the host that it was printed for: it then has nothing
// more to say there, what it was not about is as it was, and disable brings the files back as they
// were after the typing.
func TestPostfixCures(t *testing.T) {
	const back = "127.0.0.1:10025 inet n - y - - smtpd\n    -o content_filter=\n    -o mynetworks=127.0.0.0/8\n"
	const feed = "smtp-amavis unix - - - - 2 smtp\n    -o smtp_data_done_timeout=1200\n"
	for _, tc := range []struct {
		name, main, master string
		says               string // "" is nothing
		stays              map[string]string
	}{
		{"the way back of a filter", "content_filter = smtp-amavis:[127.0.0.1]:10024\n", feed + back + "    -o smtpd_milters=\n    -o smtpd_recipient_restrictions=permit_mynetworks,reject\n", "", map[string]string{"content_filter": "smtp-amavis:[127.0.0.1]:10024"}},
		{"the same by no_milters", "content_filter = smtp-amavis:[127.0.0.1]:10024\n", feed + back + "    -o smtpd_recipient_restrictions=permit_mynetworks,reject\n    -o receive_override_options=no_header_body_checks,no_milters\n", "", nil},
		{"a way back that meets sendas", "content_filter = smtp-amavis:[127.0.0.1]:10024\n", feed + back, "note: Postfix port 127.0.0.1:10025: meets sendas again", map[string]string{"content_filter": "smtp-amavis:[127.0.0.1]:10024"}},
		{"a port without milters", "", "192.0.2.1:25 inet n - y - - smtpd\n  -o receive_override_options=no_milters\n", "in the way: Postfix receive_override_options of 192.0.2.1:25/inet: no_milters", nil},
		{"no_milters among others", "", "192.0.2.1:25 inet n - y - - smtpd\n  -o receive_override_options=no_address_mappings,no_milters\n", "in the way: Postfix receive_override_options of 192.0.2.1:25/inet", map[string]string{"192.0.2.1:25/inet/receive_override_options": "no_address_mappings"}},
		{"a port with other milters", "", "192.0.2.1:25 inet n - y - - smtpd\n  -o smtpd_milters=inet:127.0.0.1:8891\n", "in the way: Postfix smtpd_milters of 192.0.2.1:25/inet", map[string]string{"192.0.2.1:25/inet/smtpd_milters": "unix:sendas/milter,inet:127.0.0.1:8891"}},
		{"the lines of many a recipe for OpenDKIM", "milter_protocol = 2\nmilter_default_action = accept\nsmtpd_milters = inet:127.0.0.1:8891\nnon_smtpd_milters = $smtpd_milters\n",
			"192.0.2.1:25 inet n - y - - smtpd -o milter_protocol=3 -o milter_default_action=accept\n", "",
			map[string]string{"smtpd_milters": "{ unix:sendas/milter, protocol=6, default_action=tempfail }, inet:127.0.0.1:8891", "milter_protocol": "2", "milter_default_action": "accept"}},
		{"a domain of the tenant's", "mydestination = $myhostname, contoso.com, localhost\n", "", "in the way: Postfix mydestination: contoso.com is a domain of the tenant", map[string]string{"mydestination": "$myhostname, localhost"}},
		{"devices refused early", "smtpd_helo_restrictions = reject_non_fqdn_helo_hostname, permit_mynetworks\nmynetworks = 127.0.0.0/8\n", "", "note: Postfix mynetworks: 127.0.0.0/8",
			map[string]string{"smtpd_helo_restrictions": "permit_mynetworks, reject_non_fqdn_helo_hostname", "mynetworks": "127.0.0.0/8 10.2.0.0/16"}},
		{"no line end", "debug_peer_list = 192.0.2.9\nrelayhost = [smtp.office365.com]:587", "", "do: echo >>", map[string]string{"relayhost": ""}},
		{"no line end in either", "relayhost = [mail.fabrikam.com]:587", "192.0.2.1:25 inet n - y - - smtpd -o receive_override_options=no_milters", "do: echo >>", map[string]string{"relayhost": "[mail.fabrikam.com]:587"}},
		{"no line end, and nothing to say", "relayhost = [smtp.office365.com]:587", feed + "#", "", map[string]string{"default_transport": "sendas:[smtp.office365.com]:587"}},
		{"what others wrote", "notify_classes = protocol, resource\ncanonical_maps = static:x\nmaximal_queue_lifetime = 4h\nmasquerade_domains = contoso.com\nalways_add_missing_headers = yes\n", "", "in the way: Postfix notify_classes", map[string]string{"smtpd_banner": "$myhostname ESMTP"}},
		{"a table of senders of its own", "relayhost =\nsender_dependent_default_transport_maps = inline:{ {a@fabrikam.com = smtp:[mail.fabrikam.com]} }\n", "", "",
			map[string]string{"sender_dependent_default_transport_maps": "inline:{ {scan@contoso.com = sendas:[smtp.office365.com]:587}, {erp@contoso.com = sendas:[smtp.office365.com]:0587}, " +
				"{billing@contoso.com = sendas:[smtp.office365.com]:00587}, {@contoso.com = sendas:[smtp.office365.com]:587} }, inline:{ {a@fabrikam.com = smtp:[mail.fabrikam.com]} }"}},
		{"an empty table of senders", "default_transport = smtp\nsender_dependent_default_transport_maps =\n", "", "",
			map[string]string{"sender_dependent_default_transport_maps": "inline:{ {scan@contoso.com = sendas:[smtp.office365.com]:587}, {erp@contoso.com = sendas:[smtp.office365.com]:0587}, " +
				"{billing@contoso.com = sendas:[smtp.office365.com]:00587}, {@contoso.com = sendas:[smtp.office365.com]:587} }"}},
		{"relayhosts by sender", "relayhost = [smtp.office365.com]:587\nsender_dependent_relayhost_maps = inline:{ {a@fabrikam.com = [mail.fabrikam.com]} }\n", "", "in the way: Postfix sender_dependent_relayhost_maps", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			j, before := testJob(t)
			host := cf.Files{cf.Main: []byte(string(before[cf.Main]) + tc.main), cf.Master: []byte(string(before[cf.Master]) + tc.master)}
			if err := j.inst.Install(before, host); err != nil {
				t.Fatal(err)
			}
			stderr := j.Stderr.(*bytes.Buffer)
			err := j.Enable(t.Context())
			inTheWay := err != nil && strings.Contains(err.Error(), "in the way")
			said := stderr.String()
			if err != nil && !inTheWay || !strings.Contains(said, tc.says) || tc.says == "" && said != "" {
				t.Fatalf("enable: %v\n%s\nwant %q", err, said, tc.says)
			}
			for line := range strings.Lines(said) {
				if _, do, is := strings.Cut(line, "  do: "); is && strings.Contains(do, "postconf ") {
					if !strings.HasPrefix(do, "echo ") {
						do = do[strings.Index(do, "postconf "):]
					}
					typeCommand(t, do)
				}
			}
			typed, err := j.inst.Read()
			if err != nil {
				t.Fatal(err)
			}
			stderr.Reset()
			if err := j.Enable(t.Context()); err != nil || stderr.Len() > 0 {
				t.Fatalf("after all was typed: %v\n%s", err, stderr)
			}
			files, err := j.inst.Read()
			if err != nil {
				t.Fatal(err)
			}
			main := cf.ReadMain(string(files[cf.Main]))
			for _, e := range readSetup(t, j).services {
				for name, value := range e.overrides {
					main[e.Key()+"/"+name] = value
				}
			}
			for name, want := range tc.stays {
				if main[name] != want {
					t.Errorf("%s = %q, want %q", name, main[name], want)
				}
			}
			doctorOf(t, j).wantGood(t)
			if err := j.Disable(t.Context()); err != nil {
				t.Fatal(err)
			}
			if after, _ := j.inst.Read(); inTheWay && !after.Equal(typed) || said == "" && !after.Equal(host) {
				t.Error("disable has not brought the files back")
			}
		})
	}
}

// A Postfix that does not take the new files has the old ones back, and the state file is what it
// was.
func TestPostfixRestores(t *testing.T) {
	for _, tc := range []struct {
		name    string
		refuse  int // which "postfix check" fails: the first is that of the copy
		enabled bool
		want    string
	}{
		{"the copy", 1, false, "1 thing is in the way; nothing was changed"},
		{"the files", 2, false, "a queue of stone; main.cf and master.cf are as they were"},
		{"enabled before", 2, true, "a queue of stone; main.cf and master.cf are as they were"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			j, before := testJob(t)
			if tc.enabled {
				if err := j.Enable(t.Context()); err != nil {
					t.Fatal(err)
				}
				before, _ = j.inst.Read()
				data, _ := os.ReadFile(j.File)
				configtest.WriteFile(t, j.File, strings.Replace(string(data), "billing@", "hr@", 1), 0o644)
			}
			state, _ := os.ReadFile(j.path)
			checks := 0
			j.Run = func(ctx context.Context, name string, args ...string) (string, string, error) {
				if name == "postfix" && slices.Contains(args, "check") {
					if checks++; checks == tc.refuse {
						return "", "", errors.New("a queue of stone")
					}
				}
				return Run(ctx, name, args...)
			}
			err := j.Enable(t.Context())
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("enable: %v, want %q", err, tc.want)
			}
			if after, _ := j.inst.Read(); !after.Equal(before) {
				t.Errorf("main.cf is now\n%s", after[cf.Main])
			}
			if now, _ := os.ReadFile(j.path); !bytes.Equal(now, state) {
				t.Error("the state file is another one")
			}
		})
	}
}

// Postfix's own check of the copy writes a warning to the mail log for each symbolic link: it sees
// none, whatever the folder holds, and no table of the host's; unless what it reads of Postfix itself
// is in that folder.
func TestPostfixCheckSeesNoLinks(t *testing.T) {
	for _, meta := range []bool{false, true} {
		j, _ := testJob(t)
		dir := j.inst.Dir
		if err := errors.Join(os.WriteFile(filepath.Join(dir, "sasl_passwd"), []byte("secret\n"), 0o600), os.Symlink("/etc/hostname", filepath.Join(dir, "far")),
			os.Mkdir(filepath.Join(dir, "sasl"), 0o755), os.Symlink("/etc/hostname", filepath.Join(dir, "sasl/there"))); err != nil {
			t.Fatal(err)
		}
		if meta {
			main, _ := os.ReadFile(filepath.Join(dir, cf.Main))
			files, _ := filepath.Glob("/etc/postfix/postfix-files*")
			for _, f := range files {
				os.Symlink(f, filepath.Join(dir, filepath.Base(f)))
			}
			configtest.WriteFile(t, filepath.Join(dir, cf.Main), string(main)+"\nmeta_directory = $config_directory\n", 0o644)
		}
		var seen []string
		j.Run = func(ctx context.Context, name string, args ...string) (string, string, error) {
			if name == "postfix" && slices.Contains(args, "check") && args[1] != dir {
				list, err := os.ReadDir(args[1])
				if err != nil {
					t.Error(err)
				}
				for _, e := range list {
					seen = append(seen, e.Name())
				}
			}
			return Run(ctx, name, args...)
		}
		if err := j.Enable(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !meta && !slices.Equal(seen, []string{cf.Main, cf.Master}) || meta && !slices.Contains(seen, "far") {
			t.Errorf("meta_directory in the folder: %v; the check of the copy sees %q", meta, seen)
		}
	}
}

// testJob is a run on an instance of its own, by the real programs.
func testJob(t *testing.T) (*Job, cf.Files) {
	t.Helper()
	dir := t.TempDir()
	if err := postfixtest.NewInstance(dir); err != nil {
		t.Fatal(err)
	}
	j := NewJob(&Options{Folder: filepath.Join(dir, "pf/etc"), State: filepath.Join(dir, "state/x.json"),
		File: filepath.Join(dir, "sendas.yaml"), Stdout: &bytes.Buffer{}, Stderr: &bytes.Buffer{}, Run: Run, Others: func(context.Context, *finding.Report, *Setup, bool) {}})
	if err := j.locate(t.Context()); err != nil {
		t.Fatal(err)
	}
	files, err := j.inst.Read()
	if err != nil {
		t.Fatal(err)
	}
	return j, files
}

// The machine dies between the steps of enable: disable still finds its way back.
func TestPostfixInterrupted(t *testing.T) {
	for _, done := range [][]string{{}, {cf.Main}, {cf.Master}} {
		t.Run(strings.Join(done, ""), func(t *testing.T) {
			t.Parallel()
			interrupt(t, done)
		})
	}
}

func interrupt(t *testing.T, done []string) {
	j, before := testJob(t)
	if err := j.Enable(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range cf.Names { // as if only those of done had been written
		if !slices.Contains(done, name) {
			configtest.WriteFile(t, filepath.Join(j.inst.Dir, name), string(before[name]), 0o644)
		}
	}
	if err := j.Disable(t.Context()); err != nil {
		t.Errorf("%v: %v", done, err)
	}
	if after, _ := j.inst.Read(); !after.Equal(before) {
		t.Errorf("%v: main.cf and master.cf are not what they were", done)
	}
}

// The settings end in Postfix's configuration, so a state file that others could write is not used.
func TestPostfixStateTrust(t *testing.T) {
	j, _ := testJob(t)
	if err := j.Enable(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		spoil func(path string) error
		want  string
	}{
		{"writable", func(p string) error { return os.Chmod(p, 0o622) }, "can be changed by others (mode 0622)"},
		{"owned by somebody", func(p string) error { return errors.Join(os.Chmod(p, 0o600), os.Chown(p, 65534, -1)) }, "can be changed by others"},
		{"another form", func(p string) error { return edit(p, `"version": 1`, `"version": 7`) }, "has the form 7"},
		{"unknown key", func(p string) error { return edit(p, `"version": 7`, `"version": 1, "x": 1`) }, "unknown field"},
		{"another instance", func(p string) error {
			return errors.Join(edit(p, `"version": 1, "x": 1`, `"version": 1`), edit(p, "/pf/etc", "/other"))
		}, "not about that in"},
		{"a link", func(p string) error { return errors.Join(os.Rename(p, p+"2"), os.Symlink(p+"2", p)) }, "too many levels"},
	} {
		if err := tc.spoil(j.path); err != nil {
			t.Fatal(err)
		}
		if err := j.Disable(t.Context()); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

// edit makes a file root's own again, with a part replaced.
func edit(path, from, to string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return errors.Join(os.Remove(path), os.WriteFile(path, []byte(strings.Replace(string(data), from, to, 1)), 0o600))
}

// mergeSetup is Postfix with some lists.
func mergeSetup(t *testing.T, main map[string]string) *Setup {
	t.Helper()
	p, _ := fake(t, newLab(t, configtest.SmallConfig), main)
	return p
}

func TestMergePolicy(t *testing.T) {
	const ours = "check_policy_service { unix:sendas/policy, default_action=DEFER_IF_PERMIT }"
	p := mergeSetup(t, map[string]string{"mine": "reject_unlisted_recipient, permit_mynetworks", "smtpd_recipient_restrictions": ""})
	for _, tc := range []struct{ raw, want string }{
		{"reject_unauth_destination", "reject_unauth_destination, " + ours},
		{"permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination", ours + ", permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination"},
		{"reject_unauth_destination check_recipient_access hash:/etc/postfix/access permit", "reject_unauth_destination, check_recipient_access hash:/etc/postfix/access, " + ours + ", permit"},
		{"reject_unauth_destination, $mine", "reject_unauth_destination, " + ours + ", $mine"},
		{"check_policy_service inet:127.0.0.1:10023, permit_mynetworks", "check_policy_service inet:127.0.0.1:10023, " + ours + ", permit_mynetworks"},
		{"permit_mynetworks, check_policy_service unix:sendas/policy, reject", ours + ", permit_mynetworks, reject"},
	} {
		got, added := mergePolicy(p, tc.raw, ours)
		if got != tc.want || added != ours {
			t.Errorf("mergePolicy(%q)\n got  %s\n want %s", tc.raw, got, tc.want)
		}
		if judgePolicy(got, p) != finding.OK && !strings.Contains(tc.raw, "$") {
			t.Errorf("%q: the doctor does not like %q", tc.raw, got)
		}
	}
}

func TestMergeMilter(t *testing.T) {
	for _, tc := range []struct{ action, smtpd, non, want, wantNon string }{
		{"tempfail", "", "", "unix:sendas/milter", "unix:sendas/milter"},
		{"tempfail", "inet:127.0.0.1:8891", "$smtpd_milters", "unix:sendas/milter, inet:127.0.0.1:8891", "$smtpd_milters"},
		{"accept", "inet:127.0.0.1:8891", "", "{ unix:sendas/milter, default_action=tempfail }, inet:127.0.0.1:8891", "{ unix:sendas/milter, default_action=tempfail }"},
		{"accept", "", "", "unix:sendas/milter", "unix:sendas/milter"}, // milter_default_action is written instead
		{"accept", "{ unix:sendas/milter, default_action=accept }, local:x", "local:x", "{ unix:sendas/milter, default_action=tempfail }, local:x", "{ unix:sendas/milter, default_action=tempfail }, local:x"},
	} {
		p := mergeSetup(t, map[string]string{"smtpd_milters": tc.smtpd, "non_smtpd_milters": tc.non, "milter_default_action": tc.action})
		got, _ := mergeMilter(p, tc.smtpd, p.milterItem())
		gotNon, _ := mergeMilter(p, tc.non, p.milterItem())
		if got != tc.want || gotNon != tc.wantNon {
			t.Errorf("%q, %q: got %q and %q, want %q and %q", tc.smtpd, tc.non, got, gotNon, tc.want, tc.wantNon)
		}
		if p.keepsAction() != strings.HasPrefix(tc.want, "{") {
			t.Errorf("%q: milter_default_action stays: %v", tc.smtpd, p.keepsAction())
		}
	}
}

// otherMail is a setting by which a host has other mail.
var otherMail = map[string]string{"default_transport": "smtp", "relayhost": "[mail.fabrikam.com]"}

func TestSenderTable(t *testing.T) {
	more := strings.Replace(configtest.SmallConfig, "domains: [contoso.com]", `domains: [contoso.com, "bücher.example", apps.contoso.com]`, 1)
	more = strings.Replace(more, "clients:", "  - {address: \"*@apps.contoso.com\", credential: relay-app}\nclients:", 1)
	one := strings.Replace(configtest.SmallConfig, "  - {address: erp@contoso.com, credential: relay-app}\n", "", 1)
	const scan, erp = "{scan@contoso.com = sendas:[smtp.office365.com]:587}, {office@contoso.com = sendas:[smtp.office365.com]:0587}", "{erp@contoso.com = sendas:[smtp.office365.com]:00587}"
	for _, tc := range []struct {
		yaml  string
		other bool
		want  string
	}{
		{configtest.SmallConfig, false, scan + ", " + erp},
		{one, false, scan},
		{strings.Replace(one, ", send_as: [office@contoso.com]", "", 1), false, ""}, // one sender has the queue of default_transport
		{one, true, scan + ", {@contoso.com = sendas:[smtp.office365.com]:587}"},
		{one + strings.Replace(ownRoute, "sendas", "exit", 1), false, strings.ReplaceAll(scan, "sendas:", "exit:")},
		{more, false, scan + ", " + erp + ", {@apps.contoso.com = sendas:[smtp.office365.com]:000587}"},
		{more, true, scan + ", " + erp + ", {@apps.contoso.com = sendas:[smtp.office365.com]:000587}, {@contoso.com = sendas:[smtp.office365.com]:587}, {@xn--bcher-kva.example = sendas:[smtp.office365.com]:587}"},
	} {
		var has map[string]string
		if tc.other {
			has = otherMail
		}
		p, _ := fake(t, newLab(t, tc.yaml), has)
		want := tc.want
		if want != "" {
			want = "inline:{ " + want + " }"
		}
		if got := p.senderTable(); got != want {
			t.Errorf("other mail: %v:\n got  %s\n want %s", tc.other, got, want)
		}
	}
}

// A pool has a queue of its own, and connections for all of its mailboxes.
func TestSenderTablePool(t *testing.T) {
	yaml := strings.NewReplacer("send_as: [office@contoso.com]}", "send_as: [office@contoso.com], pool: true}",
		"  - {address: erp@contoso.com, credential: relay-app}", "  - {address: erp@contoso.com, credential: relay-app, send_as: [office@contoso.com], pool: true}").Replace(configtest.SmallConfig)
	p, _ := fake(t, newLab(t, yaml), nil)
	want := "inline:{ {scan@contoso.com = sendas:[smtp.office365.com]:587}, {office@contoso.com = sendas:[smtp.office365.com]:00587}, {erp@contoso.com = sendas:[smtp.office365.com]:0587} }"
	if got := p.senderTable(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := p.fill("{connections}"); got != "6" {
		t.Errorf("%s connections, want 6", got)
	}
}

// A site with very many senders keeps a main.cf that can be read.
func TestSenderTableBound(t *testing.T) {
	var list []string
	for i := range senders.MaxNamed {
		list = append(list, fmt.Sprintf("s%d@contoso.com", i))
	}
	yaml := strings.Replace(configtest.SmallConfig, "send_as: [office@contoso.com]", "send_as: ["+strings.Join(list, ", ")+"]", 1)
	p, _ := fake(t, newLab(t, yaml), otherMail)
	if got, want := p.senderTable(), "inline:{ {@contoso.com = sendas:[smtp.office365.com]:587} }"; got != want {
		t.Errorf("got %.200s, want %s", got, want)
	}
}

// What we read of main.cf is what postconf reads.
func TestReadMainCF(t *testing.T) {
	const text = "# comment = x\n\na = 1\nb=2 3\n\t4\n# between\n  5\n   # inside = y\nc =\nb = 6\n   \n  7\nnonsense\nd = {a = b}\n"
	want := map[string]string{"a": "1", "b": "6 7", "c": "", "d": "{a = b}"}
	if got := cf.ReadMain(text); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	j, files := testJob(t)
	s, err := j.inst.Stage(files)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Remove()
	out, err := s.Postconf(t.Context(), "-n")
	if err != nil {
		t.Fatal(err)
	}
	got, want := cf.ReadMain(string(files[cf.Main])), cf.Parameters(out)
	delete(want, "config_directory") // that of -c
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// The table of the token service in smtp_generic_maps is the transport's; what main.cf says for other
// mail is never replaced.
func TestPostfixGeneric(t *testing.T) {
	yaml := strings.Replace(configtest.SmallConfig, "domains: [contoso.com]", "domains: [contoso.com]\n  external_recipients: auto\n  licenses: 100", 1)
	for _, tc := range []struct{ yaml, value, want string }{
		{yaml, "", "socketmap:unix:sendas/credentials:recipient"},
		{yaml, "hash:/etc/postfix/generic", "socketmap:unix:sendas/credentials:recipient"},
		{configtest.SmallConfig, "hash:/etc/postfix/generic", ""},
	} {
		p, _ := fake(t, newLab(t, tc.yaml), nil)
		p.Main["smtp_generic_maps"] = tc.value
		p.services = slices.DeleteFunc(p.services, func(e entry) bool { return e.name == "sendas" })
		for _, c := range p.makePlan(&cf.Values{Main: map[string]string{"smtp_generic_maps": tc.value}}).changes {
			if c.Name == "smtp_generic_maps" {
				t.Errorf("%q: main.cf is to have %q", tc.value, c.Now)
			}
			if c.Service == "sendas/unix" && !strings.Contains(c.Now+" ", " -o smtp_generic_maps="+tc.want+" ") {
				t.Errorf("%q: the transport is %s, want %q", tc.value, c.Now, tc.want)
			}
		}
	}
}

// FuzzMerge: what is put into a list can be taken out again, and leaves what the others had.
func FuzzMerge(f *testing.F) {
	for _, s := range []string{"", "permit_mynetworks, reject", "inet:x:1 { unix:y, default_action=accept }", "$a ${b}", "check_x y, sleep 1 permit", "{ {", "}", "a,,b", "inline:{ {a = b c} }"} {
		f.Add(s)
	}
	l := &Setup{Main: map[string]string{"queue_directory": "/var/spool/postfix"}, Config: config.Default()}
	const ours = "check_policy_service { unix:sendas/policy, default_action=DEFER_IF_PERMIT }"
	f.Fuzz(func(t *testing.T, raw string) {
		cf.ReadMain(raw)
		before := cf.Split(cf.OneSpaced(raw))
		if strings.Contains(raw, "sendas/") || strings.Count(raw, "{") != strings.Count(raw, "}") || strings.HasPrefix(strings.TrimSpace(raw), "}") {
			return // ours already, or nothing that Postfix would take
		}
		for _, merge := range []func(*Setup, string, string) (string, string){mergeFirst, mergeLast, mergePolicy} {
			value, added := merge(l, cf.OneSpaced(raw), ours)
			rest, ok := cf.WithoutItem(value, added)
			if after := cf.Split(rest); !ok || !slices.Equal(after, before) {
				t.Errorf("%q became %q, and then %q", before, value, after)
			}
		}
	})
}
