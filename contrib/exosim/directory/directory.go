// Package directory is the organisation that the simulator plays: its names and domains, who
// exists in it (apps, users, mailboxes), and who may do what. Entra asks it when it gives tokens,
// Exchange Online when it takes them; neither has anything of its own about people.
//
// [Config] is how it begins and [Tenant] is what lives. The settings of a mailbox, a user and an
// app can change at any time, by the Set methods, but none comes or goes. What they do, and what
// was given to them, is counted and kept by those who serve them.
package directory

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Tenant is a running organisation. Its methods are safe for concurrent use.
type Tenant struct {
	cfg Config

	mu        sync.Mutex          // guards what follows
	apps      map[string]*App     // by client id, managed identities among them; an App never changes
	users     map[string]*User    // by lower-case UPN
	mailboxes map[string]*Mailbox // by lower-case address
	accounts  map[string]*Account // likewise
	noAuth    bool                // SMTP AUTH is off for the tenant
	noDirect  bool                // direct send is refused
	skew      time.Duration
}

// New makes a tenant of a configuration that [Config.Complete] has found good.
func New(c Config) *Tenant {
	t := &Tenant{
		cfg: c, apps: map[string]*App{}, users: map[string]*User{}, mailboxes: map[string]*Mailbox{}, accounts: map[string]*Account{},
		noAuth: c.SMTPAuthDisabled, noDirect: c.RejectDirectSend,
	}
	for i := range c.Apps {
		t.apps[c.Apps[i].ClientID] = &c.Apps[i]
	}
	for i := range c.ManagedIdentities {
		a := &c.ManagedIdentities[i].App
		t.apps[a.ClientID] = a
	}
	for _, u := range c.Users {
		t.users[strings.ToLower(u.UPN)] = &u
	}
	for _, m := range c.Mailboxes {
		t.mailboxes[strings.ToLower(m.Address)] = &m
	}
	for _, a := range c.Accounts {
		t.accounts[strings.ToLower(a.Address)] = &a
	}
	return t
}

// Name returns Config.Tenant, a domain; ID returns the GUID.
func (t *Tenant) Name() string { return t.cfg.Tenant }

// ID returns the tenant's GUID.
func (t *Tenant) ID() string { return t.cfg.TenantID }

// IsCalled reports whether a name in a URL is the tenant's: its name, its GUID or a domain of its.
func (t *Tenant) IsCalled(name string) bool {
	names := append([]string{t.cfg.Tenant, t.cfg.TenantID}, t.cfg.Domains...)
	return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, name) })
}

// Owns reports whether an address is in one of the tenant's domains.
func (t *Tenant) Owns(address string) bool { return t.cfg.owns(address) }

// Knows reports whether one of the tenant's addresses exists.
func (t *Tenant) Knows(address string) bool {
	same := func(x string) bool { return strings.EqualFold(x, address) }
	if len(t.cfg.KnownRecipients) == 0 || slices.ContainsFunc(t.cfg.KnownRecipients, same) {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.mailboxes {
		if same(m.Address) || slices.ContainsFunc(m.Aliases, same) {
			return true
		}
	}
	for _, a := range t.accounts {
		if same(a.Address) {
			return true
		}
	}
	return false
}

// RejectsDirectSend reports whether the tenant refuses its own envelope senders that come by no
// connector.
func (t *Tenant) RejectsDirectSend() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.noDirect
}

// SetRejectDirectSend switches Config.RejectDirectSend.
func (t *Tenant) SetRejectDirectSend(on bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.noDirect = on
}

// SetSMTPAuthDisabled switches SMTP AUTH off for the tenant, or on again.
func (t *Tenant) SetSMTPAuthDisabled(off bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.noAuth = off
}

// Now is what Microsoft's clocks show.
func (t *Tenant) Now() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Now().Add(t.skew)
}

// SetSkew says how far Microsoft's clocks are ahead of this machine's.
func (t *Tenant) SetSkew(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.skew = d
}

// NewGUID makes up an id as Entra gives them to all that it knows.
func NewGUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80 // RFC 9562, version 4
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
