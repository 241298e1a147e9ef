package lab

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim"
	"github.com/sendas/sendas/contrib/exosim/directory"
)

// withCredential replaces the site's only credential.
func withCredential(text string) func(string) string {
	return func(y string) string {
		before, rest, _ := strings.Cut(y, "  relay-app:\n")
		_, after, _ := strings.Cut(rest, "mailboxes:\n")
		return before + text + "mailboxes:\n" + after
	}
}

// scanUser is a site whose scanners send as a user who signs in; all other mailboxes stay with the
// app.
func scanUser(s *SiteConfig) {
	s.YAML = func(y string) string {
		y = strings.Replace(y, "mailboxes:\n", "  scan-user:\n    flow: device_code\n    client_id: "+userApp+"\n    user: scan@contoso.com\nmailboxes:\n", 1)
		return strings.Replace(y, "  - address: scan@contoso.com\n    credential: relay-app\n", "  - address: scan@contoso.com\n    credential: scan-user\n", 1)
	}
	s.Exosim = func(c *exosim.Config) {
		c.Apps = append(c.Apps, directory.App{ClientID: userApp, ObjectID: "0b1ec700-0000-4000-8000-000000000012", Public: true})
		c.Users = []directory.User{{UPN: "scan@contoso.com"}, {UPN: "admin@contoso.com"}}
		c.DeviceFlow.Interval = time.Second
	}
}

const userApp = "5f2c0d3e-0000-4000-8000-000000000011"

// login runs "sendas login" as root, and has a user approve the code it shows. It returns all that
// was said.
func (s *Site) login(ctx context.Context, t *testing.T, user string) (output string, err error) {
	t.Helper()
	before := len(s.Exosim.DeviceCodes())
	var b bytes.Buffer
	cmd := exec.CommandContext(ctx, s.Token.binary, "login", "scan-user", "--config", s.Config)
	cmd.Stdout, cmd.Stderr = &b, &b
	cmd.Env = []string{"PATH=" + commandPath}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	short, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := poll(short, func() (bool, error) { return len(s.Exosim.DeviceCodes()) > before, nil }); err != nil {
		cmd.Process.Kill()
		<-done
		t.Fatalf("no code was asked for: %v\n%s", err, &b)
	}
	codes := s.Exosim.DeviceCodes()
	code := codes[len(codes)-1].UserCode
	if err := s.Exosim.Approve(code, user); err != nil {
		t.Fatal(err)
	}
	err = <-done
	if !strings.Contains(b.String(), code) || !strings.Contains(b.String(), "https://microsoft.com/devicelogin") {
		t.Errorf("neither code nor address were shown:\n%s", &b)
	}
	return b.String(), err
}

// status runs "sendas status".
func (s *Site) status(ctx context.Context, t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(ctx, s.Token.binary, append([]string{"status", "--config", s.Config}, args...)...).CombinedOutput()
	if err != nil {
		t.Errorf("sendas status: %v\n%s", err, out)
	}
	return string(out)
}

// deferred waits until one message is in the queue and a reason of it contains the text.
func (s *Site) deferred(ctx context.Context, t *testing.T, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := s.waitDeferred(ctx, text); err != nil {
		log, _ := s.Postfix.Log()
		t.Fatalf("%v\n%s", err, last(log))
	}
}

// TestDeviceCode: a mailbox that a user signs in for, from nothing to mail, over a revocation and
// to a new sign-in.
func TestDeviceCode(t *testing.T) {
	c := SiteConfig{Minute: 6 * time.Second}
	scanUser(&c)
	s, ctx := startSite(t, c)
	var said []string
	send := func(n int) {
		t.Helper()
		m := Mail{XClient: printer, From: "mfp3@floor.local", To: []string{"someone@fabrikam.com"},
			Data: message("From: Mfp 3 <mfp3@floor.local>", fmt.Sprintf(storyID, fmt.Sprintf("scan-%d", n)), storyDate)}
		if res, err := Send(ctx, s.Postfix.SMTPAddr(), m); err != nil || !res.Accepted() {
			t.Fatalf("%v, %v", res.Verdict(), err)
		}
	}
	reload := func() {
		t.Helper()
		if err := s.Token.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	send(1)
	s.deferred(ctx, t, "local data error") // Postfix tells the reason in its log alone
	if log, _ := s.Postfix.Log(); !strings.Contains(log, "sendas login scan-user") {
		t.Errorf("Postfix's log does not say what to type:\n%s", last(log))
	}

	out, err := s.login(ctx, t, "admin@contoso.com")
	said = append(said, out)
	if err == nil || !strings.Contains(out, "admin@contoso.com") || !strings.Contains(out, "scan@contoso.com") {
		t.Errorf("signed in as the administrator: %v\n%s", err, out)
	}
	grants, _ := filepath.Glob(filepath.Join(s.Dir, "state", "*", "*"))
	if len(grants) > 0 {
		t.Errorf("a grant of somebody else is kept: %v", grants)
	}

	if out, err = s.login(ctx, t, "scan@contoso.com"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	said = append(said, out)
	reload()
	if err := s.WaitMessages(ctx, 1); err != nil {
		t.Fatal(err)
	}
	refresh := s.grant(t)
	if st := s.status(ctx, t); !strings.Contains(st, "scan@contoso.com") || strings.Contains(st, refresh) {
		t.Errorf("status:\n%s", st)
	}

	if err := s.Exosim.RevokeUser("scan@contoso.com"); err != nil {
		t.Fatal(err)
	}
	send(2)
	s.deferred(ctx, t, "535 5.7.3")
	reload() // asks for a token at once, as the refresher does a minute later
	short, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := poll(short, func() (bool, error) { return strings.Contains(s.Token.Log(), "AADSTS50173"), nil }); err != nil {
		t.Fatalf("the log does not say that the grant was revoked: %v\n%s", err, last(s.Token.Log()))
	}
	if st := s.status(ctx, t); !strings.Contains(st, "AADSTS50173") || !strings.Contains(st, "sendas login scan-user") {
		t.Errorf("status after the revocation:\n%s", st)
	}
	if out, err = s.login(ctx, t, "scan@contoso.com"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	said = append(said, out, s.status(ctx, t), s.status(ctx, t, "--json"))
	reload()
	if err := s.WaitMessages(ctx, 2); err != nil {
		t.Fatal(err)
	}
	everything := append(said, slices.Collect(maps.Values(s.Outputs(ctx)))...)
	for _, secret := range []string{refresh, s.grant(t), "eyJ"} {
		for _, text := range everything {
			if strings.Contains(text, secret) {
				t.Errorf("a secret shows:\n%.300s", text)
			}
		}
	}
}

// grant returns the stored refresh token of the only credential that has one, whose file must be
// the service's own.
func (s *Site) grant(t *testing.T) string {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(s.Dir, "state", "grants", "*")) // beside them is what is being delivered
	if len(files) != 1 {
		t.Fatalf("grants %v, want one", files)
	}
	info, err := os.Stat(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); info.Mode().Perm() != 0o600 || st.Uid != tokenUser {
		t.Errorf("%s has mode %v and belongs to %d", files[0], info.Mode(), st.Uid)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), `"refresh_token"`)
	if !ok {
		t.Fatalf("%s holds no refresh token", files[0])
	}
	return strings.Split(rest, `"`)[1]
}

// TestManagedIdentity: a machine of Azure's that needs no secret of ours.
func TestManagedIdentity(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{
		Minute: 6 * time.Second,
		Exosim: func(c *exosim.Config) {
			c.IMDS = "127.0.0.1:0"
			c.ManagedIdentities = []directory.ManagedIdentity{{SystemAssigned: true, App: directory.App{ClientID: "5f2c0d3e-0000-4000-8000-000000000021",
				ObjectID: "0b1ec700-0000-4000-8000-000000000022", Model: directory.ModelClassic, Mailboxes: []string{"*"}}}}
		},
		YAML: withCredential("  relay-app:\n    flow: managed_identity\n"),
		TokenEnv: func(e *exosim.Server) []string {
			return []string{"IDENTITY_ENDPOINT=" + e.AppServiceEndpoint(), "IDENTITY_HEADER=" + e.IdentityHeader()}
		},
	})
	if res, err := Send(ctx, s.Postfix.SMTPAddr(), burstMail(1)); err != nil || !res.Accepted() {
		t.Fatalf("%v, %v", res.Verdict(), err)
	}
	if err := s.WaitMessages(ctx, 1); err != nil {
		t.Fatal(err)
	}
	for where, text := range s.Outputs(ctx) {
		if strings.Contains(text, s.Exosim.IdentityHeader()) {
			t.Errorf("the identity header shows in %s", where)
		}
	}
}

// TestFederated: an app that another issuer vouches for, by a file that changes.
func TestFederated(t *testing.T) {
	var file string
	s, ctx := startSite(t, SiteConfig{
		Minute: 6 * time.Second,
		Exosim: func(c *exosim.Config) {
			c.Apps[0].Secret = ""
			c.Apps[0].Federated = directory.Federated{Subject: "system:serviceaccount:mail:relay"}
			file = filepath.Join(filepath.Dir(c.CAFile), "projected-token")
		},
		YAML: withCredential("  relay-app:\n    flow: federated\n    token_file: projected-token\n    client_id: CLIENTID\n"),
		TokenEnv: func(e *exosim.Server) []string {
			if err := writeOwned(file, e.FederatedToken("system:serviceaccount:mail:relay", time.Hour), 0o640, tokenUser); err != nil {
				t.Error(err)
			}
			return nil
		},
	})
	if res, err := Send(ctx, s.Postfix.SMTPAddr(), burstMail(1)); err != nil || !res.Accepted() {
		t.Fatalf("%v, %v", res.Verdict(), err)
	}
	if err := s.WaitMessages(ctx, 1); err != nil {
		t.Fatal(err)
	}
}
