package entra

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
)

// entraErrors is Microsoft's table: what is seen at the token endpoint for each
// code.
var entraErrors = []struct {
	oauth, suberror string
	codes           []int
}{
	{"invalid_client", "", []int{7000215, 7000222, 7000218, 700025, 700027, 700024}},
	{"unauthorized_client", "", []int{700016, 7000112, 70001}},
	{"invalid_request", "", []int{90002, 900382, 90038, 50194}},
	{"invalid_grant", "", []int{50126, 50034, 50053, 50055, 50057, 50173, 700082, 70008, 70000, 50196}},
	{"invalid_grant", "token_expired", []int{70043}},
	{"interaction_required", "basic_action", []int{50076, 50079, 50074}},
	{"invalid_grant", "consent_required", []int{65001, 90094}},
	{"invalid_grant", "message_only", []int{53003, 530032, 530035}},
	{"invalid_resource", "", []int{500011, 650057, 50001}},
	{"invalid_scope", "", []int{70011, 28002}},
	{"authorization_pending", "", []int{70016}},
	{"expired_token", "", []int{70019, 70020}},
	{"bad_verification_code", "", []int{70018}},
	{"temporarily_unavailable", "", []int{90055, 90024, 90033, 50033, 90006}},
}

// TestRefuseGrant: each row of the table, in the form that Entra's errors have.
func TestRefuseGrant(t *testing.T) {
	s := startSignIn(t, nil)
	for _, row := range entraErrors {
		for _, code := range row.codes {
			name := newCodeName(code)
			if err := s.RefuseGrant(GrantClientCredentials, name); err != nil {
				t.Error(err)
				continue
			}
			status, m := visitor.Post(t, s, visitor.TokenPath, visitor.Form())
			visitor.WantRefusal(t, name, status, m, row.oauth, code)
			if sub, _ := m["suberror"].(string); sub != row.suberror {
				t.Errorf("%s: suberror %q, want %q", name, sub, row.suberror)
			}
			delete(m, "suberror")
			checkErrorBody(t, name, m, code, "")
		}
	}
	if err := s.RefuseGrant(GrantClientCredentials, ""); err != nil {
		t.Error(err)
	}
	if status, m := visitor.Post(t, s, visitor.TokenPath, visitor.Form()); status != 200 || len(s.RefusedGrants()) != 0 {
		t.Errorf("after the end of it: status %d, %v, %v", status, m, s.RefusedGrants())
	}
}

func newCodeName(code int) string { return (&refusal{code: code}).name() }

// TestRefuseTexts are those of the real service, as they were reported.
func TestRefuseTexts(t *testing.T) {
	s := startSignIn(t, nil)
	for code, text := range map[string]string{
		"AADSTS70016":   "OAuth 2.0 device flow error. Authorization is pending. Continue polling.",
		"AADSTS7000218": "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.",
		"AADSTS700025":  "Client is public so neither 'client_assertion' nor 'client_secret' should be presented.",
		"AADSTS54005":   "OAuth2 Authorization code was already redeemed, please retry with a new valid code or use an existing refresh token.",
		"AADSTS501481":  "The Code_Verifier does not match the code_challenge supplied in the authorization request.",
		"AADSTS53003":   "Access has been blocked by Conditional Access policies. The access policy does not allow token issuance.",
		"AADSTS65001":   "The user or administrator has not consented to use the application with ID '" + app1 + "' named 'relay'. Send an interactive authorization request for this user and resource.",
		"AADSTS50173":   "The provided grant has expired due to it being revoked, a fresh auth token is needed. The user might have changed or reset their password. The grant was issued on '",
		"AADSTS50076": "Due to a configuration change made by your administrator, or because you moved to a new location, you must use multi-factor authentication to access " +
			"'00000002-0000-0ff1-ce00-000000000000'.",
	} {
		if err := s.RefuseGrant(GrantClientCredentials, code); err != nil {
			t.Fatal(err)
		}
		_, m := visitor.Post(t, s, visitor.TokenPath, visitor.Form())
		if d, _ := m["error_description"].(string); !strings.HasPrefix(d, code+": "+text) {
			t.Errorf("%s: %q", code, d)
		}
	}
}

// TestRefuseUncoded: errors that have no code.
func TestRefuseUncoded(t *testing.T) {
	s := startSignIn(t, nil)
	device, _ := visitor.StartDeviceFlow(t, s)
	for _, name := range []string{"slow_down", "authorization_declined"} {
		if err := s.RefuseGrant("urn:ietf:params:oauth:grant-type:device_code", name); err != nil {
			t.Fatal(err)
		}
		status, m := visitor.Post(t, s, visitor.TokenPath, visitor.PollForm(device))
		visitor.WantRefusal(t, name, status, m, name, 0)
		if _, has := m["error_uri"]; has || s.TokenRequests()[name] != 1 {
			t.Errorf("%s: %v, counted %v", name, m, s.TokenRequests())
		}
	}
	if status, m := visitor.Post(t, s, visitor.TokenPath, visitor.Form()); status != 200 {
		t.Errorf("another grant: status %d, %v", status, m)
	}
}

func TestRefuseNext(t *testing.T) {
	s := startSignIn(t, func(c *siteConfig) {
		c.Refuse = map[string]string{GrantDeviceStart: "expired_token", GrantAuthorize: ""}
	})
	if err := s.RefuseNext(GrantClientCredentials, "90033", 2); err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{400, 400, 200} {
		if status, m := visitor.Post(t, s, visitor.TokenPath, visitor.Form()); status != want {
			t.Errorf("request %d: status %d, %v", i, status, m)
		}
	}
	status, m := visitor.Post(t, s, visitor.DevicePath, visitor.Values("client_id", app5, "scope", signInScope))
	visitor.WantRefusal(t, "from the configuration", status, m, "expired_token", 70019)
	if got := s.RefusedGrants(); !maps.Equal(got, map[string]Refusing{GrantDeviceStart: {Code: "expired_token"}}) {
		t.Errorf("refused %v", got)
	}
	for _, tc := range []struct {
		grant, code string
		times       int
		want        string
	}{
		{"password", "AADSTS53003", 0, `"password" is not one of the grants`},
		{GrantManagedIdentity, "AADSTS53003", 0, `"managed_identity" is not one of the grants`},
		{GrantRefreshToken, "AADSTS1", 0, `"AADSTS1" is no code of the table`},
		{GrantRefreshToken, "invalid_grant", 0, `"invalid_grant" is no code of the table`},
		{GrantRefreshToken, "AADSTS53003", -1, "-1 times is negative"},
	} {
		if err := s.RefuseNext(tc.grant, tc.code, tc.times); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v", tc, err)
		}
	}
}

func TestDotNetDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{90 * 24 * time.Hour: "90.00:00:00", 24*time.Hour + time.Hour + 2*time.Minute + 3*time.Second: "1.01:02:03", time.Millisecond: "0.00:00:00"} {
		if got := dotNetDuration(d); got != want {
			t.Errorf("%v is %s, want %s", d, got, want)
		}
	}
}
