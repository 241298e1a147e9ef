package lab

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim/smtp"
	"github.com/sendas/sendas/policy/corpus"
)

// lineLimit is Postfix's smtp_line_length_limit: smtp(8) breaks longer lines (RFC 5322, section
// 2.1.1).
const lineLimit = 998

// TestCorpus sends what devices really send through Postfix to Exchange Online, and compares what
// arrives with what must become of it.
func TestCorpus(t *testing.T) { sendEach(t, SiteConfig{Minute: 500 * time.Millisecond}, 0, 1) }

// TestOlderProtocols: with an older version of the milter protocol every message arrives, or is
// refused, as with the newest, to the byte; the log says once what Postfix does not offer. The
// versions share the corpus among them.
func TestOlderProtocols(t *testing.T) {
	versions := []string{"2", "3", "4"}
	for i, version := range versions {
		t.Run(version, func(t *testing.T) {
			s := sendEach(t, SiteConfig{Minute: 500 * time.Millisecond, Postfix: func(_ *Site, main map[string]string) []string {
				main["milter_protocol"] = version
				return nil
			}}, i, len(versions))
			if got := strings.Count(s.Milter.Log(), "offers less of the milter protocol than Postfix does; it is served, more slowly\" version="+version); got != 1 {
				t.Errorf("%d lines in the milter's log name the version, want 1", got)
			}
		})
	}
}

// sendEach sends each n-th message of the corpus, from the first-th on, and compares what arrives.
func sendEach(t *testing.T, c SiteConfig, first, n int) *Site {
	t.Helper()
	all, err := corpus.Load()
	if err != nil {
		t.Fatal(err)
	}
	var cases []*corpus.Case
	for i := first; i < len(all); i += n {
		cases = append(cases, all[i])
	}
	s, ctx := startSite(t, c)
	accepted := sendCorpus(t, ctx, s, cases)
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute) // what Exchange Online refuses never comes
	defer cancel()
	if err := s.WaitMessages(ctx, accepted); err != nil {
		t.Error(err)
	}
	arrived := map[string]*smtp.Message{}
	for _, m := range s.Exosim.Messages() {
		if !m.Accepted() {
			t.Errorf("%v: Exchange Online said %s\n%.2000s", m.Recipients, m.Reply, m.Data)
		}
		for _, to := range m.Recipients {
			arrived[to] = m
		}
	}
	for _, c := range cases {
		m := arrived[c.Rcpts[0]]
		switch wanted := c.Accept && c.PostfixReply == ""; {
		case wanted && m != nil:
			checkArrived(t, c, m)
		case wanted:
			t.Errorf("%s: did not arrive", c.Name)
		case m != nil:
			t.Errorf("%s: arrived, although it was refused", c.Name)
		}
	}
	return s
}

// sendCorpus sends all messages over several connections, compares the answers, and returns how
// many Postfix has taken.
func sendCorpus(t *testing.T, ctx context.Context, s *Site, cases []*corpus.Case) (accepted int) {
	t.Helper()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex // guards accepted
		next = make(chan *corpus.Case)
	)
	for range 6 {
		wg.Go(func() {
			for c := range next {
				res, err := Send(ctx, s.Postfix.SMTPAddr(), corpusMail(c))
				if err != nil {
					t.Errorf("%s: %v", c.Name, err)
					continue
				}
				if res.Accepted() {
					mu.Lock()
					accepted++
					mu.Unlock()
				}
				checkAnswer(t, c, res)
			}
		})
	}
	for _, c := range cases {
		next <- c
	}
	close(next)
	wg.Wait()
	return accepted
}

func corpusMail(c *corpus.Case) Mail {
	return Mail{XClient: XClient{Addr: c.Client.String(), Name: "[UNAVAILABLE]", Login: c.Login}, From: c.MailFrom, To: c.Rcpts, Data: c.Wire()}
}

func checkAnswer(t *testing.T, c *corpus.Case, res Result) {
	t.Helper()
	want := c.PostfixReply
	if want == "" {
		want = c.Reply
	}
	if got := res.Verdict().Line(); want != "" && (res.Accepted() || !strings.HasPrefix(got, want)) {
		t.Errorf("%s: answered %q, want %q", c.Name, got, want)
	} else if want == "" && !res.Accepted() {
		t.Errorf("%s: answered %q, want it accepted", c.Name, got)
	}
}

// checkArrived compares a message that arrived with what its case wants. Postfix itself has put a
// Received on top.
func checkArrived(t *testing.T, c *corpus.Case, m *smtp.Message) {
	t.Helper()
	got := corpus.Parse(m.Data).WithoutFirst("Received")
	for _, bad := range c.Relayed(lineLimit).Compare(got, m.Sender, m.Mailbox) {
		t.Errorf("%s: %s: %s", c.Name, c.Readme, bad)
	}
}
