package address

import "strings"

// maxLine is how many bytes a line may have (RFC 5322, section 2.1.1). Postfix ends a longer one
// there, wherever it is.
const maxLine = 998

// Fold breaks those lines of a field body that are too long for a message, and leaves all other
// bytes as they are. A text is broken at blanks alone; in a structured field also behind commas and
// semicolons and between angle brackets, which makes no difference to who reads it (RFC 5322,
// sections 2.2.3 and 3.2.2). A part without such a place stays whole.
func Fold(field, body string, structured bool) string {
	col := len(field) + len(": ")
	if col+len(body) <= maxLine || !hasLongLine(col, body) {
		return body
	}
	return Refold(field, body, structured)
}

func hasLongLine(col int, body string) bool {
	for line := range strings.SplitSeq(body, "\n") {
		if col+len(line) > maxLine {
			return true
		}
		col = 0
	}
	return false
}

// Refold is Fold for a body that changes anyway: it ends lines with a bare LF, and leaves none that
// another reader could take for the beginning of a field, or for the end of the header.
func Refold(field, body string, structured bool) string {
	if strings.IndexByte(body, '\x1b') >= 0 || isJunk(body, "(") || isJunk(body, "<") || isJunk(body, `"`) {
		structured = false // in ISO-2022-JP a comma may be half a character; junk has no structure
	}
	var b strings.Builder
	b.Grow(len(body) + len(body)/32)
	col := len(field) + len(": ")
	for i, line := range strings.Split(strings.ReplaceAll(body, "\r\n", "\n"), "\n") {
		line = noLineEnd.Replace(strings.TrimRight(line, "\r"))
		if i > 0 {
			if strings.Trim(line, " \t") == "" {
				continue
			}
			b.WriteByte('\n')
			if !isBlank(line[0]) {
				line = " " + line
			}
			col = 0
		}
		if col+len(line) <= maxLine {
			b.WriteString(line)
			continue
		}
		foldLine(&b, line, col, wantLine, structured)
	}
	return b.String()
}

// noLineEnd replaces what is, or could become, a line end within a line. All other bytes stay,
// whatever their character set.
var noLineEnd = strings.NewReplacer("\r", " ", "\x00", " ")

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

// foldLine breaks one line, whose first byte comes into column col, into lines of at most limit
// bytes where it can.
func foldLine(b *strings.Builder, s string, col, limit int, structured bool) int {
	start := 0
	for start < len(s) {
		next := nextBreak(s, start, structured)
		part := s[start:next]
		if start > 0 && col+len(part) > limit {
			b.WriteByte('\n')
			if col = 0; !isBlank(part[0]) {
				b.WriteByte(' ')
				col = 1
			}
		}
		if structured && col+len(part) > maxLine {
			col = foldLine(b, part, col, maxLine, false) // a name or comment that long can still be broken at a blank
		} else {
			b.WriteString(part)
			col += len(part)
		}
		start = next
	}
	return col
}

// nextBreak returns the next place behind i at which s may be broken, or its end.
func nextBreak(s string, i int, structured bool) int {
	for start := i; i < len(s); i++ {
		c := s[i]
		if isBlank(c) && i > start && !isBlank(s[i-1]) && strings.TrimLeft(s[i:], " \t") != "" {
			return i
		}
		if !structured {
			continue
		}
		switch c {
		case '"', '(', '<', '=':
			// What is longer than a line cannot stay whole; so nobody has to look further for its
			// end.
			i += skip(s[i:min(len(s), i+maxLine)], 0)
			if s[i] == '>' && i+1 < len(s) && s[i+1] == '<' {
				return i + 1
			}
		case ',', ';':
			if i+1 < len(s) && !isBlank(s[i+1]) {
				return i + 1
			}
		}
	}
	return len(s)
}
