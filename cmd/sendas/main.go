// Sendas makes an ordinary Postfix the mail exit of a Microsoft 365 organisation.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/internal/exit"
)

// version is set by the linker; see the Makefile.
var version = "devel"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is the program. Results go to stdout; everything said to a person goes to stderr, prefixed,
// lower case, without full stop, and with a hint where the reader can mend it.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	root := newRoot(stdout, stderr)
	root.SetArgs(args)
	if err := root.ExecuteContext(ctx); err != nil {
		var text bytes.Buffer
		code := tell(&text, err)
		stderr.Write(service.ErrorText(stderr, text.Bytes()))
		return code
	}
	return exit.OK
}

// tell prints the error and picks the exit code. What is wrong with the configuration is a page of
// its own.
func tell(w io.Writer, err error) int {
	if _, ok := errors.AsType[*config.Error](err); ok {
		fmt.Fprintln(w, strings.TrimRight(err.Error(), "\n"))
		fmt.Fprintln(w, "sendas: hint: mend the file, then run \"sendas check\"")
		return exit.Config
	}
	return exit.Tell(w, err)
}

// options are the flags that every command takes.
type options struct {
	config  string
	verbose bool
	stdout  io.Writer
	stderr  io.Writer
}

const example = `  sendas check
  sendas milter --config /etc/sendas/sendas.yaml`

func newRoot(stdout, stderr io.Writer) *cobra.Command {
	o := &options{stdout: stdout, stderr: stderr}
	root := &cobra.Command{
		Use:   "sendas",
		Short: "Make an ordinary Postfix the mail exit of a Microsoft 365 organisation",
		Long: `sendas is a plugin for an existing Postfix. Its milter decides who may send as whom and
rewrites senders; its token service hands Postfix's smtp(8) the right to send one
message now, with an access token from Microsoft Entra.`,
		Example:       example,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.PersistentFlags().StringVarP(&o.config, "config", "c", "/etc/sendas/sendas.yaml", "the configuration `file`")
	root.MarkPersistentFlagFilename("config", "yaml", "yml") // fails for unknown flags alone
	root.SetFlagErrorFunc(nearestFlag)
	root.AddCommand(cmdCheck(o), cmdDoctor(o), cmdExplain(o), cmdFind(o), cmdLogin(o), cmdMan(o), cmdMilter(o), cmdPostfix(o), cmdReport(o), cmdRetry(o), cmdRenew(o), cmdStatus(o), cmdSuggest(o), cmdToken(o), cmdVersion(o))
	return root
}
