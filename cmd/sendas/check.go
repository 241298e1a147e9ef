package main

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"

	"github.com/spf13/cobra"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/dns"
	"github.com/sendas/sendas/internal/exit"
)

func cmdCheck(o *options) *cobra.Command {
	var dns bool
	var server, which string
	var reload int
	c := &cobra.Command{
		Use:   "check",
		Short: "Check the configuration",
		Long: `check reads the configuration, the secret files and the certificates as the services do, and
says what is wrong with file, line, excerpt and what to write instead. It exits with 78 when
something is. What works and will soon fail, or does not do what it seems to, is a warning: a certificate
that ends, a client that no message can come from. What is right and may surprise, it says as a note: mail
of programs on this host that no client takes. Where milter.mode is observe, tenant, credentials, mailboxes and clients may
be missing, and what mode: enforce will need is a note.

With --service it checks what that service reads, as its user where root types it. With --reload as well, which is
what "systemctl reload" does, that process then loads the file, and the command returns when it is in force: with 78
where it is wrong, and then the old one stays.

With --dns it also looks up the verified domains and the endpoints of the routes, and prints the SPF record
that each domain needs: mail by a connector or directly comes from this relay's own address. It exits with 1 when
something has to be changed.`,
		Example: "  sendas check --config ./sendas.yaml\n  sendas check --service token\n  sendas check --dns",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case reload != 0 && which == "":
				return exit.Errorf(exit.Usage, "for example: sendas check --service token --reload $(systemctl show -P MainPID sendas-token)", "--reload: name the service too, with --service")
			case reload < 0:
				return exit.Errorf(exit.Usage, "", "--reload: %d is no process", reload)
			case which != "":
				return checkService(cmd.Context(), o, which, reload)
			}
			c, err := config.Load(o.config, config.CheckAll)
			if err != nil {
				return err
			}
			for _, p := range c.Warnings {
				fmt.Fprintf(o.stderr, "sendas: warning: %s\n", p.In(o.config))
			}
			fmt.Fprintf(o.stdout, "%s is good: %d mailboxes, %d clients%s\n", o.config, len(c.Mailboxes), len(c.Clients), modeWords(c))
			for _, p := range c.Awaits {
				fmt.Fprintf(o.stderr, "sendas: note: before mode: enforce: %s\n", p.In(o.config))
			}
			if c.Policy.OwnMail() == nil && !c.Observes() {
				fmt.Fprintln(o.stderr, noOwnMail)
			}
			if !dns && server == "" {
				return nil
			}
			fmt.Fprintln(o.stdout)
			return checkDomains(cmd.Context(), o, c, server)
		},
	}
	c.Flags().StringVar(&which, "service", "", "check what this `SERVICE` reads, milter or token, as its user")
	fixed(c, "service", slices.Sorted(maps.Keys(checkedServices))...)
	c.Flags().IntVar(&reload, "reload", 0, "then have the process `PID` of that service load the file, and wait until it is in force")
	c.Flags().BoolVar(&dns, "dns", false, "look at DNS too, and print the SPF records to publish")
	c.Flags().StringVar(&server, "dns-server", "", "ask this server, `HOST:PORT`, and not the system's: what the world sees may differ from what this network sees")
	return c
}

// modeWords say that a configuration only looks; "" where it does not.
func modeWords(c *config.Site) string {
	if !c.Observes() {
		return ""
	}
	return "; milter.mode is observe: nothing is changed or refused"
}

// noOwnMail says what it means that no client takes mail of this host.
const noOwnMail = `sendas: note: mail of programs on this host (cron, sendmail) has no client, so it comes back to its sender with 550 5.7.1; ` +
	`Postfix's own bounces leave all the same
sendas: hint: if such mail shall leave, add a client with networks: [127.0.0.0/8, "::1"] and from:`

func checkDomains(ctx context.Context, o *options, c *config.Site, server string) error {
	r := net.DefaultResolver
	if server != "" {
		if _, _, err := net.SplitHostPort(server); err != nil {
			return exit.Errorf(exit.Usage, "for example: --dns-server 9.9.9.9:53", "--dns-server: %q is not a host with its port", server)
		}
		r = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, server)
		}}
	}
	ctx, cancel := context.WithTimeout(ctx, dns.Time)
	defer cancel()
	ok, err := dns.Check(ctx, o.stdout, r, dns.PlanOf(c))
	if err == nil && !ok {
		err = exit.Errorf(exit.Failed, "", "DNS has to be changed; what to publish stands above")
	}
	return err
}
