package milter

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	protocol "github.com/d--j/go-milter"

	"github.com/sendas/sendas/milter/quota"
)

// oldMTA plays an MTA at the level of packets: it sends each step that it was not asked to leave
// out and waits for each reply that it was not told to do without, as Postfix's milter8.c does.
type oldMTA struct {
	t      *testing.T
	conn   net.Conn
	offer  offer
	answer offer
	macros string // that it was asked for, with NUL between them
}

func packet(code byte, data string) string {
	return string(binary.BigEndian.AppendUint32(nil, uint32(1+len(data)))) + string(code) + data
}

// begin makes a connection and negotiates.
func begin(t *testing.T, s *site, o offer) *oldMTA {
	t.Helper()
	c, err := net.Dial("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	m := &oldMTA{t: t, conn: c, offer: o}
	words := func(o offer) string {
		b := binary.BigEndian.AppendUint32(nil, o.version)
		b = binary.BigEndian.AppendUint32(b, uint32(o.actions))
		return string(binary.BigEndian.AppendUint32(b, uint32(o.steps)))
	}
	m.send('O', words(o))
	code, data := m.read()
	if m.answer, err = parseOffer([]byte(string(code) + data)); err != nil {
		t.Fatal(err)
	}
	m.macros = data[12:]
	return m
}

func (m *oldMTA) send(code byte, data string) {
	m.t.Helper()
	if _, err := io.WriteString(m.conn, packet(code, data)); err != nil {
		m.t.Fatal(err)
	}
}

func (m *oldMTA) read() (code byte, data string) {
	m.t.Helper()
	head := make([]byte, 5)
	if _, err := io.ReadFull(m.conn, head); err != nil {
		m.t.Fatal(err)
	}
	rest := make([]byte, binary.BigEndian.Uint32(head)-1)
	if _, err := io.ReadFull(m.conn, rest); err != nil {
		m.t.Fatal(err)
	}
	return head[4], string(rest)
}

// step sends a step, unless it is left out, and wants to hear that it goes on, unless no reply is
// due.
func (m *oldMTA) step(code byte, data string, without, unanswered protocol.OptProtocol) {
	m.t.Helper()
	if m.answer.steps&without != 0 {
		return
	}
	m.send(code, data)
	if m.answer.steps&unanswered != 0 {
		return
	}
	if got, text := m.read(); got != 'c' {
		m.t.Fatalf("step %c is answered %c %q", code, got, text)
	}
}

// open tells of the client. One that can be asked for macros sends the address as one.
func (m *oldMTA) open(family string) {
	m.t.Helper()
	m.step('C', "mfp3.local\x00"+family, protocol.OptNoConnect, protocol.OptNoConnReply)
	m.step('H', "mfp3\x00", protocol.OptNoHelo, protocol.OptNoHeloReply)
}

// message plays a message and returns what becomes of it, a line for each change.
func (m *oldMTA) message(sender string, header ...string) string {
	m.t.Helper()
	if strings.Contains(m.macros, "{client_addr}") {
		m.send('D', "M{client_addr}\x0010.2.0.9\x00")
	}
	m.step('M', sender+"\x00", protocol.OptNoMailFrom, protocol.OptNoMailReply)
	m.step('R', "<someone@example.net>\x00", protocol.OptNoRcptTo, protocol.OptNoRcptReply)
	if m.offer.version >= 4 {
		m.step('T', "", protocol.OptNoData, protocol.OptNoDataReply)
	}
	if m.offer.version >= 3 {
		m.step('U', "XYZZY\x00", protocol.OptNoUnknown, protocol.OptNoUnknownReply)
	}
	for _, h := range header {
		name, value, _ := strings.Cut(h, ":")
		m.step('L', name+"\x00"+strings.TrimPrefix(value, " ")+"\x00", protocol.OptNoHeaders, protocol.OptNoHeaderReply)
	}
	m.step('N', "", protocol.OptNoEOH, protocol.OptNoEOHReply)
	m.step('B', "body\r\n", protocol.OptNoBody, protocol.OptNoBodyReply)
	m.send('E', "")
	var list []string
	for {
		code, data := m.read()
		text := strings.ReplaceAll(strings.TrimSuffix(data, "\x00"), "\x00", " ")
		switch code {
		case 'a':
			m.send('A', "")
			return strings.Join(list, "\n")
		case 'y':
			m.send('A', "")
			return text
		case 'm':
			text = fmt.Sprintf("%d %s", binary.BigEndian.Uint32([]byte(data)), text[4:])
		}
		list = append(list, string(code)+" "+text)
	}
}

const (
	all         = protocol.OptAction(0x1ff)
	inet4       = "4\x12\x6710.2.0.9\x00"
	rewritten   = "e <scan@contoso.com>\nm 1 From Mfp 3 <scan@contoso.com>\nh X-Original-From Mfp 3 <root@mfp3>"
	silenced    = "e <scan@CONTOSO.COM>\nh Auto-Submitted auto-replied\nh X-Auto-Response-Suppress All"
	notAllowed  = "451 4.3.5 the mail server does not let sendas "
	hasToAllow  = ", as this message needs; its administrator has to allow it"
	printer     = "<root@mfp3>"
	printerFrom = "From: Mfp 3 <root@mfp3>"
	hr          = "<hr@contoso.com>"
	hrFrom      = "From: hr@contoso.com"
)

// TestOffers: what an MTA cannot leave out is answered; what it does not let us do defers the
// messages that need it.
func TestOffers(t *testing.T) {
	for _, tc := range []struct {
		name         string
		offer        offer
		sender, from string
		want         string
		log          string // "": nothing but the message
	}{
		{"Postfix", offer{6, all, 0x1fffff}, printer, printerFrom, rewritten, ""},
		{"milter_protocol = 4", offer{4, all, 0x37f}, printer, printerFrom, rewritten,
			`level=INFO msg="the mail server offers less of the milter protocol than Postfix does; it is served, more slowly" version=4 ` +
				`cannot_leave_out="the reply to MAIL (SMFIP_NR_MAIL), the reply to RCPT (SMFIP_NR_RCPT), the replies to header fields (SMFIP_NR_HDR)"`},
		{"milter_protocol = 3", offer{3, all, 0x17f}, printer, printerFrom, rewritten, `DATA (SMFIP_NODATA)`},
		{"milter_protocol = 2", offer{2, all, 0x7f}, printer, printerFrom, rewritten, `unknown commands (SMFIP_NOUNKNOWN)`},
		{"a bounce, milter_protocol = 2", offer{2, all, 0x7f}, "<>", "From: scan@contoso.com", silenced, "version=2"},
		{"Sendmail 8.17", offer{6, 0x1f9, 0x3d3}, printer, printerFrom, rewritten, "cannot_leave_out="},
		{"nothing can be left out", offer{2, all, 0}, printer, printerFrom, rewritten, "the connection (SMFIP_NOCONNECT), HELO"},
		{"a newer version", offer{7, all | 1<<9, 0x1fffff | 1<<21}, printer, printerFrom, rewritten, ""},
		{"Sendmail 8.12", offer{2, 0x1f, 0x7f}, printer, printerFrom, notAllowed + "change the envelope sender (SMFIF_CHGFROM)" + hasToAllow,
			`does_not_let_us="change the envelope sender (SMFIF_CHGFROM), hold messages (SMFIF_QUARANTINE), ask who the client is (SMFIF_SETSYMLIST)"`},
		{"Sendmail 8.12, right as it is", offer{2, 0x1f, 0x7f}, hr, hrFrom, "", "level=WARN"},
		{"Sendmail 8.12, the header alone", offer{2, 0x1f, 0x7f}, "<scan@contoso.com>", printerFrom, "m 1 From Mfp 3 <scan@contoso.com>\nh X-Original-From Mfp 3 <root@mfp3>", "level=WARN"},
		{"no fields added", offer{6, all &^ protocol.OptAddHeader, 0x1fffff}, printer, printerFrom, notAllowed + "add header fields (SMFIF_ADDHDRS)" + hasToAllow, "SMFIF_ADDHDRS"},
		{"no fields changed", offer{6, all &^ protocol.OptChangeHeader, 0x1fffff}, printer, printerFrom, notAllowed + "change header fields (SMFIF_CHGHDRS)" + hasToAllow, "SMFIF_CHGHDRS"},
		{"nothing at all", offer{6, 0, 0x1fffff}, printer, printerFrom, notAllowed + "change the envelope sender (SMFIF_CHGFROM), add header fields (SMFIF_ADDHDRS), change header fields (SMFIF_CHGHDRS)" + hasToAllow, "level=WARN"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := start(t)
			for range 2 { // two connections of a kind, two messages each
				m := begin(t, s, tc.offer)
				if want := min(tc.offer.version, 6); m.answer.version != want || m.answer.actions&^tc.offer.actions != 0 || m.answer.steps&^tc.offer.steps != 0 {
					t.Errorf("the offer %+v is answered %+v", tc.offer, m.answer)
				}
				m.open(inet4)
				for range 2 {
					if got := m.message(tc.sender, tc.from, id, date); got != tc.want {
						t.Errorf("\n got  %q\n want %q", got, tc.want)
					}
				}
				m.conn.Close()
			}
			lines := strings.Split(strings.TrimSpace(s.log.String()), "\n")
			if want := 4 + min(1, len(tc.log)); len(lines) != want || !strings.Contains(lines[0], tc.log) {
				t.Errorf("%d lines in the log, want %d, the first with %s:\n%s", len(lines), want, tc.log, s.log)
			}
			if deferred := strings.HasPrefix(tc.want, "451"); deferred != strings.Contains(lines[len(lines)-1], "action=defer") || deferred != strings.Contains(lines[len(lines)-1], "reason=milter-offer") {
				t.Errorf("the message's line: %s", lines[len(lines)-1])
			}
		})
	}
}

// TestOffersWithoutMacros: an MTA that cannot be asked for the client's address tells it when the
// connection begins, or the message waits.
func TestOffersWithoutMacros(t *testing.T) {
	const want = notAllowed + "ask who the client is (SMFIF_SETSYMLIST)" + hasToAllow
	for _, tc := range []struct{ name, family, want string }{
		{"IPv4", inet4, rewritten},
		{"IPv4 in IPv6", "6\x12\x67::ffff:10.2.0.9\x00", rewritten},
		{"another network", "4\x12\x67192.0.2.1\x00", "550 5.7.1 192.0.2.1 is not a known client of this relay; ask its administrator to add it to clients: in sendas.yaml"},
		{"a program", "L\x00\x00/run/x\x00", want},
		{"unknown", "U", want},
	} {
		m := begin(t, start(t), offer{6, all &^ protocol.OptSetMacros, 0x1fffff})
		m.open(tc.family)
		for range 2 { // the second one in the same session
			if got := m.message(printer, printerFrom, id, date); got != tc.want {
				t.Errorf("%s:\n got  %q\n want %q", tc.name, got, tc.want)
			}
		}
	}
}

// TestOffersToHold: a message that cannot be held is deferred.
func TestOffersToHold(t *testing.T) {
	one := quota.Rates{Messages: perDay(1)}
	for _, tc := range []struct {
		actions protocol.OptAction
		want    string
	}{
		{all, `q client "printers" may send 1 message a day; `},
		{all &^ protocol.OptQuarantine, notAllowed + "hold messages (SMFIF_QUARANTINE)" + hasToAllow},
	} {
		m := begin(t, startWith(t, newQuotas(quota.ClientLimit{Rates: one, OnLimit: quota.HoldOver})), offer{6, tc.actions, 0x1fffff})
		m.open(inet4)
		if got := m.message(hr, hrFrom, id, date); got != "" {
			t.Errorf("the first message: %q", got)
		}
		if got := m.message(hr, hrFrom, id, date); !strings.HasPrefix(got, tc.want) {
			t.Errorf("the second message: %q, want %q", got, tc.want)
		}
	}
}

// TestOffersOfSpace: no version passes the first blank after a field's colon, and each puts one
// there again.
func TestOffersOfSpace(t *testing.T) {
	for _, o := range []offer{{2, all, 0x7f}, {6, all, 0x1fffff}} {
		m := begin(t, start(t), o)
		m.open(inet4)
		if m.answer.steps&protocol.OptHeaderLeadingSpace != 0 {
			t.Fatalf("version %d: fields would come with their blanks", o.version)
		}
		for _, tc := range []struct{ from, want string }{
			{"From: Mfp 3 <root@mfp3>", "Mfp 3 <root@mfp3>"},
			{"From:Mfp 3 <root@mfp3>", "Mfp 3 <root@mfp3>"},
			{"From:   Mfp 3 <root@mfp3>", "Mfp 3 <root@mfp3>"},
			{"From:\tMfp 3 <root@mfp3>", "Mfp 3 <root@mfp3>"},
		} {
			want := strings.ReplaceAll(rewritten, "Mfp 3 <root@mfp3>", tc.want)
			if got := m.message(printer, tc.from, id, date); got != want {
				t.Errorf("version %d, %q:\n got  %q\n want %q", o.version, tc.from, got, want)
			}
		}
	}
}

// TestOffersRefused: what is no offer, or too old a one, costs its connection and one line in the
// log.
func TestOffersRefused(t *testing.T) {
	s := start(t)
	for _, tc := range []struct{ name, bytes, log string }{
		{"version 1", packet('O', "\x00\x00\x00\x01\x00\x00\x00\x1f\x00\x00\x00\x7f"), "the mail server speaks version 1 of the milter protocol; 2 to 6 are served"},
		{"short", packet('O', "\x00\x00\x00\x06"), "a milter connection does not begin with"},
		{"another command", packet('E', strings.Repeat("x", 20)), "a milter connection does not begin with"},
		{"long", packet('O', strings.Repeat("\x00\x00\x00\x06", 2000)), "a milter connection does not begin with a packet of"},
		{"cut short", packet('O', "\x00\x00\x00\x06")[:7], "the connection ended within a packet"},
	} {
		before := s.log.String()
		c, err := net.Dial("unix", s.path)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(time.Minute))
		io.WriteString(c, tc.bytes)
		c.(*net.UnixConn).CloseWrite()
		if got, _ := io.ReadAll(c); len(got) > 0 {
			t.Errorf("%s: answered %q", tc.name, got)
		}
		c.Close()
		if said := strings.TrimPrefix(s.log.String(), before); strings.Count(said, "\n") != 1 || !strings.Contains(said, tc.log) {
			t.Errorf("%s: the log says %q, want %q", tc.name, said, tc.log)
		}
	}
}

// TestOffersAreBounded: offers of all kinds do not fill the log.
func TestOffersAreBounded(t *testing.T) {
	s := start(t)
	for i := range 2 * maxKinds {
		begin(t, s, offer{6, 0, protocol.OptProtocol(i)}).conn.Close()
	}
	if got := strings.Count(s.log.String(), "offers less"); got != maxKinds {
		t.Errorf("%d lines in the log, want %d", got, maxKinds)
	}
}
