package lease

import (
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/ledger"
)

// unseen sets how many recipients a delivery counts that nobody saw.
func (d *desk) unseen(recipients int) *desk {
	d.limits.Unseen = recipients
	m := &Mailbox{Address: "erp@contoso.com", Label: "erp@contoso.com", Limits: d.limits, Tokens: d.tokens}
	d.Use(fakeDirectory{"erp@contoso.com": m, "billing@contoso.com": m})
	return d
}

const (
	ehloOK   = "250-LO4P302CA0005.outlook.office365.com Hello [203.0.113.7]"
	ehloLast = "250 SMTPUTF8"
)

// TestUnseen: what is booked of a session without a verdict, by what was shown of it. The process
// then asks again.
func TestUnseen(t *testing.T) {
	for _, tc := range []struct {
		name          string
		unseen        int
		before, after []string // replies before the look-up, and after it
		want          ledger.Usage
	}{
		{"nothing", 0, nil, nil, ledger.Usage{Messages: 1, Recipients: 50, GroupRecipients: 50}},
		{"nothing, one recipient a delivery", 1, nil, nil, ledger.Usage{Messages: 1, Recipients: 1, GroupRecipients: 1}},
		{"nothing, many recipients a delivery", 120, nil, nil, ledger.Usage{Messages: 1, Recipients: 120, GroupRecipients: 120}},
		{"up to the look-up", 0, []string{banner, ehloOK, ehloLast, starttls, ehloOK, ehloLast}, nil, ledger.Usage{}},
		{"up to AUTH", 0, []string{banner, ehloOK, ehloLast, starttls, ehloOK, ehloLast}, []string{authOK}, ledger.Usage{}},
		{"AUTH, by a process that asked another service before", 0, nil, []string{authOK}, ledger.Usage{}},
		{"up to RCPT", 0, nil, []string{authOK, mailOK, rcptOK}, ledger.Usage{}},
		{"up to DATA", 1, nil, []string{authOK, mailOK, rcptOK, rcptOK, dataOK}, ledger.Usage{Messages: 1, Recipients: 2, GroupRecipients: 2}},
		{"the next session's banner", 0, nil, []string{banner}, ledger.Usage{}},
	} {
		d := newDesk(limit.Microsoft().Messages)
		d.limits.Group, d.limits.GroupRecipients = GroupExternal, limit.TERRL(1)
		d.unseen(tc.unseen)
		d.play(t, process(1), tc.before...)
		d.Lease(t.Context(), process(1), "erp@contoso.com")
		d.play(t, process(1), tc.after...)
		d.Lease(t.Context(), process(1), "nobody@contoso.com")
		if got := d.usage(t); got != tc.want {
			t.Errorf("%s: usage %+v, want %+v", tc.name, got, tc.want)
		}
		silent := tc.before == nil && tc.after == nil
		if got := testutil.ToFloat64(d.metrics.silent.WithLabelValues("erp@contoso.com")); (got == 1) != silent {
			t.Errorf("%s: %v leases count as unseen", tc.name, got)
		}
	}
}

// TestUnseenBacklog plays ten minutes of three processes that show nothing and send to one
// recipient a delivery: the limit is kept, whenever within a session Microsoft counts the message,
// and used.
func TestUnseenBacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(limit.Microsoft().Messages).unseen(1)
		begin, end := time.Now(), time.Now().Add(10*time.Minute)
		var mu sync.Mutex
		var given, over []time.Time // when sessions began and ended
		var smtp sync.WaitGroup
		for n := range int32(3) {
			random := rand.New(rand.NewPCG(7, uint64(n)))
			smtp.Go(func() {
				for time.Now().Before(end) {
					if r := d.Lease(t.Context(), process(n+1), "erp@contoso.com"); r.Status != OK {
						t.Errorf("after %v: %q", time.Since(begin), r.Value)
						return
					}
					from := time.Now()
					time.Sleep(time.Duration(500+random.Int64N(2500)) * time.Millisecond) // the ledger counts in microseconds
					mu.Lock()
					given, over = append(given, from), append(over, time.Now())
					mu.Unlock()
				}
			})
		}
		smtp.Wait()
		for i := range given { // counted at its end, with all that may be counted within a minute after it
			n := 0
			for j := range given {
				if given[j].Sub(over[i]) < time.Minute && !over[j].Before(over[i]) {
					n++
				}
			}
			if n > 30 {
				t.Errorf("%d messages can be counted within a minute from %v", n, over[i].Sub(begin))
			}
		}
		if most := 30 * 10; len(given) < most*9/10 {
			t.Errorf("%d messages in ten minutes, want nine in ten of %d at least", len(given), most)
		}
		if u := d.usage(t); u.Recipients != len(given)-3 { // the last ones are still out
			t.Errorf("%d recipients are booked of %d messages", u.Recipients, len(given))
		}
	})
}

// TestUnseenDay: with the default, the recipients of a day last for 200 messages.
func TestUnseenDay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(limit.Microsoft().Messages)
		n := 0
		for d.Lease(t.Context(), process(1), "erp@contoso.com").Status == OK {
			n++
			time.Sleep(time.Second)
		}
		if want := limit.Microsoft().Recipients.N / ledger.MaxDelivery; n != want {
			t.Errorf("%d messages, want %d", n, want)
		}
	})
}

// TestUnseenGivesBack: processes that rest keep nobody waiting for long, and what they may still be
// sending keeps its place in the minute until they ask again, or for the longest session.
func TestUnseenGivesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(limit.Microsoft().Messages).unseen(1)
		go d.Run(t.Context())
		want := func(what string, leases, messages, recipients int) {
			t.Helper()
			if u := d.usage(t); u.Leases != leases || u.Messages != messages || u.Recipients != recipients {
				t.Errorf("%s: usage %+v, want %d connections, %d messages, %d recipients", what, u, leases, messages, recipients)
			}
		}
		for n := range int32(3) {
			d.Lease(t.Context(), process(n+1), "erp@contoso.com")
		}
		began := time.Now()
		if r := d.Lease(t.Context(), process(4), "erp@contoso.com"); r.Status != OK || time.Since(began) > unseenSession+2*time.Second {
			t.Fatalf("after %v: %v %q", time.Since(began), r.Status, r.Value)
		}
		want("three rest", 1, 4, 0)
		time.Sleep(5 * time.Minute)
		want("all rest", 0, 4, 0)
		d.Lease(t.Context(), process(1), "nobody@contoso.com")
		want("one has asked again", 0, 4, 1)
		d.play(t, process(2), authOK, mailOK, rcptOK, rcptOK, dataOK, accepted) // a slow one, of another configuration
		want("one shows something after all", 0, 4, 3)
		time.Sleep(61 * time.Second)
		want("a minute later", 0, 2, 3)
		time.Sleep(maxSession)
		want("after the longest session", 0, 0, 5)
	})
}

// TestUnseenPatience: a session that is shown is not given up after so short a time, and one that
// has not come to DATA in the longest time may still do so.
func TestUnseenPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(limit.Microsoft().Messages).unseen(7)
		go d.Run(t.Context())
		d.play(t, process(1), banner, ehloOK, ehloLast)
		d.Lease(t.Context(), process(1), "erp@contoso.com")
		d.Lease(t.Context(), process(2), "erp@contoso.com")
		d.play(t, process(2), authOK, mailOK, rcptOK)
		time.Sleep(maxSession - time.Minute)
		if u := d.usage(t); u.Leases != 2 {
			t.Fatalf("usage %+v, want two leases out", u)
		}
		time.Sleep(2 * time.Minute)
		if u := d.usage(t); u.Leases != 0 || u.Recipients != 2*7 {
			t.Errorf("usage %+v, want two deliveries of 7 recipients", u)
		}
	})
}

// TestUnseenIsTold in the log, but not for each message, and in the status for an hour.
func TestUnseenIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(limit.Microsoft().Messages).unseen(1)
		me := Caller{PID: -1, UID: 107}
		for range 100 {
			d.Lease(t.Context(), me, "erp@contoso.com")
			time.Sleep(6 * time.Second)
		}
		d.play(t, me, authOK, mailOK, rcptOK, dataOK, accepted)
		if n := strings.Count(d.log.String(), `level=WARN msg="no reply was ever shown`); n != 1 {
			t.Errorf("%d warnings in ten minutes, want one:\n%s", n, d.log)
		}
		if !strings.Contains(d.log.String(), "uid=107 mailbox=erp@contoso.com hint=\"smtp_reply_filter is missing") {
			t.Errorf("log:\n%s", d.log)
		}
		if n := strings.Count(d.log.String(), "msg=delivery"); n != 100 {
			t.Errorf("%d lines of deliveries, want one for each", n)
		}
		u := d.Status(t.Context(), StatusInput{}).RepliesUnseen
		if u == nil || !u.Now || u.Leases != 99 || u.Recipients != 1 {
			t.Errorf("status %+v, want 99 leases of one recipient", u)
		}
		time.Sleep(unseenTold)
		if u = d.Status(t.Context(), StatusInput{}).RepliesUnseen; u == nil || u.Now || u.Leases != 99 {
			t.Errorf("an hour later %+v, want it to be over", u)
		}
		if u := newDesk(limit.Microsoft().Messages).Status(t.Context(), StatusInput{}).RepliesUnseen; u != nil {
			t.Errorf("without a lease: %+v", u)
		}
	})
}

// TestUnseenRestart: a service that is killed knows of what nobody has seen, and counts it with the
// recipients of the configuration.
func TestUnseenRestart(t *testing.T) {
	h := newHost(t)
	h.limits.Unseen = 3
	h.start()
	a, _ := h.smtp()
	_, endB := h.smtp()
	c, _ := h.smtp()
	h.reply(c, authOK, mailOK, rcptOK)
	endB()
	h.start()
	h.wantUsage(2, 3, 3)
	h.Lease(t.Context(), a, "nobody@contoso.com")
	h.wantUsage(1, 3, 6)
	h.start()
	h.Lease(t.Context(), c, "nobody@contoso.com") // was seen, before DATA
	h.wantUsage(0, 2, 6)
	h.limits.Unseen = 120
	h.start()
	d, endD := h.smtp()
	if o := h.ledger.Outstanding(); len(o) != 1 || o[0].Recipients != 120 {
		t.Errorf("process %d: the ledger keeps room for %+v, want 120", d.PID, o)
	}
	endD()
	h.start()
	h.wantUsage(0, 3, 126)
}

// TestUnseenDrain: a service that stops does not wait for what nobody will show.
func TestUnseenDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(limit.Microsoft().Messages)
		d.Lease(t.Context(), process(1), "erp@contoso.com")
		began := time.Now()
		if err := d.Drain(t.Context()); err != nil || time.Since(began) > unseenSession+time.Second {
			t.Errorf("Drain after %v: %v", time.Since(began), err)
		}
	})
}
