package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/token/lease/replies"
)

// waitsLong is from when on a message has waited for longer than a passing trouble lasts.
const waitsLong = time.Hour

// waitingAdvice is about what lies in Postfix's queue.
var waitingAdvice = map[string]finding.Advice{
	"not-allowed": {Means: "this user may not see what waits (authorized_mailq_users), so nobody knows here whether mail does", Do: "type it as root"},
	"unreadable":  {Means: "nobody knows what waits, and for what: showq(8) does not answer", Do: "{postconf} -M showq/unix='showq unix n - y - - showq' && {postfix} reload, and look into its log: {log}"},
	"blind":       {Means: "what waits is not known: not in \"sendas status\", not on the page, not as a figure, and milter.queue_ceiling holds nobody back", Do: "{act}"},
	"old":         {Means: "it is not sent: {meaning}", Do: "{act}"},
}

// A waiter is a message in Postfix's queue, as postqueue -j writes it (postqueue(1)).
type waiter struct {
	Queue      string `json:"queue_name"`
	ID         string `json:"queue_id"`
	Arrived    int64  `json:"arrival_time"` // Unix time
	Sender     string `json:"sender"`
	Recipients []struct {
		Address string `json:"address"`
		Reason  string `json:"delay_reason"`
	} `json:"recipients"`
}

// reason is why the message waits, as Postfix wrote it down; "" where nobody has said yet.
func (w *waiter) reason() string {
	for _, r := range w.Recipients {
		if r.Reason != "" {
			return r.Reason
		}
	}
	return ""
}

// checkQueue looks at the oldest message of Postfix's queue, and at what defers it. Held messages
// are somebody's wish.
func (d *Walk) checkQueue(ctx context.Context) {
	if d.postfix == nil {
		return // said already
	}
	const id, what = "oldest", "oldest message"
	s := d.Section("queue", "queue")
	list, err := d.readQueue(ctx)
	switch {
	case err != nil && d.down:
		s.Skip(id, what, "the queue cannot be read while Postfix does not run")
		return
	case err != nil:
		key := "unreadable"
		if os.Geteuid() != 0 {
			key = "not-allowed"
		}
		s.Warn(id, what, "the queue cannot be read: "+err.Error(), waitingAdvice[key].With("postconf", d.postfix.Command("postconf"), "postfix", d.postfix.Command("postfix"), "log", d.logCommand("")))
		return
	}
	oldest, n := oldestOf(list)
	if oldest == nil {
		s.Ok(id, what, "the queue is empty")
		return
	}
	age := d.now().Sub(time.Unix(oldest.Arrived, 0)).Round(time.Minute)
	found := fmt.Sprintf("%s from <%s> waits for %s, of %d messages", oldest.ID, oldest.Sender, age, n)
	reason := oldest.reason()
	if age < waitsLong {
		s.Ok(id, what, "%s", found)
		return
	}
	e := replies.Explain(saidIn(reason))
	act := cmp.Or(e.For(oldest.Sender, oldest.Sender).Act, d.postfix.Command("postqueue")+" -i "+oldest.ID+", which tries it at once; then: journalctl -g "+oldest.ID)
	s.Warn(id, what, found+": "+cmp.Or(reason, "Postfix has not tried it yet"), waitingAdvice["old"].With("meaning", cmp.Or(e.Meaning, "what Postfix wrote down says why"), "act", act))
}

// readQueue lists what is in Postfix's queue, in the order in which showq(8) tells.
func (d *Walk) readQueue(ctx context.Context) (list []waiter, err error) {
	out, _, err := d.run(ctx, "postqueue", "-c", d.postfix.Main["config_directory"], "-j")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(out) {
		var w waiter
		if json.Unmarshal([]byte(line), &w) == nil {
			list = append(list, w)
		}
	}
	return list, nil
}

// oldestOf returns the message that came first, but for held ones, and how many there are.
func oldestOf(list []waiter) (oldest *waiter, n int) {
	for i := range list {
		w := &list[i]
		if w.Queue == "hold" {
			continue
		}
		n++
		if oldest == nil || w.Arrived < oldest.Arrived {
			oldest = w
		}
	}
	return oldest, n
}
