package lease

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sendas/sendas/internal/serve"
)

// Limits of socketmap_table(5), which Postfix keeps to on its side too.
const (
	maxQuery = 10_000
	maxReply = 100_000
)

const (
	// queryTime is how long a peer may take to send one query once it has begun, and to take
	// one reply.
	queryTime = 10 * time.Second
	// idleTime is how long a connection may rest. Postfix closes its side after 10 s of rest
	// and after 100 s in any case.
	idleTime = 5 * time.Minute
	// maxPeers bounds the connections open at one time; Postfix has at most one for each
	// smtp(8) process, and default_process_limit is 100.
	maxPeers = 2000
)

// A Caller is the process at the other end of a socketmap connection, as the kernel names
// it (SO_PEERCRED, unix(7)). One smtp(8) process has one SMTP session at a time.
//
// A process in another PID namespace (Postfix in a container) has no number here; then each of
// its connections gets a negative one of its own, and the process that comes again by another
// connection is another caller.
type Caller struct {
	PID      int32
	UID      uint32
	Nameless bool // PID is that of the connection
}

// A Result is the answer to one look-up (socketmap_table(5)).
type Result struct {
	Status ResultStatus
	Value  string // of OK; or the reason of Temp, in words for the mail log
}

// A ResultStatus is the first word of a socketmap reply.
type ResultStatus string

// The statuses we use. Temp makes Postfix defer the message, and leave the destination alone for
// minimal_backoff_time: it is for "not now at all".
const (
	OK       ResultStatus = "OK"
	NotFound ResultStatus = "NOTFOUND"
	Temp     ResultStatus = "TEMP"
)

// A Map answers the look-ups of one socketmap name. It may take its time within ctx,
// which ends when the server stops; a Result that comes after that is not sent. It is
// called from many goroutines, but for one caller in the order of the look-ups.
type Map func(ctx context.Context, c Caller, key string) Result

// A SocketmapServer answers socketmap look-ups on unix sockets. The zero value is
// not usable: fill in Maps and Log.
type SocketmapServer struct {
	Maps map[string]Map
	// Peers are the user ids that may ask, until Allow names others; everyone else's connection is
	// closed.
	Peers []uint32
	// Admin are the maps for root and for the server's own user, who need not be among Peers for
	// them; others do not get them. nil: none.
	Admin map[string]Map
	Log   *slog.Logger
	// Metrics counts what goes wrong; nil: nothing is counted.
	Metrics *Metrics

	allowed  atomic.Pointer[[]uint32] // by Allow
	nameless atomic.Int32             // counts callers without a process id
	warns    serve.Sparing            // every local user may connect, and be refused

	mu     sync.Mutex // guards conns and closed
	conns  map[net.Conn]struct{}
	closed bool
	wg     sync.WaitGroup
}

// Allow changes who may ask, for connections to come. It is safe for concurrent use.
func (s *SocketmapServer) Allow(peers []uint32) { s.allowed.Store(&peers) }

// Serve accepts connections until ctx ends, then closes them all and waits for their
// goroutines. A look-up that waits then stays unanswered: Postfix sees a broken
// connection and asks once more, which reaches the next process when systemd holds the socket.
func (s *SocketmapServer) Serve(ctx context.Context, ln net.Listener) error {
	stop := context.AfterFunc(ctx, func() { ln.Close(); s.closeAll() })
	defer stop()
	defer s.wg.Wait()
	err := serve.Each(ln, s.Log, func(c net.Conn) { s.begin(ctx, c) })
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("accepting look-ups: %w", cmp.Or(err, net.ErrClosed))
}

// begin gives a connection its goroutine.
func (s *SocketmapServer) begin(ctx context.Context, c net.Conn) {
	caller, err := s.identify(c) // before anything is given to it, so that strangers take no place from Postfix
	if err != nil {
		s.Metrics.lookupFailed(badPeer)
		s.warns.Warn(s.Log, "look-up connection closed", "error", err)
		c.Close()
		return
	}
	if !s.add(c) {
		c.Close()
		return
	}
	s.wg.Go(func() {
		defer s.remove(c)
		if err := s.talk(ctx, c, caller); err != nil && ctx.Err() == nil {
			s.warns.Warn(s.Log, "look-up connection closed", "error", err)
		}
	})
}

func (s *SocketmapServer) add(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if len(s.conns) >= maxPeers {
		s.Metrics.lookupFailed(badCount)
		s.warns.Warn(s.Log, "too many look-up connections", "open", len(s.conns))
		return false
	}
	if s.conns == nil {
		s.conns = make(map[net.Conn]struct{})
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *SocketmapServer) remove(c net.Conn) {
	c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

func (s *SocketmapServer) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.conns {
		c.Close()
	}
}

// Knock is a query that asks for nothing: "sendas doctor" sees by it that somebody listens. Those
// who may not ask for leases, but are let in for Admin, are sent away without a word about it.
const Knock = "transport <>"

// talk answers the look-ups of one connection, one after the other. It returns nil when
// the peer has gone.
func (s *SocketmapServer) talk(ctx context.Context, c net.Conn, caller Caller) error {
	r := bufio.NewReaderSize(c, 4096)
	for {
		c.SetReadDeadline(time.Now().Add(idleTime))
		if _, err := r.Peek(1); err != nil {
			return nil // gone, or at rest for too long
		}
		c.SetReadDeadline(time.Now().Add(queryTime))
		q, err := readNetstring(r, maxQuery)
		if err != nil {
			s.Metrics.lookupFailed(badQuery)
			return fmt.Errorf("reading a query of process %d: %w", caller.PID, err)
		}
		res, ok := s.answer(ctx, caller, q)
		if ctx.Err() != nil {
			return nil
		}
		if !ok && q == Knock {
			return nil // of an administrator who sees that we are there
		}
		if !ok {
			s.Metrics.lookupFailed(badPeer)
			return notPeer(caller)
		}
		c.SetWriteDeadline(time.Now().Add(queryTime))
		if err := writeResult(c, res); err != nil {
			return fmt.Errorf("answering process %d: %w", caller.PID, err)
		}
	}
}

// identify asks the kernel who the peer is, and refuses strangers.
func (s *SocketmapServer) identify(c net.Conn) (Caller, error) {
	peer, err := serve.PeerOf(c)
	if err != nil {
		return Caller{}, err
	}
	if !s.isPeer(peer.UID) && !s.admits(peer.UID) {
		return Caller{}, notPeer(Caller{PID: peer.PID, UID: peer.UID})
	}
	return s.name(peer), nil
}

// name makes a caller of who the kernel says is there.
func (s *SocketmapServer) name(p serve.Peer) Caller {
	if p.PID <= 0 {
		return Caller{-s.nameless.Add(1), p.UID, true}
	}
	return Caller{PID: p.PID, UID: p.UID}
}

// isPeer reports whether a user may ask for credentials.
func (s *SocketmapServer) isPeer(uid uint32) bool {
	if p := s.allowed.Load(); p != nil {
		return slices.Contains(*p, uid)
	}
	return slices.Contains(s.Peers, uid)
}

// admits reports whether a user may ask the maps of Admin.
func (s *SocketmapServer) admits(uid uint32) bool {
	return s.Admin != nil && (uid == 0 || uid == uint32(os.Geteuid()))
}

func notPeer(c Caller) error {
	return fmt.Errorf("user id %d (process %d) may not ask for credentials; token.peers lists who may", c.UID, c.PID)
}

// answer divides the query "NAME SP KEY" and asks the map. It reports false where the caller may
// not ask that one.
func (s *SocketmapServer) answer(ctx context.Context, c Caller, query string) (Result, bool) {
	name, key, _ := strings.Cut(query, " ")
	if m, ok := s.Admin[name]; ok && s.admits(c.UID) {
		return m(ctx, c, key), true
	}
	if !s.isPeer(c.UID) {
		return Result{}, false
	}
	m, ok := s.Maps[name]
	if !ok {
		s.Metrics.lookupFailed(badMap)
		s.warns.Warn(s.Log, "look-up in an unknown map", "map", fmt.Sprintf("%.20q", name), "pid", c.PID)
		return Result{Status: Temp, Value: "sendas has no such map; see the socketmap: lines in main.cf"}, true
	}
	return m(ctx, c, key), true
}

// readNetstring reads LEN ":" DATA "," with a LEN of at most limit.
func readNetstring(r *bufio.Reader, limit int) (string, error) {
	n := 0
	for digits := 0; ; digits++ {
		b, err := r.ReadByte()
		if err != nil {
			return "", cutShort(err)
		}
		if b == ':' && digits > 0 {
			break
		}
		if b < '0' || b > '9' || digits > 0 && n == 0 {
			return "", fmt.Errorf("%.1q is no part of a netstring's length", b)
		}
		if n = n*10 + int(b-'0'); n > limit {
			return "", fmt.Errorf("a query of more than %d bytes", limit)
		}
	}
	buf := make([]byte, n+1)
	if _, err := io.ReadFull(r, buf); err != nil {
		return "", cutShort(err)
	}
	if buf[n] != ',' {
		return "", fmt.Errorf("a netstring ends with %.1q, not with a comma", buf[n])
	}
	return string(buf[:n]), nil
}

// cutShort words an end in the middle of a query.
func cutShort(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the query is cut short")
	}
	return err
}

// writeResult sends a reply in one write.
func writeResult(w io.Writer, r Result) error {
	n := len(r.Status) + 1 + len(r.Value)
	if n > maxReply {
		return fmt.Errorf("a reply of %d bytes is more than Postfix takes", n)
	}
	buf := make([]byte, 0, n+12)
	buf = strconv.AppendInt(buf, int64(n), 10)
	buf = append(buf, ':')
	buf = append(buf, r.Status...)
	buf = append(buf, ' ')
	buf = append(buf, r.Value...)
	buf = append(buf, ',')
	_, err := w.Write(buf)
	clear(buf) // it may hold a token
	return err
}

// Ask asks a socketmap server about a key, as Postfix does. A server that closes the connection
// without an answer gives [io.EOF]; the connection's deadline bounds the wait.
func Ask(c io.ReadWriter, name, key string) (Result, error) {
	query := name + " " + key
	if _, err := fmt.Fprintf(c, "%d:%s,", len(query), query); err != nil {
		return Result{}, closedEarly(err)
	}
	r := bufio.NewReader(c)
	if _, err := r.Peek(1); err != nil {
		return Result{}, closedEarly(err)
	}
	answer, err := readNetstring(r, maxReply)
	if err != nil {
		return Result{}, err
	}
	status, value, _ := strings.Cut(answer, " ")
	return Result{ResultStatus(status), value}, nil
}

// closedEarly makes one error of the ways in which the kernel says that the other side has gone.
func closedEarly(err error) error {
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return io.EOF
	}
	return err
}
