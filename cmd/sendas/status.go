package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token"
)

// The service's side.

// started is when the process began, for status.
var started = time.Now()

// statusTime bounds an answer: the ledger may be on another host.
const statusTime = 5 * time.Second

// statusHandler serves what the function returns, as JSON.
func statusHandler(status func(context.Context) *token.Status) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), statusTime)
		defer cancel()
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		e.Encode(status(ctx)) // an error is the reader's: it has gone
	})
}

// status describes the token service.
func (d *credentialDesk) status(ctx context.Context) *token.Status {
	d.mu.Lock()
	c, running := d.config, maps.Clone(d.running)
	d.mu.Unlock()
	in := token.StatusInput{Version: version, Started: started}
	for _, name := range slices.Sorted(maps.Keys(c.Credentials)) {
		cc := c.Credentials[name]
		x := token.CredentialInput{Name: name, Flow: cc.Flow}
		if r := running[name]; r != nil {
			s := r.refresher.State()
			x.State = &s
		}
		x.Proof, x.ProofEnds = cc.proof()
		if cc.Delegated() {
			x.SignIn = signedIn(newVault(c), name)
		}
		in.Credentials = append(in.Credentials, x)
	}
	for _, m := range c.Mailboxes {
		in.Mailboxes = append(in.Mailboxes, token.MailboxInput{Label: m.Address, Pattern: strings.HasPrefix(m.Address, "*@"),
			Credential: m.Credential, Limits: m.Limits.Limits()})
	}
	return d.leases.Status(ctx, in)
}

// What proves to Entra who we are: the values of proof.kind.
const (
	proofCertificate = "certificate"
	proofSecret      = "secret"
	proofFederated   = "federated_token"
)

// proof names what proves to Entra who we are, and its end if that is known.
func (c *CredentialConfig) proof() (kind string, ends time.Time) {
	switch {
	case c.CertificateFile != "":
		ends, _ = token.CheckCertificate(c.CertificateFile, c.KeyFile) // what is wrong with it, the last attempt says
		return proofCertificate, ends
	case c.ClientSecretFile != "":
		ends, _ = time.Parse(time.DateOnly, c.SecretExpires) // checked with the configuration; empty is not known
		return proofSecret, ends
	case c.Flow == flowFederated:
		return proofFederated, time.Time{}
	}
	return "", time.Time{}
}

// signedIn looks up who has signed in.
func signedIn(v *token.Vault, credential string) *token.SignedIn {
	g, err := v.Load(credential)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &token.SignedIn{}
	case err != nil:
		return &token.SignedIn{Err: err}
	}
	return &token.SignedIn{User: g.User, Since: g.SignedIn, Used: g.Refreshed}
}

// The command's side.

// watchEvery is how often --watch looks.
const watchEvery = 2 * time.Second

// statusCommand is one call of the command.
type statusCommand struct {
	o      *options
	config *Config
	json   bool
	watch  bool
	every  time.Duration
	client *http.Client
}

func cmdStatus(o *options) *cobra.Command {
	s := &statusCommand{o: o, every: watchEvery,
		client: &http.Client{Timeout: 2 * statusTime, Transport: &http.Transport{DisableKeepAlives: true}}} // never by a proxy
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the services: tokens, limits used and left, last errors",
		Long: `status asks the running services and prints, for each credential, the age and the end of its token, what
the last refresh brought, the end of its certificate and who has signed in; for each mailbox, the leases out,
the look-ups that wait, what is used and left of its limits, and the last verdict of Exchange Online.

It needs token.http and milter.http of the configuration, and exits with 75 when a service does not answer.`,
		Example: "  sendas status\n  sendas status --watch\n  sendas status --json | jq .mailboxes",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if s.config, err = LoadConfig(o.config, SkipFiles); err != nil {
				return err
			}
			return s.run(cmd.Context())
		},
	}
	c.Flags().BoolVar(&s.json, "json", false, "print what the token service answers, as JSON, with the key milter added")
	c.Flags().BoolVarP(&s.watch, "watch", "w", false, "look again every 2 seconds, until Ctrl-C")
	return c
}

func (s *statusCommand) run(ctx context.Context) error {
	if s.config.Token.HTTP == "" {
		return failure(exitConfig, `write an address such as 127.0.0.1:9726 there, then run "systemctl restart sendas-token"`, "token.http is off, so the token service cannot be asked")
	}
	if !s.watch {
		v := s.look(ctx)
		if err := s.print(v.all(s.json)); err != nil {
			return err
		}
		return v.err()
	}
	t := time.NewTicker(s.every)
	defer t.Stop()
	for {
		v := s.look(ctx)
		if ctx.Err() != nil {
			return nil // what failed then, failed by Ctrl-C
		}
		if err := s.print(s.frame(v)); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

func (s *statusCommand) print(text string) error {
	if _, err := io.WriteString(s.o.stdout, text); err != nil {
		return failure(exitSoftware, "", "printing: %w", err)
	}
	return nil
}

// frame is what --watch prints each time: on a terminal over what stands there, else one after the other.
func (s *statusCommand) frame(v *statusView) string {
	text := v.all(s.json)
	if cols, rows := terminalSize(s.o.stdout); cols > 0 && !s.json {
		return screen(text, cols, rows)
	}
	return text + "\n"
}

// statusView is what the services said at one time.
type statusView struct {
	time     time.Time
	tokenAt  string // address
	raw      []byte // of the token service
	token    *token.Status
	tokenErr error // it is down, or says what is no status

	milterAt  string // "" when its HTTP is off: nobody knows
	milterErr error
}

// look asks both services.
func (s *statusCommand) look(ctx context.Context) *statusView {
	v := &statusView{time: time.Now(), tokenAt: s.config.Token.HTTP, milterAt: s.config.Milter.HTTP}
	if v.raw, v.tokenErr = s.get(ctx, v.tokenAt, "/status"); v.tokenErr == nil {
		v.token = new(token.Status)
		if err := json.Unmarshal(v.raw, v.token); err != nil || v.token.Credentials == nil {
			v.token, v.tokenErr = nil, errors.New("what answers is not the token service of this version")
		}
	}
	if v.milterAt != "" {
		_, v.milterErr = s.get(ctx, v.milterAt, "/healthz")
	}
	return v
}

// maxStatus is the size in bytes above which an answer is no status: some 500 a mailbox.
const maxStatus = 256 << 20

// get fetches a page of a service. The error follows "it".
func (s *statusCommand) get(ctx context.Context, addr, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+dialable(addr)+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := s.client.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*net.OpError](err); ok {
			err = e.Err // the rest repeats the address
		}
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("answers %s with HTTP status %d", path, res.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxStatus))
	if err != nil {
		return nil, fmt.Errorf("its answer broke off: %w", err)
	}
	return body, nil
}

// dialable makes of an address to listen on one to connect to: where a service listens on all addresses, it is
// asked on this machine.
func dialable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if a, err := netip.ParseAddr(host); host == "" || err == nil && a.IsUnspecified() {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}

// err says which service is down, for the exit code.
func (v *statusView) err() error {
	down := func(name, unit, at string, err error) error {
		return failure(exitTempFail, fmt.Sprintf(`type "systemctl status %s"; its log is "journalctl -u %s"`, unit, unit), "the %s is down at %s: %w", name, at, err)
	}
	switch {
	case v.tokenErr != nil && v.milterErr != nil:
		return failure(exitTempFail, `type "systemctl status sendas-token sendas-milter"`, "both services are down: the token service at %s: %w; the milter at %s: %w",
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
	Up    *bool   `json:"up"` // null: not known
	Error *string `json:"error"`
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
func (v *statusView) all(asJSON bool) string {
	if asJSON {
		return string(v.json())
	}
	return v.text()
}

// json returns the token service's answer, byte for byte but for the keys that are added at its end: milter and, where the
// service is down and there is no answer, token.
func (v *statusView) json() []byte {
	add := map[string]serviceHealth{"milter": serviceHealthOf(v.milterAt, v.milterErr)}
	have := []byte("{")
	if v.tokenErr != nil {
		add["token"] = serviceHealthOf(v.tokenAt, v.tokenErr)
	} else {
		have = append(bytes.TrimSpace(bytes.TrimSuffix(bytes.TrimSpace(v.raw), []byte("}"))), ',')
	}
	more, err := json.MarshalIndent(add, "", "  ")
	if err != nil {
		panic(err) // strings and booleans alone
	}
	return append(append(have, more[1:]...), '\n')
}

// text returns the view for a person. Somebody else might listen where a service should, so nothing of it reaches
// the terminal that could steer it.
func (v *statusView) text() string {
	var b strings.Builder
	up := "up"
	if v.token != nil {
		up = "up, version " + v.token.Version
		if v.token.Started != nil {
			up += ", for " + spanWords(v.token.Time.Sub(*v.token.Started))
		}
		if v.token.Stopping {
			up += ", stopping: no more leases are given"
		}
	}
	fmt.Fprintf(&b, "%s\n", v.time.Format(time.DateTime))
	fmt.Fprintf(&b, "token service  %s\n", upOrDown(up, v.tokenAt, v.tokenErr))
	if v.milterAt == "" {
		fmt.Fprintf(&b, "milter         not known: milter.http is off\n")
	} else {
		fmt.Fprintf(&b, "milter         %s\n", upOrDown("up", v.milterAt, v.milterErr))
	}
	if v.token != nil {
		for i := range v.token.Credentials {
			writeCredential(&b, &v.token.Credentials[i], v.token.Time)
		}
		writeMailboxes(&b, v.token)
	}
	return tidyText(b.String())
}

func upOrDown(up, at string, err error) string {
	if err != nil {
		return fmt.Sprintf("DOWN at %s: %v", at, err)
	}
	return up + ", at " + at
}

// tidyText keeps a line as it is but for what does not print.
func tidyText(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

// resultWords words the results of a refresh.
var resultWords = map[string]string{
	"":                      "none yet",
	token.ResultOK:          "succeeded",
	token.ResultRefused:     "refused by Microsoft",
	token.ResultUnreachable: "no answer from Microsoft",
	token.ResultConfig:      "not sent",
}

func writeCredential(w io.Writer, c *token.CredentialStatus, now time.Time) {
	row := func(label, format string, args ...any) {
		fmt.Fprintf(w, "  %-13s "+format+"\n", append([]any{label}, args...)...)
	}
	fmt.Fprintf(w, "\ncredential %s (%s)\n", c.Name, c.Flow)
	if c.InUse {
		row("token", "%s", tokenWords(&c.Token, now))
		row("last refresh", "%s%s", resultWords[c.Refresh.Result], whenAfter(", ", c.Refresh.LastAttempt, now))
		if e := c.Refresh.Error; e != nil {
			row("", "%s", e.Text)
			if e.Hint != "" {
				row("hint", "%s", e.Hint)
			}
		}
		row("next refresh", "%s", whenWords(c.Refresh.NextAttempt, now))
	} else {
		row("token", "none: no mailbox uses this credential")
	}
	if skew := time.Duration(c.Skew * float64(time.Second)); skew.Abs() > token.MaxSkew {
		row("clock", "%s", skewWords(skew))
	}
	if p := c.Proof; p != nil {
		label := p.Kind
		if label == proofFederated {
			label = "proof"
		}
		row(label, "%s", endWords(p, now))
	}
	if s := c.SignIn; s != nil {
		row("signed in", "%s", signInWords(c.Name, s, now))
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

func tokenWords(t *token.TokenStatus, now time.Time) string {
	switch {
	case t.Live:
		return fmt.Sprintf("live, got %s, ends %s", whenWords(t.Received, now), whenWords(t.Expires, now))
	case t.Expires != nil:
		return "none: the last one ended " + whenWords(t.Expires, now) + "; mail waits in the queue"
	}
	return "none; mail waits in the queue"
}

// endWords tells when a proof ends, on a day of UTC, as certificates and the configuration have it.
func endWords(p *token.ProofStatus, now time.Time) string {
	switch {
	case p.Ends != nil && p.Ends.Before(now):
		return "ENDED on " + p.Ends.UTC().Format(time.DateOnly)
	case p.Ends != nil:
		return fmt.Sprintf("ends on %s, %s", p.Ends.UTC().Format(time.DateOnly), whenWords(p.Ends, now))
	case p.Kind == proofSecret:
		return "its end is not known: write secret_expires into sendas.yaml"
	case p.Kind == proofCertificate:
		return "its end is not known: the file cannot be read"
	}
	return "a token of another issuer, who renews it"
}

func signInWords(credential string, s *token.SignInStatus, now time.Time) string {
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
	return fmt.Sprintf("%s since %s; idle for %d of at most %d days", who, s.Since.Local().Format(time.DateOnly), s.IdleDays, s.MaxDays)
}

// writeMailboxes prints the table of mailboxes, and below it why some are paused, and what the last verdicts
// mean that were not "accepted".
func writeMailboxes(w io.Writer, s *token.Status) {
	fmt.Fprintln(w)
	if s.LedgerError != nil {
		fmt.Fprintf(w, "what was used is not known: %s\n", *s.LedgerError)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "mailbox\tcredential\tleases\twaiting\tmessages\trecipients\tlast verdict")
	for i := range s.Mailboxes {
		m := &s.Mailboxes[i]
		fmt.Fprintln(t, strings.Join([]string{m.Mailbox, m.Credential, leaseWords(m), waitWords(m, s.Time),
			usageWords(m, m.Messages), usageWords(m, m.Recipients), lastVerdictWords(m.LastVerdict, s.Time)}, "\t"))
	}
	t.Flush()
	for _, m := range s.Mailboxes {
		if m.PausedUntil != nil {
			fmt.Fprintf(w, "%s: paused, goes on %s: %s\n", m.Mailbox, whenWords(m.PausedUntil, s.Time), m.PauseReason)
		}
		if v := m.LastVerdict; v != nil && v.Meaning != "" {
			fmt.Fprintf(w, "%s: %s: %s\n", m.Mailbox, v.Class, v.Meaning)
		}
	}
}

func leaseWords(m *token.MailboxStatus) string {
	switch {
	case m.Pattern: // the limit is each sender's own
		return fmt.Sprint(m.Leases)
	case m.InForce < m.Connections:
		return fmt.Sprintf("%d of %d (not %d)", m.Leases, m.InForce, m.Connections)
	}
	return fmt.Sprintf("%d of %d", m.Leases, m.Connections)
}

func waitWords(m *token.MailboxStatus, now time.Time) string {
	if m.Next == nil || m.PausedUntil != nil {
		return fmt.Sprint(m.Waiting)
	}
	return fmt.Sprintf("%d, next %s", m.Waiting, whenWords(m.Next, now))
}

func lastVerdictWords(v *token.Verdict, now time.Time) string {
	if v == nil {
		return "none yet"
	}
	return fmt.Sprintf("%s (%s), %s", v.Class, v.Code, whenWords(&v.Time, now))
}

func usageWords(m *token.MailboxStatus, u *token.UsageStatus) string {
	switch {
	case m.Pattern:
		return "each sender's own"
	case u == nil:
		return "not known"
	}
	r := limit.Rate{N: u.Limit, Per: time.Duration(u.Window * float64(time.Second))}
	return fmt.Sprintf("%d of %s, %d left", u.Used, r, u.Left)
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

// terminalSize returns columns and rows if the writer is a terminal, else 0.
func terminalSize(w io.Writer) (cols, rows int) {
	f, ok := w.(*os.File)
	if !ok {
		return 0, 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	if size.Col == 0 || size.Row == 0 { // a serial line does not know
		return 80, 24
	}
	return int(size.Col), int(size.Row)
}

// screen lays a text over the screen: each line is written over the old one and its rest erased, which flickers
// less than to clear all first. What does not fit is left out, or the screen would scroll.
func screen(text string, cols, rows int) string {
	var lines []string
	for line := range strings.Lines(text) {
		lines = append(lines, fold(strings.TrimSuffix(line, "\n"), cols)...)
	}
	if len(lines) >= rows {
		keep := max(0, rows-2)
		lines = append(lines[:keep], fmt.Sprintf("… %d more lines: make the window larger, or leave --watch out", len(lines)-keep))
	}
	const home, eraseLine, eraseBelow = "\x1b[H", "\x1b[K", "\x1b[J"
	return home + strings.Join(lines, eraseLine+"\n") + eraseLine + "\n" + eraseBelow
}

// hang is where the text of a row begins; see writeCredential.
const hang = 16

// fold breaks a line that is too long for the screen, at a blank where there is one. The rest of a row stands under its text.
func fold(line string, cols int) (lines []string) {
	indent := ""
	if strings.HasPrefix(line, "  ") && cols >= 2*hang {
		indent = strings.Repeat(" ", hang)
	}
	r := []rune(line)
	for len(r) > cols {
		cut := cols
		for i := cols; i > len(indent); i-- {
			if r[i] == ' ' {
				cut = i
				break
			}
		}
		lines = append(lines, string(r[:cut]))
		r = []rune(indent + strings.TrimLeft(string(r[cut:]), " "))
	}
	return append(lines, string(r))
}
