package milter

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// nul writes words with a NUL behind each.
func nul(words ...string) string { return strings.Join(words, "\x00") + "\x00" }

// waiting is a message as showq(8) tells it, another one each time.
func waiting(queue, sender string, rcpts int) string {
	return waitingAs(queue, fmt.Sprintf("4cQX%d", messages.Add(1)), sender, rcpts)
}

// messages counts those that waiting made.
var messages atomic.Int64

func waitingAs(queue, id, sender string, rcpts int) string {
	s := nul("queue_name", queue, "queue_id", id, "time", "1795248000", "size", "1234", "forced_expire", "0", "sender", sender)
	for i := range rcpts {
		r := fmt.Sprintf("r%d@example.net", i)
		s += nul("original_recipient", r, "recipient", r, "log_class", "defer", "reason", "host busy")
	}
	return s + "\x00"
}

const showqHello = "protocol\x00mail_queue_list_protocol\x00\x00"

// showq is a queue that the test fills.
type showq struct {
	path string
	list atomic.Pointer[string]
	asks atomic.Int64
}

func startShowq(t *testing.T, list string) *showq {
	t.Helper()
	s := &showq{}
	s.list.Store(&list)
	s.path = serveShowq(t, func(w io.Writer) {
		s.asks.Add(1)
		io.WriteString(w, *s.list.Load())
	})
	return s
}

// serveShowq answers everybody with the messages that write writes, one after the other, and
// returns the path of the socket.
func serveShowq(t *testing.T, write func(io.Writer)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "showq")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, showqHello)
			write(c)
			io.WriteString(c, "\x00")
			c.Close()
		}
	}()
	return path
}
