package cf

import (
	"regexp"
	"strings"
)

// A Change is one setting of ours, as the state file keeps it.
type Change struct {
	Service string  `json:"service,omitempty"` // "sendas/unix" in master.cf; "" is main.cf
	Name    string  `json:"name,omitempty"`    // of the parameter; "" is the whole entry
	Was     *string `json:"was"`               // nil where it was not set
	Now     string  `json:"now"`
	Added   string  `json:"added,omitempty"` // what is ours in a list of others' too

	Gone bool `json:"-"` // it is not there any more
}

// File is where the change is made.
func (c *Change) File() string {
	if c.Service == "" {
		return Main
	}
	return Master
}

// Title is how the setting is called in a line for a person.
func (c *Change) Title() string {
	switch {
	case c.Service == "":
		return c.Name
	case c.Name == "":
		return c.Service
	}
	return c.Service + "/" + c.Name
}

// Assignment is "name = value" as main.cf has it.
func Assignment(name, value string) string { return strings.TrimSpace(name + " = " + value) }

var diffLine = regexp.MustCompile(`^[-+ ](\w+) *=`)

// ShownLine is a line of a diff as it may be seen: tables in main.cf may hold passwords. A line that
// goes on does not say of which parameter it is.
func ShownLine(line string) string {
	name := ""
	if m := diffLine.FindStringSubmatch(line); m != nil {
		name = m[1]
	}
	if line == "" {
		return ""
	}
	return ShownParameter(name, line)
}

// A Gap is what cannot be known of a setting without the state file. It is kept there, once that is
// begun anew.
type Gap struct {
	Name string `json:"name"` // of the parameter
	Says string `json:"says"` // one sentence
}
