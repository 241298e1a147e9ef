package story

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/internal/record"
)

// number writes the number of a message ("m17") or an attempt ("t17").
func number(half string, n int64) string { return half + strconv.FormatInt(n, 10) }

// A Tale is all that is known of one message. Its JSON keys are stable.
type Tale struct {
	Item
	Deferrals []record.Deferral `json:"deferrals"` // what Postfix noted, oldest first
	// Others are attempts of the sender while Postfix had the message, which may have been for it or for
	// another one; oldest first, and no more than MaxOthers, the newest.
	Others  []*record.Attempt `json:"untied_attempts"`
	Log     []Line            `json:"postfix_log"` // Postfix's own lines, where its log can be read
	Pending *Pending          `json:"pending"`     // what is still to come; null where nothing is
}

// MaxOthers is how many attempts of a sender are told that cannot be tied.
const MaxOthers = 20

// Pending is what a message waits for. Its JSON keys are stable.
type Pending struct {
	Mailbox   string     `json:"mailbox"`    // "" where it waits for none
	NotBefore *time.Time `json:"not_before"` // null where nobody knows
	Why       string     `json:"why"`
}

// A Live tells when a mailbox can send next, and why not now; the zero time is at once.
type Live func(ctx context.Context, mailbox string) (opens time.Time, why string, known bool)

// Story returns what is known of the messages of an id: a queue id, a Message-ID, or the number of a
// message or attempt as a list has it. Several may have had the same one; the newest comes first.
func (b *Book) Story(ctx context.Context, id string, live Live, now time.Time) ([]*Tale, error) {
	id = strings.Trim(strings.TrimSpace(id), "<>")
	found, err := b.named(ctx, id)
	if err != nil {
		return nil, err
	}
	var list []*Tale
	for _, m := range found {
		t, err := b.tale(ctx, m, live, now)
		if err != nil {
			return nil, err
		}
		list = append(list, t)
	}
	if len(list) > 0 {
		return list, nil
	}
	if list, err = b.attempt(ctx, id); err != nil || len(list) > 0 {
		return list, err
	}
	return nil, exit.Errorf(exit.Failed, `"sendas find --from ADDRESS" or "--to ADDRESS" lists messages`, "no message is recorded under %q", id)
}

// named finds messages by whatever names one.
func (b *Book) named(ctx context.Context, id string) ([]*record.Message, error) {
	return of(b.milter, func(r *record.Reader) ([]*record.Message, error) {
		if list, err := r.ByQueue(ctx, id); err != nil || len(list) > 0 {
			return list, err
		}
		if list, err := r.ByMessageID(ctx, id); err != nil || len(list) > 0 {
			return list, err
		}
		n, ok := numbered(id, "m")
		if !ok {
			return nil, nil
		}
		m, err := r.ByNumber(ctx, n)
		if m == nil {
			return nil, err
		}
		return []*record.Message{m}, err
	})
}

func numbered(id, half string) (int64, bool) {
	text, ok := strings.CutPrefix(id, half)
	n, err := strconv.ParseInt(text, 10, 64)
	return n, ok && err == nil
}

// attempt tells of an attempt by its number, or of those that name a Message-ID which no message has.
func (b *Book) attempt(ctx context.Context, id string) ([]*Tale, error) {
	list, err := of(b.token, func(r *record.Reader) ([]*record.Attempt, error) {
		if n, ok := numbered(id, "t"); ok && n > 0 {
			found, err := r.Attempts(ctx, record.Query{Before: n + 1, Limit: 1})
			if len(found) == 1 && found[0].Number != n {
				return nil, err
			}
			return found, err
		}
		return r.AttemptsByMessageID(ctx, id)
	})
	var tales []*Tale
	for _, a := range list {
		state := Deferred
		switch {
		case a.Class == record.Accepted:
			state = Sent
		case a.Final:
			state = Refused
		}
		tales = append(tales, &Tale{Item: Item{ID: number("t", a.Number), Time: a.Time, State: state, Attempts: []*record.Attempt{a}}})
	}
	return tales, err
}

// tale tells of a message.
func (b *Book) tale(ctx context.Context, m *record.Message, live Live, now time.Time) (*Tale, error) {
	x, err := b.item(ctx, m)
	if err != nil {
		return nil, err
	}
	t := &Tale{Item: *x}
	if t.Deferrals, err = of(b.milter, func(r *record.Reader) ([]record.Deferral, error) { return r.Deferrals(ctx, m.Number) }); err != nil {
		return nil, err
	}
	if b.log != nil && m.Queue != "" {
		if t.Log, err = b.log(ctx, m.Queue, m.Time.Add(-slack), until(m, now)); err != nil {
			return nil, err
		}
	}
	if err := b.tie(ctx, t, now); err != nil {
		return nil, err
	}
	t.State = stateOf(m, t.Attempts)
	if t.State == Waiting {
		t.Pending = b.pending(ctx, t, live, now)
	}
	return t, nil
}

// until is when a message had left, at the latest.
func until(m *record.Message, now time.Time) time.Time {
	if m.Left.IsZero() {
		return now
	}
	return m.Left.Add(slack)
}

// tie divides the attempts of the sender while Postfix had the message into those that were for it,
// and those of which nobody knows.
func (b *Book) tie(ctx context.Context, t *Tale, now time.Time) error {
	m := t.Message
	if !accepted(m) || m.Leaves == "" {
		return nil
	}
	all, err := of(b.token, func(r *record.Reader) ([]*record.Attempt, error) {
		return r.Attempts(ctx, record.Query{From: m.Leaves, Since: m.Time.Add(-slack), Until: until(m, now), Limit: 1000})
	})
	if err != nil {
		return err
	}
	tied := make(map[int64]bool)
	for _, a := range t.Attempts {
		tied[a.Number] = true
	}
	alone, err := b.alone(ctx, m, now)
	if err != nil {
		return err
	}
	for _, a := range all {
		if possible(m, a) && !tied[a.Number] && (noted(t, a, all, alone) || logged(t, a, all)) {
			tied[a.Number] = true
			t.Attempts = append(t.Attempts, a)
		}
	}
	for _, a := range all {
		if possible(m, a) && !tied[a.Number] && a.Class != record.Accepted && len(t.Others) < MaxOthers {
			t.Others = append(t.Others, a)
		}
	}
	slices.SortFunc(t.Attempts, func(x, y *record.Attempt) int { return x.Time.Compare(y.Time) })
	slices.Reverse(t.Others)
	return nil
}

// alone reports whether no other message of the sender was Postfix's at the same time, for all that is
// recorded.
func (b *Book) alone(ctx context.Context, m *record.Message, now time.Time) (bool, error) {
	others, err := of(b.milter, func(r *record.Reader) ([]*record.Message, error) {
		return r.Messages(ctx, record.Query{From: m.Leaves, Until: until(m, now), Limit: 1000})
	})
	if err != nil || len(others) == 1000 {
		return false, err
	}
	for _, o := range others {
		if o.Number != m.Number && accepted(o) && strings.EqualFold(o.Leaves, m.Leaves) && (o.Left.IsZero() || o.Left.After(m.Time.Add(-slack))) {
			return false, nil
		}
	}
	return b.complete(ctx, m)
}

// complete reports whether the record reaches back far enough to know what else waited: Postfix keeps
// mail for five days.
func (b *Book) complete(ctx context.Context, m *record.Message) (bool, error) {
	oldest, err := of(b.milter, func(r *record.Reader) (*record.Message, error) { return r.Oldest(ctx) })
	if err != nil || oldest == nil {
		return false, err
	}
	const lifetime = 5 * 24 * time.Hour // maximal_queue_lifetime
	return oldest.Time.Before(m.Time.Add(-lifetime)), nil
}

// noted reports whether Postfix noted of the message what the attempt was answered, and no other
// attempt was answered so meanwhile.
func noted(t *Tale, a *record.Attempt, all []*record.Attempt, alone bool) bool {
	words := said(a.Reply)
	if len(words) < minWords {
		return false
	}
	for _, d := range t.Deferrals {
		if !strings.Contains(squeezed(d.Text), words) || ended(a).After(d.Time.Add(slack)) {
			continue
		}
		n := 0
		for _, other := range all {
			if said(other.Reply) == words && !ended(other).After(d.Time.Add(slack)) {
				n++
			}
		}
		return n == 1 && (alone || unique(words))
	}
	return false
}

// minWords is how long an answer must be to tell one from another.
const minWords = 30

// unique reports whether an answer has what Microsoft gives to one session alone: a moment to the
// millisecond with a number, as in "[AM0PR06CA0126.eurprd06.prod.outlook.com 2024-02-14T14:50:26.590Z
// 08DC2D372B4C3DED]". Others may be given to several messages.
func unique(words string) bool {
	for f := range strings.FieldsSeq(words) {
		if _, err := time.Parse(time.RFC3339Nano, strings.Trim(f, "[]")); err == nil && strings.Contains(f, ".") {
			return true
		}
	}
	return false
}

// said is an answer without its code, which sendas may have made a temporary one, squeezed.
func said(reply string) string {
	f := strings.Fields(strings.TrimSuffix(reply, "…"))
	for len(f) > 0 && strings.Trim(f[0], "0123456789.-") == "" {
		f = f[1:]
	}
	return strings.Join(f, " ")
}

// squeezed has one blank where there were more.
func squeezed(text string) string { return strings.Join(strings.Fields(text), " ") }

// pending says what a message waits for.
func (b *Book) pending(ctx context.Context, t *Tale, live Live, now time.Time) *Pending {
	m := t.Message
	p := &Pending{Mailbox: m.Mailbox}
	if live != nil && m.Mailbox != "" {
		if opens, why, known := live(ctx, m.Mailbox); known {
			if opens.After(now) {
				p.NotBefore = &opens
			}
			p.Why = why
			if why != "" || !opens.IsZero() {
				return p
			}
		}
	}
	if a := b.lastDenied(ctx, m, now); a != nil {
		p.Why = a.Meaning
		if a.Opens.After(now) {
			p.NotBefore = &a.Opens
		}
		return p
	}
	if n := len(t.Deferrals); n > 0 {
		p.Why = t.Deferrals[n-1].Text
	}
	return p
}

// lastDenied is the last look-up for the mailbox, where it brought no lease.
func (b *Book) lastDenied(ctx context.Context, m *record.Message, now time.Time) *record.Attempt {
	if m.Mailbox == "" {
		return nil
	}
	list, err := of(b.token, func(r *record.Reader) ([]*record.Attempt, error) {
		return r.Attempts(ctx, record.Query{Mailbox: m.Mailbox, Since: m.Time.Add(-slack), Limit: 1})
	})
	if err != nil || len(list) == 0 || list[0].Class != record.NotNow {
		return nil
	}
	return list[0]
}
