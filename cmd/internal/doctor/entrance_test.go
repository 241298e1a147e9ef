package doctor

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/finding/findingtest"
	"github.com/sendas/sendas/cmd/internal/postfix"
	"github.com/sendas/sendas/token/lease"
)

// postfixSmtpd plays Postfix's smtpd, which lets this host speak for others.
func postfixSmtpd() *scriptedServer {
	return &scriptedServer{replies: map[string]string{"BANNER": "220 relay.lan ESMTP Postfix", "EHLO": "250-relay.lan\r\n250-XCLIENT NAME ADDR PORT PROTO HELO LOGIN\r\n250 8BITMIME", "XCLIENT": "220 relay.lan ESMTP Postfix"}}
}

// atDoor is a doctor before a Postfix that is played.
func atDoor(t *testing.T, smtpd *scriptedServer, yaml string, q Options) *Walk {
	t.Helper()
	c := openDesk(t, yaml)
	w := emptyWorld()
	w.dialFrom = func(ctx context.Context, _ netip.Addr, addr string) (net.Conn, error) {
		return smtpd.dial(ctx, "tcp", addr)
	}
	var out strings.Builder
	q.Stdout = &out
	d := New(&q, w)
	d.config = c
	w.hostname = func() (string, error) { return "relay.contoso.com", nil }
	etc := t.TempDir()
	main := configtest.WriteFile(t, filepath.Join(etc, "main.cf"), "compatibility_level = 3.6\nmyhostname = relay.contoso.com\nmynetworks = 127.0.0.0/8 10.2.0.0/16\nsmtpd_milters = unix:sendas/milter\n", 0o644)
	configtest.WriteFile(t, filepath.Join(etc, "master.cf"), "smtp inet n - y - - smtpd\n", 0o644)
	past := time.Now().Add(-time.Minute) // a program of Postfix's waits until it is 2 seconds old
	if err := os.Chtimes(main, past, past); err != nil {
		t.Fatal(err)
	}
	p, err := postfix.Read(t.Context(), postfix.Run, etc, c)
	if err != nil {
		t.Fatal(err)
	}
	d.postfix = p
	return d
}

// openDesk loads a configuration.
func openDesk(t *testing.T, yaml string) *config.Site {
	t.Helper()
	c, err := config.Load(configtest.WriteFile(t, filepath.Join(t.TempDir(), "sendas.yaml"), yaml, 0o644), config.SkipFiles)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestEntrance: each identity is offered to Postfix as a client who may send as it, up to RCPT, and
// taken back.
func TestEntrance(t *testing.T) {
	smtpd := postfixSmtpd()
	d := atDoor(t, smtpd, configtest.SmallConfig, Options{})
	d.checkEntrance(t.Context(), ofNames("scan@contoso.com", "office@contoso.com"))
	d.wantCheck(t, "in.port", finding.OK, "2 of 2 identities")
	want := []string{"EHLO relay.contoso.com", "XCLIENT ADDR=10.2.0.1 NAME=[UNAVAILABLE]", "EHLO relay.contoso.com",
		"MAIL FROM:<scan@contoso.com>", "RCPT TO:<scan@contoso.com>", "RSET", "MAIL FROM:<office@contoso.com>", "RCPT TO:<office@contoso.com>", "RSET"}
	if got := smtpd.said(); !slices.Equal(got, want) {
		t.Errorf("the doctor said\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func ofNames(names ...string) []patient {
	return []patient{{user: names[0], label: names[0], credential: "relay-app", identities: names}}
}

// TestVisitors: who is played for whom. This host speaks for itself where it may.
func TestVisitors(t *testing.T) {
	const own = "  - {name: this-host, networks: [127.0.0.0/8], from: erp@contoso.com, senders: [erp@contoso.com]}\n  - {name: six, networks: ['fd00:2::/64'], logins: ['*'], senders: [office@contoso.com]}\n"
	d := atDoor(t, postfixSmtpd(), strings.Replace(configtest.SmallConfig, "clients:\n", "clients:\n"+own, 1), Options{})
	for _, tc := range []struct{ client, identity, want string }{
		{"", "erp@contoso.com", "this-host (127.0.0.1)"},
		{"", "scan@contoso.com", "printers (10.2.0.1)"},
		{"", "office@contoso.com", "six (fd00:2::1, login doctor)"},
		{"printers", "erp@contoso.com", "printers (10.2.0.1)"},
		{"PRINTERS", "erp@contoso.com", "printers (10.2.0.1)"},
		{"10.2.7.7", "erp@contoso.com", "printers (10.2.7.7)"},
		{"192.0.2.1", "erp@contoso.com", "nobody's client (192.0.2.1)"},
	} {
		d.Client = tc.client
		v, ok := d.visitorFor(tc.identity)
		if !ok || v.String() != tc.want {
			t.Errorf("%q for %s: %s, %v, want %s", tc.client, tc.identity, &v, ok, tc.want)
		}
	}
	d.Client = ""
	if v, ok := d.visitorFor("nobody@contoso.com"); ok {
		t.Errorf("%s is played for a sender that nobody may ask for", &v)
	}
}

// TestEntranceReplies: what Postfix answers is explained, and told once.
func TestEntranceReplies(t *testing.T) {
	for _, tc := range []struct{ key, reply, want string }{
		{"RCPT", "451 4.7.1 Service unavailable - try again later", "systemctl restart sendas-milter"},
		{"MAIL", "451 4.7.1 Service unavailable - try again later", "systemctl restart sendas-milter"},
		{"RCPT", "454 4.7.1 <x@contoso.com>: Relay access denied", "mynetworks = 127.0.0.0/8 10.2.0.0/16 10.2.0.1"},
		{"RCPT", "550 5.7.1 10.2.0.1 is not a known client of this relay; ask its administrator", "sendas explain --client 10.2.0.1 --from scan@contoso.com"},
		{"RCPT", "504 5.5.2 <mfp>: Helo command rejected: need fully-qualified hostname", "grep restrictions"},
		{"RCPT", "451 4.3.5 <x>: Recipient address rejected: Server configuration error", "journalctl"},
		{"MAIL", "452 4.3.1 Insufficient system storage", "df -h"},
		{"MAIL", "530 5.7.0 Must issue a STARTTLS command first", "smtpd_"},
		{"BANNER", "554 relay.lan ESMTP not accepting connections", "grep restrictions"},
		{"BANNER", "* OK IMAP4 ready", "ss -tlnp"},
		{"EHLO", "hangup", "start; its log"},
	} {
		smtpd := postfixSmtpd()
		smtpd.replies[tc.key] = tc.reply
		d := atDoor(t, smtpd, configtest.SmallConfig, Options{})
		d.checkEntrance(t.Context(), ofNames("scan@contoso.com", "office@contoso.com"))
		findingtest.WantWhole(t, &d.Report)
		if len(d.Checks) != 1 {
			t.Errorf("%s %q: %d findings, want one", tc.key, tc.reply, len(d.Checks))
		}
		d.wantCheck(t, "in.as.1", finding.Fail, tc.want)
	}
}

// TestNobodyIsPlayed: where Postfix lets nobody speak for others, that is no failure, and it is said
// what was not looked at. A message that is to be sent so, is not.
func TestNobodyIsPlayed(t *testing.T) {
	smtpd := postfixSmtpd()
	smtpd.replies["EHLO"] = "250-relay.lan\r\n250 8BITMIME"
	d := atDoor(t, smtpd, configtest.SmallConfig, Options{})
	d.checkEntrance(t.Context(), ofNames("scan@contoso.com", "nobody@contoso.com"))
	d.wantCheck(t, "in.as.1", finding.Skip, "only printers (10.2.0.1) may ask for it")
	d.wantCheck(t, "in.as.2", finding.Skip, "no client can be played")
	d.SendTo, d.sending = "me@fabrikam.com", "scan@contoso.com"
	d.checkSending(t.Context())
	d.wantCheck(t, "sent.taken", finding.Fail, "-e 'smtpd_authorized_xclient_hosts = 127.0.0.1'", "-X smtpd_authorized_xclient_hosts")
	if s := strings.Join(smtpd.said(), " "); strings.Contains(s, "MAIL") {
		t.Errorf("a message was begun as somebody else: %s", s)
	}
}

// TestGivesUp: what is said of a message that has not left in the time.
func TestGivesUp(t *testing.T) {
	at := func(n int) *time.Time { t := time.Unix(int64(n), 0); return &t }
	for _, tc := range []struct {
		name  string
		trail *lease.Trail
		entry *waiter
		here  bool
		want  string
	}{
		{"the lease", &lease.Trail{Sender: "scan@contoso.com"}, nil, true, "smtp(8) waits for the right to send"},
		{"AUTH", &lease.Trail{Leased: at(1)}, nil, true, "Microsoft has not answered auth yet"},
		{"the place", &lease.Trail{Leased: at(1), SignedIn: at(2), Mail: at(3), Rcpt: at(4), Kept: at(5)}, nil, true, "smtp(8) waits for the right to send"},
		{"the verdict", &lease.Trail{Leased: at(1), SignedIn: at(2), Mail: at(3), Rcpt: at(4), Data: at(5)}, nil, true, "Microsoft has not answered end-of-data yet"},
		{"untried", nil, &waiter{Queue: "active"}, true, "Postfix has not tried it yet"},
		{"with a reason", nil, waiting("host smtp.office365.com[192.0.2.1] said: 451 4.7.0 Temporary server error. PRX2 (in reply to end of DATA command)"), true, "it still waits, because Microsoft's server has trouble"},
		{"vanished", nil, nil, false, "nobody can say that it was sent"},
	} {
		d := atDoor(t, postfixSmtpd(), configtest.SmallConfig, Options{SendTo: "me@fabrikam.com"})
		p := &parcel{d: d, s: d.Section(sentGroup, "message"), identity: "scan@contoso.com", sender: "scan@contoso.com", id: "4cQX", began: d.now(), trail: tc.trail, entry: tc.entry}
		p.giveUp(tc.here)
		findingtest.WantWhole(t, &d.Report)
		t.Run(tc.name, func(t *testing.T) { d.wantCheck(t, "sent.verdict", finding.Fail, "is not sent after", tc.want) })
	}
}

func waiting(reason string) *waiter {
	w := &waiter{Queue: "active"}
	w.Recipients = append(w.Recipients, struct {
		Address string `json:"address"`
		Reason  string `json:"delay_reason"`
	}{"me@fabrikam.com", reason})
	return w
}

// TestIntoAFilter: a message that a filter takes is followed when it comes back, and one that anybody
// else takes did not go to Microsoft.
func TestIntoAFilter(t *testing.T) {
	d := atDoor(t, postfixSmtpd(), configtest.SmallConfig, Options{SendTo: "me@fabrikam.com"})
	p := &parcel{d: d, s: d.Section(sentGroup, "message"), identity: "scan@contoso.com", sender: "scan@contoso.com", id: "4cQX1", msgID: "<id@contoso.com>"}
	if p.logSays(logged{"7", "127.0.0.1[127.0.0.1]:10024", "sent", "250 2.0.0 from MTA(smtp:[127.0.0.1]:10025): 250 2.0.0 Ok: queued as 4cQX2"}) || p.id != "4cQX2" {
		t.Errorf("after the filter it is followed as %s", p.id)
	}
	d.wantCheck(t, "sent.handed", finding.OK, "gave it back as 4cQX2")
	if !p.logSays(logged{"8", "smtp.office365.com[192.0.2.1]:587", "sent", "250 2.0.0 OK <id@contoso.com>"}) {
		t.Error("Microsoft's answer is not its fate")
	}
	d.wantCheck(t, "sent.verdict", finding.OK, "250 2.0.0 OK <id@contoso.com>")
	for relay, text := range map[string]string{"mx.fabrikam.com[192.0.2.9]:25": "250 2.0.0 Ok: queued as 4cQX9", "local": "delivered to mailbox", "none": "fabrikam.com"} {
		d.Checks = nil
		if !p.logSays(logged{"8", relay, "sent", text}) {
			t.Errorf("%s is not its fate", relay)
		}
		d.wantCheck(t, "sent.verdict", finding.Fail, "did not go to Microsoft", relay)
	}
}

// TestPatternsAlone: a configuration of patterns is walked as far as it has names.
func TestPatternsAlone(t *testing.T) {
	const yaml = `tenant: {id: contoso.onmicrosoft.com, domains: [contoso.com]}
credentials:
  relay-app: {client_id: 5f2c0d3e-0000-4000-8000-000000000001, client_secret_file: relay-app.secret}
mailboxes:
  - {address: "*@contoso.com", credential: relay-app}
clients:
  - {name: printers, networks: [10.2.0.0/16], CLIENT}
NOTICES
`
	for _, tc := range []struct{ client, notices, want string }{
		{"from: scan@contoso.com", "notices: relay@contoso.com", "[relay@contoso.com scan@contoso.com]"},
		{"senders: [a@contoso.com, b@contoso.com, c@contoso.com, d@contoso.com]", "notices: a@contoso.com", "[a@contoso.com b@contoso.com c@contoso.com]"},
		{"senders: ['*@contoso.com']", "notices: a@contoso.com", "[a@contoso.com]"},
	} {
		s := &scriptedServer{}
		d := manyDoctor(t, s, nil)
		ca := d.config.Tenant.Endpoints.CAFile
		d.config = openDesk(t, strings.NewReplacer("CLIENT", tc.client, "NOTICES", tc.notices).Replace(yaml))
		d.config.Tenant.Endpoints.CAFile = ca
		list, err := d.patients()
		if err != nil {
			t.Fatal(err)
		}
		d.checkMailboxes(t.Context(), list)
		var users []string
		for _, p := range list {
			users = append(users, p.user)
			d.wantCheck(t, "mailbox."+p.user+".auth", finding.OK)
		}
		if fmt.Sprint(users) != tc.want {
			t.Errorf("walked are %v, want %s", users, tc.want)
		}
	}
}
