package limit

import (
	"fmt"
	"strings"
	"time"

	"github.com/sendas/sendas/internal/plaintext"
)

// A Kind says what a limit counts.
type Kind string

// The kinds of limits; they are also words of metrics.
const (
	KindMessages   Kind = "messages"
	KindRecipients Kind = "recipients"
)

// Amount words a number: "1 message", "20 messages".
func Amount(n int, k Kind) string {
	if n == 1 {
		return "1 " + strings.TrimSuffix(string(k), "s")
	}
	return fmt.Sprintf("%d %s", n, k)
}

// WaitText words a wait in the largest unit of which it has two, rounded up: one who waits that
// long does not come too soon.
func WaitText(d time.Duration) string {
	up := func(unit time.Duration) int64 { return int64((max(d, 1) + unit - 1) / unit) }
	switch {
	case d <= 2*time.Minute:
		return fmt.Sprintf("%d s", up(time.Second))
	case d <= 2*time.Hour:
		return fmt.Sprintf("%d min", up(time.Minute))
	case d <= 48*time.Hour:
		return fmt.Sprintf("%d h", up(time.Hour))
	}
	return fmt.Sprintf("%d days", up(24*time.Hour))
}

// maxShownName is how many bytes of a name or an address that is too long an SMTP reply shows.
const maxShownName = 80

// ShownName is how a name stands in a reply: printable ASCII, without the quotes that we put around
// it, and short.
var ShownName = plaintext.Style{Exact: true, ASCII: true, Not: `"<>`, Bad: '?', Bytewise: true, MaxBytes: maxShownName + len("..."), Cut: "..."}
