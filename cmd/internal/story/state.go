package story

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/internal/record"
)

// A State is what became of a message. The words are stable, and what --verdict takes.
type State string

// The states.
const (
	Sent      State = "sent"      // Microsoft has it, for all recipients that it took
	Waiting   State = "waiting"   // Postfix has it
	Refused   State = "refused"   // sendas refused it, or Microsoft did, for good
	Deferred  State = "deferred"  // the client was asked to come again
	Held      State = "held"      // in Postfix's hold queue, for a limit
	Discarded State = "discarded" // the bounce of a bounce
	Elsewhere State = "elsewhere" // Postfix delivers it without sendas
	Gone      State = "gone"      // it has left the queue, and nothing says how: by another route, returned, or deleted
	Watched   State = "watched"   // the milter only observed
)

// States are all of them, in the order in which they are shown.
var States = []State{Sent, Waiting, Refused, Deferred, Held, Discarded, Elsewhere, Gone, Watched}

// An Item is one line of a list: a message, or an attempt that cannot be tied to one. Its JSON keys are
// stable.
type Item struct {
	ID      string          `json:"id"` // by which Story finds it
	Time    time.Time       `json:"time"`
	State   State           `json:"state"`
	Message *record.Message `json:"message,omitempty"`
	// Attempts are those that are tied to the message, oldest first; of an item without one, the attempt.
	Attempts []*record.Attempt `json:"attempts"`
}

// idOf is what names a message: Postfix's queue id, else its number.
func idOf(m *record.Message) string { return cmp.Or(m.Queue, number("m", m.Number)) }

// accepted reports whether a message came to be Postfix's.
func accepted(m *record.Message) bool {
	return m.Observed || m.Action == "accept" || m.Action == "hold"
}

// stateOf says what became of a message with the attempts that are tied to it.
func stateOf(m *record.Message, tied []*record.Attempt) State {
	switch {
	case m.Observed:
		return Watched
	case m.Action == "reject":
		return Refused
	case m.Action == "defer":
		return Deferred
	case m.Action == record.Discarded:
		return Discarded
	case m.Action == "pass":
		return Elsewhere
	}
	taken, refused := 0, 0
	for _, a := range tied {
		if a.Class == record.Accepted {
			taken += a.Accepted
			refused += a.Refused
		}
	}
	last := lastOf(tied)
	switch {
	case taken > 0 && (taken+refused >= m.Count || !m.Waits):
		return Sent
	case last != nil && last.Final && !m.Waits:
		return Refused
	case m.Waits && m.Action == "hold":
		return Held
	case m.Waits:
		return Waiting
	}
	return Gone
}

func lastOf(list []*record.Attempt) *record.Attempt {
	if len(list) == 0 {
		return nil
	}
	return list[len(list)-1]
}

// ended is when an attempt ended.
func ended(a *record.Attempt) time.Time { return a.Time.Add(a.Took) }

// slack is how far the clocks of the two services' entries, and their rounding, may be apart.
const slack = 2 * time.Second

// possible reports whether an attempt can have been one of a message's, by sender and time: it was not
// over before the message came, and did not begin after it was found gone.
func possible(m *record.Message, a *record.Attempt) bool {
	return accepted(m) && strings.EqualFold(m.Leaves, a.Sender) && !ended(a).Before(m.Time.Add(-slack)) && (m.Left.IsZero() || !a.Time.After(m.Left.Add(slack)))
}

// taken returns the attempts by which Microsoft took a message: those that name its Message-ID, where
// no other message of that id can have been meant.
func (b *Book) taken(ctx context.Context, m *record.Message) ([]*record.Attempt, error) {
	if m.MessageID == "" || !accepted(m) {
		return nil, nil
	}
	attempts, err := of(b.token, func(r *record.Reader) ([]*record.Attempt, error) { return r.AttemptsByMessageID(ctx, m.MessageID) })
	if err != nil || len(attempts) == 0 {
		return nil, err
	}
	same, err := of(b.milter, func(r *record.Reader) ([]*record.Message, error) { return r.ByMessageID(ctx, m.MessageID) })
	if err != nil {
		return nil, err
	}
	var list []*record.Attempt
	for _, a := range slices.Backward(attempts) {
		if possible(m, a) && !slices.ContainsFunc(same, func(other *record.Message) bool { return other.Number != m.Number && possible(other, a) }) {
			list = append(list, a)
		}
	}
	return list, nil
}

// item makes the line of a message.
func (b *Book) item(ctx context.Context, m *record.Message) (*Item, error) {
	tied, err := b.taken(ctx, m)
	if err != nil {
		return nil, err
	}
	return &Item{ID: idOf(m), Time: m.Time, State: stateOf(m, tied), Message: m, Attempts: tied}, nil
}

// A Query says which messages are looked for.
type Query struct {
	record.Query
	State State // "" is any
}

// pages bounds how many pages are looked through for a state that no index has; pageSize is one.
const (
	pages    = 50
	pageSize = 200
)

// actionsOf are the actions of the milter that make a state by themselves.
var actionsOf = map[State]string{Refused: "reject", Deferred: "defer", Held: "hold", Discarded: record.Discarded, Elsewhere: "pass", Sent: "accept", Gone: "accept"}

// Find returns what was found, newest first, Limit at most. more reports that there is more, or that
// not everything could be looked through.
func (b *Book) Find(ctx context.Context, q Query) (list []*Item, more bool, err error) {
	limit := q.Limit
	if limit <= 0 {
		limit = record.MaxAnswer
	}
	page := q.Query
	page.Limit = min(max(limit+1, pageSize), record.MaxAnswer)
	page.Waits = q.State == Waiting
	page.Action = cmp.Or(actionsOf[q.State], page.Action)
	for range pages {
		found, err := of(b.milter, func(r *record.Reader) ([]*record.Message, error) { return r.Messages(ctx, page) })
		if err != nil {
			return nil, false, err
		}
		for _, m := range found {
			page.Before = m.Number
			x, err := b.item(ctx, m)
			if err != nil {
				return nil, false, err
			}
			if q.State != "" && x.State != q.State {
				continue
			}
			if list = append(list, x); len(list) > limit {
				break
			}
		}
		if more = len(found) == page.Limit; len(list) > limit || !more {
			break
		}
	}
	if q.State == Refused {
		if list, err = b.withRefusals(ctx, q, list); err != nil {
			return nil, false, err
		}
	}
	if len(list) > limit {
		return list[:limit], true, nil
	}
	return list, more, nil
}

// withRefusals adds what Microsoft refused for good. Such a message leaves the queue at once, so the
// list can not tell which it was: the attempt stands for it.
func (b *Book) withRefusals(ctx context.Context, q Query, list []*Item) ([]*Item, error) {
	if q.To != "" || q.Client != "" { // an attempt knows neither
		return list, nil
	}
	page := record.Query{From: q.From, Mailbox: q.Mailbox, Since: q.Since, Until: q.Until, Limit: pageSize}
	limit := len(list) + pageSize
	for range pages {
		found, err := of(b.token, func(r *record.Reader) ([]*record.Attempt, error) { return r.Attempts(ctx, page) })
		if err != nil {
			return nil, err
		}
		for _, a := range found {
			page.Before = a.Number
			if a.Final {
				list = append(list, &Item{ID: number("t", a.Number), Time: a.Time, State: Refused, Attempts: []*record.Attempt{a}})
			}
		}
		if len(found) < pageSize || len(list) >= limit {
			break
		}
	}
	slices.SortStableFunc(list, func(x, y *Item) int { return y.Time.Compare(x.Time) })
	return list, nil
}
