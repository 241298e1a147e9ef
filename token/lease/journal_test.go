package lease

import (
	"bytes"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/internal/logtest"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/ledger"
)

// host is a token service that can be killed: what it knows is in dir.
type host struct {
	*Lessor
	t      *testing.T
	dir    string
	ledger *ledger.Bolt
	log    *logtest.Buffer
	limits limit.Allowance
}

// start starts the service, after the former one if there was one.
func (h *host) start() { h.t.Helper(); h.startWith(func(*Journal) {}) }

// startWith is start with a journal that was changed.
func (h *host) startWith(change func(*Journal)) {
	h.t.Helper()
	if h.ledger != nil {
		if err := h.ledger.Close(); err != nil {
			h.t.Fatal(err)
		}
	}
	var err error
	if h.ledger, err = ledger.OpenBolt(filepath.Join(h.dir, "token.db"), ledger.BoltOptions{}); err != nil {
		h.t.Fatal(err)
	}
	j, err := OpenJournal(filepath.Join(h.dir, "sessions"))
	if err != nil {
		h.t.Fatal(err)
	}
	change(j)
	h.Lessor = NewLessor(h.ledger, NewMetrics(prometheus.NewRegistry()), slog.New(slog.NewTextHandler(h.log, nil)))
	h.Use(fakeDirectory{"erp@contoso.com": {Address: "erp@contoso.com", Label: "erp@contoso.com", Limits: h.limits, Tokens: &fakeTokens{}}})
	if err := h.Adopt(h.t.Context(), j); err != nil {
		h.t.Fatal(err)
	}
}

func newHost(t *testing.T) *host {
	h := &host{t: t, dir: t.TempDir(), log: &logtest.Buffer{}, limits: limit.Microsoft()}
	h.start()
	t.Cleanup(func() { h.ledger.Close() })
	return h
}

// smtp starts a process in the place of smtp(8), and gives it a lease. The result ends the process.
func (h *host) smtp() (Caller, func()) {
	h.t.Helper()
	cmd := exec.Command("/bin/cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	end := func() { in.Close(); cmd.Wait() }
	h.t.Cleanup(end)
	c := Caller{PID: int32(cmd.Process.Pid)}
	if r := h.Lease(h.t.Context(), c, "erp@contoso.com"); r.Status != OK {
		h.t.Fatalf("look-up answered %q", r.Value)
	}
	return c, end
}

func (h *host) reply(c Caller, lines ...string) {
	for _, l := range lines {
		h.Reply(h.t.Context(), c, l)
	}
}

func (h *host) wantUsage(leases, messages, recipients int) {
	h.t.Helper()
	u, err := h.ledger.Usage(h.t.Context(), "erp@contoso.com", h.limits, time.Now())
	if err != nil {
		h.t.Fatal(err)
	}
	if u.Leases != leases || u.Messages != messages || u.Recipients != recipients {
		h.t.Errorf("usage %+v, want %d leases, %d messages, %d recipients", u, leases, messages, recipients)
	}
}

// TestAdopt: smtp(8) goes on with its delivery when the service is killed, and the next one books
// it.
func TestAdopt(t *testing.T) {
	h := newHost(t)
	a, _ := h.smtp()
	b, end := h.smtp()
	h.reply(a, authOK, mailOK, rcptOK)
	h.reply(b, authOK, mailOK, rcptOK, rcptOK, dataOK)
	h.start()
	h.wantUsage(2, 2, 0)
	h.reply(a, rcptOK, rcptOK, dataOK, accepted)
	h.wantUsage(1, 2, 3)
	h.start()
	h.reply(b, accepted)
	h.wantUsage(0, 2, 5)
	end()
	h.start()
	h.wantUsage(0, 2, 5)
	if log := h.log.String(); strings.Count(log, "going_on=2 lost=0") != 1 || strings.Count(log, "going_on=1 lost=0") != 1 {
		t.Errorf("log:\n%s", log)
	}
}

// TestAdoptLost: where smtp(8) ended together with the service, or the system did, the most is
// booked that can have been sent.
func TestAdoptLost(t *testing.T) {
	h := newHost(t)
	a, end := h.smtp()
	h.reply(a, authOK, mailOK, rcptOK)
	b, _ := h.smtp()
	h.reply(b, authOK, mailOK, rcptOK, dataOK)
	if err := os.Remove(filepath.Join(h.dir, "sessions", strconv.Itoa(int(b.PID)))); err != nil { // that had not reached the disk
		t.Fatal(err)
	}
	h.smtp()
	end()
	h.start()
	h.wantUsage(1, 3, 2*ledger.MaxDelivery)
}

// TestJournalForeign: what is no entry of ours disturbs nothing, and a process that got another
// one's id is not taken for it.
func TestJournalForeign(t *testing.T) {
	h := newHost(t)
	a, _ := h.smtp()
	dir := filepath.Join(h.dir, "sessions")
	file := filepath.Join(dir, strconv.Itoa(int(a.PID)))
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) != entrySize || bytes.Contains(b, []byte(theToken)) {
		t.Errorf("entry of %d bytes: %s", len(b), b)
	}
	born := processBorn(a.PID)
	if !bytes.Contains(b, []byte(born)) || len(strings.Fields(born)) != 2 {
		t.Fatalf("born %q is not in %s", born, b)
	}
	// The first process of the system lives, but was born at another time.
	other := bytes.Replace(b, []byte(born), []byte(strings.Fields(born)[0]+" 123456789012"), 1)
	for name, text := range map[string]string{"1": string(other), "2": "", "3": "{", "4": "null", "x": "?", "-5": string(b)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "6"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.wantUsage(0, 1, ledger.MaxDelivery)
	for _, name := range []string{"1", "2", "3", "4"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			t.Errorf("file %s is still there", name)
		}
	}
}

// TestJournalUnwritable: mail leaves without the journal too, and the log says once what is
// missing.
func TestJournalUnwritable(t *testing.T) {
	h := newHost(t)
	dir := filepath.Join(h.dir, "sessions")
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	a, _ := h.smtp()
	h.reply(a, authOK, mailOK, rcptOK, dataOK)
	next := process(5)
	h.reply(next, greeting...)
	if got := h.aheadOf(next); got != 0 {
		t.Errorf("without the journal, a lease comes %v ahead", got)
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	h.reply(a, accepted)
	h.wantUsage(0, 1, 1)
	if got := h.aheadOf(next); got != ahead {
		t.Errorf("with the journal again, a lease comes %v ahead, want %v", got, ahead)
	}
	b, _ := h.smtp()
	h.reply(b, authOK)
	if log := h.log.String(); strings.Count(log, "cannot be kept in the journal") != 1 || strings.Count(log, "in the journal again") != 1 {
		t.Errorf("log:\n%s", log)
	}
}

// TestAdoptHeld: a delivery that an earlier process began, of a sender whose mail is held, ends it
// when it is accepted, and stays in the queue when it is denied once more.
func TestAdoptHeld(t *testing.T) {
	for _, tc := range []struct {
		verdict string
		want    Result
		held    bool
	}{
		{accepted, Result{Status: NotFound}, false},
		{denied, Result{OK, "454 4.2.252 " + strings.TrimPrefix(denied, "554 5.2.252 ")}, true},
	} {
		h := newHost(t)
		for range maxDenials {
			c, _ := h.smtp()
			h.reply(c, authOK, mailOK, rcptOK, dataOK, denied)
		}
		h.TryAgain()
		a, _ := h.smtp()
		h.reply(a, authOK, mailOK, rcptOK, dataOK)
		h.start()
		if got := h.Reply(t.Context(), a, tc.verdict); got != tc.want {
			t.Errorf("%.20q was answered with %v, want %v", tc.verdict, got, tc.want)
		}
		h.start()
		r := h.Lease(t.Context(), process(1), "erp@contoso.com")
		if held := r.Status == Temp && strings.Contains(r.Value, "sendas retry"); held != tc.held {
			t.Errorf("after %.20q, and another restart: %v %q, want it to be held: %v", tc.verdict, r.Status, r.Value, tc.held)
		}
	}
}
