package token

import (
	"context"
	"time"
)

// Token is an access token as a Source got it. It is shared between
// goroutines: do not change one that you were given.
type Token struct {
	Access Secret

	// Expires is when Microsoft will stop accepting it, counted from before
	// the request went out, and without a monotonic clock reading: a machine
	// that was suspended must notice that its token went old meanwhile.
	Expires time.Time

	// RefreshAt is when Microsoft would like it to be refreshed (refresh_in);
	// zero when it did not say.
	RefreshAt time.Time
}

// A Source gets one access token.
type Source interface {
	// Token asks for a new token; a caching Source may answer from memory.
	// It must be safe for concurrent use and return soon after ctx ends.
	// The error is a *FileError, a *RefusedError, an *UnreachableError, or
	// else is taken for a temporary one. It must not hold a secret.
	Token(ctx context.Context) (*Token, error)
}
