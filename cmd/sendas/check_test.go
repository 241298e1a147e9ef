package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/cmd/internal/dns/dnstest"
	"github.com/sendas/sendas/internal/exit"
)

// TestCheckAsAnybody: a user who may not read the secrets hears whether the rest is good, and what was
// not looked at.
func TestCheckAsAnybody(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: only root can become somebody else")
	}
	dir, err := os.MkdirTemp("", "sendas-check-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile("/proc/self/exe") // which is sendas by that name: see TestMain
	if err != nil {
		t.Fatal(err)
	}
	configtest.WriteFile(t, dir+"/sendas", string(program), 0o755)
	configtest.WriteFile(t, dir+"/relay-app.secret", "0123456789\n", 0o600)
	configtest.WriteFile(t, dir+"/site.pem", "secret", 0o600)
	for _, tc := range []struct {
		name, more string
		code       int
		want       []string
	}{
		{"good", "", exit.OK, []string{"sendas.yaml is good: 2 mailboxes, 1 clients", "credentials.relay-app.client_secret_file: this user may not read the file, so it was not looked at"}},
		{"a route", "routes:\n  - {name: site, type: connector, endpoint: contoso-com.mail.protection.outlook.com, certificate_file: site.pem}\n  - {name: submission, transport: sendas}\n", exit.OK,
			[]string{"is good", "client_secret_file: this user may not read", "routes[0].certificate_file: this user may not read the file"}},
		{"wrong", "nonsense: 1\n", exit.Config, []string{`unknown key "nonsense"`}},
	} {
		configtest.WriteFile(t, dir+"/sendas.yaml", configtest.SmallConfig+tc.more, 0o644)
		c := exec.Command(dir+"/sendas", "check", "--config", dir+"/sendas.yaml")
		c.Dir, c.Env = "/", []string{"PATH=/usr/bin:/bin"}
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := c.CombinedOutput()
		if c.ProcessState == nil || c.ProcessState.ExitCode() != tc.code {
			t.Fatalf("%s: %v\n%s", tc.name, err, out)
		}
		for _, want := range tc.want {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s: the output lacks %q:\n%s", tc.name, want, out)
			}
		}
	}
}

// TestCheckDomains runs the command against a server of its own.
func TestCheckDomains(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "sendas.yaml")
	configtest.WriteFile(t, file, configtest.SmallConfig+"routes:\n  - {name: site, type: connector, endpoint: contoso-com.mail.protection.outlook.com, addresses: [203.0.113.7]}\n"+
		"  - {name: submission, transport: sendas}\n", 0o644)
	configtest.WriteFile(t, dir+"/relay-app.secret", "0123456789\n", 0o600)
	dial := dnstest.Server(t, map[string][]string{
		"contoso.com.":                {"v=spf1 include:spf.protection.outlook.com -all"},
		"spf.protection.outlook.com.": {"v=spf1 ip4:40.92.0.0/15 -all"},
	})
	conn, err := dial(context.Background(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var stdout, stderr bytes.Buffer
	code := run([]string{"check", "-c", file, "--dns-server", conn.RemoteAddr().String()}, &stdout, &stderr)
	for _, want := range []string{"sendas.yaml is good: 2 mailboxes, 1 clients\n", "v=spf1 ip4:203.0.113.7 include:spf.protection.outlook.com -all"} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("the output lacks %q:\n%s", want, &stdout)
		}
	}
	if code != 1 || !strings.Contains(stderr.String(), "DNS has to be changed") {
		t.Errorf("exit code %d: %s", code, &stderr)
	}
	if code := run([]string{"check", "-c", file, "--dns-server", "9.9.9.9"}, &stdout, &stderr); code != exit.Usage || !strings.Contains(stderr.String(), "is not a host with its port") {
		t.Errorf("exit code %d: %s", code, &stderr)
	}
}
