package policy

import (
	"mime"
	"strings"
	"unicode/utf8"
)

// Line lengths of RFC 5322, section 2.1.1: a line should have no more than 78 characters.
const (
	wantLine = 78
	maxName  = 256 // characters of a display name that we write; the rest helps nobody
	maxText  = 500 // characters of the original From that we keep for reference
)

// writeMailbox writes a mailbox (RFC 5322, section 3.4) as the body of a field of the
// given name, folded, in ASCII: the strict counterpart of parseMailboxes.
func writeMailbox(field, name string, a Address) string {
	if !isASCII(a.Domain) {
		a.Domain = asciiDomain(a.Domain) // RFC 5891; a reader shows it as it was
	}
	addr := a.String()
	if name == "" {
		return addr
	}
	return fold(field, encodePhrase(name)+" <"+addr+">")
}

// encodePhrase writes a display name: bare where it is made of atoms, quoted where it has
// specials, as encoded words (RFC 2047, section 5) where it is not ASCII or
// could not be folded otherwise.
func encodePhrase(name string) string {
	if utf8.RuneCountInString(name) > maxName {
		name = strings.TrimRight(string([]rune(name)[:maxName]), " ")
	}
	if !isASCII(name) {
		return mime.BEncoding.Encode("utf-8", name)
	}
	for w := range strings.SplitSeq(name, " ") {
		if !isAtom(w) {
			return quote(name)
		}
	}
	return name
}

func isAtom(s string) bool {
	if s == "" || strings.HasPrefix(s, "=?") {
		return false
	}
	for i := range len(s) {
		if !isAtext(s[i]) {
			return false
		}
	}
	return true
}

// encodeText writes unstructured text (RFC 5322, section 2.2.1), cut to maxText
// characters, so that no line can pass 998 octets.
func encodeText(field, text string) string {
	if utf8.RuneCountInString(text) > maxText {
		text = strings.TrimRight(string([]rune(text)[:maxText]), " ")
	}
	if !isASCII(text) {
		text = mime.BEncoding.Encode("utf-8", text)
	}
	return fold(field, text)
}

// fold breaks a field body at spaces so that its lines stay within wantLine where
// they can. It uses a bare LF, as the milter protocol does.
func fold(field, body string) string {
	if len(field)+2+len(body) <= wantLine {
		return body
	}
	var b strings.Builder
	b.Grow(len(body) + 8)
	col := len(field) + 2
	for i, w := range strings.Split(body, " ") {
		if i > 0 {
			if col+1+len(w) > wantLine && col > 1 && w != "" {
				b.WriteString("\n ")
				col = 1
			} else {
				b.WriteByte(' ')
				col++
			}
		}
		b.WriteString(w)
		col += len(w)
	}
	return b.String()
}

// safeName is the one documented way in which a display name may hold an address: an @ that
// could make a reader take the name for another sender's address is written " at ". An @ in other
// text ("scanner3@floor 3") stays.
func safeName(name string, identity Address) string {
	if !strings.ContainsAny(name, "@＠﹫") {
		return name
	}
	list := strings.Fields(name)
	for i, w := range list {
		bare := strings.Trim(w, `<>()[]"',;:`)
		local, domain, ok := cutAt(bare)
		if !ok || local == "" || !strings.ContainsAny(domain, ".。．｡") {
			continue
		}
		if (Address{Local: local, Domain: domain}).Same(identity) {
			continue
		}
		list[i] = strings.NewReplacer("@", " at ", "＠", " at ", "﹫", " at ").Replace(w)
	}
	return strings.Join(strings.Fields(strings.Join(list, " ")), " ") // "@@b.c" leaves blanks
}

func cutAt(s string) (local, domain string, ok bool) {
	i := strings.LastIndexAny(s, "@＠﹫")
	if i < 0 {
		return "", "", false
	}
	_, n := utf8.DecodeRuneInString(s[i:])
	return s[:i], s[i+n:], true
}
