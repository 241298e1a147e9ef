package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/doctor"
)

func cmdDoctor(o *options) *cobra.Command {
	q := &doctor.Options{}
	c := &cobra.Command{
		Use:   "doctor [MAILBOX]",
		Short: "Walk the whole way of a message, and say what is wrong on it",
		Long: `doctor looks at everything that a message depends on: the configuration, Postfix's settings, the
SASL plugin, the sockets of both services, what Postfix's and the services' own users may do, the queue's oldest message, each credential's files and a fresh token with what it says, the way
into Postfix as each client up to RCPT, the way to Microsoft's submission server, AUTH, MAIL FROM and RCPT as each mailbox with each of its
addresses, and DNS where a route needs it. It goes on after a failure, and says below each what it means and what to do. What is wrong with several mailboxes in the same way
is said once. Run it as root on the host of Postfix.

With MAILBOX, an address that some mailbox may send as, it looks at that mailbox alone; --as does so, and tries that address alone.

Nothing is sent, unless --send-to names a recipient. Then one real message is handed to Postfix as a client would, as MAILBOX or --as, and followed to
Microsoft's answer. Each station is shown with its time: Postfix, milter, queue, lease, AUTH, MAIL, RCPT, DATA, and the answer with Microsoft's own
id. Where the message is still waiting after --wait, it says for what, and what to type. It is good only when Microsoft has taken it, as that address: the only proof of Send As.

--client says as which client, by its address or its name in sendas.yaml; without it, as this host, or as the first that may send so. Another address than this
host's can be played only where Postfix allows that (XCLIENT, smtpd_authorized_xclient_hosts); where it does not, the command to type is printed. A client that shows a
certificate cannot be played.

Failures are printed first, then warnings; with --verbose everything, in the order of a message's way.
It exits with 0 when all is good, with 1 when something is wrong, and with 75 when there is only trouble that passes by itself.`,
		Example: "  sendas doctor\n  sendas doctor scan@contoso.com --send-to me@contoso.com\n  sendas doctor --as billing@contoso.com --client sap --send-to me@contoso.com\n  sendas doctor --json",
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
	f.StringVar(&q.SendTo, "send-to", "", "send one real message to this `address`, and follow it to Microsoft's answer")
	f.StringVar(&q.As, "as", "", "send it as this `address`; without --send-to, try that one alone")
	f.StringVar(&q.Client, "client", "", "speak to Postfix as this client: an `IP` address, or a name of sendas.yaml")
	f.DurationVar(&q.Wait, "wait", doctor.FollowTime, "how long the message is followed")
	for flag, list := range map[string]func(*config.Site) []cobra.Completion{"as": senders, "client": clientNames} {
		c.RegisterFlagCompletionFunc(flag, completeFirst(o, list)) // fails for unknown flags alone
	}
	f.BoolVarP(&q.Verbose, "verbose", "v", false, "print what is good, too")
	f.BoolVar(&q.Json, "json", false, "print JSON")
	return c
}
