package address

import (
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/sendas/sendas/internal/plaintext"
)

// A Named is one entry of a From-like field: a decoded display name and an
// address, each as far as it could be recognised.
type Named struct {
	Name string
	Spec Spec
}

// ParseList reads the body of a From, Sender or Reply-To field as devices write
// it, not as RFC 5322, section 3.6.2 wants it. It never fails: what is no
// address is display name, and a field without any address gives no entry.
//
// It repairs missing angle brackets, missing closing brackets and quotes, bare @, commas,
// semicolons and colons in names, raw 8-bit text, and encoded words in odd places. Groups give
// their members, and their name to the first of them if it has no other; so do comments. Source
// routes are ignored.
func ParseList(body string) []Named { return parseEntries(Readable(body)) }

// parseEntries reads a list that is readable text.
func parseEntries(text string) []Named {
	var (
		list    []Named
		pending string // the name so far of an entry whose address has not come yet
	)
	for _, e := range splitEntries(dropRoute(text)) {
		n := parseEntry(e.text)
		if n.Spec.IsZero() {
			if n.Name != "" {
				pending += n.Name + e.end
			}
			continue
		}
		if pending != "" { // "Müller, Hans <hans@contoso.com>": the comma was in the name
			n.Name = strings.TrimRight(pending+n.Name, ",; ")
			pending = ""
		}
		if n.Name == "" {
			n.Name = DecodeName(e.group)
		}
		list = append(list, n)
	}
	return list
}

// maxSender is how many bytes of a field are read; RFC 5322, section 2.1.1, allows a line 998.
const maxSender = 1000

// Readable returns a field body as text in UTF-8: without folds (RFC 5322, section 2.2.3), without
// control characters, 8-bit bytes decoded by [toUTF8].
//
// Of a text longer than any real sender it keeps the two ends: what follows looks for closing
// quotes and brackets again and again, and must not keep a processor busy for a stranger's 100 kB.
func Readable(s string) string {
	if isPlain(s) && len(s) <= maxSender {
		return s
	}
	if len(s) > maxSender {
		s = ends(s)
	}
	return singleBlanks(strings.Map(Printable, toUTF8(s)))
}

// ends shortens s to maxSender bytes, at its middle. The rear begins with a whole word, lest an
// address come out of the middle of another, or half a character spoil the rest.
func ends(s string) string {
	front, rear := s[:maxSender/2], s[len(s)-maxSender/2+1:]
	if i := strings.IndexByte(rear, ' '); i >= 0 {
		rear = rear[i+1:]
	}
	if utf8.ValidString(s) {
		front, rear = strings.ToValidUTF8(front, ""), strings.ToValidUTF8(rear, "")
	}
	return front + " " + rear
}

// isPlain reports whether s is printable ASCII.
func isPlain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// singleBlanks makes all white space, also that of Unicode, single blanks.
func singleBlanks(s string) string { return strings.Join(strings.Fields(s), " ") }

// isSingle reports whether s is printable ASCII with single blanks, and only inside.
func isSingle(s string) bool {
	before := byte(' ')
	for i := range len(s) {
		c := s[i]
		if c < ' ' || c >= 0x7f || c == ' ' && before == ' ' {
			return false
		}
		before = c
	}
	return before != ' ' || s == ""
}

// Printable maps what must not come into a header we write: control characters, line
// and paragraph separators, and what nobody sees: zero-width characters, fillers, and those that
// turn the direction of text around (they make "moc.osotnoc@oec" read as an address).
func Printable(r rune) rune {
	switch {
	case ' ' <= r && r < 0x7f:
		return r
	case r == '\t' || r == '\n' || r == '\r' || r == 0x85 || r == 0x2028 || r == 0x2029 || r == 0x2800: // the last is Braille
		return ' '
	case r == utf8.RuneError, plaintext.Hidden(r):
		return -1
	}
	return r
}

// An entry is a part of a list of addresses, with the separator behind it and a blank, and the name
// of the group that begins with it.
type entry struct{ text, end, group string }

// splitEntries divides at the commas and semicolons that separate addresses: outside quotes,
// comments, angle brackets and encoded words. A quote or bracket that is never closed does not
// count.
func splitEntries(s string) []entry {
	var (
		list  []entry
		group string
		start int
	)
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"', '<', '(', '=':
			i = skip(s, i)
		case ':':
			if isGroup(s[start:i], s[i+1:]) {
				group, start = s[start:i], i+1
			}
		case ',', ';':
			list = append(list, entry{s[start:i], s[i:i+1] + " ", group})
			group, start = "", i+1
		}
	}
	return append(list, entry{s[start:], ", ", group})
}

// isGroup reports whether a colon ends the name of a group: a semicolon, with nothing or some
// address between them, ends the list that follows. "Scanner: 3rd floor" is none, nor is a group
// that was not finished.
func isGroup(name, list string) bool {
	if name = strings.TrimSpace(name); name == "" || strings.ContainsAny(name, "@<>") {
		return false
	}
	for i := strings.IndexByte(list, ';'); i >= 0; {
		behind := strings.TrimLeft(list[i+1:], " ")
		if behind == "" || behind[0] == ',' || behind[0] == ';' {
			return strings.Contains(list[:i], "@") || strings.Trim(list[:i], " ;") == ""
		}
		next := strings.IndexByte(list[i+1:], ';')
		if next < 0 {
			break
		}
		i += 1 + next
	}
	return false
}

// dropRoute takes the source route off an address without brackets: "@a,@b:user@domain" (RFC 5321,
// appendix C).
func dropRoute(s string) string {
	if !strings.HasPrefix(strings.TrimLeft(s, " "), "@") {
		return s
	}
	route, rest, ok := strings.Cut(s, ":")
	if !ok || strings.Contains(route, "<") {
		return s
	}
	return rest
}

// skip moves from an opening character to where it is closed, or stays where nothing closes it.
func skip(s string, i int) int {
	end := -1
	switch s[i] {
	case '"':
		end = closingQuote(s, i)
	case '<':
		end = closingAngle(s, i)
	case '(':
		end = closingParen(s, i)
	case '=':
		end = closingWord(s, i)
	}
	return max(i, end)
}

// closingQuote returns where the quoted-string that begins at i ends, or -1.
func closingQuote(s string, i int) int {
	for j := i + 1; j < len(s); j++ {
		switch s[j] {
		case '\\':
			j++
		case '"':
			return j
		}
	}
	return -1
}

func closingAngle(s string, i int) int {
	for j := i + 1; j < len(s); j++ {
		switch s[j] {
		case '"', '(':
			j = skip(s, j)
		case '<': // "<< a@b >": the later one counts
			return -1
		case '>':
			return j
		}
	}
	return -1
}

// closingParen returns where the comment that begins at i ends; comments nest.
func closingParen(s string, i int) int {
	depth := 0
	for j := i; j < len(s); j++ {
		switch s[j] {
		case '\\':
			j++
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return j
			}
		}
	}
	return -1
}

// closingWord returns where the encoded word that begins at i ends, or -1. One with an angle
// bracket inside is something else: what looks like an address in brackets shall be found.
func closingWord(s string, i int) int {
	w, ok := cutWord(s[i:])
	if !ok || !w.closed || strings.ContainsAny(w.text, "<>") {
		return -1
	}
	return i + w.size - 1
}

// parseEntry reads one entry of the list.
func parseEntry(s string) Named {
	before, inside, after, ok := cutAngle(s)
	if !ok {
		return bareEntry(s)
	}
	name := strings.TrimRight(before, "< ") // "<<a@b>>"
	if strings.TrimSpace(name) == "" {
		name = strings.Trim(after, "> ")
	}
	a, err := Parse(readableText(inside))
	if err != nil {
		name, a = before+" "+inside, Spec{}
	}
	return Named{Name: DecodeName(besideComments(strings.TrimSpace(name))), Spec: a}
}

// besideComments returns a phrase without its comments, which are none of the name, or what a
// comment says where there is nothing else. Where the rest is no phrase, its writer knew nothing of
// comments and meant all of it: "Müller, Hans (Sales)".
func besideComments(s string) string {
	if strings.IndexByte(s, '(') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		end := skip(s, i)
		if s[i] == '(' && end > i {
			b.WriteByte(' ')
		} else {
			b.WriteString(s[i : end+1])
		}
		i = end
	}
	rest := singleBlanks(b.String())
	if rest == "" {
		return uncomment(s)
	}
	if _, ok := strictPhrase(rest); ok {
		return rest
	}
	return s
}

// cutAngle finds the address in angle brackets: the last that has an @, else the first. A bracket
// that is never closed counts to the end when an @ follows it.
func cutAngle(s string) (before, inside, after string, ok bool) {
	open, closing := -1, -1
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"', '(', '=':
			i = skip(s, i)
		case '<':
			end := closingAngle(s, i)
			if end < 0 && strings.IndexByte(s[i:], '@') >= 0 || end >= 0 && (open < 0 || strings.IndexByte(s[i:end], '@') >= 0) {
				open, closing = i, end
			}
			i = max(i, end)
		}
	}
	switch {
	case open < 0:
		return "", "", "", false
	case closing < 0:
		before, inside = s[:open], strings.TrimRight(s[open+1:], ` >"`)
	default:
		before, inside, after = s[:open], s[open+1:closing], s[closing+1:]
	}
	if strings.IndexByte(inside, '@') < 0 && strings.IndexByte(s, '@') >= 0 {
		return "", "", "", false // "Scanner <3> scan@contoso.com"
	}
	return before, inside, after, true
}

// readableText takes from an address what devices, people and programs put around it and into it:
// comments, blanks, brackets, quotes, and whatever ends in a colon (mailto:, smtp:, a source
// route).
func readableText(s string) string {
	if !strings.ContainsAny(s, ` ()<>[]"',;:`) {
		return s
	}
	s = strings.Trim(withoutComments(s), "<>,;")
	if n := len(s); n > 2 && s[0] == '\'' && s[n-1] == '\'' {
		s = s[1 : n-1]
	}
	if s = strings.TrimLeft(s, "["); strings.IndexByte(s, '[') < 0 { // else an address literal
		s = strings.TrimRight(s, "]")
	}
	if len(s) > 2 && s[0] == '"' && closingQuote(s, 0) == len(s)-1 && strings.IndexByte(s, '@') > 0 {
		s = unquote(s[1 : len(s)-1])
	}
	if i := strings.LastIndexByte(s, ':'); i >= 0 && s[0] != '"' && i < strings.LastIndexByte(s, '@') {
		s = s[i+1:]
	}
	return s
}

// withoutComments drops comments and blanks, except in quotes.
func withoutComments(s string) string {
	if strings.IndexByte(s, ' ') < 0 && strings.IndexByte(s, '(') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			end := skip(s, i)
			b.WriteString(s[i:end])
			i = end
		case '(':
			if end := closingParen(s, i); end > 0 {
				i = end
				continue
			}
		case ' ':
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// uncomment returns the inside of a text that is nothing but a comment.
func uncomment(s string) string {
	if s == "" || s[0] != '(' || closingParen(s, 0) != len(s)-1 {
		return s
	}
	return unquote(s[1 : len(s)-1])
}

// bareEntry reads an entry without angle brackets: the first word that is a valid address, else the
// first that is any, is the address; the other words and comments are the name ("scan@contoso.com
// (Scanner 3)").
func bareEntry(s string) Named {
	list := words(s)
	var addr Spec
	at := -1
	for i, w := range list {
		if w[0] == '(' || strings.IndexByte(w, '@') < 0 || strings.HasPrefix(w, "=?") {
			continue
		}
		a, err := Parse(readableText(w))
		if err != nil || a.Domain == "" || at >= 0 && !a.Valid() {
			continue
		}
		addr, at = a, i
		if a.Valid() {
			break
		}
	}
	var name []string
	for i, w := range list {
		// "scanner3@floor 3": an address to ask for, but more likely a name.
		if i != at || !addr.Valid() && slices.ContainsFunc(list, func(o string) bool { return o != w && o[0] != '(' }) {
			name = append(name, w)
		}
	}
	return Named{Name: DecodeName(besideComments(strings.Join(name, " "))), Spec: addr}
}

// words divides at blanks outside quotes, comments and encoded words. A comment and an encoded word
// are words of their own, but for a comment beside an @ ("scan(the old one)@contoso.com").
func words(s string) []string {
	var list []string
	for i := 0; i < len(s); {
		if s[i] == ' ' {
			i++
			continue
		}
		end := wordEnd(s, i)
		list = append(list, s[i:end])
		i = end
	}
	return list
}

// wordEnd returns where the word that begins at i ends.
func wordEnd(s string, i int) int {
	if s[i] == '(' {
		return skip(s, i) + 1
	}
	if end := closingWord(s, i); end > 0 {
		return end + 1
	}
	for end := i; end < len(s); end++ {
		switch s[end] {
		case ' ':
			return end
		case '"':
			end = skip(s, end)
		case '(':
			closing := closingParen(s, end)
			if closing < 0 || s[end-1] != '@' && (closing+1 == len(s) || s[closing+1] != '@') {
				return end
			}
			end = closing
		}
	}
	return len(s)
}

// DecodeName returns a display name as a person would read it: quotes and backslashes removed,
// encoded words decoded, white space single. An encoded word that cannot be decoded stays as it was
// written (RFC 2047, section 6.2) if that is safe; any other "=?" becomes "= ?".
func DecodeName(s string) string {
	if s = strings.TrimSpace(s); isNobody(s) {
		return ""
	}
	s = unquoteWords(strings.TrimRight(strings.TrimSuffix(s, "<>"), " "))
	for range maxNested {
		if !strings.Contains(s, "=?") {
			break
		}
		s = strings.Map(Printable, decodeWords(s))
	}
	return TidyName(s)
}

// maxNested is how often a name is decoded. Once is right; but some mail programs decode again what
// looks like an encoded word after it, and the name must be harmless to them too.
const maxNested = 4

// isNobody reports whether s is a group without members: its name is nobody's
// ("undisclosed-recipients:;").
func isNobody(s string) bool {
	if !strings.HasSuffix(s, ";") {
		return false
	}
	name, list, ok := strings.Cut(s, ":")
	return ok && strings.Trim(list, " ;") == "" && isGroup(name, list)
}

// unquoteWords takes the quotes off each quoted-string, and drops a quote without partner. Those in
// encoded words stay.
func unquoteWords(s string) string {
	if strings.IndexByte(s, '"') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch end := skip(s, i); {
		case s[i] == '=' && end > i:
			b.WriteString(s[i : end+1])
			i = end
		case s[i] == '"' && end > i:
			b.WriteString(unquote(s[i+1 : end]))
			i = end
		case s[i] != '"':
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

// TidyName gives a display name its normal form: printable, white space single, no quotes around
// all of it, and nothing that starts an encoded word, but for one that nobody here can decode.
func TidyName(s string) string {
	if !isSingle(s) {
		s = singleBlanks(strings.Map(Printable, s))
	}
	s = disarm(s, isOpaque)
	for n := len(s); n > 1 && (s[0] == '"' || s[0] == '\'') && strings.IndexByte(s[1:], s[0]) == n-2; n = len(s) {
		s = strings.TrimSpace(s[1 : n-1])
	}
	return s
}

// disarm writes "= ?" for each "=?" of a name that could start an encoded word, except in the words
// to keep.
func disarm(name string, keep func(word string) bool) string {
	if !strings.Contains(name, "=?") {
		return name
	}
	list := strings.Split(name, " ")
	for i, w := range list {
		if strings.Contains(w, "=?") && !keep(w) {
			list[i] = strings.ReplaceAll(w, "=?", "= ?")
		}
	}
	return strings.Join(list, " ")
}
