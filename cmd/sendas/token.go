package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net"
	"net/http"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token"
)

func cmdToken(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "token",
		Short: "Run the token service: the right to send now",
		Long: `token keeps access tokens fresh and answers the look-ups of Postfix's smtp(8): each is the
request for permission to send one message as one mailbox, now. It never sees a message.
SIGHUP loads the configuration again.`,
		Example: "  sendas token --config /etc/sendas/sendas.yaml",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runToken(cmd.Context(), o) },
	}
	c.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "log more")
	return c
}

// drainTime is how long deliveries are watched to their end when the service stops.
const drainTime = 60 * time.Second

func runToken(ctx context.Context, o *options) error {
	log := newLog(o.stderr, o.verbose)
	load := func(path string) (*Config, error) { return loadForToken(path, log) }
	cfg, err := load(o.config)
	if err != nil {
		return err
	}
	peers, err := userIDs(cfg.Token.Peers)
	if err != nil {
		return err
	}
	reg, ok, at := newRegistry()
	metrics := token.NewMetrics(reg)
	store, err := openLedger(cfg, log, metrics.Shared)
	if err != nil {
		return err
	}
	defer func() {
		if err := store.Close(); err != nil {
			log.Error("closing the ledger", "error", err)
		}
	}()
	leases := token.NewLeases(store.Ledger, metrics, log)
	desk := &credentialDesk{ctx: ctx, metrics: metrics, log: log, leases: leases, running: make(map[string]*runningCredential),
		files: make(map[string]*token.TokenFiles), store: cfg.Token.store()}
	if err := desk.use(cfg); err != nil {
		return err
	}
	if err := takeOver(ctx, leases, cfg); err != nil {
		return err
	}
	reg.MustRegister(token.NewCollector(leases, desk.status))
	ln, err := listen("credentials", cfg.Token.Listen)
	if err != nil {
		return err
	}
	defer ln.Close()
	r := &reloader{path: o.config, load: load, ok: ok, at: at, log: log, use: desk.use}
	r.loaded()
	if err := serveHTTP(ctx, cfg.Token.HTTP, reg, desk.ready, tokenPages(desk, cfg.Token.HTTP, r), log); err != nil {
		return err
	}
	r.watch(ctx)
	notify(ctx, log)
	log.Info("token service ready", "version", version, "listen", cfg.Token.Listen, "mailboxes", len(cfg.Mailboxes), "store", cfg.Token.store().name())
	if !kept("credentials") {
		log.Warn("this process has made its socket itself: a message that is being sent when it is killed can be sent twice",
			"hint", "start it by systemd, with sendas-token.socket")
	}
	srv := &token.SocketmapServer{Maps: leases.Maps(), Peers: peers, Log: log, Metrics: metrics}
	if err := serveLookups(ctx, srv, ln, leases, log); err != nil {
		return failure(exitSoftware, "", "serving look-ups: %w", err)
	}
	desk.wait()
	log.Info("token service stopped")
	return nil
}

// takeOver goes on with the deliveries that were under way when the former process ended.
func takeOver(ctx context.Context, leases *token.Leases, c *Config) error {
	hint := "the folder " + c.Token.StateDir + " has to belong to the user of the token service (install -d -m 0700 -o sendas-token " + c.Token.StateDir + ")"
	journal, err := token.OpenJournal(filepath.Join(c.Token.StateDir, "sessions"))
	if err == nil {
		err = leases.Adopt(ctx, journal)
	}
	if err != nil {
		return failure(exitConfig, hint, "%w", err)
	}
	return nil
}

// serveLookups serves until ctx ends. The server outlives the signal: what is being delivered is watched to its end, since without
// systemd's socket smtp(8) could not ask anybody about the verdict until the next process is there.
func serveLookups(ctx context.Context, srv *token.SocketmapServer, ln net.Listener, leases *token.Leases, log *slog.Logger) error {
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	go leases.Run(serving)
	context.AfterFunc(ctx, func() {
		defer stop()
		end, cancel := context.WithTimeout(context.Background(), drainTime)
		defer cancel()
		if err := leases.Drain(end); err != nil {
			log.Warn("token service stopped early", "error", err)
		}
	})
	return srv.Serve(serving, ln)
}

// loadForToken loads the configuration for the service. What is wrong with the files of a credential is
// logged, but keeps no other credential from working: a certificate that ended in the night must not stop
// everything at the next restart. The refresher looks at the files again for every request, and refuses
// what "sendas check" refuses.
func loadForToken(path string, log *slog.Logger) (*Config, error) {
	c, err := LoadConfig(path, CheckFiles)
	var wrong *ConfigError
	if !errors.As(err, &wrong) {
		return c, err
	}
	for _, p := range wrong.Problems {
		if !strings.HasPrefix(p.Path, "credentials.") || !strings.HasSuffix(p.Path, "_file") {
			return nil, err
		}
	}
	c, skipped := LoadConfig(path, SkipFiles)
	if skipped != nil {
		return nil, err
	}
	for _, p := range wrong.Problems {
		log.Error("a credential cannot be used", "problem", p.Path+": "+p.Text, "hint", `mend it; "sendas check" says whether it is good`)
	}
	return c, nil
}

// userIDs looks the users up who may ask for credentials.
func userIDs(names []string) ([]uint32, error) {
	var list []uint32
	for _, n := range names {
		u, err := user.Lookup(n)
		if err != nil {
			return nil, failure(exitConfig, "write the user that Postfix runs as (postconf mail_owner) into token.peers", "token.peers: %w", err)
		}
		id, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, failure(exitConfig, "", "token.peers: user %q has the id %q", n, u.Uid)
		}
		list = append(list, uint32(id))
	}
	return list, nil
}

// credentialDesk runs one refresher for each credential in use, and makes the directory from
// the configuration.
type credentialDesk struct {
	ctx     context.Context
	metrics *token.Metrics
	log     *slog.Logger
	leases  *token.Leases

	mu      sync.Mutex                   // guards what follows but wg
	files   map[string]*token.TokenFiles // by folder: all that token_files: has named since the start
	running map[string]*runningCredential
	config  *Config // the one in force
	wg      sync.WaitGroup

	store StoreConfig // the one that was opened at the start
}

type runningCredential struct {
	refresher *token.Refresher
	source    string // sourceKey
	stop      context.CancelFunc
}

// sourceKey is all that makes two credentials the same; a refresher survives a reload
// that does not change it.
func sourceKey(c *Config, name string) string {
	return fmt.Sprintf("%s %+v %s %+v %s", name, c.Credentials[name], c.Tenant.ID, c.Tenant.Endpoints, c.Token.StateDir)
}

// use puts a configuration into force: unchanged credentials keep their token, new ones
// start, the others end.
func (d *credentialDesk) use(c *Config) error {
	client, err := newClient(c)
	if err != nil {
		return err
	}
	if c.Token.store() != d.store {
		d.log.Warn("another store takes effect when the service is restarted", "store", c.Token.store().name())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	next := make(map[string]*runningCredential)
	var files []token.TokenFile
	dir := newDirectory(c)
	for _, m := range c.Mailboxes {
		r := next[m.Credential]
		if r == nil {
			if r, err = d.start(c, m.Credential, client); err != nil {
				d.stopExcept(d.running, next)
				return failure(exitConfig, "", "%w", err)
			}
			next[m.Credential] = r
		}
		d.metrics.Mailbox(m.Address)
		dir.byName[m.Address] = &token.MailboxLease{Address: m.Address, Label: m.Address, Limits: c.mailboxLimits(&m), Tokens: r.refresher, MinLife: minLife(c)}
		file := token.TokenFile{Mailbox: m.Address, User: m.Address, Tokens: r.refresher}
		if strings.HasPrefix(m.Address, "*@") {
			file.User = "" // the password map says who
		}
		files = append(files, file)
	}
	d.stopExcept(next, d.running)
	d.running, d.config = next, c
	d.leases.Use(dir)
	d.keepFiles(c.Token.TokenFiles, files)
	return nil
}

// minLife is the life that a token must have left for the submission host: High Volume Email refuses others.
func minLife(c *Config) time.Duration {
	if strings.HasPrefix(c.Tenant.Endpoints.Submission, "smtp-hve.") {
		return token.MinLife
	}
	return 0
}

// keepFiles keeps the token files in dir from now on, and takes those away that it kept elsewhere. One folder has one
// keeper for good: two would take each other's files away. d.mu is held.
func (d *credentialDesk) keepFiles(dir string, list []token.TokenFile) {
	if dir != "" && d.files[dir] == nil {
		f := &token.TokenFiles{Dir: dir, Log: d.log}
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

// stopExcept ends the credentials of list that are not in keep.
func (d *credentialDesk) stopExcept(keep, list map[string]*runningCredential) {
	for name, r := range list {
		if keep[name] != r {
			r.stop()
		}
	}
}

// directory is the token service's view of the policy.
type directory struct {
	policy *policy.Policy
	byName map[string]*token.MailboxLease // by policy.Mailbox.Name
	tenant *TenantConfig

	queues        map[string]mailboxQueues // by the same
	mailboxQueues int                      // of all of them together
	places        map[string]int           // by key of a sender: its place among those of its mailbox
	pools         map[string]int           // by poolKey: those after the queues of all mailboxes
}

// newDirectory numbers the queues; byName is left empty.
func newDirectory(c *Config) *directory {
	d := &directory{policy: c.Policy, byName: make(map[string]*token.MailboxLease, len(c.Mailboxes)),
		queues: make(map[string]mailboxQueues, len(c.Mailboxes)), places: make(map[string]int), pools: make(map[string]int), tenant: &c.Tenant}
	for _, p := range c.Policy.Pools() {
		key := poolKey(p.Mailboxes)
		if _, known := d.pools[key]; !known { // a pool may have several addresses
			d.pools[key] = len(d.pools)
		}
	}
	for _, m := range c.Mailboxes {
		n := 0
		for _, s := range slices.Concat([]string{m.Address}, m.Aliases, m.SendAs) {
			a, err := policy.ParseAddress(s)
			if mailboxes, _ := c.Policy.MailboxesFor(a); err != nil || len(mailboxes) != 1 { // those of a pool wait elsewhere
				continue
			}
			d.places[a.Key()] = n
			n++
		}
		q := mailboxQueues{d.mailboxQueues, max(1, min(n, queuesPerMailbox))}
		d.queues[m.Address], d.mailboxQueues = q, d.mailboxQueues+q.n
	}
	return d
}

// mailboxQueues are the numbers of the queues that the senders of a mailbox share.
type mailboxQueues struct{ first, n int }

// of returns the number of a sender's queue.
func (q mailboxQueues) of(d *directory, sender policy.Address) int {
	place, listed := d.places[sender.Key()]
	if !listed { // an address with a tag, or from tenant.permissions_file
		place = hash(sender.Key())
	}
	return q.first + place%q.n
}

func hash(s string) int {
	h := fnv.New32a()
	h.Write([]byte(s))
	return int(h.Sum32())
}

func (d *directory) Mailboxes(sender string) []*token.MailboxLease {
	a, err := policy.ParseAddress(sender)
	if err != nil {
		return nil
	}
	mailboxes, user := d.policy.MailboxesFor(a)
	list := make([]*token.MailboxLease, len(mailboxes))
	onMicrosoft := a.OnMicrosoft() && d.tenant.limitsExternal()
	for i, m := range mailboxes {
		list[i] = d.byName[m.Name]
		if !m.Pattern() && !onMicrosoft {
			continue
		}
		own := *list[i]
		if m.Pattern() {
			own.Address = user.String()
		}
		if onMicrosoft {
			own.Limits.Group, own.Limits.GroupRecipients = token.GroupOnMicrosoft, limit.MOERA()
		}
		list[i] = &own
	}
	return list
}

func (d *directory) External(rcpt string) bool { return d.policy.External(rcpt) }

// poolKey names a pool by its members.
func poolKey(mailboxes []*policy.Mailbox) string {
	names := make([]string, len(mailboxes))
	for i, m := range mailboxes {
		names[i] = m.Name
	}
	return strings.Join(names, " ")
}

// RouteFrom spreads mail over queues in Postfix, each of which is served in turn: no mailbox holds up another, no pool those who may use
// one of its mailboxes alone, and a sender with a backlog the others of its mailbox no more than a queue of its own does.
func (d *directory) RouteFrom(sender string) string {
	r := d.policy.RouteFrom(sender)
	if r == nil || r.Type != policy.Submission {
		return destination(r)
	}
	a, _ := policy.ParseAddress(sender) // the policy could, too
	mailboxes, user := d.policy.MailboxesFor(a)
	i := d.queues[mailboxes[0].Name].of(d, a)
	switch {
	case len(mailboxes) > 1:
		i = d.mailboxQueues + d.pools[poolKey(mailboxes)]
	case mailboxes[0].Pattern():
		i = d.mailboxQueues + len(d.pools) + hash(user.Key())%patternQueues
	}
	return r.Transport + ":" + queueHop(r.NextHop, i)
}

func (d *directory) RouteTo(rcpt string) string { return destination(d.policy.RouteTo(rcpt)) }

func destination(r *policy.Route) string {
	if r == nil {
		return ""
	}
	return r.Destination()
}

const (
	// queuesPerHop is how many ways to write one next-hop are used.
	queuesPerHop = 100
	// queuesPerMailbox bounds the look-ups that wait for a lease of one mailbox, each with a connection to Microsoft open: three of each
	// queue, so that with 30 messages a minute none waits much longer than 24 s.
	queuesPerMailbox = 4
	// patternQueues is how many queues the senders of a pattern share.
	patternQueues = 1000
)

// queueHop writes a next-hop for the i-th queue. Postfix's queue manager keeps queue, concurrency and back-off by transport
// and next-hop *as written*, so that one mailbox's backlog would hold up the mail of all others to the same host.
// Leading zeros make another name of the same port, and where these do not suffice, a list of two does (transport(5), since
// Postfix 3.5), whose second entry is the same host once more. So no mailbox needs an entry in master.cf.
func queueHop(nextHop string, i int) string {
	colon := strings.LastIndexByte(nextHop, ':')
	hop := func(zeros int) string {
		return nextHop[:colon+1] + strings.Repeat("0", zeros) + nextHop[colon+1:]
	}
	if i < queuesPerHop {
		return hop(i)
	}
	return hop(i%queuesPerHop) + ", " + hop(i/queuesPerHop-1)
}

// ready says which credential has no live token.
func (d *credentialDesk) ready() error {
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

// wait returns when all refreshers have ended.
func (d *credentialDesk) wait() { d.wg.Wait() }

// start returns the running credential of that name, with its refresher. d.mu is held.
func (d *credentialDesk) start(c *Config, name string, client *http.Client) (*runningCredential, error) {
	key := sourceKey(c, name)
	if r := d.running[name]; r != nil && r.source == key {
		r.refresher.Wake() // an administrator who reloads has perhaps just mended the secret
		return r, nil
	}
	vault := newVault(c)
	src, err := newSource(c, name, client, vault)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(d.ctx)
	r := &runningCredential{source: key, stop: cancel}
	r.refresher = token.NewRefresher(name, src, token.RefresherOptions{Log: d.log, Observe: d.metrics.Observe(name)})
	if user, ok := src.(*token.Delegated); ok {
		user.Log = d.log
		d.wg.Go(func() { vault.Watch(ctx, name, r.refresher.Wake) }) // "sendas login" need not tell us
	}
	d.wg.Go(func() { r.refresher.Run(ctx) })
	return r, nil
}
