package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sendas/sendas/internal/record"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/lease/replies"
	"github.com/sendas/sendas/token/ledger"
)

const (
	// maxWait bounds a look-up: Postfix gives up after 100 s, and a process that waits holds
	// a connection open.
	maxWait = 55 * time.Second
	// maxSession is when a lease whose session nobody saw end is taken back. Postfix waits at
	// most smtp_data_done_timeout (600 s) for a verdict.
	maxSession = 15 * time.Minute
	// sweepEvery is how often sessions whose process has gone are looked for.
	sweepEvery = time.Second
)

// Tokens gives the token of one credential; [Refresher] is one.
type Tokens interface {
	entra.Source
	// Discard tells that a server refused the token.
	Discard(access entra.Secret)
}

// A Mailbox is how a mailbox may be used.
type Mailbox struct {
	Address string // the user= of XOAUTH2, and the ledger's key
	Label   string // what the configuration calls it: the address, or a pattern that holds for many
	Limits  limit.Allowance
	Tokens  Tokens
	// MinLife is the life that a token must have left where the submission host refuses others:
	// High Volume Email answers "501 5.5.127 … Token will expire soon error" below ten minutes. 0
	// is any.
	MinLife time.Duration
}

// made reports whether the address was made from a pattern: whether there is such a mailbox, nobody
// has said.
func (m *Mailbox) made() bool { return m.Address != m.Label }

// Directory knows the configuration. It must be safe for
// concurrent use and not change; a new configuration is a new Directory.
type Directory interface {
	// Mailboxes returns the mailboxes for the envelope sender, none when none may send as it. More
	// than one are a pool: any of them will do.
	Mailboxes(sender string) []*Mailbox
	// Listed returns the words of the configuration by which a mailbox may send as the envelope
	// sender, "" where none may. It has no more answers than the configuration has lines, twice,
	// and answers its own answers with themselves.
	Listed(sender string) string
	// External reports whether a recipient counts for Microsoft's limits on external recipients. It
	// must not wait for anything.
	External(rcpt string) bool
	// RouteFrom returns transport and next-hop of the way out for an envelope sender, RouteTo those
	// for a recipient. They return "" where Postfix's own settings decide.
	RouteFrom(sender string) string
	RouteTo(rcpt string) string
}

// Lessor answers the look-ups of smtp(8): the map "lease" gives the right to submit one
// message as one mailbox, together with the token; the map "reply" watches what became
// of it. All methods are safe for concurrent use.
type Lessor struct {
	ledger  ledger.Store
	log     *slog.Logger
	metrics *Metrics
	dir     atomic.Pointer[Directory]

	records     *record.Keeper // nil: none; set by Record
	journal     *Journal       // nil: none; set by Adopt
	unjournaled atomic.Bool    // the journal cannot be written

	draining chan struct{} // closed: no more leases
	drain    sync.Once

	mu        sync.Mutex // guards what follows
	sessions  map[int32]*session
	shown     map[int32]time.Time     // by process: the last reply it has shown while it had no lease
	lines     map[string]*line        // by mailbox
	arrived   uint64                  // look-ups so far
	served    map[string]uint64       // by mailbox of a pool: the last look-up that got a lease of it
	proven    map[Tokens]entra.Secret // the token with which the last AUTH succeeded
	verdicts  map[string]Verdict      // the last of each mailbox, by label; see Status
	unwritten error                   // why the ledger could not be written at the last attempt; nil: it could
	accepted  map[string]time.Time    // when a message of each mailbox was last accepted, by label
	// refusedLast is the last refusal of each mailbox by label, that of one recipient too; unsigned
	// is that of a session that had not signed in, until the next sign-in.
	refusedLast map[string]Verdict
	unsigned    *Verdict
	preludes    map[int32]prelude // by process, while it has no session here
	denied      denials
	full        map[string]bool        // mailboxes that were full when they last sent
	refusals    map[string]authRefusal // by mailbox
	retried     map[string]time.Time   // when Retry was asked, by label, "" for all; see recall
	trails      []*Trail               // the last attempts, the newest last

	unseenLeases unseenLeases
}

// NewLessor makes the lease desk on a ledger. Call Use before the first look-up, and Run.
func NewLessor(ledger ledger.Store, m *Metrics, log *slog.Logger) *Lessor {
	return &Lessor{ledger: ledger, log: log, metrics: m, draining: make(chan struct{}),
		sessions: make(map[int32]*session), shown: make(map[int32]time.Time), lines: make(map[string]*line), served: make(map[string]uint64), proven: make(map[Tokens]entra.Secret), refusals: make(map[string]authRefusal),
		verdicts: make(map[string]Verdict), accepted: make(map[string]time.Time), refusedLast: make(map[string]Verdict), preludes: make(map[int32]prelude), denied: make(denials), full: make(map[string]bool), retried: make(map[string]time.Time)}
}

// Drain gives no more leases, and waits until all that are out have come back, or until ctx ends.
// Look-ups for a lease stay unanswered from now on, while replies are watched to the end: smtp(8)
// that cannot ask about the verdict of a message that Exchange Online has accepted would send it
// again.
func (l *Lessor) Drain(ctx context.Context) error {
	l.drain.Do(func() { close(l.draining) })
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for n := l.awaited(); n > 0; n = l.awaited() {
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("%d deliveries had not ended in time; Postfix may send their messages again", n)
		}
	}
	return nil
}

// Use puts a directory into force.
func (l *Lessor) Use(d Directory) {
	l.dir.Store(&d)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.denied.keep(d)
}

// Maps returns the socketmap names and what answers them.
func (l *Lessor) Maps() map[string]Map {
	return map[string]Map{"lease": l.Lease, "reply": l.Reply, "transport": l.Transport, "route": l.Route, "recipient": l.Recipient}
}

// AdminMaps are the maps for the administrator, as Maps for Postfix.
func (l *Lessor) AdminMaps() map[string]Map {
	return map[string]Map{"retry": l.Retry, "trails": l.Trails}
}

// Transport answers the map "transport" (sender_dependent_default_transport_maps): the key is the
// envelope sender, "<>" for none. smtpd(8) asks with "<>" for every recipient, so that one must
// never fail.
func (l *Lessor) Transport(_ context.Context, _ Caller, key string) Result {
	return found((*l.dir.Load()).RouteFrom(key))
}

// Route answers the map "route" (transport_maps): the key is a recipient, then its domain
// and wider patterns, of which only the first is of use.
func (l *Lessor) Route(_ context.Context, _ Caller, key string) Result {
	if strings.LastIndexByte(key, '@') <= 0 {
		return Result{Status: NotFound}
	}
	return found((*l.dir.Load()).RouteTo(key))
}

func found(value string) Result {
	if value == "" {
		return Result{Status: NotFound}
	}
	return Result{Status: OK, Value: value}
}

// Run takes back the leases of sessions that ended unseen, until ctx ends.
func (l *Lessor) Run(ctx context.Context) {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			l.sweep(ctx, now)
		}
	}
}

// Lease answers the map "lease" (smtp_sasl_password_maps). The key is the envelope sender;
// smtp(8) then also asks for the server's name, which is nobody's key here.
func (l *Lessor) Lease(ctx context.Context, c Caller, key string) Result {
	began := time.Now()
	if strings.LastIndexByte(key, '@') <= 0 { // a host, a next-hop, or "@domain"
		if !l.without(c.PID) { // no address was asked for: the null sender
			l.end(ctx, c, "")
			l.enter(c, &session{began: began})
		}
		return Result{Status: NotFound}
	}
	l.end(ctx, c, "")
	trail := l.beginTrail(c, key, began)
	mailboxes := (*l.dir.Load()).Mailboxes(key)
	if len(mailboxes) == 0 {
		l.endTrail(trail, "no mailbox may send as the envelope sender")
		l.enter(c, &session{sender: key, began: began})
		l.recordDenied(c, key, began, nil, nil)
		l.metrics.lookups.WithLabelValues("", "unknown-sender").Inc()
		l.log.Warn("no mailbox may send as the envelope sender; its mail waits in the queue",
			"sender", key, "hint", "did the message pass the milter? else list the sender under send_as: of a mailbox")
		return Result{Status: NotFound}
	}
	waiting, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	s, m, err := l.offered(waiting, key, mailboxes, l.aheadOf(c))
	if errors.Is(err, errDraining) {
		<-ctx.Done() // the server stops: the next process answers
	}
	if err != nil {
		if ctx.Err() != nil {
			return Result{Status: Temp, Value: "the token service is stopping"} // never sent
		}
		l.endTrail(trail, err.Error())
		l.recordDenied(c, key, began, m, err)
		l.metrics.lookups.WithLabelValues(m.Label, "deferred").Inc()
		attrs := []any{"mailbox", m.Address, "sender", key, "error", err}
		if held, ok := errors.AsType[*heldError](err); ok {
			attrs = append(attrs, "hint", held.Hint())
		}
		l.log.Warn("look-up deferred", attrs...)
		return Result{Status: Temp, Value: brief(m.Address, err)}
	}
	s.sender, s.began, s.waited, s.trail = key, began, time.Since(began), trail
	if l.journal != nil {
		s.born = processBorn(c.PID)
	}
	l.enter(c, s)
	l.metrics.leased(s.label, s.waited)
	return Result{Status: OK, Value: s.mailbox + ":" + string(s.access)}
}

// offered is grant, of the mailboxes to which the sender's mail may be offered.
func (l *Lessor) offered(ctx context.Context, sender string, mailboxes []*Mailbox, ahead time.Duration) (*session, *Mailbox, error) {
	free, tries, err := l.offer(ctx, sender, mailboxes)
	if err != nil {
		return nil, mailboxes[0], err
	}
	s, m, err := l.grant(ctx, free, ahead)
	if len(tries) > 0 {
		got := ""
		if s != nil {
			got = s.mailbox
		}
		l.giveUp(tries, got)
	}
	return s, m, err
}

// errDraining ends a wait because the service stops.
var errDraining = errors.New("the token service is stopping")

// tooLong words a wait that a look-up cannot sit out.
func tooLong(m *Mailbox, a ledger.Answer) *waitError {
	what := map[ledger.Cause]string{
		ledger.CauseMessages:    "its " + m.Limits.Messages.String() + " messages are used up",
		ledger.CauseRecipients:  "its " + m.Limits.Recipients.String() + " recipients are used up",
		ledger.CauseConnections: fmt.Sprintf("its %d connections are in use", m.Limits.Connections),
		ledger.CausePaused:      fmt.Sprintf("it rests for %v, %s", a.Wait.Round(time.Second), a.Reason),
		ledger.CauseGroup:       groupUsedUp(m.Limits),
	}
	if a.Reason != "" && a.Cause != ledger.CausePaused { // the ledger knows better
		return &waitError{m.Address, a.Reason}
	}
	return &waitError{m.Address, what[a.Cause]}
}

// A waitError says why a mailbox cannot send now.
type waitError struct{ mailbox, why string }

func (e *waitError) Error() string { return "mailbox " + e.inList() }

// inList says the same behind words about mailboxes.
func (e *waitError) inList() string { return e.mailbox + " cannot send now: " + e.why }

// without reports whether the process's session is one that got no credential for its sender.
func (l *Lessor) without(pid int32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sessions[pid]
	return s != nil && s.mailbox == ""
}

// enter begins the session of a process. Where the process has shown replies before this look-up,
// the banner and the answers to EHLO, it shows all: a session of which nothing more comes has ended
// at AUTH.
func (l *Lessor) enter(c Caller, s *session) {
	s.uid = c.UID
	l.mu.Lock()
	if _, ok := l.shown[c.PID]; ok {
		s.seen = true
		delete(l.shown, c.PID)
	}
	l.sessions[c.PID] = s
	delete(l.preludes, c.PID)
	s.trail.leased(s.mailbox)
	now := *s
	l.mu.Unlock()
	l.note(c.PID, &now)
}

// note keeps the state of a session that has a lease in the journal.
func (l *Lessor) note(pid int32, s *session) {
	if l.journal != nil && s.lease != 0 {
		l.journaled(l.journal.save(pid, s))
	}
}

// Reply answers the map "reply" (smtp_reply_filter): it sees each line the server sends. It leaves
// all of them as they are but for three: a permanent code that only means "later", the refusal of a
// sender for whom there was no credential, which must not bounce, and a line with the token that
// smtp(8) would show. The code of a reply that said yes is never changed. The answer to the one that
// lets a message begin comes when it may.
func (l *Lessor) Reply(ctx context.Context, c Caller, line string) Result {
	l.mu.Lock()
	s := l.sessions[c.PID]
	shown := s.shows(line)
	l.mu.Unlock()
	if !l.keepBack(ctx, c, line) {
		return Result{Status: Temp, Value: "the token service is stopping"} // never sent
	}
	clean := s.hide(line)
	r := l.watch(ctx, c, clean)
	if r.Status == NotFound && clean != line && shown {
		return Result{Status: OK, Value: clean}
	}
	return r
}

// watch follows the process's session by a line that holds no token.
func (l *Lessor) watch(ctx context.Context, c Caller, line string) Result {
	banner := strings.HasPrefix(line, "220") && !strings.HasPrefix(line, "220 2.0.0")
	l.mu.Lock()
	s := l.sessions[c.PID]
	if s == nil || s.stage == atVerdict || banner {
		l.showsLocked(c.PID)
		if s != nil && s.stage != atVerdict {
			s.seen = true
		}
		l.mu.Unlock()
		if banner { // the session before it ended unseen
			l.end(ctx, c, "")
		}
		l.before(c.PID, line)
		return Result{Status: NotFound}
	}
	s.seen = true
	x := replies.Line(line)
	if s.mailbox == "" {
		l.mu.Unlock()
		return l.withoutCredential(s, line, x)
	}
	before, stage := *s, s.waitsFor()
	if x.Class == replies.SendAs && l.heldLocked(s) { // all mail of the sender waits, so this message too
		x.Postpone()
	}
	e := s.reply(line, x)
	x = e.what
	r, news := &refusal{stage, line, x}, false
	if e.denies {
		news = s.refused.add(r)
	}
	s.trail.follow(&before, s, r, e)
	now := *s
	if e.authenticated {
		l.proven[s.tokens] = s.access
		l.unsigned = nil
		l.metrics.auth.WithLabelValues(s.label, resultAuthOK).Inc()
	}
	l.mu.Unlock()
	if now.stage != before.stage || now.accepted != before.accepted {
		l.note(c.PID, &now)
	}
	if e.refused {
		l.metrics.auth.WithLabelValues(s.label, string(x.Class)).Inc()
		l.refused(s, x)
	}
	if e.denies {
		l.recipientRefused(c.PID, s, r, news)
	}
	if e.rests {
		l.noteVerdict(s, x)
		l.rest(s, x)
	}
	if e.verdict {
		l.verdict(c, s, r)
	}
	if e.later != "" {
		text := strings.TrimSpace(strings.TrimLeft(line[3:], "- 0123456789."))
		return Result{Status: OK, Value: likeLine(e.later+text, line)}
	}
	return Result{Status: NotFound}
}

// withoutCredential handles the session of a sender that no mailbox may send as: Microsoft's
// permanent refusal at MAIL FROM becomes a temporary one, so that the message waits
// for the administrator instead of bouncing.
func (l *Lessor) withoutCredential(s *session, line string, x replies.Explanation) Result {
	if x.Class != replies.NoAuth {
		return Result{Status: NotFound}
	}
	l.metrics.refused("", StageMAIL, x.Class)
	return Result{Status: OK, Value: likeLine(entra.OneLine("450 4.7.1 sendas: no mailbox may send as <"+s.sender+">: "+line, entra.MaxText), line)}
}

// likeLine makes a replacement of one line of a reply continue or end the reply as that line
// did (RFC 5321, section 4.2.1); else smtp(8) would take the rest for the next reply.
func likeLine(text, line string) string {
	if len(line) > 3 && line[3] == '-' {
		return text[:3] + "-" + text[4:]
	}
	return text
}

// verdict books what became of the message, by the reply and what it means.
func (l *Lessor) verdict(c Caller, s *session, r *refusal) {
	if r.Class != replies.Accepted {
		l.noteRefusal(s.label, &refusal{r.stage, r.line, l.named(s, r.Explanation)})
	}
	l.tell(c.PID, s, r)
	l.rest(s, r.Explanation)
	l.end(context.Background(), c, r.Class)
}

// tell counts and logs the reply that decided about a message.
func (l *Lessor) tell(pid int32, s *session, r *refusal) {
	l.recordEnd(pid, s, r)
	l.metrics.verdict(s.label, code(r.line), r.Class)
	l.noteVerdict(s, r.Explanation)
	attrs := s.attrs(pid, r.Class, entra.OneLine(r.line, entra.MaxText))
	if s.refused.n > 0 {
		attrs = append(attrs, "refused", s.refused.n)
	}
	if r.Class == replies.Accepted {
		l.log.Info("delivery", attrs...)
	} else {
		l.log.Warn("delivery", append(attrs, "stage", r.stage, "hint", r.For(s.mailbox, s.sender).Hint())...)
	}
}

// ClassUnseen is the class of a delivery in the log whose verdict never came, because the connection
// broke.
const ClassUnseen replies.Class = record.Unseen

// unseen tells of a delivery without a verdict: in the log, and where no reply was shown at all, in
// what the service says of itself.
func (l *Lessor) unseen(c Caller, s *session, o ledger.Outcome) {
	if !s.seen {
		s.accepted = o.Recipients // for all that anybody knows
	}
	l.recordEnd(c.PID, s, nil)
	attrs := s.attrs(c.PID, ClassUnseen, "")
	switch {
	case !s.seen:
		l.noteUnseen(c, s, o.Recipients)
		l.log.Info("delivery", append(attrs, "hint", "no reply was shown, so it counts as sent")...)
	case o.Submitted:
		l.metrics.unseen(s.label, true)
		l.log.Warn("delivery", append(attrs, "hint", "the connection broke after the message; Postfix sends it again, though Exchange Online may have it")...)
	default:
		l.metrics.unseen(s.label, false)
		l.log.Info("delivery", attrs...)
	}
}

// attrs are what the one log line of every delivery tells. Beside Postfix's own "postfix/smtp[PID]:
// QUEUEID: …" it is found by pid.
func (s *session) attrs(pid int32, class replies.Class, reply string) []any {
	return []any{"pid", pid, "mailbox", s.mailbox, "sender", s.sender, "recipients", s.accepted, "class", class, "reply", reply,
		"waited", (s.waited + s.kept).Round(time.Millisecond), "took", time.Since(s.began).Round(time.Millisecond)}
}

// end closes the session of a process, if it has one, and gives its lease back. class is that of
// the verdict, "" without one.
func (l *Lessor) end(ctx context.Context, c Caller, class replies.Class) {
	l.mu.Lock()
	s := l.sessions[c.PID]
	l.mu.Unlock()
	if s != nil {
		l.endOf(ctx, c, s, class, false)
	}
}

// endOf closes one session, if it is still the one of the process. It may go on all the same, where
// nobody saw it end.
func (l *Lessor) endOf(ctx context.Context, c Caller, s *session, class replies.Class, goesOn bool) {
	l.mu.Lock()
	if l.sessions[c.PID] != s {
		l.mu.Unlock()
		return
	}
	delete(l.sessions, c.PID)
	s.trail.end()
	if s.lease == 0 || s.stage == atVerdict {
		l.mu.Unlock()
		return
	}
	o, decided := s.lostOutcome(goesOn), s.decided()
	if class != "" {
		o = s.outcome(class)
	}
	s.stage = atVerdict
	l.mu.Unlock()
	switch {
	case class == "" && decided == nil:
		l.unseen(c, s, o)
		l.noteDenial(s, ClassUnseen)
	case class == "":
		l.tell(c.PID, s, decided)
	}
	l.settle(context.WithoutCancel(ctx), s.mailbox, s.lease, o)
	if l.journal != nil {
		l.journaled(l.journal.remove(c.PID))
	}
}

// settle returns a lease to the ledger and wakes the first who waits for one.
func (l *Lessor) settle(ctx context.Context, mailbox string, lease uint64, o ledger.Outcome) {
	err := l.ledger.Settle(ctx, mailbox, lease, o, time.Now())
	if err != nil {
		l.metrics.ledgerFailed(ctx, opSettle)
		l.log.Error("booking a delivery", "mailbox", mailbox, "error", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unwritten = err
	if n := l.lines[mailbox]; n != nil {
		n.back++
		n.wakeFirstLocked()
	}
}

// sweep ends the sessions whose process has gone, and those that nobody saw end in all the time
// that Postfix could wait. Where nothing is shown, the connection comes back sooner.
func (l *Lessor) sweep(ctx context.Context, now time.Time) {
	type lost struct {
		c      Caller
		s      *session
		goesOn bool
	}
	var list, silent []lost
	l.mu.Lock()
	for pid, s := range l.sessions {
		x := lost{Caller{PID: pid, UID: s.uid}, s, s.left.IsZero() && !gone(pid)}
		if !x.goesOn && s.left.IsZero() {
			s.left = now
		}
		switch {
		case !x.goesOn && s.stage == atData && now.Sub(s.left) < s.late():
			// Exchange Online has perhaps not decided yet, and counts the message when it does.
		case !x.goesOn, now.Sub(s.began) > maxSession:
			list = append(list, x)
		case s.lease != 0 && !s.seen && !s.released && s.age(now) > unseenSession:
			silent = append(silent, x)
		}
	}
	for pid, at := range l.shown {
		if now.Sub(at) > maxSession || gone(pid) {
			delete(l.shown, pid)
		}
	}
	for pid := range l.preludes {
		if pid > 0 && errors.Is(unix.Kill(int(pid), 0), unix.ESRCH) {
			delete(l.preludes, pid)
		}
	}
	l.mu.Unlock()
	for _, x := range silent {
		l.release(ctx, x.c, x.s)
	}
	for _, x := range list {
		l.endOf(ctx, x.c, x.s, "", x.goesOn)
	}
}

// gone reports whether there is no such process (kill(2) with signal 0). Of those without a number
// nobody knows.
func gone(pid int32) bool { return pid > 0 && errors.Is(unix.Kill(int(pid), 0), unix.ESRCH) }

// Sessions returns how many leases are out, for tests and status.
func (l *Lessor) Sessions() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, s := range l.sessions {
		if s.lease != 0 {
			n++
		}
	}
	return n
}

// code returns the SMTP code of a reply line as a label, never anything else.
func code(line string) string {
	if len(line) < 3 || strings.Trim(line[:3], "0123456789") != "" {
		return "none"
	}
	return line[:3]
}
