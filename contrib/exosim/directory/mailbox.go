package directory

import (
	"slices"
	"strings"
)

// Mailbox is a mailbox of the tenant.
type Mailbox struct {
	Address          string   `yaml:"address" json:"address"`
	Aliases          []string `yaml:"aliases" json:"aliases,omitempty"`
	SendAs           []string `yaml:"send_as" json:"send_as,omitempty"` // addresses on which this mailbox has Send As
	SMTPAuthDisabled bool     `yaml:"smtp_auth_disabled" json:"smtp_auth_disabled"`
	SMTPAuthEnabled  bool     `yaml:"smtp_auth_enabled" json:"smtp_auth_enabled"` // in spite of the tenant's switch
	Full             bool     `yaml:"full" json:"full"`                           // Sent Items filled it
	Refusal          string   `yaml:"refusal" json:"refusal,omitempty"`           // of every message, such as "550 5.1.8 Access denied"
	NoLogon          bool     `yaml:"no_logon" json:"no_logon"`                   // permissions have not replicated
}

// MayBe reports whether an address is the mailbox's own, an alias or a Send As
// address.
func (m *Mailbox) MayBe(address string) bool {
	same := func(x string) bool { return strings.EqualFold(x, address) }
	return same(m.Address) || slices.ContainsFunc(m.Aliases, same) || slices.ContainsFunc(m.SendAs, same)
}

// clone returns a copy that shares nothing.
func (m *Mailbox) clone() Mailbox {
	c := *m
	c.Aliases, c.SendAs = slices.Clone(m.Aliases), slices.Clone(m.SendAs)
	return c
}

// Mailbox returns a copy of a mailbox's settings.
func (t *Tenant) Mailbox(address string) (Mailbox, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.mailboxes[strings.ToLower(address)]
	if m == nil {
		return Mailbox{}, false
	}
	return m.clone(), true
}

// Mailboxes returns copies of all, in the order of the configuration.
func (t *Tenant) Mailboxes() []Mailbox {
	var list []Mailbox
	for _, m := range t.cfg.Mailboxes {
		now, _ := t.Mailbox(m.Address)
		list = append(list, now)
	}
	return list
}

// SetMailbox changes a mailbox while the simulator runs; its address stays. It
// does nothing for one that does not exist. change must not call the simulator.
func (t *Tenant) SetMailbox(address string, change func(*Mailbox)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.mailboxes[strings.ToLower(address)]
	if m == nil {
		return
	}
	c := m.clone()
	change(&c)
	c.Address = m.Address
	*m = c
}
