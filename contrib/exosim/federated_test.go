package exosim

import (
	"crypto/rand"
	"crypto/rsa"
	"net/url"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	subject = "system:serviceaccount:mail:relay"
	issuer  = "https://oidc.contoso.com/"
)

func federatedForm(token string, more ...string) url.Values {
	return with(values("grant_type", "client_credentials", "client_id", app1, "scope", "https://outlook.office365.com/.default",
		"client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion", token), more...)
}

func TestFederated(t *testing.T) {
	s := startTest(t, func(c *Config) {
		c.Apps[0].Secret, c.Apps[0].Federated = "", Federated{Issuer: issuer, Subject: subject}
	})
	good := s.FederatedToken(subject, time.Hour)
	foreign, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	signed := func(method jwt.SigningMethod, key any) string {
		c := jwt.MapClaims{"iss": issuer, "sub": subject, "aud": "api://AzureADTokenExchange", "exp": time.Now().Add(time.Hour).Unix()}
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
		{"good", federatedForm(good), 0},
		{"good again", federatedForm(good), 0},
		{"expired", federatedForm(s.FederatedToken(subject, -time.Second)), 700024},
		{"another subject", federatedForm(s.FederatedTokenOf(Federated{Issuer: issuer, Subject: "system:serviceaccount:mail:Relay"}, time.Hour)), 700213},
		{"unknown subject, and the default issuer", federatedForm(s.FederatedToken("x", time.Hour)), 700211},
		{"another issuer", federatedForm(s.FederatedTokenOf(Federated{Issuer: "https://oidc.contoso.com", Subject: subject}, time.Hour)), 700211},
		{"another audience", federatedForm(s.FederatedTokenOf(Federated{Issuer: issuer, Subject: subject, Audience: "api://AzureADTokenExchangeUSGov"}, time.Hour)), 700212},
		{"another key", federatedForm(signed(jwt.SigningMethodRS256, foreign)), 50013},
		{"HMAC", federatedForm(signed(jwt.SigningMethodHS256, []byte("x"))), 50013},
		{"unsigned", federatedForm(signed(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType)), 50013},
		{"an app without", federatedForm(good, "client_id", app2), 700211},
		{"no type", federatedForm(good, "client_assertion_type", ""), 7000218},
		{"no token", federatedForm("x.y"), 50012},
	} {
		status, m := post(t, s, tokenPath, tc.form)
		if tc.code == 0 {
			if status != 200 || claims(t, s, m["access_token"])["appidacr"] != "2" {
				t.Errorf("%s: status %d, %v", tc.name, status, m)
			}
			continue
		}
		wantRefusal(t, tc.name, status, m, "invalid_client", tc.code)
	}
}

// TestFederatedUser: a federated token proves the app for users, too.
func TestFederatedUser(t *testing.T) {
	s := startSignIn(t, func(c *Config) { c.Apps[len(c.Apps)-1].Federated.Subject = subject })
	_, m := post(t, s, devicePath, values("client_id", app6, "scope", signInScope))
	if err := s.Approve(m["user_code"].(string), "erp@contoso.com"); err != nil {
		t.Fatal(err)
	}
	f := pollForm(m["device_code"].(string), "client_id", app6, "client_assertion_type", assertionType, "client_assertion", s.FederatedToken(subject, time.Hour))
	if status, m := post(t, s, tokenPath, f); status != 200 {
		t.Errorf("status %d, %v", status, m)
	}
}
