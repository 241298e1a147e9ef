package address

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/japanese"
	"golang.org/x/text/encoding/simplifiedchinese"
	"golang.org/x/text/language"
	"golang.org/x/text/language/display"

	"github.com/sendas/sendas/policy/address/addresstest"
)

// showMailboxes writes what ParseList found: name|address, one after the other.
func showMailboxes(list []Named) string {
	var s []string
	for _, n := range list {
		s = append(s, n.Name+"|"+n.Spec.String())
	}
	return strings.Join(s, " ")
}

// TestParseMailboxes reads everything that devices, careless programs and attackers write into
// From.
func TestParseMailboxes(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		// RFC 5322, appendix A.
		{`John Doe <jdoe@machine.example>`, `John Doe|jdoe@machine.example`},
		{`"Joe Q. Public" <john.q.public@example.com>`, `Joe Q. Public|john.q.public@example.com`},
		{`Mary Smith <mary@x.test>, jdoe@example.org, Who? <one@y.test>`, `Mary Smith|mary@x.test |jdoe@example.org Who?|one@y.test`},
		{`<boss@nil.test>, "Giant; \"Big\" Box" <sysservices@example.net>`, `|boss@nil.test Giant; "Big" Box|sysservices@example.net`},
		{`A Group:Ed Jones <c@a.test>,joe@where.test,John <jdoe@one.test>;`, `Ed Jones|c@a.test |joe@where.test John|jdoe@one.test`},
		{"Pete(A nice \\) chap) <pete(his account)@silly.test(his host)>", `Pete|pete@silly.test`},
		{"Mary Smith\n          <@node.test:mary@example.net>, , jdoe@test  . example", `Mary Smith|mary@example.net jdoe@test . example|jdoe@test`},

		// No brackets, or not all of them.
		{`scan@contoso.com`, `|scan@contoso.com`},
		{`  scan@contoso.com  `, `|scan@contoso.com`},
		{`Scanner 3 scan@contoso.com`, `Scanner 3|scan@contoso.com`},
		{`scan@contoso.com Scanner 3`, `Scanner 3|scan@contoso.com`},
		{`Scanner 3 <scan@contoso.com`, `Scanner 3|scan@contoso.com`},
		{`Scanner 3 scan@contoso.com>`, `Scanner 3|scan@contoso.com`},
		{`Scanner 3 <<scan@contoso.com>>`, `Scanner 3|scan@contoso.com`},
		{`Scanner 3 << scan@contoso.com >`, `Scanner 3|scan@contoso.com`},
		{`Scanner 3 [scan@contoso.com]`, `Scanner 3|scan@contoso.com`},
		{`<scan@contoso.com> Scanner 3`, `Scanner 3|scan@contoso.com`},
		{`<scan@contoso.com> (Scanner 3)`, `Scanner 3|scan@contoso.com`},
		{`Scanner <3> scan@contoso.com`, `Scanner <3>|scan@contoso.com`},
		{`Scanner <3> <scan@contoso.com> <>`, `Scanner <3>|scan@contoso.com`},
		{`Scanner 3 < scan @ contoso.com >`, `Scanner 3|scan@contoso.com`},
		{`Scanner 3 <scan>`, `Scanner 3|scan`},
		{`Scanner 3<scan@contoso.com>`, `Scanner 3|scan@contoso.com`},
		{`Scanner 3 <mailto:scan@contoso.com>`, `Scanner 3|scan@contoso.com`},
		{`SMTP:scan@contoso.com`, `|scan@contoso.com`},
		{`Scanner 3 <'scan@contoso.com'>`, `Scanner 3|scan@contoso.com`},
		{`'scan@contoso.com'`, `|scan@contoso.com`},
		{`Scanner 3 <"scan@contoso.com">`, `Scanner 3|scan@contoso.com`},
		{`Scanner 3 <>`, ``},
		{`<>`, ``},
		{`Scanner 3`, ``},
		{``, ``},
		{" \t ", ``},
		{"\r\n\t", ``},

		// A bare @, comma, semicolon or colon in the name.
		{`scanner3@floor 3 <scan@contoso.com>`, `scanner3@floor 3|scan@contoso.com`},
		{`Scanner @ floor 3 <scan@contoso.com>`, `Scanner @ floor 3|scan@contoso.com`},
		{`ceo@contoso.com <scan@contoso.com>`, `ceo@contoso.com|scan@contoso.com`},
		{`scanner3@floor 3`, `scanner3@floor 3|scanner3@floor`},
		{`mfp@floor scan@contoso.com`, `mfp@floor|scan@contoso.com`},
		{`Canon, 3rd floor <scan@contoso.com>`, `Canon, 3rd floor|scan@contoso.com`},
		{`Canon, 3rd floor, east, scan@contoso.com`, `Canon, 3rd floor, east|scan@contoso.com`},
		{`Scanner; 3rd floor <scan@contoso.com>`, `Scanner; 3rd floor|scan@contoso.com`},
		{`Scanner: 3rd floor <scan@contoso.com>`, `Scanner: 3rd floor|scan@contoso.com`},
		{`10:30 report <scan@contoso.com>`, `10:30 report|scan@contoso.com`},
		{`, ,scan@contoso.com,`, `|scan@contoso.com`},

		// Quotes and comments that do not match.
		{`"Scanner 3 <scan@contoso.com>`, `Scanner 3|scan@contoso.com`},
		{`Scanner 3" <scan@contoso.com>`, `Scanner 3|scan@contoso.com`},
		{`"Müller, Hans <hans@contoso.com>`, `Müller, Hans|hans@contoso.com`},
		{`"Scanner "3rd floor, east" wing" <scan@contoso.com>`, `Scanner 3rd floor, east wing|scan@contoso.com`},
		{`"Scanner 3" scan@contoso.com`, `Scanner 3|scan@contoso.com`},
		{`'Scanner 3' <scan@contoso.com>`, `Scanner 3|scan@contoso.com`},
		{`"'Scanner 3'" <scan@contoso.com>`, `Scanner 3|scan@contoso.com`},
		{`'Hans' 'Müller' <scan@contoso.com>`, `'Hans' 'Müller'|scan@contoso.com`},
		{`O'Brien's scanner <scan@contoso.com>`, `O'Brien's scanner|scan@contoso.com`},
		{`"\"Scanner\" 3" <scan@contoso.com>`, `"Scanner" 3|scan@contoso.com`},
		{`"a\\b" <scan@contoso.com>`, `a\b|scan@contoso.com`},
		{`a\@b <scan@contoso.com>`, `a\@b|scan@contoso.com`},
		{`"" <scan@contoso.com>`, `|scan@contoso.com`},
		{`" " <scan@contoso.com>`, `|scan@contoso.com`},
		{`(Scanner 3 <scan@contoso.com>`, `(Scanner 3|scan@contoso.com`},
		{`scan@contoso.com (Scanner 3`, `( Scanner 3|scan@contoso.com`},
		{`"scan@contoso.com"`, `|scan@contoso.com`},
		{`"Scanner <scan@contoso.com>"`, ``}, // a name: so others read it too
		{`Scanner <3 <scan@contoso.com>`, `Scanner <3|scan@contoso.com`},

		// Comments.
		{`scan@contoso.com (Scanner 3)`, `Scanner 3|scan@contoso.com`},
		{`(Scanner 3) scan@contoso.com`, `Scanner 3|scan@contoso.com`},
		{`(Scanner 3) <scan@contoso.com>`, `Scanner 3|scan@contoso.com`},
		{`scan@contoso.com(Scanner 3)`, `Scanner 3|scan@contoso.com`},
		{`scan@contoso.com (Scanner (3rd floor))`, `Scanner (3rd floor)|scan@contoso.com`},
		{`scan@contoso.com (Scanner \(3)`, `Scanner (3|scan@contoso.com`},
		{`Scanner 3 (by the lift) <scan@contoso.com>`, `Scanner 3|scan@contoso.com`},
		{`scan(the old one)@contoso.com`, `|scan@contoso.com`},
		{`scan@(our)contoso.com`, `|scan@contoso.com`},
		{`Scanner <scan(a(b)c)@contoso.com>`, `Scanner|scan@contoso.com`},
		{`Scanner (a, b; c: <d>) <scan@contoso.com>`, `Scanner|scan@contoso.com`},
		{`"Scanner, 3" (by the lift) <scan@contoso.com>`, `Scanner, 3|scan@contoso.com`},
		{`(new) Scanner (by the lift) 3 <scan@contoso.com>`, `Scanner 3|scan@contoso.com`},
		{`=?utf-8?q?B=C3=BCro?= (by the lift) <scan@contoso.com>`, `Büro|scan@contoso.com`},
		{`scan@contoso.com Scanner (by the lift)`, `Scanner|scan@contoso.com`},
		{`Canon, 3rd floor (by the lift) <scan@contoso.com>`, `Canon, 3rd floor|scan@contoso.com`},
		{`M. Hall (by the lift) <scan@contoso.com>`, `M. Hall (by the lift)|scan@contoso.com`}, // a dot: no phrase
		{`scan@contoso.com (ceo@contoso.com)`, `ceo@contoso.com|scan@contoso.com`},

		// Groups.
		{`undisclosed-recipients:;`, ``},
		{`undisclosed-recipients: ;`, ``},
		{`Floor 3: scan@contoso.com;`, `Floor 3|scan@contoso.com`},
		{`A: B: scan@contoso.com, hr@contoso.com;;`, `B|scan@contoso.com |hr@contoso.com`},
		{`A: scan@contoso.com; B: hr@contoso.com;`, `A|scan@contoso.com B|hr@contoso.com`},
		{`A: scan@contoso.com;, B: hr@contoso.com;`, `A|scan@contoso.com B|hr@contoso.com`},
		{`Devices: scan@contoso.com, hr@contoso.com`, `Devices:|scan@contoso.com |hr@contoso.com`},
		{`"Sales, all": Hans <hans@contoso.com>;`, `Hans|hans@contoso.com`},
		{`"Sales, all": hans@contoso.com;`, `Sales, all|hans@contoso.com`},
		{`=?utf-8?q?B=C3=BCro?=: scan@contoso.com;`, `Büro|scan@contoso.com`},
		{`=?utf-8?q?CEO_=3Cceo=40contoso.com=3E?=: scan@contoso.com;`, `CEO <ceo@contoso.com>|scan@contoso.com`},
		{`:;`, ``},

		// Source routes and quoted local parts.
		{`<@a.example,@b.example:scan@contoso.com>`, `|scan@contoso.com`},
		{`@a.example,@b.example:scan@contoso.com`, `|scan@contoso.com`},
		{`@floor <mailto:scan@contoso.com>`, `@floor|scan@contoso.com`},
		{`@floor scan@contoso.com`, `@floor|scan@contoso.com`},
		{`@floor`, ``},
		{`"scan"@contoso.com`, `|scan@contoso.com`},
		{`Scanner <"scanner 3"@contoso.com>`, `Scanner|"scanner 3"@contoso.com`},
		{`"scanner 3"@contoso.com`, `|"scanner 3"@contoso.com`},
		{`"a@b, c"@contoso.com`, `|"a@b, c"@contoso.com`},
		{`<"a\"b\\"@contoso.com>`, `|"a\"b\\"@contoso.com`},
		{`<"(a)"@contoso.com>`, `|"(a)"@contoso.com`},
		{`<scan@[10.0.0.1]>`, `|scan@[10.0.0.1]`},
		{`scan@[IPv6:fe80::1]`, `|scan@[IPv6:fe80::1]`},

		// Other alphabets.
		{`Büro <büro@contoso.com>`, `Büro|büro@contoso.com`},
		{`Büro <scan@büro.example>`, `Büro|scan@büro.example`},
		{"Büro <m\xfcller@contoso.com>", `BÃ¼ro|müller@contoso.com`}, // two character sets at once
		{`ceo＠contoso.com`, ``},

		// Characters that nobody should write.
		{"Scan\x00ner\x013\x7f <scan@contoso.com>", `Scanner3|scan@contoso.com`},
		{"Scanner\t3 <scan@contoso.com>", `Scanner 3|scan@contoso.com`},
		{"Scanner\r3 <scan@contoso.com>", `Scanner 3|scan@contoso.com`},
		{"Scanner\u0085\u2028\u20293 <scan@contoso.com>", `Scanner 3|scan@contoso.com`},
		{"Scan\u0090ner <scan@contoso.com>", `Scanner|scan@contoso.com`},
		{"Scanner\u00a0\u3000\u28003 <scan@contoso.com>", `Scanner 3|scan@contoso.com`},
		{"\u202emoc.osotnoc@oec\u202c <scan@contoso.com>", `moc.osotnoc@oec|scan@contoso.com`},
		{"S\u200bc\u200da\ufeffn\u00adn\u2060e\u3164r <sc\u200ban@contoso.com>", `Scanner|scan@contoso.com`},
		{"Scanner\ufffd <scan@contoso.com>", `Scanner|scan@contoso.com`},

		// Lines.
		{"\"Scanner\n 3\"\r\n\t<scan@contoso.com>", `Scanner 3|scan@contoso.com`},
		{"Scanner 3 <scan@\n contoso.com>", `Scanner 3|scan@contoso.com`},
		{"Scanner\r\nBcc: x@y.example <scan@contoso.com>", `Scanner Bcc: x@y.example|scan@contoso.com`},
		{"Scanner\n X: y <scan@contoso.com>", `Scanner X: y|scan@contoso.com`},
		{"Scanner\n\n\nbody <scan@contoso.com>", `Scanner body|scan@contoso.com`},
		{"=?utf-8?q?Scan=0D=0ABcc:_x=00?= <scan@contoso.com>", `Scan Bcc: x|scan@contoso.com`},
		{strings.Repeat("long ", 400) + "<scan@contoso.com>", strings.Repeat("long ", 195) + `long|scan@contoso.com`},
		{"x" + strings.Repeat("é", 1000) + " <scan@contoso.com>", "x" + strings.Repeat("é", 249) + `|scan@contoso.com`},
	} {
		if got := showMailboxes(ParseList(tc.in)); got != tc.want {
			t.Errorf("%q\n got  %s\n want %s", tc.in, got, tc.want)
		}
	}
}

// TestDecodeName reads encoded words where and how they should not be written.
func TestDecodeName(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		// RFC 2047, section 8.
		{`=?US-ASCII?Q?Keith_Moore?=`, `Keith Moore`},
		{`=?ISO-8859-1?Q?Keld_J=F8rn_Simonsen?=`, `Keld Jørn Simonsen`},
		{`=?ISO-8859-1?Q?Andr=E9?= Pirard`, `André Pirard`},
		{"=?ISO-8859-1?B?SWYgeW91IGNhbiByZWFkIHRoaXMgeW8=?=\n =?ISO-8859-2?B?dSB1bmRlcnN0YW5kIHRoZSBleGFtcGxlLg==?=", `If you can read this you understand the example.`},
		{`=?ISO-8859-1?Q?a?=  =?ISO-8859-1?Q?b?=`, `ab`},
		{`=?ISO-8859-1?Q?a?= b`, `a b`},
		{`=?ISO-8859-1?Q?a?= =?ISO-8859-2?Q?_b?=`, `a b`},

		// Where and how they are split.
		{`=?utf-8?q?B=C3?= =?utf-8?q?=BCro?=`, `Büro`},
		{`=?utf-8?q?B=C3?==?UTF-8?Q?=BCro?=`, `Büro`},
		{`=?utf-8?b?QsM=?= =?utf-8?q?=BCro?=`, `Büro`},
		{`=?gb2312?B?yagh?= =?gb2312?q?=C3?= =?gb2312?q?=E8?=`, `扫!描`},
		{`Das=?utf-8?q?_B=C3=BCro?=3`, `Das Büro3`},
		{`"=?utf-8?q?B=C3=BCro?="`, `Büro`},
		{`"Das =?utf-8?q?B=C3=BCro?= 3"`, `Das Büro 3`},
		{`=?utf-8?q?B=C3=BCro im 3. Stock?=`, `Büro im 3. Stock`},
		{`=?utf-8?Q?"B=C3=BCro"?=`, `Büro`},
		{`=?utf-8?q?What??=`, `What?`},
		{`=?utf-8?q??= x`, `x`},

		// Letters of the encoding, labels, endings.
		{`=?Utf-8?b?QsO8cm8=?=`, `Büro`},
		{`=?utf-8*en?Q?B=C3=BCro?=`, `Büro`},
		{`=?utf-8*de-CH?B?QsO8cm8=?=`, `Büro`},
		{`=?us-ascii?q?B=FCro?=`, `Büro`},
		{`=?utf-8?q?B=FCro?=`, `=?utf-8?q?B=FCro?=`},
		{`=?iso-8859-1?q?B=C3=BCro?=`, `BÃ¼ro`}, // as every mail program shows it
		{`=?gb2312?q?B=C3=BCro?=`, `B眉ro`},      // which it is: nothing is wrong with it
		{`=?gb2312?q?=E6=89=AB=E6=8F=8F=E4?=`, `=?gb2312?q?=E6=89=AB=E6=8F=8F=E4?=`},
		{`=?gb2312?b?yajD6NI=?=`, `扫描`}, // cut off
		{`=?iso-8859-1?q?=C9=A8=C3=E8=D2=C7?=`, `É¨ÃèÒÇ`},
		{`=??q?=C9=A8=C3=E8=D2=C7?=`, `扫描仪`},
		{`=?iso-8859-1?q?=C9=A8=C3=E8=D2=C7@b?=`, `É¨ÃèÒÇ@b`},
		{`=?utf-8?q?=C9=A8=C3=E8=D2=C7?=`, `=?utf-8?q?=C9=A8=C3=E8=D2=C7?=`},
		{`=?utf-8?q?=B8=A8_a=40b?=`, `= ?utf-8?q?=B8=A8_a=40b?=`},
		{`=?iso-2022-jp?q?=95=A1=8D=87=8B=40?=`, `= ?iso-2022-jp?q?=95=A1=8D=87=8B=40?=`}, // the @ could be one
		{`=?gb2312?b?yajD6NLH?=`, `扫描仪`},
		{`=?gb18030?b?yajD6NLH?=`, `扫描仪`},
		{`=?big5?b?pkyq7b73?=`, `印表機`},
		{`=?koi8-r?b?88vBzsXS?=`, `Сканер`},
		{`=?iso-2022-jp?b?GyRCSiM5ZzUhGyhC?=`, `複合機`},
		{`=?x-unknown?q?B=C3=BCro?=`, `=?x-unknown?q?B=C3=BCro?=`},
		{`=?x-unknown?q?B=FCro?=`, `=?x-unknown?q?B=FCro?=`},
		{`=?x-unknown*en?q?B=FCro?=`, `=?x-unknown*en?q?B=FCro?=`},
		{`Das=?x-unknown?q?B=FCro?=3`, `Das =?x-unknown?q?B=FCro?= 3`},
		{`=?x-unknown?b?QvxybyE=?= =?x-unknown?q?B=FCro?=`, `=?x-unknown?b?QvxybyE=?= =?x-unknown?q?B=FCro?=`},
		{`=?utf-8?q?B=FC?= =?utf-8?q?ro?=`, `=?utf-8?q?B=FC?= ro`},
		{`"=?x-unknown?q?B=FCro?="`, `=?x-unknown?q?B=FCro?=`},
		// What cannot be decoded, and could be an address to others, is text.
		{`=?x-unknown?q?ceo=40contoso.com?=`, `= ?x-unknown?q?ceo=40contoso.com?=`},
		{`=?x-unknown?b?Y2VvQGNvbnRvc28uY29t?=`, `= ?x-unknown?b?Y2VvQGNvbnRvc28uY29t?=`},
		{`=?ibm273?b?g4WWtYOWlaOWopZLg5aU?=`, `= ?ibm273?b?g4WWtYOWlaOWopZLg5aU?=`},
		{`=?x-ebcdic-germany?b?g4WWtYOWlaOWopZLg5aU?=`, `= ?x-ebcdic-germany?b?g4WWtYOWlaOWopZLg5aU?=`},
		{`=?iso-2022-cn?b?GyQpRw5HWw8=?=`, `= ?iso-2022-cn?b?GyQpRw5HWw8= ?=`},
		{`=?x-unknown?q?B=FCro im Stock?=`, `= ?x-unknown?q?B=FCro im Stock?=`},
		{`=?x-unknown?q?B=FCro`, `= ?x-unknown?q?B=FCro`},
		{`=?x-unknown?b?QvxybyE?=`, `= ?x-unknown?b?QvxybyE?=`},
		{`=?x-unknown?q??=x`, `x`},
		{`=?x-unknown?q?B=FCr=6?=`, `= ?x-unknown?q?B=FCr=6?=`},
		{`=?x.unknown?q?B=FCro?=`, `= ?x.unknown?q?B=FCro?=`},
		{`=?x\unknown?q?B=FCro?=`, `= ?x\unknown?q?B=FCro?=`},
		{`=??q?B=FCro?=`, `Büro`},
		{`=?utf-7?q?ceo+AEA-x?=`, `ceo@x`},
		{`=?utf-8?b?QsO8cm8?=`, `Büro`},
		{`=?utf-8?b?QsO8 cm8=?=`, `Büro`},
		{`=?utf-8?b?QsO8c?=`, `Bü`},
		{`=?utf-8?b?Qg==w7xybw==?=`, `Büro`},
		{`=?utf-8?b?!!!?=`, ``},
		{`=?utf-8?q?B=C3=BCro`, `Büro`},
		{`=?utf-8?q?B=C3=BCro?`, `Büro`},
		{`=?utf-8?q?B=C3=BCro 3`, `Büro 3`},
		{`=?utf-8?q?B=C3=BC=?utf-8?q?ro?=`, `Büro`},
		{`=?utf-8?q?B=C3=BC =?utf-8?q?ro?=`, `Büro`},
		{`=?utf-8?q?50=_off=3?=`, `50= off=3`},

		// What is none.
		{`=?utf-8?x?abc?=`, `= ?utf-8?x?abc?=`},
		{`=?utf-8`, `= ?utf-8`},
		{`=?utf-8?q`, `= ?utf-8?q`},
		{`=?ut f-8?q?x?=`, `= ?ut f-8?q?x?=`},
		{`=?` + strings.Repeat("a", 60) + `?q?x?=`, `= ?` + strings.Repeat("a", 60) + `?q?x?=`},
		{`a=?b`, `a= ?b`},

		// An encoded word in an encoded word.
		{`=?utf-8?q?=3D=3Futf-8=3Fq=3Fceo=40contoso.com=3F=3D?=`, `ceo@contoso.com`},
		{`=?utf-8?b?PT91dGYtOD9iP1BUOTFkR1l0T0Q5aVAxQlVPVEZrUjFsMFQwUTVhVkF4UWxWUFZFWnJVakZzTUZRd1VUVmhWa0Y0WVROc1YySnNhM1pWUmtVNVVGUTRPVDg5Pz0=?=`, `= ?utf-8?b?Y2Vv?=`},
		{`"=?utf-8?q?=3D?=?utf-8?q?x?="`, `x`},

		// No name at all.
		{``, ``},
		{`""`, ``},
		{`''`, ``},
		{`<>`, ``},
		{`Scanner 3 <>`, `Scanner 3`},
		{`undisclosed-recipients:;`, ``},
		{`Scanner;`, `Scanner;`},
		{`"undisclosed-recipients:;"`, `undisclosed-recipients:;`},
	} {
		if got := DecodeName(Readable(tc.in)); got != tc.want {
			t.Errorf("decodeName(%q)\n got  %q\n want %q", tc.in, got, tc.want)
		}
	}
}

// TestEncodedWordsInLists divides lists at the right commas and finds the address behind encoded
// words.
func TestEncodedWordsInLists(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{`=?utf-8?q?M=C3=BCller,_Hans?= <scan@contoso.com>`, `Müller, Hans|scan@contoso.com`},
		{`=?utf-8?q?M=C3=BCller,_Hans?=, hr@contoso.com`, `Müller, Hans|hr@contoso.com`},
		{`=?utf-8?q?A:_"B"_(C?= <scan@contoso.com>`, `A: "B" (C|scan@contoso.com`},
		{`=?utf-8?q?B=C3=BCro?=<scan@contoso.com>`, `Büro|scan@contoso.com`},
		{`=?utf-8?q?B=C3=BCro?=scan@contoso.com`, `Büro|scan@contoso.com`},
		{`=?utf-8?q?B=C3=BCro im Stock?= scan@contoso.com`, `Büro im Stock|scan@contoso.com`},
		{`=?utf-8?q?ceo@contoso.com?= scan@contoso.com`, `ceo@contoso.com|scan@contoso.com`},
		{`=?utf-8?q?ceo=40contoso.com?=`, ``},
		{`scan@contoso.com (=?utf-8?q?B=C3=BCro?=)`, `Büro|scan@contoso.com`},
		{`=?utf-8?Q?Shop_Z=C3=BCrich_<shop@floor.local>?=`, `Shop Zürich|shop@floor.local`},
		{`=?utf-8?q?B=C3=BCro <scan@contoso.com>`, `Büro|scan@contoso.com`},
		{`=?utf-8?b?QsO8cm8= <scan@contoso.com>, "x?=" <hr@contoso.com>`, `Büro|scan@contoso.com x?=|hr@contoso.com`},
		{"=?utf-8?q?B=C3=BC?=\r\n\t=?utf-8?q?ro?=\r\n <scan@contoso.com>", `Büro|scan@contoso.com`},
	} {
		if got := showMailboxes(ParseList(tc.in)); got != tc.want {
			t.Errorf("%q\n got  %s\n want %s", tc.in, got, tc.want)
		}
	}
}

// TestRawNames reads names in bytes of a character set that nobody told. The bytes are those of
// iconv(1).
func TestRawNames(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		// GB2312 and GBK.
		{"\xc9\xa8\xc3\xe8\xd2\xc7", "扫描仪"},
		{"\xb8\xb4\xd3\xa1\xbb\xfa3\xc2\xa5", "复印机3楼"},
		{"HP\xb4\xf2\xd3\xa1\xbb\xfaA\xd7\xf9", "HP打印机A座"},
		{"\xc1\xaa\xcd\xa8", "联通"}, // valid UTF-8 but for the second byte
		{"\xc9\xcf\xba\xa3", "上海"}, // all bytes are half-width katakana too
		{"\xc6\xbd\xb0\xb2", "平安"},
		{"\xb3\xc2\x86\xb4\xb5\xc4\xc9\xa8\xc3\xe8\xd2\xc7", "陈喆的扫描仪"},
		{"\xd6\xec\xe9\x46\xbb\xf9", "朱镕基"},
		{"\xc2\xa5 \xb2\xbf", "楼 部"},
		{"\xc9\xa8\xc3\xe8\xd2\xc7\xa3\xa8\xd2\xbb\xc2\xa5\xa3\xa9", "扫描仪（一楼）"},
		// Big5.
		{"\xb1\xbd\xb4\x79\xbe\xb9", "掃描器"},
		{"\xa6\x4c\xaa\xed\xbe\xf7", "印表機"},
		{"\xbc\x76\xa6\x4c\xbe\xf7", "影印機"},
		// Shift-JIS. 複合機 ends in an @, ソ in a backslash.
		{"\x83\x58\x83\x4c\x83\x83\x83\x69\x81\x5b", "スキャナー"},
		{"\x95\xa1\x8d\x87\x8b\x40", "複合機"},
		{"3F \x95\xa1\x8d\x87\x8b\x40(A)", "3F 複合機(A)"},
		{"\x83\x5c\x83\x8a\x83\x85\x81\x5b\x83\x56\x83\x87\x83\x93", "ソリューション"},
		{"\x82\xd3\x82\xad\x82\xb2\x82\xa4\x82\xab", "ふくごうき"},
		{"\x93\x64\x92\x72\x8e\xba\x82\xcc\x95\xa1\x8d\x87\x8b\x40", "電池室の複合機"},
		{"\x88\xf3\x8d\xfc\x8b\x40", "印刷機"},
		{"\x82\x6c\x82\x65\x82\x6f\x87\x40", "ＭＦＰ①"},
		{"\xbd\xb7\xac\xc5", "ｽｷｬﾅ"},
		{"\xc3\xbd\xc4", "ﾃｽﾄ"},
		{"\xcc\xa7\xb8\xbd", "ﾌｧｸｽ"},
		{"\xba\xcb\xdf\xb0 \x95\xa1", "ｺﾋﾟｰ 複"},
		{"\xcc\xb8\xba\xde\xb3\xb7", "ﾌｸｺﾞｳｷ"}, // also three hanzi, but for the voice mark
		// EUC-JP and ISO-2022-JP.
		{"\xa5\xb9\xa5\xad\xa5\xe3\xa5\xca\xa1\xbc", "スキャナー"},
		{"\xca\xa3\xb9\xe7\xb5\xa1\xa4\xce\xa5\xb9", "複合機のス"},
		{"\x1b$B%9%-%c%J!<\x1b(B", "スキャナー"},
		{"3F \x1b$BJ#9g5!\x1b(J A", "3F 複合機 A"},
		{"\x1b$B%9%-%c", "$B%9%-%c"}, // cut off
		// UTF-8, cut off.
		{"扫描\xe4\xbb", "扫描"},
		{"Multifunktionsgerät beim Empf\xc3", "Multifunktionsgerät beim Empf"},
		{"Büro \xf0\x9f\x96", "Büro"},

		// Windows-1252.
		{"M\xfcller", "Müller"},
		{"B\xfcro Z\xfcrich", "Büro Zürich"},
		{"Cr\xe8me br\xfbl\xe9e", "Crème brûlée"},
		{"Se\xf1or N\xfa\xf1ez", "Señor Núñez"},
		{"Gr\xf6\xdfe", "Größe"},
		{"DIGITALIZA\xc7\xc3O", "DIGITALIZAÇÃO"}, // ÇÃ is 敲 in GB2312
		{"P\xc4\xc4KONTTORI, J\xe4\xe4h\xe4ll\xe4", "PÄÄKONTTORI, Jäähällä"},
		{"H\xc4L\xc4M\xc4KI", "HÄLÄMÄKI"},
		{"\xc4\xd6\xdc", "ÄÖÜ"}, // ﾄﾖﾜ
		{"\xc5\xc4\xd6 \xc6\xd8\xc5", "ÅÄÖ ÆØÅ"},
		{"\x84Kasse\x93 \x96 5 \x80", "„Kasse“ – 5 €"},
		{"Rock \x91n\x92Roll", "Rock ‘n’Roll"},
		{"Vis\x96\xe0\x96vis", "Vis–à–vis"},
		{"l\x92\xc9tage de l\x92\xe9cole", "l’Étage de l’école"},
		{"\x8eI\x8eEK \x8aKODA", "ŽIŽEK ŠKODA"},
		{"\xab\xc9t\xe9\xbb", "«Été»"},
		{"N\xb0 3 \xbd \xb2\xb3", "N° 3 ½ ²³"},
		{"\xc0 l'\xe9tage", "À l'étage"},
		{"Espa\xf1a \xa1\xbfQu\xe9?!", "España ¡¿Qué?!"},
		{"\xcdsland \xde\xf3r\xf0ur", "Ísland Þórður"},
		{"\xc9", "É"},
		// Cyrillic comes out wrong, but not as Chinese: Сканер in KOI8-R and Windows-1251, СКАНЕР
		// in Windows-1251.
		{"\xf3\xcb\xc1\xce\xc5\xd2", "óËÁÎÅÒ"},
		{"\xd1\xea\xe0\xed\xe5\xf0", "Ñêàíåð"},
		{"\xd1\xca\xc0\xcd\xc5\xd0", "ÑÊÀÍÅÐ"},
		// Too little to go by.
		{"3\xb2\xe3", "3²ã"},                 // 3层
		{"\xd5\xc5 \xce\xb0", "ÕÅ Î°"},       // 张 伟
		{"\xcc\xdf\xd8\xdd\xc0", "ÌßØÝÀ"},    // ﾌﾟﾘﾝﾀ
		{"\x93\x64\x92\x72", "“d’r"},         // 電池
		{"\xb9\xc9\xa1\xa1\xff", "¹É¡¡ÿ"},    // no byte is missing
		{"\x83\x58\x83\x4c\xa0", "ƒXƒL"},     // one byte that is none of Shift-JIS; the last is a blank
		{"\xc0\x80\xe0\x80", "À€à€"},         // what UTF-8 forbids
		{"B\xfcro \xe6\x89\xab", "Büro æ‰«"}, // Latin-1 and UTF-8 together
	} {
		if got := DecodeName(Readable(tc.in)); got != tc.want {
			t.Errorf("%q is read as %s, want %s", tc.in, got, tc.want)
		}
		// The address must come through whatever the name is read as.
		if got := showMailboxes(ParseList(tc.in + " <scan@contoso.com>")); got != tc.want+"|scan@contoso.com" {
			t.Errorf("%q <scan@contoso.com> is read as %s", tc.in, got)
		}
	}
}

// TestLanguageNames guesses the character set of all names of languages that x/text knows, in bytes
// as devices would write them: no western one may be taken for an Asian one, and of the others
// nearly all must be recognised.
func TestLanguageNames(t *testing.T) {
	for _, tc := range []struct {
		languages string
		encoding  encoding.Encoding
		least     int // names that are not ASCII
		wrong     int // of which may be misread
	}{
		{"de fr fr-CA es pt pt-PT it nl sv fi da nb nn is fo et ca gl ga gd sq lb fy af rm eu br id", charmap.Windows1252, 900, 0},
		{"ja", japanese.ShiftJIS, 150, 0},
		{"zh", simplifiedchinese.GBK, 150, 4},
	} {
		names, wrong := 0, 0
		for tag := range strings.FieldsSeq(tc.languages) {
			namer := display.Languages(language.MustParse(tag))
			for _, l := range display.Supported.BaseLanguages() {
				for _, name := range []string{namer.Name(l), strings.ToUpper(namer.Name(l))} {
					raw, err := tc.encoding.NewEncoder().String(name)
					if err != nil || IsASCII(raw) {
						continue // "Gĩkũyũ" is in no set of that time
					}
					names++
					if got := toUTF8(raw); got != name {
						wrong++
						t.Logf("%s: %q is read as %q", tag, name, got)
					}
				}
			}
		}
		if names < tc.least || wrong > tc.wrong {
			t.Errorf("%s: %d of %d names are misread, want at most %d", tc.encoding, wrong, names, tc.wrong)
		}
	}
}

// TestParseIsBounded reads what costs the parser most; without a bound it would take hours.
func TestParseIsBounded(t *testing.T) {
	for _, head := range []string{"", `"`, "x: <"} {
		for _, unit := range []string{"<", `"`, "(", `<"\"`, "(@", "=?utf-8?q?", "=?", "a@b(", "a:@;b", "<a@b", "＠.", "\xc4\xd6 ", "\x83\x40", "=?a?b?", "=?utf-8?q?=3D=3F"} {
			body := head + strings.Repeat(unit, 200_000/len(unit))
			for _, e := range append(ParseList(body), Named{DecodeName(Readable(body)), scan}) {
				if bad := addresstest.BadField("From", Write("From", SafeName(e.Name, scan), scan)); bad != "" {
					t.Errorf("200 kB of %q: %s", unit, bad)
				}
			}
		}
	}
}

func BenchmarkParseMailboxes(b *testing.B) {
	for _, tc := range []string{" Printer 3 <root@printer>", "\"Müller, Hans\" <hans@contoso.com>", "\xc9\xa8\xc3\xe8\xd2\xc7 <scan@contoso.com>", "=?utf-8?q?B=C3=BCro?= <scan@contoso.com>"} {
		b.Run(fmt.Sprintf("%.12q", tc), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for _, e := range ParseList(tc) {
					Write("From", SafeName(e.Name, scan), scan)
				}
			}
		})
	}
}
