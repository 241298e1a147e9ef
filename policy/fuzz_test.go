package policy

import (
	"net/mail"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/policy/address"
	"github.com/sendas/sendas/policy/address/addresstest"
)

// FuzzFrom holds for any bytes in From: exactly one From leaves, with the identity, which two
// readers that share nothing read alike, and no text of the stranger becomes a header line of its
// own.
func FuzzFrom(f *testing.F) {
	for _, s := range addresstest.StrangeFields {
		f.Add("root@mfp", s)
	}
	s := contoso()
	p, _ := New(s)
	parser := mail.AddressParser{WordDecoder: &address.WordDecoder} // what stays may have any label
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
			if bad := addresstest.BadValue(c.Value); bad != "" {
				t.Fatalf("From %q: %s of %s is %q: %s", from, c.Op, c.Name, c.Value, bad)
			}
		}
		name, addr, err := addresstest.ReadMailbox(value, address.WordDecoder.Decode)
		if err != nil || !address.SplitAddress(addr).Same(d.Identity) {
			t.Fatalf("From %q leaves as %q: %v, want %s", from, value, err, d.Identity)
		}
		if address.SafeName(name, d.Identity) != address.TidyName(name) {
			t.Fatalf("From %q leaves with the name %q", from, name)
		}
		a, err := parser.Parse(strings.ReplaceAll(value, "\n", ""))
		if err != nil || !address.SplitAddress(a.Address).Same(d.Identity) || a.Name != name {
			t.Fatalf("From %q leaves as %q: %q to one reader, %v %v to another", from, value, name, a, err)
		}
	})
}
