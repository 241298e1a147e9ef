package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendas/sendas/cmd/internal/config"
)

const twoCredentials = `tenant: {id: contoso.onmicrosoft.com, domains: [contoso.com]}
credentials:
  good: {client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab, client_secret_file: good.secret}
  gone: {client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ac, client_secret_file: gone.secret}
mailboxes:
  - {address: erp@contoso.com, credential: good}
  - {address: scan@contoso.com, credential: gone}
notices: erp@contoso.com
clients:
  - {name: all, networks: [10.0.0.0/8], from: FROM}
`

// TestOneBrokenCredential: the files of one credential stop neither the service nor the others.
func TestOneBrokenCredential(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sendas.yaml")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("good.secret", "hunter2\n")
	write("sendas.yaml", strings.Replace(twoCredentials, "FROM", "erp@contoso.com", 1))
	var logged bytes.Buffer
	c, err := loadForToken(path, slog.New(slog.NewTextHandler(&logged, nil)))
	if err != nil || len(c.Mailboxes) != 2 {
		t.Fatalf("loadForToken: %v", err)
	}
	if s := logged.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, "credentials.gone.client_secret_file") || strings.Contains(s, "hunter2") {
		t.Errorf("logged %s", s)
	}
	if _, err := config.Load(path, config.CheckToken); err == nil {
		t.Error("sendas check finds nothing wrong")
	}
	write("sendas.yaml", strings.Replace(twoCredentials, "FROM", "nobody@contoso.com", 1))
	if _, err := loadForToken(path, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "gone.secret") || !strings.Contains(err.Error(), "clients[0].from") {
		t.Errorf("with another mistake: %v, want all of them", err)
	}
}
