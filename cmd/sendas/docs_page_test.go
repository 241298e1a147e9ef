package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// tree is the root of the source.
const tree = "../.."

// A docPage is one page of the documentation.
type docPage struct {
	name   string // from the root of the source: docs/setup.md
	text   string
	blocks []docBlock
	prose  []docLine // what is outside of blocks
}

// A docBlock is a piece of code: between fences, or indented by four blanks.
type docBlock struct {
	at   string // page and line
	kind string // the first word of the info string: yaml, sh, main.cf; text where there is none; "" for an indented block
	of   string // the second one: the program whose yaml it is, where that is not sendas
	text string
}

type docLine struct {
	at, text string
}

// docPages returns the pages of the documentation, README first.
func docPages(t *testing.T) []*docPage {
	t.Helper()
	names := []string{"README.md", "CONTRIBUTING.md"}
	err := fs.WalkDir(os.DirFS(tree), "docs", func(name string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && path.Ext(name) == ".md" {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var list []*docPage
	for _, name := range names {
		list = append(list, readPage(t, name))
	}
	return list
}

func readPage(t *testing.T, name string) *docPage {
	t.Helper()
	p, err := parsePage(name, readText(t, filepath.Join(tree, name)))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var fence = regexp.MustCompile("^( *)(```+)(.*)$")

// parsePage takes a page apart.
func parsePage(name, text string) (*docPage, error) {
	p := &docPage{name: name, text: text}
	var b *docBlock // the block that is open
	var indent, end string
	blank := true // the line before was blank
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		at := fmt.Sprintf("%s:%d", name, i+1)
		m := fence.FindStringSubmatch(line)
		indented := strings.HasPrefix(line, "    ")
		switch {
		case end != "" && strings.TrimSpace(line) == end:
			b, end = nil, ""
		case end != "":
			b.text += strings.TrimPrefix(line, indent) + "\n"
		case m != nil:
			words := append(strings.Fields(m[3]), "", "")
			words[0] = cmp.Or(words[0], "text")
			p.blocks = append(p.blocks, docBlock{at: at, kind: words[0], of: words[1]})
			b, indent, end = &p.blocks[len(p.blocks)-1], m[1], m[2]
		case indented && b != nil:
			b.text += strings.TrimSpace(line) + "\n"
		case indented && blank:
			p.blocks = append(p.blocks, docBlock{at: at, text: strings.TrimSpace(line) + "\n"})
			b = &p.blocks[len(p.blocks)-1]
		default:
			b = nil
			p.prose = append(p.prose, docLine{at, line})
		}
		blank = strings.TrimSpace(line) == ""
	}
	if end != "" {
		return nil, fmt.Errorf("%s: the last block does not end", name)
	}
	return p, nil
}

func TestParsePage(t *testing.T) {
	const text = "# A\n\n  ```yaml prometheus\n  a: 1\n    b\n  ```\ntext\n\n    # sendas check\n    sendas status\nmore `x`\n"
	p, err := parsePage("a.md", text)
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%+v %+v", p.blocks, p.prose)
	const want = "[{at:a.md:3 kind:yaml of:prometheus text:a: 1\n  b\n} {at:a.md:9 kind: of: text:# sendas check\nsendas status\n}] " +
		"[{at:a.md:1 text:# A} {at:a.md:2 text:} {at:a.md:7 text:text} {at:a.md:8 text:} {at:a.md:11 text:more `x`}]"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if _, err := parsePage("a.md", "```sh\nsendas check\n"); err == nil {
		t.Error("a block without end is a page")
	}
}

// joinedLines returns the lines of a block, those that end in a backslash with the next one.
func joinedLines(text string) []string {
	return strings.Split(strings.TrimSuffix(strings.ReplaceAll(text, "\\\n", " "), "\n"), "\n")
}

// typed returns what is typed to a shell in a line of a block, if that is sendas.
func typed(kind, line string) (string, bool) {
	switch kind {
	case "sh":
	case "console", "":
		line = strings.TrimPrefix(strings.TrimPrefix(line, "# "), "$ ")
	default:
		return "", false
	}
	line = strings.TrimPrefix(strings.TrimSpace(line), "sudo ")
	return line, strings.HasPrefix(line, "sendas ")
}

// shellWords takes the first command of a shell's line apart.
func shellWords(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	var quote rune
	begun := false
	flush := func() {
		if begun {
			words = append(words, word.String())
		}
		word.Reset()
		begun = false
	}
scan:
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, begun = r, true
		case r == ' ':
			flush()
		case strings.ContainsRune("|>;&", r), r == '#' && !begun:
			break scan
		default:
			word.WriteRune(r)
			begun = true
		}
	}
	flush()
	if quote != 0 {
		return nil, errors.New("a quote does not end")
	}
	return words, nil
}
