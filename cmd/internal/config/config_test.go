package config

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/internal/record"
	"github.com/sendas/sendas/internal/serve"
	"github.com/sendas/sendas/policy/limit"
)

var update = flag.Bool("update", false, "write testdata/bad/*.want anew")

// TestBadConfigs loads each wrong file and compares what it says with the file beside it.
func TestBadConfigs(t *testing.T) {
	t.Chdir("testdata/bad") // the name of the file is in the text
	for _, file := range glob(t, "*.yaml") {
		t.Run(file, func(t *testing.T) {
			_, err := Load(file, SkipFiles)
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Fatalf("LoadConfig(%q) = %T, want a *ConfigError", file, err)
			}
			got, name := err.Error()+"\n", strings.TrimSuffix(file, ".yaml")+".want"
			if *update {
				if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%swant:\n%s", got, want)
			}
			if strings.Contains(got, "hunter2") {
				t.Error("the text shows a secret")
			}
		})
	}
}

func TestGoodConfigs(t *testing.T) {
	for _, file := range glob(t, "testdata/good/*.yaml") {
		if _, err := Load(file, SkipFiles); err != nil {
			t.Errorf("%v", err)
		}
	}
}

func TestFullConfig(t *testing.T) {
	c := load(t, "testdata/good/full.yaml")
	dir, err := filepath.Abs("testdata/good")
	if err != nil {
		t.Fatal(err)
	}
	if c.Policy == nil {
		t.Fatal("Policy is nil")
	}
	for _, row := range []struct {
		name      string
		got, want any
	}{
		{"cloud", c.Tenant.Cloud, "gcc-high"},
		{"authority", c.Tenant.Endpoints.Authority, "https://login.microsoftonline.us"},
		{"ca_file", c.Tenant.Endpoints.CAFile, dir + "/ca.pem"},
		{"certificate_file", c.Credentials["relay-app"].CertificateFile, dir + "/relay-app.pem"},
		{"key_file", c.Credentials["relay-app"].KeyFile, "/etc/sendas/relay-app.key"},
		{"renew", c.Credentials["relay-app"].Renew, 30 * 24 * time.Hour},
		{"graph", c.Tenant.Endpoints.Graph, "https://graph.microsoft.us"},
		{"proof_audience", c.Tenant.Endpoints.ProofAudience, "00000003-0000-0000-c000-000000000000"},
		{"client_secret_file", c.Credentials["other.app"].ClientSecretFile, dir + "/secrets/other.secret"},
		{"default flow", c.Credentials["other.app"].Flow, "client_credentials"},
		{"address as the policy has it", c.Mailboxes[0].Address, c.Policy.Mailboxes()[0].Address.String()},
		{"aliases", c.Mailboxes[0].Aliases, []string{"erp-old@contoso.com"}},
		{"limits", c.Mailboxes[0].Limits.Limits(), limit.Allowance{
			Messages: limit.Rate{N: 20, Per: time.Minute}, Recipients: limit.Rate{N: 500, Per: time.Hour}, Connections: 2,
		}},
		{"a login of digits", c.Clients[0].Logins, []string{"007"}},
		{"milter", c.Milter, Milter{Mode: "enforce", Listen: "inet:127.0.0.1:8891", PolicyListen: "inet:127.0.0.1:8892", Store: "rediss+cluster://sendas@redis-1.contoso.com:6379,redis-2.contoso.com",
			StorePasswordFile: dir + "/redis.secret", StoreCAFile: dir + "/redis-ca.pem", StoreCertificateFile: dir + "/redis.pem", Hosts: 3, QueueCeiling: 24 * time.Hour, QueueSocket: dir + "/showq", QueueInterval: time.Minute, Received: "trust", ClassesFile: dir + "/classes.json"}},
		{"identities", c.Identities, []Identity{
			{"Billing@contoso.com", ClientLimits{Messages: []limit.Rate{{N: 100, Per: time.Hour}, {N: 500, Per: 24 * time.Hour}},
				Recipients: []limit.Rate{{N: 1000, Per: 24 * time.Hour}}}, "reject"},
			{"*@contoso.com", ClientLimits{Messages: []limit.Rate{{N: 50, Per: time.Hour}}}, "defer"}}},
		{"token", c.Token, Token{Listen: serve.Unix(dir + "/run/credentials"), HTTP: "localhost:9800", Peers: []string{"postfix", "postdrop"}, RecipientsUnseen: 100,
			StateDir: dir + "/state", TokenFiles: dir + "/tokens", Store: "rediss+sentinel://sendas@redis-1.contoso.com,redis-2.contoso.com:26380,[2001:db8::7]/mymaster/2",
			StorePasswordFile: "credential:redis", StoreSentinelPasswordFile: dir + "/sentinel.secret", StoreCAFile: "/etc/ssl/redis.pem",
			StoreCertificateFile: dir + "/relay-1.pem", StoreKeyFile: dir + "/relay-1.key", Hosts: 2, Host: "relay-1"}},
		{"record", c.Record, Record{Recipients: "domain", Days: 7, Size: 1 << 30, Page: true, MilterFile: dir + "/record/milter.db", TokenFile: dir + "/state/record.db"}},
		{"record's settings", c.RecordSettings(), record.Settings{On: true, Recipients: record.DomainsOnly, Days: 7, Size: 1 << 30}},
		{"a client's limits", c.Clients[0].Limits, ClientLimits{Messages: []limit.Rate{{N: 20, Per: time.Minute}, {N: 500, Per: time.Hour}},
			Recipients: []limit.Rate{{N: 2000, Per: 24 * time.Hour}}}},
		{"on_limit", c.Clients[0].OnLimit + " " + c.Clients[1].OnLimit, "hold defer"},
		{"notices", c.Notices, "billing@contoso.com"},
		{"a credential of systemd", c.Credentials["desktop"].ClientSecretFile, "credential:desktop.secret"},
		{"token_file", c.Credentials["cluster"].TokenFile, dir + "/token"},
	} {
		if !reflect.DeepEqual(row.got, row.want) {
			t.Errorf("%s = %v, want %v", row.name, row.got, row.want)
		}
	}
}

func TestDefaults(t *testing.T) {
	c := load(t, "testdata/good/minimal.yaml")
	if got, want := c.Tenant.Endpoints, Clouds["global"]; got != want {
		t.Errorf("endpoints = %v, want %v", got, want)
	}
	if got, want := c.Mailboxes[0].Limits.Limits(), limit.Microsoft(); got != want {
		t.Errorf("limits = %v, want %v", got, want)
	}
	milter := Default().Milter
	dir, err := filepath.Abs("testdata/good")
	if err != nil {
		t.Fatal(err)
	}
	milter.ClassesFile = filepath.Join(dir, milter.ClassesFile) // beside the file
	if got := c.Milter; got != milter {
		t.Errorf("milter = %v, want %v", got, milter)
	}
	kept := Default().Record
	kept.MilterFile, kept.TokenFile = "/var/lib/sendas/record.db", "/var/lib/sendas-token/record.db"
	if got := c.Record; got != kept || kept.Off {
		t.Errorf("record = %v, want %v", got, kept)
	}
	if load(t, "testdata/good/record-off.yaml").RecordSettings().On {
		t.Error("record: off keeps a record")
	}
	want := Default().Token
	want.Store = "bolt:/var/lib/sendas-token/token.db"
	if got := c.Token; !reflect.DeepEqual(got, want) {
		t.Errorf("token = %v, want %v", got, want)
	}
}

func TestEachCloud(t *testing.T) {
	minimal := read(t, "testdata/good/minimal.yaml")
	for cloud, want := range Clouds {
		text := strings.Replace(minimal, "tenant:\n", "tenant:\n  cloud: "+cloud+"\n", 1)
		c, err := Parse("sendas.yaml", []byte(text), SkipFiles)
		if err != nil {
			t.Errorf("%s: %v", cloud, err)
			continue
		}
		if c.Tenant.Endpoints != want {
			t.Errorf("%s: endpoints = %v, want %v", cloud, c.Tenant.Endpoints, want)
		}
	}
}

// TestWarnings: what is no mistake now, and will be or does nothing, is told by the check alone.
func TestWarnings(t *testing.T) {
	day := func(days int) string { return time.Now().AddDate(0, 0, days).UTC().Format(time.DateOnly) }
	minimal := read(t, "testdata/good/minimal.yaml")
	add := func(to, lines string) string { return strings.Replace(minimal, to, to+lines, 1) }
	const secret, client = "    client_secret_file: relay-app.secret\n", "    from: billing@contoso.com\n"
	next := func(name, lines string) string {
		return add(client, "  - name: "+name+"\n    from: billing@contoso.com\n"+lines)
	}
	for _, tc := range []struct{ name, text, want string }{
		{"nothing", minimal, ""},
		{"a secret ends", add(secret, "    secret_expires: "+day(20)+"\n"), "credentials.relay-app.secret_expires: the client secret ends on " + day(20) + ", in "},
		{"a secret has ended", add(secret, "    secret_expires: "+day(-2)+"\n"), "credentials.relay-app.secret_expires: the client secret ended on " + day(-2)},
		{"a secret lasts", add(secret, "    secret_expires: "+day(60)+"\n"), ""},
		{"open to the network", minimal + "milter: {listen: 'inet:0.0.0.0:8891'}\n", "milter.listen: whoever reaches 0.0.0.0:8891 can pretend to be Postfix"},
		{"open to the network, IPv6", minimal + "milter: {policy_listen: 'inet:[::]:8892'}\n", "milter.policy_listen: whoever reaches [::]:8892"},
		{"on this host", minimal + "milter: {listen: 'inet:127.0.0.1:8891', policy_listen: 'inet:[::1]:8892'}\n", ""},
		{"a network within another", next("scan", "    networks: [10.1.2.0/24]\n"), `clients[1]: client "scan" never matches: "sap", which stands before it, has all its networks`},
		{"with a login as well", next("scan", "    networks: [10.1.2.0/24]\n    logins: [x]\n"), `clients[1]: client "scan" never matches`},
		{"one network of two", next("scan", "    networks: [10.1.2.0/24, 10.2.0.0/16]\n"), ""},
		{"the wider one behind", next("scan", "    networks: [10.0.0.0/8]\n"), ""},
		{"any login", next("all", "    logins: ['*']\n  - name: scan\n    logins: [x]\n    from: billing@contoso.com\n"), `clients[2]: client "scan" never matches: "all", which stands before it, has all its logins`},
		{"Azure without its scope", add("  domains: [contoso.com]\n", "  endpoints: {submission: 'smtp.azurecomm.net:587'}\n"), "tenant.endpoints.submission: for whom a token of Azure Communication Services has to be made out"},
		{"Azure with a scope", add("  domains: [contoso.com]\n", "  endpoints: {submission: 'smtp.azurecomm.net:587', scope: 'https://azure.example/.default'}\n"), ""},
		{"Send As at High Volume Email", add("  domains: [contoso.com]\n", "  endpoints: {submission: 'smtp.hve.mx.microsoft:587'}\n"), "mailboxes[0]: High Volume Email lets an account send as itself alone"},
		{"the former host", strings.Replace(add("  domains: [contoso.com]\n", "  endpoints: {submission: 'smtp-hve.office365.com:587'}\n"), "    send_as: [billing@contoso.com]\nclients:\n  - name: sap\n    networks: [10.1.0.0/16]\n    from: billing@contoso.com\n", "clients: [{name: sap, networks: [10.1.0.0/16], from: erp@contoso.com}]\n", 1),
			"tenant.endpoints.submission: Microsoft will take this host away; write smtp.hve.mx.microsoft:587"},
		{"a route to the former host", add(secret, "  hve-app:\n    client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab\n"+secret) + "routes: [{name: bulk, type: hve, account: n@contoso.com, credential: hve-app, endpoint: smtp-hve.office365.com}]\n",
			"routes[0].endpoint: Microsoft will take this host away; write smtp.hve.mx.microsoft:587"},
		{"the same login", next("one", "    logins: [x, y]\n  - name: two\n    logins: [y]\n    from: billing@contoso.com\n"), `clients[2]: client "two" never matches: "one", which stands before it, has all its logins`},
		{"a login from a network", next("one", "    networks: [10.2.0.0/16]\n    logins: [x]\n  - name: two\n    logins: [x]\n    from: billing@contoso.com\n"), ""},
		{"the same name in certificates", next("one", "    cert_subjects: [SAP01]\n  - name: two\n    cert_subjects: [sap01]\n    from: billing@contoso.com\n"), `clients[2]: client "two" never matches: "one", which stands before it, has all its names of certificates`},
	} {
		dir := t.TempDir()
		file := filepath.Join(dir, "sendas.yaml")
		write(t, file, tc.text)
		write(t, filepath.Join(dir, "relay-app.secret"), "s3cr3t~in/the+lab\n")
		if err := errors.Join(os.Chmod(file, 0o644), os.Chmod(filepath.Join(dir, "relay-app.secret"), 0o600)); err != nil {
			t.Fatal(err)
		}
		c, err := Load(file, CheckAll)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		var got []string
		for _, p := range c.Warnings {
			got = append(got, p.Path+": "+p.Text)
		}
		if all := strings.Join(got, "\n"); len(got) > 1 || (all == "") != (tc.want == "") || !strings.HasPrefix(all, tc.want) {
			t.Errorf("%s: warnings\n%s\nwant %s", tc.name, all, tc.want)
		}
		if c, err := Load(file, CheckToken); err != nil || len(c.Warnings) > 0 {
			t.Errorf("%s: the service: %v, %v", tc.name, c.Warnings, err)
		}
	}
}

// TestOtherHosts: what High Volume Email and Azure Communication Services imply, and what it takes to
// say something else.
func TestOtherHosts(t *testing.T) {
	rate := func(n int, per time.Duration) limit.Rate { return limit.Rate{N: n, Per: per} }
	free := limit.HighVolume()
	none := Limits{free.Messages, free.Recipients, free.Connections}
	c := load(t, "testdata/good/hve.yaml")
	for i, want := range []Route{
		{Name: "bulk", Type: "hve", Account: "notices@contoso.com", Credential: "hve-app", Endpoint: "smtp.hve.mx.microsoft:587", Scope: "https://outlook.office.com/.default", Limits: none},
		{Name: "news", Type: "hve", Account: "news@contoso.com", Credential: "hve-user", Endpoint: "smtp-hve.office365.com", Scope: "https://outlook.office365.us/.default",
			External: "reject", Transport: "news", Limits: Limits{rate(600, time.Minute), rate(100_000, 24*time.Hour), 8}},
		{Name: "more", Type: "hve", Account: "more@contoso.com", Credential: "hve-app", Endpoint: "smtp.hve.mx.microsoft:587", Scope: "https://outlook.office.com/.default",
			Limits: Limits{free.Messages, free.Recipients, 100}},
	} {
		if got := c.Routes[i]; !reflect.DeepEqual(got, want) {
			t.Errorf("route %s:\n got %+v\nwant %+v", want.Name, got, want)
		}
	}
	if got := c.Policy.RouteFrom("news@contoso.com").Destination(); got != "news:[smtp-hve.office365.com]:587" {
		t.Errorf("the account news leaves by %s", got)
	}
	if got, want := c.Mailboxes[0].Limits, (Limits{rate(30, time.Minute), rate(10_000, 24*time.Hour), 3}); got != want {
		t.Errorf("the mailbox beside them has %+v, want %+v", got, want)
	}
	for credential, want := range map[string]string{"hve-app": "https://outlook.office.com/.default", "hve-user": "https://outlook.office365.us/.default"} {
		if app, user := c.Scopes(credential); app != want || user != want {
			t.Errorf("%s asks for %s and %s, want %s", credential, app, user, want)
		}
	}
	if app, user := c.Scopes("relay-app"); app != "https://outlook.office365.com/.default" || user != "https://outlook.office.com/SMTP.Send" {
		t.Errorf("relay-app asks for %s and %s", app, user)
	}
	c = load(t, "testdata/good/hve-alone.yaml")
	if e := c.Tenant.Endpoints; e.Scope != "https://outlook.office.com/.default" || e.DelegatedScope != e.Scope {
		t.Errorf("a relay of High Volume Email alone asks for %s and %s", e.Scope, e.DelegatedScope)
	}
	for i, want := range []Limits{{free.Messages, free.Recipients, 10}, {rate(600, time.Minute), free.Recipients, 20}} {
		if got := c.Mailboxes[i].Limits; got != want {
			t.Errorf("account %d has %+v, want %+v", i, got, want)
		}
	}
	c = load(t, "testdata/good/azure.yaml")
	for i, want := range []Limits{{rate(25, 15*time.Minute), free.Recipients, 20}, {rate(1000, time.Minute), rate(1_000_000, 24*time.Hour), 100}} {
		if got := c.Mailboxes[i].Limits; got != want {
			t.Errorf("sender %d of Azure has %+v, want %+v", i, got, want)
		}
	}
}

// TestPeers: a user that is not there keeps both services from starting, so the check refuses it; a
// command that changes nothing works on other hosts too.
func TestPeers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sendas.yaml")
	write(t, file, read(t, "testdata/good/minimal.yaml")+"token: {peers: [root, nobody-of-that-name]}\n")
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, check := range []Check{CheckOwn, CheckMilter, CheckToken, CheckAll} {
		wantError(t, file, check, `token.peers[1]: this host has no user "nobody-of-that-name"; write the one that Postfix runs as (postconf -h mail_owner)`)
	}
	if _, err := Load(file, SkipFiles); err != nil {
		t.Error(err)
	}
}

// TestCheckFiles breaks one file after another; the milter must not notice.
func TestCheckFiles(t *testing.T) {
	for _, row := range []struct {
		name  string
		spoil func(dir string) error
		want  string
	}{
		{"nothing", func(string) error { return nil }, ""},
		{"secret gone", func(dir string) error { return os.Remove(dir + "/relay-app.secret") }, "client_secret_file: file"},
		{"secret open to all", func(dir string) error { return os.Chmod(dir+"/relay-app.secret", 0o644) }, "is open to every user"},
		{"secret empty", func(dir string) error { return os.WriteFile(dir+"/relay-app.secret", nil, 0o600) }, "is empty"},
		{"config open to its group", func(dir string) error { return os.Chmod(dir+"/sendas.yaml", 0o660) }, "can be changed by others (mode 0660)"},
		{"config open to all", func(dir string) error { return os.Chmod(dir+"/sendas.yaml", 0o646) }, "can be changed by others (mode 0646)"},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "sendas.yaml")
			write(t, file, read(t, "testdata/good/minimal.yaml"))
			write(t, dir+"/relay-app.secret", "0123456789\n")
			if err := row.spoil(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := Load(file, SkipFiles); err != nil {
				t.Errorf("with SkipFiles: %v", err)
			}
			wantError(t, file, CheckToken, row.want)
		})
	}
}

func TestCheckCAAndCertificate(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "sendas.yaml")
	write(t, file, read(t, "testdata/good/full.yaml"))
	wantError(t, file, CheckToken, `tenant.endpoints.ca_file: file "`+dir+`/ca.pem" does not exist`)
	wantError(t, file, CheckToken, "credentials.relay-app.certificate_file: file")
}

func TestUnreadableConfig(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big.yaml")
	write(t, big, "")
	if err := os.Truncate(big, maxFile+1); err != nil {
		t.Fatal(err)
	}
	wantError(t, dir+"/none.yaml", SkipFiles, "none.yaml: does not exist")
	wantError(t, dir, SkipFiles, "is not a regular file")
	wantError(t, big, SkipFiles, "is larger than 64 MiB")
}

// TestSampleConfig proves that every key of the sample is known: a line "#key" is a key at
// its default or an example, a line "# words" is prose.
func TestSampleConfig(t *testing.T) {
	sample := read(t, "../../../packaging/sendas.yaml")
	t.Chdir(t.TempDir()) // file names are relative to the configuration's folder
	write(t, "permissions.csv", "Kind,Mailbox,Address\nDomain,,contoso.com\n")
	full := regexp.MustCompile(`(?m)^( *)#(\S)`).ReplaceAllString(sample, "$1$2")
	c, err := Parse("sendas.yaml", []byte(full), SkipFiles)
	if err != nil {
		t.Fatalf("uncommented: %v", err)
	}
	for _, key := range allKeys(reflect.TypeOf(*c)) {
		if !regexp.MustCompile(`(?m)^[ #-]*` + key + `:`).MatchString(sample) {
			t.Errorf("the sample does not show %s:", key)
		}
	}
	if _, err := Parse("sendas.yaml", []byte(sample), SkipFiles); err == nil {
		t.Error("the sample loads as it is; it must not, before the administrator has filled it in")
	}
}

// allKeys returns every key of the configuration.
func allKeys(t reflect.Type) []string {
	switch t.Kind() {
	case reflect.Slice, reflect.Map:
		return allKeys(t.Elem())
	case reflect.Struct:
	default:
		return nil
	}
	var list []string
	for i := range t.NumField() {
		if key := t.Field(i).Tag.Get("yaml"); key != "" {
			list = append(append(list, key), allKeys(t.Field(i).Type)...)
		}
	}
	return list
}

// TestObserve: nearly nothing has to be written to look on, and what the real thing needs is told.
func TestObserve(t *testing.T) {
	for _, tc := range []struct {
		file   string
		awaits []string // the paths
	}{
		{"observe", []string{"tenant.id", "mailboxes", "clients", "tenant.domains"}},
		{"observe-begun", []string{"tenant.id", "mailboxes[0].credential", "mailboxes[1].credential"}},
		{"minimal", nil},
	} {
		data := read(t, "testdata/good/"+tc.file+".yaml")
		c, err := Parse("sendas.yaml", []byte(data), SkipFiles)
		if err != nil {
			t.Fatal(err)
		}
		if observes := tc.awaits != nil; c.Policy.Observes() != observes || c.Observes() != observes || c.Awaits != nil {
			t.Errorf("%s: observes: %v, awaits %v", tc.file, c.Policy.Observes(), c.Awaits)
		}
		if tc.awaits == nil {
			continue
		}
		if c, err = Parse("sendas.yaml", []byte(data), CheckAll); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range c.Awaits {
			got = append(got, p.Path)
			if p.Line < 1 || p.Text == "" {
				t.Errorf("%s: %+v", tc.file, p)
			}
		}
		slices.Sort(got)
		slices.Sort(tc.awaits)
		if !slices.Equal(got, tc.awaits) {
			t.Errorf("%s awaits %q, want %q", tc.file, got, tc.awaits)
		}
		k := c.ForToken()
		if len(k.Mailboxes) != 0 || k.Policy == nil || len(k.Policy.Mailboxes()) != 0 {
			t.Errorf("%s: the token service has mailboxes without a credential", tc.file)
		}
	}
}

// TestForToken: of a configuration that observes, the token service has the mailboxes that can prove
// who they are.
func TestForToken(t *testing.T) {
	begun := strings.Replace(read(t, "testdata/good/observe-begun.yaml"), "mailboxes:\n  - address: scan@contoso.com\n",
		"credentials: {desk: {flow: device_code, client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab, user: scan@contoso.com}}\nmailboxes:\n  - {address: scan@contoso.com, credential: desk}\n", 1)
	c, err := Parse("sendas.yaml", []byte(begun), SkipFiles)
	if err != nil {
		t.Fatal(err)
	}
	k := c.ForToken()
	if len(c.Mailboxes) != 2 || len(k.Mailboxes) != 1 || k.Mailboxes[0].Address != "scan@contoso.com" || len(k.Policy.Mailboxes()) != 1 {
		t.Errorf("the token service has %v, and the policy %d", k.Mailboxes, len(k.Policy.Mailboxes()))
	}
	c.Milter.Mode = "enforce"
	if c.ForToken() != c {
		t.Error("a configuration that enforces is another one for the token service")
	}
}

func TestBigConfig(t *testing.T) {
	c, err := Parse("sendas.yaml", bigConfig(10_000), SkipFiles)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Clients) != 10_000 || len(c.Mailboxes) != 10_000 {
		t.Errorf("%d clients and %d mailboxes, want 10000 of each", len(c.Clients), len(c.Mailboxes))
	}
}

// bigConfig has n mailboxes with a Send As address, and n clients with five networks.
func bigConfig(n int) []byte {
	var b bytes.Buffer
	b.WriteString("tenant: {id: contoso.com, domains: [contoso.com]}\nnotices: box0@contoso.com\ncredentials:\n  relay-app:\n" +
		"    client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab\n    client_secret_file: relay-app.secret\nmailboxes:\n")
	for i := range n {
		fmt.Fprintf(&b, "  - address: box%d@contoso.com\n    credential: relay-app\n    send_as: [alias%d@contoso.com]\n", i, i)
	}
	b.WriteString("clients:\n")
	for i := range n {
		fmt.Fprintf(&b, "  - name: client%d\n    networks:\n", i)
		for j := range 5 {
			fmt.Fprintf(&b, "      - 10.%d.%d.%d/28\n", i>>8, i&255, 16*j)
		}
		fmt.Fprintf(&b, "    from: box%d@contoso.com\n", i)
	}
	return b.Bytes()
}

func FuzzLoadConfig(f *testing.F) {
	for _, pattern := range []string{"testdata/good/*.yaml", "testdata/bad/*.yaml"} {
		for _, file := range glob(f, pattern) {
			f.Add([]byte(read(f, file)))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("sendas.yaml", data, SkipFiles)
		if err == nil {
			if c.Policy == nil || (len(c.Mailboxes) == 0 || len(c.Clients) == 0) && !c.Observes() {
				t.Error("a Config without an error is not complete")
			}
			return
		}
		e, ok := errors.AsType[*Error](err)
		if !ok || len(e.Problems) == 0 {
			t.Fatalf("%T, want a *ConfigError with problems", err)
		}
		for _, p := range e.Problems[:min(len(e.Problems), MaxProblems)] {
			if p.Line < 1 || p.Line > bytes.Count(data, []byte("\n"))+1 || p.Text == "" {
				t.Errorf("problem %+v of %d lines", p, bytes.Count(data, []byte("\n"))+1)
			}
		}
		if s := err.Error(); strings.ContainsAny(s, "\x00\x1b\r") {
			t.Errorf("the text is not for a terminal: %q", s)
		}
	})
}

func load(t *testing.T, file string) *Site {
	t.Helper()
	c, err := Load(file, SkipFiles)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// wantError loads the file and looks for want in the error; "" is no error.
func wantError(t *testing.T, file string, check Check, want string) {
	t.Helper()
	_, err := Load(file, check)
	if want == "" {
		if err != nil {
			t.Errorf("LoadConfig: %v, want no error", err)
		}
		return
	}
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("LoadConfig: %v, want ... %s ...", err, want)
	}
}

func glob(t testing.TB, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil || len(list) == 0 {
		t.Fatalf("no files %s (%v)", pattern, err)
	}
	return list
}

func read(t testing.TB, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
