package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim"
	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/policy/corpus"
)

// observing is the configuration of a site that only looks: milter, and nothing else that matters.
func observing(site string) string {
	_, sockets, _ := strings.Cut(site, "milter:\n")
	return "milter:\n  mode: observe\n" + sockets
}

// plainRelay is a Postfix before sendas, which sends all mail to another relay.
func plainRelay(sink *upstream) func(s *Site, main map[string]string) []string {
	return func(s *Site, main map[string]string) []string {
		ordinary(s, main)
		main["relayhost"] = "[127.0.0.1]:" + sink.port
		main["local_header_rewrite_clients"] = "" // else what Postfix adds itself, such as a Message-ID, differs each time
		return nil
	}
}

// plainSink is a relay that takes everything.
func plainSink(t *testing.T) *upstream {
	u := startUpstream(t)
	u.plain = true
	return u
}

var (
	sizeOf    = regexp.MustCompile(` SIZE=\d+`)
	ownTrace  = regexp.MustCompile(`(?i)^Received: .*\r\n(?:[ \t].*\r\n)*`)
	firstRcpt = regexp.MustCompile(`(?m)^RCPT TO:<([^>]*)>`)
)

// arrivals waits for so many messages, and returns them by their first recipient: envelope, header
// and body, without what Postfix itself writes into each of its own.
func (u *upstream) arrivals(ctx context.Context, t *testing.T, n int) map[string]string {
	t.Helper()
	if err := poll(ctx, func() (bool, error) { _, mails := u.seen(); return len(mails) >= n, nil }); err != nil {
		_, mails := u.seen()
		t.Fatalf("%d of %d messages have arrived: %v", len(mails), n, err)
	}
	list := make(map[string]string)
	_, mails := u.seen()
	for _, text := range mails {
		at := strings.LastIndex(text[:headerAt(text)], "\r\n") + 2
		list[firstRcpt.FindStringSubmatch(text)[1]] = sizeOf.ReplaceAllString(text[:at], "") + ownTrace.ReplaceAllString(text[at:], "")
	}
	return list
}

// headerAt returns where the envelope of a message ends.
func headerAt(text string) int {
	n := 0
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "MAIL ") && !strings.HasPrefix(line, "RCPT ") {
			return n
		}
		n += len(line)
	}
	return n
}

// forget begins a new list of messages.
func (u *upstream) forget() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.mails = nil
}

// relayed sends messages, and returns what was answered to each and what has arrived.
func (s *Site) relayed(ctx context.Context, t *testing.T, sink *upstream, cases []*corpus.Case) (answers, arrived map[string]string) {
	t.Helper()
	sink.forget()
	var (
		mu   sync.Mutex // guards answers and accepted
		wg   sync.WaitGroup
		next = make(chan *corpus.Case)
	)
	answers, accepted := make(map[string]string), 0
	for range 4 {
		wg.Go(func() {
			for c := range next {
				res, err := Send(ctx, s.Postfix.SMTPAddr(), corpusMail(c))
				if err != nil {
					t.Errorf("%s: %v", c.Name, err)
					continue
				}
				mu.Lock()
				answers[c.Name] = "accepted"
				if accepted++; !res.Accepted() {
					answers[c.Name] = res.Verdict().Line()
					accepted--
				}
				mu.Unlock()
			}
		})
	}
	for _, c := range cases {
		next <- c
	}
	close(next)
	wg.Wait()
	return answers, sink.arrivals(ctx, t, accepted)
}

// TestObserve: on a Postfix that sends its mail to another relay, a sendas that only observes changes
// nothing and refuses nothing: what arrives is the same to the byte with it and without it, whatever
// devices write, also where the milter dies in the middle of a message, hangs, or is not there. What
// it has seen stands in its log, and disable leaves Postfix as it was.
func TestObserve(t *testing.T) {
	all, err := corpus.Load()
	if err != nil {
		t.Fatal(err)
	}
	var cases []*corpus.Case
	for i := 0; i < len(all); i += 8 {
		cases = append(cases, all[i])
	}
	sink := plainSink(t)
	s, ctx := startSite(t, SiteConfig{YAML: observing, Postfix: plainRelay(sink)})
	before := s.postfixFiles(t)
	answers, without := s.relayed(ctx, t, sink, cases)
	if out, err := s.typePostfix(ctx, t, "enable"); err == nil || !strings.Contains(out, "sendas postfix enable --observe") {
		t.Errorf("enable took a configuration that observes: %v\n%s", err, out)
	}
	if said := s.sendasPostfix(ctx, t, "enable", "--observe"); !strings.Contains(said, "mail leaves as before") || !strings.Contains(said, "Postfix was reloaded") {
		t.Errorf("enable --observe said\n%s", said)
	}
	s.saysMode(ctx, t)
	seen := strings.Count(s.Milter.Log(), "message observed")
	again, with := s.relayed(ctx, t, sink, cases)
	for name, want := range answers {
		if got := again[name]; got != want {
			t.Errorf("%s: answered %q, and %q without sendas", name, got, want)
		}
	}
	if len(with) != len(without) {
		t.Errorf("%d messages arrived, and %d without sendas", len(with), len(without))
	}
	for rcpt, want := range without {
		if got := with[rcpt]; got != want {
			t.Errorf("to %s arrived\n%q\nand without sendas\n%q", rcpt, got, want)
		}
	}
	if seen != 0 {
		t.Errorf("%d messages were seen before Postfix knew of the milter", seen)
	}
	if n := strings.Count(s.Milter.Log(), "message observed"); n != len(without) {
		t.Errorf("%d messages were seen, and %d have arrived", n, len(without))
	}
	s.withoutWatcher(ctx, t, sink)
	if said := s.sendasPostfix(ctx, t, "disable"); strings.Count(said, "byte for byte") != 2 || !bytes.Equal(s.postfixFiles(t), before) {
		t.Errorf("disable said\n%s", said)
	}
}

// saysMode: status and doctor say the mode, and miss nothing that is not wired.
func (s *Site) saysMode(ctx context.Context, t *testing.T) {
	t.Helper()
	dir, err := program()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Token.Stop(); err != nil { // nobody needs it
		t.Fatal(err)
	}
	for _, tc := range []struct{ args, want string }{
		{"status", "mode           observes: nothing is changed or refused"},
		{"status --check", "SENDAS OK - Sendas only looks, and nothing is changed or refused."},
		{"doctor --postfix-config " + s.Postfix.ConfigDir(), "verdict: all is good"},
	} {
		args := append(strings.Fields(tc.args), "--config", s.Config)
		if out, err := exec.CommandContext(ctx, filepath.Join(dir, "sendas"), args...).CombinedOutput(); err != nil || !strings.Contains(string(out), tc.want) {
			t.Errorf("sendas %s: %v\n%s", tc.args, err, out)
		}
	}
}

// withoutWatcher sends a message while the milter dies, is away, and hangs.
func (s *Site) withoutWatcher(ctx context.Context, t *testing.T, sink *upstream) {
	t.Helper()
	sink.forget()
	mail := func(n int) Mail {
		to := fmt.Sprintf("w%d@fabrikam.com", n)
		return Mail{XClient: printer, From: "mfp3@floor.local", To: []string{to}, Data: message("From: mfp3 <bad", "X-To: "+to)}
	}
	send := func(what string, n int) {
		t.Helper()
		if res, err := Send(ctx, s.Postfix.SMTPAddr(), mail(n)); err != nil || !res.Accepted() {
			t.Errorf("%s: %v, %v", what, res.Verdict(), err)
		}
	}
	conn, err := net.Dial("tcp", s.Postfix.SMTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	m := mail(0)
	session := session{conn: conn, r: bufio.NewReaderSize(conn, maxReplyLine)}
	for _, step := range []func(Mail) error{session.greet, session.envelope, func(Mail) error { return s.Milter.Kill() }, session.data} {
		if err := step(m); err != nil {
			t.Fatalf("a milter that dies in the middle: %v, %v", session.result.Verdict(), err)
		}
	}
	send("no milter", 1)
	if err := s.Postfix.SendmailInject(ctx, "root@relay.lab.example", []string{"w2@fabrikam.com"}, []byte("From: root\nTo: w2@fabrikam.com\nX-To: w2@fabrikam.com\n\nout\n")); err != nil {
		t.Fatal(err)
	}
	if err := s.Milter.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Milter.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	send("a milter that hangs", 3)
	if err := s.Milter.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	send("a milter that is back", 4)
	for rcpt, text := range sink.arrivals(ctx, t, 5) {
		if !strings.Contains(text, "X-To: "+rcpt) || strings.HasPrefix(rcpt, "w2@") == strings.Contains(text, "From: mfp3 <bad\r\n") {
			t.Errorf("to %s arrived\n%s", rcpt, text)
		}
	}
	if log := s.Milter.Log(); strings.Count(log, " asked=mfp3@floor.local ") == 0 || strings.Count(log, "helo=client.lab.example name=mfp3.local") != 1 {
		t.Errorf("the log of the new milter says\n%s", last(log))
	}
}

// pageCommand is a line of a page that is typed: the program, and its arguments; a comment behind it
// is none of it.
var pageCommand = regexp.MustCompile(`(?m)^(sendas|systemctl|cp|sed|postconf) ([^#\n]*)`)

// typePage types the commands of a block of a page, with the site's own files for those below /etc. It
// returns what sendas said.
func (s *Site) typePage(ctx context.Context, t *testing.T, block string) (said string) {
	t.Helper()
	dir, err := program()
	if err != nil {
		t.Fatal(err)
	}
	own := strings.NewReplacer("/etc/sendas/sendas.yaml", s.Config, "/etc/sendas/", s.Dir+"/")
	for _, m := range pageCommand.FindAllStringSubmatch(block, -1) {
		line := own.Replace(strings.TrimSpace(m[2]))
		words := strings.Fields(line)
		switch m[1] {
		case "systemctl":
			s.typeSystemctl(ctx, t, words)
			continue
		case "postconf":
			line = "postconf -c " + s.Postfix.ConfigDir() + " " + line
		case "sendas":
			line = filepath.Join(dir, "sendas") + " " + line
			if words[0] != "check" || !strings.Contains(line, " -c ") {
				line = strings.Replace(line, " "+words[0], " "+words[0]+" --config "+s.Config, 1)
			}
			if words[0] == "postfix" {
				line += " --postfix-config " + s.Postfix.ConfigDir() + " --state " + filepath.Join(s.Dir, "postfix-state", "x.json")
			} else if words[0] == "doctor" {
				line += " --postfix-config " + s.Postfix.ConfigDir()
			}
		default:
			line = m[1] + " " + line
		}
		cmd := exec.CommandContext(ctx, "sh", "-c", line)
		cmd.Env = append(cmd.Environ(), "PATH="+commandPath)
		out, err := cmd.CombinedOutput()
		said += string(out)
		if err != nil && words[0] != "doctor" { // which finds that the site has users of its own, and no way to Microsoft
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
	return said
}

// typeSystemctl restarts or reloads services.
func (s *Site) typeSystemctl(ctx context.Context, t *testing.T, words []string) {
	t.Helper()
	for _, unit := range words[1:] {
		service := map[string]*Service{"sendas-milter": s.Milter, "sendas-token": s.Token}[unit]
		if service == nil {
			t.Fatalf("no unit %s", unit)
		}
		if words[0] == "reload" {
			if said, err := service.Reload(ctx); err != nil {
				t.Fatalf("reloading %s: %v\n%s", unit, err, said)
			}
			continue
		}
		if err := errors.Join(service.Stop(), service.Start(ctx)); err != nil {
			t.Fatalf("restarting %s: %v", unit, err)
		}
	}
}

// TestRecipeBeforeYouSwitch is docs/recipes/before-you-switch.md, as it is typed: a relay that sends to
// another server is looked at, sendas writes the configuration that fits, and after the switch each
// device's mail leaves by Exchange Online as it says.
func TestRecipeBeforeYouSwitch(t *testing.T) {
	const page = "before-you-switch.md"
	sink := plainSink(t)
	s, ctx := startSite(t, SiteConfig{
		Minute: 6 * time.Second,
		Exosim: func(c *exosim.Config) {
			c.Apps[0].Mailboxes = append(c.Apps[0].Mailboxes, "relay@contoso.com")
			c.Mailboxes = append(c.Mailboxes, directory.Mailbox{Address: "relay@contoso.com"})
		},
		YAML: func(y string) string { // the page's, and what it says to write meanwhile
			before, _, _ := strings.Cut(y, "mailboxes:\n")
			_, sockets, _ := strings.Cut(y, "milter:\n")
			return before + recipeBlocks(t, page, "yaml")[0] + sockets
		},
		Postfix: func(s *Site, main map[string]string) []string {
			ordinary(s, main)
			for line := range strings.Lines(recipeBlocks(t, page, "main.cf")[0]) {
				if name, value, ok := strings.Cut(strings.TrimSpace(line), " ="); ok && !strings.HasPrefix(name, "#") && name != "mynetworks" {
					main[name] = strings.TrimSpace(value)
				}
			}
			main["relayhost"] = "[127.0.0.1]:" + sink.port // in the place of the page's
			return nil
		},
	})
	blocks := recipeBlocks(t, page, "sh")
	if len(blocks) != 4 {
		t.Fatalf("the page has %d blocks of commands, want 4", len(blocks))
	}
	if said := s.typePage(ctx, t, blocks[0]); !strings.Contains(said, "mail leaves as before") || strings.Count(said, "\nFAIL ")+strings.Count(said, "\nWARN ") > strings.Count(said, "relay-app.secret: ") || !strings.Contains(said, "before mode: enforce") {
		t.Errorf("looking on: it said\n%s", said)
	}
	devices := []struct {
		addr, name, from string
		n                int
		identity         string // after the switch
	}{
		{"10.2.0.9", "mfp3.contoso.com", "scan@contoso.com", 3, "scan@contoso.com"}, {"10.2.0.10", "mfp4.contoso.com", "scanner4@floor", 2, "scan@contoso.com"},
		{"10.1.0.5", "sap01.contoso.com", "erp@contoso.com", 3, "erp@contoso.com"}, {"10.1.0.5", "sap01.contoso.com", "billing@contoso.com", 2, "billing@contoso.com"},
		{"10.3.0.17", "[UNAVAILABLE]", "noreply@nas.local", 1, "relay@contoso.com"},
	}
	id := 0
	send := func(i int) {
		d := devices[i]
		id++
		m := Mail{XClient: XClient{Addr: d.addr, Name: d.name}, Helo: fmt.Sprintf("h%d", i), From: d.from, To: []string{"someone@fabrikam.com"},
			Data: message("From: <"+d.from+">", fmt.Sprintf(storyID, fmt.Sprintf("watch-%d", id)), storyDate)}
		if res, err := Send(ctx, s.Postfix.SMTPAddr(), m); err != nil || !res.Accepted() {
			t.Fatalf("%s as %s: %v, %v", d.name, d.from, res.Verdict(), err)
		}
	}
	for i, d := range devices {
		for range d.n {
			send(i)
		}
	}
	dir, err := program()
	if err != nil {
		t.Fatal(err)
	}
	if err := poll(ctx, func() (bool, error) { // the record is written when there is time
		out, _ := exec.CommandContext(ctx, filepath.Join(dir, "sendas"), "suggest", "--config", s.Config).CombinedOutput()
		return strings.Contains(string(out), "of 11 messages by "), nil
	}); err != nil {
		t.Fatalf("suggest does not know of all messages: %v", err)
	}
	s.typePage(ctx, t, blocks[1])
	if said := s.typePage(ctx, t, blocks[2]); !strings.Contains(said, "nobody is refused") {
		t.Errorf("looking on with it: it said\n%s", said)
	}
	send(1)
	if _, mails := sink.seen(); len(mails) < 11 || s.Accepted() != 0 {
		t.Errorf("%d messages went to the old server, and %d to Exchange Online", len(mails), s.Accepted())
	}
	if !strings.Contains(s.Milter.Log(), "asked=scanner4@floor identity=scan@contoso.com mailbox=scan@contoso.com route=submission recipients=1 would=accept") {
		t.Errorf("the log does not say what would become of a message:\n%s", last(s.Milter.Log()))
	}
	if said := s.typePage(ctx, t, blocks[3]); !strings.Contains(said, "all mail leaves by Microsoft") {
		t.Errorf("the switch said\n%s", said)
	}
	for i, d := range devices {
		send(i)
		if err := s.WaitMessages(ctx, i+1); err != nil {
			t.Fatal(err)
		}
		if m := s.Exosim.Messages()[i]; m.Sender != d.identity {
			t.Errorf("%s as %s left as %s, want %s", d.name, d.from, m.Sender, d.identity)
		}
	}
}
