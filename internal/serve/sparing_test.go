package serve

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestSparing: a flood of warnings is ten lines a minute, and the next line tells how many are
// missing.
func TestSparing(t *testing.T) {
	for _, tc := range []struct {
		name  string
		each  time.Duration
		n     int
		lines int
		last  string
	}{
		{"one", 0, 1, 1, "n=0\n"},
		{"ten", 0, 10, 10, "n=9\n"},
		{"one every ten seconds", 10 * time.Second, 100, 100, "n=99\n"},
		{"four thousand in a second", time.Second / 4000, 4000, 10, "n=9\n"},
		{"a hundred a second, for two minutes", 10 * time.Millisecond, 12001, 21, "n=12000 left_out=5990\n"},
	} {
		synctest.Test(t, func(t *testing.T) {
			var out bytes.Buffer
			var s Sparing
			log := slog.New(slog.NewTextHandler(&out, nil))
			for i := range tc.n {
				s.Warn(log, "refused", "n", i)
				time.Sleep(tc.each)
			}
			if got := strings.Count(out.String(), "\n"); got != tc.lines || !strings.HasSuffix(out.String(), tc.last) {
				t.Errorf("%s: %d lines, want %d, the last one with %q:\n%.2000s", tc.name, got, tc.lines, tc.last, &out)
			}
		})
	}
}
