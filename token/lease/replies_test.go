package lease

import (
	"slices"
	"strings"
	"testing"
)

const outboundSpam = "554 5.2.0 STOREDRV.Submission.Exception:OutboundSpamException; Failed to process message due to a permanent exception with message " +
	"WASCL UserAction verdict is not None. Actual verdict is "

// knownReplies are replies as Exchange Online was seen to give them, or as Microsoft writes them; …
// stands for what nobody wrote down. passes and later are said of the row, has stands in meaning or
// act.
var knownReplies = []struct {
	reply  string
	class  ReplyClass
	passes bool
	later  bool
	has    string
}{
	{tooMany, ClassConcurrency, true, false, "more than 3 messages"},
	{"432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded [Hostname=P212321.PROD.OUTLOOK.COM]", ClassConcurrency, true, false, "more than 3 messages"},
	{"432 4.3.2 STOREDRV.Deliver; recipient thread limit exceeded", ClassConcurrency, true, false, "recipient's mailbox"},
	{quota, ClassQuota, true, true, "recipients of the last 24 hours"},
	{"550 5.1.90 Your message can't be sent because you've reached your daily limit for message recipients", ClassQuota, true, true, "recipients of the last 24 hours"},
	{"5.2.2 Submission quota exceeded", ClassQuota, true, true, "24 hours"},
	{"550 5.7.232 Your message can't be sent because your trial tenant has exceeded its daily limit for sending email to external recipients (tenant external recipient rate limit)", ClassTemporary, true, true, "trial tenant"},
	{"550 5.7.233 Your message can't be sent because your tenant exceeded its daily limit for sending email to external recipients (tenant external recipient rate limit)", ClassTemporary, true, true, "the tenant has used up"},
	{"550 5.7.236 …", ClassTemporary, true, true, "onmicrosoft.com"},
	{"452 4.5.3 Too many recipients", ClassTemporary, false, false, "sendas_destination_recipient_limit"},
	{"4.5.3 Too many recipients", ClassTemporary, false, false, "sendas_destination_recipient_limit"},
	{"552 5.3.4 Message size exceeds fixed maximum message size", ClassPermanent, false, false, "MaxSendSize"},
	{"554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded", ClassFull, false, true, "Sent Items"},
	{"554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionQuotaExceeded", ClassFull, false, true, "Sent Items"},

	{denied, ClassSendAs, false, false, "Add-RecipientPermission"},
	{"554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed to process message due to a permanent exception with message Cannot submit message. 0.35250:…", ClassSendAs, false, false, "Add-RecipientPermission"},
	{"550 5.7.60 SMTP; Client does not have permissions to send as this sender [host]", ClassSendAs, false, false, "Add-RecipientPermission"},
	{"430 4.2.0 STOREDRV; mailbox logon failure; STOREDRV.Submission.Exception:ConnectionFailedTransientException.MapiExceptionLogonFailed; Failed to process message due to a transient exception with message [BeginDiagnosticData]Cannot open mailbox.", ClassLogon, true, false, "wait before changing"},
	{"550 5.1.20 Multiple From addresses are not allowed without Sender address", ClassPermanent, false, false, "several From"},
	{"550 5.7.512 Access denied, message must be RFC 5322 section 3.6.2 compliant and include a valid From address", ClassPermanent, false, false, "no valid From"},
	{"550 5.6.11 … SMTPSEND.BareLinefeedsAreIllegal", ClassPermanent, false, false, "line feeds"},

	{auth535, ClassAuth, false, true, "object id of the enterprise application"},
	{"535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled for more information. [AM0PR06CA0126.eurprd06.prod.outlook.com 2024-02-14T14:50:26.590Z 08DC2D372B4C3DED]", ClassAuthOff, false, true, "whole tenant"},
	{"535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. Visit https://aka.ms/smtp_auth_disabled for more information. [host]", ClassAuthOff, false, true, "Set-CASMailbox MAILBOX -SmtpClientAuthenticationDisabled $false"},
	{"535 5.7.139 Authentication unsuccessful, basic authentication is disabled. [host time id]", ClassAuth, false, true, "password"},
	{"535 5.7.139 Authentication unsuccessful, the user credentials were incorrect. [host …]", ClassAuth, false, true, "password"},
	{"535 5.7.139 Authentication unsuccessful, the request did not meet the criteria to be authenticated successfully. Contact your administrator. [host time id]", ClassAuth, false, true, "Conditional Access"},
	{"535 5.7.139 Authentication unsuccessful, user is locked by your organization's security defaults policy. Contact your administrator. [host …]", ClassAuth, false, true, "security defaults"},
	{"535 5.7.139 Authentication unsuccessful, federated STS service was unreachable.", ClassAuth, true, true, "does not answer"},
	{"535 5.7.139 Authentication unsuccessful, the federated STS URL does not support HTTPS.", ClassAuth, false, true, "https://"},
	{"535 5.7.139 Authentication unsuccessful, …", ClassAuth, false, true, "a policy of the tenant"},
	{"550 5.7.30 Basic authentication is not supported for Client Submission.", ClassAuth, false, true, "xoauth2"},
	{"501 5.5.124 Invalid XOAUTH2 auth data", ClassAuth, false, true, "cannot be read"},
	{"501 5.5.127 Invalid XOAUTH2 auth data - Token will expire soon error", ClassAuth, true, true, "10 minutes"},
	{"504 5.7.4 Unrecognized authentication type", ClassAuth, false, true, "TLS"},
	{"451 5.7.3 STARTTLS is required to send mail", ClassBusy, false, false, "TLS"},
	{noAuth, ClassNoAuth, false, true, "sendas doctor"},
	{"530 5.7.57 SMTP; Client was not authenticated to send anonymous mail during MAIL FROM [host]", ClassNoAuth, false, true, "sendas doctor"},
	{"550 5.7.57 SMTP; Client was not authenticated to send anonymous mail during MAIL FROM [host]", ClassNoAuth, false, true, "sendas doctor"},
	{"530 5.7.57 Client not authenticated to send mail. Error: 535 5.7.3 Authentication unsuccessful [host]", ClassNoAuth, false, true, "AUTH was refused before"},
	{"530 5.7.57 Client not authenticated to send mail. Error: 535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled for more information. [host]", ClassNoAuth, false, true, "Set-CASMailbox"},

	{"550 5.1.8 Access denied, bad outbound sender AS(42004)", ClassBlocked, false, true, "Restricted entities"},
	{"550 5.1.8 Access denied, bad outbound sender", ClassBlocked, false, true, "its mail waits"},
	{"550 5.7.501 Access denied, spam abuse detected", ClassBlocked, false, true, "banned"},
	{"550 5.7.502 Access denied, banned sender", ClassBlocked, false, true, "banned"},
	{"5.7.503 Access denied, banned sender", ClassBlocked, false, true, "banned"},
	{"550 5.7.705 Access denied, tenant has exceeded threshold", ClassBlocked, false, true, "tenant is blocked"},
	{"550 5.7.708 Access denied, traffic not accepted from this IP", ClassBlocked, false, true, "trial tenant"},
	{"550 5.7.708 Service unavailable. Access denied, traffic not accepted from this IP. For more information please go to https://go.microsoft.com/fwlink/", ClassBlocked, false, true, "its mail waits"},
	{outboundSpam + "HipNotify, ShowTierUpgrade. OutboundSpamException: [Hostname=x]", ClassBlocked, false, true, "source of spam"},
	{outboundSpam + "RefuseQuota, ShowTierUpgrade.", ClassBlocked, false, true, "Restricted entities"},
	{"550 5.7.606 Access denied, banned sending IP [203.0.113.7]", ClassPermanent, false, false, "sender.office.com"},
	{"550 5.7.649 Access denied, banned sending IP [203.0.113.7]", ClassPermanent, false, false, "sender.office.com"},
	{"5.7.703 Your message can't be delivered because messages to XXX, YYY are blocked by your organization using Tenant Allow Block List.", ClassPermanent, false, false, "block list"},
	{"550 5.7.124 …Sender not in allowed-senders list", ClassRecipient, false, false, "certain senders"},
	{"5.7.133", ClassRecipient, false, false, "inside the organisation"},
	{"5.7.136", ClassRecipient, false, false, "inside the organisation"},
	{"550 5.1.10 …Recipient not found", ClassRecipient, false, false, "no such recipient"},
	{"550 5.4.1 Recipient address rejected: Access denied", ClassRecipient, false, false, "no such recipient"},
	{"550 5.7.509 Access denied, sending domain [d] does not pass DMARC verification and has a DMARC policy of reject.", ClassPermanent, false, false, "DMARC"},
	{"550 5.7.515 Access denied, sending domain d does not meet the required authentication level.", ClassPermanent, false, false, "SPF, DKIM and DMARC"},

	{"550 5.7.64 TenantAttribution; Relay Access Denied SMTP", ClassPermanent, false, false, "connector"},
	{"550 5.7.68 TenantInboundAttribution; Direct Send not allowed for this organization from unauthorized sources", ClassPermanent, false, false, "direct send"},
	{"550 5.7.750 Service unavailable. Client blocked from sending from unregistered domains", ClassPermanent, false, false, "verify the domain"},
	{"451 4.7.500 Server busy. Please try again later from [203.0.113.7]. (S77719)", ClassBusy, true, false, "public address"},
	{"4.7.699 (ASxxx) Access denied, please try again later", ClassBusy, true, false, "public address"},
	{"451 4.7.850 Access denied, please try again later", ClassBusy, true, false, "public address"},
	{"450 4.7.320 Certificate validation failed", ClassTemporary, true, false, "between Microsoft and the recipient"},
	{"4.4.317 …", ClassTemporary, true, false, "between Microsoft and the recipient"},

	{"421 4.7.66 TLS 1.0 and 1.1 are not supported. Please upgrade/update your client to support TLS 1.2.", ClassBusy, false, false, "older than 1.2"},
	{"421 4.3.2 The maximum number of concurrent connections has exceeded a limit, closing transmission channel", ClassBusy, true, false, "too many connections"},
	{"421 4.3.2 Service not available", ClassBusy, true, false, "has trouble and takes no mail now"},
	{"421 4.4.1 Connection timed out [host]", ClassBusy, true, false, "silent"},
	{"451 4.7.0 Temporary server error. Please try again later. PRX2", ClassBusy, true, false, "has trouble"},
	{"451 4.5.127", ClassBusy, true, false, "has trouble"},
	{"500 5.3.3 Unrecognized command 'xyz' [host 2024-03-01T09:55:18.157Z 08DC]", ClassPermanent, false, false, "does not know the command"},
	{"502 5.3.3 Command not implemented", ClassPermanent, false, false, "SMTPUTF8"},
	{"503 5.5.2 Send hello first", ClassPermanent, false, false, "wrong moment"},
	{"503 5.5.1", ClassPermanent, false, false, "wrong moment"},
	{"501 5.5.4 Invalid arguments", ClassPermanent, false, false, "malformed"},
	{"450 4.1.1 x", ClassTemporary, true, false, "no explanation here"},
	{"550 5.9.9 x", ClassPermanent, false, false, "no explanation here"},
	{"550 5.2.251 Sender throttled due to continuous mailbox full errors.", ClassThrottled, true, true, "while it was full"},
	{"550 5.2.252 Sender throttled due to continuous send as denied errors.", ClassThrottled, true, true, "send_as_denied"},
	{"550 5.2.253 Sender throttled due to continuous invalid license errors.", ClassThrottled, true, true, "licence"},
	{"550 5.2.254 Sender throttled due to continuous too many recipients errors.", ClassThrottled, true, true, "sendas_destination_recipient_limit"},
	{"550 5.2.254 Sender throttled due to continuous invalid recipients errors.", ClassThrottled, true, true, "no addresses"},
	{"5.2.255 Sender throttled due to continuous invalid recipients errors.", ClassThrottled, true, true, "no addresses"},
	{"550 5.2.252 Sender throttled", ClassThrottled, true, true, "log of the token service"},
	{"550 5.2.252 SendAsDenied", ClassSendAs, false, false, "Add-RecipientPermission"},
	{"… MapiExceptionMaxSubmissionExceeded", ClassUnreadable, false, false, ""},
	{"554 5.2.0 MapiExceptionMaxSubmissionExceeded; Message size exceeds maximum size limit.; STOREDRV.Submission.Exception:MessageSubmissionExceededException.MapiExceptionMaxSubmissionExceeded; Failed to process message due to a permanent exception with message [BeginDiagnosticData]Cannot save changes made to an item to store", ClassPermanent, false, false, "MaxSendSize"},
	{"550 5.2.3 Message too large", ClassPermanent, false, false, "MaxSendSize"},
	{"5.3.4", ClassPermanent, false, false, "150 MB"},
	{"552 5.3.4 Header size exceeds fixed maximum size", ClassPermanent, false, false, "the header of the message is too large, not the message; have the device"},
	{"5.2.121", ClassTemporary, true, true, "of this sender"},
	{"5.2.122", ClassTemporary, true, true, "too much mail"},
	{"554 5.6.0 Invalid message content when handling MIME exception. IMC53", ClassPermanent, false, false, "field of the header is too long"},
	{"554 5.6.211 Invalid MIME Content: Single text value size (33061) exceeded allowed maximum (32768) for the 'Autocrypt' header. [host …]", ClassPermanent, false, false, "32768 bytes"},
	{"5.4.14", ClassPermanent, false, false, "in a circle"},
	{"554 5.4.14 Hop count exceeded - possible mail loop", ClassPermanent, false, false, "in a circle"},
	{"535 5.7.142 XOAUTH2 authentication failed. Token will expire soon.", ClassAuth, true, true, "10 minutes"},
	{"535 5.7.143 XOAUTH2 authentication failed. Expired token.", ClassAuth, true, true, "has ended"},
	{"535 5.7.144 XOAUTH2 authentication failed. Invalid API permissions.", ClassAuth, false, true, "Mail.Send"},
	{"535 5.7.139 Authentication unsuccessful, the organization configuration doesn't allow this authentication request.", ClassAuth, false, true, "policy of the tenant"},
	{"501 5.5.121 Invalid XOAUTH2 argument", ClassAuth, false, true, "cannot be read"},
	{"501 5.5.122 Invalid XOAUTH2 argument", ClassAuth, false, true, "cannot be read"},
	{"501 5.5.123 Invalid XOAUTH2 auth data", ClassAuth, false, true, "cannot be read"},
	{"501 5.5.125 Invalid XOAUTH2 auth data", ClassAuth, false, true, "cannot be read"},
	{"501 5.5.126 Invalid XOAUTH2 auth data", ClassAuth, false, true, "cannot be read"},
	{"454 4.7.0 TLS not available", ClassBusy, true, false, "cannot begin TLS"},
	{"454 4.7.0 Temporary authentication failure", ClassBusy, true, false, "not the token"},
	{"451 4.7.0 Temporary server error. Please try again later. PRX4 [BN0PR04CA0001.namprd04.prod.outlook.com]", ClassBusy, true, false, "has trouble"},
	{"421 4.3.2 Service not active", ClassBusy, true, false, "has trouble and takes no mail now"},
	{"421 4.3.2 The maximum number of concurrent server connections has exceeded a limit, closing transmission channel", ClassBusy, true, false, "too many connections"},
	{"421 closing", ClassBusy, true, false, "has trouble"},
	{"450 4.7.0 Message not proxied", ClassBusy, true, false, "hand the message on"},
	{"4.3.111 … MRH1", ClassBusy, true, false, "hand the message on"},
	{"550 5.7.240 The application is not allowed for use with this High Volume Email account", ClassLogon, true, true, "Add-HVEAppAccess -Identity MAILBOX"},
	{"5.2.240 …", ClassLogon, false, true, "no High Volume Email account"},
	{"550 5.2.240 …", ClassLogon, false, true, "no High Volume Email account"},
	{"5.7.62 …", ClassSendAs, false, false, "envelope sender is not"},
	{"5.6.241 …", ClassSendAs, false, false, "From is not the High"},
	{"550 5.5.105 External sending is not supported for High Volume Email accounts", ClassRecipient, false, false, "outside of the organisation"},
	{"501 5.1.3 Invalid address", ClassRecipient, false, false, "no address"},
	{"5.7.129", ClassRecipient, false, false, "certain senders"},
	{"5.7.134", ClassRecipient, false, false, "inside the organisation"},
	{"550 5.7.703 Your message can't be delivered", ClassPermanent, false, false, "block list"},
}

func TestExplain(t *testing.T) {
	hit := make(map[*replyRow]bool)
	for _, tc := range knownReplies {
		e := Explain(tc.reply)
		if known := tc.has != "no explanation here" && tc.class != ClassUnreadable; e.known != known {
			t.Errorf("Explain(%.60q) = %q, known: %v, want %v", tc.reply, e.Meaning, e.known, known)
		}
		if e.Class != tc.class {
			t.Errorf("Explain(%.60q).Class = %s, want %s", tc.reply, e.Class, tc.class)
		}
		if e.Passes != tc.passes || e.Later != tc.later {
			t.Errorf("Explain(%.60q) passes: %v, later: %v, want %v, %v", tc.reply, e.Passes, e.Later, tc.passes, tc.later)
		}
		if !strings.Contains(e.Meaning+"; "+e.Act, tc.has) {
			t.Errorf("Explain(%.60q) = %q; %q, want %q in it", tc.reply, e.Meaning, e.Act, tc.has)
		}
		if e.Class == ClassUnreadable {
			continue
		}
		line := tc.reply
		if e.Code == "" {
			line = tc.reply[:1] + "50 " + tc.reply
		}
		hit[findReply(line, e.Code == "")] = true
	}
	for i := range replyRows {
		if r := &replyRows[i]; !hit[r] {
			t.Errorf("no known reply is explained by row %s %s %q", r.code, r.enhanced, r.keyword)
		}
	}
}

func TestExplainForm(t *testing.T) {
	for _, tc := range []struct {
		reply, code, enhanced, keyword string
		class                          ReplyClass
	}{
		{"250 2.0.0 OK <x@contoso.com>", "250", "2.0.0", "", ClassAccepted},
		{"535-5.7.139 Authentication unsuccessful,\n535 5.7.139 SmtpClientAuthentication is disabled for the Mailbox.", "535", "5.7.139", "SmtpClientAuthentication is disabled", ClassAuthOff},
		{"5.7.60 SMTP; Client does not have permissions", "", "5.7.60", "", ClassSendAs},
		{" 554 5.2.252 SendAsDenied\r\n", "554", "5.2.252", "", ClassSendAs},
		{"451", "451", "", "", ClassBusy},
		{"550 5.7.650 x", "550", "5.7.650", "", ClassPermanent},
		{"550 5.7.x x", "550", "", "", ClassPermanent},
		{"334 ", "", "", "", ClassUnreadable},
		{"", "", "", "", ClassUnreadable},
		{"hello", "", "", "", ClassUnreadable},
		{"5.2", "", "", "", ClassPermanent},
		{"550 5.7.1234 x", "550", "", "", ClassPermanent},
	} {
		e := Explain(tc.reply)
		if e.Code != tc.code || e.Enhanced != tc.enhanced || e.Keyword != tc.keyword || e.Class != tc.class {
			t.Errorf("Explain(%.40q) = %q %q %q %s, want %q %q %q %s", tc.reply, e.Code, e.Enhanced, e.Keyword, e.Class, tc.code, tc.enhanced, tc.keyword, tc.class)
		}
		if quiet := tc.class == ClassAccepted || tc.class == ClassUnreadable; quiet != (e.Meaning == "") || quiet != (e.Act == "") {
			t.Errorf("Explain(%.40q) means %q, do %q", tc.reply, e.Meaning, e.Act)
		}
	}
}

// What Postfix gets to see of a permanent code that means "later" keeps its meaning, and only a
// message that can never leave is returned.
func TestLaterIsTheSameKind(t *testing.T) {
	for _, tc := range []struct {
		code, enhanced string
		when           When
		want           string
	}{
		{"550", "5.1.8", Later, "450 4.1.8 "}, {"554", "5.2.0", Later, "454 4.2.0 "}, {"552", "5.2.2", Later, "452 4.2.2 "}, {"530", "5.7.57", Later, "450 4.7.57 "},
		{"535", "5.7.143", Now, "450 4.7.143 "}, {"550", "", Later, "450 4.0.0 "}, {"550", "5.1.8", Never, ""}, {"451", "4.7.0", Later, ""},
	} {
		if got := later(tc.code, tc.enhanced, tc.when); got != tc.want {
			t.Errorf("later(%s %s, %s) = %q, want %q", tc.code, tc.enhanced, tc.when, got, tc.want)
		}
	}
	for _, tc := range knownReplies {
		e := Explain(tc.reply)
		if permanent := e.Code == "" && tc.reply[0] == '5' || strings.HasPrefix(e.Code, "5"); e.Later != (permanent && e.When != Never) {
			t.Errorf("Explain(%.60q): %s, Later %v", tc.reply, e.When, e.Later)
		}
	}
}

// All rows keep the voice of hints (see TestHintStyle).
func TestReplyStyle(t *testing.T) {
	for _, r := range replyRows {
		hint := r.meaning + "; " + r.act
		if r.meaning == "" || r.act == "" || strings.Contains(r.meaning, ";") || strings.HasSuffix(r.meaning, ".") || strings.HasSuffix(r.act, ".") ||
			strings.ContainsAny(hint, "\n{}") || len(hint) > 400 {
			t.Errorf("row %s %s: %q, want one line of two parts without full stop", r.code, r.enhanced, hint)
		}
		if !slices.Contains([]When{Now, Later, Never}, r.when) || !slices.Contains([]Subject{OfMessage, OfSender, OfMailbox, OfTenant, OfConnection}, r.of) {
			t.Errorf("row %s %s: %q of %q", r.code, r.enhanced, r.when, r.of)
		}
		if temporary := r.code[0] == '4'; temporary && r.when == Never {
			t.Errorf("row %s %s: Postfix keeps the message", r.code, r.enhanced)
		}
		if r.when != Never && strings.Contains(hint, returned) || r.when == Never && strings.Contains(hint, waits) {
			t.Errorf("row %s %s: %s, but says %q", r.code, r.enhanced, r.when, hint)
		}
		if r.class == ClassAccepted || r.class == ClassUnreadable {
			t.Errorf("row %s %s has the class %s", r.code, r.enhanced, r.class)
		}
	}
}

// A keyword never makes a reply more general than a row before it: else its row would be dead.
func TestNoDeadReplyRow(t *testing.T) {
	for i, r := range replyRows {
		for _, before := range replyRows[:i] {
			if strings.HasPrefix(r.code, before.code) && (before.enhanced == "" || before.enhanced == r.enhanced) && strings.Contains(r.keyword, before.keyword) {
				t.Errorf("row %s %s %q can never be reached: %s %s %q comes first", r.code, r.enhanced, r.keyword, before.code, before.enhanced, before.keyword)
			}
		}
	}
}

func TestReplyRange(t *testing.T) {
	for _, tc := range []struct {
		enhanced, want string
		in             bool
	}{
		{"4.7.500", "4.7.500-699", true}, {"4.7.699", "4.7.500-699", true}, {"4.7.499", "4.7.500-699", false}, {"4.7.700", "4.7.500-699", false},
		{"4.6.600", "4.7.500-699", false}, {"4.7.", "4.7.500-699", false}, {"4.7.5x0", "4.7.500-699", false}, {"", "4.7.500-699", false},
		{"4.7.500", "", true}, {"4.7.500", "4.7.500", true}, {"4.7.501", "4.7.500", false},
	} {
		if got := inRange(tc.enhanced, tc.want); got != tc.in {
			t.Errorf("inRange(%q, %q) = %v, want %v", tc.enhanced, tc.want, got, tc.in)
		}
	}
}

// Whatever a server says, the explanation is one of the table and holds nothing of the server's but
// codes.
func FuzzExplain(f *testing.F) {
	for _, r := range knownReplies {
		f.Add(r.reply)
	}
	f.Fuzz(func(t *testing.T, reply string) {
		e := Explain(reply)
		if strings.Trim(e.Code+e.Enhanced, "0123456789.") != "" || len(e.Code) > 3 || len(e.Enhanced) > 9 {
			t.Errorf("codes %q %q", e.Code, e.Enhanced)
		}
		if quiet := e.Class == ClassAccepted || e.Class == ClassUnreadable; quiet != (e.Meaning == "") {
			t.Errorf("class %s means %q", e.Class, e.Meaning)
		}
		line := strings.TrimSpace(reply)
		if x := lookUp(line, false); x != e && !enhancedForm.MatchString(line) {
			t.Errorf("Explain says %+v, of the line %+v", e, x)
		}
	})
}
