package directory

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Config is the organisation at the start. The zero value of a field means its default.
type Config struct {
	Tenant   string   `yaml:"tenant"`    // a domain of the tenant, for token URLs; contoso.onmicrosoft.com
	TenantID string   `yaml:"tenant_id"` // the tenant's GUID, accepted in token URLs too
	Domains  []string `yaml:"domains"`   // accepted domains, for token URLs, the MX endpoint, and for checking the mailboxes; none: not checked

	Apps      []App     `yaml:"apps"`
	Mailboxes []Mailbox `yaml:"mailboxes"`
	Users     []User    `yaml:"users"`        // who can sign in
	Accounts  []Account `yaml:"hve_accounts"` // of High Volume Email

	// ManagedIdentities are apps for the endpoints of a machine in Azure.
	ManagedIdentities []ManagedIdentity `yaml:"managed_identities"`

	// SMTPAuthDisabled switches SMTP AUTH off for the tenant.
	SMTPAuthDisabled bool `yaml:"smtp_auth_disabled"`
	// RejectDirectSend has the MX endpoint refuse envelope senders of Domains
	// that come by no connector.
	RejectDirectSend bool `yaml:"reject_direct_send"`
	// KnownRecipients are addresses that exist beside the mailboxes and their
	// aliases. Where there are any, the MX endpoint refuses all others in
	// Domains; where there are none, it takes them all.
	KnownRecipients []string `yaml:"known_recipients"`
}

// Complete fills in defaults and refuses what cannot be meant. Its errors begin with the wrong
// key. The caller's slices stay as they are.
func (c *Config) Complete() error {
	c.Tenant = cmp.Or(c.Tenant, "contoso.onmicrosoft.com")
	c.TenantID = cmp.Or(c.TenantID, "9a1f7d52-3c4e-4b6a-8d20-6f5e4c3b2a10")
	c.Apps, c.Mailboxes = slices.Clone(c.Apps), slices.Clone(c.Mailboxes)
	c.Users, c.ManagedIdentities = slices.Clone(c.Users), slices.Clone(c.ManagedIdentities)
	c.Accounts = slices.Clone(c.Accounts)
	for _, step := range []func() error{c.completeApps, c.checkMailboxes, c.checkAccounts, c.completeIdentities, c.completeUsers, c.checkRecipients} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) completeApps() error {
	seen := map[string]bool{}
	for i := range c.Apps {
		a := &c.Apps[i]
		if a.ClientID == "" || seen[a.ClientID] {
			return fmt.Errorf("apps[%d].client_id: %q is empty or listed twice", i, a.ClientID)
		}
		seen[a.ClientID] = true
		if err := a.complete(); err != nil {
			return fmt.Errorf("apps[%d].%w", i, err)
		}
	}
	return nil
}

func (c *Config) checkMailboxes() error {
	seen := map[string]bool{}
	for i, m := range c.Mailboxes {
		key := strings.ToLower(m.Address)
		if !strings.Contains(m.Address, "@") || seen[key] {
			return fmt.Errorf("mailboxes[%d].address: %q is no address or listed twice", i, m.Address)
		}
		seen[key] = true
		if len(c.Domains) > 0 && !c.owns(m.Address) {
			return fmt.Errorf("mailboxes[%d].address: %q is in none of the domains", i, m.Address)
		}
		if m.SMTPAuthDisabled && m.SMTPAuthEnabled {
			return fmt.Errorf("mailboxes[%d]: smtp_auth_disabled and smtp_auth_enabled exclude each other", i)
		}
	}
	return nil
}

func (c *Config) completeIdentities() error {
	systems, seen := 0, map[string]bool{}
	for _, a := range c.Apps {
		seen[a.ClientID] = true
	}
	for i := range c.ManagedIdentities {
		mi := &c.ManagedIdentities[i]
		if mi.ClientID == "" || seen[mi.ClientID] {
			return fmt.Errorf("managed_identities[%d].client_id: %q is empty or listed twice", i, mi.ClientID)
		}
		seen[mi.ClientID] = true
		if mi.Secret != "" || mi.CertificateFile != "" || mi.Public || mi.Federated != (Federated{}) {
			return fmt.Errorf("managed_identities[%d]: secret, certificate_file, public, federated: a managed identity has none", i)
		}
		if mi.SystemAssigned {
			systems++
		}
		if systems > 1 {
			return fmt.Errorf("managed_identities[%d].system_assigned: there is another one", i)
		}
		if err := mi.App.complete(); err != nil {
			return fmt.Errorf("managed_identities[%d].%w", i, err)
		}
	}
	return nil
}

func (c *Config) completeUsers() error {
	seen := map[string]bool{}
	for i := range c.Users {
		u := &c.Users[i]
		key := strings.ToLower(u.UPN)
		if !strings.Contains(u.UPN, "@") || seen[key] {
			return fmt.Errorf("users[%d].upn: %q is no sign-in name or listed twice", i, u.UPN)
		}
		seen[key] = true
		if u.ObjectID == "" {
			u.ObjectID = NewGUID()
		}
	}
	return nil
}

func (c *Config) checkRecipients() error {
	for i, a := range c.KnownRecipients {
		if !strings.Contains(a, "@") {
			return fmt.Errorf("known_recipients[%d]: %q is no address", i, a)
		}
		if !c.owns(a) {
			return fmt.Errorf("known_recipients[%d]: %q is in none of the domains", i, a)
		}
	}
	return nil
}

// owns reports whether an address is in one of Domains.
func (c *Config) owns(address string) bool {
	at := strings.LastIndexByte(address, '@')
	return at >= 0 && slices.ContainsFunc(c.Domains, func(d string) bool { return strings.EqualFold(d, address[at+1:]) })
}

// Contains reports whether a host name is one of Domains or below one.
func (c *Config) Contains(host string) bool {
	host = "." + strings.ToLower(host)
	return slices.ContainsFunc(c.Domains, func(d string) bool { return strings.HasSuffix(host, "."+strings.ToLower(d)) })
}

// HasUser reports whether somebody of that sign-in name is among Users.
func (c *Config) HasUser(upn string) bool {
	return slices.ContainsFunc(c.Users, func(u User) bool { return strings.EqualFold(u.UPN, upn) })
}
