package replies

import (
	"slices"
	"strings"
	"testing"

	"github.com/sendas/sendas/token/lease/repliestest"
)

// knownReplies are replies as Exchange Online was seen to give them, or as Microsoft writes them; …
// stands for what nobody wrote down. passes and later are said of the row, has stands in meaning or
// act.
var knownReplies = []struct {
	reply  string
	class  Class
	passes bool
	later  bool
	has    string
}{
	{repliestest.TooMany, Concurrency, true, false, "more than 3 messages"},
	{"432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded [Hostname=P212321.PROD.OUTLOOK.COM]", Concurrency, true, false, "more than 3 messages"},
	{"432 4.3.2 STOREDRV.Deliver; recipient thread limit exceeded", Concurrency, true, false, "recipient's mailbox"},
	{repliestest.Quota, Quota, true, true, "recipients of the last 24 hours"},
	{"550 5.1.90 Your message can't be sent because you've reached your daily limit for message recipients", Quota, true, true, "recipients of the last 24 hours"},
	{"5.2.2 Submission quota exceeded", Quota, true, true, "24 hours"},
	{"550 5.7.232 Your message can't be sent because your trial tenant has exceeded its daily limit for sending email to external recipients (tenant external recipient rate limit)", Temporary, true, true, "trial tenant"},
	{"550 5.7.233 Your message can't be sent because your tenant exceeded its daily limit for sending email to external recipients (tenant external recipient rate limit)", Temporary, true, true, "the tenant has used up"},
	{"550 5.7.236 …", Temporary, true, true, "onmicrosoft.com"},
	{"452 4.5.3 Too many recipients", Temporary, false, false, "sendas_destination_recipient_limit"},
	{"4.5.3 Too many recipients", Temporary, false, false, "sendas_destination_recipient_limit"},
	{"552 5.3.4 Message size exceeds fixed maximum message size", Permanent, false, false, "MaxSendSize"},
	{"554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded", Full, false, true, "Sent Items"},
	{"554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionQuotaExceeded", Full, false, true, "Sent Items"},

	{repliestest.Denied, SendAs, false, false, "Add-RecipientPermission"},
	{"554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed to process message due to a permanent exception with message Cannot submit message. 0.35250:…", SendAs, false, false, "Add-RecipientPermission"},
	{"550 5.7.60 SMTP; Client does not have permissions to send as this sender [host]", SendAs, false, false, "Add-RecipientPermission"},
	{"430 4.2.0 STOREDRV; mailbox logon failure; STOREDRV.Submission.Exception:ConnectionFailedTransientException.MapiExceptionLogonFailed; Failed to process message due to a transient exception with message [BeginDiagnosticData]Cannot open mailbox.", Logon, true, false, "wait before changing"},
	{"550 5.1.20 Multiple From addresses are not allowed without Sender address", Permanent, false, false, "several From"},
	{"550 5.7.512 Access denied, message must be RFC 5322 section 3.6.2 compliant and include a valid From address", Permanent, false, false, "no valid From"},
	{"550 5.6.11 … SMTPSEND.BareLinefeedsAreIllegal", Permanent, false, false, "line feeds"},

	{repliestest.Auth535, Auth, false, true, "object id of the enterprise application"},
	{"535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled for more information. [AM0PR06CA0126.eurprd06.prod.outlook.com 2024-02-14T14:50:26.590Z 08DC2D372B4C3DED]", AuthOff, false, true, "whole tenant"},
	{"535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. Visit https://aka.ms/smtp_auth_disabled for more information. [host]", AuthOff, false, true, "Set-CASMailbox MAILBOX -SmtpClientAuthenticationDisabled $false"},
	{"535 5.7.139 Authentication unsuccessful, basic authentication is disabled. [host time id]", Auth, false, true, "password"},
	{"535 5.7.139 Authentication unsuccessful, the user credentials were incorrect. [host …]", Auth, false, true, "password"},
	{"535 5.7.139 Authentication unsuccessful, the request did not meet the criteria to be authenticated successfully. Contact your administrator. [host time id]", Auth, false, true, "Conditional Access"},
	{"535 5.7.139 Authentication unsuccessful, user is locked by your organization's security defaults policy. Contact your administrator. [host …]", Auth, false, true, "security defaults"},
	{"535 5.7.139 Authentication unsuccessful, federated STS service was unreachable.", Auth, true, true, "does not answer"},
	{"535 5.7.139 Authentication unsuccessful, the federated STS URL does not support HTTPS.", Auth, false, true, "https://"},
	{"535 5.7.139 Authentication unsuccessful, …", Auth, false, true, "a policy of the tenant"},
	{"550 5.7.30 Basic authentication is not supported for Client Submission.", Auth, false, true, "xoauth2"},
	{"501 5.5.124 Invalid XOAUTH2 auth data", Auth, false, true, "cannot be read"},
	{"501 5.5.127 Invalid XOAUTH2 auth data - Token will expire soon error", Auth, true, true, "10 minutes"},
	{"504 5.7.4 Unrecognized authentication type", Auth, false, true, "TLS"},
	{"451 5.7.3 STARTTLS is required to send mail", Busy, false, false, "TLS"},
	{repliestest.NoAuth, NoAuth, false, true, "sendas doctor"},
	{"530 5.7.57 SMTP; Client was not authenticated to send anonymous mail during MAIL FROM [host]", NoAuth, false, true, "sendas doctor"},
	{"550 5.7.57 SMTP; Client was not authenticated to send anonymous mail during MAIL FROM [host]", NoAuth, false, true, "sendas doctor"},
	{"530 5.7.57 Client not authenticated to send mail. Error: 535 5.7.3 Authentication unsuccessful [host]", NoAuth, false, true, "AUTH was refused before"},
	{"530 5.7.57 Client not authenticated to send mail. Error: 535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled for more information. [host]", NoAuth, false, true, "Set-CASMailbox"},

	{"550 5.1.8 Access denied, bad outbound sender AS(42004)", Blocked, false, true, "Restricted entities"},
	{"550 5.1.8 Access denied, bad outbound sender", Blocked, false, true, "its mail waits"},
	{"550 5.7.501 Access denied, spam abuse detected", Blocked, false, true, "banned"},
	{"550 5.7.502 Access denied, banned sender", Blocked, false, true, "banned"},
	{"5.7.503 Access denied, banned sender", Blocked, false, true, "banned"},
	{"550 5.7.705 Access denied, tenant has exceeded threshold", Blocked, false, true, "tenant is blocked"},
	{"550 5.7.708 Access denied, traffic not accepted from this IP", Blocked, false, true, "trial tenant"},
	{"550 5.7.708 Service unavailable. Access denied, traffic not accepted from this IP. For more information please go to https://go.microsoft.com/fwlink/", Blocked, false, true, "its mail waits"},
	{repliestest.OutboundSpam + "HipNotify, ShowTierUpgrade. OutboundSpamException: [Hostname=x]", Blocked, false, true, "source of spam"},
	{repliestest.OutboundSpam + "RefuseQuota, ShowTierUpgrade.", Blocked, false, true, "Restricted entities"},
	{"550 5.7.606 Access denied, banned sending IP [203.0.113.7]", Permanent, false, false, "sender.office.com"},
	{"550 5.7.649 Access denied, banned sending IP [203.0.113.7]", Permanent, false, false, "sender.office.com"},
	{"5.7.703 Your message can't be delivered because messages to XXX, YYY are blocked by your organization using Tenant Allow Block List.", Permanent, false, false, "block list"},
	{"550 5.7.124 …Sender not in allowed-senders list", Recipient, false, false, "certain senders"},
	{"5.7.133", Recipient, false, false, "inside the organisation"},
	{"5.7.136", Recipient, false, false, "inside the organisation"},
	{"550 5.1.10 …Recipient not found", Recipient, false, false, "no such recipient"},
	{"550 5.4.1 Recipient address rejected: Access denied", Recipient, false, false, "no such recipient"},
	{"550 5.7.509 Access denied, sending domain [d] does not pass DMARC verification and has a DMARC policy of reject.", Permanent, false, false, "DMARC"},
	{"550 5.7.515 Access denied, sending domain d does not meet the required authentication level.", Permanent, false, false, "SPF, DKIM and DMARC"},

	{"550 5.7.64 TenantAttribution; Relay Access Denied SMTP", Permanent, false, false, "connector"},
	{"550 5.7.68 TenantInboundAttribution; Direct Send not allowed for this organization from unauthorized sources", Permanent, false, false, "direct send"},
	{"550 5.7.750 Service unavailable. Client blocked from sending from unregistered domains", Permanent, false, false, "verify the domain"},
	{"451 4.7.500 Server busy. Please try again later from [203.0.113.7]. (S77719)", Busy, true, false, "public address"},
	{"4.7.699 (ASxxx) Access denied, please try again later", Busy, true, false, "public address"},
	{"451 4.7.850 Access denied, please try again later", Busy, true, false, "public address"},
	{"450 4.7.320 Certificate validation failed", Temporary, true, false, "between Microsoft and the recipient"},
	{"4.4.317 …", Temporary, true, false, "between Microsoft and the recipient"},

	{"421 4.7.66 TLS 1.0 and 1.1 are not supported. Please upgrade/update your client to support TLS 1.2.", Busy, false, false, "older than 1.2"},
	{"421 4.3.2 The maximum number of concurrent connections has exceeded a limit, closing transmission channel", Busy, true, false, "too many connections"},
	{"421 4.3.2 Service not available", Busy, true, false, "has trouble and takes no mail now"},
	{"421 4.4.1 Connection timed out [host]", Busy, true, false, "silent"},
	{"451 4.7.0 Temporary server error. Please try again later. PRX2", Busy, true, false, "has trouble"},
	{"451 4.5.127", Busy, true, false, "has trouble"},
	{"500 5.3.3 Unrecognized command 'xyz' [host 2024-03-01T09:55:18.157Z 08DC]", Permanent, false, false, "does not know the command"},
	{"502 5.3.3 Command not implemented", Permanent, false, false, "SMTPUTF8"},
	{"503 5.5.2 Send hello first", Permanent, false, false, "wrong moment"},
	{"503 5.5.1", Permanent, false, false, "wrong moment"},
	{"501 5.5.4 Invalid arguments", Permanent, false, false, "malformed"},
	{"450 4.1.1 x", Temporary, true, false, "no explanation here"},
	{"550 5.9.9 x", Permanent, false, false, "no explanation here"},
	{"550 5.2.251 Sender throttled due to continuous mailbox full errors.", Throttled, true, true, "while it was full"},
	{"550 5.2.252 Sender throttled due to continuous send as denied errors.", Throttled, true, true, "send_as_denied"},
	{"550 5.2.253 Sender throttled due to continuous invalid license errors.", Throttled, true, true, "licence"},
	{"550 5.2.254 Sender throttled due to continuous too many recipients errors.", Throttled, true, true, "sendas_destination_recipient_limit"},
	{"550 5.2.254 Sender throttled due to continuous invalid recipients errors.", Throttled, true, true, "no addresses"},
	{"5.2.255 Sender throttled due to continuous invalid recipients errors.", Throttled, true, true, "no addresses"},
	{"550 5.2.252 Sender throttled", Throttled, true, true, "log of the token service"},
	{"550 5.2.251", Throttled, true, true, "log of the token service"},
	{"550 5.2.254 Too many errors", Throttled, true, true, "log of the token service"},
	{"550 5.5.3 Too many recipients", Temporary, false, true, "sendas_destination_recipient_limit"},
	{"550 5.2.252 SendAsDenied", SendAs, false, false, "Add-RecipientPermission"},
	{"… MapiExceptionMaxSubmissionExceeded", Unreadable, false, false, ""},
	{"554 5.2.0 MapiExceptionMaxSubmissionExceeded; Message size exceeds maximum size limit.; STOREDRV.Submission.Exception:MessageSubmissionExceededException.MapiExceptionMaxSubmissionExceeded; Failed to process message due to a permanent exception with message [BeginDiagnosticData]Cannot save changes made to an item to store", Permanent, false, false, "MaxSendSize"},
	{"550 5.2.3 Message too large", Permanent, false, false, "MaxSendSize"},
	{"5.3.4", Permanent, false, false, "150 MB"},
	{"552 5.3.4 Header size exceeds fixed maximum size", Permanent, false, false, "the header of the message is too large, not the message; have the device"},
	{"5.2.121", Temporary, true, true, "of this sender"},
	{"5.2.122", Temporary, true, true, "too much mail"},
	{"554 5.6.0 Invalid message content when handling MIME exception. IMC53", Permanent, false, false, "field of the header is too long"},
	{"554 5.6.211 Invalid MIME Content: Single text value size (33061) exceeded allowed maximum (32768) for the 'Autocrypt' header. [host …]", Permanent, false, false, "32768 bytes"},
	{"5.4.14", Permanent, false, false, "in a circle"},
	{"554 5.4.14 Hop count exceeded - possible mail loop", Permanent, false, false, "in a circle"},
	{"535 5.7.142 XOAUTH2 authentication failed. Token will expire soon.", Auth, true, true, "10 minutes"},
	{"535 5.7.143 XOAUTH2 authentication failed. Expired token.", Auth, true, true, "has ended"},
	{"535 5.7.144 XOAUTH2 authentication failed. Invalid API permissions.", Auth, false, true, "Mail.Send"},
	{"535 5.7.139 Authentication unsuccessful, the organization configuration doesn't allow this authentication request.", Auth, false, true, "policy of the tenant"},
	{"501 5.5.121 Invalid XOAUTH2 argument", Auth, false, true, "cannot be read"},
	{"501 5.5.122 Invalid XOAUTH2 argument", Auth, false, true, "cannot be read"},
	{"501 5.5.123 Invalid XOAUTH2 auth data", Auth, false, true, "cannot be read"},
	{"501 5.5.125 Invalid XOAUTH2 auth data", Auth, false, true, "cannot be read"},
	{"501 5.5.126 Invalid XOAUTH2 auth data", Auth, false, true, "cannot be read"},
	{"454 4.7.0 TLS not available", Busy, true, false, "cannot begin TLS"},
	{"454 4.7.0 Temporary authentication failure", Busy, true, false, "not the token"},
	{"451 4.7.0 Temporary server error. Please try again later. PRX4 [BN0PR04CA0001.namprd04.prod.outlook.com]", Busy, true, false, "has trouble"},
	{"421 4.3.2 Service not active", Busy, true, false, "has trouble and takes no mail now"},
	{"421 4.3.2 The maximum number of concurrent server connections has exceeded a limit, closing transmission channel", Busy, true, false, "too many connections"},
	{"421 closing", Busy, true, false, "has trouble"},
	{"450 4.7.0 Message not proxied", Busy, true, false, "hand the message on"},
	{"4.3.111 … MRH1", Busy, true, false, "hand the message on"},
	{"550 5.7.240 The application is not allowed for use with this High Volume Email account", Logon, true, true, "Add-HVEAppAccess -Identity MAILBOX"},
	{"5.2.240 …", Logon, false, true, "no High Volume Email account"},
	{"550 5.2.240 …", Logon, false, true, "no High Volume Email account"},
	{"5.7.62 …", SendAs, false, false, "envelope sender is not"},
	{"5.6.241 …", SendAs, false, false, "From is not the High"},
	{"550 5.5.105 External sending is not supported for High Volume Email accounts", Recipient, false, false, "outside of the organisation"},
	{"501 5.1.3 Invalid address", Recipient, false, false, "no address"},
	{"5.7.129", Recipient, false, false, "certain senders"},
	{"5.7.134", Recipient, false, false, "inside the organisation"},
	{"550 5.7.703 Your message can't be delivered", Permanent, false, false, "block list"},
}

func TestExplain(t *testing.T) {
	hit := make(map[*row]bool)
	for _, tc := range knownReplies {
		e := Explain(tc.reply)
		if known := tc.has != "no explanation here" && tc.class != Unreadable; e.Known != known {
			t.Errorf("Explain(%.60q) = %q, known: %v, want %v", tc.reply, e.Meaning, e.Known, known)
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
		if e.Class == Unreadable {
			continue
		}
		line := tc.reply
		if e.Code == "" {
			line = tc.reply[:1] + "50 " + tc.reply
		}
		hit[findReply(line, e.Code == "")] = true
	}
	for i := range rows {
		if r := &rows[i]; !hit[r] {
			t.Errorf("no known reply is explained by row %s %s %q", r.code, r.enhanced, r.keyword)
		}
	}
}

func TestExplainForm(t *testing.T) {
	for _, tc := range []struct {
		reply, code, enhanced, keyword string
		class                          Class
	}{
		{"250 2.0.0 OK <x@contoso.com>", "250", "2.0.0", "", Accepted},
		{"535-5.7.139 Authentication unsuccessful,\n535 5.7.139 SmtpClientAuthentication is disabled for the Mailbox.", "535", "5.7.139", "SmtpClientAuthentication is disabled", AuthOff},
		{"5.7.60 SMTP; Client does not have permissions", "", "5.7.60", "", SendAs},
		{" 554 5.2.252 SendAsDenied\r\n", "554", "5.2.252", "", SendAs},
		{"451", "451", "", "", Busy},
		{"550 5.7.650 x", "550", "5.7.650", "", Permanent},
		{"550 5.7.x x", "550", "", "", Permanent},
		{"334 ", "", "", "", Unreadable},
		{"", "", "", "", Unreadable},
		{"hello", "", "", "", Unreadable},
		{"5.2", "", "", "", Permanent},
		{"550 5.7.1234 x", "550", "", "", Permanent},
	} {
		e := Explain(tc.reply)
		if e.Code != tc.code || e.Enhanced != tc.enhanced || e.Keyword != tc.keyword || e.Class != tc.class {
			t.Errorf("Explain(%.40q) = %q %q %q %s, want %q %q %q %s", tc.reply, e.Code, e.Enhanced, e.Keyword, e.Class, tc.code, tc.enhanced, tc.keyword, tc.class)
		}
		if quiet := tc.class == Accepted || tc.class == Unreadable; quiet != (e.Meaning == "") || quiet != (e.Act == "") {
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
	for _, r := range rows {
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
		if r.class == Accepted || r.class == Unreadable {
			t.Errorf("row %s %s has the class %s", r.code, r.enhanced, r.class)
		}
	}
}

// A keyword never makes a reply more general than a row before it: else its row would be dead.
func TestNoDeadReplyRow(t *testing.T) {
	for i, r := range rows {
		for _, before := range rows[:i] {
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
		if quiet := e.Class == Accepted || e.Class == Unreadable; quiet != (e.Meaning == "") {
			t.Errorf("class %s means %q", e.Class, e.Meaning)
		}
		line := strings.TrimSpace(reply)
		if x := Line(line); x != e && !enhancedForm.MatchString(line) {
			t.Errorf("Explain says %+v, of the line %+v", e, x)
		}
	})
}
