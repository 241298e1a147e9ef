package lab

import (
	"context"
	"fmt"
	"net/textproto"
	"slices"
	"strings"
	"testing"
	"time"
)

// limited puts limits into the configuration of a site: what belongs to the printers, and what else
// there is.
func limited(printers, more string) func(string) string {
	return func(yaml string) string {
		yaml = strings.Replace(yaml, "    from: scan@contoso.com\n", "    from: scan@contoso.com\n"+printers, 1)
		return strings.Replace(yaml, "milter:\n", more, 1)
	}
}

// note is a message of a printer that asks for that sender.
func note(from string, n int, to ...string) Mail {
	return Mail{XClient: XClient{Addr: "10.2.0.9", Name: "mfp3.local"}, From: from, To: to,
		Data: fmt.Appendf(nil, "From: %s\r\nMessage-ID: <limits-%d@mfp3>\r\nSubject: scan %d\r\n\r\nscan\r\n", from, n, n)}
}

// TestLimitOfRecipients: of 600 recipients 500 may be, so the 501st is refused and the message
// leaves for the others.
func TestLimitOfRecipients(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second, YAML: limited("    limits: {recipients: 500/h}\n", "milter:\n"),
		Postfix: func(_ *Site, main map[string]string) []string {
			// Postfix gives a client up after 20 answers that are errors, whoever gave them.
			main["smtpd_hard_error_limit"], main["smtpd_soft_error_limit"] = "1000", "1000"
			return nil
		}})
	var to []string
	for i := range 600 {
		to = append(to, fmt.Sprintf("r%d@example.net", i))
	}
	res, err := Send(ctx, s.Postfix.SMTPAddr(), note("scan@contoso.com", 1, to...))
	if err != nil {
		t.Fatal(err)
	}
	refused, rcpts := 0, 0
	for _, r := range res.Replies {
		if r.Stage != StageRcpt {
			continue
		}
		if rcpts++; r.Code < 400 {
			continue
		}
		refused++
		if line := r.Line(); rcpts <= 500 || !strings.HasPrefix(line, `451 4.7.1 `) || !strings.Contains(line, `client "printers" may send to 500 recipients an hour; it opens again in `) {
			t.Fatalf("recipient %d: %s", rcpts, r)
		}
	}
	if rcpts != 600 || refused != 100 || !res.Accepted() {
		t.Fatalf("%d of %d recipients were refused, then %s; want 100 of 600, and acceptance", refused, rcpts, res.Verdict())
	}
	if err := poll(ctx, func() (bool, error) { return s.delivered() >= 500, nil }); err != nil {
		t.Fatalf("%d recipients have the message: %v", s.delivered(), err)
	}
	if n := s.delivered(); n != 500 {
		t.Errorf("%d recipients have the message, want 500", n)
	}
	res, err = Send(ctx, s.Postfix.SMTPAddr(), note("scan@contoso.com", 2, "one@example.net"))
	if err != nil || res.Accepted() || res.Verdict().Code != 451 {
		t.Errorf("the next message: %v, %v", res.Verdict(), err)
	}
	if log := s.Milter.Log(); !strings.Contains(log, "recipients=500 action=accept") || !strings.Contains(log, "refused=100") {
		t.Error("the milter's log does not tell how many recipients were refused")
	}
}

// delivered returns how many recipients the simulator has accepted.
func (s *Site) delivered() int {
	n := 0
	for _, m := range s.Exosim.Messages() {
		if m.Accepted() {
			n += len(m.Recipients)
		}
	}
	return n
}

// TestLimitsOfIdentity: all clients together are counted for an identity, a restart forgets
// nothing, and others are free.
func TestLimitsOfIdentity(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second, YAML: limited("",
		"identities:\n  - {address: hr@contoso.com, limits: {messages: 2/h}, on_limit: reject}\n  - {address: \"*@contoso.com\", limits: {messages: 100/h}}\nmilter:\n")})
	send := func(addr, from string, n int) Reply {
		t.Helper()
		m := note(from, n, "someone@example.net")
		m.XClient.Addr = addr
		res, err := Send(ctx, s.Postfix.SMTPAddr(), m)
		if err != nil {
			t.Fatal(err)
		}
		return res.Verdict()
	}
	for i, addr := range []string{"10.1.0.9", "10.2.0.9"} {
		if got := send(addr, "hr@contoso.com", i); got.Code != 250 {
			t.Errorf("message %d: %s", i, got)
		}
	}
	const want = "550 5.7.1 identity <hr@contoso.com> may send 2 messages an hour; it opens again in "
	if got := send("10.1.0.9", "hr@contoso.com", 3); !strings.HasPrefix(got.Line(), want) {
		t.Errorf("one more: %s, want %s", got, want)
	}
	if err := s.Milter.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := s.Milter.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if got := send("10.2.0.9", "hr@contoso.com", 4); !strings.HasPrefix(got.Line(), want) {
		t.Errorf("after a restart: %s, want %s", got, want)
	}
	if got := send("10.2.0.9", "scan@contoso.com", 5); got.Code != 250 {
		t.Errorf("another identity: %s", got)
	}
	if err := s.WaitMessages(ctx, 3); err != nil {
		t.Fatal(err)
	}
}

// TestLimitOfMessages: a message that breaks off gives its place back, and what is over the limit
// is refused at MAIL. The policy service is asked at RCPT besides, and counts nothing twice.
func TestLimitOfMessages(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second, YAML: limited("    limits: {messages: 1/h, recipients: 2/h}\n", "milter:\n"),
		Postfix: func(_ *Site, main map[string]string) []string {
			main["smtpd_recipient_restrictions"] = "check_policy_service { unix:sendas/policy, default_action=DEFER_IF_PERMIT }"
			return nil
		}})
	breakOff(t, ctx, s)
	for i, tc := range []struct {
		want  string
		stage Stage
	}{
		{"250 2.0.0 ", StageEnd},
		{`451 4.7.1 client "printers" may send 1 message an hour; it opens again in `, StageMail},
	} {
		// The milter hears a moment later than we that the first session is gone.
		var got Reply
		err := poll(ctx, func() (bool, error) {
			res, err := Send(ctx, s.Postfix.SMTPAddr(), note("scan@contoso.com", i, "a@example.net", "b@example.net"))
			got = res.Verdict()
			for _, r := range res.Refused() { // the refusal of MAIL does not keep the others from being said
				got = r
				break
			}
			return i > 0 || got.Code == 250, err
		})
		if err != nil || got.Stage != tc.stage || !strings.Contains(got.Line(), tc.want) {
			t.Errorf("message %d: %s, %v, want %s at %s", i, got, err, tc.want, tc.stage)
		}
	}
	if err := s.WaitMessages(ctx, 1); err != nil {
		t.Fatal(err)
	}
}

// breakOff begins a message and hangs up within DATA.
func breakOff(t *testing.T, ctx context.Context, s *Site) {
	t.Helper()
	c, err := textproto.Dial("tcp", s.Postfix.SMTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, _, err := c.ReadResponse(220); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		line string
		code int
	}{
		{"EHLO mfp3", 250}, {"XCLIENT ADDR=10.2.0.9 NAME=mfp3.local", 220}, {"EHLO mfp3", 250},
		{"MAIL FROM:<scan@contoso.com>", 250}, {"RCPT TO:<a@example.net>", 250}, {"RCPT TO:<b@example.net>", 250}, {"DATA", 354},
	} {
		if err := c.PrintfLine("%s", step.line); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.ReadResponse(step.code); err != nil {
			t.Fatalf("%s: %v", step.line, err)
		}
	}
	if err := c.PrintfLine("From: scan@contoso.com"); err != nil {
		t.Fatal(err)
	}
}

// TestQueueCeiling: what waits for a mailbox is read from Postfix, also by a milter that has just
// begun; above the ceiling it takes no more for that mailbox, and others are free.
func TestQueueCeiling(t *testing.T) {
	const room = 30 // messages in a minute
	s, ctx := startSite(t, SiteConfig{Minute: time.Minute, YAML: limited("", "milter:\n  queue_ceiling: 1m\n"),
		Postfix: func(_ *Site, main map[string]string) []string {
			main["defer_transports"] = "sendas"
			for _, name := range []string{"minimal_backoff_time", "maximal_backoff_time", "queue_run_delay"} {
				main[name] = "1h" // a queue run moves messages against the order in which they are listed
			}
			return nil
		}})
	metric := func(line string) {
		t.Helper()
		text := ""
		err := poll(ctx, func() (ok bool, err error) {
			text, err = get(ctx, s.MetricsURLs()[0])
			return strings.Contains(text, "\n"+line+"\n"), err
		})
		if err != nil {
			t.Fatalf("the metrics never say %s: %v", line, err)
		}
	}
	send := func(from string, n int) Reply {
		t.Helper()
		res, err := Send(ctx, s.Postfix.SMTPAddr(), note(from, n, "someone@example.net"))
		if err != nil {
			t.Fatal(err)
		}
		return res.Verdict()
	}
	metric("sendas_queue_readable 1")
	for i := range room {
		if got := send("scan@contoso.com", i); got.Code != 250 {
			t.Fatalf("message %d: %s", i, got)
		}
	}
	const want = "451 4.3.1 mailbox <scan@contoso.com> would have 31 messages waiting, and only 30 can leave in time; it takes more in "
	if got := send("scan@contoso.com", room); !strings.HasPrefix(got.Line(), want) {
		t.Errorf("one more: %s, want %s", got, want)
	}
	if _, err := s.Postfix.WaitQueue(ctx, func(list []QueueEntry) bool {
		return len(list) == room && !slices.ContainsFunc(list, func(e QueueEntry) bool { return e.Queue != "deferred" })
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Milter.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := s.Milter.Start(ctx); err != nil {
		t.Fatal(err)
	}
	metric(`sendas_queue_waiting{kind="messages",mailbox="scan@contoso.com",route="submission"} 30`)
	metric(`sendas_queue_messages{queue="deferred"} 30`)
	metric(`sendas_queue_deferred_messages{reason="transport"} 30`)
	if got := send("scan@contoso.com", room+1); !strings.HasPrefix(got.Line(), want) {
		t.Errorf("with a milter that has just begun: %s, want %s", got, want)
	}
	if got := send("monitor@contoso.com", room+2); got.Code != 250 {
		t.Errorf("another mailbox: %s", got)
	}
	metric(`sendas_messages_total{action="defer",client="printers",reason="queue-ceiling"} 1`)
}
