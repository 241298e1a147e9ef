package serve

import (
	"path/filepath"
	"strings"
)

// An Address is where a service listens: "unix:/path" or "inet:host:port", in main.cf also
// "unix:path" with a path below the queue directory. It is kept as it was written, so that what is
// wrong with it can be quoted; empty is nowhere.
type Address string

// The kinds of addresses.
const (
	KindUnix = "unix"
	KindInet = "inet"
)

// Unix is the address of a unix socket.
func Unix(path string) Address { return Address(KindUnix + ":" + path) }

// Inet is the address of a TCP socket, given as host:port.
func Inet(hostPort string) Address { return Address(KindInet + ":" + hostPort) }

// String returns the address as it is written.
func (a Address) String() string { return string(a) }

// Kind is KindUnix, KindInet, or "" where what is written is neither.
func (a Address) Kind() string {
	kind, _, ok := strings.Cut(string(a), ":")
	if ok && (kind == KindUnix || kind == KindInet) {
		return kind
	}
	return ""
}

// Path is that of a unix socket, "" for other addresses.
func (a Address) Path() string { return a.rest(KindUnix) }

// HostPort is that of a TCP socket, "" for other addresses.
func (a Address) HostPort() string { return a.rest(KindInet) }

func (a Address) rest(kind string) string {
	if a.Kind() != kind {
		return ""
	}
	_, rest, _ := strings.Cut(string(a), ":")
	return rest
}

// Network returns what [net.Dial] and [net.Listen] take; network is "" where the address is none.
func (a Address) Network() (network, address string) {
	switch a.Kind() {
	case KindUnix:
		return "unix", a.Path()
	case KindInet:
		return "tcp", a.HostPort()
	}
	return "", ""
}

// Below places a relative path below a folder, as Postfix places it below its queue directory.
// Other addresses stay.
func (a Address) Below(dir string) Address {
	if a.Path() == "" || filepath.IsAbs(a.Path()) {
		return a
	}
	return Unix(filepath.Join(dir, a.Path()))
}

// FromPostfix reads an address of main.cf, where "local:" is another word for "unix:" and a path is
// below the queue directory.
func FromPostfix(s, queue string) Address {
	if path, ok := strings.CutPrefix(s, "local:"); ok {
		return Unix(path).Below(queue)
	}
	return Address(s).Below(queue)
}

// RelativeTo is the opposite of Below: it writes a path below the folder relative to it, so that
// Postfix's daemons find the socket in a chroot and without one. Other addresses stay.
func (a Address) RelativeTo(dir string) Address {
	rel, err := filepath.Rel(dir, a.Path())
	if a.Kind() != KindUnix || err != nil || !filepath.IsLocal(rel) {
		return a
	}
	return Unix(rel)
}

// Same reports whether two addresses are one socket. Paths are followed through symbolic links;
// make relative ones absolute by Below first.
func (a Address) Same(b Address) bool {
	if a.Kind() == KindUnix && b.Kind() == KindUnix {
		return realPath(a.Path()) == realPath(b.Path())
	}
	return a == b && a.Kind() != ""
}

// realPath follows symbolic links as far as there is something.
func realPath(path string) string {
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		return filepath.Join(dir, filepath.Base(path))
	}
	return filepath.Clean(path)
}
