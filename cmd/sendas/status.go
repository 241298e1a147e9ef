package main

import (
	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/cmd/internal/status"
)

import "github.com/spf13/cobra"

func cmdStatus(o *options) *cobra.Command {
	s := &status.Command{Stdout: o.stdout, Every: status.WatchEvery, Client: service.NewLocalClient()}
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the services: tokens, limits used and left, last errors",
		Long: `status asks the running services and prints, for each credential, the age and the end of its token, what
the last refresh brought, the end of its certificate and who has signed in; for each mailbox, the leases out,
the look-ups that wait, what is used and left of its limits, and the last verdict of Exchange Online; for each
client, what became of its mail since the milter started, and what is used and left of its limits.

With --watch a terminal shows it as bars, in the size of its window; where not all fit, those with most to do come
first. NO_COLOR in the environment keeps it without colours. Where there is no terminal, the text is printed again and again.

It needs token.http and milter.http of the configuration, and exits with 75 when a service does not answer. The same is
shown in a browser, at http://127.0.0.1:9726/ and http://127.0.0.1:9725/.`,
		Example: "  sendas status\n  sendas status --watch\n  sendas status --json | jq .mailboxes",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if s.Config, err = config.Load(o.config, config.SkipFiles); err != nil {
				return err
			}
			return s.Run(cmd.Context())
		},
	}
	c.Flags().BoolVar(&s.Json, "json", false, "print what the token service answers, as JSON, with the key milter added")
	c.Flags().BoolVarP(&s.Watch, "watch", "w", false, "look again every 2 seconds, until Ctrl-C")
	return c
}
