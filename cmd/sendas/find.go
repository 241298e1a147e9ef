package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/cmd/internal/story"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/internal/record"
	"github.com/sendas/sendas/token/lease"
)

// search is what the command line of find says.
type search struct {
	query   story.Query
	id      string
	since   string
	verdict string
	json    bool
}

func cmdFind(o *options) *cobra.Command {
	f := new(search)
	c := &cobra.Command{
		Use:   "find [ID]",
		Short: "Find messages, and tell what became of one",
		Long: `find looks into the record of what became of mail, and prints one line for each message, newest first: when, its id,
what became of it, the client, the sender that it asked for and as whom it left, a recipient, and by which mailbox or why not.
All conditions must hold. An address is given whole, or as a domain with its "@".

With an ID it tells the story of one message, station by station, with what is still to come: a queue id of Postfix, a
Message-ID, or what the list shows. Attempts that cannot be tied to one message for certain are told as attempts of its sender.
Where Postfix's log can be read, its lines are told as well.

It is for root: the record shows who wrote to whom. Each half of it is read with the rights of the service that keeps it.`,
		Example: "  sendas find --to anna@example.org --since 2h\n  sendas find --client printers --verdict refused\n  sendas find 4bXyz2kqJz1",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				f.id = args[0]
			}
			return f.run(cmd.Context(), o)
		},
	}
	x := c.Flags()
	x.StringVar(&f.query.To, "to", "", "a recipient: an `address` or \"@domain\"")
	x.StringVar(&f.query.From, "from", "", "a sender that was asked for, or as whom it left: an `address` or \"@domain\"")
	x.StringVar(&f.query.Client, "client", "", "the `name` of a client, or its address, host name or login")
	x.StringVar(&f.query.Mailbox, "mailbox", "", "the `address` of a mailbox, or the name of a route")
	x.StringVar(&f.id, "id", "", "the same as the `ID` behind the command")
	x.StringVar(&f.since, "since", "", "not before: a `time` such as 2h, 3d, 2026-12-01 or \"2026-12-01 14:00\"")
	x.StringVar(&f.verdict, "verdict", "", "what became of it: one `word` of "+words(story.States))
	x.IntVarP(&f.query.Limit, "lines", "n", 50, "how many messages at most")
	x.BoolVar(&f.json, "json", false, "print JSON")
	return c
}

func words(states []story.State) string {
	list := make([]string, len(states))
	for i, s := range states {
		list[i] = string(s)
	}
	return strings.Join(list, ", ")
}

// check reads the words of the command line.
func (f *search) check(now time.Time) (err error) {
	if f.since != "" {
		if f.query.Since, err = story.ParseSince(f.since, now); err != nil {
			return err
		}
	}
	f.query.State = story.State(f.verdict)
	switch {
	case f.verdict != "" && !slices.Contains(story.States, f.query.State):
		return exit.Errorf(exit.Usage, "", "%q is no verdict; write one of %s", config.Clip(f.verdict), words(story.States))
	case f.query.Limit < 1 || f.query.Limit > record.MaxAnswer:
		return exit.Errorf(exit.Usage, "", "--lines: write 1 to %d", record.MaxAnswer)
	case f.id != "" && (f.query.To+f.query.From+f.query.Client+f.query.Mailbox+f.since+f.verdict != ""):
		return exit.Errorf(exit.Usage, "", "an ID names one message; leave the conditions out")
	}
	return nil
}

func (f *search) run(ctx context.Context, o *options) error {
	now := time.Now()
	if err := f.check(now); err != nil {
		return err
	}
	c, b, err := openBook(ctx, o)
	if err != nil {
		return err
	}
	defer b.Close()
	if f.id != "" {
		return f.tell(ctx, o, c, b, now)
	}
	list, more, err := b.Find(ctx, f.query)
	if err != nil {
		return exit.Errorf(exit.Failed, "", "%w", err)
	}
	if f.json {
		return printJSON(o, map[string]any{"messages": append([]*story.Item{}, list...), "more": more})
	}
	if err := story.WriteList(o.stdout, list, now); err != nil {
		return err
	}
	switch {
	case len(list) == 0:
		fmt.Fprintln(o.stderr, "sendas: no message was found")
	case more:
		fmt.Fprintf(o.stderr, "sendas: there may be more; --lines %d shows twice as many\n", 2*f.query.Limit)
	}
	return nil
}

// tell tells the story of a message.
func (f *search) tell(ctx context.Context, o *options, c *config.Site, b *story.Book, now time.Time) error {
	tales, err := b.Story(ctx, f.id, liveMailboxes(c), now)
	if err != nil {
		if _, ok := errors.AsType[*exit.Error](err); ok {
			return err
		}
		return exit.Errorf(exit.Failed, "", "%w", err)
	}
	if f.json {
		return printJSON(o, tales)
	}
	for i, t := range tales {
		if i > 0 {
			fmt.Fprintln(o.stdout)
		}
		if err := t.Write(o.stdout, now); err != nil {
			return err
		}
	}
	return nil
}

// openBook opens the record that the configuration names, and Postfix's log.
func openBook(ctx context.Context, o *options) (*config.Site, *story.Book, error) {
	c, err := config.Load(o.config, config.SkipFiles)
	if err != nil {
		return nil, nil, err
	}
	b, err := story.Open(ctx, c.Record.MilterFile, c.Record.TokenFile, story.PostfixLog(append(maillog(ctx), "/var/log/mail.log", "/var/log/maillog")...))
	return c, b, err
}

// maillog asks Postfix for a log file of its own; there is none, mostly.
func maillog(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "postconf", "-h", "maillog_file").Output()
	if file := strings.TrimSpace(string(out)); err == nil && strings.HasPrefix(file, "/") {
		return []string{file}
	}
	return nil
}

// liveMailboxes asks the token service when a mailbox can send next.
func liveMailboxes(c *config.Site) story.Live {
	if c.Token.HTTP == "" {
		return nil
	}
	return func(ctx context.Context, mailbox string) (time.Time, string, bool) {
		body, err := service.Fetch(ctx, service.NewLocalClient(), c.Token.HTTP, "/status")
		var s lease.Status
		if err != nil || json.Unmarshal(body, &s) != nil {
			return time.Time{}, "", false
		}
		for _, m := range s.Mailboxes {
			if !strings.EqualFold(m.Mailbox, mailbox) {
				continue
			}
			switch {
			case m.PausedUntil != nil:
				return *m.PausedUntil, "it rests, " + m.PauseReason, true
			case m.Next != nil:
				return *m.Next, fmt.Sprintf("its limits are used up, and %d look-ups wait", m.Waiting), true
			}
			return time.Time{}, "", true
		}
		return time.Time{}, "", false
	}
}

func printJSON(o *options, v any) error {
	e := json.NewEncoder(o.stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
