package entra

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const testTokenURL = testAuthority + "/contoso.onmicrosoft.com/oauth2/v2.0/token"

// rotated is the answer that gives the n-th refresh token.
func rotated(n int) string {
	return strings.Replace(userAnswer, testRefresh, fmt.Sprintf("rotated-%d", n), 1)
}

// testDelegated returns a source for which somebody has signed in.
func testDelegated(t *testing.T, f fakeEntra) *Delegated {
	t.Helper()
	d := &Delegated{
		Credential: "scan", TokenURL: testTokenURL, ClientID: testClientID, Scope: testUserScope, User: "scan@contoso.com",
		Vault: testVault(t), Client: f.client(),
	}
	signInTo(t, d.Vault, testRefresh, testNow)
	return d
}

// signInTo does what "sendas login" does.
func signInTo(t *testing.T, v *Vault, refresh Secret, at time.Time) {
	t.Helper()
	err := v.Save("scan", &StoredGrant{Refresh: refresh, ClientID: testClientID, Tenant: "contoso.onmicrosoft.com", User: "Scan@contoso.com", Scope: testUserScope, SignedIn: at, Refreshed: at})
	if err != nil {
		t.Fatal(err)
	}
}

func wantStored(t *testing.T, v *Vault, when, want string) {
	t.Helper()
	g, err := v.Load("scan")
	if err != nil || string(g.Refresh) != want {
		t.Errorf("%s: stored %v, %v, want %q", when, g, err, want)
	}
}

func TestDelegatedRequest(t *testing.T) {
	var got string
	d := testDelegated(t, func(r *http.Request, form url.Values) (int, string) {
		got = r.Method + " " + r.URL.String() + "\n" + form.Encode()
		return 200, rotated(1)
	})
	tok, err := d.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := "POST " + testTokenURL + "\nclient_id=" + testClientID + "&grant_type=refresh_token&refresh_token=0.AXoAfirst~refresh-token&scope=https%3A%2F%2Foutlook.office.com%2FSMTP.Send+offline_access"
	if got != want {
		t.Errorf("request:\n%s\nwant:\n%s", got, want)
	}
	if string(tok.Access) != "eyJ0eXAiOiJKV1Qi.e30.c2ln" {
		t.Errorf("token = %q, want that of the answer", string(tok.Access))
	}
	g, err := d.Vault.Load("scan")
	if err != nil || g.Refresh != "rotated-1" || !g.SignedIn.Equal(testNow) || time.Since(g.Refreshed) > time.Hour || g.User != "Scan@contoso.com" || d.Unsaved() != nil {
		t.Errorf("stored %+v, %v, want the rotated token of the same sign-in", g, err)
	}
}

func TestDelegatedProof(t *testing.T) {
	var form url.Values
	d := testDelegated(t, func(_ *http.Request, f url.Values) (int, string) { form = f; return 200, rotated(1) })
	d.SecretFile = writeFile(t, "s", hardSecret, 0o600)
	if _, err := d.Token(t.Context()); err != nil || form.Get("client_secret") != hardSecret {
		t.Errorf("with a secret: %v, sent %q", err, form.Get("client_secret"))
	}
	now := time.Now()
	cert := certPEM(t, firstKey(), now.Add(-time.Hour), now.Add(time.Hour))
	d.SecretFile, d.CertificateFile = "", writeFile(t, "c.pem", cert+pkcs8(t, firstKey()), 0o600)
	if _, err := d.Token(t.Context()); err != nil {
		t.Fatal(err)
	}
	if claims := parseAssertion(t, form.Get("client_assertion"), cert, now); claims["aud"] != testTokenURL || form.Get("client_assertion_type") != jwtBearer || form.Get("refresh_token") != "rotated-1" {
		t.Errorf("with a certificate: claims %v, sent %v", claims, form)
	}
	d.CertificateFile = "/none"
	_, err := d.Token(t.Context())
	if result, _ := ResultOf(err); result != ResultConfig || !strings.HasPrefix(err.Error(), `preparing the refresh token of "scan": file "/none" does not exist`) {
		t.Errorf("without the certificate: %v, want a *FileError", err)
	}
	wantStored(t, d.Vault, "after a missing certificate", "rotated-1")
}

// TestDelegatedWithoutRotation: what ends is the refresh token that is there, so its date stays
// until a new one comes, and somebody hears of it once.
func TestDelegatedWithoutRotation(t *testing.T) {
	const none = `{"token_type":"Bearer","expires_in":3599,"access_token":"a"}`
	repeated := strings.Replace(none, "}", `,"refresh_token":"`+testRefresh+`"}`, 1)
	for _, tc := range []struct {
		name    string
		answers []string
		kept    string // y or n after each
		warned  int
		told    int // that it is good again
		stored  string
	}{
		{"none in the answer", []string{none, none, none}, "yyy", 1, 0, testRefresh},
		{"the old one in the answer", []string{repeated, none}, "yy", 1, 0, testRefresh},
		{"a new one each time", []string{rotated(1), rotated(2)}, "nn", 0, 0, "rotated-2"},
		{"a new one at last", []string{none, rotated(2), none}, "yny", 2, 1, "rotated-2"},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := 0
			d := testDelegated(t, func(*http.Request, url.Values) (int, string) { n++; return 200, tc.answers[n-1] })
			signInTo(t, d.Vault, testRefresh, time.Now())
			came := time.Now()
			var log bytes.Buffer
			d.Log = slog.New(slog.NewTextHandler(&log, nil))
			for i, kept := range tc.kept {
				time.Sleep(time.Hour)
				if _, err := d.Token(t.Context()); err != nil {
					t.Fatalf("%s: %v", tc.name, err)
				}
				if kept == 'n' {
					came = time.Now()
				}
				g, err := d.Vault.Load("scan")
				if err != nil || g.Kept() != (kept == 'y') || !g.Renewed().Equal(came) || !g.Used.Equal(time.Now()) {
					t.Errorf("%s, refresh %d: kept %v, came %v, used %v (%v), want %c, %v and now", tc.name, i+1, g.Kept(), g.Renewed(), g.Used, err, kept, came)
				}
			}
			wantStored(t, d.Vault, tc.name, tc.stored)
			ends := came.Add(MaxIdle).UTC().Format(time.DateOnly)
			warned, told := strings.Count(log.String(), `level=WARN msg="Microsoft gave no new refresh token`), strings.Count(log.String(), "gives new refresh tokens again")
			if warned != tc.warned || told != tc.told || tc.warned > 0 && !strings.Contains(log.String(), "ends="+ends) || strings.Contains(log.String(), testRefresh) {
				t.Errorf("%s: log\n%s\nwant %d warnings with the end %s", tc.name, &log, tc.warned, ends)
			}
		})
	}
}

// TestSignInEnds: which refusals end a sign-in, and which tell of the app, or of a bad hour.
func TestSignInEnds(t *testing.T) {
	for _, tc := range []struct {
		oauth string
		code  int
		user  bool
		grant bool
		proof bool
	}{
		{"invalid_grant", 700082, true, true, false},
		{"invalid_grant", 50173, true, true, false},
		{"invalid_grant", 99999999, true, true, false},
		{"interaction_required", 50076, true, true, false},
		{"consent_required", 65001, true, true, false},
		{"access_denied", 53003, true, true, false},
		{"invalid_grant", 50196, true, false, false}, // a loop: it passes
		{"temporarily_unavailable", 90033, true, false, false},
		{"invalid_scope", 70011, true, false, false},
		{"invalid_client", 7000222, true, false, true},
		{"invalid_client", 7000215, false, false, true},
		{"invalid_grant", 53003, false, false, false}, // an app, for which nobody signs in
		{"unauthorized_client", 700016, false, false, false},
	} {
		e := &RefusedError{Credential: "scan", Status: 400, OAuth: tc.oauth, Codes: []int{tc.code}, Delegated: tc.user}
		if e.EndsSignIn() != tc.grant || e.RefusesProof() != tc.proof {
			t.Errorf("%s %d of a user: %v: ends the sign-in %v, refuses the proof %v, want %v and %v", tc.oauth, tc.code, tc.user, e.EndsSignIn(), e.RefusesProof(), tc.grant, tc.proof)
		}
	}
}

func TestDelegatedWithoutGrant(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(d *Delegated)
		want   string
	}{
		{"nobody signed in", func(d *Delegated) { os.Remove(d.Vault.Path("scan")) }, `does not exist: nobody has signed in for it yet, type "sendas login scan"`},
		{"no folder", func(d *Delegated) { os.RemoveAll(d.Vault.Dir) }, `does not exist: nobody has signed in for it yet, type "sendas login scan"`},
		{"another app", func(d *Delegated) { d.ClientID = "0f0f0f0f-0000-4000-8000-000000000002" },
			`is a sign-in to the app "` + testClientID + `", and the configuration names another one: type "sendas login scan"`},
		{"another user", func(d *Delegated) { d.User = "erp@contoso.com" }, `is a sign-in of "Scan@contoso.com", and the configuration wants erp@contoso.com: type "sendas login scan"`},
		{"open file", func(d *Delegated) { os.Chmod(d.Vault.Path("scan"), 0o644) }, `is open to every user of this machine (mode 0644)`},
	} {
		d := testDelegated(t, func(*http.Request, url.Values) (int, string) { t.Error("Microsoft was asked"); return 0, "" })
		tc.change(d)
		_, err := d.Token(t.Context())
		if err == nil || !strings.HasPrefix(err.Error(), `loading the sign-in of "scan": file "`+d.Vault.Path("scan")+`" `+tc.want) {
			t.Errorf("%s: %v\nwant %s", tc.name, err, tc.want)
		}
		if result, _ := ResultOf(err); result != ResultConfig {
			t.Errorf("%s: result %s, want %s", tc.name, result, ResultConfig)
		}
	}
}

func TestDelegatedRefusals(t *testing.T) {
	for _, tc := range []struct {
		status int
		body   string
		code   string
		hint   string
		result string
	}{
		{400, refusal("invalid_grant", 700082, "The refresh token has expired due to inactivity. The token was issued on 2026-08-01 and was inactive for 90.00:00:00."), "AADSTS700082",
			`the refresh token lay unused too long; sign in again with "sendas login scan"`, ResultRefused},
		{400, refusal("invalid_grant", 50173, "The provided grant has expired due to it being revoked, a fresh auth token is needed."), "AADSTS50173", `sign in again with "sendas login scan"`, ResultRefused},
		{400, refusal("invalid_grant", 70000, "Provided grant is invalid or malformed."), "AADSTS70000", `sign in again with "sendas login scan"`, ResultRefused},
		{400, refusal("interaction_required", 50076, "Due to a configuration change made by your administrator, you must use multi-factor authentication."), "AADSTS50076", `sign in again with "sendas login scan"`, ResultRefused},
		{400, refusal("invalid_grant", 99999999, "Something new."), "AADSTS99999999", `sign in again with "sendas login scan"`, ResultRefused},
		{401, refusal("invalid_client", 700025, "Client is public so neither 'client_assertion' nor 'client_secret' should be presented."), "AADSTS700025", "remove client_secret_file", ResultRefused},
		{400, refusal("invalid_scope", 28002, "Provided value for the input parameter scope is not valid."), "AADSTS28002", "tenant.endpoints.delegated_scope is https://outlook.office.com/SMTP.Send", ResultRefused},
		{400, `{"error":"invalid_scope"}`, "invalid_scope", "tenant.endpoints.delegated_scope is https://outlook.office.com/SMTP.Send", ResultRefused},
		{400, refusal("invalid_grant", 70008, "The provided authorization code or refresh token has expired due to inactivity."), "AADSTS70008", "or was revoked", ResultRefused},
		{400, refusal("temporarily_unavailable", 90033, "A transient error has occurred."), "AADSTS90033", "tries again by itself", ResultUnreachable},
	} {
		asked := 0
		d := testDelegated(t, func(*http.Request, url.Values) (int, string) { asked++; return tc.status, tc.body })
		_, err := d.Token(t.Context())
		e, ok := errors.AsType[*RefusedError](err)
		if !ok || e.Code() != tc.code || !strings.Contains(e.Hint(), tc.hint) || !strings.Contains(err.Error(), `the refresh token of "scan"`) || asked != 1 {
			t.Errorf("%s: %v after %d requests\nwant hint %q after one", tc.code, err, asked, tc.hint)
		}
		if result, _ := ResultOf(err); result != tc.result {
			t.Errorf("%s: result %s, want %s", tc.code, result, tc.result)
		}
		wantStored(t, d.Vault, tc.code, testRefresh)
	}
}

// TestDelegatedLoginMeanwhile: whatever the request under way brings, a sign-in that
// took place during it counts.
func TestDelegatedLoginMeanwhile(t *testing.T) {
	gone := refusal("invalid_grant", 700082, "The refresh token has expired due to inactivity.")
	for _, tc := range []struct {
		name       string
		old, fresh string // the answers to the old and the new token; "" refuses
		asked      string
		stored     string
		want       string
	}{
		{"old one refused", "", rotated(2), testRefresh + " from-login", "rotated-2", ""},
		{"old one good", rotated(1), rotated(2), testRefresh, "from-login", ""},
		{"both refused", "", "", testRefresh + " from-login", "from-login", `Microsoft refused the refresh token of "scan" (AADSTS700082)`},
	} {
		var asked []string
		var v *Vault
		d := testDelegated(t, func(_ *http.Request, form url.Values) (int, string) {
			token := form.Get("refresh_token")
			asked = append(asked, token)
			body := tc.fresh
			if token == testRefresh {
				body = tc.old
				signInTo(t, v, "from-login", testNow.Add(time.Hour))
			}
			if body == "" {
				return 400, gone
			}
			return 200, body
		})
		v = d.Vault
		_, err := d.Token(t.Context())
		if (err == nil) != (tc.want == "") || err != nil && !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		if got := strings.Join(asked, " "); got != tc.asked {
			t.Errorf("%s: redeemed %s, want %s", tc.name, got, tc.asked)
		}
		wantStored(t, v, tc.name, tc.stored)
	}
}

func TestDelegatedLogoutMeanwhile(t *testing.T) {
	var path string
	d := testDelegated(t, func(*http.Request, url.Values) (int, string) { os.Remove(path); return 200, rotated(1) })
	path = d.Vault.Path("scan")
	if _, err := d.Token(t.Context()); err != nil {
		t.Errorf("Token while the grant is taken away: %v, want the last token", err)
	}
	if _, err := d.Token(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Token after the grant was taken away: %v, want that it is not there", err)
	}
}

// obstruct makes the vault unable to write, for root too.
func obstruct(t *testing.T, v *Vault) (unblock func()) {
	t.Helper()
	dir := filepath.Join(v.Dir, ".scan.json.tmp")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "x"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDelegatedCannotStore: mail goes on with what is in memory, the operator hears
// of it, and the newest token is stored as soon as that is possible.
func TestDelegatedCannotStore(t *testing.T) {
	var sent string
	n := 0
	d := testDelegated(t, func(_ *http.Request, form url.Values) (int, string) {
		sent = form.Get("refresh_token")
		n++
		return 200, rotated(n)
	})
	var log bytes.Buffer
	d.Log = slog.New(slog.NewTextHandler(&log, nil))
	unblock := obstruct(t, d.Vault)
	for i, want := range []string{testRefresh, "rotated-1"} {
		tok, err := d.Token(t.Context())
		if err != nil || tok == nil || sent != want {
			t.Fatalf("call %d: %v, redeemed %s, want success with %s", i+1, err, sent, want)
		}
		if _, ok := errors.AsType[*FileError](d.Unsaved()); !ok {
			t.Errorf("call %d: Unsaved = %v, want a *FileError", i+1, d.Unsaved())
		}
		wantStored(t, d.Vault, "unwritable", testRefresh)
	}
	if got := log.String(); strings.Count(got, "level=ERROR msg=\"refresh token not stored\" credential=scan") != 2 || !strings.Contains(got, "cannot be written") || strings.Contains(got, "rotated") {
		t.Errorf("log:\n%s\nwant two errors without the token", got)
	}
	for _, s := range []string{fmt.Sprintf("%+v", d), fmt.Sprintf("%#v", d), fmt.Sprint(d.Unsaved())} {
		if strings.Contains(s, "rotated") || strings.Contains(s, "AXoA") {
			t.Errorf("%s shows a refresh token", s)
		}
	}
	unblock()
	if _, err := d.Token(t.Context()); err != nil || sent != "rotated-2" || d.Unsaved() != nil {
		t.Errorf("writable again: %v, redeemed %s, unsaved %v, want success with rotated-2", err, sent, d.Unsaved())
	}
	wantStored(t, d.Vault, "writable again", "rotated-3")
}

// TestDelegatedUnsaved: what is in memory gives way to a new sign-in, and to the
// stored one where it is refused.
func TestDelegatedUnsaved(t *testing.T) {
	var sent []string
	d := testDelegated(t, func(_ *http.Request, form url.Values) (int, string) {
		sent = append(sent, form.Get("refresh_token"))
		if form.Get("refresh_token") == "rotated-3" {
			return 400, refusal("invalid_grant", 70000, "Provided grant is invalid or malformed.")
		}
		return 200, rotated(len(sent))
	})
	unblock := obstruct(t, d.Vault)
	ask := func() {
		t.Helper()
		if _, err := d.Token(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ask() // leaves rotated-1 in memory
	unblock()
	signInTo(t, d.Vault, "from-login", testNow.Add(time.Hour))
	ask()
	obstruct(t, d.Vault)
	ask() // leaves rotated-3 in memory
	ask() // which is refused
	want := testRefresh + " from-login rotated-2 rotated-3 rotated-2"
	if got := strings.Join(sent, " "); got != want {
		t.Errorf("redeemed %s, want %s", got, want)
	}
}

func TestDelegatedHonoursContext(t *testing.T) {
	d := testDelegated(t, func(*http.Request, url.Values) (int, string) { return -1, "" })
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := d.Token(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Token with a context that ended = %v, want context.Canceled inside", err)
	}
}

func TestDelegatedTogether(t *testing.T) {
	var mu sync.Mutex
	n := 0
	d := testDelegated(t, func(*http.Request, url.Values) (int, string) {
		mu.Lock()
		defer mu.Unlock()
		n++
		return 200, rotated(n)
	})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := d.Token(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	g, err := d.Vault.Load("scan")
	if err != nil || !strings.HasPrefix(string(g.Refresh), "rotated-") || d.Unsaved() != nil {
		t.Errorf("stored %v, %v, unsaved %v, want one of the rotated ones", g, err, d.Unsaved())
	}
}

// TestLoginIsNoticed runs the whole: a refresher without a token gets one soon after
// a sign-in, told by Watch or not, and after a refusal too.
func TestLoginIsNoticed(t *testing.T) {
	for _, tc := range []struct {
		name  string
		first Secret // what is stored at the start; "" is nothing
		watch bool
		most  time.Duration
	}{
		{"nobody had signed in", "", false, time.Minute},
		{"nobody had signed in, watched", "", true, watchEvery + MinInterval},
		{"refused for an hour, watched", "old", true, watchEvery + MinInterval},
	} {
		synctest.Test(t, func(t *testing.T) {
			asked := 0
			d := testDelegated(t, func(_ *http.Request, form url.Values) (int, string) {
				asked++
				if form.Get("refresh_token") == "old" {
					return 400, refusal("invalid_grant", 700082, "The refresh token has expired due to inactivity.")
				}
				return 200, rotated(1)
			})
			if err := os.Remove(d.Vault.Path("scan")); err != nil {
				t.Fatal(err)
			}
			if tc.first != "" {
				signInTo(t, d.Vault, tc.first, testNow)
			}
			r := NewRefresher("scan", d, RefresherOptions{Rand: func() float64 { return 0 }})
			go r.Run(t.Context())
			if tc.watch {
				go d.Vault.Watch(t.Context(), "scan", r.Wake)
			}
			time.Sleep(time.Hour)
			if s := r.State(); s.Have || s.LastErr == nil {
				t.Fatalf("%s: before the sign-in there is a token", tc.name)
			}
			asked = 0
			signInTo(t, d.Vault, "from-login", testNow.Add(time.Hour))
			time.Sleep(tc.most)
			synctest.Wait()
			if s := r.State(); !s.Have || asked != 1 {
				t.Errorf("%s: %v after the sign-in: token %v, %d requests, %v, want a token by one", tc.name, tc.most, s.Have, asked, s.LastErr)
			}
			time.Sleep(10 * time.Minute)
			if asked != 1 {
				t.Errorf("%s: %d requests in the 10 minutes after, want no loop", tc.name, asked)
			}
		})
	}
}
