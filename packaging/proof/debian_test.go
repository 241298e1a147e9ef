//go:build packagetest

package proof

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// inside is set in the process that has mounts and processes of its own: when it ends, however it
// does, the kernel ends all others in there and takes the mounts away.
const inside = "SENDAS_PROOF_INSIDE"

// isolate runs the calling test once more in namespaces of its own, and returns false there.
func isolate(t *testing.T) (outside bool) {
	t.Helper()
	if os.Getenv(inside) != "" {
		return false
	}
	root, err := os.MkdirTemp("", "sp-") // short: names of sockets end at 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(root)
	cmd := exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private",
		os.Args[0], "-test.v", "-test.count=1", "-test.timeout=20m", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), inside+"="+root)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	return true
}

// A debian is a Debian below a folder.
type debian struct {
	t    *testing.T
	root string
}

// newDebian makes one, with Postfix in it, which does not run yet. The suite "" is the version of
// this host.
func newDebian(t *testing.T, suite string) *debian {
	t.Helper()
	d := &debian{t: t, root: filepath.Join(os.Getenv(inside), "r")}
	mirror, own := aptSource(t)
	suite = cmp.Or(suite, own)
	run(t, "debootstrap", "--variant=minbase", "--include=ca-certificates,openssl", suite, d.root, mirror)
	d.copyApt(own, suite)
	run(t, "mount", "-t", "proc", "proc", d.path("/proc"))
	run(t, "mount", "-t", "tmpfs", "tmpfs", d.path("/run"))
	run(t, "mount", "--bind", "/dev", d.path("/dev"))
	d.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)
	d.sh("echo 'postfix postfix/main_mailer_type select Internet Site' | debconf-set-selections; echo 'postfix postfix/mailname string relay.lab.example' | debconf-set-selections")
	d.sh("apt-get update -q")
	d.sh("apt-get install -q -y --no-install-recommends postfix libsasl2-modules libsasl2-2 procps")
	return d
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
	return run(d.t, "chroot", d.root, "/bin/sh", "-ec", command)
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

// standIns pretends that systemd runs. What it is told is written down; the function that is
// returned reads that.
func (d *debian) standIns() (calls func() string) {
	d.t.Helper()
	d.write("/run/systemd/system/.here", "", 0o644)
	d.write("/tmp/calls", "", 0o644)
	for _, name := range []string{"systemctl", "deb-systemd-invoke"} {
		d.write("/usr/local/bin/"+name, "#!/bin/sh\necho \"$*\" >> /tmp/calls\n", 0o755)
	}
	return func() string { return d.read("/tmp/calls") }
}

func (d *debian) noStandIns() {
	d.t.Helper()
	d.sh("rm -r /usr/local/bin/systemctl /usr/local/bin/deb-systemd-invoke /tmp/calls /run/systemd")
}
