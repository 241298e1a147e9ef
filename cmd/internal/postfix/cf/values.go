package cf

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Split divides a value at commas and blanks, and keeps what stands in braces together.
func Split(value string) []string {
	var list []string
	depth, begin := 0, -1
	for i, r := range value + " " {
		switch {
		case r == '{':
			depth++
		case r == '}':
			depth--
		}
		separates := depth <= 0 && strings.ContainsRune(", \t\n", r)
		switch {
		case separates && begin >= 0:
			list, begin = append(list, value[begin:i]), -1
		case !separates && begin < 0:
			begin = i
		}
	}
	if begin >= 0 { // a brace without its partner
		list = append(list, value[begin:])
	}
	return list
}

// Braced divides "{ unix:sendas/milter, default_action=accept }" into its parts; a value
// without braces is one part.
func Braced(item string) []string {
	if inner, ok := strings.CutPrefix(item, "{"); ok {
		return Split(strings.TrimSuffix(inner, "}"))
	}
	return []string{item}
}

// Parameters reads lines of "name = value".
func Parameters(out string) map[string]string {
	m := make(map[string]string)
	for line := range strings.Lines(out) {
		if name, value, ok := strings.Cut(line, "="); ok {
			m[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	return m
}

// OtherName is a value that is nothing but another parameter's, as many defaults are.
var OtherName = regexp.MustCompile(`^\$[({]?([A-Za-z0-9_]+)[)}]?$`)

var secretTables = regexp.MustCompile(`\b(static|inline|pipemap|randmap|unionmap):.*`)

// secretFree are the parameters whose tables hold addresses, hosts and names alone, by the end of
// their names.
var secretFree = regexp.MustCompile(`(^|_)(transport_maps|relayhost_maps|policy_maps|per_site|domains|mydestination|mynetworks|recipient_maps)$`)

// openTables are those of secretTables that may be seen where nothing secret is kept in them; what
// pipemap and its like combine may be a table of another kind.
var openTables = regexp.MustCompile(`\b(static|pipemap|randmap|unionmap):.*`)

// Shown is a value as it may be seen: tables that stand in main.cf itself may hold passwords.
func Shown(v string) string { return ShownParameter("", v) }

// ShownParameter is the value of a parameter as it may be seen.
func ShownParameter(name, v string) string {
	switch {
	case v == "":
		return "(empty)"
	case secretFree.MatchString(name):
		return openTables.ReplaceAllString(v, "$1:REDACTED")
	}
	return secretTables.ReplaceAllString(v, "$1:REDACTED")
}

// JoinRestrictions writes a list with a comma behind each restriction, but none before the argument
// of one.
func JoinRestrictions(list []string) string {
	var b strings.Builder
	for i, item := range list {
		switch {
		case i == 0:
		case strings.HasPrefix(list[i-1], "check_"), list[i-1] == "sleep", list[i-1] == "permit_mx_backup_networks":
			b.WriteByte(' ')
		default:
			b.WriteString(", ")
		}
		b.WriteString(item)
	}
	return b.String()
}

// WithoutItem takes from a list what merge has put there; ok is false where it is no longer in it.
func WithoutItem(raw, added string) (value string, ok bool) {
	list, gone := Split(raw), Split(added)
	for i := 0; len(gone) > 0 && i+len(gone) <= len(list); i++ {
		if slices.EqualFunc(list[i:i+len(gone)], gone, Same) {
			return JoinRestrictions(slices.Delete(list, i, i+len(gone))), true
		}
	}
	return raw, false
}

// Unspaced writes a list without blanks, as postconf -P takes it: a comma separates as well, also what
// belongs to a restriction.
func Unspaced(value string) string {
	value = strings.NewReplacer("{ ", "{", " }", "}", ", ", ",").Replace(OneSpaced(value))
	return strings.ReplaceAll(value, " ", ",")
}

// Same compares values as Postfix reads them: blanks and line ends are alike.
func Same(a, b string) bool { return OneSpaced(a) == OneSpaced(b) }

// OneSpaced puts one blank where there are blanks or line ends.
func OneSpaced(s string) string { return strings.Join(strings.Fields(s), " ") }

// A Setting is a name and its value: one -o of master.cf, one entry of a table.
type Setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Seconds reads a time as Postfix writes it; one that it cannot read is 0. A number without a unit
// is in the unit given, in seconds.
func Seconds(value string, unit int) int {
	units := map[byte]int{'s': 1, 'm': 60, 'h': 60 * 60, 'd': 24 * 60 * 60, 'w': 7 * 24 * 60 * 60}
	if n := len(value); n > 0 && units[value[n-1]] > 0 {
		unit, value = units[value[n-1]], value[:n-1]
	}
	n, err := strconv.Atoi(value)
	if err != nil {
		return 0
	}
	return n * unit
}

// Entry writes an entry of master.cf as postconf -M takes it.
func Entry(name, chroot string, list []Setting) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s unix - - %s - - smtp", name, chroot)
	for _, v := range list {
		if strings.ContainsAny(v.Value, " \t") {
			fmt.Fprintf(&b, " -o { %s = %s }", v.Name, v.Value)
		} else {
			fmt.Fprintf(&b, " -o %s=%s", v.Name, v.Value)
		}
	}
	return b.String()
}

// InlineEntries reads a table that stands in main.cf itself (inline of DATABASE_README); ok is false
// for every other one.
func InlineEntries(table string) (list []Setting, ok bool) {
	inner, ok := strings.CutPrefix(table, "inline:{")
	if !ok {
		return nil, false
	}
	for _, e := range Split(strings.TrimSuffix(inner, "}")) {
		if braced, is := strings.CutPrefix(e, "{"); is {
			e = strings.TrimSuffix(braced, "}")
		}
		name, value, _ := strings.Cut(e, "=")
		list = append(list, Setting{strings.TrimSpace(name), strings.TrimSpace(value)})
	}
	return list, true
}

// Follows reports whether a value is nothing but another parameter's.
func Follows(raw string) bool { return OtherName.MatchString(raw) }

// ReadMain reads "name = value" with the lines that go on (postconf(5)): those that begin with a
// blank. Comments may stand between them. Of several settings of one name the last one counts.
// postconf -n does not print parameters that are named after a transport which is not there, so we
// read them ourselves.
func ReadMain(text string) map[string]string {
	m := make(map[string]string)
	name := ""
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		switch {
		case trimmed == "" || trimmed[0] == '#':
		case line[0] == ' ' || line[0] == '\t':
			if name != "" {
				m[name] = OneSpaced(m[name] + " " + trimmed)
			}
		default:
			before, value, ok := strings.Cut(trimmed, "=")
			if name = ""; ok {
				name = strings.TrimSpace(before)
				m[name] = OneSpaced(value)
			}
		}
	}
	return m
}
