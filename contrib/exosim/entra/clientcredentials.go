package entra

import (
	"crypto/subtle"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
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
var resources = append([]string{graph}, directory.Audiences...)

const graph = "https://graph.microsoft.com"

// clientCredentials is the flow of an app on its own behalf.
func (l *Login) clientCredentials(q *tokenQuery) (map[string]any, *refusal) {
	app, refused := l.app(q)
	if refused != nil {
		return nil, refused
	}
	proof, refused := l.prove(app, q)
	if refused != nil {
		return nil, refused
	}
	resource, refused := l.resource(q)
	if refused != nil {
		return nil, refused
	}
	life := l.tokenLife()
	return tokenAnswer(l.issue(app, resource, proof, life), life), nil
}

// tokenAnswer returns the members that every good answer has.
func tokenAnswer(token string, life time.Duration) map[string]any {
	// Entra gives a second less, so that a client is never too late.
	expiresIn := max(int(life.Seconds())-1, 0)
	return map[string]any{"token_type": "Bearer", "expires_in": expiresIn, "ext_expires_in": expiresIn, "access_token": token}
}

// prove checks the app's secret or its signed assertion, and returns which one
// it was.
func (l *Login) prove(app *directory.App, q *tokenQuery) (proof string, refused *refusal) {
	switch assertion := q.form.Get("client_assertion"); {
	case assertion != "" && q.form.Get("client_assertion_type") == assertionType:
		return provedByCertificate, l.checkAssertion(app, assertion, q)
	case q.secret == "":
		return "", l.refuseFor(q, 7000218)
	case app.Secret == "" || subtle.ConstantTimeCompare([]byte(q.secret), []byte(app.Secret)) != 1:
		return "", l.refuseFor(q, 7000215)
	case !app.SecretExpires.IsZero() && time.Now().After(app.SecretExpires):
		return "", l.refuseFor(q, 7000222)
	}
	return provedBySecret, nil
}

// proveForUser is prove for the flows with a user, where a public client has to
// come without proof.
func (l *Login) proveForUser(app *directory.App, q *tokenQuery) (proof string, refused *refusal) {
	if !app.Public {
		return l.prove(app, q)
	}
	if q.secret != "" || q.form.Get("client_assertion") != "" {
		return "", l.refuseFor(q, 700025)
	}
	return provedByNothing, nil
}

// resource reads the scope, which for this flow is one resource with /.default.
func (l *Login) resource(q *tokenQuery) (string, *refusal) {
	scope := q.form.Get("scope")
	if scope == "" {
		return "", l.refuseFor(q, 900144)
	}
	resource, isDefault := strings.CutSuffix(scope, "/.default")
	if !isDefault || strings.ContainsAny(resource, " \t") {
		return "", l.refuseFor(q, 70011)
	}
	if resource = strings.TrimSuffix(resource, "/"); resource == q.base {
		return graph, nil // which is served at the same address
	}
	if !slices.Contains(resources, resource) {
		return "", l.unknownResource(q, resource)
	}
	return resource, nil
}

// unknownResource names the tenant as it calls itself.
func (l *Login) unknownResource(q *tokenQuery, resource string) *refusal {
	return l.refuseFor(q, 500011, "{resource}", resource, "{tenant}", l.dir.Name())
}

// tokenLife returns Faults.TokenLife, Config.TokenLife, or what Entra gives.
func (l *Login) tokenLife() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.faults.TokenLife > 0 {
		return l.faults.TokenLife
	}
	if l.cfg.TokenLife > 0 {
		return l.cfg.TokenLife
	}
	return time.Hour + time.Duration(l.random.IntN(30*60))*time.Second
}

// endpoints returns the URLs by which an assertion's aud may name the token
// endpoint: the tenant as the client wrote it, or its id.
func (l *Login) endpoints(q *tokenQuery) []string {
	var urls []string
	for _, t := range []string{q.tenant, l.dir.ID(), l.dir.Name()} {
		urls = append(urls, fmt.Sprintf("%s/%s/oauth2/v2.0/token", q.base, t))
	}
	return urls
}
