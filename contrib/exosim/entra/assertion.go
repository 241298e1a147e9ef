package entra

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/sendas/sendas/contrib/exosim/directory"
)

// checkAssertion verifies a client assertion (RFC 7523, and Microsoft's page
// "certificate credentials"). Its clock is strict: a client on this machine has
// the same one.
func (l *Login) checkAssertion(app *directory.App, assertion string, q *tokenQuery) *refusal {
	if l.isFederated(app, assertion) {
		return l.checkFederated(app, assertion, q)
	}
	certs := l.certsOf(app.ClientID)
	var c jwt.RegisteredClaims
	_, err := jwt.NewParser(jwt.WithValidMethods([]string{"PS256", "RS256"}), jwt.WithoutClaimsValidation()).
		ParseWithClaims(assertion, &c, func(t *jwt.Token) (any, error) { return registeredKey(certs, t) })
	now := l.dir.Now()
	switch {
	case errors.Is(err, jwt.ErrTokenMalformed):
		return refuse("invalid_client", 50012, "Client assertion is malformed.")
	case err != nil:
		return l.refuseFor(q, 700027)
	case c.ExpiresAt == nil || c.NotBefore == nil:
		return refuse("invalid_client", 50013, "Assertion failed validation: exp or nbf is missing.")
	case !now.Before(c.ExpiresAt.Time) || now.Before(c.NotBefore.Time):
		return l.outOfTime(q, c.NotBefore.Time, c.ExpiresAt.Time)
	case c.Issuer != app.ClientID || c.Subject != app.ClientID:
		return refuse("invalid_client", 700021, "Client assertion application identifier doesn't match 'client_id' parameter.")
	case len(c.Audience) != 1 || !slices.Contains(l.endpoints(q), c.Audience[0]):
		return refuse("invalid_client", 50013, "Assertion failed validation: aud is not the token endpoint.")
	case c.ID == "" || !l.firstUse(app.ClientID+" "+c.ID, c.ExpiresAt.Time, now):
		return refuse("invalid_client", 50013, "Assertion failed validation: jti is missing or was used before.")
	}
	return nil
}

// outOfTime is the refusal of an assertion that is too old, or from the future.
func (l *Login) outOfTime(q *tokenQuery, from, until time.Time) *refusal {
	return l.refuseFor(q, 700024, "{from}", from.UTC().Format(time.RFC3339), "{until}", until.UTC().Format(time.RFC3339))
}

// firstUse notes an assertion's id until the assertion expires, and reports whether
// it was not known.
func (l *Login) firstUse(id string, expires, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.usedJTI, func(_ string, t time.Time) bool { return t.Before(now) })
	_, used := l.usedJTI[id]
	l.usedJTI[id] = expires
	return !used
}

// registeredKey returns the public key of the certificate that the header names:
// by SHA-256, or as older clients do by SHA-1 with RS256.
func registeredKey(certs []*x509.Certificate, t *jwt.Token) (any, error) {
	for _, c := range certs {
		sum := sha256.Sum256(c.Raw)
		if names(t.Header["x5t#S256"], sum[:]) {
			return c.PublicKey, nil
		}
		old := sha1.Sum(c.Raw)
		if t.Header["alg"] == "RS256" && t.Header["x5t#S256"] == nil && names(t.Header["x5t"], old[:]) {
			return c.PublicKey, nil
		}
	}
	return nil, fmt.Errorf("no such certificate")
}

// names compares a thumbprint. Microsoft's page wants base64url; its library for
// Go writes standard base64 with padding; Entra takes both.
func names(header any, sum []byte) bool {
	text, _ := header.(string)
	text = strings.NewReplacer("+", "-", "/", "_").Replace(strings.TrimRight(text, "="))
	return text == base64.RawURLEncoding.EncodeToString(sum)
}
