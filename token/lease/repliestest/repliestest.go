// Package repliestest has replies of Exchange Online as it was seen to give them, or as Microsoft writes
// them, for tests.
package repliestest

const (
	Accepted = "250 2.0.0 OK <b225fdda-3db5-4aeb-4d52-c74d71838980@contoso.com> [Hostname=SYBP282MB2635.AUSP282.PROD.OUTLOOK.COM]"
	TooMany  = "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information. [Hostname=P212321.PROD.OUTLOOK.COM]"
	Quota    = "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed to process message due to a permanent exception with message The message can't be submitted because the sender's submission quota was exceeded."
	Denied   = "554 5.2.252 SendAsDenied; AUTH@contoso.com not allowed to send as FROM@contoso.com; STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed to process message due to a permanent exception with message [BeginDiagnosticData]Cannot submit message."
	Auth535  = "535 5.7.3 Authentication unsuccessful [AM0PR06CA0126.eurprd06.prod.outlook.com 2024-02-14T14:50:26.590Z 08DC2D372B4C3DED]"
	NoAuth   = "530 5.7.57 Client not authenticated to send mail. [LO4P302CA0005.GBRP302.PROD.OUTLOOK.COM]"
	// OutboundSpam goes on with the verdict.
	OutboundSpam = "554 5.2.0 STOREDRV.Submission.Exception:OutboundSpamException; Failed to process message due to a permanent exception with message " +
		"WASCL UserAction verdict is not None. Actual verdict is "
)
