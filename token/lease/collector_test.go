package lease

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/lease/replies"
	"github.com/sendas/sendas/token/ledger"
)

// wantFigures compares the series of a collector that have the names with lines of the exposition
// format.
func wantFigures(t *testing.T, c prometheus.Collector, want string, names ...string) {
	t.Helper()
	var lines []string
	for line := range strings.Lines(want) {
		lines = append(lines, strings.TrimSpace(line))
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(c)
	page := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(page, httptest.NewRequest("GET", "/metrics", nil))
	var got []string
	for line := range strings.Lines(page.Body.String()) {
		name := line[:strings.IndexAny(line, "{ ")]
		if name != "#" && (len(names) == 0 || slices.Contains(names, name)) {
			got = append(got, strings.TrimSpace(line))
		}
	}
	if g, w := strings.Join(got, "\n"), strings.TrimSpace(strings.Join(lines, "\n")); g != w {
		t.Errorf("the series are\n%s\nwant\n%s", g, w)
	}
}

// figures returns the collector of a desk with its one mailbox.
func (d *desk) figures() *Collector {
	in := StatusInput{Groups: []GroupInput{{Name: GroupExternal, Recipients: limit.TERRL(1)}}, Mailboxes: []MailboxInput{{Label: "erp@contoso.com", Limits: d.limits}, {Label: "*@contoso.de", Pattern: true, Limits: d.limits}}}
	return NewCollector(d.Lessor, func(ctx context.Context) *Status { return d.Status(ctx, in) })
}

func TestCollectorOfMailboxes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(limit.Rate{N: 30, Per: time.Minute})
		if r := d.Lease(t.Context(), process(1), "erp@contoso.com"); r.Status != OK {
			t.Fatal(r)
		}
		d.play(t, process(1), authOK, mailOK, rcptOK, rcptOK, dataOK, accepted)
		if r := d.Lease(t.Context(), process(2), "erp@contoso.com"); r.Status != OK {
			t.Fatal(r)
		}
		d.play(t, process(2), authOK, mailOK, rcptOK, dataOK, tooMany)
		if r := d.Lease(t.Context(), process(3), "erp@contoso.com"); r.Status != OK {
			t.Fatal(r)
		}
		wantFigures(t, d.figures(), `
			sendas_group_recipients_left{group="external"} 10000
			sendas_group_recipients_limit{group="external"} 10000
			sendas_group_recipients_used{group="external"} 0
			sendas_ledger_up 1
			sendas_mailbox_connections_in_force{mailbox="erp@contoso.com"} 2
			sendas_mailbox_connections_limit{mailbox="*@contoso.de"} 3
			sendas_mailbox_connections_limit{mailbox="erp@contoso.com"} 3
			sendas_mailbox_leases{mailbox="*@contoso.de"} 0
			sendas_mailbox_leases{mailbox="erp@contoso.com"} 1
			sendas_mailbox_messages_left{mailbox="erp@contoso.com"} 27
			sendas_mailbox_messages_limit{mailbox="erp@contoso.com"} 30
			sendas_mailbox_messages_used{mailbox="erp@contoso.com"} 3
			sendas_mailbox_recipients_left{mailbox="erp@contoso.com"} 9998
			sendas_mailbox_recipients_limit{mailbox="erp@contoso.com"} 10000
			sendas_mailbox_recipients_used{mailbox="erp@contoso.com"} 2
		`, "sendas_group_recipients_left", "sendas_group_recipients_limit", "sendas_group_recipients_used", "sendas_ledger_up", "sendas_mailbox_connections_in_force", "sendas_mailbox_connections_limit", "sendas_mailbox_leases",
			"sendas_mailbox_messages_left", "sendas_mailbox_messages_limit", "sendas_mailbox_messages_used",
			"sendas_mailbox_recipients_left", "sendas_mailbox_recipients_limit", "sendas_mailbox_recipients_used")
	})
}

// TestCollectorOfRests: why a mailbox rests is told by classes, not by texts. Time begins at
// 2000-01-01 in a bubble: 946684800.
func TestCollectorOfRests(t *testing.T) {
	for _, tc := range []struct {
		name, reply, by string // a reply at the end of DATA, or to AUTH; or a pause by that reason
		class           ledger.PauseClass
		want            string
	}{
		{"nothing", accepted, "", "", ""},
		{"quota", quota, "", "", "quota 9.466857e+08"},
		{"full", "554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded", "", "", "mailbox-full 9.466857e+08"},
		{"blocked", "550 5.7.501 Access denied, spam abuse detected", "", "", "blocked 9.466857e+08"},
		{"refused", auth535, "", "", "auth 9.466851e+08"},
		{"by hand", "", "maintenance", "", "other 9.4668486e+08"},
		{"quota, in other words", "", "nothing more leaves today", ledger.PauseQuota, "quota 9.4668486e+08"},
		{"full, in the words of a quota", "", replies.Line(quota).Meaning, ledger.PauseFull, "mailbox-full 9.4668486e+08"},
		{"quota, of a version without classes", "", replies.Line(quota).Meaning, "", "other 9.4668486e+08"},
		{"of a later version", "", "maintenance", "maintenance", "other 9.4668486e+08"},
	} {
		synctest.Test(t, func(t *testing.T) {
			d := newDesk(limit.Rate{N: 30, Per: time.Minute})
			if tc.by != "" {
				if err := d.ledger.Pause(t.Context(), "erp@contoso.com", ledger.Pause{Until: time.Now().Add(time.Minute), Class: tc.class, Reason: tc.by}, time.Now()); err != nil {
					t.Fatal(err)
				}
			} else if r := d.Lease(t.Context(), process(1), "erp@contoso.com"); r.Status != OK {
				t.Fatal(r)
			} else if tc.reply == auth535 {
				d.play(t, process(1), tc.reply)
			} else {
				d.play(t, process(1), authOK, mailOK, rcptOK, dataOK, tc.reply)
			}
			var want strings.Builder
			if reason, at, rests := strings.Cut(tc.want, " "); rests {
				want.WriteString(`sendas_mailbox_paused_until_timestamp_seconds{mailbox="erp@contoso.com",reason="` + reason + `"} ` + at + "\n")
			}
			t.Log(tc.name)
			wantFigures(t, d.figures(), want.String(), "sendas_mailbox_paused_until_timestamp_seconds")
		})
	}
}

func TestCollectorOfCredentials(t *testing.T) {
	at := func(sec int64) *time.Time { u := time.Unix(sec, 0); return &u }
	s := &Status{Credentials: []CredentialStatus{
		{Name: "live", InUse: true, Token: TokenStatus{Live: true, Expires: at(5000)}, Refresh: RefreshStatus{LastSuccess: at(1400)}, Skew: -2.5,
			Proof: &ProofStatus{Kind: "certificate", Ends: at(90000)}},
		{Name: "dead", InUse: true, Token: TokenStatus{Expires: at(1000)}, Refresh: RefreshStatus{LastSuccess: at(400)}, Proof: &ProofStatus{Kind: "secret", Ends: at(80000)}},
		{Name: "new", InUse: true, Proof: &ProofStatus{Kind: "secret"}}, // whose end nobody has written down
		{Name: "pod", InUse: true, Proof: &ProofStatus{Kind: "federated_token", Ends: at(60000)}},
		{Name: "user", InUse: true, SignIn: &SignInStatus{Since: at(10), LastUsed: at(7000), Renewed: at(7000), Ends: at(50000)}},
		{Name: "kept", InUse: true, SignIn: &SignInStatus{Since: at(10), LastUsed: at(7000), Renewed: at(1000), Ends: at(40000), Kept: true}},
		{Name: "revoked", InUse: true, SignIn: &SignInStatus{Since: at(10), Renewed: at(1000), Ends: at(40000), Refused: &Refusal{Code: "AADSTS50173"}}},
		{Name: "nobody", InUse: true, SignIn: &SignInStatus{}},
		{Name: "spare", Proof: &ProofStatus{Kind: "certificate", Ends: at(70000)}},
	}}
	d := newDesk(limit.Rate{N: 30, Per: time.Minute})
	wantFigures(t, NewCollector(d.Lessor, func(context.Context) *Status { return s }), `
		sendas_certificate_expiry_timestamp_seconds{credential="live"} 90000
		sendas_certificate_expiry_timestamp_seconds{credential="spare"} 70000
		sendas_client_secret_expiry_timestamp_seconds{credential="dead"} 80000
		sendas_clock_skew_seconds{credential="dead"} 0
		sendas_clock_skew_seconds{credential="live"} -2.5
		sendas_federated_token_expiry_timestamp_seconds{credential="pod"} 60000
		sendas_ledger_up 1
		sendas_sign_in_expiry_timestamp_seconds{credential="kept"} 40000
		sendas_sign_in_expiry_timestamp_seconds{credential="nobody"} 0
		sendas_sign_in_expiry_timestamp_seconds{credential="revoked"} 0
		sendas_sign_in_expiry_timestamp_seconds{credential="user"} 50000
		sendas_sign_in_renewed{credential="kept"} 0
		sendas_sign_in_renewed{credential="revoked"} 1
		sendas_sign_in_renewed{credential="user"} 1
		sendas_token_expiry_timestamp_seconds{credential="dead"} 0
		sendas_token_expiry_timestamp_seconds{credential="kept"} 0
		sendas_token_expiry_timestamp_seconds{credential="live"} 5000
		sendas_token_expiry_timestamp_seconds{credential="new"} 0
		sendas_token_expiry_timestamp_seconds{credential="nobody"} 0
		sendas_token_expiry_timestamp_seconds{credential="pod"} 0
		sendas_token_expiry_timestamp_seconds{credential="revoked"} 0
		sendas_token_expiry_timestamp_seconds{credential="user"} 0
		sendas_token_last_success_timestamp_seconds{credential="dead"} 400
		sendas_token_last_success_timestamp_seconds{credential="kept"} 0
		sendas_token_last_success_timestamp_seconds{credential="live"} 1400
		sendas_token_last_success_timestamp_seconds{credential="new"} 0
		sendas_token_last_success_timestamp_seconds{credential="nobody"} 0
		sendas_token_last_success_timestamp_seconds{credential="pod"} 0
		sendas_token_last_success_timestamp_seconds{credential="revoked"} 0
		sendas_token_last_success_timestamp_seconds{credential="user"} 0
	`)
}

// TestCollectorWithoutLedger: a ledger that hangs does not hold up what else there is to show.
func TestCollectorWithoutLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(limit.Rate{N: 30, Per: time.Minute})
		d.Lessor.ledger = hangingLedger{d.ledger}
		began := time.Now()
		wantFigures(t, d.figures(), `
			sendas_ledger_up 0
			sendas_mailbox_leases{mailbox="*@contoso.de"} 0
			sendas_mailbox_leases{mailbox="erp@contoso.com"} 0
		`, "sendas_ledger_up", "sendas_mailbox_leases", "sendas_mailbox_messages_used")
		if took := time.Since(began); took != scrapeTime {
			t.Errorf("it took %v, want %v", took, scrapeTime)
		}
		wantFigures(t, d.metrics.ledger, `
			sendas_ledger_errors_total{operation="pause"} 0
			sendas_ledger_errors_total{operation="settle"} 0
			sendas_ledger_errors_total{operation="take"} 0
			sendas_ledger_errors_total{operation="usage"} 1
		`)
	})
}

type hangingLedger struct{ ledger.Store }

func (hangingLedger) Usage(ctx context.Context, _ string, _ limit.Allowance, _ time.Time) (ledger.Usage, error) {
	<-ctx.Done()
	return ledger.Usage{}, ctx.Err()
}

// TestCounters: what sessions add to the counters.
func TestCounters(t *testing.T) {
	for _, tc := range []struct {
		name                 string
		replies              []string
		denied, envelope, in float64
	}{
		{"accepted", []string{authOK, mailOK, rcptOK, dataOK, accepted}, 0, 0, 0},
		{"Send As denied", []string{authOK, mailOK, rcptOK, dataOK, denied}, 1, 0, 0},
		{"lost in the envelope", []string{authOK, mailOK, rcptOK, banner}, 0, 1, 0},
		{"lost in DATA", []string{authOK, mailOK, rcptOK, dataOK, banner}, 0, 0, 1},
		{"sign-in refused", []string{auth535}, 0, 0, 0},
	} {
		d := newDesk(limit.Rate{N: 30, Per: time.Minute})
		if r := d.Lease(t.Context(), process(1), "erp@contoso.com"); r.Status != OK {
			t.Fatal(r)
		}
		d.play(t, process(1), tc.replies...)
		for what, x := range map[string]struct{ got, want float64 }{
			"denied":           {testutil.ToFloat64(d.metrics.denied.WithLabelValues("erp@contoso.com")), tc.denied},
			"lost in envelope": {testutil.ToFloat64(d.metrics.lost.WithLabelValues("erp@contoso.com", lostInEnvelope)), tc.envelope},
			"lost in DATA":     {testutil.ToFloat64(d.metrics.lost.WithLabelValues("erp@contoso.com", lostInData)), tc.in},
		} {
			if x.got != x.want {
				t.Errorf("%s: %s is %v, want %v", tc.name, what, x.got, x.want)
			}
		}
	}
}

func TestSocketmapErrors(t *testing.T) {
	uid := uint32(os.Getuid())
	for _, tc := range []struct {
		name, query string
		peers       []uint32
		admin       map[string]Map
		want        string // reason
	}{
		{"fine", "8:echo abc,", []uint32{uid}, nil, ""},
		{"unknown map", "7:nix abc,", []uint32{uid}, nil, badMap},
		{"no netstring", "hello\n", []uint32{uid}, nil, badQuery},
		{"stranger", "8:echo abc,", []uint32{uid + 1}, nil, badPeer},
		{"administrator", "8:echo abc,", []uint32{uid + 1}, map[string]Map{}, badPeer},
		{"doctor", fmt.Sprintf("%d:%s,", len(Knock), Knock), []uint32{uid + 1}, map[string]Map{}, ""},
		{"knocking stranger", fmt.Sprintf("%d:%s,", len(Knock), Knock), []uint32{uid + 1}, nil, badPeer},
	} {
		m := NewMetrics(prometheus.NewRegistry())
		ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		s := &SocketmapServer{Peers: tc.peers, Admin: tc.admin, Log: slog.New(slog.DiscardHandler), Metrics: m,
			Maps: map[string]Map{"echo": func(_ context.Context, _ Caller, key string) Result { return Result{OK, key} }}}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Serve(ctx, ln) }()
		c, err := net.Dial("unix", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(2 * time.Minute))
		io.WriteString(c, tc.query)        // a stranger's connection may be closed already
		bufio.NewReader(c).ReadString(',') // the answer, or the end
		testSocketmapCounts(t, m, tc.name, tc.want)
		c.Close()
		stop()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func testSocketmapCounts(t *testing.T, m *Metrics, name, want string) {
	t.Helper()
	for _, r := range socketmapErrors {
		n := 0.0
		if r == want {
			n = 1
		}
		if got := testutil.ToFloat64(m.queries.WithLabelValues(r)); got != n {
			t.Errorf("%s: %v errors of reason %s, want %v", name, got, r, n)
		}
	}
}
