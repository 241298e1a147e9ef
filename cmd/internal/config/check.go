package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/user"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sendas/sendas/internal/serve"
	"github.com/sendas/sendas/milter/quota"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/address"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/renew"
)

// maxSocketPath is what fits into sun_path with its closing NUL (unix(7)).
const maxSocketPath = 107

// maxRecipients is more than Exchange Online takes in one message, whatever the mailbox's
// RecipientLimits says.
const maxRecipients = 1000

// maxBroken is how many values that do not fit at all leave anything to say about the rest.
const maxBroken = 1000

var (
	plainWord  = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)
	GuidForm   = regexp.MustCompile(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)
	domainForm = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z][A-Za-z0-9-]*[A-Za-z0-9]$`)
	HostForm   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$`)
)

// A checker finds what only makes sense together, after the file has been decoded. What
// follows from a value that did not decode is not reported again.
type checker struct {
	c        *Site
	d        *decoder
	own      bool // look at who can change what is read here
	milter   bool // and at the files of the milter
	files    bool // and at the files of the token service
	all      bool // and at those of Postfix, and at what will soon fail
	now      time.Time
	problems []Problem
	warnings []Problem
}

// warn notes what is no mistake, for the command that asks for all.
func (k *checker) warn(path, format string, args ...any) {
	if k.all {
		k.warnings = append(k.warnings, Problem{Line: k.d.find(path), Path: path, Text: fmt.Sprintf(format, args...)})
	}
}

// endsSoon is how long before its end a certificate or secret is warned of: time to get a new one
// approved.
const endsSoon = 30 * 24 * time.Hour

// ends warns of an end that is near.
func (k *checker) ends(path, what string, at time.Time) {
	switch left := at.Sub(k.now); {
	case at.IsZero() || left > endsSoon:
	case left <= 0:
		k.warn(path, "%s ended on %s; get a new one", what, at.UTC().Format(time.DateOnly))
	default:
		k.warn(path, "%s ends on %s, in %d days; get a new one before", what, at.UTC().Format(time.DateOnly), int(left.Hours()/24))
	}
}

func (k *checker) fail(path, format string, args ...any) {
	if slices.ContainsFunc(k.d.broken, func(b string) bool { return within(path, b) || within(b, path) }) {
		return
	}
	k.problems = append(k.problems, Problem{Line: k.d.find(path), Path: path, Text: fmt.Sprintf(format, args...)})
}

func (k *checker) check() []Problem {
	if len(k.d.broken) > maxBroken {
		return nil
	}
	k.tenant()
	k.endpoints()
	k.credentials()
	k.mailboxes()
	k.routes()
	k.clientLimits()
	k.sockets()
	k.policy()
	k.identities()
	k.queue()
	k.record()
	return k.problems
}

func (k *checker) tenant() {
	t := &k.c.Tenant
	switch id := strings.ToLower(t.ID); {
	case id == "" && k.c.Observes():
	case id == "":
		k.fail("tenant.id", "the tenant is missing; write id: with its GUID or one of its domains")
	case id == "common", id == "organizations", id == "consumers":
		k.fail("tenant.id", "%q is for signing users in; an app gets tokens from one tenant: write its GUID or one of its domains", t.ID)
	case !GuidForm.MatchString(id) && !domainForm.MatchString(id):
		k.fail("tenant.id", "%q is not a tenant; write its GUID or one of its domains", Clip(t.ID))
	}
	if _, ok := Clouds[t.Cloud]; !ok {
		k.fail("tenant.cloud", "%q is not a cloud; write global (also for GCC), gcc-high, dod or china", Clip(t.Cloud))
	}
	k.external(t)
}

// external checks the limit for all recipients outside of the tenant.
func (k *checker) external(t *Tenant) {
	const path, licenses = "tenant.external_recipients", "tenant.licenses"
	auto := t.External == externalAuto
	switch _, err := t.ExternalRate(); {
	case auto && t.Licenses == 0 && !t.Trial:
		k.fail(path, "Microsoft's limit depends on the licences; write licenses: with the number of paid email licences, or trial: true")
	case !auto && t.LimitsExternal() && err != nil:
		k.fail(path, "%q is not a limit; write auto, off, or a rate such as 10000/d", Clip(t.External))
	case t.Licenses < 0:
		k.fail(licenses, "%d is no number of licences; write how many paid email licences the tenant has", t.Licenses)
	case t.Licenses > 0 && t.Trial:
		k.fail(licenses, "a trial tenant has no paid licences; remove this line, or trial:")
	case !auto && t.LimitsExternal() && t.Licenses > 0:
		k.fail(licenses, "only external_recipients: auto asks for the licences; write that, or remove this line")
	case !auto && t.LimitsExternal() && t.Trial:
		k.fail("tenant.trial", "only external_recipients: auto asks whether it is a trial; write that, or remove this line")
	}
}

func (k *checker) endpoints() {
	if _, ok := Clouds[k.c.Tenant.Cloud]; !ok {
		return // what the cloud implies is not known
	}
	e := &k.c.Tenant.Endpoints
	k.site("tenant.endpoints.authority", e.Authority, "https://login.microsoftonline.com", "; the tenant comes from tenant.id")
	k.site("tenant.endpoints.graph", e.Graph, "https://graph.microsoft.com", "; the version of the API is not written")
	if !GuidForm.MatchString(e.ProofAudience) {
		k.fail("tenant.endpoints.proof_audience", "%q is not whom a proof can be for; write %s, or what Microsoft's page says today", Clip(e.ProofAudience), renew.Audience)
	}
	if u, err := url.Parse(e.Scope); err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "/.default" {
		k.fail("tenant.endpoints.scope", "%q is not what an app asks for; write https://HOST/.default", Clip(e.Scope))
	}
	if u, err := url.Parse(e.DelegatedScope); err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "/SMTP.Send" && !(e.HighVolume() && u.Path == "/.default") {
		k.fail("tenant.endpoints.delegated_scope", "%q is not what a user's app asks for; write https://HOST/SMTP.Send", Clip(e.DelegatedScope))
	}
	switch u, err := url.Parse(e.Proxy); {
	case e.Proxy == "":
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		k.fail("tenant.endpoints.proxy", "this is not the address of a proxy; write one such as http://proxy.contoso.com:3128")
	case u.User != nil:
		k.fail("tenant.endpoints.proxy", "a password does not stand in this file; put HTTPS_PROXY into a file that root alone can read (EnvironmentFile= of the unit)")
	}
	k.submission(e.Submission)
	k.otherHost()
	if !k.files {
		return
	}
	_, err := entra.NewHTTPClient(entra.HTTPOptions{CAFile: e.CAFile, Proxy: e.Proxy})
	if _, ok := errors.AsType[*entra.ProxyError](err); err != nil && !ok { // HTTPS_PROXY of this shell is not the service's
		k.fail("tenant.endpoints.ca_file", "%v", err)
	}
}

func (k *checker) submission(s string) {
	const path = "tenant.endpoints.submission"
	host, port, err := net.SplitHostPort(s)
	if _, bare := netip.ParseAddr(s); bare == nil {
		host, err = s, nil
	}
	switch _, ip := netip.ParseAddr(host); {
	case err != nil && HostForm.MatchString(s):
		k.fail(path, "the port is missing; write %s:587", s)
	case err != nil:
		k.fail(path, "%q is not a host with its port; write smtp.office365.com:587", Clip(s))
	case ip == nil:
		k.fail(path, "Microsoft wants a name, never an address; write smtp.office365.com:587")
	case port == "465":
		k.fail(path, "Microsoft has no implicit TLS (port 465); write smtp.office365.com:587")
	case !HostForm.MatchString(host) || !validPort(port):
		k.fail(path, "%q is not a host with its port; write smtp.office365.com:587", Clip(s))
	}
}

func IsLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// site checks the address of one of Microsoft's sites, without a path; more is said where there is one.
func (k *checker) site(path, address, example, more string) {
	switch u, err := url.Parse(address); {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		k.fail(path, "%q is not an address of the web; write one such as %s", Clip(address), example)
	case u.Scheme == "http" && !IsLoopback(u.Hostname()):
		k.fail(path, "secrets do not travel without TLS; write https:// (http:// is for 127.0.0.1 only)")
	case u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		k.fail(path, "write the scheme and the host alone, as in https://%s%s", u.Host, more)
	}
}

func validPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

func (k *checker) credentials() {
	for name, r := range k.c.Credentials {
		path := JoinPath("credentials", name)
		if !plainWord.MatchString(name) {
			k.fail(path, "this is not a name; write letters, digits, - . and _ (it stands in logs and metrics)")
		}
		switch r.Flow {
		case flowClientCredentials:
			k.clientID(path, r)
			k.proof(path, name, r)
			k.renewal(path, r)
			k.only(path, r, "client_credentials", "client_id", "client_secret_file", "secret_expires", "certificate_file", "key_file", "object_id", "renew")
		case FlowFederated:
			if r.ClientID != "" { // else the environment says
				k.clientID(path, r)
			}
			k.only(path, r, "federated", "client_id", "token_file")
			if k.files && r.TokenFile != "" {
				_, err := entra.CheckFederatedTokenFile(r.TokenFile)
				k.file(path+".token_file", err)
			}
		case flowManagedIdentity:
			k.managedIdentity(path, r)
		case flowDeviceCode, FlowAuthorizationCode:
			k.clientID(path, r)
			k.user(path, r)
			if r.ClientSecretFile+r.CertificateFile+r.KeyFile != "" {
				k.proof(path, name, r) // a confidential client
			}
			k.renewal(path, r)
			k.only(path, r, r.Flow, "client_id", "user", "client_secret_file", "secret_expires", "certificate_file", "key_file", "object_id", "renew")
		default:
			k.fail(path+".flow", "%q is not a flow; write client_credentials, federated, managed_identity, device_code or authorization_code", Clip(r.Flow))
		}
	}
}

func (k *checker) clientID(path string, r Credential) {
	switch {
	case r.ClientID == "":
		k.fail(path, "client_id is missing; write the application (client) ID of the app registration")
	case !GuidForm.MatchString(r.ClientID):
		k.fail(path+".client_id", "this is not the application (client) ID of an app registration; it has the form 01234567-89ab-cdef-0123-456789abcdef")
	}
}

// user checks who has to sign in.
func (k *checker) user(path string, r Credential) {
	switch a, err := address.Parse(r.User); {
	case r.User == "":
		k.fail(path, "the user is missing; write user: with the address of the mailbox's user, who signs in with \"sendas login\"")
	case err != nil || !a.Valid():
		k.fail(path+".user", "%q is not an address; write the address of the mailbox's user", Clip(r.User))
	}
}

func (k *checker) managedIdentity(path string, r Credential) {
	k.only(path, r, "managed_identity", "client_id", "object_id", "resource_id")
	n := 0
	for _, id := range []struct{ key, value string }{{"client_id", r.ClientID}, {"object_id", r.ObjectID}} {
		if id.value == "" {
			continue
		}
		n++
		if !GuidForm.MatchString(id.value) {
			k.fail(path+"."+id.key, "this is not an ID of Entra's; it has the form 01234567-89ab-cdef-0123-456789abcdef")
		}
	}
	if r.ResourceID != "" {
		n++
		if !strings.HasPrefix(r.ResourceID, "/subscriptions/") {
			k.fail(path+".resource_id", "%q is not the resource ID of an identity; it begins with /subscriptions/", Clip(r.ResourceID))
		}
	}
	if n > 1 {
		k.fail(path, "an identity is named once; keep one of client_id, object_id and resource_id, or none for the machine's own")
	}
}

// only refuses keys that the flow does not use: whoever wrote them expects something of them.
func (k *checker) only(path string, r Credential, flow string, keys ...string) {
	for _, f := range []struct{ key, value string }{
		{"client_id", r.ClientID}, {"client_secret_file", r.ClientSecretFile}, {"secret_expires", r.SecretExpires}, {"certificate_file", r.CertificateFile}, {"key_file", r.KeyFile},
		{"token_file", r.TokenFile}, {"user", r.User}, {"object_id", r.ObjectID}, {"resource_id", r.ResourceID}, {"renew", renewText(r.Renew)},
	} {
		if f.value != "" && !slices.Contains(keys, f.key) {
			k.fail(path+"."+f.key, "flow %s has no use for this; remove it, or change the flow", flow)
		}
	}
}

// renewText is empty where nothing is renewed.
func renewText(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return d.String()
}

// The bounds of renew: a week is time for somebody to help where it fails, and a year is the life of
// most certificates.
const (
	leastRenew = 7 * 24 * time.Hour
	mostRenew  = 180 * 24 * time.Hour
)

// lateRenewal is how long a renewal may take before anybody hears of it.
const lateRenewal = 24 * time.Hour

// renewal checks what it takes to replace the certificate of an app.
func (k *checker) renewal(path string, r Credential) {
	switch {
	case r.Renew == 0 && r.ObjectID != "":
		k.fail(path+".object_id", "it is for renew: alone; write renew: 30d, or remove it")
	case r.Renew == 0:
	case r.CertificateFile == "":
		k.fail(path+".renew", "only a certificate can be renewed; write certificate_file: in place of client_secret_file:, or remove renew:")
	case r.Renew < leastRenew || r.Renew > mostRenew:
		k.fail(path+".renew", "write a time from 7d to 180d before the certificate's end, such as 30d")
	case r.ObjectID == "":
		k.fail(path, "object_id is missing; renew: needs the Object ID of the app registration, from its page Overview in the Entra admin centre")
	case !GuidForm.MatchString(r.ObjectID):
		k.fail(path+".object_id", "this is not the Object ID of an app registration; it has the form 01234567-89ab-cdef-0123-456789abcdef")
	case strings.EqualFold(r.ObjectID, r.ClientID):
		k.fail(path+".object_id", "this is the application (client) ID; the Object ID of the app registration stands below it on the page Overview")
	}
}

// proof checks that there is one proof of who the app is.
func (k *checker) proof(path, name string, r Credential) {
	day, err := time.Parse(time.DateOnly, r.SecretExpires)
	if r.SecretExpires != "" && err != nil {
		k.fail(path+".secret_expires", "%q is not a day; write one such as 2027-05-31", Clip(r.SecretExpires))
	}
	k.ends(path+".secret_expires", "the client secret", day)
	switch {
	case r.ClientSecretFile == "" && r.CertificateFile == "" && r.KeyFile != "":
		k.fail(path+".key_file", "a key needs its certificate; write certificate_file: too")
	case r.ClientSecretFile == "" && r.CertificateFile == "":
		k.fail(path, "nothing proves who the app is; write client_secret_file: or certificate_file:")
	case r.ClientSecretFile != "" && r.CertificateFile != "":
		k.fail(path, "an app proves itself by a secret or by a certificate; remove client_secret_file: or certificate_file:")
	case r.ClientSecretFile != "" && r.KeyFile != "":
		k.fail(path+".key_file", "a key belongs to a certificate; remove key_file:, or write certificate_file: in place of client_secret_file:")
	case k.files && r.ClientSecretFile != "":
		k.file(path+".client_secret_file", entra.CheckSecretFile(r.ClientSecretFile))
	case k.files:
		end, err := k.c.Keeper(name, nil).Check()
		k.file(path+".certificate_file", err)
		if r.Renew > 0 && end.Sub(k.now) > r.Renew-lateRenewal {
			end = time.Time{} // it will be renewed, or is being
		}
		if err == nil {
			k.ends(path+".certificate_file", "the certificate", end)
		}
	}
}

// file reports what is wrong with a file. One that systemd hands to the service is not there for
// anybody else; one that only the service's user can read says nothing to another user who wants to
// know whether the configuration is good.
func (k *checker) file(path string, err error) {
	switch {
	case err == nil || errors.Is(err, entra.ErrNoCredentials):
	case k.all && errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0:
		k.warn(path, "%s", notLookedAt)
	default:
		k.fail(path, "%v", err)
	}
}

const notLookedAt = `this user may not read the file, so it was not looked at; type "sendas check" as root`

// hidden reports whether one of the files is not for this user's eyes.
func hidden(files ...string) bool {
	return os.Geteuid() != 0 && slices.ContainsFunc(files, func(name string) bool {
		f, err := os.Open(name)
		if err == nil {
			f.Close()
		}
		return errors.Is(err, fs.ErrPermission)
	})
}

func (k *checker) mailboxes() {
	// A site that only has connectors needs no mailbox; a client that does says so itself.
	if len(k.c.Mailboxes) == 0 && len(k.c.Routes) == 0 && !k.c.Observes() {
		k.fail("mailboxes", "no mailbox is listed; write at least one with address: and credential:")
	}
	if len(k.c.Clients) == 0 && !k.c.Observes() {
		k.fail("clients", "no client is listed, so nobody could send; write at least one with name: and networks: or logins:")
	}
	for i, m := range k.c.Mailboxes {
		path := "mailboxes[" + strconv.Itoa(i) + "]"
		k.credentialName(path+".credential", m.Credential)
		if credential := k.c.Credentials[m.Credential]; m.Pattern() && credential.Delegated() {
			k.fail(path+".credential", "a signed-in user is one mailbox; %s needs an app of its own (client_credentials, federated or managed_identity)", m.Address)
		}
		k.limits(path+".limits", m.Limits)
		if m.Pool && k.c.Token.TokenFiles != "" {
			k.fail(path+".pool", "which mailbox of a pool sends is decided by leases, and token.token_files goes without them; remove one of the two")
		}
	}
}

// credentialName checks who gives the tokens of a mailbox or an account.
func (k *checker) credentialName(path, name string) {
	_, known := k.c.Credentials[name]
	switch {
	case name == "" && k.c.Observes():
	case name == "":
		k.fail(path, "the credential is missing; write credential: with a name from credentials:")
	case !known && !slices.Contains(k.d.broken, "credentials"):
		k.fail(path, "there is no credential %q %s", Clip(name), didYouMean(name, slices.Sorted(maps.Keys(k.c.Credentials)), "under credentials:"))
	}
}

// ClientQuotas checks what clients may submit.
func (k *checker) clientLimits() {
	for i, c := range k.c.Clients {
		path := "clients[" + strconv.Itoa(i) + "]"
		if err := quota.Rates(c.Limits).Check(); err != nil {
			k.fail(path+".limits", "%v", err)
		}
		k.onLimit(path, c.OnLimit)
	}
}

// limits keeps a mailbox within what Microsoft allows ("Exchange Online limits"). Periods other
// than Microsoft's are not compared: a lab shortens the minute. Other hosts have limits that Microsoft
// raises on request, or none.
func (k *checker) limits(path string, l Limits) {
	most := limit.Microsoft()
	if e := &k.c.Tenant.Endpoints; e.HighVolume() || e.azure() {
		k.connections(path, l.Connections, 0)
		return
	}
	over := func(have, most limit.Rate) bool { return have.Per == most.Per && have.N > most.N }
	if over(l.Messages, most.Messages) {
		k.fail(path+".messages", "Microsoft slows a mailbox down after 30 messages in a minute; write 30/m or less")
	}
	if over(l.Recipients, most.Recipients) {
		k.fail(path+".recipients", "Microsoft refuses a mailbox's mail after 10000 recipients in a day; write 10000/d or less")
	}
	k.connections(path, l.Connections, most.Connections)
}

// connections checks how many connections a mailbox may have; most is 0 where Microsoft names none.
func (k *checker) connections(path string, n, most int) {
	upTo := "or more"
	if most > 0 {
		upTo = "to " + strconv.Itoa(most)
	}
	switch {
	case n < 1:
		k.fail(path+".connections", "%d connections can send nothing; write 1 %s", n, upTo)
	case most > 0 && n > most:
		k.fail(path+".connections", "Microsoft answers 432 to more than %d connections of a mailbox; write 1 to %d", most, most)
	}
}

// sockets checks where the services listen.
func (k *checker) sockets() {
	k.listen("milter.listen", k.c.Milter.Listen, true)
	if k.c.Milter.PolicyListen != "" {
		k.listen("milter.policy_listen", k.c.Milter.PolicyListen, true)
	}
	if host, _, err := net.SplitHostPort(k.c.Milter.PolicyListen.HostPort()); err == nil && !IsLoopback(host) &&
		slices.ContainsFunc(k.c.Clients, func(c Client) bool { return len(c.Fingerprints) > 0 }) {
		k.fail("milter.policy_listen", "fingerprints of client certificates come over this socket, and whoever reaches it could claim one; write unix:/path")
	}
	k.listen("token.listen", k.c.Token.Listen, false)
	k.web("milter.http", k.c.Milter.HTTP, "127.0.0.1:9725")
	k.web("token.http", k.c.Token.HTTP, "127.0.0.1:9726")
	k.distinct()
	k.store(k.c.Token.StoreOf())
	k.store(k.c.Milter.StoreOf())
	k.received()
	if m := k.c.Milter.Mode; !slices.Contains([]policy.Mode{policy.Enforce, policy.Observe}, policy.Mode(m)) {
		k.fail("milter.mode", "%q is not a choice; write enforce, or observe to change and refuse nothing and only note who sends what", Clip(m))
	}
	if n := k.c.Token.RecipientsUnseen; n < 1 || n > maxRecipients {
		k.fail("token.recipients_unseen", "%d is not how many recipients one delivery can have; write 50, or 1 where the MTA sends to one at a time (at most %d)", n, maxRecipients)
	}
	if len(k.c.Token.Peers) == 0 {
		k.fail("token.peers", "nobody may ask for credentials; write the user that Postfix runs as: [postfix]")
	}
	for i, p := range k.c.Token.Peers {
		path := fmt.Sprintf("token.peers[%d]", i)
		if p == "" {
			k.fail(path, "an empty name is nobody; write a user such as postfix")
			continue
		}
		// Both services ask for the ids, when they start.
		if _, err := user.Lookup(p); k.own && err != nil {
			k.fail(path, "this host has no user %q; write the one that Postfix runs as (postconf -h mail_owner)", Clip(p))
		}
	}
}

// didYouMean names what was most likely meant, or else says where such names stand.
func didYouMean(name string, known []string, where string) string {
	if near := Nearest(name, known); plainWord.MatchString(near) {
		return fmt.Sprintf("%s; did you mean %q?", strings.TrimSuffix(where, ":"), near)
	}
	return where
}

// received checks what becomes of mail that Postfix delivers itself.
func (k *checker) received() {
	switch policy.Received(k.c.Milter.Received) {
	case policy.PassReceived, policy.TrustReceived, policy.RefuseReceived:
	default:
		k.fail("milter.received", "%q is not a choice; write pass, trust or reject", Clip(k.c.Milter.Received))
	}
	if f := k.c.Milter.ClassesFile; f == "" || strings.HasPrefix(f, "credential:") {
		k.fail("milter.classes_file", "\"sendas postfix enable\" writes it, so it needs a name; write one such as postfix-classes.json")
	}
}

func (k *checker) listen(path string, a serve.Address, inet bool) {
	switch kind := a.Kind(); {
	case a.Path() != "":
		if n := len(a.Path()); n > maxSocketPath {
			k.fail(path, "the socket's path has %d bytes; the system takes %d at most", n, maxSocketPath)
		}
	case kind == serve.KindInet && inet:
		k.web(path, a.HostPort(), "inet:127.0.0.1:8891")
		if host, _, err := net.SplitHostPort(a.HostPort()); err == nil && !IsLoopback(host) {
			k.warn(path, "whoever reaches %s can pretend to be Postfix, and so to be any client; write unix:/path or inet:127.0.0.1:PORT where Postfix runs on this host, else let the firewall pass that host alone", a.HostPort())
		}
	case kind == serve.KindInet:
		k.fail(path, "credentials go over a unix socket only, which tells who asks; write unix:/path")
	case inet:
		k.fail(path, "%q is not a socket; write unix:/path or inet:host:port", Clip(a.String()))
	default:
		k.fail(path, "%q is not a socket; write unix:/path", Clip(a.String()))
	}
}

// web checks a host with its port; no address at all is good.
func (k *checker) web(path, s, example string) {
	if s == "" && !strings.HasSuffix(path, ".listen") {
		return
	}
	host, port, err := net.SplitHostPort(s)
	_, ip := netip.ParseAddr(host)
	if err != nil || !validPort(port) || ip != nil && !HostForm.MatchString(host) {
		k.fail(path, "%q is not an address with its port; write one such as %s", Clip(s), example)
	}
}

// distinct checks that no two services listen at the same place.
func (k *checker) distinct() {
	taken := make(map[string]string, 5)
	place := func(a serve.Address) string { return cmp.Or(a.HostPort(), a.String()) }
	for _, l := range []struct{ path, addr string }{
		{"milter.listen", place(k.c.Milter.Listen)}, {"milter.policy_listen", place(k.c.Milter.PolicyListen)}, {"milter.http", k.c.Milter.HTTP},
		{"token.listen", place(k.c.Token.Listen)}, {"token.http", k.c.Token.HTTP},
	} {
		if l.addr == "" {
			continue
		}
		if other, ok := taken[l.addr]; ok {
			k.fail(l.path, "%s listens on %s already; write another one", other, l.addr)
		}
		taken[l.addr] = l.path
	}
}

// routes checks the certificates that Postfix shows to connectors, and what is only of use for SPF.
func (k *checker) routes() {
	for i, r := range k.c.Routes {
		path := "routes[" + strconv.Itoa(i) + "]"
		for j, a := range r.Addresses {
			if _, err := netip.ParseAddr(a); err == nil {
				continue
			}
			if _, err := netip.ParsePrefix(a); err != nil {
				k.fail(fmt.Sprintf("%s.addresses[%d]", path, j), "%q is not an address; write the public address of this relay, such as 203.0.113.7", Clip(a))
			}
		}
		k.account(path, &r)
		switch {
		case r.CertificateFile == "" && r.KeyFile != "":
			k.fail(path+".key_file", "a key needs its certificate; write certificate_file: too")
		case r.CertificateFile != "" && r.Type != "connector":
			k.fail(path+".certificate_file", "a connector alone knows a relay by its certificate; remove this line")
		}
	}
}

// certificates checks that the names in the certificates for connectors lie in verified domains:
// Microsoft finds the tenant by them.
func (k *checker) certificates(p *policy.Rules) {
	if !k.all {
		return
	}
	for i, r := range k.c.Routes {
		if r.CertificateFile == "" || r.Type != "connector" {
			continue
		}
		path := fmt.Sprintf("routes[%d].certificate_file", i)
		if hidden(r.CertificateFile, r.KeyFile) {
			k.warn(path, "%s", notLookedAt)
			continue
		}
		end, err := checkRouteCertificate(p, r.CertificateFile, r.KeyFile, k.c.Tenant.Endpoints.CAFile, k.now)
		if err != nil {
			k.fail(path, "%v", err)
			continue
		}
		k.ends(path, "the certificate that the connector knows this relay by", end)
	}
}

// shadowed warns of clients that no message can come from.
func (k *checker) shadowed(p *policy.Rules) {
	if !k.all {
		return
	}
	for _, s := range p.Shadowed() {
		k.warn(fmt.Sprintf("clients[%d]", s.Client), "client %q never matches: %q, which stands before it, has all its %s, and the first that matches wins; put it before that one",
			k.c.Clients[s.Client].Name, k.c.Clients[s.By].Name, s.What)
	}
}

// policy makes the Policy. Of what it finds wrong, it reports the causes alone: without
// domains no address is right, and without its mailbox no from is.
func (k *checker) policy() {
	s := k.c.settings()
	if k.c.Tenant.PermissionsFile != "" {
		var err error
		if s.Permissions, k.c.Permissions, err = readPermissions(k.c.Tenant.PermissionsFile, k.own); err != nil {
			k.fail("tenant.permissions_file", "%v", err)
			return // half of what is authorised is not known
		}
	}
	p, errs := policy.New(s)
	has := func(base string) bool {
		return slices.ContainsFunc(errs, func(e policy.FieldError) bool { return within(e.Path, base) }) ||
			slices.ContainsFunc(k.d.broken, func(b string) bool { return within(b, base) || within(base, b) })
	}
	noDomains, noRoutes := has("tenant.domains"), has("routes")
	noMailboxes := has("mailboxes") || len(k.c.Mailboxes)+len(k.c.Routes) == 0 && !k.c.Observes()
	for _, e := range errs {
		isFrom := within(e.Path, "clients") && strings.HasSuffix(e.Path, ".from")
		isRoute := within(e.Path, "clients") && strings.HasSuffix(e.Path, ".route")
		if noDomains && (within(e.Path, "mailboxes") || isFrom) || noMailboxes && (isFrom || isRoute) || noRoutes && isRoute {
			continue
		}
		if e.Path == "notices" && k.c.Notices == "" {
			k.missingNotices(e)
			continue
		}
		k.fail(e.Path, "%s", e.Text)
	}
	if p == nil {
		return
	}
	k.c.Policy = p
	for i, m := range p.Mailboxes() {
		k.c.Mailboxes[i].Address = m.Name
	}
	for i := range k.c.Routes {
		if r := &k.c.Routes[i]; r.HighVolume() {
			r.Account = p.Route(r.Name).Account.String()
		}
	}
	k.certificates(p)
	k.shadowed(p)
}

// missingNotices says that nothing names as whom this host speaks, at the mailboxes that could. What
// else is wrong may be what it would follow from.
func (k *checker) missingNotices(e policy.FieldError) {
	if len(k.problems)+len(k.d.broken) == 0 {
		k.problems = append(k.problems, Problem{Line: k.d.find("mailboxes"), Path: e.Path, Text: e.Text})
	}
}

func (c *Site) settings() policy.Settings {
	s := policy.Settings{Domains: c.Tenant.Domains, AllowOnMicrosoft: c.Tenant.AllowOnMicrosoft, Submission: c.Tenant.Endpoints.Submission, Notices: c.Notices,
		Received: policy.Received(c.Milter.Received), Mode: policy.Mode(c.Milter.Mode)}
	s.Mailboxes, s.Clients = make([]policy.MailboxSettings, 0, len(c.Mailboxes)), make([]policy.ClientSettings, 0, len(c.Clients))
	for _, m := range c.Mailboxes {
		s.Mailboxes = append(s.Mailboxes, policy.MailboxSettings{Address: m.Address, Aliases: m.Aliases, SendAs: m.SendAs, PlusAddresses: m.PlusAddresses, Pool: m.Pool})
	}
	for _, r := range c.Routes {
		s.Routes = append(s.Routes, policy.RouteSettings{Name: r.Name, Type: r.Type, Endpoint: r.Endpoint, Transport: r.Transport, External: r.External, Account: r.Account})
	}
	for _, c := range c.Clients {
		s.Clients = append(s.Clients, c.policy())
	}
	return s
}
