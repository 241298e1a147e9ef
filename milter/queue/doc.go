// Package queue knows what waits in Postfix's queue. A [Watch] reads the list that showq(8) gives,
// counts it by mailbox, and says when no more can be taken for one: a [Ceiling] keeps mail from
// waiting longer than Postfix keeps it.
package queue
