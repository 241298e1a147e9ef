package exosim

import (
	"cmp"
	"crypto/tls"
	"slices"
	"time"
)

// A service is what differs between the SMTP endpoints of Exchange Online:
// submission, and mx. Its methods are called by many connections at the same
// time.
type service interface {
	// about tells how the endpoint presents itself; it is always the same.
	about() endpoint
	// extensions are the lines of EHLO. There is AUTH where it is among them.
	extensions(k *conn) []string
	// admits returns why the session may not send mail, "" if it may.
	admits(k *conn) string
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
}

// submission is smtp.office365.com:587.
type submission struct{ s *Server }

func (v submission) about() endpoint {
	return endpoint{name: EndpointSubmission, host: frontend, machine: machine, tls: v.s.tls}
}

// extensions have AUTH in the place of STARTTLS.
func (v submission) extensions(k *conn) []string {
	if k.tls != nil {
		return extensions("AUTH LOGIN XOAUTH2", v.s.cfg.MaxSize)
	}
	return extensions("STARTTLS", v.s.cfg.MaxSize)
}

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

// recipient takes everybody; who does not exist is found out later.
func (v submission) recipient(*conn, string) string { return "" }

func (v submission) begin(k *conn) { k.slot = v.s.beginData(k.box) }

func (v submission) end(k *conn) {
	v.s.endData(k.box, k.slot)
	k.slot = false
}

// judge follows the order of the real service: parallel deliveries, logon,
// mailbox full, Send As, quota.
func (v submission) judge(k *conn, m *Message) {
	s := v.s
	m.Mailbox = k.box.Address
	if s.strikes(func(f *Faults) *int { return &f.DropBeforeAccept }) || s.chance(func(c *Chances) float64 { return c.AtDot }) {
		m.Dropped = true
		s.refuse(k.box, m, "")
		return
	}
	if k.slot = k.slot || s.lateSlot(k.box); !k.slot || s.overloaded() {
		s.refuse(k.box, m, textConcurrent+atBackend)
		return
	}
	if refusal := s.refusal(k.box, m); refusal != "" {
		s.sleep(s.verdictDelay())
		s.refuse(k.box, m, refusal+atBackend)
		return
	}
	for wait := s.verdictDelay(); wait > 0; wait = s.admit(k, m) {
		if !s.sleep(wait) {
			m.Dropped = true
			s.refuse(k.box, m, "")
			return
		}
	}
}

func (s *Server) refuse(b *mailbox, m *Message, reply string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.Verdict, m.Reply = time.Now(), reply
	s.keep(b, m)
}

// refusal returns why a message is refused for what it is, "" if it is not.
func (s *Server) refusal(b *mailbox, m *Message) string {
	from, sender, bad := senders(m.Data)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case countDown(&s.faults.Busy) || s.unlucky(s.faults.Chances.Busy):
		return textBusy
	case s.unlucky(s.faults.Chances.Leave):
		return textUnavailable
	case s.unlucky(s.faults.Chances.Quota):
		return textQuota
	case b.NoLogon || s.faults.NoLogon:
		return textNoLogon
	case b.Full || s.faults.MailboxFull:
		return textFull
	case bad != "":
		return bad
	}
	for _, a := range slices.Concat(from, sender, []string{m.Sender}) {
		if !b.mayBe(a) {
			return sendAsDenied(s.cfg.SendAsText, b.Address, cmp.Or(a, "<>"))
		}
	}
	return ""
}

// admit is the last step: quota and rate, and the acceptance. It returns how
// long to wait before it is asked again, or 0 when m has its verdict. Counting and
// accepting is one step under the lock, so that no two messages share a place.
func (s *Server) admit(k *conn, m *Message) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, now := k.box, time.Now()
	m.Verdict = now
	if b.sent.at(now)+len(m.Recipients) > cmp.Or(s.faults.QuotaAfter, s.cfg.Recipients) {
		m.Reply = textQuota + atBackend
		s.keep(b, m)
		return 0
	}
	if wait := b.verdicts.free(now, s.cfg.Messages).Sub(now); wait > 0 && s.cfg.EnforceRate != RateOff {
		if s.cfg.EnforceRate == RateDelay {
			return wait
		}
		m.Reply = textBusy + atBackend
		s.keep(b, m)
		return 0
	}
	m.Reply = "250 2.0.0 OK " + messageID(m) + atBackend
	m.Dropped = countDown(&s.faults.DropAfterData) || s.unlucky(s.faults.Chances.AfterTaken)
	s.keep(b, m)
	return 0
}

// verdictDelay returns a time between Config.VerdictMin and Config.VerdictMax, at
// least a nanosecond.
func (s *Server) verdictDelay() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg.VerdictMin + time.Duration(s.random.Int64N(int64(s.cfg.VerdictMax-s.cfg.VerdictMin)+1)) + 1
}
