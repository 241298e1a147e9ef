package config

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/token"
)

// reserved are the characters with which no plain text begins (YAML 1.2.2, section 5.3, "Reserved
// indicators").
var reserved = []string{"@", "`"}

// syntaxProblem words why a file is no YAML. The parser says what it could not use; what is written
// wrong stands on that line, or on one beside it.
func syntaxProblem(data []byte, err error) *Problem {
	p := &Problem{Line: 1, Text: "is not YAML: " + err.Error()}
	e, ok := errors.AsType[yaml.Error](err)
	if !ok {
		return p
	}
	t := e.GetToken()
	if t != nil && t.Position != nil {
		p.Line = t.Position.Line
	}
	p.Text = "is not YAML: " + e.GetMessage()
	if t != nil && t.Type == token.InvalidType && slices.Contains(reserved, strings.TrimSpace(t.Value)) {
		p.Text = `is not YAML: text that begins with * or @ stands in quotes, as in "*@contoso.com"`
		return p
	}
	s := source{lines: strings.Split(string(data), "\n"), message: e.GetMessage()}
	for _, look := range []func(source, int) (int, string){source.unclosed, source.word, source.nextWord, source.twoColons, source.margin} {
		if line, text := look(s, p.Line); text != "" {
			p.Line, p.Text = line, "is not YAML: "+text
			break
		}
	}
	return p
}

// A source is a file that does not parse. Its looks find a cause near a line, counted from 1, and
// return the line where it is, with words that never repeat a value: it may be a secret.
type source struct {
	lines   []string
	message string // of the parser
}

func (s source) line(n int) string {
	if n < 1 || n > len(s.lines) {
		return ""
	}
	return strings.TrimRight(s.lines[n-1], " \r")
}

// blank reports whether a line says nothing.
func (s source) blank(n int) bool {
	text := strings.TrimSpace(s.line(n))
	return text == "" || text[0] == '#'
}

// unclosed finds a quotation mark, bracket or brace that nothing closes.
func (s source) unclosed(n int) (int, string) {
	for _, x := range []struct{ said, open, text string }{
		{"double-quoted", `"`, `a text begins with " here, and nothing closes it; write the same mark behind it, or none at all`},
		{"single-quoted", `'`, `a text begins with ' here, and nothing closes it; write the same mark behind it, or none at all`},
		{"']'", "[", "a list begins with [ here, and no ] closes it"},
		{"'}'", "{", "a { stands here, and no } closes it"},
	} {
		if !strings.Contains(s.message, x.said) {
			continue
		}
		for at := n; at > 0; at-- {
			if strings.Contains(s.line(at), x.open) {
				return at, x.text
			}
		}
	}
	return 0, ""
}

// What a key looks like whose colon is wrong.
var (
	keyAlone    = regexp.MustCompile(`^\s*(?:- +)?([a-z_]+)$`)
	keyNoColon  = regexp.MustCompile(`^\s*(?:- +)?([a-z_]+) +[^:#=\s]`)
	keyEquals   = regexp.MustCompile(`^\s*(?:- +)?([a-z_]+) *=`)
	keyNoBlank  = regexp.MustCompile(`^\s*(?:- +)?([a-z_]+):[^\s]`)
	dashNoBlank = regexp.MustCompile(`^\s*-([a-z_]+):`)
)

// word finds a key without its colon, or a colon or dash without its blank.
func (s source) word(n int) (int, string) {
	for _, x := range []struct {
		form *regexp.Regexp
		text string
	}{
		{dashNoBlank, `a blank is missing behind the dash; write "- %s:"`},
		{keyAlone, `the colon is missing behind %[1]q; write "%[1]s:"`},
		{keyEquals, `%[1]q is followed by = where a colon stands; write "%[1]s: " with the value behind it`},
		{keyNoBlank, `a blank is missing behind the colon; write "%s: " with the value behind it`},
		{keyNoColon, `the colon is missing behind %[1]q; write "%[1]s: " with the value behind it`},
	} {
		m := x.form.FindStringSubmatch(s.line(n))
		if m != nil && slices.Contains(knownKeys(), m[1]) {
			return n, fmt.Sprintf(x.text, m[1])
		}
	}
	return 0, ""
}

// nextWord looks on the next line that says something: a parser notices what is missing there late.
func (s source) nextWord(n int) (int, string) {
	for n++; n <= len(s.lines) && s.blank(n); n++ {
	}
	return s.word(n)
}

// twoColons finds a value with a colon in it.
func (s source) twoColons(n int) (int, string) {
	text := strings.TrimSpace(s.line(n))
	if key, rest, ok := strings.Cut(text, ": "); ok && !strings.ContainsAny(key, `"'{[`) && !strings.ContainsAny(rest, `"'{[`) && strings.Contains(rest, ": ") {
		return n, `a second colon with a blank stands on this line; a text with one stands in quotes, and a key has a line of its own`
	}
	return 0, ""
}

// margin finds a line that begins with other blanks than those that it belongs to.
func (s source) margin(n int) (int, string) {
	if s.blank(n) {
		return 0, ""
	}
	before := n - 1
	for before > 0 && s.blank(before) {
		before--
	}
	dash, depth := s.starts(n)
	column := positive(dash, depth)
	if before > 0 {
		_, above := s.starts(before)
		open := s.open(n)
		switch {
		case dash >= 0 && dash == above && s.hasValue(before):
			return n, fmt.Sprintf(`an entry of a list stands here below keys with values (line %d); begin each entry of the list with "- "`, before)
		case column > above && !s.hasValue(before): // what the line above has below it
		case !slices.Contains(open, column):
			return n, fmt.Sprintf("this line begins with %s, and what it belongs to begins with %d; what belongs together begins below each other", blanks(column), nearColumn(open, column))
		}
	}
	after := n + 1
	for after <= len(s.lines) && s.blank(after) {
		after++
	}
	if after > len(s.lines) {
		return 0, ""
	}
	if _, deeper := s.starts(after); deeper > depth && s.hasValue(n) {
		return after, fmt.Sprintf("this line begins with %s, more than line %d, which has its value already and begins with %d; what belongs together begins below each other", blanks(deeper), n, depth)
	}
	return 0, ""
}

// nearColumn returns the column that a line was most likely meant for.
func nearColumn(open []int, column int) int {
	near := open[0]
	for _, o := range open {
		if max(o-column, column-o) <= max(near-column, column-near) {
			near = o
		}
	}
	return near
}

// positive returns a column, or another one where there is none.
func positive(column, otherwise int) int {
	if column < 0 {
		return otherwise
	}
	return column
}

func blanks(n int) string {
	switch n {
	case 0:
		return "no blank"
	case 1:
		return "1 blank"
	}
	return fmt.Sprintf("%d blanks", n)
}

// starts returns the columns of a line's dash, -1 for none, and of its text.
func (s source) starts(n int) (dash, text int) {
	line := s.line(n)
	text = indent(line)
	if rest := line[text:]; strings.HasPrefix(rest, "- ") {
		return text, text + 1 + indent(rest[1:])
	}
	return -1, text
}

// hasValue reports whether a line has a key and its value, so that nothing deeper may follow.
func (s source) hasValue(n int) bool {
	_, value, ok := strings.Cut(s.line(n), ":")
	value = strings.TrimSpace(value)
	return ok && value != "" && value[0] != '#' && value[0] != '|' && value[0] != '>'
}

// open returns the columns at which a line may begin: those of the lines above that are not closed
// by one further left, from left to right.
func (s source) open(n int) (list []int) {
	least := int(^uint(0) >> 1)
	for n--; n > 0 && least > 0; n-- {
		if s.blank(n) {
			continue
		}
		dash, text := s.starts(n)
		for _, column := range []int{text, dash} {
			if column >= 0 && column < least {
				list, least = append(list, column), column
			}
		}
	}
	slices.Reverse(list)
	return list
}

// knownKeys returns every key that the configuration knows.
var knownKeys = sync.OnceValue(func() []string {
	var list []string
	var walk func(t reflect.Type)
	walk = func(t reflect.Type) {
		switch t.Kind() {
		case reflect.Slice, reflect.Map:
			walk(t.Elem())
		case reflect.Struct:
			for i := range t.NumField() {
				if key := t.Field(i).Tag.Get("yaml"); key != "" {
					list = append(list, key)
					walk(t.Field(i).Type)
				}
			}
		}
	}
	walk(reflect.TypeFor[Site]())
	return list
})

// colonForgotten reports whether a text stands where keys should, because of a colon.
func colonForgotten(text string) string {
	text, _, _ = strings.Cut(text, "\n")
	s := source{lines: []string{string(bytes.TrimSpace([]byte(text)))}}
	_, words := s.word(1)
	return words
}
