package policy

import (
	"slices"
	"strings"

	"github.com/sendas/sendas/policy/address"
)

// A use says what a decision has to do with a field.
type use struct {
	structured bool // it has parts that must stay whole, and separators behind which it may be broken
	folded     bool // a line that is too long is broken: else smtp(8) cuts it after 998 bytes, in the middle of an address
	once       bool // a message may have one (RFC 5322, section 3.6): the first stays
	joined     bool // several become one list of addresses instead
	answered   bool // it asks for answers or receipts, which have to arrive
	shortened  bool // the middle of a list of message ids may go where it is too long for Exchange
	passing    bool // it does not leave as it came, so its length is nobody's concern
}

// uses holds the fields that a decision reads, by their names in lower case.
var uses = map[string]use{
	"from": {passing: true}, "sender": {passing: true}, "tls-required": {passing: true}, "x-original-from": {},
	"auto-submitted": {}, "x-auto-response-suppress": {}, "dkim-signature": {},

	"date": {once: true}, "subject": {once: true, folded: true}, "message-id": {once: true, folded: true, structured: true},
	"references":  {once: true, folded: true, structured: true, shortened: true},
	"in-reply-to": {once: true, folded: true, structured: true, shortened: true},
	"to":          {once: true, joined: true, folded: true, structured: true},
	"cc":          {once: true, joined: true, folded: true, structured: true},
	"bcc":         {once: true, joined: true, folded: true, structured: true},
	"reply-to":    {once: true, joined: true, folded: true, structured: true, answered: true},

	"resent-from": {folded: true, structured: true}, "resent-sender": {folded: true, structured: true},
	"resent-to": {folded: true, structured: true}, "resent-cc": {folded: true, structured: true},
	"resent-bcc": {folded: true, structured: true}, "resent-message-id": {folded: true, structured: true},

	"disposition-notification-to": {folded: true, structured: true, answered: true},
	"return-receipt-to":           {folded: true, structured: true, answered: true},
	"x-confirm-reading-to":        {folded: true, structured: true, answered: true},

	"errors-to": {folded: true, structured: true}, "mail-followup-to": {folded: true, structured: true},
	"list-unsubscribe": {folded: true, structured: true},
	"content-type":     {folded: true, structured: true}, "content-disposition": {folded: true, structured: true},
	"comments": {folded: true}, "keywords": {folded: true, structured: true},
}

// usedLengths spares most fields the lower case.
var usedLengths = func() (lengths [32]bool) {
	for name := range uses {
		lengths[len(name)] = true
	}
	return lengths
}()

// Wants reports whether a decision depends on fields of that name, whatever its case. Nothing else
// of a message needs to be kept, but for what is [TooLong].
func Wants(name string) bool {
	if len(name) >= len(usedLengths) || !usedLengths[len(name)] {
		return false
	}
	_, ok := uses[strings.ToLower(name)]
	return ok
}

// maxValue is how long the value of a field may be, whatever its name: Exchange refuses a longer
// one for good ("5.6.211 Invalid MIME Content: Single text value size (33061) exceeded allowed
// maximum (32768)", "5.6.0 … IMC53").
const maxValue = 32768

// TooLong reports whether Exchange would refuse a field with this value.
func TooLong(value string) bool {
	return len(value) > maxValue && len(value)-strings.Count(value, "\n")-strings.Count(value, "\r") > maxValue
}

// mend makes fields leave whole that would leave broken, and one of those that a message may have
// once: receivers refuse mail with two To fields for good.
func (h *header) mend(list []HeaderChange) []HeaderChange {
	for i, f := range h.other {
		u := uses[f.key]
		if f.index > 1 || f.key == "reply-to" || !u.once && !u.folded && !u.answered {
			continue
		}
		fields := h.named(f.key, i)
		if u.once && len(fields) > 1 {
			if value, ok := oneOf(fields, u); ok {
				list = settle(list, fields, value, fitted(f.Name, value, u))
				continue
			}
		}
		for _, f := range slices.Backward(fields) {
			switch value := fitted(f.Name, f.Value, u); {
			case u.answered && unanswerable(f.Value), value == "" && f.Value != "":
				list = append(list, HeaderChange{Op: Delete, Name: f.Name, Index: f.index})
			case value != f.Value:
				list = append(list, HeaderChange{Op: Change, Name: f.Name, Index: f.index, Value: value})
			}
		}
	}
	return list
}

// named returns the fields of that name; the first one stands at i, or behind.
func (h *header) named(key string, i int) []numbered {
	var list []numbered
	for _, f := range h.other[i:] {
		if f.key == key {
			list = append(list, f)
		}
	}
	return list
}

// fitted returns the value as it may leave: in lines that are not too long, with no more message
// ids than Exchange takes.
func fitted(name, value string, u use) string {
	if u.shortened && TooLong(value) {
		value = shorten(value)
	}
	if u.folded {
		return address.Fold(name, value, u.structured)
	}
	return value
}

// shorten drops message ids of a thread from the middle, until Exchange takes the rest and readers
// still find the thread: by its beginning, and by the latest ones (RFC 5537, section 3.4.4, words
// the same need of news).
func shorten(value string) string {
	ids := strings.Fields(strings.ReplaceAll(value, "><", "> <"))
	if len(ids) == 0 {
		return ""
	}
	room := maxValue/2 - len(ids[0])
	first := len(ids)
	for first > 1 && len(ids[first-1]) < room {
		first--
		room -= len(ids[first]) + 1
	}
	if room < 0 {
		return strings.Join(ids[first:], " ")
	}
	return strings.Join(slices.Insert(ids[first:], 0, ids[0]), " ")
}

// oneOf returns the value that the only one of several fields shall have. It is not ok where an
// address could get lost.
func oneOf(fields []numbered, u use) (value string, ok bool) {
	values := different(fields)
	if len(values) > 1 && u.joined {
		if total(values) > 2*maxValue { // what is written anew may become shorter, but not that much
			return "", false
		}
		value, ok = join(fields[0].Name, values)
		return value, ok && !TooLong(value)
	}
	for _, f := range fields {
		if strings.TrimSpace(f.Value) != "" {
			return f.Value, true
		}
	}
	return fields[0].Value, true
}

// different returns the values of several fields, without those that say nothing new.
func different(fields []numbered) (values []string) {
	for _, f := range fields {
		values = withValue(values, f.Value)
	}
	return values
}

// join makes one list of addresses of several. What is well formed stays as it was written, and
// what is not is written anew where one could be taken for a part of the other.
func join(name string, values []string) (string, bool) {
	joined := address.Refold(name, strings.Join(values, ",\n "), true)
	if !slices.ContainsFunc(values, func(v string) bool { return !wellFormedList(v) && !closedList(v) }) {
		return joined, true
	}
	var all []address.Named
	for _, v := range values {
		list := address.ParseWhole(v)
		if len(list) == 0 || slices.ContainsFunc(list, func(e address.Named) bool { return !e.Spec.Valid() }) {
			return "", false
		}
		all = append(all, list...)
	}
	return address.WriteList(name, all), true
}

// closedList reports whether a text, well formed or not, ends there for every reader: what is
// opened in it is closed.
func closedList(v string) bool {
	return readable(v) && !strings.ContainsAny(v, `"\\()<>:;`)
}

// settle leaves one of the fields, the first that has the value, or else the first, and lets it
// leave as the value says.
func settle(list []HeaderChange, fields []numbered, value, leaves string) []HeaderChange {
	kept := max(0, slices.IndexFunc(fields, func(f numbered) bool { return f.Value == value }))
	for i, f := range slices.Backward(fields) {
		switch {
		case i != kept, leaves == "" && f.Value != "":
			list = append(list, HeaderChange{Op: Delete, Name: f.Name, Index: f.index})
		case leaves != f.Value:
			list = append(list, HeaderChange{Op: Change, Name: f.Name, Index: f.index, Value: leaves})
		}
	}
	return list
}

// unanswerable reports whether a field names addresses, and nobody can answer to any of them. They
// are judged as the one in From, which would not become a Reply-To.
func unanswerable(value string) bool {
	list := address.ParseWhole(value)
	return len(list) > 0 && !slices.ContainsFunc(list, func(e address.Named) bool { return e.Spec.Answerable() })
}

// replyTo makes answers go where they would have gone, or where the client's reply_to says. Nothing
// should answer what came with the null sender. A Reply-To that nobody can answer counts as none.
func (h *header) replyTo(list []HeaderChange, c *Client, rewritten bool) []HeaderChange {
	fields := h.named("reply-to", 0)
	value, leaves, open := h.answers(fields)
	if leaves == "" && open && rewritten && !h.null && !c.noReplyTo {
		switch {
		case !c.replyTo.IsZero():
			leaves = address.Write("Reply-To", "", c.replyTo)
		case h.asked.Answerable():
			leaves = address.Write("Reply-To", address.SafeName(h.entry.Name, h.asked), h.asked)
		}
	}
	switch {
	case len(fields) == 0 && leaves == "":
		return list
	case len(fields) == 0:
		return append(list, HeaderChange{Op: Add, Name: "Reply-To", Value: leaves})
	case leaves == "" && !h.has("reply-to"): // an empty one does no harm
		return settle(list, fields, fields[0].Value, fields[0].Value)
	case leaves == "":
		return dropAll(list, fields)
	}
	return settle(list, fields, value, leaves)
}

func dropAll(list []HeaderChange, fields []numbered) []HeaderChange {
	for _, f := range slices.Backward(fields) {
		list = append(list, HeaderChange{Op: Delete, Name: f.Name, Index: f.index})
	}
	return list
}

// answers returns what a message says of where answers go, and how that leaves: a malformed one
// anew, since Exchange Online has refused messages since 2018 for an address without brackets or a
// bare @ in a display name ("Improvements in the SMTP AUTH client submission protocol"). One
// without any address would be as bad; it goes. It is open where that leaves room for another
// address: not where there was text without any, of which nobody knows what it meant.
func (h *header) answers(fields []numbered) (value, leaves string, open bool) {
	if !h.has("reply-to") {
		return "", "", true
	}
	value, ok := oneOf(fields, uses["reply-to"])
	if ok && wellFormedList(value) && !unanswerable(value) {
		return value, address.Fold("Reply-To", value, true), false
	}
	var all []address.Named
	for _, v := range different(fields) {
		all = append(all, address.ParseWhole(v)...)
	}
	if !slices.ContainsFunc(all, func(e address.Named) bool { return e.Spec.Answerable() }) {
		return "", "", len(all) > 0
	}
	return "", address.WriteList("Reply-To", all), false
}

// wellFormedList reports whether a field holds a strict list of addresses, or groups of them, in
// ASCII.
func wellFormedList(value string) bool {
	if !readable(value) {
		return false
	}
	list, err := strict.ParseList(strings.NewReplacer("\r", "", "\n", "").Replace(value))
	return err == nil && len(list) > 0
}

// readable reports whether a value is ASCII without control characters, but for folds.
func readable(value string) bool {
	return address.IsASCII(value) && !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' && r != '\r' })
}
