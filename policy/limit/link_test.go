package limit

import (
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
)

// link is a connection to a server that can be cut.
type link struct {
	path, server string

	mu    sync.Mutex // guards what follows
	down  bool
	conns []net.Conn
}

func newLink(t *testing.T, server string) *link {
	t.Helper()
	k := &link{path: filepath.Join(filepath.Dir(server), "link"), server: server}
	l, err := net.Listen("unix", k.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); k.cut(true) })
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

func (k *link) carry(c net.Conn) {
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

func (k *link) cut(down bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.down = down
	for _, c := range k.conns {
		c.Close()
	}
	k.conns = nil
}
