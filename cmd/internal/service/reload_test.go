package service

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/internal/logtest"
)

// TestReload has this process load a configuration, and waits as "systemctl reload" does.
func TestReload(t *testing.T) {
	_, ok, at := NewRegistry("devel")
	wrong := errors.New("sendas.yaml:3: token.peers[0]: this host has no user")
	var loads atomic.Int32
	var answer atomic.Pointer[error] // what loading brings
	var restart atomic.Pointer[[]string]
	var log logtest.Buffer
	r := &Reloader{Path: "sendas.yaml", Ok: ok, At: at, Log: slog.New(slog.NewTextHandler(&log, nil)), Unit: "sendas-token",
		Load: func(string) (*config.Site, error) {
			loads.Add(1)
			if err := answer.Load(); err != nil {
				return nil, *err
			}
			return config.Default(), nil
		},
		Use: func(*config.Site) error { return nil }, Restart: func(*config.Site) []string { return *restart.Load() }}
	r.Loaded()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r.Watch(ctx)
	for i, tc := range []struct {
		answer  error
		restart []string
		code    int
		want    string
	}{
		{nil, []string{}, 0, ""},
		{wrong, nil, exit.Config, "the new configuration is not used, the old one stays in force: sendas.yaml:3: token.peers[0]: this host has no user"},
		{nil, []string{"token.listen", "token.http"}, 0, ""},
		{errors.New(strings.Repeat("x", 1<<20)), nil, exit.Config, "the old one stays in force: xxx"},
		{nil, []string{}, 0, ""},
	} {
		answer.Store(nil)
		if tc.answer != nil {
			answer.Store(&tc.answer)
		}
		restart.Store(&tc.restart)
		got, err := Reload(t.Context(), os.Getpid())
		if tc.code != 0 {
			e, _ := errors.AsType[*exit.Error](err)
			if e == nil || e.Code != tc.code || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("reload %d: %.200v, want code %d and %q", i+1, err, tc.code, tc.want)
			}
		} else if err != nil || !slices.Equal(got, tc.restart) {
			t.Errorf("reload %d: %v, %v, want %v", i+1, got, err, tc.restart)
		}
		if state := r.Config(); int(loads.Load()) != i+1 || state.OK != (tc.answer == nil) || tc.answer == nil && !slices.Equal(state.NeedsRestart, tc.restart) {
			t.Errorf("reload %d returned after %d loads, with %+v in force", i+1, loads.Load(), state)
		}
	}
	if s := log.String(); strings.Count(s, `keys="token.listen, token.http"`) != 1 || !strings.Contains(s, "systemctl restart sendas-token") {
		t.Errorf("log:\n%.2000s", s)
	}
}

// TestReloadOfNobody: another program is not ended by a mistyped number, and one that does not
// answer is not waited for without end.
func TestReloadOfNobody(t *testing.T) {
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Wait()
	defer other.Process.Kill()
	_, err := Reload(t.Context(), other.Process.Pid)
	if e, _ := errors.AsType[*exit.Error](err); e == nil || e.Code != exit.Usage || other.Process.Signal(syscall.Signal(0)) != nil {
		t.Errorf("another program: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, ok, at := NewRegistry("devel")
	r := &Reloader{Ok: ok, At: at, Log: slog.New(slog.DiscardHandler)}
	watching, stop := context.WithCancel(t.Context())
	defer stop()
	r.Load = func(string) (*config.Site, error) { <-watching.Done(); return nil, errors.New("stopping") }
	r.Watch(watching) // so that SIGHUP does not end this process
	_, err = Reload(ctx, os.Getpid())
	if e, _ := errors.AsType[*exit.Error](err); e == nil || e.Code != exit.TempFail {
		t.Errorf("a service that does not answer: %v", err)
	}
}
