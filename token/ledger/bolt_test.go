package ledger

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/sendas/sendas/policy/limit"
)

// TestMain is also the child process of the tests that kill one, or give it no room.
func TestMain(m *testing.M) {
	switch os.Getenv("SENDAS_LIMIT_CHILD") {
	case "sender":
		childSends(os.Args[len(os.Args)-1])
	case "small disk":
		childWithoutRoom(os.Args[len(os.Args)-1])
	default:
		os.Exit(m.Run())
	}
}

func child(t *testing.T, role, path string) (*exec.Cmd, io.Reader) {
	t.Helper()
	cmd := exec.Command(os.Args[0], path)
	cmd.Env = append(os.Environ(), "SENDAS_LIMIT_CHILD="+role)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, out
}

func openBolt(t testing.TB, path string, o BoltOptions) *Bolt {
	t.Helper()
	b, err := OpenBolt(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// crashLimits have short windows, so that many pass in a test.
var crashLimits = limit.Allowance{
	Messages: limit.Rate{N: 20, Per: time.Second}, Recipients: limit.Rate{N: 1_000_000, Per: time.Hour}, Connections: 4,
}

const crashSession = 300 * time.Millisecond

// childSends prints a line for each lease that it is given, with the times before and after, until
// it is killed.
func childSends(path string) {
	b, err := OpenBolt(path, BoltOptions{MaxSession: crashSession, LockTimeout: 10 * time.Second})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	ctx := context.Background()
	for {
		asked := time.Now()
		a, err := b.Take(ctx, "erp@contoso.com", crashLimits, asked)
		if err != nil {
			fmt.Println("error", err)
			return
		}
		if a.Lease == 0 {
			time.Sleep(min(a.Wait, 5*time.Millisecond))
			continue
		}
		fmt.Println(asked.UnixMicro(), time.Now().UnixMicro())
		_ = b.Settle(ctx, "erp@contoso.com", a.Lease, Outcome{Submitted: true, Recipients: 1}, time.Now())
	}
}

func TestBoltSurvivesKill(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "ledger.db")
	var given []moment
	for i := range 30 {
		cmd, out := child(t, "sender", path)
		sc := bufio.NewScanner(out)
		for n := 1; sc.Scan(); n++ {
			if n == 1+i%7 { // right after a lease: the worst moment
				_ = cmd.Process.Kill()
			}
			var asked, got int64
			if _, err := fmt.Sscan(sc.Text(), &asked, &got); err != nil {
				t.Errorf("run %d: %s", i, sc.Text())
				continue
			}
			given = append(given, moment{time.UnixMicro(asked), time.UnixMicro(got)})
		}
		_ = cmd.Wait() // killed
	}
	if len(given) < 2*crashLimits.Messages.N {
		t.Fatalf("only %d leases in all runs; the test tells nothing", len(given))
	}
	if n := most(given, crashLimits.Messages.Per); n > crashLimits.Messages.N {
		t.Errorf("%d messages within %v, limit %v", n, crashLimits.Messages.Per, crashLimits.Messages)
	}
}

// childWithoutRoom goes on until the file may not grow, and tells what became of the leases.
func childWithoutRoom(path string) {
	signal.Ignore(unix.SIGXFSZ)
	b, err := OpenBolt(path, BoltOptions{})
	if err != nil {
		fmt.Println("open", err)
		return
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 64 << 10, Max: unix.RLIM_INFINITY}); err != nil {
		fmt.Println("rlimit", err)
		return
	}
	ctx := context.Background()
	for i := range 10_000 {
		mailbox := fmt.Sprintf("%0100d@contoso.com", i)
		a, err := b.Take(ctx, mailbox, limit.Microsoft(), time.Now())
		if err == nil {
			continue
		}
		u, _ := b.Usage(ctx, mailbox, limit.Microsoft(), time.Now())
		fmt.Printf("full lease=%d usage=%d given=%v %v\n", a.Lease, u.Leases, i > 0, err)
		break
	}
	_ = unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
	a, err := b.Take(ctx, "erp@contoso.com", limit.Microsoft(), time.Now())
	fmt.Printf("room again lease=%v %v\n", a.Lease != 0, err)
	fmt.Println("close", b.Close())
}

func TestBoltOnAFullDiskHandsOutNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	cmd, out := child(t, "small disk", path)
	text, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"full lease=0 usage=0 given=true the lease could not be written to the ledger: ", "file too large\n",
		"room again lease=true <nil>\n", "close <nil>\n",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the process with a full disk says\n%s\nwant %q in it", text, want)
		}
	}
}

func TestBoltSettlesWhatItKnowsAcrossRestarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := limit.Microsoft()
	l.Group, l.GroupRecipients = "tenant", limit.TERRL(1)
	b := openBolt(t, path, BoltOptions{})
	now := time.Now()
	ids := make([]uint64, 3)
	for i := range ids {
		a, err := b.Take(t.Context(), "erp@contoso.com", l, now)
		if err != nil {
			t.Fatal(err)
		}
		ids[i] = a.Lease
	}
	for _, err := range []error{
		b.Settle(t.Context(), "erp@contoso.com", ids[0], Outcome{Submitted: true, Recipients: 7, GroupRecipients: 5}, now),
		b.Settle(t.Context(), "erp@contoso.com", ids[1], Outcome{Submitted: true, Concurrency: true}, now),
		b.Pause(t.Context(), "erp@contoso.com", Pause{now.Add(time.Hour), PauseQuota, "quota"}, now),
		b.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	b = openBolt(t, path, BoltOptions{})
	got, err := b.Usage(t.Context(), "erp@contoso.com", l, now)
	if err != nil {
		t.Fatal(err)
	}
	if d := got.PausedUntil.Sub(now); d < 59*time.Minute || d > time.Hour || !got.Next.Equal(got.PausedUntil) {
		t.Errorf("paused for %v, next lease %v, want about an hour", d, got.Next)
	}
	got.PausedUntil, got.Next = time.Time{}, time.Time{}
	want := Usage{Messages: 3, Recipients: 7, Leases: 1, GroupRecipients: 5, Shrunk: 1, PauseClass: PauseQuota, PauseReason: "quota"}
	if got != want {
		t.Errorf("after the restart %+v, want %+v", got, want)
	}
	if a, err := b.Take(t.Context(), "erp@contoso.com", l, now); err != nil || a.Cause != CausePaused || a.Reason != "quota" {
		t.Errorf("Take = %+v, %v, want a pause", a, err)
	}
}

func TestBoltRefusesWhatIsNotItsOwn(t *testing.T) {
	other := func(format string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			db, err := bbolt.Open(path, 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			err = db.Update(func(tx *bbolt.Tx) error {
				bk, err := tx.CreateBucket([]byte("meta"))
				if err != nil || format == "" {
					return err
				}
				return bk.Put([]byte("format"), []byte(format))
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	text := func(s string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tc := range []struct {
		name string
		make func(t *testing.T, path string)
		want string
	}{
		{"text", text("hello\n"), "is not a ledger of sendas"},
		{"a long file", text(strings.Repeat("root:x:0:0\n", 10_000)), "is not a ledger of sendas"},
		{"another program's", other(""), "is not a ledger of sendas"},
		{"a later version", other("sendas-ledger 2"), "start the version that wrote it"},
		{"a folder", func(t *testing.T, path string) { os.Mkdir(path, 0o700) }, "is no regular file"},
		{"in use", func(t *testing.T, path string) { openBolt(t, path, BoltOptions{}) }, "is in use by another process"},
	} {
		path := filepath.Join(t.TempDir(), "ledger.db")
		tc.make(t, path)
		before, _ := os.ReadFile(path)
		b, err := OpenBolt(path, BoltOptions{LockTimeout: 50 * time.Millisecond})
		if err == nil {
			b.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: error %v, want %q", tc.name, err, tc.want)
		}
		after, _ := os.ReadFile(path)
		if list, _ := filepath.Glob(path + "*"); len(list) != 1 || tc.name != "in use" && string(before) != string(after) {
			t.Errorf("%s: the file was touched: %v", tc.name, list)
		}
	}
}

// damageAt writes rubbish over a part of the file.
func damageAt(off int64, n int) func(t *testing.T, path string) {
	return func(t *testing.T, path string) {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(strings.Repeat("\xff\x5a", n/2)), off); err != nil {
			t.Fatal(err)
		}
	}
}

func cutTo(n int64) func(t *testing.T, path string) {
	return func(t *testing.T, path string) {
		if err := os.Truncate(path, n); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBoltPutsADamagedFileAside(t *testing.T) {
	page := int64(os.Getpagesize())
	for _, tc := range []struct {
		name   string
		damage func(t *testing.T, path string)
	}{
		{"both metadata pages", func(t *testing.T, path string) { damageAt(30, 50)(t, path); damageAt(page+30, 50)(t, path) }},
		{"everything behind the metadata", damageAt(2*page, int(6*page))},
		{"cut off", cutTo(2*page + 100)},
		{"cut off in the first page", cutTo(100)},
		{"a record", func(t *testing.T, path string) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			at := strings.LastIndex(string(text), "erp@contoso.com")
			for ; at >= 0; at = strings.LastIndex(string(text[:at]), "erp@contoso.com") {
				damageAt(int64(at+len("erp@contoso.com")+6), 4)(t, path)
			}
		}},
	} {
		path := filepath.Join(t.TempDir(), "ledger.db")
		b := openBolt(t, path, BoltOptions{})
		mustLease(t, b, limit.Microsoft())
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		tc.damage(t, path)
		b, err := OpenBolt(path, BoltOptions{LockTimeout: time.Second})
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if aside, _ := filepath.Glob(path + ".corrupt-*"); len(aside) != 1 {
			t.Errorf("%s: put aside %v, want one file", tc.name, aside)
		}
		now := time.Now()
		for _, after := range []struct {
			d    time.Duration
			want Cause // "": a lease
		}{{0, CauseMessages}, {MaxSession + 2*time.Minute, CauseRecipients}, {24*time.Hour + MaxSession + time.Minute, ""}} {
			a, err := b.Take(t.Context(), "scan@contoso.com", limit.Microsoft(), now.Add(after.d))
			if err != nil || a.Cause != after.want {
				t.Errorf("%s: after %v %+v, %v, want cause %q", tc.name, after.d, a, err, after.want)
			}
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestBoltForgetsOldMailboxes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	b := openBolt(t, path, BoltOptions{noSync: true})
	now := time.Now()
	l := limit.Allowance{Messages: limit.Rate{N: 30, Per: time.Second}, Recipients: limit.Rate{N: 1000, Per: time.Second}, Connections: 3, Group: "g", GroupRecipients: limit.Rate{N: 1000, Per: time.Second}}
	send := func(i int, now time.Time) {
		mailbox := fmt.Sprintf("%d@contoso.com", i)
		l.Group = fmt.Sprint("g", i%100)
		a, err := b.Take(t.Context(), mailbox, l, now)
		if err != nil || a.Lease == 0 {
			t.Fatal(a, err)
		}
		if err := b.Settle(t.Context(), mailbox, a.Lease, Outcome{Submitted: true, Recipients: 1, GroupRecipients: 1}, now); err != nil {
			t.Fatal(err)
		}
	}
	for i := range minPrune {
		send(i, now)
	}
	send(minPrune, now.Add(time.Minute))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = openBolt(t, path, BoltOptions{})
	if a, g := len(b.book.accounts), len(b.book.groups); a != 1 || g != 1 {
		t.Errorf("%d mailboxes and %d groups in the file, want the last one's", a, g)
	}
}

func TestBoltAfterCloseFails(t *testing.T) {
	b := openBolt(t, filepath.Join(t.TempDir(), "ledger.db"), BoltOptions{})
	if err := errors.Join(b.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
	_, err := b.Take(t.Context(), "erp@contoso.com", limit.Microsoft(), time.Now())
	for what, err := range map[string]error{
		"Take":   err,
		"Settle": b.Settle(t.Context(), "erp@contoso.com", 1, Outcome{}, time.Now()),
		"Pause":  b.Pause(t.Context(), "erp@contoso.com", Pause{Until: time.Now().Add(time.Hour)}, time.Now()),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v, want ErrClosed", what, err)
		}
	}
}

// benchLimits let everything through.
var benchLimits = limit.Allowance{Messages: limit.Rate{N: 1 << 20, Per: time.Minute}, Recipients: limit.Rate{N: 1 << 29, Per: 24 * time.Hour}, Connections: 1 << 20}

// fullBook fills a ledger with mailboxes that have sent at the full rate for a day.
func fullBook(k *book, mailboxes int, now time.Time) {
	for i := range mailboxes {
		a := newAccount()
		a.limits = limit.Microsoft()
		t := k.Read(now)
		for j := range 30 {
			a.verdict(t - limit.Instant(30-j)*2_000_123)
		}
		for j := range bucketsPerWindow {
			a.sent = append(a.sent, bucket{t - limit.Instant(bucketsPerWindow-j)*900_000_123 + 900_000_000, 100})
		}
		k.accounts[fmt.Sprintf("m%d@contoso.com", i)] = a
	}
}

func cpuTime() time.Duration {
	var ru unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// 1,000 mailboxes at 500 leases a second together, evenly spread, each settled after a second. What
// is left of %core without fsync when that of the memory is taken away is the price of the file.
func BenchmarkThousandMailboxes(b *testing.B) {
	b.Run("memory", func(b *testing.B) {
		m := NewMemory()
		fullBook(&m.book, 1000, time.Now())
		fullRate(b, m)
	})
	for _, noSync := range []bool{false, true} {
		b.Run(fmt.Sprintf("bolt fsync=%v", !noSync), func(b *testing.B) {
			k := openBolt(b, filepath.Join(b.TempDir(), "ledger.db"), BoltOptions{noSync: noSync})
			fullBook(&k.book, 1000, time.Now())
			for mailbox := range k.book.accounts {
				k.accounts[mailbox] = true
			}
			fullRate(b, k)
		})
	}
}

func fullRate(b *testing.B, x Store) {
	var (
		mu    sync.Mutex
		waits []time.Duration
		wg    sync.WaitGroup
	)
	began, cpu := time.Now(), cpuTime()
	for i := range 2500 {
		time.Sleep(time.Until(began.Add(time.Duration(i) * 2 * time.Millisecond)))
		wg.Go(func() {
			mailbox, t0 := fmt.Sprintf("m%d@contoso.com", i%1000), time.Now()
			a, err := x.Take(b.Context(), mailbox, benchLimits, t0)
			if err != nil || a.Lease == 0 {
				b.Error(a, err)
			}
			mu.Lock()
			waits = append(waits, time.Since(t0))
			mu.Unlock()
			time.Sleep(time.Second)
			_ = x.Settle(b.Context(), mailbox, a.Lease, Outcome{Submitted: true, Recipients: 3}, time.Now())
		})
	}
	spent := time.Since(began)
	wg.Wait()
	slices.Sort(waits)
	b.ReportMetric(100*float64(cpuTime()-cpu)/float64(spent), "%core")
	b.ReportMetric(float64(waits[len(waits)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(waits[len(waits)*99/100].Microseconds()), "p99-µs")
}

// One lease and its verdict after the other, each with a commit of its own, without fsync: 500 of
// them a second cost %core-at-500/s.
func BenchmarkBoltLease(b *testing.B) {
	k := openBolt(b, filepath.Join(b.TempDir(), "ledger.db"), BoltOptions{noSync: true})
	fullBook(&k.book, 1000, time.Now())
	for mailbox := range k.book.accounts {
		k.accounts[mailbox] = true
	}
	if err := k.commit(); err != nil {
		b.Fatal(err)
	}
	i, cpu := 0, cpuTime()
	for b.Loop() {
		i++
		mailbox := fmt.Sprintf("m%d@contoso.com", i*7%1000)
		a, err := k.Take(b.Context(), mailbox, benchLimits, time.Now())
		if err != nil || a.Lease == 0 {
			b.Fatal(a, err)
		}
		if err := k.Settle(b.Context(), mailbox, a.Lease, Outcome{Submitted: true, Recipients: 3}, time.Now()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(100*500*(cpuTime()-cpu).Seconds()/float64(b.N), "%core-at-500/s")
}

func BenchmarkMemoryPerMailbox(b *testing.B) {
	const n = 10_000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	k := newBook(0)
	fullBook(&k, n, time.Now())
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/mailbox")
	b.ReportMetric(float64(len(k.accounts["m1@contoso.com"].encode())), "B/record")
	runtime.KeepAlive(k)
}
