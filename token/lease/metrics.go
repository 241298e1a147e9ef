package lease

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/token/entra"

	"github.com/sendas/sendas/token/lease/replies"
)

// Metrics are the series of what happens in the token service; [Collector] has those of its state.
// Labels are mailbox addresses and credential names of the configuration, codes and classes: never
// a stranger's text.
//
// What is counted by mailbox begins with the first event: a thousand mailboxes that send nothing
// are no series. For Prometheus an increase from nothing is none, so the rules count such a series
// from zero, as their group sendas-first-events says.
type Metrics struct {
	lookups *prometheus.CounterVec
	waits   prometheus.Histogram
	kept    prometheus.Histogram
	long    *prometheus.CounterVec
	waiting *prometheus.GaugeVec
	replies *prometheus.CounterVec
	refusal *prometheus.CounterVec
	denied  *prometheus.CounterVec
	auth    *prometheus.CounterVec
	lost    *prometheus.CounterVec
	silent  *prometheus.CounterVec
	refresh *prometheus.CounterVec
	took    prometheus.Histogram
	queries *prometheus.CounterVec
	ledger  *prometheus.CounterVec
	shared  *prometheus.GaugeVec
}

// NewMetrics makes the series and registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		lookups: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sendas_lease_lookups_total", Help: "Look-ups of a credential by smtp(8).",
		}, []string{"mailbox" /* "" for an unknown sender */, "result" /* ok, deferred, unknown-sender */}),
		waits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sendas_lease_wait_seconds", Help: "How long a look-up waited for its lease.",
			Buckets: []float64{.001, .01, .1, .5, 1, 2, 5, 10, 20, 40, 60},
		}),
		kept: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sendas_message_wait_seconds", Help: "How long messages that had their lease waited at DATA for their place in the minute; without a wait they are not counted.",
			Buckets: []float64{.01, .1, .5, 1, 2, 5, 10, 20},
		}),
		long: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sendas_lease_long_waits_total", Help: "Look-ups that got their lease after more than 30 seconds.",
		}, []string{"mailbox"}),
		waiting: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sendas_lease_waiters", Help: "Look-ups that wait for a lease now.",
		}, []string{"mailbox"}),
		replies: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sendas_upstream_replies_total", Help: "Replies of Exchange Online that settled a delivery.",
		}, []string{"mailbox", "code" /* 250, 554, … */, "class" /* accepted, concurrency, quota, send-as-denied, … */}),
		refusal: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sendas_upstream_refusals_total", Help: "What Exchange Online refused, single recipients and sessions without sign-in included.",
		}, []string{"mailbox" /* "" before the sign-in */, "stage" /* connect, ehlo, starttls, auth, mail, rcpt, data, end-of-data */, "class" /* as of replies */}),
		denied: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sendas_send_as_denied_total", Help: "Messages that Exchange Online refused because the mailbox may not send as their sender.",
		}, []string{"mailbox"}),
		auth: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sendas_upstream_auth_total", Help: "Answers of Exchange Online to AUTH.",
		}, []string{"mailbox", "result" /* ok, auth-refused, auth-disabled, service, … */}),
		lost: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sendas_sessions_lost_total", Help: "Sessions with a lease that ended without a verdict.",
		}, []string{"mailbox", "stage" /* envelope: before DATA; data: Microsoft may have taken the message */}),
		silent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sendas_leases_unseen_total", Help: "Leases of which no reply was ever shown. Each counts as sent, with token.recipients_unseen recipients.",
		}, []string{"mailbox"}),
		refresh: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sendas_token_refreshes_total", Help: "Requests for an access token.",
		}, []string{"credential", "result" /* ok, refused, unreachable, config */}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sendas_token_refresh_seconds", Help: "How long requests for an access token took.",
			Buckets: []float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}),
		queries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sendas_socketmap_errors_total", Help: "Look-ups and connections of Postfix that got no proper answer.",
		}, []string{"reason" /* one of socketmapErrors */}),
		ledger: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sendas_ledger_errors_total", Help: "Failures of the store that keeps what the mailboxes have sent.",
		}, []string{"operation" /* one of ledgerOperations */}),
		// Without labels, so that there is no series where no store is shared.
		shared: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sendas_ledger_shared", Help: "1 while the ledger that hosts share is in use, 0 while this host keeps to its own share.",
		}, nil),
	}
	reg.MustRegister(m.lookups, m.waits, m.kept, m.long, m.waiting, m.replies, m.refusal, m.denied, m.auth, m.lost, m.silent, m.refresh, m.took, m.queries, m.ledger, m.shared)
	m.lookups.WithLabelValues("", "unknown-sender")
	for _, at := range []Stage{StageConnect, StageEHLO, StageSTARTTLS} {
		m.refusal.WithLabelValues("", string(at), string(replies.Busy))
	}
	for _, r := range socketmapErrors {
		m.queries.WithLabelValues(r)
	}
	for _, o := range ledgerOperations {
		m.ledger.WithLabelValues(o)
	}
	return m
}

// Reasons of socketmap errors.
const (
	badPeer  = "peer"        // a user who may not ask
	badQuery = "query"       // not the protocol, or cut short
	badMap   = "unknown-map" // a name that main.cf should not have
	badCount = "connections" // more than maxPeers
)

var socketmapErrors = []string{badPeer, badQuery, badMap, badCount}

// What the ledger was asked when it failed.
const (
	opTake   = "take"
	opSettle = "settle"
	opPause  = "pause"
	opUsage  = "usage"
)

var ledgerOperations = []string{opTake, opSettle, opPause, opUsage}

// Where sessions get lost.
const (
	lostInEnvelope = "envelope"
	lostInData     = "data"
)

// longWait is how long a look-up may wait before it counts as a long one: more than half of maxWait.
const longWait = 30 * time.Second

// leased counts a look-up that got its lease after so long.
func (m *Metrics) leased(label string, waited time.Duration) {
	m.lookups.WithLabelValues(label, "ok").Inc()
	m.waits.Observe(waited.Seconds())
	if waited > longWait {
		m.long.WithLabelValues(label).Inc()
	}
}

// resultAuthOK is the result of an AUTH that succeeded.
const resultAuthOK = "ok"

// Observe returns the hook for the Refresher of a credential.
func (m *Metrics) Observe(credential string) func(result string, took time.Duration) {
	for _, r := range entra.Results {
		m.refresh.WithLabelValues(credential, r)
	}
	return func(result string, took time.Duration) {
		m.refresh.WithLabelValues(credential, result).Inc()
		m.took.Observe(took.Seconds())
	}
}

// verdict counts the reply that settled a delivery.
func (m *Metrics) verdict(label, code string, class replies.Class) {
	m.replies.WithLabelValues(label, code, string(class)).Inc()
	if class == replies.SendAs {
		m.denied.WithLabelValues(label).Inc()
	}
}

// refused counts what was refused at a stage.
func (m *Metrics) refused(label string, at Stage, class replies.Class) {
	m.refusal.WithLabelValues(label, string(at), string(class)).Inc()
}

// unseen counts a session that ended without a verdict, by what it would be booked as.
func (m *Metrics) unseen(label string, submitted bool) {
	stage := lostInEnvelope
	if submitted {
		stage = lostInData
	}
	m.lost.WithLabelValues(label, stage).Inc()
}

// ledgerFailed counts a failure of the store. One whose caller had no time left is none.
func (m *Metrics) ledgerFailed(ctx context.Context, operation string) {
	if ctx.Err() == nil {
		m.ledger.WithLabelValues(operation).Inc()
	}
}

// lookupFailed counts a look-up without proper answer; a nil Metrics counts nothing.
func (m *Metrics) lookupFailed(reason string) {
	if m != nil {
		m.queries.WithLabelValues(reason).Inc()
	}
}

// Shared notes whether the ledger that hosts share is in use.
func (m *Metrics) Shared(inUse bool) {
	v := 0.0
	if inUse {
		v = 1
	}
	m.shared.WithLabelValues().Set(v)
}
