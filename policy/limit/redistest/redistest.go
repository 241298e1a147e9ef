// Package redistest starts a real Redis for a test, and cuts the way to it.
package redistest

import (
	"bufio"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Server is a real server on a unix socket.
type Server struct {
	dir  string
	args []string
	cmd  *exec.Cmd
}

func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "sendas-redis") // short: the path of a socket has 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{dir: dir, args: args}
	t.Cleanup(func() { s.Kill(); os.RemoveAll(dir) })
	s.Start(t)
	return s
}

func (s *Server) Socket() string { return filepath.Join(s.dir, "s") }

func (s *Server) URL() string { return "unix://" + s.Socket() }

func (s *Server) Start(t testing.TB) {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal("redis-server is needed for this test: apt-get install redis-server")
	}
	os.Remove(s.Socket())
	s.cmd = exec.Command(path, append([]string{"--port", "0", "--unixsocket", s.Socket(), "--dir", s.dir, "--save", ""}, s.args...)...)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 6000 {
		if s.answers() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("redis-server does not answer within a minute")
}

// Kill ends the server as a crash would.
func (s *Server) Kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// answers reports whether the server answers PING, be it to say that it wants a password.
func (s *Server) answers() bool {
	c, err := net.Dial("unix", s.Socket())
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(c, "PING\r\n")
	line, err := bufio.NewReader(c).ReadString('\n')
	return err == nil && (line == "+PONG\r\n" || strings.HasPrefix(line, "-NOAUTH"))
}

// Link is a connection to a server that can be cut.
type Link struct {
	Path, server string

	mu    sync.Mutex // guards what follows
	down  bool
	conns []net.Conn
}

func NewLink(t *testing.T, server string) *Link {
	t.Helper()
	k := &Link{Path: filepath.Join(filepath.Dir(server), "link"), server: server}
	l, err := net.Listen("unix", k.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); k.Cut(true) })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go k.carry(c)
		}
	}()
	return k
}

func (k *Link) carry(c net.Conn) {
	s, err := net.Dial("unix", k.server)
	k.mu.Lock()
	if err != nil || k.down {
		k.mu.Unlock()
		c.Close()
		if s != nil {
			s.Close()
		}
		return
	}
	k.conns = append(k.conns, c, s)
	k.mu.Unlock()
	go func() { _, _ = io.Copy(s, c); s.Close() }()
	_, _ = io.Copy(c, s)
	c.Close()
}

func (k *Link) Cut(down bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.down = down
	for _, c := range k.conns {
		c.Close()
	}
	k.conns = nil
}
