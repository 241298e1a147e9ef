// Package pagetest holds the tables of docs/troubleshooting.md against those that sendas explains
// codes with.
package pagetest

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// compareRows says which rows only one side has.
func compareRows(t *testing.T, name string, have, want []string) {
	t.Helper()
	const hint = `type "go test ./token/... -run TestTroubleshootingPage -update-page"`
	for _, row := range want {
		if !slices.Contains(have, row) {
			t.Errorf("the table %q misses a row (%s):\n%s", name, hint, row)
		}
	}
	for _, row := range have {
		if !slices.Contains(want, row) {
			t.Errorf("the table %q has a row that sendas does not have (%s):\n%s", name, hint, row)
		}
	}
	if !slices.Equal(have, want) && !t.Failed() {
		t.Errorf("the rows of the table %q are in another order (%s)", name, hint)
	}
}

// Words are the placeholders of explanations as the page has them.
var Words = strings.NewReplacer("{credential}", "CREDENTIAL", "{client_id}", "CLIENT_ID", "{file}", "FILE", "|", `\|`)

func Head(columns ...string) []string {
	return []string{Row(columns...), Row(slices.Repeat([]string{"---"}, len(columns))...)}
}

func Row(cells ...string) string { return "| " + strings.Join(cells, " | ") + " |\n" }

var updatePage = flag.Bool("update-page", false, "write the tables of docs/troubleshooting.md anew")

// troubleshooting is the page, from the root of the project.
const troubleshooting = "docs/troubleshooting.md"

// onDisk returns where the page is, from wherever the test runs.
func onDisk(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, troubleshooting)
		}
		if dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	t.Fatalf("no folder above this one has a go.mod: %v", err)
	return ""
}

// Check compares the tables of the page with those that sendas explains codes with; neither
// misses a row.
func Check(t *testing.T, tables map[string][]string) {
	t.Helper()
	b, err := os.ReadFile(onDisk(t))
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	for name, rows := range tables {
		before, rest, ok := strings.Cut(page, "<!-- begin "+name+" -->\n")
		have, after, end := strings.Cut(rest, "<!-- end "+name+" -->\n")
		if !ok || !end {
			t.Errorf("the page has no place for the table %q", name)
			continue
		}
		if *updatePage {
			page = before + "<!-- begin " + name + " -->\n" + strings.Join(rows, "") + "<!-- end " + name + " -->\n" + after
			continue
		}
		compareRows(t, name, slices.Collect(strings.Lines(have)), rows)
	}
	if *updatePage {
		if err := os.WriteFile(onDisk(t), []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
