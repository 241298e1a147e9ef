package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/sendas/sendas/contrib/exosim"
	"github.com/sendas/sendas/contrib/exosim/directory"
)

// A standstill is a trouble that holds up all mail, and where it has to show.
type standstill struct {
	name   string
	inject func() error
	mail   func(n int) Mail // that shows it; nil: none is needed, or can be sent
	code   int              // how it is answered, 250 where it is 0
	cure   func() error
	metric string // an expression that has data then
	alert  string // which fires then, with its labels
	says   string // status and the page
}

// standSite is a site on a disk of its own, with a name server of its own, a folder of plugins of
// its own, and a second credential that has a certificate.
type standSite struct {
	*Site
	t        *testing.T
	ctx      context.Context
	names    *nameServer
	plugins  string // the folder
	cert     string // the file of certificate and key
	resolver []byte // resolv.conf
	sent     int
	p        *prometheus
}

const (
	certApp   = "5f2c0d3e-0000-4000-8000-000000000007"
	diskSize  = 400 << 20
	standRise = 50 * time.Second // within which it shows, and is gone
)

func startStandSite(t *testing.T) *standSite {
	t.Helper()
	dir, err := program()
	if err != nil {
		t.Fatal(err)
	}
	x := &standSite{t: t, names: newNameServer(t)}
	files, err := MakeDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(files) })
	x.plugins, x.cert = filepath.Join(files, "plugins"), filepath.Join(files, "cert-app.pem")
	if err := errors.Join(os.Mkdir(x.plugins, 0o755), copyFile(filepath.Join(dir, "libsendas-xoauth2.so"), x.plugin()), x.writeCertificate(time.Now().AddDate(0, 6, 0))); err != nil {
		t.Fatal(err)
	}
	x.resolver = []byte("nameserver " + x.names.host + "\noptions timeout:1 attempts:1\n")
	x.Site, x.ctx = startSite(t, SiteConfig{Minute: 6 * time.Second, Disk: diskSize,
		Exosim: func(c *exosim.Config) {
			c.Apps[0].Mailboxes = c.Apps[0].Mailboxes[:2]
			c.Apps = append(c.Apps, directory.App{ClientID: certApp, ObjectID: "0b1ec700-0000-4000-8000-000000000007", CertificateFile: x.cert, Mailboxes: []string{"monitor@contoso.com"}})
		},
		YAML: func(y string) string {
			y = strings.Replace(y, "    PROOF\n", "    PROOF\n  cert-app: {flow: client_credentials, client_id: "+certApp+", certificate_file: "+x.cert+"}\n", 1)
			y = strings.Replace(y, "monitor@contoso.com\n    credential: relay-app", "monitor@contoso.com\n    credential: cert-app", 1)
			return strings.Replace(y, "  queue_socket: SHOWQ\n", "  queue_socket: SHOWQ\n  queue_interval: 1s\n", 1)
		},
		Postfix: func(_ *Site, main map[string]string) []string {
			main["smtp_host_lookup"], main["smtp_dns_support_level"] = "dns", "enabled"
			main["import_environment"] = "MAIL_CONFIG MAIL_DEBUG MAIL_LOGTAG TZ LANG=C POSTLOG_SERVICE POSTLOG_HOSTNAME { SASL_PATH = " + x.plugins + " }"
			return nil
		}})
	if err := os.WriteFile(x.chroot("etc/resolv.conf"), x.resolver, 0o644); err != nil {
		t.Fatal(err)
	}
	return x
}

func (x *standSite) plugin() string            { return filepath.Join(x.plugins, "libsendas-xoauth2.so") }
func (x *standSite) chroot(name string) string { return filepath.Join(x.Postfix.QueueDir(), name) }

// writeCertificate writes a new certificate of the app, with its key.
func (x *standSite) writeCertificate(ends time.Time) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "cert-app"}, NotBefore: ends.AddDate(-1, 0, 0), NotAfter: ends}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		return err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})...)
	return writeOwned(x.cert, string(text), 0o600, tokenUser)
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

// restartToken starts the token service anew, which then has no token in memory.
func (x *standSite) restartToken() error {
	return errors.Join(x.Token.Stop(), x.Token.Start(x.ctx))
}

// A nameServer answers on an address of loopback of its own, at the port of DNS, since resolv.conf
// knows no other.
type nameServer struct {
	host string
	conn net.PacketConn // nil while it is dead
}

func newNameServer(t *testing.T) *nameServer {
	t.Helper()
	s := &nameServer{host: fmt.Sprintf("127.87.%d.%d", os.Getpid()>>8&255, os.Getpid()&255|1)}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	return s
}

func (s *nameServer) stop() { s.conn.Close() }

func (s *nameServer) start() (err error) {
	s.conn, err = net.ListenPacket("udp", s.host+":53")
	if err != nil {
		return err
	}
	go func(conn net.PacketConn) {
		for query := make([]byte, 512); ; {
			n, from, err := conn.ReadFrom(query)
			if err != nil {
				return // closed
			}
			if reply, err := nameReply(query[:n]); err == nil {
				conn.WriteTo(reply, from)
			}
		}
	}(s.conn)
	return nil
}

// nameReply says of every name that it is this machine.
func nameReply(query []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return nil, err
	}
	q := m.Questions[0]
	m.Header.Response, m.Additionals = true, nil
	if q.Type == dnsmessage.TypeA {
		m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}}}
	}
	return m.Pack()
}

// TestStandstills: whatever holds up all mail of a working site shows everywhere within a minute: in
// a metric, an alert, the first lines of "sendas status", the page and the plugin for monitoring;
// and it is gone everywhere within a minute of its cure. The queue is read every second here, and
// rules wait for a second; with the intervals that a site has, that is up to 10 seconds for the
// queue, 15 for the scrape, 15 for the rules and the 15 or 30 of the rule itself.
func TestStandstills(t *testing.T) {
	x := startStandSite(t)
	_, text := readRules(t)
	x.p = startPrometheus(t, x.Site, waiting.ReplaceAllString(text, "$1 1s"))
	if err := x.send(x.invoice, 250); err != nil {
		t.Fatal(err)
	}
	if err := x.send(x.alarm, 250); err != nil {
		t.Fatal(err)
	}
	x.settled("at first")
	var table strings.Builder
	for _, s := range x.standstills() {
		x.meet(&table, s)
		if t.Failed() {
			break
		}
	}
	t.Logf("\n| standstill | metric | alert | what status, the page and the plugin say | seen after | gone after |\n|---|---|---|---|---|---|\n%s", &table)
}

// invoice is mail of erp@contoso.com, alarm of monitor@contoso.com.
func (x *standSite) invoice(n int) Mail { return burstMail(n) }

func (x *standSite) alarm(n int) Mail {
	return Mail{XClient: XClient{Addr: "127.0.0.1"}, From: "monitor@contoso.com", To: []string{"duty@fabrikam.com"},
		Data: message("From: monitor@contoso.com", fmt.Sprintf(storyID, fmt.Sprintf("alarm-%d", n)), storyDate)}
}

func (x *standSite) standstills() []standstill {
	secret := filepath.Join(x.Dir, "relay-app.secret")
	hosts := x.chroot("etc/resolv.conf")
	_, port, _ := net.SplitHostPort(x.Exosim.SubmissionAddr())
	closed, err := freePorts(1)
	if err != nil {
		x.t.Fatal(err)
	}
	_, noPort, _ := net.SplitHostPort(closed[0])
	lead := func(port string) error {
		return errors.Join(x.Postfix.Postconf(x.ctx, "default_transport=sendas:[smtp.office365.com]:"+port), x.Postfix.Reload(x.ctx))
	}
	const stalled = `sendas_queue_stalled_messages{mailbox="erp@contoso.com",reason="%s"} > 0`
	return []standstill{
		{name: "port 587 closed", inject: func() error { return lead(noPort) }, mail: x.invoice, cure: func() error { return lead(port) },
			metric: fmt.Sprintf(stalled, "connect"), alert: `SendasStandstill",reason="connect`, says: "No mail leaves through erp@contoso.com: no connection to Microsoft"},
		{name: "DNS dead", inject: func() error { x.names.stop(); return nil }, mail: x.invoice, cure: x.names.start,
			metric: fmt.Sprintf(stalled, "dns"), alert: `SendasStandstill",reason="dns`, says: "No mail leaves through erp@contoso.com: the name of Microsoft's server cannot be looked up"},
		{name: "chroot without resolv.conf", inject: func() error { return errors.Join(os.Remove(hosts), x.Postfix.Reload(x.ctx)) }, mail: x.invoice, cure: func() error { return errors.Join(os.WriteFile(hosts, x.resolver, 0o644), x.Postfix.Reload(x.ctx)) },
			metric: fmt.Sprintf(stalled, "dns"), alert: `SendasStandstill",reason="dns`, says: "No mail leaves through erp@contoso.com: the name of Microsoft's server cannot be looked up"},
		{name: "plugin missing", inject: func() error { return errors.Join(os.Rename(x.plugin(), x.plugins+".so"), x.Postfix.Reload(x.ctx)) }, mail: x.invoice,
			cure:   func() error { return errors.Join(os.Rename(x.plugins+".so", x.plugin()), x.Postfix.Reload(x.ctx)) },
			metric: fmt.Sprintf(stalled, "plugin"), alert: `SendasStandstill",reason="plugin`, says: "No mail leaves through erp@contoso.com: Postfix finds no plugin for XOAUTH2"},
		{name: "Postfix stopped", inject: x.Postfix.Stop, cure: func() error { return x.Postfix.Restart(x.ctx) },
			metric: `sendas_postfix_running == 0`, alert: "SendasPostfixStopped", says: "Postfix is not running"},
		{name: "token service stopped", inject: x.Token.Stop, mail: x.invoice, cure: func() error { return x.Token.Start(x.ctx) },
			metric: `up{job="sendas-token"} == 0`, alert: "SendasTokenServiceDown", says: "The token service is down"},
		{name: "Entra refuses", inject: func() error {
			return errors.Join(writeOwned(secret, "another-secret", 0o600, tokenUser), x.restartToken())
		}, mail: x.invoice,
			cure: func() error {
				return errors.Join(writeOwned(secret, x.Secret, 0o600, tokenUser), x.Token.Signal(hangup))
			},
			metric: `sendas_token_expiry_timestamp_seconds{credential="relay-app"} == 0`, alert: `SendasTokenExpires",credential="relay-app`, says: "Credential relay-app has no token (AADSTS7000215)"},
		{name: "mailbox restricted", inject: func() error {
			x.SetMailbox(func(m *mailboxSettings) { m.Refusal = "550 5.1.8 Access denied, bad outbound sender AS(42004)" })
			return nil
		}, mail: x.invoice, cure: func() error {
			x.SetMailbox(func(m *mailboxSettings) { m.Refusal = "" })
			_, err := x.command("retry", "erp@contoso.com")
			return err
		}, metric: `sendas_mailbox_paused_until_timestamp_seconds{mailbox="erp@contoso.com",reason="blocked"}`, alert: `SendasMailboxBlocked",mailbox="erp@contoso.com`, says: "erp@contoso.com rests until "},
		{name: "disk full", inject: func() error { return x.ResizeDisk(x.used() + 4<<20) }, mail: x.invoice, code: 452, cure: func() error { return x.ResizeDisk(diskSize) },
			metric: `sendas_queue_disk_free_bytes < 256 * 1024 * 1024`, alert: "SendasQueueDiskFull", says: "The disk of Postfix's queue is full"},
		{name: "certificate expired", inject: func() error {
			return errors.Join(x.keepCertificate(), x.writeCertificate(time.Now().AddDate(0, 0, -1)), x.restartToken())
		}, mail: x.alarm,
			cure:   func() error { return errors.Join(os.Rename(x.cert+".good", x.cert), x.Token.Signal(hangup)) },
			metric: `sendas_certificate_expiry_timestamp_seconds{credential="cert-app"} < time()`, alert: `SendasTokenExpires",credential="cert-app`, says: "Credential cert-app has no token"},
	}
}

// keepCertificate puts the good certificate aside.
func (x *standSite) keepCertificate() error { return os.Rename(x.cert, x.cert+".good") }

// used is how much of the site's disk is taken.
func (x *standSite) used() int64 {
	var s unix.Statfs_t
	if err := unix.Statfs(x.Dir, &s); err != nil {
		x.t.Fatal(err)
	}
	return int64(s.Blocks-s.Bfree) * s.Bsize
}

// send sends the next message, and is content with one answer alone.
func (x *standSite) send(mail func(int) Mail, code int) error {
	x.sent++
	res, err := Send(x.ctx, x.Postfix.SMTPAddr(), mail(1000+x.sent))
	if err != nil {
		return err
	}
	if got := res.Verdict().Code; got != code {
		return fmt.Errorf("it was answered %v, want %d", res.Verdict(), code)
	}
	return nil
}

// meet lets a trouble come, and go.
func (x *standSite) meet(table *strings.Builder, s standstill) {
	x.t.Helper()
	began := time.Now()
	if err := s.inject(); err != nil {
		x.t.Fatalf("%s: %v", s.name, err)
	}
	if s.mail != nil {
		if err := x.send(s.mail, max(s.code, map[bool]int{true: 250}[s.code == 0])); err != nil {
			x.t.Errorf("%s: %v", s.name, err)
		}
	}
	if missing := x.poll(func() string { return x.shown(s) }); missing != "" {
		x.t.Errorf("%s does not show: %s", s.name, missing)
		return
	}
	seen, first := time.Since(began), x.says()
	began = time.Now()
	if err := s.cure(); err != nil {
		x.t.Fatalf("%s: %v", s.name, err)
	}
	if err := x.Postfix.Flush(x.ctx); err != nil {
		x.t.Errorf("%s: %v", s.name, err)
	}
	mail := s.mail
	if mail == nil {
		mail = x.invoice
	}
	if err := x.send(mail, 250); err != nil {
		x.t.Errorf("%s, cured: %v", s.name, err)
	}
	if left := x.poll(func() string { return x.gone(s) }); left != "" {
		x.t.Errorf("%s is cured, and %s", s.name, left)
		return
	}
	fmt.Fprintf(table, "| %s | `%s` | `%s` | %s | %.1f s | %.1f s |\n", s.name, s.metric, strings.NewReplacer(`"`, "", ",", ", ").Replace(s.alert), first, seen.Seconds(), time.Since(began).Seconds())
}

// settled waits until nothing is wrong.
func (x *standSite) settled(when string) {
	x.t.Helper()
	if left := x.poll(func() string { return x.gone(standstill{metric: "absent(up)", alert: "none", says: "none"}) }); left != "" {
		x.t.Fatalf("%s: %s", when, left)
	}
}

// poll waits until nothing is amiss, and returns what is at the end.
func (x *standSite) poll(amiss func() string) (last string) {
	ctx, cancel := context.WithTimeout(x.ctx, standRise)
	defer cancel()
	poll(ctx, func() (bool, error) { last = amiss(); return last == "", nil })
	return last
}

// shown says where a standstill does not show.
func (x *standSite) shown(s standstill) string {
	text, _ := x.command("status")
	line, code := x.command("status", "--check")
	page := x.page()
	switch lead, _, _ := strings.Cut(text, "\n\n"); {
	case !x.has(s.metric):
		return "there is no " + s.metric
	case !strings.HasPrefix(lead, "1 thing needs you: mail is held up.") || !strings.Contains(lead, s.says):
		return "status begins " + lead
	case !strings.Contains(line, s.says) || code == nil || !strings.HasPrefix(line, "SENDAS CRITICAL - 1 thing needs you: mail is held up. "):
		return "the plugin says " + line
	case !strings.Contains(page, strings.ReplaceAll(s.says, "'", "&#39;")) || !strings.Contains(page, "1 thing needs you: mail is held up."):
		return "the page says " + page
	case !x.has(`ALERTS{alertstate="firing",alertname="` + s.alert + `"}`):
		return s.alert + " does not fire"
	}
	return ""
}

// gone says where a standstill still shows.
func (x *standSite) gone(s standstill) string {
	text, _ := x.command("status")
	line, code := x.command("status", "--check")
	page := x.page()
	switch lead, _, _ := strings.Cut(text, "\n\n"); {
	case x.has(s.metric):
		return "there still is " + s.metric
	case lead != "All mail leaves.":
		return "status begins " + lead
	case code != nil || !strings.HasPrefix(line, "SENDAS OK - All mail leaves: "):
		return "the plugin says " + line
	case !strings.Contains(page, "All mail leaves."):
		return "the page says " + page
	case x.has(`ALERTS{alertstate="firing",alertname="` + s.alert + `"}`):
		return s.alert + " still fires"
	}
	return ""
}

// says is what the plugin says, without figures.
func (x *standSite) says() string {
	line, _ := x.command("status", "--check")
	line, _, _ = strings.Cut(line, " | ")
	return strings.TrimPrefix(line, "SENDAS CRITICAL - ")
}

func (x *standSite) has(expr string) bool {
	list, err := x.p.query(x.ctx, expr)
	return err == nil && len(list) > 0
}

// command runs the program with the site's configuration.
func (x *standSite) command(args ...string) (string, error) {
	cmd := exec.CommandContext(x.ctx, x.Token.binary, append(args, "--config", x.Config)...)
	var out bytes.Buffer
	cmd.Stdout = &out
	err := cmd.Run()
	return out.String(), err
}

// page returns the page of whichever service is there: both have the same.
func (x *standSite) page() string {
	for _, addr := range []string{x.tokenHTTP, x.milterHTTP} {
		req, err := http.NewRequestWithContext(x.ctx, http.MethodGet, "http://"+addr+"/", nil)
		if err != nil {
			x.t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			continue
		}
		var b bytes.Buffer
		_, err = b.ReadFrom(res.Body)
		res.Body.Close()
		if err == nil {
			return b.String()
		}
	}
	return ""
}
