package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sendas/sendas/cmd/internal/story"
	"github.com/sendas/sendas/cmd/internal/suggest"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/internal/record"
)

// suggestOptions are the flags of the command.
type suggestOptions struct {
	domains []string
	since   string
	wait    time.Duration
	refused bool
}

func cmdSuggest(o *options) *cobra.Command {
	q := &suggestOptions{}
	c := &cobra.Command{
		Use:   "suggest",
		Short: "Make a configuration to begin with of what was recorded",
		Long: `suggest looks at the messages that the milter has recorded, best while it only observed (milter: {mode: observe}), and prints
sendas.yaml with clients: and mailboxes: to begin with; all other sections stay as they are. What a person has to decide
stands in a comment that begins with "Decide". The result passes "sendas check", and each message that was recorded would
be accepted under it.

A client is a login, the name in a certificate, or the hosts of one kind ("mfp" of mfp3.contoso.com) in one /16 (of IPv6, /48).
It lets in nobody who was not seen: a network stands in the place of addresses where more than half of it was seen as the
same client, and none as another one, and none is wider than a /24; three addresses of an IPv6 /64 stand for the /64. A client may
ask for the senders of the tenant's domains that it was seen with; all else, what is malformed too, leaves as its from:. Mailboxes
are as many as Microsoft's limits want (30 messages a minute, 10,000 recipients a day) for no message to wait longer than --wait.

With --refused it prints who is refused by the configuration as it is now, and for each the line that would let it in.`,
		Example: "  sendas suggest > new.yaml && sendas check -c new.yaml\n  sendas suggest --since 14d --domain contoso.com --domain contoso.de\n  sendas suggest --refused --since 1d",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return failed(makeSuggestion(cmd.Context(), o, q)) },
	}
	f := c.Flags()
	f.StringSliceVar(&q.domains, "domain", nil, "a verified `domain` of the tenant, where tenant.domains does not say; may be given several times")
	f.StringVar(&q.since, "since", "", "not before: a `time` such as 14d, 36h or 2026-12-01; default: as far as the record goes")
	f.DurationVar(&q.wait, "wait", 10*time.Minute, "how `long` the last message of a peak may wait, before another mailbox is suggested")
	f.BoolVar(&q.refused, "refused", false, "print who is refused, and the line that would let each in")
	return c
}

func makeSuggestion(ctx context.Context, o *options, q *suggestOptions) error {
	if q.wait < 0 {
		return exit.Errorf(exit.Usage, "for example: --wait 10m", "--wait: %s is no time to wait", q.wait)
	}
	from := time.Time{}
	if q.since != "" {
		var err error
		if from, err = story.ParseSince(q.since, time.Now()); err != nil {
			return err
		}
	}
	c, b, err := openBook(ctx, o)
	if err != nil {
		return err
	}
	defer b.Close()
	if len(q.domains) > 0 && len(c.Tenant.Domains) > 0 {
		return exit.Errorf(exit.Usage, "change them there, or leave --domain out", "--domain: %s has tenant.domains already", o.config)
	}
	present, err := os.ReadFile(o.config)
	if err != nil {
		return err
	}
	walk := func(f func(*record.Message) error) error { return b.Walk(ctx, from, f) }
	options := suggest.Options{File: o.config, Present: present, Domains: q.domains, Wait: q.wait}
	if q.refused {
		return printRefused(o, walk, options)
	}
	return printSuggestion(o, walk, options)
}

func printSuggestion(o *options, walk suggest.Walk, q suggest.Options) error {
	s, err := suggest.Make(walk, q)
	switch {
	case errors.Is(err, suggest.ErrNothing):
		return exit.Errorf(exit.Failed, "wait until devices have sent; \"sendas status\" counts what the milter has seen", "%w", err)
	case errors.Is(err, suggest.ErrNoDomain):
		return exit.Errorf(exit.Usage, "name the tenant's verified domains: sendas suggest --domain contoso.com", "%w", err)
	case errors.Is(err, suggest.ErrNoCredential):
		return exit.Errorf(exit.Config, "list one under credentials:, or write milter: {mode: observe}", "%w", err)
	case err != nil:
		return err
	}
	if _, err := fmt.Fprint(o.stdout, s.Text); err != nil {
		return err
	}
	fmt.Fprintf(o.stderr, "sendas: of %d messages by %d devices and logins: %d clients, %d mailboxes; what a person has to decide is marked \"Decide\"\n", s.Messages, s.Devices, s.Clients, s.Boxes)
	if len(s.Replaced) > 0 {
		fmt.Fprintf(o.stderr, "sendas: note: %s of %s are not in it: the new ones take their place; \"sendas suggest --refused\" adds to them instead\n", strings.Join(s.Replaced, ", "), q.File)
	}
	return nil
}

func printRefused(o *options, walk suggest.Walk, q suggest.Options) error {
	r, err := suggest.Refused(walk, q)
	if err != nil {
		return err
	}
	if r.Messages == 0 {
		fmt.Fprintln(o.stderr, "sendas: nobody is refused, as far as the record goes")
		return nil
	}
	if _, err := fmt.Fprint(o.stdout, r.Text); err != nil {
		return err
	}
	fmt.Fprintf(o.stderr, "sendas: %d messages of %d strangers and %d senders of clients would be refused; entries go to the end of clients:\n", r.Messages, r.Strangers, r.Known)
	return nil
}
