package smtp

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// maxLine is room for the base64 of AUTH (RFC 4954, section 4: 12288 bytes) with
// its command.
const maxLine = 12288 + 64

// conn is one SMTP connection; one goroutine owns it.
type conn struct {
	x   *Exchange
	svc service
	at  endpoint // of svc
	c   net.Conn
	r   *bufio.Reader
	id  string // 08DCE8B62813AB2B
	tls *tls.Conn

	certNames []string // of the client's certificate, where it is asked for and verified

	helo    string // "" until EHLO or HELO
	box     *box   // authenticated as
	authErr string // the last refusal of AUTH, repeated at MAIL FROM
	// unlisted tells that the app is not on the list of the account of High Volume Email.
	unlisted bool

	mail   bool // MAIL was accepted
	from   string
	rcpts  []string
	inData bool // svc.begin was called
	slot   bool // the submission service's
	chunks []byte
	tooBig bool // chunks would be over the limit
}

// errQuit ends the connection.
var errQuit = errors.New("over")

// commands answer one command each. An error ends the connection.
var commands = map[string]func(*conn, string) error{
	"EHLO":     (*conn).ehlo,
	"HELO":     (*conn).hello,
	"STARTTLS": (*conn).startTLS,
	"AUTH":     (*conn).auth,
	"MAIL":     (*conn).mailFrom,
	"RCPT":     (*conn).rcptTo,
	"DATA":     (*conn).data,
	"BDAT":     (*conn).bdat,
	"RSET":     func(k *conn, _ string) error { k.reset(); return k.reply("250 2.0.0 Resetting") },
	"NOOP":     func(k *conn, _ string) error { return k.reply("250 2.0.0 OK") },
	"QUIT":     (*conn).quit,
	"HELP":     func(k *conn, _ string) error { return k.reply(textNoCommand) },
	"VRFY":     func(k *conn, _ string) error { return k.reply(textNoCommand) },
	"EXPN":     func(k *conn, _ string) error { return k.reply(textNoCommand) },
}

func newConn(x *Exchange, svc service, c net.Conn) *conn {
	return &conn{x: x, svc: svc, at: svc.about(), c: c, r: bufio.NewReaderSize(c, maxLine), id: newSession()}
}

func (k *conn) serve() {
	if k.x.Faults().RefuseConnect || k.x.chance(func(c *Chances) float64 { return c.Greeting }) {
		k.reply(textUnavailable)
		return
	}
	if k.reply(banner(k.at.host, time.Now(), k.id)) != nil {
		return
	}
	for {
		line, err := k.readLine()
		if err == nil {
			err = k.command(line)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			k.reply("500 5.3.3 Line too long")
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			k.reply("421 4.4.1 Connection timed out" + k.bracket())
			return
		case err != nil:
			return
		}
	}
}

func (k *conn) command(line string) error {
	verb, arg, _ := strings.Cut(line, " ")
	if run := commands[strings.ToUpper(verb)]; run != nil {
		return run(k, strings.TrimSpace(arg))
	}
	return k.refuse(fmt.Sprintf("500 5.3.3 Unrecognized command '%.20s'", strings.Map(printable, verb)) + k.bracket())
}

func printable(r rune) rune {
	if r < ' ' || r >= 0x7f {
		return '?'
	}
	return r
}

// reply sends one or more lines.
func (k *conn) reply(lines ...string) error {
	k.c.SetWriteDeadline(time.Now().Add(30 * time.Second))
	_, err := k.c.Write([]byte(strings.Join(lines, "\r\n") + "\r\n"))
	return err
}

// after waits as the real service does before it answers.
func (k *conn) after(takes time.Duration, line string) error {
	if !k.x.sleep(takes) {
		return errQuit
	}
	return k.reply(line)
}

// refuse is for what comes before DATA.
func (k *conn) refuse(line string) error {
	return k.after(k.x.cfg.TarPit, line)
}

// leave sends a reply after which the server hangs up (RFC 5321, section 3.8).
func (k *conn) leave(line string) error {
	k.reply(line)
	return errQuit
}

func (k *conn) bracket() string { return bracket(k.at.machine, time.Now(), k.id) }

// readLine returns a line without its end.
func (k *conn) readLine() (string, error) {
	k.c.SetReadDeadline(time.Now().Add(k.x.cfg.Idle))
	b, err := k.r.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

func (k *conn) ehlo(arg string) error {
	k.reset()
	k.helo = arg
	if arg == "" {
		return k.reply(textBadArgs)
	}
	lines := []string{"250-" + k.at.host + " Hello [" + k.remoteIP() + "]"}
	for _, x := range k.svc.extensions(k) {
		lines = append(lines, "250-"+x)
	}
	last := &lines[len(lines)-1]
	*last = "250 " + (*last)[4:]
	return k.reply(lines...)
}

func (k *conn) hello(arg string) error {
	k.reset()
	k.helo = arg
	if arg == "" {
		return k.reply(textBadArgs)
	}
	return k.reply("250 " + k.at.host + " Hello [" + k.remoteIP() + "]")
}

func (k *conn) remoteIP() string {
	h, _, _ := net.SplitHostPort(k.c.RemoteAddr().String())
	return h
}

func (k *conn) startTLS(string) error {
	if k.helo == "" {
		return k.reply(textSendHello)
	}
	if k.tls != nil {
		return k.reply("503 5.5.2 Only one STARTTLS command can be issued per session")
	}
	if err := k.reply(textReady); err != nil {
		return err
	}
	t := tls.Server(k.c, k.at.tls)
	t.SetDeadline(time.Now().Add(30 * time.Second))
	if err := t.Handshake(); err != nil {
		return err
	}
	// The new reader forgets what was pipelined before TLS (CVE-2011-0411), and
	// what was said before does not count (RFC 3207, section 4.2).
	k.c, k.tls, k.r = t, t, bufio.NewReaderSize(t, maxLine)
	k.helo = ""
	k.reset()
	var err error
	if k.certNames, err = k.x.clientNames(t.ConnectionState().PeerCertificates); err != nil {
		k.x.cfg.Log.Info("client certificate not trusted", "session", k.id, "err", err)
	}
	return nil
}

func (k *conn) quit(string) error {
	// Before the reply: a client that opens its next session when it reads this
	// one must not be counted twice.
	k.signOff()
	k.reply(textBye)
	return errQuit
}

// signOff forgets the transaction and the mailbox.
func (k *conn) signOff() {
	k.reset()
	if k.box != nil {
		k.x.leave(k.box)
		k.box = nil
	}
}

// reset forgets the transaction.
func (k *conn) reset() {
	if k.inData {
		k.svc.end(k)
	}
	k.inData, k.mail, k.from, k.rcpts, k.chunks, k.tooBig = false, false, "", nil, nil, false
}

// mailParams are the parameters of MAIL that the extensions bring; RCPT has
// those of DSN.
var (
	mailParams = map[string]bool{"SIZE": true, "BODY": true, "RET": true, "ENVID": true, "AUTH": true, "SMTPUTF8": true}
	rcptParams = map[string]bool{"NOTIFY": true, "ORCPT": true}
)

func (k *conn) mailFrom(arg string) error {
	if k.helo == "" {
		return k.reply(textSendHello)
	}
	if refusal := k.svc.admits(k); refusal != "" {
		return k.refuse(refusal)
	}
	if k.x.chance(func(c *Chances) float64 { return c.Mail }) {
		return k.leave(textUnavailable)
	}
	if k.mail {
		return k.reply(textTwoSenders)
	}
	addr, params, ok := path(arg, "FROM:", mailParams)
	if !ok {
		return k.reply(textBadArgs)
	}
	if size, given := params["SIZE"]; given {
		n, err := strconv.ParseInt(size, 10, 64)
		if err != nil || n < 0 {
			return k.reply(textBadArgs)
		}
		if n > k.at.maxSize {
			return k.reply(textTooLarge)
		}
	}
	if refusal := k.svc.sender(k, addr); refusal != "" {
		return k.refuse(refusal)
	}
	k.mail, k.from = true, addr
	return k.reply(textSenderOK)
}

func (k *conn) rcptTo(arg string) error {
	addr, _, ok := path(arg, "TO:", rcptParams)
	switch {
	case !k.mail:
		return k.reply(textNeedMail)
	case !ok || addr == "":
		return k.reply(textBadArgs)
	case len(k.rcpts) >= k.at.maxRcpts:
		return k.reply(textManyRcpts)
	}
	if refusal := k.svc.recipient(k, addr); refusal != "" {
		return k.refuse(refusal)
	}
	k.rcpts = append(k.rcpts, addr)
	return k.after(k.x.cfg.RcptTime, textRcptOK)
}

// path reads "FROM:<address> KEY=VALUE KEY". An address without brackets is
// refused, as the real service does since 2018.
func path(arg, prefix string, known map[string]bool) (addr string, params map[string]string, ok bool) {
	if len(arg) < len(prefix) || !strings.EqualFold(arg[:len(prefix)], prefix) {
		return "", nil, false
	}
	rest, ok := strings.CutPrefix(strings.TrimSpace(arg[len(prefix):]), "<")
	end := closing(rest)
	if !ok || end < 0 {
		return "", nil, false
	}
	addr = rest[:end]
	if strings.ContainsFunc(addr, func(r rune) bool { return r < ' ' || r == 0x7f }) || addr != "" && !strings.Contains(addr, "@") {
		return "", nil, false
	}
	params = map[string]string{}
	for p := range strings.FieldsSeq(rest[end+1:]) {
		key, value, _ := strings.Cut(p, "=")
		key = strings.ToUpper(key)
		if !known[key] {
			return "", nil, false
		}
		params[key] = value
	}
	return addr, params, true
}

// closing returns the index of the > that ends a path; a quoted local part may
// contain one (RFC 5321, section 4.1.2).
func closing(s string) int {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == '>' && !quoted:
			return i
		}
	}
	return -1
}

func (k *conn) data(arg string) error {
	if refusal := k.notReady(); refusal != "" {
		return k.reply(refusal)
	}
	if arg != "" {
		return k.reply(textBadArgs)
	}
	if k.chunks != nil {
		return k.reply("503 5.5.2 DATA after BDAT")
	}
	k.begin() // before the reply: whoever has read it counts
	if err := k.reply(textStartData); err != nil {
		return err
	}
	if k.dropNow() {
		k.readLine()
		return errQuit
	}
	data, tooBig, err := k.body()
	if err != nil {
		return err
	}
	return k.finish(data, tooBig)
}

// notReady returns why there is no content wanted yet, "" if there is.
func (k *conn) notReady() string {
	switch {
	case k.helo == "":
		return textSendHello
	case !k.mail:
		return textNeedMail
	case len(k.rcpts) == 0:
		return textNeedRcpt
	}
	return ""
}

func (k *conn) begin() {
	if !k.inData {
		k.inData = true
		k.svc.begin(k)
	}
}

func (k *conn) dropNow() bool {
	return k.x.strikes(func(f *Faults) *int { return &f.DropInData }) || k.x.chance(func(c *Chances) float64 { return c.InData })
}

// body reads a message to its final dot, which only CR LF . CR LF is, and takes
// the doubled dots away (RFC 5321, section 4.5.2). All else stays as it is.
func (k *conn) body() (data []byte, tooBig bool, err error) {
	var b bytes.Buffer
	lineStart, last := true, byte(0)
	for {
		k.c.SetReadDeadline(time.Now().Add(k.x.cfg.Idle))
		chunk, err := k.r.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return nil, false, err
		}
		if lineStart && string(chunk) == ".\r\n" {
			return b.Bytes(), tooBig, nil
		}
		n := len(chunk)
		if n > 1 {
			last = chunk[n-2]
		}
		end := chunk[n-1] == '\n' && last == '\r'
		last = chunk[n-1]
		if lineStart && chunk[0] == '.' {
			chunk = chunk[1:]
		}
		lineStart = end
		if tooBig = tooBig || int64(b.Len()+len(chunk)) > k.at.maxSize; !tooBig {
			b.Write(chunk)
		}
	}
}

// bdat takes one chunk (RFC 3030). A chunk follows its command even when it is
// refused.
func (k *conn) bdat(arg string) error {
	number, last, more := strings.Cut(arg, " ")
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil || more && !strings.EqualFold(last, "LAST") {
		// Where the next command begins is unknown.
		k.reply(textBadArgs)
		return errQuit
	}
	refusal := k.notReady()
	if refusal == "" {
		k.begin()
		if k.dropNow() {
			return errQuit
		}
	}
	if err := k.readChunk(int64(n), refusal != ""); err != nil {
		return err
	}
	switch {
	case refusal != "":
		return k.reply(refusal)
	case more:
		return k.finish(k.chunks, k.tooBig)
	}
	return k.reply(fmt.Sprintf("250 2.0.0 %d bytes received", n))
}

// readChunk appends n bytes to the chunks, or throws them away.
func (k *conn) readChunk(n int64, discard bool) error {
	if k.chunks == nil && !discard {
		k.chunks = []byte{}
	}
	buf := make([]byte, min(n, 32<<10))
	for n > 0 {
		k.c.SetReadDeadline(time.Now().Add(k.x.cfg.Idle))
		got, err := k.r.Read(buf[:min(n, int64(len(buf)))])
		n -= int64(got)
		k.tooBig = !discard && (k.tooBig || int64(len(k.chunks)+got) > k.at.maxSize)
		if !discard && !k.tooBig {
			k.chunks = append(k.chunks, buf[:got]...)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// finish has a complete message judged.
func (k *conn) finish(data []byte, tooBig bool) error {
	if tooBig {
		k.reset()
		return k.reply(textTooLarge)
	}
	m := &Message{Session: k.id, Endpoint: k.at.name, Helo: k.helo, Sender: k.from, Recipients: k.rcpts, Data: data, Dot: time.Now()}
	if k.tls != nil {
		m.TLS = tls.VersionName(k.tls.ConnectionState().Version)
	}
	k.svc.judge(k, m)
	// Before the reply: the client may begin its next message when it reads it.
	k.reset()
	if m.Dropped {
		return errQuit
	}
	if strings.HasPrefix(m.Reply, "421") {
		return k.leave(m.Reply)
	}
	return k.reply(m.Reply)
}
