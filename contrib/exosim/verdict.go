package exosim

import (
	"bytes"
	"fmt"
	"mime"
	"net/mail"
	"net/textproto"
	"slices"
	"strings"
	"time"
)

// Message is a message that reached the end of DATA, accepted or not.
type Message struct {
	Session    string    `json:"session"`
	Mailbox    string    `json:"mailbox"` // authenticated as
	TLS        string    `json:"tls"`
	Sender     string    `json:"sender"` // envelope
	Recipients []string  `json:"recipients"`
	Data       []byte    `json:"data"` // as sent, dots unstuffed
	Dot        time.Time `json:"dot"`  // when the final dot came
	Verdict    time.Time `json:"verdict"`
	Reply      string    `json:"reply"`
}

// Accepted tells whether the service took the message.
func (m *Message) Accepted() bool { return m.Reply[0] == '2' }

// Header returns the bodies of a header field, unfolded.
func (m *Message) Header(name string) []string {
	msg, err := mail.ReadMessage(bytes.NewReader(m.Data))
	if err != nil {
		return nil
	}
	return msg.Header[textproto.CanonicalMIMEHeaderKey(name)]
}

// judge decides at the end of DATA, in the order of the real service, and keeps the message.
// It reports whether the connection must break without a reply.
func (s *Server) judge(b *mailbox, m *Message, parallel int) (silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.Verdict = time.Now()
	m.Reply = s.verdict(b, m, parallel)
	s.messages = append(s.messages, m)
	if !m.Accepted() {
		b.refused[m.Reply[:3]]++
		return false
	}
	b.dots = append(b.dots, m.Dot)
	b.verdicts = append(b.verdicts, m.Verdict)
	b.sent = append(b.sent, sent{m.Verdict, len(m.Recipients)})
	return countDown(&s.faults.DropAfterData)
}

func (s *Server) verdict(b *mailbox, m *Message, parallel int) string {
	host := "[Hostname=" + backend + "]"
	switch {
	case parallel > s.cfg.Connections:
		return "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information. " + host
	case countDown(&s.faults.Busy):
		return "451 4.7.0 Temporary server error. Please try again later. PRX2 " + host
	case b.NoLogon:
		return "430 4.2.0 STOREDRV; mailbox logon failure; STOREDRV.Submission.Exception:ConnectionFailedTransientException.MapiExceptionLogonFailed; " +
			"Failed to process message due to a transient exception with message [BeginDiagnosticData]Cannot open mailbox. " + host
	case b.Full:
		return "554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded " + host
	}
	from, refusal := senders(m.Data)
	if refusal != "" {
		return refusal + " " + host
	}
	for _, a := range append(from, m.Sender) {
		if !b.maySendAs(a) {
			return fmt.Sprintf("554 5.2.252 SendAsDenied; %s not allowed to send as %s; STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; "+
				"Failed to process message due to a permanent exception with message [BeginDiagnosticData]Cannot submit message. "+
				"0.35250:1F009983, 1.36674:0A000000[EndDiagnosticData] %s", b.Address, a, host)
		}
	}
	if s.recipients(b, m.Verdict)+len(m.Recipients) > s.cfg.Recipients {
		return "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed to process message due to a permanent exception with message " +
			"The message can't be submitted because the sender's submission quota was exceeded. " + host
	}
	if s.cfg.EnforceRate && within(b.dots, s.cfg.Window, m.Dot) >= s.cfg.Messages {
		return "451 4.7.0 Temporary server error. Please try again later. PRX2 " + host
	}
	id := strings.Trim(strings.Join(m.Header("Message-ID"), ""), "<> ")
	if id == "" {
		id = m.Session + "@" + strings.ToLower(backend)
	}
	return "250 2.0.0 OK <" + id + "> " + host
}

func (b *mailbox) maySendAs(a string) bool {
	same := func(x string) bool { return strings.EqualFold(x, a) }
	return same(b.Address) || slices.ContainsFunc(b.Aliases, same) || slices.ContainsFunc(b.SendAs, same)
}

// senders returns the addresses of From, read strictly, or a refusal.
func senders(data []byte) (list []string, refusal string) {
	const bad = "550 5.7.512 Access denied, message must be RFC 5322 section 3.6.2 compliant and include a valid From address"
	msg, err := mail.ReadMessage(bytes.NewReader(data))
	if err != nil {
		return nil, bad
	}
	fields := msg.Header["From"]
	if len(fields) != 1 {
		return nil, bad
	}
	p := mail.AddressParser{WordDecoder: &mime.WordDecoder{}}
	addrs, err := p.ParseList(fields[0])
	if err != nil || len(addrs) == 0 || strings.ContainsFunc(fields[0], func(r rune) bool { return r >= 0x7f }) {
		return nil, bad
	}
	if len(addrs) > 1 && len(msg.Header["Sender"]) == 0 {
		return nil, "550 5.1.20 Multiple From addresses are not allowed without Sender address"
	}
	for _, a := range addrs {
		list = append(list, a.Address)
	}
	// A Sender that differs is "on behalf of", which needs a permission too.
	for _, f := range msg.Header["Sender"] {
		if a, err := mail.ParseAddress(f); err == nil {
			list = append(list, a.Address)
		}
	}
	return list, ""
}

func (s *Server) recipients(b *mailbox, now time.Time) int {
	n := 0
	for _, x := range b.sent {
		if now.Sub(x.at) < s.cfg.RecipientWindow {
			n += x.n
		}
	}
	return n
}

// within counts the times in the window that ends now.
func within(times []time.Time, window time.Duration, now time.Time) int {
	n := 0
	for _, t := range times {
		if d := now.Sub(t); d >= 0 && d < window {
			n++
		}
	}
	return n
}

// Usage is what a mailbox did.
type Usage struct {
	Accepted       int            `json:"accepted"`
	Refused        map[string]int `json:"refused"`          // by code
	WorstByDot     int            `json:"worst_by_dot"`     // most accepted messages in any window, by final dot
	WorstByVerdict int            `json:"worst_by_verdict"` // the same by verdict
	Recipients     int            `json:"recipients"`       // in the current window
	MaxSessions    int            `json:"max_sessions"`
	MaxInData      int            `json:"max_in_data"`
}

// Usage returns what a mailbox did.
func (s *Server) Usage(address string) Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.mailboxes[strings.ToLower(address)]
	if b == nil {
		return Usage{}
	}
	u := Usage{Accepted: len(b.dots), Refused: map[string]int{}, WorstByDot: worst(b.dots, s.cfg.Window), WorstByVerdict: worst(b.verdicts, s.cfg.Window),
		Recipients: s.recipients(b, time.Now()), MaxSessions: b.maxSessions, MaxInData: b.maxInData}
	for c, n := range b.refused {
		u.Refused[c] = n
	}
	return u
}

// Messages returns all messages that reached the end of DATA, in the order of their verdicts. They
// are not to be changed.
func (s *Server) Messages() []*Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.messages)
}

// worst returns the most times in any period of that length, its end not included.
func worst(times []time.Time, window time.Duration) int {
	sorted := slices.SortedFunc(slices.Values(times), time.Time.Compare)
	most, j := 0, 0
	for i := range sorted {
		for sorted[i].Sub(sorted[j]) >= window {
			j++
		}
		most = max(most, i-j+1)
	}
	return most
}
