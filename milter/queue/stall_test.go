package queue

import (
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sendas/sendas/milter/queue/queuetest"
)

// The texts of Postfix for what is in the way of all mail.
const (
	closedPort = "connect to smtp.office365.com[52.97.1.2]:587: Connection refused"
	noName     = "Host or domain name not found. Name service error for name=smtp.office365.com type=AAAA: Host not found, try again"
	noPlugin   = "SASL authentication failed; cannot authenticate to server smtp.office365.com[52.97.1.2]: no mechanism available"
	noLookup   = "local data error while talking to smtp.office365.com[52.97.1.2]"
)

// stallsOf returns what stands still, in words.
func stallsOf(q *Watch) string {
	var list []string
	for _, x := range q.Status().Stalls {
		list = append(list, fmt.Sprintf("%s%s %s %d", x.Mailbox, x.Route, x.Reason, x.Messages))
	}
	return strings.Join(list, ", ")
}

// TestStalls: mail that was put off for what is in the way of all mail stands still until some has
// left; what another server said does not, nor does mail that is none of Microsoft's.
func TestStalls(t *testing.T) {
	old := time.Unix(1_795_248_000, 0)
	message := func(id, sender, reason string) string {
		return queuetest.Deferred("deferred", id, sender, old, reason)
	}
	one, two := message("1", "scan@contoso.com", closedPort), message("2", "scan@contoso.com", closedPort)
	const stands = "scan@contoso.comsubmission connect "
	now := time.Now
	accepted := func(at func() time.Time) func() Proof {
		return func() Proof { return Proof{Since: old, Accepted: map[string]time.Time{"scan@contoso.com": at()}} }
	}
	answered := func() Proof { return Proof{Since: old, Answered: map[string]time.Time{"scan@contoso.com": now()}} }
	longAgo := accepted(func() time.Time { return old.Add(-time.Hour) })
	up := func(since time.Duration) func() Proof {
		return func() Proof { return Proof{Since: now().Add(-since)} }
	}
	for _, tc := range []struct {
		name  string
		lists []string // of readings
		proof func() Proof
		want  string
	}{
		{"nothing waits", []string{""}, nil, ""},
		{"it is on its way", []string{queuetest.Deferred("active", "1", "scan@contoso.com", old, "")}, nil, ""},
		{"a closed port", []string{"", one}, nil, stands + "1"},
		{"a closed port, and the token service knows of nothing", []string{"", one}, longAgo, stands + "1"},
		{"since before the milter began", []string{one}, longAgo, stands + "1"},
		{"some left since", []string{"", one}, accepted(now), ""},
		{"some was answered since", []string{"", one}, answered, ""},
		{"one of two left", []string{"", one + two, one}, nil, stands + "1"}, // it may be too old, and returned
		{"for another reason now", []string{"", one, message("1", "scan@contoso.com", noName)}, nil, "scan@contoso.comsubmission dns 1"},
		{"most first", []string{"", one + message("3", "news@contoso.de", noName) + two}, nil, stands + "2, site dns 1"},
		{"a refusal of the message", []string{"", message("1", "scan@contoso.com", "host smtp.office365.com[52.97.1.2] said: 451 4.7.500 Server busy")}, nil, ""},
		{"of neither mailbox nor route", []string{"", message("1", "root@elsewhere.example", closedPort)}, nil, ""},
		{"the sign-in is refused, and an answer proves nothing", []string{"", message("1", "scan@contoso.com", "SASL authentication failed; server said: 535 5.7.3")}, answered, "scan@contoso.comsubmission sign-in 1"},
		{"no plugin", []string{"", message("1", "scan@contoso.com", noPlugin)}, longAgo, "scan@contoso.comsubmission plugin 1"},
		{"the token service says nothing", []string{"", message("1", "scan@contoso.com", noLookup)}, nil, "scan@contoso.comsubmission token-service 1"},
		{"it has been there all the time", []string{"", message("1", "scan@contoso.com", noLookup)}, up(3 * time.Hour), "scan@contoso.comsubmission token-service 1"},
		{"it has just come back", []string{"", message("1", "scan@contoso.com", noLookup)}, up(time.Second), ""},
		{"the mailbox rests", []string{"", message("1", "scan@contoso.com", noLookup)}, func() Proof {
			return Proof{Since: old, Resting: map[string]bool{"scan@contoso.com": true}}
		}, ""},
		{"more comes in than may leave", []string{"", message("1", "scan@contoso.com", noLookup)}, accepted(func() time.Time { return now().Add(-time.Minute) }), ""},
	} {
		var list atomic.Value
		q, reg := watch(t, queuetest.Serve(t, func(w io.Writer) { io.WriteString(w, list.Load().(string)) }))
		if r := *q.rules.Load(); tc.proof != nil {
			r.Proof = func(context.Context) Proof { return tc.proof() }
			q.Use(r)
		}
		for _, text := range tc.lists {
			list.Store(text)
			q.Look(t.Context())
		}
		if got := stallsOf(q); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
		if got := strings.Count(series(reg), "sendas_queue_stalled_messages{"); (got > 0) != (tc.want != "") {
			t.Errorf("%s: %d series", tc.name, got)
		}
	}
}

// TestStallEnds: mail that was found put off and is gone has left, unless it may have been too old;
// what is put off afterwards stands still again.
func TestStallEnds(t *testing.T) {
	message := func(id string, age time.Duration) string {
		return queuetest.Deferred("deferred", id, "news@contoso.de", time.Now().Add(-age), closedPort)
	}
	for _, tc := range []struct {
		name  string
		lists []string
		want  string
	}{
		{"one of two left", []string{"", message("1", time.Hour) + message("2", time.Hour), message("1", time.Hour)}, ""},
		{"it stays so", []string{"", message("1", time.Hour) + message("2", time.Hour), message("1", time.Hour), message("1", time.Hour)}, ""},
		{"one more is put off", []string{"", message("1", time.Hour) + message("2", time.Hour), message("1", time.Hour), message("1", time.Hour) + message("3", time.Second)}, "site connect 2"},
		{"it was five days old", []string{"", message("1", 5*24*time.Hour) + message("2", time.Hour), message("2", time.Hour)}, "site connect 1"},
	} {
		var list atomic.Value
		q, _ := watch(t, queuetest.Serve(t, func(w io.Writer) { io.WriteString(w, list.Load().(string)) }))
		for _, text := range tc.lists {
			list.Store(text)
			q.Look(t.Context())
		}
		if got := stallsOf(q); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

// TestLargeStall: 100,000 messages that stand still are remembered in little.
func TestLargeStall(t *testing.T) {
	const n = 100_000
	q, _ := watch(t, queuetest.Serve(t, func(w io.Writer) {
		for i := range n {
			io.WriteString(w, queuetest.Deferred("deferred", fmt.Sprintf("4cQXstall%d", i), "hr@contoso.com", time.Unix(1_795_248_000+int64(i), 0), closedPort))
		}
	}))
	before := heap()
	for range 2 {
		q.Look(t.Context())
	}
	if got, want := stallsOf(q), "scan@contoso.comsubmission connect 100000"; got != want {
		t.Errorf("%q stands still, want %q", got, want)
	}
	if grown := int64(heap()) - int64(before); grown > 2<<20 {
		t.Errorf("what is kept takes %d bytes", grown)
	}
}

// TestCauses: a Postfix that is stopped is told from a user who may not ask it.
func TestCauses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "showq")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	q, reg := watch(t, path)
	q.Look(t.Context())
	if s := q.Status(); s.Cause != CauseStopped || !strings.Contains(s.Hint, "Postfix is not running") {
		t.Errorf("of a stopped Postfix: %+v", s)
	}
	if got := series(reg); !strings.Contains(got, "sendas_postfix_running 0\n") {
		t.Errorf("of a stopped Postfix:\n%s", got)
	}
	if n := roomAt(dir); n <= 0 || roomAt(filepath.Join(dir, "nowhere")) != -1 {
		t.Errorf("there are %d bytes free", n)
	}
	q, reg = watch(t, filepath.Join(dir, "nowhere"))
	q.Look(t.Context())
	if s := q.Status(); s.Cause != CauseOther || strings.Contains(series(reg), "running") {
		t.Errorf("of another socket: %+v\n%s", s, series(reg))
	}
	for err, want := range map[error]Cause{&net.OpError{Err: syscall.EACCES}: CausePermission, &net.OpError{Err: syscall.ECONNREFUSED}: CauseStopped, io.EOF: CauseOther} {
		if got := causeOf(err); got != want {
			t.Errorf("%v is %s, want %s", err, got, want)
		}
	}
}
