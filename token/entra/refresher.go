package entra

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// MinLife is the life that a token still has when it is handed out, except
	// where tokens live shorter than twice as long, or Microsoft cannot be asked
	// for a new one. Exchange refuses tokens with less than about ten minutes:
	// "501 5.5.127 … Token will expire soon error".
	MinLife = 10 * time.Minute

	// RefreshEarly is how long before its end a token is refreshed at the
	// latest. What it is longer than MinLife, an outage at Microsoft may last
	// before anything shows.
	RefreshEarly = 20 * time.Minute

	// MinInterval is the default floor between two requests for one credential:
	// no mistake of ours or of a server makes Entra see a loop (AADSTS50196).
	MinInterval = 10 * time.Second

	// attemptTimeout bounds one call of the Source.
	attemptTimeout = 40 * time.Second

	// maxRetryAfter bounds how long a server can silence us.
	maxRetryAfter = time.Hour

	// maxDiscardGap is the age below which a token is kept although a server
	// refuses it, when several before it were refused too: then the fault is
	// elsewhere, such as in the rights to one mailbox.
	maxDiscardGap = 30 * time.Minute

	// lookAgain bounds how long Run sleeps: timers stand still while a machine
	// is suspended, tokens do not.
	lookAgain = time.Minute

	// successLogged is how often an uneventful success is told at level Info.
	successLogged = time.Hour
)

// Results of an attempt, for metrics and RefresherState.Attempts.
const (
	ResultOK          = "ok"
	ResultRefused     = "refused"     // Microsoft said no; somebody must act
	ResultUnreachable = "unreachable" // no answer, or one that says: later
	ResultConfig      = "config"      // the secret or certificate file is unfit; nothing was sent
)

// Results lists all results, so that every series can start at zero.
var Results = []string{ResultOK, ResultRefused, ResultUnreachable, ResultConfig}

// errStopped is what Token answers after Run has ended.
var errStopped = errors.New("the token service is stopping")

// RefresherOptions are what a Refresher can be given; the zero value serves.
type RefresherOptions struct {
	// Log gets one line per failed attempt and per change of state. Nil: none.
	Log *slog.Logger

	// Observe is called by Run's goroutine after each attempt, with one of the
	// Results and how long it took.
	Observe func(result string, took time.Duration)

	// MinInterval is the floor between the starts of two attempts; zero means
	// the constant of that name.
	MinInterval time.Duration

	// Rand returns numbers in [0, 1) for jitter; nil means math/rand/v2.
	Rand func() float64
}

// Refresher is a Source that keeps the token of another Source in memory and
// fresh. One goroutine, Run, asks the other Source, so there is never more than
// one request under way; everybody else reads, or waits for what Run gets.
//
// Its methods are safe for concurrent use.
type Refresher struct {
	credential string
	src        Source
	o          RefresherOptions
	wake       chan struct{} // of size 1: Run looks again at when it is due

	mu          sync.Mutex    // guards all below
	changed     chan struct{} // closed and replaced when an attempt or Run ends
	running     bool          // an attempt is under way
	stopped     bool
	again       bool // Wake was called during the attempt
	tok         *Token
	short       bool          // tok cannot be handed out with MinLife
	discarded   bool          // a server refused tok
	suspect     bool          // and it is time to do something about it
	discardGap  time.Duration // the age from which a refused token is refreshed
	got         time.Time     // when tok came
	next        time.Time     // when the next attempt is due
	notBefore   time.Time     // what no attempt may precede, whoever asks
	failures    int           // in a row
	lastErr     error         // of the last attempt
	lastAttempt time.Time
	lastSuccess time.Time
	lastLogged  time.Time // last success at level Info
	skew        time.Duration
	attempts    map[string]uint64
}

// RefresherState is what a Refresher knows, for status and metrics.
type RefresherState struct {
	Have        bool      // there is a token that has not expired
	Expires     time.Time // the token's end, also when it is past; zero if there never was one
	LastSuccess time.Time
	LastAttempt time.Time
	LastErr     error             // of the last attempt; nil when it succeeded
	Attempts    map[string]uint64 // by result, since the start
	NextAttempt time.Time
	Skew        time.Duration // how far this clock was ahead of Entra's at the last success
}

// NewRefresher decorates src, the source for the named credential. Call Run.
func NewRefresher(credential string, src Source, o RefresherOptions) *Refresher {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Observe == nil {
		o.Observe = func(string, time.Duration) {}
	}
	if o.MinInterval <= 0 {
		o.MinInterval = MinInterval
	}
	if o.Rand == nil {
		o.Rand = rand.Float64
	}
	return &Refresher{
		credential: credential,
		src:        src,
		o:          o,
		wake:       make(chan struct{}, 1),
		changed:    make(chan struct{}),
		discardGap: firstDiscardGap(o),
		attempts:   make(map[string]uint64),
	}
}

func firstDiscardGap(o RefresherOptions) time.Duration { return 6 * o.MinInterval }

// Run keeps the token fresh until ctx ends, beginning at once. Call it once.
func (r *Refresher) Run(ctx context.Context) {
	defer r.stop()
	for r.sleep(ctx) {
		if r.begin() {
			r.attempt(ctx)
		}
	}
}

// sleep waits until an attempt is due or something may have changed that; it
// returns false when ctx has ended.
func (r *Refresher) sleep(ctx context.Context) bool {
	t := time.NewTimer(min(time.Until(r.State().NextAttempt), lookAgain))
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.wake:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// begin opens an attempt if one is due.
func (r *Refresher) begin() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if now.Before(r.dueLocked(now)) {
		return false
	}
	r.running = true
	r.lastAttempt = now
	r.notBefore = now.Add(r.o.MinInterval)
	return true
}

// attempt asks the source once and takes in what it says.
func (r *Refresher) attempt(ctx context.Context) {
	started := time.Now()
	limited, cancel := context.WithTimeout(ctx, attemptTimeout)
	t, err := r.src.Token(limited)
	cancel()
	if err == nil && !time.Now().Round(0).Before(t.Expires) {
		err = fmt.Errorf("the source of %q gave a token that has expired already", r.credential)
	}
	if err != nil && ctx.Err() != nil {
		return // we are stopping: that is no failure
	}
	result := ResultOK
	if err == nil {
		r.succeed(t, started)
	} else {
		result = r.fail(err)
	}
	r.o.Observe(result, time.Since(started))
}

// stop lets nobody wait for a Run that has ended.
func (r *Refresher) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = true
	r.endLocked()
}

// endLocked closes an attempt; the caller holds mu.
func (r *Refresher) endLocked() {
	r.running, r.again = false, false
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *Refresher) succeed(t *Token, started time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	own := *t
	own.Expires, own.RefreshAt = t.Expires.Round(0), t.RefreshAt.Round(0)
	life := own.Expires.Sub(started.Round(0))
	if r.discarded {
		r.discardGap = min(2*r.discardGap, maxDiscardGap)
	} else {
		r.discardGap = firstDiscardGap(r.o)
	}
	r.tok, r.got, r.short = &own, now, life < 2*MinLife
	r.discarded, r.suspect = false, false
	r.next = LaterOf(r.notBefore, started.Add(holdFor(&own, started, life, r.o.Rand())))
	if r.again {
		r.next = r.notBefore
	}
	r.attempts[ResultOK]++
	r.logSkewLocked(own.Skew)
	r.skew = own.Skew
	r.logSuccessLocked(now)
	r.lastErr, r.failures, r.lastSuccess = nil, 0, now
	r.endLocked()
}

// holdFor is how long a token serves before it is refreshed: until RefreshAt if
// Microsoft said so, in any case until RefreshEarly before its end, and where
// it lives too short for that, for half its life. Jitter of up to 4 % keeps
// many relays from asking together; it only ever makes it earlier.
func holdFor(t *Token, started time.Time, life time.Duration, random float64) time.Duration {
	d := max(life/2, life-RefreshEarly)
	if !t.RefreshAt.IsZero() {
		// Not earlier than a quarter of its life: a refresh_in of one second
		// must not make a loop.
		d = min(d, max(life/4, t.RefreshAt.Sub(started.Round(0))))
	}
	return d - time.Duration(0.04*random*float64(d))
}

// logSuccessLocked tells of a first or mended token always, of others seldom. The
// caller holds mu and has not yet forgotten lastErr.
func (r *Refresher) logSuccessLocked(now time.Time) {
	level := slog.LevelDebug
	if r.lastErr != nil || r.lastLogged.IsZero() || now.Sub(r.lastLogged) >= successLogged {
		level, r.lastLogged = slog.LevelInfo, now
	}
	r.o.Log.Log(context.Background(), level, "token refreshed", "credential", r.credential,
		"expires", r.tok.Expires, "failures_before", r.failures)
}

// logSkewLocked tells once that this machine's clock is wrong, and once that it is right again. The
// caller holds mu.
func (r *Refresher) logSkewLocked(skew time.Duration) {
	wrong := skew.Abs() > MaxSkew
	if wrong == (r.skew.Abs() > MaxSkew) {
		return
	}
	if wrong {
		r.o.Log.Warn("this machine's clock differs from Entra's", "credential", r.credential, "ahead", skew.Round(time.Second),
			"hint", `set it: "timedatectl" shows it; signed proofs are refused when it is far off`)
		return
	}
	r.o.Log.Info("this machine's clock agrees with Entra's again", "credential", r.credential)
}

// fail takes in an error and returns the attempt's result.
func (r *Refresher) fail(err error) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	result, wait := ResultOf(err)
	r.failures++
	r.attempts[result]++
	r.notBefore = LaterOf(r.notBefore, now.Add(wait))
	r.next = LaterOf(r.notBefore, now.Add(r.backoffLocked(err, wait)))
	if r.again {
		r.next = r.notBefore
	}
	r.lastErr = err
	r.logFailureLocked(err, now)
	r.endLocked()
	return result
}

// ResultOf returns the result that an error stands for, and how long the other
// side asks to be left alone.
func ResultOf(err error) (result string, retryAfter time.Duration) {
	if _, ok := errors.AsType[*FileError](err); ok {
		return ResultConfig, 0
	}
	if e, ok := errors.AsType[*RefusedError](err); ok {
		if e.Temporary() {
			return ResultUnreachable, min(e.RetryAfter, maxRetryAfter)
		}
		return ResultRefused, min(e.RetryAfter, maxRetryAfter)
	}
	if e, ok := errors.AsType[*UnreachableError](err); ok {
		return ResultUnreachable, min(e.RetryAfter, maxRetryAfter)
	}
	return ResultUnreachable, 0
}

// backoffLocked is how long to wait after the latest of several failures: doubled
// each time, less up to 20 % of jitter. Where nobody heard us it ends at a minute; where
// somebody answered, at five: repeating ourselves helps nobody.
func (r *Refresher) backoffLocked(err error, retryAfter time.Duration) time.Duration {
	first, most := r.o.MinInterval, 6*r.o.MinInterval
	if wasHeard(err) {
		first, most = 3*first, 30*first
	}
	d := min(first<<min(r.failures-1, 10), most)
	d -= time.Duration(0.2 * r.o.Rand() * float64(d))
	return max(d, retryAfter+time.Duration(0.1*r.o.Rand()*float64(retryAfter)))
}

// wasHeard reports whether Microsoft or somebody in its place heard the request.
func wasHeard(err error) bool {
	if _, ok := errors.AsType[*RefusedError](err); ok {
		return true
	}
	e, ok := errors.AsType[*UnreachableError](err)
	return ok && e.Status != 0
}

// logFailureLocked writes the line of a failed attempt: a warning while the old token
// serves, an error from when mail waits. The caller holds mu.
func (r *Refresher) logFailureLocked(err error, now time.Time) {
	level, left := slog.LevelError, time.Duration(0)
	if r.aliveLocked(now) {
		level, left = slog.LevelWarn, r.tok.Expires.Sub(now.Round(0))
	}
	attrs := []any{"credential", r.credential, "error", err}
	if e, ok := errors.AsType[*RefusedError](err); ok {
		attrs = append(attrs, "code", e.Code(), "trace_id", e.TraceID, "correlation_id", e.CorrelationID)
	}
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		attrs = append(attrs, "hint", h.Hint())
	}
	attrs = append(attrs, "retry_in", r.next.Sub(now).Round(time.Second), "token_left", left.Round(time.Second))
	r.o.Log.Log(context.Background(), level, "token refresh failed", attrs...)
}

// Token returns the token in memory while it is good, else what the refresh
// under way brings, for which any number of callers wait together. While
// refreshing fails it returns the old token until that really expires, and
// then, at once, the error of the last attempt.
func (r *Refresher) Token(ctx context.Context) (*Token, error) {
	for {
		t, wait, err := r.look()
		if wait == nil {
			return t, err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for a token of %q: %w", r.credential, context.Cause(ctx))
		}
	}
}

// look returns a token, an error, or a channel to wait on for either.
func (r *Refresher) look() (*Token, <-chan struct{}, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	switch {
	case r.goodLocked(now):
		return r.tok, nil, nil
	case (r.lastErr != nil || r.stopped) && r.aliveLocked(now):
		return r.tok, nil, nil // an old one is better than none
	case r.stopped:
		return nil, nil, fmt.Errorf("no token of %q: %w", r.credential, errStopped)
	case r.lastErr != nil && !r.running && now.Before(r.next):
		return nil, nil, r.lastErr
	}
	r.poke()
	return nil, r.changed, nil
}

// Wake asks for an attempt at once, whatever the state: on SIGHUP, when files may
// have been replaced. The floor and a Retry-After still hold.
func (r *Refresher) Wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.again = r.running
	r.next = r.notBefore
	r.poke()
}

// Discard tells that a server refused this token. If it is the current one, a
// new one is asked for: at once, or when the token has reached a certain age,
// which grows from a minute to half an hour while new tokens are refused as
// well. For one token serves many mailboxes, and Exchange answers 535 when just
// one of them lacks a right. Until a new token is there, callers wait; where
// none can be had, they get the old one, which is not surely bad.
func (r *Refresher) Discard(access Secret) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tok == nil || r.tok.Access != access || r.discarded {
		return
	}
	r.discarded = true
	from := LaterOf(r.got.Add(r.discardGap), r.notBefore)
	r.suspect = !time.Now().Before(from)
	if r.lastErr == nil && from.Before(r.next) {
		r.next = from
	}
	r.o.Log.Info("token refused by a server", "credential", r.credential, "refresh_in", max(0, time.Until(from)).Round(time.Second))
	r.poke()
}

// State returns what there is to know, at this moment.
func (r *Refresher) State() RefresherState {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	s := RefresherState{
		Have:        r.aliveLocked(now),
		LastSuccess: r.lastSuccess,
		LastAttempt: r.lastAttempt,
		LastErr:     r.lastErr,
		Attempts:    make(map[string]uint64, len(Results)),
		NextAttempt: r.dueLocked(now),
		Skew:        r.skew,
	}
	if r.tok != nil {
		s.Expires = r.tok.Expires
	}
	for _, result := range Results {
		s.Attempts[result] = r.attempts[result]
	}
	return s
}

// dueLocked is when the next attempt is due; the caller holds mu. It is now if there
// should be a good token and is none: at the start, and after the machine was
// suspended.
func (r *Refresher) dueLocked(now time.Time) time.Time {
	if r.lastErr == nil && !r.goodLocked(now) {
		return r.notBefore
	}
	return r.next
}

// goodLocked reports whether the token may be handed out without a second thought; the
// caller holds mu.
func (r *Refresher) goodLocked(now time.Time) bool {
	return r.aliveLocked(now) && !r.suspect && (r.short || r.tok.Expires.Sub(now.Round(0)) >= MinLife)
}

// aliveLocked reports whether there is a token that has not expired by the wall clock;
// the caller holds mu.
func (r *Refresher) aliveLocked(now time.Time) bool {
	return r.tok != nil && now.Round(0).Before(r.tok.Expires)
}

// poke makes Run look again.
func (r *Refresher) poke() {
	select {
	case r.wake <- struct{}{}:
	default: // it has been told already
	}
}

func LaterOf(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
