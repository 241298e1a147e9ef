package service

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sendas/sendas/internal/exit"
)

// reloadTime bounds how long Reload waits. A unit has 90 s for it (TimeoutStartSec=).
const reloadTime = 60 * time.Second

// A loadReport is what a service tells of one load of its configuration, to whoever waits for it.
type loadReport struct {
	Began   int64    `json:"began"` // by the clock that all processes share (CLOCK_MONOTONIC), in ns
	Error   string   `json:"error"` // why the old one stays; "" for good
	Restart []string `json:"needs_restart"`
}

// reportAddress is where a service of this process id tells of its loads: a socket without a file,
// since a service may write nowhere but to its state. Who listens there is nobody's secret, and who
// speaks is known by the kernel.
func reportAddress(pid int) *net.UnixAddr {
	return &net.UnixAddr{Net: "unixgram", Name: fmt.Sprintf("@sendas-reload-%d", pid)}
}

func monotonic() int64 {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // fails for no clock that there is
	return t.Nano()
}

// tell reports a load to whoever waits for it, mostly nobody.
func (l loadReport) tell(pid int) {
	c, err := net.DialUnix("unixgram", nil, reportAddress(pid))
	if err != nil {
		return
	}
	defer c.Close()
	const most = 32 << 10 // of a text; the system's own limit of a datagram is larger
	if len(l.Error) > most {
		l.Error = l.Error[:most]
	}
	b, err := json.Marshal(l)
	if err != nil {
		return // cannot be: it holds texts
	}
	c.SetWriteDeadline(time.Now().Add(time.Second))
	c.Write(b)
}

// Reload has the service with this process id load its configuration (SIGHUP), and returns when the
// new one is in force, with the keys that take effect at its next start only. The error, of code 78,
// says why the old one stays; of code 75, that the service did not answer.
func Reload(ctx context.Context, pid int) (needRestart []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, reloadTime)
	defer cancel()
	c, err := net.ListenUnixgram("unixgram", reportAddress(pid))
	if err != nil {
		return nil, exit.Errorf(exit.TempFail, "somebody else reloads it, perhaps: try again", "waiting for the service: %w", err)
	}
	defer c.Close()
	if err := withSender(c); err != nil {
		return nil, exit.Errorf(exit.Software, "", "waiting for the service: %w", err)
	}
	context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	if err := isOurs(pid); err != nil {
		return nil, err
	}
	asked := monotonic()
	if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
		return nil, exit.Errorf(exit.TempFail, "is the service running? systemctl status sendas-milter sendas-token", "asking process %d to load its configuration: %w", pid, err)
	}
	for {
		l, from, err := receive(c)
		switch {
		case err != nil:
			return nil, exit.Errorf(exit.TempFail, "its log says what it is at: journalctl -u sendas-milter -u sendas-token", "process %d does not say that the new configuration is in force: %w", pid, err)
		case from != pid || l.Began < asked: // a stranger's word, or about what was asked before
			continue
		case l.Error != "":
			return nil, exit.Errorf(exit.Config, "", "the new configuration is not used, the old one stays in force: %s", strings.TrimRight(l.Error, "\n"))
		}
		return l.Restart, nil
	}
}

// isOurs keeps a mistyped process id from ending another program: SIGHUP does that to most. A
// process that we may signal and not see is ours: the sandbox of a unit hides even the service from
// what systemd runs to reload it (ProtectProc=invisible with PrivateUsers=).
func isOurs(pid int) error {
	own, err := os.ReadFile("/proc/self/comm")
	other, hidden := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err == nil && hidden == nil && bytes.Equal(own, other) || hidden != nil && syscall.Kill(pid, 0) == nil {
		return nil
	}
	return exit.Errorf(exit.Usage, "type \"systemctl reload sendas-milter\" or \"systemctl reload sendas-token\"", "process %d is no service of sendas", pid)
}

// withSender has the kernel say who sent a datagram.
func withSender(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	return errors.Join(err, set)
}

// receive returns the next report and the process that sent it. What is none has the sender 0.
func receive(c *net.UnixConn) (l loadReport, from int, err error) {
	text, control := make([]byte, 128<<10), make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	n, oob, _, _, err := c.ReadMsgUnix(text, control)
	if err != nil {
		return l, 0, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:oob])
	if err != nil || len(messages) == 0 || json.Unmarshal(text[:n], &l) != nil {
		return l, 0, nil
	}
	cred, err := unix.ParseUnixCredentials(&messages[0])
	if err != nil {
		return l, 0, nil
	}
	return l, int(cred.Pid), nil
}
