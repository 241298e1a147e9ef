package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/contrib/exosim"
	"github.com/sendas/sendas/contrib/exosim/smtp"
)

// A Way is how a relay keeps below Microsoft's limits.
type Way struct {
	Name   string
	Sendas bool              // by leases; else Postfix is alone with a token in a file
	Main   map[string]string // what main.cf has besides
}

// Ways returns sendas and what Postfix can do by itself (postconf(5)). All have the connections
// limited to Microsoft's three.
func Ways() []Way {
	alone := func(name, value string) Way {
		return Way{Name: "Postfix, `" + name + " = " + value + "`", Main: map[string]string{strings.Replace(name, "smtp", "sendas", 1): value}}
	}
	return []Way{
		{Name: "sendas", Sendas: true},
		alone("smtp_destination_rate_delay", "1s"),
		alone("smtp_destination_rate_delay", "2s"),
		alone("smtp_transport_rate_delay", "2s"),
		alone("smtp_destination_concurrency_limit", "3"),
	}
}

// PaceConfig says what is measured: a backlog that one mailbox has to send, with real minutes,
// since Postfix's delays are whole seconds.
type PaceConfig struct {
	Sendas, PluginDir string // as in SiteConfig
	Way               Way
	Quickest, Slowest time.Duration // verdicts
	Handshake         time.Duration // from the look-up to DATA: AUTH, MAIL and RCPT
	Minutes           int           // after the first one, in which the whole allowance is still unused
	Backlog           int           // messages; more than can leave in that time
	Seed              uint64        // of the verdicts
}

// Pace is what came of it.
type Pace struct {
	PerMinute float64        // accepted after the first minute: see pace
	Uncertain time.Duration  // from the final dot to the verdict, on average
	ByMinute  []int          // accepted in each minute after the first one
	Windows   Windows        // of the whole run
	Most      int            // messages between DATA and verdict at one time
	Refused   map[string]int // by code
	// RefusedIn is in how many of the minutes, the first one included, messages were refused.
	RefusedIn int
	Deferred  int // deliveries that Postfix has put off
	Bounced   int
}

// Share is what was used of the allowance.
func (p *Pace) Share() float64 { return p.PerMinute / allowance }

// Bound is the most that can be used of the allowance by whoever never passes it: when between dot
// and verdict a message is counted is not known, so its place serves the next one a minute after the
// verdict. Where verdicts take so long, three connections carry less.
func (p *Pace) Bound() float64 {
	rule := float64(minute) / float64(minute+p.Uncertain)
	if p.Uncertain == 0 {
		return rule
	}
	return min(rule, connections*float64(minute)/float64(p.Uncertain)/allowance)
}

// Windows are the most messages in any one window. What Exchange Online has refused counts too:
// perhaps Microsoft counts it.
type Windows struct {
	ByDot, ByVerdict int
	// Anyhow is the most that there can be if each message is counted at any moment from its final
	// dot to its verdict, and one refused as well as one accepted.
	Anyhow int
}

// What Microsoft allows a mailbox.
const (
	allowance   = 30
	minute      = time.Minute
	connections = 3
)

// MeasurePace starts a relay of its own, gives it the backlog, and watches it for 1 + Minutes
// minutes. start is held while the relay is started: whoever measures several at a time should
// start them one after the other.
func MeasurePace(ctx context.Context, c PaceConfig, start func() (done func())) (p Pace, err error) {
	done := start()
	s, err := startPaced(ctx, c)
	if err == nil {
		err = s.Burst(ctx, c.Backlog)
	}
	done()
	if s != nil {
		defer func() { err = errors.Join(err, s.Stop()) }()
	}
	if err != nil {
		return p, err
	}
	if err := s.WaitMessages(ctx, 1); err != nil {
		return p, err
	}
	select {
	case <-time.After(time.Until(s.Exosim.Messages()[0].Verdict.Add(time.Duration(1+c.Minutes) * minute))):
	case <-ctx.Done():
		return p, ctx.Err()
	}
	all := s.Exosim.Messages()
	queue, err := s.Postfix.Queue(ctx)
	if err != nil {
		return p, err
	}
	if len(queue) == 0 {
		return p, fmt.Errorf("the backlog of %d messages did not last", c.Backlog)
	}
	log, err := s.Postfix.Log()
	if err != nil {
		return p, err
	}
	p = paced(all, c.Minutes)
	u := s.Exosim.Usage("erp@contoso.com")
	p.Most, p.Refused = u.MaxInData, u.Refused
	p.Deferred, p.Bounced = strings.Count(log, "status=deferred"), strings.Count(log, "status=bounced")
	return p, nil
}

// paced measures the messages of a run.
func paced(all []*smtp.Message, minutes int) Pace {
	var verdicts []time.Time
	uncertain := time.Duration(0)
	for _, m := range all {
		if m.Accepted() {
			verdicts = append(verdicts, m.Verdict)
			uncertain += m.Verdict.Sub(m.Dot)
		}
	}
	slices.SortFunc(verdicts, time.Time.Compare)
	p := Pace{Windows: WorstWindows(all, minute), ByMinute: make([]int, minutes)}
	if len(verdicts) == 0 {
		return p
	}
	p.Uncertain = uncertain / time.Duration(len(verdicts))
	begin := verdicts[0].Add(minute)
	var steady []time.Time
	for _, t := range verdicts {
		if i := int(t.Sub(begin) / minute); !t.Before(begin) && i < minutes {
			p.ByMinute[i]++
			steady = append(steady, t)
		}
	}
	p.PerMinute = min(pace(steady), float64(len(steady)+1)/float64(minutes)) // the latter where they came in a rush, and no more
	bad := map[int]bool{}
	for _, m := range all {
		if !m.Accepted() {
			bad[int(m.Verdict.Sub(verdicts[0])/minute)] = true
		}
	}
	p.RefusedIn = len(bad)
	return p
}

// pace returns messages per minute: how long as many messages in a row as a minute allows have
// taken, on average over all such rows. Counting in whole minutes would be inexact by one message.
func pace(times []time.Time) float64 {
	row := min(allowance, len(times)/2)
	if row == 0 {
		return 0
	}
	var sum time.Duration
	for i := range len(times) - row {
		sum += times[i+row].Sub(times[i])
	}
	return float64(row*(len(times)-row)) * float64(minute) / float64(sum)
}

// WorstWindows returns the most messages of a mailbox in any one period.
func WorstWindows(all []*smtp.Message, per time.Duration) Windows {
	var dots, verdicts, both []span
	for _, m := range all {
		dots = append(dots, span{m.Dot, m.Dot.Add(per)})
		verdicts = append(verdicts, span{m.Verdict, m.Verdict.Add(per)})
		both = append(both, span{m.Dot, m.Verdict.Add(per)})
	}
	return Windows{deepest(dots), deepest(verdicts), deepest(both)}
}

// span is the time in which a message can be within a period that has just ended: half open,
// without its end.
type span struct{ from, to time.Time }

// deepest returns how many spans have a moment in common.
func deepest(spans []span) int {
	type edge struct {
		at   time.Time
		step int
	}
	var edges []edge
	for _, s := range spans {
		edges = append(edges, edge{s.from, 1}, edge{s.to, -1})
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Or(a.at.Compare(b.at), a.step-b.step) })
	now, most := 0, 0
	for _, e := range edges {
		now += e.step
		most = max(most, now)
	}
	return most
}

// startPaced starts the relay; stop it also after an error, if it is not nil.
func startPaced(ctx context.Context, c PaceConfig) (*Site, error) {
	site := SiteConfig{Sendas: c.Sendas, PluginDir: c.PluginDir, Minute: minute,
		Exosim: func(x *exosim.Config) {
			x.VerdictMin, x.VerdictMax, x.Seed, x.EnforceRate = c.Quickest, c.Slowest, c.Seed, smtp.RateReject
			x.AuthTime, x.RcptTime = c.Handshake*2/3, c.Handshake/3
		},
		Postfix: func(s *Site, main map[string]string) []string {
			// A site's own patience, instead of a test's.
			for _, name := range []string{"minimal_backoff_time", "maximal_backoff_time", "queue_run_delay"} {
				delete(main, name)
			}
			maps.Copy(main, c.Way.Main)
			return nil
		},
	}
	if c.Way.Sendas {
		return StartSite(ctx, site)
	}
	return startAlone(ctx, site)
}

// startAlone starts Postfix with Exchange Online, and no service of ours: it sends with one token
// from a file, like one that a script has written.
func startAlone(ctx context.Context, c SiteConfig) (s *Site, err error) {
	dir, err := MakeDir()
	if err != nil {
		return nil, err
	}
	s = &Site{Dir: dir, Secret: "not used"}
	if err := s.startExosim(c); err != nil {
		return s, err
	}
	table := filepath.Join(dir, "token")
	_, port, _ := net.SplitHostPort(s.Exosim.SubmissionAddr())
	token := s.Exosim.Issue(clientID, "https://outlook.office365.com", time.Hour)
	if err := os.WriteFile(table, []byte("[smtp.office365.com]:"+port+" erp@contoso.com:"+token+"\n"), 0o600); err != nil {
		return s, err
	}
	more := c.Postfix
	c.Postfix = func(s *Site, main map[string]string) []string {
		for _, name := range []string{"smtpd_milters", "non_smtpd_milters", "smtp_reply_filter", "smtp_sender_dependent_authentication"} {
			delete(main, name)
		}
		main["smtp_sasl_password_maps"] = "texthash:" + table
		return more(s, main)
	}
	return s, s.startPostfix(ctx, c)
}

// Markdown returns a table of what was measured, a line for each. Only sendas is held against the
// bound: the others pass the limit, or do not come near.
func Markdown(ways []Way, list []Pace) string {
	var b strings.Builder
	b.WriteString("| | messages a minute | of the allowance | of the most that there is | minute by minute | worst 60 s by dot / by verdict / anyhow | at one time | refused | in so many of the minutes | deferred |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|\n")
	for i, p := range list {
		bound := "–"
		if ways[i].Sendas {
			bound = fmt.Sprintf("%.1f %% of %.1f %%", 100*p.Share()/p.Bound(), 100*p.Bound())
		}
		fmt.Fprintf(&b, "| %s | %.1f | %.1f %% | %s | %s | %d / %d / %d | %d | %s | %d | %d |\n", ways[i].Name, p.PerMinute, 100*p.Share(), bound,
			strings.Trim(fmt.Sprint(p.ByMinute), "[]"), p.Windows.ByDot, p.Windows.ByVerdict, p.Windows.Anyhow, p.Most, byCode(p.Refused), p.RefusedIn, p.Deferred)
	}
	return b.String()
}

func byCode(refused map[string]int) string {
	var list []string
	for _, code := range slices.Sorted(maps.Keys(refused)) {
		list = append(list, fmt.Sprintf("%d × %s", refused[code], code))
	}
	return cmp.Or(strings.Join(list, ", "), "0")
}
