package milter

import (
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sendas/sendas/milter/quota"
	"github.com/sendas/sendas/policy"
)

// TestClientSeries: each client of the configuration has its series before anything is counted, and
// those that have counted stay.
func TestClientSeries(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	m.Clients([]string{"printers", "sap"})
	m.answered("sap", askedRefuse, policy.ReasonClientLimit)
	m.observe("sap", policy.Accept, policy.ReasonAuthorized, 0)
	m.observe("sap", policy.Accept, policy.ReasonClient, 0)
	m.observe("", policy.Reject, policy.ReasonNoClient, 0)
	m.refused("sap", &quota.Overrun{Reason: policy.ReasonClientLimit, On: quota.DeferOver})
	compare := func(names, want string) {
		t.Helper()
		if err := testutil.GatherAndCompare(reg, strings.NewReader(want), strings.Fields(names)...); err != nil {
			t.Error(err)
		}
	}
	compare("sendas_messages_total sendas_policy_requests_total sendas_recipients_refused_total", `
# HELP sendas_messages_total Messages decided on.
# TYPE sendas_messages_total counter
sendas_messages_total{action="accept",client="printers",reason="authorized"} 0
sendas_messages_total{action="accept",client="sap",reason="authorized"} 1
sendas_messages_total{action="accept",client="sap",reason="client"} 1
sendas_messages_total{action="defer",client="sap",reason="client-limit"} 1
sendas_messages_total{action="reject",client="",reason="no-client"} 1
# HELP sendas_policy_requests_total Requests of the policy delegation protocol answered.
# TYPE sendas_policy_requests_total counter
sendas_policy_requests_total{action="dunno",client="printers"} 0
sendas_policy_requests_total{action="dunno",client="sap"} 0
sendas_policy_requests_total{action="refuse",client="sap"} 1
# HELP sendas_recipients_refused_total Recipients refused at RCPT because their client was over its limits.
# TYPE sendas_recipients_refused_total counter
sendas_recipients_refused_total{client="printers"} 0
sendas_recipients_refused_total{client="sap"} 1
`)
	m.Clients([]string{"ups"})
	compare("sendas_client_over_limit_total", `
# HELP sendas_client_over_limit_total Messages over a limit of their client or of the identity that they asked for.
# TYPE sendas_client_over_limit_total counter
sendas_client_over_limit_total{action="defer",client="sap",limit="client"} 1
sendas_client_over_limit_total{action="defer",client="ups",limit="client"} 0
sendas_client_over_limit_total{action="defer",client="ups",limit="identity"} 0
sendas_client_over_limit_total{action="hold",client="ups",limit="client"} 0
sendas_client_over_limit_total{action="hold",client="ups",limit="identity"} 0
sendas_client_over_limit_total{action="reject",client="ups",limit="client"} 0
sendas_client_over_limit_total{action="reject",client="ups",limit="identity"} 0
`)
}

// TestCountedWhileGathered: no series is shown twice, whenever its first message comes.
func TestCountedWhileGathered(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	names := strings.Fields(strings.Repeat("x ", 200))
	for i := range names {
		names[i] = "client" + strings.Repeat("x", i)
	}
	m.Clients(names)
	var counting sync.WaitGroup
	counting.Go(func() {
		for _, n := range names {
			m.observe(n, policy.Accept, policy.ReasonAuthorized, 0)
		}
	})
	for range 20 {
		if n, err := testutil.GatherAndCount(reg, "sendas_messages_total"); err != nil || n != len(names) {
			t.Errorf("%d series (%v), want %d", n, err, len(names))
		}
	}
	counting.Wait()
}
