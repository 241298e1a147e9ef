package policy

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

// ParsePattern reads a pattern. Nothing but a whole local part can be "*".
func ParsePattern(s string) (Pattern, error) {
	if s == "*" {
		return Pattern{}, nil
	}
	if d, ok := strings.CutPrefix(s, "*@"); ok {
		if !validDomain(asciiDomain(d)) {
			return Pattern{}, fmt.Errorf("%q: %q is not a domain", s, d)
		}
		return Pattern{domain: asciiDomain(d)}, nil
	}
	if strings.Contains(s, "*") {
		return Pattern{}, fmt.Errorf("%q is not a pattern; write an address, *@domain or *", s)
	}
	a, err := parseConfigAddress(s)
	if err != nil {
		return Pattern{}, err
	}
	return Pattern{key: a.Key()}, nil
}

// Match tells whether the pattern names the address.
func (p Pattern) Match(a Address) bool {
	switch {
	case a.IsZero():
		return false
	case p.key != "":
		return p.key == a.Key()
	case p.domain != "":
		return p.domain == asciiDomain(a.Domain)
	}
	return true
}

// parseConfigAddress reads an address of the configuration, where nothing needs to be
// tolerated.
func parseConfigAddress(s string) (Address, error) {
	if s == "" {
		return Address{}, errors.New("an address is missing; write local@domain")
	}
	a := splitAddress(s)
	if !a.Valid() || !isDotAtom(a.Local) {
		return Address{}, fmt.Errorf("%q is not an address; write local@domain", s)
	}
	return a, nil
}
