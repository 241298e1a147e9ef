package milter

import (
	"cmp"
	"strconv"
	"strings"
	"time"

	"github.com/sendas/sendas/internal/record"
	"github.com/sendas/sendas/milter/quota"
	"github.com/sendas/sendas/policy"
)

// record keeps what was decided on a message; of one that was only observed, what would have been.
func (t *transaction) record(d *policy.Decision, observed bool) {
	if !t.s.Record.On() {
		return
	}
	client, reason := t.outcome(d)
	m := t.message(client, reason)
	m.Time, m.Queue, m.Observed = t.req.Now, t.req.QueueID, observed
	m.From, m.Identity, m.Action = cmp.Or(strings.Clone(d.Asked.String()), m.Sender), d.Identity.String(), string(d.Action)
	m.Mailbox, m.Pool = d.User.String(), d.Pool
	if d.Route != nil {
		m.Route = d.Route.Name
	}
	if m.Detail == "" && d.Reply != nil {
		m.Detail = d.Reply.String()
	}
	if d.Discard {
		m.Action = record.Discarded
	}
	m.Waits = observed || !d.Discard && (d.Action == policy.Accept || d.Action == policy.Hold || d.Action == policy.Pass)
	if m.Leaves = m.Sender; !observed && m.Waits {
		m.Leaves = cmp.Or(strings.Trim(d.Sender, "<>"), m.Sender)
	}
	m.MessageID = messageID(&t.req, d, observed)
	t.s.Record.Message(m)
}

// recordRefusal keeps a message that a limit refused before its end.
func (t *transaction) recordRefusal(client string, over *quota.Overrun, limit string, now time.Time) {
	if !t.s.Record.On() {
		return
	}
	m := t.message(client, over.Reason)
	m.Time, m.From, m.Action, m.Detail = now, m.Sender, string(over.Action()), limit
	m.Count = max(m.Count, t.refused)
	t.s.Record.Message(m)
}

// message is what the record says of the message under way, but for what was decided.
func (t *transaction) message(client string, reason policy.ReasonCode) *record.Message {
	peer := t.req.Peer
	if !peer.Addr.IsValid() {
		peer = t.who.peer()
	}
	return &record.Message{Addr: peer.Addr, PTR: t.who.hostName(), HELO: t.helo, Login: peer.Login, Subject: peer.Subject, Client: client,
		Sender: strings.Trim(t.req.Sender, "<>"), Reason: string(reason), Detail: t.limit, Recipients: t.req.Rcpts, Count: t.req.Recipients(), Size: t.size}
}

// messageID returns the Message-ID with which a message goes on, without angle brackets.
func messageID(r *policy.Request, d *policy.Decision, asItCame bool) string {
	id := ""
	for _, f := range r.Fields {
		if strings.EqualFold(f.Name, "Message-ID") {
			id = f.Value
			break
		}
	}
	if !asItCame {
		for _, c := range d.Changes {
			if strings.EqualFold(c.Name, "Message-ID") && c.Op != policy.Delete && c.Index <= 1 {
				id = c.Value
			}
		}
	}
	if named := record.NamedID(id); named != "" {
		return strings.Clone(named)
	}
	return strings.Clone(strings.TrimSpace(id))
}

// sizeOf reads the size that the client has declared (RFC 1870), 0 where it has not.
func sizeOf(args string) int64 {
	for arg := range strings.FieldsSeq(args) {
		if len(arg) > 5 && strings.EqualFold(arg[:5], "SIZE=") {
			n, err := strconv.ParseInt(arg[5:], 10, 64)
			if err == nil && n > 0 {
				return n
			}
		}
	}
	return 0
}

// record keeps what was refused at RCPT.
func (s *PolicyServer) record(q *query, client string, f *policy.Forecast, peer policy.Peer) {
	if !s.Record.On() {
		return
	}
	action := policy.Reject
	if f.Reply.Temporary() {
		action = policy.Defer
	}
	m := &record.Message{Time: time.Now(), Addr: peer.Addr, PTR: (&macros{name: q.name, ptr: q.ptr}).hostName(), HELO: q.helo, Login: q.login, Subject: q.subject, Client: client,
		Sender: q.sender, From: q.sender, Action: string(action), Reason: string(f.Reasons[len(f.Reasons)-1].Code), Detail: f.Reply.String(), Instance: q.instance, Count: 1, Size: sizeOf("SIZE=" + q.size)}
	if q.recipient != "" {
		m.Recipients = []string{q.recipient}
	}
	s.Record.Message(m)
}
