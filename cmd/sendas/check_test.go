package main

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/cmd/internal/dns/dnstest"
	"github.com/sendas/sendas/internal/exit"
)

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
