package status

import (
	"context"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sendas/sendas/cmd/internal/finding"
)

// WatchEvery is how often --watch looks.
const WatchEvery = 2 * time.Second

// What a terminal is told (ECMA-48, and DEC's private modes as xterm documents them). The picture
// has a screen of its own, so that what stood there before is there again afterwards; the cursor is
// not shown, or it would jump about.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	toTop       = "\x1b[H"
	eraseLine   = "\x1b[K"
	eraseBelow  = "\x1b[J"
)

// watching looks again and again, until ctx ends: on a terminal the picture is drawn over the old
// one, elsewhere the same text as without --watch is printed each time.
func (s *Command) watching(ctx context.Context) (err error) {
	var resized chan os.Signal
	if canvasOf(s.Stdout).cols > 0 && !s.Json {
		if err := s.print(enterScreen); err != nil {
			return err
		}
		defer func() {
			if e := s.print(leaveScreen); err == nil {
				err = e
			}
		}()
		resized = make(chan os.Signal, 1)
		signal.Notify(resized, unix.SIGWINCH)
		defer signal.Stop(resized)
	}
	t := time.NewTicker(s.Every)
	defer t.Stop()
	for {
		v := s.look(ctx)
		if ctx.Err() != nil {
			return nil // what failed then, failed by Ctrl-C
		}
		if err := s.show(ctx, v, t.C, resized); err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// show prints the view until it is time for another one, again when the window gets another size.
func (s *Command) show(ctx context.Context, v *view, next <-chan time.Time, resized <-chan os.Signal) error {
	for {
		if err := s.print(s.frame(v)); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-next:
			return nil
		case <-resized:
		}
	}
}

// frame is what --watch prints each time.
func (s *Command) frame(v *view) string {
	if c := canvasOf(s.Stdout); c.cols > 0 && !s.Json {
		return overlay(v.draw(c))
	}
	return v.all(s.Json) + "\n"
}

// overlay lays lines over the screen: each is written over the old one and its rest erased, so
// nothing flickers. There is no line break after the last one: in the last row it would scroll.
func overlay(lines []string) string {
	return toTop + strings.Join(lines, eraseLine+"\r\n") + eraseLine + eraseBelow
}

// canvasOf returns what can be drawn there; one without columns if it is no terminal that can move
// its cursor.
func canvasOf(w io.Writer) canvas {
	cols, rows := finding.TerminalSize(w)
	term := os.Getenv("TERM")
	if cols == 0 || term == "" || term == "dumb" {
		return canvas{}
	}
	return canvas{cols: cols, rows: rows, blocks: utf8Locale() && term != "linux", color: os.Getenv("NO_COLOR") == ""}
}

// utf8Locale reports whether the locale has more than ASCII (locale(7): the first of these that is
// set decides).
func utf8Locale() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := os.Getenv(name); v != "" {
			v = strings.ToLower(v)
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}
