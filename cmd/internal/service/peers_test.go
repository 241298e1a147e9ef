package service

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestPeers: who is not Postfix is hung up on, and the next one is served.
func TestPeers(t *testing.T) {
	me := uint32(os.Geteuid())
	for _, tc := range []struct {
		name  string
		users []uint32
		want  bool
	}{
		{"Postfix", []uint32{me + 1, me}, true},
		{"another user", []uint32{me + 1}, false},
		{"nobody", nil, false},
	} {
		var log bytes.Buffer
		ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		peers := new(Peers)
		peers.ids.Store(&tc.users)
		l := &peerListener{Listener: ln, peers: peers, log: slog.New(slog.NewTextHandler(&log, nil))}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				io.WriteString(c, "served")
				c.Close()
			}
		}()
		for range 2 {
			c, err := net.Dial("unix", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(2 * time.Minute))
			got, err := io.ReadAll(c)
			if served := string(got) == "served"; served != tc.want || err != nil {
				t.Errorf("%s: served %v, %v, want %v", tc.name, served, err, tc.want)
			}
			c.Close()
		}
		ln.Close()
		<-done
		if told := strings.Count(log.String(), "a connection was refused"); (told == 2) == tc.want {
			t.Errorf("%s: log\n%s", tc.name, &log)
		}
	}
}
