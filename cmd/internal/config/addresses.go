package config

import (
	"bytes"
	"regexp"
	"strings"
)

// Addresses returns where the services can be asked (token.http and milter.http), as well as a file
// tells that is wrong elsewhere: whoever asks what runs must not need a file that is good. What the
// file does not tell is the default. "" is off.
func Addresses(path string) (token, milter string) {
	c := Default()
	data, err := readFile(path, SkipFiles)
	if err != nil {
		return c.Token.HTTP, c.Milter.HTTP
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if got, d, p := decodeConfig(data, pieceSize); p == nil {
		for _, x := range []struct {
			path     string
			to, from *string
		}{{"token", &c.Token.HTTP, &got.Token.HTTP}, {"milter", &c.Milter.HTTP, &got.Milter.HTTP}} {
			if !d.isBroken(x.path + ".http") {
				*x.to = *x.from
			}
		}
	} else {
		scanAddresses(data, c)
	}
	for _, p := range []*string{&c.Token.HTTP, &c.Milter.HTTP} {
		if *p == "off" {
			*p = ""
		}
	}
	return c.Token.HTTP, c.Milter.HTTP
}

// isBroken reports whether nothing is known of a value.
func (d *decoder) isBroken(path string) bool {
	for _, b := range d.broken {
		if within(path, b) {
			return true
		}
	}
	return false
}

// What a file that is no YAML most likely says: a section at the margin, and the key below it or in
// its braces.
var (
	sectionLine = regexp.MustCompile(`^(token|milter):`)
	httpKey     = regexp.MustCompile(`(?:^\s+|[{,]\s*)http:\s+["']?([^\s"',}]+)`)
)

func scanAddresses(data []byte, c *Site) {
	var to *string
	for line := range strings.Lines(string(data)) {
		if line != "" && line[0] != ' ' && line[0] != '#' && line[0] != '\n' {
			to = nil
		}
		if m := sectionLine.FindStringSubmatch(line); m != nil {
			to = map[string]*string{"token": &c.Token.HTTP, "milter": &c.Milter.HTTP}[m[1]]
		}
		if m := httpKey.FindStringSubmatch(line); m != nil && to != nil {
			*to = m[1]
		}
	}
}
