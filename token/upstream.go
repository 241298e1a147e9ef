package token

import "strings"

// A ReplyClass says what a reply of Exchange Online means for the relay.
type ReplyClass string

// The classes of replies; they are label values of sendas_upstream_replies_total.
const (
	ClassAccepted    ReplyClass = "accepted"         // any 2xx
	ClassConcurrency ReplyClass = "concurrency"      // more than 3 parallel deliveries
	ClassQuota       ReplyClass = "quota"            // the day's recipients are used up
	ClassFull        ReplyClass = "mailbox-full"     // Sent Items filled the mailbox
	ClassSendAs      ReplyClass = "send-as-denied"   // the mailbox may not send as this sender
	ClassLogon       ReplyClass = "mailbox-logon"    // signed in, but no right on the mailbox (yet)
	ClassAuth        ReplyClass = "auth-refused"     // the token or the mailbox was refused
	ClassAuthOff     ReplyClass = "auth-disabled"    // SMTP AUTH is switched off
	ClassNoAuth      ReplyClass = "unauthenticated"  // MAIL FROM without AUTH
	ClassBusy        ReplyClass = "service"          // 421 and 451: the service has trouble
	ClassTemporary   ReplyClass = "other-temporary"  // any other 4xx
	ClassPermanent   ReplyClass = "other-permanent"  // any other 5xx
	ClassUnreadable  ReplyClass = "not-an-smtp-line" // neither
)

// upstreamRow is one reply that Exchange Online is known to give. Texts change without notice, so a
// row is matched by code, enhanced code and a short keyword, never by a sentence.
type upstreamRow struct {
	code     string // "554"
	enhanced string // "5.2.0"; "" is any
	keyword  string // "" is any
	class    ReplyClass
	// later replaces a permanent reply that only means "not now", so that Postfix keeps
	// the message; "" leaves the reply as it is.
	later string
}

// upstreamRows is the one table of replies; the first match counts. The keywords are those
// of Microsoft's "Improvements in SMTP client submission" and of logs.
var upstreamRows = []upstreamRow{
	{"432", "4.3.2", "", ClassConcurrency, ""},
	{"554", "5.2.0", "SubmissionQuotaExceeded", ClassQuota, "454 4.2.0 "},
	{"550", "5.1.90", "", ClassQuota, "450 4.1.90 "},
	{"554", "5.2.2", "", ClassFull, "454 4.2.2 "},
	{"554", "5.2.252", "", ClassSendAs, ""},
	{"554", "5.2.0", "SendAsDenied", ClassSendAs, ""},
	{"550", "5.7.60", "", ClassSendAs, ""},
	{"430", "4.2.0", "", ClassLogon, ""},
	{"535", "5.7.139", "SmtpClientAuthentication is disabled", ClassAuthOff, ""},
	{"535", "", "", ClassAuth, ""},
	{"530", "5.7.57", "", ClassNoAuth, ""},
	{"421", "", "", ClassBusy, ""},
	{"451", "", "", ClassBusy, ""},
}

// explanations say what a class means and what to do about it; they are logged with the reply. Accepted
// mail needs none.
var explanations = map[ReplyClass]string{
	ClassConcurrency: "more than 3 messages of the mailbox at one time; is another program using it? Postfix tries again",
	ClassQuota:       "the mailbox has used up its recipients of the last 24 hours; its mail waits in the queue",
	ClassFull:        "the mailbox is full, most likely with copies in Sent Items; empty it or set up an archive policy. Its mail waits in the queue",
	ClassSendAs:      "Exchange Online does not let the mailbox send as this address; grant it with Add-RecipientPermission, or take the address out of send_as:. A fresh grant takes up to an hour",
	ClassLogon:       "the app could sign in but has no right on the mailbox; a fresh grant takes up to two hours, so wait before changing anything",
	ClassAuth: "Exchange Online does not accept the token for this mailbox: is the app in the role's scope, or does it have FullAccess; was New-ServicePrincipal " +
		"given the object id of the enterprise application? A fresh grant takes up to two hours",
	ClassAuthOff:   "SMTP AUTH is switched off, which counts for OAuth too; type Set-CASMailbox MAILBOX -SmtpClientAuthenticationDisabled $false",
	ClassNoAuth:    "the session got no credential; check smtp_sasl_password_maps and the SASL plugin",
	ClassBusy:      "the service has trouble; Postfix tries again",
	ClassTemporary: "Postfix tries again",
	ClassPermanent: "Postfix returns the message to its sender",
}

// classify reads a reply line.
func classify(line string) (class ReplyClass, later string) {
	if len(line) < 3 {
		return ClassUnreadable, ""
	}
	code, enhanced := line[:3], ""
	if f := strings.Fields(line[3:]); len(f) > 0 {
		enhanced = strings.TrimPrefix(f[0], "-")
	}
	for _, r := range upstreamRows {
		if r.code == code && (r.enhanced == "" || r.enhanced == enhanced) && strings.Contains(line, r.keyword) {
			return r.class, r.later
		}
	}
	switch line[0] {
	case '2':
		return ClassAccepted, ""
	case '4':
		return ClassTemporary, ""
	case '5':
		return ClassPermanent, ""
	}
	return ClassUnreadable, ""
}
