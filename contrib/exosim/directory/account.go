package directory

import (
	"fmt"
	"slices"
	"strings"
)

// Account is an account of High Volume Email: a mail user that has no mailbox, no Send As, and its own
// list of apps.
type Account struct {
	Address string `yaml:"address" json:"address"`
	// Apps are the object ids of the enterprise applications on its list (Add-HVEAppAccess). A signed-in
	// user, who is the account, needs none.
	Apps    []string `yaml:"apps" json:"apps,omitempty"`
	Refusal string   `yaml:"refusal" json:"refusal,omitempty"` // of every message, such as "451 4.7.0 Temporary server error"
}

// The denials of High Volume Email that have a text of their own on the wire.
const (
	TokenExpired Denial = "token expired"

	NoMailSend Denial = "token has no Mail.Send"
	NoAccount  Denial = "mailbox is no High Volume Email account"
)

// MailSend is the permission for High Volume Email, of an app and of a user.
const MailSend = "Mail.Send"

// AdmitAccount decides whether the bearer of a token that is live may sign in as the account of a user
// name, and returns it, or why not. listed tells whether the app is on the account's list, which
// the service says later.
func (t *Tenant) AdmitAccount(c *Claims, user string) (a Account, listed bool, why Denial) {
	t.mu.Lock()
	defer t.mu.Unlock()
	account := t.accounts[strings.ToLower(user)]
	switch {
	case strings.TrimSuffix(c.Audience, "/") == Exchange, !slices.Contains(slices.Concat(c.Roles, c.Scopes), MailSend):
		return a, false, NoMailSend
	case account == nil && t.mailboxes[strings.ToLower(user)] != nil:
		return a, false, NoAccount
	case account == nil:
		return a, false, "no such account"
	case c.Delegated() && !strings.EqualFold(c.User, account.Address):
		return a, false, "user is not the account"
	}
	return account.clone(), c.Delegated() || slices.Contains(account.Apps, c.ObjectID), ""
}

func (a *Account) clone() Account {
	c := *a
	c.Apps = slices.Clone(a.Apps)
	return c
}

// Account returns a copy of an account's settings.
func (t *Tenant) Account(address string) (Account, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := t.accounts[strings.ToLower(address)]
	if a == nil {
		return Account{}, false
	}
	return a.clone(), true
}

// Accounts returns copies of all, in the order of the configuration.
func (t *Tenant) Accounts() []Account {
	var list []Account
	for _, a := range t.cfg.Accounts {
		now, _ := t.Account(a.Address)
		list = append(list, now)
	}
	return list
}

// SetAccount changes an account while the simulator runs; its address stays. It does nothing for one
// that does not exist. change must not call the simulator.
func (t *Tenant) SetAccount(address string, change func(*Account)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := t.accounts[strings.ToLower(address)]
	if a == nil {
		return
	}
	c := a.clone()
	change(&c)
	c.Address = a.Address
	*a = c
}

func (c *Config) checkAccounts() error {
	seen := map[string]bool{}
	for _, m := range c.Mailboxes {
		seen[strings.ToLower(m.Address)] = true
	}
	for i, a := range c.Accounts {
		key := strings.ToLower(a.Address)
		if !strings.Contains(a.Address, "@") || seen[key] {
			return fmt.Errorf("hve_accounts[%d].address: %q is no address, a mailbox or listed twice", i, a.Address)
		}
		seen[key] = true
		if len(c.Domains) > 0 && !c.owns(a.Address) {
			return fmt.Errorf("hve_accounts[%d].address: %q is in none of the domains", i, a.Address)
		}
	}
	return nil
}
