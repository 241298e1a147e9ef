package doctor

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/postfix"
)

// A device that Postfix has refused for its haste is named, and nobody else is.
func TestDoctorPipelining(t *testing.T) {
	const (
		device   = "improper command pipelining after CONNECT from unknown[10.2.0.9]: EHLO mfp3\\r\\n\n"
		six      = "improper command pipelining after EHLO from mfp6.local[fd00:2::9]: MAIL FROM:<mfp6>\\r\\n\n"
		single   = "improper command pipelining after MAIL from sap.contoso.com[10.9.0.1]: x\n"
		stranger = "improper command pipelining after CONNECT from unknown[192.0.2.9]: EHLO x from y[10.2.0.9]\n"
		inFile   = "Dec  1 13:00:00 relay postfix/smtpd[77]: connect from unknown[10.2.0.9]\nDec  1 13:00:00 relay postfix/smtpd[77]: "
	)
	file := configtest.WriteFile(t, filepath.Join(t.TempDir(), "mail.log"), inFile+device, 0o600)
	c := &config.Site{Clients: []config.Client{{Networks: []string{"10.2.0.0/16", "fd00:2::/64"}}, {Networks: []string{"10.9.0.1"}}, {Logins: []string{"scanner"}}}}
	for _, tc := range []struct {
		value, file, log string
		status           finding.Status
		client           string
	}{
		{"yes", "", device, finding.Warn, "10.2.0.9"},
		{"yes", "", six, finding.Warn, "fd00:2::9"},
		{"yes", "", stranger + single, finding.Warn, "10.9.0.1"},
		{"yes", file, "", finding.Warn, "10.2.0.9"},
		{"yes", "", stranger, finding.OK, ""},
		{"yes", "", "connect from unknown[10.2.0.9]\n", finding.OK, ""},
		{"yes", file + ".none", device, finding.OK, ""}, // the journal has nothing where Postfix writes a file
		{"no", "", device, "", ""},
		{"", "", device, "", ""}, // an older Postfix
	} {
		w := emptyWorld()
		w.run = func(_ context.Context, name string, args ...string) (string, string, error) {
			if name != "journalctl" || tc.log == "" {
				return "", "", errors.New("nothing")
			}
			return tc.log, "", nil
		}
		d := New(&Options{Json: true}, w)
		d.config, d.postfix = c, &postfix.Setup{Main: map[string]string{"smtpd_forbid_unauth_pipelining": tc.value, "maillog_file": tc.file}}
		d.checkPipelining(t.Context(), d.Section("postfix", "Postfix"))
		switch {
		case tc.status == "":
			if len(d.Checks) > 0 {
				t.Errorf("%q: %v", tc.value, d.Checks)
			}
			continue
		case len(d.Checks) != 1:
			t.Fatalf("%q: %d findings", tc.log, len(d.Checks))
		}
		got := d.Checks[0]
		if got.Status != tc.status || !strings.Contains(got.Means, tc.client) || tc.status == finding.Warn && got.Do != "postconf -e 'smtpd_forbid_unauth_pipelining = no' && postfix reload" {
			t.Errorf("%q in %q: %s, %s, %s, want %s of %q", tc.log, tc.file, got.Status, got.Means, got.Do, tc.status, tc.client)
		}
	}
}
