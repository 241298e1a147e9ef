package exosim

import (
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
)

// Config is what the simulator plays. The zero value of a field means its
// default, which is Microsoft's figure where there is one.
type Config struct {
	Tenant   string   `yaml:"tenant"`    // a domain of the tenant, for token URLs; contoso.onmicrosoft.com
	TenantID string   `yaml:"tenant_id"` // the tenant's GUID, accepted in token URLs too
	Domains  []string `yaml:"domains"`   // accepted domains, for token URLs, the MX endpoint, and for checking the mailboxes; none: not checked

	Apps      []App     `yaml:"apps"`
	Mailboxes []Mailbox `yaml:"mailboxes"`
	Users     []User    `yaml:"users"` // who can sign in

	// ManagedIdentities are apps for the endpoints at IMDS.
	ManagedIdentities []ManagedIdentity `yaml:"managed_identities"`

	DeviceFlow DeviceFlow    `yaml:"device_flow"` // how the device code flow goes
	SignIn     SignIn        `yaml:"sign_in"`     // what the sign-in page does
	Refresh    RefreshPolicy `yaml:"refresh"`     // how long refresh tokens are good
	// Refuse is what RefuseGrant is called with at the start: a grant and the
	// reason to refuse it for.
	Refuse map[string]string `yaml:"refuse"`

	// SMTPAuthDisabled switches SMTP AUTH off for the tenant.
	SMTPAuthDisabled bool `yaml:"smtp_auth_disabled"`

	// Messages per Window, recipients per RecipientWindow, and parallel
	// deliveries of a mailbox.
	Messages        int           `yaml:"messages"`         // 30
	Window          time.Duration `yaml:"window"`           // 1m
	Recipients      int           `yaml:"recipients"`       // 10000
	RecipientWindow time.Duration `yaml:"recipient_window"` // 24h
	Connections     int           `yaml:"connections"`      // 3
	// EnforceRate says what happens to more than Messages in a Window: nothing
	// but a note of it, a verdict that comes later (what Microsoft documents),
	// or a refusal.
	EnforceRate RateMode `yaml:"enforce_rate"` // off

	MaxSize         int64 `yaml:"max_size"`          // bytes of a message, as EHLO says; 157286400
	MaxMessageRcpts int   `yaml:"max_message_rcpts"` // recipients of one message; 500
	HighVolume      bool  `yaml:"high_volume"`       // High Volume Email: AUTH wants a token with 10 minutes left

	// TokenLife is how long tokens live; 0 is as in Entra, at random between
	// 60 and 90 minutes.
	TokenLife time.Duration `yaml:"token_life"`
	// VerdictMin and VerdictMax bound the time between the end of DATA and the
	// verdict; the real service takes 0.5 to 3 s.
	VerdictMin time.Duration `yaml:"verdict_min"`
	VerdictMax time.Duration `yaml:"verdict_max"`
	// TarPit delays refusals before DATA; the real service takes about 5 s.
	TarPit time.Duration `yaml:"tar_pit"`
	// Idle is how long a client may be silent.
	Idle time.Duration `yaml:"idle"` // 5m
	// Challenge sends a 334 with a JSON error before a 535, as Google does.
	Challenge bool `yaml:"challenge"`
	// SendAsText chooses among the wordings of a missing Send As right that
	// are still seen: 5.2.252, 5.2.0 or 5.7.60.
	SendAsText string `yaml:"send_as_text"` // 5.2.252
	// Seed makes random delays and faults repeatable; 0 is another run each time.
	Seed uint64 `yaml:"seed"`

	// Connectors are the inbound connectors that the MX endpoint knows.
	Connectors []Connector `yaml:"connectors"`
	// ClientCAFile is PEM: who vouches for the certificates of connectors,
	// beside the simulator's own authority.
	ClientCAFile string `yaml:"client_ca_file"`
	// RejectDirectSend has the MX endpoint refuse envelope senders of Domains
	// that come by no connector.
	RejectDirectSend bool `yaml:"reject_direct_send"`
	// KnownRecipients are addresses that exist beside the mailboxes and their
	// aliases. Where there are any, the MX endpoint refuses all others in
	// Domains; where there are none, it takes them all.
	KnownRecipients []string `yaml:"known_recipients"`

	Submission string `yaml:"submission"`  // address to listen on; 127.0.0.1:0
	MX         string `yaml:"mx"`          // address of the MX endpoint, which takes mail for Domains; none
	Entra      string `yaml:"entra"`       // HTTPS; 127.0.0.1:0
	EntraPlain bool   `yaml:"entra_plain"` // HTTP instead
	Admin      string `yaml:"admin"`       // HTTP; none
	IMDS       string `yaml:"imds"`        // HTTP, the managed identity endpoints; none
	ArcKeys    string `yaml:"arc_keys"`    // folder for the key files of Azure Arc; none, and then no Arc
	// CAFile is where the certificate of the simulator's own authority is
	// written. With CAKeyFile both are kept, and used again at the next start.
	CAFile    string `yaml:"ca_file"`
	CAKeyFile string `yaml:"ca_key_file"`

	// Log gets one line per refused AUTH and per verdict; nil is silence.
	Log *slog.Logger `yaml:"-"`
}

// RateMode says what happens to messages over the rate.
type RateMode string

const (
	RateOff    RateMode = "off"    // accepted; only the counters show it
	RateDelay  RateMode = "delay"  // the verdict waits until the message is within the rate
	RateReject RateMode = "reject" // 451
)

// The two ways in which an app may be entitled; see App.Model.
const (
	ModelClassic = "classic"
	ModelRBAC    = "rbac"
)

const sendAsApp = "SMTP.SendAsApp"

// App is an app registration with its service principal in Exchange. It prints
// without its secret.
type App struct {
	ClientID        string    `yaml:"client_id"`
	ObjectID        string    `yaml:"object_id"`          // of the enterprise application: the token's oid
	ExchangeID      string    `yaml:"exchange_object_id"` // what New-ServicePrincipal was given; default ObjectID
	NotInExchange   bool      `yaml:"not_in_exchange"`    // New-ServicePrincipal was forgotten
	Secret          string    `yaml:"secret"`
	SecretExpires   time.Time `yaml:"secret_expires"`
	CertificateFile string    `yaml:"certificate_file"` // PEM; all certificates in it are registered
	Federated       Federated `yaml:"federated"`        // a federated credential; none

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

// Mailbox is a mailbox of the tenant.
type Mailbox struct {
	Address          string   `yaml:"address" json:"address"`
	Aliases          []string `yaml:"aliases" json:"aliases,omitempty"`
	SendAs           []string `yaml:"send_as" json:"send_as,omitempty"` // addresses on which this mailbox has Send As
	SMTPAuthDisabled bool     `yaml:"smtp_auth_disabled" json:"smtp_auth_disabled"`
	SMTPAuthEnabled  bool     `yaml:"smtp_auth_enabled" json:"smtp_auth_enabled"` // in spite of the tenant's switch
	Full             bool     `yaml:"full" json:"full"`                           // Sent Items filled it
	NoLogon          bool     `yaml:"no_logon" json:"no_logon"`                   // permissions have not replicated
}

// LoadConfig reads a YAML file; unknown keys are errors. Relative file names in
// it start at its folder. Errors show the place and no line of the file, since
// it holds secrets.
func LoadConfig(path string) (Config, error) {
	var c Config
	b, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	if err := yaml.UnmarshalWithOptions(b, &c, yaml.Strict()); err != nil {
		return c, fmt.Errorf("%s: %s", path, strings.TrimSpace(yaml.FormatError(err, false, false)))
	}
	files := []*string{&c.CAFile, &c.CAKeyFile, &c.ClientCAFile, &c.ArcKeys}
	for i := range c.Apps {
		files = append(files, &c.Apps[i].CertificateFile)
	}
	for _, f := range files {
		if *f != "" && !filepath.IsAbs(*f) {
			*f = filepath.Join(filepath.Dir(path), *f)
		}
	}
	if err := c.complete(); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// or sets *p to its default.
func or[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// complete fills in defaults and refuses what cannot be meant.
func (c *Config) complete() error {
	or(&c.Tenant, "contoso.onmicrosoft.com")
	or(&c.TenantID, "9a1f7d52-3c4e-4b6a-8d20-6f5e4c3b2a10")
	or(&c.Submission, "127.0.0.1:0")
	or(&c.Entra, "127.0.0.1:0")
	or(&c.Messages, 30)
	or(&c.Window, time.Minute)
	or(&c.Recipients, 10_000)
	or(&c.RecipientWindow, 24*time.Hour)
	or(&c.Connections, 3)
	or(&c.EnforceRate, RateOff)
	or(&c.MaxSize, 157286400)
	or(&c.MaxMessageRcpts, 500)
	or(&c.Idle, 5*time.Minute)
	or(&c.SendAsText, "5.2.252")
	or(&c.Log, slog.New(slog.DiscardHandler))
	c.VerdictMax = max(c.VerdictMax, c.VerdictMin)
	// The caller's slices stay as they are.
	c.Apps, c.Mailboxes, c.Connectors = slices.Clone(c.Apps), slices.Clone(c.Mailboxes), slices.Clone(c.Connectors)
	c.Users, c.ManagedIdentities = slices.Clone(c.Users), slices.Clone(c.ManagedIdentities)
	for _, step := range []func() error{c.checkFigures, c.completeApps, c.checkMailboxes, c.completeIdentities, c.completeUsers, c.completeSignIn, c.completeConnectors, c.checkMX} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) checkFigures() error {
	if !slices.Contains([]RateMode{RateOff, RateDelay, RateReject}, c.EnforceRate) {
		return fmt.Errorf("enforce_rate: %q is not off, delay or reject", c.EnforceRate)
	}
	if sendAsTexts[c.SendAsText] == "" {
		return fmt.Errorf("send_as_text: %q is not 5.2.252, 5.2.0 or 5.7.60", c.SendAsText)
	}
	if min(c.Messages, c.Recipients, c.Connections, c.MaxMessageRcpts, int(c.MaxSize)) < 0 {
		return fmt.Errorf("messages, recipients, connections, max_size, max_message_rcpts: a limit is negative")
	}
	if min(c.Window, c.RecipientWindow, c.TokenLife, c.VerdictMin, c.TarPit, c.Idle) < 0 {
		return fmt.Errorf("window, recipient_window, token_life, verdict_min, tar_pit, idle: a time is negative")
	}
	if min(c.DeviceFlow.Life, c.DeviceFlow.Interval, c.SignIn.CodeLife, c.Refresh.Idle, c.Refresh.Frequency) < 0 || c.DeviceFlow.ApproveAfter < 0 {
		return fmt.Errorf("device_flow, sign_in, refresh: a time or number is negative")
	}
	if c.CAKeyFile != "" && c.CAFile == "" {
		return fmt.Errorf("ca_key_file: needs ca_file beside it")
	}
	return nil
}

func (c *Config) completeApps() error {
	seen := map[string]bool{}
	for i := range c.Apps {
		a := &c.Apps[i]
		if a.ClientID == "" || seen[a.ClientID] {
			return fmt.Errorf("apps[%d].client_id: %q is empty or listed twice", i, a.ClientID)
		}
		seen[a.ClientID] = true
		if err := a.complete(); err != nil {
			return fmt.Errorf("apps[%d].%w", i, err)
		}
	}
	return nil
}

func (a *App) complete() error {
	or(&a.ExchangeID, a.ObjectID)
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
		a.Federated.complete()
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

func (c *Config) checkMailboxes() error {
	seen := map[string]bool{}
	for i, m := range c.Mailboxes {
		key := strings.ToLower(m.Address)
		if !strings.Contains(m.Address, "@") || seen[key] {
			return fmt.Errorf("mailboxes[%d].address: %q is no address or listed twice", i, m.Address)
		}
		seen[key] = true
		if len(c.Domains) > 0 && !c.owns(m.Address) {
			return fmt.Errorf("mailboxes[%d].address: %q is in none of the domains", i, m.Address)
		}
		if m.SMTPAuthDisabled && m.SMTPAuthEnabled {
			return fmt.Errorf("mailboxes[%d]: smtp_auth_disabled and smtp_auth_enabled exclude each other", i)
		}
	}
	return nil
}

func (c *Config) completeIdentities() error {
	if c.IMDS == "" && (len(c.ManagedIdentities) > 0 || c.ArcKeys != "") {
		return fmt.Errorf("managed_identities, arc_keys: need imds beside them")
	}
	systems, seen := 0, map[string]bool{}
	for _, a := range c.Apps {
		seen[a.ClientID] = true
	}
	for i := range c.ManagedIdentities {
		mi := &c.ManagedIdentities[i]
		if mi.ClientID == "" || seen[mi.ClientID] {
			return fmt.Errorf("managed_identities[%d].client_id: %q is empty or listed twice", i, mi.ClientID)
		}
		seen[mi.ClientID] = true
		if mi.Secret != "" || mi.CertificateFile != "" || mi.Public || mi.Federated != (Federated{}) {
			return fmt.Errorf("managed_identities[%d]: secret, certificate_file, public, federated: a managed identity has none", i)
		}
		if mi.SystemAssigned {
			systems++
		}
		if systems > 1 {
			return fmt.Errorf("managed_identities[%d].system_assigned: there is another one", i)
		}
		if err := mi.App.complete(); err != nil {
			return fmt.Errorf("managed_identities[%d].%w", i, err)
		}
	}
	return nil
}

func (c *Config) completeUsers() error {
	seen := map[string]bool{}
	for i := range c.Users {
		u := &c.Users[i]
		key := strings.ToLower(u.UPN)
		if !strings.Contains(u.UPN, "@") || seen[key] {
			return fmt.Errorf("users[%d].upn: %q is no sign-in name or listed twice", i, u.UPN)
		}
		seen[key] = true
		or(&u.ObjectID, newGUID())
	}
	return nil
}

func (c *Config) completeSignIn() error {
	or(&c.DeviceFlow.Life, 15*time.Minute)
	or(&c.DeviceFlow.Interval, 5*time.Second)
	or(&c.SignIn.CodeLife, 10*time.Minute)
	or(&c.Refresh.Idle, 90*24*time.Hour)
	for key, upn := range map[string]string{"device_flow.approve_as": c.DeviceFlow.ApproveAs, "sign_in.user": c.SignIn.User} {
		if upn != "" && !slices.ContainsFunc(c.Users, func(u User) bool { return strings.EqualFold(u.UPN, upn) }) {
			return fmt.Errorf("%s: %q is none of the users", key, upn)
		}
	}
	for grant, code := range c.Refuse {
		if err := checkRefusing(grant, code, 0); err != nil {
			return fmt.Errorf("refuse.%s: %w", grant, err)
		}
	}
	return nil
}

// owns tells whether an address is in one of Domains.
func (c *Config) owns(address string) bool {
	at := strings.LastIndexByte(address, '@')
	return at >= 0 && slices.ContainsFunc(c.Domains, func(d string) bool { return strings.EqualFold(d, address[at+1:]) })
}

func (c *Config) completeConnectors() error {
	seen := map[string]bool{}
	for i := range c.Connectors {
		k := &c.Connectors[i]
		key := strings.ToLower(k.Name)
		if key == "" || seen[key] {
			return fmt.Errorf("connectors[%d].name: %q is empty or listed twice", i, k.Name)
		}
		seen[key] = true
		if err := k.complete(); err != nil {
			return fmt.Errorf("connectors[%d].%w", i, err)
		}
		// Exchange takes only names of accepted domains for a connector.
		if k.CertificateName != "" && !c.contains(k.CertificateName) {
			return fmt.Errorf("connectors[%d].certificate_name: %q is in none of the domains", i, k.CertificateName)
		}
	}
	return nil
}

// contains tells whether a host name is one of Domains or below one.
func (c *Config) contains(host string) bool {
	host = "." + strings.ToLower(host)
	return slices.ContainsFunc(c.Domains, func(d string) bool { return strings.HasSuffix(host, "."+strings.ToLower(d)) })
}

func (c *Config) checkMX() error {
	if c.MX == "" && (len(c.Connectors) > 0 || c.ClientCAFile != "" || c.RejectDirectSend || len(c.KnownRecipients) > 0) {
		return fmt.Errorf("connectors, client_ca_file, reject_direct_send, known_recipients: need mx beside them")
	}
	if c.MX != "" && len(c.Domains) == 0 {
		return fmt.Errorf("mx: needs domains beside it")
	}
	for i, a := range c.KnownRecipients {
		if !strings.Contains(a, "@") {
			return fmt.Errorf("known_recipients[%d]: %q is no address", i, a)
		}
		if !c.owns(a) {
			return fmt.Errorf("known_recipients[%d]: %q is in none of the domains", i, a)
		}
	}
	return nil
}
