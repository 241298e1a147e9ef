package main

import (
	"context"
	"fmt"

	protocol "github.com/d--j/go-milter"
	"github.com/spf13/cobra"

	"github.com/sendas/sendas/milter"
)

func cmdMilter(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "milter",
		Short: "Run the milter: who may send as whom",
		Long: `milter serves Postfix's smtpd_milters and non_smtpd_milters. It holds no secret and opens
no connection. SIGHUP loads the configuration again; SIGTERM ends it once the SMTP
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
	srv := &milter.Server{Log: log, Metrics: milter.NewMetrics(reg)}
	use := func(c *Config) error {
		srv.Metrics.Clients(c.Policy.ClientNames())
		srv.Use(c.Policy)
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
	if err := serveHTTP(ctx, cfg.Milter.HTTP, reg, func() error { return nil }, log); err != nil {
		return err
	}
	r := &reloader{path: o.config, load: load, ok: ok, at: at, log: log, use: use}
	r.loaded()
	r.watch(ctx)

	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	notify(ctx, log)
	log.Info("milter ready", "version", version, "listen", cfg.Milter.Listen, "clients", len(cfg.Clients), "mailboxes", len(cfg.Mailboxes))
	select {
	case err := <-done:
		return failure(exitSoftware, "", "serving the milter: %w", err)
	case <-ctx.Done():
	}
	ln.Close()
	end, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	if err := srv.Shutdown(end); err != nil {
		log.Warn("milter stopped early", "error", err)
	}
	log.Info("milter stopped")
	return nil
}
