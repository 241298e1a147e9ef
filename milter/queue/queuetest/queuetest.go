// Package queuetest answers as showq(8) does, with the queue that a test wants.
package queuetest

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Words writes words with a NUL behind each.
func Words(words ...string) string { return strings.Join(words, "\x00") + "\x00" }

// Message is a message as showq(8) tells it, another one each time.
func Message(queue, sender string, rcpts int) string {
	return MessageAs(queue, fmt.Sprintf("4cQX%d", made.Add(1)), sender, rcpts)
}

// made counts those that waiting made.
var made atomic.Int64

func MessageAs(queue, id, sender string, rcpts int) string {
	s := Words("queue_name", queue, "queue_id", id, "time", "1795248000", "size", "1234", "forced_expire", "0", "sender", sender)
	for i := range rcpts {
		r := fmt.Sprintf("r%d@example.net", i)
		s += Words("original_recipient", r, "recipient", r, "log_class", "defer", "reason", "host busy")
	}
	return s + "\x00"
}

// Deferred is a message of that moment with a recipient, which was deferred for that reason.
func Deferred(queue, id, sender string, at time.Time, reason string) string {
	return Words("queue_name", queue, "queue_id", id, "time", strconv.FormatInt(at.Unix(), 10), "size", "1234", "forced_expire", "0", "sender", sender,
		"recipient", "someone@example.net", "reason", reason) + "\x00"
}

const Hello = "protocol\x00mail_queue_list_protocol\x00\x00"

// Showq is a queue that the test fills.
type Showq struct {
	Path string
	List atomic.Pointer[string]
	Asks atomic.Int64
}

func Start(t *testing.T, list string) *Showq {
	t.Helper()
	s := &Showq{}
	s.List.Store(&list)
	s.Path = Serve(t, func(w io.Writer) {
		s.Asks.Add(1)
		io.WriteString(w, *s.List.Load())
	})
	return s
}

// Serve answers everybody with the messages that write writes, one after the other, and
// returns the path of the socket.
func Serve(t *testing.T, write func(io.Writer)) string {
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
			io.WriteString(c, Hello)
			write(c)
			io.WriteString(c, "\x00")
			c.Close()
		}
	}()
	return path
}
