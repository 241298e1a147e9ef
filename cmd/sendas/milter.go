package main

import (
	"context"
	"fmt"
	"net"
	"time"

	protocol "github.com/d--j/go-milter"
	"github.com/spf13/cobra"

	"github.com/sendas/sendas/milter"
	"github.com/sendas/sendas/policy/limit"
)

func cmdMilter(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "milter",
		Short: "Run the milter: who may send as whom",
		Long: `milter serves Postfix's smtpd_milters and non_smtpd_milters, and the policy delegation protocol
of check_policy_service, which refuses earlier and chooses the route. It holds no secret and opens no connection. SIGHUP loads the configuration again; SIGTERM ends it once the SMTP
sessions that have begun are over.`,
		Example: "  sendas milter --config /etc/sendas/sendas.yaml",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runMilter(cmd.Context(), o) },
	}
	c.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "log more")
	return c
}

func runMilter(ctx context.Context, o *options) error {
	log := newLog(o.stderr, o.verbose)
	protocol.LogWarning = func(format string, v ...any) { log.Warn("milter connection", "error", fmt.Sprintf(format, v...)) }
	load := func(path string) (*Config, error) { return LoadConfig(path, SkipFiles) }
	cfg, err := load(o.config)
	if err != nil {
		return err
	}
	reg, ok, at := newRegistry()
	metrics, sessions := milter.NewMetrics(reg), new(milter.Sessions)
	quotas := milter.NewQuotas(limit.NewAdmission())
	srv := &milter.Server{Log: log, Metrics: metrics, Sessions: sessions, Quotas: quotas}
	early := &milter.PolicyServer{Log: log, Metrics: metrics, Sessions: sessions, Quotas: quotas}
	use := func(c *Config) error {
		quotas.Use(c.clientLimits())
		metrics.Clients(c.Policy.ClientNames())
		srv.Use(c.Policy)
		early.Use(c.Policy)
		return nil
	}
	if err := use(cfg); err != nil {
		return err
	}
	ln, err := listen("milter", cfg.Milter.Listen)
	if err != nil {
		return err
	}
	defer ln.Close()
	var asked net.Listener
	if cfg.Milter.PolicyListen != "" {
		if asked, err = listen("policy", cfg.Milter.PolicyListen); err != nil {
			return err
		}
		defer asked.Close()
	}
	if err := serveHTTP(ctx, cfg.Milter.HTTP, reg, func() error { return nil }, nil, log); err != nil {
		return err
	}
	r := &reloader{path: o.config, load: load, ok: ok, at: at, log: log, use: use}
	r.loaded()
	r.watch(ctx)

	done := make(chan error, 2)
	go func() { done <- srv.Serve(ln) }()
	if asked != nil {
		go func() { done <- early.Serve(asked) }()
	}
	notify(ctx, log)
	log.Info("milter ready", "version", version, "listen", cfg.Milter.Listen, "policy", cfg.Milter.PolicyListen,
		"clients", len(cfg.Clients), "mailboxes", len(cfg.Mailboxes))
	select {
	case err := <-done:
		return failure(exitSoftware, "", "serving the milter: %w", err)
	case <-ctx.Done():
	}
	ln.Close()
	if asked != nil {
		asked.Close()
	}
	end, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	if err := srv.Shutdown(end); err != nil {
		log.Warn("milter stopped early", "error", err)
	}
	// smtpd(8) keeps its connection between two requests for minutes, and makes another one when it is closed.
	quick, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	early.Shutdown(quick)
	log.Info("milter stopped")
	return nil
}
