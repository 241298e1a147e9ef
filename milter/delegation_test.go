package milter

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	protocol "github.com/d--j/go-milter"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sendas/sendas/internal/logtest"
	"github.com/sendas/sendas/policy"
)

// request is one of SMTPD_POLICY_README, with the attributes that Postfix 3.7 sends.
const request = `request=smtpd_access_policy
protocol_state=RCPT
protocol_name=ESMTP
client_address=10.2.0.9
client_name=mfp3.local
client_port=51234
reverse_client_name=mfp3.local
server_address=127.0.0.1
server_port=25
helo_name=mfp3
sender=root@mfp3
recipient=someone@example.net
recipient_count=0
queue_id=
instance=3f1.6740a1b2.c0de.0
size=0
etrn_domain=
stress=
sasl_method=
sasl_username=
sasl_sender=
ccert_subject=
ccert_issuer=
ccert_fingerprint=
ccert_pubkey_fingerprint=
encryption_protocol=
encryption_cipher=
encryption_keysize=0
policy_context=

`

func edited(pairs ...string) string { return strings.NewReplacer(pairs...).Replace(request) }

const fp = "6A:09:E6:67:F3:BC:C9:08:B2:FB:13:66:EA:95:7D:3E:3A:DE:C1:75:12:77:50:99:DA:2F:59:0B:06:67:32:2A"

// routed is the policy of a site with all kinds of route.
func routed(t testing.TB) *policy.Rules {
	t.Helper()
	const mx = "contoso-com.mail.protection.outlook.com"
	p, errs := policy.New(policy.Settings{
		Domains: []string{"contoso.com"}, Submission: "smtp.office365.com:587",
		Mailboxes: []policy.MailboxSettings{{Address: "scan@contoso.com"}},
		Routes: []policy.RouteSettings{{Name: "site", Type: "connector", Endpoint: mx}, {Name: "inside", Type: "direct", Endpoint: mx},
			{Name: "strict", Type: "direct", Endpoint: mx, External: "reject"}},
		Clients: []policy.ClientSettings{
			{Name: "sealed", Fingerprints: []string{fp}, From: "scan@contoso.com"},
			{Name: "printers", Networks: []string{"10.2.0.0/16"}, From: "scan@contoso.com"},
			{Name: "erp", Networks: []string{"10.3.0.0/16"}, Route: "site"},
			{Name: "copiers", Networks: []string{"10.4.0.0/16"}, Route: "inside", From: "scan@contoso.com"},
			{Name: "badges", Networks: []string{"10.5.0.0/16"}, Route: "strict", From: "scan@contoso.com"},
			{Name: "by-name", Subjects: []string{"sap01.contoso.com"}, From: "scan@contoso.com"},
		},
	})
	if errs != nil {
		t.Fatal(errs)
	}
	return p
}

// desk is a policy server that has been started.
func newPolicyServer(t testing.TB) (*PolicyServer, *logtest.Buffer) {
	log := &logtest.Buffer{}
	s := &PolicyServer{Log: slog.New(slog.NewTextHandler(log, nil)), Metrics: NewMetrics(prometheus.NewRegistry()), Sessions: &Sessions{}}
	s.Use(routed(t))
	return s, log
}

func TestPolicyAnswers(t *testing.T) {
	s, log := newPolicyServer(t)
	client, server := net.Pipe()
	done := make(chan struct{})
	go func() { s.connection(server); close(done) }()
	r := bufio.NewReader(client)
	ask := func(text string) string {
		t.Helper()
		go io.WriteString(client, text)
		var b strings.Builder
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if line == "\n" {
				return strings.TrimSuffix(b.String(), "\n")
			}
			b.WriteString(line)
		}
	}
	addr := func(a string) []string { return []string{"client_address=10.2.0.9", "client_address=" + a} }
	for _, tc := range []struct{ name, text, want string }{
		// Where some client has a direct route, the others' mail is kept out of transport_maps.
		{"submission", request, "action=FILTER sendas:[smtp.office365.com]:587"},
		{"connector", edited(addr("10.3.0.1")...), "action=FILTER sendas-site:[contoso-com.mail.protection.outlook.com]:25"},
		{"direct", edited(addr("10.4.0.1")...), "action=DUNNO"},
		{"direct only, outside", edited(addr("10.5.0.1")...),
			`action=550 5.7.1 <someone@example.net>: route "strict" of client "badges" reaches the recipients of this organisation alone`},
		{"direct only, inside", edited(append(addr("10.5.0.1"), "someone@example.net", "boss@contoso.com")...), "action=DUNNO"},
		{"direct only, at DATA", edited(append(addr("10.5.0.1"), "RCPT", "DATA", "someone@example.net", "")...), "action=DUNNO"},
		{"unknown", edited(addr("192.0.2.1")...),
			"action=550 5.7.1 192.0.2.1 is not a known client of this relay; ask its administrator to add it to clients: in sendas.yaml"},
		{"subject", edited(append(addr("192.0.2.1"), "ccert_subject=", "ccert_subject=SAP01.contoso.com")...), "action=FILTER sendas:[smtp.office365.com]:587"},
		{"fingerprint", edited(append(addr("192.0.2.1"), "ccert_fingerprint=", "ccert_fingerprint="+fp)...), "action=FILTER sendas:[smtp.office365.com]:587"},
		{"fingerprint of the key", edited(append(addr("192.0.2.1"), "ccert_pubkey_fingerprint=", "ccert_pubkey_fingerprint="+strings.ToLower(fp))...),
			"action=FILTER sendas:[smtp.office365.com]:587"},
	} {
		if got := ask(tc.text); got != tc.want {
			t.Errorf("%s:\n got  %q\n want %q", tc.name, got, tc.want)
		}
	}
	client.Close()
	<-done
	if n := strings.Count(log.String(), `msg="recipient refused"`); n != 2 {
		t.Errorf("%d refusals in the log, want 2:\n%s", n, log)
	}
	if n := testutil.ToFloat64(s.Metrics.asked.WithLabelValues("", "refuse")); n != 1 {
		t.Errorf("%v strangers were counted, want 1", n)
	}
	if n := testutil.ToFloat64(s.Metrics.asked.WithLabelValues("badges", "dunno")); n != 2 {
		t.Errorf("sendas_policy_requests_total is %v, want 2", n)
	}
}

func TestNotAPolicyRequest(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"nothing more", "", "EOF"},
		{"cut off", "request=smtpd_access_policy\nclient_a", "unexpected EOF"},
		{"no attribute", "GET / HTTP/1.0\n\n", `not a policy request: "GET / HTTP/1.0"`},
		{"another request", "request=junk\n\n", `not a policy request: request="junk"`},
		{"no request", "\n", `not a policy request: request=""`},
		{"a long line", "sender=" + strings.Repeat("a", maxAttribute) + "\n\n", "an attribute is longer than 4096 bytes"},
		{"many lines", strings.Repeat("a=b\n", maxAttributes+1) + "\n", `not a policy request: "a=b"`},
	} {
		_, err := readQuery(bufio.NewReaderSize(strings.NewReader(tc.text), maxAttribute))
		if err == nil || err.Error() != tc.want {
			t.Errorf("%s: %v, want %s", tc.name, err, tc.want)
		}
	}
}

// TestPolicyShutdown: a connection that rests between two requests is closed in the end; smtpd(8)
// makes another one.
func TestPolicyShutdown(t *testing.T) {
	s, log := newPolicyServer(t)
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "policy"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	c, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, request)
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.HasPrefix(line, "action=FILTER ") {
		t.Fatalf("%q, %v", line, err)
	}
	ln.Close()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	s.Shutdown(ctx)
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes after Shutdown", n)
	}
	if strings.Contains(log.String(), "level=WARN") {
		t.Errorf("an ordinary end is no trouble:\n%s", log)
	}
}

// TestFingerprints: what the policy service hears at RCPT reaches the milter at the end of the same
// session's message, and no other's; where it heard nothing the message waits rather than leave
// under a wrong name.
func TestFingerprints(t *testing.T) {
	s := start(t)
	p := routed(t)
	s.Use(p)
	early := &PolicyServer{Log: s.Server.Log, Metrics: s.Metrics, Sessions: s.sessions}
	early.Use(p)
	play := func(port, tls string) string {
		t.Helper()
		c, macros := s.dial("10.2.0.9", "")
		defer c.Close()
		macros.Set(protocol.MacroClientPort, port)
		macros.Set(protocol.MacroTlsVersion, tls)
		return s.send(c, "<x@y.example>", "From: x@y.example", id, date)
	}
	const waits = "451 4.3.5 the relay does not know the fingerprint"
	if got := play("51234", "TLSv1.3"); !strings.HasPrefix(got, waits) {
		t.Errorf("before the policy service was asked: %q", got)
	}
	q, err := readQuery(bufio.NewReader(strings.NewReader(edited("ccert_fingerprint=", "ccert_fingerprint="+fp))))
	if err != nil {
		t.Fatal(err)
	}
	early.answer(q)
	for _, tc := range []struct{ name, port, tls, want string }{
		{"the session", "51234", "TLSv1.3", "client=sealed"},
		{"another one", "51235", "TLSv1.3", waits},
		{"one without TLS", "51235", "", "client=printers"},
	} {
		got := play(tc.port, tc.tls)
		lines := strings.Split(strings.TrimSpace(s.log.String()), "\n")
		if !strings.HasPrefix(got, tc.want) && !strings.Contains(lines[len(lines)-1], tc.want+" ") {
			t.Errorf("%s: %q, %s", tc.name, got, lines[len(lines)-1])
		}
	}
}

// TestKeptSender: where the policy service has told Postfix the way, in the same session, the null
// sender stays; where nobody has, it would lead another way. The log says what the identity does
// not.
func TestKeptSender(t *testing.T) {
	s := start(t)
	p := routed(t)
	s.Use(p)
	early := &PolicyServer{Log: s.Server.Log, Metrics: s.Metrics, Sessions: s.sessions}
	early.Use(p)
	play := func(port, sender string) (changes, log string) {
		t.Helper()
		c, macros := s.dial("10.3.0.9", "")
		defer c.Close()
		macros.Set(protocol.MacroClientPort, port)
		changes = s.send(c, sender, "From: sales@contoso.com", id, date)
		lines := strings.Split(strings.TrimSpace(s.log.String()), "\n")
		return changes, lines[len(lines)-1]
	}
	q, err := readQuery(bufio.NewReader(strings.NewReader(edited("client_address=10.2.0.9", "client_address=10.3.0.9"))))
	if err != nil {
		t.Fatal(err)
	}
	if got := early.answer(q); !strings.HasPrefix(got, "FILTER sendas-site:") {
		t.Fatalf("the policy service answers %q", got)
	}
	for _, tc := range []struct{ name, port, sender, changed, log string }{
		{"null", "51234", "", "", "<>"},
		{"null, another session", "51235", "", "sender <sales@CONTOSO.COM>", ""},
		{"null, no port", "0", "", "sender <sales@CONTOSO.COM>", ""},
		{"VERP", "51234", "<bounce+1@contoso.com>", "", "bounce+1@contoso.com"},
		{"VERP, capitals", "51234", "<bounce+1@CONTOSO.COM>", "sender <bounce+1@contoso.com>", "bounce+1@contoso.com"},
		{"the identity", "51234", "<sales@contoso.com>", "", ""},
	} {
		changes, log := play(tc.port, tc.sender)
		first, _, _ := strings.Cut(changes, "\n")
		if first != tc.changed {
			t.Errorf("%s: changes %q, want %q", tc.name, changes, tc.changed)
		}
		if _, said, _ := strings.Cut(log, " sender="); said != tc.log {
			t.Errorf("%s: the log says %s, want %q", tc.name, log, tc.log)
		}
	}
}

func TestSessionsForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Sessions
		here := netip.MustParseAddr("192.0.2.7")
		k := sessionKey{here, "1"}
		s.note(k, told{certificate: certificate{fingerprint: "f"}}, time.Now())
		time.Sleep(sessionLife)
		if c, ok := s.find(k, time.Now()); !ok || c.fingerprint != "f" {
			t.Errorf("after %v: %v, %v", sessionLife, c, ok)
		}
		time.Sleep(time.Second)
		if _, ok := s.find(k, time.Now()); ok {
			t.Error("a session is remembered for ever")
		}
		for i := range 5 * minPrune {
			s.note(sessionKey{here, strconv.Itoa(i + 1)}, told{}, time.Now())
			time.Sleep(10 * time.Second)
		}
		if n := len(s.known); n > 2*minPrune+1 {
			t.Errorf("%d sessions are kept", n)
		}
	})
}

// TestSessionsBounded: however many begin at once, memory does not grow with them, and the latest is
// known.
func TestSessionsBounded(t *testing.T) {
	var s Sessions
	now, here, most := time.Now(), netip.MustParseAddr("10.0.0.0"), 0
	for i := range 2 * maxSessions {
		if i%60_000 == 0 {
			here = here.Next()
		}
		k := sessionKey{here, strconv.Itoa(1 + i%60_000)}
		s.note(k, told{certificate: certificate{fingerprint: "f"}}, now)
		if _, ok := s.find(k, now); !ok {
			t.Fatalf("session %d is not known at once", i)
		}
		most = max(most, len(s.known))
	}
	if most > maxSessions || len(s.known) < maxSessions/2 {
		t.Errorf("up to %d sessions are kept, and %d in the end", most, len(s.known))
	}
}

// TestSessionsOnePerKey: what names no single session is not remembered, or one client would pass
// for another.
func TestSessionsOnePerKey(t *testing.T) {
	here := netip.MustParseAddr("192.0.2.7")
	for _, k := range []sessionKey{{}, {here, ""}, {here, "0"}, {here, "unknown"}, {here, "65536"}, {netip.Addr{}, "25"}} {
		var s Sessions
		s.note(k, told{certificate: certificate{fingerprint: "f"}}, time.Now())
		if _, ok := s.find(k, time.Now()); ok {
			t.Errorf("%v %q is remembered", k.addr, k.port)
		}
	}
}

// FuzzPolicyRequest: whatever comes, the reader ends, and what it takes for a request is one.
func FuzzPolicyRequest(f *testing.F) {
	f.Add([]byte(request))
	f.Add([]byte("request=smtpd_access_policy\nclient_address=::1\nsender=\xff\x00=\n\n"))
	f.Add([]byte("=\n\n"))
	s, _ := newPolicyServer(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReaderSize(strings.NewReader(string(b)), maxAttribute)
		for {
			q, err := readQuery(r)
			if err != nil {
				return
			}
			if text := s.answer(q); strings.ContainsAny(text, "\n\r\x00") || text == "" || strings.HasPrefix(text, "OK") {
				t.Fatalf("answer %q", text)
			}
		}
	})
}

// Who sees that the service is there is nobody's client: nothing is counted and nothing logged.
func TestPolicyProbe(t *testing.T) {
	var log bytes.Buffer
	s := &PolicyServer{Log: slog.New(slog.NewTextHandler(&log, nil)), Metrics: NewMetrics(prometheus.NewRegistry()), Sessions: &Sessions{}}
	for _, tc := range []struct {
		q    query
		want string
	}{{query{}, "DUNNO"}, {query{port: "0"}, "DUNNO"}} { // before a policy is in force, too
		if got := s.answer(&tc.q); got != tc.want || log.Len() > 0 {
			t.Errorf("%+v: %q, want %q; logged %q", tc.q, got, tc.want, log.String())
		}
	}
	if n := testutil.CollectAndCount(s.Metrics.asked); n != 0 {
		t.Errorf("%d requests were counted, want none", n)
	}
}
