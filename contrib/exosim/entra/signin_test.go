package entra

import (
	"crypto/sha256"
	"encoding/base64"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
)

// claims reads a token that the simulator signed.
func claims(t testing.TB, s *site, token any) jwt.MapClaims {
	t.Helper()
	var c jwt.MapClaims
	text, _ := token.(string)
	if _, err := jwt.ParseWithClaims(text, &c, func(*jwt.Token) (any, error) { return s.key.Public(), nil }); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestDeviceCodeAnswer: the members of the first answer, and no others.
func TestDeviceCodeAnswer(t *testing.T) {
	s := startSignIn(t, func(c *siteConfig) { c.DeviceFlow = DeviceFlow{} })
	status, m := visitor.Post(t, s, visitor.DevicePath, visitor.Values("client_id", app5, "scope", signInScope))
	user, _ := m["user_code"].(string)
	for k, want := range map[string]any{
		"verification_uri": "https://microsoft.com/devicelogin", "expires_in": 900.0, "interval": 5.0,
		"message": "To sign in, use a web browser to open the page https://microsoft.com/devicelogin and enter the code " + user + " to authenticate.",
	} {
		if m[k] != want {
			t.Errorf("%s is %v, want %v", k, m[k], want)
		}
	}
	if device, _ := m["device_code"].(string); status != 200 || len(m) != 6 || len(user) != 9 || len(device) < 100 {
		t.Errorf("status %d, %v", status, m)
	}
	for _, tc := range []struct {
		life    time.Duration
		seconds int
	}{{0, 1}, {time.Millisecond, 1}, {time.Second, 1}, {1500 * time.Millisecond, 2}, {15 * time.Minute, 900}} {
		if got := seconds(tc.life); got != tc.seconds {
			t.Errorf("seconds(%v) = %d, want %d", tc.life, got, tc.seconds)
		}
	}
}

func TestDeviceCodeRefusals(t *testing.T) {
	s := startSignIn(t, nil)
	good := visitor.Values("client_id", app5, "scope", signInScope)
	for _, tc := range []struct {
		name, path string
		form       url.Values
		oauth      string
		code       int
	}{
		{"unknown app", visitor.DevicePath, visitor.With(good, "client_id", "x"), "unauthorized_client", 700016},
		{"unknown tenant", "/fabrikam.com/oauth2/v2.0/devicecode", good, "invalid_request", 90002},
		{"common, for an app of one tenant", "/common/oauth2/v2.0/devicecode", good, "invalid_request", 50194},
		{"no scope", visitor.DevicePath, visitor.With(good, "scope", ""), "invalid_request", 900144},
		{"two resources", visitor.DevicePath, visitor.With(good, "scope", sendScope+" https://graph.microsoft.com/Mail.Send"), "invalid_scope", 70011},
		{"a forgotten resource", visitor.DevicePath, visitor.With(good, "scope", sendScope+" User.Read"), "invalid_scope", 70011},
		{"unknown permission", visitor.DevicePath, visitor.With(good, "scope", "https://outlook.office.com/SMTP.Sent"), "invalid_scope", 70011},
		{"unknown resource", visitor.DevicePath, visitor.With(good, "scope", "https://smtp.office365.com/SMTP.Send"), "invalid_resource", 500011},
	} {
		status, m := visitor.Post(t, s, tc.path, tc.form)
		visitor.WantRefusal(t, tc.name, status, m, tc.oauth, tc.code)
	}
	if status, m := visitor.Post(t, s, "/organizations/oauth2/v2.0/devicecode", visitor.With(good, "client_id", app6)); status != 200 {
		t.Errorf("organizations, for an app of all: status %d, %v", status, m)
	}
	if n := s.TokenRequestsByGrant()[GrantDeviceStart]; n["AADSTS70011"] != 3 || n["ok"] != 1 || len(s.TokenRequests()) != 0 {
		t.Errorf("counted %v, and as token requests %v", n, s.TokenRequests())
	}
}

// TestDeviceFlow is the whole story, with all that a poll can meet.
func TestDeviceFlow(t *testing.T) {
	s := startSignIn(t, nil)
	device, code := visitor.StartDeviceFlow(t, s)
	poll := func(name, oauth string, want int) {
		t.Helper()
		status, m := visitor.Post(t, s, visitor.TokenPath, visitor.PollForm(device))
		visitor.WantRefusal(t, name, status, m, oauth, want)
	}
	poll("pending", "authorization_pending", 70016)
	poll("still pending", "authorization_pending", 70016)
	status, m := visitor.Post(t, s, visitor.TokenPath, visitor.PollForm("other"))
	visitor.WantRefusal(t, "unknown code", status, m, "bad_verification_code", 70018)
	status, m = visitor.Post(t, s, visitor.TokenPath, visitor.PollForm(device, "client_id", app6, "client_secret", "s6"))
	visitor.WantRefusal(t, "another app's code", status, m, "bad_verification_code", 70018)
	if err := s.Approve(strings.ToLower(code[:4])+"-"+code[4:], "ERP@contoso.com"); err != nil {
		t.Fatal(err)
	}
	if list := s.DeviceCodes(); len(list) != 1 || list[0].State != "approved" || list[0].User != "erp@contoso.com" || list[0].Polls != 2 || list[0].ClientID != app5 {
		t.Errorf("device codes %+v", list)
	}
	status, m = visitor.Post(t, s, visitor.TokenPath, visitor.PollForm(device))
	if status != 200 || m["token_type"] != "Bearer" || m["expires_in"] != 3599.0 || m["ext_expires_in"] != 3599.0 || m["scope"] != sendScope || len(m) != 6 {
		t.Errorf("status %d, %v", status, m)
	}
	wantDelegated(t, claims(t, s, m["access_token"]), map[string]any{
		"aud": "https://outlook.office.com", "scp": "SMTP.Send", "upn": "erp@contoso.com", "unique_name": "erp@contoso.com", "oid": "u1", "appid": app5,
		"appidacr": "0", "tid": s.ID(), "ver": "1.0", "roles": nil, "idtyp": "user",
	})
	if why := s.opens("erp@contoso.com", m["access_token"].(string)); why != "" {
		t.Errorf("the token opens no mailbox: %s", why)
	}
	poll("a second time", "invalid_grant", 54005)
	if n := s.TokenRequestsByGrant()[GrantDeviceCode]; n["AADSTS70016"] != 2 || n["ok"] != 1 || s.TokenRequests()["AADSTS70016"] != 2 {
		t.Errorf("counted %v", n)
	}
}

func wantDelegated(t testing.TB, c jwt.MapClaims, want map[string]any) {
	t.Helper()
	for k, v := range want {
		if c[k] != v {
			t.Errorf("claim %s is %v, want %v", k, c[k], v)
		}
	}
}

func TestDeviceDeclined(t *testing.T) {
	s := startSignIn(t, nil)
	device, code := visitor.StartDeviceFlow(t, s)
	if err := s.Decline(code); err != nil {
		t.Fatal(err)
	}
	status, m := visitor.Post(t, s, visitor.TokenPath, visitor.PollForm(device))
	visitor.WantRefusal(t, "declined", status, m, "authorization_declined", 0)
	if err := s.Approve(code, "erp@contoso.com"); err == nil || !strings.Contains(err.Error(), "is declined") {
		t.Errorf("approved what was declined: %v", err)
	}
}

func TestDeviceExpired(t *testing.T) {
	s := startSignIn(t, func(c *siteConfig) { c.DeviceFlow.Life = time.Nanosecond })
	device, code := visitor.StartDeviceFlow(t, s)
	status, m := visitor.Post(t, s, visitor.TokenPath, visitor.PollForm(device))
	visitor.WantRefusal(t, "expired", status, m, "expired_token", 70019)
	if err := s.Approve(code, "erp@contoso.com"); err == nil || !strings.Contains(err.Error(), "is expired") {
		t.Errorf("approved what is expired: %v", err)
	}
}

func TestDeviceSlowDown(t *testing.T) {
	s := startSignIn(t, func(c *siteConfig) { c.DeviceFlow.SlowDown, c.DeviceFlow.Interval = true, time.Hour })
	device, code := visitor.StartDeviceFlow(t, s)
	status, m := visitor.Post(t, s, visitor.TokenPath, visitor.PollForm(device))
	visitor.WantRefusal(t, "first", status, m, "authorization_pending", 70016)
	if err := s.Approve(code, "erp@contoso.com"); err != nil {
		t.Fatal(err)
	}
	status, m = visitor.Post(t, s, visitor.TokenPath, visitor.PollForm(device))
	visitor.WantRefusal(t, "too soon", status, m, "slow_down", 0)
}

// TestDeviceByItself: a user who approves without being asked, after two polls.
func TestDeviceByItself(t *testing.T) {
	s := startSignIn(t, func(c *siteConfig) { c.DeviceFlow.ApproveAs, c.DeviceFlow.ApproveAfter = "hr@contoso.com", 2 })
	device, _ := visitor.StartDeviceFlow(t, s)
	for range 2 {
		status, m := visitor.Post(t, s, visitor.TokenPath, visitor.PollForm(device))
		visitor.WantRefusal(t, "pending", status, m, "authorization_pending", 70016)
	}
	status, m := visitor.Post(t, s, visitor.TokenPath, visitor.PollForm(device))
	if status != 200 || claims(t, s, m["access_token"])["upn"] != "hr@contoso.com" {
		t.Errorf("status %d, %v", status, m)
	}
}

// TestDeviceOnce: of many polls at the same time one gets the token.
func TestDeviceOnce(t *testing.T) {
	s := startSignIn(t, nil)
	device, code := visitor.StartDeviceFlow(t, s)
	if err := s.Approve(code, "erp@contoso.com"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { visitor.Ask(t, s, visitor.TokenPath, visitor.PollForm(device), nil) })
	}
	wg.Wait()
	if n := s.TokenRequests(); n["ok"] != 1 || n["AADSTS54005"] != 7 {
		t.Errorf("counted %v", n)
	}
}

// TestApproveFails: what the sign-in page says to people.
func TestApproveFails(t *testing.T) {
	s := startSignIn(t, nil)
	_, code := visitor.StartDeviceFlow(t, s)
	for _, tc := range []struct {
		name, code, user string
		change           func(*directory.User)
		want             string
	}{
		{"wrong code", "AAAAAAAAA", "erp@contoso.com", nil, "no user code"},
		{"nobody", code, "boss@contoso.com", nil, "AADSTS50034"},
		{"disabled", code, "hr@contoso.com", func(u *directory.User) { u.Disabled = true }, "AADSTS50057"},
		{"blocked", code, "hr@contoso.com", func(u *directory.User) { u.Disabled, u.Blocked = false, true }, "AADSTS53003"},
		{"no consent", code, "hr@contoso.com", func(u *directory.User) { u.Blocked, u.NoConsent = false, true }, "AADSTS65001"},
	} {
		if tc.change != nil {
			s.SetUser(tc.user, tc.change)
		}
		if err := s.Approve(tc.code, tc.user); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %s", tc.name, err, tc.want)
		}
	}
	if err := s.Decline(code); err != nil { // none of them used it up
		t.Error(err)
	}
}

// TestPublicClient: a public client must not prove itself, another must.
func TestPublicClient(t *testing.T) {
	s := startSignIn(t, nil)
	for _, grant := range []string{"urn:ietf:params:oauth:grant-type:device_code", "authorization_code", "refresh_token"} {
		f := visitor.Values("grant_type", grant, "client_id", app5, "client_secret", "x")
		status, m := visitor.Post(t, s, visitor.TokenPath, f)
		visitor.WantRefusal(t, grant, status, m, "invalid_client", 700025)
		status, m = visitor.Post(t, s, visitor.TokenPath, visitor.With(f, "client_secret", "", "client_assertion", "x"))
		visitor.WantRefusal(t, grant, status, m, "invalid_client", 700025)
		status, m = visitor.Post(t, s, visitor.TokenPath, visitor.With(f, "client_id", app6, "client_secret", ""))
		visitor.WantRefusal(t, grant, status, m, "invalid_client", 7000218)
		status, m = visitor.Post(t, s, visitor.TokenPath, visitor.With(f, "client_id", app6))
		visitor.WantRefusal(t, grant, status, m, "invalid_client", 7000215)
	}
}

func TestAuthorizationCode(t *testing.T) {
	s := startSignIn(t, nil)
	status, to := visitor.Open(t, s, "contoso.onmicrosoft.com", visitor.AuthorizeQuery())
	v := to.Query()
	if status != 302 || to.Scheme != "http" || to.Host != "localhost:40123" || to.Path != "/" || v.Get("state") != "s t&te" || v.Get("error") != "" {
		t.Fatalf("status %d to %v", status, to)
	}
	status, m := visitor.Post(t, s, visitor.TokenPath, visitor.CodeForm(v.Get("code"), "scope", signInScope+" openid"))
	if status != 200 || m["scope"] != sendScope || m["refresh_token"] == nil {
		t.Errorf("status %d, %v", status, m)
	}
	wantDelegated(t, claims(t, s, m["access_token"]), map[string]any{"upn": "erp@contoso.com", "scp": "SMTP.Send", "aud": "https://outlook.office.com"})
	if c := claims(t, s, m["id_token"]); c["preferred_username"] != "erp@contoso.com" || c["aud"] != app5 {
		t.Errorf("id_token %v", c)
	}
	status, m = visitor.Post(t, s, visitor.TokenPath, visitor.CodeForm(v.Get("code")))
	visitor.WantRefusal(t, "again", status, m, "invalid_grant", 54005)
	if !strings.Contains(m["error_description"].(string), "already redeemed") {
		t.Errorf("again: %v", m)
	}
}

// TestCodeRefusals: what is wrong with a code does not use it up.
func TestCodeRefusals(t *testing.T) {
	s := startSignIn(t, nil)
	code := visitor.NewCode(t, s)
	other := base64.RawURLEncoding.EncodeToString(make([]byte, 32))
	for _, tc := range []struct {
		name  string
		form  url.Values
		oauth string
		code  int
	}{
		{"wrong verifier", visitor.CodeForm(code, "code_verifier", other), "invalid_grant", 501481},
		{"no verifier", visitor.CodeForm(code, "code_verifier", ""), "invalid_grant", 501481},
		{"short verifier", visitor.CodeForm(code, "code_verifier", visitor.Verifier[1:]), "invalid_grant", 501481},
		{"another redirect", visitor.CodeForm(code, "redirect_uri", "http://localhost:40124/"), "invalid_client", 500112},
		{"another app", visitor.CodeForm(code, "client_id", app6, "client_secret", "s6"), "invalid_grant", 70000},
		{"no such code", visitor.CodeForm("x"), "invalid_grant", 70000},
		{"two resources", visitor.CodeForm(code, "scope", sendScope+" https://graph.microsoft.com/User.Read"), "invalid_scope", 28002},
	} {
		status, m := visitor.Post(t, s, visitor.TokenPath, tc.form)
		visitor.WantRefusal(t, tc.name, status, m, tc.oauth, tc.code)
	}
	if status, m := visitor.Post(t, s, visitor.TokenPath, visitor.CodeForm(code)); status != 200 {
		t.Errorf("the right one: status %d, %v", status, m)
	}
	sum := sha256.Sum256([]byte(other))
	old := visitor.NewCode(t, s, "code_challenge", base64.RawURLEncoding.EncodeToString(sum[:]))
	if status, m := visitor.Post(t, s, visitor.TokenPath, visitor.CodeForm(old, "code_verifier", other)); status != 200 {
		t.Errorf("another verifier: status %d, %v", status, m)
	}
}

func TestCodeExpired(t *testing.T) {
	s := startSignIn(t, func(c *siteConfig) { c.SignIn.CodeLife = time.Nanosecond })
	status, m := visitor.Post(t, s, visitor.TokenPath, visitor.CodeForm(visitor.NewCode(t, s)))
	visitor.WantRefusal(t, "expired", status, m, "invalid_grant", 70008)
}

// TestAuthorizeErrors: errors are redirects, but for a redirect_uri that cannot
// be trusted.
func TestAuthorizeErrors(t *testing.T) {
	const tenant = "contoso.onmicrosoft.com"
	for _, tc := range []struct {
		name   string
		change func(*site)
		tenant string
		query  url.Values
		status int
		oauth  string // "" is a page
		code   string
	}{
		{"unknown app", nil, tenant, visitor.AuthorizeQuery("client_id", "x"), 400, "", ""},
		{"unknown tenant", nil, "fabrikam.com", visitor.AuthorizeQuery(), 400, "", ""},
		{"another host", nil, tenant, visitor.AuthorizeQuery("redirect_uri", "http://evil.example/"), 400, "", ""},
		{"another path", nil, tenant, visitor.AuthorizeQuery("redirect_uri", "http://localhost:1/x"), 400, "", ""},
		{"no redirect", nil, tenant, visitor.AuthorizeQuery("redirect_uri", ""), 400, "", ""},
		{"token instead of code", nil, tenant, visitor.AuthorizeQuery("response_type", "token"), 302, "unsupported_response_type", "AADSTS700051"},
		{"no PKCE", nil, tenant, visitor.AuthorizeQuery("code_challenge", ""), 302, "invalid_request", "AADSTS9002325"},
		{"plain PKCE", nil, tenant, visitor.AuthorizeQuery("code_challenge_method", "plain"), 302, "invalid_request", "AADSTS50149"},
		{"short challenge", nil, tenant, visitor.AuthorizeQuery("code_challenge", visitor.Challenge[1:]), 302, "invalid_request", "AADSTS501491"},
		{"two resources", nil, tenant, visitor.AuthorizeQuery("scope", sendScope+" User.Read"), 302, "invalid_scope", "AADSTS70011"},
		{"no scope", nil, tenant, visitor.AuthorizeQuery("scope", ""), 302, "invalid_request", "AADSTS900144"},
		{"unknown user", nil, tenant, visitor.AuthorizeQuery("login_hint", "boss@contoso.com"), 302, "invalid_grant", "AADSTS50034"},
		{"declined", refuseAt("access_denied"), tenant, visitor.AuthorizeQuery(), 302, "access_denied", "AADSTS65004"},
		{"consent", refuseAt("AADSTS65001"), tenant, visitor.AuthorizeQuery(), 302, "consent_required", "AADSTS65001"},
		{"blocked", func(s *site) { s.SetUser("erp@contoso.com", func(u *directory.User) { u.Blocked = true }) }, tenant, visitor.AuthorizeQuery(), 302, "access_denied", "AADSTS53003"},
		{"hint wanted", func(s *site) { s.SetSignIn(func(p *SignIn) { p.RequireLoginHint = true }) }, tenant, visitor.AuthorizeQuery(), 302, "login_required", "AADSTS50058"},
	} {
		s := startSignIn(t, nil)
		if tc.change != nil {
			tc.change(s)
		}
		status, to := visitor.Open(t, s, tc.tenant, tc.query)
		v := to.Query()
		if status != tc.status || v.Get("error") != tc.oauth || !strings.HasPrefix(v.Get("error_description"), tc.code) || v.Has("code") || tc.status == 302 && v.Get("state") != "s t&te" ||
			(v.Get("error_subcode") == "cancel") != (tc.code == "AADSTS65004") {
			t.Errorf("%s: status %d to %v, want %d %s %s", tc.name, status, to, tc.status, tc.oauth, tc.code)
		}
	}
}

func refuseAt(code string) func(*site) {
	return func(s *site) {
		if err := s.RefuseGrant(GrantAuthorize, code); err != nil {
			panic(err)
		}
	}
}

// TestWhoSignsIn: people sign in with the account they like.
func TestWhoSignsIn(t *testing.T) {
	for _, tc := range []struct{ configured, hint, want string }{
		{"", "", "erp@contoso.com"}, {"", "HR@contoso.com", "hr@contoso.com"}, {"hr@contoso.com", "", "hr@contoso.com"},
		{"hr@contoso.com", "erp@contoso.com", "hr@contoso.com"},
	} {
		s := startSignIn(t, func(c *siteConfig) { c.SignIn.User = tc.configured })
		_, m := visitor.Post(t, s, visitor.TokenPath, visitor.CodeForm(visitor.NewCode(t, s, "login_hint", tc.hint)))
		if got := claims(t, s, m["access_token"])["upn"]; got != tc.want {
			t.Errorf("%+v: %v signed in", tc, got)
		}
	}
}

func TestSameRedirect(t *testing.T) {
	for _, tc := range []struct {
		registered, asked string
		want              bool
	}{
		{"http://localhost", "http://localhost", true},
		{"http://localhost", "http://localhost:8400/", true},
		{"http://localhost:1234/x", "http://localhost:8400/x", true},
		{"http://127.0.0.1/x", "http://127.0.0.1:8400/x", true},
		{"http://localhost", "http://127.0.0.1:8400/", false},
		{"http://localhost", "http://localhost:8400/x", false},
		{"http://localhost", "https://localhost:8400/", false},
		{"http://localhost", "http://localhost.evil.example/", false},
		{"http://localhost", "http://x@localhost/", false},
		{"http://localhost", "http://localhost/#x", false},
		{"http://localhost", "http://localhost/?x", false},
		{"http://localhost", "", false},
		{"http://localhost", "http://%", false},
		{"https://relay.contoso.com/done", "https://relay.contoso.com/done", true},
		{"https://relay.contoso.com/done", "https://relay.contoso.com:8443/done", false},
	} {
		if got := sameRedirect(tc.registered, tc.asked); got != tc.want {
			t.Errorf("sameRedirect(%q, %q) = %v, want %v", tc.registered, tc.asked, got, tc.want)
		}
	}
}

// TestConfidential: an app with a secret, for users of every tenant.
func TestConfidential(t *testing.T) {
	s := startSignIn(t, nil)
	const back = "https://relay.contoso.com/done"
	_, to := visitor.Open(t, s, "common", visitor.AuthorizeQuery("client_id", app6, "redirect_uri", back))
	f := visitor.CodeForm(to.Query().Get("code"), "client_id", app6, "redirect_uri", back)
	status, m := visitor.Post(t, s, "/common/oauth2/v2.0/token", f)
	visitor.WantRefusal(t, "no secret", status, m, "invalid_client", 7000218)
	status, m = visitor.Post(t, s, "/common/oauth2/v2.0/token", visitor.With(f, "client_secret", "s6"))
	if status != 200 || claims(t, s, m["access_token"])["appidacr"] != "1" {
		t.Errorf("status %d, %v", status, m)
	}
}

// TestRefresh: a new token where offline_access was asked for, and the old one lives on.
func TestRefresh(t *testing.T) {
	s := startSignIn(t, nil)
	first := visitor.SignedIn(t, s, "erp@contoso.com")["refresh_token"]
	status, m := visitor.Post(t, s, visitor.TokenPath, visitor.RefreshForm(first))
	if status != 200 || m["refresh_token"] == nil || m["refresh_token"] == first || m["scope"] != sendScope {
		t.Errorf("status %d, %v", status, m)
	}
	if why := s.opens("erp@contoso.com", m["access_token"].(string)); why != "" {
		t.Errorf("the token opens no mailbox: %s", why)
	}
	for _, token := range []any{first, m["refresh_token"]} {
		if status, m := visitor.Post(t, s, visitor.TokenPath, visitor.RefreshForm(token, "scope", signInScope)); status != 200 {
			t.Errorf("again: status %d, %v", status, m)
		}
	}
	_, m = visitor.Post(t, s, visitor.TokenPath, visitor.RefreshForm(first, "scope", "https://graph.microsoft.com/User.Read offline_access"))
	wantDelegated(t, claims(t, s, m["access_token"]), map[string]any{"aud": "https://graph.microsoft.com", "scp": "User.Read"})
	if m["refresh_token"] == nil {
		t.Error("another resource: no refresh token")
	}
}

// TestRefreshFollowsScope: a request that does not ask for offline_access gets an access token alone,
// however often, and what it was made of ends on its day.
func TestRefreshFollowsScope(t *testing.T) {
	for _, tc := range []struct {
		name   string
		strict bool
		keep   bool
		scope  []string
		fresh  bool
	}{
		{"asked for", false, false, []string{"scope", signInScope}, true},
		{"not asked for", false, false, []string{"scope", sendScope}, false},
		{"not asked for, old ones refused", true, false, []string{"scope", sendScope}, false},
		{"no scope: that of the sign-in", false, false, nil, true},
		{"asked for in vain", false, true, []string{"scope", signInScope}, false},
	} {
		s := startSignIn(t, func(c *siteConfig) { c.Refresh.RotateStrict = tc.strict })
		s.SetFaults(Faults{KeepRefresh: tc.keep})
		first := visitor.SignedIn(t, s, "erp@contoso.com")["refresh_token"]
		s.AgeGrants(60 * 24 * time.Hour)
		token := first
		for range 2 {
			status, m := visitor.Post(t, s, visitor.TokenPath, visitor.RefreshForm(token, tc.scope...))
			if status != 200 || m["access_token"] == nil || (m["refresh_token"] != nil) != tc.fresh {
				t.Fatalf("%s: status %d, %v", tc.name, status, m)
			}
			if tc.fresh {
				token = m["refresh_token"]
			}
		}
		s.AgeGrants(31 * 24 * time.Hour)
		status, m := visitor.Post(t, s, visitor.TokenPath, visitor.RefreshForm(token, tc.scope...))
		if tc.fresh && status != 200 {
			t.Errorf("%s, on day 91: status %d, %v", tc.name, status, m)
		}
		if !tc.fresh {
			visitor.WantRefusal(t, tc.name+", on day 91", status, m, "invalid_grant", 700082)
		}
	}
}

// TestNoOfflineAccess: without it there is no refresh token.
func TestNoOfflineAccess(t *testing.T) {
	s := startSignIn(t, func(c *siteConfig) { c.DeviceFlow.ApproveAs = "erp@contoso.com" })
	_, m := visitor.Post(t, s, visitor.DevicePath, visitor.Values("client_id", app5, "scope", sendScope))
	if status, m := visitor.Post(t, s, visitor.TokenPath, visitor.PollForm(m["device_code"].(string))); status != 200 || m["refresh_token"] != nil {
		t.Errorf("status %d, %v", status, m)
	}
}

func TestRotateStrict(t *testing.T) {
	s := startSignIn(t, func(c *siteConfig) { c.Refresh.RotateStrict = true })
	first := visitor.SignedIn(t, s, "erp@contoso.com")["refresh_token"]
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { visitor.Ask(t, s, visitor.TokenPath, visitor.RefreshForm(first), nil) })
	}
	wg.Wait()
	if n := s.TokenRequestsByGrant()[GrantRefreshToken]; n["ok"] != 1 || n["AADSTS70000"] != 3 {
		t.Errorf("counted %v", n)
	}
}

// TestRefreshRefusals: why Entra gives no more tokens for a sign-in.
func TestRefreshRefusals(t *testing.T) {
	set := func(change func(*directory.User)) func(*site) {
		return func(s *site) { s.SetUser("erp@contoso.com", change) }
	}
	for _, tc := range []struct {
		name     string
		change   func(*site)
		form     []string
		oauth    string
		code     int
		suberror any
	}{
		{"idle", func(s *site) { s.AgeGrants(90 * 24 * time.Hour) }, nil, "invalid_grant", 700082, nil},
		{"signed in too long ago", func(s *site) { s.AgeGrants(24 * time.Hour) }, nil, "invalid_grant", 70043, "token_expired"},
		{"revoked", func(s *site) { s.RevokeUser("ERP@contoso.com") }, nil, "invalid_grant", 50173, nil},
		{"revoked long ago", func(s *site) { s.RevokeUser("erp@contoso.com"); s.AgeGrants(time.Hour) }, nil, "invalid_grant", 50173, nil},
		{"disabled", set(func(u *directory.User) { u.Disabled = true }), nil, "invalid_grant", 50057, nil},
		{"Conditional Access", set(func(u *directory.User) { u.Blocked = true }), nil, "invalid_grant", 53003, "message_only"},
		{"consent", set(func(u *directory.User) { u.NoConsent = true }), nil, "invalid_grant", 65001, "consent_required"},
		{"second factor", set(func(u *directory.User) { u.NeedsMFA = true }), nil, "interaction_required", 50076, "basic_action"},
		{"all forgotten", (*site).RevokeGrants, nil, "invalid_grant", 70000, nil},
		{"no such token", nil, []string{"refresh_token", "x"}, "invalid_grant", 70000, nil},
		{"another app", nil, []string{"client_id", app6, "client_secret", "s6"}, "invalid_grant", 70000, nil},
		{"no token", nil, []string{"refresh_token", ""}, "invalid_request", 900144, nil},
		{"two resources", nil, []string{"scope", sendScope + " https://graph.microsoft.com/User.Read"}, "invalid_scope", 28002, nil},
		{"wrong permission", nil, []string{"scope", "https://outlook.office.com/SMTP.Sent"}, "invalid_scope", 70011, nil},
		{"common", nil, nil, "", 0, nil},
	} {
		s := startSignIn(t, func(c *siteConfig) { c.Refresh.Frequency = 24 * time.Hour })
		token := visitor.SignedIn(t, s, "erp@contoso.com")["refresh_token"]
		if tc.change != nil {
			tc.change(s)
		}
		path := visitor.TokenPath
		if tc.name == "common" {
			path, tc.oauth, tc.code = "/common/oauth2/v2.0/token", "invalid_request", 50194
		}
		status, m := visitor.Post(t, s, path, visitor.RefreshForm(token, tc.form...))
		visitor.WantRefusal(t, tc.name, status, m, tc.oauth, tc.code)
		if m["suberror"] != tc.suberror {
			t.Errorf("%s: suberror %v, want %v", tc.name, m["suberror"], tc.suberror)
		}
	}
}

// TestIdleText is the text that administrators know.
func TestIdleText(t *testing.T) {
	s := startSignIn(t, nil)
	token := visitor.SignedIn(t, s, "erp@contoso.com")["refresh_token"]
	s.AgeGrants(91 * 24 * time.Hour)
	_, m := visitor.Post(t, s, visitor.TokenPath, visitor.RefreshForm(token))
	d, _ := m["error_description"].(string)
	const want = `^AADSTS700082: The refresh token has expired due to inactivity\. The token was issued on (\S{10}T\S{8})\.\d{7}Z and was inactive for 90\.00:00:00\.\r\nTrace ID: `
	found := regexp.MustCompile(want).FindStringSubmatch(d)
	if found == nil {
		t.Fatalf("description %q", d)
	}
	if issued, err := time.Parse("2006-01-02T15:04:05", found[1]); err != nil || time.Since(issued) < 91*24*time.Hour || time.Since(issued) > 92*24*time.Hour {
		t.Errorf("issued on %v, %v", issued, err)
	}
}

// TestSignInAgain: what helps after a revocation, and when a second factor is
// wanted.
func TestSignInAgain(t *testing.T) {
	for _, why := range []func(*site){
		func(s *site) { s.RevokeUser("erp@contoso.com") },
		func(s *site) { s.SetUser("erp@contoso.com", func(u *directory.User) { u.NeedsMFA = true }) },
	} {
		s := startSignIn(t, nil)
		old := visitor.SignedIn(t, s, "erp@contoso.com")["refresh_token"]
		why(s)
		if status, _ := visitor.Post(t, s, visitor.TokenPath, visitor.RefreshForm(old)); status != 400 {
			t.Errorf("the old one: status %d", status)
		}
		again := visitor.SignedIn(t, s, "erp@contoso.com")["refresh_token"]
		if status, m := visitor.Post(t, s, visitor.TokenPath, visitor.RefreshForm(again)); status != 200 {
			t.Errorf("the new one: status %d, %v", status, m)
		}
	}
	if err := startSignIn(t, nil).RevokeUser("boss@contoso.com"); err == nil {
		t.Error("revoked nobody")
	}
}
