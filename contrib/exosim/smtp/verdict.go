package smtp

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
)

// A service is what differs between the SMTP endpoints of Exchange Online:
// submission, and mx. Its methods are called by many connections at the same
// time.
type service interface {
	// about tells how the endpoint presents itself; it is always the same.
	about() endpoint
	// extensions are the lines of EHLO. There is AUTH where it is among them.
	extensions(k *conn) []string
	// logon signs somebody in, or returns why not; denied words that. They are asked where extensions
	// have AUTH.
	logon(k *conn, user, token string) (*box, directory.Denial)
	denied(k *conn, why directory.Denial) string
	// admits returns why the session may not send mail, "" if it may; sender, why not as an address.
	admits(k *conn) string
	sender(k *conn, address string) string
	// recipient returns why the session may not send to an address, "" if it may.
	recipient(k *conn, address string) string
	// begin is told that a message's content starts to come, end that the
	// message has its verdict or is lost.
	begin(k *conn)
	end(k *conn)
	// judge gives m its verdict and keeps it; k sends the reply unless
	// m.Dropped.
	judge(k *conn, m *Message)
}

// endpoint is how an SMTP endpoint presents itself.
type endpoint struct {
	name    string // Message.Endpoint
	host    string // in the banner and in EHLO
	machine string // in errors
	tls     *tls.Config

	maxSize  int64 // bytes of a message
	maxRcpts int   // of a message
}

// submission is smtp.office365.com:587.
type submission struct{ x *Exchange }

func (v submission) about() endpoint {
	return endpoint{name: EndpointSubmission, host: frontend, machine: machine, tls: v.x.tls, maxSize: v.x.cfg.MaxSize, maxRcpts: v.x.cfg.MaxMessageRcpts}
}

// extensions have AUTH in the place of STARTTLS.
func (v submission) extensions(k *conn) []string {
	if k.tls != nil {
		return extensions("AUTH LOGIN XOAUTH2", k.at.maxSize)
	}
	return extensions("STARTTLS", k.at.maxSize)
}

func (v submission) logon(_ *conn, user, token string) (*box, directory.Denial) {
	return v.x.logon(user, token)
}

// denied has the same text for nearly all reasons, for a cancelled AUTH too, where RFC 4954 has 501.
func (v submission) denied(k *conn, why directory.Denial) string {
	switch {
	case why == malformed && v.x.cfg.HighVolume:
		return textBadXOAUTH2
	case why == malformed:
		return textBadArgs
	case why == expiresSoon:
		return soonTexts["5.5.127"]
	case why == directory.TenantOff:
		return fmt.Sprintf(textAuthOff, "Tenant") + k.bracket()
	case why == directory.MailboxOff:
		return fmt.Sprintf(textAuthOff, "Mailbox") + k.bracket()
	}
	return textAuthFailed + k.bracket()
}

// sender takes everybody: Send As is looked at when the whole message has come.
func (v submission) sender(*conn, string) string { return "" }

func (v submission) admits(k *conn) string {
	switch {
	case k.tls == nil:
		return textNeedTLS
	case k.box == nil && k.authErr != "":
		return textNotAuthed + " Error: " + k.authErr
	case k.box == nil:
		return textNotAuthed + k.bracket()
	}
	return ""
}

// recipient takes everybody who can be; who does not exist is found out later.
func (v submission) recipient(k *conn, address string) string {
	if strings.HasPrefix(address, `"`) || !strings.ContainsAny(address, " ;") && strings.Count(address, "@") == 1 {
		return ""
	}
	v.x.mu.Lock()
	defer v.x.mu.Unlock()
	v.x.errLocked(k.box, errRecipients, time.Now())
	return textInvalid
}

func (v submission) begin(k *conn) { k.slot = v.x.beginData(k.box) }

func (v submission) end(k *conn) {
	v.x.endData(k.box, k.slot)
	k.slot = false
}

// judge follows the order of the real service: parallel deliveries, logon,
// mailbox full, Send As, quota.
func (v submission) judge(k *conn, m *Message) {
	x := v.x
	m.Mailbox = k.box.address
	if x.strikes(func(f *Faults) *int { return &f.DropBeforeAccept }) || x.chance(func(c *Chances) float64 { return c.AtDot }) {
		m.Dropped = true
		x.refuse(k.box, m, "")
		return
	}
	if k.slot = k.slot || x.lateSlot(k.box); !k.slot || x.overloaded() {
		x.refuse(k.box, m, textConcurrent+atBackend)
		return
	}
	if refusal := x.refusal(k.box, m); refusal != "" {
		x.sleep(x.verdictDelay())
		x.refuse(k.box, m, refusal+atBackend)
		return
	}
	for wait := x.verdictDelay(); wait > 0; wait = x.admit(k, m) {
		if !x.sleep(wait) {
			m.Dropped = true
			x.refuse(k.box, m, "")
			return
		}
	}
}

func (x *Exchange) refuse(b *box, m *Message, reply string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	m.Verdict, m.Reply = time.Now(), reply
	x.keep(b, m)
}

// refusal returns why a message is refused for what it is, "" if it is not.
func (x *Exchange) refusal(b *box, m *Message) string {
	from, sender, bad := senders(m.Data)
	settings, _ := x.dir.Mailbox(b.address) // mailboxes are never removed
	now := time.Now()
	x.mu.Lock()
	defer x.mu.Unlock()
	if text := x.throttledLocked(b, now); text != "" {
		return text
	}
	switch {
	case countDown(&x.faults.Busy) || x.unlucky(x.faults.Chances.Busy):
		return textBusy
	case x.unlucky(x.faults.Chances.Leave):
		return textUnavailable
	case x.unlucky(x.faults.Chances.Quota):
		return textQuota
	case settings.NoLogon || x.faults.NoLogon:
		return textNoLogon
	case settings.Full || x.faults.MailboxFull:
		x.errLocked(b, errFull, now)
		return textFull
	case settings.Refusal != "":
		return settings.Refusal
	case bad != "":
		return bad
	}
	for _, a := range slices.Concat(from, sender, []string{m.Sender}) {
		if !settings.MayBe(a) {
			x.errLocked(b, errSendAs, now)
			return sendAsDenied(x.cfg.SendAsText, b.address, cmp.Or(a, "<>"))
		}
	}
	return ""
}

// admit is the last step: quota and rate, and the acceptance. It returns how
// long to wait before it is asked again, or 0 when m has its verdict. Counting and
// accepting is one step under the lock, so that no two messages share a place.
func (x *Exchange) admit(k *conn, m *Message) time.Duration {
	x.mu.Lock()
	defer x.mu.Unlock()
	b, now := k.box, time.Now()
	m.Verdict = now
	if b.sent.at(now)+len(m.Recipients) > cmp.Or(x.faults.QuotaAfter, x.cfg.Recipients) {
		m.Reply = textQuota + atBackend
		x.keep(b, m)
		return 0
	}
	if wait := b.verdicts.free(now, x.cfg.Messages).Sub(now); wait > 0 && x.cfg.EnforceRate != RateOff {
		if x.cfg.EnforceRate == RateDelay {
			return wait
		}
		m.Reply = textBusy + atBackend
		x.keep(b, m)
		return 0
	}
	m.Reply = "250 2.0.0 OK " + messageID(m) + atBackend
	m.Dropped = countDown(&x.faults.DropAfterData) || x.unlucky(x.faults.Chances.AfterTaken)
	x.keep(b, m)
	return 0
}

// verdictDelay returns a time between Config.VerdictMin and Config.VerdictMax, at
// least a nanosecond.
func (x *Exchange) verdictDelay() time.Duration {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.cfg.VerdictMin + time.Duration(x.random.Int64N(int64(x.cfg.VerdictMax-x.cfg.VerdictMin)+1)) + 1
}
