package smtp

import (
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
)

// TestThrottle: a mailbox that goes on with one kind of error is refused everything, good mail too.
// Others are not.
func TestThrottle(t *testing.T) {
	const good = "From: erp@contoso.com" + visitor.MessageID
	for _, tc := range []struct {
		name string
		err  func(s *site, k *visitor.Client) string
		once string // what the error is answered with
		want string
	}{
		{"Send As denied", func(_ *site, k *visitor.Client) string {
			return k.Send("erp@contoso.com", "From: ceo@contoso.com"+visitor.MessageID, 1)
		},
			mayNotBe("ceo@contoso.com"), "550 5.2.252 Sender throttled due to continuous send as denied errors. [Hostname=*]"},
		{"mailbox full", func(s *site, k *visitor.Client) string {
			s.SetFaults(Faults{MailboxFull: true})
			defer s.SetFaults(Faults{})
			return k.Send("erp@contoso.com", good, 1)
		},
			full, "550 5.2.251 Sender throttled due to continuous mailbox full errors. [Hostname=*]"},
		{"invalid recipients", func(_ *site, k *visitor.Client) string {
			defer k.Say("RSET")
			return k.Envelope("erp@contoso.com", "a@fabrikam.com;b@fabrikam.com")
		},
			"501 5.1.3 Invalid address", "550 5.2.255 Sender throttled due to continuous invalid recipients errors. [Hostname=*]"},
	} {
		s := startTest(t, func(c *siteConfig) { c.ThrottleAfter = 3 })
		k := login(t, s, "erp@contoso.com")
		for i := range 3 {
			if got := k.Send("erp@contoso.com", good, 1); got != accepted {
				t.Errorf("%s: good mail after %d errors: %s", tc.name, i, got)
			}
			if got := tc.err(s, k); !visitor.Like(got, tc.once) {
				t.Errorf("%s: error %d: %s, want %s", tc.name, i+1, got, tc.once)
			}
		}
		if got := k.Send("erp@contoso.com", good, 1); !visitor.Like(got, tc.want) {
			t.Errorf("%s: after 3 errors: %s, want %s", tc.name, got, tc.want)
		}
		if got := login(t, s, "scan@contoso.com").Send("scan@contoso.com", "From: scan@contoso.com"+visitor.MessageID, 1); got != accepted {
			t.Errorf("%s: another mailbox: %s", tc.name, got)
		}
	}
}

// TestThrottleEnds: it is over when the mailbox has been silent for the time, and errors that are
// older than that do not count.
func TestThrottleEnds(t *testing.T) {
	s := startTest(t, func(c *siteConfig) { c.ThrottleAfter, c.ThrottleTime = 3, time.Hour })
	b, t0 := s.boxes["erp@contoso.com"], time.Now()
	s.Exchange.mu.Lock()
	defer s.Exchange.mu.Unlock()
	throttled := func(after time.Duration, want bool) {
		t.Helper()
		if got := s.throttledLocked(b, t0.Add(after)); strings.HasPrefix(got, "550 5.2.25") != want {
			t.Errorf("after %v: %q", after, got)
		}
	}
	for _, at := range []time.Duration{0, time.Minute, time.Hour, 61 * time.Minute} { // never three within an hour, half open
		s.errLocked(b, errSendAs, t0.Add(at))
		throttled(at, false)
	}
	s.errLocked(b, errFull, t0.Add(62*time.Minute)) // of another kind
	throttled(62*time.Minute, false)
	s.errLocked(b, errSendAs, t0.Add(63*time.Minute))
	throttled(64*time.Minute, true)
	throttled(120*time.Minute, true) // begins it anew
	throttled(179*time.Minute, true)
	throttled(239*time.Minute, false)
}
