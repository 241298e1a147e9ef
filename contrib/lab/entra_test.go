package lab

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim"
	"github.com/sendas/sendas/contrib/exosim/directory"
	microsoft "github.com/sendas/sendas/contrib/exosim/entra"
	"github.com/sendas/sendas/token/entra"
)

// entraSite is the simulated Entra with the two kinds of credential that a relay has.
type entraSite struct {
	*exosim.Server
	app  *entra.ClientCredentials
	user *entra.Delegated
	sign *entra.SignIn
}

func newEntra(t *testing.T) *entraSite {
	t.Helper()
	dir := t.TempDir()
	ca, secret := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "relay-app.secret")
	if err := os.WriteFile(secret, []byte("s3cr3t-of-the-relay-app\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := exosim.Start(exosim.Config{
		CAFile: ca,
		DirectoryConfig: exosim.DirectoryConfig{
			Domains: []string{"contoso.com"}, Users: []directory.User{{UPN: "scan@contoso.com"}},
			Apps: []directory.App{
				{ClientID: clientID, ObjectID: objectID, Secret: "s3cr3t-of-the-relay-app", Mailboxes: []string{"*"}},
				{ClientID: userApp, ObjectID: "0b1ec700-0000-4000-8000-000000000012", Public: true},
			},
			Mailboxes: []directory.Mailbox{{Address: "scan@contoso.com"}},
		},
		EntraConfig: exosim.EntraConfig{DeviceFlow: microsoft.DeviceFlow{Interval: time.Second, ApproveAs: "scan@contoso.com"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	client, err := entra.NewHTTPClient(entra.HTTPOptions{CAFile: ca})
	if err != nil {
		t.Fatal(err)
	}
	const scope = "https://outlook.office.com/SMTP.Send"
	return &entraSite{Server: s,
		app: &entra.ClientCredentials{Credential: "relay-app", ClientID: clientID, Scope: "https://outlook.office365.com/.default",
			TokenURL: s.TokenURL(), SecretFile: secret, Client: client},
		user: &entra.Delegated{Credential: "scan-user", ClientID: userApp, Scope: scope, TokenURL: s.TokenURL(), Client: client,
			Vault: &entra.Vault{Dir: filepath.Join(dir, "grants")}},
		sign: &entra.SignIn{Credential: "scan-user", Authority: s.Authority(), Tenant: "contoso.onmicrosoft.com", ClientID: userApp, Scopes: []string{scope}, Client: client},
	}
}

// login signs the user in and stores the grant.
func (e *entraSite) login(ctx context.Context, t *testing.T) {
	t.Helper()
	g, err := e.sign.DeviceCode(ctx, func(entra.DevicePrompt) {})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	err = e.user.Vault.Save("scan-user", &entra.StoredGrant{Refresh: g.Refresh, ClientID: userApp, User: "scan@contoso.com", SignedIn: now, Refreshed: now, Used: now})
	if err != nil {
		t.Fatal(err)
	}
}

// TestSignInOutlivesDay90: a sign-in that is used lasts, because each refresh brings a new refresh
// token; where none comes, its date tells so before Entra does.
func TestSignInOutlivesDay90(t *testing.T) {
	for _, tc := range []struct {
		name string
		keep bool // Entra gives no new ones
		good int  // months that it lasts
	}{{"renewed", false, 5}, {"kept", true, 2}} {
		e := newEntra(t)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		e.login(ctx, t)
		signedIn, err := e.user.Vault.Load("scan-user")
		if err != nil {
			t.Fatal(err)
		}
		if err := e.SetFaults(exosim.Faults{EntraFaults: microsoft.Faults{KeepRefresh: tc.keep}}); err != nil {
			t.Fatal(err)
		}
		for month := range 5 {
			e.AgeGrants(31 * 24 * time.Hour)
			_, err := e.user.Token(ctx)
			if (err == nil) != (month < tc.good) || err != nil && !strings.Contains(err.Error(), "AADSTS700082") {
				t.Errorf("%s, month %d: %v, want %d good months", tc.name, month+1, err, tc.good)
			}
		}
		g, err := e.user.Vault.Load("scan-user")
		if err != nil || g.Kept() != tc.keep || g.Renewed().Equal(signedIn.Renewed()) != tc.keep {
			t.Errorf("%s: renewed on %v, kept %v (%v)", tc.name, g.Renewed(), g.Kept(), err)
		}
		cancel()
	}
}

// said is all that an administrator gets to read about an error.
func said(err error) string {
	if err == nil {
		return ""
	}
	text := err.Error()
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		text += " | " + h.Hint()
	}
	return text
}

// TestEntraTroubles: what goes wrong at Entra or on the way to it, and the sentence that it
// becomes.
func TestEntraTroubles(t *testing.T) {
	e := newEntra(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	e.login(ctx, t)
	refuse := func(grant, code string) func() error { return func() error { return e.RefuseGrant(grant, code) } }
	fault := func(f microsoft.Faults) func() error {
		return func() error { return e.SetFaults(exosim.Faults{EntraFaults: f}) }
	}
	for _, tc := range []struct {
		name    string
		source  entra.Source
		trouble func() error
		want    []string // nil: a token comes
	}{
		{"app", e.app, fault(microsoft.Faults{}), nil},
		{"user", e.user, fault(microsoft.Faults{}), nil},
		{"no connection", e.app, fault(microsoft.Faults{Refuse: true}), []string{"gave no answer", "connection refused", "check firewall, route and proxy"}},
		{"connection ends", e.user, fault(microsoft.Faults{Down: true}), []string{"gave no answer"}},
		{"too many requests", e.app, fault(microsoft.Faults{Status: 429, Retry: 7}), []string{"HTTP 429", "Microsoft asks for fewer requests; sendas waits by itself"}},
		{"out of order", e.app, fault(microsoft.Faults{Status: 503}), []string{"HTTP 503", "sendas tries again by itself"}},
		{"a web page instead", e.app, fault(microsoft.Faults{Status: 200}), []string{"something that is not the JSON of a token"}},
		{"cut off", e.app, fault(microsoft.Faults{Truncated: true}), []string{"an answer that is cut off"}},
		{"life as a text", e.app, fault(microsoft.Faults{StringExpiry: true}), nil},
		{"another type of content", e.user, fault(microsoft.Faults{ContentType: "text/plain"}), []string{"answered with an answer without a token"}},
		{"another secret", e.app, refuse(microsoft.GrantClientCredentials, "AADSTS7000215"), []string{"AADSTS7000215", "the client secret is wrong; often its ID was copied instead of its Value", "relay-app.secret"}},
		{"secret over", e.app, refuse(microsoft.GrantClientCredentials, "AADSTS7000222"), []string{"the client secret has expired", "write its Value into"}},
		{"app unknown", e.app, refuse(microsoft.GrantClientCredentials, "AADSTS700016"), []string{"the tenant has no app with the id " + clientID}},
		{"blocked by policy", e.user, refuse(microsoft.GrantRefreshToken, "AADSTS53003"), []string{"AADSTS53003", "a Conditional Access or security policy of the tenant blocks the sign-in"}},
		{"unused too long", e.user, refuse(microsoft.GrantRefreshToken, "AADSTS700082"), []string{"the refresh token lay unused too long", `sign in again with "sendas login scan-user"`}},
		{"second factor", e.user, refuse(microsoft.GrantRefreshToken, "AADSTS50076"), []string{"must sign in with a second factor", `"sendas login scan-user"`}},
		{"a loop, says Entra", e.app, refuse(microsoft.GrantClientCredentials, "AADSTS50196"), []string{"took it for a loop", "sendas waits by itself"}},
		{"revoked", e.user, func() error { return e.RevokeUser("scan@contoso.com") }, []string{"AADSTS50173", "the grant was revoked", `sign in again with "sendas login scan-user"`}},
	} {
		if err := tc.trouble(); err != nil {
			t.Fatal(err)
		}
		e.app.Client.CloseIdleConnections() // so that how the last one ended is no matter; both sources share the client
		tok, err := tc.source.Token(ctx)
		if tc.want == nil && err != nil || tc.want != nil && err == nil {
			t.Errorf("%s: error %v", tc.name, err)
		}
		if err == nil && (tok.Access == "" || time.Until(tok.Expires) < entra.MinLife) {
			t.Errorf("%s: a token until %v", tc.name, tok.Expires)
		}
		for _, want := range tc.want {
			if text := said(err); !strings.Contains(text, want) {
				t.Errorf("%s: %s\nlacks %q", tc.name, text, want)
			}
		}
		for _, secret := range []string{"s3cr3t-of-the-relay-app", "eyJ"} {
			if strings.Contains(said(err), secret) {
				t.Errorf("%s: the error shows a secret: %s", tc.name, said(err))
			}
		}
		for _, grant := range []string{microsoft.GrantClientCredentials, microsoft.GrantRefreshToken} {
			if err := errors.Join(e.SetFaults(exosim.Faults{}), e.RefuseGrant(grant, "")); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestSlowEntra: an answer that takes longer than anybody waits is given up, and said.
func TestSlowEntra(t *testing.T) {
	e := newEntra(t)
	if err := e.SetFaults(exosim.Faults{EntraFaults: microsoft.Faults{Delay: 30 * time.Second}}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, err := e.app.Token(t.Context())
	if text := said(err); !strings.Contains(text, "gave no answer") || !strings.Contains(text, "is slow for the moment") {
		t.Errorf("%s", text)
	}
	if took := time.Since(began); took > 29*time.Second {
		t.Errorf("given up after %v, want less than the 30 s of the answer", took)
	}
}

// TestSignInTroubles: what a person at the terminal is told.
func TestSignInTroubles(t *testing.T) {
	e := newEntra(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for _, tc := range []struct{ name, grant, code, want string }{
		{"declined", microsoft.GrantDeviceCode, "authorization_declined", "somebody declined the sign-in in the browser"},
		{"too late", microsoft.GrantDeviceCode, "AADSTS70019", "the code was not entered in time"},
		{"no public client", microsoft.GrantDeviceStart, "AADSTS7000218", `set "Allow public client flows" to Yes`},
		{"tenant unknown", microsoft.GrantDeviceStart, "AADSTS90002", "Microsoft knows no such tenant in this cloud"},
	} {
		if err := e.RefuseGrant(tc.grant, tc.code); err != nil {
			t.Fatal(err)
		}
		_, err := e.sign.DeviceCode(ctx, func(entra.DevicePrompt) {})
		if text := said(err); !strings.Contains(text, tc.want) {
			t.Errorf("%s: %s\nlacks %q", tc.name, text, tc.want)
		}
		if err := e.RefuseGrant(tc.grant, ""); err != nil {
			t.Fatal(err)
		}
	}
}
