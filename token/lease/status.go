package lease

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"time"

	"github.com/sendas/sendas/internal/record"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/lease/replies"
	"github.com/sendas/sendas/token/ledger"
)

// StatusInput is what the composition of the program knows and [Lessor] does not.
type StatusInput struct {
	Version     string    // of the program
	Started     time.Time // zero when not known
	Credentials []CredentialInput
	Mailboxes   []MailboxInput
	Pools       []PoolStatus
	Groups      []GroupInput
}

// CredentialInput is one credential of the configuration.
type CredentialInput struct {
	Name  string
	Flow  string                // as in the configuration
	State *entra.RefresherState // nil where nothing uses the credential

	Proof     string    // what proves who we are: "secret", "certificate", …; "" for nothing of ours
	ProofEnds time.Time // zero when it is not known, as for secrets; it may be past

	SignIn *SignedIn // nil but for a signed-in user

	Renewal *RenewalStatus // of a certificate that the service renews; else nil
}

// SignedIn is what is known of a user's sign-in.
type SignedIn struct {
	File    string    // where the sign-in is kept
	User    string    // "" while nobody has signed in
	Since   time.Time // when they signed in; zero while nobody has
	Renewed time.Time // when the refresh token came, which is good for entra.MaxIdle from then
	Used    time.Time // when it was last redeemed; zero: at the sign-in
	Kept    bool      // that brought no new one
	Err     error     // why what is stored cannot be read; it must not hold a secret
}

// mended reports whether an attempt failed for what somebody has put right since by signing in: what
// it said is no longer so, and the next attempt is some seconds away.
func (u *SignedIn) mended(err error, attempt time.Time) bool {
	if u.Err != nil || u.Since.IsZero() {
		return false
	}
	if refused, ok := errors.AsType[*entra.RefusedError](err); ok {
		return refused.EndsSignIn() && u.Since.After(attempt)
	}
	file, ok := errors.AsType[*entra.FileError](err)
	return ok && file.Path == u.File && (errors.Is(file, fs.ErrNotExist) || u.Since.After(attempt))
}

// MailboxInput is one mailbox of the configuration.
type MailboxInput struct {
	Label      string // an address, or a pattern such as "*@contoso.com"
	Pattern    bool   // each sender has limits of their own
	Credential string
	Limits     limit.Allowance
	Route      string // of an account of High Volume Email: its route
}

// PoolStatus is one address that several mailboxes may send as.
type PoolStatus struct {
	Address string   `json:"address"`
	Members []string `json:"members"` // labels of mailboxes
}

// GroupInput is one limit that mailboxes have together.
type GroupInput struct {
	Name       string // GroupExternal or GroupOnMicrosoft
	Recipients limit.Rate
}

// GroupStatus is what was used of a limit that mailboxes have together.
type GroupStatus struct {
	Name       string       `json:"name"`
	Recipients *UsageStatus `json:"recipients"`
}

// Status is what the token service shows of itself. Its JSON keys are stable: later versions add to
// them only. Moments are in UTC; null is "never" or "not known". It holds no secret, and of
// addresses only those of the configuration.
type Status struct {
	Version     string             `json:"version"`
	Time        time.Time          `json:"time"` // of this answer
	Started     *time.Time         `json:"started"`
	Stopping    bool               `json:"stopping"`     // no more leases are given
	LedgerError *string            `json:"ledger_error"` // why usage is not known
	Credentials []CredentialStatus `json:"credentials"`
	Mailboxes   []MailboxStatus    `json:"mailboxes"`
	Pools       []PoolStatus       `json:"pools,omitempty"`
	Groups      []GroupStatus      `json:"groups,omitempty"`
	// Unsigned is the last refusal of a session that had not signed in, for whichever mailbox; nil when
	// a sign-in has succeeded since.
	Unsigned *Verdict `json:"last_refusal_before_sign_in,omitempty"`
	// RepliesUnseen tells of leases of which no reply was shown; missing where there were none.
	RepliesUnseen *UnseenStatus  `json:"replies_unseen,omitempty"`
	Record        *record.Status `json:"record,omitempty"` // of the token service's half; missing where there is no keeper
}

// CredentialStatus is the state of one credential.
type CredentialStatus struct {
	Name    string        `json:"name"`
	Flow    string        `json:"flow"`
	InUse   bool          `json:"in_use"` // some mailbox names it
	Token   TokenStatus   `json:"token"`
	Refresh RefreshStatus `json:"refresh"`
	Skew    float64       `json:"clock_skew_seconds"` // how far this clock was ahead of Entra's at the last success
	Proof   *ProofStatus  `json:"proof"`              // null where we hold none, as for a managed identity
	SignIn  *SignInStatus `json:"sign_in"`            // null but for a signed-in user
}

// TokenStatus is the state of the access token in memory.
type TokenStatus struct {
	Live     bool       `json:"live"`
	Received *time.Time `json:"received"`
	Expires  *time.Time `json:"expires"` // also when it is past
}

// RefreshStatus tells of the requests for an access token.
type RefreshStatus struct {
	Result      string            `json:"result"` // of the last attempt: one of Results, or "" before the first
	LastAttempt *time.Time        `json:"last_attempt"`
	LastSuccess *time.Time        `json:"last_success"`
	NextAttempt *time.Time        `json:"next_attempt"`
	Error       *RefreshError     `json:"error"`    // of the last attempt; null when it succeeded
	Attempts    map[string]uint64 `json:"attempts"` // by result, since the start
}

// RefreshError says why an attempt failed.
type RefreshError struct {
	Code string `json:"code"` // "AADSTS7000215", or the OAuth error; "" where Microsoft said nothing
	Text string `json:"text"` // what happened
	Hint string `json:"hint"` // what it means and what to do; "" where the text says it
}

// ProofStatus is what proves to Entra who we are.
type ProofStatus struct {
	Kind    string     `json:"kind"`
	Ends    *time.Time `json:"ends"`    // it may be past
	Refused *Refusal   `json:"refused"` // why Microsoft did not take it at the last attempt; null where that was not the reason

	Renewal *RenewalStatus `json:"renewal,omitempty"` // of a certificate that the service renews
}

// RenewalStatus is how the service replaces a certificate before it ends.
type RenewalStatus struct {
	Due  *time.Time `json:"due"`  // when it is replaced; null where no certificate can be read
	Ends *time.Time `json:"ends"` // of the one in use
	// Made is the thumbprint of the certificate in use (SHA-256, in hex) where the service made it.
	Made    string `json:"made,omitempty"`
	Pending bool   `json:"pending"` // a new one is made, and not yet in use
	Former  int    `json:"former"`  // how many of the service's wait to be taken from the app
	// Failing is since when the attempts fail; null while they do not. Error says why, and Hint what
	// to do about it.
	Failing *time.Time `json:"failing"`
	Error   string     `json:"error,omitempty"`
	Hint    string     `json:"hint,omitempty"`
}

// Refusal is why Microsoft did not take what we showed.
type Refusal struct {
	Code    string `json:"code"` // as in RefreshError
	Meaning string `json:"meaning"`
}

// SignInStatus is the sign-in of a user.
type SignInStatus struct {
	User     string     `json:"user"` // "" while nobody has signed in
	Since    *time.Time `json:"since"`
	LastUsed *time.Time `json:"last_used"`     // when the refresh token was last redeemed
	Renewed  *time.Time `json:"renewed"`       // when a new one last came
	Kept     bool       `json:"kept"`          // the last refresh brought no new one: then it ends on a fixed day
	IdleDays int        `json:"idle_days"`     // whole days since Renewed
	MaxDays  int        `json:"max_idle_days"` // after so many it is void
	Ends     *time.Time `json:"ends"`          // when that is; null while nobody has signed in
	Refused  *Refusal   `json:"refused"`       // why Microsoft did not take it at the last attempt; null where that was not the reason
	Error    string     `json:"error"`         // why what is stored cannot be read
}

// MailboxStatus is the state of one mailbox, or of all that a pattern stands for.
type MailboxStatus struct {
	Mailbox     string            `json:"mailbox"`
	Pattern     bool              `json:"pattern"`
	Credential  string            `json:"credential"`
	Leases      int               `json:"leases"`               // out now
	Connections int               `json:"connections"`          // how many may be, by the configuration
	InForce     int               `json:"connections_in_force"` // how many may be now: fewer after a 432
	Waiting     int               `json:"waiting"`              // look-ups that wait for a lease
	Next        *time.Time        `json:"next_lease"`           // null: at once, or as soon as one comes back
	PausedUntil *time.Time        `json:"paused_until"`
	PauseClass  ledger.PauseClass `json:"pause_class"`  // "": not paused
	PauseReason string            `json:"pause_reason"` // the class in words
	Messages    *UsageStatus      `json:"messages"`     // null for a pattern, without a limit, and where the ledger cannot tell
	Recipients  *UsageStatus      `json:"recipients"`   // likewise
	Unlimited   []limit.Kind      `json:"unlimited,omitempty"`
	Route       string            `json:"route,omitempty"` // of an account of High Volume Email
	LastVerdict *Verdict          `json:"last_verdict"`
	// LastAccepted is when Microsoft last took a message; null: not since the start.
	LastAccepted *time.Time `json:"last_accepted"`
	LastRefusal  *Verdict   `json:"last_refusal,omitempty"` // at whatever stage, that of a single recipient too
	Denied       []Denial   `json:"send_as_denied"`         // senders whose last message was refused for want of permission
}

// UsageStatus is what was used of one limit in its window.
type UsageStatus struct {
	Used   int     `json:"used"`
	Left   int     `json:"left"`
	Limit  int     `json:"limit"`
	Window float64 `json:"window_seconds"`
}

// Verdict is how Exchange Online answered a delivery.
type Verdict struct {
	Class   replies.Class   `json:"class"`
	Code    string          `json:"code"`    // SMTP's
	Meaning string          `json:"meaning"` // "" for accepted mail
	Time    time.Time       `json:"time"`
	Stage   Stage           `json:"stage,omitempty"` // of a refusal, as far as it is known
	When    replies.When    `json:"when,omitempty"`  // of a refusal
	Of      replies.Subject `json:"of,omitempty"`    // likewise
}

// noteVerdict keeps the last verdict of a mailbox for Status, and what it says of the sender.
func (l *Lessor) noteVerdict(s *session, x replies.Explanation) {
	x = l.named(s, x)
	l.mu.Lock()
	l.verdicts[s.label] = Verdict{Class: x.Class, Code: x.Code, Meaning: x.Hint(), Time: *moment(time.Now()), When: x.When, Of: x.Of}
	if x.Class == replies.Accepted {
		l.accepted[s.label] = time.Now().Round(0).UTC()
		delete(l.full, s.mailbox)
	}
	l.mu.Unlock()
	l.noteDenial(s, x.Class)
}

// named fills in what the configuration calls the mailbox and the sender: of addresses, Status has
// those alone.
func (l *Lessor) named(s *session, x replies.Explanation) replies.Explanation {
	if s.made {
		return x
	}
	return x.For(s.label, (*l.dir.Load()).Listed(s.sender))
}

// Status describes the service at this moment. Where the ledger cannot tell what was used, the rest
// is told all the same.
func (l *Lessor) Status(ctx context.Context, in StatusInput) *Status {
	now := time.Now()
	s := &Status{Version: in.Version, Time: *moment(now), Started: moment(in.Started), Stopping: l.stopping(),
		Credentials: make([]CredentialStatus, 0, len(in.Credentials)), Mailboxes: make([]MailboxStatus, 0, len(in.Mailboxes))}
	for i := range in.Credentials {
		s.Credentials = append(s.Credentials, in.Credentials[i].status(now))
	}
	leases, waiting, verdicts := l.counts()
	refused, unsigned := l.refusalsNow()
	s.Unsigned = unsigned
	for _, m := range in.Mailboxes {
		t := MailboxStatus{Mailbox: m.Label, Pattern: m.Pattern, Credential: m.Credential, Connections: m.Limits.Connections,
			InForce: m.Limits.Connections, Leases: leases[m.Label], Waiting: waiting[m.Label], Route: m.Route}
		if m.Limits.Messages.Unlimited() {
			t.Unlimited = append(t.Unlimited, limit.KindMessages)
		}
		if m.Limits.Recipients.Unlimited() {
			t.Unlimited = append(t.Unlimited, limit.KindRecipients)
		}
		if v, ok := verdicts[m.Label]; ok {
			t.LastVerdict = &v
		}
		if v, ok := refused[m.Label]; ok {
			t.LastRefusal = &v
		}
		t.Denied = l.deniedTo(m.Label)
		t.LastAccepted = l.lastAccepted(m.Label)
		if !m.Pattern && s.LedgerError == nil { // once it fails it is not asked for each mailbox in turn
			s.LedgerError = t.use(ctx, l.ledger, m, now)
		}
		s.Mailboxes = append(s.Mailboxes, t)
	}
	if s.LedgerError == nil {
		s.LedgerError = l.cannotWrite()
	}
	s.Pools, s.RepliesUnseen = in.Pools, l.unseenStatus(now)
	for _, g := range in.Groups {
		if s.LedgerError == nil {
			s.LedgerError = s.group(ctx, l.ledger, g, now)
		}
	}
	return s
}

// group adds what is used of a limit that mailboxes have together, or returns what is wrong with
// the ledger.
func (s *Status) group(ctx context.Context, ledger ledger.Store, g GroupInput, now time.Time) *string {
	limits := limit.Microsoft()
	limits.Group, limits.GroupRecipients = g.Name, g.Recipients
	u, err := ledger.Usage(ctx, "", limits, now) // of no mailbox in particular
	if err != nil {
		text := entra.OneLine(err.Error(), entra.MaxText)
		return &text
	}
	s.Groups = append(s.Groups, GroupStatus{g.Name, usageOf(u.GroupRecipients, g.Recipients)})
	return nil
}

// use fills in what the ledger knows, or returns what is wrong with it.
func (t *MailboxStatus) use(ctx context.Context, ledger ledger.Store, m MailboxInput, now time.Time) *string {
	u, err := ledger.Usage(ctx, m.Label, m.Limits, now)
	if err != nil {
		text := entra.OneLine(err.Error(), entra.MaxText)
		return &text
	}
	t.InForce = u.Connections(m.Limits)
	t.Next, t.PausedUntil = moment(u.Next), moment(u.PausedUntil)
	t.PauseClass, t.PauseReason = u.PauseClass, entra.OneLine(u.PauseReason, entra.MaxText)
	t.Messages, t.Recipients = usageOf(u.Messages, m.Limits.Messages), usageOf(u.Recipients, m.Limits.Recipients)
	return nil
}

// usageOf words one limit, nil where there is none. More may be used than is allowed after a limit was
// lowered.
func usageOf(used int, r limit.Rate) *UsageStatus {
	if r.Unlimited() {
		return nil
	}
	return &UsageStatus{Used: used, Left: max(0, r.N-used), Limit: r.N, Window: r.Per.Seconds()}
}

// counts returns leases out, waiting look-ups and last verdicts, by label.
func (l *Lessor) counts() (leases, waiting map[string]int, verdicts map[string]Verdict) {
	leases, waiting, verdicts = make(map[string]int), make(map[string]int), make(map[string]Verdict)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.sessions {
		if s.lease != 0 {
			leases[s.label]++
		}
	}
	for _, n := range l.lines {
		waiting[n.label] += len(n.lookups)
	}
	for label, v := range l.verdicts {
		verdicts[label] = v
	}
	return leases, waiting, verdicts
}

// refusalsNow returns the last refusals by label, and that of a session without sign-in.
func (l *Lessor) refusalsNow() (byLabel map[string]Verdict, unsigned *Verdict) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.refusedLast), l.unsigned
}

// cannotWrite returns why the last lease could not be written down, nil where it could: a store may
// tell what it knows though its disk is full.
func (l *Lessor) cannotWrite() *string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unwritten == nil {
		return nil
	}
	text := entra.OneLine(l.unwritten.Error(), entra.MaxText)
	return &text
}

// lastAccepted returns when a message was last accepted, to the fraction of a second: it is compared
// with what happened to others.
func (l *Lessor) lastAccepted(label string) *time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at, ok := l.accepted[label]; ok {
		return &at
	}
	return nil
}

func (l *Lessor) deniedTo(label string) []Denial {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.denied.of(label)
}

// stopping reports whether Drain was called.
func (l *Lessor) stopping() bool {
	select {
	case <-l.draining:
		return true
	default:
		return false
	}
}

// status describes one credential.
func (c *CredentialInput) status(now time.Time) CredentialStatus {
	s := CredentialStatus{Name: c.Name, Flow: c.Flow, InUse: c.State != nil, Refresh: RefreshStatus{Attempts: make(map[string]uint64, len(entra.Results))}}
	for _, r := range entra.Results {
		s.Refresh.Attempts[r] = 0
	}
	if c.State != nil {
		s.Token, s.Refresh, s.Skew = tokenStatus(c.State), refreshStatus(c.State), c.State.Skew.Seconds()
	}
	if c.Proof != "" {
		s.Proof = &ProofStatus{Kind: c.Proof, Ends: moment(c.ProofEnds), Renewal: c.Renewal}
	}
	if c.SignIn != nil {
		s.SignIn = c.SignIn.status(now)
	}
	if c.State == nil || c.State.LastErr == nil {
		return s
	}
	if c.SignIn != nil && c.SignIn.mended(c.State.LastErr, c.State.LastAttempt) {
		s.Refresh.Result, s.Refresh.Error = "", nil
		return s
	}
	if e, ok := errors.AsType[*entra.RefusedError](c.State.LastErr); ok {
		meaning, _ := e.Advice()
		switch why := (&Refusal{e.Code(), meaning}); {
		case s.SignIn != nil && e.EndsSignIn():
			s.SignIn.Refused = why
		case s.Proof != nil && e.RefusesProof():
			s.Proof.Refused = why
		}
	}
	return s
}

func tokenStatus(r *entra.RefresherState) TokenStatus {
	t := TokenStatus{Live: r.Have, Expires: moment(r.Expires)}
	if t.Expires != nil {
		t.Received = moment(r.LastSuccess)
	}
	return t
}

func refreshStatus(r *entra.RefresherState) RefreshStatus {
	s := RefreshStatus{LastAttempt: moment(r.LastAttempt), LastSuccess: moment(r.LastSuccess), NextAttempt: moment(r.NextAttempt), Attempts: r.Attempts}
	switch {
	case r.LastErr != nil:
		s.Result, _ = entra.ResultOf(r.LastErr)
		s.Error = refreshError(r.LastErr)
	case !r.LastSuccess.IsZero():
		s.Result = entra.ResultOK
	}
	return s
}

// refreshError words a failure as the log does.
func refreshError(err error) *RefreshError {
	e := &RefreshError{Text: entra.OneLine(err.Error(), 2*entra.MaxText)}
	if r, ok := errors.AsType[*entra.RefusedError](err); ok {
		e.Code = r.Code()
	}
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		e.Hint = h.Hint()
	}
	return e
}

func (u *SignedIn) status(now time.Time) *SignInStatus {
	renewed := entra.LaterOf(u.Since, u.Renewed)
	s := &SignInStatus{User: u.User, Since: moment(u.Since), LastUsed: moment(entra.LaterOf(renewed, u.Used)), Renewed: moment(renewed), Kept: u.Kept,
		MaxDays: int(entra.MaxIdle.Hours() / 24)}
	if s.Renewed != nil {
		s.IdleDays = int(max(0, now.Sub(*s.Renewed)).Hours() / 24)
		s.Ends = moment(renewed.Add(entra.MaxIdle))
	}
	if u.Err != nil {
		s.Error = entra.OneLine(u.Err.Error(), entra.MaxText)
	}
	return s
}

// moment makes null of a time that never was, and drops what nobody reads: the monotonic clock and
// parts of a second.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.Round(0).UTC().Truncate(time.Second)
	return &t
}
