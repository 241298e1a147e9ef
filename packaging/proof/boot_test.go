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
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// inside is set in the process that has mounts, processes and a network of its own, to the folder of
// the Debian. When it ends, however it does, the kernel ends all others in there and takes mounts and
// network away.
const inside = "SENDAS_PROOF_INSIDE"

// groups is set there to the control groups, and enter is a script that starts a command in one of
// those in each of them.
const (
	groups = "SENDAS_PROOF_GROUPS"
	enter  = `for g in $0; do echo 0 > $g/$1/cgroup.procs; done; shift; exec "$@"`
)

// far is an address of that network that is not loopback.
const far = "192.0.2.1"

// booted makes a Debian, lets prepare install in it what has to come from a mirror, and runs the
// calling test once more in namespaces of its own. There it returns the Debian with its systemd
// running, and outside nil: the test has nothing left to do. The packages of both versions lie in
// /root. What listens on loopback in the test is reached from the Debian, and the other way round.
func booted(t *testing.T, suite string, prepare func(*debian)) *debian {
	t.Helper()
	if root := os.Getenv(inside); root != "" {
		d := &debian{t: t, root: root}
		d.boot()
		return d
	}
	d := newDebian(t, suite)
	prepare(d)
	for _, version := range []string{oldVersion, newVersion} {
		d.add(build(t, version), debPath(version))
	}
	d.write("/etc/resolv.conf", "nameserver 127.0.0.1\n", 0o644) // nobody answers there, and at once
	list := strings.Join(controlGroups(t), " ")
	cmd := exec.Command("/bin/sh", "-ec", enter, list, "test",
		"unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc", "--propagation", "private",
		os.Args[0], "-test.v", "-test.count=1", "-test.timeout=20m", "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$")
	cmd.Env = append(os.Environ(), inside+"="+d.root, groups+"="+list)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	return nil
}

// controlGroups makes a control group in each hierarchy of which systemd-nspawn and the systemd in
// there use something, with one group for the test and one for the machine, and removes them with the
// test. Without one of its own, two machines would be one.
func controlGroups(t *testing.T) (list []string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	// systemd-nspawn makes groups of the same name in all of them.
	name := fmt.Sprintf("sendas-proof-%d", os.Getpid())
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if f[2] != "cgroup2" && !(f[2] == "cgroup" && slices.Contains(strings.Split(f[3], ","), "name=systemd")) {
			continue
		}
		dir := filepath.Join(f[1], name)
		t.Cleanup(func() { removeControlGroup(t, dir) })
		if err := errors.Join(os.Mkdir(dir, 0o755), os.Mkdir(filepath.Join(dir, "test"), 0o755), os.Mkdir(filepath.Join(dir, "machine"), 0o755)); err != nil {
			t.Fatalf("systemd-nspawn needs a control group of its own: %v", err)
		}
		// So that MemoryMax= of a unit means something. Where an older hierarchy has the controller,
		// this one cannot.
		for _, c := range []string{"memory", "pids"} {
			for _, up := range []string{f[1], dir} {
				os.WriteFile(filepath.Join(up, "cgroup.subtree_control"), []byte("+"+c), 0)
			}
		}
		list = append(list, dir)
	}
	if len(list) == 0 {
		t.Fatal("no control groups are mounted, which systemd needs")
	}
	return list
}

// removeControlGroup waits until the kernel has ended all in there.
func removeControlGroup(t *testing.T, dir string) {
	t.Helper()
	var all []string
	eventually(t, "the end of all in "+dir, func() bool {
		all = nil
		filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				all = append(all, name)
			}
			return nil
		})
		slices.Reverse(all)
		for _, name := range all {
			os.Remove(name)
		}
		_, err := os.Stat(dir)
		return errors.Is(err, fs.ErrNotExist)
	})
}

// boot starts systemd in there and waits until all is started.
func (d *debian) boot() {
	d.t.Helper()
	for _, args := range [][]string{
		{"mount", "-t", "tmpfs", "tmpfs", "/run"}, // systemd-nspawn leaves folders there
		{"ip", "link", "set", "lo", "up"},
		{"ip", "addr", "add", far + "/32", "dev", "lo"},
	} {
		run(d.t, args[0], args[1:]...)
	}
	var said bytes.Buffer
	// IPAddressDeny= is a program in the kernel, which a container as a rule may not load.
	cmd := exec.Command("/bin/sh", "-ec", enter, os.Getenv(groups), "machine", "systemd-nspawn", "--register=no", "--keep-unit", "--directory="+d.root, "--boot", "--console=pipe", "--hostname=relay",
		"--resolv-conf=off", "--timezone=off", "--link-journal=no", "--capability=CAP_BPF,CAP_NET_ADMIN", "--system-call-filter=bpf")
	cmd.Env = append(os.Environ(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
	cmd.Stdout, cmd.Stderr = &said, &said
	err := cmd.Start()
	ended := make(chan error, 1)
	if err == nil {
		go func() { ended <- cmd.Wait() }()
		d.t.Cleanup(func() { d.shutDown(cmd.Process, ended) })
	}
	for end := time.Now().Add(patience); err == nil; time.Sleep(100 * time.Millisecond) {
		select {
		case err = <-ended:
			err = fmt.Errorf("it has ended: %v", err)
			ended <- err
		default:
			if state := d.state(cmd.Process.Pid); state == "running" {
				return
			} else if time.Now().After(end) {
				err = fmt.Errorf("the system is %q", state)
			}
		}
	}
	d.t.Fatalf("systemd-nspawn cannot boot a Debian here, and without a real systemd nobody knows what the units do: %v\n%s", err, said.String())
}

// state is how far systemd is, and "" as long as there is none. It sets the leader.
func (d *debian) state(nspawn int) string {
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", nspawn))
	for child := range strings.FieldsSeq(string(children)) {
		if name, _ := os.ReadFile("/proc/" + child + "/comm"); strings.TrimSpace(string(name)) != "systemd" {
			continue
		}
		d.leader, _ = strconv.Atoi(child)
		state, _ := d.try("systemctl is-system-running")
		return strings.TrimSpace(state)
	}
	return ""
}

// shutDown shows what was logged, if the test has failed, and ends it.
func (d *debian) shutDown(nspawn *os.Process, ended <-chan error) {
	if d.t.Failed() && d.leader != 0 {
		log, err := d.try("systemctl --failed --no-pager; journalctl -b --no-pager -n 150")
		d.t.Logf("the journal: %v\n%s", err, log)
	}
	nspawn.Kill()
	<-ended
}

// show returns a property of a unit.
func (d *debian) show(unit, property string) string {
	d.t.Helper()
	return strings.TrimSpace(d.sh("systemctl show --value --property=" + property + " " + unit))
}

// wantActive fails the test where a unit is in another state.
func (d *debian) wantActive(state string, units ...string) {
	d.t.Helper()
	for _, unit := range units {
		if got := d.show(unit, "ActiveState"); got != state {
			d.t.Errorf("%s is %s, want %s", unit, got, state)
		}
	}
}

// logged returns the lines of the journal that match a pattern, with more arguments for journalctl.
func (d *debian) logged(pattern, args string) string {
	d.t.Helper()
	out, _ := d.try("journalctl --boot --no-pager --quiet --output=short-iso --case-sensitive=yes --grep='" + pattern + "' " + args)
	return out
}
