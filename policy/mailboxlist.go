package policy

import (
	"io"
	"mime"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/htmlindex"
)

// A namedAddress is one entry of a From-like field: a decoded display name and an
// address, each as far as it could be recognised.
type namedAddress struct {
	name string
	addr Address
}

// parseMailboxes reads the body of a From, Sender or Reply-To field as devices write
// it, not as RFC 5322, section 3.6.2 wants it. It never fails: what is no
// address is display name, and a field without any address gives no entry.
//
// It repairs missing angle brackets, missing closing brackets and quotes, bare @ and
// commas in names, raw 8-bit text, and encoded words in odd places.
func parseMailboxes(body string) []namedAddress {
	text := readable(body)
	var (
		list    []namedAddress
		pending string // the name so far of an entry whose address has not come yet
	)
	for _, e := range splitEntries(text) {
		n := parseEntry(e)
		if n.addr.IsZero() {
			pending = joinName(pending, n.name)
			continue
		}
		if pending != "" { // "Müller, Hans <hans@contoso.com>": the comma was in the name
			n.name = strings.TrimSuffix(pending+", "+n.name, ", ")
			pending = ""
		}
		list = append(list, n)
	}
	return list
}

// maxSender is how many bytes of a field are read; RFC 5322, section 2.1.1, allows a line 998.
const maxSender = 1000

func joinName(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + ", " + b
}

// readable undoes folding (RFC 5322, section 2.2.3), turns control characters into
// spaces and 8-bit bytes that are not UTF-8 into the characters of Windows-1252,
// which is what devices of the western world mean by them.
//
// Of a text longer than any real sender it keeps the two ends: what follows looks for closing quotes and
// brackets again and again, and must not keep a processor busy for a stranger's 100 kB.
func readable(s string) string {
	if len(s) > maxSender {
		valid := utf8.ValidString(s)
		if s = s[:maxSender/2] + " " + s[len(s)-maxSender/2:]; valid {
			s = strings.ToValidUTF8(s, "")
		}
	}
	clean := true
	for i := range len(s) {
		if s[i] < ' ' || s[i] >= 0x7f {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	if !utf8.ValidString(s) {
		if t, err := charmap.Windows1252.NewDecoder().String(s); err == nil {
			s = t
		}
	}
	return strings.Join(strings.Fields(strings.Map(printable, s)), " ")
}

// printable maps what must not come into a header we write: control characters, line
// and paragraph separators, and the characters that turn the direction of text
// around (they make "moc.osotnoc@oec" read as an address).
func printable(r rune) rune {
	switch {
	case r == '\t' || r == '\n' || r == '\r' || r == 0x85 || r == 0x2028 || r == 0x2029:
		return ' '
	case r < ' ' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError:
		return -1
	case r >= 0x200b && r <= 0x200f || r >= 0x202a && r <= 0x202e || r >= 0x2060 && r <= 0x206f || r == 0xfeff:
		return -1
	}
	return r
}

// splitEntries divides at the commas and semicolons that separate addresses: outside quotes,
// comments and angle brackets. A quote or bracket that is never closed does not count.
func splitEntries(s string) []string {
	var list []string
	start := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			i = skipTo(i, closingQuote(s, i))
		case '<':
			i = skipTo(i, closingAngle(s, i))
		case '(':
			i = skipTo(i, closingParen(s, i))
		case ',', ';':
			list = append(list, s[start:i])
			start = i + 1
		}
	}
	return append(list, s[start:])
}

// skipTo moves to the closing character, or stays where nothing closes.
func skipTo(at, closing int) int {
	if closing < 0 {
		return at
	}
	return closing
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
		case '"':
			if q := closingQuote(s, j); q > 0 {
				j = q
			}
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

// parseEntry reads one entry of the list.
func parseEntry(s string) namedAddress {
	if i := strings.IndexByte(s, ':'); i >= 0 && isGroupName(s[:i]) && strings.Contains(s[i:], "@") {
		s = s[i+1:] // "Sales: Hans <hans@contoso.com>;"
	}
	before, inside, ok := lastAngle(s)
	if ok {
		if a, err := ParseAddress(strings.ReplaceAll(inside, " ", "")); err == nil && !a.IsZero() {
			return namedAddress{name: decodeName(before), addr: a}
		}
		return namedAddress{name: decodeName(before + " " + inside)}
	}
	return bareEntry(s)
}

// lastAngle finds the address in angle brackets. A bracket that is never closed counts to
// the end when an @ follows it.
func lastAngle(s string) (before, inside string, ok bool) {
	open := -1
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			i = skipTo(i, closingQuote(s, i))
		case '(':
			i = skipTo(i, closingParen(s, i))
		case '<':
			open = i
			i = skipTo(i, closingAngle(s, i))
		}
	}
	if open < 0 {
		return "", "", false
	}
	inside = s[open+1:]
	if end := closingAngle(s, open); end >= 0 {
		return s[:open], strings.TrimSpace(s[open+1 : end]), true
	}
	if strings.Contains(inside, "@") {
		return s[:open], strings.TrimSpace(strings.TrimRight(inside, ` >"`)), true
	}
	return "", "", false
}

// bareEntry reads an entry without angle brackets: the first word with an @ is the address, the
// other words and comments are the name ("scan@contoso.com (Scanner 3)").
func bareEntry(s string) namedAddress {
	var (
		name []string
		addr Address
	)
	list := words(s)
	for _, w := range list {
		if w[0] == '(' {
			name = append(name, strings.TrimSuffix(w[1:], ")"))
			continue
		}
		if addr.IsZero() && strings.IndexByte(w, '@') > 0 {
			t := strings.Trim(w, `<>[]',`)
			if i := strings.LastIndexByte(t, ':'); i >= 0 && t[0] != '"' { // mailto:, or a group's name
				t = t[i+1:]
			}
			if a, err := ParseAddress(t); err == nil && a.Domain != "" {
				addr = a
				if a.Valid() || !slices.ContainsFunc(list, func(o string) bool { return o != w && o[0] != '(' }) {
					continue
				}
			} // "scanner3@floor 3": an address to ask for, but more likely a name
		}
		name = append(name, w)
	}
	return namedAddress{name: decodeName(strings.Join(name, " ")), addr: addr}
}

// words divides at spaces outside quotes and comments.
func words(s string) []string {
	var list []string
	for i := 0; i < len(s); {
		if s[i] == ' ' {
			i++
			continue
		}
		end := i
		for end < len(s) && s[end] != ' ' && (s[end] != '(' || end == i) {
			switch s[end] {
			case '"':
				end = skipTo(end, closingQuote(s, end))
			case '(':
				end = skipTo(end, closingParen(s, end))
			}
			end++
			if s[i] == '(' {
				break
			}
		}
		list = append(list, s[i:end])
		i = end
	}
	return list
}

// isGroupName tells whether s could be the name of a group (RFC 5322, section 3.4), which
// is dropped; a name such as "10:30 report" is not.
func isGroupName(s string) bool {
	s = strings.TrimSpace(s)
	return s != "" && !strings.ContainsAny(s, "<>@\"(") && strings.IndexFunc(s, func(r rune) bool { return r >= '0' && r <= '9' }) < 0
}

// decodeName returns a display name as a person would read it: quotes and backslashes removed,
// encoded words (RFC 2047) decoded, white space single. What cannot be decoded
// stays as it was written.
func decodeName(s string) string {
	s = strings.TrimSpace(s)
	if s == "" {
		return ""
	}
	s = unquoteWords(s)
	if strings.Contains(s, "=?") {
		if t, err := wordDecoder.DecodeHeader(s); err == nil {
			s = t
		}
	}
	s = strings.Map(printable, s)
	return strings.Trim(strings.Join(strings.Fields(s), " "), `"' `)
}

// unquoteWords takes the quotes off each quoted-string, and drops a quote without partner.
func unquoteWords(s string) string {
	if strings.IndexByte(s, '"') < 0 && strings.IndexByte(s, '\\') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '"' {
			b.WriteByte(s[i])
			continue
		}
		if end := closingQuote(s, i); end > 0 {
			b.WriteString(unquote(s[i+1 : end]))
			i = end
		}
	}
	return b.String()
}

// wordDecoder knows the character sets of the WHATWG encoding standard, which are those
// that mail programs know.
var wordDecoder = mime.WordDecoder{CharsetReader: func(charset string, in io.Reader) (io.Reader, error) {
	e, err := htmlindex.Get(charset)
	if err != nil {
		return nil, err
	}
	return e.NewDecoder().Reader(in), nil
}}
