package ledger

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/policy/limit/redistest"
)

func openRedis(t testing.TB, o limit.Redis) *Redis {
	t.Helper()
	r, err := NewRedis(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestRedisAgainstTheModel(t *testing.T) {
	server := redistest.Start(t)
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		off := time.Duration(0)
		s := &stage{}
		r, err := NewRedis(limit.Redis{URL: server.URL(), Tenant: fmt.Sprint("t", n), MaxSession: testSession})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		r.mono = func() time.Duration { return s.now }
		r.server = func() limit.Instant { return at(start.Add(s.now + off)) }
		s.ledger = r
		s.jump = func(d time.Duration) { // the server's clock, both ways
			if d.Abs() <= time.Second { // taken for jitter of the way to the server: JITTER of redis.lua
				d *= 100
			}
			off += d
			_, err := r.Usage(t.Context(), testMailboxes[0], limit.Microsoft(), start)
			s.must(t, err)
		}
		play(t, s)
	})
}

// The script and the account are the same algorithm: every answer is the same.
func TestRedisAnswersAsTheAccountDoes(t *testing.T) {
	server := redistest.Start(t)
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		now := start
		m := &Memory{book: newBook(testSession)}
		r, err := NewRedis(limit.Redis{URL: server.URL(), Tenant: fmt.Sprint("t", n), MaxSession: testSession})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		r.mono = func() time.Duration { return now.Sub(start) }
		r.server = func() limit.Instant { return at(now) }
		l := drawLimits(t)
		if rapid.IntRange(0, 3).Draw(t, "messages limited") == 0 {
			l.Messages.N = 0
		}
		if rapid.IntRange(0, 3).Draw(t, "recipients limited") == 0 {
			l.Recipients.N = 0
		}
		l.Unseen = rapid.SampledFrom([]int{0, 1, 50, 70, 1000}).Draw(t, "unseen")
		type pair struct{ redis, memory uint64 }
		out := map[string][]pair{}
		for range rapid.IntRange(10, 80).Draw(t, "steps") {
			mailbox := rapid.SampledFrom(testMailboxes).Draw(t, "mailbox")
			switch rapid.SampledFrom([]string{"take", "take", "take", "settle", "settle", "wait", "pause"}).Draw(t, "step") {
			case "take":
				got, err := r.Take(t.Context(), mailbox, l, now)
				want, _ := m.Take(t.Context(), mailbox, l, now)
				if want.Lease != 0 && got.Lease != 0 {
					out[mailbox] = append(out[mailbox], pair{got.Lease, want.Lease})
					got.Lease = want.Lease
				}
				if err != nil || got != want {
					t.Fatalf("Take(%s) = %+v, %v, want %+v", mailbox, got, err, want)
				}
			case "settle":
				if len(out[mailbox]) == 0 {
					continue
				}
				x := out[mailbox][0]
				out[mailbox] = out[mailbox][1:]
				o := Outcome{Submitted: rapid.Bool().Draw(t, "submitted"), Concurrency: rapid.Bool().Draw(t, "432"),
					Recipients: rapid.IntRange(0, 60).Draw(t, "recipients"), GroupRecipients: rapid.IntRange(0, 60).Draw(t, "group"),
					Open: rapid.IntRange(0, 3).Draw(t, "open") == 0}
				if o.Open { // and later once more
					out[mailbox] = append(out[mailbox], x)
				}
				if err := r.Settle(t.Context(), mailbox, x.redis, o, now); err != nil {
					t.Fatal(err)
				}
				_ = m.Settle(t.Context(), mailbox, x.memory, o, now)
			case "wait":
				now = now.Add(time.Duration(rapid.IntRange(1, 10_000_000).Draw(t, "µs")) * time.Microsecond)
			case "pause":
				until := now.Add(time.Duration(rapid.IntRange(-1, 5).Draw(t, "pause")) * time.Second)
				p := Pause{until, rapid.SampledFrom([]PauseClass{PauseQuota, PauseFull, ""}).Draw(t, "class"), "quota"}
				if err := r.Pause(t.Context(), mailbox, p, now); err != nil {
					t.Fatal(err)
				}
				_ = m.Pause(t.Context(), mailbox, p, now)
			}
			got, err := r.Usage(t.Context(), mailbox, l, now)
			if want, _ := m.Usage(t.Context(), mailbox, l, now); err != nil || got != want {
				t.Fatalf("Usage(%s) = %+v, %v, want %+v", mailbox, got, err, want)
			}
		}
	})
}

func TestRedisUsesTheTimeOfTheServer(t *testing.T) {
	r := openRedis(t, limit.Redis{URL: redistest.Start(t).URL(), Tenant: "contoso.com"})
	l := limit.Allowance{Messages: limit.Rate{N: 1, Per: time.Hour}, Recipients: limit.Rate{N: 100, Per: time.Hour}, Connections: 1}
	mustLease(t, r, l)
	// The caller's clock is a year ahead; nothing has left the window.
	a, err := r.Take(t.Context(), "erp@contoso.com", l, time.Now().AddDate(1, 0, 0))
	if err != nil || a.Lease != 0 {
		t.Errorf("Take a year later by this host's clock = %+v, %v, want a wait", a, err)
	}
}

func mustLease(t *testing.T, x Store, l limit.Allowance) uint64 {
	t.Helper()
	a, err := x.Take(t.Context(), "erp@contoso.com", l, time.Now())
	if err != nil || a.Lease == 0 {
		t.Fatalf("Take = %+v, %v, want a lease", a, err)
	}
	return a.Lease
}

func TestRedisKeysExpireButTheClock(t *testing.T) {
	r := openRedis(t, limit.Redis{URL: redistest.Start(t).URL(), Prefix: "site", Tenant: "contoso.com"})
	l := limit.Microsoft()
	l.Group, l.GroupRecipients = "moera", limit.MOERA()
	mustLease(t, r, l)
	for _, tc := range []struct {
		key      string
		min, max time.Duration
	}{
		{"site:{contoso.com}:clock", -1, -1},
		{"site:{contoso.com}:mailbox:erp@contoso.com", 48 * time.Hour, 50 * time.Hour},
		{"site:{contoso.com}:group:moera", 48 * time.Hour, 50 * time.Hour},
	} {
		got, err := r.client.TTL(t.Context(), tc.key).Result()
		if err != nil || got < tc.min || got > tc.max {
			t.Errorf("%s lives %v, %v, want %v to %v", tc.key, got, err, tc.min, tc.max)
		}
	}
}

func TestRedisThatHasLostItsDataHoldsEverythingBack(t *testing.T) {
	server := redistest.Start(t)
	r := openRedis(t, limit.Redis{URL: server.URL(), Tenant: "contoso.com"})
	mustLease(t, r, limit.Microsoft())
	if err := r.client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	a, err := r.Take(t.Context(), "scan@contoso.com", limit.Microsoft(), time.Now())
	if err != nil || a.Lease != 0 || a.Cause != CauseMessages {
		t.Errorf("Take after the loss = %+v, %v, want a wait", a, err)
	}
	// A host that has never used it cannot know; neither may it open what the other has closed.
	other := openRedis(t, limit.Redis{URL: server.URL(), Tenant: "contoso.com"})
	if a, err := other.Take(t.Context(), "scan@contoso.com", limit.Microsoft(), time.Now()); err != nil || a.Lease != 0 {
		t.Errorf("Take of another host = %+v, %v, want a wait", a, err)
	}
}

// A lease that was given while nobody heard the answer comes back with the next call.
func TestRedisGivesBackALeaseInDoubt(t *testing.T) {
	r := openRedis(t, limit.Redis{URL: redistest.Start(t).URL(), Tenant: "contoso.com"})
	l := limit.Allowance{Messages: limit.Rate{N: 30, Per: time.Minute}, Recipients: limit.Rate{N: 1000, Per: time.Hour}, Connections: 1}
	id := mustLease(t, r, l)
	r.doubts(doubtful{mailbox: "erp@contoso.com", id: id})
	mustLease(t, r, l)
}

func TestRedisWithoutServerFailsWithoutThePassword(t *testing.T) {
	for _, url := range []string{
		"redis://:s3cret@127.0.0.1:1/0", "rediss://:s3cret@127.0.0.1:1/0", "unix://:s3cret@/nonexistent/socket", // nobody there
		"redis://:s3cret@127.0.0.1:notaport/0", "http://:s3cret@127.0.0.1", "redis://:s3cret@127.0.0.1:6379/notadb", "s3cret", // wrong
	} {
		r, err := NewRedis(limit.Redis{URL: url})
		if err == nil {
			_, err = r.Take(t.Context(), "erp@contoso.com", limit.Microsoft(), time.Now())
			r.Close()
		}
		if err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: error %v, want one without the password", strings.ReplaceAll(url, "s3cret", "PASSWORD"), err)
		}
	}
}

func TestRedisPassword(t *testing.T) {
	server := redistest.Start(t, "--requirepass", "s3cret")
	for _, tc := range []struct {
		url, password string
		want          bool
	}{
		{"unix://:s3cret@" + server.Socket(), "", true},
		{"unix://" + server.Socket(), "s3cret", true},
		{"unix://:wr0ng@" + server.Socket(), "", false},
		{"unix://" + server.Socket(), "wr0ng", false},
		{"unix://" + server.Socket(), "", false},
	} {
		r := openRedis(t, limit.Redis{URL: tc.url, Password: tc.password})
		a, err := r.Take(t.Context(), "erp@contoso.com", limit.Microsoft(), time.Now())
		if got := a.Lease != 0; got != tc.want || tc.want != (err == nil) {
			t.Errorf("%s: lease %v, error %v, want lease %v", tc.url, got, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), "wr0ng") {
			t.Errorf("the error holds the password: %v", err)
		}
	}
}

// TestRedisAdopt: a lease of a process that was killed is settled by the next one, for the group
// too.
func TestRedisAdopt(t *testing.T) {
	server := redistest.Start(t)
	l := limit.Microsoft()
	l.Group, l.GroupRecipients = "external", limit.MOERA()
	a, err := openRedis(t, limit.Redis{URL: server.URL()}).Take(t.Context(), "erp@contoso.com", l, time.Now())
	if err != nil || a.Lease == 0 {
		t.Fatal(a, err)
	}
	r := openRedis(t, limit.Redis{URL: server.URL()})
	r.Adopt("erp@contoso.com", a.Lease, l)
	if err := r.Settle(t.Context(), "erp@contoso.com", a.Lease, Outcome{Submitted: true, Recipients: 5, GroupRecipients: 3}, time.Now()); err != nil {
		t.Fatal(err)
	}
	u, err := r.Usage(t.Context(), "erp@contoso.com", l, time.Now())
	if err != nil || u.Leases != 0 || u.Recipients != 5 || u.GroupRecipients != 3 {
		t.Errorf("usage %+v, %v, want 5 recipients, 3 of them of the group", u, err)
	}
	// The room that the lease held in the group is free again: two deliveries of 50 would not fit
	// otherwise.
	if a, err := r.Take(t.Context(), "hr@contoso.com", l, time.Now()); err != nil || a.Lease == 0 {
		t.Errorf("the next lease: %+v, %v", a, err)
	}
}

func BenchmarkRedisLease(b *testing.B) {
	server := redistest.Start(b)
	r := openRedis(b, limit.Redis{URL: server.URL(), Tenant: "contoso.com"})
	ctx := context.Background()
	i := 0
	for b.Loop() {
		i++
		mailbox := fmt.Sprintf("m%d@contoso.com", i%1000)
		a, err := r.Take(ctx, mailbox, benchLimits, time.Now())
		if err != nil || a.Lease == 0 {
			b.Fatal(a, err)
		}
		if err := r.Settle(ctx, mailbox, a.Lease, Outcome{Submitted: true, Recipients: 1}, time.Now()); err != nil {
			b.Fatal(err)
		}
	}
}

// TestRedisAsAUserWithFewRights: what the documents let a user of the server's access list do is
// enough.
func TestRedisAsAUserWithFewRights(t *testing.T) {
	t.Parallel()
	n := redistest.StartNode(t)
	n.Do(t, append([]string{"acl", "setuser", "sendas", "on", ">s3cret", "resetkeys", "~sendas:*"}, strings.Fields(redistest.ACL)...)...)
	h := newHost(t, "redis://sendas:s3cret@"+n.Addr+"/2", "a", 1)
	h.waitFor(t, true)
	l := limit.Microsoft()
	l.Group, l.GroupRecipients = "external", limit.TERRL(1)
	a, err := h.ask(t, l)
	if err != nil || a.Lease == 0 {
		t.Fatalf("Take = %+v, %v", a, err)
	}
	if err := h.Settle(t.Context(), "erp@contoso.com", a.Lease, Outcome{Submitted: true, Recipients: 1}, time.Now()); err != nil || !h.InUse() {
		t.Errorf("Settle: %v", err)
	}
	if _, err := h.store.Health(t.Context()); err != nil {
		t.Errorf("Health: %v", err)
	}
	if got := n.Do(t, "-n", "2", "dbsize"); got != "3" {
		t.Errorf("database 2 has %s keys, want clock, mailbox and group", got)
	}
}
