package ledger

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/policy/limit/redistest"
)

// throne is a master and a replica, and the address by which hosts reach whoever is the master.
type throne struct {
	a, b *redistest.Node
	way  *redistest.Switch
}

func newThrone(t *testing.T) *throne {
	t.Helper()
	x := &throne{a: redistest.StartNode(t, "--repl-diskless-sync-delay", "0")}
	port := x.a.Addr[strings.LastIndexByte(x.a.Addr, ':')+1:]
	x.b = redistest.StartNode(t, "--replicaof", "127.0.0.1 "+port)
	redistest.WaitFor(t, "the replica", func() bool { return strings.Contains(x.b.Do(t, "info", "replication"), "master_link_status:up") })
	x.way = redistest.NewSwitch(t, x.a.Addr)
	return x
}

// part makes the replica a master of its own: it has all that the master has done so far, and
// nothing of what that one does from now on.
func (x *throne) part(t *testing.T) {
	t.Helper()
	offset := func(n *redistest.Node, field string) string {
		_, rest, _ := strings.Cut(n.Do(t, "info", "replication"), field+":")
		return strings.Fields(rest)[0]
	}
	redistest.WaitFor(t, "the replica to have all", func() bool {
		has := offset(x.b, "slave_repl_offset")
		return has == offset(x.a, "master_repl_offset")
	})
	x.b.Do(t, "replicaof", "no", "one")
}

// change leads hosts to the new master.
func (x *throne) change() { x.way.To(x.b.Addr) }

// reignLimits have windows that no test outlives.
var reignLimits = limit.Allowance{Messages: limit.Rate{N: 30, Per: time.Hour}, Recipients: limit.Rate{N: 5_000, Per: time.Hour}, Connections: 6,
	Group: "external", GroupRecipients: limit.Rate{N: 4_000, Per: time.Hour}}

// known makes a host one that has been there for long: else its share is kept back for an hour.
func (h *host) known(t *testing.T) {
	t.Helper()
	h.waitFor(t, true)
	if err := h.store.client.HSet(t.Context(), h.store.prefix+"clock", "j:"+h.o.Host, 0).Err(); err != nil {
		t.Fatal(err)
	}
}

func (h *host) settle(t *testing.T, id uint64, recipients int) {
	t.Helper()
	if err := h.Settle(t.Context(), "erp@contoso.com", id, Outcome{Submitted: true, Recipients: recipients, GroupRecipients: recipients / 2}, time.Now()); err != nil {
		t.Fatal(err)
	}
}

// whole waits until the store has all hosts' word, and returns the usage.
func (h *host) whole(t *testing.T) (u Usage) {
	t.Helper()
	redistest.WaitFor(t, "all hosts to have told the new master", func() bool {
		var err error
		if u, err = h.store.Usage(t.Context(), "erp@contoso.com", reignLimits, time.Now()); err != nil || !h.InUse() {
			return false
		}
		head, err := h.store.client.HMGet(t.Context(), h.store.prefix+"clock", "whole", "term").Result()
		if err != nil || head[0] == nil || head[0] != head[1] {
			return false
		}
		u, err = h.store.Usage(t.Context(), "erp@contoso.com", reignLimits, time.Now()) // as it is now
		return err == nil
	})
	return u
}

// TestNewMasterIsToldWhatItLacks: what the master had done and the replica had not yet heard of is
// there once, wherever the telling breaks off, and whether or not the answer came.
func TestNewMasterIsToldWhatItLacks(t *testing.T) {
	t.Parallel()
	for step := range 8 { // beat, settle, take, settle, take, pause, join; the last one breaks nothing
		for _, heard := range []bool{false, true} {
			t.Run(fmt.Sprintf("step %d, heard %v", step, heard), func(t *testing.T) {
				t.Parallel()
				x := newThrone(t)
				way := &brittle{left: -1}
				a, b := newPatientHost(t, x.way.URL(), "a", 2, nil), newPatientHost(t, x.way.URL(), "b", 2, nil)
				a.known(t)
				b.known(t)
				early := a.mustLeaseSoon(t, reignLimits)
				a.settle(t, a.mustLeaseSoon(t, reignLimits), 3)
				x.part(t)
				a.settle(t, early, 5)
				a.settle(t, a.mustLeaseSoon(t, reignLimits), 7)
				open := a.mustLeaseSoon(t, reignLimits)
				if err := a.Pause(t.Context(), "hr@contoso.com", Pause{time.Now().Add(time.Hour), PauseFull, "full"}, time.Now()); err != nil {
					t.Fatal(err)
				}
				b.settle(t, b.mustLeaseSoon(t, reignLimits), 11)
				if step < 7 {
					a.store.client.AddHook(way)
					way.set(false, step, heard)
				}
				x.change()
				if step < 7 {
					redistest.WaitFor(t, "the cable to be cut", func() bool { return way.broken() > 0 })
					way.set(false, -1, false)
				}
				u := b.whole(t)
				u.Next = time.Time{}
				if want := (Usage{Messages: 5, Recipients: 3 + 5 + 7 + 11, GroupRecipients: 1 + 2 + 3 + 5, Leases: 1}); u != want {
					t.Errorf("the new master knows %+v, want %+v", u, want)
				}
				a.settle(t, open, 13)
				if u := b.whole(t); u.Leases != 0 || u.Recipients != 26+13 {
					t.Errorf("with the last one it knows %+v, want 39 recipients and none out", u)
				}
				if p, err := b.store.Usage(t.Context(), "hr@contoso.com", reignLimits, time.Now()); err != nil || p.PauseClass != PauseFull {
					t.Errorf("the pause: %+v, %v", p, err)
				}
			})
		}
	}
}

// TestNewMasterIsToldAfterARestart: a process that was not there tells what its diary has: nothing
// is missing, and what is too much is what came shortly before.
func TestNewMasterIsToldAfterARestart(t *testing.T) {
	t.Parallel()
	x := newThrone(t)
	file := filepath.Join(t.TempDir(), "diary.db")
	diary := openDiary(t, file)
	a, b := newPatientHost(t, x.way.URL(), "a", 2, nil), newPatientHost(t, x.way.URL(), "b", 2, diary)
	a.known(t)
	b.known(t)
	a.settle(t, a.mustLeaseSoon(t, reignLimits), 3)
	x.part(t)
	b.settle(t, b.mustLeaseSoon(t, reignLimits), 5)
	open := b.mustLeaseSoon(t, reignLimits)
	if err := errors.Join(b.Close(), diary.Close()); err != nil {
		t.Fatal(err)
	}
	x.change()
	b = newPatientHost(t, x.way.URL(), "b", 2, openDiary(t, file))
	u := b.whole(t)
	if u.Messages != 3 || u.Recipients != 8 || u.GroupRecipients != 3 || u.Leases != 1 {
		t.Errorf("the new master knows %+v, want 3 messages, one of them out, and 8 recipients", u)
	}
	b.Adopt("erp@contoso.com", open, reignLimits)
	b.settle(t, open, 7)
	if u := b.whole(t); u.Recipients != 15 || u.Leases != 0 {
		t.Errorf("with the last one it knows %+v, want 15 recipients", u)
	}
}

// TestNewMasterWaitsForAll: a host that has told its own gets no lease before the other one has too,
// or the window is over; and then less, for what the other may have sent.
func TestNewMasterWaitsForAll(t *testing.T) {
	t.Parallel()
	l := reignLimits
	l.Group, l.Messages.Per = "", 3*time.Second
	x := newThrone(t)
	other := redistest.NewSwitch(t, x.a.Addr)
	a, b := newPatientHost(t, x.way.URL(), "a", 2, nil), newPatientHost(t, other.URL(), "b", 2, nil)
	a.known(t)
	b.known(t)
	x.part(t)
	for range 6 {
		b.settle(t, b.mustLeaseSoon(t, l), 1)
	}
	other.To("") // b is gone, with what only the former master knew
	began := time.Now()
	x.change()
	redistest.WaitFor(t, "a at the new master", func() bool {
		ans, err := a.Take(t.Context(), "erp@contoso.com", l, time.Now())
		return err == nil && strings.Contains(ans.Reason, "another master")
	})
	var first time.Time
	redistest.WaitFor(t, "a lease", func() bool {
		ans, err := a.Take(t.Context(), "erp@contoso.com", l, time.Now())
		first = time.Now()
		return err == nil && ans.Lease != 0
	})
	if d := first.Sub(began); d < l.Messages.Per {
		t.Errorf("a lease after %v, want a window to have passed", d)
	}
	// Connections are kept back from the window, and the recipients of a whole window of messages.
	a.mustRefuse(t, l, 30-6)
	other.To(x.b.Addr)
	b.waitFor(t, true)
	if u := a.whole(t); u.Recipients < 6 {
		t.Errorf("when b is back the store knows %+v, want its 6 recipients", u)
	}
	if ans, err := a.ask(t, l); err != nil || ans.Lease == 0 {
		t.Errorf("Take when all have told: %+v, %v", ans, err)
	}
}

// mustRefuse looks at the limits in force: so many messages are all that there are in a window.
func (h *host) mustRefuse(t *testing.T, l limit.Allowance, most int) {
	t.Helper()
	var ids []uint64
	began := time.Now()
	for time.Since(began) < l.Messages.Per*9/10 {
		ans, err := h.Take(t.Context(), "erp@contoso.com", l, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if ans.Lease == 0 {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		ids = append(ids, ans.Lease)
		h.settle(t, ans.Lease, 1)
	}
	if len(ids) > most {
		t.Errorf("%d leases within a window, want at most %d", len(ids), most)
	}
}

// counter counts what is sent to the server.
type counter struct{ scripts, others atomic.Int64 }

func (c *counter) DialHook(next redis.DialHook) redis.DialHook { return next }
func (c *counter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (c *counter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if name := cmd.Name(); name == "evalsha" {
			c.scripts.Add(1)
		} else {
			c.others.Add(1)
		}
		return next(ctx, cmd)
	}
}

// TestOneRoundTrip: a lease is one question to the store, and its end another one, wherever the
// store is.
func TestOneRoundTrip(t *testing.T) {
	t.Parallel()
	l := reignLimits
	l.Messages.N = 1000
	for name, url := range map[string]func() string{
		"one server":  func() string { return "redis://" + redistest.StartNode(t).Addr },
		"by sentinel": func() string { return redistest.StartWatch(t, 1).URL() },
		"a cluster":   func() string { return redistest.StartCluster(t).URL() },
	} {
		h := newHostWith(t, url(), "a", 1, SharedOptions{Silence: time.Hour, Probe: time.Hour}) // no beats
		h.known(t)
		h.settle(t, h.mustLeaseSoon(t, l), 1)
		var c counter
		h.store.client.AddHook(&c)
		const n = 50
		for range n {
			h.settle(t, h.mustLeaseSoon(t, l), 1)
		}
		if got, others := c.scripts.Load(), c.others.Load(); got != 2*n || others != 0 {
			t.Errorf("%s: %d scripts and %d other commands for %d messages, want two scripts each", name, got, others, n)
		}
	}
}

// TestFailover: real sentinels, and a real cluster, change the master while hosts send; in no window
// are there more messages than may be.
func TestFailover(t *testing.T) {
	t.Parallel()
	t.Run("sentinels", func(t *testing.T) {
		t.Parallel()
		p := redistest.StartWatch(t, 2, "--min-replicas-to-write", "1", "--min-replicas-max-lag", "2")
		testFailover(t, p.URL(), func() (old *redistest.Node, changed func()) {
			old, _ = p.Master(t)
			return old, func() { p.WaitMaster(t, old) }
		}, p.WaitReplicas)
	})
	t.Run("a cluster", func(t *testing.T) {
		t.Parallel()
		c := redistest.StartCluster(t)
		key := (&limit.Redis{Tenant: "contoso.com"}).Keys() + "clock"
		testFailover(t, c.URL(), func() (old *redistest.Node, changed func()) {
			old = c.MasterOf(t, key)
			return old, func() {
				redistest.WaitFor(t, "another master", func() bool { m := c.MasterOf(t, key); return m != nil && m != old })
			}
		}, c.WaitReplicas)
	})
}

// testFailover kills the master that master names, and then the next one; the first is back by then.
func testFailover(t *testing.T, url string, master func() (*redistest.Node, func()), settled func(testing.TB)) {
	start := func(name string) *host { // a server that hangs is to be noticed
		h := newHostOf(t, limit.Redis{URL: url, Tenant: "contoso.com", Timeout: 500 * time.Millisecond}, name, 2, SharedOptions{Silence: testSilence})
		h.waitFor(t, true)
		return h
	}
	a, b := start("a"), start("b")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var (
		p  tape
		wg sync.WaitGroup
	)
	wg.Go(func() { a.send(ctx, &p, sharedLimits) })
	wg.Go(func() { b.send(ctx, &p, sharedLimits) })
	p.waitAfter(t, "before the failover", time.Time{})
	for round := range 2 {
		old, changed := master()
		killed := time.Now()
		if round == 0 {
			old.Kill()
		} else {
			old.Freeze() // it does not know that it is none any more
		}
		changed()
		elected := time.Now()
		for _, h := range []*host{a, b} {
			h.waitFor(t, true)
		}
		p.waitAfter(t, "after the failover", elected)
		t.Logf("round %d: another master after %v, the first lease %v later", round+1, elected.Sub(killed).Round(time.Millisecond), p.firstAfter(elected).Sub(elected).Round(time.Millisecond))
		if round == 0 {
			old.Start(t)
			settled(t)
		} else {
			old.Thaw()
		}
		from := time.Now()
		time.Sleep(time.Second)
		p.waitAfter(t, "with the other master", from)
	}
	cancel()
	wg.Wait()
	p.within(t, sharedLimits.Messages)
}

// firstAfter returns when the first message was given after that.
func (p *tape) firstAfter(from time.Time) (first time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.given {
		if m.asked.After(from) && (first.IsZero() || m.got.Before(first)) {
			first = m.got
		}
	}
	return first
}

// TestNothingLeftIsNoLimitOfNone: what is kept back for others can be all that there is. That is a
// limit of nothing, not none.
func TestNothingLeftIsNoLimitOfNone(t *testing.T) {
	t.Parallel()
	x := newThrone(t)
	other := redistest.NewSwitch(t, x.a.Addr)
	a, b := newPatientHost(t, x.way.URL(), "a", 2, nil), newPatientHost(t, other.URL(), "b", 2, nil)
	a.known(t)
	b.known(t)
	per := 500 * time.Millisecond
	few := limit.Allowance{Messages: limit.Rate{N: 3, Per: per}, Recipients: limit.Rate{N: 5_000, Per: time.Hour}, Connections: 3}
	// A whole window of messages with 50 recipients each: as many as there are.
	all := limit.Allowance{Messages: limit.Rate{N: 30, Per: time.Hour}, Recipients: limit.Rate{N: 1_500, Per: time.Hour}, Connections: 3}
	x.part(t)
	if _, err := b.store.Usage(t.Context(), "erp@contoso.com", few, time.Now()); err != nil {
		t.Fatal(err)
	}
	other.To("")
	x.change()
	redistest.WaitFor(t, "the window of the change to be over", func() bool {
		u, err := a.store.Usage(t.Context(), "erp@contoso.com", few, time.Now())
		return err == nil && a.InUse() && u.Next.Before(time.Now().Add(-time.Millisecond)) && x.b.Do(t, "hget", "sendas:{contoso.com}:clock", "n:a") != ""
	})
	time.Sleep(2 * per)
	for name, l := range map[string]limit.Allowance{"messages": few, "recipients": all} {
		ans, err := a.Take(t.Context(), name+"@contoso.com", l, time.Now())
		if err != nil || ans.Lease != 0 {
			t.Errorf("%s: %+v, %v, want no lease while b may have used all", name, ans, err)
		}
	}
}
