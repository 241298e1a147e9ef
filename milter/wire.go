package milter

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
)

// buffered asks the kernel once for what the library reads and writes in small pieces. A message is
// some forty packets, which Postfix sends in two or three writes of at most 4096 bytes (its
// VSTREAM_BUFSIZE), the size of these buffers. The library reads each packet in two pieces and
// writes each change in two: that took more time than all the rest.
//
// It also looks at each packet before the library does, because go-milter v0.10.2 ends the whole
// process on one that is cut short, and makes room for 512 MiB when one says so.
type buffered struct {
	*conn
	in   *bufio.Reader
	out  *bufio.Writer
	left int // of the packet that is being read
}

const bufferSize = 4096

// maxPacket is what Postfix can have to say at once: a header field of header_size_limit (102400
// bytes) with its name.
const maxPacket = 256 << 10

// wrap gives a connection its buffers.
func wrap(k *conn) *buffered {
	return &buffered{conn: k, in: bufio.NewReaderSize(k, bufferSize), out: bufio.NewWriterSize(k, bufferSize)}
}

// Read sends the answers before it waits for more. They need no flush when the connection is
// closed: the library reads again after each whole answer, and one that breaks off with an error
// should not be seen.
func (b *buffered) Read(p []byte) (int, error) {
	if b.left == 0 {
		n, err := b.next()
		if err != nil {
			return 0, err
		}
		b.left = n
	}
	n, err := b.in.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// offer looks at the first packet, which the library reads again.
func (b *buffered) offer() (offer, error) {
	size, err := b.next()
	if err != nil {
		return offer{}, err
	}
	if size > bufferSize {
		return offer{}, fmt.Errorf("a milter connection does not begin with a packet of %d bytes", size)
	}
	packet, err := b.in.Peek(size)
	if err != nil {
		return offer{}, fmt.Errorf("the connection ended within a packet: %w", err)
	}
	return parseOffer(packet[4:])
}

// next returns the size of the packet that comes next, once it is known to be one.
func (b *buffered) next() (int, error) {
	if b.in.Buffered() == 0 {
		if err := b.out.Flush(); err != nil {
			return 0, err
		}
	}
	head, err := b.in.Peek(4)
	if err != nil {
		if len(head) > 0 {
			err = fmt.Errorf("the connection ended within a packet: %w", err)
		}
		return 0, err
	}
	n := binary.BigEndian.Uint32(head)
	if n == 0 || n > maxPacket {
		return 0, fmt.Errorf("a packet of %d bytes is no milter command", n)
	}
	if head, err = b.in.Peek(5); err != nil {
		return 0, fmt.Errorf("the connection ended within a packet: %w", err)
	}
	size := int(4 + n)
	switch head[4] {
	case 'C', 'M', 'R': // SMFIC_CONNECT, SMFIC_MAIL, SMFIC_RCPT begin with a string
		if size > bufferSize {
			return 0, fmt.Errorf("a milter command %q has %d bytes", head[4], n)
		}
		whole, err := b.in.Peek(size)
		if err != nil {
			return 0, fmt.Errorf("the connection ended within a packet: %w", err)
		}
		end := bytes.IndexByte(whole[5:], 0)
		if end < 0 || head[4] == 'C' && 5+end+1 == size {
			return 0, fmt.Errorf("a milter command %q is cut short", head[4])
		}
	}
	return size, nil
}

func (b *buffered) Write(p []byte) (int, error) { return b.out.Write(p) }
