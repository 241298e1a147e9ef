package replies

import (
	"github.com/sendas/sendas/token/ledger"
)

// A Class says what a reply of Exchange Online means for the relay.
type Class string

// The classes of replies; they are label values of sendas_upstream_replies_total.
const (
	Accepted    Class = "accepted"         // any 2xx
	Concurrency Class = "concurrency"      // more than 3 parallel deliveries
	Quota       Class = "quota"            // the day's recipients are used up
	Full        Class = "mailbox-full"     // Sent Items filled the mailbox
	Blocked     Class = "blocked"          // the mailbox or its tenant, until an administrator lifts it
	Throttled   Class = "throttled"        // the mailbox, because too much of what it sent was refused
	SendAs      Class = "send-as-denied"   // the mailbox may not send as this sender
	Logon       Class = "mailbox-logon"    // signed in, but no right on the mailbox (yet)
	Auth        Class = "auth-refused"     // the token or the mailbox was refused
	AuthOff     Class = "auth-disabled"    // SMTP AUTH is switched off
	Recipient   Class = "recipient"        // there is no such recipient, or it takes no mail of ours
	NoAuth      Class = "unauthenticated"  // MAIL FROM without AUTH
	Busy        Class = "service"          // 421 and 451: the service has trouble
	Temporary   Class = "other-temporary"  // any other 4xx
	Permanent   Class = "other-permanent"  // any other 5xx
	Unreadable  Class = "not-an-smtp-line" // neither
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
var pauses = map[Class]ledger.PauseClass{Quota: ledger.PauseQuota, Full: ledger.PauseFull, Blocked: ledger.PauseBlocked, Throttled: ledger.PauseThrottled}

// fallbackClass is the class of a line that is in no row.
func fallbackClass(line string) Class {
	switch {
	case len(line) < 3:
	case line[0] == '2':
		return Accepted
	case line[0] == '4':
		return Temporary
	case line[0] == '5':
		return Permanent
	}
	return Unreadable
}
