package exosim

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// mx is contoso-com.mail.protection.outlook.com:25, where everybody may deliver
// to the organisation, and its connectors to everybody. It knows no AUTH and no
// limits of mailboxes.
type mx struct{ s *Server }

func (v mx) about() endpoint {
	return endpoint{name: EndpointMX, host: mxFrontend, machine: mxMachine, tls: v.s.mxTLS}
}

func (v mx) extensions(k *conn) []string {
	if k.tls != nil {
		return extensions("", v.s.cfg.MaxSize)
	}
	return extensions("STARTTLS", v.s.cfg.MaxSize)
}

// admits takes everybody, without TLS and with the null sender too.
func (v mx) admits(*conn) string { return "" }

func (v mx) begin(*conn) {}
func (v mx) end(*conn)   {}

// recipient lets a connector send to anybody, and everybody else to the
// organisation. Whether direct send is allowed is asked after that: who writes
// to strangers has not found a tenant that could forbid it. Of the sender only
// the envelope is compared, as in the real service.
func (v mx) recipient(k *conn, address string) string {
	switch s := v.s; {
	case v.attribute(k).connector != "":
		return ""
	case !s.cfg.owns(address):
		return textRelayDenied + k.bracket()
	case s.rejectsDirectSend() && s.cfg.owns(k.from):
		return textNoDirectSend + k.bracket()
	case !s.knows(address):
		return textNoRecipient + k.bracket()
	}
	return ""
}

// judge refuses for what the message is. Where a connector is not allowed to
// send from a domain, the real service says so later, in a message to the
// sender (NDR); this one does it here, where a test can see it.
func (v mx) judge(k *conn, m *Message) {
	s, from := v.s, v.attribute(k)
	m.Connector, m.Certificate = from.connector, from.certificate
	if s.strikes(func(f *Faults) *int { return &f.DropBeforeAccept }) {
		m.Dropped = true
		s.refuse(nil, m, "")
		return
	}
	refusal := v.refusal(k, m)
	switch {
	case !s.sleep(s.verdictDelay()):
		m.Dropped = true
		s.refuse(nil, m, "")
	case refusal != "":
		s.refuse(nil, m, refusal+k.bracket())
	default:
		s.queue(m)
	}
}

// refusal returns why a message is refused, "" if it is not. The null sender
// has no domain that could be wrong.
func (v mx) refusal(k *conn, m *Message) string {
	if v.s.strikes(func(f *Faults) *int { return &f.Busy }) {
		return fmt.Sprintf(textMXBusy, k.remoteIP())
	}
	from, _, bad := senders(m.Data)
	if bad != "" || m.Connector == "" {
		return bad
	}
	if m.Sender != "" {
		from = append(from, m.Sender)
	}
	if slices.ContainsFunc(from, func(a string) bool { return !v.s.cfg.owns(a) }) {
		return textUnregistered
	}
	return ""
}

// origin is whose session it is.
type origin struct {
	connector   string // "" is anybody's: direct send
	certificate string // the name by which a verified certificate was recognised, else its first; "" without
}

// attribute finds the connector of a session: by certificate, else by address.
// The first in Config.Connectors wins.
func (v mx) attribute(k *conn) origin {
	for _, c := range v.s.cfg.Connectors {
		if at := slices.IndexFunc(k.certNames, c.hasName); at >= 0 {
			return origin{c.Name, k.certNames[at]}
		}
	}
	var o origin
	if len(k.certNames) > 0 {
		o.certificate = k.certNames[0]
	}
	a, _ := netip.ParseAddr(k.remoteIP()) // no address is in no network
	a = a.Unmap().WithZone("")
	if i := slices.IndexFunc(v.s.cfg.Connectors, func(c Connector) bool { return c.hasAddress(a) }); i >= 0 {
		o.connector = v.s.cfg.Connectors[i].Name
	}
	return o
}

// firstInternalID makes the numbers of accepted messages as long as real ones.
const firstInternalID int64 = 25769803777

// queue accepts a message at the MX endpoint. The time in the reply is made up,
// as 0.1 s and a bit; Config.VerdictMin is what a client feels.
func (s *Server) queue(m *Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	took := 0.1 + float64(s.random.IntN(100))/1000
	m.Verdict = time.Now()
	m.Reply = fmt.Sprintf(textQueued, messageID(m), firstInternalID+int64(s.serial), backend, len(m.Data), took, float64(len(m.Data))/1024/took)
	m.Dropped = countDown(&s.faults.DropAfterData)
	s.keep(nil, m)
}

func (s *Server) rejectsDirectSend() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg.RejectDirectSend
}

// knows tells whether one of the organisation's addresses exists.
func (s *Server) knows(address string) bool {
	same := func(x string) bool { return strings.EqualFold(x, address) }
	if len(s.cfg.KnownRecipients) == 0 || slices.ContainsFunc(s.cfg.KnownRecipients, same) {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.mailboxes {
		if same(b.Address) || slices.ContainsFunc(b.Aliases, same) {
			return true
		}
	}
	return false
}
