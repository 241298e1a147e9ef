package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/sendas/sendas/contrib/exosim/directory"
)

// figuresDir has the rules and the example that are offered to administrators.
const figuresDir = "../prometheus"

// promtool runs a command of Debian's package prometheus in the folder of the rules.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // it takes 20 seconds of a machine that has nothing else to do
	defer cancel()
	cmd := exec.CommandContext(ctx, "promtool", args...)
	cmd.Dir = figuresDir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// ruleFile is a file of rules as far as the tests read it.
type ruleFile struct {
	Groups []struct {
		Rules []rule `yaml:"rules"`
	} `yaml:"groups"`
}

type rule struct {
	Alert       string            `yaml:"alert"`
	Record      string            `yaml:"record"`
	Expr        string            `yaml:"expr"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

// readRules returns the rules with their file.
func readRules(t *testing.T) ([]rule, string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(figuresDir, "sendas.rules.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var f ruleFile
	if err := yaml.Unmarshal(text, &f); err != nil {
		t.Fatal(err)
	}
	var list []rule
	for _, g := range f.Groups {
		list = append(list, g.Rules...)
	}
	return list, string(text)
}

// TestPromtool: Prometheus takes the rules, the example and the tests of the rules.
func TestPromtool(t *testing.T) {
	promtool(t, "check", "rules", "sendas.rules.yml")
	promtool(t, "check", "config", "prometheus.yml")
	promtool(t, "test", "rules", "sendas.test.yml")
}

// TestRulesAreTested: every alert has a test in which it fires and one in which it does not, a
// severity, and says what to type.
func TestRulesAreTested(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(figuresDir, "sendas.test.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var tests struct {
		Tests []struct {
			Checks []struct {
				Expr    string `yaml:"expr"`
				Samples []any  `yaml:"exp_samples"`
			} `yaml:"promql_expr_test"`
		} `yaml:"tests"`
	}
	if err := yaml.Unmarshal(text, &tests); err != nil {
		t.Fatal(err)
	}
	fires, rests := make(map[string]bool), make(map[string]bool)
	for _, group := range tests.Tests {
		for _, c := range group.Checks {
			if m := alertName.FindStringSubmatch(c.Expr); m != nil {
				list := rests
				if len(c.Samples) > 0 {
					list = fires
				}
				list[m[1]] = true
			}
		}
	}
	rules, _ := readRules(t)
	for _, r := range rules {
		if r.Alert == "" {
			continue
		}
		if !fires[r.Alert] || !rests[r.Alert] {
			t.Errorf("%s: tested that it fires %v, that it does not %v", r.Alert, fires[r.Alert], rests[r.Alert])
		}
		if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
			t.Errorf("%s has the severity %q", r.Alert, r.Labels["severity"])
		}
		if d := r.Annotations["description"]; r.Annotations["summary"] == "" || !command.MatchString(d) {
			t.Errorf("%s does not say what to type: %s", r.Alert, d)
		}
	}
}

// runbooks is where the paragraphs on alerts are, unless a site says otherwise.
const runbooks = "https://github.com/sendas/sendas/blob/main/docs/alerts.md"

// TestAlertsPage: each alert leads to a paragraph of its own in docs/alerts.md, which has its
// severity, what it means, how to see it and what to type; and there is none of an alert that is
// not.
func TestAlertsPage(t *testing.T) {
	text, err := os.ReadFile("../../docs/alerts.md")
	if err != nil {
		t.Fatal(err)
	}
	told := make(map[string]string)
	for _, part := range strings.Split(string(text), "\n### ")[1:] {
		name, rest, _ := strings.Cut(part, "\n")
		told[name] = rest
	}
	rules, _ := readRules(t)
	for _, r := range rules {
		if r.Alert == "" {
			continue
		}
		want := `{{ or $externalLabels.sendas_runbooks "` + runbooks + `" }}#` + strings.ToLower(r.Alert)
		if got := r.Annotations["runbook_url"]; got != want {
			t.Errorf("%s leads to %s, want %s", r.Alert, got, want)
		}
		if m := paragraph.FindStringSubmatch(told[r.Alert]); m == nil || m[1] != r.Labels["severity"] {
			t.Errorf("docs/alerts.md says of %s: %q", r.Alert, told[r.Alert])
		}
		delete(told, r.Alert)
	}
	for name := range told {
		t.Errorf("docs/alerts.md has %s, which is no alert", name)
	}
}

// paragraph is one of docs/alerts.md.
var paragraph = regexp.MustCompile("(?s)^\n\\*(critical|warning|info)\\.\\* \\*\\*What it means:\\*\\* [A-Z`].+\n\n\\*\\*How to see:\\*\\* .*`.+`.*\n\n\\*\\*What to type:\\*\\* .+\n")

var (
	alertName = regexp.MustCompile(`alertname="(\w+)"`)
	command   = regexp.MustCompile(`(?s)(Type|type)[:,].*(sendas|journalctl|systemctl|redis-cli|timedatectl|mailq|grep) `)
)

// Prometheus is a throw-away Prometheus that watches a site every second.
type prometheus struct {
	addr string
	log  string
}

// siteRunbooks is where a site has pages of its own on alerts.
const siteRunbooks = "https://wiki.contoso.com/alerts"

// startPrometheus starts one on the site's two services, with the rules in the given text.
func startPrometheus(t *testing.T, s *Site, rules string) *prometheus {
	t.Helper()
	ports, err := freePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p := &prometheus{addr: ports[0], log: filepath.Join(dir, "log")}
	config := fmt.Sprintf(`global: {scrape_interval: 1s, evaluation_interval: 1s, external_labels: {sendas_runbooks: %q}}
rule_files: [rules.yml]
scrape_configs:
  - {job_name: sendas-milter, static_configs: [{targets: [%q]}]}
  - {job_name: sendas-token, static_configs: [{targets: [%q]}]}
`, siteRunbooks, s.milterHTTP, s.tokenHTTP)
	for name, text := range map[string]string{"prometheus.yml": config, "rules.yml": rules} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data", "--web.listen-address="+p.addr)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; it is in Debian's package prometheus", err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		hard := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		defer hard.Stop()
		cmd.Wait()
	})
	return p
}

// sample is one element of an answer.
type sample struct {
	Metric map[string]string `json:"metric"`
	Value  [2]any            `json:"value"`
}

// get asks Prometheus' HTTP API and reads the data of the answer into v.
func (p *prometheus) get(ctx context.Context, path string, q url.Values, v any) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.addr+path+"?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var answer struct {
		Error string          `json:"error"`
		Data  json.RawMessage `json:"data"`
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Error != "" {
		return fmt.Errorf("prometheus: %s", answer.Error)
	}
	return json.Unmarshal(answer.Data, v)
}

// query evaluates an expression now.
func (p *prometheus) query(ctx context.Context, expr string) ([]sample, error) {
	var r struct {
		Result []sample `json:"result"`
	}
	err := p.get(ctx, "/api/v1/query", url.Values{"query": {expr}}, &r)
	return r.Result, err
}

// await waits until an expression has data.
func (p *prometheus) await(ctx context.Context, t *testing.T, expr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var got []sample
	var last error
	if err := poll(ctx, func() (bool, error) {
		got, last = p.query(ctx, expr)
		return len(got) > 0, nil
	}); err != nil {
		log, _ := os.ReadFile(p.log)
		t.Fatalf("%s has no data: %v, %v\n%s", expr, last, err, log)
	}
}

// window is the length of a range, and the time of a rule, in what is evaluated.
var (
	window  = regexp.MustCompile(`\[(\d+[smhd]|\$__rate_interval)\]`)
	waiting = regexp.MustCompile(`(?m)^( *for:) .*$`)
)

// quickly makes an expression one for a minute's data.
func quickly(expr string) string { return window.ReplaceAllString(expr, "[30s]") }

// TestFigures: what the dashboard and the rules ask for is there, with real mail, a real
// Prometheus, and no secret in it.
func TestFigures(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second, YAML: figuresYAML(t)})
	rules, text := readRules(t)
	p := startPrometheus(t, s, waiting.ReplaceAllString(quickly(text), "$1 1s"))
	p.await(ctx, t, `sum(up) == 2 and sum(sendas_token_refreshes_total{result="ok"}) == 1 and sum(sendas_client_over_limit_total) == 0`)
	sendForFigures(t, s, ctx)
	for _, expr := range []string{
		`sendas_send_as_denied_total{mailbox="erp@contoso.com"} == 1`,
		`sum(sendas_upstream_replies_total{class="accepted"}) >= 2`,
		`sum(sendas_messages_total{client="printers", action="accept", reason="client-from"}) == 1`,
		`sum(sendas_messages_total{client="", action="reject", reason="no-client"}) == 1 or sum(sendas_policy_requests_total{client="", action="refuse"}) == 1`,
		`sum(sendas_client_over_limit_total{client="printers"}) + sum(sendas_recipients_refused_total{client="printers"}) == 1`,
		`sendas_client_messages_left{client="printers", per="h"} == 0`,
		`sendas_mailbox_recipients_used{mailbox="erp@contoso.com"} == 1 and sendas_mailbox_recipients_left + sendas_mailbox_recipients_used == sendas_mailbox_recipients_limit`,
		`ALERTS{alertname="SendasSendAsDenied", alertstate="firing", mailbox="erp@contoso.com"}`,
		`ALERTS{alertname="SendasClientOverLimit", alertstate="firing", client="printers"}`,
	} {
		p.await(ctx, t, expr)
	}
	for _, x := range dashboardExpressions(t) {
		p.mustHave(ctx, t, "dashboard, "+x.panel, x.expr)
		p.mustSelect(ctx, t, "dashboard, "+x.panel, x.expr)
	}
	for _, r := range rules {
		p.checkRule(ctx, t, r)
	}
	p.checkAlerts(ctx, t)
	p.checkStored(ctx, t, s)
}

// figuresYAML adds to the site what the figures are about: limits of a client, and all that ends
// some day.
func figuresYAML(t *testing.T) func(string) string {
	t.Helper()
	dir, err := MakeDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	_, pem, err := MakeCertificate(dir)
	if err != nil {
		t.Fatal(err)
	}
	ends := time.Now().AddDate(0, 3, 0).Format(time.DateOnly)
	return func(y string) string {
		y = strings.Replace(y, "    from: scan@contoso.com\n", "    from: scan@contoso.com\n    limits: {messages: 1/h, recipients: 50/d}\n    on_limit: reject\n", 1)
		y = strings.Replace(y, "  domains: [contoso.com]\n", "  domains: [contoso.com]\n  external_recipients: 10000/d\n", 1)
		y = strings.Replace(y, "    PROOF\n", "    PROOF\n    secret_expires: "+ends+"\n"+
			"  cert-app: {flow: client_credentials, client_id: 5f2c0d3e-0000-4000-8000-000000000003, certificate_file: "+pem+"}\n"+
			"  person: {flow: device_code, client_id: 5f2c0d3e-0000-4000-8000-000000000004, user: person@contoso.com}\n", 1)
		return strings.Replace(y, "clients:\n", "  - address: person@contoso.com\n    credential: person\nclients:\n", 1)
	}
}

// sendForFigures sends a message that passes, one that is rewritten, one of a stranger, one over
// its client's limit, and one that Exchange Online denies.
func sendForFigures(t *testing.T, s *Site, ctx context.Context) {
	t.Helper()
	denied.Store(s, 1)
	s.SetMailbox(func(m *directory.Mailbox) { m.SendAs = []string{"billing@contoso.com"} })
	send := func(x XClient, from string, code int) {
		t.Helper()
		m := Mail{XClient: x, From: from, To: []string{"someone@fabrikam.com"}, Data: message("From: "+from, fmt.Sprintf(storyID, from), storyDate)}
		res, err := Send(ctx, s.Postfix.SMTPAddr(), m)
		if err != nil {
			t.Fatal(err)
		}
		if got := res.Verdict().Code; got != code {
			t.Fatalf("mail of %s as %s was answered %v, want %d", x.Addr, from, res.Verdict(), code)
		}
	}
	send(sap, "billing@contoso.com", 250)
	send(printer, "mfp3@floor3.local", 250)
	send(printer, "mfp3-again@floor3.local", 550)
	send(stranger, "ceo@contoso.com", 550)
	send(sap, "hr@contoso.com", 250) // and Exchange Online denies it
}

// expression is one of the dashboard.
type expression struct{ panel, expr string }

// dashboardExpressions returns all expressions of the dashboard, with the variables that Grafana
// would fill in.
func dashboardExpressions(t *testing.T) []expression {
	t.Helper()
	text, err := os.ReadFile("../grafana/sendas.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		UID   string `json:"uid"`
		Links []struct {
			Title string `json:"title"`
			URL   string `json:"url"`
		} `json:"links"`
		SchemaVersion int `json:"schemaVersion"`
		Panels        []struct {
			ID          int `json:"id"`
			GridPos     struct{ X, Y, W, H int }
			Title       string `json:"title"`
			Type        string `json:"type"`
			Description string `json:"description"`
			Datasource  struct {
				UID string `json:"uid"`
			} `json:"datasource"`
			Targets []struct {
				Expr string `json:"expr"`
			} `json:"targets"`
		} `json:"panels"`
		Templating struct {
			List []struct {
				Name       string `json:"name"`
				Definition string `json:"definition"`
			} `json:"list"`
		} `json:"templating"`
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	if d.UID != "sendas" { // by which bookmarks and links find it, in each Grafana
		t.Errorf("the dashboard has the uid %q", d.UID)
	}
	for _, l := range d.Links {
		if !linkForm.MatchString(l.URL) {
			t.Errorf("the dashboard's link %q leads to %q", l.Title, l.URL)
		} else if _, file, ok := strings.Cut(l.URL, "/blob/main/"); ok {
			if _, err := os.Stat("../../" + file); err != nil {
				t.Errorf("the dashboard's link %q: %v", l.Title, err)
			}
		}
	}
	if len(d.Links) < 3 {
		t.Errorf("the dashboard has %d links", len(d.Links))
	}
	// What Grafana's schema of dashboards asks for, as far as a slip of the pen breaks it without a word.
	if d.SchemaVersion < 36 {
		t.Errorf("the dashboard has the schema %d", d.SchemaVersion)
	}
	taken, ids := make(map[[2]int]string), make(map[int]bool)
	for _, p := range d.Panels {
		if p.ID == 0 || ids[p.ID] {
			t.Errorf("panel %q has the id %d", p.Title, p.ID)
		}
		ids[p.ID] = true
		if g := p.GridPos; g.W < 1 || g.H < 1 || g.X < 0 || g.X+g.W > 24 {
			t.Errorf("panel %q stands at %+v", p.Title, g)
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" {
					t.Fatalf("panel %q stands on %q", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
	}
	var list []expression
	for _, v := range d.Templating.List {
		if m := labelValues.FindStringSubmatch(v.Definition); m != nil {
			list = append(list, expression{"variable " + v.Name, "count by (" + m[2] + ") (" + m[1] + ")"})
		}
	}
	fill := strings.NewReplacer("$mailbox", ".*", "$client", ".*", "$instance", ".*")
	for _, p := range d.Panels {
		if p.Type == "row" {
			continue
		}
		if p.Description == "" || p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
			t.Errorf("panel %q has the description %q, the data source %q and %d expressions", p.Title, p.Description, p.Datasource.UID, len(p.Targets))
		}
		for _, target := range p.Targets {
			list = append(list, expression{p.Title, fill.Replace(target.Expr)})
		}
	}
	if len(list) < 30 {
		t.Errorf("%d expressions of the dashboard were found", len(list))
	}
	return list
}

// linkForm is where links of the dashboard lead: to the documentation, and to the status pages.
var linkForm = regexp.MustCompile(`^(https://github\.com/sendas/sendas/blob/main/docs/[a-z-]+\.md|http://\$\{instance\}:972[56]/)$`)

var labelValues = regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`)

// mustHave reports an expression without data. A rate has none before a series was looked at twice.
func (p *prometheus) mustHave(ctx context.Context, t *testing.T, where, expr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var got []sample
	var err error
	if poll(ctx, func() (bool, error) {
		got, err = p.query(ctx, quickly(expr))
		return len(got) > 0 || err != nil, nil
	}) != nil || err != nil {
		t.Errorf("%s: %s has %d results, %v", where, expr, len(got), err)
	}
}

// selector finds what an expression selects of our series and of Prometheus' own.
var selector = regexp.MustCompile(`\b((?:mailbox:|client:|group:|instance:|host:)?sendas_\w+(?::\w+)?|up)\b(\{[^}]*\})?`)

// TestFirstEvents: no alert asks for an increase of what is counted by mailbox, which has no series
// before the first event; the rules of sendas-first-events count that too.
func TestFirstEvents(t *testing.T) {
	rules, _ := readRules(t)
	recorded := 0
	for _, r := range rules {
		for _, m := range increase.FindAllStringSubmatch(r.Expr, -1) {
			name := m[1]
			if !byMailbox.MatchString(name) || strings.Contains(r.Expr, `result="unknown-sender"`) { // which has no mailbox, and is there from the start
				continue
			}
			if r.Record == "" {
				t.Errorf("%s does not see the first event: %s", r.Alert, m[0])
			} else if recorded++; !strings.Contains(r.Expr, name+" unless "+name+" offset ") {
				t.Errorf("%s does not count the first event: %s", r.Record, m[0])
			}
		}
	}
	if recorded < 5 {
		t.Errorf("%d rules count first events", recorded)
	}
}

// byMailbox are the counters that have no series before the first event.
var byMailbox = regexp.MustCompile(`^sendas_(lease|upstream|send_as|sessions)_\w+_total$`)

// increase finds the counters of which an expression takes an increase.
var increase = regexp.MustCompile(`increase\((\w+)`)

// checkRule looks whether a recording rule has data, and an alert something to look at: where all
// is well, an alert itself has none.
func (p *prometheus) checkRule(ctx context.Context, t *testing.T, r rule) {
	t.Helper()
	if r.Record != "" && !slices.Contains(late, r.Record) {
		p.mustHave(ctx, t, "recording rule", r.Record)
		p.mustHave(ctx, t, r.Record, r.Expr)
		return
	}
	if _, err := p.query(ctx, quickly(r.Expr)); err != nil {
		t.Errorf("%s: %v", r.Alert, err)
	}
	p.mustSelect(ctx, t, r.Alert, r.Expr)
}

// late are the series that are there only where a site has such a thing, or while something is wrong:
// TestMetricsDocs knows that their names are right.
var late = []string{"sendas_ledger_shared", "sendas_sign_in_renewed", "sendas_certificate_renewed", "sendas_federated_token_expiry_timestamp_seconds", "sendas_queue_oldest_timestamp_seconds", "sendas_queue_waiting", "sendas_queue_waiting_oldest_timestamp_seconds", "sendas_queue_deferred_messages", "sendas_queue_stalled_messages", "sendas_lease_long_waits_total", "sendas_lease_waiters", "sendas_sessions_lost_total",
	"sendas_mailbox_connections_in_force", "sendas_mailbox_next_lease_timestamp_seconds", "sendas_mailbox_paused_until_timestamp_seconds",
	"sendas_mailbox_senders_held", "sendas_leases_unseen_total", "instance:sendas_leases_unseen:increase1h",
	"mailbox:sendas_lease_long_waits:increase5m", "mailbox:sendas_sessions_lost:increase30m", "host:sendas_queue_mailbox_age_seconds:max"}

// byEvent are the series that are there for what has happened alone: of a selector of these the name
// is looked for.
var byEvent = regexp.MustCompile(`^((mailbox:|client:|host:)?sendas_(lease|upstream|send_as|sessions|rejected|accepted|verdicts|messages|policy)\w*(_total|:\w+))$`)

// mustSelect reports what an expression selects and there is not: a name with a slip of the pen
// gives 0 where 0 is what all is well is.
func (p *prometheus) mustSelect(ctx context.Context, t *testing.T, where, expr string) {
	t.Helper()
	for _, sel := range selector.FindAllStringSubmatch(expr, -1) {
		if !slices.Contains(late, sel[1]) {
			if byEvent.MatchString(sel[1]) {
				sel[0] = sel[1]
			}
			p.mustHave(ctx, t, where, sel[0])
		}
	}
}

// checkAlerts looks whether the alerts say what they should, and whether others fire than this site
// has reason for.
func (p *prometheus) checkAlerts(ctx context.Context, t *testing.T) {
	t.Helper()
	var r struct {
		Alerts []struct {
			Labels      map[string]string `json:"labels"`
			Annotations map[string]string `json:"annotations"`
			State       string            `json:"state"`
		} `json:"alerts"`
	}
	if err := p.get(ctx, "/api/v1/alerts", nil, &r); err != nil {
		t.Fatal(err)
	}
	meant := map[string]string{"SendasSendAsDenied": "", "SendasClientOverLimit": "", "SendasSignInExpiresNow": "person", "SendasTokenExpires": "person", "SendasRefreshFailing": "person"}
	for _, a := range r.Alerts {
		name := a.Labels["alertname"]
		if credential, ok := meant[name]; !ok || credential != a.Labels["credential"] {
			t.Errorf("%s fires: %v", name, a.Labels)
		}
		if want := siteRunbooks + "#" + strings.ToLower(name); a.Annotations["runbook_url"] != want {
			t.Errorf("%s leads to %s, want %s", name, a.Annotations["runbook_url"], want)
		}
		for _, text := range a.Annotations {
			if strings.Contains(text, "error") || strings.Contains(text, "no value") || strings.Contains(text, "{{") {
				t.Errorf("%s says %q", name, text)
			}
		}
	}
}

// checkStored looks for secrets and for addresses that a stranger chose in all that Prometheus
// keeps.
func (p *prometheus) checkStored(ctx context.Context, t *testing.T, s *Site) {
	t.Helper()
	var series []map[string]string
	if err := p.get(ctx, "/api/v1/series", url.Values{"match[]": {`{__name__=~".+"}`}}, &series); err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	for _, labels := range series {
		names[labels["__name__"]] = true
		for name, v := range labels {
			for what, secret := range map[string]string{"client secret": s.Secret, "access token": "eyJ", "base64 of XOAUTH2": "dXNlcj", "a recipient": "fabrikam",
				"an address of a device": "floor3", "an address of a stranger": "ceo@"} {
				if strings.Contains(v, secret) {
					t.Errorf("%s is in label %s of %v", what, name, labels)
				}
			}
		}
	}
	if len(series) < 300 || !names["sendas_mailbox_recipients_left"] || !names["sendas_messages_total"] {
		t.Errorf("only %d series of %d names were found", len(series), len(names))
	}
	doc, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for n := range names {
		base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(n, "_bucket"), "_sum"), "_count")
		if strings.HasPrefix(n, "sendas_") && !strings.Contains(string(doc), "| `"+n+"` |") && !strings.Contains(string(doc), "| `"+base+"` |") {
			t.Errorf("docs/metrics.md lacks %s", n)
		}
	}
}
