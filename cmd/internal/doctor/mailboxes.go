package doctor

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sendas/sendas/cmd/internal/finding"
)

const (
	// atOnce is how many mailboxes are looked at side by side. Exchange Online holds refusals back for
	// seconds, so one after the other would be minutes.
	atOnce = 3
	// enough is how many mailboxes of a credential, refused in the same way without one that is taken,
	// tell that it is not the mailbox.
	enough = 1 + atOnce
	// mailboxesTime bounds the whole; what was not looked at then is said.
	mailboxesTime = 60 * time.Second
	// maxNamed is how many mailboxes are named for which the same is wrong.
	maxNamed = 12
)

var mailboxAdvice = map[string]finding.Advice{
	"unseen": {Means: "Exchange Online answers slowly, and these were not looked at: {mailboxes}", Do: "sendas doctor {mailbox}, and so for each"},
}

// A ward is all mailboxes that are looked at, and what was found of them. The first is looked at
// alone, the others by [atOnce] workers.
type ward struct {
	d        *Walk
	patients []patient
	seen     []*Walk // by patient; nil: not looked at
	why      []string
	begun    time.Time

	mu      sync.Mutex // guards what follows
	next    int
	taken   map[string]bool           // credentials with which somebody was signed in
	refused map[string]map[string]int // by credential and what was found: how many mailboxes
}

// checkMailboxes walks to the server for each mailbox, and does there what Postfix does, but for the
// message. What is wrong with several of them in the same way is told once.
func (d *Walk) checkMailboxes(ctx context.Context, patients []patient) {
	s := d.Section("mailbox", "mailbox")
	if d.config == nil {
		s.Skip("all", "", "there is no usable configuration")
		return
	}
	w := &ward{d: d, patients: patients, seen: make([]*Walk, len(patients)), why: make([]string, len(patients)), begun: d.now(),
		taken: make(map[string]bool), refused: make(map[string]map[string]int)}
	w.work(ctx, 1)
	var wg sync.WaitGroup
	for range atOnce {
		wg.Go(func() { w.work(ctx, len(patients)) })
	}
	wg.Wait()
	w.report(s)
}

// work looks at one patient after the other, up to the n-th.
func (w *ward) work(ctx context.Context, n int) {
	for {
		w.mu.Lock()
		i := w.next
		if i >= min(n, len(w.patients)) || ctx.Err() != nil {
			w.mu.Unlock()
			return
		}
		w.next++
		w.d.busy("mailbox %d of %d: %s", i+1, len(w.patients), w.patients[i].label)
		w.why[i] = w.spare(i)
		w.mu.Unlock()
		if w.why[i] != "" {
			continue
		}
		d := w.d
		if i > 0 {
			d = w.d.fork()
		}
		at := len(d.Checks)
		d.examine(ctx, d.Section("mailbox", "mailbox").Of(w.patients[i].label), w.patients[i])
		w.seen[i] = d
		w.learn(w.patients[i], d.Checks[at:])
	}
}

// fork returns a walk for another goroutine, with a report of its own.
func (d *Walk) fork() *Walk {
	f := *d
	f.Report, f.reached, f.blocked = d.Fork(), maps.Clone(d.reached), maps.Clone(d.blocked)
	return &f
}

// spare says why a mailbox need not be looked at, "" if it must. The caller holds the lock.
func (w *ward) spare(i int) string {
	p := w.patients[i]
	for _, n := range w.refused[p.credential] {
		if n >= enough && !w.taken[p.credential] {
			return fmt.Sprintf("was not asked: the %d mailboxes before were all refused in the same way with the credential %s", n, p.credential)
		}
	}
	if w.d.now().Sub(w.begun) > mailboxesTime {
		return notInTime
	}
	return ""
}

const notInTime = "was not looked at in the time"

// learn notes whether AUTH was refused, and how.
func (w *ward) learn(p patient, checks []finding.Check) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range checks {
		switch {
		case !strings.HasSuffix(c.ID, ".auth"):
		case c.Status == finding.OK:
			w.taken[p.credential] = true
		case c.Status == finding.Fail:
			if w.refused[p.credential] == nil {
				w.refused[p.credential] = make(map[string]int)
			}
			w.refused[p.credential][alike(p, &c)]++
		}
	}
}

// bracketed is what a server says of itself and of the moment, and so differs each time.
var bracketed = regexp.MustCompile(`\s*\[[^\]]*\]`)

// alike is what is the same in two checks that tell the same of two mailboxes.
func alike(p patient, c *finding.Check) string {
	text := strings.Join([]string{c.ID, string(c.Status), bracketed.ReplaceAllString(c.Found, ""), c.Means, c.Do}, "\n")
	for _, name := range []string{p.label, p.user} {
		if name != "" {
			text = strings.ReplaceAll(text, name, "MAILBOX")
		}
	}
	return text
}

// A common is a finding that is told once, and for whom it holds too.
type common struct {
	at   int // in Checks
	also []string
}

// report brings together what was found, in the order of the mailboxes.
func (w *ward) report(s finding.Section) {
	told := make(map[string]*common)
	var late []string
	for i, p := range w.patients {
		switch d := w.seen[i]; {
		case w.why[i] == notInTime:
			late = append(late, p.label)
			s.Of(p.label).Skip("auth", "AUTH", "%s", w.why[i])
		case w.why[i] != "":
			s.Of(p.label).Skip("auth", "AUTH", "%s", w.why[i])
		case d == nil: // interrupted
		default:
			w.join(p, d, told)
		}
	}
	for _, c := range told {
		if len(c.also) > 0 {
			k := &w.d.Checks[c.at]
			k.Found += fmt.Sprintf("; the same for %d more: %s", len(c.also), someOf(c.also))
		}
	}
	if len(late) > 0 {
		s.Warn("time", fmt.Sprintf("%d of %d", len(late), len(w.patients)), "were not looked at in "+mailboxesTime.String(),
			mailboxAdvice["unseen"].With("mailboxes", someOf(late), "mailbox", late[0]))
	}
}

// someOf lists names, but no more than a person reads.
func someOf(names []string) string {
	if len(names) > maxNamed {
		return strings.Join(names[:maxNamed], ", ") + fmt.Sprintf(" and %d others", len(names)-maxNamed)
	}
	return strings.Join(names, ", ")
}

// join adds the checks of one mailbox. What is wrong with another one in the same way is left out
// there, and told with that one.
func (w *ward) join(p patient, d *Walk, told map[string]*common) {
	if d == w.d { // the first: its checks are there
		for at := range d.Checks {
			if c := &d.Checks[at]; c.Group == "mailbox" && bad(c) {
				told[alike(p, c)] = &common{at: at}
			}
		}
		return
	}
	for _, c := range d.Checks {
		key := alike(p, &c)
		first := told[key]
		switch {
		case !bad(&c):
		case first == nil:
			told[key] = &common{at: len(w.d.Checks)}
		default:
			first.also = append(first.also, p.label)
			c.Status, c.Found, c.Means, c.Do, c.Passes = finding.Skip, "as "+w.d.Checks[first.at].What+": "+c.Found, "", "", false
		}
		w.d.Join(c)
	}
}

func bad(c *finding.Check) bool {
	return slices.Contains([]finding.Status{finding.Fail, finding.Warn}, c.Status)
}
