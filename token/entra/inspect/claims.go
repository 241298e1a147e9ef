// Package inspect reads what a token says of itself, and says for an access token why Exchange Online
// may refuse it. It verifies nothing: the token is for Exchange Online, which alone can tell whether it
// is good.
package inspect

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sendas/sendas/internal/plaintext"
)

// maxClaims bounds what is looked at, in bytes; Entra's tokens have 2 to 4 kB, with
// many groups in them some more.
const maxClaims = 64 << 10

// maxText is how many characters of a claim are repeated.
const maxText = 300

// minLife is what Exchange Online wants a token to have left (501 5.5.127).
const minLife = 10 * time.Minute

// mendYAML is the end of what is to be done in sendas.yaml.
const mendYAML = `correct it in sendas.yaml and run "sendas check"`

// ErrOpaque tells that a token is not a JWT, so that nothing can be read from it.
// Those of personal accounts ("EwB…") are not, and others need not be.
var ErrOpaque = errors.New("the token is opaque: it is not a JWT that can be read")

// Claims are what an access token says, as far as it helps to find out why Exchange
// Online refuses it. What the token does not say is empty or zero.
type Claims struct {
	Audience  string // aud: whom it is for
	Tenant    string // tid, or the tenant in iss
	AppID     string // appid, or azp in a v2.0 token
	ObjectID  string // oid: the enterprise application's, or the user's
	User      string // upn, unique_name or preferred_username; empty in an app's own token
	Roles     []string
	Scopes    []string // scp; empty in an app's own token
	IssuedAt  time.Time
	NotBefore time.Time
	Expires   time.Time
	AppAuth   string // appidacr, or azpacr: "0" no proof, "1" secret, "2" certificate
	Version   string // "1.0" or "2.0"
}

// Parse reads the claims of an access token for a diagnosis. It does not verify
// the signature, and must not be taken for a check: the token is meant for Exchange
// Online, which alone can tell whether it is good (some of Microsoft's services sign
// in ways that nobody else can verify). It came to us over TLS from whom we asked.
//
// The error is ErrOpaque; it never holds the token.
func Parse(access string) (*Claims, error) {
	m, ok := Payload(strings.TrimSpace(access))
	if !ok {
		return nil, ErrOpaque
	}
	return &Claims{
		Audience:  firstOf(claimWords(m["aud"])),
		Tenant:    cmp.Or(claimText(m["tid"]), tenantOf(claimText(m["iss"]))),
		AppID:     cmp.Or(claimText(m["appid"]), claimText(m["azp"])),
		ObjectID:  claimText(m["oid"]),
		User:      cmp.Or(claimText(m["upn"]), claimText(m["unique_name"]), claimText(m["preferred_username"])),
		Roles:     claimWords(m["roles"]),
		Scopes:    claimWords(m["scp"]),
		IssuedAt:  Time(m["iat"]),
		NotBefore: Time(m["nbf"]),
		Expires:   Time(m["exp"]),
		AppAuth:   cmp.Or(claimText(m["appidacr"]), claimText(m["azpacr"])),
		Version:   claimText(m["ver"]),
	}, nil
}

// Payload returns the claims of a signed JWT in its compact form (RFC 7515 section
// 7.1), unverified; false when it is none.
func Payload(s string) (map[string]any, bool) {
	parts := strings.Split(s, ".")
	if len(s) > maxClaims || len(parts) != 3 {
		return nil, false
	}
	var payload []byte
	for i, part := range parts {
		b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(part, "="))
		if err != nil || len(b) == 0 {
			return nil, false
		}
		if i == 1 {
			payload = b
		}
	}
	var m map[string]any
	d := json.NewDecoder(strings.NewReader(string(payload)))
	d.UseNumber()
	if d.Decode(&m) != nil || m == nil {
		return nil, false
	}
	return m, true
}

// oneLine makes one short line of a foreign text.
func oneLine(s string) string { return plaintext.Style{MaxRunes: maxText, Cut: "…"}.Line(s) }

// claimText returns a claim that is a text, or a number in its place, as one short line.
func claimText(v any) string {
	switch v := v.(type) {
	case string:
		return oneLine(v)
	case json.Number:
		return oneLine(v.String())
	}
	return ""
}

// claimWords returns a claim that is a list, or one text with blanks between its words.
func claimWords(v any) []string {
	list, _ := v.([]any)
	if text, ok := v.(string); ok {
		for _, word := range strings.Fields(text) {
			list = append(list, word)
		}
	}
	var words []string
	for _, e := range list {
		if s := claimText(e); s != "" {
			words = append(words, s)
		}
	}
	return words
}

// Time returns a claim in seconds since 1970 (RFC 7519 section 2, NumericDate);
// zero when it is not one.
func Time(v any) time.Time {
	f, err := strconv.ParseFloat(claimText(v), 64)
	if err != nil || !(f > 0 && f < 1<<38) { // some 8,700 years; no NaN
		return time.Time{}
	}
	return time.Unix(int64(f), 0).UTC()
}

// tenantOf finds the tenant in an issuer: https://sts.windows.net/TENANT/ or
// https://login.microsoftonline.com/TENANT/v2.0.
func tenantOf(issuer string) string {
	_, path, ok := strings.Cut(strings.TrimPrefix(issuer, "https://"), "/")
	if !ok {
		return ""
	}
	tenant, _, _ := strings.Cut(path, "/")
	return tenant
}

func firstOf(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// Expected is what a token should say. What is empty is not compared.
type Expected struct {
	TenantID  string    // a GUID; "" when only a domain of the tenant is known
	ClientID  string    // "" for a managed identity whose app nobody has named
	ObjectID  string    // of the service principal in Exchange Online (Get-ServicePrincipal)
	AppOnly   bool      // the app's own token, else a signed-in user's
	User      string    // who has to sign in
	Audiences []string  // any of them; none means Exchange Online in the global cloud
	Now       time.Time // by this machine's clock; zero means time.Now
	// HighVolume is for High Volume Email, which has a permission of its own and no service principals.
	HighVolume bool
}

// Finding is what one claim tells. Meaning and Act are in lower case, without a full
// stop. Act may stand beside OK too: for what Exchange Online alone can confirm.
type Finding struct {
	OK      bool
	What    string // "audience"
	Meaning string // "the token is for …"
	Act     string // what to do; may be empty
}

// Judge compares the claims with what they should be, in the order in which an
// administrator would look. It cannot tell that a token will be accepted: Entra gives
// an app its token whether or not it has any permission.
func (c *Claims) Judge(e Expected) []Finding {
	if e.Now.IsZero() {
		e.Now = time.Now()
	}
	if len(e.Audiences) == 0 {
		e.Audiences = []string{"https://outlook.office365.com", "https://outlook.office.com"}
	}
	fill := c.placeholders(e)
	var findings []Finding
	said := ""
	for _, row := range judgements {
		if row.what == said || !row.when(c, &e) {
			continue
		}
		said = row.what
		if row.meaning != "" {
			findings = append(findings, Finding{OK: row.ok, What: row.what, Meaning: fill.Replace(row.meaning), Act: fill.Replace(row.act)})
		}
	}
	return findings
}

// placeholders are what stands for claims and expectations in judgements.
func (c *Claims) placeholders(e Expected) *strings.Replacer {
	show := func(s string) string { return cmp.Or(oneLine(s), "nothing") }
	date := func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 MST") }
	return strings.NewReplacer(
		"{aud}", show(c.Audience), "{want_aud}", show(strings.Join(e.Audiences, " or ")),
		"{tid}", show(c.Tenant), "{want_tid}", show(e.TenantID),
		"{appid}", show(c.AppID), "{want_appid}", show(e.ClientID),
		"{oid}", show(c.ObjectID), "{want_oid}", show(e.ObjectID),
		"{user}", show(c.User), "{want_user}", show(e.User),
		"{roles}", show(strings.Join(c.Roles, " ")), "{scopes}", show(strings.Join(c.Scopes, " ")),
		"{from}", date(c.from()), "{until}", date(c.Expires), "{now}", date(e.Now),
		"{left}", c.Expires.Sub(e.Now).Round(time.Second).String(),
		"{version}", show(c.Version),
	)
}

// from is when the token begins to be valid.
func (c *Claims) from() time.Time {
	if c.NotBefore.After(c.IssuedAt) {
		return c.NotBefore
	}
	return c.IssuedAt
}

// What audiences and permissions are called. A v2.0 token names the resource by its id.
const (
	exchangeAppID  = "00000002-0000-0ff1-ce00-000000000000"
	graphAppID     = "00000003-0000-0000-c000-000000000000"
	sendAsAppRole  = "SMTP.SendAsApp"
	smtpSendScope  = "SMTP.Send"
	mailSend       = "Mail.Send" // of High Volume Email, as a role and as a scope
	thenMendScopes = "in sendas.yaml, tenant.endpoints.scope is https://outlook.office365.com/.default (an app) and delegated_scope https://outlook.office.com/SMTP.Send (a user) in the global cloud"
)

// judgements are what the claims can mean; of the rows for one claim the first that
// holds counts. A row without meaning ends the matter silently. For the two models of
// app-only permission see
// https://learn.microsoft.com/exchange/permissions-exo/application-rbac: with App RBAC
// the role must be absent from the token, so its absence alone is no fault.
var judgements = []struct {
	what    string
	when    func(*Claims, *Expected) bool
	ok      bool
	meaning string
	act     string
}{
	{"audience", forGraph, false, "the token is for Microsoft Graph ({aud}), and Exchange Online refuses it with 535 5.7.3", thenMendScopes + "; that the permission is registered under Microsoft Graph does no harm"},
	{"audience", forExchange, true, "the token is for {aud}", ""},
	{"audience", func(_ *Claims, e *Expected) bool { return e.HighVolume }, false, "the token is for {aud}, not for {want_aud}, so High Volume Email refuses it with 535 5.7.144", "in sendas.yaml, scope: of the route is https://outlook.office.com/.default in the global cloud"},
	{"audience", always, false, "the token is for {aud}, not for {want_aud}", thenMendScopes},

	{"tenant", func(c *Claims, e *Expected) bool { return e.TenantID == "" }, true, "the token comes from tenant {tid}", ""},
	{"tenant", func(c *Claims, e *Expected) bool { return strings.EqualFold(c.Tenant, e.TenantID) }, true, "the token comes from tenant {tid}", ""},
	{"tenant", always, false, "the token comes from tenant {tid}, not from {want_tid}", "compare tenant.id and the credential with the tenant of the mailboxes (Entra admin centre, Overview)"},

	{"kind", func(c *Claims, e *Expected) bool { return e.AppOnly && len(c.Scopes) > 0 }, false, "the token is a signed-in user's, not the app's own", "the flow is client_credentials, federated or managed_identity for an app: " + mendYAML},
	{"kind", func(c *Claims, e *Expected) bool { return e.AppOnly }, true, "the token is the app's own", ""},
	{"kind", func(c *Claims, e *Expected) bool { return len(c.Scopes) == 0 && c.User == "" }, false, "the token is the app's own, not a signed-in user's", "the flow is device_code or authorization_code for a user: " + mendYAML},
	{"kind", always, true, "the token is a signed-in user's", ""},

	{"app", func(c *Claims, e *Expected) bool { return e.ClientID == "" && e.HighVolume }, true, "the token is that of app {appid}", ""},
	{"app", func(c *Claims, e *Expected) bool { return e.ClientID == "" }, true, "the token is that of app {appid}", `"New-ServicePrincipal -AppId" in Exchange Online must have named this app`},
	{"app", func(c *Claims, e *Expected) bool { return strings.EqualFold(c.AppID, e.ClientID) }, true, "the token is that of app {appid}", ""},
	{"app", always, false, "the token is that of app {appid}, not of {want_appid}", "compare client_id with the app registration (Overview): " + mendYAML},

	{"object id", func(c *Claims, e *Expected) bool { return !e.AppOnly || c.ObjectID == "" }, true, "", ""},
	{"object id", func(_ *Claims, e *Expected) bool { return e.HighVolume }, true, "the token's object id is {oid}", `"Get-HVEAccountSettings" in Exchange Online must list it, or the app {appid}, else the account refuses it with 550 5.7.240; to add it: "Add-HVEAppAccess -Identity ACCOUNT -AppIds {oid}"`},
	{"object id", func(c *Claims, e *Expected) bool { return e.ObjectID == "" }, true, "the token's object id is {oid}", `"Get-ServicePrincipal | fl AppId,ObjectId" in Exchange Online must show the same, else every sign-in fails`},
	{"object id", func(c *Claims, e *Expected) bool { return strings.EqualFold(c.ObjectID, e.ObjectID) }, true, "the token's object id is {oid}, as in Exchange Online", ""},
	{"object id", always, false, "the token's object id is {oid}, but Exchange Online has {want_oid} for the app, so every sign-in fails", `in Exchange Online type "Remove-ServicePrincipal -Identity {want_oid}" and "New-ServicePrincipal -AppId {appid} -ObjectId {oid} -DisplayName sendas": the object ID on the page Enterprise applications counts, not the one on App registrations; then grant its permissions again`},

	{"permission", func(c *Claims, e *Expected) bool {
		return e.HighVolume && (has(c.Roles, mailSend) || has(c.Scopes, mailSend))
	}, true, "the token has the permission Mail.Send", ""},
	{"permission", func(c *Claims, e *Expected) bool { return e.HighVolume && e.AppOnly }, false, "the token lacks the permission Mail.Send (its roles: {roles}), so High Volume Email refuses it with 535 5.7.144", `add the application permission Mail.Send of Office 365 Exchange Online to the app registration and press "Grant admin consent"`},
	{"permission", func(_ *Claims, e *Expected) bool { return e.HighVolume }, false, "the token lacks the permission Mail.Send (it has: {scopes}), so High Volume Email refuses it with 535 5.7.144", `add the delegated permission Mail.Send of Office 365 Exchange Online to the app registration, and sign in again with "sendas login"`},
	{"permission", func(c *Claims, e *Expected) bool { return e.AppOnly && has(c.Roles, sendAsAppRole) }, true, "the app has the role SMTP.SendAsApp: the classic model, in which it also needs FullAccess to each mailbox", "with App RBAC remove that permission from the app registration: it makes Exchange Online ask for FullAccess as well"},
	{"permission", func(c *Claims, e *Expected) bool { return e.AppOnly }, true, "the token has no role SMTP.SendAsApp (its roles: {roles}): that is right with App RBAC, and a fault in the classic model", `if sign-ins fail: with App RBAC type "Test-ServicePrincipalAuthorization -Identity {appid}" in Exchange Online; in the classic model add the application permission SMTP.SendAsApp of Office 365 Exchange Online to the app registration and press "Grant admin consent"`},
	{"permission", func(c *Claims, e *Expected) bool { return has(c.Scopes, smtpSendScope) }, true, "the app may send for the user (SMTP.Send)", ""},
	{"permission", always, false, "the token lacks the permission SMTP.Send (it has: {scopes})", `add the delegated permission SMTP.Send to the app registration, compare tenant.endpoints.delegated_scope, and sign in again with "sendas login"`},

	{"user", func(c *Claims, e *Expected) bool { return e.AppOnly || c.User == "" }, true, "", ""},
	{"user", func(c *Claims, e *Expected) bool { return e.User == "" || strings.EqualFold(c.User, e.User) }, true, "the user is {user}", ""},
	{"user", always, false, "the user is {user}, not {want_user}", `sign in as {want_user} with "sendas login"; where both are one account, or {user} may use the shared mailbox on purpose, write user: {user}`},

	{"life", func(c *Claims, e *Expected) bool { return c.Expires.IsZero() }, true, "", ""},
	{"life", func(c *Claims, e *Expected) bool { return !e.Now.Before(c.Expires) }, false, "the token expired at {until}, and this machine's clock says {now}", `compare the clock with "timedatectl"; if it is right, see in "sendas status" why there is no newer token`},
	{"life", func(c *Claims, e *Expected) bool { return c.Expires.Sub(e.Now) < minLife }, false, "the token ends in {left}, and Exchange Online refuses tokens with less than about ten minutes (501 5.5.127)", `see in "sendas status" why there is no newer token`},
	{"life", always, true, "the token serves until {until}", ""},

	{"clock", func(c *Claims, e *Expected) bool { return c.from().IsZero() }, true, "", ""},
	{"clock", func(c *Claims, e *Expected) bool { return e.Now.Before(c.from()) }, false, "the token is valid from {from} on, and this machine's clock says {now}: it is behind", `set the clock: "timedatectl" shows whether it is kept right`},
	{"clock", always, true, "the token is valid since {from}", ""},

	{"proof", func(c *Claims, e *Expected) bool { return c.AppAuth == "0" }, true, "the app has proved nothing (a public client)", ""},
	{"proof", func(c *Claims, e *Expected) bool { return c.AppAuth == "1" }, true, "the app has proved itself by a client secret", ""},
	{"proof", func(c *Claims, e *Expected) bool { return c.AppAuth == "2" }, true, "the app has proved itself by a certificate or another issuer's token", ""},

	{"version", func(c *Claims, e *Expected) bool { return c.Version != "" }, true, "the token has version {version}; for Exchange Online 1.0 is usual", ""},
}

// Classic reports whether an app's own token has the permission of the classic model, in which the app
// also needs FullAccess to each mailbox.
func (c *Claims) Classic() bool { return has(c.Roles, sendAsAppRole) }

func always(*Claims, *Expected) bool { return true }

func forGraph(c *Claims, _ *Expected) bool {
	return strings.Contains(strings.ToLower(c.Audience), "graph") || strings.EqualFold(c.Audience, graphAppID)
}

func forExchange(c *Claims, e *Expected) bool {
	return strings.EqualFold(c.Audience, exchangeAppID) || slices.ContainsFunc(e.Audiences, func(want string) bool {
		return strings.EqualFold(strings.TrimRight(c.Audience, "/"), strings.TrimRight(want, "/"))
	})
}

// has looks for a permission, in whatever case.
func has(list []string, name string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return strings.EqualFold(s, name) })
}
