package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Service is one of the services of the program sendas, as a process of its own under a user
// of its own. Its methods may be called from any goroutine.
type Service struct {
	binary string
	args   []string
	uid    uint32
	gid    uint32
	groups []uint32                 // besides gid
	log    string                   // the file that stderr goes to
	socket *os.File                 // a listening socket to hand over as systemd does; nil: the service makes its own
	name   string                   // of the socket
	env    []string                 // besides PATH
	ready  string                   // the address whose /healthz answers when it listens
	space  func(func() error) error // runs what starts the process, in a network of its own; nil: as we are

	mu   sync.Mutex // guards cmd and done
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
}

// activate makes the socket that the service will be handed. It stays open between two runs of the
// process, so that connections wait instead of being refused.
func (s *Service) activate(name, path string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o666); err != nil {
		return err
	}
	s.name = name
	s.socket, err = l.File()
	return err
}

// Start starts the process and waits until it serves.
func (s *Service) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil {
		return fmt.Errorf("%s runs already", s.args[0])
	}
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(s.binary, s.args...)
	env := append([]string{"PATH=" + commandPath}, s.env...)
	cmd.Env = env
	if s.socket != nil { // sd_listen_fds(3): the process must be told its own id
		cmd = exec.Command("/bin/sh", append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, s.binary}, s.args...)...)
		cmd.ExtraFiles = []*os.File{s.socket}
		cmd.Env = append(env, "LISTEN_FDS=1", "LISTEN_FDNAMES="+s.name)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: s.uid, Gid: s.gid, Groups: s.groups}}
	start := cmd.Start
	if s.space != nil {
		start = func() error { return s.space(cmd.Start) }
	}
	if err := start(); err != nil {
		return fmt.Errorf("starting sendas %s: %w", s.args[0], err)
	}
	s.cmd, s.done = cmd, make(chan struct{})
	go func(done chan struct{}) { cmd.Wait(); close(done) }(s.done)
	return s.waitReady(ctx)
}

func (s *Service) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return poll(ctx, func() (bool, error) {
		select {
		case <-s.done:
			return false, fmt.Errorf("sendas %s ended at once: %s", s.args[0], s.Log())
		default:
		}
		res, err := http.Get("http://" + s.ready + "/healthz")
		if err != nil {
			return false, nil
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK, nil
	})
}

// Signal sends a signal; it is no error when the process has gone.
func (s *Service) Signal(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return nil
	}
	if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// Reload does what "systemctl reload" does: it checks the configuration as the service's user, has
// the service load it, and returns when that is done, with all that was said.
func (s *Service) Reload(ctx context.Context) (string, error) {
	s.mu.Lock()
	pid := s.cmd.Process.Pid
	s.mu.Unlock()
	cmd := exec.CommandContext(ctx, s.binary, append([]string{"check", "--service", s.args[0], "--reload", strconv.Itoa(pid)}, s.args[1:]...)...)
	cmd.Env = append([]string{"PATH=" + commandPath}, s.env...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: s.uid, Gid: s.gid, Groups: s.groups}}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Stop asks the process to end and waits for it.
func (s *Service) Stop() error { return s.end(syscall.SIGTERM) }

// Kill ends the process at once, whatever it does.
func (s *Service) Kill() error { return s.end(syscall.SIGKILL) }

func (s *Service) end(sig syscall.Signal) error {
	if err := s.Signal(sig); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return nil
	}
	defer func() { s.cmd = nil }()
	select {
	case <-s.done:
		return nil
	case <-time.After(stopTimeout + 15*time.Second):
		s.cmd.Process.Kill()
		<-s.done
		return fmt.Errorf("sendas %s did not end in time", s.args[0])
	}
}

// PID returns the process id, 0 when it does not run.
func (s *Service) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return 0
	}
	return s.cmd.Process.Pid
}

// Log returns all that the service has said, over its restarts.
func (s *Service) Log() string {
	b, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
