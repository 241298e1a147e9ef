package milter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"
	"time"
)

// wire is an MTA's side of a milter connection, bytes alone: what it sends takes no memory that
// could be taken for the milter's.
type wire struct{ net.Conn }

// dialWire begins a connection as Postfix does, which lets all replies out but the last.
func (s *site) dialWire() (wire, error) {
	c, err := net.Dial("unix", s.path)
	if err != nil {
		return wire{}, err
	}
	c.SetDeadline(time.Now().Add(5 * time.Minute))
	w := wire{c}
	if _, err := io.WriteString(w, packet('O', "\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff")); err != nil {
		return w, err
	}
	_, _, err = w.read()
	return w, err
}

func (w wire) read() (code byte, data []byte, err error) {
	head := make([]byte, 5)
	if _, err := io.ReadFull(w, head); err != nil {
		return 0, nil, err
	}
	data = make([]byte, binary.BigEndian.Uint32(head)-1)
	_, err = io.ReadFull(w, data)
	return head[4], data, err
}

// send plays a message: what is repeated stands between the sender and the last two fields. It
// returns the reply, "" where the message was accepted.
func (w wire) send(repeated string, times int) (string, error) {
	begin := packet('D', "M{client_addr}\x0010.2.0.9\x00") + packet('M', "<hr@contoso.com>\x00") + packet('R', "<a@fabrikam.com>\x00")
	end := packet('L', "From\x00hr@contoso.com\x00") + packet('L', "Message-ID\x00<1@x>\x00") + packet('L', "Date\x00Sat, 21 Nov 2026 08:00:00 +0000\x00") + packet('E', "")
	if _, err := io.WriteString(w, begin); err != nil {
		return "", err
	}
	for range times {
		if _, err := io.WriteString(w, repeated); err != nil {
			return "", err
		}
	}
	if _, err := io.WriteString(w, end); err != nil {
		return "", err
	}
	for {
		switch code, data, err := w.read(); {
		case err != nil:
			return "", err
		case code == 'y':
			return strings.TrimRight(string(data), "\x00"), nil
		case code == 'a':
			return "", nil
		case code != 'm' && code != 'h' && code != 'e':
			return "", fmt.Errorf("an answer %q", code)
		}
	}
}

// peak measures the most memory that was in use at a time, garbage not included, while work is
// done: what the collector has found alive, which is made to look often.
func peak(work func() error) (int64, error) {
	defer debug.SetGCPercent(debug.SetGCPercent(20))
	runtime.GC()
	base, most := live(), int64(0)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			most = max(most, live())
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	err := work()
	close(stop)
	<-stopped
	return most - base, err
}

func live() int64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return int64(sample[0].Value.Uint64())
}

// TestHostileMessages: one message takes little memory, however long it is and whatever it is made
// of, and eight at once take eight times as little. The next message in the same session finds all
// of it given back.
func TestHostileMessages(t *testing.T) {
	s := start(t)
	field := func(name, value string) string { return packet('L', name+"\x00"+value+"\x00") }
	kinds := []struct {
		name  string
		unit  string // packets
		total int    // bytes of them all
		reply string // how it begins; "" where it is accepted
	}{
		{"a giant field, and again", field("To", strings.Repeat("a@b.cd, ", 12_800)), 120 << 20, "550 5.6.0 the field To has "},
		{"giant fields that leave anyway", field("References", strings.Repeat("<a@b> ", 17_000)), 20 << 20, "550 5.6.0 the fields for "},
		{"giant fields of another name", field("X-Junk", strings.Repeat("junk ", 20_000)), 20 << 20, "550 5.6.0 the field X-Junk has "},
		{"lines of From:x", field("From", "x"), 5 << 20, "550 5.6.0 the message has "},
		{"To of one byte", field("To", "x"), 5 << 20, "550 5.6.0 the message has "},
		{"fields of one byte", field("x", "x"), 5 << 20, ""},
		{"recipients", packet('R', "<someone.else@department.fabrikam.com>\x00"), 20 << 20, "550 5.5.3 the message has "},
		{"recipients of one byte", packet('R', "x\x00"), 4 << 20, "550 5.5.3 the message has "},
		{"long recipients", packet('R', "<"+strings.Repeat("x", 3000)+"@fabrikam.com>\x00"), 30 << 20, "550 5.5.3 the message has "},
		{"Reply-To that are lists", field("Reply-To", strings.Repeat("a@b,", 8_000)), 16 * 32_000, ""},
		{"encoded words without end", field("From", strings.Repeat("=?utf-8?q?=3D=3F?= ", 5_000)), 4 * 95_000, ""},
		{"nested comments", field("Cc", strings.Repeat("(", 16_000)+strings.Repeat(")", 16_000)), 16 * 32_000, ""},
		{"lists without commas", field("Cc", strings.Repeat("<a@b> ", 5_400)), 16 * 32_400, ""},
		{"answers without commas", field("Disposition-Notification-To", strings.Repeat("<a@b>", 6_400)), 16 * 32_000, ""},
	}
	send := func(i, total int) error {
		k := &kinds[i]
		w, err := s.dialWire()
		if err != nil {
			return err
		}
		defer w.Close()
		chunk := strings.Repeat(k.unit, max(1, min(64<<10, total)/len(k.unit)))
		if got, err := w.send(chunk, max(1, total/len(chunk))); err != nil || !strings.HasPrefix(got, k.reply) || k.reply == "" && got != "" {
			return fmt.Errorf("%s: %v %q, want %q", k.name, err, got, k.reply)
		}
		if got, err := w.send("", 0); err != nil || got != "" {
			return fmt.Errorf("%s: an ordinary message behind it: %v %q", k.name, err, got)
		}
		return nil
	}
	for i := range kinds {
		most, err := peak(func() error { return send(i, kinds[i].total) })
		if err != nil {
			t.Error(err)
		}
		if t.Logf("%s: %.1f MB", kinds[i].name, float64(most)/1e6); most > 16<<20 {
			t.Errorf("%s: %d bytes in use", kinds[i].name, most)
		}
	}
	for first := 0; first < len(kinds); first += 8 {
		errs := make([]error, 8)
		most, _ := peak(func() error {
			var wg sync.WaitGroup
			for j := range errs {
				i := (first + j) % len(kinds)
				wg.Go(func() { errs[j] = send(i, min(kinds[i].total, 8<<20)) })
			}
			wg.Wait()
			return nil
		})
		if err := errors.Join(errs...); err != nil {
			t.Error(err)
		}
		if t.Logf("eight at once: %.1f MB", float64(most)/1e6); most > 64<<20 {
			t.Errorf("eight messages at once: %d bytes in use", most)
		}
	}
}

// TestMemoryGivenBack: sessions that have brought hostile messages, and stay, keep nothing of them.
func TestMemoryGivenBack(t *testing.T) {
	s := start(t)
	to := strings.Repeat(packet('L', "To\x00"+strings.Repeat("a@b.cd, ", 30)+"\x00"), 100)
	rcpts := strings.Repeat(packet('R', "<someone.else@department.fabrikam.com>\x00"), 1000)
	const sessions = 20
	var open []wire
	for range sessions {
		w, err := s.dialWire()
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		open = append(open, w)
	}
	runtime.GC()
	base := live()
	for _, w := range open {
		for _, m := range []string{to, rcpts} {
			if _, err := w.send(m, 19); err != nil {
				t.Fatal(err)
			}
		}
	}
	runtime.GC()
	if n := live() - base; n > sessions*64<<10 {
		t.Errorf("%d sessions keep %d bytes", sessions, n)
	}
}
