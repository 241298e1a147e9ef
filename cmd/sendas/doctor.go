package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/sendas/sendas/cmd/internal/doctor"
)

func cmdDoctor(o *options) *cobra.Command {
	q := &doctor.Options{}
	c := &cobra.Command{
		Use:   "doctor [MAILBOX]",
		Short: "Walk the whole way of a message, and say what is wrong on it",
		Long: `doctor looks at everything that a message depends on: the configuration, Postfix's settings, the
SASL plugin, the sockets of both services, what Postfix's and the services' own users may do, the queue's oldest message, each credential's files and a fresh token with what it says, the way to
Microsoft's submission server, AUTH and MAIL FROM as each mailbox, and DNS where a route needs it. It goes on
after a failure, and says below each what it means and what to do. Run it as root on the host of Postfix.

With MAILBOX, an address that some mailbox may send as, it looks at that mailbox alone. Nothing is sent, unless --send-to
names a recipient: then one real message leaves as the mailbox, which alone proves that it may.

Failures are printed first, then warnings; with --verbose everything, in the order of a message's way.
It exits with 0 when all is good, with 1 when something is wrong, and with 75 when there is only trouble that passes by itself.`,
		Example: "  sendas doctor\n  sendas doctor scan@contoso.com --send-to me@contoso.com\n  sendas doctor --json",
		Args:    cobra.MaximumNArgs(1),

		ValidArgsFunction: completeFirst(o, senders),
		RunE: func(cmd *cobra.Command, args []string) error {
			q.File, q.Stdout = o.config, o.stdout
			q.Mailbox = strings.Join(args, "")
			return doctor.New(q, doctor.RealWorld()).Run(cmd.Context())
		},
	}
	f := c.Flags()
	f.StringVar(&q.Folder, "postfix-config", "", "the `folder` of main.cf and master.cf, if it is not Postfix's own default")
	f.StringVar(&q.SendTo, "send-to", "", "send one real message to this `address`")
	f.BoolVarP(&q.Verbose, "verbose", "v", false, "print what is good, too")
	f.BoolVar(&q.Json, "json", false, "print JSON")
	return c
}
