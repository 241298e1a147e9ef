package milter

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/policy"
)

// Metrics are the series of the milter. Labels are names of the configuration and words of
// package policy: never a stranger's text.
type Metrics struct {
	messages *prometheus.CounterVec
	asked    *prometheus.CounterVec
	duration prometheus.Histogram
}

// NewMetrics makes the series and registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sendas_messages_total", Help: "Messages decided on.",
		}, []string{"client" /* "" for unknown peers */, "action" /* accept, reject, defer, hold */, "reason" /* authorized, client-from, no-client, … */}),
		asked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sendas_policy_requests_total", Help: "Requests of the policy delegation protocol answered.",
		}, []string{"client" /* "" for unknown peers */, "action" /* dunno, filter, refuse */}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sendas_decision_seconds", Help: "Time from the end of a message to the decision sent.",
			Buckets: []float64{.00001, .00003, .0001, .0003, .001, .003, .01, .1},
		}),
	}
	reg.MustRegister(m.messages, m.asked, m.duration)
	return m
}

func (m *Metrics) observe(client string, a policy.Action, reason policy.ReasonCode, took time.Duration) {
	m.messages.WithLabelValues(client, string(a), string(reason)).Inc()
	m.duration.Observe(took.Seconds())
}

// Clients makes the series of the clients exist before their first message.
func (m *Metrics) Clients(names []string) {
	for _, n := range names {
		m.messages.WithLabelValues(n, string(policy.Accept), string(policy.ReasonAuthorized))
	}
}
