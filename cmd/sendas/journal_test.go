package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/internal/logtest"
)

// TestErrorsInJournal: what ends a service is an error in the journal, every line of it.
func TestErrorsInJournal(t *testing.T) {
	f := logtest.Journal(t)
	if code := run([]string{"milter", "--config", filepath.Join(t.TempDir(), "missing.yaml")}, f, f); code != exit.Config {
		t.Errorf("exit code %d", code)
	}
	text := logtest.Content(t, f)
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "<3>") {
			t.Errorf("%q", line)
		}
	}
	if !strings.Contains(text, "<3>sendas: hint: ") {
		t.Errorf("%s", text)
	}
}
