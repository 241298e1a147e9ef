package policy

import (
	"net/mail"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/policy/address"
)

// TestFieldsThatStandOnce: several become one, and no address gets lost; where one could, all stay
// as they are.
func TestFieldsThatStandOnce(t *testing.T) {
	p := mustPolicy(t, contoso())
	for _, tc := range []struct{ what, header, want string }{
		{"two", "To: a@x.com\nTo: b@x.com", "-To[2]\n=To[1]: a@x.com,\n b@x.com\n"},
		{"names of other case", "To: a@x.com\nTO: b@x.com", "-TO[2]\n=To[1]: a@x.com,\n b@x.com\n"},
		{"commas at the end", "Cc: a@x.com,\nCc: ,b@x.com", "-Cc[2]\n=Cc[1]: a@x.com,\n b@x.com\n"},
		{"folds", "Cc: a@x.com,\n b@x.com\nCc: c@x.com", "-Cc[2]\n=Cc[1]: a@x.com,\n b@x.com,\n c@x.com\n"},
		{"a group", "To: Team: a@x.com, b@x.com;\nTo: c@x.com", "-To[2]\n=To[1]: Team: a@x.com, b@x.com;,\n c@x.com\n"},
		{"an open comment", "To: a@x.com (the\nTo: b@x.com", "-To[2]\n=To[1]: \"( the\" <a@x.com>,\n b@x.com\n"},
		{"an open bracket, and one that must not leave", "To: <a@x.com\nTo: b@[10.0.0.1]", ""},
		{"the same, and an empty one", "To: \nTo: a@x.com\nTo: a@x.com", "-To[3]\n-To[1]\n"},
		{"empty ones", "Subject: \nSubject: ", "-Subject[2]\n"},
		{"the first of others", "Subject: a\nSubject: b\nReferences: <a@x>\nReferences: <b@x>", "-Subject[2]\n-References[2]\n"},
		{"an empty Message-ID first", "Message-ID: \nMessage-ID: <2@x>", ""}, // see below
		{"encoded names", "To: =?utf-8?q?M=C3=BCller?= <a@x.com>\nTo: =?utf-8?q?B=C3=B6?= <b@x.com>",
			"-To[2]\n=To[1]: =?utf-8?q?M=C3=BCller?= <a@x.com>,\n =?utf-8?q?B=C3=B6?= <b@x.com>\n"},
	} {
		header := complete + "From: scan@contoso.com\n" + tc.header
		if strings.HasPrefix(tc.header, "Message-ID") {
			header, tc.want = "Date: x\nFrom: scan@contoso.com\n"+tc.header, "-Message-ID[1]\n"
		}
		d := p.Decide(&Request{Peer: peer("10.2.0.9", ""), Sender: "scan@contoso.com", Fields: fields(header)})
		if got := show(d.Changes); got != tc.want {
			t.Errorf("%s\n got  %q\n want %q", tc.what, got, tc.want)
		}
	}
	var list []string
	for i := range 1200 {
		list = append(list, "To: colleague.number"+strconv.Itoa(i)+"@department.fabrikam.com")
	}
	d := p.Decide(&Request{Peer: peer("10.2.0.9", ""), Sender: "scan@contoso.com", Fields: fields(complete + "From: scan@contoso.com\n" + strings.Join(list, "\n"))})
	if d.Action != Accept || len(d.Changes) > 0 {
		t.Errorf("1,200 To fields that would be too long as one: %s, %d changes", d.Action, len(d.Changes))
	}
}

// TestTooLong: what Exchange would refuse for its length is refused while the device listens, or is
// shortened, or goes anyway.
func TestTooLong(t *testing.T) {
	p := mustPolicy(t, contoso())
	decide := func(header string) Decision {
		return p.Decide(&Request{Peer: peer("10.2.0.9", ""), Sender: "scan@contoso.com", Now: time.Unix(0, 0), Fields: fields(complete + "From: scan@contoso.com\n" + header)})
	}
	const most = "550 5.6.0 the field "
	word := strings.Repeat("word ", 6600)
	for _, tc := range []struct{ what, header, want string }{
		{"any field", "X-Report: " + word, most + "X-Report has 33000 bytes, and Exchange Online takes 32768; shorten it, or send the message in parts"},
		{"Subject", "Subject: " + word, most + "Subject has 33000"},
		{"To", "To: " + strings.Repeat("a@fabrikam.com,", 2200), most + "To has 33000"},
		{"folded", "Keywords: " + strings.Repeat("word\n ", 6600), most + "Keywords has"},
		{"just short enough", "Autocrypt: " + word[:maxValue], ""},
		{"a Sender, which goes", "Sender: " + word, ""},
		{"blanks", "References: " + strings.Repeat(" ", 33000), ""},
	} {
		d := decide(tc.header)
		if d.Action == Accept {
			if tc.want != "" {
				t.Errorf("%s: accepted", tc.what)
			}
		} else if tc.want == "" || !strings.HasPrefix(d.Reply.String(), tc.want) {
			t.Errorf("%s: %s, want %s", tc.what, d.Reply, tc.want)
		}
	}
	var ids []string
	for i := range 2000 {
		ids = append(ids, "<message."+strconv.Itoa(i)+"@fabrikam.com>")
	}
	d := decide("References: " + strings.Join(ids, "\n "))
	if len(d.Changes) != 1 || d.Changes[0].Name != "References" {
		t.Fatalf("long References: %v", d.Reply)
	}
	got := strings.Fields(d.Changes[0].Value)
	if n := len(got); TooLong(d.Changes[0].Value) || n < 500 || got[0] != ids[0] || !slices.Equal(got[1:], ids[len(ids)-n+1:]) {
		t.Errorf("long References leave with %d ids, from %s and %s to %s", n, got[0], got[1], got[n-1])
	}
	if d := decide("In-Reply-To: <" + strings.Repeat("x", 33000) + "@y>"); d.Action != Accept || show(d.Changes) != "-In-Reply-To[1]\n" {
		t.Errorf("one message id of 33,000 bytes: %s %d changes", d.Action, len(d.Changes))
	}
}

// FuzzLists holds for any bytes in two To fields and a Reply-To: what leaves is no other field, and
// has all addresses that were there, in the eyes of another reader than the one that wrote it.
func FuzzLists(f *testing.F) {
	f.Add("a@b.com", "c@d.com", "e@f.com g@h.com")
	f.Add("\"a <a@b.com>", "x (y <c@d.com>", "<e@f.com> <g@h.com>")
	f.Add(strings.Repeat("a b@c.com,", 200), "\xff <c@d.com>", strings.Repeat("a@b.com\t", 300))
	p, _ := New(contoso())
	f.Fuzz(func(t *testing.T, to, to2, reply string) {
		list := []Field{{"To", to}, {"To", to2}, {"Reply-To", reply}}
		d := p.Decide(&Request{Peer: peer("10.2.0.9", ""), Sender: "scan@contoso.com", Fields: append(fields(complete+"From: scan@contoso.com"), list...)})
		if d.Action != Accept {
			return
		}
		merged := slices.ContainsFunc(d.Changes, func(c HeaderChange) bool { return c.Name == "To" && c.Op == Delete })
		for _, c := range d.Changes {
			for i, line := range strings.Split(c.Value, "\n") {
				if i > 0 && (strings.Trim(line, " \t") == "" || line[0] != ' ' && line[0] != '\t') || strings.ContainsAny(line, "\r\x00") {
					t.Fatalf("%q: %s of %s is %q", list, c.Op, c.Name, c.Value)
				}
			}
			if c.Name == "Reply-To" && c.Op == Change {
				if _, err := mail.ParseAddressList(strings.ReplaceAll(c.Value, "\n", "")); err != nil && !strings.Contains(c.Value, "=?") {
					t.Fatalf("%q: Reply-To leaves as %q: %v", reply, c.Value, err)
				}
				for _, e := range address.ParseWhole(reply) {
					if e.Spec.Valid() && !strings.Contains(c.Value, e.Spec.ASCII().String()) {
						t.Fatalf("%q: Reply-To leaves as %q, without %s", reply, c.Value, e.Spec)
					}
				}
			}
			if c.Name == "To" && c.Op == Change && merged {
				for _, e := range append(address.ParseWhole(to), address.ParseWhole(to2)...) {
					left := strings.Map(visible, c.Value) // an address as it was written, or as we write it
					if e.Spec.Valid() && !strings.Contains(left, e.Spec.Local) && !strings.Contains(left, e.Spec.ASCII().String()) {
						t.Fatalf("%q and %q: To leaves as %q, without %s", to, to2, c.Value, e.Spec)
					}
				}
			}
		}
	})
}

// visible leaves out what no reader sees.
func visible(r rune) rune {
	if r < ' ' || r == 0x7f {
		return -1
	}
	return r
}

// TestHostileLists: what costs a reader of lists most is over at once.
func TestHostileLists(t *testing.T) {
	p := mustPolicy(t, contoso())
	for _, unit := range []string{`<`, `"`, `(`, `<"\"`, `("\"`, `\"`, `,`, `<(`, `<((((((((((((((((((((`, `a@b.c,`, `=?utf-8?q?`, `a@`, `:`, " ", "ü<(", "a:b@c.de;"} {
		v := strings.Repeat(unit, 32_000/len(unit))
		start := time.Now()
		p.Decide(&Request{Peer: peer("10.2.0.9", ""), Fields: fields(complete + "From: scan@contoso.com\nTo: " + v + "\nTo: " + v + "x\nReply-To: " + v + "\nCc: " + v)})
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("32 kB of %q: %v", unit, took)
		}
	}
}
