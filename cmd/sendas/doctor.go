package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/token"
)

func cmdDoctor(o *options) *cobra.Command {
	q := &doctorFlags{}
	c := &cobra.Command{
		Use:   "doctor [MAILBOX]",
		Short: "Walk the whole way of a message, and say what is wrong on it",
		Long: `doctor looks at everything that a message depends on: the configuration, Postfix's settings, the
SASL plugin, the sockets of both services, each credential's files and a fresh token with what it says, the way to
Microsoft's submission server, AUTH and MAIL FROM as each mailbox, and DNS where a route needs it. It goes on
after a failure, and says below each what it means and what to do. Run it as root on the host of Postfix.

With MAILBOX, an address that some mailbox may send as, it looks at that mailbox alone. Nothing is sent, unless --send-to
names a recipient: then one real message leaves as the mailbox, which alone proves that it may.

It exits with 0 when all is good, with 1 when something is wrong, and with 75 when there is only trouble that passes by itself.`,
		Example: "  sendas doctor\n  sendas doctor scan@contoso.com --send-to me@contoso.com\n  sendas doctor --json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q.mailbox = strings.Join(args, "")
			return newDoctor(o, q, realWorld()).run(cmd.Context())
		},
	}
	f := c.Flags()
	f.StringVar(&q.postfix, "postfix-config", "", "the `folder` of main.cf and master.cf, if it is not Postfix's own default")
	f.StringVar(&q.sendTo, "send-to", "", "send one real message to this `address`")
	f.BoolVar(&q.json, "json", false, "print JSON")
	return c
}

type doctorFlags struct {
	mailbox string // as typed; "" is all of them
	postfix string // folder; "" is Postfix's default
	sendTo  string // "" sends nothing
	json    bool
}

// A world is what the doctor asks of the machine and the network; tests give it another one.
type world struct {
	// run runs a program of Postfix's; the error holds what it said when it failed.
	run      func(ctx context.Context, name string, args ...string) (stdout, stderr string, err error)
	dial     func(ctx context.Context, network, addr string) (net.Conn, error)
	resolver resolver
	client   func(*Config) (*http.Client, error) // for Entra
	source   func(c *Config, name string, client *http.Client, vault *token.Vault) (token.Source, error)
	now      func() time.Time
	saslDirs []string // patterns of the folders in which Cyrus SASL looks for plugins
	hostname func() (string, error)
}

func realWorld() *world {
	return &world{
		run: runProgram, dial: (&net.Dialer{Timeout: 30 * time.Second}).DialContext, resolver: net.DefaultResolver,
		client: newClient, source: newSource, now: time.Now, hostname: os.Hostname,
		saslDirs: []string{"/usr/lib/*/sasl2", "/usr/lib64/sasl2", "/usr/lib/sasl2"},
	}
}

// runProgram runs a program, which may stand in one of root's folders, with nothing of our environment.
func runProgram(ctx context.Context, name string, args ...string) (stdout, stderr string, err error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin", "/sbin"} {
		if err != nil {
			path, err = exec.LookPath(filepath.Join(dir, name))
		}
	}
	if err != nil {
		return "", "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C"}
	cmd.WaitDelay = time.Second
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return "", said.String(), fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(said.String()))
	}
	return out.String(), said.String(), nil
}

// A checkStatus says how a check went; it is part of the JSON.
type checkStatus string

// How a check can go.
const (
	checkOK   checkStatus = "ok"
	checkWarn checkStatus = "warn" // works, but not as it should
	checkFail checkStatus = "fail"
	checkSkip checkStatus = "skip" // could not be checked, or has no sense here
)

// A check is one line of the result. The JSON keys are stable, and so are the ids.
type check struct {
	ID     string      `json:"id"`    // "postfix.smtp_reply_filter", "mailbox.scan@contoso.com.auth"
	Group  string      `json:"group"` // "postfix"
	Status checkStatus `json:"status"`
	What   string      `json:"what"`  // was looked at
	Found  string      `json:"found"` // there
	Means  string      `json:"means"` // of what is not good
	Do     string      `json:"do"`    // about it: a command to type where there is one

	passes bool // a failure that passes by itself
}

// An advice says what a finding means and what to do about it. {name} stands for what only the finding knows.
type advice struct{ means, do string }

// with fills in what the finding knows, given as name, value, name, value.
func (a advice) with(pairs ...string) advice {
	list := slices.Clone(pairs)
	for i := 0; i < len(list); i += 2 {
		list[i] = "{" + list[i] + "}"
	}
	r := strings.NewReplacer(list...)
	return advice{r.Replace(a.means), r.Replace(a.do)}
}

// A doctor is one walk. It belongs to one goroutine.
type doctor struct {
	*doctorFlags
	*world
	o      *options
	config *Config // nil where it cannot be used at all
	checks []check
	hidden []string // secrets that no line may show

	postfix *postfixSetup           // nil where Postfix was not found
	tokens  map[string]*token.Token // by credential
	reached bool                    // the way to the submission server was walked once
	blocked bool                    // it cannot be walked
}

func newDoctor(o *options, q *doctorFlags, w *world) *doctor {
	return &doctor{doctorFlags: q, world: w, o: o, tokens: make(map[string]*token.Token)}
}

// run takes all steps in the order of a message's way, and prints the verdict. The error carries the exit code.
func (d *doctor) run(ctx context.Context) error {
	d.checkConfig()
	patients, err := d.patients()
	if err != nil {
		return err
	}
	for _, step := range []func(context.Context){
		d.checkPostfix, d.checkPlugin, d.checkSockets, d.checkStore,
		func(ctx context.Context) { d.checkCredentials(ctx, patients) },
		func(ctx context.Context) { d.checkMailboxes(ctx, patients) },
		d.checkSPF,
	} {
		if ctx.Err() != nil {
			return exit.Errorf(exit.TempFail, "", "interrupted")
		}
		step(ctx)
	}
	return d.conclude()
}

// note keeps a check and prints its line at once: some take a minute.
func (d *doctor) note(c check) {
	for _, p := range []*string{&c.What, &c.Found, &c.Means, &c.Do} {
		*p = d.presentable(*p)
	}
	d.checks = append(d.checks, c)
	if !d.json {
		c.print(d.o.stdout)
	}
}

// presentable makes one line of a text from outside, without what must not be seen in it.
func (d *doctor) presentable(s string) string {
	for _, secret := range d.hidden {
		s = strings.ReplaceAll(s, secret, "REDACTED")
	}
	return printable(strings.Join(strings.Fields(s), " "))
}

// hide keeps a secret out of all lines to come.
func (d *doctor) hide(secrets ...string) {
	for _, s := range secrets {
		if s != "" && !slices.Contains(d.hidden, s) {
			d.hidden = append(d.hidden, s)
		}
	}
}

func (c *check) print(w io.Writer) {
	word := string(c.Status)
	if c.Status == checkFail {
		word = "FAIL"
	}
	fmt.Fprintf(w, "%-4s  %s: %s\n", word, c.What, c.Found)
	if c.Means != "" {
		fmt.Fprintf(w, "  means: %s\n", c.Means)
	}
	if c.Do != "" {
		fmt.Fprintf(w, "  do: %s\n", c.Do)
	}
}

// A section notes the checks of one group, whose ids begin alike.
type section struct {
	d      *doctor
	group  string
	prefix string // of ids, with its dot
	title  string // of what was looked at
}

func (d *doctor) section(group, title string) section {
	return section{d: d, group: group, prefix: group + ".", title: title}
}

// of narrows a section to one of several things of a kind.
func (s section) of(name string) section {
	s.prefix += name + "."
	s.title += " " + name
	return s
}

func (s section) note(status checkStatus, id, what, found string, a advice, passes bool) {
	s.d.note(check{ID: s.prefix + id, Group: s.group, Status: status, What: strings.TrimSpace(s.title + " " + what), Found: found,
		Means: a.means, Do: a.do, passes: passes})
}

func (s section) ok(id, what, format string, args ...any) {
	s.note(checkOK, id, what, fmt.Sprintf(format, args...), advice{}, false)
}

func (s section) skip(id, what, format string, args ...any) {
	s.note(checkSkip, id, what, fmt.Sprintf(format, args...), advice{}, false)
}

func (s section) warn(id, what, found string, a advice) { s.note(checkWarn, id, what, found, a, false) }
func (s section) fail(id, what, found string, a advice) { s.note(checkFail, id, what, found, a, false) }

// wait notes a failure that passes by itself.
func (s section) wait(id, what, found string, a advice) { s.note(checkFail, id, what, found, a, true) }

// The verdicts; they are part of the JSON.
const (
	verdictGood      = "good"
	verdictFailed    = "failed"
	verdictTemporary = "temporary"
)

// verdict sums the checks up.
func (d *doctor) verdict() (verdict string, failed, warned int) {
	verdict = verdictGood
	for _, c := range d.checks {
		switch {
		case c.Status == checkWarn:
			warned++
		case c.Status != checkFail:
		case c.passes:
			failed++
			if verdict == verdictGood {
				verdict = verdictTemporary
			}
		default:
			failed++
			verdict = verdictFailed
		}
	}
	return verdict, failed, warned
}

// conclude prints the verdict and picks the exit code.
func (d *doctor) conclude() error {
	verdict, failed, warned := d.verdict()
	if d.json {
		e := json.NewEncoder(d.o.stdout)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		if err := e.Encode(struct {
			Checks  []check `json:"checks"`
			Verdict string  `json:"verdict"`
		}{d.checks, verdict}); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(d.o.stdout, "\nverdict: %s; %d checks, %d failed, %d with a warning\n", verdictWords[verdict], len(d.checks), failed, warned)
	}
	switch verdict {
	case verdictFailed:
		return exit.Errorf(exit.Failed, "", "something on the way is wrong; what to do stands below each failure")
	case verdictTemporary:
		return exit.Errorf(exit.TempFail, `run "sendas doctor" again in a few minutes`, "there is trouble that passes by itself")
	}
	return nil
}

var verdictWords = map[string]string{
	verdictGood: "all is good", verdictFailed: "something is wrong", verdictTemporary: "there is trouble that passes by itself",
}

// configAdvice is about the configuration itself.
var configAdvice = struct{ wrong, unusable advice }{
	wrong:    advice{"the services refuse this configuration, or cannot use a part of it", `mend the file, then type "sendas check"`},
	unusable: advice{"without a configuration only Postfix and the sockets can be looked at", `name another file with --config, or write one; packaging/sendas.yaml explains each key`},
}

// checkConfig loads the configuration. What is wrong with the files that it names keeps nobody from looking at
// the rest.
func (d *doctor) checkConfig() {
	s := d.section("config", "configuration")
	c, err := LoadConfig(d.o.config, CheckAll)
	if err == nil {
		d.config = c
		s.ok("file", d.o.config, "%d mailboxes, %d clients, %d routes", len(c.Mailboxes), len(c.Clients), len(c.Policy.Routes()))
		return
	}
	var wrong *ConfigError
	if !errors.As(err, &wrong) {
		s.fail("file", d.o.config, err.Error(), configAdvice.wrong)
		return
	}
	if c, err := LoadConfig(d.o.config, SkipFiles); err == nil {
		d.config = c
	}
	for i, p := range wrong.Problems[:min(len(wrong.Problems), maxProblems)] {
		where := wrong.File
		if p.Line > 0 {
			where = fmt.Sprintf("%s:%d", wrong.File, p.Line)
		}
		if p.Path != "" {
			where += " " + p.Path
		}
		s.fail(fmt.Sprintf("problem.%d", i+1), where, p.Text, configAdvice.wrong)
	}
	if d.config == nil {
		s.warn("usable", d.o.config, "cannot be used", configAdvice.unusable)
	}
}

// settings returns the configuration, or the defaults where there is none.
func (d *doctor) settings() *Config {
	if d.config != nil {
		return d.config
	}
	c := Default()
	c.complete("/etc/sendas")
	return c
}

// A patient is a mailbox to be looked at.
type patient struct {
	user       string // as whom to authenticate; "" for a pattern, which stands for nobody yet
	label      string // as in the configuration
	credential string
	identities []string // envelope senders to try
}

// patients returns the mailboxes to look at. The error is one of usage.
func (d *doctor) patients() ([]patient, error) {
	if d.sendTo != "" {
		if a, err := policy.ParseAddress(d.sendTo); err != nil || !a.Valid() {
			return nil, exit.Errorf(exit.Usage, "for example: sendas doctor scan@contoso.com --send-to me@contoso.com", "--send-to: %q is no address", clip(d.sendTo))
		}
	}
	if d.config == nil {
		return nil, nil
	}
	if d.mailbox != "" {
		return d.onePatient()
	}
	var list []patient
	for _, m := range d.config.Mailboxes {
		list = append(list, newPatient(m))
	}
	if d.sendTo != "" && (len(list) != 1 || list[0].user == "") {
		return nil, exit.Errorf(exit.Usage, "for example: sendas doctor scan@contoso.com --send-to "+d.sendTo, "--send-to: name the mailbox to send as")
	}
	return list, nil
}

// onePatient finds the mailbox that the user named, by any address that it may send as.
func (d *doctor) onePatient() ([]patient, error) {
	a, err := policy.ParseAddress(d.mailbox)
	if err != nil || !a.Valid() {
		return nil, exit.Errorf(exit.Usage, "for example: sendas doctor scan@contoso.com", "%q is no address", clip(d.mailbox))
	}
	m, user := d.config.Policy.MailboxFor(a)
	if m == nil {
		return nil, exit.Errorf(exit.Usage, "sendas.yaml lists them under mailboxes:", "no mailbox may send as %s", a)
	}
	i := slices.IndexFunc(d.config.Mailboxes, func(c MailboxConfig) bool { return c.Address == m.Name })
	p := newPatient(d.config.Mailboxes[i])
	if p.user == "" {
		p.user, p.identities = user.String(), []string{user.String()}
	}
	return []patient{p}, nil
}

func newPatient(m MailboxConfig) patient {
	p := patient{user: m.Address, label: m.Address, credential: m.Credential}
	if strings.HasPrefix(m.Address, "*@") {
		p.user = ""
		return p
	}
	p.identities = m.senders()
	return p
}

// spfAdvice is about DNS of the verified domains.
var spfAdvice = struct{ wrong, silent advice }{
	wrong:  advice{"receivers see this relay as the sender of what leaves by a connector or directly, and DNS does not say that it may", `type "sendas check --dns", which prints the records to publish`},
	silent: advice{"DNS did not answer", `type "sendas check --dns" later; /etc/resolv.conf says who was asked`},
}

// checkSPF looks at DNS where mail leaves under this relay's own address.
func (d *doctor) checkSPF(ctx context.Context) {
	s := d.section("dns", "DNS")
	if d.config == nil {
		s.skip("spf", "SPF", "there is no usable configuration")
		return
	}
	plan := d.config.dnsPlan()
	if len(plan.Routes) == 0 {
		s.skip("spf", "SPF", "all mail leaves by submission, so the world sees Microsoft's servers alone")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, dnsTime)
	defer cancel()
	ok, err := checkDNS(ctx, io.Discard, d.resolver, plan)
	var unanswered *exit.Error // of a walk that came to its end
	switch {
	case !ok && (err == nil || errors.As(err, &unanswered)):
		s.fail("spf", "SPF", "something has to be changed", spfAdvice.wrong)
	case err != nil:
		s.wait("spf", "SPF", err.Error(), spfAdvice.silent)
	default:
		s.ok("spf", "SPF", "%s allow Microsoft and this relay", strings.Join(plan.Domains, ", "))
	}
}
