// Package milter is Postfix's inbound side: it translates between the milter protocol and
// package policy. It decides nothing itself, reads no message body (where its size makes a
// difference, it counts the bytes), and holds no secret.
package milter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	protocol "github.com/d--j/go-milter"

	"github.com/sendas/sendas/internal/record"
	"github.com/sendas/sendas/internal/serve"
	"github.com/sendas/sendas/milter/queue"
	"github.com/sendas/sendas/milter/quota"
	"github.com/sendas/sendas/policy"
)

// idleTime is how long a connection may rest between two commands; Postfix' smtpd_timeout,
// the longest silence of an SMTP client, is 300 s.
const idleTime = 10 * time.Minute

// A Server is the milter. The zero value is not usable: fill in Log and Metrics, call Use.
type Server struct {
	Log      *slog.Logger
	Metrics  *Metrics
	Sessions *Sessions      // shared with the PolicyServer
	Quotas   *quota.Desk    // likewise; nil: no limits
	Tally    *Tally         // likewise; nil: nothing is counted for Status
	Queue    *queue.Watch   // nil: no ceiling
	Record   *record.Keeper // shared with the PolicyServer; nil: nothing is kept

	policy  atomic.Pointer[policy.Rules]
	classes atomic.Pointer[policy.Classes]
	warns   serve.Sparing

	mu     sync.Mutex // guards what follows
	conns  map[*conn]struct{}
	closed chan struct{}  // of Shutdown: the last connection has gone
	kinds  map[offer]bool // that the log has mentioned
}

// Use puts a policy into force for the messages that begin from now on.
func (s *Server) Use(p *policy.Rules) {
	s.Tally.use(p.Mode())
	s.Metrics.use(p.Mode())
	s.policy.Store(p)
}

// UseClasses says which recipients Postfix delivers itself, for the messages that begin from now
// on. Nil is that nobody has said; then all mail is ours.
func (s *Server) UseClasses(c *policy.Classes) { s.classes.Store(c) }

// Serve accepts milter connections until the listener is closed. It may be called for
// several listeners.
func (s *Server) Serve(ln net.Listener) error {
	return serve.Each(ln, s.Log, func(c net.Conn) {
		k := s.track(c)
		go s.session(wrap(k))
	})
}

// session gives a connection a server of the library's of its own, because what its MTA is asked
// for depends on what that offers, and on the limits in force.
func (s *Server) session(c *buffered) {
	o, err := c.offer()
	if err != nil {
		if err != io.EOF && !errors.Is(err, net.ErrClosed) { // one that said nothing looked whether we are there
			s.warns.Warn(s.Log, "milter connection", "error", err)
		}
		c.Close()
		return
	}
	s.mention(o)
	p := s.policy.Load()
	observes := p.Observes()
	t := &transaction{s: s, changes: changes{w: c}, offer: o, early: s.Quotas.Early() && !observes, measured: p.Measures()}
	srv := protocol.NewServer(append(o.options(wishes{early: t.early, helo: observes, size: t.measured}), protocol.WithMilter(func() protocol.Milter { return t }))...)
	_ = srv.Serve(&one{conn: c}) // it has begun a goroutine for the connection, which closes it
}

// one is a listener for one connection.
type one struct{ conn net.Conn }

func (l *one) Accept() (net.Conn, error) {
	c := l.conn
	l.conn = nil
	if c == nil {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (l *one) Close() error   { return nil }
func (l *one) Addr() net.Addr { return nil }

// Shutdown waits until Postfix has closed all connections, so that every SMTP session that
// has begun ends with the same milter, or until ctx ends; then it closes what is left.
// Postfix answers those clients as milter_default_action says. Close the
// listeners first.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	n := len(s.conns)
	done := make(chan struct{})
	if n > 0 {
		s.closed = done
	} else {
		close(done)
	}
	s.mu.Unlock()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	left := slices.Collect(maps.Keys(s.conns))
	s.mu.Unlock()
	for _, c := range left {
		c.Close()
	}
	return fmt.Errorf("%d SMTP sessions had not ended in time", len(left))
}

// track counts a connection.
func (s *Server) track(c net.Conn) *conn {
	k := &conn{Conn: c, s: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		s.conns = make(map[*conn]struct{})
	}
	s.conns[k] = struct{}{}
	return k
}

// conn gives a connection its deadlines.
type conn struct {
	net.Conn
	s    *Server
	once sync.Once
}

func (c *conn) Read(p []byte) (int, error) {
	c.SetReadDeadline(time.Now().Add(idleTime))
	return c.Conn.Read(p)
}

func (c *conn) Write(p []byte) (int, error) {
	c.SetWriteDeadline(time.Now().Add(30 * time.Second)) // milter_command_timeout
	return c.Conn.Write(p)
}

// Close may come twice: from Shutdown, then from the library.
func (c *conn) Close() (err error) {
	c.once.Do(func() {
		c.s.mu.Lock()
		defer c.s.mu.Unlock()
		delete(c.s.conns, c)
		if len(c.s.conns) == 0 && c.s.closed != nil {
			close(c.s.closed)
			c.s.closed = nil
		}
		err = c.Conn.Close()
	})
	return err
}

// transaction is the message under way on a connection; the next one takes its place. The library
// runs it in one goroutine.
type transaction struct {
	protocol.NoOpMilter
	s       *Server
	changes changes
	offer   offer  // of the MTA
	told    macros // by the connection and HELO, for an MTA that does not send the macros it is asked for
	helo    string // what the client calls itself, where somebody wants to know
	early   bool   // Postfix waits for our replies to MAIL and RCPT

	measured bool // Postfix shows bodies

	policy  *policy.Rules // the same for the whole message, whatever is reloaded meanwhile
	classes *policy.Classes
	waits   string // the client of which limits are asked at the first recipient that is ours
	req     policy.Request
	who     macros
	booking quota.Booking
	limit   string // which limit the message, or a recipient of it, is over, in words
	refused int    // recipients, for a limit
	over    *quota.Overrun
	size    int64 // as the client declared it; 0: not
}

// Connect is not called where the macros tell who the client is.
func (t *transaction) Connect(name, _ string, port uint16, addr string, _ protocol.Modifier) (*protocol.Response, error) {
	t.told = macros{addr: addr, port: strconv.Itoa(int(port)), name: name}
	return protocol.RespContinue, nil
}

// Helo is called where Connect is, and where the name is asked for. The MTA says of a certificate
// here, and the library forgets it after the first message.
func (t *transaction) Helo(name string, m protocol.Modifier) (*protocol.Response, error) {
	t.helo = name
	t.told.tls, t.told.subject = m.Get(protocol.MacroTlsVersion), m.Get(protocol.MacroCertSubject)
	return protocol.RespContinue, nil
}

// MailFrom begins a message. Where a limit can refuse it before its end, it does so here.
func (t *transaction) MailFrom(from, args string, m protocol.Modifier) (*protocol.Response, error) {
	t.finish()
	t.policy, t.booking = t.s.policy.Load(), t.s.Quotas.Begin()
	t.classes, t.waits = t.s.classes.Load(), ""
	t.req.Sender, t.size = from, sizeOf(args)
	if !t.early || t.policy.Observes() {
		return protocol.RespContinue, nil
	}
	t.who = t.macros(m)
	if t.policy.UsesFingerprints() && t.who.tls != "" {
		return protocol.RespContinue, nil // the policy service hears of the certificate at RCPT: we know the client at the end
	}
	peer := t.who.peer()
	c := t.policy.FindClient(peer, from)
	if c == nil || !t.booking.Refuses(c.Name) {
		return protocol.RespContinue, nil // it is refused at the end, with the reason; or never
	}
	if t.classes != nil {
		t.waits = c.Name
		return protocol.RespContinue, nil
	}
	now := time.Now()
	if over := t.booking.Mail(c.Name, now); over != nil {
		t.req.Peer = peer
		return t.refuseSender(c.Name, over, now)
	}
	return protocol.RespContinue, nil
}

// refuseSender answers MAIL.
func (t *transaction) refuseSender(client string, over *quota.Overrun, now time.Time) (*protocol.Response, error) {
	reply := over.Reply(now)
	t.s.Log.Info("sender refused", "client", client, "addr", t.req.Peer.Addr, "login", t.req.Peer.Login, "asked", t.req.Sender,
		"action", over.Action(), "reason", over.Reason, "limit", reply.Text)
	t.s.Metrics.refused(client, over)
	t.s.Tally.message(client, over.Action(), over.Reason, now)
	t.s.Tally.refused(t.req.Peer, client, t.req.Sender, over.Action(), over.Reason, reply.Text, now)
	t.recordRefusal(client, over, reply.Text, now)
	return respond(reply)
}

// macros are what Postfix says of the one who speaks. They outlive the first message of a session,
// as the arguments of Connect do not.
type macros struct{ addr, port, login, subject, tls, name, ptr string }

// macros returns what the MTA says by now.
func (t *transaction) macros(m protocol.Modifier) macros {
	who := macros{addr: m.Get(protocol.MacroClientAddr), port: m.Get(protocol.MacroClientPort), login: m.Get(protocol.MacroAuthAuthen),
		subject: cmp.Or(m.Get(protocol.MacroCertSubject), t.told.subject), tls: cmp.Or(m.Get(protocol.MacroTlsVersion), t.told.tls),
		name: cmp.Or(m.Get(protocol.MacroClientName), t.told.name), ptr: m.Get(protocol.MacroClientPTR)}
	if who.addr == "" {
		who.addr, who.port = t.told.addr, t.told.port
	}
	return who
}

// peer returns who speaks, without the fingerprint of a certificate.
func (m *macros) peer() policy.Peer {
	p := policy.Peer{Login: m.login, Subject: m.subject, Port: portOf(m.port)}
	if a, err := netip.ParseAddr(strings.TrimPrefix(m.addr, "IPv6:")); err == nil {
		p.Addr = a.Unmap()
	}
	return p
}

// peer returns who speaks, at the end of the message.
func (t *transaction) peer(m protocol.Modifier) policy.Peer {
	t.who = t.macros(m)
	p := t.who.peer()
	if !t.policy.UsesFingerprints() || t.who.tls == "" {
		return p
	}
	// No macro has the fingerprint; the policy service was told it at RCPT of the same session.
	c, known := t.s.Sessions.find(sessionKey{p.Addr, t.who.port}, time.Now())
	p.Fingerprint, p.KeyFingerprint, p.NoFingerprint = c.fingerprint, c.publicKey, !known
	return p
}

// routed reports whether the policy service has told Postfix the way of this message, in the same
// session.
func (t *transaction) routed() bool {
	told, _ := t.s.Sessions.find(sessionKey{t.req.Peer.Addr, t.who.port}, t.req.Now)
	return told.routed
}

// RcptTo collects a recipient, unless a limit refuses it: then the message goes on with those that
// it has. Postfix sends those that it has accepted itself.
func (t *transaction) RcptTo(to, _ string, m protocol.Modifier) (*protocol.Response, error) {
	at := t.place(to, m)
	if at.Verdict != policy.Elsewhere {
		now := time.Now()
		if over := t.book(now); over != nil {
			reply := over.Reply(now)
			t.refused, t.over, t.limit = t.refused+1, over, reply.Text
			t.s.Metrics.rcpts.WithLabelValues(t.limited()).Inc()
			t.s.Tally.recipient(t.limited())
			return respond(reply)
		}
	}
	t.req.AddRecipient(to, at)
	return protocol.RespContinue, nil
}

// place says what becomes of a recipient.
func (t *transaction) place(to string, m protocol.Modifier) policy.Place {
	if t.classes == nil || t.policy == nil {
		return policy.Place{}
	}
	h := policy.Hint{Mailer: m.Get(protocol.MacroRcptMailer), Host: m.Get(protocol.MacroRcptHost), Addr: m.Get(protocol.MacroRcptAddr)}
	return t.policy.Place(t.classes, to, h)
}

// book asks the limits for a recipient that is ours; for the first one, of the message as well.
func (t *transaction) book(now time.Time) *quota.Overrun {
	if t.waits != "" && t.booking.Places == nil {
		if over := t.booking.Mail(t.waits, now); over != nil {
			return over
		}
	}
	if t.booking.Places == nil {
		return nil
	}
	return t.booking.Recipients(1, now)
}

// limited is the client whose limits are asked before the end.
func (t *transaction) limited() string { return cmp.Or(t.booking.Client, t.waits) }

// Header collects the fields that a decision reads.
func (t *transaction) Header(name, value string, _ protocol.Modifier) (*protocol.Response, error) {
	t.req.AddField(name, value)
	t.req.Size += len(name) + len(value) + len(": \r\n")
	return protocol.RespContinue, nil
}

// BodyChunk counts the bytes of the body, as far as that makes a difference, and looks at none.
func (t *transaction) BodyChunk(chunk []byte, m protocol.Modifier) (*protocol.Response, error) {
	t.req.Size += len(chunk)
	if t.offer.steps&protocol.OptSkip != 0 && t.measured && t.policy != nil && !t.policy.Weighs(t.peer(m), t.req.Sender, t.req.Size) {
		return protocol.RespSkip, nil
	}
	return protocol.RespContinue, nil
}

// EndOfMessage decides and applies the decision. An error makes Postfix do as
// milter_default_action says, which is to defer: a message never leaves half changed.
func (t *transaction) EndOfMessage(m protocol.Modifier) (*protocol.Response, error) {
	if t.policy == nil {
		if t.s.policy.Load().Observes() {
			return protocol.RespAccept, nil
		}
		return nil, errors.New("a message ended that had not begun")
	}
	t.req.QueueID, t.req.Now = m.Get(protocol.MacroQueueId), time.Now()
	t.req.Peer = t.peer(m) // not before: the policy service hears of a certificate at RCPT
	if !t.measured {
		t.req.Size = policy.Unmeasured
	}
	t.req.Routed = t.policy.TellsWay() && t.routed()
	d := t.policy.Decide(&t.req)
	defer t.end()
	if t.policy.Observes() {
		t.observe(&d)
		return protocol.RespAccept, nil
	}
	defer t.report(&d)
	if d.Action == policy.Pass {
		return protocol.RespAccept, nil
	}
	if d.Client == nil && t.untold() {
		return t.lacking(&d, protocol.OptSetMacros)
	}
	if d.Reply != nil {
		return respond(d.Reply)
	}
	if d.Discard {
		return protocol.RespDiscard, nil
	}
	leaving := t.req.Leaving()
	over := t.booking.End(d.Client.Name, d.Identity, leaving, t.req.Now)
	if over != nil && over.On != quota.HoldOver {
		return t.refuse(&d, over)
	}
	if full := t.s.Queue.Overflow(&d, leaving); full != nil && over == nil { // what is held does not wait
		return t.defers(&d, full)
	}
	if lacks := needs(&d) &^ t.offer.actions; lacks != 0 {
		return t.lacking(&d, lacks)
	}
	if err := t.apply(&d); err != nil {
		return t.fails(&d, fmt.Errorf("changing message %s: %w", t.req.QueueID, err))
	}
	if over == nil { // others may have taken the places of one that took very long, or on another host
		over = t.booking.Commit(t.req.Now)
	}
	switch {
	case over == nil:
		t.s.Queue.Accepted(&d, t.req.QueueID, leaving, t.req.Now)
		return protocol.RespAccept, nil
	case over.On == quota.HoldOver:
		return t.hold(&d, over)
	}
	return t.refuse(&d, over)
}

// note enters a limit into the decision.
func (t *transaction) note(d *policy.Decision, over *quota.Overrun) {
	d.Action, t.limit = over.Action(), quota.Describe(over.Refusal, t.req.Now)
	who := d.Client.Name
	if over.Reason == policy.ReasonIdentityLimit {
		who = d.Identity.String()
	}
	d.Reasons = append(d.Reasons, policy.Reason{Code: over.Reason, Subject: who})
}

// refuse refuses a message for its limits.
func (t *transaction) refuse(d *policy.Decision, over *quota.Overrun) (*protocol.Response, error) {
	t.note(d, over)
	return respond(over.Reply(t.req.Now))
}

// hold accepts a message that is over its limits, and counts it for none.
func (t *transaction) hold(d *policy.Decision, over *quota.Overrun) (*protocol.Response, error) {
	if t.offer.actions&protocol.OptQuarantine == 0 {
		return t.lacking(d, protocol.OptQuarantine)
	}
	t.note(d, over)
	if err := t.changes.hold(t.limit); err != nil {
		return t.fails(d, fmt.Errorf("holding message %s: %w", t.req.QueueID, err))
	}
	return protocol.RespAccept, nil
}

// defers asks the client to come again when its mailbox's queue is shorter.
func (t *transaction) defers(d *policy.Decision, full *policy.Reply) (*protocol.Response, error) {
	d.Action, t.limit = policy.Defer, full.Text
	d.Reasons = append(d.Reasons, policy.Reason{Code: policy.ReasonQueueCeiling, Subject: d.User.String()})
	return respond(full)
}

// fails leaves the message to Postfix, which defers it: see EndOfMessage.
func (t *transaction) fails(d *policy.Decision, err error) (*protocol.Response, error) {
	d.Action = policy.Defer
	d.Reasons = append(d.Reasons, policy.Reason{Code: policy.ReasonNotApplied})
	return nil, err
}

// Abort forgets the message; the next may follow in the same session.
func (t *transaction) Abort(protocol.Modifier) error {
	t.finish()
	t.policy = nil
	return nil
}

// end gives back what a message holds that it has not used, and its memory: a session may go on for
// hours.
func (t *transaction) end() {
	t.booking.Abort()
	t.limit, t.refused, t.over = "", 0, nil
	t.req.Clear()
	t.changes.clear()
}

// Cleanup is called once, when the connection ends, however it does.
func (t *transaction) Cleanup(protocol.Modifier) { t.finish() }

// finish ends a message that may not have come to its end: the client has begun anew, or gone.
func (t *transaction) finish() {
	if t.refused > 0 {
		t.s.Log.Info("recipients refused", "client", t.limited(), "addr", t.who.peer().Addr, "login", t.who.login, "asked", t.req.Sender,
			"recipients", t.req.Recipients(), "refused", t.refused, "reason", t.over.Reason, "limit", t.limit)
		t.s.Tally.refused(t.who.peer(), t.limited(), t.req.Sender, t.over.Action(), t.over.Reason, t.limit, time.Now())
		if len(t.req.Rcpts) == 0 {
			t.s.Metrics.refused(t.limited(), t.over)
			t.s.Tally.message(t.limited(), t.over.Action(), t.over.Reason, time.Now())
			t.recordRefusal(t.limited(), t.over, t.limit, time.Now())
		}
	}
	t.end()
}

// report writes the one log line of the message.
func (t *transaction) report(d *policy.Decision) {
	client, reason := t.outcome(d)
	t.s.Log.Info("message", t.attrs(d, "action")...)
	t.s.Metrics.observe(client, d.Action, reason, time.Since(t.req.Now))
	t.s.Tally.message(client, d.Action, reason, t.req.Now)
	t.turnedAway(d, client, reason)
	t.record(d, false)
}

// turnedAway remembers whom a decision turned away, or would.
func (t *transaction) turnedAway(d *policy.Decision, client string, reason policy.ReasonCode) {
	if d.Reply != nil {
		t.s.Tally.refused(t.req.Peer, client, cmp.Or(d.Asked.String(), t.req.Sender), d.Action, reason, d.Reply.Text, t.req.Now)
	}
}

// outcome returns whose message it was, "" for nobody's, and what decided on it.
func (t *transaction) outcome(d *policy.Decision) (client string, reason policy.ReasonCode) {
	if d.Client != nil {
		client = d.Client.Name
	}
	return client, d.Reasons[len(d.Reasons)-1].Code
}

// attrs are what the log says of a message; the decision stands under a name.
func (t *transaction) attrs(d *policy.Decision, action string) []any {
	client, reason := t.outcome(d)
	route := ""
	if d.Route != nil {
		route = d.Route.Name
	}
	attrs := []any{"qid", t.req.QueueID, "client", client, "addr", t.req.Peer.Addr, "login", t.req.Peer.Login,
		"asked", d.Asked.String(), "identity", d.Identity.String(), "mailbox", d.Through(), "route", route,
		"recipients", t.req.Recipients(), action, d.Action, "rewritten", d.Rewritten(), "reason", reason}
	if t.refused > 0 {
		attrs = append(attrs, "refused", t.refused)
	}
	if d.Kept { // else the identity is the envelope sender too
		attrs = append(attrs, "sender", cmp.Or(d.Sender, strings.Trim(t.req.Sender, "<>"), "<>"))
	}
	if d.Discard {
		attrs = append(attrs, "discarded", true)
	}
	if t.limit != "" { // Postfix does not log why it holds a message
		attrs = append(attrs, "limit", t.limit)
	}
	return attrs
}

// apply sends the changes to Postfix.
func (t *transaction) apply(d *policy.Decision) error {
	if d.Sender != "" {
		if err := t.changes.sender(d.Sender); err != nil {
			return err
		}
	}
	for _, c := range d.Changes {
		var err error
		switch c.Op {
		case policy.Add:
			err = t.changes.addHeader(c.Name, c.Value)
		case policy.Change:
			err = t.changes.changeHeader(c.Index, c.Name, c.Value)
		case policy.Delete:
			err = t.changes.changeHeader(c.Index, c.Name, "")
		default:
			err = fmt.Errorf("no such header operation: %q", c.Op)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// respond turns a reply into the protocol's form.
func respond(r *policy.Reply) (*protocol.Response, error) {
	return protocol.RejectWithCodeAndReason(uint16(r.Code), r.Enhanced+" "+r.Text)
}
