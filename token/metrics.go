package token

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the series of the token service. Labels are mailbox addresses and credential
// names of the configuration, codes and classes: never a stranger's text.
type Metrics struct {
	lookups *prometheus.CounterVec
	waits   *prometheus.HistogramVec
	waiting *prometheus.GaugeVec
	replies *prometheus.CounterVec
	refresh *prometheus.CounterVec
	took    *prometheus.HistogramVec
	auth    *prometheus.CounterVec
	expiry  *prometheus.GaugeVec
	success *prometheus.GaugeVec
	secret  *prometheus.GaugeVec
	appKey  *prometheus.GaugeVec
	grant   *prometheus.GaugeVec
	skew    *prometheus.GaugeVec
	shared  *prometheus.GaugeVec
}

// NewMetrics makes the series and registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		lookups: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sendas_lease_lookups_total", Help: "Look-ups of a credential by smtp(8).",
		}, []string{"mailbox" /* "" for an unknown sender */, "result" /* ok, deferred, unknown-sender */}),
		waits: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sendas_lease_wait_seconds", Help: "How long a look-up waited for its lease.",
			Buckets: []float64{.001, .01, .1, .5, 1, 2, 5, 10, 20, 40, 60},
		}, []string{"mailbox"}),
		waiting: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sendas_lease_waiters", Help: "Look-ups that wait for a lease now.",
		}, []string{"mailbox"}),
		replies: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sendas_upstream_replies_total", Help: "Replies of Exchange Online that settled a delivery.",
		}, []string{"mailbox", "code" /* 250, 554, … */, "class" /* accepted, concurrency, quota, send-as-denied, … */}),
		refresh: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sendas_token_refreshes_total", Help: "Requests for an access token.",
		}, []string{"credential", "result" /* ok, refused, unreachable, config */}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sendas_token_refresh_seconds", Help: "How long requests for an access token took.",
			Buckets: []float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"credential"}),
		auth: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sendas_upstream_auth_total", Help: "Answers of Exchange Online to AUTH.",
		}, []string{"mailbox", "result" /* ok, auth-refused, auth-disabled, service, … */}),
		success: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sendas_token_last_success_timestamp_seconds", Help: "When an access token was last got; 0 if never since the start.",
		}, []string{"credential"}),
		appKey: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sendas_client_secret_expiry_timestamp_seconds", Help: "When the client secret of a credential ends, as the configuration says.",
		}, []string{"credential"}),
		grant: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sendas_refresh_token_timestamp_seconds", Help: "When the refresh token of a signed-in user was given; unused it ends after 90 days.",
		}, []string{"credential"}),
		skew: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sendas_clock_skew_seconds", Help: "How far this machine's clock is ahead of Entra's.",
		}, []string{"credential"}),
		// Without labels, so that there is no series where no store is shared.
		shared: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sendas_ledger_shared", Help: "1 while the ledger that hosts share is in use, 0 while this host keeps to its own share.",
		}, nil),
		expiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sendas_token_expiry_timestamp_seconds", Help: "When the access token in memory ends; 0 without one.",
		}, []string{"credential"}),
		secret: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sendas_certificate_expiry_timestamp_seconds", Help: "When the certificate of a credential ends.",
		}, []string{"credential"}),
	}
	reg.MustRegister(m.lookups, m.waits, m.waiting, m.replies, m.refresh, m.took, m.auth, m.expiry, m.success, m.secret, m.appKey, m.grant, m.skew, m.shared)
	return m
}

// Mailbox makes the series of a mailbox exist before anything happens to it.
func (m *Metrics) Mailbox(address string) {
	m.lookups.WithLabelValues(address, "ok")
	m.lookups.WithLabelValues(address, "deferred")
	m.waits.WithLabelValues(address)
	m.waiting.WithLabelValues(address)
	m.replies.WithLabelValues(address, "250", string(ClassAccepted))
	m.auth.WithLabelValues(address, resultAuthOK)
	m.auth.WithLabelValues(address, string(ClassAuth))
}

// resultAuthOK is the result of an AUTH that succeeded.
const resultAuthOK = "ok"

// Observe returns the hook for the Refresher of a credential.
func (m *Metrics) Observe(credential string, state func() RefresherState) func(result string, took time.Duration) {
	for _, r := range Results {
		m.refresh.WithLabelValues(credential, r)
	}
	m.expiry.WithLabelValues(credential)
	m.success.WithLabelValues(credential)
	return func(result string, took time.Duration) {
		m.refresh.WithLabelValues(credential, result).Inc()
		m.took.WithLabelValues(credential).Observe(took.Seconds())
		s := state()
		if !s.LastSuccess.IsZero() {
			m.success.WithLabelValues(credential).Set(float64(s.LastSuccess.Unix()))
			m.skew.WithLabelValues(credential).Set(s.Skew.Seconds())
		}
		if s.Have {
			m.expiry.WithLabelValues(credential).Set(float64(s.Expires.Unix()))
		} else {
			m.expiry.WithLabelValues(credential).Set(0)
		}
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

// ClientSecret notes the end of a credential's client secret.
func (m *Metrics) ClientSecret(credential string, notAfter time.Time) {
	m.appKey.WithLabelValues(credential).Set(float64(notAfter.Unix()))
}

// Grant notes when the refresh token in use was given.
func (m *Metrics) Grant(credential string, given time.Time) {
	m.grant.WithLabelValues(credential).Set(float64(given.Unix()))
}

// Certificate notes the end of a credential's certificate.
func (m *Metrics) Certificate(credential string, notAfter time.Time) {
	m.secret.WithLabelValues(credential).Set(float64(notAfter.Unix()))
}
