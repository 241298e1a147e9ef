package postfix

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/postfix/cf"
	"github.com/sendas/sendas/internal/exit"
)

// Options say what to do, and where.
type Options struct {
	File   string // the configuration
	Folder string // "" is Postfix's default
	State  string // "" is the instance's in cf.StateFolder
	Json   bool
	DryRun bool
	Force  bool
	// Observe is that Enable is to write what looking on needs alone; the configuration has to say so
	// too.
	Observe bool
	Stdout  io.Writer // for results
	Stderr  io.Writer // for what is said to a person
	Run     Runner
	// Others looks at what mail depends on besides Postfix, before the settings are written;
	// running: Postfix runs, so there is somebody to be turned away.
	Others func(ctx context.Context, r *finding.Report, p *Setup, running bool)
	// Keep is called with the settings that are to be in force, before they are, for what the services
	// have to know of them; soon: they come into force as soon as it returns. Nil is nothing.
	Keep func(ctx context.Context, p *Setup, soon bool) error
}

// A Job is one run of a command.
type Job struct {
	*Options
	inst *cf.Instance
	path string // of the state file
}

func NewJob(q *Options) *Job { return &Job{Options: q} }

// say tells a person something that is no result.
func (j *Job) say(format string, args ...any) {
	fmt.Fprintf(j.Stderr, "sendas: "+format+"\n", args...)
}

// locate finds the instance and its state file.
func (j *Job) locate(ctx context.Context) (err error) {
	if j.inst, err = cf.Find(ctx, j.Run, j.Folder); err != nil {
		return j.absent(err)
	}
	if j.path = j.State; j.path != "" {
		return nil
	}
	out, _, err := j.Run(ctx, "postconf", "-c", j.inst.Dir, "-h", "multi_instance_name")
	if err != nil {
		return j.absent(err)
	}
	j.path = filepath.Join(cf.StateFolder, cf.StateName(strings.TrimSpace(out), j.inst.Dir))
	return nil
}

// absent words an error of postconf(1).
func (j *Job) absent(err error) error {
	if errors.Is(err, exec.ErrNotFound) {
		return exit.Errorf(exit.Failed, "run this on the host of Postfix, as root", "postconf is not here: Postfix is not installed")
	}
	return exit.Errorf(exit.Failed, "for another instance give --postfix-config FOLDER", "Postfix's own tool does not answer: %v", err)
}

// A present is what Postfix has now, and what is remembered of it.
type present struct {
	now   cf.Files
	state *cf.State // nil where nothing is remembered
	// Without a state, base is made of what is known of sendas alone: taken is what went, unknown
	// what cannot be known.
	taken   []*cf.Change
	unknown []cf.Gap
	base    cf.Files // as it would be without sendas
}

// read returns what Postfix has, and a stage with what it would have without sendas. Remove the
// stage.
func (j *Job) read(ctx context.Context, c *config.Site) (p *present, s *cf.Stage, err error) {
	p = &present{}
	if p.now, err = j.inst.Read(); err != nil {
		return nil, nil, exit.Errorf(exit.Failed, "run this as root, on the host of Postfix", "reading Postfix's configuration: %w", err)
	}
	p.state, err = cf.Load(j.path, j.inst.Dir)
	secret := errors.Is(err, os.ErrPermission) && os.Geteuid() != 0 // a look at it needs no root
	if secret {
		j.say("note: only root can read %s, so what stands in main.cf now is taken for the administrator's", j.path)
		err = nil
	}
	if err != nil {
		return nil, nil, exit.Errorf(exit.Failed, "", "the former settings: %w", err)
	}
	if p.base, _, err = j.inst.Undo(ctx, p.state, p.now); err != nil {
		return nil, nil, err
	}
	if s, err = j.inst.Stage(p.base); err != nil || p.state != nil || secret {
		return p, s, err
	}
	if p.taken, p.unknown, err = takeOurs(ctx, s, c); err == nil && len(p.taken) > 0 {
		p.base, err = s.Read()
	}
	if err != nil {
		return nil, nil, errors.Join(err, s.Remove())
	}
	return p, s, nil
}

// setup reads what postconf(1) says of the stage. Commands in it name the real instance.
func setup(ctx context.Context, s *cf.Stage, c *config.Site) (*Setup, error) {
	p, err := Read(ctx, s.Run, s.Dir, c)
	if err != nil {
		return nil, errors.New(strings.ReplaceAll(err.Error(), s.Dir, s.Real.Dir))
	}
	p.inst = *s.Real
	return p, nil
}

// planned makes the plan on a stage with what Postfix would have without sendas.
func (j *Job) planned(ctx context.Context, s *cf.Stage, c *config.Site, had *present) (*plan, error) {
	p, err := setup(ctx, s, c)
	if err != nil {
		return nil, j.absent(err)
	}
	v, err := s.Values(ctx)
	if err != nil {
		return nil, err
	}
	p.led = slices.ContainsFunc(had.taken, func(c *cf.Change) bool { return c.Name == "default_transport" })
	plan := p.makePlan(v)
	plan.reason = strings.ReplaceAll(plan.reason, s.Dir, j.inst.Dir) // of $config_directory
	return plan, nil
}

// Show prints the plan.
func (j *Job) Show(ctx context.Context, files []string) (err error) {
	c, err := config.Load(j.File, config.SkipFiles)
	if err != nil {
		return err
	}
	if err := j.locate(ctx); err != nil {
		return err
	}
	had, s, err := j.read(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Remove()) }()
	plan, err := j.planned(ctx, s, c, had)
	if err != nil {
		return err
	}
	if j.Json {
		return plan.writeJSON(j.Stdout)
	}
	both := len(files) == 0
	for _, name := range cf.Names {
		text := plan.text(name)
		if !both && files[0] != name || text == "" {
			continue
		}
		if both {
			fmt.Fprintf(j.Stdout, "# ---- %s ----\n", filepath.Join(j.inst.Dir, name))
			if name == cf.Main {
				fmt.Fprintf(j.Stdout, "# %s\n", plan.sentence())
			}
		}
		fmt.Fprint(j.Stdout, text)
	}
	return nil
}

// shownPlan is a plan as JSON. Its keys are stable.
type shownPlan struct {
	Leads    string        `json:"leads"` // to Microsoft: everything, or senders (of mailboxes)
	Reason   string        `json:"reason"`
	Settings []shownChange `json:"settings"`
}

type shownChange struct {
	File    string `json:"file"`
	Service string `json:"service"` // "" in main.cf
	Name    string `json:"name"`    // of the parameter; "" is a whole entry
	Value   string `json:"value"`
	Why     string `json:"why"`
}

func (plan *plan) writeJSON(w io.Writer) error {
	out := shownPlan{Leads: plan.leads, Reason: plan.reason, Settings: []shownChange{}}
	for _, c := range plan.changes {
		out.Settings = append(out.Settings, shownChange{c.File(), c.Service, c.Name, c.Now, c.why})
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(out)
}

// Enable writes the plan.
func (j *Job) Enable(ctx context.Context) (err error) {
	c, err := config.Load(j.File, config.CheckOwn)
	if err != nil {
		return err
	}
	if err := j.fits(c.Observes()); err != nil {
		return err
	}
	if err := j.begin(ctx); err != nil {
		return err
	}
	had, s, err := j.read(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Remove()) }()
	plan, err := j.planned(ctx, s, c, had)
	if err != nil {
		return err
	}
	done, err := carryOut(ctx, s, plan)
	if err != nil {
		return err
	}
	fmt.Fprintln(j.Stdout, plan.sentence())
	next, err := j.accept(ctx, s, c, had, done)
	if err != nil || j.DryRun {
		return err
	}
	again := next == nil // nothing changes, but where nothing was remembered, disable has to know
	if again && had.state != nil {
		return j.keep(ctx, nil, c)
	}
	staged := s
	if again {
		next, staged = had.now, nil
	}
	if err := j.keep(ctx, staged, c); err != nil {
		return err
	}
	if err := j.enter(ctx, had.state, had.after(j.inst.Dir, plan, next, done), had.now); err != nil {
		return err
	}
	fmt.Fprintf(j.Stdout, "the former files are kept in %s\n", j.path)
	if again {
		return nil
	}
	return j.reload(ctx)
}

// keep hands the settings of a stage, nil for those in force, to whom they matter.
func (j *Job) keep(ctx context.Context, s *cf.Stage, c *config.Site) error {
	if j.Options.Keep == nil {
		return nil
	}
	dir := j.inst.Dir
	if s != nil {
		dir = s.Dir
	}
	p, err := Read(ctx, j.Run, dir, c)
	if err != nil {
		return j.absent(err)
	}
	for name, value := range p.Main { // a stage is gone soon
		p.Main[name] = strings.ReplaceAll(value, dir, j.inst.Dir)
	}
	soon := s != nil && !c.Observes() && j.isRunning(ctx) // nobody waits for what a milter that only looks has to know
	return j.Options.Keep(ctx, p, soon)
}

// KeepNow is Enable without writing settings: what is in force is looked at again.
func (j *Job) KeepNow(ctx context.Context) error {
	c, err := config.Load(j.File, config.CheckOwn)
	if err != nil {
		return err
	}
	if err := j.begin(ctx); err != nil {
		return err
	}
	return j.keep(ctx, nil, c)
}

// after is what is to be remembered when a plan was carried out.
func (p *present) after(dir string, plan *plan, next cf.Files, done []*cf.Change) *cf.State {
	st := &cf.State{Version: cf.Version, Dir: dir, EnabledAt: time.Now().UTC().Truncate(time.Second), Leads: plan.leads, Before: p.base, After: next, Changes: done, Unknown: p.unknown}
	if p.state == nil {
		return st
	}
	st.Unknown = p.state.Unknown
	for _, name := range cf.Names {
		if slices.Contains(p.state.Later, name) || !slices.Equal(p.base[name], p.state.Before[name]) {
			st.Later = append(st.Later, name)
		}
	}
	return st
}

// accept returns the files of a stage if they are to be put into force: nothing is in the way, and
// something changes, which it says.
func (j *Job) accept(ctx context.Context, s *cf.Stage, c *config.Site, had *present, done []*cf.Change) (cf.Files, error) {
	next, err := s.Read()
	if err != nil {
		return nil, err
	}
	if len(had.taken) > 0 {
		j.say("note: %s, which remembers what stood there before sendas, is not there; disable will take out what is known of sendas", j.path)
	}
	for _, u := range had.unknown { // of what is written again, disable speaks
		if r := settingNamed(u.Name); r != nil && r.place == inTransport {
			j.say("note: %s", u.Says)
		}
	}
	if err := j.examine(ctx, s, c); err != nil {
		if j.DryRun { // to be seen all the same
			err = errors.Join(j.printDiff(had.now, next), err)
		}
		return nil, err
	}
	same, err := j.compare(ctx, s, had.now, done)
	switch {
	case err != nil:
		return nil, err
	case same:
		fmt.Fprintf(j.Stdout, "nothing to change: %s has all of it\n", j.inst.Dir)
		return nil, nil
	case j.DryRun:
		return nil, j.printDiff(had.now, next)
	}
	return next, nil
}

// begin looks at who asks, and finds the instance.
func (j *Job) begin(ctx context.Context) error {
	if os.Geteuid() != 0 && !j.DryRun {
		return exit.Errorf(exit.Failed, "type it with sudo, or look first: add --dry-run", "only root can change Postfix's configuration")
	}
	return j.locate(ctx)
}

// carryOut makes the changes of a plan on the stage, and returns those that were needed.
func carryOut(ctx context.Context, s *cf.Stage, plan *plan) ([]*cf.Change, error) {
	var done []*cf.Change
	var main, fresh []string // all at one time: each run of postconf(1) writes the file anew
	for _, c := range plan.changes {
		switch {
		case c.good:
			continue
		case c.Service == "":
			main = append(main, c.Name+" = "+c.Now)
			if c.Was == nil {
				fresh = append(fresh, c.Name)
			}
		default:
			if err := s.Apply(ctx, &c.Change, c.Now, true); err != nil {
				return nil, err
			}
		}
		done = append(done, &c.Change)
	}
	if len(main) > 0 {
		if _, err := s.Postconf(ctx, append([]string{"-e"}, main...)...); err != nil {
			return nil, err
		}
		if err := s.Order(fresh); err != nil {
			return nil, err
		}
	}
	v, err := s.Values(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range done { // as postconf writes it, so that disable knows it again
		if value, ok := v.Get(c); ok {
			c.Now = value
		}
	}
	return done, nil
}

// compare reports whether Postfix has the settings of a stage already, whatever the order of lines,
// and else prints what changes.
func (j *Job) compare(ctx context.Context, s *cf.Stage, now cf.Files, done []*cf.Change) (same bool, err error) {
	have, err := j.inst.Stage(now)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, have.Remove()) }()
	a, err := have.Values(ctx)
	if err != nil {
		return false, err
	}
	b, err := s.Values(ctx)
	if err != nil || reflect.DeepEqual(a, b) {
		return err == nil, err
	}
	for _, c := range cf.Differences(a, b, done) {
		fmt.Fprintln(j.Stdout, c.Sentence())
	}
	return false, nil
}

// examine looks at the result before anybody uses it. What fails is in the way, what is not as it
// should be is said.
func (j *Job) examine(ctx context.Context, s *cf.Stage, c *config.Site) error {
	p, err := setup(ctx, s, c)
	if err != nil {
		return j.absent(err)
	}
	r := &finding.Report{}
	p.Check(r.Section("postfix", "Postfix"))
	j.Others(ctx, r, p, j.isRunning(ctx))
	failed := 0
	for i := range r.Checks {
		k := &r.Checks[i]
		if k.Status != finding.Fail && k.Status != finding.Warn {
			continue
		}
		word := "note"
		if k.Status == finding.Fail {
			word, failed = "in the way", failed+1
		}
		found := strings.ReplaceAll(k.Found, s.Dir, j.inst.Dir)
		j.say("%s: %s: %s", word, k.What, found)
		j.say("  means: %s", k.Means)
		j.say("  do: %s", strings.ReplaceAll(k.Do, s.Dir, j.inst.Dir))
	}
	if err := s.Check(ctx); err != nil {
		failed++
		j.say("in the way: postfix check: %s", strings.ReplaceAll(err.Error(), s.Dir, j.inst.Dir))
	}
	if failed > 0 && !j.Force {
		return exit.Errorf(exit.Failed, "do what stands above, then type it again; --force writes the settings all the same", "%s; nothing was changed", count(failed, "thing is in the way", "things are in the way"))
	}
	return nil
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func (j *Job) isRunning(ctx context.Context) bool {
	_, _, err := j.Run(ctx, "postfix", "-c", j.inst.Dir, "status")
	return err == nil
}

// enter puts the files of a state into force. First it keeps what they were; where Postfix does not
// take them, everything is as it was.
func (j *Job) enter(ctx context.Context, old, st *cf.State, now cf.Files) error {
	if err := cf.Save(j.path, st); err != nil {
		return exit.Errorf(exit.Failed, "", "keeping the former settings: %w; nothing was changed", err)
	}
	err := j.inst.Install(now, st.After)
	if err == nil {
		err = j.inst.Check(ctx)
	}
	if err == nil {
		return nil
	}
	restored := j.restore(st.After, now)
	if old != nil {
		restored = errors.Join(restored, cf.Save(j.path, old))
	} else if restored == nil {
		restored = os.Remove(j.path)
	}
	if restored != nil {
		return exit.Errorf(exit.Failed, "the former files are in "+j.path+"; type: sendas postfix disable", "%w; and putting the former files back: %v", err, restored)
	}
	return exit.Errorf(exit.Failed, "", "%w; main.cf and master.cf are as they were", err)
}

// restore puts back what install has replaced, be it one file or both.
func (j *Job) restore(from, to cf.Files) error {
	now, err := j.inst.Read()
	if err != nil {
		return err
	}
	for _, name := range cf.Names {
		if slices.Equal(now[name], from[name]) {
			continue
		}
		from[name], to[name] = now[name], now[name] // somebody else's, or not replaced yet
	}
	return j.inst.Install(from, to)
}

// reload makes a running Postfix read its files.
func (j *Job) reload(ctx context.Context) error {
	if !j.isRunning(ctx) {
		fmt.Fprintln(j.Stdout, "Postfix does not run, so nothing was reloaded")
		return nil
	}
	if _, _, err := j.Run(ctx, "postfix", "-c", j.inst.Dir, "reload"); err != nil {
		return exit.Errorf(exit.Failed, "type: "+j.inst.Command("postfix")+" reload", "the settings are written, but not in force: %w", err)
	}
	fmt.Fprintln(j.Stdout, "Postfix was reloaded")
	return nil
}

// Disable takes everything back.
func (j *Job) Disable(ctx context.Context) error {
	if err := j.begin(ctx); err != nil {
		return err
	}
	st, err := cf.Load(j.path, j.inst.Dir)
	if err != nil {
		return exit.Errorf(exit.Failed, "", "the former settings: %w", err)
	}
	if st == nil {
		return j.disableUnremembered(ctx)
	}
	now, err := j.inst.Read()
	if err != nil {
		return err
	}
	base, kept, err := j.inst.Undo(ctx, st, now)
	if err != nil {
		return err
	}
	for _, line := range kept {
		j.say("note: %s", line)
	}
	for _, u := range st.Unknown {
		j.say("note: %s", u.Says)
	}
	if j.DryRun {
		return j.printDiff(now, base)
	}
	if err := j.putBack(ctx, now, base); err != nil {
		return err
	}
	if err := os.Remove(j.path); err != nil {
		return err
	}
	for _, name := range cf.Names {
		how := "is as it was before, byte for byte"
		switch {
		case len(st.Unknown) > 0:
			how = "is without the settings of sendas; whether it is as it was before is not known"
		case !slices.Equal(base[name], st.Before[name]) || slices.Contains(st.Later, name):
			how = "is as it was before, with your later changes"
		}
		fmt.Fprintf(j.Stdout, "%s %s\n", filepath.Join(j.inst.Dir, name), how)
	}
	return j.reload(ctx)
}

// putBack installs the files without sendas.
func (j *Job) putBack(ctx context.Context, now, base cf.Files) error {
	if err := j.inst.Install(now, base); err != nil {
		return err
	}
	if err := j.inst.Check(ctx); err != nil {
		return exit.Errorf(exit.Failed, "mend what Postfix says, then type: "+j.inst.Command("postfix")+" reload", "the settings are taken back, but not in force: %w", err)
	}
	return nil
}

// disableUnremembered takes back what is known of sendas where the state file is not there: it was
// lost, or the settings were written by hand.
func (j *Job) disableUnremembered(ctx context.Context) (err error) {
	c, err := config.Load(j.File, config.SkipFiles)
	if err != nil {
		c = config.Default() // the names that sendas has where nobody says another one
	}
	had, s, err := j.read(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Remove()) }()
	if len(had.taken) == 0 {
		fmt.Fprintf(j.Stdout, "nothing to take back: sendas has no settings in %s\n", j.inst.Dir)
		return nil
	}
	j.say("note: %s, which remembers what stood there before, is not there; what is known of sendas is taken out", j.path)
	for _, u := range had.unknown {
		j.say("note: %s", u.Says)
	}
	same, err := j.compare(ctx, s, had.now, nil)
	if err != nil || same {
		return err
	}
	if j.DryRun {
		return j.printDiff(had.now, had.base)
	}
	if err := j.putBack(ctx, had.now, had.base); err != nil {
		return err
	}
	return j.reload(ctx)
}

// printDiff prints what would change.
func (j *Job) printDiff(from, to cf.Files) error {
	if from.Equal(to) {
		fmt.Fprintln(j.Stdout, "nothing to change")
		return nil
	}
	for _, name := range cf.Names {
		path := filepath.Join(j.inst.Dir, name)
		for line := range strings.Lines(string(diff.Diff(path, from[name], path+".new", to[name]))) {
			fmt.Fprintln(j.Stdout, cf.ShownLine(strings.TrimSuffix(line, "\n")))
		}
	}
	return nil
}
