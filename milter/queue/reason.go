package queue

import "strings"

// A Reason is the class of why Postfix could not deliver a message yet. Postfix's own texts name
// hosts and addresses and repeat what other servers say; of these there are few.
type Reason string

// The reasons. What another server answered has the class that [Rules.Explain] gives it.
const (
	ReasonConnect   Reason = "connect"       // no connection: refused, timed out, no route
	ReasonDNS       Reason = "dns"           // a name could not be looked up
	ReasonLost      Reason = "lost"          // the connection broke, or nothing more came
	ReasonTLS       Reason = "tls"           // no TLS, or not that of Microsoft
	ReasonSignIn    Reason = "sign-in"       // the server refused the sign-in
	ReasonPlugin    Reason = "plugin"        // no plugin for XOAUTH2, or none that the session allows
	ReasonLookup    Reason = "token-service" // the token service is down, or said "not now"
	ReasonTransport Reason = "transport"     // Postfix cannot start what delivers, or is told not to
	ReasonReply     Reason = "reply"         // another server's answer, where nobody explains it
	ReasonOther     Reason = "other"
)

// reasonWords are what Postfix's texts are known by, the first that occurs (src/smtp, src/global,
// src/qmgr). They are looked for before what the server said, which may repeat anything.
var reasonWords = []struct {
	words  string
	reason Reason
}{
	{"no mechanism available", ReasonPlugin},
	{"authentication failed", ReasonSignIn}, // "SASL [CACHED] authentication failed" too
	{"SASL authentication failure", ReasonSignIn},
	{"local data error", ReasonLookup},
	{"temporary lookup failure", ReasonLookup},
	{"lookup error", ReasonLookup},
	{"table lookup problem", ReasonLookup},
	{"Name service error", ReasonDNS},
	{"Host or domain name not found", ReasonDNS},
	{"Cannot start TLS", ReasonTLS},
	{"TLS is required", ReasonTLS},
	{"Server certificate not", ReasonTLS},
	{"TLS handshake", ReasonTLS},
	{"lost connection with", ReasonLost},
	{"timed out while", ReasonLost},
	{"connect to ", ReasonConnect},
	{"Connection refused", ReasonConnect},
	{"Network is unreachable", ReasonConnect},
	{"mail transport", ReasonTransport},
	{"deferred transport", ReasonTransport},
}

// answers are what stands before an answer in Postfix's texts.
var answers = []string{" said: ", " refused to talk to me: "}

// reason returns the class of a text of Postfix.
func (r *Rules) reason(text string) Reason {
	before, answer := text, ""
	for _, mark := range answers {
		if i := strings.Index(text, mark); i >= 0 && i < len(before) {
			before, answer = text[:i], text[i+len(mark):]
		}
	}
	for _, w := range reasonWords {
		if strings.Contains(before, w.words) {
			return w.reason
		}
	}
	switch {
	case answer == "":
		return ReasonOther
	case r.Explain == nil:
		return ReasonReply
	}
	return Reason(r.Explain(answer))
}
