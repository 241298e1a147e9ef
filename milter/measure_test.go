package milter

import (
	"bytes"
	"strings"
	"testing"

	protocol "github.com/d--j/go-milter"

	"github.com/sendas/sendas/policy"
)

// bulkRules has a client with an account of High Volume Email, and one without.
func bulkRules(t testing.TB) *policy.Rules {
	t.Helper()
	p, errs := policy.New(policy.Settings{
		Domains: []string{"contoso.com"}, Submission: "smtp.office365.com:587",
		Mailboxes: []policy.MailboxSettings{{Address: "scan@contoso.com"}},
		Routes:    []policy.RouteSettings{{Name: "bulk", Type: "hve", Account: "notices@contoso.com", Endpoint: "smtp.hve.mx.microsoft:587"}},
		Clients: []policy.ClientSettings{
			{Name: "payroll", Networks: []string{"10.50.0.0/16"}, From: "scan@contoso.com", Route: "bulk"},
			{Name: "printers", Networks: []string{"10.2.0.0/16"}, From: "scan@contoso.com"},
		},
	})
	if errs != nil {
		t.Fatal(errs)
	}
	return p
}

// chunk is as much of a body as Postfix shows at once.
const chunk = 65535

// TestMeasured: the size of a message decides on its way, is counted only as far as that takes, and
// for those clients alone whose way it can be.
func TestMeasured(t *testing.T) {
	bulk := func(s *Server) { s.Use(bulkRules(t)) }
	for _, tc := range []struct {
		name, addr string
		chunks     int // of the body
		shown      int // before the milter has seen enough
		route      string
	}{
		{"small", "10.50.0.1", 1, 1, "bulk"},
		{"as much as fits", "10.50.0.1", 152, 152, "bulk"}, // 9,961,320 bytes
		{"more", "10.50.0.1", 400, 153, "submission"},
		{"another client", "10.2.0.9", 400, 1, "submission"},
		{"nobody", "192.0.2.1", 400, 1, ""},
	} {
		s := startWith(t, nil, bulk)
		c, _ := s.dial(tc.addr, "")
		for range 2 { // the second message of a session is counted anew
			if _, err := c.Mail("<x@erp.lan>", ""); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Rcpt("<boss@contoso.com>", ""); err != nil {
				t.Fatal(err)
			}
			if _, err := c.DataStart(); err != nil {
				t.Fatal(err)
			}
			if _, err := c.HeaderField("From", "x@erp.lan", nil); err != nil {
				t.Fatal(err)
			}
			if _, err := c.HeaderEnd(); err != nil {
				t.Fatal(err)
			}
			shown := 0
			for ; shown < tc.chunks && !c.Skip(); shown++ {
				if _, err := c.BodyChunk(bytes.Repeat([]byte("x"), chunk)); err != nil {
					t.Fatal(err)
				}
			}
			if shown != tc.shown {
				t.Errorf("%s: %d pieces of the body are read, want %d", tc.name, shown, tc.shown)
			}
			if _, _, err := c.End(); err != nil {
				t.Fatal(err)
			}
		}
		if got := strings.Count(s.log.String(), "route="+tc.route+" "); tc.route != "" && got != 2 {
			t.Errorf("%s: %d of 2 messages leave by %s:\n%s", tc.name, got, tc.route, s.log)
		}
	}
}

// TestUnmeasured: a session in which no bodies are shown, since it began under another configuration,
// sends nothing where size matters; and no body is asked for where it does not.
func TestUnmeasured(t *testing.T) {
	s := start(t)
	c, _ := s.dial("10.50.0.1", "")
	if !c.ProtocolOption(protocol.OptNoBody) {
		t.Error("bodies are asked for where nobody has a use for them")
	}
	s.Use(bulkRules(t))
	c.Mail("<x@erp.lan>", "")
	c.Rcpt("<boss@contoso.com>", "")
	c.DataStart()
	c.HeaderField("From", "x@erp.lan", nil)
	c.HeaderEnd()
	c.BodyChunk([]byte("body\r\n"))
	if _, _, err := c.End(); err != nil {
		t.Fatal(err)
	}
	if log := s.log.String(); !strings.Contains(log, "route=submission") || !strings.Contains(log, "identity=scan@contoso.com") {
		t.Errorf("a message of unknown size:\n%s", log)
	}
}
