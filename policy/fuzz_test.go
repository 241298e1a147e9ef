package policy

import (
	"net/mail"
	"strings"
	"testing"
	"time"
)

// FuzzFrom holds for any bytes in From: exactly one From leaves, with the identity,
// strictly parsable, and no text of the stranger becomes a header line of its own.
func FuzzFrom(f *testing.F) {
	for _, s := range []string{
		"Scanner 3 <scan@contoso.com>", "scanner3@floor 3 <bad", "\"Müller, Hans\" <hans@contoso.com>", "=?utf-8?q?=0D=0ABcc:_x@y?= <a@b.c>",
		"=?gb2312?b?yfzX?= <a@b.c>", "a <b> <c@d.e>, \"", "(((", "<<a@b>", "undisclosed-recipients:;", "\x00\xff@", "a@b\r\nBcc: c@d", "@a,@b:c@d.e",
		"=?utf-8?b?", "ceo@contoso.com\u202e <x@y.z>", strings.Repeat("a ", 600) + "<a@b.c>", strings.Repeat("ü", 600),
	} {
		f.Add("root@mfp", s)
	}
	s := contoso()
	p, _ := New(s)
	f.Fuzz(func(t *testing.T, sender, from string) {
		d := p.Decide(&Request{Peer: peer("10.2.0.9", ""), Sender: sender, Fields: []Field{{"From", from}}, Now: time.Unix(0, 0)})
		if d.Action != Accept {
			t.Fatalf("From %q: %v", from, d.Reply)
		}
		value := from
		for _, c := range d.Changes {
			if c.Name == "From" {
				value = c.Value
			}
			if bad := badValue(c.Value); bad != "" {
				t.Fatalf("From %q: %s of %s is %q: %s", from, c.Op, c.Name, c.Value, bad)
			}
		}
		a, err := mail.ParseAddress(strings.NewReplacer("\r", "", "\n", "").Replace(value))
		if err != nil || !splitAddress(a.Address).Same(d.Identity) {
			t.Fatalf("From %q leaves as %q: %v %v, want %s", from, value, a, err, d.Identity)
		}
		if safeName(a.Name, d.Identity) != a.Name {
			t.Fatalf("From %q leaves with the name %q", from, a.Name)
		}
	})
}

// badValue says what is wrong with a field body that we write.
func badValue(v string) string {
	for i, line := range strings.Split(v, "\n") {
		switch {
		case i > 0 && (line == "" || line[0] != ' ' || strings.TrimSpace(line) == ""):
			return "a line break outside folding"
		case len(line) > 990:
			return "an over-long line"
		case strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r >= 0x7f }):
			return "something that is not printable ASCII"
		}
	}
	return ""
}
