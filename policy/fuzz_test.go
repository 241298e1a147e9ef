package policy

import (
	"net/mail"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/policy/address"
	"github.com/sendas/sendas/policy/address/addresstest"
)

// FuzzFrom holds for any bytes in From: exactly one From leaves, with the identity,
// strictly parsable, and no text of the stranger becomes a header line of its own.
func FuzzFrom(f *testing.F) {
	for _, s := range addresstest.StrangeFields {
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
		parser := mail.AddressParser{WordDecoder: &address.WordDecoder} // what stays may have any label
		for _, c := range d.Changes {
			if c.Name == "From" {
				value, parser = c.Value, mail.AddressParser{}
			}
			if bad := addresstest.BadValue(c.Value); bad != "" {
				t.Fatalf("From %q: %s of %s is %q: %s", from, c.Op, c.Name, c.Value, bad)
			}
		}
		a, err := parser.Parse(strings.NewReplacer("\r", "", "\n", "").Replace(value))
		if err != nil || !address.SplitAddress(a.Address).Same(d.Identity) {
			t.Fatalf("From %q leaves as %q: %v %v, want %s", from, value, a, err, d.Identity)
		}
		if address.SafeName(a.Name, d.Identity) != address.TidyName(a.Name) {
			t.Fatalf("From %q leaves with the name %q", from, a.Name)
		}
	})
}
