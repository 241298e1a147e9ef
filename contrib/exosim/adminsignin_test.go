package exosim

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/entra"
	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
)

func startSignInAdmin(t *testing.T) *Server {
	t.Helper()
	return startSignIn(t, func(c *Config) { c.Admin = "127.0.0.1:0" })
}

// TestAdminDevice: a user acts by HTTP.
func TestAdminDevice(t *testing.T) {
	s := startSignInAdmin(t)
	if _, got := admin(t, s, "GET", "/devicecodes", ""); got != "[]\n" {
		t.Errorf("no codes: %s", got)
	}
	device, yes := visitor.StartDeviceFlow(t, s)
	_, no := visitor.StartDeviceFlow(t, s)
	for _, tc := range []struct {
		path, body string
		want       int
	}{
		{yes + "/approve", `{"user": "boss@contoso.com"}`, 409},
		{yes + "/approve", `{"usr": "erp@contoso.com"}`, 400},
		{yes + "/approve", `{"user": "erp@contoso.com"}`, 204},
		{yes + "/approve", `{"user": "erp@contoso.com"}`, 409},
		{no + "/decline", ``, 204},
		{"x/decline", ``, 409},
	} {
		if code, got := admin(t, s, "POST", "/devicecodes/"+tc.path, tc.body); code != tc.want {
			t.Errorf("%s %s: %d %s, want %d", tc.path, tc.body, code, got, tc.want)
		}
	}
	_, b := admin(t, s, "GET", "/devicecodes", "")
	var list []entra.DeviceCode
	if err := json.Unmarshal([]byte(b), &list); err != nil || len(list) != 2 || list[0].UserCode != yes || list[0].State != "approved" || list[1].State != "declined" || strings.Contains(b, device) {
		t.Errorf("%v in %s", err, b)
	}
	if status, m := visitor.Post(t, s, visitor.TokenPath, visitor.PollForm(device)); status != 200 {
		t.Errorf("status %d, %v", status, m)
	}
	if _, got := admin(t, s, "GET", "/tokens/grants", ""); got != `{"device_code":{"ok":1},"devicecode":{"ok":2}}`+"\n" {
		t.Errorf("grants: %s", got)
	}
}

func TestAdminUsers(t *testing.T) {
	s := startSignInAdmin(t)
	token := visitor.SignedIn(t, s, "hr@contoso.com")["refresh_token"]
	if code, got := admin(t, s, "PATCH", "/users/HR@contoso.com", `{"blocked": true, "upn": "x@y.z", "object_id": "x"}`); code != 200 ||
		got != `{"upn":"hr@contoso.com","object_id":"u2","full_access":null,"disabled":false,"blocked":true,"no_consent":false,"needs_mfa":false}`+"\n" {
		t.Errorf("PATCH: %d %s", code, got)
	}
	status, m := visitor.Post(t, s, visitor.TokenPath, visitor.RefreshForm(token))
	visitor.WantRefusal(t, "blocked", status, m, "invalid_grant", 53003)
	if code, got := admin(t, s, "POST", "/users/hr@contoso.com/revoke", ""); code != 204 {
		t.Errorf("revoke: %d %s", code, got)
	}
	status, m = visitor.Post(t, s, visitor.TokenPath, visitor.RefreshForm(token))
	visitor.WantRefusal(t, "revoked", status, m, "invalid_grant", 50173)
	for _, tc := range []struct {
		method, path, body string
		want               int
	}{{"PATCH", "/users/x@y.z", `{}`, 404}, {"PATCH", "/users/hr@contoso.com", `{"blockd": true}`, 400}, {"POST", "/users/x@y.z/revoke", "", 409}} {
		if code, _ := admin(t, s, tc.method, tc.path, tc.body); code != tc.want {
			t.Errorf("%s %s: %d, want %d", tc.path, tc.body, code, tc.want)
		}
	}
	_, b := admin(t, s, "GET", "/users", "")
	var list []directory.User
	if err := json.Unmarshal([]byte(b), &list); err != nil || len(list) != 3 || !list[1].Blocked || list[0].FullAccess[0] != "scan@contoso.com" {
		t.Errorf("%v in %s", err, b)
	}
}

func TestAdminGrants(t *testing.T) {
	s := startSignInAdmin(t)
	token := visitor.SignedIn(t, s, "hr@contoso.com")["refresh_token"]
	for _, tc := range []struct {
		method, path, body string
		want               int
		code               int // of the next refresh
	}{
		{"PATCH", "/refusals", `{"refresh_token": {"code": "AADSTS50196", "times": 1}}`, 200, 50196},
		{"PATCH", "/refusals", `{"refresh_token": {"code": "AADSTS90033"}}`, 200, 90033},
		{"PATCH", "/refusals", `{"authorize": {"code": "access_denied"}, "refresh_token": {"code": "AADSTS1"}}`, 400, 90033},
		{"PATCH", "/refusals", `{"password": {"code": "AADSTS90033"}}`, 400, 90033},
		{"PATCH", "/refusals", `{"refresh_token": {"code": ""}}`, 200, 0},
		{"POST", "/grants/age", `{"by": "89 days"}`, 400, 0},
		{"POST", "/grants/age", `{"by": "2160h"}`, 204, 700082},
		{"DELETE", "/grants", ``, 204, 70000},
	} {
		if code, got := admin(t, s, tc.method, tc.path, tc.body); code != tc.want {
			t.Errorf("%s %s: %d %s, want %d", tc.path, tc.body, code, got, tc.want)
		}
		_, m := visitor.Post(t, s, visitor.TokenPath, visitor.RefreshForm(token))
		want := "<nil>"
		if tc.code != 0 {
			want = fmt.Sprintf("[%d]", tc.code)
		}
		if codes, _ := m["error_codes"].([]any); len(codes) != 0 && fmt.Sprintf("[%.0f]", codes[0]) != want || (len(codes) == 0) != (tc.code == 0) {
			t.Errorf("%s %s: %v, want %s", tc.path, tc.body, m, want)
		}
	}
	if _, got := admin(t, s, "GET", "/refusals", ""); got != "{}\n" {
		t.Errorf("refusals: %s", got)
	}
}

func TestAdminSignIn(t *testing.T) {
	s := startSignInAdmin(t)
	if code, got := admin(t, s, "PATCH", "/signin", `{"user": "hr@contoso.com"}`); code != 200 || got != `{"user":"hr@contoso.com","require_login_hint":false}`+"\n" {
		t.Errorf("PATCH: %d %s", code, got)
	}
	if code, _ := admin(t, s, "PATCH", "/signin", `{"usr": "hr@contoso.com"}`); code != 400 {
		t.Errorf("PATCH of an unknown member: %d", code)
	}
	_, m := visitor.Post(t, s, visitor.TokenPath, visitor.CodeForm(visitor.NewCode(t, s)))
	token, _ := m["access_token"].(string)
	if c, why := s.Verify(token); why != "" || c.User != "hr@contoso.com" {
		t.Errorf("%+v signed in, %s", c, why)
	}
	if _, got := admin(t, s, "GET", "/signin", ""); !strings.Contains(got, `"user":"hr@contoso.com"`) {
		t.Errorf("GET: %s", got)
	}
	if _, got := admin(t, s, "GET", "/identityheader", ""); got != s.IdentityHeader() {
		t.Errorf("identity header %q", got)
	}
}

func TestAdminFederated(t *testing.T) {
	s := startSignIn(t, func(c *Config) {
		c.Admin, c.Apps[0].Federated = "127.0.0.1:0", directory.Federated{Issuer: visitor.Issuer, Subject: visitor.Subject}
	})
	for _, tc := range []struct {
		body string
		code int // 0 is a token
	}{
		{`{"subject": "` + visitor.Subject + `"}`, 0},
		{`{"subject": "` + visitor.Subject + `", "life": "-1s"}`, 700024},
		{`{"subject": "x", "issuer": "` + visitor.Issuer + `"}`, 700213},
	} {
		_, token := admin(t, s, "POST", "/federated", tc.body)
		status, m := visitor.Post(t, s, visitor.TokenPath, visitor.FederatedForm(token))
		if tc.code != 0 {
			visitor.WantRefusal(t, tc.body, status, m, "invalid_client", tc.code)
		} else if status != 200 {
			t.Errorf("%s: status %d, %v", tc.body, status, m)
		}
		var c jwt.RegisteredClaims
		if _, _, err := jwt.NewParser().ParseUnverified(token, &c); err != nil || time.Until(c.ExpiresAt.Time) > time.Hour {
			t.Errorf("%s: %v, ends at %v", tc.body, err, c.ExpiresAt)
		}
	}
	if code, _ := admin(t, s, "POST", "/federated", `{"sub": "x"}`); code != 400 {
		t.Errorf("unknown member: %d", code)
	}
}
