// Package limit keeps the ledger: what each mailbox has sent in the sliding
// windows that Microsoft watches, and when it may send again.
//
// Nothing here reads a clock: every call is told the time, so that a test can let a
// day pass in a moment, and so that a store shared by several hosts can use its own.
package limit
