package lab

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim/smtp"
)

// ordinary takes from main.cf all that sendas needs, so that an ordinary relay is left.
func ordinary(s *Site, main map[string]string) {
	for name := range MainCF("587", "") {
		delete(main, name)
	}
	// The lab's own main.cf has this one empty; here it is as in Postfix.
	main["local_header_rewrite_clients"] = "permit_inet_interfaces"
}

// typePostfix types "sendas postfix" for the site's instance and returns what it said.
func (s *Site) typePostfix(ctx context.Context, t *testing.T, args ...string) (string, error) {
	t.Helper()
	dir, err := program()
	if err != nil {
		t.Fatal(err)
	}
	line := append([]string{"postfix", args[0], "--config", s.Config, "--postfix-config", s.Postfix.ConfigDir(), "--state", filepath.Join(s.Dir, "postfix-state", "x.json")}, args[1:]...)
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "sendas"), line...).CombinedOutput()
	return string(out), err
}

// sendasPostfix is typePostfix for what has to succeed.
func (s *Site) sendasPostfix(ctx context.Context, t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.typePostfix(ctx, t, args...)
	if err != nil {
		t.Fatalf("sendas postfix %q: %v\n%s", args, err, out)
	}
	return out
}

// refusedWithoutMilter: a running Postfix is not told to ask a milter that does not answer.
func (s *Site) refusedWithoutMilter(ctx context.Context, t *testing.T) {
	t.Helper()
	if err := s.Milter.Stop(); err != nil {
		t.Fatal(err)
	}
	if out, err := s.typePostfix(ctx, t, "enable"); err == nil || !strings.Contains(out, "in the way: socket unix:"+s.Postfix.SocketDir()+"/milter") {
		t.Errorf("without the milter: %v\n%s", err, out)
	}
	if err := s.Milter.Start(ctx); err != nil {
		t.Fatal(err)
	}
}

// postfixFiles returns main.cf and master.cf.
func (s *Site) postfixFiles(t *testing.T) []byte {
	t.Helper()
	var all []byte
	for _, name := range []string{"main.cf", "master.cf"} {
		data, err := os.ReadFile(filepath.Join(s.Postfix.ConfigDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, data...)
	}
	return all
}

// TestPostfixCommand: an ordinary Postfix becomes the mail exit of the tenant by "sendas postfix
// enable" alone, with all of its mail or with that of the mailboxes' senders, and by disable what it
// was.
func TestPostfixCommand(t *testing.T) {
	for _, tc := range []struct {
		name, yaml string
		has        map[string]string // main.cf
		says       string
	}{
		{"all mail", "", map[string]string{"relayhost": "[smtp.office365.com]:submission", "smtp_fallback_relay": "[" + MXHost + "]", "smtp_tls_policy_maps": "inline:{ {smtp.office365.com = none} }"}, "all mail leaves by Microsoft:"},
		{"other mail", "routes:\n  - {name: submission, transport: exit}\n", map[string]string{"default_transport": "smtp"}, "the mailboxes' senders leave by Microsoft: this host has other mail too: default_transport = smtp"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, ctx := startSite(t, SiteConfig{
				Minute: 6 * time.Second,
				YAML:   func(y string) string { return strings.Replace(y, "clients:\n", tc.yaml+"clients:\n", 1) },
				Postfix: func(s *Site, main map[string]string) []string {
					ordinary(s, main)
					maps.Copy(main, tc.has)
					return nil
				},
			})
			before := s.postfixFiles(t)
			s.refusedWithoutMilter(ctx, t)
			if !bytes.Equal(s.postfixFiles(t), before) {
				t.Error("what was refused has changed main.cf or master.cf")
			}
			said := s.sendasPostfix(ctx, t, "enable")
			for _, want := range []string{tc.says, "Postfix was reloaded"} {
				if !strings.Contains(said, want) {
					t.Errorf("enable said\n%swithout %q", said, want)
				}
			}
			s.sendStories(ctx, t)
			if tc.yaml != "" {
				s.otherMail(ctx, t)
			}
			if said := s.sendasPostfix(ctx, t, "disable"); strings.Count(said, "byte for byte") != 2 {
				t.Errorf("disable said\n%s", said)
			}
			if !bytes.Equal(s.postfixFiles(t), before) {
				t.Error("main.cf and master.cf are not what they were")
			}
		})
	}
}

// sendStories sends a message of each mailbox, which leaves as it; and while the token service is
// away devices are still served.
func (s *Site) sendStories(ctx context.Context, t *testing.T) {
	t.Helper()
	for i, from := range []string{"billing@contoso.com", "hr@contoso.com"} {
		s.device(ctx, t, from)
		if err := s.WaitMessages(ctx, i+1); err != nil {
			t.Fatal(err)
		}
		if m := s.Exosim.Messages()[i]; m.Endpoint != smtp.EndpointSubmission || m.Sender != from || m.Mailbox != "erp@contoso.com" {
			t.Errorf("%s left by %s as %s of %s", from, m.Endpoint, m.Sender, m.Mailbox)
		}
	}
	if err := s.Token.Stop(); err != nil {
		t.Fatal(err)
	}
	s.device(ctx, t, "billing@contoso.com") // accepted at once: the queue absorbs it
	if _, err := s.Postfix.WaitQueue(ctx, func(q []QueueEntry) bool {
		return len(q) == 1 && len(q[0].Recipients) == 1 && q[0].Recipients[0].Reason != ""
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Token.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitMessages(ctx, 3); err != nil {
		t.Fatal(err)
	}
}

// messageNumber makes each message another one.
var messageNumber atomic.Int32

// device sends a message of the ERP that Postfix has to accept.
func (s *Site) device(ctx context.Context, t *testing.T, from string) {
	t.Helper()
	n := messageNumber.Add(1)
	m := Mail{XClient: sap, From: from, To: []string{"someone@fabrikam.com"}, Data: message("From: "+from, fmt.Sprintf(storyID, fmt.Sprintf("command-%d", n)), storyDate)}
	if res, err := Send(ctx, s.Postfix.SMTPAddr(), m); err != nil || !res.Accepted() {
		t.Fatalf("%s: %v, %v", from, res.Verdict(), err)
	}
}

// otherMail leaves by Postfix's own smtp, which knows no mailbox, while the token service is
// stopped.
func (s *Site) otherMail(ctx context.Context, t *testing.T) {
	t.Helper()
	if err := s.Token.Stop(); err != nil {
		t.Fatal(err)
	}
	// The milter lets nothing out that is not an address of ours. What does not pass it has other
	// senders.
	if err := s.Postfix.Postconf(ctx, "non_smtpd_milters="); err != nil {
		t.Fatal(err)
	}
	if err := s.Postfix.Reload(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Postfix.SendmailInject(ctx, "news@elsewhere.example", []string{"someone@" + MXHost}, []byte("Subject: x\n\nx\n")); err != nil {
		t.Fatal(err)
	}
	line, err := s.Postfix.WaitLog(ctx, regexp.MustCompile(`: to=<someone@`+MXHost+`>`))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(line, "postfix/smtp[") || strings.Contains(line, "office365") {
		t.Errorf("other mail: %s", line)
	}
	if err := s.Postfix.Postconf(ctx, "non_smtpd_milters=unix:sendas/milter"); err != nil {
		t.Fatal(err)
	}
	if err := s.Token.Start(ctx); err != nil {
		t.Fatal(err)
	}
}
