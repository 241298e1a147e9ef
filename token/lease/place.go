package lease

import (
	"context"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sendas/sendas/token/ledger"
)

// ahead is how long before its message may begin a session can get its lease: AUTH, MAIL and RCPT
// take a second or two at Exchange Online, for which the message needs no place in the minute yet.
// The reply that lets the message begin (354) is kept back until then. That is well within the 100 s
// that Postfix waits for an answer, and the 5 minutes that the server waits for a message; the
// connection is one of the mailbox's three all the while.
//
// Only who shows the replies can be kept back, and only where it is known for whose message they are:
// Postfix ends a connection after ten seconds of rest, and a process that has no number here would
// show the rest as somebody else. All others get their lease when their place begins.
//
// When it begins is certain from the lease on, and known here, so that neither the end of this
// process nor that of a shared store changes anything about it.
const ahead = ledger.MaxAhead

// aheadOf returns how long before its message may begin a process may get a lease now.
func (l *Lessor) aheadOf(c Caller) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, shows := l.shown[c.PID]; !shows || c.Nameless || l.unjournaled.Load() { // the next process would not keep it back
		return 0
	}
	return ahead
}

// keepBack waits with the reply that lets the message of a session begin until it may. It returns
// false when ctx has ended before; then nothing has changed. smtp(8) reads nothing else meanwhile,
// whether it has sent DATA together with RCPT (PIPELINING) or after it.
func (l *Lessor) keepBack(ctx context.Context, c Caller, line string) bool {
	l.mu.Lock()
	s, wait := l.sessions[c.PID], time.Duration(0)
	if s.beginsBy(line) {
		wait = min(time.Until(s.due), ahead)
	}
	if wait <= 0 {
		l.mu.Unlock()
		return true
	}
	s.trail.kept(true)
	l.mu.Unlock()
	began := time.Now()
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return false
	}
	l.metrics.kept.Observe(time.Since(began).Seconds())
	l.mu.Lock()
	defer l.mu.Unlock()
	s.trail.kept(false)
	if l.sessions[c.PID] == s { // else its process has gone meanwhile
		s.kept += time.Since(began)
	}
	return true
}

// beginsBy reports whether a line is the reply that lets the session's message begin; s may be nil.
func (s *session) beginsBy(line string) bool {
	return s != nil && s.lease != 0 && s.stage == atRcpt && strings.HasPrefix(line, "354") && (len(line) == 3 || line[3] != '-')
}

// uptime is a clock that nobody sets, and that goes on from one process to the next.
func uptime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // it cannot fail with a clock that is there
	return time.Duration(ts.Nano())
}
