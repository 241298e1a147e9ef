package exosim

import (
	"encoding/base64"
	"maps"
	"strings"
	"testing"
	"time"
)

// Microsoft's own example of an XOAUTH2 payload.
const (
	vector      = "dXNlcj10ZXN0QGNvbnRvc28ub25taWNyb3NvZnQuY29tAWF1dGg9QmVhcmVyIEV3QkFBbDNCQUFVRkZwVUFvN0ozVmUwYmpMQldaV0NjbFJDM0VvQUEBAQ=="
	vectorUser  = "test@contoso.onmicrosoft.com"
	vectorToken = "EwBAAl3BAAUFFpUAo7J3Ve0bjLBWZWCclRC3EoAA"
)

const (
	authOK     = "235 2.7.0 Authentication successful"
	authFailed = "535 5.7.3 Authentication unsuccessful " + where
)

func TestAuth(t *testing.T) {
	token := func(app string) func(*Server) string {
		return func(s *Server) string { return s.Issue(app, audience, time.Hour) }
	}
	for _, tc := range []struct {
		name   string
		change func(*Config)
		user   string
		token  func(*Server) string
		want   string
		why    string
	}{
		{"App RBAC, in scope", nil, "ERP@contoso.com", token(app1), authOK, ""},
		{"App RBAC, out of scope", nil, "hr@contoso.com", token(app1), authFailed, "mailbox is not in the role's scope"},
		{"App RBAC, FullAccess does not help", func(c *Config) { c.Apps[0].FullAccess = []string{"hr@contoso.com"} }, "hr@contoso.com", token(app1), authFailed, "mailbox is not in the role's scope"},
		{"App RBAC, every mailbox", func(c *Config) { c.Apps[0].RBACScope = []string{"*"} }, "hr@contoso.com", token(app1), authOK, ""},
		{"classic", nil, "erp@contoso.com", token(app2), authOK, ""},
		{"classic, no FullAccess", nil, "scan@contoso.com", token(app2), authFailed, "no FullAccess"},
		{"classic, a scope does not help", func(c *Config) { c.Apps[1].RBACScope = []string{"*"} }, "scan@contoso.com", token(app2), authFailed, "no FullAccess"},
		{"model classic is the role", func(c *Config) { c.Apps[0].Model, c.Apps[0].FullAccess = ModelClassic, []string{"hr@contoso.com"} }, "hr@contoso.com", token(app1), authOK, ""},
		{"classic, another role", nil, "erp@contoso.com", token(app3), authFailed, "token has roles, but not SMTP.SendAsApp"},
		{"wrong object id", nil, "erp@contoso.com", token(app4), authFailed, "service principal has another object id"},
		{"not in Exchange", func(c *Config) { c.Apps[0].NotInExchange = true }, "erp@contoso.com", token(app1), authFailed, "no service principal in Exchange"},
		{"unknown app", nil, "erp@contoso.com", token("nobody"), authFailed, "no service principal in Exchange"},
		{"no such mailbox", nil, "gone@contoso.com", token(app1), authFailed, "no such mailbox"},
		{"an alias is no mailbox", nil, "sap@contoso.com", token(app1), authFailed, "no such mailbox"},
		{"audience Graph", nil, "erp@contoso.com", func(s *Server) string { return s.Issue(app1, "https://graph.microsoft.com", time.Hour) }, authFailed, "token is for another audience"},
		{"audience outlook.office.com", nil, "erp@contoso.com", func(s *Server) string { return s.Issue(app1, "https://outlook.office.com", time.Hour) }, authOK, ""},
		{"expired", nil, "erp@contoso.com", func(s *Server) string { return s.Issue(app1, audience, -time.Second) }, authFailed, "token expired"},
		{"garbled", nil, "erp@contoso.com", func(s *Server) string { return s.Issue(app1, audience, time.Hour)[1:] }, authFailed, "token is not one of ours"},
		{"no token at all", nil, "erp@contoso.com", func(*Server) string { return vectorToken }, authFailed, "token is not one of ours"},
		{"of another simulator", nil, "erp@contoso.com", func(*Server) string { return startTest(t, nil).Issue(app1, audience, time.Hour) }, authFailed, "token is not one of ours"},
		{"revoked", nil, "erp@contoso.com", func(s *Server) string {
			defer s.RevokeTokens()
			return s.Issue(app1, audience, time.Hour)
		}, authFailed, "token revoked"},
		{"issued after the revocation", nil, "erp@contoso.com", func(s *Server) string {
			s.RevokeTokens()
			return s.Issue(app1, audience, time.Hour)
		}, authOK, ""},
		{"tenant switch", func(c *Config) { c.SMTPAuthDisabled = true }, "erp@contoso.com", token(app1),
			"535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled for more information. " + where, whyTenantOff},
		{"mailbox in spite of the tenant", func(c *Config) { c.SMTPAuthDisabled, c.Mailboxes[0].SMTPAuthEnabled = true, true }, "erp@contoso.com", token(app1), authOK, ""},
		{"mailbox switch", func(c *Config) { c.Mailboxes[0].SMTPAuthDisabled = true }, "erp@contoso.com", token(app1),
			"535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. Visit https://aka.ms/smtp_auth_disabled for more information. " + where, whyMailboxOff},
		{"High Volume, soon over", func(c *Config) { c.HighVolume = true }, "erp@contoso.com", func(s *Server) string { return s.Issue(app1, audience, 9*time.Minute) },
			"501 5.5.127 Invalid XOAUTH2 auth data - Token will expire soon error", whyExpiresSoon},
		{"High Volume, long enough", func(c *Config) { c.HighVolume = true }, "erp@contoso.com", func(s *Server) string { return s.Issue(app1, audience, 11*time.Minute) }, authOK, ""},
	} {
		s := startTest(t, tc.change)
		if got := greet(t, s).say("AUTH XOAUTH2 " + xoauth2(tc.user, tc.token(s))); !like(got, tc.want) {
			t.Errorf("%s: got %s, want %s", tc.name, got, tc.want)
		}
		want := map[string]int{}
		if tc.why != "" {
			want[tc.why] = 1
		}
		if got := s.AuthRefused(); !maps.Equal(got, want) {
			t.Errorf("%s: counted %v, want %v", tc.name, got, want)
		}
	}
}

// TestAuthDialogue: what AUTH does besides looking at tokens.
func TestAuthDialogue(t *testing.T) {
	const basic = "535 5.7.139 Authentication unsuccessful, basic authentication is disabled. " + where
	for _, tc := range []struct {
		name  string
		steps []step
	}{
		{"Microsoft's example", []step{{"AUTH XOAUTH2 " + vector, authFailed}}},
		{"the same after an empty challenge", []step{{"auth xoauth2", "334 "}, {vector, authFailed}}},
		{"cancelled", []step{{"AUTH XOAUTH2", "334 "}, {"*", authFailed}}},
		{"not base64", []step{{"AUTH XOAUTH2 !!!", "501 5.5.4 Invalid arguments"}}},
		{"empty", []step{{"AUTH XOAUTH2 =", "501 5.5.4 Invalid arguments"}}},
		{"LOGIN", []step{{"AUTH LOGIN", "334 VXNlcm5hbWU6"}, {"dQ==", "334 UGFzc3dvcmQ6"}, {"cA==", basic}}},
		{"LOGIN with the user", []step{{"AUTH LOGIN dQ==", "334 UGFzc3dvcmQ6"}, {"cA==", basic}}},
		{"LOGIN cancelled", []step{{"AUTH LOGIN", "334 VXNlcm5hbWU6"}, {"*", basic}}},
		{"MAIL repeats the last error", []step{
			{"AUTH XOAUTH2 " + vector, authFailed},
			{"MAIL FROM:<a@b.c>", "530 5.7.57 Client not authenticated to send mail. Error: " + authFailed},
			{"AUTH LOGIN dQ==", "334 UGFzc3dvcmQ6"}, {"cA==", basic},
			{"MAIL FROM:<a@b.c>", "530 5.7.57 Client not authenticated to send mail. Error: " + basic},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) { greet(t, startTest(t, nil)).dialogue(tc.steps) })
	}
	t.Run("again after a failure", func(t *testing.T) {
		s := startTest(t, nil)
		greet(t, s).dialogue([]step{
			{"AUTH XOAUTH2 " + vector, authFailed},
			{"AUTH XOAUTH2 " + xoauth2("erp@contoso.com", s.Issue(app1, audience, time.Hour)), authOK},
			{"MAIL FROM:<erp@contoso.com>", "250 2.1.0 Sender OK"},
		})
	})
	t.Run("High Volume", func(t *testing.T) {
		s := startTest(t, func(c *Config) { c.HighVolume = true })
		greet(t, s).dialogue([]step{{"AUTH XOAUTH2 !!!", "501 5.5.124 Invalid XOAUTH2 auth data"}})
	})
}

// TestChallenge is Google's way of refusing, which a client should survive.
func TestChallenge(t *testing.T) {
	s := startTest(t, func(c *Config) { c.Challenge = true })
	k := greet(t, s)
	got, ok := strings.CutPrefix(k.say("AUTH XOAUTH2 "+vector), "334 ")
	json, err := base64.StdEncoding.DecodeString(got)
	if !ok || err != nil || !strings.HasPrefix(string(json), `{"status":"401"`) {
		t.Errorf("challenge %q, %v", got, err)
	}
	k.dialogue([]step{
		{"", authFailed},
		{"AUTH XOAUTH2 " + xoauth2("erp@contoso.com", s.Issue(app1, audience, time.Hour)), authOK},
	})
}

func TestTarPit(t *testing.T) {
	const pit = 30 * time.Millisecond
	k := greet(t, startTest(t, func(c *Config) { c.TarPit = pit }))
	for _, line := range []string{"xyz", "MAIL FROM:<a@b.c>", "AUTH XOAUTH2 " + vector} {
		begin := time.Now()
		if k.say(line); time.Since(begin) < pit {
			t.Errorf("%.20s: refused after %v", line, time.Since(begin))
		}
	}
}

func TestParseXOAUTH2(t *testing.T) {
	for _, tc := range []struct {
		payload     string
		user, token string // both empty for a refusal
	}{
		{"user=a@b.c\x01auth=Bearer x\x01\x01", "a@b.c", "x"},
		{"user=a=b\x01auth=Bearer x y=\x01\x01", "a=b", "x y="},
		{"", "", ""},
		{"user=a\x01auth=Bearer x\x01", "", ""},
		{"user=a\x01auth=Bearer x\x01\x01\x01", "", ""},
		{"user=a\x01auth=Bearer x\x01\x01z", "", ""},
		{"user=\x01auth=Bearer x\x01\x01", "", ""},
		{"user=a\x01auth=Bearer \x01\x01", "", ""},
		{"user=a\x01auth=Basic x\x01\x01", "", ""},
		{"auth=Bearer x\x01user=a\x01\x01", "", ""},
		{"n,a=a,\x01auth=Bearer x\x01\x01", "", ""}, // OAUTHBEARER, RFC 7628
	} {
		user, token, err := parseXOAUTH2(base64.StdEncoding.EncodeToString([]byte(tc.payload)))
		if user != tc.user || token != tc.token || (err != nil) != (tc.user == "") {
			t.Errorf("%q: got %q, %q, %v", tc.payload, user, token, err)
		}
	}
	if user, token, err := parseXOAUTH2(vector); err != nil || user != vectorUser || token != vectorToken {
		t.Errorf("Microsoft's example: got %q, %q, %v", user, token, err)
	}
}

func FuzzXOAUTH2(f *testing.F) {
	f.Add(vector)
	for _, payload := range []string{"user=a\x01auth=Bearer b\x01\x01", "user=\x01auth=Bearer \x01\x01", "n,a=x,\x01auth=Bearer b\x01\x01", "\x01\x01\x01"} {
		f.Add(base64.StdEncoding.EncodeToString([]byte(payload)))
	}
	f.Add("dXNlcj1h\n")
	f.Fuzz(func(t *testing.T, response string) {
		user, token, err := parseXOAUTH2(response)
		if err != nil {
			if len(response) > 20 && strings.Contains(err.Error(), response) {
				t.Error("the error shows the payload")
			}
			return
		}
		back := base64.StdEncoding.EncodeToString([]byte("user=" + user + "\x01auth=Bearer " + token + "\x01\x01"))
		if user == "" || token == "" || back != strings.NewReplacer("\r", "", "\n", "").Replace(response) {
			t.Errorf("%q read as user %q, token %q", response, user, token)
		}
	})
}
