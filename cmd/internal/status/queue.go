package status

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sendas/sendas/milter/queue"
)

// longInQueue is from when on a message in Postfix's queue needs somebody.
const longInQueue = time.Hour

// queueState says in one line what waits in Postfix's queue, and how much that matters. What is not
// known is never said to be nothing.
func (v *view) queueState() (words, level string) {
	switch {
	case v.milterAt == "":
		return "not known: milter.http is off", calm
	case v.milterErr != nil:
		return "NOT KNOWN: the milter is down, which reads it", hot
	case v.milter == nil:
		return "not known: the milter does not tell", calm
	}
	return queueWords(v.milter.Queue, v.milter.Time)
}

// queueWords words a queue; s is nil where nobody has read it yet.
func queueWords(s *queue.Status, now time.Time) (words, level string) {
	switch {
	case s == nil:
		return "not known yet", calm
	case !s.Readable || s.Messages == nil:
		return "NOT KNOWN: it cannot be read: " + s.Error, warm
	case *s.Messages == 0:
		return "empty" + heldWords(s), calm
	}
	words = countOf(*s.Messages, "message", "messages")
	if s.Oldest != nil {
		words += ", the oldest came in " + whenWords(s.Oldest, now)
		if len(s.Stalls) > 0 || now.Sub(*s.Oldest) >= longInQueue {
			level = hot
		}
	}
	return words + deferredWords(s) + heldWords(s), level
}

// deferredWords says why messages have been deferred.
func deferredWords(s *queue.Status) string {
	if len(s.Deferred) == 0 {
		return ""
	}
	var list []string
	for _, d := range s.Deferred {
		list = append(list, fmt.Sprintf("%s for %s", number(d.Messages), d.Reason))
	}
	return "; deferred: " + strings.Join(list, ", ")
}

// heldWords says how many are held, which do not leave by themselves.
func heldWords(s *queue.Status) string {
	for _, q := range s.Queues {
		if q.Queue == "hold" && q.Messages > 0 {
			return "; " + number(q.Messages) + " held"
		}
	}
	return ""
}

// placeName names a way out.
func placeName(p *queue.PlaceStatus) string {
	switch {
	case p.Mailbox != "":
		return p.Mailbox
	case p.Route != "":
		return "route " + p.Route
	}
	return "(no mailbox)"
}

// writeQueue prints the table of what waits, by mailbox or route.
func writeQueue(w io.Writer, s *queue.Status, now time.Time) {
	if s == nil || len(s.Waiting) == 0 {
		return
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "in Postfix's queue for\tmessages\trecipients\toldest")
	for i := range s.Waiting {
		p := &s.Waiting[i]
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", placeName(p), number(p.Messages), number(p.Recipients), whenWords(p.Oldest, now))
	}
	t.Flush()
}
