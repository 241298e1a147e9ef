// Exosim simulates Exchange Online and Entra on loopback.
//
//	exosim --config exosim.yaml
//
// When it listens it prints one line of JSON with its addresses; it ends at
// SIGTERM and SIGINT. Exit codes are those of sysexits.h: 64 for a wrong
// command line, 78 for a wrong configuration, 75 if an address cannot be had.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/sendas/sendas/contrib/exosim"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// addresses is the line on stdout.
type addresses struct {
	Submission string `json:"submission"` // host:port
	MX         string `json:"mx"`         // host:port, "" without
	HVE        string `json:"hve"`        // likewise
	Authority  string `json:"authority"`  // base URL
	TokenURL   string `json:"token_url"`
	Admin      string `json:"admin"`       // host:port, "" without
	IMDS       string `json:"imds"`        // host:port, "" without
	AppService string `json:"app_service"` // URL for IDENTITY_ENDPOINT, "" without
	Arc        string `json:"arc"`         // URL for IDENTITY_ENDPOINT, "" without
	CAFile     string `json:"ca_file"`
}

// run is the program until ctx is done.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("exosim", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, "usage: exosim --config FILE [--verbose]\n\n"+
			"Simulates Exchange Online and Entra. FILE is YAML; contrib/exosim/README.md has one to begin with.\n\n")
		flags.PrintDefaults()
	}
	file := flags.String("config", "", "the simulator's configuration `file`")
	verbose := flags.Bool("verbose", false, "log verdicts and refused sign-ins to stderr")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 64
	case *file == "" || flags.NArg() > 0:
		flags.Usage()
		return 64
	}
	c, err := exosim.LoadConfig(*file)
	if err != nil {
		fmt.Fprintln(stderr, "exosim: error:", err)
		return 78
	}
	if *verbose {
		c.Log = slog.New(slog.NewTextHandler(stderr, nil))
	}
	s, err := exosim.Start(c)
	if err != nil {
		fmt.Fprintln(stderr, "exosim: error:", err)
		return 75
	}
	defer s.Close()
	err = json.NewEncoder(stdout).Encode(addresses{
		Submission: s.SubmissionAddr(), MX: s.MXAddr(), HVE: s.HVEAddr(), Authority: s.Authority(), TokenURL: s.TokenURL(), Admin: s.AdminAddr(),
		IMDS: s.IMDSAddr(), AppService: s.AppServiceEndpoint(), Arc: s.ArcEndpoint(), CAFile: s.CAFile()})
	if err != nil {
		fmt.Fprintln(stderr, "exosim: error:", err)
		return 75
	}
	<-ctx.Done()
	return 0
}
