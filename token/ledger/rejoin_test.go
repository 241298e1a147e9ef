package ledger

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/policy/limit/redistest"
)

// brittle is the way of one host to the store: it breaks after so many scripts, before the request
// has arrived or before the answer has.
type brittle struct {
	mu    sync.Mutex // guards what follows
	down  bool
	left  int // scripts until it breaks; -1: never
	heard bool
	cuts  int // how often it broke so
}

func (b *brittle) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (b *brittle) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (b *brittle) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		script := cmd.Name() == "evalsha" || cmd.Name() == "eval"
		b.mu.Lock()
		breaks := !b.down && script && b.left == 0
		if breaks {
			b.down, b.left = true, -1
		}
		down, heard := b.down, b.heard
		if !down && script && b.left > 0 {
			b.left--
		}
		b.mu.Unlock() // what greets the server comes here as well
		if breaks {
			if heard {
				_ = next(ctx, cmd)
			}
			b.mu.Lock()
			b.cuts++
			b.mu.Unlock()
		}
		if down {
			err := errors.New("the cable is cut")
			cmd.SetErr(err)
			return err
		}
		return next(ctx, cmd)
	}
}

// set cuts the way, or lets it carry so many scripts.
func (b *brittle) set(down bool, left int, heard bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down, b.left, b.heard = down, left, heard
}

func (b *brittle) broken() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.cuts
}

// alone lets a host that is away give leases at once.
func (h *host) alone() {
	h.Shared.mu.Lock()
	defer h.Shared.mu.Unlock()
	h.lost = time.Now().Add(-2 * time.Hour)
}

// TestRejoinThatBreaksOff: wherever a rejoin breaks off, and whether or not the store has done what
// it did not answer, a host books what it has sent once.
func TestRejoinThatBreaksOff(t *testing.T) {
	t.Parallel()
	l := limit.Allowance{Messages: limit.Rate{N: 30, Per: time.Hour}, Recipients: limit.Rate{N: 10_000, Per: 24 * time.Hour}, Connections: 4}
	grouped := l
	grouped.Group, grouped.GroupRecipients = "external", limit.Rate{N: 9_000, Per: 24 * time.Hour}
	for _, forgotten := range []bool{false, true} {
		for step := range 7 { // beat, two mailboxes, the group of one, a verdict of before, join; the last one breaks nothing
			for _, heard := range []bool{false, true} {
				t.Run(fmt.Sprintf("forgotten %v, step %d, heard %v", forgotten, step, heard), func(t *testing.T) {
					t.Parallel()
					way := &brittle{left: -1}
					server := redistest.Start(t)
					file := filepath.Join(t.TempDir(), "diary.db")
					h := newPatientHost(t, server.URL(), "b", 1, openDiary(t, file))
					h.store.client.AddHook(way)
					h.waitFor(t, true)
					send := func(mailbox string, l limit.Allowance, recipients int) {
						t.Helper()
						a, err := h.Take(t.Context(), mailbox, l, time.Now())
						if err != nil || a.Lease == 0 {
							t.Fatalf("Take = %+v, %v", a, err)
						}
						o := Outcome{Submitted: true, Recipients: recipients, GroupRecipients: recipients - 1}
						if err := h.Settle(t.Context(), mailbox, a.Lease, o, time.Now()); err != nil {
							t.Fatal(err)
						}
					}
					before, err := h.Take(t.Context(), "erp@contoso.com", l, time.Now())
					if err != nil || before.Lease == 0 {
						t.Fatalf("Take = %+v, %v", before, err)
					}
					way.set(true, -1, false)
					h.waitFor(t, false)
					h.alone()
					if forgotten {
						if err := openRedis(t, limit.Redis{URL: server.URL(), Tenant: "contoso.com"}).client.FlushAll(t.Context()).Err(); err != nil {
							t.Fatal(err)
						}
					}
					send("erp@contoso.com", l, 5)
					send("scan@contoso.com", grouped, 7)
					open, err := h.Take(t.Context(), "scan@contoso.com", grouped, time.Now())
					if err != nil || open.Lease == 0 {
						t.Fatalf("Take = %+v, %v", open, err)
					}
					if err := h.Settle(t.Context(), "erp@contoso.com", before.Lease, Outcome{Submitted: true, Recipients: 3}, time.Now()); err != nil {
						t.Fatal(err)
					}
					left := step
					if step == 6 {
						left = -1
					}
					way.set(false, left, heard)
					for range 6000 {
						if way.broken() > 0 || h.InUse() {
							break
						}
						time.Sleep(10 * time.Millisecond)
					}
					if h.InUse() != (step == 6) {
						t.Fatalf("in use: %v", h.InUse())
					}
					if step < 6 { // more is sent until it is back, and what was out has ended
						h.alone()
						send("erp@contoso.com", l, 11)
					}
					if err := h.Settle(t.Context(), "scan@contoso.com", open.Lease, Outcome{Submitted: true, Recipients: 13, GroupRecipients: 12}, time.Now()); err != nil {
						t.Fatal(err)
					}
					way.set(false, -1, false)
					h.waitFor(t, true)
					if step == 6 {
						send("erp@contoso.com", l, 11)
					}
					other := openRedis(t, limit.Redis{URL: server.URL(), Tenant: "contoso.com"})
					for mailbox, want := range map[string]Usage{"erp@contoso.com": {Messages: 3, Recipients: 3 + 5 + 11}, "scan@contoso.com": {Messages: 2, Recipients: 7 + 13, GroupRecipients: 6 + 12}} {
						u, err := other.Usage(t.Context(), mailbox, grouped, time.Now())
						if mailbox == "erp@contoso.com" {
							u.GroupRecipients = 0 // the other one's
						}
						u.Next = time.Time{}
						if err != nil || u != want {
							t.Errorf("%s: %+v, %v, want %+v", mailbox, u, err, want)
						}
					}
				})
			}
		}
	}
}

// TestRejoinThatARestartBreaksOff: the next process tells its diary anew, and nothing counts twice.
func TestRejoinThatARestartBreaksOff(t *testing.T) {
	t.Parallel()
	l := limit.Allowance{Messages: limit.Rate{N: 30, Per: time.Hour}, Recipients: limit.Rate{N: 10_000, Per: 24 * time.Hour}, Connections: 4}
	way := &brittle{left: -1}
	server := redistest.Start(t)
	file := filepath.Join(t.TempDir(), "diary.db")
	diary := openDiary(t, file)
	h := newPatientHost(t, server.URL(), "b", 1, diary)
	h.store.client.AddHook(way)
	h.waitFor(t, true)
	mailboxes := []string{"erp@contoso.com", "hr@contoso.com", "scan@contoso.com"}
	for i, m := range mailboxes {
		a, err := h.Take(t.Context(), m, l, time.Now())
		if err != nil || a.Lease == 0 {
			t.Fatalf("Take = %+v, %v", a, err)
		}
		if err := h.Settle(t.Context(), m, a.Lease, Outcome{Submitted: true, Recipients: i + 1}, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	other := openRedis(t, limit.Redis{URL: server.URL(), Tenant: "contoso.com"})
	way.set(false, 3, true) // a beat, two mailboxes, and the third without an answer
	if err := other.client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	for range 6000 {
		if way.broken() > 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := errors.Join(h.Close(), diary.Close()); err != nil || way.broken() != 1 {
		t.Fatalf("broken %d times, %v", way.broken(), err)
	}
	newPatientHost(t, server.URL(), "b", 1, openDiary(t, file)).waitFor(t, true)
	for i, m := range mailboxes {
		u, err := other.Usage(t.Context(), m, l, time.Now())
		if err != nil || u.Messages != 1 || u.Recipients != i+1 {
			t.Errorf("%s: %+v, %v, want one message and %d recipients", m, u, err, i+1)
		}
	}
}
