package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/token"
	"github.com/sendas/sendas/token/lease"
	"github.com/sendas/sendas/token/ledger"
)

// What a token service with many mailboxes may show and keep before the first message. Of the
// memory of the process, 30 MB are allowed with a thousand; some 20 are the program and its runtime.
const (
	manyMailboxes    = 1000
	seriesPerMailbox = 12
	scrapeBytes      = 800_000
	keptPerMailbox   = 5_000 // bytes, its place in configuration and policy included
)

// TestMetricsOfManyMailboxes: what a mailbox costs that has sent nothing, and that one in trouble
// has all that an alert needs.
func TestMetricsOfManyMailboxes(t *testing.T) {
	before := liveHeap()
	c := manyMailboxesSite(t)
	reg, _, _ := service.NewRegistry(version)
	log, metrics := slog.New(slog.DiscardHandler), lease.NewMetrics(reg)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // nothing is asked of Entra
	leases := lease.NewLessor(ledger.NewMemory(), metrics, log)
	desk := token.NewDesk(ctx, leases, metrics, log)
	if err := useSetup(desk, c); err != nil {
		t.Fatal(err)
	}
	defer desk.Wait()
	reg.MustRegister(lease.NewCollector(leases, func(ctx context.Context) *lease.Status { return desk.Status(ctx, version, started) }))
	first := scrape(reg)
	if kept := int64(liveHeap()) - int64(before); kept > manyMailboxes*keptPerMailbox {
		t.Errorf("%d mailboxes keep %d bytes, want %d at most", manyMailboxes, kept, manyMailboxes*keptPerMailbox)
	}
	runtime.KeepAlive(c)
	if len(first) > scrapeBytes {
		t.Errorf("a scrape has %d bytes, want %d at most", len(first), scrapeBytes)
	}
	if list := seriesOf(first, boxName(1)); len(list) > seriesPerMailbox || len(list) < 5 {
		t.Errorf("a mailbox that has sent nothing has %d series:\n%s", len(list), strings.Join(list, ""))
	}

	sendWithMailbox(t, leases, boxName(0), "550 5.7.501 Access denied, spam abuse detected")
	then := scrape(reg)
	for _, want := range []string{
		"sendas_mailbox_paused_until_timestamp_seconds{mailbox=%q,reason=\"blocked\"} ",
		"sendas_mailbox_next_lease_timestamp_seconds{mailbox=%q} ",
		"sendas_upstream_replies_total{class=\"blocked\",code=\"550\",mailbox=%q} 1\n",
		"sendas_upstream_refusals_total{class=\"recipient\",mailbox=%q,stage=\"rcpt\"} 2\n",
		"sendas_lease_lookups_total{mailbox=%q,result=\"ok\"} 2\n",
		"sendas_upstream_auth_total{mailbox=%q,result=\"ok\"} 2\n",
		"sendas_sessions_lost_total{mailbox=%q,stage=\"data\"} 1\n",
		"sendas_mailbox_recipients_used{mailbox=%q} ",
	} {
		if want = fmt.Sprintf(want, boxName(0)); !strings.Contains(then, "\n"+want) {
			t.Errorf("a mailbox in trouble lacks %s; it has\n%s", want, strings.Join(seriesOf(then, boxName(0)), ""))
		}
	}
	if was, is := seriesOf(first, boxName(1)), seriesOf(then, boxName(1)); len(was) != len(is) {
		t.Errorf("one mailbox in trouble changes another one's series from %d to %d", len(was), len(is))
	}
	for line := range strings.Lines(then) {
		if strings.Contains(line, "_bucket{") && strings.Contains(line, "@") {
			t.Errorf("a histogram is kept by mailbox: %s", line)
		}
	}
}

// boxName returns the address of a mailbox, with as many characters as those of real sites have.
func boxName(i int) string { return fmt.Sprintf("scanner.floor-%04d@contoso.com", i) }

// manyMailboxesSite is a configuration with that many mailboxes.
func manyMailboxesSite(t *testing.T) *config.Site {
	t.Helper()
	dir := t.TempDir()
	configtest.WriteFile(t, dir+"/app.secret", "hunter2-the-secret\n", 0o600)
	var y strings.Builder
	y.WriteString("tenant: {id: contoso.onmicrosoft.com, domains: [contoso.com]}\n" +
		"credentials:\n  relay-app: {client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab, client_secret_file: app.secret}\n" +
		"notices: " + boxName(0) + "\nclients:\n  - {name: all, networks: [10.0.0.0/8], from: " + boxName(0) + "}\nmailboxes:\n")
	for i := range manyMailboxes {
		fmt.Fprintf(&y, "  - {address: %s, credential: relay-app}\n", boxName(i))
	}
	c, err := config.Load(configtest.WriteFile(t, dir+"/sendas.yaml", y.String(), 0o600), config.SkipFiles)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// scrape returns what Prometheus gets.
func scrape(reg *prometheus.Registry) string {
	page := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(page, httptest.NewRequest("GET", "/metrics", nil))
	return page.Body.String()
}

// seriesOf returns the lines that have the word.
func seriesOf(page, word string) []string {
	var list []string
	for line := range strings.Lines(page) {
		if strings.Contains(line, word) {
			list = append(list, line)
		}
	}
	return list
}

// liveHeap returns how many bytes are in use once all garbage is gone.
func liveHeap() uint64 {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
