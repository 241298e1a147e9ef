package address

import (
	"encoding/base64"
	"strings"
	"unicode/utf8"
)

// Line lengths of RFC 5322, section 2.1.1, and RFC 2047, section 2.
const (
	wantLine     = 78  // a line should have no more characters
	wantWordLine = 76  // a line with an encoded word in it may have no more
	maxWord      = 75  // an encoded word may have no more
	wordFrame    = 12  // of which "=?utf-8?b?" and "?=" take
	MaxName      = 128 // characters of a display name that we write; more would only push the address out of sight
	maxNameBytes = 384 // the same in UTF-8, so that the whole stays within the 998 octets of one line
	maxText      = 500 // characters of the original From that we keep for reference
)

// Write writes a mailbox (RFC 5322, section 3.4) as the body of a field of the given name, folded,
// in ASCII: the strict counterpart of ParseList. It returns the empty string for an address that
// must not leave ([Spec.Valid]).
func Write(field, name string, a Spec) string {
	if !a.Valid() {
		return ""
	}
	addr := a.ASCII().String()
	if name = cutName(TidyName(name)); name == "" {
		return addr
	}
	addr = "<" + addr + ">"
	phrase, words := encodePhrase(field, name)
	if words {
		return fold(field, phrase+" "+addr, wantWordLine)
	}
	return fold(field, phrase+" "+addr, wantLine)
}

// encodePhrase writes a display name: bare where it is made of atoms, quoted where it has
// specials, as encoded words (RFC 2047, section 5) where it is not ASCII or
// could not be folded otherwise.
func encodePhrase(field, name string) (phrase string, words bool) {
	switch {
	case strings.Contains(name, "=?"):
		return encodeAround(field, name), true
	case !IsASCII(name) || hasWord(name, maxWord):
		return encodeWords(field, name), true
	case isAtoms(name):
		return name, false
	}
	return Quote(name), false
}

// encodeAround writes a name with encoded words in it that nobody here can decode: they stay.
// Blanks between two encoded words are none of the text (RFC 2047, section 6.2), so those beside
// other words are encoded with these.
func encodeAround(field, name string) string {
	var done, text []string
	flush := func(behind string) {
		if s := strings.Join(text, " "); s != "" && isAtoms(s) && !hasWord(s, maxWord) {
			done = append(done, s)
		} else if s != "" {
			before := ""
			if len(done) > 0 {
				before = " "
			}
			done = append(done, encodeWords(field, before+s+behind))
		}
		text = nil
	}
	for w := range strings.SplitSeq(name, " ") {
		if isOpaque(w) {
			flush(" ")
			done = append(done, w)
			continue
		}
		text = append(text, w)
	}
	flush("")
	return strings.Join(done, " ")
}

// hasWord reports whether a word of s is longer than most.
func hasWord(s string, most int) bool {
	for len(s) > most {
		i := strings.IndexByte(s[:most+1], ' ')
		if i < 0 {
			return true
		}
		s = s[i+1:]
	}
	return false
}

// isAtoms reports whether s consists of atoms with blanks between them (RFC 5322, section 3.2.3).
func isAtoms(s string) bool {
	for i := range len(s) {
		if s[i] != ' ' && !isAtext(s[i]) {
			return false
		}
	}
	return true
}

// EncodeText writes unstructured text (RFC 5322, section 2.2.1), cut to maxText
// characters, so that no line can pass 998 octets. White space becomes single blanks.
func EncodeText(field, text string) string {
	if !isSingle(text) {
		text = singleBlanks(strings.Map(Printable, text))
	}
	if text = cutRunes(text, maxText); !IsASCII(text) || hasWord(text, wantLine-1) {
		return fold(field, encodeWords(field, text), wantWordLine)
	}
	return fold(field, text, wantLine)
}

// cutRunes shortens s to at most n characters.
func cutRunes(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for i := range s {
		if n--; n < 0 {
			return strings.TrimRight(s[:i], " ")
		}
	}
	return s
}

// encodeWords writes text as encoded words with blanks between them, each of whole characters. The
// first leaves room for the name of the field.
func encodeWords(field, text string) string {
	const each = (maxWord - wordFrame) / 4 * 3 // bytes
	room := (wantWordLine - len(field) - len(": ") - wordFrame) / 4 * 3
	if room < utf8.UTFMax || room > each {
		room = each
	}
	var b strings.Builder
	for text != "" {
		n := min(room, len(text))
		for n < len(text) && !utf8.RuneStart(text[n]) {
			n--
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString("=?utf-8?b?")
		b.WriteString(base64.StdEncoding.EncodeToString([]byte(text[:n])))
		b.WriteString("?=")
		text, room = text[n:], each
	}
	return b.String()
}

// fold breaks a field body at single blanks so that its lines stay within limit where
// they can. It uses a bare LF, as the milter protocol does.
func fold(field, body string, limit int) string {
	col := len(field) + len(": ")
	if col+len(body) <= limit {
		return body
	}
	var b strings.Builder
	b.Grow(len(body) + 8)
	for i, w := range strings.Split(body, " ") {
		switch {
		case i == 0:
		case col+1+len(w) > limit:
			b.WriteString("\n ")
			col = 1
		default:
			b.WriteByte(' ')
			col++
		}
		b.WriteString(w)
		col += len(w)
	}
	return b.String()
}

// SafeName makes a display name such that nobody can take it for another sender's address: an @
// before anything with a dot in it is written " at ". This is the one documented way in which a
// name may hold an address. As they are stay:
//
//   - the identity itself, as a word of its own;
//   - an @ before a word without any dot, as in "scanner3@floor 3" and "ceo@contoso": that is how devices call
//     themselves, it is no address on the internet, and the name "CEO of Contoso" would pretend as much;
//   - other ways to write an address, such as "ceo%contoso.com" or "ceo (at) contoso.com".
//
// Look-alikes of @ and dot count as such. The name also gets its normal form ([TidyName]), and no
// more than MaxName characters.
func SafeName(name string, identity Spec) string {
	name = TidyName(name)
	if strings.Contains(name, "=?") && (len(name) > maxNameBytes || strings.ContainsAny(name, ats) || plainLength(name) > MaxName) {
		// What a reader would make of the words beside an @ nobody here knows; and a name is not cut
		// within them.
		name = disarm(name, func(string) bool { return false })
	}
	if strings.IndexByte(name, '@') >= 0 || !IsASCII(name) && strings.ContainsAny(name, ats) {
		name = TidyName(defuse(name, identity))
	}
	return cutName(name)
}

// plainLength is how many characters of a name stand outside of words that nobody here can decode.
func plainLength(name string) int {
	n := 0
	for w := range strings.SplitSeq(name, " ") {
		if !isOpaque(w) {
			n += utf8.RuneCountInString(w) + 1
		}
	}
	return n - 1
}

// What a reader takes for an @ or a dot (Unicode Technical Standard 39, confusables.txt, and the
// compatibility forms).
const (
	ats  = "@＠﹫"
	dots = ".。．｡․‥…﹒·‧∙⋅・･•٠۰۔܁܂ꓸ꘎𐩐𝅭"
)

// defuse writes " at " for each @ that has something with a dot behind it.
func defuse(name string, identity Spec) string {
	list := strings.Split(name, " ")
	for i, w := range list {
		if !strings.ContainsAny(w, ats) || isIdentity(w, identity) {
			continue
		}
		var b strings.Builder
		for j, r := range w {
			rest := w[j+utf8.RuneLen(r):]
			if strings.ContainsRune(ats, r) && (strings.ContainsAny(rest, dots) || dotFollows(rest, list[i+1:])) {
				b.WriteString(" at ")
			} else {
				b.WriteRune(r)
			}
		}
		list[i] = b.String()
	}
	return strings.Join(list, " ")
}

// dotFollows reports whether what stands behind an @ goes on with a dot in the next words: "ceo@
// contoso.com", "ceo@contoso .com".
func dotFollows(rest string, next []string) bool {
	if len(next) == 0 {
		return false
	}
	if rest == "" {
		return strings.ContainsAny(next[0], dots) || dotFollows(next[0], next[1:])
	}
	r, _ := utf8.DecodeRuneInString(next[0])
	return strings.ContainsRune(dots, r)
}

// isIdentity reports whether a word, without what may stand around an address, is the identity.
func isIdentity(w string, identity Spec) bool {
	a := SplitAddress(strings.Trim(w, `<>()[]"',;:`))
	return strings.Count(w, "@") == 1 && a.Domain != "" && a.Same(identity)
}

// cutName shortens a name to what we write. An address at the cut goes as a whole, lest it become
// another one.
func cutName(name string) string {
	if len(name) <= MaxName || len(name) <= maxNameBytes && strings.Contains(name, "=?") {
		return name
	}
	cut := cutRunes(name, MaxName)
	if len(cut) > maxNameBytes {
		cut = strings.TrimRight(strings.ToValidUTF8(cut[:maxNameBytes], ""), " ")
	}
	if len(cut) < len(name) && name[len(cut)] != ' ' {
		if i := strings.LastIndexByte(cut, ' ') + 1; strings.ContainsAny(cut[i:], ats) {
			cut = cut[:i]
		}
	}
	return TidyName(cut)
}
