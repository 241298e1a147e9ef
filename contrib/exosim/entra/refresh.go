package entra

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/sendas/sendas/contrib/exosim/directory"
)

// RefreshPolicy is how long refresh tokens are good.
type RefreshPolicy struct {
	// Idle is how long one may lie unused: AADSTS700082.
	Idle time.Duration `yaml:"idle"` // 90 days, 2160h
	// Frequency is after how long a user must sign in again, as a policy of
	// Conditional Access can want it: AADSTS70043; 0 is never.
	Frequency time.Duration `yaml:"frequency"`
	// RotateStrict refuses old ones: a refresh token is good until a new one came of it. Entra
	// leaves the old one valid.
	RotateStrict bool `yaml:"rotate_strict"`
}

// refreshToken is a refresh token that was given out.
type refreshToken struct {
	session *session
	issued  time.Time
}

// refresh is the refresh_token grant.
func (l *Login) refresh(q *tokenQuery) (map[string]any, *refusal) {
	app, refused := l.app(q)
	if refused != nil {
		return nil, refused
	}
	proof, refused := l.proveForUser(app, q)
	if refused != nil {
		return nil, refused
	}
	if q.form.Get("refresh_token") == "" {
		return nil, l.refuseFor(q, 900144, "{parameter}", "refresh_token")
	}
	t, refused := l.checkRefresh(q)
	if refused != nil {
		return nil, refused
	}
	sc, refused := l.narrow(q, t.session.scopes)
	if refused != nil {
		return nil, refused
	}
	if l.Faults().KeepRefresh {
		sc.offline = false
	}
	if !l.spend(q.form.Get("refresh_token"), sc.offline) {
		return nil, l.refuseFor(q, 70000)
	}
	return l.userAnswer(q, app, t.session, sc, proof), nil
}

// narrow returns the scopes of a token request: those that it names, or those
// of the sign-in. Another resource than at the sign-in is right. A refresh token comes with the
// answer only where offline_access is among them, at a refresh too.
// https://learn.microsoft.com/entra/identity-platform/v2-oauth2-auth-code-flow#refresh-the-access-token
func (l *Login) narrow(q *tokenQuery, granted scopes) (scopes, *refusal) {
	if q.form.Get("scope") == "" {
		return granted, nil
	}
	return l.parseScopes(q, q.form.Get("scope"), 28002)
}

// checkRefresh finds a refresh token and checks its ages and its user.
func (l *Login) checkRefresh(q *tokenQuery) (refreshToken, *refusal) {
	l.mu.Lock()
	t, known := l.refreshTokens[q.form.Get("refresh_token")]
	l.mu.Unlock()
	if !known || t.session.clientID != q.clientID {
		return t, l.refuseFor(q, 70000)
	}
	if refused := l.checkSession(q, t.session); refused != nil {
		return t, refused
	}
	now, p := time.Now(), l.cfg.Refresh
	switch {
	case now.Sub(t.issued) >= p.Idle:
		return t, l.refuseFor(q, 700082, "{issued}", loginTime(t.issued), "{idle}", dotNetDuration(p.Idle))
	case p.Frequency > 0 && now.Sub(t.session.began) >= p.Frequency:
		return t, l.refuseFor(q, 70043, "{issued}", loginTime(t.issued), "{age}", strconv.Itoa(int(p.Frequency.Seconds())))
	}
	return t, nil
}

// dotNetDuration is 90.00:00:00 for 90 days.
func dotNetDuration(d time.Duration) string {
	d = d.Round(time.Second)
	day := 24 * time.Hour
	return fmt.Sprintf("%d.%02d:%02d:%02d", d/day, d%day/time.Hour, d%time.Hour/time.Minute, d%time.Minute/time.Second)
}

// spend takes a refresh token out of use where the new one takes its place at once; false if
// another request was faster.
func (l *Login) spend(token string, renewed bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, there := l.refreshTokens[token]
	if l.cfg.Refresh.RotateStrict && renewed {
		delete(l.refreshTokens, token)
	}
	return there
}

// AgeGrants makes all refresh tokens and sign-ins of before look older, and what
// was revoked too, so that a test sees the end of 90 days.
func (l *Login) AgeGrants(by time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := map[*session]*session{}
	for key, t := range l.refreshTokens {
		if seen[t.session] == nil {
			older := *t.session
			older.began = older.began.Add(-by)
			seen[t.session] = &older
		}
		l.refreshTokens[key] = refreshToken{seen[t.session], t.issued.Add(-by)}
	}
	for upn, t := range l.validFrom {
		l.validFrom[upn] = t.Add(-by)
	}
}

// RevokeGrants makes all refresh tokens issued so far unknown (AADSTS70000), as
// when the app registration is made anew.
func (l *Login) RevokeGrants() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.refreshTokens)
}

// userAnswer is the good answer of all flows with a user.
func (l *Login) userAnswer(q *tokenQuery, app *directory.App, n *session, sc scopes, proof string) map[string]any {
	u, _ := l.dir.User(n.user)
	life := l.tokenLife()
	answer := tokenAnswer(l.issueDelegated(app, u, sc.resource, sc.claim(), proof, life), life)
	answer["scope"] = sc.String()
	if sc.offline {
		token := opaque("1.AXoA", 700)
		l.mu.Lock()
		l.refreshTokens[token] = refreshToken{n, time.Now()}
		l.mu.Unlock()
		answer["refresh_token"] = token
	}
	if sc.openID {
		answer["id_token"] = l.idToken(q, u, life)
	}
	return answer
}

// idToken tells the app who signed in.
func (l *Login) idToken(q *tokenQuery, u directory.User, life time.Duration) string {
	now := l.dir.Now()
	claims := jwt.MapClaims{
		"aud": q.clientID, "iss": q.base + "/" + l.dir.ID() + "/v2.0", "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(life).Unix(),
		"name": u.UPN, "oid": u.ObjectID, "preferred_username": u.UPN, "sub": "S" + u.ObjectID, "tid": l.dir.ID(), "ver": "2.0",
	}
	token, err := jwt.NewWithClaims(jwt.SigningMethodRS256, claims).SignedString(l.key)
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
func (l *Login) forgetOld() {
	past := time.Now().Add(-time.Hour)
	maps.DeleteFunc(l.devices, func(_ string, d *deviceCode) bool { return d.Expires.Before(past) })
	maps.DeleteFunc(l.codes, func(_ string, c *authCode) bool { return c.expires.Before(past) })
}
