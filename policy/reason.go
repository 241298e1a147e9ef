package policy

import "fmt"

// A ReasonCode names one step of a decision; it is stable and part of what
// users see ("reason" in the log).
type ReasonCode string

// The steps of a decision.
const (
	ReasonNoClient        ReasonCode = "no-client"        // nothing in clients: matches the peer
	ReasonNoFingerprint   ReasonCode = "no-fingerprint"   // the policy service was not asked, so the certificate is not known
	ReasonClient          ReasonCode = "client"           // the client that matched
	ReasonExternal        ReasonCode = "external"         // recipients outside leave by submission, not directly
	ReasonExternalRefused ReasonCode = "external-refused" // the route reaches own recipients alone
	ReasonNotAsked        ReasonCode = "no-sender"        // neither From nor envelope hold an address
	ReasonMayNotAsk       ReasonCode = "client-senders"   // the client's senders do not include the address
	ReasonUnauthorized    ReasonCode = "not-authorized"   // no mailbox may send as the address
	ReasonNotVerified     ReasonCode = "not-verified"     // the address is of no verified domain
	ReasonAuthorized      ReasonCode = "authorized"       // a mailbox may send as the address
	ReasonVerified        ReasonCode = "verified"         // the route takes any address of a verified domain
	ReasonFallback        ReasonCode = "client-from"      // the client's from took its place
	ReasonRejected        ReasonCode = "rejected"         // the client has no from, or wants a rejection
	ReasonNullSender      ReasonCode = "null-sender"      // a bounce: it leaves as the identity
	ReasonTooMany         ReasonCode = "too-many"         // more fields of one kind than any real message has
)

// A Reason is one step of a decision. It is cheap to make; its sentence is only put
// together when someone asks for it.
type Reason struct {
	Code    ReasonCode
	Subject string // the client, address or mailbox the step is about
	Object  string // what it was held against
}

// String returns the step as a sentence for the administrator.
func (r Reason) String() string {
	switch r.Code {
	case ReasonNoClient:
		return fmt.Sprintf("no entry of clients: matches %s", r.Subject)
	case ReasonNoFingerprint:
		return fmt.Sprintf("%s may have a client certificate, and Postfix has not told its fingerprint to the policy service", r.Subject)
	case ReasonExternal:
		return fmt.Sprintf("recipients outside: %s; route %q does not reach them, so they leave by submission", r.Subject, r.Object)
	case ReasonExternalRefused:
		return fmt.Sprintf("<%s> is outside; route %q does not reach it and has external: reject", r.Subject, r.Object)
	case ReasonNotVerified:
		return fmt.Sprintf("<%s> is of no verified domain, and route %q takes no other", r.Subject, r.Object)
	case ReasonVerified:
		return fmt.Sprintf("route %q takes every sender of a verified domain, as <%s> is", r.Object, r.Subject)
	case ReasonClient:
		return fmt.Sprintf("%s is client %q", r.Object, r.Subject)
	case ReasonNotAsked:
		return "neither the From field nor the envelope names a sender"
	case ReasonMayNotAsk:
		return fmt.Sprintf("client %q may not ask for <%s>: its senders: do not include it", r.Object, r.Subject)
	case ReasonUnauthorized:
		return fmt.Sprintf("no mailbox may send as <%s>", r.Subject)
	case ReasonAuthorized:
		return fmt.Sprintf("mailbox %s may send as <%s>", r.Object, r.Subject)
	case ReasonFallback:
		return fmt.Sprintf("client %q has from: %s for such mail", r.Object, r.Subject)
	case ReasonRejected:
		return fmt.Sprintf("client %q has on_unauthorized: reject, or no from", r.Subject)
	case ReasonNullSender:
		return fmt.Sprintf("the null sender leaves as <%s>, and nothing of it may bounce", r.Subject)
	case ReasonTooMany:
		return fmt.Sprintf("%s fields of one kind are more than any real message has", r.Subject)
	}
	return string(r.Code)
}
