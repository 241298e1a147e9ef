package policy

import (
	"cmp"
	"net/mail"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sendas/sendas/policy/address"
)

// maxFrom is how many From fields we still repair; a message with more is an attack.
const maxFrom = 20

// header is what a decision needs to know of a message's header.
type header struct {
	from, other []numbered
	entry       address.Named // the first address of the From fields
	entries     int           // addresses in all From fields
	asked       address.Spec
	sender      address.Spec // of the envelope; zero for the null sender, and for one that cannot be read
	null        bool         // the envelope has the null sender
	unreadable  string       // the envelope sender, where it cannot be read
}

// numbered is a field with its place among the fields of its name.
type numbered struct {
	Field
	key   string // the name in lower case
	index int    // from 1
}

func readHeader(r *Request) header {
	var h header
	h.other = make([]numbered, 0, len(r.Fields))
	for _, f := range r.Fields {
		n := numbered{Field: f, key: strings.ToLower(f.Name), index: 1}
		if n.key == "from" {
			n.index = len(h.from) + 1
			h.from = append(h.from, n)
			continue
		}
		for i := len(h.other) - 1; i >= 0; i-- {
			if h.other[i].key == n.key {
				n.index = h.other[i].index + 1
				break
			}
		}
		h.other = append(h.other, n)
	}
	if len(h.from) <= maxFrom {
		for _, f := range h.from {
			for _, e := range address.ParseList(f.Value) {
				if h.entries++; h.entries == 1 {
					h.entry = e
				}
			}
		}
	}
	// One that cannot be read may not be used: the identity takes its place. It is not the null
	// sender, whose mail no person sent.
	h.null = isNull(r.Sender)
	var err error
	if h.sender, err = address.Parse(r.Sender); err != nil {
		h.unreadable = address.Readable(trimAngles(r.Sender))
	}
	h.asked = h.entry.Spec
	if h.asked.IsZero() {
		h.asked = h.sender
	}
	return h
}

// isNull reports whether an envelope sender is the null one: RFC 5321, section 4.5.5, has no other
// form of it than "<>".
func isNull(sender string) bool {
	s := strings.TrimSpace(sender)
	return s == "" || s == "<>"
}

// changes lists what must change in the header for the message to leave as the identity. It is
// automatic where the null sender, which says so, does not stay.
func (h *header) changes(r *Request, c *Client, id address.Spec, automatic bool) []HeaderChange {
	var list []HeaderChange
	rewritten := !h.asked.Same(id)
	name := h.displayName()
	if rewritten {
		name = c.rename(name, h.asked)
	}
	list = h.changeFrom(list, name, id)
	list = h.dropForeignSender(list, id)
	list = h.replyTo(list, c, rewritten)
	list = h.mend(list)
	if rewritten || h.entries > 1 || len(h.from) > 1 { // else the other addresses would be lost
		list = h.keepOriginal(list)
	}
	list = h.addMissing(list, r, id)
	if automatic {
		list = h.markAutomatic(list)
	}
	list = h.dropTLSRequired(list)
	return h.dropFalseSignatures(list)
}

// dropTLSRequired deletes each TLS-Required field, whatever it says: with "no" a device asks every
// server on the way to deliver without TLS or to whoever answers (RFC 8689, section 5), and that is
// not for a device to decide. Postfix from 3.10 on obeys as soon as it has read the field, before a
// milter can take it out, so on this host tls_required_enable = no guards the token; this keeps the
// wish from the servers behind it.
func (h *header) dropTLSRequired(list []HeaderChange) []HeaderChange {
	for _, f := range slices.Backward(h.other) {
		if f.key == "tls-required" {
			list = append(list, HeaderChange{Op: Delete, Name: f.Name, Index: f.index})
		}
	}
	return list
}

// changeFrom leaves exactly one From field, with the identity, well formed.
func (h *header) changeFrom(list []HeaderChange, name string, id address.Spec) []HeaderChange {
	name = address.SafeName(name, id)
	if len(h.from) == 0 {
		return append(list, HeaderChange{Op: Add, Name: "From", Value: address.Write("From", name, id)})
	}
	for _, f := range slices.Backward(h.from[1:]) {
		list = append(list, HeaderChange{Op: Delete, Name: f.Name, Index: f.index})
	}
	first := h.from[0]
	if len(h.from) == 1 && h.entries == 1 && wellFormed(first.Value, h.entry, id) {
		return list
	}
	return append(list, HeaderChange{Op: Change, Name: first.Name, Index: 1, Value: address.Write(first.Name, name, id)})
}

// displayName returns the name of the sender: of the first address, or of a From that
// has only a name.
func (h *header) displayName() string {
	if h.entries > 0 {
		return h.entry.Name
	}
	for _, f := range h.from {
		if name := address.DecodeName(address.Readable(f.Value)); name != "" {
			return name
		}
	}
	return ""
}

// wellFormed reports whether a From field may leave byte for byte: sendas could have written it
// itself, with the identity as its address and a display name that pretends nothing. That other
// parsers take it as well is not enough.
func wellFormed(value string, e address.Named, id address.Spec) bool {
	if !e.Spec.Same(id) || address.SafeName(e.Name, id) != e.Name {
		return false
	}
	n, ok := address.ReadStrict(value)
	return ok && n == e
}

// strict reads addresses by RFC 5322, in every character set that we know.
var strict = mail.AddressParser{WordDecoder: &address.WordDecoder}

// dropForeignSender deletes Sender fields that name someone else: Exchange Online would read
// "Sender on behalf of From" and ask for a permission.
func (h *header) dropForeignSender(list []HeaderChange, id address.Spec) []HeaderChange {
	for _, f := range slices.Backward(h.other) {
		if f.key != "sender" {
			continue
		}
		if f.index == 1 {
			if e := address.ParseList(f.Value); len(e) == 1 && wellFormed(f.Value, e[0], id) {
				continue
			}
		}
		list = append(list, HeaderChange{Op: Delete, Name: f.Name, Index: f.index})
	}
	return list
}

// keepOriginal keeps the original From for whoever looks for it.
func (h *header) keepOriginal(list []HeaderChange) []HeaderChange {
	for _, f := range slices.Backward(h.other) {
		if f.key == "x-original-from" {
			list = append(list, HeaderChange{Op: Delete, Name: f.Name, Index: f.index})
		}
	}
	var original []string
	for _, f := range h.from {
		original = append(original, address.Readable(f.Value))
	}
	text := strings.TrimSpace(strings.Join(original, ", "))
	if text == "" {
		text = cmp.Or(h.asked.String(), h.unreadable)
	}
	if text == "" {
		return list
	}
	return append(list, HeaderChange{Op: Add, Name: "X-Original-From", Value: address.EncodeText("X-Original-From", text)})
}

// has reports whether a field of that name is there and not empty.
func (h *header) has(key string) bool {
	return slices.ContainsFunc(h.other, func(f numbered) bool { return f.key == key && strings.TrimSpace(f.Value) != "" })
}

// set adds the field, or fills the first empty one of its name.
func (h *header) set(list []HeaderChange, name, key, value string) []HeaderChange {
	for _, f := range h.other {
		if f.key == key {
			return append(list, HeaderChange{Op: Change, Name: f.Name, Index: f.index, Value: value})
		}
	}
	return append(list, HeaderChange{Op: Add, Name: name, Value: value})
}

// addMissing adds Message-ID and Date (RFC 5322, section 3.6) where a device left them out.
// Exchange Online returns the Message-ID in its last reply, so it is the handle for a trace.
func (h *header) addMissing(list []HeaderChange, r *Request, id address.Spec) []HeaderChange {
	if !h.has("message-id") {
		unique := strconv.FormatInt(r.Now.UnixNano(), 36)
		if r.QueueID != "" {
			unique += "." + r.QueueID
		}
		list = h.set(list, "Message-ID", "message-id", "<"+unique+"@"+address.ASCIIDomain(id.Domain)+">")
	}
	if !h.has("date") {
		list = h.set(list, "Date", "date", r.Now.Format(time.RFC1123Z))
	}
	return list
}

// markAutomatic says on a message with the null sender that nobody should answer it by
// machine (RFC 3834, section 5, and [MS-OXCMAIL] for Exchange), since it leaves with
// a sender that could be answered.
func (h *header) markAutomatic(list []HeaderChange) []HeaderChange {
	marked := slices.ContainsFunc(h.other, func(f numbered) bool {
		v := strings.TrimSpace(f.Value)
		return f.key == "auto-submitted" && v != "" && !strings.EqualFold(v, "no")
	})
	if !marked {
		list = h.set(list, "Auto-Submitted", "auto-submitted", "auto-replied")
	}
	if !h.has("x-auto-response-suppress") {
		list = h.set(list, "X-Auto-Response-Suppress", "x-auto-response-suppress", "All")
	}
	return list
}

// dropFalseSignatures deletes each DKIM-Signature that covers a field we changed (RFC 6376,
// section 3.5, tag h=): it could only fail. Others stay.
func (h *header) dropFalseSignatures(list []HeaderChange) []HeaderChange {
	if len(list) == 0 {
		return list
	}
	for _, f := range slices.Backward(h.other) {
		if f.key != "dkim-signature" {
			continue
		}
		signed := signedFields(f.Value)
		if slices.ContainsFunc(list, func(c HeaderChange) bool { return signed[strings.ToLower(c.Name)] }) {
			list = append(list, HeaderChange{Op: Delete, Name: f.Name, Index: f.index})
		}
	}
	return list
}

// signedFields returns the names in the h= tag of a DKIM-Signature, in lower case. From is always
// signed (RFC 6376, section 5.4).
func signedFields(value string) map[string]bool {
	names := map[string]bool{"from": true}
	for tag := range strings.SplitSeq(value, ";") {
		k, v, ok := strings.Cut(tag, "=")
		if !ok || strings.TrimSpace(k) != "h" {
			continue
		}
		for n := range strings.SplitSeq(v, ":") {
			names[strings.ToLower(strings.Join(strings.Fields(n), ""))] = true
		}
	}
	return names
}
