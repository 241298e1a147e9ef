package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/lease"
	"github.com/sendas/sendas/token/renew"
)

func cmdRenew(o *options) *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use:   "renew CREDENTIAL",
		Short: "Replace the certificate of an app now",
		Long: `renew has the token service replace the certificate of a credential that has renew: in sendas.yaml, without waiting
for its end. The service makes a new key on this host, has Microsoft Graph add its certificate to the app
registration, asks Entra for a token by it, and changes over when one comes, which takes some minutes; renew waits for it.
What was in use before goes on to serve until then. A certificate that the service had added before is taken from the
app a day later; the one that you uploaded yourself stays: remove it in the Entra admin centre.

With --dry-run nothing is changed: the present certificate is read, and a token for Graph is asked for by it. Whether
Graph lets the app change its certificates, only doing it shows.

Type it as root, or as the user of the token service.`,
		Example:           "  sendas renew relay-app --dry-run\n  sendas renew relay-app",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeFirst(o, certificates),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := config.Load(o.config, config.SkipFiles)
			if err != nil {
				return err
			}
			if err := renewable(c, args[0]); err != nil {
				return err
			}
			if dryRun {
				return rehearse(cmd.Context(), c, args[0], o.stdout)
			}
			return renewNow(cmd.Context(), c, args[0], o.stdout, time.Second)
		},
	}
	c.Flags().BoolVarP(&dryRun, "dry-run", "n", false, "change nothing: read the certificate, and ask for the token by which it would be replaced")
	return c
}

// renewable reports why a credential has no certificate that the service could replace.
func renewable(c *config.Site, name string) error {
	cc, ok := c.Credentials[name]
	switch {
	case !ok:
		return exit.Errorf(exit.Usage, "those of the configuration: "+strings.Join(slices.Sorted(maps.Keys(c.Credentials)), ", "), "there is no credential %q", name)
	case cc.CertificateFile == "":
		return exit.Errorf(exit.Usage, "a client secret is made in the Entra admin centre", "credential %q has no certificate", name)
	case cc.Renew == 0:
		return exit.Errorf(exit.Config, "write renew: 30d and object_id: (the Object ID of the app registration) to it, and type: sendas check && systemctl reload sendas-token",
			"credential %q does not renew its certificate", name)
	}
	return nil
}

// rehearse goes the first half of the way.
func rehearse(ctx context.Context, c *config.Site, name string, w io.Writer) error {
	client, err := c.Client()
	if err != nil {
		return err
	}
	r, err := c.Keeper(name, client).Rehearse(ctx)
	if err != nil {
		return renewalError(name, err)
	}
	return printLines(w,
		fmt.Sprintf("the certificate in use, %s, ends on %s", r.InUse.CertificateFile, day(r.Ends)),
		"Entra gives a token for Microsoft Graph by it",
		fmt.Sprintf("a new one would be made now, valid for %d days; without this command that is done from %s on", int(r.Life.Hours()/24), day(r.Due)),
		"nothing was changed")
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

func printLines(w io.Writer, lines ...string) error {
	if _, err := io.WriteString(w, strings.Join(lines, "\n")+"\n"); err != nil {
		return exit.Errorf(exit.Software, "", "printing: %w", err)
	}
	return nil
}

// renewalError gives an error of a renewal its exit code and its hint.
func renewalError(name string, err error) error {
	code := exit.TempFail
	if _, wrong := errors.AsType[*entra.FileError](err); wrong {
		code = exit.Config
	}
	return exit.Errorf(code, renew.Hint(err), "renewing the certificate of %q: %w", name, err)
}

// renewNow asks the service to replace the certificate, and tells each step until the new one is in
// use. It looks again after every.
func renewNow(ctx context.Context, c *config.Site, name string, w io.Writer, every time.Duration) error {
	before, err := askRenewal(ctx, c, name)
	if err != nil {
		return err
	}
	if before.Pending {
		if err := printLines(w, "a new certificate is on its way already"); err != nil {
			return err
		}
	}
	if _, err := askRenewal(ctx, c, "now "+name); err != nil {
		return err
	}
	said := before.Pending
	for {
		select {
		case <-ctx.Done():
			return exit.Errorf(exit.TempFail, "", "interrupted; the service goes on by itself: sendas status")
		case <-time.After(every):
		}
		now, err := askRenewal(ctx, c, name)
		switch {
		case err != nil:
			return err
		case now.Failing != nil:
			return exit.Errorf(exit.TempFail, now.Hint, "%s", now.Error)
		case now.Made != before.Made && !now.Pending:
			return printLines(w, fmt.Sprintf("Microsoft takes the new certificate; it is in use, and ends on %s", day(*now.Ends)), stays(before))
		case now.Pending && !said:
			said = true
			if err := printLines(w, "a new key was made; until Microsoft takes its certificate, which can take some minutes, the present one serves"); err != nil {
				return err
			}
		}
	}
}

// stays says what becomes of the certificate that was in use.
func stays(before *lease.RenewalStatus) string {
	if before.Made != "" {
		return "the former one is taken from the app in a day"
	}
	return "the one of certificate_file: stays with the app; when it is no longer needed, remove it in the Entra admin centre (App registrations, Certificates & secrets)"
}

// askRenewal asks the token service how a renewal goes, or to begin it.
func askRenewal(ctx context.Context, c *config.Site, key string) (*lease.RenewalStatus, error) {
	s := new(lease.RenewalStatus)
	found, err := askService(ctx, c, "renew", key, s)
	if err == nil && !found {
		err = exit.Errorf(exit.TempFail, "type: systemctl reload sendas-token", "the token service does not renew that certificate: the configuration in force has no renew: for it, or no mailbox uses it")
	}
	return s, err
}
