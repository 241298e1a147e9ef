package cf

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sendas/sendas/internal/safefile"
)

// StateFolder holds a file for each instance of Postfix. It is root's alone: main.cf may hold
// passwords, and what stands here is written into Postfix's configuration. So it lies in no folder
// of a service's user.
const StateFolder = "/var/lib/sendas-postfix"

// maxState bounds a state file, in bytes.
const maxState = 64 << 20

// A State is what "sendas postfix disable" has to know. The JSON keys are stable.
type State struct {
	Version   int       `json:"version"`
	Dir       string    `json:"config_directory"`
	EnabledAt time.Time `json:"enabled_at"` // in UTC
	Leads     string    `json:"shape"`      // "main" and "transport" are of former versions
	Before    Files     `json:"before"`
	After     Files     `json:"after"`
	Changes   []*Change `json:"changes"`
	Later     []string  `json:"later,omitempty"`   // of the files: somebody has changed them since sendas first did
	Unknown   []Gap     `json:"unknown,omitempty"` // Before was made without a state, from what is known of sendas
}

// Version is the form of the file.
const Version = 1

// StateName is the name of an instance's file: what Postfix calls the instance, else its folder.
func StateName(instance, dir string) string {
	if instance != "" {
		return strings.ReplaceAll(instance, "/", "-") + ".json"
	}
	return cmp.Or(strings.ReplaceAll(strings.Trim(dir, "/"), "/", "-"), "root") + ".json"
}

// Load reads a state file; nil is none. Its content becomes Postfix's configuration, so nobody
// else may have written it.
func Load(path, dir string) (*State, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !ownedAlone(info) || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s can be changed by others (mode %04o), so it is not trusted", path, info.Mode().Perm())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxState))
	if err != nil {
		return nil, err
	}
	st := &State{}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(st); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	switch {
	case st.Version != Version:
		return nil, fmt.Errorf("%s has the form %d, and this version of sendas knows %d", path, st.Version, Version)
	case st.Dir != dir:
		return nil, fmt.Errorf("%s is about the instance in %s, not about that in %s", path, st.Dir, dir)
	}
	return st, nil
}

// ownedAlone reports whether nobody but this user can change a file.
func ownedAlone(info fs.FileInfo) bool {
	return safefile.OwnerOf(info).UID == os.Geteuid() && info.Mode().Perm()&0o022 == 0
}

// Save writes a state file, whole or not at all.
func Save(path string, st *State) error {
	data, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	// The folder above is the services', too.
	if err := errors.Join(os.MkdirAll(filepath.Dir(dir), 0o755), os.MkdirAll(dir, 0o700)); err != nil {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() || !ownedAlone(info) {
		return fmt.Errorf("%s can be changed by others; type: chown root:root %[1]s && chmod 0700 %[1]s", dir)
	}
	return safefile.Write(path, append(data, '\n'), safefile.Options{Temp: ".state-*"})
}

// Undo returns the files as they would be without sendas: byte for byte what they were where nobody
// else has changed them since, else setting by setting. kept says what stays because the
// administrator has changed it.
func (i *Instance) Undo(ctx context.Context, st *State, now Files) (base Files, kept []string, err error) {
	base = Files{Main: now[Main], Master: now[Master]}
	if st == nil {
		return base, nil, nil
	}
	edited := make(map[string]bool)
	for _, name := range Names {
		switch {
		case bytes.Equal(now[name], st.After[name]):
			base[name] = st.Before[name]
		case !bytes.Equal(now[name], st.Before[name]):
			edited[name] = true
		}
	}
	if len(edited) == 0 {
		return base, nil, nil
	}
	s, err := i.Stage(now)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, s.Remove()) }()
	if kept, err = s.takeBack(ctx, st, edited); err != nil {
		return nil, nil, err
	}
	files, err := s.Read()
	if err != nil {
		return nil, nil, err
	}
	for name := range edited {
		base[name] = files[name]
	}
	return base, kept, nil
}

// takeBack undoes the changes of some files, one by one.
func (s *Stage) takeBack(ctx context.Context, st *State, files map[string]bool) (kept []string, err error) {
	v, err := s.Values(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range st.Changes {
		if !files[c.File()] {
			continue
		}
		value, set, said := c.former(v)
		if said != "" {
			kept = append(kept, said)
		}
		if now, is := v.Get(c); set == is && (!set || Same(now, value)) {
			continue
		}
		if err := s.Apply(ctx, c, value, set); err != nil {
			return nil, err
		}
	}
	return kept, nil
}

// former returns what a setting should be without us; set is false where it should not be there.
// said tells a person what stays.
func (c *Change) former(v *Values) (value string, set bool, said string) {
	now, is := v.Get(c)
	if is && Same(now, c.Now) {
		if c.Was == nil {
			return "", false, ""
		}
		return *c.Was, true, ""
	}
	if is && c.Added != "" {
		if rest, ok := WithoutItem(now, c.Added); ok {
			return rest, rest != "" || c.Was != nil, fmt.Sprintf("%s: %s keeps what you put there, without %s", c.File(), c.Title(), c.Added)
		}
	}
	switch {
	case !is && c.Was == nil, is && c.Was != nil && Same(now, *c.Was): // taken back by hand
		return now, is, ""
	case is && c.Name == "":
		return now, is, fmt.Sprintf("%s: the entry %s stays, because you have changed it", c.File(), c.Title())
	case is:
		return now, is, fmt.Sprintf("%s: %s stays %s, because you have changed it", c.File(), c.Title(), Shown(now))
	}
	return now, is, fmt.Sprintf("%s: %s stays away, because you have removed it", c.File(), c.Title())
}

// Differences are the settings that change from a to b, those of a plan first and in its order.
func Differences(a, b *Values, plan []*Change) []*Change {
	list := slices.Clone(plan)
	for _, name := range slices.Sorted(maps.Keys(a.Main)) {
		list = append(list, &Change{Name: name})
	}
	for _, v := range []*Values{a, b} {
		for _, service := range slices.Sorted(maps.Keys(v.Entries)) {
			_, before := a.Entries[service]
			_, after := b.Entries[service]
			if before != after {
				list = append(list, &Change{Service: service})
				continue
			}
			for _, name := range slices.Sorted(maps.Keys(v.Overrides[service])) {
				list = append(list, &Change{Service: service, Name: name})
			}
		}
	}
	var changed []*Change
	for _, c := range list {
		was, had := a.Get(c)
		now, has := b.Get(c)
		known := slices.ContainsFunc(changed, func(k *Change) bool { return k.Service == c.Service && (k.Name == "" || k.Name == c.Name) })
		if known || had == has && was == now {
			continue
		}
		d := &Change{Service: c.Service, Name: c.Name, Now: now, Gone: !has}
		if had {
			d.Was = &was
		}
		changed = append(changed, d)
	}
	return changed
}

// Sentence says a change, without what must not be seen.
func (c *Change) Sentence() string {
	was := "was not set"
	if c.Was != nil {
		was = "was " + ShownParameter(c.Name, *c.Was)
	}
	if c.Gone {
		return fmt.Sprintf("%s: %s is taken out (%s)", c.File(), c.Title(), was)
	}
	value := c.Now
	if value != "" {
		value = ShownParameter(c.Name, value)
	}
	return fmt.Sprintf("%s: %s (%s)", c.File(), Assignment(c.Title(), value), was)
}
