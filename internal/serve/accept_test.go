package serve

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// script is a listener whose Accept returns what it is told to, in turn: an error, or nil for a
// connection. Then it is closed.
type script struct{ results []error }

func (s *script) Accept() (net.Conn, error) {
	if len(s.results) == 0 {
		return nil, &net.OpError{Op: "accept", Err: net.ErrClosed}
	}
	err := s.results[0]
	s.results = s.results[1:]
	if err != nil {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", err)}
	}
	return nil, nil
}

func (s *script) Close() error   { return nil }
func (s *script) Addr() net.Addr { return &net.UnixAddr{Name: "/run/s", Net: "unix"} }

func times(n int, err error) []error {
	list := make([]error, n)
	for i := range list {
		list[i] = err
	}
	return list
}

func TestEach(t *testing.T) {
	flapping := make([]error, 0, 200)
	for range 100 {
		flapping = append(flapping, syscall.EMFILE, nil)
	}
	for _, tc := range []struct {
		name    string
		results []error
		served  int
		waited  time.Duration
		said    int // lines in the log
		want    error
	}{
		{"all is well", times(3, nil), 3, 0, 0, nil},
		{"closed at once", nil, 0, 0, 0, nil},
		{"no descriptors", []error{nil, syscall.EMFILE, nil}, 2, 5 * time.Millisecond, 2, nil},
		{"no descriptors in the system", []error{syscall.ENFILE, nil}, 1, 5 * time.Millisecond, 2, nil},
		{"no memory", []error{syscall.ENOMEM, syscall.ENOBUFS, nil}, 1, 15 * time.Millisecond, 2, nil},
		{"given up by the client", []error{syscall.ECONNABORTED, nil}, 1, 5 * time.Millisecond, 2, nil},
		// 5 ms to 640 ms, then a second each.
		{"a long time without descriptors", append(times(48, syscall.EMFILE), nil), 1, 41275 * time.Millisecond, 2, nil},
		{"an hour without descriptors", append(times(3600, syscall.EMFILE), nil), 1, 3593275 * time.Millisecond, 61, nil},
		{"at the edge", flapping, 100, 500 * time.Millisecond, 2, nil},
		{"of no more use", []error{nil, syscall.EBADF, nil}, 1, 0, 0, syscall.EBADF},
	} {
		synctest.Test(t, func(t *testing.T) {
			var log bytes.Buffer
			served, began := 0, time.Now()
			err := Each(&script{tc.results}, slog.New(slog.NewTextHandler(&log, nil)), func(net.Conn) { served++ })
			if !errors.Is(err, tc.want) || served != tc.served || time.Since(began) != tc.waited {
				t.Errorf("%s: %v, %d served after %v; want %v, %d, %v", tc.name, err, served, time.Since(began), tc.want, tc.served, tc.waited)
			}
			if said := strings.Count(log.String(), "\n"); said != tc.said {
				t.Errorf("%s: %d lines in the log, want %d:\n%.2000s", tc.name, said, tc.said, &log)
			}
		})
	}
}

// TestShortageLog: the line says what is short and what to do.
func TestShortageLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		Each(&script{[]error{syscall.EMFILE, nil}}, slog.New(slog.NewTextHandler(&log, nil)), func(net.Conn) {})
		for _, want := range []string{"level=WARN", "socket=/run/s", "too many open files", "LimitNOFILE=", "connections are accepted again"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("the log lacks %q:\n%s", want, &log)
			}
		}
	})
}

func TestPeerOf(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := PeerOf(c)
	if want := (Peer{int32(os.Getpid()), uint32(os.Geteuid())}); err != nil || got != want {
		t.Errorf("the peer is %+v, %v; want %+v", got, err, want)
	}
	c.Close()
	if _, err := PeerOf(c); err == nil {
		t.Error("a closed connection has a peer")
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, err := PeerOf(a); err == nil {
		t.Error("what is no socket has a peer")
	}
}
