package entra

import (
	"fmt"
	"io"
	"log/slog"
)

// Redacted is all that a Secret shows.
const Redacted = "REDACTED"

// Secret is a client secret, an access token or anything else that must not
// be seen. It prints, logs and marshals as REDACTED; convert it to string only
// to send or to store it.
//
// fmt cannot call methods on values that it reaches through unexported struct
// fields and then prints what it finds. So hold a Secret (or a Token) in an
// exported field, or in an unexported one behind a pointer.
type Secret string

func (Secret) String() string   { return Redacted }
func (Secret) GoString() string { return Redacted }

// Format writes REDACTED for every verb: %x and %q do not ask String.
func (Secret) Format(f fmt.State, _ rune) { io.WriteString(f, Redacted) }

// LogValue keeps a Secret out of log/slog.
func (Secret) LogValue() slog.Value { return slog.StringValue(Redacted) }

// MarshalText keeps a Secret out of text encodings. It cannot help a map whose
// keys are Secrets: encoding/json takes those as they are.
func (Secret) MarshalText() ([]byte, error) { return []byte(Redacted), nil }

// MarshalJSON keeps a Secret out of JSON.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + Redacted + `"`), nil }
