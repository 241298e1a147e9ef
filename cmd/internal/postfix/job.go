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
	"github.com/sendas/sendas/internal/exit"
)

// Options say what to do, and where.
type Options struct {
	File   string // the configuration
	Folder string // "" is Postfix's default
	State  string // "" is the instance's in StateFolder
	Shape  string // "" is what fits
	Json   bool
	DryRun bool
	Force  bool
	Stdout io.Writer // for results
	Stderr io.Writer // for what is said to a person
	Run    Runner
	// Others looks at what mail depends on besides Postfix, before the settings are written;
	// running: Postfix runs, so there is somebody to be turned away.
	Others func(ctx context.Context, r *finding.Report, p *Setup, running bool)
}

// A Job is one run of a command.
type Job struct {
	*Options
	inst *instance
	path string // of the state file
}

func NewJob(q *Options) *Job { return &Job{Options: q} }

// say tells a person something that is no result.
func (j *Job) say(format string, args ...any) {
	fmt.Fprintf(j.Stderr, "sendas: "+format+"\n", args...)
}

// locate finds the instance and its state file.
func (j *Job) locate(ctx context.Context) (err error) {
	if j.Shape != "" && j.Shape != ShapeMain && j.Shape != ShapeTransport {
		return exit.Errorf(exit.Usage, "write --shape main or --shape transport", "--shape: %q is no shape", config.Clip(j.Shape))
	}
	if j.inst, err = findInstance(ctx, j.Run, j.Folder); err != nil {
		return j.absent(err)
	}
	if j.path = j.State; j.path != "" {
		return nil
	}
	out, _, err := j.Run(ctx, "postconf", "-c", j.inst.dir, "-h", "multi_instance_name")
	if err != nil {
		return j.absent(err)
	}
	j.path = filepath.Join(StateFolder, stateName(strings.TrimSpace(out), j.inst.dir))
	return nil
}

// absent words an error of postconf(1).
func (j *Job) absent(err error) error {
	if errors.Is(err, exec.ErrNotFound) {
		return exit.Errorf(exit.Failed, "run this on the host of Postfix, as root", "postconf is not here: Postfix is not installed")
	}
	return exit.Errorf(exit.Failed, "for another instance give --postfix-config FOLDER", "Postfix's own tool does not answer: %v", err)
}

// base returns what Postfix has, what it would have without sendas, and a stage with the latter.
// Remove the stage.
func (j *Job) base(ctx context.Context) (now, base files, s *stage, err error) {
	if now, err = j.inst.read(); err != nil {
		return nil, nil, nil, exit.Errorf(exit.Failed, "run this as root, on the host of Postfix", "reading Postfix's configuration: %w", err)
	}
	st, err := loadState(j.path, j.inst.dir)
	if errors.Is(err, os.ErrPermission) && os.Geteuid() != 0 { // a look at it needs no root
		j.say("note: only root can read %s, so what stands in main.cf now is taken for the administrator's", j.path)
		st, err = nil, nil
	}
	if err != nil {
		return nil, nil, nil, exit.Errorf(exit.Failed, "", "the former settings: %w", err)
	}
	if base, _, err = j.inst.undo(ctx, st, now); err != nil {
		return nil, nil, nil, err
	}
	s, err = j.inst.stage(base)
	return now, base, s, err
}

// planned makes the plan on a stage with what Postfix would have without sendas.
func (j *Job) planned(ctx context.Context, s *stage, c *config.Site) (*plan, error) {
	p, err := s.setup(ctx, c)
	if err != nil {
		return nil, j.absent(err)
	}
	v, err := s.values(ctx)
	if err != nil {
		return nil, err
	}
	return p.makePlan(v, j.Shape)
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
	_, _, s, err := j.base(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.remove()) }()
	plan, err := j.planned(ctx, s, c)
	if err != nil {
		return err
	}
	if j.Json {
		return plan.writeJSON(j.Stdout)
	}
	if plan.yaml != "" {
		j.say("hint: this shape needs in sendas.yaml: %s", plan.yaml)
	}
	both := len(files) == 0
	for _, name := range FileNames {
		text := plan.text(name)
		if !both && files[0] != name || text == "" {
			continue
		}
		if both {
			fmt.Fprintf(j.Stdout, "# ---- %s ----\n", filepath.Join(j.inst.dir, name))
			if name == mainCF {
				fmt.Fprintf(j.Stdout, "# shape %s: %s\n", plan.shape, plan.reason)
			}
		}
		fmt.Fprint(j.Stdout, text)
	}
	return nil
}

// shownPlan is a plan as JSON. Its keys are stable.
type shownPlan struct {
	Shape    string        `json:"shape"`
	Reason   string        `json:"reason"`
	Needs    string        `json:"needs"` // in sendas.yaml; "" is nothing
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
	out := shownPlan{Shape: plan.shape, Reason: plan.reason, Needs: plan.yaml, Settings: []shownChange{}}
	for _, c := range plan.changes {
		out.Settings = append(out.Settings, shownChange{c.file(), c.Service, c.Name, c.Now, c.why})
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
	if err := j.begin(ctx); err != nil {
		return err
	}
	now, base, s, err := j.base(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.remove()) }()
	plan, err := j.planned(ctx, s, c)
	if err != nil {
		return err
	}
	if plan.yaml != "" {
		return exit.Errorf(exit.Config, "add to sendas.yaml: "+plan.yaml+`; or, to send everything to Microsoft: sendas postfix enable --shape main`,
			"%s, so the settings need a transport of their own, and sendas.yaml does not name it", plan.reason)
	}
	done, err := s.carryOut(ctx, plan)
	if err != nil {
		return err
	}
	fmt.Fprintf(j.Stdout, "shape %s: %s\n", plan.shape, plan.reason)
	next, err := j.accept(ctx, s, c, now)
	if err != nil || next == nil {
		return err
	}
	old, err := loadState(j.path, j.inst.dir)
	if err != nil {
		return err
	}
	st := &state{Version: stateVersion, Dir: j.inst.dir, EnabledAt: time.Now().UTC().Truncate(time.Second), Shape: plan.shape, Before: base, After: next, Changes: done}
	if err := j.enter(ctx, old, st, now); err != nil {
		return err
	}
	j.report(done)
	return j.reload(ctx)
}

// accept returns the files of a stage if they are to be put into force: nothing is in the way,
// something changes, and it is meant.
func (j *Job) accept(ctx context.Context, s *stage, c *config.Site, now files) (files, error) {
	next, err := s.read()
	if err != nil {
		return nil, err
	}
	if err := j.examine(ctx, s, c); err != nil {
		if j.DryRun { // to be seen all the same
			err = errors.Join(j.printDiff(now, next), err)
		}
		return nil, err
	}
	same, err := j.alike(ctx, s, now)
	switch {
	case err != nil:
		return nil, err
	case same:
		fmt.Fprintf(j.Stdout, "nothing to change: %s has all of it\n", j.inst.dir)
		return nil, nil
	case j.DryRun:
		return nil, j.printDiff(now, next)
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
func (s *stage) carryOut(ctx context.Context, plan *plan) ([]*change, error) {
	var done []*change
	for _, c := range plan.changes {
		if c.good {
			continue
		}
		if err := s.apply(ctx, c, c.Now, true); err != nil {
			return nil, err
		}
		done = append(done, c)
	}
	v, err := s.values(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range done { // as postconf writes it, so that disable knows it again
		if value, ok := v.get(c); ok {
			c.Now = value
		}
	}
	return done, nil
}

// alike reports whether Postfix has the settings of a stage already, whatever the order of lines.
func (j *Job) alike(ctx context.Context, s *stage, now files) (same bool, err error) {
	have, err := j.inst.stage(now)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, have.remove()) }()
	a, err := have.values(ctx)
	if err != nil {
		return false, err
	}
	b, err := s.values(ctx)
	if err != nil {
		return false, err
	}
	return reflect.DeepEqual(a, b), nil
}

// examine looks at the result before anybody uses it. What fails is in the way, what is not as it
// should be is said.
func (j *Job) examine(ctx context.Context, s *stage, c *config.Site) error {
	p, err := s.setup(ctx, c)
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
		found := strings.ReplaceAll(k.Found, s.dir, j.inst.dir)
		j.say("%s: %s: %s", word, k.What, found)
		j.say("  means: %s", k.Means)
		j.say("  do: %s", strings.ReplaceAll(k.Do, s.dir, j.inst.dir))
	}
	if err := s.check(ctx); err != nil {
		failed++
		j.say("in the way: postfix check: %s", strings.ReplaceAll(err.Error(), s.dir, j.inst.dir))
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

// check runs Postfix's own check.
func (i *instance) check(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return nil // postfix(1) is root's, and nothing is changed without root
	}
	_, _, err := i.run(ctx, "postfix", "-c", i.dir, "check")
	return err
}

func (j *Job) isRunning(ctx context.Context) bool {
	_, _, err := j.Run(ctx, "postfix", "-c", j.inst.dir, "status")
	return err == nil
}

// enter puts the files of a state into force. First it keeps what they were; where Postfix does not
// take them, everything is as it was.
func (j *Job) enter(ctx context.Context, old, st *state, now files) error {
	if err := saveState(j.path, st); err != nil {
		return exit.Errorf(exit.Failed, "", "keeping the former settings: %w; nothing was changed", err)
	}
	err := j.inst.install(now, st.After)
	if err == nil {
		err = j.inst.check(ctx)
	}
	if err == nil {
		return nil
	}
	restored := j.restore(st.After, now)
	if old != nil {
		restored = errors.Join(restored, saveState(j.path, old))
	} else if restored == nil {
		restored = os.Remove(j.path)
	}
	if restored != nil {
		return exit.Errorf(exit.Failed, "the former files are in "+j.path+"; type: sendas postfix disable", "%w; and putting the former files back: %v", err, restored)
	}
	return exit.Errorf(exit.Failed, "", "%w; main.cf and master.cf are as they were", err)
}

// restore puts back what install has replaced, be it one file or both.
func (j *Job) restore(from, to files) error {
	now, err := j.inst.read()
	if err != nil {
		return err
	}
	for _, name := range FileNames {
		if slices.Equal(now[name], from[name]) {
			continue
		}
		from[name], to[name] = now[name], now[name] // somebody else's, or not replaced yet
	}
	return j.inst.install(from, to)
}

// report says each change.
func (j *Job) report(list []*change) {
	for _, c := range list {
		value := c.Now
		if c.Added != "" { // others' entries are in it too
			value = shownValue(value)
		}
		was := "was not set"
		if c.Was != nil {
			was = "was " + shownValue(*c.Was)
		}
		fmt.Fprintf(j.Stdout, "%s: %s (%s)\n", c.file(), assignment(c.title(), value), was)
	}
	fmt.Fprintf(j.Stdout, "the former files are kept in %s\n", j.path)
}

// reload makes a running Postfix read its files.
func (j *Job) reload(ctx context.Context) error {
	if !j.isRunning(ctx) {
		fmt.Fprintln(j.Stdout, "Postfix does not run, so nothing was reloaded")
		return nil
	}
	if _, _, err := j.Run(ctx, "postfix", "-c", j.inst.dir, "reload"); err != nil {
		return exit.Errorf(exit.Failed, "type: "+j.inst.command("postfix")+" reload", "the settings are written, but not in force: %w", err)
	}
	fmt.Fprintln(j.Stdout, "Postfix was reloaded")
	return nil
}

// Disable takes everything back.
func (j *Job) Disable(ctx context.Context) error {
	if err := j.begin(ctx); err != nil {
		return err
	}
	st, err := loadState(j.path, j.inst.dir)
	if err != nil {
		return exit.Errorf(exit.Failed, "", "the former settings: %w", err)
	}
	if st == nil {
		fmt.Fprintf(j.Stdout, "nothing to take back: sendas has no settings in %s that it wrote itself\n", j.inst.dir)
		return nil
	}
	now, err := j.inst.read()
	if err != nil {
		return err
	}
	base, kept, err := j.inst.undo(ctx, st, now)
	if err != nil {
		return err
	}
	for _, line := range kept {
		j.say("note: %s", line)
	}
	if j.DryRun {
		return j.printDiff(now, base)
	}
	if err := j.inst.install(now, base); err != nil {
		return err
	}
	if err := j.inst.check(ctx); err != nil {
		return exit.Errorf(exit.Failed, "mend what Postfix says, then type: "+j.inst.command("postfix")+" reload", "the settings are taken back, but not in force: %w", err)
	}
	if err := os.Remove(j.path); err != nil {
		return err
	}
	for _, name := range FileNames {
		how := "is as it was before, byte for byte"
		if !slices.Equal(base[name], st.Before[name]) {
			how = "was changed by others meanwhile; the settings of sendas were taken out of it"
		}
		fmt.Fprintf(j.Stdout, "%s %s\n", filepath.Join(j.inst.dir, name), how)
	}
	return j.reload(ctx)
}

// printDiff prints what would change.
func (j *Job) printDiff(from, to files) error {
	if from.equal(to) {
		fmt.Fprintln(j.Stdout, "nothing to change")
		return nil
	}
	for _, name := range FileNames {
		path := filepath.Join(j.inst.dir, name)
		for line := range strings.Lines(string(diff.Diff(path, from[name], path+".new", to[name]))) {
			fmt.Fprintln(j.Stdout, shownLine(strings.TrimSuffix(line, "\n")))
		}
	}
	return nil
}
