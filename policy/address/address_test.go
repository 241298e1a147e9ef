package address

import (
	"strings"
	"testing"
)

func TestParseAddress(t *testing.T) {
	for _, tc := range []struct{ in, local, domain, text string }{
		{"", "", "", ""},
		{"<>", "", "", ""},
		{" < > ", "", "", ""},
		{"scan@contoso.com", "scan", "contoso.com", "scan@contoso.com"},
		{" <scan@contoso.com> ", "scan", "contoso.com", "scan@contoso.com"},
		{"< scan@contoso.com >", "scan", "contoso.com", "scan@contoso.com"},
		{"Scan@Contoso.COM", "Scan", "Contoso.COM", "Scan@Contoso.COM"},
		{"scan@contoso.com.", "scan", "contoso.com", "scan@contoso.com"},
		{"scan@contoso.com..", "scan", "contoso.com", "scan@contoso.com"},
		{"root", "root", "", "root"},
		{"root@", "root", "", "root"},
		{"root@mfp", "root", "mfp", "root@mfp"},
		{"<@a.example,@b.example:scan@contoso.com>", "scan", "contoso.com", "scan@contoso.com"},
		{`"scan"@contoso.com`, "scan", "contoso.com", "scan@contoso.com"},
		{`"scanner 3"@contoso.com`, "scanner 3", "contoso.com", `"scanner 3"@contoso.com`},
		{`"a\"\\b"@contoso.com`, `a"\b`, "contoso.com", `"a\"\\b"@contoso.com`},
		{`a..b@contoso.com`, "a..b", "contoso.com", `"a..b"@contoso.com`},
		{`.a@contoso.com`, ".a", "contoso.com", `".a"@contoso.com`},
		{`a.@contoso.com`, "a.", "contoso.com", `"a."@contoso.com`},
		{`"a@b"@contoso.com`, "a@b", "contoso.com", `"a@b"@contoso.com`},
		{`a@b@contoso.com`, "a@b", "contoso.com", `"a@b"@contoso.com`},
		{"a@[10.0.0.1]", "a", "[10.0.0.1]", "a@[10.0.0.1]"},
		{"a@[IPv6:fe80::1]", "a", "[IPv6:fe80::1]", "a@[IPv6:fe80::1]"},
		{"ceo%contoso.com@relay", "ceo%contoso.com", "relay", "ceo%contoso.com@relay"},
		{"müller@bücher.example", "müller", "bücher.example", "müller@bücher.example"},
		{"m\xfcller@mfp", "müller", "mfp", "müller@mfp"},
		{"m ü@mfp", "m ü", "mfp", `"m ü"@mfp`},
		{"a\u00a0b@mfp", "a\u00a0b", "mfp", "\"a\u00a0b\"@mfp"},
	} {
		a, err := Parse(tc.in)
		if err != nil || a.Local != tc.local || a.Domain != tc.domain || a.String() != tc.text {
			t.Errorf("ParseAddress(%q) = %#v %q, %v; want %q, %q, %q", tc.in, a, a, err, tc.local, tc.domain, tc.text)
		}
	}
}

func TestNoAddress(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"@", `"@" is a source route without an address`},
		{"@contoso.com", `"@contoso.com" is a source route without an address`},
		{"@a:@b", `"@b": nothing stands before the @`},
		{`""@contoso.com`, `"\"\"@contoso.com": nothing stands before the @`},
		{"a\x00b@contoso.com", `"a\x00b@contoso.com": a control character stands in the local part`},
		{"a\r\nb@contoso.com", `"a\r\nb@contoso.com": a control character stands in the local part`},
		{"a\u202eb@contoso.com", `"a\u202eb@contoso.com": a control character stands in the local part`},
		{"a@b c", `"a@b c" has no usable domain`},
		{"a@b\u00a0c", `"a@b\u00a0c" has no usable domain`},
		{"a@b\u200bc.de", `"a@b\u200bc.de" has no usable domain`},
		{"a@b,c", `"a@b,c" has no usable domain`},
		{"a@b\nBcc:c", `"a@b\nBcc:c" has no usable domain`},
		{`"a@b"`, `"\"a@b\"" has no usable domain`},
		{`a@b@`, `"a@b@" has no usable domain`},
		{strings.Repeat("ü", 60) + "@b c", `"` + strings.Repeat("ü", 50) + `…" has no usable domain`},
	} {
		a, err := Parse(tc.in)
		if err == nil || err.Error() != tc.want || !a.IsZero() {
			t.Errorf("ParseAddress(%q) = %v, %v; want %s", tc.in, a, err, tc.want)
		}
	}
}

// TestValid tells what may leave, and what could be answered.
func TestValid(t *testing.T) {
	label := strings.Repeat("d", 63)
	for _, tc := range []struct {
		in                string
		valid, answerable bool
	}{
		{"scan@contoso.com", true, true},
		{"o'brien+x@contoso.com", true, true},
		{`"a..b"@contoso.com`, true, true},
		{"scan@bücher.example", true, false}, // RFC 6761
		{"scan@bücher.de", true, true},
		{"scan@xn--bcher-kva.de", true, true},
		{"scan@contoso。com", true, true}, // IDNA knows four dots
		{"scan@floor.local", true, false},
		{"scan@x.home.arpa", true, false},
		{"scan@home.arpa", true, false},
		{"scan@contoso.com.", true, true},
		{strings.Repeat("l", 64) + "@contoso.com", true, true},
		{strings.Repeat("l", 65) + "@contoso.com", false, false},
		{"a@" + label + ".de", true, true},
		{"a@" + label + "d.de", false, false},
		{"a@" + label + "." + label + "." + label + "." + label + ".de", false, false},
		{"büro@contoso.com", false, false},
		{"=?utf-8?q?x?=@contoso.com", false, false},
		{"bounce=a=b.example@contoso.com", true, true},
		{`"scanner 3"@contoso.com`, false, false},
		{"root@mfp", false, false},
		{"root", false, false},
		{"", false, false},
		{"a@[10.0.0.1]", false, false},
		{"a@10.0.0.1", false, false},
		{"a@-b.de", false, false},
		{"a@b-.de", false, false},
		{"a@b..de", false, false},
		{"a@b_c.de", false, false},
		{"a@ü_c.de", false, false},
	} {
		a, err := Parse(tc.in)
		if err != nil {
			t.Errorf("ParseAddress(%q): %v", tc.in, err)
		}
		if a.Valid() != tc.valid || a.Answerable() != tc.answerable {
			t.Errorf("%q: valid %v, answerable %v; want %v, %v", tc.in, a.Valid(), a.Answerable(), tc.valid, tc.answerable)
		}
	}
}

// TestSame compares addresses as Exchange Online does.
func TestSame(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		same bool
	}{
		{"scan@contoso.com", "SCAN@Contoso.Com", true},
		{"scan@contoso.com", `"scan"@contoso.com.`, true},
		{"scan@contoso.com", "scan2@contoso.com", false},
		{"scan@contoso.com", "scan@contoso.de", false},
		{"scan@contoso.com", "", false},
		{"", "<>", true},
		{"root", "root@", true},
		{"a@bücher.example", "a@xn--bcher-kva.example", true},
		{"a@BÜCHER.example", "a@XN--bcher-KVA.Example", true},
		{"a@bu\u0308cher.example", "a@bücher.example", true}, // two ways to write ü
		{"a@bücher。example", "a@bücher.example", true},
		{"a@bücher.example", "a@bucher.example", false},
		{"a@сontoso.com", "a@contoso.com", false}, // a Cyrillic с
		{"büro@contoso.com", "BÜRO@contoso.com", true},
		{"a@ü_x.de", "a@Ü_X.de", true}, // no domain for IDNA
	} {
		a, errA := Parse(tc.a)
		b, errB := Parse(tc.b)
		if errA != nil || errB != nil || a.Same(b) != tc.same || b.Same(a) != tc.same || (a.Key() == b.Key()) != tc.same {
			t.Errorf("%q and %q are the same: %v (keys %q and %q), want %v", tc.a, tc.b, a.Same(b), a.Key(), b.Key(), tc.same)
		}
	}
	if got := (Spec{Local: "Scan", Domain: "Bücher.example"}).ASCII().String(); got != "Scan@xn--bcher-kva.example" {
		t.Errorf("Scan@Bücher.example is %s in ASCII", got)
	}
	if got := (Spec{Local: "a", Domain: "ü_X.de"}).ASCII().String(); got != "a@ü_X.de" {
		t.Errorf("a@ü_X.de, which has no form in ASCII, is %s", got)
	}
	if got := (Spec{Local: "Scan", Domain: "Contoso.com"}).ASCII().String(); got != "Scan@Contoso.com" {
		t.Errorf("Scan@Contoso.com is %s in ASCII", got)
	}
}

func TestDotAtom(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want bool
	}{
		{"scan", true}, {"a.b", true}, {"o'brien+x", true}, {"", false}, {".a", false}, {"a.", false}, {"a..b", false},
		{"a b", false}, {"a@b", false}, {`a"b`, false}, {"büro", false},
	} {
		if got := IsDotAtom(tc.in); got != tc.want {
			t.Errorf("isDotAtom(%q) = %v, want %v", tc.in, got, tc.want)
		}
	}
}
