package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// A module is something that the program is linked with.
type module struct {
	Path, Version, Dir string
}

// linked lists the modules whose code is in the program, and Go's own library, sorted by path.
func linked(pkg string) ([]module, error) {
	cmd := exec.Command("go", "list", "-deps", "-json=Module", pkg)
	cmd.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("listing what %s is linked with: %w", pkg, err)
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("finding Go's own folder: %w", err)
	}
	list := []module{{Path: "go", Dir: strings.TrimSpace(string(root))}}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			Module *struct {
				module
				Main bool
			}
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		if p.Module != nil && !p.Module.Main && !slices.Contains(list, p.Module.module) {
			list = append(list, p.Module.module)
		}
	}
	slices.SortFunc(list, func(a, b module) int { return strings.Compare(a.Path, b.Path) })
	return list, nil
}

const header = `Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: sendas
Source: https://github.com/sendas/sendas
Comment: The program is linked with the Go modules named below vendor/, which are not
 part of its source.

Files: *
Copyright: 2026 The sendas authors
License: Apache-2.0
`

const apache = `
License: Apache-2.0
 Licensed under the Apache License, Version 2.0; on Debian systems its text is
 in /usr/share/common-licenses/Apache-2.0, and elsewhere at
 https://www.apache.org/licenses/LICENSE-2.0
`

// copyright writes debian/copyright in the form of DEP 5.
func copyright(w io.Writer, mods []module) error {
	var b bytes.Buffer
	b.WriteString(header)
	for _, m := range mods {
		text, err := readOne(m.Dir, "LICENSE", "LICENSE.md", "LICENSE.txt", "COPYING")
		if os.IsNotExist(err) && m.Path == "go" { // as Debian and Fedora have it
			text, err = readOne(filepath.Dir(m.Dir), "LICENSE")
		}
		if err != nil {
			return fmt.Errorf("the licence of %s: %w", m.Path, err)
		}
		name := licence(text)
		if name == "" {
			return fmt.Errorf("%s: its licence is none of those known here; teach it to licence()", m.Path)
		}
		fmt.Fprintf(&b, "\nFiles: vendor/%s/*\nCopyright: %s\nLicense: %s\n", m.Path, owners(m.Path, text), name)
		if name != "Apache-2.0" {
			b.WriteString(field(text))
		}
		// A notice has to be passed on: section 4 (d) of the Apache License.
		if notice, err := readOne(m.Dir, "NOTICE", "NOTICE.txt"); err == nil {
			fmt.Fprintf(&b, "Comment:\n%s", field(notice))
		}
	}
	b.WriteString(apache)
	_, err := w.Write(b.Bytes())
	return err
}

// readOne returns the first of these files that is there.
func readOne(dir string, names ...string) (text string, err error) {
	for _, n := range names {
		var b []byte
		if b, err = os.ReadFile(filepath.Join(dir, n)); err == nil {
			return string(b), nil
		}
	}
	return "", err
}

// licence recognises the licences that Go modules have, "" for any other. Adding a module with
// another licence is a decision that somebody has to make.
func licence(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	for _, l := range []struct{ has, name string }{
		{"Apache License", "Apache-2.0"},
		{"Permission is hereby granted, free of charge", "Expat"},
		{"Neither the name", "BSD-3-Clause"},
		{"may be used to endorse or promote products", "BSD-3-Clause"},
		{"Redistribution and use in source and binary forms", "BSD-2-Clause"},
		{"Permission to use, copy, modify, and/or distribute this software for any purpose", "ISC"},
	} {
		if strings.Contains(text, l.has) {
			return l.name
		}
	}
	return ""
}

var copyrightLine = regexp.MustCompile(`(?mi)^\s*copyright (?:\(c\) |© )?(\d{4}.*\S)\s*$`)

// owners returns whom the licence names.
func owners(path, text string) string {
	var list []string
	for _, m := range copyrightLine.FindAllStringSubmatch(text, -1) {
		list = append(list, strings.TrimSuffix(m[1], " All rights reserved."))
	}
	if len(list) == 0 {
		return "the authors of " + path
	}
	return strings.Join(list, "\n ")
}

// field indents a text as the value of a field: a blank line is a dot.
func field(text string) string {
	var b strings.Builder
	for line := range strings.Lines(strings.Trim(text, "\n") + "\n") {
		if line = strings.TrimRight(line, " \t\r\n"); line == "" {
			line = "."
		}
		b.WriteString(" " + line + "\n")
	}
	return b.String()
}
