package main

import (
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/packaging"
)

// commands returns all commands that a user can type, with those below them.
func commands(c *cobra.Command) []*cobra.Command {
	list := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		if !sub.Hidden && sub.Name() != "help" {
			list = append(list, commands(sub)...)
		}
	}
	return list
}

// Each command has a page, and each page all flags, examples and exit codes.
func TestManPagesAreComplete(t *testing.T) {
	root := newRoot(io.Discard, io.Discard)
	pages := manPages(root, "2026-12-01")
	for _, c := range commands(root) {
		name := manName(c) + ".1"
		page := string(pages[name])
		for _, section := range []string{"NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "SEE ALSO"} {
			if !strings.Contains(page, "\n.SH "+section) && !(section == "OPTIONS" && !c.NonInheritedFlags().HasAvailableFlags()) {
				t.Errorf("%s has no section %s", name, section)
			}
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && !strings.Contains(page, `\fB`+roffText("--"+f.Name)+`\fR`) {
				t.Errorf("%s lacks the flag --%s", name, f.Name)
			}
		})
		for example := range strings.Lines(c.Example) {
			if !strings.Contains(page, roffText(strings.TrimSpace(example))) {
				t.Errorf("%s lacks the example %q", name, example)
			}
		}
		delete(pages, name)
	}
	delete(pages, "sendas.yaml.5")
	for name := range pages {
		t.Errorf("%s is the page of no command", name)
	}
}

// A command says what it does, with an example that can be typed.
func TestCommandsHaveTexts(t *testing.T) {
	root := newRoot(io.Discard, io.Discard)
	for _, c := range commands(root) {
		if c.Name() == "completion" || c.HasParent() && c.Parent().Name() == "completion" {
			continue // cobra's own
		}
		if c.Short == "" || c.Long == "" || c.Example == "" {
			t.Errorf("%s: Short is %q, Long %q, Example %q", c.CommandPath(), c.Short, c.Long, c.Example)
		}
	}
}

// The sample, and so sendas.yaml(5), has each key of the configuration, and no other.
func TestSampleHasEveryKey(t *testing.T) {
	_, settings := readSample(packaging.Sample)
	have := make(map[string]string) // what is written behind the key
	for _, s := range settings {
		have[s.path] += s.line
	}
	want := configKeys("", reflect.TypeFor[config.Site]())
	for _, path := range want {
		parent, key := path[:max(0, strings.LastIndexByte(path, '.'))], path[strings.LastIndexByte(path, '.')+1:]
		if _, ok := have[path]; !ok && !strings.Contains(have[parent], key+":") {
			t.Errorf("the sample has no %s", path)
		}
	}
	for path := range have {
		if !slices.Contains(want, path) {
			t.Errorf("the sample has %s, which the configuration does not take", path)
		}
	}
	page := string(configPage(packaging.Sample, ""))
	for path := range have {
		if !mapKeys[strings.TrimSuffix(path, ".NAME")] && !strings.Contains(page, roffText(path)) {
			t.Errorf("sendas.yaml(5) has no %s", path)
		}
	}
}

// configKeys lists the paths of all keys below a section.
func configKeys(path string, typ reflect.Type) []string {
	switch typ.Kind() {
	case reflect.Map:
		return append([]string{path + ".NAME"}, configKeys(path+".NAME", typ.Elem())...)
	case reflect.Slice:
		return configKeys(path+"[]", typ.Elem())
	case reflect.Struct:
	default:
		return nil
	}
	var list []string
	for i := range typ.NumField() {
		if key := typ.Field(i).Tag.Get("yaml"); key != "" {
			p := config.JoinPath(path, key)
			list = append(append(list, p), configKeys(p, typ.Field(i).Type)...)
		}
	}
	return list
}

func TestReadSample(t *testing.T) {
	const sample = `# A title
#
# How it is written.

# The first.
first:
  # A number.
  #number: 3

#list:
  # Example.
  #- name: a
    # Its friends.
    #friends: [b]
credentials:
  #mine:
    #flow: x
`
	intro, got := readSample(sample)
	want := []setting{
		{"first", "The first.", "first:"}, {"first.number", "A number.", "number: 3"}, {"list", "", "list:"}, {"list[].name", "Example.", "- name: a"},
		{"list[].friends", "Its friends.", "friends: [b]"}, {"credentials", "", "credentials:"}, {"credentials.NAME", "", "mine:"}, {"credentials.NAME.flow", "", "flow: x"},
	}
	if intro != "A title\n\nHow it is written." || !slices.Equal(got, want) {
		t.Errorf("readSample = %q, %q, want %q", intro, got, want)
	}
}

func TestRoffText(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"--config FILE", `\-\-config FILE`},
		{`C:\x`, `C:\ex`},
		{"~/a^b`c", "\\(ti/a\\(hab\\(gac"},
	} {
		if got := roffText(tc.in); got != tc.want {
			t.Errorf("roffText(%q) = %q, want %q", tc.in, got, tc.want)
		}
	}
	p := new(roff)
	p.text(".PP is no request here")
	if got, want := p.String(), "\\&.PP is no request here\n"; got != want {
		t.Errorf("a line is %q, want %q", got, want)
	}
}

// unitSetting returns a setting of a systemd unit.
func unitSetting(t *testing.T, unit, key string) string {
	t.Helper()
	b, err := os.ReadFile("../../packaging/systemd/" + unit)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + key + `=(.*)$`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("%s has no %s=", unit, key)
	}
	return string(m[1])
}

// What the units say of the program is true.
func TestUnitsFitTheProgram(t *testing.T) {
	d := config.Default()
	for _, tc := range []struct{ unit, key, want string }{
		{"sendas-milter.socket", "ListenStream", d.Milter.Listen.Path()},
		{"sendas-milter.socket", "FileDescriptorName", "milter"},
		{"sendas-policy.socket", "ListenStream", d.Milter.PolicyListen.Path()},
		{"sendas-policy.socket", "FileDescriptorName", "policy"},
		{"sendas-policy.socket", "Service", "sendas-milter.service"},
		{"sendas-token.socket", "ListenStream", d.Token.Listen.Path()},
		{"sendas-token.socket", "FileDescriptorName", "credentials"},
		{"sendas-milter.service", "RestartPreventExitStatus", "78 64"},
		{"sendas-token.service", "RestartPreventExitStatus", "78 64"},
		{"sendas-token.service", "StateDirectory", strings.TrimPrefix(d.Token.StateDir, "/var/lib/")},
	} {
		if got := unitSetting(t, tc.unit, tc.key); got != tc.want {
			t.Errorf("%s: %s=%s, want %s", tc.unit, tc.key, got, tc.want)
		}
	}
	for _, tc := range []struct {
		unit string
		time time.Duration
	}{{"sendas-milter.service", service.StopTime}, {"sendas-token.service", drainTime}} {
		got, err := time.ParseDuration(unitSetting(t, tc.unit, "TimeoutStopSec"))
		if err != nil || got < tc.time+10*time.Second {
			t.Errorf("%s: TimeoutStopSec=%v, %v; the service takes %v", tc.unit, got, err, tc.time)
		}
	}
}
