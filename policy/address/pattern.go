package address

import (
	"errors"
	"fmt"
	"strings"
)

// A Pattern names addresses: one address ("billing@contoso.com"), all of a domain
// ("*@contoso.com"), or all ("*").
type Pattern struct {
	key    string // of a single address; empty for a wider pattern
	domain string // in its ASCII form; empty with an empty key means all
}

// everybody is the local part of a pattern for all of a domain, with its @.
const everybody = "*@"

// WholeDomain returns the pattern for all addresses of a domain: "*@contoso.com".
func WholeDomain(domain string) Pattern { return Pattern{domain: ASCIIDomain(domain)} }

// CutPattern returns the domain of "*@contoso.com" as it is written there, which need not be a
// domain; ok is false for a text that is no pattern for all of a domain. It is for texts that are
// checked elsewhere; see [ParsePattern].
func CutPattern(s string) (domain string, ok bool) { return strings.CutPrefix(s, everybody) }

// ParsePattern reads a pattern. Nothing but a whole local part can be "*".
func ParsePattern(s string) (Pattern, error) {
	if s == "*" {
		return Pattern{}, nil
	}
	if d, ok := CutPattern(s); ok {
		if !ValidDomain(ASCIIDomain(d)) {
			return Pattern{}, fmt.Errorf("%q: %q is not a domain", s, d)
		}
		return WholeDomain(d), nil
	}
	if strings.Contains(s, "*") {
		return Pattern{}, fmt.Errorf("%q is not a pattern; write an address, *@domain or *", s)
	}
	a, err := ParseOwn(s)
	if err != nil {
		return Pattern{}, err
	}
	return Pattern{key: a.Key()}, nil
}

// String returns the pattern as the configuration writes it, in the form in which such are
// compared.
func (p Pattern) String() string {
	switch {
	case p.key != "":
		return p.key
	case p.domain != "":
		return everybody + p.domain
	}
	return "*"
}

// Key returns the one address that the pattern names, as [Spec.Key] does; "" for a wider pattern.
func (p Pattern) Key() string { return p.key }

// Domain returns the domain all of whose addresses the pattern names, in its ASCII form; "" for one
// address, and for all.
func (p Pattern) Domain() string { return p.domain }

// Match reports whether the pattern names the address.
func (p Pattern) Match(a Spec) bool {
	switch {
	case a.IsZero():
		return false
	case p.key != "":
		return p.key == a.Key()
	case p.domain != "":
		return p.domain == ASCIIDomain(a.Domain)
	}
	return true
}

// ParseOwn reads an address of the configuration, where nothing needs to be
// tolerated.
func ParseOwn(s string) (Spec, error) {
	if s == "" {
		return Spec{}, errors.New("an address is missing; write local@domain")
	}
	a := SplitAddress(s)
	if !a.Valid() || !IsDotAtom(a.Local) {
		return Spec{}, fmt.Errorf("%q is not an address; write local@domain", s)
	}
	return a, nil
}
