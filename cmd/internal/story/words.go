package story

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sendas/sendas/internal/record"
)

// WriteList prints one line for each item. now decides whether a day is told.
func WriteList(w io.Writer, list []*Item, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, x := range list {
		m := x.Message
		if m == nil {
			a := lastOf(x.Attempts)
			fmt.Fprintf(t, "%s\t%s\t%s\t-\t%s\t-\t%s\n", moment(x.Time, now), x.ID, x.State, a.Sender, cmp.Or(a.Reply, a.Meaning))
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", moment(x.Time, now), x.ID, x.State, cmp.Or(m.Client, addressOf(m.Addr), "-"), asked(m), rcpts(m, 1), because(x))
	}
	return t.Flush()
}

// moment is a time of day, with the day where that is another one.
func moment(at, now time.Time) string {
	at, now = at.Local(), now.Local()
	if at.YearDay() == now.YearDay() && at.Year() == now.Year() {
		return at.Format("15:04:05")
	}
	return at.Format("2006-01-02 15:04:05")
}

func addressOf(a netip.Addr) string {
	if a.IsValid() {
		return a.String()
	}
	return ""
}

// asked says as whom a message was to leave, and as whom it does.
func asked(m *record.Message) string {
	from := cmp.Or(m.From, m.Sender, "<>")
	if m.Identity == "" || strings.EqualFold(from, m.Identity) || m.Observed {
		return from
	}
	return from + " as " + m.Identity
}

// rcpts names the first recipients, and how many there are besides.
func rcpts(m *record.Message, most int) string {
	list := m.Recipients[:min(len(m.Recipients), most)]
	rest := m.Count - len(list)
	switch {
	case len(list) == 0 && m.Count == 0:
		return "-"
	case len(list) == 0:
		return fmt.Sprintf("%d recipients", m.Count)
	case rest > 0:
		return fmt.Sprintf("%s +%d", strings.Join(list, ", "), rest)
	}
	return strings.Join(list, ", ")
}

// because says in a list what is behind a state.
func because(x *Item) string {
	m := x.Message
	switch x.State {
	case Sent, Waiting:
		return "by " + way(m)
	case Refused, Deferred, Held:
		return cmp.Or(m.Detail, m.Reason)
	case Watched:
		return "would be " + did(m.Action) + prefixed(" as ", m.Identity) + ": " + m.Reason
	case Gone:
		return "by " + way(m) + ", left the queue " + m.Left.Local().Format("15:04:05")
	}
	return m.Reason
}

// way is the mailbox that a message leaves through, or the route.
func way(m *record.Message) string {
	switch {
	case m.Mailbox == "":
		return "route " + cmp.Or(m.Route, "unknown")
	case m.Pool > 1:
		return fmt.Sprintf("%s (one of %d)", m.Mailbox, m.Pool)
	}
	return m.Mailbox
}

// did says what has become of a message by an action.
func did(action string) string {
	words := map[string]string{"accept": "accepted", "reject": "refused", "defer": "asked to come again", "hold": "held", "pass": "left to Postfix", record.Discarded: "discarded"}
	return cmp.Or(words[action], action)
}

// Write tells a tale, station by station.
func (t *Tale) Write(w io.Writer, now time.Time) error {
	tw := &teller{w: w, now: now}
	if t.Message == nil {
		a := lastOf(t.Attempts)
		tw.printf("attempt %s to send as %s; which message it was for is not known\n", t.ID, a.Sender)
		tw.attempt(a, "attempt")
		return tw.err
	}
	m := t.Message
	tw.head(t)
	tw.arrival(m)
	tw.decision(m)
	tw.stations(t)
	tw.end(t)
	return tw.err
}

// teller prints, and keeps the first error.
type teller struct {
	w   io.Writer
	now time.Time
	err error
}

func (w *teller) printf(format string, args ...any) {
	if w.err == nil {
		_, w.err = fmt.Fprintf(w.w, format, args...)
	}
}

// station prints what happened at a moment; the zero time has none.
func (w *teller) station(at time.Time, what, format string, args ...any) {
	when := ""
	if !at.IsZero() {
		when = at.Local().Format("2006-01-02 15:04:05")
	}
	w.printf("  %-19s  %-9s  %s\n", when, what, fmt.Sprintf(format, args...))
}

func (w *teller) head(t *Tale) {
	w.printf("message %s", t.ID)
	if id := t.Message.MessageID; id != "" {
		w.printf(", Message-ID <%s>", id)
	}
	w.printf(": %s\n", t.State)
}

func (w *teller) arrival(m *record.Message) {
	from := []string{cmp.Or(addressOf(m.Addr), "an address that is not known")}
	if m.PTR != "" && m.PTR != "unknown" {
		from[0] += " (" + m.PTR + ")"
	}
	if m.HELO != "" {
		from = append(from, "HELO "+m.HELO)
	}
	if m.Login != "" {
		from = append(from, "login "+m.Login)
	}
	if m.Subject != "" {
		from = append(from, "certificate of "+m.Subject)
	}
	from = append(from, cmp.Or(prefixed("client ", m.Client), "no client"))
	if m.Size > 0 {
		from = append(from, size(m.Size))
	}
	w.station(m.Time, "came", "from %s", strings.Join(from, ", "))
	sender := cmp.Or(m.Sender, "<>")
	if m.From != "" && !strings.EqualFold(m.From, m.Sender) {
		sender += ", From " + m.From
	}
	w.station(time.Time{}, "asked", "%s to %s", sender, rcpts(m, 20))
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

// size words a number of bytes.
func size(n int64) string {
	switch {
	case n < 10_000:
		return fmt.Sprintf("%d bytes", n)
	case n < 10_000_000:
		return fmt.Sprintf("%d kB", n/1000)
	}
	return fmt.Sprintf("%d MB", n/1_000_000)
}

func (w *teller) decision(m *record.Message) {
	if m.Observed {
		w.station(m.Time, "observed", "unchanged; it would have been %s (%s)%s", did(m.Action), m.Reason, prefixed(": ", m.Detail))
		return
	}
	text := did(m.Action)
	if accepted(m) {
		text += " as " + m.Identity + ", to leave by " + way(m)
	}
	text += " (" + m.Reason + ")" + prefixed(": ", m.Detail)
	w.station(m.Time, "decided", "%s", text)
}

// stations prints attempts and what Postfix noted, in the order of time.
func (w *teller) stations(t *Tale) {
	attempts, deferrals := t.Attempts, t.Deferrals
	for len(attempts)+len(deferrals) > 0 {
		if len(deferrals) == 0 || len(attempts) > 0 && !ended(attempts[0]).After(deferrals[0].Time) {
			w.attempt(attempts[0], "attempt")
			attempts = attempts[1:]
			continue
		}
		w.station(deferrals[0].Time, "put off", "Postfix: %s", deferrals[0].Text)
		deferrals = deferrals[1:]
	}
	if !t.Message.Left.IsZero() {
		w.station(t.Message.Left, "left", "it was no longer in Postfix's queue")
	}
}

// attempt prints one attempt to hand a message to Microsoft.
func (w *teller) attempt(a *record.Attempt, what string) {
	waited := ""
	if a.Waited >= time.Second {
		waited = fmt.Sprintf("waited %v%s, ", a.Waited.Round(time.Second/10), prefixed(" for ", waits[a.For]))
	}
	by := prefixed("as ", a.Mailbox)
	switch a.Class {
	case record.Accepted:
		w.station(ended(a), what, "%ssent %s to %d recipients: %s", waited, by, a.Accepted, a.Reply)
		if a.Refused > 0 {
			w.station(time.Time{}, "", "%d recipients were refused", a.Refused)
		}
	case record.NotNow:
		w.station(ended(a), what, "%s%s could not send: %s", waited, cmp.Or(a.Mailbox, "the mailbox"), a.Meaning)
	case record.NoMailbox:
		w.station(ended(a), what, "no mailbox may send as %s", a.Sender)
	case record.Unseen:
		w.station(ended(a), what, "%s%s: no answer was seen, so it counts as sent", waited, by)
	default:
		verdict := "put off"
		if a.Final {
			verdict = "refused for good"
		}
		w.station(ended(a), what, "%s%s %s at %s: %s", waited, verdict, by, a.Stage, a.Reply)
		if a.Meaning != "" {
			w.station(time.Time{}, "", "that is: %s", a.Meaning)
		}
	}
}

// waits words what a look-up waited for (ledger.Cause).
var waits = map[string]string{"messages": "a place in the minute", "recipients": "the day's recipients", "connections": "a connection", "paused": "the end of a pause",
	"group": "the tenant's external recipients"}

// end prints what is left: what is still to come, what cannot be tied, Postfix's own lines.
func (w *teller) end(t *Tale) {
	m := t.Message
	switch {
	case t.Pending != nil:
		w.station(w.now, "waits", "%s", t.Pending.words(m, w.now))
	case t.State == Gone && m.Mailbox != "":
		w.station(time.Time{}, "", "how is not recorded: sent, returned to its sender, or deleted; Postfix's log knows: journalctl -g %s", m.Queue)
	case t.State == Held:
		w.station(w.now, "held", "until somebody types: postsuper -H %s", m.Queue)
	}
	if len(t.Others) > 0 {
		w.printf("  attempts to send as %s meanwhile, for this message or another one:\n", m.Leaves)
		for _, a := range t.Others {
			w.attempt(a, "attempt?")
		}
	}
	if len(t.Log) > 0 {
		w.printf("  Postfix's log:\n")
		for _, l := range t.Log {
			w.station(l.Time, "", "%s", l.Text)
		}
	}
}

// words say what a message waits for.
func (p *Pending) words(m *record.Message, now time.Time) string {
	text := "for Postfix, which tries again by itself"
	if p.Mailbox != "" {
		text = "for mailbox " + p.Mailbox
	}
	if p.NotBefore != nil {
		text += ", not before " + moment(*p.NotBefore, now)
	}
	if p.Why != "" {
		text += ": " + p.Why
	}
	if p.NotBefore == nil && m.Queue != "" {
		text += "; at once: postqueue -i " + m.Queue
	}
	return text
}
