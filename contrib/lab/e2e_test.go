package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim"
	"github.com/sendas/sendas/token/sasl"
)

// program builds sendas once, with the race detector, and the SASL plugin.
var program = sync.OnceValues(func() (dir string, err error) {
	dir, err = MakeDir()
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-race", "-o", filepath.Join(dir, "sendas"), "../../cmd/sendas")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	_, err = sasl.Build(context.Background(), dir)
	return dir, err
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := program(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// startSite starts a site for a test, and after it looks for the four things that must never
// happen. Most of a test is waiting, so it runs beside others.
func startSite(t *testing.T, c SiteConfig) (*Site, context.Context) {
	t.Helper()
	t.Parallel()
	dir, err := program()
	if err != nil {
		t.Fatal(err)
	}
	c.Sendas, c.PluginDir = filepath.Join(dir, "sendas"), dir
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	s, err := StartSite(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := s.Postfix.Log()
			t.Logf("Postfix:\n%s\nmilter:\n%s\ntoken:\n%s", last(log), last(s.Milter.Log()), last(s.Token.Log()))
		}
		if err := s.Stop(); err != nil {
			t.Errorf("stopping: %v", err)
		}
	})
	t.Cleanup(func() { checkPromises(t, s) })
	return s, ctx
}

// denied says of how many messages of a test's site Send As was denied on purpose.
var denied sync.Map

func last(s string) string {
	const most = 12_000
	return s[max(0, len(s)-most):]
}

// checkPromises: nothing is sent twice, nothing leaves under a wrong name, no secret shows
// anywhere.
func checkPromises(t *testing.T, s *Site) {
	t.Helper()
	seen := map[string]int{}
	wrong, meant := 0, 0
	if n, ok := denied.Load(s); ok {
		meant = n.(int)
	}
	for _, m := range s.Exosim.Messages() {
		if strings.Contains(m.Reply, "SendAsDenied") {
			if wrong++; wrong > meant {
				t.Errorf("left under a wrong name: %s", m.Reply)
			}
		}
		if !m.Accepted() || m.Dropped { // who was not told must send again
			continue
		}
		for _, to := range m.Recipients { // a message may leave by two routes, to a part of its recipients each
			seen[strings.Join(m.Header("Message-ID"), "")+" to "+to]++
		}
	}
	for id, n := range seen {
		if n > 1 {
			t.Errorf("message %s was sent %d times", id, n)
		}
	}
	for where, text := range s.Outputs(t.Context()) {
		for what, secret := range map[string]string{"client secret": s.Secret, "access token": "eyJ", "base64 of XOAUTH2": "dXNlcj", "a data race": "DATA RACE"} {
			if strings.Contains(text, secret) && !(what == "a data race" && strings.HasPrefix(where, "/proc/")) { // somebody may look for one
				t.Errorf("%s shows in %s", what, where)
			}
		}
	}
}

func TestStories(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second})
	want := 0
	for _, story := range Stories() {
		res, err := Send(ctx, s.Postfix.SMTPAddr(), story.Mail)
		if err != nil {
			t.Fatalf("%s: %v", story.Name, err)
		}
		if story.Refused != "" {
			if got := res.Verdict().Line(); res.Accepted() || !strings.HasPrefix(got, story.Refused) {
				t.Errorf("%s: answered %q, want %q", story.Name, got, story.Refused)
			}
			continue
		}
		if !res.Accepted() {
			t.Errorf("%s: answered %q", story.Name, res.Verdict())
			continue
		}
		want++
		if err := s.WaitMessages(ctx, want); err != nil {
			t.Fatalf("%s: %v", story.Name, err)
		}
		all := s.Exosim.Messages()
		if bad := story.Compare(all[len(all)-1]); bad != "" {
			t.Errorf("%s: %s\n%s", story.Name, bad, all[len(all)-1].Data)
		}
	}
	if n := strings.Count(s.Milter.Log(), "msg=message"); n != len(Stories()) {
		t.Errorf("%d log lines of the milter for %d messages", n, len(Stories()))
	}
}

// TestWithCertificate signs in with a client assertion.
func TestWithCertificate(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second, Certificate: MakeCertificate})
	if _, err := Send(ctx, s.Postfix.SMTPAddr(), Stories()[0].Mail); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitMessages(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if n := s.Exosim.TokenRequests(); n["ok"] != 1 || len(n) != 1 {
		t.Errorf("token requests %v, want one that succeeded", n)
	}
}

// TestBurst: a backlog of an ERP uses the allowance and never passes it; none is deferred.
func TestBurst(t *testing.T) {
	const minute, n = 12 * time.Second, 130 // long enough for TLS on a busy machine not to count
	s, ctx := startSite(t, SiteConfig{Minute: minute})
	if err := s.Burst(ctx, n); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitMessages(ctx, n); err != nil {
		t.Fatal(err)
	}
	u := s.Exosim.Usage("erp@contoso.com")
	share := s.Share("erp@contoso.com", 30, minute)
	t.Logf("worst window %d by end of DATA, %d by verdict; %.4f of the allowance used", u.WorstByDot, u.WorstByVerdict, share)
	if u.WorstByDot > 30 || u.WorstByVerdict > 30 {
		t.Errorf("worst window %d by end of DATA, %d by verdict, limit 30", u.WorstByDot, u.WorstByVerdict)
	}
	if share < 0.97 {
		t.Errorf("%.4f of the allowance used, want 0.97", share)
	}
	if u.MaxInData > 3 || len(u.Refused) > 0 {
		t.Errorf("%d parallel deliveries, refused %v", u.MaxInData, u.Refused)
	}
	if log, _ := s.Postfix.Log(); strings.Contains(log, "status=deferred") {
		t.Error("messages were deferred")
	}
}

// TestKill kills both services again and again while mail flows: nothing is lost, nothing comes
// twice. The sockets are systemd's: smtp(8) asks about the verdict of a message that Exchange
// Online has accepted, and must be able to wait for the next process to answer.
func TestKill(t *testing.T) { disturb(t, true, (*Service).Kill) }

// TestRestart restarts both services again and again. They make their own sockets, so for a moment
// nobody listens; what is being delivered then has come to its end before.
func TestRestart(t *testing.T) { disturb(t, false, (*Service).Stop) }

// disturb ends the services while mail flows, and counts what arrives.
func disturb(t *testing.T, activated bool, end func(*Service) error) {
	const n = 120
	s, ctx := startSite(t, SiteConfig{Minute: 2 * time.Second, Activated: activated,
		Exosim: func(c *exosim.Config) { c.VerdictMin, c.VerdictMax = 10*time.Millisecond, 150*time.Millisecond }})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i, v := range []*Service{s.Milter, s.Token} {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(300+170*i) * time.Millisecond):
				}
				if err := end(v); err != nil {
					t.Error(err)
				}
				time.Sleep(50 * time.Millisecond)
				if err := v.Start(ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for accepted := 0; accepted < n; {
		res, err := Send(ctx, s.Postfix.SMTPAddr(), burstMail(accepted))
		if err != nil {
			t.Fatal(err)
		}
		if res.Accepted() {
			accepted++ // else the device tries again, as milter_default_action=tempfail asks it to
			continue
		}
		if v := res.Verdict(); v.Code/100 != 4 {
			t.Fatalf("message %d: answered %q while the milter was away", accepted, v)
		}
	}
	ends := func() int { return strings.Count(s.Token.Log(), "token service ready") - 1 }
	if err := poll(ctx, func() (bool, error) { return ends() >= 6 || s.Accepted() == n, nil }); err != nil {
		t.Fatal(err)
	}
	close(stop)
	wg.Wait()
	if err := s.Postfix.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitMessages(ctx, n); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Postfix.WaitQueue(ctx, func(q []QueueEntry) bool { return len(q) == 0 }); err != nil {
		t.Fatalf("something is left in the queue: %v", err)
	}
	if got := s.Accepted(); got != n {
		t.Errorf("%d messages arrived, want %d", got, n)
	}
	if ends() < 4 {
		t.Errorf("the token service was ended only %d times", ends())
	}
}

// TestServicesDown: without the milter nothing is accepted, without the token service mail waits;
// both heal by themselves.
func TestServicesDown(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second})
	if err := s.Milter.Stop(); err != nil {
		t.Fatal(err)
	}
	res, err := Send(ctx, s.Postfix.SMTPAddr(), burstMail(1))
	if err != nil || res.Accepted() || res.Verdict().Code != 451 {
		t.Errorf("without milter: %v, %v, want 451", res.Verdict(), err)
	}
	if err := s.Milter.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Token.Stop(); err != nil {
		t.Fatal(err)
	}
	if res, err := Send(ctx, s.Postfix.SMTPAddr(), burstMail(2)); err != nil || !res.Accepted() {
		t.Fatalf("without token service: %v, %v", res.Verdict(), err)
	}
	q, err := s.Postfix.WaitQueue(ctx, func(q []QueueEntry) bool { return len(q) == 1 && q[0].Queue == "deferred" })
	if err != nil {
		t.Fatalf("queue %+v: %v", q, err)
	}
	if err := s.Token.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitMessages(ctx, 1); err != nil {
		t.Fatal(err)
	}
}

// TestWrongSecret: Microsoft refuses the secret; the log and /readyz say what it is, mail waits.
// Once the administrator has written the right one and reloads, mail flows.
func TestWrongSecret(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second})
	if err := s.Token.Stop(); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(s.Dir, "relay-app.secret")
	if err := writeOwned(secret, "another-secret", 0o600, tokenUser); err != nil {
		t.Fatal(err)
	}
	if err := s.Token.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if res, err := Send(ctx, s.Postfix.SMTPAddr(), burstMail(1)); err != nil || !res.Accepted() {
		t.Fatalf("%v, %v", res.Verdict(), err)
	}
	if _, err := s.Postfix.WaitQueue(ctx, func(q []QueueEntry) bool { return len(q) == 1 && q[0].Queue == "deferred" }); err != nil {
		t.Fatal(err)
	}
	if ready, err := get(ctx, "http://"+s.TokenHTTP()+"/readyz"); err != nil || !strings.Contains(ready, "AADSTS7000215") {
		t.Errorf("/readyz: %q, %v", ready, err)
	}
	if log := s.Token.Log(); !strings.Contains(log, "AADSTS7000215") || !strings.Contains(log, "hint=") {
		t.Errorf("the log does not say what to do:\n%s", log)
	}
	if log, _ := s.Postfix.Log(); !strings.Contains(log, "no token for mailbox erp@contoso.com") {
		t.Error("Postfix's log does not say why")
	}
	if err := writeOwned(secret, s.Secret, 0o600, tokenUser); err != nil {
		t.Fatal(err)
	}
	if err := s.Token.Signal(hangup); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitMessages(ctx, 1); err != nil {
		t.Fatal(err)
	}
}

// TestRefusals: what Exchange Online refuses, and what becomes of the message.
func TestRefusals(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{Minute: time.Second}) // a mailbox rests for 5 or 15 of them
	for _, tc := range []struct {
		name   string
		set    func()
		reason string // in the queue
		mend   func()
	}{
		{"SMTP AUTH is off", func() { s.SetMailbox(func(m *mailboxSettings) { m.SMTPAuthDisabled = true }) },
			"SmtpClientAuthentication is disabled for the Mailbox", func() { s.SetMailbox(func(m *mailboxSettings) { m.SMTPAuthDisabled = false }) }},
		{"mailbox full", func() { s.SetMailbox(func(m *mailboxSettings) { m.Full = true }) },
			"STOREDRV.Submission.Exception:QuotaExceededException", func() { s.SetMailbox(func(m *mailboxSettings) { m.Full = false }) }},
		{"blocked for spam", func() {
			s.SetMailbox(func(m *mailboxSettings) { m.Refusal = "550 5.1.8 Access denied, bad outbound sender AS(42004)" })
		},
			"said: 450 4.1.8 Access denied, bad outbound sender", func() { s.SetMailbox(func(m *mailboxSettings) { m.Refusal = "" }) }},
		{"no logon yet", func() { s.SetMailbox(func(m *mailboxSettings) { m.NoLogon = true }) },
			"mailbox logon failure", func() { s.SetMailbox(func(m *mailboxSettings) { m.NoLogon = false }) }},
	} {
		before := s.Accepted()
		tc.set()
		if res, err := Send(ctx, s.Postfix.SMTPAddr(), burstMail(100+before)); err != nil || !res.Accepted() {
			t.Fatalf("%s: %v, %v", tc.name, res.Verdict(), err)
		}
		if err := s.waitDeferred(ctx, tc.reason); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		tc.mend()
		if err := s.WaitMessages(ctx, before+1); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
	}
}

// waitDeferred waits until one message with one recipient is in the queue, which Postfix has
// deferred with a reason that contains the text. The log tells all the reasons; the queue tells the
// last one, which may be another one two seconds later.
func (s *Site) waitDeferred(ctx context.Context, text string) error {
	_, err := s.Postfix.WaitQueue(ctx, func(q []QueueEntry) bool {
		if len(q) != 1 || len(q[0].Recipients) != 1 {
			return false
		}
		log, _ := s.Postfix.Log()
		for line := range strings.Lines(log) {
			if strings.Contains(line, " "+q[0].ID+": to=<") && strings.Contains(line, "status=deferred") && strings.Contains(line, text) {
				return true
			}
		}
		return false
	})
	return err
}

// TestPastTheMilter: mail of a sender that no mailbox may send as waits, and does not bounce.
func TestPastTheMilter(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second})
	if err := s.Postfix.Postconf(ctx, "smtpd_milters="); err != nil {
		t.Fatal(err)
	}
	if err := s.Postfix.Reload(ctx); err != nil {
		t.Fatal(err)
	}
	m := burstMail(1)
	m.From = "stranger@contoso.com"
	if res, err := Send(ctx, s.Postfix.SMTPAddr(), m); err != nil || !res.Accepted() {
		t.Fatalf("%v, %v", res.Verdict(), err)
	}
	_, err := s.Postfix.WaitQueue(ctx, func(q []QueueEntry) bool {
		return len(q) == 1 && len(q[0].Recipients) == 1 && strings.Contains(q[0].Recipients[0].Reason, "no mailbox may send as <stranger@contoso.com>")
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestLocalMail: mail of sendmail(1) passes the milter as mail of this host.
func TestLocalMail(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second})
	msg := []byte("From: root (Cron Daemon)\nTo: admin@fabrikam.com\nSubject: cron\n\nout\n")
	if err := s.Postfix.SendmailInject(ctx, "root@relay.lab.example", []string{"admin@fabrikam.com"}, msg); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitMessages(ctx, 1); err != nil {
		t.Fatal(err)
	}
	m := s.Exosim.Messages()[0]
	if m.Sender != "monitor@contoso.com" || !bytes.Contains(m.Data, []byte("<monitor@contoso.com>")) {
		t.Errorf("left as %s:\n%s", m.Sender, m.Data)
	}
}

// TestReload: a new rule is in force when the reload has ended, as the units make it; with a broken
// file the reload fails, and changes nothing. What needs a restart is said.
func TestReload(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second})
	old, err := os.ReadFile(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	reload := func(text string, code int, wants ...string) { // the milter's, then the token service's
		t.Helper()
		if err := os.WriteFile(s.Config, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		for i, v := range []*Service{s.Milter, s.Token} {
			want := wants[min(i, len(wants)-1)]
			out, err := v.Reload(ctx)
			got := 0
			if e, ok := errors.AsType[*exec.ExitError](err); ok {
				got = e.ExitCode()
			} else if err != nil {
				t.Fatal(err)
			}
			if got != code || !strings.Contains(out, want) || want == "" && out != "" {
				t.Errorf("reload of %s: exit %d, want %d, and %q in:\n%s", v.args[0], got, code, want, out)
			}
		}
	}
	strange := Stories()[5].Mail
	sends := func(when string, accepted bool) {
		t.Helper()
		if res, err := Send(ctx, s.Postfix.SMTPAddr(), strange); err != nil || res.Accepted() != accepted {
			t.Errorf("%s: %v, %v", when, res.Verdict(), err)
		}
	}
	wider := strings.Replace(string(old), "networks: [10.2.0.0/16]", "networks: [10.2.0.0/16, 198.51.100.0/24]", 1)
	reload(string(old)+"\nnonsense: [\n", 78, "is not YAML: a list begins with [ here, and no ] closes it")
	sends("with a broken file", false)
	if st := s.status(ctx, t); !strings.Contains(st, "token service  up, version") || !strings.Contains(st, "the services go on with the configuration that they have") {
		t.Errorf("status with a broken file:\n%s", st)
	}
	reload(wider+"\nnonsense: 1\n", 78, `unknown key "nonsense"`)
	sends("with an unknown key", false)
	reload(wider, 0, "")
	sends("with the new rule", true)
	reload(strings.Replace(wider, "http: "+s.milterHTTP, "http: 127.0.0.1:1", 1), 0, "in force, but for milter.http: systemctl restart sendas-milter", "")
	reload(wider, 0, "")
	if st := s.status(ctx, t); strings.Contains(st, "restart") {
		t.Errorf("what was changed back needs no restart:\n%s", st)
	}
	if err := s.WaitMessages(ctx, 1); err != nil {
		t.Fatal(err)
	}
}

// TestClientLimit: a printer that runs wild is held, through real Postfix; the hold queue gives its
// mail back when asked.
func TestClientLimit(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second, YAML: func(y string) string {
		return strings.Replace(y, "    from: scan@contoso.com\n", "    from: scan@contoso.com\n    limits: {messages: 2/h}\n    on_limit: hold\n", 1)
	}})
	for i := range 3 {
		m := Mail{XClient: printer, From: "scan@contoso.com", To: []string{"someone@fabrikam.com"},
			Data: message("From: scan@contoso.com", fmt.Sprintf(storyID, fmt.Sprintf("wild-%d", i)), storyDate)}
		if res, err := Send(ctx, s.Postfix.SMTPAddr(), m); err != nil || !res.Accepted() {
			t.Fatalf("%v, %v", res.Verdict(), err)
		}
	}
	if err := s.WaitMessages(ctx, 2); err != nil {
		t.Fatal(err)
	}
	q, err := s.Postfix.WaitQueue(ctx, func(q []QueueEntry) bool { return len(q) == 1 && q[0].Queue == "hold" })
	if err != nil {
		t.Fatal(err)
	}
	if log := s.Milter.Log(); !strings.Contains(log, `may send 2 messages`) {
		t.Errorf("the log does not say why it is held:\n%s", log)
	}
	if err := s.Postfix.Release(ctx, q[0].ID); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitMessages(ctx, 3); err != nil {
		t.Fatal(err)
	}
}
