package finding

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"
)

// On a terminal no line is longer than it, and pasted commands stay what they are.
func TestFold(t *testing.T) {
	for _, tc := range []struct {
		text string
		cols int
		want string
	}{
		{"short", 20, "short"},
		{"  means: one two three four", 16, "  means: one two|      three four"},
		{"  do: a && b && c d e f", 16, "  do: a && b &&|      c d e f"},
		{"  do: postconf -e 'name = a b c d e f g h' && postfix reload", 30, "  do: postconf -e|      'name = a b c d e f g h' &&|      postfix reload"},
		{`  do: type "sendas check --service token", then wait`, 24, `  do: type|      "sendas check --service token",|      then wait`},
		{"  means: Postfix's user may not, and nobody's else", 30, "  means: Postfix's user may|      not, and nobody's else"},
		{"überall überall überall", 16, "überall überall|      überall"},
		{"", 10, ""},
	} {
		if got := strings.Join(fold(tc.text, tc.cols), "|"); got != tc.want && !(tc.text == "" && got == "") {
			t.Errorf("fold(%q, %d)\n got  %s\n want %s", tc.text, tc.cols, got, tc.want)
		}
	}
}

func TestScreen(t *testing.T) {
	c := &Check{Status: Fail, What: "socket", Found: strings.Repeat("nobody listens ", 20), Means: strings.Repeat("mail waits ", 30), Do: "systemctl restart a && systemctl restart b"}
	var out bytes.Buffer
	s := &Screen{w: &out, cols: maxCols, moves: true, color: true}
	s.Busy("looking at %s", strings.Repeat("x", 300))
	s.Check(c)
	text := out.String()
	if !strings.HasPrefix(text, "\rlooking at xxx") || !strings.Contains(text, "\x1b[K\r\x1b[K\x1b[1;31mFAIL\x1b[0m  socket: nobody") {
		t.Errorf("printed %q", text)
	}
	for line := range strings.Lines(text[strings.Index(text, "FAIL"):]) {
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > maxCols+8 {
			t.Errorf("a line has %d columns: %q", n, line)
		}
	}
	out.Reset()
	(&Screen{w: &out, cols: 80, moves: true}).Check(&Check{Status: Warn, What: "a", Found: "b"}) // NO_COLOR
	plain := NewScreen(&out)
	plain.Busy("is not shown where nobody sees lines change")
	plain.Check(c)
	plain.Line("verdict: %d", 1)
	if text := out.String(); strings.Contains(text, "\x1b") || strings.Contains(text, "is not shown") || strings.Count(text, "\n") != 1+3+1 {
		t.Errorf("where there is no terminal it prints %q", text)
	}
}
