package directory

import (
	"slices"
	"strings"
	"time"
)

// A Denial is why somebody does not get in, as the counters call it: "no FullAccess", "token
// expired". It is more exact than what the wire says; "" is no denial.
type Denial string

// The denials that have a text of their own on the wire.
const (
	TenantOff  Denial = "SMTP AUTH is off for the Tenant"
	MailboxOff Denial = "SMTP AUTH is off for the Mailbox"
)

const noMailbox Denial = "no such mailbox"

// Claims are what an access token says that Exchange looks at.
type Claims struct {
	AppID    string
	ObjectID string
	TenantID string
	Audience string
	Roles    []string // of an app
	Scopes   []string // of a signed-in user
	User     string   // UPN of a signed-in user
	Expires  time.Time
}

// Delegated reports whether a token speaks for a user, and not for an app.
func (c *Claims) Delegated() bool { return c.User != "" || len(c.Scopes) > 0 }

// Exchange is the usual resource of Exchange Online.
const Exchange = "https://outlook.office365.com"

// Audiences are all resources whose tokens Exchange Online takes for SMTP, those of other clouds
// among them. Nobody may change them.
var Audiences = []string{Exchange, "https://outlook.office.com", "https://outlook.office365.us", "https://partner.outlook.cn"}

// SMTPSend is the delegated permission to send mail.
const SMTPSend = "SMTP.Send"

// Admit decides whether the bearer of a token that is live may send mail as the mailbox of a user
// name, and returns that mailbox, or why not.
func (t *Tenant) Admit(c *Claims, user string) (Mailbox, Denial) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.mailboxes[strings.ToLower(user)]
	why := t.appMay(c, m)
	if c.Delegated() {
		why = t.userMay(c, m)
	}
	switch {
	case why != "":
		return Mailbox{}, why
	case m.SMTPAuthDisabled:
		return Mailbox{}, MailboxOff
	case t.noAuth && !m.SMTPAuthEnabled:
		return Mailbox{}, TenantOff
	}
	return m.clone(), ""
}

// ForUs returns why a token is not one for Exchange Online and this tenant.
func (t *Tenant) ForUs(c *Claims) Denial {
	switch {
	case !slices.Contains(Audiences, strings.TrimSuffix(c.Audience, "/")):
		return "token is for another audience"
	case c.TenantID != t.cfg.TenantID:
		return "token of another tenant"
	}
	return ""
}

// appMay returns why an app's token does not open a mailbox, which may be nil.
// The caller holds the lock.
func (t *Tenant) appMay(c *Claims, m *Mailbox) Denial {
	app := t.apps[c.AppID]
	switch {
	case app == nil || app.NotInExchange:
		return "no service principal in Exchange"
	case app.ExchangeID != c.ObjectID:
		return "service principal has another object id"
	case m == nil:
		return noMailbox
	}
	return app.entitled(c.Roles, m.Address)
}

// userMay returns why a user's token does not open a mailbox, which may be nil.
// The caller holds the lock.
func (t *Tenant) userMay(c *Claims, m *Mailbox) Denial {
	u := t.users[strings.ToLower(c.User)]
	switch {
	case !slices.Contains(c.Scopes, SMTPSend):
		return "token has no SMTP.Send"
	case u == nil:
		return "no such user"
	case u.Disabled:
		return "user is disabled"
	case m == nil:
		return noMailbox
	case !u.mayUse(m.Address):
		return "user has no FullAccess"
	}
	return ""
}
