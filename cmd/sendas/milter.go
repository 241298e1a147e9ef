package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"sync/atomic"
	"time"

	protocol "github.com/d--j/go-milter"
	"github.com/spf13/cobra"

	"github.com/sendas/sendas/cmd/internal/classes"
	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/cmd/internal/status"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/internal/record"
	"github.com/sendas/sendas/internal/serve"
	"github.com/sendas/sendas/milter"
	"github.com/sendas/sendas/milter/queue"
	"github.com/sendas/sendas/milter/quota"
	"github.com/sendas/sendas/policy"
)

func cmdMilter(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "milter",
		Short: "Run the milter: who may send as whom",
		Long: `milter serves Postfix's smtpd_milters and non_smtpd_milters, and the policy delegation protocol
of check_policy_service, which refuses earlier and chooses the route. It sees each message, and holds nothing by which
one could sign in at Microsoft. It opens no connection but to the store that hosts share (milter.store, with its
password), to Postfix's list of the queue, and to the token service on this host. SIGHUP loads the configuration
again; SIGTERM ends it once the SMTP sessions that have begun are over. With "milter: {mode: observe}" it changes and
refuses nothing, and notes who sends what as whom, and what would have become of it.`,
		Example: "  sendas milter --config /etc/sendas/sendas.yaml",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runMilter(cmd.Context(), o) },
	}
	c.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "log more")
	return c
}

func runMilter(ctx context.Context, o *options) error {
	log := service.NewLog(o.stderr, o.verbose)
	var warns serve.Sparing
	protocol.LogWarning = func(format string, v ...any) {
		warns.Warn(log, "milter connection", "error", fmt.Sprintf(format, v...))
	}
	cfg, err := loadForMilter(o.config)
	if err != nil {
		return err
	}
	reg, ok, at := service.NewRegistry(version)
	metrics, sessions := milter.NewMetrics(reg), new(milter.Sessions)
	counts, err := openAdmission(cfg, reg, log)
	if err != nil {
		return err
	}
	defer counts.close() // after the last message has ended
	quotas, queue := quota.NewDesk(counts.counts), queue.New(log, reg)
	kept := record.NewKeeper(record.MilterHalf, cfg.Record.MilterFile, cfg.RecordSettings(), log, reg)
	go kept.Run()
	defer kept.Close() // likewise
	notes := kept.Queue()
	tally := new(milter.Tally)
	srv := &milter.Server{Log: log, Metrics: metrics, Sessions: sessions, Quotas: quotas, Tally: tally, Queue: queue, Record: kept}
	early := &milter.PolicyServer{Log: log, Metrics: metrics, Sessions: sessions, Quotas: quotas, Tally: tally, Record: kept}
	peers := new(service.Peers)
	var inForce atomic.Pointer[config.Site]
	use := func(c *config.Site) error {
		if err := peers.Use(c); err != nil {
			return err
		}
		quotas.Use(c.ClientQuotas(), c.IdentityQuotas()...)
		queue.Use(queueRules(c, notes))
		kept.Use(c.RecordSettings())
		metrics.Clients(c.Policy.ClientNames())
		srv.Use(c.Policy)
		early.Use(c.Policy)
		inForce.Store(c.WithoutLists())
		if c.Observes() {
			log.Warn("the milter observes: nothing is changed or refused", "key", "milter.mode")
		}
		return nil
	}
	if err := use(cfg); err != nil {
		return err
	}
	ln, asked, err := milterSockets(cfg, peers, log)
	if err != nil {
		return err
	}
	defer ln.Close()
	if asked != nil {
		defer asked.Close()
	}
	atStart := cfg.WithoutLists()
	r := &service.Reloader{Path: o.config, Load: loadForMilter, Ok: ok, At: at, Log: log, Use: use, Unit: "sendas-milter",
		Restart: func(c *config.Site) []string { return c.MilterRestart(atStart) }}
	r.Loaded()
	describe := func() *milter.Status { return milterStatus(tally, quotas, queue, kept, inForce.Load()) }
	reg.MustRegister(milter.NewCollector(describe))
	pages := status.MilterPages(&status.Site{Addr: cfg.Milter.HTTP, Version: version, State: r.Config, Other: func() string { return inForce.Load().Token.HTTP },
		Tenant: func() string { return inForce.Load().Tenant.ID }, Client: service.NewLocalClient(), Search: func() bool { return inForce.Load().Record.Page }}, describe)
	maps.Copy(pages, status.RecordPages(&status.RecordSource{Half: record.MilterHalf, File: cfg.Record.MilterFile, On: func() bool { return inForce.Load().Record.Page }}))
	serving, end := context.WithCancel(context.WithoutCancel(ctx)) // as long as sessions end, or it would be down for monitoring
	defer end()
	if err := service.ServeHTTP(serving, cfg.Milter.HTTP, reg, func() error { return nil }, pages, log); err != nil {
		return err
	}
	r.Watch(ctx)
	classes.Watch(ctx, func() string { return inForce.Load().Milter.ClassesFile }, log, func(c *policy.Classes) {
		srv.UseClasses(c)
		early.UseClasses(c)
	})

	go queue.Run(ctx)
	done := make(chan error, 2)
	go func() { done <- srv.Serve(ln) }()
	if asked != nil {
		go func() { done <- early.Serve(asked) }()
	}
	service.Notify(ctx, log)
	log.Info("milter ready", "version", version, "listen", cfg.Milter.Listen.String(), "policy", cfg.Milter.PolicyListen.String(),
		"clients", len(cfg.Clients), "mailboxes", len(cfg.Mailboxes), "store", cfg.Milter.StoreOf().Name())
	select {
	case err := <-done:
		return exit.Errorf(exit.Software, "", "serving the milter: %w", err)
	case <-ctx.Done():
	}
	stopMilter(srv, early, ln, asked, log)
	log.Info("milter stopped")
	return nil
}

// loadForMilter loads the configuration for the service.
func loadForMilter(path string) (*config.Site, error) { return config.Load(path, config.CheckMilter) }

// stopMilter takes no more connections, and lets the SMTP sessions that have begun end.
func stopMilter(srv *milter.Server, early *milter.PolicyServer, ln, asked net.Listener, log *slog.Logger) {
	ln.Close()
	if asked != nil {
		asked.Close()
	}
	end, cancel := context.WithTimeout(context.Background(), service.StopTime)
	defer cancel()
	if err := srv.Shutdown(end); err != nil {
		log.Warn("milter stopped early", "error", err)
	}
	// smtpd(8) keeps its connection between two requests for minutes, and makes another one when it
	// is closed.
	quick, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	early.Shutdown(quick)
}

// milterSockets opens the socket of the milter, and that of the policy service unless it is
// switched off: then it is nil.
func milterSockets(c *config.Site, peers *service.Peers, log *slog.Logger) (ln, asked net.Listener, err error) {
	open := func(name string, at serve.Address) (net.Listener, error) {
		l, err := service.Listen(name, at)
		if err != nil {
			return nil, err
		}
		return service.OnlyFrom(l, peers, log), nil
	}
	if ln, err = open("milter", c.Milter.Listen); err != nil || c.Milter.PolicyListen == "" {
		return ln, nil, err
	}
	if asked, err = open("policy", c.Milter.PolicyListen); err != nil {
		return nil, nil, errors.Join(err, ln.Close())
	}
	return ln, asked, nil
}

// milterStatus describes the milter.
func milterStatus(t *milter.Tally, q *quota.Desk, w *queue.Watch, k *record.Keeper, c *config.Site) *milter.Status {
	return t.Status(milter.StatusInput{Version: version, Started: started, Clients: c.Policy.ClientNames(), Queue: w.Status(), Record: k.Status()}, q)
}
