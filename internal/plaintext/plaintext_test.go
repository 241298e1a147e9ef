package plaintext

import (
	"strings"
	"testing"
	"unicode/utf8"
)

var (
	terminal = Style{Exact: true, Bad: '?'}
	short    = Style{MaxRunes: 5, Cut: "…"}
	reply    = Style{Exact: true, ASCII: true, Bad: '?', MaxBytes: 8}
	quoted   = Style{Exact: true, ASCII: true, Not: `"<>`, Bad: '?', Bytewise: true, MaxBytes: 8, Cut: "..."}
	bytes    = Style{MaxBytes: 6, Cut: "…"}
	everyone = []Style{{}, terminal, short, reply, quoted, bytes, {Bad: utf8.RuneError}}
)

func TestLine(t *testing.T) {
	for _, tc := range []struct {
		style    Style
		in, want string
	}{
		{Style{}, "", ""},
		{Style{}, "Küche 3", "Küche 3"},
		{Style{}, " two\t words\r\n and\u00a0more\u2028 ", "two words and more"},
		{Style{}, "a\x1b[31mred\x07", "a[31mred"},
		{Style{}, "ceo\u202emoc.osotnoc\u2066x", "ceomoc.osotnocx"},
		{Style{}, "a\u200bb\u115fc\u3164d\u2800e\u034f", "abcde"},
		{Style{}, "bad\xffbyte\xc3", "badbyte"},
		{Style{}, "kept \ufffd", "kept \ufffd"},
		{Style{}, "e\u0301", "e\u0301"},
		{terminal, "v=spf1  -all", "v=spf1  -all"},
		{terminal, "a\tb\nc\u00a0d\u2028e", "a?b?c?d?e"},
		{terminal, "a\u202eb\u3164c\xffd", "a?b?c\ufffdd"},
		{short, "12345", "12345"},
		{short, "123456", "1234…"},
		{short, "äöüßéè", "äöüß…"},
		{short, "1    2    3    4", "1 2 …"},
		{reply, "Küche\r\n", "K?che??"},
		{reply, "0123456789", "01234567"},
		{quoted, "K\u00fc\"\n", "K????"},
		{quoted, "<0123456789", "?0123..."},
		{bytes, "äöü", "äöü"},
		{bytes, "äöüa", "ä…"},
		{bytes, "1234567", "123…"},
	} {
		if got := tc.style.Line(tc.in); got != tc.want {
			t.Errorf("%+v: Line(%q) = %q, want %q", tc.style, tc.in, got, tc.want)
		}
	}
}

// dangerous finds what must never come out. It is a list of its own, by Unicode's names, so that a gap in the code shows.
func dangerous(r rune) bool {
	for _, span := range [][2]rune{
		{0, 0x1f}, {0x7f, 0x9f}, // control
		{0xad, 0xad},                                       // soft hyphen
		{0x61c, 0x61c}, {0x200e, 0x200f}, {0x202a, 0x202e}, // marks, embeddings and overrides of direction
		{0x2066, 0x2069},                   // isolates
		{0x200b, 0x200d}, {0x2060, 0x2064}, // of no width
		{0x2028, 0x2029}, {0xfeff, 0xfeff}, // separators, byte order mark
		{0x115f, 0x1160}, {0x3164, 0x3164}, {0xffa0, 0xffa0}, // fillers
		{0xe0000, 0xe007f}, // tags
	} {
		if span[0] <= r && r <= span[1] {
			return true
		}
	}
	return false
}

func FuzzLine(f *testing.F) {
	for _, s := range []string{"", "plain", "a\r\nb\x00", "\u202e\u2066\ufeff", "\xff\xfe\xc3(", strings.Repeat("ä", 99), "\u115f\U000e0041"} {
		f.Add(s, 0)
		f.Add(s, 7)
	}
	f.Fuzz(func(t *testing.T, in string, limit int) {
		for _, style := range everyone {
			if limit > 3 { // longer than each mark
				style.MaxRunes, style.MaxBytes = limit, limit
			}
			got := style.Line(in)
			if !utf8.ValidString(got) || strings.ContainsFunc(got, dangerous) {
				t.Fatalf("%+v: Line(%q) = %q", style, in, got)
			}
			if style.MaxRunes > 0 && len([]rune(got)) > style.MaxRunes || style.MaxBytes > 0 && len(got) > style.MaxBytes {
				t.Fatalf("%+v: Line(%q) = %q, which is too long", style, in, got)
			}
			if style.ASCII && strings.ContainsFunc(got, func(r rune) bool { return r > '~' || strings.ContainsRune(style.Not, r) }) {
				t.Fatalf("%+v: Line(%q) = %q", style, in, got)
			}
			if again := style.Line(got); again != got && !strings.HasSuffix(got, " "+style.Cut) {
				t.Fatalf("%+v: Line(%q) = %q, and that again %q", style, in, got, again)
			}
		}
	})
}
