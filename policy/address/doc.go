// Package address reads, repairs and writes addresses, display names and fields of addresses, as
// devices write them and as RFC 5322 wants them.
//
// Reading is tolerant: raw 8-bit text, labels of charsets that are wrong, missing brackets and bare
// @ in names are what printers send ([ParseList]). Writing is strict: one form, folded, in ASCII,
// with encoded words (RFC 2047) where they are needed ([Write]). What is written reads
// back as what was meant, and no text of a stranger becomes a line of its own. It is pure: no
// sockets, no clock.
package address
