package address

import (
	"strings"
	"testing"

	"github.com/sendas/sendas/policy/address/addresstest"
)

func TestFold(t *testing.T) {
	const a, b = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa@fabrikam.com", "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbb@fabrikam.com"
	rest := strings.Repeat("c", maxLine)
	for _, tc := range []struct{ what, in, want string }{
		{"commas", a + "," + b + "," + rest, a + ",\n " + b + ",\n " + rest},
		{"commas and blanks", a + ",  " + b + ", " + rest, a + ",\n  " + b + ",\n " + rest},
		{"tabs", a + ",\t" + b + "," + rest, a + ",\n\t" + b + ",\n " + rest},
		{"semicolons", a + ";" + b + ";" + rest, a + ";\n " + b + ";\n " + rest},
		{"quotes", `"a,b; c" <` + a + `>,"` + `\",b" <` + b + ">," + rest, `"a,b; c" <` + a + `>,"\",b"` + "\n <" + b + ">,\n " + rest},
		{"an open quote", `"a <` + a + ">," + b + "," + rest, `"a <` + a + ">,\n " + b + ",\n " + rest},
		{"comments", a + " (a, b)," + b + "," + rest, a + " (a, b),\n " + b + ",\n " + rest},
		{"encoded words", "=?utf-8?q?a,b?= <" + a + ">," + b + "," + rest, "=?utf-8?q?a,b?= <" + a + ">,\n " + b + ",\n " + rest},
		{"message ids", "<" + a + "><" + b + "><" + rest + ">", "<" + a + ">\n <" + b + ">\n <" + rest + ">"},
		{"folds that are there", a + ",\n " + b + ",\r\n\t" + b + "," + rest, a + ",\n " + b + ",\n\t" + b + ",\n " + rest},
		{"blank lines", a + ",\n \n " + b + "," + rest, a + ",\n " + b + ",\n " + rest},
		{"bare line ends", a + ",\r" + b + "," + rest + "\nBcc: x@y", a + ",\n " + b + ",\n " + rest + "\n Bcc: x@y"},
		{"blanks at the end", a + ",\n " + rest + "   ", a + ",\n " + rest + "   "},
		{"no line is too long", a + ",\r\n " + b + "\n " + b + strings.Repeat(",\n "+a, 30), a + ",\r\n " + b + "\n " + b + strings.Repeat(",\n "+a, 30)},
	} {
		if got := Fold("To", tc.in, true); got != tc.want {
			t.Errorf("%s\n got  %q\n want %q", tc.what, got, tc.want)
		}
	}
	if got, want := Fold("Subject", "a,b; "+rest, false), "a,b;\n "+rest; got != want {
		t.Errorf("text: %q, want %q", got, want)
	}
	name := strings.Repeat("long name ", 150)
	if got := Fold("To", `"`+name+`" <a@fabrikam.com>`, true); hasLongLine(4, got) || strings.ReplaceAll(got, "\n", "") != `"`+name+`" <a@fabrikam.com>` {
		t.Errorf("a long quoted name: %q", got)
	}
}

// FuzzFold holds for any bytes: only white space changes, no line becomes a field of its own, and
// what has a place to be broken at has no line that is too long.
func FuzzFold(f *testing.F) {
	for _, s := range addresstest.StrangeFields {
		f.Add(strings.Repeat(s+",", 1000/(len(s)+1)+1), true)
		f.Add(strings.Repeat(s+" ", 1000/(len(s)+1)+1), false)
	}
	f.Fuzz(func(t *testing.T, body string, structured bool) {
		got := Fold("To", body, structured)
		if got == body {
			return
		}
		bare := strings.NewReplacer(" ", "", "\t", "", "\r", "", "\n", "", "\x00", "")
		if bare.Replace(got) != bare.Replace(body) {
			t.Fatalf("%q is folded as %q", body, got)
		}
		for i, line := range strings.Split(got, "\n") {
			if i > 0 && (line == "" || !isBlank(line[0]) || strings.Trim(line, " \t") == "") || strings.ContainsAny(line, "\r\x00") {
				t.Fatalf("%q is folded as %q: line %d", body, got, i)
			}
			if len(line) > maxLine && longest(line) <= maxLine-len("To: ") {
				t.Fatalf("%q is folded as %q: line %d is too long", body, got, i)
			}
		}
	})
}

// longest returns the length of the longest run of blanks and the word behind it.
func longest(line string) int {
	most, start, last, word := 0, 0, 0, false
	for i := range len(line) {
		if isBlank(line[i]) && word {
			start, last, word = i, start, false
		} else if !isBlank(line[i]) {
			word = true
		}
		most = max(most, i+1-start)
	}
	if !word { // blanks at the end cannot be a line of their own
		most = max(most, len(line)-last)
	}
	return most
}

// TestParseWhole: in a list of any length each address is found, with its own name, whatever stands
// around it.
func TestParseWhole(t *testing.T) {
	for _, tc := range []struct{ each, name, joint string }{
		{"Person %d person%d@fabrikam.com", "Person %d", ","},
		{"Person, No. %d <person%d@fabrikam.com>", "Person, No. %d", ", "},
		{`"a@b.c, %d" <person%d@fabrikam.com>`, "a@b.c, %d", ","},
		{"Person %d <person%d@fabrikam.com>", "Person %d", " "},
		{"<person%d@fabrikam.com>", "", " "},
		{"person%d@fabrikam.com", "", "; "},
		{"person%d@fabrikam.com", "", "\n "},
		{"Müller %d <person%d@fabrikam.com>", "Müller %d", ";"},
	} {
		number := func(s string, i int) string { return strings.ReplaceAll(s, "%d", strings.Repeat("1", i)) }
		for _, n := range []int{1, 2, 30, 200} {
			var parts []string
			for i := range n {
				parts = append(parts, number(tc.each, i%20))
			}
			got := ParseWhole(strings.Join(parts, tc.joint))
			if len(got) != n {
				t.Errorf("%d × %q: %d addresses", n, tc.each, len(got))
				continue
			}
			for i, e := range got {
				if want := (Named{TidyName(number(tc.name, i%20)), Spec{number("person%d", i%20), "fabrikam.com"}}); e != want {
					t.Errorf("%d × %q: entry %d is %+v, want %+v", n, tc.each, i, e, want)
					break
				}
			}
		}
	}
	junk := ParseWhole(strings.Repeat("x", 1700) + "<a@fabrikam.com>, b@fabrikam.com " + strings.Repeat(`("<`, 10_000) + ",c@fabrikam.com")
	for i, want := range []string{"a", "b", "c"} {
		if i >= len(junk) || junk[i].Spec.Local != want {
			t.Fatalf("addresses among junk: %+v", junk)
		}
	}
}
