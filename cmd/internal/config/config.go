// Package config reads sendas.yaml: its words, how they are decoded, what is checked and what is
// refused, each with file, line, excerpt and the sentence that says what to write instead.
//
// A [Site] that [Load] returns is valid: no later code checks it again. It never changes; a new
// file is a new Site. What its parts stand for elsewhere (a policy, limits, sources of tokens) is
// made from it here, and put to work by the commands.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sendas/sendas/internal/record"
	"github.com/sendas/sendas/internal/serve"
	"github.com/sendas/sendas/milter/quota"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/address"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/ledger"
	"github.com/sendas/sendas/token/renew"
)

// maxFile is the size in bytes above which a file is no configuration, but a mistake.
const maxFile = 64 << 20

// A Check says how far Load looks.
type Check int

// The checks.
const (
	SkipFiles   Check = iota // what the file says: for commands that change nothing
	CheckOwn                 // also that nobody else can change it, and who may ask
	CheckMilter              // also what the milter reads, which may not read the token service's secrets
	CheckToken               // also what the token service reads: secrets and certificates
	CheckAll                 // what both read, and what Postfix alone does: the certificates of routes; and what will soon fail
)

// A Site is the whole configuration. The one that Load returns is valid and complete;
// it never changes, and is safe for concurrent use.
type Site struct {
	Tenant      Tenant                `yaml:"tenant"`
	Credentials map[string]Credential `yaml:"credentials"`
	Mailboxes   []Mailbox             `yaml:"mailboxes"`
	Routes      []Route               `yaml:"routes"`
	Clients     []Client              `yaml:"clients"`
	Notices     string                `yaml:"notices"` // identity of what this host says itself, or empty
	Identities  []Identity            `yaml:"identities"`
	Milter      Milter                `yaml:"milter"`
	Token       Token                 `yaml:"token"`
	Record      Record                `yaml:"record"`

	// Warnings are what is no mistake now and will be, or does not do what it seems to. Load fills
	// it with CheckAll.
	Warnings []Problem

	// Awaits is what has to be written before "milter.mode: observe" can go: what is missing, or wrong,
	// for a milter that decides. Load fills it with CheckAll.
	Awaits []Problem

	// Policy is made of Tenant, Mailboxes, Routes, Clients and Notices. Its mailboxes are in the order
	// of Mailboxes.
	Policy *policy.Rules
	// Permissions is the checksum of tenant.permissions_file, "" without one.
	Permissions string
}

// Tenant is the Microsoft 365 organisation.
type Tenant struct {
	ID               string    `yaml:"id"`    // GUID or domain
	Cloud            string    `yaml:"cloud"` // key of clouds
	Domains          []string  `yaml:"domains"`
	AllowOnMicrosoft bool      `yaml:"allow_onmicrosoft"`
	PermissionsFile  string    `yaml:"permissions_file"`    // CSV; absolute, or empty
	External         string    `yaml:"external_recipients"` // auto, a rate, or off
	Licenses         int       `yaml:"licenses"`            // paid email licences, for auto
	Trial            bool      `yaml:"trial"`               // a trial tenant, for auto
	Endpoints        Endpoints `yaml:"endpoints"`
}

// Endpoints is where Microsoft is: what the cloud implies, overridden one by one.
type Endpoints struct {
	Authority      string `yaml:"authority"`       // URL without path and closing slash
	Scope          string `yaml:"scope"`           // of an app's own token, ends in /.default
	DelegatedScope string `yaml:"delegated_scope"` // of a signed-in user's token, ends in /SMTP.Send; for High Volume Email in /.default
	Submission     string `yaml:"submission"`      // host:port
	Graph          string `yaml:"graph"`           // URL without path and closing slash; where certificates are renewed
	ProofAudience  string `yaml:"proof_audience"`  // whom the proof is for by which an app renews its certificate
	CAFile         string `yaml:"ca_file"`         // absolute, or empty
	Proxy          string `yaml:"proxy"`           // URL, or empty: then the environment says
}

// Credential is a way to get an access token. File names are absolute, or stand for a
// credential of systemd's (token.ResolveFile).
type Credential struct {
	Flow             string `yaml:"flow"`
	ClientID         string `yaml:"client_id"`
	ClientSecretFile string `yaml:"client_secret_file"`
	SecretExpires    string `yaml:"secret_expires"` // 2027-05-31, or empty; Entra tells it to nobody who asks for a token
	CertificateFile  string `yaml:"certificate_file"`
	KeyFile          string `yaml:"key_file"`    // empty where CertificateFile holds the key too
	TokenFile        string `yaml:"token_file"`  // of a federated credential
	User             string `yaml:"user"`        // who has to sign in
	ObjectID         string `yaml:"object_id"`   // of a managed identity, as is the next; or of the app registration, for Renew
	ResourceID       string `yaml:"resource_id"` // one of the three ids, or none for the machine's own
	// Renew is how long before its end the certificate is replaced; 0 leaves it to the administrator.
	Renew time.Duration `yaml:"renew"`
}

// The flows of a credential.
const (
	flowClientCredentials = "client_credentials"
	FlowFederated         = "federated"
	flowManagedIdentity   = "managed_identity"
	flowDeviceCode        = "device_code"
	FlowAuthorizationCode = "authorization_code"
)

// Delegated reports whether a user signs in, with "sendas login"; else an app acts on its own.
func (c *Credential) Delegated() bool {
	return c.Flow == flowDeviceCode || c.Flow == FlowAuthorizationCode
}

// Mailbox is a mailbox as whom we authenticate.
type Mailbox struct {
	Address       string   `yaml:"address"` // in the form of policy.Mailbox.Name: an address, or "*@domain"
	Aliases       []string `yaml:"aliases"`
	Credential    string   `yaml:"credential"` // key of Site.Credentials
	SendAs        []string `yaml:"send_as"`
	PlusAddresses bool     `yaml:"plus_addresses"`
	Pool          bool     `yaml:"pool"` // other mailboxes may share Send As addresses with it
	Limits        Limits   `yaml:"limits"`
}

// Senders returns the addresses as which the mailbox may send, its own first. A pattern stands for
// itself.
func (m *Mailbox) Senders() []string {
	return slices.Concat([]string{m.Address}, m.Aliases, m.SendAs)
}

// Pattern reports whether each sender of a domain is a mailbox of its own.
func (m *Mailbox) Pattern() bool {
	_, ok := address.CutPattern(m.Address)
	return ok
}

// Limits is what one mailbox may do.
type Limits struct {
	Messages    limit.Rate `yaml:"messages"`
	Recipients  limit.Rate `yaml:"recipients"`
	Connections int        `yaml:"connections"`
}

// Limits returns the limits as the ledger takes them.
func (l Limits) Limits() limit.Allowance {
	return limit.Allowance{Messages: l.Messages, Recipients: l.Recipients, Connections: l.Connections}
}

// The values of Tenant.External besides a rate.
const (
	externalOff  = "off"
	externalAuto = "auto"
)

// LimitsExternal reports whether the tenant's external recipients are counted at all.
func (t *Tenant) LimitsExternal() bool { return t.External != externalOff }

// ExternalRate returns how many external recipients all mailboxes of the tenant may have together.
// Senders at onmicrosoft.com are counted apart, but Microsoft counts them here as well, so as many
// are kept back.
func (t *Tenant) ExternalRate() (limit.Rate, error) {
	r := limit.TERRL(t.Licenses)
	if t.External != externalAuto {
		var err error
		if r, err = limit.ParseRate(t.External); err != nil {
			return r, err
		}
	}
	if t.AllowOnMicrosoft {
		r.N = max(1, r.N-limit.MOERA().N)
	}
	return r, nil
}

// Route is a way out; see policy.Route. File names are absolute.
type Route struct {
	Name            string   `yaml:"name"`
	Type            string   `yaml:"type"`
	Endpoint        string   `yaml:"endpoint"`
	Transport       string   `yaml:"transport"`
	External        string   `yaml:"external"`
	CertificateFile string   `yaml:"certificate_file"` // what Postfix's transport shows to a connector; checked here
	KeyFile         string   `yaml:"key_file"`         // empty where CertificateFile holds the key too
	Addresses       []string `yaml:"addresses"`        // of this relay as Microsoft sees it; for SPF

	Account    string `yaml:"account"`    // of High Volume Email, as are the next
	Credential string `yaml:"credential"` // key of Site.Credentials
	Scope      string `yaml:"scope"`      // that the credential asks for; ends in /.default
	Limits     Limits `yaml:"limits"`     // of the account
}

func (r *Route) setDefaults() { r.Limits = routeLimits() }

// Client is a client; see policy.Client.
type Client struct {
	Name           string   `yaml:"name"`
	Networks       []string `yaml:"networks"`
	Logins         []string `yaml:"logins"`
	Subjects       []string `yaml:"cert_subjects"`
	Fingerprints   []string `yaml:"cert_fingerprints"`
	Senders        []string `yaml:"senders"`
	From           string   `yaml:"from"`
	DisplayName    string   `yaml:"display_name"`
	ReplyTo        string   `yaml:"reply_to"`
	OnUnauthorized string   `yaml:"on_unauthorized"`
	Route          string   `yaml:"route"`

	Limits  ClientLimits `yaml:"limits"`
	OnLimit string       `yaml:"on_limit"`
}

// ClientLimits is what a client may submit; several rates hold at once.
type ClientLimits struct {
	Messages   []limit.Rate `yaml:"messages"`
	Recipients []limit.Rate `yaml:"recipients"`
}

// setDefaults keeps an application that can try again from losing mail; a device that cannot has
// "hold".
func (c *Client) setDefaults() { c.OnLimit = string(quota.DeferOver) }

// policy returns the client as package policy wants it.
func (c *Client) policy() policy.ClientSettings {
	return policy.ClientSettings{Name: c.Name, Networks: c.Networks, Logins: c.Logins, Subjects: c.Subjects, Fingerprints: c.Fingerprints,
		Senders: c.Senders, From: c.From, DisplayName: c.DisplayName, ReplyTo: c.ReplyTo, OnUnauthorized: c.OnUnauthorized, Route: c.Route}
}

// ClientQuotas returns the limits of all clients that have some.
func (c *Site) ClientQuotas() map[string]quota.ClientLimit {
	m := make(map[string]quota.ClientLimit)
	for _, x := range c.Clients {
		if len(x.Limits.Messages)+len(x.Limits.Recipients) > 0 {
			m[x.Name] = quota.ClientLimit{Rates: quota.Rates(x.Limits), OnLimit: quota.OnLimit(x.OnLimit)}
		}
	}
	return m
}

// Identity is what may be sent as an address, whoever sends as it. The first that matches wins.
type Identity struct {
	Address string       `yaml:"address"` // or "*@domain": every address of the domain has a count of its own
	Limits  ClientLimits `yaml:"limits"`
	OnLimit string       `yaml:"on_limit"`
}

func (i *Identity) setDefaults() { i.OnLimit = string(quota.DeferOver) }

// IdentityQuotas returns the limits of identities.
func (c *Site) IdentityQuotas() []quota.IdentityLimit {
	list := make([]quota.IdentityLimit, len(c.Identities))
	for i, x := range c.Identities {
		list[i] = quota.IdentityLimit{Address: x.Address, Rates: quota.Rates(x.Limits), OnLimit: quota.OnLimit(x.OnLimit)}
	}
	return list
}

// WithoutLists returns what a service needs of the configuration once its policy and its limits are
// made: all but the lists that grow with a site.
func (c *Site) WithoutLists() *Site {
	rest := *c
	rest.Mailboxes, rest.Clients, rest.Identities = nil, nil, nil
	return &rest
}

// Observes reports whether sendas only looks at mail.
func (c *Site) Observes() bool { return policy.Mode(c.Milter.Mode) == policy.Observe }

// Milter is the service that Postfix asks about incoming mail.
type Milter struct {
	Mode string `yaml:"mode"` // policy.Mode

	Listen       serve.Address `yaml:"listen"`        // unix:/path or inet:host:port
	PolicyListen serve.Address `yaml:"policy_listen"` // unix:/path or inet:host:port, or empty for none
	HTTP         string        `yaml:"http"`          // host:port, or empty for none

	Store                     string `yaml:"store"` // see Store
	StorePasswordFile         string `yaml:"store_password_file"`
	StoreSentinelPasswordFile string `yaml:"store_sentinel_password_file"`
	StoreCAFile               string `yaml:"store_ca_file"`
	StoreCertificateFile      string `yaml:"store_certificate_file"`
	StoreKeyFile              string `yaml:"store_key_file"`
	Hosts                     int    `yaml:"hosts"`

	QueueCeiling time.Duration `yaml:"queue_ceiling"` // how long what is taken last may have to wait; 0: no ceiling
	QueueSocket  string        `yaml:"queue_socket"`  // of Postfix's showq(8); absolute
	// QueueInterval is how often the queue is read, a very large one less often.
	QueueInterval time.Duration `yaml:"queue_interval"`

	Received    string `yaml:"received"`     // policy.Received
	ClassesFile string `yaml:"classes_file"` // what Postfix delivers itself; absolute
}

// Token is the service that Postfix asks for credentials.
type Token struct {
	Listen serve.Address `yaml:"listen"` // unix:/path
	HTTP   string        `yaml:"http"`   // host:port, or empty for none
	Peers  []string      `yaml:"peers"`  // users who may ask

	// RecipientsUnseen is how many recipients a delivery counts whose replies nobody saw.
	RecipientsUnseen int `yaml:"recipients_unseen"`

	StateDir   string `yaml:"state_dir"`   // where refresh tokens are kept
	TokenFiles string `yaml:"token_files"` // folder for the files of the sasl-xoauth2 plugin, or empty

	Store                     string `yaml:"store"` // see Store
	StorePasswordFile         string `yaml:"store_password_file"`
	StoreSentinelPasswordFile string `yaml:"store_sentinel_password_file"`
	StoreCAFile               string `yaml:"store_ca_file"`
	StoreCertificateFile      string `yaml:"store_certificate_file"`
	StoreKeyFile              string `yaml:"store_key_file"`
	Hosts                     int    `yaml:"hosts"`
	Host                      string `yaml:"host"`
}

// Default returns what holds where the file says nothing. An endpoint of the tenant comes
// from clouds, and entries of lists begin with their setDefaults.
func Default() *Site {
	return &Site{
		Tenant: Tenant{Cloud: "global", External: externalOff},
		Milter: Milter{
			Mode: string(policy.Enforce), Listen: "unix:/var/spool/postfix/sendas/milter", PolicyListen: "unix:/var/spool/postfix/sendas/policy", HTTP: "127.0.0.1:9725",
			Store: "bolt:/var/lib/sendas/milter.db", Hosts: 1, QueueSocket: "/var/spool/postfix/public/showq", QueueInterval: 10 * time.Second,
			Received: string(policy.PassReceived), ClassesFile: "postfix-classes.json",
		},
		Token: Token{
			Listen: "unix:/var/spool/postfix/sendas/credentials", HTTP: "127.0.0.1:9726", Peers: []string{"postfix"},
			StateDir: "/var/lib/sendas-token", Hosts: 1, RecipientsUnseen: ledger.MaxDelivery,
		},
		Record: Record{Recipients: string(record.FullRecipients), Days: 30, Size: 200 << 20},
	}
}

func (c *Credential) setDefaults() { c.Flow = flowClientCredentials }

// setDefaults leaves the limits to Complete, which knows the host.
func (m *Mailbox) setDefaults() { m.Limits.Connections = unset }

// Clouds is what tenant.cloud implies (Microsoft's endpoint lists; GCC is in global).
var Clouds = map[string]Endpoints{
	"global": {
		Authority: "https://login.microsoftonline.com", Scope: "https://outlook.office365.com/.default", DelegatedScope: "https://outlook.office.com/SMTP.Send",
		Submission: "smtp.office365.com:587", Graph: "https://graph.microsoft.com", ProofAudience: renew.Audience,
	},
	"gcc-high": {
		Authority: "https://login.microsoftonline.us", Scope: "https://outlook.office365.us/.default", DelegatedScope: "https://outlook.office365.us/SMTP.Send",
		Submission: "smtp.office365.us:587", Graph: "https://graph.microsoft.us", ProofAudience: renew.Audience,
	},
	"dod": {
		Authority: "https://login.microsoftonline.us", Scope: "https://outlook.office365.us/.default", DelegatedScope: "https://outlook.office365.us/SMTP.Send",
		Submission: "outlook-dod.office365.us:587", Graph: "https://dod-graph.microsoft.us", ProofAudience: renew.Audience,
	},
	"china": {
		Authority: "https://login.partner.microsoftonline.cn", Scope: "https://partner.outlook.cn/.default", DelegatedScope: "https://partner.outlook.cn/SMTP.Send",
		Submission: "smtp.partner.outlook.cn:587", Graph: "https://microsoftgraph.chinacloudapi.cn", ProofAudience: renew.Audience,
	},
}

// Load reads and checks a configuration file. Relative file names in it start at its
// folder. The error is a *Error with all that is wrong.
func Load(path string, check Check) (*Site, error) {
	data, err := readFile(path, check)
	if err != nil {
		return nil, &Error{File: path, Problems: []Problem{{Text: err.Error()}}}
	}
	return Parse(path, data, check)
}

// Parse is Load for what has been read, or would be in the file.
func Parse(path string, data []byte, check Check) (*Site, error) {
	return parseInPieces(path, data, check, pieceSize)
}

func parseInPieces(path string, data []byte, check Check, size int) (*Site, error) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if p := CheckText(data); p != nil {
		return nil, newError(path, data, []Problem{*p})
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, &Error{File: path, Problems: []Problem{{Text: fmt.Sprintf("its folder is unknown: %v", err)}}}
	}
	c, k, p := checked(data, dir, check, size, "")
	if p != nil {
		return nil, newError(path, data, []Problem{*p})
	}
	if len(k.problems) > 0 {
		return nil, newError(path, data, k.problems)
	}
	if len(k.warnings) > 0 {
		c.Warnings = newError(path, data, k.warnings).Problems
	}
	if c.Observes() && check == CheckAll {
		if _, k, _ := checked(data, dir, check, size, policy.Enforce); len(k.problems) > 0 {
			c.Awaits = newError(path, data, k.problems).Problems
		}
	}
	return c, nil
}

// checked decodes a file, which starts in a folder, and finds what is wrong with it; in another mode
// than it says, if one is given.
func checked(data []byte, dir string, check Check, size int, mode policy.Mode) (*Site, *checker, *Problem) {
	c, d, p := decodeConfig(data, size)
	if p != nil {
		return nil, nil, p
	}
	if mode != "" {
		c.Milter.Mode = string(mode)
	}
	c.Complete(dir)
	k := &checker{c: c, d: d, own: check >= CheckOwn, milter: check == CheckMilter || check == CheckAll, files: check >= CheckToken, all: check == CheckAll, now: time.Now()}
	k.problems = append(d.problems, k.check()...)
	return c, k, nil
}

// readFile returns the bytes of the file. Its errors follow the name of the file.
func readFile(path string, check Check) ([]byte, error) {
	if err := fit(path, check, loadHint); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, unreadable(err, loadHint)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, unreadable(err, loadHint)
	}
	return data, nil
}

// fit reports whether a file can be part of the configuration. Its errors follow the name of the
// file.
func fit(path string, check Check, hint string) error {
	info, err := os.Stat(path) // before it is opened: opening a FIFO would wait for a writer
	switch {
	case err != nil:
		return unreadable(err, hint)
	case !info.Mode().IsRegular():
		return errors.New("is not a regular file; name the file itself")
	case info.Size() > maxFile:
		return errors.New("is larger than 64 MiB; that is no configuration")
	case check >= CheckOwn && info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("can be changed by others (mode %04o), who could redirect mail; type \"chmod go-w %s\"", info.Mode().Perm(), path)
	}
	return nil
}

// loadHint says what to do about a configuration file that is not there.
const loadHint = "name another file with --config"

// unreadable words why a file cannot be read. The text follows the name of the file.
func unreadable(err error, hint string) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("does not exist; " + hint)
	case errors.Is(err, fs.ErrPermission):
		return errors.New("may not be read by this user; the services read it through its group (chgrp sendas, chmod 0640)")
	}
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		err = e.Err
	}
	return fmt.Errorf("cannot be read: %v", err)
}

// CheckText finds what no YAML parser should have to guess about.
func CheckText(data []byte) *Problem {
	n := 0
	for line := range bytes.Lines(data) {
		n++
		line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		text := bytes.TrimLeft(line, " \t")
		switch {
		case !utf8.Valid(line):
			return &Problem{Line: n, Text: "this line is not UTF-8; save the file in UTF-8"}
		case bytes.ContainsFunc(line, isControl):
			return &Problem{Line: n, Text: "this line has a control character; remove it"}
		case len(text) > 0 && bytes.ContainsRune(line[:len(line)-len(text)], '\t'):
			return &Problem{Line: n, Text: "this line begins with a tab; YAML wants spaces"}
		}
	}
	return nil
}

func isControl(r rune) bool { return r < ' ' && r != '\t' || 0x7f <= r && r < 0xa0 }

// Complete fills in what follows from other settings, and makes file names absolute.
func (c *Site) Complete(dir string) {
	e, implied := &c.Tenant.Endpoints, Clouds[c.Tenant.Cloud]
	if e.HighVolume() {
		implied.Scope, implied.DelegatedScope = hveScope, hveScope
	}
	for _, f := range []struct {
		have *string
		want string
	}{
		{&e.Authority, implied.Authority}, {&e.Scope, implied.Scope}, {&e.DelegatedScope, implied.DelegatedScope}, {&e.Submission, implied.Submission}, {&e.Graph, implied.Graph}, {&e.ProofAudience, implied.ProofAudience},
	} {
		if *f.have == "" {
			*f.have = f.want
		}
	}
	e.Authority, e.Graph = strings.TrimSuffix(e.Authority, "/"), strings.TrimSuffix(e.Graph, "/")
	e.CAFile = under(dir, e.CAFile)
	c.Tenant.PermissionsFile = under(dir, c.Tenant.PermissionsFile)
	c.completeRoutes(dir)
	most := e.mailboxLimits()
	for i := range c.Mailboxes {
		c.Mailboxes[i].Limits.complete(most)
	}
	for name, r := range c.Credentials {
		r.ClientSecretFile = under(dir, r.ClientSecretFile)
		r.CertificateFile = under(dir, r.CertificateFile)
		r.KeyFile = under(dir, r.KeyFile)
		r.TokenFile = under(dir, r.TokenFile)
		c.Credentials[name] = r
	}
	c.Token.StateDir, c.Token.TokenFiles = under(dir, c.Token.StateDir), under(dir, c.Token.TokenFiles)
	c.Milter.QueueSocket, c.Milter.ClassesFile = under(dir, c.Milter.QueueSocket), under(dir, c.Milter.ClassesFile)
	completeStore(&c.Milter.Store, dir, "/var/lib/sendas", "milter.db")
	completeStore(&c.Token.Store, dir, c.Token.StateDir, "token.db")
	c.completeRecord(dir)
	m, t := &c.Milter, &c.Token
	for _, p := range []*string{&m.StorePasswordFile, &m.StoreSentinelPasswordFile, &m.StoreCAFile, &m.StoreCertificateFile, &m.StoreKeyFile,
		&t.StorePasswordFile, &t.StoreSentinelPasswordFile, &t.StoreCAFile, &t.StoreCertificateFile, &t.StoreKeyFile} {
		*p = under(dir, *p)
	}
	if c.Milter.PolicyListen == "off" {
		c.Milter.PolicyListen = ""
	}
	for _, p := range []*serve.Address{&c.Milter.Listen, &c.Milter.PolicyListen, &c.Token.Listen} {
		*p = p.Below(dir)
	}
	for _, p := range []*string{&c.Milter.HTTP, &c.Token.HTTP} {
		if *p == "off" {
			*p = ""
		}
	}
}

// ForToken returns the configuration as the token service can use it: while sendas observes, the
// mailboxes that have no credential yet are not there for it.
func (c *Site) ForToken() *Site {
	if !c.Observes() || !slices.ContainsFunc(c.Mailboxes, func(m Mailbox) bool { return m.Credential == "" }) {
		return c
	}
	with := *c
	with.Mailboxes = slices.DeleteFunc(slices.Clone(c.Mailboxes), func(m Mailbox) bool { return m.Credential == "" })
	s := with.settings()
	s.Clients, s.Notices = nil, "" // which may name the others
	var errs []policy.FieldError
	if with.Policy, errs = policy.New(s); len(errs) > 0 {
		with.Mailboxes = nil
		with.Policy, _ = policy.New(policy.Settings{Mode: policy.Observe, Submission: s.Submission})
	}
	return &with
}

func under(dir, file string) string {
	if file == "" || filepath.IsAbs(file) || strings.HasPrefix(file, "credential:") {
		return file
	}
	return filepath.Join(dir, file)
}
