package milter

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	protocol "github.com/d--j/go-milter"

	"github.com/sendas/sendas/milter/quota"
	"github.com/sendas/sendas/policy/address"
	"github.com/sendas/sendas/policy/limit"
)

// waitFor waits for what another goroutine does.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// opens drops from a reply when the limit opens, which depends on the time of day.
func opens(reply string) string {
	text, _, _ := strings.Cut(reply, "; it opens again in ")
	return text
}

func perDay(n int) []limit.Rate { return []limit.Rate{{N: n, Per: 24 * time.Hour}} }

// newQuotas limits the printers.
func newQuotas(l quota.ClientLimit, identities ...quota.IdentityLimit) *quota.Desk {
	q := quota.NewDesk(quota.New())
	q.Use(map[string]quota.ClientLimit{"printers": l}, identities...)
	return q
}

// countedOf returns what a key has used of its first limit, and what is reserved.
func countedOf(q *quota.Desk, key string) (used, reserved int) {
	for _, u := range q.Used(key, time.Now()) {
		return u.Counted, u.Reserved
	}
	return 0, 0
}

func (s *site) counted(t *testing.T, key string, used, reserved int) {
	t.Helper()
	waitFor(t, fmt.Sprintf("%s: %d counted and %d reserved", key, used, reserved), func() bool {
		u, r := countedOf(s.Quotas, key)
		return u == used && r == reserved
	})
}

// TestManyRecipients: of 600 recipients, the 501st is the first that is refused, and the message
// goes on with the others.
func TestManyRecipients(t *testing.T) {
	for _, tc := range []struct {
		on   quota.OnLimit
		want string
	}{
		{quota.DeferOver, `451 4.7.1 client "printers" may send to 500 recipients a day`},
		{quota.RejectOver, `550 5.7.1 client "printers" may send to 500 recipients a day`},
	} {
		s := startWith(t, newQuotas(quota.ClientLimit{Rates: quota.Rates{Recipients: perDay(500)}, OnLimit: tc.on}))
		c, _ := s.dial("10.2.0.9", "")
		if act, err := c.Mail("<hr@contoso.com>", ""); err != nil || act.Type != protocol.ActionContinue {
			t.Fatalf("MAIL: %+v, %v", act, err)
		}
		for i := range 600 {
			act, err := c.Rcpt(fmt.Sprintf("<r%d@example.net>", i), "")
			if err != nil {
				t.Fatal(err)
			}
			if got := opens(act.SMTPReply); act.StopProcessing() != (i >= 500) || i >= 500 && got != tc.want {
				t.Fatalf("%s: recipient %d is answered %q", tc.on, i+1, got)
			}
		}
		if got := s.finish(c); got.Type != protocol.ActionAccept {
			t.Errorf("%s: the message with the first 500: %+v", tc.on, got)
		}
		s.counted(t, "printers", 500, 0)
		if log := s.log.String(); !strings.Contains(log, "client=printers") || !strings.Contains(log, "recipients=500 action=accept") || !strings.Contains(log, "refused=100") {
			t.Errorf("%s: the log says %s", tc.on, log)
		}
		c.Close()
	}
}

// finish plays a message from DATA on.
func (s *site) finish(c *protocol.ClientSession) *protocol.Action {
	s.t.Helper()
	for _, step := range []func() (*protocol.Action, error){
		c.DataStart, func() (*protocol.Action, error) { return c.HeaderField("From", "hr@contoso.com", nil) },
		func() (*protocol.Action, error) { return c.HeaderField("Date", "Sat, 21 Nov 2026 08:00:00 +0000", nil) },
		func() (*protocol.Action, error) { return c.HeaderField("Message-ID", "<1@x>", nil) },
		c.HeaderEnd, func() (*protocol.Action, error) { return c.BodyChunk([]byte("body\r\n")) },
	} {
		if act, err := step(); err != nil || act.StopProcessing() {
			s.t.Fatalf("DATA: %+v, %v", act, err)
		}
	}
	_, act, err := c.End()
	if err != nil {
		s.t.Fatal(err)
	}
	return act
}

// TestRefusedSender: a client over its messages is refused at MAIL, and one that has a place takes
// it until its message ends.
func TestRefusedSender(t *testing.T) {
	s := startWith(t, newQuotas(quota.ClientLimit{Rates: quota.Rates{Messages: perDay(1)}, OnLimit: quota.DeferOver}))
	first, _ := s.dial("10.2.0.9", "")
	s.begin(first, "<hr@contoso.com>")
	second, _ := s.dial("10.2.0.10", "")
	const want = `451 4.7.1 client "printers" may send 1 message a day`
	if got := opens(s.send(second, "<hr@contoso.com>", "From: hr@contoso.com", id, date)); got != want {
		t.Errorf("while another has the place: %q, want %q", got, want)
	}
	if err := first.Abort(nil); err != nil { // RSET
		t.Fatal(err)
	}
	s.counted(t, "printers", 0, 0)
	if got := s.send(second, "<hr@contoso.com>", "From: hr@contoso.com", id, date); got != "" {
		t.Errorf("after RSET of the other: %q", got)
	}
	if got := opens(s.send(first, "<hr@contoso.com>", "From: hr@contoso.com", id, date)); got != want {
		t.Errorf("after the other's message: %q, want %q", got, want)
	}
	s.counted(t, "printers", 1, 0)
	if n := strings.Count(s.log.String(), `msg="sender refused" client=printers addr=10.2.0.`); n != 2 {
		t.Errorf("%d lines about refused senders, want 2:\n%s", n, s.log)
	}
}

// TestNothingLeaks: however a message ends that is not accepted, its places come back.
func TestNothingLeaks(t *testing.T) {
	steps := []struct {
		name string
		do   func(c *protocol.ClientSession) (*protocol.Action, error)
	}{
		{"MAIL", func(c *protocol.ClientSession) (*protocol.Action, error) { return c.Mail("<hr@contoso.com>", "") }},
		{"RCPT", func(c *protocol.ClientSession) (*protocol.Action, error) { return c.Rcpt("<a@example.net>", "") }},
		{"a refused RCPT", func(c *protocol.ClientSession) (*protocol.Action, error) { return c.Rcpt("<b@example.net>", "") }},
		{"DATA", func(c *protocol.ClientSession) (*protocol.Action, error) { return c.DataStart() }},
		{"From", func(c *protocol.ClientSession) (*protocol.Action, error) {
			return c.HeaderField("From", "ceo@fabrikam.com", nil)
		}},
		{"the header's end", func(c *protocol.ClientSession) (*protocol.Action, error) { return c.HeaderEnd() }},
		{"the body", func(c *protocol.ClientSession) (*protocol.Action, error) { return c.BodyChunk([]byte("body")) }},
		{"the end", func(c *protocol.ClientSession) (*protocol.Action, error) { _, act, err := c.End(); return act, err }},
	}
	limits := quota.ClientLimit{Rates: quota.Rates{Recipients: perDay(1), Messages: perDay(10)}, OnLimit: quota.RejectOver}
	for n := 1; n <= len(steps); n++ {
		for _, how := range []string{"drop", "reset", "shutdown"} {
			q := quota.NewDesk(quota.New())
			q.Use(map[string]quota.ClientLimit{"monitoring": limits}) // which rejects what is not authorised
			s := startWith(t, q)
			c, _ := s.dial("192.0.2.1", "nagios")
			for _, step := range steps[:n] {
				if _, err := step.do(c); err != nil {
					t.Fatalf("%s: %v", step.name, err)
				}
			}
			switch how {
			case "drop":
				c.Close()
			case "reset":
				if err := c.Abort(nil); err != nil {
					t.Fatal(err)
				}
			case "shutdown":
				s.ln.Close()
				_ = s.Shutdown(canceled(t))
			}
			waitFor(t, fmt.Sprintf("the places of a message that ended after %s by %s", steps[n-1].name, how), func() bool {
				for _, u := range q.Used("monitoring", time.Now()) {
					if u.Counted != 0 || u.Reserved != 0 {
						return false
					}
				}
				return true
			})
		}
	}
}

// TestIdentityLimits: whoever sends as an identity is counted for it, and a message that is over
// one limit counts for no other.
func TestIdentityLimits(t *testing.T) {
	both := quota.IdentityLimit{Address: "hr@contoso.com", Rates: quota.Rates{Messages: perDay(2)}, OnLimit: quota.RejectOver}
	each := quota.IdentityLimit{Address: "*@Contoso.com", Rates: quota.Rates{Messages: perDay(1)}, OnLimit: quota.DeferOver}
	const over = `may send 2 messages a day`
	s := startWith(t, newQuotas(quota.ClientLimit{Rates: quota.Rates{Messages: perDay(3)}, OnLimit: quota.DeferOver}, both, each))
	printer, _ := s.dial("10.2.0.9", "")
	monitor, _ := s.dial("192.0.2.1", "nagios")
	for i, step := range []struct {
		c    *protocol.ClientSession
		from string
		want string
	}{
		{printer, "HR@contoso.com", ""},
		{monitor, "hr@contoso.com", ""},
		{printer, "hr@contoso.com", `550 5.7.1 identity <hr@contoso.com> ` + over},
		{monitor, "hr@contoso.com", `550 5.7.1 identity <hr@contoso.com> ` + over},
		{printer, "scan@contoso.com", ""}, // its own count of the pattern
		{printer, "scan@contoso.com", `451 4.7.1 identity <scan@contoso.com> may send 1 message a day`},
	} {
		got := opens(s.send(step.c, "<"+step.from+">", "From: "+step.from, id, date))
		if got != step.want && !strings.HasPrefix(got, "sender ") {
			t.Errorf("message %d: %q, want %q", i, got, step.want)
		}
	}
	s.counted(t, "printers", 2, 0)
	s.counted(t, quota.IdentityKey("hr@contoso.com"), 2, 0)
	s.counted(t, quota.IdentityKey("scan@contoso.com"), 1, 0)
	if !strings.Contains(s.log.String(), "reason=identity-limit") {
		t.Errorf("the log does not tell of the identity's limit:\n%s", s.log)
	}
}

// TestHeldIdentity: hold at an identity or a client accepts the message and counts it for none,
// unless the other one refuses.
func TestHeldIdentity(t *testing.T) {
	none, plenty := quota.Rates{Messages: perDay(1)}, quota.Rates{Messages: perDay(9)}
	for _, tc := range []struct {
		client, identity     quota.Rates
		onClient, onIdentity quota.OnLimit
		want                 string // the second message's outcome
		ofClient, ofIdentity int    // counted
	}{
		{plenty, none, quota.DeferOver, quota.HoldOver, "held: identity <hr@contoso.com> may send 1 ", 1, 1},
		{none, plenty, quota.HoldOver, quota.DeferOver, `held: client "printers" may send 1 `, 1, 1},
		{none, none, quota.HoldOver, quota.DeferOver, "451 4.7.1 identity", 1, 1},
		{none, none, quota.HoldOver, quota.HoldOver, `held: client "printers" may send 1 `, 1, 1},
	} {
		s := startWith(t, newQuotas(quota.ClientLimit{Rates: tc.client, OnLimit: tc.onClient}, quota.IdentityLimit{Address: "hr@contoso.com", Rates: tc.identity, OnLimit: tc.onIdentity}))
		c, _ := s.dial("10.2.0.9", "")
		got := ""
		for range 2 {
			got = s.send(c, "<hr@contoso.com>", "From: hr@contoso.com", id, date)
		}
		if !strings.HasPrefix(got, tc.want) {
			t.Errorf("%+v: %q", tc, got)
		}
		s.counted(t, "printers", tc.ofClient, 0)
		s.counted(t, quota.IdentityKey("hr@contoso.com"), tc.ofIdentity, 0)
		c.Close()
	}
}

// TestFirstIdentityWins: as with clients, the order of the list decides.
func TestFirstIdentityWins(t *testing.T) {
	at := func(address string, n int) quota.IdentityLimit {
		return quota.IdentityLimit{Address: address, Rates: quota.Rates{Messages: perDay(n)}, OnLimit: quota.DeferOver}
	}
	for _, tc := range []struct {
		list    []quota.IdentityLimit
		address string
		want    int // 0: no limits
	}{
		{[]quota.IdentityLimit{at("hr@contoso.com", 1), at("*@contoso.com", 2)}, "hr@contoso.com", 1},
		{[]quota.IdentityLimit{at("hr@contoso.com", 1), at("*@contoso.com", 2)}, "it@contoso.com", 2},
		{[]quota.IdentityLimit{at("*@contoso.com", 2), at("hr@contoso.com", 1)}, "hr@contoso.com", 2},
		{[]quota.IdentityLimit{at("hr@contoso.com", 1)}, "it@contoso.com", 0},
		{[]quota.IdentityLimit{at("*@contoso.com", 2)}, "hr@contoso.de", 0},
		{[]quota.IdentityLimit{at("*@bücher.example", 2)}, "hr@xn--bcher-kva.example", 2},
		{[]quota.IdentityLimit{at("hr@contoso.com", 1)}, "", 0},
		{nil, "hr@contoso.com", 0},
	} {
		q := quota.NewDesk(quota.New())
		q.Use(nil, tc.list...)
		a, err := address.Parse(tc.address)
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		if l, ok := q.Identity(a); ok {
			got = l.Rates.Messages[0].N
		}
		if got != tc.want {
			t.Errorf("%v: %q has the limit %d, want %d", tc.list, tc.address, got, tc.want)
		}
	}
}

// TestRepliesAreAskedFor: Postfix waits for answers to MAIL and RCPT only where a limit may refuse
// there.
func TestRepliesAreAskedFor(t *testing.T) {
	refuses := quota.ClientLimit{Rates: quota.Rates{Messages: perDay(1)}, OnLimit: quota.DeferOver}
	held := quota.ClientLimit{Rates: quota.Rates{Messages: perDay(1)}, OnLimit: quota.HoldOver}
	for _, tc := range []struct {
		name string
		q    *quota.Desk
		want bool
	}{
		{"no limits at all", nil, false},
		{"no limits", quota.NewDesk(quota.New()), false},
		{"a client that is refused", newQuotas(refuses), true},
		{"a client whose mail is held", newQuotas(held), false},
	} {
		s := startWith(t, tc.q)
		c, _ := s.dial("10.2.0.9", "")
		if got := !c.ProtocolOption(protocol.OptNoRcptReply) && !c.ProtocolOption(protocol.OptNoMailReply); got != tc.want {
			t.Errorf("%s: replies are asked for: %v, want %v", tc.name, got, tc.want)
		}
		c.Close()
	}
}

// TestPeekCountsNothingTwice: the policy service is asked at RCPT, when the milter holds the
// message's place already.
func TestPeekCountsNothingTwice(t *testing.T) {
	q := newQuotas(quota.ClientLimit{Rates: quota.Rates{Messages: perDay(1), Recipients: perDay(1)}, OnLimit: quota.DeferOver})
	s := startWith(t, q)
	early, _ := newPolicyServer(t)
	early.Quotas = q
	asked, err := readQuery(bufio.NewReader(strings.NewReader(request)))
	if err != nil {
		t.Fatal(err)
	}
	c, _ := s.dial("10.2.0.9", "")
	s.begin(c, "<hr@contoso.com>")
	s.counted(t, "printers", 0, 1)
	if got := early.answer(asked); strings.Contains(got, "4.7.1") {
		t.Errorf("the policy service counts the message that it is asked about: %s", got)
	}
	if err := c.Abort(nil); err != nil {
		t.Fatal(err)
	}
	if got := s.send(c, "<hr@contoso.com>", "From: hr@contoso.com", id, date); got != "" {
		t.Errorf("the message: %q", got)
	}
	if got := early.answer(asked); !strings.HasPrefix(got, "451 4.7.1 ") {
		t.Errorf("the policy service does not see the limit: %s", got)
	}
}

// TestLimitsReloadedInTheMiddle: a message ends under the limits it began with, whatever becomes of
// them, and leaves no place taken.
func TestLimitsReloadedInTheMiddle(t *testing.T) {
	day, other := quota.Rates{Messages: perDay(5)}, quota.Rates{Messages: []limit.Rate{{N: 5, Per: time.Hour}}}
	for _, tc := range []struct {
		name string
		next map[string]quota.ClientLimit
		want int // counted in the first period in force then
	}{
		{"no more limits", nil, 1}, // of the message that began with them
		{"another period", map[string]quota.ClientLimit{"printers": {Rates: other, OnLimit: quota.DeferOver}}, 2},
		{"hold", map[string]quota.ClientLimit{"printers": {Rates: day, OnLimit: quota.HoldOver}}, 2},
	} {
		q := newQuotas(quota.ClientLimit{Rates: day, OnLimit: quota.DeferOver})
		s := startWith(t, q)
		c, _ := s.dial("10.2.0.9", "")
		s.begin(c, "<hr@contoso.com>")
		q.Use(tc.next)
		another, _ := s.dial("10.2.0.10", "") // meets the new ones first
		if got := s.send(another, "<hr@contoso.com>", "From: hr@contoso.com", id, date); got != "" {
			t.Errorf("%s: another message: %q", tc.name, got)
		}
		c.HeaderField("From", "hr@contoso.com", nil)
		c.HeaderEnd()
		c.BodyChunk([]byte("body"))
		if _, act, err := c.End(); err != nil || act.Type != protocol.ActionAccept {
			t.Errorf("%s: %+v, %v", tc.name, act, err)
		}
		if used, reserved := countedOf(q, "printers"); used != tc.want || reserved != 0 {
			t.Errorf("%s: %d messages counted and %d places still taken, want %d and none", tc.name, used, reserved, tc.want)
		}
	}
}

func canceled(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}
