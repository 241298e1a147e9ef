package record

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"modernc.org/sqlite"
	sqlitelib "modernc.org/sqlite/lib"
)

// A Half names one of the two files.
type Half string

// The halves.
const (
	MilterHalf Half = "milter"
	TokenHalf  Half = "token"
)

// table is that of the half's rows.
func (h Half) table() string {
	if h == TokenHalf {
		return "attempt"
	}
	return "message"
}

// applicationIDs tell our files from others' (PRAGMA application_id; "sdm" and "sdt", and a zero).
var applicationIDs = map[Half]int{MilterHalf: 0x73646d00, TokenHalf: 0x73647400}

// version is that of the schema (PRAGMA user_version). A file of a newer one is left alone.
const version = 1

// Numbers are never given twice, also after the newest were deleted (AUTOINCREMENT): a number in
// somebody's notes names one message for ever. Times are milliseconds of Unix time, 0 for none.
// The words of a message are deleted by its row, so there is no index by message.
var schemas = map[Half]string{
	MilterHalf: `
CREATE TABLE message (
	id INTEGER PRIMARY KEY AUTOINCREMENT, time INTEGER NOT NULL, waits INTEGER NOT NULL, left_at INTEGER NOT NULL DEFAULT 0,
	addr TEXT, ptr TEXT, helo TEXT, login TEXT, subject TEXT, client TEXT, sender TEXT, sender_from TEXT,
	identity TEXT, leaves TEXT, mailbox TEXT, pool INTEGER, route TEXT, action TEXT, reason TEXT, detail TEXT, observed INTEGER,
	instance TEXT, recipients TEXT, rcpts INTEGER, size INTEGER, message_id TEXT, queue TEXT
) STRICT;
CREATE INDEX message_time ON message (time);
CREATE INDEX message_waits ON message (id) WHERE waits;
CREATE INDEX message_message_id ON message (message_id, id) WHERE message_id <> '';
CREATE INDEX message_queue ON message (queue, id) WHERE queue <> '';
CREATE INDEX message_instance ON message (instance, id) WHERE instance <> '';
CREATE TABLE deferral (message INTEGER NOT NULL, time INTEGER NOT NULL, text TEXT NOT NULL, PRIMARY KEY (message, time)) STRICT, WITHOUT ROWID;
` + wordTable,
	TokenHalf: `
CREATE TABLE attempt (
	id INTEGER PRIMARY KEY AUTOINCREMENT, time INTEGER NOT NULL, pid INTEGER, sender TEXT, mailbox TEXT, waited INTEGER, waited_for TEXT, took INTEGER,
	class TEXT, stage TEXT, reply TEXT, meaning TEXT, message_id TEXT, accepted INTEGER, refused INTEGER, final INTEGER, opens INTEGER
) STRICT;
CREATE INDEX attempt_time ON attempt (time);
CREATE INDEX attempt_message_id ON attempt (message_id, id) WHERE message_id <> '';
` + wordTable,
}

const wordTable = `CREATE TABLE word (kind TEXT NOT NULL, text TEXT NOT NULL, id INTEGER NOT NULL, PRIMARY KEY (kind, text, id)) STRICT, WITHOUT ROWID;`

// pragmas of whoever writes. Nothing is worth waiting for the disk: after the system ends at once, the
// last seconds may be missing, and the file is whole (WAL, synchronous=NORMAL). What is deleted is
// overwritten where that costs nothing.
var pragmas = []string{"busy_timeout(5000)", "auto_vacuum(INCREMENTAL)", "journal_mode(WAL)", "synchronous(NORMAL)", "journal_size_limit(4194304)",
	"cache_size(-1024)", "temp_store(MEMORY)", "secure_delete(FAST)"}

// dsn names a file for the driver.
func dsn(path, mode string, pragmas ...string) string {
	q := url.Values{"mode": {mode}, "_pragma": pragmas}
	return (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: q.Encode()}).String()
}

// A DamagedError is that of a file which was one of ours and cannot be read any more.
type DamagedError struct{ cause error }

func (e *DamagedError) Error() string { return "the record is damaged: " + e.cause.Error() }
func (e *DamagedError) Unwrap() error { return e.cause }

// explain finds the errors of a damaged file among all.
func explain(err error) error {
	s, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return err
	}
	switch s.Code() & 0xff {
	case sqlitelib.SQLITE_CORRUPT:
		return &DamagedError{err}
	case sqlitelib.SQLITE_NOTADB: // somebody else's, perhaps: it is not touched
		return fmt.Errorf("the file is no database; move it away: %w", err)
	}
	return err
}

// create opens a half for writing, or makes it with mode 0600. A file of others is not touched.
func create(ctx context.Context, path string, half Half) (*sql.DB, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600) // SQLite gives its other files the mode of this one
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	empty, err := inspect(ctx, path, half)
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", dsn(path, "rw", pragmas...))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	if empty { // in a transaction: who is killed here leaves an empty file
		_, err = db.ExecContext(ctx, fmt.Sprintf("BEGIN; %s PRAGMA application_id = %d; PRAGMA user_version = %d; COMMIT", schemas[half], applicationIDs[half], version))
	}
	if err != nil {
		return nil, errors.Join(explain(err), db.Close())
	}
	return db, nil
}

// inspect makes sure that a file is ours, or empty. It only reads: the settings of whoever writes
// change a file.
func inspect(ctx context.Context, path string, half Half) (empty bool, err error) {
	db, err := sql.Open("sqlite", dsn(path, "ro", "busy_timeout(5000)"))
	if err != nil {
		return false, err
	}
	defer db.Close()
	app, v, err := identify(ctx, db)
	if err != nil {
		return false, explain(err)
	}
	var tables int
	if err := db.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema").Scan(&tables); err != nil {
		return false, explain(err)
	}
	if app == 0 && v == 0 && tables == 0 {
		return true, nil
	}
	return false, ours(path, half, app, v)
}

func identify(ctx context.Context, db *sql.DB) (app, v int, err error) {
	err = errors.Join(db.QueryRowContext(ctx, "PRAGMA application_id").Scan(&app), db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&v))
	return app, v, err
}

// ours refuses the files of others.
func ours(path string, half Half, app, v int) error {
	switch {
	case app != applicationIDs[half]:
		return fmt.Errorf("%q is no record of the %s service; give another name, or move it away", path, half)
	case v > version:
		return fmt.Errorf("%q was written by a newer sendas (format %d, this one knows %d)", path, v, version)
	}
	return nil
}

// moveAway keeps a damaged file under another name, for whoever wants to look, and lets the next one
// begin. The former damaged one goes.
func moveAway(path string) error {
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.Rename(path, path+".damaged")
}

const messageColumns = "time, waits, left_at, addr, ptr, helo, login, subject, client, sender, sender_from, identity, leaves, mailbox, pool, route, " +
	"action, reason, detail, observed, instance, recipients, rcpts, size, message_id, queue"

// values returns a message as its columns.
func (m *Message) values() []any {
	addr := ""
	if m.Addr.IsValid() {
		addr = m.Addr.String()
	}
	return []any{millis(m.Time), m.Waits, millis(m.Left), addr, m.PTR, m.HELO, m.Login, m.Subject, m.Client, m.Sender, m.From, m.Identity, m.Leaves, m.Mailbox,
		m.Pool, m.Route, m.Action, m.Reason, m.Detail, m.Observed, m.Instance, strings.Join(m.Recipients, "\n"), m.Count, m.Size, m.MessageID, m.Queue}
}

// scan reads a message from its number and its columns.
func (m *Message) scan(row scanner) error {
	var at, left int64
	var addr, rcpts string
	err := row.Scan(&m.Number, &at, &m.Waits, &left, &addr, &m.PTR, &m.HELO, &m.Login, &m.Subject, &m.Client, &m.Sender, &m.From, &m.Identity, &m.Leaves, &m.Mailbox,
		&m.Pool, &m.Route, &m.Action, &m.Reason, &m.Detail, &m.Observed, &m.Instance, &rcpts, &m.Count, &m.Size, &m.MessageID, &m.Queue)
	if err != nil {
		return err
	}
	m.Time, m.Left = moment(at), moment(left)
	m.Addr, _ = netip.ParseAddr(addr) // what is none was none
	m.Recipients = nil
	if rcpts != "" {
		m.Recipients = strings.Split(rcpts, "\n")
	}
	return nil
}

const attemptColumns = "time, pid, sender, mailbox, waited, waited_for, took, class, stage, reply, meaning, message_id, accepted, refused, final, opens"

func (a *Attempt) values() []any {
	return []any{millis(a.Time), a.PID, a.Sender, a.Mailbox, a.Waited.Milliseconds(), a.For, a.Took.Milliseconds(), a.Class, a.Stage, a.Reply, a.Meaning,
		a.MessageID, a.Accepted, a.Refused, a.Final, millis(a.Opens)}
}

func (a *Attempt) scan(row scanner) error {
	var at, waited, took, opens int64
	err := row.Scan(&a.Number, &at, &a.PID, &a.Sender, &a.Mailbox, &waited, &a.For, &took, &a.Class, &a.Stage, &a.Reply, &a.Meaning,
		&a.MessageID, &a.Accepted, &a.Refused, &a.Final, &opens)
	a.Time, a.Opens = moment(at), moment(opens)
	a.Waited, a.Took = time.Duration(waited)*time.Millisecond, time.Duration(took)*time.Millisecond
	return err
}

// A scanner is a row of a result.
type scanner interface{ Scan(dest ...any) error }

// millis is 0 for the zero time.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func moment(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
