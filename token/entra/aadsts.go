package entra

import (
	"net/http"
	"slices"
	"strings"
)

// explanation says what a refusal means and what to do, both in lower case and
// without a full stop. {credential}, {client_id} and {file} stand for the
// credential's name, the app's id and the secret or certificate file.
type explanation struct {
	meaning   string
	act       string
	temporary bool // passes by itself
	clock     bool // a wrong clock is among the causes
}

const (
	signIn        = `sign in again with "sendas login {credential}"`
	thenCheck     = `then run "systemctl reload sendas-token"`
	mendYAML      = `correct it in sendas.yaml and run "sendas check"`
	thenCheckYAML = `then run "sendas check"`
	itWaits       = `nothing to do: sendas waits and tries again by itself`
	pickedUp      = `sendas takes it within 5 minutes, or at once on reload`
	itsLogs       = `its reason stands in the Entra admin centre under Monitoring > Sign-in logs`
)

// Rows that several codes share.
var (
	appDisabled    = explanation{meaning: "the app {client_id} is disabled in the tenant", act: `in the Entra admin centre open Enterprise applications > the app > Properties and set "Enabled for users to sign-in" to Yes, ` + thenCheck}
	noFederation   = explanation{meaning: "the app trusts no token with the issuer and subject of the one in {file}", act: "compare both, upper and lower case too, with the app registration (Certificates & secrets > Federated credentials); " + pickedUp}
	wrongCloud     = explanation{meaning: "the tenant is in another national cloud than the one that was asked", act: "tenant.cloud is one of global, gcc-high, dod, china: " + mendYAML}
	wantsMFA       = explanation{meaning: "the account must sign in with a second factor", act: signIn + ", or exempt the account from the policy"}
	idleToken      = explanation{meaning: "the refresh token lay unused too long", act: signIn}
	idleOrRevoked  = explanation{meaning: "the sign-in lay unused too long, or was revoked: a new password, or sessions ended by an administrator", act: signIn}
	badAssertion   = explanation{meaning: "the signed proof of the app (client assertion) is not valid", act: `compare this machine's clock with "timedatectl" and {file} with the certificate uploaded to the app registration, ` + thenCheck, clock: true}
	wrongScope     = explanation{meaning: "the scope is wrong or names several resources", act: "tenant.endpoints.scope is https://outlook.office365.com/.default in the global cloud: " + mendYAML}
	noResource     = explanation{meaning: "the tenant does not know the resource of the scope, or the app does not list it", act: "check tenant.cloud and tenant.endpoints.scope with \"sendas check\"; without App RBAC the app registration also needs Office 365 Exchange Online under API permissions"}
	policyBlocks   = explanation{meaning: "a Conditional Access or security policy of the tenant blocks the sign-in", act: "let the tenant's administrator exempt this app or account, or name this host's public address as a trusted location; " + itsLogs}
	deviceExpired  = explanation{meaning: "the code was not entered in time (15 minutes)", act: `start again with "sendas login {credential}"`}
	unknownDevice  = explanation{meaning: "Microsoft does not know the device code", act: `start again with "sendas login {credential}"`}
	signInDeclined = explanation{meaning: "somebody declined the sign-in in the browser", act: `start again with "sendas login {credential}" and accept`}
	signInPending  = explanation{meaning: "the sign-in in the browser is not finished", act: "enter the code there; sendas keeps asking", temporary: true}
	serviceBusy    = explanation{meaning: "Microsoft's sign-in service is busy or has a fault", act: itWaits, temporary: true}
	needsConsent   = explanation{meaning: "nobody has consented to what the app asks for", act: `let an administrator press "Grant admin consent" under API permissions of the app registration, ` + thenCheck + `; for a signed-in user, ` + signIn}
	tenantURL      = explanation{meaning: "the request went to an endpoint for all tenants instead of your own", act: "tenant.id must be the tenant's GUID or one of its domains, not common, organizations or consumers: " + mendYAML}
)

// byCode explains Entra's codes: 7000215 for AADSTS7000215.
// https://learn.microsoft.com/entra/identity-platform/reference-error-codes
var byCode = map[int]explanation{
	// The app and its proof.
	7000215: {meaning: "the client secret is wrong; often its ID was copied instead of its Value", act: "make a new secret in the app registration (Certificates & secrets) and write its Value into {file}; " + pickedUp},
	7000222: {meaning: "the client secret has expired", act: "make a new one in the app registration (Certificates & secrets) and write its Value into {file}; " + pickedUp},
	700016:  {meaning: "the tenant has no app with the id {client_id}", act: "compare client_id of credential {credential} and tenant.id with the app registration (Overview): " + mendYAML},
	7000218: {meaning: "the app may not sign in without a secret or certificate", act: `in the app registration under Authentication set "Allow public client flows" to Yes, or give credential {credential} a client_secret_file, then run "sendas check"`},
	700025:  {meaning: "the app is a public client, and such a client must send no secret", act: "remove client_secret_file or certificate_file from credential {credential}, or register the app as a web app: " + mendYAML},
	700027:  {meaning: "the certificate is not registered for the app, or the key is another one's", act: "upload the certificate of {file} (never its key) to the app registration (Certificates & secrets), " + thenCheck},
	700024:  {meaning: "the signed proof of the app is outside its valid time", act: `set this machine's clock ("timedatectl" shows it)`, clock: true},
	700030:  {meaning: "the certificate's subject is not authorised for the app", act: "upload the certificate of {file} to the app registration (Certificates & secrets), " + thenCheck},
	50012:   badAssertion,
	50013:   badAssertion,
	7000112: appDisabled,
	70001:   appDisabled,

	// Another issuer's token.
	70021:   noFederation,
	700211:  noFederation,
	700212:  {meaning: "the token in {file} is meant for somebody else", act: "let its issuer write it for api://AzureADTokenExchange (global cloud), or enter its audience at the app registration (Certificates & secrets > Federated credentials)"},
	700213:  noFederation,
	7002137: noFederation,
	7002138: noFederation,

	// Tenant and cloud.
	90002:   {meaning: "Microsoft knows no such tenant in this cloud", act: "tenant.id or tenant.cloud is wrong: " + mendYAML},
	900382:  wrongCloud,
	90038:   wrongCloud,
	50194:   tenantURL,
	50059:   tenantURL,
	9001023: tenantURL,

	// The account.
	50126: {meaning: "user name or password is wrong", act: signIn},
	50034: {meaning: "the tenant has no such user", act: "check the address for typing errors and tenant.id, then " + signIn},
	50053: {meaning: "the account is locked after too many wrong passwords, or its address is blocked", act: "wait, or let an administrator unlock it; then " + signIn},
	50055: {meaning: "the account's password has expired", act: "let its user set a new one, then " + signIn},
	50057: {meaning: "the account is disabled", act: "enable it in the Microsoft 365 admin centre, then " + signIn},
	50076: wantsMFA,
	50079: {meaning: "the account must enrol a second factor first", act: "enrol at https://aka.ms/mfasetup as that account, then " + signIn},
	50074: wantsMFA,

	// The grant.
	50173:  {meaning: "the grant was revoked: a new password, or sessions ended by an administrator", act: signIn},
	700082: idleToken,
	70008:  idleOrRevoked,
	70043:  {meaning: "a sign-in frequency policy ended the session", act: signIn + "; exempt the account from the policy, else it happens again"},
	70000:  {meaning: "the refresh token is not valid for this app", act: signIn},
	54005:  {meaning: "the code was used already", act: signIn},
	501481: {meaning: "the code does not belong to this sign-in", act: signIn},
	65001:  needsConsent,
	65004:  signInDeclined,
	90094:  {meaning: "only an administrator may consent to what the app asks for", act: `let one press "Grant admin consent" under API permissions of the app registration, then ` + signIn},
	53003:  policyBlocks,
	530032: policyBlocks,
	530035: {meaning: "the tenant's security defaults block the sign-in", act: "use an app-only credential (flow: client_credentials), or let an administrator replace security defaults by Conditional Access; " + itsLogs},

	// Resource and scope.
	500011: noResource,
	650057: noResource,
	50001:  noResource,
	70011:  wrongScope,
	28002:  wrongScope,
	700022: wrongScope,

	// What passes.
	50196: {meaning: "Microsoft saw the same request too often and took it for a loop", act: `sendas waits by itself; look for another program that uses the app {client_id} in the Entra sign-in logs`, temporary: true},
	90055: serviceBusy,
	90024: serviceBusy,
	90033: serviceBusy,
	50033: serviceBusy,
	90006: serviceBusy,
}

// byDeviceError explains how a sign-in by code stands (RFC 8628 section 3.5, with a name of Entra's
// own beside access_denied, which at Entra is a policy's too).
var byDeviceError = map[string]explanation{
	"access_denied":          {meaning: "somebody declined the sign-in, or a Conditional Access or security policy of the tenant blocks it", act: policyBlocks.act},
	"authorization_pending":  signInPending,
	"slow_down":              {meaning: "Microsoft asks for fewer requests", act: itWaits, temporary: true},
	"authorization_declined": signInDeclined,
	"expired_token":          deviceExpired,
	"bad_verification_code":  unknownDevice,
}

// byDeviceCode explains the codes of that flow for whoever looks one up. The error beside them
// counts: AADSTS70018 stands with a sign-in that was declined, and with a code that is not known.
var byDeviceCode = map[int]explanation{
	70016: signInPending,
	70018: unknownDevice,
	70019: deviceExpired,
	70020: deviceExpired,
}

// byDelegatedCode explains codes that mean something else where a user has signed in or does.
var byDelegatedCode = map[int]explanation{
	500011: noUserResource,
	650057: noUserResource,
	50001:  noUserResource,
	70011:  wrongUserScope,
	28002:  wrongUserScope,
	700022: wrongUserScope,
}

// byDelegatedError does the same for errors without a code that is known.
var byDelegatedError = map[string]explanation{
	"invalid_scope":    wrongUserScope,
	"invalid_resource": noUserResource,
}

var (
	wrongUserScope = explanation{meaning: "the scope is wrong or names several resources", act: "tenant.endpoints.delegated_scope is https://outlook.office.com/SMTP.Send in the global cloud: " + mendYAML}
	noUserResource = explanation{meaning: "the tenant does not know the resource of the scope, or the app does not list it", act: "check tenant.cloud and tenant.endpoints.delegated_scope with \"sendas check\"; " +
		"the app registration needs the delegated permission SMTP.Send of Office 365 Exchange Online under API permissions"}
)

// byFederatedCode explains codes that mean something else when the proof was another
// issuer's token.
var byFederatedCode = map[int]explanation{
	700024: {meaning: "the token in {file} is outside its valid time", act: `see that whoever writes the file renews it, and compare this machine's clock with "timedatectl"`, clock: true},
	700027: badFederated,
	50012:  badFederated,
	50013:  badFederated,
}

var badFederated = explanation{meaning: "Microsoft cannot verify the token in {file}", act: "its issuer must be reachable from the internet and publish its keys (issuer/.well-known/openid-configuration); compare it with the app registration (Certificates & secrets > Federated credentials)"}

// byPlatform explains refusals of a managed identity's platform, before the codes: the
// first row that holds counts.
// https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token
var byPlatform = []struct {
	is func(*RefusedError) bool
	explanation
}{
	{func(e *RefusedError) bool { return isBusy(e.Status) }, explanation{meaning: "the platform that keeps the managed identity is busy or is being updated", act: itWaits, temporary: true}},
	{says("multiple user assigned identities"), explanation{meaning: "the machine has several user-assigned identities and none of its own", act: "write client_id of the one that shall send to credential {credential}, " + thenCheckYAML}},
	{says("identity not found", "managed identity found", "no msi found"), explanation{meaning: "the machine has no such managed identity", act: "in the Azure portal, under Identity of the machine or app, switch System assigned on or add the user-assigned one, and compare client_id, object_id and resource_id of credential {credential}; " + pickedUp}},
	{refusedAs("invalid_resource"), explanation{meaning: "Microsoft knows no resource of that name", act: "tenant.endpoints.scope is https://outlook.office365.com/.default in the global cloud: " + mendYAML}},
	{refusedAs("bad_request_102"), explanation{meaning: "the header Metadata did not arrive, which a proxy takes away", act: "see that nothing stands between the service and its platform"}},
	{refusedAs("unknown_source"), explanation{meaning: "the platform does not answer to where the request came from", act: "see that the service runs on the machine itself, in no container network of its own"}},
	{refusedAs(notConfirmed), explanation{meaning: "the Azure Arc agent did not say that the token is of the identity that was asked for; older ones know only the machine's own", act: "update the agent, or remove client_id, object_id and resource_id from credential {credential}, " + thenCheckYAML}},
	{func(e *RefusedError) bool { return e.Platform == PlatformArc && isDenied(e.Status) }, explanation{meaning: "the Azure Arc agent did not take its own key", act: `type "azcmagent show"; "systemctl restart himdsd" mends it mostly`}},
	{func(e *RefusedError) bool { return e.Platform == PlatformAppService && isDenied(e.Status) }, explanation{meaning: "the platform did not take IDENTITY_HEADER of the service's environment", act: "restart the app: the value changes when its host does"}},
	{func(e *RefusedError) bool { return len(e.Codes) == 0 }, explanation{meaning: "the platform does not give this machine a token", act: "see Identity of the machine or app in the Azure portal, and run \"sendas doctor\""}},
}

// says looks in the description: where there is no code, there is nothing else.
func says(texts ...string) func(*RefusedError) bool {
	return func(e *RefusedError) bool {
		return slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(strings.ToLower(e.Description), s) })
	}
}

func refusedAs(oauth string) func(*RefusedError) bool {
	return func(e *RefusedError) bool { return e.OAuth == oauth }
}

func isDenied(status int) bool {
	return status == http.StatusUnauthorized || status == http.StatusForbidden
}

// byError explains OAuth errors for codes that are not in byCode (RFC 6749
// section 5.2, and Entra's own).
var byError = map[string]explanation{
	"invalid_client":          {meaning: "the app could not prove its identity", act: "compare client_id of credential {credential} and {file} with the app registration, " + thenCheck},
	"unauthorized_client":     {meaning: "the app may not sign in this way in this tenant", act: "compare client_id of credential {credential} and tenant.id with the app registration: " + mendYAML},
	"invalid_request":         {meaning: "Microsoft finds the request wrong", act: "tenant.id, client_id or an endpoint is wrong: " + mendYAML},
	"invalid_grant":           {meaning: "the sign-in is no longer valid", act: signIn},
	"invalid_scope":           wrongScope,
	"invalid_resource":        noResource,
	"unsupported_grant_type":  {meaning: "the endpoint does not know this way to sign in", act: "tenant.endpoints.authority must be Microsoft's: " + mendYAML},
	"interaction_required":    {meaning: "Microsoft wants to ask the user something", act: signIn},
	"login_required":          {meaning: "Microsoft wants to ask the user something", act: signIn},
	"consent_required":        needsConsent,
	"temporarily_unavailable": serviceBusy,
	"server_error":            serviceBusy,
}

// unexplained stands for what no table has.
var unexplained = explanation{
	meaning: "this refusal has no explanation here",
	act:     `search for its code at https://login.microsoftonline.com/error`,
}
