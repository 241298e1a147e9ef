package entra

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// memorySource is a Source whose answers and outages a test decides. It fails
// the test when two requests overlap or follow each other too closely.
type memorySource struct {
	t     *testing.T
	floor time.Duration

	mu     sync.Mutex
	answer func(n int) (*Token, error) // the n-th request, from 1
	takes  time.Duration
	calls  []time.Time
	busy   bool
}

// newSource returns a source whose tokens live for so long.
func newSource(t *testing.T, life time.Duration) *memorySource {
	s := &memorySource{t: t, floor: MinInterval, takes: 200 * time.Millisecond}
	s.say(func(n int) (*Token, error) { return freshToken(n, life), nil })
	return s
}

func freshToken(n int, life time.Duration) *Token {
	return &Token{Access: Secret(fmt.Sprintf("token-%d", n)), Expires: time.Now().Add(life)}
}

func (s *memorySource) say(answer func(n int) (*Token, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

// slow sets how long a request takes.
func (s *memorySource) slow(takes time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.takes = takes
}

func (s *memorySource) fail(err error) { s.say(func(int) (*Token, error) { return nil, err }) }

func (s *memorySource) Token(ctx context.Context) (*Token, error) {
	s.mu.Lock()
	if s.busy {
		s.t.Error("two requests at the same time")
	}
	now := time.Now()
	if n := len(s.calls); n > 0 && now.Sub(s.calls[n-1]) < s.floor {
		s.t.Errorf("request %d comes %v after the one before, want at least %v", n+1, now.Sub(s.calls[n-1]), s.floor)
	}
	s.calls = append(s.calls, now)
	s.busy = true
	n, answer, takes := len(s.calls), s.answer, s.takes
	s.mu.Unlock()
	tok, err := answer(n)
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		tok, err = nil, ctx.Err()
	}
	s.mu.Lock()
	s.busy = false
	s.mu.Unlock()
	return tok, err
}

func (s *memorySource) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.calls)
}

// gaps returns the times between requests.
func (s *memorySource) gaps() []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	var gaps []time.Duration
	for i := 1; i < len(s.calls); i++ {
		gaps = append(gaps, s.calls[i].Sub(s.calls[i-1]))
	}
	return gaps
}

// noJitter makes waits exact.
func noJitter() float64 { return 0 }

// start runs a Refresher without jitter until the test ends.
func start(t *testing.T, src Source, o RefresherOptions) *Refresher {
	t.Helper()
	if o.Rand == nil {
		o.Rand = noJitter
	}
	r := NewRefresher("relay-app", src, o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); r.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return r
}

func wantToken(t *testing.T, r *Refresher, want string) {
	t.Helper()
	tok, err := r.Token(t.Context())
	if err != nil || string(tok.Access) != want {
		t.Errorf("Token = %v, %v, want %s", access(tok), err, want)
	}
}

func access(tok *Token) string {
	if tok == nil {
		return "none"
	}
	return string(tok.Access)
}

func wantRequests(t *testing.T, src *memorySource, want int) {
	t.Helper()
	if got := src.count(); got != want {
		t.Errorf("%d requests, want %d", got, want)
	}
}

var (
	errDown    = &UnreachableError{Credential: "relay-app", Host: "login.microsoftonline.com", Problem: "gave no answer: connection refused", Err: &net.OpError{Op: "dial", Err: errors.New("connection refused")}}
	errRefused = &RefusedError{Credential: "relay-app", What: "client credentials", File: "/etc/sendas/relay-app", Status: 401, OAuth: "invalid_client", Codes: []int{7000222}, Description: "The provided client secret keys are expired."}
)

func TestRefreshedAheadOfTime(t *testing.T) {
	for _, tc := range []struct {
		name                  string
		life, refreshIn, want time.Duration
	}{
		{"usual", time.Hour, 0, 40 * time.Minute},
		{"long", 24 * time.Hour, 0, 24*time.Hour - 20*time.Minute},
		{"half of a short one", 30 * time.Minute, 0, 15 * time.Minute},
		{"the shortest policy", 10 * time.Minute, 0, 5 * time.Minute},
		{"a minute", time.Minute, 0, 30 * time.Second},
		{"shorter than the floor", 4 * time.Second, 0, MinInterval},
		{"told", 24 * time.Hour, 12 * time.Hour, 12 * time.Hour},
		{"told too late", time.Hour, 59 * time.Minute, 40 * time.Minute},
		{"told much too early", time.Hour, time.Second, 15 * time.Minute},
	} {
		synctest.Test(t, func(t *testing.T) {
			src := newSource(t, 0)
			src.say(func(n int) (*Token, error) {
				tok := freshToken(n, tc.life)
				if tc.refreshIn > 0 {
					tok.RefreshAt = time.Now().Add(tc.refreshIn)
				}
				return tok, nil
			})
			start(t, src, RefresherOptions{})
			time.Sleep(tc.want + 10*time.Second)
			synctest.Wait()
			gaps := src.gaps()
			if len(gaps) < 1 || gaps[0] != tc.want {
				t.Errorf("%s: refreshed after %v, want %v", tc.name, gaps, tc.want)
			}
		})
	}
}

func TestJitterIsEarlierAndSmall(t *testing.T) {
	now := time.Now()
	tok := &Token{Expires: now.Add(time.Hour).Round(0)}
	for random, want := range map[float64]time.Duration{0: 40 * time.Minute, 0.5: 39*time.Minute + 12*time.Second, 1: 38*time.Minute + 24*time.Second} {
		if got := holdFor(tok, now, time.Hour, random); got.Round(time.Second) != want {
			t.Errorf("a token of an hour with random number %v is held for %v, want %v", random, got, want)
		}
	}
}

func TestManyCallersShareOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(t, time.Hour)
		src.slow(3 * time.Second)
		r := start(t, src, RefresherOptions{})
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() { wantToken(t, r, "token-1") })
		}
		wg.Wait()
		wantRequests(t, src, 1)
		for range 1000 {
			wantToken(t, r, "token-1")
		}
		wantRequests(t, src, 1)
	})
}

func TestManyCallersShareOneFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(t, time.Hour)
		src.fail(errDown)
		r := start(t, src, RefresherOptions{})
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				if _, err := r.Token(t.Context()); err != error(errDown) {
					t.Errorf("Token = %v, want the source's error", err)
				}
			})
		}
		wg.Wait()
		wantRequests(t, src, 1)
		// In back-off the answer is there at once, and nobody is asked.
		before := time.Now()
		if _, err := r.Token(t.Context()); err != error(errDown) || time.Since(before) != 0 {
			t.Errorf("Token in back-off = %v after %v, want the error at once", err, time.Since(before))
		}
		wantRequests(t, src, 1)
	})
}

func TestTokenRespectsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(t, time.Hour)
		src.slow(30 * time.Second)
		r := start(t, src, RefresherOptions{})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		before := time.Now()
		_, err := r.Token(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(before) != 5*time.Second || !strings.Contains(err.Error(), `waiting for a token of "relay-app"`) {
			t.Errorf("Token = %v after %v, want context.DeadlineExceeded after 5s", err, time.Since(before))
		}
		// The one who gave up spoils nothing for the others.
		wantToken(t, r, "token-1")
		wantRequests(t, src, 1)
	})
}

// A source that hangs is given up, so that the next attempt can come.
func TestHangingSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(t, time.Hour)
		src.slow(24 * time.Hour)
		r := start(t, src, RefresherOptions{})
		before := time.Now()
		if _, err := r.Token(t.Context()); !errors.Is(err, context.DeadlineExceeded) || time.Since(before) != attemptTimeout {
			t.Errorf("Token = %v after %v, want a deadline after %v", err, time.Since(before), attemptTimeout)
		}
	})
}

func TestOldTokenServesWhileRefreshFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(t, time.Hour)
		r := start(t, src, RefresherOptions{})
		wantToken(t, r, "token-1")
		src.fail(errDown)
		expires := r.State().Expires
		for time.Until(expires) > time.Second {
			before := time.Now()
			wantToken(t, r, "token-1")
			if time.Since(before) != 0 {
				t.Fatalf("a caller waited %v although the old token serves", time.Since(before))
			}
			time.Sleep(time.Second)
		}
		time.Sleep(2 * time.Second)
		if tok, err := r.Token(t.Context()); err != error(errDown) {
			t.Errorf("Token after its end = %v, %v, want the source's error", access(tok), err)
		}
		src.say(func(n int) (*Token, error) { return freshToken(n, time.Hour), nil })
		time.Sleep(61 * time.Second) // back-off ends at a minute
		if s := r.State(); !s.Have || s.LastErr != nil {
			t.Errorf("a minute after the outage: state %+v, want a token", s)
		}
	})
}

func TestBackoff(t *testing.T) {
	sec := func(list ...int) []time.Duration {
		var d []time.Duration
		for _, n := range list {
			d = append(d, time.Duration(n)*time.Second)
		}
		return d
	}
	throttled := &UnreachableError{Status: 429}
	wait := &UnreachableError{Status: 503, RetryAfter: 2 * time.Minute}
	loop := &RefusedError{Status: 400, Codes: []int{50196}, RetryAfter: 7 * time.Second}
	silence := &RefusedError{Status: 429, RetryAfter: 24 * time.Hour}
	for _, tc := range []struct {
		name string
		err  error
		want []time.Duration
	}{
		{"network", errDown, sec(10, 20, 40, 60, 60)},
		{"file", fmt.Errorf("preparing: %w", &FileError{Path: "/s", Problem: "is empty"}), sec(10, 20, 40, 60, 60)},
		{"any", errors.New("x"), sec(10, 20, 40, 60, 60)},
		{"refused", errRefused, sec(30, 60, 120, 240, 300, 300)},
		{"throttled", throttled, sec(30, 60, 120, 240, 300)},
		{"told", wait, sec(120, 120, 120, 240, 300)},
		{"told less", loop, sec(30, 60, 120)},
		{"told nonsense", silence, sec(3600, 3600)},
	} {
		synctest.Test(t, func(t *testing.T) {
			src := newSource(t, time.Hour)
			src.slow(0)
			src.fail(tc.err)
			start(t, src, RefresherOptions{})
			for _, d := range tc.want {
				time.Sleep(d)
			}
			synctest.Wait()
			if got := src.gaps(); fmt.Sprint(got) != fmt.Sprint(tc.want) {
				t.Errorf("%s: tries again after %v, want %v", tc.name, got, tc.want)
			}
		})
	}
}

func TestWakeAfterMendedSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(t, time.Hour)
		src.fail(errRefused)
		r := start(t, src, RefresherOptions{})
		time.Sleep(20 * time.Minute) // now it tries every five minutes
		for time.Since(r.State().LastAttempt) < time.Minute {
			time.Sleep(10 * time.Second)
		}
		src.say(func(n int) (*Token, error) { return freshToken(n, time.Hour), nil })
		n := src.count()
		r.Wake()
		wantToken(t, r, fmt.Sprintf("token-%d", n+1)) // waits, and does not report the old error
		// A hundred reloads are still one request per ten seconds.
		for range 100 {
			r.Wake()
			time.Sleep(200 * time.Millisecond)
		}
		wantRequests(t, src, n+3)
	})
}

func TestWakeDuringAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(t, time.Hour)
		src.slow(5 * time.Second)
		r := start(t, src, RefresherOptions{})
		time.Sleep(time.Second)
		r.Wake() // the file may have been replaced after it was read
		time.Sleep(MinInterval + 5*time.Second)
		synctest.Wait()
		wantRequests(t, src, 2)
	})
}

func TestWakeObeysRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(t, time.Hour)
		src.fail(&UnreachableError{Status: 429, RetryAfter: 2 * time.Minute})
		r := start(t, src, RefresherOptions{})
		time.Sleep(time.Second)
		r.Wake()
		time.Sleep(118 * time.Second)
		synctest.Wait()
		wantRequests(t, src, 1)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		wantRequests(t, src, 2)
	})
}

func TestDiscard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(t, time.Hour)
		r := start(t, src, RefresherOptions{})
		wantToken(t, r, "token-1")
		time.Sleep(5 * time.Minute)
		r.Discard("token-0") // not the current one
		synctest.Wait()
		wantRequests(t, src, 1)
		r.Discard("token-1")
		wantToken(t, r, "token-2") // waits for it
		r.Discard("token-1")       // several sessions report the same
		synctest.Wait()
		wantRequests(t, src, 2)
	})
}

// A token that is refused as soon as it comes is kept for a while: it is more
// likely that one mailbox lacks a right.
func TestDiscardOfYoungToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(t, time.Hour)
		r := start(t, src, RefresherOptions{})
		wantToken(t, r, "token-1")
		r.Discard("token-1")
		before := time.Now()
		wantToken(t, r, "token-1")
		if time.Since(before) != 0 {
			t.Errorf("a caller waited %v for another token", time.Since(before))
		}
		time.Sleep(62 * time.Second)
		wantToken(t, r, "token-2")
	})
}

// One mailbox that is refused for ever, every five seconds for a day, must not
// cost more than some fifty requests.
func TestDiscardForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(t, time.Hour)
		r := start(t, src, RefresherOptions{})
		for range 24 * 720 {
			tok, err := r.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			r.Discard(tok.Access)
			time.Sleep(5 * time.Second)
		}
		if n := src.count(); n < 45 || n > 53 {
			t.Errorf("%d requests in a day, want about 24 h ÷ 30 min and a few at the start", n)
		}
		// When it ends, patience is back to the beginning after one good token.
		time.Sleep(90 * time.Minute)
		n := src.count()
		tok, err := r.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(max(0, time.Minute-time.Since(r.State().LastSuccess)))
		r.Discard(tok.Access)
		wantToken(t, r, fmt.Sprintf("token-%d", n+1))
	})
}

func TestDiscardWhileUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(t, time.Hour)
		r := start(t, src, RefresherOptions{})
		wantToken(t, r, "token-1")
		time.Sleep(5 * time.Minute)
		src.fail(errDown)
		r.Discard("token-1")
		wantToken(t, r, "token-1") // after one attempt: other mailboxes may get on with it
		wantRequests(t, src, 2)
		r.Discard("token-1")
		synctest.Wait()
		wantRequests(t, src, 2) // back-off holds
	})
}

// While refreshing fails, a refused token does not make it more frequent.
func TestDiscardInBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(t, time.Hour)
		r := start(t, src, RefresherOptions{})
		wantToken(t, r, "token-1")
		src.fail(errRefused)
		time.Sleep(45 * time.Minute)
		next := r.State().NextAttempt
		r.Discard("token-1")
		if got := r.State().NextAttempt; !got.Equal(next) {
			t.Errorf("next attempt after Discard in back-off = %v, want %v as before", got, next)
		}
		wantToken(t, r, "token-1")
	})
}

// A machine that was suspended wakes up with a token that is past its end by
// the wall clock while timers stood still. The bubble's clock cannot do that, so
// the token's end is moved instead.
func TestSuspendedMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(t, time.Hour)
		r := start(t, src, RefresherOptions{})
		wantToken(t, r, "token-1")
		time.Sleep(15 * time.Minute)
		r.mu.Lock()
		r.tok.Expires = time.Now().Add(-time.Minute)
		r.mu.Unlock()
		wantToken(t, r, "token-2")

		time.Sleep(15 * time.Minute)
		r.mu.Lock()
		r.tok.Expires = time.Now().Add(5 * time.Minute)
		r.mu.Unlock()
		time.Sleep(lookAgain + time.Second) // nobody asks, and it is noticed
		synctest.Wait()
		wantRequests(t, src, 3)
	})
}

// Exchange refuses a token with less than ten minutes: a caller rather waits.
func TestDyingTokenIsNotHandedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(t, time.Hour)
		r := start(t, src, RefresherOptions{})
		wantToken(t, r, "token-1")
		time.Sleep(15 * time.Minute)
		r.mu.Lock()
		r.tok.Expires = time.Now().Add(MinLife - time.Second)
		r.mu.Unlock()
		wantToken(t, r, "token-2")
	})
}

func TestExpiredOnArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(t, 0)
		r := start(t, src, RefresherOptions{})
		if tok, err := r.Token(t.Context()); err == nil || !strings.Contains(err.Error(), "expired already") {
			t.Errorf("Token = %v, %v, want an error", access(tok), err)
		}
		time.Sleep(time.Hour) // the source fails the test if this loops
		if n := src.count(); n > 65 {
			t.Errorf("%d requests in an hour, want back-off", n)
		}
	})
}

func TestStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(t, time.Hour)
		r := NewRefresher("relay-app", src, RefresherOptions{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); r.Run(ctx) }()
		wantToken(t, r, "token-1")
		src.slow(time.Hour)
		r.Wake()
		time.Sleep(MinInterval + time.Second) // an attempt hangs
		cancel()
		<-done
		wantToken(t, r, "token-1")
		if s := r.State(); s.LastErr != nil || s.Attempts[ResultUnreachable] != 0 {
			t.Errorf("state %+v, want the broken-off attempt not counted as a failure", s)
		}
		time.Sleep(2 * time.Hour)
		if _, err := r.Token(t.Context()); !errors.Is(err, errStopped) {
			t.Errorf("Token after Run = %v, want %v", err, errStopped)
		}
	})
}

func TestStopReleasesWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(t, time.Hour)
		src.slow(time.Hour)
		r := NewRefresher("relay-app", src, RefresherOptions{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go r.Run(ctx)
		before := time.Now()
		if _, err := r.Token(t.Context()); !errors.Is(err, errStopped) || time.Since(before) != time.Second {
			t.Errorf("Token = %v after %v, want %v after 1s", err, time.Since(before), errStopped)
		}
	})
}

func TestStateAndObserver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen []string
		src := newSource(t, time.Hour)
		src.fail(&FileError{Path: "/s", Problem: "is empty"})
		r := start(t, src, RefresherOptions{Observe: func(result string, took time.Duration) { seen = append(seen, fmt.Sprint(result, " ", took)) }})
		begin := time.Now()
		time.Sleep(5 * time.Second)
		if s := r.State(); s.Have || s.LastErr == nil || !s.LastSuccess.IsZero() || !s.Expires.IsZero() || !s.LastAttempt.Equal(begin) || s.NextAttempt.Sub(begin).Round(time.Second) != 10*time.Second {
			t.Errorf("state after a failure: %+v", s)
		}
		src.fail(errDown)
		time.Sleep(10 * time.Second)
		src.fail(errRefused)
		time.Sleep(20 * time.Second)
		src.say(func(n int) (*Token, error) { return freshToken(n, time.Hour), nil })
		time.Sleep(5 * time.Minute)
		s := r.State()
		if got, want := fmt.Sprint(s.Attempts), "map[config:1 ok:1 refused:1 unreachable:1]"; got != want {
			t.Errorf("attempts = %s, want %s", got, want)
		}
		if got, want := strings.Join(seen, ", "), "config 200ms, unreachable 200ms, refused 200ms, ok 200ms"; got != want {
			t.Errorf("observed %s, want %s", got, want)
		}
		if !s.Have || s.LastErr != nil || s.LastSuccess.Sub(s.LastAttempt) != 200*time.Millisecond || s.Expires.Sub(s.LastAttempt) != time.Hour || s.NextAttempt.Sub(s.LastAttempt) != 40*time.Minute {
			t.Errorf("state after a success: %+v", s)
		}
	})
}

func TestLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		src := newSource(t, time.Hour)
		r := start(t, src, RefresherOptions{Log: slog.New(slog.NewTextHandler(&b, nil))})
		time.Sleep(45 * time.Minute) // two tokens, one line
		wantLines(t, &b, `level=INFO msg="token refreshed" credential=relay-app expires=2000-01-01T01:00:00.000Z failures_before=0`)

		src.fail(errRefused)
		time.Sleep(35*time.Minute + 10*time.Second) // one attempt
		wantLines(t, &b, `level=WARN msg="token refresh failed" credential=relay-app error="Microsoft refused the client credentials of \"relay-app\" (AADSTS7000222): \"The provided client secret keys are expired.\"" `+
			`code=AADSTS7000222 trace_id="" correlation_id="" hint="the client secret has expired; make a new one in the app registration (Certificates & secrets) and write its Value into /etc/sendas/relay-app; `+
			`sendas takes it within 5 minutes, or at once on reload" retry_in=30s token_left=20m0s`)

		src.fail(errDown)
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		lines := strings.Split(strings.TrimSpace(b.String()), "\n")
		if last := lines[len(lines)-1]; !strings.Contains(last, "level=ERROR") || !strings.Contains(last, "token_left=0s") || !strings.Contains(last, "hint=") {
			t.Errorf("without a token: %s\nwant an error", last)
		}
		b.Reset()
		src.say(func(n int) (*Token, error) { return freshToken(n, time.Hour), nil })
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := b.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `level=INFO msg="token refreshed"`) {
			t.Errorf("after the outage: %s\nwant one line at level INFO", got)
		}
		b.Reset()
		r.Discard(mustToken(t, r).Access)
		wantLines(t, &b, `level=INFO msg="token refused by a server" credential=relay-app refresh_in=0s`)
		if strings.Contains(b.String(), "token-") {
			t.Error("the log shows a token")
		}
	})
}

func mustToken(t *testing.T, r *Refresher) *Token {
	t.Helper()
	tok, err := r.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// wantLines compares the log so far, without times, and empties it.
func wantLines(t *testing.T, b *bytes.Buffer, want ...string) {
	t.Helper()
	synctest.Wait()
	var got []string
	for line := range strings.Lines(b.String()) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		got = append(got, rest)
	}
	b.Reset()
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("log:\n%s\nwant:\n%s", g, w)
	}
}

// Twelve calm days: every token handed out has its ten minutes, and there are
// hardly more requests than if each token were used to its last good moment.
func TestCalmSoak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const total = 12 * 24 * time.Hour
		random := rand.New(rand.NewPCG(1, 2))
		var lives []time.Duration
		src := newSource(t, 0)
		src.say(func(n int) (*Token, error) {
			// Entra gives 60 to 90 minutes.
			lives = append(lives, time.Hour+time.Duration(random.Int64N(int64(30*time.Minute))))
			return freshToken(n, lives[n-1]), nil
		})
		r := start(t, src, RefresherOptions{Rand: rand.New(rand.NewPCG(3, 4)).Float64})
		begin := time.Now()
		for time.Since(begin) < total {
			before := time.Now()
			tok := mustToken(t, r)
			if left := time.Until(tok.Expires); left < MinLife || time.Since(before) > time.Second {
				t.Fatalf("after %v: a token with %v left, after waiting %v", time.Since(begin), left, time.Since(before))
			}
			time.Sleep(31 * time.Second)
		}
		needed, at := 0, time.Duration(0)
		for at < total && needed < len(lives) {
			at += lives[needed] - RefreshEarly
			needed++
		}
		if got := src.count(); got < needed || float64(got) > 1.05*float64(needed) {
			t.Errorf("%d requests, want %d to 5 %% more", got, needed)
		}
	})
}

// weather is a source with outages: what it did last tells what could be had.
type weather struct {
	*memorySource
	mu       sync.Mutex
	random   *rand.Rand
	badUntil time.Time // the end of the present bad spell, or of the last
	bad      error
}

func (w *weather) next(n int) (*Token, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if time.Now().Before(w.badUntil) {
		return nil, w.bad
	}
	lives := []time.Duration{time.Hour, 90 * time.Minute, 10 * time.Minute, 20 * time.Minute, 24 * time.Hour, 3 * time.Minute}
	return freshToken(n, lives[w.random.IntN(len(lives))]), nil
}

// blow makes a bad spell every few hours.
func (w *weather) blow(end time.Time) {
	spells := []error{errDown, errRefused, &UnreachableError{Status: 503}, &UnreachableError{Status: 429, RetryAfter: 90 * time.Second}, &FileError{Path: "/s", Problem: "is empty"}}
	for time.Now().Before(end) {
		w.mu.Lock()
		calm := time.Duration(w.random.Int64N(int64(4 * time.Hour)))
		spell := time.Duration(w.random.Int64N(int64(2 * time.Hour)))
		w.bad = spells[w.random.IntN(len(spells))]
		w.mu.Unlock()
		time.Sleep(calm)
		w.mu.Lock()
		w.badUntil = time.Now().Add(spell)
		w.mu.Unlock()
		time.Sleep(spell)
	}
}

// obtainable reports whether the weather was good for so long that everybody
// should have a token: the longest back-off and some.
func (w *weather) obtainable() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Since(w.badUntil) > 5*time.Minute+15*time.Second
}

// Six stormy days: nobody ever gets a token that has expired, nobody gets an
// error when a token could be had, and (checked in the source) requests neither
// overlap nor follow each other too closely.
func TestStormySoak(t *testing.T) {
	for seed := range uint64(4) {
		synctest.Test(t, func(t *testing.T) {
			end := time.Now().Add(6 * 24 * time.Hour)
			w := &weather{memorySource: newSource(t, 0), random: rand.New(rand.NewPCG(seed, 7))}
			w.say(w.next)
			r := start(t, w, RefresherOptions{Rand: rand.New(rand.NewPCG(seed, 8)).Float64})
			time.Sleep(time.Second)
			var wg sync.WaitGroup
			wg.Go(func() { w.blow(end) })
			for caller := range uint64(3) {
				wg.Go(func() { useTokens(t, w, r, end, rand.New(rand.NewPCG(seed, caller))) })
			}
			wg.Wait()
			s := r.State()
			if s.Attempts[ResultOK] == 0 || s.Attempts[ResultRefused]+s.Attempts[ResultUnreachable] == 0 {
				t.Errorf("attempts %v, want a storm with both", s.Attempts)
			}
			if n := w.count(); n > 6*24*60 {
				t.Errorf("%d requests in six days, want less than one a minute", n)
			}
		})
	}
}

// useTokens is a caller that wants a token every few seconds and now and then
// finds one refused or reloads the service.
func useTokens(t *testing.T, w *weather, r *Refresher, end time.Time, random *rand.Rand) {
	for time.Now().Before(end) {
		asked, before := time.Now(), r.State()
		tok, err := r.Token(t.Context())
		switch {
		case err != nil && before.Have && time.Now().Before(before.Expires):
			t.Errorf("%v: no token (%v) although there is one until %v", asked, err, before.Expires)
			return
		case err != nil && w.obtainable():
			t.Errorf("%v: no token (%v) although one can be had", asked, err)
			return
		case err == nil && !time.Now().Before(tok.Expires):
			t.Errorf("%v: a token that expired %v ago", asked, time.Since(tok.Expires))
			return
		case time.Since(asked) > MinInterval+time.Second:
			t.Errorf("%v: waited %v", asked, time.Since(asked))
			return
		}
		switch random.IntN(2000) {
		case 0:
			r.Wake()
		case 1, 2:
			if tok != nil {
				r.Discard(tok.Access)
			}
		}
		time.Sleep(time.Duration(random.Int64N(int64(20 * time.Second))))
	}
}
