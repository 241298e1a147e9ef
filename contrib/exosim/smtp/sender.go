package smtp

import (
	"bytes"
	"io"
	"mime"
	"net/mail"
	"strings"
)

// senders returns the addresses that a message claims to be from, or why it is
// refused: From must be there once and well formed, and with several addresses
// there must be a Sender, which then is claimed too ("on behalf of").
func senders(data []byte) (from, sender []string, refusal string) {
	msg, err := mail.ReadMessage(bytes.NewReader(data))
	if err != nil {
		return nil, nil, textBadFrom
	}
	fields := msg.Header["From"]
	if len(fields) > 1 && len(msg.Header["Sender"]) == 0 {
		return nil, nil, textManyFrom
	}
	if len(fields) != 1 {
		return nil, nil, textBadFrom
	}
	from, ok := addresses(fields[0])
	if !ok {
		return nil, nil, textBadFrom
	}
	if len(from) > 1 && len(msg.Header["Sender"]) == 0 {
		return nil, nil, textManyFrom
	}
	for _, f := range msg.Header["Sender"] {
		more, ok := addresses(f)
		if !ok {
			return nil, nil, textBadFrom
		}
		sender = append(sender, more...)
	}
	return from, sender, ""
}

// addresses reads an address list strictly (RFC 5322, section 3.4): what
// printers write and Exchange Online refuses must not pass here.
func addresses(field string) ([]string, bool) {
	if strings.ContainsFunc(field, func(r rune) bool { return r >= 0x7f }) {
		return nil, false
	}
	words := &mime.WordDecoder{CharsetReader: func(_ string, r io.Reader) (io.Reader, error) { return r, nil }} // names do not matter
	parser := mail.AddressParser{WordDecoder: words}
	parsed, err := parser.ParseList(field)
	if err != nil || len(parsed) == 0 {
		return nil, false
	}
	var list []string
	for _, a := range parsed {
		list = append(list, a.Address)
	}
	return list, true
}

// messageID returns what the final reply names: the message's own id with its
// angle brackets, or one of the service's if there is none.
func messageID(m *Message) string {
	ids := m.Header("Message-Id")
	if len(ids) == 1 {
		if id := strings.TrimSpace(ids[0]); len(id) > 2 && id[0] == '<' && strings.IndexByte(id, '>') == len(id)-1 && !strings.ContainsAny(id, " \t") {
			return id
		}
	}
	return "<" + m.Session + "@" + strings.ToLower(backend) + ">"
}
