package lease

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/lease/replies"
	"github.com/sendas/sendas/token/ledger"
)

// How long a mailbox rests after a reply that says "not now", in periods of its message limit (a
// minute).
const (
	// restAfterQuota is for a full or blocked mailbox and for the day's recipients: whoever mends
	// it needs minutes, and when the day's window opens is known to Microsoft alone. The delivery
	// after it is the probe.
	restAfterQuota = 15
	// restAfterThrottle is for a mailbox that Microsoft throttles for what it sent: each delivery
	// that is refused may make it longer, and Microsoft ends it after a day or so.
	restAfterThrottle = 60
	// restAfterAuth is for a refused AUTH, as long as there is no other token. Microsoft's own
	// permission changes take up to two hours to act.
	restAfterAuth = 5
)

// authRefusal is an AUTH that failed.
type authRefusal struct {
	access entra.Secret // with that token
	until  time.Time
	reason string
	made   bool // of a mailbox from a pattern
}

// maxMadeRefusals is how many refusals are remembered of mailboxes that come from a pattern, where
// strangers choose the names. One more is tried again for each message.
const maxMadeRefusals = 1000

// resting reports whether AUTH would fail again, because it just did with the same token.
func (l *Lessor) resting(m *Mailbox, t *entra.Token) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.refusals[m.Address]
	if !ok {
		return nil
	}
	if r.access != t.Access || !time.Now().Before(r.until) {
		delete(l.refusals, m.Address)
		return nil
	}
	return fmt.Errorf("mailbox %s rests for %v: Exchange Online refused AUTH, %s", m.Address, time.Until(r.until).Round(time.Second), r.reason)
}

// refused handles a token or mailbox that the server did not take: the token is thrown away, so
// that one more try is made with a fresh one, and with the same one the mailbox rests.
//
// Where the mailbox comes from a pattern, it is perhaps the mailbox that does not exist: a token
// that was good for another one stays, or a client could take everybody's token away by making up
// senders. Nor is a token to blame where SMTP AUTH is switched off.
//
// A temporary answer says nothing of either.
func (l *Lessor) refused(s *session, why replies.Explanation) {
	if strings.HasPrefix(why.Code, "4") {
		return
	}
	rest := time.Minute
	if m := l.member(s.sender, s.mailbox); m != nil {
		rest = m.Limits.Messages.Per
	}
	l.mu.Lock()
	good := s.made && l.proven[s.tokens] == s.access || why.Class == replies.AuthOff
	if !good {
		delete(l.proven, s.tokens)
	}
	if made := l.forgetRefusalsLocked(time.Now()); !s.made || made < maxMadeRefusals {
		l.refusals[s.mailbox] = authRefusal{s.access, time.Now().Add(restAfterAuth * rest), why.Meaning, s.made}
	}
	l.mu.Unlock()
	if !good {
		s.tokens.Discard(s.access)
	}
}

// forgetRefusalsLocked drops what is over, and returns how many of mailboxes from patterns are
// left. l.mu is held.
func (l *Lessor) forgetRefusalsLocked(now time.Time) (made int) {
	for name, r := range l.refusals {
		if !now.Before(r.until) {
			delete(l.refusals, name)
		} else if r.made {
			made++
		}
	}
	return made
}

// rest pauses a mailbox for which Microsoft said that nothing will leave for a while.
func (l *Lessor) rest(s *session, why replies.Explanation) {
	if why.Pause == "" {
		return
	}
	m := l.member(s.sender, s.mailbox)
	if m == nil {
		return
	}
	now := time.Now()
	rest := time.Duration(restAfterQuota)
	if why.Class == replies.Throttled || l.fullAgain(s, why.Class) {
		rest = restAfterThrottle
	}
	until := now.Add(rest * m.Limits.Messages.Per)
	p := ledger.Pause{Until: until, Class: why.Pause, Reason: why.Meaning}
	if err := l.ledger.Pause(context.Background(), s.mailbox, p, now); err != nil {
		l.metrics.ledgerFailed(context.Background(), opPause)
		l.log.Error("pausing a mailbox", "mailbox", s.mailbox, "error", err)
		return
	}
	l.log.Warn("mailbox paused", "mailbox", s.mailbox, "until", until.Round(time.Second), "reason", why.Meaning, "hint", why.For(s.mailbox, s.sender).Act)
}

// fullAgain reports whether the mailbox was full the last time too, and notes it: one that goes on
// submitting while it is full is throttled, so it tries less often.
func (l *Lessor) fullAgain(s *session, class replies.Class) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.full[s.mailbox]
	if class == replies.Full {
		l.full[s.mailbox] = true
	}
	return was && class == replies.Full
}

// outcome says what to book of a session that was answered. A message is counted from DATA on, also
// when its verdict was a refusal: Microsoft may have counted it.
func (s *session) outcome(class replies.Class) ledger.Outcome {
	o := ledger.Outcome{Submitted: s.stage >= atData, Concurrency: class == replies.Concurrency}
	if class == replies.Accepted {
		o.Recipients, o.GroupRecipients = s.accepted, s.envelope.external
	}
	return o
}
