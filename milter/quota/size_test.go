package quota

import (
	"fmt"
	"runtime"
	"testing"
	"time"
)

// manyKeys is how many keys must fit into 50 MB.
const manyKeys = 100_000

// busyQuota is one of three rates, as a site has it.
func busyQuota(t testing.TB) Rates {
	t.Helper()
	return Rates{Messages: mustRates(t, "20/m", "500/h"), Recipients: mustRates(t, "500/d")}
}

func identity(i int) string { return IdentityKey(fmt.Sprintf("firstname.lastname%06d@contoso.com", i)) }

func heap() uint64 {
	runtime.GC()
	runtime.GC() // what the first one has only begun to sweep
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestMemoryOfManyKeys(t *testing.T) {
	const most = 45_000_000 // a tenth below what is promised
	before := heap()
	a, err := Open(t.Context(), make(memoryStore), nil) // nothing is saved: all are waiting for it
	if err != nil {
		t.Fatal(err)
	}
	q := busyQuota(t)
	for hour := range 3 {
		for i := range manyKeys {
			submit(t, a, identity(i), q, 2, dawn.Add(time.Duration(hour)*time.Hour))
		}
	}
	used := heap() - before
	if a.Keys() != manyKeys {
		t.Fatalf("%d keys are known, want %d", a.Keys(), manyKeys)
	}
	t.Logf("%d keys take %.1f MB", manyKeys, float64(used)/1e6)
	if used > most {
		t.Errorf("%d keys take %d bytes, want at most %d", manyKeys, used, most)
	}
	runtime.KeepAlive(a)
}

// BenchmarkAdmission decides on a message with two recipients, among ten keys and among a hundred
// thousand, in turn, so that a noisy machine is noisy for both. "x10keys" is the time among the
// many as a multiple of that among the few.
func BenchmarkAdmission(b *testing.B) {
	const batch = 1000
	few, many := newLoad(b, 10), newLoad(b, manyKeys)
	n := 0
	for b.Loop() {
		few.send(b, batch)
		many.send(b, batch)
		n += batch
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(few.took.Nanoseconds())/float64(n), "ns/msg-10keys")
	b.ReportMetric(float64(many.took.Nanoseconds())/float64(n), "ns/msg-100000keys")
	b.ReportMetric(float64(many.took)/float64(few.took), "x10keys")
}

// A load sends for its keys in turn, each once an hour, so that the windows of each hold the same,
// however many there are.
type load struct {
	a     *Counts
	keys  int
	quota Rates
	now   time.Time
	sent  int
	took  time.Duration
}

// newLoad makes a load that has lasted for more than a day.
func newLoad(b *testing.B, keys int) *load {
	l := &load{a: New(), keys: keys, quota: busyQuota(b), now: dawn}
	for range 26 {
		l.send(b, keys)
	}
	l.took = 0
	return l
}

func (l *load) send(b *testing.B, n int) {
	step := time.Hour / time.Duration(l.keys)
	keys := make([]string, n) // made anew, as for a message that has just been read
	for i := range keys {
		keys[i] = identity((l.sent + i) * 7919 % l.keys) // in no order that memory has
	}
	began := time.Now()
	for _, k := range keys {
		l.now = l.now.Add(step)
		r, no := l.a.Begin(k, l.quota, l.now)
		if no != nil || r.Recipients(1, l.now) != nil || r.Recipients(1, l.now) != nil || l.a.Commit(l.now, r) != nil {
			b.Fatalf("message of %q is refused", k)
		}
	}
	l.took += time.Since(began)
	l.sent += n
}
