package config

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/renew"
)

// Vault returns where refresh tokens are kept.
func (c *Site) Vault() *entra.Vault {
	return &entra.Vault{Dir: filepath.Join(c.Token.StateDir, "grants")}
}

// Client returns the client for requests to Entra.
func (c *Site) Client() (*http.Client, error) {
	e := c.Tenant.Endpoints
	client, err := entra.NewHTTPClient(entra.HTTPOptions{CAFile: e.CAFile, Proxy: e.Proxy})
	if err != nil {
		return nil, exit.Errorf(exit.Config, "", "the way to Entra: %w", err)
	}
	return client, nil
}

// Source makes the source of tokens that a credential stands for.
func (c *Site) Source(name string, client *http.Client, vault *entra.Vault) (entra.Source, error) {
	cc, e := c.Credentials[name], c.Tenant.Endpoints
	e.Scope, e.DelegatedScope = c.Scopes(name)
	switch cc.Flow {
	case flowClientCredentials:
		return &entra.ClientCredentials{
			Credential: name, ClientID: cc.ClientID, Scope: e.Scope, TokenURL: tokenURL(e.Authority, c.Tenant.ID), Client: client,
			SecretFile: cc.ClientSecretFile, Pairs: c.Pairs(name),
		}, nil
	case FlowFederated:
		return c.federated(name, e.Scope, client)
	case flowManagedIdentity:
		return &entra.ManagedIdentity{
			Credential: name, Resource: strings.TrimSuffix(e.Scope, "/.default"), ClientID: cc.ClientID, ObjectID: cc.ObjectID, ResourceID: cc.ResourceID,
		}, nil
	case flowDeviceCode, FlowAuthorizationCode:
		return &entra.Delegated{
			Credential: name, ClientID: cc.ClientID, Scope: e.DelegatedScope, TokenURL: tokenURL(e.Authority, c.Tenant.ID), Client: client, Vault: vault, User: cc.User,
			SecretFile: cc.ClientSecretFile, Pairs: c.Pairs(name),
		}, nil
	}
	return nil, fmt.Errorf("credential %q: no such flow: %q", name, cc.Flow)
}

// Keeper returns what keeps the certificate of a credential from ending, and knows which one is in
// use; nil where the credential has none. client may be nil where nothing is asked for. It is run
// where the credential has renew: alone.
func (c *Site) Keeper(name string, client *http.Client) *renew.Keeper {
	cc, e := c.Credentials[name], c.Tenant.Endpoints
	if cc.CertificateFile == "" {
		return nil
	}
	scope, _ := c.Scopes(name)
	return &renew.Keeper{
		Credential: name, ClientID: cc.ClientID, ObjectID: cc.ObjectID, Before: cc.Renew,
		Configured: entra.KeyPair{CertificateFile: cc.CertificateFile, KeyFile: cc.KeyFile},
		TokenURL:   tokenURL(e.Authority, c.Tenant.ID), Scope: scope, Graph: e.Graph, Audience: e.ProofAudience,
		Dir: filepath.Join(c.Token.StateDir, "certificates"), Client: client,
	}
}

// Pairs says which certificates a credential has; nil where it has none.
func (c *Site) Pairs(name string) func() []entra.KeyPair {
	if k := c.Keeper(name, nil); k != nil {
		return k.Pairs
	}
	return nil
}

// federated makes the source of a federated credential. What the configuration leaves empty, the
// platform has put into the environment (Azure's workload identity).
func (c *Site) federated(name, scope string, client *http.Client) (entra.Source, error) {
	cc, env := c.Credentials[name], entra.FederatedFromEnvironment(os.Getenv)
	// The tenant and its cloud are those of the configuration: the identities are checked against
	// them.
	s := &entra.ClientCredentials{
		Credential: name, ClientID: cc.ClientID, Scope: scope, Client: client,
		TokenURL: tokenURL(c.Tenant.Endpoints.Authority, c.Tenant.ID), FederatedTokenFile: cc.TokenFile,
	}
	if s.ClientID == "" {
		s.ClientID = env.ClientID
	}
	if s.FederatedTokenFile == "" {
		s.FederatedTokenFile = env.TokenFile
	}
	switch {
	case s.ClientID == "":
		return nil, fmt.Errorf("credential %q: neither client_id: nor AZURE_CLIENT_ID names the app", name)
	case s.FederatedTokenFile == "":
		return nil, fmt.Errorf("credential %q: neither token_file: nor AZURE_FEDERATED_TOKEN_FILE names the other issuer's token", name)
	}
	return s, nil
}

// tokenURL is Entra's v2.0 token endpoint of a tenant.
func tokenURL(authority, tenant string) string {
	return authority + "/" + tenant + "/oauth2/v2.0/token"
}
