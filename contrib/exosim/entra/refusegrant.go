package entra

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// The names by which grants are refused and counted. Those of the token endpoint
// are its grant_type, but for the long one of the device code; the last three
// are pages of their own.
const (
	GrantClientCredentials = "client_credentials"
	GrantDeviceCode        = "device_code"        // polls for a device code
	GrantAuthorizationCode = "authorization_code" // redeems a code of /authorize
	GrantRefreshToken      = "refresh_token"
	GrantDeviceStart       = "devicecode" // the page that gives device codes
	GrantAuthorize         = "authorize"  // the page that the browser opens
	GrantManagedIdentity   = "managed_identity"
)

// deviceCodeType is the grant_type of GrantDeviceCode (RFC 8628, section 3.4).
const deviceCodeType = "urn:ietf:params:oauth:grant-type:device_code"

// refusable are the grants that RefuseGrant knows.
var refusable = []string{GrantClientCredentials, GrantDeviceCode, GrantAuthorizationCode, GrantRefreshToken, GrantDeviceStart, GrantAuthorize}

// Refusing says how a grant is refused for now.
type Refusing struct {
	Code  string `json:"code"`            // as for RefuseGrant
	Times int    `json:"times,omitempty"` // so many more; 0 is until further notice
}

// RefuseGrant makes every request of a grant fail, once tenant and request are
// found good, as Entra does for a reason: a code of Microsoft's table such as
// "AADSTS53003", or an error such as "slow_down", "authorization_declined",
// "expired_token" or "access_denied". The grant is one of the Grant constants,
// but not GrantManagedIdentity, which [Faults] has its own troubles for. "" ends
// it.
func (l *Login) RefuseGrant(grant, code string) error { return l.RefuseNext(grant, code, 0) }

// RefuseNext is RefuseGrant for so many requests; with 0 times for all.
func (l *Login) RefuseNext(grant, code string, times int) error {
	if grant == deviceCodeType {
		grant = GrantDeviceCode
	}
	if err := checkRefusing(grant, code, times); err != nil {
		return fmt.Errorf("exosim: refusing %s: %w", grant, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if code == "" {
		delete(l.refusing, grant)
		return nil
	}
	l.refusing[grant] = Refusing{code, times}
	return nil
}

// RefuseEach is RefuseNext for several grants. A wrong name or code changes nothing.
func (l *Login) RefuseEach(all map[string]Refusing) error {
	for grant, r := range all {
		if err := checkRefusing(grant, r.Code, r.Times); err != nil {
			return err
		}
	}
	for grant, r := range all {
		if err := l.RefuseNext(grant, r.Code, r.Times); err != nil {
			panic(err) // looked at above
		}
	}
	return nil
}

func checkRefusing(grant, code string, times int) error {
	if times < 0 {
		return fmt.Errorf("%d times is negative", times)
	}
	if !slices.Contains(refusable, grant) {
		return fmt.Errorf("%q is not one of the grants %s", grant, strings.Join(refusable, ", "))
	}
	if code == "" {
		return nil
	}
	_, _, err := findReason(code)
	return err
}

// RefusedGrants returns how grants are refused at present, by grant.
func (l *Login) RefusedGrants() map[string]Refusing {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.refusing)
}

// errorCodes are the errors that stand for one code.
var errorCodes = map[string]int{
	"authorization_pending": 70016, "bad_verification_code": 70018, "expired_token": 70019,
	"access_denied": 65004, "consent_required": 65001, "login_required": 50058, "interaction_required": 50076,
}

// findReason reads "AADSTS53003", "53003" or "slow_down".
func findReason(name string) (reason, int, error) {
	if r, ok := uncoded[name]; ok {
		return r, 0, nil
	}
	code := errorCodes[name]
	if code == 0 {
		code, _ = strconv.Atoi(strings.TrimPrefix(name, "AADSTS"))
	}
	r, ok := reasons[code]
	if !ok {
		return r, 0, fmt.Errorf("%q is no code of the table and no error of the flows", name)
	}
	return r, code, nil
}

// refused returns the refusal that RefuseGrant ordered, and uses one up.
func (l *Login) refused(grant string, q *tokenQuery) *refusal {
	l.mu.Lock()
	r, ok := l.refusing[grant]
	if ok && r.Times > 0 {
		if r.Times--; r.Times == 0 {
			delete(l.refusing, grant)
		} else {
			l.refusing[grant] = r
		}
	}
	l.mu.Unlock()
	if !ok {
		return nil
	}
	why, code, err := findReason(r.Code)
	if err != nil {
		panic(err) // RefuseNext looked
	}
	return l.fill(q, why, code, nil)
}
