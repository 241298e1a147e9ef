package postfix

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/postfix/cf"
)

// patternSetup is a site with a pattern for two domains, on that version of Postfix.
func patternSetup(t *testing.T, version string) *Setup {
	t.Helper()
	yaml := strings.NewReplacer("clients:", "  - {address: '*@contoso.com', credential: relay-app}\n  - {address: '*@apps.contoso.de', credential: relay-app}\nclients:",
		"domains: [contoso.com]", "domains: [contoso.com, contoso.de, apps.contoso.de]").Replace(configtest.SmallConfig)
	p, _ := fake(t, newLab(t, yaml), nil)
	p.tables = []string{"inline", "regexp"}
	p.Main["mail_version"] = version
	return p
}

// TestSpread asks Postfix itself in which queue senders of a pattern come.
func TestSpread(t *testing.T) {
	p := patternSetup(t, "3.7.11")
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "main.cf"), []byte("compatibility_level = 3.6\nsender_dependent_default_transport_maps = "+p.senders()+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("postconf", "-c", folder, "-hx", "sender_dependent_default_transport_maps").Output()
	if err != nil {
		t.Fatalf("Postfix is needed for this test (apt-get install postfix): %v", err)
	}
	tables := cf.Split(strings.TrimSpace(string(out))) // what Postfix reads of main.cf
	if len(tables) != 2 {
		t.Fatalf("%d tables", len(tables))
	}
	var names []string
	for i := range 30 {
		names = append(names, fmt.Sprintf("mfp-%02d", i))
	}
	names = append(names, "nightly", "weekly", "daily", "monthly", "anna.lee", "bert.lee", "john.smith", "mary.smith", "erp-prod", "sap-prod")
	queues := make(map[string]string) // by next-hop
	shared := 0
	for _, n := range names {
		for _, domain := range []string{"contoso.com", "apps.contoso.de"} {
			sender := n + "@" + domain
			got := ask(t, folder, sender, tables[1])
			transport, hop, _ := strings.Cut(got, ":")
			if host, port, ok := strings.Cut(hop, "]:"); !ok || transport != "sendas" || host != "[smtp.office365.com" || strings.TrimLeft(port, "0") != "587" {
				t.Errorf("%s leaves by %q", sender, got)
			}
			if other := queues[got]; other != "" {
				shared++
				if o, d, _ := strings.Cut(other, "@"); d != domain || n[:3] == o[:3] { // those that differ in a number alone
					t.Errorf("%s and %s share the queue %s", other, sender, got)
				}
			}
			queues[got] = sender
			if upper := ask(t, folder, strings.ToUpper(n)+"@"+domain, tables[1]); upper != got {
				t.Errorf("%s in capitals leaves by %q, want %q", sender, upper, got)
			}
		}
	}
	if most := len(queues) / 5; shared > most {
		t.Errorf("%d senders share a queue with another one, want %d at most", shared, most)
	}
	for _, hop := range []string{"[smtp.office365.com]:587", "[smtp.office365.com]:0587", "[smtp.office365.com]:00587"} { // of the listed mailboxes
		if other := queues["smtp:"+hop]; other != "" {
			t.Errorf("%s shares the queue %s with a mailbox", other, hop)
		}
	}
	for _, sender := range []string{"mfp-01+tag@contoso.com", "mfp-01@contoso.de", "mfp-01@contoso.com.example.org", "mfp-01@mail.contoso.com", "mfp-01@contosoXcom", "<>", "a@contoso.com"} {
		if got := ask(t, folder, sender, tables[1]); got != "" {
			t.Errorf("%s leaves by %q, want it left to the other table", sender, got)
		}
	}
}

// ask looks a key up as Postfix does; "" is not found.
func ask(t *testing.T, folder, key, table string) string {
	t.Helper()
	out, err := exec.Command("postmap", "-c", folder, "-q", key, table).Output()
	if err != nil && len(out) > 0 {
		t.Fatalf("postmap -q %s: %v", key, err)
	}
	return strings.TrimSpace(string(out))
}

// TestSpreadWhere: the table is there where there is a pattern, and Postfix can have it.
func TestSpreadWhere(t *testing.T) {
	for version, want := range map[string]bool{"3.7.0": true, "3.10.1": true, "3.11-20260101": true, "4.0.0": true, "3.5.25": false, "3.6.4": false, "": false} {
		p := patternSetup(t, version)
		if got := strings.Contains(p.senders(), "regexp:{"); got != want {
			t.Errorf("Postfix %q: %v, want %v", version, got, want)
		}
	}
	p, _ := fake(t, newLab(t, configtest.SmallConfig), nil)
	p.tables = []string{"inline", "regexp"}
	p.Main["mail_version"] = "3.7.11"
	if got := p.senders(); got != p.senderTable() {
		t.Errorf("without a pattern: %s", got)
	}
	p = patternSetup(t, "3.7.11")
	if !p.onlySenders(p.senders()) || p.onlySenders(p.senders()+", regexp:/etc/postfix/other") {
		t.Error("the tables are not known for those of sendas")
	}
	for value, want := range map[string]finding.Status{p.senders(): finding.OK, p.senderTable(): "", strings.ReplaceAll(p.senders(), ", ", ",\n  "): finding.OK, "socketmap:unix:sendas/credentials:transport": finding.OK} {
		if got := judgeSenderTable(value, p); got != want {
			t.Errorf("%.100s is %q, want %q", value, got, want)
		}
	}
}
