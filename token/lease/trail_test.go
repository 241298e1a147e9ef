package lease

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/ledger"
)

// trails asks the map as "sendas doctor" does.
func (d *desk) askTrails(t *testing.T, sender string) (list []Trail) {
	t.Helper()
	r := d.AdminMaps()["trails"](t.Context(), process(1), sender)
	if r.Status != OK || json.Unmarshal([]byte(r.Value), &list) != nil {
		t.Fatalf("trails of %s: %+v", sender, r)
	}
	if strings.Contains(r.Value, theToken) {
		t.Errorf("trails show the token: %s", r.Value)
	}
	return list
}

// TestTrail: each station of a delivery has its moment, in order, and what was not reached has none.
func TestTrail(t *testing.T) {
	const repeats = "535 5.7.3 Authentication unsuccessful, you said " + theToken
	for _, tc := range []struct {
		name    string
		replies []string
		want    string // seconds after the look-up; - is a station that was not reached
	}{
		{"accepted", []string{authOK, mailOK, rcptOK, rcptOK, dataOK, accepted}, "0 1 2 4 5 6, 2 recipients, accepted at end-of-data: 250 2.0.0 OK <b225fdda"},
		{"refused at the end", []string{authOK, mailOK, rcptOK, dataOK, denied}, "0 1 2 3 4 5, 1 recipients, refused at end-of-data: 554 5.2.252 SendAsDenied"},
		{"AUTH refused", []string{repeats}, "0 - - - - 1, 0 recipients, refused at auth: 535 5.7.3 Authentication unsuccessful, you said"},
		{"MAIL refused", []string{authOK, noAuth}, "0 1 - - - 2, 0 recipients, refused at mail: 530 5.7.57"},
		{"recipient refused", []string{authOK, mailOK, "550 5.1.10 Recipient not found"}, "0 1 2 - - -, 0 recipients, refused at rcpt: 550 5.1.10"},
		{"one recipient refused", []string{authOK, mailOK, rcptOK, "501 5.1.3 Invalid address", dataOK, accepted}, "0 1 2 3 5 6, 1 recipients, accepted at end-of-data: 250 2.0.0"},
		{"under way", []string{authOK, mailOK}, "0 1 2 - - -, 0 recipients, refused at : "},
		{"broken off", []string{authOK, mailOK, rcptOK, dataOK, banner}, "0 1 2 3 4 5, 1 recipients, refused at : "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDesk(limit.Rate{N: 30, Per: time.Minute})
				began := time.Now()
				d.Lease(t.Context(), process(7), "billing@contoso.com")
				for _, line := range tc.replies {
					time.Sleep(time.Second)
					d.Reply(t.Context(), process(7), line)
				}
				list := d.askTrails(t, "BILLING@contoso.com")
				if len(list) != 1 || list[0].Mailbox != "erp@contoso.com" || list[0].PID != -7 {
					t.Fatalf("trails %+v", list)
				}
				x := list[0]
				var at []string
				for _, m := range []*time.Time{x.Leased, x.SignedIn, x.Mail, x.Rcpt, x.Data, x.Ended} {
					if m == nil {
						at = append(at, "-")
					} else {
						at = append(at, fmt.Sprint(int(m.Sub(began).Seconds())))
					}
				}
				got := fmt.Sprintf("%s, %d recipients, %s at %s: %s", strings.Join(at, " "), x.Recipients, map[bool]string{true: "accepted", false: "refused"}[x.Accepted], x.Stage, x.Reply)
				if !strings.HasPrefix(got, tc.want) {
					t.Errorf("%s\nwant %s", got, tc.want)
				}
			})
		})
	}
}

// TestTrailWithoutLease: a look-up that waits is there, and one that brought nothing says why.
func TestTrailWithoutLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(limit.Rate{N: 1, Per: time.Hour})
		d.Lease(t.Context(), process(1), "nobody@contoso.com")
		if x := d.askTrails(t, "nobody@contoso.com"); len(x) != 1 || x[0].Why != "no mailbox may send as the envelope sender" || x[0].Ended == nil {
			t.Errorf("of a sender that nobody has: %+v", x)
		}
		d.Lease(t.Context(), process(1), "erp@contoso.com")
		d.play(t, process(1), authOK, mailOK, rcptOK, dataOK, accepted)
		time.Sleep(time.Minute)
		d.Lease(t.Context(), process(1), "erp@contoso.com")
		x := d.askTrails(t, "erp@contoso.com")
		if len(x) != 2 || !strings.Contains(x[0].Why, "messages are used up") || x[0].Leased != nil || !x[1].Accepted {
			t.Errorf("when the limit is used up: %+v", x)
		}
	})
}

// TestManyTrails: what is remembered is bounded.
func TestManyTrails(t *testing.T) {
	d := newDesk(limit.Rate{N: 30, Per: time.Minute})
	for i := range 3 * maxTrails {
		d.Lease(t.Context(), process(int32(i)), "nobody@contoso.com")
	}
	if n := len(d.trails); n != maxTrails {
		t.Errorf("%d attempts are remembered, want %d", n, maxTrails)
	}
	if list := d.askTrails(t, "nobody@contoso.com"); len(list) != maxTrailsTold || list[0].PID != -(3*maxTrails-1) {
		t.Errorf("%d are told, the first of process %d", len(list), list[0].PID)
	}
	if list := d.askTrails(t, "erp@contoso.com"); len(list) != 0 {
		t.Errorf("of another sender: %+v", list)
	}
}

// TestTrailOfAMessageKeptBack: while a message waits at DATA its trail says so, and its attempt counts
// that as time that it waited for its place.
func TestTrailOfAMessageKeptBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(limit.Rate{N: 1, Per: time.Minute})
		d.full(t)
		time.Sleep(45 * time.Second)
		c := process(1)
		d.play(t, c, greeting...)
		d.Lease(t.Context(), c, "erp@contoso.com")
		d.play(t, c, authOK, mailOK, rcptOK)
		answered := make(chan Result)
		go func() { answered <- d.Reply(t.Context(), c, dataOK) }()
		time.Sleep(5 * time.Second)
		if x := d.askTrails(t, "erp@contoso.com")[0]; x.Kept == nil || time.Since(*x.Kept) != 5*time.Second || x.Data != nil || x.Ended != nil {
			t.Errorf("after five seconds at DATA: %+v", x)
		}
		<-answered
		if x := d.askTrails(t, "erp@contoso.com")[0]; x.Kept != nil || x.Data == nil || time.Since(*x.Data) != 0 {
			t.Errorf("when it may begin: %+v", x)
		}
	})
}

// TestWaitedFor: what an attempt waited for is what it waited for longest.
func TestWaitedFor(t *testing.T) {
	const s = time.Second
	for _, tc := range []struct {
		waited, kept time.Duration
		cause, want  ledger.Cause
	}{
		{0, 0, "", ""},
		{5 * s, 0, ledger.CauseConnections, ledger.CauseConnections},
		{5 * s, 3 * s, ledger.CauseConnections, ledger.CauseConnections},
		{5 * s, 7 * s, ledger.CauseConnections, ledger.CauseMessages},
		{5 * s, 3 * s, ledger.CauseMessages, ledger.CauseMessages},
		{0, 3 * s, "", ledger.CauseMessages},
		{5 * s, 3 * s, "", ledger.CauseMessages}, // the former for a token
	} {
		x := &session{waited: tc.waited, kept: tc.kept, cause: tc.cause}
		if got := x.waitedFor(); got != tc.want {
			t.Errorf("%v in the look-up for %q and %v at DATA: %q, want %q", tc.waited, tc.cause, tc.kept, got, tc.want)
		}
	}
}
