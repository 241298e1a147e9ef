package lease

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sendas/sendas/policy/limit"

	"github.com/sendas/sendas/token/lease/replies"
)

// TestEveryStage: a refusal is counted, logged and in the status, whichever command it answers.
func TestEveryStage(t *testing.T) {
	const (
		ehlo    = "250-LO4P302CA0005.outlook.office365.com Hello [203.0.113.7]"
		ehloEnd = "250 SMTPUTF8"
		invalid = "501 5.1.3 Invalid address"
		hint    = "the recipient is no address"
		notNow  = "421 4.3.2 Service not active"
	)
	type want struct {
		stage Stage
		class replies.Class
		hint  string
		count float64
	}
	for _, tc := range []struct {
		name   string
		first  []string // before the look-up
		then   []string // after it
		want   want
		log    string // the message of the line
		before bool   // it is nobody's
	}{
		{"connect", []string{notNow}, nil, want{StageConnect, replies.Busy, "takes no mail now", 1}, "session refused before the sign-in", true},
		{"EHLO", []string{banner, "451 4.7.0 Temporary server error. PRX4"}, nil, want{StageEHLO, replies.Busy, "has trouble", 1}, "session refused before the sign-in", true},
		{"STARTTLS", []string{banner, ehlo, ehloEnd, "454 4.7.0 TLS not available"}, nil, want{StageSTARTTLS, replies.Busy, "cannot begin TLS", 1}, "session refused before the sign-in", true},
		{"EHLO within TLS", []string{banner, ehlo, ehloEnd, starttls, "500 5.3.3 Unrecognized command 'EHLO'"}, nil, want{StageEHLO, replies.Permanent, "does not know the command", 1}, "session refused before the sign-in", true},
		{"AUTH", []string{banner, ehlo, ehloEnd}, []string{auth535}, want{StageAUTH, replies.Auth, "New-ServicePrincipal", 1}, "delivery", false},
		{"AUTH, for now", nil, []string{"454 4.7.0 Temporary authentication failure"}, want{StageAUTH, replies.Busy, "not the token", 1}, "delivery", false},
		{"MAIL", nil, []string{authOK, "550 5.7.62 x"}, want{StageMAIL, replies.SendAs, "envelope sender", 1}, "delivery", false},
		{"the only RCPT", nil, []string{authOK, mailOK, invalid}, want{StageRCPT, replies.Recipient, hint, 1}, "delivery", false},
		{"one RCPT of three", nil, []string{authOK, mailOK, rcptOK, invalid, invalid, dataOK, accepted}, want{StageRCPT, replies.Recipient, hint, 2}, "recipient refused", false},
		{"a RCPT in two lines", nil, []string{authOK, mailOK, "501-5.1.3 Invalid address", "501 see above"}, want{StageRCPT, replies.Recipient, hint, 1}, "recipient refused", false},
		{"the end of DATA", nil, []string{authOK, mailOK, rcptOK, dataOK, denied}, want{StageEnd, replies.SendAs, "Add-RecipientPermission", 1}, "delivery", false},
	} {
		d := newDesk(limit.Microsoft().Messages)
		d.play(t, process(1), tc.first...)
		if tc.then != nil {
			d.Lease(t.Context(), process(1), "billing@contoso.com")
			d.play(t, process(1), tc.then...)
			d.play(t, process(1), banner)
		}
		s := d.Status(t.Context(), StatusInput{Mailboxes: []MailboxInput{{Label: "erp@contoso.com", Limits: d.limits}}})
		v, label := s.Mailboxes[0].LastRefusal, "erp@contoso.com"
		if tc.before {
			v, label = s.Unsigned, ""
		}
		if v == nil || v.Stage != tc.want.stage || v.Class != tc.want.class || !strings.Contains(v.Meaning, tc.want.hint) || v.When == "" || v.Of == "" {
			t.Errorf("%s: status %+v, want %+v", tc.name, v, tc.want)
		}
		if n := testutil.ToFloat64(d.metrics.refusal.WithLabelValues(label, string(tc.want.stage), string(tc.want.class))); n != tc.want.count {
			t.Errorf("%s: counted %v times, want %v", tc.name, n, tc.want.count)
		}
		told := 0
		for line := range strings.Lines(d.log.String()) {
			if strings.Contains(line, "stage="+string(tc.want.stage)) && strings.Contains(line, "class="+string(tc.want.class)) && strings.Contains(line, tc.want.hint) &&
				(strings.Contains(line, `msg="`+tc.log+`"`) || strings.Contains(line, "msg="+tc.log)) {
				told++
			}
		}
		if told != 1 {
			t.Errorf("%s: %d lines in the log, want one of the class in %q:\n%s", tc.name, told, tc.log, d.log)
		}
		if strings.Contains(d.log.String(), "class=unseen") {
			t.Errorf("%s: something is unseen:\n%s", tc.name, d.log)
		}
	}
}

// TestOtherServers: what another server says, of which smtp(8) asks nothing here, is nobody's
// refusal; a sign-in that succeeds ends what was said before one.
func TestOtherServers(t *testing.T) {
	for _, replies := range [][]string{
		{"220 mail.lab.example ESMTP Postfix", "250-mail.lab.example", "250 SIZE", "550 5.1.1 unknown user"},
		{"220 mail.lab.example ESMTP Postfix", "502 5.5.2 Error: command not recognized"},
		{banner, "250 mail.lab.example Hello", "250 2.1.0 Sender OK", "550 5.1.10 Recipient not found"},
		{banner, "250 mail.lab.example Hello", "530 5.7.57 Client not authenticated to send mail."},
		{"550 5.1.1 unknown user"},
		{starttls, "250 x", "501 5.1.3 Invalid address"},
	} {
		d := newDesk(limit.Microsoft().Messages)
		d.play(t, process(1), replies...)
		if s := d.Status(t.Context(), StatusInput{}); s.Unsigned != nil || d.log.String() != "" {
			t.Errorf("%q: %+v\n%s", replies, s.Unsigned, d.log)
		}
	}
	d := newDesk(limit.Microsoft().Messages)
	d.play(t, process(1), "421 4.3.2 Service not available", banner)
	if s := d.Status(t.Context(), StatusInput{}); s.Unsigned == nil {
		t.Error("nothing is said of the refusal")
	}
	d.Lease(t.Context(), process(1), "erp@contoso.com")
	d.play(t, process(1), authOK)
	if s := d.Status(t.Context(), StatusInput{}); s.Unsigned != nil {
		t.Errorf("after a sign-in: %+v", s.Unsigned)
	}
	if n := len(d.preludes); n != 0 {
		t.Errorf("%d sessions before their look-up are kept", n)
	}
}

// TestPreludesAreBounded: whatever connects, there is an end to what is kept of it.
func TestPreludesAreBounded(t *testing.T) {
	d := newDesk(limit.Microsoft().Messages)
	for n := range int32(3 * maxPreludes) {
		d.Reply(t.Context(), process(n+1), banner)
	}
	if n := len(d.preludes); n > maxPreludes {
		t.Errorf("%d are kept, want at most %d", n, maxPreludes)
	}
}

// TestSetUpKeepsTheMessage: what comes of the set-up of the mailbox, and not of the message, never
// returns it.
func TestSetUpKeepsTheMessage(t *testing.T) {
	for _, tc := range []struct{ reply, want string }{
		{"550 5.7.240 The application is not allowed for use with this High Volume Email account", "450 4.7.240 The application is not allowed for use with this High Volume Email account"},
		{"554 5.2.240 x", "454 4.2.240 x"},
		{"530 5.7.57 Client not authenticated to send mail.", "450 4.7.57 Client not authenticated to send mail."},
		{"550 5.2.121 x", "450 4.2.121 x"},
		{"550 5.7.62 x", ""},
		{"552 5.3.4 Header size exceeds fixed maximum size", ""},
	} {
		for _, before := range [][]string{{authOK}, {authOK, mailOK}, {authOK, mailOK, rcptOK, dataOK}} {
			d := newDesk(limit.Microsoft().Messages)
			d.Lease(t.Context(), process(1), "billing@contoso.com")
			d.play(t, process(1), before...)
			if got := d.Reply(t.Context(), process(1), tc.reply); got != found(tc.want) {
				t.Errorf("%q after %d replies: %v %q, want %q", tc.reply, len(before), got.Status, got.Value, tc.want)
			}
		}
	}
	d := newDesk(limit.Microsoft().Messages)
	d.Lease(t.Context(), process(1), "billing@contoso.com")
	if got := d.Reply(t.Context(), process(1), auth535); got.Status != NotFound { // Postfix keeps it by itself
		t.Errorf("at AUTH: %v", got)
	}
}

// TestTokenEndsSoon: a token that is too old is thrown away, and the next look-up goes on with
// another one.
func TestTokenEndsSoon(t *testing.T) {
	for _, reply := range []string{"535 5.7.142 x. Token will expire soon.", "535 5.7.143 x. Expired token.", "501 5.5.127 Invalid XOAUTH2 auth data - Token will expire soon error"} {
		d := newDesk(limit.Microsoft().Messages)
		d.Lease(t.Context(), process(1), "billing@contoso.com")
		d.play(t, process(1), reply)
		if n := len(d.tokens.discarded); n != 1 {
			t.Errorf("%s: %d tokens thrown away, want 1", reply, n)
		}
	}
}
