package lease

import (
	"context"
	"fmt"

	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/ledger"
)

// Names of limit.Limits.Group. All hosts that share a ledger have to use the same ones.
const (
	// GroupExternal is all mailboxes of the tenant: the tenant external recipient rate limit.
	GroupExternal = "external"
	// GroupOnMicrosoft is all senders at onmicrosoft.com domains, who have a limit of their own.
	GroupOnMicrosoft = "onmicrosoft"
)

// Recipient answers the map "recipient" (smtp_generic_maps): nobody is in it. smtp(8) asks it for
// the envelope sender when it makes the MAIL command and for each recipient when it makes the RCPT
// command, before it reads the replies, so that the session learns who the recipients are. After
// DATA it asks for the addresses in the header. The answer never waits for anything.
func (l *Lessor) Recipient(_ context.Context, c Caller, key string) Result {
	d := *l.dir.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.sessions[c.PID]; s != nil && s.lease != 0 && s.stage < atData {
		s.envelope.look(key, d.External)
	}
	return Result{Status: NotFound}
}

// An envelope is what a session knows of its recipients.
//
// smtp(8) asks once for each address (mail_addr_find.c leaves the forms without extension or local
// part out for a socketmap), for the sender first: the null sender has no lease.
type envelope struct {
	sender   bool   // was asked for
	outside  []bool // of each recipient: whether it counts as external
	replies  int    // to RCPT
	external int    // recipients that were accepted and count as external
}

// look takes one key of the map.
func (e *envelope) look(key string, external func(string) bool) {
	if !e.sender {
		e.sender = true
		return
	}
	e.outside = append(e.outside, external(key))
}

// reply takes the reply to one RCPT: they come in the order of the recipients. A recipient who was
// not seen counts as external, as all do where the map is not configured.
func (e *envelope) reply(accepted bool) {
	if accepted && (e.replies >= len(e.outside) || e.outside[e.replies]) {
		e.external++
	}
	e.replies++
}

// complete is called with all replies in, and how many recipients were accepted. Where there was
// not one question for each reply, because another map answered some of them or a Postfix asks in
// another way, it is not certain which reply was whose: then all count.
func (e *envelope) complete(accepted int) {
	if len(e.outside) != e.replies {
		e.external = accepted
	}
	e.outside = nil
}

// groupUsedUp words that a limit of the tenant stands in the way.
func groupUsedUp(l limit.Allowance) string {
	whose := "the tenant's"
	if l.Group == GroupOnMicrosoft {
		whose = "the onmicrosoft.com senders'"
	}
	left := min(max(ledger.MaxDelivery, l.Unseen), l.GroupRecipients.N)
	return fmt.Sprintf("fewer than %d of %s %s external recipients are left", left, whose, l.GroupRecipients)
}
