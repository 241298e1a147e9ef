package main

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/packaging"
)

// cmdMan is for the makers of packages. The pages are made of what the commands say of themselves,
// so that a flag and its description have one source.
func cmdMan(o *options) *cobra.Command {
	var date string
	c := &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the manual pages",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for name, page := range manPages(cmd.Root(), date) {
				if err := os.WriteFile(filepath.Join(args[0], name), page, 0o644); err != nil {
					return exit.Errorf(exit.Software, "", "writing the manual: %w", err)
				}
			}
			return nil
		},
	}
	c.Flags().StringVar(&date, "date", "", "the `day` that the pages show, 2006-01-02")
	return c
}

// manPages returns all pages by file name.
func manPages(root *cobra.Command, date string) map[string][]byte {
	root.InitDefaultCompletionCmd()
	pages := make(map[string][]byte)
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "help" {
			return
		}
		pages[manName(c)+".1"] = commandPage(c, date)
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	pages["sendas.yaml.5"] = configPage(packaging.Sample, date)
	return pages
}

// manName is the name of a command's page: sendas-postfix-show.
func manName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// exitStatus is on every page of a command; see the constants in main.go.
var exitStatus = []struct{ code, means string }{
	{"0", "success"},
	{"1", "a check found something wrong"},
	{"64", "the command line is wrong"},
	{"70", "something went wrong that is of no other kind"},
	{"75", "not now; try again later"},
	{"78", "the configuration is wrong; a service is not started again by systemd"},
}

func commandPage(c *cobra.Command, date string) []byte {
	p := newRoff(manName(c), "1", date)
	p.section("NAME")
	p.text(manName(c) + ` \- ` + strings.ToLower(c.Short[:1]) + roffText(c.Short[1:]))
	p.section("SYNOPSIS")
	usage := strings.TrimPrefix(c.UseLine(), c.CommandPath())
	if !c.Runnable() {
		usage = " COMMAND" + usage
	}
	p.text(`\fB` + roffText(c.CommandPath()) + `\fR` + roffText(usage))
	p.section("DESCRIPTION")
	p.prose(cmp.Or(c.Long, c.Short))
	p.commands(c)
	p.flags("OPTIONS", c.NonInheritedFlags())
	p.flags("COMMON OPTIONS", c.InheritedFlags())
	if c.Example != "" {
		p.section("EXAMPLES")
		p.literal(c.Example)
	}
	p.section("EXIT STATUS")
	for _, s := range exitStatus {
		p.item(s.code, s.means)
	}
	p.section("FILES")
	p.item("/etc/sendas/sendas.yaml", "the configuration, see sendas.yaml(5)")
	p.item("/usr/share/doc/sendas", "how to set up Microsoft 365 and Postfix")
	p.seeAlso(c)
	return p.Bytes()
}

// A roff is a manual page in the making, for man(7).
type roff struct{ bytes.Buffer }

func newRoff(name, section, date string) *roff {
	p := new(roff)
	// Flush left: where a long value breaks there is no blank to be widened, of which groff complains.
	// Since groff 1.23 each macro goes back to what the string AD says.
	fmt.Fprintf(p, ".TH %q %q %q %q %q\n.nh\n.ds AD l\n.ad l\n", strings.ToUpper(name), section, date, "sendas "+version, "sendas")
	return p
}

func (p *roff) section(name string) { fmt.Fprintf(p, ".SH %s\n", name) }

// text writes a line that is roff already. A line must not begin with a control character.
func (p *roff) text(line string) {
	if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
		line = `\&` + line
	}
	fmt.Fprintln(p, line)
}

// prose writes paragraphs, which blank lines separate. Indented lines stay as they are.
func (p *roff) prose(s string) {
	for i, para := range strings.Split(strings.TrimSpace(s), "\n\n") {
		if i > 0 {
			fmt.Fprintln(p, ".PP")
		}
		if strings.HasPrefix(para, " ") || strings.HasPrefix(para, "\t") {
			p.literal(para)
			continue
		}
		for line := range strings.Lines(para) {
			p.text(roffText(strings.TrimSpace(line)))
		}
	}
}

// literal writes lines that must not be filled.
func (p *roff) literal(s string) {
	fmt.Fprintln(p, ".RS 2\n.nf")
	for line := range strings.SplitSeq(strings.Trim(s, "\n"), "\n") {
		p.text(roffText(strings.TrimPrefix(line, "  ")))
	}
	fmt.Fprintln(p, ".fi\n.RE")
}

// item writes a tagged paragraph.
func (p *roff) item(tag, text string) {
	fmt.Fprintln(p, ".TP")
	p.text(`\fB` + roffText(tag) + `\fR`)
	p.text(roffText(text))
}

func (p *roff) commands(c *cobra.Command) {
	first := true
	for _, sub := range c.Commands() {
		if sub.Hidden || sub.Name() == "help" {
			continue
		}
		if first {
			p.section("COMMANDS")
			first = false
		}
		p.item(manName(sub)+"(1)", sub.Short)
	}
}

func (p *roff) flags(section string, set *pflag.FlagSet) {
	if !set.HasAvailableFlags() {
		return
	}
	p.section(section)
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		tag := `\fB` + roffText("--"+f.Name) + `\fR`
		if f.Shorthand != "" {
			tag = `\fB` + roffText("-"+f.Shorthand) + `\fR, ` + tag
		}
		if value != "" {
			tag += ` \fI` + roffText(value) + `\fR`
		}
		fmt.Fprintln(p, ".TP")
		p.text(tag)
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" && f.DefValue != "0" && f.DefValue != "0s" {
			usage += " (default: " + f.DefValue + ")"
		}
		p.text(roffText(usage))
	})
}

func (p *roff) seeAlso(c *cobra.Command) {
	var list []string
	if c.HasParent() {
		list = append(list, manName(c.Parent())+"(1)")
	}
	list = append(list, "sendas.yaml(5)", "postconf(5)", "socketmap_table(5)")
	p.section("SEE ALSO")
	p.text(roffText(strings.Join(list, ", ")))
}

var roffEscape = strings.NewReplacer(`\`, `\e`, "-", `\-`, "^", `\(ha`, "~", `\(ti`, "`", `\(ga`, "→", "\\(->", "…", "...", "–", "\\(en")

// roffText escapes plain text: groff takes a bare minus for a hyphen, which nobody can copy to a
// shell.
func roffText(s string) string { return roffEscape.Replace(s) }
