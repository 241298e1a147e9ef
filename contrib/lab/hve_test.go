package lab

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim"
	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/smtp"
)

const (
	hveClient, hveObject   = "5f2c0d3e-0000-4000-8000-00000000000a", "0b1ec700-0000-4000-8000-00000000000a"
	newsClient, newsObject = "5f2c0d3e-0000-4000-8000-00000000000b", "0b1ec700-0000-4000-8000-00000000000b"
)

// hveYAML adds two accounts of High Volume Email: that of payroll, whose mail leaves by submission
// where it does not fit, and that of the intranet, with the scope of submission, which is wrong.
const hveYAML = `routes:
  - {name: bulk, type: hve, account: notices@contoso.com, credential: hve-app, endpoint: "smtp.hve.mx.microsoft:HVEPORT"}
  - {name: news, type: hve, account: news@contoso.com, credential: news-app, endpoint: "smtp.hve.mx.microsoft:HVEPORT",
     scope: "https://outlook.office365.com/.default", external: reject, limits: {messages: 100/6s}}
clients:
  - {name: payroll, networks: [10.50.0.0/24], route: bulk, from: hr@contoso.com}
  - {name: intranet, networks: [10.51.0.0/24], route: news}
`

// TestHighVolume: an ordinary Postfix gets High Volume Email beside submission by "sendas postfix
// enable"; what fits leaves there as its account, faster than submission lets anybody, and everything
// else by submission. What Microsoft refuses for the set-up waits.
func TestHighVolume(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{
		Minute: 6 * time.Second,
		Exosim: func(c *exosim.Config) {
			c.HVE, c.SMTPAuthDisabled = "127.0.0.1:0", true
			for i := range c.Mailboxes {
				c.Mailboxes[i].SMTPAuthEnabled = true
			}
			c.Accounts = []directory.Account{{Address: "notices@contoso.com", Apps: []string{hveObject}}, {Address: "news@contoso.com"}}
			c.Apps = append(c.Apps, directory.App{ClientID: hveClient, ObjectID: hveObject, Secret: c.Apps[0].Secret, Roles: []string{"Mail.Send"}},
				directory.App{ClientID: newsClient, ObjectID: newsObject, Secret: c.Apps[0].Secret, Roles: []string{"Mail.Send"}})
		},
		YAML: func(y string) string {
			y = strings.Replace(y, "mailboxes:\n", "  hve-app: {client_id: "+hveClient+", client_secret_file: relay-app.secret}\n  news-app: {client_id: "+newsClient+", client_secret_file: relay-app.secret}\nmailboxes:\n", 1)
			return strings.Replace(y, "clients:\n", hveYAML, 1)
		},
		Postfix: func(s *Site, main map[string]string) []string {
			ordinary(s, main)
			main["message_size_limit"] = "30000000"
			return nil
		},
	})
	s.sendasPostfix(ctx, t, "enable")
	send := func(addr, from, id string, body []byte, to ...string) Result {
		t.Helper()
		m := Mail{XClient: XClient{Addr: addr, Name: "erp.local"}, From: "www@erp.local", To: to,
			Data: append(message("From: "+from, fmt.Sprintf(storyID, id), storyDate), body...)}
		res, err := Send(ctx, s.Postfix.SMTPAddr(), m)
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		return res
	}
	const payroll, in, in2, out = "10.50.0.1", "boss@contoso.com", "desk@contoso.com", "someone@fabrikam.com"
	all := make([]string, 51)
	for i := range all {
		all[i] = fmt.Sprintf("colleague%d@contoso.com", i)
	}
	before := 0
	for _, tc := range []struct {
		name, addr, from string
		body             []byte
		to               []string
		want             []string // "endpoint/envelope sender/recipients"
	}{
		{"fits", payroll, `"Payroll, HR" <pay@fabrikam.com>`, nil, []string{in, in2}, []string{"hve/notices@contoso.com/2"}},
		{"mixed", payroll, "pay@erp.local", nil, []string{in, out}, []string{"submission/hr@contoso.com/2"}},
		{"foreign", payroll, "billing@contoso.com", nil, []string{out}, []string{"submission/billing@contoso.com/1"}},
		{"as many as fit", payroll, "pay@erp.local", nil, all[:50], []string{"hve/notices@contoso.com/50"}},
		{"too many", payroll, "pay@erp.local", nil, all, []string{"submission/hr@contoso.com/1", "submission/hr@contoso.com/50"}},
		{"as large as fits", payroll, "pay@erp.local", bytes.Repeat([]byte("0123456789abcdefghijklmnopqrstuvwxyz\r\n"), 262_000), []string{in}, []string{"hve/notices@contoso.com/1"}},
		{"too large", payroll, "pay@erp.local", bytes.Repeat([]byte("0123456789abcdefghijklmnopqrstuvwxyz\r\n"), 270_000), []string{in}, []string{"submission/hr@contoso.com/1"}},
		{"another client as the account", "10.1.0.5", "notices@contoso.com", nil, []string{in}, []string{"submission/billing@contoso.com/1"}},
	} {
		if res := send(tc.addr, tc.from, "hve-"+strings.ReplaceAll(tc.name, " ", "-"), tc.body, tc.to...); !res.Accepted() {
			t.Fatalf("%s: answered %s", tc.name, res.Verdict())
		}
		if err := s.WaitMessages(ctx, before+len(tc.want)); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		var got []string
		for _, m := range s.Exosim.Messages()[before:] {
			got = append(got, fmt.Sprintf("%s/%s/%d", m.Endpoint, m.Sender, len(m.Recipients)))
			if !m.Accepted() {
				t.Errorf("%s: %s", tc.name, m.Reply)
			}
		}
		if slices.Sort(got); !slices.Equal(got, tc.want) {
			t.Errorf("%s:\n got  %q\n want %q", tc.name, got, tc.want)
		}
		before = len(s.Exosim.Messages())
	}
	first := s.Exosim.Messages()[0]
	for name, want := range map[string]string{"From": `"Payroll, HR" <notices@contoso.com>`, "Reply-To": "pay@fabrikam.com", "X-Untouched": "two  blanks\tand a tab"} {
		if got := strings.Join(first.Header(name), "|"); !strings.Contains(got, want) {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	// No minute limits it: submission would let 30 leave in the time that these have.
	for i := range 70 {
		send(payroll, "pay@erp.local", fmt.Sprintf("hve-bulk-%d", i), nil, in)
	}
	if err := s.WaitMessages(ctx, before+70); err != nil {
		t.Fatal(err)
	}
	before += 70
	if u := s.Exosim.Usage("notices@contoso.com"); u.Accepted != 73 {
		t.Errorf("the account sent %+v", u)
	}

	// The wrong scope, an app that is not on the list: mail waits, until somebody has mended it.
	if res := send("10.51.0.1", "wiki@erp.local", "hve-refused", nil, out); res.Accepted() || !strings.Contains(res.Verdict().Text, `route "news" of client "intranet" reaches the recipients of this organisation alone`) {
		t.Errorf("outside, by a route that refuses: %s", res.Verdict())
	}
	send("10.51.0.1", "wiki@erp.local", "hve-news", nil, in)
	waits := func(words string) {
		t.Helper()
		if _, err := s.Postfix.WaitQueue(ctx, func(q []QueueEntry) bool {
			return len(q) == 1 && strings.Contains(q[0].Recipients[0].Reason, words)
		}); err != nil {
			t.Fatalf("waiting for %q: %v", words, err)
		}
	}
	waits("5.7.144")
	text, err := os.ReadFile(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.Config, bytes.Replace(text, []byte(`     scope: "https://outlook.office365.com/.default", `), []byte("     "), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	if said, err := s.Token.Reload(ctx); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	waits("4.7.240 The application is not allowed")
	s.Exosim.SetAccount("news@contoso.com", func(a *directory.Account) { a.Apps = []string{newsObject} })
	if err := s.WaitMessages(ctx, before+1); err != nil {
		t.Fatal(err)
	}
	messages := s.Exosim.Messages()
	if m := messages[len(messages)-1]; m.Endpoint != smtp.EndpointHighVolume || m.Sender != "news@contoso.com" {
		t.Errorf("mail of the intranet left by %s as %s", m.Endpoint, m.Sender)
	}
	s.settle(ctx, t, before+1)
	if n := s.Exosim.AuthRefused()["token has no Mail.Send"]; n == 0 || n > 3 {
		t.Errorf("the wrong scope was shown %d times, want to stop after the first", n)
	}
}
