// Mkdoc writes what a package has to have besides the program: its changelog, the licences of all
// that the program is linked with, and pages whose links lead somewhere where they are installed.
//
//	mkdoc changelog VERSION < CHANGELOG.md
//	mkdoc copyright ./cmd/sendas
//	mkdoc page docs/setup.md
//
// SOURCE_DATE_EPOCH is the time of what is not released yet.
package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "mkdoc: error: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string, in io.Reader, out io.Writer) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: mkdoc changelog VERSION | mkdoc copyright PACKAGE | mkdoc page FILE")
	}
	switch args[0] {
	case "changelog":
		sec, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
		if err != nil {
			return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
		}
		text, err := io.ReadAll(in)
		if err != nil {
			return err
		}
		s, err := changelog(string(text), args[1], time.Unix(sec, 0))
		if err != nil {
			return err
		}
		_, err = io.WriteString(out, s)
		return err
	case "page":
		text, err := os.ReadFile(args[1])
		if err != nil {
			return err
		}
		_, err = io.WriteString(out, relink(args[1], string(text)))
		return err
	case "copyright":
		mods, err := linked(args[1])
		if err != nil {
			return err
		}
		return copyright(out, mods)
	}
	return fmt.Errorf("unknown command %q", args[0])
}
