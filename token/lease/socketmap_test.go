package lease

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sendas/sendas/internal/logtest"
	"github.com/sendas/sendas/internal/serve"
)

// serveSocketmap starts a server with an "echo" map and a "hang" map, and returns how to connect to
// it.
func serveSocketmap(t *testing.T, peers []uint32) (dial func() net.Conn, logged *logtest.Buffer, stop func() error) {
	t.Helper()
	logged = &logtest.Buffer{}
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &SocketmapServer{Peers: peers, Log: slog.New(slog.NewTextHandler(logged, nil)), Maps: map[string]Map{
		"echo": func(_ context.Context, c Caller, key string) Result {
			if c.PID != int32(os.Getpid()) {
				t.Errorf("the caller is process %d, want %d", c.PID, os.Getpid())
			}
			return Result{OK, key}
		},
		"none":  func(context.Context, Caller, string) Result { return Result{Status: NotFound} },
		"later": func(context.Context, Caller, string) Result { return Result{Temp, "not now"} },
		"hang":  func(ctx context.Context, _ Caller, _ string) Result { <-ctx.Done(); return Result{OK, "too late"} },
	}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	stopped := sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { stopped() })
	return func() net.Conn {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(2 * time.Minute))
		return c
	}, logged, stopped
}

var me = []uint32{uint32(os.Getuid())}

func TestSocketmapWire(t *testing.T) {
	dial, _, _ := serveSocketmap(t, me)
	// The forms of socketmap_table(5).
	for _, tc := range []struct{ query, want string }{
		{"10:echo a@b.c,", "8:OK a@b.c,"},
		{"5:echo ,", "3:OK ,"},
		{"4:echo,", "3:OK ,"},
		{"6:none x,", "9:NOTFOUND ,"},
		{"7:later x,", "12:TEMP not now,"},
		{"12:echo two x y,", "10:OK two x y,"},
		{"5:none,5:echo ,", ""}, // the length is wrong: what comes before is not answered either
		{"6:none x,6:echo y,", "9:NOTFOUND ,4:OK y,"},
		{"7:nomap x,", "64:TEMP sendas has no such map; see the socketmap: lines in main.cf,"},
	} {
		c := dial()
		io.WriteString(c, tc.query)
		c.(*net.UnixConn).CloseWrite()
		got, err := io.ReadAll(c)
		if err != nil && tc.want != "" {
			t.Errorf("query %q: %v", tc.query, err)
		}
		if string(got) != tc.want {
			t.Errorf("query %q: reply %q, want %q", tc.query, got, tc.want)
		}
	}
}

// TestSocketmapBadPeers sends what no Postfix sends: the connection is closed with one log line,
// and a well-behaved peer notices nothing.
func TestSocketmapBadPeers(t *testing.T) {
	for _, tc := range []struct{ name, bytes, log string }{
		{"no length", ":echo x,", `is no part of a netstring's length`},
		{"a letter", "x:echo x,", `is no part of a netstring's length`},
		{"HTTP", "GET / HTTP/1.1\r\n\r\n", `is no part of a netstring's length`},
		{"leading zero", "07:echo x,", `is no part of a netstring's length`},
		{"minus", "-1:x,", `is no part of a netstring's length`},
		{"no comma", "6:echo x;", `a netstring ends with`},
		{"too long", "10001:" + strings.Repeat("x", 100), "a query of more than 10000 bytes"},
		{"absurdly long", "99999999999999999999999999:", "a query of more than 10000 bytes"},
		{"cut short", "100:echo x", "the query is cut short"},
		{"cut in the length", "10", "the query is cut short"},
	} {
		dial, logged, _ := serveSocketmap(t, me)
		good := dial()
		r := bufio.NewReader(good)
		ask := func() {
			t.Helper()
			io.WriteString(good, "6:echo y,")
			if got, err := readNetstring(r, maxReply); got != "OK y" {
				t.Errorf("%s: the other peer got %q, %v", tc.name, got, err)
			}
		}
		ask()
		bad := dial()
		io.WriteString(bad, tc.bytes)
		bad.(*net.UnixConn).CloseWrite()
		if got, _ := io.ReadAll(bad); len(got) > 0 {
			t.Errorf("%s: answered %q", tc.name, got)
		}
		ask()
		if n := strings.Count(logged.String(), "\n"); n != 1 || !strings.Contains(logged.String(), tc.log) {
			t.Errorf("%s: %d log lines, want one with %q:\n%s", tc.name, n, tc.log, logged)
		}
	}
}

func TestSocketmapStranger(t *testing.T) {
	dial, logged, _ := serveSocketmap(t, []uint32{uint32(os.Getuid()) + 1})
	c := dial()
	io.WriteString(c, "6:echo x,")
	if got, _ := io.ReadAll(c); len(got) > 0 {
		t.Errorf("a stranger was answered %q", got)
	}
	if !strings.Contains(logged.String(), "may not ask for credentials") {
		t.Errorf("log: %s", logged)
	}
}

// TestSocketmapFlood: strangers fill neither the log nor the places.
func TestSocketmapFlood(t *testing.T) {
	dial, logged, _ := serveSocketmap(t, []uint32{uint32(os.Getuid()) + 1})
	for range 3000 {
		c := dial()
		c.Read(make([]byte, 1))
		c.Close()
	}
	if n := strings.Count(logged.String(), "\n"); n == 0 || n > 30 || strings.Contains(logged.String(), "too many") {
		t.Errorf("%d log lines for 3000 refusals:\n%.1000s", n, logged)
	}
}

// TestSocketmapStop ends the server while a look-up waits: it stays unanswered, so that Postfix
// asks again elsewhere.
func TestSocketmapStop(t *testing.T) {
	dial, _, stop := serveSocketmap(t, me)
	c, other := dial(), dial()
	io.WriteString(c, "6:hang x,")
	io.WriteString(other, "6:echo x,")
	if got, err := readNetstring(bufio.NewReader(other), maxReply); got != "OK x" {
		t.Fatalf("got %q, %v", got, err)
	}
	if err := stop(); err != nil {
		t.Errorf("Serve: %v", err)
	}
	if got, _ := io.ReadAll(c); len(got) > 0 {
		t.Errorf("the waiting look-up was answered %q", got)
	}
}

func FuzzReadNetstring(f *testing.F) {
	for _, s := range []string{"6:echo x,", "0:,", "", "10001:x", ":", "1:x", "00:,", "6:echo x,6:echo y,"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		q, err := readNetstring(bufio.NewReader(bytes.NewReader(in)), maxQuery)
		if err != nil {
			return
		}
		if len(q) > maxQuery {
			t.Fatalf("a query of %d bytes", len(q))
		}
		var out bytes.Buffer
		if err := writeResult(&out, Result{OK, q}); err != nil {
			t.Fatal(err)
		}
		back, err := readNetstring(bufio.NewReader(&out), maxReply)
		if err != nil || back != "OK "+q {
			t.Fatalf("%q came back as %q, %v", q, back, err)
		}
	})
}

// TestAdminMaps: root, and the user of the service, may ask what is for the administrator without
// being a peer, and nothing else; a peer may ask all but that.
func TestAdminMaps(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	echo := func(_ context.Context, _ Caller, key string) Result { return Result{OK, key} }
	logged := &logtest.Buffer{}
	s := &SocketmapServer{Log: slog.New(slog.NewTextHandler(logged, nil)), Peers: []uint32{1}, Maps: map[string]Map{"lease": echo}, Admin: map[string]Map{"retry": echo}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	defer func() { cancel(); <-done }()
	for _, tc := range []struct {
		name string
		want Result
		err  error
	}{
		{"retry", Result{OK, "a b"}, nil}, {"lease", Result{}, io.EOF}, {"none", Result{}, io.EOF},
	} {
		c, err := net.Dial("unix", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(time.Minute))
		if got, err := Ask(c, tc.name, "a b"); got != tc.want || err != tc.err {
			t.Errorf("%s: %v, %v, want %v, %v", tc.name, got, err, tc.want, tc.err)
		}
		c.Close()
	}
	if n := strings.Count(logged.String(), "may not ask for credentials"); n == 0 {
		t.Errorf("nothing is said of the others:\n%s", logged)
	}
	for _, tc := range []struct {
		uid   uint32
		query string
		want  Result
		ok    bool
	}{
		{1, "lease a", Result{OK, "a"}, true}, {1, "retry a", Result{Temp, "sendas has no such map; see the socketmap: lines in main.cf"}, true},
		{0, "retry a", Result{OK, "a"}, true}, {0, "lease a", Result{}, false}, {4711, "retry a", Result{}, false},
	} {
		if got, ok := s.answer(t.Context(), Caller{UID: tc.uid}, tc.query); got != tc.want || ok != tc.ok {
			t.Errorf("user %d, %q: %v, %v", tc.uid, tc.query, got, ok)
		}
	}
}

// TestCallerWithoutNumber: each connection of a process in another PID namespace is a caller of its
// own, and known as one that may come again as another.
func TestCallerWithoutNumber(t *testing.T) {
	s := &SocketmapServer{}
	if got, want := s.name(serve.Peer{PID: 7, UID: 107}), (Caller{PID: 7, UID: 107}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	a, b := s.name(serve.Peer{UID: 107}), s.name(serve.Peer{UID: 107})
	if a.PID >= 0 || b.PID >= 0 || a.PID == b.PID || !a.Nameless || !b.Nameless || a.UID != 107 {
		t.Errorf("%+v and %+v, want two nameless ones", a, b)
	}
}
