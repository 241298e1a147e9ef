package exosim

import (
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
)

const (
	app1 = visitor.App1
	app2 = visitor.App2
	app3 = visitor.App3
	app4 = visitor.App4
	app5 = visitor.App5
)

func testConfig() Config { return Config{DirectoryConfig: visitor.Contoso()} }

func startTest(t testing.TB, change func(*Config)) *Server {
	t.Helper()
	c := testConfig()
	if change != nil {
		change(&c)
	}
	s, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// startSignIn starts a simulator with users.
func startSignIn(t testing.TB, change func(*Config)) *Server {
	t.Helper()
	return startTest(t, func(c *Config) {
		c.TokenLife = time.Hour
		c.DeviceFlow.Interval = time.Millisecond
		visitor.WithUsers(&c.DirectoryConfig)
		if change != nil {
			change(c)
		}
	})
}

func setFaults(t *testing.T, s *Server, f Faults) {
	t.Helper()
	if err := s.SetFaults(f); err != nil {
		t.Fatal(err)
	}
}

// greet comes as far as the second EHLO.
func greet(t testing.TB, s *Server) *visitor.Client {
	t.Helper()
	k := visitor.Dial(t, s.SubmissionAddr(), "", s.CA())
	k.StartTLS()
	k.Say("EHLO relay.example.com")
	return k
}

// login signs in as a mailbox.
func login(t testing.TB, s *Server, user string) *visitor.Client {
	t.Helper()
	k := greet(t, s)
	if got := k.Say(visitor.XOAUTH2(user, s.Issue(app1, directory.Exchange, time.Hour))); got != visitor.AuthOK {
		t.Fatalf("AUTH as %s: %s", user, got)
	}
	return k
}
