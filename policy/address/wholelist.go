package address

import (
	"strings"
	"unicode/utf8"
)

// ParseWhole reads a list of addresses as [ParseList] does, but of any length, and so that no
// address gets lost: it also divides where a comma was forgotten between two of them.
func ParseWhole(body string) []Named {
	s := singleBlanks(withoutJunk(strings.Map(Printable, toUTF8(body))))
	var list []Named
	for s != "" {
		n := cutList(s)
		list = append(list, parseEntries(separate(s[:n]))...)
		s = s[n:]
	}
	return list
}

// withoutJunk blanks quotes and brackets where there are more of them than any list of addresses
// has. For each of them its partner is looked for; a stranger's 30,000 must not keep a processor
// busy.
func withoutJunk(s string) string {
	for _, c := range []string{`"`, "(", "<"} {
		if isJunk(s, c) {
			s = strings.ReplaceAll(s, c, " ")
		}
	}
	return s
}

func isJunk(s, c string) bool { return strings.Count(s, c) > 100+len(s)/4 }

// cutList returns how much of s to read at a time, since what reads it must not look through 100 kB again and again. It cuts
// behind an entry with an address, so that a name stays with its own.
func cutList(s string) int {
	if len(s) <= maxSender {
		return len(s)
	}
	cut, angle, start := 0, 0, 0
	window := s[:min(len(s), 2*maxSender)]
	for i := 0; i < maxSender; i++ {
		switch s[i] {
		case '"', '<', '(', '=':
			if i = skip(window, i); s[i] == '>' && i < maxSender {
				angle = i + 1
			}
		case ',', ';':
			if strings.IndexByte(s[start:i], '@') >= 0 {
				cut = i + 1
			}
			start = i + 1
		}
	}
	if cut = max(cut, angle); cut > 0 {
		return cut
	}
	if cut = strings.LastIndexAny(s[:maxSender], " <"); cut > 0 {
		return cut
	}
	for cut = maxSender; !utf8.RuneStart(s[cut]); cut-- { // longer than any address
	}
	return cut
}

// separate writes the commas that are missing in a list: between words that are all addresses, and behind an address in
// angle brackets that has another one behind it.
func separate(s string) string {
	if list := strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == ',' || r == ';' }); len(list) > 1 && allAddresses(list) {
		return strings.Join(list, ", ")
	}
	var b strings.Builder
	done, last := 0, -1 // what is written, and where the last address of this entry ends
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"', '(', '=':
			i = skip(s, i)
		case '<':
			end := closingAngle(s, i)
			if end < 0 || strings.IndexByte(s[i:end], '@') < 0 {
				continue
			}
			if last >= 0 {
				b.WriteString(s[done:last] + ", ")
				done = last
			}
			last, i = end+1, end
		case ',', ';':
			last = -1
		}
	}
	if done == 0 {
		return s
	}
	return b.String() + s[done:]
}

func allAddresses(words []string) bool {
	for _, w := range words {
		if a, err := Parse(readableText(w)); err != nil || !a.Valid() {
			return false
		}
	}
	return true
}

// WriteList writes a list of mailboxes as the body of a field, each on a line of its own, with names that pretend nothing.
// Those that must not leave are left out.
func WriteList(field string, list []Named) string {
	var parts []string
	for _, e := range list {
		if v := Write(field, SafeName(e.Name, e.Spec), e.Spec); v != "" {
			parts = append(parts, v)
		}
	}
	return strings.Join(parts, ",\n ")
}
