package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/internal/exit"
)

// checkedService is a service as "sendas check --service" knows it.
type checkedService struct {
	user string // as whom it runs
	unit string
	load func(path string, log *slog.Logger) (*config.Site, error) // as it loads at a reload
	all  config.Check                                              // all that it reads
}

var checkedServices = map[string]checkedService{
	"milter": {service.MilterUser, "sendas-milter", func(path string, _ *slog.Logger) (*config.Site, error) { return loadForMilter(path) }, config.CheckMilter},
	"token":  {service.TokenUser, "sendas-token", loadForToken, config.CheckToken},
}

// checkService checks what one service reads, as its user where that can be. With a process id it
// then has the service load the file, and waits until it is in force.
func checkService(ctx context.Context, o *options, name string, pid int) error {
	s, ok := checkedServices[name]
	if !ok {
		return exit.Errorf(exit.Usage, "for example: sendas check --service token", "--service: %q is neither milter nor token", name)
	}
	if u, err := user.Lookup(s.user); err == nil && os.Geteuid() == 0 && u.Uid != "0" {
		return o.asUser(ctx, s.user, name, pid)
	}
	if pid == 0 {
		c, err := config.Load(o.config, s.all)
		if err != nil {
			return err
		}
		fmt.Fprintf(o.stdout, "%s is good for the %s: %d mailboxes, %d clients%s\n", o.config, s.unit, len(c.Mailboxes), len(c.Clients), modeWords(c))
		return nil
	}
	// What keeps a credential alone from working is told, and keeps the service from nothing.
	if _, err := s.load(o.config, service.NewLog(o.stderr, false)); err != nil {
		return err
	}
	debug.FreeOSMemory() // the service, within the same limit, needs as much now
	restart, err := service.Reload(ctx, pid)
	if err != nil {
		return err
	}
	if len(restart) > 0 {
		fmt.Fprintf(o.stderr, "sendas: warning: in force, but for %s: %s\n", strings.Join(restart, ", "), service.RestartHint(s.unit))
	}
	return nil
}

// asUser runs the check in a process of another user, who may read less.
func (o *options) asUser(ctx context.Context, name, which string, pid int) error {
	uid, gids, err := service.AccountIDs(name)
	if err != nil {
		return exit.Errorf(exit.Software, "", "looking for the groups of %s: %w", name, err)
	}
	self, err := os.Executable()
	if err != nil {
		return exit.Errorf(exit.Software, "", "finding this program: %w", err)
	}
	args := []string{"check", "--config", o.config, "--service", which}
	if pid != 0 {
		args = append(args, "--reload", fmt.Sprint(pid))
	}
	c := exec.CommandContext(ctx, self, args...)
	c.Stdout, c.Stderr = o.stdout, o.stderr
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gids[0], Groups: gids}}
	err = c.Run()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.Errorf(e.ExitCode(), "", "%s, as whom the service runs, may not use this configuration; what is wrong stands above", name)
	}
	if err != nil {
		return exit.Errorf(exit.Software, "", "checking as %s: %w", name, err)
	}
	return nil
}
