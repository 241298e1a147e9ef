package serve

import (
	"errors"
	"log/slog"
	"net"
	"slices"
	"syscall"
	"time"
)

// passing are the errors of accept(2) that go by themselves: what is short comes back when
// connections end, and what had happened to one connection before it was accepted is not the
// listener's (accept(2), "Error handling").
var passing = []syscall.Errno{
	syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED,
	syscall.ENETDOWN, syscall.EPROTO, syscall.EHOSTDOWN, syscall.EHOSTUNREACH, syscall.ENETUNREACH,
}

const (
	minWait = 5 * time.Millisecond
	maxWait = time.Second
	// quiet is how long nothing more is logged of a shortage: a process at the edge of it has one
	// after the other.
	quiet = time.Minute
)

// Each accepts the connections of a listener and gives each to serve, which must return at once: a
// connection has a goroutine of its own. Each returns nil when the listener is closed, up to a
// second later in a shortage, and an error where the listener is of no more use. A shortage is
// waited out and logged, once and not for each try.
func Each(ln net.Listener, log *slog.Logger, serve func(net.Conn)) error {
	s := shortage{addr: ln.Addr(), log: log}
	for {
		c, err := ln.Accept()
		switch {
		case err == nil:
			s.over()
			serve(c)
		case errors.Is(err, net.ErrClosed):
			return nil
		case !slices.ContainsFunc(passing, func(e syscall.Errno) bool { return errors.Is(err, e) }):
			return err
		default:
			s.wait(err)
		}
	}
}

// A shortage keeps the accept loop from spinning and from filling the log.
type shortage struct {
	addr  net.Addr
	log   *slog.Logger
	pause time.Duration // the last wait; 0: the last connection was accepted
	told  time.Time     // when it was last logged
	open  bool          // it was logged, and its end was not
}

// wait lets some time pass, twice as much at each try.
func (s *shortage) wait(err error) {
	if now := time.Now(); s.told.IsZero() || now.Sub(s.told) >= quiet {
		attrs := []any{"socket", s.addr.String(), "error", err}
		if errors.Is(err, syscall.EMFILE) {
			attrs = append(attrs, "hint", "raise LimitNOFILE= in the unit of this service (systemctl edit)")
		}
		s.log.Warn("no connection can be accepted for now; those that come wait", attrs...)
		s.told, s.open = now, true
	}
	s.pause = min(max(2*s.pause, minWait), maxWait)
	time.Sleep(s.pause)
}

// over ends the shortage, if there was one.
func (s *shortage) over() {
	s.pause = 0
	if s.open {
		s.open = false
		s.log.Info("connections are accepted again", "socket", s.addr.String())
	}
}
