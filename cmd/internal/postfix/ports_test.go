package postfix

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendas/sendas/cmd/internal/config/configtest"
)

// TestPorts: where a client of this host finds Postfix, those that ask sendas first.
func TestPorts(t *testing.T) {
	const milters, back = "smtpd_milters=unix:sendas/milter\n", "127.0.0.1:10025 inet n - y - - smtpd -o content_filter= -o smtpd_milters=\n"
	l := newLab(t, configtest.SmallConfig)
	etc := filepath.Join(l.dir, "etc")
	for _, tc := range []struct{ name, interfaces, main, master, want string }{
		{"stock", "all", milters, "smtp inet n - y - - smtpd\n", "127.0.0.1:smtp"},
		{"loopback alone", "loopback-only", milters, "smtp inet n - y - - smtpd\n", "127.0.0.1:smtp"},
		{"an address of its own", "192.0.2.7", milters, "smtp inet n - y - - smtpd\n", "192.0.2.7:smtp"},
		{"and loopback", "192.0.2.7, 127.0.0.1", milters, "smtp inet n - y - - smtpd\n", "127.0.0.1:smtp"},
		{"IPv6", "all", milters + "inet_protocols=ipv6\n", "smtp inet n - y - - smtpd\n", "[::1]:smtp"},
		{"the filter's port is none", "all", milters + "content_filter=smtp:[127.0.0.1]:10024\n", back + "smtp inet n - y - - smtpd\n", "127.0.0.1:smtp"},
		{"who asks sendas comes first", "all", "", "smtp inet n - y - - smtpd\n[::]:2525 inet n - y - - smtpd -o smtpd_milters=unix:sendas/milter\n", "127.0.0.1:2525 127.0.0.1:smtp(no)"},
		{"TLS comes later", "all", milters, "smtps inet n - y - - smtpd -o smtpd_tls_wrappermode=yes\nsmtp inet n - y - - smtpd\n", "127.0.0.1:smtp 127.0.0.1:smtps(TLS)"},
		{"postscreen", "all", milters, "smtp inet n - y - 1 postscreen\nsmtpd pass - - y - - smtpd\n", "127.0.0.1:smtp"},
		{"nothing", "all", milters, "pickup unix n - y 60 1 pickup\n", ""},
	} {
		configtest.WriteFile(t, filepath.Join(etc, "main.cf"), "compatibility_level=3.6\nmyhostname=relay.lan\nqueue_directory="+filepath.Join(l.dir, "queue")+"\n"+tc.main, 0o644)
		configtest.WriteFile(t, filepath.Join(etc, "master.cf"), tc.master, 0o644)
		l.age(t)
		p, err := Read(t.Context(), Run, etc, l.config)
		if err != nil {
			t.Fatal(err)
		}
		p.Main["inet_interfaces"] = tc.interfaces // postconf(1) wants interfaces that this host has
		var got []string
		for _, v := range p.Ports() {
			text := v.Addr
			if v.Wrapped {
				text += "(TLS)"
			}
			if !v.Asks {
				text += "(no)"
			}
			got = append(got, text)
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%s: %v, want %s", tc.name, got, tc.want)
		}
	}
}
