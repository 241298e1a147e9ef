package lease

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sendas/sendas/policy/limit"
)

// greeting is what smtp(8) shows before its look-up.
var greeting = []string{banner, ehloOK, ehloLast, starttls, ehloOK, ehloLast}

// message is one that was let through: from the reply that let it begin to its verdict.
type message struct{ begin, verdict time.Time }

// worstWindow returns the most messages that can be counted within a period, if each is counted at
// the worst moment between its beginning and its verdict.
func worstWindow(list []message, per time.Duration) int {
	most := 0
	for _, first := range list { // counted at its verdict, at which the period begins
		n := 0
		for _, m := range list {
			if !m.verdict.Before(first.verdict) && m.begin.Sub(first.verdict) < per {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

// TestBacklogWithHandshake plays an hour of three smtp(8) processes and a backlog, where Exchange
// Online takes its time to DATA: nothing is lost by that, and no period has more than 30 messages,
// whenever they are counted.
func TestBacklogWithHandshake(t *testing.T) {
	const ms = time.Millisecond
	for _, tc := range []struct {
		name       string
		handshake  time.Duration // from the look-up to the answer to DATA; a third of it at random
		pipelining bool
		shows      bool
		failing    float64 // share of the sessions in which no recipient is taken
		want       float64 // of the most that the rule allows
	}{
		{"quick", 0, false, true, 0, .996},
		{"a second", 1000 * ms, false, true, 0, .996},
		{"a second, with pipelining", 1000 * ms, true, true, 0, .996},
		{"two seconds", 2000 * ms, false, true, 0, .996},
		{"two seconds, with pipelining", 2000 * ms, true, true, 0, .996},
		{"two seconds, and some recipients are refused", 2000 * ms, true, true, .05, .99},
		{"two seconds, and nothing is shown before the look-up", 2000 * ms, false, false, 0, .95},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDesk(limit.Microsoft().Messages)
				begin, end := time.Now(), time.Now().Add(time.Hour)
				var (
					mu   sync.Mutex // guards what follows
					list []message
					smtp sync.WaitGroup
				)
				for n := range int32(3) {
					random := rand.New(rand.NewPCG(11, uint64(n)))
					smtp.Go(func() {
						for c := process(n + 1); time.Now().Before(end); {
							time.Sleep(50 * ms)
							if tc.shows {
								d.play(t, c, greeting...)
							}
							if r := d.Lease(t.Context(), c, "erp@contoso.com"); r.Status != OK {
								t.Errorf("after %v: %q", time.Since(begin), r.Value)
								return
							}
							takes := time.Duration(float64(tc.handshake) * (1 - random.Float64()/3)).Truncate(4 * time.Microsecond) // the ledger counts in microseconds
							step := func() { time.Sleep(takes / 4) }
							if tc.pipelining {
								time.Sleep(takes)
								step = func() {}
							}
							answers := []string{authOK, mailOK, rcptOK, dataOK}
							fails := random.Float64() < tc.failing
							if fails {
								answers = []string{authOK, mailOK, "501 5.1.3 Invalid address"}
							}
							for _, line := range answers {
								step()
								if r := d.Reply(t.Context(), c, line); r.Status != NotFound {
									t.Errorf("%q was answered with %v", line, r)
								}
							}
							if fails {
								continue
							}
							from := time.Now()
							time.Sleep(time.Duration(500+random.Int64N(2500)) * ms)
							mu.Lock()
							list = append(list, message{from, time.Now()})
							mu.Unlock()
							d.Reply(t.Context(), c, accepted)
						}
					})
				}
				smtp.Wait()
				if most := worstWindow(list, time.Minute); most > 30 {
					t.Errorf("%d messages within a minute", most)
				}
				n, uncertain := 0, time.Duration(0)
				for _, m := range list {
					if age := m.begin.Sub(begin); age >= 5*time.Minute && age < 60*time.Minute {
						n++
						uncertain += m.verdict.Sub(m.begin)
					}
				}
				share := float64(n) / (55 * 30)
				bound := float64(time.Minute) / float64(time.Minute+uncertain/time.Duration(n))
				t.Logf("%.4f of the allowance, %.4f of the most that there is", share, share/bound)
				if share/bound < tc.want {
					t.Errorf("%.4f of the allowance, %.4f of the most that there is, want %.3f of that", share, share/bound, tc.want)
				}
			})
		})
	}
}

// full uses up a desk's only message.
func (d *desk) full(t *testing.T) {
	t.Helper()
	if r := d.Lease(t.Context(), process(99), "erp@contoso.com"); r.Status != OK {
		t.Fatalf("look-up answered %q", r.Value)
	}
	d.play(t, process(99), authOK, mailOK, rcptOK, dataOK, accepted)
}

// TestKeptBack: which replies wait for the place in the minute, and until when. A message has left,
// and the next one's place begins a minute later.
func TestKeptBack(t *testing.T) {
	const s = time.Second
	for _, tc := range []struct {
		name     string
		nameless bool
		before   []string
		asks     time.Duration // after that message
		gets     time.Duration // its lease
		after    []string      // what it shows then; it takes a second to come there
		line     string        // the last of which is answered
		takes    time.Duration
		waited   string // in the log
	}{
		{"a place that is to come", false, greeting, 45 * s, 45 * s, []string{authOK, mailOK, rcptOK}, dataOK, 14 * s, "waited=14s"},
		{"as soon as it may", false, greeting, 10 * s, 40 * s, []string{authOK, mailOK, rcptOK}, dataOK, 19 * s, "waited=49s"},
		{"a place that is there", false, greeting, 60 * s, 60 * s, []string{authOK, mailOK, rcptOK}, dataOK, 0, "waited=0s"},
		{"who may come by another connection cannot be kept back", true, greeting, 45 * s, 60 * s, []string{authOK, mailOK, rcptOK}, dataOK, 0, "waited=15s"},
		{"who shows nothing cannot be kept back", false, nil, 45 * s, 60 * s, []string{authOK, mailOK, rcptOK}, dataOK, 0, "waited=15s"},
		{"the last line of the reply", false, greeting, 45 * s, 45 * s, []string{authOK, mailOK, rcptOK, "354-Start"}, dataOK, 14 * s, "waited=14s"},
		{"no other reply", false, greeting, 45 * s, 45 * s, []string{authOK, mailOK}, rcptOK, 0, ""},
		{"nor the refusal of DATA", false, greeting, 45 * s, 45 * s, []string{authOK, mailOK, rcptOK}, "451 4.7.0 Temporary server error. PRX4", 0, ""},
		{"nor what is no answer to DATA", false, greeting, 45 * s, 45 * s, []string{authOK}, "354 What is this", 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDesk(limit.Rate{N: 1, Per: time.Minute})
				d.full(t)
				time.Sleep(tc.asks)
				began := time.Now()
				c := process(1)
				c.Nameless = tc.nameless
				d.play(t, c, tc.before...)
				if r := d.Lease(t.Context(), c, "erp@contoso.com"); r.Status != OK || time.Since(began) != tc.gets-tc.asks {
					t.Fatalf("look-up answered %q after %v, want a lease after %v", r.Value, time.Since(began), tc.gets-tc.asks)
				}
				d.play(t, c, tc.after...)
				time.Sleep(s)
				began = time.Now()
				if r := d.Reply(t.Context(), c, tc.line); r.Status != NotFound || time.Since(began) != tc.takes {
					t.Errorf("%q was answered with %v after %v, want NOTFOUND after %v", tc.line, r, time.Since(began), tc.takes)
				}
				if tc.waited == "" {
					return
				}
				d.play(t, c, accepted)
				if log := d.log.String(); !strings.Contains(log[strings.LastIndex(log, "msg=delivery"):], tc.waited+" ") {
					t.Errorf("want %s in the last line of\n%s", tc.waited, log)
				}
			})
		})
	}
}

// TestKeptBackTwice: a reply that smtp(8) asks about again, because it got no answer, is the same
// one, and not the message's verdict.
func TestKeptBackTwice(t *testing.T) {
	d := newDesk(limit.Microsoft().Messages)
	d.Lease(t.Context(), process(1), "erp@contoso.com")
	if r := d.play(t, process(1), authOK, mailOK, rcptOK, dataOK, dataOK); r != (Result{Status: NotFound}) {
		t.Errorf("the second time it was answered with %v", r)
	}
	if u := d.usage(t); u.Leases != 1 {
		t.Errorf("after the second time: %+v, want the lease to be out", u)
	}
	d.play(t, process(1), accepted)
	if u := d.usage(t); u.Leases != 0 || u.Messages != 1 || u.Recipients != 1 {
		t.Errorf("after the verdict: %+v, want a message to one recipient", u)
	}
}

// TestKeptBackAndKilled: the service ends while a message is kept back. smtp(8) asks the next one
// about the same reply; the message has its place when it was due, and nobody got it meanwhile.
func TestKeptBackAndKilled(t *testing.T) {
	for _, tc := range []struct {
		name  string
		clock time.Duration // what the machine's clock goes by from one process to the next, besides
		want  time.Duration // after the first message
	}{
		{"at once", 0, 60 * time.Second},
		{"with a clock that is not the same", -time.Hour, 71 * time.Second}, // 20 s from the start of the next service
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				h.limits.Messages = limit.Rate{N: 1, Per: time.Minute}
				began, off := time.Now(), time.Duration(0)
				start := func() {
					h.start()
					h.journal.uptime = func() time.Duration { return time.Since(began) + off }
				}
				start()
				a, endA := h.smtp()
				defer endA()
				h.reply(a, authOK, mailOK, rcptOK, dataOK, accepted)
				time.Sleep(45 * time.Second)
				h.reply(a, greeting...)
				if r := h.Lease(t.Context(), a, "erp@contoso.com"); r.Status != OK || time.Since(began) != 45*time.Second {
					t.Fatalf("look-up answered %q after %v", r.Value, time.Since(began))
				}
				h.reply(a, authOK, mailOK, rcptOK)
				ctx, kill := context.WithCancel(t.Context())
				time.AfterFunc(5*time.Second, kill)
				if r := h.Reply(ctx, a, dataOK); r.Status == NotFound || time.Since(began) != 50*time.Second {
					t.Fatalf("answered with %v after %v, want no answer when the service ends", r, time.Since(began))
				}
				time.Sleep(time.Second)
				off = tc.clock
				h.startWith(func(j *Journal) { j.uptime = func() time.Duration { return time.Since(began) + off } })
				h.wantUsage(1, 1, 1) // the second message has no place yet

				next := make(chan time.Time)
				go func() {
					for h.Lease(t.Context(), process(1), "erp@contoso.com").Status != OK {
						time.Sleep(time.Second)
					}
					next <- time.Now()
				}()
				if r := h.Reply(t.Context(), a, dataOK); r.Status != NotFound || time.Since(began) != tc.want {
					t.Errorf("answered with %v after %v, want NOTFOUND after %v", r, time.Since(began), tc.want)
				}
				time.Sleep(2 * time.Second)
				h.reply(a, accepted)
				if got, want := (<-next).Sub(began), tc.want+62*time.Second; got < want {
					t.Errorf("the next message got its lease after %v, want %v", got, want)
				}
				h.ledger.Close()
			})
		})
	}
}

// TestPoolAhead: a look-up of a pool waits for no place of one mailbox while another can send at
// once, and where none can it takes the place that begins first.
func TestPoolAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := limit.Microsoft()
		limits.Messages = limit.Rate{N: 1, Per: time.Minute}
		p := newPool(3, limits)
		began := time.Now()
		for i, after := range []time.Duration{0, 5 * time.Second, 10 * time.Second} { // the third was served last, and opens last
			time.Sleep(time.Until(began.Add(after)))
			if got, why := p.ask(t, 10+i, boxName(2-i)); got != 2-i {
				t.Fatalf("mailbox %d: %s", 2-i, why)
			}
			p.deliver(t, 10+i, accepted)
		}
		var got []string
		for i, at := range []time.Duration{30 * time.Second, 50 * time.Second, 70 * time.Second} {
			time.Sleep(time.Until(began.Add(at)))
			c := process(int32(20 + i))
			for _, line := range greeting {
				p.Reply(t.Context(), c, line)
			}
			box, why := p.ask(t, 20+i, "pool@contoso.com")
			leased := time.Since(began)
			for _, line := range []string{authOK, mailOK, rcptOK, dataOK} {
				p.Reply(t.Context(), c, line)
			}
			got = append(got, fmt.Sprintf("%d%s at %v, begins at %v", box, why, leased, time.Since(began)))
			p.Reply(t.Context(), c, accepted)
		}
		want := []string{"2 at 40s, begins at 1m0s", "1 at 1m0s, begins at 1m5s", "0 at 1m10s, begins at 1m10s"}
		if !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	})
}
