package corpus

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"net/mail"
	"slices"
	"strings"

	"golang.org/x/text/encoding/htmlindex"
)

// A Message is a message as Postfix divides it.
type Message struct {
	Fields []Field
	Body   string // lines end with LF
}

// A Field is one header field.
type Field struct {
	Name  string // without blanks before the colon
	Value string // all that stands behind the colon, folds with LF
	Text  string // the whole field as it stands
}

// Parse divides a message as smtpd(8) and cleanup(8) do: a line ends at LF, and a CR before it is
// part of the line end; the header goes as far as there are fields, and a line that is neither one
// nor empty is the first one of the body; the first line of an mbox file becomes a field.
func Parse(wire []byte) Message {
	var m Message
	lines := slices.Collect(strings.Lines(string(wire)))
	for i, l := range lines {
		l = strings.TrimSuffix(l, "\n")
		lines[i] = strings.TrimSuffix(l, "\r") + "\n"
	}
	if len(lines) > 0 && strings.HasPrefix(strings.TrimLeft(lines[0], ">"), "From ") {
		lines[0] = "X-Mailbox-Line: " + lines[0]
	}
	for i, l := range lines {
		text := strings.TrimSuffix(l, "\n")
		if n := len(m.Fields); n > 0 && text != "" && (text[0] == ' ' || text[0] == '\t') {
			m.Fields[n-1].Value += "\n" + text
			m.Fields[n-1].Text += "\n" + text
			continue
		}
		name, value, ok := strings.Cut(text, ":")
		if name = strings.TrimRight(name, " \t"); ok && isName(name) {
			m.Fields = append(m.Fields, Field{Name: name, Value: value, Text: text})
			continue
		}
		if text == "" {
			i++
		}
		m.Body = strings.Join(lines[i:], "")
		break
	}
	return m
}

func isName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// Get returns the fields of that name, whatever its case.
func (m Message) Get(name string) []Field {
	var list []Field
	for _, f := range m.Fields {
		if strings.EqualFold(f.Name, name) {
			list = append(list, f)
		}
	}
	return list
}

// ours are the fields that a relay may change, in lower case. All others have to leave as they
// came, unless the case says otherwise.
var ours = []string{"from", "sender", "reply-to", "message-id", "date", "auto-submitted", "x-auto-response-suppress",
	"x-original-from", "dkim-signature", "tls-required"}

// dropped are the fields that cleanup(8) removes from every message (message_drop_headers).
var dropped = []string{"bcc", "content-length", "resent-bcc", "return-path"}

// Compare says in which ways what left differs from what the case wants: the message, its envelope
// sender, and who authenticated.
func (c *Case) Compare(got Message, sender, mailbox string) []string {
	var bad []string
	fail := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	sent := Parse(c.Wire())
	if s := decode(got, "From"); len(s) != 1 || !like(s[0], c.From) {
		fail("From is %q, want %s", s, c.From)
	}
	if !strings.EqualFold(sender, c.Sender) {
		fail("the envelope sender is %q, want %q", sender, c.Sender)
	}
	if mailbox != c.Mailbox {
		fail("the mailbox is %q, want %q", mailbox, c.Mailbox)
	}
	if got.Body != sent.Body {
		fail("the body has changed\n got  %.2000q\n want %.2000q", got.Body, sent.Body)
	}
	for _, f := range c.Has {
		name, want, _ := strings.Cut(f, ": ")
		if s := decode(got, name); !slices.ContainsFunc(s, func(v string) bool { return like(v, want) }) {
			fail("%s is %q, want %q", name, s, want)
		}
	}
	for _, f := range c.HasNot {
		name, unwanted, ok := strings.Cut(f, ": ")
		if s := decode(got, name); slices.ContainsFunc(s, func(v string) bool { return !ok || like(v, unwanted) }) {
			fail("%s is %q, want none of %q", name, s, f)
		}
	}
	for _, b := range c.unlike(sent, got) {
		fail("%s", b)
	}
	return bad
}

// unlike says which fields have not left byte for byte, or have become too many.
func (c *Case) unlike(sent, got Message) []string {
	var bad []string
	same := func(what string, keep func(name string) bool) {
		s, g := texts(sent, keep), texts(got, keep)
		if !slices.Equal(s, g) {
			bad = append(bad, fmt.Sprintf("%s\n sent %.4000q\n left %.4000q", what, s, g))
		}
	}
	if c.Unchanged {
		same("the header has changed", func(n string) bool { return !slices.Contains(dropped, n) })
	}
	same("fields have changed that nobody should touch", func(n string) bool { return !slices.Contains(ours, n) && !slices.Contains(dropped, n) && !c.changes(n) })
	for _, name := range c.Keep {
		same(name+" has changed", func(n string) bool { return n == strings.ToLower(name) })
		if len(got.Get(name)) == 0 {
			bad = append(bad, name+" is not there")
		}
	}
	for _, name := range append(c.Changed, ours...) {
		if n, was := len(got.Get(name)), len(sent.Get(name)); n > max(1, was) {
			bad = append(bad, fmt.Sprintf("%d fields are named %s, there were %d", n, name, was))
		}
	}
	return bad
}

// changes reports whether the case names a field, in lower case, as one that changes.
func (c *Case) changes(name string) bool {
	return slices.ContainsFunc(c.Changed, func(n string) bool { return strings.EqualFold(n, name) })
}

func texts(m Message, keep func(name string) bool) []string {
	var list []string
	for _, f := range m.Fields {
		if keep(strings.ToLower(f.Name)) {
			list = append(list, f.Text)
		}
	}
	return list
}

// words decodes encoded words (RFC 2047). Names in other character sets than those of the standard
// library are only met where they leave as they came.
var words = &mime.WordDecoder{CharsetReader: func(charset string, in io.Reader) (io.Reader, error) {
	e, err := htmlindex.Get(charset)
	if err != nil {
		return nil, err
	}
	return e.NewDecoder().Reader(in), nil
}}

// decode returns the values of all fields of that name as a person would read them: addresses as
// "NAME" <ADDRESS>, by the strict parser of the standard library, and what it does not take as it
// stands.
func decode(m Message, name string) []string {
	var list []string
	for _, f := range m.Get(name) {
		v := strings.TrimSpace(strings.NewReplacer("\r", "", "\n", "").Replace(f.Value))
		switch strings.ToLower(name) {
		case "from", "sender", "reply-to":
			if s, ok := addresses(v); ok {
				list = append(list, s)
				continue
			}
		default:
			if s, err := words.DecodeHeader(v); err == nil {
				v = s
			}
		}
		list = append(list, v)
	}
	return list
}

func addresses(v string) (string, bool) {
	parsed, err := (&mail.AddressParser{WordDecoder: words}).ParseList(v)
	if err != nil {
		return "", false
	}
	var list []string
	for _, a := range parsed {
		if a.Name == "" {
			list = append(list, a.Address)
			continue
		}
		list = append(list, `"`+a.Name+`" <`+a.Address+`>`)
	}
	return strings.Join(list, ", "), true
}

// like compares a text with one in which an ellipsis stands for any text.
func like(s, want string) bool {
	parts := strings.Split(want, "…")
	if len(parts) == 1 {
		return s == want
	}
	s, ok := strings.CutPrefix(s, parts[0])
	for _, p := range parts[1 : len(parts)-1] {
		var found bool
		_, s, found = strings.Cut(s, p)
		ok = ok && found
	}
	return ok && strings.HasSuffix(s, parts[len(parts)-1])
}

// WithoutFirst returns the message without its first field if that has the name, such as the
// Received that a relay puts on top.
func (m Message) WithoutFirst(name string) Message {
	if len(m.Fields) > 0 && strings.EqualFold(m.Fields[0].Name, name) {
		m.Fields = m.Fields[1:]
	}
	return m
}

// Relayed returns the case as it leaves smtp(8) where no policy changes it. cleanup(8) makes a
// blank of a CR that is not part of a line end (cleanup_replace_stray_cr_lf); smtp(8) breaks lines
// longer than limit bytes (smtp_line_length_limit) and goes on behind a blank.
func (c *Case) Relayed(limit int) *Case {
	var b bytes.Buffer
	for line := range bytes.Lines(c.Wire()) {
		text := bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		text = bytes.ReplaceAll(text, []byte("\r"), []byte(" "))
		for room := limit; len(text) > room; room = limit - 1 {
			b.Write(text[:room])
			b.WriteString("\r\n ")
			text = text[room:]
		}
		b.Write(text)
		b.WriteString("\r\n")
	}
	r := *c
	r.raw, r.asIs = b.Bytes(), true
	return &r
}
