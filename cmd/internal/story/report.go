package story

import (
	"cmp"
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/sendas/sendas/internal/record"
)

// A Report sums up what was sent in a time. Its JSON keys are stable.
type Report struct {
	Since      time.Time `json:"since"`
	Until      time.Time `json:"until"`
	Observed   int       `json:"observed"`   // messages that the milter only observed: what is refused and deferred of them is what would have been
	Clients    []*Sum    `json:"clients"`    // by what they submitted
	Identities []*Sum    `json:"identities"` // by what was accepted as them
	Mailboxes  []*Sum    `json:"mailboxes"`  // by what Microsoft was handed
}

// A Sum is what one client, identity or mailbox did. Numbers of clients and identities are the
// milter's; of mailboxes, the token service's.
type Sum struct {
	Name       string `json:"name"` // "" is strangers
	Messages   int    `json:"messages"`
	Recipients int    `json:"recipients"`
	Refused    int    `json:"refused"`  // messages, for good
	Deferred   int    `json:"deferred"` // messages of clients that were asked to come again; attempts of mailboxes that were put off
	// Waited is for how long attempts waited for the mailbox, in seconds, in sum; Longest is the longest.
	// Clients and identities have none.
	Waited  float64 `json:"waited_seconds"`
	Longest float64 `json:"longest_wait_seconds"`
	// PeakMessages are the most messages in one period of the mailbox's message limit, PeakRecipients in
	// one of its recipient limit, and the shares what part of the limit that is; 0 where there is none.
	PeakMessages   int     `json:"peak_messages"`
	PeakRecipients int     `json:"peak_recipients"`
	MessageShare   float64 `json:"peak_messages_share"`
	RecipientShare float64 `json:"peak_recipients_share"`

	messages, recipients window
}

// Limits are those of a mailbox; ok is false where there is none of that name.
type Limits func(mailbox string) (messages, recipients Limit, ok bool)

// A Limit is so many in any such time; 0 is none.
type Limit struct {
	N   int
	Per time.Duration
}

// window finds the most that fell into any time of a length.
type window struct {
	events []event
	sum    int
	peak   int
}

type event struct {
	at time.Time
	n  int
}

// add takes an event, which is later than those before it.
func (w *window) add(at time.Time, n int, per time.Duration) {
	w.events = append(w.events, event{at, n})
	w.sum += n
	drop := 0
	for drop < len(w.events) && at.Sub(w.events[drop].at) >= per {
		w.sum -= w.events[drop].n
		drop++
	}
	w.events = w.events[drop:]
	w.peak = max(w.peak, w.sum)
}

// Report sums up a time.
func (b *Book) Report(ctx context.Context, since, until time.Time, limits Limits) (*Report, error) {
	clients, identities, mailboxes, observed := make(sums), make(sums), make(sums), 0
	_, err := of(b.milter, func(r *record.Reader) (any, error) {
		return nil, r.Walk(ctx, since, func(m *record.Message) error {
			if m.Time.Before(until) {
				countMessage(clients, identities, m)
				if m.Observed {
					observed++
				}
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	_, err = of(b.token, func(r *record.Reader) (any, error) {
		return nil, r.WalkAttempts(ctx, since, func(a *record.Attempt) error {
			if a.Time.Before(until) && a.Mailbox != "" {
				countAttempt(mailboxes.of(a.Mailbox), a, limits)
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return &Report{Since: since.UTC(), Until: until.UTC(), Observed: observed, Clients: clients.list(), Identities: identities.list(), Mailboxes: mailboxes.list()}, nil
}

func countMessage(clients, identities sums, m *record.Message) {
	list := []*Sum{clients.of(submitter(m))}
	if m.Identity != "" {
		list = append(list, identities.of(m.Identity))
	}
	for _, s := range list {
		if m.Observed { // it went on, whatever would have become of it
			s.Messages++
			s.Recipients += m.Count
		}
		switch m.Action {
		case "reject":
			s.Refused++
		case "defer":
			s.Deferred++
		default:
			if !m.Observed {
				s.Messages++
				s.Recipients += m.Count
			}
		}
	}
}

// submitter is the client of a message, "" for strangers. While the milter only observes, that is what
// is to be found out: a stranger is called by its login, or its address and name.
func submitter(m *record.Message) string {
	switch {
	case m.Client != "" || !m.Observed:
		return m.Client
	case m.Login != "":
		return "(login " + m.Login + ")"
	case m.PTR != "" && m.Addr.IsValid():
		return "(" + m.Addr.String() + " " + m.PTR + ")"
	case m.Addr.IsValid():
		return "(" + m.Addr.String() + ")"
	}
	return ""
}

func countAttempt(s *Sum, a *record.Attempt, limits Limits) {
	s.Waited += a.Waited.Seconds()
	s.Longest = max(s.Longest, a.Waited.Seconds())
	switch {
	case a.Class == record.Accepted || a.Class == record.Unseen:
		s.Messages++
		s.Recipients += a.Accepted
		messages, recipients, ok := limits(a.Mailbox)
		if !ok {
			return
		}
		if messages.N > 0 {
			s.messages.add(a.Time, 1, messages.Per)
			s.PeakMessages, s.MessageShare = s.messages.peak, share(s.messages.peak, messages.N)
		}
		if recipients.N > 0 {
			s.recipients.add(a.Time, a.Accepted, recipients.Per)
			s.PeakRecipients, s.RecipientShare = s.recipients.peak, share(s.recipients.peak, recipients.N)
		}
	case a.Final:
		s.Refused++
	default:
		s.Deferred++
	}
}

// share is a part of a limit, to the thousandth.
func share(n, of int) float64 { return float64(1000*n/of) / 1000 }

// sums are by name.
type sums map[string]*Sum

func (s sums) of(name string) *Sum {
	if s[name] == nil {
		s[name] = &Sum{Name: name}
	}
	return s[name]
}

// list has those with most messages first.
func (s sums) list() []*Sum {
	return slices.SortedFunc(maps.Values(s), func(a, b *Sum) int { return cmp.Or(b.Messages-a.Messages, cmp.Compare(a.Name, b.Name)) })
}

// Write prints a report for people.
func (r *Report) Write(w io.Writer) error {
	const form = "2006-01-02 15:04"
	fmt.Fprintf(w, "from %s to %s\n", r.Since.Local().Format(form), r.Until.Local().Format(form))
	if r.Observed > 0 {
		fmt.Fprintf(w, "%d messages were only observed: they went on, and refused and deferred is what would have been\n", r.Observed)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, part := range r.parts() {
		if part.name == mailboxPart {
			continue
		}
		fmt.Fprintf(t, "\n%s\tmessages\trecipients\trefused\tdeferred\t\n", part.name)
		for _, s := range part.sums {
			fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t\n", cmp.Or(s.Name, "(strangers)"), s.Messages, s.Recipients, s.Refused, s.Deferred)
		}
	}
	fmt.Fprintf(t, "\n%s\tmessages\trecipients\trefused\tput off\twaited\tlongest\tpeak\tof limit\trecipients at peak\tof limit\t\n", mailboxPart)
	for _, s := range r.Mailboxes {
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%s\t%s\t%d\t%s\t%d\t%s\t\n", s.Name, s.Messages, s.Recipients, s.Refused, s.Deferred, seconds(s.Waited), seconds(s.Longest),
			s.PeakMessages, percent(s.MessageShare), s.PeakRecipients, percent(s.RecipientShare))
	}
	return t.Flush()
}

const mailboxPart = "mailbox"

type part struct {
	name string
	sums []*Sum
}

func (r *Report) parts() []part {
	return []part{{"client", r.Clients}, {"identity", r.Identities}, {mailboxPart, r.Mailboxes}}
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(time.Second).String()
}

func percent(share float64) string { return fmt.Sprintf("%.0f %%", 100*share) }

// WriteCSV prints a report as one table (RFC 4180).
func (r *Report) WriteCSV(w io.Writer) error {
	c := csv.NewWriter(w)
	c.Write([]string{"kind", "name", "messages", "recipients", "refused", "deferred", "waited_seconds", "longest_wait_seconds", "peak_messages", "peak_messages_share", "peak_recipients", "peak_recipients_share"})
	for _, part := range r.parts() {
		for _, s := range part.sums {
			c.Write([]string{part.name, s.Name, strconv.Itoa(s.Messages), strconv.Itoa(s.Recipients), strconv.Itoa(s.Refused), strconv.Itoa(s.Deferred), number3(s.Waited), number3(s.Longest),
				strconv.Itoa(s.PeakMessages), number3(s.MessageShare), strconv.Itoa(s.PeakRecipients), number3(s.RecipientShare)})
		}
	}
	c.Flush()
	return c.Error()
}

func number3(f float64) string { return strconv.FormatFloat(f, 'f', 3, 64) }
