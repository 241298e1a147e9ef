package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/token/entra"
)

const (
	loginClient  = "5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab"
	loginTenant  = "0a0a0a0a-1111-4222-8333-444444444444"
	loginRefresh = "0.AXoA~refresh-token-of-the-user"
)

const loginYAML = `tenant: {id: TENANT, domains: [contoso.com], endpoints: {authority: "AUTHORITY"}}
credentials:
  scan: {flow: device_code, client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab, user: scan@contoso.com}
  spare: {flow: authorization_code, client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab, user: spare@contoso.com}
  relay-app: {client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab, client_secret_file: relay.secret}
  vm: {flow: managed_identity}
mailboxes:
  - {address: scan@contoso.com, credential: scan}
clients:
  - {name: all, networks: [10.0.0.0/8], from: scan@contoso.com}
token: {state_dir: state}
`

// loginEntra is a small Entra. Each endpoint answers with a status and a body.
type loginEntra struct {
	device, token string            // "200 {…}"; "" means that all goes well
	claims        map[string]any    // of the access token
	opaque        bool              // the access token is no JWT
	mu            sync.Mutex        // guards asked
	asked         map[string]string // the last form by endpoint
}

func (e *loginEntra) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	endpoint := filepath.Base(r.URL.Path)
	e.mu.Lock()
	if e.asked == nil {
		e.asked = make(map[string]string)
	}
	e.asked[endpoint] = string(b)
	e.mu.Unlock()
	answer := map[string]string{"devicecode": e.device, "token": e.token}[endpoint]
	if answer == "" {
		answer = "200 " + e.good(endpoint)
	}
	status, body, _ := strings.Cut(answer, " ")
	var n int
	fmt.Sscan(status, &n)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(n)
	io.WriteString(w, body)
}

func (e *loginEntra) good(endpoint string) string {
	if endpoint == "devicecode" {
		return `{"user_code":"ABCD-EFGH","device_code":"DEVICE-CODE-SECRET","verification_uri":"https://microsoft.com/devicelogin","expires_in":900,"interval":0.01,"message":"m"}`
	}
	access := "EwBopaque-token"
	if !e.opaque {
		access = fakeJWT(e.claims)
	}
	return fmt.Sprintf(`{"token_type":"Bearer","expires_in":4599,"access_token":%q,"refresh_token":%q}`, access, loginRefresh)
}

// fakeJWT makes a token that nobody has signed.
func fakeJWT(claims map[string]any) string {
	b, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(`{"typ":"JWT","alg":"RS256"}`)) + "." + enc(b) + "." + enc([]byte("signature"))
}

// userClaims is what Entra puts into the token of a user (facts of a v1.0 token for Exchange).
func userClaims(change map[string]any) map[string]any {
	c := map[string]any{
		"aud": "https://outlook.office.com", "tid": loginTenant, "appid": loginClient, "appidacr": "0", "ver": "1.0",
		"upn": "Scan@contoso.com", "scp": "SMTP.Send", "oid": "11111111-2222-4333-8444-555555555555",
	}
	for k, v := range change {
		c[k] = v
	}
	return c
}

// testLogin is a configuration beside a fake Entra.
type testLogin struct {
	entra *loginEntra
	dir   string
}

func newTestLogin(t *testing.T, e *loginEntra, change ...string) *testLogin {
	t.Helper()
	srv := httptest.NewServer(e)
	t.Cleanup(srv.Close)
	l := &testLogin{entra: e, dir: t.TempDir()}
	yaml := strings.NewReplacer(append(change, "TENANT", loginTenant, "AUTHORITY", srv.URL)...).Replace(loginYAML)
	for name, text := range map[string]string{"sendas.yaml": yaml, "relay.secret": "hunter2\n"} {
		if err := os.WriteFile(filepath.Join(l.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(l.dir, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *testLogin) vault() *entra.Vault {
	return &entra.Vault{Dir: filepath.Join(l.dir, "state", "grants")}
}

// login types the command and returns its exit code and what it says.
func (l *testLogin) login(args ...string) (code int, stdout, stderr string) {
	var out, words bytes.Buffer
	code = run(append([]string{"login", "--config", filepath.Join(l.dir, "sendas.yaml")}, args...), &out, &words)
	return code, out.String(), words.String()
}

func TestLogin(t *testing.T) {
	l := newTestLogin(t, &loginEntra{claims: userClaims(nil)})
	code, stdout, stderr := l.login("scan")
	if code != exit.OK {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	if want := "signed in as Scan@contoso.com; stored in " + l.vault().Path("scan") + "\n"; stdout != want {
		t.Errorf("stdout = %q, want %q", stdout, want)
	}
	said := regexp.MustCompile(`^sendas: sign in as scan@contoso.com, and as nobody else: not as an administrator
sendas: open   https://microsoft.com/devicelogin   on any device
sendas: enter  ABCD-EFGH
sendas: the code is good for 15m0s, until \d\d:\d\d:\d\d \S+
sendas: next: nothing; a running token service takes it by itself within a minute, and "sendas status" shows it
$`)
	if !said.MatchString(stderr) {
		t.Errorf("stderr:\n%s\nwant:\n%s", stderr, said)
	}
	g, err := l.vault().Load("scan")
	if err != nil {
		t.Fatal(err)
	}
	want := entra.StoredGrant{
		Refresh: loginRefresh, ClientID: loginClient, Tenant: loginTenant, User: "Scan@contoso.com", Scope: "https://outlook.office.com/SMTP.Send",
		SignedIn: g.SignedIn, Refreshed: g.SignedIn, Used: g.SignedIn,
	}
	if *g != want || time.Since(g.SignedIn) > time.Hour {
		t.Errorf("stored %+v, want %+v", *g, want)
	}
	if got := l.entra.asked["devicecode"]; got != "client_id="+loginClient+"&scope=https%3A%2F%2Foutlook.office.com%2FSMTP.Send+offline_access" {
		t.Errorf("asked for a code with %s", got)
	}
	// What was stored is what the token service needs.
	c, err := config.Load(filepath.Join(l.dir, "sendas.yaml"), config.SkipFiles)
	if err != nil {
		t.Fatal(err)
	}
	src, err := c.Source("scan", nil, c.Vault())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := src.Token(t.Context()); err != nil || !strings.Contains(l.entra.asked["token"], "grant_type=refresh_token&refresh_token=0.AXoA~refresh-token-of-the-user") {
		t.Errorf("the token service: %v, it asked with %s", err, l.entra.asked["token"])
	}
}

// TestLoginRefusals holds the sentence for each way in which a sign-in fails, as the user
// sees it. In none of them anything is stored.
// TestLoginHighVolume: who signs in for an account of High Volume Email is asked for its scope, and
// has to be allowed Mail.Send.
func TestLoginHighVolume(t *testing.T) {
	for scopes, want := range map[string]int{"Mail.Send": exit.OK, "SMTP.Send": exit.Config} {
		l := newTestLogin(t, &loginEntra{claims: userClaims(map[string]any{"scp": scopes})}, "credential: scan}", "credential: relay-app}",
			"clients:", "routes:\n  - {name: bulk, type: hve, account: notices@contoso.com, credential: scan}\nclients:", "user: scan@contoso.com", "user: notices@contoso.com")
		l.entra.claims["upn"] = "notices@contoso.com"
		code, _, stderr := l.login("scan")
		if code != want || want == exit.Config && !strings.Contains(stderr, "add the delegated permission Mail.Send") || want == exit.OK && !strings.Contains(stderr, "next: nothing") {
			t.Errorf("with %s: exit code %d, want %d:\n%s", scopes, code, want, stderr)
		}
		form, err := url.ParseQuery(l.entra.asked["devicecode"])
		if err != nil || !slices.Contains(strings.Fields(form.Get("scope")), "https://outlook.office.com/.default") {
			t.Errorf("asked for %q, %v", form.Get("scope"), err)
		}
	}
}

func TestLoginRefusals(t *testing.T) {
	entra := func(oauth string, code int, text string) string {
		return fmt.Sprintf(`400 {"error":%q,"error_description":"AADSTS%d: %s\r\nTrace ID: 0a1b\r\nCorrelation ID: 2c3d\r\nTimestamp: 2026-11-21 04:00:00Z","error_codes":[%d]}`, oauth, code, text, code)
	}
	for _, tc := range []struct {
		name, credential string
		entra            *loginEntra
		code             int
		err, hint        string // the beginning of each
	}{
		{"no such credential", "scam", &loginEntra{}, exit.Usage, `there is no credential "scam" in DIR/sendas.yaml`, `users sign in for: scan, spare`},
		{"app", "relay-app", &loginEntra{}, exit.Usage, `credential "relay-app" has the flow client_credentials: it gets its tokens as an app, and nobody signs in for it`, `users sign in for: scan, spare`},
		{"managed identity", "vm", &loginEntra{}, exit.Usage, `credential "vm" has the flow managed_identity: it gets its tokens as an app`, `users sign in for: scan, spare`},
		{"public flows off", "scan", &loginEntra{device: entra("invalid_client", 7000218, "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.")}, exit.Config,
			`Microsoft refused the sign-in of "scan" (AADSTS7000218): "The request body must contain`, `the app may not sign in without a secret or certificate; in the app registration under Authentication set "Allow public client flows" to Yes`},
		{"wrong app", "scan", &loginEntra{device: entra("unauthorized_client", 700016, "Application with identifier 'x' was not found in the directory 'Contoso'.")}, exit.Config,
			`Microsoft refused the sign-in of "scan" (AADSTS700016)`, `the tenant has no app with the id ` + loginClient},
		{"wrong tenant", "scan", &loginEntra{device: entra("invalid_request", 90002, "Tenant 'x' not found.")}, exit.Config, `Microsoft refused the sign-in of "scan" (AADSTS90002)`, `Microsoft knows no such tenant in this cloud`},
		{"conditional access", "scan", &loginEntra{token: entra("access_denied", 53003, "Access has been blocked by Conditional Access policies.")}, exit.Config,
			`Microsoft refused the sign-in of "scan" (AADSTS53003): "Access has been blocked by Conditional Access policies."`, `a Conditional Access or security policy of the tenant blocks the sign-in`},
		{"no consent", "scan", &loginEntra{token: entra("invalid_grant", 65001, "The user or administrator has not consented.")}, exit.Config, `Microsoft refused the sign-in of "scan" (AADSTS65001)`, `nobody has consented to what the app asks for`},
		{"declined", "scan", &loginEntra{token: `400 {"error":"authorization_declined"}`}, exit.TempFail, `Microsoft refused the sign-in of "scan" (authorization_declined)`,
			`somebody declined the sign-in in the browser; start again with "sendas login scan" and accept`},
		{"expired", "scan", &loginEntra{token: entra("expired_token", 70020, "The code has expired.")}, exit.TempFail, `Microsoft refused the sign-in of "scan" (AADSTS70020)`,
			`the code was not entered in time (15 minutes); start again with "sendas login scan"`},
		{"pending for too long", "scan", &loginEntra{device: `200 {"user_code":"A","device_code":"B","verification_uri":"https://c.example","expires_in":0.05}`, token: `400 {"error":"authorization_pending"}`}, exit.TempFail,
			`signing in for "scan": the code was not used within 50ms`, `start again with "sendas login scan"`},
		{"proxy in the way", "scan", &loginEntra{device: `403 <title>Blocked</title>`}, exit.TempFail, `asking for a token of "scan": HOST answered with HTTP 403 and a web page titled "Blocked"`,
			`that is a proxy or a portal rather than Microsoft`},
		{"no refresh token", "scan", &loginEntra{token: `200 {"token_type":"Bearer","expires_in":4599,"access_token":"a.b.c"}`}, exit.TempFail,
			`signing in for "scan": Microsoft gave an access token and no refresh token`, `let an administrator consent to the delegated permission offline_access`},
		{"administrator", "scan", &loginEntra{claims: userClaims(map[string]any{"upn": "admin@contoso.com"})}, exit.TempFail,
			`admin@contoso.com signed in, and credential "scan" is for scan@contoso.com; nothing was stored`,
			`type "sendas login scan" again in a private window of the browser, and sign in as scan@contoso.com`},
		{"another tenant", "scan", &loginEntra{claims: userClaims(map[string]any{"tid": "99999999-1111-4222-8333-444444444444"})}, exit.Config,
			`Scan@contoso.com signed in to the tenant 99999999-1111-4222-8333-444444444444, and tenant.id is ` + loginTenant + `; nothing was stored`, `sign in as a user of that tenant, or correct tenant.id`},
		{"may only read", "scan", &loginEntra{claims: userClaims(map[string]any{"scp": "User.Read IMAP.AccessAsUser.All"})}, exit.Config,
			`Scan@contoso.com signed in, and the token does not allow SMTP.Send but ["User.Read" "IMAP.AccessAsUser.All"]; nothing was stored`,
			`in the app registration under API permissions add the delegated permission SMTP.Send, grant consent, and type "sendas login scan" again`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := newTestLogin(t, tc.entra)
			code, stdout, stderr := l.login(tc.credential)
			host := regexp.MustCompile(`127\.0\.0\.1:\d+`)
			stderr = host.ReplaceAllString(strings.ReplaceAll(stderr, l.dir, "DIR"), "HOST")
			want := "sendas: error: " + tc.err
			if code != tc.code || stdout != "" || !strings.Contains(stderr, want) || !strings.Contains(stderr, "\nsendas: hint: "+tc.hint) {
				t.Errorf("exit %d, stdout %q, stderr:\n%s\nwant exit %d and\n%s\nsendas: hint: %s", code, stdout, stderr, tc.code, want, tc.hint)
			}
			if strings.Contains(stderr, "DEVICE-CODE-SECRET") || strings.Contains(stderr, loginRefresh) {
				t.Errorf("stderr shows a secret:\n%s", stderr)
			}
			if list, err := os.ReadDir(l.vault().Dir); err == nil && len(list) > 0 {
				t.Errorf("%s was stored", list[0].Name())
			}
		})
	}
}

func TestLoginKeepsTheOldGrant(t *testing.T) {
	l := newTestLogin(t, &loginEntra{claims: userClaims(map[string]any{"upn": "admin@contoso.com"})})
	old := &entra.StoredGrant{Refresh: "old"}
	if err := l.vault().Save("scan", old); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := l.login("scan"); code != exit.TempFail {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if g, err := l.vault().Load("scan"); err != nil || g.Refresh != "old" {
		t.Errorf("stored %v, %v, want the old one", g, err)
	}
}

func TestLoginSpecialCases(t *testing.T) {
	for _, tc := range []struct {
		name   string
		entra  *loginEntra
		change []string
		stdout string
		stderr string
	}{
		{"tenant by domain", &loginEntra{claims: userClaims(nil)}, []string{"TENANT", "contoso.onmicrosoft.com"}, "signed in as Scan@contoso.com; ", "next: nothing"},
		{"tenant in capitals", &loginEntra{claims: userClaims(map[string]any{"tid": strings.ToUpper(loginTenant)})}, nil, "signed in as Scan@contoso.com; ", "next: nothing"},
		{"scope as an address", &loginEntra{claims: userClaims(map[string]any{"scp": "https://outlook.office.com/SMTP.Send"})}, nil, "signed in as Scan@contoso.com; ", "next: nothing"},
		{"opaque token", &loginEntra{opaque: true}, nil, "signed in as somebody; ", `sendas: warning: the token does not tell who signed in; if that was not scan@contoso.com, type "sendas login scan" again`},
		{"no name in it", &loginEntra{claims: userClaims(map[string]any{"upn": ""})}, nil, "signed in as somebody; ", "sendas: warning: the token does not tell who signed in"},
		{"not in use", &loginEntra{claims: userClaims(nil)}, []string{"credential: scan}", "credential: relay-app}"}, "signed in as Scan@contoso.com; ",
			`sendas: next: no mailbox uses credential "scan"; write it below mailboxes: and type "systemctl reload sendas-token"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := newTestLogin(t, tc.entra, tc.change...)
			code, stdout, stderr := l.login("scan")
			if code != exit.OK || !strings.HasPrefix(stdout, tc.stdout) || !strings.Contains(stderr, tc.stderr) {
				t.Errorf("exit %d, stdout %s, stderr:\n%s\nwant %s and %s", code, stdout, stderr, tc.stdout, tc.stderr)
			}
			if g, err := l.vault().Load("scan"); err != nil || g.Refresh != loginRefresh {
				t.Errorf("stored %v, %v, want the token", g, err)
			}
		})
	}
}

// TestLoginBeforeSigningIn: what is wrong here is said before anybody opens a browser.
func TestLoginBeforeSigningIn(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change []string
		err    string
	}{
		{"no state folder", []string{"state_dir: state", "state_dir: none"}, `sendas: error: the sign-in could not be stored: file "DIR/none" does not exist: it is token.state_dir`},
		{"secret missing", []string{"flow: device_code, client_id", "flow: device_code, client_secret_file: none, client_id"}, `sendas: error: preparing the sign-in of "scan": file "DIR/none" does not exist`},
		{"CA file missing", []string{`endpoints: {`, `endpoints: {ca_file: none, `}, `file "DIR/none" does not exist`},
		{"wrong configuration", []string{"user: scan@contoso.com", "user: scan"}, `DIR/sendas.yaml:3: credentials.scan.user: "scan" is not an address`},
	} {
		l := newTestLogin(t, &loginEntra{}, tc.change...)
		code, _, stderr := l.login("scan")
		if stderr = strings.ReplaceAll(stderr, l.dir, "DIR"); code != exit.Config || !strings.Contains(stderr, tc.err) || len(l.entra.asked) > 0 {
			t.Errorf("%s: exit %d, asked %v:\n%s\nwant exit %d and %s", tc.name, code, l.entra.asked, stderr, exit.Config, tc.err)
		}
	}
	if code, _, _ := newTestLogin(t, &loginEntra{}).login("scan", "spare"); code != exit.Usage {
		t.Errorf("login for two: exit %d, want %d", code, exit.Usage)
	}
}

// TestLoginList: who has signed in, until when that is good, and what cannot be known.
func TestLoginList(t *testing.T) {
	l := newTestLogin(t, &loginEntra{})
	now := time.Now()
	const day = 24 * time.Hour
	for _, tc := range []struct {
		name  string
		grant *entra.StoredGrant // nil: damaged
		want  string
	}{
		{"renewed", &entra.StoredGrant{User: "scan@contoso.com", SignedIn: now.Add(-200 * day), Refreshed: now}, "scan@contoso.com on " + now.Add(-200*day).Format(time.DateOnly) + ", good until " + now.Add(90*day).Format(time.DateOnly) + " at least"},
		{"ended", &entra.StoredGrant{SignedIn: now.Add(-200 * day), Refreshed: now.Add(-91 * day)}, "somebody on " + now.Add(-200*day).Format(time.DateOnly) + ", and its refresh token has ended"},
		{"damaged", nil, "not known: is damaged or was not written by sendas"},
	} {
		if tc.grant == nil {
			if err := os.WriteFile(l.vault().Path("scan"), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		} else {
			tc.grant.Refresh = "0.AXoA-refresh"
			if err := l.vault().Save("scan", tc.grant); err != nil {
				t.Fatal(err)
			}
		}
		code, stdout, stderr := l.login()
		if code != exit.OK || !strings.Contains(stdout, tc.want) || !strings.Contains(stdout, "nobody yet") || strings.Contains(stdout+stderr, "AXoA") {
			t.Errorf("%s: exit %d:\n%s%swant %s", tc.name, code, stdout, stderr, tc.want)
		}
	}
}

func TestLoginInterrupted(t *testing.T) {
	l := newTestLogin(t, &loginEntra{token: `400 {"error":"authorization_pending"}`})
	ctx, stop := context.WithCancel(t.Context())
	var stderr bytes.Buffer
	o := &options{config: filepath.Join(l.dir, "sendas.yaml"), stdout: io.Discard, stderr: writerFunc(func(b []byte) {
		stderr.Write(b)
		if strings.Contains(stderr.String(), "good for") {
			stop()
		}
	})}
	c := cmdLogin(o)
	c.SetArgs([]string{"scan"})
	c.SilenceErrors, c.SilenceUsage = true, true
	err := c.ExecuteContext(ctx)
	if code := tell(&stderr, err); code != exit.TempFail || !strings.HasSuffix(stderr.String(), "sendas: error: interrupted; nothing was stored\n") {
		t.Errorf("exit %d:\n%s\nwant %d and that it was interrupted", code, &stderr, exit.TempFail)
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }

// TestLoginBrowser plays the browser, which finds the address on the terminal or gets it
// from xdg-open.
func TestLoginBrowser(t *testing.T) {
	address := regexp.MustCompile(`(?m)^http://127\.0\.0\.1:\d+/` + loginTenant + `/oauth2/v2\.0/authorize\?\S+$`)
	for _, tc := range []struct {
		name       string
		display    string
		args       []string
		user       string
		said       string
		opened     bool
		credential string
	}{
		{"by flag, over ssh", "", []string{"scan", "--browser"}, "scan@contoso.com", `sendas: with a browser elsewhere, forward the port first: ssh -L PORT:127.0.0.1:PORT `, false, "scan"},
		{"by flow, on a desktop", ":0", []string{"spare"}, "spare@contoso.com", "", true, "spare"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newTestLogin(t, &loginEntra{claims: userClaims(map[string]any{"upn": tc.user})})
			opened := filepath.Join(l.dir, "opened")
			script := "#!/bin/sh\necho \"$1\" >" + opened + ".tmp && mv " + opened + ".tmp " + opened + "\n"
			if err := os.WriteFile(filepath.Join(l.dir, "xdg-open"), []byte(script), 0o700); err != nil {
				t.Fatal(err)
			}
			t.Setenv("DISPLAY", tc.display)
			t.Setenv("PATH", l.dir+":"+os.Getenv("PATH"))
			var mu sync.Mutex
			var stderr, stdout bytes.Buffer
			done := make(chan int)
			go func() {
				done <- run(append([]string{"login", "--config", filepath.Join(l.dir, "sendas.yaml")}, tc.args...), &stdout, writerFunc(func(b []byte) {
					mu.Lock()
					defer mu.Unlock()
					stderr.Write(b)
				}))
			}()
			read := func() string {
				if tc.opened {
					b, _ := os.ReadFile(opened)
					return string(b)
				}
				mu.Lock()
				defer mu.Unlock()
				return stderr.String()
			}
			var u *url.URL
			for u == nil {
				select {
				case code := <-done:
					t.Fatalf("exit %d before the browser was opened:\n%s", code, &stderr)
				case <-time.After(5 * time.Millisecond):
				}
				if a := address.FindString(read()); a != "" {
					u, _ = url.Parse(a)
				}
			}
			q := u.Query()
			if q.Get("login_hint") != tc.user || q.Get("code_challenge_method") != "S256" {
				t.Errorf("address = %s, want login_hint %s and PKCE", u, tc.user)
			}
			back, err := url.Parse(q.Get("redirect_uri"))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.Get(back.String() + "/?code=CODE&state=" + url.QueryEscape(q.Get("state")))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if code := <-done; code != exit.OK || !strings.HasPrefix(stdout.String(), "signed in as "+tc.user) {
				t.Errorf("exit %d, stdout %s, stderr:\n%s", code, &stdout, &stderr)
			}
			if said := strings.ReplaceAll(tc.said, "PORT", back.Port()); !strings.Contains(stderr.String(), said) || tc.opened && strings.Contains(stderr.String(), "ssh") {
				t.Errorf("stderr:\n%s\nwant %s", &stderr, said)
			}
			if !strings.Contains(stderr.String(), "sendas: the app registration must have the redirect URI http://localhost (Authentication") {
				t.Errorf("stderr does not say which address the app must have:\n%s", &stderr)
			}
			if _, err := os.Stat(opened); (err == nil) != tc.opened {
				t.Errorf("xdg-open: %v, want it called: %v", err, tc.opened)
			}
			if _, err := l.vault().Load(tc.credential); err != nil {
				t.Error(err)
			}
		})
	}
}

// terminals returns the two ends of a terminal: what programs see, and what a person does.
func terminals(t *testing.T) (program, person *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return program, person
}

func TestLoginOnATerminal(t *testing.T) {
	l := newTestLogin(t, &loginEntra{claims: userClaims(nil)})
	program, person := terminals(t)
	seen := make(chan string)
	go func() {
		b, _ := io.ReadAll(person) // ends with EIO when nobody has the other end any more
		seen <- string(b)
	}()
	var stdout bytes.Buffer
	code := run([]string{"login", "--config", filepath.Join(l.dir, "sendas.yaml"), "scan"}, &stdout, program)
	program.Close()
	screen := <-seen
	if code != exit.OK || !regexp.MustCompile(`\rsendas: waiting, (15:00|14:\d\d) left \x1b\[K`).MatchString(screen) || !strings.Contains(screen, "\r\x1b[Ksendas: next: ") {
		t.Errorf("exit %d, the screen shows %q, want a countdown that is wiped before the next line", code, screen)
	}
}

func TestWrongOwner(t *testing.T) {
	file := filepath.Join(t.TempDir(), "grants", "scan.json")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	state := filepath.Dir(filepath.Dir(file))
	mine, others := "root", "nobody"
	if os.Geteuid() != 0 {
		mine, others = "", "root"
	}
	for name, want := range map[string]string{
		mine: "", "no-such-user-here": "",
		others: fmt.Sprintf("the token service runs as %s and may not read this file; type \"chown -R %s %s\"", others, others, state),
	} {
		if got := service.WrongOwner(file, name); got != want {
			t.Errorf("wrongOwner of my file for %q = %q, want %q", name, got, want)
		}
	}
}
