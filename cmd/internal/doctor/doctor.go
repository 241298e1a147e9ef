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
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/cmd/internal/classes"
	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/dns"
	"github.com/sendas/sendas/cmd/internal/doctor/stops"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/postfix"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/policy/address"
	"github.com/sendas/sendas/token/entra"
)

// Options say what to look at.
type Options struct {
	File    string        // the configuration
	Mailbox string        // as typed; "" is all of them
	Folder  string        // of Postfix's configuration; "" is Postfix's default
	SendTo  string        // "" sends nothing
	As      string        // as whom to send, or what alone to look at; "" is the mailbox
	Client  string        // as which client, its address or name; "" is one that may send so
	Wait    time.Duration // how long a message is followed; 0 is FollowTime
	Json    bool          // print JSON at the end, and nothing before
	Verbose bool          // print what is good and what was not looked at, too, each as it is found
	Stdout  io.Writer
}

// A world is what the doctor asks of the machine and the network; tests give it another one.
type world struct {
	run        postfix.Runner
	dial       func(ctx context.Context, network, addr string) (net.Conn, error)
	dialFrom   func(ctx context.Context, from netip.Addr, addr string) (net.Conn, error) // by TCP, from an address of this host, or the zero value
	interfaces func() ([]net.Addr, error)                                                // the addresses of this host
	resolver   dns.Resolver
	client     func(*config.Site) (*http.Client, error) // for Entra
	source     func(c *config.Site, name string, client *http.Client, vault *entra.Vault) (entra.Source, error)
	now        func() time.Time
	saslDirs   []string // patterns of the folders in which Cyrus SASL looks for plugins
	hostname   func() (string, error)
	account    func(name string) (uid uint32, gids []uint32, err error)
	etc        string // where the host's own resolv.conf and hosts are
}

// RealWorld is this host.
func RealWorld() *world {
	return &world{
		run: postfix.Run, dial: (&net.Dialer{Timeout: 30 * time.Second}).DialContext, dialFrom: dialFrom, interfaces: net.InterfaceAddrs, resolver: net.DefaultResolver,
		client: (*config.Site).Client, source: (*config.Site).Source, now: time.Now, hostname: os.Hostname,
		account: service.AccountIDs, etc: "/etc",
		saslDirs: []string{"/usr/lib/*/sasl2", "/usr/lib64/sasl2", "/usr/lib/sasl2"},
	}
}

// dialFrom connects by TCP from an address of this host, or from any where it is the zero value.
func dialFrom(ctx context.Context, from netip.Addr, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: connectTime}
	if from.IsValid() {
		d.LocalAddr = &net.TCPAddr{IP: from.AsSlice()}
	}
	return d.DialContext(ctx, "tcp", addr)
}

// A Walk is one look at a host. It belongs to one goroutine.
type Walk struct {
	*Options
	*world
	finding.Report
	config *config.Site // nil where it cannot be used at all

	postfix *postfix.Setup          // nil where Postfix was not found
	tokens  map[string]*entra.Token // by credential
	reached map[string]bool         // the way to a server, by host:port, was walked once
	blocked map[string]bool         // it cannot be walked
	down    bool                    // Postfix does not run
	sending string                  // as whom to send a message; "" sends none
	screen  *finding.Screen
}

func New(q *Options, w *world) *Walk {
	d := &Walk{Options: q, world: w, tokens: make(map[string]*entra.Token), reached: make(map[string]bool), blocked: make(map[string]bool), screen: finding.NewScreen(q.Stdout)}
	if !q.Json {
		d.Show = func(c *finding.Check) {
			if d.shown(c) {
				d.screen.Check(c)
			}
		}
	}
	return d
}

// shown reports whether a check is shown as soon as it is made, and not at the end.
func (d *Walk) shown(c *finding.Check) bool { return d.Verbose || c.Group == sentGroup }

// busy says on a terminal what takes a while.
func (d *Walk) busy(format string, args ...any) {
	if !d.Json {
		d.screen.Busy(format, args...)
	}
}

// A step is one part of the walk.
type step struct {
	about string // what is looked at, for whoever waits
	check func(context.Context)
}

// Run takes all steps in the order of a message's way, and prints the verdict. The error carries
// the exit code.
func (d *Walk) Run(ctx context.Context) error {
	d.checkConfig()
	patients, err := d.patients()
	if err != nil {
		return err
	}
	d.asRoot()
	of := func(check func(context.Context, []patient)) func(context.Context) {
		return func(ctx context.Context) { check(ctx, patients) }
	}
	steps := []step{
		{"Postfix", d.checkPostfix}, {"the SASL plugin", d.checkPlugin}, {"the services", d.checkSockets}, {"what others see", d.checkEyes}, {"the queue", d.checkQueue},
		{"the ledger", d.checkStore}, {"credentials", of(d.checkCredentials)}, {"the way in", of(d.checkEntrance)}, {"mailboxes", of(d.checkMailboxes)},
		{"a message", d.checkSending}, {"DNS", d.checkSPF},
	}
	if d.observes() {
		steps = []step{{"Postfix", d.checkPostfix}, {"the services", d.checkSockets}, {"what others see", d.checkEyes}}
	}
	for _, step := range steps {
		if ctx.Err() != nil {
			d.screen.Done()
			return exit.Errorf(exit.TempFail, "", "interrupted")
		}
		d.busy("looking at %s", step.about)
		step.check(ctx)
	}
	d.screen.Done()
	return d.conclude()
}

// observes reports whether sendas only looks at mail here: then nothing leaves by it, and all that
// mail would leave by is not looked at.
func (d *Walk) observes() bool { return d.config != nil && d.config.Observes() }

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
		if d.observes() {
			d.screen.Line("sendas only observes: nothing is changed or refused, and what it would send mail by is not looked at")
		}
		d.screen.Line("")
		d.screen.Line("verdict: %s; %d checks, %d failed, %d with a warning%s", verdictWords[verdict], len(d.Checks), failed, warned, d.unseen())
	}
	switch verdict {
	case verdictFailed:
		return exit.Errorf(exit.Failed, "", "something on the way is wrong; what to do stands below each failure")
	case verdictTemporary:
		return exit.Errorf(exit.TempFail, `run "sendas doctor" again in a few minutes`, "there is trouble that passes by itself")
	}
	return nil
}

// unseen says what was not looked at: how much, for the reasons stand under --verbose.
func (d *Walk) unseen() string {
	n := 0
	for _, c := range d.Checks {
		if c.Status == finding.Skip {
			n++
		}
	}
	if n == 0 || d.Verbose {
		return ""
	}
	return fmt.Sprintf(", %d not looked at (--verbose says why)", n)
}

// asRoot says first what another user cannot see.
func (d *Walk) asRoot() {
	if os.Geteuid() != 0 && !d.Json {
		d.screen.Line("only root sees all of it: type it as root")
		d.screen.Line("")
	}
}

// showBad prints what is wrong, and then what is not as it should be, where nothing was printed yet.
func (d *Walk) showBad() {
	for _, status := range []finding.Status{finding.Fail, finding.Warn} {
		for i := range d.Checks {
			if c := &d.Checks[i]; c.Status == status && !d.shown(c) {
				d.screen.Check(c)
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
	f := d.fork()
	s = f.Section("postfix", "Postfix")
	p.Check(s)
	if !d.observes() {
		f.checkPipelining(ctx, s)
		stops.Check(s, p)
		classes.Check(ctx, f.Section("classes", "recipients"), d.world.run, p)
	}
	spareConsequences(f.Checks)
	for _, c := range f.Checks {
		d.Join(c)
	}
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
		s.Ok("file", d.File, "%d mailboxes, %d clients, %d routes", len(c.Mailboxes)+len(c.Accounts()), len(c.Clients), len(c.Policy.Routes()))
		for i, p := range c.Warnings {
			id, where := fmt.Sprintf("warning.%d", i+1), placeOf(d.File, &p)
			if d.toldBelow(&p) {
				s.Skip(id, where, "is looked at below, with its credential")
				continue
			}
			s.Warn(id, where, p.Text, configAdvice.later)
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
		if d.toldBelow(&p) {
			s.Skip(id, where, "is looked at below, with its credential")
			continue
		}
		s.Fail(id, where, p.Text, configAdvice.wrong)
	}
	if d.config == nil {
		s.Skip("usable", d.File, "cannot be used, so nothing is judged by it: Postfix's settings, sockets, ledger, credentials and mailboxes")
	}
}

// toldBelow reports whether a problem is about a credential that is looked at itself: one cause is one
// finding.
func (d *Walk) toldBelow(p *config.Problem) bool {
	if d.config == nil {
		return false
	}
	own := d.ownCredential()
	for name := range d.config.Credentials {
		used := slices.ContainsFunc(d.config.Mailboxes, func(m config.Mailbox) bool { return m.Credential == name })
		if used && (own == "" || own == name) && (p.CredentialFile() == name || p.Path == "credentials."+name+".secret_expires") {
			return true
		}
	}
	return false
}

// failed reports whether something whose id begins so has failed.
func (d *Walk) failed(ids ...string) bool {
	return slices.ContainsFunc(d.Checks, func(c finding.Check) bool {
		return c.Status == finding.Fail && slices.ContainsFunc(ids, func(id string) bool { return strings.HasPrefix(c.ID, id) })
	})
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
	list, err := d.onePatient(d.Mailbox) // what is wrong with the name is said later
	if err != nil || len(list) == 0 {
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
	server     string   // host:port; "" is that of submission
	route      string   // of an account of High Volume Email
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
	if d.Client != "" {
		if _, err := d.named(d.Client, ""); err != nil {
			return nil, err
		}
	}
	if d.SendTo != "" {
		identity, err := d.sendingAs()
		if err != nil {
			return nil, err
		}
		d.sending = identity
	}
	switch {
	case d.Mailbox != "":
		return d.onePatient(d.Mailbox)
	case d.As != "":
		return d.onePatient(d.As)
	}
	var list []patient
	for _, m := range slices.Concat(d.config.Mailboxes, d.config.Accounts()) {
		list = append(list, d.newPatients(m)...)
	}
	return list, nil
}

// onePatient finds the mailbox that the user named, by any address that it may send as. What leaves
// by a connector or directly needs none.
func (d *Walk) onePatient(name string) ([]patient, error) {
	a, err := address.Parse(name)
	if err != nil || !a.Valid() {
		return nil, exit.Errorf(exit.Usage, "for example: sendas doctor scan@contoso.com", "%q is no address", config.Clip(name))
	}
	m, user := d.config.Policy.MailboxFor(a)
	if m == nil && d.As != "" && len(d.config.Routes) > 0 && d.config.Policy.Verified(a.Domain) {
		return nil, nil
	}
	if m == nil {
		return nil, exit.Errorf(exit.Usage, "sendas.yaml lists them under mailboxes:", "no mailbox may send as %s", a)
	}
	all := slices.Concat(d.config.Mailboxes, d.config.Accounts())
	i := slices.IndexFunc(all, func(c config.Mailbox) bool { return c.Address == m.Name })
	p := d.newPatient(all[i])
	if p.user == "" {
		p.user, p.identities = user.String(), []string{user.String()}
	}
	if d.As != "" {
		p.identities = []string{a.String()}
	}
	return []patient{p}, nil
}

// maxOfPattern is how many of the mailboxes for which a pattern stands are looked at.
const maxOfPattern = 3

// newPatients returns the patient of a mailbox; for a pattern, those for which it stands as far as
// sendas.yaml has their names: notices, and what clients send as.
func (d *Walk) newPatients(m config.Mailbox) []patient {
	if !m.Pattern() {
		return []patient{d.newPatient(m)}
	}
	names := []string{d.config.Notices}
	for _, c := range d.config.Clients {
		names = append(append(names, c.From), c.Senders...)
	}
	var list []patient
	for _, name := range names {
		a, err := address.Parse(name)
		if err != nil || !a.Valid() || strings.ContainsAny(name, "*{") || len(list) == maxOfPattern {
			continue
		}
		own, user := d.config.Policy.MailboxFor(a)
		p := patient{user: user.String(), label: user.String(), credential: m.Credential, identities: []string{user.String()}}
		if own != nil && own.Name == m.Address && !slices.ContainsFunc(list, func(o patient) bool { return o.user == p.user }) {
			list = append(list, p)
		}
	}
	if len(list) == 0 {
		return []patient{d.newPatient(m)}
	}
	return list
}

func (d *Walk) newPatient(m config.Mailbox) patient {
	p := patient{user: m.Address, label: m.Address, credential: m.Credential, server: d.config.SubmissionOf(m.Address)}
	if r := d.config.AccountRoute(m.Credential); r != nil {
		p.route = d.config.Policy.RouteFrom(m.Address).Name
	}
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
