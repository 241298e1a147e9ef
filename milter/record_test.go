package milter

import (
	"bufio"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/internal/record"
	"github.com/sendas/sendas/milter/quota"
	"github.com/sendas/sendas/policy"
)

// keeping gives the service a record; what was kept is read after the services have ended.
func keeping(t *testing.T) (k *record.Keeper, read func() []*record.Message) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "record.db")
	k = record.NewKeeper(record.MilterHalf, path, record.Settings{On: true, Days: 30, Size: 1 << 30}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	go k.Run()
	return k, func() []*record.Message {
		t.Helper()
		k.Close()
		r, err := record.OpenReader(t.Context(), path, record.MilterHalf)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		list, err := r.Messages(t.Context(), record.Query{})
		if err != nil {
			t.Fatal(err)
		}
		slices.Reverse(list)
		return list
	}
}

// TestRecord: whatever becomes of a message, the record has it, with who asked for what and how it
// leaves.
func TestRecord(t *testing.T) {
	k, read := keeping(t)
	s := startWith(t, nil, func(s *Server) { s.Record = k })
	c, macros := s.dial("10.2.0.9", "")
	macros.Set("{client_name}", "unknown")
	macros.Set("{client_ptr}", "mfp3.hall.lan")
	s.send(c, "<root@mfp3>", "From: Mfp 3 <root@mfp3>", "Message-ID: <1@mfp3>", "Subject: nobody else's business")
	s.send(c, "<hr@contoso.com>", "From: HR <hr@contoso.com>") // without Message-ID
	s.send(c, "<>", "From: scan@contoso.com", "Message-ID: 2@mfp3")
	c.Close()
	c, _ = s.dial("192.0.2.1", "nagios")
	s.send(c, "<a@contoso.com>", "From: a@contoso.com", "Message-ID: <3@nagios>")
	c.Close()
	c, _ = s.dial("192.0.2.66", "")
	s.send(c, "<spam@example.com>", "From: spam@example.com")
	c.Close()
	list := read()
	if len(list) != 5 {
		t.Fatalf("%d messages", len(list))
	}
	made := list[1].MessageID
	if !strings.HasSuffix(made, "@contoso.com") || strings.ContainsAny(made, "<> ") {
		t.Errorf("the Message-ID that was made is %q", made)
	}
	for i, want := range []record.Message{
		{Client: "printers", PTR: "mfp3.hall.lan", Sender: "root@mfp3", From: "root@mfp3", Identity: "scan@contoso.com", Leaves: "scan@contoso.com", Mailbox: "scan@contoso.com", Pool: 1,
			Route: "submission", Action: "accept", Reason: "client-from", MessageID: "1@mfp3", Waits: true},
		{Client: "printers", PTR: "mfp3.hall.lan", Sender: "hr@contoso.com", From: "hr@contoso.com", Identity: "hr@contoso.com", Leaves: "hr@contoso.com", Mailbox: "scan@contoso.com", Pool: 1,
			Route: "submission", Action: "accept", Reason: "authorized", MessageID: made, Waits: true},
		{Client: "printers", PTR: "mfp3.hall.lan", From: "scan@contoso.com", Identity: "scan@contoso.com", Mailbox: "scan@contoso.com", Pool: 1,
			Route: "submission", Action: "accept", Reason: "null-sender", MessageID: "2@mfp3", Waits: true},
		{Client: "monitoring", Login: "nagios", Sender: "a@contoso.com", From: "a@contoso.com", Leaves: "a@contoso.com", Route: "submission", Action: "reject", Reason: "rejected", MessageID: "3@nagios"},
		{Sender: "spam@example.com", From: "spam@example.com", Leaves: "spam@example.com", Action: "reject", Reason: "no-client"},
	} {
		got := *list[i]
		if time.Since(got.Time) > time.Minute || got.Queue != "4cQXyz" || got.Count != 1 || !slices.Equal(got.Recipients, []string{"someone@example.net"}) {
			t.Errorf("message %d: %+v", i, got)
		}
		if refused := got.Action == "reject"; refused != strings.HasPrefix(got.Detail, "550 5.7.1 ") {
			t.Errorf("message %d: the reply is %q", i, got.Detail)
		}
		if i == 2 {
			want.Leaves = got.Leaves
			if !strings.EqualFold(got.Leaves, "scan@contoso.com") {
				t.Errorf("the null sender leaves as %q", got.Leaves)
			}
		}
		got.Number, got.Time, got.Queue, got.Count, got.Recipients, got.Detail, got.Addr = 0, time.Time{}, "", 0, nil, "", want.Addr
		got.HELO = ""
		if got.Client != want.Client || !equal(got, want) {
			t.Errorf("message %d:\ngot  %+v\nwant %+v", i, got, want)
		}
	}
}

// equal compares two messages that have no recipients.
func equal(a, b record.Message) bool {
	return fmt.Sprintf("%+v", a) == fmt.Sprintf("%+v", b)
}

// TestRecordOfObserved: what would have become of a message is kept as such, and it leaves as it came.
func TestRecordOfObserved(t *testing.T) {
	k, read := keeping(t)
	s := startWith(t, nil, observe(t), func(s *Server) { s.Record = k })
	c, _ := s.dial("10.2.0.9", "")
	s.send(c, "<root@mfp3>", "From: Mfp 3 <root@mfp3>", "Message-ID: <1@mfp3>")
	c.Close()
	c, _ = s.dial("192.0.2.66", "")
	s.send(c, "<erp@example.com>", "From: erp@example.com")
	c.Close()
	list := read()
	if len(list) != 2 {
		t.Fatalf("%d messages", len(list))
	}
	for i, want := range []record.Message{
		{HELO: "mfp3", Sender: "root@mfp3", Leaves: "root@mfp3", Identity: "scan@contoso.com", Action: "accept", MessageID: "1@mfp3"},
		{HELO: "mfp3", Sender: "erp@example.com", Leaves: "erp@example.com", Action: "reject"},
	} {
		got := list[i]
		if !got.Observed || !got.Waits || got.HELO != want.HELO || got.Sender != want.Sender || got.Leaves != want.Leaves || got.Identity != want.Identity || got.Action != want.Action || got.MessageID != want.MessageID {
			t.Errorf("message %d: %+v", i, got)
		}
	}
}

// TestRecordOfRefusedRecipients: what is refused before there is a message is kept as well.
func TestRecordOfRefusedRecipients(t *testing.T) {
	k, read := keeping(t)
	s, _ := newPolicyServer(t)
	s.Record = k
	s.Use(routed(t))
	for _, q := range []string{edited("10.2.0.9", "192.0.2.66", "size=0", "size=4711"), edited("10.2.0.9", "192.0.2.66", "someone@", "other@"), request} {
		r, err := readQuery(bufio.NewReader(strings.NewReader(q)))
		if err != nil {
			t.Fatal(err)
		}
		s.answer(r)
	}
	list := read()
	if len(list) != 1 {
		t.Fatalf("%d messages", len(list))
	}
	m := list[0]
	if m.Addr.String() != "192.0.2.66" || m.PTR != "mfp3.local" || m.HELO != "mfp3" || m.Sender != "root@mfp3" || m.Action != "reject" || m.Reason != "no-client" || m.Size != 4711 || m.Count != 2 ||
		!slices.Equal(m.Recipients, []string{"someone@example.net", "other@example.net"}) || m.Queue != "" || m.Waits || !strings.HasPrefix(m.Detail, "550 5.7.1 ") {
		t.Errorf("%+v", m)
	}
}

// TestRecordOfLimits: a message that a limit refuses at MAIL or RCPT is one.
func TestRecordOfLimits(t *testing.T) {
	k, read := keeping(t)
	s := startWith(t, newQuotas(quota.ClientLimit{Rates: quota.Rates{Messages: perDay(1)}, OnLimit: quota.RejectOver}), func(s *Server) { s.Record = k })
	for range 2 {
		c, _ := s.dial("10.2.0.9", "")
		s.send(c, "<root@mfp3>", "From: root@mfp3")
		c.Close()
	}
	list := read()
	if len(list) != 2 || list[0].Action != "accept" || list[1].Action != "reject" || list[1].Reason != string(policy.ReasonClientLimit) || list[1].Detail == "" || list[1].Client != "printers" ||
		list[1].Sender != "root@mfp3" || list[1].Addr.String() != "10.2.0.9" {
		t.Errorf("%+v", list[len(list)-1])
	}
}

func TestSizeOf(t *testing.T) {
	for args, want := range map[string]int64{"": 0, "SIZE=4711": 4711, "BODY=8BITMIME size=12 RET=HDRS": 12, "SIZE=": 0, "SIZE=x": 0, "SIZE=-1": 0, "SIZE=99999999999999999999": 0, "XSIZE=1": 0} {
		if got := sizeOf(args); got != want {
			t.Errorf("sizeOf(%q) = %d, want %d", args, got, want)
		}
	}
}

// TestBrokenRecord: a record that cannot be written holds up no message.
func TestBrokenRecord(t *testing.T) {
	k := record.NewKeeper(record.MilterHalf, filepath.Join(t.TempDir(), "missing", "record.db"), record.Settings{On: true, Days: 30, Size: 1 << 30}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	go k.Run()
	defer k.Close()
	s := startWith(t, nil, func(s *Server) { s.Record = k })
	c, _ := s.dial("10.2.0.9", "")
	for range 200 {
		if got := s.send(c, "<root@mfp3>", "From: root@mfp3"); !strings.Contains(got, "sender <scan@contoso.com>") {
			t.Fatalf("the message became %q", got)
		}
	}
}
