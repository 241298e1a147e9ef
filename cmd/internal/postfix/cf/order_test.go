package cf

import "testing"

// TestInOrder: only what stands at the end and was just written is moved.
func TestInOrder(t *testing.T) {
	names := []string{"a", "b_maps", "c"}
	for _, tc := range []struct{ text, want string }{
		{"x = 1\nc = 3\na = 1\nb_maps = inline:{ {k = v} }\n", "x = 1\na = 1\nb_maps = inline:{ {k = v} }\nc = 3\n"},
		{"c = 3\n# a = 0\nb_maps = \na = 1\n", "c = 3\n# a = 0\na = 1\nb_maps = \n"},
		{"c = 3\nx = 1,\n a = 2\n", "c = 3\nx = 1,\n a = 2\n"}, // a line that goes on
		{"c = 3\na = 1", "c = 3\na = 1"},
		{"c = 3\na = 1\n\n", "c = 3\na = 1\n\n"},
		{"", ""},
	} {
		if got := string(inOrder([]byte(tc.text), names)); got != tc.want {
			t.Errorf("%q: %q, want %q", tc.text, got, tc.want)
		}
	}
}
