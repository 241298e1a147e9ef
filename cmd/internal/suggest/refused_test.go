package suggest

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/internal/record"
	"github.com/sendas/sendas/policy"
)

// strict is a configuration that does its work.
var strict = strings.Replace(configtest.SmallConfig, "clients:\n", "clients:\n  - {name: monitoring, logins: [nagios], senders: [scan@contoso.com]}\n", 1)

// TestRefused: who is refused, the line that lets each in, and not who is taken by now.
func TestRefused(t *testing.T) {
	nagios := sent(0, "192.0.2.20", "", "ceo@contoso.com")
	nagios.Login = "nagios"
	old := sent(0, "10.2.0.9", "mfp9", "x@y.example") // a client by now
	many := sent(0, "10.7.0.1", "", "scan@contoso.com")
	many.Action = "accept"
	list := []*record.Message{
		sent(time.Hour, "10.3.0.8", "nas1.contoso.com", "office@contoso.com"), sent(2*time.Hour, "10.3.0.9", "nas2.contoso.com", "nas@local"),
		sent(time.Hour, "10.4.0.9", "", "root@web"), nagios, nagios, old, many,
	}
	for _, tc := range []struct {
		name, present string
		want          []string
		lacks         []string
	}{
		{"mailboxes", strict, []string{
			"  # 2 devices (nas1.contoso.com, nas2.contoso.com): 2 messages refused, the last 2026-11-17 10:00;\n  # asked for office@contoso.com (1), nas@local (1).\n" +
				"  - {name: nas, networks: [10.3.0.8/31], senders: [office@contoso.com], from: office@contoso.com}\n",
			"  # Decide: no mailbox may send as that, so it leaves as scan@contoso.com.\n  - {name: host-10.4.0.9, networks: [10.4.0.9], senders: [scan@contoso.com], from: scan@contoso.com}\n",
			"  # Client monitoring: 2 messages as ceo@contoso.com refused, the last 2026-11-17 08:00\n  # (client-senders). What would let it in:\n" +
				"  #   clients: monitoring: senders: [scan@contoso.com, ceo@contoso.com], and mailboxes: scan@contoso.com: send_as: add ceo@contoso.com (it needs Send As in Exchange Online)\n  #   clients: monitoring: from: scan@contoso.com, on_unauthorized: rewrite (it leaves as that address)\n",
		}, []string{"10.2.0.9", "10.7.0.1"}},
		{"a connector alone", "tenant: {id: contoso.onmicrosoft.com, domains: [contoso.com]}\nnotices: relay@contoso.com\nroutes:\n  - {name: site, type: connector, endpoint: contoso-com.mail.protection.outlook.com}\n" +
			"clients:\n  - {name: sap, networks: [10.1.0.0/16], from: erp@contoso.com, route: site}\n",
			[]string{"networks: [10.3.0.8/31], senders: [office@contoso.com], from: office@contoso.com, route: site}"}, nil},
	} {
		r, err := Refused(walkOf(list), Options{File: "sendas.yaml", Present: []byte(tc.present)})
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		for _, want := range tc.want {
			if !strings.Contains(r.Text, want) {
				t.Errorf("%s lacks\n%s\nin\n%s", tc.name, want, r.Text)
			}
		}
		for _, bad := range tc.lacks {
			if strings.Contains(r.Text, bad) {
				t.Errorf("%s has %s:\n%s", tc.name, bad, r.Text)
			}
		}
		letsIn(t, tc.present, r, list)
	}
}

// letsIn puts the lines behind the clients, which is the end of the file, and sends all once more.
func letsIn(t *testing.T, present string, r *Refusals, list []*record.Message) {
	t.Helper()
	c, err := config.Parse("sendas.yaml", []byte(present+r.Text), config.SkipFiles)
	if err != nil {
		t.Fatalf("%v\n%s", err, r.Text)
	}
	for _, m := range list {
		if _, placed := whoOf(m); !placed || m.Action != string(policy.Reject) {
			continue
		}
		if d := c.Policy.Decide(request(m)); d.Client == nil {
			t.Fatalf("%+v is still nobody's\n%s", *m, r.Text)
		}
	}
}

// TestRandomRefused: the lines are always good ones, and let in everybody.
func TestRandomRefused(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	for range 60 {
		list := slices.DeleteFunc(randomRecord(rnd), func(m *record.Message) bool { return m.Login == "nagios" })
		r, err := Refused(walkOf(list), Options{File: "sendas.yaml", Present: []byte(strict)})
		if err != nil {
			t.Fatal(err)
		}
		letsIn(t, strict, r, list)
	}
}
