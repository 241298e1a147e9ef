package entra

import (
	"encoding/pem"
	"io"
	"log"
	mathrand "math/rand/v2"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
)

type directoryConfig = directory.Config

// siteConfig is what a test may change.
type siteConfig struct {
	directoryConfig
	Config
}

// site is an Entra that listens, with a directory.
type site struct {
	*directory.Tenant
	*Login
	web, machine *httptest.Server
}

// The names of visitor's apps in forms and tables.
const (
	app1 = visitor.App1
	app2 = visitor.App2
	app3 = visitor.App3
	app5 = visitor.App5
	app6 = visitor.App6

	secret1     = visitor.Secret1
	sendScope   = visitor.SendScope
	signInScope = visitor.SignInScope
)

func startTest(t testing.TB, change func(*siteConfig)) *site {
	t.Helper()
	c := siteConfig{directoryConfig: visitor.Contoso()}
	if change != nil {
		change(&c)
	}
	if err := c.directoryConfig.Complete(); err != nil {
		t.Fatal(err)
	}
	if err := c.Config.Complete(c.HasUser); err != nil {
		t.Fatal(err)
	}
	s := &site{Tenant: directory.New(c.directoryConfig)}
	var err error
	if s.Login, err = New(c.Config, s.Tenant, mathrand.New(mathrand.NewPCG(1, 2))); err != nil {
		t.Fatal(err)
	}
	s.web, s.machine = httptest.NewUnstartedServer(s.Handler()), httptest.NewServer(s.IdentityHandler())
	s.web.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.web.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// startSignIn starts an Entra with users.
func startSignIn(t testing.TB, change func(*siteConfig)) *site {
	t.Helper()
	return startTest(t, func(c *siteConfig) {
		c.TokenLife = time.Hour
		c.DeviceFlow.Interval = time.Millisecond
		visitor.WithUsers(&c.directoryConfig)
		if change != nil {
			change(c)
		}
	})
}

// Close ends it before the test does.
func (s *site) Close() {
	s.Stop()
	s.web.Close()
	s.machine.Close()
}

// Authority is the base URL of the token service.
func (s *site) Authority() string { return s.web.URL }

// TokenURL is the token endpoint of the tenant.
func (s *site) TokenURL() string { return s.web.URL + visitor.TokenPath }

// CA is the certificate of the token service, PEM.
func (s *site) CA() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.web.Certificate().Raw})
}

func (s *site) IMDSAddr() string           { return s.machine.Listener.Addr().String() }
func (s *site) AppServiceEndpoint() string { return s.machine.URL + AppServicePath }
func (s *site) ArcEndpoint() string        { return s.machine.URL + ArcPath }

// opens reports whether Exchange would let the bearer of a token into a mailbox, and why not.
func (s *site) opens(mailbox string, token any) directory.Denial {
	text, _ := token.(string)
	c, why := s.Verify(text)
	if why == "" {
		why = s.ForUs(c)
	}
	if why == "" {
		_, why = s.Admit(c, mailbox)
	}
	return why
}

func setFaults(t *testing.T, s *site, f Faults) {
	t.Helper()
	if err := f.Check(); err != nil {
		t.Fatal(err)
	}
	s.SetFaults(f)
}
