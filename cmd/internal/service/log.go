package service

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// NewLog makes the log of a service: one line an event on stderr. Lines for the journal carry no
// time, since it has a clock of its own, but the priority that "journalctl -p warning" and rsyslog
// sort by (sd-daemon(3)).
func NewLog(w io.Writer, verbose bool) *slog.Logger {
	o := &slog.HandlerOptions{Level: slog.LevelInfo}
	if verbose {
		o.Level = slog.LevelDebug
	}
	if !isJournal(w) {
		return slog.New(slog.NewTextHandler(w, o))
	}
	o.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey && len(groups) == 0 {
			return slog.Attr{}
		}
		return a
	}
	return slog.New(newJournalHandler(w, o))
}

// isJournal reports whether what is written there goes to systemd's journal: JOURNAL_STREAM names
// the device and the inode of stdout or stderr (systemd.exec(5)). A process that inherits the
// variable may write somewhere else.
func isJournal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return false
	}
	return os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// The priorities of syslog(3) as sd-daemon(3) writes them.
const (
	prefixErr     = "<3>"
	prefixWarning = "<4>"
	prefixInfo    = "<6>"
	prefixDebug   = "<7>"
)

// priority returns the prefix of a level.
func priority(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return prefixErr
	case l >= slog.LevelWarn:
		return prefixWarning
	case l >= slog.LevelInfo:
		return prefixInfo
	}
	return prefixDebug
}

// journalHandler puts the priority before each line.
type journalHandler struct {
	slog.Handler // writes to out's buffer
	out          *journalLine
}

// journalLine is the line in the making; all handlers that come from one share it.
type journalLine struct {
	mu  sync.Mutex // guards buf, and keeps lines whole
	buf bytes.Buffer
	w   io.Writer
}

func newJournalHandler(w io.Writer, o *slog.HandlerOptions) *journalHandler {
	out := &journalLine{w: w}
	return &journalHandler{Handler: slog.NewTextHandler(&out.buf, o), out: out}
}

// Handle writes one line, at once.
func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	h.out.buf.Reset()
	h.out.buf.WriteString(priority(r.Level))
	if err := h.Handler.Handle(ctx, r); err != nil {
		return err
	}
	_, err := h.out.w.Write(h.out.buf.Bytes())
	return err
}

// WithAttrs keeps the prefix, which the embedded method would lose.
func (h *journalHandler) WithAttrs(list []slog.Attr) slog.Handler {
	return &journalHandler{h.Handler.WithAttrs(list), h.out}
}

// WithGroup is like WithAttrs.
func (h *journalHandler) WithGroup(name string) slog.Handler {
	return &journalHandler{h.Handler.WithGroup(name), h.out}
}

// ErrorText gives the lines of an error that ends the program their priority, where the journal
// reads them.
func ErrorText(w io.Writer, text []byte) []byte {
	if !isJournal(w) {
		return text
	}
	var b []byte
	for line := range bytes.Lines(text) {
		b = append(append(b, prefixErr...), line...)
	}
	return b
}
