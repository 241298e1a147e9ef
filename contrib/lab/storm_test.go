package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim"
	"github.com/sendas/sendas/contrib/exosim/smtp"
)

// stormMailboxes are those of the site.
var stormMailboxes = []string{"erp@contoso.com", "scan@contoso.com", "monitor@contoso.com"}

// stormMail returns the n-th message of a storm: the site's clients take turns.
func stormMail(n int) Mail {
	m := Mail{XClient: sap, From: "billing@contoso.com", To: []string{fmt.Sprintf("customer%d@fabrikam.com", n)}}
	switch n % 3 {
	case 1:
		m.XClient, m.From = printer, "scan@contoso.com"
	case 2:
		m.XClient, m.From = monitoring, "monitor@contoso.com"
	}
	m.Data = message("From: <"+m.From+">", "Message-ID: <"+stormID(n)+">", storyDate)
	return m
}

func stormID(n int) string { return fmt.Sprintf("storm-%d@device.example", n) }

// submit hands messages to Postfix, as clients do that try again as long as the answer is a
// temporary one.
func submit(ctx context.Context, p *Postfix, mails []Mail) error {
	var (
		wg   sync.WaitGroup
		next = make(chan Mail)
		errs = make(chan error, len(mails))
	)
	for range 4 {
		wg.Go(func() {
			for m := range next {
				errs <- submitOne(ctx, p, m)
			}
		})
	}
	for _, m := range mails {
		next <- m
	}
	close(next)
	wg.Wait()
	close(errs)
	var all error
	for err := range errs {
		all = errors.Join(all, err)
	}
	return all
}

func submitOne(ctx context.Context, p *Postfix, m Mail) error {
	return poll(ctx, func() (bool, error) {
		res, err := Send(ctx, p.SMTPAddr(), m)
		if err == nil && !res.Accepted() && res.Verdict().Code/100 != 4 {
			err = fmt.Errorf("a message of %s: answered %q", m.From, res.Verdict())
		}
		return res.Accepted(), err
	})
}

// fate is what became of a message at Exchange Online.
type fate struct {
	told   int // accepted, and Postfix was told so
	untold int // accepted, and the connection ended before the answer
}

// fates counts by Message-ID.
func fates(all []*smtp.Message) map[string]fate {
	list := map[string]fate{}
	for _, m := range all {
		if !m.Accepted() {
			continue
		}
		id := strings.Trim(strings.Join(m.Header("Message-ID"), " "), "<>")
		f := list[id]
		if m.Dropped {
			f.untold++
		} else {
			f.told++
		}
		list[id] = f
	}
	return list
}

// checkLimits looks at every mailbox's windows, and at its messages at one time. A message that was
// refused, or whose connection ended after the final dot, counts like one that was accepted.
func checkLimits(t *testing.T, x *exosim.Server, boxes []string, limit int, per time.Duration) {
	t.Helper()
	of := map[string][]*smtp.Message{}
	for _, m := range x.Messages() {
		of[m.Mailbox] = append(of[m.Mailbox], m)
	}
	for _, box := range boxes {
		w, u := WorstWindows(of[box], per), x.Usage(box)
		t.Logf("%s: %d messages, worst window %d by dot, %d by verdict, %d anyhow; %d at one time; refused %v", box, len(of[box]), w.ByDot, w.ByVerdict, w.Anyhow, u.MaxInData, u.Refused)
		if w.Anyhow > limit || u.MaxInData > 3 {
			t.Errorf("%s: %+v in %v, %d at one time, want at most %d and 3", box, w, per, u.MaxInData, limit)
		}
		if len(of[box]) < 3*limit {
			t.Errorf("%s: only %d messages: the limit of %d was not tried", box, len(of[box]), limit)
		}
	}
}

// TestStorm: for a while Exchange Online is in trouble in every way that is known, at random. After
// it every message has arrived once, or was returned because Microsoft refused its sender for good.
//
// One kind of trouble has no cure: the server takes a message and the connection ends before it has
// said so. The sender cannot tell that from a message that was lost, and must send it again (RFC
// 1047; RFC 5321, section 4.5.3.2.6). The simulator knows which messages these are, and only they
// may come twice.
func TestStorm(t *testing.T) {
	const (
		n, limit, per = 150, 8, time.Second
		refused       = 4 // messages of a sender whom Microsoft does not let send
	)
	s, ctx := startSite(t, SiteConfig{Minute: per,
		YAML: func(y string) string {
			return strings.ReplaceAll(y, "LIMITS", fmt.Sprintf("{messages: %d/%v}", limit, per))
		},
		Exosim: func(c *exosim.Config) {
			c.Messages, c.EnforceRate, c.Seed = limit, smtp.RateReject, 1
			c.VerdictMin, c.VerdictMax = 10*time.Millisecond, 100*time.Millisecond
		},
	})
	s.SetMailbox(func(m *mailboxSettings) { m.SendAs = []string{"billing@contoso.com"} })
	denied.Store(s, refused)
	storm := smtp.Chances{Greeting: 0.05, Mail: 0.04, InData: 0.05, AtDot: 0.05, Leave: 0.04, Busy: 0.04, Concurrent: 0.05, AfterTaken: 0.06}
	blow := func(c smtp.Chances) {
		t.Helper()
		if err := s.Exosim.SetFaults(exosim.Faults{SMTPFaults: smtp.Faults{Chances: c}}); err != nil {
			t.Fatal(err)
		}
	}
	arrived := func(want int) {
		t.Helper()
		if err := s.WaitMessages(ctx, want); err != nil {
			t.Fatal(err)
		}
	}
	blow(storm)
	var mails []Mail
	for i := range n + refused {
		mails = append(mails, stormMail(i))
	}
	for i, m := range mails[n:] { // the sender is another one
		m.XClient, m.From = sap, "hr@contoso.com"
		m.Data = message("From: <hr@contoso.com>", "Message-ID: <"+stormID(n+i)+">", storyDate)
		mails[n+i] = m
	}
	if err := submit(ctx, s.Postfix, mails); err != nil {
		t.Fatal(err)
	}
	arrived(n / 3)
	// The day's recipients are used up, says Microsoft to somebody: that mailbox rests for 15 of
	// the scaled minutes.
	storm.Quota = 1
	blow(storm)
	quota := func(m *smtp.Message) bool { return strings.Contains(m.Reply, "SubmissionQuotaExceeded") }
	if err := poll(ctx, func() (bool, error) { return slices.ContainsFunc(s.Exosim.Messages(), quota), nil }); err != nil {
		t.Fatal(err)
	}
	storm.Quota = 0
	blow(storm)
	arrived(n * 2 / 3)
	// What has not struck by chance so far strikes those that are left.
	blow(smtp.Chances{Greeting: 0.12, Mail: 0.12, InData: 0.12, AtDot: 0.12, Leave: 0.12, Busy: 0.12, Concurrent: 0.12, AfterTaken: 0.12})
	if err := poll(ctx, func() (bool, error) {
		met, err := s.troubles(n + refused)
		return len(met) == len(allTroubles) || s.Accepted() >= n, err
	}); err != nil {
		t.Fatal(err)
	}
	blow(smtp.Chances{}) // the sky clears
	if q, err := s.Postfix.WaitQueue(ctx, func(q []QueueEntry) bool { return len(q) == 0 }); err != nil {
		t.Fatalf("%d messages are left: %v", len(q), err)
	}
	checkStorm(t, s, n, refused)
	checkLimits(t, s.Exosim, stormMailboxes, limit, per)
}

// checkStorm looks at what became of each message, those that were refused coming last, and whether
// all troubles struck.
func checkStorm(t *testing.T, s *Site, n, refused int) {
	t.Helper()
	all := s.Exosim.Messages()
	got := fates(all)
	for i := range n + refused {
		f, want := got[stormID(i)], 1
		if i >= n {
			want = 0
		}
		if f.told != want || f.untold > 0 && want == 0 {
			t.Errorf("%s: arrived %d times, want %d; %d times more without an answer", stormID(i), f.told, want, f.untold)
		}
	}
	for i := range refused {
		bounces := 0
		for _, m := range all {
			if m.Accepted() && !m.Dropped && m.Mailbox == "monitor@contoso.com" && bytes.Contains(m.Data, []byte(stormID(n+i))) && bytes.Contains(m.Data, []byte("5.2.252 SendAsDenied")) {
				bounces++
			}
		}
		if bounces != 1 {
			t.Errorf("%s: its sender was told %d times why it was refused, want once", stormID(n+i), bounces)
		}
	}
	log, err := s.Postfix.Log()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(log) {
		if strings.Contains(line, "status=bounced") && !strings.Contains(line, "5.2.252 SendAsDenied") {
			t.Errorf("returned for another reason: %s", line)
		}
	}
	met, err := s.troubles(n + refused)
	t.Logf("troubles met: %v", met)
	if err != nil || len(met) != len(allTroubles) {
		t.Errorf("messages met %v, %v, want each of %q", met, err, allTroubles)
	}
}

// allTroubles are those of the storm.
var allTroubles = []string{"taken untold", "421 at the greeting or MAIL", "421", "432", "451", "554", "dropped"}

// troubles counts the troubles that messages have met so far.
func (s *Site) troubles(messages int) (map[string]int, error) {
	log, err := s.Postfix.Log()
	count := map[string]int{"421 at the greeting or MAIL": strings.Count(log, "421 4.3.2 Service not available (in reply to MAIL") + strings.Count(log, "refused to talk to me: 421")}
	got := fates(s.Exosim.Messages())
	for i := range messages {
		count["taken untold"] += got[stormID(i)].untold
	}
	for _, box := range stormMailboxes {
		for code, n := range s.Exosim.Usage(box).Refused {
			count[code] += n
		}
	}
	met := make(map[string]int)
	for _, trouble := range allTroubles {
		if count[trouble] > 0 {
			met[trouble] = count[trouble]
		}
	}
	return met, err
}
