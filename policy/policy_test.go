package policy

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// contoso is the site of the tests: printers that are rewritten, SAP with Send As, a
// monitoring that is held to its domain.
func contoso() Settings {
	return Settings{
		Domains: []string{"contoso.com", "contoso.de"},
		Mailboxes: []MailboxSettings{
			{Address: "erp@contoso.com", SendAs: []string{"billing@contoso.com", "hr@contoso.com"}},
			{Address: "scan@contoso.com", Aliases: []string{"scanner@contoso.de"}},
			{Address: "monitor@contoso.com"},
		},
		Clients: []ClientSettings{
			{Name: "sap", Networks: []string{"10.1.0.0/16"}, From: "billing@contoso.com"},
			{Name: "printers", Networks: []string{"10.2.0.0/16", "fd00:2::/64"}, From: "scan@contoso.com"},
			{Name: "monitoring", Logins: []string{"nagios"}, Senders: []string{"*@contoso.com"}, OnUnauthorized: "reject"},
			{Name: "strict", Networks: []string{"10.9.0.0/16"}, Senders: []string{"hr@contoso.com"}, OnUnauthorized: "reject"},
		},
		Notices: "scan@contoso.com",
	}
}

func mustPolicy(t testing.TB, s Settings) *Rules {
	t.Helper()
	p, errs := New(s)
	for _, e := range errs {
		t.Errorf("settings: %v", e)
	}
	if p == nil {
		t.FailNow()
	}
	return p
}

func peer(addr, login string) Peer {
	p := Peer{Login: login}
	if addr != "" {
		p.Addr = netip.MustParseAddr(addr)
	}
	return p
}

// complete are fields that leave nothing to add.
const complete = "Message-ID: <1@x>\nDate: Sat, 21 Nov 2026 08:00:00 +0000\n"

// fields reads a header in wire form, as the milter hands it over: with folds, without the
// one blank after the colon.
func fields(header string) []Field {
	return request(header).Fields
}

// request is one with these fields, as the milter collects them.
func request(header string) *Request {
	var list []Field
	for line := range strings.SplitSeq(strings.TrimSuffix(header, "\n"), "\n") {
		if line == "" {
			continue
		}
		if line[0] == ' ' || line[0] == '\t' {
			list[len(list)-1].Value += "\n" + line
			continue
		}
		name, value, _ := strings.Cut(line, ":")
		list = append(list, Field{name, strings.TrimPrefix(value, " ")})
	}
	r := new(Request)
	for _, f := range list {
		r.AddField(f.Name, f.Value)
	}
	return r
}

func show(list []HeaderChange) string {
	var b strings.Builder
	for _, c := range list {
		switch c.Op {
		case Add:
			b.WriteString("+" + c.Name + ": " + c.Value + "\n")
		case Change:
			b.WriteString("=" + c.Name + "[" + string(rune('0'+c.Index)) + "]: " + c.Value + "\n")
		case Delete:
			b.WriteString("-" + c.Name + "[" + string(rune('0'+c.Index)) + "]\n")
		}
	}
	return b.String()
}

func TestDecide(t *testing.T) {
	p := mustPolicy(t, contoso())
	const printer, sap = "10.2.0.9", "10.1.0.5"
	for _, tc := range []struct {
		name         string
		addr, login  string
		sender, from string // the envelope's, and the From field's body
		identity     string // "" for a rejection
		newSender    string // "" where the envelope stays
		reason       ReasonCode
	}{
		{"Send As", sap, "", "hr@contoso.com", "HR <hr@contoso.com>", "hr@contoso.com", "", ReasonAuthorized},
		{"envelope follows From", sap, "", "root@sap01", "hr@contoso.com", "hr@contoso.com", "hr@contoso.com", ReasonAuthorized},
		{"From counts, not the envelope", sap, "", "hr@contoso.com", "ceo@contoso.com", "billing@contoso.com", "billing@contoso.com", ReasonFallback},
		{"envelope without From", sap, "", "hr@contoso.com", "", "hr@contoso.com", "", ReasonAuthorized},
		{"letter case", sap, "", "HR@Contoso.COM", "Hr@contoso.com", "hr@contoso.com", "", ReasonAuthorized},
		{"capitals that are no mark", sap, "", "hr@CONTOSO.COM", "hr@contoso.com", "hr@contoso.com", "hr@contoso.com", ReasonAuthorized},
		{"alias", printer, "", "scanner@contoso.de", "scanner@contoso.de", "scanner@contoso.de", "", ReasonAuthorized},
		{"foreign domain", printer, "", "mfp3@floor.local", "mfp3@floor.local", "scan@contoso.com", "scan@contoso.com", ReasonFallback},
		{"nothing at all", printer, "", "x@y.local", "", "scan@contoso.com", "scan@contoso.com", ReasonFallback},
		{"null sender", printer, "", "", "MAILER-DAEMON@relay", "scan@contoso.com", "scan@CONTOSO.COM", ReasonNullSender},
		{"unreadable sender", printer, "", "<root@nas4.(none)>", "Anna <anna@fabrikam.com>", "scan@contoso.com", "scan@contoso.com", ReasonFallback},
		{"unreadable sender, From that may be used", sap, "", `<""@hall.lan>`, "hr@contoso.com", "hr@contoso.com", "hr@contoso.com", ReasonAuthorized},
		{"unreadable sender alone", printer, "", "<@hall.lan>", "", "scan@contoso.com", "scan@contoso.com", ReasonFallback},
		{"unknown client", "192.0.2.7", "", "hr@contoso.com", "hr@contoso.com", "", "", ReasonNoClient},
		{"no address known", "", "", "hr@contoso.com", "hr@contoso.com", "", "", ReasonNoClient},
		{"IPv6 client", "fd00:2::99", "", "a@b.example", "a@b.example", "scan@contoso.com", "scan@contoso.com", ReasonFallback},
		{"mapped IPv4", "::ffff:10.2.0.9", "", "a@b.example", "a@b.example", "scan@contoso.com", "scan@contoso.com", ReasonFallback},
		{"login", "192.0.2.7", "nagios", "monitor@contoso.com", "monitor@contoso.com", "monitor@contoso.com", "", ReasonAuthorized},
		{"login, sender nobody may use", "192.0.2.7", "nagios", "alerts@contoso.com", "alerts@contoso.com", "", "", ReasonRejected},
		{"first of the list wins over login", printer, "nagios", "q@q.example", "q@q.example", "scan@contoso.com", "scan@contoso.com", ReasonFallback},
		{"client may not ask", "10.9.0.1", "", "billing@contoso.com", "billing@contoso.com", "", "", ReasonRejected},
		{"client may ask", "10.9.0.1", "", "hr@contoso.com", "hr@contoso.com", "hr@contoso.com", "", ReasonAuthorized},
		{"strict client, no sender", "10.9.0.1", "", "", "", "", "", ReasonRejected},
	} {
		header := complete
		if tc.from != "" {
			header += "From: " + tc.from + "\n"
		}
		d := p.Decide(&Request{Peer: peer(tc.addr, tc.login), Sender: tc.sender, Fields: fields(header), Now: time.Unix(0, 0)})
		if got := d.Identity.String(); got != tc.identity || (d.Action == Reject) != (tc.identity == "") {
			t.Errorf("%s: %s as %q, want %q", tc.name, d.Action, got, tc.identity)
		}
		if d.Sender != tc.newSender {
			t.Errorf("%s: new envelope sender %q, want %q", tc.name, d.Sender, tc.newSender)
		}
		if got := d.Reasons[len(d.Reasons)-1].Code; got != tc.reason {
			t.Errorf("%s: reason %s, want %s", tc.name, got, tc.reason)
		}
		if d.Action == Accept && d.Mailbox == nil || d.Action == Reject && (d.Reply == nil || d.Reply.Code != 550) {
			t.Errorf("%s: mailbox %v, reply %v", tc.name, d.Mailbox, d.Reply)
		}
	}
}

// TestPrinterFaults holds the faults of devices that Microsoft's device guide and its users
// report most.
func TestPrinterFaults(t *testing.T) {
	p := mustPolicy(t, contoso())
	for _, tc := range []struct {
		name, from, want string // want: what the From field becomes; "" leaves it as it is
	}{
		{"well formed", `Scanner 3 <scan@contoso.com>`, ``},
		{"well formed, quoted @", `"Scanner @ floor 3" <scan@contoso.com>`, ``},
		{"well formed, folded", "\"Scanner 3\"\n <scan@contoso.com>", ``},
		{"bare address", `scan@contoso.com`, ``},
		{"missing brackets", `Scanner 3 scan@contoso.com`, `Scanner 3 <scan@contoso.com>`},
		{"missing closing bracket", `Scanner 3 <scan@contoso.com`, `Scanner 3 <scan@contoso.com>`},
		{"missing opening bracket", `Scanner scan@contoso.com>`, `Scanner <scan@contoso.com>`},
		{"bare @ in the name", `scanner3@floor 3 <scan@contoso.com>`, `"scanner3@floor 3" <scan@contoso.com>`},
		{"comma in the name", `Canon, 3rd floor <scan@contoso.com>`, `"Canon, 3rd floor" <scan@contoso.com>`},
		{"unbalanced quote", `"Scanner 3 <scan@contoso.com>`, `Scanner 3 <scan@contoso.com>`},
		{"raw Latin-1", "B\xfcro <scan@contoso.com>", `=?utf-8?b?QsO8cm8=?= <scan@contoso.com>`},
		{"raw UTF-8", "Büro <scan@contoso.com>", `=?utf-8?b?QsO8cm8=?= <scan@contoso.com>`},
		{"space in the brackets", `Scanner < scan@contoso.com >`, `Scanner <scan@contoso.com>`},
		{"two addresses", `scan@contoso.com, mfp@floor.local`, `scan@contoso.com`},
		{"control characters", "Scan\x01ner\t3 <scan@contoso.com>", `Scanner 3 <scan@contoso.com>`},
		{"name is another's address", `"ceo@contoso.com" <scan@contoso.com>`, `"ceo at contoso.com" <scan@contoso.com>`},
		{"name is its own address", `"scan@contoso.com" <scan@contoso.com>`, ``},
		{"not an address at all", `Scanner 3`, `Scanner 3 <scan@contoso.com>`},
		{"mailto", `<mailto:scan@contoso.com>`, `scan@contoso.com`},
		{"foreign, name kept", `"Scanner, 3" <mfp3@floor.local>`, `"Scanner, 3" <scan@contoso.com>`},
		{"foreign, encoded name kept", `=?iso-8859-1?q?B=FCro?= <mfp3@floor.local>`, `=?utf-8?b?QsO8cm8=?= <scan@contoso.com>`},
		{"the name before a group", `Devices: mfp@floor.local;`, `Devices <scan@contoso.com>`},
		// What parsers take, and what is no mailbox all the same.
		{"group around the sender", `Scanner: scan@contoso.com;`, `Scanner <scan@contoso.com>`},
		{"group with a member's name", `Devices: Scanner <scan@contoso.com>;`, `Scanner <scan@contoso.com>`},
		{"group with another's address", `=?utf-8?q?CEO_=3Cceo=40contoso.com=3E?=: scan@contoso.com;`, `"CEO <ceo at contoso.com>" <scan@contoso.com>`},
		{"quoted group with another's address", `"ceo@contoso.com": scan@contoso.com;`, `"ceo at contoso.com:" <scan@contoso.com>`},
		{"group of brackets", `Scanner:<scan@contoso.com>;`, `Scanner <scan@contoso.com>`},
		{"group, folded", "Scanner:\n scan@contoso.com;", `Scanner <scan@contoso.com>`},
		{"quoted local part", `Scanner <"scan"@contoso.com>`, `Scanner <scan@contoso.com>`},
		{"quoted local part, bare", `"scan"@contoso.com`, `scan@contoso.com`},
		{"comment behind the address", `scan@contoso.com (Scanner 3)`, `Scanner 3 <scan@contoso.com>`},
		{"comment behind the brackets", `Scanner <scan@contoso.com> (3)`, `Scanner <scan@contoso.com>`},
		{"comment in the address", `Scanner <scan(3)@contoso.com>`, `Scanner <scan@contoso.com>`},
		{"comment with another's address", `scan@contoso.com (ceo@contoso.com)`, `"ceo at contoso.com" <scan@contoso.com>`},
		{"comment that is empty", `Scanner () <scan@contoso.com>`, `Scanner <scan@contoso.com>`},
		{"bare CR before a fold", "Scanner 3\r\n <scan@contoso.com>", `Scanner 3 <scan@contoso.com>`},
		{"bare CR behind a fold", "Scanner 3\n \r<scan@contoso.com>", `Scanner 3 <scan@contoso.com>`},
		{"bare CR at the end", "Scanner 3 <scan@contoso.com>\r", `Scanner 3 <scan@contoso.com>`},
		{"source route", `Scanner <@mfp.example:scan@contoso.com>`, `Scanner <scan@contoso.com>`},
		{"dots in the name", `Dr. Scan <scan@contoso.com>`, `"Dr. Scan" <scan@contoso.com>`},
		{"dot behind the domain", `Scanner <scan@contoso.com.>`, `Scanner <scan@contoso.com>`},
		{"needless backslashes", `"Scan\ner" <scan@contoso.com>`, `Scanner <scan@contoso.com>`},
		{"blanks upon blanks", `Scanner   3 <scan@contoso.com>`, `Scanner 3 <scan@contoso.com>`},
		{"quotes in quotes", `"'Scanner'" <scan@contoso.com>`, `Scanner <scan@contoso.com>`},
		{"no blank between quotes", `"Scan""ner" <scan@contoso.com>`, `Scanner <scan@contoso.com>`},
		{"word in quotes", `"=?utf-8?q?B=C3=BCro?=" <scan@contoso.com>`, `=?utf-8?b?QsO8cm8=?= <scan@contoso.com>`},
		{"word with a blank in it", `=?utf-8?q?B=C3=BCro 3?= <scan@contoso.com>`, `=?utf-8?b?QsO8cm8gMw==?= <scan@contoso.com>`},
		{"word in a word", `=?utf-8?q?=3D=3Futf-8=3Fq=3Fx=3F=3D?= <scan@contoso.com>`, `x <scan@contoso.com>`},
		{"word of a character set that nobody knows", `=?x-mfp-900?q?B=FCro?= <scan@contoso.com>`, ``},
		{"such a word with a name beside it", `Canon =?x-mfp-900?q?B=FCro?= "3. OG" <scan@contoso.com>`, ``},
		{"such a word that may be an address", `=?x-mfp-900?q?ceo=40contoso.com?= <scan@contoso.com>`, `"= ?x-mfp-900?q?ceo=40contoso.com?=" <scan@contoso.com>`},
		{"such a word beside an @", `"ceo@" =?x-mfp-900?q?contoso.com?= <scan@contoso.com>`, `"ceo@ = ?x-mfp-900?q?contoso.com?=" <scan@contoso.com>`},
		{"such a word, sender replaced", `Canon =?x-mfp-900?q?B=FCro?= "3. OG" <mfp@floor.local>`, "Canon =?x-mfp-900?q?B=FCro?= =?utf-8?b?IDMuIE9H?= <scan@contoso.com>"},
		// What could be ours stays.
		{"only brackets", `<scan@contoso.com>`, ``},
		{"no blank before the bracket", `Scanner<scan@contoso.com>`, ``},
		{"quotes and atoms", `"Scanner, big" 3 <scan@contoso.com>`, ``},
		{"word of another set", `=?iso-8859-1?Q?B=FCro?= 3 <scan@contoso.com>`, ``},
		{"word of Korea", `=?cp949?B?vbrEs7PK?= <scan@contoso.com>`, ``},
		{"words, folded by a tab", "=?utf-8?q?B=C3=BC?=\n\t=?utf-8?q?ro?= <scan@contoso.com>", ``},
	} {
		d := p.Decide(&Request{Peer: peer("10.2.0.9", ""), Sender: "scan@contoso.com", Fields: fields(complete + "From: " + tc.from), Now: time.Unix(0, 0)})
		if d.Identity.String() != "scan@contoso.com" {
			t.Errorf("%s: identity %s, want scan@contoso.com", tc.name, d.Identity)
		}
		got := ""
		for _, c := range d.Changes {
			if c.Name == "From" {
				got = c.Value
			}
		}
		if got != tc.want {
			t.Errorf("%s: From: %s\n  becomes %q\n  want    %q", tc.name, tc.from, got, tc.want)
		}
	}
}

func TestChanges(t *testing.T) {
	p := mustPolicy(t, contoso())
	now := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	const rewritten = "=From[1]: Mfp <scan@contoso.com>\n"
	for _, tc := range []struct{ name, sender, header, want string }{
		{"nothing to do", "scan@contoso.com", complete + "From: scan@contoso.com\nReply-To: x@y.com\nSender: scan@contoso.com", ""},
		{"answerable original", "a@fabrikam.com", complete + "From: Mfp <a@fabrikam.com>",
			rewritten + "+Reply-To: Mfp <a@fabrikam.com>\n+X-Original-From: Mfp <a@fabrikam.com>\n"},
		{"local original", "a@floor.local", complete + "From: Mfp <a@floor.local>", rewritten + "+X-Original-From: Mfp <a@floor.local>\n"},
		{"Reply-To is there", "a@fabrikam.com", complete + "From: Mfp <a@fabrikam.com>\nReply-To: b@fabrikam.com",
			rewritten + "+X-Original-From: Mfp <a@fabrikam.com>\n"},
		{"forged X-Original-From", "a@floor.local", complete + "From: Mfp <a@floor.local>\nX-Original-From: ceo@contoso.com",
			rewritten + "-X-Original-From[1]\n+X-Original-From: Mfp <a@floor.local>\n"},
		{"foreign Sender", "scan@contoso.com", complete + "From: scan@contoso.com\nSender: ceo@contoso.com", "-Sender[1]\n"},
		{"two From", "scan@contoso.com", complete + "From: scan@contoso.com\nFROM: ceo@contoso.com", "-FROM[2]\n=From[1]: scan@contoso.com\n+X-Original-From: scan@contoso.com, ceo@contoso.com\n"},
		{"no From", "scan@contoso.com", complete, "+From: scan@contoso.com\n"},
		{"no Message-ID, no Date", "scan@contoso.com", "From: scan@contoso.com",
			"+Message-ID: <" + "dn0qaxqe8e80.4QX" + "@contoso.com>\n+Date: Sat, 21 Nov 2026 08:00:00 +0000\n"},
		{"empty Message-ID", "scan@contoso.com", "From: scan@contoso.com\nMessage-ID:\nDate: x",
			"=Message-ID[1]: <" + "dn0qaxqe8e80.4QX" + "@contoso.com>\n"},
		{"signature still true", "root@mfp", complete + "From: scan@contoso.com\nDKIM-Signature: v=1; h=from:subject; b=x", ""},
		{"signature false", "root@mfp", complete + "From: Mfp <a@floor.local>\nDKIM-Signature: v=1; h=From : subject; b=x",
			rewritten + "+X-Original-From: Mfp <a@floor.local>\n-DKIM-Signature[1]\n"},
		{"TLS-Required, sender stays", "scan@contoso.com", complete + "From: scan@contoso.com\nTLS-Required: no", "-TLS-Required[1]\n"},
		{"TLS-Required, rewritten", "a@floor.local", complete + "From: Mfp <a@floor.local>\nTLS-Required: no",
			rewritten + "+X-Original-From: Mfp <a@floor.local>\n-TLS-Required[1]\n"},
		{"TLS-Required, every one", "scan@contoso.com", complete + "From: scan@contoso.com\ntls-required: NO\nTLS-REQUIRED:\n\tno\nTLS-Required: yes\nTLS-Required:",
			"-TLS-Required[4]\n-TLS-Required[3]\n-TLS-REQUIRED[2]\n-tls-required[1]\n"},
		{"TLS-Required, signed", "scan@contoso.com", complete + "From: scan@contoso.com\nTLS-Required: no\nDKIM-Signature: v=1; h=from:tls-required; b=x\nDKIM-Signature: v=1; h=from:subject; b=x",
			"-TLS-Required[1]\n-DKIM-Signature[1]\n"},
		{"bounce", "", complete + "From: MAILER-DAEMON@relay (Mail Delivery System)\nAuto-Submitted: auto-replied",
			"=From[1]: Mail Delivery System <scan@contoso.com>\n+X-Original-From: MAILER-DAEMON@relay (Mail Delivery System)\n+X-Auto-Response-Suppress: All\n"},
		{"bounce of a device", "", complete + "From: mfp@fabrikam.com\nAuto-Submitted: no",
			"=From[1]: scan@contoso.com\n+X-Original-From: mfp@fabrikam.com\n=Auto-Submitted[1]: auto-replied\n+X-Auto-Response-Suppress: All\n"},
		{"long name folds", "a@floor.local", complete + "From: The multifunction printer on the third floor beside the coffee machine <a@floor.local>",
			"=From[1]: The multifunction printer on the third floor beside the coffee machine\n <scan@contoso.com>\n" +
				"+X-Original-From: The multifunction printer on the third floor beside the\n coffee machine <a@floor.local>\n"},
	} {
		d := p.Decide(&Request{Peer: peer("10.2.0.9", ""), Sender: tc.sender, Fields: fields(tc.header), QueueID: "4QX", Now: now})
		if got := show(d.Changes); got != tc.want {
			t.Errorf("%s:\n got  %q\n want %q", tc.name, got, tc.want)
		}
	}
}

// TestIDNIdentity: nothing that needs SMTPUTF8 leaves.
func TestIDNIdentity(t *testing.T) {
	s := contoso()
	s.Domains = append(s.Domains, "bücher.de")
	s.Mailboxes = append(s.Mailboxes, MailboxSettings{Address: "scan@bücher.de"})
	s.Clients = []ClientSettings{{Name: "printers", Networks: []string{"10.2.0.0/16"}, From: "scan@bücher.de", DisplayName: strings.Repeat("ü", 100)}}
	d := mustPolicy(t, s).Decide(&Request{Peer: peer("10.2.0.9", ""), Sender: "root@mfp", Fields: fields(complete + "From: root@mfp")})
	if d.Sender != "scan@xn--bcher-kva.de" || !strings.Contains(show(d.Changes), "<scan@xn--bcher-kva.de>") {
		t.Errorf("leaves as %q with %q", d.Sender, show(d.Changes))
	}
}

// TestHiddenEncodedWord: quotes do not hide an encoded word from every reader.
func TestHiddenEncodedWord(t *testing.T) {
	p := mustPolicy(t, contoso())
	from := `"=?utf-7?q?ceo+AEA-contoso.com?=" <scan@contoso.com>`
	d := p.Decide(&Request{Peer: peer("10.2.0.9", ""), Sender: "scan@contoso.com", Fields: fields(complete + "From: " + from)})
	if got := show(d.Changes); !strings.HasPrefix(got, "=From[1]: ") || strings.Contains(strings.SplitAfter(got, "\n")[0], "=?utf-7") {
		t.Errorf("changes %q", got)
	}
}

func TestTooManyFrom(t *testing.T) {
	p := mustPolicy(t, contoso())
	d := p.Decide(&Request{Peer: peer("10.2.0.9", ""), Fields: fields(strings.Repeat("From: a@b.c\n", maxFrom+1))})
	if d.Action != Reject || d.Reply.String() != "550 5.6.0 the message has 21 From fields; it may have one" {
		t.Errorf("21 From fields: %s %v", d.Action, d.Reply)
	}
}

// TestHostileLengths: what costs the parser most is over at once; without a bound it would take
// hours.
func TestHostileLengths(t *testing.T) {
	p := mustPolicy(t, contoso())
	for _, unit := range []string{`<`, `"`, `(`, `<"\"`, `("\"`, `\"`, `,`, `<(`, `a@b.c,`, `=?utf-8?q?`, `a@`, `:`, " "} {
		from := strings.Repeat(unit, 100_000/len(unit))
		d := p.Decide(&Request{Peer: peer("10.2.0.9", ""), Fields: fields(complete + "From: " + from)})
		if d.Action != Accept || d.Identity.String() != "scan@contoso.com" {
			t.Errorf("100 kB of %q: %s as %s", unit, d.Action, d.Identity)
		}
	}
	d := p.Decide(&Request{Peer: peer("10.2.0.9", ""), Fields: fields("From: " + strings.Repeat("long name ", 1000) + "<hr@contoso.com>")})
	if d.Identity.String() != "hr@contoso.com" {
		t.Errorf("an address behind 10 kB of name: left as %s", d.Identity)
	}
}

func TestReplies(t *testing.T) {
	p := mustPolicy(t, contoso())
	for _, tc := range []struct{ addr, login, from, want string }{
		{"192.0.2.7", "", "a@b.c", "550 5.7.1 192.0.2.7 is not a known client of this relay; ask its administrator to add it to clients: in sendas.yaml"},
		{"192.0.2.7", "b\x01ob\n", "a@b.c", `550 5.7.1 192.0.2.7 (login "b?ob?") is not a known client of this relay; ask its administrator to add it to clients: in sendas.yaml`},
		{"192.0.2.7", "nagios", "alerts@contoso.com", `550 5.7.1 <alerts@contoso.com>: no mailbox of this relay may send as this address; ask its administrator to list it under send_as: of the mailbox that has the permission (client "monitoring")`},
		{"10.9.0.1", "", "billing@contoso.com", `550 5.7.1 <billing@contoso.com>: client "strict" may not send as this address; ask the relay's administrator to add it to senders: of the client`},
		{"10.9.0.1", "", "", `550 5.7.1 the message names no sender, and client "strict" has no from: in sendas.yaml`},
	} {
		d := p.Decide(&Request{Peer: peer(tc.addr, tc.login), Fields: []Field{{"From", tc.from}}})
		if got := d.Reply.String(); got != tc.want {
			t.Errorf("reply to %s from %s\n got  %s\n want %s", tc.from, tc.addr, got, tc.want)
		}
	}
}

func TestReasonsAreSentences(t *testing.T) {
	p := mustPolicy(t, contoso())
	d := p.Decide(&Request{Peer: peer("10.2.0.9", ""), Sender: "<>", Fields: []Field{{"From", "ceo@contoso.com"}}})
	want := []string{
		`10.2.0.9 is client "printers"`,
		`no mailbox may send as <ceo@contoso.com>`,
		`client "printers" has from: scan@contoso.com for such mail`,
		`the null sender leaves as <scan@contoso.com>, and nothing of it may bounce`,
	}
	if len(d.Reasons) != len(want) {
		t.Fatalf("reasons %v, want %q", d.Reasons, want)
	}
	for i, r := range d.Reasons {
		if r.String() != want[i] {
			t.Errorf("reason %d: %s, want %s", i, r, want[i])
		}
	}
}

func TestSettings(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(s *Settings)
		want  string
	}{
		{"no domain", func(s *Settings) { s.Domains = nil; s.Mailboxes = nil; s.Clients = nil },
			"tenant.domains: no verified domain is listed; write the domains from which mail may leave, such as [contoso.com]"},
		{"onmicrosoft", func(s *Settings) { s.Domains = append(s.Domains, "contoso.onmicrosoft.com") },
			"tenant.domains[2]: Microsoft lets a whole tenant send to only 100 external recipients a day from *.onmicrosoft.com; use a domain of your own, or write allow_onmicrosoft: true under tenant"},
		{"unverified", func(s *Settings) { s.Mailboxes[0].SendAs[1] = "hr@fabrikam.com" },
			"mailboxes[0].send_as[1]: <hr@fabrikam.com> is not in a verified domain; add fabrikam.com to tenant.domains if the tenant has it"},
		{"claimed twice", func(s *Settings) { s.Mailboxes[1].SendAs = []string{"HR@contoso.com"} },
			"mailboxes[1].send_as[0]: <HR@contoso.com> is claimed at mailboxes[0].send_as[1] too; an address can leave through one mailbox only, unless all that list it have pool: true"},
		{"from of no mailbox", func(s *Settings) { s.Clients[0].From = "x@contoso.com" },
			"clients[0].from: no mailbox may send as <x@contoso.com>; list it under send_as of the mailbox that has the permission"},
		{"matches nobody", func(s *Settings) { s.Clients[0].Networks = nil }, `clients[0]: client "sap" matches nobody; write networks:, logins:, cert_subjects: or cert_fingerprints:`},
		{"same name", func(s *Settings) { s.Clients[1].Name = "sap" }, `clients[1].name: two clients are called "sap"; a name stands for one client in logs and metrics`},
		{"host bits", func(s *Settings) { s.Clients[0].Networks[0] = "10.2.0.9/16" },
			`clients[0].networks[0]: "10.2.0.9/16" has bits behind its prefix length; write 10.2.0.0/16 for the network or 10.2.0.9 for the one address`},
		{"action", func(s *Settings) { s.Clients[0].OnUnauthorized = "drop" }, `clients[0].on_unauthorized: "drop" is not an action; write rewrite or reject`},
		{"rewrite to what", func(s *Settings) { s.Clients[2].OnUnauthorized = "rewrite" },
			`clients[2].on_unauthorized: rewrite needs an identity to rewrite to; write from: with an address of a mailbox`},
		{"pattern", func(s *Settings) { s.Clients[2].Senders[0] = "al*@contoso.com" },
			`clients[2].senders[0]: "al*@contoso.com" is not a pattern; write an address, *@domain or *`},
	} {
		s := contoso()
		tc.spoil(&s)
		_, errs := New(s)
		if len(errs) != 1 || errs[0].Error() != tc.want {
			t.Errorf("%s:\n got  %v\n want %s", tc.name, errs, tc.want)
		}
	}
}

// TestClientOrder compares the index with the definition: the first client of the list
// that matches.
func TestClientOrder(t *testing.T) {
	s := Settings{Domains: []string{"contoso.com"}, Mailboxes: []MailboxSettings{{Address: "a@contoso.com"}}}
	s.Clients = []ClientSettings{
		{Name: "narrow", Networks: []string{"10.1.2.0/24"}},
		{Name: "both", Networks: []string{"10.1.0.0/16"}, Logins: []string{"bob"}},
		{Name: "wide", Networks: []string{"10.0.0.0/8"}},
		{Name: "hidden", Networks: []string{"10.1.3.0/24"}}, // wide comes first
		{Name: "bob", Logins: []string{"bob"}},
		{Name: "anyone", Logins: []string{"*"}},
		{Name: "rest", Networks: []string{"0.0.0.0/0", "::/0"}},
	}
	p := mustPolicy(t, s)
	for _, tc := range []struct{ addr, login, want string }{
		{"10.1.2.9", "", "narrow"}, {"10.1.2.9", "bob", "narrow"}, {"10.1.9.9", "bob", "both"}, {"10.1.9.9", "", "wide"},
		{"10.1.3.9", "", "wide"}, {"10.2.3.9", "bob", "wide"}, {"192.0.2.1", "bob", "bob"}, {"192.0.2.1", "eve", "anyone"},
		{"192.0.2.1", "", "rest"}, {"2001:db8::1", "", "rest"}, {"", "bob", "bob"}, {"fe80::1%eth0", "", "rest"},
	} {
		got := p.FindClient(peer(tc.addr, tc.login), "x@y.example")
		if got == nil || got.Name != tc.want {
			t.Errorf("%s login %q: client %v, want %s", tc.addr, tc.login, got, tc.want)
		}
	}
}
