package smtp

import (
	"fmt"
	"strings"
	"time"
)

// The names of the machines that answer: a frontend until the end of DATA,
// a mailbox server at the verdict.
const (
	frontend = "LO4P302CA0005.outlook.office365.com"
	machine  = "LO4P302CA0005.GBRP302.PROD.OUTLOOK.COM"
	// The same for the MX endpoint.
	mxFrontend = "HE1EUR01FT048.mail.protection.outlook.com"
	mxMachine  = "HE1EUR01FT048.eop-EUR01.prod.protection.outlook.com"

	// And for High Volume Email.
	hveFrontend = "AMS0EPF000001A5.hve.mx.microsoft"
	hveMachine  = "AMS0EPF000001A5.eurprd05.prod.outlook.com"

	backend = "SYBP282MB2635.AUSP282.PROD.OUTLOOK.COM"

	atBackend = " [Hostname=" + backend + "]"
)

// The replies that do not depend on the session. Texts are those seen at the
// real service, as far as anybody has written them down.
const (
	textReady       = "220 2.0.0 SMTP server ready"
	textBye         = "221 2.0.0 Service closing transmission channel"
	textAuthOK      = "235 2.7.0 Authentication successful"
	textSenderOK    = "250 2.1.0 Sender OK"
	textRcptOK      = "250 2.1.5 Recipient OK"
	textStartData   = "354 Start mail input; end with <CRLF>.<CRLF>"
	textUnavailable = "421 4.3.2 Service not available"
	textNeedTLS     = "451 5.7.3 STARTTLS is required to send mail"
	textManyRcpts   = "452 4.5.3 Too many recipients"
	textInvalid     = "501 5.1.3 Invalid address"
	textBadArgs     = "501 5.5.4 Invalid arguments"
	textNoCommand   = "502 5.3.3 Command not implemented"
	textSendHello   = "503 5.5.2 Send hello first"
	textNeedMail    = "503 5.5.2 Need mail command"
	textNeedRcpt    = "503 5.5.2 Need rcpt command"
	textTwoSenders  = "503 5.5.2 Sender already specified"
	textNoMechanism = "504 5.7.4 Unrecognized authentication type"
	textTooLarge    = "552 5.3.4 Message size exceeds fixed maximum message size"

	textBadXOAUTH2 = "501 5.5.124 Invalid XOAUTH2 auth data"
	textAuthFailed = "535 5.7.3 Authentication unsuccessful"
	textBasicOff   = "535 5.7.139 Authentication unsuccessful, basic authentication is disabled."
	textAuthOff    = "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the %s. Visit https://aka.ms/smtp_auth_disabled for more information."
	textNotAuthed  = "530 5.7.57 Client not authenticated to send mail."
)

// What only High Volume Email says. Of those that Microsoft's page names by their numbers alone, the
// words are ours.
const (
	textExpired        = "535 5.7.143 XOAUTH2 authentication failed. Expired token."
	textNoMailSend     = "535 5.7.144 XOAUTH2 authentication failed. Invalid API permissions."
	textNoAccount      = "550 5.2.240 The mailbox is not a High Volume Email account"
	textNotListed      = "550 5.7.240 The application is not allowed for use with this High Volume Email account"
	textNotAccount     = "550 5.7.62 The envelope sender is not the High Volume Email account"
	textFromNotAccount = "550 5.6.241 The From address is not the High Volume Email account"
	textExternal       = "550 5.5.105 External sending is not supported for High Volume Email accounts"
)

// soonTexts are the wordings for a token with little time left that are known.
var soonTexts = map[string]string{
	"5.5.127": "501 5.5.127 Invalid XOAUTH2 auth data - Token will expire soon error",
	"5.7.142": "535 5.7.142 XOAUTH2 authentication failed. Token will expire soon.",
}

// The verdicts at the end of DATA; atBackend follows.
const (
	textNoLogon = "430 4.2.0 STOREDRV; mailbox logon failure; STOREDRV.Submission.Exception:ConnectionFailedTransientException.MapiExceptionLogonFailed; " +
		"Failed to process message due to a transient exception with message [BeginDiagnosticData]Cannot open mailbox. Server = " + backend + "[EndDiagnosticData]"
	textConcurrent = "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information."
	textBusy       = "451 4.7.0 Temporary server error. Please try again later. PRX2"
	textManyFrom   = "550 5.1.20 Multiple From addresses are not allowed without Sender address"
	textBadFrom    = "550 5.7.512 Access denied, message must be RFC 5322 section 3.6.2 compliant and include a valid From address"
	textQuota      = "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed to process message due to a permanent exception with message " +
		"The message can't be submitted because the sender's submission quota was exceeded."
	textFull = "554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded"
)

// What only the MX endpoint says; machine, time and session follow a refusal.
const (
	textMXBusy       = "451 4.7.500 Server busy. Please try again later from [%s]. (S77719)"
	textNoRecipient  = "550 5.4.1 Recipient address rejected: Access denied"
	textRelayDenied  = "550 5.7.64 TenantAttribution; Relay Access Denied SMTP"
	textNoDirectSend = "550 5.7.68 TenantInboundAttribution; Direct Send not allowed for this organization from unauthorized sources"
	textUnregistered = "550 5.7.750 Service unavailable. Client blocked from sending from unregistered domains"
	textQueued       = "250 2.6.0 %s [InternalId=%d, Hostname=%s] %d bytes in %.3f, %.3f KB/sec Queued mail for delivery"
)

// sendAsTexts are the wordings of a missing Send As right, newest first; the
// newest names mailbox and sender.
var sendAsTexts = map[string]string{
	"5.2.252": "554 5.2.252 SendAsDenied; %s not allowed to send as %s; STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; " +
		"Failed to process message due to a permanent exception with message [BeginDiagnosticData]Cannot submit message. " +
		"0.35250:1F009983, 1.36674:0A000000[EndDiagnosticData]",
	"5.2.0": "554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; " +
		"Failed to process message due to a permanent exception with message Cannot submit message. 0.35250:1F009983",
	"5.7.60": "550 5.7.60 SMTP; Client does not have permissions to send as this sender",
}

func sendAsDenied(form, mailbox, sender string) string {
	text := sendAsTexts[form]
	if strings.Contains(text, "%s") {
		text = fmt.Sprintf(text, mailbox, sender)
	}
	return text
}

// extensions returns what EHLO offers, in the order of the real service. offer is
// what comes in the fifth place, "" for nothing.
func extensions(offer string, maxSize int64) []string {
	list := []string{fmt.Sprintf("SIZE %d", maxSize), "PIPELINING", "DSN", "ENHANCEDSTATUSCODES"}
	if offer != "" {
		list = append(list, offer)
	}
	return append(list, "8BITMIME", "BINARYMIME", "CHUNKING", "SMTPUTF8")
}

func banner(host string, now time.Time, session string) string {
	return "220 " + host + " Microsoft ESMTP MAIL Service ready at " + now.UTC().Format(time.RFC1123Z) + " [" + session + "]"
}

// bracket is the end of a frontend's error: machine, time and session.
func bracket(machine string, now time.Time, session string) string {
	return " [" + machine + " " + now.UTC().Format("2006-01-02T15:04:05.000Z") + " " + session + "]"
}
