// Package replies knows what Exchange Online answers: [Explain] says of a reply what it means, what to do
// about it, whether the message can leave later, and what it is about. One table has them all.
package replies

import (
	"cmp"
	"regexp"
	"strconv"
	"strings"

	"github.com/sendas/sendas/token/ledger"
)

// row is one reply that Exchange Online is known to give. Texts change without notice, so a
// row is matched by code, enhanced code and a short keyword, never by a sentence.
type row struct {
	code     string // "554"; "4" is any that begins so
	enhanced string // "5.2.0"; "4.7.500-699" is a range of the last number; "" is any
	keyword  string // in the text, as it is written there; "" is any
	class    Class
	when     When
	of       Subject
	passes   bool   // by itself, without anybody doing anything
	meaning  string // in lower case, without full stop and semicolon
	act      string // what to do, likewise; MAILBOX stands for the mailbox
}

// What the last refusals of a sender are told with, too.
const (
	MayNotSendAs = "Exchange Online does not let the mailbox send as this address"
	GrantSendAs  = `type "Add-RecipientPermission SENDER -Trustee MAILBOX -AccessRights SendAs" in Exchange Online PowerShell, or take the address out of ` +
		"send_as:; a fresh grant takes up to an hour"
)

// What several rows say.
const (
	retries     = "nothing to do: Postfix tries again by itself"
	returned    = "Postfix returns the message to its sender"
	waits       = "its mail waits in the queue"
	grantIsSlow = "a fresh grant takes up to two hours, so wait before changing anything else"
	unblock     = `take it off the list under "Restricted entities" at https://security.microsoft.com, and find out who sent spam as it; ` + waits
	askSupport  = "open a request with Microsoft's support in the Microsoft 365 admin centre; " + waits
	needsOAuth  = `let Postfix authenticate with XOAUTH2 alone (smtp_sasl_mechanism_filter = xoauth2): sendas postfix enable`
	switchOnOne = `type "Set-CASMailbox MAILBOX -SmtpClientAuthenticationDisabled $false" in Exchange Online PowerShell`
	switchOn    = switchOnOne + ", and wait an hour"
	mendRequest = `somebody between this host and Microsoft changes SMTP, or this is a fault of sendas: look for a firewall that inspects SMTP`
	emptyIt     = "empty its Sent Items or set up an archive policy; " + waits
	tooManyDay  = waits + "; share the work among more mailboxes if this comes often"
	connector   = "compare the connector's address or certificate with this relay's in the Exchange admin centre (Mail flow > Connectors)"
	delist      = "ask for removal at https://sender.office.com"
	authPolicy  = "it is the tenant's authentication or Conditional Access policy: let its administrator exempt this relay"
	rights      = "is the app in the role's scope, or does it have FullAccess on MAILBOX, and was New-ServicePrincipal given the object id of the enterprise application? " + grantIsSlow +
		". An account of High Volume Email needs none of that, but the app's consent to Mail.Send"
	newToken     = "sendas gets a new one at once: is this machine's clock right (timedatectl)?"
	badAnswer    = "the answer to AUTH XOAUTH2 cannot be read"
	mendAnswer   = "is sendas' SASL plugin the one that Postfix loads (sendas doctor), and has the mailbox's credential a token (sendas status)?"
	shorten      = "have the device or the program shorten To, Cc or References, or send the message in parts; " + returned
	fitsNot      = `make it smaller (attachments grow by a third on the way), or type "Set-Mailbox MAILBOX -MaxSendSize 150MB" in Exchange Online PowerShell; ` + returned
	ownAddress   = "High Volume Email has no Send As: is account: of the route the account's primary address, and does nothing change senders behind the milter? " + returned
	askOwner     = "have its owner allow the sender; " + returned
	checkRcpt    = "have the sender correct the address; " + returned
	milterPassed = "did it pass the milter? compare smtpd_milters and non_smtpd_milters; " + returned
	lessAtOnce   = "send less at once; Postfix tries again by itself"
	notOurs      = "nothing to do here: it is between Microsoft and the recipient"
	lasting      = retries + ". If it lasts for days, open a request with Microsoft's support"
	quotaUsed    = "the mailbox has used up its recipients of the last 24 hours"
	throttled    = "Microsoft throttles the mailbox for a while, for "
	throttleEnds = "; Microsoft ends this by itself, after a day or so, and nobody can shorten it"
)

// rows is the one table of replies; the first match counts. A class is explained by its last
// row, which is the most general one. The keywords are those of Microsoft's "Improvements in SMTP
// client submission", of "Continuous error throttling for SMTP AUTH submissions", of its list of
// non-delivery reports, of its page on High Volume Email, and of logs.
var rows = []row{
	// Limits.
	{"432", "4.3.2", "recipient thread limit", Concurrency, Later, OfMessage, true, "too many messages go to the recipient's mailbox at one time", retries},
	{"432", "4.3.2", "", Concurrency, Later, OfMailbox, true, "more than 3 messages of the mailbox at one time",
		"look for another program that uses the mailbox; Postfix tries again by itself"},
	{"550", "5.1.90", "", Quota, Later, OfMailbox, true, quotaUsed, tooManyDay},
	{"554", "5.2.0", "SubmissionQuotaExceeded", Quota, Later, OfMailbox, true, quotaUsed, tooManyDay},
	{"550", "5.2.2", "Submission quota", Quota, Later, OfMailbox, true, "the mailbox has used up its messages or recipients of the last 24 hours", tooManyDay},
	{"550", "5.7.232", "", Temporary, Later, OfTenant, true, "the trial tenant has used up its external recipients of the last 24 hours", "send less to outside, or buy licences; " + waits},
	{"550", "5.7.233", "", Temporary, Later, OfTenant, true, "the tenant has used up its external recipients of the last 24 hours",
		"find out who sends most (Exchange admin centre > Reports > Tenant outbound external recipients); " + waits},
	{"550", "5.7.236", "", Temporary, Later, OfTenant, true, "the tenant has used up the 100 external recipients a day that onmicrosoft.com senders have", "send as an address of a domain of your own; " + waits},
	{"4", "4.5.3", "", Temporary, Later, OfMessage, false, "the message has more recipients than the service takes at once",
		`let Postfix divide it: postconf -e "sendas_destination_recipient_limit = 50"`},
	{"5", "5.5.3", "", Temporary, Later, OfMessage, false, "the message has more recipients than the mailbox may send to at once (its RecipientLimits)",
		`let Postfix divide it: postconf -e "sendas_destination_recipient_limit = 50"`},
	{"5", "", "SubmissionExceeded", Permanent, Never, OfMessage, false, "the message is larger than the mailbox may send (its MaxSendSize)", fitsNot},
	{"5", "5.2.3", "", Permanent, Never, OfMessage, false, "the message is larger than the mailbox may send (its MaxSendSize)", fitsNot},
	{"552", "5.3.4", "Header size exceeds", Permanent, Never, OfMessage, false, "the header of the message is too large, not the message", shorten},
	{"5", "5.3.4", "", Permanent, Never, OfMessage, false, "the message is larger than Exchange Online takes (150 MB, or the mailbox's MaxSendSize where that is less)", fitsNot},
	{"554", "5.2.2", "", Full, Later, OfMailbox, false, "the mailbox is full, most likely with copies in Sent Items", emptyIt},
	{"5", "5.2.121", "", Temporary, Later, OfMessage, true, "the recipient's mailbox gets too much mail of this sender for now", retries},
	{"5", "5.2.122", "", Temporary, Later, OfMessage, true, "the recipient's mailbox gets too much mail for now", retries},

	// What the message is.
	{"554", "5.6.0", "IMC53", Permanent, Never, OfMessage, false, "a field of the header is too long", shorten},
	{"554", "5.6.211", "", Permanent, Never, OfMessage, false, "a field of the header, which the reply names, has more than 32768 bytes", shorten},
	{"550", "5.1.20", "", Permanent, Never, OfMessage, false, "the message has several From addresses and no Sender", milterPassed},
	{"550", "5.7.512", "", Permanent, Never, OfMessage, false, "the message has no valid From", milterPassed},
	{"550", "5.6.11", "", Permanent, Never, OfMessage, false, "the message has line feeds without carriage return", "Postfix mends that: look for what sends around it; " + returned},
	{"5", "5.4.14", "", Permanent, Never, OfMessage, false, "the message has passed too many servers: it goes in a circle", "compare the recipient domain's MX and the tenant's connectors: one sends it back; " + returned},

	// Continuous error throttling. The numbers are not always the same, and one is that of a denied
	// sender too, so the text decides; without one, the others can mean nothing else.
	{"5", "5.2.251-255", "mailbox full errors", Throttled, Later, OfMailbox, true, throttled + "going on while it was full", emptyIt + throttleEnds},
	{"5", "5.2.251-255", "send as denied errors", Throttled, Later, OfMailbox, true, throttled + "going on to send as addresses that it may not send as", "see send_as_denied in sendas status, and grant them" + throttleEnds},
	{"5", "5.2.251-255", "license errors", Throttled, Later, OfMailbox, true, throttled + "having no valid licence", "give it one in the Microsoft 365 admin centre" + throttleEnds},
	{"5", "5.2.251-255", "too many recipients errors", Throttled, Later, OfMailbox, true, throttled + "too many recipients in a message", `let Postfix divide them: postconf -e "sendas_destination_recipient_limit = 50"` + throttleEnds},
	{"5", "5.2.251-255", "invalid recipients errors", Throttled, Later, OfMailbox, true, throttled + "recipients that are no addresses", "have the senders correct them (msg=\"recipient refused\" in the log)" + throttleEnds},
	{"5", "5.2.251-255", "throttled", Throttled, Later, OfMailbox, true, throttled + "going on with what was refused", "look at the refusals in the log of the token service" + throttleEnds},
	{"5", "5.2.251", "", Throttled, Later, OfMailbox, true, throttled + "going on with what was refused", "look at the refusals in the log of the token service" + throttleEnds},
	{"5", "5.2.253-255", "", Throttled, Later, OfMailbox, true, throttled + "going on with what was refused", "look at the refusals in the log of the token service" + throttleEnds},

	// Who may send as whom.
	{"5", "5.2.252", "", SendAs, Never, OfSender, false, MayNotSendAs, GrantSendAs},
	{"554", "5.2.0", "SendAsDenied", SendAs, Never, OfSender, false, MayNotSendAs, GrantSendAs},
	{"550", "5.7.60", "", SendAs, Never, OfSender, false, MayNotSendAs, GrantSendAs},
	{"430", "4.2.0", "", Logon, Later, OfMailbox, true, "the app could sign in but has no right on the mailbox, or has not got it yet", grantIsSlow +
		`; without one, type "Add-MailboxPermission MAILBOX -User OBJECT_ID -AccessRights FullAccess"`},

	// AUTH.
	{"535", "5.7.139", "SmtpClientAuthentication is disabled for the Tenant", AuthOff, Later, OfTenant, false, "SMTP AUTH is switched off for the whole tenant, which counts for OAuth too",
		switchOnOne + ", which is for this mailbox alone, and wait an hour"},
	{"535", "5.7.139", "SmtpClientAuthentication is disabled", AuthOff, Later, OfMailbox, false, "SMTP AUTH is switched off, which counts for OAuth too", switchOn},
	{"535", "5.7.139", "basic authentication is disabled", Auth, Later, OfConnection, false, "a password was sent where only OAuth is taken", needsOAuth},
	{"535", "5.7.139", "user credentials were incorrect", Auth, Later, OfConnection, false, "a password was sent, and it is wrong", needsOAuth},
	{"535", "5.7.139", "did not meet the criteria", Auth, Later, OfTenant, false, "a policy of the tenant refuses the sign-in", authPolicy},
	{"535", "5.7.139", "user is locked", Auth, Later, OfTenant, false, "the tenant's security defaults refuse the sign-in", authPolicy},
	{"535", "5.7.139", "STS service was unreachable", Auth, Later, OfTenant, true, "the organisation's own sign-in service (federation) does not answer Microsoft", "have it looked at; Postfix tries again by itself"},
	{"535", "5.7.139", "federated STS", Auth, Later, OfTenant, false, "the organisation's own sign-in service (federation) is set up wrongly", "have its address begin with https://"},
	{"535", "5.7.139", "", Auth, Later, OfTenant, false, "a policy of the tenant refuses the sign-in", authPolicy},
	{"535", "5.7.142", "", Auth, Now, OfConnection, true, "the token has less than 10 minutes left", newToken},
	{"535", "5.7.143", "", Auth, Now, OfConnection, true, "the token has ended", newToken},
	{"535", "5.7.144", "", Auth, Later, OfMailbox, false, "the token lacks the permission Mail.Send of Office 365 Exchange Online, or was asked for by a scope of SMTP",
		"give the app Mail.Send of Office 365 Exchange Online with an administrator's consent; the scope is https://outlook.office.com/.default, as a route of type hve has it"},
	{"535", "", "", Auth, Later, OfMailbox, false, "Exchange Online does not accept the token for this mailbox", rights},
	{"550", "5.7.30", "", Auth, Later, OfConnection, false, "a password was sent, and Microsoft has ended Basic authentication", needsOAuth},
	{"501", "5.5.127", "", Auth, Now, OfConnection, true, "the token has less than 10 minutes left", newToken},
	{"501", "5.5.121-126", "", Auth, Later, OfConnection, false, badAnswer, mendAnswer},
	{"504", "5.7.4", "", Auth, Later, OfConnection, false, "the mechanism is not offered, or TLS has not begun", "type: sendas postfix enable"},
	{"451", "5.7.3", "", Busy, Later, OfConnection, false, "TLS has to begin before mail is sent", "type: sendas postfix enable"},
	{"454", "4.7.0", "TLS", Busy, Later, OfConnection, true, "Microsoft's server cannot begin TLS now", lasting},
	{"454", "4.7.0", "", Busy, Later, OfConnection, true, "Microsoft's sign-in has trouble, not the token", lasting},
	{"530", "5.7.57", "SmtpClientAuthentication is disabled", NoAuth, Later, OfMailbox, false, "AUTH was refused before: SMTP AUTH is switched off, which counts for OAuth too", switchOn},
	{"530", "5.7.57", "Error: 535", NoAuth, Later, OfMailbox, false, "AUTH was refused before, as the reply repeats", rights},
	{"5", "5.7.57", "", NoAuth, Later, OfConnection, false, "the session got no credential", "check the transport and the SASL plugin: sendas doctor"},

	// High Volume Email.
	{"5", "5.7.240", "", Logon, Later, OfMailbox, true, "the app is not on the list of the High Volume Email account, or has been for less than 5 minutes",
		`type "Add-HVEAppAccess -Identity MAILBOX -AppIds OBJECT_ID" in Exchange Online PowerShell; where that does not do, try it with the application id`},
	{"5", "5.2.240", "", Logon, Later, OfMailbox, false, "the mailbox is no High Volume Email account", "make one (New-MailUser -HighVolumeMail) and name it as account: of the route; a mailbox belongs under mailboxes:"},
	{"5", "5.7.62", "", SendAs, Never, OfSender, false, "the envelope sender is not the High Volume Email account", ownAddress},
	{"5", "5.6.241", "", SendAs, Never, OfSender, false, "From is not the High Volume Email account", ownAddress},
	{"5", "5.5.105", "", Recipient, Never, OfMessage, false, "High Volume Email takes no recipients outside of the organisation", "list under tenant.domains what the organisation has and nothing else, and see where aliases lead: a route of type hve leaves all others to submission; " + returned},

	// Blocks of the mailbox or its tenant: no fault of the message, which leaves when an
	// administrator has had them lifted.
	{"550", "5.1.8", "", Blocked, Later, OfMailbox, false, "the mailbox is restricted, because spam was sent as it", unblock},
	{"550", "5.7.501", "", Blocked, Later, OfMailbox, false, "the mailbox is banned, because spam was sent as it", unblock},
	{"550", "5.7.502", "", Blocked, Later, OfMailbox, false, "the mailbox is banned as a sender", unblock},
	{"550", "5.7.503", "", Blocked, Later, OfMailbox, false, "the mailbox is banned as a sender", unblock},
	{"550", "5.7.705", "", Blocked, Later, OfTenant, false, "the whole tenant is blocked, because too much spam was sent from it", askSupport},
	{"550", "5.7.708", "", Blocked, Later, OfTenant, false, "Microsoft does not take mail of a new or trial tenant from this address", askSupport},
	{"5", "", "OutboundSpamException", Blocked, Later, OfMailbox, false, "Microsoft takes the mailbox for a source of spam", unblock + ", for some time after that too"},

	// Blocks of this relay, of an address or of a recipient.
	{"550", "5.7.606-649", "", Permanent, Never, OfConnection, false, "this relay's public address is banned", delist},
	{"550", "5.7.703", "", Permanent, Never, OfMessage, false, "the tenant's own block list has an address of this message", "look at Tenant Allow/Block Lists at https://security.microsoft.com"},
	{"550", "5.7.124", "", Recipient, Never, OfMessage, false, "the recipient takes mail from certain senders alone", askOwner},
	{"5", "5.7.129", "", Recipient, Never, OfMessage, false, "the recipient takes mail from certain senders alone", askOwner},
	{"550", "5.7.133-136", "", Recipient, Never, OfMessage, false, "the recipient takes mail from inside the organisation alone", askOwner},
	{"501", "5.1.3", "", Recipient, Never, OfMessage, false, "the recipient is no address: two in one, a blank, a semicolon", checkRcpt},
	{"550", "5.1.10", "", Recipient, Never, OfMessage, false, "there is no such recipient", checkRcpt},
	{"550", "5.4.1", "", Recipient, Never, OfMessage, false, "there is no such recipient in the tenant", checkRcpt},
	{"550", "5.7.509", "", Permanent, Never, OfSender, false, "the domain of From fails DMARC, and its owner asks to reject then", `let the sender be rewritten, and look at SPF: "sendas check --dns"`},
	{"550", "5.7.515", "", Permanent, Never, OfTenant, false, "the domain sends much mail without SPF, DKIM and DMARC", `publish them: "sendas check --dns" shows SPF`},

	// Connector and direct send.
	{"550", "5.7.64", "", Permanent, Never, OfConnection, false, "no connector of the tenant knows this relay", connector},
	{"550", "5.7.68", "", Permanent, Never, OfTenant, false, "the tenant refuses direct send", "use a connector: make the route's type connector"},
	{"550", "5.7.750", "", Permanent, Never, OfTenant, false, "mail of a domain that the tenant has not verified came by the connector",
		"verify the domain in the Microsoft 365 admin centre, or let the sender be rewritten; " + returned},
	{"451", "4.7.500-699", "", Busy, Later, OfConnection, true, "Microsoft slows this relay's public address down", lessAtOnce},
	{"451", "4.7.850-899", "", Busy, Later, OfConnection, true, "Microsoft slows this relay's public address down", lessAtOnce},
	{"450", "4.7.320", "", Temporary, Later, OfMessage, true, "the recipient's server has a certificate that Microsoft does not accept", notOurs},
	{"450", "4.4.317", "", Temporary, Later, OfMessage, true, "the recipient's server has no TLS that Microsoft accepts", notOurs},

	// The service and the protocol itself.
	{"450", "4.7.0", "not proxied", Busy, Later, OfConnection, true, "Microsoft's front end could not hand the message on", lasting},
	{"4", "4.3.111", "", Busy, Later, OfConnection, true, "Microsoft's servers could not hand the message on", lasting},
	{"421", "4.7.66", "", Busy, Later, OfConnection, false, "TLS is older than 1.2", "let nobody inspect TLS between this host and Microsoft, and update OpenSSL"},
	{"421", "4.3.2", "maximum number of concurrent", Busy, Later, OfConnection, true, "too many connections to Microsoft's server at one time", retries},
	{"421", "4.3.2", "", Busy, Later, OfConnection, true, "the service has trouble and takes no mail now", lasting},
	{"421", "4.4.1", "", Busy, Later, OfConnection, true, "the session was silent for too long", retries},
	{"421", "", "", Busy, Later, OfConnection, true, "the service has trouble", retries},
	{"451", "4.7.0", "", Busy, Later, OfConnection, true, "Microsoft's server has trouble", lasting},
	{"451", "", "", Busy, Later, OfConnection, true, "the service has trouble", retries},
	{"500", "5.3.3", "", Permanent, Never, OfConnection, false, "Microsoft does not know the command", mendRequest},
	{"502", "5.3.3", "", Permanent, Never, OfMessage, false, "Microsoft does not take the command, or not SMTPUTF8", `ask for SMTPUTF8 only where an address needs it: postconf -e "smtputf8_autodetect_classes = sendmail, verify"`},
	{"503", "5.5.1-2", "", Permanent, Never, OfConnection, false, "the command came at the wrong moment", mendRequest},
	{"501", "5.5.4", "", Permanent, Never, OfMessage, false, "Microsoft finds an address or a parameter malformed", mendRequest},

	// What is left.
	{"4", "", "", Temporary, Later, OfMessage, true, "a temporary refusal that has no explanation here", retries},
	{"5", "", "", Permanent, Never, OfMessage, false, "a refusal that has no explanation here", "look its code up at https://aka.ms/ndr; " + returned},
}

// Explanation says what a reply of Exchange Online means. Its texts come from a table: of what the
// server said it has the codes alone.
type Explanation struct {
	Code     string // SMTP's; "" where the text has none, as in a non-delivery report
	Enhanced string // RFC 3463's; "" where there is none
	Keyword  string // what in the text decided; may be ""
	Class    Class
	When     When    // "" for accepted mail and what is no reply
	Of       Subject // likewise
	Meaning  string  // one line without full stop; "" for accepted mail and what is no reply
	Act      string  // what to do, likewise; MAILBOX and SENDER stand for what [Explanation.For] fills in
	Passes   bool    // by itself: asking again later can help
	Later    bool    // the code is permanent, and sendas makes Postfix take it for "not now"
	// Pause is the class of the pause that the mailbox needs, because nothing will leave through it
	// for a while; "" for none.
	Pause ledger.PauseClass

	// Instead, where Later, is the beginning of the text that replaces the reply's own.
	Instead string
	Known   bool // a row explains it that is not for whatever is left
}

// Hint says what the reply means and what to do; "" for accepted mail and what is no reply.
func (e Explanation) Hint() string {
	if e.Meaning == "" {
		return ""
	}
	return e.Meaning + "; " + e.Act
}

// For fills in whose mailbox it is and as whom it sends; "" is not known, and stays a word to be
// replaced.
func (e Explanation) For(mailbox, sender string) Explanation {
	e.Act = strings.NewReplacer("MAILBOX", cmp.Or(mailbox, "MAILBOX"), "SENDER", cmp.Or(sender, "SENDER")).Replace(e.Act)
	return e
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

// Line explains one line as the server sent it.
func Line(line string) Explanation { return lookUp(line, false) }

// Postpone makes the message wait that the reply would have ended.
func (e *Explanation) Postpone() {
	e.When, e.Instead = Later, later(e.Code, e.Enhanced, Later)
	e.Later = e.Instead != ""
}

// lookUp is Line; anyCode leaves SMTP's code out but for its first digit.
func lookUp(line string, anyCode bool) Explanation {
	e := Explanation{Class: fallbackClass(line)}
	if e.Class == Unreadable {
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
		e.Keyword, e.Class, e.When, e.Of, e.Meaning, e.Act, e.Passes = r.keyword, r.class, r.when, r.of, r.meaning, r.act, r.passes
		e.Instead, e.Pause = later(code, e.Enhanced, r.when), pauses[r.class]
		e.Later, e.Known = e.Instead != "", r.enhanced != "" || r.keyword != "" || len(r.code) == 3
	}
	return e
}

// later returns the beginning of the text that replaces a permanent reply where the message may not
// end with it, so that Postfix keeps it; "" where the reply can stay as it is.
func later(code, enhanced string, w When) string {
	if w == Never || code[0] != '5' {
		return ""
	}
	switch code {
	case "552", "554": // there are such temporary ones
		code = "4" + code[1:]
	default:
		code = "450"
	}
	if enhanced == "" {
		enhanced = "5.0.0"
	}
	return code + " 4" + enhanced[1:] + " "
}

// enhancedForm finds an enhanced code where an SMTP code should be (RFC 3463, section 2).
var enhancedForm = regexp.MustCompile(`^[245]\.[0-9]{1,3}\.[0-9]{1,3}\b`)

// findReply returns the first row that a line matches, or nil. anyCode leaves SMTP's code out but
// for its first digit.
func findReply(line string, anyCode bool) *row {
	code, enhanced := codesOf(line)
	for i := range rows {
		r := &rows[i]
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
