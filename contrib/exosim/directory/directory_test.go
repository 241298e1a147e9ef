package directory

import (
	"testing"
	"time"
)

// contoso has an app of each model, two users and three mailboxes.
func contoso(t *testing.T, change func(*Config)) *Tenant {
	t.Helper()
	c := Config{
		Domains: []string{"contoso.com"},
		Apps: []App{
			{ClientID: "rbac", ObjectID: "o1", Mailboxes: []string{"erp@contoso.com", "gone@contoso.com"}},
			{ClientID: "classic", ObjectID: "o2", Model: ModelClassic, FullAccess: []string{"ERP@contoso.com"}, RBACScope: []string{"*"}},
			{ClientID: "wrong", ObjectID: "o3", ExchangeID: "app-registration-id", Mailboxes: []string{"*"}},
		},
		Users:     []User{{UPN: "erp@contoso.com", FullAccess: []string{"scan@contoso.com"}}, {UPN: "left@contoso.com", Disabled: true}},
		Mailboxes: []Mailbox{{Address: "erp@contoso.com", Aliases: []string{"sap@contoso.com"}}, {Address: "scan@contoso.com"}, {Address: "hr@contoso.com"}},
	}
	if change != nil {
		change(&c)
	}
	if err := c.Complete(); err != nil {
		t.Fatal(err)
	}
	return New(c)
}

func TestAdmit(t *testing.T) {
	rbac, classic, wrong := Claims{AppID: "rbac", ObjectID: "o1"}, Claims{AppID: "classic", ObjectID: "o2", Roles: []string{"SMTP.SendAsApp"}}, Claims{AppID: "wrong", ObjectID: "o3"}
	user := func(upn string, scopes ...string) Claims { return Claims{AppID: "any", User: upn, Scopes: scopes} }
	tenantOff := func(c *Config) { c.SMTPAuthDisabled = true }
	for _, tc := range []struct {
		name   string
		change func(*Config)
		claims Claims
		user   string
		want   Denial
	}{
		{"in scope", nil, rbac, "ERP@contoso.com", ""},
		{"out of scope", nil, rbac, "hr@contoso.com", "mailbox is not in the role's scope"},
		{"no such mailbox", nil, rbac, "gone@contoso.com", "no such mailbox"},
		{"an alias is no mailbox", nil, rbac, "sap@contoso.com", "no such mailbox"},
		{"classic", nil, classic, "erp@contoso.com", ""},
		{"classic, a scope does not help", nil, classic, "hr@contoso.com", "no FullAccess"},
		{"classic without its role", nil, Claims{AppID: "classic", ObjectID: "o2", Roles: []string{"Mail.Send"}}, "erp@contoso.com", "token has roles, but not SMTP.SendAsApp"},
		{"wrong object id", nil, wrong, "erp@contoso.com", "service principal has another object id"},
		{"unknown app", nil, Claims{AppID: "none"}, "erp@contoso.com", "no service principal in Exchange"},
		{"own mailbox", nil, user("ERP@contoso.com", "IMAP.AccessAsUser.All", "SMTP.Send"), "erp@contoso.com", ""},
		{"FullAccess", nil, user("erp@contoso.com", "SMTP.Send"), "scan@contoso.com", ""},
		{"no FullAccess", nil, user("erp@contoso.com", "SMTP.Send"), "hr@contoso.com", "user has no FullAccess"},
		{"no permission", nil, user("erp@contoso.com", "SMTP.SendAsApp"), "erp@contoso.com", "token has no SMTP.Send"},
		{"nobody", nil, user("boss@contoso.com", "SMTP.Send"), "erp@contoso.com", "no such user"},
		{"disabled", nil, user("left@contoso.com", "SMTP.Send"), "erp@contoso.com", "user is disabled"},
		{"tenant switch", tenantOff, rbac, "erp@contoso.com", TenantOff},
		{"tenant switch after the rights", tenantOff, rbac, "hr@contoso.com", "mailbox is not in the role's scope"},
		{"in spite of the tenant", func(c *Config) { c.SMTPAuthDisabled, c.Mailboxes[0].SMTPAuthEnabled = true, true }, rbac, "erp@contoso.com", ""},
		{"mailbox switch", func(c *Config) { c.Mailboxes[0].SMTPAuthDisabled = true }, rbac, "erp@contoso.com", MailboxOff},
	} {
		m, why := contoso(t, tc.change).Admit(&tc.claims, tc.user)
		if why != tc.want || (m.Address != "") != (why == "") {
			t.Errorf("%s: %q, %q, want %q", tc.name, m.Address, why, tc.want)
		}
	}
}

func TestForUs(t *testing.T) {
	d := contoso(t, nil)
	for _, tc := range []struct {
		audience, tenant string
		want             Denial
	}{
		{Exchange, d.ID(), ""},
		{"https://outlook.office.com/", d.ID(), ""},
		{"https://graph.microsoft.com", d.ID(), "token is for another audience"},
		{"", d.ID(), "token is for another audience"},
		{Exchange, "another", "token of another tenant"},
	} {
		if got := d.ForUs(&Claims{Audience: tc.audience, TenantID: tc.tenant}); got != tc.want {
			t.Errorf("%q of %q: %q, want %q", tc.audience, tc.tenant, got, tc.want)
		}
	}
}

// TestCopies: what was given out does not change what is kept, nor the other way round.
func TestCopies(t *testing.T) {
	d := contoso(t, nil)
	m, _ := d.Mailbox("erp@contoso.com")
	m.Aliases[0] = "x"
	u, _ := d.User("erp@contoso.com")
	u.FullAccess[0] = "x"
	app := d.App("rbac")
	d.SetApp("rbac", func(a *App) { a.Secret, a.ClientID = "new", "other" })
	d.SetMailbox("erp@contoso.com", func(m *Mailbox) { m.Address = "x" })
	d.SetUser("erp@contoso.com", func(u *User) { u.UPN, u.Blocked = "x", true })
	if app.Secret != "" || d.App("rbac").Secret != "new" || d.App("rbac").ClientID != "rbac" {
		t.Errorf("app: before %+q, now %+q", app.Secret, d.App("rbac").Secret)
	}
	if m := d.Mailboxes()[0]; m.Aliases[0] != "sap@contoso.com" || m.Address != "erp@contoso.com" {
		t.Errorf("mailbox %+v", m)
	}
	if u := d.Users()[0]; u.FullAccess[0] != "scan@contoso.com" || u.UPN != "erp@contoso.com" || !u.Blocked {
		t.Errorf("user %+v", u)
	}
}

func TestNow(t *testing.T) {
	d := contoso(t, nil)
	d.SetSkew(-time.Hour)
	if ahead := time.Until(d.Now()); ahead > -time.Hour || ahead < -61*time.Minute {
		t.Errorf("ahead by %v, want an hour behind", ahead)
	}
}
