package milter

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/sendas/sendas/policy/limit"
)

// TestFullQueueInATransaction: the client is told to come again, and nothing is counted.
func TestFullQueueInATransaction(t *testing.T) {
	q := NewQueue(slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	q.Use(QueueRules{Socket: startShowq(t, waiting("active", "hr@contoso.com", 10)).path, Wait: time.Minute, Policy: rules(t, "scan@contoso.com"), Limits: map[string]limit.Limits{
		"scan@contoso.com": {Messages: limit.Rate{N: 2, Per: time.Minute}, Recipients: limit.Rate{N: 10, Per: time.Minute}}}})
	q.look(t.Context())
	s := startWith(t, newQuotas(ClientLimit{limit.Quota{Messages: perDay(5)}, DeferOver}), func(s *Server) { s.Queue = q })
	c, _ := s.dial("10.2.0.9", "")
	if got := s.send(c, "<hr@contoso.com>", "From: hr@contoso.com", id, date); !strings.HasPrefix(got, "451 4.3.1 mailbox <scan@contoso.com> would have 11 recipients waiting") {
		t.Errorf("the message: %q", got)
	}
	s.counted(t, "printers", 0, 0)
	waitFor(t, "the metric", func() bool {
		return testutil.ToFloat64(s.Metrics.messages.WithLabelValues("printers", "defer", "queue-ceiling")) == 1
	})
}
