package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/token/lease"
)

// unseenAdvice is about leases of which no reply was shown.
var unseenAdvice = map[string]finding.Advice{
	"unseen": {Means: "each counts as sent with {recipients} recipients, since nobody knows better: that leaves {messages}",
		Do: "give the transport smtp_reply_filter, in main.cf or where master.cf overrides it (the checks of Postfix above name the command); " +
			"where an MTA has nothing of the kind and sends to one recipient at a time, write recipients_unseen: 1 below token: in sendas.yaml"},
}

// checkReplies asks the token service whether Postfix shows what Exchange Online answers.
func (d *Walk) checkReplies(ctx context.Context, s finding.Section, c *config.Site) {
	if c.Token.HTTP == "" {
		return // said already
	}
	client := &http.Client{Timeout: socketTime, Transport: &http.Transport{DialContext: d.dial, DisableKeepAlives: true}}
	raw, err := service.Fetch(ctx, client, c.Token.HTTP, "/status")
	var status struct {
		Unseen *lease.UnseenStatus `json:"replies_unseen"`
	}
	if err != nil || json.Unmarshal(raw, &status) != nil {
		return // said already: it is down, or somebody else
	}
	const id, what = "replies", "replies of Exchange Online"
	u := status.Unseen
	if u == nil || !u.Now {
		s.Ok(id, what, "no lease of the last hour was without them")
		return
	}
	s.Fail(id, what, fmt.Sprintf("none was ever shown of %d leases, the last at %s", u.Leases, u.Last.UTC().Format(time.RFC3339)),
		unseenAdvice["unseen"].With("recipients", fmt.Sprint(u.Recipients), "messages", messagesLeft(c, u.Recipients)))
}

// messagesLeft words how many messages a mailbox has of its recipients where each message counts as
// so many; of several mailboxes, that which has least.
func messagesLeft(c *config.Site, recipients int) string {
	least, words := math.Inf(1), "few messages"
	for i := range c.Mailboxes {
		m, r := &c.Mailboxes[i], c.Mailboxes[i].Limits.Recipients
		if r.Unlimited() {
			continue
		}
		n := r.N / max(1, min(recipients, r.N))
		if each := float64(n) / r.Per.Hours(); each < least {
			least, words = each, fmt.Sprintf("%s %d messages in any %v", m.Address, n, r.Per)
			if r.Per == 24*time.Hour {
				words = fmt.Sprintf("%s %d messages a day", m.Address, n)
			}
		}
	}
	return words
}
