package exosim

import (
	"errors"
	"io"
	"math"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
	"github.com/sendas/sendas/contrib/exosim/smtp"
)

func TestPlainHTTP(t *testing.T) {
	s := startTest(t, func(c *Config) { c.EntraPlain = true })
	if !strings.HasPrefix(s.TokenURL(), "http://localhost:") {
		t.Errorf("token URL %s", s.TokenURL())
	}
	if status, m := visitor.Post(t, s, visitor.TokenPath, visitor.Form()); status != 200 {
		t.Errorf("status %d, %v", status, m)
	}
	res, err := http.Get(s.TokenURL())
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); res.StatusCode != 400 || !strings.Contains(string(b), "AADSTS900561") {
		t.Errorf("GET: %s", b)
	}
}

// TestEntraRefuses: the port is closed, and the same one comes back.
func TestEntraRefuses(t *testing.T) {
	s := startTest(t, nil)
	before := s.Authority()
	for range 2 { // twice off is off
		setFaults(t, s, Faults{EntraFaults: EntraFaults{Refuse: true}})
	}
	if _, _, err := visitor.Ask(t, s, visitor.TokenPath, visitor.Form(), nil); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("off: %v", err)
	}
	setFaults(t, s, Faults{})
	if status, _ := visitor.Post(t, s, visitor.TokenPath, visitor.Form()); status != 200 || s.Authority() != before {
		t.Errorf("on again: status %d at %s, was at %s", status, s.Authority(), before)
	}
}

// TestSignInsAreNotLogged: neither codes nor tokens nor secrets.
func TestSignInsAreNotLogged(t *testing.T) {
	var log visitor.Log
	s := startSignIn(t, func(c *Config) { c.Log = log.Logger() })
	device, user := visitor.StartDeviceFlow(t, s)
	if err := s.Approve(user, "erp@contoso.com"); err != nil {
		t.Fatal(err)
	}
	_, m := visitor.Post(t, s, visitor.TokenPath, visitor.PollForm(device))
	visitor.Post(t, s, visitor.TokenPath, visitor.RefreshForm(m["refresh_token"], "client_id", visitor.App6, "client_secret", "s6secret"))
	greet(t, s).Want(visitor.XOAUTH2("hr@contoso.com", m["access_token"].(string)), visitor.AuthFailed)
	got := log.String()
	if !strings.Contains(got, "user has no FullAccess") {
		t.Errorf("log: %s", got)
	}
	for _, secret := range []string{device, user, m["refresh_token"].(string), m["access_token"].(string), "eyJ", "s6secret"} {
		if strings.Contains(got, secret) {
			t.Errorf("%q shows in the log: %s", secret, got)
		}
	}
}

// TestBadFaults: values that make no sense change nothing.
func TestBadFaults(t *testing.T) {
	s := startTest(t, nil)
	var all []Faults
	for _, f := range []EntraFaults{
		{Times: -1}, {RefreshIn: -1}, {TokenLife: -1}, {ContentType: "a\r\nb: c"}, {ArcRealm: "a\nb"}, {IMDSStatus: 200}, {IMDSTimes: -1}, {IMDSExpiresOn: "x"},
	} {
		all = append(all, Faults{EntraFaults: f})
	}
	for _, c := range []smtp.Chances{{Leave: 1.1}, {Greeting: -0.1}, {Quota: math.NaN()}} {
		all = append(all, Faults{SMTPFaults: SMTPFaults{Chances: c}})
	}
	for _, f := range all {
		if err := s.SetFaults(f); err == nil || s.Faults() != (Faults{}) {
			t.Errorf("%+v: %v, faults %+v", f, err, s.Faults())
		}
	}
}

// TestNoIdentity: without it there are no endpoints.
func TestNoIdentity(t *testing.T) {
	s := startTest(t, nil)
	if s.IMDSAddr() != "" || s.AppServiceEndpoint() != "" || s.ArcEndpoint() != "" {
		t.Errorf("%q, %q, %q", s.IMDSAddr(), s.AppServiceEndpoint(), s.ArcEndpoint())
	}
	if s := startTest(t, func(c *Config) { c.IMDS = "127.0.0.1:0" }); s.ArcEndpoint() != "" {
		t.Errorf("Arc at %q", s.ArcEndpoint())
	}
}
