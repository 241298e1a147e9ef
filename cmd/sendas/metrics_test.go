package main

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/internal/record"
	"github.com/sendas/sendas/milter"
	"github.com/sendas/sendas/milter/queue"
	"github.com/sendas/sendas/milter/queue/queuetest"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/lease"
	"github.com/sendas/sendas/token/ledger"
)

// seriesDoc is what people are told of a series.
type seriesDoc struct{ kind, labels, help string }

// docWord finds the names in a cell of a table.
var docWord = regexp.MustCompile("`([^`]+)`")

// documentedSeries reads the tables of docs/metrics.md.
func documentedSeries(t *testing.T) map[string]seriesDoc {
	t.Helper()
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	list := make(map[string]seriesDoc)
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|\n"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if len(cells) != 5 || cells[4] == "" {
			t.Errorf("a row of %d columns, or without what to look for: %s", len(cells), line)
			continue
		}
		var labels []string
		for _, m := range docWord.FindAllStringSubmatch(cells[2], -1) {
			labels = append(labels, m[1])
		}
		slices.Sort(labels)
		list[strings.Trim(cells[0], "`")] = seriesDoc{cells[1], strings.Join(labels, " "), cells[3]}
	}
	return list
}

// descForm reads what a prometheus.Desc prints of itself; there is no other way.
var descForm = regexp.MustCompile(`^Desc\{fqName: "([^"]*)", help: "([^"]*)",.* constLabels: \{[^}]*\}, variableLabels: \{([^}]*)\}`)

// serviceSeries returns what the registry of a service holds, without what the Go runtime and the
// process show.
func serviceSeries(t *testing.T, reg *prometheus.Registry) map[string]seriesDoc {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	kinds := make(map[string]string)
	for _, f := range families {
		kinds[f.GetName()] = strings.ToLower(f.GetType().String())
	}
	list := make(map[string]seriesDoc)
	descs := make(chan *prometheus.Desc)
	go func() { reg.Describe(descs); close(descs) }()
	for d := range descs {
		m := descForm.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("what %s means is not known here", d)
		}
		if !strings.HasPrefix(m[1], "sendas_") {
			continue
		}
		// By mailbox, and here nobody waits so long, and every reply is shown.
		if m[1] == "sendas_lease_long_waits_total" || m[1] == "sendas_leases_unseen_total" {
			kinds[m[1]] = "counter"
		}
		if kinds[m[1]] == "" {
			t.Errorf("%s has no series", m[1])
		}
		labels := slices.Sorted(slices.Values(strings.FieldsFunc(m[3], func(r rune) bool { return r == ',' || r == ' ' })))
		list[m[1]] = seriesDoc{kinds[m[1]], strings.Join(labels, " "), m[2]}
	}
	return list
}

// keptFigures registers the series of a half of the record in which something is.
func keptFigures(t *testing.T, half record.Half, reg prometheus.Registerer) {
	t.Helper()
	path, set := filepath.Join(t.TempDir(), "record.db"), record.Settings{On: true, Days: 30, Size: 1 << 30}
	for _, r := range []prometheus.Registerer{prometheus.NewRegistry(), reg} { // the second one finds what the first has written
		k := record.NewKeeper(half, path, set, slog.New(slog.DiscardHandler), r)
		go k.Run()
		if half == record.MilterHalf {
			k.Message(&record.Message{Time: time.Now()})
		} else {
			k.Attempt(&record.Attempt{Time: time.Now()})
		}
		k.Close()
	}
}

// tokenFigures returns the registry of a token service that has one of everything.
func tokenFigures(t *testing.T) *prometheus.Registry {
	t.Helper()
	reg, _, _ := service.NewRegistry(version)
	m := lease.NewMetrics(reg)
	m.Observe("relay-app")
	m.Shared(true)
	leases := lease.NewLessor(ledger.NewMemory(), m, slog.New(slog.DiscardHandler))
	sendWithMailbox(t, leases, "erp@contoso.com", "554 5.2.252 SendAsDenied; erp@contoso.com not allowed to send as hr@contoso.com")
	now := time.Now()
	usage := &lease.UsageStatus{Used: 1, Left: 29, Limit: 30, Window: 60}
	proof := func(kind string) *lease.ProofStatus { return &lease.ProofStatus{Kind: kind, Ends: &now} }
	state := &lease.Status{
		Groups: []lease.GroupStatus{{Name: lease.GroupExternal, Recipients: usage}},
		Mailboxes: []lease.MailboxStatus{{Mailbox: "erp@contoso.com", Messages: usage, Recipients: usage, Connections: 3, InForce: 2, Next: &now, PausedUntil: &now,
			Denied: []lease.Denial{{Held: true}}}},
		Credentials: []lease.CredentialStatus{
			{Name: "relay-app", InUse: true, Proof: proof(token.ProofSecret), Refresh: lease.RefreshStatus{LastSuccess: &now}},
			{Name: "other-app", InUse: true, Proof: &lease.ProofStatus{Kind: token.ProofCertificate, Ends: &now, Renewal: new(lease.RenewalStatus)}, SignIn: &lease.SignInStatus{Since: &now, Ends: &now}},
			{Name: "pod-app", InUse: true, Proof: proof(token.ProofFederated)},
		},
	}
	reg.MustRegister(lease.NewCollector(leases, func(context.Context) *lease.Status { return state }))
	keptFigures(t, record.TokenHalf, reg)
	return reg
}

// oneMailbox is a directory of a mailbox, by its address, that may send as everybody.
type oneMailbox string

func (m oneMailbox) Mailboxes(string) []*lease.Mailbox {
	return []*lease.Mailbox{{Address: string(m), Label: string(m), Limits: limit.Microsoft(), Tokens: oneToken{}}}
}

func (oneMailbox) Listed(sender string) string { return sender }

func (oneMailbox) External(string) bool { return false }

func (oneMailbox) RouteFrom(string) string { return "" }

func (oneMailbox) RouteTo(string) string { return "" }

// oneToken is a credential that always has a token.
type oneToken struct{}

func (oneToken) Token(context.Context) (*entra.Token, error) {
	return &entra.Token{Access: "eyJ0eXAiOiJKV1QifQ.c2VjcmV0.c2ln", Expires: time.Now().Add(time.Hour)}, nil
}

func (oneToken) Discard(entra.Secret) {}

// sendWithMailbox sends messages that begin what is counted by mailbox: one whose last reply is
// given, after a recipient was refused, and one that is lost.
func sendWithMailbox(t *testing.T, leases *lease.Lessor, address, last string) {
	t.Helper()
	leases.Use(oneMailbox(address))
	begin := []string{"235 2.7.0 Authentication successful", "250 2.1.0 Sender OK", "250 2.1.5 Recipient OK", "501 5.1.3 Invalid address", "354 Start mail input"}
	for i, end := range []string{"220 a new session", last} {
		c := lease.Caller{PID: int32(-1 - i)} // that no real process has
		if r := leases.Lease(t.Context(), c, "hr@contoso.com"); r.Status != lease.OK {
			t.Fatalf("look-up: %+v", r)
		}
		for _, line := range append(begin, end) {
			leases.Reply(t.Context(), c, line)
		}
	}
}

// milterFigures returns the registry of a milter that has one of everything.
func milterFigures(t *testing.T) *prometheus.Registry {
	t.Helper()
	reg, _, _ := service.NewRegistry(version)
	log := slog.New(slog.DiscardHandler)
	store, err := openAdmission(&config.Site{Milter: config.Milter{Store: "memory:"}}, reg, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.close)
	p, errs := policy.New(policy.Settings{Domains: []string{"contoso.com"}, Mailboxes: []policy.MailboxSettings{{Address: "scan@contoso.com"}},
		Clients: []policy.ClientSettings{{Name: "printers", Networks: []string{"10.2.0.0/16"}, From: "scan@contoso.com"}}})
	if errs != nil {
		t.Fatal(errs)
	}
	q := queue.New(log, reg)
	q.Use(queue.Rules{Socket: queuetest.Start(t, queuetest.Deferred("deferred", "4cQXfigures", "scan@contoso.com", time.Now(), "connect to smtp.office365.com[52.97.1.2]:587: Connection refused")).Path, Policy: p})
	q.Look(t.Context())
	keptFigures(t, record.MilterHalf, reg)
	milter.NewMetrics(reg).Clients([]string{"printers"})
	limits := []milter.LimitStatus{{Kind: limit.KindMessages, Window: 60}, {Kind: limit.KindRecipients, Window: 86400}}
	state := &milter.Status{Clients: []milter.ClientStatus{{Client: "printers", Limits: limits}},
		Identities: []milter.IdentityStatus{{Identity: "scan@contoso.com", Limits: limits}}}
	reg.MustRegister(milter.NewCollector(func() *milter.Status { return state }))
	return reg
}

// TestMetricsDocs: docs/metrics.md and the services have the same series.
func TestMetricsDocs(t *testing.T) {
	have, want := serviceSeries(t, tokenFigures(t)), documentedSeries(t)
	maps.Copy(have, serviceSeries(t, milterFigures(t)))
	for name, doc := range want {
		if got, ok := have[name]; !ok {
			t.Errorf("docs/metrics.md has %s, which no service shows", name)
		} else if got != doc {
			t.Errorf("%s\n is         %+v\n documented %+v", name, got, doc)
		}
	}
	for name := range have {
		if _, ok := want[name]; !ok {
			t.Errorf("docs/metrics.md lacks %s", name)
		}
	}
}

// TestMetricsLint: Prometheus' own rules for names, help and units.
func TestMetricsLint(t *testing.T) {
	for service, reg := range map[string]*prometheus.Registry{"milter": milterFigures(t), "token": tokenFigures(t)} {
		page := httptest.NewRecorder()
		promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(page, httptest.NewRequest("GET", "/metrics", nil))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "promtool", "check", "metrics") // of Debian's package prometheus
		cmd.Stdin = page.Body
		if out, err := cmd.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
			t.Errorf("%s: %v\n%s", service, err, out)
		}
	}
}
