package visitor

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// The paths of Entra's endpoints, and what users are asked to consent to.
const (
	TokenPath   = "/contoso.onmicrosoft.com/oauth2/v2.0/token"
	DevicePath  = "/contoso.onmicrosoft.com/oauth2/v2.0/devicecode"
	SendScope   = "https://outlook.office.com/SMTP.Send"
	SignInScope = SendScope + " offline_access"
)

// A Host is an Entra that listens.
type Host interface {
	Authority() string // the base URL
	CA() []byte        // whom to trust, PEM
	Approve(userCode, user string) error
}

// Ask sends a token request; basic, if not nil, goes as HTTP Basic.
func Ask(t testing.TB, s Host, path string, form url.Values, basic *url.Userinfo) (*http.Response, []byte, error) {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CA())
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}, Timeout: 10 * time.Second}
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.Authority()+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if basic != nil {
		secret, _ := basic.Password()
		req.SetBasicAuth(basic.Username(), secret)
	}
	res, err := c.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res, b, err
}

// Post sends a token request and returns status and JSON.
func Post(t testing.TB, s Host, path string, form url.Values) (int, map[string]any) {
	t.Helper()
	res, b, err := Ask(t, s, path, form, nil)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatalf("%v in %q", err, b)
	}
	return res.StatusCode, m
}

// With builds a form of name and value pairs; "" takes a member away.
func With(base url.Values, more ...string) url.Values {
	v := maps.Clone(base)
	for i := 0; i < len(more); i += 2 {
		if v.Set(more[i], more[i+1]); more[i+1] == "" {
			v.Del(more[i])
		}
	}
	return v
}

// Values is With from the start.
func Values(pairs ...string) url.Values { return With(url.Values{}, pairs...) }

// Form returns App1's good request, with members replaced as by With.
func Form(more ...string) url.Values {
	return With(Values("grant_type", "client_credentials", "client_id", App1, "client_secret", Secret1, "scope", "https://outlook.office365.com/.default"), more...)
}

// StartDeviceFlow returns a device code and its user code.
func StartDeviceFlow(t testing.TB, s Host) (device, user string) {
	t.Helper()
	status, m := Post(t, s, DevicePath, Values("client_id", App5, "scope", SignInScope))
	if status != 200 {
		t.Fatalf("device code: status %d, %v", status, m)
	}
	return m["device_code"].(string), m["user_code"].(string)
}

// PollForm asks for the token of a device code.
func PollForm(device string, more ...string) url.Values {
	return With(Values("grant_type", "urn:ietf:params:oauth:grant-type:device_code", "client_id", App5, "device_code", device), more...)
}

// RefreshForm redeems a refresh token.
func RefreshForm(token any, more ...string) url.Values {
	return With(Values("grant_type", "refresh_token", "client_id", App5, "refresh_token", token.(string)), more...)
}

// SignedIn returns the answer to a sign-in by device code.
func SignedIn(t testing.TB, s Host, user string) map[string]any {
	t.Helper()
	device, code := StartDeviceFlow(t, s)
	if err := s.Approve(code, user); err != nil {
		t.Fatal(err)
	}
	status, m := Post(t, s, TokenPath, PollForm(device))
	if status != 200 {
		t.Fatalf("sign-in of %s: status %d, %v", user, status, m)
	}
	return m
}
