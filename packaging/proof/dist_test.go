//go:build packagetest

package proof

import (
	"strings"
	"testing"

	"github.com/sendas/sendas/contrib/exosim"
)

// TestDistUpgrade makes a Debian 12 with sendas a Debian 13 while mail waits for Microsoft: it leaves
// afterwards, once, and sendas says what the newer Postfix needs.
func TestDistUpgrade(t *testing.T) {
	const upgrade = "apt-get dist-upgrade " + aptly
	d := booted(t, suites[0], func(d *debian) {
		d.sh("sed -i s/" + suites[0] + "/" + newerSuite + "/g /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null || true; grep -rq " + newerSuite + " /etc/apt/sources.list*")
		d.sh("apt-get update -q; " + upgrade + "--download-only")
	})
	if d == nil {
		return
	}
	s := newSite(t, d)
	s.setUpPostfix()
	was := d.sh("postconf -dh mail_version")
	d.sh("dpkg -i " + debPath(newVersion))
	s.configure()
	s.sh(startBoth)
	s.sh("sendas postfix enable")
	s.send(3)
	s.wait(3)
	if err := s.exosim.SetFaults(exosim.Faults{SMTPFaults: exosim.SMTPFaults{RefuseConnect: true}}); err != nil {
		t.Fatal(err)
	}
	s.send(5)
	before := s.invocations()

	d.sh(upgrade + "--no-download")
	now := d.sh("postconf -dh mail_version")
	t.Logf("from Postfix %s to %s, %s", strings.TrimSpace(was), now, d.sh("systemctl --version | head -n 1"))
	if now == was {
		t.Error("it is the Postfix that it was")
	}
	s.wantActive("active", append(units, "postfix.service")...)
	for unit, id := range s.invocations() {
		if id != before[unit] {
			t.Logf("%s was started again", unit)
		}
	}
	if waiting := strings.Count(d.sh("postqueue -j"), "\n"); waiting != 5 {
		t.Errorf("%d messages wait, want 5", waiting)
	}
	cure := s.doctorsCure()
	want(t, "what enable says", d.sh("sendas postfix enable"), "main.cf: tls_required_enable = no (was not set)\n")
	if said, _ := s.try("sendas doctor"); strings.Contains(said, cure) {
		t.Errorf("after enable the doctor still wants %s:\n%s", cure, said)
	}
	want(t, "what enable says the second time", d.sh("sendas postfix enable"), "nothing to change")

	if err := s.exosim.SetFaults(exosim.Faults{}); err != nil {
		t.Fatal(err)
	}
	d.sh("postqueue -f")
	s.wait(8)
	s.send(1)
	s.wait(9)
	d.sh("sendas postfix disable")
	if left := d.sh("grep -n sendas /etc/postfix/main.cf /etc/postfix/master.cf || true"); left != "" {
		t.Errorf("Postfix's files still have\n%s", left)
	}
}
