package main

import (
	"context"
	"encoding/json"
	"net/http"
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
func queueRules(c *config.Site) queue.Rules {
	r := queue.Rules{Socket: c.Milter.QueueSocket, Wait: c.Milter.QueueCeiling, Policy: c.Policy, Explain: explainQueued}
	if r.Wait == 0 {
		return r
	}
	r.Limits = make(map[string]limit.Allowance, len(c.Mailboxes))
	for _, m := range c.Mailboxes {
		r.Limits[m.Address] = m.Limits.Limits()
	}
	if addr := c.Token.HTTP; addr != "" {
		client := service.NewLocalClient()
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
	body, err := service.Fetch(ctx, client, addr, "/status")
	var s lease.Status
	if err != nil || json.Unmarshal(body, &s) != nil {
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
