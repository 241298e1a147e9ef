package main

import (
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/internal/exit"
)

// A completion is what a shell offers for an argument or the value of a flag. With a configuration
// that cannot be read it offers nothing: a shell shows no errors.
type completion = func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective)

// completeFirst completes the only argument of a command with what list finds in the configuration.
func completeFirst(o *options, list func(*config.Site) []cobra.Completion) completion {
	return func(_ *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
		c, err := config.Load(o.config, config.SkipFiles)
		if err != nil || len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		all := slices.DeleteFunc(list(c), func(s cobra.Completion) bool { return !strings.HasPrefix(s, toComplete) })
		return all, cobra.ShellCompDirectiveNoFileComp
	}
}

// signInCredentials are the credentials for which users sign in.
func signInCredentials(c *config.Site) (list []cobra.Completion) {
	for _, name := range slices.Sorted(maps.Keys(c.Credentials)) {
		if cc := c.Credentials[name]; cc.Delegated() {
			list = append(list, cobra.CompletionWithDesc(name, cc.User))
		}
	}
	return list
}

// certificates are the credentials whose certificate the service replaces.
func certificates(c *config.Site) (list []cobra.Completion) {
	for _, name := range slices.Sorted(maps.Keys(c.Credentials)) {
		if cc := c.Credentials[name]; cc.Renew > 0 {
			list = append(list, cobra.CompletionWithDesc(name, cc.CertificateFile))
		}
	}
	return list
}

// senders are the addresses that mailboxes may send as, without patterns.
func senders(c *config.Site) (list []cobra.Completion) {
	for _, m := range slices.Concat(c.Mailboxes, c.Accounts()) {
		for _, address := range m.Senders() {
			if !strings.HasPrefix(address, "*") {
				list = append(list, cobra.CompletionWithDesc(address, "through "+m.Address))
			}
		}
	}
	return list
}

// clientNames are the clients by their names.
func clientNames(c *config.Site) (list []cobra.Completion) {
	for i := range c.Clients {
		list = append(list, cobra.CompletionWithDesc(c.Clients[i].Name, strings.Join(c.Clients[i].Networks, " ")))
	}
	return list
}

// fixed completes a flag's value with words of its own.
func fixed(c *cobra.Command, flag string, words ...cobra.Completion) {
	c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)) // fails for unknown flags alone
}

// nearestFlag answers a flag that a command does not have with the one that was most likely meant.
func nearestFlag(c *cobra.Command, err error) error {
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok || len(unknown.GetSpecifiedName()) < 2 {
		return exit.Errorf(exit.Usage, seeHelp(c), "%w", err)
	}
	var names []string
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	})
	if near := config.Nearest(unknown.GetSpecifiedName(), names); near != "" {
		return exit.Errorf(exit.Usage, "did you mean --"+near+"? "+seeHelp(c), "%w", err)
	}
	return exit.Errorf(exit.Usage, seeHelp(c), "%w", err)
}

func seeHelp(c *cobra.Command) string { return `"` + c.CommandPath() + ` --help" lists the flags` }
