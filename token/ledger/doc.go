// Package ledger keeps what each mailbox has sent in the sliding windows that Microsoft watches,
// and says when it may send again.
//
// The algorithm is the type account, once in Go and once in Lua (redis.lua) for the store that
// several hosts share; both pass the same tests. A [Store] is where the accounts stand: [Memory],
// a file ([Bolt]), a server ([Redis]), or a server that hosts share, with a share of one's own for
// when it is away ([Shared]). Nothing in it reads a clock: every call is told the time, so that a
// test can let a day pass in a moment, and so that a shared store can use its own.
//
// # How exact it is
//
// A message holds its place from its beginning until its verdict is Messages.Per old, so there are
// never more than Messages.N in any period, whenever in between Microsoft counted them. Its lease
// may come some seconds before its place begins, to who keeps the message back until then. Recipients
// are counted in buckets, 96 to the window: each is forgotten at most Recipients.Per/96 (15 minutes
// of a day) late, never early. A lease holds room for [MaxDelivery] recipients until it is settled.
//
// # A server that is not what it was
//
// What hosts share is lost, or taken over by a server that lacks the latest. Then each host says
// what it has sent: all of it, from its diary, to a server without data (diary.go); what came last
// to a new master (reign.go). No lease is given before all have.
//
// # Time
//
// Ledger time, a clock of package limit, never goes back, and within one process it goes on as the
// monotonic clock does. A wall clock that is set forward opens nothing. One that is set back closes
// nothing: ledger time goes on from where it was. The time in which a machine was suspended counts
// as no time: windows end later by that much.
package ledger
