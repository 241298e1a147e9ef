package exosim

import (
	"maps"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
)

func TestAuth(t *testing.T) {
	token := func(app string) func(*Server) string {
		return func(s *Server) string { return s.Issue(app, directory.Exchange, time.Hour) }
	}
	for _, tc := range []struct {
		name   string
		change func(*Config)
		user   string
		token  func(*Server) string
		want   string
		why    string
	}{
		{"App RBAC, in scope", nil, "ERP@contoso.com", token(app1), visitor.AuthOK, ""},
		{"App RBAC, out of scope", nil, "hr@contoso.com", token(app1), visitor.AuthFailed, "mailbox is not in the role's scope"},
		{"App RBAC, FullAccess does not help", func(c *Config) { c.Apps[0].FullAccess = []string{"hr@contoso.com"} }, "hr@contoso.com", token(app1), visitor.AuthFailed, "mailbox is not in the role's scope"},
		{"App RBAC, every mailbox", func(c *Config) { c.Apps[0].RBACScope = []string{"*"} }, "hr@contoso.com", token(app1), visitor.AuthOK, ""},
		{"classic", nil, "erp@contoso.com", token(app2), visitor.AuthOK, ""},
		{"classic, no FullAccess", nil, "scan@contoso.com", token(app2), visitor.AuthFailed, "no FullAccess"},
		{"classic, a scope does not help", func(c *Config) { c.Apps[1].RBACScope = []string{"*"} }, "scan@contoso.com", token(app2), visitor.AuthFailed, "no FullAccess"},
		{"model classic is the role", func(c *Config) {
			c.Apps[0].Model, c.Apps[0].FullAccess = directory.ModelClassic, []string{"hr@contoso.com"}
		}, "hr@contoso.com", token(app1), visitor.AuthOK, ""},
		{"classic, another role", nil, "erp@contoso.com", token(app3), visitor.AuthFailed, "token has roles, but not SMTP.SendAsApp"},
		{"wrong object id", nil, "erp@contoso.com", token(app4), visitor.AuthFailed, "service principal has another object id"},
		{"not in Exchange", func(c *Config) { c.Apps[0].NotInExchange = true }, "erp@contoso.com", token(app1), visitor.AuthFailed, "no service principal in Exchange"},
		{"unknown app", nil, "erp@contoso.com", token("nobody"), visitor.AuthFailed, "no service principal in Exchange"},
		{"no such mailbox", nil, "gone@contoso.com", token(app1), visitor.AuthFailed, "no such mailbox"},
		{"an alias is no mailbox", nil, "sap@contoso.com", token(app1), visitor.AuthFailed, "no such mailbox"},
		{"audience Graph", nil, "erp@contoso.com", func(s *Server) string { return s.Issue(app1, "https://graph.microsoft.com", time.Hour) }, visitor.AuthFailed, "token is for another audience"},
		{"audience outlook.office.com", nil, "erp@contoso.com", func(s *Server) string { return s.Issue(app1, "https://outlook.office.com", time.Hour) }, visitor.AuthOK, ""},
		{"expired", nil, "erp@contoso.com", func(s *Server) string { return s.Issue(app1, directory.Exchange, -time.Second) }, visitor.AuthFailed, "token expired"},
		{"garbled", nil, "erp@contoso.com", func(s *Server) string { return s.Issue(app1, directory.Exchange, time.Hour)[1:] }, visitor.AuthFailed, "token is not one of ours"},
		{"no token at all", nil, "erp@contoso.com", func(*Server) string { return "EwBAAl3BAAUFFpUAo7J3Ve0bjLBWZWCclRC3EoAA" }, visitor.AuthFailed, "token is not one of ours"},
		{"of another simulator", nil, "erp@contoso.com", func(*Server) string { return startTest(t, nil).Issue(app1, directory.Exchange, time.Hour) }, visitor.AuthFailed, "token is not one of ours"},
		{"revoked", nil, "erp@contoso.com", func(s *Server) string {
			defer s.RevokeTokens()
			return s.Issue(app1, directory.Exchange, time.Hour)
		}, visitor.AuthFailed, "token revoked"},
		{"issued after the revocation", nil, "erp@contoso.com", func(s *Server) string {
			s.RevokeTokens()
			return s.Issue(app1, directory.Exchange, time.Hour)
		}, visitor.AuthOK, ""},
		{"tenant switch", func(c *Config) { c.SMTPAuthDisabled = true }, "erp@contoso.com", token(app1),
			"535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled for more information. " + visitor.Frontend, string(directory.TenantOff)},
		{"mailbox in spite of the tenant", func(c *Config) { c.SMTPAuthDisabled, c.Mailboxes[0].SMTPAuthEnabled = true, true }, "erp@contoso.com", token(app1), visitor.AuthOK, ""},
		{"mailbox switch", func(c *Config) { c.Mailboxes[0].SMTPAuthDisabled = true }, "erp@contoso.com", token(app1),
			"535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. Visit https://aka.ms/smtp_auth_disabled for more information. " + visitor.Frontend, string(directory.MailboxOff)},
		{"High Volume, soon over", func(c *Config) { c.HighVolume = true }, "erp@contoso.com", func(s *Server) string { return s.Issue(app1, directory.Exchange, 9*time.Minute) },
			"501 5.5.127 Invalid XOAUTH2 auth data - Token will expire soon error", "token expires soon"},
		{"High Volume, long enough", func(c *Config) { c.HighVolume = true }, "erp@contoso.com", func(s *Server) string { return s.Issue(app1, directory.Exchange, 11*time.Minute) }, visitor.AuthOK, ""},
	} {
		s := startTest(t, tc.change)
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
