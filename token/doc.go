// Package token is the token service put together: the [Desk] runs one refresher for each
// credential in use and knows the mailboxes; the directory says which mailbox may send as whom, and
// in which queue of Postfix's its mail waits ([Queues]); [Files] keeps token files for the plugin
// sasl-xoauth2, where a site prefers that.
//
// Its rooms are entra (access tokens), lease (the right to send now), ledger (what each mailbox has
// sent) and sasl (the plugin by which smtp(8) says the token to Microsoft).
package token
