// Package doctor walks the whole way of a message on a host: the configuration, Postfix, the SASL
// plugin, the sockets of both services, each credential's files and a fresh token, the way to
// Microsoft's submission server as each mailbox, and DNS. It goes on after a failure, and says of
// each what it means and what to do. It changes nothing, and sends nothing unless it is asked to.
package doctor

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

	"github.com/sendas/sendas/cmd/internal/classes"
	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/dns"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/postfix"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/policy/address"
	"github.com/sendas/sendas/token/entra"
)

// Options say what to look at.
type Options struct {
	File    string // the configuration
	Mailbox string // as typed; "" is all of them
	Folder  string // of Postfix's configuration; "" is Postfix's default
	SendTo  string // "" sends nothing
	Json    bool   // print JSON at the end, and nothing before
	Verbose bool   // print what is good and what was not looked at, too, each as it is found
	Stdout  io.Writer
}

// A world is what the doctor asks of the machine and the network; tests give it another one.
type world struct {
	run      postfix.Runner
	dial     func(ctx context.Context, network, addr string) (net.Conn, error)
	resolver dns.Resolver
	client   func(*config.Site) (*http.Client, error) // for Entra
	source   func(c *config.Site, name string, client *http.Client, vault *entra.Vault) (entra.Source, error)
	now      func() time.Time
	saslDirs []string // patterns of the folders in which Cyrus SASL looks for plugins
	hostname func() (string, error)
	account  func(name string) (uid uint32, gids []uint32, err error)
	etc      string // where the host's own resolv.conf and hosts are
}

// RealWorld is this host.
func RealWorld() *world {
	return &world{
		run: postfix.Run, dial: (&net.Dialer{Timeout: 30 * time.Second}).DialContext, resolver: net.DefaultResolver,
		client: (*config.Site).Client, source: (*config.Site).Source, now: time.Now, hostname: os.Hostname,
		account: service.AccountIDs, etc: "/etc",
		saslDirs: []string{"/usr/lib/*/sasl2", "/usr/lib64/sasl2", "/usr/lib/sasl2"},
	}
}

// A doctor is one walk. It belongs to one goroutine.
type Walk struct {
	*Options
	*world
	finding.Report
	config *config.Site // nil where it cannot be used at all

	postfix *postfix.Setup          // nil where Postfix was not found
	tokens  map[string]*entra.Token // by credential
	reached bool                    // the way to the submission server was walked once
	blocked bool                    // it cannot be walked
}

func New(q *Options, w *world) *Walk {
	d := &Walk{Options: q, world: w, tokens: make(map[string]*entra.Token)}
	if !q.Json && q.Verbose {
		d.Show = func(c *finding.Check) { c.Print(q.Stdout) }
	}
	return d
}

// Run takes all steps in the order of a message's way, and prints the verdict. The error carries
// the exit code.
func (d *Walk) Run(ctx context.Context) error {
	d.checkConfig()
	patients, err := d.patients()
	if err != nil {
		return err
	}
	for _, step := range []func(context.Context){
		d.checkPostfix, d.checkPlugin, d.checkSockets, d.checkEyes, d.checkQueue, d.checkStore,
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
func (d *Walk) verdict() (verdict string, failed, warned int) {
	verdict = verdictGood
	for _, c := range d.Checks {
		switch {
		case c.Status == finding.Warn:
			warned++
		case c.Status != finding.Fail:
		case c.Passes:
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
func (d *Walk) conclude() error {
	verdict, failed, warned := d.verdict()
	if d.Json {
		e := json.NewEncoder(d.Stdout)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		if err := e.Encode(struct {
			Checks  []finding.Check `json:"checks"`
			Verdict string          `json:"verdict"`
		}{d.Checks, verdict}); err != nil {
			return err
		}
	} else {
		d.showBad()
		fmt.Fprintf(d.Stdout, "\nverdict: %s; %d checks, %d failed, %d with a warning\n", verdictWords[verdict], len(d.Checks), failed, warned)
		if os.Geteuid() != 0 {
			fmt.Fprintln(d.Stdout, "only root sees all of it: type it as root")
		}
	}
	switch verdict {
	case verdictFailed:
		return exit.Errorf(exit.Failed, "", "something on the way is wrong; what to do stands below each failure")
	case verdictTemporary:
		return exit.Errorf(exit.TempFail, `run "sendas doctor" again in a few minutes`, "there is trouble that passes by itself")
	}
	return nil
}

// showBad prints what is wrong, and then what is not as it should be, where nothing was printed yet.
func (d *Walk) showBad() {
	if d.Verbose {
		return
	}
	for _, status := range []finding.Status{finding.Fail, finding.Warn} {
		for i := range d.Checks {
			if d.Checks[i].Status == status {
				d.Checks[i].Print(d.Stdout)
			}
		}
	}
}

var verdictWords = map[string]string{
	verdictGood: "all is good", verdictFailed: "something is wrong", verdictTemporary: "there is trouble that passes by itself",
}

// checkPostfix looks at Postfix's version, settings and services.
func (d *Walk) checkPostfix(ctx context.Context) {
	s := d.Section("postfix", "Postfix")
	p, err := postfix.Read(ctx, d.world.run, d.Folder, d.settings())
	if err != nil {
		found := err.Error()
		if errors.Is(err, exec.ErrNotFound) {
			found = "is not here"
		}
		s.Fail("present", "postconf", found, postfix.Advices["absent"])
		return
	}
	d.postfix = p
	if d.config == nil { // it would be judged by what nobody has written
		s.Ok("present", "version", "%s", p.Main["mail_version"])
		return
	}
	p.Check(s)
	d.checkPipelining(ctx, s)
	checkSizes(s, p)
	classes.Check(ctx, d.Section("classes", "recipients"), d.world.run, p)
}

// configAdvice is about the configuration itself.
var configAdvice = struct{ wrong, other, later finding.Advice }{
	later: finding.Advice{Means: "it is no mistake now, and will be one, or does not do what it seems to", Do: `mend the line, then type "sendas check"`},
	other: finding.Advice{Means: "another credential cannot be used; {mailbox} does without it", Do: `mend the file, then type "sendas check"`},
	wrong: finding.Advice{Means: "the services refuse this configuration, or cannot use a part of it", Do: `mend the file, then type "sendas check"`},
}

// checkConfig loads the configuration. What is wrong with the files that it names keeps nobody from
// looking at the rest.
func (d *Walk) checkConfig() {
	s := d.Section("config", "configuration")
	c, err := config.Load(d.File, config.CheckAll)
	if err == nil {
		d.config = c
		s.Ok("file", d.File, "%d mailboxes, %d clients, %d routes", len(c.Mailboxes), len(c.Clients), len(c.Policy.Routes()))
		for i, p := range c.Warnings {
			s.Warn(fmt.Sprintf("warning.%d", i+1), placeOf(d.File, &p), p.Text, configAdvice.later)
		}
		return
	}
	var wrong *config.Error
	if !errors.As(err, &wrong) {
		s.Fail("file", d.File, err.Error(), configAdvice.wrong)
		return
	}
	if c, err := config.Load(d.File, config.SkipFiles); err == nil {
		d.config = c
	}
	own := d.ownCredential()
	for i, p := range wrong.Problems[:min(len(wrong.Problems), config.MaxProblems)] {
		where := placeOf(wrong.File, &p)
		id := fmt.Sprintf("problem.%d", i+1)
		if name := p.CredentialFile(); name != "" && own != "" && name != own {
			s.Warn(id, where, p.Text, configAdvice.other.With("mailbox", d.Mailbox))
			continue
		}
		s.Fail(id, where, p.Text, configAdvice.wrong)
	}
	if d.config == nil {
		s.Skip("usable", d.File, "cannot be used, so nothing is judged by it: Postfix's settings, sockets, ledger, credentials and mailboxes")
	}
}

// placeOf writes where in a file a problem is.
func placeOf(file string, p *config.Problem) string {
	if p.Line > 0 {
		file = fmt.Sprintf("%s:%d", file, p.Line)
	}
	if p.Path != "" {
		file += " " + p.Path
	}
	return file
}

// ownCredential returns the credential of the mailbox that the user named, "" where that is none.
func (d *Walk) ownCredential() string {
	if d.config == nil || d.Mailbox == "" {
		return ""
	}
	list, err := d.onePatient() // what is wrong with the name is said later
	if err != nil {
		return ""
	}
	return list[0].credential
}

// settings returns the configuration, or the defaults where there is none.
func (d *Walk) settings() *config.Site {
	if d.config != nil {
		return d.config
	}
	c := config.Default()
	c.Complete("/etc/sendas")
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
func (d *Walk) patients() ([]patient, error) {
	if d.SendTo != "" {
		if a, err := address.Parse(d.SendTo); err != nil || !a.Valid() {
			return nil, exit.Errorf(exit.Usage, "for example: sendas doctor scan@contoso.com --send-to me@contoso.com", "--send-to: %q is no address", config.Clip(d.SendTo))
		}
	}
	if d.config == nil {
		return nil, nil
	}
	if d.Mailbox != "" {
		return d.onePatient()
	}
	var list []patient
	for _, m := range d.config.Mailboxes {
		list = append(list, newPatient(m))
	}
	if d.SendTo != "" && (len(list) != 1 || list[0].user == "") {
		return nil, exit.Errorf(exit.Usage, "for example: sendas doctor scan@contoso.com --send-to "+d.SendTo, "--send-to: name the mailbox to send as")
	}
	return list, nil
}

// onePatient finds the mailbox that the user named, by any address that it may send as.
func (d *Walk) onePatient() ([]patient, error) {
	a, err := address.Parse(d.Mailbox)
	if err != nil || !a.Valid() {
		return nil, exit.Errorf(exit.Usage, "for example: sendas doctor scan@contoso.com", "%q is no address", config.Clip(d.Mailbox))
	}
	m, user := d.config.Policy.MailboxFor(a)
	if m == nil {
		return nil, exit.Errorf(exit.Usage, "sendas.yaml lists them under mailboxes:", "no mailbox may send as %s", a)
	}
	i := slices.IndexFunc(d.config.Mailboxes, func(c config.Mailbox) bool { return c.Address == m.Name })
	p := newPatient(d.config.Mailboxes[i])
	if p.user == "" {
		p.user, p.identities = user.String(), []string{user.String()}
	}
	return []patient{p}, nil
}

func newPatient(m config.Mailbox) patient {
	p := patient{user: m.Address, label: m.Address, credential: m.Credential}
	if m.Pattern() {
		p.user = ""
		return p
	}
	p.identities = m.Senders()
	return p
}

// spfAdvice is about DNS of the verified domains.
var spfAdvice = struct{ wrong, silent finding.Advice }{
	wrong:  finding.Advice{Means: "receivers see this relay as the sender of what leaves by a connector or directly, and DNS does not say that it may", Do: `type "sendas check --dns", which prints the records to publish`},
	silent: finding.Advice{Means: "DNS did not answer", Do: `type "sendas check --dns" later; /etc/resolv.conf says who was asked`},
}

// checkSPF looks at DNS where mail leaves under this relay's own address.
func (d *Walk) checkSPF(ctx context.Context) {
	s := d.Section("dns", "DNS")
	if d.config == nil {
		s.Skip("spf", "SPF", "there is no usable configuration")
		return
	}
	plan := dns.PlanOf(d.config)
	if len(plan.Routes) == 0 {
		s.Skip("spf", "SPF", "all mail leaves by submission, so the world sees Microsoft's servers alone")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, dns.Time)
	defer cancel()
	ok, err := dns.Check(ctx, io.Discard, d.resolver, plan)
	var unanswered *exit.Error // of a walk that came to its end
	switch {
	case !ok && (err == nil || errors.As(err, &unanswered)):
		s.Fail("spf", "SPF", "something has to be changed", spfAdvice.wrong)
	case err != nil:
		s.Wait("spf", "SPF", err.Error(), spfAdvice.silent)
	default:
		s.Ok("spf", "SPF", "%s allow Microsoft and this relay", strings.Join(plan.Domains, ", "))
	}
}
