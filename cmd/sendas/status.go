package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/cmd/internal/status"
)

func cmdStatus(o *options) *cobra.Command {
	s := &status.Command{Stdout: o.stdout, Every: status.WatchEvery, Client: service.NewLocalClient()}
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the services: tokens, limits used and left, last errors",
		Long: `status asks the running services and says first, in one sentence, whether all mail leaves, and what needs somebody,
each with what to do. Then it prints, for each credential, the age and the end of its token, what
the last refresh brought, the end of its certificate and who has signed in; for each mailbox, the leases out,
the look-ups that wait, what is used and left of its limits, and the last verdict of Exchange Online; for each
client, what became of its mail since the milter started, and what is used and left of its limits.

With --watch a terminal shows it as bars, in the size of its window; where not all fit, those with most to do come
first. NO_COLOR in the environment keeps it without colours. Where there is no terminal, the text is printed again and again.

It needs token.http and milter.http of the configuration, and exits with 75 when a service does not answer. A file that
is wrong is told, and keeps nobody from asking the services, which go on with what they have. The same is
shown in a browser, at http://127.0.0.1:9726/ and http://127.0.0.1:9725/.

With --check it prints one line for a monitoring system, which begins with the same sentence, and exits with 0 (all is
well), 1 (somebody should look), 2 (mail does not leave) or 3 (nothing is known to be wrong, and not all is known).`,
		Example: "  sendas status\n  sendas status --check\n  sendas status --watch\n  sendas status --json | jq .mailboxes",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			s.Config, err = config.Load(o.config, config.SkipFiles)
			_, missing := os.Stat(o.config)
			if wrong, ok := errors.AsType[*config.Error](err); ok && missing == nil {
				s.Config, s.ConfigErr = config.Default(), err
				s.Config.Token.HTTP, s.Config.Milter.HTTP = config.Addresses(o.config)
				if !s.Check {
					fmt.Fprintf(o.stderr, "sendas: warning: %s; the services go on with the configuration that they have\n", wrong.Problems[0].In(o.config))
				}
			} else if err != nil {
				return err
			}
			return s.Run(cmd.Context())
		},
	}
	c.Flags().BoolVar(&s.Check, "check", false, "print one line with performance data, and exit with 0, 1, 2 or 3, as a plugin of Nagios, Icinga or Checkmk")
	c.Flags().BoolVar(&s.Json, "json", false, "print what the token service answers, as JSON, with the key milter added")
	c.Flags().BoolVarP(&s.Watch, "watch", "w", false, "look again every 2 seconds, until Ctrl-C")
	return c
}
