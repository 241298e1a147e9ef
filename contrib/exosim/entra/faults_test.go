package entra

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
)

// TestAnswerFaults: good answers that a client may stumble over.
func TestAnswerFaults(t *testing.T) {
	s := startSignIn(t, nil)
	for _, tc := range []struct {
		name    string
		faults  Faults
		content string
		member  string // of the answer
		want    any
	}{
		{"none", Faults{}, "application/json; charset=utf-8", "refresh_in", nil},
		{"content type", Faults{ContentType: "text/plain"}, "text/plain", "expires_in", 3599.0},
		{"refresh_in", Faults{RefreshIn: 1800}, "application/json; charset=utf-8", "refresh_in", 1800.0},
		{"short life", Faults{TokenLife: 2 * time.Minute}, "application/json; charset=utf-8", "expires_in", 119.0},
	} {
		setFaults(t, s, tc.faults)
		res, b, err := visitor.Ask(t, s, visitor.TokenPath, visitor.Form(), nil)
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := json.Unmarshal(b, &m); err != nil || res.Header.Get("Content-Type") != tc.content || m[tc.member] != tc.want {
			t.Errorf("%s: %v, %v, %v", tc.name, err, res.Header, m)
		}
	}
	// All flows have the same troubles.
	setFaults(t, s, Faults{StringExpiry: true, RefreshIn: 60})
	if m := visitor.SignedIn(t, s, "erp@contoso.com"); m["expires_in"] != "3599" || m["refresh_in"] != 60.0 {
		t.Errorf("device code: %v", m)
	}
}

// TestEntraTimes: a trouble that passes by itself.
func TestEntraTimes(t *testing.T) {
	s := startSignIn(t, nil)
	setFaults(t, s, Faults{Status: 503, Retry: 1, Times: 2})
	for i, want := range []int{503, 503, 200} {
		res, b, err := visitor.Ask(t, s, visitor.TokenPath, visitor.Form(), nil)
		if err != nil || res.StatusCode != want {
			t.Errorf("request %d: %v, %+v, %.40s, want %d", i, err, res, b, want)
		}
	}
	setFaults(t, s, Faults{Down: true, Times: 1})
	// The client sends a POST once only, so that one hang-up is one error.
	if _, _, err := visitor.Ask(t, s, visitor.TokenPath, visitor.Form(), nil); err == nil {
		t.Error("it was not down")
	}
	if status, m := visitor.Post(t, s, visitor.DevicePath, visitor.Values("client_id", app5, "scope", signInScope)); status != 200 {
		t.Errorf("afterwards: status %d, %v", status, m)
	}
	if n := s.TokenRequestsByGrant(); n["unknown"]["fault"] != 3 || n[GrantClientCredentials]["ok"] != 1 || n[GrantDeviceStart]["ok"] != 1 {
		t.Errorf("counted %v", n)
	}
}

// TestSkew: Microsoft's clocks are an hour ahead, or ours behind.
func TestSkew(t *testing.T) {
	const ahead = time.Hour
	key, file, _ := visitor.Certificate(t)
	s := startTest(t, func(c *siteConfig) {
		c.TokenLife, c.Apps[1].CertificateFile, c.Apps[1].Federated.Subject = time.Hour, file, visitor.Subject
	})
	setFaults(t, s, Faults{Skew: ahead})
	begin := time.Now()
	near := func(what string, got time.Time, want time.Duration) {
		t.Helper()
		if d := got.Sub(begin) - want; d < -2*time.Second || d > 5*time.Minute {
			t.Errorf("%s is at %v, want %v from now", what, got, want)
		}
	}
	res, b, err := visitor.Ask(t, s, visitor.TokenPath, visitor.Form(), nil)
	if err != nil {
		t.Fatal(err)
	}
	date, err := http.ParseTime(res.Header.Get("Date"))
	if err != nil {
		t.Error(err)
	}
	near("Date", date, ahead)
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	var c jwt.RegisteredClaims
	if _, _, err := jwt.NewParser().ParseUnverified(m["access_token"].(string), &c); err != nil {
		t.Fatal(err)
	}
	near("nbf", c.NotBefore.Time, ahead-5*time.Minute)
	near("exp", c.ExpiresAt.Time, ahead+time.Hour)
	if why := s.opens("erp@contoso.com", m["access_token"].(string)); why != "" {
		t.Errorf("the token opens no mailbox: %s", why)
	}
	_, m = visitor.Post(t, s, visitor.TokenPath, visitor.Form("client_secret", "other"))
	at, err := time.Parse("2006-01-02 15:04:05Z", m["timestamp"].(string))
	if err != nil {
		t.Error(err)
	}
	near("timestamp", at, ahead)
	own := jwt.NewWithClaims(jwt.SigningMethodPS256, jwt.MapClaims{"iss": app2, "exp": begin.Add(10 * time.Minute).Unix(), "nbf": begin.Unix()})
	own.Header["x5t#S256"] = thumbprint(t, file)
	signed, err := own.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, assertion := range map[string]string{"own": signed, "federated": s.FederatedToken(visitor.Subject, 10*time.Minute)} {
		status, m := visitor.Post(t, s, visitor.TokenPath, visitor.Form("client_id", app2, "client_secret", "", "client_assertion_type", assertionType, "client_assertion", assertion))
		visitor.WantRefusal(t, name, status, m, "invalid_client", 700024)
		if d, _ := m["error_description"].(string); !strings.Contains(d, "Client assertion is not within its valid time range. Current time: ") {
			t.Errorf("%s: %q", name, d)
		}
	}
	// Back again, tokens are none the worse.
	setFaults(t, s, Faults{})
	token := s.Issue(app1, directory.Exchange, time.Hour)
	setFaults(t, s, Faults{Skew: 30 * time.Minute})
	s.Issue(app1, directory.Exchange, time.Hour)
	setFaults(t, s, Faults{})
	if why := s.opens("erp@contoso.com", token); why != "" {
		t.Errorf("the token opens no mailbox: %s", why)
	}
}
