package main

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/sendas/sendas/cmd/internal/config"
)

// A setting is one key of the sample configuration.
type setting struct {
	path string // tenant.endpoints.authority, credentials.NAME.flow, mailboxes[].address
	text string // the explanation above it; "" where another one has said it
	line string // as it is written, without the # in front
}

// sampleLine takes a line apart: indent, "#" where it is commented out, "- " of a list, key and
// value.
var sampleLine = regexp.MustCompile(`^( *)(#?)(- )?([a-z_-]+):(.*)$`)

// mapKeys are the settings below which every name is the administrator's.
var mapKeys = map[string]bool{"credentials": true}

// readSample returns the introduction and the settings of the sample configuration, in its order.
// Its own first lines say how it is written: "# " is explanation, "#" without a blank a setting.
func readSample(sample string) (intro string, list []setting) {
	type level struct {
		column int
		path   string
	}
	var (
		stack []level
		text  []string
	)
	for line := range strings.Lines(sample) {
		line = strings.TrimRight(line, "\n")
		bare := strings.TrimSpace(line)
		switch {
		case bare == "":
			if intro == "" {
				intro = strings.Join(text, "\n")
			}
			text = nil
			continue
		case bare == "#" || strings.HasPrefix(bare, "# "):
			text = append(text, strings.TrimPrefix(bare[1:], " "))
			continue
		}
		m := sampleLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		column := len(m[1])
		for len(stack) > 0 && stack[len(stack)-1].column >= column {
			stack = stack[:len(stack)-1]
		}
		parent := ""
		if len(stack) > 0 {
			parent = stack[len(stack)-1].path
		}
		if m[3] != "" { // the entry of a list: its keys stand behind the dash
			parent += "[]"
			stack = append(stack, level{column, parent})
			column += len(m[3])
		}
		name := m[4]
		if mapKeys[parent] {
			name = "NAME"
		}
		path := config.JoinPath(parent, name)
		stack = append(stack, level{column, path})
		list = append(list, setting{path: path, text: strings.Join(text, "\n"), line: m[3] + m[4] + ":" + m[5]})
		text = nil
	}
	return intro, list
}

// configPage is sendas.yaml(5), made of the sample.
func configPage(sample, date string) []byte {
	p := newRoff("sendas.yaml", "5", date)
	p.section("NAME")
	p.text(`sendas.yaml \- configuration of sendas`)
	p.section("SYNOPSIS")
	p.text("/etc/sendas/sendas.yaml")
	p.section("DESCRIPTION")
	intro, settings := readSample(sample)
	_, intro, _ = strings.Cut(intro, "\n\n") // the first line is a title
	p.prose(intro)
	fmt.Fprintln(p, ".PP")
	p.prose("Below, NAME stands for a name that the administrator chooses, and [] for the entries of a list.")
	p.section("SETTINGS")
	for _, s := range settings {
		p.setting(s)
	}
	p.section("SEE ALSO")
	p.text(roffText("sendas(1), sendas-check(1), sendas-explain(1), postconf(5)"))
	return p.Bytes()
}

// setting writes one setting: a section of the file as a section of the page, the others below it.
func (p *roff) setting(s setting) {
	switch {
	case !strings.ContainsAny(s.path, ".["):
		fmt.Fprintf(p, ".SS %s\n", roffText(s.path))
	case mapKeys[strings.TrimSuffix(s.path, ".NAME")]: // one more example
		fmt.Fprintln(p, ".PP")
	default:
		fmt.Fprintln(p, ".TP")
		p.text(`\fB` + roffText(s.path) + `\fR`)
	}
	if s.text != "" {
		for line := range strings.SplitSeq(s.text, "\n") {
			p.text(roffText(line))
		}
		fmt.Fprintln(p, ".br")
	}
	if !strings.HasSuffix(s.line, ":") {
		p.text(`\fI` + breakable.Replace(roffText(s.line)) + `\fR`)
	}
}

// breakable lets a long value go on in the next line, without a hyphen in it.
var breakable = strings.NewReplacer("/", `/\:`, ":", `:\:`)
