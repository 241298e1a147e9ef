package policy

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/text/encoding/unicode"
	"golang.org/x/text/transform"

	"github.com/sendas/sendas/policy/address"
)

// What is larger is no export of permissions, but a mistake.
const (
	maxPermissionBytes = 64 << 20
	maxPermissionRows  = 1_000_000
	maxPermissionValue = 1024 // bytes: the longest address, if all of it is written in Unicode
)

// Permissions is what Exchange Online permits, as contrib/exchange exports it: all of the
// tenant, whether this relay uses it or not. Domains may hold *.onmicrosoft.com, and Grants
// may hold addresses outside the verified domains.
type Permissions struct {
	Domains   []string          // accepted domains in lower case and ASCII, in the order of the file
	Mailboxes map[string]Grants // by the Key of the mailbox's primary address
}

// Grants is what one mailbox may send as, besides its primary address. No address is in it
// twice, the primary address is not in it, and the order is that of the file.
type Grants struct {
	Aliases []address.Spec // its other proxy addresses
	SendAs  []address.Spec // primary addresses of the recipients on which it has Send As
}

// ReadPermissions reads the CSV file of contrib/exchange, also after a spreadsheet has saved it
// again: in UTF-16, with a byte order mark, separated by semicolons or tabs, with columns
// moved or added. The error names the line and says what to write. A file without any row is an
// error too, because an export that failed must not look like a tenant without permissions.
func ReadPermissions(r io.Reader) (*Permissions, error) {
	return readPermissions(r, maxPermissionBytes, maxPermissionRows)
}

func readPermissions(r io.Reader, maxBytes int64, maxRows int) (*Permissions, error) {
	t, err := newPermissionTable(&cappedReader{r: r, left: maxBytes})
	if err != nil {
		return nil, err
	}
	b := permissionBuilder{
		p:    &Permissions{Mailboxes: make(map[string]Grants)},
		seen: make(map[[2]string]bool),
	}
	for rows := 0; ; rows++ {
		row, err := t.next()
		switch {
		case err == io.EOF && rows == 0:
			return nil, errors.New("the file has no rows; run Export-SendasPermissions.ps1 again, and see what it says")
		case err == io.EOF:
			return b.p, nil
		case err != nil:
			return nil, err
		case rows == maxRows:
			return nil, row.fail("the file has more than %d rows; name the mailboxes of this relay with -Mailbox when you export", maxRows)
		}
		if err := b.add(row); err != nil {
			return nil, err
		}
	}
}

// A permissionRow is one row of the table, without blanks around the values.
type permissionRow struct {
	line                   int
	kind, mailbox, address string
}

// fail returns an error that names the line.
func (r permissionRow) fail(format string, args ...any) error {
	return fmt.Errorf("line %d: %w", r.line, fmt.Errorf(format, args...))
}

// permissionBuilder puts rows together.
type permissionBuilder struct {
	p    *Permissions
	seen map[[2]string]bool // mailbox key (or "" for domains) and address key
}

func (b *permissionBuilder) add(r permissionRow) error {
	switch strings.ToLower(r.kind) {
	case "domain":
		return b.addDomain(r)
	case "alias":
		return b.addGrant(r, func(g *Grants, a address.Spec) { g.Aliases = append(g.Aliases, a) })
	case "sendas":
		return b.addGrant(r, func(g *Grants, a address.Spec) { g.SendAs = append(g.SendAs, a) })
	case "":
		return r.fail("Kind is empty; write Domain, Alias or SendAs, or remove the line")
	}
	return r.fail("Kind is %q; write Domain, Alias or SendAs", address.Clip(r.kind))
}

func (b *permissionBuilder) addDomain(r permissionRow) error {
	if r.mailbox != "" {
		return r.fail("Mailbox is %q in a row for a domain; leave it empty", address.Clip(r.mailbox))
	}
	d := ""
	if len(r.address) <= maxPermissionValue {
		d = address.ASCIIDomain(r.address)
	}
	if !address.ValidDomain(d) {
		return r.fail("Address is %q, which is no domain; write a name such as contoso.com, or remove the line", address.Clip(r.address))
	}
	if b.first("", d) {
		b.p.Domains = append(b.p.Domains, strings.Clone(d))
	}
	return nil
}

func (b *permissionBuilder) addGrant(r permissionRow, grant func(*Grants, address.Spec)) error {
	m, err := parsePermissionAddress(r.mailbox)
	if err != nil {
		return r.fail("Mailbox: %w, or remove the line", err)
	}
	a, err := parsePermissionAddress(r.address)
	if err != nil {
		return r.fail("Address: %w, or remove the line", err)
	}
	key := m.Key()
	if key == a.Key() || !b.first(key, a.Key()) {
		return nil
	}
	g := b.p.Mailboxes[key]
	grant(&g, address.Spec{Local: strings.Clone(a.Local), Domain: strings.Clone(a.Domain)})
	b.p.Mailboxes[strings.Clone(key)] = g
	return nil
}

// first reports whether the address comes for the first time, and notes it.
func (b *permissionBuilder) first(mailbox, address string) bool {
	k := [2]string{mailbox, address}
	if b.seen[k] {
		return false
	}
	b.seen[[2]string{strings.Clone(mailbox), strings.Clone(address)}] = true
	return true
}

// parsePermissionAddress keeps long values from the parser, whose work on a domain in Unicode
// grows with the square of its length, and out of the error.
func parsePermissionAddress(text string) (address.Spec, error) {
	if len(text) > maxPermissionValue {
		return address.Spec{}, fmt.Errorf("%q is not an address; write local@domain", address.Clip(text))
	}
	a, err := address.ParseOwn(text)
	if err != nil && address.Clip(text) != text {
		return address.Spec{}, fmt.Errorf("%q is not an address; write local@domain", address.Clip(text))
	}
	return a, err
}

// A permissionTable reads rows by the names of their columns.
type permissionTable struct {
	csv    *csv.Reader
	before int // lines in front of what csv reads

	kind, mailbox, address int // columns
}

// maxHeader bounds the length in bytes of the first lines.
const maxHeader = 64 << 10

// newPermissionTable finds out how the file is written, and reads its header.
func newPermissionTable(r io.Reader) (*permissionTable, error) {
	// Without a byte order mark the bytes stay as they are: only ASCII matters here.
	in := bufio.NewReaderSize(transform.NewReader(r, unicode.BOMOverride(transform.Nop)), maxHeader)
	t := &permissionTable{}
	header, err := t.skip(in)
	if err != nil {
		return nil, fmt.Errorf("line %d: %w", t.before+1, err)
	}
	t.csv = csv.NewReader(in)
	t.csv.Comma = separator(header)
	t.csv.FieldsPerRecord = -1
	t.csv.ReuseRecord = true
	t.csv.TrimLeadingSpace = t.csv.Comma != '\t' // a tab would be trimmed too
	names, err := t.csv.Read()
	if err != nil {
		return nil, t.explain(err)
	}
	line, _ := t.csv.FieldPos(0)
	if err := t.columns(names); err != nil {
		return nil, fmt.Errorf("line %d: %w", t.before+line, err)
	}
	return t, nil
}

// skip reads the lines in front of the header: blank ones, and the "#TYPE" that Windows
// PowerShell writes without -NoTypeInformation. It returns the header, which stays to be read.
func (t *permissionTable) skip(in *bufio.Reader) ([]byte, error) {
	for {
		line, err := peekLine(in)
		if err != nil {
			return nil, err
		}
		text := bytes.TrimSpace(line)
		if len(text) > 0 && !bytes.HasPrefix(text, []byte("#TYPE")) {
			return text, nil
		}
		if _, err := in.Discard(len(line)); err != nil {
			return nil, err
		}
		t.before++
	}
}

// peekLine returns the next line with its end, without reading it.
func peekLine(in *bufio.Reader) ([]byte, error) {
	for n := 512; ; n *= 2 {
		p, err := in.Peek(min(n, maxHeader))
		if i := bytes.IndexByte(p, '\n'); i >= 0 {
			return p[:i+1], nil
		}
		switch {
		case err == io.EOF && len(p) > 0:
			return p, nil
		case err == io.EOF:
			return nil, errors.New("the file is empty; write the header Kind,Mailbox,Address and the rows below it")
		case err != nil:
			return nil, err
		case n >= maxHeader:
			return nil, errors.New("the line has no end; this is not a CSV file")
		}
	}
}

// separator returns what separates the names of the header: what a spreadsheet writes depends
// on its language.
func separator(header []byte) rune {
	best, most := ',', 0
	for _, c := range ",;\t" {
		if n := bytes.Count(header, []byte{byte(c)}); n > most {
			best, most = c, n
		}
	}
	return best
}

// columns finds the columns by their names.
func (t *permissionTable) columns(names []string) error {
	for _, c := range []struct {
		name string
		at   *int
	}{{"Kind", &t.kind}, {"Mailbox", &t.mailbox}, {"Address", &t.address}} {
		*c.at = -1
		for i, n := range names {
			if !strings.EqualFold(strings.TrimSpace(n), c.name) {
				continue
			}
			if *c.at >= 0 {
				return fmt.Errorf("two columns are called %s; rename one", c.name)
			}
			*c.at = i
		}
		switch {
		case *c.at >= 0:
		case strings.Contains(names[0], "\x00"):
			return errors.New("the text is UTF-16 without a byte order mark; save the file in UTF-8")
		default:
			return fmt.Errorf("no column is called %s; the header is Kind,Mailbox,Address", c.name)
		}
	}
	return nil
}

// next returns the next row that is not blank, or io.EOF.
func (t *permissionTable) next() (permissionRow, error) {
	for {
		fields, err := t.csv.Read()
		if err != nil {
			return permissionRow{}, t.explain(err)
		}
		line, _ := t.csv.FieldPos(0)
		blank := true
		for i, f := range fields {
			fields[i] = strings.TrimSpace(f)
			blank = blank && fields[i] == ""
		}
		if blank {
			continue // a row that was emptied in a spreadsheet keeps its separators
		}
		at := func(i int) string {
			if i < len(fields) {
				return fields[i]
			}
			return ""
		}
		return permissionRow{t.before + line, at(t.kind), at(t.mailbox), at(t.address)}, nil
	}
}

// explain turns an error of the CSV reader into a sentence; io.EOF stays.
func (t *permissionTable) explain(err error) error {
	var p *csv.ParseError
	switch {
	case !errors.As(err, &p):
		return err
	case errors.Is(p.Err, csv.ErrBareQuote):
		return fmt.Errorf(`line %d: a " stands within a value; put the whole value in quotes and double the ", or remove it`, t.before+p.Line)
	case errors.Is(p.Err, csv.ErrQuote):
		return fmt.Errorf(`line %d: a value in quotes does not end where the next one should begin; write one " at its beginning and one at its end`, t.before+p.StartLine)
	}
	return fmt.Errorf("line %d: %w", t.before+p.Line, p.Err)
}

// cappedReader fails where a LimitReader would silently end.
type cappedReader struct {
	r    io.Reader
	left int64
}

func (c *cappedReader) Read(p []byte) (int, error) {
	if c.left < 0 {
		return 0, fmt.Errorf("the file is larger than %d MiB; that is no export of permissions", maxPermissionBytes>>20)
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.left+1)])
	c.left -= int64(n)
	return n, err
}
