package policy

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// only is a site with one mailbox and no client for this host.
func only() Settings {
	return Settings{Domains: []string{"contoso.com"}, Mailboxes: []MailboxSettings{{Address: "relay@contoso.com", SendAs: []string{"hr@contoso.com"}}},
		Clients: []ClientSettings{{Name: "lan", Networks: []string{"192.0.2.0/24"}, From: "relay@contoso.com"}}}
}

// with changes settings.
func with(s Settings, change func(*Settings)) Settings {
	change(&s)
	return s
}

func thisHost(c ClientSettings) func(*Settings) {
	c.Name, c.Networks = "local", []string{"127.0.0.0/8"}
	return func(s *Settings) { s.Clients = append([]ClientSettings{c}, s.Clients...) }
}

// TestNotices: what this host says itself leaves on every site, and as whom; nobody else gets a
// right by it.
func TestNotices(t *testing.T) {
	two := with(only(), func(s *Settings) { s.Mailboxes = append(s.Mailboxes, MailboxSettings{Address: "erp@contoso.com"}) })
	stated := with(two, func(s *Settings) { s.Notices = "ERP@contoso.com" })
	connector := with(only(), func(s *Settings) {
		s.Mailboxes, s.Notices = nil, "postmaster@contoso.com"
		s.Routes = []RouteSettings{{Name: "inside", Type: "direct", Endpoint: mxHost, External: "reject"}, {Name: "site", Type: "connector", Endpoint: mxHost}}
		s.Clients[0].Route = "site"
	})
	mixed := func(from string) Settings {
		return with(only(), func(s *Settings) {
			s.Routes = []RouteSettings{{Name: "site", Type: "connector", Endpoint: mxHost}}
			thisHost(ClientSettings{Route: "site", From: from})(s)
		})
	}
	bySMTP := peer("127.0.0.1", "")
	bySMTP.Port = 40112
	for _, tc := range []struct {
		name             string
		s                Settings
		peer             Peer
		sender, from     string
		client, identity string // "" for a refusal
		newSender, route string
	}{
		{"a bounce", only(), peer("127.0.0.1", ""), "<>", "MAILER-DAEMON@relay", OwnClient, "relay@contoso.com", "relay@CONTOSO.COM", "submission"},
		{"by IPv6", only(), peer("::1", ""), "", "MAILER-DAEMON@relay", OwnClient, "relay@contoso.com", "relay@CONTOSO.COM", "submission"},
		{"mapped IPv4", only(), peer("::ffff:127.0.0.1", ""), "", "MAILER-DAEMON@relay", OwnClient, "relay@contoso.com", "relay@CONTOSO.COM", "submission"},
		{"a notice", only(), peer("127.0.0.1", ""), "<double-bounce@relay.contoso.com>", "MAILER-DAEMON@relay", OwnClient, "relay@contoso.com", "relay@contoso.com", "submission"},
		{"a notice, in capitals", only(), peer("127.0.0.1", ""), "Double-Bounce@relay", "", OwnClient, "relay@contoso.com", "relay@contoso.com", "submission"},
		{"no right to what it asks for", only(), peer("127.0.0.1", ""), "<>", "hr@contoso.com", OwnClient, "relay@contoso.com", "relay@CONTOSO.COM", "submission"},
		{"other mail", only(), peer("127.0.0.1", ""), "root@relay.contoso.com", "root@relay.contoso.com", "", "", "", ""},
		{"other mail of a mailbox", only(), peer("127.0.0.1", ""), "relay@contoso.com", "relay@contoso.com", "", "", "", ""},
		{"a sender that cannot be read", only(), peer("127.0.0.1", ""), "<double-bounce>", "", "", "", "", ""},
		{"a name that begins like it", only(), peer("127.0.0.1", ""), "double-bounce-x@relay", "", "", "", "", ""},
		{"a login", only(), peer("127.0.0.1", "nagios"), "<>", "", "", "", "", ""},
		{"a certificate", only(), Peer{Addr: netip.MustParseAddr("127.0.0.1"), Subject: "sap"}, "<>", "", "", "", "", ""},
		{"a fingerprint", only(), Peer{Addr: netip.MustParseAddr("127.0.0.1"), Fingerprint: "aa"}, "<>", "", "", "", "", ""},
		{"nobody knows who", only(), Peer{}, "<>", "", "", "", "", ""},
		{"another host", only(), peer("198.51.100.1", ""), "<>", "", "", "", "", ""},
		{"named", stated, peer("127.0.0.1", ""), "<>", "MAILER-DAEMON@relay", OwnClient, "erp@contoso.com", "erp@CONTOSO.COM", "submission"},
		{"by a connector, without mailboxes", connector, peer("127.0.0.1", ""), "<>", "MAILER-DAEMON@relay", OwnClient, "postmaster@contoso.com", "postmaster@CONTOSO.COM", "site"},

		{"its client goes first", with(two, thisHost(ClientSettings{From: "hr@contoso.com"})), peer("127.0.0.1", ""), "<>", "MAILER-DAEMON@relay", "local", "hr@contoso.com", "hr@CONTOSO.COM", "submission"},
		{"its client, the other family", with(two, thisHost(ClientSettings{From: "hr@contoso.com"})), peer("::1", ""), "<>", "MAILER-DAEMON@relay", "local", "hr@contoso.com", "hr@CONTOSO.COM", "submission"},
		{"its client, other mail of the other family", with(two, thisHost(ClientSettings{From: "hr@contoso.com"})), peer("::1", ""), "root@relay", "", "", "", "", ""},
		{"its client may ask for more", with(two, thisHost(ClientSettings{From: "hr@contoso.com"})), peer("127.0.0.1", ""), "<>", "erp@contoso.com", "local", "erp@contoso.com", "erp@CONTOSO.COM", "submission"},
		{"its client, and named", with(stated, thisHost(ClientSettings{From: "hr@contoso.com"})), peer("127.0.0.1", ""), "<>", "MAILER-DAEMON@relay", "local", "erp@contoso.com", "erp@CONTOSO.COM", "submission"},
		{"its client, named, other mail", with(stated, thisHost(ClientSettings{From: "hr@contoso.com"})), peer("127.0.0.1", ""), "root@relay", "root@relay", "local", "hr@contoso.com", "hr@contoso.com", "submission"},
		{"its client rejects", with(two, thisHost(ClientSettings{From: "hr@contoso.com", OnUnauthorized: "reject"})), peer("127.0.0.1", ""), "<>", "MAILER-DAEMON@relay", "local", "hr@contoso.com", "hr@CONTOSO.COM", "submission"},
		{"its client rejects, other mail", with(two, thisHost(ClientSettings{From: "hr@contoso.com", OnUnauthorized: "reject"})), peer("127.0.0.1", ""), "root@relay", "root@relay", "local", "", "", "submission"},
		// No FILTER brings it to the connector, and by submission a mailbox has to send as it.
		{"its client has a connector", mixed("root@contoso.com"), peer("127.0.0.1", ""), "<>", "MAILER-DAEMON@relay", "local", "relay@contoso.com", "relay@CONTOSO.COM", "site"},
		{"its client has a connector, and asks", mixed("root@contoso.com"), peer("127.0.0.1", ""), "<>", "MAILER-DAEMON@contoso.com", "local", "relay@contoso.com", "relay@CONTOSO.COM", "site"},
		{"its client has a connector, and a mailbox's from", mixed("hr@contoso.com"), peer("127.0.0.1", ""), "<>", "MAILER-DAEMON@relay", "local", "hr@contoso.com", "hr@CONTOSO.COM", "site"},
		{"its client has a connector, other mail", mixed("root@contoso.com"), peer("127.0.0.1", ""), "cron@relay", "cron@relay", "local", "root@contoso.com", "root@contoso.com", "site"},
		{"its client has a connector, by SMTP", mixed("root@contoso.com"), bySMTP, "<>", "app@contoso.com", "local", "app@contoso.com", "app@CONTOSO.COM", "site"},
		{"its client has no from", with(only(), thisHost(ClientSettings{})), peer("127.0.0.1", ""), "<>", "", "local", "relay@contoso.com", "relay@CONTOSO.COM", "submission"},
	} {
		p := mustPolicy(t, tc.s)
		header := complete
		if tc.from != "" {
			header += "From: " + tc.from + "\n"
		}
		r := &Request{Peer: tc.peer, Sender: tc.sender, Rcpts: []string{"someone@fabrikam.com"}, Fields: fields(header), Now: time.Unix(0, 0)}
		d := p.Decide(r)
		client, route := "", ""
		if d.Client != nil {
			client, route = d.Client.Name, d.Route.Name
		}
		if got := d.Identity.String(); client != tc.client || got != tc.identity || d.Sender != tc.newSender || route != tc.route {
			t.Errorf("%s: client %q, as %q, envelope sender %q by %q; want %q, %q, %q, %q (%v)", tc.name, client, got, d.Sender, route, tc.client, tc.identity, tc.newSender, tc.route, d.Reasons)
		}
		if (d.Action == Accept) != (tc.identity != "") {
			t.Errorf("%s: %s", tc.name, d.Action)
		}
		if f := p.Foresee(r); f.Client != d.Client || f.Reply != nil && *f.Reply != *d.Reply {
			t.Errorf("%s: at RCPT it is client %v, %v", tc.name, f.Client, f.Reply)
		}
		if c := p.FindClient(tc.peer, tc.sender); c != d.Client {
			t.Errorf("%s: at MAIL it is client %v", tc.name, c)
		}
	}
}

// TestOwnMail: other mail of this host has a client only where the settings have one, and who is
// refused learns what is missing.
func TestOwnMail(t *testing.T) {
	p := mustPolicy(t, only())
	if c := p.OwnMail(); c != nil || !slices.Equal(p.ClientNames(), []string{"lan", OwnClient}) {
		t.Errorf("without a client for this host, its mail has client %v of %q", c, p.ClientNames())
	}
	d := p.Decide(&Request{Peer: peer("127.0.0.1", ""), Sender: "root@relay"})
	const want = `550 5.7.1 127.0.0.1 is not a known client of this relay; for mail of programs on this host its administrator has to add a client ` +
		`with networks: [127.0.0.0/8, "::1"] to clients: in sendas.yaml`
	if d.Reply == nil || d.Reply.String() != want {
		t.Errorf("refused with %v\nwant %s", d.Reply, want)
	}
	p = mustPolicy(t, with(only(), thisHost(ClientSettings{From: "hr@contoso.com"})))
	if c := p.OwnMail(); c == nil || c.Name != "local" || !slices.Equal(p.ClientNames(), []string{"local", "lan"}) {
		t.Errorf("with a client for this host, its mail has client %v of %q", c, p.ClientNames())
	}
}

// TestNoNotices: where nobody says as whom this host speaks, the line to add is said.
func TestNoNotices(t *testing.T) {
	const need, or = "notices: Postfix's own bounces and notices need a sender, and ", ` or another address that may be one, or from: at the client with networks: [127.0.0.0/8, "::1"]`
	several := with(contoso(), func(s *Settings) { s.Notices = "" })
	for _, tc := range []struct {
		name string
		s    Settings
		want string
	}{
		{"several mailboxes", several, need + `there are 3 mailboxes; write "notices: erp@contoso.com"` + or},
		{"several mailboxes, a client without from", with(several, thisHost(ClientSettings{})), need + `there are 3 mailboxes; write "notices: erp@contoso.com"` + or},
		{"a pattern", with(only(), func(s *Settings) { s.Mailboxes = []MailboxSettings{{Address: "*@contoso.com"}} }),
			need + `*@contoso.com is no single mailbox; write "notices: relay@contoso.com"` + or},
		{"a pattern of another domain", with(only(), func(s *Settings) {
			s.Domains, s.Mailboxes = []string{"apps.contoso.com", "contoso.com", "z.example"}, []MailboxSettings{{Address: "*@z.example"}}
			s.Clients[0].From = ""
		}), need + `*@z.example is no single mailbox; write "notices: postmaster@z.example"` + or},
		{"no mailbox", with(only(), func(s *Settings) {
			s.Mailboxes, s.Routes = nil, []RouteSettings{{Name: "site", Type: "connector", Endpoint: mxHost}}
			s.Clients[0].Route, s.Clients[0].From = "site", ""
		}), need + `there is no mailbox; write "notices: postmaster@contoso.com"` + or},
		{"a client with a connector, and several mailboxes", with(several, func(s *Settings) {
			s.Routes = []RouteSettings{{Name: "site", Type: "connector", Endpoint: mxHost}}
			thisHost(ClientSettings{Route: "site", From: "root@contoso.com"})(s)
		}), need + `there are 3 mailboxes; write "notices: erp@contoso.com"` + or},
		{"a connector's address", with(only(), func(s *Settings) {
			s.Notices, s.Routes = "it@contoso.com", []RouteSettings{{Name: "site", Type: "connector", Endpoint: mxHost}}
		}), "notices: no mailbox may send as <it@contoso.com>; list it under send_as of the mailbox that has the permission"},
		{"no address", with(only(), func(s *Settings) { s.Notices = "postmaster" }), `notices: "postmaster" is not an address; write local@domain`},
		{"another domain", with(only(), func(s *Settings) { s.Notices = "it@fabrikam.com" }),
			"notices: <it@fabrikam.com> is not in a verified domain; add fabrikam.com to tenant.domains if the tenant has it"},
		{"no mailbox may", with(only(), func(s *Settings) { s.Notices = "it@contoso.com" }),
			"notices: no mailbox may send as <it@contoso.com>; list it under send_as of the mailbox that has the permission"},
	} {
		p, errs := New(tc.s)
		if len(errs) != 1 || errs[0].Error() != tc.want || p != nil {
			t.Errorf("%s:\n got  %v\n want %s", tc.name, errs, tc.want)
		}
	}
	several.Clients = []ClientSettings{{Name: "two words", Networks: []string{"10.0.0.0/8"}}}
	if _, errs := New(several); len(errs) != 1 || errs[0].Path != "clients[0].name" {
		t.Errorf("beside other faults: %v", errs)
	}
}
