package config

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sendas/sendas/milter/quota"
	"github.com/sendas/sendas/policy/address"
)

// identities checks the limits of sender addresses.
func (k *checker) identities() {
	seen := make(map[string]int, len(k.c.Identities))
	for i, x := range k.c.Identities {
		path := "identities[" + strconv.Itoa(i) + "]"
		if key := k.identity(path+".address", x.Address); key != "" {
			if first, taken := seen[key]; taken {
				k.fail(path+".address", "%s is listed at identities[%d] too, and the first one wins; remove one", Clip(x.Address), first)
			} else {
				seen[key] = i
			}
		}
		if len(x.Limits.Messages)+len(x.Limits.Recipients) == 0 {
			k.fail(path+".limits", "an identity is listed for its limits alone; write limits: {messages: 100/h}, or remove the entry")
		}
		if err := quota.Rates(x.Limits).Check(); err != nil {
			k.fail(path+".limits", "%v", err)
		}
		k.onLimit(path, x.OnLimit)
	}
}

// onLimit checks what happens to mail over a limit.
func (k *checker) onLimit(path, action string) {
	if !slices.Contains([]quota.OnLimit{quota.DeferOver, quota.RejectOver, quota.HoldOver}, quota.OnLimit(action)) {
		k.fail(path+".on_limit", "%q is not an action; write defer, reject or hold", Clip(action))
	}
}

// identity checks an address or "*@domain", and returns it in the form in which such are compared,
// "" where it is wrong.
func (k *checker) identity(path, text string) string {
	p, err := address.ParsePattern(text)
	_, domain, ok := strings.Cut(p.String(), "@")
	if err != nil || !ok {
		k.fail(path, "%q is neither an address nor all those of a domain; write billing@contoso.com or \"*@contoso.com\"", Clip(text))
		return ""
	}
	if in := k.c.Policy; in != nil && !slices.Contains(in.Domains(), domain) {
		k.fail(path, "%s is not in a verified domain, so nothing leaves as it; add %s to tenant.domains if the tenant has it", Clip(text), domain)
		return ""
	}
	return p.String()
}

// postfixLifetime is maximal_queue_lifetime: after that Postfix returns mail that has not been
// delivered.
const postfixLifetime = 5 * 24 * time.Hour

// queue checks the ceiling of the queue.
func (k *checker) queue() {
	switch c := k.c.Milter.QueueCeiling; {
	case c > 0 && c < time.Minute:
		k.fail("milter.queue_ceiling", "%v is less than mail needs that waits for nobody; write 1d, or 0 for no ceiling", c)
	case c >= postfixLifetime:
		k.fail("milter.queue_ceiling", "Postfix returns mail after 5 days (maximal_queue_lifetime), so a ceiling that high protects nothing; write 1d")
	}
	if c := k.c.Milter.QueueInterval; c < time.Second || c > 10*time.Minute {
		k.fail("milter.queue_interval", "the queue is read every second at most, and every 10 minutes at least; write 10s")
	}
	if k.c.Milter.QueueSocket == "" && k.c.Milter.QueueCeiling > 0 {
		k.fail("milter.queue_socket", "without it the queue cannot be read; write the path of Postfix's showq socket, or queue_ceiling: 0")
	}
}
