package exosim

import (
	"maps"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
)

// TestDelegatedAuth: what Exchange checks of a signed-in user's token.
func TestDelegatedAuth(t *testing.T) {
	send := []string{"SMTP.Send"}
	token := func(user, aud string, scopes ...string) func(*Server) string {
		return func(s *Server) string { return s.IssueDelegated(app5, user, aud, scopes, time.Hour) }
	}
	erp := token("erp@contoso.com", "https://outlook.office.com", send...)
	for _, tc := range []struct {
		name   string
		change func(*Config)
		user   string
		token  func(*Server) string
		want   string
		why    string
	}{
		{"own mailbox", nil, "ERP@contoso.com", erp, visitor.AuthOK, ""},
		{"the other audience", nil, "erp@contoso.com", token("erp@contoso.com", "https://outlook.office365.com", send...), visitor.AuthOK, ""},
		{"among other permissions", nil, "erp@contoso.com", token("erp@contoso.com", directory.Exchange, "IMAP.AccessAsUser.All", "SMTP.Send"), visitor.AuthOK, ""},
		{"FullAccess", nil, "scan@contoso.com", erp, visitor.AuthOK, ""},
		{"FullAccess on all", nil, "hr@contoso.com", token("admin@contoso.onmicrosoft.com", directory.Exchange, send...), visitor.AuthOK, ""},
		{"no FullAccess", nil, "hr@contoso.com", erp, visitor.AuthFailed, "user has no FullAccess"},
		{"no FullAccess back", nil, "erp@contoso.com", token("hr@contoso.com", directory.Exchange, send...), visitor.AuthFailed, "user has no FullAccess"},
		{"no SMTP.Send", nil, "erp@contoso.com", token("erp@contoso.com", directory.Exchange, "IMAP.AccessAsUser.All"), visitor.AuthFailed, "token has no SMTP.Send"},
		{"SMTP.SendAsApp is no scope", nil, "erp@contoso.com", token("erp@contoso.com", directory.Exchange, "SMTP.SendAsApp"), visitor.AuthFailed, "token has no SMTP.Send"},
		{"audience Graph", nil, "erp@contoso.com", token("erp@contoso.com", "https://graph.microsoft.com", send...), visitor.AuthFailed, "token is for another audience"},
		{"an alias", nil, "sap@contoso.com", erp, visitor.AuthFailed, "no such mailbox"},
		{"a user without mailbox", nil, "admin@contoso.onmicrosoft.com", token("admin@contoso.onmicrosoft.com", directory.Exchange, send...), visitor.AuthFailed, "no such mailbox"},
		{"nobody", nil, "erp@contoso.com", token("boss@contoso.com", directory.Exchange, send...), visitor.AuthFailed, "no such user"},
		{"disabled", func(c *Config) { c.Users[0].Disabled = true }, "erp@contoso.com", erp, visitor.AuthFailed, "user is disabled"},
		{"revoked", nil, "erp@contoso.com", func(s *Server) string {
			defer s.RevokeUser("ERP@contoso.com")
			return erp(s)
		}, visitor.AuthFailed, "token revoked"},
		{"another one revoked", nil, "erp@contoso.com", func(s *Server) string {
			defer s.RevokeUser("hr@contoso.com")
			return erp(s)
		}, visitor.AuthOK, ""},
		{"the app need not be in Exchange", func(c *Config) { c.Apps[4].NotInExchange = true }, "erp@contoso.com", erp, visitor.AuthOK, ""},
		{"mailbox switch", func(c *Config) { c.Mailboxes[0].SMTPAuthDisabled = true }, "erp@contoso.com", erp,
			"535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. Visit https://aka.ms/smtp_auth_disabled for more information. " + visitor.Frontend, string(directory.MailboxOff)},
		{"High Volume, soon over", func(c *Config) { c.HighVolume = true }, "erp@contoso.com", func(s *Server) string {
			return s.IssueDelegated(app5, "erp@contoso.com", directory.Exchange, send, 9*time.Minute)
		}, "501 5.5.127 Invalid XOAUTH2 auth data - Token will expire soon error", "token expires soon"},
	} {
		s := startSignIn(t, tc.change)
		if got := greet(t, s).Say(visitor.XOAUTH2(tc.user, tc.token(s))); !visitor.Like(got, tc.want) {
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

// TestDelegatedMail: a shared mailbox sends in its own name.
func TestDelegatedMail(t *testing.T) {
	s := startSignIn(t, nil)
	k := greet(t, s)
	k.Want(visitor.XOAUTH2("scan@contoso.com", visitor.SignedIn(t, s, "erp@contoso.com")["access_token"].(string)), visitor.AuthOK)
	if got := k.Send("scan@contoso.com", "From: scan@contoso.com"+visitor.MessageID, 1); got[:4] != "250 " {
		t.Errorf("own name: %s", got)
	}
	if got := k.Send("erp@contoso.com", "From: erp@contoso.com"+visitor.MessageID, 1); got[:12] != "554 5.2.252 " {
		t.Errorf("the user's name: %s", got)
	}
}
