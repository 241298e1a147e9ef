package milter

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/limit"
)

func TestCollector(t *testing.T) {
	s := &Status{
		Clients: []ClientStatus{
			{Client: "printers", Limits: []LimitStatus{{Kind: limit.KindMessages, Used: 3, Left: 17, Limit: 20, Window: 60}, {Kind: limit.KindMessages, Used: 30, Left: 0, Limit: 30, Window: 6},
				{Kind: limit.KindRecipients, Used: 9, Left: 491, Limit: 500, Window: 86400}}},
			{Client: "sap"}, // has no limits
		},
		Identities: []IdentityStatus{{Identity: "scan@contoso.com", Limits: []LimitStatus{{Kind: limit.KindMessages, Used: 5, Left: 95, Limit: 100, Window: 3600}}}},
	}
	err := testutil.CollectAndCompare(NewCollector(func() *Status { return s }), strings.NewReader(`
# HELP sendas_client_messages_left Messages that the client may still send now.
# TYPE sendas_client_messages_left gauge
sendas_client_messages_left{client="printers",per="6s"} 0
sendas_client_messages_left{client="printers",per="m"} 17
# HELP sendas_client_messages_limit Messages that the client may send in any such period.
# TYPE sendas_client_messages_limit gauge
sendas_client_messages_limit{client="printers",per="6s"} 30
sendas_client_messages_limit{client="printers",per="m"} 20
# HELP sendas_client_messages_used Messages in the period of a limit of the client, those under way included.
# TYPE sendas_client_messages_used gauge
sendas_client_messages_used{client="printers",per="6s"} 30
sendas_client_messages_used{client="printers",per="m"} 3
# HELP sendas_client_recipients_left Recipients that the client may still send to now.
# TYPE sendas_client_recipients_left gauge
sendas_client_recipients_left{client="printers",per="d"} 491
# HELP sendas_client_recipients_limit Recipients that the client may send to in any such period.
# TYPE sendas_client_recipients_limit gauge
sendas_client_recipients_limit{client="printers",per="d"} 500
# HELP sendas_client_recipients_used Recipients in the period of a limit of the client, those under way included.
# TYPE sendas_client_recipients_used gauge
sendas_client_recipients_used{client="printers",per="d"} 9
# HELP sendas_identity_messages_left Messages that the identity may still send now.
# TYPE sendas_identity_messages_left gauge
sendas_identity_messages_left{identity="scan@contoso.com",per="h"} 95
# HELP sendas_identity_messages_limit Messages that the identity may send in any such period.
# TYPE sendas_identity_messages_limit gauge
sendas_identity_messages_limit{identity="scan@contoso.com",per="h"} 100
# HELP sendas_identity_messages_used Messages in the period of a limit of the identity, those under way included.
# TYPE sendas_identity_messages_used gauge
sendas_identity_messages_used{identity="scan@contoso.com",per="h"} 5
`))
	if err != nil {
		t.Error(err)
	}
}

// TestOverLimitCounters: what is over a limit is counted by whose limit it is and what becomes of
// it.
func TestOverLimitCounters(t *testing.T) {
	m := NewMetrics(prometheus.NewRegistry())
	m.Clients([]string{"printers"})
	m.observe("printers", policy.Accept, policy.ReasonAuthorized, 0)
	m.observe("printers", policy.Defer, policy.ReasonClientLimit, 0)
	m.observe("printers", policy.Hold, policy.ReasonIdentityLimit, 0)
	m.observe("printers", policy.Hold, policy.ReasonIdentityLimit, 0)
	m.observe("printers", policy.Reject, policy.ReasonRejected, 0)
	m.answered("printers", askedDunno, policy.ReasonClient)
	m.answered("printers", askedRefuse, policy.ReasonNoClient)
	m.answered("printers", askedRefuse, policy.ReasonClientLimit)
	for _, tc := range []struct {
		action, limit string
		want          float64
	}{
		{"defer", "client", 1}, {"reject", "client", 0}, {"hold", "client", 0},
		{"defer", "identity", 0}, {"reject", "identity", 0}, {"hold", "identity", 2},
	} {
		if got := testutil.ToFloat64(m.over.WithLabelValues("printers", tc.action, tc.limit)); got != tc.want {
			t.Errorf("%s for a limit of the %s: %v, want %v", tc.action, tc.limit, got, tc.want)
		}
	}
	if n := testutil.CollectAndCount(m.over); n != 6 {
		t.Errorf("%d series, want 6", n)
	}
	if got := testutil.ToFloat64(m.rcpts.WithLabelValues("printers")); got != 1 {
		t.Errorf("%v recipients refused, want 1", got)
	}
}
