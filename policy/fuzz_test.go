package policy

import (
	"net/mail"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// scan is the identity of the tests.
var scan = Address{Local: "scan", Domain: "contoso.com"}

// strangeFroms are seeds: what devices, broken programs and attackers write.
var strangeFroms = []string{
	"Scanner 3 <scan@contoso.com>", "scanner3@floor 3 <bad", "\"Müller, Hans\" <hans@contoso.com>", "=?utf-8?q?=0D=0ABcc:_x@y?= <a@b.c>",
	"=?gb2312?b?yfzX?= <a@b.c>", "a <b> <c@d.e>, \"", "(((", "<<a@b>", "undisclosed-recipients:;", "\x00\xff@", "a@b\r\nBcc: c@d", "@a,@b:c@d.e",
	"=?utf-8?b?", "ceo@contoso.com\u202e <x@y.z>", strings.Repeat("a ", 600) + "<a@b.c>", strings.Repeat("ü", 600),
	"\xc9\xa8\xc3\xe8\xd2\xc7 scan@contoso.com", "\x95\xa1\x8d\x87\x8b\x40 <scan@contoso.com>", "\xbd\xb7\xac\xc5 <a@b.c>", "\x1b$B%9%-\x1b(B <a@b.c>",
	"=?utf-8?q?=3D=3Futf-8=3Fq=3Fceo=40contoso.com=3F=3D?= <scan@contoso.com>", "A: B: x@y.z;;", "\"a\\@b.c\" <a@b.c>", "'\"x\"' <a@b.c>",
	"scan(a(b)c)@contoso.com", "\"john doe\"@contoso.com", "<mailto:a@b.c>", "=?utf-8*en?B?w7w?==?UTF-8?q?=C3?==?utf-8?Q?=BC?=", "ceo＠contoso。com <a@b.c>",
	"ceo @ contoso .com <a@b.c>", "\"scan@contoso.com\" <scan@contoso.com>", strings.Repeat("漢", 200) + " <a@b.c>",
	strings.Repeat("x", 125) + " scan@contoso.com <a@b.c>", "'" + strings.Repeat("x", 126) + "' 'y <a@b.c>", "<a@[IPv6:::1]>", "a@b.c;d@e.f",
}

// FuzzFrom holds for any bytes in From: exactly one From leaves, with the identity,
// strictly parsable, and no text of the stranger becomes a header line of its own.
func FuzzFrom(f *testing.F) {
	for _, s := range strangeFroms {
		f.Add("root@mfp", s)
	}
	s := contoso()
	p, _ := New(s)
	f.Fuzz(func(t *testing.T, sender, from string) {
		d := p.Decide(&Request{Peer: peer("10.2.0.9", ""), Sender: sender, Fields: []Field{{"From", from}}, Now: time.Unix(0, 0)})
		if d.Action != Accept {
			t.Fatalf("From %q: %v", from, d.Reply)
		}
		value := from
		parser := mail.AddressParser{WordDecoder: &wordDecoder} // what stays may have any label
		for _, c := range d.Changes {
			if c.Name == "From" {
				value, parser = c.Value, mail.AddressParser{}
			}
			if bad := badValue(c.Value); bad != "" {
				t.Fatalf("From %q: %s of %s is %q: %s", from, c.Op, c.Name, c.Value, bad)
			}
		}
		a, err := parser.Parse(strings.NewReplacer("\r", "", "\n", "").Replace(value))
		if err != nil || !splitAddress(a.Address).Same(d.Identity) {
			t.Fatalf("From %q leaves as %q: %v %v, want %s", from, value, a, err, d.Identity)
		}
		if safeName(a.Name, d.Identity) != tidyName(a.Name) {
			t.Fatalf("From %q leaves with the name %q", from, a.Name)
		}
		for _, e := range parseMailboxes(from) {
			checkName(t, e.name)
			checkAddress(t, e.addr)
		}
	})
}

// FuzzName holds for any display name: what is written is strict, pretends nothing, and reads back as it was.
func FuzzName(f *testing.F) {
	for _, s := range strangeFroms {
		name, _, _ := strings.Cut(s, "<")
		f.Add(name)
	}
	f.Fuzz(checkName)
}

func checkName(t *testing.T, text string) {
	t.Helper()
	name := safeName(decodeName(readable(text)), scan)
	if again := safeName(name, scan); again != name {
		t.Fatalf("%q: safeName makes of %q, its own work, %q", text, name, again)
	}
	if utf8.RuneCountInString(name) > maxName || len(name) > maxNameBytes || !utf8.ValidString(name) || strings.Contains(name, "=?") {
		t.Fatalf("%q: the name %q (%d bytes) is not one to write", text, name, len(name))
	}
	if pretends := addressLike.FindAllString(name, -1); pretends != nil && !onlyIdentity(pretends) {
		t.Fatalf("%q: the name %q looks like the address %q", text, name, pretends)
	}
	value := writeMailbox("From", name, scan)
	if bad := badField("From", value); bad != "" {
		t.Fatalf("%q is written as %q: %s", text, value, bad)
	}
	a, err := mail.ParseAddress(strings.ReplaceAll(value, "\n", ""))
	if err != nil || a.Address != "scan@contoso.com" || a.Name != name {
		t.Fatalf("%q is written as %q, which reads as %v %v, want the name %q", text, value, a, err, name)
	}
	if got := parseMailboxes(value); len(got) != 1 || got[0] != (namedAddress{name, scan}) {
		t.Fatalf("%q is written as %q, which reads here as %+v, want the name %q", text, value, got, name)
	}
}

// addressLike finds what a reader could take for an address; it is another definition than that of safeName, on purpose.
var addressLike = regexp.MustCompile(`[^ ]*[@＠﹫] ?[^ ]*[.。．｡․﹒·][^ ]*`)

func onlyIdentity(list []string) bool {
	for _, s := range list {
		if a := strings.ToLower(strings.Trim(s, `<>()[]"',;:.`)); a != "scan@contoso.com" {
			return false
		}
	}
	return true
}

// FuzzAddress holds for any text: an address is written so that it reads as itself, and what is valid is so to others.
func FuzzAddress(f *testing.F) {
	for _, s := range []string{
		"", "<>", "scan@contoso.com", "<Scan@Contoso.COM.>", "@a,@b:c@d.e", `"john doe"@contoso.com`, `"a\"b\\"@c.d`, "root", "müller@bücher.example",
		"m\xfcller@mfp", "a@xn--bcher-kva.example", "a@[10.0.0.1]", "a@[IPv6:::1]", "a..b@c.d", "@", "a@b@c.d", "a@10.0.0.1", "a\x00@b.c", "a@b\u202ec.de", "\"a@b\"",
		"a@İ.com", "a@b..", "\u00a0@b.c", strings.Repeat("a", 65) + "@b.c", "a@" + strings.Repeat("b.", 130) + "c", "\"\"@b.c", "a@。", "a@b。c",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddress(s)
		if err != nil {
			if !a.IsZero() {
				t.Fatalf("ParseAddress(%q) = %v and %v", s, a, err)
			}
			return
		}
		checkAddress(t, a)
	})
}

func checkAddress(t *testing.T, a Address) {
	t.Helper()
	again, err := ParseAddress(a.String())
	if err != nil || again != a {
		t.Fatalf("%#v is written as %q, which reads as %#v, %v", a, a.String(), again, err)
	}
	if !a.Same(a.ASCII()) || a.Valid() != a.ASCII().Valid() || a.Answerable() && !a.Valid() {
		t.Fatalf("%#v and its form in ASCII, %#v, are not the same", a, a.ASCII())
	}
	value := writeMailbox("Reply-To", "", a)
	if (value != "") != a.Valid() {
		t.Fatalf("%#v is written as %q, though it is valid: %v", a, value, a.Valid())
	}
	if value == "" {
		return
	}
	m, err := mail.ParseAddress(value)
	if err != nil || m.Address != a.Local+"@"+a.ASCII().Domain || badField("Reply-To", value) != "" {
		t.Fatalf("%#v is written as %q, which others read as %v, %v", a, value, m, err)
	}
	if got := parseMailboxes(value); len(got) != 1 || got[0] != (namedAddress{"", a.ASCII()}) {
		t.Fatalf("%#v is written as %q, which reads here as %+v", a, value, got)
	}
}

// badField says what is wrong with a field that we write anew: more than badValue, which also holds for what stays as it is.
func badField(name, value string) string {
	for i, line := range strings.Split(name+": "+value, "\n") {
		if n := len(line); n > 78 && strings.Contains(strings.TrimLeft(line, " "), " ") && (i > 0 || strings.Count(line, " ") > 1) {
			return "a line that could have been broken"
		}
		if strings.Contains(line, "=?") && len(line) > 76 {
			return "a line with an encoded word that is too long"
		}
	}
	for w := range strings.FieldsSeq(value) {
		if strings.Contains(w, "=?") && (len(w) > 75 || !strings.HasPrefix(w, "=?utf-8?b?") || !strings.HasSuffix(w, "?=")) {
			return "an encoded word that is none"
		}
	}
	if strings.Contains(value, `"=?`) {
		return "an encoded word in quotes"
	}
	return badValue(value)
}

// badValue says what is wrong with a field body that we write.
func badValue(v string) string {
	for i, line := range strings.Split(v, "\n") {
		switch {
		case i > 0 && (line == "" || line[0] != ' ' || strings.TrimSpace(line) == ""):
			return "a line break outside folding"
		case len(line) > 990:
			return "an over-long line"
		case strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r >= 0x7f }):
			return "something that is not printable ASCII"
		}
	}
	return ""
}
