package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/ledger"
)

// The tests of this file hold the documentation against the program: what a page tells to type or
// to write has to exist.

// docBase completes the fragments of a configuration that pages show.
const docBase = `tenant:
  id: contoso.onmicrosoft.com
  domains: [contoso.com, contoso.de]
credentials:
  relay-app:
    client_id: 5f2c0d3e-0000-4000-8000-000000000001
    certificate_file: relay-app.pem
mailboxes:
  - address: "*@contoso.com"
    credential: relay-app
clients:
  - name: of-the-test
    networks: [192.0.2.1]
    on_unauthorized: reject
notices: scan@contoso.com
`

// TestDocsConfig loads every configuration that a page shows.
func TestDocsConfig(t *testing.T) {
	n := 0
	for _, p := range docPages(t) {
		for _, b := range p.blocks {
			if b.kind != "yaml" || b.of != "" {
				continue
			}
			n++
			if err := loadSnippet(t.TempDir(), b.text); err != nil {
				t.Errorf("%s: %v", b.at, err)
			}
		}
	}
	if n < 15 {
		t.Errorf("%d configurations were found, want more: are their blocks marked yaml?", n)
	}
}

func TestLoadSnippet(t *testing.T) {
	for _, tc := range []struct {
		text string
		good bool
	}{
		{docBase, true},
		{"milter:\n  http: off\n", true},
		{"tenant:\n  permissions_file: permissions.csv\n", true},
		{"credentials:\n  other:\n    flow: managed_identity\n", true},
		{"clients:\n  - name: a\n    networks: [10.0.0.0/8]\n    from: scan@contoso.com\n", true},
		{"clients:\n  - name: a\n    networks: [10.0.0.0/8]\n    from: scan@fabrikam.com\n", false},
		{"client:\n  - name: a\n", false},
		{"clients:\n  - name: a\n    network: [10.0.0.0/8]\n", false},
		{"clients:\n  - name: a\n    networks: [10.0.0.0/8]\n    route: nowhere\n", false},
		{"mailboxes:\n  - address: a@contoso.com\n    credential: unknown\n", false},
		{"milter:\n\thttp: off\n", false},
	} {
		if err := loadSnippet(t.TempDir(), tc.text); (err == nil) != tc.good {
			t.Errorf("%q: %v, want good: %v", tc.text, err, tc.good)
		}
	}
}

// loadSnippet loads a configuration, or a part of one.
func loadSnippet(dir, text string) error {
	file, err := writeSnippet(dir, text)
	if err != nil {
		return err
	}
	_, err = config.Load(file, config.SkipFiles)
	return err
}

// writeSnippet writes a configuration, or a part of one, which docBase completes, into dir, and
// returns the file. What a snippet says goes first; where it has mailboxes or clients, there are no
// others.
func writeSnippet(dir, text string) (string, error) {
	if p := config.CheckText([]byte(text)); p != nil {
		return "", errors.New(p.Text)
	}
	var base, own map[string]any
	if err := errors.Join(yaml.Unmarshal([]byte(docBase), &base), yaml.Unmarshal([]byte(text), &own)); err != nil {
		return "", err
	}
	if own["mailboxes"] != nil { // of the snippet's own: it has to say what follows from them
		delete(base, "notices")
	}
	if missing(own, base) {
		merged, err := yaml.Marshal(merge(base, own))
		if err != nil {
			return "", err
		}
		text = string(merged)
	}
	const permissions, receives = "Kind,Mailbox,Address\nDomain,,contoso.com\n", `{"version": 1, "local": ["shop.example"], "local_way": "local:relay"}`
	file := filepath.Join(dir, "sendas.yaml")
	return file, errors.Join(os.WriteFile(filepath.Join(dir, "permissions.csv"), []byte(permissions), 0o644),
		os.WriteFile(filepath.Join(dir, "postfix-classes.json"), []byte(receives), 0o644), os.WriteFile(file, []byte(text), 0o644))
}

// missing reports whether a part of the base that no configuration can do without is not in own.
func missing(own, base map[string]any) bool {
	for key := range base {
		if _, ok := own[key]; !ok {
			return true
		}
	}
	tenant, _ := own["tenant"].(map[string]any)
	return tenant["id"] == nil || tenant["domains"] == nil
}

// merge completes own by what only the base has.
func merge(base, own map[string]any) map[string]any {
	out := make(map[string]any, len(base)+len(own))
	for key, value := range own {
		out[key] = value
	}
	for key, value := range base {
		mine, here := own[key]
		a, aMap := mine.(map[string]any)
		b, bMap := value.(map[string]any)
		switch {
		case !here:
			out[key] = value
		case aMap && bMap && (key == "tenant" || key == "credentials"):
			out[key] = merge(b, a)
		}
	}
	return out
}

// TestDocsCommands parses every command line of sendas that a page shows.
func TestDocsCommands(t *testing.T) {
	n := 0
	for _, p := range docPages(t) {
		for _, b := range p.blocks {
			for i, line := range joinedLines(b.text) {
				if command, ok := typed(b.kind, line); ok {
					n++
					if err := parseCommand(command, true); err != nil {
						t.Errorf("%s, line %d of the block: %s: %v", b.at, i+1, command, err)
					}
				}
			}
		}
		for _, l := range p.prose {
			for _, m := range inlineCode.FindAllStringSubmatch(l.text, -1) {
				if strings.HasPrefix(m[1], "sendas ") {
					n++
					if err := parseCommand(m[1], false); err != nil {
						t.Errorf("%s: %s: %v", l.at, m[1], err)
					}
				}
			}
		}
	}
	if n < 30 {
		t.Errorf("%d commands were found, want more", n)
	}
}

// TestDocsExplain runs every "sendas explain" that a page shows below a configuration, with that
// configuration. What the page shows of the answer has to be in it, line by line in that order;
// where it shows nothing, the message has to be accepted.
func TestDocsExplain(t *testing.T) {
	n := 0
	for _, p := range docPages(t) {
		file := ""
		for _, b := range p.blocks {
			if b.kind == "yaml" && b.of == "" {
				var err error
				if file, err = writeSnippet(t.TempDir(), b.text); err != nil {
					t.Errorf("%s: %v", b.at, err)
				}
			}
			for _, s := range b.sessions() {
				if file == "" || !strings.HasPrefix(s.command, "sendas explain ") {
					continue
				}
				n++
				if err := s.explain(file); err != nil {
					t.Errorf("%s: %s: %v", b.at, s.command, err)
				}
			}
		}
	}
	if n < 10 {
		t.Errorf("%d commands were run, want more", n)
	}
}

// A docSession is a command of sendas that a block shows, with what it shows of the answer.
type docSession struct {
	command string
	answer  []string
}

func (b *docBlock) sessions() []docSession {
	var list []docSession
	for _, line := range joinedLines(b.text) {
		command, ok := typed(b.kind, line)
		switch {
		case ok:
			list = append(list, docSession{command: command})
		case len(list) > 0 && b.kind == "console":
			s := &list[len(list)-1]
			s.answer = append(s.answer, line)
		}
	}
	return list
}

// explain runs the command and compares.
func (s docSession) explain(file string) error {
	words, err := shellWords(s.command)
	if err != nil {
		return err
	}
	var stdout, stderr bytes.Buffer
	if code := run(append(words[1:], "--config", file), &stdout, &stderr); code != exit.OK {
		return fmt.Errorf("exit code %d: %s", code, stderr.String())
	}
	rest, want := "\n"+stdout.String(), s.answer
	if len(want) == 0 {
		want = []string{"action    accept"}
	}
	for _, line := range want {
		_, after, ok := strings.Cut(rest, "\n"+line+"\n")
		if !ok {
			return fmt.Errorf("the answer has no line %q, or not in this order:\n%s", line, stdout.String())
		}
		rest = "\n" + after
	}
	return nil
}

// TestDocsShell: a shell can read what pages tell to type.
func TestDocsShell(t *testing.T) {
	n := 0
	for _, p := range docPages(t) {
		for _, b := range p.blocks {
			if b.kind != "sh" {
				continue
			}
			n++
			cmd := exec.CommandContext(t.Context(), "sh", "-n")
			cmd.Stdin = strings.NewReader(b.text)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", b.at, err, out)
			}
		}
	}
	if n < 5 {
		t.Errorf("%d blocks were found, want more", n)
	}
}

var inlineCode = regexp.MustCompile("`([^`]+)`")

// parseCommand holds a command line against the commands of the program. Whole ones have all the
// arguments and flags that they need.
func parseCommand(line string, whole bool) error {
	words, err := shellWords(line)
	if err != nil {
		return err
	}
	root := newRoot(io.Discard, io.Discard)
	root.InitDefaultHelpCmd()
	root.InitDefaultVersionFlag()
	cmd, args, err := root.Find(words[1:])
	if err != nil {
		return err
	}
	cmd.InitDefaultHelpFlag()
	if err := cmd.ParseFlags(args); err != nil {
		return err
	}
	if cmd.HasSubCommands() && cmd.Flags().NArg() > 0 {
		return fmt.Errorf("%q has no command %q", cmd.CommandPath(), cmd.Flags().Arg(0))
	}
	if help, _ := cmd.Flags().GetBool("help"); help || !whole || cmd == root {
		return nil
	}
	return complete(cmd)
}

// complete tells what a command line lacks to be run.
func complete(cmd *cobra.Command) error {
	if !cmd.Runnable() {
		return fmt.Errorf("%q needs one of its commands", cmd.CommandPath())
	}
	return errors.Join(cmd.ValidateArgs(cmd.Flags().Args()), cmd.ValidateRequiredFlags(), cmd.ValidateFlagGroups())
}

func TestParseCommand(t *testing.T) {
	for _, tc := range []struct {
		line        string
		whole, part bool // good as a whole command, as a mention
	}{
		{"sendas check", true, true},
		{"sendas check --dns --dns-server 9.9.9.9:53", true, true},
		{"sendas check --dsn", false, false},
		{"sendas check everything", false, true},
		{"sendas chekc", false, false},
		{"sendas status --json | jq .mailboxes", true, true},
		{"sendas status # looks at both", true, true},
		{"sendas explain", true, true},
		{"sendas explain --client", false, false},
		{"sendas explain --from 'a b", false, false},
		{"sendas login", true, true},
		{"sendas login scan-user desk-user", false, true},
		{"sendas login scan-user", true, true},
		{"sendas postfix", false, true},
		{"sendas postfix show main.cf", true, true},
		{"sendas postfix shows", false, false},
		{"sendas --version", true, true},
	} {
		for whole, want := range map[bool]bool{true: tc.whole, false: tc.part} {
			if err := parseCommand(tc.line, whole); (err == nil) != want {
				t.Errorf("%s (whole: %v): %v, want good: %v", tc.line, whole, err, want)
			}
		}
	}
}

// TestDocsPostfix lets Postfix's own tool read every snippet of main.cf and master.cf.
func TestDocsPostfix(t *testing.T) {
	n := 0
	for _, p := range docPages(t) {
		master := docMaster
		for _, b := range p.blocks {
			if strings.HasSuffix(b.kind, ".cf") && isMaster(b.text) {
				master += b.text
			}
		}
		for _, b := range p.blocks {
			main := strings.Join(postconfArgs(b), "\n")
			if strings.HasSuffix(b.kind, ".cf") && !isMaster(b.text) {
				main = b.text
			}
			if main == "" && !isMaster(b.text) {
				continue
			}
			n++
			if err := postconfReads(t, main, master); err != nil {
				t.Errorf("%s: %v", b.at, err)
			}
		}
	}
	if n < 10 {
		t.Errorf("%d snippets were found, want more: are their blocks marked main.cf or master.cf?", n)
	}
}

// docMaster is the part of Debian's master.cf to which parameters of main.cf refer, with the
// transport of sendas.
const docMaster = `smtp inet n - y - - smtpd
smtp unix - - y - - smtp
relay unix - - y - - smtp
local unix - n n - - local
sendas unix - - y - - smtp
`

var masterLine = regexp.MustCompile(`(?m)^[\w.:-]+\s+(inet|unix|fifo|pass)\s`)

func isMaster(text string) bool { return masterLine.MatchString(text) }

var postconfEdit = regexp.MustCompile(`postconf (?:-e )?["']([a-z0-9_]+ *=[^"']*)["']`)

// postconfArgs returns the settings that the commands of a block write.
func postconfArgs(b docBlock) []string {
	var list []string
	if b.kind == "sh" || b.kind == "console" || b.kind == "" {
		for _, m := range postconfEdit.FindAllStringSubmatch(b.text, -1) {
			list = append(list, m[1])
		}
	}
	return list
}

// postconfReads fails where postconf(1) warns: of a parameter that nobody knows, or of a line that
// it cannot read.
func postconfReads(t *testing.T, main, master string) error {
	t.Helper()
	dir := t.TempDir()
	old := time.Now().Add(-time.Hour) // Postfix waits a second or two for somebody who is perhaps still writing
	for name, text := range map[string]string{"main.cf": main, "master.cf": master} {
		writeText(t, filepath.Join(dir, name), text)
		if err := os.Chtimes(filepath.Join(dir, name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	for _, flag := range []string{"-n", "-M", "-P"} {
		cmd := exec.CommandContext(t.Context(), "postconf", "-c", dir, flag)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Run(); err != nil || stderr.Len() > 0 {
			return fmt.Errorf("postconf %s: %v\n%s", flag, err, stderr.String())
		}
	}
	return nil
}

func TestPostconfReads(t *testing.T) {
	for _, tc := range []struct {
		main, master string
		good         bool
	}{
		{"smtpd_milters = unix:sendas/milter\n", "", true},
		{"smtpd_milter = unix:sendas/milter\n", "", false},
		{"sendas_destination_concurrency_limit = 2\n", "", true},
		{"other_destination_concurrency_limit = 2\n", "", false},
		{"", "sendas-site unix - - y - - smtp\n  -o smtp_tls_chain_files=/etc/postfix/relay.pem\n", true},
		{"", "sendas-site unix - - y - - smtp\n  -o smtp_tls_chain_file=/etc/postfix/relay.pem\n", false},
		{"", "sendas-site unix - - smtp\n", false},
	} {
		if err := postconfReads(t, tc.main, docMaster+tc.master); (err == nil) != tc.good {
			t.Errorf("%q, %q: %v, want good: %v", tc.main, tc.master, err, tc.good)
		}
	}
}

var (
	linkForm    = regexp.MustCompile(`\]\(([^()\s]+)\)`)
	headingForm = regexp.MustCompile(`^#{1,6} +(.*)$`)
	anchorForm  = regexp.MustCompile(`<a id="([^"]+)">`)
	linkText    = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
	notInSlug   = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors returns what a link to a place of the page may name, as GitHub makes it.
func (p *docPage) anchors() map[string]bool {
	set := make(map[string]bool)
	for _, l := range p.prose {
		for _, m := range anchorForm.FindAllStringSubmatch(l.text, -1) {
			set[m[1]] = true
		}
		m := headingForm.FindStringSubmatch(l.text)
		if m == nil {
			continue
		}
		slug := strings.ReplaceAll(notInSlug.ReplaceAllString(strings.ToLower(linkText.ReplaceAllString(m[1], "$1")), ""), " ", "-")
		name := slug
		for i := 1; set[name]; i++ {
			name = fmt.Sprintf("%s-%d", slug, i)
		}
		set[name] = true
	}
	return set
}

// TestDocsLinks follows every link from one page to another, or to a file of the source.
func TestDocsLinks(t *testing.T) {
	pages := docPages(t)
	for _, name := range []string{"CHANGELOG.md", "contrib/README.md", "contrib/exchange/README.md", "contrib/exosim/README.md", "token/sasl/README.md"} {
		pages = append(pages, readPage(t, name))
	}
	n := 0
	for _, p := range pages {
		for _, l := range p.prose {
			for _, m := range linkForm.FindAllStringSubmatch(inlineCode.ReplaceAllString(l.text, "x"), -1) {
				if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
					continue
				}
				n++
				if err := follow(t, p, m[1]); err != nil {
					t.Errorf("%s: %v", l.at, err)
				}
			}
		}
	}
	if n < 30 {
		t.Errorf("%d links were found, want more", n)
	}
}

// follow looks for the target of a link.
func follow(t *testing.T, p *docPage, link string) error {
	t.Helper()
	file, anchor, _ := strings.Cut(link, "#")
	name := p.name
	if file != "" {
		name = path.Join(path.Dir(p.name), file)
	}
	if _, err := os.Stat(filepath.Join(tree, name)); err != nil {
		return fmt.Errorf("link to %s: there is no such file", link)
	}
	if anchor != "" && !readPage(t, name).anchors()[anchor] {
		return fmt.Errorf("link to %s: the page has no such heading", link)
	}
	return nil
}

// TestDocsSources: the files of the source that the tour names are there.
func TestDocsSources(t *testing.T) {
	n := 0
	for _, l := range readPage(t, "docs/tour.md").prose {
		for _, m := range inlineCode.FindAllStringSubmatch(l.text, -1) {
			if name := m[1]; sourceForm.MatchString(name) {
				n++
				if _, err := os.Stat(filepath.Join(tree, name)); err != nil {
					t.Errorf("%s: there is no %s", l.at, name)
				}
			}
		}
	}
	if n < 10 {
		t.Errorf("%d files were found, want more", n)
	}
}

var sourceForm = regexp.MustCompile(`^(cmd|policy|milter|token|packaging|contrib)(/[\w.-]+)+$`)

// TestDocsIndex: no page is hidden from who begins at docs/README.md.
func TestDocsIndex(t *testing.T) {
	index := readPage(t, "docs/README.md")
	for _, p := range docPages(t) {
		name, ok := strings.CutPrefix(p.name, "docs/")
		if ok && name != "README.md" && !strings.Contains(index.text, "]("+name+")") {
			t.Errorf("docs/README.md has no link to %s", name)
		}
	}
}

var (
	unitForm  = regexp.MustCompile(`\bsendas-[a-z]+(?:\.[a-z]+)?\b`)
	unitTyped = regexp.MustCompile("\\b(?:systemctl|journalctl) [^|;&#`\\n]*")
)

// TestDocsUnits: the units that pages name in commands are in the package.
func TestDocsUnits(t *testing.T) {
	n := 0
	for _, p := range docPages(t) {
		for _, typed := range unitTyped.FindAllString(p.text, -1) {
			for _, unit := range unitForm.FindAllString(typed, -1) {
				n++
				if path.Ext(unit) == "" {
					unit += ".service"
				}
				if _, err := os.Stat(filepath.Join(tree, "packaging/systemd", unit)); err != nil {
					t.Errorf("%s: there is no unit %s", p.name, unit)
				}
			}
		}
	}
	if n < 5 {
		t.Errorf("%d units were found, want more", n)
	}
}

// TestDocsCertificate makes key and certificate as pages say, and checks the configuration that
// follows there with them.
func TestDocsCertificate(t *testing.T) {
	for _, name := range []string{"README.md", "docs/setup.md"} {
		t.Run(name, func(t *testing.T) { certificateOf(t, readPage(t, name)) })
	}
}

func certificateOf(t *testing.T, p *docPage) {
	t.Helper()
	dir := t.TempDir()
	i := slices.IndexFunc(p.blocks, func(b docBlock) bool { return strings.Contains(b.text, "openssl req") })
	j := slices.IndexFunc(p.blocks, func(b docBlock) bool { return b.kind == "yaml" })
	if i < 0 || j < i {
		t.Fatal("the page has no block with openssl, or no configuration after it")
	}
	script := strings.NewReplacer("/etc/sendas", dir, "chown sendas-token ", "chown root ").Replace(p.blocks[i].text)
	if out, err := exec.CommandContext(t.Context(), "sh", "-e", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	writeText(t, filepath.Join(dir, "sendas.yaml"), p.blocks[j].text)
	if _, err := config.Load(filepath.Join(dir, "sendas.yaml"), config.CheckAll); err != nil {
		t.Error(err)
	}
}

// TestDocsTenants makes the units of a second tenant as docs/recipes/tenants.md says: nothing in them
// is that of the first one, and they have the sockets and folders of the page's configuration.
func TestDocsTenants(t *testing.T) {
	p := readPage(t, "docs/recipes/tenants.md")
	i := slices.IndexFunc(p.blocks, func(b docBlock) bool { return strings.Contains(b.text, "sed -e") })
	j := slices.IndexFunc(p.blocks, func(b docBlock) bool { return b.kind == "yaml" })
	if i < 0 || j < 0 {
		t.Fatal("the page has no block with sed, or no configuration")
	}
	source, err := filepath.Abs(filepath.Join(tree, "packaging/systemd"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := strings.NewReplacer("/usr/lib/systemd/system", source, "/etc/systemd/system", dir, "systemctl daemon-reload", "").Replace(p.blocks[i].text)
	if out, err := exec.CommandContext(t.Context(), "sh", "-e", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	made, _ := filepath.Glob(filepath.Join(dir, "fabrikam-sendas-*"))
	of, _ := filepath.Glob(filepath.Join(source, "sendas-*"))
	if len(made) != len(of) {
		t.Errorf("%d units were made, the package has %d", len(made), len(of))
	}
	text := ""
	for _, file := range made {
		for line := range strings.Lines(readText(t, file)) {
			if !strings.HasPrefix(line, "#") {
				text += line
			}
			if !strings.HasPrefix(line, "#") && firstTenant.MatchString(line) {
				t.Errorf("%s: %s is of the first tenant", filepath.Base(file), line)
			}
		}
	}
	file, err := writeSnippet(t.TempDir(), p.blocks[j].text)
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(file, config.SkipFiles)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"ListenStream=" + strings.TrimPrefix(string(c.Milter.Listen), "unix:"), "ListenStream=" + strings.TrimPrefix(string(c.Milter.PolicyListen), "unix:"),
		"ListenStream=" + strings.TrimPrefix(string(c.Token.Listen), "unix:"), "StateDirectory=" + strings.TrimPrefix(c.Token.StateDir, "/var/lib/"),
		"StateDirectory=" + strings.TrimPrefix(path.Dir(c.Milter.Store), "bolt:/var/lib/"),
		"ExecStart=/usr/bin/sendas milter --config /etc/sendas-fabrikam/sendas.yaml", "ExecStart=/usr/bin/sendas token --config /etc/sendas-fabrikam/sendas.yaml",
		"--reload $MAINPID --config /etc/sendas-fabrikam/sendas.yaml", "ConditionPathExists=/etc/sendas-fabrikam/sendas.yaml", "Service=fabrikam-sendas-milter.service",
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no unit has %s", want)
		}
	}
}

// firstTenant finds in a unit what belongs to the package's own services.
var firstTenant = regexp.MustCompile(`/etc/sendas(/|\s)|/var/spool/postfix/|[ =]sendas-\w+\.(service|socket)|StateDirectory=sendas|SyslogIdentifier=sendas`)

// TestDocsGo: the version of Go that README asks for is the one that the source needs.
func TestDocsGo(t *testing.T) {
	m := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(readText(t, filepath.Join(tree, "go.mod")))
	if m == nil {
		t.Fatal("go.mod names no version")
	}
	text := readText(t, filepath.Join(tree, "README.md"))
	if named := regexp.MustCompile(`\bGo (\d+\.\d+)`).FindAllStringSubmatch(text, -1); len(named) == 0 || slices.ContainsFunc(named, func(n []string) bool { return n[1] != m[1] }) {
		t.Errorf("README.md names %q, go.mod %s", named, m[1])
	}
}

// TestDocsLimits: the numbers of docs/limits.md are those of the program.
func TestDocsLimits(t *testing.T) {
	text := readPage(t, "docs/limits.md").text
	m := limit.Microsoft()
	share := m.Messages.N - m.Connections
	for _, want := range []string{
		fmt.Sprintf("| messages | %d a minute per mailbox |", m.Messages.N),
		fmt.Sprintf("| recipients | %s a day per mailbox |", thousands(m.Recipients.N)),
		fmt.Sprintf("| connections | %d per mailbox |", m.Connections),
		fmt.Sprintf("(1 licence: %s; 100: %s)", thousands(limit.TERRL(1).N), thousands(limit.TERRL(100).N)),
		fmt.Sprintf("| senders at onmicrosoft.com | %d external recipients", limit.MOERA().N),
		fmt.Sprintf("Postfix divides: %d in one delivery", ledger.MaxDelivery),
		fmt.Sprintf("room for %d more recipients", ledger.MaxDelivery),
		fmt.Sprintf("the last %d of %s may stay unused", ledger.MaxDelivery-1, thousands(m.Recipients.N)),
		fmt.Sprintf("(%d − %d) ÷ hosts messages a minute, so %d each of two", m.Messages.N, m.Connections, share/2),
	} {
		if !strings.Contains(text, want) {
			t.Errorf("docs/limits.md does not say %q", want)
		}
	}
}

// TestDocsReasons: docs/logs.md has all actions, and all reasons with the words that the page of
// the milter has for them.
func TestDocsReasons(t *testing.T) {
	_, text, _ := strings.Cut(readPage(t, "docs/logs.md").text, "## Actions and reasons\n")
	text, _, _ = strings.Cut(text, "\n## ")
	for _, a := range policy.Actions() {
		if !strings.Contains(text, "`"+string(a)+"`") {
			t.Errorf("docs/logs.md lacks action %s", a)
		}
	}
	want := "| reason | means |\n|---|---|\n"
	for _, c := range policy.ReasonCodes() {
		if words := c.Brief(); words != "" {
			want += fmt.Sprintf("| `%s` | %s |\n", c, words)
		}
	}
	if !strings.Contains(text, want) {
		t.Errorf("docs/logs.md does not have the table\n%s", want)
	}
}

// thousands writes a number as the pages do: 10,000.
func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}

// packaged finds paths of files that the package brings.
var packaged = regexp.MustCompile(`(?:^|[^\w./])(/(?:usr|lib|etc/(?:apparmor\.d|logrotate\.d))/[\w./@+-]*sendas[\w./@+-]*)`)

// TestDocsPaths: the files of the package that pages name are in it.
func TestDocsPaths(t *testing.T) {
	var nfpm struct {
		Contents []struct {
			Dst string `yaml:"dst"`
		} `yaml:"contents"`
	}
	if err := yaml.Unmarshal([]byte(readText(t, filepath.Join(tree, "nfpm.yaml"))), &nfpm); err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, c := range nfpm.Contents {
		list = append(list, strings.ReplaceAll(c.Dst, "${MULTIARCH}", "x86_64-linux-gnu"))
	}
	n := 0
	for _, p := range docPages(t) {
		for _, m := range packaged.FindAllStringSubmatch(p.text, -1) {
			n++
			if name := strings.TrimRight(m[1], "./"); !inPackage(name, list) {
				t.Errorf("%s: the package has no %s", p.name, name)
			}
		}
	}
	if n == 0 {
		t.Error("no path was found")
	}
}

// inPackage reports whether a file or folder is in the package. What is below /usr/share/sendas and
// /usr/share/doc/sendas comes from the folder of the same name in the source (packaging/build).
func inPackage(name string, list []string) bool {
	if name == "/usr/share/sendas/sendas.yaml" {
		return slices.Contains(list, name)
	}
	for prefix, folder := range map[string]string{"/usr/share/sendas": "contrib", "/usr/share/doc/sendas": ""} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			_, err := os.Stat(filepath.Join(tree, folder, rest))
			return err == nil
		}
	}
	return slices.ContainsFunc(list, func(dst string) bool { return dst == name || strings.HasPrefix(dst, name+"/") })
}

func TestInPackage(t *testing.T) {
	list := []string{"/usr/bin/sendas", "/usr/lib/systemd/system/", "/usr/share"}
	for name, want := range map[string]bool{
		"/usr/bin/sendas": true, "/usr/lib/systemd": true, "/usr/sbin/sendas": false,
		"/usr/share/sendas/exchange/Set-SendasApp.ps1": true, "/usr/share/sendas/nothing": false,
		"/usr/share/doc/sendas/docs/setup.md": true, "/usr/share/doc/sendas/setup.md": false,
	} {
		if got := inPackage(name, list); got != want {
			t.Errorf("inPackage(%q) = %v", name, got)
		}
	}
}

var (
	scriptTyped = regexp.MustCompile(`\.\\([\w-]+\.ps1)([^\n]*)`)
	scriptFlag  = regexp.MustCompile(` -([A-Z]\w*)`)
	scriptParam = regexp.MustCompile(`(?m)^    \[\w+(?:\[\])?\] \$(\w+)`)
)

// TestDocsPowerShell: the scripts of contrib/exchange have the parameters that pages give them.
func TestDocsPowerShell(t *testing.T) {
	n := 0
	for _, p := range docPages(t) {
		for _, b := range p.blocks {
			for _, m := range scriptTyped.FindAllStringSubmatch(b.text, -1) {
				n++
				known := []string{"WhatIf", "Verbose"} // every cmdlet has them
				for _, param := range scriptParam.FindAllStringSubmatch(readText(t, filepath.Join(tree, "contrib/exchange", m[1])), -1) {
					known = append(known, param[1])
				}
				for _, flag := range scriptFlag.FindAllStringSubmatch(m[2], -1) {
					if !slices.Contains(known, flag[1]) {
						t.Errorf("%s: %s has no parameter -%s", b.at, m[1], flag[1])
					}
				}
			}
		}
	}
	if n < 2 {
		t.Errorf("%d commands were found, want more", n)
	}
}

func readText(t testing.TB, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func writeText(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
