package config

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// samePieces loads a file as a whole and an entry at a time, and compares what comes of both.
func samePieces(t *testing.T, name string, data []byte) {
	t.Helper()
	want, wantErr := parseInPieces("sendas.yaml", data, SkipFiles, maxFile)
	got, err := parseInPieces("sendas.yaml", data, SkipFiles, 1)
	if text, wantText := fmt.Sprint(err), fmt.Sprint(wantErr); text != wantText {
		t.Errorf("%s, in pieces:\n%s\nas a whole:\n%s", name, text, wantText)
		return
	}
	if err == nil {
		got.Policy, want.Policy = nil, nil
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s, in pieces:\n%+v\nas a whole:\n%+v", name, got, want)
		}
	}
}

// TestPieces loads every configuration of testdata in pieces: neither a value nor a sentence
// depends on it.
func TestPieces(t *testing.T) {
	for _, pattern := range []string{"testdata/good/*.yaml", "testdata/bad/*.yaml"} {
		for _, file := range glob(t, pattern) {
			samePieces(t, file, []byte(read(t, file)))
		}
	}
}

const piecesHead = "tenant: {id: contoso.com, domains: [contoso.com]}\ncredentials:\n  a: {client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab, client_secret_file: s}\n"

// TestCutLists looks at which files are taken apart, and at what comes of those that look as if
// they could be.
func TestCutLists(t *testing.T) {
	const mailbox = piecesHead + "mailboxes:\n- address: a@contoso.com\n  credential: a\n"
	for _, tc := range []struct {
		name, text string
		pieces     int // 0: the file is parsed as a whole
	}{
		{"at the margin", mailbox + "clients:\n- name: a\n  networks: [10.0.0.1]\n- name: b\n  networks: [10.0.0.2]\n", 3},
		{"deeper", mailbox + "clients: # ours\n\n  # the first\n  - name: a\n    networks:\n    - 10.0.0.1\n  # the second\n  -\n    name: b\n    logins: [b]\n", 3},
		{"other sections between", mailbox + "milter: {store: \"memory:\"}\nclients:\n  - {name: a, logins: [a]}\ntoken: {hosts: 1}\n", 2},
		{"comments at the margin", mailbox + "# before\nclients:\n# within\n  - name: a\n# within it\n    logins: [a]\n# after\n", 2},
		{"lines end as on Windows", strings.ReplaceAll(mailbox+"clients:\n  - name: a\n    logins: [a]\n", "\n", "\r\n"), 2},
		{"no entries", mailbox + "clients:\n  # - name: a\n", 1},
		{"a marker in front of it", "---\n" + mailbox + "clients:\n  - {name: a, logins: [a]}\n", 2},
		{"in brackets over several lines", mailbox + "clients:\n  - {name: a,\n     networks: [\n       10.0.0.1,\n       10.0.0.2]}\n", 2},
		{"text over several lines", mailbox + "clients:\n  - name: a\n    logins:\n      - \"a\n        b\"\n", 2},
		{"a list in brackets", mailbox + "clients: [{name: a, logins: [a]}]\n", 1},
		{"a second document", mailbox + "clients:\n  - {name: a, logins: [a]}\n---\nclients:\n", 0},
		{"the same list twice", mailbox + "clients:\n  - {name: a, logins: [a]}\nclients:\n  - {name: b, logins: [b]}\n", 0},
		{"an entry less deep", mailbox + "clients:\n    - {name: a, logins: [a]}\n  - {name: b, logins: [b]}\n", 0},
		{"keys and no list", mailbox + "clients:\n  name: a\n", 0},
		{"a key in a text", mailbox + "tokens: \"\nclients:\n  - {name: a, logins: [a]}\n\"\n", 0},
		{"an entry in a text", mailbox + "clients:\n  - name: \"a\n  - b\"\n    logins: [a]\n", 0},
		{"an entry in brackets", mailbox + "clients:\n  - name: a\n    logins: [a,\n  - b]\n", 0},
		{"an entry in a text with a margin", mailbox + "clients:\n  - name: |\n  - b\n", 0},
		{"a text with a margin", mailbox + "clients:\n  - name: a\n    logins:\n      - |-   # as it is\n        a\n  - {name: b, logins: [b]}\n", 0},
		{"an arrow in a comment", mailbox + "clients:\n  - name: a  # -> sap\n    logins: [a]\n", 2},
		{"a name that stands twice", mailbox + "clients:\n  - {name: a, logins: [a]}\n  - {name: a, logins: [a], name: b, nam: c}\n  - {name: b, from: x}\n", 4},
		{"an anchor for another entry", mailbox + "clients:\n  - &a {name: a, logins: [a]}\n  - *a\n", 3},
	} {
		data := []byte(tc.text)
		n := 0
		if _, d := decodePieces(data, 1); d != nil {
			for _, l := range d.lists {
				n += len(l.pieces)
			}
		}
		if n != tc.pieces {
			t.Errorf("%s: %d pieces, want %d", tc.name, n, tc.pieces)
		}
		samePieces(t, tc.name, data)
	}
}

// TestManyProblems has something wrong in each entry: finding the lines does not parse a piece for
// each of them.
func TestManyProblems(t *testing.T) {
	var b strings.Builder
	b.WriteString(piecesHead + "mailboxes:\n")
	for i := range 2000 {
		fmt.Fprintf(&b, "  - address: box%d@contoso.com\n    credential: b\n", i)
	}
	b.WriteString("clients:\n  - {name: a, logins: [a]}\n")
	samePieces(t, "many problems", []byte(b.String()))
	_, err := parseInPieces("sendas.yaml", []byte(b.String()), SkipFiles, pieceSize)
	if want := "sendas.yaml:6: mailboxes[0].credential: "; !strings.HasPrefix(fmt.Sprint(err), want) || !strings.Contains(err.Error(), "… and 1980 more") {
		t.Errorf("the text is %q…, want one that begins with %q", Clip(err.Error()), want)
	}
}

func FuzzPieces(f *testing.F) {
	for _, pattern := range []string{"testdata/good/*.yaml", "testdata/bad/*.yaml"} {
		for _, file := range glob(f, pattern) {
			f.Add([]byte(read(f, file)))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) { samePieces(t, "a file", data) })
}
