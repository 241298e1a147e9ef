package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/policy/limit/redistest"
)

// sharedLimits have a window of a second, so that outages last seconds.
var sharedLimits = limit.Allowance{Messages: limit.Rate{N: 20, Per: time.Second}, Recipients: limit.Rate{N: 5_000, Per: time.Hour}, Connections: 4,
	Ahead: 300 * time.Millisecond}

const testSilence = 400 * time.Millisecond

// host is one relay host of a test.
type host struct {
	*Shared
	store *Redis
	log   *lineLog

	mu      sync.Mutex // guards what follows
	changes []bool
}

// lineLog counts log lines.
type lineLog struct {
	mu    sync.Mutex
	lines []string
}

func (l *lineLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(p))
	return len(p), nil
}

func (l *lineLog) count(text string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func newHost(t *testing.T, url, name string, hosts int) *host {
	t.Helper()
	return newHostWithDiary(t, url, name, hosts, nil)
}

func newHostWithDiary(t *testing.T, url, name string, hosts int, diary *Bolt) *host {
	t.Helper()
	return newHostWith(t, url, name, hosts, SharedOptions{Silence: testSilence, Diary: diary})
}

// patientSilence is for tests of what is booked anew, so that a busy machine makes no outage of its
// own.
const patientSilence = 10 * time.Second

func newPatientHost(t *testing.T, url, name string, hosts int, diary *Bolt) *host {
	t.Helper()
	return newHostWith(t, url, name, hosts, SharedOptions{Silence: patientSilence, Diary: diary})
}

func newHostWith(t *testing.T, url, name string, hosts int, o SharedOptions) *host {
	t.Helper()
	return newHostOf(t, limit.Redis{URL: url, Tenant: "contoso.com", Timeout: time.Minute}, name, hosts, o) // an outage shows itself otherwise
}

func newHostOf(t *testing.T, r limit.Redis, name string, hosts int, o SharedOptions) *host {
	t.Helper()
	h := &host{log: &lineLog{}, store: openRedis(t, r)}
	o.Host, o.Probe, o.Log = name, cmp.Or(o.Probe, 50*time.Millisecond), slog.New(slog.NewTextHandler(h.log, nil))
	o.OnChange = func(shared bool) { h.mu.Lock(); defer h.mu.Unlock(); h.changes = append(h.changes, shared) }
	s, err := NewShared(h.store, hosts, NewMemory(), o)
	if err != nil {
		t.Fatal(err)
	}
	h.Shared = s
	t.Cleanup(func() { s.Close() })
	return h
}

func (h *host) waitFor(t *testing.T, shared bool) {
	t.Helper()
	for range 6000 {
		if h.InUse() == shared {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("the shared store in use: %v after a minute, want %v", !shared, shared)
}

// tape notes what all hosts have been given.
type tape struct {
	mu    sync.Mutex
	given []moment
}

// moment is one message: its place began after the one and before the other.
type moment struct{ asked, got time.Time }

func (p *tape) note(asked time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.given = append(p.given, moment{asked, time.Now()})
}

// send delivers as fast as the host may, until ctx ends.
func (h *host) send(ctx context.Context, p *tape, l limit.Allowance) {
	for ctx.Err() == nil {
		asked := time.Now()
		a, err := h.Take(ctx, "erp@contoso.com", l, asked)
		if err != nil || a.Lease == 0 {
			time.Sleep(min(max(a.Wait, time.Millisecond), 10*time.Millisecond))
			continue
		}
		time.Sleep(a.Begin)
		p.note(asked.Add(a.Begin))
		time.Sleep(5 * time.Millisecond)
		_ = h.Settle(ctx, "erp@contoso.com", a.Lease, Outcome{Submitted: true, Recipients: 1}, time.Now())
	}
}

// within checks that no window has certainly more messages than the limit.
func (p *tape) within(t *testing.T, r limit.Rate) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := most(p.given, r.Per); n > r.N {
		t.Errorf("%d messages of all hosts within %v, limit %v", n, r.Per, r)
	}
}

// most returns how many were given at least within some period of that length.
func most(given []moment, per time.Duration) (most int) {
	for _, first := range given {
		n := 0
		for _, m := range given {
			if !m.asked.Before(first.asked) && m.got.Sub(first.asked) < per {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

func (p *tape) between(from, to time.Time) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.given {
		if !m.asked.Before(from) && m.asked.Before(to) {
			n++
		}
	}
	return n
}

// waitAfter waits until a message was given that was asked for after that.
func (p *tape) waitAfter(t *testing.T, what string, from time.Time) {
	t.Helper()
	for range 6000 {
		if p.between(from, time.Now()) > 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("no message %s in a minute", what)
}

func TestSharedThroughAnOutage(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	a, b := newHost(t, server.URL(), "a", 2), newHost(t, server.URL(), "b", 2)
	a.waitFor(t, true)
	b.waitFor(t, true)
	ctx, cancel := context.WithCancel(t.Context())
	var (
		p  tape
		wg sync.WaitGroup
	)
	wg.Go(func() { a.send(ctx, &p, sharedLimits) })
	wg.Go(func() { b.send(ctx, &p, sharedLimits) })
	time.Sleep(3 * time.Second)
	p.waitAfter(t, "before the outage", time.Time{})
	killed := time.Now()
	server.Kill()
	a.waitFor(t, false)
	b.waitFor(t, false)
	time.Sleep(4 * time.Second)
	p.waitAfter(t, "during the outage", killed)
	back := time.Now()
	server.Start(t)
	a.waitFor(t, true)
	b.waitFor(t, true)
	time.Sleep(2 * time.Second)
	p.waitAfter(t, "after the outage", back)
	cancel()
	wg.Wait()

	p.within(t, sharedLimits.Messages)
	before, alone, after := p.between(time.Time{}, killed), p.between(killed, back), p.between(back, time.Now())
	t.Logf("%d messages before the outage, %d during it, %d after it", before, alone, after)
	for what, n := range map[string]int{"before": before, "during": alone, "after": after} {
		if n == 0 {
			t.Errorf("no message %s the outage", what)
		}
	}
	for _, h := range []*host{a, b} {
		h.told(t)
	}
}

// told checks that each change was told once, in the log and to the gauge. A slow machine may have
// seen more than one outage.
func (h *host) told(t *testing.T) {
	t.Helper()
	h.Shared.mu.Lock() // between log and gauge
	defer h.Shared.mu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.changes) < 4 {
		t.Errorf("the gauge was set to %v, want false, true, false, true", h.changes)
	}
	for i, shared := range h.changes {
		if shared != (i%2 == 1) {
			t.Errorf("the gauge was set to %v, want each change once", h.changes)
		}
	}
	gone, there := h.log.count("is away"), h.log.count("is in use")
	if wantGone, wantThere := (len(h.changes)-1)/2, len(h.changes)/2; gone != wantGone || there != wantThere {
		t.Errorf("logged %d times that the store is away and %d times that it is in use, want %d and %d", gone, there, wantGone, wantThere)
	}
}

// The data is gone after the restart: what was sent is booked anew by those who sent it.
func TestSharedBooksAnewWhatTheStoreHasLost(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	a, b := newPatientHost(t, server.URL(), "a", 2, nil), newPatientHost(t, server.URL(), "b", 2, nil)
	l := limit.Allowance{Messages: limit.Rate{N: 30, Per: time.Hour}, Recipients: limit.Rate{N: 5_000, Per: time.Hour}, Connections: 4}
	// Both join with nothing known of them, so their shares are kept back for an hour; count as
	// known.
	for _, h := range []*host{a, b} {
		h.waitFor(t, true)
		if err := h.store.client.HSet(t.Context(), h.store.prefix+"clock", "j:"+h.o.Host, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range []*host{a, b} {
		id := h.mustLeaseSoon(t, l)
		if err := h.Settle(t.Context(), "erp@contoso.com", id, Outcome{Submitted: true, Recipients: 30}, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.store.client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	var u Usage
	for range 6000 { // until both have noticed
		var err error
		if u, err = a.Usage(t.Context(), "erp@contoso.com", l, time.Now()); err == nil && u.Messages == 2 && u.Next.IsZero() {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if u.Messages != 2 || u.Recipients != 60 || !u.Next.IsZero() {
		t.Errorf("after the loss %+v, want 2 messages, 60 recipients, and no wait", u)
	}
}

// TestSharedAfterLossAndRestart: what a host has sent is booked anew also by the process that comes
// after the one that sent it, whether the store has lost everything or is back at an older
// snapshot.
func TestSharedAfterLossAndRestart(t *testing.T) {
	t.Parallel()
	empty := func(t *testing.T, s *redistest.Server, r *Redis) {
		if err := r.client.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
	}
	older := func(t *testing.T, s *redistest.Server, _ *Redis) { s.Kill(); s.Start(t) }
	for _, tc := range []struct {
		name   string
		lose   func(*testing.T, *redistest.Server, *Redis)
		before bool // the restart comes before the loss, else after it
	}{
		{"restarted, then emptied", empty, true}, {"emptied, then restarted", empty, false},
		{"restarted, then an older snapshot", older, true}, {"an older snapshot, then restarted", older, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			l := limit.Allowance{Messages: limit.Rate{N: 30, Per: time.Hour}, Recipients: limit.Rate{N: 5_000, Per: time.Hour}, Connections: 4, Group: "external", GroupRecipients: limit.Rate{N: 4_000, Per: time.Hour}}
			file := filepath.Join(t.TempDir(), "diary.db")
			diary := openDiary(t, file)
			a, b := newPatientHost(t, server.URL(), "a", 2, nil), newPatientHost(t, server.URL(), "b", 2, diary)
			for _, h := range []*host{a, b} {
				h.waitFor(t, true)
				if err := h.store.client.HSet(t.Context(), h.store.prefix+"clock", "j:"+h.o.Host, 0).Err(); err != nil {
					t.Fatal(err)
				}
			}
			if err := a.store.client.Save(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			for _, h := range []*host{a, b} {
				id := h.mustLeaseSoon(t, l)
				if err := h.Settle(t.Context(), "erp@contoso.com", id, Outcome{Submitted: true, Recipients: 30, GroupRecipients: 20}, time.Now()); err != nil {
					t.Fatal(err)
				}
			}
			restart := func() {
				if err := errors.Join(b.Close(), diary.Close()); err != nil {
					t.Fatal(err)
				}
			}
			if tc.before {
				restart()
			}
			tc.lose(t, server, a.store)
			if !tc.before {
				restart()
			}
			newPatientHost(t, server.URL(), "b", 2, openDiary(t, file))
			var u Usage
			for range 6000 {
				var err error
				if u, err = a.Usage(t.Context(), "erp@contoso.com", l, time.Now()); err == nil && u.Messages == 2 && u.Next.IsZero() {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			if u.Messages != 2 || u.Recipients != 60 || u.GroupRecipients != 40 || !u.Next.IsZero() {
				t.Errorf("after the loss %+v, want 2 messages, 60 recipients, 40 of the group, and no wait", u)
			}
		})
	}
}

func openDiary(t *testing.T, file string) *Bolt {
	t.Helper()
	b, err := OpenBolt(file, BoltOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// One host is cut off from the store, which the others go on using.
func TestSharedWithOneHostCutOff(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	link := redistest.NewLink(t, server.Socket())
	a, b := newHost(t, server.URL(), "a", 2), newHost(t, "unix://"+link.Path, "b", 2)
	ctx, cancel := context.WithCancel(t.Context())
	var (
		p, alone tape
		wg       sync.WaitGroup
	)
	a.waitFor(t, true)
	b.waitFor(t, true)
	wg.Go(func() { a.send(ctx, &p, sharedLimits) })
	time.Sleep(2 * time.Second)
	p.waitAfter(t, "with the store", time.Time{})
	link.Cut(true)
	b.waitFor(t, false)
	wg.Go(func() { b.send(ctx, &alone, sharedLimits) })
	time.Sleep(4 * time.Second)
	alone.waitAfter(t, "without the store", time.Time{})
	link.Cut(false)
	b.waitFor(t, true)
	time.Sleep(2 * time.Second)
	cancel()
	wg.Wait()
	if len(p.given) == 0 || len(alone.given) == 0 {
		t.Errorf("%d messages with the store and %d without it, want some of both", len(p.given), len(alone.given))
	}
	p.given = append(p.given, alone.given...)
	p.within(t, sharedLimits.Messages)
}

// ask asks until the store has answered: on a slow machine it may just be away.
func (h *host) ask(t *testing.T, l limit.Allowance) (a Answer, err error) {
	t.Helper()
	for range 6000 {
		a, err = h.Take(t.Context(), "erp@contoso.com", l, time.Now())
		if err == nil && (a.Cause == "" || a.Cause == CausePaused) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return a, err
}

func (h *host) mustLeaseSoon(t *testing.T, l limit.Allowance) uint64 {
	t.Helper()
	a, err := h.ask(t, l)
	if err != nil || a.Lease == 0 {
		t.Fatalf("Take = %+v, %v, want a lease", a, err)
	}
	return a.Lease
}

func TestShares(t *testing.T) {
	day := func(n int) limit.Rate { return limit.Rate{N: n, Per: 24 * time.Hour} }
	for _, tc := range []struct {
		name  string
		in    limit.Allowance
		hosts int
		want  limit.Allowance // zero: none
	}{
		{"Microsoft's, two hosts", limit.Microsoft(), 2, limit.Allowance{Messages: limit.Rate{N: 13, Per: time.Minute}, Recipients: day(500), Connections: 1}},
		{"Microsoft's, three hosts", limit.Microsoft(), 3, limit.Allowance{Messages: limit.Rate{N: 9, Per: time.Minute}, Recipients: day(333), Connections: 1}},
		{"Microsoft's, one host", limit.Microsoft(), 1, limit.Allowance{Messages: limit.Rate{N: 27, Per: time.Minute}, Recipients: day(1000), Connections: 3}},
		{"more hosts than connections", limit.Microsoft(), 4, limit.Allowance{Messages: limit.Rate{N: 6, Per: time.Minute}, Recipients: day(250), Connections: 1}},
		{"few messages", limit.Allowance{Messages: limit.Rate{N: 4, Per: time.Minute}, Recipients: day(10_000), Connections: 3}, 2, limit.Allowance{}},
		{"no room for one delivery", limit.Allowance{Messages: limit.Rate{N: 30, Per: time.Minute}, Recipients: day(900), Connections: 3}, 2, limit.Allowance{}},
		{"a small group", limit.Allowance{Messages: limit.Rate{N: 30, Per: time.Minute}, Recipients: day(10_000), Connections: 3, Group: "moera", GroupRecipients: day(100)}, 2, limit.Allowance{}},
		{"High Volume Email", limit.HighVolume(), 2, limit.Allowance{Messages: limit.Rate{Per: time.Minute}, Recipients: day(0), Connections: 10}},
	} {
		s := &Shared{hosts: tc.hosts, primary: &Redis{hosts: tc.hosts}, o: SharedOptions{}.withDefaults()}
		got, err := s.share(tc.in)
		if got != tc.want || (err != nil) != (tc.want == limit.Allowance{}) {
			t.Errorf("%s: %+v, %v, want %+v", tc.name, got, err, tc.want)
		}
		if n := got.Messages.N*tc.hosts + min(tc.in.Connections, tc.in.Messages.N); got.Messages.N > 0 && n > tc.in.Messages.N {
			t.Errorf("%s: all shares together are %d messages, limit %v", tc.name, n, tc.in.Messages)
		}
	}
}

// A service that starts without the store waits for as long as another one could still be sending
// for it.
func TestSharedThatNeverHadTheStore(t *testing.T) {
	t.Parallel()
	h := newHost(t, "unix:///nonexistent/socket", "a", 2)
	a, err := h.Take(t.Context(), "erp@contoso.com", limit.Microsoft(), time.Now())
	if err != nil || a.Lease != 0 || a.Wait < 59*time.Second || a.Reason == "" {
		t.Errorf("Take = %+v, %v, want a wait of a minute with a reason", a, err)
	}
}

func TestSharedPausesReachTheStoreWhenItIsBack(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	link := redistest.NewLink(t, server.Socket())
	a, b := newHost(t, server.URL(), "a", 2), newHost(t, "unix://"+link.Path, "b", 2)
	a.waitFor(t, true)
	b.waitFor(t, true)
	link.Cut(true)
	b.waitFor(t, false)
	for i := range 100 { // over before the next begins
		now := time.Now()
		if err := b.Pause(t.Context(), fmt.Sprintf("%d@contoso.com", i), Pause{now, PauseFull, "mailbox full"}, now); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Pause(t.Context(), "erp@contoso.com", Pause{time.Now().Add(time.Hour), PauseFull, "mailbox full"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	if n := len(b.pauses); n != 1 {
		t.Errorf("%d pauses are kept for the store, want the one in force", n)
	}
	b.mu.Unlock()
	link.Cut(false)
	b.waitFor(t, true)
	ans, err := a.ask(t, sharedLimits)
	if err != nil || ans.Cause != CausePaused || ans.Reason != "mailbox full" {
		t.Errorf("Take at the other host = %+v, %v, want the pause", ans, err)
	}
	if got := pauseOf(t, a, sharedLimits); got.Class != PauseFull {
		t.Errorf("at the other host it is %+v, want its class", got)
	}
}
