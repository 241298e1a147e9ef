package lab

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim/smtp"
)

// A filter is a content filter as Amavis is one: it takes a message without TLS, and gives it back
// before it answers.
type filter struct {
	addr, back string // where it listens, where it gives mail back
	passed     atomic.Int32
}

func startFilter(ctx context.Context, t *testing.T) *filter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	ports, err := freePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	f := &filter{addr: l.Addr().String(), back: ports[0]}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go f.serve(ctx, conn)
		}
	}()
	return f
}

func (f *filter) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	in := bufio.NewScanner(conn)
	say := func(line string) { fmt.Fprintf(conn, "%s\r\n", line) }
	path := regexp.MustCompile(`<(.*?)>`)
	var m Mail
	say("220 filter.lab.example ESMTP")
	for in.Scan() {
		switch verb := strings.ToUpper(in.Text()); {
		case strings.HasPrefix(verb, "MAIL"):
			m = Mail{From: path.FindStringSubmatch(in.Text())[1]}
			say("250 2.1.0 Ok")
		case strings.HasPrefix(verb, "RCPT") && strings.Contains(verb, "@DEAD.EXAMPLE"):
			say("550 5.1.1 nobody of that name")
		case strings.HasPrefix(verb, "RCPT"):
			m.To = append(m.To, path.FindStringSubmatch(in.Text())[1])
			say("250 2.1.5 Ok")
		case verb == "DATA":
			say("354 Go on")
			for in.Scan() && in.Text() != "." {
				m.Data = append(m.Data, strings.TrimPrefix(in.Text(), ".")+"\r\n"...)
			}
			if res, err := Send(ctx, f.back, m); err != nil || !res.Accepted() {
				say("451 4.3.0 " + strings.ReplaceAll(fmt.Sprint(res.Verdict(), err), "\n", " "))
				continue
			}
			f.passed.Add(1)
			say("250 2.0.0 Ok")
		case verb == "QUIT":
			say("221 2.0.0 Bye")
			return
		default:
			say("250 Ok")
		}
	}
}

// TestPostfixMigration: a host whose settings stand in main.cf, as former versions wrote them, is
// migrated by enable. Whatever leaves by Microsoft before, in whosever name Postfix asks for its way,
// leaves by it after, and nothing by another one; and then a content filter has its feed. What enable says
// to type on the way is typed.
func TestPostfixMigration(t *testing.T) {
	var f *filter
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second, Postfix: func(s *Site, main map[string]string) []string {
		f = startFilter(t.Context(), t)
		ordinary(s, main)
		main["relay_domains"] = "plant.example"
		main["virtual_alias_maps"] = "inline:{ {forward@contoso.com = outside@fabrikam.com}, {bounce@contoso.com = nobody@dead.example} }"
		main["transport_maps"] = "inline:{ {dead.example = dead:[" + strings.Replace(f.addr, ":", "]:", 1) + "} }"
		main["notify_classes"], main["bounce_notice_recipient"] = "bounce", "admin@contoso.com"
		main["address_verify_map"], main["address_verify_poll_count"], main["address_verify_poll_delay"] = "", "2", "1s"
		main["smtpd_recipient_restrictions"] = "check_recipient_access inline:{ {probe-before@fabrikam.com = reject_unverified_recipient}, {probe-after@fabrikam.com = reject_unverified_recipient} }"
		return []string{
			"dead unix - - n - - smtp -o smtp_tls_security_level=none -o smtp_sasl_auth_enable=no",
			"feed unix - - n - 2 smtp -o smtp_send_xforward_command=yes -o disable_dns_lookups=yes",
			f.back + " inet n - y - - smtpd -o content_filter= -o mynetworks=127.0.0.0/8",
		}
	}})
	_, port, _ := net.SplitHostPort(s.Exosim.SubmissionAddr())
	var former []string
	for name, value := range MainCF(port, filepath.Join(s.Dir, "ca.pem")) {
		name = strings.Replace(name, "sendas_", "smtp_", 1)
		if name == "default_transport" {
			name, value = "relayhost", strings.TrimPrefix(value, "sendas:")
		}
		former = append(former, name+"="+value)
	}
	if err := s.Postfix.Postconf(ctx, former...); err != nil {
		t.Fatal(err)
	}
	if err := s.Postfix.Reload(ctx); err != nil {
		t.Fatal(err)
	}
	before := s.everySender(ctx, t, "before", 0)
	if err := s.Postfix.Postconf(ctx, "content_filter=feed:["+strings.Replace(f.addr, ":", "]:", 1), "milter_protocol=2", "debug_peer_list=192.0.2.9"); err != nil {
		t.Fatal(err)
	}
	s.typeCures(ctx, t, "debug_peer_list", "port "+f.back)
	said := s.sendasPostfix(ctx, t, "enable")
	for _, want := range []string{"all mail leaves by Microsoft", "main.cf: relay_transport = sendas:", "main.cf: smtp_sasl_password_maps is taken out", "main.cf: relayhost = (was [smtp.office365.com]"} {
		if !strings.Contains(said, want) {
			t.Errorf("enable said\n%swithout %q", said, want)
		}
	}
	for _, not := range []string{"content_filter", f.back} { // the way back is as it must be
		if strings.Contains(said, "note: Postfix "+not) || strings.Contains(said, "port "+not) {
			t.Errorf("enable has something to say about %s:\n%s", not, said)
		}
	}
	after := s.everySender(ctx, t, "after", len(before))
	if !slices.Equal(before, after) {
		t.Errorf("before the migration left\n%s\nafter it\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	if n := f.passed.Load(); n < 6 {
		t.Errorf("%d messages went through the filter, want 6 at least", n)
	}
}

// typeCures takes the end of the last line from main.cf, as some editors do, has enable look, and types
// what it says about each of some settings.
func (s *Site) typeCures(ctx context.Context, t *testing.T, about ...string) {
	t.Helper()
	file := filepath.Join(s.Postfix.ConfigDir(), "main.cf")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, bytes.TrimRight(data, "\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	said, err := s.typePostfix(ctx, t, "enable")
	if err == nil {
		t.Fatalf("nothing was in the way:\n%s", said)
	}
	for _, name := range about {
		_, rest, _ := strings.Cut(said, ": Postfix "+name+":")
		_, do, ok := strings.Cut(rest, "  do: ")
		do, _, _ = strings.Cut(do, "\n")
		if !ok || !strings.Contains(do, "postconf -c") {
			t.Fatalf("nothing is said to be typed for %s:\n%s", name, said)
		}
		if out, err := exec.CommandContext(ctx, "sh", "-c", do).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", do, err, out)
		}
	}
}

// everySender sends mail in every name in which Postfix asks for a way out, and returns what arrived
// after the first messages: as whom, to whom, and by which way.
func (s *Site) everySender(ctx context.Context, t *testing.T, stage string, first int) []string {
	t.Helper()
	send := func(who XClient, from string, to string) Reply {
		t.Helper()
		n := messageNumber.Add(1)
		m := Mail{XClient: who, From: from, To: []string{to}, Data: message("From: <"+from+">", fmt.Sprintf(storyID, fmt.Sprintf("%s-%d", stage, n)), storyDate)}
		res, err := Send(ctx, s.Postfix.SMTPAddr(), m)
		if err != nil {
			t.Fatal(err)
		}
		return res.Verdict()
	}
	for _, m := range []struct {
		who      XClient
		from, to string
	}{
		{sap, "billing@contoso.com", "known@fabrikam.com"},
		{printer, "root@mfp3.local", "unknown@fabrikam.com"},
		{XClient{}, "", "null@fabrikam.com"},
		{sap, "hr@contoso.com", "forward@contoso.com"},
		{sap, "billing@contoso.com", "inner@plant.example"},
		{sap, "billing@contoso.com", "bounce@contoso.com"}, // its bounce, and the notice of it, which double-bounce sends
	} {
		if v := send(m.who, m.from, m.to); v.Code != 250 {
			t.Fatalf("%s to %s: %v", m.from, m.to, v)
		}
	}
	if err := s.Postfix.SendmailInject(ctx, "root@relay.lab.example", []string{"cron@fabrikam.com"}, []byte("Subject: cron "+stage+"\n\nx\n")); err != nil {
		t.Fatal(err)
	}
	// verify(8) asks as double-bounce, whom Microsoft does not know: the device hears "later", and
	// the probe went no other way.
	if v := send(sap, "billing@contoso.com", "probe-"+stage+"@fabrikam.com"); v.Code != 450 {
		t.Errorf("the probe: %v", v)
	}
	line, err := s.Postfix.WaitLog(ctx, regexp.MustCompile(`: to=<probe-`+stage+`@fabrikam\.com>`))
	if err != nil || !strings.Contains(line, "relay=smtp.office365.com[") {
		t.Errorf("the probe: %v, %s", err, line)
	}
	if err := s.WaitMessages(ctx, first+8); err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, m := range s.Exosim.Messages()[first:] {
		if m.Endpoint != smtp.EndpointSubmission || !m.Accepted() {
			t.Errorf("%s to %s by %s: %s", m.Sender, m.Recipients, m.Endpoint, m.Reply)
		}
		list = append(list, m.Sender+" to "+strings.Join(m.Recipients, " "))
	}
	slices.Sort(list)
	return list
}
