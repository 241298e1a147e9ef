package cf

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A Stage is a copy of an instance's configuration, in which changes are tried before anybody sees
// them. What else the folder of the instance holds is there by symbolic links.
type Stage struct {
	*Instance
	Real *Instance
}

// Stage makes one; Remove it.
func (i *Instance) Stage(files Files) (*Stage, error) {
	s, err := i.bare(files)
	if err != nil {
		return nil, err
	}
	if err := s.link(); err != nil {
		return nil, errors.Join(err, s.Remove())
	}
	return s, nil
}

// bare makes one without what else is in the folder.
func (i *Instance) bare(files Files) (*Stage, error) {
	dir, err := os.MkdirTemp("", "sendas-postfix-")
	if err != nil {
		return nil, err
	}
	s := &Stage{&Instance{Run: i.Run, Dir: dir, Named: true}, i}
	if err := s.write(files); err != nil {
		return nil, errors.Join(err, s.Remove())
	}
	return s, nil
}

// Remove removes the copy.
func (s *Stage) Remove() error { return os.RemoveAll(s.Dir) }

func (s *Stage) link() error {
	entries, err := os.ReadDir(s.Real.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == Main || e.Name() == Master {
			continue
		}
		err = errors.Join(err, os.Symlink(filepath.Join(s.Real.Dir, e.Name()), filepath.Join(s.Dir, e.Name())))
	}
	return err
}

// write writes both files, with an end of the last line: postconf(1) would glue the next one to it.
func (s *Stage) write(files Files) error {
	for _, name := range Names {
		data := files[name]
		if n := len(data); n > 0 && data[n-1] != '\n' {
			data = append(slices.Clone(data), '\n')
		}
		if err := os.WriteFile(filepath.Join(s.Dir, name), data, 0o600); err != nil {
			return err
		}
	}
	return s.age()
}

// age makes main.cf old enough: each program of Postfix's waits until it is some Seconds old, lest
// it reads half of it.
func (s *Stage) age() error {
	past := time.Now().Add(-settled)
	return os.Chtimes(filepath.Join(s.Dir, Main), past, past)
}

// Check runs Postfix's own check on both files alone: of each symbolic link it would write a warning
// to the mail log. It needs the others where they say of themselves what belongs to this Postfix.
func (s *Stage) Check(ctx context.Context) error {
	meta, err := s.Postconf(ctx, "-xh", "meta_directory")
	if err == nil && strings.TrimSpace(meta) == s.Dir {
		return s.Instance.Check(ctx)
	}
	files, err := s.Read()
	if err != nil {
		return err
	}
	bare, err := s.Real.bare(files)
	if err != nil {
		return err
	}
	if err = bare.Instance.Check(ctx); err != nil {
		err = errors.New(strings.ReplaceAll(err.Error(), bare.Dir, s.Dir))
	}
	return errors.Join(err, bare.Remove())
}

// Postconf runs postconf(1) on the stage.
func (s *Stage) Postconf(ctx context.Context, args ...string) (string, error) {
	out, _, err := s.Run(ctx, "postconf", append([]string{"-c", s.Dir}, args...)...)
	if err != nil {
		return "", errors.New(strings.ReplaceAll(err.Error(), s.Dir, s.Real.Dir))
	}
	return out, s.age()
}

// Order puts the settings that postconf(1) has put at the end of main.cf into the order of names. It
// writes several in an order that is another one each time, and the diff would be full of it.
func (s *Stage) Order(names []string) error {
	files, err := s.Read()
	if err != nil {
		return err
	}
	files[Main] = inOrder(files[Main], names)
	return s.write(files)
}

// inOrder orders the lines at the end of a main.cf that set one of the names.
func inOrder(text []byte, names []string) []byte {
	lines := slices.Collect(bytes.Lines(text))
	place := func(line []byte) int {
		name, _, _ := bytes.Cut(line, []byte("="))
		return slices.Index(names, string(bytes.TrimRight(name, " ")))
	}
	begin := len(lines)
	for begin > 0 && place(lines[begin-1]) >= 0 && bytes.HasSuffix(lines[begin-1], []byte("\n")) {
		begin--
	}
	slices.SortStableFunc(lines[begin:], func(a, b []byte) int { return place(a) - place(b) })
	return bytes.Join(lines, nil)
}

// A Values is what main.cf and master.cf say themselves, defaults not counted.
type Values struct {
	Main      map[string]string
	Entries   map[string]string            // by "sendas/unix": as postconf -M prints it, in the end with all -o
	Overrides map[string]map[string]string // by the same, and by parameter
}

// Values reads what the files of the stage say.
func (s *Stage) Values(ctx context.Context) (*Values, error) {
	data, err := os.ReadFile(filepath.Join(s.Dir, Main))
	if err != nil {
		return nil, err
	}
	v := &Values{Main: ReadMain(string(data)), Entries: make(map[string]string), Overrides: make(map[string]map[string]string)}
	out, err := s.Postconf(ctx, "-M")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) >= 8 {
			v.Entries[f[0]+"/"+f[1]] = strings.Join(f, " ")
		}
	}
	if out, err = s.Postconf(ctx, "-P"); err != nil {
		return nil, err
	}
	for line := range strings.Lines(out) {
		where, value, _ := strings.Cut(line, "=")
		parts := strings.SplitN(strings.TrimSpace(where), "/", 3)
		if len(parts) < 3 {
			continue
		}
		key := parts[0] + "/" + parts[1]
		if v.Overrides[key] == nil {
			v.Overrides[key] = make(map[string]string)
		}
		v.Overrides[key][parts[2]] = strings.TrimSpace(value)
	}
	return v, nil
}

// Get returns what is set, and whether it is.
func (v *Values) Get(c *Change) (string, bool) {
	m := v.Main
	switch {
	case c.Service != "" && c.Name == "":
		m = v.Entries
		value, ok := m[c.Service]
		return value, ok
	case c.Service != "":
		m = v.Overrides[c.Service]
	}
	value, ok := m[c.Name]
	return value, ok
}

// Apply makes a change by postconf(1), which leaves comments and the form of all other lines as
// they are. set is false where the setting goes.
func (s *Stage) Apply(ctx context.Context, c *Change, value string, set bool) error {
	var args []string
	switch {
	case c.Service != "" && c.Name == "" && set:
		args = []string{"-M", c.Service + "=" + value}
	case c.Service != "" && c.Name == "":
		args = []string{"-MX", c.Service}
	case c.Service != "" && set:
		args = []string{"-P", c.Service + "/" + c.Name + "=" + value}
	case c.Service != "":
		args = []string{"-PX", c.Service + "/" + c.Name}
	case set:
		args = []string{"-e", c.Name + " = " + value}
	default:
		args = []string{"-X", c.Name}
	}
	_, err := s.Postconf(ctx, args...)
	return err
}
