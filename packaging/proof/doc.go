// Package proof installs the Debian package beside Postfix into throw-away Debians that a real systemd
// runs (systemd-nspawn), of each version that we name. It sends mail through it, tries the walls around
// the services, kills them, upgrades the package while mail flows, removes it, and looks at what is
// left. In the newer Debian, whose Postfix obeys the header TLS-Required, it looks who gets a token, and
// one Debian becomes the next version while mail waits. "make package-test" runs it: it takes some
// minutes, root, and a mirror of Debian, the one that this host's apt uses. Where systemd-nspawn cannot
// boot a Debian, it fails.
package proof
