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
	expiry  *prometheus.GaugeVec
	secret  *prometheus.GaugeVec
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
		expiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sendas_token_expiry_timestamp_seconds", Help: "When the access token in memory ends; 0 without one.",
		}, []string{"credential"}),
		secret: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sendas_certificate_expiry_timestamp_seconds", Help: "When the certificate of a credential ends.",
		}, []string{"credential"}),
	}
	reg.MustRegister(m.lookups, m.waits, m.waiting, m.replies, m.refresh, m.took, m.expiry, m.secret)
	return m
}

// Mailbox makes the series of a mailbox exist before anything happens to it.
func (m *Metrics) Mailbox(address string) {
	m.lookups.WithLabelValues(address, "ok")
	m.lookups.WithLabelValues(address, "deferred")
	m.waits.WithLabelValues(address)
	m.waiting.WithLabelValues(address)
	m.replies.WithLabelValues(address, "250", string(ClassAccepted))
}

// Observe returns the hook for the Refresher of a credential.
func (m *Metrics) Observe(credential string, state func() RefresherState) func(result string, took time.Duration) {
	for _, r := range Results {
		m.refresh.WithLabelValues(credential, r)
	}
	m.expiry.WithLabelValues(credential)
	return func(result string, took time.Duration) {
		m.refresh.WithLabelValues(credential, result).Inc()
		m.took.WithLabelValues(credential).Observe(took.Seconds())
		if s := state(); s.Have {
			m.expiry.WithLabelValues(credential).Set(float64(s.Expires.Unix()))
		} else {
			m.expiry.WithLabelValues(credential).Set(0)
		}
	}
}

// Certificate notes the end of a credential's certificate.
func (m *Metrics) Certificate(credential string, notAfter time.Time) {
	m.secret.WithLabelValues(credential).Set(float64(notAfter.Unix()))
}
