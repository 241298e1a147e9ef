package record

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// A Query says what is looked for. The zero value is everything; what is set must all hold.
type Query struct {
	// From and To are addresses, in any case, or domains with their "@": the sender that was asked
	// for, in the envelope or in From, or as whom it left; and a recipient.
	From, To string
	// Client is the configuration's name of a client, or the address, PTR or login of one.
	Client string
	// Mailbox is the address of a mailbox, or the name of a route.
	Mailbox string
	// Action is what became of it: Message.Action; of attempts, their class.
	Action string
	// Waits is for messages that Postfix has, for all that is known.
	Waits bool

	Since, Until time.Time // of the decision or look-up; zero is unbounded
	Before       int64     // numbers below it alone, to go on where an answer ended; 0: all
	Limit        int       // how many at most; 0 is MaxAnswer
}

// MaxAnswer bounds an answer.
const MaxAnswer = 10_000

// A Reader reads a half, while it may be written. It is safe for concurrent use.
type Reader struct {
	db   *sql.DB
	half Half
	path string
}

// OpenReader opens a half for reading. An error that is [fs.ErrNotExist] says that nothing was ever
// kept. The caller closes it.
func OpenReader(ctx context.Context, path string, half Half) (*Reader, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", dsn(path, "ro", "busy_timeout(2000)", "query_only(1)", "cache_size(-4096)", "temp_store(MEMORY)"))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	r := &Reader{db, half, path}
	app, v, err := identify(ctx, db)
	if err == nil {
		err = ours(path, half, app, v)
	}
	if err != nil {
		db.Close()
		return nil, explain(err)
	}
	return r, nil
}

// Close closes the file.
func (r *Reader) Close() error { return r.db.Close() }

// Messages returns what was found, newest first.
func (r *Reader) Messages(ctx context.Context, q Query) ([]*Message, error) {
	var list []*Message
	query, args, err := r.search(ctx, "message", messageColumns, q)
	if err != nil {
		return nil, err
	}
	return list, r.each(ctx, query, args, func(s scanner) error {
		m := new(Message)
		list = append(list, m)
		return m.scan(s)
	})
}

// Attempts returns what was found, newest first. To, Client and Waits find none: attempts know of
// neither.
func (r *Reader) Attempts(ctx context.Context, q Query) ([]*Attempt, error) {
	var list []*Attempt
	query, args, err := r.search(ctx, "attempt", attemptColumns, q)
	if err != nil {
		return nil, err
	}
	return list, r.each(ctx, query, args, func(s scanner) error {
		a := new(Attempt)
		list = append(list, a)
		return a.scan(s)
	})
}

// Walk calls f with each message from since on, oldest first, for whoever wants all of them. The
// message is f's only until it returns.
func (r *Reader) Walk(ctx context.Context, since time.Time, f func(*Message) error) error {
	var m Message
	return r.each(ctx, "SELECT id, "+messageColumns+" FROM message WHERE time >= ? ORDER BY time", []any{millis(since)}, func(s scanner) error {
		if err := m.scan(s); err != nil {
			return err
		}
		return f(&m)
	})
}

// WalkAttempts is Walk for attempts.
func (r *Reader) WalkAttempts(ctx context.Context, since time.Time, f func(*Attempt) error) error {
	var a Attempt
	return r.each(ctx, "SELECT id, "+attemptColumns+" FROM attempt WHERE time >= ? ORDER BY time", []any{millis(since)}, func(s scanner) error {
		if err := a.scan(s); err != nil {
			return err
		}
		return f(&a)
	})
}

// ByQueue returns the messages that had a queue id, newest first: Postfix may give one again.
func (r *Reader) ByQueue(ctx context.Context, id string) ([]*Message, error) {
	return r.some(ctx, "queue = ? AND queue <> ''", id)
}

// ByMessageID returns the messages with a Message-ID, given without angle brackets, newest first.
func (r *Reader) ByMessageID(ctx context.Context, id string) ([]*Message, error) {
	return r.some(ctx, "message_id = ? AND message_id <> ''", id)
}

// ByNumber returns a message, or nil.
func (r *Reader) ByNumber(ctx context.Context, n int64) (*Message, error) {
	list, err := r.some(ctx, "id = ?", n)
	if len(list) == 0 {
		return nil, err
	}
	return list[0], err
}

// Oldest returns the first message that there is, or nil.
func (r *Reader) Oldest(ctx context.Context) (*Message, error) {
	list, err := r.some(ctx, "id = (SELECT min(id) FROM message)")
	if len(list) == 0 {
		return nil, err
	}
	return list[0], err
}

func (r *Reader) some(ctx context.Context, condition string, args ...any) ([]*Message, error) {
	var list []*Message
	return list, r.each(ctx, "SELECT id, "+messageColumns+" FROM message WHERE "+condition+" ORDER BY id DESC LIMIT 1000", args, func(s scanner) error {
		m := new(Message)
		list = append(list, m)
		return m.scan(s)
	})
}

// AttemptsByMessageID returns the attempts that Microsoft accepted under a Message-ID, newest first.
func (r *Reader) AttemptsByMessageID(ctx context.Context, id string) ([]*Attempt, error) {
	var list []*Attempt
	return list, r.each(ctx, "SELECT id, "+attemptColumns+" FROM attempt WHERE message_id = ? AND message_id <> '' ORDER BY id DESC LIMIT 1000", []any{id}, func(s scanner) error {
		a := new(Attempt)
		list = append(list, a)
		return a.scan(s)
	})
}

// Deferrals returns what Postfix said of a message, oldest first.
func (r *Reader) Deferrals(ctx context.Context, message int64) ([]Deferral, error) {
	var list []Deferral
	return list, r.each(ctx, "SELECT time, text FROM deferral WHERE message = ? ORDER BY time", []any{message}, func(s scanner) error {
		d := Deferral{Message: message}
		var at int64
		err := s.Scan(&at, &d.Text)
		d.Time = moment(at)
		list = append(list, d)
		return err
	})
}

// each reads rows.
func (r *Reader) each(ctx context.Context, query string, args []any, f func(scanner) error) error {
	rows, err := r.db.QueryContext(ctx, query, args...)
	if err != nil {
		return r.wrap(err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows); err != nil {
			return err
		}
	}
	return r.wrap(rows.Err())
}

func (r *Reader) wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("reading %s: %w", r.path, explain(err))
}

// slack is how many messages may stand out of the order of their times: they are kept as they are
// handed over, and some take longer.
const slack = 1000

// search makes the statement of a query. Each condition is a list of numbers in order, which the
// primary key of the words has ready. Lists are merged from the newest on (INTERSECT), until the limit
// ends that; where there are several and one of them is short, it is looked up in the others. Nothing
// is sorted.
func (r *Reader) search(ctx context.Context, table, columns string, q Query) (string, []any, error) {
	from, to, err := r.numbers(ctx, table, q)
	if err != nil {
		return "", nil, err
	}
	limit := q.Limit
	if limit <= 0 || limit > MaxAnswer {
		limit = MaxAnswer
	}
	times, timeArgs := "", []any(nil)
	if !q.Since.IsZero() {
		times, timeArgs = times+" AND time >= ?", append(timeArgs, millis(q.Since))
	}
	if !q.Until.IsZero() {
		times, timeArgs = times+" AND time < ?", append(timeArgs, millis(q.Until))
	}
	lists := q.lists(table)
	short, err := r.shortestFirst(ctx, lists, from, to)
	if err != nil {
		return "", nil, err
	}
	if len(lists) == 0 {
		args := append(append([]any{from, to}, timeArgs...), limit)
		return "SELECT id, " + columns + " FROM " + table + " WHERE id >= ? AND id < ?" + times + " ORDER BY id DESC LIMIT ?", args, nil
	}
	var merged, probed []string
	var args []any
	for i, l := range lists {
		if i == 0 || !short {
			merged, args = append(merged, l.text+" AND id >= ? AND id < ?"), append(append(args, l.args...), from, to)
		} else {
			probed, args = append(probed, " AND EXISTS ("+l.text+" AND id = found.id)"), append(args, l.args...)
		}
	}
	inner := "SELECT id FROM (" + strings.Join(merged, " INTERSECT ") + " ORDER BY id DESC) AS found WHERE true" + strings.Join(probed, "") + " LIMIT ?"
	args = append(append(args, limit+slack/10), timeArgs...) // a few more, since the slack may take some away
	return "SELECT id, " + columns + " FROM " + table + " WHERE id IN (" + inner + ")" + times + " ORDER BY id DESC LIMIT ?", append(args, limit), nil
}

// A list is a condition as a list of numbers.
type list struct {
	text   string // a statement that ends within its WHERE
	args   []any
	length int // as far as it was counted
}

// lists returns the lists of numbers of which those are wanted that are in all; the longest come
// last, mostly.
func (q *Query) lists(table string) (lists []*list) {
	if q.Waits {
		lists = append(lists, &list{text: "SELECT id FROM " + table + " WHERE waits"})
	}
	for _, c := range []word{{wordTo, q.To}, {wordFrom, q.From}, {wordClient, q.Client}, {wordMailbox, q.Mailbox}, {wordAction, q.Action}} {
		if c.text != "" {
			lists = append(lists, &list{text: "SELECT id FROM word WHERE kind = ? AND text = ?", args: []any{c.kind, strings.ToLower(c.text)}})
		}
	}
	return lists
}

// counted is how far the length of a list is counted: some milliseconds. A shorter one is short.
const counted = 30_000

// shortestFirst sorts several lists by their length in a range of numbers, and reports whether
// the first one is short.
func (r *Reader) shortestFirst(ctx context.Context, lists []*list, from, to int64) (short bool, err error) {
	if len(lists) < 2 {
		return false, nil
	}
	for _, l := range lists {
		err := r.db.QueryRowContext(ctx, "SELECT count(*) FROM ("+l.text+" AND id >= ? AND id < ? LIMIT ?)", append(l.args[:len(l.args):len(l.args)], from, to, counted)...).Scan(&l.length)
		if err != nil {
			return false, r.wrap(err)
		}
	}
	slices.SortStableFunc(lists, func(a, b *list) int { return a.length - b.length })
	return lists[0].length < counted, nil
}

// numbers returns between which numbers the answer lies: from the first on and below the second.
func (r *Reader) numbers(ctx context.Context, table string, q Query) (from, to int64, err error) {
	to = 1<<63 - 1
	if q.Before > 0 {
		to = q.Before
	}
	if !q.Since.IsZero() {
		var first sql.NullInt64
		err := r.db.QueryRowContext(ctx, "SELECT min(id) FROM (SELECT id FROM "+table+" WHERE time >= ? ORDER BY time LIMIT ?)", millis(q.Since), slack).Scan(&first)
		if err != nil {
			return 0, 0, r.wrap(err)
		}
		if from = to; first.Valid {
			from = first.Int64
		}
	}
	if !q.Until.IsZero() {
		var last sql.NullInt64
		err := r.db.QueryRowContext(ctx, "SELECT max(id) FROM (SELECT id FROM "+table+" WHERE time < ? ORDER BY time DESC LIMIT ?)", millis(q.Until), slack).Scan(&last)
		if err != nil {
			return 0, 0, r.wrap(err)
		}
		to = min(to, last.Int64+1)
	}
	return from, to, nil
}
