package milter

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	protocol "github.com/d--j/go-milter"
)

// changes tells the MTA what to change in a message, at its end (SMFIR_* of libmilter's mfdef.h).
// The library could do it, but takes 8 kB of memory for each change since v0.10, and refuses some
// to MTAs whose version of the protocol is old, where Postfix offers them in every version. What
// was not offered must not be asked for: see needs.
type changes struct {
	w   io.Writer
	buf []byte
}

// clear lets go what a long change took.
func (c *changes) clear() {
	if cap(c.buf) > bufferSize {
		c.buf = nil
	}
}

// The changes. Those with parameters are known since version 6, but what counts is the offer.
const (
	changeSender = 'e' // SMFIR_CHGFROM
	addHeader    = 'h' // SMFIR_ADDHEADER
	changeHeader = 'm' // SMFIR_CHGHEADER
	quarantine   = 'q' // SMFIR_QUARANTINE
)

func (c *changes) sender(address string) error {
	return c.write(changeSender, onOneLine(protocol.AddAngle(address)))
}

func (c *changes) addHeader(name, value string) error {
	return c.write(addHeader, name, withLineFeeds(value))
}

// changeHeader changes the field of that name and number, counted from 1; no value removes it.
func (c *changes) changeHeader(index int, name, value string) error {
	return c.write(changeHeader, string(binary.BigEndian.AppendUint32(nil, uint32(index)))+name, withLineFeeds(value))
}

func (c *changes) hold(reason string) error { return c.write(quarantine, onOneLine(reason)) }

// write sends a packet: its length, a code, and strings that end with NUL.
func (c *changes) write(code byte, parts ...string) error {
	n := 1
	for _, p := range parts {
		n += len(p) + 1
	}
	if most := int(protocol.DataSize64K); n > most {
		return fmt.Errorf("a change %q of %d bytes is longer than %d", code, n, most)
	}
	c.buf = append(binary.BigEndian.AppendUint32(c.buf[:0], uint32(n)), code)
	for _, p := range parts {
		c.buf = append(append(c.buf, p...), 0)
	}
	_, err := c.w.Write(c.buf)
	return err
}

// A NUL would end a string within it; none comes over the wire, so none is expected.
var (
	lineFeeds = strings.NewReplacer("\r\n", "\n", "\r", "\n", "\x00", " ")
	blanks    = strings.NewReplacer("\r\n", " ", "\r", " ", "\n", " ", "\x00", " ")
)

// withLineFeeds gives a field's value the line ends that Postfix and Sendmail want.
func withLineFeeds(s string) string {
	if !strings.ContainsAny(s, "\r\x00") {
		return s
	}
	return lineFeeds.Replace(s)
}

func onOneLine(s string) string {
	if !strings.ContainsAny(s, "\r\n\x00") {
		return s
	}
	return blanks.Replace(s)
}
