package directory

import (
	"slices"
	"strings"
)

// User is somebody who can sign in.
type User struct {
	UPN        string   `yaml:"upn" json:"upn"`                 // the sign-in name, mostly the mailbox's address
	ObjectID   string   `yaml:"object_id" json:"object_id"`     // the oid in tokens; made up
	FullAccess []string `yaml:"full_access" json:"full_access"` // mailboxes besides the own one; "*" is all
	// What makes Entra refuse the user, at the sign-in page and at every refresh.
	Disabled  bool `yaml:"disabled" json:"disabled"`     // AADSTS50057
	Blocked   bool `yaml:"blocked" json:"blocked"`       // AADSTS53003, by Conditional Access
	NoConsent bool `yaml:"no_consent" json:"no_consent"` // AADSTS65001: nobody consented to the app, and users may not
	// NeedsMFA refuses the refreshes of earlier sign-ins (AADSTS50076). To sign
	// in again helps: the user has a second factor at hand.
	NeedsMFA bool `yaml:"needs_mfa" json:"needs_mfa"`
}

// mayUse reports whether the user may send as a mailbox signed in as himself.
func (u *User) mayUse(address string) bool {
	return strings.EqualFold(u.UPN, address) ||
		slices.ContainsFunc(u.FullAccess, func(x string) bool { return x == "*" || strings.EqualFold(x, address) })
}

// clone returns a copy that shares nothing.
func (u *User) clone() User {
	c := *u
	c.FullAccess = slices.Clone(u.FullAccess)
	return c
}

// Users returns all users, in the order of the configuration.
func (t *Tenant) Users() []User {
	var list []User
	for _, u := range t.cfg.Users {
		now, _ := t.User(u.UPN)
		list = append(list, now)
	}
	return list
}

// User returns a copy of a user's settings.
func (t *Tenant) User(upn string) (User, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.users[strings.ToLower(upn)]
	if u == nil {
		return User{}, false
	}
	return u.clone(), true
}

// SetUser changes a user while the simulator runs; UPN and ObjectID stay. It
// does nothing for one that does not exist. change must not call the simulator.
func (t *Tenant) SetUser(upn string, change func(*User)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.users[strings.ToLower(upn)]
	if u == nil {
		return
	}
	c := u.clone()
	change(&c)
	c.UPN, c.ObjectID = u.UPN, u.ObjectID
	*u = c
}
