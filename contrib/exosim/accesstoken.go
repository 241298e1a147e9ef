package exosim

import (
	"crypto/rand"
	"encoding/base64"
	"maps"
	"slices"
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
}

// Issue makes an access token for an app, as the token endpoint does; a test can
// ask for one that the endpoint would not give: for another audience, of an app
// that does not exist, expired with a negative life.
func (s *Server) Issue(clientID, aud string, life time.Duration) string {
	s.mu.Lock()
	app := s.apps[clientID]
	s.mu.Unlock()
	if app == nil {
		app = &App{ClientID: clientID, ObjectID: newGUID()}
	}
	return s.issue(app, aud, provedBySecret, life)
}

// issue signs an access token and remembers it as live.
func (s *Server) issue(app *App, aud, proof string, life time.Duration) string {
	now := time.Now()
	id, begin, end := newGUID(), now.Add(-5*time.Minute).Unix(), now.Add(life)
	claims := jwt.MapClaims{
		"aud": aud, "iss": "https://sts.windows.net/" + s.cfg.TenantID + "/", "iat": begin, "nbf": begin, "exp": end.Unix(),
		"app_displayname": "relay", "appid": app.ClientID, "appidacr": proof, "idp": "https://sts.windows.net/" + s.cfg.TenantID + "/",
		"idtyp": "app", "oid": app.ObjectID, "sub": app.ObjectID, "tid": s.cfg.TenantID, "uti": id, "jti": id, "ver": "1.0",
		"wids": []string{"0997a1d0-0d1d-4acb-b408-d5ca73121e90"},
	}
	// Graph knows nothing of Exchange's roles.
	if len(app.Roles) > 0 && slices.Contains(audiences, aud) {
		claims["roles"] = app.Roles
	}
	s.mu.Lock()
	maps.DeleteFunc(s.tokens, func(_ string, t time.Time) bool { return t.Before(now) })
	s.tokens[id] = end
	// Real tokens have 1.5 to 2.5 kB; most of this one is in the padding, which
	// base64 makes longer by a third twice.
	pad := make([]byte, 240+s.random.IntN(460))
	s.mu.Unlock()
	rand.Read(pad)
	claims["xms_ftd"] = base64.RawURLEncoding.EncodeToString(pad)
	token, err := jwt.NewWithClaims(jwt.SigningMethodRS256, claims).SignedString(s.key)
	if err != nil {
		panic(err) // a key of our own, made at the start
	}
	return token
}

// RevokeTokens makes all access tokens issued so far worthless at AUTH.
func (s *Server) RevokeTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.tokens)
}
