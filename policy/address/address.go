package address

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// Limits of RFC 5321, section 4.5.3.1.
const (
	maxLocal  = 64
	maxDomain = 255
)

// A Spec is one mail address (addr-spec, RFC 5322, section 3.4.1), local@domain, as it was written.
// Two addresses are the same when their keys are ([Spec.Key]): Exchange Online compares local parts
// without regard to case.
type Spec struct {
	Local  string // without quotes; never empty in a non-zero Spec
	Domain string // as written; may be a single label or an address literal
}

// IsZero reports whether there is no address: the null sender, or nothing
// recognisable where an address should be.
func (a Spec) IsZero() bool { return a.Local == "" && a.Domain == "" }

// String returns the address in the form of RFC 5321, without angle brackets; the
// zero Spec is the empty string.
func (a Spec) String() string {
	if a.IsZero() {
		return ""
	}
	local := a.Local
	if !isDotString(local) {
		local = Quote(local)
	}
	if a.Domain == "" {
		return local
	}
	return local + "@" + a.Domain
}

// Key returns the form in which addresses are compared: lower case, the domain in
// its ASCII form (RFC 5891). The zero Spec has the empty key.
func (a Spec) Key() string {
	if a.IsZero() {
		return ""
	}
	return strings.ToLower(a.Local) + "@" + ASCIIDomain(a.Domain)
}

// ASCII returns the address with its domain in the form that goes over the wire without SMTPUTF8
// (RFC 5891). A local part has no such form, nor do some domains; a [Spec.Valid] address is ASCII
// then.
func (a Spec) ASCII() Spec {
	if IsASCII(a.Domain) {
		return a
	}
	if d := ASCIIDomain(a.Domain); IsASCII(d) {
		a.Domain = d
	}
	return a
}

// Same reports whether a and b name the same mailbox.
func (a Spec) Same(b Spec) bool {
	return a == b || a.Key() == b.Key()
}

// Valid reports whether the address may be written into an envelope or a header that leaves for
// Microsoft: a local part of at most 64 octets in ASCII, a domain name of at least two labels (RFC
// 5321, section 4.1.2; address literals are not accepted). What a mail program could decode as an
// encoded word is not valid either.
func (a Spec) Valid() bool {
	if a.Local == "" || len(a.Local) > maxLocal || strings.Contains(a.Local, "=?") {
		return false
	}
	for i := range len(a.Local) {
		if c := a.Local[i]; c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return ValidDomain(ASCIIDomain(a.Domain))
}

// Answerable reports whether a person could answer to this address: it is valid and its
// domain looks like one of the public internet (RFC 6761, RFC 6762 and RFC 8375
// reserve the others, besides what device makers invent).
func (a Spec) Answerable() bool {
	if !a.Valid() {
		return false
	}
	d := ASCIIDomain(a.Domain)
	top := d[strings.LastIndexByte(d, '.')+1:]
	return !privateTop[top] && !strings.HasSuffix(d, ".home.arpa") && d != "home.arpa"
}

// privateTop holds top-level names that never lead to a mailbox elsewhere.
var privateTop = map[string]bool{
	"local": true, "lan": true, "localdomain": true, "localhost": true, "home": true, "internal": true,
	"intranet": true, "corp": true, "private": true, "invalid": true, "test": true, "example": true,
	"workgroup": true, "printer": true, "arpa": true,
}

// Parse reads an address as an SMTP envelope carries it, with or without angle brackets, with a
// source route (RFC 5321, appendix C: ignored) or a quoted local part. The empty string and "<>"
// give the zero Spec. What has no domain keeps an empty one, so that a decision can still name what
// was asked. UTF-8 is taken as RFC 6531 has it, other 8-bit bytes as devices mean them; such a
// local part is never [Spec.Valid].
//
// It refuses what cannot have been meant as an address: nothing before the @, control characters,
// invisible characters, and separators in the domain.
func Parse(s string) (Spec, error) {
	s = strings.TrimSpace(s)
	if len(s) >= 2 && s[0] == '<' && s[len(s)-1] == '>' {
		s = strings.TrimSpace(s[1 : len(s)-1])
	}
	if !utf8.ValidString(s) {
		s = toUTF8(s)
	}
	if s == "" {
		return Spec{}, nil
	}
	if s[0] == '@' { // @a,@b:user@domain
		i := strings.IndexByte(s, ':')
		if i < 0 {
			return Spec{}, fmt.Errorf("%q is a source route without an address", Clip(s))
		}
		s = s[i+1:]
	}
	a := SplitAddress(s)
	if err := checkLocal(a.Local); err != nil {
		return Spec{}, fmt.Errorf("%q: %w", Clip(s), err)
	}
	if !plausibleDomain(a.Domain) || a.Domain == "" && strings.IndexByte(a.Local, '@') >= 0 {
		return Spec{}, fmt.Errorf("%q has no usable domain", Clip(s))
	}
	return a, nil
}

// SplitAddress divides at the last @, and takes the quotes off a quoted local part.
func SplitAddress(s string) Spec {
	local, domain := s, ""
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		local, domain = s[:i], strings.TrimRight(s[i+1:], ".")
	}
	if len(local) >= 2 && local[0] == '"' && local[len(local)-1] == '"' {
		local = unquote(local[1 : len(local)-1])
	}
	return Spec{Local: local, Domain: domain}
}

func checkLocal(local string) error {
	if local == "" {
		return errors.New("nothing stands before the @")
	}
	if !isVisible(local) {
		return errors.New("a control character stands in the local part")
	}
	return nil
}

// isVisible reports whether all of s may come into a header and a log.
func isVisible(s string) bool { return isPlain(s) || strings.Map(Printable, s) == s }

// plausibleDomain refuses only what could never have been meant as a domain; an empty
// one is fine here (a device's "root").
func plausibleDomain(d string) bool {
	for i := range len(d) {
		if c := d[i]; !isLetter(c) && (c < '-' || c > '9' || c == '/') {
			return isVisible(d) && !strings.ContainsAny(d, ` "(),;<>@\`) && !strings.ContainsFunc(d, unicode.IsSpace)
		}
	}
	return true
}

// ValidDomain reports whether d is a host name of at least two labels (RFC 1123,
// section 2.1). d is in lower case and ASCII.
func ValidDomain(d string) bool {
	if len(d) > maxDomain || !strings.Contains(d, ".") {
		return false
	}
	digits := true
	for label := range strings.SplitSeq(d, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		digits = true
		for i := range len(label) {
			c := label[i]
			if c < '0' || c > '9' {
				digits = false
			}
			if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-') {
				return false
			}
		}
	}
	return !digits // the last label of a name is never a number; 10.0.0.1 is no domain
}

// ASCIIDomain returns the form in which domains are compared.
func ASCIIDomain(d string) string {
	if IsASCII(d) {
		return strings.ToLower(d)
	}
	if a, err := idna.Lookup.ToASCII(d); err == nil {
		return a
	}
	return strings.ToLower(d)
}

// IsDotAtom reports whether s may stand unquoted as a local part (RFC 5322, section 3.2.3).
func IsDotAtom(s string) bool { return IsASCII(s) && isDotString(s) }

// isDotString is IsDotAtom with UTF-8 (RFC 6531, section 3.3), except white space.
func isDotString(s string) bool {
	if s == "" || s[0] == '.' || s[len(s)-1] == '.' || strings.Contains(s, "..") {
		return false
	}
	for _, r := range s {
		if r < utf8.RuneSelf && r != '.' && !isAtext(byte(r)) || unicode.IsSpace(r) {
			return false
		}
	}
	return true
}

// isAtext is atext of RFC 5322, section 3.2.3; bytes over 0x7f are not.
func isAtext(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return strings.IndexByte("!#$%&'*+-/=?^_`{|}~", c) >= 0
}

func IsASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// Quote writes a quoted-string (RFC 5322, section 3.2.4).
func Quote(s string) string {
	var b strings.Builder
	b.Grow(len(s) + 2)
	b.WriteByte('"')
	for i := range len(s) {
		if s[i] == '"' || s[i] == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	b.WriteByte('"')
	return b.String()
}

// unquote takes the backslashes out of the inside of a quoted-string.
func unquote(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Clip shortens a stranger's text for an error or a log line.
func Clip(s string) string {
	const most = 100
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// OnMicrosoft reports whether the address is at an onmicrosoft.com domain, from which a whole
// tenant may send to 100 external recipients in a day.
func (a Spec) OnMicrosoft() bool { return OnMicrosoft(ASCIIDomain(a.Domain)) }

func OnMicrosoft(domain string) bool {
	return domain == "onmicrosoft.com" || strings.HasSuffix(domain, ".onmicrosoft.com")
}
