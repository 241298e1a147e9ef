//go:build packagetest

package proof

import (
	"context"
	"fmt"

	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim"
	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/lab"
)

const (
	clientID               = "5f2c0d3e-0000-4000-8000-000000000001"
	secret                 = "s3cr3t~of/the+package"
	oldVersion, newVersion = "0.1.0", "0.2.0~rc1"
)

// suites are the versions of Debian in which all is tried: 12 with Postfix 3.7, 13 with Postfix 3.10.
var suites = []string{"bookworm", newerSuite}

// TestPackage is the life of the package on a host.
func TestPackage(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			if d := booted(t, suite, func(*debian) {}); d != nil {
				t.Logf("%s, Postfix %s", d.sh("systemctl --version | head -n 1"), d.sh("postconf -dh mail_version"))
				newSite(t, d).live()
			}
		})
	}
}

func (s *site) live() {
	s.setUpPostfix()
	before, mainCF := s.files(), s.read("/etc/postfix/main.cf")

	s.t.Log("install: nothing is started, Postfix stays as it is")
	said := s.sh("dpkg -i " + debPath(oldVersion))
	want(s.t, "what dpkg says", said, `edit /etc/sendas/sendas.yaml, type "sendas check", then "`+startBoth+`"`)
	if s.read("/etc/postfix/main.cf") != mainCF {
		s.t.Error("the installation changed main.cf")
	}
	s.wantActive("inactive", units...)
	checkOwners(s.t, s.debian)
	s.sh("dpkg-reconfigure sendas")                                                                             // twice is as once
	s.sh("cd /var/lib/dpkg/info; for s in 'preinst 2' 'postinst 2' 'prerm 1' 'postrm 1'; do ./sendas.$s; done") // as rpm upgrades
	checkOwners(s.t, s.debian)

	s.t.Log("configure, as README says")
	s.configure()
	s.sh("sendas check")
	s.sh(startBoth)
	s.sh("sendas postfix enable --dry-run")
	s.t.Log(s.sh("sendas postfix enable"))
	if said := s.logged("warning", "--facility=mail"); said != "" {
		s.t.Errorf("so far the mail log warns:\n%s", said)
	}
	s.send(3)
	s.wait(3)
	s.wantActive("active", units...)
	s.guarded()
	s.t.Log("upgrade while mail flows")
	s.upgrade()

	s.t.Log("remove: Postfix is left alone, and the administrator warned")
	withSendas := s.read("/etc/postfix/main.cf")
	said = s.sh("dpkg -r sendas")
	want(s.t, "what dpkg says", said, `type "sendas postfix disable"`)
	if s.read("/etc/postfix/main.cf") != withSendas {
		s.t.Error("the removal changed main.cf")
	}
	want(s.t, "the configuration after the removal", s.read("/etc/sendas/sendas.yaml"), "client_id: "+clientID)
	s.wantActive("inactive", units...)
	want(s.t, "the folder of the sockets", "sockets:"+s.sh("ls /var/spool/postfix/sendas")+".", "sockets:.")

	s.t.Log("install again: what was enabled runs again")
	s.sh("dpkg -i " + debPath(newVersion))
	s.wantActive("active", units...)
	s.send(1)
	s.wait(s.sent)

	s.t.Log("take Postfix's settings back, purge")
	s.sh("sendas postfix disable")
	if got := s.read("/etc/postfix/main.cf"); got != mainCF {
		s.t.Errorf("main.cf after \"sendas postfix disable\" is\n%s\nand was\n%s", got, mainCF)
	}
	s.purge(before)
	s.hadConffile(before)
	s.wasProvisioned(before)
}

// purge removes the package and all that it has made, and compares with what was before.
func (d *debian) purge(before map[string]string) {
	d.t.Helper()
	if said := d.sh("dpkg -P sendas"); strings.Contains(said, "warning") {
		d.t.Errorf("purging says\n%s", said)
	}
	d.wantActive("inactive", units...)
	if left := d.sh("systemctl list-unit-files --no-legend 'sendas*' || true"); left != "" {
		d.t.Errorf("systemd still knows\n%s", left)
	}
	for _, line := range compare(before, d.files()) {
		d.t.Error(line)
	}
}

// hadConffile upgrades from a version whose sendas.yaml was a conffile: no question, and the file
// stays.
func (d *debian) hadConffile(before map[string]string) {
	d.t.Helper()
	conffile := withConffile(d, debPath(oldVersion))
	for _, change := range []string{"", "echo '# ours' >> /etc/sendas/sendas.yaml"} {
		d.sh("dpkg -i " + conffile + "; " + change)
		was := d.sh("cat /etc/sendas/sendas.yaml; stat -c '%a %U:%G' /etc/sendas/sendas.yaml")
		said := d.sh("dpkg -i " + debPath(newVersion) + " </dev/null")
		if now := d.sh("cat /etc/sendas/sendas.yaml; stat -c '%a %U:%G' /etc/sendas/sendas.yaml"); now != was || strings.Contains(said, "onfiguration file") {
			d.t.Errorf("after the upgrade the configuration is\n%s\nand was\n%s\ndpkg says\n%s", now, was, said)
		}
		want(d.t, "what is installed", d.sh("dpkg-query -W -f '${Status} ${Version}' sendas"), "install ok installed "+newVersion)
		d.purge(before)
	}
}

// wasProvisioned installs beside a configuration that is there already: it is started, and stopped
// when it goes.
func (d *debian) wasProvisioned(before map[string]string) {
	d.t.Helper()
	d.sh("mkdir -p /etc/sendas /etc/systemd/system/sendas-token.service.d")
	d.write("/etc/sendas/sendas.yaml", provisioned, 0o644)
	d.write("/etc/sendas/relay-app.secret", secret, 0o600)
	d.write("/etc/systemd/system/sendas-token.service.d/secret.conf", "[Service]\nLoadCredential=relay-app.secret:/etc/sendas/relay-app.secret\n", 0o644)
	d.sh("dpkg -i " + debPath(newVersion))
	d.wantActive("active", units...)
	want(d.t, "what is enabled", d.sh("systemctl is-enabled "+strings.Join(units, " ")), strings.Repeat("enabled\n", len(units)))
	want(d.t, "the configuration", d.read("/etc/sendas/sendas.yaml"), provisioned)
	d.purge(before)
}

// TestRPM is the life of the other package, as far as rpm on Debian can tell it: what is there, who
// may read it, and that what was configured stays.
func TestRPM(t *testing.T) {
	d := newDebian(t, suites[0], "rpm")
	for _, version := range []string{oldVersion, newVersion} {
		d.add(strings.TrimSuffix(build(t, version), ".deb")+".rpm", "/root/"+version+".rpm")
	}
	before := d.files()
	rpm := func(how, version string) string {
		return d.sh("rpm --nodeps " + how + " /root/" + version + ".rpm 2>&1")
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
credentials: {relay-app: {client_id: ` + clientID + `, client_secret_file: "credential:relay-app.secret"}}
mailboxes: [{address: erp@contoso.com, credential: relay-app}]
clients: [{name: printers, networks: [10.2.0.0/16], from: erp@contoso.com}]
`

func want(t *testing.T, what, got, part string) {
	t.Helper()
	if !strings.Contains(got, part) {
		t.Errorf("%s is\n%s\nwithout %q", what, got, part)
	}
}

// debPath is where the package lies in a booted Debian.
func debPath(version string) string { return "/root/sendas_" + version + ".deb" }

// build makes the packages of this tree, once in a run, and returns where that for Debian is. The
// other one has the same name but for its end.
func build(t *testing.T, version string) (deb string) {
	t.Helper()
	dir := filepath.Join(workshop, version)
	deb = filepath.Join(dir, "sendas.deb")
	if _, err := os.Stat(deb); err == nil {
		return deb
	}
	cmd := exec.Command("../build")
	cmd.Env = append(os.Environ(), "VERSION="+version, "ARCHES="+runtime.GOARCH, "FORMATS=deb rpm", "OUT="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", version, err, out)
	}
	run(t, "/bin/sh", "-ec", "cd $0; mv *.rpm sendas.rpm; mv *.deb sendas.deb", dir)
	return deb
}

// withConffile makes a package as those before the sample became a template: sendas.yaml is a
// conffile, with another text than today's.
func withConffile(d *debian, deb string) string {
	d.t.Helper()
	return strings.TrimSpace(d.sh(`cd /root; rm -rf conffile; dpkg-deb -R ` + deb + ` conffile; cd conffile
		install -D -m 640 usr/share/sendas/sendas.yaml etc/sendas/sendas.yaml
		rm usr/share/sendas/sendas.yaml
		echo '# of an older version' >> etc/sendas/sendas.yaml
		echo /etc/sendas/sendas.yaml > DEBIAN/conffiles
		sed -i '/^make_configuration()/,/^}/d; /^\tmake_configuration$/d' DEBIAN/postinst
		dpkg-deb -b --root-owner-group . ../conffile.deb >/dev/null; echo /root/conffile.deb`))
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

// units are all units of the package.
var units = []string{"sendas-milter.socket", "sendas-policy.socket", "sendas-token.socket", "sendas-milter.service", "sendas-token.service"}

// startBoth is what the package says to type.
const startBoth = "systemctl enable --now sendas-milter sendas-token"

// A site is the relay with what is around it.
type site struct {
	*debian
	exosim *exosim.Server
	sent   int
}

// smtpd is where it takes mail.
const smtpd = "127.0.0.1:25"

func newSite(t *testing.T, d *debian) *site {
	t.Helper()
	s := &site{debian: d}
	var err error
	s.exosim, err = exosim.Start(exosim.Config{
		CAFile: d.path("/usr/local/share/ca-certificates/lab.crt"), Submission: "127.0.0.1:587", SMTPConfig: exosim.SMTPConfig{Window: 2 * time.Second},
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

// setUpPostfix is what an administrator has done before sendas came, and what a test without DNS
// needs.
func (s *site) setUpPostfix() {
	s.t.Helper()
	s.sh(`postconf -e myhostname=relay.lab.example inet_interfaces=loopback-only inet_protocols=ipv4 mydestination= \
		'mynetworks=127.0.0.0/8 10.0.0.0/8' smtpd_authorized_xclient_hosts=127.0.0.1 smtp_host_lookup=native smtp_dns_support_level=disabled \
		minimal_backoff_time=2s maximal_backoff_time=4s queue_run_delay=1s
		systemctl restart postfix; postfix check`)
}

// configure edits the configuration that came with the package.
func (s *site) configure() {
	s.t.Helper()
	s.write("/etc/sendas/relay-app.secret", secret+"\n", 0o600)
	s.sh("chown sendas-token /etc/sendas/relay-app.secret")
	yaml := s.read("/etc/sendas/sendas.yaml")
	yaml = edit(s.t, yaml, "#id: contoso.onmicrosoft.com", "id: contoso.onmicrosoft.com")
	yaml = edit(s.t, yaml, "#domains: [contoso.com, contoso.de]", "domains: [contoso.com]")
	yaml = edit(s.t, yaml, "#endpoints:", "endpoints:")
	yaml = edit(s.t, yaml, "#authority: https://login.microsoftonline.com", "authority: "+s.exosim.Authority())
	yaml = edit(s.t, yaml, "#relay-app:", "relay-app:")
	yaml = edit(s.t, yaml, "#client_id: 01234567-89ab-cdef-0123-456789abcdef", "client_id: "+clientID)
	yaml = edit(s.t, yaml, "#certificate_file: /etc/sendas/relay-app.pem", "client_secret_file: relay-app.secret")
	yaml = edit(s.t, yaml, "#- address: erp@contoso.com", "- address: erp@contoso.com")
	yaml = edit(s.t, yaml, "#credential: relay-app", "credential: relay-app")
	yaml = edit(s.t, yaml, "#limits:\n      # Messages in any period", "limits:\n      # Messages in any period")
	yaml = edit(s.t, yaml, "#messages: 30/m", "messages: 30/2s")
	yaml = edit(s.t, yaml, "#- name: printers", "- name: printers")
	yaml = edit(s.t, yaml, `#networks: [10.2.0.0/16, "fd00:2::/64"]`, "networks: ["+printers+"]")
	yaml = edit(s.t, yaml, "#from: erp@contoso.com", "from: erp@contoso.com")
	if err := os.WriteFile(s.path("/etc/sendas/sendas.yaml"), []byte(yaml), 0o640); err != nil {
		s.t.Fatal(err)
	}
}

// printers is the network of the client, and another one is not.
const printers, strangers = "10.2.0.0/16", "10.3.0.0/16"

// edit replaces the first occurrence.
func edit(t *testing.T, text, old, new string) string {
	t.Helper()
	if !strings.Contains(text, old) {
		t.Fatalf("the sample configuration has no %q", old)
	}
	return strings.Replace(text, old, new, 1)
}

// sendOne sends the next message, with more fields, and fails the test if it is not taken.
func (s *site) sendOne(ctx context.Context, fields string) lab.Result {
	s.t.Helper()
	s.sent++
	res, err := s.submit(ctx, "10.2.0.9", fields)
	if err != nil || !res.Accepted() {
		s.t.Errorf("message %d was refused: %v, %v", s.sent, res.Verdict(), err)
	}
	return res
}

// submit sends a message, numbered by sent, from an address.
func (s *site) submit(ctx context.Context, addr, fields string) (lab.Result, error) {
	data := fmt.Sprintf("%sFrom: Scanner <mfp3@floor.local>\r\nTo: <a@fabrikam.com>\r\nMessage-ID: <%d@floor.local>\r\nSubject: scan\r\n\r\nhello\r\n", fields, s.sent)
	return lab.Send(ctx, smtpd, lab.Mail{XClient: lab.XClient{Addr: addr, Name: "mfp3.local"}, From: "mfp3@floor.local", To: []string{"a@fabrikam.com"}, Data: []byte(data)})
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

// upgrade installs the new version while mail flows: both services are new, and the sockets, in which
// connections wait meanwhile, are those that were.
func (s *site) upgrade() {
	s.t.Helper()
	was := s.invocations()
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
	s.sh("dpkg -i " + debPath(newVersion))
	during := s.invocations()
	time.Sleep(time.Second) // some more mail through the new ones
	stop.Store(true)
	flow.Wait()
	for _, unit := range units {
		if service := strings.HasSuffix(unit, ".service"); service == (was[unit] == during[unit]) {
			s.t.Errorf("%s: the invocation before the upgrade is %s, after it %s", unit, was[unit], during[unit])
		}
	}
	s.wantActive("active", units...)
	if s.sent == already {
		s.t.Error("no mail came during the upgrade")
	}
	s.t.Logf("%d messages came during the upgrade", s.sent-already)
	s.wait(s.sent)
	want(s.t, "the version after the upgrade", s.sh("sendas version"), "sendas "+newVersion+"\n")
	want(s.t, "the version that runs", s.logged("ready", "--identifier=sendas-milter --lines=1"), "version="+newVersion)
	want(s.t, "the configuration after the upgrade", s.read("/etc/sendas/sendas.yaml"), "client_id: "+clientID)
}

// invocations tell one run of a unit from the next.
func (d *debian) invocations() map[string]string {
	d.t.Helper()
	ids := make(map[string]string)
	for _, unit := range units {
		ids[unit] = d.show(unit, "InvocationID")
	}
	return ids
}

// TestLintian: what a newer Debian has against the package. That of this host is asked in the tests of
// the package.
func TestLintian(t *testing.T) {
	d := newDebian(t, newerSuite, "lintian")
	d.add(build(t, newVersion), debPath(newVersion))
	said, err := d.try("lintian --no-cfg --allow-root --fail-on error,warning,override --tag-display-limit 0 " + debPath(newVersion))
	if err != nil || strings.TrimSpace(said) != "" {
		t.Errorf("%s says: %v\n%s", strings.TrimSpace(d.sh("lintian --version")), err, said)
	}
}
