package policy

import (
	"fmt"
	"strings"
)

// An Action says what becomes of a message. Actions are stable and part of what users see: in logs,
// metrics, answers and the configuration (on_limit).
type Action string

// The actions.
const (
	Accept Action = "accept"
	Defer  Action = "defer" // the client is asked to try again
	Reject Action = "reject"
	Hold   Action = "hold" // accepted, and kept in Postfix's hold queue: for limits alone
	Pass   Action = "pass" // not ours: Postfix delivers it elsewhere, and nothing is changed or counted
)

// actionTable words the actions, in the order in which they are shown.
var actionTable = []struct {
	action Action
	done   string
}{
	{Accept, "accepted"},
	{Defer, "deferred"},
	{Reject, "rejected"},
	{Hold, "held"},
	{Pass, "passed untouched"},
}

// Actions returns all actions in the order in which they are shown.
func Actions() []Action {
	list := make([]Action, len(actionTable))
	for i, r := range actionTable {
		list[i] = r.action
	}
	return list
}

// Done says what has become of a message to which the action was applied: "accepted".
func (a Action) Done() string {
	for _, r := range actionTable {
		if r.action == a {
			return r.done
		}
	}
	return string(a)
}

// OnUnauthorized says what becomes of a message whose sender is not authorised.
type OnUnauthorized string

// The values of a client's on_unauthorized.
const (
	Rewrite OnUnauthorized = "rewrite"              // send it as the client's from
	Refuse                 = OnUnauthorized(Reject) // refuse it
)

// A ReasonCode names one step of a decision; it is stable and part of what
// users see ("reason" in the log).
type ReasonCode string

// The steps of a decision. The last ones are of what surrounds it: limits, the queue, Postfix.
const (
	ReasonElsewhere       ReasonCode = "elsewhere"        // Postfix delivers it otherwise than through sendas
	ReasonMixed           ReasonCode = "mixed"            // some recipients are elsewhere, so it is ours
	ReasonAlias           ReasonCode = "alias-outside"    // a recipient of this host leads outside, so it is ours
	ReasonDoubt           ReasonCode = "doubt"            // it cannot be told whose a recipient is, so it is ours
	ReasonNoClient        ReasonCode = "no-client"        // nothing in clients: matches the peer
	ReasonNoFingerprint   ReasonCode = "no-fingerprint"   // the policy service was not asked, so the certificate is not known
	ReasonClient          ReasonCode = "client"           // the client that matched
	ReasonExternal        ReasonCode = "external"         // recipients outside leave by submission, not directly
	ReasonExternalRefused ReasonCode = "external-refused" // the route reaches own recipients alone
	ReasonHVEOutside      ReasonCode = "hve-outside"      // High Volume Email reaches own recipients alone
	ReasonHVEMany         ReasonCode = "hve-many"         // it takes 50 recipients at one time
	ReasonHVELarge        ReasonCode = "hve-large"        // it takes 10 MB
	ReasonHVESender       ReasonCode = "hve-sender"       // it sends as its account alone
	ReasonAccount         ReasonCode = "hve-account"      // the account took the sender's place
	ReasonNotAsked        ReasonCode = "no-sender"        // neither From nor envelope hold an address that can be read
	ReasonMayNotAsk       ReasonCode = "client-senders"   // the client's senders do not include the address
	ReasonUnauthorized    ReasonCode = "not-authorized"   // no mailbox may send as the address
	ReasonNotVerified     ReasonCode = "not-verified"     // the address is of no verified domain
	ReasonAuthorized      ReasonCode = "authorized"       // a mailbox may send as the address
	ReasonVerified        ReasonCode = "verified"         // the route takes any address of a verified domain
	ReasonFallback        ReasonCode = "client-from"      // the client's from took its place
	ReasonNotices         ReasonCode = "notices"          // what this host says itself has an identity of its own
	ReasonRejected        ReasonCode = "rejected"         // the client has no from, or wants a rejection
	ReasonNullSender      ReasonCode = "null-sender"      // a bounce: it leaves as the identity
	ReasonNullKept        ReasonCode = "null-kept"        // a bounce: the route takes the null sender
	ReasonSenderKept      ReasonCode = "sender-kept"      // the route takes an envelope sender that is not the identity
	ReasonBounceOfBounce  ReasonCode = "bounce-of-bounce" // it ends here
	ReasonTooMany         ReasonCode = "too-many"         // more fields of one kind than any real message has
	ReasonTooLong         ReasonCode = "too-long"         // a field that Exchange would refuse for its length
	ReasonTooLarge        ReasonCode = "too-large"        // more bytes of header than any real message has
	ReasonTooManyRcpts    ReasonCode = "many-recipients"  // more recipients than any real message has
	ReasonClientLimit     ReasonCode = "client-limit"     // the client is over its limit
	ReasonIdentityLimit   ReasonCode = "identity-limit"   // the identity is over its limit
	ReasonQueueCeiling    ReasonCode = "queue-ceiling"    // more waits for the mailbox than can leave in time
	ReasonOffer           ReasonCode = "milter-offer"     // the MTA does not let a milter do what the decision needs
	ReasonNotApplied      ReasonCode = "not-applied"      // the changes could not be handed to Postfix
	ReasonObserved        ReasonCode = "observed"         // sendas only looks: see Observe
)

// reasonTable words the steps. sentence is a format, whose first argument is the subject and whose
// second one the object. brief is for counts of many messages; it is empty for a step after which
// there is always another.
var reasonTable = []struct {
	code            ReasonCode
	sentence, brief string
}{
	{ReasonElsewhere, "not ours: Postfix delivers it by %[2]s, to <%[1]s>", "Postfix delivers it elsewhere, so it passes untouched"},
	{ReasonMixed, "Postfix delivers it to <%[1]s> by %[2]s, but other recipients leave by sendas, so all of it is ours", ""},
	{ReasonAlias, "an alias of this host leads from <%[1]s> to <%[2]s>, which leaves by sendas, so it is ours", ""},
	{ReasonDoubt, "whether <%[1]s> leaves by sendas cannot be told for sure (%[2]s), so it is ours", ""},
	{ReasonNoClient, "no entry of clients: matches %[1]s", "no entry of clients: matches the peer"},
	{ReasonNoFingerprint, "%[1]s may have a client certificate, and Postfix has not told its fingerprint to the policy service",
		"Postfix told no fingerprint of the client's certificate"},
	{ReasonClient, "%[2]s is client %[1]q", ""},
	{ReasonExternal, "recipients outside: %[1]s; route %[2]q does not reach them, so they leave by submission", ""},
	{ReasonExternalRefused, "<%[1]s> is outside; route %[2]q does not reach it and has external: reject", "the route does not reach recipients outside"},
	{ReasonHVEOutside, "<%[1]s> is outside, or mail for it may be led there, and route %[2]q reaches own recipients alone: submission takes the message", ""},
	{ReasonHVEMany, "%[1]s recipients, and route %[2]q takes 50 at one time", "the message has more recipients than its route takes"},
	{ReasonHVELarge, "%[1]s bytes, and route %[2]q takes 10 MB", "the message is larger than its route takes"},
	{ReasonHVESender, "%[1]s does not leave by route %[2]q, which sends as its account alone: submission takes the message", ""},
	{ReasonAccount, "route %[2]q sends as its account <%[1]s>", "High Volume Email sends as its account"},
	{ReasonNotAsked, "neither the From field nor the envelope names a sender that can be read", ""},
	{ReasonMayNotAsk, "client %[2]q may not ask for <%[1]s>: its senders: do not include it", ""},
	{ReasonUnauthorized, "no mailbox may send as <%[1]s>", ""},
	{ReasonNotVerified, "<%[1]s> is of no verified domain, and route %[2]q takes no other", ""},
	{ReasonAuthorized, "mailbox %[2]s may send as <%[1]s>", "a mailbox may send as the sender"},
	{ReasonVerified, "route %[2]q takes every sender of a verified domain, as <%[1]s> is", "the route takes every sender of a verified domain"},
	{ReasonFallback, "client %[2]q has from: %[1]s for such mail", "the client's from: took the sender's place"},
	{ReasonNotices, "what this host says itself leaves as <%[1]s>", "a notice of this host itself"},
	{ReasonRejected, "client %[1]q has on_unauthorized: reject, or no from", "no mailbox may send as the sender, and the client wants a rejection"},
	{ReasonNullSender, "the null sender leaves as <%[1]s>, and nothing of it may bounce", "a bounce, which leaves as the client's identity"},
	{ReasonNullKept, "the null sender stays: route %[1]q takes it", "a bounce, whose null sender stays"},
	{ReasonSenderKept, "the envelope sender <%[1]s> stays: route %[2]q does not compare it with From", ""},
	{ReasonBounceOfBounce, "a bounce that answers a bounce ends here", "a bounce that answers a bounce, which ends here"},
	{ReasonTooMany, "%[1]s fields of one kind are more than any real message has", "more fields of one kind than any real message has"},
	{ReasonTooLong, "the field %[1]s has %[2]s bytes, more than Exchange takes", "a field is longer than Exchange takes"},
	{ReasonTooLarge, "fields with %[1]s bytes are more than any real message has; %[2]s are read", "more bytes of header fields than any real message has"},
	{ReasonTooManyRcpts, "%[1]s recipients, or their addresses, are more than any real message has", "more recipients than any real message has"},
	{ReasonClientLimit, "client %[1]q is over its limit", "the client is over its limit"},
	{ReasonIdentityLimit, "<%[1]s> is over its limit", "the identity is over its limit"},
	{ReasonQueueCeiling, "more waits for mailbox %[1]s than can leave in time", "more waits for the mailbox than can leave in time"},
	{ReasonOffer, "the mail server does not let sendas change the message as it must", "the mail server does not let sendas change the message as it must"},
	{ReasonObserved, "sendas only observes (milter.mode), so it passes untouched", "sendas only observes, so it passes untouched"},
	{ReasonNotApplied, "the changes could not be handed to Postfix", "the changes could not be handed to Postfix"},
}

// ReasonCodes returns all codes.
func ReasonCodes() []ReasonCode {
	list := make([]ReasonCode, len(reasonTable))
	for i, r := range reasonTable {
		list[i] = r.code
	}
	return list
}

// Brief words the code for people who look at many messages; "" where it cannot be the last step of
// a decision.
func (c ReasonCode) Brief() string {
	_, brief := c.words()
	return brief
}

// words returns the words of a code, none for one that is not known.
func (c ReasonCode) words() (sentence, brief string) {
	for _, r := range reasonTable {
		if r.code == c {
			return r.sentence, r.brief
		}
	}
	return "", ""
}

// A Reason is one step of a decision. It is cheap to make; its sentence is only put
// together when someone asks for it.
type Reason struct {
	Code    ReasonCode
	Subject string // the client, address or mailbox the step is about
	Object  string // what it was held against
}

// String returns the step as a sentence for the administrator.
func (r Reason) String() string {
	sentence, _ := r.Code.words()
	switch {
	case sentence == "":
		return string(r.Code)
	case !strings.Contains(sentence, "%"):
		return sentence
	}
	return fmt.Sprintf(sentence, r.Subject, r.Object)
}
