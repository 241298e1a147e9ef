package entra

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
)

const (
	ownID    = "77777777-0000-4000-8000-000000000007" // the system-assigned identity
	assigned = "88888888-0000-4000-8000-000000000008" // a user-assigned one
	resID    = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/relay"
)

func startIdentity(t *testing.T, change func(*siteConfig)) *site {
	t.Helper()
	return startTest(t, func(c *siteConfig) {
		c.TokenLife, c.ArcKeys = time.Hour, filepath.Join(t.TempDir(), "tokens")
		c.ManagedIdentities = []directory.ManagedIdentity{
			{App: directory.App{ClientID: ownID, ObjectID: "m7", Mailboxes: []string{"erp@contoso.com"}}, SystemAssigned: true},
			{App: directory.App{ClientID: assigned, ObjectID: "m8", Model: directory.ModelClassic, Mailboxes: []string{"erp@contoso.com"}}, ResourceID: resID},
		}
		if change != nil {
			change(c)
		}
	})
}

// get asks for a token; headers are name and value.
func get(t *testing.T, endpoint string, v url.Values, headers ...string) (*http.Response, map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, endpoint+"?"+v.Encode(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatalf("%v in %q", err, b)
	}
	return res, m
}

func imdsQuery(more ...string) url.Values {
	return visitor.With(visitor.Values("api-version", "2018-02-01", "resource", "https://outlook.office365.com"), more...)
}

// TestIMDS: the members of a good answer are texts, all of them.
func TestIMDS(t *testing.T) {
	s := startIdentity(t, nil)
	endpoint := "http://" + s.IMDSAddr() + "/metadata/identity/oauth2/token"
	before := time.Now().Unix()
	res, m := get(t, endpoint, imdsQuery(), "Metadata", "true")
	if res.StatusCode != 200 || len(m) != 7 || m["refresh_token"] != "" || m["expires_in"] != "3599" || m["resource"] != "https://outlook.office365.com" || m["token_type"] != "Bearer" {
		t.Errorf("%s: %v", res.Status, m)
	}
	for member, offset := range map[string]int64{"expires_on": 3600, "not_before": -300} {
		text, _ := m[member].(string)
		if at, err := strconv.ParseInt(text, 10, 64); err != nil || at < before+offset || at > time.Now().Unix()+offset {
			t.Errorf("%s is %q, %v", member, m[member], err)
		}
	}
	wantDelegated(t, claims(t, s, m["access_token"]), map[string]any{"appid": ownID, "oid": "m7", "appidacr": "2", "aud": "https://outlook.office365.com", "roles": nil})
	if why := s.opens("erp@contoso.com", m["access_token"].(string)); why != "" {
		t.Errorf("the token opens no mailbox: %s", why)
	}
}

func TestIMDSRequests(t *testing.T) {
	both := startIdentity(t, nil)
	user := startIdentity(t, func(c *siteConfig) { c.ManagedIdentities = c.ManagedIdentities[1:] })
	two := startIdentity(t, func(c *siteConfig) {
		c.ManagedIdentities[0].SystemAssigned = false
	})
	for _, tc := range []struct {
		name    string
		s       *site
		query   url.Values
		headers []string
		status  int
		want    string // the app, or the error
	}{
		{"by client id", both, imdsQuery("client_id", strings.ToUpper(assigned)), nil, 200, assigned},
		{"by object id", both, imdsQuery("object_id", "m8"), nil, 200, assigned},
		{"by resource id", both, imdsQuery("msi_res_id", resID), nil, 200, assigned},
		{"the machine's by client id", both, imdsQuery("client_id", ownID), nil, 200, ownID},
		{"the only one", user, imdsQuery(), nil, 200, assigned},
		{"resource with a slash", both, imdsQuery("resource", "https://outlook.office365.com/"), nil, 200, ownID},
		{"one of two", two, imdsQuery(), nil, 400, "invalid_request"},
		{"unknown", both, imdsQuery("client_id", app1), nil, 400, "invalid_request"},
		{"ids of two", both, imdsQuery("client_id", ownID, "object_id", "m8"), nil, 400, "invalid_request"},
		{"App Service's parameter", both, imdsQuery("mi_res_id", resID), nil, 400, "bad_request"},
		{"a scope", both, imdsQuery("resource", "https://outlook.office365.com/.default"), nil, 400, "invalid_resource"},
		{"no resource", both, imdsQuery("resource", ""), nil, 400, "invalid_resource"},
		{"another version", both, imdsQuery("api-version", "2019-08-01"), nil, 400, "bad_request"},
		{"no Metadata", both, imdsQuery(), []string{"X-Test", "x"}, 400, "bad_request_102"},
		{"Metadata: false", both, imdsQuery(), []string{"Metadata", "false"}, 400, "bad_request_102"},
		{"through a proxy", both, imdsQuery(), []string{"Metadata", "true", "X-Forwarded-For", "10.0.0.1"}, 400, "bad_request_102"},
	} {
		if tc.headers == nil {
			tc.headers = []string{"Metadata", "true"}
		}
		res, m := get(t, "http://"+tc.s.IMDSAddr()+"/metadata/identity/oauth2/token", tc.query, tc.headers...)
		got, _ := m["error"].(string)
		if res.StatusCode == 200 {
			got, _ = claims(t, tc.s, m["access_token"])["appid"].(string)
		}
		if res.StatusCode != tc.status || got != tc.want {
			t.Errorf("%s: %s, %v, want %d %s", tc.name, res.Status, m, tc.status, tc.want)
		}
	}
	if n := both.TokenRequestsByGrant()[GrantManagedIdentity]; n["ok"] != 5 || n["invalid_resource"] != 2 || len(both.TokenRequests()) != 0 {
		t.Errorf("counted %v, and as token requests %v", n, both.TokenRequests())
	}
}

func TestAppService(t *testing.T) {
	s := startIdentity(t, nil)
	query := visitor.Values("api-version", "2019-08-01", "resource", "https://outlook.office365.com", "mi_res_id", resID)
	res, m := get(t, s.AppServiceEndpoint(), query, "X-IDENTITY-HEADER", s.IdentityHeader())
	if _, has := m["expires_in"]; res.StatusCode != 200 || has || m["client_id"] != assigned || m["token_type"] != "Bearer" {
		t.Errorf("%s: %v", res.Status, m)
	}
	if text, _ := m["expires_on"].(string); len(text) != 10 {
		t.Errorf("expires_on is %v", m["expires_on"])
	}
	for _, header := range []string{"", "x"} {
		if res, m := get(t, s.AppServiceEndpoint(), query, "X-IDENTITY-HEADER", header); res.StatusCode != 401 {
			t.Errorf("header %q: %s, %v", header, res.Status, m)
		}
	}
	if res, m := get(t, s.AppServiceEndpoint(), visitor.With(query, "api-version", "2018-02-01"), "X-IDENTITY-HEADER", s.IdentityHeader()); res.StatusCode != 400 {
		t.Errorf("another version: %s, %v", res.Status, m)
	}
}

// arcKey reads the file of a challenge.
func arcKey(t *testing.T, s *site, query url.Values) (file, secret string) {
	t.Helper()
	res, m := get(t, s.ArcEndpoint(), query, "Metadata", "true")
	found := regexp.MustCompile(`^Basic realm=(/\S+/[0-9a-f-]{36}\.key)$`).FindStringSubmatch(res.Header.Get("WWW-Authenticate"))
	if res.StatusCode != 401 || found == nil {
		t.Fatalf("%s, %v, %v", res.Status, res.Header, m)
	}
	b, err := os.ReadFile(found[1])
	if err != nil || len(b) == 0 || len(b) > 4096 {
		t.Fatalf("key file of %d bytes: %v", len(b), err)
	}
	return found[1], string(b)
}

// TestArc: who can read the file gets the token, once.
func TestArc(t *testing.T) {
	s := startIdentity(t, nil)
	query := visitor.Values("api-version", "2020-06-01", "resource", "https://outlook.office365.com", "client_id", assigned)
	file, secret := arcKey(t, s, query)
	if filepath.Dir(file) != s.cfg.ArcKeys {
		t.Errorf("key file %s", file)
	}
	if res, m := get(t, s.ArcEndpoint(), query, "Metadata", "true", "Authorization", "Basic x"); res.StatusCode != 401 || res.Header.Get("WWW-Authenticate") != "" {
		t.Errorf("wrong key: %s, %v", res.Status, m)
	}
	res, m := get(t, s.ArcEndpoint(), query, "Metadata", "true", "Authorization", "Basic "+secret)
	if res.StatusCode != 200 || m["client_id"] != assigned || m["object_id"] != "m8" || m["msi_res_id"] != resID || m["expires_in"] != "3599" {
		t.Errorf("%s, %v", res.Status, m)
	}
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("the key file is still there: %v", err)
	}
	if res, _ := get(t, s.ArcEndpoint(), query, "Metadata", "true", "Authorization", "Basic "+secret); res.StatusCode != 401 {
		t.Errorf("used again: %s", res.Status)
	}
	if res, m := get(t, s.ArcEndpoint(), query); res.StatusCode != 400 || m["error"] != "bad_request_102" {
		t.Errorf("no Metadata: %s, %v", res.Status, m)
	}
	left, _ := arcKey(t, s, query)
	s.Close()
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("a key file is left behind: %v", err)
	}
}

// TestArcTroubles: an agent that overlooks the identity, and a challenge that
// names a file it should not.
func TestArcTroubles(t *testing.T) {
	s := startIdentity(t, nil)
	query := visitor.Values("api-version", "2020-06-01", "resource", "https://outlook.office365.com", "client_id", assigned)
	setFaults(t, s, Faults{ArcLegacy: true})
	_, secret := arcKey(t, s, query)
	_, m := get(t, s.ArcEndpoint(), query, "Metadata", "true", "Authorization", "Basic "+secret)
	if m["client_id"] != nil || claims(t, s, m["access_token"])["appid"] != ownID {
		t.Errorf("old agent: %v", m)
	}
	setFaults(t, s, Faults{ArcRealm: "/etc/shadow"})
	if res, _ := get(t, s.ArcEndpoint(), query, "Metadata", "true"); res.Header.Get("WWW-Authenticate") != "Basic realm=/etc/shadow" {
		t.Errorf("another realm: %v", res.Header)
	}
}

func TestIMDSFaults(t *testing.T) {
	s := startIdentity(t, nil)
	endpoint := "http://" + s.IMDSAddr() + "/metadata/identity/oauth2/token"
	for _, status := range []int{404, 410, 429, 500, 503} {
		setFaults(t, s, Faults{IMDSStatus: status, IMDSTimes: 2, IMDSRetry: 3})
		for i, want := range []int{status, status, 200} {
			res, m := get(t, endpoint, imdsQuery(), "Metadata", "true")
			if res.StatusCode != want || (res.Header.Get("Retry-After") == "3") != (want != 200) || (m["error"] == nil) != (want == 200) {
				t.Errorf("request %d: %s, %v, want %d", i, res.Status, m, want)
			}
		}
	}
	for form, want := range map[string]string{
		"number": `^[0-9.e+]+$`, "us": `^\d\d/\d\d/\d{4} \d\d:\d\d:\d\d$`, "iso": `^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$`, "rfc3339": `^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$`,
	} {
		setFaults(t, s, Faults{IMDSExpiresOn: form})
		_, m := get(t, endpoint, imdsQuery(), "Metadata", "true")
		text, isText := m["expires_on"].(string)
		if number, isNumber := m["expires_on"].(float64); isNumber {
			text = strconv.FormatFloat(number, 'f', 0, 64)
		}
		if isText != (form != "number") || !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("%s: expires_on is %v", form, m["expires_on"])
		}
	}
}
