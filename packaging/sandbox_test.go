package packaging

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait.
const patience = 2 * time.Minute

// A sandboxed service is the program below what its unit allows: user, file system, capabilities,
// system calls and address families are set as systemd sets them, by TestMain in another process of
// this test (see launch_test.go).
type sandboxed struct {
	t       *testing.T
	dir     string
	sockets map[string]string // path by name
	notify  *net.UnixConn
	cmd     *exec.Cmd
	log     string
	http    string // address of its figures
}

const sandboxConfig = `tenant:
  id: contoso.onmicrosoft.com
  domains: [contoso.com]
  endpoints: {authority: "http://127.0.0.1:9"}
credentials:
  relay-app:
    client_id: 5f2c0d3e-0000-4000-8000-000000000001
    client_secret_file: relay-app.secret
mailboxes:
  - address: erp@contoso.com
    credential: relay-app
clients:
  - name: printers
    networks: [10.2.0.0/16]
    from: erp@contoso.com
milter: {http: "MILTER"}
token: {http: "TOKEN", peers: [root]}
`

// program builds sendas once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sendas-sandbox-")
	if err != nil {
		return "", err
	}
	made = append(made, dir)
	path := filepath.Join(dir, "sendas")
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	_, err = command("CGO_ENABLED=0")("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "../cmd/sendas") // as make does, whose objects it finds
	return path, err
})

// startSandboxed starts a service and waits until it says that it is ready.
func startSandboxed(t *testing.T, name string, uid int, sockets ...string) *sandboxed {
	t.Helper()
	bin, err := program()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "sendas-sandbox-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &sandboxed{t: t, dir: dir, sockets: make(map[string]string), http: freeAddr(t), log: filepath.Join(dir, "log")}
	config := strings.NewReplacer("MILTER", s.http, "TOKEN", s.http).Replace(sandboxConfig)
	if name == "milter" {
		config = strings.Replace(config, `token: {http: "`+s.http+`"`, `token: {http: "off"`, 1)
	} else {
		config = strings.Replace(config, `milter: {http: "`+s.http+`"`, `milter: {http: "off"`, 1)
	}
	secret := filepath.Join(dir, "relay-app.secret")
	for _, err := range []error{
		os.Chmod(dir, 0o755),
		os.WriteFile(filepath.Join(dir, "sendas.yaml"), []byte(config), 0o644),
		os.WriteFile(secret, []byte("s3cr3t\n"), 0o600),
		os.Chown(secret, uid, uid),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s.notifySocket()
	s.start(bin, name, uid, sockets)
	s.waitFor("READY=1")
	return s
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// notifySocket makes systemd's end of sd_notify(3).
func (s *sandboxed) notifySocket() {
	s.t.Helper()
	path := filepath.Join(s.dir, "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	if err := os.Chmod(path, 0o666); err != nil {
		s.t.Fatal(err)
	}
	s.notify = c
}

// start hands the sockets over as systemd does (sd_listen_fds(3)).
func (s *sandboxed) start(bin, name string, uid int, sockets []string) {
	s.t.Helper()
	log, err := os.Create(s.log)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	s.t.Cleanup(cancel)
	s.cmd = exec.CommandContext(ctx, self, bin, name, "--config", filepath.Join(s.dir, "sendas.yaml"))
	s.cmd.Env = []string{"PATH=/usr/bin:/bin", launchUnit + "=systemd/sendas-" + name + ".service", launchUser + "=" + strconv.Itoa(uid),
		"NOTIFY_SOCKET=" + filepath.Join(s.dir, "notify"), "WATCHDOG_USEC=200000",
		"LISTEN_FDS=" + strconv.Itoa(len(sockets)), "LISTEN_FDNAMES=" + strings.Join(sockets, ":")}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	s.cmd.Stdout, s.cmd.Stderr = log, log
	for _, n := range sockets {
		s.sockets[n] = filepath.Join(s.dir, n)
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.sockets[n], Net: "unix"})
		if err != nil {
			s.t.Fatal(err)
		}
		defer l.Close()
		l.SetUnlinkOnClose(false)
		f, err := l.File()
		if err != nil {
			s.t.Fatal(err)
		}
		defer f.Close()
		s.cmd.ExtraFiles = append(s.cmd.ExtraFiles, f)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
}

// waitFor reads what the service tells systemd until it says the line.
func (s *sandboxed) waitFor(line string) {
	s.t.Helper()
	s.notify.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 4096)
	for {
		n, err := s.notify.Read(buf)
		if err != nil {
			log, _ := os.ReadFile(s.log)
			s.t.Fatalf("waiting for %q: %v; the service says\n%s", line, err, log)
		}
		if slices.Contains(strings.Split(string(buf[:n]), "\n"), line) {
			return
		}
	}
}

// ask connects, says something, and returns what comes back until the other side has said the end.
func (s *sandboxed) ask(socket, question, end string) string {
	s.t.Helper()
	c, err := net.DialTimeout("unix", s.sockets[socket], patience)
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, question); err != nil {
		s.t.Fatal(err)
	}
	var got strings.Builder
	for buf := make([]byte, 1); !strings.HasSuffix(got.String(), end); {
		n, err := c.Read(buf)
		if err != nil {
			log, _ := os.ReadFile(s.log)
			s.t.Fatalf("%s answers %q and then %v; the service says\n%s", socket, got.String(), err, log)
		}
		got.Write(buf[:n])
	}
	return got.String()
}

// confined looks at what the kernel says of the process.
func (s *sandboxed) confined(uid int, state string) {
	s.t.Helper()
	proc := fmt.Sprintf("/proc/%d/", s.cmd.Process.Pid)
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, re := range []string{fmt.Sprintf(`(?m)^Uid:\t%d\t%[1]d\t%[1]d\t%[1]d$`, uid), `(?m)^CapEff:\t0+$`, `(?m)^CapBnd:\t0+$`, `(?m)^NoNewPrivs:\t1$`, `(?m)^Seccomp:\t2$`} {
		if !regexp.MustCompile(re).Match(status) {
			s.t.Errorf("the process is not as %s says:\n%s", re, status)
		}
	}
	mounts, err := os.ReadFile(proc + "mountinfo")
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line) // proc_pid_mountinfo(5): the path is the fifth, its options the sixth
		writable := strings.HasPrefix(f[5], "rw")
		if writable != (f[4] == state) {
			s.t.Errorf("%s is mounted with %s", f[4], f[5])
		}
	}
}

// reload does what the unit says for "systemctl reload", in the service's own sandbox: with a good
// file it ends with 0 when that is in force, with a wrong one it fails and nothing has changed.
func (s *sandboxed) reload(name string, uid int) {
	s.t.Helper()
	file := filepath.Join(s.dir, "sendas.yaml")
	good, err := os.ReadFile(file)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, tc := range []struct {
		more string
		code int
		says string
	}{
		{"", 0, ""},
		{"  - {name: more, networks: [10.3.0.0/16], from: erp@contoso.com}\n", 0, ""},
		{"  - {name: wrong, networks: [10.4.0.0/33], from: erp@contoso.com}\n", 78, `"10.4.0.0/33" is not a network`},
	} {
		text := strings.Replace(string(good), "milter:", tc.more+"milter:", 1)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			s.t.Fatal(err)
		}
		before := s.loads()
		out, code := s.execReload(name, uid)
		if code != tc.code || !strings.Contains(out, tc.says) || tc.says == "" && out != "" {
			s.t.Errorf("the reload ends with %d, want %d and %q:\n%s", code, tc.code, tc.says, out)
		}
		if loaded := s.loads() - before; (loaded == 1) != (tc.code == 0) {
			s.t.Errorf("the configuration was loaded %d times by a reload that ended with %d", loaded, code)
		}
	}
}

// loads is how often the service has loaded a configuration anew, by its log.
func (s *sandboxed) loads() int {
	s.t.Helper()
	log, err := os.ReadFile(s.log)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Count(string(log), `msg="configuration loaded"`)
}

// execReload runs the command of the unit's ExecReload=.
func (s *sandboxed) execReload(name string, uid int) (out string, code int) {
	s.t.Helper()
	bin, err := program()
	if err != nil {
		s.t.Fatal(err)
	}
	file := "systemd/sendas-" + name + ".service"
	u, err := readUnit(file)
	if err != nil || len(u["ExecReload"]) != 1 {
		s.t.Fatalf("ExecReload= is %q, %v", u["ExecReload"], err)
	}
	args := strings.Fields(strings.NewReplacer("/usr/bin/sendas", bin, "$MAINPID", strconv.Itoa(s.cmd.Process.Pid)).Replace(u["ExecReload"][0]))
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, append(args, "--config", filepath.Join(s.dir, "sendas.yaml"))...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", launchUnit + "=" + file, launchUser + "=" + strconv.Itoa(uid)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	b, err := cmd.CombinedOutput()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return string(b), e.ExitCode()
	} else if err != nil {
		s.t.Fatal(err)
	}
	return string(b), 0
}

// end stops the service as systemd does.
func (s *sandboxed) end() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Error(err)
	}
	if err := s.cmd.Wait(); err != nil {
		log, _ := os.ReadFile(s.log)
		s.t.Errorf("the service ended with %v:\n%s", err, log)
	}
}

func (s *sandboxed) get(path string) string {
	s.t.Helper()
	client := http.Client{Timeout: patience}
	res, err := client.Get("http://" + s.http + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// keepsRecord: the unit lets the service keep its database.
func (s *sandboxed) keepsRecord() {
	s.t.Helper()
	figures := ""
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		figures = s.get("/metrics")
		if strings.Contains(figures, "\nsendas_record_working 1\n") && !strings.Contains(figures, "\nsendas_record_bytes 0\n") {
			return
		}
	}
	log, _ := os.ReadFile(s.log)
	s.t.Errorf("the record is not kept:\n%s\n%s", figures, log)
}

// The users are any but root.
const (
	milterUser = 65534
	tokenUser  = 65533
)

func TestMilterInItsSandbox(t *testing.T) {
	s := startSandboxed(t, "milter", milterUser, "milter", "policy")
	s.confined(milterUser, "/var/lib/sendas")
	s.waitFor("WATCHDOG=1")
	s.waitFor("WATCHDOG=1")
	const request = "request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=192.0.2.1\nsender=a@fabrikam.com\nrecipient=b@fabrikam.com\n\n"
	if got := s.ask("policy", request, "\n\n"); !strings.HasPrefix(got, "action=") {
		t.Errorf("the policy service answers %q", got)
	}
	// Version 6, all actions, all steps; the milter answers with what it wants of it.
	if got := s.ask("milter", "\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff", "\x06"); got[4] != 'O' {
		t.Errorf("the milter answers %q", got)
	}
	if got := s.get("/metrics"); !strings.Contains(got, "sendas_build_info") {
		t.Errorf("the figures are %q", got)
	}
	s.keepsRecord()
	s.reload("milter", milterUser)
	s.end()
}

func TestTokenInItsSandbox(t *testing.T) {
	s := startSandboxed(t, "token", tokenUser, "credentials")
	s.confined(tokenUser, "/var/lib/sendas-token")
	s.waitFor("WATCHDOG=1")
	s.waitFor("WATCHDOG=1")
	if got, want := s.ask("credentials", "25:route nobody@fabrikam.com,", ","), "9:NOTFOUND ,"; got != want {
		t.Errorf("the token service answers %q, want %q", got, want)
	}
	// The token is asked for over the network, where nobody answers.
	end := time.Now().Add(patience)
	for !strings.Contains(s.get("/readyz"), "connection refused") {
		if time.Now().After(end) {
			t.Fatalf("the token service says %q", s.get("/readyz"))
		}
		time.Sleep(50 * time.Millisecond)
	}
	s.keepsRecord()
	s.reload("token", tokenUser)
	s.end()
}
