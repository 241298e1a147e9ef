package status

import (
	"context"
	"fmt"
	"strings"

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

// A verdict is the line of a plugin: what was judged, and performance data.
type verdict struct {
	*judgement
	figures []string
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

// line is the output: the sentence, and the worst of what needs somebody.
func (v *verdict) line(good string) string {
	text := v.sentence()
	if len(v.needs) == 0 && len(v.unknown) == 0 && good != "" {
		text = strings.TrimSuffix(text, ".") + ": " + good
	}
	var texts []string
	shown, more := firstOf(v.needs, pluginTexts)
	for _, n := range shown {
		texts = append(texts, n.What)
	}
	if more > 0 {
		texts = append(texts, fmt.Sprintf("%d more", more))
	}
	if len(texts) > 0 {
		text += " " + strings.Join(texts, "; ")
	}
	s := "SENDAS " + stateNames[v.state()] + " - " + plain(strings.ReplaceAll(text, "\n", " "), "|")
	if len(v.figures) > 0 {
		s += " | " + strings.Join(v.figures, " ")
	}
	return s + "\n"
}

// check prints one line for a monitoring system. The error has its exit code, and says nothing more.
func (s *Command) check(ctx context.Context) error {
	w := s.look(ctx)
	v := &verdict{judgement: w.judged()}
	if s.ConfigErr != nil {
		v.add(&need{state: stateWarning, What: "The configuration file is wrong", Type: []string{"sendas check"}})
	}
	if err := s.print(v.line(v.figuresOf(w))); err != nil {
		return err
	}
	if v.state() == stateOK {
		return nil
	}
	return exit.Quiet(v.state())
}

// figuresOf adds what both services count, and returns the words for "all is well".
func (v *verdict) figuresOf(w *view) string {
	if w.token != nil {
		v.tokens(w.token.Status)
	}
	if w.milter != nil {
		if q := w.milter.Queue; q != nil && q.Messages != nil {
			v.figure("queued", "%d;;;0", *q.Messages)
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
	if w.token == nil || w.observes() {
		return ""
	}
	return fmt.Sprintf("%s, %s, %s waiting", countOf(len(w.token.Mailboxes), "mailbox", "mailboxes"), plural(len(w.token.Credentials), "credential"), plural(waitingOf(w.token.Status), "look-up"))
}

func waitingOf(s *lease.Status) (n int) {
	for i := range s.Mailboxes {
		n += s.Mailboxes[i].Waiting
	}
	return n
}

// tokens adds the figures of the token service.
func (v *verdict) tokens(s *lease.Status) {
	paused, out := 0, 0
	for i := range s.Mailboxes {
		out += s.Mailboxes[i].Leases
		if s.Mailboxes[i].PausedUntil != nil {
			paused++
		}
	}
	v.figure("waiting", "%d;;;0", waitingOf(s))
	v.figure("leases", "%d;;;0", out)
	v.figure("paused", "%d;;;0;%d", paused, len(s.Mailboxes))
	for i := range s.Credentials {
		if c := &s.Credentials[i]; c.InUse {
			left := 0.0
			if c.Token.Live && c.Token.Expires != nil {
				left = max(0, c.Token.Expires.Sub(s.Time).Seconds())
			}
			v.figure("token "+c.Name, "%.0fs;600:;1:;0", left)
		}
	}
	shown, _ := firstOf(mailboxesInOrder(s.Mailboxes, v.about, len(s.Mailboxes) > pluginMailboxes), pluginMailboxes)
	for _, m := range shown {
		if u := m.Recipients; u != nil {
			v.figure("recipients "+m.Mailbox, "%d;%d;%d;0;%d", u.Used, u.Limit*8/10, u.Limit, u.Limit)
		}
	}
}
