package status

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/milter"
	"github.com/sendas/sendas/milter/queue"
)

// TestQueueWords: what waits, and that what is not known is never said to be nothing.
func TestQueueWords(t *testing.T) {
	now := time.Date(2026, 11, 21, 13, 7, 2, 0, time.UTC)
	n := func(i int) *int { return &i }
	ago := func(d time.Duration) *time.Time { at := now.Add(-d); return &at }
	held := []queue.PlaceStatus{{Queue: "deferred", Messages: 3}, {Queue: "hold", Messages: 2}}
	for _, tc := range []struct {
		name        string
		v           view
		words, page string // "": the same as words
		level       string
	}{
		{"milter.http is off", view{}, "not known: milter.http is off", "-", calm},
		{"the milter is down", view{milterAt: "a", milterErr: errors.New("refused")}, "NOT KNOWN: the milter is down, which reads it", "-", hot},
		{"an old milter", view{milterAt: "a"}, "not known: the milter does not tell", "-", calm},
		{"not read yet", queueView(nil, now), "not known yet", "", calm},
		{"it cannot be read", queueView(&queue.Status{Error: "permission denied", Hint: "do this"}, now), "NOT KNOWN: it cannot be read: permission denied", "", warm},
		{"it says that it is readable, and no number", queueView(&queue.Status{Readable: true}, now), "NOT KNOWN: it cannot be read: ", "", warm},
		{"empty", queueView(&queue.Status{Readable: true, Messages: n(0)}, now), "empty", "", calm},
		{"only held ones", queueView(&queue.Status{Readable: true, Messages: n(0), Queues: held}, now), "empty; 2 held", "", calm},
		{"one", queueView(&queue.Status{Readable: true, Messages: n(1), Oldest: ago(59 * time.Minute)}, now), "1 message, the oldest came in 59 min ago", "", calm},
		{"old ones", queueView(&queue.Status{Readable: true, Messages: n(17), Oldest: ago(time.Hour), Queues: held, Deferred: []queue.PlaceStatus{{Reason: "connect", Messages: 10}, {Reason: "dns", Messages: 2}}}, now),
			"17 messages, the oldest came in 60 min ago; deferred: 10 for connect, 2 for dns; 2 held", "", hot},
	} {
		words, level := tc.v.queueState()
		if words != tc.words || level != tc.level {
			t.Errorf("%s: %q, %q; want %q, %q", tc.name, words, level, tc.words, tc.level)
		}
		if text := tc.v.text(); !strings.Contains(text, "\nqueue          "+tc.words) {
			t.Errorf("%s: the text has it not:\n%s", tc.name, text)
		}
		if tc.page == "-" {
			continue
		}
		if q := tc.v.queuedViewOf(nil); q.Words != tc.words || q.Level != tc.level {
			t.Errorf("%s: the page says %+v", tc.name, q)
		}
	}
}

// TestUnknownQueueInJSON: null, not 0.
func TestUnknownQueueInJSON(t *testing.T) {
	for _, s := range []*queue.Status{nil, {Error: "permission denied"}} {
		b, err := json.Marshal(milter.Status{Queue: s})
		if err != nil {
			t.Fatal(err)
		}
		want := `"queue":null`
		if s != nil {
			want = `"free_bytes":null,"messages":null,"oldest":null,"queues":null,"waiting":null,"deferred":null,"stalls":null`
		}
		if !strings.Contains(string(b), want) {
			t.Errorf("no %s in %s", want, b)
		}
	}
}

// TestQueueByWay: text and page say for whom mail waits, and the page no more than there is room for.
func TestQueueByWay(t *testing.T) {
	v := fictitious()
	for _, want := range []string{"\nin Postfix's queue for  messages  recipients  oldest\nscan@contoso.com        15        31          40 min ago\nroute site              1         1           3 s ago\n(no mailbox)            1         1           1 s ago\n"} {
		if text := v.text(); !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	q := v.milter.Queue
	for range 2 * pageRows {
		q.Waiting = append(q.Waiting, queue.PlaceStatus{Mailbox: "erp@contoso.com", Messages: 1})
	}
	x := v.queuedViewOf(nil)
	if len(x.Ways) != pageRows || x.Ways[0] != (queuedRow{"scan@contoso.com", "", "15", "31", "40 min ago"}) || x.More != "103 more with less" {
		t.Errorf("the page has %d ways, first %+v, and %s", len(x.Ways), x.Ways[0], x.More)
	}
}

func queueView(s *queue.Status, now time.Time) view {
	return view{milterAt: "a", milter: &milterReport{Status: &milter.Status{Time: now, Queue: s}}}
}
