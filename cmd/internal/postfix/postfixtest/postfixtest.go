// Package postfixtest has instances of Postfix, on disk and never started, for tests.
package postfixtest

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sendas/sendas/token/sasl"
)

// Document returns what stands in a document of the project between a beginning and the next fence.
func Document(t *testing.T, file, begin string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../..", file))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), begin)
	text, _, end := strings.Cut(rest, "\n```")
	if !ok || !end {
		t.Fatalf("%s has no block that begins with %q", file, begin)
	}
	return text + "\n"
}

// MainCF is main.cf as docs/by-hand.md has it.
func MainCF(t *testing.T) string {
	return Document(t, "docs/by-hand.md", "Postfix, in `main.cf` (the paths are relative to the queue directory, so they work chrooted and not):\n\n```main.cf\n")
}

// OwnEntry is the transport of submission as docs/by-hand.md has it, for master.cf.
func OwnEntry(t *testing.T) string {
	return Document(t, "docs/by-hand.md", "```master.cf\n")
}

// MasterCF are the services that matter here, as Debian has them.
const MasterCF = `smtp      inet  n       -       y       -       -       smtpd
cleanup   unix  n       -       y       -       0       cleanup
rewrite   unix  -       -       y       -       -       trivial-rewrite
smtp      unix  -       -       y       -       -       smtp
relay     unix  -       -       y       -       -       smtp -o syslog_name=postfix/relay
lmtp      unix  -       -       y       -       -       lmtp
`

//go:embed ordinary.main.cf ordinary.master.cf
var ordinary embed.FS

// YAML is the configuration of the scripts.
const YAML = `tenant: {id: contoso.onmicrosoft.com, domains: [contoso.com]}
credentials:
  relay-app: {client_id: 5f2c0d3e-0000-4000-8000-000000000001, client_secret_file: relay-app.secret}
notices: scan@contoso.com
mailboxes:
  - {address: scan@contoso.com, credential: relay-app}
  - {address: erp@contoso.com, credential: relay-app, send_as: [billing@contoso.com]}
clients:
  - {name: printers, networks: [10.2.0.0/16], from: scan@contoso.com}
milter: {listen: "unix:pf/queue/sendas/milter", policy_listen: "unix:pf/queue/sendas/policy"}
token: {listen: "unix:pf/queue/sendas/credentials"}
`

// compiled is the plugin, which takes a compiler a while.
var compiled = sync.OnceValues(func() (data []byte, err error) {
	dir, err := os.MkdirTemp("", "sendas-plugin-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file, err := sasl.Build(context.Background(), dir)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(file)
})

// NewInstance makes an instance of Postfix in dir/pf that is never started, and sendas.yaml beside
// it.
func NewInstance(dir string) error {
	pf, plugin := filepath.Join(dir, "pf"), filepath.Join(dir, "plugin")
	data, err := compiled() // without it something is always in the way
	err = errors.Join(err, os.Mkdir(plugin, 0o755), os.WriteFile(filepath.Join(plugin, sasl.Plugin), data, 0o755))
	for _, d := range []string{"etc", "data", "queue/sendas", "original"} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(pf, d), 0o755))
	}
	for _, name := range []string{"main.cf", "master.cf"} {
		data, readErr := ordinary.ReadFile("ordinary." + name)
		if name == "main.cf" {
			data = fmt.Appendf(data, "queue_directory = %[1]s/queue\ndata_directory = %[1]s/data\nimport_environment = LANG=C { SASL_PATH = %[2]s }\n", pf, plugin)
		}
		err = errors.Join(err, readErr, os.WriteFile(filepath.Join(pf, "etc", name), data, 0o644), os.WriteFile(filepath.Join(pf, "original", name), data, 0o644))
	}
	return errors.Join(err, os.WriteFile(filepath.Join(dir, "sendas.yaml"), []byte(YAML), 0o644))
}
