package lease

import (
	"cmp"
	"regexp"
	"strconv"
	"strings"

	"github.com/sendas/sendas/token/ledger"
)

// replyRow is one reply that Exchange Online is known to give. Texts change without notice, so a
// row is matched by code, enhanced code and a short keyword, never by a sentence.
type replyRow struct {
	code     string // "554"; "4" is any that begins so
	enhanced string // "5.2.0"; "4.7.500-699" is a range of the last number; "" is any
	keyword  string // in the text, as it is written there; "" is any
	class    ReplyClass
	passes   bool // by itself, without anybody doing anything
	// later replaces a permanent reply that only means "not now", so that Postfix keeps
	// the message; "" leaves the reply as it is.
	later   string
	meaning string // in lower case, without full stop and semicolon
	act     string // what to do, likewise; MAILBOX stands for the mailbox
}

// What several rows say.
const (
	retries     = "nothing to do: Postfix tries again by itself"
	returned    = "Postfix returns the message to its sender"
	grantIsSlow = "a fresh grant takes up to two hours, so wait before changing anything else"
	grantSendAs = `type "Add-RecipientPermission SENDER -Trustee MAILBOX -AccessRights SendAs" in Exchange Online PowerShell, or take the address out of ` +
		"send_as:; a fresh grant takes up to an hour"
	unblock     = `take it off the list under "Restricted entities" at https://security.microsoft.com, and find out who sent spam as it; its mail waits in the queue`
	askSupport  = "open a request with Microsoft's support in the Microsoft 365 admin centre; its mail waits in the queue"
	needsOAuth  = `let Postfix authenticate with XOAUTH2 alone: postconf -e "smtp_sasl_mechanism_filter = xoauth2"`
	switchOnOne = `type "Set-CASMailbox MAILBOX -SmtpClientAuthenticationDisabled $false" in Exchange Online PowerShell`
	switchOn    = switchOnOne + ", and wait an hour"
	mendRequest = `somebody between this host and Microsoft changes SMTP, or this is a fault of sendas: look for a firewall that inspects SMTP`
	emptyIt     = "empty its Sent Items or set up an archive policy; its mail waits in the queue"
	tooManyDay  = "its mail waits in the queue; share the work among more mailboxes if this comes often"
	connector   = "compare the connector's address or certificate with this relay's in the Exchange admin centre (Mail flow > Connectors)"
	delist      = "ask for removal at https://sender.office.com"
	authPolicy  = "it is the tenant's authentication or Conditional Access policy: let its administrator exempt this relay"
	rights      = "is the app in the role's scope, or does it have FullAccess on MAILBOX, and was New-ServicePrincipal given the object id of the enterprise application? " + grantIsSlow
)

// replyRows is the one table of replies; the first match counts. A class is explained by its last
// row, which is the most general one. The keywords are those of Microsoft's "Improvements in SMTP
// client submission", of its list of non-delivery reports, and of logs.
var replyRows = []replyRow{
	// Limits.
	{"432", "4.3.2", "recipient thread limit", ClassConcurrency, true, "", "too many messages go to the recipient's mailbox at one time", retries},
	{"432", "4.3.2", "", ClassConcurrency, true, "", "more than 3 messages of the mailbox at one time",
		"look for another program that uses the mailbox; Postfix tries again by itself"},
	{"550", "5.1.90", "", ClassQuota, true, "450 4.1.90 ", "the mailbox has used up its recipients of the last 24 hours", tooManyDay},
	{"554", "5.2.0", "SubmissionQuotaExceeded", ClassQuota, true, "454 4.2.0 ", "the mailbox has used up its recipients of the last 24 hours", tooManyDay},
	{"550", "5.2.2", "Submission quota", ClassQuota, true, "450 4.2.2 ", "the mailbox has used up its messages or recipients of the last 24 hours", tooManyDay},
	{"550", "5.7.232", "", ClassTemporary, true, "450 4.7.232 ", "the trial tenant has used up its external recipients of the last 24 hours", "send less to outside, or buy licences; its mail waits in the queue"},
	{"550", "5.7.233", "", ClassTemporary, true, "450 4.7.233 ", "the tenant has used up its external recipients of the last 24 hours",
		"find out who sends most (Exchange admin centre > Reports > Tenant outbound external recipients); its mail waits in the queue"},
	{"550", "5.7.236", "", ClassTemporary, true, "450 4.7.236 ", "the tenant has used up the 100 external recipients a day that onmicrosoft.com senders have", "send as an address of a domain of your own; its mail waits in the queue"},
	{"452", "4.5.3", "", ClassTemporary, false, "", "the message has more recipients than the service takes at once",
		`let Postfix divide it: postconf -e "smtp_destination_recipient_limit = 50"`},
	{"552", "5.3.4", "", ClassPermanent, false, "", "the message is larger than the mailbox may send", `make it smaller, or type "Set-Mailbox MAILBOX -MaxSendSize 150MB"; ` + returned},
	{"554", "5.2.2", "", ClassFull, false, "454 4.2.2 ", "the mailbox is full, most likely with copies in Sent Items", emptyIt},

	// Who may send as whom.
	{"554", "5.2.252", "", ClassSendAs, false, "", "Exchange Online does not let the mailbox send as this address", grantSendAs},
	{"554", "5.2.0", "SendAsDenied", ClassSendAs, false, "", "Exchange Online does not let the mailbox send as this address", grantSendAs},
	{"550", "5.7.60", "", ClassSendAs, false, "", "Exchange Online does not let the mailbox send as this address", grantSendAs},
	{"430", "4.2.0", "", ClassLogon, true, "", "the app could sign in but has no right on the mailbox, or has not got it yet", grantIsSlow +
		`; without one, type "Add-MailboxPermission MAILBOX -User OBJECT_ID -AccessRights FullAccess"`},
	{"550", "5.1.20", "", ClassPermanent, false, "", "the message has several From addresses and no Sender", "did it pass the milter? compare smtpd_milters and non_smtpd_milters; " + returned},
	{"550", "5.7.512", "", ClassPermanent, false, "", "the message has no valid From", "did it pass the milter? compare smtpd_milters and non_smtpd_milters; " + returned},
	{"550", "5.6.11", "", ClassPermanent, false, "", "the message has line feeds without carriage return", "Postfix mends that: look for what sends around it; " + returned},

	// AUTH.
	{"535", "5.7.139", "SmtpClientAuthentication is disabled for the Tenant", ClassAuthOff, false, "", "SMTP AUTH is switched off for the whole tenant, which counts for OAuth too",
		switchOnOne + ", which is for this mailbox alone, and wait an hour"},
	{"535", "5.7.139", "SmtpClientAuthentication is disabled", ClassAuthOff, false, "", "SMTP AUTH is switched off, which counts for OAuth too", switchOn},
	{"535", "5.7.139", "basic authentication is disabled", ClassAuth, false, "", "a password was sent where only OAuth is taken", needsOAuth},
	{"535", "5.7.139", "user credentials were incorrect", ClassAuth, false, "", "a password was sent, and it is wrong", needsOAuth},
	{"535", "5.7.139", "did not meet the criteria", ClassAuth, false, "", "a policy of the tenant refuses the sign-in", authPolicy},
	{"535", "5.7.139", "user is locked", ClassAuth, false, "", "the tenant's security defaults refuse the sign-in", authPolicy},
	{"535", "5.7.139", "STS service was unreachable", ClassAuth, true, "", "the organisation's own sign-in service (federation) does not answer Microsoft", "have it looked at; Postfix tries again by itself"},
	{"535", "5.7.139", "federated STS", ClassAuth, false, "", "the organisation's own sign-in service (federation) is set up wrongly", "have its address begin with https://"},
	{"535", "5.7.139", "", ClassAuth, false, "", "a policy of the tenant refuses the sign-in", authPolicy},
	{"535", "", "", ClassAuth, false, "", "Exchange Online does not accept the token for this mailbox", rights},
	{"550", "5.7.30", "", ClassPermanent, false, "", "a password was sent, and Microsoft has ended Basic authentication", needsOAuth},
	{"501", "5.5.127", "", ClassPermanent, true, "", "the token has less than 10 minutes left", "sendas gets a new one in time: is this machine's clock right (timedatectl)?"},
	{"501", "5.5.124", "", ClassPermanent, false, "", "the answer to AUTH XOAUTH2 cannot be read", mendRequest},
	{"504", "5.7.4", "", ClassPermanent, false, "", "the mechanism is not offered, or TLS has not begun", `type: postconf -e "smtp_tls_security_level = secure"`},
	{"451", "5.7.3", "", ClassBusy, false, "", "TLS has to begin before mail is sent", `type: postconf -e "smtp_tls_security_level = secure"`},
	{"530", "5.7.57", "SmtpClientAuthentication is disabled", ClassNoAuth, false, "", "AUTH was refused before: SMTP AUTH is switched off, which counts for OAuth too", switchOn},
	{"530", "5.7.57", "Error: 535", ClassNoAuth, false, "", "AUTH was refused before, as the reply repeats", rights},
	{"550", "5.7.57", "", ClassPermanent, false, "", "the session got no credential", "check smtp_sasl_password_maps and the SASL plugin"},
	{"530", "5.7.57", "", ClassNoAuth, false, "", "the session got no credential", "check smtp_sasl_password_maps and the SASL plugin"},

	// Blocks of the mailbox or its tenant: no fault of the message, which leaves when an
	// administrator has had them lifted.
	{"550", "5.1.8", "", ClassBlocked, false, "450 4.1.8 ", "the mailbox is restricted, because spam was sent as it", unblock},
	{"550", "5.7.501", "", ClassBlocked, false, "450 4.7.501 ", "the mailbox is banned, because spam was sent as it", unblock},
	{"550", "5.7.502", "", ClassBlocked, false, "450 4.7.502 ", "the mailbox is banned as a sender", unblock},
	{"550", "5.7.503", "", ClassBlocked, false, "450 4.7.503 ", "the mailbox is banned as a sender", unblock},
	{"550", "5.7.705", "", ClassBlocked, false, "450 4.7.705 ", "the whole tenant is blocked, because too much spam was sent from it", askSupport},
	{"550", "5.7.708", "", ClassBlocked, false, "450 4.7.708 ", "Microsoft does not take mail of a new or trial tenant from this address", askSupport},
	{"554", "5.2.0", "OutboundSpamException", ClassBlocked, false, "454 4.2.0 ", "Microsoft takes the mailbox for a source of spam", unblock},

	// Blocks of this relay, of an address or of a recipient.
	{"550", "5.7.606-649", "", ClassPermanent, false, "", "this relay's public address is banned", delist},
	{"550", "5.7.703", "", ClassPermanent, false, "", "the tenant's own block list has an address of this message", "look at Tenant Allow/Block Lists at https://security.microsoft.com"},
	{"550", "5.7.124", "", ClassPermanent, false, "", "the recipient takes mail from certain senders alone", "have its owner allow the sender; " + returned},
	{"550", "5.7.133-136", "", ClassPermanent, false, "", "the recipient takes mail from inside the organisation alone", "have its owner allow the sender; " + returned},
	{"550", "5.1.10", "", ClassPermanent, false, "", "there is no such recipient", returned},
	{"550", "5.4.1", "", ClassPermanent, false, "", "there is no such recipient in the tenant", returned},
	{"550", "5.7.509", "", ClassPermanent, false, "", "the domain of From fails DMARC, and its owner asks to reject then", `let the sender be rewritten, and look at SPF: "sendas check --dns"`},
	{"550", "5.7.515", "", ClassPermanent, false, "", "the domain sends much mail without SPF, DKIM and DMARC", `publish them: "sendas check --dns" shows SPF`},

	// Connector and direct send.
	{"550", "5.7.64", "", ClassPermanent, false, "", "no connector of the tenant knows this relay", connector},
	{"550", "5.7.68", "", ClassPermanent, false, "", "the tenant refuses direct send", "use a connector: make the route's type connector"},
	{"550", "5.7.750", "", ClassPermanent, false, "", "mail of a domain that the tenant has not verified came by the connector", "verify the domain in the Microsoft 365 admin centre, or let the sender be rewritten"},
	{"451", "4.7.500-699", "", ClassBusy, true, "", "Microsoft slows this relay's public address down", "send less at once; Postfix tries again by itself"},
	{"451", "4.7.850-899", "", ClassBusy, true, "", "Microsoft slows this relay's public address down", "send less at once; Postfix tries again by itself"},
	{"450", "4.7.320", "", ClassTemporary, true, "", "the recipient's server has a certificate that Microsoft does not accept", "nothing to do here: it is between Microsoft and the recipient"},
	{"450", "4.4.317", "", ClassTemporary, true, "", "the recipient's server has no TLS that Microsoft accepts", "nothing to do here: it is between Microsoft and the recipient"},

	// The protocol itself.
	{"421", "4.7.66", "", ClassBusy, false, "", "TLS is older than 1.2", "let nobody inspect TLS between this host and Microsoft, and update OpenSSL"},
	{"421", "4.3.2", "maximum number of concurrent", ClassBusy, true, "", "too many connections to Microsoft's server at one time", retries},
	{"421", "4.4.1", "", ClassBusy, true, "", "the session was silent for too long", retries},
	{"421", "", "", ClassBusy, true, "", "the service has trouble", retries},
	{"451", "", "", ClassBusy, true, "", "the service has trouble", retries},
	{"500", "5.3.3", "", ClassPermanent, false, "", "Microsoft does not know the command", mendRequest},
	{"502", "5.3.3", "", ClassPermanent, false, "", "Microsoft does not take the command, or not SMTPUTF8", `ask for SMTPUTF8 only where an address needs it: postconf -e "smtputf8_autodetect_classes = sendmail, verify"`},
	{"503", "5.5.1-2", "", ClassPermanent, false, "", "the command came at the wrong moment", mendRequest},
	{"501", "5.5.4", "", ClassPermanent, false, "", "Microsoft finds an address or a parameter malformed", mendRequest},

	// What is left.
	{"4", "", "", ClassTemporary, true, "", "a temporary refusal that has no explanation here", retries},
	{"5", "", "", ClassPermanent, false, "", "a refusal that has no explanation here", "look its code up at https://aka.ms/ndr; " + returned},
}

// Explanation says what a reply of Exchange Online means. Its texts come from a table: of what the
// server said it has the codes alone.
type Explanation struct {
	Code     string // SMTP's; "" where the text has none, as in a non-delivery report
	Enhanced string // RFC 3463's; "" where there is none
	Keyword  string // what in the text decided; may be ""
	Class    ReplyClass
	Meaning  string // one line without full stop; "" for accepted mail and what is no reply
	Act      string // what to do, likewise; MAILBOX stands for the mailbox
	Passes   bool   // by itself: asking again later can help
	Later    bool   // the code is permanent, and sendas makes Postfix take it for "not now"
	// Pause is the class of the pause that the mailbox needs, because nothing will leave through it
	// for a while; "" for none.
	Pause ledger.PauseClass

	later string // where Later: the beginning of the text that replaces the reply's own
}

// Hint says what the reply means and what to do; "" for accepted mail and what is no reply.
func (e Explanation) Hint() string {
	if e.Meaning == "" {
		return ""
	}
	return e.Meaning + "; " + e.Act
}

// Explain explains a reply: "535 5.7.3 Authentication unsuccessful". Of a reply of several lines
// the first one counts with the keywords of all. A text without an SMTP code, such as "5.2.2
// Submission quota exceeded" of a non-delivery report, is found by its enhanced code.
func Explain(reply string) Explanation {
	line := strings.TrimSpace(reply)
	bare := enhancedForm.MatchString(line)
	if bare { // no SMTP code has a dot
		line = line[:1] + "50 " + line
	}
	return lookUp(line, bare)
}

// lookUp explains one line as the server sent it. anyCode leaves SMTP's code out but for its first
// digit.
func lookUp(line string, anyCode bool) Explanation {
	e := Explanation{Class: fallbackClass(line)}
	if e.Class == ClassUnreadable {
		return e
	}
	code, enhanced := codesOf(line)
	if !anyCode && strings.Trim(code, "0123456789") == "" {
		e.Code = code
	}
	if enhancedForm.FindString(enhanced) == enhanced {
		e.Enhanced = enhanced
	}
	if r := findReply(line, anyCode); r != nil {
		e.Keyword, e.Class, e.Meaning, e.Act, e.Passes = r.keyword, r.class, r.meaning, r.act, r.passes
		e.Later, e.later, e.Pause = r.later != "", r.later, pauses[r.class]
	}
	return e
}

// enhancedForm finds an enhanced code where an SMTP code should be (RFC 3463, section 2).
var enhancedForm = regexp.MustCompile(`^[245]\.[0-9]{1,3}\.[0-9]{1,3}\b`)

// findReply returns the first row that a line matches, or nil. anyCode leaves SMTP's code out but
// for its first digit.
func findReply(line string, anyCode bool) *replyRow {
	code, enhanced := codesOf(line)
	for i := range replyRows {
		r := &replyRows[i]
		fits := strings.HasPrefix(code, r.code)
		if anyCode {
			fits = code[0] == r.code[0] && (r.enhanced != "" || len(r.code) == 1)
		}
		if fits && inRange(enhanced, r.enhanced) && strings.Contains(line, r.keyword) {
			return r
		}
	}
	return nil
}

// codesOf divides a line of at least 3 bytes into SMTP's code and the enhanced one.
func codesOf(line string) (code, enhanced string) {
	if f := strings.Fields(line[3:]); len(f) > 0 {
		enhanced = strings.TrimPrefix(f[0], "-")
	}
	return line[:3], enhanced
}

// inRange reports whether an enhanced code is one of want: "" is any, "4.7.500-699" is a range.
func inRange(enhanced, want string) bool {
	low, last, ranged := strings.Cut(want, "-")
	if !ranged {
		return want == "" || want == enhanced
	}
	dot := strings.LastIndexByte(low, '.')
	number, ok := strings.CutPrefix(enhanced, low[:dot+1])
	if !ok {
		return false
	}
	n, err1 := strconv.Atoi(number)
	from, err2 := strconv.Atoi(low[dot+1:])
	to, err3 := strconv.Atoi(last)
	return cmp.Or(err1, err2, err3) == nil && from <= n && n <= to
}
