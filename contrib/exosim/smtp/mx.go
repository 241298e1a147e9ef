package smtp

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
)

// mx is contoso-com.mail.protection.outlook.com:25, where everybody may deliver
// to the organisation, and its connectors to everybody. It knows no AUTH and no
// limits of mailboxes.
type mx struct{ x *Exchange }

func (v mx) about() endpoint {
	return endpoint{name: EndpointMX, host: mxFrontend, machine: mxMachine, tls: v.x.mxTLS, maxSize: v.x.cfg.MaxSize, maxRcpts: v.x.cfg.MaxMessageRcpts}
}

func (v mx) extensions(k *conn) []string {
	if k.tls != nil {
		return extensions("", v.x.cfg.MaxSize)
	}
	return extensions("STARTTLS", v.x.cfg.MaxSize)
}

// logon and denied are never asked: there is no AUTH.
func (v mx) logon(*conn, string, string) (*box, directory.Denial) { return nil, cancelled }
func (v mx) denied(*conn, directory.Denial) string                { return textNoMechanism }

// admits and sender take everybody, without TLS and with the null sender too.
func (v mx) admits(*conn) string         { return "" }
func (v mx) sender(*conn, string) string { return "" }

func (v mx) begin(*conn) {}
func (v mx) end(*conn)   {}

// recipient lets a connector send to anybody, and everybody else to the
// organisation. Whether direct send is allowed is asked after that: who writes
// to strangers has not found a tenant that could forbid it. Of the sender only
// the envelope is compared, as in the real service.
func (v mx) recipient(k *conn, address string) string {
	switch dir := v.x.dir; {
	case v.attribute(k).connector != "":
		return ""
	case !dir.Owns(address):
		return textRelayDenied + k.bracket()
	case dir.RejectsDirectSend() && dir.Owns(k.from):
		return textNoDirectSend + k.bracket()
	case !dir.Knows(address):
		return textNoRecipient + k.bracket()
	}
	return ""
}

// judge refuses for what the message is. Where a connector is not allowed to
// send from a domain, the real service says so later, in a message to the
// sender (NDR); this one does it here, where a test can see it.
func (v mx) judge(k *conn, m *Message) {
	x, from := v.x, v.attribute(k)
	m.Connector, m.Certificate = from.connector, from.certificate
	if x.strikes(func(f *Faults) *int { return &f.DropBeforeAccept }) {
		m.Dropped = true
		x.refuse(nil, m, "")
		return
	}
	refusal := v.refusal(k, m)
	switch {
	case !x.sleep(x.verdictDelay()):
		m.Dropped = true
		x.refuse(nil, m, "")
	case refusal != "":
		x.refuse(nil, m, refusal+k.bracket())
	default:
		x.queue(m)
	}
}

// refusal returns why a message is refused, "" if it is not. The null sender
// has no domain that could be wrong.
func (v mx) refusal(k *conn, m *Message) string {
	if v.x.strikes(func(f *Faults) *int { return &f.Busy }) {
		return fmt.Sprintf(textMXBusy, k.remoteIP())
	}
	from, _, bad := senders(m.Data)
	if bad != "" || m.Connector == "" {
		return bad
	}
	if m.Sender != "" {
		from = append(from, m.Sender)
	}
	if slices.ContainsFunc(from, func(a string) bool { return !v.x.dir.Owns(a) }) {
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
	for _, c := range v.x.cfg.Connectors {
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
	if i := slices.IndexFunc(v.x.cfg.Connectors, func(c Connector) bool { return c.hasAddress(a) }); i >= 0 {
		o.connector = v.x.cfg.Connectors[i].Name
	}
	return o
}

// firstInternalID makes the numbers of accepted messages as long as real ones.
const firstInternalID int64 = 25769803777

// queue accepts a message at the MX endpoint. The time in the reply is made up,
// as 0.1 s and a bit; Config.VerdictMin is what a client feels.
func (x *Exchange) queue(m *Message) {
	x.mu.Lock()
	defer x.mu.Unlock()
	took := 0.1 + float64(x.random.IntN(100))/1000
	m.Verdict = time.Now()
	m.Reply = fmt.Sprintf(textQueued, messageID(m), firstInternalID+int64(x.serial), backend, len(m.Data), took, float64(len(m.Data))/1024/took)
	m.Dropped = countDown(&x.faults.DropAfterData)
	x.keep(nil, m)
}

// clientNames returns the names of a client's certificate, the common name
// first; none if it sent none, or none that an authority vouches for. What the
// certificate may be used for is not looked at: public authorities give out
// hardly any for clients, and relays use the one they have as a server.
func (x *Exchange) clientNames(chain []*x509.Certificate) ([]string, error) {
	if len(chain) == 0 {
		return nil, nil
	}
	leaf, between := chain[0], x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: x.clientRoots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, err
	}
	names := slices.DeleteFunc([]string{leaf.Subject.CommonName}, func(n string) bool { return n == "" })
	return append(names, leaf.DNSNames...), nil
}
