package status

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
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

// pageRows is how many mailboxes or clients the page shows at first.
const pageRows = 100

// The levels of what is shown; they are classes of page.css.
const (
	calm = ""
	warm = "warm" // soon, or for a while
	hot  = "hot"  // somebody has to act, or mail waits
)

// pageNote is a sentence that stands out.
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

// tokenView is the page of the token service.
type tokenView struct {
	MailboxesHead string
	Mailboxes     []mailboxView
	More          string
	Groups        []clientView
	Pools         []pageFact
	Credentials   []credentialView
}

type mailboxView struct {
	Name, Under           string
	Messages, Recipients  limitView
	Leases                string
	Waiting, WaitingClass string
	Answer, AnswerClass   string
	Notes                 []pageNote
}

type credentialView struct {
	Name, Flow string
	Facts      []pageFact
}

// milterView is the page of the milter.
type milterView struct {
	ClientsHead string
	Clients     []clientView
	More        string
	Identities  []clientView
	Queue       []pageFact
	RecentHead  string
	Recent      []pageFact
}

type clientView struct {
	Name   string
	Over   string // that and what happens then; "" for not over
	Last   string
	Counts []pageNote
	Limits []limitView

	NoLimits string // in place of limits
}

// wantsAll reports whether the reader asked for all rows.
func wantsAll(r *http.Request) bool { return r.URL.Query().Get("all") != "" }

// serviceState says in one line how the service is.
func serviceState(now time.Time, started *time.Time) string {
	s := "as of " + now.Local().Format("2006-01-02 15:04:05 MST")
	if started != nil {
		s += " · up for " + spanWords(now.Sub(*started))
	}
	return s
}

// configNotes says that a newer configuration is not in force, or not all of it.
func configNotes(c *service.Config, now time.Time) (notes []pageNote) {
	if c == nil {
		return nil
	}
	if !c.OK {
		notes = append(notes, pageNote{hot, fmt.Sprintf(`the new configuration is wrong, so the one loaded %s stays in force; "sendas check" says what to write instead`, whenWords(&c.LoadedAt, now))})
	}
	if len(c.NeedsRestart) > 0 {
		notes = append(notes, pageNote{warm, restartWords(c)})
	}
	return notes
}

// restartWords says what was changed and is not in force.
func restartWords(c *service.Config) string {
	return "changed, and in force after a restart of the service only: " + strings.Join(c.NeedsRestart, ", ")
}

// tokenPage makes the page of the token service.
func tokenPage(s *lease.Status, c *service.Config, all bool) *pageView {
	v := &pageView{Service: "token service", State: serviceState(s.Time, s.Started), Title: "sendas token service", Notices: configNotes(c, s.Time)}
	if s.Stopping {
		v.Notices = append(v.Notices, pageNote{warm, "the service is stopping: it gives no more leases, and mail waits in Postfix's queue"})
	}
	if s.LedgerError != nil {
		v.Notices = append(v.Notices, pageNote{hot, "what was used is not known: " + *s.LedgerError})
	}
	if s.Unsigned != nil {
		v.Notices = append(v.Notices, pageNote{warm, "before any sign-in: " + refusalWords(s.Unsigned, s.Time)})
	}
	if text := unseenWords(s); text != "" {
		v.Notices = append(v.Notices, pageNote{hot, text})
	}
	t := &tokenView{MailboxesHead: mailboxesHead(s)}
	shown, rest := firstOf(mailboxesInOrder(s.Mailboxes, len(s.Mailboxes) > rowsFor(all)), rowsFor(all))
	for _, m := range shown {
		t.Mailboxes = append(t.Mailboxes, mailboxViewOf(m, s.Time))
	}
	t.More = moreWords(rest, "mailboxes")
	for _, g := range s.Groups {
		t.Groups = append(t.Groups, clientView{Name: groupName(g.Name), Limits: []limitView{groupLimit(g.Recipients)}})
	}
	for _, p := range s.Pools {
		t.Pools = append(t.Pools, pageFact{p.Address, calm, "leaves through the first to open of " + strings.Join(p.Members, ", ")})
	}
	for i := range s.Credentials {
		x := &s.Credentials[i]
		t.Credentials = append(t.Credentials, credentialView{Name: x.Name, Flow: x.Flow, Facts: credentialFacts(x, s.Time)})
	}
	if n := troubles(s); n > 0 {
		v.Title = fmt.Sprintf("(%d) %s", n, v.Title)
	}
	v.Token = t
	return v
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
	return limitViewOf(kind, u.Used, u.Left, u.Limit, u.Window)
}

// troubles counts mailboxes and credentials that cannot send.
func troubles(s *lease.Status) int {
	n := 0
	for i := range s.Mailboxes {
		if s.Mailboxes[i].PausedUntil != nil {
			n++
		}
	}
	for i := range s.Credentials {
		if s.Credentials[i].InUse && !s.Credentials[i].Token.Live {
			n++
		}
	}
	return n
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
	return fmt.Sprintf("%d more %s with less to do", n, what)
}

func mailboxesHead(s *lease.Status) string {
	out, waiting := 0, 0
	for i := range s.Mailboxes {
		out, waiting = out+s.Mailboxes[i].Leases, waiting+s.Mailboxes[i].Waiting
	}
	return fmt.Sprintf("%d in all · %s out · %s", len(s.Mailboxes), plural(out, "lease"), plural(waiting, "look-up")+" waiting")
}

// plural counts things: "1 lease", "2 leases".
func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// firstOf returns up to n, and how many are left out.
func firstOf[T any](list []T, n int) ([]T, int) {
	n = max(0, min(n, len(list)))
	return list[:n], len(list) - n
}

// mailboxesInOrder returns mailboxes in the order of the configuration or, where there is not room
// for all, those with most to do first.
func mailboxesInOrder(list []lease.MailboxStatus, crowded bool) []*lease.MailboxStatus {
	sorted := pointers(list)
	if crowded {
		slices.SortStableFunc(sorted, func(a, b *lease.MailboxStatus) int {
			return cmp.Or(cmpBool(b.PausedUntil != nil, a.PausedUntil != nil), cmp.Compare(b.Waiting, a.Waiting),
				cmp.Compare(mailboxShare(b), mailboxShare(a)), cmp.Compare(b.Leases, a.Leases))
		})
	}
	return sorted
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
func clientsInOrder(list []milter.ClientStatus, crowded bool) []*milter.ClientStatus {
	sorted := pointers(list)
	if crowded {
		slices.SortStableFunc(sorted, func(a, b *milter.ClientStatus) int {
			return cmp.Or(cmpBool(b.Over, a.Over), cmp.Compare(clientShare(b.Limits), clientShare(a.Limits)), cmp.Compare(sum(b.Messages), sum(a.Messages)))
		})
	}
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

func mailboxViewOf(m *lease.MailboxStatus, now time.Time) mailboxView {
	v := mailboxView{Name: m.Mailbox, Under: "by " + m.Credential, Messages: mailboxLimit(limit.KindMessages, m, m.Messages),
		Recipients: mailboxLimit(limit.KindRecipients, m, m.Recipients), Leases: connectionWords(m), Answer: "no answer yet", AnswerClass: "soft"}
	v.Waiting, v.WaitingClass = waitingWords(m, now)
	if m.PausedUntil != nil {
		v.Notes = append(v.Notes, pageNote{hot, fmt.Sprintf("paused until %s (%s): %s", clock(*m.PausedUntil, now), whenWords(m.PausedUntil, now), m.PauseReason)})
	}
	for _, d := range m.Denied {
		v.Notes = append(v.Notes, pageNote{hot, deniedWords(m.Mailbox, &d, now)})
	}
	if a := m.LastVerdict; a != nil {
		level := answerLevel(a.Class)
		v.Answer, v.AnswerClass = lastVerdictWords(a, now), level
		if a.Meaning != "" {
			v.Notes = append(v.Notes, pageNote{level, string(a.Class) + ": " + a.Meaning})
		}
	}
	if a := otherRefusal(m, now); a != nil {
		v.Notes = append(v.Notes, pageNote{warm, refusalWords(a, now)})
	}
	return v
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

// waitingWords words the look-ups that wait, with their level.
func waitingWords(m *lease.MailboxStatus, now time.Time) (words, level string) {
	if m.Waiting == 0 {
		return "nobody waits", "soft"
	}
	words = fmt.Sprintf("%d waiting", m.Waiting)
	if m.Next != nil && m.PausedUntil == nil {
		words += ", next " + whenWords(m.Next, now)
	}
	return words, warm
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
	return limitViewOf(string(kind), u.Used, u.Left, u.Limit, u.Window)
}

func limitViewOf(kind string, used, left, most int, window float64) limitView {
	r := limit.Rate{N: most, Per: time.Duration(window * float64(time.Second))}
	v := limitView{Kind: kind, Used: fmt.Sprintf("%d of %s", used, r), Left: fmt.Sprintf("%d left", left), Percent: percent(used, most), Level: usedLevel(used, most), Known: true}
	v.Text = v.Kind + ": " + v.Used + ", " + v.Left
	return v
}

// usedLevel is the level of a bar.
func usedLevel(used, most int) string {
	switch {
	case used >= most:
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
		if e := c.Refresh.Error; e != nil {
			add("", refresh, e.Text)
			if e.Hint != "" {
				add("hint", calm, e.Hint)
			}
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
			if r.Hint != "" {
				add("hint", calm, r.Hint)
			}
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

// milterPage makes the page of the milter.
func milterPage(s *milter.Status, c *service.Config, all bool) *pageView {
	v := &pageView{Service: "milter", State: serviceState(s.Time, s.Started), Title: "sendas milter", Notices: configNotes(c, s.Time)}
	if observed(s) {
		v.Notices = append(v.Notices, pageNote{warm, "sendas " + observeWords})
	}
	m := &milterView{ClientsHead: clientsHead(s), RecentHead: fmt.Sprintf("The last %d minutes", s.Recent.Minutes), Recent: recentFacts(&s.Recent), Queue: queueFacts(s.Queue, s.Time)}
	shown, rest := firstOf(clientsInOrder(s.Clients, len(s.Clients) > rowsFor(all)), rowsFor(all))
	for _, x := range shown {
		m.Clients = append(m.Clients, clientView{Name: x.Client, Over: overWords(x.Over, x.OnLimit), Last: lastWords(x.LastMessage, s.Time),
			Counts: countNotes(&x.Counts), Limits: limitViews(x.Limits), NoLimits: "no limits of its own"})
	}
	m.More = moreWords(rest, "clients")
	if n := sum(s.Unknown.Messages); n+s.Unknown.Refused > 0 {
		m.Clients = append(m.Clients, clientView{Name: "peers that are no client", Last: lastWords(s.Unknown.LastMessage, s.Time), Counts: countNotes(&s.Unknown)})
	}
	for _, x := range s.Identities {
		m.Identities = append(m.Identities, clientView{Name: x.Identity, Over: overWords(x.Over, x.OnLimit), Limits: limitViews(x.Limits)})
	}
	v.Milter = m
	return v
}

func clientsHead(s *milter.Status) string {
	over := 0
	for i := range s.Clients {
		if s.Clients[i].Over {
			over++
		}
	}
	if over == 0 {
		return fmt.Sprintf("%d in all", len(s.Clients))
	}
	return fmt.Sprintf("%d in all · %d over the limit", len(s.Clients), over)
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

// actionLevel colours the count of an action.
func actionLevel(a policy.Action) string {
	if a == policy.Accept || a == policy.Pass {
		return calm
	}
	return warm
}

// countNotes words what became of mail; what never happened is left out, but for "accepted".
func countNotes(c *milter.Counts) (list []pageNote) {
	for _, a := range policy.Actions() {
		if n := c.Messages[a]; n > 0 || a == policy.Accept {
			list = append(list, pageNote{actionLevel(a), fmt.Sprintf("%d %s", n, a.Done())})
		}
	}
	if c.Refused > 0 {
		list = append(list, pageNote{warm, fmt.Sprintf("%s refused", plural(int(c.Refused), "recipient"))})
	}
	return list
}

func limitViews(list []milter.LimitStatus) (views []limitView) {
	for _, l := range list {
		views = append(views, limitViewOf(string(l.Kind), l.Used, l.Left, l.Limit, l.Window))
	}
	return views
}

// recentFacts words what was decided lately: the actions, then the reasons, most frequent first.
func recentFacts(r *milter.Recent) (list []pageFact) {
	for _, a := range policy.Actions() {
		if n := r.Actions[a]; n > 0 {
			list = append(list, pageFact{a.Done(), actionLevel(a), fmt.Sprint(n)})
		}
	}
	codes := slices.SortedFunc(maps.Keys(r.Reasons), func(a, b policy.ReasonCode) int {
		return cmp.Or(-cmp.Compare(r.Reasons[a], r.Reasons[b]), cmp.Compare(a, b))
	})
	for _, c := range codes {
		text := fmt.Sprint(r.Reasons[c])
		if w := c.Brief(); w != "" {
			text += ": " + w
		}
		list = append(list, pageFact{string(c), calm, text})
	}
	return list
}

// A site is where the pages of a service are shown.
type Site struct {
	Addr    string                // where the service was told to listen
	Version string                // of the program
	State   func() service.Config // of the configuration in force
	Other   func() string         // where the other service listens now
}

// TokenPages is what the token service shows.
func TokenPages(at *Site, status func(context.Context) *lease.Status) map[string]http.Handler {
	answer := func(ctx context.Context) *tokenReport {
		c := at.State()
		return &tokenReport{Status: status(ctx), Config: &c}
	}
	return pages(at, func(ctx context.Context) any { return answer(ctx) }, func(ctx context.Context, req *http.Request) *pageView {
		a := answer(ctx)
		v := tokenPage(a.Status, a.Config, wantsAll(req))
		v.OtherName, v.OtherURL = "milter", otherURL(at.Addr, at.Other(), req.Host)
		return v
	})
}

// MilterPages is what the milter shows.
func MilterPages(at *Site, status func() *milter.Status) map[string]http.Handler {
	answer := func() *milterReport {
		c := at.State()
		return &milterReport{Status: status(), Config: &c}
	}
	return pages(at, func(context.Context) any { return answer() }, func(_ context.Context, req *http.Request) *pageView {
		a := answer()
		v := milterPage(a.Status, a.Config, wantsAll(req))
		v.OtherName, v.OtherURL = "token service", otherURL(at.Addr, at.Other(), req.Host)
		return v
	})
}
