package policy

import (
	"strings"
	"testing"

	"github.com/sendas/sendas/policy/address"
)

// TestWrongSettings holds the sentence for each thing that can be wrong.
func TestWrongSettings(t *testing.T) {
	client := func(c ClientSettings) func(*Settings) {
		return func(s *Settings) {
			if c.Name == "" {
				c.Name = "sap"
			}
			if c.Networks == nil && c.Logins == nil {
				c.Networks = []string{"10.1.0.0/16"}
			}
			s.Clients = []ClientSettings{c}
		}
	}
	mailbox := func(m ...MailboxSettings) func(*Settings) {
		return func(s *Settings) { s.Mailboxes, s.Clients = m, nil }
	}
	route := func(r ...RouteSettings) func(*Settings) { return func(s *Settings) { s.Routes = r } }
	for _, tc := range []struct {
		spoil func(*Settings)
		want  string
	}{
		{func(s *Settings) { s.Domains = append(s.Domains, "contoso") }, `tenant.domains[2]: "contoso" is not a domain; write a name such as contoso.com`},
		{mailbox(MailboxSettings{Address: "*@fabrikam.com"}), "mailboxes[0].address: fabrikam.com is not a verified domain; add it to tenant.domains if the tenant has it"},
		{mailbox(MailboxSettings{Address: "*@contoso.com"}, MailboxSettings{Address: "*@Contoso.com"}), "mailboxes[1].address: *@contoso.com is listed twice; remove one"},
		{mailbox(MailboxSettings{Address: "*@contoso.com", SendAs: []string{"hr@contoso.com"}}),
			"mailboxes[0].address: each sender of *@contoso.com authenticates as itself; remove aliases and send_as, or write one address"},
		{mailbox(MailboxSettings{Address: "*@contoso.com", PlusAddresses: true}),
			"mailboxes[0].plus_addresses: each sender of *@contoso.com authenticates as itself, and no mailbox has a plus address of its own; remove this line"},
		{mailbox(MailboxSettings{Address: "erp@contoso.com", SendAs: []string{"ERP@contoso.com"}}), "mailboxes[0].send_as[0]: <ERP@contoso.com> is listed twice for this mailbox; remove one"},
		{mailbox(MailboxSettings{Address: "erp"}), `mailboxes[0].address: "erp" is not an address; write local@domain`},
		{mailbox(MailboxSettings{Address: ""}), "mailboxes[0].address: an address is missing; write local@domain"},
		{client(ClientSettings{Name: "s a p"}), `clients[0].name: "s a p" is not a name; write letters, digits, - . and _ (it stands in logs and metrics)`},
		{client(ClientSettings{Name: strings.Repeat("s", 65)}), `clients[0].name: "` + strings.Repeat("s", 65) + `" is not a name; write letters, digits, - . and _ (it stands in logs and metrics)`},
		{client(ClientSettings{Networks: []string{"10.1/16"}}), `clients[0].networks[0]: "10.1/16" is not a network; write 10.2.0.0/16, fd00:2::/64 or an address`},
		{client(ClientSettings{Networks: []string{"10.1.0.9/16"}}), `clients[0].networks[0]: "10.1.0.9/16" has bits behind its prefix length; write 10.1.0.0/16 for the network or 10.1.0.9 for the one address`},
		{client(ClientSettings{Logins: []string{""}}), `clients[0].logins[0]: an empty login matches nobody; write the SASL login, or "*" for any`},
		{client(ClientSettings{Subjects: []string{""}}), "clients[0].cert_subjects[0]: an empty name matches nobody; write the common name (CN) of the certificate's subject"},
		{client(ClientSettings{Fingerprints: []string{"D4:1D:8C:D9:8F:00:B2:04:E9:80:09:98:EC:F8:42:7E"}}), `clients[0].cert_fingerprints[0]: ` +
			`"D4:1D:8C:D9:8F:00:B2:04:E9:80:09:98:EC:F8:42:7E" is not a fingerprint; write SHA-256 in hexadecimal, as Postfix logs it with smtpd_tls_fingerprint_digest = sha256`},
		{client(ClientSettings{Senders: []string{"*@contoso"}}), `clients[0].senders[0]: "*@contoso": "contoso" is not a domain`},
		{client(ClientSettings{Senders: []string{"scan*@contoso.com"}}), `clients[0].senders[0]: "scan*@contoso.com" is not a pattern; write an address, *@domain or *`},
		{client(ClientSettings{Senders: []string{"scan"}}), `clients[0].senders[0]: "scan" is not an address; write local@domain`},
		{client(ClientSettings{Route: "site"}), `clients[0].route: there is no route "site" under routes:`},
		{client(ClientSettings{OnUnauthorized: "rewrite"}), "clients[0].on_unauthorized: rewrite needs an identity to rewrite to; write from: with an address of a mailbox"},
		{client(ClientSettings{OnUnauthorized: "drop"}), `clients[0].on_unauthorized: "drop" is not an action; write rewrite or reject`},
		{client(ClientSettings{ReplyTo: "sender"}), `clients[0].reply_to: "sender" is not a choice; write original, none or an address`},
		{client(ClientSettings{DisplayName: "{user}"}), `clients[0].display_name: "{user}" has a placeholder that does not exist; there are {name}, {local}, {domain} and {client}`},
		{client(ClientSettings{DisplayName: "a\nb"}), "clients[0].display_name: this cannot be a display name; write at most 128 printable characters"},
		{client(ClientSettings{From: "ceo@contoso.com"}), "clients[0].from: no mailbox may send as <ceo@contoso.com>; list it under send_as of the mailbox that has the permission"},
		{client(ClientSettings{From: "ceo@fabrikam.com"}), "clients[0].from: <ceo@fabrikam.com> is not in a verified domain; add fabrikam.com to tenant.domains if the tenant has it"},
		{client(ClientSettings{From: "{local}@contoso.com"}), `clients[0].from: "{local}@contoso.com" cannot be a sender; a template is an address with +{local} at the end of its local part, as in scan+{local}@contoso.com`},
		{client(ClientSettings{From: "scan+{local}x@contoso.com"}), `clients[0].from: "scan+{local}x@contoso.com" cannot be a sender; a template is an address with +{local} at the end of its local part, as in scan+{local}@contoso.com`},
		{client(ClientSettings{From: "scan{local}@contoso.com"}), `clients[0].from: "scan{local}@contoso.com" cannot be a sender; a template is an address with +{local} at the end of its local part, as in scan+{local}@contoso.com`},
		{client(ClientSettings{From: "scan+{local}@contoso.com"}), "clients[0].from: no mailbox may send as <scan+x@contoso.com>; write plus_addresses: true at the mailbox if Exchange Online takes them as sender, or scan@contoso.com alone"},
		{func(s *Settings) { s.Mailboxes = nil; client(ClientSettings{})(s) }, `clients[0].route: mail of client "sap" leaves by submission, which needs a mailbox; list one under mailboxes:, or write route: with a connector`},
		{route(RouteSettings{Name: "a", Type: "direct", Endpoint: mxHost}, RouteSettings{Name: "a", Type: "direct", Endpoint: mxHost}), `routes[1].name: two routes are called "a"; a client names its way out by it`},
		{route(RouteSettings{Name: "a.b", Type: "direct", Endpoint: mxHost}), `routes[0].name: "a.b" is not a name; write letters, digits and - (it stands in master.cf)`},
		{route(RouteSettings{Name: "a", Type: "relay", Endpoint: mxHost}), `routes[0].type: "relay" is not a type of route; write connector, direct or hve`},
		{route(RouteSettings{Name: "a", Type: "submission", Endpoint: mxHost}), "routes[0].type: submission is always there under that name; remove this route, or name it submission"},
		{route(RouteSettings{Name: "a", Type: "connector"}), "routes[0].endpoint: the endpoint is missing; write the tenant's MX host, such as " + mxHost},
		{route(RouteSettings{Name: "a", Type: "connector", Endpoint: mxHost, External: "reject"}), "routes[0].external: a connector takes every recipient; remove this line"},
		{route(RouteSettings{Name: "a", Type: "direct", Endpoint: mxHost, External: "bounce"}), `routes[0].external: "bounce" is not a choice; write submission or reject`},
		{route(RouteSettings{Name: "a", Type: "direct", Endpoint: mxHost, Transport: "a.b"}), `routes[0].transport: "a.b" is not a service of master.cf; write letters, digits, - and _`},
		{route(RouteSettings{Name: "submission", Endpoint: "smtp.office365.com"}), "routes[0].endpoint: where submission goes stands under tenant.endpoints.submission; remove it here"},
		{route(RouteSettings{Name: "submission", External: "reject"}), "routes[0].external: submission takes every recipient; remove this line"},
	} {
		s := contoso()
		tc.spoil(&s)
		p, errs := New(s)
		if len(errs) != 1 || errs[0].Error() != tc.want || p != nil {
			t.Errorf("got  %v\nwant %s", errs, tc.want)
		}
	}
}

func TestPatterns(t *testing.T) {
	for _, tc := range []struct {
		pattern, address string
		want             bool
	}{
		{"*", "a@b.example", true}, {"*", "", false}, {"*", "root", true},
		{"*@contoso.com", "A@Contoso.COM", true}, {"*@contoso.com", "a@sub.contoso.com", false}, {"*@contoso.com", "a@contoso.co", false},
		{"*@bücher.example", "a@xn--bcher-kva.example", true}, {"*@xn--bcher-kva.example", "a@bücher.example", true},
		{"a@contoso.com", "A@contoso.com", true}, {"a@contoso.com", "b@contoso.com", false},
	} {
		p, err := address.ParsePattern(tc.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Match(mustAddress(t, tc.address)); got != tc.want {
			t.Errorf("%s matches %q: %v, want %v", tc.pattern, tc.address, got, tc.want)
		}
	}
}

// TestWhatADecisionTells: whether a message was rewritten, and which mailboxes there are.
func TestWhatADecisionTells(t *testing.T) {
	p := mustPolicy(t, contoso())
	for _, tc := range []struct {
		from string
		want bool
	}{{"hr@contoso.com", false}, {"HR@contoso.com", false}, {"mfp@floor.local", true}} {
		d := p.Decide(&Request{Peer: peer("10.1.0.1", ""), Sender: tc.from, Fields: []Field{{"From", tc.from}}})
		if d.Rewritten() != tc.want {
			t.Errorf("%s: rewritten %v, want %v", tc.from, d.Rewritten(), tc.want)
		}
		for action, want := range map[Action]bool{Hold: tc.want, Defer: false, Reject: false} {
			if d.Action = action; d.Rewritten() != want {
				t.Errorf("%s, %s: rewritten %v, want %v", tc.from, action, d.Rewritten(), want)
			}
		}
	}
	d := p.Decide(&Request{Peer: peer("192.0.2.1", ""), Sender: "a@b.example"})
	if d.Rewritten() {
		t.Error("a refused message is not rewritten")
	}
	if list := p.Mailboxes(); len(list) != 3 || list[1].Name != "scan@contoso.com" || list[1].Pattern() {
		t.Errorf("mailboxes %v", list)
	}
	for code := range map[ReasonCode]bool{ReasonNoClient: true, ReasonTooMany: true, ReasonNotAsked: true, ReasonMayNotAsk: true, ReasonExternalRefused: true} {
		if s := (Reason{Code: code, Subject: "subject", Object: "object"}).String(); s == string(code) || strings.Contains(s, "%!") {
			t.Errorf("%s is no sentence: %s", code, s)
		}
	}
	if s := (Reason{Code: "new"}).String(); s != "new" {
		t.Errorf("an unknown reason is %q", s)
	}
}

// TestReplyFits: whatever a stranger puts into a reply, it stays one line of ASCII that SMTP can
// carry.
func TestReplyFits(t *testing.T) {
	r := reject("<%s> may not", strings.Repeat("ü\r\n", 1000))
	if len(r.String()) > 512 || strings.ContainsFunc(r.Text, func(c rune) bool { return c < ' ' || c > '~' }) {
		t.Errorf("%d bytes: %q", len(r.String()), r)
	}
}
