package lease

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/lease/replies"
	"github.com/sendas/sendas/token/ledger"
)

// wantStatus is a whole answer. Its keys are a promise to scripts: add, never rename.
const wantStatus = `{
  "version": "1.2.3",
  "time": "2000-01-01T00:00:05Z",
  "started": "1999-12-31T23:00:00Z",
  "stopping": false,
  "ledger_error": null,
  "credentials": [
    {
      "name": "relay-app",
      "flow": "client_credentials",
      "in_use": true,
      "token": {
        "live": true,
        "received": "1999-12-31T23:48:00Z",
        "expires": "2000-01-01T00:43:05Z"
      },
      "refresh": {
        "result": "refused",
        "last_attempt": "2000-01-01T00:00:00Z",
        "last_success": "1999-12-31T23:48:00Z",
        "next_attempt": "2000-01-01T00:00:30Z",
        "error": {
          "code": "AADSTS7000222",
          "text": "Microsoft refused the client secret of \"relay-app\" (AADSTS7000222): \"The provided client secret keys are expired.\"",
          "hint": "the client secret has expired; make a new one in the app registration (Certificates \u0026 secrets) and write its Value into /etc/sendas/relay-app.secret; sendas takes it within 5 minutes, or at once on reload"
        },
        "attempts": {
          "config": 0,
          "ok": 1,
          "refused": 1,
          "unreachable": 0
        }
      },
      "clock_skew_seconds": -90,
      "proof": {
        "kind": "secret",
        "ends": "1999-12-31T00:00:00Z",
        "refused": {
          "code": "AADSTS7000222",
          "meaning": "the client secret has expired"
        }
      },
      "sign_in": null
    },
    {
      "name": "scan",
      "flow": "device_code",
      "in_use": false,
      "token": {
        "live": false,
        "received": null,
        "expires": null
      },
      "refresh": {
        "result": "",
        "last_attempt": null,
        "last_success": null,
        "next_attempt": null,
        "error": null,
        "attempts": {
          "config": 0,
          "ok": 0,
          "refused": 0,
          "unreachable": 0
        }
      },
      "clock_skew_seconds": 0,
      "proof": null,
      "sign_in": {
        "user": "scan@contoso.com",
        "since": "1999-11-01T00:00:05Z",
        "last_used": "1999-12-29T00:00:05Z",
        "renewed": "1999-12-29T00:00:05Z",
        "kept": false,
        "idle_days": 3,
        "max_idle_days": 90,
        "ends": "2000-03-28T00:00:05Z",
        "refused": null,
        "error": ""
      }
    }
  ],
  "mailboxes": [
    {
      "mailbox": "erp@contoso.com",
      "pattern": false,
      "credential": "relay-app",
      "leases": 1,
      "connections": 3,
      "connections_in_force": 3,
      "waiting": 0,
      "next_lease": "2000-01-01T01:00:00Z",
      "paused_until": "2000-01-01T01:00:00Z",
      "pause_class": "quota",
      "pause_reason": "the day's recipients are used up",
      "messages": {
        "used": 2,
        "left": 28,
        "limit": 30,
        "window_seconds": 60
      },
      "recipients": {
        "used": 0,
        "left": 10000,
        "limit": 10000,
        "window_seconds": 86400
      },
      "last_verdict": {
        "class": "send-as-denied",
        "code": "554",
        "meaning": "MEANING",
        "time": "2000-01-01T00:00:02Z",
        "when": "never",
        "of": "sender"
      },
      "last_accepted": null,
      "last_refusal": {
        "class": "send-as-denied",
        "code": "554",
        "meaning": "MEANING",
        "time": "2000-01-01T00:00:02Z",
        "stage": "end-of-data",
        "when": "never",
        "of": "sender"
      },
      "send_as_denied": [
        {
          "sender": "billing@contoso.com",
          "count": 1,
          "last": "2000-01-01T00:00:02Z"
        }
      ]
    },
    {
      "mailbox": "*@contoso.de",
      "pattern": true,
      "credential": "relay-app",
      "leases": 0,
      "connections": 3,
      "connections_in_force": 3,
      "waiting": 0,
      "next_lease": null,
      "paused_until": null,
      "pause_class": "",
      "pause_reason": "",
      "messages": null,
      "recipients": null,
      "last_verdict": null,
      "last_accepted": null,
      "send_as_denied": []
    }
  ]
}`

func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(limit.Rate{N: 30, Per: time.Minute})
		d.Lease(t.Context(), process(1), "billing@contoso.com")
		time.Sleep(2 * time.Second)
		d.play(t, process(1), authOK, mailOK, rcptOK, dataOK, denied)
		time.Sleep(3 * time.Second)
		d.Lease(t.Context(), process(2), "erp@contoso.com")
		now := time.Now()
		if err := d.ledger.Pause(t.Context(), "erp@contoso.com", ledger.Pause{Until: time.Date(2000, 1, 1, 1, 0, 0, 0, time.UTC), Class: ledger.PauseQuota,
			Reason: "the day's recipients\nare used up"}, now); err != nil {
			t.Fatal(err)
		}
		refused := &entra.RefusedError{Credential: "relay-app", What: "client secret", File: "/etc/sendas/relay-app.secret", OAuth: "invalid_client",
			Codes: []int{7000222}, Description: "The provided client secret keys are expired."}
		got, err := json.MarshalIndent(d.Status(t.Context(), StatusInput{
			Version: "1.2.3", Started: now.Add(-time.Hour - 5*time.Second),
			Credentials: []CredentialInput{
				{Name: "relay-app", Flow: "client_credentials", Proof: "secret", ProofEnds: now.Add(-24*time.Hour - 5*time.Second),
					State: &entra.RefresherState{Have: true, Expires: now.Add(43 * time.Minute), LastSuccess: now.Add(-12*time.Minute - 5*time.Second),
						LastAttempt: now.Add(-5 * time.Second), NextAttempt: now.Add(25 * time.Second), LastErr: refused, Skew: -90 * time.Second,
						Attempts: map[string]uint64{entra.ResultOK: 1, entra.ResultRefused: 1, entra.ResultUnreachable: 0, entra.ResultConfig: 0}}},
				{Name: "scan", Flow: "device_code",
					SignIn: &SignedIn{User: "scan@contoso.com", Since: now.AddDate(0, -2, 0), Renewed: now.Add(-3 * 24 * time.Hour)}},
			},
			Mailboxes: []MailboxInput{
				{Label: "erp@contoso.com", Credential: "relay-app", Limits: limit.Microsoft()},
				{Label: "*@contoso.de", Pattern: true, Credential: "relay-app", Limits: limit.Microsoft()},
			},
		}), "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		meaning, err := json.Marshal(replies.Explain(denied).For("erp@contoso.com", "billing@contoso.com").Hint())
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Replace(wantStatus, `"MEANING"`, string(meaning), -1)
		if string(got) != want {
			t.Errorf("status\n%s\nwant\n%s", got, want)
		}
	})
}

// TestDenials: a sender stays denied until Exchange Online takes a message of it; others do not
// count.
func TestDenials(t *testing.T) {
	d := newDesk(limit.Rate{N: 30, Per: time.Minute})
	for _, x := range []struct{ sender, verdict string }{
		{"billing@contoso.com", denied}, {"billing@contoso.com", denied}, {"erp@contoso.com", denied}, {"erp@contoso.com", accepted}, {"erp@contoso.com", tooMany},
	} {
		d.Lease(t.Context(), process(1), x.sender)
		d.play(t, process(1), authOK, mailOK, rcptOK, dataOK, x.verdict)
	}
	got := d.Status(t.Context(), StatusInput{Mailboxes: []MailboxInput{{Label: "erp@contoso.com", Limits: d.limits}}}).Mailboxes[0].Denied
	if len(got) != 1 || got[0].Sender != "billing@contoso.com" || got[0].Count != 2 {
		t.Errorf("denied %+v, want billing@contoso.com twice", got)
	}
}

// TestDenialsAreBounded: senders that strangers make up, by case and plus signs, are kept under the
// names that the configuration has for them, and those go with it.
func TestDenialsAreBounded(t *testing.T) {
	d := newDesk(limit.Rate{N: 3000, Per: time.Minute})
	m := &Mailbox{Address: "erp@contoso.com", Label: "erp@contoso.com", Limits: d.limits, Tokens: d.tokens}
	dir := fakeDirectory{"billing@contoso.com": m, "billing+*@contoso.com": m}
	senders := []string{"billing@contoso.com", "Billing@contoso.com", "BILLING@CONTOSO.COM"}
	for i := range 500 {
		senders = append(senders, fmt.Sprintf("billing+%d@contoso.com", i), fmt.Sprintf("Billing+%d@Contoso.com", i))
	}
	for _, sender := range senders {
		dir[sender] = m
	}
	d.Use(dir)
	for _, sender := range senders {
		d.TryAgain() // or it would be held after the third
		if r := d.Lease(t.Context(), process(1), sender); r.Status != OK {
			t.Fatalf("%s: %v", sender, r)
		}
		d.play(t, process(1), authOK, mailOK, rcptOK, dataOK, denied)
	}
	list := func() string {
		var s []string
		for _, x := range d.deniedTo("erp@contoso.com") {
			s = append(s, fmt.Sprintf("%s %d", x.Sender, x.Count))
		}
		return strings.Join(s, ", ")
	}
	if got, want := list(), "billing+*@contoso.com 1000, billing@contoso.com 3"; got != want {
		t.Errorf("denied: %.200s, want %s", got, want)
	}
	d.Use(fakeDirectory{"billing@contoso.com": m})
	if got, want := list(), "billing@contoso.com 3"; got != want {
		t.Errorf("after a reload: %.200s, want %s", got, want)
	}
	d.Use(fakeDirectory{"billing@contoso.com": {Address: "hr@contoso.com", Label: "hr@contoso.com"}})
	if got := list(); got != "" || len(d.denied) != 0 {
		t.Errorf("of a mailbox that is gone: %.200s", got)
	}
}

// TestRefusalsAreBounded: of the mailboxes that strangers make up some are remembered, of those in
// the configuration all.
func TestRefusalsAreBounded(t *testing.T) {
	d := newDesk(limit.Rate{N: 30, Per: time.Minute})
	for i := range maxMadeRefusals + 100 {
		for _, made := range []bool{true, false} {
			d.refused(&session{mailbox: fmt.Sprintf("%d-%v@contoso.com", i, made), made: made, tokens: d.tokens}, replies.Explain(auth535))
		}
	}
	if got, want := len(d.refusals), 2*maxMadeRefusals+100; got != want {
		t.Errorf("%d refusals are remembered, want %d", got, want)
	}
}

// TestStatusOfPattern: what strangers made up is counted under the pattern, and not shown.
func TestStatusOfPattern(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(limit.Rate{N: 30, Per: time.Minute})
		one := d.limits
		one.Connections = 1
		dir := fakeDirectory{}
		for _, a := range []string{"alice@contoso.de", "bob@contoso.de"} {
			dir[a] = &Mailbox{Address: a, Label: "*@contoso.de", Limits: one, Tokens: d.tokens}
		}
		d.Use(dir)
		ctx, cancel := context.WithCancel(t.Context())
		for i, sender := range []string{"alice@contoso.de", "bob@contoso.de", "bob@contoso.de", "bob@contoso.de", "alice@contoso.de", "nobody@contoso.de"} {
			go d.Lease(ctx, process(int32(i+1)), sender)
			synctest.Wait()
		}
		d.play(t, process(1), auth535)
		synctest.Wait()
		in := StatusInput{Mailboxes: []MailboxInput{{Label: "*@contoso.de", Pattern: true, Limits: one}}}
		s := d.Status(ctx, in)
		m := s.Mailboxes[0]
		// Alice's first look-up was refused, so her second would be, too: it does not wait for her
		// lease any longer.
		if m.Leases != 1 || m.Waiting != 2 || m.Messages != nil || m.Recipients != nil {
			t.Errorf("%+v, want 1 lease, 2 waiting, and no usage", m)
		}
		if v := m.LastVerdict; v == nil || v.Class != replies.Auth || v.Code != "535" || v.Meaning != replies.Explain(auth535).Hint() {
			t.Errorf("last verdict %+v", v)
		}
		b, err := json.Marshal(s)
		if err != nil || bytes.Contains(b, []byte("alice")) || bytes.Contains(b, []byte("bob")) || bytes.Contains(b, []byte("nobody")) || bytes.Contains(b, []byte(theToken)) {
			t.Errorf("%v: %s", err, b)
		}
		cancel()
		synctest.Wait()
		if m := d.Status(t.Context(), in).Mailboxes[0]; m.Waiting != 0 {
			t.Errorf("%d wait after all have gone", m.Waiting)
		}
	})
}

func TestStatusStopping(t *testing.T) {
	d := newDesk(limit.Rate{N: 30, Per: time.Minute})
	if d.Status(t.Context(), StatusInput{}).Stopping {
		t.Error("stopping before Drain")
	}
	if err := d.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !d.Status(t.Context(), StatusInput{}).Stopping {
		t.Error("not stopping after Drain")
	}
}

// brokenLedger cannot tell anything.
type brokenLedger struct {
	ledger.Store
	asked int
}

func (b *brokenLedger) Usage(context.Context, string, limit.Allowance, time.Time) (ledger.Usage, error) {
	b.asked++
	return ledger.Usage{}, errors.New("dial tcp 127.0.0.1:6379:\nconnection refused")
}

func TestStatusWithoutLedger(t *testing.T) {
	ledger := &brokenLedger{}
	l := NewLessor(ledger, NewMetrics(prometheus.NewRegistry()), slog.New(slog.DiscardHandler))
	l.Use(fakeDirectory{})
	s := l.Status(t.Context(), StatusInput{Mailboxes: []MailboxInput{{Label: "a@contoso.com"}, {Label: "b@contoso.com"}}})
	if s.LedgerError == nil || *s.LedgerError != "dial tcp 127.0.0.1:6379: connection refused" || len(s.Mailboxes) != 2 || s.Mailboxes[1].Messages != nil {
		t.Errorf("%+v", s)
	}
	if ledger.asked != 1 {
		t.Errorf("a ledger that fails was asked %d times for one answer", ledger.asked)
	}
}

func TestCredentialStatus(t *testing.T) {
	now := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		name         string
		err          error
		result, code string
		hint         string // part of it
	}{
		{"never asked", nil, "", "", ""},
		{"no network", &entra.UnreachableError{Credential: "c", Host: "login.microsoftonline.com", Problem: "gave no answer", Status: 503}, entra.ResultUnreachable, "", "tries again by itself"},
		{"busy", &entra.RefusedError{Credential: "c", OAuth: "temporarily_unavailable", Status: 503}, entra.ResultUnreachable, "temporarily_unavailable", "waits and tries again"},
		{"a file", &entra.FileError{Path: "/s", Problem: "is empty: write it"}, entra.ResultConfig, "", ""},
		{"unheard of", errors.New("boom\x1b[2J"), entra.ResultUnreachable, "", ""},
	} {
		c := CredentialInput{Name: "c", State: &entra.RefresherState{LastErr: tc.err}}
		s := c.status(now).Refresh
		if s.Result != tc.result || (s.Error != nil) != (tc.err != nil) {
			t.Errorf("%s: result %q, error %+v, want %q", tc.name, s.Result, s.Error, tc.result)
			continue
		}
		if e := s.Error; e != nil && (e.Code != tc.code || !strings.Contains(e.Hint, tc.hint) || (e.Hint == "") != (tc.hint == "") || strings.Contains(e.Text, "\x1b")) {
			t.Errorf("%s: %+v, want code %q and a hint with %q", tc.name, e, tc.code, tc.hint)
		}
	}
}

func TestSignInStatus(t *testing.T) {
	now := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	day := 24 * time.Hour
	for _, tc := range []struct {
		name string
		in   SignedIn
		idle int
		used time.Time
		ends time.Time
	}{
		{"nobody", SignedIn{}, 0, time.Time{}, time.Time{}},
		{"never refreshed", SignedIn{User: "u", Since: now.Add(-5*day - time.Hour)}, 5, now.Add(-5*day - time.Hour), now.Add(85*day - time.Hour)},
		{"refreshed", SignedIn{User: "u", Since: now.Add(-80 * day), Renewed: now.Add(-day + time.Second)}, 0, now.Add(-day + time.Second), now.Add(89*day + time.Second)},
		{"used, and not renewed", SignedIn{User: "u", Since: now.Add(-80 * day), Renewed: now.Add(-80 * day), Used: now.Add(-time.Hour), Kept: true}, 80, now.Add(-time.Hour), now.Add(10 * day)},
		{"signed in again", SignedIn{User: "u", Since: now.Add(-2 * day), Renewed: now.Add(-40 * day)}, 2, now.Add(-2 * day), now.Add(88 * day)},
		{"a clock that was ahead", SignedIn{User: "u", Since: now.Add(3 * day)}, 0, now.Add(3 * day), now.Add(93 * day)},
	} {
		s := tc.in.status(now)
		same := func(got *time.Time, want time.Time) bool {
			return got == nil && want.IsZero() || got != nil && got.Equal(want)
		}
		if s.IdleDays != tc.idle || s.MaxDays != 90 || !same(s.LastUsed, tc.used) || !same(s.Ends, tc.ends) || s.Kept != tc.in.Kept {
			t.Errorf("%s: %+v, last used %v, ends %v, want %d days since it came, used %v, end %v", tc.name, s, s.LastUsed, s.Ends, tc.idle, tc.used, tc.ends)
		}
	}
}

// TestSignInTruth: what the last attempt said and what is known of the sign-in agree at any moment.
func TestSignInTruth(t *testing.T) {
	now := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	const file = "/var/lib/sendas-token/grants/scan.json"
	missing := &entra.FileError{Path: file, Problem: "does not exist", Err: fs.ErrNotExist}
	damaged := &entra.FileError{Path: file, Problem: "is damaged"}
	noSecret := &entra.FileError{Path: "/etc/sendas/scan.secret", Problem: "does not exist", Err: fs.ErrNotExist}
	refuse := func(oauth string, code int) error {
		return &entra.RefusedError{Credential: "scan", What: "refresh token", Status: 400, OAuth: oauth, Codes: []int{code}, Delegated: true}
	}
	before, after := now.Add(-time.Hour), now.Add(time.Second)
	for _, tc := range []struct {
		name    string
		err     error
		since   time.Time // zero: nobody
		result  string
		refused string // the code, in the row of the sign-in
	}{
		{"nobody", missing, time.Time{}, entra.ResultConfig, ""},
		{"somebody since", missing, after, "", ""},
		{"somebody since, while the attempt ran", missing, before, "", ""}, // the file was not there, and is
		{"damaged", damaged, before, entra.ResultConfig, ""},
		{"damaged, and somebody since", damaged, after, "", ""},
		{"another file", noSecret, after, entra.ResultConfig, ""},
		{"revoked", refuse("invalid_grant", 50173), before, entra.ResultRefused, "AADSTS50173"},
		{"revoked, and somebody since", refuse("invalid_grant", 50173), after, "", ""},
		{"an app without secret", refuse("invalid_client", 7000218), after, entra.ResultRefused, ""},
		{"busy", refuse("temporarily_unavailable", 90033), before, entra.ResultUnreachable, ""},
		{"no trouble", nil, before, entra.ResultOK, ""},
	} {
		c := CredentialInput{Name: "scan", State: &entra.RefresherState{LastErr: tc.err, LastAttempt: now, LastSuccess: before}, SignIn: &SignedIn{Since: tc.since, Renewed: tc.since, File: file}}
		s := c.status(now.Add(time.Minute))
		refused := ""
		if s.SignIn.Refused != nil {
			refused = s.SignIn.Refused.Code
		}
		if s.Refresh.Result != tc.result || refused != tc.refused || (s.Refresh.Error != nil) != (tc.err != nil && tc.result != "") {
			t.Errorf("%s: result %q, error %v, sign-in refused %q, want %q and %q", tc.name, s.Refresh.Result, s.Refresh.Error, refused, tc.result, tc.refused)
		}
	}
}
