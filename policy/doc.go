// Package policy decides who may send as whom.
//
// It holds the words of the domain (client, identity, mailbox, route,
// decision) and one pure function, [Rules.Decide]: a [Request] goes in, a
// [Decision] with its reasons and header changes comes out. Nothing here
// opens a socket, reads a clock or a file: what a decision depends on is in the
// Request and in the [Settings] that [New] has checked.
//
// Rules never change once made, so any number of goroutines may ask it; a
// new configuration means new Rules.
package policy
