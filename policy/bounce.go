package policy

import (
	"slices"
	"strings"

	"github.com/sendas/sendas/policy/address"
)

// What comes with the null sender may cause no bounce, but by submission it leaves with a sender
// that Postfix would send one to. Taking recipients out and putting them in again for NOTIFY=NEVER
// loses or doubles them, since a milter cannot know the form in which Postfix has stored them. So
// the envelope sender carries a mark: its domain in capitals, which is the same domain to
// everybody (RFC 5321, section 2.4). Postfix keeps the letters, and its bounce goes to the marked
// address.

// marked returns an identity with the mark, in the form that goes over the wire.
func marked(id address.Spec) address.Spec {
	id.Domain = strings.ToUpper(address.ASCIIDomain(id.Domain))
	return id
}

// isMarked reports whether an address has the mark.
func isMarked(a address.Spec) bool { return a.Domain != "" && a.Domain == strings.ToUpper(a.Domain) }

// unmarked returns an identity as other mail has it.
func unmarked(id address.Spec) address.Spec {
	id = id.ASCII() // SMTPUTF8 is kept off towards Microsoft
	if isMarked(id) {
		id.Domain = strings.ToLower(id.Domain)
	}
	return id
}

// newSender returns the envelope sender with which a message leaves as the identity, "" where it
// is right as it came. A device's own capitals go: they would be taken for the mark. One that is
// kept is that of the message.
func (h *header) newSender(id address.Spec, kept bool) string {
	if kept {
		id = h.sender
	}
	switch {
	case h.null && kept:
		return ""
	case h.null:
		return marked(id).String()
	case h.sender.Same(id) && h.sender == unmarked(h.sender):
		return ""
	}
	return unmarked(id).String()
}

// answersBounce reports whether a message is Postfix's own bounce, or notice of a delay, about
// mail that may cause none: it comes from this host, with the null sender, as a report (RFC 3464),
// to an identity with the mark. It does not come by SMTP: a report that a content filter gives back
// by a port of this host is somebody else's.
func (p *Rules) answersBounce(r *Request, h *header) bool {
	if !h.null || !r.Peer.Addr.IsLoopback() || r.Peer.Port != 0 || r.Peer.Login != "" || len(r.Rcpts) != 1 {
		return false
	}
	to, err := address.Parse(r.Rcpts[0])
	if err != nil || !isMarked(to) {
		return false
	}
	_, known := p.byMailbox(to)
	known = known || p.verifiedSender(to) // by a connector or direct
	return known && slices.ContainsFunc(h.other, func(f numbered) bool {
		return f.key == "content-type" && strings.HasPrefix(strings.ToLower(strings.TrimSpace(f.Value)), "multipart/report")
	})
}
