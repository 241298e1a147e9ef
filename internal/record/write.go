package record

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// An entry is something to keep.
type entry interface {
	weight() int64 // its memory, in bytes, about
	write(*transaction) error
}

// item is an entry on its way, with what it weighed as it came: writing cuts texts.
type item struct {
	entry
	bytes int64
}

// writer is the one that writes a half, from one goroutine.
type writer struct {
	half  Half
	db    *sql.DB
	spare int64 // bytes that are left free on the disk
	path  string

	missing map[int64]time.Time // by number: of messages that the last reading of the queue did not name, when that was
}

// transaction writes entries, with statements that are prepared once for each.
type transaction struct {
	ctx   context.Context
	tx    *sql.Tx
	w     *writer
	set   Settings
	stmts map[string]*sql.Stmt
}

// errSpare is the error of a disk that is nearly full. Postfix's queue lies on it, often, and needs
// what is left.
var errSpare = errors.New("the disk is nearly full")

// write writes a batch, all of it or nothing.
func (w *writer) write(ctx context.Context, batch []item, set Settings) error {
	if err := w.room(); err != nil {
		return err
	}
	return w.transact(ctx, set, func(t *transaction) error {
		for _, x := range batch {
			if err := x.write(t); err != nil {
				return err
			}
		}
		return nil
	})
}

func (w *writer) transact(ctx context.Context, set Settings, f func(*transaction) error) error {
	tx, err := w.db.BeginTx(ctx, nil)
	if err != nil {
		return explain(err)
	}
	t := &transaction{ctx: ctx, tx: tx, w: w, set: set, stmts: make(map[string]*sql.Stmt)}
	if err := f(t); err != nil {
		return errors.Join(explain(err), ignoreDone(tx.Rollback()))
	}
	return explain(tx.Commit())
}

func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}

// room looks whether the disk has some left for others.
func (w *writer) room() error {
	var s unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(w.path), &s); err != nil {
		return err
	}
	if free := int64(s.Bavail) * s.Bsize; free < w.spare {
		return fmt.Errorf("%w: %d MB are left, and the record leaves the last %d MB to others", errSpare, free>>20, w.spare>>20)
	}
	return nil
}

func (t *transaction) stmt(query string) (*sql.Stmt, error) {
	if s := t.stmts[query]; s != nil {
		return s, nil
	}
	s, err := t.tx.PrepareContext(t.ctx, query)
	if err == nil {
		t.stmts[query] = s
	}
	return s, err
}

func (t *transaction) exec(query string, args ...any) (sql.Result, error) {
	s, err := t.stmt(query)
	if err != nil {
		return nil, err
	}
	return s.ExecContext(t.ctx, args...)
}

// get reads one row; false: there is none.
func (t *transaction) get(query string, args []any, dest ...any) (bool, error) {
	s, err := t.stmt(query)
	if err != nil {
		return false, err
	}
	err = s.QueryRowContext(t.ctx, args...).Scan(dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// insert writes a row and its words.
func (t *transaction) insert(table, columns string, values []any, words []word) error {
	r, err := t.exec("INSERT INTO "+table+" ("+columns+") VALUES ("+marks(len(values))+")", values...)
	if err != nil {
		return err
	}
	id, err := r.LastInsertId()
	if err != nil {
		return err
	}
	return t.index(id, words)
}

// wordsAtOnce is how many words one statement writes: each has its price.
const wordsAtOnce = 8

// index writes the words of a row.
func (t *transaction) index(id int64, words []word) error {
	for part := range slices.Chunk(words, wordsAtOnce) {
		args := make([]any, 0, 3*len(part))
		for _, w := range part {
			args = append(args, w.kind, w.text, id)
		}
		if _, err := t.exec("INSERT OR IGNORE INTO word VALUES "+strings.Repeat("(?,?,?),", len(part)-1)+"(?,?,?)", args...); err != nil {
			return err
		}
	}
	return nil
}

// marks returns "?,?,?".
func marks(n int) string { return strings.TrimSuffix(strings.Repeat("?,", n), ",") }

func (m *Message) weight() int64 {
	n := 600 + len(m.Detail) + len(m.From) + len(m.MessageID)
	for _, a := range m.Recipients {
		n += 16 + len(a)
	}
	return int64(n)
}

// write keeps a message. Several that were refused at RCPT are one, if Postfix says so.
func (m *Message) write(t *transaction) error {
	m.clean(t.set.Recipients)
	if m.Instance != "" {
		if known, err := m.merge(t); known || err != nil {
			return err
		}
	}
	return t.insert("message", messageColumns, m.values(), m.words())
}

// merge adds the recipients to those of the same message, and reports whether there was one.
func (m *Message) merge(t *transaction) (bool, error) {
	var id int64
	var n int
	var rcpts string
	known, err := t.get("SELECT id, rcpts, recipients FROM message WHERE instance = ? AND instance <> '' AND action = ? AND reason = ? ORDER BY id DESC LIMIT 1",
		[]any{m.Instance, m.Action, m.Reason}, &id, &n, &rcpts)
	if !known || err != nil {
		return false, err
	}
	list := strings.FieldsFunc(rcpts, func(r rune) bool { return r == '\n' })
	for _, a := range m.Recipients {
		if len(list) < maxRecipients && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	if _, err := t.exec("UPDATE message SET rcpts = ?, recipients = ? WHERE id = ?", n+m.Count, strings.Join(list, "\n"), id); err != nil {
		return false, err
	}
	return true, t.index(id, m.words())
}

func (a *Attempt) weight() int64 { return int64(400 + len(a.Reply) + len(a.Meaning)) }

func (a *Attempt) write(t *transaction) error {
	a.clean()
	return t.insert("attempt", attemptColumns, a.values(), a.words())
}

// chunk is how many rows one transaction deletes or looks at, so that no entry waits long for it.
const chunk = 500

// retain deletes what is too old, and the oldest of what is too much: a part at a time. It returns
// whether there is more to do.
func (w *writer) retain(ctx context.Context, set Settings, now time.Time) (more bool, err error) {
	old := millis(now.AddDate(0, 0, -max(set.Days, 1)))
	n := 0
	err = w.transact(ctx, set, func(t *transaction) (err error) {
		n, err = t.remove("time < ? ORDER BY time", chunk, old)
		return err
	})
	if err != nil || n == chunk {
		return n == chunk, err
	}
	used, err := w.used(ctx)
	if err != nil || used <= set.Size {
		return false, err
	}
	err = w.transact(ctx, set, func(t *transaction) error {
		var rows int64
		if _, err := t.get("SELECT coalesce(max(id) - min(id) + 1, 0) FROM "+w.half.table(), nil, &rows); err != nil {
			return err
		}
		n, err = t.remove("true ORDER BY id", min(chunk, 1+int(rows*(used-set.Size)/used)))
		return err
	})
	return n > 0, err
}

// used is how many bytes of the file are in use.
func (w *writer) used(ctx context.Context) (int64, error) {
	var pages, free, size int64
	err := errors.Join(w.db.QueryRowContext(ctx, "PRAGMA page_count").Scan(&pages), w.db.QueryRowContext(ctx, "PRAGMA freelist_count").Scan(&free),
		w.db.QueryRowContext(ctx, "PRAGMA page_size").Scan(&size))
	return (pages - free) * size, explain(err)
}

// shrink gives pages back to the file system that a lower limit has left free; a few at a time.
func (w *writer) shrink(ctx context.Context) error {
	rows, err := w.db.QueryContext(ctx, "PRAGMA incremental_vacuum(200)")
	if err != nil {
		return explain(err)
	}
	for rows.Next() { // it works as its rows are read
	}
	return explain(errors.Join(rows.Err(), rows.Close()))
}

// remove deletes the first rows of a condition with its order, with all that belongs to them, and
// returns how many.
func (t *transaction) remove(which string, most int, args ...any) (int, error) {
	if t.w.half == TokenHalf {
		var list []*Attempt
		err := t.each("SELECT id, "+attemptColumns+" FROM attempt WHERE "+which+" LIMIT ?", append(args, most), func(r scanner) error {
			a := new(Attempt)
			list = append(list, a)
			return a.scan(r)
		})
		for _, a := range list {
			if err == nil {
				err = t.forget("attempt", a.Number, a.words())
			}
		}
		return len(list), err
	}
	var list []*Message
	err := t.each("SELECT id, "+messageColumns+" FROM message WHERE "+which+" LIMIT ?", append(args, most), func(r scanner) error {
		m := new(Message)
		list = append(list, m)
		return m.scan(r)
	})
	for _, m := range list {
		if err == nil {
			_, err = t.exec("DELETE FROM deferral WHERE message = ?", m.Number)
		}
		if err == nil {
			err = t.forget("message", m.Number, m.words())
		}
	}
	return len(list), err
}

// forget deletes a row and its words.
func (t *transaction) forget(table string, id int64, words []word) error {
	for _, w := range words {
		if _, err := t.exec("DELETE FROM word WHERE kind = ? AND text = ? AND id = ?", w.kind, w.text, id); err != nil {
			return err
		}
	}
	_, err := t.exec("DELETE FROM "+table+" WHERE id = ?", id)
	return err
}

// each reads rows; f must not use the transaction.
func (t *transaction) each(query string, args []any, f func(scanner) error) error {
	s, err := t.stmt(query)
	if err != nil {
		return err
	}
	rows, err := s.QueryContext(t.ctx, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}
