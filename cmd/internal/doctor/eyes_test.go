package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/finding/findingtest"
	"github.com/sendas/sendas/cmd/internal/postfix"
	"github.com/sendas/sendas/internal/serve"
)

// A bench is a host whose files lie in a folder, with users of its own: nobody of them is root.
type bench struct {
	*Walk
	dir     string
	status  string // of both services, on /status
	main    string // what main.cf says more
	chroot  string // of smtp, "n"
	fails   bool   // postfix status
	waiting string // postqueue -j
}

const benchUser = 4242 // of each of the users, and of their group; the files are of group 0

func newBench(t *testing.T) *bench {
	t.Helper()
	d, dir := socketDoctor(t)
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // as an ordinary folder
		t.Fatal(err)
	}
	b := &bench{Walk: d, dir: dir, chroot: "n", status: `{}`}
	d.File = filepath.Join(dir, "sendas.yaml")
	d.etc = filepath.Join(dir, "etc")
	for _, name := range []string{"milter", "policy", "credentials"} {
		path := filepath.Join(dir, "queue/sendas", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		listenOn(t, path)
		b.chmod(t, path, 0o666)
	}
	d.config.Milter.Listen, d.config.Milter.PolicyListen = serve.Unix(dir+"/queue/sendas/milter"), serve.Unix(dir+"/queue/sendas/policy")
	d.config.Token.Listen = serve.Unix(dir + "/queue/sendas/credentials")
	d.config.Token.Peers = []string{"root", "nobody-here", "postfix"}
	d.account = func(name string) (uint32, []uint32, error) {
		switch name {
		case "postfix", "sendas", "sendas-token":
			return benchUser, []uint32{benchUser}, nil
		case "root":
			return 0, nil, nil
		}
		return 0, nil, user.UnknownUserError(name)
	}
	secret := configtest.WriteFile(t, filepath.Join(dir, "relay-app.secret"), "s3cr3t\n", 0o600)
	c := d.config.Credentials["relay-app"]
	c.ClientSecretFile = secret
	d.config.Credentials["relay-app"] = c
	health := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, b.status) }))
	t.Cleanup(health.Close)
	d.config.Milter.HTTP = strings.TrimPrefix(health.URL, "http://")
	d.run = b.answer
	return b
}

// answer plays the programs of Postfix.
func (b *bench) answer(_ context.Context, name string, args ...string) (string, string, error) {
	switch {
	case name == "postfix" && b.fails:
		return "", "", errors.New("postfix: exit status 1")
	case name == "postqueue" && b.waiting == "unreadable":
		return "", "", errors.New("postqueue: fatal: Connect to the Postfix showq service: Permission denied")
	case name == "postqueue":
		return b.waiting, "", nil
	case name != "postconf":
		return "", "", nil
	}
	switch args[len(args)-2] {
	case "-M":
		return "sendas unix - - " + b.chroot + " - - smtp\n", "", nil
	case "-P":
		return "sendas/unix/smtp_sasl_password_maps = socketmap:unix:sendas/credentials:lease\n", "", nil
	}
	return fmt.Sprintf("config_directory = %[1]s\nqueue_directory = %[1]s/queue\nmail_owner = postfix\ncompatibility_level = 3.6\ndefault_transport = sendas:[smtp.office365.com]:587\n%s", b.dir, b.main), "", nil
}

func (b *bench) chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// look reads Postfix and looks.
func (b *bench) look(t *testing.T) {
	t.Helper()
	p, err := postfix.Read(t.Context(), b.run, b.dir, b.config)
	if err != nil {
		t.Fatal(err)
	}
	b.postfix = p
	b.checkEyes(t.Context())
	b.checkQueue(t.Context())
	findingtest.WantWhole(t, &b.Report)
}

func TestEyes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: the files have to be root's")
	}
	old := fmt.Sprint(time.Now().Add(-3 * time.Hour).Unix())
	for _, tc := range []struct {
		name   string
		spoil  func(*testing.T, *bench)
		id     string
		status finding.Status
		words  string // one after the other, "…" between them
	}{
		{"the folder of the sockets is closed", func(t *testing.T, b *bench) { b.chmod(t, b.dir+"/queue/sendas", 0o750) }, "socket.milter", finding.Fail, "postfix may not connect…451…chmod 0755"},
		{"the socket has another group", func(t *testing.T, b *bench) { b.chmod(t, b.dir+"/queue/sendas/credentials", 0o660) }, "socket.credentials", finding.Fail, "waits in the queue…chmod 0666"},
		{"the policy socket may only be read", func(t *testing.T, b *bench) { b.chmod(t, b.dir+"/queue/sendas/policy", 0o644) }, "socket.policy", finding.Fail, "deferred…SocketMode"},
		{"token.peers does not name Postfix's user", func(_ *testing.T, b *bench) { b.config.Token.Peers = []string{"root"} }, "peers", finding.Fail, "peers: [postfix]…reload"},
		{"Postfix does not run", func(_ *testing.T, b *bench) { b.fails = true }, "master", finding.Fail, "does not run…postfix -c"},
		{"no resolv.conf in the chroot", func(t *testing.T, b *bench) {
			b.chroot = "y"
			configtest.WriteFile(t, b.etc+"/resolv.conf", "nameserver 10.0.0.53\n", 0o644)
		}, "jail.resolv.conf", finding.Fail, "is not there…cp"},
		{"an old resolv.conf in the chroot", func(t *testing.T, b *bench) {
			b.chroot = "y"
			configtest.WriteFile(t, b.etc+"/resolv.conf", "# new\nnameserver 10.0.0.53\n", 0o644)
			configtest.WriteFile(t, b.dir+"/queue/etc/resolv.conf", "nameserver 10.9.9.9\nsearch lan\n", 0o644)
		}, "jail.resolv.conf", finding.Fail, "10.9.9.9…10.0.0.53"},
		{"another comment in the chroot", func(t *testing.T, b *bench) {
			b.chroot = "y"
			configtest.WriteFile(t, b.etc+"/resolv.conf", "nameserver 10.0.0.53\n", 0o644)
			configtest.WriteFile(t, b.dir+"/queue/etc/resolv.conf", "# copied\nnameserver 10.0.0.53\n", 0o644)
		}, "jail.resolv.conf", finding.OK, ""},
		{"Microsoft in the chroot's hosts", func(t *testing.T, b *bench) {
			b.chroot = "y"
			configtest.WriteFile(t, b.etc+"/hosts", "127.0.0.1 localhost\n", 0o644)
			configtest.WriteFile(t, b.dir+"/queue/etc/hosts", "192.0.2.7 SMTP.office365.com # moved\n", 0o644)
		}, "jail.hosts", finding.Fail, "192.0.2.7"},
		{"certificates outside the chroot", func(_ *testing.T, b *bench) { b.chroot, b.main = "y", "smtp_tls_CApath = /etc/ssl/certs\n" }, "jail.ca", finding.Fail, "/unix/smtp_tls_CAfile="},
		{"the last reload was refused", func(_ *testing.T, b *bench) {
			b.status = `{"config": {"loaded_at": "2030-01-01T00:00:00Z", "ok": false, "needs_restart": []}}`
		}, "config.milter", finding.Fail, "was refused…2030-01-01…reload sendas-milter"},
		{"the file is newer", func(_ *testing.T, b *bench) {
			b.status = `{"config": {"loaded_at": "2020-01-01T00:00:00Z", "ok": true, "needs_restart": []}}`
		}, "config.milter", finding.Warn, "2020-01-01…not in force…systemctl reload sendas-milter"},
		{"a restart is wanted", func(_ *testing.T, b *bench) {
			b.status = `{"config": {"loaded_at": "2090-01-01T00:00:00Z", "ok": true, "needs_restart": ["milter.listen"]}}`
		}, "config.milter.restart", finding.Warn, "milter.listen…systemctl restart sendas-milter"},
		{"the services may not read the file", func(t *testing.T, b *bench) { b.chmod(t, b.File, 0o640) }, "reads.sendas", finding.Fail, "chgrp sendas"},
		{"the milter may not enter the folder", func(t *testing.T, b *bench) { b.chmod(t, b.dir, 0o700) }, "reads.sendas", finding.Fail, "chmod 0755"},
		{"a secret that the milter may read", func(t *testing.T, b *bench) {
			if err := os.Chown(b.dir+"/relay-app.secret", 0, benchUser); err != nil {
				t.Fatal(err)
			}
			b.chmod(t, b.dir+"/relay-app.secret", 0o640)
		}, "secret.1", finding.Warn, "relay-app.secret…chgrp sendas-token"},
		{"a folder that everybody may write", func(t *testing.T, b *bench) { b.chmod(t, b.dir, 0o777) }, "writes.1", finding.Fail, "configuration…chmod go-w"},
		{"a secret that everybody may write", func(t *testing.T, b *bench) { b.chmod(t, b.dir+"/relay-app.secret", 0o622) }, "writes.1", finding.Fail, "another secret…relay-app.secret"},
		{"a configuration of another user", func(t *testing.T, b *bench) {
			if err := os.Chown(b.File, 4711, 0); err != nil {
				t.Fatal(err)
			}
		}, "writes.1", finding.Fail, "belongs to 4711:0…chown root"},
		{"a message waits for hours", func(_ *testing.T, b *bench) {
			b.waiting = `{"queue_name": "active", "queue_id": "YOUNG", "arrival_time": ` + fmt.Sprint(time.Now().Unix()) + `, "sender": "a@b.c", "recipients": [{"address": "x@y.z"}]}` + "\n" +
				`{"queue_name": "hold", "queue_id": "HELD", "arrival_time": 1, "sender": "a@b.c", "recipients": [{"address": "x@y.z"}]}` + "\n" +
				`{"queue_name": "deferred", "queue_id": "4B1F2", "arrival_time": ` + old + `, "sender": "scan@contoso.com", "recipients": [{"address": "x@y.z", "delay_reason": "SASL authentication failed; server smtp.office365.com[52.97.1.2] said: 535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox."}]}` + "\n"
		}, "queue.oldest", finding.Warn, "4B1F2…3h0m0s, of 2 messages…535 5.7.139…-SmtpClientAuthenticationDisabled $false"},
		{"a queue that cannot be read", func(_ *testing.T, b *bench) { b.waiting = "unreadable" }, "queue.oldest", finding.Warn, "Permission denied…nobody knows…showq/unix='showq unix n - y - - showq'"},
		{"a queue that cannot be read, and Postfix does not run", func(_ *testing.T, b *bench) { b.waiting, b.fails = "unreadable", true }, "queue.oldest", finding.Skip, "does not run"},
		{"a queue that the milter cannot read", func(_ *testing.T, b *bench) {
			b.config.Milter.QueueSocket = "/var/spool/postfix/public/showq"
			b.status = `{"config": {"loaded_at": "2090-01-01T00:00:00Z", "ok": true, "needs_restart": []}, "queue": {"readable": false, "error": "permission denied", "hint": "usermod -aG postdrop sendas"}}`
		}, "queue", finding.Warn, "permission denied…queue_ceiling…usermod -aG postdrop sendas"},
		{"a message without a reason of Microsoft's", func(_ *testing.T, b *bench) {
			b.waiting = `{"queue_name": "deferred", "queue_id": "4B1F2", "arrival_time": ` + old + `, "sender": "", "recipients": [{"address": "x@y.z", "delay_reason": "connect to 192.0.2.1[192.0.2.1]:25: Connection timed out"}]}`
		}, "queue.oldest", finding.Warn, "Connection timed out…-i 4B1F2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t)
			tc.spoil(t, b)
			b.look(t)
			id := tc.id
			if !strings.HasPrefix(id, "queue.") { // of the group queue, and not of what others see
				id = "eyes." + id
			}
			b.wantCheck(t, id, tc.status, strings.Split(tc.words, "…")...)
		})
	}
}

// TestRunningWithoutFile: with a file that is refused the services are asked all the same, and what
// follows of the file is no finding.
func TestRunningWithoutFile(t *testing.T) {
	for _, status := range []string{
		`{"config": {"loaded_at": "2020-01-01T00:00:00Z", "ok": true, "needs_restart": []}}`, `{"config": {"loaded_at": "2020-01-01T00:00:00Z", "ok": false, "needs_restart": []}}`,
	} {
		b := newBench(t)
		b.status = status
		configtest.WriteFile(t, b.File, "mailboxes: [\nmilter:\n  http: "+b.config.Milter.HTTP+"\n", 0o644)
		b.config = nil
		b.checkEyes(t.Context())
		findingtest.WantGood(t, &b.Report)
		b.wantCheck(t, "eyes.config.milter", finding.OK, "goes on with what was loaded at 2020-01-01")
	}
}

// TestRunningTwice: what holds for both services is one finding, with one cure.
func TestRunningTwice(t *testing.T) {
	b := newBench(t)
	b.status = `{"config": {"loaded_at": "2020-01-01T00:00:00Z", "ok": true, "needs_restart": []}}`
	b.config.Token.HTTP = b.config.Milter.HTTP
	b.look(t)
	b.wantCheck(t, "eyes.config.milter", finding.Warn, "systemctl reload sendas-milter sendas-token")
	b.wantCheck(t, "eyes.config.token", finding.Skip, "as that of sendas-milter")
}

// A host on which all is as it should be.
func TestEyesOfAHealthyHost(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: the files have to be root's")
	}
	b := newBench(t)
	b.chroot = "y"
	b.status = `{"config": {"loaded_at": "2090-01-01T00:00:00Z", "ok": true, "needs_restart": []}}`
	for _, dir := range []string{b.etc, b.dir + "/queue/etc"} {
		configtest.WriteFile(t, dir+"/resolv.conf", "nameserver 10.0.0.53\n", 0o644)
		configtest.WriteFile(t, dir+"/hosts", "127.0.0.1 localhost\n", 0o644)
	}
	b.look(t)
	findingtest.WantGood(t, &b.Report)
	for _, id := range []string{"eyes.master", "eyes.socket.milter", "eyes.socket.policy", "eyes.socket.credentials", "eyes.jail.resolv.conf", "eyes.config.milter", "eyes.reads.sendas",
		"eyes.reads.sendas-token", "eyes.writes", "queue.oldest"} {
		b.wantCheck(t, id, finding.OK)
	}
}
