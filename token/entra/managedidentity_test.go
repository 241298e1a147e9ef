package entra

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const (
	testResource   = "https://outlook.office365.com"
	testResourceID = "/subscriptions/0b1f/resourceGroups/mail/providers/Microsoft.ManagedIdentity/userAssignedIdentities/relay"
	arcKey         = "ZjA4NjQ1-key-of-the-agent"
	appServiceKey  = "853b9a84-header-of-the-app-service"

	// identityAnswer is IMDS's, for a bubble of synctest: its clock starts at 946684800.
	identityAnswer = `{"access_token":"eyJ0eXAi.e30.c2ln","refresh_token":"","expires_in":"3599","expires_on":"946688399",` +
		`"not_before":"946684500","resource":"https://outlook.office365.com","token_type":"Bearer"}`
)

// onMachine sets the environment by which a platform is recognised, and no other.
func onMachine(t *testing.T, env ...string) {
	t.Helper()
	for _, name := range []string{"IDENTITY_ENDPOINT", "IDENTITY_HEADER", "IDENTITY_SERVER_THUMBPRINT", "MSI_ENDPOINT", "MSI_SECRET", "IMDS_ENDPOINT"} {
		t.Setenv(name, "")
	}
	for i := 0; i+1 < len(env); i += 2 {
		t.Setenv(env[i], env[i+1])
	}
}

// instead returns a client that reaches srv, whatever address it asks for.
func instead(t *testing.T, srv *httptest.Server) *http.Client {
	t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, srv.Listener.Addr().String())
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// freshAnswer is a platform's answer by the clock of now.
func freshAnswer() string {
	return fmt.Sprintf(`{"access_token":"eyJ0eXAi.e30.c2ln","expires_on":"%d","resource":"https://outlook.office365.com","token_type":"Bearer"}`, time.Now().Add(time.Hour).Unix())
}

// identities are the ways to name one, with the parameter of IMDS and of App Service.
var identities = []struct {
	name             string
	m                ManagedIdentity
	imds, appService string
}{
	{"system-assigned", ManagedIdentity{Resource: testResource}, "", ""},
	{"scope instead of resource", ManagedIdentity{Resource: testScope}, "", ""},
	{"client id", ManagedIdentity{Resource: testResource, ClientID: testClientID}, "client_id=" + testClientID, "client_id=" + testClientID},
	{"object id", ManagedIdentity{Resource: testResource, ObjectID: "0b1f-2"}, "object_id=0b1f-2", "object_id=0b1f-2"},
	{"resource id", ManagedIdentity{Resource: testResource, ResourceID: testResourceID}, "msi_res_id=" + testResourceID, "mi_res_id=" + testResourceID},
}

// query is the query of a request for a token, as the platform decodes it.
func query(version, identity string) string {
	params := []string{"api-version=" + version, "resource=" + testResource}
	if identity != "" {
		params = append(params, identity)
	}
	return strings.Join(params, " ")
}

func sentQuery(r *http.Request) string {
	var params []string
	for _, name := range []string{"api-version", "resource", "client_id", "object_id", "msi_res_id", "mi_res_id"} {
		if r.URL.Query().Has(name) {
			params = append(params, name+"="+r.URL.Query().Get(name))
		}
	}
	return strings.Join(params, " ")
}

func TestIMDSRequest(t *testing.T) {
	onMachine(t)
	var got string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = fmt.Sprintf("%s http://%s%s %s, Metadata: %s", r.Method, r.Host, r.URL.Path, sentQuery(r), r.Header.Get("Metadata"))
		answer(200, "application/json", freshAnswer())(w, r)
	}))
	defer srv.Close()
	for _, tc := range identities {
		m := tc.m
		m.Credential, m.Client = "relay", instead(t, srv)
		tok, err := m.Token(t.Context())
		want := "GET http://169.254.169.254/metadata/identity/oauth2/token " + query("2018-02-01", tc.imds) + ", Metadata: true"
		if err != nil || got != want || string(tok.Access) != "eyJ0eXAi.e30.c2ln" {
			t.Errorf("%s: %v, asked %s\nwant %s", tc.name, err, got, want)
		}
	}
}

func TestAppServiceRequest(t *testing.T) {
	var got string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = fmt.Sprintf("%s %s %s, X-IDENTITY-HEADER: %s", r.Method, r.URL.Path, sentQuery(r), r.Header.Get("X-IDENTITY-HEADER"))
		answer(200, "application/json", freshAnswer())(w, r)
	}))
	defer srv.Close()
	onMachine(t, "IDENTITY_ENDPOINT", srv.URL+"/msi/token", "IDENTITY_HEADER", appServiceKey)
	for _, tc := range identities {
		m := tc.m
		m.Credential = "relay" // and no Client: it is on this machine
		_, err := m.Token(t.Context())
		want := "GET /msi/token " + query("2019-08-01", tc.appService) + ", X-IDENTITY-HEADER: " + appServiceKey
		if err != nil || got != want {
			t.Errorf("%s: %v, asked %s\nwant %s", tc.name, err, got, want)
		}
	}
}

// arcAgent plays the agent: it challenges who does not send the key.
func arcAgent(t *testing.T, challenge string, answered http.HandlerFunc) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Metadata") != "true":
			answer(400, "application/json", `{"error":"bad_request_102","error_description":"Required metadata header not specified"}`)(w, r)
		case r.Header.Get("Authorization") == "":
			if challenge != "" {
				w.Header().Set("WWW-Authenticate", challenge)
			}
			w.WriteHeader(http.StatusUnauthorized)
		default:
			answered(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	onMachine(t, "IDENTITY_ENDPOINT", srv.URL+"/metadata/identity/oauth2/token", "IMDS_ENDPOINT", srv.URL)
	return srv
}

// TestArc needs the folder of the agent's keys, whose name is fixed. It makes one that no other
// process sees: in a mount namespace of its own, by starting itself again. Where no user may make
// one, as in a container or a chroot, root can without a user namespace, or else has the real
// folder, if no agent has.
func TestArc(t *testing.T) {
	const inside = "SENDAS_TEST_ARC"
	if os.Getenv(inside) != "" {
		testArcInside(t, os.Getenv(inside) == "hidden")
		return
	}
	var refused []error
	for _, tc := range []struct {
		how string
		sys *syscall.SysProcAttr
	}{
		{"hidden", &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		}},
		{"hidden", &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}},
		{"plain", nil},
	} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestArc$")
		cmd.Env, cmd.SysProcAttr = append(os.Environ(), inside+"="+tc.how), tc.sys
		out, err := cmd.CombinedOutput()
		if _, ran := errors.AsType[*exec.ExitError](err); err != nil && !ran {
			refused = append(refused, err) // no such namespace for us
			continue
		}
		if err != nil || !strings.Contains(string(out), "PASS") {
			t.Errorf("%s: %v\n%s", tc.how, err, out)
		}
		return
	}
	t.Errorf("no way to make the agent's folder: %v", refused)
}

func testArcInside(t *testing.T, hidden bool) {
	const agent = "/var/opt/azcmagent"
	if hidden {
		// Private, so that the machine outside does not see the mount below.
		if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil && !errors.Is(err, syscall.EINVAL) {
			t.Fatalf("keeping the mounts private: %v", err) // in a chroot, / is no mount
		}
		if err := syscall.Mount("none", "/var", "tmpfs", 0, ""); err != nil {
			t.Fatalf("hiding this machine's /var: %v", err)
		}
	} else {
		if _, err := os.Stat(agent); err == nil {
			t.Fatalf("%s is there: this machine has an agent, and its folder is not for tests", agent)
		}
		t.Cleanup(func() { os.RemoveAll(agent) })
	}
	if err := os.MkdirAll("/var/opt/azcmagent/tokens", 0o750); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"1f2e.key": arcKey, "large.key": strings.Repeat("x", 4097), "lines.key": arcKey + "\nx"} {
		if err := os.WriteFile("/var/opt/azcmagent/tokens/"+name, []byte(content), 0o440); err != nil {
			t.Fatal(err)
		}
	}
	testArcRequests(t)
	testArcKeys(t)
	testArcRefusals(t)
}

func testArcRequests(t *testing.T) {
	var got string
	arcAgent(t, "Basic realm=/var/opt/azcmagent/tokens/1f2e.key", func(w http.ResponseWriter, r *http.Request) {
		got = fmt.Sprintf("%s %s %s, Authorization: %s", r.Method, r.URL.Path, sentQuery(r), r.Header.Get("Authorization"))
		// An agent that knows user-assigned identities repeats which one it was.
		q := r.URL.Query()
		body := strings.TrimSuffix(freshAnswer(), "}") + fmt.Sprintf(`,"client_id":%q,"object_id":%q,"msi_res_id":%q}`, q.Get("client_id"), q.Get("object_id"), q.Get("msi_res_id"))
		answer(200, "application/json", body)(w, r)
	})
	for _, tc := range identities {
		m := tc.m
		m.Credential = "relay"
		_, err := m.Token(t.Context())
		want := "GET /metadata/identity/oauth2/token " + query("2020-06-01", tc.imds) + ", Authorization: Basic " + arcKey
		if err != nil || got != want {
			t.Errorf("%s: %v, asked %s\nwant %s", tc.name, err, got, want)
		}
	}
}

func testArcKeys(t *testing.T) {
	for _, tc := range []struct{ key, want string }{
		{"large.key", `file "/var/opt/azcmagent/tokens/large.key" is too large for a key of the Azure Arc agent`},
		{"none.key", `file "/var/opt/azcmagent/tokens/none.key" does not exist, though the Azure Arc agent has just named it`},
		{"lines.key", `gave no answer: net/http: invalid header field value for "Authorization"`},
	} {
		arcAgent(t, "Basic realm=/var/opt/azcmagent/tokens/"+tc.key, answer(200, "application/json", freshAnswer()))
		_, err := (&ManagedIdentity{Credential: "relay", Resource: testResource}).Token(t.Context())
		_, isFile := errors.AsType[*FileError](err)
		if err == nil || !strings.Contains(err.Error(), tc.want) || isFile != strings.HasPrefix(tc.want, "file") || strings.Contains(err.Error(), arcKey) {
			t.Errorf("key %s: %v\nwant %s", tc.key, err, tc.want)
		}
	}
}

func testArcRefusals(t *testing.T) {
	for _, tc := range []struct {
		name string
		m    ManagedIdentity
		h    http.HandlerFunc
		hint string
	}{
		{"key not taken", ManagedIdentity{}, func(w http.ResponseWriter, r *http.Request) {
			answer(401, "application/json", fmt.Sprintf(`{"error":"unauthorized","error_description":"bad key %s"}`, strings.TrimPrefix(r.Header.Get("Authorization"), "Basic ")))(w, r)
		}, "did not take its own key"},
		{"old agent", ManagedIdentity{ClientID: testClientID}, func(w http.ResponseWriter, r *http.Request) {
			answer(200, "application/json", freshAnswer())(w, r)
		}, "older ones know only the machine's own"},
		{"another identity", ManagedIdentity{ClientID: testClientID}, func(w http.ResponseWriter, r *http.Request) {
			answer(200, "application/json", strings.TrimSuffix(freshAnswer(), "}")+`,"client_id":"another"}`)(w, r)
		}, "did not say that the token is of the identity that was asked for"},
	} {
		arcAgent(t, "Basic realm=/var/opt/azcmagent/tokens/1f2e.key", tc.h)
		tc.m.Credential, tc.m.Resource = "relay", testResource
		_, err := tc.m.Token(t.Context())
		e, ok := errors.AsType[*RefusedError](err)
		if !ok || e.Temporary() || !strings.Contains(e.Hint(), tc.hint) {
			t.Errorf("%s: %v, want a *RefusedError with %q in its hint", tc.name, err, tc.hint)
			continue
		}
		for _, text := range everything(err) {
			if strings.Contains(text, arcKey) {
				t.Errorf("%s: %q shows the key", tc.name, text)
			}
		}
	}
}

func TestArcChallenges(t *testing.T) {
	const notAgent = "answered with a challenge that names no key in /var/opt/azcmagent/tokens: that is not the Azure Arc agent"
	for _, challenge := range []string{
		"", "Negotiate", "Basic", `Basic realm="x"`, "Basic realm=", "Basic realm=/etc/shadow", "Basic realm=/etc/x.key", "Bearer realm=/var/opt/azcmagent/tokens/1f2e.key",
		"Basic realm=/var/opt/azcmagent/tokens/1f2e.pem", "Basic realm=/var/opt/azcmagent/tokens/../../../../etc/1f2e.key", "Basic realm=/var/opt/azcmagent/tokens/x/1f2e.key",
	} {
		arcAgent(t, challenge, answer(200, "application/json", freshAnswer()))
		_, err := (&ManagedIdentity{Credential: "relay", Resource: testResource}).Token(t.Context())
		e, ok := errors.AsType[*UnreachableError](err)
		if !ok || !strings.HasSuffix(err.Error(), notAgent) || e.Status != 401 || !strings.Contains(e.Hint(), "somebody else") {
			t.Errorf("challenge %q: %v, want %s", challenge, err, notAgent)
		}
	}
}

func TestArcKeyError(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{
		// Root may read everything, so the kernel's word is made up here.
		{&os.PathError{Op: "stat", Path: "/k", Err: syscall.EACCES}, `file "/k" may not be read by this service: put its user into the group of the Azure Arc agent with "usermod -aG himds sendas-token" and restart the service`},
		{&os.PathError{Op: "open", Path: "/k", Err: syscall.EIO}, `file "/k" cannot be read: input/output error`},
	} {
		if got := arcKeyError("/k", tc.err).Error(); got != tc.want {
			t.Errorf("arcKeyError(%v) = %q, want %q", tc.err, got, tc.want)
		}
	}
}

// inMemory asks a platform that always says the same, without a socket.
func inMemory(f fixedAnswer) *ManagedIdentity {
	return &ManagedIdentity{Credential: "relay", Resource: testResource, Client: &http.Client{Transport: f}}
}

func TestIdentityAnswers(t *testing.T) {
	onMachine(t)
	const token = `{"access_token":"a","token_type":"Bearer",`
	for _, tc := range []struct {
		body             string
		expires, refresh time.Duration // from now; no refresh: not told
	}{
		{identityAnswer, 3599 * time.Second, 0},
		{token + `"expires_on":"946688399"}`, 3599 * time.Second, 0},
		{token + `"expires_on":946688399}`, 3599 * time.Second, 0},
		{token + `"expires_on":"2000-01-01 00:59:59"}`, 3599 * time.Second, 0},
		{token + `"expires_on":"01/01/2000 00:59:59"}`, 3599 * time.Second, 0},
		{token + `"expires_on":"2000-01-01T00:59:59Z"}`, 3599 * time.Second, 0},
		{token + `"expires_in":"3599"}`, 3599 * time.Second, 0},
		{token + `"expires_in":3599}`, 3599 * time.Second, 0},
		// A cached one: expires_in counts from when it was issued.
		{token + `"expires_on":"946685400","expires_in":"86400"}`, 10 * time.Minute, 0},
		{token + `"expires_on":"946771200"}`, 24 * time.Hour, 12 * time.Hour},
		{token + `"expires_on":"946771200","refresh_in":"36000"}`, 24 * time.Hour, 10 * time.Hour},
		{token + `"expires_on":"946771200","refresh_in":"90000"}`, 24 * time.Hour, 0}, // no use
		{token + `"expires_on":"99999999999"}`, maxLife, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			now := time.Now()
			tok, err := inMemory(fixedAnswer{status: 200, body: tc.body}).Token(t.Context())
			if err != nil {
				t.Errorf("answer %s: %v, want a token", tc.body, err)
				return
			}
			refresh := time.Duration(0)
			if !tok.RefreshAt.IsZero() {
				refresh = tok.RefreshAt.Sub(now)
			}
			if got := tok.Expires.Sub(now); got != tc.expires || refresh != tc.refresh {
				t.Errorf("answer %s: token ends in %v, is due in %v, want %v and %v", tc.body, got, refresh, tc.expires, tc.refresh)
			}
		})
	}
}

func TestUnusableIdentityAnswers(t *testing.T) {
	onMachine(t)
	for _, tc := range []struct{ name, body, want string }{
		{"web page", "<html>hello", "something that is not the JSON of a token"},
		{"empty", "", "something that is not the JSON of a token"},
		{"null", "null", "an answer without a token"}, // which the library does not survive
		{"null between blanks", " \n\tnull\r\n", "an answer without a token"},
		{"a list", "[]", "something that is not the JSON of a token"},
		{"no token", `{"expires_on":"946688399"}`, "an answer without a token"},
		{"no life", `{"access_token":"a"}`, "a token without its life (expires_on or expires_in)"},
		{"odd life", `{"access_token":"a","expires_on":"soon"}`, "a token without its life"},
		{"expired", `{"access_token":"a","expires_on":"946684800"}`, "a token that has expired already by this machine's clock"},
		{"line end", `{"access_token":"a\nOK x","expires_on":"946688399"}`, "a token with bytes that no token has"},
		{"too long", `{"access_token":"` + strings.Repeat("a", 1<<20) + `","expires_on":"946688399"}`, "an answer that broke off: the answer is longer than 1 MiB"},
	} {
		synctest.Test(t, func(t *testing.T) {
			_, err := inMemory(fixedAnswer{status: 200, body: tc.body}).Token(t.Context())
			e, ok := errors.AsType[*UnreachableError](err)
			want := `asking for a token of "relay": 169.254.169.254 answered with ` + tc.want
			if !ok || !strings.HasPrefix(err.Error(), want) || len(err.Error()) > 300 || e.Hint() == "" {
				t.Errorf("%s: %.300v\nwant an *UnreachableError: %s", tc.name, err, want)
			}
		})
	}
}

func TestIdentityRefusals(t *testing.T) {
	onMachine(t)
	for _, tc := range []struct {
		name       string
		status     int
		retry      string
		body       string
		says, hint string
		refused    bool // else it is an *UnreachableError
		passes     bool
	}{
		{"no identity", 400, "", `{"error":"invalid_request","error_description":"Identity not found"}`, `Microsoft refused the managed identity of "relay" (invalid_request): "Identity not found"`, "switch System assigned on", true, false},
		{"which one", 400, "", `{"error":"invalid_request","error_description":"Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token request"}`, "Multiple user assigned", "client_id of the one that shall send", true, false},
		{"resource", 400, "", `{"error":"invalid_resource","error_description":"AADSTS50001: The application named https://outlook.office365.xyz was not found in the tenant named Contoso.\r\nTrace ID: aa-1"}`, "(AADSTS50001)", "tenant.endpoints.scope", true, false},
		{"header lost", 400, "", `{"error":"bad_request_102","error_description":"Required metadata header not specified"}`, "(bad_request_102)", "a proxy takes away", true, false},
		{"container", 401, "", `{"error":"unknown_source","error_description":"Unknown Source 10.0.0.9"}`, "(unknown_source)", "no container network", true, false},
		{"something else", 400, "", `{"error":"invalid_scope"}`, "(invalid_scope)", "does not give this machine a token", true, false},
		{"an app's code", 400, "", `{"error":"unauthorized_client","error_description":"AADSTS700016: Application with identifier 'x' was not found"}`, "(AADSTS700016)", "no app with the id", true, false},
		{"busy", 429, "30", `{"error":"too_many_requests","error_description":"Too many requests"}`, "has no answer to the managed identity", "sendas waits", true, true},
		{"unknown", 500, "", `{"error":"unknown","error_description":"Failed to retrieve token from the Active directory."}`, "just now (unknown)", "sendas waits", true, true},
		{"updating", 410, "", "", "answered with HTTP 410 and nothing in it", "tries again by itself", false, true},
		{"not yet there", 404, "", "<title>404 - Not Found</title>", "answered with HTTP 404", "tries again by itself", false, true},
		{"gone with JSON", 404, "", `{"error":"not_found"}`, "just now (not_found)", "sendas waits", true, true},
		{"down", 503, "120", "", "answered with HTTP 503 and nothing in it", "tries again by itself", false, true},
		{"proxy", 403, "", "<title>Squid</title>", `answered with HTTP 403 and a web page titled "Squid"`, "somebody else than the machine's own platform", false, true},
		{"App Service", 400, "", `{"statusCode":400,"message":"No User Assigned or Delegated Managed Identity found for specified ClientId/ResourceId/PrincipalId.","correlationId":"8797-a"}`, `(HTTP 400): "No User Assigned`, "switch System assigned on", true, false},
		{"App Service, older", 400, "", `{"StatusCode":400,"Message":"No MSI found for specified ClientId/ResourceId.","CorrelationId":"8797-a"}`, `(HTTP 400): "No MSI`, "client_id, object_id and resource_id", true, false},
	} {
		_, err := inMemory(fixedAnswer{status: tc.status, retry: tc.retry, body: tc.body}).Token(t.Context())
		e, refused := errors.AsType[*RefusedError](err)
		var h interface {
			Hint() string
			Temporary() bool
		}
		if !errors.As(err, &h) || refused != tc.refused || h.Temporary() != tc.passes || !strings.Contains(err.Error(), tc.says) || !strings.Contains(h.Hint(), tc.hint) {
			t.Errorf("%s: %T %v\nhint: %v\nwant %q and in the hint %q, temporary: %v", tc.name, err, err, h, tc.says, tc.hint, tc.passes)
			continue
		}
		if strings.ContainsAny(h.Hint(), "{}") || len(err.Error()) > 300 || refused && e.Platform != PlatformIMDS {
			t.Errorf("%s: %v, hint %q: want one line, no placeholders, from IMDS", tc.name, err, h.Hint())
		}
		if tc.retry != "" {
			if _, wait := ResultOf(err); fmt.Sprintf("%.0f", wait.Seconds()) != tc.retry {
				t.Errorf("%s: to be left alone for %v, want %s s", tc.name, wait, tc.retry)
			}
		}
	}
}

func TestIdentitySilence(t *testing.T) {
	closed := "http://" + closedPort(t)
	hangUp := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer hangUp.Close()
	for _, tc := range []struct {
		name       string
		env        []string
		client     *http.Client
		want, hint string
	}{
		{"no VM", nil, instead(t, &httptest.Server{Listener: hungListener{closed[len("http://"):]}}), "169.254.169.254 gave no answer: dial tcp 127.0.0.1:", "needs the Azure Arc agent"},
		{"no agent", []string{"IDENTITY_ENDPOINT", closed + "/metadata/identity/oauth2/token", "IMDS_ENDPOINT", closed}, nil, "gave no answer: dial tcp 127.0.0.1:", "azcmagent show"},
		{"hangs up", []string{"IDENTITY_ENDPOINT", hangUp.URL, "IMDS_ENDPOINT", hangUp.URL}, nil, "gave no answer: EOF", "himdsd"},
		{"no app service", []string{"IDENTITY_ENDPOINT", closed + "/msi/token", "IDENTITY_HEADER", appServiceKey}, nil, "gave no answer: dial tcp 127.0.0.1:", "restart it"},
		{"no URL", []string{"IDENTITY_ENDPOINT", "http://%zz", "IDENTITY_HEADER", appServiceKey}, nil, "the managed identity of App Service cannot be asked: IDENTITY_ENDPOINT", "restart it"},
		{"Service Fabric", []string{"IDENTITY_ENDPOINT", closed, "IDENTITY_HEADER", appServiceKey, "IDENTITY_SERVER_THUMBPRINT", "00"}, nil, "the managed identity of ServiceFabric is not supported", "client_credentials or federated"},
		{"Cloud Shell", []string{"MSI_ENDPOINT", closed}, nil, "the managed identity of CloudShell is not supported", "client_credentials or federated"},
	} {
		onMachine(t, tc.env...)
		_, err := (&ManagedIdentity{Credential: "relay", Resource: testResource, Client: tc.client}).Token(t.Context())
		e, ok := errors.AsType[*UnreachableError](err)
		if !ok || !strings.Contains(err.Error(), tc.want) || !strings.Contains(e.Hint(), tc.hint) || strings.Contains(e.Hint(), "{") {
			t.Errorf("%s: %v\nhint: %s\nwant %q and in the hint %q", tc.name, err, e.Hint(), tc.want, tc.hint)
		}
		for _, text := range everything(err) {
			if strings.Contains(text, appServiceKey) {
				t.Errorf("%s: %q shows the header", tc.name, text)
			}
		}
	}
}

// hungListener stands for an address at which nobody listens.
type hungListener struct{ address string }

func (hungListener) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (hungListener) Close() error              { return nil }
func (h hungListener) Addr() net.Addr          { return namedAddr(h.address) }

type namedAddr string

func (namedAddr) Network() string  { return "tcp" }
func (a namedAddr) String() string { return string(a) }

func TestIdentityHonoursContext(t *testing.T) {
	onMachine(t)
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer srv.Close()
	defer close(release)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (&ManagedIdentity{Credential: "relay", Resource: testResource, Client: instead(t, srv)}).Token(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Token with a context that ended = %v, want context.Canceled inside", err)
	}
}

func TestIdentityFollowsNoRedirect(t *testing.T) {
	onMachine(t)
	m := inMemory(fixedAnswer{status: 302, body: "x"})
	m.Client.Transport = redirecting{}
	_, err := m.Token(t.Context())
	if err == nil || !strings.HasSuffix(err.Error(), `answered with HTTP 302 and a redirect to "portal.example.net", which is not followed`) {
		t.Errorf("after a redirect: %v, want that it is not followed", err)
	}
}

type redirecting struct{}

func (redirecting) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host != "169.254.169.254" {
		return nil, errors.New("followed a redirect")
	}
	h := http.Header{"Location": {"http://portal.example.net/login"}}
	return &http.Response{StatusCode: 302, Header: h, Body: io.NopCloser(strings.NewReader("")), Request: r}, nil
}

// cachingPlatform has a cache, as every platform: it gives out the same token until
// shortly before its end.
type cachingPlatform struct {
	life     time.Duration
	early    time.Duration // how long before
	expires  time.Time
	serial   int
	requests int
}

func (p *cachingPlatform) RoundTrip(r *http.Request) (*http.Response, error) {
	p.requests++
	if now := time.Now(); !now.Add(p.early).Before(p.expires) {
		p.serial++
		p.expires = now.Add(p.life)
	}
	body := fmt.Sprintf(`{"access_token":"t%d","expires_on":"%d"}`, p.serial, p.expires.Unix())
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

// The library has a cache, which must not answer in the platform's place: a Refresher
// that asks early must get the newest that there is.
func TestEveryTokenIsAskedFor(t *testing.T) {
	onMachine(t)
	synctest.Test(t, func(t *testing.T) {
		p := &cachingPlatform{life: time.Hour, early: 5 * time.Minute}
		m := &ManagedIdentity{Credential: "relay", Resource: testResource, Client: &http.Client{Transport: p}}
		for i, wait := range []time.Duration{0, time.Minute, 55 * time.Minute} {
			time.Sleep(wait)
			tok, err := m.Token(t.Context())
			if want := []string{"t1", "t1", "t2"}[i]; err != nil || string(tok.Access) != want || p.requests != i+1 {
				t.Fatalf("token %d = %v, %v after %d requests, want %s", i+1, tok, err, p.requests, want)
			}
		}
	})
}

// A busy platform is asked once and then left to the Refresher's back-off; the library
// would ask three times within two seconds, whatever Retry-After says.
func TestBusyPlatformIsAskedOnce(t *testing.T) {
	onMachine(t)
	var requests atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		answer(503, "text/plain", "", "Retry-After", "120")(w, r)
	}))
	defer srv.Close()
	_, err := (&ManagedIdentity{Credential: "relay", Resource: testResource, Client: instead(t, srv)}).Token(t.Context())
	if _, wait := ResultOf(err); err == nil || requests.Load() != 1 || wait != 2*time.Minute {
		t.Errorf("a busy platform: %v after %d requests, to be left alone for %v; want one request and 2m", err, requests.Load(), wait)
	}
}

// A platform that gives out an old token makes no loop, and there is always a token.
func TestRefresherWithCachingPlatform(t *testing.T) {
	onMachine(t)
	for _, tc := range []struct {
		life, early time.Duration
		most        int // requests for each token
	}{{time.Hour, 5 * time.Minute, 5}, {24 * time.Hour, 5 * time.Minute, 8}, {24 * time.Hour, 12 * time.Hour, 2}, {24 * time.Hour, 0, 15}} {
		synctest.Test(t, func(t *testing.T) {
			p := &cachingPlatform{life: tc.life, early: tc.early}
			r := NewRefresher("relay", &ManagedIdentity{Credential: "relay", Resource: testResource, Client: &http.Client{Transport: p}},
				RefresherOptions{Rand: func() float64 { return 0.5 }})
			ctx, cancel := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() { r.Run(ctx) })
			for range 3 * int(tc.life/time.Minute) {
				if tok, err := r.Token(ctx); err != nil || !time.Now().Before(tok.Expires) {
					t.Fatalf("a life of %v: %v, %v, want a live token", tc.life, tok, err)
				}
				time.Sleep(time.Minute)
			}
			cancel()
			running.Wait()
			if p.serial < 3 || p.requests > tc.most*p.serial {
				t.Errorf("tokens of %v, renewed %v early: %d requests for %d, want at most %d for each", tc.life, tc.early, p.requests, p.serial, tc.most)
			}
		})
	}
}

// FuzzIdentityAnswer feeds the platform's answer, as FuzzAnswer does with Entra's.
func FuzzIdentityAnswer(f *testing.F) {
	for _, body := range []string{identityAnswer, `{"error":"invalid_request","error_description":"Identity not found"}`, `{"statusCode":400,"message":"x"}`, `{"access_token":"a","expires_in":1e99}`, `null`, `[`} {
		f.Add(uint16(200), "", body)
		f.Add(uint16(400), "7", body)
	}
	for _, name := range []string{"IDENTITY_ENDPOINT", "MSI_ENDPOINT"} {
		f.Setenv(name, "")
	}
	f.Fuzz(func(t *testing.T, status uint16, retry, body string) {
		start := time.Now()
		tok, err := inMemory(fixedAnswer{status: int(status), retry: retry, body: body}).Token(t.Context())
		if err != nil {
			checkError(t, err)
			return
		}
		if tok.Access == "" || strings.ContainsFunc(string(tok.Access), notInSecret) || !tok.Expires.After(start) || tok.Expires.After(time.Now().Add(maxLife)) {
			t.Errorf("token %q ends at %v", string(tok.Access), tok.Expires)
		}
	})
}
