package lease

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/token/lease/replies"
	"github.com/sendas/sendas/token/ledger"
)

// A Denial counts the messages of one sender that Exchange Online refused because the mailbox has
// no permission to send as it (554 5.2.252 SendAsDenied). The configuration says that it has.
//
// A mailbox that goes on submitting what is denied gets its whole mail refused ("continuous send as
// denied errors"). So after a few denials the mail of that sender is held: Postfix keeps it, and one
// message an hour tries again, or as soon as somebody says so (see [Lessor.Retry]).
type Denial struct {
	Sender string    `json:"sender"` // see Directory.Listed
	Count  int       `json:"count"`  // since the start
	Last   time.Time `json:"last"`
	Held   bool      `json:"held,omitempty"` // its mail waits in the queue
	// NextTry is when one message tries again; nil where none is held.
	NextTry *time.Time `json:"next_try,omitempty"`
}

// maxDenials is how many messages of a sender a mailbox gets refused before the others wait. Until
// then they are returned, so that who sent them learns it.
const maxDenials = 5

// How long the mail of a denied sender is held, in periods of the mailbox's message limit (a
// minute).
const (
	retryDenied    = 60          // until one message tries again
	retryUntold    = 1           // the same where a try brought no answer about the sender
	rememberDenied = 7 * 24 * 60 // until it is forgotten, where nobody sends as it any more
)

// denials are kept by mailbox and sender, both in the words of the configuration: however strangers
// write a sender, and whatever they put behind its plus sign, there are no more of them than it has
// lines, twice.
type denials map[string]map[string]*denial

// denial is what is known of a mailbox and one sender.
type denial struct {
	count  int
	last   time.Time
	next   time.Time // when one message may try again, once it is held
	asked  bool      // the ledger, for what an earlier process knew
	period time.Duration
}

// held reports whether the sender's mail waits.
func (d *denial) held() bool { return d != nil && d.count >= maxDenials }

// pair returns what is known of a mailbox and a sender, made where it is not there.
func (d denials) pair(label, sender string) *denial {
	if d[label] == nil {
		d[label] = make(map[string]*denial)
	}
	if d[label][sender] == nil {
		d[label][sender] = new(denial)
	}
	return d[label][sender]
}

// keep forgets the denials of what a new configuration does not say any more.
func (d denials) keep(dir Directory) {
	for label, senders := range d {
		for sender := range senders {
			is := func(m *Mailbox) bool { return m.Label == label }
			if dir.Listed(sender) != sender || !slices.ContainsFunc(dir.Mailboxes(sender), is) {
				delete(senders, sender)
			}
		}
		if len(senders) == 0 {
			delete(d, label)
		}
	}
}

// of lists the denials of a mailbox by sender.
func (d denials) of(label string) []Denial {
	list := make([]Denial, 0, len(d[label]))
	for sender, x := range d[label] {
		if x.count == 0 {
			continue
		}
		y := Denial{Sender: sender, Count: x.count, Last: *moment(x.last), Held: x.held()}
		if y.Held {
			y.NextTry = moment(x.next)
		}
		list = append(list, y)
	}
	slices.SortFunc(list, func(a, b Denial) int { return strings.Compare(a.Sender, b.Sender) })
	return list
}

// denialKey is what the ledger keeps a denial under: no mailbox has such an address.
func denialKey(mailbox, sender string) string { return "send-as " + mailbox + " " + sender }

// A try is a message that may leave although the mail of its sender is held.
type try struct {
	mailbox string
	pair    *denial
	before  time.Time // what next was
}

// offer returns the mailboxes of a look-up at which its sender is not held. Where one message may
// try again, this is it. With none, the error says why; it is about the first.
func (l *Lessor) offer(ctx context.Context, sender string, mailboxes []*Mailbox) (free []*Mailbox, tries []try, err error) {
	listed := (*l.dir.Load()).Listed(sender)
	if listed == "" {
		return mailboxes, nil, nil
	}
	for _, m := range mailboxes {
		if m.made() { // it sends as itself
			continue
		}
		l.recall(ctx, m, listed)
	}
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range mailboxes {
		x := l.denied[m.Label][listed]
		if m.made() || !x.held() {
			free = append(free, m)
			continue
		}
		if now.Before(x.next) {
			continue
		}
		tries = append(tries, try{m.Address, x, x.next})
		x.next = now.Add(retryDenied * m.Limits.Messages.Per)
		free = append(free, m)
	}
	if len(free) > 0 {
		return free, tries, nil
	}
	m := mailboxes[0]
	return nil, nil, &heldError{m.Address, listed, l.denied[m.Label][listed].count}
}

// giveUp takes back the tries of a look-up that did not get a lease of their mailbox.
func (l *Lessor) giveUp(tries []try, got string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range tries {
		if t.mailbox != got {
			t.pair.next = t.before
		}
	}
}

// A heldError says that the mail of a sender is held.
type heldError struct {
	mailbox, sender string
	count           int
}

// Error begins with the command, since Postfix logs only so much.
func (e *heldError) Error() string {
	return fmt.Sprintf("when Send As is granted, type: sendas retry %s %s (Exchange Online has denied it %d times)", e.mailbox, e.sender, e.count)
}

// Hint says how to grant it.
func (e *heldError) Hint() string {
	return replies.Explanation{Act: replies.GrantSendAs}.For(e.mailbox, e.sender).Act
}

// recallOf is recall for a session that an earlier process has begun.
func (l *Lessor) recallOf(ctx context.Context, s *session) {
	m, listed := l.member(s.sender, s.mailbox), (*l.dir.Load()).Listed(s.sender)
	if m != nil && !m.made() && listed != "" {
		l.recall(ctx, m, listed)
	}
}

// recall asks the ledger, once, whether the sender was held when an earlier process ended.
func (l *Lessor) recall(ctx context.Context, m *Mailbox, sender string) {
	l.mu.Lock()
	asked := l.denied.pair(m.Label, sender).asked
	l.mu.Unlock()
	if asked {
		return
	}
	now := time.Now()
	u, err := l.ledger.Usage(ctx, denialKey(m.Address, sender), m.Limits, now)
	if err != nil {
		l.metrics.ledgerFailed(ctx, opUsage)
		return // the next look-up asks again
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.denied.pair(m.Label, sender)
	x.asked, x.period = true, m.Limits.Messages.Per
	if x.count == 0 && u.PauseClass == ledger.PauseDenied {
		x.count, x.last = maxDenials, u.PausedUntil.Add(-rememberDenied*x.period)
		if x.next = x.last.Add(retryDenied * x.period); l.retried[m.Label].After(x.last) || l.retried[""].After(x.last) {
			x.next = time.Time{}
		}
	}
}

// heldLocked reports whether the mail of a session's sender is held. l.mu is held.
func (l *Lessor) heldLocked(s *session) bool {
	return !s.made && l.denied[s.label][(*l.dir.Load()).Listed(s.sender)].held()
}

// noteDenial counts a denial, and forgets it when Exchange Online has taken a message of that
// sender. A sender without name counts for nothing. It keeps in the ledger what the next process
// has to know.
func (l *Lessor) noteDenial(s *session, class replies.Class) {
	listed := (*l.dir.Load()).Listed(s.sender)
	if s.made || listed == "" { // of a pattern: strangers choose the senders, who are mailboxes of their own
		return
	}
	now := time.Now()
	l.mu.Lock()
	x := l.denied[s.label][listed]
	was := x.held()
	switch {
	case class == replies.SendAs:
		x = l.denied.pair(s.label, listed)
		if s.limits.Messages.Per > 0 {
			x.period = s.limits.Messages.Per
		}
		x.count, x.last, x.next = x.count+1, now, now.Add(retryDenied*x.period)
	case class == replies.Accepted && x != nil:
		x.count = 0
	case was: // nothing was said about the sender
		x.next = now.Add(retryUntold * x.period)
		was = false
	}
	held, remember := x.held(), time.Duration(0)
	if held {
		remember = rememberDenied * x.period
	}
	l.mu.Unlock() // x is others' as well
	switch {
	case class == replies.SendAs && held:
		p := ledger.Pause{Until: now.Add(remember), Class: ledger.PauseDenied, Reason: replies.MayNotSendAs}
		l.keepDenial(s.mailbox, listed, p, now)
		if !was {
			l.log.Warn("sender held", "mailbox", s.mailbox, "sender", listed, "denied", maxDenials,
				"hint", "its mail waits in the queue, and one message an hour tries again; when Send As is granted, type: sendas retry "+s.mailbox+" "+listed)
		}
	case class == replies.Accepted && was:
		l.keepDenial(s.mailbox, listed, ledger.Pause{}, now)
		l.log.Info("sender no longer held", "mailbox", s.mailbox, "sender", listed)
	}
}

// keepDenial writes a denial into the ledger, or takes it away.
func (l *Lessor) keepDenial(mailbox, sender string, p ledger.Pause, now time.Time) {
	if err := l.ledger.Pause(context.Background(), denialKey(mailbox, sender), p, now); err != nil {
		l.metrics.ledgerFailed(context.Background(), opPause)
		l.log.Error("keeping what was denied", "mailbox", mailbox, "sender", sender, "error", err)
	}
}

// TryAgain lets one message of every sender that is held try again now: the permissions have
// changed, perhaps.
func (l *Lessor) TryAgain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.retried[""] = time.Now()
	for _, senders := range l.denied {
		for _, x := range senders {
			x.next = time.Time{}
		}
	}
}

// A Retried is the answer of the map "retry", as JSON.
type Retried struct {
	Senders []string `json:"senders"` // one message of each tries again now
	Rested  bool     `json:"rested"`  // the mailbox rested, and no longer does
	Unknown string   `json:"unknown"` // the address that the configuration does not have; "" for none
}

// Retry answers the map "retry", which is for the administrator: what an answer of Exchange Online
// keeps back is offered again at once. The key is a mailbox, and a sender behind a blank, or none
// for all that the mailbox may send as and the mailbox itself. The answer is a [Retried].
func (l *Lessor) Retry(ctx context.Context, _ Caller, key string) Result {
	mailbox, sender, _ := strings.Cut(key, " ")
	a, err := l.retry(ctx, mailbox, sender)
	if err != nil {
		return Result{Status: Temp, Value: err.Error()}
	}
	text, err := json.Marshal(a)
	if err != nil {
		return Result{Status: Temp, Value: err.Error()}
	}
	return Result{Status: OK, Value: string(text)}
}

func (l *Lessor) retry(ctx context.Context, mailbox, sender string) (*Retried, error) {
	m := l.member(mailbox, mailbox)
	if m == nil {
		return &Retried{Unknown: mailbox}, nil
	}
	mailbox = m.Address // as it is configured: that is what ledger and refusals know it by
	a := &Retried{Senders: []string{}}
	listed := ""
	if sender != "" {
		if listed = (*l.dir.Load()).Listed(sender); listed == "" || l.member(sender, mailbox) == nil {
			return &Retried{Unknown: sender}, nil
		}
		l.recall(ctx, m, listed)
	}
	now := time.Now()
	l.mu.Lock()
	for name, x := range l.denied[m.Label] {
		if x.held() && (sender == "" || name == listed) {
			x.next = time.Time{}
			a.Senders = append(a.Senders, name)
		}
	}
	slices.Sort(a.Senders)
	if sender == "" {
		l.retried[m.Label] = now
		r, refused := l.refusals[mailbox]
		a.Rested = refused && now.Before(r.until)
		delete(l.refusals, mailbox)
	}
	l.mu.Unlock()
	if sender != "" {
		return a, nil
	}
	u, err := l.ledger.Usage(ctx, mailbox, m.Limits, now)
	if err == nil && !u.PausedUntil.IsZero() {
		a.Rested = true
		err = l.ledger.Pause(ctx, mailbox, ledger.Pause{}, now)
	}
	return a, err
}
