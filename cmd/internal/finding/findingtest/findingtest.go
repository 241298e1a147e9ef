// Package findingtest judges reports in tests: what they find, and how they say it.
package findingtest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sendas/sendas/cmd/internal/finding"
)

var placeholder = regexp.MustCompile(`\{[a-z_]+\}`)

// WantWhole looks at what holds for every report: ids are there once, what is not good is
// explained, and all is in lines.
func WantWhole(t *testing.T, r *finding.Report) {
	t.Helper()
	seen := make(map[string]bool)
	for _, c := range r.Checks {
		if seen[c.ID] || c.Group == "" || !strings.HasPrefix(c.ID, c.Group+".") {
			t.Errorf("check %q of group %q: want an id of its own that begins with the group", c.ID, c.Group)
		}
		seen[c.ID] = true
		if bad := c.Status == finding.Fail || c.Status == finding.Warn; bad != (c.Means != "") || bad != (c.Do != "") {
			t.Errorf("%s %s (%s) means %q, do %q", c.Status, c.ID, c.Found, c.Means, c.Do)
		}
		if c.What == "" || c.Found == "" || strings.ContainsAny(c.What+c.Found+c.Means+c.Do, "\n\r\x1b") {
			t.Errorf("check %s: %q: %q", c.ID, c.What, c.Found)
		}
		if m := placeholder.FindString(c.Means + c.Do); m != "" {
			t.Errorf("check %s shows the placeholder %s", c.ID, m)
		}
	}
}

// Find returns the check of that id.
func Find(t *testing.T, r *finding.Report, id string) finding.Check {
	t.Helper()
	for _, c := range r.Checks {
		if c.ID == id {
			return c
		}
	}
	var ids []string
	for _, c := range r.Checks {
		ids = append(ids, c.ID)
		if c.Status == finding.Fail {
			ids = append(ids, "("+c.Found+")")
		}
	}
	t.Fatalf("there is no check %s, but %s", id, strings.Join(ids, " "))
	return finding.Check{}
}

// Want compares a check's status, and looks for words in what it says.
func Want(t *testing.T, r *finding.Report, id string, status finding.Status, words ...string) {
	t.Helper()
	c := Find(t, r, id)
	text := strings.Join([]string{c.What, c.Found, c.Means, c.Do}, " | ")
	if c.Status != status {
		t.Errorf("%s is %s, want %s: %s", id, c.Status, status, text)
	}
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%s says %s, want %q in it", id, text, w)
		}
	}
}

// WantGood looks for checks that are not ok.
func WantGood(t *testing.T, r *finding.Report) {
	t.Helper()
	for _, c := range r.Checks {
		if c.Status == finding.Warn || c.Status == finding.Fail {
			t.Errorf("%s %s: %s: %s | %s", c.Status, c.ID, c.Found, c.Means, c.Do)
		}
	}
}

// WantVoice looks at the voice of advices: one line each, without full stop, and naming only
// commands that there are.
func WantVoice(t *testing.T, all map[string]finding.Advice) {
	t.Helper()
	commands := commandNames(t)
	for name, a := range all {
		for _, text := range []string{a.Means, a.Do} {
			if text == "" || strings.HasSuffix(text, ".") || strings.Contains(text, "\n") {
				t.Errorf("%s: %q, want one line without full stop", name, text)
			}
			for _, m := range commandForm.FindAllStringSubmatch(text, -1) {
				if !commands[m[1]] {
					t.Errorf("%s: %q names the command %s, which there is not", name, text, m[1])
				}
			}
		}
	}
}

var (
	commandForm = regexp.MustCompile(`"sendas ([a-z]+)`)
	useForm     = regexp.MustCompile(`Use:\s+"([a-z]+)`)
)

// commandNames reads the names of the commands where they are made.
func commandNames(t *testing.T) map[string]bool {
	t.Helper()
	files, err := filepath.Glob("../../sendas/*.go")
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range useForm.FindAllStringSubmatch(string(text), -1) {
			names[m[1]] = true
		}
	}
	if !names["doctor"] || !names["check"] {
		t.Fatalf("the commands are %v", names)
	}
	return names
}
