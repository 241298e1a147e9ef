package milter_test

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"time"

	protocol "github.com/d--j/go-milter"
)

// mta is smtpd(8) and cleanup(8) of Postfix 3.7 in one session with a filter, as far as the filter
// can tell: the same packets in the same writes, macros included (save that the queue id is known
// from the start). Postfix sends what needs no reply together with the next that does, and all it
// has when smtpd(8) passes the connection on to cleanup(8), after DATA. Packets are encoded once,
// so that the load takes little of the machine.
type mta struct {
	conn    net.Conn
	r       *bufio.Reader
	steps   protocol.OptProtocol           // what the filter does not want to see or to answer
	macros  map[protocol.MacroStage]string // names that it asked for
	turns   []turn                         // of one message
	pending []byte                         // while turns are made: what has not been written
}

// A turn is one write of the MTA, and whether it waits for the filter then.
type turn struct {
	send []byte
	wait bool
}

// All that libmilter 8.17 and Postfix 3.7 speak of: SMFI_CURR_ACTS and SMFI_CURR_PROT of mfdef.h.
const (
	milterVersion = 6
	allActions    = 0x1ff
	allSteps      = 0x1fffff
)

// benchHeader is an ordinary message of a device that signs with an address that is not its own.
var benchHeader = [][2]string{
	{"Received", "from mfp3.floor2.contoso.net (mfp3.floor2.contoso.net [10.200.0.9])\n\tby relay2.contoso.net (Postfix) with ESMTP id 4cQXyz1abcz1k\n\tfor <someone@example.net>; Sat, 21 Nov 2026 08:00:00 +0000 (UTC)"},
	{"From", "Mfp 3 <mfp3@contoso.net>"},
	{"To", "Someone Else <someone@example.net>, other@example.net"},
	{"Subject", "Scanned document 2026-11-21 08:00:00"},
	{"Date", "Sat, 21 Nov 2026 08:00:00 +0000"},
	{"Message-ID", "<20261121080000.4711@mfp3.floor2.contoso.net>"},
	{"MIME-Version", "1.0"},
	{"Content-Type", "multipart/mixed;\n\tboundary=\"----=_Part_4711_1234567890.1234567890\""},
	{"Content-Transfer-Encoding", "7bit"},
	{"Content-Language", "en"},
	{"User-Agent", "ScanToMail/7.21"},
	{"X-Mailer", "ScanToMail 7.21 (firmware 2026-04)"},
	{"X-Priority", "3 (Normal)"},
	{"Importance", "Normal"},
	{"Organization", "Contoso, second floor"},
}

// benchChanges is what has to become of it.
const benchChanges = "e<scan@contoso.com>\n" +
	"m1 From: Mfp 3 <scan@contoso.com>\n" +
	"hReply-To: Mfp 3 <mfp3@contoso.net>\n" +
	"hX-Original-From: Mfp 3 <mfp3@contoso.net>\n" +
	"a"

// benchMacros are the values that Postfix has to tell; others it leaves out.
var benchMacros = map[string]string{
	"j": "relay.contoso.net", "{daemon_name}": "relay.contoso.net", "{daemon_addr}": "10.0.0.25", "v": "Postfix 3.7.11",
	"_": "mfp3.floor2.contoso.net [10.200.0.9]", "{client_addr}": "10.200.0.9", "{client_name}": "mfp3.floor2.contoso.net",
	"{client_port}": "4711", "i": "4cQXyz2abcz1k", "{mail_addr}": "mfp3@contoso.net", "{mail_host}": "contoso.net",
	"{mail_mailer}": "smtp", "{rcpt_addr}": "someone@example.net", "{rcpt_host}": "example.net", "{rcpt_mailer}": "smtp",
}

// stageMacros are Postfix's defaults, milter_connect_macros and so on.
var stageMacros = map[protocol.MacroStage]string{
	protocol.StageConnect: "j {daemon_name} {daemon_addr} v _",
	protocol.StageHelo:    "{tls_version} {cipher} {cipher_bits} {cert_subject} {cert_issuer}",
	protocol.StageMail:    "i {auth_type} {auth_authen} {auth_author} {mail_addr} {mail_host} {mail_mailer}",
	protocol.StageRcpt:    "i {rcpt_addr} {rcpt_host} {rcpt_mailer}",
	protocol.StageData:    "i",
	protocol.StageEOH:     "i",
	protocol.StageEOM:     "i",
}

// connect begins a session.
func connect(socket string) (*mta, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	m := &mta{conn: conn, r: bufio.NewReaderSize(conn, 64<<10)}
	if err := m.begin(); err != nil {
		conn.Close()
		return nil, err
	}
	return m, nil
}

func (m *mta) begin() error {
	m.conn.SetDeadline(time.Now().Add(patience))
	if err := m.negotiate(); err != nil {
		return fmt.Errorf("negotiating: %w", err)
	}
	m.event('C', protocol.StageConnect, protocol.OptNoConnect, protocol.OptNoConnReply, "mfp3.floor2.contoso.net\x004\x12\x6710.200.0.9\x00")
	m.event('H', protocol.StageHelo, protocol.OptNoHelo, protocol.OptNoHeloReply, "mfp3\x00")
	m.flush(false)
	for _, t := range m.turns {
		if err := m.play(t, nil); err != nil {
			return fmt.Errorf("connecting: %w", err)
		}
	}
	m.turns = nil
	m.encodeMessage()
	return nil
}

// negotiate offers everything and notes what the filter makes of it.
func (m *mta) negotiate() error {
	offer := []byte{0, 0, 0, 13, 'O'}
	for _, v := range []uint32{milterVersion, allActions, allSteps} {
		offer = binary.BigEndian.AppendUint32(offer, v)
	}
	if _, err := m.conn.Write(offer); err != nil {
		return err
	}
	code, data, err := m.packet()
	if err != nil {
		return err
	}
	if code != 'O' || len(data) < 12 {
		return fmt.Errorf("the filter answers %q %q", code, data)
	}
	m.steps = protocol.OptProtocol(binary.BigEndian.Uint32(data[8:]))
	m.macros = map[protocol.MacroStage]string{}
	for data = data[12:]; len(data) > 4; {
		names, rest, _ := bytes.Cut(data[4:], []byte{0})
		m.macros[protocol.MacroStage(binary.BigEndian.Uint32(data))] = string(names)
		data = rest
	}
	return nil
}

// encodeMessage makes the turns of one message, which another one went before.
func (m *mta) encodeMessage() {
	m.put('A', "") // ends the one before
	m.event('M', protocol.StageMail, protocol.OptNoMailFrom, protocol.OptNoMailReply, "<mfp3@contoso.net>\x00")
	for _, r := range []string{"<someone@example.net>\x00", "<other@example.net>\x00"} {
		m.event('R', protocol.StageRcpt, protocol.OptNoRcptTo, protocol.OptNoRcptReply, r)
	}
	m.event('T', protocol.StageData, protocol.OptNoData, protocol.OptNoDataReply, "")
	m.flush(false) // smtpd(8) hands over to cleanup(8)
	for _, f := range benchHeader {
		m.event('L', protocol.StageEOH, protocol.OptNoHeaders, protocol.OptNoHeaderReply, f[0]+"\x00"+f[1]+"\x00")
	}
	if m.steps&protocol.OptNoEOH == 0 {
		m.event('N', protocol.StageEOH, protocol.OptNoEOH, protocol.OptNoEOHReply, "")
	}
	if m.steps&protocol.OptNoBody == 0 {
		m.event('B', protocol.StageEOM, protocol.OptNoBody, protocol.OptNoBodyReply, "body\r\n")
	}
	m.event('E', protocol.StageEOM, 0, 0, "")
}

// event adds one event: its macros, which Postfix sends even where the filter does not want to see
// the event itself, and the event. See milter8_event() in Postfix's src/milter/milter8.c.
func (m *mta) event(code byte, stage protocol.MacroStage, skip, silent protocol.OptProtocol, data string) {
	names := cmp.Or(m.macros[stage], stageMacros[stage])
	macros := string(code)
	for n := range strings.FieldsSeq(names) {
		if v, ok := benchMacros[n]; ok {
			macros += n + "\x00" + v + "\x00"
		}
	}
	m.put('D', macros)
	if m.steps&skip != 0 {
		return
	}
	m.put(code, data)
	if m.steps&silent == 0 {
		m.flush(true)
	}
}

func (m *mta) put(code byte, data string) {
	m.pending = binary.BigEndian.AppendUint32(m.pending, uint32(1+len(data)))
	m.pending = append(append(m.pending, code), data...)
}

func (m *mta) flush(wait bool) {
	if len(m.pending) > 0 {
		m.turns = append(m.turns, turn{m.pending, wait})
	}
	m.pending = nil
}

// send passes n messages to the filter.
func (m *mta) send(n int) error {
	m.conn.SetDeadline(time.Now().Add(patience))
	for range n {
		for _, t := range m.turns {
			if err := m.play(t, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// changes passes one message to the filter and returns what it answers at its end, a line each.
func (m *mta) changes() (string, error) {
	m.conn.SetDeadline(time.Now().Add(patience))
	var list []string
	for _, t := range m.turns {
		list = nil
		note := func(code byte, data []byte) {
			line := string(code)
			if code == 'm' && len(data) > 4 {
				line += fmt.Sprint(binary.BigEndian.Uint32(data)) + " "
				data = data[4:]
			}
			text := strings.TrimSuffix(string(data), "\x00")
			list = append(list, line+strings.Replace(text, "\x00", ": ", 1))
		}
		if err := m.play(t, note); err != nil {
			return "", err
		}
	}
	return strings.Join(list, "\n"), nil
}

// play plays a turn. note, unless nil, sees each packet of the answer.
func (m *mta) play(t turn, note func(code byte, data []byte)) error {
	if _, err := m.conn.Write(t.send); err != nil {
		return err
	}
	for t.wait {
		code, data, err := m.packet()
		if err != nil {
			return err
		}
		if note != nil {
			note(code, data)
		}
		switch code {
		case 'c', 'a':
			return nil
		case 'r', 't', 'd', 'y', '4':
			return fmt.Errorf("the filter refuses the message: %q %q", code, data)
		}
	}
	return nil
}

// packet reads one packet. data is valid until the next one is read.
func (m *mta) packet() (code byte, data []byte, err error) {
	head, err := m.r.Peek(4)
	if err != nil {
		return 0, nil, err
	}
	n := 4 + int(binary.BigEndian.Uint32(head))
	p, err := m.r.Peek(n)
	if err != nil {
		return 0, nil, err
	}
	if n < 5 {
		return 0, nil, fmt.Errorf("a packet of length %d", n-4)
	}
	m.r.Discard(n)
	return p[4], p[5:], nil
}
