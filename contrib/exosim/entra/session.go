package entra

import (
	"fmt"
	"strings"
	"time"
)

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
func (l *Login) signIn(q *tokenQuery, user string, sc scopes) (*session, *refusal) {
	u, known := l.dir.User(user)
	if !known {
		return nil, l.refuseFor(q, 50034, "{user}", user)
	}
	n := &session{clientID: q.clientID, user: u.UPN, scopes: sc, began: time.Now(), mfa: u.NeedsMFA}
	if refused := l.checkSession(q, n); refused != nil {
		return nil, refused
	}
	return n, nil
}

// checkSession returns why Entra gives no more tokens to a user who has signed in.
func (l *Login) checkSession(q *tokenQuery, n *session) *refusal {
	u, _ := l.dir.User(n.user) // users are never removed
	l.mu.Lock()
	validFrom := l.validFrom[strings.ToLower(n.user)]
	l.mu.Unlock()
	switch {
	case u.Disabled:
		return l.refuseFor(q, 50057)
	case n.began.Before(validFrom):
		return l.refuseFor(q, 50173, "{issued}", loginTime(n.began), "{from}", loginTime(validFrom))
	case u.Blocked:
		return l.refuseFor(q, 53003)
	case u.NeedsMFA && !n.mfa:
		return l.refuseFor(q, 50076)
	case u.NoConsent:
		return l.refuseFor(q, 65001)
	}
	return nil
}

// RevokeUser ends all sessions of a user, as an administrator does, or a new
// password: access tokens issued so far get a 535 at AUTH, refresh tokens get
// AADSTS50173. It fails if there is no such user.
func (l *Login) RevokeUser(upn string) error {
	if _, known := l.dir.User(upn); !known {
		return fmt.Errorf("exosim: no user %q", upn)
	}
	key := strings.ToLower(upn)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.validFrom[key] = time.Now()
	for id, t := range l.tokens {
		if t.user == key {
			delete(l.tokens, id)
		}
	}
	return nil
}
