package doctor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/smtp"
	"github.com/sendas/sendas/contrib/lab"
	"github.com/sendas/sendas/internal/exit"
)

// withFax adds a client that may ask for one sender alone.
func withFax(yaml string) string {
	return strings.Replace(yaml, "clients:\n", "clients:\n  - {name: fax, networks: [10.3.0.0/16], senders: [scan@contoso.com], from: scan@contoso.com}\n", 1)
}

// TestSending: a real message goes the way of a client's through a real Postfix, and what is told of
// it is what became of it. It is never called good where nothing left.
func TestSending(t *testing.T) {
	r := openSite(t, withFax, nil)
	t.Run("good", func(t *testing.T) { r.sendsGood(t) })
	for _, tc := range []struct {
		name  string
		spoil func(*testing.T)
		q     Options
		id    string
		words []string
		code  int
	}{
		{"a client by its name", nil, Options{As: "billing@contoso.com", Client: "sap"}, "", []string{"from sap (10.1.0.1)", "let it through as billing@contoso.com"}, exit.OK},
		{"a client by its address", nil, Options{As: "hr@contoso.com", Client: "10.1.7.7"}, "", []string{"from sap (10.1.7.7)"}, exit.OK},
		{"a client with a login", nil, Options{As: "monitor@contoso.com", Client: "monitoring"}, "", []string{"from monitoring (127.0.0.1, login nagios)"}, exit.OK},
		{"the mailbox of a client", nil, Options{Client: "fax"}, "", []string{"let it through as scan@contoso.com"}, exit.OK},
		{"not as that client", nil, Options{As: "erp@contoso.com", Client: "fax"}, "sent.milter", []string{"made it leave as scan@contoso.com", "sendas explain --client 10.3.0.1 --from erp@contoso.com"}, exit.Failed},
		{"a stranger", nil, Options{As: "erp@contoso.com", Client: "198.51.100.66"}, "sent.taken", []string{"550 5.7.1", "is not a known client", "sendas explain --client 198.51.100.66"}, exit.Failed},
		{"who may not relay", nil, Options{As: "erp@contoso.com", Client: "203.0.113.9"}, "sent.taken", []string{"203.0.113.9"}, exit.Failed},
		{"mailbox full", func(t *testing.T) { r.mailbox(t, func(m *directory.Mailbox) { m.Full = true }) }, Options{As: "erp@contoso.com"}, "sent.verdict", []string{"4.2.2", "it still waits, because", "Sent Items"}, exit.Failed},
		{"no right on the mailbox yet", func(t *testing.T) { r.mailbox(t, func(m *directory.Mailbox) { m.NoLogon = true }) }, Options{As: "erp@contoso.com"}, "sent.verdict", []string{"430 4.2.0", "two hours"}, exit.TempFail},
		{"Send As denied", func(t *testing.T) { r.mailbox(t, func(m *directory.Mailbox) { m.SendAs = nil }) }, Options{As: "hr@contoso.com"}, "sent.verdict",
			[]string{"it did not leave", "Add-RecipientPermission hr@contoso.com -Trustee erp@contoso.com -AccessRights SendAs"}, exit.Failed},
		{"busy", func(t *testing.T) { r.faults(t, smtp.Faults{Busy: 9}) }, Options{As: "erp@contoso.com"}, "sent.verdict", []string{"451 4.7.0"}, exit.TempFail},
		{"no token service", func(t *testing.T) { r.without(t, r.Token) }, Options{As: "erp@contoso.com"}, "sent.verdict", []string{"it still waits", "postqueue"}, exit.Failed},
		{"another way", func(t *testing.T) { r.main(t, "transport_maps=inline:{ {fabrikam.com = discard:} }") }, Options{As: "erp@contoso.com"}, "sent.verdict", []string{"none took it", "it did not go to Microsoft"}, exit.Failed},
		{"on hold", func(t *testing.T) { r.main(t, "smtpd_end_of_data_restrictions=check_client_access static:HOLD") }, Options{As: "erp@contoso.com"}, "sent.verdict", []string{"is on hold", "postsuper"}, exit.Failed},
		{"kept back", func(t *testing.T) { r.main(t, "defer_transports=sendas") }, Options{As: "erp@contoso.com"}, "sent.verdict", []string{"deferred transport", "postqueue"}, exit.Failed},
		{"nobody tries", func(t *testing.T) { r.master(t, "qmgr/unix=qmgr unix n - n 300 0 true") }, Options{As: "erp@contoso.com", Wait: time.Second}, "sent.verdict", []string{"not sent after", "has not tried it yet"}, exit.TempFail},
		{"nobody may speak for others", func(t *testing.T) { r.main(t, "smtpd_authorized_xclient_hosts=") }, Options{As: "scan@contoso.com", Client: "fax"}, "sent.taken", []string{"smtpd_authorized_xclient_hosts = 127.0.0.1", "postconf"}, exit.Failed},
		{"no milter", func(t *testing.T) { r.without(t, r.Milter) }, Options{As: "erp@contoso.com"}, "sent.taken", []string{"systemctl restart sendas-milter"}, exit.Failed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r.quiet(t)
			if tc.spoil != nil {
				tc.spoil(t)
			}
			accepted := r.Accepted()
			tc.q.SendTo = "me@fabrikam.com"
			d, out, code := r.visit(t, tc.q)
			if tc.id != "" {
				d.wantCheck(t, tc.id, finding.Fail, tc.words...)
			}
			for _, w := range tc.words {
				if tc.id == "" && !strings.Contains(out, w) {
					t.Errorf("there is no %q in\n%s", w, out)
				}
			}
			if code != tc.code {
				t.Errorf("exit code %d, want %d:\n%s", code, tc.code, out)
			}
			if left := r.Accepted() - accepted; code == exit.OK && left != 1 || left > 1 {
				t.Errorf("exit code %d, and %d messages left", code, left)
			}
		})
	}
}

// sendsGood looks at what is told of a message that arrives.
func (r *realSite) sendsGood(t *testing.T) {
	d, out, code := r.visit(t, Options{Mailbox: "hr@contoso.com", SendTo: "me@fabrikam.com"})
	list := r.Exosim.Messages()
	if code != exit.OK || len(list) != 1 || !list[0].Accepted() {
		t.Fatalf("exit code %d, messages %+v:\n%s", code, list, out)
	}
	m := list[0]
	if m.Mailbox != "erp@contoso.com" || m.Sender != "hr@contoso.com" || fmt.Sprint(m.Recipients, m.Header("From"), m.Header("Subject"), m.Header("Auto-Submitted")) != "[me@fabrikam.com] [hr@contoso.com] [sendas doctor] [auto-generated]" {
		t.Errorf("%s by %s to %v:\n%s", m.Sender, m.Mailbox, m.Recipients, m.Data)
	}
	last := ""
	for _, id := range []string{"taken", "milter", "asked", "lease", "auth", "mail", "rcpt", "data", "verdict"} {
		at, _, _ := strings.Cut(d.find(t, "sent."+id).Found, " ")
		if !regexp.MustCompile(`^\d\d:\d\d:\d\d\.\d\d\d$`).MatchString(at) || at < last && last < "23:5" && id != "asked" {
			t.Errorf("station %s has the time %q after %q", id, at, last)
		}
		last = at
	}
	d.wantCheck(t, "sent.verdict", finding.OK, m.Header("Message-ID")[0], m.Reply)
	if strings.Contains(out, "monitor@contoso.com") {
		t.Errorf("another mailbox was looked at:\n%s", out)
	}
	if !strings.Contains(out, "ok    message Exchange Online: ") || strings.Contains(out, "ok    Postfix") {
		t.Errorf("without --verbose the stations are shown, and nothing else that is good:\n%s", out)
	}
}

// quiet brings the site back to where nothing waits and nobody rests.
func (r *realSite) quiet(t *testing.T) {
	t.Helper()
	r.run(t, "postsuper", "-d", "ALL")
	r.sendas(t, "retry", "erp@contoso.com")
	r.Exosim.Forget()
}

// run types a command of Postfix's.
func (r *realSite) run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(context.WithoutCancel(t.Context()), name, append([]string{"-c", r.Postfix.ConfigDir()}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// main changes main.cf, until the end of the test.
func (r *realSite) main(t *testing.T, setting string) {
	t.Helper()
	r.configure(t, "main.cf", func() { r.run(t, "postconf", "-e", setting) })
}

// master changes an entry of master.cf, until the end of the test.
func (r *realSite) master(t *testing.T, entry string) {
	t.Helper()
	r.configure(t, "master.cf", func() { r.run(t, "postconf", "-M", entry) })
}

// configure changes one of Postfix's files, until the end of the test.
func (r *realSite) configure(t *testing.T, name string, change func()) {
	t.Helper()
	file := filepath.Join(r.Postfix.ConfigDir(), name)
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	r.reload(t, change)
	t.Cleanup(func() {
		r.reload(t, func() {
			if err := os.WriteFile(file, before, 0o644); err != nil {
				t.Error(err)
			}
		})
	})
}

// reload has Postfix read what has changed.
func (r *realSite) reload(t *testing.T, change func()) {
	t.Helper()
	change()
	r.age(t)
	r.run(t, "postfix", "reload")
	r.age(t) // "postfix reload" mends owners and modes
}

// mailbox changes erp@contoso.com at Microsoft, until the end of the test.
func (r *realSite) mailbox(t *testing.T, change func(*directory.Mailbox)) {
	t.Helper()
	before, _ := r.Exosim.Mailbox("erp@contoso.com")
	r.Exosim.SetMailbox("erp@contoso.com", change)
	t.Cleanup(func() { r.Exosim.SetMailbox("erp@contoso.com", func(m *directory.Mailbox) { *m = before }) })
}

// faults has Exchange Online make trouble, until the end of the test.
func (r *realSite) faults(t *testing.T, f smtp.Faults) {
	t.Helper()
	r.Exosim.Exchange.SetFaults(f)
	t.Cleanup(func() { r.Exosim.Exchange.SetFaults(smtp.Faults{}) })
}

// without stops a service, until the end of the test.
func (r *realSite) without(t *testing.T, s *lab.Service) {
	t.Helper()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Start(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
}
