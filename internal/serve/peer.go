package serve

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// A Peer is the process at the other end of a unix socket, as the kernel names it (SO_PEERCRED,
// unix(7)).
type Peer struct {
	PID int32 // 0: it is in another PID namespace, as Postfix in a container may be
	UID uint32
}

// PeerOf asks the kernel who is at the other end of a connection. Only a unix socket knows.
func PeerOf(c net.Conn) (Peer, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return Peer{}, errors.New("the peer of a connection that is no unix socket cannot be known")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("identifying the peer: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return Peer{}, fmt.Errorf("identifying the peer: %w", err)
	}
	if credErr != nil {
		return Peer{}, fmt.Errorf("identifying the peer: %w", credErr)
	}
	return Peer{PID: cred.Pid, UID: cred.Uid}, nil
}
