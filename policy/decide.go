package policy

import (
	"strconv"
	"time"
)

// A Field is one header field of a message, as it came.
type Field struct {
	Name  string // in the case of the original
	Value string // raw: folds and 8-bit bytes included
}

// A Request is what is known of one message when its header is complete.
type Request struct {
	Peer    Peer
	Sender  string   // envelope sender as given; "" or "<>" is the null sender
	Rcpts   []string // envelope recipients
	Fields  []Field  // those header fields that [Wants] names, in their order
	QueueID string   // goes into a Message-ID that has to be made
	Now     time.Time
}

// An Action says what becomes of a message.
type Action string

// The actions.
const (
	Accept Action = "accept"
	Reject Action = "reject"
)

// An Op is a way of changing a header.
type Op string

// The header operations. For one field name, operations come in an order in which the
// index of each still counts as in the original message.
const (
	Add    Op = "add"    // a new field at the end of the header
	Change Op = "change" // the body of the Index-th field of that name
	Delete Op = "delete" // the Index-th field of that name
)

// A HeaderChange is one change to the header of a message.
type HeaderChange struct {
	Op    Op
	Name  string
	Index int    // from 1, among the fields of that name; 0 with Add
	Value string // folded with bare LF, ASCII; empty with Delete
}

// A Decision is what the policy says about one message.
type Decision struct {
	Action   Action
	Client   *Client // nil where none matched
	Asked    Address // the sender that was wanted; may be zero
	Identity Address // as whom it leaves; zero with Reject
	Mailbox  *Mailbox
	Sender   string // the new envelope sender; "" leaves it as it is
	Changes  []HeaderChange
	Reply    *Reply // with Reject
	Reasons  []Reason
}

// Rewritten tells whether the message leaves as another sender than it asked for.
func (d *Decision) Rewritten() bool {
	return d.Action == Accept && !d.Asked.Same(d.Identity)
}

// Admit answers what is known before a message is seen, at MAIL FROM: whether the
// peer is any client at all. The Reply is nil when it is one.
func (p *Policy) Admit(peer Peer) (*Client, *Reply) {
	if c := p.clients.find(peer); c != nil {
		return c, nil
	}
	return nil, reject("%s is not a known client of this relay; ask its administrator to add it to clients: in sendas.yaml", peer)
}

// Decide says what becomes of the message. It keeps nothing of the request.
//
// The wanted sender is the address of the From field, else the envelope sender. If the
// client may ask for it and a mailbox may send as it, it becomes the identity; otherwise
// the client's from does, or the message is rejected. Envelope sender and From always
// leave as the same identity, because Exchange Online checks both, and only after the
// whole message was sent.
func (p *Policy) Decide(r *Request) Decision {
	d := Decision{Action: Accept, Reasons: make([]Reason, 0, 4)}
	c, reply := p.Admit(r.Peer)
	if c == nil {
		return d.rejected(reply, Reason{Code: ReasonNoClient, Subject: r.Peer.String()})
	}
	d.Client = c
	d.because(ReasonClient, c.Name, r.Peer.String())

	if n := len(r.Fields); n > maxFields {
		return d.rejected(reject("the message has %d fields for sender, date and signatures; that is no mail", n),
			Reason{Code: ReasonTooMany, Subject: strconv.Itoa(n)})
	}
	h := readHeader(r)
	if len(h.from) > maxFrom {
		return d.rejected(reject("the message has %d From fields; it may have one", len(h.from)),
			Reason{Code: ReasonTooMany, Subject: strconv.Itoa(len(h.from))})
	}
	d.Asked = h.asked
	id, ok := p.authorise(c, h.asked, &d)
	if !ok {
		if c.OnUnauthorized == Refuse || c.From.IsZero() {
			return d.rejected(refusal(c, &d), Reason{Code: ReasonRejected, Subject: c.Name})
		}
		id = p.identities[c.From.Key()]
		d.because(ReasonFallback, id.addr.String(), c.Name)
	}
	d.Identity, d.Mailbox = id.addr, id.mailbox
	if !h.sender.Same(id.addr) {
		d.Sender = id.addr.String()
	}
	if h.sender.IsZero() {
		d.because(ReasonNullSender, id.addr.String(), "")
	}
	d.Changes = h.changes(r, id.addr)
	return d
}

// authorise answers the two questions apart: may the client ask for it, and does the
// route allow it.
func (p *Policy) authorise(c *Client, a Address, d *Decision) (identity, bool) {
	if a.IsZero() {
		d.because(ReasonNotAsked, "", "")
		return identity{}, false
	}
	if !c.maySend(a) {
		d.because(ReasonMayNotAsk, a.String(), c.Name)
		return identity{}, false
	}
	id, ok := p.identities[a.Key()]
	if !ok {
		d.because(ReasonUnauthorized, a.String(), "")
		return identity{}, false
	}
	d.because(ReasonAuthorized, a.String(), id.mailbox.Address.String())
	return id, true
}

// refusal words the rejection by the step that failed.
func refusal(c *Client, d *Decision) *Reply {
	switch d.Reasons[len(d.Reasons)-1].Code {
	case ReasonMayNotAsk:
		return reject("<%s>: client %q may not send as this address; ask the relay's administrator to add it to senders: of the client", d.Asked, c.Name)
	case ReasonNotAsked:
		return reject("the message names no sender, and client %q has no from: in sendas.yaml", c.Name)
	}
	return reject("<%s>: no mailbox of this relay may send as this address; ask its administrator to list it under send_as: "+
		"of the mailbox that has the permission (client %q)", d.Asked, c.Name)
}

func (d *Decision) because(code ReasonCode, subject, object string) {
	d.Reasons = append(d.Reasons, Reason{Code: code, Subject: subject, Object: object})
}

func (d Decision) rejected(reply *Reply, why Reason) Decision {
	d.Action, d.Reply = Reject, reply
	d.Reasons = append(d.Reasons, why)
	return d
}
