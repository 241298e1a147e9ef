package address

import (
	"net/mail"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sendas/sendas/policy/address/addresstest"
)

// TestWriteMailbox compares what is written to the letter.
func TestWriteMailbox(t *testing.T) {
	for _, tc := range []struct{ field, name, addr, want string }{
		{"From", "", "scan@contoso.com", `scan@contoso.com`},
		{"From", "Scanner 3", "scan@contoso.com", `Scanner 3 <scan@contoso.com>`},
		{"From", "Dr. Müller", "scan@contoso.com", `=?utf-8?b?RHIuIE3DvGxsZXI=?= <scan@contoso.com>`},
		{"From", "Dr. Muller", "scan@contoso.com", `"Dr. Muller" <scan@contoso.com>`},
		{"From", "Canon, 3rd floor", "scan@contoso.com", `"Canon, 3rd floor" <scan@contoso.com>`},
		{"From", `"Big" B\x`, "scan@contoso.com", `"\"Big\" B\\x" <scan@contoso.com>`},
		{"From", "scan@contoso.com", "scan@contoso.com", `"scan@contoso.com" <scan@contoso.com>`},
		{"From", "扫描仪", "scan@contoso.com", `=?utf-8?b?5omr5o+P5Luq?= <scan@contoso.com>`},
		// Addresses.
		{"Reply-To", "x", `"john doe"@contoso.com`, ``}, // Exchange Online knows no blanks in addresses
		{"Reply-To", "x", `john..doe@fabrikam.com`, `x <"john..doe"@fabrikam.com>`},
		{"Reply-To", "x", `a"b@fabrikam.com`, `x <"a\"b"@fabrikam.com>`},
		{"Reply-To", "x", `scan@bücher.example`, `x <scan@xn--bcher-kva.example>`},
		{"Reply-To", "x", `büro@contoso.com`, ``},
		{"Reply-To", "x", `scan@floor`, ``},
		{"Reply-To", "x", `root`, ``},
		{"Reply-To", "x", `a@b_c.de`, ``},
		{"Reply-To", "x", `a@bü_c.de`, ``},
		{"Reply-To", "x", ``, ``},
		// What no caller should hand in starts no line, and no encoded word.
		{"From", "Scan\r\nBcc: x@y", "scan@contoso.com", `"Scan Bcc: x@y" <scan@contoso.com>`},
		{"From", "Scan\x00\u202e\xff", "scan@contoso.com", `Scan <scan@contoso.com>`},
		{"From", "=?utf-8?q?x?=", "scan@contoso.com", `= ?utf-8?q?x?= <scan@contoso.com>`},
		{"From", " \t ", "scan@contoso.com", `scan@contoso.com`},
		{"From", "\x00", "scan@contoso.com", `scan@contoso.com`},
		// Lines.
		{"From", "The multifunction printer on the third floor beside the coffee machine", "scan@contoso.com",
			"The multifunction printer on the third floor beside the coffee machine\n <scan@contoso.com>"},
		{"From", "The multifunction printer, on the third floor beside the coffee machines", "scan@contoso.com",
			"\"The multifunction printer, on the third floor beside the coffee\n machines\" <scan@contoso.com>"},
		{"From", "The multifunction printer, on the third floor beside the coffee machine 23", "scan@contoso.com",
			"\"The multifunction printer, on the third floor beside the coffee machine\n 23\" <scan@contoso.com>"},
		{"From", "Multifunktionsgerät im Büro der Geschäftsführung", "scan@contoso.com",
			"=?utf-8?b?TXVsdGlmdW5rdGlvbnNnZXLDpHQgaW0gQsO8cm8gZGVyIEdlc2Now6Rm?=\n =?utf-8?b?dHNmw7xocnVuZw==?= <scan@contoso.com>"},
		{"From", strings.Repeat("x", 76), "scan@contoso.com",
			"=?utf-8?b?" + strings.Repeat("eHh4", 14) + "?=\n =?utf-8?b?" + strings.Repeat("eHh4", 11) + "eA==?=\n <scan@contoso.com>"},
		{"X-A-Field-With-A-Name-Much-Longer-Than-Any-That-We-Write-But-Who-Knows-It-May-Be", "ü", "scan@contoso.com",
			"=?utf-8?b?w7w=?=\n <scan@contoso.com>"},
	} {
		got := Write(tc.field, tc.name, SplitAddress(tc.addr))
		if got != tc.want {
			t.Errorf("%s: %q <%s>\n got  %q\n want %q", tc.field, tc.name, tc.addr, got, tc.want)
		}
	}
}

// TestWriteAnything writes names and addresses of all lengths, and reads them as others do.
func TestWriteAnything(t *testing.T) {
	long := Spec{Local: strings.Repeat("l", 64), Domain: strings.Repeat(strings.Repeat("d", 62)+".", 4) + "de"}
	for _, unit := range []string{"x", "x ", "xy, ", "ü", "漢", "𐍈", "a ü ", `"`, `\`, "e\u0301", "=?", "日本語 x@y "} {
		for n := range 140 {
			for _, a := range []Spec{scan, long} {
				name := SafeName(strings.Repeat(unit, n), a)
				value := Write("From", name, a)
				if bad := addresstest.BadField("From", value); bad != "" {
					t.Fatalf("%d times %q is written as %q: %s", n, unit, value, bad)
				}
				m, err := mail.ParseAddress(strings.ReplaceAll(value, "\n", ""))
				if err != nil || m.Name != name || m.Address != a.String() {
					t.Fatalf("%d times %q is written as %q, which reads as %v, %v", n, unit, value, m, err)
				}
				if got := ParseList(value); len(got) != 1 || got[0] != (Named{name, a}) {
					t.Fatalf("%d times %q is written as %q, which reads here as %+v", n, unit, value, got)
				}
			}
		}
	}
}

func TestEncodeText(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"", ""},
		{"Mfp <a@floor.local>", "Mfp <a@floor.local>"},
		{"Büro <a@floor.local>", "=?utf-8?b?QsO8cm8gPGFAZmxvb3IubG9jYWw+?="},
		{"a" + strings.Repeat(" ", 900) + "b", "a b"},
		{"a\r\nBcc: x\x00", "a Bcc: x"},
		{strings.Repeat("word ", 14) + "end", "word word word word word word word word word word word word\n word word end"},
		{strings.Repeat("x", 78), "=?utf-8?b?" + strings.Repeat("eHh4", 11) + "?=\n =?utf-8?b?" + strings.Repeat("eHh4", 15) + "?="},
		{"a\xffb", "ab"},
	} {
		if got := EncodeText("X-Original-From", tc.in); got != tc.want {
			t.Errorf("encodeText(%q)\n got  %q\n want %q", tc.in, got, tc.want)
		}
	}
	for _, unit := range []string{"x", "x ", "ü", "漢字 "} {
		got := EncodeText("X-Original-From", strings.Repeat(unit, 2000))
		if bad := addresstest.BadField("X-Original-From", got); bad != "" {
			t.Errorf("2000 times %q: %s: %q", unit, bad, got)
		}
		text, err := WordDecoder.DecodeHeader(strings.ReplaceAll(got, "\n", ""))
		if n := utf8.RuneCountInString(text); err != nil || n < maxText-1 || n > maxText || !strings.HasPrefix(strings.Repeat(unit, 2000), text) {
			t.Errorf("2000 times %q: %d characters are left of it: %q, %v", unit, n, text, err)
		}
	}
}

// TestSafeName lets a display name pretend to be another sender, in all ways we could think of.
func TestSafeName(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		// What stays.
		{"Scanner 3", "Scanner 3"},
		{"scanner3@floor 3", "scanner3@floor 3"},
		{"Scanner @ floor 3", "Scanner @ floor 3"},
		{"root@mfp", "root@mfp"},
		{"ceo@contoso", "ceo@contoso"}, // without a dot it is no address on the internet
		{"@", "@"},
		{"a@", "a@"},
		{"Dr. A@B", "Dr. A@B"},
		{"ceo%contoso.com", "ceo%contoso.com"},
		{"contoso.com!ceo", "contoso.com!ceo"},
		{"ceo (at) contoso.com", "ceo (at) contoso.com"},
		{"ceo&#64;contoso.com", "ceo&#64;contoso.com"},
		// The identity itself.
		{"scan@contoso.com", "scan@contoso.com"},
		{"SCAN@Contoso.com", "SCAN@Contoso.com"},
		{"Scanner (scan@contoso.com)", "Scanner (scan@contoso.com)"},
		{"<scan@contoso.com>", "<scan@contoso.com>"},
		{"scan@contoso。com", "scan@contoso。com"}, // it is the same domain
		{"scan＠contoso.com", "scan at contoso.com"},
		{"scan @ contoso.com", "scan at contoso.com"},
		{"x.scan@contoso.com", "x.scan at contoso.com"},
		{"scan@contoso.com.evil.example", "scan at contoso.com.evil.example"},
		{"scan@contoso.com/evil.example", "scan at contoso.com/evil.example"},
		{"mailto:scan@contoso.com", "mailto:scan at contoso.com"},
		{"ceo@contoso.com,scan@contoso.com", "ceo at contoso.com,scan at contoso.com"},
		{"scan@contoso.com@evil.example", "scan at contoso.com at evil.example"},
		{"scan@contoso.com＠evil.example", "scan at contoso.com at evil.example"},
		// Another sender.
		{"ceo@contoso.com", "ceo at contoso.com"},
		{"The CEO <ceo@contoso.com>", "The CEO <ceo at contoso.com>"},
		{`"ceo@contoso.com" <ceo@contoso.com>`, `"ceo at contoso.com" <ceo at contoso.com>`},
		{"ceo＠contoso.com", "ceo at contoso.com"},
		{"ceo﹫contoso.com", "ceo at contoso.com"},
		{"ceo@contoso。com", "ceo at contoso。com"},
		{"ceo@contoso．com", "ceo at contoso．com"},
		{"ceo@contoso｡com", "ceo at contoso｡com"},
		{"ceo@contoso․com", "ceo at contoso․com"},
		{"ceo@contoso﹒com", "ceo at contoso﹒com"},
		{"ceo@contoso·com", "ceo at contoso·com"},
		{"ceo@contosoꓸcom", "ceo at contosoꓸcom"},
		{"c\u200beo\u200d@\u2060contoso\ufeff.com", "ceo at contoso.com"},
		{"\u202emoc.osotnoc@oec\u202c x.y", "moc.osotnoc@oec x.y"},
		{"ceo @contoso.com", "ceo at contoso.com"},
		{"ceo@ contoso.com", "ceo at contoso.com"},
		{"ceo @ contoso.com", "ceo at contoso.com"},
		{"ceo\u00a0@\u3000contoso.com", "ceo at contoso.com"},
		{"ceo@contoso .com", "ceo at contoso .com"},
		{"ceo@ contoso .com", "ceo at contoso .com"},
		{"ceo@contoso. com", "ceo at contoso. com"},
		{`a\@b.c`, `a\ at b.c`},
		{`ceo@"contoso.com"`, `ceo at "contoso.com"`},
		{`"ceo"@contoso.com x`, `"ceo" at contoso.com x`},
		{"ceo@(x)contoso.com", "ceo at (x)contoso.com"},
		{"mailto:ceo@contoso.com", "mailto:ceo at contoso.com"},
		{"<b>ceo@contoso.com</b>", "<b>ceo at contoso.com</b>"},
		{"ceo@10.0.0.1", "ceo at 10.0.0.1"},
		{"ceo@contoso[.]com", "ceo at contoso[.]com"},
		{"a@@b.c", "a at at b.c"},
		{"@contoso.com", "at contoso.com"},
		{"a@b x@c.d y@e", "a@b x at c.d y@e"},
		{"müller@contoso.com", "müller at contoso.com"},
		{"ceo@münchen.example", "ceo at münchen.example"},
		{"=?utf-8?q?ceo=40contoso.com?=", "= ?utf-8?q?ceo=40contoso.com?="},
		{"=?utf-8?q?ceo@contoso.com?=", "= ?utf-8?q?ceo at contoso.com?="},
		{"=\u200b?utf-8?q?x?=", "= ?utf-8?q?x?="},
		// Lengths: an address at the cut goes as a whole.
		{strings.Repeat("x", 200), strings.Repeat("x", 128)},
		{strings.Repeat("漢", 200), strings.Repeat("漢", 128)},
		{strings.Repeat("𐍈", 200), strings.Repeat("𐍈", 96)},
		{strings.Repeat("x", 120) + " scan@contoso.com", strings.Repeat("x", 120)},
		{strings.Repeat("x", 111) + " scan@contoso.com", strings.Repeat("x", 111) + " scan@contoso.com"},
		{strings.Repeat("x", 111) + " scan@contoso.com y", strings.Repeat("x", 111) + " scan@contoso.com"},
		{strings.Repeat("a@b.c ", 30), strings.TrimRight(strings.Repeat("a at b.c ", 14)+"a", " ")},
		{"'" + strings.Repeat("x", 126) + "' y", strings.Repeat("x", 126)},
		{strings.Repeat("Scanner ", 20), strings.TrimRight(strings.Repeat("Scanner ", 16), " ")},
	} {
		got := SafeName(tc.in, scan)
		if got != tc.want {
			t.Errorf("safeName(%q)\n got  %q\n want %q", tc.in, got, tc.want)
		}
		if again := SafeName(got, scan); again != got {
			t.Errorf("safeName(%q) = %q, and of that %q", tc.in, got, again)
		}
	}
}

// TestSpoofedFrom reads the field, makes the name safe and writes it, as a message that leaves does.
func TestSpoofedFrom(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{`"ceo@contoso.com" <ceo@contoso.com>`, `"ceo at contoso.com" <scan@contoso.com>`},
		{`"\"ceo@contoso.com\" <ceo@contoso.com>" <scan@contoso.com>`, `"\"ceo at contoso.com\" <ceo at contoso.com>" <scan@contoso.com>`},
		{`=?utf-8?q?ceo=40contoso.com?= <scan@contoso.com>`, `"ceo at contoso.com" <scan@contoso.com>`},
		{`=?utf-8?q?=3D=3Futf-8=3Fq=3Fceo=40contoso.com=3F=3D?= <scan@contoso.com>`, `"ceo at contoso.com" <scan@contoso.com>`},
		{`"=?utf-8?q?ceo=40contoso.com?=" <scan@contoso.com>`, `"ceo at contoso.com" <scan@contoso.com>`},
		{`=?utf-8?q?ceo=40con?= =?utf-8?b?dG9zby5jb20=?= <scan@contoso.com>`, `"ceo at contoso.com" <scan@contoso.com>`},
		{`=?utf-8?q?ceo=EF=BC=A0contoso=E3=80=82com?= <scan@contoso.com>`, `=?utf-8?b?Y2VvIGF0IGNvbnRvc2/jgIJjb20=?= <scan@contoso.com>`},
		{`=?utf-8?q?ceo=E2=80=8B=40contoso.com?= <scan@contoso.com>`, `"ceo at contoso.com" <scan@contoso.com>`},
		{`ceo@contoso.com (The CEO) <scan@contoso.com>`, `"ceo at contoso.com (The CEO)" <scan@contoso.com>`},
		{`scan@contoso.com (ceo@contoso.com)`, `"ceo at contoso.com" <scan@contoso.com>`},
		{`ceo@contoso.com <scan@contoso.com>`, `"ceo at contoso.com" <scan@contoso.com>`},
		{`<ceo@contoso.com> <scan@contoso.com>`, `"<ceo at contoso.com>" <scan@contoso.com>`},
		{"ceo@contoso.com" + strings.Repeat(" ", 400) + "<scan@contoso.com>", `"ceo at contoso.com" <scan@contoso.com>`},
		{"CEO" + strings.Repeat("\u3164", 100) + "<scan@contoso.com>", `CEO <scan@contoso.com>`},
	} {
		list := ParseList(tc.in)
		if len(list) != 1 {
			t.Errorf("%q has %d addresses", tc.in, len(list))
			continue
		}
		got := Write("From", SafeName(list[0].Name, scan), scan)
		if got != tc.want {
			t.Errorf("%q leaves as\n %q, want\n %q", tc.in, got, tc.want)
		}
	}
}
