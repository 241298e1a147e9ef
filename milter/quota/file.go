package quota

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// An File is an [Store] in a file of its own, which one process may have open at a time.
type File struct {
	// Replaced tells why the file begins empty: the former one was damaged, and has the same name
	// with ".damaged" now. It is nil otherwise.
	Replaced error

	db     *bbolt.DB
	broken error // bbolt has panicked; its locks are held for ever
}

var _ Store = (*File)(nil)

// admissionLockTime is how long the process that ends may take to let go of the file.
const admissionLockTime = 5 * time.Second

var admissionBucket = []byte("admission")

// OpenFile opens the file, or makes it with mode 0600. The caller closes it, after [Counts.Run] has
// returned. A damaged file is replaced, since what it holds is worth no trouble; a file that is not
// ours is an error.
func OpenFile(path string) (*File, error) {
	return openAdmissionFile(path, admissionLockTime)
}

func openAdmissionFile(path string, lock time.Duration) (*File, error) {
	db, err := openAdmissionDB(path, lock)
	if err == nil {
		return &File{db: db}, nil
	}
	if !errors.As(err, new(*damagedFile)) {
		return nil, fmt.Errorf("opening the admission counts: %w", err)
	}
	if err := os.Rename(path, path+".damaged"); err != nil {
		return nil, fmt.Errorf("moving damaged admission counts aside: %w", err)
	}
	db, again := openAdmissionDB(path, lock)
	if again != nil {
		return nil, fmt.Errorf("beginning the admission counts anew: %w", again)
	}
	return &File{db: db, Replaced: err}, nil
}

// damagedFile is the error of a file that bbolt has written and cannot read any more.
type damagedFile struct {
	cause    string
	panicked bool
}

func (d *damagedFile) Error() string { return "damaged: " + d.cause }

// openAdmissionDB opens the file and reads it once, to see that it can be read.
func openAdmissionDB(path string, lock time.Duration) (*bbolt.DB, error) {
	var db *bbolt.DB
	err := guard(func() (err error) {
		db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lock, FreelistType: bbolt.FreelistMapType})
		return err
	})
	switch {
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrVersionMismatch):
		return nil, fmt.Errorf("%q is no file of admission counts; give another name, or move it away", path)
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("%q is in use by another process", path)
	case errors.Is(err, bolterrors.ErrChecksum):
		return nil, &damagedFile{cause: err.Error()}
	case err != nil:
		return nil, err
	}
	if err := inspect(db, path); err != nil {
		if d := new(damagedFile); !errors.As(err, &d) || !d.panicked { // else Close would wait for ever
			db.Close()
		}
		return nil, err
	}
	return db, nil
}

// inspect makes sure that the file is ours and whole.
func inspect(db *bbolt.DB, path string) error {
	return guard(func() error {
		return db.Update(func(tx *bbolt.Tx) error {
			if first, _ := tx.Cursor().First(); first != nil && tx.Bucket(admissionBucket) == nil {
				return fmt.Errorf("%q belongs to another program; give another name", path)
			}
			b, err := tx.CreateBucketIfNotExists(admissionBucket)
			if err != nil {
				return err
			}
			return b.ForEach(func(k, v []byte) error { return nil })
		})
	})
}

// guard turns a panic of bbolt over a damaged page, and a fault of the memory under it, into an
// error.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = &damagedFile{fmt.Sprint(p), true}
		}
	}()
	return f()
}

// Close closes the file.
func (f *File) Close() error {
	if f.broken != nil {
		return f.broken
	}
	return f.db.Close()
}

// do runs a transaction, unless an earlier one has panicked.
func (f *File) do(ctx context.Context, transaction func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if f.broken != nil {
		return f.broken
	}
	err := guard(transaction)
	if d := new(damagedFile); errors.As(err, &d) && d.panicked {
		f.broken = err
	}
	return err
}

// Load implements [Store].
func (f *File) Load(ctx context.Context, fn func(key string, record []byte)) error {
	return f.do(ctx, func() error {
		return f.db.View(func(tx *bbolt.Tx) error {
			return tx.Bucket(admissionBucket).ForEach(func(k, v []byte) error {
				fn(string(k[1:]), v)
				return ctx.Err()
			})
		})
	})
}

// Save implements [Store]. It returns when the disk has the records.
func (f *File) Save(ctx context.Context, records map[string][]byte) error {
	return f.do(ctx, func() error {
		return f.db.Update(func(tx *bbolt.Tx) error {
			b := tx.Bucket(admissionBucket)
			for key, record := range records {
				if err := saveRecord(b, key, record); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// saveRecord writes or removes one record. bbolt has no empty keys, so each begins with a byte of
// ours.
func saveRecord(b *bbolt.Bucket, key string, record []byte) error {
	k := append([]byte{'='}, key...)
	switch {
	case record == nil:
		return b.Delete(k)
	case len(k) > bbolt.MaxKeySize: // no address is that long, and the others must be saved
		return nil
	}
	return b.Put(k, record)
}
