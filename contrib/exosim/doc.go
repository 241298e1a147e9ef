// Package exosim is a simulated Exchange Online and Entra: enough of both to
// test a relay without Microsoft. It says no where the real ones say no, in
// their words: to a token for another audience, to a sender without Send As,
// to a fourth delivery at the same time, to the 10,001st recipient.
//
// It has three rooms. Package directory is the organisation: who exists and who
// may do what. Package entra gives tokens to apps, users and managed identities.
// Package smtp takes mail: from signed-in mailboxes at the submission service;
// at the MX endpoint from everybody for the organisation (direct send), and from
// its inbound connectors for everybody. The last two know the first, and not
// each other. This package wires them: their configurations as one file, their
// certificates, their listeners, and the admin service that shows and changes
// what runs.
//
// [Start] starts it inside a test; the program in cmd/exosim starts it from a
// file. Both keep every message with its verdict, and count for each mailbox
// the worst minute that it ever had. All methods of [Server] are safe for
// concurrent use.
package exosim
