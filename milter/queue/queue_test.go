package queue

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/internal/logtest"
	"github.com/sendas/sendas/milter/queue/queuetest"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/limit"
)

func TestReadQueue(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		want     string // messages, and how it ended
	}{
		{"empty", queuetest.Hello + "\x00", ""},
		{"empty, before Postfix 3.6", "\x00", ""},
		{"one message", queuetest.Hello + queuetest.Message("active", "a@contoso.com", 2) + "\x00", "active a@contoso.com 2; "},
		{"several, before 3.6", queuetest.Message("deferred", "a@contoso.com", 1) + queuetest.Message("hold", "MAILER-DAEMON", 0) + "\x00", "deferred a@contoso.com 1; hold MAILER-DAEMON 0; "},
		{"a very long reason", queuetest.Hello + queuetest.Words("queue_name", "active", "sender", "a@contoso.com", "recipient", "b@example.net", "reason", strings.Repeat("x", 3*maxQueueName)) + "\x00\x00",
			"active a@contoso.com 1; "},
		{"it breaks off between messages", queuetest.Hello + queuetest.Message("active", "a@contoso.com", 1), "active a@contoso.com 1; the list of the queue breaks off"},
		{"it breaks off in a message", queuetest.Hello + "queue_name\x00act", "the list of the queue breaks off"},
		{"nothing at all", "", "the list of the queue breaks off"},
		{"another protocol", "protocol\x00tlsmgr_protocol\x00\x00", `it speaks another protocol: "tlsmgr_protocol"`},
		{"not a message", queuetest.Hello + queuetest.Words("status", "0") + "\x00\x00", "it speaks another protocol: a message has no queue_name"},
	} {
		got := ""
		err := read(bufio.NewReaderSize(strings.NewReader(tc.in), maxQueueName), func(m queued) {
			got += fmt.Sprintf("%s %s %d; ", m.queue, m.sender, m.rcpts)
		})
		if err != nil {
			got += err.Error()
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func FuzzReadQueue(f *testing.F) {
	f.Add([]byte(queuetest.Hello + queuetest.Message("active", "a@contoso.com", 2) + "\x00"))
	f.Add([]byte("\x00\x00queue_name\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		err := read(bufio.NewReaderSize(strings.NewReader(string(b)), maxQueueName), func(queued) { n++ })
		if most := len(b) / len("queue_name\x00\x00\x00"); err == nil && n > most {
			t.Errorf("%d messages in %d bytes", n, len(b))
		}
	})
}

// newQueue has a ceiling of two messages and ten recipients for scan@contoso.com.
func newQueue(t *testing.T, socket string) (*Watch, *logtest.Buffer) {
	t.Helper()
	log := &logtest.Buffer{}
	q := New(slog.New(slog.NewTextHandler(log, nil)), prometheus.NewRegistry())
	q.Use(Rules{Socket: socket, Wait: time.Minute, Policy: somePolicy(t), Limits: map[string]limit.Allowance{
		"scan@contoso.com": {Messages: limit.Rate{N: 2, Per: time.Minute}, Recipients: limit.Rate{N: 10, Per: time.Minute}}}})
	return q, log
}

// decision is one on a message that leaves through scan@contoso.com.
func decision(t *testing.T) *policy.Decision {
	t.Helper()
	d := somePolicy(t).Decide(&policy.Request{Peer: policy.Peer{Addr: netip.MustParseAddr("10.2.0.9")}, Sender: "hr@contoso.com", Now: time.Now(),
		Fields: []policy.Field{{Name: "From", Value: "hr@contoso.com"}}})
	if d.Mailbox == nil {
		t.Fatalf("the message has no mailbox: %+v", d)
	}
	return &d
}

func TestQueueCeiling(t *testing.T) {
	d := decision(t)
	// Senders are mapped to the mailbox; what is held, or of nobody we know, does not count.
	list := queuetest.Message("deferred", "hr@contoso.com", 7) + queuetest.Message("hold", "scan@contoso.com", 9) + queuetest.Message("maildrop", "scan@contoso.com", 9) +
		queuetest.Message("active", "root@fabrikam.com", 9) + queuetest.Message("incoming", "MAILER-DAEMON", 9)
	s := queuetest.Start(t, list)
	q, log := newQueue(t, s.Path)
	if got := q.Overflow(d, 100); got != nil {
		t.Errorf("before the queue is known: %v", got)
	}
	q.Look(t.Context())
	for _, tc := range []struct {
		rcpts int
		want  string
	}{
		{3, ""},
		{4, "451 4.3.1 mailbox <scan@contoso.com> would have 11 recipients waiting, and only 10 can leave in time; it takes more in 6 s"},
	} {
		got := ""
		if r := q.Overflow(d, tc.rcpts); r != nil {
			got = r.String()
		}
		if got != tc.want {
			t.Errorf("%d recipients: %q, want %q", tc.rcpts, got, tc.want)
		}
	}
	q.Accepted(d, "4cQXnew", 1, time.Now())
	if got := q.Overflow(d, 1); got == nil || !strings.Contains(got.Text, "3 messages waiting") {
		t.Errorf("after one more was accepted: %v", got)
	}
	if got := q.picture.Load().Ways[scanWay].Recipients; got != 7 {
		t.Errorf("sendas_queue_waiting is %v, want 7", got)
	}
	empty := ""
	s.List.Store(&empty)
	q.mu.Lock()
	q.recent[0].at = q.recent[0].at.Add(-time.Minute) // long enough ago to have been in the queue
	q.mu.Unlock()
	q.Look(t.Context())
	if got := q.Overflow(d, 10); got != nil {
		t.Errorf("when the queue is empty: %v", got)
	}
	if log.String() != "" {
		t.Errorf("the log says %s", log)
	}
}

// spool is the queue ids that are in each of Postfix's queues.
type spool map[string][]string

// move moves a message, to "" where it leaves.
func (s spool) move(id, from, to string) {
	s[from] = slices.DeleteFunc(s[from], func(x string) bool { return x == id })
	if to != "" {
		s[to] = append(s[to], id)
	}
}

// TestQueueMoves: messages move while showq(8) reads one queue after the other. None is counted
// twice, and one that was missed is there with the next reading.
func TestQueueMoves(t *testing.T) {
	now := []string{"maildrop", "active", "incoming", "deferred", "hold"}
	before := []string{"maildrop", "incoming", "active", "deferred", "hold"} // the order is no promise
	for _, tc := range []struct {
		name            string
		order           []string
		from, after, to string // the queue where it is, and where it moves to after that one was read
		want, next      int    // of the one that moves, in this reading and the next
	}{
		{"nothing moves", now, "active", "hold", "active", 1, 1},
		{"it is deferred", now, "active", "active", "deferred", 1, 1},
		{"it is deferred at once", now, "incoming", "incoming", "deferred", 1, 1},
		{"it is taken up after the active ones were read", now, "incoming", "active", "active", 0, 1},
		{"it is taken up after it was read", now, "incoming", "incoming", "active", 1, 1},
		{"a queue run takes it up", now, "deferred", "active", "active", 0, 1},
		{"it leaves", now, "active", "active", "", 1, 0},
		{"it leaves before it is read", now, "deferred", "active", "", 0, 0},
		{"it is held", now, "active", "active", "hold", 1, 0},
		{"it is released", now, "hold", "incoming", "deferred", 1, 1},
		{"it is taken up, in another order", before, "incoming", "incoming", "active", 1, 1},
		{"it is deferred, in another order", before, "active", "incoming", "deferred", 1, 1},
	} {
		for _, ids := range [][2]string{{"4cQXyz1TkZz9sWq", "4cQXyz0Q7nz9sWr"}, {"0A1B2203F9", "0A1B3203F9"}} { // long ones, short ones
			s := spool{tc.from: {ids[0]}}
			s["deferred"] = append(s["deferred"], ids[1])
			moved := false
			q, _ := newQueue(t, queuetest.Serve(t, func(w io.Writer) {
				for _, queue := range tc.order {
					for _, id := range s[queue] {
						io.WriteString(w, queuetest.MessageAs(queue, id, "hr@contoso.com", 1))
					}
					if queue == tc.after && !moved {
						moved = true
						s.move(ids[0], tc.from, tc.to)
					}
				}
			}))
			for i, want := range []int{tc.want, tc.next} {
				q.Look(t.Context())
				if got := q.picture.Load().Ways[scanWay].Messages; got != want+1 {
					t.Errorf("%s: reading %d of %v counts %v messages, want %d", tc.name, i+1, ids, got, want+1)
				}
			}
		}
	}
}

// TestQueueOfWhatWasJustAccepted: what the list of the queue names is not counted beside it,
// however little time has passed.
func TestQueueOfWhatWasJustAccepted(t *testing.T) {
	d := decision(t)
	for _, tc := range []struct {
		name, list string
		id         string
		ago        time.Duration
		want       int
	}{
		{"named", queuetest.MessageAs("active", "4cQXa", "hr@contoso.com", 1), "4cQXa", 0, 1},
		{"not named yet", "", "4cQXa", 0, 1},
		{"another one is named", queuetest.MessageAs("active", "4cQXb", "hr@contoso.com", 1), "4cQXa", 0, 2},
		{"it has left", "", "4cQXa", time.Minute, 0},
		{"the MTA does not tell its id", queuetest.MessageAs("active", "4cQXa", "hr@contoso.com", 1), "", 0, 2},
		{"it has been held since", queuetest.MessageAs("hold", "4cQXa", "hr@contoso.com", 1), "4cQXa", time.Minute, 0},
	} {
		q, _ := newQueue(t, queuetest.Start(t, tc.list).Path)
		q.Accepted(d, tc.id, 1, time.Now().Add(-tc.ago))
		q.Look(t.Context())
		got := 0
		for _, m := range []map[string]*Backlog{q.view, q.since} {
			for _, b := range m {
				got += b.Messages
			}
		}
		if got != tc.want {
			t.Errorf("%s: %d messages, want %d", tc.name, got, tc.want)
		}
	}
}

// TestQueueIDsAreBounded: what is not remembered is new each time.
func TestQueueIDsAreBounded(t *testing.T) {
	s := newIDSet()
	s.most = 2
	got := ""
	for _, id := range []string{"a", "b", "a", "c", "c", "b", "", ""} {
		got += fmt.Sprintf("%s %v; ", id, s.add(id))
	}
	if want := "a true; b true; a false; c true; c true; b false;  true;  true; "; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestQueueCeilingToday: what a mailbox has sent today leaves less room.
func TestQueueCeilingToday(t *testing.T) {
	d := decision(t)
	q, _ := newQueue(t, queuetest.Start(t, queuetest.Message("active", "hr@contoso.com", 3)).Path)
	r := *q.rules.Load()
	for _, tc := range []struct {
		left map[string]int
		take int // recipients besides the three that wait
	}{
		{nil, 7}, {map[string]int{"erp@contoso.com": 0}, 7}, {map[string]int{"scan@contoso.com": 5}, 2}, {map[string]int{"scan@contoso.com": 0}, 0},
		{map[string]int{"scan@contoso.com": 9000}, 7},
	} {
		r.Left = func(context.Context) map[string]int { return tc.left }
		q.Use(r)
		q.Look(t.Context())
		for n, want := range map[int]bool{tc.take: tc.take > 0, tc.take + 1: false} {
			if got := q.Overflow(d, n) == nil; got != want {
				t.Errorf("left %v: %d recipients are taken: %v, want %v", tc.left, n, got, want)
			}
		}
	}
}

// TestQueueUnreadable: mail passes, and the log says so once.
func TestQueueUnreadable(t *testing.T) {
	d := decision(t)
	s := queuetest.Start(t, queuetest.Message("active", "hr@contoso.com", 10))
	q, log := newQueue(t, s.Path)
	q.Look(t.Context())
	if q.Overflow(d, 1) == nil {
		t.Fatal("a full queue takes more")
	}
	q.Use(Rules{Socket: s.Path + "-gone", Wait: time.Minute, Policy: somePolicy(t), Limits: q.rules.Load().Limits})
	for range 3 {
		q.Look(t.Context())
		if got := q.Overflow(d, 1000); got != nil {
			t.Errorf("with a queue that cannot be read: %v", got)
		}
	}
	if s := q.Status(); s.Readable || s.Messages != nil || s.Error == "" || !strings.Contains(s.Hint, "postdrop") {
		t.Errorf("a queue that cannot be read is %+v", s)
	}
	if err := os.Rename(s.Path, s.Path+"-gone"); err != nil {
		t.Fatal(err)
	}
	q.Look(t.Context())
	if q.Overflow(d, 1) == nil || !q.Status().Readable {
		t.Error("a queue that can be read again has no ceiling")
	}
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "level=WARN") || !strings.Contains(lines[0], "postdrop") || !strings.Contains(lines[1], "level=INFO") {
		t.Errorf("the log has not one warning and one word of its end:\n%s", log)
	}
}

// TestQueueWithoutCeiling: it is read all the same, and everything is taken.
func TestQueueWithoutCeiling(t *testing.T) {
	s := queuetest.Start(t, queuetest.Message("active", "hr@contoso.com", 10))
	q, log := newQueue(t, s.Path)
	q.Use(Rules{Socket: s.Path, Policy: somePolicy(t)})
	q.Look(t.Context())
	if got := q.Status(); !got.Readable || *got.Messages != 1 {
		t.Errorf("the queue is %+v", got)
	}
	if got := q.Overflow(decision(t), 1000); got != nil {
		t.Errorf("without a ceiling: %v", got)
	}
	q.Use(Rules{Socket: s.Path + "-gone", Policy: somePolicy(t)})
	q.Look(t.Context())
	if got := log.String(); !strings.Contains(got, "what waits in it is not known") || strings.Contains(got, "ceiling") {
		t.Errorf("the log says %s", got)
	}
}

// scanWay is how mail of newQueue's mailbox leaves.
var scanWay = Way{Mailbox: "scan@contoso.com", Route: "submission"}

// somePolicy has a mailbox that may send as another address, and a client that sends through it.
func somePolicy(t testing.TB) *policy.Rules {
	t.Helper()
	p, errs := policy.New(policy.Settings{
		Domains:   []string{"contoso.com"},
		Mailboxes: []policy.MailboxSettings{{Address: "scan@contoso.com", SendAs: []string{"hr@contoso.com"}}},
		Clients:   []policy.ClientSettings{{Name: "printers", Networks: []string{"10.2.0.0/16"}, From: "scan@contoso.com"}},
	})
	if errs != nil {
		t.Fatal(errs)
	}
	return p
}
