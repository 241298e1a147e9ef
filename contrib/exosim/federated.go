package exosim

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Federated is a federated credential of an app: who else may sign its
// assertions. The simulator plays that issuer too; see [Server.FederatedToken].
type Federated struct {
	Issuer   string `yaml:"issuer" json:"issuer"`     // the token's iss; https://kubernetes.default.svc.cluster.local
	Subject  string `yaml:"subject" json:"subject"`   // its sub: system:serviceaccount:mail:relay; "" is no federated credential
	Audience string `yaml:"audience" json:"audience"` // its aud; api://AzureADTokenExchange
}

func (f *Federated) complete() {
	or(&f.Issuer, "https://kubernetes.default.svc.cluster.local")
	or(&f.Audience, "api://AzureADTokenExchange")
}

// federatedKeyID is the kid of the issuer's only key.
const federatedKeyID = "exosim-issuer"

// FederatedToken returns what the other issuer gives for a subject, such as a
// Kubernetes service account: a JWT that an app with that federated credential
// sends as its client assertion, for as long as it lives. It is expired with a
// negative life.
func (s *Server) FederatedToken(subject string, life time.Duration) string {
	f := Federated{Subject: subject}
	s.mu.Lock()
	for _, a := range s.apps {
		if subject != "" && a.Federated.Subject == subject {
			f = a.Federated
		}
	}
	s.mu.Unlock()
	return s.FederatedTokenOf(f, life)
}

// FederatedTokenOf is FederatedToken with another issuer or audience than an
// app has; empty ones are the defaults.
func (s *Server) FederatedTokenOf(f Federated, life time.Duration) string {
	f.complete()
	now := time.Now() // the issuer's clock is not Microsoft's
	t := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{
		"iss": f.Issuer, "sub": f.Subject, "aud": []string{f.Audience}, "iat": now.Unix(), "nbf": min(now.Unix(), now.Add(life).Unix()), "exp": now.Add(life).Unix(),
	})
	t.Header["kid"] = federatedKeyID
	signed, err := t.SignedString(s.federatedKey())
	if err != nil {
		panic(err) // a key of our own, made at the start
	}
	return signed
}

// isFederated tells whether an assertion is not the app's own. Without a
// federated credential only an issuer that is a URL gives that away.
func (s *Server) isFederated(app *App, assertion string) bool {
	var c jwt.RegisteredClaims
	if _, _, err := jwt.NewParser().ParseUnverified(assertion, &c); err != nil {
		return false
	}
	return c.Issuer != app.ClientID && (app.Federated.Subject != "" || strings.HasPrefix(c.Issuer, "https://"))
}

// checkFederated verifies a token of another issuer. Unlike the app's own
// assertions it may be used again, since whoever issues it renews it but once an
// hour or so.
func (s *Server) checkFederated(app *App, assertion string, q *tokenQuery) *refusal {
	var c jwt.RegisteredClaims
	_, err := jwt.NewParser(jwt.WithValidMethods([]string{"RS256"}), jwt.WithoutClaimsValidation()).
		ParseWithClaims(assertion, &c, func(*jwt.Token) (any, error) { return s.federatedKey().Public(), nil })
	f, now := app.Federated, s.now()
	switch {
	case f.Subject == "" || c.Issuer != f.Issuer:
		return s.refuseFor(q, 700211, "{issuer}", c.Issuer)
	case errors.Is(err, jwt.ErrTokenMalformed):
		return refuse("invalid_client", 50012, "Client assertion is malformed.")
	case err != nil:
		return refuse("invalid_client", 50013, "Assertion failed signature validation. [Reason - The key was not found.]")
	case c.ExpiresAt == nil:
		return refuse("invalid_client", 50013, "Assertion failed validation: exp is missing.")
	case !now.Before(c.ExpiresAt.Time) || c.NotBefore != nil && now.Before(c.NotBefore.Time):
		return s.outOfTime(q, notBefore(&c), c.ExpiresAt.Time)
	case c.Subject != f.Subject: // case counts, since 2025
		return s.refuseFor(q, 700213, "{subject}", c.Subject)
	case !slices.Contains(c.Audience, f.Audience):
		return s.refuseFor(q, 700212, "{audience}", strings.Join(c.Audience, " "))
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
