package doctor

import (
	"context"
	"io"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/sendas/sendas/cmd/internal/finding"
)

// logTime bounds the search of the log, and logTail, in bytes, how much of a file is read.
const (
	logTime = 3 * time.Second
	logTail = 4 << 20
)

// hasty is what smtpd(8) logs of a client that talks before it is answered.
var hasty = regexp.MustCompile(`improper command pipelining after \S+ from [^ \[]*\[([0-9A-Fa-f.:]+)\]`)

var pipelining = finding.Advice{
	Means: "{client} does not wait for Postfix's answers, and is refused: 554 5.5.0 Error: SMTP protocol synchronization. Postfix 3.9 and newer insist on that",
	Do:    "{set}",
}

// checkPipelining looks whether Postfix has refused a device that does not wait for answers
// (smtpd_forbid_unauth_pipelining), since yesterday. That it may do so is good and the default of
// newer versions, so that only the log tells whether it is in somebody's way.
func (d *Walk) checkPipelining(ctx context.Context, s finding.Section) {
	const name = "smtpd_forbid_unauth_pipelining"
	value := d.postfix.Main[name]
	if value != "yes" || d.config == nil {
		return
	}
	for line := range strings.Lines(d.mailLog(ctx, "improper command pipelining")) {
		if m := hasty.FindStringSubmatch(line); m != nil && d.isClient(m[1]) {
			s.Warn(name, name, value, pipelining.With("client", m[1], "set", d.postfix.Cure(name, "no")))
			return
		}
	}
	s.Ok(name, name, "%s; the log has no client that was refused for it", value)
}

// isClient reports whether an address is in the networks of a client of sendas.yaml.
func (d *Walk) isClient(text string) bool {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return false
	}
	for _, c := range d.config.Clients {
		for _, n := range c.Networks {
			net, err := netip.ParsePrefix(n)
			if one, e := netip.ParseAddr(n); e == nil {
				net, err = netip.PrefixFrom(one, one.BitLen()), nil
			}
			if err == nil && net.Contains(addr.Unmap()) {
				return true
			}
		}
	}
	return false
}

// mailLog returns lines of the mail log that have a text, the newest day of the journal, or what is
// at the end of the file, whatever there is. Where nobody may read it, that is none.
func (d *Walk) mailLog(ctx context.Context, text string) string {
	ctx, cancel := context.WithTimeout(ctx, logTime)
	defer cancel()
	files := []string{d.postfix.Main["maillog_file"]}
	if files[0] == "" {
		out, _, err := d.world.run(ctx, "journalctl", "--quiet", "--no-pager", "--output=cat", "--facility=mail", "--since=-1d", "--lines=1000", "--grep="+text)
		if err == nil && out != "" {
			return out
		}
		files = []string{"/var/log/mail.log", "/var/log/maillog"}
	}
	for _, name := range files {
		if f, err := os.Open(name); err == nil {
			defer f.Close()
			if end, err := f.Seek(0, io.SeekEnd); err == nil {
				f.Seek(max(0, end-logTail), io.SeekStart)
			}
			data, _ := io.ReadAll(io.LimitReader(f, logTail))
			return string(data)
		}
	}
	return ""
}
