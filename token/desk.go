package token

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/address"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/lease"
	"github.com/sendas/sendas/token/renew"
)

// A Setup is one configuration, as the service works by it. It does not change.
type Setup struct {
	Credentials []Credential // all that the configuration has, by name
	Mailboxes   []Mailbox    // in the order of the configuration
	Accounts    []Mailbox    // of High Volume Email: each has a route, and so a queue, of its own
	Policy      *policy.Rules
	Groups      []lease.GroupInput // what mailboxes may send together
	Vault       *entra.Vault       // of the users that have signed in
	TokenFiles  string             // the folder of token files; "" keeps none
	// Permissions names what Exchange Online permits as far as the configuration knows: another name
	// is reason to try again what was denied. "" where it says nothing.
	Permissions string
}

// A Credential is a way to get access tokens.
type Credential struct {
	Name string
	Flow string // as in the configuration
	// Key is all that makes two credentials the same: a refresher survives a new configuration
	// that does not change it.
	Key    string
	Source func() (entra.Source, error) // is called when a mailbox begins to use it
	Proof  Proof
	SignIn bool // a user signs in
}

// renews reports whether the service replaces the certificate by itself.
func (c *Credential) renews() bool { return c.Proof.Keeper != nil && c.Proof.Keeper.Before > 0 }

// A Proof shows Entra who we are. The zero value holds nothing of ours.
type Proof struct {
	Kind      string        // one of ProofCertificate, ProofSecret, ProofFederated
	Keeper    *renew.Keeper // of a certificate
	TokenFile string        // of another issuer's token
	Expires   time.Time     // of a secret; zero when it is not known
}

// The kinds of a [Proof]; they are part of the JSON of [Status].
const (
	ProofCertificate = "certificate"
	ProofSecret      = "secret"
	ProofFederated   = "federated_token"
)

// ends returns when the proof ends or has ended, zero when that is not known. What else is wrong
// with it, the last attempt says.
func (p *Proof) ends() (at time.Time) {
	switch p.Kind {
	case ProofCertificate:
		at, _ = p.Keeper.Check()
	case ProofFederated:
		at, _ = entra.CheckFederatedTokenFile(p.TokenFile)
	default:
		at = p.Expires
	}
	return at
}

// A Mailbox is one mailbox of the configuration, or a pattern that stands for many.
type Mailbox struct {
	Address    string   // "scan@contoso.com", or "*@contoso.com"
	Senders    []string // as whom it may send: its own address first
	Credential string   // the name of one
	Limits     limit.Allowance
	MinLife    time.Duration // see [Mailbox]
	Route      string        // of an account: its route; else ""
}

// signIn returns all as whom the service signs in.
func (s *Setup) signIn() []Mailbox { return slices.Concat(s.Mailboxes, s.Accounts) }

// pattern reports whether each sender of a domain is a mailbox of its own.
func (m *Mailbox) pattern() bool {
	_, ok := address.CutPattern(m.Address)
	return ok
}

// A Desk runs one refresher for each credential in use, and gives the [lease.Lessor] the directory
// of the mailboxes. All methods are safe for concurrent use.
type Desk struct {
	ctx     context.Context
	leases  *lease.Lessor
	metrics *lease.Metrics
	log     *slog.Logger

	mu      sync.Mutex          // guards what follows
	files   map[string]*Files   // by folder: all that were kept since the start
	running map[string]*running // by credential
	setup   *Setup              // the one in force

	wg sync.WaitGroup
}

// running is a credential at work.
type running struct {
	refresher *entra.Refresher
	keeper    *renew.Keeper // of a certificate that is renewed; else nil
	key       string        // Credential.Key
	stop      context.CancelFunc
}

// NewDesk makes a desk whose refreshers run until ctx ends. Call Use before the first look-up.
func NewDesk(ctx context.Context, l *lease.Lessor, m *lease.Metrics, log *slog.Logger) *Desk {
	return &Desk{ctx: ctx, leases: l, metrics: m, log: log, files: make(map[string]*Files), running: make(map[string]*running)}
}

// Use puts a configuration into force: unchanged credentials keep their token, new ones start,
// the others end. After an error the former one stays in force.
func (d *Desk) Use(s *Setup) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	next, err := d.startAllLocked(s)
	if err != nil {
		return err
	}
	var files []File
	for _, m := range s.signIn() {
		file := File{Mailbox: m.Address, User: m.Address, Tokens: next[m.Credential].refresher}
		if m.pattern() {
			file.User = "" // the password map says who
		}
		files = append(files, file)
	}
	stopExcept(next, d.running)
	again := d.setup != nil && d.setup.Permissions != s.Permissions
	d.running, d.setup = next, s
	d.leases.Use(NewDirectory(s, func(credential string) lease.Tokens { return next[credential].refresher }))
	if again {
		d.leases.TryAgain()
	}
	d.keepFilesLocked(s.TokenFiles, files)
	return nil
}

// startAllLocked returns the credentials that mailboxes use, at work.
func (d *Desk) startAllLocked(s *Setup) (map[string]*running, error) {
	next := make(map[string]*running)
	for _, m := range s.signIn() {
		name := m.Credential
		if next[name] != nil {
			continue
		}
		at := slices.IndexFunc(s.Credentials, func(c Credential) bool { return c.Name == name })
		if at < 0 {
			return nil, fmt.Errorf("mailbox %s names the credential %q, which is not there", m.Address, name)
		}
		r, err := d.startLocked(&s.Credentials[at], s.Vault)
		if err != nil {
			stopExcept(d.running, next)
			return nil, err
		}
		next[name] = r
	}
	return next, nil
}

// startLocked returns a credential at work: the one that is there already, if it is the same.
func (d *Desk) startLocked(c *Credential, vault *entra.Vault) (*running, error) {
	if r := d.running[c.Name]; r != nil && r.key == c.Key {
		r.refresher.Wake() // an administrator who reloads has perhaps just mended the secret
		return r, nil
	}
	src, err := c.Source()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(d.ctx)
	r := &running{key: c.Key, stop: cancel}
	r.refresher = entra.NewRefresher(c.Name, src, entra.RefresherOptions{Log: d.log, Observe: d.metrics.Observe(c.Name)})
	if user, ok := src.(*entra.Delegated); ok {
		user.Log = d.log
		d.wg.Go(func() { vault.Watch(ctx, c.Name, r.refresher.Wake) }) // "sendas login" need not tell us
	}
	if c.renews() {
		r.keeper = c.Proof.Keeper
		r.keeper.Log = d.log
		d.wg.Go(func() { r.keeper.Run(ctx) })
	}
	d.wg.Go(func() { r.refresher.Run(ctx) })
	return r, nil
}

// stopExcept ends the credentials of list that are not in keep.
func stopExcept(keep, list map[string]*running) {
	for name, r := range list {
		if keep[name] != r {
			r.stop()
		}
	}
}

// keepFilesLocked keeps the token files in dir from now on, and takes those away that it kept
// elsewhere. One folder has one keeper for good: two would take each other's files away.
func (d *Desk) keepFilesLocked(dir string, list []File) {
	if dir != "" && d.files[dir] == nil {
		f := &Files{Dir: dir, Log: d.log}
		d.files[dir] = f
		d.wg.Go(func() { f.Run(d.ctx) })
	}
	for at, f := range d.files {
		if at == dir {
			f.Use(list)
		} else {
			f.Use(nil)
		}
	}
}

// Ready says which credential has no live token.
func (d *Desk) Ready() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, r := range d.running {
		s := r.refresher.State()
		if s.Have {
			continue
		}
		if s.LastErr != nil {
			return fmt.Errorf("credential %q has no token: %w", name, s.LastErr)
		}
		return fmt.Errorf("credential %q has no token yet", name)
	}
	return nil
}

// Wait returns when all refreshers have ended.
func (d *Desk) Wait() { d.wg.Wait() }

// Status describes the service at this moment. version is the program's, started when it began.
func (d *Desk) Status(ctx context.Context, version string, started time.Time) *lease.Status {
	d.mu.Lock()
	s, running := d.setup, maps.Clone(d.running)
	d.mu.Unlock()
	in := lease.StatusInput{Version: version, Started: started, Groups: s.Groups}
	for i := range s.Credentials {
		c := &s.Credentials[i]
		x := lease.CredentialInput{Name: c.Name, Flow: c.Flow, Proof: c.Proof.Kind, ProofEnds: c.Proof.ends()}
		if r := running[c.Name]; r != nil {
			state := r.refresher.State()
			x.State = &state
			x.Renewal = renewal(r.keeper)
		}
		if c.SignIn {
			x.SignIn = signedIn(s.Vault, c.Name)
		}
		in.Credentials = append(in.Credentials, x)
	}
	for _, m := range s.signIn() {
		in.Mailboxes = append(in.Mailboxes, lease.MailboxInput{Label: m.Address, Pattern: m.pattern(), Credential: m.Credential, Limits: m.Limits, Route: m.Route})
	}
	for _, p := range s.Policy.Pools() {
		x := lease.PoolStatus{Address: p.Address.String()}
		for _, m := range p.Mailboxes {
			x.Members = append(x.Members, m.Name)
		}
		in.Pools = append(in.Pools, x)
	}
	return d.leases.Status(ctx, in)
}

// renewal describes how a certificate is renewed; nil where it is not.
func renewal(k *renew.Keeper) *lease.RenewalStatus {
	if k == nil {
		return nil
	}
	s := k.State()
	x := &lease.RenewalStatus{Made: s.Made, Pending: s.Pending, Former: s.Former}
	if !s.Due.IsZero() {
		x.Due, x.Ends = &s.Due, &s.Ends
	}
	if s.Err != nil {
		x.Error, x.Hint = s.Err.Error(), renew.Hint(s.Err)
		x.Failing = &s.Failing
	}
	return x
}

// Renew has the service replace the certificate of a credential now, and describes how that goes.
// The map is for the administrator; the key is the name, after "now " to begin with it.
func (d *Desk) Renew(_ context.Context, _ lease.Caller, key string) lease.Result {
	name, now := strings.CutPrefix(key, "now ")
	d.mu.Lock()
	r := d.running[name]
	d.mu.Unlock()
	if r == nil || r.keeper == nil {
		return lease.Result{Status: lease.NotFound}
	}
	if now {
		r.keeper.Renew()
	}
	text, err := json.Marshal(renewal(r.keeper))
	if err != nil {
		return lease.Result{Status: lease.Temp, Value: err.Error()}
	}
	return lease.Result{Status: lease.OK, Value: string(text)}
}

// signedIn looks up who has signed in.
func signedIn(v *entra.Vault, credential string) *lease.SignedIn {
	g, err := v.Load(credential)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &lease.SignedIn{}
	case err != nil:
		return &lease.SignedIn{Err: err}
	}
	return &lease.SignedIn{File: v.Path(credential), User: g.User, Since: g.SignedIn, Renewed: g.Renewed(), Used: g.Used, Kept: g.Kept()}
}
