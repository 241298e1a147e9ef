package smtp

import (
	"bytes"
	"context"
	"maps"
	"net/mail"
	"net/textproto"
	"slices"
	"strings"
	"time"
)

// Message is a message that reached the end of DATA, accepted or not. Nobody
// may change it.
type Message struct {
	ID          int       `json:"id"`          // 1 for the first
	Session     string    `json:"session"`     // as in the banner
	Endpoint    string    `json:"endpoint"`    // EndpointSubmission, EndpointMX or EndpointHighVolume
	Mailbox     string    `json:"mailbox"`     // authenticated as; "" at the MX endpoint
	Connector   string    `json:"connector"`   // at the MX endpoint, its name; "" is direct send
	Certificate string    `json:"certificate"` // at the MX endpoint, the verified client certificate's name, the one that the connector knows if there are several; "" without
	TLS         string    `json:"tls"`         // "TLS 1.3", "" without
	Helo        string    `json:"helo"`
	Sender      string    `json:"sender"` // envelope
	Recipients  []string  `json:"recipients"`
	Data        []byte    `json:"data,omitempty"` // as sent, dots unstuffed
	Size        int       `json:"size"`
	Dot         time.Time `json:"dot"` // when the final dot came
	Verdict     time.Time `json:"verdict"`
	Reply       string    `json:"reply"`   // "" if the connection was dropped before a decision
	Dropped     bool      `json:"dropped"` // the client was not told the reply
}

// The values of Message.Endpoint.
const (
	EndpointSubmission = "submission"
	EndpointMX         = "mx"
	EndpointHighVolume = "hve"
)

// Accepted reports whether the service took the message.
func (m *Message) Accepted() bool { return strings.HasPrefix(m.Reply, "2") }

// Header returns the bodies of a header field, unfolded.
func (m *Message) Header(name string) []string {
	msg, err := mail.ReadMessage(bytes.NewReader(m.Data))
	if err != nil {
		return nil
	}
	return msg.Header[textproto.CanonicalMIMEHeaderKey(name)]
}

// box is what a mailbox did. Exchange.mu guards it, but for the address.
type box struct {
	address               string
	sessions, maxSessions int // authenticated connections
	inData, maxInData     int // from DATA to the verdict
	slots                 int // of those, within the limit of parallel deliveries
	accepted, recipients  int
	dots, verdicts        window // accepted messages, by final dot and by verdict
	sent                  window // their recipients, by verdict
	refused               map[string]int
	throttle              throttle
}

func newBox(address string, c *Config) *box {
	b := &box{address: address}
	b.forget(c)
	return b
}

// forget starts all counts anew, but for what goes on now.
func (b *box) forget(c *Config) {
	b.maxSessions, b.maxInData, b.accepted, b.recipients, b.refused = b.sessions, b.inData, 0, 0, map[string]int{}
	b.throttle = throttle{}
	b.dots, b.verdicts, b.sent = window{length: c.Window}, window{length: c.Window}, window{length: c.RecipientWindow}
}

// Usage is what a mailbox did.
type Usage struct {
	Accepted        int            `json:"accepted"`
	Refused         map[string]int `json:"refused"`          // messages by code: "432"; "dropped" without a reply
	WorstByDot      int            `json:"worst_by_dot"`     // most accepted messages in any window, by final dot
	WorstByVerdict  int            `json:"worst_by_verdict"` // the same by verdict
	Recipients      int            `json:"recipients"`       // of accepted messages, in the current recipient window
	WorstRecipients int            `json:"worst_recipients"` // the most in any recipient window
	TotalRecipients int            `json:"total_recipients"`
	MaxSessions     int            `json:"max_sessions"` // most authenticated connections at a time
	MaxInData       int            `json:"max_in_data"`  // most messages between DATA and verdict at a time
}

// Usage returns what a mailbox did, nothing for one that does not exist.
func (x *Exchange) Usage(address string) Usage {
	x.mu.Lock()
	defer x.mu.Unlock()
	b := x.boxes[strings.ToLower(address)]
	if b == nil {
		return Usage{}
	}
	return Usage{
		Accepted: b.accepted, Refused: maps.Clone(b.refused),
		WorstByDot: b.dots.worst, WorstByVerdict: b.verdicts.worst,
		Recipients: b.sent.at(time.Now()), WorstRecipients: b.sent.worst, TotalRecipients: b.recipients,
		MaxSessions: b.maxSessions, MaxInData: b.maxInData,
	}
}

// Messages returns all messages that reached the end of DATA, in the order of
// their verdicts.
func (x *Exchange) Messages() []*Message {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.messages)
}

// WaitAccepted waits until n messages have been accepted in all.
func (x *Exchange) WaitAccepted(ctx context.Context, n int) error {
	for {
		x.mu.Lock()
		have, kept := x.accepted, x.kept
		x.mu.Unlock()
		if have >= n {
			return nil
		}
		select {
		case <-kept:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Forget drops all messages and starts the counters anew.
func (x *Exchange) Forget() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.messages, x.accepted = nil, 0
	clear(x.authRefused)
	for _, b := range x.boxes {
		b.forget(&x.cfg)
	}
}

// keep notes a message that has its verdict; b is its mailbox, nil without. The
// caller holds x.mu.
func (x *Exchange) keep(b *box, m *Message) {
	x.messages = append(x.messages, m)
	x.serial++
	m.ID, m.Size = x.serial, len(m.Data)
	close(x.kept)
	x.kept = make(chan struct{})
	x.cfg.Log.Info("verdict", "session", m.Session, "endpoint", m.Endpoint, "mailbox", m.Mailbox, "connector", m.Connector, "reply", m.Reply, "dropped", m.Dropped)
	if m.Accepted() {
		x.accepted++
	}
	if b != nil {
		b.note(m)
	}
}

// note counts a message that has its verdict.
func (b *box) note(m *Message) {
	switch {
	case m.Accepted():
		b.accepted++
		b.recipients += len(m.Recipients)
		b.dots.add(m.Dot, 1)
		b.verdicts.add(m.Verdict, 1)
		b.sent.add(m.Verdict, len(m.Recipients))
	case m.Reply == "":
		b.refused["dropped"]++
	default:
		b.refused[m.Reply[:3]]++
	}
}

// enter, beginData and their opposites count what goes on at the same time.

func (x *Exchange) enter(b *box) {
	x.mu.Lock()
	defer x.mu.Unlock()
	b.sessions++
	b.maxSessions = max(b.maxSessions, b.sessions)
}

func (x *Exchange) leave(b *box) {
	x.mu.Lock()
	defer x.mu.Unlock()
	b.sessions--
}

// beginData counts a message in DATA, and reports whether it is within the limit
// of parallel deliveries.
func (x *Exchange) beginData(b *box) (slot bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	b.inData++
	b.maxInData = max(b.maxInData, b.inData)
	return x.takeSlot(b)
}

// takeSlot takes one of the mailbox's parallel deliveries if one is free. The
// caller holds x.mu.
func (x *Exchange) takeSlot(b *box) bool {
	if b.slots >= x.cfg.Connections {
		return false
	}
	b.slots++
	return true
}

// lateSlot is the second chance, at the final dot, of a message that began when
// all were taken.
func (x *Exchange) lateSlot(b *box) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.takeSlot(b)
}

func (x *Exchange) endData(b *box, slot bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	b.inData--
	if slot {
		b.slots--
	}
}
