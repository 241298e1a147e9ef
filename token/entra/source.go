package entra

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

	// Skew is how far this machine's clock is ahead of that of whoever gave the
	// token, by the Date header of the answer (negative: behind), beyond what the
	// request itself took. Zero when it was not told. Up to MaxSkew is nothing to
	// speak of.
	Skew time.Duration
}

// MaxSkew is how far a clock may be off before somebody must hear of it. Entra
// refuses the proof of an app from five minutes on (AADSTS700024).
const MaxSkew = 2 * time.Minute

// A Source gets one access token.
type Source interface {
	// Token asks for a new token; a caching Source may answer from memory.
	// It must be safe for concurrent use and return soon after ctx ends.
	// The error is a *FileError, a *RefusedError, an *UnreachableError, or
	// else is taken for a temporary one. It must not hold a secret.
	Token(ctx context.Context) (*Token, error)
}
