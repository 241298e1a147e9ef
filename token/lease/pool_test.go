package lease

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"github.com/sendas/sendas/internal/logtest"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/ledger"
)

// poolDirectory tells which mailboxes a sender has.
type poolDirectory map[string][]*Mailbox

func (d poolDirectory) Mailboxes(sender string) []*Mailbox { return d[sender] }
func (poolDirectory) Listed(sender string) string          { return sender }
func (poolDirectory) External(rcpt string) bool            { return !strings.HasSuffix(rcpt, "@contoso.com") }
func (poolDirectory) RouteFrom(string) string              { return "" }
func (poolDirectory) RouteTo(string) string                { return "" }

// pool is a lease desk with mailboxes box0@ to boxN@contoso.com, each with a credential of its own.
type pool struct {
	*Lessor
	dir    poolDirectory
	boxes  []*Mailbox
	tokens []*fakeTokens
	ledger *ledger.Memory
	log    *logtest.Buffer
}

// newPool makes a desk of n mailboxes. Each may send as itself, and as pool@ all of them may.
func newPool(n int, limits limit.Allowance) *pool {
	p := &pool{dir: poolDirectory{}, ledger: ledger.NewMemory(), log: &logtest.Buffer{}}
	for i := range n {
		a := boxName(i)
		p.tokens = append(p.tokens, &fakeTokens{})
		p.boxes = append(p.boxes, &Mailbox{Address: a, Label: a, Limits: limits, Tokens: p.tokens[i]})
		p.dir[a] = p.boxes[i : i+1]
	}
	p.dir["pool@contoso.com"] = p.boxes
	p.Lessor = NewLessor(p.ledger, NewMetrics(prometheus.NewRegistry()), slog.New(slog.NewTextHandler(p.log, nil)))
	p.Use(p.dir)
	return p
}

func boxName(i int) string { return fmt.Sprintf("box%d@contoso.com", i) }

// ask returns the number of the mailbox that a look-up got, or -1 and the reason.
func (p *pool) ask(t *testing.T, n int, sender string) (box int, reason string) {
	t.Helper()
	r := p.Lease(t.Context(), process(int32(n)), sender)
	if r.Status != OK {
		return -1, r.Value
	}
	user, _, _ := strings.Cut(r.Value, ":")
	return slices.IndexFunc(p.boxes, func(m *Mailbox) bool { return m.Address == user }), ""
}

// deliver plays the rest of a session that got its lease.
func (p *pool) deliver(t *testing.T, n int, last string) {
	for _, l := range []string{authOK, mailOK, rcptOK, dataOK, last} {
		p.Reply(t.Context(), process(int32(n)), l)
	}
}

// TestPoolChoice: which mailbox of a pool of three a look-up gets, and what it is told when none
// can send.
func TestPoolChoice(t *testing.T) {
	const full = "554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded"
	noToken := &entra.RefusedError{Credential: "relay-app", OAuth: "invalid_client", Codes: []int{7000215}}
	spend := func(t *testing.T, p *pool, box int) { // uses up a mailbox
		for {
			r := p.Lease(t.Context(), process(99), boxName(box))
			if r.Status != OK {
				return
			}
			p.deliver(t, 99, accepted)
		}
	}
	for _, tc := range []struct {
		name   string
		n      int // messages in an hour; 0: 30
		before func(t *testing.T, p *pool)
		want   []int  // the mailboxes that the next look-ups get
		reason string // of the look-up after those
	}{
		{"in turn", 3, nil, []int{0, 1, 2}, "none of 3 mailboxes can send now; soonest, in 30m0s, box0@contoso.com cannot send now: its 3/h messages are used up"},
		{"in turn again", 0, nil, []int{0, 1, 2, 0, 1, 2, 0, 1, 2}, ""},
		{"one that others have used goes last", 0, func(t *testing.T, p *pool) { p.ask(t, 1, "pool@contoso.com"); p.ask(t, 2, boxName(1)) }, []int{2, 0, 1}, ""},
		{"a paused one is passed over", 0, func(t *testing.T, p *pool) {
			p.ask(t, 98, boxName(0))
			p.deliver(t, 98, full)
		}, []int{1, 2, 1, 2}, ""},
		{"one without token is passed over", 0, func(_ *testing.T, p *pool) { p.tokens[1].err = noToken }, []int{0, 2, 0, 2}, ""},
		{"one whose AUTH was refused is passed over", 0, func(t *testing.T, p *pool) {
			p.ask(t, 98, boxName(2))
			p.Reply(t.Context(), process(98), auth535)
		}, []int{0, 1, 0, 1}, ""},
		{"none has a token", 0, func(_ *testing.T, p *pool) {
			for _, x := range p.tokens {
				x.err = noToken
			}
		}, nil, "no token for mailbox box0@contoso.com: AADSTS7000215: "},
		{"what opens soonest is named", 1, func(t *testing.T, p *pool) {
			spend(t, p, 0)
			time.Sleep(10 * time.Minute)
			spend(t, p, 1)
			p.tokens[2].err = noToken
		}, nil, "none of 3 mailboxes can send now; soonest, in 50m0s, box0@contoso.com cannot send now: its 1/h messages are used up"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				limits := limit.Microsoft()
				limits.Messages = limit.Rate{N: cmp.Or(tc.n, 30), Per: time.Hour}
				p := newPool(3, limits)
				if tc.before != nil {
					tc.before(t, p)
				}
				for i, want := range tc.want {
					if got, why := p.ask(t, 100+i, "pool@contoso.com"); got != want {
						t.Fatalf("look-up %d got mailbox %d %q, want %d", i, got, why, want)
					}
					p.deliver(t, 100+i, accepted)
				}
				if tc.reason == "" {
					return
				}
				began := time.Now()
				if _, got := p.ask(t, 1, "pool@contoso.com"); !strings.HasPrefix(got, tc.reason) || time.Since(began) > 0 {
					t.Errorf("after %v: %q, want %q at once", time.Since(began), got, tc.reason)
				}
				if len(p.lines) != 0 {
					t.Errorf("%d lines are left without anybody in them", len(p.lines))
				}
			})
		})
	}
}

// slowTokens has no token until a moment, and then one or an error.
type slowTokens struct {
	ready time.Time
	err   error
}

func (s *slowTokens) Token(ctx context.Context) (*entra.Token, error) {
	select {
	case <-time.After(time.Until(s.ready)):
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for a token: %w", context.Cause(ctx))
	}
	if s.err != nil {
		return nil, s.err
	}
	return &entra.Token{Access: theToken, Expires: time.Now().Add(time.Hour)}, nil
}

func (*slowTokens) Discard(entra.Secret) {}

// TestPoolTokens: a token that is being fetched holds up neither the pool nor the line of another
// mailbox; when it comes, its mailbox takes part.
func TestPoolTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := limit.Microsoft()
		limits.Messages, limits.Connections = limit.Rate{N: 1, Per: time.Minute}, 1
		p := newPool(2, limits)
		slow := &slowTokens{ready: time.Now().Add(20 * time.Second)}
		p.boxes[0].Tokens = slow
		began := time.Now()
		for i, want := range []struct {
			sender string
			box    int
			after  time.Duration
		}{
			{"pool@contoso.com", 1, 0},
			{"pool@contoso.com", 0, 20 * time.Second},
		} {
			if got, why := p.ask(t, i+1, want.sender); got != want.box || time.Since(began) != want.after {
				t.Errorf("look-up %d got mailbox %d %q after %v, want %d after %v", i, got, why, time.Since(began), want.box, want.after)
			}
			p.deliver(t, i+1, accepted)
		}
		slow.ready, slow.err = time.Now().Add(time.Second), errors.New("Microsoft refused")
		p.boxes[1].Tokens = &slowTokens{ready: time.Now().Add(time.Hour)}
		if _, got := p.ask(t, 3, "pool@contoso.com"); got != "none of 2 mailboxes can send now; no token for mailbox box1@contoso.com: none came in time" {
			t.Errorf("%q", got)
		}
	})
}

// TestPoolTurn: whoever has waited longer gets a mailbox that comes free, be it by a pool or alone.
func TestPoolTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := limit.Microsoft()
		limits.Connections = 1
		p := newPool(2, limits)
		p.ask(t, 1, boxName(0))
		p.ask(t, 2, boxName(1))
		var mu sync.Mutex
		var order []string
		var wg sync.WaitGroup
		for i, sender := range []string{boxName(0), "pool@contoso.com", boxName(0), boxName(1), "pool@contoso.com"} {
			wg.Go(func() {
				box, _ := p.ask(t, 10+i, sender)
				mu.Lock()
				order = append(order, fmt.Sprintf("%d:%d", i, box))
				mu.Unlock()
				time.Sleep(time.Second + time.Duration(i)*10*time.Millisecond)
				p.deliver(t, 10+i, accepted)
			})
			synctest.Wait()
		}
		time.Sleep(200 * time.Millisecond)
		p.deliver(t, 1, accepted) // box0: for 0
		synctest.Wait()
		p.deliver(t, 2, accepted) // box1: for the pool, 1
		wg.Wait()
		if got, want := strings.Join(order, " "), "0:0 1:1 2:0 3:1 4:0"; got != want {
			t.Errorf("look-ups and their mailboxes %s, want %s", got, want)
		}
	})
}

// TestPoolPassesOver: a pool's look-up that waits for one mailbox holds up nobody in the line of
// another that it will not get in time.
func TestPoolPassesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := limit.Microsoft()
		limits.Connections = 1
		p := newPool(2, limits)
		p.boxes[0].Limits.Messages = limit.Rate{N: 1, Per: time.Hour}
		p.ask(t, 1, boxName(0))
		p.deliver(t, 1, accepted)
		p.ask(t, 2, boxName(1))
		got := make(chan int, 1)
		go func() { box, _ := p.ask(t, 3, "pool@contoso.com"); got <- box }()
		time.Sleep(10 * time.Second)
		began := time.Now()
		if _, why := p.ask(t, 4, boxName(0)); why != "mailbox box0@contoso.com cannot send now: its 1/h messages are used up" || time.Since(began) > 0 {
			t.Errorf("after %v: %q, want an answer at once", time.Since(began), why)
		}
		p.deliver(t, 2, accepted)
		if box := <-got; box != 1 {
			t.Errorf("the pool's look-up got mailbox %d", box)
		}
	})
}

// caller is one look-up of a scenario, and what became of it.
type caller struct {
	sender  string
	members []int
	at      time.Duration // from the beginning: when it comes
	lasts   time.Duration // the delivery
	lost    bool          // the session ends before DATA: nothing was sent

	box        int // -1: deferred, or still waiting
	came, left time.Time
	settled    time.Time
}

// waits reports whether the look-up waits at that moment.
func (v *caller) waits(now time.Time) bool {
	return !v.came.IsZero() && !v.came.After(now) && (v.left.IsZero() || v.left.After(now))
}

// scenario is some mailboxes with limits of their own, and look-ups for one or several of them.
type scenario struct {
	mu      sync.Mutex // guards came, left and settled of callers
	limits  []limit.Allowance
	callers []*caller
}

func drawScenario(t *rapid.T) *scenario {
	s := &scenario{}
	for i := range rapid.IntRange(2, 4).Draw(t, "mailboxes") {
		l := limit.Microsoft()
		l.Messages = limit.Rate{N: rapid.IntRange(1, 7).Draw(t, fmt.Sprint("messages", i)), Per: time.Duration(rapid.IntRange(5, 70).Draw(t, fmt.Sprint("seconds", i))) * time.Second}
		l.Connections = rapid.IntRange(1, 3).Draw(t, fmt.Sprint("connections", i))
		s.limits = append(s.limits, l)
	}
	all := (1 << len(s.limits)) - 1
	for i := range rapid.IntRange(1, 50).Draw(t, "look-ups") {
		v := &caller{box: -1}
		set := rapid.IntRange(1, all).Draw(t, fmt.Sprint("set", i))
		for b := range s.limits {
			if set>>b&1 == 1 {
				v.members = append(v.members, b)
			}
		}
		v.sender = fmt.Sprintf("set%d@contoso.com", set)
		// No two come at the same time, so that there is an order.
		v.at = time.Duration(rapid.IntRange(0, 90_000).Draw(t, fmt.Sprint("at", i)))*time.Millisecond + time.Duration(i)*time.Microsecond
		v.lasts = time.Duration(rapid.IntRange(1, 6000).Draw(t, fmt.Sprint("lasts", i))) * time.Millisecond
		v.lost = rapid.IntRange(0, 9).Draw(t, fmt.Sprint("lost", i)) == 9
		s.callers = append(s.callers, v)
	}
	return s
}

// play runs the scenario on a desk, and returns what was wrong while it ran.
func (s *scenario) play(t *testing.T) (wrong []string) {
	p := newPool(len(s.limits), limit.Microsoft())
	for i, m := range p.boxes {
		m.Limits = s.limits[i]
	}
	var wg sync.WaitGroup
	began := time.Now()
	for _, v := range s.callers {
		p.dir[v.sender] = nil
		for _, b := range v.members {
			p.dir[v.sender] = append(p.dir[v.sender], p.boxes[b])
		}
	}
	for i, v := range s.callers {
		wg.Go(func() {
			time.Sleep(v.at)
			s.stamp(&v.came)
			v.box, _ = p.ask(t, i+1, v.sender)
			s.stamp(&v.left)
			if v.box < 0 {
				return
			}
			lines := []string{authOK, mailOK, rcptOK, dataOK}
			if v.lost {
				lines = lines[:3]
			}
			p.play(t, i+1, lines)
			time.Sleep(v.lasts)
			s.stamp(&v.settled)
			last := accepted
			if v.lost {
				last = banner
			}
			p.play(t, i+1, []string{last})
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for {
		select {
		case <-done:
			return wrong
		case <-time.After(97301 * time.Microsecond):
		}
		synctest.Wait()
		wrong = append(wrong, s.idle(p, time.Now(), began)...)
	}
}

func (s *scenario) stamp(at *time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*at = time.Now()
}

func (p *pool) play(t *testing.T, n int, lines []string) {
	for _, l := range lines {
		p.Reply(t.Context(), process(int32(n)), l)
	}
}

// idle finds mailboxes that could send at this moment, and look-ups that wait for them all the
// same.
func (s *scenario) idle(p *pool, now, began time.Time) (wrong []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for b, m := range p.boxes {
		u, err := p.ledger.Usage(context.Background(), m.Address, m.Limits, now)
		if err != nil {
			return []string{err.Error()}
		}
		if u.Leases >= m.Limits.Connections || u.Messages >= m.Limits.Messages.N || u.Next.After(now.Add(-time.Millisecond)) && !u.Next.IsZero() {
			continue
		}
		for i, v := range s.callers {
			if v.waits(now) && slices.Contains(v.members, b) {
				wrong = append(wrong, fmt.Sprintf("after %v look-up %d waits, and mailbox %d could send: %+v", now.Sub(began), i, b, u))
			}
		}
	}
	return wrong
}

// check compares all that happened with the rules, by brute force.
func (s *scenario) check() (wrong []string) {
	for i, v := range s.callers {
		if d := v.left.Sub(v.came); d > maxWait {
			wrong = append(wrong, fmt.Sprintf("look-up %d took %v", i, d))
		}
		if v.box < 0 {
			continue
		}
		l, open, counted := s.limits[v.box], 0, 0
		for j, w := range s.callers {
			if w.box == v.box && !w.left.After(v.left) && (w != v && w.settled.After(v.left) || w == v) {
				open++
			}
			// Microsoft may count a message as late as its verdict.
			if w.box == v.box && !w.left.After(v.left) && (w == v || w.settled.After(v.left) || !w.lost && v.left.Sub(w.settled) < l.Messages.Per) {
				counted++
			}
			if w.came.Before(v.came) && w.left.After(v.left) && slices.Contains(w.members, v.box) {
				wrong = append(wrong, fmt.Sprintf("look-up %d got mailbox %d before look-up %d, which had waited longer", i, v.box, j))
			}
		}
		if open > l.Connections || counted > l.Messages.N {
			wrong = append(wrong, fmt.Sprintf("look-up %d: mailbox %d has %d connections of %d, %d messages of %d", i, v.box, open, l.Connections, counted, l.Messages.N))
		}
	}
	return wrong
}

// TestPoolRules: whatever comes when, over pools and single mailboxes that share members: no
// mailbox passes its limits, nobody is overtaken, and nobody waits for a mailbox that could send.
func TestPoolRules(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		s := drawScenario(r)
		var wrong []string
		synctest.Test(t, func(t *testing.T) { wrong = s.play(t) })
		if wrong = append(wrong, s.check()...); len(wrong) > 0 {
			r.Fatalf("%d violations: %s", len(wrong), strings.Join(wrong[:min(5, len(wrong))], "\n"))
		}
	})
}
