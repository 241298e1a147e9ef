package policy

import (
	"net/netip"
	"strings"
	"testing"
)

// shop is a host that receives mail too: for a shop, a partner, a list of aliases, mailboxes.
func shop() *ClassData {
	return &ClassData{
		Version: ClassVersion, Origin: "relay.contoso.com", Delimiter: "+",
		Local: []string{"localhost", "relay.contoso.com", "shop.example"}, Alias: []string{"lists.example"}, Mailbox: []string{"box.example"},
		Relay: []string{"partner.example", ".partner.example"}, LocalWay: "local:relay.contoso.com", MailboxWay: "lmtp:unix:private/dovecot", RelayWay: "relay",
		Defaults: []string{"smtp"},
		Ways: map[string]string{"fax.example": "fax:", ".inner.example": "smtp:[192.0.2.40]:2525", "sap.example": "sendas:[smtp.office365.com]:0587",
			"mx.example": ":[mx.inner]", "plain.example": ":", "boss@mixed.example": "uucp:host", "relay.contoso.com": ":"},
		Aliases: map[string][]string{
			"info@shop.example": {"bob@shop.example"}, "sales@shop.example": {"bob@shop.example", "sales@fabrikam.com"}, "loop@shop.example": {"pool@shop.example"},
			"pool@shop.example": {"loop@shop.example"}, "self@shop.example": {"self@shop.example"}, "gone@shop.example": {"@"}, "all@lists.example": {"a@lists.example", "b@lists.example"},
			"a@lists.example": {"bob@shop.example"}, "b@lists.example": {"a@lists.example", "c@partner.example"}, "out@lists.example": {"all@lists.example", "x@fabrikam.com"},
			"@old.example": {"@shop.example"}, "@away.example": {"@fabrikam.com"}, "webmaster": {"hans@fabrikam.com"}, "boss@fabrikam.com": {"bob@shop.example"},
		},
		LocalAliases: map[string][]string{"root": {"admin"}, "admin": {"admin@fabrikam.com"}, "bob": {"bob"}, "cron": {}, "team": {"bob", "anna@partner.example"},
			"ring": {"rang"}, "rang": {"ring"}, "leak": {"bob", "out@lists.example"}, "tail": {"bob", "sales@shop.example"}},
	}
}

func oursRules(t *testing.T, received Received) *Rules {
	t.Helper()
	p, errs := New(Settings{Domains: []string{"contoso.com"}, Submission: "smtp.office365.com:587", Received: received,
		Mailboxes: []MailboxSettings{{Address: "relay@contoso.com"}}, Routes: []RouteSettings{{Name: "submission", Transport: "sendas"}},
		Clients: []ClientSettings{{Name: "lan", Networks: []string{"192.0.2.0/24"}, From: "relay@contoso.com"}}})
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	return p
}

var verdicts = map[Verdict]string{Ours: "ours", Elsewhere: "elsewhere", Doubtful: "doubtful"}

func (p Place) text() string { return strings.TrimSpace(verdicts[p.Verdict] + " " + p.By) }

// TestPlace: whose business a recipient is, by the settings alone, as for sendmail(1), bounces and
// the policy service.
func TestPlace(t *testing.T) {
	p, c := oursRules(t, PassReceived), NewClasses(shop())
	for _, tc := range []struct{ rcpt, want string }{
		{"bob@shop.example", "elsewhere local"},
		{"BOB@Shop.Example", "elsewhere local"},
		{"<bob@shop.example>", "elsewhere local"},
		{"<@gw.example:bob@shop.example>", "elsewhere local"},
		{"bob+news@shop.example", "elsewhere local"},
		{"bob", "elsewhere local"}, // of this host
		{"postmaster", "elsewhere local"},
		{"x@box.example", "elsewhere lmtp"},
		{"x@partner.example", "elsewhere relay"},
		{"x@deep.in.partner.example", "elsewhere relay"},
		{"x@below.box.example", "ours"}, // virtual domains have none below
		{"x@fabrikam.com", "ours"},
		{"x@contoso.com", "ours"},
		{"x@[192.0.2.1]", "ours"},

		{"x@fax.example", "elsewhere fax"},
		{"x@a.inner.example", "elsewhere smtp"},
		{"x@inner.example", "ours"},
		{"x@sap.example", "ours"},   // the entry leads to Microsoft
		{"x@mx.example", "ours"},    // it names no transport
		{"x@plain.example", "ours"}, // it changes nothing
		{"boss@mixed.example", "elsewhere uucp"},
		{"boss+x@mixed.example", "elsewhere uucp"},
		{"other@mixed.example", "ours"},

		{"info@shop.example", "elsewhere local"},
		{"info+x@shop.example", "elsewhere local"},
		{"sales@shop.example", "ours sales@fabrikam.com"},
		{"loop@shop.example", "elsewhere local"}, // Postfix ends a loop as its own target
		{"self@shop.example", "elsewhere local"},
		{"all@lists.example", "elsewhere local"},
		{"out@lists.example", "ours x@fabrikam.com"},
		{"new@lists.example", "doubtful virtual_alias_maps"},
		{"bob@old.example", "elsewhere local"},
		{"sales@old.example", "ours sales@fabrikam.com"}, // two steps
		{"x@away.example", "ours x@fabrikam.com"},
		{"webmaster@shop.example", "ours hans@fabrikam.com"},
		{"webmaster@partner.example", "elsewhere relay"}, // a local part alone counts for this host
		{"boss@fabrikam.com", "elsewhere local"},
		{"gone@shop.example", "doubtful an alias to what is no address"},

		{"root@shop.example", "ours admin@fabrikam.com"},
		{"root+x@shop.example", "ours admin@fabrikam.com"},
		{"root", "ours admin@fabrikam.com"},
		{"root@box.example", "elsewhere lmtp"}, // aliases(5) are those of local(8)
		{"cron@shop.example", "elsewhere local"},
		{"team@shop.example", "elsewhere local"},
		{"ring@shop.example", "elsewhere local"},
		{"leak@shop.example", "ours x@fabrikam.com"}, // new mail, which meets virtual_alias_maps
		{"tail@shop.example", "elsewhere local"},     // local(8) itself delivers what is of its class

		{"victim%fabrikam.com@shop.example", "doubtful allow_percent_hack"},
		{"fabrikam.com!victim@shop.example", "doubtful allow_percent_hack"},
		{`"victim@fabrikam.com"@shop.example`, "doubtful allow_percent_hack"},
		{"", "doubtful no address"},
		{"@shop.example", "doubtful no address"},
	} {
		if got := p.Place(c, tc.rcpt, Hint{}).text(); got != tc.want {
			t.Errorf("%q: %s, want %s", tc.rcpt, got, tc.want)
		}
	}
	if got := p.Place(nil, "bob@shop.example", Hint{Mailer: "local"}).text(); got != "ours" {
		t.Errorf("nobody has said anything: %s", got)
	}
}

// TestPlaceByHint: what Postfix itself says at RCPT, where it says something.
func TestPlaceByHint(t *testing.T) {
	p, c := oursRules(t, PassReceived), NewClasses(shop())
	for _, tc := range []struct {
		rcpt string
		hint Hint
		want string
	}{
		// Of a sender in no table Postfix says its default transport: such mail is ours all the same.
		{"x@fabrikam.com", Hint{"smtp", "fabrikam.com", "x@fabrikam.com"}, "ours"},
		{"x@fabrikam.com", Hint{"sendas", "[smtp.office365.com]:00587", "x@fabrikam.com"}, "ours"},
		{"bob@shop.example", Hint{"local", "relay.contoso.com", "bob@shop.example"}, "elsewhere local"},
		{"bob", Hint{"local", "relay.contoso.com", "bob@relay.contoso.com"}, "elsewhere local"},
		{"x@[192.0.2.1]", Hint{"local", "relay.contoso.com", "x@[192.0.2.1]"}, "elsewhere local"}, // an address of this host
		{"info@shop.example", Hint{"local", "relay.contoso.com", "info@shop.example"}, "elsewhere local"},
		{"sales@shop.example", Hint{"local", "relay.contoso.com", "sales@shop.example"}, "ours sales@fabrikam.com"},
		{"all@lists.example", Hint{"error", "5.1.1 User unknown in virtual alias table", "all@lists.example"}, "elsewhere local"},
		{"x@a.inner.example", Hint{"smtp", "[192.0.2.40]:2525", "x@a.inner.example"}, "elsewhere smtp"},
		{"victim%fabrikam.com@shop.example", Hint{"smtp", "fabrikam.com", "victim@fabrikam.com"}, "ours"},
		// Settings that are younger than what was collected.
		{"x@new.example", Hint{"relay", "new.example", "x@new.example"}, "elsewhere relay"},
		{"x@new.example", Hint{"virtual", "new.example", "x@new.example"}, "elsewhere virtual"},
		{"root@new.example", Hint{"local", "new.example", "root@new.example"}, "ours admin@fabrikam.com"},
		{"x@partner.example", Hint{"smtp", "partner.example", "x@partner.example"}, "ours"},
		{"x@partner.example", Hint{"sendas", "[smtp.office365.com]:587", "x@partner.example"}, "ours"},
		{"x@partner.example", Hint{"relay", "[smtp.office365.com]:587", "x@partner.example"}, "ours"}, // a relayhost
	} {
		if got := p.Place(c, tc.rcpt, tc.hint).text(); got != tc.want {
			t.Errorf("%q %v: %s, want %s", tc.rcpt, tc.hint, got, tc.want)
		}
	}
}

// TestPlaceOfUnlistedClass: where virtual_transport is "error", and transport_maps leads to the mailboxes
// of domains that nobody can list, an alias there has no other way than "error".
func TestPlaceOfUnlistedClass(t *testing.T) {
	data := shop()
	data.MailboxWay = "error"
	data.Opaque = []OpaqueTable{{DoubtClass, "virtual_mailbox_domains", "ldap:/x.cf"}, {DoubtWay, "transport_maps", "ldap:/x.cf"}, {DoubtAlias, "virtual_alias_maps", "ldap:/x.cf"}}
	c := NewClasses(data)
	hint := Hint{Mailer: "error", Host: "unknown.example"}
	for received, want := range map[Received]string{PassReceived: "doubtful virtual_alias_maps", TrustReceived: "elsewhere error"} {
		if got := oursRules(t, received).Place(c, "info@unknown.example", hint).text(); got != want {
			t.Errorf("%s: %s, want %s", received, got, want)
		}
	}
	hint.Host = "5.1.1 no such user"
	if got := oursRules(t, TrustReceived).Place(c, "info@unknown.example", hint).text(); got != "ours" {
		t.Errorf("refused by an entry of transport_maps: %s, want ours", got)
	}
}

// TestPlaceInDoubt: a table that cannot be listed leaves a doubt where it could matter, and nowhere
// else.
func TestPlaceInDoubt(t *testing.T) {
	local, relay := Hint{"local", "relay.contoso.com", ""}, Hint{"relay", "partner.example", ""}
	for _, tc := range []struct {
		doubt Doubt
		rcpt  string
		hint  Hint
		want  string
		trust string // where the site trusts such tables; "" is the same
	}{
		{DoubtAlias, "bob@shop.example", local, "doubtful some_maps", "elsewhere local"},
		{DoubtAlias, "x@partner.example", Hint{}, "doubtful some_maps", "elsewhere relay"},
		{DoubtAlias, "x@fabrikam.com", Hint{}, "ours", ""},
		{DoubtAlias, "sales@shop.example", Hint{}, "ours sales@fabrikam.com", ""},
		{DoubtLocal, "tom@shop.example", local, "doubtful some_maps", "elsewhere local"},
		{DoubtLocal, "cron@shop.example", local, "elsewhere local", ""}, // that one is known
		{DoubtLocal, "x@partner.example", relay, "elsewhere relay", ""},
		{DoubtClass, "x@unknown.example", Hint{}, "doubtful some_maps", ""},
		{DoubtClass, "x@unknown.example", relay, "elsewhere relay", ""},
		{DoubtClass, "x@unknown.example", Hint{Mailer: "smtp", Host: "unknown.example"}, "ours", ""},
		{DoubtClass, "bob@shop.example", Hint{}, "elsewhere local", ""},
		{DoubtWay, "bob@shop.example", Hint{}, "doubtful some_maps", ""}, // a pattern may lead it to Microsoft
		{DoubtWay, "bob@shop.example", local, "elsewhere local", ""},
		{DoubtWay, "bob@shop.example", Hint{Mailer: "sendas", Host: "[smtp.office365.com]:587"}, "ours", ""},
		{DoubtWay, "x@fabrikam.com", Hint{}, "doubtful some_maps", ""},
		{DoubtDefault, "x@fabrikam.com", Hint{Mailer: "shop", Host: "[192.0.2.7]"}, "ours", ""}, // the sender may have chosen it
		{DoubtDefault, "bob@shop.example", local, "elsewhere local", ""},
		{DoubtDefault, "x@unknown.example", Hint{Mailer: "lmtp", Host: "unix:private/dovecot"}, "elsewhere lmtp", ""}, // virtual_transport
		{DoubtDefault, "x@unknown.example", Hint{Mailer: "lmtp", Host: "inet:elsewhere:24"}, "ours", ""},
		{DoubtDefault, "x@unknown.example", Hint{Mailer: "local", Host: "Relay.contoso.com"}, "elsewhere local", ""},
		{DoubtDefault, "x@unknown.example", Hint{Mailer: "local", Host: "fabrikam.com"}, "ours", ""},
		{DoubtClass, "x@unknown.example", Hint{Mailer: "error", Host: "unknown.example"}, "ours", ""},
	} {
		data := shop()
		data.Opaque = []OpaqueTable{{tc.doubt, "some_maps", "mysql:/etc/x.cf"}}
		c := NewClasses(data)
		if got := oursRules(t, PassReceived).Place(c, tc.rcpt, tc.hint).text(); got != tc.want {
			t.Errorf("%s: %q %v: %s, want %s", tc.doubt, tc.rcpt, tc.hint, got, tc.want)
		}
		want := tc.trust
		if want == "" {
			want = tc.want
		}
		if got := oursRules(t, TrustReceived).Place(c, tc.rcpt, tc.hint).text(); got != want {
			t.Errorf("%s, trusted: %q %v: %s, want %s", tc.doubt, tc.rcpt, tc.hint, got, want)
		}
	}
}

// TestCopies: a copy that leaves does so under the stranger's name, so all mail is ours.
func TestCopies(t *testing.T) {
	p := oursRules(t, PassReceived)
	for _, tc := range []struct{ copies, want string }{
		{"bob@shop.example", "elsewhere relay"},
		{"archive@fabrikam.com", "ours archive@fabrikam.com"},
		{"root", "ours admin@fabrikam.com"},
	} {
		data := shop()
		data.Copies = []string{tc.copies}
		if got := p.Place(NewClasses(data), "x@partner.example", Hint{}).text(); got != tc.want {
			t.Errorf("copies to %s: %s, want %s", tc.copies, got, tc.want)
		}
	}
}

// TestWildcard: an entry for all recipients holds for those of this host too (transport(5)), where
// none changes nothing for them.
func TestWildcard(t *testing.T) {
	p, data := oursRules(t, PassReceived), shop()
	for _, tc := range []struct{ way, rcpt, want string }{
		{"smtp:[outbound.example]", "x@fabrikam.com", "elsewhere smtp"},
		{"smtp:[outbound.example]", "bob@shop.example", "elsewhere smtp"},
		{"smtp:[outbound.example]", "bob@relay.contoso.com", "elsewhere local"},
		{"smtp:[SMTP.office365.com]:587", "bob@shop.example", "ours"},
		{"relay:[other.example], [smtp.office365.com]:587", "bob@shop.example", "ours"},
	} {
		data.Ways["*"] = tc.way
		if got := p.Place(NewClasses(data), tc.rcpt, Hint{}).text(); got != tc.want {
			t.Errorf("* %s: %s: %s, want %s", tc.way, tc.rcpt, got, tc.want)
		}
	}
}

// TestWayToMicrosoft: a class whose transport leads where sendas leads is sendas' own, however the
// next-hop is written.
func TestWayToMicrosoft(t *testing.T) {
	p := oursRules(t, PassReceived)
	for _, tc := range []struct{ way, want string }{
		{"relay", "elsewhere relay"},
		{"relay:", "elsewhere relay"},
		{"sendas:[192.0.2.1]", "ours"},
		{"relay:[smtp.office365.com]:587", "ours"},
		{"relay:[smtp.office365.com]:submission", "ours"},
		{"relay:SMTP.office365.com:00587", "ours"},
		{"relay:[192.0.2.1], [smtp.office365.com]", "ours"},
		{"relay:[smtp.office365.com.example]:587", "elsewhere relay"},
		{"relay:[2001:db8::1]:587", "elsewhere relay"},
	} {
		data := shop()
		data.RelayWay = tc.way
		if got := p.Place(NewClasses(data), "x@partner.example", Hint{}).text(); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.way, got, tc.want)
		}
	}
}

// TestLongAliases: a table that never ends ends here.
func TestLongAliases(t *testing.T) {
	data := shop()
	for i := range 2 * maxWalk {
		data.Aliases[strings.Repeat("x", 1+i)+"@shop.example"] = []string{strings.Repeat("x", 2+i) + "@shop.example"}
	}
	if got := oursRules(t, PassReceived).Place(NewClasses(data), "x@shop.example", Hint{}).text(); got != "doubtful virtual_alias_recursion_limit" {
		t.Errorf("got %s", got)
	}
}

// TestPasses: what becomes of a message, by all its recipients.
func TestPasses(t *testing.T) {
	const here, there, alias, unsure = "bob@shop.example", "x@fabrikam.com", "sales@shop.example", "new@lists.example"
	for _, tc := range []struct {
		received Received
		client   string
		rcpts    []string
		action   Action
		reasons  string
	}{
		{PassReceived, "198.51.100.9", []string{here}, Pass, "elsewhere"},
		{PassReceived, "198.51.100.9", []string{here, "x@partner.example"}, Pass, "elsewhere"},
		{PassReceived, "192.0.2.9", []string{here}, Pass, "elsewhere"},
		{PassReceived, "198.51.100.9", []string{there}, Reject, "no-client"},
		{PassReceived, "198.51.100.9", []string{here, there}, Reject, "mixed no-client"},
		{PassReceived, "198.51.100.9", []string{alias}, Reject, "alias-outside no-client"},
		{PassReceived, "198.51.100.9", []string{unsure}, Reject, "doubt no-client"},
		{PassReceived, "192.0.2.9", []string{there}, Accept, "client not-authorized client-from"},
		{PassReceived, "192.0.2.9", []string{there, here}, Accept, "mixed client not-authorized client-from"},
		{PassReceived, "192.0.2.9", []string{here, alias}, Accept, "mixed alias-outside client not-authorized client-from"},
		{PassReceived, "192.0.2.9", []string{there, alias}, Accept, "alias-outside client not-authorized client-from"},
		{PassReceived, "192.0.2.9", nil, Accept, "client not-authorized client-from"},
		{RefuseReceived, "198.51.100.9", []string{here}, Reject, "elsewhere no-client"},
		{RefuseReceived, "192.0.2.9", []string{here}, Pass, "elsewhere"},
		{TrustReceived, "198.51.100.9", []string{here}, Pass, "elsewhere"},
	} {
		p, c := oursRules(t, tc.received), NewClasses(shop())
		r := &Request{Peer: Peer{Addr: netip.MustParseAddr(tc.client)}, Sender: "friend@example.com", Rcpts: tc.rcpts,
			Fields: []Field{{"From", "Friend <friend@example.com>"}, {"TLS-Required", "no"}, {"To", strings.Repeat("y", 2000)}}}
		for _, to := range tc.rcpts {
			r.Places = append(r.Places, p.Place(c, to, Hint{}))
		}
		d := p.Decide(r)
		var codes []string
		for _, x := range d.Reasons {
			codes = append(codes, string(x.Code))
			if x.String() == string(x.Code) {
				t.Errorf("%s has no sentence", x.Code)
			}
		}
		if got := strings.Join(codes, " "); d.Action != tc.action || got != tc.reasons {
			t.Errorf("%s %s %v: %s, %s; want %s, %s", tc.received, tc.client, tc.rcpts, d.Action, got, tc.action, tc.reasons)
		}
		if d.Action == Pass && (d.Reply != nil || d.Sender != "" || len(d.Changes) > 0 || d.Client != nil || d.Rewritten()) {
			t.Errorf("%v passes, but not untouched: %+v", tc.rcpts, d)
		}
		if f := p.Foresee(r); tc.action == Accept && f.Reply != nil || tc.action == Pass && (f.Reply != nil || f.Filter != "" || !f.Open) {
			t.Errorf("%s %v: the policy service refuses with %v, by %q", tc.client, tc.rcpts, f.Reply, f.Filter)
		} else if tc.received == RefuseReceived && (f.Reply != nil) != (tc.action == Reject) {
			t.Errorf("%s %s %v: the policy service says %v", tc.received, tc.client, tc.rcpts, f.Reply)
		}
	}
}

// TestForeseeInDoubt: the policy service, which hears no macro, leaves to the milter what it cannot
// know; a route chosen there is chosen all the same.
func TestForeseeInDoubt(t *testing.T) {
	p := oursRules(t, PassReceived)
	for _, tc := range []struct {
		rcpt     string
		receives bool
		refused  bool
	}{
		{"new@lists.example", false, false}, {"bob@shop.example", false, false}, {"x@fabrikam.com", false, true}, {"sales@shop.example", false, true},
		{"x@fabrikam.com", true, false}, // it may be a domain that is new here: Postfix will say
		{"sales@shop.example", true, true},
	} {
		data := shop()
		data.Receives = tc.receives
		r := &Request{Peer: Peer{Addr: netip.MustParseAddr("198.51.100.9")}, Rcpts: []string{tc.rcpt}, Places: []Place{p.Place(NewClasses(data), tc.rcpt, Hint{})}}
		if f := p.Foresee(r); (f.Reply != nil) != tc.refused {
			t.Errorf("%s, receives: %t: refused with %v, want refused: %t", tc.rcpt, tc.receives, f.Reply, tc.refused)
		}
		if d := p.Decide(r); (d.Action == Reject) != (tc.rcpt != "bob@shop.example") {
			t.Errorf("%s: %s", tc.rcpt, d.Action)
		}
		r.Peer.Addr, r.Places[0].Verdict = netip.MustParseAddr("192.0.2.9"), Ours
		if f := p.Foresee(r); f.Open {
			t.Errorf("%s: limits of a client have nothing to say", tc.rcpt)
		}
	}
}
