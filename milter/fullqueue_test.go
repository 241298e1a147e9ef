package milter

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/sendas/sendas/milter/queue"
	"github.com/sendas/sendas/milter/queue/queuetest"
	"github.com/sendas/sendas/milter/quota"
	"github.com/sendas/sendas/policy/limit"
)

// TestFullQueueInATransaction: the client is told to come again, and nothing is counted.
func TestFullQueueInATransaction(t *testing.T) {
	q := queue.New(slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	q.Use(queue.Rules{Socket: queuetest.Start(t, queuetest.Message("active", "hr@contoso.com", 10)).Path, Wait: time.Minute, Policy: rules(t, "scan@contoso.com"), Limits: map[string]limit.Allowance{
		"scan@contoso.com": {Messages: limit.Rate{N: 2, Per: time.Minute}, Recipients: limit.Rate{N: 10, Per: time.Minute}}}})
	q.Look(t.Context())
	s := startWith(t, newQuotas(quota.ClientLimit{Rates: quota.Rates{Messages: perDay(5)}, OnLimit: quota.DeferOver}), func(s *Server) { s.Queue = q })
	c, _ := s.dial("10.2.0.9", "")
	if got := s.send(c, "<hr@contoso.com>", "From: hr@contoso.com", id, date); !strings.HasPrefix(got, "451 4.3.1 mailbox <scan@contoso.com> would have 11 recipients waiting") {
		t.Errorf("the message: %q", got)
	}
	s.counted(t, "printers", 0, 0)
	waitFor(t, "the metric", func() bool {
		return testutil.ToFloat64(s.Metrics.messages.WithLabelValues("printers", "defer", "queue-ceiling")) == 1
	})
}
