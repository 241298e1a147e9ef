package stops

import (
	"fmt"
	"strconv"

	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/postfix"
)

// mailboxTakes is the size of the largest message, in bytes, that a mailbox of Exchange Online sends
// by default (MaxSendSize, 35 MB).
const mailboxTakes = 36700160

// SizeAdvices is about the sizes that Postfix takes.
var SizeAdvices = map[string]finding.Advice{
	"message": {Means: "larger scans are refused here with 552 5.3.4, though a mailbox takes 35 MB; a file grows by a third on its way into a message",
		Do: "{postconf} -e \"message_size_limit = {size}\"{more} && {postfix} reload"},
	"mailbox": {Means: "{program}(8) does not start while {name} is lower than message_size_limit, and all mail that Postfix delivers on this host waits",
		Do: "{postconf} -e \"{name} = 0\" && {postfix} reload, or a number that is not lower"},
}

// mailboxLimits are the settings that must not be lower than message_size_limit, whose they are
// (src/local/local.c, src/virtual/virtual.c), and the list without which that one delivers nothing; 0
// is no limit.
var mailboxLimits = []struct{ name, program, domains string }{{"mailbox_size_limit", "local", "mydestination"}, {"virtual_mailbox_limit", "virtual", "virtual_mailbox_domains"}}

// checkSizes compares Postfix's limits with what a mailbox takes, and with each other. That
// message_size_limit is not too high either, Postfix's own checks say.
func checkSizes(s finding.Section, p *postfix.Setup) {
	const size = "message_size_limit"
	fill := func(key string, more ...string) finding.Advice {
		return SizeAdvices[key].With(append(more, "postconf", p.Command("postconf"), "postfix", p.Command("postfix"))...)
	}
	limit := bytesOf(p, size)
	for _, m := range mailboxLimits {
		if n := bytesOf(p, m.name); n > 0 && (limit == 0 || n < limit) && p.Main[m.domains] != "" {
			s.Warn(m.name, m.name, fmt.Sprintf("%d, and %s is %d", n, size, limit), fill("mailbox", "name", m.name, "program", m.program))
		}
	}
	if limit == 0 || limit >= mailboxTakes {
		s.Ok(size+".low", size, "%d", limit)
		return
	}
	more := "" // what the command would make too low
	for _, m := range mailboxLimits {
		if n := bytesOf(p, m.name); n > 0 && n < mailboxTakes {
			more += fmt.Sprintf(" \"%s = %d\"", m.name, mailboxTakes)
		}
	}
	s.Warn(size+".low", size, strconv.Itoa(limit), fill("message", "size", strconv.Itoa(mailboxTakes), "more", more))
}

// bytesOf reads a size; 0 is no limit.
func bytesOf(p *postfix.Setup, name string) int {
	n, _ := strconv.Atoi(p.Main[name])
	return n
}
