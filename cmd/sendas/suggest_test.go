package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/internal/record"
)

// recorded makes a milter's half of a record with some messages.
func recorded(t *testing.T, file string, list ...*record.Message) {
	t.Helper()
	k := record.NewKeeper(record.MilterHalf, file, record.Settings{On: true, Days: 365, Size: 100 << 20}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	done := make(chan struct{})
	go func() { k.Run(); close(done) }()
	for _, m := range list {
		k.Message(m)
	}
	k.Close()
	<-done
}

// TestSuggest: what was recorded becomes a configuration that check finds good, by what is typed; and
// who is refused by one that does its work gets the line that lets it in.
func TestSuggest(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	message := func(age time.Duration, addr, name, from string) *record.Message {
		return &record.Message{Time: now.Add(-age), Addr: netip.MustParseAddr(addr), PTR: name, Sender: from, From: from, Action: "reject", Reason: "no-client", Observed: true,
			Recipients: []string{"anna@contoso.com"}, Count: 1}
	}
	type typed struct {
		code           int
		stdout, stderr string
	}
	sendas := func(args ...string) typed {
		var out, err bytes.Buffer
		code := run(args, &out, &err)
		return typed{code, out.String(), err.String()}
	}
	watch := configtest.WriteFile(t, filepath.Join(dir, "sendas.yaml"), "milter: {mode: observe, store: bolt:milter.db}\n", 0o644)
	if got := sendas("suggest", "-c", watch); got.code != exit.Failed || !strings.Contains(got.stderr, "nothing was recorded yet") {
		t.Errorf("without a record: %+v", got)
	}
	recorded(t, filepath.Join(dir, "record.db"), message(20*24*time.Hour, "10.9.0.9", "old.contoso.com", "old@contoso.com"),
		message(time.Hour, "10.2.0.9", "mfp3.contoso.com", "scan@contoso.com"), message(time.Hour, "10.2.0.9", "mfp3.contoso.com", "scanner3@floor"))

	got := sendas("suggest", "-c", watch, "--since", "14d")
	if got.code != exit.OK || !strings.Contains(got.stdout, "  - name: mfp\n") || strings.Contains(got.stdout, "old@") || !strings.HasPrefix(got.stdout, "milter: {mode: observe,") {
		t.Fatalf("suggest: %+v", got)
	}
	if !strings.Contains(got.stderr, "of 2 messages by 1 devices and logins: 1 clients, 1 mailboxes") {
		t.Errorf("suggest says %s", got.stderr)
	}
	fresh := configtest.WriteFile(t, filepath.Join(dir, "new.yaml"), got.stdout, 0o644)
	if got := sendas("check", "-c", fresh); got.code != exit.OK || !strings.Contains(got.stderr, "mailboxes[0].credential: the credential is missing") {
		t.Errorf("check of it: %+v", got)
	}
	if got := sendas("explain", "-c", fresh, "--client", "10.2.0.9", "--from", "scanner3@floor"); !strings.Contains(got.stdout, "identity  scan@contoso.com") {
		t.Errorf("explain by it: %+v", got)
	}
	if got := sendas("suggest", "-c", watch); !strings.Contains(got.stdout, "old@contoso.com") {
		t.Errorf("without --since: %+v", got)
	}

	strict := configtest.WriteFile(t, filepath.Join(dir, "strict.yaml"), configtest.SmallConfig+"milter: {store: bolt:milter.db}\n", 0o644)
	if err := os.WriteFile(filepath.Join(dir, "relay-app.secret"), []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got = sendas("suggest", "-c", strict, "--refused")
	line := "  - {name: old, networks: [10.9.0.9], senders: [scan@contoso.com], from: scan@contoso.com}\n"
	if got.code != exit.OK || !strings.Contains(got.stdout, line) || strings.Contains(got.stdout, "10.2.0.9") || strings.Contains(got.stdout+got.stderr, "hunter2") {
		t.Errorf("suggest --refused: %+v", got)
	}
	let := configtest.WriteFile(t, filepath.Join(dir, "let.yaml"), strings.Replace(configtest.SmallConfig, "clients:\n", "clients:\n"+line, 1)+"milter: {store: bolt:milter.db}\n", 0o644)
	if got := sendas("suggest", "-c", let, "--refused"); got.code != exit.OK || got.stdout != "" || !strings.Contains(got.stderr, "nobody is refused") {
		t.Errorf("once it is let in: %+v", got)
	}

	for _, tc := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--since", "yesterday"}, exit.Usage, `"yesterday" is no time; write 2h, 3d`},
		{[]string{"--wait", "soon"}, exit.Usage, "--wait"}, {[]string{"--wait", "-1m"}, exit.Usage, "--wait: -1m0s is no time to wait"},
		{[]string{"--since", "1s"}, exit.Failed, "no message was recorded in that time"},
		{[]string{"-c", strict, "--domain", "contoso.com"}, exit.Usage, "has tenant.domains already"},
		{[]string{"-c", filepath.Join(dir, "nowhere.yaml")}, exit.Config, "does not exist"},
	} {
		if got := sendas(append([]string{"suggest", "-c", watch}, tc.args...)...); got.code != tc.code || !strings.Contains(got.stderr, tc.want) {
			t.Errorf("%q: %s, want %d and %q", tc.args, fmt.Sprint(got), tc.code, tc.want)
		}
	}
}
