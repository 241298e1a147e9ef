package status

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sendas/sendas/milter"
	"github.com/sendas/sendas/milter/queue"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/lease"
	"github.com/sendas/sendas/token/lease/replies"
	"github.com/sendas/sendas/token/ledger"
)

// A need is one thing that needs somebody: what it is, and what to do about it.
type need struct {
	state int    // stateWarning or stateCritical
	held  bool   // mail waits for it, or is refused
	What  string // a sentence without full stop
	Do    string // what to do, likewise; "" where the commands say it
	Type  []string
	about []string // the mailboxes, credentials and clients that it is about
}

// Level colours the need.
func (n *need) Level() string {
	if n.held || n.state == stateCritical {
		return hot
	}
	return warm
}

// Advice is what to do, in words, up to the commands.
func (n *need) Advice() string {
	switch {
	case n.Do == "":
		return "Type:"
	case len(n.Type) == 0:
		return upperFirst(n.Do) + "."
	}
	return upperFirst(n.Do) + ". Type:"
}

// advice is what to do, in one line for a terminal; "" where there is nothing to say.
func (n *need) advice() string {
	if n.Do == "" && len(n.Type) == 0 {
		return ""
	}
	return strings.TrimSpace(n.Advice() + " " + strings.Join(n.Type, "; then: "))
}

// A judgement is what both services say, judged: the same for the page, the text and the plugin.
type judgement struct {
	needs   []*need
	unknown []string          // what nobody knows, each a noun
	looks   bool              // the milter only observes
	about   map[string]string // the level of each name that some need is about
}

// judged judges the view.
func (v *view) judged() *judgement {
	j := &judgement{about: make(map[string]string), looks: v.observes()}
	j.services(v)
	if v.token != nil {
		j.token(v.token.Status)
	}
	j.queue(v)
	j.record(v)
	if v.milter != nil && !j.looks {
		j.refused(v.milter.Status)
	}
	slices.SortStableFunc(j.needs, func(a, b *need) int {
		return cmp.Or(cmpBool(b.held, a.held), cmp.Compare(b.state, a.state))
	})
	for _, n := range j.needs {
		for _, name := range n.about {
			if j.about[name] != hot {
				j.about[name] = n.Level()
			}
		}
	}
	return j
}

// add adds a need. A command that stands in the words already is not said again.
func (j *judgement) add(n *need) {
	n.Type = slices.DeleteFunc(n.Type, func(cmd string) bool { return strings.Contains(n.Do, `"`+cmd+`"`) })
	j.needs = append(j.needs, n)
}

// held reports whether anything keeps mail from leaving.
func (j *judgement) held() bool {
	return slices.ContainsFunc(j.needs, func(n *need) bool { return n.held })
}

// sentence says in one sentence how things are. That all mail leaves is said only where everything
// is known and nothing needs anybody.
func (j *judgement) sentence() string {
	unknown := ""
	if len(j.unknown) > 0 {
		unknown = strings.Join(j.unknown, ", and ")
	}
	n := len(j.needs)
	switch {
	case n == 0 && unknown == "" && j.looks:
		return "Sendas only looks, and nothing is changed or refused."
	case n == 0 && unknown == "":
		return "All mail leaves."
	case n == 0:
		return "It is not known whether all mail leaves: not known is " + unknown + "."
	}
	s := fmt.Sprintf("%d things need you", n)
	if n == 1 {
		s = "1 thing needs you"
	}
	switch {
	case j.held():
		s += ": mail is held up."
	case unknown == "" && !j.looks:
		s += "; mail leaves."
	default:
		s += "."
	}
	if unknown != "" {
		s += " Not known is " + unknown + "."
	}
	return s
}

// level colours the sentence.
func (j *judgement) level() string {
	switch {
	case len(j.needs) > 0:
		return j.needs[0].Level()
	case len(j.unknown) > 0:
		return warm
	}
	return calm
}

// state is that of a plugin: what is not known is worse than that all is well, and better than what
// is known to be wrong.
func (j *judgement) state() int {
	s := stateOK
	for _, n := range j.needs {
		s = max(s, n.state)
	}
	if s == stateOK && len(j.unknown) > 0 {
		return stateUnknown
	}
	return s
}

// lines are the needs for a terminal, each with what to do below it.
func (j *judgement) lines() (list []string) {
	for i, n := range j.needs {
		list = append(list, fmt.Sprintf("%2d. %s", i+1, n.What))
		if a := n.advice(); a != "" {
			list = append(list, "    "+a)
		}
	}
	return list
}

// services judges whether both services run, with the configuration that is on the disk.
func (j *judgement) services(v *view) {
	down := func(name, unit, at string, err error) {
		j.add(&need{state: stateCritical, held: true, What: fmt.Sprintf("The %s is down at %s: %v", name, at, err), Do: "its log says why",
			Type: []string{"journalctl -u " + unit + " -n 50", "systemctl restart " + unit}})
	}
	switch {
	case j.looks && v.token == nil: // it has nothing to do
	case v.tokenAt == "":
		j.unknown = append(j.unknown, "what leaves (token.http is off)")
	case v.tokenErr != nil:
		down("token service", "sendas-token", v.tokenAt, v.tokenErr)
	}
	switch {
	case v.milterAt == "":
		j.unknown = append(j.unknown, "what comes in and what waits (milter.http is off)")
	case v.milterErr != nil:
		down("milter", "sendas-milter", v.milterAt, v.milterErr)
	case v.milter == nil:
		j.unknown = append(j.unknown, "what comes in and what waits (the milter does not tell)")
	}
	j.configuration(v)
}

// configuration says that a newer configuration is not in force, or not all of it: once, where that
// is so for both services.
func (j *judgement) configuration(v *view) {
	old := ""
	if v.token != nil && v.token.Config != nil {
		c := v.token.Config
		if !c.OK {
			old = whenWords(&c.LoadedAt, v.token.Time)
		}
		if len(c.NeedsRestart) > 0 {
			j.restart("token service", "sendas-token", c.NeedsRestart)
		}
	}
	if v.milter != nil && v.milter.Config != nil {
		c := v.milter.Config
		if !c.OK && old == "" {
			old = whenWords(&c.LoadedAt, v.milter.Time)
		}
		if len(c.NeedsRestart) > 0 {
			j.restart("milter", "sendas-milter", c.NeedsRestart)
		}
	}
	if old != "" {
		j.add(&need{state: stateWarning, What: "The new configuration is wrong, so the one loaded " + old + " stays in force", Do: "mend what the check names",
			Type: []string{"sendas check", "systemctl reload sendas-milter sendas-token"}})
	}
}

func (j *judgement) restart(name, unit string, keys []string) {
	j.add(&need{state: stateWarning, What: "Of the configuration of the " + name + ", changed and in force after a restart only: " + strings.Join(keys, ", "), Type: []string{"systemctl restart " + unit}})
}

// token judges the token service.
func (j *judgement) token(s *lease.Status) {
	if s.Stopping {
		j.add(&need{state: stateWarning, held: true, What: "The token service is stopping: it gives no more leases, and mail waits in Postfix's queue", Type: []string{"systemctl status sendas-token"}})
	}
	if s.LedgerError != nil {
		j.add(&need{state: stateCritical, held: true, What: "What the mailboxes have sent is not known, so their mail waits: " + *s.LedgerError,
			Do: "make room on the disk, or start the Redis of token.store", Type: []string{"df -h /var/lib/sendas-token", "sendas doctor"}})
	}
	for i := range s.Credentials {
		j.credential(&s.Credentials[i], s.Time)
	}
	j.mailboxes(s)
	if text := unseenWords(s); text != "" {
		j.add(&need{state: stateCritical, What: text, Type: []string{"sendas doctor", "sendas postfix enable"}})
	}
	if v := s.Unsigned; v != nil && answerLevel(v.Class) == hot {
		j.add(&need{state: stateCritical, held: true, What: fmt.Sprintf("Exchange Online refuses whoever has not signed in, the last %s at %s (%s)", whenWords(&v.Time, s.Time), v.Stage, v.Code), Do: v.Meaning,
			Type: []string{"sendas doctor"}})
	}
	for _, g := range s.Groups {
		if u := g.Recipients; u != nil {
			j.used(upperFirst(groupName(g.Name))+" together", u, "send less to outside, or buy licences", nil)
		}
	}
}

// credential judges one credential: without a token mail waits, with one there is time to act.
func (j *judgement) credential(c *lease.CredentialStatus, now time.Time) {
	if !c.InUse {
		return
	}
	about := []string{c.Name}
	why, do := "", ""
	if e := c.Refresh.Error; e != nil {
		why, do = " ("+cmp.Or(e.Code, e.Text)+")", e.Hint
	}
	p, s := c.Proof, c.SignIn
	switch {
	case c.Token.Live && c.Refresh.Error == nil:
	case c.Token.Live:
		j.add(&need{state: stateWarning, What: fmt.Sprintf("Credential %s gets no new token%s; with the one it has mail leaves until %s", c.Name, why, clock(valueOf(c.Token.Expires, now), now)), Do: do,
			Type: []string{"sendas doctor"}, about: about})
	case c.Refresh.LastAttempt == nil && c.Refresh.Error == nil && (s == nil || s.Since != nil) && (p == nil || proofLevel(c, now) != hot):
		j.unknown = append(j.unknown, "whether credential "+c.Name+" gets a token")
	default:
		n := &need{state: stateCritical, held: true, What: "Credential " + c.Name + " has no token" + why + ", and the mail of its mailboxes waits", Do: do, Type: []string{"sendas doctor"}, about: about}
		if s != nil && (s.Since == nil || s.Refused != nil || s.IdleDays >= s.MaxDays) {
			n.Type = []string{"sendas login " + c.Name}
		}
		if p != nil && p.Refused == nil && proofLevel(c, now) == hot { // that is why
			if e := c.Refresh.Error; e != nil && e.Code == "" {
				why = ""
			}
			n.What, n.Do, n.Type, p = "Credential "+c.Name+" has no token"+why+", and the mail of its mailboxes waits: "+p.Kind+" "+endWords(c, now), renewal[p.Kind], []string{"sendas check", "systemctl reload sendas-token"}, nil
		}
		j.add(n)
	}
	if p != nil && p.Refused == nil { // else it stands above
		if level := proofLevel(c, now); level != calm {
			j.add(&need{state: levelStates[level], What: fmt.Sprintf("Credential %s: %s %s", c.Name, p.Kind, endWords(c, now)), Do: renewal[p.Kind], Type: []string{"sendas check", "systemctl reload sendas-token"}, about: about})
		}
	}
	if p := c.Proof; p != nil && p.Renewal != nil && p.Renewal.Failing != nil {
		j.add(&need{state: stateWarning, What: "The certificate of credential " + c.Name + " does not renew itself: " + renewalWords(p.Renewal, now), Do: p.Renewal.Hint, Type: []string{"sendas renew " + c.Name}, about: about})
	}
	if s != nil && s.Refused == nil && s.Since != nil && signInLevel(s) == warm {
		j.add(&need{state: stateWarning, What: "Credential " + c.Name + ": " + signInWords(c.Name, s, now), Type: []string{"sendas login " + c.Name}, about: about})
	}
	if skew := time.Duration(c.Skew * float64(time.Second)); skew.Abs() > entra.MaxSkew {
		j.add(&need{state: stateWarning, What: "The clock of this machine is " + skewWords(skew), Do: "have the clock set; from five minutes on Microsoft refuses certificates and tokens", Type: []string{"timedatectl"}, about: about})
	}
}

var levelStates = map[string]int{hot: stateCritical, warm: stateWarning}

// renewal is how what proves who we are is renewed, by its kind.
var renewal = map[string]string{
	token.ProofSecret:      "make a new client secret in the app registration, write its Value into the file of client_secret_file and its end into secret_expires",
	token.ProofCertificate: "make a new certificate, upload it to the app registration, then replace the file of certificate_file",
	token.ProofFederated:   "see to the program that renews the file of token_file",
}

func valueOf(t *time.Time, or time.Time) time.Time {
	if t == nil {
		return or
	}
	return *t
}

// resting is what to do about a mailbox that rests, by the class of the pause.
var resting = map[ledger.PauseClass]struct {
	state int
	do    string
}{
	ledger.PauseQuota:     {stateWarning, "nothing now: it goes on by itself; where it comes often, share the work among more mailboxes"},
	ledger.PauseFull:      {stateWarning, "empty Sent Items, or set up an archive policy"},
	ledger.PauseBlocked:   {stateCritical, `take the mailbox off "Restricted entities" at https://security.microsoft.com, or open a request where the tenant is blocked; stop the client that sent the spam first`},
	ledger.PauseThrottled: {stateCritical, "nobody can shorten it: mend what was refused, and the mail leaves by itself"},
}

// mailboxes judges the mailboxes: those with the same trouble have it together, so that what to do
// stands there once.
func (j *judgement) mailboxes(s *lease.Status) {
	type trouble struct {
		class ledger.PauseClass
		words string
	}
	names, until, codes := make(map[trouble][]string), make(map[trouble]time.Time), make(map[trouble]string)
	var order []trouble
	for i := range s.Mailboxes {
		m := &s.Mailboxes[i]
		x := trouble{class: m.PauseClass, words: m.PauseReason}
		v := m.LastVerdict
		refused := v != nil && v.Class != replies.Accepted && (v.Of == replies.OfMailbox || v.Of == replies.OfTenant) && answerLevel(v.Class) == hot
		switch {
		case m.PausedUntil == nil && !refused:
			if u := m.Recipients; u != nil {
				j.used(m.Mailbox, u, "share its work among more mailboxes, or give the client that sends most limits", []string{m.Mailbox})
			}
		case m.PausedUntil == nil: // between two attempts
			x.words = string(v.Class)
		}
		if m.PausedUntil != nil || refused {
			if refused && x.class != ledger.PauseQuota {
				codes[x] = v.Meaning
			}
			if names[x] == nil {
				order = append(order, x)
			}
			names[x] = append(names[x], m.Mailbox)
			if at := m.PausedUntil; at != nil && (until[x].IsZero() || at.Before(until[x])) {
				until[x] = *at
			}
		}
		j.denied(m, s.Time)
	}
	for _, x := range order {
		how, known := resting[x.class]
		if !known {
			how.state, how.do = stateCritical, codes[x]
		}
		n := &need{state: how.state, held: true, Do: how.do, about: names[x]}
		verb := map[bool]string{true: "rests", false: "rest"}[len(names[x]) == 1]
		switch {
		case until[x].IsZero():
			n.What = fmt.Sprintf("Exchange Online refuses %s (%s), and its mail waits", listWords(names[x]), x.words)
		default:
			at := until[x]
			n.What = fmt.Sprintf("%s %s until %s (%s): %s", listWords(names[x]), verb, clock(at, s.Time), whenWords(&at, s.Time), x.words)
		}
		if how.state == stateCritical {
			n.Type = []string{"sendas doctor " + names[x][0]}
		}
		if x.class == ledger.PauseBlocked {
			n.Type = []string{"journalctl -u sendas-milter -g " + names[x][0]}
		}
		j.add(n)
	}
}

// used judges how much of the recipients of a day is used. A shorter window opens again by itself.
func (j *judgement) used(who string, u *lease.UsageStatus, do string, about []string) {
	if u.Window < (12*time.Hour).Seconds() || usedLevel(u.Used, u.Limit) == calm {
		return
	}
	n := &need{state: stateWarning, held: u.Left == 0, What: fmt.Sprintf("%s has used %s of %s recipients, %s left", who, number(u.Used), number(u.Limit), number(u.Left)), Do: do,
		about: about, Type: []string{"systemctl reload sendas-milter sendas-token"}}
	if usedLevel(u.Used, u.Limit) == hot {
		n.state = stateCritical
	}
	j.add(n)
}

// denied judges whom a mailbox may not send as.
func (j *judgement) denied(m *lease.MailboxStatus, now time.Time) {
	for i := range m.Denied {
		d := &m.Denied[i]
		n := &need{state: stateWarning, held: d.Held, What: m.Mailbox + " " + deniedBrief(d, now), Do: "grant it in Exchange Online PowerShell, or take the address out of send_as",
			Type: []string{fmt.Sprintf("Add-RecipientPermission %s -Trustee %s -AccessRights SendAs", d.Sender, m.Mailbox)}, about: []string{m.Mailbox}}
		if d.Held {
			n.Type = append(n.Type, "sendas retry "+m.Mailbox+" "+d.Sender)
		}
		j.add(n)
	}
}

// standing is what to do about mail that stands still, by why.
var standing = map[queue.Reason]struct{ what, do string }{
	queue.ReasonConnect:   {"no connection to Microsoft", "open the way in the firewall, outbound: port 587 to smtp.office365.com, for connectors port 25"},
	queue.ReasonDNS:       {"the name of Microsoft's server cannot be looked up", "mend /etc/resolv.conf, and the copy of it in Postfix's chroot: etc/resolv.conf in its queue directory"},
	queue.ReasonLost:      {"connections to Microsoft break off", "see to the firewall: one that inspects or cuts SMTP is the usual cause"},
	queue.ReasonTLS:       {"there is no TLS with Microsoft", "see to the firewall, if it inspects TLS, and to the CA certificates"},
	queue.ReasonSignIn:    {"Microsoft refuses the sign-in", ""},
	queue.ReasonPlugin:    {"Postfix finds no plugin for XOAUTH2", "install the plugin where Postfix looks for it; the doctor says where"},
	queue.ReasonLookup:    {"Postfix gets no answer from the token service", "see that Postfix reaches the socket of the token service"},
	queue.ReasonTransport: {"Postfix cannot start what delivers, or is told not to", "the mail log has the cause; postconf defer_transports, what is held back"},
}

// littleRoom is how much has to be free on the disk of the queue, and with noRoom Postfix takes no
// mail any more: with message_size_limit as large as what Microsoft takes, one and a half times
// 35 MB.
const (
	littleRoom = 256 << 20
	noRoom     = 53 << 20
)

// longUnread is how old a reading of the queue may be: see queue.Watch, which reads a large one less
// often.
const longUnread = 20 * time.Minute

// queue judges what waits in Postfix's queue.
func (j *judgement) queue(v *view) {
	if v.milter == nil {
		return
	}
	s, now := v.milter.Queue, v.milter.Time
	switch {
	case s == nil:
		j.unknown = append(j.unknown, "what waits in Postfix's queue (it was not read yet)")
		return
	case s.Cause == queue.CauseStopped:
		j.add(&need{state: stateCritical, held: true, What: "Postfix is not running: devices are not answered, and nothing leaves", Do: "start it; its log says why it stopped",
			Type: []string{"systemctl status postfix", "systemctl start postfix"}})
		return
	case !s.Readable || s.Messages == nil:
		j.unknown = append(j.unknown, "what waits in Postfix's queue")
		j.add(&need{state: stateWarning, What: "Postfix's queue cannot be read: " + s.Error, Do: s.Hint})
		return
	case now.Sub(s.ReadAt) > longUnread:
		j.unknown = append(j.unknown, "what waits in Postfix's queue (it was last read "+whenWords(&s.ReadAt, now)+")")
	}
	if j.looks { // the mail does not leave by our ways
		return
	}
	if s.Free != nil && *s.Free < littleRoom {
		j.add(&need{state: stateCritical, held: *s.Free < noRoom, What: "The disk of Postfix's queue is full: " + number(int(*s.Free>>20)) + " MB are free", Type: []string{"df -h /var/spool/postfix"},
			Do: "make room; Postfix takes no mail (452 4.3.1) where less is free than one and a half times message_size_limit"})
	}
	j.stalls(v, s.Stalls, now)
	if s.Oldest != nil && now.Sub(*s.Oldest) >= longInQueue && !j.held() {
		j.add(&need{state: stateWarning, What: "A message has waited in Postfix's queue for " + spanWords(now.Sub(*s.Oldest)) + deferredWords(s), Do: "after five days Postfix returns it; the list has the reason below each message",
			Type: []string{"mailq"}})
	}
}

// stalls judges what stands still, by why. What follows from something else that needs somebody is
// not said again.
func (j *judgement) stalls(v *view, list []queue.PlaceStatus, now time.Time) {
	told := make(map[string]bool)
	for _, n := range j.needs {
		for _, name := range n.about {
			told[name] = true
		}
	}
	by := make(map[queue.Reason]*queue.PlaceStatus)
	names := make(map[queue.Reason][]string)
	var order []queue.Reason
	for i := range list {
		p := &list[i]
		if p.Reason == queue.ReasonLookup && v.token == nil || p.Reason == queue.ReasonSignIn && told[p.Mailbox] {
			continue
		}
		all := by[p.Reason]
		if all == nil {
			order = append(order, p.Reason)
			all = &queue.PlaceStatus{}
			by[p.Reason] = all
		}
		all.Messages += p.Messages
		if p.Oldest != nil && (all.Oldest == nil || p.Oldest.Before(*all.Oldest)) {
			all.Oldest = p.Oldest
		}
		names[p.Reason] = append(names[p.Reason], placeName(p))
	}
	for _, reason := range order {
		why, all := standing[reason], by[reason]
		j.add(&need{state: stateCritical, held: true, Do: why.do, about: names[reason], Type: []string{"sendas doctor", "postqueue -f"},
			What: fmt.Sprintf("No mail leaves through %s: %s; %s, the oldest came in %s", listWords(names[reason]), cmp.Or(why.what, string(reason)), countOf(all.Messages, "message waits", "messages wait"), whenWords(all.Oldest, now))})
	}
}

const (
	// manyRefused is how many messages of a known client are refused before that needs somebody, and
	// lately within which time: as in the alert SendasClientRejected.
	manyRefused = 3
	lately      = time.Hour
)

// refused judges what known clients are refused. Whom nobody knows is none of ours.
func (j *judgement) refused(s *milter.Status) {
	for i := range s.Refused {
		r := &s.Refused[i]
		if r.Client == "" || r.Action != policy.Reject || r.Count < manyRefused || s.Time.Sub(r.Last) > lately || r.Reason == policy.ReasonClientLimit || r.Reason == policy.ReasonIdentityLimit {
			continue
		}
		n := &need{state: stateWarning, What: fmt.Sprintf("Mail of client %s is refused (%s, %s, the last %s): %s", r.Client, cmp.Or(r.Addr, r.Login), countOf(int(r.Count), "message", "messages"), whenWords(&r.Last, s.Time), r.Answer),
			Do: "give the client senders or from, or mend the device", about: []string{r.Client}}
		if r.Addr != "" {
			n.Type = []string{"sendas explain --client " + r.Addr + " --from " + shellWord(r.Asked)}
		}
		j.add(n)
	}
}

// listWords joins names for a sentence: all of a few, the first of many.
func listWords(names []string) string {
	const most = 3
	switch n := len(names); {
	case n == 1:
		return names[0]
	case n <= most:
		return strings.Join(names[:n-1], ", ") + " and " + names[n-1]
	}
	return strings.Join(names[:most-1], ", ") + fmt.Sprintf(" and %d more", len(names)-most+1)
}

func upperFirst(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// countOf counts things that have a plural of their own, or a verb.
func countOf(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return number(n) + " " + many
}

// number writes a count as people read it: 10,000.
func number[T int | uint64](n T) string {
	s := strconv.FormatInt(int64(n), 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// rateWords writes a rate as people read it: 10,000/d.
func rateWords(most int, window float64) string {
	r := limit.Rate{N: most, Per: time.Duration(window * float64(time.Second))}
	return number(most) + strings.TrimPrefix(r.String(), strconv.Itoa(most))
}

// shellWord writes a stranger's text so that a shell takes it as one word.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("@._-+%", r)
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) && s[0] != '-' {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
