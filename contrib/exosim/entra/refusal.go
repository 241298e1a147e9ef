package entra

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
)

// refusal is an error answer of Entra.
type refusal struct {
	status   int
	oauth    string // "invalid_client"
	suberror string // "consent_required", mostly ""
	page     string // what /authorize says instead of oauth, "" for the same
	code     int    // AADSTS; 0 for the few errors that have none
	text     string
}

func refuse(oauth string, code int, format string, args ...any) *refusal {
	r := &refusal{status: http.StatusBadRequest, oauth: oauth, code: code, text: fmt.Sprintf(format, args...)}
	if oauth == "invalid_client" {
		r.status = http.StatusUnauthorized
	}
	return r
}

// name is what the refusal is counted by: "AADSTS50173", or "slow_down" where
// there is no code.
func (r *refusal) name() string {
	if r.code == 0 {
		return r.oauth
	}
	return fmt.Sprintf("AADSTS%d", r.code)
}

// errorBody is the JSON of a refusal, as Entra writes it.
type errorBody struct {
	Error         string `json:"error"`
	Description   string `json:"error_description"`
	Codes         []int  `json:"error_codes,omitempty"`
	Timestamp     string `json:"timestamp"`
	TraceID       string `json:"trace_id"`
	CorrelationID string `json:"correlation_id"`
	URI           string `json:"error_uri,omitempty"`
	Suberror      string `json:"suberror,omitempty"`
}

func (r *refusal) body(now time.Time) errorBody {
	b := errorBody{
		Error: r.oauth, Timestamp: now.UTC().Format("2006-01-02 15:04:05Z"), TraceID: directory.NewGUID(), CorrelationID: directory.NewGUID(), Suberror: r.suberror,
	}
	code := ""
	if r.code != 0 {
		code, b.Codes = fmt.Sprintf("AADSTS%d: ", r.code), []int{r.code}
		b.URI = fmt.Sprintf("https://login.microsoftonline.com/error?code=%d", r.code)
	}
	b.Description = fmt.Sprintf("%s%s\r\nTrace ID: %s\r\nCorrelation ID: %s\r\nTimestamp: %s", code, r.text, b.TraceID, b.CorrelationID, b.Timestamp)
	return b
}

// reason is a row of Entra's error table.
// https://learn.microsoft.com/entra/identity-platform/reference-error-codes
type reason struct {
	oauth    string
	text     string // {app}, {tenant}, {user}, {scope}, {resource}, {issued}, {now} stand for those
	suberror string
	page     string // error in a redirect of /authorize, "" for oauth
}

// The parts of several texts.
const (
	notInstalled = "This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. "
	noMatch      = "No matching federated identity record found for presented assertion %s '{%s}'. Check your federated identity credential Subject, Audience and Issuer " +
		"against the presented assertion. https://learn.microsoft.com/entra/workload-id/workload-identity-federation"
	transient = "A transient error has occurred. Please try again."
)

// reasons are the refusals that have a code. Most texts are those of the real
// service as its clients report them; for codes that are seldom seen it is what
// Microsoft's table says.
var reasons = map[int]reason{
	// The app and its proof.
	7000215: {oauth: "invalid_client", text: "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app '{app}'."},
	7000222: {oauth: "invalid_client", text: "The provided client secret keys for app '{app}' are expired. Visit the Azure portal to create new keys for your app: https://aka.ms/NewClientSecret, " +
		"or consider using certificate credentials for added security: https://aka.ms/certCreds."},
	700016:  {oauth: "unauthorized_client", text: "Application with identifier '{app}' was not found in the directory '{tenant}'. " + notInstalled + "You may have sent your authentication request to the wrong tenant."},
	7000218: {oauth: "invalid_client", text: "The request body must contain the following parameter: 'client_assertion' or 'client_secret'."},
	700025:  {oauth: "invalid_client", text: "Client is public so neither 'client_assertion' nor 'client_secret' should be presented."},
	700027: {oauth: "invalid_client", text: "The certificate with identifier used to sign the client assertion is not registered on application. [Reason - The key was not found.], " +
		"Please visit the Azure Portal and check the keys of app '{app}'."},
	700024:  {oauth: "invalid_client", text: "Client assertion is not within its valid time range. Current time: {now}, assertion valid from {from}, expiry time of assertion {until}."},
	700211:  {oauth: "invalid_client", text: fmt.Sprintf(noMatch, "issuer", "issuer")},
	700212:  {oauth: "invalid_client", text: fmt.Sprintf(noMatch, "audience", "audience")},
	700213:  {oauth: "invalid_client", text: fmt.Sprintf(noMatch, "subject", "subject")},
	700030:  {oauth: "invalid_client", text: "Invalid certificate - subject name in certificate is not authorized."},
	7000112: {oauth: "unauthorized_client", text: "Application '{app}' is disabled."},
	70001:   {oauth: "unauthorized_client", text: "Application with identifier '{app}' is disabled."},

	// Tenant and cloud.
	90002: {oauth: "invalid_request", text: "Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud. " +
		"Check with your subscription administrator, this may happen if there are no active subscriptions for the tenant."},
	900382: {oauth: "invalid_request", text: "Confidential Client is not supported in Cross Cloud request."},
	90038:  {oauth: "invalid_request", text: "Tenant '{tenant}' request is being redirected to the National Cloud."},
	50194: {oauth: "invalid_request", text: "Application '{app}' is not configured as a multi-tenant application. Usage of the /common endpoint is not supported for such apps created after '10/15/2018'. " +
		"Use a tenant-specific endpoint or configure the application to be multi-tenant."},

	// The user.
	50126: {oauth: "invalid_grant", text: "Error validating credentials due to invalid username or password."},
	50034: {oauth: "invalid_grant", text: "The user account {user} does not exist in the {tenant} directory. To sign into this application, the account must be added to the directory."},
	50053: {oauth: "invalid_grant", text: "The account is locked, you've tried to sign in too many times with an incorrect user ID or password."},
	50055: {oauth: "invalid_grant", text: "The password is expired."},
	50057: {oauth: "invalid_grant", text: "The user account is disabled."},
	50074: {oauth: "interaction_required", suberror: "basic_action", text: "Strong Authentication is required."},
	50076: {oauth: "interaction_required", suberror: "basic_action", text: "Due to a configuration change made by your administrator, or because you moved to a new location, " +
		"you must use multi-factor authentication to access '{resource}'."},
	50079: {oauth: "interaction_required", suberror: "basic_action", text: "Due to a configuration change made by your administrator, or because you moved to a new location, " +
		"you must enroll in multi-factor authentication to access '{resource}'."},
	53003:  {oauth: "invalid_grant", suberror: "message_only", page: "access_denied", text: "Access has been blocked by Conditional Access policies. The access policy does not allow token issuance."},
	530032: {oauth: "invalid_grant", suberror: "message_only", page: "access_denied", text: "Access has been blocked by security policy."},
	530035: {oauth: "invalid_grant", suberror: "message_only", page: "access_denied", text: "Access has been blocked by security defaults."},
	65001: {oauth: "invalid_grant", suberror: "consent_required", page: "consent_required", text: "The user or administrator has not consented to use the application with ID '{app}' named 'relay'. " +
		"Send an interactive authorization request for this user and resource."},
	65004: {oauth: "access_denied", text: "User declined to consent to access the app."},
	90094: {oauth: "invalid_grant", suberror: "consent_required", page: "access_denied", text: "An administrator of {tenant} has set a policy that prevents you from granting relay the permissions it is requesting. " +
		"Contact an administrator of {tenant} who can grant permissions to this application on your behalf."},
	50058: {oauth: "login_required", text: "A silent sign-in request was sent but no user is signed in."},

	// The grant.
	50173: {oauth: "invalid_grant", text: "The provided grant has expired due to it being revoked, a fresh auth token is needed. The user might have changed or reset their password. " +
		"The grant was issued on '{issued}' and the TokensValidFrom date (before which tokens are not valid) for this user is '{from}'."},
	700082: {oauth: "invalid_grant", text: "The refresh token has expired due to inactivity. The token was issued on {issued} and was inactive for {idle}."},
	70008:  {oauth: "invalid_grant", text: "The provided authorization code or refresh token has expired due to inactivity. Send a new interactive authorization request for this user and resource."},
	70043: {oauth: "invalid_grant", suberror: "token_expired", text: "The refresh token has expired or is invalid due to sign-in frequency checks by conditional access. " +
		"The token was issued on {issued} and the maximum allowed lifetime for this request is {age}."},
	70000:  {oauth: "invalid_grant", text: "Provided grant is invalid or malformed."},
	54005:  {oauth: "invalid_grant", text: "OAuth2 Authorization code was already redeemed, please retry with a new valid code or use an existing refresh token."},
	501481: {oauth: "invalid_grant", text: "The Code_Verifier does not match the code_challenge supplied in the authorization request."},
	500112: {oauth: "invalid_client", text: "The reply address '{redirect}' does not match the reply address '{registered}' provided when requesting Authorization code."},

	// The request.
	900144:  {oauth: "invalid_request", text: "The request body must contain the following parameter: '{parameter}'."},
	500011:  {oauth: "invalid_resource", text: "The resource principal named {resource} was not found in the tenant named {tenant}. " + notInstalled + "You might have sent your authentication request to the wrong tenant."},
	650057:  {oauth: "invalid_resource", text: "Invalid resource. The client has requested access to a resource which is not listed in the requested permissions in the client's application registration. Client app ID: {app}."},
	50001:   {oauth: "invalid_resource", text: "The application named {resource} was not found in the tenant named {tenant}. " + notInstalled + "You might have sent your authentication request to the wrong tenant."},
	70011:   {oauth: "invalid_scope", text: "The provided request must include a 'scope' input parameter. The provided value for the input parameter 'scope' is not valid. The scope {scope} is not valid."},
	28002:   {oauth: "invalid_scope", text: "Provided value for the input parameter scope '{scope}' is not valid when requesting an access token. Please specify a valid scope."},
	50011:   {oauth: "invalid_request", text: "The redirect URI '{redirect}' specified in the request does not match the redirect URIs configured for the application '{app}'."},
	501491:  {oauth: "invalid_request", text: "Invalid size of Code_Challenge parameter."},
	50149:   {oauth: "invalid_request", text: "Invalid Code_Challenge_method parameter."},
	9002325: {oauth: "invalid_request", text: "Proof Key for Code Exchange is required for cross-origin authorization code redemption."},

	// The device code (RFC 8628, section 3.5, in Entra's words).
	70016: {oauth: "authorization_pending", text: "OAuth 2.0 device flow error. Authorization is pending. Continue polling."},
	70018: {oauth: "bad_verification_code", text: "Invalid verification code due to User typing in wrong user code for device code flow. Authorization is not approved."},
	70019: {oauth: "expired_token", text: "Verification code expired. Have the user retry the sign-in."},
	70020: {oauth: "expired_token", text: "The provided value for the input parameter 'device_code' is not valid. This device code has expired."},

	// What passes.
	50196: {oauth: "invalid_grant", text: "The server terminated an operation because it encountered a client request loop. Please contact your app vendor."},
	50033: {oauth: "temporarily_unavailable", text: transient},
	90006: {oauth: "temporarily_unavailable", text: transient},
	90024: {oauth: "temporarily_unavailable", text: transient},
	90033: {oauth: "temporarily_unavailable", text: transient},
	90055: {oauth: "temporarily_unavailable", text: "The server is terminating the request because too many requests were sent."},
}

// uncoded are the refusals without a code; see Login.RefuseGrant.
var uncoded = map[string]reason{
	"slow_down":              {oauth: "slow_down", text: "The request was sent too soon after the one before. Increase the interval between polls."},
	"authorization_declined": {oauth: "authorization_declined", text: "The end user denied the authorization request."},
}

// refuseFor makes the refusal with a code of the table. pairs are placeholders
// and what to put there, more exact than what the request says.
func (l *Login) refuseFor(q *tokenQuery, code int, pairs ...string) *refusal {
	r, known := reasons[code]
	if !known {
		panic(fmt.Sprintf("exosim: no reason %d", code)) // a mistake in this package
	}
	return l.fill(q, r, code, pairs)
}

func (l *Login) refuseUncoded(q *tokenQuery, name string) *refusal {
	return l.fill(q, uncoded[name], 0, nil)
}

func (l *Login) fill(q *tokenQuery, r reason, code int, pairs []string) *refusal {
	now := l.dir.Now()
	at := loginTime(now)
	// The first of two pairs for the same placeholder counts.
	pairs = append(pairs,
		"{app}", q.clientID, "{tenant}", q.tenant, "{user}", "user", "{scope}", q.form.Get("scope"), "{resource}", exchangeAppID, "{redirect}", q.form.Get("redirect_uri"),
		"{now}", now.UTC().Format(time.RFC3339), "{issued}", at, "{from}", at, "{until}", at, "{idle}", "90.00:00:00", "{age}", "86400",
		"{subject}", "", "{issuer}", "", "{audience}", "", "{parameter}", "scope", "{registered}", "")
	f := refuse(r.oauth, code, "%s", strings.NewReplacer(pairs...).Replace(r.text))
	f.suberror, f.page = r.suberror, r.page
	return f
}

// loginTime is how Entra writes points in time in its descriptions.
func loginTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.0000000Z") }

// exchangeAppID is "Office 365 Exchange Online", by which errors call the
// resource.
const exchangeAppID = "00000002-0000-0ff1-ce00-000000000000"
