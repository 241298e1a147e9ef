package milter

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	protocol "github.com/d--j/go-milter"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sendas/sendas/milter/quota"
	"github.com/sendas/sendas/policy"
)

// receiving is what a Postfix that also receives has told.
func receiving() *policy.Classes {
	return policy.NewClasses(&policy.ClassData{
		Origin: "relay.example", Local: []string{"shop.example"}, LocalWay: "local:", Defaults: []string{"smtp"},
		Aliases: map[string][]string{"sales@shop.example": {"sales@fabrikam.com"}},
		Opaque:  []policy.OpaqueTable{{Doubt: policy.DoubtClass, Setting: "virtual_mailbox_domains", Table: "mysql:/etc/x.cf"}},
	})
}

// mailTo plays a message to recipients, each with the transport that Postfix tells, and returns the
// refusals of RCPT and what became of it.
func (s *site) mailTo(c *protocol.ClientSession, macros *protocol.MacroBag, rcpts ...[2]string) (replies []string, end string) {
	s.t.Helper()
	if act, err := c.Mail("<friend@example.com>", ""); err != nil || act.StopProcessing() {
		s.t.Fatalf("MAIL: %+v, %v", act, err)
	}
	taken := 0
	for _, r := range rcpts {
		macros.Set(protocol.MacroRcptMailer, r[1])
		macros.Set(protocol.MacroRcptHost, "nexthop.example")
		macros.Set(protocol.MacroRcptAddr, r[0])
		act, err := c.Rcpt("<"+r[0]+">", "")
		if err != nil {
			s.t.Fatal(err)
		}
		reply := ""
		if act.StopProcessing() {
			reply = opens(act.SMTPReply)
		} else {
			taken++
		}
		replies = append(replies, reply)
	}
	if taken == 0 {
		if err := c.Abort(nil); err != nil {
			s.t.Fatal(err)
		}
		return replies, "no recipients"
	}
	for _, step := range []func() (*protocol.Action, error){
		c.DataStart, func() (*protocol.Action, error) { return c.HeaderField("From", "Friend <friend@example.com>", nil) },
		c.HeaderEnd, func() (*protocol.Action, error) { return c.BodyChunk([]byte("body\r\n")) },
	} {
		if act, err := step(); err != nil || act.StopProcessing() {
			s.t.Fatalf("DATA: %+v, %v", act, err)
		}
	}
	changes, act, err := c.End()
	switch {
	case err != nil:
		s.t.Fatal(err)
	case act.StopProcessing():
		return replies, act.SMTPReply[:len("550 5.7.1")]
	}
	return replies, fmt.Sprintf("%d changes", len(changes))
}

// TestElsewhere: what Postfix delivers itself passes untouched, whoever sends it, and counts for
// nobody's limits; what is ours is held to all of them.
func TestElsewhere(t *testing.T) {
	here, box, there, alias := [2]string{"bob@shop.example", "local"}, [2]string{"x@box.example", "virtual"}, [2]string{"x@fabrikam.com", "smtp"}, [2]string{"sales@shop.example", "local"}
	const over = `451 4.7.1 client "printers" may send 1 message a day`
	s := startWith(t, newQuotas(quota.ClientLimit{Rates: quota.Rates{Messages: perDay(1), Recipients: perDay(2)}, OnLimit: quota.DeferOver}), func(s *Server) { s.UseClasses(receiving()) })
	for i, tc := range []struct {
		addr    string
		rcpts   [][2]string
		replies string // to RCPT
		end     string
		used    int // messages of the printers, by now
	}{
		{"198.51.100.9", [][2]string{here}, "", "0 changes", 0},
		{"198.51.100.9", [][2]string{here, box}, ",", "0 changes", 0}, // of that domain Postfix tells alone
		{"198.51.100.9", [][2]string{there}, "", "550 5.7.1", 0},
		{"198.51.100.9", [][2]string{here, there}, ",", "550 5.7.1", 0},
		{"198.51.100.9", [][2]string{alias}, "", "550 5.7.1", 0},
		{"10.2.0.9", [][2]string{here}, "", "0 changes", 0},
		{"10.2.0.9", [][2]string{here, here, here, there}, ",,,", "6 changes", 1}, // of four recipients one leaves
		{"10.2.0.9", [][2]string{there}, over, "no recipients", 1},
		{"10.2.0.9", [][2]string{here}, "", "0 changes", 1},
		{"10.2.0.9", [][2]string{here, there, alias, here}, "," + over + "," + over + ",", "0 changes", 1}, // it goes on with what is not ours
	} {
		c, macros := s.dial(tc.addr, "")
		replies, end := s.mailTo(c, macros, tc.rcpts...)
		if got := strings.Join(replies, ","); got != tc.replies || end != tc.end {
			t.Errorf("%d: %s to %v: %q, %s; want %q, %s", i, tc.addr, tc.rcpts, got, end, tc.replies, tc.end)
		}
		c.Close()
		s.counted(t, "printers", tc.used, 0)
	}
	log := s.log.String()
	for _, want := range []string{
		`client="" addr=198.51.100.9 login="" asked=friend@example.com identity="" mailbox="" route="" recipients=2 action=pass rewritten=false reason=elsewhere`,
		`action=reject rewritten=false reason=no-client`, `msg="recipients refused" client=printers`,
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the log has no %s:\n%s", want, log)
		}
	}
	if n := testutil.ToFloat64(s.Metrics.messages.WithLabelValues("", string(policy.Pass), string(policy.ReasonElsewhere))); n != 5 {
		t.Errorf("%v messages passed, want 5", n)
	}
	if n := s.Tally.Status(StatusInput{}, nil).Unknown.Became(policy.Pass); n != 5 {
		t.Errorf("the status shows %d messages that passed, want 5", n)
	}
}

// TestElsewhereUntold: nobody has said what Postfix delivers itself, so all is ours, and the limit
// refuses at MAIL.
func TestElsewhereUntold(t *testing.T) {
	s := start(t)
	c, macros := s.dial("198.51.100.9", "")
	if _, end := s.mailTo(c, macros, [2]string{"bob@shop.example", "local"}); end != "550 5.7.1" {
		t.Errorf("got %s", end)
	}
	c.Close()
	s.UseClasses(receiving())
	c, macros = s.dial("198.51.100.9", "")
	if _, end := s.mailTo(c, macros, [2]string{"bob@shop.example", "local"}); end != "0 changes" {
		t.Errorf("once it is told: %s", end)
	}
	c.Close()
}

// TestPolicyElsewhere: the policy service leaves alone what is not ours, leaves to the milter what it
// cannot know, and refuses the rest.
func TestPolicyElsewhere(t *testing.T) {
	s, _ := newPolicyServer(t)
	s.UseClasses(receiving())
	peer := netip.MustParseAddr
	for _, tc := range []struct{ addr, rcpt, want string }{
		{"198.51.100.9", "bob@shop.example", "DUNNO"},
		{"198.51.100.9", "sales@shop.example", "DUNNO"}, // and so may the domain that its alias leads to
		{"198.51.100.9", "x@box.example", "DUNNO"},      // it may be one of virtual_mailbox_domains
		{"198.51.100.9", "", "DUNNO"},                   // at DATA there is no recipient
		{"10.3.0.9", "bob@shop.example", "DUNNO"},
		{"10.3.0.9", "x@box.example", "FILTER sendas-site:[contoso-com.mail.protection.outlook.com]:25"}, // in doubt it is ours
		{"10.3.0.9", "sales@shop.example", "FILTER sendas-site:[contoso-com.mail.protection.outlook.com]:25"},
	} {
		got := s.answer(&query{addr: peer(tc.addr).String(), sender: "friend@example.com", recipient: tc.rcpt})
		if !strings.HasPrefix(got, tc.want) {
			t.Errorf("%s to %q: %s, want %s", tc.addr, tc.rcpt, got, tc.want)
		}
	}
	c := policy.NewClasses(&policy.ClassData{Local: []string{"shop.example"}})
	s.UseClasses(c)
	if got := s.answer(&query{addr: "198.51.100.9", recipient: "x@box.example"}); !strings.HasPrefix(got, "550 5.7.1") {
		t.Errorf("where all is known: %s", got)
	}
}

// TestToldTheWay: where Postfix was told a way out at one recipient, all of the message goes there,
// so none of it passes untouched, whatever Postfix would deliver itself without that.
func TestToldTheWay(t *testing.T) {
	s := start(t)
	s.UseClasses(receiving())
	s.Use(routed(t))
	early := &PolicyServer{Log: s.Server.Log, Metrics: s.Metrics, Sessions: s.sessions}
	early.Use(routed(t))
	early.UseClasses(receiving())
	here, box, there := [2]string{"bob@shop.example", "local"}, [2]string{"x@box.example", "virtual"}, [2]string{"x@fabrikam.com", "smtp"}
	for i, tc := range []struct {
		addr  string
		rcpts [][2]string
		end   string
	}{
		{"10.3.0.9", [][2]string{here}, "0 changes"},
		{"10.3.0.9", [][2]string{here, here}, "0 changes"},
		{"10.3.0.9", [][2]string{box}, "550 5.7.1"}, // of that domain only the milter hears, when the way is told
		{"10.3.0.9", [][2]string{box, here}, "550 5.7.1"},
		{"10.3.0.9", [][2]string{here, box}, "550 5.7.1"},
		{"10.3.0.9", [][2]string{here}, "0 changes"},      // the next message of the session
		{"10.2.0.9", [][2]string{box, here}, "6 changes"}, // the site has a direct route, so submission is told, too
		{"10.2.0.9", [][2]string{there, here}, "6 changes"},
		{"10.2.0.9", [][2]string{here}, "0 changes"},
		{"10.4.0.9", [][2]string{box}, "0 changes"}, // nothing is told
		{"198.51.100.9", [][2]string{box, here}, "0 changes"},
	} {
		c, macros := s.dial(tc.addr, "")
		macros.Set(protocol.MacroClientPort, "51234")
		for _, r := range tc.rcpts {
			early.answer(&query{addr: tc.addr, port: "51234", sender: "friend@example.com", recipient: r[0], instance: fmt.Sprint("message ", i)})
		}
		if _, end := s.mailTo(c, macros, tc.rcpts...); end != tc.end {
			t.Errorf("%d: %s to %v: %s, want %s", i, tc.addr, tc.rcpts, end, tc.end)
		}
		c.Close()
	}
}
