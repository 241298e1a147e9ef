package lease

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/ledger"
)

// office is Entra for one credential: it knows which of its tokens are good, and is closed now and
// then.
type office struct {
	name   string
	random *rand.Rand

	mu      sync.Mutex // guards what follows
	closed  time.Time  // until when
	why     error
	good    map[string]time.Time // tokens that a server would take, and until when
	given   int
	lives   []time.Duration
	forced  int // tokens that had to be got besides because the one before was revoked
	refused int // requests in vain
	shut    time.Duration
}

func (o *office) Token(ctx context.Context) (*entra.Token, error) {
	select {
	case <-time.After(200 * time.Millisecond):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if time.Now().Before(o.closed) {
		o.refused++
		return nil, o.why
	}
	life := time.Hour + time.Duration(o.random.Int64N(int64(30*time.Minute)))
	o.given++
	o.lives = append(o.lives, life)
	t := &entra.Token{Access: entra.Secret(fmt.Sprintf("%s-%d", o.name, o.given)), Expires: time.Now().Add(life).Round(0)}
	o.good[string(t.Access)] = t.Expires
	return t, nil
}

// takes reports whether a server takes the token now, and whether somebody who asked could long
// have had a better one.
func (o *office) takes(access string) (takes, obtainable bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	end, ok := o.good[access]
	return ok && time.Now().Before(end), time.Since(o.closed) > 6*time.Minute // the longest back-off and some
}

// live closes the office now and then, and sometimes revokes what it gave.
func (o *office) live(end time.Time, random *rand.Rand) {
	reasons := []error{&entra.UnreachableError{Credential: o.name, Problem: "gave no answer"}, &entra.UnreachableError{Credential: o.name, Status: 503},
		&entra.UnreachableError{Credential: o.name, Status: 429, RetryAfter: 2 * time.Minute}}
	for {
		time.Sleep(6*time.Hour + time.Duration(random.Int64N(int64(18*time.Hour))))
		if !time.Now().Before(end) {
			return
		}
		o.mu.Lock()
		if random.IntN(3) == 0 {
			clear(o.good)
			o.forced++
			o.mu.Unlock()
			continue
		}
		shut := time.Duration(random.Int64N(int64(90 * time.Minute)))
		o.closed, o.why = time.Now().Add(shut), reasons[random.IntN(len(reasons))]
		o.shut += shut
		o.mu.Unlock()
	}
}

// soakSite is 200 mailboxes on 5 credentials.
type soakSite map[string]*Mailbox

func (s soakSite) Mailboxes(sender string) []*Mailbox { return []*Mailbox{s[sender]} }
func (soakSite) Listed(sender string) string          { return sender }
func (soakSite) External(string) bool                 { return true }
func (soakSite) RouteFrom(string) string              { return "" }
func (soakSite) RouteTo(string) string                { return "" }

// TestSoak: seven days of 200 mailboxes on 5 credentials, with Entra away and tokens revoked now
// and then. No look-up gets a token that has ended while a good one could be had, and Entra is
// asked hardly more often than it has to be.
func TestSoak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const days, credentials, mailboxes = 7, 5, 200
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		end := time.Now().Add(days * 24 * time.Hour)
		site, offices := soakSite{}, make([]*office, credentials)
		byTokens := map[Tokens]*office{}
		for i := range offices {
			o := &office{name: fmt.Sprintf("app%d", i), random: rand.New(rand.NewPCG(uint64(i), 11)), good: map[string]time.Time{}}
			r := entra.NewRefresher(o.name, o, entra.RefresherOptions{Rand: rand.New(rand.NewPCG(uint64(i), 12)).Float64})
			offices[i], byTokens[r] = o, o
			running.Go(func() { r.Run(ctx) })
			weather := rand.New(rand.NewPCG(uint64(i), 14))
			running.Go(func() { o.live(end, weather) })
			for j := range mailboxes / credentials {
				address := fmt.Sprintf("box%d@contoso.com", i*100+j)
				site[address] = &Mailbox{Address: address, Label: address, Limits: limit.Microsoft(), Tokens: r}
			}
		}
		leases := NewLessor(ledger.NewMemory(), NewMetrics(prometheus.NewRegistry()), slog.New(slog.DiscardHandler))
		leases.Use(site)
		running.Go(func() { leases.Run(ctx) })
		time.Sleep(time.Second)
		var senders sync.WaitGroup
		pid, lookups, waited := int32(0), 0, 0
		var mu sync.Mutex
		for address, m := range site {
			pid--
			me, o := Caller{PID: pid}, byTokens[m.Tokens]
			random := rand.New(rand.NewPCG(uint64(-pid), 13))
			senders.Go(func() {
				for time.Now().Before(end) {
					time.Sleep(time.Duration(random.ExpFloat64() * float64(40*time.Minute)))
					ok := soakDelivery(t, leases, me, address, o)
					mu.Lock()
					lookups++
					if !ok {
						waited++
					}
					mu.Unlock()
				}
			})
		}
		senders.Wait()
		cancel()
		running.Wait()
		t.Logf("%d look-ups, %d answered \"later\"", lookups, waited)
		for _, o := range offices {
			o.check(t, days*24*time.Hour)
		}
	})
}

// soakDelivery is one session; it reports whether there was a token for it.
func soakDelivery(t *testing.T, l *Lessor, me Caller, sender string, o *office) bool {
	before, obtainable := time.Now(), false
	r := l.Lease(t.Context(), me, sender)
	access := strings.TrimPrefix(r.Value, sender+":")
	takes, obtainable := o.takes(access)
	if r.Status != OK {
		if obtainable {
			t.Errorf("%v: %s: %q although a token could be had", before, sender, r.Value)
		}
		return false
	}
	if takes {
		for _, line := range []string{"235 2.7.0 Authentication successful", "250 2.1.0 Sender OK", "250 2.1.5 Recipient OK",
			"354 Start mail input; end with <CRLF>.<CRLF>", "250 2.0.0 OK <1@contoso.com> [Hostname=SYBP282MB2635.AUSP282.PROD.OUTLOOK.COM]"} {
			l.Reply(t.Context(), me, line)
		}
		return true
	}
	// Nobody can know that a token was revoked before a server says so; that it has ended, we know.
	if obtainable && o.ended(access) {
		t.Errorf("%v: %s got a token that has ended", before, sender)
	}
	l.Reply(t.Context(), me, "535 5.7.3 Authentication unsuccessful [LO4P302CA0005.GBRP302.PROD.OUTLOOK.COM]")
	return false
}

// ended reports whether the token's time is over; one that was revoked is forgotten.
func (o *office) ended(access string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	end, ok := o.good[access]
	return ok && !time.Now().Before(end)
}

// check compares the number of requests with what was needed: each token used until it has to be
// replaced, and one more for each time that all were revoked.
func (o *office) check(t *testing.T, total time.Duration) {
	t.Helper()
	needed, at := o.forced, time.Duration(0)
	for _, life := range o.lives {
		if at >= total {
			break
		}
		at += life - entra.RefreshEarly
		needed++
	}
	t.Logf("%s: %d tokens, %d needed; %d requests in vain in %v", o.name, o.given, needed, o.refused, o.shut.Round(time.Minute))
	if float64(o.given) > 1.05*float64(needed) {
		t.Errorf("%s: %d tokens were asked for, want %d to 5 %% more", o.name, o.given, needed)
	}
	if most := int(o.shut/time.Minute) + 10; o.refused > most {
		t.Errorf("%s: %d requests while it was closed for %v, want at most one a minute", o.name, o.refused, o.shut)
	}
}
