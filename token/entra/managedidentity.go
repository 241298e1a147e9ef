package entra

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/AzureAD/microsoft-authentication-library-for-go/apps/managedidentity"
	"golang.org/x/oauth2"
)

// Who hands out the tokens of a managed identity; see RefusedError.Platform.
const (
	PlatformIMDS       = "IMDS"        // an Azure VM's metadata service, at 169.254.169.254
	PlatformArc        = "Azure Arc"   // the agent of a machine outside of Azure
	PlatformAppService = "App Service" // also Functions and Container Apps
)

// ManagedIdentity is a Source that asks the machine's own platform in Azure for a
// token: no secret, no certificate. Microsoft's library finds out which platform that
// is, by the environment and the Azure Arc agent, and speaks its protocol. It is safe
// for concurrent use as long as its fields do not change.
//
// The library's cache is passed by: it returns a token until five minutes before its
// end, and Exchange Online wants ten. The platform has a cache of its own, which
// nobody can pass by (up to 24 hours, and as long until a change of roles shows). So
// Token may return the same token again. A Refresher copes: it asks again after half
// of what is left, ever sooner down to MinInterval in the last seconds: some fourteen times
// for a token of a day at the worst. Nor does a token that Exchange Online has refused
// (Refresher.Discard) go away before the platform gives another.
type ManagedIdentity struct {
	Credential string // its name in the configuration, for messages
	Resource   string // "https://outlook.office365.com"; a "/.default" behind it is taken off

	// At most one, for a user-assigned identity; of several the first here counts.
	// Without, it is the machine's own (system-assigned).
	ClientID   string
	ObjectID   string
	ResourceID string // /subscriptions/…/userAssignedIdentities/NAME

	// Client sends the requests. Nil means one that asks directly: the platform
	// must not be asked through a proxy. No redirect is followed.
	Client *http.Client
}

// Token asks the platform for a token; see Source for the errors. The library's own
// retries are off: a Refresher paces better, and heeds Retry-After.
func (m *ManagedIdentity) Token(ctx context.Context) (*Token, error) {
	platform, err := m.platform()
	if err != nil {
		return nil, err
	}
	direct := m.Client
	if direct == nil {
		direct = clientVia(nil, nil)
	}
	client, seen := watch(direct, true)
	defer client.CloseIdleConnections() // the next request is most of an hour away
	lib, err := managedidentity.New(m.id(), managedidentity.WithHTTPClient(client), managedidentity.WithRetryPolicyDisabled())
	if err != nil {
		return nil, fmt.Errorf("preparing the managed identity of %q: %w", m.Credential, err)
	}
	a := identityAttempt{m: m, platform: platform, seen: seen, started: time.Now()}
	// With a claims challenge, even an empty one, the library does not look into its cache.
	r, err := lib.AcquireToken(ctx, strings.TrimSuffix(m.Resource, "/.default"), managedidentity.WithClaims("{}"))
	if err != nil {
		return nil, a.explain(err)
	}
	return a.accept(&r)
}

func (m *ManagedIdentity) id() managedidentity.ID {
	switch {
	case m.ClientID != "":
		return managedidentity.UserAssignedClientID(m.ClientID)
	case m.ObjectID != "":
		return managedidentity.UserAssignedObjectID(m.ObjectID)
	case m.ResourceID != "":
		return managedidentity.UserAssignedResourceID(m.ResourceID)
	}
	return managedidentity.SystemAssigned()
}

// platform names who is asked. The library knows three more, on which no Postfix runs.
func (m *ManagedIdentity) platform() (string, error) {
	source, err := managedidentity.GetSource()
	if err != nil {
		return "", fmt.Errorf("looking for the managed identity of %q: %w", m.Credential, err)
	}
	switch source {
	case managedidentity.DefaultToIMDS:
		return PlatformIMDS, nil
	case managedidentity.AzureArc:
		return PlatformArc, nil
	case managedidentity.AppService:
		return PlatformAppService, nil
	}
	return "", &UnreachableError{Credential: m.Credential, Platform: string(source), Host: "the managed identity of " + string(source),
		Problem: "is not supported: IMDS, Azure Arc and App Service are"}
}

// identityAttempt is one call of the library, as far as it takes to understand what
// came of it. The library's error texts repeat whole answers: they are not used.
type identityAttempt struct {
	m        *ManagedIdentity
	platform string
	seen     *witness
	started  time.Time
}

func (a *identityAttempt) accept(r *managedidentity.AuthResult) (*Token, error) {
	q, now := a.request(), time.Now().Round(0)
	expires := r.ExpiresOn.Round(0)
	switch {
	case r.AccessToken == "":
		return nil, q.unusable("an answer without a token")
	case strings.ContainsFunc(r.AccessToken, notInSecret):
		return nil, q.unusable("a token with bytes that no token has")
	case !now.Before(expires):
		// What the platform says is a date, so this may be our clock too.
		return nil, q.unusable("a token that has expired already by this machine's clock")
	}
	if last := now.Add(maxLife); expires.After(last) {
		expires = last
	}
	t := &Token{Access: Secret(r.AccessToken), Expires: expires, Skew: q.skew}
	// Where the platform does not say, the library takes half of a long life.
	if at := r.Metadata.RefreshOn.Round(0); at.After(now) && at.Before(expires) {
		t.RefreshAt = at
	}
	return t, nil
}

// request describes the last request, in the words that the other flows use.
func (a *identityAttempt) request() *tokenRequest {
	q := &tokenRequest{
		credential: a.m.Credential, what: "managed identity", clientID: a.m.ClientID, platform: a.platform,
		now: a.started, skew: a.seen.skew(a.started, time.Now()),
	}
	if r := a.seen.asked; r != nil {
		q.tokenURL = (&url.URL{Scheme: r.URL.Scheme, Host: r.URL.Host, Path: r.URL.Path}).String()
		// What the machine proves itself with to its own platform is a secret too.
		key := strings.TrimPrefix(r.Header.Get("Authorization"), "Basic ")
		q.proof = appProof{secret: Secret(key), assertion: Secret(r.Header.Get("X-Identity-Header"))}
	}
	return q
}

// explain turns a failure into an error of ours, by what was seen on the wire.
func (a *identityAttempt) explain(err error) error {
	q, answer := a.request(), a.seen.answer
	ue, isNetwork := errors.AsType[*url.Error](err)
	switch {
	case a.seen.requests == 0:
		return &UnreachableError{Credential: q.credential, Platform: a.platform, Host: "the managed identity of " + a.platform,
			Problem: "cannot be asked: IDENTITY_ENDPOINT of the service's environment is not a URL"}
	case answer == nil && isNetwork:
		return q.noAnswer(ue)
	case answer == nil:
		return &UnreachableError{Credential: q.credential, Platform: a.platform, Host: q.host(), Err: context.Cause(a.seen.asked.Context()), Problem: "gave no answer"}
	case a.platform == PlatformArc && a.seen.requests == 1 && answer.StatusCode == http.StatusUnauthorized:
		return a.challengeError(q, answer.Header.Get("WWW-Authenticate"))
	case a.seen.bodyErr != nil:
		return q.unusable("an answer that broke off: " + q.clean(a.seen.bodyErr.Error()))
	}
	re := &oauth2.RetrieveError{Response: answer, Body: a.seen.body}
	if refused := q.refused(re); refused != nil {
		return refused
	}
	if answer.StatusCode == http.StatusOK || answer.StatusCode == http.StatusAccepted {
		return a.whyUnusable(q)
	}
	if refused := q.refusedPlainly(re); refused != nil {
		return refused
	}
	return q.notMicrosoft(re)
}

// whyUnusable says why an answer with status 200 did not serve.
func (a *identityAttempt) whyUnusable(q *tokenRequest) error {
	var m map[string]any
	if json.Unmarshal(a.seen.body, &m) != nil {
		return q.unusable("something that is not the JSON of a token")
	}
	if token, _ := m["access_token"].(string); token == "" {
		return q.unusable("an answer without a token")
	}
	if a.platform == PlatformArc && a.m.id() != managedidentity.SystemAssigned() {
		// Older agents ignore which identity is asked for and return the machine's.
		return &RefusedError{Credential: q.credential, What: q.what, ClientID: q.clientID, Platform: a.platform, Status: http.StatusOK, OAuth: notConfirmed}
	}
	return q.unusable("a token without its life (expires_on or expires_in)")
}

// notConfirmed is our own word, in the place of an OAuth error.
const notConfirmed = "identity_not_confirmed"

// refusedPlainly reads an error of App Service, which is not OAuth's:
// {"statusCode":400,"message":"…","correlationId":"…"}, and older in capitals. Nil
// means that it is none.
func (q *tokenRequest) refusedPlainly(re *oauth2.RetrieveError) error {
	var m struct{ Message, CorrelationID string } // in whatever case
	if json.Unmarshal(re.Body, &m) != nil || m.Message == "" {
		return nil
	}
	return &RefusedError{
		Credential:    q.credential,
		What:          q.what,
		ClientID:      q.clientID,
		Platform:      q.platform,
		Status:        re.Response.StatusCode,
		OAuth:         fmt.Sprintf("HTTP %d", re.Response.StatusCode),
		Codes:         aadstsCodes(nil, m.Message),
		Description:   q.clean(essence(m.Message)),
		CorrelationID: guid(q.word(m.CorrelationID)),
		RetryAfter:    retryAfter(re.Response.Header.Get("Retry-After"), q.now),
		Skew:          q.skew,
	}
}

const (
	// arcTokens is where the Azure Arc agent puts the keys by which it recognises who
	// may read them; the library takes them from nowhere else.
	arcTokens = "/var/opt/azcmagent/tokens"
	arcMaxKey = 4096 // bytes; likewise
)

// challengeError explains why the agent's challenge was not taken up: it names a file
// that only root and the group himds can read.
// https://learn.microsoft.com/azure/azure-arc/servers/managed-identity-authentication
func (a *identityAttempt) challengeError(q *tokenRequest, header string) error {
	_, path, _ := strings.Cut(header, "Basic realm=")
	if filepath.Dir(path) != arcTokens || filepath.Ext(path) != ".key" {
		return &UnreachableError{Credential: q.credential, Platform: a.platform, Host: q.host(), Status: http.StatusUnauthorized,
			Problem: fmt.Sprintf("answered with a challenge that names no key in %s: that is not the Azure Arc agent", arcTokens)}
	}
	if err := checkArcKey(path); err != nil {
		return err
	}
	return q.unusable("a challenge whose key could not be read just then")
}

// checkArcKey returns what is wrong with a key file of the agent, or nil.
func checkArcKey(path string) error {
	info, err := os.Stat(path)
	if err == nil && info.Size() > arcMaxKey {
		return &FileError{Path: path, Problem: "is too large for a key of the Azure Arc agent"}
	}
	var f *os.File
	if err == nil {
		f, err = os.Open(path)
	}
	if err != nil {
		return arcKeyError(OneLine(path, MaxText), err)
	}
	f.Close()
	return nil
}

func arcKeyError(path string, err error) *FileError {
	e := &FileError{Path: path, Err: err}
	switch {
	case errors.Is(err, fs.ErrPermission):
		e.Problem = "may not be read by this service"
		e.Act = "put its user into the group of the Azure Arc agent " +
			`with "usermod -aG himds sendas-token" and restart the service`
	case errors.Is(err, fs.ErrNotExist):
		e.Problem = "does not exist, though the Azure Arc agent has just named it"
		e.Act = "see that the unit does not hide /var/opt (ProtectSystem= does not, InaccessiblePaths= would)"
	default:
		e.Problem, e.Cause = "cannot be read", causeOf(err).Error()
	}
	return e
}
