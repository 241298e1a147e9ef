package entra

import (
	"errors"
	"net/http"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The texts are Entra's, as documented or seen.
func TestRefusals(t *testing.T) {
	const wrongSecret = `AADSTS7000215: Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app '5f2c'.`
	for _, tc := range []struct {
		name    string
		status  int
		body    string
		want    RefusedError // Status, OAuth, Suberror, Codes, Description, ids, RetryAfter
		says    string
		lasting bool
	}{
		{"lines", 401, `{"error":"invalid_client","error_description":"` + wrongSecret + `\r\nTrace ID: 0c3f-1\r\nCorrelation ID: 77aa-2\r\nTimestamp: 2026-11-21 04:00:00Z","error_codes":[7000215],"timestamp":"2026-11-21 04:00:00Z","trace_id":"0c3f-1","correlation_id":"77aa-2","error_uri":"https://login.microsoftonline.com/error?code=7000215"}`,
			RefusedError{OAuth: "invalid_client", Codes: []int{7000215}, TraceID: "0c3f-1", CorrelationID: "77aa-2", Description: wrongSecret[len("AADSTS7000215: "):]},
			`Microsoft refused the client credentials of "relay-app" (AADSTS7000215): "Invalid client secret provided. Ensure`, true},
		{"spaces, nothing but text", 400, `{"error":"unauthorized_client","error_description":"AADSTS700016: Application with identifier 'x' was not found in the directory 'Contoso'. Trace ID: aa-1 Correlation ID: bb-2 Timestamp: 2026-11-21 04:00:00Z"}`,
			RefusedError{OAuth: "unauthorized_client", Codes: []int{700016}, TraceID: "aa-1", CorrelationID: "bb-2", Description: "Application with identifier 'x' was not found in the directory 'Contoso'."},
			`Microsoft refused the client credentials of "relay-app" (AADSTS700016): "Application with identifier`, true},
		{"no code", 400, `{"error":"invalid_scope"}`, RefusedError{OAuth: "invalid_scope"}, `Microsoft refused the client credentials of "relay-app" (invalid_scope)`, true},
		{"suberror", 400, `{"error":"invalid_grant","suberror":"consent_required","error_codes":[65001,50000]}`,
			RefusedError{OAuth: "invalid_grant", Suberror: "consent_required", Codes: []int{65001, 50000}}, `(AADSTS65001)`, true},
		{"the text's code first", 400, `{"error":"x","error_codes":[1,700027],"error_description":"AADSTS700027: d"}`,
			RefusedError{OAuth: "x", Codes: []int{700027, 1}, Description: "d"}, `(AADSTS700027): "d"`, true},
		{"busy", 503, `{"error":"temporarily_unavailable","error_codes":[90033]}`, RefusedError{OAuth: "temporarily_unavailable", Codes: []int{90033}, RetryAfter: 30 * time.Second},
			`Microsoft has no answer to the client credentials of "relay-app" just now (AADSTS90033)`, false},
		{"throttled, unknown code", 429, `{"error":"invalid_request","error_codes":[12345678]}`, RefusedError{OAuth: "invalid_request", Codes: []int{12345678}, RetryAfter: 30 * time.Second}, `just now (AADSTS12345678)`, false},
		{"known code of an overloaded server", 503, `{"error":"invalid_client","error_codes":[7000215]}`, RefusedError{OAuth: "invalid_client", Codes: []int{7000215}, RetryAfter: 30 * time.Second}, `just now (AADSTS7000215)`, false},
		{"many codes", 400, `{"error":"x","error_codes":[1,2,3,4,5,6,7,8,9,10]}`, RefusedError{OAuth: "x", Codes: []int{1, 2, 3, 4, 5, 6, 7, 8}}, `(AADSTS1)`, true},
		{"loop", 400, `{"error":"invalid_grant","error_codes":[50196]}`, RefusedError{OAuth: "invalid_grant", Codes: []int{50196}}, `just now (AADSTS50196)`, false},
		{"error with status 200", 200, `{"error":"invalid_client","error_codes":[7000222]}`, RefusedError{OAuth: "invalid_client", Codes: []int{7000222}}, `(AADSTS7000222)`, true},
		{"odd types", 400, `{"error":"invalid_client","error_codes":["7000215",-1,1.5,{}],"trace_id":7,"correlation_id":"a\nb","error_description":["x"]}`,
			RefusedError{OAuth: "invalid_client", CorrelationID: "a"}, `(invalid_client)`, true},
		{"forged lines", 400, `{"error":"invalid_client\r\nx","error_description":"AADSTS1: one\u0000\u001b[2J\u202e two\n\tthree"}`,
			RefusedError{OAuth: "invalid_client x", Description: "AADSTS1: one[2J two three"[len("AADSTS1: "):]}, `(invalid_client x): "one[2J two three"`, true},
		{"long", 400, `{"error":"invalid_client","error_description":"` + strings.Repeat("é", 5000) + `"}`,
			RefusedError{OAuth: "invalid_client", Description: strings.Repeat("é", MaxText-1) + "…"}, `é…"`, true},
	} {
		retry := "30"
		if tc.want.RetryAfter == 0 {
			retry = ""
		}
		_, err := testEntra(t, answer(tc.status, "application/json; charset=utf-8", tc.body, "Retry-After", retry)).Token(t.Context())
		got, ok := errors.AsType[*RefusedError](err)
		if !ok {
			t.Errorf("%s: %v, want a *RefusedError", tc.name, err)
			continue
		}
		want := tc.want
		want.Credential, want.What, want.ClientID, want.File, want.Status = "relay-app", "client credentials", testClientID, got.File, tc.status
		if !reflect.DeepEqual(*got, want) || got.File == "" {
			t.Errorf("%s:\n got %+v\nwant %+v", tc.name, *got, want)
		}
		if !strings.Contains(err.Error(), tc.says) || got.Temporary() == tc.lasting {
			t.Errorf("%s: %v (temporary: %v)\nwant %q (temporary: %v)", tc.name, err, got.Temporary(), tc.says, !tc.lasting)
		}
	}
}

// Every code that Entra is known to answer our flows with, with a word from its
// meaning and the command or thing that mends it.
func TestEveryCodeIsExplained(t *testing.T) {
	for _, tc := range []struct {
		code          int
		oauth         string
		meaning, act  string
		passes        bool
		commandInHint string
	}{
		{7000215, "invalid_client", "its ID was copied instead of its Value", "write its Value into /etc/sendas/relay-app", false, ""},
		{7000222, "invalid_client", "expired", "write its Value into /etc/sendas/relay-app", false, ""},
		{700016, "unauthorized_client", "no app with the id 5f2c0d3e", "client_id", false, "sendas check"},
		{7000218, "invalid_client", "without a secret or certificate", "Allow public client flows", false, "sendas check"},
		{700025, "invalid_client", "public client", "remove client_secret_file", false, "sendas check"},
		{700027, "invalid_client", "certificate is not registered", "upload the certificate of /etc/sendas/relay-app", false, "systemctl reload sendas-token"},
		{700024, "invalid_client", "outside its valid time", "clock", false, ""},
		{700030, "invalid_client", "subject is not authorised", "upload", false, "systemctl reload sendas-token"},
		{50012, "invalid_client", "client assertion", "clock", false, "systemctl reload sendas-token"},
		{50013, "invalid_client", "client assertion", "clock", false, "systemctl reload sendas-token"},
		{70021, "invalid_client", "trusts no token", "Federated credentials", false, ""},
		{700211, "invalid_client", "trusts no token", "Federated credentials", false, ""},
		{700212, "invalid_client", "meant for somebody else", "api://AzureADTokenExchange", false, ""},
		{700213, "invalid_client", "trusts no token", "upper and lower case", false, ""},
		{7002137, "invalid_client", "trusts no token", "upper and lower case", false, ""},
		{7002138, "invalid_client", "trusts no token", "upper and lower case", false, ""},
		{7000112, "unauthorized_client", "disabled", "Enterprise applications", false, "systemctl reload sendas-token"},
		{70001, "unauthorized_client", "disabled", "Enterprise applications", false, "systemctl reload sendas-token"},
		{90002, "invalid_request", "no such tenant", "tenant.id", false, "sendas check"},
		{900382, "", "national cloud", "tenant.cloud", false, "sendas check"},
		{90038, "", "national cloud", "tenant.cloud", false, "sendas check"},
		{50126, "invalid_grant", "password is wrong", "sign in", false, "sendas login scan"},
		{50034, "invalid_grant", "no such user", "address", false, "sendas login scan"},
		{50053, "invalid_grant", "locked", "unlock", false, "sendas login scan"},
		{50055, "invalid_grant", "password has expired", "new one", false, "sendas login scan"},
		{50057, "invalid_grant", "disabled", "enable it", false, "sendas login scan"},
		{50076, "interaction_required", "second factor", "sign in again", false, "sendas login scan"},
		{50079, "interaction_required", "enrol", "enrol", false, "sendas login scan"},
		{50074, "interaction_required", "second factor", "sign in again", false, "sendas login scan"},
		{50173, "invalid_grant", "revoked", "sign in again", false, "sendas login scan"},
		{700082, "invalid_grant", "lay unused too long", "sign in again", false, "sendas login scan"},
		{70008, "invalid_grant", "revoked", "sign in again", false, "sendas login scan"},
		{70043, "invalid_grant", "sign-in frequency", "exempt", false, "sendas login scan"},
		{70000, "invalid_grant", "refresh token is not valid", "sign in again", false, "sendas login scan"},
		{65001, "invalid_grant", "consented", "Grant admin consent", false, "sendas login scan"},
		{90094, "", "administrator", "Grant admin consent", false, "sendas login scan"},
		{53003, "access_denied", "Conditional Access", "Sign-in logs", false, ""},
		{530032, "access_denied", "policy", "Sign-in logs", false, ""},
		{530035, "access_denied", "security defaults", "Sign-in logs", false, ""},
		{50194, "", "all tenants", "tenant.id", false, "sendas check"},
		{50059, "", "all tenants", "tenant.id", false, "sendas check"},
		{9001023, "", "all tenants", "tenant.id", false, "sendas check"},
		{500011, "invalid_resource", "resource", "tenant.endpoints.scope", false, "sendas check"},
		{650057, "invalid_resource", "resource", "API permissions", false, "sendas check"},
		{50001, "invalid_resource", "resource", "tenant.cloud", false, "sendas check"},
		{70011, "invalid_scope", "scope is wrong", "tenant.endpoints.scope", false, "sendas check"},
		{28002, "invalid_scope", "scope is wrong", "tenant.endpoints.scope", false, "sendas check"},
		{700022, "invalid_scope", "several resources", "tenant.endpoints.scope", false, "sendas check"},
		{70016, "authorization_pending", "not finished", "enter the code", true, ""},
		{0, "slow_down", "fewer requests", "waits", true, ""},
		{70019, "expired_token", "not entered in time", "start again", false, "sendas login scan"},
		{70020, "expired_token", "not entered in time", "start again", false, "sendas login scan"},
		{0, "authorization_declined", "declined", "start again", false, "sendas login scan"},
		{70018, "bad_verification_code", "device code", "start again", false, "sendas login scan"},
		{50196, "", "loop", "another program", true, ""},
		{90055, "temporarily_unavailable", "busy", "waits", true, ""},
		{90024, "temporarily_unavailable", "busy", "waits", true, ""},
		{90033, "temporarily_unavailable", "busy", "waits", true, ""},
		{50033, "temporarily_unavailable", "busy", "waits", true, ""},
		{90006, "temporarily_unavailable", "busy", "waits", true, ""},
		{54005, "invalid_grant", "used already", "sign in again", false, "sendas login scan"},
		{501481, "invalid_grant", "does not belong", "sign in again", false, "sendas login scan"},
	} {
		e := &RefusedError{Credential: "scan", ClientID: testClientID, File: "/etc/sendas/relay-app", Status: 400, OAuth: tc.oauth}
		if tc.code != 0 {
			e.Codes = []int{tc.code}
		}
		hint := e.Hint()
		meaning, act, _ := strings.Cut(hint, ";")
		if !strings.Contains(hint, tc.meaning) || !strings.Contains(hint, tc.act) || meaning == "" || act == "" || e.Temporary() != tc.passes {
			t.Errorf("%s: hint %q (temporary: %v), want %q and %q in it (temporary: %v)", e.Code(), hint, e.Temporary(), tc.meaning, tc.act, tc.passes)
		}
		if tc.commandInHint != "" && !strings.Contains(hint, `"`+tc.commandInHint+`"`) {
			t.Errorf("%s: hint %q, want the command %q in it", e.Code(), hint, tc.commandInHint)
		}
		if tc.code == 0 || tc.oauth == "" {
			continue
		}
		// The OAuth error alone must lead somewhere too, and agree about waiting.
		e.Codes = nil
		if e.Hint() == (&RefusedError{Credential: "scan"}).Hint() || e.Temporary() != tc.passes {
			t.Errorf("%s without its code: hint %q (temporary: %v), want one of its own (temporary: %v)", tc.oauth, e.Hint(), e.Temporary(), tc.passes)
		}
	}
}

// All rows keep the one voice of hints, and name only commands that there are.
func TestHintStyle(t *testing.T) {
	command := regexp.MustCompile(`"sendas ([^"]*)"`)
	known := map[string]bool{"check": true, "doctor": true, "login scan": true}
	var refusals []*RefusedError
	for code := range byCode {
		refusals = append(refusals, &RefusedError{Codes: []int{code}})
	}
	for oauth := range byError {
		refusals = append(refusals, &RefusedError{OAuth: oauth})
	}
	for oauth := range byDeviceError {
		refusals = append(refusals, &RefusedError{OAuth: oauth, Delegated: true})
	}
	for code := range byDelegatedCode {
		refusals = append(refusals, &RefusedError{Codes: []int{code}, Delegated: true})
	}
	for oauth := range byDelegatedError {
		refusals = append(refusals, &RefusedError{OAuth: oauth, Delegated: true})
	}
	for code := range byFederatedCode {
		refusals = append(refusals, &RefusedError{Codes: []int{code}, Federated: true, Skew: time.Hour})
	}
	for _, row := range byPlatform {
		hint := row.meaning + "; " + row.act
		if strings.HasSuffix(hint, ".") || strings.Contains(hint, "\n") || row.meaning == "" || row.act == "" {
			t.Errorf("row of byPlatform: %q, want a meaning and an act without full stop", hint)
		}
	}
	refusals = append(refusals, &RefusedError{OAuth: "never heard of"}, &RefusedError{OAuth: "invalid_client", Status: http.StatusServiceUnavailable})
	for _, e := range refusals {
		e.Credential = "scan"
		hint := e.Hint()
		if strings.ContainsAny(hint, "{}\n") || strings.HasSuffix(hint, ".") || len(hint) > 400 {
			t.Errorf("%s: hint %q, want one line without placeholders and full stop", e.Code(), hint)
		}
		for _, m := range command.FindAllStringSubmatch(hint, -1) {
			if !known[m[1]] {
				t.Errorf("%s: hint %q names the unknown command %q", e.Code(), hint, m[0])
			}
		}
	}
}

// The two halves of a refusal's hint are those that Hint joins.
func TestRefusalAdvice(t *testing.T) {
	for code := range byCode {
		e := &RefusedError{Credential: "scan", ClientID: testClientID, Codes: []int{code}, File: "/etc/sendas/relay-app"}
		if meaning, act := e.Advice(); meaning == "" || act == "" || meaning+"; "+act != e.Hint() {
			t.Errorf("%s: %q and %q, want the two parts of %q", e.Code(), meaning, act, e.Hint())
		}
	}
}
