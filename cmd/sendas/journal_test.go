package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendas/sendas/internal/exit"
	"golang.org/x/sys/unix"
)

// TestErrorsInJournal: what ends a service is an error in the journal, every line of it.
func TestErrorsInJournal(t *testing.T) {
	f := fakeJournal(t)
	if code := run([]string{"milter", "--config", filepath.Join(t.TempDir(), "missing.yaml")}, f, f); code != exit.Config {
		t.Errorf("exit code %d", code)
	}
	text := readBack(t, f)
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "<3>") {
			t.Errorf("%q", line)
		}
	}
	if !strings.Contains(text, "<3>sendas: hint: ") {
		t.Errorf("%s", text)
	}
}

// fakeJournal is a file that JOURNAL_STREAM names.
func fakeJournal(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "journal"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", st.Dev, st.Ino))
	return f
}

func readBack(t *testing.T, f *os.File) string {
	t.Helper()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
