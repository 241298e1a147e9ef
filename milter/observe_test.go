package milter

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	protocol "github.com/d--j/go-milter"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sendas/sendas/internal/logtest"
	"github.com/sendas/sendas/milter/quota"
	"github.com/sendas/sendas/policy"
)

// watching are the rules of a site that only observes.
func watching(t testing.TB) *policy.Rules {
	t.Helper()
	p, errs := policy.New(policy.Settings{
		Mode: policy.Observe, Domains: []string{"contoso.com"},
		Mailboxes: []policy.MailboxSettings{{Address: "scan@contoso.com", SendAs: []string{"hr@contoso.com"}}},
		Clients: []policy.ClientSettings{
			{Name: "printers", Networks: []string{"10.2.0.0/16"}, From: "scan@contoso.com"},
			{Name: "monitoring", Logins: []string{"nagios"}, OnUnauthorized: "reject"},
		},
	})
	if errs != nil {
		t.Fatal(errs)
	}
	return p
}

func observe(t testing.TB) func(*Server) {
	return func(s *Server) { s.Use(watching(t)) }
}

// TestObserve: whatever sendas would have done, the message passes, and nothing is changed.
func TestObserve(t *testing.T) {
	s := startWith(t, nil, observe(t))
	many := make([]string, 40)
	for i := range many {
		many[i] = fmt.Sprintf("From: f%d@x.example", i)
	}
	for _, tc := range []struct {
		name, addr, login, sender string
		header                    []string
		want                      string // in the log
	}{
		{"nothing to change", "10.2.0.9", "", "<hr@contoso.com>", []string{"From: HR <hr@contoso.com>", id, date},
			"client=printers addr=10.2.0.9 login=\"\" asked=hr@contoso.com identity=hr@contoso.com mailbox=scan@contoso.com route=submission recipients=1 would=accept rewritten=false reason=authorized envelope=hr@contoso.com helo=mfp3"},
		{"rewritten", "10.2.0.9", "", "<root@mfp3>", []string{"From: Mfp 3 <root@mfp3>"}, "asked=root@mfp3 identity=scan@contoso.com mailbox=scan@contoso.com route=submission recipients=1 would=accept rewritten=true reason=client-from envelope=root@mfp3"},
		{"null sender", "10.2.0.9", "", "<>", []string{"From: scan@contoso.com"}, "would=accept rewritten=false reason=null-sender envelope=<>"},
		{"unknown client", "192.0.2.1", "", "<hr@contoso.com>", []string{"From: hr@contoso.com"}, "client=\"\" addr=192.0.2.1 login=\"\" asked=hr@contoso.com identity=\"\" mailbox=\"\" route=\"\" recipients=1 would=reject"},
		{"not authorised", "192.0.2.1", "nagios", "<a@contoso.com>", []string{"From: a@contoso.com"}, "client=monitoring addr=192.0.2.1 login=nagios asked=a@contoso.com identity=\"\" mailbox=\"\" route=submission recipients=1 would=reject rewritten=false reason=rejected"},
		{"malformed", "10.2.0.9", "", "<not an address", []string{"From: \xff<<>@,,", "From: b"}, "client=printers"},
		{"too many fields", "10.2.0.9", "", "<hr@contoso.com>", many, "would=reject rewritten=false reason=too-many"},
		{"a field that is too long", "10.2.0.9", "", "<hr@contoso.com>", []string{"From: hr@contoso.com", "Subject: " + strings.Repeat("a", 60000)}, "client=printers"},
		{"no header", "10.2.0.9", "", "<x@y.example>", nil, "would=accept rewritten=true"},
	} {
		c, _ := s.dial(tc.addr, tc.login)
		before := len(s.log.String())
		if got := s.send(c, tc.sender, tc.header...); got != "" {
			t.Errorf("%s: Postfix was told %q", tc.name, got)
		}
		c.Close()
		if line := s.log.String()[before:]; strings.Count(line, "\n") != 1 || !strings.Contains(line, `msg="message observed"`) || !strings.Contains(line, tc.want) {
			t.Errorf("%s: the log says\n%s want %s", tc.name, line, tc.want)
		}
	}
	for _, tc := range []struct {
		labels []string
		n      float64
	}{{[]string{"", "reject", "no-client"}, 1}, {[]string{"printers", "accept", "authorized"}, 1}, {[]string{"monitoring", "reject", "rejected"}, 1}} {
		if n := testutil.ToFloat64(s.Metrics.observed.WithLabelValues(tc.labels...)); n != tc.n {
			t.Errorf("sendas_observed_messages_total%q is %v, want %v", tc.labels, n, tc.n)
		}
	}
	if n := testutil.ToFloat64(s.Metrics.messages.WithLabelValues("", "pass", "observed")); n != 1 {
		t.Errorf("of strangers' messages %v have passed, want 1", n)
	}
	if n := testutil.ToFloat64(s.Metrics.messages.WithLabelValues("", "reject", "no-client")); n != 0 {
		t.Errorf("%v are told to be rejected, and none was", n)
	}
	if n := testutil.ToFloat64(s.Metrics.observes); n != 1 {
		t.Errorf("sendas_observe_mode is %v", n)
	}
	if st := s.Tally.Status(StatusInput{Clients: []string{"printers"}}, nil); st.Mode != policy.Observe || st.Unknown.Messages[policy.Reject] != 1 {
		t.Errorf("the status is of mode %s, with %v of strangers", st.Mode, st.Unknown.Messages)
	}
}

// TestObserveLimits: limits are counted as they would be, and refuse nothing: at MAIL, at RCPT and at
// the end.
func TestObserveLimits(t *testing.T) {
	for _, on := range []quota.OnLimit{quota.DeferOver, quota.RejectOver, quota.HoldOver} {
		q := newQuotas(quota.ClientLimit{Rates: quota.Rates{Messages: perDay(2), Recipients: perDay(5)}, OnLimit: on})
		s := startWith(t, q, observe(t))
		c, _ := s.dial("10.2.0.9", "")
		for i := range 4 {
			if got := s.send(c, "<hr@contoso.com>", "From: hr@contoso.com", id, date); got != "" {
				t.Errorf("%s: message %d: %q", on, i+1, got)
			}
		}
		s.counted(t, "printers", 2, 0)
		if n := testutil.ToFloat64(s.Metrics.observed.WithLabelValues("printers", string(on), "client-limit")); n != 2 {
			t.Errorf("%s: %v messages would have been over the limit, want 2", on, n)
		}
		if n := testutil.ToFloat64(s.Metrics.over.WithLabelValues("printers", string(on), "client")); n != 0 {
			t.Errorf("%s: %v messages are told to have been over the limit", on, n)
		}
		if !strings.Contains(s.log.String(), `limit="client \"printers\" may send 2 messages a day`) {
			t.Errorf("%s: the log does not name the limit:\n%s", on, s.log)
		}
	}
	s := startWith(t, newQuotas(quota.ClientLimit{Rates: quota.Rates{Recipients: perDay(5)}, OnLimit: quota.RejectOver}), observe(t))
	c, _ := s.dial("10.2.0.9", "")
	if act, err := c.Mail("<hr@contoso.com>", ""); err != nil || act.Type != protocol.ActionContinue {
		t.Fatalf("MAIL: %+v, %v", act, err)
	}
	for i := range 20 {
		if act, err := c.Rcpt(fmt.Sprintf("<r%d@example.net>", i), ""); err != nil || act.StopProcessing() {
			t.Fatalf("recipient %d: %+v, %v", i+1, act, err)
		}
	}
}

// TestObserveEnds: a change of the mode holds from the next message on, on a connection that goes on
// too, and what is told of the past begins anew.
func TestObserveEnds(t *testing.T) {
	s := startWith(t, nil, observe(t))
	c, _ := s.dial("10.2.0.9", "")
	rewritten := "sender <scan@contoso.com>\nFrom[1]: x <scan@contoso.com>\n+X-Original-From: x <a@b.example>"
	for i, want := range []string{"", rewritten, ""} {
		s.Use([]*policy.Rules{watching(t), rules(t, "scan@contoso.com"), watching(t)}[i])
		if got := s.send(c, "<a@b.example>", "From: x <a@b.example>", id, date); got != want {
			t.Errorf("message %d:\n got  %q\n want %q", i+1, got, want)
		}
		st := s.Tally.Status(StatusInput{Clients: []string{"printers"}}, nil)
		if n := st.Clients[0].Messages[policy.Accept]; n != 1 || (st.Mode == policy.Observe) != (want == "") {
			t.Errorf("message %d: the status counts %d in mode %s", i+1, n, st.Mode)
		}
	}
	if n := testutil.ToFloat64(s.Metrics.observes); n != 1 {
		t.Errorf("sendas_observe_mode is %v", n)
	}
}

// TestObserveAsksForHelo: the name in HELO comes by its own step, which is not answered, and only
// where somebody wants it.
func TestObserveAsksForHelo(t *testing.T) {
	o := offer{version: 6, actions: 0x1ff, steps: 0x1fffff}
	for observes, want := range map[bool]protocol.OptProtocol{true: protocol.OptNoHeloReply, false: protocol.OptNoHelo} {
		_, steps := o.terms(wishes{helo: observes})
		if got := steps & (protocol.OptNoHelo | protocol.OptNoHeloReply); got != want {
			t.Errorf("observes %v: asks for %v, want %v", observes, got, want)
		}
		if ObservesBy(steps) != observes {
			t.Errorf("observes %v: the doctor takes it for the other", observes)
		}
	}
	o.steps &^= protocol.OptNoHeloReply
	if _, steps := o.terms(wishes{helo: true}); steps&(protocol.OptNoHelo|protocol.OptNoHeloReply) != 0 {
		t.Errorf("asks for %v, which was not offered", steps)
	}
}

// TestPolicyObserves: the policy service answers nobody's question with a refusal or a way.
func TestPolicyObserves(t *testing.T) {
	log := &logtest.Buffer{}
	s := &PolicyServer{Log: slog.New(slog.NewTextHandler(log, nil)), Metrics: NewMetrics(prometheus.NewRegistry()), Sessions: &Sessions{}, Tally: new(Tally)}
	s.Use(watching(t))
	for _, q := range []query{
		{addr: "192.0.2.1", port: "1", sender: "a@b.example", recipient: "c@d.example"},
		{addr: "10.2.0.9", port: "2", sender: "a@b.example", recipient: "c@d.example"},
		{addr: "10.2.0.9", sender: "<<", recipient: "@@"},
		{addr: "nonsense", recipient: "c@d.example"},
	} {
		if got := s.answer(&q); got != "DUNNO" {
			t.Errorf("%+v is answered %q", q, got)
		}
	}
	if log.String() != "" {
		t.Errorf("the log says that something was refused:\n%s", log)
	}
	if n := testutil.ToFloat64(s.Metrics.asked.WithLabelValues("", askedDunno)); n != 2 {
		t.Errorf("%v questions of strangers were answered DUNNO, want 2", n)
	}
}

func TestHostName(t *testing.T) {
	for _, tc := range []struct{ name, ptr, want string }{
		{"mfp3.contoso.com", "other.contoso.com", "mfp3.contoso.com"}, {"unknown", "mfp3.local", "mfp3.local"}, {"[10.2.0.9]", "unknown", ""},
		{"", "", ""}, {"a\x1b[31m\nb", "", "a[31m b"}, {strings.Repeat("a", 300), "", strings.Repeat("a", 255)},
	} {
		if got := (&macros{name: tc.name, ptr: tc.ptr}).hostName(); got != tc.want {
			t.Errorf("%q and %q: %q, want %q", tc.name, tc.ptr, got, tc.want)
		}
	}
}
