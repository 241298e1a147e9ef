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
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/token/lease"
)

// TestPlugin: each trouble has its state, the worst comes first, and the line is one that every
// monitoring system can take apart.
func TestPlugin(t *testing.T) {
	now := time.Date(2026, 11, 21, 13, 7, 2, 0, time.UTC)
	at := func(d time.Duration) *time.Time { t := now.Add(d); return &t }
	broken := "connection | refused"
	const day = 24 * time.Hour
	for _, tc := range []struct {
		name   string
		change func(w *view, app *lease.CredentialStatus, erp *lease.MailboxStatus)
		state  int
		want   string // how the text begins
		figure string // a part of the figures
	}{
		{"well", func(*view, *lease.CredentialStatus, *lease.MailboxStatus) {}, stateOK, "2 mailboxes, 1 credential, 4 look-ups waiting", "'waiting'=4;;;0 'leases'=1;;;0 'paused'=0;;;0;2 'recipients erp@contoso.com'=100;8000;10000;0;10000 'accepted'=5c;;;0"},
		{"token service down", func(w *view, _ *lease.CredentialStatus, _ *lease.MailboxStatus) {
			w.token, w.tokenErr = nil, errors.New("connection refused")
		}, stateCritical, "the token service is down at 127.0.0.1:9726: connection refused", "'accepted'=5c"},
		{"milter down", func(w *view, _ *lease.CredentialStatus, _ *lease.MailboxStatus) {
			w.milter, w.milterErr = nil, errors.New("connection refused")
		}, stateCritical, "the milter is down at 127.0.0.1:9725: connection refused", "'waiting'=4"},
		{"no token", func(_ *view, app *lease.CredentialStatus, _ *lease.MailboxStatus) {
			app.Token.Live, app.Refresh.Error = false, &lease.RefreshError{Code: "AADSTS7000222", Text: "x"}
		}, stateCritical, "credential app has no token (AADSTS7000222)", "'token app'=0s;600:;1:;0"},
		{"no new token", func(_ *view, app *lease.CredentialStatus, _ *lease.MailboxStatus) {
			app.Refresh.Error = &lease.RefreshError{Text: "gave no answer"}
		}, stateWarning, "credential app gets no new token (gave no answer)", "'token app'=2400s"},
		{"a certificate ends", func(_ *view, app *lease.CredentialStatus, _ *lease.MailboxStatus) {
			app.Proof = &lease.ProofStatus{Kind: "certificate", Ends: at(20 * day)}
		}, stateWarning, "credential app: certificate ends on 2026-12-11, in 20 days", ""},
		{"a certificate has ended", func(_ *view, app *lease.CredentialStatus, _ *lease.MailboxStatus) {
			app.Proof = &lease.ProofStatus{Kind: "certificate", Ends: at(-day)}
		}, stateCritical, "credential app: certificate ENDED on 2026-11-20", ""},
		{"a secret that is newer than its date", func(_ *view, app *lease.CredentialStatus, _ *lease.MailboxStatus) {
			app.Proof, app.Refresh.LastSuccess = &lease.ProofStatus{Kind: "secret", Ends: at(-day)}, at(-time.Minute)
		}, stateWarning, "credential app: secret ended on 2026-11-20, says secret_expires, but", ""},
		{"a sign-in that is not renewed", func(_ *view, app *lease.CredentialStatus, _ *lease.MailboxStatus) {
			app.SignIn = &lease.SignInStatus{User: "u", Since: at(-day), Renewed: at(-day), LastUsed: at(0), Ends: at(89 * day), MaxDays: 90, Kept: true}
		}, stateWarning, "credential app: u since 2026-11-20; NOT RENEWED", ""},
		{"not in use", func(_ *view, app *lease.CredentialStatus, _ *lease.MailboxStatus) {
			app.InUse, app.Token.Live, app.Proof = false, false, &lease.ProofStatus{Kind: "certificate", Ends: at(-day)}
		}, stateOK, "2 mailboxes", ""},
		{"a mailbox rests", func(_ *view, _ *lease.CredentialStatus, erp *lease.MailboxStatus) {
			erp.PausedUntil, erp.PauseReason = at(time.Minute), "quota\nused up"
		}, stateWarning, "erp@contoso.com is paused until ", "'paused'=1;;;0;2"},
		{"all mailboxes rest", func(w *view, _ *lease.CredentialStatus, _ *lease.MailboxStatus) {
			for i := range w.token.Mailboxes {
				w.token.Mailboxes[i].PausedUntil = at(time.Minute)
			}
		}, stateCritical, "no mail leaves: all mailboxes are paused; ", "'paused'=2;;;0;2"},
		{"recipients nearly used up", func(_ *view, _ *lease.CredentialStatus, erp *lease.MailboxStatus) {
			erp.Recipients.Used = 8000
		}, stateWarning, "erp@contoso.com has used 8000 of 10000 recipients", "'recipients erp@contoso.com'=8000;8000;10000;0;10000"},
		{"denied", func(_ *view, _ *lease.CredentialStatus, erp *lease.MailboxStatus) {
			erp.Denied = []lease.Denial{{Sender: "ceo@contoso.com", Count: 1}}
		}, stateWarning, "erp@contoso.com may not send as ceo@contoso.com", ""},
		{"the ledger is away", func(w *view, _ *lease.CredentialStatus, _ *lease.MailboxStatus) { w.token.LedgerError = &broken }, stateCritical, "what was used is not known: connection _ refused", ""},
		{"an old configuration", func(w *view, _ *lease.CredentialStatus, _ *lease.MailboxStatus) { w.token.Config.OK = false }, stateWarning, "token service: the new configuration is wrong", ""},
		{"half of a new configuration", func(w *view, _ *lease.CredentialStatus, _ *lease.MailboxStatus) {
			w.milter.Config.NeedsRestart = []string{"milter.listen"}
		}, stateWarning, "milter: changed, and in force after a restart of the service only: milter.listen", ""},
		{"a milter that only looks", func(w *view, _ *lease.CredentialStatus, _ *lease.MailboxStatus) {
			w.milter.Mode, w.token, w.tokenErr = policy.Observe, nil, errors.New("connection refused")
		}, stateOK, "observes: nothing is changed or refused; ", "'accepted'=5c"},
		{"the worst first", func(w *view, app *lease.CredentialStatus, _ *lease.MailboxStatus) {
			w.token.Config.OK, w.milter.Config.OK, w.token.Stopping, app.Token.Live = false, false, true, false
		}, stateCritical, "credential app has no token; token service: the new configuration is wrong", "'token app'=0s"},
	} {
		w := &view{time: now, tokenAt: "127.0.0.1:9726", milterAt: "127.0.0.1:9725",
			token: &tokenReport{&lease.Status{Time: now,
				Credentials: []lease.CredentialStatus{{Name: "app", InUse: true, Token: lease.TokenStatus{Live: true, Expires: at(40 * time.Minute)}, Refresh: lease.RefreshStatus{Result: "ok"}}},
				Mailboxes:   []lease.MailboxStatus{{Mailbox: "erp@contoso.com", Waiting: 3, Leases: 1, Recipients: &lease.UsageStatus{Used: 100, Limit: 10000}}, {Mailbox: "*@contoso.de", Pattern: true, Waiting: 1}}},
				&service.Config{LoadedAt: now, OK: true}},
			milter: &milterReport{&milter.Status{Time: now, Clients: []milter.ClientStatus{{Client: "a", Counts: milter.Counts{Messages: map[policy.Action]uint64{policy.Accept: 2}}},
				{Client: "b", Counts: milter.Counts{Messages: map[policy.Action]uint64{policy.Accept: 3}}}}}, &service.Config{LoadedAt: now, OK: true}}}
		tc.change(w, &w.token0().Credentials[0], &w.token0().Mailboxes[0])
		var v verdict
		line := v.line(v.judge(w))
		text, figures, _ := strings.Cut(line, " | ")
		if v.state != tc.state || !strings.HasPrefix(text, "SENDAS "+stateNames[tc.state]+" - "+tc.want) || !strings.Contains(figures, tc.figure) || strings.Count(line, "\n") != 1 || strings.Contains(figures, "|") {
			t.Errorf("%s: %d, %swant %d, %q and %q", tc.name, v.state, line, tc.state, tc.want, tc.figure)
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
		{"nobody answers", "127.0.0.1:1", nil, stateCritical, "SENDAS CRITICAL - the token service is down at 127.0.0.1:1: "},
		{"nobody can be asked", "", nil, stateUnknown, "SENDAS UNKNOWN - token.http is off"},
		{"the file is wrong", "127.0.0.1:1", errors.New("x"), stateCritical, "SENDAS CRITICAL - the token service is down"},
	} {
		var out bytes.Buffer
		c := &Command{Stdout: &out, Check: true, Client: service.NewLocalClient(), ConfigErr: tc.configErr, Config: &config.Site{Token: config.Token{HTTP: tc.tokenAt}}}
		err := c.Run(t.Context())
		var told bytes.Buffer
		if code := exit.Tell(&told, err); code != tc.code || told.Len() > 0 || !strings.HasPrefix(out.String(), tc.want) || (tc.configErr != nil) != strings.Contains(out.String(), "the configuration file is wrong") {
			t.Errorf("%s: code %d, told %q, line %s", tc.name, code, &told, &out)
		}
	}
}
