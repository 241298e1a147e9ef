package exosim

import (
	"crypto/rand"
	"encoding/base64"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// accessClaims are those of a v1 token for Exchange that somebody looks at.
type accessClaims struct {
	jwt.RegisteredClaims
	AppID    string   `json:"appid"`
	ObjectID string   `json:"oid"`
	TenantID string   `json:"tid"`
	Roles    []string `json:"roles"`
	Scopes   string   `json:"scp"` // of a signed-in user, parted by spaces
	User     string   `json:"upn"`
}

// delegated tells whether a token speaks for a user, and not for an app.
func (c *accessClaims) delegated() bool { return c.User != "" || c.Scopes != "" }

// liveToken is an access token that was issued and not revoked.
type liveToken struct {
	expires time.Time
	user    string // in lower case, "" for an app's
}

// Issue makes an access token for an app, as the token endpoint does; a test can
// ask for one that the endpoint would not give: for another audience, of an app
// that does not exist, expired with a negative life.
func (s *Server) Issue(clientID, aud string, life time.Duration) string {
	return s.issue(s.appOrNew(clientID), aud, provedBySecret, life)
}

// IssueDelegated makes an access token for a signed-in user, as the token
// endpoint does for a public client; a test can ask for one that the endpoint
// would not give, as with Issue. The scopes are the permissions alone:
// "SMTP.Send".
func (s *Server) IssueDelegated(clientID, user, aud string, scopes []string, life time.Duration) string {
	u, known := s.user(user)
	if !known {
		u = User{UPN: user, ObjectID: newGUID()}
	}
	return s.issueDelegated(s.appOrNew(clientID), u, aud, strings.Join(scopes, " "), provedByNothing, life)
}

func (s *Server) appOrNew(clientID string) *App {
	s.mu.Lock()
	defer s.mu.Unlock()
	if app := s.apps[clientID]; app != nil {
		return app
	}
	return &App{ClientID: clientID, ObjectID: newGUID()}
}

// issue signs an app's access token and remembers it as live.
func (s *Server) issue(app *App, aud, proof string, life time.Duration) string {
	claims := jwt.MapClaims{"idtyp": "app", "oid": app.ObjectID, "sub": app.ObjectID, "wids": []string{"0997a1d0-0d1d-4acb-b408-d5ca73121e90"}}
	// Graph knows nothing of Exchange's roles.
	if len(app.Roles) > 0 && slices.Contains(audiences, aud) {
		claims["roles"] = app.Roles
	}
	return s.sign(claims, app, "", aud, proof, life)
}

// issueDelegated is issue for a signed-in user.
func (s *Server) issueDelegated(app *App, u User, aud, scopes, proof string, life time.Duration) string {
	claims := jwt.MapClaims{
		"acr": "1", "amr": []string{"pwd"}, "idtyp": "user", "oid": u.ObjectID, "sub": "S" + u.ObjectID, "scp": scopes,
		"upn": u.UPN, "unique_name": u.UPN, "name": u.UPN,
	}
	return s.sign(claims, app, u.UPN, aud, proof, life)
}

// sign adds what all access tokens have, signs, and remembers the token as live.
func (s *Server) sign(claims jwt.MapClaims, app *App, user, aud, proof string, life time.Duration) string {
	now := s.now()
	id, begin, end, issuer := newGUID(), now.Add(-5*time.Minute).Unix(), now.Add(life), "https://sts.windows.net/"+s.cfg.TenantID+"/"
	maps.Copy(claims, jwt.MapClaims{
		"aud": aud, "iss": issuer, "iat": begin, "nbf": begin, "exp": end.Unix(), "app_displayname": "relay", "appid": app.ClientID,
		"appidacr": proof, "idp": issuer, "tid": s.cfg.TenantID, "uti": id, "jti": id, "ver": "1.0",
	})
	claims["xms_ftd"] = s.remember(id, liveToken{end, strings.ToLower(user)})
	token, err := jwt.NewWithClaims(jwt.SigningMethodRS256, claims).SignedString(s.key)
	if err != nil {
		panic(err) // a key of our own, made at the start
	}
	return token
}

// remember notes a live token, forgets those that ended a day ago, and returns a
// padding. Real tokens have 1.5 to 2.5 kB; most of this one is in the padding,
// which base64 makes longer by a third twice.
func (s *Server) remember(id string, t liveToken) string {
	s.mu.Lock()
	// The day is for EntraSkew, with which clocks may go back.
	past := time.Now().Add(-24 * time.Hour)
	maps.DeleteFunc(s.tokens, func(_ string, t liveToken) bool { return t.expires.Before(past) })
	s.tokens[id] = t
	pad := make([]byte, 240+s.random.IntN(460))
	s.mu.Unlock()
	rand.Read(pad)
	return base64.RawURLEncoding.EncodeToString(pad)
}

// RevokeTokens makes all access tokens issued so far worthless at AUTH.
func (s *Server) RevokeTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.tokens)
}
