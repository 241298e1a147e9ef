package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/sendas/sendas/policy/limit"
)

// damage says that a file is a ledger, of which not everything can be read.
type damage struct{ err error }

func (d *damage) Error() string { return d.err.Error() }
func (d *damage) Unwrap() error { return d.err }

// open opens the file and reads it into memory.
func (b *Bolt) open(path string, o BoltOptions) error {
	if err := ours(path); err != nil {
		return err
	}
	db, err := openFile(path, o)
	if err != nil {
		return err
	}
	b.db = db
	err = careful(func() error { return db.Update(func(tx *bbolt.Tx) error { return b.load(tx, path, o) }) })
	if err != nil {
		closeFile(db, err)
		return err
	}
	if o.noSync {
		return nil
	}
	return syncDir(filepath.Dir(path))
}

// closeFile gives the file back. A transaction that ended in a fault still holds bbolt's locks, so
// Close would wait for ever; the file stays open then, under the name that replace gives it.
func closeFile(db *bbolt.DB, err error) {
	var f *fault
	if errors.As(err, &f) {
		return
	}
	_ = db.Close()
}

// boltMagic is at the same place of each of the first two pages of a bbolt file, the metadata
// pages.
const (
	boltMagic   = 0xED0CDAED
	magicOffset = 16
)

// ours refuses a file that bbolt has never written, before anything is done to it. A file that is
// empty is a new one.
func ours(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the ledger cannot be opened: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() == 0 && info.Mode().IsRegular() {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file; give the name of a file for the ledger", path)
	}
	for _, page := range []int64{0, int64(os.Getpagesize())} {
		var magic [4]byte
		if _, err := f.ReadAt(magic[:], page+magicOffset); err == nil && binary.NativeEndian.Uint32(magic[:]) == boltMagic {
			return nil
		}
	}
	return foreign(path)
}

func foreign(path string) error {
	return fmt.Errorf("%s is not a ledger of sendas; give another name, or move that file away", path)
}

// openFile opens and locks the file.
func openFile(path string, o BoltOptions) (db *bbolt.DB, err error) {
	err = careful(func() error {
		db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: o.LockTimeout, FreelistType: bbolt.FreelistMapType, NoSync: o.noSync})
		return err
	})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("%s is in use by another process (waited %v); is the service running already?", path, o.LockTimeout)
	case errors.Is(err, berrors.ErrVersionMismatch):
		return nil, fmt.Errorf("%s was written by another version of bbolt; start the newer sendas, or move the file away", path)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.As(err, new(*fault)):
		return nil, &damage{err}
	case err != nil:
		return nil, fmt.Errorf("the ledger cannot be opened: %w", err)
	}
	return db, whole(db, path)
}

// whole reports whether the file is as long as its metadata says. What is missing would be a bus
// error later.
func whole(db *bbolt.DB, path string) error {
	var want int64
	err := db.View(func(tx *bbolt.Tx) error { want = tx.Size(); return nil })
	if err != nil {
		return &damage{err}
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size() < want {
		_ = db.Close()
		return &damage{fmt.Errorf("it is cut off: %d bytes of %d", info.Size(), want)}
	}
	return nil
}

// fault is a panic of bbolt, or of the memory under it, over a damaged page.
type fault struct{ what any }

func (f *fault) Error() string { return fmt.Sprint(f.what) }

// careful turns the panics that a damaged file can cause into an error.
func careful(f func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		if p := recover(); p != nil {
			err = &damage{&fault{p}}
		}
	}()
	return f()
}

// load reads the whole file, or makes it one of ours.
func (b *Bolt) load(tx *bbolt.Tx, path string, o BoltOptions) error {
	meta := tx.Bucket(bucketMeta)
	if meta == nil {
		if k, _ := tx.Cursor().First(); k != nil {
			return foreign(path) // some other program's
		}
		return b.found(tx, o.now())
	}
	switch format := string(meta.Get(keyFormat)); format {
	case boltFormat:
	case "":
		return foreign(path)
	default:
		return fmt.Errorf("%s has the format %.40q and this sendas knows %q; start the version that wrote it, or move the file away", path, format, boltFormat)
	}
	s, err := decodeStamp(meta.Get(keyStamp))
	if err != nil {
		return &damage{err}
	}
	b.resume(s, o.now())
	if err := b.read(tx, s.ledger); err != nil {
		return &damage{err}
	}
	return nil
}

// found makes an empty file a ledger.
func (b *Bolt) found(tx *bbolt.Tx, now time.Time) error {
	for _, name := range [][]byte{bucketMeta, bucketAccounts, bucketGroups} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	b.book.Read(now)
	if err := tx.Bucket(bucketMeta).Put(keyFormat, []byte(boltFormat)); err != nil {
		return err
	}
	return apply(tx, b.changesLocked())
}

// resume goes on with the ledger's time where the file ends.
func (b *Bolt) resume(s stamp, now time.Time) {
	b.book.Now, b.book.Last = s.ledger+s.elapsed(now, b.boot), now
	b.book.lost, b.book.serial = s.lost, s.serial
}

// read reads all mailboxes and groups. Nothing can be later than the file's own time but places that
// had not begun.
func (b *Bolt) read(tx *bbolt.Tx, latest limit.Instant) error {
	accounts, groups := tx.Bucket(bucketAccounts), tx.Bucket(bucketGroups)
	if accounts == nil || groups == nil {
		return errRecord
	}
	err := accounts.ForEach(func(k, v []byte) error {
		a, err := decodeAccount(v)
		if err == nil {
			a.clamp(latest)
			b.book.accounts[string(k)] = a
		}
		return err
	})
	if err != nil {
		return err
	}
	return groups.ForEach(func(k, v []byte) error {
		y, err := decodeTally(v)
		if err == nil {
			y.clamp(latest)
			b.book.groups[string(k)] = y
		}
		return err
	})
}

// clamp brings back what claims to be from the future, or it would hold its place for too long.
func (a *account) clamp(latest limit.Instant) {
	a.tally.clamp(latest)
	for i := range a.done {
		a.done[i] = min(a.done[i], latest)
	}
	a.last, a.shrunkAt = min(a.last, latest+limit.Micros(MaxAhead)), min(a.shrunkAt, latest)
}

// clamp: a bucket that is being filled ends later than now, by its width at most.
func (y *tally) clamp(latest limit.Instant) {
	for id, h := range y.open {
		h.given = min(h.given, latest+limit.Micros(MaxAhead))
		y.open[id] = h
	}
	for i := range y.sent {
		y.sent[i].end = min(y.sent[i].end, latest+limit.Micros(y.per)/bucketsPerWindow)
	}
}

// replace moves a damaged ledger aside and begins a new one. It is safe only when no other process
// has the file: whoever has it also has its lock.
func (b *Bolt) replace(path string, o BoltOptions, cause error) error {
	aside := fmt.Sprintf("%s.corrupt-%d", path, o.now().Unix())
	if err := os.Rename(path, aside); err != nil {
		return fmt.Errorf("%s is damaged (%w) and cannot be moved aside: %w; move it away", path, cause, err)
	}
	fresh := newBolt(o)
	b.book, b.db = fresh.book, nil
	t := b.book.Read(o.now())
	b.book.lost = t + b.book.session // sessions may still be under way
	if err := b.open(path, o); err != nil {
		return err
	}
	o.Log.Error("the ledger was damaged: every mailbox counts as having used up its windows", "file", path, "aside", aside, "error", cause,
		"hint", "if that is known to be wrong, stop the service and delete "+path)
	return nil
}

// syncDir makes a new name in the folder durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
