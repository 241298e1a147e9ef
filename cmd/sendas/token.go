package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/cmd/internal/status"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/internal/record"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/lease"
	"github.com/sendas/sendas/token/renew"
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

// gcPercent is GOGC of the token service where the environment has none. Most of its garbage is that
// of a scrape, and few bytes stay: so it collects twice as often, rather than keep that in memory.
const gcPercent = 50

func runToken(ctx context.Context, o *options) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	log := service.NewLog(o.stderr, o.verbose)
	load := func(path string) (*config.Site, error) { return loadForToken(path, log) }
	cfg, err := load(o.config)
	if err != nil {
		return err
	}
	reg, ok, at := service.NewRegistry(version)
	metrics := lease.NewMetrics(reg)
	store, err := openLedger(cfg, log, metrics.Shared)
	if err != nil {
		return err
	}
	defer func() {
		if err := store.Close(); err != nil {
			log.Error("closing the ledger", "error", err)
		}
	}()
	leases := lease.NewLessor(store.Store, metrics, log)
	kept := record.NewKeeper(record.TokenHalf, cfg.Record.TokenFile, cfg.RecordSettings(), log, reg)
	go kept.Run()
	defer kept.Close() // after the last delivery has ended
	leases.Record(kept)
	desk := token.NewDesk(ctx, leases, metrics, log)
	srv := &lease.SocketmapServer{Maps: leases.Maps(), Admin: adminMaps(leases, desk), Log: log, Metrics: metrics}
	var inForce atomic.Pointer[config.Site]
	use := func(c *config.Site) error {
		peers, err := service.UserIDs(c.Token.Peers)
		if err != nil {
			return err
		}
		if err := useSetup(desk, c); err != nil {
			return err
		}
		srv.Allow(peers)
		kept.Use(c.RecordSettings())
		inForce.Store(c)
		return nil
	}
	if err := use(cfg); err != nil {
		return err
	}
	if err := takeOver(ctx, leases, cfg); err != nil {
		return err
	}
	describe := func(ctx context.Context) *lease.Status {
		s := desk.Status(ctx, version, started)
		s.Record = kept.Status()
		return s
	}
	reg.MustRegister(lease.NewCollector(leases, describe))
	ln, err := service.Listen("credentials", cfg.Token.Listen)
	if err != nil {
		return err
	}
	defer ln.Close()
	atStart := cfg.WithoutLists()
	r := &service.Reloader{Path: o.config, Load: load, Ok: ok, At: at, Log: log, Use: use, Unit: "sendas-token",
		Restart: func(c *config.Site) []string { return c.TokenRestart(atStart) }}
	r.Loaded()
	pages := status.TokenPages(&status.Site{Addr: cfg.Token.HTTP, Version: version, State: r.Config, Other: func() string { return inForce.Load().Milter.HTTP },
		Tenant: func() string { return inForce.Load().Tenant.ID }, Client: service.NewLocalClient(), Search: func() bool { return inForce.Load().Record.Page }}, describe)
	maps.Copy(pages, status.RecordPages(&status.RecordSource{Half: record.TokenHalf, File: cfg.Record.TokenFile, On: func() bool { return inForce.Load().Record.Page }}))
	if err := service.ServeHTTP(ctx, cfg.Token.HTTP, reg, desk.Ready, pages, log); err != nil {
		return err
	}
	r.Watch(ctx)
	service.Notify(ctx, log)
	log.Info("token service ready", "version", version, "listen", cfg.Token.Listen.String(), "mailboxes", len(cfg.Mailboxes), "store", cfg.Token.StoreOf().Name())
	if !service.Kept("credentials") {
		log.Warn("this process has made its socket itself: a message that is being sent when it is killed can be sent twice",
			"hint", "start it by systemd, with sendas-token.socket")
	}
	if err := serveLookups(ctx, srv, ln, leases, log); err != nil {
		return exit.Errorf(exit.Software, "", "serving look-ups: %w", err)
	}
	desk.Wait()
	log.Info("token service stopped")
	return nil
}

// adminMaps are the maps for the commands that ask the service.
func adminMaps(leases *lease.Lessor, desk *token.Desk) map[string]lease.Map {
	maps := leases.AdminMaps()
	maps["renew"] = desk.Renew
	return maps
}

// takeOver goes on with the deliveries that were under way when the former process ended.
func takeOver(ctx context.Context, leases *lease.Lessor, c *config.Site) error {
	hint := "the folder " + c.Token.StateDir + " has to belong to the user of the token service (install -d -m 0700 -o sendas-token " + c.Token.StateDir + ")"
	journal, err := lease.OpenJournal(filepath.Join(c.Token.StateDir, "sessions"))
	if err == nil {
		err = leases.Adopt(ctx, journal)
	}
	if err != nil {
		return exit.Errorf(exit.Config, hint, "%w", err)
	}
	return nil
}

// serveLookups serves until ctx ends. The server outlives the signal: what is being delivered is
// watched to its end, since without systemd's socket smtp(8) could not ask anybody about the
// verdict until the next process is there.
func serveLookups(ctx context.Context, srv *lease.SocketmapServer, ln net.Listener, leases *lease.Lessor, log *slog.Logger) error {
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

// loadForToken loads the configuration for the service. What is wrong with the files of a
// credential is logged, but keeps no other credential from working: a certificate that ended in the
// night must not stop everything at the next restart. The refresher looks at the files again for
// every request, and refuses what "sendas check" refuses.
func loadForToken(path string, log *slog.Logger) (*config.Site, error) {
	c, err := config.Load(path, config.CheckToken)
	var wrong *config.Error
	if err == nil {
		return c.ForToken(), nil
	}
	if !errors.As(err, &wrong) {
		return nil, err
	}
	for _, p := range wrong.Problems {
		if p.CredentialFile() == "" {
			return nil, err
		}
	}
	c, skipped := config.Load(path, config.SkipFiles)
	if skipped != nil {
		return nil, err
	}
	for _, p := range wrong.Problems {
		log.Error("a credential cannot be used", "problem", p.Path+": "+p.Text, "hint", `mend it; "sendas check" says whether it is good`)
	}
	return c.ForToken(), nil
}

// started is when the process began, for status.
var started = time.Now()

// useSetup puts a configuration into force.
func useSetup(d *token.Desk, c *config.Site) error {
	setup, err := newSetup(c)
	if err != nil {
		return err
	}
	if err := d.Use(setup); err != nil {
		return exit.Errorf(exit.Config, "", "%w", err)
	}
	return nil
}

// newSetup is what the token service needs of a configuration.
func newSetup(c *config.Site) (*token.Setup, error) {
	client, err := c.Client()
	if err != nil {
		return nil, err
	}
	s := &token.Setup{Policy: c.Policy, Permissions: c.Permissions, Groups: groupsOf(c), Vault: c.Vault(), TokenFiles: c.Token.TokenFiles}
	for _, name := range slices.Sorted(maps.Keys(c.Credentials)) {
		cc := c.Credentials[name]
		scope, _ := c.Scopes(name)
		s.Credentials = append(s.Credentials, token.Credential{
			Name: name, Flow: cc.Flow, Proof: proofOf(&cc, c.Keeper(name, client)), SignIn: cc.Delegated(),
			Key:    fmt.Sprintf("%s %+v %s %+v %s %s", name, cc, c.Tenant.ID, c.Tenant.Endpoints, c.Token.StateDir, scope),
			Source: func() (entra.Source, error) { return c.Source(name, client, s.Vault) },
		})
	}
	for i := range c.Mailboxes {
		m := &c.Mailboxes[i]
		s.Mailboxes = append(s.Mailboxes, token.Mailbox{
			Address: m.Address, Senders: m.Senders(), Credential: m.Credential, Limits: mailboxLimits(c, m), MinLife: minLife(c, m),
		})
	}
	for i := range c.Routes {
		if r := &c.Routes[i]; r.HighVolume() {
			// Its recipients are inside of the tenant, and Microsoft counts none of them for its limits.
			s.Accounts = append(s.Accounts, token.Mailbox{
				Address: r.Account, Senders: []string{r.Account}, Credential: r.Credential, Limits: r.Limits.Limits(), MinLife: entra.MinLife, Route: r.Name,
			})
		}
	}
	return s, nil
}

// minLife is the life that a token must have left for the submission host: High Volume Email
// refuses others.
func minLife(c *config.Site, m *config.Mailbox) time.Duration {
	if c.IsHighVolume(m.Credential) {
		return entra.MinLife
	}
	return 0
}

// proofOf names what proves to Entra who we are.
func proofOf(c *config.Credential, keeper *renew.Keeper) token.Proof {
	switch {
	case c.CertificateFile != "":
		return token.Proof{Kind: token.ProofCertificate, Keeper: keeper}
	case c.ClientSecretFile != "":
		ends, _ := time.Parse(time.DateOnly, c.SecretExpires) // checked with the configuration; empty is not known
		return token.Proof{Kind: token.ProofSecret, Expires: ends}
	case c.Flow == config.FlowFederated:
		return token.Proof{Kind: token.ProofFederated, TokenFile: cmp.Or(c.TokenFile, entra.FederatedFromEnvironment(os.Getenv).TokenFile)}
	}
	return token.Proof{}
}

// groupsOf returns the limits that hold for the whole tenant.
func groupsOf(c *config.Site) []lease.GroupInput {
	if !c.Tenant.LimitsExternal() {
		return nil
	}
	external, _ := c.Tenant.ExternalRate() // checked
	list := []lease.GroupInput{{Name: lease.GroupExternal, Recipients: external}}
	if c.Tenant.AllowOnMicrosoft {
		list = append(list, lease.GroupInput{Name: lease.GroupOnMicrosoft, Recipients: limit.MOERA()})
	}
	return list
}

// mailboxLimits returns the limits of a mailbox, those of the whole tenant included.
func mailboxLimits(c *config.Site, m *config.Mailbox) limit.Allowance {
	l := m.Limits.Limits()
	l.Unseen = c.Token.RecipientsUnseen
	if c.Tenant.LimitsExternal() {
		l.Group = lease.GroupExternal
		l.GroupRecipients, _ = c.Tenant.ExternalRate() // checked
	}
	return l
}
