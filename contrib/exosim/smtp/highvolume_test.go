package smtp

import (
	"fmt"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
)

const (
	hveAccount  = "notices@contoso.com"
	hveAudience = "https://outlook.office.com"
	hveApp      = "0b1ec700-0000-4000-8000-00000000aaaa" // the object id
)

// startHighVolume is a site with an account of High Volume Email.
func startHighVolume(t *testing.T, change func(*siteConfig)) *site {
	t.Helper()
	return startTest(t, func(c *siteConfig) {
		c.HVE, c.Accounts = "127.0.0.1:0", []directory.Account{{Address: hveAccount, Apps: []string{hveApp}}}
		c.Domains, c.SMTPAuthDisabled = []string{"contoso.com"}, true // whose switch is nothing to it
		if change != nil {
			change(c)
		}
	})
}

// grant makes a token of claims that lacks nothing but what change takes.
func (s *site) grant(change func(*directory.Claims)) string {
	c := &directory.Claims{ObjectID: hveApp, TenantID: s.ID(), Audience: hveAudience, Roles: []string{"Mail.Send"}, Expires: time.Now().Add(time.Hour)}
	if change != nil {
		change(c)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := fmt.Sprintf("token%d", len(s.tokens))
	s.tokens[name] = c
	return name
}

// greetHighVolume comes as far as the second EHLO.
func greetHighVolume(t *testing.T, s *site) *visitor.Client {
	t.Helper()
	k := visitor.Dial(t, s.hve.Addr().String(), "", s.pem)
	k.StartTLS()
	k.Say("EHLO relay.example.com")
	return k
}

func TestHighVolumeSignIn(t *testing.T) {
	s := startHighVolume(t, nil)
	later := startHighVolume(t, func(c *siteConfig) { c.HVESoonText = "5.7.142" })
	for _, tc := range []struct {
		name, user string
		change     func(*directory.Claims)
		want       string
	}{
		{"an app", hveAccount, nil, visitor.AuthOK},
		{"capitals", "Notices@Contoso.com", nil, visitor.AuthOK},
		{"the account itself", hveAccount, func(c *directory.Claims) { c.Roles, c.Scopes, c.User = nil, []string{"Mail.Send"}, hveAccount }, visitor.AuthOK},
		{"another user", hveAccount, func(c *directory.Claims) { c.Roles, c.Scopes, c.User = nil, []string{"Mail.Send"}, "erp@contoso.com" }, "535 5.7.3 *"},
		{"the permission of submission", hveAccount, func(c *directory.Claims) { c.Roles = []string{"SMTP.SendAsApp"} }, "535 5.7.144 XOAUTH2 authentication failed. Invalid API permissions. *"},
		{"no permission", hveAccount, func(c *directory.Claims) { c.Roles = nil }, "535 5.7.144 *"},
		{"the scope of submission", hveAccount, func(c *directory.Claims) { c.Audience = directory.Exchange }, "535 5.7.144 *"},
		{"for Graph", hveAccount, func(c *directory.Claims) { c.Audience = "https://graph.microsoft.com" }, "535 5.7.3 *"},
		{"of another tenant", hveAccount, func(c *directory.Claims) { c.TenantID = "x" }, "535 5.7.3 *"},
		{"a mailbox", "erp@contoso.com", nil, "550 5.2.240 *"},
		{"nobody", "nobody@contoso.com", nil, "535 5.7.3 *"},
		{"nine minutes left", hveAccount, func(c *directory.Claims) { c.Expires = time.Now().Add(9 * time.Minute) }, "501 5.5.127 Invalid XOAUTH2 auth data - Token will expire soon error"},
	} {
		if got := greetHighVolume(t, s).Say(visitor.XOAUTH2(tc.user, s.grant(tc.change))); !visitor.Like(got, tc.want) {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
	greetHighVolume(t, s).Dialogue([]visitor.Step{
		{"AUTH XOAUTH2 !!!", "501 5.5.124 Invalid XOAUTH2 auth data"}, {"MAIL FROM:<a@b.c>", "530 5.7.57 *"},
	})
	soon := later.grant(func(c *directory.Claims) { c.Expires = time.Now().Add(time.Minute) })
	greetHighVolume(t, later).Want(visitor.XOAUTH2(hveAccount, soon), "535 5.7.142 *")
}

func TestHighVolumeMessages(t *testing.T) {
	s := startHighVolume(t, func(c *siteConfig) { c.HVEMaxRcpts, c.HVEMaxSize, c.Messages, c.Connections = 2, 2000, 1, 1 })
	enter := func(token string) *visitor.Client {
		t.Helper()
		k := greetHighVolume(t, s)
		k.Want(visitor.XOAUTH2(hveAccount, token), visitor.AuthOK)
		return k
	}
	unlisted := s.grant(func(c *directory.Claims) { c.ObjectID = "another" })
	enter(unlisted).Want("MAIL FROM:<"+hveAccount+">", "550 5.7.240 The application is not allowed for use with this High Volume Email account *")
	k := enter(s.grant(nil))
	k.Dialogue([]visitor.Step{
		{"MAIL FROM:<erp@contoso.com>", "550 5.7.62 *"},
		{"MAIL FROM:<>", "550 5.7.62 *"},
		{"MAIL FROM:<" + hveAccount + "> SIZE=2001", "552 5.3.4 *"},
		{"MAIL FROM:<" + hveAccount + ">", "250 *"},
		{"RCPT TO:<someone@fabrikam.com>", "550 5.5.105 External sending is not supported for High Volume Email accounts *"},
		{"RCPT TO:<a@contoso.com>", "250 *"}, {"RCPT TO:<b@contoso.com>", "250 *"},
		{"RCPT TO:<c@contoso.com>", "452 4.5.3 Too many recipients"},
		{"DATA", "354 *"},
		{"From: erp@contoso.com\r\n\r\nx\r\n.", "550 5.6.241 *"},
	})
	good := []visitor.Step{
		{"MAIL FROM:<" + hveAccount + ">", "250 *"}, {"RCPT TO:<a@contoso.com>", "250 *"}, {"DATA", "354 *"},
		{"From: Payroll <" + hveAccount + ">\r\nMessage-ID: <1@x>\r\n\r\nx\r\n.", "250 2.0.0 OK <1@x> *"},
	}
	for range 3 { // more than submission would take in a minute
		k.Dialogue(good)
	}
	s.SetAccount(hveAccount, func(a *directory.Account) { a.Refusal = "451 4.7.0 Temporary server error" })
	good[3][1] = "451 4.7.0 *"
	k.Dialogue(good)
	if u := s.Usage(hveAccount); u.Accepted != 3 || u.Refused["550"] != 1 || u.Refused["451"] != 1 || u.TotalRecipients != 3 {
		t.Errorf("usage %+v", u)
	}
	for _, m := range s.Messages() {
		if m.Endpoint != EndpointHighVolume || m.Mailbox != hveAccount {
			t.Errorf("a message by %s as %s", m.Endpoint, m.Mailbox)
		}
	}
}
