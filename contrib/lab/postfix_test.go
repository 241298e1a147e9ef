package lab

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sendas/sendas/token/sasl"
)

// patience bounds every wait in these tests. Nothing takes this long unless it
// is broken.
const patience = 60 * time.Second

const relayName = "smtp.office365.com"

// startLab starts an instance and, at the end of the test, stops it and looks
// for processes that it left.
func startLab(t *testing.T, c PostfixConfig) *Postfix {
	t.Helper()
	if c.Dir == "" {
		c.Dir = makeDirFor(t)
	}
	p, err := StartPostfix(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	pgid := p.pgid
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
		if left := processGroup(pgid); len(left) > 0 {
			t.Errorf("processes %v are left", left)
		}
		if t.Failed() {
			log, _ := p.Log()
			t.Logf("Postfix logged:\n%s", log)
		}
	})
	return p
}

func makeDirFor(t *testing.T) string {
	t.Helper()
	dir, err := MakeDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func withPatience(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func waitLog(t *testing.T, p *Postfix, re string) string {
	t.Helper()
	line, err := p.WaitLog(withPatience(t), regexp.MustCompile(re))
	if err != nil {
		t.Fatal(err)
	}
	return line
}

// send sends a message that must be accepted, and returns its queue id.
func send(t *testing.T, p *Postfix, m Mail) string {
	t.Helper()
	r, err := Send(withPatience(t), p.SMTPAddr(), m)
	if err != nil || !r.Accepted() || r.QueueID() == "" {
		t.Fatalf("sending %+v: %v, %v", m, r.Replies, err)
	}
	return r.QueueID()
}

func TestStopLeavesNothing(t *testing.T) {
	p := startLab(t, PostfixConfig{})
	first := p.pgid
	// A session in the middle must not keep a daemon alive.
	conn, err := net.Dial("tcp", p.SMTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if banner, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.HasPrefix(banner, "220 "+defaultHostname) {
		t.Fatalf("banner = %q, %v", banner, err)
	}
	if n := len(processGroup(first)); n < 4 { // master, qmgr, pickup, smtpd
		t.Errorf("%d processes run, want at least 4: the test cannot see them", n)
	}

	if err := p.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := processGroup(first); len(left) > 0 {
		t.Errorf("processes %v survived the restart", left)
	}
	r, err := Send(withPatience(t), p.SMTPAddr(), Mail{From: "a@contoso.com"})
	if err != nil || r.Verdict().Stage != StageData {
		t.Errorf("after the restart: %v, %v", r.Replies, err)
	}

	second := p.pgid
	for range 2 {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	}
	if left := processGroup(second); len(left) > 0 {
		t.Errorf("processes %v survived the stop", left)
	}
	if conn, err := net.Dial("tcp", p.SMTPAddr()); err == nil {
		conn.Close()
		t.Error("something still listens")
	}
}

func TestStartPostfixRefuses(t *testing.T) {
	full := makeDirFor(t)
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	closed := filepath.Join(makeDirFor(t), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		c    PostfixConfig
		want string
	}{
		{"relative", PostfixConfig{Dir: "lab"}, "not an absolute path"},
		{"not empty", PostfixConfig{Dir: full}, "not empty"},
		{"closed", PostfixConfig{Dir: filepath.Join(closed, "lab")}, "user postfix cannot enter " + closed},
		{"bad setting", PostfixConfig{Dir: makeDirFor(t), Main: map[string]string{"inet_interfaces": "no.such.host.invalid"}}, "system's log"},
		{"not our address", PostfixConfig{Dir: makeDirFor(t), Master: []string{"192.0.2.1:2525 inet n - y - - smtpd"}}, "starting Postfix"},
	}
	for _, tc := range tests {
		p, err := StartPostfix(t.Context(), tc.c)
		if err == nil {
			p.Stop()
			t.Errorf("%s: it started", tc.name)
		} else if !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
		wantNoDaemon(t, tc.c.Dir)
	}
}

func TestStartPostfixCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := makeDirFor(t)
	if p, err := StartPostfix(ctx, PostfixConfig{Dir: dir}); err == nil {
		p.Stop()
		t.Fatal("it started")
	}
	wantNoDaemon(t, dir)
	if _, err := os.Stat(filepath.Join(dir, "queue/pid/master.pid")); err != nil {
		t.Errorf("master(8) did not come so far as to be stopped: %v", err)
	}
}

// wantNoDaemon looks for processes whose working directory is the queue in dir.
func wantNoDaemon(t *testing.T, dir string) {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil || len(links) == 0 {
		t.Fatalf("no processes at all: %v", err)
	}
	for _, link := range links {
		if cwd, err := os.Readlink(link); err == nil && cwd == filepath.Join(dir, "queue") {
			t.Errorf("%s is in %s", link, cwd)
		}
	}
}

func TestMissingCommand(t *testing.T) {
	if _, err := lookCommand("postnothing"); err == nil || !strings.Contains(err.Error(), "run make deps") {
		t.Errorf("got %v, want the hint", err)
	}
}

func TestMasterCF(t *testing.T) {
	p := &Postfix{addr: "127.0.0.1:10025", cfg: PostfixConfig{Master: []string{
		"smtp unix - - n - - smtp\n  -o smtp_helo_name=x\n",
		"erp unix - - y - - smtp",
	}}}
	got := string(p.masterCF())
	for _, want := range []string{"127.0.0.1:10025 inet n - y - - smtpd\n", "\nsmtp unix - - n - - smtp\n  -o smtp_helo_name=x\nerp unix - - y - - smtp\n", "\nrelay "} {
		if !strings.Contains(got, want) {
			t.Errorf("master.cf lacks %q:\n%s", want, got)
		}
	}
	if n := len(regexp.MustCompile(`(?m)^smtp\s+unix`).FindAllString(got, -1)); n != 1 {
		t.Errorf("master.cf has %d services smtp/unix, want 1", n)
	}
}

// TestClients: what XCLIENT pretends is what Postfix acts on, and broken mail
// arrives as it was sent.
func TestClients(t *testing.T) {
	p := startLab(t, PostfixConfig{Main: map[string]string{
		"mynetworks":                   "10.2.0.0/16",
		"smtpd_recipient_restrictions": "check_client_access static:hold",
	}})
	to := []string{"someone@example.net"}

	r, err := Send(withPatience(t), p.SMTPAddr(), Mail{XClient: XClient{Addr: "10.9.9.9"}, To: to})
	if err != nil || r.Verdict().Stage != StageRcpt || r.Verdict().Code != 554 || r.Verdict().Enhanced != "5.7.1" {
		t.Errorf("a client from elsewhere: %v, %v; want RCPT: 554 5.7.1", r.Replies, err)
	}

	data := "From: scanner3@floor 3 <bad\r\nSubject: \xe4\r\n\r\n.a\r\n..b\r\n"
	id := send(t, p, Mail{
		XClient: XClient{Addr: "10.2.0.9", Name: "mfp3.local", Login: "nagios"},
		To:      to, Data: []byte(data),
	})
	waitLog(t, p, id+`: client=mfp3\.local\[10\.2\.0\.9\], .*sasl_username=nagios`)
	got := readQueueFile(t, p, "hold", id)
	for line := range strings.SplitSeq(strings.TrimSuffix(data, "\r\n"), "\r\n") {
		if !slices.Contains(got, line) {
			t.Errorf("line %q is not in the queue file %q", line, got)
		}
	}
}

// readQueueFile returns the lines of a queued message's header and body.
func readQueueFile(t *testing.T, p *Postfix, queue, id string) []string {
	t.Helper()
	out, err := p.command(withPatience(t), nil, "postcat", "-c", p.ConfigDir(), "-h", "-b", filepath.Join(p.QueueDir(), queue, id))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(out), "\n")
}

func TestHoldAndRelease(t *testing.T) {
	p := startLab(t, PostfixConfig{Main: map[string]string{
		"smtpd_recipient_restrictions": "check_client_access static:hold",
	}})
	id := send(t, p, Mail{From: "a@contoso.com", To: []string{"someone@example.net"}, Data: []byte("Subject: x\r\n\r\n")})

	q, err := p.WaitQueue(withPatience(t), func(q []QueueEntry) bool { return len(q) == 1 })
	if err != nil {
		t.Fatal(err)
	}
	if e := q[0]; e.Queue != "hold" || e.ID != id || e.Sender != "a@contoso.com" || e.Size == 0 || e.Arrival == 0 {
		t.Errorf("queue = %+v, want %s on hold", e, id)
	}
	if err := p.Release(withPatience(t), id); err != nil {
		t.Fatal(err)
	}
	if err := p.Flush(withPatience(t)); err != nil {
		t.Fatal(err)
	}
	q, err = p.WaitQueue(withPatience(t), func(q []QueueEntry) bool {
		return len(q) == 1 && q[0].Queue == "deferred" && q[0].Recipients[0].Reason != ""
	})
	if err != nil {
		t.Fatal(err)
	}
	if r := q[0].Recipients; len(r) != 1 || r[0].Address != "someone@example.net" || !strings.Contains(r[0].Reason, "unable to look up host example.net") {
		t.Errorf("recipients = %+v, want one, deferred with the reason", r)
	}
}

func TestWaitsEnd(t *testing.T) {
	p := startLab(t, PostfixConfig{})
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := p.WaitQueue(ctx, func([]QueueEntry) bool { cancel(); return false }); err == nil {
		t.Error("WaitQueue: no error although ctx has ended")
	}
	_, err := p.WaitLog(ctx, regexp.MustCompile("no such line"))
	if err == nil || !strings.Contains(err.Error(), "daemon started") {
		t.Errorf("WaitLog: got %v, want an error with the end of the log", err)
	}
}

func TestSendmailInjectAndReload(t *testing.T) {
	p := startLab(t, PostfixConfig{Main: map[string]string{"default_transport": "retry:4.3.5 not today"}})
	msg := "Subject: x\n\n.\n-- \nend\n"
	for _, from := range []string{"cron@contoso.com", ""} {
		if err := p.SendmailInject(withPatience(t), from, []string{"someone@example.net"}, []byte(msg)); err != nil {
			t.Fatal(err)
		}
		if _, err := p.WaitQueue(withPatience(t), func(q []QueueEntry) bool {
			return slices.ContainsFunc(q, func(e QueueEntry) bool { return e.Sender == from && e.Queue == "deferred" })
		}); err != nil {
			t.Fatal(err)
		}
	}

	main := filepath.Join(p.ConfigDir(), "main.cf")
	f, err := os.OpenFile(main, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(f, "smtpd_banner = reloaded.example ESMTP\n"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Reload(withPatience(t)); err != nil {
		t.Fatal(err)
	}
	waitLog(t, p, `master\[[0-9]+\]: reload`)
	r, err := Send(withPatience(t), p.SMTPAddr(), Mail{})
	if err != nil || r.Replies[0].Text != "reloaded.example ESMTP" {
		t.Errorf("after the reload: %v, %v", r.Replies, err)
	}
}

// --- the way out, with a fake Exchange Online ---

const (
	goOn     = "334 " // an empty challenge: let me have the token
	accepted = "235 2.7.0 Authentication successful"
	refused  = "535 5.7.3 Authentication unsuccessful [SN4PR0701CA0030.namprd07.prod.outlook.com]"
)

// challenge is an error as Google sends it.
var challenge = "334 " + base64.StdEncoding.EncodeToString([]byte(`{"status":"401","schemes":"bearer","scope":"https://mail.google.com/"}`))

// upstream is a fake smtp.office365.com: STARTTLS, AUTH by a script, one
// message after the other.
type upstream struct {
	port  string
	trust string // file with the CA's certificate
	tls   *tls.Config

	mu      sync.Mutex // guards all below
	plain   bool       // no STARTTLS, and AUTH without it
	replies []string   // to AUTH and to each line after that
	auths   [][]string // for each session what the client said: AUTH and the lines after it
	mails   []string   // envelope and data
}

func startUpstream(t *testing.T, replies ...string) *upstream {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{replies: replies}
	u.tls, u.trust = makeCertificate(t, relayName)
	_, u.port, _ = net.SplitHostPort(l.Addr().String())
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(patience))
				u.serve(conn)
			})
		}
	})
	// Registered before Postfix, so Postfix is stopped first.
	t.Cleanup(func() { l.Close(); conns.Wait() })
	return u
}

func (u *upstream) setReplies(replies ...string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.replies = replies
}

func (u *upstream) isPlain() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.plain
}

func (u *upstream) seen() (auths [][]string, mails []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.auths), slices.Clone(u.mails)
}

// serve is one session. It ends when the client goes away or misbehaves.
func (u *upstream) serve(conn net.Conn) {
	r := bufio.NewReader(conn)
	say := func(line string) { io.WriteString(conn, line+"\r\n") }
	say("220 LO4P302CA0005.outlook.office365.com Microsoft ESMTP MAIL Service ready at Thu, 10 Oct 2024 22:49:55 +0000 [08DCE8B62813AB2B]")
	secure := false
	var mail strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch verb, _, _ := strings.Cut(strings.ToUpper(strings.TrimSpace(line)), " "); verb {
		case "EHLO":
			extra := "STARTTLS"
			if secure || u.isPlain() {
				extra = "AUTH LOGIN XOAUTH2"
			}
			say("250-LO4P302CA0005.outlook.office365.com Hello [127.0.0.1]\r\n250-SIZE 157286400\r\n250-PIPELINING\r\n250-DSN\r\n" +
				"250-ENHANCEDSTATUSCODES\r\n250-" + extra + "\r\n250-8BITMIME\r\n250-BINARYMIME\r\n250-CHUNKING\r\n250 SMTPUTF8")
		case "STARTTLS":
			say("220 2.0.0 SMTP server ready")
			conn = tls.Server(conn, u.tls)
			r, secure = bufio.NewReader(conn), true
		case "AUTH":
			if !u.auth(line, r, say) {
				return
			}
		case "MAIL", "RCPT":
			mail.WriteString(line)
			say("250 2.1.0 OK")
		case "DATA":
			say("354 Start mail input; end with <CRLF>.<CRLF>")
			u.data(&mail, r)
			say("250 2.0.0 OK <x@contoso.com> [Hostname=SYBP282MB2635.AUSP282.PROD.OUTLOOK.COM]")
		case "QUIT":
			say("221 2.0.0 Service closing transmission channel")
			return
		default:
			say("500 5.3.3 Unrecognized command")
		}
	}
}

// auth plays the script and notes what the client says to it.
func (u *upstream) auth(line string, r *bufio.Reader, say func(string)) bool {
	u.mu.Lock()
	replies, n := u.replies, len(u.auths)
	u.auths = append(u.auths, []string{strings.TrimRight(line, "\r\n")})
	u.mu.Unlock()
	for _, reply := range replies {
		say(reply)
		if !strings.HasPrefix(reply, "334") {
			return true
		}
		answer, err := r.ReadString('\n')
		if err != nil || answer == "QUIT\r\n" {
			return false // it gives up
		}
		u.mu.Lock()
		u.auths[n] = append(u.auths[n], strings.TrimRight(answer, "\r\n"))
		u.mu.Unlock()
	}
	return false
}

func (u *upstream) data(mail *strings.Builder, r *bufio.Reader) {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		if line == ".\r\n" {
			break
		}
		mail.WriteString(line)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.mails = append(u.mails, mail.String())
	mail.Reset()
}

// makeCertificate makes a CA and a server certificate of it.
func makeCertificate(t *testing.T, name string) (server *tls.Config, caFile string) {
	t.Helper()
	sign := func(tmpl, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) ([]byte, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if parentKey == nil {
			parent, parentKey = tmpl, key
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, parentKey)
		if err != nil {
			t.Fatal(err)
		}
		return der, key
	}
	from, to := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Lab CA"}, NotBefore: from, NotAfter: to,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, caKey := sign(ca, nil, nil)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: from, NotAfter: to,
		DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, key := sign(leaf, ca, caKey)
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), 0o600); err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, caFile
}

// serveSocketmap answers socketmap lookups (socketmap_table(5)) from a table
// "map key" → value at a unix socket in SocketDir.
func serveSocketmap(t *testing.T, p *Postfix, name string, table map[string]string) {
	t.Helper()
	path := filepath.Join(p.SocketDir(), name)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(patience))
				for answerLookup(conn, table) == nil {
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		if err := p.Stop(); err != nil { // it would keep its connection for 10 s
			t.Error(err)
		}
		conns.Wait()
	})
}

// answerLookup reads one netstring and answers it with another.
func answerLookup(conn net.Conn, table map[string]string) error {
	var n int
	if _, err := fmt.Fscanf(conn, "%d:", &n); err != nil {
		return err
	}
	query := make([]byte, n+1) // and the comma
	if _, err := io.ReadFull(conn, query); err != nil {
		return err
	}
	reply := "NOTFOUND "
	if value, ok := table[string(query[:n])]; ok {
		reply = "OK " + value
	}
	_, err := fmt.Fprintf(conn, "%d:%s,", len(reply), reply)
	return err
}

// newToken makes up a token as long as Entra's, no part of which occurs
// anywhere else.
func newToken(t *testing.T) string {
	t.Helper()
	b := make([]byte, 3000)
	rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

// startSubmission starts an instance that relays to u with XOAUTH2. Its
// credentials come from a socketmap server in the chroot.
func startSubmission(t *testing.T, u *upstream, pluginDir, token string) *Postfix {
	t.Helper()
	dir := makeDirFor(t)
	p := startLab(t, PostfixConfig{
		Dir:           dir,
		Hosts:         map[string]string{relayName: "127.0.0.1"},
		SASLPluginDir: pluginDir,
		Main: map[string]string{
			"relayhost":                               "[" + relayName + "]:" + u.port,
			"smtp_tls_security_level":                 "secure",
			"smtp_tls_CAfile":                         u.trust,
			"smtp_tls_loglevel":                       "1",
			"smtp_sasl_auth_enable":                   "yes",
			"smtp_sasl_mechanism_filter":              "xoauth2",
			"smtp_sasl_security_options":              "noanonymous, noplaintext",
			"smtp_sasl_tls_security_options":          "noanonymous, noplaintext",
			"smtp_sasl_tls_verified_security_options": "noanonymous",
			"smtp_sender_dependent_authentication":    "yes",
			"smtp_sasl_password_maps":                 "socketmap:unix:sendas/credentials:lease",
		},
	})
	serveSocketmap(t, p, "credentials", map[string]string{"lease " + mailbox: mailbox + ":" + token})
	return p
}

// pluginDir holds the plugin and nothing else.
func pluginDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := sasl.Build(t.Context(), dir); err != nil {
		t.Fatalf("%v\na C compiler and libsasl2's headers are needed: run make deps", err)
	}
	return dir
}

// wantNoToken looks for parts of the token, plain and as AUTH sends it, in all
// that Postfix has written down.
func wantNoToken(t *testing.T, p *Postfix, token string) {
	t.Helper()
	log, err := p.Log()
	if err != nil {
		t.Fatal(err)
	}
	q, err := p.Queue(withPatience(t))
	if err != nil {
		t.Fatal(err)
	}
	written := log + fmt.Sprintf("%+v", q)
	for _, secret := range []string{token, encoded(token)} {
		for i := 0; i+12 <= len(secret); i++ {
			if strings.Contains(written, secret[i:i+12]) {
				t.Fatalf("bytes %d to %d of the token are in the log or the queue", i, i+12)
			}
		}
	}
}

// encoded is the token as AUTH sends it.
func encoded(token string) string {
	return base64.StdEncoding.EncodeToString([]byte("user=" + mailbox + "\x01auth=Bearer " + token + "\x01\x01"))
}

// mailbox is the user that all mail is sent as.
const mailbox = "erp@contoso.com"

var mailFromMailbox = Mail{From: mailbox, To: []string{"someone@example.net"}, Data: []byte("Subject: invoice 17\r\n\r\nhello\r\n")}

func TestDeliveryByXOAUTH2(t *testing.T) {
	u, token := startUpstream(t, goOn, accepted), newToken(t)
	p := startSubmission(t, u, pluginDir(t), token)
	id := send(t, p, mailFromMailbox)

	waitLog(t, p, id+`: to=<someone@example\.net>, relay=smtp\.office365\.com\[127\.0\.0\.1\]:`+u.port+`, .*status=sent \(250 2\.0\.0 OK`)
	waitLog(t, p, `Verified TLS connection established to smtp\.office365\.com`)
	auths, mails := u.seen()
	if want := []string{"AUTH XOAUTH2", encoded(token)}; len(auths) != 1 || !slices.Equal(auths[0], want) {
		t.Errorf("the server heard %.60q, want %.60q", auths, want)
	}
	if len(mails) != 1 || !strings.Contains(mails[0], "MAIL FROM:<"+mailbox+">") || !strings.Contains(mails[0], "\r\nSubject: invoice 17\r\n") {
		t.Errorf("the server got %q", mails)
	}
	wantNoToken(t, p, token)
}

// TestRefusedToken: whatever way a server refuses a token, the mail stays and
// the log says why.
func TestRefusedToken(t *testing.T) {
	const said = `status=deferred \(SASL authentication failed; server smtp\.office365\.com\[127\.0\.0\.1\] said: 535 5\.7\.3 Authentication unsuccessful \[SN4PR0701CA0030`
	const cannot = `status=deferred \(SASL authentication failed; cannot authenticate to server smtp\.office365\.com`
	const says = `warning: SASL authentication failure: XOAUTH2 \(sendas\): `
	tests := []struct {
		name    string
		replies []string
		said    int // lines of the client: AUTH, token, answer to the challenge
		log     []string
	}{
		{"at once, as Exchange Online does", []string{goOn, refused}, 2, []string{said}},
		{"after a challenge, as Google does", []string{goOn, challenge, refused}, 3, []string{said}},
		{"never", []string{goOn, challenge, challenge, refused}, 3, []string{cannot, says + "the server sent a second challenge instead of a verdict"}},
		// With an initial response in hand, Postfix would log that here.
		{"before it has seen it", []string{challenge, refused}, 1, []string{cannot, says + "the server sent a challenge before it had seen the token"}},
	}
	plugin := pluginDir(t)
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			u, token := startUpstream(t, tc.replies...), newToken(t)
			p := startSubmission(t, u, plugin, token)
			id := send(t, p, mailFromMailbox)
			for _, re := range tc.log {
				waitLog(t, p, re)
			}
			if _, err := p.WaitQueue(withPatience(t), func(q []QueueEntry) bool {
				return len(q) == 1 && q[0].ID == id && q[0].Queue == "deferred"
			}); err != nil {
				t.Error(err)
			}
			auths, mails := u.seen()
			if want := []string{"AUTH XOAUTH2", encoded(token), ""}[:tc.said]; len(auths) != 1 || !slices.Equal(auths[0], want) {
				t.Errorf("the client said %.60q, want %.60q", auths, want)
			}
			if len(mails) > 0 {
				t.Errorf("the server got %q", mails)
			}
			wantNoToken(t, p, token)

			// A better token, and the same message goes out.
			u.setReplies(goOn, accepted)
			if err := p.Flush(withPatience(t)); err != nil {
				t.Fatal(err)
			}
			waitLog(t, p, id+`: .*status=sent`)
		})
	}
}

// TestSASLPluginDir: smtp(8) looks into that folder, and nowhere else. So the
// tests above cannot pass by a plugin of the system's.
func TestSASLPluginDir(t *testing.T) {
	u, token := startUpstream(t, goOn, accepted), newToken(t)
	p := startSubmission(t, u, t.TempDir(), token)
	send(t, p, mailFromMailbox)
	waitLog(t, p, `SASL authentication failure: No worthy mechs found`)
	if auths, _ := u.seen(); len(auths) > 0 {
		t.Errorf("the client said %.60q without a plugin", auths)
	}
}

// TestBadToken: what the plugin refuses is not sent, and the reason stands
// where an administrator looks.
func TestBadToken(t *testing.T) {
	u, token := startUpstream(t, goOn, accepted), newToken(t)+" oops"
	p := startSubmission(t, u, pluginDir(t), token)
	send(t, p, mailFromMailbox)
	waitLog(t, p, `SASL authentication failure: XOAUTH2 \(sendas\): the access token holds a byte that no token has`)
	waitLog(t, p, `status=deferred`)
	if auths, _ := u.seen(); len(auths) != 1 || len(auths[0]) != 1 {
		t.Errorf("the client said %.60q, want AUTH and nothing after it", auths)
	}
	wantNoToken(t, p, strings.TrimSuffix(token, " oops"))
}

// TestUntrustedServer: the token does not go to a server with another CA.
func TestUntrustedServer(t *testing.T) {
	u, token := startUpstream(t, goOn, accepted), newToken(t)
	_, u.trust = makeCertificate(t, relayName)
	p := startSubmission(t, u, pluginDir(t), token)
	send(t, p, mailFromMailbox)
	waitLog(t, p, `status=deferred \(Server certificate not (trusted|verified)`)
	if auths, _ := u.seen(); len(auths) > 0 {
		t.Errorf("the client said %.60q to a server that it cannot trust", auths)
	}
}

// TestLoweredLevel: where something has lowered the security level to "may", the token still goes
// to nobody who has not proved to be Microsoft's server: noplaintext keeps it. The rows without it
// show that it is noplaintext.
func TestLoweredLevel(t *testing.T) {
	const without, within = "smtp_sasl_security_options=noanonymous", "smtp_sasl_tls_security_options=noanonymous"
	plugin := pluginDir(t)
	for _, tc := range []struct {
		name           string
		plain, foreign bool
		setting        string // "" is as it should be
		heard          bool
	}{
		{"without TLS", true, false, "", false},
		{"without TLS and noplaintext", true, false, without, true},
		{"to a server that nobody knows", false, true, "", false},
		{"to a server that nobody knows, without noplaintext", false, true, within, true},
		{"to a server that nobody asked for proof", false, false, "", false},
		{"without TLS, allowed within", true, false, within, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u, token := startUpstream(t, goOn, refused), newToken(t)
			u.plain = tc.plain
			if tc.foreign {
				_, u.trust = makeCertificate(t, relayName)
			}
			p := startSubmission(t, u, plugin, token)
			settings := []string{"smtp_tls_policy_maps=inline:{ {[" + relayName + "]:" + u.port + " = may} }"}
			if tc.setting != "" {
				settings = append(settings, tc.setting)
			}
			for _, s := range settings {
				if err := p.Postconf(withPatience(t), s); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Reload(withPatience(t)); err != nil {
				t.Fatal(err)
			}
			id := send(t, p, mailFromMailbox)
			waitLog(t, p, id+`: to=.* status=deferred`)
			if auths, _ := u.seen(); len(auths) > 0 != tc.heard {
				t.Errorf("the server heard %.60q, want a token: %v", auths, tc.heard)
			}
			if !tc.heard {
				waitLog(t, p, `SASL authentication failure: No worthy mechs found`)
			}
			wantNoToken(t, p, token)
		})
	}
}
