//go:build storm

package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sendas/sendas/contrib/exosim"
	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/entra"
	"github.com/sendas/sendas/contrib/exosim/smtp"
	"github.com/sendas/sendas/policy/limit/redistest"
)

var stormMessages = flag.Int("messages", 10_000, "how many messages TestStormWhole sends")

// The site of the whole storm. Alone, a host may send (8 − 3) ÷ 3 = 1 message of a mailbox in a
// period.
const (
	wholeRelays = 3
	wholeBoxes  = 50
	wholeLimit  = 8
	wholeMinute = 20 * time.Second
	storeHost   = "10.213.250.1" // in this namespace, on lo
)

// whole is three relays, each of whose token services is in a network namespace of its own, with a
// cable to the Redis that they share; one of three servers, watched by sentinels.
type whole struct {
	t      *testing.T
	relays []*Site
	spaces []*space
	watch  *redistest.Watch
	clock  string // the file with the seconds by which the servers' clocks are off
	rand   *rand.Rand
	mu     sync.Mutex // guards rand

	kills  atomic.Int64
	struck sync.Map // trouble → how often
	unsure sync.Map // Message-ID of what a client had to hand in again without an answer
}

func (w *whole) roll(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rand.IntN(n)
}

func (w *whole) strikes(trouble string) {
	n, _ := w.struck.LoadOrStore(trouble, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
	w.t.Logf("%s: %s; %d accepted", time.Now().Format("15:04:05"), trouble, w.relays[0].Accepted())
}

// space is a network namespace with a cable to this one.
type space struct {
	name, cable string
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %q: %v: %s", args, err, out)
	}
}

func newSpace(t *testing.T, i int) *space {
	t.Helper()
	s := &space{name: fmt.Sprintf("sendas-storm-%d", i), cable: fmt.Sprintf("storm%d", i)}
	_ = exec.Command("ip", "netns", "del", s.name).Run() // of a run that was killed
	_ = exec.Command("ip", "link", "del", s.cable).Run()
	ip(t, "netns", "add", s.name)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", s.name).Run() })
	here, there := fmt.Sprintf("10.213.%d.1", i), fmt.Sprintf("10.213.%d.2", i)
	ip(t, "link", "add", s.cable, "type", "veth", "peer", "name", "eth0", "netns", s.name)
	ip(t, "addr", "add", here+"/24", "dev", s.cable)
	ip(t, "link", "set", s.cable, "up")
	ip(t, "-n", s.name, "addr", "add", there+"/24", "dev", "eth0")
	for _, dev := range []string{"lo", "eth0"} {
		ip(t, "-n", s.name, "link", "set", dev, "up")
	}
	ip(t, "-n", s.name, "route", "add", "default", "via", here)
	return s
}

// within runs do in the namespace. What it makes there (a socket, a process) stays there.
func (s *space) within(do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()                        // for good: the thread ends with the goroutine
		f, err := os.Open("/var/run/netns/" + s.name) // each its own: connections are made until the very end
		if err == nil {
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
			f.Close()
		}
		if err != nil {
			done <- err
			return
		}
		done <- do()
	}()
	return <-done
}

// lead carries connections from an address in one namespace to one in the other.
func lead(t *testing.T, listen func() (net.Listener, error), dial func() (net.Conn, error)) {
	t.Helper()
	l, err := listen()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				out, err := dial()
				if err != nil {
					in.Close()
					return
				}
				go func() { _, _ = io.Copy(out, in); out.Close() }()
				_, _ = io.Copy(in, out)
				in.Close()
			}()
		}
	}()
}

// clockShim is a library that sets a process's clock off by as many seconds as a file says.
const clockShim = `
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile int64_t *off;
__attribute__((constructor)) static void start(void) {
	int f = open(getenv("STORM_CLOCK"), O_RDONLY);
	off = mmap(0, 8, PROT_READ, MAP_SHARED, f, 0);
	close(f);
}
int clock_gettime(clockid_t c, struct timespec *t) {
	int r = syscall(SYS_clock_gettime, c, t);
	if (c == CLOCK_REALTIME && off) t->tv_sec += *off;
	return r;
}
int gettimeofday(struct timeval *restrict v, void *restrict z) {
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	v->tv_sec = t.tv_sec; v->tv_usec = t.tv_nsec / 1000;
	return 0;
}
time_t time(time_t *p) {
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	if (p) *p = t.tv_sec;
	return t.tv_sec;
}
`

// stepClocks sets the clocks of the servers off.
func (w *whole) stepClocks(d time.Duration) {
	f, err := os.OpenFile(w.clock, os.O_WRONLY, 0)
	if err != nil {
		w.t.Error(err)
		return
	}
	defer f.Close()
	_, _ = f.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(int64(d/time.Second))), 0)
}

func (w *whole) startStore() {
	t := w.t
	dir := t.TempDir()
	w.clock = filepath.Join(dir, "clock")
	source, shim := filepath.Join(dir, "shim.c"), filepath.Join(dir, "shim.so")
	if err := errors.Join(os.WriteFile(w.clock, make([]byte, 8), 0o644), os.WriteFile(source, []byte(clockShim), 0o644)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-shared", "-fPIC", "-o", shim, source).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v: %s", err, out)
	}
	_ = exec.Command("ip", "addr", "del", storeHost+"/32", "dev", "lo").Run()
	ip(t, "addr", "add", storeHost+"/32", "dev", "lo")
	t.Cleanup(func() { _ = exec.Command("ip", "addr", "del", storeHost+"/32", "dev", "lo").Run() })
	redistest.Host, redistest.Env = storeHost, []string{"LD_PRELOAD=" + shim, "STORM_CLOCK=" + w.clock}
	w.watch = redistest.StartWatch(t, 2, "--min-replicas-to-write", "1", "--min-replicas-max-lag", "5", "--maxmemory-policy", "noeviction")
}

func wholeBox(i int) string { return fmt.Sprintf("box%d@contoso.com", i) }
func wholeID(n int) string  { return fmt.Sprintf("whole-%d@device.example", n) }

func wholeMail(n int) Mail {
	from := wholeBox(n / wholeRelays % wholeBoxes)
	return Mail{XClient: monitoring, From: from, To: []string{fmt.Sprintf("customer%d@fabrikam.com", n)},
		Data: message("From: <"+from+">", "Message-ID: <"+wholeID(n)+">", storyDate)}
}

func (w *whole) startRelay(ctx context.Context, dir string, i int) {
	t := w.t
	s := newSpace(t, i)
	w.spaces = append(w.spaces, s)
	c := SiteConfig{Sendas: filepath.Join(dir, "sendas"), PluginDir: dir, Minute: wholeMinute, Activated: true,
		Exosim: func(c *exosim.Config) {
			c.Messages, c.EnforceRate, c.Seed = wholeLimit, smtp.RateReject, 1
			c.VerdictMin, c.VerdictMax = 10*time.Millisecond, 300*time.Millisecond
			c.Apps[0].Mailboxes = []string{"*"}
			for i := range wholeBoxes {
				c.Mailboxes = append(c.Mailboxes, directory.Mailbox{Address: wholeBox(i)})
			}
		},
		YAML: func(y string) string {
			boxes := ""
			for i := range wholeBoxes {
				boxes += "  - address: " + wholeBox(i) + "\n    credential: relay-app\n    limits: LIMITS\n"
			}
			y = strings.Replace(y, "clients:\n", boxes+"clients:\n", 1)
			y = strings.Replace(y, "token:\n", fmt.Sprintf("token:\n  store: %s\n  hosts: %d\n  host: relay-%d\n", w.watch.URL(), wholeRelays, i), 1)
			return strings.ReplaceAll(y, "LIMITS", fmt.Sprintf("{messages: %d/%v}", wholeLimit, wholeMinute))
		},
		Postfix: func(_ *Site, main map[string]string) []string {
			main["sendas_destination_concurrency_limit"] = "30"
			main["service_throttle_time"] = "1s" // after a daemon was killed
			return nil
		},
	}
	var x *Site
	if i > 0 {
		d, err := MakeDir()
		if err != nil {
			t.Fatal(err)
		}
		x = &Site{Dir: d, Secret: w.relays[0].Secret, Exosim: w.relays[0].Exosim}
		if err := os.WriteFile(filepath.Join(d, "ca.pem"), x.Exosim.CA(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	w.relays = append(w.relays, x)
	t.Cleanup(func() {
		x := w.relays[i]
		if x.Token != nil {
			_ = x.Token.Stop()
		}
		_ = exec.Command("umount", "-l", filepath.Join(x.Dir, "state")).Run()
		if err := x.Stop(); err != nil {
			t.Errorf("stopping: %v", err)
		}
	})
	// Called when the configuration is written, before the services start.
	c.TokenEnv = func(e *exosim.Server) []string {
		if i == 0 {
			x = w.relays[0]
		}
		w.wire(i, e, x)
		return nil
	}
	var err error
	if i == 0 {
		err = startSiteIn(ctx, c, func(s *Site) { w.relays[0] = s })
	} else {
		err = x.startRelay(ctx, c)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// startSiteIn is StartSite that tells the site before it starts. The caller stops it in any case.
func startSiteIn(ctx context.Context, c SiteConfig, tell func(*Site)) error {
	dir, err := MakeDir()
	if err != nil {
		return err
	}
	s := &Site{Dir: dir, Secret: "s3cr3t~in/the+lab-" + filepath.Base(dir)}
	tell(s)
	if err := s.startExosim(c); err != nil {
		return err
	}
	return s.startRelay(ctx, c)
}

// wire puts the token service into its namespace, with a way to Entra and back to its figures, and
// a disk of its own below its state.
func (w *whole) wire(i int, e *exosim.Server, x *Site) {
	t, s := w.t, w.spaces[i]
	x.Token.space = s.within
	authority := strings.TrimPrefix(e.Authority(), "https://")
	lead(t, func() (l net.Listener, err error) {
		err = s.within(func() error { l, err = net.Listen("tcp", authority); return err })
		return l, err
	}, func() (net.Conn, error) { return net.Dial("tcp", authority) })
	lead(t, func() (net.Listener, error) { return net.Listen("tcp", x.tokenHTTP) }, func() (c net.Conn, err error) {
		err = s.within(func() error { c, err = net.Dial("tcp", x.tokenHTTP); return err })
		return c, err
	})
	state := filepath.Join(x.Dir, "state")
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=24m,mode=0700,uid=%d,gid=%d", tokenUser, tokenUser), "storm", state).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
}

// fill fills a relay's disk; the result frees it.
func (w *whole) fill(i int) (free func()) {
	name := filepath.Join(w.relays[i].Dir, "state", "full")
	f, err := os.Create(name)
	if err != nil {
		w.t.Error(err)
		return func() {}
	}
	for err == nil {
		_, err = f.Write(make([]byte, 64<<10))
	}
	f.Close()
	return func() { os.Remove(name) }
}

// hand hands messages to a relay, as a client does that tries again until it has an answer.
func (w *whole) hand(ctx context.Context, i int, mails []Mail, ids []string, pause time.Duration) {
	next := make(chan int)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for k := range next {
				err := poll(ctx, func() (bool, error) {
					res, err := Send(ctx, w.relays[i].Postfix.SMTPAddr(), mails[k])
					if err != nil {
						w.unsure.Store(ids[k], true) // perhaps it was taken
						return false, nil
					}
					if !res.Accepted() && res.Verdict().Code/100 != 4 {
						return false, fmt.Errorf("answered %q", res.Verdict())
					}
					return res.Accepted(), nil
				})
				if err != nil {
					w.t.Errorf("%s: %v", ids[k], err)
				}
			}
		})
	}
	for k := range mails {
		next <- k
		time.Sleep(pause)
	}
	close(next)
	wg.Wait()
}

// killServices kills a service, or a process of Postfix's, every few seconds.
func (w *whole) killServices(ctx context.Context, i int, stop <-chan struct{}) {
	s := w.relays[i]
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(2000+w.roll(3000)) * time.Millisecond):
		}
		w.kills.Add(1)
		switch w.roll(4) {
		case 0:
			if err := errors.Join(s.Token.Kill(), s.Token.Start(ctx)); err != nil {
				w.t.Error(err)
				return
			}
		case 1:
			if err := errors.Join(s.Milter.Kill(), s.Milter.Start(ctx)); err != nil {
				w.t.Error(err)
				return
			}
		default:
			master, err := s.Postfix.masterPID()
			if err != nil {
				w.t.Error(err)
				return
			}
			all := slices.DeleteFunc(processGroup(master), func(pid int) bool { return pid == master })
			if len(all) > 0 {
				_ = syscall.Kill(all[w.roll(len(all))], syscall.SIGKILL)
			}
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// faults puts what strikes by chance together with a trouble of Entra's.
func (w *whole) faults(e entra.Faults, c smtp.Chances) {
	if err := w.relays[0].Exosim.SetFaults(exosim.Faults{SMTPFaults: smtp.Faults{Chances: c}, EntraFaults: e}); err != nil {
		w.t.Error(err)
	}
}

// troubles is one round of them.
func (w *whole) troubles(ctx context.Context, first bool) {
	sky := smtp.Chances{Greeting: 0.02, Mail: 0.02, InData: 0.02, AtDot: 0.02, Leave: 0.02, Busy: 0.02, Concurrent: 0.02, AfterTaken: 0.02}
	quota := sky
	if first {
		quota.Quota = 0.01 // 554: a mailbox or two rest, for 15 periods
	}
	w.faults(entra.Faults{}, quota)
	w.strikes("432, 421, 451, 554, drops")
	wait(ctx, 10*time.Second)
	w.faults(entra.Faults{Down: true}, sky)
	w.strikes("Entra is down")
	wait(ctx, 8*time.Second)
	w.faults(entra.Faults{Delay: 3 * time.Second}, sky)
	w.strikes("Entra is slow")
	wait(ctx, 8*time.Second)
	w.faults(entra.Faults{Status: 200}, sky)
	w.strikes("Entra lies: a page for a token")
	wait(ctx, 6*time.Second)
	w.faults(entra.Faults{Truncated: true}, sky)
	w.strikes("Entra lies: half an answer")
	wait(ctx, 6*time.Second)
	w.faults(entra.Faults{}, sky)

	master, _ := w.watch.Master(w.t)
	master.Kill()
	w.strikes("Redis' master is killed")
	w.watch.WaitMaster(w.t, master)
	wait(ctx, 5*time.Second)
	master.Start(w.t)
	w.watch.WaitReplicas(w.t)
	wait(ctx, 5*time.Second)

	w.stepClocks(time.Hour)
	w.strikes("Redis' clocks go an hour forward")
	wait(ctx, 10*time.Second)
	w.stepClocks(0)
	w.strikes("and back")
	wait(ctx, 10*time.Second)
	w.stepClocks(-time.Hour)
	w.strikes("and another one back")
	wait(ctx, 10*time.Second)
	w.stepClocks(0)
	w.watch.WaitReplicas(w.t)

	master, _ = w.watch.Master(w.t)
	master.Freeze()
	w.strikes("Redis' master hangs")
	w.watch.WaitMaster(w.t, master)
	wait(ctx, 5*time.Second)
	master.Thaw()
	w.watch.WaitReplicas(w.t)

	i := w.roll(wholeRelays)
	ip(w.t, "link", "set", w.spaces[i].cable, "down")
	w.strikes(fmt.Sprintf("the cable of relay %d is cut", i))
	wait(ctx, 10*time.Second+wholeMinute+time.Second+10*time.Second) // it goes on alone
	ip(w.t, "link", "set", w.spaces[i].cable, "up")
	w.strikes("and mended")
	wait(ctx, 5*time.Second)

	free := w.fill(w.roll(wholeRelays))
	w.strikes("a relay's disk is full")
	wait(ctx, 10*time.Second)
	free()

	for _, n := range w.watch.Nodes {
		n.Kill()
		n.Wipe()
	}
	w.strikes("Redis has lost everything")
	for _, n := range w.watch.Nodes {
		n.Start(w.t)
	}
	w.watch.WaitReplicas(w.t)
	wait(ctx, 10*time.Second)
}

// TestStormWhole: whatever dies, lies, hangs or is cut off, every message arrives once, or once more
// for a reason that nobody can help; under its own name, within every limit, and without a secret in
// any output.
func TestStormWhole(t *testing.T) {
	n := *stormMessages
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Minute)
	defer cancel()
	dir, err := program()
	if err != nil {
		t.Fatal(err)
	}
	w := &whole{t: t, rand: rand.New(rand.NewPCG(1, 2))}
	w.startStore()
	for i := range wholeRelays {
		w.startRelay(ctx, dir, i)
	}
	began := time.Now()
	stop := make(chan struct{})
	var hands, killers sync.WaitGroup
	for i := range wholeRelays {
		var mails []Mail
		var ids []string
		for k := i; k < n; k += wholeRelays {
			mails, ids = append(mails, wholeMail(k)), append(ids, wholeID(k))
		}
		// The first half comes at once, the other while all goes on.
		hands.Go(func() {
			half := len(mails) / 2
			w.hand(ctx, i, mails[:half], ids[:half], 0)
			w.hand(ctx, i, mails[half:], ids[half:], 100*time.Millisecond)
		})
		killers.Go(func() { w.killServices(ctx, i, stop) })
	}
	rounds := 0
	for w.relays[0].Accepted() < n*9/10 && ctx.Err() == nil && !t.Failed() {
		w.troubles(ctx, rounds == 0)
		rounds++
	}
	close(stop)
	killers.Wait()
	hands.Wait()
	w.faults(entra.Faults{}, smtp.Chances{})
	t.Logf("%d rounds of troubles in %v, %d kills", rounds, time.Since(began).Round(time.Second), w.kills.Load())
	for i, s := range w.relays {
		if err := s.Postfix.Flush(ctx); err != nil { // qmgr(8) may have been killed, and nobody wakes it for five minutes
			t.Error(err)
		}
		if q, err := s.Postfix.WaitQueue(ctx, func(q []QueueEntry) bool { return len(q) == 0 }); err != nil {
			t.Errorf("relay %d: %d messages are left: %v", i, len(q), err)
		}
	}
	w.judge(n)
	t.Logf("all of it took %v", time.Since(began).Round(time.Second))
}

var (
	logged = regexp.MustCompile(`([0-9A-Za-z]+): message-id=<([^>]*)>`)
	fateOf = regexp.MustCompile(`/smtp\[\d+\]: ([0-9A-Za-z]+): .*status=(\w+) \((.*)\)`)
)

// judge looks at what became of each message.
func (w *whole) judge(n int) {
	t := w.t
	sent, refusedAtDot := map[string]int{}, map[string]int{} // status lines of Postfix, by Message-ID
	for _, s := range w.relays {
		log, _ := s.Postfix.Log()
		ids := map[string]string{}
		for line := range strings.Lines(log) {
			if m := logged.FindStringSubmatch(line); m != nil {
				ids[m[1]] = m[2]
			}
			if m := fateOf.FindStringSubmatch(line); m != nil {
				switch id := ids[m[1]]; {
				case m[2] == "sent":
					sent[id]++
				case m[2] == "bounced":
					t.Errorf("returned: %s", line)
				case strings.Contains(m[3], "end of DATA"):
					refusedAtDot[id]++
				}
			}
		}
	}
	all := w.relays[0].Exosim.Messages()
	got, atDot := fates(all), map[string]int{}
	wrong := 0
	for _, m := range all {
		id := strings.Trim(strings.Join(m.Header("Message-ID"), " "), "<>")
		if !m.Accepted() || m.Dropped {
			atDot[id]++
		}
		k, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(id, "whole-"), "@device.example"))
		if err != nil {
			t.Errorf("a message that nobody sent: %q of %s", id, m.Sender)
			continue
		}
		want := wholeBox(k / wholeRelays % wholeBoxes)
		if m.Mailbox != want || m.Sender != want || !strings.Contains(strings.Join(m.Header("From"), " "), want) || strings.Contains(m.Reply, "SendAsDenied") {
			wrong++
		}
	}
	lost, doubled, killed, client, untold := 0, 0, 0, 0, 0
	for k := range n {
		id := wholeID(k)
		f := got[id]
		_, again := w.unsure.Load(id)
		untold += f.untold
		switch {
		case f.told == 0:
			lost++
			t.Errorf("%s is lost", id)
		case f.told == 1:
		case again:
			client++ // handed in twice
		case refusedAtDot[id] > atDot[id]: // Postfix was told no where Exchange had said yes
			doubled++
			t.Errorf("%s arrived %d times: Postfix was told otherwise", id, f.told)
		default:
			killed++ // Postfix's process was, before it had noted the answer
		}
	}
	t.Logf("%d messages: %d lost, %d doubled by us; %d more than once because Postfix's process was killed after the answer, %d because a client was not answered, %d accepted without telling; %d under a wrong name",
		n, lost, doubled, killed, client, untold, wrong)
	if wrong > 0 {
		t.Errorf("%d messages under a wrong name", wrong)
	}
	if int64(killed) > w.kills.Load() {
		t.Errorf("%d messages came twice, and only %d processes were killed", killed, w.kills.Load())
	}
	worst, together := 0, 0
	of := map[string][]*smtp.Message{}
	for _, m := range all {
		of[m.Mailbox] = append(of[m.Mailbox], m)
	}
	for i := range wholeBoxes {
		x := WorstWindows(of[wholeBox(i)], wholeMinute)
		if x.Anyhow > wholeLimit {
			w.show(of[wholeBox(i)])
		}
		worst, together = max(worst, x.Anyhow), max(together, w.relays[0].Exosim.Usage(wholeBox(i)).MaxInData)
	}
	t.Logf("worst window of any mailbox: %d of %d messages; at most %d at one time", worst, wholeLimit, together)
	if worst > wholeLimit {
		t.Errorf("a mailbox sent %d messages in %v, limit %d", worst, wholeMinute, wholeLimit)
	}
	for _, s := range w.relays {
		for where, text := range s.Outputs(t.Context()) {
			for what, secret := range map[string]string{"client secret": s.Secret, "access token": "eyJ", "base64 of XOAUTH2": "dXNlcj", "a data race": "DATA RACE"} {
				if strings.Contains(text, secret) && !(what == "a data race" && strings.HasPrefix(where, "/proc/")) {
					t.Errorf("%s shows in %s", what, where)
				}
			}
		}
	}
	w.struck.Range(func(k, v any) bool { t.Logf("%s: %d times", k, v.(*atomic.Int64).Load()); return true })
}

// show logs the messages around a window that had too many.
func (w *whole) show(list []*smtp.Message) {
	for _, first := range list {
		var in []*smtp.Message
		for _, m := range list {
			if !m.Verdict.Before(first.Verdict) && m.Dot.Before(first.Verdict.Add(wholeMinute)) {
				in = append(in, m)
			}
		}
		if len(in) <= wholeLimit {
			continue
		}
		for _, m := range in {
			w.t.Logf("%s: dot %s, verdict %s, dropped %v, session %s: %.40q", m.Mailbox, m.Dot.Format("15:04:05.000"), m.Verdict.Format("15:04:05.000"), m.Dropped, m.Session, m.Reply)
		}
		return
	}
}
