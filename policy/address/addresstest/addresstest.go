// Package addresstest judges fields that were written, by rules of its own, and has strange ones to
// begin with.
package addresstest

import "strings"

// StrangeFields are seeds: what devices, broken programs and attackers write.
var StrangeFields = []string{
	"Scanner 3 <scan@contoso.com>", "scanner3@floor 3 <bad", "\"Müller, Hans\" <hans@contoso.com>", "=?utf-8?q?=0D=0ABcc:_x@y?= <a@b.c>",
	"=?gb2312?b?yfzX?= <a@b.c>", "a <b> <c@d.e>, \"", "(((", "<<a@b>", "undisclosed-recipients:;", "\x00\xff@", "a@b\r\nBcc: c@d", "@a,@b:c@d.e",
	"=?utf-8?b?", "ceo@contoso.com\u202e <x@y.z>", strings.Repeat("a ", 600) + "<a@b.c>", strings.Repeat("ü", 600),
	"\xc9\xa8\xc3\xe8\xd2\xc7 scan@contoso.com", "\x95\xa1\x8d\x87\x8b\x40 <scan@contoso.com>", "\xbd\xb7\xac\xc5 <a@b.c>", "\x1b$B%9%-\x1b(B <a@b.c>",
	"=?utf-8?q?=3D=3Futf-8=3Fq=3Fceo=40contoso.com=3F=3D?= <scan@contoso.com>", "A: B: x@y.z;;", "\"a\\@b.c\" <a@b.c>", "'\"x\"' <a@b.c>",
	"scan(a(b)c)@contoso.com", "\"john doe\"@contoso.com", "<mailto:a@b.c>", "=?utf-8*en?B?w7w?==?UTF-8?q?=C3?==?utf-8?Q?=BC?=", "ceo＠contoso。com <a@b.c>",
	"ceo @ contoso .com <a@b.c>", "\"scan@contoso.com\" <scan@contoso.com>", strings.Repeat("漢", 200) + " <a@b.c>",
	strings.Repeat("x", 125) + " scan@contoso.com <a@b.c>", "'" + strings.Repeat("x", 126) + "' 'y <a@b.c>", "<a@[IPv6:::1]>", "a@b.c;d@e.f",
	"Scanner: scan@contoso.com;", "=?utf-8?q?CEO_=3Cceo=40contoso.com=3E?=: a@b.c;", "Scanner <\"scan\"@contoso.com>", "Scan (a) ner <scan@contoso.com>",
	"scan@contoso.com (Scanner)", "Scanner\r\n <scan@contoso.com>", "Scanner 3 <scan@contoso.com>\r", "=?cp949?B?vbrEs7PK?= <scan@contoso.com>", "=?x-mfp?q?B=FCro?= 3 <scan@contoso.com>",
	"Canon =?x-mfp?q?B=FCro?= =?x-mfp?q?=FC?= \xfc <a@b.c>", "=?x-mfp?q?=FC?= @ contoso.com <a@b.c>", "=?iso-2022-kr?B?GyQpQw49Og8=?= <scan@contoso.com>", "=?utf-7?q?ceo+AEA-x=2Ey?= <scan@contoso.com>",
	"=?utf-8?q?B=FC?= =?utf-8?q?ro?= <scan@contoso.com>", "=?ibm273?b?g4WWtYOWlaOWopZLg5aU?= <scan@contoso.com>", "=?x-mfp?q?=FC?= =?utf-8?q?=C3=BC?= <scan@contoso.com>",
}

// BadField says what is wrong with a field that we write anew: more than BadValue, which also holds
// for what stays as it is.
func BadField(name, value string) string {
	for i, line := range strings.Split(name+": "+value, "\n") {
		if n := len(line); n > 78 && strings.Contains(strings.TrimLeft(line, " "), " ") && (i > 0 || strings.Count(line, " ") > 1) {
			return "a line that could have been broken"
		}
		if strings.Contains(line, "=?") && len(line) > 76 {
			return "a line with an encoded word that is too long"
		}
	}
	for w := range strings.FieldsSeq(value) {
		if strings.Contains(w, "=?") && (len(w) > 75 || !encoded.MatchString(w)) {
			return "an encoded word that is none"
		}
	}
	if strings.Contains(value, `"=?`) {
		return "an encoded word in quotes"
	}
	return BadValue(value)
}

// BadValue says what is wrong with a field body that we write.
func BadValue(v string) string {
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
