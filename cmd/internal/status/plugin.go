package status

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/token/lease"
)

// The states of a plugin, which are its exit codes.
// https://www.monitoring-plugins.org/doc/guidelines.html#AEN78
const (
	stateOK = iota
	stateWarning
	stateCritical
	stateUnknown
)

var stateNames = []string{"OK", "WARNING", "CRITICAL", "UNKNOWN"}

const (
	// pluginTexts is how many findings stand on the line.
	pluginTexts = 3
	// pluginMailboxes is how many mailboxes have figures of their own: a line of a plugin ends at
	// 4 kB in some systems.
	pluginMailboxes = 20
)

// A verdict collects what a plugin has to say.
type verdict struct {
	state    int
	findings []struct {
		state int
		text  string
	}
	figures []string
}

func (v *verdict) add(state int, format string, args ...any) {
	v.findings = append(v.findings, struct {
		state int
		text  string
	}{state, fmt.Sprintf(format, args...)})
	v.state = max(v.state, state)
}

// figure adds performance data: 'label'=value;warn;crit;min;max.
func (v *verdict) figure(label, format string, args ...any) {
	v.figures = append(v.figures, fmt.Sprintf("'%s'=", plain(label, "'=|"))+fmt.Sprintf(format, args...))
}

// plain takes away what means something else in the line, and what steers a terminal.
func plain(s, not string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(not, r) {
			return '_'
		}
		return r
	}, shownStatus.Line(s))
}

// line is the output: the worst first.
func (v *verdict) line(good string) string {
	slices.SortStableFunc(v.findings, func(a, b struct {
		state int
		text  string
	}) int {
		return b.state - a.state
	})
	texts := []string{good}
	if len(v.findings) > 0 {
		texts = nil
	}
	shown, more := firstOf(v.findings, pluginTexts)
	for _, f := range shown {
		texts = append(texts, f.text)
	}
	if more > 0 {
		texts = append(texts, fmt.Sprintf("%d more", more))
	}
	s := "SENDAS " + stateNames[v.state] + " - " + plain(strings.ReplaceAll(strings.Join(texts, "; "), "\n", " "), "|")
	if len(v.figures) > 0 {
		s += " | " + strings.Join(v.figures, " ")
	}
	return s + "\n"
}

// check prints one line for a monitoring system. The error has its exit code, and says nothing more.
func (s *Command) check(ctx context.Context) error {
	var v verdict
	if s.ConfigErr != nil {
		v.add(stateWarning, `the configuration file is wrong ("sendas check" says what to write instead)`)
	}
	good := ""
	if s.Config.Token.HTTP == "" && !s.Config.Observes() {
		v.add(stateUnknown, "token.http is off, so the token service cannot be asked")
	} else {
		good = v.judge(s.look(ctx))
	}
	if err := s.print(v.line(good)); err != nil {
		return err
	}
	if v.state == stateOK {
		return nil
	}
	return exit.Quiet(v.state)
}

// judge looks at what both services say, and returns the words for "all is well".
func (v *verdict) judge(w *view) string {
	if w.idleToken() != "" {
		// it has nothing to do
	} else if w.tokenErr != nil {
		v.add(stateCritical, "the token service is down at %s: %v", w.tokenAt, w.tokenErr)
	} else {
		for _, n := range configNotes(w.token.Config, w.token.Time) {
			v.add(stateWarning, "token service: %s", n.Text)
		}
		v.tokens(w.token.Status)
	}
	switch {
	case w.milterErr != nil:
		v.add(stateCritical, "the milter is down at %s: %v", w.milterAt, w.milterErr)
	case w.milter != nil:
		for _, n := range configNotes(w.milter.Config, w.milter.Time) {
			v.add(stateWarning, "milter: %s", n.Text)
		}
		total := make(map[policy.Action]uint64)
		for i := range w.milter.Clients {
			for a, n := range w.milter.Clients[i].Messages {
				total[a] += n
			}
		}
		for _, a := range policy.Actions() {
			v.figure(a.Done(), "%dc;;;0", total[a])
		}
	}
	if w.observes() {
		return observeWords
	}
	if w.token == nil {
		return ""
	}
	return fmt.Sprintf("%s, %s, %s waiting", pluralOf(len(w.token.Mailboxes), "mailbox", "mailboxes"), plural(len(w.token.Credentials), "credential"), plural(waitingOf(w.token.Status), "look-up"))
}

func pluralOf(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func waitingOf(s *lease.Status) (n int) {
	for i := range s.Mailboxes {
		n += s.Mailboxes[i].Waiting
	}
	return n
}

// tokens judges the token service.
func (v *verdict) tokens(s *lease.Status) {
	if s.Stopping {
		v.add(stateWarning, "the token service is stopping: it gives no more leases")
	}
	if s.LedgerError != nil {
		v.add(stateCritical, "what was used is not known: %s", *s.LedgerError)
	}
	for i := range s.Credentials {
		v.credential(&s.Credentials[i], s.Time)
	}
	paused, out := 0, 0
	for i := range s.Mailboxes {
		m := &s.Mailboxes[i]
		out += m.Leases
		if m.PausedUntil != nil {
			paused++
			v.add(stateWarning, "%s is paused until %s: %s", m.Mailbox, clock(*m.PausedUntil, s.Time), m.PauseReason)
		} else if u := m.Recipients; u != nil && usedLevel(u.Used, u.Limit) != calm {
			v.add(stateWarning, "%s has used %d of %d recipients", m.Mailbox, u.Used, u.Limit)
		}
		for _, d := range m.Denied {
			v.add(stateWarning, "%s may not send as %s", m.Mailbox, d.Sender)
		}
	}
	if n := len(s.Mailboxes); n > 0 && paused == n {
		v.add(stateCritical, "no mail leaves: %s", map[bool]string{true: "the only mailbox is paused", false: "all mailboxes are paused"}[n == 1])
	}
	v.figure("waiting", "%d;;;0", waitingOf(s))
	v.figure("leases", "%d;;;0", out)
	v.figure("paused", "%d;;;0;%d", paused, len(s.Mailboxes))
	shown, _ := firstOf(mailboxesInOrder(s.Mailboxes, len(s.Mailboxes) > pluginMailboxes), pluginMailboxes)
	for _, m := range shown {
		if u := m.Recipients; u != nil {
			v.figure("recipients "+m.Mailbox, "%d;%d;%d;0;%d", u.Used, u.Limit*8/10, u.Limit, u.Limit)
		}
	}
}

// credential judges one credential: without a token mail waits, with one there is time to act.
func (v *verdict) credential(c *lease.CredentialStatus, now time.Time) {
	if !c.InUse {
		return
	}
	why := ""
	if e := c.Refresh.Error; e != nil {
		if why = e.Code; why == "" {
			why = e.Text
		}
		why = " (" + why + ")"
	}
	left := 0.0
	switch {
	case !c.Token.Live:
		v.add(stateCritical, "credential %s has no token%s", c.Name, why)
	case c.Refresh.Error != nil:
		v.add(stateWarning, "credential %s gets no new token%s", c.Name, why)
	}
	if c.Token.Live && c.Token.Expires != nil {
		left = max(0, c.Token.Expires.Sub(now).Seconds())
	}
	v.figure("token "+c.Name, "%.0fs;600:;1:;0", left)
	if p := c.Proof; p != nil && p.Refused == nil { // else it stands above
		if level := proofLevel(c, now); level != calm {
			v.add(map[string]int{hot: stateCritical, warm: stateWarning}[level], "credential %s: %s %s", c.Name, p.Kind, endWords(c, now))
		}
	}
	if s := c.SignIn; s != nil && s.Refused == nil && signInLevel(s) == warm {
		v.add(stateWarning, "credential %s: %s", c.Name, signInWords(c.Name, s, now))
	}
}
