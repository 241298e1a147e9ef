package exosim

import (
	"fmt"
	"slices"
	"strings"
	"time"
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

// mayUse tells whether the user may send as a mailbox signed in as himself.
func (u *User) mayUse(address string) bool {
	return strings.EqualFold(u.UPN, address) ||
		slices.ContainsFunc(u.FullAccess, func(x string) bool { return x == "*" || strings.EqualFold(x, address) })
}

// userState is a user with what the simulator knows besides.
type userState struct {
	User
	validFrom time.Time // grants from before are revoked
}

// Users returns all users, in the order of the configuration.
func (s *Server) Users() []User {
	var list []User
	for _, u := range s.cfg.Users {
		now, _ := s.user(u.UPN)
		list = append(list, now)
	}
	return list
}

// user returns a copy of a user's settings.
func (s *Server) user(upn string) (User, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.users[strings.ToLower(upn)]
	if u == nil {
		return User{}, false
	}
	c := u.User
	c.FullAccess = slices.Clone(c.FullAccess)
	return c, true
}

// SetUser changes a user while the simulator runs; UPN and ObjectID stay. It
// does nothing for one that does not exist. change must not call the Server.
func (s *Server) SetUser(upn string, change func(*User)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.users[strings.ToLower(upn)]
	if u == nil {
		return
	}
	c := u.User
	c.FullAccess = slices.Clone(c.FullAccess)
	change(&c)
	c.UPN, c.ObjectID = u.UPN, u.ObjectID
	u.User = c
}

// RevokeUser ends all sessions of a user, as an administrator does, or a new
// password: access tokens issued so far get a 535 at AUTH, refresh tokens get
// AADSTS50173. It fails if there is no such user.
func (s *Server) RevokeUser(upn string) error {
	key := strings.ToLower(upn)
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.users[key]
	if u == nil {
		return fmt.Errorf("exosim: no user %q", upn)
	}
	u.validFrom = time.Now()
	for id, t := range s.tokens {
		if t.user == key {
			delete(s.tokens, id)
		}
	}
	return nil
}

// session is what a sign-in leaves behind, and all tokens that come of it.
type session struct {
	clientID string
	user     string // UPN
	scopes   scopes // what was consented to
	began    time.Time
	mfa      bool // signed in with a second factor
}

// signIn is what the sign-in page does for a user. A second factor is given
// where it is wanted.
func (s *Server) signIn(q *tokenQuery, user string, sc scopes) (*session, *refusal) {
	u, known := s.user(user)
	if !known {
		return nil, s.refuseFor(q, 50034, "{user}", user)
	}
	n := &session{clientID: q.clientID, user: u.UPN, scopes: sc, began: time.Now(), mfa: u.NeedsMFA}
	if refused := s.checkSession(q, n); refused != nil {
		return nil, refused
	}
	return n, nil
}

// checkSession tells whether Entra still gives tokens to a user who has signed
// in.
func (s *Server) checkSession(q *tokenQuery, n *session) *refusal {
	s.mu.Lock()
	u := *s.users[strings.ToLower(n.user)] // users are never removed
	s.mu.Unlock()
	switch {
	case u.Disabled:
		return s.refuseFor(q, 50057)
	case n.began.Before(u.validFrom):
		return s.refuseFor(q, 50173, "{issued}", entraTime(n.began), "{from}", entraTime(u.validFrom))
	case u.Blocked:
		return s.refuseFor(q, 53003)
	case u.NeedsMFA && !n.mfa:
		return s.refuseFor(q, 50076)
	case u.NoConsent:
		return s.refuseFor(q, 65001)
	}
	return nil
}
