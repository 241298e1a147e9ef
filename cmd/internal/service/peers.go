package service

import (
	"bytes"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync/atomic"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/internal/serve"
)

// Peers are the users who may connect: those of token.peers and root. It is safe for concurrent use.
type Peers struct{ ids atomic.Pointer[[]uint32] }

// Use puts the users of a configuration into force, for connections to come.
func (p *Peers) Use(c *config.Site) error {
	ids, err := UserIDs(c.Token.Peers)
	if err != nil {
		return err
	}
	ids = append(ids, 0)
	p.ids.Store(&ids)
	return nil
}

func (p *Peers) has(uid uint32) bool {
	ids := p.ids.Load()
	return ids != nil && slices.Contains(*ids, uid)
}

// OnlyFrom lets root and the users of token.peers connect to a unix socket, as Postfix's daemons
// do: what they tell of a client (its address, its certificate) is believed, and counted against
// the client's limits. Connections over TCP are not looked at; nor can they be in a user namespace
// (PrivateUsers= of systemd), where every other user has the same id: there the mode of the socket
// decides.
func OnlyFrom(ln net.Listener, p *Peers, log *slog.Logger) net.Listener {
	if ln.Addr().Network() != "unix" || inUserNamespace() {
		return ln
	}
	return &peerListener{Listener: ln, peers: p, log: log}
}

// inUserNamespace reports whether this process sees other users' ids as they are
// (user_namespaces(7)).
func inUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && !slices.EqualFunc(bytes.Fields(b), []string{"0", "0", "4294967295"}, func(a []byte, b string) bool { return string(a) == b })
}

type peerListener struct {
	net.Listener
	peers *Peers
	log   *slog.Logger
	warns serve.Sparing
}

// Accept implements [net.Listener].
func (l *peerListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer, err := serve.PeerOf(c)
		if err == nil && l.peers.has(peer.UID) {
			return c, nil
		}
		l.warns.Warn(l.log, "a connection was refused", "socket", l.Addr(), "uid", peer.UID, "error", err,
			"hint", "only Postfix asks here; if it runs as another user, write that one into token.peers")
		c.Close()
	}
}
