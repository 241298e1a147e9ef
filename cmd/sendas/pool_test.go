package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token"
	"github.com/sendas/sendas/token/lease"
)

const poolYAML = `tenant:
  id: contoso.onmicrosoft.com
  domains: [contoso.com, contoso.onmicrosoft.com]
  allow_onmicrosoft: true
  external_recipients: EXTERNAL
credentials:
  relay-app: {client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab, client_secret_file: good.secret}
mailboxes:
  - {address: erp1@contoso.com, credential: relay-app, pool: true, send_as: [billing@contoso.com, bills@contoso.com]}
  - {address: erp2@contoso.com, credential: relay-app, pool: true, send_as: [billing@contoso.com, hr@contoso.com, bills@contoso.com]}
  - {address: erp3@contoso.com, credential: relay-app, pool: true, send_as: [hr@contoso.com], aliases: [erp3@contoso.onmicrosoft.com]}
  - {address: "*@contoso.onmicrosoft.com", credential: relay-app}
notices: erp1@contoso.com
clients:
  - {name: sap, networks: [10.1.0.0/16], from: billing@contoso.com}
`

func poolConfig(t *testing.T, external string) *config.Site {
	t.Helper()
	file := configtest.WriteFile(t, filepath.Join(t.TempDir(), "sendas.yaml"), strings.Replace(poolYAML, "EXTERNAL", external, 1), 0o644)
	c, err := config.Load(file, config.SkipFiles)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestPoolDirectory: who may send as what, in which queue of Postfix's it waits, and whose
// recipients it counts for.
func TestPoolDirectory(t *testing.T) {
	for _, external := range []string{"off", "500/h"} {
		c := poolConfig(t, external)
		setup, err := newSetup(c)
		if err != nil {
			t.Fatal(err)
		}
		d := token.NewDirectory(setup, func(string) lease.Tokens { return nil })
		queues := map[string]string{}
		for _, tc := range []struct{ sender, want, queue, group string }{
			{"billing@contoso.com", "erp1@contoso.com erp2@contoso.com", "1 and 2", "external"},
			{"bills@contoso.com", "erp1@contoso.com erp2@contoso.com", "1 and 2", "external"},
			{"hr@contoso.com", "erp2@contoso.com erp3@contoso.com", "2 and 3", "external"},
			{"erp1@contoso.com", "erp1@contoso.com", "1", "external"},
			{"erp2@contoso.com", "erp2@contoso.com", "2", "external"},
			{"erp3@contoso.onmicrosoft.com", "erp3@contoso.com", "3 by its alias", "onmicrosoft"},
			{"erp3@contoso.com", "erp3@contoso.com", "3", "external"},
			{"any@contoso.onmicrosoft.com", "any@contoso.onmicrosoft.com", "any", "onmicrosoft"},
			{"stranger@contoso.com", "", "", ""},
		} {
			if external == "off" {
				tc.group = ""
			}
			var users []string
			for _, m := range d.Mailboxes(tc.sender) {
				users = append(users, m.Address)
				l := m.Limits
				if l.Group != tc.group || l.GroupRecipients != map[string]limit.Rate{"external": {N: 400, Per: time.Hour}, "onmicrosoft": limit.MOERA()}[tc.group] {
					t.Errorf("%s, %s: group %q of %v, want %q", external, tc.sender, l.Group, l.GroupRecipients, tc.group)
				}
			}
			if got := strings.Join(users, " "); got != tc.want {
				t.Errorf("%s leaves through %q, want %q", tc.sender, got, tc.want)
			}
			queue := d.RouteFrom(tc.sender)
			if other, ok := queues[queue]; tc.queue != "" && ok && other != tc.queue || (queue == "") != (tc.queue == "") {
				t.Errorf("%s waits in %q, as what is for %q does", tc.sender, queue, other)
			}
			queues[queue] = tc.queue
		}
		if want := 8; len(queues) != want {
			t.Errorf("%d queues, want %d: %v", len(queues), want, queues)
		}
	}
}

// TestExternalRate: what all mailboxes together may have, with a hundred kept back for
// onmicrosoft.com senders.
func TestExternalRate(t *testing.T) {
	day := 24 * time.Hour
	for _, tc := range []struct {
		t    config.Tenant
		want limit.Rate
	}{
		{config.Tenant{External: "auto", Licenses: 10}, limit.Rate{N: 12_006, Per: day}},
		{config.Tenant{External: "auto", Licenses: 10, AllowOnMicrosoft: true}, limit.Rate{N: 11_906, Per: day}},
		{config.Tenant{External: "auto", Trial: true}, limit.Rate{N: 5_000, Per: day}},
		{config.Tenant{External: "700/h"}, limit.Rate{N: 700, Per: time.Hour}},
		{config.Tenant{External: "70/d", AllowOnMicrosoft: true}, limit.Rate{N: 1, Per: day}},
	} {
		if got, err := tc.t.ExternalRate(); got != tc.want || err != nil {
			t.Errorf("%+v: %v, %v, want %v", tc.t, got, err, tc.want)
		}
	}
}
