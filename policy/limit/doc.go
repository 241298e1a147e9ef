// Package limit has what the limits of mailboxes and those of clients have in common: "so many in a
// period" ([Rate], [Kind]), what Microsoft allows a mailbox ([Allowance]), the one clock that never
// goes back ([Clock]), and how to reach a server that hosts share ([Redis]). It counts nothing
// itself: see token/ledger and milter/quota.
package limit
