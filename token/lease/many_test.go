package lease

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/sendas/sendas/internal/record"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/ledger"
)

// manyMailboxes is a directory of n mailboxes, each of which has a second sender: alias0@ to
// aliasN@contoso.com.
func manyMailboxes(n int, tokens Tokens) poolDirectory {
	dir := make(poolDirectory, 2*n)
	for i := range n {
		list := []*Mailbox{{Address: boxName(i), Label: boxName(i), Limits: limit.Microsoft(), Tokens: tokens}}
		dir[boxName(i)], dir[fmt.Sprintf("alias%d@contoso.com", i)] = list, list
	}
	return dir
}

func manyLeases(ledger ledger.Store, n int) *Lessor {
	l := NewLessor(ledger, NewMetrics(prometheus.NewRegistry()), slog.New(slog.DiscardHandler))
	l.Use(manyMailboxes(n, &fakeTokens{}))
	return l
}

// TestManyMailboxes: of 1,000 mailboxes, ten have a backlog by two senders. Nobody else waits for
// them, and the two senders of a mailbox are served in the order of their look-ups.
func TestManyMailboxes(t *testing.T) {
	const mailboxes, busy, backlog = 1000, 10, 60
	synctest.Test(t, func(t *testing.T) {
		l := manyLeases(ledger.NewMemory(), mailboxes)
		var (
			pids   atomic.Int32
			wg     sync.WaitGroup
			mu     sync.Mutex // guards served
			served = make([][]int, busy)
		)
		deliver := func(sender string, leased func()) (waited time.Duration, ok bool) {
			c, began := process(pids.Add(1)), time.Now()
			r := l.Lease(t.Context(), c, sender)
			waited = time.Since(began)
			if r.Status != OK {
				return waited, false
			}
			leased()
			for _, line := range []string{authOK, mailOK, rcptOK, dataOK} {
				l.Reply(t.Context(), c, line)
			}
			time.Sleep(700 * time.Millisecond)
			l.Reply(t.Context(), c, accepted)
			return waited, true
		}
		for b := range busy {
			for i := range backlog {
				sender := []string{boxName(b), fmt.Sprintf("alias%d@contoso.com", b)}[i%3%2]
				wg.Go(func() {
					time.Sleep(time.Duration(i) * time.Millisecond)
					deliver(sender, func() { // some are deferred: their turn would come too late
						mu.Lock()
						defer mu.Unlock()
						served[b] = append(served[b], i)
					})
				})
			}
		}
		for b := busy; b < mailboxes; b++ {
			wg.Go(func() {
				time.Sleep(10*time.Second + time.Duration(b)*time.Millisecond)
				if waited, ok := deliver(boxName(b), func() {}); !ok || waited > 0 {
					t.Errorf("mailbox %d, which has no backlog, waited %v for a lease (got one: %v)", b, waited, ok)
				}
			})
		}
		wg.Wait()
		for b, order := range served {
			if !slices.IsSorted(order) {
				t.Errorf("the look-ups of mailbox %d were served in the order %v", b, order)
			}
			if len(order) < 25 {
				t.Errorf("mailbox %d served %d look-ups within a minute", b, len(order))
			}
		}
	})
}

// BenchmarkLease1000 measures a look-up for which there is room, with 1,000 mailboxes, the
// ledger in a file and a record, and what each mailbox takes of the memory. A look-up has to be on the disk before
// it is answered, so it is also held against that alone: two writes of a page, each with its sync, as
// a commit of the ledger has.
func BenchmarkLease1000(b *testing.B) {
	const mailboxes = 1000
	before := heap()
	ledger, err := ledger.OpenBolt(filepath.Join(b.TempDir(), "token.db"), ledger.BoltOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer ledger.Close()
	l := manyLeases(ledger, mailboxes)
	k := record.NewKeeper(record.TokenHalf, filepath.Join(b.TempDir(), "record.db"), record.Settings{On: true, Days: 30, Size: 1 << 30}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	go k.Run()
	defer k.Close()
	l.Record(k)
	for _, list := range (*l.dir.Load()).(poolDirectory) {
		list[0].Limits.Messages.Per = 100 * time.Millisecond // so that there is room in each round
	}
	one := func(i int) time.Duration {
		c := process(int32(i%mailboxes) + 1)
		began := time.Now()
		r := l.Lease(b.Context(), c, boxName(i%mailboxes))
		took := time.Since(began)
		if r.Status != OK {
			b.Fatalf("look-up %d: %q", i, r.Value)
		}
		for _, line := range []string{authOK, mailOK, rcptOK, dataOK, accepted} {
			l.Reply(b.Context(), c, line)
		}
		return took
	}
	for i := range mailboxes {
		one(i)
	}
	memory := heap() - before
	bare := bareCommit(b)
	var times, bares []time.Duration
	for i := 0; b.Loop(); i++ {
		times, bares = append(times, one(i)), append(bares, bare())
	}
	slices.Sort(times)
	slices.Sort(bares)
	for name, i := range map[string]int{"p50": len(times) / 2, "p99": len(times) * 99 / 100} {
		b.ReportMetric(float64(times[i].Microseconds()), name+"-µs")
		b.ReportMetric(float64(times[i])/float64(bares[i]), name+"-vs-disk")
	}
	b.ReportMetric(0, "ns/op") // of both
	b.ReportMetric(float64(memory)/mailboxes, "B/mailbox")
	runtime.KeepAlive(l)
}

// bareCommit returns what measures the disk's part of a commit.
func bareCommit(b *testing.B) func() time.Duration {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "page"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	page := make([]byte, 4096)
	return func() time.Duration {
		began := time.Now()
		for i := range int64(2) {
			if _, err := f.WriteAt(page, i*4096); err != nil {
				b.Fatal(err)
			}
			if err := unix.Fdatasync(int(f.Fd())); err != nil {
				b.Fatal(err)
			}
		}
		return time.Since(began)
	}
}

// heap returns the bytes in use after a collection.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
