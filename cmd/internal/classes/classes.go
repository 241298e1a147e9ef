// Package classes knows which recipients Postfix delivers itself, and so which mail is none of
// sendas' business: it reads that out of Postfix's settings and tables ([Collect]), keeps it in a
// file for the milter ([Save], [Load]), sees when the file changes ([Watch]), and whether it is
// still true ([Check]). What follows from it, package policy decides.
//
// The milter may not read Postfix's tables itself: they may hold passwords, and it runs as a user
// who can read none of them. So root collects them, with "sendas postfix enable".
package classes

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/internal/safefile"
	"github.com/sendas/sendas/policy"
)

// maxFile bounds the file, in bytes.
const maxFile = 256 << 20

// Save writes the file, whole or not at all. Who may read sendas.yaml may read it, since the milter
// does: like is the name of that.
func Save(path, like string, data *policy.ClassData) error {
	text, err := encode(data)
	if err != nil {
		return err
	}
	info, err := os.Stat(like)
	if err != nil {
		return err
	}
	owner := safefile.OwnerOf(info)
	return safefile.Write(path, text, safefile.Options{Mode: info.Mode().Perm() &^ 0o133, Owner: &owner})
}

func encode(data *policy.ClassData) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", " ")
	e.SetEscapeHTML(false)
	err := e.Encode(data)
	return b.Bytes(), err
}

// Load reads the file. What it says lets mail pass, so nobody but its owner may have written it. An
// error that is [fs.ErrNotExist] means that nobody has collected anything yet.
func Load(path string) (*policy.ClassData, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	case info.Mode().Perm()&0o022 != 0:
		return nil, fmt.Errorf("%s can be changed by others (mode %04o), who could let mail pass; type \"chmod go-w %[1]s\"", path, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, err
	}
	data := &policy.ClassData{}
	if err := json.Unmarshal(text, data); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if data.Version != policy.ClassVersion {
		return nil, fmt.Errorf("%s has the form %d, and this version of sendas knows %d; type \"sendas postfix enable\"", path, data.Version, policy.ClassVersion)
	}
	return data, nil
}

// Interval is how often [Watch] looks at the file.
const Interval = 2 * time.Second

// Watch hands over what the file says: once before it returns, and from then on, until ctx ends,
// whenever the file has changed. path is asked each time. A file that is not there is nil. One that
// cannot be used changes nothing, and is logged once; at the start it is nil, so that all mail is
// ours.
func Watch(ctx context.Context, path func() string, log *slog.Logger, use func(*policy.Classes)) {
	w := &watcher{path: path, log: log, use: use}
	w.look()
	go func() {
		tick := time.NewTicker(Interval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				w.look()
			}
		}
	}()
}

// watcher remembers which file it has seen. It belongs to one goroutine.
type watcher struct {
	path func() string
	log  *slog.Logger
	use  func(*policy.Classes)
	seen string // what tells one file from another; "" is none
}

func (w *watcher) look() {
	path := w.path()
	now := "no file " + path
	info, err := os.Stat(path)
	if err == nil { // whoever replaces it makes another file
		now = fmt.Sprint(path, info.ModTime().UnixNano(), info.Size(), inode(info), info.Mode())
	}
	if now == w.seen {
		return
	}
	w.seen = now
	data, err := Load(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		w.log.Info("nobody has said which recipients Postfix delivers itself, so all mail is for sendas", "file", path, "hint", "sendas postfix enable")
		w.use(nil)
	case err != nil:
		w.log.Error("which recipients Postfix delivers itself stays as it was: the file cannot be used", "file", path, "error", err)
	default:
		w.log.Info("recipients that Postfix delivers itself", "file", path, "domains", len(domains(data)), "aliases", len(data.Aliases)+len(data.LocalAliases),
			"ways", len(data.Ways), "unlisted", len(data.Opaque))
		w.use(policy.NewClasses(data))
	}
}

// domains returns the domains of all classes that Postfix delivers itself.
func domains(data *policy.ClassData) []string {
	return slices.Concat(data.Local, data.Alias, data.Mailbox, data.Relay)
}

// Describe says in one line what Postfix delivers itself, for a person.
func Describe(data *policy.ClassData) string {
	var parts []string
	for _, l := range []struct {
		name string
		list []string
	}{{"local", data.Local}, {"virtual aliases", data.Alias}, {"virtual mailboxes", data.Mailbox}, {"relay", data.Relay}, {"transport_maps", away(data)}} {
		if n := len(l.list); n > 0 {
			text := strings.Join(l.list[:min(n, maxShown)], " ")
			if n > maxShown {
				text += fmt.Sprintf(" and %d more", n-maxShown)
			}
			parts = append(parts, l.name+": "+text)
		}
	}
	return cmp.Or(strings.Join(parts, "; "), "nothing")
}

// maxShown is how many domains of a class a line shows.
const maxShown = 5

// away returns the keys of transport_maps that name a transport, in order.
func away(data *policy.ClassData) []string {
	var list []string
	for key, way := range data.Ways {
		if !strings.HasPrefix(way, ":") {
			list = append(list, key)
		}
	}
	slices.Sort(list)
	return list
}
