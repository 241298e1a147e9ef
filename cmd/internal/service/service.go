// Package service is what both services share: sockets of their own or of systemd's
// (sd_listen_fds(3)), figures and health over HTTP, a configuration that is loaded again at SIGHUP,
// the log, and how to ask a service on this host.
package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/internal/serve"
)

// StopTime is how long a service finishes what is in flight; systemd's TimeoutStopSec
// is longer.
const StopTime = 25 * time.Second

// activated returns systemd's sockets by name. They can be taken from the environment only once.
var activated = sync.OnceValues(activation.ListenersWithNames)

// Kept reports whether systemd holds the socket of that name, so that nobody is refused between two
// processes.
func Kept(name string) bool {
	named, err := activated()
	return err == nil && len(named[name]) > 0 && named[name][0] != nil
}

// Listen opens the socket that the configuration names ("unix:/path" or "inet:host:port"), or
// takes the one of that name from systemd (sd_listen_fds(3)).
func Listen(name string, at serve.Address) (net.Listener, error) {
	named, err := activated()
	if err != nil {
		return nil, exit.Errorf(exit.Software, "", "taking sockets from systemd: %w", err)
	}
	if l := named[name]; len(l) > 0 && l[0] != nil {
		return l[0], nil
	}
	if at.Kind() == serve.KindUnix {
		return listenUnix(at.Path())
	}
	l, err := net.Listen(at.Network())
	if err != nil {
		return nil, exit.Errorf(exit.TempFail, "", "listening on %s: %w", at, err)
	}
	return l, nil
}

// listenUnix makes a unix socket that every local user can connect to: who may, is a matter
// of the folder it lies in, and for credentials of token.peers. A socket file that
// nobody answers on is left over from a process that was killed, and is replaced.
func listenUnix(path string) (net.Listener, error) {
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode()&os.ModeSocket == 0 {
			return nil, exit.Errorf(exit.Config, "name another path, or move the file away", "%s is there and is no socket", path)
		}
		c, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			c.Close()
			return nil, exit.Errorf(exit.TempFail, "stop the other process first", "another process serves %s", path)
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			if err := os.Remove(path); err != nil {
				return nil, exit.Errorf(exit.TempFail, "", "replacing the socket of a dead process: %w", err)
			}
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, exit.Errorf(exit.TempFail, "its folder must exist and belong to the user of this service", "listening: %w", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, exit.Errorf(exit.TempFail, "", "opening the socket to Postfix: %w", err)
	}
	return l, nil
}

// NewRegistry makes the registry of a service, with what every service shows of itself; version is
// the program's.
func NewRegistry(version string) (*prometheus.Registry, prometheus.Gauge, prometheus.Gauge) {
	reg := prometheus.NewRegistry()
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sendas_build_info", Help: "1, labelled by version."}, []string{"version"})
	info.WithLabelValues(version).Set(1)
	ok := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "sendas_config_last_reload_successful", Help: "1 if the last load of the configuration succeeded, else 0.",
	})
	at := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "sendas_config_last_reload_success_timestamp_seconds", Help: "When a configuration was last loaded with success.",
	})
	reg.MustRegister(info, ok, at, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg, ok, at
}

// Reloader loads the configuration again at each SIGHUP: the new one replaces the old as a
// whole, or changes nothing.
type Reloader struct {
	Path string
	Load func(path string) (*config.Site, error)
	Ok   prometheus.Gauge
	At   prometheus.Gauge
	Log  *slog.Logger
	Use  func(*config.Site) error
	Unit string // what systemd calls the service

	// Restart returns the keys of a configuration that take effect at the next start only.
	Restart func(*config.Site) []string

	mu    sync.Mutex // guards state
	state Config
}

// Config tells of the configuration in force, for /status. Its JSON keys are stable.
type Config struct {
	LoadedAt time.Time `json:"loaded_at"` // in UTC
	OK       bool      `json:"ok"`        // false: a newer one was wrong, so this one stayed; the log says what
	// NeedsRestart are keys that were changed since the start, and take effect at the next one only.
	NeedsRestart []string `json:"needs_restart"`
}

// Loaded notes a success, with the keys that need a restart.
func (r *Reloader) Loaded(restart ...string) {
	r.Ok.Set(1)
	r.At.SetToCurrentTime()
	r.note(Config{LoadedAt: time.Now().UTC().Truncate(time.Second), OK: true, NeedsRestart: append([]string{}, restart...)})
	debug.FreeOSMemory() // what loading took is several times what stays, and not needed before the next time
}

// Failed notes that the old configuration stays in force.
func (r *Reloader) Failed() {
	r.Ok.Set(0)
	c := r.Config()
	c.OK = false
	r.note(c)
	debug.FreeOSMemory()
}

func (r *Reloader) note(c Config) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state = c
}

// Site tells of the configuration in force.
func (r *Reloader) Config() Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

// Watch reloads until ctx ends. From its return on, SIGHUP no longer ends the process.
func (r *Reloader) Watch(ctx context.Context) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	go r.run(ctx, hup)
}

// run loads at each signal until ctx ends. One that comes later is still taken, and means nothing:
// by itself it would end a service that finishes what is in flight.
func (r *Reloader) run(ctx context.Context, hup chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		}
		report := loadReport{Began: monotonic()}
		if restart, err := r.reload(); err != nil {
			report.Error = err.Error()
		} else {
			report.Restart = restart
		}
		report.tell(os.Getpid())
	}
}

// reload loads the configuration once, and returns the keys that need a restart.
func (r *Reloader) reload() (restart []string, err error) {
	c, err := r.Load(r.Path)
	if err == nil {
		err = r.Use(c)
	}
	if err != nil {
		r.Failed()
		r.Log.Error("the new configuration is not used, the old one stays in force", "error", err)
		return nil, err
	}
	if r.Restart != nil {
		restart = r.Restart(c)
	}
	r.Loaded(restart...)
	r.Log.Info("configuration loaded", "file", r.Path, "mailboxes", len(c.Mailboxes), "clients", len(c.Clients))
	if len(restart) > 0 {
		r.Log.Warn("some settings take effect when the service is restarted", "keys", strings.Join(restart, ", "), "hint", RestartHint(r.Unit))
	}
	return restart, nil
}

// RestartHint says how a service takes up what it takes up at its start only.
func RestartHint(unit string) string {
	return fmt.Sprintf("systemctl restart %s; a socket that systemd makes is named in its .socket unit as well (ListenStream=)", unit)
}

// Notify tells systemd of the service's state, if it is there (sd_notify(3)), and keeps its
// watchdog quiet until ctx ends.
func Notify(ctx context.Context, log *slog.Logger) {
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.Warn("telling systemd", "error", err)
	}
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		return
	}
	go func() {
		t := time.NewTicker(every / 2)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				daemon.SdNotify(false, daemon.SdNotifyWatchdog)
			}
		}
	}()
}
