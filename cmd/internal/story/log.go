package story

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/sendas/sendas/internal/plaintext"
	"github.com/sendas/sendas/internal/record"
)

// A Line is a line of Postfix's log.
type Line struct {
	Time time.Time `json:"time"` // to the second, where the log has no more
	Text string    `json:"text"` // "postfix/smtp[10841]: 4bXyz: to=<…>, …, status=deferred (…)"
}

// A Log returns the lines of Postfix's log about a queue id in a time, oldest first; none where there
// is no log that can be read.
type Log func(ctx context.Context, queue string, since, until time.Time) ([]Line, error)

const (
	// maxLines is how many lines of a message are told, the newest.
	maxLines = 200
	// logTime is how long reading the log may take: a file of gigabytes is told without.
	logTime = 5 * time.Second
)

// PostfixLog reads a log file, or where there is none the journal.
func PostfixLog(files ...string) Log {
	return func(ctx context.Context, queue string, since, until time.Time) ([]Line, error) {
		ctx, cancel := context.WithTimeout(ctx, logTime)
		defer cancel()
		for _, name := range files {
			f, err := os.Open(name)
			if err != nil {
				continue
			}
			defer f.Close()
			return linesOf(ctx, bufio.NewScanner(f), queue, since, until), nil
		}
		out, err := exec.CommandContext(ctx, "journalctl", "--quiet", "--no-pager", "--output=short-unix", "--facility=mail",
			"--since=@"+strconv.FormatInt(since.Unix(), 10), "--until=@"+strconv.FormatInt(until.Unix()+1, 10), "--grep="+regexp.QuoteMeta(queue)).Output()
		if err != nil {
			return nil, nil // no journal, or nothing in it
		}
		return linesOf(ctx, bufio.NewScanner(strings.NewReader(string(out))), queue, since, until), nil
	}
}

// shown makes a line of a log fit for a terminal.
var shown = plaintext.Style{Bad: '?', MaxBytes: 1000, Cut: "…"}

// linesOf returns those lines of a log that are about a queue id, within a time.
func linesOf(ctx context.Context, s *bufio.Scanner, queue string, since, until time.Time) []Line {
	s.Buffer(make([]byte, 64<<10), 1<<20)
	var list []Line
	mark := "]: " + queue + ": "
	for n := 0; s.Scan(); n++ {
		if n%1000 == 0 && ctx.Err() != nil {
			break
		}
		if !strings.Contains(s.Text(), mark) {
			continue
		}
		at, text, ok := parseLine(s.Text(), until)
		if !ok || at.Before(since.Truncate(time.Second)) || at.After(until.Add(time.Second)) || !strings.HasPrefix(text, "postfix") {
			continue
		}
		if list = append(list, Line{at, shown.Line(text)}); len(list) > maxLines {
			list = list[1:]
		}
	}
	return list
}

// parseLine reads when a line was written, and what, without the host: in the forms of rsyslog and
// Postfix's own file (RFC 3339, or "Dec  1 14:31:02", whose year is that of now or the one before),
// and of journalctl ("1790865062.123456").
func parseLine(line string, now time.Time) (at time.Time, text string, ok bool) {
	if first, rest, found := strings.Cut(line, " "); found {
		if at, err := time.Parse(time.RFC3339Nano, first); err == nil {
			return at, withoutHost(rest), true
		}
		if sec, err := strconv.ParseFloat(first, 64); err == nil {
			return time.UnixMicro(int64(sec * 1e6)), withoutHost(rest), true
		}
	}
	if len(line) < len(time.Stamp)+1 {
		return at, "", false
	}
	at, err := time.ParseInLocation("2006 "+time.Stamp, strconv.Itoa(now.Local().Year())+" "+line[:len(time.Stamp)], time.Local)
	if err != nil {
		return at, "", false
	}
	if at.After(now.Add(24 * time.Hour)) {
		at = at.AddDate(-1, 0, 0)
	}
	return at, withoutHost(line[len(time.Stamp)+1:]), true
}

func withoutHost(rest string) string {
	_, text, _ := strings.Cut(rest, " ")
	return text
}

// delivered is a line of smtp(8) about a delivery.
var delivered = regexp.MustCompile(`^postfix[^/ ]*(?:/[a-z0-9_-]+)*/smtp\[([0-9]+)\]: [^:]+: to=<.*, status=(sent|deferred|bounced)`)

// logged reports whether Postfix's log says that the attempt's process delivered this message then,
// and no other attempt can be meant.
func logged(t *Tale, a *record.Attempt, all []*record.Attempt) bool {
	for _, l := range t.Log {
		m := delivered.FindStringSubmatch(l.Text)
		if m == nil || m[1] != strconv.Itoa(int(a.PID)) || !around(l.Time, a) {
			continue
		}
		n := 0
		for _, other := range all {
			if other.PID == a.PID && around(l.Time, other) {
				n++
			}
		}
		if n == 1 {
			return true
		}
		if words := said(a.Reply); n > 1 && unique(words) && strings.Contains(squeezed(l.Text), words) {
			return true
		}
	}
	return false
}

// around reports whether a line may be about the end of an attempt: its moment may have been cut to
// the second.
func around(at time.Time, a *record.Attempt) bool {
	return !at.Before(a.Time.Truncate(time.Second)) && !at.After(ended(a).Add(slack))
}
