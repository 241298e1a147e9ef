// Package exosim is a simulated Exchange Online and Entra: enough of both to
// test a relay without Microsoft. It says no where the real ones say no, in
// their words: to a token for another audience, to a sender without Send As,
// to a fourth delivery at the same time, to the 10,001st recipient.
//
// There are two SMTP endpoints. Submission takes mail from signed-in mailboxes.
// The MX endpoint takes it from everybody for the organisation (direct send),
// and from its inbound connectors, known by address or client certificate, for
// everybody.
//
// Entra gives tokens to apps (secret, certificate, federated token), to users
// (device code, authorization code, refresh token) and to managed identities,
// and can be made to refuse each for each reason; see [Server.RefuseGrant] and
// [Faults].
//
// [Start] starts it inside a test; the program in cmd/exosim starts it from a
// file. Both keep every message with its verdict, and count for each mailbox
// the worst minute that it ever had.
//
// The SMTP server is written by hand. go-smtp v0.25.1 has these texts in its
// code, out of a back end's reach: the banner, the order of the EHLO lines, the
// replies to a good MAIL, RCPT, AUTH, STARTTLS, DATA, RSET and QUIT, 501 for a
// cancelled AUTH, 502 where Exchange says 503 5.5.2, and it hangs up after four
// errors. A relay's reply filter reads just these texts.
//
// One goroutine serves each connection and owns its state; what they share is
// in [Server] under one mutex. All methods of Server are safe for concurrent
// use.
package exosim
