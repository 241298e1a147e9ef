package lease

import (
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/internal/record"
	"github.com/sendas/sendas/policy/limit"
)

// attempts runs something with a desk that keeps a record, and returns what was kept, oldest first.
func attempts(t *testing.T, messages limit.Rate, f func(d *desk)) []*record.Attempt {
	t.Helper()
	path := filepath.Join(t.TempDir(), "record.db")
	k := record.NewKeeper(record.TokenHalf, path, record.Settings{On: true, Days: 30, Size: 1 << 30}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	go k.Run()
	d := newDesk(messages)
	d.Record(k)
	f(d)
	k.Close()
	r, err := record.OpenReader(t.Context(), path, record.TokenHalf)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	list, err := r.Attempts(t.Context(), record.Query{})
	if err != nil {
		t.Fatal(err)
	}
	for i, j := 0, len(list)-1; i < j; i, j = i+1, j-1 {
		list[i], list[j] = list[j], list[i]
	}
	return list
}

// TestAttempts: each way a session can end is one attempt, with what decided it, and without the token.
func TestAttempts(t *testing.T) {
	for _, tc := range []struct {
		name    string
		replies []string
		want    record.Attempt
		reply   string // begins so
	}{
		{"accepted", []string{authOK, mailOK, rcptOK, rcptOK, dataOK, accepted},
			record.Attempt{Class: "accepted", Stage: "end-of-data", Accepted: 2, MessageID: "b225fdda-3db5-4aeb-4d52-c74d71838980@contoso.com"}, "250 2.0.0 OK <b225"},
		{"accepted without an id", []string{authOK, mailOK, rcptOK, dataOK, "250 2.0.0 OK"}, record.Attempt{Class: "accepted", Stage: "end-of-data", Accepted: 1}, "250 2.0.0 OK"},
		{"one recipient refused", []string{authOK, mailOK, rcptOK, "550 5.1.10 Recipient not found", dataOK, accepted},
			record.Attempt{Class: "accepted", Stage: "end-of-data", Accepted: 1, Refused: 1, MessageID: "b225fdda-3db5-4aeb-4d52-c74d71838980@contoso.com"}, "250 2.0.0 OK <b225"},
		{"refused for good", []string{authOK, mailOK, rcptOK, dataOK, denied}, record.Attempt{Class: "send-as-denied", Stage: "end-of-data", Accepted: 1, Final: true}, "554 5.2.252 SendAsDenied"},
		{"refused for now", []string{authOK, mailOK, rcptOK, dataOK, tooMany}, record.Attempt{Class: "concurrency", Stage: "end-of-data", Accepted: 1}, "432 4.3.2"},
		{"made to wait", []string{authOK, mailOK, rcptOK, dataOK, quota}, record.Attempt{Class: "quota", Stage: "end-of-data", Accepted: 1}, "554 5.2.0"},
		{"AUTH refused", []string{auth535 + " " + theToken}, record.Attempt{Class: "auth-refused", Stage: "auth"}, "535 5.7.3"},
		{"the only recipient refused", []string{authOK, mailOK, "550 5.1.10 Recipient not found", banner}, record.Attempt{Class: "recipient", Stage: "rcpt", Refused: 1, Final: true}, "550 5.1.10"},
		{"broken off", []string{authOK, mailOK, rcptOK, dataOK, banner}, record.Attempt{Class: "unseen", Accepted: 1}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := time.Now()
			list := attempts(t, limit.Rate{N: 30, Per: time.Minute}, func(d *desk) {
				d.Lease(t.Context(), process(7), "billing@contoso.com")
				d.play(t, process(7), tc.replies...)
			})
			if len(list) != 1 {
				t.Fatalf("%d attempts", len(list))
			}
			got := *list[0]
			if got.Time.Before(before.Add(-time.Second)) || time.Since(got.Time) < 0 || !strings.HasPrefix(got.Reply, tc.reply) || (got.Meaning == "") != (got.Class == "accepted" || got.Class == "unseen") {
				t.Errorf("%+v", got)
			}
			if strings.Contains(got.Reply+got.Meaning, theToken) {
				t.Errorf("it holds the token: %+v", got)
			}
			got.Number, got.Time, got.Reply, got.Meaning, got.Took, got.Waited = 0, time.Time{}, "", "", 0, 0
			tc.want.PID, tc.want.Sender, tc.want.Mailbox = -7, "billing@contoso.com", "erp@contoso.com"
			if got != tc.want {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
		})
	}
}

// TestAttemptsWithoutLease: a look-up that brings none is an attempt too, with when there will be one.
func TestAttemptsWithoutLease(t *testing.T) {
	list := attempts(t, limit.Rate{N: 1, Per: time.Hour}, func(d *desk) {
		d.Lease(t.Context(), process(1), "stranger@contoso.com")
		d.Lease(t.Context(), process(2), "erp@contoso.com")
		d.play(t, process(2), authOK, mailOK, rcptOK, dataOK, accepted)
		d.Lease(t.Context(), process(3), "erp@contoso.com")
		d.tokens.err = errors.New("AADSTS7000222: the secret has expired")
		d.Lease(t.Context(), process(4), "erp@contoso.com")
	})
	if len(list) != 4 {
		t.Fatalf("%d attempts", len(list))
	}
	if a := list[0]; a.Class != record.NoMailbox || a.Sender != "stranger@contoso.com" || a.Mailbox != "" || a.PID != -1 {
		t.Errorf("no mailbox: %+v", a)
	}
	if a := list[2]; a.Class != record.NotNow || a.For != "messages" || a.Opens.Sub(a.Time) < 50*time.Minute || a.Opens.Sub(a.Time) > 61*time.Minute || !strings.Contains(a.Meaning, "1/h messages are used up") {
		t.Errorf("used up: %+v", a)
	}
	if a := list[3]; a.Class != record.NotNow || a.For != "" || !a.Opens.IsZero() || !strings.Contains(a.Meaning, "AADSTS7000222") {
		t.Errorf("no token: %+v", a)
	}
}
