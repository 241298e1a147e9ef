package exosim

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/textproto"
	"strings"
	"time"
)

const (
	frontend = "LO4P302CA0005.outlook.office365.com"
	machine  = "LO4P302CA0005.GBRP302.PROD.OUTLOOK.COM"
	backend  = "SYBP282MB2635.AUSP282.PROD.OUTLOOK.COM"

	maxLine  = 12288 + 64 // RFC 4954, section 4.5.3: base64 lines of AUTH
	maxSize  = 157286400
	idleTime = 5 * time.Minute
)

// conn is one SMTP connection; one goroutine owns it.
type conn struct {
	s       *Server
	c       net.Conn
	r       *bufio.Reader
	id      string // [08DCE8B62813AB2B]
	tls     bool
	greeted bool
	box     *mailbox // authenticated as
	authErr string   // the last refusal of AUTH, repeated at MAIL FROM

	from  string
	rcpts []string
	mail  bool // MAIL was accepted
}

func (s *Server) serveSMTP() {
	for {
		c, err := s.smtp.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			c.Close()
			return
		}
		s.conns[c] = struct{}{}
		s.serial++
		id := fmt.Sprintf("%016X", 0x08DCE8B600000000+s.serial)
		s.mu.Unlock()
		s.wg.Go(func() {
			k := &conn{s: s, c: c, r: bufio.NewReaderSize(c, maxLine), id: id}
			k.serve()
			k.leave()
			c.Close()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		})
	}
}

// reply sends one or more lines with the same code.
func (k *conn) reply(lines ...string) error {
	k.c.SetWriteDeadline(time.Now().Add(30 * time.Second))
	_, err := k.c.Write([]byte(strings.Join(lines, "\r\n") + "\r\n"))
	return err
}

// refuse waits as the real service does before it refuses.
func (k *conn) refuse(line string) error {
	time.Sleep(k.s.cfg.TarPit)
	return k.reply(line)
}

// where returns the bracket at the end of errors.
func (k *conn) where() string {
	return "[" + machine + " " + time.Now().UTC().Format("2006-01-02T15:04:05.000Z") + " " + k.id + "]"
}

func (k *conn) readLine() (string, error) {
	k.c.SetReadDeadline(time.Now().Add(idleTime))
	b, err := k.r.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

func (k *conn) serve() {
	if k.s.fault(func(f *Faults) bool { return f.RefuseConnect }) {
		k.reply("421 4.3.2 Service not available")
		return
	}
	k.reply("220 " + frontend + " Microsoft ESMTP MAIL Service ready at " + time.Now().UTC().Format(time.RFC1123Z) + " [" + k.id + "]")
	for {
		line, err := k.readLine()
		if err != nil {
			if errors.Is(err, bufio.ErrBufferFull) {
				k.reply("500 5.3.3 Line too long")
			}
			return
		}
		verb, arg, _ := strings.Cut(line, " ")
		if k.command(strings.ToUpper(verb), arg) != nil {
			return
		}
	}
}

// errQuit ends the connection.
var errQuit = errors.New("over")

func (k *conn) command(verb, arg string) error {
	switch verb {
	case "EHLO":
		return k.ehlo()
	case "HELO":
		k.greeted = true
		return k.reply("250 " + frontend + " Hello [" + k.host() + "]")
	case "STARTTLS":
		return k.startTLS()
	case "AUTH":
		return k.auth(arg)
	case "MAIL":
		return k.mailFrom(arg)
	case "RCPT":
		return k.rcptTo(arg)
	case "DATA":
		return k.data()
	case "RSET":
		k.reset()
		return k.reply("250 2.0.0 Resetting")
	case "NOOP":
		return k.reply("250 2.0.0 OK")
	case "QUIT":
		k.reply("221 2.0.0 Service closing transmission channel")
		return errQuit
	case "HELP", "VRFY", "EXPN":
		return k.reply("502 5.3.3 Command not implemented")
	}
	return k.refuse(fmt.Sprintf("500 5.3.3 Unrecognized command '%.20s' %s", strings.Map(printable, verb), k.where()))
}

func printable(r rune) rune {
	if r < ' ' || r >= 0x7f {
		return '?'
	}
	return r
}

func (k *conn) host() string {
	h, _, _ := net.SplitHostPort(k.c.RemoteAddr().String())
	return h
}

func (k *conn) ehlo() error {
	k.greeted = true
	k.reset()
	offer := "STARTTLS"
	if k.tls {
		offer = "AUTH LOGIN XOAUTH2"
	}
	return k.reply("250-"+frontend+" Hello ["+k.host()+"]", "250-SIZE 157286400", "250-PIPELINING", "250-DSN", "250-ENHANCEDSTATUSCODES",
		"250-"+offer, "250-8BITMIME", "250-BINARYMIME", "250-CHUNKING", "250 SMTPUTF8")
}

func (k *conn) startTLS() error {
	if k.tls || k.r.Buffered() > 0 { // what was pipelined before TLS must not be heard after it (CVE-2011-0411)
		return k.reply("503 5.5.2 Send hello first")
	}
	k.reply("220 2.0.0 SMTP server ready")
	t := tls.Server(k.c, k.s.tls)
	t.SetDeadline(time.Now().Add(30 * time.Second))
	if err := t.Handshake(); err != nil {
		return err
	}
	k.c, k.r, k.tls, k.greeted = t, bufio.NewReaderSize(t, maxLine), true, false
	return nil
}

func (k *conn) auth(arg string) error {
	mech, initial, hasInitial := strings.Cut(arg, " ")
	mech = strings.ToUpper(mech)
	switch {
	case !k.tls:
		return k.reply("504 5.7.4 Unrecognized authentication type")
	case !k.greeted:
		return k.reply("503 5.5.2 Send hello first")
	case k.box != nil:
		return k.reply("503 5.5.1 Already authenticated")
	case mech == "LOGIN":
		return k.authLogin(initial, hasInitial)
	case mech != "XOAUTH2":
		return k.reply("504 5.7.4 Unrecognized authentication type")
	}
	if !hasInitial {
		k.reply("334 ")
		line, err := k.readLine()
		if err != nil {
			return err
		}
		initial = line
	}
	if initial == "*" {
		return k.authRefused("535 5.7.3 Authentication unsuccessful " + k.where())
	}
	user, token, err := parseXOAUTH2(initial)
	if err != nil {
		return k.refuse("501 5.5.4 Invalid arguments")
	}
	box, refusal := k.s.authenticate(user, token, k.where())
	if refusal != "" {
		return k.authRefused(refusal)
	}
	k.box = box
	k.s.enter(box)
	return k.reply("235 2.7.0 Authentication successful")
}

// authLogin is refused as it is where Basic authentication is off.
func (k *conn) authLogin(_ string, hasInitial bool) error {
	prompts := []string{"334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6"}
	if hasInitial {
		prompts = prompts[1:]
	}
	for _, p := range prompts {
		k.reply(p)
		if _, err := k.readLine(); err != nil {
			return err
		}
	}
	return k.authRefused("535 5.7.139 Authentication unsuccessful, basic authentication is disabled. " + k.where())
}

func (k *conn) authRefused(line string) error {
	if k.s.cfg.Challenge {
		k.reply("334 " + base64.StdEncoding.EncodeToString([]byte(`{"status":"400","schemes":"Bearer"}`)))
		if _, err := k.readLine(); err != nil {
			return err
		}
	}
	k.authErr = line
	return k.refuse(line)
}

// parseXOAUTH2 reads the payload of Microsoft's "SASL XOAUTH2" page:
// base64("user=" userName ^A "auth=Bearer " accessToken ^A ^A).
func parseXOAUTH2(b64 string) (user, token string, err error) {
	b, err := base64.StdEncoding.DecodeString(b64)
	if err != nil {
		return "", "", err
	}
	parts := strings.Split(string(b), "\x01")
	if len(parts) != 4 || parts[2] != "" || parts[3] != "" {
		return "", "", errors.New("not two fields and two ^A")
	}
	user, ok := strings.CutPrefix(parts[0], "user=")
	token, ok2 := strings.CutPrefix(parts[1], "auth=Bearer ")
	if !ok || !ok2 || user == "" || token == "" {
		return "", "", errors.New("user= or auth=Bearer is missing")
	}
	return user, token, nil
}

func (k *conn) mailFrom(arg string) error {
	switch {
	case !k.greeted:
		return k.reply("503 5.5.2 Send hello first")
	case !k.tls:
		return k.refuse("451 5.7.3 STARTTLS is required to send mail")
	case k.box == nil && k.authErr != "":
		return k.refuse("530 5.7.57 Client not authenticated to send mail. Error: " + k.authErr)
	case k.box == nil:
		return k.refuse("530 5.7.57 Client not authenticated to send mail. " + k.where())
	case k.mail:
		return k.reply("503 5.5.2 Sender already specified")
	}
	addr, params, ok := path(arg, "FROM:")
	if !ok {
		return k.reply("501 5.5.4 Invalid arguments")
	}
	for p := range strings.FieldsSeq(params) {
		var n int64
		if _, err := fmt.Sscanf(strings.ToUpper(p), "SIZE=%d", &n); err == nil && n > maxSize {
			return k.reply("552 5.3.4 Message size exceeds fixed maximum message size")
		}
	}
	k.mail, k.from = true, addr
	return k.reply("250 2.1.0 Sender OK")
}

func (k *conn) rcptTo(arg string) error {
	addr, _, ok := path(arg, "TO:")
	switch {
	case !k.mail:
		return k.reply("503 5.5.2 Need mail command")
	case !ok || addr == "":
		return k.reply("501 5.5.4 Invalid arguments")
	case len(k.rcpts) >= 500:
		return k.reply("452 4.5.3 Too many recipients")
	}
	k.rcpts = append(k.rcpts, addr)
	return k.reply("250 2.1.5 Recipient OK")
}

// path reads "FROM:<address> parameters".
func path(arg, prefix string) (addr, params string, ok bool) {
	if len(arg) < len(prefix) || !strings.EqualFold(arg[:len(prefix)], prefix) {
		return "", "", false
	}
	rest := strings.TrimSpace(arg[len(prefix):])
	end := strings.LastIndexByte(rest, '>')
	if !strings.HasPrefix(rest, "<") || end < 0 {
		return "", "", false
	}
	return rest[1:end], rest[end+1:], true
}

func (k *conn) reset() { k.mail, k.from, k.rcpts = false, "", nil }

func (k *conn) data() error {
	if !k.mail {
		return k.reply("503 5.5.2 Need mail command")
	}
	if len(k.rcpts) == 0 {
		return k.reply("503 5.5.2 Need rcpt command")
	}
	k.reply("354 Start mail input; end with <CRLF>.<CRLF>")
	parallel := k.s.beginData(k.box)
	defer k.s.endData(k.box)
	if k.s.fault(func(f *Faults) bool { return countDown(&f.DropInData) }) {
		return errQuit
	}
	raw, err := k.body()
	if err != nil {
		return err
	}
	m := &Message{Session: k.id, Mailbox: k.box.Address, Sender: k.from, Recipients: k.rcpts, Data: raw,
		TLS: tls.VersionName(k.c.(*tls.Conn).ConnectionState().Version), Dot: time.Now()}
	if d := k.s.cfg.VerdictMax - k.s.cfg.VerdictMin; k.s.cfg.VerdictMax > 0 {
		time.Sleep(k.s.cfg.VerdictMin + time.Duration(rand.Int64N(int64(d)+1)))
	}
	silent := k.s.judge(k.box, m, parallel)
	k.reset()
	if silent {
		return errQuit
	}
	if m.Reply[0] != '2' {
		return k.refuse(m.Reply)
	}
	return k.reply(m.Reply)
}

// body reads the message to its final dot.
func (k *conn) body() ([]byte, error) {
	var b bytes.Buffer
	for {
		k.c.SetReadDeadline(time.Now().Add(idleTime))
		line, err := k.r.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
		if string(line) == ".\r\n" && (b.Len() == 0 || bytes.HasSuffix(b.Bytes(), []byte("\n"))) {
			return b.Bytes(), nil
		}
		if len(line) > 0 && line[0] == '.' && (b.Len() == 0 || bytes.HasSuffix(b.Bytes(), []byte("\n"))) {
			line = line[1:]
		}
		if b.Write(line); b.Len() > maxSize {
			return nil, textproto.ProtocolError("too large")
		}
	}
}

// leave forgets the connection's mailbox.
func (k *conn) leave() {
	if k.box == nil {
		return
	}
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	k.box.sessions--
}

func (s *Server) enter(b *mailbox) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b.sessions++
	b.maxSessions = max(b.maxSessions, b.sessions)
}

func (s *Server) beginData(b *mailbox) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	b.inData++
	b.maxInData = max(b.maxInData, b.inData)
	return b.inData
}

func (s *Server) endData(b *mailbox) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b.inData--
}

func (s *Server) fault(ask func(*Faults) bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return ask(&s.faults)
}

// countDown uses up one of n.
func countDown(n *int) bool {
	if *n <= 0 {
		return false
	}
	*n--
	return true
}
