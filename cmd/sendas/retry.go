package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/token/lease"
)

func cmdRetry(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "retry MAILBOX [SENDER]",
		Short: "Offer Exchange Online again what it has refused",
		Long: `retry tells the token service that the cause of a refusal has been mended.

When Exchange Online has denied a mailbox five times to send as an address, the mail of that sender waits
in Postfix's queue, and one message an hour tries again. Mailboxes that go on submitting what is refused
are throttled by Microsoft, with all their mail. After Send As was granted, which takes up to an hour to act,
"sendas retry MAILBOX SENDER" lets the next message of that sender try at once; when it is taken, all others follow.

Without SENDER that is done for all senders of the mailbox, and a rest of the mailbox itself ends as well:
after "mailbox full", a refused sign-in, a block or a quota.

Postfix decides when it tries: "postqueue -f" makes it try at once. Where several hosts relay, type it on each.
Type it as root, or as the user of the token service where that makes its socket itself.`,
		Example: "  sendas retry erp@contoso.com billing@contoso.com\n  sendas retry erp@contoso.com",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := config.Load(o.config, config.SkipFiles)
			if err != nil {
				return err
			}
			a, err := retry(cmd.Context(), c, args)
			if err != nil {
				return err
			}
			return printRetried(o.stdout, args[0], a)
		},
	}
}

// retry asks the token service.
func retry(ctx context.Context, c *config.Site, args []string) (*lease.Retried, error) {
	a := new(lease.Retried)
	found, err := askService(ctx, c, "retry", strings.Join(args, " "), a)
	switch {
	case err != nil:
		return nil, err
	case !found:
		return nil, exit.Errorf(exit.TempFail, "", "the token service does not know what to try again")
	case a.Unknown != "":
		return nil, exit.Errorf(exit.Usage, `"sendas status" lists the mailboxes, and what each was denied`, "%s is no mailbox, or none that may send so, in the configuration that is in force", a.Unknown)
	}
	return a, nil
}

// printRetried says what the service did.
func printRetried(w io.Writer, mailbox string, a *lease.Retried) error {
	var b strings.Builder
	if a.Rested {
		fmt.Fprintf(&b, "%s no longer rests\n", mailbox)
	}
	for _, s := range a.Senders {
		fmt.Fprintf(&b, "one message of %s tries again as %s\n", s, mailbox)
	}
	if b.Len() == 0 {
		fmt.Fprintf(&b, "nothing of %s is kept back\n", mailbox)
	} else {
		b.WriteString("type \"postqueue -f\" to make Postfix try at once\n")
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return exit.Errorf(exit.Software, "", "printing: %w", err)
	}
	return nil
}
