package policy

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/text/encoding/unicode"

	"github.com/sendas/sendas/policy/address"
)

// export is what contrib/exchange writes.
const export = "Kind,Mailbox,Address\r\n" +
	"Domain,,contoso.com\r\n" +
	"Domain,,Contoso.DE\r\n" +
	"Alias,erp@contoso.com,erp-old@contoso.com\r\n" +
	"Alias,scan@contoso.com,o'brien@contoso.com\r\n" +
	"SendAs,ERP@contoso.com,billing@contoso.com\r\n" +
	"SendAs,erp@contoso.com,hr@contoso.com\r\n"

const exported = "domains contoso.com contoso.de\n" +
	"erp@contoso.com: aliases erp-old@contoso.com, send as billing@contoso.com hr@contoso.com\n" +
	"scan@contoso.com: aliases o'brien@contoso.com, send as\n"

// show writes permissions down, mailboxes sorted.
func (p *Permissions) show() string {
	var b strings.Builder
	fmt.Fprintf(&b, "domains %s\n", strings.Join(p.Domains, " "))
	for _, key := range p.keys() {
		fmt.Fprintf(&b, "%s: aliases", key)
		for _, a := range p.Mailboxes[key].Aliases {
			fmt.Fprintf(&b, " %s", a)
		}
		b.WriteString(", send as")
		for _, a := range p.Mailboxes[key].SendAs {
			fmt.Fprintf(&b, " %s", a)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func (p *Permissions) keys() []string {
	var keys []string
	for k := range p.Mailboxes {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func TestReadPermissions(t *testing.T) {
	utf16 := func(e unicode.Endianness, s string) string {
		out, err := unicode.UTF16(e, unicode.UseBOM).NewEncoder().String(s)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, tc := range []struct{ name, in string }{
		{"as exported", export},
		{"line feeds alone", strings.ReplaceAll(export, "\r\n", "\n")},
		{"no end of the last line", strings.TrimSuffix(export, "\r\n")},
		{"UTF-8 mark", "\ufeff" + export},
		{"UTF-16, little end first", utf16(unicode.LittleEndian, export)},
		{"UTF-16, big end first", utf16(unicode.BigEndian, export)},
		{"semicolons", strings.ReplaceAll(export, ",", ";")},
		{"tabs", strings.ReplaceAll(export, ",", "\t")},
		{"quotes", `"` + strings.ReplaceAll(strings.ReplaceAll(strings.TrimSuffix(export, "\r\n"), ",", `","`), "\r\n", "\"\r\n\"") + `"`},
		{"blanks around values", strings.ReplaceAll(export, ",", " , ")},
		{"blank lines", "\r\n  \r\n" + strings.ReplaceAll(export, "\r\n", "\r\n,,\r\n\r\n")},
		{"type line of PowerShell", "#TYPE Selected.System.Management.Automation.PSCustomObject\r\n" + export},
		{"case of header and kinds", strings.NewReplacer("Kind,Mailbox,Address", "KIND,mailbox,aDDress", "SendAs", "sendas", "Alias", "ALIAS").Replace(export)},
		{"another order, another column", "Display name;Address;Kind;Mailbox\nContoso;contoso.com;Domain;\n\"M\xfcller; Co\";contoso.de;Domain\n" +
			";erp-old@contoso.com;Alias;erp@contoso.com\n;o'brien@contoso.com;Alias;scan@contoso.com;;;\n" +
			";billing@contoso.com;SendAs;erp@contoso.com\n;hr@contoso.com;SendAs;erp@contoso.com\n"},
		{"duplicates", export + "Domain,,CONTOSO.com\nSendAs,erp@CONTOSO.com,HR@contoso.com\nAlias,erp@contoso.com,hr@contoso.com\nSendAs,erp@contoso.com,erp@contoso.com\n"},
	} {
		p, err := ReadPermissions(iotest.OneByteReader(strings.NewReader(tc.in)))
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if got := p.show(); got != exported {
			t.Errorf("%s:\n got  %q\n want %q", tc.name, got, exported)
		}
	}
}

func TestReadPermissionsKeepsSpelling(t *testing.T) {
	p, err := ReadPermissions(strings.NewReader("Kind,Mailbox,Address\nDomain,,MÜLLER.example\nSendAs,Erp@contoso.com,Billing@Contoso.com\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := "domains xn--mller-kva.example\nerp@contoso.com: aliases, send as Billing@Contoso.com\n"
	if got := p.show(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestReadPermissionsErrors(t *testing.T) {
	const header = "Kind,Mailbox,Address\n"
	long := strings.Repeat("x", 200)
	for _, tc := range []struct{ in, want string }{
		{"", "line 1: the file is empty; write the header Kind,Mailbox,Address and the rows below it"},
		{"\r\n\r\n", "line 3: the file is empty; write the header Kind,Mailbox,Address and the rows below it"},
		{header, "the file has no rows; run Export-SendasPermissions.ps1 again, and see what it says"},
		{header + ",,\n", "the file has no rows; run Export-SendasPermissions.ps1 again, and see what it says"},
		{"Identity,Trustee\na,b\n", "line 1: no column is called Kind; the header is Kind,Mailbox,Address"},
		{"\n#TYPE x\nKind,Mailbox\n", "line 3: no column is called Address; the header is Kind,Mailbox,Address"},
		{"Kind,Mailbox,Address,kind\n", "line 1: two columns are called Kind; rename one"},
		{"K\x00i\x00n\x00d\x00,\x00", "line 1: the text is UTF-16 without a byte order mark; save the file in UTF-8"},
		{strings.Repeat("x", maxHeader+1), "line 1: the line has no end; this is not a CSV file"},
		{header + "Domain,,contoso.com\n\nSendas on behalf,a@contoso.com,b@contoso.com\n", `line 4: Kind is "Sendas on behalf"; write Domain, Alias or SendAs`},
		{header + ",a@contoso.com,b@contoso.com\n", "line 2: Kind is empty; write Domain, Alias or SendAs, or remove the line"},
		{header + "Domain,a@contoso.com,contoso.com\n", `line 2: Mailbox is "a@contoso.com" in a row for a domain; leave it empty`},
		{header + "Domain,,*.contoso.com\n", `line 2: Address is "*.contoso.com", which is no domain; write a name such as contoso.com, or remove the line`},
		{header + "Alias,,b@contoso.com\n", "line 2: Mailbox: an address is missing; write local@domain, or remove the line"},
		{header + "Alias,a@contoso.com\n", "line 2: Address: an address is missing; write local@domain, or remove the line"},
		{header + "SendAs,a@contoso.com,Billing\n", `line 2: Address: "Billing" is not an address; write local@domain, or remove the line`},
		{header + "SendAs,a@contoso.com,smtp:b@contoso.com\n", `line 2: Address: "smtp:b@contoso.com" is not an address; write local@domain, or remove the line`},
		{header + "SendAs,a@contoso.com," + long + "\n", `line 2: Address: "` + long[:100] + `…" is not an address; write local@domain, or remove the line`},
		{header + "SendAs,a@" + long + long + long + long + long + long + ".example,b@contoso.com\n", `line 2: Mailbox: "a@` + long[:98] + `…" is not an address; write local@domain, or remove the line`},
		{header + "Domain,," + strings.Repeat("界", 500) + ".example\n", `line 2: Address is "` + strings.Repeat("界", 33) + `…", which is no domain; write a name such as contoso.com, or remove the line`},
		{header + "SendAs,\"a@contoso.com\nb@contoso.com\",c@contoso.com\n", `line 2: Mailbox: "a@contoso.com\nb@contoso.com" is not an address; write local@domain, or remove the line`},
		{"\n" + header + "Domain,,contoso.com\nAlias,\"a@contoso.com,b@contoso.com\n\n", `line 4: a value in quotes does not end where the next one should begin; write one " at its beginning and one at its end`},
		{header + "Alias,a\"b@contoso.com,b@contoso.com\n", `line 2: a " stands within a value; put the whole value in quotes and double the ", or remove it`},
	} {
		_, err := ReadPermissions(strings.NewReader(tc.in))
		if err == nil || err.Error() != tc.want {
			t.Errorf("%.80q:\n got  %v\n want %s", tc.in, err, tc.want)
		}
	}
}

func TestReadPermissionsLimits(t *testing.T) {
	in := "Kind,Mailbox,Address\nDomain,,a.example\n\nDomain,,b.example\nDomain,,b.example\n"
	if p, err := readPermissions(strings.NewReader(in), int64(len(in)), 3); err != nil || len(p.Domains) != 2 {
		t.Errorf("at the limits: %v %v", p, err)
	}
	const rows = "line 5: the file has more than 2 rows; name the mailboxes of this relay with -Mailbox when you export"
	if _, err := readPermissions(strings.NewReader(in), 1<<20, 2); err == nil || err.Error() != rows {
		t.Errorf("too many rows: got %v, want %s", err, rows)
	}
	const size = "the file is larger than 64 MiB; that is no export of permissions"
	for _, max := range []int64{10, int64(len(in)) - 1} { // within the header, at the end
		if _, err := readPermissions(strings.NewReader(in), max, 3); err == nil || !strings.HasSuffix(err.Error(), size) {
			t.Errorf("more than %d bytes: got %v, want %s", max, err, size)
		}
	}
	cut := errors.New("input/output error")
	if _, err := ReadPermissions(io.MultiReader(strings.NewReader(in), iotest.ErrReader(cut))); !errors.Is(err, cut) {
		t.Errorf("a read error became %v", err)
	}
}

// FuzzPermissions holds for any bytes: what is read is valid and without duplicates, and reads
// the same again when it is written down.
func FuzzPermissions(f *testing.F) {
	f.Add([]byte(export))
	f.Add([]byte("\ufeffKind;Mailbox;Address\n\"Domain\";;\"contoso.com\"\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := readPermissions(strings.NewReader(string(data)), 1<<20, 1000)
		if err != nil {
			if p != nil {
				t.Fatalf("both %v and %v", p, err)
			}
			return
		}
		out := "Kind,Mailbox,Address\n"
		seen := make(map[string]bool)
		note := func(kind, mailbox, address, key string) {
			if seen[mailbox+" "+key] || mailbox == key {
				t.Fatalf("%s of %q: %q stands twice", kind, mailbox, address)
			}
			seen[mailbox+" "+key] = true
			out += kind + "," + mailbox + "," + address + "\n"
		}
		for _, d := range p.Domains {
			if !address.ValidDomain(d) {
				t.Fatalf("domain %q", d)
			}
			note("Domain", "", d, d)
		}
		for _, m := range p.keys() {
			if a := address.SplitAddress(m); !a.Valid() || a.Key() != m {
				t.Fatalf("mailbox %q", m)
			}
			for _, list := range []struct {
				kind string
				have []address.Spec
			}{{"Alias", p.Mailboxes[m].Aliases}, {"SendAs", p.Mailboxes[m].SendAs}} {
				for _, a := range list.have {
					if !a.Valid() || !address.IsDotAtom(a.Local) {
						t.Fatalf("%s %q", list.kind, a)
					}
					note(list.kind, m, a.String(), a.Key())
				}
			}
		}
		if out == "Kind,Mailbox,Address\n" {
			return // only rows that grant a mailbox its own address
		}
		again, err := readPermissions(strings.NewReader(out), 1<<20, 1000)
		if err != nil || again.show() != p.show() {
			t.Fatalf("wrote %q\n got  %v %v\n want %s", out, again, err, p.show())
		}
	})
}
