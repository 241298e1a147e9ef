package milter

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/policy/limit"
)

// A Collector shows what is used of the limits of clients and identities. It looks when it is
// asked, so a message costs nothing more, and what has left the configuration is gone at once.
type Collector struct{ status func() *Status }

// NewCollector makes the collector of what [Tally.Status] says with the configuration in force.
func NewCollector(status func() *Status) *Collector { return &Collector{status: status} }

// limitSeries are the series of one kind of limit.
type limitSeries struct{ used, limit, left *prometheus.Desc }

// newLimitSeries describes the series of a limit on who ("client", "identity"), which counts
// messages or recipients.
func newLimitSeries(who string, k limit.Kind) limitSeries {
	name := "sendas_" + who + "_" + string(k)
	labels := []string{who, "per" /* the period as the configuration writes it: m, h, d, 6s */}
	what, use := "Messages", "send"
	if k == limit.KindRecipients {
		what, use = "Recipients", "send to"
	}
	return limitSeries{
		used:  prometheus.NewDesc(name+"_used", what+" in the period of a limit of the "+who+", those under way included.", labels, nil),
		limit: prometheus.NewDesc(name+"_limit", what+" that the "+who+" may "+use+" in any such period.", labels, nil),
		left:  prometheus.NewDesc(name+"_left", what+" that the "+who+" may still "+use+" now.", labels, nil),
	}
}

var (
	clientSeries = map[limit.Kind]limitSeries{
		limit.KindMessages: newLimitSeries("client", limit.KindMessages), limit.KindRecipients: newLimitSeries("client", limit.KindRecipients)}
	identitySeries = map[limit.Kind]limitSeries{
		limit.KindMessages: newLimitSeries("identity", limit.KindMessages), limit.KindRecipients: newLimitSeries("identity", limit.KindRecipients)}
)

// Describe implements [prometheus.Collector].
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, kinds := range []map[limit.Kind]limitSeries{clientSeries, identitySeries} {
		for _, s := range kinds {
			ch <- s.used
			ch <- s.limit
			ch <- s.left
		}
	}
}

// Collect implements [prometheus.Collector].
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	s := c.status()
	for _, x := range s.Clients {
		collectLimits(ch, clientSeries, x.Client, x.Limits)
	}
	for _, x := range s.Identities {
		collectLimits(ch, identitySeries, x.Identity, x.Limits)
	}
}

func collectLimits(ch chan<- prometheus.Metric, series map[limit.Kind]limitSeries, name string, list []LimitStatus) {
	for _, l := range list {
		d, per := series[l.Kind], period(l.Window)
		for _, x := range []struct {
			desc *prometheus.Desc
			n    int
		}{{d.used, l.Used}, {d.limit, l.Limit}, {d.left, l.Left}} {
			ch <- prometheus.MustNewConstMetric(x.desc, prometheus.GaugeValue, float64(x.n), name, per)
		}
	}
}

// period writes a length of time as a rate of the configuration ends.
func period(seconds float64) string {
	r := limit.Rate{Per: time.Duration(seconds * float64(time.Second))}
	return r.String()[len("0/"):]
}
