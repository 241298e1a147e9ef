package policy

import (
	"net/mail"
	"strings"
	"testing"
	"time"
)

// scan is the identity of the tests.
var scan = Address{Local: "scan", Domain: "contoso.com"}

// FuzzFrom holds for any bytes in From: exactly one From leaves, with the identity,
// strictly parsable, and no text of the stranger becomes a header line of its own.
func FuzzFrom(f *testing.F) {
	for _, s := range strangeFroms {
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
		parser := mail.AddressParser{WordDecoder: &wordDecoder} // what stays may have any label
		for _, c := range d.Changes {
			if c.Name == "From" {
				value, parser = c.Value, mail.AddressParser{}
			}
			if bad := badValue(c.Value); bad != "" {
				t.Fatalf("From %q: %s of %s is %q: %s", from, c.Op, c.Name, c.Value, bad)
			}
		}
		a, err := parser.Parse(strings.NewReplacer("\r", "", "\n", "").Replace(value))
		if err != nil || !splitAddress(a.Address).Same(d.Identity) {
			t.Fatalf("From %q leaves as %q: %v %v, want %s", from, value, a, err, d.Identity)
		}
		if safeName(a.Name, d.Identity) != tidyName(a.Name) {
			t.Fatalf("From %q leaves with the name %q", from, a.Name)
		}
	})
}
