package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/sendas/sendas/policy/address"
)

// poolSettings is three mailboxes that may send as billing@, two of which as hr@ too; erp1@ is
// itself shared.
func poolSettings() Settings {
	return Settings{
		Domains: []string{"contoso.com", "contoso.onmicrosoft.com", "bücher.example"}, AllowOnMicrosoft: true, Submission: "smtp.office365.com:587",
		Mailboxes: []MailboxSettings{
			{Address: "erp1@contoso.com", Pool: true, SendAs: []string{"billing@contoso.com"}},
			{Address: "erp2@contoso.com", Pool: true, SendAs: []string{"Billing@contoso.com", "hr@contoso.com", "erp1@contoso.com"}, PlusAddresses: true},
			{Address: "erp3@contoso.com", Pool: true, SendAs: []string{"hr@contoso.com", "billing@contoso.com"}},
			{Address: "scan@contoso.com", Aliases: []string{"copier@contoso.com"}},
			{Address: "*@contoso.onmicrosoft.com"},
		},
		Clients: []ClientSettings{{Name: "sap", Networks: []string{"10.1.0.0/16"}, From: "billing@contoso.com"}},
		Notices: "scan@contoso.com",
	}
}

func names(list []*Mailbox) string {
	var s []string
	for _, m := range list {
		s = append(s, strings.TrimSuffix(m.Name, "@contoso.com"))
	}
	return strings.Join(s, " ")
}

func TestMailboxesFor(t *testing.T) {
	p := mustPolicy(t, poolSettings())
	for _, tc := range []struct{ sender, want, user string }{
		{"billing@contoso.com", "erp1 erp2 erp3", "erp1@contoso.com"},
		{"hr@contoso.com", "erp2 erp3", "erp2@contoso.com"},
		{"erp1@contoso.com", "erp1 erp2", "erp1@contoso.com"},
		{"erp3@contoso.com", "erp3", "erp3@contoso.com"},
		{"billing+x@contoso.com", "erp2", "erp2@contoso.com"}, // the one that has plus addresses
		{"erp3+x@contoso.com", "", ""},
		{"copier@contoso.com", "scan", "scan@contoso.com"},
		{"any@contoso.onmicrosoft.com", "*@contoso.onmicrosoft.com", "any@contoso.onmicrosoft.com"},
		{"stranger@contoso.com", "", ""},
	} {
		list, user := p.MailboxesFor(mustAddress(t, tc.sender))
		first, same := p.MailboxFor(mustAddress(t, tc.sender))
		if got := names(list); got != tc.want || user.String() != tc.user {
			t.Errorf("MailboxesFor(%s) = %q, %s, want %q, %s", tc.sender, got, user, tc.want, tc.user)
		}
		if user != same || (first == nil) != (len(list) == 0) || first != nil && first != list[0] {
			t.Errorf("MailboxFor(%s) = %v, %s is not the first of %q", tc.sender, first, same, names(list))
		}
	}
	var pools []string
	for _, x := range p.Pools() {
		pools = append(pools, fmt.Sprintf("%s: %s", x.Address, names(x.Mailboxes)))
	}
	if got, want := strings.Join(pools, ", "), "billing@contoso.com: erp1 erp2 erp3, erp1@contoso.com: erp1 erp2, hr@contoso.com: erp2 erp3"; got != want {
		t.Errorf("pools %s, want %s", got, want)
	}
}

// TestPoolDecision: what is said of a message that leaves through a pool.
func TestPoolDecision(t *testing.T) {
	p := mustPolicy(t, poolSettings())
	for _, tc := range []struct{ from, through, reason string }{
		{"billing@contoso.com", "erp1@contoso.com (one of 3)", "mailbox erp1@contoso.com (one of 3) may send as <billing@contoso.com>"},
		{"erp3@contoso.com", "erp3@contoso.com", "mailbox erp3@contoso.com may send as <erp3@contoso.com>"},
		{"stranger@contoso.com", "erp1@contoso.com (one of 3)", `client "sap" has from: billing@contoso.com for such mail`},
	} {
		r := &Request{Peer: Peer{Addr: netip.MustParseAddr("10.1.0.5")}, Sender: tc.from, Rcpts: []string{"a@fabrikam.com"}, Fields: []Field{{"From", " " + tc.from}}}
		d := p.Decide(r)
		if got := d.Through(); got != tc.through || d.User.String() != strings.Fields(tc.through)[0] {
			t.Errorf("%s leaves through %q as %s, want %q", tc.from, got, d.User, tc.through)
		}
		if got := d.Reasons[len(d.Reasons)-1].String(); got != tc.reason {
			t.Errorf("%s: %q, want %q", tc.from, got, tc.reason)
		}
	}
}

// TestPoolSettings: what cannot be shared.
func TestPoolSettings(t *testing.T) {
	const one = "an address can leave through one mailbox only"
	for _, tc := range []struct {
		name       string
		a, b       MailboxSettings
		path, text string // "": good
	}{
		{"both have pool", MailboxSettings{SendAs: []string{"x@contoso.com"}, Pool: true}, MailboxSettings{SendAs: []string{"x@contoso.com"}, Pool: true}, "", ""},
		{"the first has not", MailboxSettings{SendAs: []string{"x@contoso.com"}}, MailboxSettings{SendAs: []string{"x@contoso.com"}, Pool: true}, "mailboxes[1].send_as[0]", one + ", unless all that list it have pool: true"},
		{"the second has not", MailboxSettings{SendAs: []string{"x@contoso.com"}, Pool: true}, MailboxSettings{SendAs: []string{"x@contoso.com"}}, "mailboxes[1].send_as[0]", one + ", unless all that list it have pool: true"},
		{"an alias of the first", MailboxSettings{Aliases: []string{"x@contoso.com"}, Pool: true}, MailboxSettings{SendAs: []string{"x@contoso.com"}, Pool: true}, "mailboxes[1].send_as[0]", one},
		{"an alias of the second", MailboxSettings{SendAs: []string{"x@contoso.com"}, Pool: true}, MailboxSettings{Aliases: []string{"x@contoso.com"}, Pool: true}, "mailboxes[1].aliases[0]", one},
		{"the address of the first", MailboxSettings{Pool: true}, MailboxSettings{SendAs: []string{"a@contoso.com"}, Pool: true}, "", ""},
		{"the address of the second", MailboxSettings{SendAs: []string{"b@contoso.com"}, Pool: true}, MailboxSettings{Pool: true}, "", ""},
		{"listed twice", MailboxSettings{SendAs: []string{"x@contoso.com", "x@contoso.com"}, Pool: true}, MailboxSettings{}, "mailboxes[0].send_as[1]", "listed twice for this mailbox; remove one"},
		{"two of one address", MailboxSettings{Pool: true}, MailboxSettings{Address: "a@contoso.com", Pool: true}, "mailboxes[1].address", one},
	} {
		tc.a.Address = "a@contoso.com"
		if tc.b.Address == "" {
			tc.b.Address = "b@contoso.com"
		}
		_, errs := New(Settings{Domains: []string{"contoso.com"}, Submission: "smtp.office365.com:587", Mailboxes: []MailboxSettings{tc.a, tc.b}, Notices: "a@contoso.com"})
		if tc.path == "" && len(errs) == 0 {
			continue
		}
		if len(errs) != 1 || errs[0].Path != tc.path || !strings.HasSuffix(errs[0].Text, tc.text) || tc.text == "" {
			t.Errorf("%s: %v, want %s: …%s", tc.name, errs, tc.path, tc.text)
		}
	}
}

// TestPoolPermissions: mailboxes with pool share what Exchange Online says they may send as; of
// others the first has it, and what the configuration says stays.
func TestPoolPermissions(t *testing.T) {
	s := poolSettings()
	grant := func(list ...string) (g Grants) {
		for _, a := range list {
			g.SendAs = append(g.SendAs, mustAddress(t, a))
		}
		return g
	}
	s.Permissions = &Permissions{Mailboxes: map[string]Grants{
		"erp1@contoso.com": grant("all@contoso.com", "hr@contoso.com"),
		"erp2@contoso.com": grant("all@contoso.com"),
		"scan@contoso.com": grant("all@contoso.com", "mixed@contoso.com"),
		"erp3@contoso.com": {Aliases: []address.Spec{mustAddress(t, "all@contoso.com")}, SendAs: []address.Spec{mustAddress(t, "mixed@contoso.com")}},
	}}
	p := mustPolicy(t, s)
	for _, tc := range []struct{ sender, want string }{
		{"all@contoso.com", "erp1 erp2"},
		{"mixed@contoso.com", "erp3"},
		{"hr@contoso.com", "erp2 erp3"},
	} {
		if list, _ := p.MailboxesFor(mustAddress(t, tc.sender)); names(list) != tc.want {
			t.Errorf("%s leaves through %q, want %q", tc.sender, names(list), tc.want)
		}
	}
}

func TestExternalRecipient(t *testing.T) {
	p := mustPolicy(t, poolSettings())
	for rcpt, want := range map[string]bool{
		"boss@contoso.com": false, "Boss+tag@CONTOSO.com": false, `"a b@x"@contoso.com`: false, "a@bücher.example": false, "a@xn--bcher-kva.example": false,
		"boss@sub.contoso.com": true, "boss@contoso.com.example": true, "boss@fabrikam.com": true, "boss": true, "": true, "boss@[192.0.2.1]": true,
	} {
		if got := p.External(rcpt); got != want {
			t.Errorf("External(%s) = %v, want %v", rcpt, got, want)
		}
	}
	for a, want := range map[string]bool{"a@contoso.onmicrosoft.com": true, "a@Contoso.OnMicrosoft.com": true, "a@contoso.com": false} {
		if got := mustAddress(t, a).OnMicrosoft(); got != want {
			t.Errorf("%s is at an onmicrosoft.com domain: %v, want %v", a, got, want)
		}
	}
}

// TestListed: however a sender is written and whatever stands behind its plus sign, it has the name
// that the settings give it, and that name is its own.
func TestListed(t *testing.T) {
	p := mustPolicy(t, poolSettings())
	for _, tc := range []struct{ sender, want string }{
		{"billing@contoso.com", "billing@contoso.com"},
		{"BILLING@Contoso.COM", "billing@contoso.com"},
		{"copier@contoso.com", "copier@contoso.com"},
		{"billing+x@contoso.com", "billing+*@contoso.com"},
		{"Billing+Y+z@CONTOSO.com", "billing+*@contoso.com"},
		{"billing+@contoso.com", "billing+*@contoso.com"},
		{"scan+x@contoso.com", ""}, // has no plus addresses
		{"any@contoso.onmicrosoft.com", "*@contoso.onmicrosoft.com"},
		{"Any+x@contoso.OnMicrosoft.com", "*@contoso.onmicrosoft.com"},
		{"stranger@contoso.com", ""},
	} {
		got := p.Listed(mustAddress(t, tc.sender))
		if got != tc.want {
			t.Errorf("Listed(%s) = %q, want %q", tc.sender, got, tc.want)
		}
		if got == "" {
			continue
		}
		if again := p.Listed(mustAddress(t, got)); again != got {
			t.Errorf("Listed(%s) = %q, want itself", got, again)
		}
	}
}
