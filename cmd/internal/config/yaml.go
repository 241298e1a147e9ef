package config

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/sendas/sendas/internal/serve"
	"github.com/sendas/sendas/policy/limit"
)

// maxDepth bounds what stands within each other on one line or in brackets. The configuration
// needs 4; the parser calls itself for each and would end the process on a million.
const maxDepth = 32

// parseYAML returns the one document of the file, or what is wrong with it.
func parseYAML(data []byte) (root ast.Node, p *Problem) {
	defer func() { // the parser is known to panic on some malformed files
		if recover() != nil {
			root, p = nil, &Problem{Line: 1, Text: "is not YAML; the parser cannot read it at all"}
		}
	}()
	tokens := lexer.Tokenize(string(data))
	if line := tooDeep(tokens); line > 0 {
		return nil, &Problem{Line: line, Text: "brackets or dashes stand too deep within each other; the configuration needs few"}
	}
	f, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey()) // the decoder finds duplicates
	if err != nil {
		return nil, syntaxProblem(data, err)
	}
	if len(f.Docs) > 1 {
		return nil, &Problem{Line: lineOf(f.Docs[1]), Text: `a second document begins here ("---"); one file holds one configuration`}
	}
	if len(f.Docs) == 0 || f.Docs[0].Body == nil || f.Docs[0].Body.Type() == ast.NullType {
		return nil, &Problem{Line: 1, Text: "the configuration is empty; it needs tenant:, credentials:, mailboxes: and clients:"}
	}
	return f.Docs[0].Body, nil
}

// tooDeep returns the line on which maxDepth is passed, or 0.
func tooDeep(tokens token.Tokens) int {
	brackets, line, onLine := 0, 0, 0
	for _, t := range tokens {
		if t.Position == nil {
			continue
		}
		if t.Position.Line != line {
			line, onLine = t.Position.Line, 0
		}
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			brackets++
		case token.SequenceEndType, token.MappingEndType:
			brackets--
		case token.SequenceEntryType, token.MappingKeyType, token.AnchorType, token.TagType:
			onLine++
		}
		if brackets > maxDepth || onLine > maxDepth {
			return max(1, line)
		}
	}
	return 0
}

// A decoder puts a document into a Site and notes what does not fit. It takes the
// plain part of YAML only: what looks like text is text, and every value stands where it is
// used. The library's own decoder would stop at the first problem.
type decoder struct {
	root     ast.Node
	lists    []*longList // of which root has the keys alone
	before   int         // lines in front of the piece that is decoded
	problems []Problem
	broken   []string // paths of which nothing is known, so that what follows from them is not reported too

	piece *piece            // the one that was last searched
	found *ast.SequenceNode // its entries
}

// decodeConfig puts a file into a Site and returns the decoder with what it found. Lists that are
// longer than size are parsed in pieces of about that many bytes.
func decodeConfig(data []byte, size int) (*Site, *decoder, *Problem) {
	if len(data) > size {
		if c, d := decodePieces(data, size); d != nil {
			return c, d, nil
		}
	}
	root, p := parseYAML(data)
	if p != nil {
		return nil, nil, p
	}
	c, d := Default(), &decoder{root: root}
	d.decode(c)
	return c, d, nil
}

func (d *decoder) decode(c *Site) {
	d.value("", d.root, reflect.ValueOf(c).Elem())
}

// fail notes a problem with the value at n.
func (d *decoder) fail(path string, n ast.Node, format string, args ...any) {
	d.problems = append(d.problems, Problem{Line: d.line(n), Path: path, Text: fmt.Sprintf(format, args...)})
	d.broken = append(d.broken, path)
}

func (d *decoder) value(path string, n ast.Node, v reflect.Value) {
	if !d.plain(path, n) {
		return
	}
	if v.Kind() == reflect.Slice {
		d.list(path, n, v)
		return
	}
	switch p := v.Addr().Interface().(type) {
	case *string:
		if s, ok := d.scalar(path, n); ok {
			*p = s
		}
	case *serve.Address:
		if s, ok := d.scalar(path, n); ok {
			*p = serve.Address(s)
		}
	case *bool:
		d.boolean(path, n, p)
	case *int:
		d.integer(path, n, p)
	case *limit.Rate:
		d.rate(path, n, p)
	case *time.Duration:
		d.duration(path, n, p)
	case *map[string]Credential:
		d.credentials(path, n, p)
	case *Bytes:
		d.bytes(path, n, p)
	case *Record:
		if !d.recorded(path, n, p) {
			d.fields(path, n, v)
		}
	default:
		d.fields(path, n, v)
	}
}

// plain refuses the parts of YAML by which a value can stand elsewhere or mean something else.
func (d *decoder) plain(path string, n ast.Node) bool {
	switch n := n.(type) {
	case *ast.AliasNode:
		d.fail(path, n, `text that begins with * stands in quotes, as in "*@contoso.com"; references (*name) are not taken`)
	case *ast.AnchorNode:
		d.fail(path, n, "text that begins with & stands in quotes; anchors (&name) are not taken")
	case *ast.TagNode:
		d.fail(path, n, "text that begins with ! stands in quotes; tags (!name) are not taken")
	default:
		return true
	}
	return false
}

// scalar returns a text as it stands in the file: 007 is a login, not a number.
func (d *decoder) scalar(path string, n ast.Node) (string, bool) {
	var s string
	switch n := n.(type) {
	case *ast.StringNode:
		s = n.Value
	case *ast.LiteralNode:
		s = n.Value.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		s = n.GetToken().Value
	case *ast.NullNode:
		d.fail(path, n, "there is no value; write one, or remove the key")
		return "", false
	default:
		d.fail(path, n, "here stands one text, not %s", kindOf(n))
		return "", false
	}
	if strings.ContainsFunc(s, func(r rune) bool { return isControl(r) || r == '\t' }) {
		d.fail(path, n, "the text has a tab, a line end or another control character; write it on one line")
		return "", false
	}
	return s, true
}

func (d *decoder) boolean(path string, n ast.Node, p *bool) {
	s, ok := d.scalar(path, n)
	if !ok {
		return
	}
	if _, is := n.(*ast.BoolNode); !is {
		d.fail(path, n, "%q is neither true nor false", Clip(s))
		return
	}
	*p = strings.EqualFold(s, "true")
}

func (d *decoder) integer(path string, n ast.Node, p *int) {
	s, ok := d.scalar(path, n)
	if !ok {
		return
	}
	i, err := strconv.Atoi(s)
	if err != nil {
		d.fail(path, n, "%q is not a number", Clip(s))
		return
	}
	*p = i
}

func (d *decoder) rate(path string, n ast.Node, p *limit.Rate) {
	s, ok := d.scalar(path, n)
	if !ok {
		return
	}
	r, err := limit.ParseRate(s)
	if err != nil {
		d.fail(path, n, "%v", err)
		return
	}
	*p = r
}

// duration reads a time such as 36h or 1d.
func (d *decoder) duration(path string, n ast.Node, p *time.Duration) {
	s, ok := d.scalar(path, n)
	if !ok {
		return
	}
	var t time.Duration
	var err error
	if days, found := strings.CutSuffix(s, "d"); found {
		var number int
		number, err = strconv.Atoi(days)
		t = time.Duration(number) * 24 * time.Hour
	} else {
		t, err = time.ParseDuration(s)
	}
	const most = 366 * 24 * time.Hour
	if err != nil || t < 0 || t > most {
		d.fail(path, n, "%q is not a time; write 12h, 1d or 0", Clip(s))
		return
	}
	*p = t
}

// list replaces the default by what the file has. No value is an empty list, so that all
// entries can be commented out.
func (d *decoder) list(path string, n ast.Node, v reflect.Value) {
	v.SetZero()
	if n.Type() == ast.NullType {
		return
	}
	s, ok := n.(*ast.SequenceNode)
	if !ok && v.Type() == reflect.TypeFor[[]limit.Rate]() { // one rate needs no brackets
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		d.value(path, n, v.Index(0))
		return
	}
	if !ok {
		d.fail(path, n, "here stands a list, not %s; write [a, b], or each entry on a line of its own after \"- \"", kindOf(n))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(s.Values), len(s.Values)))
	d.items(path, s.Values, v, 0)
}

// items decodes entries of a list, of which the first one goes to an index.
func (d *decoder) items(path string, list []ast.Node, v reflect.Value, first int) {
	for i, e := range list {
		setDefaults(v.Index(first + i))
		d.value(path+"["+strconv.Itoa(first+i)+"]", e, v.Index(first+i))
	}
}

func (d *decoder) credentials(path string, n ast.Node, p *map[string]Credential) {
	entries, ok := d.entries(path, n)
	if !ok {
		return
	}
	*p = make(map[string]Credential, len(entries))
	for _, e := range entries {
		c := reflect.New(reflect.TypeFor[Credential]()).Elem()
		setDefaults(c)
		d.value(JoinPath(path, keyName(e)), e.Value, c)
		(*p)[keyName(e)] = c.Interface().(Credential)
	}
}

func setDefaults(v reflect.Value) {
	if s, ok := v.Addr().Interface().(interface{ setDefaults() }); ok {
		s.setDefaults()
	}
}

// fields decodes keys and values into a struct.
func (d *decoder) fields(path string, n ast.Node, v reflect.Value) {
	entries, ok := d.entries(path, n)
	if !ok {
		return
	}
	for _, e := range entries {
		key := keyName(e)
		if i := fieldIndex(v.Type(), key); i >= 0 {
			d.value(JoinPath(path, key), e.Value, v.Field(i))
			continue
		}
		d.unknown(path, key, e, v.Type())
	}
}

// entries returns what a mapping holds, each key once. No value is an empty mapping.
func (d *decoder) entries(path string, n ast.Node) ([]*ast.MappingValueNode, bool) {
	all, ok := entriesOf(n)
	if text, is := n.(*ast.StringNode); is && colonForgotten(text.Value) != "" {
		d.fail(path, n, "here stand keys with values, and %s", colonForgotten(text.Value))
		return nil, false
	}
	if !ok {
		d.fail(path, n, "here stand keys with values (key: value), not %s", kindOf(n))
		return nil, false
	}
	seen := make(map[string]int, len(all))
	list := make([]*ast.MappingValueNode, 0, len(all))
	for _, e := range all {
		switch e.Key.(type) {
		case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		default:
			d.fail(path, e.Key, "a key is a plain word; write key: value")
			continue
		}
		key := keyName(e)
		if first, twice := seen[key]; twice {
			d.fail(JoinPath(path, key), e.Key, "key %q stands here twice, first in line %d; remove one", Clip(key), first)
			continue
		}
		seen[key] = d.line(e.Key)
		list = append(list, e)
	}
	return list, true
}

func entriesOf(n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch n := n.(type) {
	case *ast.MappingNode:
		return n.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, true
	case *ast.NullNode:
		return nil, true
	}
	return nil, false
}

// unknown reports a key that has no meaning where it stands.
func (d *decoder) unknown(path, key string, e *ast.MappingValueNode, t reflect.Type) {
	where := path
	if t == reflect.TypeFor[Credential]() {
		if text, ok := inlineSecrets[key]; ok {
			d.fail(path, e.Key, "%s", text)
			return
		}
	}
	known := keysOf(t)
	if near := Nearest(key, known); near != "" {
		where = JoinPath(path, near) // most likely what was meant: not missing, but misspelt
		d.fail(where, e.Key, "unknown key %q; did you mean %q?", Clip(key), near)
		d.problems[len(d.problems)-1].Path = path
		return
	}
	d.problems = append(d.problems, Problem{Line: d.line(e.Key), Path: where,
		Text: fmt.Sprintf("unknown key %q; here may stand: %s", Clip(key), strings.Join(known, ", "))})
}

// inlineSecrets tells what to write instead of a secret in the configuration.
var inlineSecrets = func() map[string]string {
	const secret = "secrets are never inline; put it into a file of mode 0600 that belongs to the user of " +
		"the token service, and write client_secret_file: with its name"
	const cert = "certificates and keys are never inline; put them into a file of mode 0600 that belongs to the user of " +
		"the token service, and write certificate_file: with its name"
	return map[string]string{
		"client_secret": secret, "secret": secret, "password": secret,
		"certificate": cert, "private_key": cert, "key": cert,
	}
}()

// keysOf returns the keys that a section takes, in their order.
func keysOf(t reflect.Type) []string {
	var list []string
	for i := range t.NumField() {
		if k := t.Field(i).Tag.Get("yaml"); k != "" {
			list = append(list, k)
		}
	}
	return list
}

func fieldIndex(t reflect.Type, key string) int {
	for i := range t.NumField() {
		if k := t.Field(i).Tag.Get("yaml"); k == key && k != "" {
			return i
		}
	}
	return -1
}

// Nearest returns the word of a list that was most likely meant, or "".
func Nearest(key string, known []string) string {
	best, found := 3, ""
	plain := strings.ReplaceAll(strings.ToLower(key), "-", "_")
	if len(plain) > 64 {
		return ""
	}
	for _, k := range known {
		if n := distance(plain, k); n < best && n*2 < len(k) {
			best, found = n, k
		}
	}
	return found
}

// distance is how many letters of two short texts differ, in bytes: added, left out, another one, or
// two side by side that are switched (Damerau's).
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			rows[i][j] = min(change, rows[i-1][j]+1, rows[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}

// keyName returns a key as it stands in paths: quoted, unless it is a plain word.
func keyName(e *ast.MappingValueNode) string {
	key := e.Key.GetToken().Value
	if plainWord.MatchString(key) {
		return key
	}
	return strconv.Quote(Clip(key))
}

func JoinPath(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func kindOf(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "keys with values"
	case *ast.SequenceNode:
		return "a list"
	case *ast.NullNode:
		return "nothing"
	}
	return "a text"
}

// Clip shortens a text that an error repeats.
func Clip(s string) string {
	if r := []rune(s); len(r) > 80 {
		return string(r[:80]) + "…"
	}
	return s
}

// lineOf returns the line, from 1, on which a value begins.
func lineOf(n ast.Node) int {
	switch m := n.(type) {
	case *ast.MappingNode:
		if !m.IsFlowStyle && len(m.Values) > 0 { // its own token is the first colon
			return lineOf(m.Values[0])
		}
	case *ast.MappingValueNode:
		return lineOf(m.Key)
	case *ast.DocumentNode:
		if m.Start == nil && m.Body != nil {
			return lineOf(m.Body)
		}
	}
	if t := n.GetToken(); t != nil && t.Position != nil {
		return max(1, t.Position.Line)
	}
	return 1
}

// line returns the line of the file on which a value of the tree that is decoded begins.
func (d *decoder) line(n ast.Node) int { return d.before + lineOf(n) }

// find returns the line of a path such as "clients[2].networks[0]", or of what is
// nearest to it where it is not in the file.
func (d *decoder) find(path string) int {
	n, path, before := d.tree(path)
	line := lineOf(n)
	for path != "" {
		e, rest := step(n, path)
		if e == nil {
			break
		}
		line, path, n = lineOf(e), strings.TrimPrefix(rest, "."), e
		if kv, ok := e.(*ast.MappingValueNode); ok {
			n = kv.Value
		}
	}
	return before + line
}

// step follows the first part of a path, and returns the rest of it.
func step(n ast.Node, path string) (ast.Node, string) {
	if s, ok := n.(*ast.SequenceNode); ok && path[0] == '[' {
		index, rest, _ := strings.Cut(path[1:], "]")
		i, err := strconv.Atoi(index)
		if err != nil || i < 0 || i >= len(s.Values) {
			return nil, ""
		}
		return s.Values[i], rest
	}
	list, _ := entriesOf(n)
	var best *ast.MappingValueNode
	length := 0
	for _, e := range list { // names of credentials may have dots: the longest key that fits
		if k := keyName(e); len(k) > length && within(path, k) {
			best, length = e, len(k)
		}
	}
	if best == nil {
		return nil, ""
	}
	return best, path[length:]
}

// within reports whether path is base or a place below it.
func within(path, base string) bool {
	rest, ok := strings.CutPrefix(path, base)
	return ok && (base == "" || rest == "" || rest[0] == '.' || rest[0] == '[')
}
