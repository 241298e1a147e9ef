package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http/httptest"
	"os"
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
	"github.com/sendas/sendas/contrib/exosim/directory"
	simulated "github.com/sendas/sendas/contrib/exosim/entra"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/token"
	"github.com/sendas/sendas/token/lease"
	"github.com/sendas/sendas/token/ledger"
)

const renewYAML = `tenant:
  id: contoso.onmicrosoft.com
  domains: [contoso.com]
  endpoints: {authority: "%[1]s", graph: "%[1]s", ca_file: authority.pem}
credentials:
  relay-app: {client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab, certificate_file: relay-app.pem, renew: 10d, object_id: 0b1ec700-1a2b-4c3d-8e4f-0123456789ab}
  by-hand: {client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ac, certificate_file: relay-app.pem}
  with-secret: {client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ad, client_secret_file: app.secret}
mailboxes:
  - {address: erp@contoso.com, credential: relay-app}
clients:
  - {name: all, networks: [10.0.0.0/8], from: erp@contoso.com}
token: {listen: "unix:%[2]s/credentials", http: "%[3]s", state_dir: "%[2]s/state"}
milter: {http: ""}
`

// certificate writes what "openssl req -x509" makes.
func certificate(t *testing.T, file string, life time.Duration) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "relay"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	configtest.WriteFile(t, file, string(text), 0o600)
}

// renewSite is a token service whose app has a certificate for twenty days.
type renewSite struct {
	file  string // the configuration
	dir   string
	login *simulated.Login
}

func startRenew(t *testing.T) *renewSite {
	t.Helper()
	s := &renewSite{dir: t.TempDir()}
	certificate(t, filepath.Join(s.dir, "relay-app.pem"), 20*24*time.Hour)
	configtest.WriteFile(t, filepath.Join(s.dir, "app.secret"), "hunter2-the-secret\n", 0o600)
	d := directory.Config{Tenant: "contoso.onmicrosoft.com", Apps: []directory.App{{ClientID: "5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab", ObjectID: "0b1ec700-0000-4000-8000-000000000001",
		ApplicationObjectID: "0b1ec700-1a2b-4c3d-8e4f-0123456789ab", CertificateFile: filepath.Join(s.dir, "relay-app.pem"), Model: directory.ModelRBAC}}}
	if err := d.Complete(); err != nil {
		t.Fatal(err)
	}
	var c simulated.Config
	if err := c.Complete(d.HasUser); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.login, err = simulated.New(c, directory.New(d), mathrand.New(mathrand.NewPCG(1, 2))); err != nil {
		t.Fatal(err)
	}
	web, page := httptest.NewTLSServer(s.login.Handler()), httptest.NewUnstartedServer(nil)
	t.Cleanup(func() { web.Close(); s.login.Stop() })
	configtest.WriteFile(t, filepath.Join(s.dir, "authority.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw})), 0o644)
	addr := page.Listener.Addr().String()
	s.file = configtest.WriteFile(t, filepath.Join(s.dir, "sendas.yaml"), fmt.Sprintf(renewYAML, web.URL, s.dir, addr), 0o600)

	loaded, err := config.Load(s.file, config.CheckToken)
	if err != nil {
		t.Fatal(err)
	}
	log, metrics := slog.New(slog.DiscardHandler), lease.NewMetrics(prometheus.NewRegistry())
	ctx, cancel := context.WithCancel(context.Background())
	leases := lease.NewLessor(ledger.NewMemory(), metrics, log)
	desk := token.NewDesk(ctx, leases, metrics, log)
	if err := useSetup(desk, loaded); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(s.dir, "credentials"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &lease.SocketmapServer{Maps: leases.Maps(), Admin: adminMaps(leases, desk), Log: log, Metrics: metrics}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, ln) }()
	page.Config.Handler = serveAll(status.TokenPages(&status.Site{Addr: addr, Version: version, State: func() service.Config { return service.Config{OK: true} },
		Other: func() string { return "" }, Tenant: func() string { return loaded.Tenant.ID }, Client: service.NewLocalClient()}, func(ctx context.Context) *lease.Status {
		return desk.Status(ctx, version, started)
	}))
	page.Start()
	t.Cleanup(func() { cancel(); <-done; desk.Wait(); page.Close() })
	return s
}

// TestRenew: the commands, and what the service then says and has on its disk.
func TestRenew(t *testing.T) {
	s := startRenew(t)
	const client = "5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab"
	for _, tc := range []struct {
		args []string
		code int
		want string // a pattern, in what is printed
		keys int    // that the app has afterwards
	}{
		{[]string{"renew", "nobody"}, exit.Usage, `there is no credential "nobody"\n.*by-hand, relay-app, with-secret`, 1},
		{[]string{"renew", "with-secret"}, exit.Usage, `has no certificate`, 1},
		{[]string{"renew", "by-hand"}, exit.Config, `write renew: 30d and object_id:`, 1},
		{[]string{"renew", "relay-app", "--dry-run"}, exit.OK, `relay-app\.pem, ends on \d{4}-\d\d-\d\d\nEntra gives a token for Microsoft Graph by it\na new one would be made now, valid for 20 days; .*\nnothing was changed\n`, 1},
		{[]string{"status"}, exit.OK, `certificate   ends on .*\n  renewal       the next one is made in `, 1},
		{[]string{"renew", "relay-app"}, exit.OK, `it is in use, and ends on .*\nthe one of certificate_file: stays with the app`, 2},
		{[]string{"status"}, exit.OK, `renewal       the present one was made by sendas; the next one is made in `, 2},
		{[]string{"renew", "relay-app"}, exit.OK, `the former one is taken from the app in a day`, 3},
		{[]string{"check"}, exit.OK, ``, 3},
	} {
		var out, words bytes.Buffer
		code := run(append(tc.args, "-c", s.file), &out, &words)
		if text := out.String() + words.String(); code != tc.code || !regexp.MustCompile(tc.want).MatchString(text) || len(s.login.Keys(client)) != tc.keys {
			t.Errorf("%q: exit code %d, the app has %d certificates, want %d, %d and %q:\n%s", tc.args, code, len(s.login.Keys(client)), tc.code, tc.keys, tc.want, text)
		}
	}
	// What Graph refuses is told with what to do, at once and afterwards.
	s.login.SetFaults(simulated.Faults{GraphStatus: 403, GraphCode: "Authorization_RequestDenied", GraphMessage: "Insufficient privileges to complete the operation."})
	for _, command := range []string{"renew relay-app", "status"} {
		var out, words bytes.Buffer
		run(append(strings.Fields(command), "-c", s.file), &out, &words)
		if text := out.String() + words.String(); !strings.Contains(text, "Authorization_RequestDenied") || !strings.Contains(text, "Application.ReadWrite.OwnedBy") {
			t.Errorf("%s:\n%s", command, text)
		}
	}
	err := filepath.WalkDir(filepath.Join(s.dir, "state"), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is open to others: %v, %v", path, info.Mode(), err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
