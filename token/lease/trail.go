package lease

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/token/entra"

	"github.com/sendas/sendas/token/lease/replies"
)

// A Trail is how far one attempt to send has come, from the look-up of its credential to Exchange
// Online's answer, with the moment of each station; nil is a station that was not reached. "sendas
// doctor --send-to" follows a message by it. It holds no recipient and no token.
type Trail struct {
	PID        int32      `json:"pid"`     // of smtp(8), by which Postfix's log has the queue id
	Sender     string     `json:"sender"`  // that was asked for
	Mailbox    string     `json:"mailbox"` // "" before there is a lease
	Asked      time.Time  `json:"asked"`   // when smtp(8) asked for the credential
	Leased     *time.Time `json:"leased"`
	SignedIn   *time.Time `json:"signed_in"`
	Mail       *time.Time `json:"mail"` // when MAIL was accepted
	Rcpt       *time.Time `json:"rcpt"` // when the last recipient so far was
	Kept       *time.Time `json:"kept"` // since when the message waits at DATA for its place in the minute; nil while it does not
	Data       *time.Time `json:"data"`
	Ended      *time.Time `json:"ended"`      // with an answer or without
	Recipients int        `json:"recipients"` // accepted
	Reply      string     `json:"reply"`      // that decided, or the last refusal; "" while there is none
	Stage      Stage      `json:"stage"`      // at which Reply came
	Accepted   bool       `json:"accepted"`   // Exchange Online has the message
	Why        string     `json:"why"`        // there is no lease; "" where there is one, or the look-up waits
}

// maxTrails is how many attempts are remembered, and maxTrailsTold how many of a sender are told.
const (
	maxTrails     = 200
	maxTrailsTold = 20
)

// beginTrail notes that a process asked for a sender's credential.
func (l *Lessor) beginTrail(c Caller, sender string, asked time.Time) *Trail {
	t := &Trail{PID: c.PID, Sender: sender, Asked: asked.Round(0)}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.trails) >= maxTrails {
		l.trails = slices.Delete(l.trails, 0, len(l.trails)-maxTrails+1)
	}
	l.trails = append(l.trails, t)
	return t
}

// endTrail notes why a look-up brought no lease.
func (l *Lessor) endTrail(t *Trail, why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t.Why, t.Ended = entra.OneLine(why, entra.MaxText), now()
}

func now() *time.Time {
	t := time.Now().Round(0)
	return &t
}

// leased notes that the session got its lease. The caller holds the lock.
func (t *Trail) leased(mailbox string) {
	if t != nil {
		t.Mailbox, t.Leased = mailbox, now()
	}
}

// follow notes what a reply changed in the session. The caller holds the lock; a session that was
// taken over from an earlier process has no trail.
func (t *Trail) follow(before, s *session, r *refusal, e event) {
	if t == nil {
		return
	}
	if s.stage != before.stage {
		switch s.stage {
		case atMail:
			t.SignedIn = now()
		case atRcpt:
			t.Mail = now()
		case atData:
			t.Data = now()
		}
	}
	if s.accepted != before.accepted {
		t.Rcpt, t.Recipients = now(), s.accepted
	}
	if e.verdict || e.denies {
		t.Reply, t.Stage = entra.OneLine(r.line, entra.MaxText), r.stage
	}
	if e.verdict {
		t.Accepted = e.what.Class == replies.Accepted
	}
}

// kept notes that the message waits for its place, or no longer. The caller holds the lock.
func (t *Trail) kept(waits bool) {
	if t == nil {
		return
	}
	if t.Kept = nil; waits {
		t.Kept = now()
	}
}

// end notes that nothing more comes. The caller holds the lock.
func (t *Trail) end() {
	if t != nil {
		t.Ended = now()
	}
}

// Trails answers the map "trails": the key is an envelope sender, the value a list of [Trail] in
// JSON, the newest first.
func (l *Lessor) Trails(_ context.Context, _ Caller, sender string) Result {
	list := []Trail{}
	l.mu.Lock()
	for _, t := range slices.Backward(l.trails) {
		if strings.EqualFold(t.Sender, sender) && len(list) < maxTrailsTold {
			list = append(list, *t)
		}
	}
	l.mu.Unlock()
	text, err := json.Marshal(list)
	if err != nil {
		return Result{Status: Temp, Value: err.Error()}
	}
	return Result{Status: OK, Value: string(text)}
}
