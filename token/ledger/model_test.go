package ledger

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sendas/sendas/policy/limit"
)

// The model: a list of all that was granted, against which every store is held. It
// knows nothing of windows and buckets; it counts.

// grant is one lease of the list.
type grant struct {
	mailbox      string
	id           uint64
	given, ended time.Duration // since the start of the test: from when a message may begin; when settled, or at the end of the longest session
	out          bool
	submitted    bool
	recipients   int
	group        int
}

// stage is a store with a clock that the test moves.
type stage struct {
	ledger  Store
	now     time.Duration                 // true time
	tell    func(time.Duration) time.Time // what the callers' clock shows then; nil: start + now
	restart func(*rapid.T) Store          // nil: cannot be
	jump    func(d time.Duration)         // sets the clock, without time going by; nil: cannot be
	list    []*grant
}

func (s *stage) clock() time.Time {
	if s.tell != nil {
		return s.tell(s.now)
	}
	return start.Add(s.now)
}

func (s *stage) out(mailbox string) (list []*grant) {
	for _, g := range s.list {
		if g.out && s.now-g.given >= testSession {
			g.out, g.submitted, g.ended, g.recipients, g.group = false, true, g.given+testSession, 0, 0
		}
		if g.out && g.mailbox == mailbox {
			list = append(list, g)
		}
	}
	return list
}

const testSession = 30 * time.Second

func drawLimits(t *rapid.T) limit.Allowance {
	seconds := func(label string, lo, hi int) time.Duration {
		return time.Duration(rapid.IntRange(lo, hi).Draw(t, label)) * time.Second
	}
	return limit.Allowance{
		Messages:        limit.Rate{N: rapid.IntRange(1, 12).Draw(t, "messages"), Per: seconds("per", 1, 20)},
		Recipients:      limit.Rate{N: rapid.IntRange(1, 400).Draw(t, "recipients"), Per: seconds("day", 20, 200)},
		Connections:     rapid.IntRange(1, 4).Draw(t, "connections"),
		Group:           "tenant",
		GroupRecipients: limit.Rate{N: rapid.IntRange(1, 600).Draw(t, "group"), Per: seconds("group day", 20, 200)},
		Ahead:           seconds("ahead", 0, 25),
	}
}

var testMailboxes = []string{"erp@contoso.com", "scan@contoso.com"}

// play makes random use of a store and holds it against the model.
func play(t *rapid.T, s *stage) {
	l := drawLimits(t)
	step := rapid.SampledFrom([]string{"take", "take", "take", "take", "settle", "settle", "settle", "wait", "wait", "restart", "jump", "twice"})
	for range rapid.IntRange(20, 120).Draw(t, "steps") {
		mailbox := rapid.SampledFrom(testMailboxes).Draw(t, "mailbox")
		switch step.Draw(t, "step") {
		case "take":
			s.take(t, mailbox, l)
		case "settle":
			s.settle(t, mailbox, l)
		case "twice": // a second observer
			if len(s.list) > 0 {
				g := rapid.SampledFrom(s.list).Draw(t, "again")
				if s.out(g.mailbox); !g.out {
					s.must(t, s.ledger.Settle(t.Context(), g.mailbox, g.id, Outcome{}, s.clock()))
				}
			}
		case "wait":
			s.now += time.Duration(rapid.IntRange(1, 8_000).Draw(t, "ms")) * time.Millisecond
		case "restart":
			if s.restart != nil {
				s.ledger = s.restart(t)
			}
		case "jump":
			if s.jump != nil {
				s.jump(time.Duration(rapid.IntRange(-100_000, 100_000).Draw(t, "seconds")) * time.Second)
			}
		}
	}
	s.judge(t, l)
	s.reopens(t, l)
}

func (s *stage) must(t *rapid.T, err error) {
	if err != nil {
		t.Fatalf("after %v: %v", s.now, err)
	}
}

func (s *stage) take(t *rapid.T, mailbox string, l limit.Allowance) {
	a, err := s.ledger.Take(t.Context(), mailbox, l, s.clock())
	s.must(t, err)
	if a.Lease == 0 {
		if a.Wait <= 0 || a.Cause == "" {
			t.Fatalf("after %v: no lease, and no wait or cause: %+v", s.now, a)
		}
		return
	}
	if out := s.out(mailbox); len(out) >= l.Connections {
		t.Fatalf("after %v: lease %d of %d connections", s.now, len(out)+1, l.Connections)
	}
	if slices.ContainsFunc(s.list, func(g *grant) bool { return g.id == a.Lease }) {
		t.Fatalf("lease %d given twice", a.Lease)
	}
	if a.Begin < 0 || a.Begin > min(l.Ahead, MaxAhead) {
		t.Fatalf("after %v: a lease of which the place begins in %v, with %v ahead", s.now, a.Begin, l.Ahead)
	}
	s.list = append(s.list, &grant{mailbox: mailbox, id: a.Lease, given: s.now + a.Begin, out: true})
}

func (s *stage) settle(t *rapid.T, mailbox string, l limit.Allowance) {
	out := s.out(mailbox)
	if len(out) == 0 {
		return
	}
	g := rapid.SampledFrom(out).Draw(t, "lease")
	g.out, g.ended, g.submitted = false, s.now, s.now >= g.given && rapid.Bool().Draw(t, "submitted")
	if g.submitted {
		g.recipients = rapid.IntRange(0, room(l.Recipients)).Draw(t, "recipients")
		g.group = rapid.IntRange(0, room(l.GroupRecipients)).Draw(t, "group recipients")
	}
	o := Outcome{Submitted: g.submitted, Recipients: g.recipients, GroupRecipients: g.group}
	s.must(t, s.ledger.Settle(t.Context(), g.mailbox, g.id, o, s.clock()))
}

// judge counts what Microsoft may have counted, at the lease, at the verdict, and in between.
func (s *stage) judge(t *rapid.T, l limit.Allowance) {
	for name, when := range map[string]func(*grant) time.Duration{
		"its beginning": func(g *grant) time.Duration { return g.given },
		"verdict":       func(g *grant) time.Duration { return g.ended },
		"between":       func(g *grant) time.Duration { return (g.given + g.ended) / 2 },
	} {
		for _, mailbox := range testMailboxes {
			mine := func(g *grant) bool { return g.mailbox == mailbox && (g.submitted || g.out) }
			s.within(t, "messages counted at "+name, l.Messages, mine, when, func(*grant) int { return 1 })
			s.within(t, "recipients counted at "+name, l.Recipients, mine, when, func(g *grant) int { return g.recipients })
		}
		all := func(g *grant) bool { return g.submitted }
		s.within(t, "recipients of the group counted at "+name, l.GroupRecipients, all, when, func(g *grant) int { return g.group })
	}
}

func (s *stage) within(t *rapid.T, what string, r limit.Rate, which func(*grant) bool, when func(*grant) time.Duration, weight func(*grant) int) {
	var list []*grant
	for _, g := range s.list {
		if g.out {
			g.ended = max(s.now, g.given)
		}
		if which(g) {
			list = append(list, g)
		}
	}
	for _, first := range list {
		sum := 0
		for _, g := range list {
			if d := when(g) - when(first); d >= 0 && d < r.Per {
				sum += weight(g)
			}
		}
		if sum > r.N {
			t.Fatalf("%d %s within %v, limit %v", sum, what, r.Per, r)
		}
	}
}

// reopens: after all windows the gates are open again, whatever has happened.
func (s *stage) reopens(t *rapid.T, l limit.Allowance) {
	longest := max(l.Messages.Per, l.Recipients.Per, l.GroupRecipients.Per)
	s.now += l.Ahead + testSession + longest + longest/bucketsPerWindow + 2*time.Second
	for _, mailbox := range testMailboxes {
		a, err := s.ledger.Take(t.Context(), mailbox, l, s.clock())
		s.must(t, err)
		if a.Lease == 0 {
			t.Fatalf("after all windows are over: %+v", a)
		}
		s.must(t, s.ledger.Settle(t.Context(), mailbox, a.Lease, Outcome{}, s.clock()))
	}
}

// wall is a wall clock that the test sets; true time goes on beneath.
type wall struct{ off time.Duration }

func TestMemoryAgainstTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &wall{}
		m := &Memory{book: newBook(testSession)}
		s := &stage{ledger: m, jump: func(d time.Duration) { w.off -= d.Abs() }} // backward: forward needs a monotonic reading
		s.tell = func(now time.Duration) time.Time { return start.Add(now + w.off) }
		playSlowly(t, s)
	})
}

// playSlowly plays with a clock that may have been set back: until a call has noticed, ledger time
// stands still, so the gates may open later than the model says by the time between two calls.
func playSlowly(t *rapid.T, s *stage) {
	jump := s.jump
	s.jump = func(d time.Duration) {
		jump(d)
		_, err := s.ledger.Usage(t.Context(), testMailboxes[0], limit.Microsoft(), s.clock())
		s.must(t, err)
	}
	play(t, s)
}

func TestBoltAgainstTheModel(t *testing.T) {
	dir, n := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		playSlowly(t, boltStage(t, fmt.Sprintf("%s/%d.db", dir, n)))
	})
}

// boltStage is a file on a machine that stays up, while services start and end and the wall clock
// is set.
func boltStage(t *rapid.T, path string) *stage {
	w := &wall{}
	s := &stage{}
	s.tell = func(now time.Duration) time.Time { return start.Add(now + w.off) }
	o := BoltOptions{MaxSession: testSession, noSync: true, now: s.clock,
		boot: func() (string, time.Duration) { return "boot", time.Hour + s.now }}
	open := func(t *rapid.T) *Bolt {
		b, err := OpenBolt(path, o)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	b := open(t)
	s.ledger = b
	t.Cleanup(func() { b.Close() })
	s.restart = func(t *rapid.T) Store {
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		w.off = time.Duration(len(s.list)%5-2) * 24 * time.Hour // set while nobody looked
		b = open(t)
		return b
	}
	s.jump = func(d time.Duration) { w.off -= d.Abs() }
	return s
}
