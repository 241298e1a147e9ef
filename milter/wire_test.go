package milter

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// negotiation is what Postfix 3.7 begins with: SMFIC_OPTNEG, version 6, all actions and steps.
const negotiation = "\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff"

// TestBrokenPackets: what is no milter command costs its own connection and one line in the log.
func TestBrokenPackets(t *testing.T) {
	s := start(t)
	for _, tc := range []struct{ name, first, bytes string }{
		{"nothing in it, at once", "", "\x00\x00\x00\x00"},
		{"nothing in it", negotiation, "\x00\x00\x00\x00"},
		{"MAIL without end", negotiation, "\x00\x00\x00\x02Mx"},
		{"RCPT without end", negotiation, "\x00\x00\x00\x02Rx"},
		{"connect without end", negotiation, "\x00\x00\x00\x02Cx"},
		{"connect without family", negotiation, "\x00\x00\x00\x03Cx\x00"},
		{"half a gigabyte", negotiation, "\x1f\xff\xff\xffH"},
		{"a sender of 100 kB", negotiation, "\x00\x01\x86\xa0M" + strings.Repeat("x", 100_000)},
		{"HTTP", "", "GET / HTTP/1.0\r\n\r\n"},
	} {
		c, err := net.Dial("unix", s.path)
		if err != nil {
			t.Fatalf("%s: the milter is gone: %v", tc.name, err)
		}
		c.SetDeadline(time.Now().Add(time.Minute))
		io.WriteString(c, tc.first+tc.bytes)
		if _, err := io.Copy(io.Discard, c); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%s: the connection stays open: %v", tc.name, err)
		}
		c.Close()
	}
	c, _ := s.dial("10.2.0.9", "")
	if got := s.send(c, "<hr@contoso.com>", "From: hr@contoso.com", id, date); got != "" {
		t.Errorf("after all that: %q", got)
	}
}

// FuzzPackets: no sequence of bytes ends the process.
func FuzzPackets(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x08M<a@b>\x00\x00\x00\x00\x07R<c@d>\x00\x00\x00\x00\x0bLFrom\x00a@b.c\x00\x00\x00\x00\x01E"))
	f.Add([]byte("\x00\x00\x00\x0dDM{client_addr}\x00"))
	f.Add([]byte("\x00\x00\x00\x03Cx\x00\x00\x00\x00\x01Q"))
	s := start(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := net.Dial("unix", s.path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Minute))
		io.WriteString(c, negotiation+string(b))
		c.(*net.UnixConn).CloseWrite()
		io.Copy(io.Discard, c)
	})
}
