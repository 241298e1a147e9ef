package ledger

import (
	"testing"
	"time"
)

func TestElapsedOverARestart(t *testing.T) {
	s := stamp{wall: start.UnixMicro(), boot: "a", up: time.Hour.Microseconds()}
	for _, tc := range []struct {
		name string
		wall time.Duration
		boot string
		up   time.Duration
		want time.Duration
	}{
		{"same boot", time.Minute, "a", time.Hour + time.Minute, time.Minute},
		{"set forward meanwhile", 48 * time.Hour, "a", time.Hour + time.Minute, time.Minute},
		{"set back meanwhile", -48 * time.Hour, "a", time.Hour + time.Minute, 0},
		{"another boot", 10 * time.Minute, "b", time.Minute, 10 * time.Minute},
		{"another boot with a wrong clock", -10 * time.Minute, "b", time.Minute, 0},
		{"boots unknown", time.Minute, "", 0, time.Minute},
	} {
		got := s.elapsed(start.Add(tc.wall), func() (string, time.Duration) { return tc.boot, tc.up }).Duration()
		if got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}
