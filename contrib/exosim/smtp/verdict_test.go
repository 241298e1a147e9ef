package smtp

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
)

const (
	accepted   = visitor.Accepted
	concurrent = "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information. [Hostname=*.PROD.OUTLOOK.COM]"
	quota      = "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed to process message due to a permanent exception with message " +
		"The message can't be submitted because the sender's submission quota was exceeded. [Hostname=*]"
	noFrom = "550 5.7.512 Access denied, message must be RFC 5322 section 3.6.2 compliant and include a valid From address [Hostname=*]"
	manyOf = "550 5.1.20 Multiple From addresses are not allowed without Sender address [Hostname=*]"
	busy   = "451 4.7.0 Temporary server error. Please try again later. PRX2 [Hostname=*]"
	full   = visitor.Full
	logon  = "430 4.2.0 STOREDRV; mailbox logon failure; STOREDRV.Submission.Exception:ConnectionFailedTransientException.MapiExceptionLogonFailed; " +
		"Failed to process message due to a transient exception with message [BeginDiagnosticData]Cannot open mailbox. Server = *.PROD.OUTLOOK.COM[EndDiagnosticData] [Hostname=*]"
)

func mayNotBe(as string) string {
	return "554 5.2.252 SendAsDenied; erp@contoso.com not allowed to send as " + as + "; STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; " +
		"Failed to process message due to a permanent exception with message [BeginDiagnosticData]Cannot submit message. 0.35250:1F009983, 1.36674:0A000000*[EndDiagnosticData] [Hostname=*]"
}

func TestVerdicts(t *testing.T) {
	for _, tc := range []struct {
		name           string
		change         func(*siteConfig)
		faults         Faults
		sender, header string
		want           string
	}{
		{"itself", nil, Faults{}, "erp@contoso.com", "From: ERP <erp@contoso.com>" + visitor.MessageID, accepted},
		{"alias", nil, Faults{}, "SAP@contoso.com", "From: sap@contoso.com" + visitor.MessageID, accepted},
		{"Send As", nil, Faults{}, "billing@contoso.com", "From: billing@contoso.com" + visitor.MessageID, accepted},
		{"two of one's own with Sender", nil, Faults{}, "erp@contoso.com", "From: erp@contoso.com, sap@contoso.com\nSender: erp@contoso.com" + visitor.MessageID, accepted},
		{"encoded name", nil, Faults{}, "erp@contoso.com", "From: =?KOI-42?B?w4k=?= <erp@contoso.com>" + visitor.MessageID, accepted},
		{"Message-ID of the service", nil, Faults{}, "erp@contoso.com", "From: erp@contoso.com", "250 2.0.0 OK <*@*.prod.outlook.com> [Hostname=*]"},
		{"Message-ID without brackets", nil, Faults{}, "erp@contoso.com", "From: erp@contoso.com\nMessage-ID: 1@device", "250 2.0.0 OK <*@*.prod.outlook.com> [Hostname=*]"},

		{"From of another", nil, Faults{}, "erp@contoso.com", "From: ceo@contoso.com" + visitor.MessageID, mayNotBe("ceo@contoso.com")},
		{"From in another's group", nil, Faults{}, "erp@contoso.com", "From: all: erp@contoso.com, ceo@contoso.com;\nSender: erp@contoso.com" + visitor.MessageID, mayNotBe("ceo@contoso.com")},
		{"plus address", nil, Faults{}, "erp@contoso.com", "From: erp+1@contoso.com" + visitor.MessageID, mayNotBe("erp+1@contoso.com")},
		{"envelope of another", nil, Faults{}, "ceo@contoso.com", "From: erp@contoso.com" + visitor.MessageID, mayNotBe("ceo@contoso.com")},
		{"another mailbox of the app", nil, Faults{}, "scan@contoso.com", "From: scan@contoso.com" + visitor.MessageID, mayNotBe("scan@contoso.com")},
		{"null sender", nil, Faults{}, "", "From: erp@contoso.com" + visitor.MessageID, mayNotBe("<>")},
		{"Sender of another", nil, Faults{}, "erp@contoso.com", "From: erp@contoso.com\nSender: ceo@contoso.com" + visitor.MessageID, mayNotBe("ceo@contoso.com")},
		{"second of two", nil, Faults{}, "erp@contoso.com", "From: erp@contoso.com, ceo@contoso.com\nSender: erp@contoso.com" + visitor.MessageID, mayNotBe("ceo@contoso.com")},
		{"older wording", func(c *siteConfig) { c.SendAsText = "5.2.0" }, Faults{}, "erp@contoso.com", "From: ceo@contoso.com" + visitor.MessageID,
			"554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed to process message due to a permanent exception with message Cannot submit message. 0.35250:*"},
		{"oldest wording", func(c *siteConfig) { c.SendAsText = "5.7.60" }, Faults{}, "erp@contoso.com", "From: ceo@contoso.com" + visitor.MessageID,
			"550 5.7.60 SMTP; Client does not have permissions to send as this sender [*]"},

		{"two without Sender", nil, Faults{}, "erp@contoso.com", "From: erp@contoso.com, sap@contoso.com" + visitor.MessageID, manyOf},
		{"two From fields", nil, Faults{}, "erp@contoso.com", "From: erp@contoso.com\nFrom: erp@contoso.com" + visitor.MessageID, manyOf},
		{"two From fields with Sender", nil, Faults{}, "erp@contoso.com", "From: erp@contoso.com\nFrom: erp@contoso.com\nSender: erp@contoso.com" + visitor.MessageID, noFrom},
		{"no From", nil, Faults{}, "erp@contoso.com", "Subject: x" + visitor.MessageID, noFrom},
		{"no header", nil, Faults{}, "erp@contoso.com", "no header", noFrom},
		{"empty From", nil, Faults{}, "erp@contoso.com", "From: " + visitor.MessageID, noFrom},
		{"From without domain", nil, Faults{}, "erp@contoso.com", "From: erp" + visitor.MessageID, noFrom},
		{"unquoted @", nil, Faults{}, "erp@contoso.com", "From: erp@floor 3 <erp@contoso.com>" + visitor.MessageID, noFrom},
		{"raw 8-bit", nil, Faults{}, "erp@contoso.com", "From: B\xfcro <erp@contoso.com>" + visitor.MessageID, noFrom},
		{"malformed Sender", nil, Faults{}, "erp@contoso.com", "From: erp@contoso.com\nSender: erp" + visitor.MessageID, noFrom},

		{"mailbox full", func(c *siteConfig) { c.Mailboxes[0].Full = true }, Faults{}, "erp@contoso.com", "From: erp@contoso.com" + visitor.MessageID, full},
		{"given refusal", func(c *siteConfig) { c.Mailboxes[0].Refusal = "550 5.1.8 Access denied" }, Faults{}, "erp@contoso.com", "From: ceo@contoso.com" + visitor.MessageID, "550 5.1.8 Access denied [*]"},
		{"all mailboxes full", nil, Faults{MailboxFull: true}, "erp@contoso.com", "From: erp@contoso.com" + visitor.MessageID, full},
		{"not replicated", func(c *siteConfig) { c.Mailboxes[0].NoLogon = true }, Faults{}, "erp@contoso.com", "From: erp@contoso.com" + visitor.MessageID, logon},
		{"no logon anywhere", nil, Faults{NoLogon: true}, "erp@contoso.com", "From: erp@contoso.com" + visitor.MessageID, logon},
		{"quota", func(c *siteConfig) { c.Recipients = 1 }, Faults{}, "erp@contoso.com", "From: erp@contoso.com" + visitor.MessageID, quota},
		{"last of the quota", func(c *siteConfig) { c.Recipients = 2 }, Faults{}, "erp@contoso.com", "From: erp@contoso.com" + visitor.MessageID, accepted},
		{"quota by fault", nil, Faults{QuotaAfter: 1}, "erp@contoso.com", "From: erp@contoso.com" + visitor.MessageID, quota},
		{"busy", nil, Faults{Busy: 1}, "erp@contoso.com", "From: erp@contoso.com" + visitor.MessageID, busy},
		{"432 by fault", nil, Faults{Concurrent: 1}, "erp@contoso.com", "From: erp@contoso.com" + visitor.MessageID, concurrent},
		{"432 at random, for all", nil, Faults{ConcurrentShare: 1}, "erp@contoso.com", "From: erp@contoso.com" + visitor.MessageID, concurrent},

		// The order of the checks: each row breaks the row before as well.
		{"order: quota", nil, Faults{QuotaAfter: 1}, "erp@contoso.com", "From: erp@contoso.com" + visitor.MessageID, quota},
		{"order: Send As", nil, Faults{QuotaAfter: 1}, "erp@contoso.com", "From: ceo@contoso.com" + visitor.MessageID, mayNotBe("ceo@contoso.com")},
		{"order: full", nil, Faults{QuotaAfter: 1, MailboxFull: true}, "erp@contoso.com", "From: ceo@contoso.com" + visitor.MessageID, full},
		{"order: logon", nil, Faults{QuotaAfter: 1, MailboxFull: true, NoLogon: true}, "erp@contoso.com", "From: ceo@contoso.com" + visitor.MessageID, logon},
		{"order: 432", nil, Faults{QuotaAfter: 1, MailboxFull: true, NoLogon: true, Concurrent: 1}, "erp@contoso.com", "From: ceo@contoso.com" + visitor.MessageID, concurrent},
	} {
		s := startTest(t, tc.change)
		setFaults(t, s, tc.faults)
		got := login(t, s, "erp@contoso.com").Send(tc.sender, tc.header, 2)
		if !visitor.Like(got, tc.want) {
			t.Errorf("%s: got %s, want %s", tc.name, got, tc.want)
		}
		checkCapture(t, s, tc.name, tc.sender, got)
	}
}

// checkCapture looks at the only message of a test: the capture has it whatever
// the verdict.
func checkCapture(t *testing.T, s *site, name, sender, reply string) {
	t.Helper()
	all := s.Messages()
	if len(all) != 1 {
		t.Fatalf("%s: captured %d messages", name, len(all))
	}
	m := all[0]
	if m.ID != 1 || m.Mailbox != "erp@contoso.com" || m.Sender != sender || !slices.Equal(m.Recipients, []string{"r0@fabrikam.com", "r1@fabrikam.com"}) ||
		m.TLS != "TLS 1.3" || m.Helo != "relay.example.com" || len(m.Session) != 16 || m.Reply != reply || m.Verdict.Before(m.Dot) || m.Dot.IsZero() ||
		!strings.HasSuffix(string(m.Data), "\r\n\r\nbody\r\n") {
		t.Errorf("%s: captured %+v", name, m)
	}
	u := s.Usage("ERP@contoso.com")
	if m.Accepted() && (u.Accepted != 1 || u.Recipients != 2 || u.WorstRecipients != 2 || u.TotalRecipients != 2 || u.WorstByDot != 1 || u.WorstByVerdict != 1 || len(u.Refused) != 0) {
		t.Errorf("%s: usage %+v", name, u)
	}
	if !m.Accepted() && (u.Accepted+u.Recipients+u.WorstByDot+u.WorstByVerdict != 0 || u.Refused[reply[:3]] != 1) {
		t.Errorf("%s: usage %+v", name, u)
	}
}

// TestConcurrency: three messages of a mailbox may be under way; who has begun
// as the fourth is refused unless a place is free at its end.
func TestConcurrency(t *testing.T) {
	s := startTest(t, nil)
	const end = "From: erp@contoso.com\r\nMessage-ID: <1@device>\r\n\r\n."
	var k [4]*visitor.Client
	for i := range k {
		k[i] = login(t, s, "erp@contoso.com")
		k[i].Begin("erp@contoso.com", 1)
	}
	k[3].Want(end, concurrent)
	k[3].Begin("erp@contoso.com", 1)
	k[0].Want(end, accepted)
	k[3].Want(end, accepted)
	k[1].Want(end, accepted)
	other := login(t, s, "scan@contoso.com")
	if got := other.Send("scan@contoso.com", "From: scan@contoso.com"+visitor.MessageID, 1); got != accepted {
		t.Errorf("another mailbox: %s", got)
	}
	// A place comes back from a connection that just ends.
	k[2].Conn.Close()
	for s.parallel("erp@contoso.com") > 0 {
		time.Sleep(time.Millisecond)
	}
	for _, i := range []int{0, 1, 3} {
		k[i].Begin("erp@contoso.com", 1)
	}
	for _, i := range []int{3, 1, 0} {
		k[i].Want(end, accepted)
	}
	if u := s.Usage("erp@contoso.com"); u.MaxInData != 4 || u.MaxSessions != 4 || u.Refused["432"] != 1 || u.Accepted != 6 {
		t.Errorf("usage %+v", u)
	}
}

// TestSessionsEnd: a session that said QUIT is not counted with the next one.
func TestSessionsEnd(t *testing.T) {
	s := startTest(t, nil)
	for range 5 {
		login(t, s, "erp@contoso.com").Say("QUIT")
	}
	if u := s.Usage("erp@contoso.com"); u.MaxSessions != 1 {
		t.Errorf("%d sessions at a time, want 1", u.MaxSessions)
	}
}

func TestRate(t *testing.T) {
	const burst = 7
	for _, tc := range []struct {
		mode     RateMode
		window   time.Duration
		last     string
		worst    int
		accepted int
	}{
		{RateOff, time.Hour, accepted, burst, burst},
		{RateReject, time.Hour, busy, 3, 3},
		{RateDelay, 20 * time.Millisecond, accepted, 3, burst},
	} {
		s := startTest(t, func(c *siteConfig) { c.Messages, c.Window, c.EnforceRate = 3, tc.window, tc.mode })
		k := login(t, s, "erp@contoso.com")
		last := ""
		for range burst {
			last = k.Send("erp@contoso.com", "From: erp@contoso.com"+visitor.MessageID, 1)
		}
		u := s.Usage("erp@contoso.com")
		if !visitor.Like(last, tc.last) || u.Accepted != tc.accepted || u.Refused["451"] != burst-tc.accepted {
			t.Errorf("%s: %+v, last reply %s", tc.mode, u, last)
		}
		// A slow machine may spread messages by itself, but never press them together.
		if u.WorstByVerdict > tc.worst || tc.mode != RateDelay && u.WorstByVerdict != tc.worst {
			t.Errorf("%s: worst window %d, want %d", tc.mode, u.WorstByVerdict, tc.worst)
		}
		all := s.Messages()
		if tc.mode == RateDelay && all[burst-1].Verdict.Sub(all[0].Verdict) < 2*tc.window {
			t.Errorf("%d messages in %v, at most 3 in %v were allowed", burst, all[burst-1].Verdict.Sub(all[0].Verdict), tc.window)
		}
	}
}

// TestQuotaWindow: recipients of the whole window count, and only of accepted
// messages.
func TestQuotaWindow(t *testing.T) {
	s := startTest(t, func(c *siteConfig) { c.Recipients = 5 })
	k := login(t, s, "erp@contoso.com")
	for i, tc := range []struct {
		rcpts int
		want  string
	}{{2, accepted}, {2, accepted}, {2, quota}, {1, accepted}, {1, quota}} {
		if got := k.Send("erp@contoso.com", "From: erp@contoso.com"+visitor.MessageID, tc.rcpts); !visitor.Like(got, tc.want) {
			t.Errorf("message %d: %s", i, got)
		}
	}
	s = startTest(t, func(c *siteConfig) { c.Recipients, c.RecipientWindow = 1, time.Nanosecond })
	k = login(t, s, "erp@contoso.com")
	for range 2 {
		if got := k.Send("erp@contoso.com", "From: erp@contoso.com"+visitor.MessageID, 1); got != accepted {
			t.Errorf("after the window: %s", got)
		}
	}
}

// TestDrops: hanging up at each of the three moments, and what is known of the
// message then.
func TestDrops(t *testing.T) {
	for _, tc := range []struct {
		name               string
		faults             Faults
		captured, accepted int
		refused            int
	}{
		{"in DATA", Faults{DropInData: 1}, 0, 0, 0},
		{"before it is accepted", Faults{DropBeforeAccept: 1}, 1, 0, 1},
		{"after it was accepted", Faults{DropAfterData: 1}, 1, 1, 0},
	} {
		s := startTest(t, nil)
		setFaults(t, s, tc.faults)
		if got := login(t, s, "erp@contoso.com").Send("erp@contoso.com", "From: erp@contoso.com"+visitor.MessageID, 1); got != "EOF" {
			t.Errorf("%s: got %s", tc.name, got)
		}
		all, u := s.Messages(), s.Usage("erp@contoso.com")
		if len(all) != tc.captured || u.Accepted != tc.accepted || u.Refused["dropped"] != tc.refused || len(all) == 1 && !all[0].Dropped {
			t.Errorf("%s: captured %+v, usage %+v", tc.name, all, u)
		}
		if got := login(t, s, "erp@contoso.com").Send("erp@contoso.com", "From: erp@contoso.com"+visitor.MessageID, 1); got != accepted {
			t.Errorf("%s: the next one: %s", tc.name, got)
		}
	}
}

func TestRefuseConnect(t *testing.T) {
	s := startTest(t, nil)
	setFaults(t, s, Faults{RefuseConnect: true})
	k := dial(t, s)
	if got := k.Read(); got != "421 4.3.2 Service not available" {
		t.Errorf("got %s", got)
	}
	if got := k.Read(); got != "EOF" {
		t.Errorf("then %s", got)
	}
	setFaults(t, s, Faults{})
	login(t, s, "erp@contoso.com")
}

// TestSetters change what runs.
func TestSetters(t *testing.T) {
	s := startTest(t, nil)
	k := login(t, s, "erp@contoso.com")
	s.SetMailbox("erp@contoso.com", func(m *directory.Mailbox) { m.Address, m.SendAs = "other@contoso.com", []string{"ceo@contoso.com"} })
	s.SetMailbox("nobody@contoso.com", func(*directory.Mailbox) { t.Error("a mailbox that does not exist was changed") })
	if got := k.Send("ceo@contoso.com", "From: ceo@contoso.com"+visitor.MessageID, 1); got != accepted {
		t.Errorf("with a new Send As right: %s", got)
	}
	if got := k.Send("billing@contoso.com", "From: billing@contoso.com"+visitor.MessageID, 1); !visitor.Like(got, mayNotBe("billing@contoso.com")) {
		t.Errorf("without the old one: %s", got)
	}
	s.SetSMTPAuthDisabled(true)
	if got := greet(t, s).Say(visitor.XOAUTH2("erp@contoso.com", s.Issue(app1, directory.Exchange, time.Hour))); !strings.Contains(got, "disabled for the Tenant") {
		t.Errorf("switched off: %s", got)
	}
}

func TestWaitAndForget(t *testing.T) {
	s := startTest(t, nil)
	got := make(chan error, 1)
	go func() { got <- s.WaitAccepted(t.Context(), 2) }()
	k := login(t, s, "erp@contoso.com")
	for range 2 {
		k.Send("erp@contoso.com", "From: erp@contoso.com"+visitor.MessageID, 1)
	}
	if err := <-got; err != nil {
		t.Errorf("waiting for two: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.WaitAccepted(ctx, 3); err != context.Canceled {
		t.Errorf("waiting for a third: %v", err)
	}
	s.Forget()
	if u := s.Usage("erp@contoso.com"); len(s.Messages()) != 0 || u.Accepted+u.WorstByDot+u.Recipients != 0 || u.MaxSessions != 1 {
		t.Errorf("after Forget: %+v", u)
	}
	k.Send("erp@contoso.com", "From: erp@contoso.com"+visitor.MessageID, 1)
	if all := s.Messages(); len(all) != 1 || all[0].ID != 3 {
		t.Errorf("a number was given twice: %+v", all)
	}
}

// TestParallelMailboxes is for the race detector: all at once, and readers beside.
func TestParallelMailboxes(t *testing.T) {
	s := startTest(t, func(c *siteConfig) { c.Connections = 10 })
	users := []string{"erp@contoso.com", "scan@contoso.com", "hr@contoso.com", "erp@contoso.com"}
	const each = 10
	done := make(chan string, len(users))
	s.SetApp(app1, func(a *directory.App) { a.RBACScope = []string{"*"} })
	for _, user := range users {
		k := login(t, s, user)
		go func() {
			bad := ""
			for i := range each {
				if got := k.Send(user, fmt.Sprintf("From: %s\nMessage-ID: <%d@x>", user, i), 1); got[0] != '2' {
					bad = got
				}
			}
			done <- bad
		}()
	}
	for range users {
		s.Usage("erp@contoso.com")
		s.Mailboxes()
		if bad := <-done; bad != "" {
			t.Error(bad)
		}
	}
	if n := len(s.Messages()); n != each*len(users) {
		t.Errorf("%d messages", n)
	}
}

// BenchmarkMessage is a message as Postfix sends it: a connection each.
func BenchmarkMessage(b *testing.B) {
	s := startTest(b, nil)
	token := s.Issue(app1, directory.Exchange, time.Hour)
	for b.Loop() {
		k := greet(b, s)
		k.Want(visitor.XOAUTH2("erp@contoso.com", token), visitor.AuthOK)
		if got := k.Send("erp@contoso.com", "From: erp@contoso.com"+visitor.MessageID, 1); got != accepted {
			b.Fatal(got)
		}
		k.Say("QUIT")
		k.Conn.Close()
	}
}
