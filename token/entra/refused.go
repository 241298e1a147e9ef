package entra

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sendas/sendas/internal/plaintext"
)

// MaxText is how many characters of a text from outside an error repeats.
const MaxText = 300

// RefusedError is an OAuth error with what Microsoft said about it (RFC 6749
// section 5.2 and Entra's additions). All texts are one line, bounded, and free
// of secrets.
type RefusedError struct {
	Credential string // its name in our configuration
	What       string // what was refused: "client credentials"
	ClientID   string
	File       string // the secret or certificate that was sent; may be empty

	Status        int           // HTTP's
	OAuth         string        // "invalid_client"
	Suberror      string        // "consent_required"; seldom there
	Codes         []int         // 7000215 for AADSTS7000215; the first counts
	Description   string        // without code, ids and time
	TraceID       string        // what Microsoft's support asks for
	CorrelationID string        // likewise
	RetryAfter    time.Duration // zero when not told
	Skew          time.Duration // of the clock, as in Token.Skew

	Delegated bool   // it was asked for a signed-in user, or one who signs in; else as the app
	Federated bool   // the proof was another issuer's token, of File
	Platform  string // who was asked for a managed identity: one of the Platform constants; else empty
}

func (e *RefusedError) Error() string {
	s := fmt.Sprintf("Microsoft refused the %s of %q (%s)", e.What, e.Credential, e.Code())
	if e.Temporary() {
		s = fmt.Sprintf("Microsoft has no answer to the %s of %q just now (%s)", e.What, e.Credential, e.Code())
	}
	if e.Description != "" {
		s += fmt.Sprintf(": %q", e.Description)
	}
	return s
}

// Code is the shortest name of the refusal: "AADSTS7000215", or the OAuth error
// where there is no such code.
func (e *RefusedError) Code() string {
	if len(e.Codes) == 0 {
		return e.OAuth
	}
	return "AADSTS" + strconv.Itoa(e.Codes[0])
}

// Temporary reports whether asking again later can help without anybody doing
// anything.
func (e *RefusedError) Temporary() bool { return e.explanation().temporary }

// EndsSignIn reports whether Microsoft gives no more tokens to the user who has signed in, until
// somebody does something.
func (e *RefusedError) EndsSignIn() bool {
	return e.Delegated && !e.Temporary() && slices.Contains(grantErrors, e.OAuth)
}

// RefusesProof reports whether Microsoft did not take the app's secret, certificate or other
// issuer's token, until somebody does something.
func (e *RefusedError) RefusesProof() bool { return e.OAuth == "invalid_client" && !e.Temporary() }

// grantErrors are about the user and their sign-in, and not about the app or the request (RFC 6749
// section 5.2; the others are OpenID Connect's and Entra's).
var grantErrors = []string{"invalid_grant", "interaction_required", "login_required", "consent_required", "access_denied"}

// Hint says what the refusal means and what to do about it.
func (e *RefusedError) Hint() string {
	x := e.explanation()
	hint := strings.NewReplacer(
		"{credential}", e.Credential,
		"{client_id}", e.ClientID,
		"{file}", e.fileOr("the file of credential "+e.Credential),
	).Replace(x.meaning + "; " + x.act)
	if x.clock && e.Skew.Abs() > MaxSkew {
		hint += "; " + skewText(e.Skew)
	}
	return hint
}

// skewText says how wrong a clock is; see Token.Skew.
func skewText(skew time.Duration) string {
	if skew < 0 {
		return fmt.Sprintf("this machine's clock is %v behind Microsoft's", -skew.Round(time.Second))
	}
	return fmt.Sprintf("this machine's clock is %v ahead of Microsoft's", skew.Round(time.Second))
}

func (e *RefusedError) fileOr(s string) string {
	if e.File != "" {
		return e.File
	}
	return s
}

// explanation finds the row for the most telling part of the refusal. A status
// that says "later" outweighs a code that says "never".
func (e *RefusedError) explanation() explanation {
	overloaded := e.Status == http.StatusTooManyRequests || e.Status >= 500
	if e.Platform != "" {
		for _, row := range byPlatform {
			if row.is(e) {
				return row.explanation
			}
		}
	}
	// Whether a sign-in by code goes on is what the error says (RFC 8628 section 3.5): the same code
	// stands beside different errors there. It may still say more exactly why.
	ends, isFlow := byDeviceError[e.OAuth]
	for _, code := range e.Codes {
		x, ok := e.byCode(code)
		if ok && (x.temporary || !overloaded) && (!isFlow || x.temporary == ends.temporary) {
			return x
		}
	}
	switch {
	case overloaded && !ends.temporary:
		return serviceBusy
	case isFlow:
		return ends
	}
	for _, code := range e.Codes {
		if x, ok := byDeviceCode[code]; ok && !x.temporary {
			return x
		}
	}
	if x, ok := byDelegatedError[e.OAuth]; ok && e.Delegated {
		return x
	}
	if x, ok := byError[e.OAuth]; ok {
		return x
	}
	return unexplained
}

// byCode returns the explanation of one code in this refusal.
func (e *RefusedError) byCode(code int) (explanation, bool) {
	if x, ok := byFederatedCode[code]; ok && e.Federated {
		return x, true
	}
	if x, ok := byDelegatedCode[code]; ok && e.Delegated {
		return x, true
	}
	x, ok := byCode[code]
	return x, ok
}

// UnreachableError tells that no answer of Microsoft's came: the network, a
// proxy, or a page that is no OAuth answer. It passes, or somebody mends the
// network: the next attempt may succeed.
type UnreachableError struct {
	Credential string
	Host       string        // who was asked
	Status     int           // HTTP's, if an answer came; else 0
	Problem    string        // "gave no answer: …", follows the host
	RetryAfter time.Duration // zero when not told
	Err        error         // the network's error; may be nil
	Platform   string        // as in RefusedError
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("asking for a token of %q: %s %s", e.Credential, e.Host, e.Problem)
}

func (e *UnreachableError) Unwrap() error { return e.Err }

// Temporary is always true.
func (e *UnreachableError) Temporary() bool { return true }

// Hint says where to look.
func (e *UnreachableError) Hint() string {
	for _, row := range unreachable {
		if row.is(e) {
			return strings.NewReplacer("{host}", e.Host, "{credential}", e.Credential).Replace(row.hint)
		}
	}
	return "sendas tries again by itself; if it lasts, run \"sendas doctor\""
}

// unreachable holds the hints for an UnreachableError; the first row that
// matches counts.
var unreachable = []struct {
	is   func(*UnreachableError) bool
	hint string
}{
	// A managed identity: what is asked stands beside us, not at Microsoft.
	{silent(PlatformIMDS), "nobody answers there: it is where an Azure VM learns about itself, so either this machine is none (then flow managed_identity " +
		"needs the Azure Arc agent) or a firewall rule of it blocks 169.254.169.254"},
	{silent(PlatformArc), `the Azure Arc agent does not answer: type "systemctl status himdsd" and "azcmagent show"`},
	{silent(PlatformAppService), "IDENTITY_ENDPOINT in the environment of the service names an address where nobody answers: see that the app has an identity, and restart it"},
	{func(e *UnreachableError) bool { return e.Platform != "" && isBusy(e.Status) }, "the platform is busy or is being updated, which may take a minute; sendas tries again by itself"},
	{func(e *UnreachableError) bool { return e.Platform != "" && e.Status != 0 }, "that is somebody else than the machine's own platform: look for a proxy or a container network that takes requests to {host}"},
	{func(e *UnreachableError) bool { return e.Platform != "" }, "use flow client_credentials or federated for credential {credential} instead"},

	{refusedByProxy(http.StatusProxyAuthRequired), "the proxy wants a name and password: put them into HTTPS_PROXY of the service"},
	{caused[*connectError], "the proxy does not let us through to {host}: have it allow CONNECT to port 443"},
	{proxySilent, "the proxy cannot be reached: compare tenant.endpoints.proxy, or HTTPS_PROXY of the service, with its address"},
	{caused[x509.UnknownAuthorityError], "nobody whom this machine trusts has signed the certificate of {host}: where a proxy inspects TLS, " +
		"put its CA certificate into tenant.endpoints.ca_file; else install the package ca-certificates"},
	{caused[x509.CertificateInvalidError], "the certificate of {host} is not valid now: compare this machine's clock with \"timedatectl\""},
	{caused[x509.HostnameError], "somebody else answers for {host}: look for a captive portal, a proxy, " +
		"or a wrong tenant.endpoints.authority"},
	{caused[*net.DNSError], "the name cannot be resolved: type \"getent hosts {host}\" and mend DNS in /etc/resolv.conf"},
	{notConnected, "port 443 of {host} must be open for this machine, or tenant.endpoints.proxy name a proxy; run \"sendas doctor\""},
	{timedOut, "no answer came in time: {host}, or a proxy before it, is slow for the moment; sendas tries again by itself"},
	{caused[*net.OpError], "check firewall, route and proxy to {host}: run \"sendas doctor\""},
	{hasStatus(http.StatusProxyAuthRequired), "the proxy wants a name and password: put them into HTTPS_PROXY of the service"},
	{hasStatus(http.StatusNotFound), "compare tenant.id, tenant.cloud and tenant.endpoints.authority with the Entra admin centre: run \"sendas check\""},
	{hasStatus(http.StatusTooManyRequests), "Microsoft asks for fewer requests; sendas waits by itself"},
	{func(e *UnreachableError) bool { return e.Status >= 500 }, "Microsoft or a proxy is out of order for the moment; sendas tries again by itself"},
	{func(e *UnreachableError) bool { return e.Status != 0 }, "that is a proxy or a portal rather than Microsoft: " +
		"let {host} through, or name the right one in tenant.endpoints.proxy; run \"sendas doctor\""},
}

// caused reports whether an error of type E is behind e.
func caused[E error](e *UnreachableError) bool {
	_, ok := errors.AsType[E](e.Err)
	return ok
}

func timedOut(e *UnreachableError) bool {
	ne, ok := errors.AsType[net.Error](e.Err)
	return ok && ne.Timeout()
}

// notConnected reports whether the time was up before anybody took the connection.
func notConnected(e *UnreachableError) bool {
	oe, ok := errors.AsType[*net.OpError](e.Err)
	return ok && oe.Op == "dial" && oe.Timeout()
}

// silent is a platform that gave no answer at all.
func silent(platform string) func(*UnreachableError) bool {
	return func(e *UnreachableError) bool { return e.Platform == platform && e.Status == 0 }
}

func refusedByProxy(status int) func(*UnreachableError) bool {
	return func(e *UnreachableError) bool {
		ce, ok := errors.AsType[*connectError](e.Err)
		return ok && ce.status == status
	}
}

// proxySilent reports whether the connection to a proxy failed: net/http says so in Op.
func proxySilent(e *UnreachableError) bool {
	oe, ok := errors.AsType[*net.OpError](e.Err)
	return ok && oe.Op == "proxyconnect"
}

// isBusy reports whether a platform's status means: later. 404 and 410 are what it says
// while it is being updated.
// https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token
func isBusy(status int) bool {
	return status == http.StatusNotFound || status == http.StatusGone || status == http.StatusTooManyRequests || status >= 500
}

func hasStatus(status int) func(*UnreachableError) bool {
	return func(e *UnreachableError) bool { return e.Status == status }
}

var (
	codePattern  = regexp.MustCompile(`AADSTS([0-9]{4,9})`)
	codePrefix   = regexp.MustCompile(`^\s*AADSTS[0-9]+:\s*`)
	idPattern    = regexp.MustCompile(`^[0-9A-Fa-f-]{1,64}`)
	titlePattern = regexp.MustCompile(`(?is)<title[^>]*>(.{0,1000}?)</title>`)
)

// aadstsCodes returns the AADSTS codes, the one that the text begins with first. Some
// answers name it in the text alone.
func aadstsCodes(list any, text string) []int {
	var found []int
	add := func(s string) {
		if n, err := strconv.Atoi(s); err == nil && n > 0 && len(found) < 8 && !slices.Contains(found, n) {
			found = append(found, n)
		}
	}
	for _, m := range codePattern.FindAllStringSubmatch(text, 1) {
		add(m[1])
	}
	numbers, _ := list.([]any)
	for _, v := range numbers {
		if n, ok := v.(json.Number); ok {
			add(n.String())
		}
	}
	return found
}

// essence drops from a description the code at its head and, at its tail, ids
// and time, which older answers put on lines of their own and newer ones do not.
func essence(text string) string {
	text = codePrefix.ReplaceAllString(text, "")
	text, _, _ = strings.Cut(text, "Trace ID:")
	return text
}

// guid accepts a GUID or something like it, and nothing else.
func guid(s string) string { return idPattern.FindString(s) }

// guidAfter finds an id in a description.
func guidAfter(text, label string) string {
	_, rest, _ := strings.Cut(text, label)
	return guid(strings.TrimSpace(rest))
}

// htmlTitle returns the title of a web page, or "".
func htmlTitle(body []byte) string {
	m := titlePattern.FindSubmatch(body)
	if m == nil {
		return ""
	}
	return html.UnescapeString(string(m[1]))
}

// OneLine makes one line of at most limit characters from a foreign text.
func OneLine(s string, limit int) string {
	return plaintext.Style{MaxRunes: limit, Cut: "…"}.Line(s)
}

// Advice says what the refusal means and what to do about it, apart; Hint says both in one line.
func (e *RefusedError) Advice() (meaning, act string) {
	x := e.explanation()
	r := strings.NewReplacer("{credential}", e.Credential, "{client_id}", e.ClientID, "{file}", e.fileOr("the file of credential "+e.Credential))
	return r.Replace(x.meaning), r.Replace(x.act)
}
