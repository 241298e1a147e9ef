// Package exosim is a simulated Exchange Online and Entra: enough of both to test a relay
// without Microsoft. It says no where the real ones say no, in their words: to a
// token for another audience, to a sender without Send As, to a fourth delivery at the
// same time, to the 10,001st recipient.
//
// The SMTP server is written by hand and not with a library, because banner, EHLO lines,
// the answers to AUTH, MAIL and RCPT and the order of checks must be those of the real service byte for
// byte, and go-smtp v0.25 has its own texts for all of them in its code.
//
// All methods of [Server] are safe for concurrent use.
package exosim
