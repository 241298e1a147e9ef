package lease

import (
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/token/entra"

	"github.com/sendas/sendas/token/lease/replies"
)

// A Stage is how far a session had come when a refusal came.
type Stage string

// The stages; they are label values of sendas_upstream_refusals_total. The first three come before
// the look-up of a credential, so nobody knows for which mailbox they are.
const (
	StageConnect  Stage = "connect"
	StageEHLO     Stage = "ehlo"
	StageSTARTTLS Stage = "starttls"
	StageAUTH     Stage = "auth"
	StageMAIL     Stage = "mail"
	StageRCPT     Stage = "rcpt"
	StageDATA     Stage = "data"
	StageEnd      Stage = "end-of-data"
)

// waitsFor is the command whose reply a session waits for.
func (s *session) waitsFor() Stage {
	switch s.stage {
	case atAuth:
		return StageAUTH
	case atMail:
		return StageMAIL
	case atRcpt:
		if n := len(s.envelope.outside); n > 0 && s.envelope.replies >= n { // each recipient was asked for before its RCPT
			return StageDATA
		}
		return StageRCPT
	}
	return StageEnd
}

// A refusal is a reply that refused something.
type refusal struct {
	stage Stage
	line  string
	replies.Explanation
}

// refusals are those of recipients, and of DATA: the session goes on after them.
type refusals struct {
	n           int
	first, last *refusal
	told        []replies.Class // in the log
}

// add notes a refusal, and reports whether it is the first of its class.
func (r *refusals) add(x *refusal) (news bool) {
	r.n++
	if r.first == nil {
		r.first = x
	}
	r.last = x
	if news = !slices.Contains(r.told, x.Class); news {
		r.told = append(r.told, x.Class)
	}
	return news
}

// decided returns the refusal for which no message was sent, or nil. The last one is that of DATA,
// where some recipient was accepted.
func (s *session) decided() *refusal {
	if s.stage != atRcpt || s.refused.n == 0 {
		return nil
	}
	if s.accepted > 0 {
		return s.refused.last
	}
	return s.refused.first
}

// noteRefusal counts a refusal and keeps it for Status. l.mu is not held.
func (l *Lessor) noteRefusal(label string, r *refusal) {
	l.metrics.refused(label, r.stage, r.Class)
	v := verdictOf(r)
	l.mu.Lock()
	defer l.mu.Unlock()
	if label == "" {
		l.unsigned = &v
		return
	}
	l.refusedLast[label] = v
}

// verdictOf is a refusal as Status has it.
func verdictOf(r *refusal) Verdict {
	return Verdict{Class: r.Class, Code: r.Code, Meaning: r.Hint(), Time: *moment(time.Now()), Stage: r.stage, When: r.When, Of: r.Of}
}

// recipientRefused tells of a refusal after which the session goes on.
func (l *Lessor) recipientRefused(pid int32, s *session, r *refusal, news bool) {
	l.noteRefusal(s.label, &refusal{r.stage, r.line, l.named(s, r.Explanation)})
	if news {
		l.log.Warn("recipient refused", "pid", pid, "mailbox", s.mailbox, "sender", s.sender, "stage", r.stage, "class", r.Class,
			"reply", entra.OneLine(r.line, entra.MaxText), "hint", r.For(s.mailbox, s.sender).Hint())
	}
}

// A prelude is how far the session of a process has come that has not asked for a credential yet.
type prelude int

const (
	preGreeted prelude = iota + 1 // the answer to EHLO comes next
	preHello                      // EHLO was answered: STARTTLS comes next, or the look-up
)

// maxPreludes bounds what is kept of sessions that have not asked for a credential.
const maxPreludes = 2 * maxPeers

// before follows a session up to its look-up, by a line that comes while the process has none. It
// may be a session with another server: only one that greets as Exchange does is followed.
func (l *Lessor) before(pid int32, line string) {
	if len(line) < 3 || len(line) > 3 && line[3] == '-' {
		return
	}
	l.mu.Lock()
	at := l.preludes[pid]
	next, stage := at.after(line)
	if next == 0 {
		delete(l.preludes, pid)
	} else {
		if len(l.preludes) >= maxPreludes {
			clear(l.preludes)
		}
		l.preludes[pid] = next
	}
	l.mu.Unlock()
	if stage == "" {
		return
	}
	r := &refusal{stage, line, replies.Line(line)}
	l.noteRefusal("", r)
	l.log.Warn("session refused before the sign-in", "pid", pid, "stage", stage, "class", r.Class, "reply", entra.OneLine(line, entra.MaxText), "hint", r.Hint())
}

// after returns what a session waits for after the last line of a reply, and which command was
// refused, "" for none.
func (p prelude) after(line string) (prelude, Stage) {
	switch {
	case strings.HasPrefix(line, "220 2.0.0"): // TLS begins, and EHLO comes again
		if p == 0 {
			return 0, ""
		}
		return preGreeted, ""
	case strings.HasPrefix(line, "220") && strings.Contains(line, "Microsoft ESMTP MAIL Service"):
		return preGreeted, ""
	case p == preGreeted && line[0] == '2':
		return preHello, ""
	case line[0] != '4' && line[0] != '5':
		return 0, ""
	case p == preGreeted:
		return preGreeted, StageEHLO // HELO comes next, or nothing
	case p == preHello && slices.Contains([]string{"421", "451", "454", "500", "501", "502", "503"}, line[:3]): // else it may be an answer to MAIL
		return 0, StageSTARTTLS
	case p == 0 && strings.HasPrefix(line, "421"):
		return 0, StageConnect
	}
	return 0, ""
}
