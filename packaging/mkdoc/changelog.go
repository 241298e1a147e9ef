package main

import (
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"
)

// Maintainer stands in the package and below each entry of its changelog.
const Maintainer = "The sendas authors <sendas@users.noreply.github.com>"

// release is the heading of a version in CHANGELOG.md: "## 1.2.0 (2026-12-01)". What is not out yet
// stands under "## Unreleased".
var release = regexp.MustCompile(`^## (?:Unreleased|([0-9]\S*) \((\d{4}-\d\d-\d\d)\))$`)

// changelog turns CHANGELOG.md into the form of deb-changelog(5). What is not released yet becomes
// the entry of the version that is built.
func changelog(md, version string, now time.Time) (string, error) {
	var b strings.Builder
	var items []string
	head, at := "", now
	flush := func() {
		if head == "" || len(items) == 0 {
			return
		}
		fmt.Fprintf(&b, "sendas (%s) unstable; urgency=medium\n\n", head)
		for _, item := range items {
			b.WriteString(wrap("  * ", "    ", item))
		}
		fmt.Fprintf(&b, "\n -- %s  %s\n\n", Maintainer, at.UTC().Format("Mon, 02 Jan 2006 15:04:05 -0700"))
		items = nil
	}
	for line := range strings.Lines(md) {
		line = strings.TrimRight(line, " \n")
		switch m := release.FindStringSubmatch(line); {
		case m != nil:
			flush()
			head, at = version, now
			if m[1] != "" {
				day, err := time.Parse(time.DateOnly, m[2])
				if err != nil {
					return "", fmt.Errorf("%q: %w", line, err)
				}
				head, at = m[1], day
			}
		case strings.HasPrefix(line, "#") && head != "":
			return "", fmt.Errorf("%q is not of the form %q", line, "## 1.2.0 (2026-12-01)")
		case strings.HasPrefix(line, "- "):
			items = append(items, line[2:])
		case strings.HasPrefix(line, "  ") && len(items) > 0:
			items[len(items)-1] += " " + strings.TrimSpace(line)
		}
	}
	flush()
	if b.Len() == 0 { // nothing is noted since the last release, and there was none
		return "", fmt.Errorf("the changelog has no entries")
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// lineWidth is how many characters a line of a Debian changelog may have.
const lineWidth = 80

// wrap breaks a text into lines, the first of which begins otherwise than the rest.
func wrap(first, rest, text string) string {
	var b strings.Builder
	line, blank := first, ""
	for word := range strings.FieldsSeq(text) {
		if blank != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > lineWidth {
			b.WriteString(line + "\n")
			line, blank = rest, ""
		}
		line += blank + word
		blank = " "
	}
	return b.String() + line + "\n"
}
