package policy

import (
	"strconv"
	"strings"
	"time"

	"github.com/sendas/sendas/policy/address"
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
	Rcpts   []string // envelope recipients: see AddRecipient
	Places  []Place  // what [Rules.Place] says of each of them; those that are missing are ours
	Fields  []Field  // those header fields that [Wants] names, in their order, and those that are [TooLong]: see AddField
	QueueID string   // goes into a Message-ID that has to be made
	Routed  bool     // Postfix was told the way out at RCPT: the Filter of [Rules.Foresee]
	Size    int      // bytes of header and body, as they came; [Unmeasured] where nobody has counted them
	Now     time.Time

	fields, rcpts amount // what AddField and AddRecipient have seen
}

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
	Value string // folded with bare LF; ASCII, but for a field of the message that was only folded; empty with Delete
}

// A Decision is what the policy says about one message.
type Decision struct {
	Action   Action
	Client   *Client      // nil where none matched, and for what passes untouched
	Asked    address.Spec // the sender that was wanted; may be zero
	Identity address.Spec // as whom it leaves; zero unless accepted
	// Mailbox is the one that the message leaves through, User who authenticates. They are nil and
	// zero where the message leaves by a connector or directly. Of a pool they are the first one's:
	// which one it will be is not known yet.
	Mailbox *Mailbox
	User    address.Spec
	Pool    int // how many mailboxes may send as Identity; 0 where none has to
	// Route is the way out, that of the tenant's own recipients if External says that the others
	// leave another way. It is nil where no client matched.
	Route    *Route
	External *Route
	Sender   string // the new envelope sender; "" leaves it as it is
	// Kept tells that the envelope sender stays although it is not Identity, by a route that does not
	// compare them. Sender then only writes it in another form.
	Kept bool
	// NoBounce is for a message that came with the null sender and leaves with another one: nothing
	// may answer it with a bounce, or two refusals would chase each other for ever. Sender has the
	// mark then by which Postfix's bounce of it is known.
	NoBounce bool
	Discard  bool // it is a bounce of such a message, and ends here
	Changes  []HeaderChange
	Reply    *Reply // unless accepted
	Reasons  []Reason
}

// Rewritten reports whether the message leaves as another sender than it asked for; one that is held
// will, once it is let go.
func (d *Decision) Rewritten() bool {
	return (d.Action == Accept || d.Action == Hold) && !d.Asked.Same(d.Identity)
}

// Through names the mailbox that the message leaves through: "erp1@contoso.com", or
// "erp1@contoso.com (one of 3)" where several may send as the identity; "" where it needs none.
func (d *Decision) Through() string { return through(d.User, d.Pool) }

func through(user address.Spec, pool int) string {
	if pool > 1 {
		return user.String() + " (one of " + strconv.Itoa(pool) + ")"
	}
	return user.String()
}

// Admit answers what is known before a message is seen: whether the peer is any client at all. The
// Reply is nil when it is one. The envelope sender is as the MTA gives it.
func (p *Rules) Admit(peer Peer, sender string) (*Client, *Reply) {
	if peer.NoFingerprint && p.clients.fingerprints {
		// Without it the peer could be taken for another client, and its mail leave under a wrong
		// name.
		return nil, later("4.3.5", "the relay does not know the fingerprint of the client certificate; its administrator has to add "+
			"check_policy_service unix:sendas/policy to smtpd_recipient_restrictions")
	}
	if c := p.FindClient(peer, sender); c != nil {
		return c, nil
	}
	if peer.Addr.IsLoopback() && peer.Login == "" {
		return nil, reject("%s is not a known client of this relay; for mail of programs on this host its administrator has to add a client "+
			"with networks: [127.0.0.0/8, \"::1\"] to clients: in sendas.yaml", peer)
	}
	return nil, reject("%s is not a known client of this relay; ask its administrator to add it to clients: in sendas.yaml", peer)
}

// Wanted returns the sender that a message asks for, whoever sends it: the address of the From field,
// else the envelope sender. It is zero where neither can be read.
func (r *Request) Wanted() address.Spec { return readHeader(r).asked }

// Decide says what becomes of the message. It keeps nothing of the request. What Postfix delivers
// elsewhere passes as it is.
//
// The wanted sender is the address of the From field, else the envelope sender. If the
// client may ask for it and its route lets us use it, it becomes the identity; otherwise
// the client's from does, or the message is rejected. What this host says itself has an identity
// anyway: see [OwnClient]. By submission, envelope sender and From leave as the same identity,
// because Exchange Online checks both, and only after the whole message was sent; see
// [Decision.Kept] for the other routes.
func (p *Rules) Decide(r *Request) Decision {
	d := Decision{Action: Accept, Reasons: make([]Reason, 0, 4)}
	if p.passes(r, &d) || !p.admitted(r, &d) {
		return d
	}
	c := d.Client
	if reply, why := r.overrun(); reply != nil {
		d.refuse(reply, why)
		return d
	}
	h := readHeader(r)
	if p.answersBounce(r, &h) {
		d.Discard = true
		d.because(ReasonBounceOfBounce, "", "")
		return d
	}
	if len(h.from) > maxFrom {
		d.refuse(malformed("the message has %d From fields; it may have one", len(h.from)),
			Reason{Code: ReasonTooMany, Subject: strconv.Itoa(len(h.from))})
		return d
	}
	d.Asked = h.asked
	if c.Route.Type == HVE {
		if reply, why := p.byAccount(r, &h, &d); reply != nil {
			d.refuse(reply, why)
			return d
		}
	}
	id, ok := identity{}, false
	switch {
	case d.Route.Type == HVE:
		id, ok = d.asAccount(), true
	case !c.own:
		id, ok = p.authorise(c, h.asked, &d)
	}
	if id, ok = p.notice(r, &d, id, ok); !ok {
		if c.OnUnauthorized == Refuse || c.From.IsZero() {
			d.refuse(refusal(c, &d), Reason{Code: ReasonRejected, Subject: c.Name})
			return d
		}
		id = p.fallback(c, h.asked, &d)
	}
	leaves := d
	leaves.Identity = id.addr
	if d.bySubmission() {
		leaves.Mailbox, leaves.User, leaves.Pool = id.mailbox, id.user(), 1+len(id.others)
	}
	p.envelope(r, &h, &leaves)
	leaves.Changes = h.changes(r, c, id.addr, leaves.NoBounce)
	if name, n := firstGrown(leaves.Changes); n > 0 {
		d.refuse(tooLong(name, n))
		return d
	}
	return leaves
}

// admitted decides what can be told before the header has come: who it is, and which way it
// leaves. It is all that [Rules.Foresee] asks.
func (p *Rules) admitted(r *Request, d *Decision) bool {
	c, reply := p.Admit(r.Peer, r.Sender)
	if c == nil {
		code := ReasonNoClient
		if reply.Temporary() {
			code = ReasonNoFingerprint
		}
		d.refuse(reply, Reason{Code: code, Subject: r.Peer.String()})
		return false
	}
	d.Client = c
	d.because(ReasonClient, c.Name, r.Peer.String())
	return p.route(r, d)
}

// route finds the way out of the message.
func (p *Rules) route(r *Request, d *Decision) bool {
	d.Route = d.Client.Route
	if d.Route.Type != Direct && d.Route.Type != HVE {
		return true
	}
	own, stranger := 0, ""
	for _, to := range r.Rcpts {
		if p.own(to) {
			own++
		} else if stranger == "" {
			stranger = to
		}
	}
	switch {
	case stranger == "":
		return true
	case d.Route.RefuseExternal:
		d.refuse(d.refuseOutside(shownRcpt(stranger), d.Route))
		return false
	case d.Route.Type == HVE: // see byAccount
		return true
	case own == 0:
		d.Route = p.routes[0]
	default:
		d.External = p.routes[0]
	}
	d.because(ReasonExternal, strconv.Itoa(len(r.Rcpts)-own), d.Client.Route.Name)
	return true
}

// refuseOutside words the rejection of a recipient that a route does not reach.
func (d *Decision) refuseOutside(rcpt string, r *Route) (*Reply, Reason) {
	return reject("<%s>: route %q of client %q reaches the recipients of this organisation alone", rcpt, r.Name, d.Client.Name),
		Reason{Code: ReasonExternalRefused, Subject: rcpt, Object: r.Name}
}

// bySubmission reports whether some of the message leaves through a mailbox, or through an account of
// High Volume Email, for which the same holds.
func (d *Decision) bySubmission() bool {
	return d.Route.Type == Submission || d.Route.Type == HVE || d.External != nil
}

// authorise answers the two questions apart: may the client ask for it, and does the
// route allow it.
func (p *Rules) authorise(c *Client, a address.Spec, d *Decision) (identity, bool) {
	if a.IsZero() {
		d.because(ReasonNotAsked, "", "")
		return identity{}, false
	}
	if !c.maySend(a) {
		d.because(ReasonMayNotAsk, a.String(), c.Name)
		return identity{}, false
	}
	id, ok := p.onRoute(d.Route, a, d.External != nil)
	switch {
	case !ok && d.bySubmission():
		d.because(ReasonUnauthorized, a.String(), "")
	case !ok:
		d.because(ReasonNotVerified, a.String(), d.Route.Name)
	case d.bySubmission():
		d.because(ReasonAuthorized, a.String(), through(id.user(), 1+len(id.others)))
	default:
		d.because(ReasonVerified, a.String(), d.Route.Name)
	}
	return id, ok
}

// fallback returns the identity that the client has for senders that are not authorised.
func (p *Rules) fallback(c *Client, asked address.Spec, d *Decision) identity {
	a := c.from.at(asked)
	id, ok := p.onRoute(d.Route, a, d.External != nil)
	if !ok { // a template that came out as an address for which there is no permission
		id, _ = p.onRoute(d.Route, c.From, d.External != nil)
	}
	d.because(ReasonFallback, id.addr.String(), c.Name)
	return id
}

// refusal words the rejection by the step that failed.
func refusal(c *Client, d *Decision) *Reply {
	switch d.Reasons[len(d.Reasons)-1].Code {
	case ReasonMayNotAsk:
		return reject("<%s>: client %q may not send as this address; ask the relay's administrator to add it to senders: of the client", d.Asked, c.Name)
	case ReasonNotAsked:
		return reject("the message names no sender, and client %q has no from: in sendas.yaml", c.Name)
	case ReasonNotVerified:
		return reject("<%s>: not an address of a verified domain of this organisation; ask the relay's administrator to list "+
			"the domain under tenant.domains if the organisation has it (client %q, route %q)", d.Asked, c.Name, d.Route.Name)
	}
	return reject("<%s>: no mailbox of this relay may send as this address; ask its administrator to list it under send_as: "+
		"of the mailbox that has the permission (client %q)", d.Asked, c.Name)
}

func (d *Decision) because(code ReasonCode, subject, object string) {
	d.Reasons = append(d.Reasons, Reason{Code: code, Subject: subject, Object: object})
}

// refuse ends the decision with a reply to the client.
func (d *Decision) refuse(reply *Reply, why Reason) {
	d.Action, d.Reply = Reject, reply
	if reply.Temporary() {
		d.Action = Defer
	}
	d.Reasons = append(d.Reasons, why)
}

func trimAngles(s string) string {
	return strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(s), "<"), ">")
}
