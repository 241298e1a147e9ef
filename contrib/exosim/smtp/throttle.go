package smtp

import (
	"time"
)

// An ignored error is one for which Exchange Online throttles a mailbox that goes on with it.
type ignoredError int

const (
	errFull ignoredError = iota
	errSendAs
	errRecipients
	ignoredErrors // how many there are
)

// throttleTexts are the refusals of a throttled mailbox. The second number is that of a missing Send
// As right too.
var throttleTexts = [ignoredErrors]string{
	errFull:       "550 5.2.251 Sender throttled due to continuous mailbox full errors.",
	errSendAs:     "550 5.2.252 Sender throttled due to continuous send as denied errors.",
	errRecipients: "550 5.2.255 Sender throttled due to continuous invalid recipients errors.",
}

// throttle is what a mailbox has ignored.
type throttle struct {
	errors [ignoredErrors][]time.Time // within the throttle's time
	until  time.Time
	text   string
}

// errLocked notes an error. The caller holds x.mu.
func (x *Exchange) errLocked(b *box, kind ignoredError, now time.Time) {
	if x.cfg.ThrottleAfter == 0 {
		return
	}
	list := append(b.throttle.errors[kind], now)
	for len(list) > 0 && now.Sub(list[0]) >= x.cfg.ThrottleTime {
		list = list[1:]
	}
	b.throttle.errors[kind] = list
	if len(list) >= x.cfg.ThrottleAfter {
		b.throttle.until, b.throttle.text = now.Add(x.cfg.ThrottleTime), throttleTexts[kind]
	}
}

// throttledLocked returns why everything of the mailbox is refused, "" if it is not. Submitting all
// the same makes it longer. The caller holds x.mu.
func (x *Exchange) throttledLocked(b *box, now time.Time) string {
	if !now.Before(b.throttle.until) {
		return ""
	}
	b.throttle.until = now.Add(x.cfg.ThrottleTime)
	return b.throttle.text
}
