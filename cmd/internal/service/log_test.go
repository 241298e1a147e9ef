package service

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sendas/sendas/internal/logtest"
)

// TestJournal: lines for the journal have their priority and no time, one line an event.
func TestJournal(t *testing.T) {
	f := logtest.Journal(t)
	log := NewLog(f, true)
	log.Debug("step")
	log.Info("message", "qid", "4cQXyz", "text", "two\nlines")
	log.With("client", "sap").Warn("delivery", "reply", "451 4.7.0 <3>later")
	log.WithGroup("g").Error("broken", "time", "kept")
	want := "<7>level=DEBUG msg=step\n<6>level=INFO msg=message qid=4cQXyz text=\"two\\nlines\"\n<4>level=WARN msg=delivery client=sap reply=\"451 4.7.0 <3>later\"\n<3>level=ERROR msg=broken g.time=kept\n"
	if got := logtest.Content(t, f); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if text := string(ErrorText(f, []byte("sendas: error: no\nsendas: hint: type it\n"))); text != "<3>sendas: error: no\n<3>sendas: hint: type it\n" {
		t.Errorf("an error at the start: %q", text)
	}
	if NewLog(f, false).Enabled(t.Context(), slog.LevelDebug) {
		t.Error("debug lines without --verbose")
	}
}

// TestJournalLinesStayWhole: lines written at one time by many do not mix.
func TestJournalLinesStayWhole(t *testing.T) {
	f := logtest.Journal(t)
	log := NewLog(f, false)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				log.Info("message", "qid", "4cQXyz")
				log.With("mailbox", "scan@contoso.com").Warn("delivery")
			}
		})
	}
	wg.Wait()
	text := logtest.Content(t, f)
	if info, warn := strings.Count(text, "<6>level=INFO msg=message qid=4cQXyz\n"), strings.Count(text, "<4>level=WARN msg=delivery mailbox=scan@contoso.com\n"); info != 400 || warn != 400 || strings.Count(text, "\n") != 800 {
		t.Errorf("%d and %d lines of %d", info, warn, strings.Count(text, "\n"))
	}
}

// TestNoJournal: a process that inherits JOURNAL_STREAM and writes somewhere else writes as
// everywhere.
func TestNoJournal(t *testing.T) {
	logtest.Journal(t)
	other, err := os.Create(filepath.Join(t.TempDir(), "other"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	NewLog(other, false).Info("message")
	if got := logtest.Content(t, other); !strings.HasPrefix(got, "time=") {
		t.Errorf("got %q", got)
	}
	var b bytes.Buffer
	NewLog(&b, false).Info("message")
	if !strings.HasPrefix(b.String(), "time=") {
		t.Errorf("got %q", b.String())
	}
	if text := ErrorText(other, []byte("sendas: error: no\n")); string(text) != "sendas: error: no\n" {
		t.Errorf("got %q", text)
	}
}

// TestJournalHandlerError: what cannot be written is told.
func TestJournalHandlerError(t *testing.T) {
	h := newJournalHandler(broken{}, nil)
	if err := h.Handle(t.Context(), slog.Record{Message: "x"}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, os.ErrClosed }
