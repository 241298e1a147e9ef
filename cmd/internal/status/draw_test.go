package status

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/milter"
	"github.com/sendas/sendas/milter/queue"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/lease"
	"github.com/sendas/sendas/token/lease/replies"
	"github.com/sendas/sendas/token/ledger"
)

// fictitious is a view of a site where all kinds of things happen.
func fictitious() *view {
	now := time.Date(2026, 11, 21, 13, 7, 2, 0, time.UTC)
	at := func(d time.Duration) *time.Time { t := now.Add(d); return &t }
	usage := func(used, n int, window time.Duration) *lease.UsageStatus {
		return &lease.UsageStatus{Used: used, Left: max(0, n-used), Limit: n, Window: window.Seconds()}
	}
	mailbox := func(name string, messages, recipients int) lease.MailboxStatus {
		return lease.MailboxStatus{Mailbox: name, Credential: "relay-app", Connections: 3, InForce: 3,
			Messages: usage(messages, 30, time.Minute), Recipients: usage(recipients, 10000, 24*time.Hour)}
	}
	erp, scan, hr, bulk := mailbox("erp@contoso.com", 30, 8412), mailbox("scan@contoso.com", 4, 212), mailbox("hr@contoso.com", 0, 0), mailbox("newsletter@contoso.com", 1, 10000)
	erp.Leases, erp.InForce, erp.Waiting, erp.Next = 2, 2, 14, at(3*time.Second)
	erp.LastAccepted = at(-2 * time.Second)
	erp.LastVerdict = &lease.Verdict{Class: replies.Accepted, Code: "250", Time: *at(-2 * time.Second)}
	scan.Leases = 1
	scan.LastVerdict = &lease.Verdict{Class: replies.Concurrency, Code: "432", Time: *at(-40 * time.Second), Meaning: "Exchange Online saw more than three deliveries of this mailbox at one time"}
	bulk.PausedUntil, bulk.Next, bulk.PauseClass, bulk.PauseReason = at(80*time.Minute), at(80*time.Minute), ledger.PauseQuota, "its recipients of the day are used up"
	bulk.LastVerdict = &lease.Verdict{Class: replies.Quota, Code: "554", Time: *at(-time.Minute), Meaning: "the recipients of 24 hours are used up; its mail waits in the queue"}
	hr.Denied = []lease.Denial{{Sender: "ceo@contoso.com", Count: 2, Last: *at(-5 * time.Minute)}}
	status := &lease.Status{Version: "1.2.0", Time: now, Started: at(-26 * time.Hour),
		Pools:  []lease.PoolStatus{{Address: "info@contoso.com", Members: []string{"erp@contoso.com", "scan@contoso.com"}}},
		Groups: []lease.GroupStatus{{Name: lease.GroupExternal, Recipients: usage(1650, 2000, 24*time.Hour)}},
		Credentials: []lease.CredentialStatus{
			{Name: "relay-app", Flow: "client_credentials", InUse: true, Token: lease.TokenStatus{Live: true, Received: at(-17 * time.Minute), Expires: at(43 * time.Minute)},
				Refresh: lease.RefreshStatus{Result: entra.ResultOK, LastAttempt: at(-17 * time.Minute), LastSuccess: at(-17 * time.Minute), NextAttempt: at(28 * time.Minute)},
				Proof:   &lease.ProofStatus{Kind: "certificate", Ends: at(12 * 24 * time.Hour)}},
			{Name: "front-desk", Flow: "device_code", InUse: true, Token: lease.TokenStatus{Received: at(-3 * time.Hour), Expires: at(-2 * time.Hour)},
				Refresh: lease.RefreshStatus{Result: entra.ResultRefused, LastAttempt: at(-50 * time.Second), NextAttempt: at(4 * time.Minute),
					Error: &lease.RefreshError{Code: "AADSTS700082", Text: `Microsoft refused the refresh token of "front-desk" (AADSTS700082)`, Hint: `it lay unused too long; sign in again with "sendas login front-desk"`}},
				SignIn: &lease.SignInStatus{User: "desk@contoso.com", Since: at(-100 * 24 * time.Hour), IdleDays: 91, MaxDays: 90, Refused: &lease.Refusal{Code: "AADSTS700082", Meaning: "the refresh token lay unused too long"}}},
		},
		Mailboxes: []lease.MailboxStatus{erp, scan, hr, bulk, {Mailbox: "*@contoso.de", Pattern: true, Credential: "front-desk", Leases: 1}}}
	counts := func(accepted, deferred, rejected uint64) milter.Counts {
		return milter.Counts{Messages: map[policy.Action]uint64{policy.Accept: accepted, policy.Defer: deferred, policy.Reject: rejected, "hold": 0}, LastMessage: at(-2 * time.Second)}
	}
	limits := func(used, n int) []milter.LimitStatus {
		return []milter.LimitStatus{{Kind: limit.KindMessages, Used: used, Left: max(0, n-used), Limit: n, Window: 60},
			{Kind: limit.KindRecipients, Used: 30, Left: 470, Limit: 500, Window: 86400}}
	}
	incoming := &milter.Status{Version: "1.2.0", Time: now, Started: at(-26 * time.Hour),
		Clients: []milter.ClientStatus{
			{Client: "sap", Counts: counts(18231, 0, 0), Limits: []milter.LimitStatus{}},
			{Client: "printers", Counts: counts(912, 12, 3), OnLimit: "defer", Over: true, Limits: limits(20, 20)},
			{Client: "monitoring", Counts: counts(77, 0, 0), OnLimit: "reject", Limits: limits(3, 20)},
		},
		Unknown: counts(0, 0, 9), Identities: []milter.IdentityStatus{{Identity: "hr@contoso.com", OnLimit: "hold", Limits: limits(17, 20)}},
		Recent: milter.Recent{Minutes: 15, Actions: map[policy.Action]uint64{policy.Accept: 240, policy.Defer: 12, policy.Reject: 3, "hold": 0},
			Reasons: map[policy.ReasonCode]uint64{policy.ReasonAuthorized: 200, policy.ReasonFallback: 40, "client-limit": 12, policy.ReasonNoClient: 3}}}
	queued, since := 17, at(-40*time.Minute)
	incoming.Queue = &queue.Status{Readable: true, ReadAt: now, Messages: &queued, Oldest: since,
		Queues: []queue.PlaceStatus{{Queue: "deferred", Messages: 12, Oldest: since}, {Queue: "active", Messages: 5}, {Queue: "hold", Messages: 2}, {Queue: "incoming"}},
		Waiting: []queue.PlaceStatus{{Mailbox: "scan@contoso.com", Route: "submission", Messages: 15, Recipients: 31, Oldest: since}, {Route: "site", Messages: 1, Recipients: 1, Oldest: at(-3 * time.Second)},
			{Messages: 1, Recipients: 1, Oldest: at(-time.Second)}},
		Deferred: []queue.PlaceStatus{{Reason: queue.ReasonConnect, Messages: 10}, {Reason: "service", Messages: 2}},
		Stalls:   []queue.PlaceStatus{{Mailbox: "scan@contoso.com", Route: "submission", Reason: queue.ReasonConnect, Messages: 10, Recipients: 22, Oldest: since}}}
	incoming.Refused = []milter.Refusal{
		{Addr: "10.2.0.77", Action: policy.Reject, Reason: policy.ReasonNoClient, Asked: "mfp9@floor3.local", Answer: "10.2.0.77 may not send mail here", Count: 9, First: *at(-time.Hour), Last: *at(-40 * time.Second)},
		{Addr: "10.2.0.9", Client: "printers", Action: policy.Defer, Reason: policy.ReasonClientLimit, Asked: "scan@contoso.com", Answer: "over its limit of 20/m", Count: 12, First: *at(-time.Hour), Last: *at(-2 * time.Minute)},
		{Addr: "10.1.0.4", Client: "sap", Action: policy.Reject, Reason: policy.ReasonMayNotAsk, Asked: "ceo@contoso.com", Answer: "<ceo@contoso.com> may not be used by sap", Count: 3, First: *at(-time.Hour), Last: *at(-3 * time.Minute)}}
	loaded := service.Config{LoadedAt: *at(-26 * time.Hour), OK: true}
	old := service.Config{LoadedAt: *at(-26 * time.Hour)}
	return &view{time: now, host: "relay.contoso.com", tenant: "contoso.onmicrosoft.com", tokenAt: "127.0.0.1:9726", token: &tokenReport{status, &loaded}, milterAt: "127.0.0.1:9725", milter: &milterReport{incoming, &old}}
}

// crowd adds so many quiet mailboxes.
func (v *view) crowd(n int) *view {
	for i := range n {
		v.token.Mailboxes = append(v.token.Mailboxes, lease.MailboxStatus{Mailbox: fmt.Sprintf("box%04d@contoso.com", i), Credential: "relay-app", Connections: 3, InForce: 3,
			Messages: &lease.UsageStatus{Used: i % 7, Left: 30 - i%7, Limit: 30, Window: 60}, Recipients: &lease.UsageStatus{Used: i, Left: 10000 - i, Limit: 10000, Window: 86400}})
	}
	return v
}

// TestDraw compares pictures with the files of testdata/status, and holds every picture to its
// canvas.
func TestDraw(t *testing.T) {
	down := fictitious()
	down.token, down.tokenErr, down.milter, down.milterErr = nil, errors.New("connect: connection refused"), nil, errors.New("connect: connection refused")
	broken := fictitious()
	why := "the shared ledger is away: dial tcp 10.0.0.9:6379: connect: connection refused"
	broken.token.LedgerError = &why
	for i := range broken.token.Mailboxes {
		broken.token.Mailboxes[i].Messages, broken.token.Mailboxes[i].Recipients = nil, nil
	}
	for _, tc := range []struct {
		name string
		v    *view
		c    canvas
	}{
		{"wide", fictitious(), canvas{cols: 140, rows: 50, blocks: true}},
		{"eighty", fictitious(), canvas{cols: 80, rows: 50, blocks: true}},
		{"ascii", fictitious(), canvas{cols: 100, rows: 50}},
		{"phone", fictitious(), canvas{cols: 40, rows: 60, blocks: true}},
		{"tiny", fictitious(), canvas{cols: 20, rows: 10, blocks: true}},
		{"colour", fictitious(), canvas{cols: 100, rows: 50, blocks: true, color: true}},
		{"thousand", fictitious().crowd(995), canvas{cols: 100, rows: 40, blocks: true}},
		{"down", down, canvas{cols: 80, rows: 24, blocks: true}},
		{"ledger-away", broken, canvas{cols: 100, rows: 50, blocks: true}},
	} {
		lines := tc.v.draw(tc.c)
		checkCanvas(t, tc.name, tc.c, lines)
		compareFile(t, filepath.Join("testdata", "status", tc.name+".txt"), strings.ReplaceAll(strings.Join(lines, "\n")+"\n", "\x1b", "ESC"))
	}
}

// TestDrawAnySize: no size of the window makes a line too many, or too long.
func TestDrawAnySize(t *testing.T) {
	small, large := fictitious(), fictitious().crowd(995)
	for cols := 1; cols < 200; cols += 7 {
		for rows := 1; rows < 70; rows += 5 {
			for _, v := range []*view{small, large} {
				for _, c := range []canvas{{cols: cols, rows: rows}, {cols: cols, rows: rows, blocks: true, color: true}} {
					checkCanvas(t, fmt.Sprint(c), c, v.draw(c))
				}
			}
		}
	}
}

var escape = regexp.MustCompile("\x1b\\[[0-9;]*m")

func checkCanvas(t *testing.T, name string, c canvas, lines []string) {
	t.Helper()
	if len(lines) > max(1, c.rows) {
		t.Errorf("%s: %d lines in %d rows", name, len(lines), c.rows)
	}
	for _, l := range lines {
		if n := textWidth(escape.ReplaceAllString(l, "")); n > c.cols {
			t.Errorf("%s: %d columns in %d: %q", name, n, c.cols, l)
		}
		if !c.color && strings.Contains(l, "\x1b") || strings.ContainsAny(l, "\n\r\t") {
			t.Errorf("%s: %q", name, l)
		}
	}
}

// compareFile compares with a file, or writes it with -update.
func compareFile(t *testing.T, path, got string) {
	t.Helper()
	if *updatePictures {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", path, got, want)
	}
}

func TestBar(t *testing.T) {
	for _, tc := range []struct {
		used, most int
		blocks     bool
		want       string
	}{
		{0, 30, true, "░░░░░"}, {1, 10000, true, "▏░░░░"}, {15, 30, true, "██▌░░"}, {29, 30, true, "████▊"}, {9999, 10000, true, "████▉"}, {30, 30, true, "█████"},
		{40, 30, true, "█████"}, {0, 0, true, "█████"}, {0, 30, false, "....."}, {1, 10000, false, "#...."}, {15, 30, false, "###.."}, {9999, 10000, false, "####."}, {30, 30, false, "#####"},
	} {
		if got := (canvas{blocks: tc.blocks}).bar(tableCell{bar: true, used: tc.used, most: tc.most}, 5); got != tc.want {
			t.Errorf("%d of %d: %q, want %q", tc.used, tc.most, got, tc.want)
		}
	}
}

func TestCut(t *testing.T) {
	for _, tc := range []struct {
		in   string
		cols int
		want string
	}{
		{"contoso", 7, "contoso"}, {"contoso", 6, "conto…"}, {"contoso", 1, "…"}, {"contoso", 0, ""}, {"日本語", 6, "日本語"}, {"日本語", 5, "日本…"}, {"日本語", 4, "日…"},
		{"e\u0301te\u0301", 3, "e\u0301te\u0301"}, {"a\u200bb", 2, "a\u200bb"},
	} {
		if got := cut(tc.in, tc.cols, "…"); got != tc.want {
			t.Errorf("cut(%q, %d) = %q, want %q", tc.in, tc.cols, got, tc.want)
		}
	}
}

var updatePictures = flag.Bool("update-pictures", false, "write testdata/status anew")
