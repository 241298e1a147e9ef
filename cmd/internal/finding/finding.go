// Package finding has the words for what a look at a host comes to: what was looked at, what is
// there, what it means, and what to do about it.
package finding

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sendas/sendas/internal/plaintext"
)

// A Status says how a check went; it is part of the JSON.
type Status string

// How a check can go.
const (
	OK   Status = "ok"
	Warn Status = "warn" // works, but not as it should
	Fail Status = "fail"
	Skip Status = "skip" // could not be checked, or has no sense here
)

// A check is one line of the result. The JSON keys are stable, and so are the ids.
type Check struct {
	ID     string `json:"id"`    // "postfix.smtp_reply_filter", "mailbox.scan@contoso.com.auth"
	Group  string `json:"group"` // "postfix"
	Status Status `json:"status"`
	What   string `json:"what"`  // was looked at
	Found  string `json:"found"` // there
	Means  string `json:"means"` // of what is not good
	Do     string `json:"do"`    // about it: a command to type where there is one

	Passes bool `json:"-"` // a failure that passes by itself
}

// An advice says what a finding means and what to do about it. {name} stands for what only the
// finding knows.
type Advice struct{ Means, Do string }

// With fills in what the finding knows, given as name, value, name, value.
func (a Advice) With(pairs ...string) Advice {
	list := slices.Clone(pairs)
	for i := 0; i < len(list); i += 2 {
		list[i] = "{" + list[i] + "}"
	}
	r := strings.NewReplacer(list...)
	return Advice{r.Replace(a.Means), r.Replace(a.Do)}
}

// A report collects the checks of one look. It belongs to one goroutine.
type Report struct {
	Checks []Check
	Show   func(*Check) // is told of each at once, for some take a minute; nil for nobody

	hidden []string // secrets that no line may show
}

// Hide keeps secrets out of all lines to come.
func (r *Report) Hide(secrets ...string) {
	for _, s := range secrets {
		if s != "" && !slices.Contains(r.hidden, s) {
			r.hidden = append(r.hidden, s)
		}
	}
}

// Fork returns an empty report that hides the same, for another goroutine. [Report.Join] brings its
// checks back.
func (r *Report) Fork() Report { return Report{hidden: slices.Clone(r.hidden)} }

// Join adds a check of a fork, which is presentable already.
func (r *Report) Join(c Check) {
	r.Checks = append(r.Checks, c)
	if r.Show != nil {
		r.Show(&c)
	}
}

// presentable makes one line of a text from outside, without what must not be seen in it.
func (r *Report) presentable(s string) string {
	for _, secret := range r.hidden {
		s = strings.ReplaceAll(s, secret, "REDACTED")
	}
	return plaintext.Style{Bad: '?'}.Line(s)
}

func (r *Report) add(c Check) {
	for _, p := range []*string{&c.What, &c.Found, &c.Means, &c.Do} {
		*p = r.presentable(*p)
	}
	r.Join(c)
}

// Section begins the checks of one group, whose ids begin with it; title begins what was looked at.
func (r *Report) Section(group, title string) Section {
	return Section{report: r, group: group, prefix: group + ".", title: title}
}

// A section notes the checks of one group.
type Section struct {
	report *Report
	group  string
	prefix string // of ids, with its dot
	title  string // of what was looked at
}

// Of narrows a section to one of several things of a kind.
func (s Section) Of(name string) Section {
	s.prefix += name + "."
	s.title += " " + name
	return s
}

// Note keeps a check.
func (s Section) Note(status Status, id, what, found string, a Advice) {
	s.put(status, id, what, found, a, false)
}

// Ok notes that something is as it should be.
func (s Section) Ok(id, what, format string, args ...any) {
	s.put(OK, id, what, fmt.Sprintf(format, args...), Advice{}, false)
}

// Skip notes what was not looked at, and why.
func (s Section) Skip(id, what, format string, args ...any) {
	s.put(Skip, id, what, fmt.Sprintf(format, args...), Advice{}, false)
}

// Warn notes what works, but not as it should.
func (s Section) Warn(id, what, found string, a Advice) { s.put(Warn, id, what, found, a, false) }

// Fail notes what is wrong.
func (s Section) Fail(id, what, found string, a Advice) { s.put(Fail, id, what, found, a, false) }

// Wait notes a failure that passes by itself.
func (s Section) Wait(id, what, found string, a Advice) { s.put(Fail, id, what, found, a, true) }

// Trouble notes a failure, which passes by itself or does not.
func (s Section) Trouble(passes bool, id, what, found string, a Advice) {
	s.put(Fail, id, what, found, a, passes)
}

func (s Section) put(status Status, id, what, found string, a Advice, passes bool) {
	s.report.add(Check{ID: s.prefix + id, Group: s.group, Status: status, What: strings.TrimSpace(s.title + " " + what), Found: found,
		Means: a.Means, Do: a.Do, Passes: passes})
}
