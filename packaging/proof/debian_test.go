//go:build packagetest

package proof

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// patience bounds every wait. Nothing takes this long unless it is broken.
const patience = 90 * time.Second

// A debian is a Debian below a folder.
type debian struct {
	t      *testing.T
	root   string
	leader int // process id of its systemd; 0 where it is not booted
}

// workshop is the folder of this run: the Debians as they are made, by suite, those of the tests, which
// are copies of them, and packages.
var workshop string

func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	os.Exit(func() int {
		var err error
		if workshop, err = os.MkdirTemp("", "sp-"); err != nil { // short: names of sockets end at 107 bytes
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(workshop)
		return m.Run()
	}())
}

// newDebian makes a Debian with Postfix, which does not run, and more packages. It is gone with the
// test. Whoever wants it booted calls booted in its place.
func newDebian(t *testing.T, suite string, packages ...string) *debian {
	t.Helper()
	base := filepath.Join(workshop, suite)
	if c := os.Getenv("TRIAL"); c != "" {
		base = filepath.Join(c, suite)
	}
	if _, err := os.Stat(base); err != nil {
		makeBase(t, suite, base)
	}
	dir, err := os.MkdirTemp(workshop, "r")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d := &debian{t: t, root: filepath.Join(dir, "r")}
	run(t, "cp", "-a", "--reflink=auto", base, d.root)
	if len(packages) > 0 {
		d.sh("apt-get install " + aptly + strings.Join(packages, " "))
	}
	return d
}

// aptly has apt ask nothing: the files that copyApt has written stay.
const aptly = "-q -y --no-install-recommends -o Dpkg::Options::=--force-confold "

// makeBase makes a Debian of the suite, with systemd and Postfix.
func makeBase(t *testing.T, suite, base string) {
	t.Helper()
	mirror, own := aptSource(t)
	d := &debian{t: t, root: base + ".part"}
	os.RemoveAll(d.root) // of an attempt that failed
	run(t, "debootstrap", "--variant=minbase", "--include=ca-certificates,openssl,systemd,systemd-sysv,dbus", suite, d.root, mirror)
	d.copyApt(own, suite)
	d.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)
	d.sh("echo 'postfix postfix/main_mailer_type select Internet Site' | debconf-set-selections; echo 'postfix postfix/mailname string relay.lab.example' | debconf-set-selections")
	d.sh("apt-get update -q")
	d.sh("apt-get install " + aptly + "postfix libsasl2-modules libsasl2-2 procps")
	d.sh("rm /usr/sbin/policy-rc.d")
	if err := os.Rename(d.root, base); err != nil {
		t.Fatal(err)
	}
}

// aptSource returns the mirror and the suite that this host's apt uses.
func aptSource(t *testing.T) (mirror, suite string) {
	t.Helper()
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^VERSION_CODENAME=(\w+)$`).FindSubmatch(release)
	if m == nil {
		t.Fatal("/etc/os-release names no version of Debian")
	}
	for _, name := range aptFiles(t) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, re := range []string{`(?m)^URIs:\s*(\S+/debian)/?\s*$`, `(?m)^deb (?:\[.*?\] )?(\S+/debian)/? `} {
			if u := regexp.MustCompile(re).FindSubmatch(b); u != nil {
				return string(u[1]), string(m[1])
			}
		}
	}
	t.Fatal("no mirror of Debian is configured in /etc/apt")
	return "", ""
}

// aptFiles are the files that say where this host gets Debian from.
func aptFiles(t *testing.T) []string {
	t.Helper()
	var list []string
	for _, name := range []string{"/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"} {
		if _, err := os.Stat(name); err == nil {
			list = append(list, name)
		}
	}
	return list
}

// copyApt gives it this host's way to Debian: mirrors, of the suite instead of this host's own,
// proxies, certificates and resolvers.
func (d *debian) copyApt(own, suite string) {
	d.t.Helper()
	os.Remove(d.path("/etc/apt/sources.list"))
	files := append(aptFiles(d.t), "/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt")
	confs, _ := filepath.Glob("/etc/apt/apt.conf.d/*")
	for _, f := range confs {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte("Acquire")) {
			files = append(files, f)
		}
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			d.t.Fatal(err)
		}
		text := string(b)
		if strings.Contains(f, "sources") {
			text = strings.ReplaceAll(text, own, suite)
		}
		d.write(f, text, 0o644)
	}
}

func (d *debian) path(p string) string { return filepath.Join(d.root, p) }

func (d *debian) write(path, text string, mode fs.FileMode) {
	d.t.Helper()
	err := errors.Join(os.MkdirAll(filepath.Dir(d.path(path)), 0o755), os.WriteFile(d.path(path), []byte(text), mode), os.Chmod(d.path(path), mode))
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *debian) read(path string) string {
	d.t.Helper()
	b, err := os.ReadFile(d.path(path))
	if err != nil {
		d.t.Fatal(err)
	}
	return string(b)
}

// sh runs a shell command in there and returns all that it says.
func (d *debian) sh(command string) string {
	d.t.Helper()
	out, err := d.try(command)
	if err != nil {
		d.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

// try is sh for what may fail. Where nothing is booted, the command has mounts and processes of
// its own, which end with it.
func (d *debian) try(command string) (string, error) {
	if d.leader != 0 {
		return output("nsenter", "--all", "--target", strconv.Itoa(d.leader), "/bin/sh", "-ec", command)
	}
	const prepare = `mount -t proc proc "$0/proc"; mount -t tmpfs tmpfs "$0/run"; mount --bind /dev "$0/dev"; exec chroot "$0" /bin/sh -ec "$1"`
	return output("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "/bin/sh", "-ec", prepare, d.root, command)
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := output(name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive", "HOME=/root"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// add copies a file of this host.
func (d *debian) add(file, path string) {
	d.t.Helper()
	run(d.t, "cp", file, d.path(path))
}

// notOurs is what changes without the package: what Postfix, apt and dpkg keep, and what does not
// outlive a start.
var notOurs = regexp.MustCompile(`^/(proc|sys|dev|run|tmp|root)(/|$)|^/var/(log|cache|tmp|lib/(apt|dpkg|postfix))(/|$)|^/var/spool/postfix/[^s]|^/etc/postfix/(main|master)\.cf$|^/etc/ld\.so\.cache$`)

// files lists all files with mode, owner and what they hold, but times.
func (d *debian) files() map[string]string {
	d.t.Helper()
	list := make(map[string]string)
	out := run(d.t, "find", d.root, "-xdev", "-printf", `/%P\t%y %m %U:%G %l\n`)
	for line := range strings.Lines(out) {
		path, what, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if notOurs.MatchString(path) {
			continue
		}
		if slices.Contains([]string{"/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow"}, path) {
			what += "\n" + d.read(path)
		}
		list[path] = what
	}
	return list
}

// compare says which files are new, gone or other ones.
func compare(before, after map[string]string) []string {
	var list []string
	for p, what := range after {
		if was, ok := before[p]; !ok {
			list = append(list, fmt.Sprintf("%s is left: %s", p, what))
		} else if was != what {
			list = append(list, fmt.Sprintf("%s was %s, and is %s", p, was, what))
		}
	}
	for p := range before {
		if _, ok := after[p]; !ok {
			list = append(list, p+" is gone")
		}
	}
	slices.Sort(list)
	return list
}
