package address

import (
	"net/mail"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sendas/sendas/policy/address/addresstest"
)

// scan is the address that a name must not deny.
var scan = Spec{Local: "scan", Domain: "contoso.com"}

// FuzzMailboxes holds for any bytes in a field of addresses: each name and each address that is
// read can be written.
func FuzzMailboxes(f *testing.F) {
	for _, s := range addresstest.StrangeFields {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, field string) {
		for _, e := range ParseList(field) {
			checkName(t, e.Name)
			checkAddress(t, e.Spec)
		}
	})
}

// FuzzName holds for any display name: what is written is strict, pretends nothing, and reads back
// as it was.
func FuzzName(f *testing.F) {
	for _, s := range addresstest.StrangeFields {
		name, _, _ := strings.Cut(s, "<")
		f.Add(name)
	}
	f.Fuzz(checkName)
}

func checkName(t *testing.T, text string) {
	t.Helper()
	name := SafeName(DecodeName(Readable(text)), scan)
	if again := SafeName(name, scan); again != name {
		t.Fatalf("%q: safeName makes of %q, its own work, %q", text, name, again)
	}
	plain := withoutOpaque(name)
	if utf8.RuneCountInString(plain) > MaxName || len(name) > maxNameBytes || !utf8.ValidString(name) || strings.Contains(plain, "=?") {
		t.Fatalf("%q: the name %q (%d bytes) is not one to write", text, name, len(name))
	}
	if pretends := addressLike.FindAllString(name, -1); pretends != nil && !onlyIdentity(pretends) {
		t.Fatalf("%q: the name %q looks like the address %q", text, name, pretends)
	}
	value := Write("From", name, scan)
	if bad := addresstest.BadField("From", value); bad != "" {
		t.Fatalf("%q is written as %q: %s", text, value, bad)
	}
	parser := mail.AddressParser{WordDecoder: &WordDecoder}
	a, err := parser.Parse(strings.ReplaceAll(value, "\n", ""))
	if err != nil || a.Address != "scan@contoso.com" || plain == name && a.Name != name {
		t.Fatalf("%q is written as %q, which reads as %v %v, want the name %q", text, value, a, err, name)
	}
	if other, addr, err := addresstest.ReadMailbox(value, WordDecoder.Decode); err != nil || addr != a.Address || other != a.Name {
		t.Fatalf("%q is written as %q, which reads as %v, but to another reader as %q <%s> %v", text, value, a, other, addr, err)
	}
	if n, ok := ReadStrict(value); !ok || n != (Named{name, scan}) {
		t.Fatalf("%q is written as %q, which would not stay: it reads as %+v, want the name %q", text, value, n, name)
	}
	if got := ParseList(value); len(got) != 1 || got[0] != (Named{name, scan}) {
		t.Fatalf("%q is written as %q, which reads here as %+v, want the name %q", text, value, got, name)
	}
}

// withoutOpaque returns a name without the encoded words that stay because nobody can decode them.
func withoutOpaque(name string) string {
	list := slices.DeleteFunc(strings.Split(name, " "), isOpaque)
	return strings.Join(list, " ")
}

// addressLike finds what a reader could take for an address; it is another definition than that of
// SafeName, on purpose.
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
		a, err := Parse(s)
		if err != nil {
			if !a.IsZero() {
				t.Fatalf("ParseAddress(%q) = %v and %v", s, a, err)
			}
			return
		}
		checkAddress(t, a)
	})
}

func checkAddress(t *testing.T, a Spec) {
	t.Helper()
	again, err := Parse(a.String())
	if err != nil || again != a {
		t.Fatalf("%#v is written as %q, which reads as %#v, %v", a, a.String(), again, err)
	}
	if !a.Same(a.ASCII()) || a.Valid() != a.ASCII().Valid() || a.Answerable() && !a.Valid() {
		t.Fatalf("%#v and its form in ASCII, %#v, are not the same", a, a.ASCII())
	}
	value := Write("Reply-To", "", a)
	if (value != "") != a.Valid() {
		t.Fatalf("%#v is written as %q, though it is valid: %v", a, value, a.Valid())
	}
	if value == "" {
		return
	}
	m, err := mail.ParseAddress(value)
	if err != nil || m.Address != a.Local+"@"+a.ASCII().Domain || addresstest.BadField("Reply-To", value) != "" {
		t.Fatalf("%#v is written as %q, which others read as %v, %v", a, value, m, err)
	}
	if got := ParseList(value); len(got) != 1 || got[0] != (Named{"", a.ASCII()}) {
		t.Fatalf("%#v is written as %q, which reads here as %+v", a, value, got)
	}
}
