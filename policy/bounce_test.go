package policy

import (
	"testing"
	"time"
)

// TestBounceOfBounce: what Postfix's bounce of a bounce looks like ends here, and nothing else
// does.
func TestBounceOfBounce(t *testing.T) {
	s := contoso()
	s.Clients = append(s.Clients, ClientSettings{Name: "this-host", Networks: []string{"127.0.0.0/8", "::1"}, From: "scan@contoso.com"})
	p := mustPolicy(t, s)
	const report = "Content-Type: Multipart/Report; report-type=delivery-status;\n boundary=x\n"
	for _, tc := range []struct {
		name, addr, login, sender, rcpts, header string
		discard                                  bool
		port                                     uint16
	}{
		{"of a bounce", "127.0.0.1", "", "<>", "<scan@CONTOSO.COM>", report, true, 0},
		{"of a bounce, by IPv6", "::1", "", "", "hr@CONTOSO.COM", report, true, 0},
		{"of other mail", "127.0.0.1", "", "<>", "<scan@contoso.com>", report, false, 0},
		{"of another host", "10.2.0.9", "", "<>", "<scan@CONTOSO.COM>", report, false, 0},
		{"of a login", "127.0.0.1", "nagios", "<>", "<scan@CONTOSO.COM>", report, false, 0},
		{"no null sender", "127.0.0.1", "", "<hr@contoso.com>", "<scan@CONTOSO.COM>", report, false, 0},
		{"no report", "127.0.0.1", "", "<>", "<scan@CONTOSO.COM>", "Content-Type: text/plain\n", false, 0},
		{"no type", "127.0.0.1", "", "<>", "<scan@CONTOSO.COM>", "", false, 0},
		{"of a bounce that left by a connector", "127.0.0.1", "", "<>", "<boss@CONTOSO.COM>", report, true, 0},
		{"that a content filter gives back", "127.0.0.1", "", "<>", "<scan@CONTOSO.COM>", report, false, 40112},
		{"to another domain in capitals", "127.0.0.1", "", "<>", "<scan@FABRIKAM.COM>", report, false, 0},
		{"to an address without letters", "127.0.0.1", "", "<>", "<scan@10.2.0.9>", report, false, 0},
	} {
		from := peer(tc.addr, tc.login)
		from.Port = tc.port
		d := p.Decide(&Request{Peer: from, Sender: tc.sender, Rcpts: []string{tc.rcpts}, Now: time.Unix(0, 0),
			Fields: fields(complete + "From: MAILER-DAEMON@relay\n" + tc.header)})
		if d.Discard != tc.discard {
			t.Errorf("%s: discard %v, want %v", tc.name, d.Discard, tc.discard)
		}
	}
}

// TestMark: a marked address is the same address, and bounces of mail that left with it are known.
func TestMark(t *testing.T) {
	for _, id := range []string{"scan@contoso.com", "hr@Contoso.COM", "a+b@b\u00fccher.example", "erp@CONTOSO.COM"} {
		a := mustAddress(t, id)
		if m := marked(a); !m.Same(a) || !isMarked(m) || isMarked(unmarked(a)) || !unmarked(a).Same(a) {
			t.Errorf("%s is %s with the mark, %s without", a, m, unmarked(a))
		}
	}
}
