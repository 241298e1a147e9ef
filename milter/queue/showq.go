package queue

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
)

// maxQueueName bounds what is kept of a name or value; showq(8) also tells reasons, which may be
// long.
const maxQueueName = 4096

// queued is a message as showq(8) tells it.
type queued struct {
	queue, id, sender string
	arrived           time.Time // zero where it is not told
	rcpts             int
	size              int64  // in bytes; 0 where it is not told
	reason            string // why it was deferred: that of its first recipient with one; "" for none
}

// read reads what showq(8) says of the queue: lists of attributes, each a name and a value that end
// in NUL, and each list ends in one more NUL, as the whole does (Postfix, src/showq/showq.c and
// src/util/attr_print0.c). A message is one list with an attribute "recipient" for each. Since 3.6
// a list that names the protocol comes first.
func read(r *bufio.Reader, fn func(queued)) error {
	for lists := 0; ; lists++ {
		var m queued
		attributes := 0
		for ; ; attributes++ {
			name, err := readWord(r)
			if err != nil {
				return err
			}
			if name == "" {
				break
			}
			value, err := readWord(r)
			if err != nil {
				return err
			}
			switch name {
			case "queue_name":
				m.queue = value
			case "queue_id":
				m.id = value
			case "sender":
				m.sender = value
			case "recipient":
				m.rcpts++
			case "size":
				m.size, _ = strconv.ParseInt(value, 10, 64)
			case "time":
				if sec, err := strconv.ParseInt(value, 10, 64); err == nil && sec > 0 {
					m.arrived = time.Unix(sec, 0)
				}
			case "reason":
				if m.reason == "" {
					m.reason = value
				}
			case "protocol":
				if value != "mail_queue_list_protocol" {
					return fmt.Errorf("it speaks another protocol: %.40q", value)
				}
			}
		}
		switch {
		case attributes == 0:
			return nil
		case m.queue != "":
			fn(m)
		case lists > 0:
			return errors.New("it speaks another protocol: a message has no queue_name")
		}
	}
}

// readWord reads up to the next NUL, and returns at most the reader's buffer of it.
func readWord(r *bufio.Reader) (string, error) {
	b, err := r.ReadSlice(0)
	if err == nil {
		return string(b[:len(b)-1]), nil
	}
	word := string(b)
	for errors.Is(err, bufio.ErrBufferFull) {
		_, err = r.ReadSlice(0)
	}
	if err == io.EOF {
		err = errors.New("the list of the queue breaks off")
	}
	return word, err
}
