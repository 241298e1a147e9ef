// Package cf knows main.cf and master.cf as files: how values and lists in them are written, a copy on
// which postconf(1) tries changes ([Stage]), each change by itself ([Change]), how both are put in
// place whole ([Instance.Install]), remembered ([State]) and taken back byte for byte
// ([Instance.Undo]). What they mean is the business of the room above.
package cf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sendas/sendas/internal/safefile"
)

// The two files of Postfix that are changed.
const (
	Main   = "main.cf"
	Master = "master.cf"
)

// Names are both, in the order in which they are shown and written.
var Names = []string{Main, Master}

// A Runner runs a program of Postfix's. The error holds what the program said when it failed.
type Runner func(ctx context.Context, name string, args ...string) (stdout, stderr string, err error)

// An Instance is where one Postfix has its configuration.
type Instance struct {
	Run   Runner
	Dir   string // absolute
	Named bool   // by the user
}

// Find asks postconf(1) where the configuration is, if the user does not say.
func Find(ctx context.Context, run Runner, folder string) (*Instance, error) {
	if folder != "" {
		dir, err := filepath.Abs(folder) // with a relative one, postfix(1) does not find its daemons
		if err != nil {
			return nil, err
		}
		return &Instance{Run: run, Dir: dir, Named: true}, nil
	}
	out, _, err := run(ctx, "postconf", "-h", "config_directory")
	if err != nil {
		return nil, err
	}
	return &Instance{Run: run, Dir: strings.TrimSpace(out)}, nil
}

// Command writes how a program of Postfix's is called for this instance.
func (i *Instance) Command(name string) string {
	if i.Named {
		return name + " -c " + i.Dir
	}
	return name
}

// Endless reports whether the last line of a file has no end. Postfix reads such a file well, but
// postconf(1) glues to that line what it adds.
func (i *Instance) Endless(name string) bool {
	data, err := os.ReadFile(filepath.Join(i.Dir, name))
	return err == nil && len(data) > 0 && data[len(data)-1] != '\n'
}

// Marked reports whether a file begins with the byte order mark of UTF-8, as some editors write it.
func (i *Instance) Marked(name string) bool {
	data, err := os.ReadFile(filepath.Join(i.Dir, name))
	return err == nil && bytes.HasPrefix(data, []byte("\xef\xbb\xbf"))
}

// Files is what stands in main.cf and master.cf, by name.
type Files map[string][]byte

// Equal reports whether both files are the same.
func (f Files) Equal(g Files) bool {
	return bytes.Equal(f[Main], g[Main]) && bytes.Equal(f[Master], g[Master])
}

// Read reads both files.
func (i *Instance) Read() (Files, error) {
	files := make(Files)
	for _, name := range Names {
		data, err := os.ReadFile(filepath.Join(i.Dir, name))
		if err != nil {
			return nil, err
		}
		files[name] = data
	}
	return files, nil
}

// Install puts files in the place of others, each one whole or not at all: its mode and owner stay,
// and a symbolic link goes on leading to it. One that has not changed is not touched.
func (i *Instance) Install(from, to Files) error {
	for _, name := range Names {
		if bytes.Equal(from[name], to[name]) {
			continue
		}
		path := filepath.Join(i.Dir, name)
		now, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !bytes.Equal(now, from[name]) {
			return fmt.Errorf("%s was changed by somebody else just now", path)
		}
		if err := Replace(path, to[name]); err != nil {
			return err
		}
	}
	return nil
}

// Replace gives a file that exists another content. A program of Postfix's waits until main.cf
// is some Seconds old, lest it reads half of it (dict_load_file_xt), and clients with it. This file
// comes whole.
func Replace(path string, data []byte) error {
	err := safefile.Replace(path, data, safefile.Options{Time: time.Now().Add(-settled), Temp: "." + filepath.Base(path) + ".sendas-*"})
	if errors.Is(err, syscall.EBUSY) {
		return overwrite(path, data)
	}
	return err
}

// overwrite gives its content to a file that is mounted by itself, as into a container, so that no
// other one can take its place. Whoever reads it now may see half of it; should this process end in
// the middle, the state file has what stood there.
func overwrite(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Truncate(int64(len(data)))
	}
	past := time.Now().Add(-settled)
	return errors.Join(err, f.Sync(), f.Close(), os.Chtimes(path, past, past))
}

// settled is the age from which Postfix reads main.cf without waiting.
const settled = 5 * time.Second

// Check runs Postfix's own check.
func (i *Instance) Check(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return nil // postfix(1) is root's, and nothing is changed without root
	}
	_, _, err := i.Run(ctx, "postfix", "-c", i.Dir, "check")
	return err
}
