package main

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/milter/queue"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/lease"
	"github.com/sendas/sendas/token/lease/replies"
)

// queueRules returns what the milter needs to watch Postfix's queue, and the ceiling.
func queueRules(c *config.Site, notes queue.Notes) queue.Rules {
	r := queue.Rules{Socket: c.Milter.QueueSocket, Every: c.Milter.QueueInterval, Wait: c.Milter.QueueCeiling, Policy: c.Policy, Explain: explainQueued, Notes: notes}
	client, addr := service.NewLocalClient(), c.Token.HTTP
	if addr != "" {
		r.Proof = func(ctx context.Context) queue.Proof { return leavingNow(ctx, client, addr) }
	}
	if r.Wait == 0 {
		return r
	}
	r.Limits = make(map[string]limit.Allowance, len(c.Mailboxes))
	for _, m := range slices.Concat(c.Mailboxes, c.Accounts()) {
		r.Limits[m.Address] = m.Limits.Limits()
	}
	if addr != "" {
		r.Left = func(ctx context.Context) map[string]int { return recipientsLeft(ctx, client, addr) }
	}
	return r
}

// explainQueued returns the class of an answer that Postfix keeps with a message. Where sendas made a
// temporary answer of a permanent one, that one tells more.
func explainQueued(reply string) string {
	e := replies.Explain(reply)
	if code, text, ok := strings.Cut(reply, " "); ok && e.Class == replies.Temporary && strings.HasPrefix(code, "4") && strings.HasPrefix(text, "4.") {
		if was := replies.Explain("5" + text[1:]); was.Class != replies.Permanent && was.Class != replies.Unreadable {
			return string(was.Class)
		}
	}
	return string(e.Class)
}

// recipientsLeft asks the token service at that address what each mailbox can still send today; nil
// when it does not answer.
func recipientsLeft(ctx context.Context, client *http.Client, addr string) map[string]int {
	s := askTokenService(ctx, client, addr)
	if s == nil {
		return nil
	}
	left := make(map[string]int, len(s.Mailboxes))
	for _, m := range s.Mailboxes {
		if u := m.Recipients; u != nil && u.Window == (24*time.Hour).Seconds() {
			left[m.Mailbox] = u.Left
		}
	}
	return left
}

// askTokenService returns what the token service at that address says, nil when it does not answer.
func askTokenService(ctx context.Context, client *http.Client, addr string) *lease.Status {
	body, err := service.Fetch(ctx, client, addr, "/status")
	s := new(lease.Status)
	if err != nil || json.Unmarshal(body, s) != nil {
		return nil
	}
	return s
}

// leavingNow asks the token service at that address which mail leaves.
func leavingNow(ctx context.Context, client *http.Client, addr string) queue.Proof {
	s := askTokenService(ctx, client, addr)
	if s == nil || s.Started == nil {
		return queue.Proof{}
	}
	p := queue.Proof{Since: *s.Started, Accepted: make(map[string]time.Time), Answered: make(map[string]time.Time), Resting: make(map[string]bool)}
	without := make(map[string]bool)
	for i := range s.Credentials {
		without[s.Credentials[i].Name] = !s.Credentials[i].Token.Live
	}
	for i := range s.Mailboxes {
		m := &s.Mailboxes[i]
		if m.LastAccepted != nil {
			p.Accepted[m.Mailbox] = *m.LastAccepted
		}
		if m.LastVerdict != nil {
			p.Answered[m.Mailbox] = m.LastVerdict.Time
		}
		p.Resting[m.Mailbox] = m.PausedUntil != nil || m.Next != nil || m.Waiting > 0 || without[m.Credential] || s.LedgerError != nil
	}
	return p
}
