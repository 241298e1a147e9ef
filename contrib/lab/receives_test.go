package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// world is a server somewhere, which brings mail for the shop; mynetworks does not have it.
var world = XClient{Addr: "203.0.113.66", Name: "mail.example.com"}

// receivingSite is an ordinary Postfix that receives mail as well, before sendas comes to it: for a
// shop with users, a domain of virtual mailboxes, one of aliases, and a partner behind it.
func receivingSite(inner *upstream, spool *string) func(s *Site, main map[string]string) []string {
	return func(s *Site, main map[string]string) []string {
		ordinary(s, main)
		*spool = filepath.Join(s.Dir, "spool")
		for _, dir := range []string{"", "local", "boxes"} {
			path := filepath.Join(*spool, dir)
			if os.MkdirAll(path, 0o777) != nil || os.Chmod(path, 0o777) != nil {
				panic("no folder " + path)
			}
		}
		for name, value := range map[string]string{
			"mydestination": "shop.example, relay.lab.example", "local_transport": "local", "local_recipient_maps": "", "mail_spool_directory": *spool + "/local/",
			"alias_maps":            "texthash:" + *spool + "/aliases",
			"virtual_alias_domains": "lists.example", "virtual_alias_maps": "texthash:" + *spool + "/virtual",
			"virtual_mailbox_domains": "box.example", "virtual_mailbox_maps": "inline:{ {anna@box.example = anna/} }", "virtual_mailbox_base": *spool + "/boxes",
			"virtual_uid_maps": "static:65534", "virtual_gid_maps": "static:65534",
			"relay_domains":            "partner.example",
			"transport_maps":           "inline:{ {partner.example = relay:[127.0.0.1]:" + inner.port + "}, {fax.example = smtp:[127.0.0.1]:" + inner.port + "} }",
			"smtpd_relay_restrictions": "permit_mynetworks, reject_unauth_destination",
		} {
			main[name] = value
		}
		for name, text := range map[string]string{
			"aliases": "forwarded someone@fabrikam.com\npostmaster daemon\n",
			"virtual": "all@lists.example daemon@shop.example, anna@box.example\nsales@shop.example someone@fabrikam.com\ninfo@shop.example daemon@shop.example\n",
		} {
			if err := os.WriteFile(filepath.Join(*spool, name), []byte(text), 0o644); err != nil {
				panic(err)
			}
		}
		return []string{"local unix - n n - - local", "virtual unix - n n - - virtual"}
	}
}

// received returns what has come into a Maildir, and empties it.
func received(t *testing.T, dir string) (list []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "new", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, string(data))
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	return list
}

// A visit is a message to a site that receives mail too.
type visit struct {
	name   string
	client XClient
	from   string
	to     string // one or several
	// local, box and inner say how many come to the user, the virtual mailbox and the server behind;
	// leaves is the sender of what goes to Microsoft.
	local, box, inner int
	leaves            string
	refused           string // the reply to the message, or to a recipient
}

func visits() []visit {
	const friend, lost = "friend@example.com", "scanner3@floor" // the latter is in no table
	return []visit{
		{name: "a stranger to a user", client: world, from: friend, to: "daemon@shop.example", local: 1},
		{name: "a bounce of a stranger", client: world, from: "", to: "Daemon@Shop.Example", local: 1},
		{name: "a stranger to a virtual mailbox", client: world, from: friend, to: "anna@box.example", box: 1},
		{name: "a stranger to a partner", client: world, from: friend, to: "x@partner.example", inner: 1},
		{name: "a stranger to an alias", client: world, from: friend, to: "info@shop.example", local: 1},
		{name: "a stranger to a list", client: world, from: friend, to: "all@lists.example", local: 1, box: 1},
		{name: "a stranger to several", client: world, from: friend, to: "daemon@shop.example x@partner.example", local: 1, inner: 1},
		{name: "a stranger of the network", client: stranger, from: friend, to: "daemon@shop.example", local: 1},
		{name: "one who borrows our name", client: world, from: "hr@contoso.com", to: "daemon@shop.example", local: 1},
		{name: "a stranger to Microsoft", client: world, from: friend, to: "someone@fabrikam.com", refused: "554 5.7.1 <someone@fabrikam.com>: Relay access denied"},
		{name: "a stranger of the network to Microsoft", client: stranger, from: friend, to: "someone@fabrikam.com", refused: "550 5.7.1 198.51.100.66 is not a known client"},
		{name: "a stranger by an alias", client: world, from: friend, to: "sales@shop.example", refused: "550 5.7.1 <sales@shop.example>: Recipient address rejected: 203.0.113.66 is not a known client"},
		{name: "a stranger by aliases(5)", client: world, from: friend, to: "forwarded@shop.example", refused: "550 5.7.1 <forwarded@shop.example>: Recipient address rejected: 203.0.113.66 is not a known client"},
		{name: "a stranger to both", client: world, from: friend, to: "daemon@shop.example sales@shop.example", local: 1,
			refused: "550 5.7.1 <sales@shop.example>: Recipient address rejected: 203.0.113.66 is not a known client"},
		{name: "a printer to a user", client: printer, from: lost, to: "daemon@shop.example", local: 1},
		{name: "a printer by transport_maps", client: printer, from: lost, to: "x@fax.example", inner: 1},
		{name: "a printer to Microsoft", client: printer, from: lost, to: "someone@fabrikam.com", leaves: "scan@contoso.com"},
		{name: "a printer to both", client: printer, from: lost, to: "daemon@shop.example someone@fabrikam.com", local: 1, leaves: "scan@contoso.com"},
		{name: "a printer by an alias", client: printer, from: lost, to: "sales@shop.example", leaves: "scan@contoso.com"},
		{name: "a printer by aliases(5)", client: printer, from: lost, to: "forwarded@shop.example", leaves: "scan@contoso.com"},
	}
}

// TestReceives: after "sendas postfix enable" a Postfix that also receives mail goes on receiving it,
// byte for byte and from everybody; what leaves by sendas is sendas', whoever sends it.
func TestReceives(t *testing.T) {
	inner, spool := startUpstream(t), ""
	inner.plain = true
	s, ctx := startSite(t, SiteConfig{
		Minute: time.Second,
		YAML: func(y string) string {
			y = strings.Replace(y, "clients:\n", "routes:\n  - {name: submission, transport: sendas}\nclients:\n", 1)
			return strings.Replace(y, "    from: scan@contoso.com\n", "    from: scan@contoso.com\n    limits: {messages: 4/d}\n", 1) // as many as leave
		},
		Postfix: receivingSite(inner, &spool),
	})
	said := s.sendasPostfix(ctx, t, "enable")
	if want := "Postfix delivers itself: local: relay.lab.example shop.example; virtual aliases: lists.example; virtual mailboxes: box.example; relay: partner.example .partner.example; transport_maps: fax.example partner.example"; !strings.Contains(said, want) {
		t.Errorf("enable said\n%swithout %q", said, want)
	}
	s.awaitClasses(ctx, t, 1)
	for i, v := range visits() {
		s.pay(ctx, t, i, v, inner, spool)
	}
	s.fromProgram(ctx, t, spool)
	s.whenItChanges(ctx, t, spool)
	if log := s.Milter.Log(); !strings.Contains(log, "action=pass rewritten=false reason=elsewhere") {
		t.Errorf("the log says nothing of what passed:\n%s", last(log))
	}
}

// awaitClasses waits until the milter has read for the nth time what Postfix delivers itself.
func (s *Site) awaitClasses(ctx context.Context, t *testing.T, n int) {
	t.Helper()
	if err := poll(ctx, func() (bool, error) {
		return strings.Count(s.Milter.Log(), `msg="recipients that Postfix delivers itself"`) == n, nil
	}); err != nil {
		t.Fatal(err)
	}
}

// pay makes a visit, and waits until the message has come where it has to.
func (s *Site) pay(ctx context.Context, t *testing.T, i int, v visit, inner *upstream, spool string) {
	t.Helper()
	// A malformed From, two fields To, and no Date: all of it is to stay, where the message is not ours.
	data := message("From: scanner3@floor 3 <bad", "To: a@b.example", "To: c@d.example", "TLS-Required: no", fmt.Sprintf(storyID, fmt.Sprintf("visit-%d", i)))
	_, before := inner.seen()
	left := len(s.Exosim.Messages())
	res, err := Send(ctx, s.Postfix.SMTPAddr(), Mail{XClient: v.client, From: v.from, To: strings.Fields(v.to), Data: data})
	if err != nil {
		t.Fatalf("%s: %v", v.name, err)
	}
	verdict := res.Verdict()
	if r := res.Refused(); len(r) > 0 {
		verdict = r[0]
	}
	some := v.local+v.box+v.inner > 0 || v.leaves != "" // recipients are left
	if v.refused != "" && !strings.HasPrefix(verdict.Line(), v.refused) || v.refused == "" && len(res.Refused()) > 0 || res.Accepted() != some {
		t.Errorf("%s: %s, want %q", v.name, verdict.Line(), v.refused)
	}
	if !some {
		return
	}
	var local, box, beyond []string
	leaving := 0
	if v.leaves != "" {
		leaving = 1
	}
	if err := poll(ctx, func() (bool, error) {
		local, box = append(local, received(t, spool+"/local/daemon")...), append(box, received(t, spool+"/boxes/anna")...)
		_, all := inner.seen()
		beyond = all[len(before):]
		return len(local) >= v.local && len(box) >= v.box && len(beyond) >= v.inner && len(s.Exosim.Messages()) >= left+leaving, nil
	}); err != nil {
		t.Fatalf("%s: %d to the user, %d to the mailbox, %d to the server behind, %d to Microsoft: %v", v.name, len(local), len(box), len(beyond), len(s.Exosim.Messages())-left, err)
	}
	if len(local) != v.local || len(box) != v.box || len(beyond) != v.inner || len(s.Exosim.Messages()) != left+leaving {
		t.Errorf("%s: %d to the user, %d to the mailbox, %d to the server behind, %d to Microsoft", v.name, len(local), len(box), len(beyond), len(s.Exosim.Messages())-left)
	}
	if v.leaves != "" {
		if m := s.Exosim.Messages()[left]; m.Sender != v.leaves {
			t.Errorf("%s: left as %s, want %s", v.name, m.Sender, v.leaves)
		}
		return
	}
	s.untouched(t, v, data, local, box, beyond)
}

// untouched compares what was delivered with what was sent: Postfix adds fields of its own before it.
func (s *Site) untouched(t *testing.T, v visit, data []byte, local, box, beyond []string) {
	t.Helper()
	text := strings.ReplaceAll(string(data), "\r\n", "\n")
	for _, got := range append(local, box...) {
		if !strings.HasSuffix(got, "\n"+text) || !strings.Contains(got, "Return-Path: <"+v.from+">\n") {
			t.Errorf("%s: was delivered as\n%q, want\n%q", v.name, got, text)
		}
	}
	for _, got := range beyond {
		if !strings.HasSuffix(strings.ReplaceAll(got, "\r\n..", "\r\n."), "\r\n"+string(data)) || !strings.Contains(got, "MAIL FROM:<"+v.from+">") {
			t.Errorf("%s: went on as\n%q, want\n%q", v.name, got, data)
		}
	}
}

// fromProgram: mail of programs on this host stays on it where it is addressed there, and leaves as
// before.
func (s *Site) fromProgram(ctx context.Context, t *testing.T, spool string) {
	t.Helper()
	for _, to := range []string{"daemon", "postmaster@shop.example"} {
		msg := "From: root (Cron Daemon)\nTo: daemon\nSubject: cron\n\nout\n"
		if err := s.Postfix.SendmailInject(ctx, "root@relay.lab.example", []string{to}, []byte(msg)); err != nil {
			t.Fatal(err)
		}
		var got []string
		if err := poll(ctx, func() (bool, error) {
			got = append(got, received(t, spool+"/local/daemon")...)
			return len(got) > 0, nil
		}); err != nil {
			t.Fatal(err)
		}
		if len(got) != 1 || !strings.Contains(got[0], "Return-Path: <root@relay.lab.example>\n") || strings.Contains(got[0], "contoso.com") {
			t.Errorf("mail of a program to %s was delivered as %q", to, got)
		}
	}
	left := len(s.Exosim.Messages())
	if err := s.Postfix.SendmailInject(ctx, "root@relay.lab.example", []string{"admin@fabrikam.com"}, []byte("From: root\nSubject: cron\n\nout\n")); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitMessages(ctx, s.Accepted()+1); err != nil {
		t.Fatal(err)
	}
	if m := s.Exosim.Messages()[left]; m.Sender != "monitor@contoso.com" {
		t.Errorf("mail of a program left as %s", m.Sender)
	}
}

// whenItChanges: of a new domain Postfix itself tells; an alias that leads outside from now on is
// noticed once it is told.
func (s *Site) whenItChanges(ctx context.Context, t *testing.T, spool string) {
	t.Helper()
	if err := s.Postfix.Postconf(ctx, "virtual_mailbox_domains=box.example, new.example", "virtual_mailbox_maps=inline:{ {anna@new.example = anna/} }"); err != nil {
		t.Fatal(err)
	}
	if err := s.Postfix.Reload(ctx); err != nil {
		t.Fatal(err)
	}
	s.pay(ctx, t, len(visits()), visit{name: "a stranger to a new domain", client: world, from: "friend@example.com", to: "anna@new.example", box: 1}, startUpstream(t), spool)
	if err := os.WriteFile(filepath.Join(spool, "virtual"), []byte("info@shop.example someone@fabrikam.com\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if said := s.sendasPostfix(ctx, t, "classes"); !strings.HasPrefix(said, "Postfix delivers itself: local:") {
		t.Errorf("classes said %s", said)
	}
	s.awaitClasses(ctx, t, 2)
	res, err := Send(ctx, s.Postfix.SMTPAddr(), Mail{XClient: world, From: "friend@example.com", To: []string{"info@shop.example"}, Data: message("From: friend@example.com")})
	if err != nil || !strings.Contains(res.Verdict().Line(), "203.0.113.66 is not a known client") {
		t.Errorf("by an alias that leads outside now: %v, %v", res.Verdict(), err)
	}
}
