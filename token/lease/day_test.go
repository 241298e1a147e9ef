package lease

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/ledger"
)

var soak = flag.Bool("soak", false, "a day of a thousand mailboxes with a message every ten minutes each, not every six hours")

// thousand is a directory of 1,000 mailboxes on 5 credentials, and of a pattern, for which strangers
// make up senders.
type thousand struct {
	soakSite
	pattern *Mailbox
}

func (d *thousand) Mailboxes(sender string) []*Mailbox {
	if m := d.soakSite[sender]; m != nil {
		return []*Mailbox{m}
	}
	if strings.HasSuffix(sender, "@fabrikam.com") {
		m := *d.pattern
		m.Address = sender
		return []*Mailbox{&m}
	}
	return nil
}

func (d *thousand) Listed(sender string) string {
	if d.soakSite[sender] != nil {
		return sender
	}
	if strings.HasSuffix(sender, "@fabrikam.com") {
		return d.pattern.Label
	}
	return ""
}

// day is a token service through which a day goes.
type day struct {
	*Lessor
	dir    string
	site   *thousand
	ledger *ledger.Bolt
	reg    *prometheus.Registry
	end    time.Time
	pids   atomic.Int32
	count  atomic.Int64
}

// footprint is what a service takes of the machine.
type footprint struct {
	heap               int64
	goroutines, files  int
	ledger, journal    int64 // bytes, files
	series, deliveries int
}

func (f footprint) String() string {
	return fmt.Sprintf("%d kB of heap, %d goroutines, %d descriptors, %d kB of ledger, %d in the journal, %d series after %d deliveries",
		f.heap>>10, f.goroutines, f.files, f.ledger>>10, f.journal, f.series, f.deliveries)
}

// descriptors returns how many files this process has open.
func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func (d *day) look(t *testing.T) (f footprint) {
	t.Helper()
	families, err := d.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range families {
		f.series += len(x.Metric)
	}
	db, err := os.Stat(filepath.Join(d.dir, "token.db"))
	if err != nil {
		t.Fatal(err)
	}
	journal, err := os.ReadDir(filepath.Join(d.dir, "sessions"))
	if err != nil {
		t.Fatal(err)
	}
	f.ledger, f.journal, f.deliveries = db.Size(), int64(len(journal)), int(d.count.Load())
	f.heap, f.goroutines, f.files = heap(), runtime.NumGoroutine(), descriptors(t)
	return f
}

// quickDir is a folder in memory where there is one: a day has as many fsyncs as leases.
func quickDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "sendas-day-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// troubles are what becomes of one session in twenty.
var troubles = [][]string{
	{auth535},
	{authOK}, // and the connection breaks
	{authOK, mailOK, "501 5.1.3 Invalid address"},
	{authOK, mailOK, rcptOK, dataOK, denied},
	{authOK, mailOK, rcptOK, dataOK, tooMany},
	{authOK, mailOK, rcptOK, dataOK, quota},
	{authOK, mailOK, rcptOK, dataOK},
	{authOK, mailOK, rcptOK, dataOK, "451 4.7.0 Temporary server error. PRX4"},
}

// deliver is one session of a process.
func (d *day) deliver(t *testing.T, c Caller, sender string, replies []string, random *rand.Rand) {
	for _, line := range greeting {
		d.Reply(t.Context(), c, line)
	}
	if d.Lease(t.Context(), c, sender).Status != OK {
		return
	}
	d.count.Add(1)
	for _, line := range replies {
		time.Sleep(time.Duration(random.Int64N(int64(time.Second))))
		d.Reply(t.Context(), c, line)
	}
}

// send is the mail of one mailbox, by processes that live for twenty deliveries each, as those of
// Postfix for a hundred. A mailbox knows one kind of trouble, and early: what happens for the first
// time takes some memory for good, a series of the metrics.
func (d *day) send(t *testing.T, sender string, every time.Duration, random *rand.Rand) {
	trouble, c := troubles[random.IntN(len(troubles))], Caller{}
	for n := 0; ; n++ {
		if n < 2 {
			time.Sleep(time.Duration(random.Int64N(int64(time.Hour))))
		} else {
			time.Sleep(time.Duration(random.ExpFloat64() * float64(every)))
		}
		if !time.Now().Before(d.end) {
			return
		}
		if n%20 == 0 {
			c = process(d.pids.Add(1))
		}
		replies := []string{authOK, mailOK, rcptOK, rcptOK, dataOK, accepted}
		if n == 1 || random.IntN(20) == 0 {
			replies = trouble
		}
		d.deliver(t, c, sender, replies, random)
	}
}

// strangers make up senders, none twice.
func (d *day) strangers(t *testing.T, every time.Duration, random *rand.Rand) {
	for n := 0; ; n++ {
		time.Sleep(time.Duration(random.ExpFloat64() * float64(every)))
		if !time.Now().Before(d.end) {
			return
		}
		c := process(d.pids.Add(1))
		for _, line := range greeting {
			d.Reply(t.Context(), c, line)
		}
		switch sender := fmt.Sprintf("made-up-%d@fabrikam.com", n); {
		case n%3 == 0: // who is nobody here
			d.Lease(t.Context(), c, fmt.Sprintf("made-up-%d@example.com", n))
			d.Reply(t.Context(), c, noAuth)
		case d.Lease(t.Context(), c, sender).Status == OK:
			d.Reply(t.Context(), c, auth535)
		}
	}
}

// TestDayOfAThousandMailboxes: a day takes nothing of the machine for good. The windows of the
// recipients, two hours long here, are full when it begins.
func TestDayOfAThousandMailboxes(t *testing.T) {
	const mailboxes, credentials, warm = 1000, 5, 3 * time.Hour
	every := 6 * time.Hour
	if *soak {
		every = 10 * time.Minute
	}
	dir := quickDir(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		d := &day{dir: dir, site: &thousand{soakSite: soakSite{}}, reg: prometheus.NewRegistry(), end: time.Now().Add(warm + 24*time.Hour)}
		var err error
		if d.ledger, err = ledger.OpenBolt(filepath.Join(dir, "token.db"), ledger.BoltOptions{}); err != nil {
			t.Fatal(err)
		}
		limits := limit.Microsoft()
		limits.Recipients.Per = 2 * time.Hour
		var running sync.WaitGroup
		status := StatusInput{}
		for i := range credentials {
			o := &office{name: fmt.Sprintf("app%d", i), random: rand.New(rand.NewPCG(uint64(i), 21)), good: map[string]time.Time{}}
			r := entra.NewRefresher(o.name, forgetful{o}, entra.RefresherOptions{Rand: rand.New(rand.NewPCG(uint64(i), 22)).Float64})
			running.Go(func() { r.Run(ctx) })
			for j := range mailboxes / credentials {
				address := fmt.Sprintf("box%d@contoso.com", i*mailboxes/credentials+j)
				d.site.soakSite[address] = &Mailbox{Address: address, Label: address, Limits: limits, Tokens: r}
				status.Mailboxes = append(status.Mailboxes, MailboxInput{Label: address, Limits: limits})
			}
			d.site.pattern = &Mailbox{Label: "*@fabrikam.com", Limits: limits, Tokens: r}
		}
		d.Lessor = NewLessor(d.ledger, NewMetrics(d.reg), slog.New(slog.DiscardHandler))
		d.reg.MustRegister(NewCollector(d.Lessor, func(ctx context.Context) *Status { return d.Status(ctx, status) }))
		d.Use(d.site)
		journal, err := OpenJournal(filepath.Join(dir, "sessions"))
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Adopt(ctx, journal); err != nil {
			t.Fatal(err)
		}
		running.Go(func() { d.Run(ctx) })
		time.Sleep(time.Minute)
		n := uint64(0)
		for address := range d.site.soakSite {
			n++
			random := rand.New(rand.NewPCG(n, 23))
			running.Go(func() { d.send(t, address, every, random) })
		}
		running.Go(func() { d.strangers(t, every/100, rand.New(rand.NewPCG(1, 24))) })
		time.Sleep(warm)
		before := d.look(t)
		t.Logf("%v", before)
		time.Sleep(time.Until(d.end) - time.Minute)
		after := d.look(t)
		t.Logf("%v", after)
		if most := before.heap + before.heap/20 + 256<<10; after.heap > most {
			t.Errorf("%d kB of heap, want %d at most", after.heap>>10, most>>10)
		}
		if most := before.goroutines + 20; after.goroutines > most { // some fetch a token just now
			t.Errorf("%d goroutines, want %d at most", after.goroutines, most)
		}
		if after.files > before.files {
			t.Errorf("%d descriptors, want %d", after.files, before.files)
		}
		if most := int64(4 << 20); after.ledger > most { // the file grows by its own size
			t.Errorf("%d kB of ledger, want %d at most", after.ledger>>10, most>>10)
		}
		if after.journal > 100 || after.series > 20*mailboxes { // each mailbox has those of its first events
			t.Errorf("%d files in the journal and %d series, want 100 and %d at most", after.journal, after.series, 20*mailboxes)
		}
		if deliveries := after.deliveries - before.deliveries; deliveries < int(mailboxes*24*time.Hour/every)*9/10 {
			t.Errorf("%d deliveries in the day", deliveries)
		}
		time.Sleep(time.Hour)
		cancel()
		running.Wait()
		if err := d.ledger.Close(); err != nil {
			t.Fatal(err)
		}
		if left := d.Sessions(); left > 0 {
			t.Errorf("%d leases are out an hour after the last delivery", left)
		}
	})
}

// forgetful is an office that keeps no account of the tokens it gives.
type forgetful struct{ *office }

func (f forgetful) Token(ctx context.Context) (*entra.Token, error) {
	t, err := f.office.Token(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.good)
	f.lives = nil
	return t, err
}

// TestConnectionsThatBreak: of connections that end in whatever state no descriptor and no goroutine
// is left.
func TestConnectionsThatBreak(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "credentials"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	l := manyLeases(ledger.NewMemory(), 10)
	s := &SocketmapServer{Maps: l.Maps(), Peers: []uint32{uint32(os.Getuid())}, Log: slog.New(slog.DiscardHandler)}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	quiet := func() (files, goroutines int) { // when all that is over is over
		for range 3000 {
			s.mu.Lock()
			n := len(s.conns)
			s.mu.Unlock()
			if n == 0 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		return descriptors(t), runtime.NumGoroutine()
	}
	round := func() {
		for i := range 300 {
			c, err := net.Dial("unix", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(time.Minute))
			switch i % 4 {
			case 0:
				if r, err := Ask(c, "transport", boxName(i%10)); err != nil || r.Status != NotFound {
					t.Fatal(r, err)
				}
			case 1:
				fmt.Fprint(c, "22:lease box1@conto") // and goes in the middle of it
			case 2:
				fmt.Fprint(c, "?") // and is closed
			}
			c.Close()
		}
	}
	round()
	files, goroutines := quiet()
	for range 5 {
		round()
	}
	if f, g := quiet(); f > files || g > goroutines {
		t.Errorf("%d descriptors and %d goroutines after 1,800 connections, want %d and %d as after 300", f, g, files, goroutines)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
