package milter

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sendas/sendas/milter/quota"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/limit"
)

// TestStatus: what the milter decides is counted by client and minute, and strangers' addresses are
// not kept.
func TestStatus(t *testing.T) {
	day := func(n int) quota.Rates { return quota.Rates{Messages: []limit.Rate{{N: n, Per: 24 * time.Hour}}} }
	quotas := quota.NewDesk(quota.New())
	quotas.Use(map[string]quota.ClientLimit{"printers": {Rates: day(2), OnLimit: quota.DeferOver}}, quota.IdentityLimit{Address: "hr@contoso.com", Rates: day(9), OnLimit: quota.HoldOver}, quota.IdentityLimit{Address: "*@contoso.com", Rates: day(5), OnLimit: quota.HoldOver})
	s := startWith(t, quotas)
	for _, m := range []struct{ addr, login, from string }{
		{"10.2.0.9", "", "stranger@evil.example"}, {"10.2.0.9", "", "hr@contoso.com"}, {"10.2.0.9", "", "hr@contoso.com"}, {"192.0.2.1", "", "x@y.example"}, {"192.0.2.2", "nagios", "z@evil.example"},
	} {
		c, _ := s.dial(m.addr, m.login)
		s.send(c, "<"+m.from+">", "From: "+m.from, id, date)
		c.Close()
	}
	got := s.Tally.Status(StatusInput{Version: "1", Clients: []string{"printers", "monitoring"}}, quotas)
	var who []string
	for _, r := range got.Refused {
		who = append(who, fmt.Sprintf("%s %s %s %s %s %s %d", r.Addr, r.Login, r.Client, r.Action, r.Reason, r.Asked, r.Count))
	}
	slices.Sort(who)
	if want := []string{"10.2.0.9  printers defer client-limit hr@contoso.com 1", "192.0.2.1   reject no-client x@y.example 1",
		"192.0.2.2 nagios monitoring reject rejected z@evil.example 1"}; !slices.Equal(who, want) {
		t.Errorf("refused: %q, want %q", who, want)
	}
	got.Refused = nil // which is where strangers are
	text, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "example") || got.Started != nil || got.Version != "1" {
		t.Errorf("%s", text)
	}
	printers, monitoring := got.Clients[0], got.Clients[1]
	if want := (map[policy.Action]uint64{"accept": 2, "defer": 1, "reject": 0, "hold": 0, "pass": 0}); !maps.Equal(printers.Messages, want) || printers.LastMessage == nil {
		t.Errorf("printers: %+v", printers)
	}
	if l := printers.Limits; len(l) != 1 || l[0] != (LimitStatus{Kind: limit.KindMessages, Used: 2, Limit: 2, Window: 86400}) || !printers.Over || printers.OnLimit != "defer" {
		t.Errorf("printers: %+v", printers)
	}
	if monitoring.Messages["reject"] != 1 || len(monitoring.Limits) != 0 || monitoring.Over || got.Unknown.Messages["reject"] != 1 {
		t.Errorf("monitoring: %+v, unknown: %+v", monitoring, got.Unknown)
	}
	if x := got.Identities; len(x) != 1 || x[0].Identity != "hr@contoso.com" || x[0].Limits[0].Used != 1 || x[0].Limits[0].Left != 8 {
		t.Errorf("identities: %+v", x)
	}
	if r := got.Recent; r.Actions["accept"] != 2 || r.Actions["reject"] != 2 || r.Reasons[policy.ReasonClientLimit] != 1 || r.Reasons[policy.ReasonNoClient] != 1 || r.Minutes != RecentMinutes {
		t.Errorf("recent: %+v", r)
	}
}

// TestStatusKeys: programs rely on the names, so none may go.
func TestStatusKeys(t *testing.T) {
	q := quota.NewDesk(quota.New())
	rate := quota.Rates{Recipients: []limit.Rate{{N: 1, Per: time.Hour}}}
	q.Use(map[string]quota.ClientLimit{"printers": {Rates: rate, OnLimit: quota.RejectOver}}, quota.IdentityLimit{Address: "hr@contoso.com", Rates: rate, OnLimit: quota.HoldOver})
	for name, tally := range map[string]*Tally{"none": nil, "some": new(Tally)} {
		text, err := json.Marshal(tally.Status(StatusInput{Clients: []string{"printers"}}, q))
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"version", "time", "started", "clients", "client", "messages", "accept", "reject", "defer", "hold", "refused_recipients", "last_message", "on_limit", "over",
			"limits", "kind", "used", "left", "limit", "window_seconds", "under_way", "unknown", "identities", "identity", "recent", "minutes", "actions", "reasons", "refused"} {
			if !strings.Contains(string(text), `"`+key+`":`) {
				t.Errorf("%s: no %q in %s", name, key, text)
			}
		}
	}
	if s := (*Tally)(nil).Status(StatusInput{}, nil); s.Clients == nil || s.Identities == nil {
		t.Errorf("lists are null: %+v", s)
	}
}

// TestRecent: a decision is told for a quarter of an hour, and not longer.
func TestRecent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tally Tally
		want := func(n uint64) {
			t.Helper()
			if r := tally.recent(time.Now()); r.Actions[policy.Accept] != n || r.Reasons[policy.ReasonAuthorized] != n {
				t.Errorf("at %v: %+v, want %d", time.Now(), r, n)
			}
		}
		want(0)
		tally.message("sap", policy.Accept, policy.ReasonAuthorized, time.Now())
		time.Sleep(10 * time.Minute)
		tally.message("sap", policy.Accept, policy.ReasonAuthorized, time.Now())
		want(2)
		time.Sleep(5 * time.Minute)
		want(1)
		tally.message("sap", policy.Accept, policy.ReasonAuthorized, time.Now())
		want(2)
		time.Sleep(time.Hour)
		want(0)
		tally.recipient("sap")
		if c := tally.counts("sap"); c.Messages[policy.Accept] != 3 || c.Refused != 1 {
			t.Errorf("since the start: %+v", c)
		}
	})
}

// TestRefusedIsBounded: whoever knocks however often as however many, little is kept of it, the
// last and for a day.
func TestRefusedIsBounded(t *testing.T) {
	var tally Tally
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	knock := func(i int, at time.Time) {
		addr := netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})
		tally.refused(policy.Peer{Addr: addr}, "", strings.Repeat("\u202ex\n", 500), policy.Reject, policy.ReasonNoClient, "no", at)
	}
	for i := range 1000 {
		knock(i, now.Add(time.Duration(i)*time.Second))
	}
	knock(999, now.Add(999*time.Second))
	list := tally.refusedLately(now.Add(1000 * time.Second))
	if len(list) != refusalsKept || list[0].Addr != "192.0.3.231" || list[0].Count != 2 || len(list[0].Asked) > 110 || strings.ContainsAny(list[0].Asked, "\u202e\n") {
		t.Errorf("%d are kept, the last %+v", len(list), list[0])
	}
	if list := tally.refusedLately(now.Add(1000*time.Second + 24*time.Hour)); len(list) != 0 {
		t.Errorf("a day later there are %d", len(list))
	}
	tally.refused(policy.Peer{}, "sap", "a@b.example", policy.Accept, policy.ReasonAuthorized, "", now)
	if n := len(tally.refusals); n > refusalsKept {
		t.Errorf("%d are kept", n)
	}
	(*Tally)(nil).refused(policy.Peer{}, "", "", policy.Reject, policy.ReasonNoClient, "", now)
}
