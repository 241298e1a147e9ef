package lease

import (
	"errors"
	"time"

	"github.com/sendas/sendas/internal/record"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/lease/replies"
	"github.com/sendas/sendas/token/ledger"
)

// A notNow is why a mailbox can not send in time, with when it can, for all that is known.
type notNow struct {
	error
	cause ledger.Cause
	opens time.Time
}

func (e *notNow) Unwrap() error { return e.error }

// Record keeps each attempt to send from now on. Call it before the first look-up; nil keeps none.
func (l *Lessor) Record(k *record.Keeper) { l.records = k }

// recordDenied keeps a look-up that brought no lease, because of err; m is nil where no mailbox may
// send as the sender.
func (l *Lessor) recordDenied(c Caller, sender string, began time.Time, m *Mailbox, err error) {
	if !l.records.On() {
		return
	}
	a := &record.Attempt{Time: began, PID: c.PID, Sender: sender, Class: record.NoMailbox, Waited: time.Since(began)}
	a.Took = a.Waited
	if m != nil {
		a.Mailbox, a.Class, a.Meaning = m.Address, record.NotNow, entra.OneLine(err.Error(), entra.MaxText)
	}
	if e, ok := errors.AsType[*notNow](err); ok {
		a.For, a.Opens = string(e.cause), e.opens
	}
	l.records.Attempt(a)
}

// waitedFor is what the session waited for longest.
func (s *session) waitedFor() ledger.Cause {
	if s.kept > s.waited || s.kept > 0 && s.cause == "" {
		return ledger.CauseMessages
	}
	return s.cause
}

// recordEnd keeps an attempt that a reply decided, or nothing (nil).
func (l *Lessor) recordEnd(pid int32, s *session, r *refusal) {
	if !l.records.On() {
		return
	}
	a := &record.Attempt{Time: s.began, PID: pid, Sender: s.sender, Mailbox: s.mailbox, Waited: s.waited + s.kept, For: string(s.waitedFor()), Took: time.Since(s.began),
		Class: record.Unseen, Accepted: s.accepted, Refused: s.refused.n}
	if r != nil {
		a.Class, a.Stage, a.Reply, a.Meaning = string(r.Class), string(r.stage), entra.OneLine(r.line, entra.MaxText), r.Hint()
		a.Final = r.When == replies.Never && !r.Later
		if r.Class == replies.Accepted {
			a.MessageID = record.NamedID(r.line)
		}
	}
	l.records.Attempt(a)
}
