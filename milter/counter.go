package milter

import (
	"slices"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// clientLabel is the label that names a client.
const clientLabel = "client"

// A clientCounter is a CounterVec with a label for the client, of which each client of the
// configuration has some series from the start: an increase from nothing to 1 is none for
// Prometheus. Those that have counted nothing yet are made when somebody looks, and nothing is kept
// of them: with 20,000 clients they would be most of the memory of the milter.
type clientCounter struct {
	*prometheus.CounterVec
	desc    *prometheus.Desc
	start   [][]*dto.LabelPair // of each series that is there from the start, sorted as Prometheus has them; nil in place of the client
	clients atomic.Pointer[[]string]
}

// newClientCounter makes a counter. start has the values of the labels behind that of the client,
// one row for each series that is there from the start.
func newClientCounter(o prometheus.CounterOpts, labels []string, start ...[]string) *clientCounter {
	c := &clientCounter{CounterVec: prometheus.NewCounterVec(o, labels)}
	d := make(chan *prometheus.Desc, 1)
	c.Describe(d)
	c.desc = <-d
	for _, values := range start {
		pairs := []*dto.LabelPair{{Name: new(clientLabel)}}
		for i, v := range values {
			pairs = append(pairs, &dto.LabelPair{Name: &labels[i+1], Value: &v})
		}
		slices.SortFunc(pairs, func(a, b *dto.LabelPair) int { return strings.Compare(a.GetName(), b.GetName()) })
		pairs[slices.IndexFunc(pairs, isClient)] = nil
		c.start = append(c.start, pairs)
	}
	return c
}

func isClient(p *dto.LabelPair) bool { return p.GetName() == clientLabel }

// Collect implements [prometheus.Collector].
func (c *clientCounter) Collect(ch chan<- prometheus.Metric) {
	made := make(chan prometheus.Metric)
	go func() {
		c.CounterVec.Collect(made)
		close(made)
	}()
	seen := make(map[string]uint64) // by client: which of start, as bits
	for m := range made {
		var d dto.Metric
		if m.Write(&d) == nil {
			client, i := c.which(d.Label)
			if i >= 0 {
				seen[client] |= 1 << i
			}
		}
		ch <- m
	}
	names := c.clients.Load()
	if names == nil {
		return
	}
	for _, name := range *names {
		pair := &dto.LabelPair{Name: new(clientLabel), Value: &name}
		for i, labels := range c.start {
			if seen[name]&(1<<i) == 0 {
				ch <- &zeroCounter{c.desc, labels, pair}
			}
		}
	}
}

// which returns the client of a series and which one it is of those that are there from the start,
// or -1.
func (c *clientCounter) which(labels []*dto.LabelPair) (client string, index int) {
	if i := slices.IndexFunc(labels, isClient); i >= 0 {
		client = labels[i].GetValue()
	}
	return client, slices.IndexFunc(c.start, func(start []*dto.LabelPair) bool {
		return slices.EqualFunc(start, labels, func(a, b *dto.LabelPair) bool { return a == nil || a.GetValue() == b.GetValue() })
	})
}

// A zeroCounter is a series that has counted nothing.
type zeroCounter struct {
	desc   *prometheus.Desc
	labels []*dto.LabelPair // with nil in place of client
	client *dto.LabelPair
}

func (z *zeroCounter) Desc() *prometheus.Desc { return z.desc }

// zero is the value of all zeroCounters. Nothing writes to it.
var zero = &dto.Counter{Value: new(float64)}

// Write implements [prometheus.Metric].
func (z *zeroCounter) Write(m *dto.Metric) error {
	m.Label = slices.Clone(z.labels)
	m.Label[slices.Index(m.Label, nil)] = z.client
	m.Counter = zero
	return nil
}
