package lab

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim"
	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/smtp"
)

// recipeBlocks returns the blocks of a kind in a page of docs/recipes.
func recipeBlocks(t *testing.T, page, kind string) []string {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join("../../docs/recipes", page))
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, m := range regexp.MustCompile("(?ms)^```"+regexp.QuoteMeta(kind)+"\n(.*?)^```$").FindAllStringSubmatch(string(doc), -1) {
		list = append(list, m[1])
	}
	if len(list) == 0 {
		t.Fatalf("docs/recipes/%s has no block %s", page, kind)
	}
	return list
}

// recipeSite starts a site as a page says: with the mailboxes and clients of its configuration, and
// all the settings of Postfix in those of its blocks that are for the relay.
func recipeSite(t *testing.T, page string, postfix ...int) (*Site, context.Context) {
	t.Helper()
	return startSite(t, SiteConfig{
		Minute: 6 * time.Second,
		Exosim: func(c *exosim.Config) {
			c.Apps[0].Mailboxes = append(c.Apps[0].Mailboxes, "cron@contoso.com")
			c.Mailboxes = append(c.Mailboxes, directory.Mailbox{Address: "cron@contoso.com"})
		},
		YAML: func(y string) string {
			recipe := strings.ReplaceAll(recipeBlocks(t, page, "yaml")[0], "20/m", "20/h") // however slow the machine is
			return withRecipe(t, y, recipe)
		},
		Postfix: func(_ *Site, main map[string]string) []string {
			blocks := recipeBlocks(t, page, "main.cf")
			for _, i := range postfix {
				for line := range strings.Lines(blocks[i]) {
					if name, value, ok := strings.Cut(strings.TrimSpace(line), " ="); ok && !strings.HasPrefix(name, "#") {
						main[name] = strings.TrimSpace(value)
					}
				}
			}
			return nil
		},
	})
}

// withRecipe puts a page's mailboxes and clients into the configuration of a site.
func withRecipe(t *testing.T, site, recipe string) string {
	t.Helper()
	before, rest, _ := strings.Cut(site, "mailboxes:\n")
	_, after, ok := strings.Cut(rest, "milter:\n")
	if !ok {
		t.Fatal("the site's configuration has no place for the page's")
	}
	return before + recipe + "milter:\n" + after
}

// A recipeCase is one message, and what leaves.
type recipeCase struct {
	name     string
	addr     string
	mailFrom string
	from     string // the header field
	to       string
	refused  string // the beginning of the reply, if it is refused

	sender, header, mailbox, rcpt string
	has                           map[string]string
}

func (s *Site) sendRecipe(ctx context.Context, t *testing.T, i int, tc recipeCase) {
	t.Helper()
	before := len(s.Exosim.Messages())
	m := Mail{XClient: XClient{Addr: tc.addr, Name: "client.local"}, From: tc.mailFrom, To: []string{tc.to},
		Data: message("From: "+tc.from, fmt.Sprintf(storyID, fmt.Sprintf("recipe-%d", i)), storyDate)}
	res, err := Send(ctx, s.Postfix.SMTPAddr(), m)
	if err != nil {
		t.Fatalf("%s: %v", tc.name, err)
	}
	if tc.refused != "" || !res.Accepted() {
		if got := res.Verdict().Line(); tc.refused == "" || !strings.HasPrefix(got, tc.refused) {
			t.Errorf("%s: answered %q, want %q", tc.name, got, tc.refused)
		}
		return
	}
	if err := s.WaitMessages(ctx, before+1); err != nil {
		t.Fatalf("%s: %v", tc.name, err)
	}
	tc.compare(t, s.Exosim.Messages()[before])
}

// compare looks at what has reached Exchange Online.
func (tc recipeCase) compare(t *testing.T, m *smtp.Message) {
	t.Helper()
	got := fmt.Sprintf("%s through %s to %s, From: %s", m.Sender, m.Mailbox, strings.Join(m.Recipients, ","), strings.Join(m.Header("From"), " | "))
	want := fmt.Sprintf("%s through %s to %s, From: %s", tc.sender, tc.mailbox, tc.rcpt, tc.header)
	if got != want {
		t.Errorf("%s:\n got  %s\n want %s", tc.name, got, want)
	}
	for name, value := range tc.has {
		if got := strings.Join(m.Header(name), " | "); got != value {
			t.Errorf("%s: %s is %q, want %q", tc.name, name, got, value)
		}
	}
}

// TestRecipePrinters is docs/recipes/printers.md: whatever a device writes leaves as the one
// mailbox, and what is over the limit is on hold, since a device does not try again.
func TestRecipePrinters(t *testing.T) {
	s, ctx := recipeSite(t, "printers.md", 0)
	const out, scan = "someone@fabrikam.com", "scan@contoso.com"
	cases := []recipeCase{
		{name: "a malformed From", addr: "10.2.0.9", mailFrom: "scanner3@floor", from: "scanner3@floor 3 <bad", to: out,
			sender: scan, header: `"scanner3@floor 3 <bad" <scan@contoso.com>`, mailbox: scan, rcpt: out,
			has: map[string]string{"X-Original-From": "scanner3@floor 3 <bad", "Reply-To": ""}},
		{name: "its own mailbox", addr: "10.2.0.9", mailFrom: scan, from: "MFP 3 <scan@contoso.com>", to: out,
			sender: scan, header: "MFP 3 <scan@contoso.com>", mailbox: scan, rcpt: out, has: map[string]string{"X-Original-From": ""}},
		{name: "somebody else's address", addr: "10.2.0.9", mailFrom: "boss@contoso.com", from: "The Boss <boss@contoso.com>", to: out,
			sender: scan, header: "The Boss <scan@contoso.com>", mailbox: scan, rcpt: out, has: map[string]string{"Reply-To": "The Boss <boss@contoso.com>"}},
		{name: "a null sender", addr: "10.2.0.9", from: "MFP 3 <mfp3@floor.local>", to: out,
			sender: "scan@CONTOSO.COM", header: "MFP 3 <scan@contoso.com>", mailbox: scan, rcpt: out, has: map[string]string{"Auto-Submitted": "auto-replied"}},
		{name: "no client", addr: "127.0.0.1", mailFrom: scan, from: scan, to: out, refused: "550 5.7.1 127.0.0.1 is not a known client"},
	}
	for i, tc := range cases {
		s.sendRecipe(ctx, t, i, tc)
	}
	for i := range 17 { // 4 were taken above; 20 is the limit
		m := Mail{XClient: printer, From: scan, To: []string{out}, Data: message("From: "+scan, fmt.Sprintf(storyID, fmt.Sprintf("more-%d", i)), storyDate)}
		if res, err := Send(ctx, s.Postfix.SMTPAddr(), m); err != nil || !res.Accepted() {
			t.Fatalf("message %d: %v, %v", i+5, res.Verdict(), err)
		}
	}
	if _, err := s.Postfix.WaitQueue(ctx, func(q []QueueEntry) bool {
		held := 0
		for _, e := range q {
			if e.Queue == "hold" {
				held++
			}
		}
		return held == 1
	}); err != nil {
		t.Errorf("the message over the limit is not on hold: %v", err)
	}
}

// TestRecipeSAP is docs/recipes/sap.md: permitted senders stay, others are named, and what has no
// sender leaves as the identity.
func TestRecipeSAP(t *testing.T) {
	s, ctx := recipeSite(t, "sap.md", 0)
	const out, erp = "someone@fabrikam.com", "erp@contoso.com"
	cases := []recipeCase{
		{name: "permitted", addr: "10.1.0.5", mailFrom: "hr@contoso.com", from: "Human Resources <hr@contoso.com>", to: out,
			sender: "hr@contoso.com", header: "Human Resources <hr@contoso.com>", mailbox: erp, rcpt: out, has: map[string]string{"Reply-To": ""}},
		{name: "a user", addr: "10.1.0.6", mailFrom: "anna@contoso.com", from: "Anna <anna@contoso.com>", to: out,
			sender: erp, header: "Anna via SAP <erp@contoso.com>", mailbox: erp, rcpt: out, has: map[string]string{"Reply-To": "Anna <anna@contoso.com>"}},
		{name: "null envelope, permitted", addr: "10.1.0.5", from: "SAPconnect <hr@contoso.com>", to: out,
			sender: "hr@CONTOSO.COM", header: "SAPconnect <hr@contoso.com>", mailbox: erp, rcpt: out,
			has: map[string]string{"Auto-Submitted": "auto-replied", "Reply-To": ""}},
		{name: "null envelope, local address", addr: "10.1.0.5", from: "sapadm@sap01.local", to: out,
			sender: "erp@CONTOSO.COM", header: "sapadm via SAP <erp@contoso.com>", mailbox: erp, rcpt: out, has: map[string]string{"Auto-Submitted": "auto-replied"}},
		{name: "no client", addr: "127.0.0.1", mailFrom: erp, from: erp, to: out, refused: "550 5.7.1 127.0.0.1 is not a known client"},
	}
	for i, tc := range cases {
		s.sendRecipe(ctx, t, i, tc)
	}
}

// TestRecipeCron is docs/recipes/cron.md: root's mail of this host and of another one reaches a
// mailbox, named after where it came from.
func TestRecipeCron(t *testing.T) {
	s, ctx := recipeSite(t, "cron.md", 0, 2)
	const cron, it = "cron@contoso.com", "it@contoso.com"
	text := []byte("From: root (Cron Daemon)\nTo: root\nSubject: Cron <root@relay> backup\nMessage-ID: <cron@relay.lab.example>\n\nout\n")
	if err := s.Postfix.SendmailInject(ctx, "root@relay.lab.example", []string{"root"}, text); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitMessages(ctx, 1); err != nil {
		t.Fatal(err)
	}
	own := recipeCase{name: "this host", sender: cron, header: `"root at relay.lab.example" <cron@contoso.com>`, mailbox: cron, rcpt: it,
		has: map[string]string{"Reply-To": ""}}
	own.compare(t, s.Exosim.Messages()[0])
	s.sendRecipe(ctx, t, 1, recipeCase{name: "another host", addr: "10.3.0.9", mailFrom: "root@web1.contoso.com", from: "root (Cron Daemon)", to: "root@web1.contoso.com",
		sender: cron, header: `"root at web1.contoso.com" <cron@contoso.com>`, mailbox: cron, rcpt: it, has: map[string]string{"Reply-To": ""}})
	s.readme(ctx, t)
}

// typedPostconf finds the settings that a page tells to type.
var typedPostconf = regexp.MustCompile(`(?m)^postconf -e "([^"]+)"`)

// readme goes on with README's own smallest configuration and the settings that it tells to type:
// mail of a printer, of cron and of Postfix itself leaves, and a device outside of its network is
// refused.
func (s *Site) readme(ctx context.Context, t *testing.T) {
	t.Helper()
	const page, scan, out = "../../README.md", "scan@contoso.com", "someone@fabrikam.com"
	old, err := os.ReadFile(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	_, own, ok := strings.Cut(recipeBlocks(t, page, "yaml")[0], "mailboxes:\n")
	if !ok {
		t.Fatal("README has no mailboxes")
	}
	if err := os.WriteFile(s.Config, []byte(withRecipe(t, string(old), "mailboxes:\n"+own)), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, service := range []*Service{s.Milter, s.Token} {
		if said, err := service.Reload(ctx); err != nil {
			t.Fatalf("%v\n%s", err, said)
		}
	}
	var settings []string
	for _, block := range recipeBlocks(t, page, "sh") {
		for _, m := range typedPostconf.FindAllStringSubmatch(block, -1) {
			settings = append(settings, m[1])
		}
	}
	if len(settings) != 2 {
		t.Fatalf("README tells to type %q, want mynetworks and virtual_alias_maps", settings)
	}
	settings = append(settings, "transport_maps=inline:{ {gone.example = error:5.1.2 no such place} }") // of the test: something to bounce
	if err := s.Postfix.Postconf(ctx, settings...); err != nil {
		t.Fatal(err)
	}
	if err := s.Postfix.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	s.sendRecipe(ctx, t, 10, recipeCase{name: "README: a printer", addr: "10.2.0.9", mailFrom: "scanner3@floor", from: "scanner3@floor 3 <bad", to: out,
		sender: scan, header: `"scanner3@floor 3 <bad" <scan@contoso.com>`, mailbox: scan, rcpt: out})
	s.sendRecipe(ctx, t, 11, recipeCase{name: "README: no client", addr: "10.4.0.9", mailFrom: scan, from: scan, to: out, refused: "554 5.7.1"})

	n := len(s.Exosim.Messages())
	if err := s.Postfix.SendmailInject(ctx, "root@relay.lab.example", []string{"root"}, []byte("From: root (Cron Daemon)\nTo: root\nSubject: Cron\nMessage-ID: <readme@relay.lab.example>\n\nout\n")); err != nil {
		t.Fatal(err)
	}
	s.settle(ctx, t, n+1)
	cron := recipeCase{name: "README: cron", sender: scan, header: "Cron Daemon <scan@contoso.com>", mailbox: scan, rcpt: "you@contoso.com"}
	cron.compare(t, s.Exosim.Messages()[n])

	// What cannot be delivered returns to whom it left as.
	if err := s.Postfix.SendmailInject(ctx, "root@relay.lab.example", []string{"someone@gone.example"}, []byte("From: root\nTo: someone@gone.example\nSubject: bounces\n\nout\n")); err != nil {
		t.Fatal(err)
	}
	s.settle(ctx, t, n+2)
	bounce := recipeCase{name: "README: a bounce", sender: "scan@CONTOSO.COM", header: "Mail Delivery System <scan@contoso.com>", mailbox: scan, rcpt: scan,
		has: map[string]string{"Auto-Submitted": "auto-replied"}}
	bounce.compare(t, s.Exosim.Messages()[n+1])
}

// TestRecipeLoadBalancer is docs/recipes/load-balancer.md: behind the PROXY protocol a client is
// the one whose address the load balancer names.
func TestRecipeLoadBalancer(t *testing.T) {
	ports, err := freePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second, Postfix: func(_ *Site, main map[string]string) []string {
		return []string{strings.Replace(recipeBlocks(t, "load-balancer.md", "master.cf")[0], "10025 ", ports[0]+" ", 1)}
	}})
	for i, tc := range []struct{ addr, want string }{{"10.2.0.9", "scan@contoso.com"}, {"10.1.0.5", "billing@contoso.com"}} {
		conn, err := net.Dial("tcp", ports[0])
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "PROXY TCP4 %s 127.0.0.1 40000 25\r\n", tc.addr)
		smtp := session{conn: conn, r: bufio.NewReaderSize(conn, maxReplyLine)}
		m := Mail{From: "x@device.local", To: []string{"someone@fabrikam.com"}, Data: message("From: x@device.local", fmt.Sprintf(storyID, tc.addr), storyDate)}
		if err := smtp.run(m); err != nil || !smtp.result.Accepted() {
			t.Fatalf("%s: %v, %v", tc.addr, smtp.result.Verdict(), err)
		}
		if err := s.WaitMessages(ctx, i+1); err != nil {
			t.Fatal(err)
		}
		if got := s.Exosim.Messages()[i].Sender; got != tc.want {
			t.Errorf("mail of %s left as %s, want %s", tc.addr, got, tc.want)
		}
	}
}

// TestSymptoms breaks one thing after another, and looks whether the device, the queue and the log
// say what docs/troubleshooting.md names.
func TestSymptoms(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second, Postfix: func(s *Site, main map[string]string) []string {
		main["smtpd_recipient_restrictions"] = "check_policy_service { unix:sendas/policy, default_action=DEFER_IF_PERMIT }"
		main["smtpd_relay_restrictions"] = "permit_mynetworks, permit_sasl_authenticated, defer_unauth_destination" // Debian's
		return nil
	}})
	doc, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	named := func(what, said, symptom string) {
		t.Helper()
		if !strings.Contains(said, symptom) {
			t.Errorf("%s: %q, want %q in it", what, said, symptom)
		}
		if !strings.Contains(string(doc), symptom) {
			t.Errorf("docs/troubleshooting.md does not name %q", symptom)
		}
	}
	answer := func(n int) string {
		t.Helper()
		res, err := Send(ctx, s.Postfix.SMTPAddr(), burstMail(n))
		if err != nil {
			t.Fatal(err)
		}
		return res.Verdict().Line()
	}
	without := func(settings ...string) {
		t.Helper()
		if err := s.Postfix.Postconf(ctx, settings...); err != nil {
			t.Fatal(err)
		}
		if err := s.Postfix.Restart(ctx); err != nil {
			t.Fatal(err)
		}
	}
	big := []byte("From: <mfp3@floor.local>\r\n\r\n" + strings.Repeat(strings.Repeat("A", 76)+"\r\n", 140_000)) // over 10,240,000
	for _, tc := range []struct {
		mail    Mail
		symptom string
	}{
		{Mail{From: "mfp3@floor.local", To: []string{"a@fabrikam.com"}, Data: big}, "552 5.3.4 Error: message file too big"},
		{Mail{From: "mfp3 floor", To: []string{"a@fabrikam.com"}}, "501 5.1.7 Bad sender address syntax"},
		{Mail{From: "mfp3@floor.local", To: []string{"a@fabrikam.com,b@fabrikam.com"}}, "501 5.1.3 Bad recipient address syntax"},
		{Mail{From: "b\xfcro@floor.local", To: []string{"a@fabrikam.com"}}, "500 5.5.2 Error: bad UTF-8 syntax"},
	} {
		tc.mail.XClient = XClient{Addr: "10.2.0.9", Name: "mfp3.local"}
		res, err := Send(ctx, s.Postfix.SMTPAddr(), tc.mail)
		if err != nil {
			t.Fatal(err)
		}
		said := res.Verdict().Line()
		if refused := res.Refused(); len(refused) > 0 {
			said = refused[0].Line()
		}
		named(fmt.Sprintf("MAIL FROM:<%s>, RCPT TO:<%s>", tc.mail.From, tc.mail.To[0]), said, tc.symptom)
	}
	if err := s.Token.Stop(); err != nil {
		t.Fatal(err)
	}
	answer(1)
	q, err := s.Postfix.WaitQueue(ctx, func(q []QueueEntry) bool { return len(q) == 1 && q[0].Recipients[0].Reason != "" })
	if err != nil {
		t.Fatal(err)
	}
	named("the queue", q[0].Recipients[0].Reason, "local data error while talking to smtp.office365.com")
	log, err := s.Postfix.WaitLog(ctx, regexp.MustCompile("warning: connect to sendas/credentials"))
	if err != nil {
		t.Fatal(err)
	}
	named("the log", log, "connect to sendas/credentials: No such file or directory")
	if err := s.Milter.Stop(); err != nil {
		t.Fatal(err)
	}
	named("without milter", answer(2), "451 4.7.1 Service unavailable - try again later")
	without("smtpd_milters=")
	named("without policy service", answer(3), "Recipient address rejected: Service unavailable")
	without("smtpd_recipient_restrictions=", "mynetworks=127.0.0.0/8")
	named("outside of mynetworks", answer(4), "Relay access denied")
}
