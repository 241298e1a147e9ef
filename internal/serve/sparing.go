package serve

import (
	"log/slog"
	"sync"
	"time"
)

// The warnings of a Sparing: so many in such a time.
const (
	sparingLines = 10
	sparingTime  = time.Minute
)

// A Sparing writes warnings whose cause anybody on this host or network can repeat at will: the
// first few of a minute, and with the first of a later one how many were left out. The zero value
// is ready to use.
type Sparing struct {
	mu      sync.Mutex // guards what follows
	began   time.Time  // when the minute did
	written int        // in it
	left    int        // out, since the last line
}

// Warn writes a warning, or leaves it out.
func (s *Sparing) Warn(log *slog.Logger, msg string, attrs ...any) {
	left, ok := s.take(time.Now())
	if !ok {
		return
	}
	if left > 0 {
		attrs = append(attrs, "left_out", left)
	}
	log.Warn(msg, attrs...)
}

// take reports whether a line may be written, and how many were not before it.
func (s *Sparing) take(now time.Time) (left int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.began) >= sparingTime {
		s.began, s.written = now, 0
	}
	if s.written >= sparingLines {
		s.left++
		return 0, false
	}
	s.written++
	left, s.left = s.left, 0
	return left, true
}
