package lease

import (
	"context"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/internal/logtest"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/ledger"
)

const throttledNow = "550 5.2.252 Sender throttled due to continuous send as denied errors. [Hostname=SYBP282MB2635.AUSP282.PROD.OUTLOOK.COM]"

// offers sends a message as far as the look-up lets it, and returns what Postfix is told: of the
// look-up, or of the verdict.
func (d *desk) offers(t *testing.T, n int32, sender, verdict string) Result {
	t.Helper()
	if r := d.Lease(t.Context(), process(n), sender); r.Status != OK {
		return r
	}
	return d.play(t, process(n), authOK, mailOK, rcptOK, dataOK, verdict)
}

func (d *desk) denials(t *testing.T) []Denial {
	t.Helper()
	return d.Status(t.Context(), StatusInput{Mailboxes: []MailboxInput{{Label: "erp@contoso.com", Limits: d.limits}}}).Mailboxes[0].Denied
}

// TestHeldSender: what was denied a few times is offered once an hour, waits in between with the
// command that mends it, and is not returned any more; the mailbox's other mail goes on. When it is
// granted, all of it leaves.
func TestHeldSender(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(limit.Rate{N: 30, Per: time.Minute})
		for i := range maxDenials {
			if r := d.offers(t, 1, "billing@contoso.com", denied); r.Status != NotFound {
				t.Errorf("denial %d: %v, want it returned to its sender", i+1, r)
			}
		}
		kept := "454 4.2.252 " + strings.TrimPrefix(denied, "554 5.2.252 ")
		for hour := range 5 {
			for range 20 {
				r := d.offers(t, 1, "billing@contoso.com", denied)
				if r.Status != Temp || !strings.Contains(r.Value, "type: sendas retry erp@contoso.com billing@contoso.com") || len(r.Value) > maxReason {
					t.Fatalf("hour %d: %v %q, want it to wait with the command", hour, r.Status, r.Value)
				}
				if r := d.offers(t, 2, "erp@contoso.com", accepted); r.Status != NotFound {
					t.Fatalf("hour %d: other mail of the mailbox: %v %q", hour, r.Status, r.Value)
				}
				time.Sleep(2*time.Minute + 57*time.Second)
			}
			time.Sleep(time.Minute)
			if r := d.offers(t, 1, "billing@contoso.com", denied); r != (Result{OK, kept}) {
				t.Fatalf("after %d hours: %v %q, want one message to try and to stay in the queue", hour+1, r.Status, r.Value)
			}
		}
		if got := d.denials(t); len(got) != 1 || got[0].Count != maxDenials+5 || !got[0].Held || got[0].NextTry == nil || !got[0].NextTry.After(time.Now()) {
			t.Errorf("status %+v", got)
		}
		if n := strings.Count(d.log.String(), `msg="sender held"`); n != 1 || !strings.Contains(d.log.String(), "Add-RecipientPermission billing@contoso.com -Trustee erp@contoso.com -AccessRights SendAs") {
			t.Errorf("%d lines say that it is held, or none how to grant it", n)
		}
		time.Sleep(time.Hour)
		for range 3 {
			if r := d.offers(t, 1, "billing@contoso.com", accepted); r.Status != NotFound {
				t.Errorf("when it was granted: %v %q", r.Status, r.Value)
			}
		}
		if got := d.denials(t); len(got) != 0 {
			t.Errorf("when it was granted: %+v", got)
		}
	})
}

// TestHeldReply: all lines of a denial that is kept have the temporary code.
func TestHeldReply(t *testing.T) {
	d := newDesk(limit.Microsoft().Messages)
	for range maxDenials {
		d.offers(t, 1, "billing@contoso.com", denied)
	}
	d.TryAgain()
	d.Lease(t.Context(), process(1), "billing@contoso.com")
	d.play(t, process(1), authOK, mailOK, rcptOK, dataOK)
	for _, tc := range []struct{ line, want string }{
		{"554-5.2.252 SendAsDenied; erp@contoso.com not allowed", "454-4.2.252 SendAsDenied; erp@contoso.com not allowed"},
		{"554 5.2.252 to send as billing@contoso.com", "454 4.2.252 to send as billing@contoso.com"},
	} {
		if got := d.Reply(t.Context(), process(1), tc.line); got != (Result{OK, tc.want}) {
			t.Errorf("%q: %v, want %q", tc.line, got, tc.want)
		}
	}
}

// TestOneTry: of several messages one tries again, and one that learns nothing of the sender makes
// way for the next.
func TestOneTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(limit.Rate{N: 30, Per: time.Minute})
		for range maxDenials {
			d.offers(t, 1, "billing@contoso.com", denied)
		}
		time.Sleep(time.Hour)
		if r := d.Lease(t.Context(), process(1), "billing@contoso.com"); r.Status != OK {
			t.Fatalf("the first: %v", r)
		}
		if r := d.Lease(t.Context(), process(2), "billing@contoso.com"); r.Status != Temp {
			t.Errorf("the second: %v", r)
		}
		d.play(t, process(1), authOK, mailOK, rcptOK, dataOK, "451 4.7.0 Temporary server error. PRX2")
		if r := d.Lease(t.Context(), process(2), "billing@contoso.com"); r.Status != Temp {
			t.Errorf("at once: %v", r)
		}
		time.Sleep(time.Minute)
		if r := d.Lease(t.Context(), process(2), "billing@contoso.com"); r.Status != OK {
			t.Errorf("a minute after a try without answer: %v %q", r.Status, r.Value)
		}
		d.play(t, process(2), authOK, mailOK, rcptOK, banner) // lost
		time.Sleep(time.Minute)
		d.tokens.err = context.DeadlineExceeded
		d.Lease(t.Context(), process(3), "billing@contoso.com") // gets no lease, so it was no try
		d.tokens.err = nil
		if r := d.Lease(t.Context(), process(3), "billing@contoso.com"); r.Status != OK {
			t.Errorf("after a look-up without lease: %v %q", r.Status, r.Value)
		}
	})
}

// TestHeldInAPool: a sender that one member may not send as leaves through the others.
func TestHeldInAPool(t *testing.T) {
	d := newDesk(limit.Rate{N: 3000, Per: time.Minute})
	other := &Mailbox{Address: "hr@contoso.com", Label: "hr@contoso.com", Limits: d.limits, Tokens: d.tokens}
	d.Use(poolOf{d.dirOf("erp@contoso.com"), other})
	for i, from := 0, ""; i < 20; i++ {
		r := d.Lease(t.Context(), process(1), "billing@contoso.com")
		if r.Status != OK {
			t.Fatalf("message %d: %v %q", i, r.Status, r.Value)
		}
		from, _, _ = strings.Cut(r.Value, ":")
		verdict := accepted
		if from == "erp@contoso.com" {
			if verdict = denied; d.denied[from]["billing@contoso.com"].held() {
				t.Fatalf("message %d is offered to the mailbox that may not send it", i)
			}
		}
		d.play(t, process(1), authOK, mailOK, rcptOK, dataOK, verdict)
	}
}

func (d *desk) dirOf(sender string) *Mailbox { return (*d.dir.Load()).Mailboxes(sender)[0] }

// poolOf is a directory of two mailboxes that may send as everybody.
type poolOf [2]*Mailbox

func (p poolOf) Mailboxes(string) []*Mailbox { return p[:] }
func (poolOf) Listed(sender string) string   { return sender }
func (poolOf) External(string) bool          { return false }
func (poolOf) RouteFrom(string) string       { return "" }
func (poolOf) RouteTo(string) string         { return "" }

// TestRetry: the administrator's word makes one message try at once, and ends the mailbox's rest.
func TestRetry(t *testing.T) {
	d := newDesk(limit.Rate{N: 3000, Per: time.Minute})
	ask := func(key string) Retried {
		t.Helper()
		r := d.AdminMaps()["retry"](t.Context(), process(9), key)
		var a Retried
		if err := json.Unmarshal([]byte(r.Value), &a); r.Status != OK || err != nil {
			t.Fatalf("retry %s: %v", key, r)
		}
		return a
	}
	for range maxDenials {
		d.offers(t, 1, "billing@contoso.com", denied)
	}
	for _, tc := range []struct {
		key     string
		senders string
		unknown string
	}{
		{"erp@contoso.com hr@contoso.com", "", "hr@contoso.com"},
		{"nobody@contoso.com", "", "nobody@contoso.com"},
		{"billing@contoso.com", "", "billing@contoso.com"}, // a sender, and no mailbox
		{"", "", ""},
		{"erp@contoso.com erp@contoso.com", "", ""}, // not held
	} {
		if a := ask(tc.key); strings.Join(a.Senders, " ") != tc.senders || a.Unknown != tc.unknown || a.Rested {
			t.Errorf("retry %q: %+v", tc.key, a)
		}
	}
	if r := d.offers(t, 1, "billing@contoso.com", accepted); r.Status != Temp {
		t.Fatalf("still held: %v", r)
	}
	for _, key := range []string{"erp@contoso.com billing@contoso.com", "erp@contoso.com"} {
		if a := ask(key); strings.Join(a.Senders, " ") != "billing@contoso.com" || a.Rested {
			t.Errorf("retry %q: %+v", key, a)
		}
		if r := d.offers(t, 1, "billing@contoso.com", denied); r.Status != OK {
			t.Errorf("after retry %q: %v %q", key, r.Status, r.Value)
		}
		if r := d.offers(t, 1, "billing@contoso.com", denied); r.Status != Temp {
			t.Errorf("the message after it: %v", r)
		}
	}
	for _, reply := range []string{throttledNow, "554 5.2.2 mailbox full; STOREDRV", "550 5.1.8 Access denied, bad outbound sender"} {
		d.offers(t, 1, "erp@contoso.com", reply)
		if r := d.offers(t, 1, "erp@contoso.com", accepted); r.Status != Temp {
			t.Fatalf("%s: %v", reply, r)
		}
		if a := ask("erp@contoso.com"); !a.Rested {
			t.Errorf("%s: %+v", reply, a)
		}
		if r := d.offers(t, 1, "erp@contoso.com", accepted); r.Status != NotFound {
			t.Errorf("after %s and retry: %v %q", reply, r.Status, r.Value)
		}
	}
	if r := d.Lease(t.Context(), process(1), "erp@contoso.com"); r.Status != OK {
		t.Fatal(r)
	}
	d.play(t, process(1), auth535)
	if a := ask("erp@contoso.com"); !a.Rested {
		t.Errorf("after a refused AUTH: %+v", a)
	}
	if r := d.Lease(t.Context(), process(1), "erp@contoso.com"); r.Status != OK {
		t.Errorf("after a refused AUTH and retry: %v", r)
	}
}

// TestHeldSurvives: the next process knows what was denied, from the file, and one that was told to
// try again before anybody asked does.
func TestHeldSurvives(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token.db")
	start := func() (*desk, func()) {
		store, err := ledger.OpenBolt(path, ledger.BoltOptions{})
		if err != nil {
			t.Fatal(err)
		}
		d := &desk{tokens: &fakeTokens{}, log: &logtest.Buffer{}, limits: limit.Microsoft()}
		d.Lessor = NewLessor(store, NewMetrics(prometheus.NewRegistry()), slog.New(slog.NewTextHandler(d.log, nil)))
		m := &Mailbox{Address: "erp@contoso.com", Label: "erp@contoso.com", Limits: d.limits, Tokens: d.tokens}
		d.Use(fakeDirectory{"erp@contoso.com": m, "billing@contoso.com": m})
		return d, func() {
			if err := store.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	d, stop := start()
	for range maxDenials {
		d.offers(t, 1, "billing@contoso.com", denied)
	}
	stop()
	d, stop = start()
	if r := d.offers(t, 1, "billing@contoso.com", denied); r.Status != Temp || !strings.Contains(r.Value, "sendas retry") {
		t.Errorf("after a restart: %v %q", r.Status, r.Value)
	}
	if r := d.offers(t, 1, "erp@contoso.com", accepted); r.Status != NotFound {
		t.Errorf("other mail after a restart: %v %q", r.Status, r.Value)
	}
	if got := d.denials(t); len(got) != 1 || !got[0].Held || time.Until(*got[0].NextTry) < 59*time.Minute || time.Until(*got[0].NextTry) > time.Hour {
		t.Errorf("after a restart: %+v", got)
	}
	stop()
	d, stop = start()
	d.TryAgain()
	if r := d.offers(t, 1, "billing@contoso.com", accepted); r.Status != NotFound {
		t.Errorf("with new permissions after a restart: %v %q", r.Status, r.Value)
	}
	stop()
	d, stop = start()
	defer stop()
	if r := d.offers(t, 1, "billing@contoso.com", accepted); r.Status != NotFound {
		t.Errorf("after it was granted, and a restart: %v %q", r.Status, r.Value)
	}
}

// TestThrottled: the throttle keeps the mail and rests the mailbox for an hour, whatever its number.
func TestThrottled(t *testing.T) {
	for _, reply := range []string{throttledNow, "550 5.2.254 Sender throttled due to continuous invalid recipients errors.", "550-5.2.251 Sender throttled due to continuous\n550 5.2.251 mailbox full errors."} {
		for _, before := range [][]string{{authOK}, {authOK, mailOK}, {authOK, mailOK, rcptOK, dataOK}} {
			d := newDesk(limit.Microsoft().Messages)
			d.Lease(t.Context(), process(1), "billing@contoso.com")
			d.play(t, process(1), before...)
			last := d.play(t, process(1), strings.Split(reply, "\n")...)
			if last.Status != OK || !strings.HasPrefix(last.Value, "450 4.2.25") {
				t.Errorf("%s after %d replies: %v, want it kept", reply, len(before), last)
			}
			d.play(t, process(1), banner)
			if u := d.usage(t); u.PauseClass != ledger.PauseThrottled || time.Until(u.PausedUntil) < 59*time.Minute {
				t.Errorf("%s after %d replies: %+v", reply, len(before), u)
			}
			r := d.Lease(t.Context(), process(1), "erp@contoso.com")
			if r.Status != Temp || !strings.Contains(r.Value, "it rests for 1h0m0s, Microsoft throttles") || len(r.Value) > maxReason {
				t.Errorf("the next look-up: %v %q", r.Status, r.Value)
			}
			if got := d.denials(t); len(got) != 0 {
				t.Errorf("it counts as a denial: %+v", got)
			}
		}
	}
}

// TestFullForLong: a mailbox that is still full after its rest tries less often.
func TestFullForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const full = "554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded"
		d := newDesk(limit.Rate{N: 30, Per: time.Minute})
		for i, want := range []time.Duration{15 * time.Minute, time.Hour, time.Hour} {
			d.offers(t, 1, "erp@contoso.com", full)
			if got := time.Until(d.usage(t).PausedUntil).Round(time.Second); got != want {
				t.Errorf("the %d. time it rests for %v, want %v", i+1, got, want)
			}
			time.Sleep(want)
		}
		d.offers(t, 1, "erp@contoso.com", accepted)
		d.offers(t, 1, "erp@contoso.com", full)
		if got := time.Until(d.usage(t).PausedUntil).Round(time.Second); got != 15*time.Minute {
			t.Errorf("after it was emptied it rests for %v", got)
		}
	})
}
