package status

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/milter"
	"github.com/sendas/sendas/milter/queue"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/token/lease"
	"github.com/sendas/sendas/token/lease/replies"
	"github.com/sendas/sendas/token/ledger"
)

// TestPlugin: each trouble has its state, the worst comes first, and the line is one that every
// monitoring system can take apart.
func TestPlugin(t *testing.T) {
	now := time.Date(2026, 11, 21, 13, 7, 2, 0, time.UTC)
	at := func(d time.Duration) *time.Time { t := now.Add(d); return &t }
	broken := "connection | refused"
	const (
		day    = 24 * time.Hour
		held   = "1 thing needs you: mail is held up. "
		leaves = "1 thing needs you; mail leaves. "
	)
	for _, tc := range []struct {
		name   string
		change func(w *view, app *lease.CredentialStatus, erp *lease.MailboxStatus)
		state  int
		want   string // how the text begins
		figure string // a part of the figures
	}{
		{"well", func(*view, *lease.CredentialStatus, *lease.MailboxStatus) {}, stateOK, "All mail leaves: 2 mailboxes, 1 credential, 4 look-ups waiting", "'waiting'=4;;;0 'leases'=1;;;0 'paused'=0;;;0;2 'token app'=2400s;600:;1:;0 'recipients erp@contoso.com'=100;8000;10000;0;10000 'queued'=0;;;0 'accepted'=5c;;;0"},
		{"token service down", func(w *view, _ *lease.CredentialStatus, _ *lease.MailboxStatus) {
			w.token, w.tokenErr = nil, errors.New("connection refused")
		}, stateCritical, held + "The token service is down at 127.0.0.1:9726: connection refused", "'accepted'=5c"},
		{"milter down", func(w *view, _ *lease.CredentialStatus, _ *lease.MailboxStatus) {
			w.milter, w.milterErr = nil, errors.New("connection refused")
		}, stateCritical, held + "The milter is down at 127.0.0.1:9725: connection refused", "'waiting'=4"},
		{"no token", func(_ *view, app *lease.CredentialStatus, _ *lease.MailboxStatus) {
			app.Token.Live, app.Refresh.Error = false, &lease.RefreshError{Code: "AADSTS7000222", Text: "x"}
		}, stateCritical, held + "Credential app has no token (AADSTS7000222)", "'token app'=0s;600:;1:;0"},
		{"no new token", func(_ *view, app *lease.CredentialStatus, _ *lease.MailboxStatus) {
			app.Refresh.Error = &lease.RefreshError{Text: "gave no answer"}
		}, stateWarning, leaves + "Credential app gets no new token (gave no answer); with the one it has mail leaves until ", "'token app'=2400s"},
		{"a certificate ends", func(_ *view, app *lease.CredentialStatus, _ *lease.MailboxStatus) {
			app.Proof = &lease.ProofStatus{Kind: "certificate", Ends: at(20 * day)}
		}, stateWarning, leaves + "Credential app: certificate ends on 2026-12-11, in 20 days", ""},
		{"a certificate has ended", func(_ *view, app *lease.CredentialStatus, _ *lease.MailboxStatus) {
			app.Proof = &lease.ProofStatus{Kind: "certificate", Ends: at(-day)}
		}, stateCritical, leaves + "Credential app: certificate ENDED on 2026-11-20", ""},
		{"a certificate has ended, and with it the token", func(_ *view, app *lease.CredentialStatus, _ *lease.MailboxStatus) {
			app.Token.Live, app.Refresh.Error, app.Proof = false, &lease.RefreshError{Code: "AADSTS700027", Hint: "x"}, &lease.ProofStatus{Kind: "certificate", Ends: at(-day)}
		}, stateCritical, held + "Credential app has no token (AADSTS700027), and the mail of its mailboxes waits: certificate ENDED on 2026-11-20", "'token app'=0s"},
		{"a secret that is newer than its date", func(_ *view, app *lease.CredentialStatus, _ *lease.MailboxStatus) {
			app.Proof, app.Refresh.LastSuccess = &lease.ProofStatus{Kind: "secret", Ends: at(-day)}, at(-time.Minute)
		}, stateWarning, leaves + "Credential app: secret ended on 2026-11-20, says secret_expires, but", ""},
		{"a sign-in that is not renewed", func(_ *view, app *lease.CredentialStatus, _ *lease.MailboxStatus) {
			app.SignIn = &lease.SignInStatus{User: "u", Since: at(-day), Renewed: at(-day), LastUsed: at(0), Ends: at(89 * day), MaxDays: 90, Kept: true}
		}, stateWarning, leaves + "Credential app: u since 2026-11-20; NOT RENEWED", ""},
		{"not in use", func(_ *view, app *lease.CredentialStatus, _ *lease.MailboxStatus) {
			app.InUse, app.Token.Live, app.Proof = false, false, &lease.ProofStatus{Kind: "certificate", Ends: at(-day)}
		}, stateOK, "All mail leaves: 2 mailboxes", ""},
		{"a mailbox rests", func(_ *view, _ *lease.CredentialStatus, erp *lease.MailboxStatus) {
			erp.PausedUntil, erp.PauseClass, erp.PauseReason = at(time.Minute), ledger.PauseQuota, "quota\nused up"
		}, stateWarning, held + "erp@contoso.com rests until ", "'paused'=1;;;0;2"},
		{"all mailboxes rest", func(w *view, _ *lease.CredentialStatus, _ *lease.MailboxStatus) {
			for i := range w.token.Mailboxes {
				w.token.Mailboxes[i].PausedUntil, w.token.Mailboxes[i].PauseClass = at(time.Minute), ledger.PauseQuota
			}
		}, stateWarning, held + "erp@contoso.com and *@contoso.de rest until ", "'paused'=2;;;0;2"},
		{"recipients nearly used up", func(_ *view, _ *lease.CredentialStatus, erp *lease.MailboxStatus) {
			erp.Recipients.Used, erp.Recipients.Left = 8000, 2000
		}, stateWarning, leaves + "erp@contoso.com has used 8,000 of 10,000 recipients, 2,000 left", "'recipients erp@contoso.com'=8000;8000;10000;0;10000"},
		{"denied", func(_ *view, _ *lease.CredentialStatus, erp *lease.MailboxStatus) {
			erp.Denied = []lease.Denial{{Sender: "ceo@contoso.com", Count: 1}}
		}, stateWarning, leaves + "erp@contoso.com may not send as ceo@contoso.com", ""},
		{"the ledger is away", func(w *view, _ *lease.CredentialStatus, _ *lease.MailboxStatus) { w.token.LedgerError = &broken }, stateCritical, held + "What the mailboxes have sent is not known, so their mail waits: connection _ refused", ""},
		{"the port is closed", func(w *view, _ *lease.CredentialStatus, _ *lease.MailboxStatus) {
			w.milter.Queue.Stalls = []queue.PlaceStatus{{Mailbox: "erp@contoso.com", Reason: queue.ReasonConnect, Messages: 12000, Oldest: at(-time.Minute)}}
		}, stateCritical, held + "No mail leaves through erp@contoso.com: no connection to Microsoft; 12,000 messages wait, the oldest came in 60 s ago", ""},
		{"Postfix is stopped", func(w *view, _ *lease.CredentialStatus, _ *lease.MailboxStatus) {
			w.milter.Queue = &queue.Status{Cause: queue.CauseStopped, Error: "connection refused"}
		}, stateCritical, held + "Postfix is not running", ""},
		{"the queue's disk is full", func(w *view, _ *lease.CredentialStatus, _ *lease.MailboxStatus) {
			w.milter.Queue.Free = new(int64)
		}, stateCritical, held + "The disk of Postfix's queue is full: 0 MB are free", ""},
		{"the queue was not read", func(w *view, _ *lease.CredentialStatus, _ *lease.MailboxStatus) { w.milter.Queue = nil }, stateUnknown,
			"It is not known whether all mail leaves: not known is what waits in Postfix's queue (it was not read yet).", "'accepted'=5c"},
		{"the queue was read long ago", func(w *view, _ *lease.CredentialStatus, _ *lease.MailboxStatus) {
			w.milter.Queue.ReadAt = now.Add(-time.Hour)
		}, stateUnknown,
			"It is not known whether all mail leaves: not known is what waits in Postfix's queue (it was last read 60 min ago).", ""},
		{"the queue cannot be read", func(w *view, _ *lease.CredentialStatus, _ *lease.MailboxStatus) {
			w.milter.Queue = &queue.Status{Cause: queue.CausePermission, Error: "permission denied"}
		}, stateWarning, "1 thing needs you. Not known is what waits in Postfix's queue. Postfix's queue cannot be read: permission denied", ""},
		{"a token that nobody has asked for", func(_ *view, app *lease.CredentialStatus, _ *lease.MailboxStatus) { app.Token.Live = false }, stateUnknown,
			"It is not known whether all mail leaves: not known is whether credential app gets a token.", ""},
		{"Microsoft refuses the mailbox between two rests", func(_ *view, _ *lease.CredentialStatus, erp *lease.MailboxStatus) {
			erp.LastVerdict = &lease.Verdict{Class: replies.AuthOff, Code: "535", Of: replies.OfMailbox, Meaning: "SMTP AUTH is off", Time: now}
		}, stateCritical, held + "Exchange Online refuses erp@contoso.com (auth-disabled), and its mail waits", ""},
		{"a full minute", func(_ *view, _ *lease.CredentialStatus, erp *lease.MailboxStatus) {
			erp.Messages = &lease.UsageStatus{Used: 30, Limit: 30, Window: 60}
		}, stateOK, "All mail leaves", ""},
		{"a known client is refused", func(w *view, _ *lease.CredentialStatus, _ *lease.MailboxStatus) {
			w.milter.Refused = []milter.Refusal{{Addr: "10.0.0.1", Client: "a", Action: policy.Reject, Reason: policy.ReasonMayNotAsk, Count: 3, Last: now, Answer: "no"}, {Addr: "10.9.9.9", Action: policy.Reject, Count: 900, Last: now}}
		}, stateWarning, leaves + "Mail of client a is refused (10.0.0.1, 3 messages, the last now): no", ""},
		{"an old configuration", func(w *view, _ *lease.CredentialStatus, _ *lease.MailboxStatus) { w.token.Config.OK = false }, stateWarning, leaves + "The new configuration is wrong", ""},
		{"half of a new configuration", func(w *view, _ *lease.CredentialStatus, _ *lease.MailboxStatus) {
			w.milter.Config.NeedsRestart = []string{"milter.listen"}
		}, stateWarning, leaves + "Of the configuration of the milter, changed and in force after a restart only: milter.listen", ""},
		{"a milter that only looks", func(w *view, _ *lease.CredentialStatus, _ *lease.MailboxStatus) {
			w.milter.Mode, w.token, w.tokenErr = policy.Observe, nil, errors.New("connection refused")
		}, stateOK, "Sendas only looks, and nothing is changed or refused.", "'accepted'=5c"},
		{"the worst first", func(w *view, app *lease.CredentialStatus, _ *lease.MailboxStatus) {
			w.token.Config.OK, w.milter.Config.OK, w.token.Stopping, app.Token.Live, app.Refresh.LastAttempt = false, false, true, false, at(0)
		}, stateCritical, "3 things need you: mail is held up. Credential app has no token, and the mail of its mailboxes waits; The token service is stopping: it gives no more leases, and mail waits in Postfix's queue; The new configuration is wrong", "'token app'=0s"},
	} {
		w := &view{time: now, tokenAt: "127.0.0.1:9726", milterAt: "127.0.0.1:9725",
			token: &tokenReport{&lease.Status{Time: now,
				Credentials: []lease.CredentialStatus{{Name: "app", InUse: true, Token: lease.TokenStatus{Live: true, Expires: at(40 * time.Minute)}, Refresh: lease.RefreshStatus{Result: "ok"}}},
				Mailboxes:   []lease.MailboxStatus{{Mailbox: "erp@contoso.com", Waiting: 3, Leases: 1, Recipients: &lease.UsageStatus{Used: 100, Left: 9900, Limit: 10000, Window: 86400}}, {Mailbox: "*@contoso.de", Pattern: true, Waiting: 1}}},
				&service.Config{LoadedAt: now, OK: true}},
			milter: &milterReport{&milter.Status{Time: now, Queue: &queue.Status{Readable: true, ReadAt: now, Messages: new(int)}, Clients: []milter.ClientStatus{{Client: "a", Counts: milter.Counts{Messages: map[policy.Action]uint64{policy.Accept: 2}}},
				{Client: "b", Counts: milter.Counts{Messages: map[policy.Action]uint64{policy.Accept: 3}}}}}, &service.Config{LoadedAt: now, OK: true}}}
		tc.change(w, &w.token0().Credentials[0], &w.token0().Mailboxes[0])
		v := &verdict{judgement: w.judged()}
		line := v.line(v.figuresOf(w))
		text, figures, _ := strings.Cut(line, " | ")
		if v.state() != tc.state || !strings.HasPrefix(text, "SENDAS "+stateNames[tc.state]+" - "+tc.want) || !strings.Contains(figures, tc.figure) || strings.Count(line, "\n") != 1 || strings.Contains(figures, "|") {
			t.Errorf("%s: %d, %swant %d, %q and %q", tc.name, v.state(), line, tc.state, tc.want, tc.figure)
		}
	}
}

// token0 is the token service's status before a test changes it.
func (v *view) token0() *lease.Status { return v.token.Status }

// TestPluginExit: the command says one line, and its error nothing.
func TestPluginExit(t *testing.T) {
	for _, tc := range []struct {
		name, tokenAt string
		configErr     error
		code          int
		want          string
	}{
		{"nobody answers", "127.0.0.1:1", nil, stateCritical, "SENDAS CRITICAL - 1 thing needs you: mail is held up. Not known is what comes in and what waits (milter.http is off). The token service is down at 127.0.0.1:1: "},
		{"nobody can be asked", "", nil, stateUnknown, "SENDAS UNKNOWN - It is not known whether all mail leaves: not known is what leaves (token.http is off), and what comes in"},
		{"the file is wrong", "127.0.0.1:1", errors.New("x"), stateCritical, "SENDAS CRITICAL - 2 things need you: mail is held up."},
	} {
		var out bytes.Buffer
		c := &Command{Stdout: &out, Check: true, Client: service.NewLocalClient(), ConfigErr: tc.configErr, Config: &config.Site{Token: config.Token{HTTP: tc.tokenAt}}}
		err := c.Run(t.Context())
		var told bytes.Buffer
		if code := exit.Tell(&told, err); code != tc.code || told.Len() > 0 || !strings.HasPrefix(out.String(), tc.want) || (tc.configErr != nil) != strings.Contains(out.String(), "The configuration file is wrong") {
			t.Errorf("%s: code %d, told %q, line %s", tc.name, code, &told, &out)
		}
	}
}
