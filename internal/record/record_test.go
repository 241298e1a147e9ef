package record

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

var epoch = time.Date(2026, 12, 1, 14, 0, 0, 0, time.UTC)

func settings() Settings { return Settings{On: true, Days: 36500, Size: 1 << 30} }

// newKeeper makes a keeper that nobody runs yet.
func newKeeper(t *testing.T, half Half, path string, set Settings) (*Keeper, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	k := NewKeeper(half, path, set, slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewRegistry())
	k.spareRoom, k.retry, k.closeTime = 0, time.Millisecond, time.Minute
	return k, &log
}

// keepAll runs a keeper until all is written.
func keepAll(t *testing.T, half Half, path string, set Settings, list ...any) {
	t.Helper()
	k, log := newKeeper(t, half, path, set)
	go k.Run()
	for _, x := range list {
		switch x := x.(type) {
		case *Message:
			k.Message(x)
		case *Attempt:
			k.Attempt(x)
		}
	}
	k.Close()
	if k.Status().Lost != 0 || strings.Contains(log.String(), "ERROR") {
		t.Fatalf("keeping %d: %+v\n%s", len(list), k.Status(), log)
	}
}

func open(t *testing.T, path string, half Half) *Reader {
	t.Helper()
	r, err := OpenReader(t.Context(), path, half)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func sample(n int) *Message {
	return &Message{
		Time: epoch.Add(time.Duration(n) * time.Second), Addr: netip.MustParseAddr("10.2.0.9"), PTR: "mfp3.hall.lan", HELO: "mfp3", Login: "nagios", Subject: "mfp3",
		Client: "printers", Sender: "root@mfp3", From: "Scan@Contoso.com", Identity: "scan@contoso.com", Leaves: "scan@contoso.com", Mailbox: "scan@contoso.com",
		Pool: 2, Route: "submission", Action: "accept", Reason: "authorized", Detail: "as it is", Recipients: []string{"Anna@Example.org", "bo@example.org"}, Count: 2,
		Size: 12345, MessageID: fmt.Sprintf("%d@mfp3", n), Queue: fmt.Sprintf("4bX%d", n), Waits: true,
	}
}

func TestMessageComesBackAsItWas(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.db")
	want := sample(1)
	full := *want
	full.Recipients = slices.Clone(want.Recipients)
	keepAll(t, MilterHalf, path, settings(), want, &Message{Time: epoch, Action: "reject"})
	r := open(t, path, MilterHalf)
	got, err := r.Messages(t.Context(), Query{})
	if err != nil || len(got) != 2 {
		t.Fatalf("%d messages, %v", len(got), err)
	}
	full.Number = 1
	if !reflect.DeepEqual(*got[1], full) {
		t.Errorf("got  %+v\nwant %+v", *got[1], full)
	}
	if bare := (Message{Number: 2, Time: epoch, Action: "reject"}); !reflect.DeepEqual(*got[0], bare) {
		t.Errorf("got  %+v\nwant %+v", *got[0], bare)
	}
	for name, mode := range map[string]fs.FileMode{path: 0o600, path + "-wal": 0o600, path + "-shm": 0o600} {
		if info, err := os.Stat(name); err == nil && info.Mode().Perm() != mode {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
}

func TestAttemptComesBackAsItWas(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.db")
	want := Attempt{Time: epoch, PID: 4711, Sender: "scan@contoso.com", Mailbox: "scan@contoso.com", Waited: 2500 * time.Millisecond, For: "messages", Took: 4 * time.Second,
		Class: "quota", Stage: "end-of-data", Reply: "554 5.2.0 no", Meaning: "used up", MessageID: "1@mfp3", Accepted: 2, Refused: 1, Final: true, Opens: epoch.Add(time.Hour)}
	given := want
	keepAll(t, TokenHalf, path, settings(), &given)
	got, err := open(t, path, TokenHalf).Attempts(t.Context(), Query{From: "SCAN@contoso.com", Mailbox: "scan@contoso.com", Action: "quota"})
	want.Number = 1
	if err != nil || len(got) != 1 || *got[0] != want {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
}

func TestSearch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.db")
	var list []any
	for n := range 10 {
		m := sample(n)
		switch {
		case n == 3:
			m.Action, m.Identity, m.Mailbox, m.Route, m.Waits = "reject", "", "", "", false
		case n == 4:
			m.Client, m.Addr, m.PTR, m.Login = "", netip.MustParseAddr("fd00:2::7"), "unknown", ""
		case n == 5:
			m.Recipients, m.Count = []string{"ceo@fabrikam.example"}, 1
		case n == 6:
			m.Sender, m.From, m.Identity, m.Mailbox = "", "erp@contoso.com", "billing@contoso.com", "erp@contoso.com"
		case n == 7:
			m.Mailbox, m.Route = "", "site"
		}
		list = append(list, m)
	}
	keepAll(t, MilterHalf, path, settings(), list...)
	r := open(t, path, MilterHalf)
	for _, tc := range []struct {
		q    Query
		want string // the seconds of those that are found
	}{
		{Query{}, "9 8 7 6 5 4 3 2 1 0"},
		{Query{Limit: 3}, "9 8 7"},
		{Query{Limit: 3, Before: 8}, "6 5 4"}, // numbers begin at 1
		{Query{From: "ROOT@mfp3"}, "9 8 7 5 4 3 2 1 0"},
		{Query{From: "scan@contoso.com"}, "9 8 7 5 4 3 2 1 0"},
		{Query{From: "billing@contoso.com"}, "6"},
		{Query{From: "erp@contoso.com"}, "6"},
		{Query{From: "@mfp3"}, "9 8 7 5 4 3 2 1 0"},
		{Query{From: "mfp3"}, ""}, // no part of a word
		{Query{To: "ceo@fabrikam.example"}, "5"},
		{Query{To: "@example.org"}, "9 8 7 6 4 3 2 1 0"},
		{Query{To: "anna@example.org", From: "billing@contoso.com"}, "6"},
		{Query{Client: "printers", Limit: 2}, "9 8"},
		{Query{Client: "10.2.0.9", Limit: 1}, "9"},
		{Query{Client: "fd00:2::7"}, "4"},
		{Query{Client: "nagios", Action: "reject"}, "3"},
		{Query{Client: "mfp3.hall.lan", To: "ceo@fabrikam.example"}, "5"},
		{Query{Mailbox: "erp@contoso.com"}, "6"},
		{Query{Mailbox: "site"}, "7"},
		{Query{Action: "reject"}, "3"},
		{Query{Action: "reject", To: "ceo@fabrikam.example"}, ""},
		{Query{Waits: true, Client: "printers", Limit: 7}, "9 8 7 6 5 2 1"},
		{Query{Since: epoch.Add(7 * time.Second)}, "9 8 7"},
		{Query{Since: epoch.Add(3 * time.Second), Until: epoch.Add(6 * time.Second)}, "5 4 3"},
		{Query{Since: epoch.Add(3 * time.Second), Until: epoch.Add(6 * time.Second), Client: "printers"}, "5 3"},
		{Query{Since: epoch.Add(time.Hour)}, ""},
		{Query{Until: epoch}, ""},
	} {
		got, err := r.Messages(t.Context(), tc.q)
		var seconds []string
		for _, m := range got {
			seconds = append(seconds, fmt.Sprint(int(m.Time.Sub(epoch)/time.Second)))
		}
		if s := strings.Join(seconds, " "); s != tc.want || err != nil {
			t.Errorf("%+v: %q, %v, want %q", tc.q, s, err, tc.want)
		}
	}
	if list, err := r.ByQueue(t.Context(), "4bX6"); err != nil || len(list) != 1 || list[0].Number != 7 {
		t.Errorf("by queue id: %v, %v", list, err)
	}
	if list, err := r.ByMessageID(t.Context(), "6@mfp3"); err != nil || len(list) != 1 || list[0].Number != 7 {
		t.Errorf("by Message-ID: %v, %v", list, err)
	}
	if m, err := r.ByNumber(t.Context(), 11); m != nil || err != nil {
		t.Errorf("number 11: %v, %v", m, err)
	}
	n := 0
	if err := r.Walk(t.Context(), epoch.Add(8*time.Second), func(*Message) error { n++; return nil }); err != nil || n != 2 {
		t.Errorf("walked %d, %v", n, err)
	}
}

// However large the record is, a search reads index entries in order and stops: nothing is sorted, and
// no table is read from end to end.
func TestSearchesReadIndexesInOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.db")
	keepAll(t, MilterHalf, path, settings(), sample(1))
	r := open(t, path, MilterHalf)
	fields := []func(*Query){
		func(q *Query) { q.From = "a@x" }, func(q *Query) { q.To = "a@x" }, func(q *Query) { q.Client = "c" }, func(q *Query) { q.Mailbox = "m" },
		func(q *Query) { q.Action = "reject" }, func(q *Query) { q.Waits = true }, func(q *Query) { q.Since = epoch }, func(q *Query) { q.Until = epoch.Add(time.Hour) },
	}
	for set := range 1 << len(fields) {
		q := Query{Limit: 50}
		for i, f := range fields {
			if set&(1<<i) != 0 {
				f(&q)
			}
		}
		query, args, err := r.search(t.Context(), "message", messageColumns, q)
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range plan(t, r.db, query, args) {
			bad := strings.HasPrefix(step, "SCAN") && step != "SCAN found" ||
				strings.Contains(step, "TEMP B-TREE") || strings.Contains(step, "MATERIALIZE")
			if bad {
				t.Fatalf("%+v takes the step %q of\n%s\nfor %s", q, step, strings.Join(plan(t, r.db, query, args), "\n"), query)
			}
		}
	}
	for _, tc := range []struct {
		query string
		args  []any
	}{
		{"SELECT min(id) FROM (SELECT id FROM message WHERE time >= ? ORDER BY time LIMIT ?)", []any{1, 2}},
		{"SELECT id FROM message WHERE queue = ? AND queue <> '' AND waits ORDER BY id DESC LIMIT 1", []any{"x"}},
		{"SELECT id FROM message WHERE message_id = ? AND message_id <> '' ORDER BY id DESC", []any{"x"}},
		{"SELECT id FROM message WHERE instance = ? AND instance <> '' ORDER BY id DESC LIMIT 1", []any{"x"}},
		{"SELECT id FROM message WHERE time < ? ORDER BY time LIMIT ?", []any{1, 2}},
	} {
		for _, step := range plan(t, r.db, tc.query, tc.args) {
			if strings.HasPrefix(step, "SCAN message") || strings.Contains(step, "TEMP B-TREE") {
				t.Errorf("%s: %s", tc.query, step)
			}
		}
	}
}

// plan returns the steps of a statement.
func plan(t *testing.T, db *sql.DB, query string, args []any) []string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+query, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var steps []string
	for rows.Next() {
		var id, parent, unused int
		var step string
		if err := rows.Scan(&id, &parent, &unused, &step); err != nil {
			t.Fatal(err)
		}
		steps = append(steps, step)
	}
	return steps
}

func TestRecipientsAreKeptAsSaid(t *testing.T) {
	for _, tc := range []struct {
		mode  Recipients
		want  []string
		finds string
		not   string
	}{
		{"", []string{"Anna@Example.org", "bo@example.org"}, "anna@example.org", "x"},
		{FullRecipients, []string{"Anna@Example.org", "bo@example.org"}, "@example.org", "x"},
		{DomainsOnly, []string{"@example.org"}, "@example.org", "anna@example.org"},
		{NoRecipients, nil, "", "@example.org"},
	} {
		path := filepath.Join(t.TempDir(), "record.db")
		set := settings()
		set.Recipients = tc.mode
		keepAll(t, MilterHalf, path, set, sample(1))
		r := open(t, path, MilterHalf)
		got, err := r.Messages(t.Context(), Query{To: tc.finds})
		if err != nil || len(got) != 1 || !slices.Equal(got[0].Recipients, tc.want) || got[0].Count != 2 {
			t.Errorf("%q: %+v, %v", tc.mode, got, err)
		}
		if got, err := r.Messages(t.Context(), Query{To: tc.not}); err != nil || len(got) > 0 {
			t.Errorf("%q finds %q: %+v, %v", tc.mode, tc.not, got, err)
		}
		r.Close()
		for _, name := range []string{path, path + "-wal"} { // not in the file in any form
			if b, _ := os.ReadFile(name); tc.mode != "" && tc.mode != FullRecipients && bytes.Contains(bytes.ToLower(b), []byte("anna@")) {
				t.Errorf("%q: %s holds the recipient", tc.mode, name)
			}
		}
	}
}

func TestRefusedRecipientsOfOneMessageAreOneRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.db")
	refused := func(instance, to string) *Message {
		return &Message{Time: epoch, Action: "reject", Reason: "no-client", Instance: instance, Recipients: []string{to}, Count: 1}
	}
	keepAll(t, MilterHalf, path, settings(), refused("a.1", "x@example.org"), refused("a.1", "y@example.org"), refused("a.1", "y@example.org"), refused("b.1", "x@example.org"),
		refused("", "x@example.org"), refused("", "x@example.org"))
	r := open(t, path, MilterHalf)
	got, err := r.Messages(t.Context(), Query{})
	if err != nil || len(got) != 4 {
		t.Fatalf("%d, %v", len(got), err)
	}
	if m := got[3]; m.Count != 3 || !slices.Equal(m.Recipients, []string{"x@example.org", "y@example.org"}) {
		t.Errorf("%+v", m)
	}
	if got, err := r.Messages(t.Context(), Query{To: "y@example.org"}); err != nil || len(got) != 1 || got[0].Number != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestDaysAndSize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.db")
	now := time.Now().UTC().Truncate(time.Millisecond)
	var list []any
	for n := range 1000 {
		m := sample(n)
		m.Time = now.Add(time.Duration(n-1000) * time.Hour)
		list = append(list, m)
	}
	keepAll(t, MilterHalf, path, settings(), list...)
	w := reopen(t, path, MilterHalf)
	count := func(table string) (n int) {
		t.Helper()
		if err := w.db.QueryRow("SELECT count(*) FROM " + table).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	each := float64(count("word")) / 1000
	full, err := w.used(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tidy := func(set Settings) {
		t.Helper()
		for more := true; more; {
			var err error
			if more, err = w.retain(t.Context(), set, now); err != nil {
				t.Fatal(err)
			}
		}
		if got := float64(count("word")) / float64(count("message")); got != each {
			t.Errorf("%v words for each message, before: %v", got, each)
		}
	}
	tidy(Settings{On: true, Days: 30, Size: 1 << 30})
	if n := count("message"); n != 720 {
		t.Errorf("%d messages of 30 days with 24 each", n)
	}
	tidy(Settings{On: false, Days: 20, Size: 1 << 30}) // what there is goes also where nothing is kept
	if n := count("message"); n != 480 {
		t.Errorf("%d messages of 20 days with 24 each", n)
	}
	tidy(Settings{On: true, Days: 36500, Size: full / 5})
	used, err := w.used(t.Context())
	if err != nil || used > full/5 || count("message") < 100 {
		t.Errorf("%d bytes of %d are used for %d messages, %v", used, full/5, count("message"), err)
	}
	var first int64
	if err := w.db.QueryRow("SELECT min(id) FROM message").Scan(&first); err != nil || first != int64(1000-count("message")+1) {
		t.Errorf("the oldest that is left is %d, %v", first, err)
	}
	before, _ := os.Stat(path)
	for range 50 {
		if err := w.shrink(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.db.Exec("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(path); after.Size() > before.Size()/2 {
		t.Errorf("the file had %d bytes and has %d", before.Size(), after.Size())
	}
}

// reopen opens a half for writing, without a keeper.
func reopen(t *testing.T, path string, half Half) *writer {
	t.Helper()
	db, err := create(t.Context(), path, half)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return &writer{half: half, db: db, path: path, missing: make(map[int64]time.Time)}
}

func TestQueueIsFollowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.db")
	keepAll(t, MilterHalf, path, settings(), sample(1), sample(2), sample(3), sample(4))
	k, _ := newKeeper(t, MilterHalf, path, settings())
	w, q := reopen(t, path, MilterHalf), k.Queue()
	minute := 0
	look := func(queued ...string) { // "id" or "id why"
		t.Helper()
		minute++
		q.Begin(epoch.Add(time.Duration(minute) * time.Minute))
		for _, s := range queued {
			id, why, _ := strings.Cut(s, " ")
			q.Queued(id, why, 777)
		}
		q.End()
		if err := w.write(t.Context(), []item{<-k.work}, settings()); err != nil {
			t.Fatal(err)
		}
	}
	look("4bX1", "4bX2 try later", "4bX3", "4bX4")
	look("4bX1", "4bX2 try later", "4bX3 full", "4bX9 somebody else's") // 4 has gone, or moves
	look("4bX1", "4bX2 still not", "4bX3 full")                         // it has gone
	look("4bX2 still not", "4bX3 full", "4bX3")                         // named twice as it moves; 1 may have gone
	look("4bX1", "4bX2 still not")                                      // it only moved; 3 may have gone
	q = k.Queue()                                                       // another process
	look("4bX1", "4bX2 still not")
	r := open(t, path, MilterHalf)
	got, err := r.Messages(t.Context(), Query{})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		waits bool
		left  int // minute
	}{{false, 2}, {false, 5}, {true, 0}, {true, 0}} {
		m, left := got[i], 0
		if !m.Left.IsZero() {
			left = int(m.Left.Sub(epoch) / time.Minute)
		}
		if m.Waits != want.waits || left != want.left {
			t.Errorf("%s waits: %v, left in minute %d, want %v", m.Queue, m.Waits, left, want)
		}
	}
	list, err := r.Deferrals(t.Context(), 2)
	if err != nil || len(list) != 2 || list[0].Text != "try later" || list[1].Text != "still not" || list[1].Time != epoch.Add(3*time.Minute) {
		t.Errorf("%+v, %v", list, err)
	}
	var nobody *Keeper
	q = nobody.Queue()
	q.Begin(epoch)
	q.Queued("4bX1", "", 0)
	q.End()
}

func TestQueuedSizeIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.db")
	unsized := sample(1)
	unsized.Size = 0
	keepAll(t, MilterHalf, path, settings(), unsized, sample(2))
	k, _ := newKeeper(t, MilterHalf, path, settings())
	w, q := reopen(t, path, MilterHalf), k.Queue()
	q.Begin(epoch)
	q.Queued("4bX1", "later", 777)
	q.Queued("4bX2", "later", 777)
	q.End()
	if err := w.write(t.Context(), []item{<-k.work}, settings()); err != nil {
		t.Fatal(err)
	}
	got, err := open(t, path, MilterHalf).Messages(t.Context(), Query{})
	if err != nil || got[0].Size != 12345 || got[1].Size != 777 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestWhatIsNotOursIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	other := filepath.Join(dir, "token.db")
	keepAll(t, TokenHalf, other, settings(), &Attempt{Time: epoch})
	newer := filepath.Join(dir, "newer.db")
	keepAll(t, MilterHalf, newer, settings(), sample(1))
	if _, err := reopen(t, newer, MilterHalf).db.Exec("PRAGMA user_version = 99"); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(dir, "notes")
	if err := os.WriteFile(text, bytes.Repeat([]byte("do not lose this\n"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(dir, "foreign.db")
	db, err := sql.Open("sqlite", dsn(foreign, "rwc"))
	if err == nil {
		_, err = db.Exec("CREATE TABLE t (x); INSERT INTO t VALUES (1)")
		db.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ path, want string }{
		{other, "is no record of the milter service"}, {newer, "newer sendas"}, {text, "no database"}, {foreign, "is no record of the milter service"},
		{filepath.Join(dir, "missing", "record.db"), "no such file or directory"}, {dir, "is a directory"},
	} {
		k, log := newKeeper(t, MilterHalf, tc.path, settings())
		before, _ := os.ReadFile(tc.path)
		go k.Run()
		k.Message(sample(1))
		k.Close()
		if s := k.Status(); s.Working || !strings.Contains(s.Error, tc.want) || s.Lost != 1 || !strings.Contains(log.String(), tc.want) {
			t.Errorf("%s: %+v\n%s", tc.path, s, log)
		}
		if after, _ := os.ReadFile(tc.path); !bytes.Equal(before, after) {
			t.Errorf("%s was changed", tc.path)
		}
		if _, err := OpenReader(t.Context(), tc.path, MilterHalf); err == nil {
			t.Errorf("%s can be read", tc.path)
		}
	}
	if _, err := OpenReader(t.Context(), filepath.Join(dir, "none.db"), MilterHalf); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a record that was never kept: %v", err)
	}
}

func TestDamagedFileBeginsAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.db")
	var list []any
	for n := range 200 {
		list = append(list, sample(n))
	}
	keepAll(t, MilterHalf, path, settings(), list...)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 4096; i < len(b); i++ {
		b[i] ^= 0x5a
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	k, log := newKeeper(t, MilterHalf, path, settings())
	go k.Run()
	k.Message(sample(1))
	waitFor(t, "a record that is written again", func() bool {
		r, err := OpenReader(t.Context(), path, MilterHalf)
		if err != nil {
			return false
		}
		defer r.Close()
		got, err := r.Messages(t.Context(), Query{})
		return err == nil && len(got) == 1
	})
	k.Close()
	if damaged, err := os.ReadFile(path + ".damaged"); err != nil || len(damaged) != len(b) {
		t.Errorf("the damaged file has %d bytes, %v", len(damaged), err)
	}
	if !strings.Contains(log.String(), "begins anew") {
		t.Errorf("the log does not tell:\n%s", log)
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// A disk that is full, and one that hangs, cost nothing but the record, and are told once.
func TestFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.db")
	k, log := newKeeper(t, MilterHalf, path, settings())
	k.spareRoom = 1 << 62 // the disk has never so much
	k.retry = time.Hour
	go k.Run()
	waitFor(t, "a disk that is too full", func() bool { return k.Status().Error != "" })
	began := time.Now()
	for n := range 2 * maxEntries {
		k.Message(sample(n))
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("%d messages took %v", 2*maxEntries, took)
	}
	s := k.Status()
	if s.Working || !s.DiskFull || !strings.Contains(s.Error, "nearly full") || s.Lost < maxEntries-maxBatch {
		t.Errorf("%+v", s)
	}
	if held := k.held.Load(); held > maxHeld {
		t.Errorf("%d bytes wait", held)
	}
	if got := testutil.CollectAndCount(k, "sendas_record_working"); got != 1 {
		t.Errorf("%d series sendas_record_working", got)
	}
	k.Close()
	if n := strings.Count(log.String(), "the record cannot be written"); n != 1 {
		t.Errorf("told %d times:\n%s", n, log)
	}
}

func TestFullFileIsWrittenAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.db")
	keepAll(t, MilterHalf, path, settings(), sample(1))
	w := reopen(t, path, MilterHalf)
	if _, err := w.db.Exec("PRAGMA max_page_count = 1"); err != nil { // SQLITE_FULL, as of a disk
		t.Fatal(err)
	}
	var batch []item
	for n := range 500 {
		batch = append(batch, item{sample(n + 2), 1})
	}
	err := w.write(t.Context(), batch, settings())
	if err == nil || !passes(err) {
		t.Fatalf("a full disk: %v", err)
	}
	if _, err := w.db.Exec("PRAGMA max_page_count = 1000000"); err != nil {
		t.Fatal(err)
	}
	if err := w.write(t.Context(), batch, settings()); err != nil {
		t.Fatal(err)
	}
	got, err := open(t, path, MilterHalf).Messages(t.Context(), Query{})
	if err != nil || len(got) != 501 {
		t.Errorf("%d messages, %v", len(got), err)
	}
}

func TestHangingDisk(t *testing.T) {
	k, _ := newKeeper(t, MilterHalf, filepath.Join(t.TempDir(), "record.db"), settings())
	k.writing.Store(time.Now().Add(-2 * hangs).UnixNano())
	if s := k.Status(); s.Working || s.Error != errHangs.Error() {
		t.Errorf("%+v", s)
	}
	k.writing.Store(time.Now().UnixNano())
	if s := k.Status(); !s.Working {
		t.Errorf("%+v", s)
	}
}

func TestOffKeepsNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.db")
	k, log := newKeeper(t, MilterHalf, path, Settings{})
	go k.Run()
	k.Message(sample(1))
	k.Close()
	if _, err := os.Stat(path); err == nil || k.Status().Working || k.Status().Error != "" || k.Status().Lost != 0 || log.Len() > 0 {
		t.Errorf("%v, %+v\n%s", err, k.Status(), log)
	}
	var nobody *Keeper
	nobody.Message(sample(1))
	nobody.Attempt(&Attempt{})
	nobody.Use(settings())
	nobody.Close()
	if nobody.On() || nobody.Status() != nil {
		t.Error("a nil keeper keeps")
	}
}

func TestStrangersTextsAreCut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.db")
	m := sample(1)
	m.HELO, m.From, m.Detail = "a\nb\x1b[2J", strings.Repeat("x", 100_000), "\x80\xff\x00"
	m.Recipients, m.Count = nil, 0
	for n := range 1000 {
		m.Recipients = append(m.Recipients, fmt.Sprintf("a\n%d@example.org", n))
	}
	keepAll(t, MilterHalf, path, settings(), m)
	got, err := open(t, path, MilterHalf).Messages(t.Context(), Query{})
	if err != nil || len(got) != 1 {
		t.Fatal(len(got), err)
	}
	x := got[0]
	if strings.ContainsAny(x.HELO+x.Detail, "\n\x1b\x00") || len(x.From) > MaxText || len(x.Recipients) != maxRecipients || x.Count != 1000 || x.Recipients[7] != "a 7@example.org" {
		t.Errorf("%+v", x)
	}
}

func TestReaderDoesNotHoldUpTheWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.db")
	var list []any
	for n := range 300 {
		list = append(list, sample(n))
	}
	keepAll(t, MilterHalf, path, settings(), list...)
	r, w := open(t, path, MilterHalf), reopen(t, path, MilterHalf)
	n := 0
	err := r.Walk(t.Context(), time.Time{}, func(*Message) error {
		if n++; n%100 == 1 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			return w.write(ctx, []item{{sample(n + 5000), 1}}, settings())
		}
		return nil
	})
	if err != nil || n != 300 {
		t.Errorf("walked %d, %v", n, err)
	}
}
