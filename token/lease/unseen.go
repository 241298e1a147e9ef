package lease

import (
	"context"
	"time"

	"github.com/sendas/sendas/token/ledger"
)

const (
	// unseenSession is when a lease of which no reply is shown gives its connection back, where its
	// process neither asks again nor ends: the session is over, most likely, and Postfix hands the
	// next message to another process. The message keeps its place until then.
	unseenSession = 10 * time.Second
	// unseenTold is for how long the status says so after the last such lease.
	unseenTold = time.Hour
	// unseenWarned is how often the log says so.
	unseenWarned = 10 * time.Minute
)

// unseenLeases counts the leases whose peer never showed a reply: its transport lacks
// smtp_reply_filter, or it is not Postfix. Lessor.mu guards it.
type unseenLeases struct {
	count      int // since the start
	untold     int // since the last warning
	recipients int // as which the last one counts
	last       time.Time
	warned     time.Time
}

// UnseenStatus tells of leases of which no reply was ever shown. Each counts as sent, with the
// recipients that one delivery may have.
type UnseenStatus struct {
	Now        bool      `json:"now"`        // there was one in the last hour
	Leases     int       `json:"leases"`     // since the start
	Recipients int       `json:"recipients"` // as which each counts
	Last       time.Time `json:"last"`
}

// lostOutcome says what to book of a session that ended without a verdict, or is no longer waited
// for. A message counts from DATA on: Microsoft may have counted it. So does one of which nothing
// was seen, and one whose session may still be going on.
func (s *session) lostOutcome(goesOn bool) ledger.Outcome {
	all := s.limits.Unseen
	if all == 0 {
		all = ledger.MaxDelivery
	}
	switch {
	case !s.seen:
		return ledger.Outcome{Submitted: true, Recipients: all, GroupRecipients: all}
	case s.stage >= atData:
		return ledger.Outcome{Submitted: true, Recipients: s.accepted, GroupRecipients: s.envelope.external}
	case goesOn:
		all = max(all, s.accepted)
		return ledger.Outcome{Submitted: true, Recipients: all, GroupRecipients: all}
	}
	return ledger.Outcome{}
}

// age is how long ago the lease was given.
func (s *session) age(now time.Time) time.Duration { return now.Sub(s.began.Add(s.waited)) }

// release gives back the connection of a lease of which nothing was shown for so long.
func (l *Lessor) release(ctx context.Context, c Caller, s *session) {
	l.mu.Lock()
	if l.sessions[c.PID] != s || s.seen || s.released { // has come to an end, or shows something after all
		l.mu.Unlock()
		return
	}
	s.released = true
	l.mu.Unlock()
	l.settle(ctx, s.mailbox, s.lease, ledger.Outcome{Open: true})
}

// showsLocked notes that a process shows replies, of a session that has no lease yet. l.mu is held.
func (l *Lessor) showsLocked(pid int32) { l.shown[pid] = time.Now() }

// noteUnseen counts a lease of which no reply was shown, and says so now and then.
func (l *Lessor) noteUnseen(c Caller, s *session, recipients int) {
	now := time.Now()
	l.metrics.silent.WithLabelValues(s.label).Inc()
	l.mu.Lock()
	u := &l.unseenLeases
	u.count, u.untold, u.recipients, u.last = u.count+1, u.untold+1, recipients, now
	untold := u.untold
	warn := now.Sub(u.warned) >= unseenWarned
	if warn {
		u.untold, u.warned = 0, now
	}
	l.mu.Unlock()
	if warn {
		l.log.Warn("no reply was ever shown of leases: each counts as sent", "leases", untold, "recipients", recipients, "pid", c.PID, "uid", c.UID, "mailbox", s.mailbox,
			"hint", `smtp_reply_filter is missing in main.cf or overridden in master.cf: "sendas doctor" says where; for another MTA see token.recipients_unseen`)
	}
}

// unseenStatus describes what was never shown; nil where all was.
func (l *Lessor) unseenStatus(now time.Time) *UnseenStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := &l.unseenLeases
	if u.count == 0 {
		return nil
	}
	return &UnseenStatus{Now: now.Sub(u.last) < unseenTold, Leases: u.count, Recipients: u.recipients, Last: *moment(u.last)}
}

// awaited returns how many leases are out of which a reply can still come.
func (l *Lessor) awaited() int {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, s := range l.sessions {
		if s.lease != 0 && (s.seen || s.age(now) < unseenSession) {
			n++
		}
	}
	return n
}
