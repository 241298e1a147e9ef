package queue

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sendas/sendas/milter/queue/queuetest"
	"github.com/sendas/sendas/policy"
)

// TestPicture: what waits, in all, by way and by reason.
func TestPicture(t *testing.T) {
	at := func(min int) time.Time { return time.Unix(1_795_248_000, 0).Add(time.Duration(min) * time.Minute) }
	sec := func(min int) float64 { return float64(at(min).Unix()) }
	const closed = "connect to smtp.office365.com[52.97.1.2]:587: Connection refused"
	list := queuetest.Deferred("active", "1", "hr@contoso.com", at(30), "") +
		queuetest.Deferred("active", "2", "scan@contoso.com", at(20), closed) + // it is tried again
		queuetest.Deferred("deferred", "2", "scan@contoso.com", at(20), closed) + // and deferred while the queue is read
		queuetest.Deferred("deferred", "3", "scan@contoso.com", at(10), "delivery temporarily suspended: "+closed) +
		queuetest.Deferred("deferred", "4", "news@contoso.de", at(15), "host contoso-com.mail.protection.outlook.com[1.2.3.4] said: 451 4.7.500 Server busy (in reply to RCPT TO command)") +
		queuetest.Deferred("incoming", "5", "MAILER-DAEMON", at(40), "") +
		queuetest.Deferred("hold", "6", "scan@contoso.com", at(-900), "") +
		queuetest.Deferred("maildrop", "7", "root", at(50), "")
	q, reg := watch(t, queuetest.Start(t, list).Path)
	if s := q.Status(); s != nil {
		t.Errorf("before the queue was read it is %+v", s)
	}
	if got := series(reg); got != "" {
		t.Errorf("before the queue was read the series are\n%s", got)
	}
	q.Look(t.Context())
	want := fmt.Sprintf(`sendas_postfix_running 1
sendas_queue_deferred_messages{reason="connect"} 2
sendas_queue_deferred_messages{reason="service of 451 4.7.500"} 1
sendas_queue_messages{queue="active"} 2
sendas_queue_messages{queue="deferred"} 2
sendas_queue_messages{queue="hold"} 1
sendas_queue_messages{queue="incoming"} 1
sendas_queue_messages{queue="maildrop"} 1
sendas_queue_oldest_timestamp_seconds{queue="active"} %[1]v
sendas_queue_oldest_timestamp_seconds{queue="deferred"} %[2]v
sendas_queue_oldest_timestamp_seconds{queue="hold"} %[3]v
sendas_queue_oldest_timestamp_seconds{queue="incoming"} %[4]v
sendas_queue_oldest_timestamp_seconds{queue="maildrop"} %[5]v
sendas_queue_readable 1
sendas_queue_stalled_messages{mailbox="scan@contoso.com",reason="connect",route="submission"} 2
sendas_queue_waiting{kind="messages",mailbox="",route=""} 1
sendas_queue_waiting{kind="messages",mailbox="",route="site"} 1
sendas_queue_waiting{kind="messages",mailbox="scan@contoso.com",route="submission"} 3
sendas_queue_waiting{kind="recipients",mailbox="",route=""} 1
sendas_queue_waiting{kind="recipients",mailbox="",route="site"} 1
sendas_queue_waiting{kind="recipients",mailbox="scan@contoso.com",route="submission"} 3
sendas_queue_waiting_oldest_timestamp_seconds{mailbox="",route=""} %[4]v
sendas_queue_waiting_oldest_timestamp_seconds{mailbox="",route="site"} %[6]v
sendas_queue_waiting_oldest_timestamp_seconds{mailbox="scan@contoso.com",route="submission"} %[2]v
`, sec(20), sec(10), sec(-900), sec(40), sec(50), sec(15))
	if got := series(reg); got != want {
		t.Errorf("the series are\n%s\nwant\n%s", got, want)
	}
	s := q.Status()
	if !s.Readable || *s.Messages != 5 || !s.Oldest.Equal(at(10)) || s.Error != "" {
		t.Errorf("in all there is %+v, of %v", s, s.Oldest)
	}
	if w := s.Waiting[0]; w.Mailbox != "scan@contoso.com" || w.Messages != 3 || !w.Oldest.Equal(at(10)) {
		t.Errorf("most waits for %+v", w)
	}
	if d := s.Deferred[0]; d.Reason != ReasonConnect || d.Messages != 2 {
		t.Errorf("most was deferred for %+v", d)
	}
}

// TestEmptyQueue: nothing waits, and that is known.
func TestEmptyQueue(t *testing.T) {
	q, reg := watch(t, queuetest.Start(t, "").Path)
	q.Look(t.Context())
	if s := q.Status(); !s.Readable || *s.Messages != 0 || s.Oldest != nil {
		t.Errorf("an empty queue is %+v", s)
	}
	if got := series(reg); strings.Count(got, "\n") != 7 || !strings.Contains(got, `sendas_queue_messages{queue="deferred"} 0`) {
		t.Errorf("the series of an empty queue are\n%s", got)
	}
}

// TestUnknownIsNotZero: what is not known is nowhere 0, whatever was known before.
func TestUnknownIsNotZero(t *testing.T) {
	var breaks atomic.Bool
	path := queuetest.Serve(t, func(w io.Writer) {
		if breaks.Load() {
			io.WriteString(w, "queue_name\x00") // and then the end: a list without end
			return
		}
		io.WriteString(w, queuetest.Message("deferred", "scan@contoso.com", 1))
	})
	q, reg := watch(t, path)
	q.Look(t.Context())
	breaks.Store(true)
	q.Look(t.Context())
	if got := series(reg); got != "sendas_queue_readable 0\n" {
		t.Errorf("of a list that breaks off the series are\n%s", got)
	}
	if s := q.Status(); s.Readable || s.Messages != nil || s.Queues != nil || s.Waiting != nil || s.Error == "" {
		t.Errorf("of a list that breaks off there is %+v", s)
	}
}

func TestReasons(t *testing.T) {
	r := Rules{Explain: explainTest}
	for text, want := range map[string]Reason{
		"connect to smtp.office365.com[52.97.1.2]:587: Connection timed out":                                                 ReasonConnect,
		"connect to smtp.office365.com[2603:1026::2]:587: Network is unreachable":                                            ReasonConnect,
		"Host or domain name not found. Name service error for name=smtp.office365.com type=A: Host not found, try again":    ReasonDNS,
		"Name service error for name=smtp.office365.com type=AAAA: Host not found, try again":                                ReasonDNS,
		"lost connection with smtp.office365.com[52.97.1.2] while sending end of data -- message may be sent more than once": ReasonLost,
		"conversation with smtp.office365.com[52.97.1.2] timed out while receiving the initial server greeting":              ReasonLost,
		"TLS is required, but was not offered by host smtp.office365.com[52.97.1.2]":                                         ReasonTLS,
		"Server certificate not verified":                                                                                                                       ReasonTLS,
		"Cannot start TLS: handshake failure":                                                                                                                   ReasonTLS,
		"SASL authentication failed; server smtp.office365.com[52.97.1.2] said: 535 5.7.3 no":                                                                   ReasonSignIn,
		"SASL authentication failed; cannot authenticate to server smtp.office365.com[52.97.1.2]: no mechanism available":                                       ReasonPlugin,
		"local data error while talking to smtp.office365.com[52.97.1.2]":                                                                                       ReasonLookup,
		"SASL [CACHED] authentication failed; server smtp.office365.com[52.97.1.2] said: 535 5.7.3 no":                                                          ReasonSignIn,
		"SASL authentication failed: server smtp.office365.com[52.97.1.2] offered no compatible authentication mechanisms for this type of connection security": ReasonSignIn,
		"TLS is required, but host smtp.office365.com[52.97.1.2] refused to start TLS: 454 4.7.0 TLS not available":                                             ReasonTLS,
		"mail transport unavailable": ReasonTransport,
		"deferred transport":         ReasonTransport,
		"delivery temporarily suspended: local data error while talking to smtp.office365.com": ReasonLookup,
		"host smtp.office365.com[52.97.1.2] said: 450 4.1.8 connect to lost connection with":   "service of 450 4.1.8",
		"host smtp.office365.com[52.97.1.2] refused to talk to me: 421 4.3.2 Service":          "service of 421 4.3.2",
		"mailbox of ceo@contoso.com is on fire":                                                ReasonOther,
		"":                                                                                     ReasonOther,
	} {
		if got := r.reason(text); got != want {
			t.Errorf("%q is %s, want %s", text, got, want)
		}
	}
	if got := (&Rules{}).reason("host a said: 450 later"); got != ReasonReply {
		t.Errorf("an answer that nobody explains is %s", got)
	}
}

// explainTest shows which answer it was asked about.
func explainTest(reply string) string {
	return "service of " + strings.Join(strings.Fields(reply)[:2], " ")
}

// TestLargeQueue: 100,000 messages, with reasons as long as Microsoft's, are read in a time and a
// memory that a relay has.
func TestLargeQueue(t *testing.T) {
	const n = 100_000
	reason := "host smtp.office365.com[52.97.1.2] said: 451 4.7.500 " + strings.Repeat("Server busy. ", 30)
	path := queuetest.Serve(t, func(w io.Writer) {
		for i := range n {
			io.WriteString(w, queuetest.Deferred("deferred", fmt.Sprintf("4cQXlarge%d", i), "hr@contoso.com", time.Unix(1_795_248_000+int64(i), 0), reason))
		}
	})
	q, _ := watch(t, path)
	before := heap()
	began := time.Now()
	q.Look(t.Context())
	took := time.Since(began)
	if s := q.Status(); !s.Readable || *s.Messages != n {
		t.Fatalf("the queue is %+v", s)
	}
	if grown := int64(heap()) - int64(before); grown > 1<<20 {
		t.Errorf("what is kept of %d messages takes %d bytes", n, grown)
	}
	if took > readTime/5 { // it is half a second on a machine that has nothing else to do
		t.Errorf("it took %v", took)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestRestAfter: a large queue is read less often.
func TestRestAfter(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{
		0: 10 * time.Second, time.Second: 10 * time.Second, 10 * time.Second: 90 * time.Second, readTime: 10 * time.Minute,
	} {
		if got := restAfter(took, nil); got != want {
			t.Errorf("after %v it rests for %v, want %v", took, got, want)
		}
		if got := restAfter(took, &Rules{Every: time.Minute}); got != max(want, time.Minute) {
			t.Errorf("after %v it rests for %v, with a minute", took, got)
		}
	}
}

// TestNobodyWaitsForTheQueue: showq(8) that does not answer holds up neither decisions nor figures.
func TestNobodyWaitsForTheQueue(t *testing.T) {
	begun, end := make(chan bool), make(chan bool)
	q, reg := watch(t, queuetest.Serve(t, func(io.Writer) { begun <- true; <-end }))
	defer close(end)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan bool)
	go func() { q.Look(ctx); close(done) }()
	<-begun
	if q.Status() != nil || series(reg) != "" || q.Overflow(decision(t), 1) != nil {
		t.Error("a queue that is being read is known")
	}
	cancel()
	<-done
	if q.Status() != nil {
		t.Error("a reading that was given up says something")
	}
}

// watch returns a Watch of a site with a mailbox and a connector.
func watch(t *testing.T, socket string) (*Watch, *prometheus.Registry) {
	t.Helper()
	p, errs := policy.New(policy.Settings{
		Domains:   []string{"contoso.com", "contoso.de"},
		Mailboxes: []policy.MailboxSettings{{Address: "scan@contoso.com", SendAs: []string{"hr@contoso.com"}}},
		Routes:    []policy.RouteSettings{{Name: "site", Type: string(policy.Connector), Endpoint: "contoso-com.mail.protection.outlook.com"}},
		Clients:   []policy.ClientSettings{{Name: "printers", Networks: []string{"10.2.0.0/16"}, From: "scan@contoso.com"}},
	})
	if errs != nil {
		t.Fatal(errs)
	}
	reg := prometheus.NewRegistry()
	q := New(slog.New(slog.DiscardHandler), reg)
	q.Use(Rules{Socket: socket, Policy: p, Explain: explainTest})
	return q, reg
}

// series returns what Prometheus gets.
func series(reg *prometheus.Registry) string {
	page := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(page, httptest.NewRequest("GET", "/metrics", nil))
	var b strings.Builder
	for line := range strings.Lines(page.Body.String()) {
		if strings.HasPrefix(line, "sendas_") && !strings.HasPrefix(line, "sendas_queue_disk_free_bytes ") { // which is this machine's
			b.WriteString(line)
		}
	}
	return b.String()
}
