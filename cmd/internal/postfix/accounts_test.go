package postfix

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/postfix/cf"
	"github.com/sendas/sendas/cmd/internal/postfix/postfixtest"
)

// highVolume is the ordinary configuration with two accounts of High Volume Email.
var highVolume = strings.NewReplacer(
	"notices: scan", "  hve-app: {client_id: 5f2c0d3e-0000-4000-8000-000000000001, client_secret_file: relay-app.secret}\n"+
		"routes:\n  - {name: bulk, type: hve, account: Notices@contoso.com, credential: hve-app}\n"+
		"  - {name: news, type: hve, account: news@contoso.com, credential: hve-app, transport: news, endpoint: smtp-hve.office365.com, limits: {connections: 4}}\nnotices: scan",
	"milter: {", "  - {name: payroll, networks: [10.50.0.0/24], route: bulk}\nmilter: {",
).Replace(postfixtest.YAML)

// TestPostfixAccounts: each account has a transport of one shape with that of submission, and its
// address leads there; enable writes it once, and the doctor looks at it.
func TestPostfixAccounts(t *testing.T) {
	j, _ := testJob(t)
	read := func() cf.Files {
		t.Helper()
		files, err := j.inst.Read()
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	configtest.WriteFile(t, j.File, highVolume, 0o644)
	for range 2 {
		if err := j.Enable(t.Context()); err != nil {
			t.Fatalf("%v\n%s", err, j.Stderr)
		}
	}
	main, master := string(read()[cf.Main]), string(read()[cf.Master])
	for _, want := range []string{
		"{notices@contoso.com = sendas-bulk:[smtp.hve.mx.microsoft]:587}", "{news@contoso.com = news:[smtp-hve.office365.com]:587}",
		"\nsendas-bulk_destination_concurrency_limit = 20\n", "\nnews_destination_concurrency_limit = 4\n", "\nnews_destination_concurrency_failed_cohort_limit = 0\n",
		"\nsendas_destination_concurrency_limit = 3\n",
	} {
		if strings.Count(main, want) != 1 {
			t.Errorf("main.cf has %d times %q:\n%s", strings.Count(main, want), want, main)
		}
	}
	p := readSetup(t, j)
	submission, bulk := p.service("sendas", "unix"), p.service("sendas-bulk", "unix")
	if bulk == nil || p.service("news", "unix") == nil {
		t.Fatalf("master.cf has no transports for the accounts:\n%s", master)
	}
	for name, value := range submission.overrides {
		if bulk.overrides[name] != value {
			t.Errorf("sendas has %s=%s, sendas-bulk %q", name, value, bulk.overrides[name])
		}
	}
	if len(bulk.overrides) != len(submission.overrides) {
		t.Errorf("sendas has %d settings, sendas-bulk %d", len(submission.overrides), len(bulk.overrides))
	}
	look := func() *look {
		d := doctorOf(t, j)
		readSetup(t, j).checkRoutes(d.Section("postfix", "Postfix"))
		return d
	}
	look().wantGood(t)
	look().wantCheck(t, "postfix.route.bulk", finding.OK, "asks sendas for the credential of its account")

	// What is wrong with it.
	change := func(file, old, new string) {
		t.Helper()
		text := string(read()[file])
		if !strings.Contains(text, old) {
			t.Fatalf("%s has no %q", file, old)
		}
		configtest.WriteFile(t, filepath.Join(j.inst.Dir, file), strings.Replace(text, old, new, 1), 0o644)
	}
	change(cf.Main, "{notices@contoso.com = sendas-bulk:[smtp.hve.mx.microsoft]:587}, ", "")
	look().wantCheck(t, "postfix.sender_dependent_default_transport_maps", finding.Fail, "sendas postfix")
	change(cf.Main, "news_destination_concurrency_failed_cohort_limit = 0", "news_destination_concurrency_failed_cohort_limit = 1")
	look().wantCheck(t, "postfix.news_destination_concurrency_failed_cohort_limit", finding.Warn)
	if err := j.Enable(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, j.Stderr)
	}
	look().wantGood(t)
}

// TestPostfixAccountsDisabled: disable takes it all back, by what enable has remembered; and without
// that it finds the transports and settings of accounts by themselves.
func TestPostfixAccountsDisabled(t *testing.T) {
	j, before := testJob(t)
	configtest.WriteFile(t, j.File, highVolume, 0o644)
	disable := func() cf.Files {
		t.Helper()
		if err := j.Disable(t.Context()); err != nil {
			t.Fatalf("%v\n%s", err, j.Stderr)
		}
		files, err := j.inst.Read()
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	enable := func() {
		t.Helper()
		if err := j.Enable(t.Context()); err != nil {
			t.Fatalf("%v\n%s", err, j.Stderr)
		}
	}
	enable()
	after := disable()
	for file, want := range before {
		if got := after[file]; string(got) != string(want) {
			t.Errorf("disable leaves in %s:\n%s", file, got)
		}
	}
	enable()
	j.State += ".gone"
	for file, text := range disable() {
		for _, word := range []string{"sendas-bulk", "news", "sendas:", "sendas/"} {
			if strings.Contains(string(text), word) {
				t.Errorf("disable leaves %q in %s:\n%s", word, file, text)
			}
		}
	}
}
