package milter

import (
	"bytes"
	"strings"
	"testing"
)

func TestChanges(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(*changes) error
		want string // "": it is too long
	}{
		{"sender", func(c *changes) error { return c.sender("a@b.example") }, packet('e', "<a@b.example>\x00")},
		{"sender in brackets", func(c *changes) error { return c.sender("<a@b.example>") }, packet('e', "<a@b.example>\x00")},
		{"sender on two lines", func(c *changes) error { return c.sender("a\r\nb\x00c") }, packet('e', "<a b c>\x00")},
		{"field", func(c *changes) error { return c.addHeader("X-A", " x\r\n y\rz\x00") }, packet('h', "X-A\x00 x\n y\nz \x00")},
		{"no field", func(c *changes) error { return c.changeHeader(258, "X-A", "") }, packet('m', "\x00\x00\x01\x02X-A\x00\x00")},
		{"hold", func(c *changes) error { return c.hold("one\ntwo") }, packet('q', "one two\x00")},
		{"long", func(c *changes) error { return c.addHeader("X-A", strings.Repeat("x", 65530)) }, ""},
	} {
		var out bytes.Buffer
		if err := tc.do(&changes{w: &out}); out.String() != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%s: %q, %v, want %q", tc.name, out.String(), err, tc.want)
		}
	}
}
