package lab

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim"
	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/smtp"
)

// The site of the routes: besides that of the stories, an ERP whose mail leaves by a connector that
// knows the relay's address, a payroll system by one that knows its certificate, and printers that
// send directly inside. All that docs/routes.md says about Postfix is in force.
const moreRoutes = `  - name: only-inside
    type: direct
    endpoint: contoso-com.mail.protection.outlook.com:MXPORT
    transport: sendas-inside
    external: reject
clients:
  - name: axapta
    networks: [10.5.0.0/16]
    route: site
    from: axapta@contoso.com
  - name: payroll
    networks: [10.6.0.0/16]
    route: sealed
    on_unauthorized: reject
  - name: copiers
    networks: [10.7.0.0/16]
    route: inside
    from: scan@contoso.com
  - name: badges
    networks: [10.8.0.0/16]
    route: only-inside
    from: badges@contoso.com
  - name: by-subject
    cert_subjects: [Lab.Contoso.com]
    from: hr@contoso.com
  - name: by-fingerprint
    cert_fingerprints: ["FINGERPRINT"]
    networks: [10.9.0.0/16]
    from: billing@contoso.com
  - name: lab-network
    networks: [10.9.0.0/16]
    from: scan@contoso.com
`

// snippet returns a block of docs/routes.md with the names of the site.
func (s *Site) snippet(t *testing.T, kind string) string {
	t.Helper()
	_, port, _ := net.SplitHostPort(s.Exosim.MXAddr())
	return strings.NewReplacer("/etc/postfix/clients-ca.pem", filepath.Join(s.Dir, "ca.pem"), "/etc/ssl/certs/ca-certificates.crt", filepath.Join(s.Dir, "ca.pem"), "/etc/postfix", s.Dir, "["+MXHost+"]:25", "["+MXHost+"]:"+port).
		Replace(block(t, kind))
}

// block returns what stands in docs/routes.md between ```kind and ```.
func block(t *testing.T, kind string) string {
	t.Helper()
	doc, err := os.ReadFile("../../docs/routes.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(doc), "```"+kind+"\n")
	text, _, end := strings.Cut(rest, "```")
	if !ok || !end {
		t.Fatalf("docs/routes.md has no block %s", kind)
	}
	return text
}

// settings enters a snippet of main.cf.
func (s *Site) settings(t *testing.T, main map[string]string, kind string) {
	t.Helper()
	for line := range strings.Lines(s.snippet(t, kind)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " = ")
		if !ok {
			t.Fatalf("docs/routes.md, %s: %q is no setting", kind, line)
		}
		main[name] = value
	}
}

// routesConfig is the configuration of the site.
func routesConfig(t *testing.T, y, fingerprint string) string {
	t.Helper()
	routes := strings.ReplaceAll(block(t, "yaml"), "endpoint: "+MXHost, "endpoint: "+MXHost+":MXPORT")
	return strings.Replace(y, "clients:\n", routes+strings.Replace(moreRoutes, "FINGERPRINT", fingerprint, 1), 1)
}

// routesSite describes the site, with the policy service in main.cf or with the choice by sender.
func routesSite(t *testing.T, policy bool) SiteConfig {
	t.Helper()
	return SiteConfig{
		Minute: 6 * time.Second,
		Exosim: func(c *exosim.Config) {
			c.Connectors = []smtp.Connector{{Name: "by address", SenderIPs: []string{"127.0.0.5"}}, {Name: "by certificate", CertificateName: "relay.contoso.com"}}
		},
		Postfix: func(s *Site, main map[string]string) []string {
			s.settings(t, main, "main.cf")
			s.settings(t, main, "tls.cf")
			if !policy {
				delete(main, "smtpd_recipient_restrictions")
				s.settings(t, main, "static.cf")
				s.settings(t, main, "sender.cf")
			}
			s.writeCertificate(t, "relay.contoso.com", "relay.pem")
			s.writeCertificate(t, "smtp.lab.example", "smtpd.pem")
			// The lab's machines all have one address; the one that the connector knows is another
			// one of loopback.
			master := strings.Replace(s.snippet(t, "master.cf"), "smtp_reply_filter=\n", "smtp_reply_filter= -o smtp_bind_address=127.0.0.5\n", 1)
			return []string{master, s.snippet(t, "pickup.cf")}
		},
	}
}

// writeCertificate writes a certificate of the lab's authority, with its key, and returns the
// certificate.
func (s *Site) writeCertificate(t *testing.T, name, file string) tls.Certificate {
	t.Helper()
	cert, key, err := s.Exosim.ClientCertificate(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Dir, file), append(slices.Clone(key), cert...), 0o600); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// routeCase is one message and its way out.
type routeCase struct {
	name     string
	addr     string
	tls      *tls.Config
	from     string // envelope and From
	header   string // From where it is another one
	to       []string
	want     []string // "endpoint/connector/envelope sender→recipients"
	bySender bool     // the sender alone leads to the same way
	// refused is the end of the reply, with code and enhanced code before it.
	code    string
	refused string
}

func routeCases() []routeCase {
	const in, in2, out = "boss@contoso.com", "desk@contoso.com", "someone@fabrikam.com"
	one := func(list ...string) []string { return list }
	return []routeCase{
		{name: "connector, any sender of the domain", bySender: true, addr: "10.5.0.1", from: "nobody-has-this@contoso.com", to: one(out), want: one("mx/by address/nobody-has-this@contoso.com→" + out)},
		{name: "connector, own and external recipient", addr: "10.5.0.1", from: "nobody-has-this@contoso.com", to: one(in, out), want: one("mx/by address/nobody-has-this@contoso.com→" + in + "," + out)},
		{name: "connector, foreign sender", bySender: true, addr: "10.5.0.1", from: "dax@erp.local", to: one(out), want: one("mx/by address/axapta@contoso.com→" + out)},
		{name: "connector by certificate", addr: "10.6.0.1", from: "payroll@contoso.com", to: one(out), want: one("mx/by certificate/payroll@contoso.com→" + out)},
		{name: "connector, sender refused", addr: "10.6.0.1", from: "payroll@fabrikam.com", to: one(out),
			code: "550 5.7.1", refused: `<payroll@fabrikam.com>: not an address of a verified domain of this organisation; ask the relay's administrator to list the domain under tenant.domains if the organisation has it (client "payroll", route "sealed")`},
		{name: "submission outside", bySender: true, addr: "10.1.0.5", from: "hr@contoso.com", to: one(out), want: one("submission//hr@contoso.com→" + out)},
		{name: "direct inside", bySender: true, addr: "10.7.0.1", from: "copier7@contoso.com", to: one(in, in2), want: one("mx//copier7@contoso.com→" + in + "," + in2)},
		{name: "direct client, outside alone", addr: "10.7.0.1", from: "copier7@contoso.com", to: one(out), want: one("submission//scan@contoso.com→" + out)},
		{name: "direct inside, submission for the rest", bySender: true, addr: "10.7.0.1", from: "copier7@contoso.com", to: one(in, out, in2),
			want: one("mx//scan@contoso.com→"+in+","+in2, "submission//scan@contoso.com→"+out)},
		{name: "direct only, inside", addr: "10.8.0.1", from: "door@badge.local", to: one(in), want: one("mx//badges@contoso.com→" + in)},
		{name: "direct only, outside", addr: "10.8.0.1", from: "door@badge.local", to: one(out),
			code: "550 5.7.1", refused: `<someone@fabrikam.com>: route "only-inside" of client "badges" reaches the recipients of this organisation alone`},
		// Who reads its bounces at another address than From keeps it where the route allows that.
		{name: "connector, VERP", bySender: true, addr: "10.5.0.1", from: "bounce+q17-someone=fabrikam.com@contoso.com", header: "sales@contoso.com", to: one(out),
			want: one("mx/by address/bounce+q17-someone=fabrikam.com@contoso.com→" + out)},
		{name: "connector, VERP in capitals", bySender: true, addr: "10.5.0.1", from: "bounce+q18@CONTOSO.COM", header: "sales@contoso.com", to: one(out), want: one("mx/by address/bounce+q18@contoso.com→" + out)},
		{name: "connector, envelope of a mailbox", addr: "10.5.0.1", from: "hr@contoso.com", header: "sales@contoso.com", to: one(out), want: one("mx/by address/hr@contoso.com→" + out)},
		{name: "connector, foreign envelope", bySender: true, addr: "10.5.0.1", from: "www-data@shop.local", header: "sales@contoso.com", to: one(out), want: one("mx/by address/sales@contoso.com→" + out)},
		{name: "connector, null sender", addr: "10.5.0.1", header: "sales@contoso.com", to: one(in, out), want: one("mx/by address/→" + in + "," + out)},
		{name: "direct, VERP", bySender: true, addr: "10.7.0.1", from: "bounce+q19@contoso.com", header: "copier7@contoso.com", to: one(in), want: one("mx//bounce+q19@contoso.com→" + in)},
		{name: "direct, null sender", bySender: true, addr: "10.7.0.1", header: "copier7@contoso.com", to: one(in), want: one("mx//→" + in)},
		{name: "direct and submission, VERP", bySender: true, addr: "10.7.0.1", from: "bounce+q20@contoso.com", header: "scan@contoso.com", to: one(in, out),
			want: one("mx//scan@contoso.com→"+in, "submission//scan@contoso.com→"+out)},
		{name: "submission, another address of the mailbox", bySender: true, addr: "10.1.0.5", from: "billing@contoso.com", header: "hr@contoso.com", to: one(out), want: one("submission//hr@contoso.com→" + out)},
		{name: "submission inside", addr: "10.1.0.5", from: "hr@contoso.com", to: one(in), want: one("submission//hr@contoso.com→" + in)},
		{name: "submission, both", addr: "10.1.0.5", from: "hr@contoso.com", to: one(in, out), want: one("submission//hr@contoso.com→" + in + "," + out)},
		{name: "unknown client", addr: "198.51.100.9", from: "hr@contoso.com", to: one(out),
			code: "550 5.7.1", refused: "198.51.100.9 is not a known client of this relay; ask its administrator to add it to clients: in sendas.yaml"},
	}
}

// send sends the message of a case and compares where it arrives.
func (s *Site) sendRoute(ctx context.Context, t *testing.T, id string, tc routeCase) {
	t.Helper()
	before := len(s.Exosim.Messages())
	m := Mail{XClient: XClient{Addr: tc.addr, Name: "client.local"}, TLS: tc.tls, From: tc.from, To: tc.to,
		Data: message("From: "+cmp.Or(tc.header, tc.from), fmt.Sprintf(storyID, id), storyDate)}
	res, err := Send(ctx, s.Postfix.SMTPAddr(), m)
	if err != nil {
		t.Fatalf("%s: %v", tc.name, err)
	}
	if tc.refused != "" {
		got := res.Verdict()
		if res.Accepted() || !strings.HasPrefix(got.Line(), tc.code+" ") || !strings.HasSuffix(got.Text, tc.refused) {
			t.Errorf("%s: answered %s, want %s … %s", tc.name, got, tc.code, tc.refused)
		}
		return
	}
	if !res.Accepted() {
		t.Errorf("%s: answered %s", tc.name, res.Verdict())
		return
	}
	if err := s.WaitMessages(ctx, before+len(tc.want)); err != nil {
		t.Fatalf("%s: %v", tc.name, err)
	}
	var got []string
	for _, m := range s.Exosim.Messages()[before:] {
		rcpts := slices.Sorted(slices.Values(m.Recipients))
		got = append(got, m.Endpoint+"/"+m.Connector+"/"+m.Sender+"→"+strings.Join(rcpts, ","))
		if from := strings.Join(m.Header("From"), " | "); !strings.Contains(from, cmp.Or(tc.header, m.Sender)) {
			t.Errorf("%s: From is %q, the envelope sender %q", tc.name, from, m.Sender)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, tc.want) {
		t.Errorf("%s:\n got  %q\n want %q", tc.name, got, tc.want)
	}
}

// TestRoutes sends the same messages with the policy service and without it: what is refused is
// refused with the same words. Without it there is no FILTER, and the sender chooses the way; those
// whose sender chooses as their client does leave the same way.
func TestRoutes(t *testing.T) {
	for _, policy := range []bool{true, false} {
		t.Run(fmt.Sprintf("policy=%v", policy), func(t *testing.T) {
			c := routesSite(t, policy)
			c.YAML = func(y string) string { // this host has a connector, and nobody may send as its address
				y = strings.Replace(y, "    from: monitor@contoso.com\n", "    route: site\n    from: root@contoso.com\nnotices: monitor@contoso.com\n", 1)
				return routesConfig(t, y, strings.Repeat("00", 32))
			}
			s, ctx := startSite(t, c)
			for i, tc := range routeCases() {
				if policy || tc.refused != "" || tc.bySender {
					s.sendRoute(ctx, t, fmt.Sprintf("route-%d", i), tc)
				}
			}
			before := len(s.Exosim.Messages())
			cron := []byte("From: root (Cron Daemon)\nTo: desk@contoso.com\nSubject: cron\nMessage-ID: <cron@relay.lab.example>\n\nout\n")
			if err := s.Postfix.SendmailInject(ctx, "root@relay.lab.example", []string{"desk@contoso.com"}, cron); err != nil {
				t.Fatal(err)
			}
			if err := s.WaitMessages(ctx, before+1); err != nil {
				t.Fatal(err)
			}
			if m := s.Exosim.Messages()[before]; m.Connector != "by address" || m.Sender != "root@contoso.com" {
				t.Errorf("mail of this host left by %s %q as %s, want the connector of pickup", m.Endpoint, m.Connector, m.Sender)
			}
			// Nothing brings Postfix's own bounce to the connector, and by submission it needs a mailbox.
			refused := append([]byte("X-Long: "+strings.Repeat("x ", 20_000)+"\n"), cron...)
			if err := s.Postfix.SendmailInject(ctx, "root@relay.lab.example", []string{"desk@contoso.com"}, refused); err != nil {
				t.Fatal(err)
			}
			s.settle(ctx, t, before+2)
			if m := s.Exosim.Messages()[before+1]; !m.Accepted() || m.Mailbox != "monitor@contoso.com" || m.Sender != "monitor@CONTOSO.COM" || m.Recipients[0] != "root@relay.lab.example" {
				t.Errorf("the bounce left by %s %q as %s to %v: %s", m.Endpoint, m.Connector, m.Sender, m.Recipients, m.Reply)
			}
			for _, m := range s.Exosim.Messages() {
				if m.Endpoint == smtp.EndpointMX && m.Connector == "" && slices.ContainsFunc(m.Recipients, func(r string) bool { return !strings.HasSuffix(r, "@contoso.com") }) {
					t.Errorf("sent directly to %v", m.Recipients)
				}
			}
		})
	}
}

// TestCertificates: clients by the subject and by the fingerprint of their certificate, and what
// happens when Postfix does not ask the policy service, which alone knows fingerprints.
func TestCertificates(t *testing.T) {
	var known, other tls.Certificate
	c := routesSite(t, true)
	base := c.Postfix
	c.Postfix = func(s *Site, main map[string]string) []string {
		known = s.writeCertificate(t, "device7.contoso.com", "device7.pem")
		other = s.writeCertificate(t, "lab.contoso.com", "lab.pem")
		return base(s, main)
	}
	c.YAML = func(y string) string {
		sum := sha256.Sum256(known.Certificate[0])
		return routesConfig(t, y, hex.EncodeToString(sum[:]))
	}
	s, ctx := startSite(t, c)
	with := func(c ...tls.Certificate) *tls.Config {
		return &tls.Config{InsecureSkipVerify: true, Certificates: c} // a device of the lab
	}
	const out = "someone@fabrikam.com"
	cases := []routeCase{
		{name: "subject, trusted", addr: "192.0.2.1", tls: with(other), want: []string{"submission//hr@contoso.com→" + out}},
		{name: "fingerprint", addr: "10.9.0.1", tls: with(known), want: []string{"submission//billing@contoso.com→" + out}},
		{name: "fingerprint from elsewhere", addr: "192.0.2.1", tls: with(known), code: "550 5.7.1", refused: "is not a known client of this relay; ask its administrator to add it to clients: in sendas.yaml"},
		{name: "no certificate", addr: "10.9.0.1", tls: with(), want: []string{"submission//scan@contoso.com→" + out}},
		{name: "no TLS", addr: "10.9.0.1", want: []string{"submission//scan@contoso.com→" + out}},
	}
	for i, tc := range cases {
		tc.from, tc.to = "x@device.local", []string{out}
		s.sendRoute(ctx, t, fmt.Sprintf("cert-%d", i), tc)
	}
	if err := s.Postfix.Postconf(ctx, "smtpd_recipient_restrictions="); err != nil {
		t.Fatal(err)
	}
	if err := s.Postfix.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	s.sendRoute(ctx, t, "unasked", routeCase{name: "policy service not asked", addr: "10.9.0.1", tls: with(known), from: "x@device.local", to: []string{out},
		code: "451 4.3.5", refused: "its administrator has to add check_policy_service unix:sendas/policy to smtpd_recipient_restrictions"})
}

// showNothing takes smtp_reply_filter out of main.cf and master.cf, as an override does.
func (s *Site) showNothing(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, name := range []string{"main.cf", "master.cf"} {
		file := filepath.Join(s.Postfix.ConfigDir(), name)
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, bytes.ReplaceAll(text, []byte("socketmap:unix:sendas/credentials:reply"), nil), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Postfix.Restart(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestEachItsOwnMailbox: with a mailbox "*@contoso.com" a sender authenticates as itself. One that
// is no mailbox waits, takes nobody's token away, and holds up nobody: not even a dozen of them do,
// in a Postfix that waits five minutes as it does by default, as "sendas postfix enable" sets it up. Nor does a backlog hold up another mailbox,
// and the limit is kept where Postfix shows no replies.
func TestEachItsOwnMailbox(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{
		Minute: 6 * time.Second,
		Exosim: func(c *exosim.Config) {
			c.Apps[0].Mailboxes = []string{"*"}
			c.Mailboxes = append(c.Mailboxes, directory.Mailbox{Address: "nightly@contoso.com"}, directory.Mailbox{Address: "weekly@contoso.com"})
		},
		YAML: func(y string) string {
			return strings.Replace(y, "clients:\n", "  - address: \"*@contoso.com\"\n    credential: relay-app\n    limits: {messages: 10/2s}\nclients:\n", 1) + "  recipients_unseen: 1\n"
		},
		Postfix: func(s *Site, main map[string]string) []string {
			ordinary(s, main)
			for _, name := range []string{"minimal_backoff_time", "maximal_backoff_time", "queue_run_delay"} {
				delete(main, name)
			}
			return nil
		},
	})
	s.sendasPostfix(ctx, t, "enable")
	n := 0
	send := func(from string) {
		t.Helper()
		n++
		m := Mail{XClient: sap, From: from, To: []string{"someone@fabrikam.com"}, Data: message("From: "+from, fmt.Sprintf(storyID, fmt.Sprint(n, ".", from)), storyDate)}
		if res, err := Send(ctx, s.Postfix.SMTPAddr(), m); err != nil || !res.Accepted() {
			t.Fatalf("%s: %v, %v", from, res.Verdict(), err)
		}
	}
	send("nightly@contoso.com")
	if err := s.WaitMessages(ctx, 1); err != nil {
		t.Fatal(err)
	}
	send("no-such-mailbox@contoso.com")
	if _, err := s.Postfix.WaitQueue(ctx, func(q []QueueEntry) bool {
		return len(q) == 1 && len(q[0].Recipients) == 1 && strings.Contains(q[0].Recipients[0].Reason, "5.7.3 Authentication unsuccessful")
	}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for i := range 24 {
		send(fmt.Sprintf("made-up-%d@contoso.com", i))
		switch i {
		case 14:
			send("weekly@contoso.com")
		case 23:
			send("hr@contoso.com")
		}
	}
	sent := time.Now()
	if err := s.WaitMessages(ctx, 3); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(sent); took > 10*time.Second {
		t.Errorf("mail of mailboxes left %v after it was sent among made-up senders (sending took %v)", took, sent.Sub(began))
	}
	var got []string
	for _, m := range s.Exosim.Messages() {
		got = append(got, m.Mailbox+" as "+m.Sender)
	}
	slices.Sort(got)
	want := []string{"erp@contoso.com as hr@contoso.com", "nightly@contoso.com as nightly@contoso.com", "weekly@contoso.com as weekly@contoso.com"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if n := s.Exosim.TokenRequests()["ok"]; n != 1 {
		t.Errorf("%d tokens were fetched, want 1", n)
	}
	s.showNothing(ctx, t)
	for range 35 {
		send("weekly@contoso.com")
	}
	send("nightly@contoso.com")
	if err := s.WaitMessages(ctx, 3+35+1); err != nil {
		t.Fatal(err)
	}
	behind := 0 // of the backlog, after the other sender's message
	var backlog []*smtp.Message
	for _, m := range s.Exosim.Messages() {
		switch m.Sender {
		case "nightly@contoso.com":
			behind = 0
		case "weekly@contoso.com":
			behind++
			backlog = append(backlog, m)
		}
	}
	if behind < 2 { // in one queue it would be none
		t.Errorf("a message waited for the backlog of another mailbox: %d of its messages left after it", behind)
	}
	if w := WorstWindows(backlog, 2*time.Second); max(w.ByDot, w.ByVerdict, w.Anyhow) > 10 {
		t.Errorf("without smtp_reply_filter there are %+v messages in two seconds, limit 10", w)
	}
	if text, err := get(ctx, "http://"+s.TokenHTTP()+"/status"); err != nil || !strings.Contains(text, `"now": true`) {
		t.Errorf("the status does not say that no replies are shown: %v\n%s", err, text)
	}
	for _, url := range s.MetricsURLs() {
		if text, _ := get(ctx, url); strings.Contains(text, "no-such-mailbox") || strings.Contains(text, "nightly@") {
			t.Errorf("%s has a label for an address that the configuration does not name", url)
		}
	}
}
