package address

import "testing"

func TestPattern(t *testing.T) {
	for _, tc := range []struct{ text, want, key, domain string }{
		{"*", "*", "", ""},
		{"*@Contoso.COM", "*@contoso.com", "", "contoso.com"},
		{"*@bücher.example", "*@xn--bcher-kva.example", "", "xn--bcher-kva.example"},
		{"Billing@Contoso.com", "billing@contoso.com", "billing@contoso.com", ""},
	} {
		p, err := ParsePattern(tc.text)
		if err != nil || p.String() != tc.want || p.Key() != tc.key || p.Domain() != tc.domain {
			t.Errorf("%s is %s, key %q, domain %q, %v; want %s, %q, %q", tc.text, p, p.Key(), p.Domain(), err, tc.want, tc.key, tc.domain)
		}
		if again, err := ParsePattern(p.String()); err != nil || again != p {
			t.Errorf("%s reads as %s, %v", p, again, err)
		}
		if tc.domain != "" && WholeDomain(tc.domain) != p {
			t.Errorf("%s is not all of %s", p, tc.domain)
		}
	}
	for _, text := range []string{"", "*@", "*@*", "a*@contoso.com", "**", "*@a b", "billing", "@contoso.com"} {
		if p, err := ParsePattern(text); err == nil {
			t.Errorf("%q is taken for %s", text, p)
		}
	}
}

func TestPatternMatch(t *testing.T) {
	for _, tc := range []struct {
		pattern, address string
		want             bool
	}{
		{"*", "a@b.example", true},
		{"*", "", false},
		{"*@contoso.com", "HR@Contoso.com", true},
		{"*@contoso.com", "hr@mail.contoso.com", false},
		{"hr@contoso.com", "Hr@contoso.COM", true},
		{"hr@contoso.com", "hr+1@contoso.com", false},
	} {
		p, err := ParsePattern(tc.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Match(SplitAddress(tc.address)); got != tc.want {
			t.Errorf("%s names %q: %v, want %v", tc.pattern, tc.address, got, tc.want)
		}
	}
}

// TestCutPattern: the text is taken as it is, so that errors can name it.
func TestCutPattern(t *testing.T) {
	for _, tc := range []struct {
		text, domain string
		ok           bool
	}{
		{"*@Contoso.com", "Contoso.com", true}, {"*@", "", true}, {"*@no domain", "no domain", true},
		{"*", "*", false}, {"hr@contoso.com", "hr@contoso.com", false},
	} {
		if domain, ok := CutPattern(tc.text); domain != tc.domain || ok != tc.ok {
			t.Errorf("CutPattern(%q) = %q, %v", tc.text, domain, ok)
		}
	}
}
