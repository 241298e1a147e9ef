package postfix

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/internal/safefile"
)

// The two files of Postfix that are changed.
const (
	mainCF   = "main.cf"
	masterCF = "master.cf"
)

var FileNames = []string{mainCF, masterCF}

// A instance is where one Postfix has its configuration.
type instance struct {
	run  Runner
	dir  string // absolute
	flag bool   // the user named it
}

// findInstance asks postconf(1) where the configuration is, if the user does not say.
func findInstance(ctx context.Context, run Runner, folder string) (*instance, error) {
	if folder != "" {
		dir, err := filepath.Abs(folder) // with a relative one, postfix(1) does not find its daemons
		if err != nil {
			return nil, err
		}
		return &instance{run: run, dir: dir, flag: true}, nil
	}
	out, _, err := run(ctx, "postconf", "-h", "config_directory")
	if err != nil {
		return nil, err
	}
	return &instance{run: run, dir: strings.TrimSpace(out)}, nil
}

// command writes how a program of Postfix's is called for this instance.
func (i *instance) command(name string) string {
	if i.flag {
		return name + " -c " + i.dir
	}
	return name
}

// endless reports whether the last line of a file has no end. Postfix reads such a file well, but
// postconf(1) glues to that line what it adds.
func (i *instance) endless(name string) bool {
	data, err := os.ReadFile(filepath.Join(i.dir, name))
	return err == nil && len(data) > 0 && data[len(data)-1] != '\n'
}

// files is what stands in main.cf and master.cf, by name.
type files map[string][]byte

func (f files) equal(g files) bool {
	return bytes.Equal(f[mainCF], g[mainCF]) && bytes.Equal(f[masterCF], g[masterCF])
}

// read reads both files.
func (i *instance) read() (files, error) {
	files := make(files)
	for _, name := range FileNames {
		data, err := os.ReadFile(filepath.Join(i.dir, name))
		if err != nil {
			return nil, err
		}
		files[name] = data
	}
	return files, nil
}

// install puts files in the place of others, each one whole or not at all: its mode and owner stay,
// and a symbolic link goes on leading to it. One that has not changed is not touched.
func (i *instance) install(from, to files) error {
	for _, name := range FileNames {
		if bytes.Equal(from[name], to[name]) {
			continue
		}
		path := filepath.Join(i.dir, name)
		now, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !bytes.Equal(now, from[name]) {
			return fmt.Errorf("%s was changed by somebody else just now", path)
		}
		if err := replaceFile(path, to[name]); err != nil {
			return err
		}
	}
	return nil
}

// replaceFile gives a file that exists another content. A program of Postfix's waits until main.cf
// is some seconds old, lest it reads half of it (dict_load_file_xt), and clients with it. This file
// comes whole.
func replaceFile(path string, data []byte) error {
	return safefile.Replace(path, data, safefile.Options{Time: time.Now().Add(-settled), Temp: "." + filepath.Base(path) + ".sendas-*"})
}

// settled is the age from which Postfix reads main.cf without waiting.
const settled = 5 * time.Second

// A stage is a copy of an instance's configuration, in which changes are tried before anybody sees
// them. What else the folder of the instance holds is there by symbolic links.
type stage struct {
	*instance
	real *instance
}

// stage makes one; remove it.
func (i *instance) stage(files files) (*stage, error) {
	s, err := i.bare(files)
	if err != nil {
		return nil, err
	}
	if err := s.link(); err != nil {
		return nil, errors.Join(err, s.remove())
	}
	return s, nil
}

// bare makes one without what else is in the folder.
func (i *instance) bare(files files) (*stage, error) {
	dir, err := os.MkdirTemp("", "sendas-postfix-")
	if err != nil {
		return nil, err
	}
	s := &stage{&instance{run: i.run, dir: dir, flag: true}, i}
	if err := s.write(files); err != nil {
		return nil, errors.Join(err, s.remove())
	}
	return s, nil
}

func (s *stage) remove() error { return os.RemoveAll(s.dir) }

func (s *stage) link() error {
	entries, err := os.ReadDir(s.real.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == mainCF || e.Name() == masterCF {
			continue
		}
		err = errors.Join(err, os.Symlink(filepath.Join(s.real.dir, e.Name()), filepath.Join(s.dir, e.Name())))
	}
	return err
}

// write writes both files, with an end of the last line: postconf(1) would glue the next one to it.
func (s *stage) write(files files) error {
	for _, name := range FileNames {
		data := files[name]
		if n := len(data); n > 0 && data[n-1] != '\n' {
			data = append(slices.Clone(data), '\n')
		}
		if err := os.WriteFile(filepath.Join(s.dir, name), data, 0o600); err != nil {
			return err
		}
	}
	return s.age()
}

// age makes main.cf old enough: each program of Postfix's waits until it is some seconds old, lest
// it reads half of it.
func (s *stage) age() error {
	past := time.Now().Add(-settled)
	return os.Chtimes(filepath.Join(s.dir, mainCF), past, past)
}

// check runs Postfix's own check on both files alone: of each symbolic link it would write a warning
// to the mail log. It needs the others where they say of themselves what belongs to this Postfix.
func (s *stage) check(ctx context.Context) error {
	meta, err := s.postconf(ctx, "-xh", "meta_directory")
	if err == nil && strings.TrimSpace(meta) == s.dir {
		return s.instance.check(ctx)
	}
	files, err := s.read()
	if err != nil {
		return err
	}
	bare, err := s.real.bare(files)
	if err != nil {
		return err
	}
	if err = bare.instance.check(ctx); err != nil {
		err = errors.New(strings.ReplaceAll(err.Error(), bare.dir, s.dir))
	}
	return errors.Join(err, bare.remove())
}

// postconf runs postconf(1) on the stage.
func (s *stage) postconf(ctx context.Context, args ...string) (string, error) {
	out, _, err := s.run(ctx, "postconf", append([]string{"-c", s.dir}, args...)...)
	if err != nil {
		return "", errors.New(strings.ReplaceAll(err.Error(), s.dir, s.real.dir))
	}
	return out, s.age()
}

// order puts the settings that postconf(1) has put at the end of main.cf into the order of names. It
// writes several in an order that is another one each time, and the diff would be full of it.
func (s *stage) order(names []string) error {
	files, err := s.read()
	if err != nil {
		return err
	}
	files[mainCF] = inOrder(files[mainCF], names)
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

// setup reads what postconf(1) says of the stage. Commands in it name the real instance.
func (s *stage) setup(ctx context.Context, c *config.Site) (*Setup, error) {
	p, err := Read(ctx, s.run, s.dir, c)
	if err != nil {
		return nil, errors.New(strings.ReplaceAll(err.Error(), s.dir, s.real.dir))
	}
	p.inst = *s.real
	return p, nil
}

// A values is what main.cf and master.cf say themselves, defaults not counted.
type values struct {
	main      map[string]string
	entries   map[string]string            // by "sendas/unix": as postconf -M prints it, in the end with all -o
	overrides map[string]map[string]string // by the same, and by parameter
}

// values reads what the files of the stage say.
func (s *stage) values(ctx context.Context) (*values, error) {
	data, err := os.ReadFile(filepath.Join(s.dir, mainCF))
	if err != nil {
		return nil, err
	}
	v := &values{main: readMainCF(string(data)), entries: make(map[string]string), overrides: make(map[string]map[string]string)}
	out, err := s.postconf(ctx, "-M")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) >= 8 {
			v.entries[f[0]+"/"+f[1]] = strings.Join(f, " ")
		}
	}
	if out, err = s.postconf(ctx, "-P"); err != nil {
		return nil, err
	}
	for line := range strings.Lines(out) {
		where, value, _ := strings.Cut(line, "=")
		parts := strings.SplitN(strings.TrimSpace(where), "/", 3)
		if len(parts) < 3 {
			continue
		}
		key := parts[0] + "/" + parts[1]
		if v.overrides[key] == nil {
			v.overrides[key] = make(map[string]string)
		}
		v.overrides[key][parts[2]] = strings.TrimSpace(value)
	}
	return v, nil
}

// readMainCF reads "name = value" with the lines that go on (postconf(5)): those that begin with a
// blank. Comments may stand between them. Of several settings of one name the last one counts.
// postconf -n does not print parameters that are named after a transport which is not there, so we
// read them ourselves.
func readMainCF(text string) map[string]string {
	m := make(map[string]string)
	name := ""
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		switch {
		case trimmed == "" || trimmed[0] == '#':
		case line[0] == ' ' || line[0] == '\t':
			if name != "" {
				m[name] = oneSpaced(m[name] + " " + trimmed)
			}
		default:
			before, value, ok := strings.Cut(trimmed, "=")
			if name = ""; ok {
				name = strings.TrimSpace(before)
				m[name] = oneSpaced(value)
			}
		}
	}
	return m
}

// get returns what is set, and whether it is.
func (v *values) get(c *change) (string, bool) {
	m := v.main
	switch {
	case c.Service != "" && c.Name == "":
		m = v.entries
		value, ok := m[c.Service]
		return value, ok
	case c.Service != "":
		m = v.overrides[c.Service]
	}
	value, ok := m[c.Name]
	return value, ok
}

// apply makes a change by postconf(1), which leaves comments and the form of all other lines as
// they are. set is false where the setting goes.
func (s *stage) apply(ctx context.Context, c *change, value string, set bool) error {
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
	_, err := s.postconf(ctx, args...)
	return err
}
