package policy

import (
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/policy/address"
)

// bulk is contoso with an account of High Volume Email, and clients that use it in every way.
func bulk() Settings {
	s := contoso()
	s.Submission = "smtp.office365.com:587"
	s.Mailboxes = append(s.Mailboxes, MailboxSettings{Address: "*@contoso.de"})
	s.Routes = []RouteSettings{
		{Name: "bulk", Type: "hve", Endpoint: "smtp.hve.mx.microsoft:587", Account: "Notices@contoso.com"},
		{Name: "news", Type: "hve", Endpoint: "smtp-hve.office365.com", Account: "news@contoso.de", External: "reject"},
		{Name: "site", Type: "connector", Endpoint: mxHost},
	}
	s.Clients = append(s.Clients,
		ClientSettings{Name: "payroll", Networks: []string{"10.50.0.0/24"}, From: "erp@contoso.com", Route: "bulk"},
		ClientSettings{Name: "intranet", Networks: []string{"10.51.0.0/24"}, Route: "news"},
		ClientSettings{Name: "choosy", Networks: []string{"10.52.0.0/24"}, Route: "bulk", OnUnauthorized: "reject", Senders: []string{"*@contoso.com"}},
		ClientSettings{Name: "nobody", Networks: []string{"10.53.0.0/24"}, Route: "bulk"},
		ClientSettings{Name: "loop", Networks: []string{"127.0.0.0/8"}, From: "monitor@contoso.com", Route: "bulk"},
		ClientSettings{Name: "axapta", Networks: []string{"10.5.0.0/16"}, Route: "site", From: "axapta@contoso.com"},
	)
	return s
}

func many(n int) string { return strings.Repeat("boss@contoso.com ", n) }

func TestDecideHighVolume(t *testing.T) {
	p := mustPolicy(t, bulk())
	const in, in2, out = "boss@contoso.com", "anna@contoso.de", "someone@fabrikam.com"
	const account, news = "Notices@contoso.com", "news@contoso.de"
	for _, tc := range []struct {
		name, addr, from, rcpts string
		size                    int
		identity                string // "" for a rejection
		route                   string
		reasons                 string // behind the client
	}{
		{"fits", "10.50.0.1", "pay@erp.lan", in + " " + in2, 5000, account, "bulk", "hve-account"},
		{"asked for the account", "10.50.0.1", "notices@CONTOSO.com", in, 0, account, "bulk", "hve-account"},
		{"no sender at all is the null sender", "10.50.0.1", "", in, 0, "erp@contoso.com", "submission", "hve-sender no-sender client-from null-sender"},
		{"a mailbox's sender", "10.50.0.1", "hr@contoso.com", in, 0, account, "bulk", "hve-account"},
		{"50 recipients", "10.50.0.1", "pay@erp.lan", many(50), 0, account, "bulk", "hve-account"},
		{"51 recipients", "10.50.0.1", "pay@erp.lan", many(51), 0, "erp@contoso.com", "submission", "hve-many not-authorized client-from"},
		{"51 recipients, a sender of a mailbox", "10.50.0.1", "hr@contoso.com", many(51), 0, "hr@contoso.com", "submission", "hve-many authorized"},
		{"just fits", "10.50.0.1", "pay@erp.lan", in, hveBytes, account, "bulk", "hve-account"},
		{"too large", "10.50.0.1", "pay@erp.lan", in, hveBytes + 1, "erp@contoso.com", "submission", "hve-large not-authorized client-from"},
		{"nobody counted", "10.50.0.1", "pay@erp.lan", in, Unmeasured, "erp@contoso.com", "submission", "hve-large not-authorized client-from"},
		{"outside", "10.50.0.1", "pay@erp.lan", out, 0, "erp@contoso.com", "submission", "hve-outside not-authorized client-from"},
		{"both", "10.50.0.1", "pay@erp.lan", in + " " + out, 0, "erp@contoso.com", "submission", "hve-outside not-authorized client-from"},
		{"below a verified domain is outside", "10.50.0.1", "pay@erp.lan", "x@sub.contoso.com", 0, "erp@contoso.com", "submission", "hve-outside not-authorized client-from"},
		{"no domain", "10.50.0.1", "pay@erp.lan", "root", 0, "erp@contoso.com", "submission", "hve-outside not-authorized client-from"},
		{"the account, outside", "10.50.0.1", account, out, 0, "erp@contoso.com", "submission", "hve-outside not-authorized client-from"},
		{"a whole domain has it, outside", "10.51.0.1", "news@contoso.de", out, 0, "", "news", "external-refused"},
		{"no from", "10.51.0.1", "x@wiki.lan", in, 0, news, "news", "hve-account"},
		{"no from, many", "10.51.0.1", "x@wiki.lan", many(51), 0, "", "submission", "hve-many"},
		{"no from, large", "10.51.0.1", "x@wiki.lan", in, 30 << 20, "", "submission", "hve-large"},
		{"rejects, the account", "10.52.0.1", account, in, 0, account, "bulk", "hve-account"},
		{"rejects, a mailbox's sender", "10.52.0.1", "hr@contoso.com", in, 0, "hr@contoso.com", "submission", "hve-sender authorized"},
		{"rejects, nobody's sender", "10.52.0.1", "x@contoso.com", in, 0, "", "submission", "hve-sender not-authorized rejected"},
		{"rejects, a foreign sender", "10.52.0.1", "x@erp.lan", in, 0, "", "submission", "hve-sender client-senders rejected"},
		{"nobody to fall back to", "10.53.0.1", "x@erp.lan", out, 0, "", "submission", "hve-outside not-authorized rejected"},
		{"nobody to fall back to, authorised", "10.53.0.1", "hr@contoso.com", out, 0, "hr@contoso.com", "submission", "hve-outside authorized"},
		{"a bounce", "127.0.0.1", "<>", in, 0, "scan@contoso.com", "submission", "hve-sender no-sender notices null-sender"},
		{"a notice", "127.0.0.1", "double-bounce@gw.contoso.com", in, 0, "scan@contoso.com", "submission", "hve-sender not-authorized notices"},
		{"cron", "127.0.0.1", "root@gw.lan", in, 0, account, "bulk", "hve-account"},
		// Others have no right to the account.
		{"submission as the account", "10.1.0.1", account, in, 0, "billing@contoso.com", "submission", "not-authorized client-from"},
		{"a whole domain, the account", "10.1.0.1", news, in, 0, "billing@contoso.com", "submission", "not-authorized client-from"},
		{"connector as the account", "10.5.0.1", account, in, 0, "axapta@contoso.com", "site", "not-verified client-from"},
	} {
		r := Request{Peer: peer(tc.addr, ""), Sender: tc.from, Rcpts: strings.Fields(tc.rcpts), Size: tc.size, Now: time.Unix(0, 0)}
		r.Fields = fields(complete)
		if tc.from != "" && tc.from != "<>" {
			r.Fields = fields(complete + "From: " + tc.from + "\n")
		}
		d := p.Decide(&r)
		if got := d.Identity.String(); got != tc.identity || (d.Action == Reject) != (tc.identity == "") {
			t.Errorf("%s: %s as %q, want %q", tc.name, d.Action, got, tc.identity)
		}
		if d.Route.Name != tc.route {
			t.Errorf("%s: by %s, want %s", tc.name, d.Route.Name, tc.route)
		}
		var codes []string
		for _, x := range d.Reasons[1:] {
			codes = append(codes, string(x.Code))
			if s := x.String(); s == string(x.Code) || strings.Contains(s, "%!") || s == "" {
				t.Errorf("%s: reason %q is no sentence", tc.name, s)
			}
		}
		if got := strings.Join(codes, " "); got != tc.reasons {
			t.Errorf("%s: because %s, want %s", tc.name, got, tc.reasons)
		}
		if d.Action != Accept {
			continue
		}
		checkFrom(t, tc.name, &r, &d)
		if d.User.IsZero() != (d.Route.Type == Connector) || d.Route.Type == HVE && d.User != d.Route.Account {
			t.Errorf("%s: %s authenticates by %s", tc.name, d.User, d.Route.Name)
		}
		// The envelope sender leads it there and nowhere else.
		sender := d.Sender
		if sender == "" {
			sender = r.Sender
		}
		if to := p.RouteFrom(sender); to != d.Route && d.Route.Type != Connector {
			t.Errorf("%s: envelope sender %s leads to %v, and the decision is %s", tc.name, sender, to, d.Route.Name)
		}
	}
}

// TestHighVolumeRefuses: what a route with external: reject says to what it does not take.
func TestHighVolumeRefuses(t *testing.T) {
	p := mustPolicy(t, bulk())
	for _, tc := range []struct {
		name, rcpts string
		size        int
		place       Place
		want        string
	}{
		{"many", many(51), 0, Place{}, `550 5.5.3 the message has 51 recipients, and route "news" takes 50; send it in parts`},
		{"large", many(1), 12_000_000, Place{}, `552 5.3.4 the message has 12000000 bytes, and route "news" takes 10 MB; make it smaller`},
		{"an alias leads outside", many(1), 0, Place{By: "x@fabrikam.com"}, `550 5.7.1 <boss@contoso.com>: route "news" of client "intranet" reaches the recipients of this organisation alone`},
		{"a table may lead outside", many(1), 0, Place{Verdict: Doubtful, By: "virtual_alias_maps"}, `550 5.7.1 <boss@contoso.com>: route "news" of client "intranet" reaches the recipients of this organisation alone`},
	} {
		r := Request{Peer: peer("10.51.0.1", ""), Sender: "x@wiki.lan", Rcpts: strings.Fields(tc.rcpts), Size: tc.size, Places: []Place{tc.place}, Fields: fields(complete + "From: x@wiki.lan\n")}
		if d := p.Decide(&r); d.Reply == nil || d.Reply.String() != tc.want || d.Reasons[len(d.Reasons)-1].Code.Brief() == "" {
			t.Errorf("%s: %v for %v, want %s", tc.name, d.Reply, d.Reasons, tc.want)
		}
	}
}

// TestHighVolumeAtRcpt: one recipient alone tells neither number nor size, and refuses only what no
// message with it can pass.
func TestHighVolumeAtRcpt(t *testing.T) {
	p := mustPolicy(t, bulk())
	for _, tc := range []struct{ addr, to, refused string }{
		{"10.50.0.1", "boss@contoso.com", ""},
		{"10.50.0.1", "someone@fabrikam.com", ""},
		{"10.51.0.1", "boss@contoso.com", ""},
		{"10.51.0.1", "someone@fabrikam.com", "550 5.7.1 <someone@fabrikam.com>: route \"news\" of client \"intranet\" reaches the recipients of this organisation alone"},
	} {
		f := p.Foresee(&Request{Peer: peer(tc.addr, ""), Sender: "x@erp.lan", Rcpts: []string{tc.to}})
		got := ""
		if f.Reply != nil {
			got = f.Reply.String()
		}
		if got != tc.refused || f.Filter != "" {
			t.Errorf("%s to %s: %q with FILTER %q, want %q without", tc.addr, tc.to, got, f.Filter, tc.refused)
		}
	}
}

// TestHighVolumePlaces: what Postfix delivers itself does not leave, so it does not count.
func TestHighVolumePlaces(t *testing.T) {
	p := mustPolicy(t, bulk())
	local := Place{Verdict: Elsewhere, By: "local"}
	r := Request{Peer: peer("10.50.0.1", ""), Sender: "x@erp.lan", Fields: fields(complete + "From: x@erp.lan\n")}
	for range hveRcpts {
		r.AddRecipient("boss@contoso.com", Place{})
		r.AddRecipient("archive@gw.lan", local)
	}
	if d := p.Decide(&r); d.Route.Name != "bulk" {
		t.Errorf("by %s, because %v", d.Route.Name, d.Reasons)
	}
}

func TestHighVolumeSenders(t *testing.T) {
	s := bulk()
	s.Permissions = &Permissions{Mailboxes: map[string]Grants{"erp@contoso.com": {SendAs: []address.Spec{{Local: "notices", Domain: "contoso.com"}}}}}
	p := mustPolicy(t, s)
	for _, a := range []string{"notices@contoso.com", "NEWS@contoso.de"} {
		spec, _ := address.Parse(a)
		list, user := p.MailboxesFor(spec)
		if len(list) != 1 || !user.Same(spec) || !list[0].Address.Same(spec) || !strings.EqualFold(p.Listed(spec), a) {
			t.Errorf("%s authenticates as %s by %v, listed as %q", a, user, list, p.Listed(spec))
		}
		if m, _ := p.MailboxFor(spec); m != list[0] {
			t.Errorf("MailboxFor(%s) = %v", a, m)
		}
	}
	if got := p.RouteFrom("notices@contoso.com").Destination(); got != "sendas-bulk:[smtp.hve.mx.microsoft]:587" {
		t.Errorf("notices leaves by %s", got)
	}
	if got := p.RouteFrom("news@contoso.de").Destination(); got != "sendas-news:[smtp-hve.office365.com]:587" {
		t.Errorf("news leaves by %s", got)
	}
	if !p.Measures() || mustPolicy(t, contoso()).Measures() {
		t.Error("whether sizes matter")
	}
}

func TestHighVolumeSettings(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Settings)
		want   string
	}{
		{"no account", func(s *Settings) { s.Routes[0].Account = "" }, "routes[0].account: the account is missing; write the address of the High Volume Email account, such as notices@contoso.com"},
		{"not verified", func(s *Settings) { s.Routes[0].Account = "x@fabrikam.com" }, "routes[0].account: <x@fabrikam.com> is not in a verified domain; add fabrikam.com to tenant.domains if the tenant has it"},
		{"no address", func(s *Settings) { s.Routes[0].Account = "notices" }, "routes[0].account: "},
		{"a mailbox", func(s *Settings) { s.Routes[0].Account = "erp@contoso.com" }, "routes[0].account: <erp@contoso.com> is claimed at mailboxes[0].address too"},
		{"a Send As address", func(s *Settings) { s.Routes[0].Account = "hr@contoso.com" }, "routes[0].account: <hr@contoso.com> is claimed at mailboxes[0].send_as[1] too"},
		{"twice", func(s *Settings) { s.Routes[1].Account = "notices@contoso.com" }, `routes[1].account: <notices@contoso.com> is the account of route "bulk" too; remove one`},
		{"an address as host", func(s *Settings) { s.Routes[0].Endpoint = "192.0.2.1:587" }, "routes[0].endpoint: Microsoft wants a name, never an address; write smtp.hve.mx.microsoft:587"},
		{"port 465", func(s *Settings) { s.Routes[0].Endpoint = "smtp.hve.mx.microsoft:465" }, "routes[0].endpoint: Microsoft has no implicit TLS (port 465); write smtp.hve.mx.microsoft:587"},
		{"no host", func(s *Settings) { s.Routes[0].Endpoint = "" }, "routes[0].endpoint: Microsoft names no host of High Volume Email for this cloud"},
		{"an account elsewhere", func(s *Settings) { s.Routes[2].Account = "x@contoso.com" }, "routes[2].account: only a route of type hve signs in as an account; remove this line"},
		{"an account for submission", func(s *Settings) {
			s.Routes = append(s.Routes, RouteSettings{Name: "submission", Account: "x@contoso.com"})
		}, "routes[3].account: submission signs in as mailboxes"},
		{"from the account", func(s *Settings) { s.Clients[4].From = "notices@contoso.com" }, `clients[4].from: <notices@contoso.com> is the account of route "bulk", as which that route sends anyway`},
		{"notices from the account", func(s *Settings) { s.Notices = "notices@contoso.com" }, "notices: no mailbox may send as <notices@contoso.com>"},
		{"direct beside it", func(s *Settings) {
			s.Routes = append(s.Routes, RouteSettings{Name: "inside", Type: "direct", Endpoint: mxHost})
			s.Clients[0].Route = "inside"
		}, `clients[4].route: a client has the direct route "inside", and Postfix then leads all mail for own recipients there`},
		{"no mailbox", func(s *Settings) { s.Mailboxes, s.Clients = nil, s.Clients[5:6] }, `clients[0].route: what route "news" does not take leaves by submission, which needs a mailbox`},
	} {
		s := bulk()
		tc.change(&s)
		_, errs := New(s)
		if len(errs) == 0 || !strings.HasPrefix(errs[0].Error(), tc.want) {
			t.Errorf("%s: %v, want %s", tc.name, errs, tc.want)
		}
	}
}
