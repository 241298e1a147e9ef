package limit

import (
	"testing"
	"time"
)

func TestParseRate(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want Rate
		text string // of String, where it differs from in
	}{
		{"30/m", Rate{30, time.Minute}, ""},
		{"500/h", Rate{500, time.Hour}, ""},
		{"10000/d", Rate{10000, 24 * time.Hour}, ""},
		{"30/6s", Rate{30, 6 * time.Second}, ""},
		{"30/60s", Rate{30, time.Minute}, "30/m"},
		{"30/250ms", Rate{30, 250 * time.Millisecond}, ""},
	} {
		got, err := ParseRate(tc.in)
		if err != nil || got != tc.want {
			t.Errorf("ParseRate(%q) = %v, %v, want %v", tc.in, got, err, tc.want)
		}
		want := tc.text
		if want == "" {
			want = tc.in
		}
		if got.String() != want {
			t.Errorf("ParseRate(%q).String() = %q, want %q", tc.in, got, want)
		}
	}
	for _, in := range []string{"", "30", "30 per minute", "/m", "0/m", "-1/m", "30/", "30/w", "30/1ms", "30/-5s", "1e3/m", "30/m/m", "9999999999/d"} {
		if got, err := ParseRate(in); err == nil {
			t.Errorf("ParseRate(%q) = %v, want an error", in, got)
		}
	}
}

// The table of message centre post MC1023294.
func TestTERRL(t *testing.T) {
	for _, tc := range []struct{ licences, want int }{
		{-1, 5_000}, {0, 5_000}, // a trial tenant
		{1, 10_000}, {10, 12_006}, {100, 22_059}, {1_000, 72_446}, {10_000, 324_979},
	} {
		if got, want := TERRL(tc.licences), (Rate{tc.want, 24 * time.Hour}); got != want {
			t.Errorf("TERRL(%d) = %v, want %v", tc.licences, got, want)
		}
	}
}
