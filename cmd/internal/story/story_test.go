package story

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/internal/record"
)

var noon = time.Date(2026, 12, 1, 12, 0, 0, 0, time.Local)

// at is so many seconds after noon.
func at(seconds float64) time.Time { return noon.Add(time.Duration(seconds * float64(time.Second))) }

// bookOf makes a record of messages and attempts, and opens it.
func bookOf(t *testing.T, log Log, entries ...any) *Book {
	t.Helper()
	dir := t.TempDir()
	set := record.Settings{On: true, Days: 36500, Size: 1 << 30}
	keep := func(half record.Half) (*record.Keeper, string) {
		path := filepath.Join(dir, string(half)+".db")
		k := record.NewKeeper(half, path, set, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		go k.Run()
		return k, path
	}
	milter, mPath := keep(record.MilterHalf)
	token, tPath := keep(record.TokenHalf)
	for _, e := range entries {
		switch e := e.(type) {
		case *record.Message:
			milter.Message(e)
		case *record.Attempt:
			token.Attempt(e)
		case reading:
			q := milter.Queue()
			q.Begin(e.at)
			for id, reason := range e.queued {
				q.Queued(id, reason, 1000)
			}
			q.End()
		}
	}
	milter.Close()
	token.Close()
	b, err := Open(t.Context(), mPath, tPath, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// reading is what a reading of Postfix's queue found: reasons by queue id.
type reading struct {
	at     time.Time
	queued map[string]string
}

// came is a message that was accepted.
func came(seconds float64, queue, messageID string) *record.Message {
	return &record.Message{Time: at(seconds), Queue: queue, MessageID: messageID, Client: "printers", Sender: "root@mfp3", From: "root@mfp3", Identity: "scan@contoso.com", Leaves: "scan@contoso.com",
		Mailbox: "scan@contoso.com", Pool: 1, Route: "submission", Action: "accept", Reason: "client-from", Recipients: []string{"anna@example.org"}, Count: 1, Waits: true}
}

// tried is an attempt that ended a second after it began.
func tried(seconds float64, pid int32, class, reply string) *record.Attempt {
	a := &record.Attempt{Time: at(seconds), PID: pid, Sender: "scan@contoso.com", Mailbox: "scan@contoso.com", Took: time.Second, Class: class, Stage: "end-of-data", Reply: reply, Accepted: 1}
	if class == record.Accepted {
		a.MessageID = record.NamedID(reply)
	}
	return a
}

const (
	took    = "250 2.0.0 OK <1@mfp3> [Hostname=SYBP282MB2635.AUSP282.PROD.OUTLOOK.COM]"
	busy    = "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information. [Hostname=P212321.PROD.OUTLOOK.COM]"
	refusal = "535 5.7.3 Authentication unsuccessful [AM0PR06CA0126.eurprd06.prod.outlook.com 2024-02-14T14:50:26.590Z 08DC2D372B4C3DED]"
)

// noted is how Postfix keeps an answer with a message.
func saidBy(reply string) string {
	return "host smtp.office365.com[52.98.0.1] said: " + reply + " (in reply to end of DATA command)"
}

// one tells the only tale of an id.
func one(t *testing.T, b *Book, id string, now time.Time) *Tale {
	t.Helper()
	list, err := b.Story(t.Context(), id, nil, now)
	if err != nil || len(list) != 1 {
		t.Fatalf("the story of %s: %d tales, %v", id, len(list), err)
	}
	return list[0]
}

// numbersOf lists attempts by their number.
func numbersOf(list []*record.Attempt) string {
	var s []string
	for _, a := range list {
		s = append(s, fmt.Sprint(a.Number))
	}
	return strings.Join(s, " ")
}

// TestTies: an attempt is a message's where that is certain, and else one of the sender.
func TestTies(t *testing.T) {
	old := came(-10*24*3600, "4bXold", "old@mfp3") // so that the record reaches back
	old.Leaves = "erp@contoso.com"
	for _, tc := range []struct {
		name    string
		entries []any
		log     []Line
		want    string // of 4bX1: state, tied attempts, others
		second  string // the same of 4bX2, where there is one
	}{
		{"accepted", []any{came(0, "4bX1", "1@mfp3"), tried(1, 7, "accepted", took)}, nil, "sent [1] []", ""},
		{"accepted under another id", []any{came(0, "4bX1", "2@mfp3"), tried(1, 7, "accepted", took)}, nil, "waiting [] []", ""},
		{"another sender's", []any{came(0, "4bX1", "1@mfp3"), &record.Attempt{Time: at(1), Sender: "erp@contoso.com", Class: "accepted", MessageID: "1@mfp3", Accepted: 1}}, nil, "waiting [] []", ""},
		{"before it came", []any{came(60, "4bX1", "1@mfp3"), tried(1, 7, "accepted", took)}, nil, "waiting [] []", ""},
		{"two of that id, both here", []any{came(0, "4bX1", "1@mfp3"), came(1, "4bX2", "1@mfp3"), tried(2, 7, "accepted", took)}, nil, "waiting [] []", "waiting [] []"},
		{"two of that id, both sent", []any{came(0, "4bX1", "1@mfp3"), came(1, "4bX2", "1@mfp3"), tried(2, 7, "accepted", took), tried(2.1, 8, "accepted", took)}, nil, "waiting [] []", "waiting [] []"},
		{"two of that id, the second came later", []any{came(0, "4bX1", "1@mfp3"), tried(1, 7, "accepted", took), came(60, "4bX2", "1@mfp3")}, nil, "sent [1] []", "waiting [] []"},
		{"two of that id, the first had left", []any{came(0, "4bX1", "1@mfp3"), reading{at(30), nil}, reading{at(60), nil}, came(90, "4bX2", "1@mfp3"), tried(91, 7, "accepted", took)}, nil, "gone [] []", "sent [1] []"},
		{"two of that id, one refused", []any{came(0, "4bX1", "1@mfp3"), &record.Message{Time: at(0), Queue: "4bX2", MessageID: "1@mfp3", Leaves: "scan@contoso.com", Action: "reject"}, tried(1, 7, "accepted", took)}, nil, "sent [1] []", "refused [] []"},
		{"two of that id, and Postfix's log", []any{came(0, "4bX1", "1@mfp3"), came(1, "4bX2", "1@mfp3"), tried(2, 7, "accepted", took), tried(2.1, 8, "accepted", took)},
			[]Line{{at(3), "postfix/sendas/smtp[8]: 4bX1: to=<anna@example.org>, relay=x, status=sent (" + took + ")"}}, "sent [2] []", ""},
		{"a part was taken", []any{withRcpts(came(0, "4bX1", "1@mfp3"), 60), withAccepted(tried(1, 7, "accepted", took), 50)}, nil, "waiting [1] []", ""},
		{"two parts were taken", []any{withRcpts(came(0, "4bX1", "1@mfp3"), 60), withAccepted(tried(1, 7, "accepted", took), 50), withAccepted(tried(1, 8, "accepted", took), 10)}, nil, "sent [1 2] []", ""},

		{"put off, nobody knows for which", []any{came(0, "4bX1", "1@mfp3"), tried(1, 7, "concurrency", busy)}, nil, "waiting [] [1]", ""},
		{"put off, as Postfix noted", []any{old, came(0, "4bX1", "1@mfp3"), tried(1, 7, "concurrency", busy), reading{at(30), map[string]string{"4bX1": saidBy(busy), "4bXold": ""}}}, nil, "waiting [1] []", ""},
		{"put off, noted, but the record is young", []any{came(0, "4bX1", "1@mfp3"), tried(1, 7, "concurrency", busy), reading{at(30), map[string]string{"4bX1": saidBy(busy)}}}, nil, "waiting [] [1]", ""},
		{"put off, noted, and two were answered so", []any{old, came(0, "4bX1", "1@mfp3"), tried(1, 7, "concurrency", busy), tried(2, 8, "concurrency", busy), reading{at(30), map[string]string{"4bX1": saidBy(busy)}}}, nil, "waiting [] [1 2]", ""},
		{"put off, noted, with another message there", []any{old, came(0, "4bX1", "1@mfp3"), came(0, "4bX2", "2@mfp3"), tried(1, 7, "concurrency", busy), reading{at(30), map[string]string{"4bX1": saidBy(busy), "4bX2": ""}}}, nil,
			"waiting [] [1]", "waiting [] [1]"},
		{"put off with what only one can have had", []any{came(0, "4bX1", "1@mfp3"), came(0, "4bX2", "2@mfp3"), tried(1, 7, "auth-refused", refusal), reading{at(30), map[string]string{"4bX1": saidBy(refusal), "4bX2": ""}}}, nil,
			"waiting [1] []", "waiting [] [1]"},
		{"made temporary by sendas", []any{came(0, "4bX1", "1@mfp3"), tried(1, 7, "blocked", "550 5.1.8 Bad outbound sender [AM0PR06CA0126.eurprd06.prod.outlook.com 2024-02-14T14:50:26.590Z 08DC2D372B4C3DED]"),
			reading{at(30), map[string]string{"4bX1": saidBy("451 4.1.8 Bad outbound sender [AM0PR06CA0126.eurprd06.prod.outlook.com 2024-02-14T14:50:26.590Z 08DC2D372B4C3DED]")}}}, nil, "waiting [1] []", ""},
		{"noted before it was answered", []any{old, came(0, "4bX1", "1@mfp3"), reading{at(30), map[string]string{"4bX1": saidBy(busy)}}, tried(60, 7, "concurrency", busy)}, nil, "waiting [] [1]", ""},
		{"put off, by Postfix's log", []any{came(0, "4bX1", "1@mfp3"), came(0, "4bX2", "2@mfp3"), tried(1, 7, "concurrency", busy), tried(1, 8, "concurrency", busy)},
			[]Line{{at(2), "postfix/smtp[8]: 4bX1: to=<anna@example.org>, relay=x, status=deferred (host said)"}}, "waiting [2] [1]", ""},
		{"the log's process had two at that time", []any{came(0, "4bX1", "1@mfp3"), tried(1, 8, "concurrency", busy), tried(2.1, 8, "concurrency", busy)},
			[]Line{{at(3), "postfix/smtp[8]: 4bX1: to=<anna@example.org>, relay=x, status=deferred (host said)"}}, "waiting [] [1 2]", ""},
		{"no lease", []any{came(0, "4bX1", "1@mfp3"), tried(1, 7, record.NotNow, "")}, nil, "waiting [] [1]", ""},
		{"refused for good, by Postfix's log", []any{came(0, "4bX1", "1@mfp3"), final(tried(1, 7, "send-as-denied", "554 5.2.252 SendAsDenied")), reading{at(30), nil}, reading{at(60), nil}},
			[]Line{{at(2), "postfix/smtp[7]: 4bX1: to=<anna@example.org>, relay=x, status=bounced (host said)"}}, "refused [1] []", ""},
		{"refused for good, nobody knows which", []any{came(0, "4bX1", "1@mfp3"), final(tried(1, 7, "send-as-denied", "554 5.2.252 SendAsDenied")), reading{at(30), nil}, reading{at(60), nil}}, nil, "gone [] [1]", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			log := func(_ context.Context, queue string, _, _ time.Time) (list []Line, err error) {
				for _, l := range tc.log {
					if strings.Contains(l.Text, "]: "+queue+": ") {
						list = append(list, l)
					}
				}
				return list, nil
			}
			b := bookOf(t, log, tc.entries...)
			for id, want := range map[string]string{"4bX1": tc.want, "4bX2": tc.second} {
				if want == "" {
					continue
				}
				x := one(t, b, id, at(300))
				if got := fmt.Sprintf("%s [%s] [%s]", x.State, numbersOf(x.Attempts), numbersOf(x.Others)); got != want {
					t.Errorf("%s: %s, want %s", id, got, want)
				}
			}
		})
	}
}

func withRcpts(m *record.Message, n int) *record.Message { m.Count = n; return m }

func withAccepted(a *record.Attempt, n int) *record.Attempt { a.Accepted = n; return a }

func final(a *record.Attempt) *record.Attempt { a.Final, a.Accepted = true, 0; return a }

// TestStoryText: a story reads alone, with what is still to come.
func TestStoryText(t *testing.T) {
	m := came(0, "4bX1", "1@mfp3")
	m.Size, m.PTR = 14_321, "mfp3.hall.lan"
	b := bookOf(t, nil, m, &record.Attempt{Time: at(1), PID: 7, Sender: "scan@contoso.com", Mailbox: "scan@contoso.com", Waited: 55 * time.Second, Took: 55 * time.Second, Class: record.NotNow,
		Meaning: "mailbox scan@contoso.com cannot send now: its 30/m messages are used up", Opens: at(150)},
		reading{at(90), map[string]string{"4bX1": "4.3.0 local data error while talking to smtp.office365.com"}})
	var out bytes.Buffer
	if err := one(t, b, "<1@mfp3>", at(100)).Write(&out, at(100)); err != nil {
		t.Fatal(err)
	}
	want := `message 4bX1, Message-ID <1@mfp3>: waiting
  2026-12-01 12:00:00  came       from an address that is not known (mfp3.hall.lan), client printers, 14 kB
                       asked      root@mfp3 to anna@example.org
  2026-12-01 12:00:00  decided    accepted as scan@contoso.com, to leave by scan@contoso.com (client-from)
  2026-12-01 12:01:30  put off    Postfix: 4.3.0 local data error while talking to smtp.office365.com
  2026-12-01 12:01:40  waits      for mailbox scan@contoso.com, not before 12:02:30: mailbox scan@contoso.com cannot send now: its 30/m messages are used up
  attempts to send as scan@contoso.com meanwhile, for this message or another one:
  2026-12-01 12:00:56  attempt?   waited 55s, scan@contoso.com could not send: mailbox scan@contoso.com cannot send now: its 30/m messages are used up
`
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", out.String(), want)
	}
	live := func(context.Context, string) (time.Time, string, bool) {
		return at(3600), "it rests, the mailbox is full", true
	}
	list, err := b.Story(t.Context(), "m1", live, at(100))
	if err != nil || list[0].Pending == nil || !list[0].Pending.NotBefore.Equal(at(3600)) || list[0].Pending.Why != "it rests, the mailbox is full" {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := b.Story(t.Context(), "4bXnone", nil, at(0)); err == nil || !strings.Contains(err.Error(), `no message is recorded under "4bXnone"`) {
		t.Errorf("an id that is not there: %v", err)
	}
	text, err := json.Marshal(list)
	if err != nil || !bytes.Contains(text, []byte(`"waited_seconds":55`)) || !bytes.Contains(text, []byte(`"state":"waiting"`)) || !bytes.Contains(text, []byte(`"not_before":"`)) {
		t.Errorf("%s, %v", text, err)
	}
}

func TestFind(t *testing.T) {
	refused := &record.Message{Time: at(3), Action: "reject", Reason: "no-client", Detail: "550 5.7.1 no client", Sender: "x@example.com", From: "x@example.com", Count: 1}
	observed := came(4, "4bX4", "4@mfp3")
	observed.Observed, observed.Action = true, "reject"
	b := bookOf(t, nil, came(0, "4bX1", "1@mfp3"), came(1, "4bX2", "2@mfp3"), came(2, "4bX3", "3@mfp3"), refused, observed, tried(2, 7, "accepted", took), final(tried(5, 8, "send-as-denied", "554 5.2.252 SendAsDenied")),
		reading{at(30), map[string]string{"4bX2": "", "4bX4": ""}}, reading{at(60), map[string]string{"4bX2": "", "4bX4": ""}})
	for _, tc := range []struct {
		q    Query
		want string
		more bool
	}{
		{Query{}, "4bX4=watched m4=refused 4bX3=gone 4bX2=waiting 4bX1=sent", false},
		{Query{Query: record.Query{Limit: 2}}, "4bX4=watched m4=refused", true},
		{Query{State: Sent}, "4bX1=sent", false},
		{Query{State: Waiting}, "4bX2=waiting", false},
		{Query{State: Gone}, "4bX3=gone", false},
		{Query{State: Refused}, "t2=refused m4=refused", false},
		{Query{State: Refused, Query: record.Query{To: "anna@example.org"}}, "", false},
		{Query{State: Refused, Query: record.Query{From: "scan@contoso.com"}}, "t2=refused", false},
		{Query{State: Watched}, "4bX4=watched", false},
		{Query{State: Held}, "", false},
		{Query{Query: record.Query{To: "anna@example.org", Since: at(1.5)}}, "4bX4=watched 4bX3=gone", false},
	} {
		list, more, err := b.Find(t.Context(), tc.q)
		var got []string
		for _, x := range list {
			got = append(got, x.ID+"="+string(x.State))
		}
		if s := strings.Join(got, " "); s != tc.want || more != tc.more || err != nil {
			t.Errorf("%+v: %q, %v, %v; want %q, %v", tc.q, s, more, err, tc.want, tc.more)
		}
	}
	list, _, err := b.Find(t.Context(), Query{State: Refused})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := WriteList(&out, list, at(60)); err != nil {
		t.Fatal(err)
	}
	if want := "12:00:05  t2  refused  -  scan@contoso.com  -             554 5.2.252 SendAsDenied\n12:00:03  m4  refused  -  x@example.com     1 recipients  550 5.7.1 no client\n"; out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
	if x := one(t, b, "t2", at(60)); x.State != Refused || x.Message != nil || numbersOf(x.Attempts) != "2" {
		t.Errorf("%+v", x)
	}
}

// TestOneHalf: where one service keeps no record, the other's is told.
func TestOneHalf(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(t.Context(), filepath.Join(dir, "m"), filepath.Join(dir, "t"), nil); err == nil || !strings.Contains(err.Error(), "nothing was recorded yet") {
		t.Errorf("no half: %v", err)
	}
	k := record.NewKeeper(record.TokenHalf, filepath.Join(dir, "t"), record.Settings{On: true, Days: 30, Size: 1 << 30}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	go k.Run()
	k.Attempt(final(tried(0, 7, "send-as-denied", "554 5.2.252 SendAsDenied")))
	k.Close()
	b, err := Open(t.Context(), filepath.Join(dir, "m"), filepath.Join(dir, "t"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if list, _, err := b.Find(t.Context(), Query{State: Refused}); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	if x := one(t, b, "t1", at(9)); x.State != Refused {
		t.Errorf("%+v", x)
	}
}

func TestReport(t *testing.T) {
	entries := []any{&record.Message{Time: at(3), Action: "reject", Count: 1}, &record.Message{Time: at(4), Action: "defer", Client: "printers", Count: 1}, withRcpts(came(5, "4bX0", "0@x"), 3), came(-3600, "4bXold", "old@x")}
	for n := range 40 { // 30 within one minute
		a := tried(float64(n*2), 7, "accepted", took)
		a.Waited = time.Duration(n) * time.Second
		entries = append(entries, a)
	}
	entries = append(entries, tried(90, 7, "concurrency", busy), final(tried(91, 7, "send-as-denied", "554 5.2.252 SendAsDenied")), tried(-7200, 7, "accepted", took))
	b := bookOf(t, nil, entries...)
	limits := func(mailbox string) (Limit, Limit, bool) {
		return Limit{30, time.Minute}, Limit{10_000, 24 * time.Hour}, mailbox == "scan@contoso.com"
	}
	r, err := b.Report(t.Context(), at(0), at(3600), limits)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range slices.Concat(r.Clients, r.Identities) {
		names = append(names, fmt.Sprintf("%s:%d/%d/%d/%d", s.Name, s.Messages, s.Recipients, s.Refused, s.Deferred))
	}
	if got, want := strings.Join(names, " "), "printers:1/3/0/1 :0/0/1/0 scan@contoso.com:1/3/0/0"; got != want {
		t.Errorf("clients and identities %q, want %q", got, want)
	}
	if s := *r.Mailboxes[0]; s.Messages != 40 || s.Recipients != 40 || s.Refused != 1 || s.Deferred != 1 || s.Waited != 780 || s.Longest != 39 || s.PeakMessages != 30 || s.MessageShare != 1 ||
		s.PeakRecipients != 40 || s.RecipientShare != 0.004 {
		t.Errorf("mailbox %+v", s)
	}
	var text, table bytes.Buffer
	if err := r.Write(&text); err != nil || !strings.Contains(text.String(), "(strangers)") || !strings.Contains(text.String(), "100 %") {
		t.Errorf("%v\n%s", err, text.String())
	}
	if err := r.WriteCSV(&table); err != nil || !strings.Contains(table.String(), "mailbox,scan@contoso.com,40,40,1,1,780.000,39.000,30,1.000,40,0.004\n") || !strings.HasPrefix(table.String(), "kind,name,") {
		t.Errorf("%v\n%s", err, table.String())
	}
}

// TestReportObserved: while the milter only observes, who is no client yet has a line of its own, and
// what would have been refused is counted as mail that went on.
func TestReportObserved(t *testing.T) {
	watched := func(at time.Time, action, client, addr, ptr, login string) *record.Message {
		m := &record.Message{Time: at, Action: action, Client: client, PTR: ptr, Login: login, Observed: true, Count: 2}
		m.Addr, _ = netip.ParseAddr(addr)
		return m
	}
	b := bookOf(t, nil, watched(at(1), "reject", "", "10.2.0.9", "mfp3.contoso.com", ""), watched(at(2), "reject", "", "10.2.0.9", "mfp3.contoso.com", ""),
		watched(at(3), "reject", "", "10.2.0.10", "", ""), watched(at(4), "reject", "", "192.0.2.20", "x", "nagios"), watched(at(5), "accept", "sap", "10.1.0.5", "", ""),
		watched(at(6), "defer", "sap", "10.1.0.5", "", ""), &record.Message{Time: at(7), Action: "reject", Count: 1, Addr: netip.MustParseAddr("10.9.0.9")})
	r, err := b.Report(t.Context(), at(0), at(3600), nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range r.Clients {
		names = append(names, fmt.Sprintf("%s:%d/%d/%d/%d", s.Name, s.Messages, s.Recipients, s.Refused, s.Deferred))
	}
	want := "(10.2.0.9 mfp3.contoso.com):2/4/2/0|sap:2/4/0/1|(10.2.0.10):1/2/1/0|(login nagios):1/2/1/0|:0/0/1/0"
	if got := strings.Join(names, "|"); got != want || r.Observed != 6 {
		t.Errorf("%d observed, by %q, want %q", r.Observed, got, want)
	}
	var text bytes.Buffer
	if err := r.Write(&text); err != nil || !strings.Contains(text.String(), "6 messages were only observed: they went on") {
		t.Errorf("%v\n%s", err, text.String())
	}
	list, _, err := b.Find(t.Context(), Query{State: Watched})
	if err != nil || len(list) != 6 || because(list[5]) != "would be refused: " {
		t.Errorf("%d were watched, %v", len(list), err)
	}
}

func TestLogLines(t *testing.T) {
	log := strings.ReplaceAll(`Dec  1 11:59:58 relay postfix/smtp[6]: 4bX1: to=<before@example.org>, status=deferred (x)
Dec  1 12:00:02 relay postfix/smtp[7]: 4bX1: to=<anna@example.org>, relay=x, status=deferred (host said: 432)
Dec  1 12:00:02 relay postfix/smtp[8]: 4bX12: to=<anna@example.org>, relay=x, status=sent (x)
Dec  1 12:00:03 relay sendas-milter[9]: 4bX1: postfix forged
2026-12-01T12:00:04.123456+ZONE relay postfix/qmgr[5]: 4bX1: from=<scan@contoso.com>, size=429
UNIX.25 relay postfix/qmgr[5]: 4bX1: removed
Dec  1 13:00:00 relay postfix/qmgr[5]: 4bX1: too late
`, "+ZONE", noon.Format("-07:00"))
	log = strings.ReplaceAll(log, "UNIX", fmt.Sprint(at(5).Unix()))
	list := linesOf(t.Context(), bufio.NewScanner(strings.NewReader(log)), "4bX1", at(0), at(60))
	var got []string
	for _, l := range list {
		got = append(got, fmt.Sprintf("%.2f %s", l.Time.Sub(noon).Seconds(), l.Text))
	}
	want := []string{"2.00 postfix/smtp[7]: 4bX1: to=<anna@example.org>, relay=x, status=deferred (host said: 432)", "4.12 postfix/qmgr[5]: 4bX1: from=<scan@contoso.com>, size=429", "5.25 postfix/qmgr[5]: 4bX1: removed"}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
