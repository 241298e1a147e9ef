package entra

import (
	"crypto/rand"
	"crypto/rsa"
	"net/url"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
)

func TestFederated(t *testing.T) {
	s := startTest(t, func(c *siteConfig) {
		c.Apps[0].Secret, c.Apps[0].Federated = "", directory.Federated{Issuer: visitor.Issuer, Subject: visitor.Subject}
	})
	good := s.FederatedToken(visitor.Subject, time.Hour)
	foreign, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	signed := func(method jwt.SigningMethod, key any) string {
		c := jwt.MapClaims{"iss": visitor.Issuer, "sub": visitor.Subject, "aud": "api://AzureADTokenExchange", "exp": time.Now().Add(time.Hour).Unix()}
		token, err := jwt.NewWithClaims(method, c).SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	for _, tc := range []struct {
		name string
		form url.Values
		code int // 0 is a token
	}{
		{"good", visitor.FederatedForm(good), 0},
		{"good again", visitor.FederatedForm(good), 0},
		{"expired", visitor.FederatedForm(s.FederatedToken(visitor.Subject, -time.Second)), 700024},
		{"another subject", visitor.FederatedForm(s.FederatedTokenOf(directory.Federated{Issuer: visitor.Issuer, Subject: "system:serviceaccount:mail:Relay"}, time.Hour)), 700213},
		{"unknown subject, and the default issuer", visitor.FederatedForm(s.FederatedToken("x", time.Hour)), 700211},
		{"another issuer", visitor.FederatedForm(s.FederatedTokenOf(directory.Federated{Issuer: "https://oidc.contoso.com", Subject: visitor.Subject}, time.Hour)), 700211},
		{"another audience", visitor.FederatedForm(s.FederatedTokenOf(directory.Federated{Issuer: visitor.Issuer, Subject: visitor.Subject, Audience: "api://AzureADTokenExchangeUSGov"}, time.Hour)), 700212},
		{"another key", visitor.FederatedForm(signed(jwt.SigningMethodRS256, foreign)), 50013},
		{"HMAC", visitor.FederatedForm(signed(jwt.SigningMethodHS256, []byte("x"))), 50013},
		{"unsigned", visitor.FederatedForm(signed(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType)), 50013},
		{"an app without", visitor.FederatedForm(good, "client_id", app2), 700211},
		{"no type", visitor.FederatedForm(good, "client_assertion_type", ""), 7000218},
		{"no token", visitor.FederatedForm("x.y"), 50012},
	} {
		status, m := visitor.Post(t, s, visitor.TokenPath, tc.form)
		if tc.code == 0 {
			if status != 200 || claims(t, s, m["access_token"])["appidacr"] != "2" {
				t.Errorf("%s: status %d, %v", tc.name, status, m)
			}
			continue
		}
		visitor.WantRefusal(t, tc.name, status, m, "invalid_client", tc.code)
	}
}

// TestFederatedUser: a federated token proves the app for users, too.
func TestFederatedUser(t *testing.T) {
	s := startSignIn(t, func(c *siteConfig) { c.Apps[len(c.Apps)-1].Federated.Subject = visitor.Subject })
	_, m := visitor.Post(t, s, visitor.DevicePath, visitor.Values("client_id", app6, "scope", signInScope))
	if err := s.Approve(m["user_code"].(string), "erp@contoso.com"); err != nil {
		t.Fatal(err)
	}
	f := visitor.PollForm(m["device_code"].(string), "client_id", app6, "client_assertion_type", assertionType, "client_assertion", s.FederatedToken(visitor.Subject, time.Hour))
	if status, m := visitor.Post(t, s, visitor.TokenPath, f); status != 200 {
		t.Errorf("status %d, %v", status, m)
	}
}
