package quota

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/policy/limit/redistest"
)

// reports collects what a Counts says of its server.
type reports struct {
	mu   sync.Mutex
	list []error
}

func (r *reports) add(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, err)
}

// String is one letter for each: "u" for up, "d" for down.
func (r *reports) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := ""
	for _, err := range r.list {
		if err == nil {
			s += "u"
		} else {
			s += "d"
		}
	}
	return s
}

func openShared(t testing.TB, url string, hosts int) (*Counts, *reports) {
	t.Helper()
	r := &reports{}
	a, err := OpenShared(limit.Redis{URL: url, Tenant: "contoso.com", Timeout: time.Minute}, hosts, r.add)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.shared.client.Close() })
	return a, r
}

// takeOne sends a message for all keys, and returns what stands in the way.
func takeOne(a *Counts, now time.Time, recipients int, q Rates, keys ...string) *Refusal {
	var list []*Reservation
	for _, k := range keys {
		r, no := a.Begin(k, q, now)
		if no == nil {
			no = r.Recipients(recipients, now)
		}
		list = append(list, r)
		if no != nil {
			for _, r := range list {
				r.Abort()
			}
			return no
		}
	}
	return a.Commit(now, list...)
}

// takeAll sends messages until one is refused, and returns how many were not.
func takeAll(t testing.TB, a *Counts, q Rates, key string) int {
	t.Helper()
	for n := range 1000 {
		if no := takeOne(a, time.Now(), 1, q, key); no != nil {
			if r := a.Usage(key, time.Now()); len(r) > 0 && r[0].Reserved != 0 {
				t.Errorf("%d places stay taken", r[0].Reserved)
			}
			return n
		}
	}
	t.Fatal("nothing is refused")
	return 0
}

func TestSharedHostsHaveOneLimit(t *testing.T) {
	server := redistest.Start(t)
	a, _ := openShared(t, server.URL(), 2)
	b, reports := openShared(t, server.URL(), 2)
	q := Rates{Messages: mustRates(t, "7/h"), Recipients: mustRates(t, "100/d")}
	for i := range 7 {
		if no := takeOne([]*Counts{a, b}[i%2], time.Now(), 2, q, "printers"); no != nil {
			t.Fatalf("message %d: %+v", i, no)
		}
	}
	for name, x := range map[string]*Counts{"one": a, "other": b} {
		no := takeOne(x, time.Now(), 2, q, "printers")
		if no == nil || no.Key != "printers" || no.Kind != limit.KindMessages || no.Rate.N != 7 || time.Until(no.Opens) < 59*time.Minute || time.Until(no.Opens) > 66*time.Minute {
			t.Errorf("the %s host, over the limit: %+v", name, no)
		}
	}
	if u := b.Usage("printers", time.Now()); len(u) != 2 || u[0].Counted != 7 || u[1].Counted != 14 || u[0].Reserved != 0 {
		t.Errorf("the second host knows of %+v, want all seven messages", u)
	}
	if reports.String() != "u" {
		t.Errorf("reports: %s", reports)
	}
}

// A message counts for its client and its identity or for neither, also where only the server knows
// that one is full.
func TestSharedCommitIsAllOrNothing(t *testing.T) {
	server := redistest.Start(t)
	a, _ := openShared(t, server.URL(), 2)
	b, _ := openShared(t, server.URL(), 2)
	q := Rates{Messages: mustRates(t, "1/h")}
	if no := takeOne(a, time.Now(), 1, q, "identity:hr@contoso.com"); no != nil {
		t.Fatal(no)
	}
	if no := takeOne(b, time.Now(), 1, q, "printers", "identity:hr@contoso.com"); no == nil || no.Key != "identity:hr@contoso.com" {
		t.Errorf("over the identity's limit: %+v", no)
	}
	if no := takeOne(b, time.Now(), 1, q, "printers"); no != nil {
		t.Errorf("the client was counted for a message that was refused: %+v", no)
	}
}

// Whatever hosts ask at the same time, they have no more than the limit in sum.
func TestSharedConcurrency(t *testing.T) {
	server := redistest.Start(t)
	q := Rates{Messages: mustRates(t, "40/h"), Recipients: mustRates(t, "60/h")}
	var messages, recipients atomic.Int64
	var wg sync.WaitGroup
	for h := range 3 {
		a, _ := openShared(t, server.URL(), 3)
		for range 4 {
			wg.Go(func() {
				for i := range 10 {
					if n := 1 + (h+i)%2; takeOne(a, time.Now(), n, q, "printers") == nil {
						messages.Add(1)
						recipients.Add(int64(n))
					}
				}
			})
		}
	}
	wg.Wait()
	if m, r := messages.Load(), recipients.Load(); m > 40 || r > 60 || r < 59 && m < 40 {
		t.Errorf("%d messages to %d recipients, want up to 40 and 60, one of them reached", m, r)
	}
}

// While the server is away a host has its share; when it is back, what was admitted meanwhile
// counts for all.
func TestSharedAway(t *testing.T) {
	server := redistest.Start(t)
	k := redistest.NewLink(t, server.Socket())
	a, ra := openShared(t, "unix://"+k.Path, 3)
	b, _ := openShared(t, server.URL(), 3)
	q := Rates{Messages: mustRates(t, "10/h")}
	small := Rates{Messages: mustRates(t, "2/h")}
	k.Cut(true)
	if n := takeAll(t, a, q, "printers"); n != 3 {
		t.Errorf("%d messages while the server is away, want a third of ten", n)
	}
	if n := takeAll(t, a, small, "sap"); n != 1 {
		t.Errorf("%d messages of two among three hosts, want 1", n)
	}
	if ra.String() != "ud" {
		t.Errorf("reports %s, want one of each", ra)
	}
	k.Cut(false)
	if !a.beat(t.Context()) {
		t.Fatal("the server is not found again")
	}
	if ra.String() != "udu" {
		t.Errorf("reports %s, want one more", ra)
	}
	if n := takeAll(t, b, q, "printers"); n != 7 {
		t.Errorf("%d messages of another host after that, want the seven that are left", n)
	}
	if n := takeAll(t, a, q, "printers"); n != 0 {
		t.Errorf("%d more messages, want none", n)
	}
	// What a host knew last counts too: nothing is left of the limit.
	k.Cut(true)
	if n := takeAll(t, a, q, "printers"); n != 0 {
		t.Errorf("%d messages with a limit that was used up, want none", n)
	}
}

// A server that hangs costs one message the timeout, and the others nothing.
func TestSharedHangingServer(t *testing.T) {
	server := redistest.Start(t)
	r := &reports{}
	a, err := OpenShared(limit.Redis{URL: server.URL(), Tenant: "contoso.com", Timeout: time.Minute}, 2, r.add)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.shared.client.Close() })
	a.shared.timeout = 50 * time.Millisecond // from now on: the server must have been found
	o := limit.Redis{URL: server.URL()}
	other, err := o.Client("redis://HOST")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Do(t.Context(), "CLIENT", "PAUSE", "60000", "ALL").Err(); err != nil {
		t.Fatal(err)
	}
	if n := takeAll(t, a, Rates{Messages: mustRates(t, "100/h")}, "printers"); n != 50 {
		t.Errorf("%d messages, want this host's share of 50", n)
	}
	if r.String() != "ud" {
		t.Errorf("reports %s: more than one message waited, or none", r)
	}
}

// A server that has lost its data learns again what the hosts know.
func TestSharedServerForgets(t *testing.T) {
	server := redistest.Start(t)
	a, _ := openShared(t, server.URL(), 2)
	b, _ := openShared(t, server.URL(), 2)
	q := Rates{Messages: mustRates(t, "10/h"), Recipients: mustRates(t, "100/d")}
	for i := range 8 {
		if no := takeOne([]*Counts{a, b}[i%2], time.Now(), 1, q, "printers"); no != nil {
			t.Fatal(no)
		}
	}
	if err := a.shared.client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	// Before it has been told, a host has its share, of which it has used four.
	if n := takeAll(t, a, q, "printers"); n != 1 {
		t.Errorf("%d messages with a server that knows nothing, want one", n)
	}
	for _, x := range []*Counts{b, a} { // as Run does each second
		if !x.beat(t.Context()) {
			t.Fatal("the server is not found again")
		}
	}
	if n := takeAll(t, b, q, "printers"); n != 1 {
		t.Errorf("%d messages, want the one that is left", n)
	}
}

func TestSharedKeysExpire(t *testing.T) {
	a, _ := openShared(t, redistest.Start(t).URL(), 2)
	if no := takeOne(a, time.Now(), 1, Rates{Messages: mustRates(t, "5/m"), Recipients: mustRates(t, "5/h")}, "printers"); no != nil {
		t.Fatal(no)
	}
	keys, err := a.shared.client.Keys(t.Context(), "*").Result()
	if err != nil || len(keys) != 2 {
		t.Fatalf("keys %q, %v, want the clock and the client", keys, err)
	}
	for _, k := range keys {
		most := 63 * 24 * time.Hour
		if strings.HasSuffix(k, ":printers") {
			most = time.Hour + 2*time.Second
		}
		if ttl, err := a.shared.client.PTTL(t.Context(), k).Result(); err != nil || ttl <= 0 || ttl > most || !strings.HasPrefix(k, "sendas:{contoso.com}:") {
			t.Errorf("%s lives %v, %v, want up to %v", k, ttl, err, most)
		}
	}
}

func TestSharedErrorsHaveNoPassword(t *testing.T) {
	for _, o := range []limit.Redis{
		{URL: "redis://127.0.0.1:1/0", Password: "s3cret"}, {URL: "unix:///nonexistent/socket", Password: "s3cret"}, {URL: "redis://:s3cret@127.0.0.1:x/0"},
	} {
		r := &reports{}
		_, err := OpenShared(o, 2, r.add)
		if err == nil {
			err = r.list[0]
		}
		if err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v, want an error without the password", o.Prefix, err)
		}
	}
}

// The script admits what a Counts of one host admits, and never more than the rate in any period,
// whatever the server's clock does.
func TestSharedAgainstTheRates(t *testing.T) {
	server := redistest.Start(t)
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		hosts := []*Counts{}
		now, off := time.Now(), int64(0)
		began := now
		for range 2 {
			a, err := OpenShared(limit.Redis{URL: server.URL(), Tenant: fmt.Sprint("t", n)}, 2, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer a.shared.client.Close()
			a.shared.mono = func() time.Duration { return now.Sub(began) }
			a.shared.server = func() int64 { return now.UnixMicro() + off }
			a.shared.seen = 0 // what it was told by the real clock
			hosts = append(hosts, a)
		}
		if err := hosts[0].shared.client.Del(context.Background(), hosts[0].shared.prefix+"admission-clock").Err(); err != nil {
			t.Fatal(err)
		}
		for _, a := range hosts {
			a.shared.epoch = ""
			a.beat(context.Background())
		}
		rate := limit.Rate{N: rapid.IntRange(1, 8).Draw(t, "n"), Per: time.Duration(rapid.IntRange(1, 60).Draw(t, "s")) * time.Second}
		var sent []time.Time
		sets := 0
		for range rapid.IntRange(5, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0: // somebody sets the server's clock; a host sees it within a beat
				sets++
				off += rapid.Int64Range(-100_000_000, 100_000_000).Draw(t, "set")
				for _, a := range hosts {
					a.beat(context.Background())
				}
			case 1, 2, 3:
				now = now.Add(time.Duration(rapid.IntRange(1, int(rate.Per)).Draw(t, "wait")))
				for _, a := range hosts {
					a.beat(context.Background())
				}
			default:
				if takeOne(rapid.SampledFrom(hosts).Draw(t, "host"), now, 1, Rates{Messages: []limit.Rate{rate}}, "x") == nil {
					sent = append(sent, now)
				}
			}
		}
		for i := rate.N; i < len(sent); i++ {
			// A server's clock that is set moves what it counts by up to the jitter for each host
			// that looks next.
			if d := sent[i].Sub(sent[i-rate.N]); d < rate.Per-time.Duration(sets*2)*time.Second {
				t.Fatalf("%d messages within %v, the rate is %v", rate.N+1, d, rate)
			}
		}
	})
}

func TestSharedRunTellsAtTheEnd(t *testing.T) {
	server := redistest.Start(t)
	k := redistest.NewLink(t, server.Socket())
	a, _ := openShared(t, "unix://"+k.Path, 2)
	q := Rates{Messages: mustRates(t, "10/h")}
	k.Cut(true)
	if n := takeAll(t, a, q, "printers"); n != 5 {
		t.Fatalf("%d messages alone, want 5", n)
	}
	k.Cut(false)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Run(ctx); err != nil {
		t.Fatal(err)
	}
	b, _ := openShared(t, server.URL(), 2)
	if n := takeAll(t, b, q, "printers"); n != 5 {
		t.Errorf("%d messages of the next process, want the five that are left", n)
	}
}

// BenchmarkSharedCommit is a message with two keys through a real server.
func BenchmarkSharedCommit(b *testing.B) {
	a, _ := openShared(b, redistest.Start(b).URL(), 2)
	q := busyQuota(b)
	q.Messages = []limit.Rate{{N: 1_000_000, Per: time.Minute}}
	q.Recipients = nil
	i := 0
	for b.Loop() {
		i++
		if no := takeOne(a, time.Now(), 1, q, fmt.Sprint("client", i%1000), identity(i%1000)); no != nil {
			b.Fatal(no)
		}
	}
}

// TestSharedWhereARedisIsNotAlone: hosts have one limit by sentinels and in a cluster too, as a user
// of the server's access list with few rights, and for keys of several clients at once.
func TestSharedWhereARedisIsNotAlone(t *testing.T) {
	t.Parallel()
	few := func(t *testing.T, nodes []*redistest.Node) {
		for _, n := range nodes {
			n.Do(t, append([]string{"acl", "setuser", "sendas", "on", ">s3cret", "resetkeys", "~sendas:*"}, strings.Fields(redistest.ACL)...)...)
		}
	}
	as := func(url string) string { return strings.Replace(url, "://", "://sendas:s3cret@", 1) }
	for name, start := range map[string]func(*testing.T) string{
		"sentinels": func(t *testing.T) string {
			w := redistest.StartWatch(t, 1)
			few(t, w.Nodes)
			return as(w.URL())
		},
		"a cluster": func(t *testing.T) string {
			c := redistest.StartCluster(t)
			few(t, c.Nodes)
			return as(c.URL())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := start(t)
			a, _ := openShared(t, url, 2)
			b, r := openShared(t, url, 2)
			now := time.Now()
			q := Rates{Messages: []limit.Rate{{N: 5, Per: time.Hour}}}
			taken := 0
			for i := range 10 {
				if takeOne([]*Counts{a, b}[i%2], now, 1, q, "sap", "printers") == nil {
					taken++
				}
			}
			if taken != 5 || r.String() != "u" {
				t.Errorf("%d messages of two hosts, the store is %q, want 5 and u", taken, r)
			}
		})
	}
}
