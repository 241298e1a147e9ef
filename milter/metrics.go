package milter

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/milter/quota"
	"github.com/sendas/sendas/policy"
)

// Metrics are the series of what happens in the milter; [Collector] has those of its limits. Labels
// are names of the configuration and words of this package and of package policy: never a
// stranger's text.
type Metrics struct {
	messages *clientCounter
	asked    *clientCounter
	rcpts    *clientCounter
	over     *clientCounter
	observed *prometheus.CounterVec
	observes prometheus.Gauge
	duration prometheus.Histogram
}

// NewMetrics makes the series and registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		messages: newClientCounter(prometheus.CounterOpts{
			Name: "sendas_messages_total", Help: "Messages decided on.",
		}, []string{"client" /* "" for unknown peers */, "action" /* accept, reject, defer, hold, pass */, "reason" /* authorized, client-from, no-client, … */},
			[]string{string(policy.Accept), string(policy.ReasonAuthorized)}),
		asked: newClientCounter(prometheus.CounterOpts{
			Name: "sendas_policy_requests_total", Help: "Requests of the policy delegation protocol answered.",
		}, []string{"client" /* "" for unknown peers */, "action" /* dunno, filter, refuse */}, []string{askedDunno}),
		rcpts: newClientCounter(prometheus.CounterOpts{
			Name: "sendas_recipients_refused_total", Help: "Recipients refused at RCPT because their client was over its limits.",
		}, []string{"client"}, []string{}),
		over: newClientCounter(prometheus.CounterOpts{
			Name: "sendas_client_over_limit_total", Help: "Messages over a limit of their client or of the identity that they asked for.",
		}, []string{"client", "action" /* defer, reject, hold */, "limit" /* client, identity */}, overStart()...),
		observed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sendas_observed_messages_total", Help: "Messages that passed untouched because milter.mode is observe, by what would have become of them.",
		}, []string{"client" /* "" for unknown peers */, "would" /* accept, reject, … */, "reason"}),
		observes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sendas_observe_mode", Help: "1 where milter.mode is observe: nothing is changed or refused.",
		}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sendas_decision_seconds", Help: "Time from the end of a message to the decision sent.",
			Buckets: []float64{.00001, .00003, .0001, .0003, .001, .003, .01, .1},
		}),
	}
	m.observed.WithLabelValues("", string(policy.Reject), string(policy.ReasonNoClient))
	reg.MustRegister(m.messages, m.asked, m.rcpts, m.over, m.observed, m.observes, m.duration)
	return m
}

// use shows the mode in force.
func (m *Metrics) use(mode policy.Mode) {
	if m == nil {
		return
	}
	m.observes.Set(0)
	if mode == policy.Observe {
		m.observes.Set(1)
	}
}

// noted counts a message that passed, and what would have become of it.
func (m *Metrics) noted(client string, would policy.Action, reason policy.ReasonCode, took time.Duration) {
	m.observed.WithLabelValues(client, string(would), string(reason)).Inc()
	m.observe(client, policy.Pass, policy.ReasonObserved, took)
}

func (m *Metrics) observe(client string, a policy.Action, reason policy.ReasonCode, took time.Duration) {
	m.decided(client, a, reason)
	m.duration.Observe(took.Seconds())
}

// limitNames are the values of the label "limit".
var limitNames = map[policy.ReasonCode]string{policy.ReasonClientLimit: "client", policy.ReasonIdentityLimit: "identity"}

// decided counts a decision.
func (m *Metrics) decided(client string, a policy.Action, reason policy.ReasonCode) {
	m.messages.WithLabelValues(client, string(a), string(reason)).Inc()
	if l := limitNames[reason]; l != "" {
		m.over.WithLabelValues(client, string(a), l).Inc()
	}
}

// What became of a request of the policy delegation protocol.
const (
	askedDunno  = "dunno"
	askedFilter = "filter"
	askedRefuse = "refuse"
)

// answered counts an answer of the policy delegation protocol.
func (m *Metrics) answered(client, action string, reason policy.ReasonCode) {
	m.asked.WithLabelValues(client, action).Inc()
	if action == askedRefuse && reason == policy.ReasonClientLimit {
		m.rcpts.WithLabelValues(client).Inc()
	}
}

// refused counts a message that a limit turned away before its end.
func (m *Metrics) refused(client string, over *quota.Overrun) {
	m.decided(client, over.Action(), over.Reason)
}

// overStart returns what a client can be over, and what becomes of it.
func overStart() [][]string {
	var list [][]string
	for _, a := range []policy.Action{policy.Defer, policy.Reject, policy.Hold} {
		for _, l := range limitNames {
			list = append(list, []string{string(a), l})
		}
	}
	return list
}

// Clients makes the series of the clients exist before their first message. The list belongs to the
// Metrics from then on.
func (m *Metrics) Clients(names []string) {
	for _, c := range []*clientCounter{m.messages, m.asked, m.rcpts, m.over} {
		c.clients.Store(&names)
	}
}
