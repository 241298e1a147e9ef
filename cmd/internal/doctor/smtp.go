package doctor

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/emersion/go-sasl"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/dns"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/postfix"
	"github.com/sendas/sendas/internal/xoauth2"
	"github.com/sendas/sendas/policy/address"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/lease"
	"github.com/sendas/sendas/token/lease/replies"
)

// How long the server may take. Refusals are held back for 5 s and more (tar-pit), verdicts on
// messages for some seconds.
const (
	connectTime = 30 * time.Second
	replyTime   = 60 * time.Second
	verdictTime = 5 * time.Minute
)

const (
	// maxSession bounds what is read of the server in one session, in bytes.
	maxSession = 1 << 20
	// maxIdentities bounds how many senders of a mailbox are tried.
	maxIdentities = 100
)

// smtpAdvice is about the way to the submission server. What the server itself says is explained by
// token.Explain.
var smtpAdvice = map[string]finding.Advice{
	"no-name":     {Means: "DNS does not know the server", Do: "getent hosts {host}; compare {setting} and tenant.cloud"},
	"dns-silent":  {Means: "DNS did not answer", Do: "getent hosts {host}; /etc/resolv.conf says who is asked"},
	"timeout":     {Means: "nothing comes back: a firewall drops port {port}, most likely", Do: "let this host reach {host} on port {port}; to see where it ends: nc -vz {host} {port}"},
	"refused":     {Means: "somebody refuses the connection: a firewall, or not Microsoft's server", Do: "let this host reach {host} on port {port}; to see who answers: nc -vz {host} {port}"},
	"no-route":    {Means: "there is no route to the server", Do: "ip route get to the address of {host}; with broken IPv6: postconf -e 'smtp_address_preference = ipv4'"},
	"closed":      {Means: "the server ended the connection", Do: "try again in a few minutes; if it stays: look for a firewall that inspects SMTP"},
	"silent":      {Means: "the server, or what stands before it, does not answer", Do: "try again in a few minutes; if it stays: look for a firewall that inspects SMTP"},
	"not-smtp":    {Means: "what answers does not speak SMTP", Do: "compare {setting}; look for a proxy on port {port}"},
	"no-starttls": {Means: "a firewall between this host and Microsoft removes STARTTLS, since Microsoft always offers it", Do: "switch its SMTP inspection off (Cisco: no fixup, no inspect esmtp)"},
	"no-xoauth2":  {Means: "Microsoft offers XOAUTH2 always, so this is another server, or somebody between changes SMTP", Do: "compare {setting} with tenant.cloud"},
	"no-trust":    {Means: "Postfix does not trust the server's certificate, though this program does", Do: "postconf -e 'smtp_tls_CAfile = {bundle}' && postfix reload; with tenant.endpoints.ca_file, put that certificate into Postfix's file too"},
	"malformed":   {Means: "the line of AUTH would be longer than a server takes (RFC 4954, section 4)", Do: "this is no access token: see what the token's checks say"},
}

// tlsFaults tell what a failed handshake means; the first that matches counts.
var tlsFaults = []struct {
	is func(error) bool
	finding.Advice
}{
	{causedBy[x509.UnknownAuthorityError], finding.Advice{Means: "nobody whom this machine trusts has signed the server's certificate: a firewall inspects TLS, or CA certificates are missing",
		Do: "apt-get install ca-certificates; where a firewall inspects TLS, exempt {host}, or put its CA certificate into tenant.endpoints.ca_file and into Postfix's smtp_tls_CAfile"}},
	{causedBy[x509.HostnameError], finding.Advice{Means: "somebody else than {host} answers", Do: "compare {setting}; look for a proxy or a wrong entry in /etc/hosts: getent hosts {host}"}},
	{causedBy[x509.CertificateInvalidError], finding.Advice{Means: "the server's certificate is not valid now", Do: "compare this machine's clock: timedatectl"}},
	{causedBy[tls.RecordHeaderError], finding.Advice{Means: "what answers after STARTTLS does not speak TLS", Do: "look for a firewall that inspects SMTP"}},
	{func(err error) bool { return strings.Contains(err.Error(), "protocol version") }, finding.Advice{Means: "the server speaks no TLS 1.2 or newer, which Microsoft does: a firewall stands between", Do: "exempt {host} from TLS inspection"}},
	{func(error) bool { return true }, finding.Advice{Means: "TLS cannot begin", Do: "openssl s_client -starttls smtp -connect {host}:{port} -servername {host}"}},
}

func causedBy[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// An smtpFault is what went wrong on the way to the server or in the dialogue, already explained.
type smtpFault struct {
	found  string
	advice finding.Advice
	passes bool
	key    string // of the advice, where somebody has to know
}

func (f *smtpFault) Error() string { return f.found }

// An smtpTalk is one session with the submission server.
type smtpTalk struct {
	d          *Walk
	host, port string
	setting    string   // that names the server
	transport  string   // of Postfix, of a route; "" is that of submission
	conn       net.Conn // nil before TCP
	forget     func() bool
	text       *textproto.Conn
	extensions []string // of the last EHLO
	peers      []*x509.Certificate

	user   string // as whom AUTH was tried
	access entra.Secret
}

// fault explains by smtpAdvice.
func (k *smtpTalk) fault(key, found string, passes bool) error {
	return &smtpFault{found: found, advice: smtpAdvice[key].With("host", k.host, "port", k.port, "setting", k.setting, "bundle", postfix.TrustBundle()), passes: passes}
}

// ioFault explains what the network did.
func (k *smtpTalk) ioFault(err error) error {
	var protocolError textproto.ProtocolError
	var dns *net.DNSError
	var ne net.Error
	found := rootCause(err)
	switch {
	case errors.As(err, &dns):
		return k.dnsFault(dns)
	case errors.As(err, &protocolError):
		return k.fault("not-smtp", "the answer is no reply of SMTP", false)
	case errors.As(err, &ne) && ne.Timeout() && k.conn == nil:
		return k.fault("timeout", found, false)
	case errors.As(err, &ne) && ne.Timeout():
		return k.fault("silent", found, true)
	case errors.Is(err, syscall.ECONNREFUSED):
		return k.fault("refused", found, false)
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return k.fault("no-route", found, false)
	case k.conn == nil:
		return k.fault("timeout", found, false)
	}
	return k.fault("closed", found, true)
}

func (k *smtpTalk) dnsFault(e *net.DNSError) error {
	if e.IsNotFound {
		return k.fault("no-name", dns.Failure(e), false)
	}
	return k.fault("dns-silent", dns.Failure(e), true)
}

// A smtpReply is what the server answered.
type smtpReply struct {
	code int
	text string // code and all lines
}

// replyFault explains a reply that is not the wanted one.
func (d *Walk) replyFault(r smtpReply, mailbox string) error {
	e := replies.Explain(r.text)
	if e.Meaning == "" {
		return &smtpFault{found: r.text, advice: smtpAdvice["not-smtp"].With("port", "587", "setting", "tenant.endpoints.submission")}
	}
	act := e.For(mailbox, "").Act
	return &smtpFault{found: r.text, advice: finding.Advice{Means: e.Meaning, Do: act}, passes: e.Passes}
}

// ask sends a line and reads the reply; without a line it only reads.
func (k *smtpTalk) ask(wait time.Duration, line string) (smtpReply, error) {
	k.conn.SetDeadline(time.Now().Add(wait))
	if line != "" {
		if err := k.text.PrintfLine("%s", line); err != nil {
			return smtpReply{}, k.ioFault(err)
		}
	}
	code, msg, err := k.text.ReadResponse(0)
	if err != nil {
		return smtpReply{}, k.ioFault(err)
	}
	return smtpReply{code, lease.Hide(fmt.Sprintf("%d %s", code, msg), k.user, k.access)}, nil
}

// want is ask for a reply that begins as said.
func (k *smtpTalk) want(code int, wait time.Duration, line, mailbox string) (smtpReply, error) {
	r, err := k.ask(wait, line)
	if err == nil && r.code != code {
		err = k.d.replyFault(r, mailbox)
	}
	return r, err
}

// wayStep is one step to a session that can authenticate. It returns what was found.
type wayStep struct {
	id, what string
	run      func(*smtpTalk, context.Context) (string, error)
}

var waySteps = []wayStep{
	{"dns", "DNS", (*smtpTalk).resolve},
	{"tcp", "TCP", (*smtpTalk).connect},
	{"banner", "banner", (*smtpTalk).greeting},
	{"ehlo", "EHLO", (*smtpTalk).plainEHLO},
	{"tls", "STARTTLS", (*smtpTalk).startTLS},
	{"auth_offer", "EHLO within TLS", (*smtpTalk).secureEHLO},
}

func (k *smtpTalk) resolve(ctx context.Context) (string, error) {
	list, err := k.d.resolver.LookupIPAddr(ctx, k.host)
	if err != nil {
		return "", k.ioFault(err)
	}
	var names []string
	for _, a := range list {
		names = append(names, a.String())
	}
	if len(names) == 0 {
		return "", k.fault("no-name", "has no address", false)
	}
	return k.host + " has the addresses " + strings.Join(names, " "), nil
}

func (k *smtpTalk) connect(ctx context.Context) (string, error) {
	soon, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	c, err := k.d.dial(soon, "tcp", net.JoinHostPort(k.host, k.port))
	if err != nil {
		return "", k.ioFault(err)
	}
	k.use(c)
	k.forget = context.AfterFunc(ctx, func() { c.Close() })
	return "port " + k.port + " is open", nil
}

// use speaks over a connection from now on. What was read ahead of the other is forgotten, since
// nothing that came before TLS counts (RFC 3207, section 4.2).
func (k *smtpTalk) use(c net.Conn) {
	k.conn = c
	k.text = dialogue(c)
}

// dialogue speaks over a connection, and reads at most maxSession of it.
func dialogue(c net.Conn) *textproto.Conn {
	return textproto.NewConn(struct {
		io.Reader
		io.Writer
		io.Closer
	}{io.LimitReader(c, maxSession), c, c})
}

// end closes the connection, if there is one.
func (k *smtpTalk) end() {
	if k.conn != nil {
		k.forget()
		k.conn.Close()
	}
}

func (k *smtpTalk) greeting(context.Context) (string, error) {
	r, err := k.want(220, replyTime, "", "")
	return r.text, err
}

// hello says EHLO with Postfix's own name.
func (k *smtpTalk) hello() (smtpReply, error) {
	r, err := k.want(250, replyTime, "EHLO "+k.d.heloName(), "")
	if err != nil {
		return r, err
	}
	lines := strings.Split(r.text, "\n")
	k.extensions = lines[1:]
	return r, nil
}

// heloName is the name by which Postfix greets, or this machine's.
func (d *Walk) heloName() string {
	if d.postfix != nil && config.HostForm.MatchString(d.postfix.Main["smtp_helo_name"]) {
		return d.postfix.Main["smtp_helo_name"]
	}
	if name, err := d.hostname(); err == nil && config.HostForm.MatchString(name) {
		return name
	}
	return "localhost"
}

// offers returns what stands behind the keyword of an extension.
func (k *smtpTalk) offers(keyword string) (args []string, ok bool) {
	for _, x := range k.extensions {
		if f := strings.Fields(strings.ToUpper(x)); len(f) > 0 && f[0] == keyword {
			return f[1:], true
		}
	}
	return nil, false
}

func (k *smtpTalk) plainEHLO(context.Context) (string, error) {
	if _, err := k.hello(); err != nil {
		return "", err
	}
	if _, ok := k.offers("STARTTLS"); !ok {
		return "", k.fault("no-starttls", "STARTTLS is not among: "+strings.Join(k.extensions, ", "), false)
	}
	return "STARTTLS is offered", nil
}

// startTLS begins TLS and verifies the certificate as Postfix does with the level secure.
func (k *smtpTalk) startTLS(ctx context.Context) (string, error) {
	if _, err := k.want(220, replyTime, "STARTTLS", ""); err != nil {
		return "", err
	}
	roots, err := k.d.roots()
	if err != nil {
		return "", &smtpFault{found: err.Error(), advice: finding.Advice{Means: "the certificates that are trusted cannot be read", Do: "see to tenant.endpoints.ca_file"}}
	}
	c := tls.Client(k.conn, &tls.Config{ServerName: k.host, MinVersion: tls.VersionTLS12, RootCAs: roots, Time: k.d.now})
	k.conn.SetDeadline(time.Now().Add(replyTime))
	if err := c.HandshakeContext(ctx); err != nil {
		return "", k.tlsFault(err)
	}
	k.use(c)
	state := c.ConnectionState()
	k.peers = state.PeerCertificates
	leaf := k.peers[0]
	return fmt.Sprintf("%s with the certificate of %s, issued by %s, until %s", tls.VersionName(state.Version), leaf.Subject.CommonName, leaf.Issuer.CommonName,
		leaf.NotAfter.UTC().Format(time.DateOnly)), nil
}

func (k *smtpTalk) tlsFault(err error) error {
	for _, f := range tlsFaults {
		if f.is(err) {
			return &smtpFault{found: err.Error(), advice: f.With("host", k.host, "port", k.port, "setting", k.setting), passes: errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded)}
		}
	}
	return err // the last row matches all
}

// roots returns the trust anchors: the system's and those of tenant.endpoints.ca_file; nil is the
// system's alone.
func (d *Walk) roots() (*x509.CertPool, error) {
	file := d.config.Tenant.Endpoints.CAFile
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, err
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", file)
	}
	return pool, nil
}

func (k *smtpTalk) secureEHLO(context.Context) (string, error) {
	r, err := k.hello()
	if err != nil {
		return "", err
	}
	mechanisms, _ := k.offers("AUTH")
	if !slices.Contains(mechanisms, "XOAUTH2") {
		return "", k.fault("no-xoauth2", "XOAUTH2 is not among: "+strings.Join(mechanisms, " "), false)
	}
	size, _ := k.offers("SIZE")
	first, _, _ := strings.Cut(r.text, "\n")
	return fmt.Sprintf("%s; AUTH %s, SIZE %s", first, strings.Join(mechanisms, " "), strings.Join(size, "")), nil
}

// excuse says why AUTH cannot be tried, or "".
func (d *Walk) excuse(p patient) string {
	switch {
	case p.user == "":
		domain, _ := address.CutPattern(p.label)
		return "it stands for many mailboxes, and sendas.yaml names none of them; name one: sendas doctor user@" + domain
	case d.blocked[p.server]:
		return "the way to the server is blocked, as said above"
	case d.tokens[p.credential] == nil:
		return "there is no token of credential " + p.credential + " to show"
	}
	return ""
}

// examine is the whole session of one mailbox. The way there is walked once even if there is
// nothing to show.
func (d *Walk) examine(ctx context.Context, s finding.Section, p patient) {
	p.server = cmp.Or(p.server, d.config.Tenant.Endpoints.Submission)
	var k *smtpTalk
	if why := d.excuse(p); why == "" || !d.reached[p.server] && !d.blocked[p.server] {
		var ok bool
		if k, ok = d.walk(ctx, s, p); ok {
			defer k.end()
		}
	}
	if why := d.excuse(p); why != "" {
		s.Skip("auth", "AUTH", "%s", why)
		return
	}
	if k == nil {
		return
	}
	t := d.tokens[p.credential]
	err := k.authenticate(p.user, t.Access)
	if err != nil && d.explainRefusal(s, p, t, err) || !k.report(s, "auth", "AUTH XOAUTH2", err) {
		return
	}
	s.Ok("auth", "AUTH XOAUTH2", "Exchange Online takes the token for %s", p.user)
	k.trySenders(s, p)
	if _, err := k.want(221, replyTime, "QUIT", ""); err != nil {
		s.Warn("quit", "QUIT", err.Error(), finding.Advice{Means: "the server did not say goodbye", Do: "nothing to do: Postfix does not wait for it"})
	}
}

// report notes a fault, and reports whether there was none.
func (k *smtpTalk) report(s finding.Section, id, what string, err error) bool {
	if err == nil {
		return true
	}
	f := &smtpFault{found: err.Error()}
	errors.As(err, &f)
	s.Trouble(f.passes, id, what, f.found, f.advice)
	return false
}

// walk goes to the server up to AUTH. What is found is noted the first time; what goes wrong,
// always.
func (d *Walk) walk(ctx context.Context, own finding.Section, p patient) (*smtpTalk, bool) {
	host, port, _ := net.SplitHostPort(p.server)
	k := &smtpTalk{d: d, host: host, port: port, setting: "tenant.endpoints.submission"}
	s := d.Section("submission", "submission")
	if p.route != "" {
		k.setting, k.transport = "endpoint: of the route "+p.route, d.config.Policy.Route(p.route).Transport
		s = d.Section("route", "High Volume Email").Of(p.route)
	}
	reached := d.reached[p.server]
	if reached {
		s = own
	}
	for _, step := range waySteps {
		found, err := step.run(k, ctx)
		if !k.report(s, step.id, step.what, err) {
			d.blocked[p.server] = !reached
			k.end()
			return nil, false
		}
		if !reached {
			s.Ok(step.id, step.what, "%s", found)
		}
	}
	if !reached {
		d.reached[p.server] = true
		k.checkPostfixTrust(s)
	}
	return k, true
}

// checkPostfixTrust verifies the server's certificate once more, with what Postfix trusts.
func (k *smtpTalk) checkPostfixTrust(s finding.Section) {
	p := k.d.postfix
	way := p.Way(k.transport)
	if way == nil {
		return
	}
	file := p.Value(way, "smtp_tls_CAfile")
	if file == "" || p.Value(way, "smtp_tls_CApath") != "" {
		return // a folder of hashes is openssl's to read
	}
	pem, err := os.ReadFile(file)
	pool := x509.NewCertPool()
	if err == nil && !pool.AppendCertsFromPEM(pem) {
		err = errors.New("it holds no certificate")
	}
	if err == nil {
		between := x509.NewCertPool()
		for _, c := range k.peers[1:] {
			between.AddCert(c)
		}
		_, err = k.peers[0].Verify(x509.VerifyOptions{DNSName: k.host, Roots: pool, Intermediates: between, CurrentTime: k.d.now()})
	}
	if err != nil {
		k.report(s, "postfix_trust", "Postfix's "+file, k.fault("no-trust", err.Error(), false))
		return
	}
	s.Ok("postfix_trust", "Postfix's "+file, "trusts the server's certificate")
}

// maxAuthLine is what a line of AUTH may have (RFC 4954, section 4).
const maxAuthLine = 12288

// authenticate shows the token as the SASL plugin of smtp(8) does: after the server's 334, so that
// no line that may be repeated in an error has it.
func (k *smtpTalk) authenticate(user string, access entra.Secret) error {
	client := xoauth2.NewClient(user, string(access))
	mechanism, initial, err := client.Start()
	if err != nil {
		return err
	}
	response := base64.StdEncoding.EncodeToString(initial)
	k.user, k.access = user, access
	k.d.Hide(response)
	if len(response) > maxAuthLine {
		return k.fault("malformed", fmt.Sprintf("the answer to AUTH has %d bytes", len(response)), false)
	}
	r, err := k.ask(replyTime, "AUTH "+mechanism)
	if err == nil && r.code == 334 {
		r, err = k.ask(replyTime, response)
	}
	if err == nil && r.code == 334 { // an error in JSON, as Google sends it
		r, err = k.answer(client, r)
	}
	if err != nil || r.code == 235 {
		return err
	}
	return k.d.replyFault(r, user)
}

// answer says what the mechanism says to one more challenge, and returns the reply to that.
func (k *smtpTalk) answer(client sasl.Client, r smtpReply) (smtpReply, error) {
	_, text, _ := strings.Cut(r.text, " ")
	challenge, _ := base64.StdEncoding.DecodeString(text) // the answer is the same to one that cannot be read
	response, err := client.Next(challenge)
	if err != nil {
		return r, err
	}
	k.conn.SetDeadline(time.Now().Add(replyTime))
	if err := k.text.PrintfLine("%s", base64.StdEncoding.EncodeToString(response)); err != nil {
		return r, err
	}
	return k.ask(replyTime, "")
}

// trySenders begins a message as each identity, up to the recipient, and takes it back.
func (k *smtpTalk) trySenders(s finding.Section, p patient) {
	senders := p.identities
	taken := 0
	for i, sender := range senders[:min(len(senders), maxIdentities)] {
		good := true
		for _, line := range []string{"MAIL FROM:<" + wireAddress(sender) + ">", "RCPT TO:<" + wireAddress(p.user) + ">"} {
			what := strings.Replace(line, wireAddress(sender), sender, 1)
			if _, err := k.want(250, replyTime, line, p.user); !k.report(s, fmt.Sprintf("mail_from.%d", i+1), what, err) {
				good = false
				break
			}
		}
		if good {
			taken++
		}
		if _, err := k.want(250, replyTime, "RSET", p.user); err != nil {
			k.report(s, "rset", "RSET", err)
			return
		}
	}
	if taken == 0 {
		return
	}
	s.Ok("mail_from", "MAIL FROM", "%d of %d senders are taken up to RCPT; Microsoft looks at Send As only when the whole message has come, so this proves little: --send-to proves it", taken, len(senders))
}

// wireAddress writes an address as it goes over the wire without SMTPUTF8.
func wireAddress(s string) string {
	a, err := address.Parse(s)
	if err != nil {
		return s
	}
	return a.ASCII().String()
}
