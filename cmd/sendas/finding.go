package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/sendas/sendas/internal/plaintext"
)

// A checkStatus says how a check went; it is part of the JSON.
type checkStatus string

// How a check can go.
const (
	checkOK   checkStatus = "ok"
	checkWarn checkStatus = "warn" // works, but not as it should
	checkFail checkStatus = "fail"
	checkSkip checkStatus = "skip" // could not be checked, or has no sense here
)

// A check is one line of the result. The JSON keys are stable, and so are the ids.
type check struct {
	ID     string      `json:"id"`    // "postfix.smtp_reply_filter", "mailbox.scan@contoso.com.auth"
	Group  string      `json:"group"` // "postfix"
	Status checkStatus `json:"status"`
	What   string      `json:"what"`  // was looked at
	Found  string      `json:"found"` // there
	Means  string      `json:"means"` // of what is not good
	Do     string      `json:"do"`    // about it: a command to type where there is one

	passes bool // a failure that passes by itself
}

// print writes the check for a person.
func (c *check) print(w io.Writer) {
	word := string(c.Status)
	if c.Status == checkFail {
		word = "FAIL"
	}
	fmt.Fprintf(w, "%-4s  %s: %s\n", word, c.What, c.Found)
	if c.Means != "" {
		fmt.Fprintf(w, "  means: %s\n", c.Means)
	}
	if c.Do != "" {
		fmt.Fprintf(w, "  do: %s\n", c.Do)
	}
}

// An advice says what a finding means and what to do about it. {name} stands for what only the
// finding knows.
type advice struct{ means, do string }

// with fills in what the finding knows, given as name, value, name, value.
func (a advice) with(pairs ...string) advice {
	list := slices.Clone(pairs)
	for i := 0; i < len(list); i += 2 {
		list[i] = "{" + list[i] + "}"
	}
	r := strings.NewReplacer(list...)
	return advice{r.Replace(a.means), r.Replace(a.do)}
}

// A report collects the checks of one look. It belongs to one goroutine.
type report struct {
	checks []check
	show   func(*check) // is told of each at once, for some take a minute; nil for nobody

	hidden []string // secrets that no line may show
}

// hide keeps secrets out of all lines to come.
func (r *report) hide(secrets ...string) {
	for _, s := range secrets {
		if s != "" && !slices.Contains(r.hidden, s) {
			r.hidden = append(r.hidden, s)
		}
	}
}

// presentable makes one line of a text from outside, without what must not be seen in it.
func (r *report) presentable(s string) string {
	for _, secret := range r.hidden {
		s = strings.ReplaceAll(s, secret, "REDACTED")
	}
	return plaintext.Style{Bad: '?'}.Line(s)
}

func (r *report) add(c check) {
	for _, p := range []*string{&c.What, &c.Found, &c.Means, &c.Do} {
		*p = r.presentable(*p)
	}
	r.checks = append(r.checks, c)
	if r.show != nil {
		r.show(&c)
	}
}

// section begins the checks of one group, whose ids begin with it; title begins what was looked at.
func (r *report) section(group, title string) section {
	return section{report: r, group: group, prefix: group + ".", title: title}
}

// A section notes the checks of one group.
type section struct {
	report *report
	group  string
	prefix string // of ids, with its dot
	title  string // of what was looked at
}

// of narrows a section to one of several things of a kind.
func (s section) of(name string) section {
	s.prefix += name + "."
	s.title += " " + name
	return s
}

// note keeps a check.
func (s section) note(status checkStatus, id, what, found string, a advice) {
	s.put(status, id, what, found, a, false)
}

// ok notes that something is as it should be.
func (s section) ok(id, what, format string, args ...any) {
	s.put(checkOK, id, what, fmt.Sprintf(format, args...), advice{}, false)
}

// skip notes what was not looked at, and why.
func (s section) skip(id, what, format string, args ...any) {
	s.put(checkSkip, id, what, fmt.Sprintf(format, args...), advice{}, false)
}

// warn notes what works, but not as it should.
func (s section) warn(id, what, found string, a advice) { s.put(checkWarn, id, what, found, a, false) }

// fail notes what is wrong.
func (s section) fail(id, what, found string, a advice) { s.put(checkFail, id, what, found, a, false) }

// wait notes a failure that passes by itself.
func (s section) wait(id, what, found string, a advice) { s.put(checkFail, id, what, found, a, true) }

// trouble notes a failure, which passes by itself or does not.
func (s section) trouble(passes bool, id, what, found string, a advice) {
	s.put(checkFail, id, what, found, a, passes)
}

func (s section) put(status checkStatus, id, what, found string, a advice, passes bool) {
	s.report.add(check{ID: s.prefix + id, Group: s.group, Status: status, What: strings.TrimSpace(s.title + " " + what), Found: found,
		Means: a.means, Do: a.do, passes: passes})
}
