// Package milter is Postfix's inbound side: it translates between the milter protocol and
// package policy. It decides nothing itself, keeps no message body, and holds no secret.
package milter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	protocol "github.com/d--j/go-milter"

	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/limit"
)

// idleTime is how long a connection may rest between two commands; Postfix' smtpd_timeout,
// the longest silence of an SMTP client, is 300 s.
const idleTime = 10 * time.Minute

// Actions are what the milter asks Postfix to be allowed to do; "sendas doctor" knows it by them.
const Actions = protocol.OptAddHeader | protocol.OptChangeHeader | protocol.OptChangeFrom |
	protocol.OptAddRcptWithArgs | protocol.OptRemoveRcpt | protocol.OptQuarantine

// A Server is the milter. The zero value is not usable: fill in Log and Metrics, call Use.
type Server struct {
	Log      *slog.Logger
	Metrics  *Metrics
	Sessions *Sessions // shared with the PolicyServer
	Quotas   *Quotas   // likewise; nil: no limits

	policy atomic.Pointer[policy.Policy]

	mu     sync.Mutex // guards conns
	conns  map[*conn]struct{}
	closed chan struct{} // of Shutdown: the last connection has gone
}

// Use puts a policy into force for the messages that begin from now on.
func (s *Server) Use(p *policy.Policy) { s.policy.Store(p) }

// Serve accepts milter connections until the listener is closed. It may be called for
// several listeners.
func (s *Server) Serve(ln net.Listener) error {
	srv := protocol.NewServer(
		protocol.WithMilter(func() protocol.Milter { return &transaction{s: s} }),
		protocol.WithoutDefaultMacros(),
		protocol.WithAction(Actions),
		// Ask for no step and no reply that a decision does not need. The one to the end of the message
		// remains; strangers are turned away earlier by the policy service, which costs one request more.
		protocol.WithProtocol(protocol.OptNoConnect|protocol.OptNoHelo|protocol.OptNoData|protocol.OptNoEOH|
			protocol.OptNoBody|protocol.OptNoUnknown|protocol.OptNoMailReply|protocol.OptNoRcptReply|protocol.OptNoHeaderReply),
		protocol.WithMacroRequest(protocol.StageConnect, []string{protocol.MacroClientAddr}),
		protocol.WithMacroRequest(protocol.StageMail, []string{protocol.MacroClientAddr, protocol.MacroClientPort,
			protocol.MacroAuthAuthen, protocol.MacroTlsVersion, protocol.MacroCertSubject}),
		protocol.WithMacroRequest(protocol.StageEOM, []string{protocol.MacroQueueId}),
	)
	err := srv.Serve(&listener{Listener: ln, s: s})
	if errors.Is(err, net.ErrClosed) || errors.Is(err, protocol.ErrServerClosed) {
		return nil
	}
	return err
}

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

// listener counts connections and gives each its deadlines and its buffers, which the library does not.
type listener struct {
	net.Listener
	s *Server
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	k := &conn{Conn: c, s: l.s}
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if l.s.conns == nil {
		l.s.conns = make(map[*conn]struct{})
	}
	l.s.conns[k] = struct{}{}
	return wrap(k), nil
}

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

// transaction is one message. The library makes a new one for each, and runs it in one
// goroutine.
type transaction struct {
	protocol.NoOpMilter
	s      *Server
	policy *policy.Policy // the same for the whole message, whatever is reloaded meanwhile
	req    policy.Request
	limit  string // which of the client's limits the message is over, in words
}

// MailFrom begins a message.
func (t *transaction) MailFrom(from, _ string, _ *protocol.Modifier) (*protocol.Response, error) {
	t.policy = t.s.policy.Load()
	t.limit = ""
	t.req = policy.Request{Sender: from, Rcpts: t.req.Rcpts[:0], Fields: t.req.Fields[:0]}
	return protocol.RespContinue, nil
}

// peer reads who speaks from the macros, which outlive the first message of a
// session, as the arguments of Connect do not.
func (t *transaction) peer(m *protocol.Modifier) policy.Peer {
	p := policy.Peer{Login: m.Macros.Get(protocol.MacroAuthAuthen), Subject: m.Macros.Get(protocol.MacroCertSubject)}
	addr := strings.TrimPrefix(m.Macros.Get(protocol.MacroClientAddr), "IPv6:")
	if a, err := netip.ParseAddr(addr); err == nil {
		p.Addr = a.Unmap()
	}
	if !t.policy.UsesFingerprints() || m.Macros.Get(protocol.MacroTlsVersion) == "" {
		return p
	}
	// No macro has the fingerprint; the policy service was told it at RCPT of the same session.
	c, known := t.s.Sessions.find(sessionKey{p.Addr, m.Macros.Get(protocol.MacroClientPort)}, time.Now())
	p.Fingerprint, p.KeyFingerprint, p.NoFingerprint = c.fingerprint, c.publicKey, !known
	return p
}

// RcptTo collects a recipient. Postfix sends those it has accepted itself.
func (t *transaction) RcptTo(to, _ string, _ *protocol.Modifier) (*protocol.Response, error) {
	t.req.Rcpts = append(t.req.Rcpts, to)
	return protocol.RespContinue, nil
}

// Header collects the fields that a decision reads.
func (t *transaction) Header(name, value string, _ *protocol.Modifier) (*protocol.Response, error) {
	if policy.Wants(name) {
		t.req.Fields = append(t.req.Fields, policy.Field{Name: name, Value: value})
	}
	return protocol.RespContinue, nil
}

// EndOfMessage decides and applies the decision. An error makes Postfix do as
// milter_default_action says, which is to defer: a message never leaves half changed.
func (t *transaction) EndOfMessage(m *protocol.Modifier) (*protocol.Response, error) {
	if t.policy == nil {
		return nil, errors.New("a message ended that had not begun")
	}
	t.req.QueueID, t.req.Now = m.Macros.Get(protocol.MacroQueueId), time.Now()
	t.req.Peer = t.peer(m) // not before: the policy service hears of a certificate at RCPT
	d := t.policy.Decide(&t.req)
	defer t.report(&d)
	if d.Reply != nil {
		return respond(d.Reply)
	}
	places, no, on := t.s.Quotas.reserve(d.Client.Name, len(t.req.Rcpts), t.req.Now)
	if no != nil && on != HoldOver {
		return t.over(&d, no, on)
	}
	if err := t.apply(m, &d); err != nil {
		places.Abort()
		return nil, fmt.Errorf("changing message %s: %w", t.req.QueueID, err)
	}
	if no != nil {
		d.Action, t.limit = actionHold, limit.Describe(no, t.req.Now)
		d.Reasons = append(d.Reasons, policy.Reason{Code: reasonLimit, Subject: d.Client.Name})
		if err := m.Quarantine(t.limit); err != nil {
			return nil, fmt.Errorf("holding message %s: %w", t.req.QueueID, err)
		}
		return protocol.RespAccept, nil
	}
	if no := t.s.Quotas.commit(places, t.req.Now); no != nil { // it took so long that its places had expired
		return t.over(&d, no, on)
	}
	return protocol.RespAccept, nil
}

// What a client's limits add to the words of package policy.
const (
	actionHold  policy.Action     = "hold"
	reasonLimit policy.ReasonCode = "client-limit"
)

// over refuses a message for its client's limits.
func (t *transaction) over(d *policy.Decision, no *limit.Refusal, on OnLimit) (*protocol.Response, error) {
	d.Action, t.limit = policy.Defer, limit.Describe(no, t.req.Now)
	if on == RejectOver {
		d.Action = policy.Reject
	}
	d.Reasons = append(d.Reasons, policy.Reason{Code: reasonLimit, Subject: d.Client.Name})
	return respond(overLimit(no, on, t.req.Now))
}

// Abort forgets the message; the next may follow in the same session.
func (t *transaction) Abort(*protocol.Modifier) error {
	t.req = policy.Request{}
	return nil
}

// report writes the one log line of the message.
func (t *transaction) report(d *policy.Decision) {
	reason := d.Reasons[len(d.Reasons)-1].Code
	client, route := "", ""
	if d.Client != nil {
		client = d.Client.Name
	}
	if d.Route != nil {
		route = d.Route.Name
	}
	attrs := []any{"qid", t.req.QueueID, "client", client, "addr", t.req.Peer.Addr, "login", t.req.Peer.Login,
		"asked", d.Asked.String(), "identity", d.Identity.String(), "mailbox", d.User.String(), "route", route,
		"rcpts", len(t.req.Rcpts), "action", d.Action, "rewritten", d.Rewritten(), "reason", reason}
	if t.limit != "" { // Postfix does not log why it holds a message
		attrs = append(attrs, "limit", t.limit)
	}
	t.s.Log.Info("message", attrs...)
	t.s.Metrics.observe(client, d.Action, reason, time.Since(t.req.Now))
}

// apply sends the changes to Postfix.
func (t *transaction) apply(m *protocol.Modifier, d *policy.Decision) error {
	if d.Sender != "" {
		if err := m.ChangeFrom(d.Sender, ""); err != nil {
			return err
		}
	}
	if d.NoBounce {
		if err := t.silence(m); err != nil {
			return err
		}
	}
	for _, c := range d.Changes {
		var err error
		switch c.Op {
		case policy.Add:
			err = m.AddHeader(c.Name, c.Value)
		case policy.Change:
			err = m.ChangeHeader(c.Index, c.Name, c.Value)
		case policy.Delete:
			err = m.ChangeHeader(c.Index, c.Name, "")
		default:
			err = fmt.Errorf("no such header operation: %q", c.Op)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// silence enters each recipient anew, so that none causes a bounce (RFC 3461, section 4.1). Postfix passes it on to Microsoft.
func (t *transaction) silence(m *protocol.Modifier) error {
	slices.Sort(t.req.Rcpts)
	for _, to := range slices.Compact(t.req.Rcpts) {
		if err := m.DeleteRecipient(to); err != nil {
			return err
		}
		if err := m.AddRecipient(to, "NOTIFY=NEVER"); err != nil {
			return err
		}
	}
	return nil
}

// respond turns a reply into the protocol's form.
func respond(r *policy.Reply) (*protocol.Response, error) {
	return protocol.RejectWithCodeAndReason(uint16(r.Code), r.Enhanced+" "+r.Text)
}
