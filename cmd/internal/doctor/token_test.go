package doctor

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/finding/findingtest"
	"github.com/sendas/sendas/token/entra"
)

// jwtOf makes a token that says so; nobody has signed it.
func jwtOf(t *testing.T, claims map[string]any) entra.Secret {
	t.Helper()
	b, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	return entra.Secret("eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9." + base64.RawURLEncoding.EncodeToString(b) + ".c2lnbmF0dXJl")
}

// tokenDoctor is a doctor with one credential, whose source answers as told.
func tokenDoctor(t *testing.T, credential string, get func() (*entra.Token, error)) (*Walk, *bytes.Buffer) {
	t.Helper()
	yaml := strings.Replace(configtest.SmallConfig, "    flow: client_credentials\n    client_id: 5f2c0d3e-0000-4000-8000-000000000001\n    client_secret_file: relay-app.secret\n", credential, 1)
	dir := t.TempDir()
	configtest.WriteFile(t, filepath.Join(dir, "relay-app.secret"), "s3cr3t~in/the+lab\n", 0o600)
	c, err := config.Load(configtest.WriteFile(t, filepath.Join(dir, "sendas.yaml"), yaml+"token: {state_dir: state}\n", 0o644), config.SkipFiles)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w := emptyWorld()
	w.source = func(*config.Site, string, *http.Client, *entra.Vault) (entra.Source, error) {
		return fakeSource(get), nil
	}
	d := New(&Options{Stdout: &out}, w)
	d.config = c
	return d, &out
}

const secretCredential = "    flow: client_credentials\n    client_id: 5f2c0d3e-0000-4000-8000-000000000001\n    client_secret_file: relay-app.secret\n"

func (d *Walk) checkRelayApp(t *testing.T) {
	t.Helper()
	d.checkCredentials(t.Context(), []patient{{user: "scan@contoso.com", credential: "relay-app"}})
	findingtest.WantWhole(t, &d.Report)
}

func TestDoctorToken(t *testing.T) {
	now := time.Now()
	good := map[string]any{"aud": "https://outlook.office365.com", "tid": "9a1f7d52-3c4e-4b6a-8d20-6f5e4c3b2a10", "appid": "5f2c0d3e-0000-4000-8000-000000000001",
		"oid": "0b1ec700-0000-4000-8000-000000000002", "iat": now.Unix() - 300, "nbf": now.Unix() - 300, "exp": now.Unix() + 3600, "appidacr": "1", "ver": "1.0"}
	for _, tc := range []struct {
		claim  string
		value  any
		id     string
		status finding.Status
		words  string
	}{
		{"", nil, "claim.audience", finding.OK, "https://outlook.office365.com"},
		{"", nil, "claim.object_id", finding.OK, "Get-ServicePrincipal"},
		{"aud", "https://graph.microsoft.com", "claim.audience", finding.Fail, "Graph"},
		{"appid", "11111111-0000-4000-8000-000000000001", "claim.app", finding.Fail, "client_id"},
		{"scp", "SMTP.Send", "claim.kind", finding.Fail, "signed-in user"},
		{"exp", now.Unix() + 60, "claim.life", finding.Fail, "501 5.5.127"},
		{"nbf", now.Unix() + 600, "claim.clock", finding.Fail, "timedatectl"},
	} {
		claims := make(map[string]any)
		for k, v := range good {
			claims[k] = v
		}
		if tc.claim != "" {
			claims[tc.claim] = tc.value
		}
		access := jwtOf(t, claims)
		d, out := tokenDoctor(t, secretCredential, func() (*entra.Token, error) {
			return &entra.Token{Access: access, Expires: now.Add(time.Hour)}, nil
		})
		d.checkRelayApp(t)
		d.wantCheck(t, "credential.relay-app.token", finding.OK, "fresh")
		d.wantCheck(t, "credential.relay-app."+tc.id, tc.status, tc.words)
		d.Section("x", "x").Ok("x", "leak", "%s", string(access))
		if strings.Contains(out.String(), string(access)) || strings.Contains(fmt.Sprintf("%+v", d.Checks), string(access)) {
			t.Errorf("the report shows the token")
		}
		if d.tokens["relay-app"] == nil {
			t.Errorf("the token is not kept for the mailboxes")
		}
	}
}

func TestDoctorOpaqueToken(t *testing.T) {
	d, _ := tokenDoctor(t, secretCredential, func() (*entra.Token, error) {
		return &entra.Token{Access: "EwBAAl3BAAUFFpUAo7J3Ve0bjLBWZWCclRC3EoAA", Expires: time.Now().Add(time.Hour)}, nil
	})
	d.checkRelayApp(t)
	d.wantCheck(t, "credential.relay-app.claims", finding.Skip, "opaque")
}

func TestDoctorTokenErrors(t *testing.T) {
	for _, tc := range []struct {
		err    error
		found  string
		words  string
		passes bool
	}{
		{&entra.RefusedError{Credential: "relay-app", What: "client credentials", File: "/x.secret", Status: 401, OAuth: "invalid_client", Codes: []int{7000215}, Description: "Invalid client secret provided."},
			"AADSTS7000215", "often its ID was copied instead of its Value | make a new secret in the app registration (Certificates & secrets) and write its Value into /x.secret", false},
		{&entra.RefusedError{Credential: "relay-app", What: "client credentials", Status: 400, OAuth: "temporarily_unavailable", Codes: []int{90033}}, "AADSTS90033", "busy", true},
		{fmt.Errorf("x: %w", &entra.UnreachableError{Credential: "relay-app", Host: "login.microsoftonline.com", Status: 503, Problem: "answered with HTTP 503"}), "HTTP 503", "tries again", true},
		{&entra.FileError{Path: "/x.secret", Problem: "is open to every user of this machine (mode 0644)", Act: `type "chmod o= /x.secret"`}, "mode 0644", `who it is | type "chmod o= /x.secret"`, false},
		{&entra.FileError{Path: "/x.secret", Problem: "is odd"}, "is odd", "see to the file /x.secret", false},
		{errors.New("strange"), "strange", "sendas status", false},
	} {
		d, _ := tokenDoctor(t, secretCredential, func() (*entra.Token, error) { return nil, tc.err })
		d.checkRelayApp(t)
		d.wantCheck(t, "credential.relay-app.token", finding.Fail, tc.found, tc.words)
		if c := d.find(t, "credential.relay-app.token"); c.Passes != tc.passes {
			t.Errorf("%v passes by itself: %v, want %v", tc.err, c.Passes, tc.passes)
		}
	}
}

func TestDoctorFiles(t *testing.T) {
	noToken := func() (*entra.Token, error) { return nil, errors.New("not asked") }
	for _, tc := range []struct {
		credential string
		mode       os.FileMode
		id         string
		status     finding.Status
		words      string
	}{
		{secretCredential, 0o600, "secret", finding.OK, "mode 0600"},
		{secretCredential, 0o644, "secret", finding.Fail, "chmod o="},
		{strings.Replace(secretCredential, "relay-app.secret", "nothing", 1), 0o600, "secret", finding.Fail, "does not exist"},
		{strings.Replace(secretCredential, "relay-app.secret", "credential:relay", 1), 0o600, "secret", finding.Skip, "systemd"},
		{secretCredential + "    secret_expires: 2026-01-01\n", 0o600, "secret_end", finding.Fail, "ended on 2026-01-01"},
		{secretCredential + "    secret_expires: 2026-12-01\n", 0o600, "secret_end", finding.Warn, "in 9 days"},
		{secretCredential + "    secret_expires: 2027-12-01\n", 0o600, "secret_end", finding.OK, "2027-12-01"},
		{strings.Replace(secretCredential, "client_secret_file", "certificate_file", 1), 0o600, "certificate", finding.Fail, "PEM"},
		{"    flow: federated\n    client_id: 5f2c0d3e-0000-4000-8000-000000000001\n    token_file: nothing\n", 0o600, "token_file", finding.Fail, "does not exist"},
	} {
		d, _ := tokenDoctor(t, tc.credential, noToken)
		d.now = func() time.Time { return time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC) }
		if err := os.Chmod(filepath.Join(filepath.Dir(d.config.Token.StateDir), "relay-app.secret"), tc.mode); err != nil {
			t.Fatal(err)
		}
		d.checkRelayApp(t)
		d.wantCheck(t, "credential.relay-app."+tc.id, tc.status, tc.words)
	}
}

// The end of a certificate comes from the file, as package token reads it.
func TestDoctorCertificate(t *testing.T) {
	d, _ := tokenDoctor(t, strings.Replace(secretCredential, "client_secret_file: relay-app.secret", "certificate_file: app.pem\n    key_file: app.key", 1), func() (*entra.Token, error) { return nil, errors.New("not asked") })
	dir := filepath.Dir(d.config.Token.StateDir)
	cert, key := rsaPair(t, time.Now().Add(10*24*time.Hour+time.Hour))
	configtest.WriteFile(t, filepath.Join(dir, "app.pem"), cert, 0o644)
	configtest.WriteFile(t, filepath.Join(dir, "app.key"), key, 0o600)
	d.checkRelayApp(t)
	d.wantCheck(t, "credential.relay-app.certificate", finding.OK, "can be used")
	d.wantCheck(t, "credential.relay-app.key", finding.OK, "mode 0600")
	d.wantCheck(t, "credential.relay-app.certificate_end", finding.Warn, "in 10 days", "reload sendas-token")
}

// A certificate that the service will replace is no cause for alarm, and that it cannot be replaced is
// one long before its end.
func TestDoctorRenewal(t *testing.T) {
	const renewed = "certificate_file: app.pem\n    renew: 20d\n    object_id: 0b1ec700-1a2b-4c3d-8e4f-0123456789ab"
	for _, tc := range []struct {
		name   string
		left   time.Duration
		answer string
		id     string
		status finding.Status
		words  string
	}{
		{"in time", 25 * 24 * time.Hour, goodAnswer, "certificate_end", finding.OK, "the service makes the next one on "},
		{"it was not replaced", 15 * 24 * time.Hour, goodAnswer, "certificate_end", finding.Warn, "in 14 days"},
		{"the token for Graph", 25 * 24 * time.Hour, goodAnswer, "renewal", finding.OK, "Microsoft Graph"},
		{"no token for Graph", 25 * 24 * time.Hour, `{"error":"invalid_resource","error_codes":[500011],"error_description":"AADSTS500011: x"}`, "renewal", finding.Warn, "AADSTS500011"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, _ := tokenDoctor(t, strings.Replace(secretCredential, "client_secret_file: relay-app.secret", renewed, 1), func() (*entra.Token, error) { return nil, errors.New("not asked") })
			d.client = func(*config.Site) (*http.Client, error) {
				return &http.Client{Transport: answering(tc.answer)}, nil
			}
			cert, key := rsaPair(t, time.Now().Add(tc.left))
			configtest.WriteFile(t, filepath.Join(filepath.Dir(d.config.Token.StateDir), "app.pem"), cert+key, 0o600)
			d.checkRelayApp(t)
			d.wantCheck(t, "credential.relay-app."+tc.id, tc.status, tc.words)
		})
	}
}

// answering is an Entra that answers everything with one body.
type answering string

const goodAnswer = `{"token_type":"Bearer","expires_in":3599,"access_token":"eyJ0eXAiOiJKV1QifQ.c2VjcmV0.c2ln"}`

func (a answering) RoundTrip(*http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	w.Header().Set("Content-Type", "application/json")
	if strings.Contains(string(a), "error") {
		w.WriteHeader(http.StatusBadRequest)
	}
	w.WriteString(string(a))
	return w.Result(), nil
}

// What is wrong with a file and what to do about it are told apart, whatever a parser says: its
// texts have colons of their own.
func TestDoctorDamagedKey(t *testing.T) {
	d, _ := tokenDoctor(t, strings.Replace(secretCredential, "client_secret_file: relay-app.secret", "certificate_file: app.pem\n    key_file: app.key", 1), func() (*entra.Token, error) { return nil, errors.New("not asked") })
	dir := filepath.Dir(d.config.Token.StateDir)
	cert, key := rsaPair(t, time.Now().Add(time.Hour))
	configtest.WriteFile(t, filepath.Join(dir, "app.pem"), cert, 0o644)
	configtest.WriteFile(t, filepath.Join(dir, "app.key"), strings.Replace(key, "RSA PRIVATE KEY", "PRIVATE KEY", 2), 0o600) // another form than it says
	d.checkRelayApp(t)
	c := d.find(t, "credential.relay-app.certificate")
	if !strings.HasPrefix(c.Found, "has a damaged private key (x509: ") || !strings.HasSuffix(c.Found, ")") || c.Do != "copy it again from where it was made" {
		t.Errorf("found: %s\ndo: %s\nwant the parser's words whole, and what to do", c.Found, c.Do)
	}
	for _, tc := range []struct {
		err         error
		found, does string
	}{
		{&entra.FileError{Path: "/x", Problem: "has a damaged private key (asn1: structure error: tags don't match)", Act: "copy it again"}, "has a damaged private key (asn1: structure error: tags don't match)", "copy it again"},
		{&entra.FileError{Path: "/x", Problem: "cannot be read", Cause: "input/output error"}, "cannot be read: input/output error", "see to the file /x"},
		{&entra.FileError{Path: "/x", Problem: "cannot be written", Cause: "no space left on device", Act: "make room there"}, "cannot be written: no space left on device", "make room there"},
		{fmt.Errorf("x: %w", &entra.ProxyError{Setting: "HTTPS_PROXY", Problem: "is odd", Act: "write another one"}), "HTTPS_PROXY is odd", "write another one"},
		{errors.New("loading: no certificates"), "loading: no certificates", "see to the file"},
	} {
		if found, does := fileFault(tc.err); found != tc.found || does != tc.does {
			t.Errorf("fileFault(%v) = %q, %q, want %q, %q", tc.err, found, does, tc.found, tc.does)
		}
	}
}

const userCredential = "    flow: device_code\n    client_id: 5f2c0d3e-0000-4000-8000-000000000001\n    user: scan@contoso.com\n"

func TestDoctorGrant(t *testing.T) {
	const day = 24 * time.Hour
	for _, tc := range []struct {
		idle   time.Duration // negative: nobody has signed in
		status finding.Status
		words  string
		asked  bool
	}{
		{-1, finding.Fail, "sendas login relay-app", false},
		{time.Hour, finding.OK, "came 0 days ago, and is good for 90", true},
		{80 * day, finding.Warn, "came 80 days ago", true},
		{91 * day, finding.Fail, "sendas login relay-app", true},
	} {
		asked := false
		d, out := tokenDoctor(t, userCredential, func() (*entra.Token, error) { asked = true; return nil, errors.New("no") })
		if tc.idle >= 0 {
			if err := os.MkdirAll(d.config.Token.StateDir, 0o700); err != nil {
				t.Fatal(err)
			}
			g := &entra.StoredGrant{Refresh: "0.AXkA-refresh", User: "scan@contoso.com", SignedIn: time.Now().Add(-200 * day), Refreshed: time.Now().Add(-tc.idle)}
			if err := d.config.Vault().Save("relay-app", g); err != nil {
				t.Fatal(err)
			}
		}
		d.checkRelayApp(t)
		d.wantCheck(t, "credential.relay-app.grant", tc.status, tc.words)
		if asked != tc.asked {
			t.Errorf("idle for %s: Entra was asked: %v, want %v", tc.idle, asked, tc.asked)
		}
		d.Section("x", "x").Ok("x", "leak", "0.AXkA-refresh")
		if tc.idle >= 0 && strings.Contains(out.String(), "AXkA") {
			t.Errorf("the report shows the refresh token")
		}
	}
}

// TestDoctorSignIn: a sign-in is judged by the refresh that the doctor makes, and told in one row.
func TestDoctorSignIn(t *testing.T) {
	const day = 24 * time.Hour
	now := time.Now()
	good := func() (*entra.Token, error) {
		return &entra.Token{Access: entra.Secret(theToken), Expires: now.Add(time.Hour)}, nil
	}
	refused := &entra.RefusedError{Credential: "relay-app", What: "refresh token", Status: 400, OAuth: "invalid_grant", Codes: []int{50173}, Delegated: true}
	for _, tc := range []struct {
		name          string
		renewed, used time.Duration // ago
		get           func() (*entra.Token, error)
		status        finding.Status
		words         string
		token         finding.Status
	}{
		{"renewed", time.Hour, time.Hour, good, finding.OK, "came 0 days ago", finding.OK},
		{"used, and not renewed", 70 * day, time.Minute, good, finding.Warn, now.Add(20 * day).UTC().Format(time.DateOnly), finding.OK},
		{"revoked", time.Hour, time.Hour, func() (*entra.Token, error) { return nil, refused }, finding.Fail, "AADSTS50173", finding.Skip},
		{"void by the calendar, and good", 100 * day, 100 * day, good, finding.Warn, "came 100 days ago", finding.OK},
	} {
		d, _ := tokenDoctor(t, userCredential, tc.get)
		if err := os.MkdirAll(d.config.Token.StateDir, 0o700); err != nil {
			t.Fatal(err)
		}
		g := &entra.StoredGrant{Refresh: "0.AXkA-refresh", User: "scan@contoso.com", SignedIn: now.Add(-200 * day), Refreshed: now.Add(-tc.renewed), Used: now.Add(-tc.used)}
		if err := d.config.Vault().Save("relay-app", g); err != nil {
			t.Fatal(err)
		}
		d.checkRelayApp(t)
		t.Log(tc.name)
		d.wantCheck(t, "credential.relay-app.grant", tc.status, tc.words)
		d.wantCheck(t, "credential.relay-app.token", tc.token, "")
	}
}

func TestDoctorDamagedGrant(t *testing.T) {
	d, _ := tokenDoctor(t, userCredential, func() (*entra.Token, error) { return nil, errors.New("no") })
	configtest.WriteFile(t, d.config.Vault().Path("relay-app"), "{", 0o600)
	d.checkRelayApp(t)
	d.wantCheck(t, "credential.relay-app.grant", finding.Fail, "sendas login")
}

// An unsavedSource has a new refresh token that it could not store.
type unsavedSource struct{ fakeSource }

func (unsavedSource) Unsaved() error {
	return &entra.FileError{Path: "/x", Problem: "cannot be written", Act: "type \"df /x\""}
}

func TestDoctorUnsaved(t *testing.T) {
	d, _ := tokenDoctor(t, secretCredential, nil)
	d.world.source = func(*config.Site, string, *http.Client, *entra.Vault) (entra.Source, error) {
		return unsavedSource{func() (*entra.Token, error) {
			return &entra.Token{Access: entra.Secret(theToken), Expires: time.Now().Add(time.Hour)}, nil
		}}, nil
	}
	d.checkRelayApp(t)
	d.wantCheck(t, "credential.relay-app.unsaved", finding.Warn, `type "df /x"`)
}

func TestDoctorCredentialsInUse(t *testing.T) {
	d, _ := tokenDoctor(t, secretCredential, func() (*entra.Token, error) { return nil, errors.New("no") })
	d.config.Credentials["spare"] = d.config.Credentials["relay-app"]
	d.checkRelayApp(t)
	d.wantCheck(t, "credential.spare.used", finding.Warn, "not used")
	d.wantCheck(t, "credential.relay-app.token", finding.Fail)
}

func TestDoctorClock(t *testing.T) {
	now := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		ahead  time.Duration // of this machine
		status finding.Status
		words  string
	}{
		{0, finding.OK, "differs by 0s"}, {30 * time.Second, finding.OK, "differs by 30s"}, {2 * time.Minute, finding.Warn, "is 2m0s ahead of"},
		{-10 * time.Minute, finding.Fail, "is 10m0s behind Entra's"},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", now.Format(http.TimeFormat))
		}))
		d, _ := tokenDoctor(t, secretCredential, nil)
		d.now = func() time.Time { return now.Add(tc.ahead + time.Second/2) }
		d.world.source = func(_ *config.Site, _ string, client *http.Client, _ *entra.Vault) (entra.Source, error) {
			return fakeSource(func() (*entra.Token, error) {
				resp, err := client.Get(srv.URL)
				if err != nil {
					return nil, err
				}
				resp.Body.Close()
				return nil, errors.New("no")
			}), nil
		}
		d.client = func(*config.Site) (*http.Client, error) { return srv.Client(), nil }
		d.checkRelayApp(t)
		d.wantCheck(t, "credential.relay-app.clock", tc.status, tc.words)
		srv.Close()
	}
}

// What cannot even begin is said too.
func TestDoctorNoSource(t *testing.T) {
	d, _ := tokenDoctor(t, secretCredential, nil)
	d.world.source = func(*config.Site, string, *http.Client, *entra.Vault) (entra.Source, error) {
		return nil, errors.New("no such flow")
	}
	d.checkRelayApp(t)
	d.wantCheck(t, "credential.relay-app.token", finding.Fail, "no such flow")

	d, _ = tokenDoctor(t, secretCredential, nil)
	d.config.Tenant.Endpoints.CAFile = "/nowhere.pem"
	d.checkRelayApp(t)
	d.wantCheck(t, "credential.relay-app.token", finding.Fail, "/nowhere.pem")
}

// A token is asked for with an end.
func TestDoctorTokenInTime(t *testing.T) {
	d, _ := tokenDoctor(t, secretCredential, nil)
	d.world.source = func(*config.Site, string, *http.Client, *entra.Vault) (entra.Source, error) {
		return deadlineSource{t}, nil
	}
	d.checkRelayApp(t)
	d.wantCheck(t, "credential.relay-app.token", finding.Fail)
}

type deadlineSource struct{ t *testing.T }

func (s deadlineSource) Token(ctx context.Context) (*entra.Token, error) {
	if at, ok := ctx.Deadline(); !ok || time.Until(at) > 2*time.Minute {
		s.t.Error("the request has no end")
	}
	return nil, errors.New("no")
}

// rsaPair makes a self-signed certificate that ends at that moment, and its key, both PEM.
func rsaPair(t *testing.T, end time.Time) (cert, key string) {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "relay"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: end}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)}))
}
