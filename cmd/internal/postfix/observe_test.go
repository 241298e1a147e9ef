package postfix

import (
	"strings"
	"testing"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/finding"
)

// TestWatcher: a milter that only looks is good where nobody depends on it, beside milters of others
// and with an old protocol for them.
func TestWatcher(t *testing.T) {
	const at, options = "unix:sendas/milter", "connect_timeout=2s, command_timeout=3s, content_timeout=5s, default_action=accept }"
	for _, tc := range []struct {
		now, protocol string
		good          bool
		want          string
	}{
		{"", "6", false, "{ " + at + ", " + options},
		{"inet:127.0.0.1:8892", "6", false, "{ " + at + ", " + options + ", inet:127.0.0.1:8892"},
		{at, "6", false, "{ " + at + ", " + options},
		{"inet:127.0.0.1:8892, { " + at + ", default_action=tempfail }", "6", false, "{ " + at + ", " + options + ", inet:127.0.0.1:8892"},
		{"{ " + at + ", default_action=accept }, inet:127.0.0.1:8892", "6", true, ""},
		{"{ " + at + ", default_action=accept }", "2", false, "{ " + at + ", protocol=6, " + options},
		{"{ " + at + ", protocol=6, default_action=accept }", "2", true, ""},
		{"{ unix:elsewhere/milter, default_action=accept }", "6", false, "{ " + at + ", " + options + ", { unix:elsewhere/milter, default_action=accept }"},
	} {
		c := config.Default()
		c.Milter.Mode = "observe"
		p := &Setup{Config: c, Main: map[string]string{"queue_directory": "/var/spool/postfix", "smtpd_milters": tc.now, "milter_protocol": tc.protocol}}
		if good := judgeWatcher(tc.now, p) == finding.OK; good != tc.good {
			t.Errorf("%q with protocol %s is good: %v", tc.now, tc.protocol, good)
		}
		if tc.good {
			continue
		}
		got := p.fill("{watcher}")
		if tc.now != "" {
			got, _ = mergeMilter(p, tc.now, got)
		}
		if got != tc.want || judgeWatcher(got, p) != finding.OK {
			t.Errorf("%q becomes\n %s, want\n %s", tc.now, got, tc.want)
		}
	}
}

// TestLeftAlone: what leads mail to a transport of sendas is found, however it is written.
func TestLeftAlone(t *testing.T) {
	p := &Setup{Config: config.Default(), Main: map[string]string{"queue_directory": "/var/spool/postfix"}, Transports: []*entry{{name: "sendas"}}}
	for value, good := range map[string]bool{
		"": true, "smtp": true, "smtp:[mail.fabrikam.com]": true, "hash:/etc/postfix/senders": true, "sendas-other:x": true, "inline:{ {a@b.c = smtp:[sendas]} }": true,
		"sendas": false, "sendas:[smtp.office365.com]:587": false, "hash:/x, inline:{ {a@b.c = smtp:}, {scan@contoso.com = sendas:[smtp.office365.com]:587} }": false,
		"socketmap:unix:sendas/credentials:transport": false,
	} {
		if got := judgeLeft(value, p) == finding.OK; got != good {
			t.Errorf("%q leaves mail alone: %v", value, got)
		}
	}
	if p.Config.Milter.Mode = "observe"; !strings.HasSuffix(p.enable(), "enable --observe") {
		t.Errorf("the command is %q", p.enable())
	}
}
