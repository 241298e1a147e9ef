package packaging

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// buildTime bounds a build of a package, which compiles everything on a new machine.
const buildTime = 5 * time.Minute

// testVersion is that of the packages of these tests.
const testVersion = "1.2.3~rc1"

// A built is what packaging/build has left in a folder.
type built struct{ dir, deb, rpm string }

// debOnce builds the packages of this machine once for all tests.
var debOnce = sync.OnceValues(func() (built, error) {
	b, err := build("deb rpm")
	made = append(made, b.dir)
	return b, err
})

func build(formats string) (built, error) {
	dir, err := os.MkdirTemp("", "sendas-packages-")
	if err != nil {
		return built{}, err
	}
	b := built{dir, filepath.Join(dir, "sendas_"+testVersion+"-1_"+runtime.GOARCH+".deb"), filepath.Join(dir, "sendas-"+testVersion+"-1."+machine()+".rpm")}
	_, err = command("OUT="+dir, "ARCHES="+runtime.GOARCH, "FORMATS="+formats, "VERSION="+testVersion)("./build")
	return b, err
}

// machine is what rpm and Debian's folders call this machine.
func machine() string {
	if runtime.GOARCH == "arm64" {
		return "aarch64"
	}
	return "x86_64"
}

// command returns a function that runs a program with more in its environment, and returns what it
// says.
func command(env ...string) func(name string, args ...string) (string, error) {
	return func(name string, args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), buildTime)
		defer cancel()
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Env = append(os.Environ(), append([]string{"LC_ALL=C.UTF-8"}, env...)...)
		var out, said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &said
		if err := cmd.Run(); err != nil {
			return out.String(), fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, out.String(), said.String())
		}
		return out.String(), nil
	}
}

func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := command()(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func packages(t *testing.T) built {
	t.Helper()
	b, err := debOnce()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// contents are files that matter, with mode and owner.
var contents = []struct{ mode, owner, path string }{
	{"-rwxr-xr-x", "root/root", "/usr/bin/sendas"},
	{"drwxr-x---", "root/sendas", "/etc/sendas"},
	{"-rw-r--r--", "root/root", "/usr/lib/systemd/system/sendas-milter.service"},
	{"-rw-r--r--", "root/root", "/usr/lib/systemd/system/sendas-milter.socket"},
	{"-rw-r--r--", "root/root", "/usr/lib/systemd/system/sendas-policy.socket"},
	{"-rw-r--r--", "root/root", "/usr/lib/systemd/system/sendas-token.service"},
	{"-rw-r--r--", "root/root", "/usr/lib/systemd/system/sendas-token.socket"},
	{"-rw-r--r--", "root/root", "/usr/lib/sysusers.d/sendas.conf"},
	{"-rw-r--r--", "root/root", "/usr/lib/tmpfiles.d/sendas.conf"},
	{"-rw-r--r--", "root/root", "/usr/share/man/man1/sendas.1.gz"},
	{"-rw-r--r--", "root/root", "/usr/share/man/man1/sendas-check.1.gz"},
	{"-rw-r--r--", "root/root", "/usr/share/man/man5/sendas.yaml.5.gz"},
	{"-rw-r--r--", "root/root", "/usr/share/bash-completion/completions/sendas"},
	{"-rw-r--r--", "root/root", "/usr/share/fish/vendor_completions.d/sendas.fish"},
	{"-rw-r--r--", "root/root", "/usr/share/doc/sendas/copyright"},
	{"-rw-r--r--", "root/root", "/usr/share/doc/sendas/changelog.gz"},
	{"-rw-r--r--", "root/root", "/usr/share/doc/sendas/README.md"},
	{"-rw-r--r--", "root/root", "/usr/share/doc/sendas/docs/credentials.md"},
	{"-rw-r--r--", "root/root", "/usr/share/sendas/sendas.yaml"},
	{"-rw-r--r--", "root/root", "/usr/share/sendas/exchange/Set-SendasApp.ps1"},
	{"-rw-r--r--", "root/root", "/usr/share/sendas/prometheus/sendas.rules.yml"},
	{"-rw-r--r--", "root/root", "/usr/share/sendas/grafana/sendas.json"},
}

func TestDeb(t *testing.T) {
	b := packages(t)
	// -rw-r--r-- root/root      2492 2026-11-21 13:29 ./usr/lib/…
	have := make(map[string]string)
	for line := range strings.Lines(must(t, "dpkg-deb", "-c", b.deb)) {
		f := strings.Fields(line)
		have[strings.TrimSuffix(f[5][1:], "/")] = f[0] + " " + f[1]
	}
	for _, c := range append(contents[:len(contents):len(contents)],
		struct{ mode, owner, path string }{"-rw-r--r--", "root/root", "/usr/lib/" + machine() + "-linux-gnu/sasl2/libsendas-xoauth2.so"},
		struct{ mode, owner, path string }{"-rw-r--r--", "root/root", "/usr/share/zsh/vendor-completions/_sendas"},
		struct{ mode, owner, path string }{"-rw-r--r--", "root/root", "/usr/share/doc/sendas/changelog.Debian.gz"}) {
		if got, want := have[c.path], c.mode+" "+c.owner; got != want {
			t.Errorf("%s is %q, want %q", c.path, got, want)
		}
	}
	if got := must(t, "dpkg-deb", "-f", b.deb, "Version"); got != testVersion+"-1\n" {
		t.Errorf("the version is %q", got)
	}
	// A conffile is a question at each upgrade that brings another sample.
	if got := must(t, "dpkg-deb", "--ctrl-tarfile", b.deb); strings.Contains(got, "conffiles") {
		t.Error("the package has conffiles")
	}
	if got, ok := have["/etc/sendas/sendas.yaml"]; ok {
		t.Errorf("the package holds the administrator's file: %s", got)
	}
}

func TestRPM(t *testing.T) {
	b := packages(t)
	have := make(map[string]string)
	for line := range strings.Lines(must(t, "rpm", "-qp", "--qf", `[%{FILENAMES} %{FILEMODES:perms} %{FILEUSERNAME}/%{FILEGROUPNAME} %{FILEFLAGS:fflags}\n]`, b.rpm)) {
		name, what, _ := strings.Cut(strings.TrimSpace(line), " ")
		have[name] = what
	}
	for _, c := range append(contents[:len(contents):len(contents)],
		struct{ mode, owner, path string }{"-rwxr-xr-x", "root/root", "/usr/lib64/sasl2/libsendas-xoauth2.so"},
		struct{ mode, owner, path string }{"-rw-r--r--", "root/root", "/usr/share/zsh/site-functions/_sendas"}) {
		if got, want := have[c.path], c.mode+" "+c.owner; !strings.HasPrefix(got, want) {
			t.Errorf("%s is %q, want %q", c.path, got, want)
		}
	}
	if got := have["/etc/sendas/sendas.yaml"]; got != "-rw-r----- root/sendas cn" {
		t.Errorf("sendas.yaml is %q, want a configuration file that is not replaced", got)
	}
}

// Links of the installed pages lead to what is installed too, or to the repository.
func TestLinksOfPages(t *testing.T) {
	root := t.TempDir()
	must(t, "dpkg-deb", "-x", packages(t).deb, root)
	n := 0
	err := filepath.WalkDir(filepath.Join(root, "usr/share"), func(name string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(name) != ".md" {
			return err
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllSubmatch(text, -1) {
			to, _, _ := strings.Cut(string(m[1]), "#")
			if to == "" || strings.Contains(to, ":") {
				continue
			}
			n++
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), to)); err != nil {
				t.Errorf("%s leads to %s, which is not there", strings.TrimPrefix(name, root), m[1])
			}
		}
		return nil
	})
	if err != nil || n < 50 {
		t.Errorf("%d links were followed: %v", n, err)
	}
}

// The same source makes the same bytes.
func TestReproducible(t *testing.T) {
	first := packages(t)
	t.Setenv("TMPDIR", t.TempDir()) // elsewhere
	second, err := build("deb rpm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(second.dir) })
	for _, f := range [][2]string{{first.deb, second.deb}, {first.rpm, second.rpm}} {
		a, err1 := os.ReadFile(f[0])
		b, err2 := os.ReadFile(f[1])
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("two builds of %s differ", filepath.Base(f[0]))
		}
	}
}

func TestLintian(t *testing.T) {
	b := packages(t)
	out, err := command()("lintian", "--no-cfg", "--allow-root", "--fail-on", "error,warning,override", "--tag-display-limit", "0", b.deb)
	// An override that nothing needs any more fails as well.
	if err != nil || strings.TrimSpace(out) != "" {
		t.Errorf("lintian says\n%s%v", out, err)
	}
}

func TestShellcheck(t *testing.T) {
	scripts, err := filepath.Glob("scripts/*")
	if err != nil || len(scripts) != 4 {
		t.Fatalf("the maintainer scripts are %q, %v", scripts, err)
	}
	must(t, "shellcheck", append(scripts, "build", "version", "deps")...)
}

// What preinst makes before the files are there is what sysusers.d says.
func TestUsersAreTheSame(t *testing.T) {
	lines := func(name string) []string {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var list []string
		for _, l := range regexp.MustCompile(`(?m)^\s*([um] sendas\S*\s.*)$`).FindAllStringSubmatch(string(b), -1) {
			list = append(list, l[1])
		}
		return list
	}
	conf, preinst := lines("systemd/sysusers.conf"), lines("scripts/preinst")
	if len(conf) != 4 || !slices.Equal(conf, preinst) {
		t.Errorf("sysusers.conf has %q, preinst %q", conf, preinst)
	}
}

// units are all units, in the order of their names.
func units(t *testing.T) []string {
	t.Helper()
	list, err := filepath.Glob("systemd/sendas-*.*")
	if err != nil || len(list) != 5 {
		t.Fatalf("the units are %q, %v", list, err)
	}
	return list
}

// systemd understands the units, as they are installed.
func TestUnitsVerify(t *testing.T) {
	root := t.TempDir()
	must(t, "dpkg-deb", "-x", packages(t).deb, root)
	for _, u := range units(t) {
		u = filepath.Join(root, "usr/lib/systemd/system", filepath.Base(u))
		out, err := os.ReadFile(u)
		if err != nil {
			t.Fatal(err)
		}
		// The program is not where it will be.
		out = bytes.ReplaceAll(out, []byte("/usr/bin/sendas"), []byte(filepath.Join(root, "usr/bin/sendas")))
		if err := os.WriteFile(u, out, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	list, _ := filepath.Glob(filepath.Join(root, "usr/lib/systemd/system/*"))
	cmd := exec.Command("systemd-analyze", append([]string{"verify", "--man=no", "--recursive-errors=no"}, list...)...)
	out, err := cmd.CombinedOutput()
	if err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// Both services are locked down: an exposure of 1.5 at most, on systemd's scale to 10.
func TestUnitsAreLockedDown(t *testing.T) {
	for _, u := range []string{"sendas-milter", "sendas-token"} {
		if _, err := command()("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=15", "./systemd/"+u+".service"); err != nil {
			t.Error(err)
		}
	}
}

// Both services begin to save memory a quarter before systemd would end them.
func TestUnitsMemory(t *testing.T) {
	for _, u := range []string{"sendas-milter", "sendas-token"} {
		text, err := os.ReadFile("systemd/" + u + ".service")
		if err != nil {
			t.Fatal(err)
		}
		most, soft := regexp.MustCompile(`(?m)^MemoryMax=(\d+)G$`).FindSubmatch(text), regexp.MustCompile(`(?m)^Environment=GOMEMLIMIT=(\d+)MiB$`).FindSubmatch(text)
		if most == nil || soft == nil {
			t.Fatalf("%s: MemoryMax=%q, GOMEMLIMIT=%q", u, most, soft)
		}
		m, _ := strconv.Atoi(string(most[1]))
		if n, _ := strconv.Atoi(string(soft[1])); n < 512 || 4*n > 3*1024*m {
			t.Errorf("%s: GOMEMLIMIT=%dMiB with MemoryMax=%dG", u, n, m)
		}
	}
}

func TestVersion(t *testing.T) {
	for _, tc := range []struct {
		name string
		git  string // commands that make the history
		want string
	}{
		{"no history", "rm -rf .git", "0~devel\n"},
		{"no tag", "", "0~devel.20260102030405.gHASH\n"},
		{"a release", "git tag -m x v1.2.0", "1.2.0\n"},
		{"a release candidate", "git tag -m x v1.3.0-rc1", "1.3.0~rc1\n"},
		{"after a release", "git tag -m x v1.2.0; git commit -qm next --allow-empty", "1.2.0+1.gHASH\n"},
		{"changed", "git tag -m x v1.2.0; echo >> packaging/version", "1.2.0+dirty\n"},
		{"a tag of something else", "git tag -m x nightly", "0~devel.20260102030405.gHASH\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			script := "cp -r " + must(t, "pwd")[:len(must(t, "pwd"))-1] + `/version version && mkdir packaging && mv version packaging/
				export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.com GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.com
				export GIT_COMMITTER_DATE=2026-01-02T03:04:05Z GIT_AUTHOR_DATE=2026-01-02T03:04:05Z
				git init -q && git add . && git commit -qm first
				` + tc.git + `
				packaging/version; git rev-parse --short=7 HEAD 2>/dev/null || true`
			cmd := exec.Command("sh", "-ec", script)
			cmd.Dir = dir
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			got, hash, _ := strings.Cut(string(out), "\n")
			want := strings.ReplaceAll(tc.want, "HASH", strings.TrimSpace(hash))
			if got+"\n" != want {
				t.Errorf("the version is %q, want %q", got, want)
			}
		})
	}
}

// An upgrade from a version that wrote Microsoft's settings into main.cf says what to type; a host that
// has them elsewhere, or has no Postfix, hears nothing.
func TestPostinstSaysMove(t *testing.T) {
	data, err := os.ReadFile("scripts/postinst")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "\nsaid_move() {\n")
	body, _, ok := strings.Cut(rest, "\n}\n")
	if !ok {
		t.Fatal("postinst has no function said_move")
	}
	for value, want := range map[string]bool{
		"socketmap:unix:sendas/credentials:lease": true, "socketmap:unix:/var/spool/postfix/sendas/credentials:lease": true, "hash:/etc/postfix/sasl_passwd": false, "": false, "absent": false,
	} {
		dir := t.TempDir()
		if value != "absent" {
			if err := os.WriteFile(filepath.Join(dir, "postconf"), []byte("#!/bin/sh\necho '"+value+"'\n"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command("/bin/sh", "-euc", "said_move() {\n"+body+"\n}\nsaid_move")
		cmd.Env = []string{"PATH=" + dir}
		said, err := cmd.CombinedOutput()
		if err != nil || strings.Contains(string(said), "sendas postfix enable") != want || !want && len(said) > 0 {
			t.Errorf("%s: %v, %q", value, err, said)
		}
	}
}
