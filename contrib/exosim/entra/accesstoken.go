package entra

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/sendas/sendas/contrib/exosim/directory"
)

// accessClaims are those of a v1 token for Exchange that somebody looks at, as they are written.
type accessClaims struct {
	jwt.RegisteredClaims
	AppID    string   `json:"appid"`
	ObjectID string   `json:"oid"`
	TenantID string   `json:"tid"`
	Roles    []string `json:"roles"`
	Scopes   string   `json:"scp"` // of a signed-in user, parted by spaces
	User     string   `json:"upn"`
}

// liveToken is an access token that was issued and not revoked.
type liveToken struct {
	expires time.Time
	user    string // in lower case, "" for an app's
}

// Issue makes an access token for an app, as the token endpoint does; a test can
// ask for one that the endpoint would not give: for another audience, of an app
// that does not exist, expired with a negative life.
func (l *Login) Issue(clientID, aud string, life time.Duration) string {
	return l.issue(l.appOrNew(clientID), aud, provedBySecret, life)
}

// IssueDelegated makes an access token for a signed-in user, as the token
// endpoint does for a public client; a test can ask for one that the endpoint
// would not give, as with Issue. The scopes are the permissions alone:
// "SMTP.Send".
func (l *Login) IssueDelegated(clientID, user, aud string, scopes []string, life time.Duration) string {
	u, known := l.dir.User(user)
	if !known {
		u = directory.User{UPN: user, ObjectID: directory.NewGUID()}
	}
	return l.issueDelegated(l.appOrNew(clientID), u, aud, strings.Join(scopes, " "), provedByNothing, life)
}

func (l *Login) appOrNew(clientID string) *directory.App {
	if app := l.dir.App(clientID); app != nil {
		return app
	}
	return &directory.App{ClientID: clientID, ObjectID: directory.NewGUID()}
}

// issue signs an app's access token and remembers it as live.
func (l *Login) issue(app *directory.App, aud, proof string, life time.Duration) string {
	claims := jwt.MapClaims{"idtyp": "app", "oid": app.ObjectID, "sub": app.ObjectID, "wids": []string{"0997a1d0-0d1d-4acb-b408-d5ca73121e90"}}
	// Graph knows nothing of Exchange's roles.
	if len(app.Roles) > 0 && slices.Contains(directory.Audiences, aud) {
		claims["roles"] = app.Roles
	}
	return l.sign(claims, app, "", aud, proof, life)
}

// issueDelegated is issue for a signed-in user.
func (l *Login) issueDelegated(app *directory.App, u directory.User, aud, scopes, proof string, life time.Duration) string {
	claims := jwt.MapClaims{
		"acr": "1", "amr": []string{"pwd"}, "idtyp": "user", "oid": u.ObjectID, "sub": "S" + u.ObjectID, "scp": scopes,
		"upn": u.UPN, "unique_name": u.UPN, "name": u.UPN,
	}
	return l.sign(claims, app, u.UPN, aud, proof, life)
}

// sign adds what all access tokens have, signs, and remembers the token as live.
func (l *Login) sign(claims jwt.MapClaims, app *directory.App, user, aud, proof string, life time.Duration) string {
	now := l.dir.Now()
	id, begin, end, issuer := directory.NewGUID(), now.Add(-5*time.Minute).Unix(), now.Add(life), "https://sts.windows.net/"+l.dir.ID()+"/"
	maps.Copy(claims, jwt.MapClaims{
		"aud": aud, "iss": issuer, "iat": begin, "nbf": begin, "exp": end.Unix(), "app_displayname": "relay", "appid": app.ClientID,
		"appidacr": proof, "idp": issuer, "tid": l.dir.ID(), "uti": id, "jti": id, "ver": "1.0",
	})
	claims["xms_ftd"] = l.remember(id, liveToken{end, strings.ToLower(user)})
	token, err := jwt.NewWithClaims(jwt.SigningMethodRS256, claims).SignedString(l.key)
	if err != nil {
		panic(err) // a key of our own, made at the start
	}
	return token
}

// remember notes a live token, forgets those that ended a day ago, and returns a
// padding. Real tokens have 1.5 to 2.5 kB; most of this one is in the padding,
// which base64 makes longer by a third twice.
func (l *Login) remember(id string, t liveToken) string {
	l.mu.Lock()
	// The day is for Faults.Skew, with which clocks may go back.
	past := time.Now().Add(-24 * time.Hour)
	maps.DeleteFunc(l.tokens, func(_ string, t liveToken) bool { return t.expires.Before(past) })
	l.tokens[id] = t
	pad := make([]byte, 240+l.random.IntN(460))
	l.mu.Unlock()
	rand.Read(pad)
	return base64.RawURLEncoding.EncodeToString(pad)
}

// RevokeTokens makes all access tokens issued so far worthless at AUTH.
func (l *Login) RevokeTokens() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.tokens)
}

// Verify returns the claims of an access token, or why it is no good: not one of ours, expired,
// revoked. Whether its audience is the right one is for the audience to say.
func (l *Login) Verify(token string) (*directory.Claims, directory.Denial) {
	var c accessClaims
	_, err := jwt.NewParser(jwt.WithValidMethods([]string{"RS256"}), jwt.WithExpirationRequired(), jwt.WithTimeFunc(l.dir.Now)).
		ParseWithClaims(token, &c, func(*jwt.Token) (any, error) { return l.key.Public(), nil })
	l.mu.Lock()
	defer l.mu.Unlock()
	_, live := l.tokens[c.ID]
	switch {
	case errors.Is(err, jwt.ErrTokenExpired):
		return nil, directory.TokenExpired
	case err != nil:
		return nil, "token is not one of ours"
	case !live:
		return nil, "token revoked"
	}
	claims := &directory.Claims{
		AppID: c.AppID, ObjectID: c.ObjectID, TenantID: c.TenantID, Roles: c.Roles, Scopes: strings.Fields(c.Scopes), User: c.User, Expires: c.ExpiresAt.Time,
	}
	if len(c.Audience) == 1 { // of several none is meant
		claims.Audience = c.Audience[0]
	}
	return claims, ""
}
