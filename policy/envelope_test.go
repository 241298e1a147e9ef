package policy

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/policy/address"
)

// TestEnvelope: where the route does not compare the envelope sender with From, one that may be used
// stays, and so does the null sender; by submission both are the identity. It never chooses another
// way than the identity would.
func TestEnvelope(t *testing.T) {
	s := routed()
	s.Clients = append(s.Clients,
		ClientSettings{Name: "lists", Networks: []string{"10.12.0.0/16"}, Route: "site", Senders: []string{"news@contoso.com", "*@apps.contoso.com"}, From: "news@contoso.com"},
		ClientSettings{Name: "local", Networks: []string{"127.0.0.0/8"}, Route: "site", From: "root@contoso.com"})
	p := mustPolicy(t, s)
	const connector, direct, strict, submission, local = "10.5.0.1", "10.7.0.1", "10.8.0.1", "10.1.0.1", "127.0.0.1"
	const in, out = "boss@contoso.com", "someone@fabrikam.com"
	const verp = "bounce+q17-buyer=fabrikam.com@contoso.com"
	for _, tc := range []struct {
		name               string
		addr, sender, from string
		rcpts              string
		unrouted           bool
		identity           string
		left               string // the envelope sender that leaves
		reason             ReasonCode
	}{
		{"connector, VERP", connector, verp, "sales@contoso.com", out, false, "sales@contoso.com", verp, ReasonVerified},
		{"connector, brackets", connector, "<" + verp + ">", "sales@contoso.com", out, false, "sales@contoso.com", verp, ReasonVerified},
		{"connector, another domain of the tenant", connector, "b@contoso.de", "sales@contoso.com", out, false, "sales@contoso.com", "b@contoso.de", ReasonVerified},
		{"connector, a mailbox", connector, "hr@contoso.com", "sales@contoso.com", out, false, "sales@contoso.com", "hr@contoso.com", ReasonVerified},
		{"connector, From replaced", connector, verp, "shop@shop.local", out, false, "axapta@contoso.de", verp, ReasonFallback},
		{"connector, capitals are a mark", connector, "Bounce@CONTOSO.COM", "sales@contoso.com", out, false, "sales@contoso.com", "Bounce@contoso.com", ReasonVerified},
		{"connector, some capitals", connector, "Bounce@Contoso.com", "sales@contoso.com", out, false, "sales@contoso.com", "Bounce@Contoso.com", ReasonVerified},
		{"connector, own capitals", connector, "sales@CONTOSO.COM", "sales@contoso.com", out, false, "sales@contoso.com", "sales@contoso.com", ReasonVerified},
		{"connector, the same", connector, "Sales@contoso.com", "sales@contoso.com", out, false, "sales@contoso.com", "Sales@contoso.com", ReasonVerified},
		{"connector, no verified domain", connector, "x@shop.local", "sales@contoso.com", out, false, "sales@contoso.com", "sales@contoso.com", ReasonVerified},
		{"connector, below a verified domain", connector, "x@sub.contoso.com", "sales@contoso.com", out, false, "sales@contoso.com", "sales@contoso.com", ReasonVerified},
		{"connector, needs quotes", connector, `"a b"@contoso.com`, "sales@contoso.com", out, false, "sales@contoso.com", "sales@contoso.com", ReasonVerified},
		{"connector, unreadable", connector, "<root@nas4.(none)>", "sales@contoso.com", out, false, "sales@contoso.com", "sales@contoso.com", ReasonVerified},
		{"connector, not for this client", "10.12.0.1", "bounce@contoso.com", "news@contoso.com", out, false, "news@contoso.com", "news@contoso.com", ReasonVerified},
		{"connector, for this client", "10.12.0.1", "bounce@apps.contoso.com", "news@contoso.com", out, false, "news@contoso.com", "bounce@apps.contoso.com", ReasonVerified},
		{"connector, null", connector, "<>", "sales@contoso.com", out, false, "sales@contoso.com", "", ReasonNullKept},
		{"connector, null, From replaced", connector, "", "MAILER-DAEMON@shop.local", out, false, "axapta@contoso.de", "", ReasonNullKept},

		{"nobody told the way, VERP", connector, verp, "sales@contoso.com", out, true, "sales@contoso.com", verp, ReasonVerified},
		{"nobody told the way, a mailbox", connector, "hr@contoso.com", "sales@contoso.com", out, true, "sales@contoso.com", "sales@contoso.com", ReasonVerified},
		{"nobody told the way, of a mailbox", connector, verp, "hr@contoso.com", out, true, "hr@contoso.com", "hr@contoso.com", ReasonVerified},
		{"nobody told the way, two of mailboxes", connector, "billing@contoso.com", "hr@contoso.com", out, true, "hr@contoso.com", "billing@contoso.com", ReasonVerified},
		{"nobody told the way, null", connector, "<>", "sales@contoso.com", out, true, "sales@contoso.com", "sales@CONTOSO.COM", ReasonNullSender},
		{"this host, null", local, "<>", "MAILER-DAEMON@relay", out, true, "scan@contoso.com", "scan@CONTOSO.COM", ReasonNullSender},
		{"this host, VERP", local, verp, "sales@contoso.com", out, true, "sales@contoso.com", verp, ReasonVerified},
		{"this host, a mailbox", local, "hr@contoso.com", "sales@contoso.com", out, true, "sales@contoso.com", "sales@contoso.com", ReasonVerified},

		{"direct, VERP", direct, verp, "c7@contoso.com", in, true, "c7@contoso.com", verp, ReasonVerified},
		{"direct, a mailbox", direct, "hr@contoso.com", "c7@contoso.com", in, true, "c7@contoso.com", "hr@contoso.com", ReasonVerified},
		{"direct, null", direct, "<>", "c7@contoso.com", in, true, "c7@contoso.com", "", ReasonNullKept},
		{"direct alone, VERP", strict, verp, "door@badge.local", in, true, "badges+door@contoso.com", verp, ReasonFallback},
		{"direct, outside too", direct, verp, "scan@contoso.com", in + " " + out, true, "scan@contoso.com", "scan@contoso.com", ReasonAuthorized},
		{"direct, outside too, null", direct, "<>", "scan@contoso.com", in + " " + out, true, "scan@contoso.com", "scan@CONTOSO.COM", ReasonNullSender},
		{"direct, outside alone", direct, verp, "scan@contoso.com", out, true, "scan@contoso.com", "scan@contoso.com", ReasonAuthorized},

		{"submission, another of the mailbox", submission, "billing@contoso.com", "hr@contoso.com", out, false, "hr@contoso.com", "hr@contoso.com", ReasonAuthorized},
		{"submission, null", submission, "<>", "hr@contoso.com", out, false, "hr@contoso.com", "hr@CONTOSO.COM", ReasonNullSender},
	} {
		r := &Request{Peer: peer(tc.addr, ""), Sender: tc.sender, Rcpts: strings.Fields(tc.rcpts), Routed: !tc.unrouted, Now: time.Unix(0, 0), Fields: fields(complete + "From: " + tc.from + "\n")}
		d := p.Decide(r)
		left := d.Sender
		if left == "" {
			left = trimAngles(tc.sender)
		}
		if got := d.Identity.String(); d.Action != Accept || got != tc.identity || left != tc.left {
			t.Errorf("%s: %s as %q with envelope sender %q, want %q with %q", tc.name, d.Action, got, left, tc.identity, tc.left)
		}
		if got := d.Reasons[len(d.Reasons)-1].Code; got != tc.reason {
			t.Errorf("%s: reason %s, want %s", tc.name, got, tc.reason)
		}
		a, _ := address.Parse(left)
		kept := tc.left == "" || !a.Same(d.Identity)
		said := slices.ContainsFunc(d.Reasons, func(r Reason) bool { return r.Code == ReasonSenderKept || r.Code == ReasonNullKept })
		if d.Kept != kept || said != kept || d.NoBounce != (isNull(tc.sender) && !kept) {
			t.Errorf("%s: kept %v, said %v, no bounce %v; want it kept: %v", tc.name, d.Kept, said, d.NoBounce, kept)
		}
		automatic := slices.ContainsFunc(d.Changes, func(c HeaderChange) bool { return c.Name == "Auto-Submitted" })
		if automatic != d.NoBounce {
			t.Errorf("%s: marked automatic %v, with envelope sender %q", tc.name, automatic, left)
		}
		checkFrom(t, tc.name, r, &d)
	}
}
