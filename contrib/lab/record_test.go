package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// asRoot types a command of sendas as the administrator does.
func asRoot(ctx context.Context, s *Site, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.Milter.binary, append(args, "--config", s.Config)...)
	cmd.Env = append(os.Environ(), "MAIL_CONFIG="+s.Postfix.ConfigDir())
	out, err := cmd.Output()
	if e, ok := err.(*exec.ExitError); ok {
		err = fmt.Errorf("%w: %s", err, e.Stderr)
	}
	return string(out), err
}

// foundTale is what "sendas find ID --json" says of a message.
type foundTale struct {
	ID      string `json:"id"`
	State   string `json:"state"`
	Message struct {
		Client     string   `json:"client"`
		PTR        string   `json:"client_ptr"`
		Identity   string   `json:"identity"`
		Recipients []string `json:"recipients"`
		MessageID  string   `json:"message_id"`
	} `json:"message"`
	Attempts []struct {
		Class    string `json:"class"`
		Reply    string `json:"reply"`
		Accepted int    `json:"recipients_accepted"`
	} `json:"attempts"`
	Untied []any `json:"untied_attempts"`
	Log    []any `json:"postfix_log"`
}

// waitFound asks for a message until it has a state.
func waitFound(ctx context.Context, s *Site, id, state string) (x foundTale, err error) {
	err = poll(ctx, func() (bool, error) {
		out, err := asRoot(ctx, s, "find", id, "--json")
		if err != nil {
			if strings.Contains(err.Error(), "no message is recorded") || strings.Contains(err.Error(), "nothing was recorded") {
				return false, nil // not written yet
			}
			return false, err
		}
		var list []foundTale
		if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 {
			return false, fmt.Errorf("sendas find %s: %s, %v", id, out, err)
		}
		x = list[0]
		return x.State == state, nil
	})
	if err != nil {
		err = fmt.Errorf("message %s is %+v: %w", id, x, err)
	}
	return x, err
}

// checkFound: the administrator finds the one message that a printer sent, and its story, and nobody
// else may look.
func checkFound(t *testing.T, ctx context.Context, s *Site, id string) {
	t.Helper()
	x, err := waitFound(ctx, s, id, "sent")
	if err != nil {
		t.Error(err)
		return
	}
	if x.Message.Client != "printers" || x.Message.PTR != "mfp3.local" || x.Message.Identity != "scan@contoso.com" || len(x.Message.Recipients) != 1 || strings.ContainsAny(x.Message.Recipients[0], "<>") ||
		len(x.Attempts) != 1 || x.Attempts[0].Class != "accepted" || !strings.Contains(x.Attempts[0].Reply, "<"+x.Message.MessageID+">") || len(x.Untied) != 0 || len(x.Log) < 3 {
		t.Errorf("the story is %+v", x)
	}
	for _, args := range [][]string{{"--to", x.Message.Recipients[0]}, {"--from", "scan@contoso.com", "--verdict", "sent"}, {"--client", "10.2.0.9", "--since", "1h"}} {
		out, err := asRoot(ctx, s, append([]string{"find"}, args...)...)
		if err != nil || strings.Count(out, "\n") != 1 || !strings.Contains(out, id+"  sent  printers") {
			t.Errorf("sendas find %v: %q, %v", args, out, err)
		}
	}
	if out, err := asRoot(ctx, s, "report", "--csv"); err != nil || !strings.Contains(out, "client,printers,1,1,0,0,") || !strings.Contains(out, "mailbox,scan@contoso.com,1,1,0,0,") {
		t.Errorf("sendas report: %q, %v", out, err)
	}
	for _, half := range []struct {
		file string
		uid  int
	}{{"counts/record.db", milterUser}, {"state/record.db", tokenUser}} {
		for _, suffix := range []string{"", "-wal", "-shm"} { // also after root has read them
			if bad := belongs(filepath.Join(s.Dir, half.file+suffix), half.uid); bad != "" {
				t.Error(bad)
			}
		}
	}
}

// belongs says what is wrong with who may read a file; "" for nothing.
func belongs(path string, uid int) string {
	info, err := os.Stat(path)
	if err != nil {
		return err.Error()
	}
	if st := info.Sys().(*syscall.Stat_t); int(st.Uid) != uid || info.Mode().Perm() != 0o600 {
		return fmt.Sprintf("%s belongs to user %d and has mode %v", path, st.Uid, info.Mode())
	}
	return ""
}
