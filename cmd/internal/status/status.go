// Package status shows what the services say of themselves: as text, as a picture that moves in a
// terminal, as JSON, and as the page that each service serves. A service that does not answer is
// said to be down, never left out.
package status

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/internal/plaintext"
	"github.com/sendas/sendas/milter"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/lease"
)

// tokenReport is what the token service answers to /status. Its JSON keys are stable.
type tokenReport struct {
	*lease.Status
	Config *service.Config `json:"config"`
}

// milterReport is what the milter answers to /status. Its JSON keys are stable.
type milterReport struct {
	*milter.Status
	Config *service.Config `json:"config"`
}

// Command is one call of the command.
type Command struct {
	Stdout io.Writer
	Config *config.Site

	// ConfigErr is why the file on the disk cannot be used; Config then has the addresses alone.
	ConfigErr error

	Json   bool
	Watch  bool
	Check  bool // as a plugin of Nagios: see check
	Every  time.Duration
	Client *http.Client
}

func (s *Command) Run(ctx context.Context) error {
	if s.Check {
		return s.check(ctx)
	}
	if s.Config.Token.HTTP == "" && !s.Config.Observes() {
		return exit.Errorf(exit.Config, `write an address such as 127.0.0.1:9726 there, then run "systemctl restart sendas-token"`, "token.http is off, so the token service cannot be asked")
	}
	if !s.Watch {
		v := s.look(ctx)
		if err := s.print(v.all(s.Json)); err != nil {
			return err
		}
		return v.err()
	}
	return s.watching(ctx)
}

func (s *Command) print(text string) error {
	if _, err := io.WriteString(s.Stdout, text); err != nil {
		return exit.Errorf(exit.Software, "", "printing: %w", err)
	}
	return nil
}

// view is what the services said at one time.
type view struct {
	time     time.Time
	host     string // of the services; "" where it has no name
	tenant   string // "" where the configuration cannot be read
	tokenAt  string // address
	raw      []byte // of the token service
	token    *tokenReport
	tokenErr error // it is down, or says what is no status

	milterAt  string // "" when its HTTP is off: nobody knows
	milterRaw []byte
	milter    *milterReport // nil also where it is of a version that does not tell
	milterErr error
}

// look asks both services.
func (s *Command) look(ctx context.Context) *view {
	v := &view{time: time.Now(), tokenAt: s.Config.Token.HTTP, milterAt: s.Config.Milter.HTTP, tenant: s.Config.Tenant.ID}
	v.host, _ = os.Hostname() // without one it is not named
	v.askToken(ctx, s.Client)
	v.askMilter(ctx, s.Client)
	return v
}

// askToken asks the token service.
func (v *view) askToken(ctx context.Context, client *http.Client) {
	if v.tokenAt == "" {
		return
	}
	if v.raw, v.tokenErr = service.Fetch(ctx, client, v.tokenAt, "/status"); v.tokenErr == nil {
		v.token = new(tokenReport)
		if err := json.Unmarshal(v.raw, v.token); err != nil || v.token.Status == nil || v.token.Credentials == nil {
			v.token, v.tokenErr = nil, errors.New("what answers is not the token service of this version")
		}
	}
}

// askMilter asks the milter. One that serves mail is up, though it may not tell more.
func (v *view) askMilter(ctx context.Context, client *http.Client) {
	if v.milterAt == "" {
		return
	}
	if _, v.milterErr = service.Fetch(ctx, client, v.milterAt, "/healthz"); v.milterErr != nil {
		return
	}
	raw, err := service.Fetch(ctx, client, v.milterAt, "/status")
	if err != nil {
		return
	}
	a := new(milterReport)
	if json.Unmarshal(raw, a) == nil && a.Status != nil && a.Clients != nil {
		v.milter, v.milterRaw = a, raw
	}
}

// err says which service is down, for the exit code.
func (v *view) err() error {
	down := func(name, unit, at string, err error) error {
		return exit.Errorf(exit.TempFail, fmt.Sprintf(`type "systemctl status %s"; its log is "journalctl -u %s"`, unit, unit), "the %s is down at %s: %w", name, at, err)
	}
	switch {
	case v.idleToken() != "":
		return nil
	case v.tokenErr != nil && v.milterErr != nil:
		return exit.Errorf(exit.TempFail, `type "systemctl status sendas-token sendas-milter"`, "both services are down: the token service at %s: %w; the milter at %s: %w",
			v.tokenAt, v.tokenErr, v.milterAt, v.milterErr)
	case v.tokenErr != nil:
		return down("token service", "sendas-token", v.tokenAt, v.tokenErr)
	case v.milterErr != nil:
		return down("milter", "sendas-milter", v.milterAt, v.milterErr)
	}
	return nil
}

// serviceHealth is how a service answers, in JSON.
type serviceHealth struct {
	Up     *bool           `json:"up"` // null: not known
	Error  *string         `json:"error"`
	Status json.RawMessage `json:"status,omitempty"` // the milter's own answer
}

func serviceHealthOf(at string, err error) serviceHealth {
	if at == "" {
		return serviceHealth{}
	}
	up := err == nil
	h := serviceHealth{Up: &up}
	if err != nil {
		text := err.Error()
		h.Error = &text
	}
	return h
}

// all returns the view as JSON or for a person.
func (v *view) all(asJSON bool) string {
	if asJSON {
		return string(v.json())
	}
	return v.text()
}

// json returns the token service's answer, byte for byte but for the keys that are added at its
// end: milter and, where the service is down and there is no answer, token.
func (v *view) json() []byte {
	m := serviceHealthOf(v.milterAt, v.milterErr)
	m.Status = v.milterRaw
	add := map[string]serviceHealth{"milter": m}
	have := []byte("{")
	if v.tokenErr != nil {
		add["token"] = serviceHealthOf(v.tokenAt, v.tokenErr)
	} else {
		have = append(bytes.TrimSpace(bytes.TrimSuffix(bytes.TrimSpace(v.raw), []byte("}"))), ',')
	}
	more, err := json.MarshalIndent(add, "", "  ")
	if err != nil {
		panic(err) // strings, booleans, and JSON that was read
	}
	return append(append(have, more[1:]...), '\n')
}

// text returns the view for a person. Somebody else might listen where a service should, so nothing
// of it reaches the terminal that could steer it.
func (v *view) text() string {
	var b strings.Builder
	j := v.judged()
	fmt.Fprintln(&b, j.sentence())
	for _, line := range j.lines() {
		fmt.Fprintln(&b, oneLine(line))
	}
	fmt.Fprintf(&b, "\n%s\n", v.heading())
	fmt.Fprintf(&b, "token service  %s\n", v.tokenState())
	fmt.Fprintf(&b, "milter         %s\n", v.milterState())
	if v.observes() {
		fmt.Fprintf(&b, "mode           %s\n", observeWords)
	}
	words, _ := v.queueState()
	fmt.Fprintf(&b, "queue          %s\n", words)
	if v.token != nil {
		for i := range v.token.Credentials {
			writeCredential(&b, &v.token.Credentials[i], v.token.Time)
		}
		writeMailboxes(&b, v.token.Status, j.about)
	}
	if v.milter != nil {
		writeQueue(&b, v.milter.Queue, v.milter.Time)
		writeClients(&b, v.milter.Status)
		writeRefused(&b, v.milter.Status)
	}
	return tidyText(b.String())
}

// heading says of which host and tenant the rest is, and of when.
func (v *view) heading() string {
	parts := []string{v.time.Format(time.DateTime)}
	for _, x := range []string{v.host, v.tenant} {
		if x != "" {
			parts = append(parts, x)
		}
	}
	return strings.Join(parts, "  ")
}

// oneLine joins lines: what a service says may have some.
func oneLine(s string) string { return strings.ReplaceAll(s, "\n", " ") }

// tokenState says how the token service is.
func (v *view) tokenState() string {
	if idle := v.idleToken(); idle != "" {
		return idle
	}
	if v.tokenAt == "" {
		return "not known: token.http is off"
	}
	if v.token == nil {
		return upOrDown("up", v.tokenAt, v.tokenErr)
	}
	up := upFor(v.token.Version, v.token.Started, v.token.Time, v.token.Config)
	if v.token.Stopping {
		up += ", stopping: no more leases are given"
	}
	return upOrDown(up, v.tokenAt, nil)
}

// milterState says how the milter is.
func (v *view) milterState() string {
	switch {
	case v.milterAt == "":
		return "not known: milter.http is off"
	case v.milter == nil:
		return upOrDown("up", v.milterAt, v.milterErr)
	}
	return upOrDown(upFor(v.milter.Version, v.milter.Started, v.milter.Time, v.milter.Config), v.milterAt, nil)
}

// upFor says since when a service runs, and with what.
func upFor(version string, started *time.Time, now time.Time, c *service.Config) string {
	s := "up"
	if c != nil && !c.OK {
		s += " with an OLD CONFIGURATION (the new one is wrong: \"sendas check\")"
	}
	if c != nil && len(c.NeedsRestart) > 0 {
		s += " (" + restartWords(c) + ")"
	}
	s += ", version " + version
	if started != nil {
		s += ", for " + spanWords(now.Sub(*started))
	}
	return s
}

func upOrDown(up, at string, err error) string {
	if err != nil {
		return fmt.Sprintf("DOWN at %s: %v", at, err)
	}
	return up + ", at " + at
}

// shownStatus is how a foreign answer stands on a terminal, which it must not steer.
var shownStatus = plaintext.Style{Exact: true, Bad: unicode.ReplacementChar}

// tidyText keeps lines as they are but for what does not print.
func tidyText(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = shownStatus.Line(line)
	}
	return strings.Join(lines, "\n")
}

// resultWords words the results of a refresh.
var resultWords = map[string]string{
	"":                      "none yet",
	entra.ResultOK:          "succeeded",
	entra.ResultRefused:     "refused by Microsoft",
	entra.ResultUnreachable: "no answer from Microsoft",
	entra.ResultConfig:      "not sent",
}

func writeCredential(w io.Writer, c *lease.CredentialStatus, now time.Time) {
	fmt.Fprintf(w, "\ncredential %s (%s)\n", c.Name, c.Flow)
	for _, f := range credentialFacts(c, now) {
		fmt.Fprintf(w, "  %-13s %s\n", f.Label, f.Text)
	}
}

// skewWords tells that this machine's clock is wrong.
func skewWords(skew time.Duration) string {
	what := "ahead of"
	if skew < 0 {
		what = "behind"
	}
	return fmt.Sprintf("%s %s Entra's: \"timedatectl\" shows it", spanWords(skew.Abs()), what)
}

func tokenWords(t *lease.TokenStatus, now time.Time) string {
	switch {
	case t.Live:
		return fmt.Sprintf("live, got %s, ends %s", whenWords(t.Received, now), whenWords(t.Expires, now))
	case t.Expires != nil:
		return "none: the last one ended " + whenWords(t.Expires, now) + "; mail waits in the queue"
	}
	return "none; mail waits in the queue"
}

// refreshWords tells how the last refresh went. Where somebody has signed in since it failed, that
// no longer matters.
func refreshWords(c *lease.CredentialStatus, now time.Time) string {
	if c.Refresh.Result != "" {
		return resultWords[c.Refresh.Result] + whenAfter(", ", c.Refresh.LastAttempt, now)
	}
	if c.Refresh.LastAttempt != nil && c.SignIn != nil && c.SignIn.Since != nil {
		return "none yet since somebody signed in"
	}
	return resultWords[""]
}

// outlived reports whether Microsoft has taken a secret after the end that the configuration has for
// it: it is a new one, and its end was not written down.
func outlived(c *lease.CredentialStatus) bool {
	p, at := c.Proof, c.Refresh.LastSuccess
	return p.Kind == token.ProofSecret && p.Ends != nil && at != nil && at.After(*p.Ends)
}

// refusedWords tells why Microsoft did not take something.
func refusedWords(r *lease.Refusal) string {
	return fmt.Sprintf("REFUSED by Microsoft (%s): %s", r.Code, r.Meaning)
}

// endWords tells when a proof ends, on a day of UTC, as certificates and the configuration have it.
func endWords(c *lease.CredentialStatus, now time.Time) string {
	p := c.Proof
	if p.Refused != nil {
		return refusedWords(p.Refused)
	}
	switch ended := p.Ends != nil && p.Ends.Before(now); {
	case ended && outlived(c):
		return fmt.Sprintf("ended on %s, says secret_expires, but Microsoft took it %s: write the end of the new one there", p.Ends.UTC().Format(time.DateOnly), whenWords(c.Refresh.LastSuccess, now))
	case ended && p.Kind == token.ProofFederated:
		return "STALE: the other issuer's token ended " + whenWords(p.Ends, now)
	case ended:
		return "ENDED on " + p.Ends.UTC().Format(time.DateOnly)
	case p.Ends != nil && p.Kind == token.ProofFederated:
		return "a token of another issuer, who renews it; it ends " + whenWords(p.Ends, now)
	case p.Ends != nil:
		return fmt.Sprintf("ends on %s, %s", p.Ends.UTC().Format(time.DateOnly), whenWords(p.Ends, now))
	case p.Kind == token.ProofSecret:
		return "its end is not known: write secret_expires into sendas.yaml"
	case p.Kind == token.ProofCertificate:
		return "its end is not known: the file cannot be read"
	}
	return "a token of another issuer, who renews it"
}

// renewalWords tells how a certificate renews itself.
func renewalWords(r *lease.RenewalStatus, now time.Time) string {
	switch {
	case r.Failing != nil:
		return "FAILS since " + whenWords(r.Failing, now) + ": " + r.Error
	case r.Pending:
		return "a new certificate is on its way; Microsoft takes it some minutes after it was added"
	case r.Due == nil:
		return "not before the present one can be read"
	}
	by := ""
	if r.Made != "" {
		by = "the present one was made by sendas; "
	}
	return by + "the next one is made " + whenWords(r.Due, now)
}

func signInWords(credential string, s *lease.SignInStatus, now time.Time) string {
	switch {
	case s.Error != "":
		return "not known: " + s.Error
	case s.Since == nil:
		return fmt.Sprintf(`nobody; type "sendas login %s"`, credential)
	}
	who := s.User
	if who == "" {
		who = "a user whom Entra did not name"
	}
	who += " since " + s.Since.Local().Format(time.DateOnly)
	switch {
	case s.Refused != nil:
		return who + "; " + refusedWords(s.Refused)
	case s.IdleDays >= s.MaxDays:
		return fmt.Sprintf(`%s; VOID%s; type "sendas login %s"`, who, whenAfter(": its refresh token ended ", s.Ends, now), credential)
	case s.Ends == nil || s.Renewed == nil: // of a version that does not tell
		return who
	case s.Kept:
		return fmt.Sprintf("%s; NOT RENEWED since %s, though used %s: it ends %s; %s", who, s.Renewed.Local().Format(time.DateOnly), whenWords(s.LastUsed, now), whenWords(s.Ends, now), entra.KeptHint(credential))
	}
	return fmt.Sprintf("%s; renewed %s, else it would end %s", who, whenWords(s.Renewed, now), whenWords(s.Ends, now))
}

// groupWords says whose recipients a group counts.
var groupWords = map[string]string{lease.GroupExternal: "the tenant", lease.GroupOnMicrosoft: "onmicrosoft.com senders"}

// writeMailboxes prints the table of mailboxes, and below it what the last verdicts mean that were
// not "accepted": each meaning once, and not of those about whom it has been said.
func writeMailboxes(w io.Writer, s *lease.Status, about map[string]string) {
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "mailbox\tcredential\tleases\twaiting\tmessages\trecipients\tlast verdict")
	for i := range s.Mailboxes {
		m := &s.Mailboxes[i]
		fmt.Fprintln(t, strings.Join([]string{m.Mailbox, m.Credential, leaseWords(m), waitWords(m, s.Time),
			usageWords(m, limit.KindMessages, m.Messages), usageWords(m, limit.KindRecipients, m.Recipients), lastVerdictWords(m.LastVerdict, s.Time)}, "\t"))
	}
	t.Flush()
	for _, p := range s.Pools {
		fmt.Fprintf(w, "%s leaves through the first to open of %s\n", p.Address, strings.Join(p.Members, ", "))
	}
	for _, g := range s.Groups {
		fmt.Fprintf(w, "%s: %s of %s external recipients used in %s, %s left\n", groupName(g.Name), number(g.Recipients.Used), number(g.Recipients.Limit),
			spanWords(time.Duration(g.Recipients.Window*float64(time.Second))), number(g.Recipients.Left))
	}
	said := make(map[string]bool)
	for i := range s.Mailboxes {
		m := &s.Mailboxes[i]
		for _, n := range mailboxNotes(m, about, said, s.Time) {
			fmt.Fprintf(w, "%s: %s\n", m.Mailbox, n.Text)
		}
	}
	if text := unsignedWords(s); text != "" {
		fmt.Fprintln(w, text)
	}
}

// unsignedWords words what was refused before any sign-in, where it needs nobody.
func unsignedWords(s *lease.Status) string {
	if v := s.Unsigned; v != nil && answerLevel(v.Class) != hot {
		return "before any sign-in: " + refusalWords(v, s.Time)
	}
	return ""
}

// deniedBrief words that a mailbox may not send as a sender, and what becomes of that mail.
func deniedBrief(d *lease.Denial, now time.Time) string {
	words := fmt.Sprintf("may not send as %s, says Exchange Online: ", d.Sender)
	if !d.Held {
		return words + fmt.Sprintf("%s returned, the last %s", countOf(d.Count, "message", "messages"), whenWords(&d.Last, now))
	}
	next := "with the next message"
	if d.NextTry != nil {
		next = "by one message " + whenWords(d.NextTry, now)
	}
	return words + fmt.Sprintf("denied %s times, the last %s; its mail waits in the queue and is tried again %s", number(d.Count), whenWords(&d.Last, now), next)
}

// refusalShown is how long a refusal is shown that is not the last word on the mailbox.
const refusalShown = 24 * time.Hour

// otherRefusal returns the last refusal of a mailbox where it is not the last verdict and not long
// ago: that of a recipient, for instance, of a message which the others got.
func otherRefusal(m *lease.MailboxStatus, now time.Time) *lease.Verdict {
	v := m.LastRefusal
	if v == nil || now.Sub(v.Time) >= refusalShown || m.LastVerdict != nil && m.LastVerdict.Class == v.Class && m.LastVerdict.Code == v.Code {
		return nil
	}
	return v
}

// refusalWords words what was refused at which stage.
func refusalWords(v *lease.Verdict, now time.Time) string {
	return fmt.Sprintf("refused %s at %s, %s (%s): %s", whenWords(&v.Time, now), v.Stage, v.Class, v.Code, v.Meaning)
}

// clientActions are what can become of a client's mail. What passes untouched is nobody's.
func clientActions() []policy.Action {
	return slices.DeleteFunc(policy.Actions(), func(a policy.Action) bool { return a == policy.Pass })
}

// unseenWords says that Postfix does not show what became of messages, "" where it does.
func unseenWords(s *lease.Status) string {
	u := s.RepliesUnseen
	if u == nil || !u.Now {
		return ""
	}
	return fmt.Sprintf(`replies are NOT SHOWN: %s, the last %s, count as sent with %s each; "sendas doctor" says what is missing`,
		plural(u.Leases, "lease"), whenWords(&u.Last, s.Time), plural(u.Recipients, "recipient"))
}

// writeClients prints the table of clients: what became of their mail since the start, and their
// limits.
func writeClients(w io.Writer, s *milter.Status) {
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "client\t")
	for _, a := range clientActions() {
		fmt.Fprint(t, a.Done()+"\t")
	}
	fmt.Fprintln(t, "limits")
	row := func(name string, c milter.Counts, limits string) {
		fmt.Fprint(t, name+"\t")
		for _, a := range clientActions() {
			fmt.Fprintf(t, "%s\t", number(c.Became(a)))
		}
		fmt.Fprintln(t, limits)
	}
	for i := range s.Clients {
		c := &s.Clients[i]
		row(c.Client, c.Counts, clientLimitWords(c.Limits, overWords(c.Over, c.OnLimit)))
	}
	passed := ""
	if n := s.Unknown.Became(policy.Pass); n > 0 {
		passed = fmt.Sprintf("%s %s, to recipients whom Postfix delivers itself", number(n), policy.Pass.Done())
	}
	row("(no client)", s.Unknown, passed)
	t.Flush()
	for i := range s.Identities {
		x := &s.Identities[i]
		fmt.Fprintf(w, "identity %s: %s\n", x.Identity, clientLimitWords(x.Limits, overWords(x.Over, x.OnLimit)))
	}
}

// refusedShown is how many refusals the text shows; the page shows more.
const refusedShown = 10

// writeRefused prints who was refused lately, and why.
func writeRefused(w io.Writer, s *milter.Status) {
	if len(s.Refused) == 0 {
		return
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "refused lately\tclient\tas\ttimes\tlast\twhy")
	shown, more := firstOf(pointers(s.Refused), refusedShown)
	for _, r := range shown {
		fmt.Fprintln(t, strings.Join([]string{refusedWho(r), cmp.Or(r.Client, "(no client)"), cmp.Or(r.Asked, "(nobody)"), number(r.Count), whenWords(&r.Last, s.Time), refusedWhy(r)}, "\t"))
	}
	t.Flush()
	if more > 0 {
		fmt.Fprintf(w, "%d more; the page has them\n", more)
	}
}

// refusedWho names the peer that was refused.
func refusedWho(r *milter.Refusal) string {
	who := cmp.Or(r.Addr, "(no address)")
	if r.Login != "" {
		who += " login " + r.Login
	}
	return who
}

// refusedWhy words the reason, briefly.
func refusedWhy(r *milter.Refusal) string {
	if brief := r.Reason.Brief(); brief != "" {
		return r.Action.Done() + ": " + brief
	}
	return r.Action.Done()
}

func clientLimitWords(list []milter.LimitStatus, over string) string {
	if len(list) == 0 {
		return "none"
	}
	var words []string
	for _, l := range limitViews(list) {
		words = append(words, l.Text)
	}
	if over != "" {
		words = append(words, over)
	}
	return strings.Join(words, "; ")
}

func leaseWords(m *lease.MailboxStatus) string {
	switch {
	case m.Pattern: // the limit is each sender's own
		return fmt.Sprint(m.Leases)
	case m.InForce < m.Connections:
		return fmt.Sprintf("%d of %d (not %d)", m.Leases, m.InForce, m.Connections)
	}
	return fmt.Sprintf("%d of %d", m.Leases, m.Connections)
}

func waitWords(m *lease.MailboxStatus, now time.Time) string {
	if m.Next == nil || m.PausedUntil != nil {
		return fmt.Sprint(m.Waiting)
	}
	return fmt.Sprintf("%d, next %s", m.Waiting, whenWords(m.Next, now))
}

func lastVerdictWords(v *lease.Verdict, now time.Time) string {
	if v == nil {
		return "none yet"
	}
	return fmt.Sprintf("%s (%s), %s", v.Class, v.Code, whenWords(&v.Time, now))
}

func usageWords(m *lease.MailboxStatus, kind limit.Kind, u *lease.UsageStatus) string {
	switch {
	case m.Pattern:
		return "each sender's own"
	case slices.Contains(m.Unlimited, kind):
		return "no limit"
	case u == nil:
		return "not known"
	}
	return fmt.Sprintf("%s of %s, %s left", number(u.Used), rateWords(u.Limit, u.Window), number(u.Left))
}

// whenAfter is whenWords with words before it, or nothing.
func whenAfter(before string, t *time.Time, now time.Time) string {
	if t == nil {
		return ""
	}
	return before + whenWords(t, now)
}

// whenWords words a moment as seen from now: "in 43 min", "12 s ago", "now".
func whenWords(t *time.Time, now time.Time) string {
	if t == nil {
		return "never"
	}
	d := t.Sub(now)
	switch {
	case d >= time.Second:
		return "in " + spanWords(d)
	case d <= -time.Second:
		return spanWords(-d) + " ago"
	}
	return "now"
}

// spanWords words a length of time, never longer than it is.
func spanWords(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}
