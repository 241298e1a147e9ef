package milter

import (
	"cmp"
	"strings"
	"time"

	"github.com/sendas/sendas/internal/plaintext"
	"github.com/sendas/sendas/policy"
)

// observe notes a message that passes as it is, and what would have become of it: Postfix hears of
// nothing but that it may pass. Limits count it as they would; the ceiling does not, since the queue
// is not one of ours.
func (t *transaction) observe(d *policy.Decision) {
	if d.Action == policy.Accept && !d.Discard {
		over := t.booking.End(d.Client.Name, d.Identity, t.req.Leaving(), t.req.Now)
		if over == nil {
			over = t.booking.Commit(t.req.Now)
		}
		if over != nil {
			t.note(d, over)
		}
	}
	if d.Asked.IsZero() { // who is no client is refused before that matters
		d.Asked = t.req.Wanted()
	}
	client, reason := t.outcome(d)
	attrs := append(t.attrs(d, "would"), "envelope", cmp.Or(strings.Trim(t.req.Sender, "<>"), "<>"), "helo", shownName.Line(t.helo), "name", t.who.hostName())
	if t.req.Peer.Subject != "" {
		attrs = append(attrs, "certificate", t.req.Peer.Subject)
	}
	t.s.Log.Info("message observed", attrs...)
	t.s.Metrics.noted(client, d.Action, reason, time.Since(t.req.Now))
	t.s.Tally.message(client, d.Action, reason, t.req.Now)
	t.turnedAway(d, client, reason)
	t.record(d, true)
}

// hostName is what DNS calls the client: the name that leads back to its address, else the one that
// does not; "" where there is none.
func (m *macros) hostName() string {
	for _, s := range []string{m.name, m.ptr} {
		if s = shownName.Line(s); s != "" && s != "unknown" && !strings.HasPrefix(s, "[") {
			return s
		}
	}
	return ""
}

// shownName makes a stranger's name of a host fit for a log; none is longer (RFC 1035, section
// 2.3.4).
var shownName = plaintext.Style{MaxBytes: 255}
