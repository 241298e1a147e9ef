package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/token/lease"
	"github.com/sendas/sendas/token/lease/replies"
)

const statusConfig = `tenant:
  id: contoso.onmicrosoft.com
  domains: [contoso.com, contoso.de]
  endpoints: {authority: "%s", ca_file: authority.pem}
credentials:
  relay-app: {client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab, client_secret_file: app.secret, secret_expires: 2126-05-31}
  spare: {client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab, client_secret_file: app.secret}
mailboxes:
  - {address: erp@contoso.com, credential: relay-app, limits: {messages: 5/m}}
  - {address: "*@contoso.de", credential: relay-app}
notices: erp@contoso.com
clients:
  - {name: all, networks: [10.0.0.0/8], from: erp@contoso.com}
milter: {http: "%s"}
token: {http: "%s"}
`

// listensAt is what a test server listens on.
func listensAt(s *httptest.Server) string { return s.Listener.Addr().String() }

// statusOf returns a command on a configuration with these services; "" is off. It writes to
// stdout.
func statusOf(t *testing.T, authority, milterAt, tokenAt string) (c *Command, stdout *bytes.Buffer) {
	t.Helper()
	off := func(s string) string {
		if s == "" {
			return "off"
		}
		return s
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "sendas.yaml")
	text := fmt.Sprintf(statusConfig, authority, off(milterAt), off(tokenAt))
	if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.WriteFile(filepath.Join(dir, "app.secret"), []byte("hunter2-the-secret\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path, config.SkipFiles)
	if err != nil {
		t.Fatal(err)
	}
	stdout = &bytes.Buffer{}
	return &Command{Stdout: stdout, Config: cfg, Every: time.Millisecond, Client: http.DefaultClient}, stdout
}

// healthy is a milter that is up, and says no more.
func healthy(t *testing.T) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprintln(w, "ok")
	}))
	t.Cleanup(s.Close)
	return s
}

// dead returns an address where nobody answers: a port that is taken, and not listened on.
func dead(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	a, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", a.(*unix.SockaddrInet4).Port)
}

// answering returns the address of a service that answers this to everything.
func answering(t *testing.T, status int, body string) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status); io.WriteString(w, body) }))
	t.Cleanup(s.Close)
	return listensAt(s)
}

const smallStatus = `{
  "version": "9.9.9", "future": {"b": 1, "a": [ ]},
  "time": "2026-11-21T08:00:00Z",
  "credentials": [],
  "mailboxes": []
}
`

// observingStatus is of a milter that only looks.
const observingStatus = `{"version": "9.9.9", "time": "2026-11-21T08:00:00Z", "mode": "observe", "clients": [], "unknown": {"messages": {"reject": 2}}}`

func TestStatusDown(t *testing.T) {
	up := listensAt(healthy(t))
	for _, tc := range []struct {
		name          string
		milter, token string
		code          int
		stdout, err   string
	}{
		{"all is well", up, answering(t, 200, smallStatus), 0, "token service  up, version 9.9.9, at ", ""},
		{"the token service", up, dead(t), exit.TempFail, "token service  DOWN at 127.0.0.1:", "the token service is down at"},
		{"the milter", dead(t), answering(t, 200, smallStatus), exit.TempFail, "milter         DOWN at 127.0.0.1:", "the milter is down at"},
		{"both", dead(t), dead(t), exit.TempFail, "connection refused", "both services are down"},
		{"not this service", up, answering(t, 200, "<html>"), exit.TempFail, "DOWN", "not the token service of this version"},
		{"JSON, but another's", up, answering(t, 200, "{}"), exit.TempFail, "DOWN", "not the token service of this version"},
		{"an older one", up, answering(t, 404, "404 page not found"), exit.TempFail, "DOWN", "HTTP status 404"},
		{"the milter's HTTP off", "", answering(t, 200, smallStatus), 0, "milter         not known: milter.http is off", ""},
		{"a milter that only looks", answering(t, 200, observingStatus), dead(t), 0, "mode           observes: nothing is changed or refused; ", ""},
		{"no token service for it", answering(t, 200, observingStatus), dead(t), 0, "token service  not needed while the milter observes (at 127.0.0.1:", ""},
		{"HTTP off", up, "", exit.Config, "", "token.http is off"},
	} {
		c, stdout := statusOf(t, "https://login.microsoftonline.com", tc.milter, tc.token)
		err := c.Run(t.Context())
		code := 0
		if e, ok := errors.AsType[*exit.Error](err); ok {
			code = e.Code
		}
		if code != tc.code || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: %v with exit code %d, want %q with %d", tc.name, err, code, tc.err, tc.code)
		}
		if !strings.Contains(stdout.String(), tc.stdout) {
			t.Errorf("%s: no %q in %s", tc.name, tc.stdout, stdout)
		}
	}
}

func TestStatusJSON(t *testing.T) {
	up := listensAt(healthy(t))
	gone := dead(t)
	for _, tc := range []struct {
		name          string
		milter, token string
		want          string
	}{
		{"as it came", up, answering(t, 200, smallStatus), `{
  "version": "9.9.9", "future": {"b": 1, "a": [ ]},
  "time": "2026-11-21T08:00:00Z",
  "credentials": [],
  "mailboxes": [],
  "milter": {
    "up": true,
    "error": null
  }
}
`},
		{"HTTP off", "", answering(t, 200, `{"version":"1","credentials":[]}`), `{"version":"1","credentials":[],
  "milter": {
    "up": null,
    "error": null
  }
}
`},
		{"token service down", up, gone, `{
  "milter": {
    "up": true,
    "error": null
  },
  "token": {
    "up": false,
    "error": "connect: connection refused"
  }
}
`},
	} {
		c, stdout := statusOf(t, "https://login.microsoftonline.com", tc.milter, tc.token)
		c.Json = true
		c.Run(t.Context()) // its error: TestStatusDown
		if got := stdout.String(); got != tc.want || !json.Valid(stdout.Bytes()) {
			t.Errorf("%s: %s\nwant %s", tc.name, got, tc.want)
		}
	}
}

// until ends a context with the last of so many frames.
type until struct {
	b      bytes.Buffer // not embedded: its WriteString would go past Write
	frames int
	cancel context.CancelFunc
}

func (u *until) Write(p []byte) (int, error) {
	if u.frames--; u.frames == 0 {
		u.cancel()
	}
	return u.b.Write(p)
}

func TestStatusWatch(t *testing.T) {
	c, _ := statusOf(t, "https://login.microsoftonline.com", dead(t), answering(t, 200, smallStatus))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &until{frames: 3, cancel: cancel}
	c.Watch, c.Stdout = true, out
	if err := c.Run(ctx); err != nil {
		t.Errorf("ended by Ctrl-C: %v", err)
	}
	if s := out.b.String(); strings.Count(s, "token service  up") != 3 || strings.Count(s, "DOWN") != 3 || strings.Contains(s, "\x1b") {
		t.Errorf("three frames, not on a terminal: %q", s)
	}
}

// TestStatusForgery: somebody else listens where the service should, and speaks to the terminal.
func TestStatusForgery(t *testing.T) {
	bad := `"\u001b]0;pwned\u0007\u202e\u009b2J"`
	c, stdout := statusOf(t, "https://login.microsoftonline.com", listensAt(healthy(t)), answering(t, 200, fmt.Sprintf(`{"version": %s, "ledger_error": %s,
		"credentials": [{"name": %s, "flow": %s, "in_use": true, "refresh": {"result": %s, "error": {"text": %s, "hint": %s}}, "proof": {"kind": %s}, "sign_in": {"error": %s}}],
		"mailboxes": [{"mailbox": %s, "last_verdict": {"class": %s, "code": %s, "meaning": %s}}]}`, bad, bad, bad, bad, bad, bad, bad, bad, bad, bad, bad, bad, bad)))
	if err := c.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := stdout.String(); strings.ContainsAny(s, "\x1b\a\u202e\u009b\x00") || strings.Count(s, "pwned") < 10 {
		t.Errorf("%q", s)
	}
}

func TestWhenWords(t *testing.T) {
	now := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		d    time.Duration
		want string
	}{
		{0, "now"}, {999 * time.Millisecond, "now"}, {-time.Second, "1 s ago"}, {43 * time.Minute, "in 43 min"}, {119 * time.Second, "in 119 s"},
		{-2 * time.Minute, "2 min ago"}, {119*time.Minute + 59*time.Second, "in 119 min"}, {2*time.Hour + 5*time.Minute, "in 2 h 5 min"},
		{47*time.Hour + 59*time.Minute, "in 47 h 59 min"}, {-48 * time.Hour, "2 days ago"}, {90 * 24 * time.Hour, "in 90 days"},
	} {
		at := now.Add(tc.d)
		if got := whenWords(&at, now); got != tc.want {
			t.Errorf("%v: %q, want %q", tc.d, got, tc.want)
		}
	}
	if got := whenWords(nil, now); got != "never" {
		t.Errorf("nil: %q", got)
	}
}

func TestCredentialWords(t *testing.T) {
	now := time.Date(2026, 11, 21, 8, 0, 0, 0, time.Local)
	ended := time.Date(2026, 11, 19, 23, 59, 59, 0, time.UTC)
	at := func(d time.Duration) *time.Time { t := now.Add(d); return &t }
	for _, tc := range []struct {
		name string
		in   lease.CredentialStatus
		want string
	}{
		{"never had a token", lease.CredentialStatus{Name: "scan", Flow: "device_code", InUse: true,
			Refresh: lease.RefreshStatus{NextAttempt: at(0)}, SignIn: &lease.SignInStatus{MaxDays: 90}},
			"\ncredential scan (device_code)\n  token         none; mail waits in the queue\n  last refresh  none yet\n  next refresh  now\n" +
				"  signed in     nobody; type \"sendas login scan\"\n"},
		{"a refused refresh token", lease.CredentialStatus{Name: "scan", Flow: "device_code", InUse: true,
			Token: lease.TokenStatus{Received: at(-3 * time.Hour), Expires: at(-2 * time.Hour)},
			Refresh: lease.RefreshStatus{Result: "refused", LastAttempt: at(-time.Minute), NextAttempt: at(4 * time.Minute),
				Error: &lease.RefreshError{Code: "AADSTS700082", Text: `Microsoft refused the refresh token of "scan" (AADSTS700082)`, Hint: `the refresh token lay unused too long; sign in again with "sendas login scan"`}},
			SignIn: &lease.SignInStatus{User: "scan@contoso.com", Since: at(-100 * 24 * time.Hour), IdleDays: 91, MaxDays: 90,
				Refused: &lease.Refusal{Code: "AADSTS700082", Meaning: "the refresh token lay unused too long"}}},
			"\ncredential scan (device_code)\n  token         none: the last one ended 2 h 0 min ago; mail waits in the queue\n  last refresh  refused by Microsoft, 60 s ago\n" +
				"                Microsoft refused the refresh token of \"scan\" (AADSTS700082)\n  next refresh  in 4 min\n  signed in     scan@contoso.com since 2026-08-13; REFUSED by Microsoft (AADSTS700082): the refresh token lay unused too long\n"},
		{"somebody has signed in just now", lease.CredentialStatus{Name: "scan", Flow: "device_code", InUse: true,
			Refresh: lease.RefreshStatus{LastAttempt: at(-10 * time.Second), NextAttempt: at(2 * time.Second)},
			SignIn:  &lease.SignInStatus{User: "scan@contoso.com", Since: at(-3 * time.Second), Renewed: at(-3 * time.Second), Ends: at(90*24*time.Hour - 3*time.Second), MaxDays: 90}},
			"\ncredential scan (device_code)\n  token         none; mail waits in the queue\n  last refresh  none yet since somebody signed in\n  next refresh  in 2 s\n" +
				"  signed in     scan@contoso.com since 2026-11-21; renewed 3 s ago, else it would end in 89 days\n"},
		{"used, and not renewed", lease.CredentialStatus{Name: "scan", Flow: "device_code", InUse: true, Token: lease.TokenStatus{Live: true, Received: at(-20 * time.Minute), Expires: at(50 * time.Minute)},
			Refresh: lease.RefreshStatus{Result: "ok", LastAttempt: at(-20 * time.Minute), NextAttempt: at(30 * time.Minute)},
			SignIn: &lease.SignInStatus{User: "scan@contoso.com", Since: at(-70 * 24 * time.Hour), Renewed: at(-70 * 24 * time.Hour), LastUsed: at(-20 * time.Minute), Ends: at(20 * 24 * time.Hour),
				IdleDays: 70, MaxDays: 90, Kept: true}},
			"\ncredential scan (device_code)\n  token         live, got 20 min ago, ends in 50 min\n  last refresh  succeeded, 20 min ago\n  next refresh  in 30 min\n" +
				"  signed in     scan@contoso.com since 2026-09-12; NOT RENEWED since 2026-09-12, though used 20 min ago: it ends in 20 days; see that the app registration has the delegated permission offline_access, " +
				"with consent, then type \"sendas login scan\"\n"},
		{"void, and the service was off", lease.CredentialStatus{Name: "scan", Flow: "device_code",
			SignIn: &lease.SignInStatus{User: "scan@contoso.com", Since: at(-100 * 24 * time.Hour), Renewed: at(-93 * 24 * time.Hour), Ends: at(-3 * 24 * time.Hour), IdleDays: 93, MaxDays: 90}},
			"\ncredential scan (device_code)\n  token         none: no mailbox uses this credential\n" +
				"  signed in     scan@contoso.com since 2026-08-13; VOID: its refresh token ended 3 days ago; type \"sendas login scan\"\n"},
		{"a secret that is good though its day is past", lease.CredentialStatus{Name: "app", Flow: "client_credentials", InUse: true, Token: lease.TokenStatus{Live: true, Received: at(-5 * time.Minute), Expires: at(55 * time.Minute)},
			Refresh: lease.RefreshStatus{Result: "ok", LastAttempt: at(-5 * time.Minute), LastSuccess: at(-5 * time.Minute), NextAttempt: at(40 * time.Minute)}, Proof: &lease.ProofStatus{Kind: "secret", Ends: &ended}},
			"\ncredential app (client_credentials)\n  token         live, got 5 min ago, ends in 55 min\n  last refresh  succeeded, 5 min ago\n  next refresh  in 40 min\n" +
				"  secret        ended on 2026-11-19, says secret_expires, but Microsoft took it 5 min ago: write the end of the new one there\n"},
		{"a secret that is refused though its day is to come", lease.CredentialStatus{Name: "app", Flow: "client_credentials",
			Proof: &lease.ProofStatus{Kind: "secret", Ends: at(90 * 24 * time.Hour), Refused: &lease.Refusal{Code: "AADSTS7000222", Meaning: "the client secret has expired"}}},
			"\ncredential app (client_credentials)\n  token         none: no mailbox uses this credential\n  secret        REFUSED by Microsoft (AADSTS7000222): the client secret has expired\n"},
		{"a stale token of another issuer", lease.CredentialStatus{Name: "pod", Flow: "federated", Proof: &lease.ProofStatus{Kind: "federated_token", Ends: at(-2 * time.Hour)}},
			"\ncredential pod (federated)\n  token         none: no mailbox uses this credential\n  proof         STALE: the other issuer's token ended 2 h 0 min ago\n"},
		{"a fresh token of another issuer", lease.CredentialStatus{Name: "pod", Flow: "federated", Proof: &lease.ProofStatus{Kind: "federated_token", Ends: at(40 * time.Minute)}},
			"\ncredential pod (federated)\n  token         none: no mailbox uses this credential\n  proof         a token of another issuer, who renews it; it ends in 40 min\n"},
		{"a wrong clock", lease.CredentialStatus{Name: "app", Flow: "managed_identity", Skew: -3600},
			"\ncredential app (managed_identity)\n  token         none: no mailbox uses this credential\n  clock         60 min behind Entra's: \"timedatectl\" shows it\n"},
		{"an ended certificate", lease.CredentialStatus{Name: "app", Flow: "client_credentials", Proof: &lease.ProofStatus{Kind: "certificate", Ends: &ended}},
			"\ncredential app (client_credentials)\n  token         none: no mailbox uses this credential\n  certificate   ENDED on 2026-11-19\n"},
		{"a federated one", lease.CredentialStatus{Name: "pod", Flow: "federated", Proof: &lease.ProofStatus{Kind: "federated_token"}},
			"\ncredential pod (federated)\n  token         none: no mailbox uses this credential\n  proof         a token of another issuer, who renews it\n"},
	} {
		var b strings.Builder
		writeCredential(&b, &tc.in, now)
		if got := b.String(); got != tc.want {
			t.Errorf("%s:\n%s\nwant\n%s", tc.name, got, tc.want)
		}
	}
}

func TestMailboxWords(t *testing.T) {
	now := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	at := func(d time.Duration) *time.Time { t := now.Add(d); return &t }
	usage := func(used, n int, window float64) *lease.UsageStatus {
		return &lease.UsageStatus{Used: used, Left: max(0, n-used), Limit: n, Window: window}
	}
	broken := "connection refused"
	var b strings.Builder
	writeMailboxes(&b, &lease.Status{Time: now, LedgerError: &broken, Mailboxes: []lease.MailboxStatus{
		{Mailbox: "erp@contoso.com", Credential: "app", Leases: 2, Connections: 3, InForce: 2, Waiting: 4, Next: at(2 * time.Second),
			Messages: usage(30, 30, 60), Recipients: usage(512, 10000, 86400), LastVerdict: &lease.Verdict{Class: replies.Accepted, Code: "250", Time: now.Add(-3 * time.Second)}},
		{Mailbox: "scan@contoso.com", Credential: "app", Connections: 3, InForce: 3, Next: at(time.Hour), PausedUntil: at(time.Hour), PauseReason: "its recipients are used up",
			LastVerdict: &lease.Verdict{Class: replies.Quota, Code: "554", Meaning: "its mail waits", Time: now}},
		{Mailbox: "erp2@contoso.com", Credential: "app", Connections: 3, InForce: 3, LastVerdict: &lease.Verdict{Class: replies.Busy, Code: "451", Meaning: "Microsoft has trouble", Time: now}},
	}}, map[string]string{"scan@contoso.com": hot})
	want := `
mailbox           credential  leases          waiting         messages            recipients                   last verdict
erp@contoso.com   app         2 of 2 (not 3)  4, next in 2 s  30 of 30/m, 0 left  512 of 10,000/d, 9,488 left  accepted (250), 3 s ago
scan@contoso.com  app         0 of 3          0               not known           not known                    quota (554), now
erp2@contoso.com  app         0 of 3          0               not known           not known                    service (451), now
erp2@contoso.com: service: Microsoft has trouble
`
	if got := b.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestDialable(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"127.0.0.1:9726", "127.0.0.1:9726"}, {":9726", "localhost:9726"}, {"0.0.0.0:9726", "localhost:9726"}, {"[::]:9726", "localhost:9726"},
		{"[::1]:9726", "[::1]:9726"}, {"relay.contoso.com:9726", "relay.contoso.com:9726"},
	} {
		if got := service.Dialable(tc.in); got != tc.want {
			t.Errorf("dialable(%q) = %q, want %q", tc.in, got, tc.want)
		}
	}
}

// TestUnseenWords: that Postfix shows no replies is said in the text, in the picture and on the
// page, as long as it is so.
func TestUnseenWords(t *testing.T) {
	for _, tc := range []struct {
		now  bool
		want string // "" for nothing
	}{{true, "replies are NOT SHOWN: 12 leases, the last 3 s ago, count as sent with 50 recipients each;"}, {false, ""}} {
		v := fictitious()
		v.token.RepliesUnseen = &lease.UnseenStatus{Now: tc.now, Leases: 12, Recipients: 50, Last: v.token.Time.Add(-3 * time.Second)}
		var needs []string
		for _, n := range v.pageOf(false).Needs {
			needs = append(needs, n.What)
		}
		for what, text := range map[string]string{"text": v.text(), "picture": strings.Join(v.draw(canvas{cols: 140, rows: 90}), "\n"), "page": strings.Join(needs, "\n")} {
			if tc.want != "" && !strings.Contains(text, tc.want) || tc.want == "" && strings.Contains(text, "NOT SHOWN") {
				t.Errorf("%s: no %q in\n%s", what, tc.want, text)
			}
		}
		if raw, err := json.Marshal(v.token); err != nil || !strings.Contains(string(raw), fmt.Sprintf(`"replies_unseen":{"now":%v,"leases":12,"recipients":50,"last":`, tc.now)) {
			t.Errorf("JSON: %v %s", err, raw)
		}
	}
}
