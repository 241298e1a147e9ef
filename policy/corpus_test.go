package policy

import (
	"net/mail"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/policy/address"
	"github.com/sendas/sendas/policy/address/addresstest"
	"github.com/sendas/sendas/policy/corpus"
)

// corpusSite is the site that the corpus is written for; contrib/lab has the same as a
// configuration file.
func corpusSite() Settings {
	return Settings{
		Domains: []string{"contoso.com"},
		Mailboxes: []MailboxSettings{
			{Address: "erp@contoso.com", SendAs: []string{"billing@contoso.com", "hr@contoso.com"}},
			{Address: "scan@contoso.com"},
			{Address: "monitor@contoso.com"},
		},
		Clients: []ClientSettings{
			{Name: "sap", Networks: []string{"10.1.0.0/16"}, From: "billing@contoso.com"},
			{Name: "printers", Networks: []string{"10.2.0.0/16"}, From: "scan@contoso.com"},
			{Name: "monitoring", Logins: []string{"nagios"}, Senders: []string{"*@contoso.com"}, OnUnauthorized: "reject"},
			{Name: "this-host", Networks: []string{"127.0.0.0/8"}, From: "monitor@contoso.com"},
		},
	}
}

// TestCorpus makes of each message of the corpus what must become of it.
func TestCorpus(t *testing.T) {
	p := mustPolicy(t, corpusSite())
	cases, err := corpus.Load()
	if err != nil {
		t.Fatal(err)
	}
	if len(cases) < 110 {
		t.Errorf("%d cases, want at least 110", len(cases))
	}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			sent := corpus.Parse(c.Wire())
			d := p.Decide(corpusRequest(c, sent))
			if d.Action != Accept {
				if c.Accept || !strings.HasPrefix(d.Reply.String(), c.Reply) {
					t.Errorf("%s: answered %q, want %q", c.Readme, d.Reply, c.Reply)
				}
				return
			}
			if !c.Accept {
				t.Fatalf("%s: accepted as %s, want %q", c.Readme, d.Identity, c.Reply)
			}
			left := applyChanges(t, sent, d.Changes)
			sender := d.Sender
			if sender == "" {
				sender = withoutRoute(c.MailFrom)
			}
			for _, bad := range c.Compare(left, sender, d.Mailbox.Address.String()) {
				t.Errorf("%s: %s", c.Readme, bad)
			}
			checkChanges(t, sent, left, &d)
		})
	}
}

// corpusRequest is what the milter knows of a message: one blank after the colon is Postfix's.
func corpusRequest(c *corpus.Case, m corpus.Message) *Request {
	r := &Request{Peer: Peer{Addr: c.Client, Login: c.Login}, Sender: c.MailFrom, Rcpts: c.Rcpts, QueueID: "4bXq2F0nz7z1",
		Now: time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)}
	for _, f := range m.Fields {
		r.AddField(f.Name, strings.TrimPrefix(f.Value, " "))
	}
	return r
}

// withoutRoute drops a source route (RFC 5321, appendix C) from an envelope address, as smtpd(8)
// does.
func withoutRoute(addr string) string {
	if route, rest, ok := strings.Cut(addr, ":"); ok && strings.HasPrefix(route, "@") {
		return rest
	}
	return addr
}

// applyChanges does what cleanup(8) does: one change after the other, and a deleted field no longer
// counts.
func applyChanges(t *testing.T, m corpus.Message, changes []HeaderChange) corpus.Message {
	t.Helper()
	m.Fields = slices.Clone(m.Fields)
	for _, c := range changes {
		f := corpus.Field{Name: c.Name, Value: " " + c.Value, Text: c.Name + ": " + c.Value}
		i := fieldIndex(m, c)
		switch {
		case c.Op == Add:
			m.Fields = append(m.Fields, f)
		case i < 0:
			t.Errorf("%s of %s[%d], which is not there", c.Op, c.Name, c.Index)
		case c.Op == Change:
			m.Fields[i] = f
		case c.Op == Delete:
			m.Fields = slices.Delete(m.Fields, i, i+1)
		}
	}
	return m
}

func fieldIndex(m corpus.Message, c HeaderChange) int {
	n := 0
	return slices.IndexFunc(m.Fields, func(f corpus.Field) bool {
		if strings.EqualFold(f.Name, c.Name) {
			n++
		}
		return n == c.Index && n > 0
	})
}

// encodedWord finds what should be one (RFC 2047, section 2).
var encodedWord = regexp.MustCompile(`=\?utf-8\?[bqBQ]\?[^ ?]*\?=`)

// checkChanges checks what holds for every message that leaves.
func checkChanges(t *testing.T, sent, left corpus.Message, d *Decision) {
	t.Helper()
	from := left.Get("From")
	if len(from) != 1 {
		t.Fatalf("%d From fields leave", len(from))
	}
	name, addr, err := addresstest.ReadMailbox(from[0].Value, address.WordDecoder.Decode)
	if err != nil || !strings.EqualFold(addr, d.Identity.String()) {
		t.Errorf("From%q is not the identity %s: %v", from[0].Value, d.Identity, err)
	}
	parser := mail.AddressParser{WordDecoder: &address.WordDecoder}
	a, err := parser.Parse(strings.TrimSpace(strings.ReplaceAll(from[0].Value, "\n", "")))
	if err != nil || a.Address != addr || a.Name != name {
		t.Errorf("From%q is %q <%s> to one reader, %v %v to another", from[0].Value, name, addr, a, err)
	}
	for _, name := range []string{"Message-ID", "Date"} {
		if f := left.Get(name); len(f) == 0 || strings.TrimSpace(f[0].Value) == "" {
			t.Errorf("%s is missing", name)
		}
	}
	changed := map[string]bool{}
	for _, c := range d.Changes {
		changed[strings.ToLower(c.Name)] = true
		checkValue(t, c)
	}
	untouched := func(m corpus.Message) (list []string) {
		for _, f := range m.Fields {
			if !changed[strings.ToLower(f.Name)] {
				list = append(list, f.Text)
			}
		}
		return list
	}
	if got, want := untouched(left), untouched(sent); !slices.Equal(got, want) {
		t.Errorf("fields that no change names have changed\n got  %q\n want %q", got, want)
	}
}

// checkValue checks a value that we write: printable ASCII, in lines that RFC 5322 allows, encoded
// words no longer than RFC 2047 allows.
func checkValue(t *testing.T, c HeaderChange) {
	t.Helper()
	if bad := addresstest.BadValue(c.Value); bad != "" {
		t.Errorf("%s of %s is %q: %s", c.Op, c.Name, c.Value, bad)
	}
	if (c.Value == "") != (c.Op == Delete) {
		t.Errorf("%s of %s has the value %q", c.Op, c.Name, c.Value)
	}
	for _, w := range encodedWord.FindAllString(c.Value, -1) {
		if len(w) > 75 && c.Name != "X-Original-From" { // which may quote a device's own
			t.Errorf("%s of %s has an encoded word of %d octets: %s", c.Op, c.Name, len(w), w)
		}
	}
}
