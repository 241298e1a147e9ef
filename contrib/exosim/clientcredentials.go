package exosim

import (
	"crypto/subtle"
	"fmt"
	"slices"
	"strings"
	"time"
)

const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// The values of the claim appidacr: how the app proved itself.
const (
	provedByNothing     = "0" // a public client
	provedBySecret      = "1"
	provedByCertificate = "2" // or a federated token
)

// resources are those that a token can be asked for. Graph is among them because
// a token for Graph is a usual mistake, which only Exchange notices.
var resources = append([]string{graph}, audiences...)

const graph = "https://graph.microsoft.com"

// clientCredentials is the flow of an app on its own behalf.
func (s *Server) clientCredentials(q *tokenQuery) (map[string]any, *refusal) {
	app, refused := s.app(q)
	if refused != nil {
		return nil, refused
	}
	proof, refused := s.prove(app, q)
	if refused != nil {
		return nil, refused
	}
	resource, refused := s.resource(q)
	if refused != nil {
		return nil, refused
	}
	life := s.tokenLife()
	return tokenAnswer(s.issue(app, resource, proof, life), life), nil
}

// tokenAnswer returns the members that every good answer has.
func tokenAnswer(token string, life time.Duration) map[string]any {
	// Entra gives a second less, so that a client is never too late.
	expiresIn := max(int(life.Seconds())-1, 0)
	return map[string]any{"token_type": "Bearer", "expires_in": expiresIn, "ext_expires_in": expiresIn, "access_token": token}
}

// prove checks the app's secret or its signed assertion, and returns which one
// it was.
func (s *Server) prove(app *App, q *tokenQuery) (proof string, refused *refusal) {
	switch assertion := q.form.Get("client_assertion"); {
	case assertion != "" && q.form.Get("client_assertion_type") == assertionType:
		return provedByCertificate, s.checkAssertion(app, assertion, q)
	case q.secret == "":
		return "", s.refuseFor(q, 7000218)
	case app.Secret == "" || subtle.ConstantTimeCompare([]byte(q.secret), []byte(app.Secret)) != 1:
		return "", s.refuseFor(q, 7000215)
	case !app.SecretExpires.IsZero() && time.Now().After(app.SecretExpires):
		return "", s.refuseFor(q, 7000222)
	}
	return provedBySecret, nil
}

// proveForUser is prove for the flows with a user, where a public client has to
// come without proof.
func (s *Server) proveForUser(app *App, q *tokenQuery) (proof string, refused *refusal) {
	if !app.Public {
		return s.prove(app, q)
	}
	if q.secret != "" || q.form.Get("client_assertion") != "" {
		return "", s.refuseFor(q, 700025)
	}
	return provedByNothing, nil
}

// resource reads the scope, which for this flow is one resource with /.default.
func (s *Server) resource(q *tokenQuery) (string, *refusal) {
	scope := q.form.Get("scope")
	if scope == "" {
		return "", s.refuseFor(q, 900144)
	}
	resource, isDefault := strings.CutSuffix(scope, "/.default")
	if !isDefault || strings.ContainsAny(resource, " \t") {
		return "", s.refuseFor(q, 70011)
	}
	if resource = strings.TrimSuffix(resource, "/"); !slices.Contains(resources, resource) {
		return "", s.unknownResource(q, resource)
	}
	return resource, nil
}

// unknownResource names the tenant as it calls itself.
func (s *Server) unknownResource(q *tokenQuery, resource string) *refusal {
	return s.refuseFor(q, 500011, "{resource}", resource, "{tenant}", s.cfg.Tenant)
}

// tokenLife returns Faults.EntraTokenLife, Config.TokenLife, or what Entra gives.
func (s *Server) tokenLife() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.faults.EntraTokenLife > 0 {
		return s.faults.EntraTokenLife
	}
	if s.cfg.TokenLife > 0 {
		return s.cfg.TokenLife
	}
	return time.Hour + time.Duration(s.random.IntN(30*60))*time.Second
}

// endpoints returns the URLs by which an assertion's aud may name the token
// endpoint: the tenant as the client wrote it, or its id.
func (s *Server) endpoints(q *tokenQuery) []string {
	var urls []string
	for _, t := range []string{q.tenant, s.cfg.TenantID, s.cfg.Tenant} {
		urls = append(urls, fmt.Sprintf("%s/%s/oauth2/v2.0/token", q.base, t))
	}
	return urls
}
