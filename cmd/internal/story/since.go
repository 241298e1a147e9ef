package story

import (
	"strconv"
	"strings"
	"time"

	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/internal/plaintext"
)

// clipped is how much of what somebody typed an error repeats.
var clipped = plaintext.Style{MaxRunes: 80, Cut: "…"}

// ParseSince reads a time ago, or a moment of this host's time zone.
func ParseSince(s string, now time.Time) (time.Time, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n >= 0 && n < 100_000 {
			return now.AddDate(0, 0, -n), nil
		}
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, form := range []string{time.DateOnly, "2006-01-02 15:04", time.DateTime, "15:04"} {
		at, err := time.ParseInLocation(form, s, time.Local)
		if err != nil {
			continue
		}
		if form == "15:04" {
			y, m, d := now.Local().Date()
			at = time.Date(y, m, d, at.Hour(), at.Minute(), 0, 0, time.Local)
		}
		return at, nil
	}
	if at, err := time.Parse(time.RFC3339, s); err == nil {
		return at, nil
	}
	return now, exit.Errorf(exit.Usage, "", "%q is no time; write 2h, 3d, 14:30, 2026-12-01 or \"2026-12-01 14:00\"", clipped.Line(s))
}
