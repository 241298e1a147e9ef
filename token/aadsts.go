package token

// explanation says what a refusal means and what to do, both in lower case and
// without a full stop. {credential}, {client_id} and {file} stand for the
// credential's name, the app's id and the secret or certificate file.
type explanation struct {
	meaning   string
	act       string
	temporary bool // passes by itself
}

const (
	signIn    = `sign in again with "sendas login {credential}"`
	thenCheck = `then run "systemctl reload sendas-token"`
	mendYAML  = `correct it in sendas.yaml and run "sendas check"`
	itWaits   = `nothing to do: sendas waits and tries again by itself`
	pickedUp  = `sendas takes it within 5 minutes, or at once on reload`
	itsLogs   = `its reason stands in the Entra admin centre under Monitoring > Sign-in logs`
)

// Rows that several codes share.
var (
	appDisabled    = explanation{meaning: "the app {client_id} is disabled in the tenant", act: `in the Entra admin centre open Enterprise applications > the app > Properties and set "Enabled for users to sign-in" to Yes, ` + thenCheck}
	wrongCloud     = explanation{meaning: "the tenant is in another national cloud than the one that was asked", act: "tenant.cloud is one of global, gcc-high, dod, china: " + mendYAML}
	wantsMFA       = explanation{meaning: "the account must sign in with a second factor", act: signIn + ", or exempt the account from the policy"}
	idleToken      = explanation{meaning: "the refresh token lay unused too long", act: signIn}
	badAssertion   = explanation{meaning: "the signed proof of the app (client assertion) is not valid", act: `compare this machine's clock with "timedatectl" and {file} with the certificate uploaded to the app registration, ` + thenCheck}
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
	700024:  {meaning: "the signed proof of the app is outside its valid time", act: `set this machine's clock ("timedatectl" shows it); with a federated credential, see that its token file is renewed`},
	700030:  {meaning: "the certificate's subject is not authorised for the app", act: "upload the certificate of {file} to the app registration (Certificates & secrets), " + thenCheck},
	50012:   badAssertion,
	50013:   badAssertion,
	7000112: appDisabled,
	70001:   appDisabled,

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
	50053: {meaning: "the account is locked after too many wrong passwords, or this address is policyBlocks", act: "wait, or let an administrator unlock it; then " + signIn},
	50055: {meaning: "the account's password has expired", act: "let its user set a new one, then " + signIn},
	50057: {meaning: "the account is disabled", act: "enable it in the Microsoft 365 admin centre, then " + signIn},
	50076: wantsMFA,
	50079: {meaning: "the account must enrol a second factor first", act: "enrol at https://aka.ms/mfasetup as that account, then " + signIn},
	50074: wantsMFA,

	// The grant.
	50173:  {meaning: "the grant was revoked: a new password, or sessions ended by an administrator", act: signIn},
	700082: idleToken,
	70008:  idleToken,
	70043:  {meaning: "a sign-in frequency policy ended the session", act: signIn + "; exempt the account from the policy, else it happens again"},
	70000:  {meaning: "the refresh token is not valid for this app", act: signIn},
	54005:  {meaning: "the code was used already", act: signIn},
	501481: {meaning: "the code does not belong to this sign-in", act: signIn},
	65001:  needsConsent,
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

	// Device code.
	70016: signInPending,
	70018: unknownDevice,
	70019: deviceExpired,
	70020: deviceExpired,

	// What passes.
	50196: {meaning: "Microsoft saw the same request too often and took it for a loop", act: `sendas waits by itself; look for another program that uses the app {client_id} in the Entra sign-in logs`, temporary: true},
	90055: serviceBusy,
	90024: serviceBusy,
	90033: serviceBusy,
	50033: serviceBusy,
	90006: serviceBusy,
}

// byError explains OAuth errors for codes that are not in byCode (RFC 6749
// section 5.2, RFC 8628 section 3.5, and Entra's own).
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
	"access_denied":           policyBlocks,
	"authorization_pending":   signInPending,
	"slow_down":               {meaning: "Microsoft asks for fewer requests", act: itWaits, temporary: true},
	"authorization_declined":  signInDeclined,
	"expired_token":           deviceExpired,
	"bad_verification_code":   unknownDevice,
	"temporarily_unavailable": serviceBusy,
	"server_error":            serviceBusy,
}

// unexplained stands for what no table has.
var unexplained = explanation{
	meaning: "this refusal has no explanation here",
	act:     `search for its code at https://login.microsoftonline.com/error`,
}
