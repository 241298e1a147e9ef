package policy

import (
	"fmt"

	"github.com/sendas/sendas/internal/plaintext"
)

// A Reply is what the sending client is told: an SMTP code, an enhanced code (RFC 3463)
// and one sentence with the address and what to do about it. Codes from 400 to 499 mean
// "try again", the others "never".
type Reply struct {
	Code     int    // 451, 550
	Enhanced string // "5.7.1"
	Text     string // one line, printable ASCII
}

// Temporary reports whether the client should try again.
func (r Reply) Temporary() bool { return r.Code < 500 }

// String returns the reply as it goes over the wire, without line end.
func (r Reply) String() string { return fmt.Sprintf("%d %s %s", r.Code, r.Enhanced, r.Text) }

// reject makes the permanent refusal of a sender: 5.7.1, delivery not authorized
// (RFC 3463, section 3.8).
func reject(format string, args ...any) *Reply {
	return &Reply{Code: 550, Enhanced: "5.7.1", Text: wireText(fmt.Sprintf(format, args...))}
}

// malformed refuses a message for its form: 5.6.0, media error (RFC 3463, section 3.7).
func malformed(format string, args ...any) *Reply {
	return &Reply{Code: 550, Enhanced: "5.6.0", Text: wireText(fmt.Sprintf(format, args...))}
}

// later asks the client to try again.
func later(enhanced, format string, args ...any) *Reply {
	return &Reply{Code: 451, Enhanced: enhanced, Text: wireText(fmt.Sprintf(format, args...))}
}

// wireText keeps a reply within one line of printable ASCII of bounded length, whatever
// bytes a stranger put into it (RFC 5321, section 4.5.3.1.5: 512 octets).
func wireText(s string) string {
	return plaintext.Style{Exact: true, ASCII: true, Bad: '?', MaxBytes: 400}.Line(s)
}
