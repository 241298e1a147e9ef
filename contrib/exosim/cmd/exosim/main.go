// Exosim simulates Exchange Online and Entra on loopback.
//
//	exosim --config exosim.yaml
//
// It prints one line of JSON with its addresses when it listens, and ends at SIGTERM.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/sendas/sendas/contrib/exosim"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("exosim", flag.ContinueOnError)
	flags.SetOutput(stderr)
	file := flags.String("config", "", "the simulator's configuration `file` (YAML)")
	if err := flags.Parse(args); err != nil {
		return 64
	}
	c, err := exosim.LoadConfig(*file)
	if err != nil {
		fmt.Fprintln(stderr, "exosim: error:", err)
		return 78
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	s, err := exosim.Start(c)
	if err != nil {
		fmt.Fprintln(stderr, "exosim: error:", err)
		return 75
	}
	defer s.Close()
	json.NewEncoder(stdout).Encode(map[string]string{
		"submission": s.SubmissionAddr(), "authority": s.Authority(), "token_url": s.TokenURL(), "admin": s.AdminAddr(), "ca_file": c.CAFile,
	})
	<-ctx.Done()
	return 0
}
