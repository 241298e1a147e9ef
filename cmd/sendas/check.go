package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func cmdCheck(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Check the configuration",
		Long: `check reads the configuration, the secret files and the certificates as the services do, and
says what is wrong with file, line, excerpt and what to write instead. It exits with 78 when
something is.`,
		Example: "  sendas check --config ./sendas.yaml",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			c, err := LoadConfig(o.config, CheckFiles)
			if err != nil {
				return err
			}
			fmt.Fprintf(o.stdout, "%s is good: %d mailboxes, %d clients\n", o.config, len(c.Mailboxes), len(c.Clients))
			return nil
		},
	}
}
