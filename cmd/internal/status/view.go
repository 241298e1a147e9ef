package status

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/milter"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/lease"
	"github.com/sendas/sendas/token/lease/replies"
)

// pageRows is how many mailboxes or clients the page has at first, and openRows how many of them are
// seen without opening a list; those that need somebody always are.
const (
	pageRows = 100
	openRows = 12
)

// The levels of what is shown; they are classes of page.css. Nothing has a colour but what needs
// somebody.
const (
	calm = ""
	warm = "warm" // somebody should look
	hot  = "hot"  // mail is held up, or somebody has to act now
)

// pageNote is a sentence.
type pageNote struct{ Level, Text string }

// pageFact is a labelled sentence.
type pageFact struct{ Label, Level, Text string }

// limitView is one limit with its bar.
type limitView struct {
	Text       string // all of it, for those who cannot see the bar
	Kind       string
	Used, Left string
	Percent    string
	Level      string
	Known      bool // there is a bar
}

// rowsView is a list: what is seen, what opens, and how many more there are.
type rowsView[T any] struct {
	Head       string
	Open, Shut []T
	ShutHead   string
	More       string
}

type mailboxView struct {
	Name, Under          string
	Level                string
	Messages, Recipients limitView
	Leases, Waiting      string
	Answer               string
	Notes                []pageNote
}

type credentialView struct {
	Name, Flow string
	Level      string
	Facts      []pageFact
}

type clientView struct {
	Name   string
	Level  string
	Over   string // that and what happens then; "" for not over
	Last   string
	Counts []pageNote
	Limits []limitView

	NoLimits string // in place of limits
}

// queuedView is what waits in Postfix's queue.
type queuedView struct {
	Words, Level string
	Ways         []queuedRow
	More         string
	Reasons      []pageFact
}

type queuedRow struct{ Name, Level, Messages, Recipients, Oldest string }

// refusedView is what a peer was refused.
type refusedView struct {
	Who, As, Times, Last, Why, Answer string
	Client                            string // "" for a peer that is no client
	Line                              string // of the configuration, which would let it in; "" for a client
}

// tile is a figure that stands out.
type tile struct{ Figure, Words, Level string }

// wantsAll reports whether the reader asked for all rows.
func wantsAll(r *http.Request) bool { return r.URL.Query().Get("all") != "" }

// restartWords says what was changed and is not in force.
func restartWords(c *service.Config) string {
	return "changed, and in force after a restart of the service only: " + strings.Join(c.NeedsRestart, ", ")
}

// groupName says whose recipients a group counts.
func groupName(name string) string {
	if w := groupWords[name]; w != "" {
		return w
	}
	return name
}

func groupLimit(u *lease.UsageStatus) limitView {
	const kind = "recipients outside"
	if u == nil {
		return limitView{Kind: kind, Used: "not known"}
	}
	v := limitViewOf(kind, u.Used, u.Left, u.Limit, u.Window)
	v.Level = windowLevel(u)
	return v
}

func rowsFor(all bool) int {
	if all {
		return int(^uint(0) >> 1)
	}
	return pageRows
}

func moreWords(n int, what string) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%s more %s with less to do", number(n), what)
}

func mailboxesHead(s *lease.Status) string {
	out, waiting := 0, 0
	for i := range s.Mailboxes {
		out, waiting = out+s.Mailboxes[i].Leases, waiting+s.Mailboxes[i].Waiting
	}
	return fmt.Sprintf("%s in all · %s out · %s waiting", number(len(s.Mailboxes)), countOf(out, "lease", "leases"), countOf(waiting, "look-up", "look-ups"))
}

// plural counts things: "1 lease", "2 leases".
func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return number(n) + " " + what + "s"
}

// firstOf returns up to n, and how many are left out.
func firstOf[T any](list []T, n int) ([]T, int) {
	n = max(0, min(n, len(list)))
	return list[:n], len(list) - n
}

// mailboxesInOrder returns first those that need somebody, then the others in the order of the
// configuration or, where there is not room for all, those with most to do first.
func mailboxesInOrder(list []lease.MailboxStatus, about map[string]string, crowded bool) []*lease.MailboxStatus {
	sorted := pointers(list)
	slices.SortStableFunc(sorted, func(a, b *lease.MailboxStatus) int {
		if c := cmpLevel(about, a.Mailbox, b.Mailbox); c != 0 || !crowded {
			return c
		}
		return cmp.Or(cmp.Compare(b.Waiting, a.Waiting), cmp.Compare(mailboxShare(b), mailboxShare(a)), cmp.Compare(b.Leases, a.Leases))
	})
	return sorted
}

// cmpLevel sorts names by how much they need somebody.
func cmpLevel(about map[string]string, a, b string) int {
	return cmp.Or(cmpBool(about[b] == hot, about[a] == hot), cmpBool(about[b] == warm, about[a] == warm))
}

func pointers[T any](list []T) []*T {
	p := make([]*T, len(list))
	for i := range list {
		p[i] = &list[i]
	}
	return p
}

// cmpBool sorts false before true.
func cmpBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// mailboxShare is how much of the limit that is used most is used.
func mailboxShare(m *lease.MailboxStatus) float64 {
	share := 0.0
	for _, u := range []*lease.UsageStatus{m.Messages, m.Recipients} {
		if u != nil && u.Limit > 0 {
			share = max(share, float64(u.Used)/float64(u.Limit))
		}
	}
	return share
}

// clientsInOrder is mailboxesInOrder for clients.
func clientsInOrder(list []milter.ClientStatus, about map[string]string, crowded bool) []*milter.ClientStatus {
	sorted := pointers(list)
	slices.SortStableFunc(sorted, func(a, b *milter.ClientStatus) int {
		if c := cmp.Or(cmpLevel(about, a.Client, b.Client), cmpBool(b.Over, a.Over)); c != 0 || !crowded {
			return c
		}
		return cmp.Or(cmp.Compare(clientShare(b.Limits), clientShare(a.Limits)), cmp.Compare(sum(b.Messages), sum(a.Messages)))
	})
	return sorted
}

func clientShare(list []milter.LimitStatus) float64 {
	share := 0.0
	for _, l := range list {
		share = max(share, float64(l.Used)/float64(max(1, l.Limit)))
	}
	return share
}

func sum(counts map[policy.Action]uint64) (n uint64) {
	for _, x := range counts {
		n += x
	}
	return n
}

func mailboxViewOf(m *lease.MailboxStatus, about map[string]string, said map[string]bool, now time.Time) mailboxView {
	v := mailboxView{Name: m.Mailbox, Level: about[m.Mailbox], Under: "by " + m.Credential, Messages: mailboxLimit(limit.KindMessages, m, m.Messages),
		Recipients: mailboxLimit(limit.KindRecipients, m, m.Recipients), Leases: connectionWords(m), Waiting: waitingWords(m, now), Answer: "no answer yet", Notes: mailboxNotes(m, about, said, now)}
	if m.PausedUntil != nil {
		v.Waiting = "rests until " + clock(*m.PausedUntil, now)
	}
	if a := m.LastVerdict; a != nil {
		v.Answer = lastVerdictWords(a, now)
	}
	return v
}

// mailboxNotes say what the last answers to a mailbox mean, each meaning once: said has those that
// stand there already. What needs somebody has been said.
func mailboxNotes(m *lease.MailboxStatus, about map[string]string, said map[string]bool, now time.Time) (list []pageNote) {
	add := func(key, text string) {
		if !said[key] {
			said[key] = true
			list = append(list, pageNote{calm, text})
		}
	}
	if a := m.LastVerdict; a != nil && a.Meaning != "" && (about[m.Mailbox] == calm || answerLevel(a.Class) != hot) {
		add(a.Meaning, string(a.Class)+": "+a.Meaning)
	}
	if a := otherRefusal(m, now); a != nil {
		add(string(a.Stage)+a.Meaning, refusalWords(a, now))
	}
	return list
}

// connectionWords words the leases that are out, and how many may be.
func connectionWords(m *lease.MailboxStatus) string {
	switch {
	case m.Pattern: // the limit is each sender's own
		return plural(m.Leases, "connection")
	case m.InForce < m.Connections:
		return fmt.Sprintf("%d of %d connections, for now not %d", m.Leases, m.InForce, m.Connections)
	}
	return fmt.Sprintf("%d of %d connections", m.Leases, m.Connections)
}

// waitingWords words the look-ups that wait.
func waitingWords(m *lease.MailboxStatus, now time.Time) string {
	if m.Waiting == 0 {
		return "nobody waits"
	}
	words := number(m.Waiting) + " waiting"
	if m.Next != nil {
		words += ", next " + whenWords(m.Next, now)
	}
	return words
}

// clock words a moment of the future, with the day where it is another one.
func clock(t, now time.Time) string {
	t, now = t.Local(), now.Local()
	if t.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return t.Format("15:04:05")
	}
	return t.Format("2006-01-02 15:04")
}

// answerLevel tells temporary answers, after which Postfix tries again, from those that need
// somebody.
func answerLevel(c replies.Class) string {
	switch c {
	case replies.Accepted:
		return calm
	case replies.Concurrency, replies.Busy, replies.Temporary, replies.Recipient:
		return warm
	}
	return hot
}

func mailboxLimit(kind limit.Kind, m *lease.MailboxStatus, u *lease.UsageStatus) limitView {
	if u == nil {
		return limitView{Kind: string(kind), Used: usageWords(m, kind, u)}
	}
	v := limitViewOf(string(kind), u.Used, u.Left, u.Limit, u.Window)
	v.Level = windowLevel(u)
	return v
}

func limitViewOf(kind string, used, left, most int, window float64) limitView {
	v := limitView{Kind: kind, Used: number(used) + " of " + rateWords(most, window), Left: number(left) + " left", Percent: percent(used, most), Known: true}
	v.Text = v.Kind + ": " + v.Used + ", " + v.Left
	return v
}

// windowLevel is the level of a limit of Microsoft's. That of a minute is used up on every normal
// day, and opens again by itself.
func windowLevel(u *lease.UsageStatus) string {
	if u.Window < (12 * time.Hour).Seconds() {
		return calm
	}
	return usedLevel(u.Used, u.Limit)
}

// usedLevel is the level of a day's limit, as in the alerts.
func usedLevel(used, most int) string {
	switch {
	case float64(used) >= .95*float64(most):
		return hot
	case float64(used) >= .8*float64(most):
		return warm
	}
	return calm
}

// credentialFacts words one credential, for the terminal and the page.
func credentialFacts(c *lease.CredentialStatus, now time.Time) (list []pageFact) {
	add := func(label, level, text string) { list = append(list, pageFact{label, level, text}) }
	if c.InUse {
		level := calm
		if !c.Token.Live {
			level = hot
		}
		add("token", level, tokenWords(&c.Token, now))
		refresh := calm
		if c.Refresh.Error != nil {
			refresh = warm
		}
		add("last refresh", refresh, refreshWords(c, now))
		if e := c.Refresh.Error; e != nil { // what to do stands among what needs somebody
			add("", refresh, e.Text)
		}
		add("next refresh", calm, whenWords(c.Refresh.NextAttempt, now))
	} else {
		add("token", calm, "none: no mailbox uses this credential")
	}
	if skew := time.Duration(c.Skew * float64(time.Second)); skew.Abs() > entra.MaxSkew {
		add("clock", warm, skewWords(skew))
	}
	if p := c.Proof; p != nil {
		label := p.Kind
		if label == token.ProofFederated {
			label = "proof"
		}
		add(label, proofLevel(c, now), endWords(c, now))
		if r := p.Renewal; r != nil {
			level := calm
			if r.Failing != nil {
				level = warm
			}
			add("renewal", level, renewalWords(r, now))
		}
	}
	if s := c.SignIn; s != nil {
		add("signed in", signInLevel(s), signInWords(c.Name, s, now))
	}
	return list
}

// soon is when the end of a certificate, a secret or a sign-in is near: time to get a new one
// approved.
const soon = 30 * 24 * time.Hour

func proofLevel(c *lease.CredentialStatus, now time.Time) string {
	switch p := c.Proof; {
	case p.Refused != nil:
		return hot
	case p.Ends == nil:
		return calm
	case p.Ends.Before(now) && !outlived(c):
		return hot
	case p.Renewal != nil && p.Renewal.Failing == nil: // it is replaced before
		return calm
	case p.Ends.Before(now.Add(soon)) && p.Kind != token.ProofFederated: // which lives an hour
		return warm
	}
	return calm
}

func signInLevel(s *lease.SignInStatus) string {
	switch {
	case s.Error != "" || s.Since == nil || s.Refused != nil || s.IdleDays >= s.MaxDays:
		return hot
	case s.Kept || s.MaxDays-s.IdleDays < int(soon.Hours()/24):
		return warm
	}
	return calm
}

func clientsHead(s *milter.Status) string {
	over := 0
	for i := range s.Clients {
		if s.Clients[i].Over {
			over++
		}
	}
	if over == 0 {
		return number(len(s.Clients)) + " in all"
	}
	return fmt.Sprintf("%s in all · %s over the limit", number(len(s.Clients)), number(over))
}

// overWords says what happens to mail that is over a limit.
func overWords(over bool, on string) string {
	if !over {
		return ""
	}
	return "over its limit: " + policy.Action(on).Done()
}

func lastWords(t *time.Time, now time.Time) string {
	if t == nil {
		return "no message since the start"
	}
	return "last message " + whenWords(t, now)
}

// countNotes words what became of mail; what never happened is left out, but for "accepted".
func countNotes(c *milter.Counts) (list []pageNote) {
	for _, a := range policy.Actions() {
		if n := c.Messages[a]; n > 0 || a == policy.Accept {
			list = append(list, pageNote{calm, number(n) + " " + a.Done()})
		}
	}
	if c.Refused > 0 {
		list = append(list, pageNote{calm, plural(int(c.Refused), "recipient") + " refused"})
	}
	return list
}

func limitViews(list []milter.LimitStatus) (views []limitView) {
	for _, l := range list {
		views = append(views, limitViewOf(string(l.Kind), l.Used, l.Left, l.Limit, l.Window))
	}
	return views
}

// recentFacts words why something was decided lately, most frequent first.
func recentFacts(r *milter.Recent) (list []pageFact) {
	codes := slices.SortedFunc(maps.Keys(r.Reasons), func(a, b policy.ReasonCode) int {
		return cmp.Or(-cmp.Compare(r.Reasons[a], r.Reasons[b]), cmp.Compare(a, b))
	})
	for _, c := range codes {
		list = append(list, pageFact{number(r.Reasons[c]), calm, cmp.Or(c.Brief(), string(c))})
	}
	return list
}

// queuedViewOf words Postfix's queue.
func (v *view) queuedViewOf(about map[string]string) *queuedView {
	x := &queuedView{}
	x.Words, x.Level = v.queueState()
	if v.milter == nil || v.milter.Queue == nil {
		return x
	}
	s, now := v.milter.Queue, v.milter.Time
	shown, rest := firstOf(pointers(s.Waiting), pageRows)
	for _, p := range shown {
		x.Ways = append(x.Ways, queuedRow{placeName(p), about[placeName(p)], number(p.Messages), number(p.Recipients), whenWords(p.Oldest, now)})
	}
	if rest > 0 {
		x.More = number(rest) + " more with less"
	}
	for _, d := range s.Deferred {
		why := standing[d.Reason].what
		x.Reasons = append(x.Reasons, pageFact{string(d.Reason), calm, number(d.Messages) + map[bool]string{true: "", false: ": " + why}[why == ""]})
	}
	return x
}

// refusedViews word who was refused lately. Those whom nobody knows have the line that would let
// them in, with that sender.
func refusedViews(s *milter.Status, from string) (list []refusedView) {
	for i := range s.Refused {
		r := &s.Refused[i]
		x := refusedView{Who: refusedWho(r), Client: r.Client, As: r.Asked, Times: number(r.Count), Last: whenWords(&r.Last, s.Time), Why: refusedWhy(r), Answer: r.Answer}
		if r.Client == "" && r.Action == policy.Reject {
			x.Line = letIn(r, from)
		}
		list = append(list, x)
	}
	return list
}

// letIn returns the line below clients: that would let a peer in, whose mail leaves as from where it
// asks for what it may not; "" where nothing tells who it is.
func letIn(r *milter.Refusal, from string) string {
	var name, by string
	switch {
	case r.Login != "" && plainName.MatchString(r.Login):
		name, by = r.Login, "logins: ["+r.Login+"]"
	case r.Addr != "":
		name, by = "device-"+strings.NewReplacer(".", "-", ":", "-").Replace(r.Addr), "networks: [\""+r.Addr+"\"]"
	default:
		return ""
	}
	if from != "" {
		by += ", from: " + from
	}
	return "- {name: " + name + ", " + by + "}"
}

// plainName is what can stand in the configuration as a name and without quotes.
var plainName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]*$`)
