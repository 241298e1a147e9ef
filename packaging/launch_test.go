package packaging

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// What TestMain is told when it is not to test, but to become a service.
const (
	launchUnit = "SENDAS_TEST_UNIT"
	launchUser = "SENDAS_TEST_USER"
)

// made are folders that several tests share.
var made []string

func TestMain(m *testing.M) {
	if unit := os.Getenv(launchUnit); unit != "" {
		err := launch(unit)
		fmt.Fprintln(os.Stderr, "launching below", unit, "failed:", err)
		os.Exit(1)
	}
	code := m.Run()
	for _, dir := range made {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// launch does what systemd does between fork and exec for the settings of the unit
// (systemd.exec(5)), as far as they can be had without systemd. It returns if something is wrong.
func launch(unit string) error {
	runtime.LockOSThread() // what follows is each thread's own
	u, err := readUnit(unit)
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(os.Getenv(launchUser))
	if err != nil {
		return err
	}
	filter, err := u.filter()
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return u.mount(uid) },
		u.dropCapabilities,
		func() error { return errors.Join(syscall.Setgroups(nil), syscall.Setgid(uid), syscall.Setuid(uid)) },
		func() error { return confine(filter) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	env := slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "SENDAS_TEST_") })
	env = append(env, "LISTEN_PID="+strconv.Itoa(os.Getpid()), "WATCHDOG_PID="+strconv.Itoa(os.Getpid()))
	return syscall.Exec(os.Args[1], os.Args[1:], env)
}

// A unit is its settings; those that stand more than once have several values.
type unit map[string][]string

func readUnit(name string) (unit, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	u := make(unit)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), "="); ok && !strings.HasPrefix(key, "#") {
			u[key] = append(u[key], value)
		}
	}
	return u, nil
}

// want reports whether the unit has the setting that is about to be put into force.
func (u unit) want(key, value string) error {
	if !slices.Equal(u[key], []string{value}) {
		return fmt.Errorf("%s= is %q, and this test knows %q alone", key, u[key], value)
	}
	return nil
}

// mount makes the whole file system read-only, but for the state directory.
func (u unit) mount(uid int) error {
	if err := u.want("ProtectSystem", "strict"); err != nil {
		return err
	}
	if len(u["StateDirectory"]) != 1 {
		return errors.New("the unit names no state directory")
	}
	state := filepath.Join("/var/lib", u["StateDirectory"][0])
	owner := fmt.Sprintf("mode=%s,uid=%d,gid=%d", u["StateDirectoryMode"][0], uid, uid)
	return errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", "/var/lib", "tmpfs", 0, "mode=755"),
		os.Mkdir(state, 0o755),
		unix.Mount("tmpfs", state, "tmpfs", 0, owner),
		unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID}),
		unix.MountSetattr(unix.AT_FDCWD, state, 0, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}),
	)
}

func (u unit) dropCapabilities() error {
	if err := errors.Join(u.want("CapabilityBoundingSet", ""), u.want("AmbientCapabilities", ""), u.want("NoNewPrivileges", "yes")); err != nil {
		return err
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) { // the kernel may know fewer
			return err
		}
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

// confine puts a seccomp filter into force.
func confine(program []bpf.RawInstruction) error {
	list := make([]unix.SockFilter, len(program))
	for i, p := range program {
		list[i] = unix.SockFilter{Code: p.Op, Jt: p.Jt, Jf: p.Jf, K: p.K}
	}
	fprog := unix.SockFprog{Len: uint16(len(list)), Filter: &list[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&fprog)), 0, 0)
}

// filter makes the filter of SystemCallFilter= and RestrictAddressFamilies=. Where the unit answers
// a call that is not allowed with an error, this one ends the process: it shall need none.
func (u unit) filter() ([]bpf.RawInstruction, error) {
	numbers, err := callNumbers()
	if err != nil {
		return nil, err
	}
	allowed, err := u.allowed()
	if err != nil {
		return nil, err
	}
	families, err := u.families()
	if err != nil {
		return nil, err
	}
	const nr, arg0 = 0, 16 // seccomp(2), struct seccomp_data
	p := []bpf.Instruction{
		bpf.LoadAbsolute{Off: nr, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(numbers["socket"]), SkipTrue: uint8(len(families)*2 + 2)},
		bpf.LoadAbsolute{Off: arg0, Size: 4},
	}
	for _, f := range families {
		p = append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: f, SkipTrue: 1}, bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW})
	}
	p = append(p, bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)})
	for _, name := range allowed {
		if n, ok := numbers[name]; ok && name != "socket" {
			p = append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(n), SkipTrue: 1}, bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW})
		}
	}
	p = append(p, bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS})
	return bpf.Assemble(p)
}

// allowed expands SystemCallFilter=.
func (u unit) allowed() ([]string, error) {
	var list []string
	for _, line := range u["SystemCallFilter"] {
		sets, forbid := strings.CutPrefix(line, "~")
		for name := range strings.FieldsSeq(sets) {
			calls, err := callSet(name)
			if err != nil {
				return nil, err
			}
			if forbid {
				list = slices.DeleteFunc(list, func(c string) bool { return slices.Contains(calls, c) })
			} else {
				list = append(list, calls...)
			}
		}
	}
	if len(list) == 0 {
		return nil, errors.New("the unit allows no system call")
	}
	return list, nil
}

// callSet lists the calls of a set, as systemd has them.
func callSet(name string) ([]string, error) {
	if !strings.HasPrefix(name, "@") {
		return []string{name}, nil
	}
	out, err := exec.Command("systemd-analyze", "syscall-filter", "--no-pager", name).Output()
	if err != nil {
		return nil, fmt.Errorf("systemd-analyze syscall-filter %s: %w", name, err)
	}
	var list []string
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); line == "" || line == name || strings.HasPrefix(line, "#") {
			continue
		}
		calls, err := callSet(line)
		if err != nil {
			return nil, err
		}
		list = append(list, calls...)
	}
	return list, nil
}

// callNumbers asks the C compiler for this machine's system calls.
func callNumbers() (map[string]int, error) {
	cmd := exec.Command("cc", "-E", "-dM", "-include", "sys/syscall.h", "-xc", "/dev/null")
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%v: %w", cmd.Args, err)
	}
	numbers := make(map[string]int)
	for _, m := range regexp.MustCompile(`(?m)^#define __NR_(\w+) (\d+)$`).FindAllStringSubmatch(string(out), -1) {
		numbers[m[1]], _ = strconv.Atoi(m[2])
	}
	if _, ok := numbers["socket"]; !ok {
		return nil, errors.New("the headers of the C library name no system calls")
	}
	return numbers, nil
}

// families expands RestrictAddressFamilies=.
func (u unit) families() ([]uint32, error) {
	known := map[string]uint32{"AF_UNIX": unix.AF_UNIX, "AF_INET": unix.AF_INET, "AF_INET6": unix.AF_INET6}
	var list []uint32
	for name := range strings.FieldsSeq(strings.Join(u["RestrictAddressFamilies"], " ")) {
		f, ok := known[name]
		if !ok {
			return nil, fmt.Errorf("the unit allows %s", name)
		}
		list = append(list, f)
	}
	return list, nil
}
