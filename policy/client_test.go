package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

const (
	print1 = "6A:09:E6:67:F3:BC:C9:08:B2:FB:13:66:EA:95:7D:3E:3A:DE:C1:75:12:77:50:99:DA:2F:59:0B:06:67:32:2A"
	print2 = "bb67ae8584caa73b2574 "
	print3 = "3c6ef372fe94f82ba54ff53a5f1d36f1510e527f"
)

func TestFindClient(t *testing.T) {
	s := contoso()
	s.Clients = []ClientSettings{
		{Name: "host", Networks: []string{"10.2.3.4"}},
		{Name: "sealed host", Networks: []string{"10.2.0.0/16"}, Fingerprints: []string{strings.ToLower(strings.ReplaceAll(print1, ":", ""))}},
		{Name: "sap", Subjects: []string{"SAP01.contoso.com", "sap02.contoso.com"}},
		{Name: "sap as batch", Subjects: []string{"sap03.contoso.com"}, Logins: []string{"batch"}},
		{Name: "anybody known", Logins: []string{"*"}, Networks: []string{"10.9.0.0/16", "fd00::/8"}},
		{Name: "printers", Networks: []string{"10.2.0.0/16"}},
		{Name: "key", Fingerprints: []string{print3}},
	}
	for i := range s.Clients { // names have no blanks
		s.Clients[i].Name = strings.ReplaceAll(s.Clients[i].Name, " ", "-")
	}
	p := mustPolicy(t, s)
	for _, tc := range []struct {
		peer Peer
		want string
	}{
		{Peer{Addr: netip.MustParseAddr("10.2.3.4")}, "host"},
		{Peer{Addr: netip.MustParseAddr("10.2.3.4"), Fingerprint: print1}, "host"},
		{Peer{Addr: netip.MustParseAddr("10.2.3.5"), Fingerprint: print1}, "sealed-host"},
		{Peer{Addr: netip.MustParseAddr("10.2.3.5"), KeyFingerprint: print1}, "sealed-host"},
		{Peer{Addr: netip.MustParseAddr("10.2.3.5")}, "printers"},
		{Peer{Addr: netip.MustParseAddr("10.2.3.5"), Fingerprint: print2}, "printers"},
		{Peer{Addr: netip.MustParseAddr("10.3.3.5"), Fingerprint: print1}, ""},
		{Peer{Fingerprint: print3}, "key"},
		{Peer{Subject: "sap01.CONTOSO.com"}, "sap"},
		{Peer{Subject: "sap04.contoso.com"}, ""},
		{Peer{Subject: "sap03.contoso.com"}, ""},
		{Peer{Login: "batch"}, ""},
		{Peer{Login: "batch", Subject: "sap03.contoso.com"}, "sap-as-batch"},
		{Peer{Addr: netip.MustParseAddr("10.9.1.1"), Login: "somebody"}, "anybody-known"},
		{Peer{Addr: netip.MustParseAddr("fd00::1"), Login: "somebody"}, "anybody-known"},
		{Peer{Addr: netip.MustParseAddr("10.9.1.1")}, ""},
		{Peer{}, ""},
	} {
		got := ""
		if c := p.FindClient(tc.peer, "x@y.example"); c != nil {
			got = c.Name
		}
		if got != tc.want {
			t.Errorf("%v is client %q, want %q", tc.peer, got, tc.want)
		}
	}
	if !p.UsesFingerprints() || mustPolicy(t, contoso()).UsesFingerprints() {
		t.Error("UsesFingerprints is wrong")
	}
	d := p.Decide(&Request{Peer: Peer{Addr: netip.MustParseAddr("10.2.3.5"), NoFingerprint: true}})
	if d.Action != Defer || d.Reply.Code != 451 || d.Reasons[0].Code != ReasonNoFingerprint || !strings.Contains(d.Reasons[0].String(), "policy service") {
		t.Errorf("with a fingerprint that nobody told: %s %v %v", d.Action, d.Reply, d.Reasons)
	}
	if got, want := fmt.Sprint(p.ClientNames()), "[host sealed-host sap sap-as-batch anybody-known printers key this host]"; got != want {
		t.Errorf("names %s, want %s", got, want)
	}
}

// TestFirstClientWins compares the index with the obvious way: one after the other.
func TestFirstClientWins(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	pick := func(list []string) []string {
		list = slices.Clone(list)
		r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		return list[:r.IntN(3)]
	}
	nets := []string{"10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.1", "10.2.0.0/16", "fd00::/8", "0.0.0.0/0"}
	logins, subjects, prints := []string{"a", "b", "*"}, []string{"x.example", "y.example", "z.example"}, []string{print1, print3}
	for range 300 {
		s := contoso()
		s.Clients = nil
		for i := range 1 + r.IntN(8) {
			c := ClientSettings{Name: fmt.Sprint("c", i), Networks: pick(nets), Logins: pick(logins), Subjects: pick(subjects)}
			if r.IntN(3) > 0 {
				c.Logins = nil
			}
			if r.IntN(3) > 0 {
				c.Subjects = nil
			}
			if r.IntN(2) == 0 {
				c.Fingerprints = []string{prints[r.IntN(2)]}
			}
			if len(c.Networks)+len(c.Logins)+len(c.Subjects)+len(c.Fingerprints) > 0 {
				s.Clients = append(s.Clients, c)
			}
		}
		p := mustPolicy(t, s)
		for range 40 {
			peer := Peer{Addr: netip.MustParseAddr([]string{"10.1.1.1", "10.1.1.2", "10.1.9.9", "10.9.9.9", "fd00::1", "192.0.2.1"}[r.IntN(6)]),
				Login: []string{"", "a", "b", "c"}[r.IntN(4)], Subject: []string{"", "X.example", "y.example"}[r.IntN(3)],
				Fingerprint: []string{"", print1}[r.IntN(2)], KeyFingerprint: []string{"", print3}[r.IntN(2)]}
			var want *Client
			for i := range p.clients.list {
				if c := &p.clients.list[i]; obviously(c, peer) {
					want = c
					break
				}
			}
			if got := p.FindClient(peer, "x@y.example"); got != want {
				t.Fatalf("%v is %v, want %v, of %+v", peer, got, want, s.Clients)
			}
		}
	}
}

// obviously is the rule in its simplest form: every kind of condition that is listed must hold.
func obviously(c *Client, p Peer) bool {
	network := len(c.Networks) == 0
	for _, n := range c.Networks {
		network = network || n.Contains(p.Addr)
	}
	login := len(c.Logins) == 0
	for _, l := range c.Logins {
		login = login || p.Login != "" && (l == "*" || l == p.Login)
	}
	subject := len(c.Subjects) == 0
	for _, s := range c.Subjects {
		subject = subject || strings.EqualFold(s, p.Subject)
	}
	seal := len(c.Fingerprints) == 0
	for _, f := range c.Fingerprints {
		seal = seal || f == fingerprint(p.Fingerprint) || f == fingerprint(p.KeyFingerprint)
	}
	return network && login && subject && seal
}

func TestPeerNames(t *testing.T) {
	addr := netip.MustParseAddr("10.2.0.9")
	for _, tc := range []struct {
		peer Peer
		want string
	}{
		{Peer{}, "a peer without address or login"},
		{Peer{Addr: addr}, "10.2.0.9"},
		{Peer{Login: "nagios"}, `login "nagios"`},
		{Peer{Addr: addr, Login: "nagios", Subject: "sap01"}, `10.2.0.9 (login "nagios", certificate "sap01")`},
		{Peer{Fingerprint: "AA:BB"}, "fingerprint AA:BB"},
	} {
		if got := tc.peer.String(); got != tc.want {
			t.Errorf("%+v is called %s, want %s", tc.peer, got, tc.want)
		}
	}
}
