package milter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sendas/sendas/internal/record"
	"github.com/sendas/sendas/internal/serve"
	"github.com/sendas/sendas/milter/quota"
	"github.com/sendas/sendas/policy"
)

// Limits of a request. Postfix sends about 30 attributes; addresses are the longest.
const (
	maxAttribute  = 4096
	maxAttributes = 100
)

// A PolicyServer answers Postfix's policy delegation protocol (SMTPD_POLICY_README), from the same
// policy as the milter: refusals that do not depend on the header already at RCPT, and the way out
// of the message as FILTER. It never says OK, so it opens nothing that Postfix' own restrictions
// close. The zero value is not usable: fill in all fields, call Use.
type PolicyServer struct {
	Log      *slog.Logger
	Metrics  *Metrics
	Sessions *Sessions      // shared with the milter
	Quotas   *quota.Desk    // likewise; nil: no limits
	Tally    *Tally         // likewise; nil: nothing is counted for Status
	Record   *record.Keeper // likewise; nil: nothing is kept

	policy  atomic.Pointer[policy.Rules]
	classes atomic.Pointer[policy.Classes]
	warns   serve.Sparing
	wg      sync.WaitGroup

	mu    sync.Mutex // guards conns
	conns map[net.Conn]struct{}
}

// Use puts a policy into force for the requests that come from now on.
func (s *PolicyServer) Use(p *policy.Rules) { s.policy.Store(p) }

// UseClasses is that of [Server], for requests.
func (s *PolicyServer) UseClasses(c *policy.Classes) { s.classes.Store(c) }

// Serve accepts connections until the listener is closed; each has a goroutine of its own.
func (s *PolicyServer) Serve(ln net.Listener) error {
	return serve.Each(ln, s.Log, func(c net.Conn) {
		s.mu.Lock()
		if s.conns == nil {
			s.conns = make(map[net.Conn]struct{})
		}
		s.conns[c] = struct{}{}
		s.mu.Unlock()
		s.wg.Go(func() { s.connection(c) })
	})
}

// Shutdown waits until Postfix has closed all connections or ctx ends, then closes what is left:
// smtpd(8) connects again, to the next process. Close the listeners first.
func (s *PolicyServer) Shutdown(ctx context.Context) {
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
		return
	case <-ctx.Done():
	}
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	<-done
}

func (s *PolicyServer) connection(c net.Conn) {
	defer func() {
		c.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, c)
	}()
	r := bufio.NewReaderSize(c, maxAttribute)
	for {
		c.SetReadDeadline(time.Now().Add(idleTime))
		q, err := readQuery(r)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				s.warns.Warn(s.Log, "policy connection", "error", err)
			}
			return
		}
		c.SetWriteDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.WriteString(c, "action="+s.answer(q)+"\n\n"); err != nil {
			return
		}
	}
}

// A query is one request of smtpd(8): what we use of its attributes.
type query struct {
	addr, port, login      string
	subject                string
	fingerprint, publicKey string
	sender, recipient      string
	name, ptr, helo, size  string
	instance               string // the same for all requests about one message
}

// readQuery reads a request: lines of name=value up to an empty one. io.EOF means that Postfix had
// no more.
func readQuery(r *bufio.Reader) (*query, error) {
	q := &query{}
	fields := map[string]*string{
		"client_address": &q.addr, "client_port": &q.port, "sasl_username": &q.login, "ccert_subject": &q.subject,
		"ccert_fingerprint": &q.fingerprint, "ccert_pubkey_fingerprint": &q.publicKey, "sender": &q.sender, "recipient": &q.recipient, "instance": &q.instance,
		"client_name": &q.name, "reverse_client_name": &q.ptr, "helo_name": &q.helo, "size": &q.size,
	}
	kind := ""
	fields["request"] = &kind
	for n := 0; ; n++ {
		line, err := r.ReadSlice('\n')
		switch {
		case err == io.EOF && n == 0 && len(line) == 0:
			return nil, io.EOF
		case errors.Is(err, bufio.ErrBufferFull):
			return nil, fmt.Errorf("an attribute is longer than %d bytes", maxAttribute)
		case err == io.EOF:
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		}
		text := strings.TrimSuffix(string(line), "\n")
		if text == "" {
			break
		}
		name, value, ok := strings.Cut(text, "=")
		if !ok || n >= maxAttributes {
			return nil, fmt.Errorf("not a policy request: %.20q", text)
		}
		if p := fields[name]; p != nil {
			*p = value
		}
	}
	if kind != "smtpd_access_policy" {
		return nil, fmt.Errorf("not a policy request: request=%.20q", kind)
	}
	return q, nil
}

func (q *query) peer() policy.Peer {
	p := policy.Peer{Login: q.login, Subject: q.subject, Fingerprint: q.fingerprint, KeyFingerprint: q.publicKey, Port: portOf(q.port)}
	if a, err := netip.ParseAddr(q.addr); err == nil {
		p.Addr = a.Unmap()
	}
	return p
}

// answer decides on a request. The text of the action is what access(5) takes.
func (s *PolicyServer) answer(q *query) string {
	if q.addr+q.login+q.subject+q.fingerprint+q.publicKey+q.sender+q.recipient == "" {
		return "DUNNO" // nobody's: smtpd(8) always tells the address; the doctor sees that we are there
	}
	p := s.policy.Load()
	peer := q.peer()
	req := policy.Request{Peer: peer, Sender: q.sender}
	if q.recipient != "" { // at DATA with several recipients there is none
		req.Rcpts = []string{q.recipient}
		req.Places = []policy.Place{p.Place(s.classes.Load(), q.recipient, policy.Hint{})}
	} else if s.classes.Load() != nil {
		req.Places = []policy.Place{{Verdict: policy.Doubtful}}
	}
	f := p.Foresee(&req)
	if p.Observes() {
		return s.pass(q, &f)
	}
	client := ""
	if f.Client != nil {
		client = f.Client.Name
	}
	if f.Reply == nil && q.recipient != "" && !f.Open {
		if f.Reply = s.Quotas.Foresee(client, time.Now()); f.Reply != nil {
			f.Reasons = append(f.Reasons, policy.Reason{Code: policy.ReasonClientLimit, Subject: client})
		}
	}
	if p.UsesFingerprints() || p.TellsWay() {
		s.Sessions.note(sessionKey{peer.Addr, q.port}, told{certificate{q.fingerprint, q.publicKey}, q.instance, f.Reply == nil && f.Filter != ""}, time.Now())
	}
	action, text := askedDunno, "DUNNO"
	switch {
	case f.Reply != nil:
		action, text = askedRefuse, f.Reply.String()
		s.Tally.recipient(client)
		became := policy.Reject
		if f.Reply.Temporary() {
			became = policy.Defer
		}
		s.Tally.refused(peer, client, q.sender, became, f.Reasons[len(f.Reasons)-1].Code, f.Reply.Text, time.Now())
		s.record(q, client, &f, peer)
		s.Log.Info("recipient refused", "client", client, "addr", peer.Addr, "login", peer.Login, "asked", q.sender, "recipient", q.recipient,
			"reason", f.Reasons[len(f.Reasons)-1].Code)
	case f.Filter != "":
		action, text = askedFilter, "FILTER "+f.Filter
	}
	s.Metrics.answered(client, action, f.Reasons[len(f.Reasons)-1].Code)
	return text
}

// pass answers where sendas only observes: Postfix goes on as without it.
func (s *PolicyServer) pass(q *query, f *policy.Forecast) string {
	client := ""
	if f.Client != nil {
		client = f.Client.Name
	}
	s.Sessions.note(sessionKey{q.peer().Addr, q.port}, told{certificate: certificate{q.fingerprint, q.publicKey}, instance: q.instance}, time.Now())
	s.Metrics.answered(client, askedDunno, f.Reasons[len(f.Reasons)-1].Code)
	return "DUNNO"
}
