// Package lease hands Postfix's smtp(8) the right to send one message now.
//
// smtp(8) asks by socketmap_table(5) ([SocketmapServer]): the map "lease" for a credential, which
// is the request for permission to submit one message as one mailbox, and the map "reply" for each
// line that the server answers. The [Lessor] waits for the mailbox that can send soonest, with the
// ledger and a fresh token, follows each session by the process that asked, keeps its message back
// until the message's place in the minute begins, and books what really happened. What a reply means, and what is done about it, stands in one table ([Explain]).
//
// A [Status] describes the service for people and programs, [Metrics] and [Collector] for
// Prometheus.
package lease
