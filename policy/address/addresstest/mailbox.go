package addresstest

import (
	"fmt"
	"regexp"
	"strings"
)

// Parts of RFC 5322, section 3: a mailbox with a plain local part, without comments, and without
// what is obsolete.
const (
	atom   = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
	fws    = `(?:[ \t]|\n[ \t])`
	quoted = `"(?:[!#-\[\]-~]|\\[\\"]|` + fws + `)*"`
	word   = `(?:` + quoted + `|` + atom + `)`
	spec   = atom + `(?:\.` + atom + `)*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+`
)

var (
	mailbox = regexp.MustCompile(`^(?:(?:(` + word + `(?:` + fws + word + `)*)` + fws + `?)?<(` + spec + `)>|(` + spec + `))$`)
	words   = regexp.MustCompile(word)
	encoded = regexp.MustCompile(`^=\?[^?]+\?(?:[Bb]\?(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?|[Qq]\?(?:[A-Za-z0-9!*+/_-]|=[0-9A-Fa-f]{2})+)\?=$`)
)

// ReadMailbox reads a field body that has to be one mailbox, by a grammar of its own: it shares
// nothing with the parser of the standard library, which takes groups, comments and quoted local
// parts too. decode decodes an encoded word; a word that it returns as it came is shown so.
func ReadMailbox(body string, decode func(word string) (string, error)) (name, addr string, err error) {
	m := mailbox.FindStringSubmatch(strings.Trim(body, " \t"))
	if m == nil {
		return "", "", fmt.Errorf("%q is no mailbox", body)
	}
	var b strings.Builder
	before := false // an encoded word was the last
	for i, w := range words.FindAllString(strings.ReplaceAll(m[1], "\n", ""), -1) {
		isEncoded := w[0] != '"' && strings.HasPrefix(w, "=?")
		if i > 0 && !(before && isEncoded) {
			b.WriteByte(' ')
		}
		before = isEncoded
		switch {
		case isEncoded:
			if !encoded.MatchString(w) || len(w) > 75 {
				return "", "", fmt.Errorf("%q has the encoded word %q, which is none", body, w)
			}
			if w, err = decode(w); err != nil {
				return "", "", err
			}
		case w[0] == '"':
			w = strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(w[1 : len(w)-1])
		}
		b.WriteString(w)
	}
	return b.String(), m[2] + m[3], nil
}
