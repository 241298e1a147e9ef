package status

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/internal/record"
	"github.com/sendas/sendas/milter"
	"github.com/sendas/sendas/milter/queue"
	"github.com/sendas/sendas/token/lease"
)

// TestRecordPages: the record is answered where the configuration says so, and only then.
func TestRecordPages(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.db")
	k := record.NewKeeper(record.MilterHalf, path, record.Settings{On: true, Days: 30, Size: 1 << 30}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	go k.Run()
	for _, id := range []string{"4bX1", "4bX2"} {
		k.Message(&record.Message{Time: time.Now(), Queue: id, From: "root@mfp3", Action: "accept", Leaves: "scan@contoso.com", Recipients: []string{id + "@example.org"}, Waits: true, MessageID: id + "/x<y>@mfp3"})
	}
	k.Close()
	on := false
	mux := http.NewServeMux()
	for pattern, h := range RecordPages(&RecordSource{record.MilterHalf, path, func() bool { return on }}) {
		mux.Handle(pattern, h)
	}
	get := func(target string) (int, string) {
		t.Helper()
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest("GET", target, nil))
		if !json.Valid(w.Body.Bytes()) || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %q, %v", target, w.Body, w.Header())
		}
		return w.Code, w.Body.String()
	}
	for _, target := range []string{"/record", "/record/4bX1", "/record?to=4bx1@example.org"} {
		if code, body := get(target); code != http.StatusForbidden || strings.Contains(body, "example.org") {
			t.Errorf("switched off, %s answers %d %s", target, code, body)
		}
	}
	on = true
	for _, tc := range []struct {
		target     string
		code       int
		has, hasNo string
	}{
		{"/record", 200, `"id":"4bX1"`, "error"},
		{"/record?to=4bx1@example.org", 200, `"id":"4bX1"`, "4bX2"},
		{"/record?to=nobody@example.org", 200, `"messages":[]`, "4bX"},
		{"/record?verdict=waiting&from=root@mfp3&since=1h&lines=1", 200, `"more":true`, "4bX1"},
		{"/record?verdict=lost", 400, "verdict", "4bX"},
		{"/record?since=yesterday", 400, "no time", "4bX"},
		{"/record?lines=501", 400, "lines", "4bX"},
		{"/record/4bX1", 200, `"state":"waiting"`, "4bX2"},
		{"/record/4bX2%2Fx%3Cy%3E@mfp3", 200, `"id":"4bX2"`, "4bX1"},
		{"/record/4bX3", 404, "no message is recorded", "4bX1"},
	} {
		code, body := get(tc.target)
		if code != tc.code || !strings.Contains(body, tc.has) || strings.Contains(body, tc.hasNo) {
			t.Errorf("%s answers %d %s", tc.target, code, body)
		}
	}
}

// TestRecordOnFullDisk: a disk that is full is one cause, and told once.
func TestRecordOnFullDisk(t *testing.T) {
	free, most := int64(4<<20), int64(1<<40)
	for _, tc := range []struct {
		full bool
		free *int64
		want int
	}{{true, &free, 0}, {true, &most, 1}, {true, nil, 1}, {false, &free, 1}} {
		v := &view{milter: &milterReport{Status: &milter.Status{Record: &record.Status{On: true, Error: "why", DiskFull: tc.full}, Queue: &queue.Status{Free: tc.free}}}}
		j := &judgement{}
		if j.record(v); len(j.needs) != tc.want {
			t.Errorf("%+v: %d needs", tc, len(j.needs))
		}
	}
}

// TestRecordNeed: a record that cannot be written is told, in what needs somebody; it holds up no mail.
func TestRecordNeed(t *testing.T) {
	broken := &record.Status{On: true, Error: "the disk is nearly full"}
	for _, tc := range []struct {
		milter, token *record.Status
		want          int
	}{{nil, nil, 0}, {&record.Status{On: true, Working: true}, &record.Status{}, 0}, {broken, nil, 1}, {broken, broken, 2}} {
		v := &view{milter: &milterReport{Status: &milter.Status{Record: tc.milter}}, token: &tokenReport{Status: &lease.Status{Record: tc.token}}}
		j := &judgement{}
		j.record(v)
		if len(j.needs) != tc.want || j.held() {
			t.Errorf("%+v, %+v: %d needs", tc.milter, tc.token, len(j.needs))
		}
		for _, n := range j.needs {
			if n.Level() != warm || !strings.Contains(n.What, "cannot record what becomes of mail: the disk is nearly full") || !strings.Contains(n.advice(), "df -h") {
				t.Errorf("%+v", n)
			}
		}
	}
}
