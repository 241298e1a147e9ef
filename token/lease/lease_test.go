package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/internal/logtest"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/lease/replies"
	"github.com/sendas/sendas/token/lease/repliestest"
	"github.com/sendas/sendas/token/ledger"
)

// theToken is what must never be seen in a log.
const theToken = "eyJ0eXAiOiJKV1QifQ.c2VjcmV0.c2ln"

type fakeTokens struct {
	err       error
	discarded []string
}

func (f *fakeTokens) Token(context.Context) (*entra.Token, error) {
	if f.err != nil {
		return nil, f.err
	}
	return &entra.Token{Access: theToken, Expires: time.Now().Add(time.Hour)}, nil
}

func (f *fakeTokens) Discard(s entra.Secret) { f.discarded = append(f.discarded, string(s)) }

type fakeDirectory map[string]*Mailbox

func (d fakeDirectory) Mailboxes(sender string) []*Mailbox {
	if d[sender] == nil {
		return nil
	}
	return []*Mailbox{d[sender]}
}

// Listed knows addresses in any case, and takes what has a plus sign for one of a mailbox with
// them.
func (d fakeDirectory) Listed(sender string) string {
	sender = strings.ToLower(sender)
	if local, domain, ok := strings.Cut(sender, "@"); ok {
		if base, _, plus := strings.Cut(local, "+"); plus {
			return base + "+*@" + domain
		}
	}
	return sender
}

func (d fakeDirectory) External(rcpt string) bool { return !strings.HasSuffix(rcpt, "@contoso.com") }

func (d fakeDirectory) RouteFrom(sender string) string {
	if d[sender] != nil {
		return "smtp:[smtp.office365.com]:587"
	}
	return ""
}

func (d fakeDirectory) RouteTo(rcpt string) string {
	if strings.HasSuffix(rcpt, "@contoso.com") {
		return "sendas-inside:[contoso-com.mail.protection.outlook.com]:25"
	}
	return ""
}

// desk is a lease desk with one mailbox, erp@contoso.com, which may also send as
// billing@contoso.com.
type desk struct {
	*Lessor
	tokens *fakeTokens
	log    *logtest.Buffer
	ledger *ledger.Memory
	limits limit.Allowance
}

func newDesk(messages limit.Rate) *desk {
	d := &desk{tokens: &fakeTokens{}, log: &logtest.Buffer{}, ledger: ledger.NewMemory(), limits: limit.Microsoft()}
	d.limits.Messages = messages
	d.Lessor = NewLessor(d.ledger, NewMetrics(prometheus.NewRegistry()), slog.New(slog.NewTextHandler(d.log, nil)))
	m := &Mailbox{Address: "erp@contoso.com", Label: "erp@contoso.com", Limits: d.limits, Tokens: d.tokens}
	d.Use(fakeDirectory{"erp@contoso.com": m, "billing@contoso.com": m})
	return d
}

// process returns a caller that no real process has, so that the sweep leaves it alone.
func process(n int32) Caller { return Caller{PID: -n} }

// Replies as Exchange Online gives them.
const (
	banner   = "220 LO4P302CA0005.outlook.office365.com Microsoft ESMTP MAIL Service ready at Thu, 10 Oct 2024 22:49:55 +0000 [08DCE8B62813AB2B]"
	starttls = "220 2.0.0 SMTP server ready"
	authOK   = "235 2.7.0 Authentication successful"
	auth535  = repliestest.Auth535
	mailOK   = "250 2.1.0 Sender OK"
	rcptOK   = "250 2.1.5 Recipient OK"
	dataOK   = "354 Start mail input; end with <CRLF>.<CRLF>"
	accepted = repliestest.Accepted
	tooMany  = repliestest.TooMany
	quota    = repliestest.Quota
	denied   = repliestest.Denied
	noAuth   = repliestest.NoAuth
)

func (d *desk) play(t *testing.T, c Caller, lines ...string) (last Result) {
	t.Helper()
	for _, l := range lines {
		last = d.Reply(t.Context(), c, l)
	}
	return last
}

func (d *desk) usage(t *testing.T) ledger.Usage {
	t.Helper()
	u, err := d.ledger.Usage(t.Context(), "erp@contoso.com", d.limits, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestSessions(t *testing.T) {
	for _, tc := range []struct {
		name    string
		replies []string
		want    ledger.Usage // afterwards
		last    Result       // of the last reply
	}{
		{"accepted", []string{authOK, mailOK, rcptOK, rcptOK, dataOK, accepted}, ledger.Usage{Messages: 1, Recipients: 2}, Result{Status: NotFound}},
		{"a recipient refused", []string{authOK, mailOK, rcptOK, "550 5.1.10 Recipient not found", dataOK, accepted}, ledger.Usage{Messages: 1, Recipients: 1}, Result{Status: NotFound}},
		{"sign-in refused", []string{auth535}, ledger.Usage{}, Result{Status: NotFound}},
		{"a challenge before the refusal", []string{"334 eyJzdGF0dXMiOiI0MDAifQ==", auth535}, ledger.Usage{}, Result{Status: NotFound}},
		{"concurrency", []string{authOK, mailOK, rcptOK, dataOK, tooMany}, ledger.Usage{Messages: 1}, Result{Status: NotFound}},
		{"quota becomes temporary", []string{authOK, mailOK, rcptOK, dataOK, quota}, ledger.Usage{Messages: 1},
			Result{OK, "454 4.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed to process message due to a permanent exception with message The message can't be submitted because the sender's submission quota was exceeded."}},
		{"Send As denied stays permanent", []string{authOK, mailOK, rcptOK, dataOK, denied}, ledger.Usage{Messages: 1}, Result{Status: NotFound}},
		{"MAIL refused", []string{authOK, "452 4.3.1 Insufficient system resources"}, ledger.Usage{}, Result{Status: NotFound}},
		{"lines of a longer reply", []string{authOK, "250-2.1.0 Sender", mailOK, rcptOK, dataOK, "250-2.0.0 OK", accepted}, ledger.Usage{Messages: 1, Recipients: 1}, Result{Status: NotFound}},
		{"still in DATA", []string{authOK, mailOK, rcptOK, dataOK}, ledger.Usage{Messages: 1, Leases: 1}, Result{Status: NotFound}},
		{"the server leaves", []string{authOK, mailOK, rcptOK, "421 4.3.2 Service not available"}, ledger.Usage{}, Result{Status: NotFound}},
		{"lost in DATA, then a new session", []string{authOK, mailOK, rcptOK, dataOK, banner}, ledger.Usage{Messages: 1, Recipients: 1}, Result{Status: NotFound}},
		{"lost before DATA, then a new session", []string{authOK, mailOK, rcptOK, banner}, ledger.Usage{}, Result{Status: NotFound}},
		{"STARTTLS is no banner", []string{starttls, authOK}, ledger.Usage{Messages: 1, Leases: 1}, Result{Status: NotFound}},
	} {
		d := newDesk(limit.Rate{N: 30, Per: time.Minute})
		if got := d.Lease(t.Context(), process(1), "billing@contoso.com"); got != (Result{OK, "erp@contoso.com:" + theToken}) {
			t.Fatalf("%s: look-up answered %v", tc.name, got)
		}
		if got := d.play(t, process(1), tc.replies...); got != tc.last {
			t.Errorf("%s: last reply answered %q, want %q", tc.name, got, tc.last)
		}
		got := d.usage(t)
		// Microsoft's words have an effect: fewer connections, or none for a while.
		if paused := !got.PausedUntil.IsZero(); paused != strings.HasPrefix(tc.name, "quota") || (got.Shrunk == 1) != (tc.name == "concurrency") {
			t.Errorf("%s: usage %+v", tc.name, got)
		}
		if (got.PauseClass == ledger.PauseQuota) != !got.PausedUntil.IsZero() {
			t.Errorf("%s: usage %+v", tc.name, got)
		}
		got.Shrunk, got.Next, got.PausedUntil, got.PauseClass, got.PauseReason = 0, time.Time{}, time.Time{}, "", ""
		if got != tc.want {
			t.Errorf("%s: usage %+v, want %+v", tc.name, got, tc.want)
		}
		if wantDiscard := strings.Contains(strings.Join(tc.replies, ""), auth535); (len(d.tokens.discarded) == 1) != wantDiscard {
			t.Errorf("%s: discarded %d tokens", tc.name, len(d.tokens.discarded))
		}
		if strings.Contains(d.log.String(), theToken) {
			t.Errorf("%s: the token is in the log:\n%s", tc.name, d.log)
		}
	}
}

// TestPositiveRepliesStay: a server that said yes has the message; changing its reply would
// send it twice.
func TestPositiveRepliesStay(t *testing.T) {
	d := newDesk(limit.Rate{N: 30, Per: time.Minute})
	d.Lease(t.Context(), process(1), "erp@contoso.com")
	for _, l := range []string{authOK, mailOK, rcptOK, dataOK, "250 2.0.0 OK SubmissionQuotaExceeded 554 5.2.0"} {
		if got := d.Reply(t.Context(), process(1), l); got.Status != NotFound {
			t.Errorf("reply %q answered %v", l, got)
		}
	}
}

// TestLinesOfOneReply: every line of a replaced reply has the new code, and only the last ends it.
func TestLinesOfOneReply(t *testing.T) {
	d := newDesk(limit.Rate{N: 30, Per: time.Minute})
	d.Lease(t.Context(), process(1), "erp@contoso.com")
	d.play(t, process(1), authOK, mailOK, rcptOK, dataOK)
	for _, tc := range []struct{ line, want string }{
		{"554-5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; first", "454-4.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; first"},
		{"554 5.2.0 second", "454 4.2.0 second"},
	} {
		if got := d.Reply(t.Context(), process(1), tc.line); got != (Result{OK, tc.want}) {
			t.Errorf("reply %q answered %v, want %q", tc.line, got, tc.want)
		}
	}
	if u := d.usage(t); u.Leases != 0 || u.Messages != 1 {
		t.Errorf("usage %+v, want one message and no lease out", u)
	}
	d.Lease(t.Context(), process(2), "stranger@contoso.com")
	if got := d.Reply(t.Context(), process(2), "530-5.7.57 Client not authenticated to send mail."); !strings.HasPrefix(got.Value, "450-4.7.1 sendas: ") {
		t.Errorf("first line of a longer reply: %v", got)
	}
}

func TestUnknownSender(t *testing.T) {
	// smtp(8) asks for the sender, its domain, the server and the next-hop, in this order.
	hosts := []string{"@contoso.com", "smtp.office365.com", "[smtp.office365.com]:587"}
	for _, tc := range []struct{ key, reply, want string }{
		{"stranger@contoso.com", noAuth, "450 4.7.1 sendas: no mailbox may send as <stranger@contoso.com>: " + noAuth},
		{hosts[1], noAuth, "450 4.7.1 sendas: no mailbox may send as <>: " + noAuth},
		{"stranger@contoso.com", "550 5.1.1 something else", ""},
	} {
		d := newDesk(limit.Rate{N: 30, Per: time.Minute})
		if got := d.Lease(t.Context(), process(1), tc.key); got.Status != NotFound {
			t.Errorf("look-up of %s: %v", tc.key, got)
		}
		for _, h := range hosts {
			if got := d.Lease(t.Context(), process(1), h); got.Status != NotFound {
				t.Errorf("look-up of %s: %v", h, got)
			}
		}
		if got := d.Reply(t.Context(), process(1), tc.reply); got.Value != tc.want {
			t.Errorf("%s: reply %q, want %q", tc.key, got.Value, tc.want)
		}
	}
}

func TestWithoutToken(t *testing.T) {
	d := newDesk(limit.Rate{N: 30, Per: time.Minute})
	d.tokens.err = errors.New("Microsoft refused")
	got := d.Lease(t.Context(), process(1), "erp@contoso.com")
	if got != (Result{Temp, "no token for mailbox erp@contoso.com: Microsoft refused"}) {
		t.Errorf("look-up without token: %v", got)
	}
	if u := d.usage(t); u != (ledger.Usage{}) {
		t.Errorf("usage %+v, want none", u)
	}
}

// TestBacklog plays three smtp(8) processes with a backlog of 95 messages on a mailbox of 30 a
// minute: waiting happens inside the look-ups, none is deferred, no window is over.
func TestBacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(limit.Rate{N: 30, Per: time.Minute})
		var times []time.Time
		done := make(chan time.Time, 100)
		work := make(chan int, 95)
		for i := range 95 {
			work <- i
		}
		close(work)
		begin := time.Now()
		for n := range 3 {
			go func() {
				for range work {
					c := process(int32(n + 1))
					if got := d.Lease(t.Context(), c, "erp@contoso.com"); got.Status != OK {
						t.Errorf("look-up after %v: %v", time.Since(begin), got)
					}
					d.play(t, c, authOK, mailOK, rcptOK, dataOK)
					time.Sleep(500 * time.Millisecond)
					d.play(t, c, accepted)
					done <- time.Now()
				}
			}()
		}
		for range 95 {
			times = append(times, <-done)
		}
		for i := 30; i < len(times); i++ {
			if times[i].Sub(times[i-30]) < time.Minute {
				t.Errorf("messages %d to %d within %v", i-29, i+1, times[i].Sub(times[i-30]))
			}
		}
		if took := time.Since(begin); took > 3*time.Minute+15*time.Second {
			t.Errorf("95 messages took %v", took)
		}
	})
}

// TestNoRoomSoon: a wait that the look-up could not sit out is answered at once.
func TestNoRoomSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(limit.Rate{N: 1, Per: time.Hour})
		d.Lease(t.Context(), process(1), "erp@contoso.com")
		d.play(t, process(1), authOK, mailOK, rcptOK, dataOK, accepted)
		begin := time.Now()
		got := d.Lease(t.Context(), process(2), "erp@contoso.com")
		if got != (Result{Temp, "mailbox erp@contoso.com cannot send now: its 1/h messages are used up"}) || time.Since(begin) > time.Second {
			t.Errorf("after %v: %v", time.Since(begin), got)
		}
	})
}

// TestLeasesComeBack: three sessions hang in DATA; nobody else gets a lease until one is taken
// back, and then one that waits gets it without being deferred.
func TestLeasesComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(limit.Rate{N: 30, Per: time.Minute})
		for n := range 3 {
			d.Lease(t.Context(), process(int32(n+1)), "erp@contoso.com")
			d.play(t, process(int32(n+1)), authOK, mailOK, rcptOK, dataOK)
		}
		if n := d.Sessions(); n != 3 {
			t.Fatalf("%d sessions, want 3", n)
		}
		got := make(chan Result)
		go func() { got <- d.Lease(t.Context(), process(4), "erp@contoso.com") }()
		time.Sleep(20 * time.Second)
		select {
		case r := <-got:
			t.Fatalf("a fourth lease: %v", r)
		default:
		}
		d.sweep(t.Context(), time.Now().Add(maxSession))
		if r := <-got; r.Status != OK {
			t.Errorf("after the sweep: %v", r)
		}
	})
}

// TestDrain: a service that stops gives no more leases, but watches those that are out to their
// end.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(limit.Rate{N: 30, Per: time.Minute})
		d.Lease(t.Context(), process(1), "erp@contoso.com")
		d.play(t, process(1), authOK, mailOK, rcptOK, dataOK)
		serving, stop := context.WithCancel(t.Context())
		late := make(chan Result, 1)
		drained := make(chan error, 1)
		go func() { drained <- d.Drain(t.Context()) }()
		synctest.Wait()
		go func() { late <- d.Lease(serving, process(2), "erp@contoso.com") }()
		time.Sleep(10 * time.Second)
		if len(late) > 0 || len(drained) > 0 {
			t.Fatalf("while a message is in DATA: %d late look-ups answered, %d drained", len(late), len(drained))
		}
		d.play(t, process(1), accepted)
		if err := <-drained; err != nil {
			t.Errorf("Drain: %v", err)
		}
		if len(late) > 0 {
			t.Error("a look-up was answered by a service that stops")
		}
		stop()
		if got := <-late; got.Status == OK {
			t.Errorf("late look-up: %v", got)
		}
	})
}

func TestDrainInTime(t *testing.T) {
	d := newDesk(limit.Rate{N: 30, Per: time.Minute})
	d.Lease(t.Context(), process(1), "erp@contoso.com")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := d.Drain(ctx); err == nil {
		t.Error("Drain said nothing about the delivery that had not ended")
	}
}

// TestSweepOfDeadProcess takes back the lease of a process that has gone.
func TestSweepOfDeadProcess(t *testing.T) {
	d := newDesk(limit.Rate{N: 30, Per: time.Minute})
	d.Lease(t.Context(), Caller{PID: 1<<31 - 1}, "erp@contoso.com") // above any pid_max
	d.Lease(t.Context(), Caller{PID: 1}, "erp@contoso.com")         // lives
	d.sweep(t.Context(), time.Now())
	if u := d.usage(t); u.Leases != 1 {
		t.Errorf("usage %+v, want one lease out", u)
	}
}

// TestProcessGoneBeforeTheVerdict: smtp(8) is killed after the end of a message. Exchange Online counts
// it when it decides, which may be seconds later, so its place in the minute begins no earlier.
func TestProcessGoneBeforeTheVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(limit.Rate{N: 1, Per: time.Minute})
		dead := Caller{PID: 1<<31 - 1}
		if r := d.Lease(t.Context(), dead, "erp@contoso.com"); r.Status != OK {
			t.Fatalf("look-up: %+v", r)
		}
		d.play(t, dead, authOK, mailOK, rcptOK, dataOK)
		began := time.Now()
		for range 9 { // the service looks once a second
			d.sweep(t.Context(), time.Now())
			if u := d.usage(t); u.Leases != 1 {
				t.Fatalf("after %v: %+v, want the lease out", time.Since(began), u)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(time.Second)
		d.sweep(t.Context(), time.Now())
		if u := d.usage(t); u.Leases != 0 || u.Messages != 1 {
			t.Errorf("usage %+v, want one message", u)
		}
		time.Sleep(59 * time.Second) // 69 s after the end of the message, and 59 s after it was booked
		if u := d.usage(t); u.Messages != 1 {
			t.Errorf("a minute after it was sent: %+v, want it to count still", u)
		}
	})
}

// TestBusyAtAuth: a temporary answer to AUTH says nothing of the token and of the mailbox.
func TestBusyAtAuth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(limit.Rate{N: 30, Per: time.Minute})
		d.Lease(t.Context(), process(1), "billing@contoso.com")
		d.play(t, process(1), "421 4.3.2 Service not available")
		if r := d.Lease(t.Context(), process(2), "billing@contoso.com"); r.Status != OK {
			t.Errorf("the next look-up is answered %q", r.Value)
		}
		if n := len(d.tokens.discarded); n != 0 {
			t.Errorf("%d tokens were discarded", n)
		}
	})
}

func TestClassify(t *testing.T) {
	for _, tc := range []struct {
		line  string
		class replies.Class
	}{
		{accepted, replies.Accepted}, {tooMany, replies.Concurrency}, {quota, replies.Quota}, {denied, replies.SendAs}, {auth535, replies.Auth}, {noAuth, replies.NoAuth},
		{"432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded [Hostname=X]", replies.Concurrency},
		{"554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed to process message", replies.SendAs},
		{"550 5.7.60 SMTP; Client does not have permissions to send as this sender [host]", replies.SendAs},
		{"554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded", replies.Full},
		{"430 4.2.0 STOREDRV; mailbox logon failure; STOREDRV.Submission.Exception:ConnectionFailedTransientException", replies.Logon},
		{"535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled", replies.AuthOff},
		{"451 4.7.0 Temporary server error. Please try again later. PRX2", replies.Busy},
		{"450 4.1.1 x", replies.Temporary}, {"552 5.3.4 Message size exceeds fixed maximum message size", replies.Permanent}, {"", replies.Unreadable}, {"hello", replies.Unreadable},
	} {
		got := replies.Line(tc.line).Class
		if got != tc.class {
			t.Errorf("lookUp(%.60q) = %s, want %s", tc.line, got, tc.class)
		}
		if hint := replies.Explain(tc.line).Hint(); (hint == "") != (got == replies.Accepted || got == replies.Unreadable) {
			t.Errorf("%.60q is explained as %q", tc.line, hint)
		}
	}
	if got := fmt.Sprintf("%s %s %s", code("25x"), code(""), code("250 x")); got != "none none 250" {
		t.Errorf("codes %s", got)
	}
}

// TestRoutes: the maps by which Postfix finds the way out. smtpd(8) asks about "<>" for every
// recipient.
func TestRoutes(t *testing.T) {
	maps := newDesk(limit.Microsoft().Messages).Maps()
	for _, tc := range []struct{ name, key, want string }{
		{"transport", "billing@contoso.com", "smtp:[smtp.office365.com]:587"},
		{"transport", "stranger@contoso.com", ""},
		{"transport", "<>", ""},
		{"route", "boss@contoso.com", "sendas-inside:[contoso-com.mail.protection.outlook.com]:25"},
		{"route", "someone@fabrikam.com", ""},
		{"route", "contoso.com", ""},
		{"route", "@contoso.com", ""},
		{"route", "*", ""},
	} {
		got := maps[tc.name](t.Context(), process(1), tc.key)
		if want := (Result{Status: NotFound}); tc.want == "" && got != want || tc.want != "" && got != (Result{Status: OK, Value: tc.want}) {
			t.Errorf("%s %q: %v, want %q", tc.name, tc.key, got, tc.want)
		}
	}
}

// TestMadeUpMailboxes: a refused AUTH of a sender that a pattern allows does not take away the
// token that just served another one; a token that never served anybody goes.
func TestMadeUpMailboxes(t *testing.T) {
	d := newDesk(limit.Microsoft().Messages)
	mailbox := func(address string) *Mailbox {
		return &Mailbox{Address: address, Label: "*@contoso.com", Limits: d.limits, Tokens: d.tokens}
	}
	d.Use(fakeDirectory{"a@contoso.com": mailbox("a@contoso.com"), "no-such@contoso.com": mailbox("no-such@contoso.com")})
	try := func(sender, auth string) {
		t.Helper()
		if r := d.Lease(t.Context(), process(1), sender); r.Status != OK || r.Value != sender+":"+string(theToken) {
			t.Fatalf("look-up of %s: %v %q", sender, r.Status, r.Value)
		}
		d.Reply(t.Context(), process(1), auth)
		d.Reply(t.Context(), process(1), "220 next session")
	}
	const refused = "535 5.7.3 Authentication unsuccessful [LO4P302CA0005.GBRP302.PROD.OUTLOOK.COM]"
	try("no-such@contoso.com", refused)
	if n := len(d.tokens.discarded); n != 1 {
		t.Fatalf("%d tokens thrown away, want the one that never served", n)
	}
	try("a@contoso.com", "235 2.7.0 Authentication successful")
	if r := d.Lease(t.Context(), process(1), "no-such@contoso.com"); r.Status != Temp || !strings.Contains(r.Value, "rests for 5m0s: Exchange Online refused AUTH") {
		t.Errorf("with the same token: %v %q", r.Status, r.Value)
	}
	d.Use(fakeDirectory{"a@contoso.com": mailbox("a@contoso.com"), "neither@contoso.com": mailbox("neither@contoso.com")})
	try("neither@contoso.com", refused)
	if n := len(d.tokens.discarded); n != 1 {
		t.Errorf("%d tokens thrown away, want the good one to stay", n)
	}
	if n := len(d.lines); n != 0 {
		t.Errorf("%d lines are left without anybody in them", n)
	}
}

// TestMinLife: a submission host that refuses tokens near their end gets none.
func TestMinLife(t *testing.T) {
	d := newDesk(limit.Microsoft().Messages)
	m := &Mailbox{Address: "erp@contoso.com", Label: "erp@contoso.com", Limits: d.limits, Tokens: d.tokens, MinLife: 2 * time.Hour} // theirs has one
	d.Use(fakeDirectory{"erp@contoso.com": m})
	if r := d.Lease(t.Context(), process(1), "erp@contoso.com"); r.Status != Temp || !strings.Contains(r.Value, "the submission host takes none with less than 2h0m0s") {
		t.Errorf("%v %q", r.Status, r.Value)
	}
	if n := d.Sessions(); n != 0 {
		t.Errorf("%d leases are out", n)
	}
	m.MinLife = entra.MinLife
	if r := d.Lease(t.Context(), process(1), "erp@contoso.com"); r.Status != OK {
		t.Errorf("%v %q", r.Status, r.Value)
	}
}

// TestRest: a refused AUTH is tried once more with a fresh token, then the mailbox rests; a
// switched-off SMTP AUTH costs no token. A full mailbox rests too, and its queued mail is told why.
func TestRest(t *testing.T) {
	d := newDesk(limit.Microsoft().Messages)
	refuse := func(reply string) {
		t.Helper()
		if r := d.Lease(t.Context(), process(1), "erp@contoso.com"); r.Status != OK {
			t.Fatalf("%v %q", r.Status, r.Value)
		}
		d.play(t, process(1), reply)
	}
	refuse("535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. Visit https://aka.ms/smtp_auth_disabled for more information. [x]")
	if n := len(d.tokens.discarded); n != 0 {
		t.Errorf("%d tokens thrown away, though none was to blame", n)
	}
	r := d.Lease(t.Context(), process(1), "billing@contoso.com")
	if r.Status != Temp || !strings.Contains(r.Value, "rests for 5m0s: Exchange Online refused AUTH") || len(r.Value) > maxReason {
		t.Errorf("after a refused AUTH: %v %q", r.Status, r.Value)
	}
	d = newDesk(limit.Microsoft().Messages)
	for range 2 {
		if r := d.Lease(t.Context(), process(1), "erp@contoso.com"); r.Status != OK {
			t.Fatalf("%v %q", r.Status, r.Value)
		}
		d.play(t, process(1), authOK, mailOK, rcptOK, dataOK, accepted)
	}
	if r := d.Lease(t.Context(), process(1), "erp@contoso.com"); r.Status != OK {
		t.Fatalf("%v %q", r.Status, r.Value)
	}
	d.play(t, process(1), authOK, mailOK, rcptOK, dataOK, "554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded")
	r = d.Lease(t.Context(), process(1), "erp@contoso.com")
	if r.Status != Temp || !strings.Contains(r.Value, "it rests for 15m0s, ") || len(r.Value) > maxReason {
		t.Errorf("after a full mailbox: %v %q", r.Status, r.Value)
	}
}
