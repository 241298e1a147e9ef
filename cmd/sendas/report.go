package main

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/story"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/policy/limit"
)

// reporting is what the command line of report says.
type reporting struct {
	day, week bool
	since     string
	json, csv bool
}

func cmdReport(o *options) *cobra.Command {
	r := new(reporting)
	c := &cobra.Command{
		Use:   "report",
		Short: "Sum up who sent how much, and what that was of the limits",
		Long: `report sums up the record of the last 24 hours (--day, the default), of the last 7 days (--week), or since a moment: for each
client and each identity how many messages and recipients, how many were refused and how many were asked to come again; for
each mailbox what Microsoft took and refused, what it put off, how long messages waited for the mailbox, and the most that
fell into one period of its limits, with what part of the limit that is. Strangers are those that no client matched.

It is for root, as "sendas find" is.`,
		Example: "  sendas report\n  sendas report --week --csv > week.csv",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			now := time.Now()
			since, err := r.begins(now)
			if err != nil {
				return err
			}
			c, b, err := openBook(cmd.Context(), o)
			if err != nil {
				return err
			}
			defer b.Close()
			report, err := b.Report(cmd.Context(), since, now, limitsOf(c))
			switch {
			case err != nil:
				return exit.Errorf(exit.Failed, "", "%w", err)
			case r.json:
				return printJSON(o, report)
			case r.csv:
				return report.WriteCSV(o.stdout)
			}
			return report.Write(o.stdout)
		},
	}
	f := c.Flags()
	f.BoolVar(&r.day, "day", false, "the last 24 hours; that is the default")
	f.BoolVar(&r.week, "week", false, "the last 7 days")
	f.StringVar(&r.since, "since", "", "since a `time` such as 2h, 3d, 2026-12-01 or \"2026-12-01 14:00\"")
	f.BoolVar(&r.csv, "csv", false, "print CSV")
	f.BoolVar(&r.json, "json", false, "print JSON")
	c.MarkFlagsMutuallyExclusive("day", "week", "since")
	c.MarkFlagsMutuallyExclusive("csv", "json")
	return c
}

func (r *reporting) begins(now time.Time) (time.Time, error) {
	switch {
	case r.since != "":
		return story.ParseSince(r.since, now)
	case r.week:
		return now.AddDate(0, 0, -7), nil
	}
	return now.AddDate(0, 0, -1), nil
}

// limitsOf returns the limits that the configuration gives to a mailbox; one from a pattern has those
// of the pattern.
func limitsOf(c *config.Site) story.Limits {
	known := make(map[string]limit.Allowance, len(c.Mailboxes))
	for _, m := range c.Mailboxes {
		known[strings.ToLower(m.Address)] = m.Limits.Limits()
	}
	return func(mailbox string) (messages, recipients story.Limit, ok bool) {
		mailbox = strings.ToLower(mailbox)
		l, ok := known[mailbox]
		if _, domain, found := strings.Cut(mailbox, "@"); !ok && found {
			l, ok = known["*@"+domain]
		}
		return story.Limit(l.Messages), story.Limit(l.Recipients), ok
	}
}
