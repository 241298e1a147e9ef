package main

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/cmd/internal/status"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/milter"
	"github.com/sendas/sendas/milter/quota"
	"github.com/sendas/sendas/token"
	"github.com/sendas/sendas/token/lease"
	"github.com/sendas/sendas/token/ledger"
)

const deskYAML = `tenant:
  id: contoso.onmicrosoft.com
  domains: [contoso.com, contoso.de]
  endpoints: {authority: "%s", ca_file: authority.pem}
credentials:
  relay-app: {client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab, client_secret_file: app.secret, secret_expires: 2126-05-31}
  spare: {client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab, client_secret_file: app.secret}
mailboxes:
  - {address: erp@contoso.com, credential: relay-app, limits: {messages: 5/m}}
  - {address: "*@contoso.de", credential: relay-app}
notices: erp@contoso.com
clients:
  - {name: all, networks: [10.0.0.0/8], from: erp@contoso.com}
milter: {http: "%s"}
token: {http: "%s"}
`

// deskConfig writes a configuration with these services, and its secret.
func deskConfig(t *testing.T, authority, milterAt, tokenAt string) string {
	t.Helper()
	dir := t.TempDir()
	configtest.WriteFile(t, filepath.Join(dir, "app.secret"), "hunter2-the-secret\n", 0o600)
	return configtest.WriteFile(t, filepath.Join(dir, "sendas.yaml"), fmt.Sprintf(deskYAML, authority, milterAt, tokenAt), 0o600)
}

// TestStatusOfDesk: from Entra's answer to what a person reads.
func TestStatusOfDesk(t *testing.T) {
	entra := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"token_type":"Bearer","expires_in":3599,"ext_expires_in":3599,"access_token":"eyJ0eXAiOiJKV1QifQ.c2VjcmV0.c2ln"}`)
	}))
	defer entra.Close()
	milterService := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" { // it is up, and says no more
			http.NotFound(w, r)
		}
	}))
	defer milterService.Close()
	server := httptest.NewUnstartedServer(nil)
	addr := server.Listener.Addr().String()
	file := deskConfig(t, entra.URL, milterService.Listener.Addr().String(), addr)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: entra.Certificate().Raw})
	configtest.WriteFile(t, filepath.Join(filepath.Dir(file), "authority.pem"), string(ca), 0o644)
	c, err := config.Load(file, config.SkipFiles)
	if err != nil {
		t.Fatal(err)
	}

	log := slog.New(slog.DiscardHandler)
	metrics := lease.NewMetrics(prometheus.NewRegistry())
	ctx, cancel := context.WithCancel(t.Context())
	leases := lease.NewLessor(ledger.NewMemory(), metrics, log)
	desk := token.NewDesk(ctx, leases, metrics, log)
	if err := useSetup(desk, c); err != nil {
		t.Fatal(err)
	}
	now := service.Config{OK: true}
	server.Config.Handler = serveAll(status.TokenPages(&status.Site{Addr: addr, Version: version, State: func() service.Config { return now },
		Other: func() string { return c.Milter.HTTP }, Tenant: func() string { return c.Tenant.ID }, Client: service.NewLocalClient()}, func(ctx context.Context) *lease.Status {
		return desk.Status(ctx, version, started)
	}))
	server.Start()
	defer server.Close()
	defer func() { cancel(); desk.Wait() }()
	if got := leases.Lease(t.Context(), lease.Caller{PID: -1}, "erp@contoso.com"); got.Status != lease.OK {
		t.Fatalf("look-up: %+v", got)
	}
	leases.Reply(t.Context(), lease.Caller{PID: -1}, "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox.")
	leases.Lease(t.Context(), lease.Caller{PID: -2}, "alice@contoso.de")
	var stdout, stderr bytes.Buffer
	if code := run([]string{"status", "-c", file}, &stdout, &stderr); code != exit.OK {
		t.Fatalf("exit code %d: %s", code, &stderr)
	}
	for _, want := range []string{
		"token service  up, version devel, for ", "milter         up, at ",
		"\ncredential relay-app (client_credentials)\n", "  token         live, got ", "ends in 59 min\n",
		"  last refresh  succeeded, ", "  next refresh  in ", "  secret        ends on 2126-05-31, in ",
		"\ncredential spare (client_credentials)\n  token         none: no mailbox uses this credential\n  secret        its end is not known: write secret_expires",
		"erp@contoso.com  relay-app   0 of 3  0        0 of 5/m, 5 left   0 of 10,000/d, 10,000 left  auth-disabled (535), ",
		"*@contoso.de     relay-app   1       0        each sender's own  each sender's own           none yet\n",
		" 1. Exchange Online refuses erp@contoso.com (auth-disabled), and its mail waits\n    SMTP AUTH is switched off, which counts",
	} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("no %q in\n%s", want, &stdout)
		}
	}
	for _, secret := range []string{"eyJ0", "hunter2", "alice"} {
		if strings.Contains(stdout.String(), secret) {
			t.Errorf("%q in\n%s", secret, &stdout)
		}
	}
}

// TestPagesOfServices: the pages and /status of both services, as ServeHTTP serves them.
func TestPagesOfServices(t *testing.T) {
	c, err := config.Load(deskConfig(t, "https://login.microsoftonline.com", "127.0.0.1:9725", "127.0.0.1:9726"), config.SkipFiles)
	if err != nil {
		t.Fatal(err)
	}
	c.Tenant.Endpoints.CAFile = ""
	log := slog.New(slog.DiscardHandler)
	metrics := lease.NewMetrics(prometheus.NewRegistry())
	ctx, cancel := context.WithCancel(t.Context())
	desk := token.NewDesk(ctx, lease.NewLessor(ledger.NewMemory(), metrics, log), metrics, log)
	cancel() // nothing is asked of Entra
	if err := useSetup(desk, c); err != nil {
		t.Fatal(err)
	}
	defer desk.Wait()
	_, ok, at := service.NewRegistry(version)
	r := &service.Reloader{Ok: ok, At: at}
	r.Loaded()
	r.Failed()
	quotas := quota.NewDesk(quota.New())
	quotas.Use(c.ClientQuotas())
	of := func(addr, other string) *status.Site {
		return &status.Site{Addr: addr, Version: version, State: r.Config, Other: func() string { return other }, Tenant: func() string { return c.Tenant.ID }, Client: service.NewLocalClient()}
	}
	for name, h := range map[string]http.Handler{
		"token service": serveAll(status.TokenPages(of("127.0.0.1:9726", "127.0.0.1:9725"), func(ctx context.Context) *lease.Status { return desk.Status(ctx, version, started) })),
		"milter":        serveAll(status.MilterPages(of("127.0.0.1:9725", "127.0.0.1:9726"), func() *milter.Status { return milterStatus(new(milter.Tally), quotas, nil, nil, c) })),
	} {
		page := askPage(t, h, "localhost:9", "/").Body.String()
		if s := strings.Join(strings.Fields(markup.ReplaceAllString(page, "")), " "); !strings.Contains(s, c.Tenant.ID) || !strings.Contains(s, "The new configuration is wrong") || !strings.Contains(page, `href="http://localhost:972`) {
			t.Errorf("%s: %s", name, page)
		}
		w := askPage(t, h, "localhost:9", "/status")
		for _, want := range []string{`"version": "devel"`, fmt.Sprintf("\"loaded_at\": %q,\n    \"ok\": false", r.Config().LoadedAt.Format(time.RFC3339))} {
			if !strings.Contains(w.Body.String(), want) {
				t.Errorf("%s: no %s in %s", name, want, w.Body)
			}
		}
		if w := askPage(t, h, "localhost:9", "/other"); w.Code != http.StatusNotFound {
			t.Errorf("%s: /other: %d", name, w.Code)
		}
	}
}

// askPage fetches from a handler as a client that calls it by that name.
func askPage(t *testing.T, h http.Handler, host, path string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "http://"+host+path, nil)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// serveAll serves pages as the service does.
func serveAll(pages map[string]http.Handler) http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range pages {
		mux.Handle(pattern, h)
	}
	return mux
}

var markup = regexp.MustCompile(`(?s)<(style|script|svg)[^>]*>.*?</(style|script|svg)>|<[^>]*>`)
