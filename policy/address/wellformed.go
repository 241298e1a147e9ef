package address

import "strings"

// maxStrict is how long a field may be to leave as it came: a line with its name has no more than
// 998 octets.
const maxStrict = 990

// ReadStrict reads a field body that [Write] could have written: one mailbox of RFC 5322, section
// 3.4, with a plain local part, its name made of atoms, quoted-strings and encoded words with
// single blanks or tabs between them, folded at those. Groups, comments, routes, control characters
// and all that is obsolete are something else, however many parsers take them: what one reader
// takes for a name another does not show, or shows as the sender.
func ReadStrict(body string) (Named, bool) {
	if len(body) > 2*maxStrict { // folds are not half of it
		return Named{}, false
	}
	body, ok := unfold(strings.Trim(body, " \t"))
	if !ok || len(body) > maxStrict || !isSingle(body) {
		return Named{}, false
	}
	phrase, addr := "", body
	if inside, ok := strings.CutSuffix(body, ">"); ok {
		i := strings.LastIndexByte(inside, '<')
		if i < 0 {
			return Named{}, false
		}
		phrase, addr = strings.TrimSuffix(inside[:i], " "), inside[i+1:]
	}
	a, ok := strictAddress(addr)
	if !ok {
		return Named{}, false
	}
	name, ok := strictPhrase(phrase)
	return Named{Name: name, Spec: a}, ok
}

// unfold joins the lines of a field, and makes blanks of tabs. A line goes on behind one blank, and
// none is empty.
func unfold(body string) (string, bool) {
	body = strings.ReplaceAll(body, "\t", " ")
	if strings.IndexByte(body, '\n') < 0 {
		return body, true
	}
	lines := strings.Split(body, "\n")
	for i, l := range lines {
		if i > 0 && (l == "" || l[0] != ' ') {
			return "", false
		}
		if i > 0 {
			lines[i] = l[1:]
		}
		if lines[i] == "" {
			return "", false
		}
	}
	return strings.Join(lines, " "), true
}

func strictAddress(s string) (Spec, bool) {
	local, domain, ok := strings.Cut(s, "@")
	a := Spec{Local: local, Domain: domain}
	return a, ok && IsDotAtom(local) && IsASCII(domain) && a.Valid()
}

// strictPhrase reads a display name.
func strictPhrase(s string) (string, bool) {
	var b wordBuilder
	for s != "" {
		end := phraseEnd(s)
		if end < 0 {
			return "", false
		}
		if s[0] == '"' {
			b.text(unquote(s[1 : end-1]))
		} else {
			b.text(decodeWords(s[:end]))
		}
		s = s[end:]
		if s != "" {
			b.text(" ")
			s = s[1:]
		}
	}
	return b.String(), true
}

// phraseEnd returns where the quoted-string at the beginning of s ends, or the atoms and encoded
// words up to the next quoted-string; -1 where something else stands there. A blank or nothing
// follows.
func phraseEnd(s string) int {
	if s[0] == '"' {
		end := closingQuote(s, 0) + 1
		if end == 0 || end < len(s) && s[end] != ' ' || !plainlyQuoted(s[1:end-1]) {
			return -1
		}
		return end
	}
	end := 0
	for end < len(s) && s[end] != '"' {
		word, _, _ := strings.Cut(s[end:], " ")
		if !isAtoms(word) {
			return -1
		}
		if w, ok := cutWord(word); ok && !w.strict(word[:w.size]) || ok && w.size != len(word) {
			return -1
		}
		end = min(len(s), end+len(word)+1)
	}
	if end < len(s) || s[end-1] == ' ' {
		end--
	}
	return end
}

// plainlyQuoted reports whether nothing in a quoted-string is escaped that needs not be.
func plainlyQuoted(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' {
			if i++; i == len(s) || s[i] != '"' && s[i] != '\\' {
				return false
			}
		}
	}
	return true
}
