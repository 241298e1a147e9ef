package status

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pseudoTerminal is a pseudoterminal: a program writes to tty, and what arrives is kept (pty(7)).
type pseudoTerminal struct {
	tty *os.File

	mu   sync.Mutex // guards text
	text strings.Builder
}

func newPseudoTerminal(t *testing.T, cols, rows uint16) *pseudoTerminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	x := &pseudoTerminal{}
	if x.tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.tty.Close() })
	x.resize(t, cols, rows)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			if err != nil {
				return
			}
			x.mu.Lock()
			x.text.Write(b[:n])
			x.mu.Unlock()
		}
	}()
	return x
}

func (x *pseudoTerminal) resize(t *testing.T, cols, rows uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(x.tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows}); err != nil {
		t.Fatal(err)
	}
}

// wait waits until something has arrived, and returns all of it.
func (x *pseudoTerminal) wait(t *testing.T, what string) string {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		x.mu.Lock()
		s := x.text.String()
		x.mu.Unlock()
		if strings.Contains(s, what) {
			return s
		}
		if time.Now().After(end) {
			t.Fatalf("no %q arrived: %q", what, s)
		}
	}
}

// TestStatusOnceOnTerminal: without --watch, a terminal gets the same plain text as a file.
func TestStatusOnceOnTerminal(t *testing.T) {
	t.Setenv("TERM", "xterm-256color")
	x := newPseudoTerminal(t, 60, 20)
	c, _ := statusOf(t, "https://login.microsoftonline.com", listensAt(healthy(t)), answering(t, 200, smallStatus))
	c.Stdout = x.tty
	if err := c.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := x.wait(t, "last verdict"); strings.Contains(s, "\x1b") || !strings.Contains(s, "token service  up, version 9.9.9") {
		t.Errorf("%q", s)
	}
}

// TestStatusOnTerminal: the picture comes and goes without a trace, and follows the size of the
// window.
func TestStatusOnTerminal(t *testing.T) {
	t.Setenv("TERM", "xterm-256color")
	t.Setenv("LC_ALL", "de_DE.UTF-8")
	t.Setenv("NO_COLOR", "")
	x := newPseudoTerminal(t, 60, 20)
	c, _ := statusOf(t, "https://login.microsoftonline.com", dead(t), answering(t, 200, smallStatus))
	c.Watch, c.Every, c.Stdout = true, time.Hour, x.tty
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	first := x.wait(t, eraseBelow)
	if !strings.HasPrefix(first, enterScreen) || !strings.Contains(first, "\x1b[1;31mmilter         DOWN at") || !strings.Contains(first, "…") {
		t.Errorf("the first picture: %q", first)
	}
	x.resize(t, 200, 20)
	if err := unix.Kill(os.Getpid(), unix.SIGWINCH); err != nil { // to whoever has the terminal as its own; here it is nobody's
		t.Fatal(err)
	}
	x.wait(t, "-n 50; then: systemctl restart") // on one line, for which the first picture was too narrow
	cancel()
	if err := <-done; err != nil {
		t.Errorf("ended by Ctrl-C: %v", err)
	}
	if all := x.wait(t, leaveScreen); !strings.HasSuffix(all, leaveScreen) || strings.Count(all, toTop) != 2 {
		t.Errorf("all: %q", all)
	}
}

func TestCanvasOf(t *testing.T) {
	x := newPseudoTerminal(t, 100, 30)
	for _, tc := range []struct {
		term, locale, noColor string
		want                  canvas
	}{
		{"xterm", "en_US.UTF-8", "", canvas{100, 30, true, true}}, {"xterm", "C.utf8", "1", canvas{100, 30, true, false}}, {"xterm", "C", "", canvas{100, 30, false, true}},
		{"linux", "en_US.UTF-8", "", canvas{100, 30, false, true}}, {"dumb", "en_US.UTF-8", "", canvas{}}, {"", "en_US.UTF-8", "", canvas{}},
	} {
		t.Setenv("TERM", tc.term)
		t.Setenv("LC_ALL", tc.locale)
		t.Setenv("NO_COLOR", tc.noColor)
		if got := canvasOf(x.tty); got != tc.want {
			t.Errorf("%+v: %+v", tc, got)
		}
	}
	if got := canvasOf(&strings.Builder{}); got != (canvas{}) {
		t.Errorf("a pipe: %+v", got)
	}
}

func TestOverlay(t *testing.T) {
	if got, want := overlay([]string{"one", "two"}), "\x1b[Hone\x1b[K\r\ntwo\x1b[K\x1b[J"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
