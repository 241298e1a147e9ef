package main

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/token"
	"github.com/sendas/sendas/token/lease"
	"github.com/sendas/sendas/token/ledger"
)

const retryYAML = `tenant:
  id: contoso.onmicrosoft.com
  domains: [contoso.com]
  permissions_file: permissions.csv
  endpoints: {authority: "%s", ca_file: authority.pem}
credentials:
  relay-app: {client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab, client_secret_file: app.secret}
mailboxes:
  - {address: erp@contoso.com, credential: relay-app, send_as: [billing@contoso.com], limits: {messages: 30/1s}}
clients:
  - {name: all, networks: [10.0.0.0/8], from: erp@contoso.com}
token: {listen: "unix:%s"}
`

const permissions = "Kind,Mailbox,Address\nDomain,,contoso.com\nAlias,erp@contoso.com,erp@contoso.com\n"

// deniedSite is a token service whose mailbox erp@contoso.com was denied billing@contoso.com so
// often that its mail is held.
type deniedSite struct {
	file   string // the configuration
	leases *lease.Lessor
	desk   *token.Desk
}

const deniedReply = "554 5.2.252 SendAsDenied; erp@contoso.com not allowed to send as billing@contoso.com"

// send sends a message as far as the look-up lets it.
func (s *deniedSite) send(t *testing.T, verdict string) lease.Result {
	t.Helper()
	c := lease.Caller{PID: -1}
	r := s.leases.Lease(t.Context(), c, "billing@contoso.com")
	if r.Status == lease.OK {
		for _, line := range []string{"235 2.7.0 Authentication successful", "250 2.1.0 Sender OK", "250 2.1.5 Recipient OK", "354 Start mail input", verdict} {
			s.leases.Reply(t.Context(), c, line)
		}
	}
	return r
}

func startDenied(t *testing.T) *deniedSite {
	t.Helper()
	entra := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"token_type":"Bearer","expires_in":3599,"ext_expires_in":3599,"access_token":"eyJ0eXAiOiJKV1QifQ.c2VjcmV0.c2ln"}`)
	}))
	t.Cleanup(entra.Close)
	dir := t.TempDir()
	configtest.WriteFile(t, filepath.Join(dir, "app.secret"), "hunter2-the-secret\n", 0o600)
	configtest.WriteFile(t, filepath.Join(dir, "permissions.csv"), permissions, 0o600)
	configtest.WriteFile(t, filepath.Join(dir, "authority.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: entra.Certificate().Raw})), 0o644)
	socket := filepath.Join(dir, "credentials")
	s := &deniedSite{file: configtest.WriteFile(t, filepath.Join(dir, "sendas.yaml"), fmt.Sprintf(retryYAML, entra.URL, socket), 0o600)}
	log := slog.New(slog.DiscardHandler)
	metrics := lease.NewMetrics(prometheus.NewRegistry())
	ctx, cancel := context.WithCancel(context.Background())
	s.leases = lease.NewLessor(ledger.NewMemory(), metrics, log)
	s.desk = token.NewDesk(ctx, s.leases, metrics, log)
	s.load(t)
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &lease.SocketmapServer{Maps: s.leases.Maps(), Admin: s.leases.AdminMaps(), Log: log, Metrics: metrics}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, ln) }()
	t.Cleanup(func() { cancel(); <-done; s.desk.Wait() })
	for i := 0; s.send(t, deniedReply).Status == lease.OK; i++ {
		if i > 20 {
			t.Fatal("it is offered again and again")
		}
	}
	return s
}

func (s *deniedSite) load(t *testing.T) {
	t.Helper()
	c, err := config.Load(s.file, config.SkipFiles)
	if err == nil {
		err = useSetup(s.desk, c)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestRetry(t *testing.T) {
	s := startDenied(t)
	const atOnce = "type \"postqueue -f\" to make Postfix try at once\n"
	for _, tc := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"erp@contoso.com", "billing@contoso.com"}, exit.OK, "one message of billing@contoso.com tries again as erp@contoso.com\n" + atOnce},
		{[]string{"erp@contoso.com"}, exit.OK, "one message of billing@contoso.com tries again as erp@contoso.com\n" + atOnce},
		{[]string{"erp@contoso.com", "erp@contoso.com"}, exit.OK, "nothing of erp@contoso.com is kept back\n"},
		{[]string{"Erp@Contoso.COM", "Billing@contoso.com"}, exit.OK, "one message of billing@contoso.com tries again as Erp@Contoso.COM\n" + atOnce}, // as it is typed
		{[]string{"nobody@contoso.com"}, exit.Usage, "sendas: error: nobody@contoso.com is no mailbox"},
		{[]string{"erp@contoso.com", "nobody@contoso.com"}, exit.Usage, "sendas: error: nobody@contoso.com is no mailbox"},
		{nil, exit.Usage, "sendas: error: accepts between 1 and 2 arg(s), received 0\n"},
	} {
		var out, words bytes.Buffer
		code := run(append([]string{"retry", "-c", s.file}, tc.args...), &out, &words)
		if got := out.String() + words.String(); code != tc.code || !strings.HasPrefix(got, tc.want) {
			t.Errorf("retry %q: %d, %s, want %d, %s", tc.args, code, got, tc.code, tc.want)
		}
	}
	if r := s.send(t, deniedReply); r.Status != lease.OK {
		t.Errorf("the try: %v", r)
	}
	if r := s.send(t, deniedReply); r.Status != lease.Temp || !strings.Contains(r.Value, "sendas retry erp@contoso.com billing@contoso.com") {
		t.Errorf("the message after it: %v", r)
	}
}

// TestRetryWithoutService: a service that does not run, or knows no such question, is said.
func TestRetryWithoutService(t *testing.T) {
	dir := t.TempDir()
	configtest.WriteFile(t, filepath.Join(dir, "app.secret"), "hunter2-the-secret\n", 0o600)
	configtest.WriteFile(t, filepath.Join(dir, "permissions.csv"), permissions, 0o600)
	socket := filepath.Join(dir, "credentials")
	file := configtest.WriteFile(t, filepath.Join(dir, "sendas.yaml"), fmt.Sprintf(retryYAML, "https://login.microsoftonline.com", socket), 0o600)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	configtest.WriteFile(t, file, strings.Replace(string(text), ", ca_file: authority.pem", "", 1), 0o600)
	retry := func(want string) {
		t.Helper()
		var out, words bytes.Buffer
		if code := run([]string{"retry", "-c", file, "erp@contoso.com"}, &out, &words); code != exit.TempFail || !strings.Contains(words.String(), want) {
			t.Errorf("%d, %s, want %d, %s", code, &words, exit.TempFail, want)
		}
	}
	retry("systemctl status sendas-token")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	older := &lease.SocketmapServer{Maps: map[string]lease.Map{}, Peers: []uint32{uint32(os.Getuid()) + 1}, Log: slog.New(slog.DiscardHandler)}
	done := make(chan error, 1)
	go func() { done <- older.Serve(ctx, ln) }()
	retry("it sends this user away")
	cancel()
	<-done
}

// TestNewPermissions: a new file of permissions lets one message of each sender that was denied try
// again; the same file does not.
func TestNewPermissions(t *testing.T) {
	s := startDenied(t)
	s.load(t)
	if r := s.send(t, deniedReply); r.Status != lease.Temp {
		t.Errorf("with the same file: %v", r)
	}
	configtest.WriteFile(t, filepath.Join(filepath.Dir(s.file), "permissions.csv"), permissions+"SendAs,erp@contoso.com,billing@contoso.com\n", 0o600)
	s.load(t)
	for i := range 3 {
		if r := s.send(t, "250 2.0.0 OK <1@x>"); r.Status != lease.OK {
			t.Errorf("with a new file, message %d: %v", i, r)
		}
	}
}
