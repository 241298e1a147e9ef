package policy

import (
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/policy/address"
)

const mxHost = "contoso-com.mail.protection.outlook.com"

// routed is contoso with every kind of route and mailbox.
func routed() Settings {
	s := contoso()
	s.Submission = "smtp.office365.com:587"
	s.Domains = append(s.Domains, "apps.contoso.com")
	s.Mailboxes = append(s.Mailboxes, MailboxSettings{Address: "*@apps.contoso.com"}, MailboxSettings{Address: "tags@contoso.com", PlusAddresses: true})
	s.Routes = []RouteSettings{
		{Name: "site", Type: "connector", Endpoint: mxHost},
		{Name: "inside", Type: "direct", Endpoint: mxHost + ":2525"},
		{Name: "only", Type: "direct", Endpoint: mxHost, Transport: "sendas-inside", External: "reject"},
	}
	s.Clients = append(s.Clients,
		ClientSettings{Name: "axapta", Networks: []string{"10.5.0.0/16"}, Route: "site", From: "axapta@contoso.de"},
		ClientSettings{Name: "payroll", Networks: []string{"10.6.0.0/16"}, Route: "site"},
		ClientSettings{Name: "copiers", Networks: []string{"10.7.0.0/16"}, Route: "inside", From: "scan@contoso.com"},
		ClientSettings{Name: "badges", Networks: []string{"10.8.0.0/16"}, Route: "only", From: "badges+{local}@contoso.com"},
		ClientSettings{Name: "apps", Networks: []string{"10.10.0.0/16"}, From: "tags+{local}@contoso.com", DisplayName: "{name} via {client}", ReplyTo: "help@contoso.com"},
		ClientSettings{Name: "quiet", Networks: []string{"10.11.0.0/16"}, From: "scan@contoso.com", DisplayName: "{local} at {domain}", ReplyTo: "none"},
	)
	return s
}

func TestDecideByRoute(t *testing.T) {
	p := mustPolicy(t, routed())
	const in, out = "boss@contoso.com", "someone@fabrikam.com"
	for _, tc := range []struct {
		name, addr, from, rcpts string
		identity                string // "" for a rejection
		user                    string // who authenticates
		route, external         string
		reason                  ReasonCode
	}{
		{"connector, any sender of the domain", "10.5.0.1", "x@contoso.com", out, "x@contoso.com", "", "site", "", ReasonVerified},
		{"connector, an address of a mailbox", "10.5.0.1", "hr@contoso.com", out, "hr@contoso.com", "", "site", "", ReasonVerified},
		{"connector, foreign sender", "10.5.0.1", "x@erp.local", out, "axapta@contoso.de", "", "site", "", ReasonFallback},
		{"connector, sub-domain that is not verified", "10.5.0.1", "x@sub.contoso.com", out, "axapta@contoso.de", "", "site", "", ReasonFallback},
		{"connector, an address that needs quotes", "10.5.0.1", `"a b"@contoso.com`, out, "axapta@contoso.de", "", "site", "", ReasonFallback},
		{"connector, rejected", "10.6.0.1", "x@fabrikam.com", out, "", "", "site", "", ReasonRejected},
		{"direct inside", "10.7.0.1", "c7@contoso.com", in, "c7@contoso.com", "", "inside", "", ReasonVerified},
		{"direct, nobody yet", "10.7.0.1", "c7@contoso.com", "", "c7@contoso.com", "", "inside", "", ReasonVerified},
		{"direct client, outside alone", "10.7.0.1", "c7@contoso.com", out, "scan@contoso.com", "scan@contoso.com", "submission", "", ReasonFallback},
		{"direct client, both", "10.7.0.1", "c7@contoso.com", in + " <" + out + ">", "scan@contoso.com", "scan@contoso.com", "inside", "submission", ReasonFallback},
		{"direct client, both, authorised", "10.7.0.1", "hr@contoso.com", in + " " + out, "hr@contoso.com", "erp@contoso.com", "inside", "submission", ReasonAuthorized},
		{"a recipient without domain is not ours", "10.7.0.1", "c7@contoso.com", "root", "scan@contoso.com", "scan@contoso.com", "submission", "", ReasonFallback},
		{"direct only, outside", "10.8.0.1", "hr@contoso.com", in + " " + out, "", "", "only", "", ReasonExternalRefused},
		{"template", "10.8.0.1", "Door-3@badge.local", in, "badges+door-3@contoso.com", "", "only", "", ReasonFallback},
		{"template, nothing to put in", "10.8.0.1", "", in, "badges@contoso.com", "", "only", "", ReasonNullKept},
		{"template, blank", "10.8.0.1", `"door 3"@badge.local`, in, "badges@contoso.com", "", "only", "", ReasonFallback},
		{"template, two dots", "10.8.0.1", `"a..b"@badge.local`, in, "badges@contoso.com", "", "only", "", ReasonFallback},
		{"template, dot at the end", "10.8.0.1", `"a."@badge.local`, in, "badges@contoso.com", "", "only", "", ReasonFallback},
		{"template, an address in an address", "10.8.0.1", `"ceo@contoso.com"@badge.local`, in, "badges@contoso.com", "", "only", "", ReasonFallback},
		{"template, long", "10.8.0.1", strings.Repeat("x", 41) + "@badge.local", in, "badges@contoso.com", "", "only", "", ReasonFallback},
		{"template, another alphabet", "10.8.0.1", "дверь@badge.local", in, "badges@contoso.com", "", "only", "", ReasonFallback},
		{"each its own mailbox", "10.1.0.1", "Nightly@Apps.Contoso.com", out, "Nightly@Apps.Contoso.com", "nightly@apps.contoso.com", "submission", "", ReasonAuthorized},
		{"plus address of a mailbox that has them", "10.1.0.1", "tags+x@contoso.com", out, "tags+x@contoso.com", "tags@contoso.com", "submission", "", ReasonAuthorized},
		{"plus address of another", "10.1.0.1", "hr+x@contoso.com", out, "billing@contoso.com", "erp@contoso.com", "submission", "", ReasonFallback},
		{"plus template", "10.10.0.1", "job7@build.local", out, "tags+job7@contoso.com", "tags@contoso.com", "submission", "", ReasonFallback},
	} {
		r := Request{Peer: peer(tc.addr, ""), Sender: tc.from, Rcpts: strings.Fields(tc.rcpts), Now: time.Unix(0, 0)}
		if tc.from != "" {
			r.Fields = fields(complete + "From: " + tc.from + "\n")
		}
		d := p.Decide(&r)
		if got := d.Identity.String(); got != tc.identity || (d.Action == Reject) != (tc.identity == "") {
			t.Errorf("%s: %s as %q, want %q", tc.name, d.Action, got, tc.identity)
		}
		external := ""
		if d.External != nil {
			external = d.External.Name
		}
		if got := d.User.String(); got != tc.user || (d.Mailbox == nil) != (tc.user == "") || d.Route.Name != tc.route || external != tc.external {
			t.Errorf("%s: as user %q by %s and %q, want %q by %s and %q", tc.name, got, d.Route.Name, external, tc.user, tc.route, tc.external)
		}
		if got := d.Reasons[len(d.Reasons)-1].Code; got != tc.reason {
			t.Errorf("%s: reason %s, want %s", tc.name, got, tc.reason)
		}
		for _, r := range d.Reasons {
			if s := r.String(); s == string(r.Code) || strings.Contains(s, "%!") || s == "" {
				t.Errorf("%s: reason %q is no sentence", tc.name, s)
			}
		}
		if d.Action == Accept {
			checkFrom(t, tc.name, &r, &d)
		}
	}
}

// checkFrom makes sure that From leaves as the identity, and the envelope too unless it is kept.
func checkFrom(t *testing.T, name string, r *Request, d *Decision) {
	t.Helper()
	sender := d.Sender
	if sender == "" {
		sender = r.Sender
	}
	from := ""
	for _, f := range r.Fields {
		if f.Name == "From" {
			from = f.Value
		}
	}
	for _, c := range d.Changes {
		if c.Name == "From" {
			from = c.Value
		}
	}
	if a, _ := address.Parse(sender); !d.Kept && !a.Same(d.Identity) {
		t.Errorf("%s: the envelope leaves as %s, the identity is %s", name, sender, d.Identity)
	}
	if list := address.ParseList(from); len(list) != 1 || !list[0].Spec.Same(d.Identity) {
		t.Errorf("%s: From is %q, the identity is %s", name, from, d.Identity)
	}
}

func TestWays(t *testing.T) {
	p := mustPolicy(t, routed())
	const submission, site, inside = "sendas:[smtp.office365.com]:587", "sendas-site:[" + mxHost + "]:25", "sendas-inside:[" + mxHost + "]:2525"
	name := func(r *Route) string {
		if r == nil {
			return ""
		}
		return r.Destination()
	}
	for _, tc := range []struct{ addr, to, from string }{
		{"hr@contoso.com", inside, submission},
		{"nobody-has-this@contoso.de", inside, site},
		{"x@apps.contoso.com", inside, submission},
		{"someone@fabrikam.com", "", ""},
		{"<>", "", ""}, {"", "", ""}, {"root", "", ""}, {"@contoso.com", "", ""}, {"a b@contoso.com", "", ""},
	} {
		if got := name(p.RouteTo(tc.addr)); got != tc.to {
			t.Errorf("to %q: %q, want %q", tc.addr, got, tc.to)
		}
		if got := name(p.RouteFrom(tc.addr)); got != tc.from {
			t.Errorf("from %q: %q, want %q", tc.addr, got, tc.from)
		}
	}
	plain := mustPolicy(t, contoso())
	if r := plain.RouteTo("hr@contoso.com"); r != nil {
		t.Errorf("without direct route, mail inside leaves by %s", r.Name)
	}
	if r := plain.RouteFrom("nobody-has-this@contoso.com"); r != nil {
		t.Errorf("without connector, an unknown sender leaves by %s", r.Name)
	}
	if f := plain.Foresee(&Request{Peer: peer("10.1.0.1", ""), Rcpts: []string{"hr@contoso.com"}}); f.Filter != "" || f.Reply != nil {
		t.Errorf("with one way out there is nothing to choose: %+v", f)
	}
	if len(p.Routes()) != 4 || p.Route("none") != nil || p.Route("").Name != SubmissionRoute {
		t.Errorf("routes %v", p.Routes())
	}
}

// TestForesee: what is refused at RCPT is what Decide refuses, with the same words, whatever
// the header says; and what Decide accepts is never refused at RCPT.
func TestForesee(t *testing.T) {
	p := mustPolicy(t, routed())
	for _, addr := range []string{"10.1.0.1", "10.5.0.1", "10.6.0.1", "10.7.0.1", "10.8.0.1", "10.9.0.1", "192.0.2.1", ""} {
		for _, login := range []string{"", "nagios"} {
			for _, to := range []string{"boss@contoso.com", "someone@fabrikam.com", "root", "<>"} {
				early := p.Foresee(&Request{Peer: peer(addr, login), Sender: "x@y.example", Rcpts: []string{to}})
				for _, from := range []string{"hr@contoso.com", "x@y.example", "", "bad <"} {
					d := p.Decide(&Request{Peer: peer(addr, login), Sender: "x@y.example", Rcpts: []string{to}, Fields: []Field{{"From", from}}})
					switch {
					case early.Reply != nil && (d.Reply == nil || *d.Reply != *early.Reply):
						t.Errorf("%s %s to %s from %q: %v at RCPT, %v in the end", addr, login, to, from, early.Reply, d.Reply)
					case d.Action == Accept && early.Client != d.Client:
						t.Errorf("%s %s: client %v at RCPT, %v in the end", addr, login, early.Client, d.Client)
					}
				}
			}
		}
	}
}

func TestNamesAndAnswers(t *testing.T) {
	p := mustPolicy(t, routed())
	for _, tc := range []struct {
		name, addr, sender, header, want string
	}{
		{"template of the name", "10.10.0.1", "job@build.example", "From: Nightly Build <job@build.example>\n" + complete,
			"=From[1]: Nightly Build via apps <tags+job@contoso.com>\n+Reply-To: help@contoso.com\n+X-Original-From: Nightly Build <job@build.example>\n"},
		{"no name", "10.10.0.1", "job@build.example", "From: job@build.example\n" + complete,
			"=From[1]: job via apps <tags+job@contoso.com>\n+Reply-To: help@contoso.com\n+X-Original-From: job@build.example\n"},
		{"a placeholder in a stranger's name", "10.10.0.1", "job@build.example", "From: {client} {local} <job@build.example>\n" + complete,
			"=From[1]: {client} {local} via apps <tags+job@contoso.com>\n+Reply-To: help@contoso.com\n+X-Original-From: {client} {local} <job@build.example>\n"},
		{"an address by way of the template", "10.11.0.1", "ceo@fabrikam.com", "From: <ceo@fabrikam.com>\n" + complete,
			"=From[1]: \"ceo at fabrikam.com\" <scan@contoso.com>\n+X-Original-From: <ceo@fabrikam.com>\n"},
		{"nothing rewritten, nothing renamed", "10.10.0.1", "tags@contoso.com", "From: Tags <tags@contoso.com>\n" + complete, ""},
		{"the message says where answers go", "10.10.0.1", "job@build.example", "From: job@build.example\nReply-To: team@fabrikam.com\n" + complete,
			"=From[1]: job via apps <tags+job@contoso.com>\n+X-Original-From: job@build.example\n"},
		{"an empty Reply-To is filled", "10.10.0.1", "job@build.example", "From: job@build.example\nReply-To: \n" + complete,
			"=From[1]: job via apps <tags+job@contoso.com>\n=Reply-To[1]: help@contoso.com\n+X-Original-From: job@build.example\n"},
		{"nobody answers a bounce", "10.10.0.1", "", "From: MAILER-DAEMON@build.example\nAuto-Submitted: auto-replied\nX-Auto-Response-Suppress: All\n" + complete,
			"=From[1]: MAILER-DAEMON via apps\n <tags+mailer-daemon@contoso.com>\n+X-Original-From: MAILER-DAEMON@build.example\n"},
	} {
		d := p.Decide(&Request{Peer: peer(tc.addr, ""), Sender: tc.sender, Fields: fields(tc.header), Now: time.Unix(0, 0)})
		got := strings.ReplaceAll(show(d.Changes), " via apps <tags+mailer", " via apps\n <tags+mailer") // either fold is right
		if got != tc.want {
			t.Errorf("%s:\n got  %q\n want %q", tc.name, got, tc.want)
		}
	}
}

func TestRouteSettings(t *testing.T) {
	for _, tc := range []struct {
		name  string
		route RouteSettings
		want  string
	}{
		{"no type", RouteSettings{Name: "a", Endpoint: mxHost}, "routes[0].type: the type is missing; write connector, direct or hve"},
		{"port 465", RouteSettings{Name: "a", Type: "direct", Endpoint: mxHost + ":465"}, "routes[0].endpoint: the MX endpoint listens on port 25; port 465 is for submission, which is always there"},
		{"port 0", RouteSettings{Name: "a", Type: "direct", Endpoint: mxHost + ":0"}, `routes[0].endpoint: "` + mxHost + `:0" is not a host; write the tenant's MX host, such as ` + mxHost},
		{"IPv6", RouteSettings{Name: "a", Type: "direct", Endpoint: "[2001:db8::1]:25"}, "routes[0].endpoint: Microsoft's addresses change; write the tenant's MX host, such as " + mxHost},
		{"submission with a type of its own", RouteSettings{Name: "submission", Type: "direct"}, "routes[0].type: the route called submission is always there and of that type; give this one another name"},
		{"submission with a wrong transport", RouteSettings{Name: "submission", Transport: "a b"}, `routes[0].transport: "a b" is not a service of master.cf; write letters, digits, - and _`},
		{"submission by the transport of other mail", RouteSettings{Name: "submission", Transport: "smtp"}, "routes[0].transport: other mail leaves by smtp, which must know no mailbox; remove this line, and type: sendas postfix enable"},
	} {
		s := contoso()
		s.Routes = []RouteSettings{tc.route}
		_, errs := New(s)
		if len(errs) != 1 || errs[0].Error() != tc.want {
			t.Errorf("%s:\n got  %v\n want %s", tc.name, errs, tc.want)
		}
	}
	for named, want := range map[string]string{"": "sendas", "exit": "exit"} {
		s := contoso()
		s.Routes = []RouteSettings{{Name: "submission", Type: "submission", Transport: named}}
		if got := mustPolicy(t, s).RouteFrom("hr@contoso.com").Transport; got != want {
			t.Errorf("submission leaves by transport %s, want %s", got, want)
		}
	}
}

// TestPermissions: what Exchange Online says adds to the configuration and never contradicts it.
func TestPermissions(t *testing.T) {
	s := contoso()
	csv := "Kind,Mailbox,Address\nDomain,,contoso.com\nDomain,,contoso.net\nDomain,,contoso.onmicrosoft.com\n" +
		"Alias,erp@contoso.com,erp@contoso.net\nAlias,erp@contoso.com,erp@contoso.onmicrosoft.com\n" +
		"SendAs,erp@contoso.com,scan@contoso.com\nSendAs,erp@contoso.com,shared@contoso.com\n" +
		"SendAs,scan@contoso.com,shared@contoso.com\nSendAs,scan@contoso.com,hr@contoso.com\nSendAs,ceo@contoso.com,cfo@contoso.com\n"
	var err error
	if s.Permissions, err = ReadPermissions(strings.NewReader(csv)); err != nil {
		t.Fatal(err)
	}
	p := mustPolicy(t, s)
	for _, tc := range []struct{ sender, want string }{
		{"erp@contoso.net", "erp@contoso.com"},           // alias in a domain that only Exchange Online named
		{"erp@contoso.onmicrosoft.com", ""},              // not without allow_onmicrosoft
		{"scan@contoso.com", "scan@contoso.com"},         // a mailbox is always itself
		{"shared@contoso.com", "erp@contoso.com"},        // the first of the list
		{"hr@contoso.com", "erp@contoso.com"},            // what the configuration says goes first
		{"cfo@contoso.com", ""}, {"ceo@contoso.com", ""}, // of a mailbox that is not ours
	} {
		if _, user := p.MailboxFor(mustAddress(t, tc.sender)); user.String() != tc.want {
			t.Errorf("%s leaves through %q, want %q", tc.sender, user, tc.want)
		}
	}
	s.Domains = nil
	if _, errs := New(s); len(errs) != 1 || errs[0].Path != "mailboxes[1].aliases[0]" {
		t.Errorf("with the domains of Exchange Online alone: %v, want the alias in contoso.de refused", errs)
	}
	s.Permissions.Domains = []string{"contoso.onmicrosoft.com"}
	if _, errs := New(Settings{Permissions: s.Permissions}); len(errs) != 1 || errs[0].Path != "tenant.domains" {
		t.Errorf("with the tenant's onmicrosoft.com domain alone: %v, want no verified domain", errs)
	}
	s.Permissions.Domains = append(s.Permissions.Domains, "contoso.com", "contoso.net")
	s.AllowOnMicrosoft, s.Domains = true, []string{"contoso.de"}
	if _, user := mustPolicy(t, s).MailboxFor(mustAddress(t, "erp@contoso.onmicrosoft.com")); user.String() != "erp@contoso.com" {
		t.Errorf("allowed, erp@contoso.onmicrosoft.com leaves through %q", user)
	}
}

func mustAddress(t *testing.T, s string) address.Spec {
	t.Helper()
	a, err := address.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestVerified(t *testing.T) {
	p := mustPolicy(t, contoso())
	for name, want := range map[string]bool{
		"contoso.com": true, "relay.contoso.com": true, "A.B.Contoso.DE": true, "*.contoso.com": true,
		"notcontoso.com": false, "com": false, "": false, "contoso.com.evil.example": false, "*.com": false,
	} {
		if got := p.Verified(name); got != want {
			t.Errorf("Verified(%q) = %v, want %v", name, got, want)
		}
	}
	if got := strings.Join(p.Domains(), " "); got != "contoso.com contoso.de" {
		t.Errorf("domains %q", got)
	}
}
