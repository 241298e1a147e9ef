package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/sendas/sendas/cmd/internal/classes"
	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/doctor"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/postfix"
	"github.com/sendas/sendas/cmd/internal/postfix/cf"
	"github.com/sendas/sendas/internal/exit"
)

func cmdPostfix(o *options) *cobra.Command {
	q := &postfix.Options{}
	c := &cobra.Command{
		Use:   "postfix",
		Short: "Show Postfix's settings, apply them, or take them back",
		Long: `postfix knows what Postfix needs for the configuration: show prints it, enable writes it into main.cf and
master.cf by postconf(1), and disable takes it back.

What Microsoft's server needs stands in a transport of its own in master.cf, called sendas, so that no setting of main.cf
weakens it and no other transport inherits it; main.cf leads mail there. On a host that sends everything to Microsoft that
is all mail, but for what tables lead elsewhere. On one with other mail too it is the mail of the mailboxes' senders, and a
token service that has stopped holds up no other mail. sendas looks at Postfix and says which of them it is, and why.`,
		Example: "  sendas postfix show\n  sendas postfix enable --dry-run\n  sendas postfix enable\n  sendas postfix disable",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q for \"sendas postfix\"; its commands are show, enable, classes and disable", config.Clip(args[0]))
			}
			return errors.New("\"sendas postfix\" needs one of its commands: show, enable, classes or disable")
		},
		RunE: func(*cobra.Command, []string) error { return nil }, // so that Args is asked
	}
	f := c.PersistentFlags()
	f.StringVar(&q.Folder, "postfix-config", "", "the `folder` of main.cf and master.cf, if it is not Postfix's own default")
	f.StringVar(&q.State, "state", "", "the `file` that remembers the former settings (default "+cf.StateFolder+"/INSTANCE.json)")
	c.AddCommand(cmdPostfixShow(o, q), cmdPostfixEnable(o, q), cmdPostfixClasses(o, q), cmdPostfixDisable(o, q))
	return c
}

// failed gives an error that has no exit code the one of a failure; others would count as a wrong
// command line.
func failed(err error) error {
	var config *config.Error
	if _, coded := errors.AsType[*exit.Error](err); err == nil || coded || errors.As(err, &config) {
		return err
	}
	return exit.Errorf(exit.Failed, "", "%w", err)
}

// withOptions adds what every command has.
func withOptions(q *postfix.Options, o *options) *postfix.Options {
	q.File, q.Stdout, q.Stderr, q.Run = o.config, o.stdout, o.stderr, postfix.Run
	q.Others = func(ctx context.Context, r *finding.Report, p *postfix.Setup, running bool) {
		doctor.CheckOthers(ctx, doctor.RealWorld(), r, p, running)
		if p.Config.Observes() {
			return // what is not known for sure is noted as a message's, and holds up none
		}
		classes.CheckOpaque(r.Section("classes", "recipients"), classes.Collect(ctx, postfix.Run, p), p)
	}
	q.Keep = func(ctx context.Context, p *postfix.Setup, soon bool) error {
		data, path := classes.Collect(ctx, postfix.Run, p), p.Config.Milter.ClassesFile
		if err := classes.Save(path, o.config, data); err != nil {
			return exit.Errorf(exit.Failed, "", "which recipients Postfix delivers itself cannot be kept for the milter: %w", err)
		}
		if soon { // else the milter would refuse strangers until it has noticed
			select {
			case <-time.After(classes.Interval * 3 / 2):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		fmt.Fprintf(o.stdout, "Postfix delivers itself: %s (kept in %s)\n", classes.Describe(data), path)
		return nil
	}
	return q
}

func cmdPostfixShow(o *options, q *postfix.Options) *cobra.Command {
	c := &cobra.Command{
		Use:   "show [main.cf | master.cf]",
		Short: "Print the settings that Postfix needs, with the reason for each",
		Long: `show prints the lines of main.cf and master.cf that Postfix needs for the configuration, each below its reason, in
the form in which they can be pasted. Lists that others have entries in are shown whole. It changes nothing.`,
		Example:   "  sendas postfix show\n  sendas postfix show master.cf",
		ValidArgs: cf.Names,
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			return failed(postfix.NewJob(withOptions(q, o)).Show(cmd.Context(), args))
		},
	}
	c.Flags().BoolVar(&q.Json, "json", false, "print JSON")
	return c
}

func cmdPostfixEnable(o *options, q *postfix.Options) *cobra.Command {
	c := &cobra.Command{
		Use:   "enable",
		Short: "Write the settings into main.cf and master.cf",
		Long: `enable writes what show prints, by postconf(1): comments and all other lines stay as they are, and lists of others are
extended. It tries all of it on a copy first, and where "sendas doctor" or "postfix check" would find something wrong with
the result, it changes nothing and says what; --force writes it all the same. The former files are kept for disable. A Postfix
that runs is reloaded. To be typed again whenever mailboxes, domains or routes have changed; what is right already stays. At its
end it does what classes does.

With --observe it writes the milter alone, for a sendas that only looks at mail (milter: {mode: observe}): no mail is led elsewhere, and
where sendas is away, mail goes on without it. A later enable puts the real thing in its place.`,
		Example: "  sendas postfix enable --dry-run\n  sendas postfix enable\n  sendas postfix enable --observe",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return failed(postfix.NewJob(withOptions(q, o)).Enable(cmd.Context()))
		},
	}
	c.Flags().BoolVar(&q.Observe, "observe", false, "write the milter alone, for a sendas that only looks (milter: {mode: observe})")
	c.Flags().BoolVar(&q.DryRun, "dry-run", false, "change nothing, and print what would change as a diff")
	c.Flags().BoolVar(&q.Force, "force", false, "write the settings even where something is in the way of them")
	return c
}

func cmdPostfixClasses(o *options, q *postfix.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "classes",
		Short: "Look again at which recipients Postfix delivers itself",
		Long: `classes reads which recipients Postfix delivers itself (mydestination, virtual domains, relay_domains, transport_maps) and
where its aliases lead, and keeps it in milter.classes_file, where the milter notices it within seconds. Mail to them passes untouched,
whoever sends it. enable does the same at its end; this command is for changes of domains and aliases after that, and for a Postfix that
was set up by hand. It changes nothing of Postfix.`,
		Example: "  postmap /etc/postfix/virtual && sendas postfix classes",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return failed(postfix.NewJob(withOptions(q, o)).KeepNow(cmd.Context()))
		},
	}
}

func cmdPostfixDisable(o *options, q *postfix.Options) *cobra.Command {
	c := &cobra.Command{
		Use:   "disable",
		Short: "Take the settings back",
		Long: `disable gives main.cf and master.cf the bytes that they had before enable, if nobody else has changed them since. If
somebody has, it takes back setting by setting, keeps what was changed meanwhile, and says so. A Postfix that runs is
reloaded.`,
		Example: "  sendas postfix disable --dry-run\n  sendas postfix disable",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return failed(postfix.NewJob(withOptions(q, o)).Disable(cmd.Context()))
		},
	}
	c.Flags().BoolVar(&q.Observe, "observe", false, "write the milter alone, for a sendas that only looks (milter: {mode: observe})")
	c.Flags().BoolVar(&q.DryRun, "dry-run", false, "change nothing, and print what would change as a diff")
	return c
}
