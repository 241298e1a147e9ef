// Package quota limits what clients and identities may submit: so many messages, and so many
// recipients, in a period. A client that floods harms only itself; Microsoft's own limits are the
// token service's business.
//
// [Counts] keeps what was submitted by key: in memory, in a file ([OpenFile]), or on a server that
// hosts share ([OpenShared]). What a message needs is reserved from MAIL on and counted at its end,
// or given back. A [Desk] knows the limits of the configuration in force, and holds them for each
// message from its beginning to its end. Every call is told the time.
package quota
