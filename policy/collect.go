package policy

import (
	"strconv"
	"strings"
)

// A bound is how much of one kind is kept of a message. What no real message has more of must not
// take a relay's memory, however long a stranger writes.
type bound struct{ n, bytes int }

var (
	// mostFields holds for all fields that a decision reads, taken together. There are programs that
	// write a To for each of the recipients, of which Exchange Online takes 1,000. One field has no
	// more than header_size_limit of Postfix, 102,400 bytes.
	mostFields = bound{maxFields, 512 << 10}
	// mostRcpts is 50 times what Exchange Online takes, for mail that sendmail(1) brings to lists of
	// this host: smtpd_recipient_limit of Postfix is 1,000.
	mostRcpts = bound{50_000, 2 << 20}
)

// maxFields is the number in mostFields.
const maxFields = 2000

// An amount is what has come of one kind.
type amount struct {
	bytes int // of all
	left  int // how many were not kept
}

// fits counts one more, and reports whether it is to be kept, too. Nothing is kept behind one that
// was not.
func (a *amount) fits(kept, bytes int, most bound) bool {
	a.bytes += bytes
	if kept+a.left < most.n && a.bytes <= most.bytes {
		return true
	}
	a.left++
	return false
}

// AddField adds a header field, the next one of the message, where a decision reads it. Beyond what
// any real message has it is counted, and not kept: [Rules.Decide] refuses such a message.
func (r *Request) AddField(name, value string) {
	if !Wants(name) && !TooLong(value) {
		return
	}
	if r.fields.fits(len(r.Fields), len(name)+len(value), mostFields) {
		r.Fields = append(r.Fields, Field{Name: name, Value: value})
	}
}

// AddRecipient adds a recipient and what [Rules.Place] says of it, within bounds as AddField does.
func (r *Request) AddRecipient(to string, at Place) {
	if r.rcpts.fits(len(r.Rcpts), len(to), mostRcpts) {
		r.Rcpts, r.Places = append(r.Rcpts, to), append(r.Places, at)
	}
}

// Recipients is how many the message has, with those that were not kept.
func (r *Request) Recipients() int { return len(r.Rcpts) + r.rcpts.left }

// Clear makes the request an empty one, for the next message. It keeps the room that an ordinary
// message needs, and lets go what was larger.
func (r *Request) Clear() {
	*r = Request{Rcpts: emptied(r.Rcpts), Places: emptied(r.Places), Fields: emptied(r.Fields)}
}

// ordinary is the number of fields, and of recipients, that Clear keeps room for.
const ordinary = 64

func emptied[T any](list []T) []T {
	if cap(list) > ordinary {
		return nil
	}
	clear(list) // what a string points to would stay
	return list[:0]
}

// overrun refuses a message of which there is more than any real one has: it was not kept whole,
// and nothing leaves that was looked at by half. It can never pass, so the refusal is for good.
func (r *Request) overrun() (*Reply, Reason) {
	if n := len(r.Fields) + r.fields.left; n > maxFields {
		return malformed("the message has %d fields for senders, recipients and dates; that is no mail", n),
			Reason{Code: ReasonTooMany, Subject: strconv.Itoa(n)}
	}
	if name, n := firstTooLong(r.Fields); n > 0 {
		return tooLong(name, n)
	}
	if r.fields.left > 0 {
		n, most := r.fields.bytes, mostFields.bytes
		return malformed("the fields for senders, recipients and dates have %d bytes, and this relay takes %d; send the message in parts", n, most),
			Reason{Code: ReasonTooLarge, Subject: strconv.Itoa(n), Object: strconv.Itoa(most)}
	}
	if r.rcpts.left > 0 {
		n := r.Recipients()
		return &Reply{Code: 550, Enhanced: "5.5.3", Text: "the message has " + strconv.Itoa(n) + " recipients with " + strconv.Itoa(r.rcpts.bytes) +
				" bytes, and this relay takes " + strconv.Itoa(mostRcpts.n) + " with " + strconv.Itoa(mostRcpts.bytes) + "; send it in parts"},
			Reason{Code: ReasonTooManyRcpts, Subject: strconv.Itoa(n)}
	}
	return nil, Reason{}
}

// tooLong refuses a message for a field that Exchange would refuse.
func tooLong(name string, n int) (*Reply, Reason) {
	return malformed("the field %s has %d bytes, and Exchange Online takes %d; shorten it, or send the message in parts", name, n, maxValue),
		Reason{Code: ReasonTooLong, Subject: name, Object: strconv.Itoa(n)}
}

// firstTooLong returns the first field for whose length the message cannot leave, and its length; 0
// where there is none. Several Reply-To leave as one.
func firstTooLong(list []Field) (name string, n int) {
	answers := 0
	for _, f := range list {
		if TooLong(f.Value) {
			if u := uses[strings.ToLower(f.Name)]; !u.passing && !u.shortened {
				return f.Name, len(f.Value)
			}
		}
		if strings.EqualFold(f.Name, "Reply-To") {
			answers += len(f.Value)
		}
	}
	if answers <= maxValue {
		return "", 0
	}
	var values []string
	for _, f := range list {
		if strings.EqualFold(f.Name, "Reply-To") {
			values = withValue(values, f.Value)
		}
	}
	if n = total(values); n <= maxValue {
		return "", 0
	}
	return "Reply-To", n
}

// firstGrown returns the first field that would be too long only when it has been mended, and how
// long; 0 where there is none.
func firstGrown(list []HeaderChange) (name string, n int) {
	for _, c := range list {
		if TooLong(c.Value) {
			return c.Name, len(c.Value)
		}
	}
	return "", 0
}

// withValue adds the value of a field to those of others of its name, unless it says nothing new.
func withValue(values []string, value string) []string {
	v := strings.Trim(value, " \t\r\n,")
	if v == "" {
		return values
	}
	for _, w := range values {
		if w == v {
			return values
		}
	}
	return append(values, v)
}

func total(values []string) (n int) {
	for _, v := range values {
		n += len(v)
	}
	return n
}
