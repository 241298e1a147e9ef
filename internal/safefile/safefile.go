// Package safefile writes a file whole: whoever reads it finds what was there before or what is
// there afterwards, and nothing between, whatever dies meanwhile: the process, the disk's last
// block, the power. Nobody who may not read the file can read it at any moment.
//
// The steps are always the same. A temporary file is made in the same folder, with mode 0600. It
// gets its owner, its mode, its content. When that is on the disk, it is renamed, and the folder is
// written to the disk as well: a power failure could bring the old name back otherwise. What goes
// wrong is an [*Error] that says at which step; the temporary file is gone then.
package safefile

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Options say what a file is to be like. The zero value is a file of this process's user that
// nobody else can read.
type Options struct {
	Mode  fs.FileMode // the permissions, whatever the umask; zero is 0600
	Owner *Owner      // nil is whom the system gives it to
	Time  time.Time   // when it was last changed, for readers who look at that; zero is now

	// Temp names the temporary file. A star in it stands for a number that no other file has: so
	// several processes can write at a time, and what a killed one has left stays until somebody
	// sweeps it. Without a star there is one name, and what has it is removed first; the caller
	// sees to it that nobody else writes. Empty is ".NAME.*".
	Temp string

	// Ready is asked when all but the last step is done. Its error stops that one, and is returned
	// as it is. Nil is no question.
	Ready func() error
}

// An Owner is whose a file is, by number.
type Owner struct{ UID, GID int }

// OwnerOf returns whose a file is.
func OwnerOf(info fs.FileInfo) Owner {
	st := info.Sys().(*syscall.Stat_t) // always, on the systems that Postfix runs on
	return Owner{int(st.Uid), int(st.Gid)}
}

// A Step is one of those in which a file is written.
type Step int

// The steps, in their order.
const (
	Create Step = iota // a file in the folder
	Own                // give it to its owner, with its mode
	Fill               // with its content
	Place              // it where the file is to be
)

// An Error says at which step writing a file ended. Its text is the operating system's, with the
// names of the files.
type Error struct {
	Step Step
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Replace is [Write] for a file that is there already: its mode and owner stay, whatever o says,
// and a symbolic link goes on leading to it.
func Replace(path string, data []byte, o Options) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return &Error{Create, err}
	}
	info, err := os.Stat(path)
	if err != nil {
		return &Error{Create, err}
	}
	owner := OwnerOf(info)
	o.Mode, o.Owner = info.Mode().Perm(), &owner
	return Write(path, data, o)
}

// Write puts a file into the place of the one at path, if there is one. A symbolic link there is
// replaced itself.
func Write(path string, data []byte, o Options) error {
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return &Error{Create, err}
	}
	defer dir.Close()
	return WriteIn(dir, filepath.Base(path), data, o)
}

// WriteIn is [Write] for a file of an open folder, which cannot become another one meanwhile.
func WriteIn(dir *os.Root, name string, data []byte, o Options) error {
	f, err := create(dir, name, o.Temp)
	if err != nil {
		return &Error{Create, err}
	}
	w := &writer{dir: dir, temp: filepath.Base(f.Name()), name: name}
	err = errors.Join(w.fill(f, data, &o), w.fail(Fill, "close", f.Close()))
	if err == nil && o.Ready != nil {
		err = o.Ready()
	}
	if err == nil {
		err = w.place(o.Time)
	}
	if err != nil {
		dir.Remove(w.temp) // if that fails too, whoever sweeps the folder does it
	}
	return err
}

// create makes the temporary file.
func create(dir *os.Root, name, temp string) (*os.File, error) {
	if temp == "" {
		temp = "." + name + ".*"
	}
	before, after, many := strings.Cut(temp, "*")
	if !many {
		if err := dir.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, named(dir, "remove", temp, err)
		}
	}
	for {
		if many {
			temp = before + strconv.FormatUint(uint64(rand.Uint32()), 10) + after
		}
		f, err := dir.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if !many || !errors.Is(err, fs.ErrExist) {
			return f, named(dir, "open", temp, err)
		}
	}
}

// A writer has made the temporary file of a folder.
type writer struct {
	dir        *os.Root
	temp, name string
}

// fail makes the error of a step, and nothing of nil.
func (w *writer) fail(s Step, op string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{s, named(w.dir, op, w.temp, err)}
}

// fill gives a new file its owner and mode before its content, and waits until that is on the disk.
func (w *writer) fill(f *os.File, data []byte, o *Options) error {
	if err := w.own(f, o); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return w.fail(Fill, "write", err)
	}
	return w.fail(Fill, "sync", f.Sync())
}

func (w *writer) own(f *os.File, o *Options) error {
	info, err := f.Stat()
	if err != nil {
		return w.fail(Own, "stat", err)
	}
	// Who may not give files away may still write those that are his own.
	if o.Owner != nil && *o.Owner != OwnerOf(info) {
		if err := f.Chown(o.Owner.UID, o.Owner.GID); err != nil {
			return w.fail(Own, "chown", err)
		}
	}
	mode := o.Mode
	if mode == 0 {
		mode = 0o600
	}
	return w.fail(Own, "chmod", f.Chmod(mode)) // also past the umask
}

// place puts the file where it is to be, for good.
func (w *writer) place(changed time.Time) error {
	if !changed.IsZero() {
		if err := w.dir.Chtimes(w.temp, changed, changed); err != nil {
			return w.fail(Place, "chtimes", err)
		}
	}
	if err := w.dir.Rename(w.temp, w.name); err != nil {
		return &Error{Place, &os.LinkError{Op: "rename", Old: full(w.dir, w.temp), New: full(w.dir, w.name), Err: cause(err)}}
	}
	folder, err := w.dir.Open(".")
	if err != nil {
		return w.fail(Place, "open", err)
	}
	return w.fail(Place, "sync", errors.Join(folder.Sync(), folder.Close()))
}

// named gives an error of the operating system the whole name of the file: an [os.Root] knows the
// last part.
func named(dir *os.Root, op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: full(dir, name), Err: cause(err)}
}

func full(dir *os.Root, name string) string { return filepath.Join(dir.Name(), name) }

// cause drops operation and names.
func cause(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return e.Err
	}
	return err
}
