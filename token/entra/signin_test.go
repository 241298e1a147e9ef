package entra

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
)

const (
	testUserScope = "https://outlook.office.com/SMTP.Send"
	testAuthority = "https://login.microsoftonline.com"
	testDevice    = "DAQABAAEAAAD-device-code"
	testRefresh   = "0.AXoAfirst~refresh-token"

	deviceAnswer = `{"user_code":"ABCD-EFGH","device_code":"` + testDevice + `","verification_uri":"https://microsoft.com/devicelogin","expires_in":900,"interval":5,` +
		`"message":"To sign in, use a web browser to open the page https://microsoft.com/devicelogin and enter the code ABCD-EFGH to authenticate."}`
	userAnswer = `{"token_type":"Bearer","scope":"https://outlook.office.com/SMTP.Send","expires_in":4599,"ext_expires_in":4599,` +
		`"access_token":"eyJ0eXAiOiJKV1Qi.e30.c2ln","refresh_token":"` + testRefresh + `"}`
	pendingAnswer = `{"error":"authorization_pending","error_description":"AADSTS70016: OAuth 2.0 device flow error. Authorization is pending. Continue polling.` +
		`\r\nTrace ID: 0a1b\r\nCorrelation ID: 2c3d\r\nTimestamp: 2026-11-21 04:00:00Z","error_codes":[70016]}`
)

// fakeEntra answers requests in memory, so that it works where time stands still.
type fakeEntra func(r *http.Request, form url.Values) (status int, body string)

func (f fakeEntra) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	var form url.Values
	if r.Body != nil {
		b, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil {
			return nil, err
		}
		if form, err = url.ParseQuery(string(b)); err != nil {
			return nil, err
		}
	}
	status, body := f(r, form)
	switch status {
	case 0: // nobody there
		return nil, errors.New("connection refused")
	case -1: // nobody answers
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	h := http.Header{"Content-Type": {"application/json; charset=utf-8"}}
	if wait, rest, ok := strings.Cut(body, "|"); ok {
		h.Set("Retry-After", wait)
		body = rest
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

func (f fakeEntra) client() *http.Client { return &http.Client{Transport: f, Timeout: requestTimeout} }

func testSignIn(f fakeEntra) *SignIn {
	return &SignIn{
		Credential: "scan", Authority: testAuthority, Tenant: "contoso.onmicrosoft.com", ClientID: testClientID,
		Scopes: []string{testUserScope}, Client: f.client(),
	}
}

func isDevice(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/devicecode") }

// refusal makes Entra's JSON error.
func refusal(oauth string, code int, text string) string {
	return fmt.Sprintf(`{"error":%q,"error_description":"AADSTS%d: %s Trace ID: 0a1b Correlation ID: 2c3d Timestamp: 2026-11-21 04:00:00Z","error_codes":[%d]}`, oauth, code, text, code)
}

func TestDeviceCodeRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		s := testSignIn(func(r *http.Request, form url.Values) (int, string) {
			got = append(got, r.Method+" "+r.URL.String()+"\n"+form.Encode())
			if isDevice(r) {
				return 200, deviceAnswer
			}
			return 200, userAnswer
		})
		started := time.Now()
		var prompt DevicePrompt
		g, err := s.DeviceCode(t.Context(), func(p DevicePrompt) { prompt = p })
		if err != nil {
			t.Fatal(err)
		}
		want := []string{
			"POST https://login.microsoftonline.com/contoso.onmicrosoft.com/oauth2/v2.0/devicecode\n" +
				"client_id=" + testClientID + "&scope=https%3A%2F%2Foutlook.office.com%2FSMTP.Send+offline_access",
			"POST https://login.microsoftonline.com/contoso.onmicrosoft.com/oauth2/v2.0/token\n" +
				"client_id=" + testClientID + "&device_code=" + testDevice + "&grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Adevice_code" +
				"&scope=https%3A%2F%2Foutlook.office.com%2FSMTP.Send+offline_access",
		}
		if !slices.Equal(got, want) {
			t.Errorf("requests:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		wantPrompt := DevicePrompt{
			URL: "https://microsoft.com/devicelogin", Code: "ABCD-EFGH", Expires: started.Add(15 * time.Minute),
			Message: "To sign in, use a web browser to open the page https://microsoft.com/devicelogin and enter the code ABCD-EFGH to authenticate.",
		}
		if prompt != wantPrompt {
			t.Errorf("prompt = %+v, want %+v", prompt, wantPrompt)
		}
		if string(g.Refresh) != testRefresh || string(g.Token.Access) != "eyJ0eXAiOiJKV1Qi.e30.c2ln" || !g.Token.Expires.Equal(started.Add(5*time.Second+4599*time.Second)) {
			t.Errorf("grant = %s, %s, %v, want the tokens of the answer", string(g.Refresh), string(g.Token.Access), g.Token.Expires)
		}
	})
}

func TestScopes(t *testing.T) {
	for _, tc := range []struct {
		scopes []string
		want   string
	}{
		{nil, "offline_access"},
		{[]string{testUserScope}, testUserScope + " offline_access"},
		{[]string{"offline_access", testUserScope}, "offline_access " + testUserScope},
	} {
		s := SignIn{Scopes: slices.Clip(tc.scopes)}
		if got := s.scopes(); got != tc.want {
			t.Errorf("scopes of %q = %q, want %q", tc.scopes, got, tc.want)
		}
	}
}

// TestPolling checks at which seconds each question is asked (RFC 8628 section 3.5).
func TestPolling(t *testing.T) {
	const pending, done = "400 " + pendingAnswer, "200 " + userAnswer
	slow := `400 {"error":"slow_down"}`
	for _, tc := range []struct {
		name    string
		answers []string // to the questions; the last one is repeated
		at      []int    // seconds after the code was shown
		err     string   // what the error says; "" for success
	}{
		{"at once", []string{done}, []int{5}, ""},
		{"pending", []string{pending, pending, done}, []int{5, 10, 15}, ""},
		{"pending, whatever the code", []string{"400 " + refusal("authorization_pending", 70018, "Pending."), "400 " + refusal("authorization_pending", 53003, "Pending."), done}, []int{5, 10, 15}, ""},
		{"slow down lasts", []string{slow, pending, slow, pending, done}, []int{5, 15, 25, 40, 55}, ""},
		{"network fails", []string{"0 ", "0 ", "0 ", pending, done}, []int{5, 15, 35, 75, 80}, ""},
		{"network fails long", []string{"0 ", "0 ", "0 ", "0 ", "0 ", done}, []int{5, 15, 35, 75, 135, 195}, ""},
		{"overloaded", []string{`503 busy`, `500 {"error":"server_error"}`, done}, []int{5, 15, 35}, ""},
		{"Retry-After", []string{`503 100|busy`, done}, []int{5, 105}, ""},
		{"Retry-After of a proxy", []string{`429 9|x`, done}, []int{5, 15}, ""}, // shorter than what we wait anyway
		{"temporary refusal", []string{`400 ` + refusal("invalid_grant", 90033, "A transient error has occurred."), done}, []int{5, 15}, ""},
		{"portal for a while", []string{`302 x`, `200 <html>`, done}, []int{5, 15, 35}, ""},
		{"never used", []string{pending}, times(5, 900), `signing in for "scan": the code was not used within 15m0s`},
		{"Retry-After beyond the end", []string{`503 2000|x`}, []int{5, 900}, `answered with HTTP 503`},
		{"network gone for good", []string{"0 "}, append([]int{5, 15, 35}, from(75, 60, 900)...), `login.microsoftonline.com gave no answer: connection refused`},
		{"expired, says Microsoft", []string{pending, "400 " + refusal("expired_token", 70020, "The provided value for the input parameter 'device_code' is not valid.")}, []int{5, 10}, `(AADSTS70020)`},
	} {
		synctest.Test(t, func(t *testing.T) {
			var at []int
			started := time.Now()
			s := testSignIn(func(r *http.Request, _ url.Values) (int, string) {
				if isDevice(r) {
					return 200, deviceAnswer
				}
				at = append(at, int(time.Since(started).Seconds()))
				status, body, _ := strings.Cut(tc.answers[min(len(at), len(tc.answers))-1], " ")
				var n int
				fmt.Sscan(status, &n)
				return n, body
			})
			_, err := s.DeviceCode(t.Context(), func(DevicePrompt) {})
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: error %v, want %q", tc.name, err, tc.err)
			}
			if !slices.Equal(at, tc.at) {
				t.Errorf("%s: asked at %v, want %v", tc.name, at, tc.at)
			}
		})
	}
}

// times returns step, 2*step … end.
func times(step, end int) []int { return from(step, step, end) }

// from returns first, first+step … and at last end.
func from(first, step, end int) (list []int) {
	for i := first; i < end; i += step {
		list = append(list, i)
	}
	return append(list, end)
}

func TestDeviceAnswers(t *testing.T) {
	device := func(rest string) string {
		return `{"user_code":"A","device_code":"B","verification_uri":"https://c.example"` + rest + `}`
	}
	for _, tc := range []struct {
		body           string
		life, interval time.Duration
	}{
		{device(`,"expires_in":"600","interval":"7"`), 10 * time.Minute, 7 * time.Second}, // strings, as v1 endpoints have it
		{device(``), 15 * time.Minute, 5 * time.Second},
		{device(`,"expires_in":0,"interval":0`), 15 * time.Minute, 5 * time.Second},
		{device(`,"expires_in":-5,"interval":-5`), 15 * time.Minute, 5 * time.Second},
		{device(`,"expires_in":1e18,"interval":1e18`), time.Hour, time.Minute},
		{device(`,"expires_in":60,"interval":0.001`), time.Minute, time.Second},
		{device(`,"expires_in":null,"interval":{}`), 15 * time.Minute, 5 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			var asked time.Duration
			started := time.Now()
			s := testSignIn(func(r *http.Request, _ url.Values) (int, string) {
				if isDevice(r) {
					return 200, tc.body
				}
				asked = time.Since(started)
				return 200, userAnswer
			})
			var life time.Duration
			if _, err := s.DeviceCode(t.Context(), func(p DevicePrompt) { life = time.Until(p.Expires) }); err != nil || life != tc.life || asked != tc.interval {
				t.Errorf("answer %s: %v, good for %v, asked after %v, want %v and %v", tc.body, err, life, asked, tc.life, tc.interval)
			}
		})
	}
}

func TestUnusableDeviceAnswers(t *testing.T) {
	for _, tc := range []struct {
		status     int
		body, want string
	}{
		{200, `null`, "answered with an answer without a device code"},
		{200, `[]`, "answered with something that is not the JSON of a device code"},
		{200, ``, "answered with something that is not the JSON of a device code"},
		{200, `<html>`, "answered with something that is not the JSON of a device code"},
		{200, `{}`, "answered with an answer without a device code"},
		{200, `{"user_code":"A","device_code":"B"}`, "answered with an answer without a device code"},
		{200, `{"user_code":"A","device_code":7,"verification_uri":"x"}`, "answered with something that is not the JSON of a device code"},
		{200, `{"user_code":"\u001b","device_code":"B","verification_uri":"x"}`, "answered with an answer without a device code"},
		{200, strings.Repeat("x", maxAnswer+1), "answered with an answer that broke off: the answer is longer than 1 MiB"},
		{502, `<title>Bad Gateway</title>`, `answered with HTTP 502 and a web page titled "Bad Gateway"`},
		{404, ``, `answered with HTTP 404 and nothing in it`},
		{0, ``, `gave no answer: connection refused`},
	} {
		s := testSignIn(func(*http.Request, url.Values) (int, string) { return tc.status, tc.body })
		_, err := s.DeviceCode(t.Context(), func(DevicePrompt) { t.Error("something was shown") })
		if _, ok := errors.AsType[*UnreachableError](err); !ok || !strings.HasSuffix(err.Error(), tc.want) || !strings.Contains(err.Error(), `"scan": login.microsoftonline.com`) {
			t.Errorf("HTTP %d %.60s: %v\nwant an *UnreachableError that ends in %s", tc.status, tc.body, err, tc.want)
		}
	}
}

// TestPromptIsPlain: what Microsoft, or somebody in its place, has people read can
// neither move the cursor nor fill the screen.
func TestPromptIsPlain(t *testing.T) {
	body := fmt.Sprintf(`{"user_code":"A\u001b[2J\r\nB","device_code":"x","verification_uri":"https://c.example/\u202e\u0007","message":%q}`, strings.Repeat("m", 5000))
	s := testSignIn(func(*http.Request, url.Values) (int, string) { return 200, body })
	ctx, stop := context.WithCancel(t.Context())
	var p DevicePrompt
	s.DeviceCode(ctx, func(got DevicePrompt) { p = got; stop() })
	if p.Code != "A[2J B" || p.URL != "https://c.example/" || len([]rune(p.Message)) != MaxText {
		t.Errorf("prompt = %q %q and %d characters, want them plain and short", p.Code, p.URL, len([]rune(p.Message)))
	}
}

// deviceRefusals are the texts of the error table of Entra's documentation.
var deviceRefusals = []struct {
	first bool // refuses the code, else the sign-in
	body  string
	code  string
	hint  string
}{
	{true, refusal("invalid_client", 7000218, "The request body must contain the following parameter: 'client_assertion' or 'client_secret'."), "AADSTS7000218",
		`set "Allow public client flows" to Yes`},
	{true, refusal("unauthorized_client", 700016, "Application with identifier 'x' was not found in the directory 'Contoso'."), "AADSTS700016", `compare client_id of credential scan`},
	{true, refusal("invalid_request", 90002, "Tenant 'contoso.example' not found."), "AADSTS90002", `tenant.id or tenant.cloud is wrong`},
	{true, refusal("invalid_scope", 70011, "The provided request must include a 'scope' input parameter."), "AADSTS70011", "tenant.endpoints.delegated_scope is https://outlook.office.com/SMTP.Send"},
	{true, refusal("invalid_resource", 500011, "The resource principal named x was not found."), "AADSTS500011", "delegated permission SMTP.Send"},
	{false, refusal("invalid_client", 7000218, "The request body must contain the following parameter: 'client_assertion' or 'client_secret'."), "AADSTS7000218",
		`set "Allow public client flows" to Yes`},
	{false, refusal("invalid_grant", 53003, "Access has been blocked by Conditional Access policies."), "AADSTS53003", "Conditional Access"},
	{false, refusal("access_denied", 530035, "Access has been blocked by security defaults."), "AADSTS530035", "security defaults"},
	{false, `{"error":"authorization_declined"}`, "authorization_declined", `start again with "sendas login scan" and accept`},
	// The error decides what became of the sign-in; the code beside it may be any.
	{false, refusal("authorization_declined", 70018, "The end user denied the authorization request."), "AADSTS70018", `somebody declined the sign-in in the browser; start again with "sendas login scan" and accept`},
	{false, refusal("authorization_declined", 70016, "The end user denied the authorization request."), "AADSTS70016", `somebody declined the sign-in`},
	{false, refusal("authorization_declined", 53003, "Access has been blocked by Conditional Access policies."), "AADSTS53003", "Conditional Access"},
	{false, refusal("expired_token", 70018, "The code has expired."), "AADSTS70018", `not entered in time (15 minutes)`},
	{false, refusal("invalid_grant", 70016, "Something else."), "AADSTS70016", `sign in again with "sendas login scan"`},
	{false, refusal("invalid_grant", 70018, "Bad verification code."), "AADSTS70018", `Microsoft does not know the device code`},
	{false, `{"error":"access_denied"}`, "access_denied", `somebody declined the sign-in, or a Conditional Access`},
	{false, refusal("access_denied", 70018, "The end user denied the authorization request."), "AADSTS70018", `somebody declined the sign-in, or a Conditional Access`},
	{false, `{"error":"expired_token"}`, "expired_token", `not entered in time (15 minutes); start again with "sendas login scan"`},
	{false, refusal("bad_verification_code", 70018, "Bad verification code."), "AADSTS70018", `start again with "sendas login scan"`},
	{false, refusal("invalid_grant", 65001, "The user or administrator has not consented to use the application."), "AADSTS65001", "Grant admin consent"},
	{false, refusal("invalid_grant", 50076, "You must use multi-factor authentication to access."), "AADSTS50076", `sign in again with "sendas login scan"`},
	{false, refusal("invalid_grant", 50057, "The user account is disabled."), "AADSTS50057", "enable it in the Microsoft 365 admin centre"},
}

func TestDeviceRefusals(t *testing.T) {
	for _, tc := range deviceRefusals {
		synctest.Test(t, func(t *testing.T) {
			asked := 0
			s := testSignIn(func(r *http.Request, _ url.Values) (int, string) {
				if isDevice(r) && !tc.first {
					return 200, deviceAnswer
				}
				asked++
				return 400, tc.body
			})
			_, err := s.DeviceCode(t.Context(), func(DevicePrompt) {})
			e, ok := errors.AsType[*RefusedError](err)
			if !ok || e.Temporary() || e.Code() != tc.code || !strings.HasPrefix(err.Error(), `Microsoft refused the sign-in of "scan" (`+tc.code+")") {
				t.Errorf("%.60s: %v, want a *RefusedError with %s", tc.body, err, tc.code)
			} else if !strings.Contains(e.Hint(), tc.hint) || asked != 1 {
				t.Errorf("%.60s: hint %q after %d refusals, want %q after one", tc.body, e.Hint(), asked, tc.hint)
			}
		})
	}
}

func TestDeviceCodeHonoursContext(t *testing.T) {
	why := errors.New("the operator went home")
	for _, tc := range []struct {
		name          string
		device, token int // statuses; -1 hangs
	}{{"asking for a code", -1, 0}, {"waiting", 200, 400}, {"polling", 200, -1}} {
		synctest.Test(t, func(t *testing.T) {
			s := testSignIn(func(r *http.Request, _ url.Values) (int, string) {
				if isDevice(r) {
					return tc.device, deviceAnswer
				}
				return tc.token, pendingAnswer
			})
			ctx, stop := context.WithCancelCause(t.Context())
			time.AfterFunc(7*time.Second, func() { stop(why) })
			started := time.Now()
			_, err := s.DeviceCode(ctx, func(DevicePrompt) {})
			if took := time.Since(started); !errors.Is(err, why) || took != 7*time.Second || err.Error() != `signing in for "scan": the operator went home` {
				t.Errorf("%s: %v after %v, want the cause of the context after 7s", tc.name, err, took)
			}
		})
	}
}

// TestDeviceCodeWithCertificate: an assertion lives ten minutes, a code fifteen.
func TestDeviceCodeWithCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cert := certPEM(t, firstKey(), time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
		asked := 0
		s := testSignIn(func(r *http.Request, form url.Values) (int, string) {
			if isDevice(r) {
				return 200, strings.Replace(deviceAnswer, `"interval":5`, `"interval":60`, 1)
			}
			parseAssertion(t, form.Get("client_assertion"), cert, time.Now()) // valid now
			if asked++; asked == 14 {
				return 200, userAnswer
			}
			return 400, pendingAnswer
		})
		s.CertificateFile, s.KeyFile = writeFile(t, "c.pem", cert, 0o644), writeFile(t, "k.pem", pkcs8(t, firstKey()), 0o600)
		if _, err := s.DeviceCode(t.Context(), func(DevicePrompt) {}); err != nil || asked != 14 {
			t.Errorf("DeviceCode = %v after %d questions, want success after 14", err, asked)
		}
	})
}

func TestSignInWithSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testSignIn(func(r *http.Request, form url.Values) (int, string) {
			if isDevice(r) {
				return 200, deviceAnswer
			}
			if form.Get("client_secret") != hardSecret {
				t.Errorf("client_secret = %q, want that of the file", form.Get("client_secret"))
			}
			return 200, userAnswer
		})
		s.SecretFile = writeFile(t, "s", hardSecret, 0o600)
		if _, err := s.DeviceCode(t.Context(), func(DevicePrompt) {}); err != nil {
			t.Error(err)
		}
		s.SecretFile = "/none"
		_, err := s.DeviceCode(t.Context(), func(DevicePrompt) { t.Error("a code was shown although the secret file is missing") })
		if _, ok := errors.AsType[*FileError](err); !ok || !strings.HasPrefix(err.Error(), `preparing the sign-in of "scan": file "/none" does not exist`) {
			t.Errorf("without the file: %v, want a *FileError", err)
		}
	})
}

func TestSignInWithoutRefreshToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testSignIn(func(r *http.Request, _ url.Values) (int, string) {
			if isDevice(r) {
				return 200, deviceAnswer
			}
			return 200, `{"token_type":"Bearer","expires_in":4599,"access_token":"a"}`
		})
		_, err := s.DeviceCode(t.Context(), func(DevicePrompt) {})
		e, ok := errors.AsType[*SignInError](err)
		if !ok || err.Error() != `signing in for "scan": Microsoft gave an access token and no refresh token` || !strings.Contains(e.Hint(), `offline_access of the app registration, then sign in again with "sendas login scan"`) {
			t.Errorf("without a refresh token: %v, want a *SignInError", err)
		}
	})
}

// TestSignInShowsNoSecret: an answer may repeat what was sent.
func TestSignInShowsNoSecret(t *testing.T) {
	for _, body := range []string{
		`{"error":"invalid_grant","error_description":"AADSTS70000: you sent %s"}`, `{"error":"%s"}`, `<title>%s</title>`, `{"refresh_token":"%s\n","access_token":"a","expires_in":9}`,
	} {
		for _, status := range []int{200, 400} {
			var sent url.Values
			fake := func(_ *http.Request, form url.Values) (int, string) {
				sent = form
				return status, fmt.Sprintf(body, strings.Join([]string{form.Get("device_code"), form.Get("refresh_token"), form.Get("code"), form.Get("code_verifier"), form.Get("client_secret")}, " "))
			}
			r := testSignIn(fake).redemption()
			r.secretFile = writeFile(t, "s", hardSecret, 0o600)
			_, err := r.redeem(t.Context(), url.Values{"grant_type": {"x"}, "device_code": {"Ddddddddd"}, "refresh_token": {"Rrrrrrrrr"}, "code": {"Cc+/ccccc"}, "code_verifier": {"Vvvvvvvvv"}})
			if err == nil || sent.Get("code") != "Cc+/ccccc" {
				t.Fatalf("body %s: error %v, sent %v", body, err, sent)
			}
			for _, text := range everything(err) {
				for _, secret := range []string{"Ddddd", "Rrrrr", "Cc+/c", "Vvvvv", hardSecret} {
					if strings.Contains(text, secret) {
						t.Errorf("HTTP %d, body %s: %q shows %s", status, body, text, secret)
					}
				}
			}
		}
	}
}

// browse signs in with a browser that visits what the function makes of the place
// to return to and the state. It returns the pages that the browser saw.
func browse(t *testing.T, s *SignIn, visits func(back, state string) []string) (g *Grant, pages []string, err error) {
	t.Helper()
	g, err = s.Browser(t.Context(), func(address string) {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range visits(u.Query().Get("redirect_uri"), u.Query().Get("state")) {
			pages = append(pages, visit(t, v))
		}
	})
	return g, pages, err
}

// visit returns status and page, and checks what every page must have.
func visit(t *testing.T, address string) string {
	t.Helper()
	resp, err := http.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	h := resp.Header
	if resp.StatusCode != 404 && (h.Get("Referrer-Policy") != "no-referrer" || h.Get("Cache-Control") != "no-store" || !strings.HasPrefix(h.Get("Content-Security-Policy"), "default-src 'none'") ||
		h.Get("Content-Type") != "text/html; charset=utf-8") {
		t.Errorf("headers of %d = %v, want a page that nobody keeps and that loads nothing", resp.StatusCode, h)
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, b)
}

func TestBrowser(t *testing.T) {
	var form url.Values
	s := testSignIn(func(r *http.Request, f url.Values) (int, string) {
		form = f
		form.Set("URL", r.URL.String())
		return 200, userAnswer
	})
	s.User = "scan@contoso.com"
	var address *url.URL
	g, err := s.Browser(t.Context(), func(a string) {
		address, _ = url.Parse(a)
		q := address.Query()
		page := visit(t, q.Get("redirect_uri")+"/?code=0.AXoA-code&session_state=x&state="+url.QueryEscape(q.Get("state")))
		if !strings.HasPrefix(page, "200 ") || !strings.Contains(page, "Microsoft has confirmed the sign-in") || !strings.Contains(page, "Go back to the terminal") || strings.Contains(page, "0.AXoA") {
			t.Errorf("page:\n%s", page)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if string(g.Refresh) != testRefresh {
		t.Errorf("refresh token = %q, want that of the answer", string(g.Refresh))
	}
	q := address.Query()
	sum := sha256.Sum256([]byte(form.Get("code_verifier")))
	wantQuery := url.Values{
		"client_id": {testClientID}, "response_type": {"code"}, "redirect_uri": q["redirect_uri"], "response_mode": {"query"}, "scope": {testUserScope + " offline_access"},
		"state": q["state"], "code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])}, "code_challenge_method": {"S256"}, "prompt": {"select_account"}, "login_hint": {"scan@contoso.com"},
	}
	if got := q.Encode(); got != wantQuery.Encode() || len(q.Get("state")) < 20 || len(q.Get("code_challenge")) != 43 {
		t.Errorf("asked for\n%s\nwant\n%s", got, wantQuery.Encode())
	}
	if got, want := address.Scheme+"://"+address.Host+address.Path, testAuthority+"/contoso.onmicrosoft.com/oauth2/v2.0/authorize"; got != want {
		t.Errorf("opened %s, want %s", got, want)
	}
	back, err := url.Parse(q.Get("redirect_uri"))
	if err != nil || back.Scheme != "http" || back.Hostname() != "localhost" || back.Port() == "" || back.Path != "" {
		t.Errorf("redirect_uri = %s, want http://localhost:PORT", back)
	}
	wantForm := url.Values{
		"URL": {testAuthority + "/contoso.onmicrosoft.com/oauth2/v2.0/token"}, "client_id": {testClientID}, "grant_type": {"authorization_code"}, "code": {"0.AXoA-code"},
		"redirect_uri": {back.String()}, "code_verifier": form["code_verifier"], "scope": {testUserScope + " offline_access"},
	}
	if form.Encode() != wantForm.Encode() {
		t.Errorf("redeemed with\n%s\nwant\n%s", form.Encode(), wantForm.Encode())
	}
	if _, err := http.Get(back.String()); err == nil {
		t.Error("somebody still listens after the sign-in")
	}
}

func TestBrowserVisits(t *testing.T) {
	const (
		confirmed = "200 Microsoft has confirmed the sign-in"
		stranger  = "400 This page belongs to no sign-in that is under way"
		failed    = "200 The sign-in did not succeed"
	)
	denied := url.QueryEscape("AADSTS65004: User declined to consent to access the app.\r\nTrace ID: 0a1b")
	blocked := url.QueryEscape("AADSTS53003: Access has been blocked by Conditional Access policies.")
	for _, tc := range []struct {
		name   string
		visits []string // STATE stands for the state
		pages  []string
		err    string
		hint   string
	}{
		{"other visits end nothing", []string{"/favicon.ico", "/", "/?code=a&state=wrong", "/?code=a", "/?error=access_denied", "/x?code=a&state=STATE", "/?code=a&state=STATE"},
			[]string{"404 ", stranger, stranger, stranger, stranger, "404 ", confirmed}, "", ""},
		{"cancelled", []string{"/?error=access_denied&error_subcode=cancel&state=STATE&error_description=" + denied}, []string{failed},
			`Microsoft refused the sign-in of "scan" (AADSTS65004): "User declined to consent to access the app."`, `start again with "sendas login scan" and accept`},
		{"blocked", []string{"/?error=access_denied&state=STATE&error_description=" + blocked}, []string{failed},
			`Microsoft refused the sign-in of "scan" (AADSTS53003): "Access has been blocked by Conditional Access policies."`, "Conditional Access"},
		{"markup", []string{"/?error=server_error&state=STATE&error_description=%3Cscript%3Ealert(1)%3C/script%3E%1b"}, []string{failed},
			`Microsoft has no answer to the sign-in of "scan" just now (server_error): "<script>alert(1)</script>"`, "busy"},
		{"error without a name", []string{"/?error=%1b&state=STATE"}, []string{failed}, `signing in for "scan": the browser came back with an error that has no name`, `"sendas login scan"`},
		{"neither", []string{"/?state=STATE"}, []string{failed}, `signing in for "scan": the browser came back with neither a code nor an error`, `start again with "sendas login scan"`},
		{"code used before", []string{"/?code=used&state=STATE"}, []string{failed},
			`Microsoft refused the sign-in of "scan" (AADSTS54005): "OAuth2 Authorization code was already redeemed."`, `sign in again with "sendas login scan"`},
		{"no network", []string{"/?code=away&state=STATE"}, []string{failed}, `asking for a token of "scan": login.microsoftonline.com gave no answer: connection refused`, "sendas"},
	} {
		s := testSignIn(func(_ *http.Request, form url.Values) (int, string) {
			switch form.Get("code") {
			case "used":
				return 400, refusal("invalid_grant", 54005, "OAuth2 Authorization code was already redeemed.")
			case "away":
				return 0, ""
			}
			return 200, userAnswer
		})
		_, pages, err := browse(t, s, func(back, state string) (list []string) {
			for _, v := range tc.visits {
				list = append(list, back+strings.ReplaceAll(v, "STATE", state))
			}
			return list
		})
		for i, want := range tc.pages {
			status, title, _ := strings.Cut(want, " ")
			if !strings.HasPrefix(pages[i], status+" ") || !strings.Contains(pages[i], title) || strings.Contains(pages[i], "<script") {
				t.Errorf("%s: page of %s = %s, want %s", tc.name, tc.visits[i], pages[i], want)
			}
		}
		if (err == nil) != (tc.err == "") || err != nil && err.Error() != tc.err {
			t.Errorf("%s: %v, want %s", tc.name, err, tc.err)
			continue
		}
		if h, ok := errors.AsType[interface {
			error
			Hint() string
		}](err); err != nil && (!ok || !strings.Contains(h.Hint(), tc.hint)) {
			t.Errorf("%s: %v, want a hint with %q", tc.name, err, tc.hint)
		}
	}
}

// TestBrowserTwice: a page that is loaded again redeems no code again.
func TestBrowserTwice(t *testing.T) {
	redeemed := 0
	s := testSignIn(func(*http.Request, url.Values) (int, string) { redeemed++; return 200, userAnswer })
	b := &browserVisit{ctx: t.Context(), s: s, r: s.redemption(), state: "S", done: make(chan struct{})}
	for i, want := range []string{"200 Microsoft has confirmed the sign-in", "409 This sign-in has been answered already"} {
		w := httptest.NewRecorder()
		b.ServeHTTP(w, httptest.NewRequest("GET", "/?code=c&state=S", nil))
		status, title, _ := strings.Cut(want, " ")
		if fmt.Sprint(w.Code) != status || !strings.Contains(w.Body.String(), title) {
			t.Errorf("visit %d: %d %s, want %s", i+1, w.Code, w.Body, want)
		}
	}
	w := httptest.NewRecorder()
	b.ServeHTTP(w, httptest.NewRequest("POST", "/?code=c&state=S", nil))
	if w.Code != 404 || redeemed != 1 {
		t.Errorf("POST: %d, want 404; %d codes redeemed, want one", w.Code, redeemed)
	}
}

func TestBrowserIsNotAwaitedForEver(t *testing.T) {
	s := testSignIn(nil)
	s.patience = time.Millisecond
	_, err := s.Browser(t.Context(), func(string) {})
	if e, ok := errors.AsType[*SignInError](err); !ok || err.Error() != `signing in for "scan": the browser did not come back within 1ms` || e.Hint() != `start again with "sendas login scan"; if the browser showed AADSTS50011, give the app registration the redirect URI http://localhost first (Authentication > Mobile and desktop applications)` {
		t.Errorf("without a browser: %v, want a *SignInError", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	if _, err = testSignIn(nil).Browser(ctx, func(string) { stop() }); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v, want context.Canceled inside", err)
	}
	s.SecretFile = "/none"
	_, err = s.Browser(t.Context(), func(string) { t.Error("a browser was opened although the secret file is missing") })
	if _, ok := errors.AsType[*FileError](err); !ok {
		t.Errorf("without the secret file: %v, want a *FileError", err)
	}
}

// FuzzDeviceAnswer feeds the answer with the code: what comes out is a code that can be
// shown and polled for, or an error.
func FuzzDeviceAnswer(f *testing.F) {
	f.Add([]byte(deviceAnswer))
	f.Add([]byte("null"))
	f.Add([]byte(`{"user_code":"A\u001b","device_code":"B","verification_uri":"x","expires_in":"-1e400","interval":[]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		d, err := testSignIn(nil).request("devicecode").deviceCode(body)
		if err != nil {
			if _, ok := errors.AsType[*UnreachableError](err); !ok {
				t.Errorf("%T, want an *UnreachableError", err)
			}
			return
		}
		for _, s := range []string{d.prompt.URL, d.prompt.Code, d.prompt.Message} {
			if len([]rune(s)) > MaxText || strings.ContainsFunc(s, unicode.IsControl) {
				t.Errorf("prompt %q is not one short line", s)
			}
		}
		if d.code == "" || d.prompt.Code == "" || d.life <= 0 || d.life > maxDeviceLife || d.interval < minPoll || d.interval > maxPoll {
			t.Errorf("code good for %v, asked for every %v", d.life, d.interval)
		}
	})
}
