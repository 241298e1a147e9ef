package exosim

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// RefreshPolicy is how long refresh tokens are good.
type RefreshPolicy struct {
	// Idle is how long one may lie unused: AADSTS700082.
	Idle time.Duration `yaml:"idle"` // 90 days, 2160h
	// Frequency is after how long a user must sign in again, as a policy of
	// Conditional Access can want it: AADSTS70043; 0 is never.
	Frequency time.Duration `yaml:"frequency"`
	// RotateStrict makes a refresh token good for one use only. Entra gives a
	// new one each time, but leaves the old one valid.
	RotateStrict bool `yaml:"rotate_strict"`
}

// refreshToken is a refresh token that was given out.
type refreshToken struct {
	session *session
	issued  time.Time
}

// refresh is the refresh_token grant.
func (s *Server) refresh(q *tokenQuery) (map[string]any, *refusal) {
	app, refused := s.app(q)
	if refused != nil {
		return nil, refused
	}
	proof, refused := s.proveForUser(app, q)
	if refused != nil {
		return nil, refused
	}
	if q.form.Get("refresh_token") == "" {
		return nil, s.refuseFor(q, 900144, "{parameter}", "refresh_token")
	}
	t, refused := s.checkRefresh(q)
	if refused != nil {
		return nil, refused
	}
	sc, refused := s.narrow(q, t.session.scopes)
	if refused != nil {
		return nil, refused
	}
	if !s.spend(q.form.Get("refresh_token")) {
		return nil, s.refuseFor(q, 70000)
	}
	sc.offline = true // always a new one
	return s.userAnswer(q, app, t.session, sc, proof), nil
}

// narrow returns the scopes of a token request: those that it names, or those
// of the sign-in. Another resource than at the sign-in is right.
func (s *Server) narrow(q *tokenQuery, granted scopes) (scopes, *refusal) {
	if q.form.Get("scope") == "" {
		return granted, nil
	}
	sc, refused := s.parseScopes(q, q.form.Get("scope"), 28002)
	sc.offline = sc.offline || granted.offline
	return sc, refused
}

// checkRefresh finds a refresh token and checks its ages and its user.
func (s *Server) checkRefresh(q *tokenQuery) (refreshToken, *refusal) {
	s.mu.Lock()
	t, known := s.refreshTokens[q.form.Get("refresh_token")]
	s.mu.Unlock()
	if !known || t.session.clientID != q.clientID {
		return t, s.refuseFor(q, 70000)
	}
	if refused := s.checkSession(q, t.session); refused != nil {
		return t, refused
	}
	now, p := time.Now(), s.cfg.Refresh
	switch {
	case now.Sub(t.issued) >= p.Idle:
		return t, s.refuseFor(q, 700082, "{issued}", entraTime(t.issued), "{idle}", dotNetDuration(p.Idle))
	case p.Frequency > 0 && now.Sub(t.session.began) >= p.Frequency:
		return t, s.refuseFor(q, 70043, "{issued}", entraTime(t.issued), "{age}", strconv.Itoa(int(p.Frequency.Seconds())))
	}
	return t, nil
}

// dotNetDuration is 90.00:00:00 for 90 days.
func dotNetDuration(d time.Duration) string {
	d = d.Round(time.Second)
	day := 24 * time.Hour
	return fmt.Sprintf("%d.%02d:%02d:%02d", d/day, d%day/time.Hour, d%time.Hour/time.Minute, d%time.Minute/time.Second)
}

// spend takes a refresh token out of use where one use is all it has; false if
// another request was faster.
func (s *Server) spend(token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, there := s.refreshTokens[token]
	if s.cfg.Refresh.RotateStrict {
		delete(s.refreshTokens, token)
	}
	return there
}

// AgeGrants makes all refresh tokens and sign-ins of before look older, and what
// was revoked too, so that a test sees the end of 90 days.
func (s *Server) AgeGrants(by time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := map[*session]*session{}
	for key, t := range s.refreshTokens {
		if seen[t.session] == nil {
			older := *t.session
			older.began = older.began.Add(-by)
			seen[t.session] = &older
		}
		s.refreshTokens[key] = refreshToken{seen[t.session], t.issued.Add(-by)}
	}
	for _, u := range s.users {
		u.validFrom = u.validFrom.Add(-by)
	}
}

// RevokeGrants makes all refresh tokens issued so far unknown (AADSTS70000), as
// when the app registration is made anew.
func (s *Server) RevokeGrants() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.refreshTokens)
}

// userAnswer is the good answer of all flows with a user.
func (s *Server) userAnswer(q *tokenQuery, app *App, n *session, sc scopes, proof string) map[string]any {
	u, _ := s.user(n.user)
	life := s.tokenLife()
	answer := tokenAnswer(s.issueDelegated(app, u, sc.resource, sc.claim(), proof, life), life)
	answer["scope"] = sc.String()
	if sc.offline {
		token := opaque("1.AXoA", 700)
		s.mu.Lock()
		s.refreshTokens[token] = refreshToken{n, time.Now()}
		s.mu.Unlock()
		answer["refresh_token"] = token
	}
	if sc.openID {
		answer["id_token"] = s.idToken(q, u, life)
	}
	return answer
}

// idToken tells the app who signed in.
func (s *Server) idToken(q *tokenQuery, u User, life time.Duration) string {
	now := s.now()
	claims := jwt.MapClaims{
		"aud": q.clientID, "iss": q.base + "/" + s.cfg.TenantID + "/v2.0", "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(life).Unix(),
		"name": u.UPN, "oid": u.ObjectID, "preferred_username": u.UPN, "sub": "S" + u.ObjectID, "tid": s.cfg.TenantID, "ver": "2.0",
	}
	token, err := jwt.NewWithClaims(jwt.SigningMethodRS256, claims).SignedString(s.key)
	if err != nil {
		panic(err) // a key of our own, made at the start
	}
	return token
}

// opaque makes a code or token that nobody can guess or read.
func opaque(prefix string, bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b)
	return prefix + base64.RawURLEncoding.EncodeToString(b)
}

// newUserCode makes a code for people: nine letters, none that looks like a digit.
func newUserCode() string {
	const letters = "ABCDEFGHJKLMNPQRSTUVWXYZ"
	var b [9]byte
	rand.Read(b[:])
	for i, x := range b {
		b[i] = letters[int(x)%len(letters)]
	}
	return string(b[:])
}

// forgetOld drops codes that ended an hour ago. Until then they get a more
// exact refusal than those that never were.
func (s *Server) forgetOld() {
	past := time.Now().Add(-time.Hour)
	maps.DeleteFunc(s.devices, func(_ string, d *deviceCode) bool { return d.Expires.Before(past) })
	maps.DeleteFunc(s.codes, func(_ string, c *authCode) bool { return c.expires.Before(past) })
}
