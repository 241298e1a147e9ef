package lease

import (
	"strings"
	"time"

	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/lease/replies"
	"github.com/sendas/sendas/token/ledger"
)

// stage is how far an SMTP session has come, as its replies tell.
type stage int

const (
	atAuth    stage = iota // the credential was given; AUTH is not answered
	atMail                 // AUTH succeeded
	atRcpt                 // MAIL was accepted
	atData                 // DATA was accepted: from here Microsoft may count the message
	atVerdict              // the end of DATA, or the session, was answered
)

// session is one SMTP session of one smtp(8) process, from the look-up of its credential on.
// Its replies arrive in the order in which the server sent them, pipelined or not.
type session struct {
	mailbox  string // "" in a session that got no credential
	label    string // the mailbox in metrics
	made     bool   // the mailbox comes from a pattern
	tokens   Tokens // where access came from
	sender   string
	lease    uint64
	limits   limit.Allowance // under which the lease was given
	born     string          // the smtp(8) process, see processBorn
	uid      uint32          // as whom it runs
	seen     bool            // replies of it are shown
	released bool            // its connection was given back because none is
	access   entra.Secret
	began    time.Time
	waited   time.Duration
	due      time.Time     // its message may not begin before
	left     time.Time     // when its process was found gone; zero while it was not
	kept     time.Duration // so long its message was kept back until then
	cause    ledger.Cause  // of the wait, where the ledger had one
	stage    stage
	accepted int // recipients
	envelope envelope
	earlier  replies.Explanation // by the earlier lines of the reply that is coming in; the zero value where none says anything
	rested   bool                // a refused recipient has sent the mailbox to rest
	refused  refusals
	trail    *Trail // nil in a session of an earlier process; Lessor.mu guards it
}

// late is how long Exchange Online may take to decide on a message whose client has gone: a sixth of
// the period, ten seconds of Microsoft's minute, where verdicts take up to three.
func (s *session) late() time.Duration { return s.limits.Messages.Per / 6 }

// hide returns a line without the token that the session was given; s may be nil, where there is no
// session that anybody knows of.
func (s *session) hide(line string) string {
	if s == nil {
		return Hide(line, "", "")
	}
	return Hide(line, s.mailbox, s.access)
}

// shows reports whether smtp(8) shows a line to people: in the queue, in the report that a sender
// gets, and in its log. It does so with a refusal and with the verdict. For any other line it is
// better to let it pass than to replace it: smtp(8) logs both what it replaces and by what. s may be
// nil.
func (s *session) shows(line string) bool {
	return strings.HasPrefix(line, "4") || strings.HasPrefix(line, "5") || s != nil && s.stage == atData && !strings.HasPrefix(line, "3")
}

// event is what a reply line means for the session.
type event struct {
	what    replies.Explanation // by all lines of the reply so far
	later   string              // the beginning of a text that replaces the reply's own
	verdict bool                // the session's fate is known
	denies  bool                // a recipient was refused, or DATA, while others are still to be answered
	rests   bool                // and for what the mailbox is
	refused bool                // AUTH was refused
	// authenticated: AUTH succeeded
	authenticated bool
}

// reply takes one reply line and what it means. Only the last line of a reply moves the session on
// (RFC 5321, section 4.2.1).
func (s *session) reply(line string, x replies.Explanation) event {
	if !x.Known && s.earlier.Known && x.Class != replies.Accepted { // all lines of a reply have the same code
		x = s.earlier
	}
	class := x.Class
	e := event{what: x, later: x.Instead}
	if s.stage == atAuth {
		e.later = "" // Postfix keeps the message (smtp_sasl_auth_soft_bounce)
	}
	if len(line) > 3 && line[3] == '-' {
		s.earlier = x
		return e
	}
	s.earlier = replies.Explanation{}
	if class == replies.Unreadable && !strings.HasPrefix(line, "3") {
		return e
	}
	positive := class == replies.Accepted
	switch s.stage {
	case atAuth:
		switch {
		case strings.HasPrefix(line, "235"):
			s.stage, e.authenticated = atMail, true
		case strings.HasPrefix(line, "334"): // a challenge; the verdict on AUTH follows
		case !positive:
			e.refused, e.verdict = true, true
		}
	case atMail:
		if positive {
			s.stage = atRcpt
		} else {
			e.verdict = true
		}
	case atRcpt:
		switch {
		case strings.HasPrefix(line, "354"):
			s.stage = atData
			s.envelope.complete(s.accepted)
		case positive:
			s.accepted++
			s.envelope.reply(true)
		case class == replies.Busy && strings.HasPrefix(line, "421"): // the server leaves
			e.verdict = true
		default:
			s.envelope.reply(false)
			e.denies = true
			e.rests = x.Pause != "" && !s.rested
			s.rested = s.rested || e.rests
		}
	case atData:
		e.verdict = !strings.HasPrefix(line, "354") // which smtp(8) asks about again where it got no answer
	}
	return e
}
