package inspect

import (
	"encoding/base64"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"
)

// jwtOf makes a token of claims; nobody has signed it.
func jwtOf(claims string) string {
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(`{"typ":"JWT","alg":"RS256","kid":"k1"}`)) + "." + enc([]byte(claims)) + "." + enc([]byte("signed by nobody"))
}

const (
	testClientID = "5f2c0d3e-0000-4000-8000-000000000001"
	testTenant   = "72f988bf-0000-4000-8000-0000000000aa"
	testObjectID = "9c1d0b7e-0000-4000-8000-0000000000bb"

	// An app's token of version 1.0, as Entra issues them for Exchange Online.
	appClaims = `{"aud":"https://outlook.office365.com","iss":"https://sts.windows.net/` + testTenant + `/","iat":1795233300,"nbf":1795233300,"exp":1795237200,` +
		`"appid":"` + testClientID + `","appidacr":"2","idtyp":"app","oid":"` + testObjectID + `","roles":["SMTP.SendAsApp"],"tid":"` + testTenant + `","ver":"1.0"}`

	// A user's token of version 1.0.
	userClaims = `{"aud":"https://outlook.office.com","iss":"https://sts.windows.net/` + testTenant + `/","iat":1795233300,"nbf":1795233300,"exp":1795237200,` +
		`"appid":"` + testClientID + `","appidacr":"0","oid":"` + testObjectID + `","scp":"SMTP.Send User.Read","tid":"` + testTenant + `","unique_name":"scan@contoso.com","upn":"scan@contoso.com","ver":"1.0"}`
)

// hveClaims are an app's for High Volume Email.
var hveClaims = strings.NewReplacer("office365.com", "office.com", "SMTP.SendAsApp", "Mail.Send").Replace(appClaims)

func TestParse(t *testing.T) {
	at := func(s int64) time.Time { return time.Unix(s, 0).UTC() }
	for _, tc := range []struct {
		name, claims string
		want         Claims
	}{
		{"app, v1", appClaims, Claims{Audience: "https://outlook.office365.com", Tenant: testTenant, AppID: testClientID, ObjectID: testObjectID, Roles: []string{"SMTP.SendAsApp"},
			IssuedAt: at(1795233300), NotBefore: at(1795233300), Expires: at(1795237200), AppAuth: "2", Version: "1.0"}},
		{"user, v1", userClaims, Claims{Audience: "https://outlook.office.com", Tenant: testTenant, AppID: testClientID, ObjectID: testObjectID, User: "scan@contoso.com", Scopes: []string{"SMTP.Send", "User.Read"},
			IssuedAt: at(1795233300), NotBefore: at(1795233300), Expires: at(1795237200), AppAuth: "0", Version: "1.0"}},
		{"v2", `{"aud":"00000002-0000-0ff1-ce00-000000000000","iss":"https://login.microsoftonline.com/` + testTenant + `/v2.0","azp":"` + testClientID + `","azpacr":"1","preferred_username":"scan@contoso.com","ver":"2.0"}`,
			Claims{Audience: "00000002-0000-0ff1-ce00-000000000000", Tenant: testTenant, AppID: testClientID, User: "scan@contoso.com", AppAuth: "1", Version: "2.0"}},
		{"audiences", `{"aud":["https://outlook.office365.com","x"]}`, Claims{Audience: "https://outlook.office365.com"}},
		{"strings for numbers", `{"exp":"1795237200","nbf":"1795233300.5","iat":1.7952333e9}`, Claims{Expires: at(1795237200), NotBefore: at(1795233300), IssuedAt: at(1795233300)}},
		{"numbers for strings", `{"appidacr":1,"ver":1.0,"roles":"SMTP.SendAsApp"}`, Claims{AppAuth: "1", Version: "1.0", Roles: []string{"SMTP.SendAsApp"}}},
		{"list of scopes", `{"scp":["SMTP.Send",7,null,{}]}`, Claims{Scopes: []string{"SMTP.Send", "7"}}},
		{"odd times", `{"exp":1e300,"nbf":-5,"iat":"NaN"}`, Claims{}},
		{"odd types", `{"aud":{},"tid":[],"oid":null,"appid":true,"iss":"","exp":[],"scp":{}}`, Claims{}},
		{"nothing", `{}`, Claims{}},
		{"forged lines", `{"oid":"a\n\u001b[2Jb","roles":["x\r\ny"]}`, Claims{ObjectID: "a [2Jb", Roles: []string{"x y"}}},
	} {
		got, err := Parse(jwtOf(tc.claims))
		if err != nil || !reflect.DeepEqual(*got, tc.want) {
			t.Errorf("%s:\n got %+v, %v\nwant %+v", tc.name, got, err, tc.want)
		}
	}
}

// A long list of permissions must not hide the one at its end.
func TestLongScopes(t *testing.T) {
	c, err := Parse(jwtOf(`{"scp":"` + strings.Repeat("Mail.ReadWrite.Shared ", 200) + `SMTP.Send"}`))
	if err != nil || len(c.Scopes) != 201 || c.Scopes[200] != "SMTP.Send" {
		t.Errorf("Parse = %d scopes, %v, want 201 with SMTP.Send at the end", len(c.Scopes), err)
	}
}

func TestOpaqueTokens(t *testing.T) {
	good := string(jwtOf(appClaims))
	for _, tc := range []struct{ name, token string }{
		{"empty", ""},
		{"personal account", "EwB4A8l6BAAU7p9QDpi/D7xJLwsTgCg3TskyTaQAAQeL"},
		{"two parts", good[:strings.LastIndex(good, ".")]},
		{"encrypted, five parts", good + ".a.b"},
		{"no JSON", "e30.aGVsbG8.c2ln"},
		{"cut JSON", "e30.eyJhdWQiOiJo.c2ln"},
		{"null", "e30.bnVsbA.c2ln"},
		{"a list", "e30.W10.c2ln"},
		{"not base64url", strings.ReplaceAll(good, ".", ".+")},
		{"huge", string(jwtOf(`{"x":"` + strings.Repeat("x", maxClaims) + `"}`))},
	} {
		c, err := Parse(tc.token)
		if c != nil || !errors.Is(err, ErrOpaque) || len(tc.token) > 20 && strings.Contains(err.Error(), tc.token[:20]) {
			t.Errorf("%s: Parse = %v, %v, want ErrOpaque", tc.name, c, err)
		}
	}
}

// An app's token and a user's with nothing wrong.
func TestJudgeGood(t *testing.T) {
	now := time.Unix(1795233600, 0)
	for _, tc := range []struct {
		claims string
		e      Expected
		want   []string // What: Meaning
	}{
		{appClaims, Expected{TenantID: strings.ToUpper(testTenant), ClientID: strings.ToUpper(testClientID), ObjectID: strings.ToUpper(testObjectID), AppOnly: true, Audiences: []string{"https://outlook.office365.com/"}, Now: now}, []string{
			"audience: the token is for https://outlook.office365.com",
			"tenant: the token comes from tenant " + testTenant,
			"kind: the token is the app's own",
			"app: the token is that of app " + testClientID,
			"object id: the token's object id is " + testObjectID + ", as in Exchange Online",
			"permission: the app has the role SMTP.SendAsApp: the classic model, in which it also needs FullAccess to each mailbox",
			"life: the token serves until 2026-11-21 05:00:00 UTC",
			"clock: the token is valid since 2026-11-21 03:55:00 UTC",
			"proof: the app has proved itself by a certificate or another issuer's token",
			"version: the token has version 1.0; for Exchange Online 1.0 is usual",
		}},
		{userClaims, Expected{User: "Scan@contoso.com", Now: now}, []string{
			"audience: the token is for https://outlook.office.com",
			"tenant: the token comes from tenant " + testTenant,
			"kind: the token is a signed-in user's",
			"app: the token is that of app " + testClientID,
			"permission: the app may send for the user (SMTP.Send)",
			"user: the user is scan@contoso.com",
			"life: the token serves until 2026-11-21 05:00:00 UTC",
			"clock: the token is valid since 2026-11-21 03:55:00 UTC",
			"proof: the app has proved nothing (a public client)",
			"version: the token has version 1.0; for Exchange Online 1.0 is usual",
		}},
	} {
		c, err := Parse(jwtOf(tc.claims))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range c.Judge(tc.e) {
			got = append(got, f.What+": "+f.Meaning)
			if !f.OK {
				t.Errorf("finding %+v, want it to be OK", f)
			}
		}
		if !reflect.DeepEqual(got, tc.want) {
			t.Errorf("Judge:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
		}
	}
}

// One claim is different from the good token; one finding must say so.
func TestJudge(t *testing.T) {
	app := Expected{TenantID: testTenant, ClientID: testClientID, ObjectID: testObjectID, AppOnly: true}
	user := Expected{TenantID: testTenant, ClientID: testClientID, User: "scan@contoso.com"}
	hve := Expected{TenantID: testTenant, ClientID: testClientID, AppOnly: true, HighVolume: true, Audiences: []string{"https://outlook.office.com"}}
	hveUser := Expected{TenantID: testTenant, ClientID: testClientID, User: "scan@contoso.com", HighVolume: true, Audiences: []string{"https://outlook.office.com"}}
	for _, tc := range []struct {
		name         string
		claims       string
		old, changed string // in the claims
		e            Expected
		what         string
		ok           bool
		meaning, act string
	}{
		{"Graph", appClaims, `"https://outlook.office365.com"`, `"https://graph.microsoft.com"`, app, "audience", false, "for Microsoft Graph (https://graph.microsoft.com), and Exchange Online refuses it with 535 5.7.3", "tenant.endpoints.scope"},
		{"Graph by id", userClaims, `"https://outlook.office.com"`, `"00000003-0000-0000-c000-000000000000"`, user, "audience", false, "for Microsoft Graph", "delegated_scope"},
		{"Graph in China", userClaims, `"https://outlook.office.com"`, `"https://microsoftgraph.chinacloudapi.cn"`, user, "audience", false, "for Microsoft Graph", "delegated_scope"},
		{"other resource", appClaims, `"https://outlook.office365.com"`, `"https://management.azure.com/"`, app, "audience", false, "for https://management.azure.com/, not for https://outlook.office365.com or https://outlook.office.com", "tenant.endpoints.scope"},
		{"no audience", appClaims, `"aud"`, `"x"`, app, "audience", false, "for nothing, not for", "tenant.endpoints.scope"},
		{"v2 audience", appClaims, `"https://outlook.office365.com"`, `"00000002-0000-0ff1-ce00-000000000000"`, app, "audience", true, "for 00000002", ""},
		{"other tenant", appClaims, `"tid":"7`, `"tid":"8`, app, "tenant", false, "from tenant 82f988bf-0000-4000-8000-0000000000aa, not from " + testTenant, "tenant.id"},
		{"user's token for an app", userClaims, "", "", app, "kind", false, "a signed-in user's, not the app's own", "client_credentials"},
		{"app's token for a user", appClaims, "", "", user, "kind", false, "the app's own, not a signed-in user's", "device_code"},
		{"other app", appClaims, `"appid":"5`, `"appid":"6`, app, "app", false, "that of app 6f2c0d3e-0000-4000-8000-000000000001, not of " + testClientID, "client_id"},
		{"app unknown", appClaims, "", "", Expected{AppOnly: true}, "app", true, "that of app " + testClientID, "New-ServicePrincipal"},
		{"wrong object id", appClaims, `"oid":"9`, `"oid":"8`, app, "object id", false, "object id is 8c1d0b7e-0000-4000-8000-0000000000bb, but Exchange Online has " + testObjectID, `"New-ServicePrincipal -AppId ` + testClientID + ` -ObjectId 8c1d0b7e-0000-4000-8000-0000000000bb`},
		{"object id to compare", appClaims, "", "", Expected{AppOnly: true}, "object id", true, "object id is " + testObjectID, "Get-ServicePrincipal | fl AppId,ObjectId"},
		{"App RBAC", appClaims, `"roles":["SMTP.SendAsApp"],`, "", app, "permission", true, "no role SMTP.SendAsApp (its roles: nothing): that is right with App RBAC, and a fault in the classic model", "Test-ServicePrincipalAuthorization -Identity " + testClientID},
		{"other roles", appClaims, `SMTP.SendAsApp`, "IMAP.AccessAsApp", app, "permission", true, "its roles: IMAP.AccessAsApp", "Grant admin consent"},
		{"role, other case", appClaims, `SMTP.SendAsApp`, "smtp.sendasapp", app, "permission", true, "classic model", "with App RBAC remove"},
		{"High Volume Email", hveClaims, "", "", hve, "permission", true, "has the permission Mail.Send", ""},
		{"High Volume Email, the list", hveClaims, "", "", hve, "object id", true, "object id is " + testObjectID, "Add-HVEAppAccess -Identity ACCOUNT -AppIds " + testObjectID},
		{"High Volume Email, consent missing", hveClaims, `"roles":["Mail.Send"],`, "", hve, "permission", false, "lacks the permission Mail.Send (its roles: nothing)", "Grant admin consent"},
		{"High Volume Email, submission's role", hveClaims, `Mail.Send`, "SMTP.SendAsApp", hve, "permission", false, "535 5.7.144", "Grant admin consent"},
		{"High Volume Email, submission's audience", hveClaims, `office.com`, "office365.com", hve, "audience", false, "for https://outlook.office365.com, not for https://outlook.office.com", "scope: of the route"},
		{"High Volume Email, a user", userClaims, `SMTP.Send`, "Mail.Send", hveUser, "permission", true, "Mail.Send", ""},
		{"High Volume Email, a user without", userClaims, "", "", hveUser, "permission", false, "it has: SMTP.Send User.Read", "sendas login"},
		{"no SMTP.Send", userClaims, `SMTP.Send User.Read`, "User.Read", user, "permission", false, "lacks the permission SMTP.Send (it has: User.Read)", "sendas login"},
		{"similar scope", userClaims, `SMTP.Send User.Read`, "SMTP.SendX", user, "permission", false, "lacks the permission SMTP.Send", "delegated permission"},
		{"other user", userClaims, `"upn":"scan`, `"upn":"admin`, user, "user", false, "the user is admin@contoso.com, not scan@contoso.com", "sign in as scan@contoso.com"},
		{"expired", appClaims, `"exp":1795237200`, `"exp":1795233600`, app, "life", false, "expired at 2026-11-21 04:00:00 UTC, and this machine's clock says 2026-11-21 04:00:00 UTC", "timedatectl"},
		{"ends soon", appClaims, `"exp":1795237200`, `"exp":1795234199`, app, "life", false, "ends in 9m59s", "sendas status"},
		{"ends later", appClaims, `"exp":1795237200`, `"exp":1795234200`, app, "life", true, "until 2026-11-21 04:10:00 UTC", ""},
		{"not yet valid", appClaims, `"nbf":1795233300`, `"nbf":1795233601`, app, "clock", false, "valid from 2026-11-21 04:00:01 UTC on, and this machine's clock says 2026-11-21 04:00:00 UTC: it is behind", "timedatectl"},
		{"issued later", appClaims, `"iat":1795233300`, `"iat":1795237000`, app, "clock", false, "it is behind", "timedatectl"},
		{"secret", appClaims, `"appidacr":"2"`, `"appidacr":"1"`, app, "proof", true, "by a client secret", ""},
		{"version 2", appClaims, `"ver":"1.0"`, `"ver":"2.0"`, app, "version", true, "version 2.0", ""},
	} {
		c, err := Parse(jwtOf(strings.Replace(tc.claims, tc.old, tc.changed, 1)))
		if err != nil {
			t.Fatal(err)
		}
		tc.e.Now = time.Unix(1795233600, 0)
		found := 0
		for _, f := range c.Judge(tc.e) {
			if f.What != tc.what {
				continue
			}
			found++
			if f.OK != tc.ok || !strings.Contains(f.Meaning, tc.meaning) || !strings.Contains(f.Act, tc.act) || (f.Act != "") != (tc.act != "") {
				t.Errorf("%s: %+v\nwant OK %v, %q, %q", tc.name, f, tc.ok, tc.meaning, tc.act)
			}
		}
		if found != 1 {
			t.Errorf("%s: %d findings about %q, want one", tc.name, found, tc.what)
		}
	}
}

// The rows keep one voice.
func TestJudgementStyle(t *testing.T) {
	for _, row := range judgements {
		for _, text := range []string{row.meaning, row.act} {
			if strings.HasSuffix(text, ".") || strings.Contains(text, "\n") || text != "" && unicode.IsUpper([]rune(text)[0]) {
				t.Errorf("%s: %q, want one line in lower case without full stop", row.what, text)
			}
		}
		if !row.ok && row.act == "" {
			t.Errorf("%s: %q says nothing about what to do", row.what, row.meaning)
		}
	}
}

// FuzzParse: whatever a token says, reading and judging it end, show no piece of
// the token itself and fit on lines.
func FuzzParse(f *testing.F) {
	for _, s := range []string{appClaims, userClaims, `{}`, `null`, `{"exp":"1e400"}`, `{"aud":[[]],"roles":{"a":1}}`, "{\"oid\":\"\\u202e{want_oid}\"}"} {
		f.Add(jwtOf(s))
	}
	f.Add("EwB4A8l6BAAU7p9QDpi/D7xJLwsTgCg3TskyTaQAAQeL")
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		c, err := Parse(token)
		if (c == nil) == (err == nil) {
			t.Fatalf("Parse = %v, %v, want one of them", c, err)
		}
		if err != nil {
			if err != ErrOpaque {
				t.Errorf("Parse: %v, want ErrOpaque", err)
			}
			return
		}
		for _, e := range []Expected{{AppOnly: true}, {User: "scan@contoso.com"}, {TenantID: testTenant, ClientID: testClientID, ObjectID: testObjectID, AppOnly: true}} {
			findings := c.Judge(e)
			if len(findings) == 0 {
				t.Errorf("Judge(%+v) has no findings", e)
			}
			for _, finding := range findings {
				checkFinding(t, finding)
			}
		}
		if s := fmt.Sprintf("%+v", *c); len(token) > 60 && strings.Contains(s, token) {
			t.Errorf("the claims show the token: %s", s)
		}
	})
}

func checkFinding(t *testing.T, f Finding) {
	t.Helper()
	if f.What == "" || f.Meaning == "" || !f.OK && f.Act == "" {
		t.Errorf("finding %+v is incomplete", f)
	}
	if s := f.Meaning + f.Act; strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) || len([]rune(s)) > 3000 {
		t.Errorf("finding %q does not fit on a line", s)
	}
}
