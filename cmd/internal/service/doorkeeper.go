package service

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"

	"github.com/sendas/sendas/internal/serve"
)

// A doorkeeper is a listener for those whom nobody knows. It lets in so many at a time, lest they
// take the file descriptors by which Postfix is answered. When all places are taken, the one who has
// waited longest without asking for anything goes, so that who asks finds a place in a flood of
// those who do not; while all are being answered, the next ones wait in the kernel.
type doorkeeper struct {
	ln    net.Listener
	most  int
	log   *slog.Logger
	warns serve.Sparing
	in    chan net.Conn // to Accept
	shut  chan struct{} // closed by Close
	done  chan struct{} // closed when no more come
	err   error         // why; set before that

	mu       sync.Mutex // guards what follows
	left     *sync.Cond // somebody has gone, or has been answered
	visitors []*visitor // the one who has waited longest comes first
	closed   bool       // as shut
}

// A visitor is a connection that was let in.
type visitor struct {
	net.Conn
	asking bool // a request of it is being answered
}

// maxPlaces is enough for every page that people have open, and every program that asks.
const maxPlaces = 64

// places is how many connections strangers may have: an eighth of the files that this process may
// open.
func places() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return maxPlaces
	}
	return int(min(maxPlaces, max(limit.Cur/8, 1)))
}

func newDoorkeeper(ln net.Listener, most int, log *slog.Logger) *doorkeeper {
	d := &doorkeeper{ln: ln, most: most, log: log, in: make(chan net.Conn), shut: make(chan struct{}), done: make(chan struct{})}
	d.left = sync.NewCond(&d.mu)
	go func() {
		if d.err = serve.Each(ln, log, d.let); d.err == nil {
			d.err = net.ErrClosed
		}
		close(d.done)
	}()
	return d
}

// Accept implements [net.Listener].
func (d *doorkeeper) Accept() (net.Conn, error) {
	select {
	case c := <-d.in:
		return c, nil
	case <-d.done:
		return nil, d.err
	}
}

// Addr implements [net.Listener].
func (d *doorkeeper) Addr() net.Addr { return d.ln.Addr() }

// Close implements [net.Listener].
func (d *doorkeeper) Close() error {
	d.mu.Lock()
	if !d.closed {
		d.closed = true
		close(d.shut)
	}
	d.left.Broadcast()
	d.mu.Unlock()
	return d.ln.Close()
}

// let lets a connection in when there is a place.
func (d *doorkeeper) let(c net.Conn) {
	v := &visitor{Conn: c}
	if !d.place(v) {
		c.Close()
		return
	}
	select {
	case d.in <- v:
	case <-d.shut: // nobody accepts any more
		c.Close()
	}
}

// place finds a place, and reports false when there will be none any more.
func (d *doorkeeper) place(v *visitor) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.visitors) >= d.most && !d.closed {
		i := slices.IndexFunc(d.visitors, func(v *visitor) bool { return !v.asking })
		if i < 0 {
			d.left.Wait()
			continue
		}
		d.warns.Warn(d.log, "too many connections by HTTP; the one that was silent the longest is closed", "socket", d.Addr().String(),
			"from", d.visitors[i].RemoteAddr().String(), "most", d.most, "hint", "let a firewall say who may connect there")
		d.visitors[i].Close()
		d.visitors = slices.Delete(d.visitors, i, i+1)
	}
	if d.closed {
		return false
	}
	d.visitors = append(d.visitors, v)
	return true
}

type visitorKey struct{}

// context is the ConnContext of the [http.Server].
func (d *doorkeeper) context(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, visitorKey{}, c)
}

// attend marks those who ask. Nobody else says when: the server calls a connection active from the
// first byte of a request on, however slowly the rest comes.
func (d *doorkeeper) attend(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if v, ok := r.Context().Value(visitorKey{}).(*visitor); ok {
			d.mu.Lock()
			v.asking = true
			d.mu.Unlock()
		}
		h.ServeHTTP(w, r)
	})
}

// state is the ConnState of the [http.Server].
func (d *doorkeeper) state(c net.Conn, s http.ConnState) {
	if s != http.StateIdle && s != http.StateClosed {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	i := slices.IndexFunc(d.visitors, func(v *visitor) bool { return v == c })
	if i < 0 { // it had to go
		return
	}
	v := d.visitors[i]
	d.visitors = slices.Delete(d.visitors, i, i+1)
	if v.asking = false; s == http.StateIdle {
		d.visitors = append(d.visitors, v)
	}
	d.left.Broadcast()
}
