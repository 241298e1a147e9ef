package config

import (
	"bytes"
	"reflect"
	"regexp"
	"sort"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// pieceSize is how many bytes of a list are parsed at once. The parser takes about fifty times the
// memory of its text, so that the tree of a file with many thousand entries would be larger than
// all that a service keeps of them.
const pieceSize = 64 << 10

// A longList is one of the lists that grow with a site. It is taken out of the document and parsed
// a piece at a time.
type longList struct {
	key    string
	line   int // of the key
	indent int // of each entry; -1 before the first
	count  int // entries
	pieces []piece
}

// A piece is some entries of a list, as they stand in the file.
type piece struct {
	text         []byte
	before       int // lines of the file in front of it
	first, count int // entries
}

// longKey is a line that begins a list that grows with a site.
var longKey = regexp.MustCompile(`^(mailboxes|clients|identities):\s*(#.*)?$`)

// blockText is a line below which a text stands that has margins of its own.
var blockText = regexp.MustCompile(`(^|[\s:?-])[|>][-+0-9]*(\s+#.*)?$`)

// A cutter takes the long lists out of a file.
type cutter struct {
	data  []byte
	size  int // of a piece, in bytes
	rest  []byte
	lists []*longList
	in    *longList // where the line stands; nil outside of all
	start int       // of the piece in data
}

// cutLists takes the long lists out of a file that is written as nearly all are: an entry begins
// with a dash at the margin of its list, and goes on deeper than that. rest is the file with empty
// lines in their place, so that all others keep their numbers. Where a list is written in any other
// way, ok is false.
func cutLists(data []byte, size int) (rest []byte, lists []*longList, ok bool) {
	c := cutter{data: data, size: size}
	at, n := 0, 0
	for line := range bytes.Lines(data) {
		if !c.line(line, at, n) {
			return nil, nil, false
		}
		at, n = at+len(line), n+1
	}
	for _, l := range c.lists {
		if l.count > 0 {
			lists = append(lists, l)
		}
	}
	return c.rest, lists, len(lists) > 0
}

// line takes the next line, which begins at an offset and has so many lines in front of it.
func (c *cutter) line(line []byte, at, before int) bool {
	text := bytes.TrimSpace(line)
	depth := len(line) - len(bytes.TrimLeft(line, " "))
	blank := len(text) == 0 || text[0] == '#'
	entry := len(text) > 0 && text[0] == '-' && (len(text) == 1 || text[1] == ' ')
	if depth == 0 && !blank && (c.in == nil || !entry) {
		c.in = nil
		if m := longKey.FindSubmatch(text); m != nil {
			c.in = &longList{key: string(m[1]), line: before + 1, indent: -1}
			c.lists = append(c.lists, c.in)
		}
	}
	if c.in == nil || c.in.line == before+1 {
		c.rest = append(c.rest, line...)
		return true
	}
	c.rest = append(c.rest, '\n')
	switch {
	case blank:
	case entry && (c.in.indent < 0 || depth == c.in.indent):
		c.in.indent = depth
		c.entry(at, before)
	case depth <= c.in.indent || c.in.indent < 0:
		return false
	}
	if c.in.count > 0 {
		c.in.pieces[len(c.in.pieces)-1].text = c.data[c.start : at+len(line)]
	}
	return blank || !bytes.ContainsAny(text, "|>") || !blockText.Match(text)
}

// entry begins an entry, and a piece where the last one is long enough.
func (c *cutter) entry(at, before int) {
	if l := c.in; l.count == 0 || at-c.start >= c.size {
		c.start = at
		l.pieces = append(l.pieces, piece{before: before, first: l.count})
	}
	c.in.pieces[len(c.in.pieces)-1].count++
	c.in.count++
}

// parse returns the entries of the piece, or nil where they are not what they look like.
func (p *piece) parse() *ast.SequenceNode {
	root, problem := parseYAML(p.text)
	s, ok := root.(*ast.SequenceNode)
	if problem != nil || !ok || len(s.Values) != p.count {
		return nil
	}
	return s
}

// decodePieces decodes a file whose long lists are parsed a piece at a time. It returns nil where
// the file has to be parsed as a whole: it is no YAML, or written in an unusual way.
func decodePieces(data []byte, size int) (*Site, *decoder) {
	rest, lists, ok := cutLists(data, size)
	if !ok {
		return nil, nil
	}
	root, problem := parseYAML(rest)
	if problem != nil {
		return nil, nil
	}
	c, d := Default(), &decoder{root: root, lists: lists}
	d.decode(c)
	v := reflect.ValueOf(c).Elem()
	for _, l := range lists {
		if !l.cutFrom(root) || !d.longList(l, v.Field(fieldIndex(v.Type(), l.key))) {
			return nil, nil
		}
	}
	return c, d
}

// cutFrom reports whether the list stood where it seemed to stand: what is left of it is its key.
func (l *longList) cutFrom(root ast.Node) bool {
	entries, _ := entriesOf(root)
	n := 0
	for _, e := range entries {
		if keyName(e) == l.key {
			n++
			if lineOf(e.Key) != l.line || e.Value.Type() != ast.NullType {
				return false
			}
		}
	}
	return n == 1
}

// longList decodes the entries of a list, whose trees are garbage as soon as that is done.
func (d *decoder) longList(l *longList, v reflect.Value) bool {
	defer func() { d.before = 0 }()
	v.Set(reflect.MakeSlice(v.Type(), l.count, l.count))
	for i := range l.pieces {
		p := &l.pieces[i]
		s := p.parse()
		if s == nil {
			return false
		}
		d.before = p.before
		d.items(l.key, s.Values, v, p.first)
	}
	return true
}

// tree returns the tree in which a path has to be looked for, the path in it, and how many lines of
// the file stand in front of it.
func (d *decoder) tree(path string) (root ast.Node, rest string, before int) {
	for _, l := range d.lists {
		key, rest, _ := strings.Cut(path, "[")
		index, rest, _ := strings.Cut(rest, "]")
		i, err := strconv.Atoi(index)
		if key != l.key || err != nil || i < 0 || i >= l.count {
			continue
		}
		p := &l.pieces[sort.Search(len(l.pieces), func(j int) bool { return l.pieces[j].first > i })-1]
		if d.piece != p { // one problem is seldom alone
			d.piece, d.found = p, p.parse()
		}
		return d.found, "[" + strconv.Itoa(i-p.first) + "]" + rest, p.before
	}
	return d.root, path, 0
}
