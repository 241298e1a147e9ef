package smtp

import (
	"encoding/base64"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
)

// Microsoft's own example of an XOAUTH2 payload.
const vector = "dXNlcj10ZXN0QGNvbnRvc28ub25taWNyb3NvZnQuY29tAWF1dGg9QmVhcmVyIEV3QkFBbDNCQUFVRkZwVUFvN0ozVmUwYmpMQldaV0NjbFJDM0VvQUEBAQ=="

// TestAuthDialogue: what AUTH does besides looking at tokens.
func TestAuthDialogue(t *testing.T) {
	const basic = "535 5.7.139 Authentication unsuccessful, basic authentication is disabled. " + visitor.Frontend
	for _, tc := range []struct {
		name  string
		steps []visitor.Step
	}{
		{"Microsoft's example", []visitor.Step{{"AUTH XOAUTH2 " + vector, visitor.AuthFailed}}},
		{"the same after an empty challenge", []visitor.Step{{"auth xoauth2", "334 "}, {vector, visitor.AuthFailed}}},
		{"cancelled", []visitor.Step{{"AUTH XOAUTH2", "334 "}, {"*", visitor.AuthFailed}}},
		{"not base64", []visitor.Step{{"AUTH XOAUTH2 !!!", "501 5.5.4 Invalid arguments"}}},
		{"empty", []visitor.Step{{"AUTH XOAUTH2 =", "501 5.5.4 Invalid arguments"}}},
		{"LOGIN", []visitor.Step{{"AUTH LOGIN", "334 VXNlcm5hbWU6"}, {"dQ==", "334 UGFzc3dvcmQ6"}, {"cA==", basic}}},
		{"LOGIN with the user", []visitor.Step{{"AUTH LOGIN dQ==", "334 UGFzc3dvcmQ6"}, {"cA==", basic}}},
		{"an empty answer", []visitor.Step{{"AUTH XOAUTH2", "334 "}, {"", "501 5.5.4 Invalid arguments"}}},
		{"the payload without base64", []visitor.Step{{"AUTH XOAUTH2", "334 "}, {"user=a\x01auth=Bearer b\x01\x01", "501 5.5.4 Invalid arguments"}}},
		{"LOGIN without base64", []visitor.Step{{"AUTH LOGIN !", "334 UGFzc3dvcmQ6"}, {"!", basic}}},
		{"LOGIN cancelled", []visitor.Step{{"AUTH LOGIN", "334 VXNlcm5hbWU6"}, {"*", basic}}},
		{"MAIL repeats the last error", []visitor.Step{
			{"AUTH XOAUTH2 " + vector, visitor.AuthFailed},
			{"MAIL FROM:<a@b.c>", "530 5.7.57 Client not authenticated to send mail. Error: " + visitor.AuthFailed},
			{"AUTH LOGIN dQ==", "334 UGFzc3dvcmQ6"}, {"cA==", basic},
			{"MAIL FROM:<a@b.c>", "530 5.7.57 Client not authenticated to send mail. Error: " + basic},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) { greet(t, startTest(t, nil)).Dialogue(tc.steps) })
	}
	t.Run("again after a failure", func(t *testing.T) {
		s := startTest(t, nil)
		greet(t, s).Dialogue([]visitor.Step{
			{"AUTH XOAUTH2 " + vector, visitor.AuthFailed},
			{visitor.XOAUTH2("erp@contoso.com", s.Issue(app1, directory.Exchange, time.Hour)), visitor.AuthOK},
			{"MAIL FROM:<erp@contoso.com>", "250 2.1.0 Sender OK"},
		})
	})
	t.Run("High Volume", func(t *testing.T) {
		s := startTest(t, func(c *siteConfig) { c.HighVolume = true })
		greet(t, s).Dialogue([]visitor.Step{{"AUTH XOAUTH2 !!!", "501 5.5.124 Invalid XOAUTH2 auth data"}})
	})
}

// TestChallenge is Google's way of refusing, which a client should survive.
func TestChallenge(t *testing.T) {
	s := startTest(t, func(c *siteConfig) { c.Challenge = true })
	k := greet(t, s)
	got, ok := strings.CutPrefix(k.Say("AUTH XOAUTH2 "+vector), "334 ")
	json, err := base64.StdEncoding.DecodeString(got)
	if !ok || err != nil || !strings.HasPrefix(string(json), `{"status":"401"`) {
		t.Errorf("challenge %q, %v", got, err)
	}
	k.Dialogue([]visitor.Step{
		{"", visitor.AuthFailed},
		{visitor.XOAUTH2("erp@contoso.com", s.Issue(app1, directory.Exchange, time.Hour)), visitor.AuthOK},
	})
}

// TestChallengeAnswers: whatever the client says to the challenge, it hears and the counters have
// why it was refused; what has a text of its own has no challenge.
func TestChallengeAnswers(t *testing.T) {
	for _, answer := range []string{"", "*", "!!!", "AQ=="} {
		s := startTest(t, func(c *siteConfig) { c.Challenge = true })
		greet(t, s).Dialogue([]visitor.Step{{"AUTH XOAUTH2 " + vector, "334 *"}, {answer, visitor.AuthFailed}})
		if got := s.AuthRefused(); !maps.Equal(got, map[string]int{"token is not one of ours": 1}) {
			t.Errorf("after %q: counted %v", answer, got)
		}
	}
	s := startTest(t, func(c *siteConfig) { c.Challenge, c.SMTPAuthDisabled = true, true })
	greet(t, s).Want(visitor.XOAUTH2("erp@contoso.com", s.Issue(app1, directory.Exchange, time.Hour)), "535 5.7.139 *")
}

func TestTarPit(t *testing.T) {
	const pit = 30 * time.Millisecond
	k := greet(t, startTest(t, func(c *siteConfig) { c.TarPit = pit }))
	for _, line := range []string{"xyz", "MAIL FROM:<a@b.c>", "AUTH XOAUTH2 " + vector} {
		begin := time.Now()
		if k.Say(line); time.Since(begin) < pit {
			t.Errorf("%.20s: refused after %v", line, time.Since(begin))
		}
	}
}

// TestHandshakeTime: AUTH and each RCPT take their time.
func TestHandshakeTime(t *testing.T) {
	const auth, rcpt = 60 * time.Millisecond, 30 * time.Millisecond
	s := startTest(t, func(c *siteConfig) { c.AuthTime, c.RcptTime = auth, rcpt })
	k := greet(t, s)
	for _, x := range []struct {
		line  string
		takes time.Duration
	}{
		{visitor.XOAUTH2("erp@contoso.com", s.Issue(app1, directory.Exchange, time.Hour)), auth},
		{"MAIL FROM:<erp@contoso.com>", 0},
		{"RCPT TO:<someone@example.net>", rcpt},
		{"RCPT TO:<another@example.net>", rcpt},
	} {
		begin := time.Now()
		if got := k.Say(x.line); got[0] != '2' || time.Since(begin) < x.takes {
			t.Errorf("%.20s: %s after %v, want a yes after %v", x.line, got, time.Since(begin), x.takes)
		}
	}
}
