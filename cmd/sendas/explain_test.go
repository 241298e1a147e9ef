package main

import (
	"strings"
	"testing"

	"github.com/sendas/sendas/policy"
)

// TestReadFields: explain keeps what the milter keeps, a field of any name among it that is too
// long only as a whole.
func TestReadFields(t *testing.T) {
	const line = " 0123456789 0123456789 0123456789 0123456789\r\n"
	in := "X-First: no\r\nFrom : a@b.com\r\nX-Short: no\r\n no\r\nX-Long: yes\r\n" + strings.Repeat(line, 800) + "To: c@d.com,\r\n e@f.com\r\n\r\nSubject: body"
	var r policy.Request
	err := readFields(strings.NewReader(in), &r)
	got := r.Fields
	if err != nil || len(got) != 3 {
		t.Fatalf("%d fields, %v", len(got), err)
	}
	if got[0].Name != "From" || got[0].Value != "a@b.com" || got[1].Name != "X-Long" || len(got[1].Value) < 30_000 || got[2].Value != "c@d.com,\n e@f.com" {
		t.Errorf("From is %q, the long one %s, To is %q", got[0].Value, got[1].Name, got[2].Value)
	}
}
