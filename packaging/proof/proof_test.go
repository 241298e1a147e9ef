//go:build packagetest

package proof

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim"
	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/lab"
)

// patience bounds every wait. Nothing takes this long unless it is broken.
const patience = 60 * time.Second

const (
	clientID               = "5f2c0d3e-0000-4000-8000-000000000001"
	secret                 = "s3cr3t~of/the+package"
	oldVersion, newVersion = "0.1.0", "0.2.0~rc1"
)

// TestPackage is the life of the package on a host.
func TestPackage(t *testing.T) {
	if isolate(t) {
		return
	}
	d := newDebian(t, "")
	oldDeb, newDeb := build(t, d, oldVersion), build(t, d, newVersion)
	site := newSite(t, d)
	site.setUpPostfix()
	before, mainCF := d.files(), d.read("/etc/postfix/main.cf")

	t.Log("install: nothing is started, Postfix stays as it is")
	said := d.sh("dpkg -i " + oldDeb)
	want(t, "what dpkg says", said, `edit /etc/sendas/sendas.yaml, type "sendas check", then "systemctl enable --now sendas-milter sendas-token"`)
	if d.read("/etc/postfix/main.cf") != mainCF {
		t.Error("the installation changed main.cf")
	}
	checkOwners(t, d)
	d.sh("dpkg-reconfigure sendas")                                                                             // twice is as once
	d.sh("cd /var/lib/dpkg/info; for s in 'preinst 2' 'postinst 2' 'prerm 1' 'postrm 1'; do ./sendas.$s; done") // as rpm upgrades
	checkOwners(t, d)

	t.Log("configure, as README says")
	site.configure()
	d.sh("sendas check")
	site.start()
	enabled := d.sh("sendas postfix enable")
	t.Log(enabled)
	site.startPostfix()
	site.send(3)
	site.wait(3)

	t.Log("upgrade while mail flows")
	site.upgrade(newDeb)
	want(t, "the version after the upgrade", d.sh("sendas version"), "sendas "+newVersion+"\n")
	want(t, "the configuration after the upgrade", d.read("/etc/sendas/sendas.yaml"), "client_id: "+clientID)

	t.Log("remove: Postfix is left alone, and the administrator warned")
	withSendas := d.read("/etc/postfix/main.cf")
	said = d.sh("dpkg -r sendas")
	want(t, "what dpkg says", said, `type "sendas postfix disable"`)
	if d.read("/etc/postfix/main.cf") != withSendas {
		t.Error("the removal changed main.cf")
	}
	want(t, "the configuration after the removal", d.read("/etc/sendas/sendas.yaml"), "client_id: "+clientID)

	t.Log("install again, take Postfix's settings back, purge")
	d.sh("dpkg -i " + newDeb)
	d.sh("sendas postfix disable")
	if got := d.read("/etc/postfix/main.cf"); got != mainCF {
		t.Errorf("main.cf after \"sendas postfix disable\" is\n%s\nand was\n%s", got, mainCF)
	}
	site.stop()
	if said := d.sh("dpkg -P sendas"); strings.Contains(said, "warning") {
		t.Errorf("purging says\n%s", said)
	}
	for _, line := range compare(before, d.files()) {
		t.Error(line)
	}

	t.Log("upgrade from a version whose sendas.yaml was a conffile: no question, and the file stays")
	conffile := withConffile(d, oldDeb)
	for _, change := range []string{"", "echo '# ours' >> /etc/sendas/sendas.yaml"} {
		d.sh("dpkg -i " + conffile + "; " + change)
		was := d.sh("cat /etc/sendas/sendas.yaml; stat -c '%a %U:%G' /etc/sendas/sendas.yaml")
		said := d.sh("dpkg -i " + newDeb + " </dev/null")
		if now := d.sh("cat /etc/sendas/sendas.yaml; stat -c '%a %U:%G' /etc/sendas/sendas.yaml"); now != was || strings.Contains(said, "onfiguration file") {
			t.Errorf("after the upgrade the configuration is\n%s\nand was\n%s\ndpkg says\n%s", now, was, said)
		}
		want(t, "what is installed", d.sh("dpkg-query -W -f '${Status} ${Version}' sendas"), "install ok installed "+newVersion)
		d.sh("dpkg -P sendas")
		for _, line := range compare(before, d.files()) {
			t.Error(line)
		}
	}

	t.Log("install beside a configuration that is there already: it is started, and stopped when it goes")
	calls := d.standIns()
	d.sh("mkdir /etc/sendas")
	d.write("/etc/sendas/sendas.yaml", provisioned, 0o644)
	d.write("/etc/sendas/relay-app.secret", secret, 0o600)
	d.sh("PATH=/usr/local/bin:$PATH dpkg -i " + newDeb)
	const all = " sendas-milter.socket sendas-policy.socket sendas-token.socket sendas-milter.service sendas-token.service\n"
	want(t, "what systemd is told", calls(), "daemon-reload\nenable --quiet"+all+"start"+all)
	want(t, "the configuration", d.read("/etc/sendas/sendas.yaml"), provisioned)
	d.sh("PATH=/usr/local/bin:$PATH dpkg -P sendas")
	want(t, "what systemd is told", calls(), "stop"+all+"daemon-reload\n")
	d.noStandIns()
	for _, line := range compare(before, d.files()) {
		t.Error(line)
	}
}

// TestRPM is the life of the other package, as far as rpm on Debian can tell it: what is there, who
// may read it, and that what was configured stays.
func TestRPM(t *testing.T) {
	if isolate(t) {
		return
	}
	d := newDebian(t, "")
	d.sh("apt-get install -q -y --no-install-recommends rpm")
	build(t, d, oldVersion)
	build(t, d, newVersion)
	before := d.files()
	rpm := func(how, version string) string {
		return d.sh("rpm --nodeps " + how + " /tmp/sendas-" + version + "-1.*.rpm 2>&1")
	}
	want(t, "what rpm says", rpm("-i", oldVersion), `edit /etc/sendas/sendas.yaml, type "sendas check"`)
	checkOwners(t, d)
	d.write("/etc/sendas/sendas.yaml", provisioned, 0o640)
	rpm("-U", newVersion)
	want(t, "the configuration after the upgrade", d.read("/etc/sendas/sendas.yaml"), provisioned)
	want(t, "the version after the upgrade", d.sh("sendas version"), "sendas "+newVersion+"\n")
	d.sh("rpm -e sendas")
	want(t, "the configuration that is kept", d.read("/etc/sendas/sendas.yaml.rpmsave"), provisioned)
	d.sh(`rm -r /etc/sendas /var/lib/sendas /var/lib/sendas-token /var/spool/postfix/sendas
		userdel sendas-token; userdel sendas; if getent group sendas >/dev/null; then groupdel sendas; fi`)
	for _, line := range compare(before, d.files()) {
		// Empty folders, which belong to package filesystem where rpm is at home.
		if !strings.HasPrefix(line, "/var/lib/rpm") && !(strings.HasPrefix(line, "/usr/") && strings.HasSuffix(line, " is left: d 755 0:0 ")) {
			t.Error(line)
		}
	}
}

// provisioned is a configuration as other tools leave it before the package comes.
const provisioned = `tenant: {id: contoso.onmicrosoft.com, domains: [contoso.com]}
credentials: {relay-app: {client_id: ` + clientID + `, client_secret_file: relay-app.secret}}
mailboxes: [{address: erp@contoso.com, credential: relay-app}]
clients: [{name: printers, networks: [10.2.0.0/16], from: erp@contoso.com}]
`

func want(t *testing.T, what, got, part string) {
	t.Helper()
	if !strings.Contains(got, part) {
		t.Errorf("%s is\n%s\nwithout %q", what, got, part)
	}
}

// build makes a package of this tree, and returns where it is in there.
func build(t *testing.T, d *debian, version string) string {
	t.Helper()
	cmd := exec.Command("../build")
	cmd.Env = append(os.Environ(), "VERSION="+version, "ARCHES="+runtime.GOARCH, "FORMATS=deb rpm", "OUT="+d.path("/tmp"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", version, err, out)
	}
	return "/tmp/sendas_" + version + "-1_" + runtime.GOARCH + ".deb"
}

// withConffile makes a package as those before the sample became a template: sendas.yaml is a
// conffile, with another text than today's.
func withConffile(d *debian, deb string) string {
	d.t.Helper()
	return strings.TrimSpace(d.sh(`cd /tmp; rm -rf conffile; dpkg-deb -R ` + deb + ` conffile; cd conffile
		install -D -m 640 usr/share/sendas/sendas.yaml etc/sendas/sendas.yaml
		rm usr/share/sendas/sendas.yaml
		echo '# of an older version' >> etc/sendas/sendas.yaml
		echo /etc/sendas/sendas.yaml > DEBIAN/conffiles
		sed -i '/^make_configuration()/,/^}/d; /^\tmake_configuration$/d' DEBIAN/postinst
		dpkg-deb -b --root-owner-group . ../conffile.deb >/dev/null; echo /tmp/conffile.deb`))
}

// checkOwners: who may read and write what.
func checkOwners(t *testing.T, d *debian) {
	t.Helper()
	const list = `750 root:sendas /etc/sendas
640 root:sendas /etc/sendas/sendas.yaml
1775 root:sendas /var/spool/postfix/sendas
700 sendas:sendas /var/lib/sendas
700 sendas-token:sendas-token /var/lib/sendas-token
`
	got := d.sh("stat -c '%a %U:%G %n' /etc/sendas /etc/sendas/sendas.yaml /var/spool/postfix/sendas /var/lib/sendas /var/lib/sendas-token")
	if got != list {
		t.Errorf("owners and modes are\n%s\nwant\n%s", got, list)
	}
	want(t, "groups of sendas-token", d.sh("id -Gn sendas-token"), "sendas-token sendas")
}

// A site is the relay with what is around it.
type site struct {
	*debian
	exosim   *exosim.Server
	smtp     string // address of smtpd(8)
	services []*service
	sent     int
}

func newSite(t *testing.T, d *debian) *site {
	t.Helper()
	s := &site{debian: d, smtp: freeAddr(t)}
	var err error
	s.exosim, err = exosim.Start(exosim.Config{
		CAFile: d.path("/usr/local/share/ca-certificates/lab.crt"), SMTPConfig: exosim.SMTPConfig{Window: 2 * time.Second},
		DirectoryConfig: exosim.DirectoryConfig{
			Tenant: "contoso.onmicrosoft.com", Domains: []string{"contoso.com"},
			Apps:      []directory.App{{ClientID: clientID, ObjectID: clientID, Secret: secret, Mailboxes: []string{"erp@contoso.com"}}},
			Mailboxes: []directory.Mailbox{{Address: "erp@contoso.com"}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.exosim.Close)
	d.sh("update-ca-certificates")
	hosts := d.read("/etc/hosts")
	d.write("/etc/hosts", hosts+"\n127.0.0.1 smtp.office365.com\n", 0o644)
	return s
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// setUpPostfix is what an administrator has done before sendas came, and what a test without DNS
// needs.
func (s *site) setUpPostfix() {
	s.t.Helper()
	s.sh(`postconf -e myhostname=relay.lab.example inet_interfaces=loopback-only inet_protocols=ipv4 mydestination= \
		'mynetworks=127.0.0.0/8 10.0.0.0/8' smtpd_authorized_xclient_hosts=127.0.0.1 smtp_host_lookup=native smtp_dns_support_level=disabled \
		maillog_file=/var/log/mail.log minimal_backoff_time=2s maximal_backoff_time=4s queue_run_delay=1s
		postconf -MX smtp/inet
		postconf -Me ` + s.smtp + `/inet='` + s.smtp + ` inet n - y - - smtpd'
		postconf -Me postlog/unix-dgram='postlog unix-dgram n - n - 1 postlogd'`)
}

// configure edits the configuration that came with the package.
func (s *site) configure() {
	s.t.Helper()
	_, port, _ := net.SplitHostPort(s.exosim.SubmissionAddr())
	http := []string{freeAddr(s.t), freeAddr(s.t)}
	s.write("/etc/sendas/relay-app.secret", secret+"\n", 0o600)
	s.sh("chown sendas-token /etc/sendas/relay-app.secret")
	yaml := s.read("/etc/sendas/sendas.yaml")
	yaml = edit(s.t, yaml, "#id: contoso.onmicrosoft.com", "id: contoso.onmicrosoft.com")
	yaml = edit(s.t, yaml, "#domains: [contoso.com, contoso.de]", "domains: [contoso.com]")
	yaml = edit(s.t, yaml, "#endpoints:", "endpoints:")
	yaml = edit(s.t, yaml, "#authority: https://login.microsoftonline.com", "authority: "+s.exosim.Authority())
	yaml = edit(s.t, yaml, "#submission: smtp.office365.com:587", "submission: smtp.office365.com:"+port)
	yaml = edit(s.t, yaml, "#relay-app:", "relay-app:")
	yaml = edit(s.t, yaml, "#client_id: 01234567-89ab-cdef-0123-456789abcdef", "client_id: "+clientID)
	yaml = edit(s.t, yaml, "#certificate_file: /etc/sendas/relay-app.pem", "client_secret_file: relay-app.secret")
	yaml = edit(s.t, yaml, "#- address: erp@contoso.com", "- address: erp@contoso.com")
	yaml = edit(s.t, yaml, "#credential: relay-app", "credential: relay-app")
	yaml = edit(s.t, yaml, "#limits:\n      # Messages in any period", "limits:\n      # Messages in any period")
	yaml = edit(s.t, yaml, "#messages: 30/m", "messages: 30/2s")
	yaml = edit(s.t, yaml, "#- name: printers", "- name: printers")
	yaml = edit(s.t, yaml, `#networks: [10.2.0.0/16, "fd00:2::/64"]`, "networks: [10.0.0.0/8]")
	yaml = edit(s.t, yaml, "#from: erp@contoso.com", "from: erp@contoso.com")
	yaml = edit(s.t, yaml, "#milter:\n", "milter:\n")
	yaml = edit(s.t, yaml, "#http: 127.0.0.1:9725", "http: "+http[0])
	yaml = edit(s.t, yaml, "#token:\n", "token:\n")
	yaml = edit(s.t, yaml, "#http: 127.0.0.1:9726", "http: "+http[1])
	if err := os.WriteFile(s.path("/etc/sendas/sendas.yaml"), []byte(yaml), 0o640); err != nil {
		s.t.Fatal(err)
	}
	s.services = []*service{
		{site: s, name: "milter", user: "sendas", sockets: []string{"milter", "policy"}, http: http[0]},
		{site: s, name: "token", user: "sendas-token", sockets: []string{"credentials"}, http: http[1]},
	}
}

// edit replaces the first occurrence.
func edit(t *testing.T, text, old, new string) string {
	t.Helper()
	if !strings.Contains(text, old) {
		t.Fatalf("the sample configuration has no %q", old)
	}
	return strings.Replace(text, old, new, 1)
}

// start does what systemd does: sockets first, made by root, then the services.
func (s *site) start() {
	s.t.Helper()
	for _, v := range s.services {
		v.listen()
		v.start()
	}
}

func (s *site) stop() {
	s.t.Helper()
	s.sh("postfix stop")
	for _, v := range s.services {
		v.stop()
	}
}

// startPostfix starts it as Debian does: chrooted, with the files that this needs.
func (s *site) startPostfix() {
	s.t.Helper()
	// Since Debian 13, "postfix start" itself puts into the queue directory what chrooted daemons
	// read.
	said := s.sh("cd /usr/lib/postfix; grep -q 'internal script' configure-instance.sh || ./configure-instance.sh -; postfix check && postfix start")
	if strings.Contains(said, "warning") {
		s.t.Errorf("Postfix says\n%s", said)
	}
	s.t.Cleanup(func() {
		if s.t.Failed() {
			log, _ := os.ReadFile(s.path("/var/log/mail.log"))
			s.t.Logf("the mail log:\n%s", log[max(0, len(log)-8000):])
			for _, v := range s.services {
				log, _ := os.ReadFile(v.logFile())
				s.t.Logf("%s:\n%s", v.name, log[max(0, len(log)-4000):])
			}
		}
	})
}

// sendOne sends the next message, with more fields, and fails the test if it is not taken.
func (s *site) sendOne(ctx context.Context, fields string) lab.Result {
	s.t.Helper()
	s.sent++
	data := fmt.Sprintf("%sFrom: Scanner <mfp3@floor.local>\r\nTo: <a@fabrikam.com>\r\nMessage-ID: <%d@floor.local>\r\nSubject: scan\r\n\r\nhello\r\n", fields, s.sent)
	res, err := lab.Send(ctx, s.smtp, lab.Mail{XClient: lab.XClient{Addr: "10.2.0.9", Name: "mfp3.local"}, From: "mfp3@floor.local", To: []string{"a@fabrikam.com"}, Data: []byte(data)})
	if err != nil || !res.Accepted() {
		s.t.Errorf("message %d was refused: %v, %v", s.sent, res.Verdict(), err)
	}
	return res
}

func (s *site) send(n int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	for range n {
		s.sendOne(ctx, "")
	}
}

// wait waits until Exchange Online has taken n messages, and looks whether each is there once and
// under the right name.
func (s *site) wait(n int) {
	s.t.Helper()
	seen := make(map[string]int)
	eventually(s.t, fmt.Sprintf("%d messages at Exchange Online", n), func() bool {
		clear(seen)
		for _, m := range s.exosim.Messages() {
			if m.Accepted() {
				seen[strings.Join(m.Header("Message-ID"), " ")]++
			}
		}
		return len(seen) >= n
	})
	for id, times := range seen {
		if times != 1 {
			s.t.Errorf("message %s was sent %d times", id, times)
		}
	}
	for _, m := range s.exosim.Messages() {
		if m.Sender != "erp@contoso.com" || !strings.Contains(strings.Join(m.Header("From"), " "), "<erp@contoso.com>") {
			s.t.Errorf("a message left as %q, From %q", m.Sender, m.Header("From"))
		}
	}
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// upgrade installs the new version while mail flows. What systemd is told is done here.
func (s *site) upgrade(deb string) {
	s.t.Helper()
	calls := s.standIns()
	already := s.sent
	var stop atomic.Bool
	var flow sync.WaitGroup
	flow.Go(func() {
		ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Minute)
		defer cancel()
		for !stop.Load() {
			s.sendOne(ctx, "")
			time.Sleep(20 * time.Millisecond)
		}
	})
	s.sh("PATH=/usr/local/bin:$PATH dpkg -i " + deb)
	told := calls()
	want(s.t, "what systemd is told", told, "daemon-reload\n")
	for _, v := range s.services {
		want(s.t, "what systemd is told", told, "\nrestart sendas-"+v.name+".service\n")
		v.stop()
		v.start()
	}
	for _, bad := range []string{"stop", ".socket\nrestart", "restart sendas-milter.socket", "restart sendas-token.socket", "disable", "postfix"} {
		if strings.Contains(told, bad) {
			s.t.Errorf("the upgrade tells systemd %q:\n%s", bad, told)
		}
	}
	time.Sleep(time.Second) // some more mail through the new ones
	stop.Store(true)
	flow.Wait()
	if s.sent == already {
		s.t.Error("no mail came during the upgrade")
	}
	s.t.Logf("%d messages came during the upgrade", s.sent-already)
	s.wait(s.sent)
	s.noStandIns()
}

// A service runs as its unit has it: as its user, with sockets that root has made.
type service struct {
	*site
	name, user string
	sockets    []string
	http       string
	files      []*os.File
	cmd        *exec.Cmd
}

func (v *service) logFile() string { return filepath.Join(v.root, "tmp", v.name+".log") }

func (v *service) listen() {
	v.t.Helper()
	for _, name := range v.sockets {
		path := v.path("/var/spool/postfix/sendas/" + name)
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			v.t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		f, err := l.File()
		if err != nil {
			v.t.Fatal(err)
		}
		l.Close()
		if err := os.Chmod(path, 0o666); err != nil {
			v.t.Fatal(err)
		}
		v.files = append(v.files, f)
	}
}

func (v *service) start() {
	v.t.Helper()
	log, err := os.OpenFile(v.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		v.t.Fatal(err)
	}
	defer log.Close()
	v.cmd = exec.Command("chroot", v.root, "setpriv", "--reuid", v.user, "--regid", v.user, "--init-groups", "--bounding-set=-all", "--no-new-privs",
		"/bin/sh", "-c", `LISTEN_PID=$$ exec /usr/bin/sendas "$0"`, v.name)
	v.cmd.Env = []string{"PATH=/usr/bin:/bin", fmt.Sprintf("LISTEN_FDS=%d", len(v.files)), "LISTEN_FDNAMES=" + strings.Join(v.sockets, ":")}
	v.cmd.ExtraFiles, v.cmd.Stdout, v.cmd.Stderr = v.files, log, log
	if err := v.cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	eventually(v.t, "sendas "+v.name, func() bool {
		res, err := http.Get("http://" + v.http + "/readyz")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
}

func (v *service) stop() {
	v.t.Helper()
	if err := v.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		v.t.Error(err)
	}
	if err := v.cmd.Wait(); err != nil {
		v.t.Errorf("sendas %s: %v", v.name, err)
	}
}
