package service

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sendas/sendas/internal/logtest"
)

// TestOwnHost: a name of the internet that points here gets nothing.
func TestOwnHost(t *testing.T) {
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		listen, host string
		want         bool
	}{
		{"127.0.0.1:9726", "127.0.0.1:9726", true}, {"127.0.0.1:9726", "localhost:8080", true}, {"127.0.0.1:9726", "LOCALHOST", true}, {"127.0.0.1:9726", "[::1]:9726", true},
		{"127.0.0.1:9726", "127.8.8.8", true}, {"127.0.0.1:9726", "evil.example", false}, {"127.0.0.1:9726", "evil.example:9726", false}, {"127.0.0.1:9726", "", true},
		{"127.0.0.1:9726", "10.0.0.9:9726", false}, {"127.0.0.1:9726", "127.0.0.1.evil.example", false}, {"127.0.0.1:9726", "localhost.evil.example", false},
		{"relay.contoso.com:9726", "relay.contoso.com:9726", true}, {"relay.contoso.com:9726", "Relay.Contoso.com", true}, {"10.0.0.9:9726", "10.0.0.9:9726", true},
		{"0.0.0.0:9726", "10.0.0.9:9726", true}, {":9726", "[fd00::9]:9726", true}, {"[::]:9726", "[fd00::9]", true}, {"0.0.0.0:9726", name + ":9726", true}, {"0.0.0.0:9726", "evil.example", false},
		{"127.0.0.1:9726", name, true}, {"10.0.0.9:9726", name + ":9726", true}, {"10.0.0.9:9726", "evil.example", false}, {"10.0.0.9:9726", name + ".evil.example", false},
	} {
		if got := isOwnHost(tc.listen, tc.host); got != tc.want {
			t.Errorf("listening at %s, asked as %q: %v", tc.listen, tc.host, got)
		}
	}
}

func TestAliases(t *testing.T) {
	const hosts = "127.0.0.1\tlocalhost\n127.0.1.1 relay.contoso.com relay # this one\n10.0.0.9 figures.contoso.com RELAY\n10.0.0.8 other.contoso.com other # relay\n\nrelay\n"
	const want = "relay.contoso.com relay figures.contoso.com RELAY"
	if got := strings.Join(aliases(hosts, "relay"), " "); got != want {
		t.Errorf("aliases %q, want %q", got, want)
	}
	if got := aliases(hosts, "nobody"); len(got) > 0 {
		t.Errorf("aliases of a host that is not there: %q", got)
	}
}

// get asks for a page by a name of this host, and returns the answer.
func get(t *testing.T, addr, host, path string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	res, err := NewLocalClient().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func TestHTTP(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	addr := freePort(t)
	reg, ok, _ := NewRegistry("devel")
	ok.Set(1)
	trouble := errors.New("credential \"relay-app\" has no token")
	more := map[string]http.Handler{"GET /status": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "erp@contoso.com") })}
	if err := ServeHTTP(t.Context(), addr, reg, func() error { return trouble }, more, log); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		path, host string
		status     int
		has        string
	}{
		{"/healthz", "", 200, "ok"}, {"/readyz", "", 503, `credential "relay-app" has no token`}, {"/metrics", "", 200, "sendas_config_last_reload_successful 1"},
		{"/metrics", "localhost", 200, "go_goroutines"}, {"/", "", 404, ""}, {"/status", "", 200, "erp@contoso.com"},
		// A name of the internet that points here gets nothing but that somebody is there.
		{"/metrics", "evil.example", 421, "http://" + addr + "/"}, {"/readyz", "evil.example:9726", 421, "not called"}, {"/status", "evil.example", 421, "not called"},
		{"/healthz", "evil.example", 200, "ok"},
	} {
		status, body := get(t, addr, tc.host, tc.path)
		if status != tc.status || !strings.Contains(body, tc.has) || status == 421 && strings.Contains(body, "contoso") {
			t.Errorf("%s as %q: %d %.200s, want %d and %q", tc.path, tc.host, status, body, tc.status, tc.has)
		}
	}
	if err := ServeHTTP(t.Context(), addr, reg, nil, nil, log); err == nil {
		t.Error("an address in use gave no error")
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestInTurn: what costs much is made for one at a time. The next one waits, and not for ever.
func TestInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at, most := 0, 0
		goOn := make(chan struct{})
		h := inTurn(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			at++
			most = max(most, at)
			<-goOn
			at--
		}))
		answers := make(chan int, 9)
		ask := func(ctx context.Context) {
			w := &recorder{}
			h.ServeHTTP(w, (&http.Request{}).WithContext(ctx))
			answers <- w.status
		}
		gone, leave := context.WithCancel(t.Context())
		go ask(t.Context())
		synctest.Wait()
		go ask(t.Context())
		go ask(gone)
		synctest.Wait()
		leave()
		if got := <-answers; got != 0 {
			t.Errorf("who has gone was answered %d", got)
		}
		began := time.Now()
		goOn <- struct{}{}
		<-answers
		goOn <- struct{}{}
		if got := <-answers; got != 0 || time.Since(began) != 0 {
			t.Errorf("the second one: %d after %v", got, time.Since(began))
		}
		go ask(t.Context())
		synctest.Wait()
		go ask(t.Context())
		if got := <-answers; got != http.StatusServiceUnavailable || time.Since(began) != turnTime {
			t.Errorf("who waits too long: %d after %v", got, time.Since(began))
		}
		goOn <- struct{}{}
		if <-answers; most != 1 {
			t.Errorf("%d at a time", most)
		}
	})
}

// recorder notes the status that is written to it, if any.
type recorder struct{ status int }

func (r *recorder) Header() http.Header         { return http.Header{} }
func (r *recorder) Write(p []byte) (int, error) { return len(p), nil }
func (r *recorder) WriteHeader(status int)      { r.status = status }

// hall is a server with a doorkeeper. Its page /slow is answered when the test says so.
type hall struct {
	t    *testing.T
	addr string
	door *doorkeeper
	log  *logtest.Buffer
	slow chan struct{} // one answer each
	in   chan struct{} // one that asks for /slow each
}

func startHall(t *testing.T, most int) *hall {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hall{t: t, addr: ln.Addr().String(), log: &logtest.Buffer{}, slow: make(chan struct{}), in: make(chan struct{}, 100)}
	h.door = newDoorkeeper(ln, most, slog.New(slog.NewTextHandler(h.log, nil)))
	d := h.door
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "quick") })
	mux.HandleFunc("/slow", func(w http.ResponseWriter, _ *http.Request) {
		h.in <- struct{}{}
		<-h.slow
		io.WriteString(w, "slow")
	})
	srv := &http.Server{Handler: d.attend(mux), ConnContext: d.context, ConnState: d.state}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(d) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("the server ended with %v", err)
		}
	})
	return h
}

// settle waits until n guests are being answered and no more: a client has its answer a moment before
// the server knows.
func (h *hall) settle(n int) {
	h.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		h.door.mu.Lock()
		asking := 0
		for _, v := range h.door.visitors {
			if v.asking {
				asking++
			}
		}
		h.door.mu.Unlock()
		if asking == n {
			return
		}
		if time.Now().After(end) {
			h.t.Fatalf("%d are being answered, want %d", asking, n)
		}
	}
}

// A guest is a client's side of a connection.
type guest struct {
	net.Conn
	r *bufio.Reader
}

func (h *hall) dial() *guest {
	h.t.Helper()
	c, err := net.DialTimeout("tcp", h.addr, 10*time.Second)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return &guest{c, bufio.NewReader(c)}
}

func (g *guest) ask(path string) { fmt.Fprintf(g, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path) }

func (g *guest) answer() string {
	res, err := http.ReadResponse(g.r, nil)
	if err != nil {
		return "none"
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// TestDoorkeeper: who asks finds a place, at the expense of who does not, and whoever is being
// answered keeps it.
func TestDoorkeeper(t *testing.T) {
	const most = 3
	h := startHall(t, most)
	first := h.dial()
	first.ask("/")
	if got := first.answer(); got != "quick" {
		t.Fatalf("the first one: %s", got)
	}
	h.settle(0)
	slow := h.dial()
	slow.ask("/slow")
	<-h.in
	dribbling := h.dial() // asks, and never says what
	io.WriteString(dribbling, "GET / HT")
	for range 5 * most {
		g := h.dial()
		g.ask("/")
		if got := g.answer(); got != "quick" {
			t.Fatalf("one more: %s", got)
		}
		h.settle(1)
	}
	for name, g := range map[string]*guest{"the first one": first, "the dribbling one": dribbling} {
		g.ask("/")
		if got := g.answer(); got != "none" {
			t.Errorf("%s is still there: %s", name, got)
		}
	}
	h.slow <- struct{}{}
	if got := slow.answer(); got != "slow" {
		t.Errorf("the slow one: %s", got)
	}
	if !strings.Contains(h.log.String(), "too many connections by HTTP") || !strings.Contains(h.log.String(), "firewall") {
		t.Errorf("the log does not say so:\n%s", h.log)
	}
}

// TestDoorkeeperWaits: while all are being answered, the next one waits for one of them.
func TestDoorkeeperWaits(t *testing.T) {
	const most = 3
	h := startHall(t, most)
	var guests []*guest
	for range most {
		g := h.dial()
		g.ask("/slow")
		<-h.in
		guests = append(guests, g)
	}
	late := h.dial()
	late.ask("/slow")
	for range most + 1 {
		h.slow <- struct{}{}
	}
	for i, g := range append(guests, late) {
		if got := g.answer(); got != "slow" {
			t.Errorf("guest %d: %s", i, got)
		}
	}
	if n := len(h.in); n != 1 {
		t.Errorf("%d asked behind the first %d", n, most)
	}
}

func TestPlaces(t *testing.T) {
	if n := places(); n < 1 || n > maxPlaces {
		t.Errorf("%d places", n)
	}
}

// TestDoorIsShut: a guest who has been let in when nobody accepts any more is sent away, and the
// doorkeeper ends.
func TestDoorIsShut(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := newDoorkeeper(ln, 1, slog.New(slog.DiscardHandler))
	guest, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		d.mu.Lock()
		n := len(d.visitors)
		d.mu.Unlock()
		if n == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the guest was not let in within a minute")
		}
	}
	d.Close()
	d.Close() // as the server does, for each of its listeners, and the end of its context
	select {
	case <-d.done:
	case <-time.After(time.Minute):
		t.Fatal("the doorkeeper still holds the door after a minute")
	}
	guest.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := guest.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the guest reads %v, want that the connection has ended", err)
	}
}
