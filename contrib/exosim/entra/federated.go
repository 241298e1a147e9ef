package entra

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/sendas/sendas/contrib/exosim/directory"
)

// federatedKeyID is the kid of the issuer's only key.
const federatedKeyID = "exosim-issuer"

// FederatedToken returns what the other issuer gives for a subject, such as a
// Kubernetes service account: a JWT that an app with that federated credential
// sends as its client assertion, for as long as it lives. It is expired with a
// negative life.
func (l *Login) FederatedToken(subject string, life time.Duration) string {
	f := directory.Federated{Subject: subject}
	for _, a := range l.dir.Apps() {
		if subject != "" && a.Federated.Subject == subject {
			f = a.Federated
		}
	}
	return l.FederatedTokenOf(f, life)
}

// FederatedTokenOf is FederatedToken with another issuer or audience than an
// app has; empty ones are the defaults.
func (l *Login) FederatedTokenOf(f directory.Federated, life time.Duration) string {
	f.Complete()
	now := time.Now() // the issuer's clock is not Microsoft's
	t := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{
		"iss": f.Issuer, "sub": f.Subject, "aud": []string{f.Audience}, "iat": now.Unix(), "nbf": min(now.Unix(), now.Add(life).Unix()), "exp": now.Add(life).Unix(),
	})
	t.Header["kid"] = federatedKeyID
	signed, err := t.SignedString(l.federatedKey())
	if err != nil {
		panic(err) // a key of our own, made at the start
	}
	return signed
}

// isFederated reports whether an assertion is not the app's own. Without a
// federated credential only an issuer that is a URL gives that away.
func (l *Login) isFederated(app *directory.App, assertion string) bool {
	var c jwt.RegisteredClaims
	if _, _, err := jwt.NewParser().ParseUnverified(assertion, &c); err != nil {
		return false
	}
	return c.Issuer != app.ClientID && (app.Federated.Subject != "" || strings.HasPrefix(c.Issuer, "https://"))
}

// checkFederated verifies a token of another issuer. Unlike the app's own
// assertions it may be used again, since whoever issues it renews it but once an
// hour or so.
func (l *Login) checkFederated(app *directory.App, assertion string, q *tokenQuery) *refusal {
	var c jwt.RegisteredClaims
	_, err := jwt.NewParser(jwt.WithValidMethods([]string{"RS256"}), jwt.WithoutClaimsValidation()).
		ParseWithClaims(assertion, &c, func(*jwt.Token) (any, error) { return l.federatedKey().Public(), nil })
	f, now := app.Federated, l.dir.Now()
	switch {
	case f.Subject == "" || c.Issuer != f.Issuer:
		return l.refuseFor(q, 700211, "{issuer}", c.Issuer)
	case errors.Is(err, jwt.ErrTokenMalformed):
		return refuse("invalid_client", 50012, "Client assertion is malformed.")
	case err != nil:
		return refuse("invalid_client", 50013, "Assertion failed signature validation. [Reason - The key was not found.]")
	case c.ExpiresAt == nil:
		return refuse("invalid_client", 50013, "Assertion failed validation: exp is missing.")
	case !now.Before(c.ExpiresAt.Time) || c.NotBefore != nil && now.Before(c.NotBefore.Time):
		return l.outOfTime(q, notBefore(&c), c.ExpiresAt.Time)
	case c.Subject != f.Subject: // case counts, since 2025
		return l.refuseFor(q, 700213, "{subject}", c.Subject)
	case !slices.Contains(c.Audience, f.Audience):
		return l.refuseFor(q, 700212, "{audience}", strings.Join(c.Audience, " "))
	}
	return nil
}

// notBefore returns when a token begins, which nbf need not say.
func notBefore(c *jwt.RegisteredClaims) time.Time {
	if c.NotBefore == nil {
		return time.Time{}
	}
	return c.NotBefore.Time
}
