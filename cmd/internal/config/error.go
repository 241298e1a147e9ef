package config

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/sendas/sendas/internal/plaintext"
)

// MaxProblems is how many problems an error prints.
const MaxProblems = 20

// A Error is all that is wrong with a configuration file.
type Error struct {
	File     string
	Problems []Problem // by line
}

// A Problem is one thing that is wrong with the configuration.
type Problem struct {
	Line    int    // from 1; 0 where the file as a whole is meant
	Path    string // "mailboxes[0].limits.messages"; may be empty
	Text    string // what is wrong, and what to write instead
	Excerpt string // the line and its neighbours, each with "\n"; never a secret
}

// CredentialFile returns the credential whose secret, certificate or token file is meant, "" where
// the problem is another one. Such a problem keeps that credential alone from working.
func (p *Problem) CredentialFile() string {
	key, ok := strings.CutPrefix(p.Path, "credentials.")
	at := strings.LastIndexByte(key, '.') // a name may have dots
	if !ok || at < 0 || !strings.HasSuffix(key, "_file") {
		return ""
	}
	return key[:at]
}

// newError sorts the problems and cuts the excerpts.
func newError(file string, data []byte, list []Problem) *Error {
	slices.SortStableFunc(list, func(a, b Problem) int { return a.Line - b.Line })
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	hidden := secretLines(lines)
	for i := range list[:min(len(list), MaxProblems)] {
		p := &list[i]
		p.Line = max(1, min(p.Line, len(lines)))
		p.Excerpt = excerpt(lines, hidden, p.Line)
	}
	return &Error{File: file, Problems: list}
}

// Error prints each problem with its place, and below it an excerpt of the file.
func (e *Error) Error() string {
	var b strings.Builder
	for i, p := range e.Problems {
		if i == MaxProblems {
			fmt.Fprintf(&b, "… and %d more\n", len(e.Problems)-i)
			break
		}
		b.WriteString(p.In(e.File) + "\n" + p.Excerpt)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// In says in one line what the problem is and where, without the excerpt.
func (p *Problem) In(file string) string {
	if p.Line > 0 {
		file += fmt.Sprintf(":%d", p.Line)
	}
	if p.Path != "" {
		file += ": " + p.Path
	}
	return file + ": " + p.Text
}

// excerpt returns the line and its neighbours with their numbers; n counts from 1.
func excerpt(lines []string, hidden map[int]string, n int) string {
	var b strings.Builder
	for i := max(1, n-1); i <= min(len(lines), n+1); i++ {
		mark, text := ' ', lines[i-1]
		if i == n {
			mark = '>'
		}
		if h, ok := hidden[i-1]; ok {
			text = h
		}
		fmt.Fprintln(&b, strings.TrimRight(fmt.Sprintf("  %c %4d | %s", mark, i, showable(text)), " "))
	}
	return b.String()
}

// shownExcerpt is how a line of the configuration stands in an excerpt.
var shownExcerpt = plaintext.Style{Exact: true, Bad: '?', MaxRunes: 121, Cut: "…"}

// showable makes a line safe for a terminal, and short.
func showable(s string) string {
	return shownExcerpt.Line(strings.ReplaceAll(strings.TrimSuffix(s, "\r"), "\t", " "))
}

// secretKey finds a key under which somebody may have written a secret itself: every key
// that sounds like one and does not end in _file.
var secretKey = regexp.MustCompile(`(?i)[\w-]*(secret|passw|certificate|private|key)[\w-]*["']?[ \t]*([:=]|[ \t]|$)`)

// urlPassword is the name and password in a URL.
var urlPassword = regexp.MustCompile(`://[^/\s]*@`)

// pemLine is a line of a key or certificate that was pasted without its indentation.
var pemLine = regexp.MustCompile(`^\s*(-----.*|[A-Za-z0-9+/=]{30,})\s*$`)

// secretLines returns, by index, what to show instead of lines that may hold a secret: the
// line of such a key, and the deeper lines below it, over which a value may go on. It looks at
// the text and not at the parsed file, because a file that does not parse has secrets too.
func secretLines(lines []string) map[int]string {
	const redacted = "REDACTED"
	hidden := make(map[int]string)
	for i := 0; i < len(lines); i++ {
		end := secretEnd(lines[i])
		if end < 0 {
			if urlPassword.MatchString(lines[i]) {
				hidden[i] = urlPassword.ReplaceAllString(lines[i], "://"+redacted+"@")
			}
			continue
		}
		hidden[i] = lines[i][:end] + " " + redacted
		depth := indent(lines[i])
		for i+1 < len(lines) && (indent(lines[i+1]) > depth || strings.TrimSpace(lines[i+1]) == "" || pemLine.MatchString(lines[i+1])) {
			i++
			hidden[i] = redacted
		}
	}
	return hidden
}

// secretEnd returns where the name of a secret ends in the line, or -1.
func secretEnd(line string) int {
	prose := strings.HasPrefix(strings.TrimSpace(line), "# ")
	for _, m := range secretKey.FindAllStringSubmatchIndex(line, -1) {
		key := strings.TrimRight(line[m[0]:m[4]], "\"' \t")
		last := line[m[4]:m[5]]
		switch {
		case strings.HasSuffix(key, "_file"), strings.TrimSpace(line[m[5]:]) == "" && last == "":
		case prose && last != ":" && last != "=": // a comment that speaks of secrets
		case last == " " && strings.TrimSpace(line[:m[0]]) != "" && !prose: // a word within a value
		default:
			return m[5]
		}
	}
	return -1
}

func indent(line string) int {
	return len(line) - len(bytes.TrimLeft([]byte(line), " \t"))
}
