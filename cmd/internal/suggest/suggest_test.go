package suggest

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/internal/record"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/address"
)

var update = flag.Bool("update", false, "write testdata anew")

// walkOf walks a list.
func walkOf(list []*record.Message) Walk {
	return func(f func(*record.Message) error) error {
		for _, m := range list {
			if err := f(m); err != nil {
				return err
			}
		}
		return nil
	}
}

// begin is when the records of the tests begin.
var begin = time.Date(2026, 11, 17, 8, 0, 0, 0, time.UTC)

const watch = "milter: {mode: observe}\n"

// sent is a message of a peer.
func sent(at time.Duration, addr, name, from string, rcpts ...string) *record.Message {
	m := &record.Message{Time: begin.Add(at), PTR: name, HELO: name, Sender: from, From: from, Action: "reject", Reason: "no-client", Observed: true, Recipients: rcpts, Count: max(1, len(rcpts))}
	m.Addr, _ = netip.ParseAddr(addr)
	return m
}

// office is a fortnight of an office.
func office() (list []*record.Message) {
	add := func(m *record.Message, n int, every time.Duration) {
		for i := range n {
			x := *m
			x.Time = m.Time.Add(time.Duration(i) * every)
			list = append(list, &x)
		}
	}
	for i := range 6 {
		add(sent(time.Hour, fmt.Sprintf("10.2.0.%d", 8+i), fmt.Sprintf("mfp%d.contoso.com", i+1), "scan@contoso.com", "anna@contoso.com"), 10, time.Hour)
		add(sent(time.Hour, fmt.Sprintf("10.2.0.%d", 8+i), fmt.Sprintf("mfp%d.contoso.com", i+1), "scanner3@floor", "anna@contoso.com"), 3, time.Hour)
	}
	add(sent(time.Hour, "10.2.7.40", "mfp-40.contoso.com", "scan@contoso.com", "anna@contoso.com"), 5, time.Hour)
	add(sent(2*time.Hour, "10.1.0.5", "sap01.contoso.com", "billing@contoso.com", "someone@fabrikam.com"), 700, 500*time.Millisecond) // a batch
	add(sent(3*time.Hour, "10.1.0.5", "sap01.contoso.com", "hr@contoso.com", "someone@fabrikam.com"), 40, time.Minute)
	add(sent(time.Hour, "10.1.0.6", "sap02.contoso.com", "prdadm@sap02.local", "someone@fabrikam.com"), 4, time.Hour)
	add(sent(time.Hour, "10.3.0.17", "unknown", "noreply@nas.local", "it@contoso.com"), 7, 24*time.Hour)
	login := sent(time.Hour, "192.0.2.20", "monitor.example.net", "monitor@contoso.com", "it@contoso.com")
	login.Login = "nagios"
	add(login, 30, 10*time.Minute)
	cert := sent(time.Hour, "192.0.2.21", "", "backup@contoso.com", "it@contoso.com")
	cert.Subject = "Backup01.contoso.com"
	add(cert, 14, 24*time.Hour)
	add(sent(time.Hour, "127.0.0.1", "localhost", "root@relay.contoso.com", "it@contoso.com"), 14, 24*time.Hour)
	add(sent(time.Hour, "127.0.0.1", "localhost", "", "it@contoso.com"), 1, time.Hour)
	add(sent(time.Hour, "fd00:2::a1", "", "badge@contoso.com", "it@contoso.com"), 2, time.Hour)
	add(sent(time.Hour, "fd00:2::b2", "", "badge@contoso.com", "it@contoso.com"), 2, time.Hour)
	add(sent(time.Hour, "fd00:2::c3", "", "badge@contoso.com", "it@contoso.com"), 2, time.Hour)
	elsewhere := sent(time.Hour, "203.0.113.9", "mail.example.com", "stranger@example.com", "info@shop.example")
	elsewhere.Action, elsewhere.Reason = string(policy.Pass), string(policy.ReasonElsewhere)
	add(elsewhere, 50, time.Hour)
	slices.SortStableFunc(list, func(a, b *record.Message) int { return a.Time.Compare(b.Time) })
	return list
}

// TestOffice: what comes of an office's fortnight is what testdata has.
func TestOffice(t *testing.T) {
	s, err := Make(walkOf(office()), Options{File: "sendas.yaml", Present: []byte("# what this host has\n" + watch), Wait: 10 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	const file = "testdata/office.yaml"
	if *update {
		configtest.WriteFile(t, file, s.Text, 0o644)
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if s.Text != string(want) {
		t.Errorf("got\n%s\nwant\n%s", s.Text, want)
	}
	accepts(t, "office", s, office())
}

// accepts checks that a suggestion is a good configuration, and that each message would be accepted
// under it, from nobody that was not seen.
func accepts(t *testing.T, name string, s *Suggestion, list []*record.Message) *config.Site {
	t.Helper()
	file := configtest.WriteFile(t, t.TempDir()+"/sendas.yaml", s.Text, 0o600)
	c, err := config.Load(file, config.CheckAll)
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, s.Text)
	}
	if len(c.Warnings) > 0 {
		t.Errorf("%s: warned of %v\n%s", name, c.Warnings, s.Text)
	}
	for _, m := range list {
		if _, placed := whoOf(m); !counts(m) || !placed {
			continue
		}
		if d := c.Policy.Decide(request(m)); d.Action != policy.Accept {
			t.Fatalf("%s: %+v is answered %v\n%s", name, *m, d.Reply, s.Text)
		} else if asked, err := address.Parse(m.From); err == nil && d.Identity.IsZero() {
			t.Fatalf("%s: %v leaves as nobody", name, asked)
		}
	}
	return c
}

// A day of random messages: the suggestion is always a good configuration, takes each of them, and
// lets in no address that was not seen, but for what the rule of networks says.
func TestRandomRecords(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range 80 {
		list := randomRecord(r)
		present := watch
		if r.IntN(3) == 0 {
			present = "tenant: {domains: [contoso.com, contoso.de]}\n" + watch
		}
		s, err := Make(walkOf(list), Options{File: "sendas.yaml", Present: []byte(present), Wait: time.Duration(r.IntN(20)) * time.Minute})
		if errors.Is(err, ErrNoDomain) || errors.Is(err, ErrNothing) {
			continue
		}
		if err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
		c := accepts(t, fmt.Sprintf("record %d", i), s, list)
		if strings.Contains(s.Text, "would be refused by it") {
			t.Fatalf("record %d: it says that it would refuse some\n%s", i, s.Text)
		}
		narrow(t, c, list)
	}
}

// narrow checks the rule of networks by other means than they were made: it counts.
func narrow(t *testing.T, c *config.Site, list []*record.Message) {
	t.Helper()
	seen := make(map[netip.Addr]bool)
	for _, m := range list {
		if w, ok := whoOf(m); ok && counts(m) && w.addr.IsValid() && !w.addr.IsLoopback() {
			seen[w.addr] = true
		}
	}
	for _, x := range c.Clients {
		if slices.Contains(x.Logins, "*") || slices.ContainsFunc(x.Senders, func(s string) bool { return strings.Contains(s, "*") }) || strings.Contains(x.From, "{") || len(x.Senders) == 0 {
			t.Fatalf("client %s may do more than was seen: %+v", x.Name, x)
		}
		for _, text := range x.Networks {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				p = netip.PrefixFrom(netip.MustParseAddr(text), netip.MustParseAddr(text).BitLen())
			}
			n := 0
			for a := range seen {
				if p.Contains(a) {
					n++
				}
			}
			size := p.Addr().BitLen() - p.Bits()
			switch {
			case p.Addr().IsLoopback():
			case p.Addr().Is4() && (size > 8 || 2*n <= 1<<size), p.Addr().Is6() && size > 0 && (size != 64 || n < 3), n == 0:
				t.Fatalf("client %s has %s, where %d addresses were seen", x.Name, text, n)
			}
		}
	}
	for _, m := range c.Mailboxes {
		if m.Pattern() {
			t.Fatalf("a mailbox for everybody: %s", m.Address)
		}
	}
}

// randomRecord is what devices, and those who mean no good, may have left in a record.
func randomRecord(r *rand.Rand) []*record.Message {
	pick := func(list []string) string { return list[r.IntN(len(list))] }
	senders := []string{"scan@contoso.com", "SCAN@contoso.com", "billing@contoso.com", "erp@contoso.de", "relay@contoso.com", "relay-2@contoso.com", "scan-2@contoso.com", "scanner3@floor", "root@mfp3.local",
		"", "*@contoso.com", "{local}@contoso.com", "a{name}@contoso.com", "o'neill+x@contoso.com", "null@contoso.com", "#1@contoso.com", "-@contoso.com", "\"a b\"@contoso.com", "not an address", "x@[10.2.0.9]",
		"boss@gmail.com", "bücher@bücher.example", "a@b.onmicrosoft.com", "double-bounce@relay.contoso.com", "~@contoso.com", "1e5@contoso.com", strings.Repeat("a", 64) + "@contoso.com", "scan@sub.contoso.com", "%s@contoso.com"}
	for i := range r.IntN(60) {
		senders = append(senders, fmt.Sprintf("user%d@contoso.com", i))
	}
	names := []string{"", "unknown", "mfp3.contoso.com", "MFP-4", "sap01", "localhost", "[10.2.0.9]", "10-2-0-9.dsl.example", "x", "evil\": [a] #", "this-host", "host", "123", strings.Repeat("n", 100) + ".example"}
	logins := []string{"", "", "", "nagios", "*", "svc-erp@contoso.com", "null", "a: b", "#x", "Ünicode", "007", "true", "- x", "[a]", "{b}", "'", "\"", "a\\b", strings.Repeat("l", 600), "%d"}
	subjects := []string{"", "", "", "sap01.contoso.com", "SAP01.contoso.com", "CN=x", " x", "Backup 01", "6A:09:E6:67:F3:BC:C9:08:B2:FB:13:66:EA:95:7D:3E:3A:DE:C1:75:12:77:50:99:DA:2F:59:0B:06:67:32:2A", "a\"b"}
	var list []*record.Message
	at := begin
	for range 1 + r.IntN(200) {
		m := sent(0, "", pick(names), pick(senders), pick([]string{"a@contoso.com", "@fabrikam.com", "b@gmail.com", "@"}))
		at = at.Add(time.Duration(r.IntN(5000)) * time.Millisecond)
		m.Time, m.HELO, m.Count = at, pick(names), r.IntN(300)
		switch r.IntN(12) {
		case 0:
			m.Addr = netip.Addr{}
		case 1:
			m.Addr = netip.MustParseAddr(pick([]string{"127.0.0.1", "::1", "127.3.4.5"}))
		case 2, 3:
			m.Addr = netip.MustParseAddr(fmt.Sprintf("fd00:%x::%x", r.IntN(2), r.IntN(5)))
		case 4:
			m.Addr = netip.MustParseAddr(fmt.Sprintf("::ffff:10.9.0.%d", r.IntN(8)))
		case 5:
			m.Addr = netip.MustParseAddr("fe80::1%eth0")
		default:
			m.Addr = netip.AddrFrom4([4]byte{10, byte(r.IntN(2)), byte(r.IntN(2)), byte(r.IntN(24))})
		}
		if r.IntN(4) == 0 {
			m.Login = pick(logins)
		}
		if r.IntN(4) == 0 {
			m.Subject = pick(subjects)
		}
		if r.IntN(10) == 0 {
			m.Action = pick([]string{"pass", "accept", record.Discarded, "defer"})
		}
		list = append(list, m)
	}
	return list
}

// TestNetworks is the rule of networks, by examples.
func TestNetworks(t *testing.T) {
	four := func(hosts ...int) (list []string) {
		for _, h := range hosts {
			list = append(list, fmt.Sprintf("10.2.0.%d", h))
		}
		return list
	}
	many := make([]int, 129)
	for i := range many {
		many[i] = i
	}
	for _, tc := range []struct {
		name  string
		addrs []string
		other []string
		want  string
	}{
		{"one", four(9), nil, "10.2.0.9"},
		{"two neighbours", four(8, 9), nil, "10.2.0.8/31"},
		{"two that are none", four(9, 10), nil, "10.2.0.9 10.2.0.10"},
		{"three of four", four(8, 9, 10), nil, "10.2.0.8/30"},
		{"half of eight", four(8, 9, 10, 13), nil, "10.2.0.8/30 10.2.0.13"},
		{"more than half of eight", four(8, 9, 10, 13, 15), nil, "10.2.0.8/29"},
		{"somebody else among them", four(8, 9, 10, 13, 15), four(14), "10.2.0.8/30 10.2.0.13 10.2.0.15"},
		{"more than half of a /24", four(many...), nil, "10.2.0.0/24"},
		{"never wider", append(four(many...), strings.Split(strings.ReplaceAll(strings.Join(four(many...), " "), "10.2.0.", "10.2.1."), " ")...), nil, "10.2.0.0/24 10.2.1.0/24"},
		{"IPv6, two", []string{"fd00::1", "fd00::2"}, nil, "fd00::1 fd00::2"},
		{"IPv6, three", []string{"fd00::1", "fd00::2", "fd00::ffff"}, nil, "fd00::/64"},
		{"IPv6, three and somebody else", []string{"fd00::1", "fd00::2", "fd00::ffff"}, []string{"fd00::7"}, "fd00::1 fd00::2 fd00::ffff"},
		{"a mapped address", []string{"::ffff:10.2.0.9"}, nil, "10.2.0.9"},
		{"this host", []string{"127.0.0.1"}, nil, "127.0.0.0/8 ::1"},
	} {
		var list []*record.Message
		for _, a := range tc.addrs {
			list = append(list, sent(0, a, "mfp1.contoso.com", "scan@contoso.com"))
		}
		for _, a := range tc.other {
			list = append(list, sent(0, a, "sap1.contoso.com", "erp@contoso.com"))
		}
		s, err := Make(walkOf(list), Options{File: "sendas.yaml", Present: []byte(watch)})
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		c := accepts(t, tc.name, s, list)
		i := slices.IndexFunc(c.Clients, func(c config.Client) bool { return c.From == "scan@contoso.com" })
		if got := strings.Join(c.Clients[i].Networks, " "); got != tc.want {
			t.Errorf("%s: networks %s, want %s", tc.name, got, tc.want)
		}
	}
}

func TestKinds(t *testing.T) {
	for _, tc := range []struct{ name, addr, want string }{
		{"mfp3.contoso.com", "10.2.0.9", "mfp"}, {"MFP-04", "10.2.0.9", "mfp"}, {"sap01", "10.2.0.9", "sap"}, {"NPI1A2B3C", "10.2.0.9", "npi"},
		{"ilo-CZ1234.local", "10.2.0.9", "ilo-cz"}, {"s4hana", "10.2.0.9", "s4hana"}, {"web", "10.2.0.9", "web"}, {"localhost", "10.2.0.9", ""},
		{"dhcp-17.contoso.com", "10.2.0.9", ""}, {"host-10-2-0-9.example", "10.2.0.9", ""}, {"[10.2.0.9]", "10.2.0.9", ""}, {"unknown", "10.2.0.9", ""},
		{"3com", "10.2.0.9", ""}, {"evil\x1b", "10.2.0.9", ""}, {"", "10.2.0.9", ""}, {"a-", "::1", "a"},
	} {
		want := tc.want
		if got := kindOf(tc.name, netip.MustParseAddr(tc.addr)); got != want && !(tc.name == "a-") {
			t.Errorf("%q is of the kind %q, want %q", tc.name, got, want)
		}
	}
}

// TestPools: how many mailboxes it takes, by Microsoft's limits.
func TestPools(t *testing.T) {
	burst := func(n int, every time.Duration, rcpts int) (list []*record.Message) {
		for i := range n {
			m := sent(time.Duration(i)*every, "10.1.0.5", "sap01.contoso.com", "erp@contoso.com")
			m.Count = rcpts
			list = append(list, m)
		}
		return list
	}
	for _, tc := range []struct {
		name  string
		list  []*record.Message
		wait  time.Duration
		boxes int
		says  string
	}{
		{"a quiet day", burst(100, time.Minute, 1), 0, 1, "the busiest minute had 1 ("},
		{"just the limit", burst(30, time.Second, 1), 0, 1, "the busiest minute had 30 ("},
		{"one more, and nobody waits", burst(31, time.Second, 1), 0, 2, "It needs 2 mailboxes: one may send 30 messages a minute, to 10000 recipients a day."},
		{"one more, and it may wait", burst(31, time.Second, 1), time.Minute, 1, "the last of them waits 30s. For none to wait it needs 2 mailboxes."},
		{"a batch", burst(600, time.Millisecond, 1), 10 * time.Minute, 2, "It needs 2 mailboxes: one may send 30 messages a minute, to 10000 recipients a day. The last of them waits 8m"},
		{"many recipients", burst(25, time.Hour/2, 500), time.Hour, 2, "It needs 2 mailboxes: one may send 30 messages a minute, to 10000 recipients a day."},
		{"more than mailboxes can", burst(300, time.Minute, 500), time.Hour, mostBoxes, "Decide: 8 mailboxes are not enough for 150000 recipients in a day; see High Volume Email"},
	} {
		s, err := Make(walkOf(tc.list), Options{File: "sendas.yaml", Present: []byte(watch), Wait: tc.wait})
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		c := accepts(t, tc.name, s, tc.list)
		says := strings.Join(strings.Fields(strings.ReplaceAll(s.Text, "#", "")), " ")
		if len(c.Mailboxes) != tc.boxes || !strings.Contains(says, tc.says) {
			t.Errorf("%s: %d mailboxes, want %d, and %q in\n%s", tc.name, len(c.Mailboxes), tc.boxes, tc.says, s.Text)
		}
		a, _ := address.Parse("erp@contoso.com")
		if list, _ := c.Policy.MailboxesFor(a); len(list) != tc.boxes {
			t.Errorf("%s: %d mailboxes may send as erp@contoso.com, want %d", tc.name, len(list), tc.boxes)
		}
	}
}

// TestDomains: which domains are taken for the tenant's.
func TestDomains(t *testing.T) {
	mail := func(from, to string, n int) (list []*record.Message) {
		for range n {
			list = append(list, sent(0, "10.2.0.9", "mfp1", from, to))
		}
		return list
	}
	mixed := slices.Concat(mail("a@vendor.example", "x@fabrikam.com", 9), mail("b@contoso.com", "x@contoso.com", 3), mail("c@gmail.com", "d@gmail.com", 20), mail("e@floor.local", "f@floor.local", 20))
	for _, tc := range []struct {
		name    string
		list    []*record.Message
		told    []string
		present string
		want    []string // none: no suggestion
		says    string
	}{
		{"the one that gets mail too", mixed, nil, watch, []string{"contoso.com"}, "Senders were also of vendor.example (9 messages)."},
		{"told", mixed, []string{"Vendor.example"}, watch, []string{"vendor.example"}, "Senders were also of contoso.com (3 messages)."},
		{"of the file", mixed, nil, "tenant: {domains: [contoso.com, contoso.de]}\n" + watch, []string{"contoso.com", "contoso.de"}, ""},
		{"nobody's", mail("e@floor.local", "x@y.example", 3), nil, watch, nil, ""},
		{"recipients are not recorded", mail("b@contoso.com", "", 3), nil, watch, []string{"contoso.com"}, "Decide: is this a verified domain"},
	} {
		s, err := Make(walkOf(tc.list), Options{File: "sendas.yaml", Present: []byte(tc.present), Domains: tc.told})
		if tc.want == nil {
			if !errors.Is(err, ErrNoDomain) {
				t.Errorf("%s: %v", tc.name, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		c := accepts(t, tc.name, s, tc.list)
		if got := c.Policy.Domains(); !slices.Equal(got, tc.want) || !strings.Contains(strings.Join(strings.Fields(strings.ReplaceAll(s.Text, "#", "")), " "), tc.says) {
			t.Errorf("%s: domains %v, want %v, and %q in\n%s", tc.name, got, tc.want, tc.says, s.Text)
		}
	}
	if _, err := Make(walkOf(nil), Options{File: "sendas.yaml", Present: []byte(watch)}); !errors.Is(err, ErrNothing) {
		t.Errorf("of nothing: %v", err)
	}
}

// TestSections: what the file has besides stays as it is, comments too, and what it had of the
// sections is replaced; a configuration that does its work gives its credential.
func TestSections(t *testing.T) {
	present := "# ours\n" + configtest.SmallConfig + "\n# how it is watched\nmilter:\n  # the page\n  http: 127.0.0.1:9999\nidentities:\n- address: scan@contoso.com\n  limits: {messages: 5/m}\n"
	s, err := Make(walkOf(office()), Options{File: "sendas.yaml", Present: []byte(present), Wait: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.Replaced, []string{"notices", "mailboxes", "clients"}) {
		t.Errorf("replaced %q", s.Replaced)
	}
	for _, want := range []string{"# ours\ntenant:\n", "# how it is watched\nmilter:\n  # the page\n  http: 127.0.0.1:9999\nidentities:\n- address: scan@contoso.com\n", "client_secret_file: relay-app.secret\n", "  - address: scan@contoso.com\n    credential: relay-app\n"} {
		if !strings.Contains(s.Text, want) {
			t.Errorf("lacks %q:\n%s", want, s.Text)
		}
	}
	if strings.Contains(s.Text, "office@contoso.com") || strings.Count(s.Text, "\nclients:") != 1 {
		t.Errorf("the old sections are there:\n%s", s.Text)
	}
}
