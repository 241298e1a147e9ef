package config

import (
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/limit"
)

// Other submission hosts than Exchange Online's own have limits, and tokens, of their own: High Volume
// Email ("Manage high volume emails for Microsoft 365", "OAuth for High Volume Email") and Azure
// Communication Services ("Azure Communication Services email SMTP").

const (
	hveHost       = "smtp.hve.mx.microsoft"
	formerHVEHost = "smtp-hve.office365.com" // "will be deprecated in the future"
	azureHost     = "smtp.azurecomm.net"
	// hveScope is of an app's token and of a user's.
	hveScope = "https://outlook.office.com/.default"
)

// hveOf is what High Volume Email's host and scope are in each cloud. Microsoft names a host for one
// alone; in others the scope is that of their Exchange Online.
func hveOf(cloud string) (endpoint, scope string) {
	if cloud == "global" {
		return hveHost + ":587", hveScope
	}
	return "", Clouds[cloud].Scope
}

// HighVolume reports whether all of submission is High Volume Email.
func (e *Endpoints) HighVolume() bool {
	host, _, _ := net.SplitHostPort(e.Submission)
	return IsHighVolumeHost(host)
}

// IsHighVolumeHost reports whether a name is one that Microsoft's host of High Volume Email has.
func IsHighVolumeHost(host string) bool {
	return strings.EqualFold(host, hveHost) || strings.EqualFold(host, formerHVEHost)
}

// azure reports whether submission is Azure Communication Services.
func (e *Endpoints) azure() bool {
	host, _, _ := net.SplitHostPort(e.Submission)
	return strings.EqualFold(host, azureHost)
}

// unset is the number of connections for which the configuration says nothing, until Complete knows
// the host; no file can say it.
const unset = -1 << 31

// mailboxLimits returns what a mailbox may do where the file says nothing. A new subscription of Azure
// Communication Services has 100 messages an hour and 30 a minute, for all its senders: these are
// both.
func (e *Endpoints) mailboxLimits() limit.Allowance {
	switch {
	case e.HighVolume():
		return limit.HighVolume()
	case e.azure():
		l := limit.HighVolume()
		l.Messages = limit.Rate{N: 25, Per: 15 * time.Minute}
		return l
	}
	return limit.Microsoft()
}

// complete fills in the limits that the file does not name.
func (l *Limits) complete(implied limit.Allowance) {
	if l.Messages == (limit.Rate{}) {
		l.Messages = implied.Messages
	}
	if l.Recipients == (limit.Rate{}) {
		l.Recipients = implied.Recipients
	}
	if l.Connections == unset {
		l.Connections = implied.Connections
	}
}

// completeRoutes fills in what the cloud implies for accounts of High Volume Email.
func (c *Site) completeRoutes(dir string) {
	endpoint, scope := hveOf(c.Tenant.Cloud)
	for i := range c.Routes {
		r := &c.Routes[i]
		r.CertificateFile, r.KeyFile = under(dir, r.CertificateFile), under(dir, r.KeyFile)
		if r.HighVolume() {
			r.Limits.complete(limit.HighVolume())
			if r.Endpoint == "" {
				r.Endpoint = endpoint
			}
			if r.Scope == "" {
				r.Scope = scope
			}
		}
	}
}

// HighVolume reports whether the route is one of High Volume Email.
func (r *Route) HighVolume() bool { return r.Type == string(policy.HVE) }

// Accounts returns the accounts of High Volume Email that routes sign in as, as mailboxes that send as
// themselves alone; Mailboxes does not have them.
func (c *Site) Accounts() []Mailbox {
	var list []Mailbox
	for i := range c.Routes {
		if r := &c.Routes[i]; r.HighVolume() {
			list = append(list, Mailbox{Address: r.Account, Credential: r.Credential, Limits: r.Limits})
		}
	}
	return list
}

// AccountRoute returns the route of High Volume Email that uses a credential, nil where none does.
func (c *Site) AccountRoute(credential string) *Route {
	i := slices.IndexFunc(c.Routes, func(r Route) bool { return r.HighVolume() && r.Credential == credential })
	if i < 0 {
		return nil
	}
	return &c.Routes[i]
}

// IsHighVolume reports whether a credential is for High Volume Email, whose permission is another one.
func (c *Site) IsHighVolume(credential string) bool {
	return c.Tenant.Endpoints.HighVolume() || c.AccountRoute(credential) != nil
}

// SubmissionOf returns where mail goes that leaves as a mailbox, or as the account of a route, as
// host:port.
func (c *Site) SubmissionOf(address string) string {
	for i := range c.Routes {
		if r := &c.Routes[i]; r.HighVolume() && r.Account == address {
			return strings.NewReplacer("[", "", "]", "").Replace(c.Policy.Route(r.Name).NextHop)
		}
	}
	return c.Tenant.Endpoints.Submission
}

// Scopes returns what a credential asks for: an app's scope, and a user's.
func (c *Site) Scopes(credential string) (app, user string) {
	if r := c.AccountRoute(credential); r != nil {
		return r.Scope, r.Scope
	}
	return c.Tenant.Endpoints.Scope, c.Tenant.Endpoints.DelegatedScope
}

// account checks what only a route of High Volume Email has.
func (k *checker) account(path string, r *Route) {
	if !r.HighVolume() {
		for _, x := range []struct {
			key string
			set bool
		}{{"credential", r.Credential != ""}, {"scope", r.Scope != ""}, {"limits", r.Limits != routeLimits()}} {
			if x.set && r.Name != policy.SubmissionRoute {
				k.fail(path+"."+x.key, "only a route of type hve signs in, as its account; remove this line")
			} else if x.set {
				k.fail(path+"."+x.key, "submission signs in as mailboxes, which stand under mailboxes:; remove this line")
			}
		}
		return
	}
	k.credentialName(path+".credential", r.Credential)
	k.shared(path+".credential", r)
	if c, ok := k.c.Credentials[r.Credential]; ok && c.Delegated() && !strings.EqualFold(c.User, r.Account) {
		k.fail(path+".credential", "High Volume Email takes the token of a user for that user alone, and the user of credential %q is %s; write user: %s there, or take an app's credential",
			r.Credential, Clip(c.User), Clip(r.Account))
	}
	if u, err := url.Parse(r.Scope); err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "/.default" {
		k.fail(path+".scope", "%q is not what is asked for; write https://HOST/.default", Clip(r.Scope))
	}
	k.connections(path+".limits", r.Limits.Connections, 0)
	k.former(path+".endpoint", r.Endpoint)
}

// routeLimits are those of a route before the file is read.
func routeLimits() Limits { return Limits{Connections: unset} }

// shared refuses a credential that would have to ask for two scopes.
func (k *checker) shared(path string, r *Route) {
	for i, m := range k.c.Mailboxes {
		if m.Credential == r.Credential && r.Credential != "" {
			k.fail(path, "mailboxes[%d] uses credential %q too, and High Volume Email wants a token of its own; write a second credential, which may be of the same app", i, r.Credential)
			return
		}
	}
	if first := k.c.AccountRoute(r.Credential); first != nil && first.Scope != r.Scope {
		k.fail(path, "route %q uses credential %q too, with another scope; write a second credential, which may be of the same app", first.Name, r.Credential)
	}
}

// former warns of the host that Microsoft will take away.
func (k *checker) former(path, endpoint string) {
	host, _, ok := strings.Cut(endpoint, ":")
	if strings.EqualFold(host, formerHVEHost) {
		port := ":587"
		if ok {
			port = endpoint[len(host):]
		}
		k.warn(path, "Microsoft will take this host away; write %s%s", hveHost, port)
	}
}

// otherHost warns of what another submission host than Exchange Online's does not do.
func (k *checker) otherHost() {
	e := &k.c.Tenant.Endpoints
	switch {
	case e.HighVolume():
		k.former("tenant.endpoints.submission", e.Submission)
		for i := range k.c.Mailboxes {
			if m := &k.c.Mailboxes[i]; len(m.Aliases)+len(m.SendAs) > 0 || m.Pattern() {
				k.warn("mailboxes["+strconv.Itoa(i)+"]", "High Volume Email lets an account send as itself alone, and has no Send As: Exchange refuses what leaves as another address")
			}
		}
	case e.azure() && e.Scope == Clouds[k.c.Tenant.Cloud].Scope:
		k.warn("tenant.endpoints.submission", "for whom a token of Azure Communication Services has to be made out, Microsoft does not say; it takes none for Exchange Online, so write its scope under tenant.endpoints.scope")
	}
}
