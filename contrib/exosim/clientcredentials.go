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
	provedBySecret      = "1"
	provedByCertificate = "2"
)

// resources are those that a token can be asked for. Graph is among them because
// a token for Graph is a usual mistake, which only Exchange notices.
var resources = append([]string{"https://graph.microsoft.com"}, audiences...)

// clientCredentials is the flow of an app on its own behalf.
func (s *Server) clientCredentials(q *tokenQuery) (map[string]any, *refusal) {
	s.mu.Lock()
	app := s.apps[q.clientID]
	s.mu.Unlock()
	if app == nil {
		return nil, refuse("unauthorized_client", 700016, "Application with identifier '%s' was not found in the directory '%s'. This can happen if the application has not been installed "+
			"by the administrator of the tenant or consented to by any user in the tenant. You may have sent your authentication request to the wrong tenant.", q.clientID, q.tenant)
	}
	proof, refused := s.prove(app, q)
	if refused != nil {
		return nil, refused
	}
	resource, refused := s.resource(q.form.Get("scope"))
	if refused != nil {
		return nil, refused
	}
	life := s.tokenLife()
	// Entra gives a second less, so that a client is never too late.
	expiresIn := max(int(life.Seconds())-1, 0)
	return map[string]any{
		"token_type": "Bearer", "expires_in": expiresIn, "ext_expires_in": expiresIn,
		"access_token": s.issue(app, resource, proof, life),
	}, nil
}

// prove checks the app's secret or its signed assertion, and returns which one
// it was.
func (s *Server) prove(app *App, q *tokenQuery) (proof string, refused *refusal) {
	switch assertion := q.form.Get("client_assertion"); {
	case assertion != "" && q.form.Get("client_assertion_type") == assertionType:
		return provedByCertificate, s.checkAssertion(app, assertion, q)
	case q.secret == "":
		return "", refuse("invalid_client", 7000218, "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.")
	case app.Secret == "" || subtle.ConstantTimeCompare([]byte(q.secret), []byte(app.Secret)) != 1:
		return "", refuse("invalid_client", 7000215, "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, "+
			"not the client secret ID, for a secret added to app '%s'.", app.ClientID)
	case !app.SecretExpires.IsZero() && time.Now().After(app.SecretExpires):
		return "", refuse("invalid_client", 7000222, "The provided client secret keys for app '%s' are expired. Visit the Azure portal to create new keys for your app: "+
			"https://aka.ms/NewClientSecret, or consider using certificate credentials for added security: https://aka.ms/certCreds.", app.ClientID)
	}
	return provedBySecret, nil
}

// resource reads the scope, which for this flow is one resource with /.default.
func (s *Server) resource(scope string) (string, *refusal) {
	if scope == "" {
		return "", refuse("invalid_request", 900144, "The request body must contain the following parameter: 'scope'.")
	}
	resource, isDefault := strings.CutSuffix(scope, "/.default")
	if !isDefault || strings.ContainsAny(resource, " \t") {
		return "", refuse("invalid_scope", 70011, "The provided request must include a 'scope' input parameter. The provided value for the input parameter 'scope' is not valid. "+
			"The scope %s is not valid.", scope)
	}
	if resource = strings.TrimSuffix(resource, "/"); !slices.Contains(resources, resource) {
		return "", refuse("invalid_resource", 500011, "The resource principal named %s was not found in the tenant named %s. This can happen if the application has not been installed "+
			"by the administrator of the tenant or consented to by any user in the tenant. You might have sent your authentication request to the wrong tenant.", resource, s.cfg.Tenant)
	}
	return resource, nil
}

// tokenLife returns Config.TokenLife, or what Entra gives.
func (s *Server) tokenLife() time.Duration {
	if s.cfg.TokenLife > 0 {
		return s.cfg.TokenLife
	}
	s.mu.Lock()
	defer s.mu.Unlock()
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
