// Package plaintext makes one line of a stranger's text: for a terminal, a log, a page, or an SMTP
// reply. What could do something there other than be read goes: control characters steer terminals,
// line ends forge lines of a log or of a protocol, characters of direction make "moc.osotnoc@oec"
// read as an address, and invisible ones hide that two names differ.
//
// A [Style] says what else a place needs. Nothing is decided by what a text means, and no style
// lets more through than another does of what is named above.
package plaintext

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// A Style is how a place shows foreign text. The zero value joins white space, drops what cannot be
// shown, and has no limit.
type Style struct {
	// Exact keeps blanks as many as there are; other white space cannot be shown then. Otherwise
	// white space of any kind and length becomes one blank, and none is left at the ends.
	Exact bool

	ASCII    bool   // nothing but printable ASCII
	Not      string // characters of ASCII that cannot be shown either, such as quotes that stand around the text
	Bad      rune   // stands for each character that cannot be shown; 0 drops it. Beyond ASCII, a byte that is no UTF-8 has U+FFFD
	Bytewise bool   // Bad stands for each byte of such a character

	// MaxRunes and MaxBytes are how long the result is at most; 0 is no limit. Cut ends a text that
	// was longer, within the limit, which is longer than Cut.
	MaxRunes, MaxBytes int
	Cut                string
}

// Line returns the text as one line of valid UTF-8.
func (s Style) Line(text string) string {
	if !s.fine(text) {
		var b strings.Builder
		b.Grow(len(text))
		for i, size := 0, 0; i < len(text); i += size {
			var r rune
			r, size = utf8.DecodeRuneInString(text[i:])
			s.write(&b, r, size)
		}
		text = b.String()
	}
	if !s.Exact {
		text = strings.Join(strings.Fields(text), " ")
	}
	return s.shorten(text)
}

// fine reports whether the text is printable ASCII, as most texts are, so that nothing has to be
// mapped.
func (s Style) fine(text string) bool {
	for i := range len(text) {
		if text[i] < ' ' || text[i] >= 0x7f {
			return false
		}
	}
	return s.Not == "" || !strings.ContainsAny(text, s.Not)
}

// write writes a character that has that many bytes in the text, or what stands for it.
func (s Style) write(b *strings.Builder, r rune, size int) {
	switch {
	case !s.Exact && unicode.IsSpace(r):
		b.WriteByte(' ')
	case s.shows(r, size):
		b.WriteRune(r)
	case s.Bad != 0 && !s.ASCII && r == utf8.RuneError:
		b.WriteRune(utf8.RuneError)
	case s.Bad != 0 && s.Bytewise:
		b.WriteString(strings.Repeat(string(s.Bad), size))
	case s.Bad != 0:
		b.WriteRune(s.Bad)
	}
}

func (s Style) shows(r rune, size int) bool {
	switch {
	case r < 0x7f:
		return r >= ' ' && strings.IndexByte(s.Not, byte(r)) < 0
	case s.ASCII, r == utf8.RuneError && size == 1: // a byte that is no UTF-8
		return false
	}
	return unicode.IsPrint(r) && !Hidden(r)
}

// Hidden reports whether a character is not seen, or turns text around: control and formatting
// characters, separators of lines and paragraphs, and fillers that look like a blank and count as
// letters. Blanks of any width are seen.
func Hidden(r rune) bool {
	switch r {
	case 0x34f, 0x115f, 0x1160, 0x2028, 0x2029, 0x2800, 0x3164, 0xffa0: // a joiner, fillers of Hangul, separators, an empty cell of Braille
		return true
	}
	return r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0xad && unicode.Is(unicode.Cf, r)
}

// shorten keeps the limits.
func (s Style) shorten(text string) string {
	if s.MaxRunes > 0 && utf8.RuneCountInString(text) > s.MaxRunes {
		keep := max(0, s.MaxRunes-utf8.RuneCountInString(s.Cut))
		for i := range text {
			if keep == 0 {
				text = text[:i] + s.Cut
				break
			}
			keep--
		}
	}
	if s.MaxBytes > 0 && len(text) > s.MaxBytes {
		end := max(0, s.MaxBytes-len(s.Cut))
		for end > 0 && !utf8.RuneStart(text[end]) {
			end--
		}
		text = text[:end] + s.Cut
	}
	return text
}
