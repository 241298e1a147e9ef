package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim"
	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/smtp"
)

// relays is two hosts that share their ledger in one Redis, each of which reaches it by a cable of
// its own.
type relays struct {
	t      *testing.T
	a, b   *Site
	redis  *redisServer
	cables [2]*cable
}

// Of the limits in this storm, each host may use (8 − 3) ÷ 2 = 2 messages a minute of 2 s on its
// own.
const (
	relayLimit  = 8
	relayMinute = 2 * time.Second
	relayBoxes  = 6
)

// aloneAfter is how long a host sends nothing after it has lost the store: see limit.Shared.
const aloneAfter = 10*time.Second + relayMinute + time.Second

// TestStormOfTwoRelays: two hosts empty their queues through the same mailboxes while the Redis
// between them is killed, loses its data, or cannot be reached, and while the token service of one
// host is killed again and again. Every message arrives once, and in no period does a mailbox send
// more than it may, though the hosts do not know of each other.
func TestStormOfTwoRelays(t *testing.T) {
	const n = 300
	t.Parallel() // most of it is waiting
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	r := startRelays(ctx, t)
	var halves [2][]Mail
	for i := range n {
		halves[i%2] = append(halves[i%2], relayMail(i))
	}
	var wg sync.WaitGroup
	for i, s := range []*Site{r.a, r.b} {
		wg.Go(func() {
			if err := submit(ctx, s.Postfix, halves[i]); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	stop := make(chan struct{})
	wg.Go(func() { r.killToken(ctx, stop) })
	alone := r.troubles(ctx)
	close(stop)
	wg.Wait()
	if t.Failed() {
		return
	}
	left := n - r.a.Accepted()
	t.Logf("%d messages left without the store; %d are to be sent after the storm", alone, left)
	if left == 0 {
		t.Error("the storm met an empty queue")
	}
	r.finish(ctx, n)
}

// relayMail returns the n-th message; the mailboxes take turns.
func relayMail(n int) Mail {
	from := relayBox(n / 2 % relayBoxes)
	return Mail{XClient: monitoring, From: from, To: []string{fmt.Sprintf("customer%d@fabrikam.com", n)},
		Data: message("From: <"+from+">", "Message-ID: <"+stormID(n)+">", storyDate)}
}

func relayBox(i int) string { return fmt.Sprintf("box%d@contoso.com", i) }

// troubles is one round of them. It returns how many messages left while no host could reach the
// store.
func (r *relays) troubles(ctx context.Context) (alone int) {
	wait := func(d time.Duration) {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
	wait(2 * time.Second)
	r.redis.kill() // it comes back with all that it knew
	wait(time.Second)
	r.redis.start(ctx, r.t)
	wait(2 * time.Second)
	r.cables[1].cut()
	wait(2 * time.Second)
	r.cables[1].mend()
	wait(2 * time.Second)
	r.redis.kill()
	r.redis.wipe() // and with nothing: each host tells it anew what it has sent
	r.redis.start(ctx, r.t)
	wait(3 * time.Second)
	r.redis.kill() // for so long that a host goes on with its share
	wait(2 * time.Second)
	before := r.a.Accepted() // what was under way has arrived
	if err := r.a.WaitMessages(ctx, before+5); err != nil {
		r.t.Error(err)
	}
	wait(2 * relayMinute)
	alone = r.a.Accepted() - before
	r.redis.start(ctx, r.t)
	wait(2 * time.Second)
	r.cables[0].cut() // one host alone, while the other has the store
	wait(aloneAfter + 2*relayMinute)
	r.cables[0].mend()
	return alone
}

// killToken kills the token service of the second host every few seconds.
func (r *relays) killToken(ctx context.Context, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(2500 * time.Millisecond):
		}
		if err := errors.Join(r.b.Token.Kill(), r.b.Token.Start(ctx)); err != nil {
			r.t.Error(err)
			return
		}
	}
}

// finish waits until all n messages have left, and looks at every one of them.
func (r *relays) finish(ctx context.Context, n int) {
	for _, s := range []*Site{r.a, r.b} {
		if q, err := s.Postfix.WaitQueue(ctx, func(q []QueueEntry) bool { return len(q) == 0 }); err != nil {
			r.t.Fatalf("%d messages are left: %v", len(q), err)
		}
		if log, _ := s.Postfix.Log(); strings.Contains(log, "status=bounced") {
			r.t.Error("a message was returned")
		}
		if log := s.Token.Log(); !strings.Contains(log, "the shared ledger is away") || !strings.Contains(log, "the shared ledger is in use") {
			r.t.Error("a token service did not notice that the store came and went")
		}
	}
	got := fates(r.a.Exosim.Messages())
	for i := range n {
		if f := got[stormID(i)]; f.told != 1 {
			r.t.Errorf("%s arrived %d times", stormID(i), f.told)
		}
	}
	if all := r.a.Accepted(); all != n {
		r.t.Errorf("%d messages arrived, want %d", all, n)
	}
	var boxes []string
	for i := range relayBoxes {
		boxes = append(boxes, relayBox(i))
	}
	checkLimits(r.t, r.a.Exosim, boxes, relayLimit, relayMinute)
}

// startRelays starts Redis, one Exchange Online, and two hosts.
func startRelays(ctx context.Context, t *testing.T) *relays {
	t.Helper()
	dir, err := program()
	if err != nil {
		t.Fatal(err)
	}
	r := &relays{t: t, redis: newRedis(ctx, t)}
	config := func(i int) SiteConfig {
		r.cables[i] = newCable(t, r.redis.addr)
		return SiteConfig{Sendas: filepath.Join(dir, "sendas"), PluginDir: dir, Minute: relayMinute, Activated: true,
			Exosim: relayExosim,
			YAML:   func(y string) string { return relayYAML(y, r.cables[i].addr(), "relay"+strconv.Itoa(i)) },
			// Each mailbox would have a transport of its own; here one has room for them all.
			Postfix: func(_ *Site, main map[string]string) []string {
				main["sendas_destination_concurrency_limit"] = strconv.Itoa(2 * relayBoxes)
				return nil
			}}
	}
	if r.a, err = StartSite(ctx, config(0)); err != nil {
		t.Fatal(err)
	}
	r.cleanup(r.a)
	bDir, err := MakeDir()
	if err != nil {
		t.Fatal(err)
	}
	r.b = &Site{Dir: bDir, Secret: r.a.Secret, Exosim: r.a.Exosim}
	r.cleanup(r.b)
	if err := os.WriteFile(filepath.Join(bDir, "ca.pem"), r.a.Exosim.CA(), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.b.startRelay(ctx, config(1)); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *relays) cleanup(s *Site) {
	r.t.Cleanup(func() {
		if s.Token != nil {
			checkPromises(r.t, s)
		}
		if r.t.Failed() && s.Token != nil {
			log, _ := s.Postfix.Log()
			r.t.Logf("Postfix:\n%s\ntoken:\n%s", last(log), last(s.Token.Log()))
		}
		if err := s.Stop(); err != nil {
			r.t.Errorf("stopping: %v", err)
		}
	})
}

func relayExosim(c *exosim.Config) {
	c.Messages, c.EnforceRate, c.Seed = relayLimit, smtp.RateReject, 1
	c.VerdictMin, c.VerdictMax = 10*time.Millisecond, 100*time.Millisecond
	c.Apps[0].Mailboxes = []string{"*"}
	for i := range relayBoxes {
		c.Mailboxes = append(c.Mailboxes, directory.Mailbox{Address: relayBox(i)})
	}
}

func relayYAML(y, redis, host string) string {
	boxes := ""
	for i := range relayBoxes {
		boxes += "  - address: " + relayBox(i) + "\n    credential: relay-app\n    limits: LIMITS\n"
	}
	y = strings.Replace(y, "clients:\n", boxes+"clients:\n", 1)
	y = strings.Replace(y, "token:\n", "token:\n  store: redis://"+redis+"/0\n  hosts: 2\n  host: "+host+"\n", 1)
	return strings.ReplaceAll(y, "LIMITS", fmt.Sprintf("{messages: %d/%v}", relayLimit, relayMinute))
}

// redisServer is a Redis that writes to the disk, and can be killed.
type redisServer struct {
	addr, dir string
	cmd       *exec.Cmd
}

func newRedis(ctx context.Context, t *testing.T) *redisServer {
	t.Helper()
	ports, err := freePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	s := &redisServer{addr: ports[0], dir: t.TempDir()}
	t.Cleanup(s.kill)
	s.start(ctx, t)
	return s
}

// start starts it and waits until it answers.
func (s *redisServer) start(ctx context.Context, t *testing.T) {
	path, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal("redis-server is needed for this test: apt-get install redis-server")
	}
	host, port, _ := net.SplitHostPort(s.addr)
	s.cmd = exec.Command(path, "--bind", host, "--port", port, "--dir", s.dir, "--save", "", "--appendonly", "yes", "--maxmemory-policy", "noeviction")
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := poll(ctx, func() (bool, error) { return s.ping() == nil, nil }); err != nil {
		t.Fatalf("redis-server does not answer: %v", err)
	}
}

func (s *redisServer) ping() error {
	conn, err := net.DialTimeout("tcp", s.addr, time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := io.WriteString(conn, "PING\r\n"); err != nil {
		return err
	}
	answer := make([]byte, len("+PONG\r\n"))
	if _, err := io.ReadFull(conn, answer); err != nil {
		return err
	}
	if string(answer) != "+PONG\r\n" {
		return errors.New("it is loading")
	}
	return nil
}

// kill ends it as a crash would.
func (s *redisServer) kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// wipe removes all that it has written.
func (s *redisServer) wipe() {
	os.RemoveAll(filepath.Join(s.dir, "appendonlydir"))
	os.Remove(filepath.Join(s.dir, "appendonly.aof"))
}

// cable is a TCP connection's way to a server. While it is cut nothing passes and nobody is told:
// what was sent arrives when it is mended, as TCP does it.
type cable struct {
	l    net.Listener
	to   string
	mu   sync.Mutex    // guards open
	open chan struct{} // closed while all passes
}

func newCable(t *testing.T, to string) *cable {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{l: l, to: to, open: make(chan struct{})}
	close(c.open)
	t.Cleanup(func() { l.Close() })
	go c.serve()
	return c
}

func (c *cable) addr() string { return c.l.Addr().String() }

func (c *cable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = make(chan struct{})
}

func (c *cable) mend() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.open)
}

// wait waits until the cable is whole.
func (c *cable) wait() {
	c.mu.Lock()
	open := c.open
	c.mu.Unlock()
	<-open
}

func (c *cable) serve() {
	for {
		in, err := c.l.Accept()
		if err != nil {
			return
		}
		go func() {
			c.wait()
			out, err := net.Dial("tcp", c.to)
			if err != nil {
				in.Close()
				return
			}
			go c.pass(in, out)
			c.pass(out, in)
		}()
	}
}

// pass carries what one end says to the other, and its end.
func (c *cable) pass(from, to net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		c.wait()
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	from.Close()
	to.Close()
}
