package exosim

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/entra"
	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
	"github.com/sendas/sendas/contrib/exosim/smtp"
)

func TestLoadConfig(t *testing.T) {
	_, cert, _ := visitor.Certificate(t)
	file := filepath.Join(filepath.Dir(cert), "exosim.yaml")
	write(t, file, `
tenant_id: 11111111-2222-4333-8444-555555555555
domains: [contoso.com]
window: 6s
enforce_rate: delay
verdict_min: 500ms
ca_file: ca.pem
apps:
  - client_id: 5f2c0d3e-0000-4000-8000-000000000001
    object_id: 0b1ec700-0000-4000-8000-000000000002
    secret: not-a-secret
    secret_expires: 2030-01-02T03:04:05Z
    certificate_file: app.pem
    model: classic
    full_access: [erp@contoso.com]
    public: true
    multi_tenant: true
    redirect_uris: [http://localhost/done]
    federated: {subject: "system:serviceaccount:mail:relay"}
users:
  - {upn: erp@contoso.com, full_access: [scan@contoso.com], needs_mfa: true}
managed_identities:
  - {client_id: m1, object_id: m2, model: classic, mailboxes: ["*"], system_assigned: true}
  - {client_id: m3, object_id: m4, resource_id: /subscriptions/s/relay}
imds: 127.0.0.1:0
arc_keys: tokens
device_flow: {life: 1m, interval: 1s, slow_down: true, approve_as: ERP@contoso.com, approve_after: 2}
sign_in: {user: erp@contoso.com, require_login_hint: true, code_life: 1m}
refresh: {idle: 1h, frequency: 2h, rotate_strict: true}
refuse: {refresh_token: AADSTS53003}
mailboxes:
  - {address: erp@contoso.com, aliases: [sap@contoso.com], send_as: [billing@contoso.com], full: true}
`)
	c, err := LoadConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	a := c.Apps[0]
	for _, tc := range []struct{ what, got, want any }{
		{"tenant", c.Tenant, "contoso.onmicrosoft.com"}, {"window", c.Window, 6 * time.Second}, {"messages", c.Messages, 30},
		{"recipients", c.Recipients, 10000}, {"recipient window", c.RecipientWindow, 24 * time.Hour}, {"connections", c.Connections, 3},
		{"rate mode", c.EnforceRate, smtp.RateDelay}, {"verdict", c.VerdictMax, 500 * time.Millisecond}, {"idle", c.Idle, 5 * time.Minute},
		{"size", c.MaxSize, int64(157286400)}, {"CA file", c.CAFile, filepath.Join(filepath.Dir(file), "ca.pem")},
		{"certificate", a.CertificateFile, cert}, {"expiry", a.SecretExpires.UTC(), time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)},
		{"roles", fmt.Sprint(a.Roles), "[SMTP.SendAsApp]"}, {"Exchange id", a.ExchangeID, "0b1ec700-0000-4000-8000-000000000002"},
		{"public", a.Public && a.MultiTenant, true}, {"redirects", fmt.Sprint(a.RedirectURIs), "[http://localhost/done]"},
		{"federated", a.Federated, directory.Federated{Issuer: "https://kubernetes.default.svc.cluster.local", Subject: "system:serviceaccount:mail:relay", Audience: "api://AzureADTokenExchange"}},
		{"user", c.Users[0].NeedsMFA && len(c.Users[0].ObjectID) == 36, true}, {"identities are apps", fmt.Sprint(c.ManagedIdentities), "[app m1 app m3]"},
		{"identity", fmt.Sprint(c.ManagedIdentities[0].Roles, c.ManagedIdentities[0].SystemAssigned, c.ManagedIdentities[1].ResourceID), "[SMTP.SendAsApp] true/subscriptions/s/relay"},
		{"Arc", c.ArcKeys, filepath.Join(filepath.Dir(file), "tokens")}, {"device flow", c.DeviceFlow, entra.DeviceFlow{Life: time.Minute, Interval: time.Second, SlowDown: true, ApproveAs: "ERP@contoso.com", ApproveAfter: 2}},
		{"sign-in", c.SignIn, entra.SignIn{User: "erp@contoso.com", RequireLoginHint: true, CodeLife: time.Minute}}, {"refresh", c.Refresh, entra.RefreshPolicy{Idle: time.Hour, Frequency: 2 * time.Hour, RotateStrict: true}},
		{"refuse", c.Refuse["refresh_token"], "AADSTS53003"},
		{"full", c.Mailboxes[0].Full, true}, {"submission", c.Submission, "127.0.0.1:0"}, {"admin", c.Admin, ""},
	} {
		if tc.got != tc.want {
			t.Errorf("%s is %v, want %v", tc.what, tc.got, tc.want)
		}
	}
	s, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	s.Close() // again is nothing
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// inMX is what configurations of the MX endpoint have in common.
const inMX = "mx: 127.0.0.1:0\ndomains: [B.c]\n"

// inIMDS is what configurations of managed identities have in common.
const inIMDS = "imds: 127.0.0.1:0\nmanaged_identities: "

func TestBadConfigs(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"mailbxes: []", `unknown field "mailbxes"`},
		{"apps: [{secret: hunter2, secrt: x}]", `unknown field "secrt"`},
		{"window: 1", "Config.Window of type time.Duration"},
		{"window: -1s", "a time is negative"},
		{"messages: -1", "a limit is negative"},
		{"enforce_rate: yes please", `enforce_rate: "yes please" is not off, delay or reject`},
		{"send_as_text: 5.7.1", `send_as_text: "5.7.1" is not 5.2.252, 5.2.0 or 5.7.60`},
		{"ca_key_file: ca.key", "ca_key_file: needs ca_file beside it"},
		{"apps: [{secret: hunter2}]", `apps[0].client_id: "" is empty or listed twice`},
		{"apps: [{client_id: a}, {client_id: a}]", `apps[1].client_id: "a" is empty or listed twice`},
		{"apps: [{client_id: a, model: new}]", `apps[0].model: "new" is not classic or rbac`},
		{"mailboxes: [{address: erp}]", `mailboxes[0].address: "erp" is no address or listed twice`},
		{"mailboxes: [{address: a@b.c}, {address: A@b.c}]", `mailboxes[1].address: "A@b.c" is no address or listed twice`},
		{"domains: [contoso.com]\nmailboxes: [{address: a@b.c}]", `mailboxes[0].address: "a@b.c" is in none of the domains`},
		{"mailboxes: [{address: a@b.c, smtp_auth_disabled: true, smtp_auth_enabled: true}]", "exclude each other"},
		{"apps: [{client_id: a, redirect_uris: [localhost]}]", `apps[0].redirect_uris[0]: "localhost" is no URL`},
		{"apps: [{client_id: a, federated: {issuer: x}}]", "apps[0].federated.subject: needed with issuer and audience"},
		{"users: [{upn: erp}]", `users[0].upn: "erp" is no sign-in name or listed twice`},
		{"users: [{upn: a@b.c}, {upn: A@b.c}]", `users[1].upn: "A@b.c" is no sign-in name or listed twice`},
		{"sign_in: {user: a@b.c}", `sign_in.user: "a@b.c" is none of the users`},
		{"device_flow: {approve_as: a@b.c}", `device_flow.approve_as: "a@b.c" is none of the users`},
		{"device_flow: {interval: -1s}", "device_flow, sign_in, refresh: a time or number is negative"},
		{"device_flow: {approve_after: -1}", "device_flow, sign_in, refresh: a time or number is negative"},
		{"refresh: {idle: -1s}", "device_flow, sign_in, refresh: a time or number is negative"},
		{"refuse: {password: AADSTS53003}", `refuse.password: "password" is not one of the grants`},
		{"refuse: {refresh_token: AADSTS5}", `refuse.refresh_token: "AADSTS5" is no code of the table`},
		{"arc_keys: tokens", "managed_identities, arc_keys: need imds beside them"},
		{"managed_identities: [{client_id: m}]", "managed_identities, arc_keys: need imds beside them"},
		{inIMDS + "[{object_id: m}]", `managed_identities[0].client_id: "" is empty or listed twice`},
		{inIMDS + "[{client_id: m}, {client_id: m}]", `managed_identities[1].client_id: "m" is empty or listed twice`},
		{"apps: [{client_id: m}]\n" + inIMDS + "[{client_id: m}]", `managed_identities[0].client_id: "m" is empty or listed twice`},
		{inIMDS + "[{client_id: m, secret: hunter2}]", "a managed identity has none"},
		{inIMDS + "[{client_id: m, modell: rbac}]", `unknown field "modell"`},
		{inIMDS + "[{client_id: m, model: new}]", `managed_identities[0].model: "new" is not classic or rbac`},
		{inIMDS + "[{client_id: m, system_assigned: true}, {client_id: n, system_assigned: true}]", "managed_identities[1].system_assigned: there is another one"},
		{"mx: 127.0.0.1:0", "mx: needs domains beside it"},
		{"domains: [b.c]\nreject_direct_send: true", "connectors, client_ca_file, reject_direct_send, known_recipients: need mx beside them"},
		{"domains: [b.c]\nclient_ca_file: ca.pem", "need mx beside them"},
		{"domains: [b.c]\nknown_recipients: [a@b.c]", "need mx beside them"},
		{"domains: [b.c]\nconnectors: [{name: x, sender_ips: [10.1.0.1]}]", "need mx beside them"},
		{inMX + "known_recipients: [a@b.c, info]", `known_recipients[1]: "info" is no address`},
		{inMX + "known_recipients: [a@example.net]", `known_recipients[0]: "a@example.net" is in none of the domains`},
		{inMX + "connectors: [{sender_ips: [10.1.0.1]}]", `connectors[0].name: "" is empty or listed twice`},
		{inMX + "connectors: [{name: x, sender_ips: [10.1.0.1]}, {name: X, sender_ips: [10.1.0.2]}]", `connectors[1].name: "X" is empty or listed twice`},
		{inMX + "connectors: [{name: x}]", "connectors[0].sender_ips: needed, or certificate_name"},
		{inMX + "connectors: [{name: x, sender_ips: [10.1.0.1, 10.1]}]", `connectors[0].sender_ips[1]: "10.1" is no address and no network such as 10.1.0.0/16`},
		{inMX + "connectors: [{name: x, sender_ips: [10.1.0.0/33]}]", `"10.1.0.0/33" is no address and no network`},
		{inMX + "connectors: [{name: x, certificate_name: '*'}]", `connectors[0].certificate_name: "*" is no name such as relay.contoso.com or *.contoso.com`},
		{inMX + "connectors: [{name: x, certificate_name: 'a.*.b.c'}]", `"a.*.b.c" is no name`},
		{inMX + "connectors: [{name: x, certificate_name: relay}]", `"relay" is no name`},
		{inMX + "connectors: [{name: x, certificate_name: relay.xb.c}]", `connectors[0].certificate_name: "relay.xb.c" is in none of the domains`},
		{inMX + "connectors: [{name: x, certificat_name: relay.b.c}]", `unknown field "certificat_name"`},
	} {
		file := filepath.Join(t.TempDir(), "bad.yaml")
		write(t, file, tc.text)
		_, err := LoadConfig(file)
		if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: got %v, want %s", tc.text, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error shows the secret", tc.text)
		}
	}
	if _, err := LoadConfig(filepath.Join(t.TempDir(), "none.yaml")); err == nil {
		t.Error("a missing file was read")
	}
}

func TestStartFails(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	noPEM := filepath.Join(t.TempDir(), "x.pem")
	write(t, noPEM, "x")
	for _, tc := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Submission = busy.Addr().String() }, "address already in use"},
		{func(c *Config) { c.Entra = busy.Addr().String() }, "address already in use"},
		{func(c *Config) { c.Admin = busy.Addr().String() }, "address already in use"},
		{func(c *Config) { c.CAFile = filepath.Join(noPEM, "ca.pem") }, "not a directory"},
		{func(c *Config) { c.Apps[0].CertificateFile = noPEM }, "apps[0].certificate_file: " + noPEM + ": no certificate in PEM format"},
		{func(c *Config) { c.SendAsText = "x" }, "send_as_text"},
		{func(c *Config) { c.IMDS = busy.Addr().String() }, "address already in use"},
		{func(c *Config) { c.IMDS, c.ArcKeys = "127.0.0.1:0", noPEM }, "arc_keys: "},
		{func(c *Config) { c.MX, c.Domains = busy.Addr().String(), []string{"contoso.com"} }, "address already in use"},
		{func(c *Config) { c.MX, c.Domains, c.ClientCAFile = "127.0.0.1:0", []string{"contoso.com"}, noPEM }, "client_ca_file: " + noPEM + ": no certificate in PEM format"},
	} {
		c := testConfig()
		tc.change(&c)
		if s, err := Start(c); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("got %v, %v, want %s", s, err, tc.want)
		}
	}
}

// TestSecretsDoNotPrint: no verb shows a secret.
func TestSecretsDoNotPrint(t *testing.T) {
	c := testConfig()
	c.Apps[0].Secret = "hunter2"
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "app", c.Apps[0], "apps", c.Apps)
	for _, got := range []string{fmt.Sprintf("%v", c), fmt.Sprintf("%+v", c), fmt.Sprintf("%#v", c), fmt.Sprintf("%s", c.Apps), fmt.Sprintf("%+v", &c.Apps[0]), log.String()} {
		if strings.Contains(got, "hunter2") {
			t.Errorf("a secret shows in %s", got)
		}
	}
}

// TestLogHasNoToken: what goes on is logged, tokens are not.
func TestLogHasNoToken(t *testing.T) {
	var log visitor.Log
	s := startTest(t, func(c *Config) {
		c.Log = log.Logger()
	})
	token := s.Issue(app1, directory.Exchange, -time.Second)
	greet(t, s).Say(visitor.XOAUTH2("erp@contoso.com", token))
	login(t, s, "erp@contoso.com").Send("erp@contoso.com", "From: erp@contoso.com"+visitor.MessageID, 1)
	visitor.Post(t, s, visitor.TokenPath, visitor.Form())
	got := log.String()
	if !strings.Contains(got, "token expired") || !strings.Contains(got, "250 2.0.0 OK") {
		t.Errorf("log: %s", got)
	}
	for _, secret := range []string{token, "eyJ", "dXNlcj", visitor.Secret1} {
		if strings.Contains(got, secret) {
			t.Errorf("%q shows in the log: %s", secret, got)
		}
	}
}

// TestCA: the certificate is good for the names of Microsoft and for loopback,
// and the authority lives on if it may.
func TestCA(t *testing.T) {
	dir := t.TempDir()
	start := func(keyFile string) *Server {
		return startTest(t, func(c *Config) { c.CAFile, c.CAKeyFile = filepath.Join(dir, "ca.pem"), keyFile })
	}
	first := start(filepath.Join(dir, "ca.key"))
	written, err := os.ReadFile(first.CAFile())
	if err != nil || string(written) != string(first.CA()) {
		t.Errorf("CA file: %v", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(written)
	second := start(filepath.Join(dir, "ca.key"))
	for _, name := range []string{"smtp.office365.com", "localhost", "127.0.0.1", "login.microsoftonline.com", "contoso-com.mail.protection.outlook.com"} {
		c, err := tls.Dial("tcp", strings.TrimPrefix(second.Authority(), "https://"), &tls.Config{RootCAs: pool, ServerName: name})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		c.Close()
	}
	if _, err := tls.Dial("tcp", strings.TrimPrefix(second.Authority(), "https://"), &tls.Config{RootCAs: pool, ServerName: "contoso.com"}); err == nil {
		t.Error("the certificate is good for any name")
	}
	if third := start(""); string(third.CA()) == string(first.CA()) {
		t.Error("an authority without key file was used again")
	}
}
