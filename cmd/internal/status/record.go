package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/sendas/sendas/cmd/internal/story"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/internal/record"
)

// record judges whether what becomes of mail can be recorded. Mail goes on without.
func (j *judgement) record(v *view) {
	halves := []struct {
		service, unit string
		s             *record.Status
	}{{"milter", "sendas-milter", nil}, {"token service", "sendas-token", nil}}
	if v.milter != nil {
		halves[0].s = v.milter.Record
	}
	if v.token != nil {
		halves[1].s = v.token.Record
	}
	for _, h := range halves {
		if h.s == nil || !h.s.On || h.s.Working || h.s.DiskFull && v.diskFull() {
			continue
		}
		j.add(&need{state: stateWarning, What: fmt.Sprintf("the %s cannot record what becomes of mail: %s", h.service, h.s.Error),
			Do: "mail goes on; make room on the disk, or mend the file", Type: []string{"df -h", "journalctl -u " + h.unit + " -p warning"}})
	}
}

// diskFull reports whether the disk of Postfix's queue is full, which is told as that.
func (v *view) diskFull() bool {
	return v.milter != nil && v.milter.Queue != nil && v.milter.Queue.Free != nil && *v.milter.Queue.Free < littleRoom
}

// A RecordSource is the half of the record that a service keeps.
type RecordSource struct {
	Half record.Half
	File string
	On   func() bool // record.page: whoever can connect may read it
}

// found is the answer of /record. Its keys are stable.
type found struct {
	Messages []*story.Item `json:"messages"`
	More     bool          `json:"more"`
}

// RecordPages let the record of one service be searched over HTTP, where the configuration says so:
// GET /record?to=&from=&client=&mailbox=&since=&verdict=&lines= lists as "sendas find --json" does,
// and GET /record/ID tells a story, both by this half alone. It is JSON; an error is {"error": …}.
func RecordPages(src *RecordSource) map[string]http.Handler {
	return map[string]http.Handler{
		"GET /record": src.handler(func(ctx context.Context, b *story.Book, r *http.Request, now time.Time) (any, error) {
			q, err := recordQuery(r, now)
			if err != nil {
				return nil, err
			}
			list, more, err := b.Find(ctx, q)
			return found{append([]*story.Item{}, list...), more}, err
		}),
		"GET /record/{id...}": src.handler(func(ctx context.Context, b *story.Book, r *http.Request, now time.Time) (any, error) {
			return b.Story(ctx, r.PathValue("id"), nil, now)
		}),
	}
}

// recordLines is how many messages are listed where nobody says how many, and at most.
const (
	recordLines    = 50
	maxRecordLines = 500
)

// recordQuery reads a question.
func recordQuery(r *http.Request, now time.Time) (q story.Query, err error) {
	v := r.URL.Query()
	q.Query = record.Query{To: v.Get("to"), From: v.Get("from"), Client: v.Get("client"), Mailbox: v.Get("mailbox"), Limit: recordLines}
	q.State = story.State(v.Get("verdict"))
	if q.State != "" && !slices.Contains(story.States, q.State) {
		return q, exit.Errorf(exit.Usage, "", "verdict: none of %v", story.States)
	}
	if s := v.Get("since"); s != "" {
		if q.Since, err = story.ParseSince(s, now); err != nil {
			return q, err
		}
	}
	if s := v.Get("lines"); s != "" {
		if q.Limit, err = strconv.Atoi(s); err != nil || q.Limit < 1 || q.Limit > maxRecordLines {
			return q, exit.Errorf(exit.Usage, "", "lines: write 1 to %d", maxRecordLines)
		}
	}
	return q, nil
}

// handler opens the half for one question.
func (src *RecordSource) handler(answer func(context.Context, *story.Book, *http.Request, time.Time) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), answerTime)
		defer cancel()
		if !src.On() {
			writeRecord(w, http.StatusForbidden, map[string]string{"error": `the record is not to be read here; "record: {page: true}" lets everybody read it who can connect; root types "sendas find"`})
			return
		}
		a, err := src.ask(ctx, r, answer)
		var told *exit.Error
		switch {
		case err == nil:
			writeRecord(w, http.StatusOK, a)
		case errors.As(err, &told) && told.Code == exit.Usage:
			writeRecord(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
		case errors.As(err, &told) && told.Code == exit.Failed:
			writeRecord(w, http.StatusNotFound, map[string]string{"error": err.Error()})
		default:
			writeRecord(w, http.StatusInternalServerError, map[string]string{"error": err.Error()})
		}
	})
}

func (src *RecordSource) ask(ctx context.Context, r *http.Request, answer func(context.Context, *story.Book, *http.Request, time.Time) (any, error)) (any, error) {
	files := map[record.Half]string{src.Half: src.File}
	b, err := story.Open(ctx, files[record.MilterHalf], files[record.TokenHalf], nil)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return answer(ctx, b, r, time.Now())
}

func writeRecord(w http.ResponseWriter, code int, v any) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	w.WriteHeader(code)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.Encode(v) // an error is the reader's: it has gone
}
