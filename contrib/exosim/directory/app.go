package directory

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"
)

// The two ways in which an app may be entitled; see App.Model.
const (
	ModelClassic = "classic"
	ModelRBAC    = "rbac"
)

// sendAsApp is the app permission of the classic model.
const sendAsApp = "SMTP.SendAsApp"

// App is an app registration with its service principal in Exchange. It prints
// without its secret.
type App struct {
	ClientID string `yaml:"client_id"`
	ObjectID string `yaml:"object_id"` // of the enterprise application: the token's oid
	// ApplicationObjectID is the object id of the app registration, by which Graph knows it.
	ApplicationObjectID string    `yaml:"application_object_id"`
	ExchangeID          string    `yaml:"exchange_object_id"` // what New-ServicePrincipal was given; default ObjectID
	NotInExchange       bool      `yaml:"not_in_exchange"`    // New-ServicePrincipal was forgotten
	Secret              string    `yaml:"secret"`
	SecretExpires       time.Time `yaml:"secret_expires"`
	CertificateFile     string    `yaml:"certificate_file"` // PEM; all certificates in it are registered
	Federated           Federated `yaml:"federated"`        // a federated credential; none

	// Public is "Allow public client flows": users sign in without the app
	// proving itself, and then it must not. It is nothing to client_credentials.
	Public       bool     `yaml:"public"`
	MultiTenant  bool     `yaml:"multi_tenant"`  // users may sign in at /common and /organizations
	RedirectURIs []string `yaml:"redirect_uris"` // http://localhost, on any port

	// Model is classic (permission SMTP.SendAsApp in Entra, FullAccess on each
	// mailbox) or rbac (App RBAC: no permission, a role with a scope). It only
	// sets Roles where they are not given; the token decides, as in Exchange.
	Model string `yaml:"model"`
	// Roles are the app permissions in the token.
	Roles []string `yaml:"roles"`
	// Delegated are the permissions that users get of it with /.default; SMTP.Send.
	Delegated []string `yaml:"delegated"`
	// FullAccess and RBACScope are addresses of mailboxes, "*" for all;
	// Mailboxes is for both.
	FullAccess []string `yaml:"full_access"`
	RBACScope  []string `yaml:"rbac_scope"`
	Mailboxes  []string `yaml:"mailboxes"`
}

// String names the app and leaves its secret out.
func (a App) String() string { return "app " + a.ClientID }

// GoString is for %#v.
func (a App) GoString() string { return a.String() }

// LogValue is for slog.
func (a App) LogValue() slog.Value { return slog.StringValue(a.String()) }

// Federated is a federated credential of an app: who else may sign its
// assertions. The simulator plays that issuer too.
type Federated struct {
	Issuer   string `yaml:"issuer" json:"issuer"`     // the token's iss; https://kubernetes.default.svc.cluster.local
	Subject  string `yaml:"subject" json:"subject"`   // its sub: system:serviceaccount:mail:relay; "" is no federated credential
	Audience string `yaml:"audience" json:"audience"` // its aud; api://AzureADTokenExchange
}

// Complete fills in the usual issuer and audience.
func (f *Federated) Complete() {
	f.Issuer = cmp.Or(f.Issuer, "https://kubernetes.default.svc.cluster.local")
	f.Audience = cmp.Or(f.Audience, "api://AzureADTokenExchange")
}

// ManagedIdentity is an app whose proof Azure keeps: whoever is on the machine
// gets its tokens without one. What it may do in Exchange stands in App, which
// needs no secret.
type ManagedIdentity struct {
	App `yaml:",inline"`
	// ResourceID is the way to the identity in Azure:
	// /subscriptions/…/providers/Microsoft.ManagedIdentity/userAssignedIdentities/relay.
	ResourceID string `yaml:"resource_id"`
	// SystemAssigned is the identity of the machine itself, of which there is one.
	SystemAssigned bool `yaml:"system_assigned"`
}

// complete fills in defaults. Its error begins with the wrong field.
func (a *App) complete() error {
	a.ExchangeID = cmp.Or(a.ExchangeID, a.ObjectID)
	if a.RedirectURIs == nil {
		a.RedirectURIs = []string{"http://localhost"}
	}
	for i, uri := range a.RedirectURIs {
		if u, err := url.Parse(uri); err != nil || u.Scheme == "" || u.Host == "" {
			return fmt.Errorf("redirect_uris[%d]: %q is no URL", i, uri)
		}
	}
	switch {
	case a.Federated.Subject != "":
		a.Federated.Complete()
	case a.Federated != Federated{}:
		return fmt.Errorf("federated.subject: needed with issuer and audience")
	}
	switch a.Model {
	case "", ModelRBAC:
	case ModelClassic:
		if a.Roles == nil {
			a.Roles = []string{sendAsApp}
		}
	default:
		return fmt.Errorf("model: %q is not classic or rbac", a.Model)
	}
	return nil
}

// entitled returns why an app may not use a mailbox. Roles in the token make
// Exchange look for mailbox permissions and nothing else; that is why
// Microsoft says not to add any with App RBAC.
func (a *App) entitled(roles []string, address string) Denial {
	granted := func(lists ...[]string) bool {
		return slices.ContainsFunc(slices.Concat(lists...), func(x string) bool { return x == "*" || strings.EqualFold(x, address) })
	}
	switch {
	case len(roles) == 0 && !granted(a.RBACScope, a.Mailboxes):
		return "mailbox is not in the role's scope"
	case len(roles) == 0:
		return ""
	case !slices.Contains(roles, sendAsApp):
		return "token has roles, but not SMTP.SendAsApp"
	case !granted(a.FullAccess, a.Mailboxes):
		return "no FullAccess"
	}
	return ""
}

// App returns an app or managed identity by its client id, nil if there is none. Nobody may change
// it; SetApp puts another one in its place.
func (t *Tenant) App(clientID string) *App {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.apps[clientID]
}

// Apps returns all apps but managed identities, in the order of the configuration.
func (t *Tenant) Apps() []*App {
	var list []*App
	for _, a := range t.cfg.Apps {
		list = append(list, t.App(a.ClientID))
	}
	return list
}

// AppByObject returns an app by the object id of its registration, nil if there is none. As with App,
// nobody may change it.
func (t *Tenant) AppByObject(id string) *App {
	i := slices.IndexFunc(t.Apps(), func(a *App) bool { return id != "" && strings.EqualFold(a.ApplicationObjectID, id) })
	if i < 0 {
		return nil
	}
	return t.Apps()[i]
}

// ManagedIdentities returns all managed identities, in the order of the configuration.
func (t *Tenant) ManagedIdentities() []ManagedIdentity {
	list := slices.Clone(t.cfg.ManagedIdentities)
	for i := range list {
		list[i].App = *t.App(list[i].ClientID)
	}
	return list
}

// SetApp changes an app while the simulator runs, a new secret for instance;
// client id and certificates stay. It does nothing for one that does not exist.
// change must not call the simulator.
func (t *Tenant) SetApp(clientID string, change func(*App)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := t.apps[clientID]
	if a == nil {
		return
	}
	changed := *a
	change(&changed)
	changed.ClientID = clientID
	t.apps[clientID] = &changed // a request may be reading the old one
}
