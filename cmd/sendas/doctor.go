package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/policy/address"
	"github.com/sendas/sendas/token/entra"
)

// doctorFlags say what to look at.
type doctorFlags struct {
	file    string // the configuration
	mailbox string // as typed; "" is all of them
	folder  string // of Postfix's configuration; "" is Postfix's default
	sendTo  string // "" sends nothing
	json    bool   // print JSON at the end, and nothing before
	stdout  io.Writer
}

// A world is what the doctor asks of the machine and the network; tests give it another one.
type world struct {
	run      runner
	dial     func(ctx context.Context, network, addr string) (net.Conn, error)
	resolver resolver
	client   func(*Config) (*http.Client, error) // for Entra
	source   func(c *Config, name string, client *http.Client, vault *entra.Vault) (entra.Source, error)
	now      func() time.Time
	saslDirs []string // patterns of the folders in which Cyrus SASL looks for plugins
	hostname func() (string, error)
}

// realWorld is this host.
func realWorld() *world {
	return &world{
		run: runProgram, dial: (&net.Dialer{Timeout: 30 * time.Second}).DialContext, resolver: net.DefaultResolver,
		client: (*Config).client, source: (*Config).source, now: time.Now, hostname: os.Hostname,
		saslDirs: []string{"/usr/lib/*/sasl2", "/usr/lib64/sasl2", "/usr/lib/sasl2"},
	}
}

// A doctor is one walk. It belongs to one goroutine.
type doctor struct {
	*doctorFlags
	*world
	report
	config *Config // nil where it cannot be used at all

	postfix *postfixSetup           // nil where Postfix was not found
	tokens  map[string]*entra.Token // by credential
	reached bool                    // the way to the submission server was walked once
	blocked bool                    // it cannot be walked
}

func newDoctor(q *doctorFlags, w *world) *doctor {
	d := &doctor{doctorFlags: q, world: w, tokens: make(map[string]*entra.Token)}
	if !q.json {
		d.show = func(c *check) { c.print(q.stdout) }
	}
	return d
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
		e := json.NewEncoder(d.stdout)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		if err := e.Encode(struct {
			Checks  []check `json:"checks"`
			Verdict string  `json:"verdict"`
		}{d.checks, verdict}); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(d.stdout, "\nverdict: %s; %d checks, %d failed, %d with a warning\n", verdictWords[verdict], len(d.checks), failed, warned)
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

// checkPostfix looks at Postfix's version, settings and services.
func (d *doctor) checkPostfix(ctx context.Context) {
	s := d.section("postfix", "Postfix")
	p, err := readPostfix(ctx, d.world.run, d.folder, d.settings())
	if err != nil {
		found := err.Error()
		if errors.Is(err, exec.ErrNotFound) {
			found = "is not here"
		}
		s.fail("present", "postconf", found, postfixAdvice["absent"])
		return
	}
	d.postfix = p
	p.check(s)
}

// configAdvice is about the configuration itself.
var configAdvice = struct{ wrong, unusable advice }{
	wrong:    advice{means: "the services refuse this configuration, or cannot use a part of it", do: `mend the file, then type "sendas check"`},
	unusable: advice{means: "without a configuration only Postfix and the sockets can be looked at", do: `name another file with --config, or write one; packaging/sendas.yaml explains each key`},
}

// checkConfig loads the configuration. What is wrong with the files that it names keeps nobody from looking at
// the rest.
func (d *doctor) checkConfig() {
	s := d.section("config", "configuration")
	c, err := LoadConfig(d.file, CheckAll)
	if err == nil {
		d.config = c
		s.ok("file", d.file, "%d mailboxes, %d clients, %d routes", len(c.Mailboxes), len(c.Clients), len(c.Policy.Routes()))
		return
	}
	var wrong *ConfigError
	if !errors.As(err, &wrong) {
		s.fail("file", d.file, err.Error(), configAdvice.wrong)
		return
	}
	if c, err := LoadConfig(d.file, SkipFiles); err == nil {
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
		s.warn("usable", d.file, "cannot be used", configAdvice.unusable)
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
		if a, err := address.Parse(d.sendTo); err != nil || !a.Valid() {
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
	a, err := address.Parse(d.mailbox)
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
	if m.Pattern() {
		p.user = ""
		return p
	}
	p.identities = m.senders()
	return p
}

// spfAdvice is about DNS of the verified domains.
var spfAdvice = struct{ wrong, silent advice }{
	wrong:  advice{means: "receivers see this relay as the sender of what leaves by a connector or directly, and DNS does not say that it may", do: `type "sendas check --dns", which prints the records to publish`},
	silent: advice{means: "DNS did not answer", do: `type "sendas check --dns" later; /etc/resolv.conf says who was asked`},
}

// checkSPF looks at DNS where mail leaves under this relay's own address.
func (d *doctor) checkSPF(ctx context.Context) {
	s := d.section("dns", "DNS")
	if d.config == nil {
		s.skip("spf", "SPF", "there is no usable configuration")
		return
	}
	plan := dnsPlanOf(d.config)
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
