package lease

import (
	"github.com/sendas/sendas/token/ledger"
)

// A ReplyClass says what a reply of Exchange Online means for the relay.
type ReplyClass string

// The classes of replies; they are label values of sendas_upstream_replies_total.
const (
	ClassAccepted    ReplyClass = "accepted"         // any 2xx
	ClassConcurrency ReplyClass = "concurrency"      // more than 3 parallel deliveries
	ClassQuota       ReplyClass = "quota"            // the day's recipients are used up
	ClassFull        ReplyClass = "mailbox-full"     // Sent Items filled the mailbox
	ClassBlocked     ReplyClass = "blocked"          // the mailbox or its tenant, until an administrator lifts it
	ClassThrottled   ReplyClass = "throttled"        // the mailbox, because too much of what it sent was refused
	ClassSendAs      ReplyClass = "send-as-denied"   // the mailbox may not send as this sender
	ClassLogon       ReplyClass = "mailbox-logon"    // signed in, but no right on the mailbox (yet)
	ClassAuth        ReplyClass = "auth-refused"     // the token or the mailbox was refused
	ClassAuthOff     ReplyClass = "auth-disabled"    // SMTP AUTH is switched off
	ClassRecipient   ReplyClass = "recipient"        // there is no such recipient, or it takes no mail of ours
	ClassNoAuth      ReplyClass = "unauthenticated"  // MAIL FROM without AUTH
	ClassBusy        ReplyClass = "service"          // 421 and 451: the service has trouble
	ClassTemporary   ReplyClass = "other-temporary"  // any other 4xx
	ClassPermanent   ReplyClass = "other-permanent"  // any other 5xx
	ClassUnreadable  ReplyClass = "not-an-smtp-line" // neither
)

// When says whether a message can leave after a reply.
type When string

// The moments. Unless it is [Never], Postfix keeps the message.
const (
	Now   When = "now"   // with the next attempt: nothing has to pass or to be mended
	Later When = "later" // when something has passed, or somebody has mended it
	Never When = "never" // as it is: Postfix returns it to its sender
)

// Subject says what a reply is about: what has to be another one for it to change.
type Subject string

// The subjects.
const (
	OfMessage    Subject = "message"    // with its recipients
	OfSender     Subject = "sender"     // together with the mailbox
	OfMailbox    Subject = "mailbox"    // whatever it sends
	OfTenant     Subject = "tenant"     // whichever mailbox sends
	OfConnection Subject = "connection" // this session, or the way to Microsoft
)

// pauses are the classes after which nothing leaves through the mailbox for a while, with the class
// of the pause that they cause.
var pauses = map[ReplyClass]ledger.PauseClass{ClassQuota: ledger.PauseQuota, ClassFull: ledger.PauseFull, ClassBlocked: ledger.PauseBlocked, ClassThrottled: ledger.PauseThrottled}

// fallbackClass is the class of a line that is in no row.
func fallbackClass(line string) ReplyClass {
	switch {
	case len(line) < 3:
	case line[0] == '2':
		return ClassAccepted
	case line[0] == '4':
		return ClassTemporary
	case line[0] == '5':
		return ClassPermanent
	}
	return ClassUnreadable
}
