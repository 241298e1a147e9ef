// Package proof installs the Debian package into a throw-away Debian beside Postfix, sends mail
// through it, upgrades it while mail flows, removes it, and looks at what is left. In a newer
// Debian, whose Postfix obeys the header TLS-Required, it looks who gets a token. "make
// package-test" runs it: it takes some minutes, root, and a mirror of Debian, the one that this
// host's apt uses.
package proof
