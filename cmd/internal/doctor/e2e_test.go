package doctor

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/cmd/internal/dns/dnstest"
	"github.com/sendas/sendas/cmd/internal/doctor/plugin"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/finding/findingtest"
	"github.com/sendas/sendas/cmd/internal/postfix"
	"github.com/sendas/sendas/cmd/internal/postfix/postfixtest"
	"github.com/sendas/sendas/contrib/exosim"
	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/smtp"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/milter"
	"github.com/sendas/sendas/token/lease"
)

const (
	labClient = "5f2c0d3e-0000-4000-8000-000000000001"
	labSecret = "s3cr3t~in/the+lab"
)

// A clinic is a whole relay with a simulated Exchange Online: all that the doctor looks at is there
// and good. Postfix is its configuration, read by the real postconf(1).
type clinic struct {
	dir    string
	sim    *exosim.Server
	config string
	world  *world
	etc    string // Postfix's folder
}

// openClinic starts the simulator and both services.
func openClinic(t *testing.T, change func(*exosim.Config)) *clinic {
	t.Helper()
	dir := t.TempDir()
	c := &clinic{dir: dir, etc: filepath.Join(dir, "etc")}
	cfg := exosim.Config{CAFile: filepath.Join(dir, "ca.pem")}
	cfg.DirectoryConfig = exosim.DirectoryConfig{Domains: []string{"contoso.com"},
		Apps:      []directory.App{{ClientID: labClient, ObjectID: "0b1ec700-0000-4000-8000-000000000002", Secret: labSecret, Mailboxes: []string{"scan@contoso.com", "erp@contoso.com"}}},
		Mailboxes: []directory.Mailbox{{Address: "scan@contoso.com", SendAs: []string{"office@contoso.com"}}, {Address: "erp@contoso.com"}}}
	if change != nil {
		change(&cfg)
	}
	var err error
	if c.sim, err = exosim.Start(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.sim.Close)
	c.writeFiles(t)
	c.serve(t)
	c.world = RealWorld()
	c.world.resolver = dnstest.Fake{Records: map[string][]string{"IP smtp.office365.com": {"127.0.0.1"}, "IP smtp.hve.mx.microsoft": {"127.0.0.1"}}, Asked: map[string]int{}}
	c.world.dial, c.world.run = c.dial, c.run
	smtpd := postfixSmtpd()
	c.world.dialFrom = func(ctx context.Context, _ netip.Addr, addr string) (net.Conn, error) {
		return smtpd.dial(ctx, "tcp", addr)
	}
	c.world.etc = filepath.Join(dir, "queue", "etc")                                                   // nothing has changed since Postfix copied it
	c.world.account = func(string) (uint32, []uint32, error) { return uint32(os.Geteuid()), nil, nil } // nobody else can enter the folder of a test
	return c
}

// run asks the real postconf(1), and plays the Postfix that does not run.
func (c *clinic) run(ctx context.Context, name string, args ...string) (stdout, stderr string, err error) {
	if name == "postfix" || name == "postqueue" {
		return "", "", nil
	}
	return postfix.Run(ctx, name, args...)
}

// dial leads Microsoft's name to the simulator.
func (c *clinic) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	switch addr {
	case "smtp.office365.com:587":
		addr = c.sim.SubmissionAddr()
	case "smtp.hve.mx.microsoft:587":
		addr = c.sim.HVEAddr()
	}
	return (&net.Dialer{}).DialContext(ctx, network, addr)
}

func (c *clinic) writeFiles(t *testing.T) {
	t.Helper()
	sockets := filepath.Join(c.dir, "queue", "sendas")
	if err := os.MkdirAll(sockets, 0o755); err != nil {
		t.Fatal(err)
	}
	configtest.WriteFile(t, filepath.Join(c.dir, "queue", "etc", "resolv.conf"), "nameserver 127.0.0.53\n", 0o644)
	plugins := filepath.Join(c.dir, "sasl2")
	configtest.WriteFile(t, filepath.Join(plugins, plugin.Name), string(buildPlugin(t)), 0o644)
	configtest.WriteFile(t, filepath.Join(c.dir, "relay-app.secret"), labSecret+"\n", 0o600)
	health := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }))
	t.Cleanup(health.Close)
	port := health.URL[strings.LastIndexByte(health.URL, ':')+1:]
	yaml := strings.Replace(configtest.SmallConfig, "  domains:", "  endpoints: {authority: '"+c.sim.Authority()+"', ca_file: ca.pem}\n  domains:", 1) +
		fmt.Sprintf("milter: {listen: 'unix:%[1]s/milter', policy_listen: 'unix:%[1]s/policy', http: 'localhost:%[2]s'}\ntoken: {listen: 'unix:%[1]s/credentials', http: '127.0.0.1:%[2]s', state_dir: state}\n",
			sockets, port)
	c.config = configtest.WriteFile(t, filepath.Join(c.dir, "sendas.yaml"), yaml, 0o644)
	configtest.WriteFile(t, filepath.Join(c.dir, "state", "token.db"), "", 0o600)
	own := strings.ReplaceAll(postfixtest.OwnEntry(t), "/etc/ssl/certs/ca-certificates.crt", filepath.Join(c.dir, "ca.pem"))
	past := time.Now().Add(-time.Minute)
	file := configtest.WriteFile(t, filepath.Join(c.etc, "main.cf"), fmt.Sprintf("compatibility_level = 3.6\nmyhostname = relay.lan\nmessage_size_limit = 36700160\ninet_interfaces = all\nmynetworks = 127.0.0.0/8 10.0.0.0/8\nqueue_directory = %s\nimport_environment = MAIL_CONFIG { SASL_PATH = %s }\n%s",
		filepath.Join(c.dir, "queue"), plugins, postfixtest.MainCF(t)), 0o644)
	if err := os.Chtimes(file, past, past); err != nil {
		t.Fatal(err)
	}
	configtest.WriteFile(t, filepath.Join(c.etc, "master.cf"), postfixtest.MasterCF+own, 0o644)
}

// serve starts what listens on the sockets.
func (c *clinic) serve(t *testing.T) {
	t.Helper()
	cfg, err := config.Load(c.config, config.CheckToken)
	if err != nil {
		t.Fatal(err)
	}
	sockets := filepath.Join(c.dir, "queue", "sendas")
	log, metrics, sessions := slog.New(slog.DiscardHandler), milter.NewMetrics(prometheus.NewRegistry()), new(milter.Sessions)
	srv := &milter.Server{Log: log, Metrics: metrics, Sessions: sessions}
	srv.Use(cfg.Policy)
	early := &milter.PolicyServer{Log: log, Metrics: metrics, Sessions: sessions}
	early.Use(cfg.Policy)
	go srv.Serve(listenOn(t, filepath.Join(sockets, "milter")))
	go early.Serve(listenOn(t, filepath.Join(sockets, "policy")))
	go (&lease.SocketmapServer{Peers: []uint32{uint32(os.Geteuid()) + 1}, Log: log}).Serve(t.Context(), listenOn(t, filepath.Join(sockets, "credentials")))
}

// visit runs the doctor there, and looks for secrets in all that it says.
func (c *clinic) visit(t *testing.T, q Options) (d *Walk, out string, code int) {
	t.Helper()
	q.Folder = c.etc
	d, out, code = diagnose(t, c.config, q, c.world)
	secrets := []string{labSecret}
	for _, tok := range d.tokens {
		secrets = append(secrets, string(tok.Access), string(tok.Access)[len(tok.Access)-40:])
	}
	for _, s := range secrets {
		if strings.Contains(out, s) || strings.Contains(fmt.Sprintf("%+v", d.Checks), s) {
			t.Errorf("the report shows %.8s…:\n%s", s, out)
		}
	}
	return d, out, code
}

func TestDoctorWholeWay(t *testing.T) {
	c := openClinic(t, nil)
	d, out, code := c.visit(t, Options{})
	findingtest.WantGood(t, &d.Report)
	if code != exit.OK || !strings.Contains(out, "\nverdict: all is good; ") {
		t.Errorf("exit code %d, want %d:\n%s", code, exit.OK, out)
	}
	for _, id := range []string{"config.file", "postfix.sendas.smtp_reply_filter", "sasl.present", "sockets.milter", "sockets.policy", "sockets.credentials", "sockets.http.token.readyz",
		"credential.relay-app.secret", "credential.relay-app.clock", "credential.relay-app.token", "credential.relay-app.claim.audience", "submission.tls", "submission.postfix_trust",
		"mailbox.scan@contoso.com.auth", "mailbox.scan@contoso.com.mail_from", "mailbox.erp@contoso.com.mail_from"} {
		d.wantCheck(t, id, finding.OK)
	}
	for line := range strings.Lines(out) {
		if strings.TrimSpace(line) != "" && !strings.HasPrefix(line, "ok    ") && !strings.HasPrefix(line, "skip  ") && !strings.HasPrefix(line, "verdict: ") {
			t.Errorf("the report of a good site has the line %q", line)
		}
	}
	if n := len(c.sim.Messages()); n > 0 {
		t.Errorf("the doctor sent %d messages that nobody asked for", n)
	}
}

// TestDoctorHighVolume: an account of High Volume Email is walked to by its own way, with its own
// token and advice.
func TestDoctorHighVolume(t *testing.T) {
	const app, account = "5f2c0d3e-0000-4000-8000-000000000009", "notices@contoso.com"
	const objectID = "0b1ec700-0000-4000-8000-000000000009"
	for _, tc := range []struct {
		name   string
		roles  []string
		apps   []string
		scope  string
		id     string
		status finding.Status
		words  []string
	}{
		{"good", []string{"Mail.Send"}, []string{objectID}, "https://outlook.office.com/.default", "mailbox." + account + ".mail_from", finding.OK, nil},
		{"the permission of submission", []string{"SMTP.SendAsApp"}, []string{objectID}, "https://outlook.office.com/.default", "credential.hve-app.claim.permission", finding.Fail, []string{"its roles: SMTP.SendAsApp", "Grant admin consent"}},
		{"refused for it", []string{"SMTP.SendAsApp"}, []string{objectID}, "https://outlook.office.com/.default", "mailbox." + account + ".auth", finding.Skip, []string{"comes of the token's permission", "535 5.7.144"}},
		{"the scope of submission", []string{"Mail.Send"}, []string{objectID}, "https://outlook.office365.com/.default", "mailbox." + account + ".auth", finding.Fail, []string{"535 5.7.144", "https://outlook.office.com/.default"}},
		{"not on the list", []string{"Mail.Send"}, nil, "https://outlook.office.com/.default", "mailbox." + account + ".mail_from.1", finding.Fail, []string{"550 5.7.240", "Add-HVEAppAccess -Identity " + account}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := openClinic(t, func(cfg *exosim.Config) {
				cfg.HVE, cfg.Accounts = "127.0.0.1:0", []directory.Account{{Address: account, Apps: tc.apps}}
				cfg.Apps = append(cfg.Apps, directory.App{ClientID: app, ObjectID: objectID, Secret: labSecret, Roles: tc.roles})
			})
			text, err := os.ReadFile(c.config)
			if err != nil {
				t.Fatal(err)
			}
			yaml := strings.Replace(string(text), "credentials:\n", "credentials:\n  hve-app: {client_id: "+app+", client_secret_file: relay-app.secret}\n", 1) +
				"routes: [{name: bulk, type: hve, account: " + account + ", credential: hve-app, scope: '" + tc.scope + "'}]\n"
			configtest.WriteFile(t, c.config, yaml, 0o644)
			d, out, _ := c.visit(t, Options{Mailbox: account})
			d.wantCheck(t, tc.id, tc.status, tc.words...)
			if tc.status == finding.OK {
				d.wantCheck(t, "credential.hve-app.claim.permission", finding.OK, "Mail.Send")
				d.wantCheck(t, "credential.hve-app.claim.object_id", finding.OK, "Add-HVEAppAccess -Identity ACCOUNT -AppIds "+objectID)
				d.wantCheck(t, "route.bulk.tls", finding.OK)
			}
			if strings.Contains(out, "submission.tls") || strings.Contains(out, "New-ServicePrincipal -AppId") && tc.status == finding.OK {
				t.Errorf("the account of another service is walked to by submission's way:\n%s", out)
			}
		})
	}
}

// What goes wrong at Microsoft is found where it is, and the rest is looked at all the same.
func TestDoctorFindings(t *testing.T) {
	const scan = "mailbox.scan@contoso.com."
	for _, tc := range []struct {
		name  string
		spoil func(*testing.T, *clinic)
		id    string
		words []string
		code  int
	}{
		{"secret", func(_ *testing.T, c *clinic) {
			c.sim.SetApp(labClient, func(a *directory.App) { a.Secret = "another" })
		}, "credential.relay-app.token", []string{"AADSTS7000215", "relay-app.secret"}, exit.Failed},
		{"no service principal", func(_ *testing.T, c *clinic) {
			c.sim.SetApp(labClient, func(a *directory.App) { a.NotInExchange = true })
		}, scan + "auth", []string{"535 5.7.3", "New-ServicePrincipal"}, exit.Failed},
		{"SMTP AUTH off", func(_ *testing.T, c *clinic) { c.sim.SetSMTPAuthDisabled(true) }, scan + "auth",
			[]string{"535 5.7.139", "Set-CASMailbox scan@contoso.com -SmtpClientAuthenticationDisabled $false"}, exit.Failed},
		{"away", func(_ *testing.T, c *clinic) { c.sim.Exchange.SetFaults(smtp.Faults{RefuseConnect: true}) }, "submission.banner", []string{"421 4.3.2"}, exit.TempFail},
		{"Postfix without trust", func(t *testing.T, c *clinic) {
			configtest.WriteFile(t, filepath.Join(c.dir, "other.pem"), string(newTestCA(t).pem()), 0o644)
			c.editMaster(t, filepath.Join(c.dir, "ca.pem"), filepath.Join(c.dir, "other.pem"))
		}, "submission.postfix_trust", []string{"smtp_tls_CAfile"}, exit.Failed},
		{"Postfix without TLS", func(t *testing.T, c *clinic) {
			c.editMaster(t, "smtp_tls_security_level=secure", "smtp_tls_security_level=may")
		}, "postfix.sendas.smtp_tls_security_level", []string{"'sendas/unix/smtp_tls_security_level=secure'"}, exit.Failed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := openClinic(t, nil)
			tc.spoil(t, c)
			d, out, code := c.visit(t, Options{Mailbox: "scan@contoso.com"})
			d.wantCheck(t, tc.id, finding.Fail, tc.words...)
			if code != tc.code || !strings.Contains(out, "\nFAIL  ") {
				t.Errorf("exit code %d, want %d:\n%s", code, tc.code, out)
			}
			d.find(t, "dns.spf") // the last step
		})
	}
}

// editMaster changes master.cf.
func (c *clinic) editMaster(t *testing.T, old, by string) {
	t.Helper()
	file := filepath.Join(c.etc, "master.cf")
	b, err := os.ReadFile(file)
	if err != nil || !bytes.Contains(b, []byte(old)) {
		t.Fatalf("master.cf has no %q: %v", old, err)
	}
	configtest.WriteFile(t, file, strings.ReplaceAll(string(b), old, by), 0o644)
}
