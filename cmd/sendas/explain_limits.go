package main

import (
	"fmt"
	"strings"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/milter/quota"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/limit"
)

// answerLimit tells whose limits hold for a message. Its JSON keys are stable.
type answerLimit struct {
	Client     string        `json:"client"`     // "" where it is an identity's
	Identity   string        `json:"identity"`   // the address; "" where it is a client's
	Entry      string        `json:"entry"`      // of identities: that matches, such as "*@contoso.com"
	Messages   []string      `json:"messages"`   // rates
	Recipients []string      `json:"recipients"` // rates
	OnLimit    quota.OnLimit `json:"on_limit"`
}

// limitsFor returns the limits that a message counts for, by the code of the milter. What has been
// used of them, the running milter knows.
func limitsFor(c *config.Site, d *policy.Decision) []answerLimit {
	list := []answerLimit{}
	if d.Action != policy.Accept {
		return list
	}
	q := quota.NewDesk(quota.New())
	q.Use(c.ClientQuotas(), c.IdentityQuotas()...)
	if l, ok := c.ClientQuotas()[d.Client.Name]; ok {
		list = append(list, answerLimit{Client: d.Client.Name, Messages: rateTexts(l.Rates.Messages), Recipients: rateTexts(l.Rates.Recipients), OnLimit: l.OnLimit})
	}
	if l, ok := q.Identity(d.Identity); ok {
		list = append(list, answerLimit{Identity: d.Identity.Key(), Entry: l.Address, Messages: rateTexts(l.Rates.Messages),
			Recipients: rateTexts(l.Rates.Recipients), OnLimit: l.OnLimit})
	}
	return list
}

func rateTexts(list []limit.Rate) []string {
	texts := make([]string, len(list))
	for i, r := range list {
		texts[i] = r.String()
	}
	return texts
}

// String words the limits on one line.
func (l answerLimit) String() string {
	who := fmt.Sprintf("client %q", l.Client)
	if l.Identity != "" {
		who = fmt.Sprintf("identity <%s> (%s)", l.Identity, l.Entry)
	}
	var parts []string
	if len(l.Messages) > 0 {
		parts = append(parts, "messages "+strings.Join(l.Messages, " and "))
	}
	if len(l.Recipients) > 0 {
		parts = append(parts, "recipients "+strings.Join(l.Recipients, " and "))
	}
	return fmt.Sprintf("%s: %s; what is over: %s", who, strings.Join(parts, ", "), l.OnLimit)
}
